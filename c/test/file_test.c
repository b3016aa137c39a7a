/* file.c: what a file is, its lock, and plain I/O. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

enum { SIZE = 64 * 1024 };

static char path[] = "/tmp/file_test.XXXXXX";

static void tells_what_a_file_is(void)
{
    struct ubiblk_file_facts facts;
    int fd = open(path, O_RDWR);

    CHECK_EQUAL(ubiblk_file_facts(fd, &facts), 0);
    CHECK_EQUAL(facts.size, SIZE);
    CHECK_EQUAL(facts.is_block_device, 0);
    CHECK_EQUAL(facts.logical_block, 512);
    CHECK(facts.physical_block >= 512);
    CHECK_EQUAL(facts.direct_offset_align, 0);
    close(fd);
    CHECK_EQUAL(ubiblk_file_facts(-1, &facts), -EBADF);
}

static void tells_the_alignment_that_direct_io_needs(void)
{
    struct ubiblk_file_facts facts;
    int fd = open(path, O_RDWR | O_DIRECT);

    if (fd < 0) {
        CHECK_EQUAL(errno, EINVAL); /* a file system without direct I/O */
        return;
    }
    CHECK_EQUAL(ubiblk_file_facts(fd, &facts), 0);
    uint32_t align = facts.direct_offset_align;
    CHECK(align >= 512 && (align & (align - 1)) == 0 && facts.direct_memory_align > 0);
    void *buffer = aligned_alloc(4096, 4096);
    CHECK_EQUAL(ubiblk_pread(fd, (uintptr_t)buffer, align, align), align);
    free(buffer);
    close(fd);
}

static void refuses_what_is_no_disk(void)
{
    struct ubiblk_file_facts facts;
    int folder = open("/tmp", O_RDONLY), null = open("/dev/null", O_RDWR);

    CHECK_EQUAL(ubiblk_file_facts(folder, &facts), -EISDIR);
    CHECK_EQUAL(ubiblk_file_facts(null, &facts), -ENOTBLK);
    close(folder), close(null);
}

static void probes_zeroing_without_touching_the_disk(void)
{
    struct ubiblk_file_facts facts = {0};
    struct stat before, after;
    uint8_t *content = malloc(SIZE), *later = malloc(SIZE);
    int fd = open(path, O_RDWR);

    memset(content, 0x5a, SIZE);
    CHECK_EQUAL(pwrite(fd, content, SIZE, 0), SIZE);
    fstat(fd, &before);
    CHECK_EQUAL(ubiblk_file_probe_zeroing(fd, &facts), 0);
    fstat(fd, &after);
    CHECK_EQUAL(after.st_size, before.st_size);
    CHECK_EQUAL(pread(fd, later, SIZE, 0), SIZE);
    CHECK(memcmp(content, later, SIZE) == 0);
    if (facts.can_punch) {
        int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        CHECK_EQUAL(ubiblk_fallocate(fd, mode, 4096, 4096), 0);
        CHECK_EQUAL(pread(fd, later, SIZE, 0), SIZE);
        CHECK(later[4095] == 0x5a && later[4096] == 0 && later[8191] == 0 && later[8192] == 0x5a);
    }
    free(content), free(later);
    close(fd);
}

static void locks_a_file_against_other_descriptions_until_the_last_is_closed(void)
{
    int first = open(path, O_RDWR), second = open(path, O_RDWR), copy = dup(first);

    CHECK_EQUAL(ubiblk_file_lock(first, 0, 1, 1), 0);
    CHECK_EQUAL(ubiblk_file_lock(first, 0, 1, 1), 0);
    CHECK_EQUAL(ubiblk_file_lock(second, 0, 1, 1), -EAGAIN);
    CHECK_EQUAL(ubiblk_file_lock(second, 0, 1, 0), -EAGAIN);
    close(first);
    CHECK_EQUAL(ubiblk_file_lock(second, 0, 1, 1), -EAGAIN);
    close(copy);
    CHECK_EQUAL(ubiblk_file_lock(second, 0, 1, 0), 0);
    first = open(path, O_RDWR);
    CHECK_EQUAL(ubiblk_file_lock(first, 0, 1, 0), 0);
    CHECK_EQUAL(ubiblk_file_lock(first, 0, 1, 1), -EAGAIN);
    close(first), close(second);
}

static void reads_and_writes_plain_and_in_vectors(void)
{
    char a[3] = "abc", b[2] = "de", flat[8] = "";
    struct iovec vector[] = {{a, 3}, {b, 2}};
    int fd = open(path, O_RDWR);

    CHECK_EQUAL(ubiblk_pwritev(fd, (uintptr_t)vector, 2, 100, 0), 5);
    CHECK_EQUAL(ubiblk_pread(fd, (uintptr_t)flat, 5, 100), 5);
    CHECK(memcmp(flat, "abcde", 5) == 0);
    CHECK_EQUAL(ubiblk_pwrite(fd, (uintptr_t) "vwxyz", 5, 100), 5);
    CHECK_EQUAL(ubiblk_preadv(fd, (uintptr_t)vector, 2, 100), 5);
    CHECK(memcmp(a, "vwx", 3) == 0 && memcmp(b, "yz", 2) == 0);
    CHECK_EQUAL(ubiblk_fdatasync(fd), 0);
    CHECK_EQUAL(ubiblk_pread(fd, (uintptr_t)flat, 8, SIZE - 4), 4);
    CHECK_EQUAL(ubiblk_pread(fd, (uintptr_t)flat, 8, SIZE), 0);
    close(fd);
    fd = open(path, O_RDONLY);
    CHECK_EQUAL(ubiblk_pwrite(fd, (uintptr_t)flat, 1, 0), -EBADF);
    close(fd);
    CHECK_EQUAL(ubiblk_pread(-1, (uintptr_t)flat, 1, 0), -EBADF);
    CHECK_EQUAL(ubiblk_fdatasync(-1), -EBADF);
}

int main(void)
{
    int fd = mkstemp(path);

    if (fd < 0 || ftruncate(fd, SIZE) < 0)
        return 1;
    close(fd);
    RUN(tells_what_a_file_is);
    RUN(tells_the_alignment_that_direct_io_needs);
    RUN(refuses_what_is_no_disk);
    RUN(probes_zeroing_without_touching_the_disk);
    RUN(locks_a_file_against_other_descriptions_until_the_last_is_closed);
    RUN(reads_and_writes_plain_and_in_vectors);
    unlink(path);
    return test_summary();
}
