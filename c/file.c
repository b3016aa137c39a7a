/*
 * What a disk's file or block device is and can do, its lock, and plain I/O for the engine without
 * io_uring. The descriptor is the caller's throughout.
 */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

/* Up to this size the kernel keeps memory ready for each processor. */
enum { CACHED_PIECE = 32 << 10 };

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif

static uint64_t queue_limit(dev_t dev, const char *name)
{
    char path[128];
    uint64_t value = 0;
    /* A partition has no queue of its own: the disk it lies on is its parent folder. */
    for (int parent = 0; parent < 2; parent++) {
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(dev), minor(dev),
                 parent ? "../" : "", name);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        unsigned long long read = 0;
        if (fscanf(file, "%llu", &read) == 1)
            value = read;
        fclose(file);
        break;
    }
    return value;
}

/*
 * The largest power of two that the device under dev takes as one request, in whatever pages the
 * memory is. A file system without a device of its own is taken to be like most disks.
 */
static uint32_t direct_piece(dev_t dev)
{
    uint64_t bytes = queue_limit(dev, "max_sectors_kb") * 1024;
    uint64_t segments = queue_limit(dev, "max_segments");
    uint32_t piece = 256 * 1024;
    if (!bytes || !segments)
        return piece;
    /* Memory that isn't page aligned takes one segment more. */
    if (segments > 1 && (segments - 1) * 4096 < bytes)
        bytes = (segments - 1) * 4096;
    piece = 64 * 1024;
    while (piece < 1024 * 1024 && (uint64_t)piece * 2 <= bytes)
        piece *= 2;
    return piece;
}

/* Finds out by reading what statx can't tell before Linux 6.1: the smallest direct read. */
static uint32_t direct_read_align(int fd)
{
    static const uint32_t sizes[] = {512, 1024, 2048, 4096};
    void *buf;
    uint32_t found = 0;
    if (posix_memalign(&buf, 4096, 4096))
        return 0;
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]) && !found; i++)
        if (pread(fd, buf, sizes[i], 0) >= 0)
            found = sizes[i];
    free(buf);
    return found;
}

/* Fills facts for fd, opened as it will be used; direct I/O facts need it opened with O_DIRECT. */
int ubiblk_file_facts(int fd, struct ubiblk_file_facts *facts)
{
    struct stat st;
    int flags = fcntl(fd, F_GETFL);
    memset(facts, 0, sizeof(*facts));
    if (flags < 0 || fstat(fd, &st) < 0)
        return -errno;
    facts->logical_block = 512;
    facts->physical_block = 512;
    if (S_ISBLK(st.st_mode)) {
        int value = 0;
        unsigned unsigned_value = 0;
        facts->is_block_device = 1;
        if (ioctl(fd, BLKGETSIZE64, &facts->size) < 0)
            return -errno;
        if (ioctl(fd, BLKSSZGET, &value) == 0 && value > 0)
            facts->logical_block = (uint32_t)value;
        if (ioctl(fd, BLKPBSZGET, &unsigned_value) == 0 && unsigned_value > 0)
            facts->physical_block = unsigned_value;
        if (ioctl(fd, BLKIOOPT, &unsigned_value) == 0)
            facts->optimal_io = unsigned_value;
        if (ioctl(fd, BLKROGET, &value) == 0)
            facts->read_only = value != 0;
    } else if (S_ISREG(st.st_mode)) {
        facts->size = (uint64_t)st.st_size;
        facts->physical_block = 4096;
    } else {
        return S_ISDIR(st.st_mode) ? -EISDIR : -ENOTBLK;
    }
    if (flags & O_DIRECT) {
        struct statx stx;
        facts->direct_piece = direct_piece(S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev);
        memset(&stx, 0, sizeof(stx));
        if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
            (stx.stx_mask & STATX_DIOALIGN)) {
            facts->direct_memory_align = stx.stx_dio_mem_align;
            facts->direct_offset_align = stx.stx_dio_offset_align;
        } else {
            uint32_t align = direct_read_align(fd);
            if (align && align < facts->logical_block)
                align = facts->logical_block;
            facts->direct_memory_align = facts->direct_offset_align = align;
        }
        if (facts->direct_offset_align > facts->logical_block)
            facts->logical_block = facts->direct_offset_align;
    }
    if (facts->physical_block < facts->logical_block)
        facts->physical_block = facts->logical_block;
    return 0;
}

/*
 * Fills can_punch and can_zero_range. Nothing inside the disk is touched: a file is probed past its
 * end, a block device by what its queue says.
 */
int ubiblk_file_probe_zeroing(int fd, struct ubiblk_file_facts *facts)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (S_ISBLK(st.st_mode)) {
        int can = queue_limit(st.st_rdev, "write_zeroes_max_bytes") > 0;
        facts->can_punch = (uint32_t)can;
        facts->can_zero_range = (uint32_t)can;
        return 0;
    }
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    int zero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    off_t end = (st.st_size + 4095) & ~(off_t)4095;
    facts->can_punch = fallocate(fd, punch, end, 4096) == 0;
    facts->can_zero_range = fallocate(fd, zero, end, 4096) == 0;
    /* The second probe may have reserved a block past the end: give it back. */
    if (facts->can_zero_range && facts->can_punch)
        (void)!fallocate(fd, punch, end, 4096);
    return 0;
}

/*
 * Takes an open-file-description lock over [start, start + length): it belongs to the description,
 * so it lasts until the last I/O that an io_uring holds on it has ended, also after a SIGKILL.
 * Returns -EAGAIN where another holds it. See fcntl(2), "Open file description locks".
 */
