/* lane.c: calls on files by threads of their own. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test.h"

enum { SIZE = 64 * 1024, MANY = 500, DEADLINE_MS = 10000 };

static char path[] = "/tmp/lane_test.XXXXXX";
static int file, told;
static char memory[SIZE];

static uint64_t lane(uint32_t threads)
{
    uint64_t handle = 0;
    CHECK_EQUAL(ubiblk_lane_open("test", threads, &handle), 0);
    return handle;
}

static void submit(uint64_t to, uint32_t op, uint32_t ticket, int fd, uint64_t length,
                   uint64_t offset, int extra)
{
    uint64_t address = (uintptr_t)memory;
    CHECK_EQUAL(ubiblk_lane_submit(to, op, ticket, fd, address, length, offset, extra), 0);
}

/* Waits until something is told of, and reaps one; -1 where nothing comes. */
static struct ubiblk_done one(void)
{
    struct ubiblk_done found = {-1, -1};
    struct pollfd polled = {.fd = told, .events = POLLIN};
    char byte;
    while (!ubiblk_lanes_reap(&found, 1)) {
        if (poll(&polled, 1, DEADLINE_MS) != 1)
            return found;
        CHECK_EQUAL(read(told, &byte, 1), 1);
    }
    return found;
}

static void carries_out(uint32_t op, int fd, uint64_t length, uint64_t offset, int extra,
                        int64_t result)
{
    uint64_t handle = lane(1);
    submit(handle, op, 7, fd, length, offset, extra);
    struct ubiblk_done found = one();
    CHECK_EQUAL(found.ticket, 7);
    CHECK_EQUAL(found.result, result);
    ubiblk_lane_close(handle);
}

static void does_what_it_is_asked(void)
{
    memset(memory, 1, SIZE);
    carries_out(UBIBLK_JOB_WRITE, file, 8192, 4096, 0, 8192);
    memset(memory, 0, SIZE);
    carries_out(UBIBLK_JOB_READ, file, 4096, 8192, 0, 4096);
    CHECK(memory[0] == 1 && memory[4095] == 1 && memory[4096] == 0);
    memset(memory, 2, SIZE);
    carries_out(UBIBLK_JOB_WRITE_OUT, file, 512, 8192 - 512, 0, 512);
    carries_out(UBIBLK_JOB_SYNC, file, 0, 0, 0, 0);
    carries_out(UBIBLK_JOB_READ, file, 1024, 8192 - 1024, 0, 1024);
    CHECK(memory[0] == 1 && memory[511] == 1 && memory[512] == 2 && memory[1023] == 2);
    carries_out(UBIBLK_JOB_ALLOCATE, file, 4096, 8192, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                0);
    carries_out(UBIBLK_JOB_READ, file, 4096, 8192, 0, 4096);
    CHECK(memory[0] == 0 && memory[4095] == 0);
    carries_out(UBIBLK_JOB_READ, file, 4096, SIZE - 512, 0, 512);
    carries_out(UBIBLK_JOB_CLOSE, dup(file), 0, 0, 0, 0);
}

/* A full socket ends the job, and so does the end of the file. */
static void sends_what_a_socket_has_room_for(void)
{
    int sockets[2];
    char got[SIZE];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
    memset(memory, 5, SIZE);
    CHECK_EQUAL(pwrite(file, memory, SIZE, 0), SIZE);
    carries_out(UBIBLK_JOB_SEND_FILE, file, 1000, 13, sockets[0], 1000);
    CHECK_EQUAL(recv(sockets[1], got, SIZE, 0), 1000);
    CHECK_EQUAL(memcmp(got, memory, 1000), 0);
    carries_out(UBIBLK_JOB_SEND_FILE, file, SIZE, SIZE - 7, sockets[0], 7);
    carries_out(UBIBLK_JOB_SEND_FILE, file, 512, SIZE, sockets[0], 0);
    while (send(sockets[0], memory, SIZE, MSG_DONTWAIT) > 0)
        continue;
    while (send(sockets[0], memory, 1, MSG_DONTWAIT) > 0)
        continue;
    carries_out(UBIBLK_JOB_SEND_FILE, file, SIZE, 0, sockets[0], -EAGAIN);
    close(sockets[1]);
    carries_out(UBIBLK_JOB_SEND_FILE, file, SIZE, 0, sockets[0], -EPIPE);
    close(sockets[0]);
}

