/* system.c: event descriptors, waiting, threads. */
#include "ubiblk.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "test.h"

static void counts_events_until_they_are_drained(void)
{
    int fd = ubiblk_eventfd();

    CHECK_EQUAL(ubiblk_eventfd_drain(fd), -EAGAIN);
    CHECK_EQUAL(ubiblk_eventfd_signal(fd), 0);
    CHECK_EQUAL(ubiblk_eventfd_signal(fd), 0);
    CHECK_EQUAL(ubiblk_eventfd_drain(fd), 0);
    CHECK_EQUAL(ubiblk_eventfd_drain(fd), -EAGAIN);
    CHECK_EQUAL(ubiblk_is_eventfd(fd), 1);
    CHECK_EQUAL(ubiblk_is_eventfd(STDOUT_FILENO), 0);
    CHECK_EQUAL(ubiblk_close(fd), 0);
    CHECK_EQUAL(ubiblk_close(fd), -EBADF);
    CHECK_EQUAL(ubiblk_is_eventfd(fd), -EBADF);
}

/* A peer chooses whether its descriptor blocks, and may fill its count. */
static void never_blocks_on_a_peers_event_descriptor(void)
{
    uint64_t full = UINT64_MAX - 1;
    int fd = eventfd(0, EFD_CLOEXEC);

    CHECK_EQUAL(ubiblk_is_eventfd(fd), 2);
    CHECK_EQUAL(ubiblk_eventfd_signal_peer(fd), 0);
    CHECK_EQUAL(ubiblk_eventfd_drain(fd), 0);
    CHECK_EQUAL(write(fd, &full, sizeof(full)), sizeof(full));
    CHECK_EQUAL(ubiblk_eventfd_signal_peer(fd), -EAGAIN);
    CHECK_EQUAL(ubiblk_eventfd_drain(fd), 0);
    CHECK_EQUAL(ubiblk_eventfd_signal_peer(fd), 0);
    close(fd);
}

static void *wait_for_event(void *epoll)
{
    return (void *)(intptr_t)ubiblk_epoll_wait(*(int *)epoll);
}

/* Each signal is an event of its own, although nobody reads the count. */
static void wakes_for_each_signal_and_no_other(void)
{
    int epoll = ubiblk_epoll(), watched = ubiblk_eventfd(), removed = ubiblk_eventfd();
    int32_t fds[] = {epoll};

    CHECK(epoll >= 0);
    CHECK_EQUAL(ubiblk_epoll_add(epoll, watched), 0);
    CHECK_EQUAL(ubiblk_epoll_add(epoll, watched), -EEXIST);
    CHECK_EQUAL(ubiblk_epoll_add(epoll, removed), 0);
    CHECK_EQUAL(ubiblk_epoll_remove(epoll, removed), 0);
    CHECK_EQUAL(ubiblk_epoll_remove(epoll, removed), -ENOENT);
    ubiblk_eventfd_signal(removed);
    CHECK_EQUAL(ubiblk_poll(fds, 1, 0), 0);
    for (int turn = 0; turn < 3; turn++) {
        ubiblk_eventfd_signal(watched);
        CHECK_EQUAL(ubiblk_poll(fds, 1, 10000), 1);
        CHECK_EQUAL(ubiblk_epoll_wait(epoll), 0);
        CHECK_EQUAL(ubiblk_poll(fds, 1, 0), 0);
    }

    pthread_t thread;
    void *result = NULL;
    CHECK_EQUAL(pthread_create(&thread, NULL, wait_for_event, &epoll), 0);
    ubiblk_eventfd_signal(watched);
    pthread_join(thread, &result);
    CHECK(result == NULL);
    close(epoll), close(watched), close(removed);
    CHECK_EQUAL(ubiblk_epoll_wait(epoll), -EBADF);
}

static void tells_which_descriptors_are_ready(void)
{
    int32_t fds[] = {ubiblk_eventfd(), -1, ubiblk_eventfd()};

    CHECK_EQUAL(ubiblk_poll(fds, 3, 0), 0);
    ubiblk_eventfd_signal(fds[2]);
    CHECK_EQUAL(ubiblk_poll(fds, 3, -1), 4);
    ubiblk_eventfd_signal(fds[0]);
    CHECK_EQUAL(ubiblk_poll(fds, 3, -1), 5);
    CHECK_EQUAL(ubiblk_poll(fds, 1000, 0), -EINVAL);
    close(fds[0]), close(fds[2]);
}

static void *pin_and_name(void *unused)
{
    cpu_set_t allowed;
    char name[16];
    uint32_t cpu = 0;

    (void)unused;
    sched_getaffinity(0, sizeof(allowed), &allowed);
    while (!CPU_ISSET(cpu, &allowed))
        cpu++;
    CHECK_EQUAL(ubiblk_pin_thread(cpu), 0);
    sched_getaffinity(0, sizeof(allowed), &allowed);
    CHECK(CPU_COUNT(&allowed) == 1 && CPU_ISSET(cpu, &allowed));
    CHECK_EQUAL(ubiblk_pin_thread(1u << 31), -EINVAL);
    CHECK(ubiblk_pin_thread(CPU_SETSIZE - 1) == -EINVAL || sysconf(_SC_NPROCESSORS_CONF) > 1000);
    CHECK_EQUAL(ubiblk_name_thread("a name longer than fifteen bytes"), 0);
    pthread_getname_np(pthread_self(), name, sizeof(name));
    CHECK(strcmp(name, "a name longer t") == 0);
    return NULL;
}

static void pins_and_names_the_calling_thread_alone(void)
{
    cpu_set_t before, after;
    pthread_t thread;

    sched_getaffinity(0, sizeof(before), &before);
    CHECK_EQUAL(pthread_create(&thread, NULL, pin_and_name, NULL), 0);
    pthread_join(thread, NULL);
    sched_getaffinity(0, sizeof(after), &after);
    CHECK(CPU_EQUAL(&before, &after));
}

int main(void)
{
    RUN(counts_events_until_they_are_drained);
    RUN(never_blocks_on_a_peers_event_descriptor);
    RUN(wakes_for_each_signal_and_no_other);
    RUN(tells_which_descriptors_are_ready);
    RUN(pins_and_names_the_calling_thread_alone);
    return test_summary();
}
