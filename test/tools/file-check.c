// file-check: random operations on one file of a file system, every byte compared with what it must
// hold: writes, reads, memory maps, truncations, holes, zeroed and allocated ranges.
//
//   file-check run FILE OPS SEED       makes FILE, does so many operations, and compares it
//   file-check compare FILE OPS SEED   compares the FILE that such a run has left
//
// The same seed gives the same operations. Exit status: 0 all as expected, 1 not, 2 wrong usage.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGEST = 4 << 20, LONGEST = 128 << 10 };

static unsigned char model[LARGEST];
static unsigned char data[LARGEST];
static size_t size;
static const char *path;
static int fd = -1;
static long operation;
static uint64_t rng_state;

static uint64_t below(uint64_t limit)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state % limit;
}

static void die(const char *what)
{
    fprintf(stderr, "file-check: %s: operation %ld, %s: %s\n", path, operation, what,
            strerror(errno));
    exit(1);
}

static void compare(size_t at, const unsigned char *got, size_t length, const char *how)
{
    if (!memcmp(model + at, got, length))
        return;
    size_t i = 0;
    while (model[at + i] == got[i])
        i++;
    fprintf(stderr, "file-check: %s: operation %ld, %s of %zu+%zu: byte %zu is %#x, not %#x\n",
            path, operation, how, at, length, at + i, got[i], model[at + i]);
    exit(1);
}

static void read_back(size_t at, size_t length, const char *how)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = pread(fd, data + done, length - done, (off_t)(at + done));
        if (n <= 0)
            die(n ? how : "the file ends early");
        done += (size_t)n;
    }
    compare(at, data, length, how);
}

static void write_out(size_t at, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = pwrite(fd, model + at + done, length - done, (off_t)(at + done));
        if (n < 0)
            die("write");
        done += (size_t)n;
    }
}

static void map(size_t at, size_t length, bool write)
{
    size_t start = at & ~(size_t)4095, whole = at + length - start;
    int protection = write ? PROT_READ | PROT_WRITE : PROT_READ;
    unsigned char *memory = mmap(NULL, whole, protection, MAP_SHARED, fd, (off_t)start);
    if (memory == MAP_FAILED)
        die("mmap");
    if (write)
        memcpy(memory + (at - start), model + at, length);
    else
        compare(at, memory + (at - start), length, "mapped read");
    munmap(memory, whole);
}

// Has the file written out and forgotten, so that it is read from the device again.
static void evict(void)
{
    if (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        die("fsync");
}

static void fill(size_t at, size_t length)
{
    for (size_t i = 0; i < length; i++)
        model[at + i] = (unsigned char)below(256);
}

static void resize(size_t to)
{
    if (to < size)
        memset(model + to, 0, size - to);
    size = to;
    if (fd >= 0 && ftruncate(fd, (off_t)to))
        die("ftruncate");
}

static void allocate(int mode, size_t at, size_t length, const char *what)
{
    if (mode != 0)
        memset(model + at, 0, length);
    if (fd >= 0 && fallocate(fd, mode, (off_t)at, (off_t)length))
        die(what);
}

// Without an open file only what it must hold is changed.
static void operate(void)
{
    uint64_t kind = below(16);
    size_t at = below(LARGEST - LONGEST), length = 1 + below(LONGEST);
    if (kind < 6) {
        if (at + length > size)
            size = at + length;
        fill(at, length);
        if (fd >= 0)
            write_out(at, length);
        return;
    }
    if (kind == 6) {
        resize(at);
        return;
    }
    if (at >= size)
        return;
    if (length > size - at)
        length = size - at;
    switch (kind) {
    case 7:
        allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length, "punch");
        break;
    case 8:
        allocate(FALLOC_FL_ZERO_RANGE, at, length, "zero range");
        break;
    case 9:
        allocate(0, at, length, "allocate");
        break;
    case 10:
    case 11:
        fill(at, length);
        if (fd >= 0)
            map(at, length, true);
        break;
    case 12:
        if (fd >= 0)
            map(at, length, false);
        break;
    case 13:
        if (fd >= 0)
            evict();
        break;
    default:
        if (fd >= 0)
            read_back(at, length, "read");
    }
}

int main(int argc, char **argv)
{
    bool run = argc == 5 && !strcmp(argv[1], "run");
    if (argc != 5 || (!run && strcmp(argv[1], "compare"))) {
        fprintf(stderr, "usage: file-check run|compare FILE OPS SEED\n");
        return 2;
    }
    path = argv[2];
    rng_state = strtoull(argv[4], NULL, 0) * 0x9e3779b97f4a7c15ULL | 1;
    if (run && (fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600)) < 0)
        die("open");
    for (long count = atol(argv[3]); operation < count; operation++)
        operate();
    if (!run && (fd = open(path, O_RDONLY)) < 0)
        die("open");
    if (run)
        evict();
    if (lseek(fd, 0, SEEK_END) != (off_t)size) {
        fprintf(stderr, "file-check: %s has not %zu bytes\n", path, size);
        return 1;
    }
    read_back(0, size, "last read");
    return close(fd) ? 1 : 0;
}
