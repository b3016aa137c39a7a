/* vhost_socket.c: descriptors over sockets, and the life of the listening socket's node. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test.h"

static char folder[] = "/tmp/vhost_socket_test.XXXXXX";
static char path[sizeof(folder) + 16];

static int is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static uint32_t open_descriptors(void)
{
    uint32_t count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += is_open(fd);
    return count;
}

static void make_pair(int pair[2])
{
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
}

static void carries_bytes_and_descriptors(void)
{
    int pair[2], sent[2], received[UBIBLK_MAX_FDS];
    uint32_t count = 99;
    char buffer[16];

    make_pair(pair);
    sent[0] = ubiblk_eventfd();
    sent[1] = ubiblk_memory_memfd("test", 4096);
    CHECK_EQUAL(ubiblk_socket_send(pair[0], "hello", 5, sent, 2), 5);
    CHECK_EQUAL(ubiblk_socket_receive(pair[1], buffer, sizeof(buffer), received, &count), 5);
    CHECK_EQUAL(count, 2);
    CHECK(memcmp(buffer, "hello", 5) == 0);
    CHECK_EQUAL(ubiblk_is_eventfd(received[0]), 1);
    CHECK_EQUAL(ubiblk_is_eventfd(received[1]), 0);
    CHECK(fcntl(received[0], F_GETFD) & FD_CLOEXEC);

    /* It is the same event counter at both ends. */
    CHECK_EQUAL(ubiblk_eventfd_drain(received[0]), -EAGAIN);
    CHECK_EQUAL(ubiblk_eventfd_signal(sent[0]), 0);
    CHECK_EQUAL(ubiblk_eventfd_drain(received[0]), 0);

    CHECK_EQUAL(ubiblk_socket_send(pair[0], "x", 1, NULL, 0), 1);
    CHECK_EQUAL(ubiblk_socket_receive(pair[1], buffer, sizeof(buffer), received + 2, &count), 1);
    CHECK_EQUAL(count, 0);
    for (int i = 0; i < 2; i++)
        close(sent[i]), close(received[i]), close(pair[i]);
}

static void tells_an_empty_socket_from_a_closed_one(void)
{
    int pair[2], received[UBIBLK_MAX_FDS];
    uint32_t count;
    char byte;

    make_pair(pair);
    CHECK_EQUAL(ubiblk_socket_receive(pair[1], &byte, 1, received, &count), -EAGAIN);
    close(pair[0]);
    CHECK_EQUAL(ubiblk_socket_receive(pair[1], &byte, 1, received, &count), 0);
    CHECK_EQUAL(ubiblk_socket_send(pair[1], "x", 1, NULL, 0), -EPIPE);
    close(pair[1]);
}

static void tells_whether_the_other_end_is_there(void)
{
    int pair[2];

    make_pair(pair);
    CHECK_EQUAL(ubiblk_socket_gone(pair[1]), 0);
    CHECK_EQUAL(ubiblk_socket_send(pair[0], "x", 1, NULL, 0), 1);
    CHECK_EQUAL(ubiblk_socket_gone(pair[1]), 0);
    /* Also while what it has said is still to be received. */
    close(pair[0]);
    CHECK_EQUAL(ubiblk_socket_gone(pair[1]), 1);
    close(pair[1]);
}

