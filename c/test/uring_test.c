/* uring.c: set-up, enter with and without a time limit, registration, and spinning. */
#include "ubiblk.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "test.h"

static struct ubiblk_ring_layout make_ring(uint32_t entries)
{
    struct ubiblk_ring_layout ring;

    memset(&ring, 0, sizeof(ring));
    CHECK_EQUAL(ubiblk_ring_create(entries, 2 * entries, 0, &ring), 0);
    return ring;
}

/* Puts one entry into the submission queue the way TypeScript does: without the library. */
static void push(const struct ubiblk_ring_layout *ring, int opcode, int fd, uint64_t address,
                 uint32_t length, uint64_t user_data)
{
    uint32_t *tail = (uint32_t *)(uintptr_t)ring->sq_tail;
    struct io_uring_sqe *sqe =
        (struct io_uring_sqe *)(uintptr_t)ring->sqes + *tail % ring->sq_entries;

    memset(sqe, 0, sizeof(*sqe));
    sqe->opcode = (uint8_t)opcode;
    sqe->fd = fd;
    sqe->addr = address;
    sqe->len = length;
    sqe->user_data = user_data;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
}

struct completion {
    uint64_t user_data;
    int32_t res;
};

/* Takes the next completion; its result is -ENODATA where there is none. */
static struct completion pop(const struct ubiblk_ring_layout *ring)
{
    uint32_t *head = (uint32_t *)(uintptr_t)ring->cq_head;

