/*
 * io_uring set-up, registration and enter. The rings themselves are written and read by TypeScript,
 * which owns a ring on the one thread that made it; closing it happens on that thread too.
 */
#include "ubiblk.h"

#include <errno.h>
#include <liburing.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* include/uapi/linux/io_uring.h; newer than the oldest header we build with. */
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2)
#endif
#ifndef IORING_ENTER_REGISTERED_RING
#define IORING_ENTER_REGISTERED_RING (1U << 4)
#endif

struct ring {
    struct io_uring uring;
    unsigned enter_flags;
};

static struct ring *ring_of(uint64_t handle)
{
    return (struct ring *)(uintptr_t)handle;
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/*
 * A spinning thread gives way to others that want its processor, of which there may be fewer than
 * queues.
 */
enum { YIELD_EVERY_NS = 20000 };

/*
 * From one look at the clock to the next takes microseconds; after this long the processor has been
 * with somebody else.
 */
enum { CROWDED_NS = 100000 };

struct spin {
    uint64_t end, last, next_yield;
};

/* Returns -1 to go on, else what ends the spin. */
static int look_at_clock(struct spin *spin, uint32_t timeout_us)
{
    uint64_t now = now_ns();
    if (!spin->end) {
        spin->end = now + (uint64_t)timeout_us * 1000;
        spin->last = now;
        spin->next_yield = now + YIELD_EVERY_NS;
    }
    if (now - spin->last > CROWDED_NS)
        return UBIBLK_SPIN_CROWDED;
    spin->last = now;
    if (now >= spin->end)
        return UBIBLK_SPIN_TIMEOUT;
    if (now >= spin->next_yield) {
        sched_yield();
        spin->next_yield = now + YIELD_EVERY_NS;
    }
    return -1;
}

/* What was found may have come while another thread had the processor. */
static int spin_found(const struct spin *spin, int found)
{
    if (spin->end && now_ns() - spin->last > CROWDED_NS)
        return found | UBIBLK_SPIN_CROWDED;
    return found;
}

/*
 * setup_flags: IORING_SETUP_* as the caller wants them; the kernel answers -EINVAL to those it
 * doesn't know, and the caller falls back.
 */
int ubiblk_ring_create(uint32_t sq_entries, uint32_t cq_entries, uint32_t setup_flags,
                       struct ubiblk_ring_layout *layout)
{
    struct io_uring_params params;
    struct ring *ring = calloc(1, sizeof(*ring));
    if (!ring)
        return -ENOMEM;
    memset(&params, 0, sizeof(params));
    params.flags = setup_flags | IORING_SETUP_CQSIZE;
    params.cq_entries = cq_entries;
    int err = io_uring_queue_init_params(sq_entries, &ring->uring, &params);
    if (err < 0) {
        free(ring);
        return err;
    }
    /* A registered ring descriptor saves the file look-up of each enter (5.18). */
    if (io_uring_register_ring_fd(&ring->uring) == 1)
        ring->enter_flags = IORING_ENTER_REGISTERED_RING;
    struct io_uring_sq *sq = &ring->uring.sq;
    struct io_uring_cq *cq = &ring->uring.cq;
    /* Entry i of the submission queue is always SQE i: the indirection array is written once. */
    for (unsigned i = 0; i < params.sq_entries; i++)
        sq->array[i] = i;
    layout->handle = (uintptr_t)ring;
    layout->sq_head = (uintptr_t)sq->khead;
    layout->sq_tail = (uintptr_t)sq->ktail;
    layout->sq_flags = (uintptr_t)sq->kflags;
    layout->sqes = (uintptr_t)sq->sqes;
    layout->cq_head = (uintptr_t)cq->khead;
    layout->cq_tail = (uintptr_t)cq->ktail;
    layout->cqes = (uintptr_t)cq->cqes;
    layout->sq_entries = params.sq_entries;
    layout->cq_entries = params.cq_entries;
    layout->features = params.features;
    layout->setup_flags = params.flags;
    return 0;
}

int ubiblk_ring_destroy(uint64_t handle)
{
    struct ring *ring = ring_of(handle);
    io_uring_queue_exit(&ring->uring);
    free(ring);
    return 0;
}

/*
 * Submits to_submit entries and waits for min_complete completions, at most timeout_us (negative:
 * for ever). Returns the number submitted, or -errno; -ETIME when the time passed and nothing was
 * submitted.
 */
int ubiblk_ring_enter(uint64_t handle, uint32_t to_submit, uint32_t min_complete,
                      int32_t timeout_us)
{
    struct ring *ring = ring_of(handle);
    unsigned flags = ring->enter_flags | IORING_ENTER_GETEVENTS;
    int fd = ring->uring.enter_ring_fd;
    if (timeout_us < 0 || min_complete == 0)
        return io_uring_enter2((unsigned)fd, to_submit, min_complete, flags, NULL, 0);
    struct __kernel_timespec ts = {.tv_sec = timeout_us / 1000000,
                                   .tv_nsec = (long long)(timeout_us % 1000000) * 1000};
    struct io_uring_getevents_arg arg;
    memset(&arg, 0, sizeof(arg));
    arg.ts = (uintptr_t)&ts;
    return io_uring_enter2((unsigned)fd, to_submit, min_complete, flags | IORING_ENTER_EXT_ARG,
                           (sigset_t *)&arg, sizeof(arg));
}

/* struct io_uring_getevents_arg as it is since Linux 6.12. */
struct getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};

