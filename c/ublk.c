/*
 * ublk: control commands, which an io_uring of 128-byte entries carries to /dev/ublk-control, and
 * what a server's threads need so that the kernel never waits for them for memory. See
 * Documentation/block/ublk.rst and include/uapi/linux/ublk_cmd.h of the kernel.
 */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

enum {
    COMMAND_BYTES = 32,           /* struct ublksrv_ctrl_cmd */
    DESCRIPTOR_BYTES = 24,        /* struct ublksrv_io_desc */
    DESCRIPTORS_PER_QUEUE = 4096, /* UBLK_MAX_QUEUE_DEPTH */
    COMMAND_PLACE = 48,           /* of `cmd` in an io_uring_sqe */
    COMMAND_OP_PLACE = 8,         /* of `cmd_op` */
    CONTROL_RING_ENTRIES = 4
};

struct control {
    struct io_uring ring;
    int fd;
};

static struct control *control_of(uint64_t handle)
{
    return (struct control *)(uintptr_t)handle;
}

/* Opens /dev/ublk-control, or another path that stands for it, and makes a ring for its commands.
 */
int ubiblk_ublk_open(const char *path, uint64_t *handle)
{
    struct control *control = calloc(1, sizeof(*control));
    if (!control)
        return -ENOMEM;
    control->fd = open(path, O_RDWR | O_CLOEXEC);
    if (control->fd < 0) {
        int err = -errno;
        free(control);
        return err;
    }
    int err = io_uring_queue_init(CONTROL_RING_ENTRIES, &control->ring, IORING_SETUP_SQE128);
    if (err < 0) {
        close(control->fd);
        free(control);
        return err;
    }
    *handle = (uintptr_t)control;
    return 0;
}

int ubiblk_ublk_close(uint64_t handle)
{
    struct control *control = control_of(handle);
    io_uring_queue_exit(&control->ring);
    close(control->fd);
    free(control);
    return 0;
}

/*
 * Waits for the command in hand, at most timeout_ms (negative: for ever). Returns its result, or
 * -ETIME where it isn't done; what it points to must then stay where it is.
 */
int ubiblk_ublk_await(uint64_t handle, int32_t timeout_ms)
{
    struct control *control = control_of(handle);
    struct __kernel_timespec ts = {.tv_sec = timeout_ms / 1000,
                                   .tv_nsec = (long long)(timeout_ms % 1000) * 1000000};
    struct io_uring_cqe *cqe;
    int err;
    do
        err = io_uring_wait_cqe_timeout(&control->ring, &cqe, timeout_ms < 0 ? NULL : &ts);
    while (err == -EINTR);
    if (err < 0)
        return err;
    int result = cqe->res;
    io_uring_cqe_seen(&control->ring, cqe);
    return result;
}

/* Sends one command, a struct ublksrv_ctrl_cmd, and waits for it as ubiblk_ublk_await does. */
int ubiblk_ublk_command(uint64_t handle, uint32_t op, const void *command, int32_t timeout_ms)
{
    struct control *control = control_of(handle);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&control->ring);
    if (!sqe)
        return -EBUSY;
    memset(sqe, 0, 2 * sizeof(*sqe));
    io_uring_prep_rw(IORING_OP_URING_CMD, sqe, control->fd, NULL, 0, 0);
    memcpy((char *)sqe + COMMAND_OP_PLACE, &op, sizeof(op));
    memcpy((char *)sqe + COMMAND_PLACE, command, COMMAND_BYTES);
    int err = io_uring_submit(&control->ring);
    if (err < 0)
        return err;
    return ubiblk_ublk_await(handle, timeout_ms);
}

static size_t descriptor_bytes(uint32_t depth)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return ((size_t)depth * DESCRIPTOR_BYTES + page - 1) / page * page;
}

/* Maps the request descriptors of a queue, which the kernel writes; returns their address. */
int64_t ubiblk_ublk_map(int fd, uint32_t queue, uint32_t depth)
{
    off_t offset = (off_t)queue * (off_t)descriptor_bytes(DESCRIPTORS_PER_QUEUE);
    void *address =
        mmap(NULL, descriptor_bytes(depth), PROT_READ, MAP_SHARED | MAP_POPULATE, fd, offset);
    return address == MAP_FAILED ? -errno : (int64_t)(uintptr_t)address;
}

int ubiblk_ublk_unmap(uint64_t address, uint32_t depth)
{
    return munmap((void *)(uintptr_t)address, descriptor_bytes(depth)) < 0 ? -errno : 0;
}

/*
 * Says that the calling thread, and threads it makes from now on, do I/O that frees memory: what
 * they allocate never waits for I/O, which may be theirs (prctl(2), PR_SET_IO_FLUSHER).
 */
int ubiblk_io_flusher(void)
{
    return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0 ? -errno : 0;
}

/* Keeps the process in memory: the pages it has, and others from when they are first used. */
int ubiblk_lock_memory(void)
{
    return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0 ? -errno : 0;
}

/* Lets the calling thread run on the processors of a mask of so many bytes. */
int ubiblk_set_affinity(const void *mask, uint32_t bytes)
{
    return sched_setaffinity(0, bytes, mask) < 0 ? -errno : 0;
}