int ubiblk_file_lock(int fd, uint64_t start, uint64_t length, int exclusive)
{
    struct flock lock;
    memset(&lock, 0, sizeof(lock));
    lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)start;
    lock.l_len = (off_t)length;
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

static int64_t result(ssize_t r)
{
    return r < 0 ? -errno : r;
}

int64_t ubiblk_preadv(int fd, uint64_t iov, int count, uint64_t offset)
{
    return result(preadv(fd, (const struct iovec *)(uintptr_t)iov, count, (off_t)offset));
}

/* flags: RWF_* of pwritev2(2). */
int64_t ubiblk_pwritev(int fd, uint64_t iov, int count, uint64_t offset, int flags)
{
    return result(pwritev2(fd, (const struct iovec *)(uintptr_t)iov, count, (off_t)offset, flags));
}

int64_t ubiblk_pread(int fd, uint64_t buf, uint64_t length, uint64_t offset)
{
    return result(pread(fd, (void *)(uintptr_t)buf, length, (off_t)offset));
}

/* Reads what is in the page cache: -EAGAIN where nothing of it is. */
int64_t ubiblk_pread_cached(int fd, uint64_t buf, uint64_t length, uint64_t offset)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = length};
    return result(preadv2(fd, &iov, 1, (off_t)offset, RWF_NOWAIT));
}

int64_t ubiblk_pwrite(int fd, uint64_t buf, uint64_t length, uint64_t offset)
{
    return result(pwrite(fd, (const void *)(uintptr_t)buf, length, (off_t)offset));
}

/* Reads a whole file. Returns its size, of which nothing was read where there is less room. */
int64_t ubiblk_file_read_all(const char *path, void *buf, uint64_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct stat st;
    int64_t done = 0, size = fstat(fd, &st) < 0 ? -errno : st.st_size;
    while (done < size && (uint64_t)size <= room) {
        ssize_t count = pread(fd, (char *)buf + done, (size_t)(size - done), done);
        if (count < 0 && errno != EINTR)
            size = -errno;
        else if (count == 0)
            size = done;
        else if (count > 0)
            done += count;
    }
    close(fd);
    return size;
}

/*
 * Writes, and begins to bring what is in the page cache to storage: a sync that comes later finds
 * little left to do, and storage isn't idle until then. Returns as pwrite does.
 */
int64_t ubiblk_write_out(int fd, const void *buf, uint64_t length, uint64_t offset)
{
    /*
     * The page cache takes one block of memory for what one call writes, where it can. Small ones
     * are at hand; large ones a virtual machine's kernel often has to ask its host for, page by
     * page.
     */
    int is_cached = (fcntl(fd, F_GETFL) & (O_DIRECT | O_DSYNC)) == 0;
    uint64_t done = 0, most = is_cached ? CACHED_PIECE : length;
    ssize_t count = 0;
    do {
        uint64_t rest = length - done;
        count =
            pwrite(fd, (const char *)buf + done, rest < most ? rest : most, (off_t)(offset + done));
        if (count > 0)
            done += (uint64_t)count;
    } while (count > 0 && done < length);
    if (done == 0)
        return result(count);
    (void)sync_file_range(fd, (off_t)offset, (off_t)done, SYNC_FILE_RANGE_WRITE);
    return (int64_t)done;
}

/*
 * Makes a file of what is in memory, there as a whole or not at all, and begins to bring it to
 * storage. names: where it is until it is complete, and, behind the end of that, its own.
 */
int ubiblk_file_make(const char *names, const void *buf, uint64_t length)
{
    int err = 0, fd = open(names, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    for (uint64_t done = 0; done < length && !err;) {
        int64_t count = ubiblk_write_out(fd, (const char *)buf + done, length - done, done);
        if (count > 0)
            done += (uint64_t)count;
        else if (count != -EINTR)
            err = count == 0 ? -EIO : (int)count;
    }
    if (close(fd) < 0 && !err)
        err = -errno;
    if (!err && rename(names, names + strlen(names) + 1) < 0)
        err = -errno;
    if (err)
        unlink(names);
    return err;
}

int ubiblk_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    return fallocate(fd, mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

/*
 * Lets one file share a range of blocks with the same range of another, of the same file system;
 * both keep what they hold when the other is written to. -EOPNOTSUPP, -EXDEV where they can't,
 * -EINVAL where the range isn't one of whole blocks.
 */
int ubiblk_file_clone(int to, int from, uint64_t offset, uint64_t length)
{
    struct file_clone_range range = {
        .src_fd = from, .src_offset = offset, .src_length = length, .dest_offset = offset};
    return ioctl(to, FICLONERANGE, &range) < 0 ? -errno : 0;
}

/* Gives a file that has none (O_TMPFILE) a name; -EEXIST where something has it. */
int ubiblk_file_link(int fd, const char *path)
{
    char own[32];
    snprintf(own, sizeof(own), "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, own, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

int ubiblk_fdatasync(int fd)
{
    return fdatasync(fd) < 0 ? -errno : 0;
}

/* When a file was made, in nanoseconds since 1970; 0 where the file system doesn't say. */
int64_t ubiblk_file_birth(int fd)
{
    struct statx status;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &status) < 0)
        return -errno;
    if (!(status.stx_mask & STATX_BTIME))
        return 0;
    return (int64_t)status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec;
}

/* Has the kernel read a range into the page cache, soon. */
int ubiblk_file_expect(int fd, uint64_t offset, uint64_t length)
{
    return -posix_fadvise(fd, (off_t)offset, (off_t)length, POSIX_FADV_WILLNEED);
}
