/* Small system calls: event descriptors, waiting, threads. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int ubiblk_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* Adds one to the count. Blocks where the count is full and fd isn't O_NONBLOCK. */
int ubiblk_eventfd_signal(int fd)
{
    uint64_t one = 1;
    return write(fd, &one, sizeof(one)) < 0 ? -errno : 0;
}

/* The same for a peer's descriptor, which may be a blocking one whose count the peer has filled. */
int ubiblk_eventfd_signal_peer(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLOUT};
    if (poll(&polled, 1, 0) <= 0)
        return -EAGAIN;
    return ubiblk_eventfd_signal(fd);
}

int ubiblk_eventfd_drain(int fd)
{
    uint64_t count;
    return read(fd, &count, sizeof(count)) < 0 ? -errno : 0;
}

/* 1 where fd is an event descriptor, 2 where it is one that blocks, 0 where it is anything else. */
int ubiblk_is_eventfd(int fd)
{
    char path[64], target[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, target, sizeof(target) - 1);
    int flags = fcntl(fd, F_GETFL);
    if (n < 0 || flags < 0)
        return -errno;
    target[n] = 0;
    if (strcmp(target, "anon_inode:[eventfd]"))
        return 0;
    return flags & O_NONBLOCK ? 1 : 2;
}

/*
 * Event descriptors are watched edge-triggered: each signal is an event, whether or not the count
 * was read, so a peer's descriptor is never read and can't block us.
 */
int ubiblk_epoll(void)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int ubiblk_epoll_add(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int ubiblk_epoll_remove(int epoll, int fd)
{
    return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) < 0 ? -errno : 0;
}

/* Blocks until an event has come since the last call. */
int ubiblk_epoll_wait(int epoll)
{
    struct epoll_event events[4];
    int ready = epoll_wait(epoll, events, 4, -1);
    return ready < 0 && errno != EINTR ? -errno : 0;
}

enum { MAX_POLLED = 8 };

/*
 * Waits until one of fds (-1: none) is readable or hung up, timeout_ms at most (negative: for
 * ever). Returns a bit for each that is, 0 on time-out or a signal.
 */
int ubiblk_poll(int32_t *fds, uint32_t count, int timeout_ms)
{
    struct pollfd polled[MAX_POLLED];
    if (count > MAX_POLLED)
        return -EINVAL;
    for (uint32_t i = 0; i < count; i++)
        polled[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    int ready = poll(polled, count, timeout_ms);
    if (ready < 0)
        return errno == EINTR ? 0 : -errno;
    int bits = 0;
    for (uint32_t i = 0; i < count; i++)
        if (polled[i].revents)
            bits |= 1 << i;
    return bits;
}

int ubiblk_close(int fd)
{
    return close(fd) < 0 ? -errno : 0;
}

/* Pins the calling thread. */
int ubiblk_pin_thread(uint32_t cpu)
{
    cpu_set_t set;
    if (cpu >= CPU_SETSIZE)
        return -EINVAL;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return -pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

/* Names the calling thread for ps and top; names are cut at 15 bytes. */
int ubiblk_name_thread(const char *name)
{
    char cut[16];
    snprintf(cut, sizeof(cut), "%s", name);
    return -pthread_setname_np(pthread_self(), cut);
}

/*
 * Tells a service manager something (sd_notify(3)): one datagram to the socket at path, which is in
 * the abstract namespace where it begins with '@'.
 */
int ubiblk_notify(const char *path, const char *text)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof(address.sun_path))
        return -EINVAL;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    ssize_t sent = sendto(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT,
                          (struct sockaddr *)&address, size);
    int err = sent < 0 ? -errno : 0;
    close(fd);
    return err;
}
