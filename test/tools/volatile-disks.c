// volatile-disks: network block devices in memory whose write caches a power cut empties.
//
//   volatile-disks SEED DEVICE=MIB...
//
// DEVICE is /dev/nbd0 and so on. What is written is durable once a flush is answered, or at once
// with FUA. SIGUSR1 cuts the power, of all devices in one moment: of each sector that isn't durable
// the old or the new content is left, by chance, and all requests fail from then on. SIGUSR2
// switches the power on again.
//
// Where processes that write are killed, the kernel must be newer than 6.12: that one's nbd forgets
// a request whose sending is interrupted, and nobody is ever answered again.
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SECTOR = 512, MAX_DISKS = 8 };

struct disk {
    int sock;
    uint64_t sectors;
    unsigned char *content, *durable;
    bool *changed; // per sector: not durable yet
};

static struct disk disks[MAX_DISKS];
static nfds_t disk_count;
static uint64_t rng_state;
static bool power = true;
static volatile sig_atomic_t cut, restored;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void on_signal(int number)
{
    if (number == SIGUSR1)
        cut = 1;
    else
        restored = 1;
}

static uint64_t rnd(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

static void make_durable(struct disk *d, uint64_t from, uint64_t count)
{
    for (uint64_t s = from; s < from + count; s++) {
        if (d->changed[s])
            memcpy(d->durable + s * SECTOR, d->content + s * SECTOR, SECTOR);
        d->changed[s] = false;
    }
}

static void lose_power(void)
{
    // Of four sectors; now and then everything is lost.
    uint64_t kept = rnd() % 4;
    for (struct disk *d = disks; d < disks + disk_count; d++) {
        for (uint64_t s = 0; s < d->sectors; s++)
            if (d->changed[s] && rnd() % 4 < kept)
                make_durable(d, s, 1);
        memset(d->changed, 0, d->sectors * sizeof(bool));
        memcpy(d->content, d->durable, d->sectors * SECTOR);
    }
    power = false;
}

static void look_at_signals(void)
{
    if (cut) {
        cut = 0;
        lose_power();
    }
    if (restored) {
        restored = 0;
        power = true;
    }
}

static void transfer(int sock, void *bytes, size_t length, bool out)
{
    for (size_t done = 0; done < length;) {
        char *at = (char *)bytes + done;
        ssize_t n = out ? write(sock, at, length - done) : read(sock, at, length - done);
        if (n == 0)
            exit(0);
        if (n < 0 && errno != EINTR)
            fail("socket");
        if (n > 0)
            done += (size_t)n;
    }
}

static void serve(struct disk *d)
{
    static unsigned char data[32 << 20];
    struct nbd_request request;
    transfer(d->sock, &request, sizeof(request), false);
    uint32_t type = be32toh(request.type), length = be32toh(request.len);
    uint64_t from = be64toh(request.from);
    if (length > sizeof(data) || from + length > d->sectors * SECTOR)
        fail("request");
    if ((type & 0xffff) == NBD_CMD_WRITE)
        transfer(d->sock, data, length, false);
    look_at_signals();

    uint32_t error = power ? 0 : EIO;
    switch (type & 0xffff) {
    case NBD_CMD_DISC:
        exit(0);
    case NBD_CMD_READ:
        memcpy(data, d->content + from, length);
        break;
    case NBD_CMD_WRITE:
        if (error)
            break;
        memcpy(d->content + from, data, length);
        memset(d->changed + from / SECTOR, true, length / SECTOR);
        if (type & NBD_CMD_FLAG_FUA)
            make_durable(d, from / SECTOR, length / SECTOR);
        break;
    case NBD_CMD_FLUSH:
        if (!error)
            make_durable(d, 0, d->sectors);
        break;
    default:
        error = EINVAL;
    }
    struct nbd_reply reply = {htobe32(NBD_REPLY_MAGIC), htobe32(error), {0}};
    memcpy(&reply.handle, &request.handle, sizeof(reply.handle));
    transfer(d->sock, &reply, sizeof(reply), true);
    if ((type & 0xffff) == NBD_CMD_READ && !error)
        transfer(d->sock, data, length, true);
}

static void attach(struct disk *d, const char *path, uint64_t mib)
{
    int pair[2], fd = open(path, O_RDWR);
    uint64_t bytes = mib << 20;
    if (fd < 0)
        fail(path);
    d->sectors = bytes / SECTOR;
    d->content = calloc(1, bytes);
    d->durable = calloc(1, bytes);
    d->changed = calloc(d->sectors, sizeof(bool));
    if (!d->content || !d->durable || !d->changed)
        fail("memory");
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
        fail("socketpair");
    unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
    if (ioctl(fd, NBD_SET_BLKSIZE, SECTOR) || ioctl(fd, NBD_SET_SIZE_BLOCKS, d->sectors) ||
        ioctl(fd, NBD_SET_FLAGS, flags) || ioctl(fd, NBD_SET_SOCK, pair[1]))
        fail("nbd");
    d->sock = pair[0];
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        ioctl(fd, NBD_DO_IT);
        _exit(0);
    }
    close(pair[1]);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc - 2 > MAX_DISKS) {
        fprintf(stderr, "usage: volatile-disks SEED DEVICE=MIB...\n");
        return 2;
    }
    rng_state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ULL | 1;
    for (int i = 2; i < argc; i++) {
        char *mib = strchr(argv[i], '=');
        if (!mib)
            fail(argv[i]);
        *mib = 0;
        attach(&disks[disk_count++], argv[i], strtoull(mib + 1, NULL, 0));
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    struct pollfd fds[MAX_DISKS];
    for (nfds_t i = 0; i < disk_count; i++)
        fds[i] = (struct pollfd){.fd = disks[i].sock, .events = POLLIN};
    for (;;) {
        if (poll(fds, disk_count, -1) < 0)
            continue;
        for (nfds_t i = 0; i < disk_count; i++)
            if (fds[i].revents)
                serve(&disks[i]);
    }
}