    if (__atomic_load_n((uint32_t *)(uintptr_t)ring->cq_tail, __ATOMIC_ACQUIRE) == *head)
        return (struct completion){0, -ENODATA};
    const struct io_uring_cqe *cqe =
        (struct io_uring_cqe *)(uintptr_t)ring->cqes + *head % ring->cq_entries;
    struct completion result = {cqe->user_data, cqe->res};
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static void completes_as_many_nops_as_the_ring_holds(void)
{
    struct ubiblk_ring_layout ring = make_ring(64);

    CHECK_EQUAL(ring.sq_entries, 64);
    CHECK_EQUAL(ring.cq_entries, 128);
    for (int turn = 0; turn < 3; turn++) {
        for (uint64_t i = 0; i < 64; i++)
            push(&ring, IORING_OP_NOP, -1, 0, 0, 1000 + i);
        CHECK_EQUAL(ubiblk_ring_enter(ring.handle, 64, 64, -1), 64);
        uint64_t sum = 0;
        for (int i = 0; i < 64; i++) {
            struct completion done = pop(&ring);
            CHECK_EQUAL(done.res, 0);
            sum += done.user_data;
        }
        CHECK_EQUAL(sum, 64 * 1000 + 64 * 63 / 2);
        CHECK_EQUAL(pop(&ring).res, -ENODATA);
    }
    ubiblk_ring_destroy(ring.handle);
}

static void moves_bytes_through_registered_files_and_buffers(void)
{
    struct ubiblk_ring_layout ring = make_ring(8);
    static uint8_t out[4096] __attribute__((aligned(4096)));
    static uint8_t in[4096] __attribute__((aligned(4096)));
    struct iovec buffers[] = {{out, sizeof(out)}, {in, sizeof(in)}};
    int fd = ubiblk_memory_memfd("uring_test", 8192);

    for (size_t i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 31);
    CHECK_EQUAL(ubiblk_ring_register_files(ring.handle, &fd, 1), 0);
    CHECK_EQUAL(ubiblk_ring_register_buffers(ring.handle, buffers, 2), 0);
    struct io_uring_sqe *sqes = (struct io_uring_sqe *)(uintptr_t)ring.sqes;

    push(&ring, IORING_OP_WRITE_FIXED, 0, (uintptr_t)out, sizeof(out), 1);
    sqes[0].flags = IOSQE_FIXED_FILE;
    CHECK_EQUAL(ubiblk_ring_enter(ring.handle, 1, 1, -1), 1);
    CHECK_EQUAL(pop(&ring).res, sizeof(out));

    push(&ring, IORING_OP_READ_FIXED, 0, (uintptr_t)in, sizeof(in), 2);
    sqes[1].flags = IOSQE_FIXED_FILE;
    sqes[1].buf_index = 1;
    CHECK_EQUAL(ubiblk_ring_enter(ring.handle, 1, 1, -1), 1);
    CHECK_EQUAL(pop(&ring).res, sizeof(in));
    CHECK(memcmp(in, out, sizeof(in)) == 0);

    CHECK_EQUAL(ubiblk_ring_unregister_buffers(ring.handle), 0);
    CHECK(ubiblk_ring_unregister_buffers(ring.handle) < 0);
    ubiblk_ring_destroy(ring.handle);
    close(fd);
}

static void waits_no_longer_than_asked(void)
{
    struct ubiblk_ring_layout ring = make_ring(8);

    CHECK_EQUAL(ubiblk_ring_enter(ring.handle, 0, 1, 1000), -ETIME);
    CHECK_EQUAL(ubiblk_ring_enter(ring.handle, 0, 0, 1000), 0);
    ubiblk_ring_destroy(ring.handle);
}

/* IORING_FEAT_MIN_TIMEOUT of Linux 6.12. */
enum { FEAT_MIN_TIMEOUT = 1 << 15 };

static void gathers_completions_and_makes_do_with_one(void)
{
    struct ubiblk_ring_layout ring = make_ring(8);
    struct __kernel_timespec soon = {.tv_nsec = 2000000};

    if (ring.features & FEAT_MIN_TIMEOUT) {
        push(&ring, IORING_OP_NOP, -1, 0, 0, 1);
        push(&ring, IORING_OP_NOP, -1, 0, 0, 2);
        CHECK_EQUAL(ubiblk_ring_gather(ring.handle, 2, 2, 10000000), 2);
        CHECK_EQUAL(pop(&ring).user_data, 1);
        CHECK_EQUAL(pop(&ring).user_data, 2);
        /* One comes after it has waited for two. */
        push(&ring, IORING_OP_TIMEOUT, -1, (uintptr_t)&soon, 1, 3);
        CHECK_EQUAL(ubiblk_ring_gather(ring.handle, 1, 2, 100), 1);
        CHECK_EQUAL(pop(&ring).user_data, 3);
        CHECK_EQUAL(pop(&ring).res, -ENODATA);
    }
    ubiblk_ring_destroy(ring.handle);
}

static void refuses_flags_that_the_kernel_does_not_know(void)
{
    struct ubiblk_ring_layout ring;

    CHECK_EQUAL(ubiblk_ring_create(8, 16, 1u << 31, &ring), -EINVAL);
}

/* What a spin has seen, whether or not this machine is busy otherwise. */
static int ring_spin(uint64_t ring, uint64_t avail_idx, uint32_t seen, uint32_t timeout_us)
{
    return ubiblk_ring_spin(ring, avail_idx, seen, timeout_us) & ~UBIBLK_SPIN_CROWDED;
}

static int spin_avail(uint64_t avail_idx, uint32_t seen, uint32_t timeout_us)
{
    return ubiblk_spin_avail(avail_idx, seen, timeout_us) & ~UBIBLK_SPIN_CROWDED;
}

static void spins_until_the_counter_moves_or_the_ring_has_work(void)
{
    struct ubiblk_ring_layout ring = make_ring(8);
    uint16_t available = 0xffff;

    CHECK_EQUAL(ring_spin(ring.handle, (uintptr_t)&available, 0xffff, 50), UBIBLK_SPIN_TIMEOUT);
    CHECK_EQUAL(ring_spin(ring.handle, (uintptr_t)&available, 0x1ffff, 0), UBIBLK_SPIN_TIMEOUT);
    available = 0;
    CHECK_EQUAL(ring_spin(ring.handle, (uintptr_t)&available, 0xffff, 1000000), UBIBLK_SPIN_AVAIL);
    push(&ring, IORING_OP_NOP, -1, 0, 0, 7);
    CHECK_EQUAL(ubiblk_ring_enter(ring.handle, 1, 0, 0), 1);
    CHECK_EQUAL(ring_spin(ring.handle, (uintptr_t)&available, 0, 1000000), UBIBLK_SPIN_RING);
    CHECK_EQUAL(ring_spin(ring.handle, (uintptr_t)&available, 1, 1000000),
                UBIBLK_SPIN_RING | UBIBLK_SPIN_AVAIL);
    CHECK_EQUAL(spin_avail((uintptr_t)&available, 0, 50), UBIBLK_SPIN_TIMEOUT);
    CHECK_EQUAL(spin_avail((uintptr_t)&available, 3, 1000000), UBIBLK_SPIN_AVAIL);
    ubiblk_ring_destroy(ring.handle);
}

static void *burn(void *going_on)
{
    while (__atomic_load_n((int *)going_on, __ATOMIC_RELAXED))
        ;
    return NULL;
}

/* The burner starts on the processor that its maker was pinned to, and stays there. */
static void ends_a_spin_where_others_want_the_processor(void)
{
    uint16_t available = 0;
    int going_on = 1;
    pthread_t burner;
    cpu_set_t before;

    CHECK_EQUAL(pthread_getaffinity_np(pthread_self(), sizeof(before), &before), 0);
    CHECK_EQUAL(ubiblk_pin_thread((uint32_t)sched_getcpu()), 0);
    CHECK_EQUAL(pthread_create(&burner, NULL, burn, &going_on), 0);
    CHECK_EQUAL(ubiblk_spin_avail((uintptr_t)&available, 0, UINT32_MAX), UBIBLK_SPIN_CROWDED);
    __atomic_store_n(&going_on, 0, __ATOMIC_RELAXED);
    pthread_join(burner, NULL);
    CHECK_EQUAL(pthread_setaffinity_np(pthread_self(), sizeof(before), &before), 0);
}

static void tells_the_version_of_liburing(void)
{
    char version[32];

    CHECK(ubiblk_liburing_version(version, sizeof(version)) >= 3);
    CHECK(version[0] >= '2' && version[0] <= '9' && version[1] == '.');
}

int main(void)
{
    struct ubiblk_ring_layout probe;
    int result = ubiblk_ring_create(8, 16, 0, &probe);

    if (result == -ENOSYS || result == -EPERM) {
        printf("io_uring is forbidden here: only what needs none of it is tested\n");
    } else {
        if (result == 0)
            ubiblk_ring_destroy(probe.handle);
        RUN(completes_as_many_nops_as_the_ring_holds);
        RUN(moves_bytes_through_registered_files_and_buffers);
        RUN(waits_no_longer_than_asked);
        RUN(gathers_completions_and_makes_do_with_one);
        RUN(refuses_flags_that_the_kernel_does_not_know);
        RUN(spins_until_the_counter_moves_or_the_ring_has_work);
    }
    RUN(ends_a_spin_where_others_want_the_processor);
    RUN(tells_the_version_of_liburing);
    return test_summary();
}