/*
 * Submits to_submit entries and waits for count completions; when gather_us have passed, one is
 * enough. Needs IORING_FEAT_MIN_TIMEOUT. Returns the number submitted, or -errno.
 */
int ubiblk_ring_gather(uint64_t handle, uint32_t to_submit, uint32_t count, uint32_t gather_us)
{
    struct ring *ring = ring_of(handle);
    unsigned flags = ring->enter_flags | IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    /* Without a limit it would end after gather_us with nothing. */
    static const struct __kernel_timespec hour = {.tv_sec = 3600};
    struct getevents_arg arg = {.min_wait_usec = gather_us, .ts = (uintptr_t)&hour};
    return io_uring_enter2((unsigned)ring->uring.enter_ring_fd, to_submit, count, flags,
                           (sigset_t *)&arg, sizeof(arg));
}

int ubiblk_ring_register_files(uint64_t handle, const int32_t *fds, uint32_t count)
{
    return io_uring_register_files(&ring_of(handle)->uring, fds, count);
}

/* Puts other files, or none (-1), in the place of registered ones. */
int ubiblk_ring_update_files(uint64_t handle, uint32_t first, const int32_t *fds, uint32_t count)
{
    return io_uring_register_files_update(&ring_of(handle)->uring, first, fds, count);
}

int ubiblk_ring_register_buffers(uint64_t handle, const void *iovecs, uint32_t count)
{
    return io_uring_register_buffers(&ring_of(handle)->uring, iovecs, count);
}

/* Makes places for so many buffers, which a driver fills. */
int ubiblk_ring_register_places(uint64_t handle, uint32_t count)
{
    return io_uring_register_buffers_sparse(&ring_of(handle)->uring, count);
}

int ubiblk_ring_unregister_buffers(uint64_t handle)
{
    return io_uring_unregister_buffers(&ring_of(handle)->uring);
}

/*
 * Spins until the 16-bit counter at avail_idx differs from seen, the ring has completions or work
 * to run, timeout_us has passed, or the processor was with another thread for a while. Returns bits
 * of ubiblk_spin_result.
 */
int ubiblk_ring_spin(uint64_t handle, uint64_t avail_idx, uint32_t seen, uint32_t timeout_us)
{
    struct ring *ring = ring_of(handle);
    const uint16_t *avail = (const uint16_t *)(uintptr_t)avail_idx;
    const unsigned *cq_head = ring->uring.cq.khead, *cq_tail = ring->uring.cq.ktail;
    const unsigned *sq_flags = ring->uring.sq.kflags;
    struct spin spin = {0, 0, 0};
    for (unsigned turn = 1;; turn++) {
        int found = 0;
        if (__atomic_load_n(avail, __ATOMIC_ACQUIRE) != (uint16_t)seen)
            found |= UBIBLK_SPIN_AVAIL;
        if (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) != *cq_head ||
            (__atomic_load_n(sq_flags, __ATOMIC_RELAXED) &
             (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
            found |= UBIBLK_SPIN_RING;
        if (found)
            return spin_found(&spin, found);
        cpu_relax();
        if (turn % 16)
            continue;
        int end = look_at_clock(&spin, timeout_us);
        if (end >= 0)
            return end;
    }
}

/* The same without a ring. */
int ubiblk_spin_avail(uint64_t avail_idx, uint32_t seen, uint32_t timeout_us)
{
    const uint16_t *avail = (const uint16_t *)(uintptr_t)avail_idx;
    struct spin spin = {0, 0, 0};
    for (unsigned turn = 1;; turn++) {
        if (__atomic_load_n(avail, __ATOMIC_ACQUIRE) != (uint16_t)seen)
            return spin_found(&spin, UBIBLK_SPIN_AVAIL);
        cpu_relax();
        if (turn % 16)
            continue;
        int end = look_at_clock(&spin, timeout_us);
        if (end >= 0)
            return end;
    }
}

/* Writes the version of the liburing linked in; it is told by the build, the library has no call.
 */
int ubiblk_liburing_version(char *buf, uint32_t size)
{
#ifdef UBIBLK_LIBURING_VERSION
    return snprintf(buf, size, "%s", UBIBLK_LIBURING_VERSION);
#else
    return snprintf(buf, size, "unknown");
#endif
}
