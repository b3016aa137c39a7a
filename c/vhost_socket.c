/*
 * Unix sockets that carry descriptors. Descriptors received are close-on-exec and the caller's to
 * close; sockets made here are non-blocking.
 */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Somebody else's lock on a folder is waited for a second. */
enum { LOCK_RETRY_US = 1000, MAX_LOCK_TRIES = 1000 };

static int unix_socket(const char *path, struct sockaddr_un *address)
{
    size_t length = strlen(path);
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    if (length == 0)
        return -ENOENT;
    if (length >= sizeof(address->sun_path))
        return -ENAMETOOLONG;
    memcpy(address->sun_path, path, length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 ? -errno : fd;
}

/*
 * Locks path's folder, so that of several processes one at a time looks at what is there and puts
 * its socket into its place: another one would find it before it listens, and take it away. Returns
 * a descriptor to close; negative where there is no lock to be had, which is gone on without.
 */
static int lock_folder(const char *path)
{
    char folder[sizeof(((struct sockaddr_un *)0)->sun_path) + 1];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash)
        strcpy(folder, ".");
    else if (slash == folder)
        strcpy(folder, "/");
    else
        *slash = 0;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int tries = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0; tries++) {
        if (errno != EWOULDBLOCK || tries == MAX_LOCK_TRIES) {
            close(fd);
            return -1;
        }
        usleep(LOCK_RETRY_US);
    }
    return fd;
}

static int make_room(const char *path)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return 0;
    if (!S_ISSOCK(st.st_mode))
        return -ENOTSOCK;
    int probe = ubiblk_socket_connect(path);
    if (probe >= 0)
        close(probe);
    if (probe >= 0 || probe == -EAGAIN || probe == -EACCES)
        return -EADDRINUSE;
    return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

static int listen_at(const char *path, uint32_t mode, uint64_t *identity)
{
    struct sockaddr_un address;
    struct stat st;
    int fd = unix_socket(path, &address);
    if (fd < 0)
        return fd;
    /* bind gives the node the socket's own mode less the umask: it is never wider than asked. */
    if (fchmod(fd, mode) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        goto fail;
    if (lstat(path, &st) < 0 || chmod(path, mode) < 0 || listen(fd, SOMAXCONN) < 0) {
        unlink(path);
        goto fail;
    }
    identity[0] = (uint64_t)st.st_dev;
    identity[1] = (uint64_t)st.st_ino;
    return fd;
fail:;
    int err = -errno;
    close(fd);
    return err;
}

/*
 * Listens on path with exactly the given mode. A socket that nobody listens on any more is
 * replaced; -EADDRINUSE where somebody does, -ENOTSOCK where the path is something else. identity
 * receives what ubiblk_socket_remove needs.
 */
int ubiblk_socket_listen(const char *path, uint32_t mode, uint64_t *identity)
{
    int lock = lock_folder(path);
    int result = make_room(path);
    if (result == 0)
        result = listen_at(path, mode, identity);
    if (lock >= 0)
        close(lock);
    return result;
}

/* Removes the socket's node if it is still the one that was made. */
int ubiblk_socket_remove(const char *path, const uint64_t *identity)
{
    struct stat st;
    int lock = lock_folder(path), err = 0;
    if (lstat(path, &st) < 0)
        err = -errno;
    else if ((uint64_t)st.st_dev != identity[0] || (uint64_t)st.st_ino != identity[1])
        err = -ESTALE;
    else if (unlink(path) < 0)
        err = -errno;
    if (lock >= 0)
        close(lock);
    return err;
}

int ubiblk_socket_connect(const char *path)
{
    struct sockaddr_un address;
    int fd = unix_socket(path, &address);
    if (fd < 0)
        return fd;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

int ubiblk_socket_accept(int fd)
{
    int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return connection < 0 ? -errno : connection;
}

/* Whether the other end is closed, also while there is still something to receive. */
int ubiblk_socket_gone(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLRDHUP};
    if (poll(&polled, 1, 0) < 0)
        return -errno;
    return (polled.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

/*
 * Receives up to size bytes and the descriptors that come with them (fds has room for
 * UBIBLK_MAX_FDS). Returns the bytes, 0 at the end of the stream, -EAGAIN where none are there.
 */
int ubiblk_socket_receive(int fd, void *buf, uint32_t size, int32_t *fds, uint32_t *fd_count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * UBIBLK_MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = buf, .iov_len = size};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof(control.bytes)};
    ssize_t got;
    *fd_count = 0;
    do
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        uint32_t count = (uint32_t)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (uint32_t i = 0; i < count; i++) {
            int received;
            memcpy(&received, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (*fd_count < UBIBLK_MAX_FDS)
                fds[(*fd_count)++] = received;
            else
                close(received);
        }
    }
    return (int)got;
}

/* Sends size bytes, the descriptors with the first of them. Returns the bytes sent. */
int ubiblk_socket_send(int fd, const void *buf, uint32_t size, const int32_t *fds,
                       uint32_t fd_count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * UBIBLK_MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = size};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > UBIBLK_MAX_FDS)
        return -EINVAL;
    if (fd_count > 0) {
        memset(&control, 0, sizeof(control));
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * fd_count);
    }
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : (int)sent;
}
