/* Bytes that go to and from sockets with no copy more than it takes. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>

/* Sends to a socket that doesn't block as much as it has room for: whoever reads slowly keeps no
 * thread. Returns fewer bytes where it is full or the file ends, -EAGAIN where there is no room at
 * all. */
int64_t ubiblk_send_file(int socket, int file, uint64_t offset, uint64_t length)
{
    uint64_t done = 0;
    while (done < length) {
        off_t at = (off_t)(offset + done);
        ssize_t count = sendfile(socket, file, &at, length - done);
        if (count == 0)
            break;
        if (count > 0)
            done += (uint64_t)count;
        else if (errno != EINTR)
            return done > 0 ? (int64_t)done : -errno;
    }
    return (int64_t)done;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* Receives as much as there is room for, until nothing comes for a while, or it has waited for ten
 * times as long in all: whoever sends slowly keeps no thread, and what comes slowly is told of.
 * Returns how many bytes; why there aren't more, whoever reads next finds out. */
int64_t ubiblk_receive(int socket, void *memory, uint64_t room, int patience_ms)
{
    uint64_t done = 0;
    int64_t end_ms = now_ms() + INT64_C(10) * patience_ms;
    while (done < room) {
        ssize_t count = recv(socket, (char *)memory + done, room - done, MSG_DONTWAIT);
        if (count > 0) {
            done += (uint64_t)count;
            continue;
        }
        if (count < 0 && errno == EINTR)
            continue;
        struct pollfd input = {.fd = socket, .events = POLLIN};
        if (count == 0 || errno != EAGAIN || now_ms() >= end_ms ||
            poll(&input, 1, patience_ms) == 0)
            break;
    }
    return (int64_t)done;
}

/* Returns another descriptor of the same, for a thread: whoever owns the first one may close it. */
int ubiblk_dup(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 ? -errno : copy;
}