/* A peer may send more descriptors than a vhost-user message ever carries. */
static void leaks_no_descriptor_that_is_too_many(void)
{
    enum { TOO_MANY = 2 * UBIBLK_MAX_FDS };
    int pair[2], received[UBIBLK_MAX_FDS], fd = ubiblk_eventfd();
    union {
        char bytes[CMSG_SPACE(sizeof(int) * TOO_MANY)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {"x", 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    uint32_t before, count = 0;
    char byte;

    make_pair(pair);
    memset(&control, 0, sizeof(control));
    control.align.cmsg_level = SOL_SOCKET;
    control.align.cmsg_type = SCM_RIGHTS;
    control.align.cmsg_len = CMSG_LEN(sizeof(int) * TOO_MANY);
    for (int i = 0; i < TOO_MANY; i++)
        memcpy(CMSG_DATA(&control.align) + i * sizeof(int), &fd, sizeof(int));
    before = open_descriptors();
    CHECK_EQUAL(sendmsg(pair[0], &message, 0), 1);
    CHECK_EQUAL(ubiblk_socket_receive(pair[1], &byte, 1, received, &count), 1);
    CHECK(count <= UBIBLK_MAX_FDS);
    CHECK_EQUAL(open_descriptors(), before + count);
    for (uint32_t i = 0; i < count; i++)
        close(received[i]);
    CHECK_EQUAL(ubiblk_socket_send(pair[0], "x", 1, received, UBIBLK_MAX_FDS + 1), -EINVAL);
    close(pair[0]), close(pair[1]), close(fd);
}

static void listens_with_the_mode_asked_for_and_serves(void)
{
    uint64_t identity[2];
    struct stat st;
    mode_t mask = umask(077);
    int listener = ubiblk_socket_listen(path, 0660, identity);

    umask(mask);
    CHECK(listener >= 0);
    CHECK(stat(path, &st) == 0 && S_ISSOCK(st.st_mode) && (st.st_mode & 0777) == 0660);
    CHECK_EQUAL(ubiblk_socket_accept(listener), -EAGAIN);
    int client = ubiblk_socket_connect(path), server = ubiblk_socket_accept(listener);
    CHECK(client >= 0 && server >= 0);
    CHECK_EQUAL(ubiblk_socket_send(client, "x", 1, NULL, 0), 1);
    CHECK_EQUAL(ubiblk_poll(&server, 1, 10000), 1);
    close(client), close(server), close(listener);
    CHECK_EQUAL(ubiblk_socket_remove(path, identity), 0);
    CHECK(stat(path, &st) < 0);
    CHECK_EQUAL(ubiblk_socket_remove(path, identity), -ENOENT);
}

static void replaces_a_dead_socket_but_no_live_one_and_no_file(void)
{
    uint64_t first[2], second[2];
    int listener = ubiblk_socket_listen(path, 0600, first);

    CHECK_EQUAL(ubiblk_socket_listen(path, 0600, second), -EADDRINUSE);
    close(listener);
    CHECK_EQUAL(ubiblk_socket_connect(path), -ECONNREFUSED);
    listener = ubiblk_socket_listen(path, 0600, second);
    CHECK(listener >= 0);
    close(listener);
    CHECK_EQUAL(ubiblk_socket_remove(path, second), 0);

    close(open(path, O_CREAT | O_WRONLY, 0600));
    CHECK_EQUAL(ubiblk_socket_listen(path, 0600, first), -ENOTSOCK);
    CHECK(access(path, F_OK) == 0);
    /* The node isn't ours any more: it stays. */
    CHECK_EQUAL(ubiblk_socket_remove(path, (uint64_t[]){0, 0}), -ESTALE);
    CHECK(access(path, F_OK) == 0);
    unlink(path);
}

/* Listens when the gate is closed, tells whether it could, and goes on listening until it is
 * killed. */
static pid_t contender(int gate[2], int report)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    uint64_t identity[2];
    char byte;
    close(gate[1]);
    (void)!read(gate[0], &byte, 1);
    byte = ubiblk_socket_listen(path, 0600, identity) >= 0;
    (void)!write(report, &byte, 1);
    for (;;)
        pause();
}

static void only_one_of_two_takes_the_place_of_a_dead_socket(void)
{
    enum { ROUNDS = 300, CONTENDERS = 3 };
    uint64_t identity[2];

    for (int round = 0; round < ROUNDS && !test_failures; round++) {
        int gate[2], report[2], listening = 0;
        pid_t children[CONTENDERS];
        int dead = ubiblk_socket_listen(path, 0600, identity);
        CHECK(dead >= 0);
        close(dead);
        CHECK(pipe(gate) == 0 && pipe(report) == 0);
        for (int i = 0; i < CONTENDERS; i++)
            children[i] = contender(gate, report[1]);
        close(gate[1]);
        for (int i = 0; i < CONTENDERS; i++) {
            char byte = 0;
            CHECK_EQUAL(read(report[0], &byte, 1), 1);
            listening += byte;
        }
        CHECK_EQUAL(listening, 1);
        int connection = ubiblk_socket_connect(path);
        CHECK(connection >= 0);
        close(connection);
        for (int i = 0; i < CONTENDERS; i++) {
            kill(children[i], SIGKILL);
            waitpid(children[i], NULL, 0);
        }
        close(gate[0]), close(report[0]), close(report[1]);
    }
    unlink(path);
}

static void refuses_paths_that_are_too_long_or_lead_nowhere(void)
{
    uint64_t identity[2];
    char name[PATH_MAX];

    memset(name, 'a', 200);
    name[200] = 0;
    CHECK_EQUAL(ubiblk_socket_listen(name, 0600, identity), -ENAMETOOLONG);
    CHECK_EQUAL(ubiblk_socket_connect(name), -ENAMETOOLONG);
    CHECK_EQUAL(ubiblk_socket_connect(""), -ENOENT);
    snprintf(name, sizeof(name), "%s/missing/socket", folder);
    CHECK_EQUAL(ubiblk_socket_listen(name, 0600, identity), -ENOENT);
}

int main(void)
{
    if (mkdtemp(folder) == NULL)
        return 1;
    snprintf(path, sizeof(path), "%s/socket", folder);
    RUN(carries_bytes_and_descriptors);
    RUN(tells_an_empty_socket_from_a_closed_one);
    RUN(tells_whether_the_other_end_is_there);
    RUN(leaks_no_descriptor_that_is_too_many);
    RUN(listens_with_the_mode_asked_for_and_serves);
    RUN(replaces_a_dead_socket_but_no_live_one_and_no_file);
    RUN(only_one_of_two_takes_the_place_of_a_dead_socket);
    RUN(refuses_paths_that_are_too_long_or_lead_nowhere);
    rmdir(folder);
    return test_summary();
}