/* Until there is no more room, the peer has ended, or nothing comes for a while. */
static void receives_what_comes(void)
{
    int sockets[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
    char sent[SIZE];
    memset(sent, 3, SIZE);
    memset(memory, 0, SIZE);
    CHECK_EQUAL(send(sockets[1], sent, 1000, 0), 1000);
    carries_out(UBIBLK_JOB_RECEIVE, sockets[0], 600, 0, 1000, 600);
    CHECK(memory[599] == 3 && memory[600] == 0);
    carries_out(UBIBLK_JOB_RECEIVE, sockets[0], SIZE, 0, 1, 400);
    carries_out(UBIBLK_JOB_RECEIVE, sockets[0], SIZE, 0, 1, 0);
    CHECK_EQUAL(send(sockets[1], sent, 7, 0), 7);
    close(sockets[1]);
    carries_out(UBIBLK_JOB_RECEIVE, sockets[0], SIZE, 0, 100000, 7);
    carries_out(UBIBLK_JOB_RECEIVE, sockets[0], SIZE, 0, 100000, 0);
    close(sockets[0]);
    carries_out(UBIBLK_JOB_RECEIVE, -1, SIZE, 0, 100000, 0);
}

/* A file that is too long for its place is left alone. */
static void reads_a_file_by_its_name(void)
{
    uint64_t name = (uintptr_t)path;
    memset(memory, 6, SIZE);
    CHECK_EQUAL(pwrite(file, memory, SIZE, 0), SIZE);
    memset(memory, 0, SIZE);
    carries_out(UBIBLK_JOB_READ_FILE, -1, SIZE - 1, name, 0, SIZE);
    CHECK(memory[0] == 0);
    carries_out(UBIBLK_JOB_READ_FILE, -1, SIZE, name, 0, SIZE);
    CHECK(memory[0] == 6 && memory[SIZE - 1] == 6);
    carries_out(UBIBLK_JOB_READ_FILE, -1, SIZE, (uintptr_t) "/tmp/lane_test.nothing", 0, -ENOENT);
    carries_out(UBIBLK_JOB_READ_FILE, -1, SIZE, (uintptr_t) "/tmp", 0, -EISDIR);
}

static void tells_what_fails(void)
{
    carries_out(UBIBLK_JOB_READ, -1, 512, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_READ_DATA, -1, 512, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_WRITE, -1, 512, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_WRITE_OUT, -1, 512, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_SYNC, -1, 0, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_ALLOCATE, -1, 512, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_CLONE, file, 512, 0, -1, -EBADF);
    carries_out(UBIBLK_JOB_CLOSE, -1, 0, 0, 0, -EBADF);
    carries_out(UBIBLK_JOB_SEND_FILE, file, 512, 0, -1, -EBADF);
    carries_out(99, file, 0, 0, 0, -EINVAL);
}

static void reads_no_holes(void)
{
    memset(memory, 3, SIZE);
    carries_out(UBIBLK_JOB_READ_DATA, file, 4096, 16384, 0, -ENODATA);
    CHECK(memory[0] == 3);
    carries_out(UBIBLK_JOB_READ_DATA, file, SIZE - 16384, 16384, 0, -ENODATA);
    /* A part of it is data. */
    carries_out(UBIBLK_JOB_READ_DATA, file, 8192, 0, 0, 8192);
    CHECK(memory[0] == 0 && memory[4096] == 1);
    /* What isn't there any more is no hole. */
    carries_out(UBIBLK_JOB_READ_DATA, file, 4096, SIZE - 512, 0, 512);
    carries_out(UBIBLK_JOB_READ_DATA, file, 4096, 2 * SIZE, 0, 0);
}

static void begins_jobs_in_their_order(void)
{
    uint64_t handle = lane(1);
    for (uint32_t i = 0; i < MANY; i++)
        submit(handle, UBIBLK_JOB_READ, i, file, 512, i, 0);
    for (uint32_t i = 0; i < MANY; i++)
        CHECK_EQUAL(one().ticket, i);
    ubiblk_lane_close(handle);
}

/* A socket whose close(2) takes until its peer is closed. */
struct hanging {
    int fd, peer;
};

static struct hanging hanging(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    struct linger linger = {.l_onoff = 1, .l_linger = 60};
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQUAL(bind(listener, (struct sockaddr *)&address, size), 0);
    CHECK_EQUAL(listen(listener, 1), 0);
    CHECK_EQUAL(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    CHECK_EQUAL(connect(fd, (struct sockaddr *)&address, size), 0);
    int peer = accept(listener, NULL, NULL);
    close(listener);
    while (send(fd, memory, SIZE, MSG_DONTWAIT) > 0)
        continue;
    CHECK_EQUAL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)), 0);
    return (struct hanging){fd, peer};
}

