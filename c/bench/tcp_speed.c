/*
 * What TCP moves over loopback: one process sends a file, another one throws it away, by blocks of
 * 64 KiB, as nc does.
 *
 *   tcp_speed FILE    prints bytes and seconds
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 65536 };

static char block[BLOCK];

static void check(int ok, const char *what)
{
    if (ok)
        return;
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void send_file(const char *path, const struct sockaddr_in *address)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    int peer = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ssize_t length;
    check(file >= 0, path);
    check(connect(peer, (const struct sockaddr *)address, sizeof(*address)) == 0, "connect");
    while ((length = read(file, block, BLOCK)) > 0) {
        for (ssize_t at = 0, done; at < length; at += done) {
            done = write(peer, block + at, (size_t)(length - at));
            check(done > 0, "write");
        }
    }
    check(length == 0, "read");
}

int main(int count, char **words)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    unsigned long long bytes = 0;
    int status = 0;
    if (count != 2) {
        fprintf(stderr, "usage: tcp_speed FILE\n");
        return 2;
    }
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(bind(listener, (struct sockaddr *)&address, size) == 0, "bind");
    check(listen(listener, 1) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        send_file(words[1], &address);
        return 0;
    }
    int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    check(peer >= 0, "accept");
    double start = now();
    ssize_t length;
    while ((length = read(peer, block, BLOCK)) > 0)
        bytes += (unsigned long long)length;
    check(length == 0, "read");
    printf("%llu %.6f\n", bytes, now() - start);
    check(waitpid(child, &status, 0) == child && status == 0, "the sender");
    return 0;
}
