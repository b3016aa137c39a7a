/* stream_socket.c: sockets for rings, and what is where in a file. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test.h"

enum { BLOCK = 1 << 16 };

static int connect_to(int port)
{
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK_EQUAL(connect(fd, (struct sockaddr *)&place, sizeof(place)), 0);
    return fd;
}

static int blocks(int fd)
{
    return (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0;
}

static void listens_at_a_numeric_address(void)
{
    int fd = ubiblk_tcp_listen("127.0.0.1", 0);
    int port = ubiblk_socket_port(fd);

    CHECK(fd >= 0);
    CHECK(port > 0);
    CHECK_EQUAL(ubiblk_socket_listens(fd), 1);
    CHECK_EQUAL(ubiblk_stream_accept(fd), -EAGAIN);
    CHECK_EQUAL(ubiblk_tcp_listen("127.0.0.1", (uint32_t)port), -EADDRINUSE);
    CHECK_EQUAL(ubiblk_tcp_listen("localhost", 0), -EINVAL);

    int client = connect_to(port), connection = ubiblk_stream_accept(fd);
    CHECK(connection >= 0);
    CHECK(blocks(connection));
    CHECK_EQUAL(ubiblk_socket_listens(connection), 0);
    close(connection);
    close(client);
    close(fd);
}

static void ends_a_connection_for_whoever_waits(void)
{
    int32_t fds[2];
    char byte;

    CHECK_EQUAL(ubiblk_socket_pair(fds), 0);
    CHECK(blocks(fds[0]));
    CHECK_EQUAL(ubiblk_set_blocking(fds[0], 0), 0);
    CHECK(!blocks(fds[0]));
    CHECK_EQUAL(ubiblk_set_blocking(fds[0], 1), 0);
    CHECK(blocks(fds[0]));
    CHECK_EQUAL(ubiblk_socket_shutdown(fds[0]), 0);
    CHECK_EQUAL(read(fds[0], &byte, 1), 0);
    CHECK_EQUAL(read(fds[1], &byte, 1), 0);
    CHECK_EQUAL(ubiblk_socket_port(fds[0]), 0);
    close(fds[0]);
    close(fds[1]);
    CHECK_EQUAL(ubiblk_set_blocking(fds[0], 1), -EBADF);
}

static void tells_data_from_holes(void)
{
    char path[] = "/tmp/ubiblk-extents-XXXXXX";
    int fd = mkstemp(path);
    static char data[BLOCK];

    unlink(path);
    CHECK_EQUAL(ftruncate(fd, 6 * BLOCK), 0);
    CHECK_EQUAL(pwrite(fd, data, BLOCK, 2 * BLOCK), BLOCK);
    CHECK_EQUAL(pwrite(fd, data, BLOCK, 5 * BLOCK), BLOCK);
    CHECK_EQUAL(ubiblk_file_extent(fd, 0, 6 * BLOCK), -2 * BLOCK);
    CHECK_EQUAL(ubiblk_file_extent(fd, BLOCK, 6 * BLOCK), -BLOCK);
    CHECK_EQUAL(ubiblk_file_extent(fd, 0, BLOCK), -BLOCK);
    CHECK_EQUAL(ubiblk_file_extent(fd, 2 * BLOCK, 6 * BLOCK), BLOCK);
    CHECK_EQUAL(ubiblk_file_extent(fd, 2 * BLOCK + 512, 2 * BLOCK + 1024), 512);
    CHECK_EQUAL(ubiblk_file_extent(fd, 5 * BLOCK, 6 * BLOCK), BLOCK);
    /* Behind the end is nothing. */
    CHECK_EQUAL(ubiblk_file_extent(fd, 6 * BLOCK, 7 * BLOCK), -BLOCK);
    close(fd);
    /* Who can't tell has data everywhere. */
    CHECK_EQUAL(ubiblk_file_extent(fd, 0, BLOCK), BLOCK);
}

int main(void)
{
    RUN(listens_at_a_numeric_address);
    RUN(ends_a_connection_for_whoever_waits);
    RUN(tells_data_from_holes);
    return test_summary();
}