static void what_hangs_holds_up_no_other_lane(void)
{
    uint64_t stuck = lane(1), other = lane(1);
    struct hanging socket = hanging();
    submit(stuck, UBIBLK_JOB_CLOSE, 1, socket.fd, 0, 0, 0);
    submit(stuck, UBIBLK_JOB_SYNC, 2, file, 0, 0, 0);
    submit(other, UBIBLK_JOB_SYNC, 3, file, 0, 0, 0);
    CHECK_EQUAL(one().ticket, 3);
    close(socket.peer);
    CHECK_EQUAL(one().ticket, 1);
    CHECK_EQUAL(one().ticket, 2);
    ubiblk_lane_close(stuck), ubiblk_lane_close(other);
}

static void nor_what_another_thread_of_its_lane_can_do(void)
{
    uint64_t handle = lane(3);
    struct hanging sockets[3] = {hanging(), hanging(), hanging()};
    submit(handle, UBIBLK_JOB_CLOSE, 0, sockets[0].fd, 0, 0, 0);
    submit(handle, UBIBLK_JOB_CLOSE, 1, sockets[1].fd, 0, 0, 0);
    for (uint32_t i = 10; i < 20; i++) {
        submit(handle, UBIBLK_JOB_SYNC, i, file, 0, 0, 0);
        CHECK_EQUAL(one().ticket, i);
    }
    submit(handle, UBIBLK_JOB_CLOSE, 2, sockets[2].fd, 0, 0, 0);
    submit(handle, UBIBLK_JOB_SYNC, 3, file, 0, 0, 0);
    for (int i = 2; i >= 0; i--) {
        close(sockets[i].peer);
        CHECK_EQUAL(one().ticket, i);
        if (i == 2)
            CHECK_EQUAL(one().ticket, 3);
    }
    ubiblk_lane_close(handle);
}

static void ends_without_what_it_has_not_begun(void)
{
    uint64_t handle = lane(1);
    struct hanging socket = hanging();
    submit(handle, UBIBLK_JOB_CLOSE, 1, socket.fd, 0, 0, 0);
    submit(handle, UBIBLK_JOB_SYNC, 2, file, 0, 0, 0);
    /* The descriptor goes first, then the wait begins. */
    while (fcntl(socket.fd, F_GETFD) >= 0)
        usleep(100);
    ubiblk_lane_close(handle);
    struct ubiblk_done found = one();
    CHECK_EQUAL(found.ticket, 2);
    CHECK_EQUAL(found.result, -ECANCELED);
    close(socket.peer);
    CHECK_EQUAL(one().ticket, 1);
    ubiblk_lane_close(lane(1));
}

int main(void)
{
    told = ubiblk_lanes_start();
    CHECK(told >= 0);
    file = mkstemp(path);
    if (file < 0 || ftruncate(file, SIZE) < 0)
        return 1;
    RUN(does_what_it_is_asked);
    RUN(tells_what_fails);
    RUN(reads_no_holes);
    RUN(begins_jobs_in_their_order);
    RUN(what_hangs_holds_up_no_other_lane);
    RUN(nor_what_another_thread_of_its_lane_can_do);
    RUN(ends_without_what_it_has_not_begun);
    RUN(sends_what_a_socket_has_room_for);
    RUN(receives_what_comes);
    RUN(reads_a_file_by_its_name);
    unlink(path);
    return test_summary();
}
