/*
 * Stream sockets that rings send and receive on. A ring does not wait on a socket that is set not
 * to block: those here block, and are close-on-exec.
 */
#include "ubiblk.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int ubiblk_set_blocking(int fd, int blocking)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    flags = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

/* Two sockets that are connected with each other. */
int ubiblk_socket_pair(int32_t *fds)
{
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ? -errno : 0;
}

/* Listens at a numeric address, of either family. Port 0: one that is free. */
int ubiblk_tcp_listen(const char *address, uint32_t port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    int is_v4 = inet_pton(AF_INET, address, &v4.sin_addr) == 1;
    if (!is_v4 && inet_pton(AF_INET6, address, &v6.sin6_addr) != 1)
        return -EINVAL;
    int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1;
    if (fd < 0)
        return -errno;
    struct sockaddr *place = is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    socklen_t length = is_v4 ? sizeof(v4) : sizeof(v6);
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
        (!is_v4 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
        bind(fd, place, length) < 0 || listen(fd, SOMAXCONN) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

/* The port that a socket has here; 0 where it is of another kind. */
int ubiblk_socket_port(int fd)
{
    struct sockaddr_storage place;
    socklen_t length = sizeof(place);
    if (getsockname(fd, (struct sockaddr *)&place, &length) < 0)
        return -errno;
    if (place.ss_family == AF_INET)
        return ntohs(((struct sockaddr_in *)&place)->sin_port);
    if (place.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&place)->sin6_port);
    return 0;
}

/* Whether a descriptor is a stream socket that listens. */
int ubiblk_socket_listens(int fd)
{
    int listens = 0, type = 0;
    socklen_t length = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return -errno;
    return listens && type == SOCK_STREAM;
}

/* Of a Unix socket, what one side may have sent and the other not received yet. */
enum { UNIX_BUFFER = 1 << 20 };

/*
 * Accepts a connection that blocks; over TCP nothing is held back for more to come. A Unix socket
 * gets room for a large reply, as far as this process may give it: else the two sides would take
 * turns.
 */
int ubiblk_stream_accept(int fd)
{
    int on = 1, room = UNIX_BUFFER;
    int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
        return -errno;
    if (setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0)
        setsockopt(connection, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    else if (setsockopt(connection, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0)
        setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
    return connection;
}

/* Ends a connection in both directions: whoever waits on it is told. */
int ubiblk_socket_shutdown(int fd)
{
    return shutdown(fd, SHUT_RDWR) < 0 ? -errno : 0;
}

/*
 * What is at an offset of a file: the bytes of data or, negative, of a hole, up to end at most.
 * Where the file can't tell, all of it is data.
 */
int64_t ubiblk_file_extent(int fd, uint64_t offset, uint64_t end)
{
    int64_t all = (int64_t)(end - offset);
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    if (data < 0)
        return errno == ENXIO ? -all : all;
    if ((uint64_t)data > offset)
        return (uint64_t)data >= end ? -all : -(int64_t)((uint64_t)data - offset);
    off_t hole = lseek(fd, (off_t)offset, SEEK_HOLE);
    if (hole <= (off_t)offset || (uint64_t)hole >= end)
        return all;
    return (int64_t)((uint64_t)hole - offset);
}
