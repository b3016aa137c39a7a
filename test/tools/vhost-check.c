// vhost-check: random requests against a vhost-user-blk server (or any other libblkio driver),
// every byte compared with what was written.
//
//   vhost-check PATH [key=value ...]
//     driver=NAME  libblkio driver; PATH is its socket, file or device  (virtio-blk-vhost-user)
//     direct=1     O_DIRECT, for driver=io_uring                        (0)
//     ops=N        requests to send                                     (20000)
//     seconds=N    stop sending after that time, whatever ops= says     (0: no limit)
//     until=FILE   stop sending once FILE exists
//     depth=N      requests in flight                                   (16)
//     queues=N     virtqueues, used in turn                             (1)
//     span=BYTES   part of the device to work on                        (64 MiB or the device)
//     offset=B     where that part starts                               (0)
//     max=BYTES    longest read or write                                (131072)
//     piece=BYTES  length of the reads of all before and after the requests  (max)
//     seed=N       same seed, same requests                             (1)
//     mix=LETTERS  request kinds, repeated letters weigh                (rrrrwwwwzdf)
//                  r read, w write, z write zeroes, d discard (where the device offers it, else
//                  a read), f flush, u write with FUA
//     timeout=S    seconds to wait for an answer                        (30)
//     zero=1       a discarded range must read as zeroes                (0: content not checked)
//     state=FILE   keep there what every sector must hold, so that a later run, also one after
//                  this process was killed, can tell. The part starts as zeroes (or image=) when
//                  FILE is new. With ops=0: only compare
//     image=FILE   what the device holds at the start, with zeroes behind the end of FILE; without
//                  an older state= nothing is read before the first request
//     cache=1      what was answered may be lost in a power cut until a flush is answered: state=
//     has
//                  for each sector what a flush or FUA made durable; that, or anything sent later,
//                  may be found
//     progress=1   print the number of answers ten times a second
//     errors=1     requests may fail: they are counted, and what they should have changed may be
//                  there or not. To compare it later, use cache=1, too
//
// Prints one line of bytes and one of counts; the bytes and the reads before them hold the first
// and last reads of all, too. Exit status: 0 all as expected, 1 a wrong byte, a failed request or
// no answer, 2 wrong usage or no connection.
#define _GNU_SOURCE
#include <blkio.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SECTOR = 512, MAX_DEPTH = 1024, MAX_QUEUES = 64 };

struct request {
    char kind;
    bool busy;
    int queue;
    uint64_t start, len;
    unsigned char *buf;
    uint32_t *covered; // by a flush, with cache=1: what had been answered when it was sent
};

// What state=FILE says of one sector. A value is a generation, counted per sector, and ZEROES if
// the sector was zeroed. The two differ while a request is in flight: either may be found then.
struct sector_state {
    uint32_t acked, sent;
};
static const uint32_t ZEROES = 0x80000000;

static int arg_count;
static char **args;
static uint64_t rng_state;
static unsigned char *copy;  // what the device must hold
static unsigned char *known; // per sector: 1 when copy[] must match
static struct sector_state *state;
static uint64_t sectors;
static uint32_t *answered; // per sector, with cache=1: the last value answered
static bool errors_allowed;
static unsigned long long errors;
static unsigned long long reads, bytes_of[256]; // of all that was answered
static const unsigned char *image; // what the part holds that was never written to, or NULL

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static uint64_t rnd(void)
{
    return next_random(&rng_state);
}

static void die(const char *what, int err)
{
    const char *why = blkio_get_error_msg();
    fprintf(stderr, "vhost-check: %s: %s (%s)\n", what, strerror(-err), why ? why : "");
    exit(2);
}

static const char *text(const char *name, const char *fallback)
{
    size_t n = strlen(name);
    for (int i = 2; i < arg_count; i++)
        if (!strncmp(args[i], name, n) && args[i][n] == '=')
            return args[i] + n + 1;
    return fallback;
}

static uint64_t option(const char *name, uint64_t fallback)
{
    const char *value = text(name, NULL);
    return value ? strtoull(value, NULL, 0) : fallback;
}

static double seconds_since(const struct timespec *from)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - from->tv_sec) + (double)(now.tv_nsec - from->tv_nsec) / 1e9;
}

// The 512 bytes that stand for a value in a sector: no two sectors and no two generations share
// them, so data in the wrong place and data of the past are both seen.
static void sector_content(uint64_t sector, uint32_t value, unsigned char *to)
{
    uint64_t word[SECTOR / 8] = {0};
    if (value == ZEROES && image) {
        memcpy(to, image + sector * SECTOR, SECTOR);
        return;
    }
    if (!(value & ZEROES)) {
        word[0] = sector;
        word[1] = value;
        uint64_t s = (sector + 1) * 0x9e3779b97f4a7c15ULL ^ ((uint64_t)value << 32 | 1);
        for (size_t i = 2; i < SECTOR / 8; i++)
            word[i] = next_random(&s);
    }
    memcpy(to, word, SECTOR);
}

static bool holds(uint64_t sector, uint32_t value, const unsigned char *got)
{
    unsigned char want[SECTOR];
    sector_content(sector, value, want);
    return !memcmp(want, got, SECTOR);
}

static void open_image(const char *path, uint64_t offset, uint64_t span)
{
    unsigned char *bytes = calloc(1, span);
    int fd = open(path, O_RDONLY);
    if (!bytes || fd < 0)
        die(path, -errno);
    for (uint64_t at = 0; at < span;) {
        ssize_t n = pread(fd, bytes + at, span - at, (off_t)(offset + at));
        if (n < 0)
            die(path, -errno);
        if (n == 0)
            break;
        at += (uint64_t)n;
    }
    close(fd);
    image = bytes;
}

// Whether the file is new.
static bool open_state(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    struct stat st;
    off_t bytes = (off_t)(sectors * sizeof(*state));
    if (fd < 0 || fstat(fd, &st) || (st.st_size < bytes && ftruncate(fd, bytes)))
        die(path, -errno);
    state = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (state == MAP_FAILED)
        die(path, -errno);
    close(fd);
    if (!st.st_size)
        for (uint64_t i = 0; i < sectors; i++)
            state[i] = (struct sector_state){ZEROES, ZEROES};
    return !st.st_size;
}

// Whether got is what a sector held at some time between two generations. What a generation in
// between was is not known: zeroes will do.
static bool held_between(uint64_t sector, struct sector_state *s, const unsigned char *got)
{
    uint32_t oldest = s->acked & ~ZEROES, newest = s->sent & ~ZEROES;
    uint32_t value = *(const uint32_t *)(const void *)(got + 8);
    bool between = value > oldest && value < newest;
    if (between && holds(sector, value, got))
        return s->acked = s->sent = value, true;
    if (newest - oldest < 2 || !holds(sector, newest | ZEROES, got))
        return false;
    return s->acked = s->sent = newest | ZEROES, true;
}

// Settles what a run that was killed left open.
static int settle(uint64_t start, uint64_t len, const unsigned char *got)
{
    for (uint64_t at = 0; at < len; at += SECTOR) {
        uint64_t sector = (start + at) / SECTOR;
        struct sector_state *s = &state[sector];
        if (holds(sector, s->acked, got + at)) {
            s->sent = s->acked;
        } else if (holds(sector, s->sent, got + at)) {
            s->acked = s->sent;
        } else if (!answered || !held_between(sector, s, got + at)) {
            fprintf(stderr,
                    "vhost-check: sector %llu holds neither generation %#x, which was answered, "
                    "nor %#x, which was sent: it starts with %02x%02x%02x%02x, word %u\n",
                    (unsigned long long)sector, s->acked, s->sent, got[at], got[at + 1],
                    got[at + 2], got[at + 3], *(const uint32_t *)(const void *)(got + at + 8));
            return 1;
        }
    }
    return 0;
}

static int compare(uint64_t start, uint64_t len, const unsigned char *got, const char *when)
{
    for (uint64_t s = 0; s < len; s += SECTOR) {
        if (!known[(start + s) / SECTOR] || !memcmp(copy + start + s, got + s, SECTOR))
            continue;
        uint64_t i = s;
        while (copy[start + i] == got[i])
            i++;
        fprintf(stderr,
                "vhost-check: wrong byte at %llu (%s of %llu+%llu): 0x%02x, expected 0x%02x\n",
                (unsigned long long)(start + i), when, (unsigned long long)start,
                (unsigned long long)len, got[i], copy[start + i]);
        return 1;
    }
    return 0;
}

static void fill(struct request *q)
{
    for (uint64_t at = 0; at < q->len; at += SECTOR) {
        uint64_t sector = (q->start + at) / SECTOR;
        if (state) {
            uint32_t value = (state[sector].sent & ~ZEROES) + 1;
            sector_content(sector, value, q->buf + at);
            state[sector].sent = value;
        } else {
            for (uint64_t i = 0; i < SECTOR; i += 8) {
                uint64_t v = rnd();
                memcpy(q->buf + at + i, &v, 8);
            }
        }
    }
}

static void send_request(struct blkio *b, struct request *q, uint64_t offset)
{
    struct blkioq *bq = blkio_get_queue(b, q->queue);
    uint64_t at = offset + q->start;
    if (state && (q->kind == 'z' || q->kind == 'd'))
        for (uint64_t s = q->start / SECTOR; s < (q->start + q->len) / SECTOR; s++)
            state[s].sent = ((state[s].sent & ~ZEROES) + 1) | ZEROES;
    switch (q->kind) {
    case 'r':
        memset(q->buf, 0xa5, q->len);
        blkioq_read(bq, at, q->buf, q->len, q, 0);
        break;
    case 'w':
    case 'u':
        fill(q);
        blkioq_write(bq, at, q->buf, q->len, q, q->kind == 'u' ? BLKIO_REQ_FUA : 0);
        break;
    case 'z':
        blkioq_write_zeroes(bq, at, q->len, q, rnd() & 1 ? BLKIO_REQ_NO_UNMAP : 0);
        break;
    case 'd':
        blkioq_discard(bq, at, q->len, q, 0);
        break;
    case 'f':
        if (answered)
            memcpy(q->covered, answered, sectors * sizeof(*answered));
        blkioq_flush(bq, q, 0);
        break;
    default:
        die("mix", -EINVAL);
    }
}

static int completed(struct request *q, int ret, bool zero)
{
    if (ret && errors_allowed) {
        errors++;
        if (q->kind != 'r')
            memset(known + q->start / SECTOR, 0, q->len / SECTOR);
        return 0;
    }
    if (ret) {
        fprintf(stderr, "vhost-check: request %c %llu+%llu failed: %s\n", q->kind,
                (unsigned long long)q->start, (unsigned long long)q->len, strerror(-ret));
        return 1;
    }
    if (q->kind == 'r')
        return compare(q->start, q->len, q->buf, "read");
    if (q->kind == 'w' || q->kind == 'u')
        memcpy(copy + q->start, q->buf, q->len);
    else if (q->len)
        memset(copy + q->start, 0, q->len);
    memset(known + q->start / SECTOR, q->kind != 'd' || zero, q->len / SECTOR);
    for (uint64_t s = q->start / SECTOR; state && s < (q->start + q->len) / SECTOR; s++) {
        if (answered)
            answered[s] = state[s].sent;
        if (!answered || q->kind == 'u')
            state[s].acked = state[s].sent;
    }
    // Of two flushes the earlier one may be answered last.
    for (uint64_t s = 0; answered && q->kind == 'f' && s < sectors; s++)
        if ((q->covered[s] & ~ZEROES) > (state[s].acked & ~ZEROES))
            state[s].acked = q->covered[s];
    return 0;
}

// Waits until one of several queues may have answers.
static bool wait_for_any(struct blkio *b, uint64_t queues)
{
    struct pollfd fds[MAX_QUEUES];
    for (uint64_t i = 0; i < queues; i++) {
        fds[i].fd = blkioq_get_completion_fd(blkio_get_queue(b, (int)i));
        fds[i].events = POLLIN;
    }
    if (poll(fds, queues, (int)option("timeout", 30) * 1000) <= 0)
        return false;
    for (uint64_t i = 0; i < queues; i++) {
        uint64_t count;
        if (fds[i].revents && read(fds[i].fd, &count, sizeof(count)) < 0)
            die("completion descriptor", -errno);
    }
    return true;
}

static void read_now(struct blkio *b, uint64_t at, void *to, uint64_t len, const char *when)
{
    struct blkio_completion c = {0};
    struct timespec limit = {(time_t)option("timeout", 30), 0};
    blkioq_read(blkio_get_queue(b, 0), at, to, len, NULL, 0);
    int r = blkioq_do_io(blkio_get_queue(b, 0), &c, 1, 1, &limit);
    if (r == 1 && !c.ret) {
        reads++;
        bytes_of['r'] += len;
        return;
    }
    fprintf(stderr, "vhost-check: %s read of %llu+%llu failed: %s\n", when, (unsigned long long)at,
            (unsigned long long)len, strerror(-(r < 0 ? r : c.ret)));
    exit(1);
}

static int silence(uint64_t flying, int err)
{
    fprintf(stderr, "vhost-check: no answer to %llu requests: %s\n", (unsigned long long)flying,
            strerror(-err));
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: vhost-check PATH [key=value ...]; the source lists the keys\n");
        return 2;
    }
    arg_count = argc;
    args = argv;
    const char *driver = text("driver", "virtio-blk-vhost-user"), *state_path = text("state", NULL);
    uint64_t ops = option("ops", 20000), depth = option("depth", 16);
    uint64_t queues = option("queues", 1), max = option("max", 131072);
    uint64_t seed = option("seed", 1), offset = option("offset", 0);
    uint64_t seconds = option("seconds", 0);
    const char *until = text("until", NULL), *mix = text("mix", "rrrrwwwwzdf");
    bool zero = option("zero", 0), progress = option("progress", 0);
    errors_allowed = option("errors", 0);
    size_t kinds = strlen(mix);
    rng_state = seed * 0x9e3779b97f4a7c15ULL | 1;
    if (!kinds || !depth || depth > MAX_DEPTH || !queues || queues > MAX_QUEUES || max < SECTOR)
        die("options", -EINVAL);
    if (state_path && !zero && strchr(mix, 'd'))
        die("state= with discards needs zero=1", -EINVAL);

    struct blkio *b;
    int r;
    uint64_t capacity;
    if ((r = blkio_create(driver, &b)) < 0)
        die("create", r);
    if (option("direct", 0) && (r = blkio_set_bool(b, "direct", true)) < 0)
        die("direct", r);
    if ((r = blkio_set_str(b, "path", argv[1])) < 0 || (r = blkio_connect(b)) < 0)
        die("connect", r);
    int unit_bytes;
    if ((r = blkio_get_uint64(b, "capacity", &capacity)) < 0 ||
        (r = blkio_get_int(b, "request-alignment", &unit_bytes)) < 0)
        die("properties", r);
    // The device's logical block, of which every request is a multiple.
    uint64_t unit = unit_bytes > SECTOR ? (uint64_t)unit_bytes : SECTOR;
    uint64_t span = option("span", 64 << 20);
    if (offset >= capacity || offset % unit)
        die("offset", -EINVAL);
    if (span > capacity - offset)
        span = capacity - offset;
    span -= span % unit;
    if (max > span)
        max = span;
    max -= max % unit;
    uint64_t piece = option("piece", max);
    if (piece > max)
        piece = max;
    piece -= piece % unit;
    if (!piece)
        die("max or piece", -EINVAL);
    if ((r = blkio_set_int(b, "num-queues", (int)queues)) < 0 || (r = blkio_start(b)) < 0)
        die("start", r);
    uint64_t longest_discard = 0;
    if (strchr(mix, 'd') && (r = blkio_get_uint64(b, "max-discard-len", &longest_discard)) < 0)
        die("max-discard-len", r);

    struct blkio_mem_region region;
    uint64_t align;
    if ((r = blkio_get_uint64(b, "mem-region-alignment", &align)) < 0)
        die("mem-region-alignment", r);
    uint64_t bytes = (max * (depth + 1) + align - 1) / align * align;
    if ((r = blkio_alloc_mem_region(b, &region, bytes)) < 0 ||
        (r = blkio_map_mem_region(b, &region)) < 0)
        die("memory", r);

    static struct request reqs[MAX_DEPTH];
    for (uint64_t i = 0; i < depth; i++)
        reqs[i].buf = (unsigned char *)region.addr + i * max;
    copy = calloc(1, span);
    known = malloc(span / SECTOR);
    if (!copy || !known)
        die("copy", -ENOMEM);
    const char *image_path = text("image", NULL);
    if (image_path)
        open_image(image_path, offset, span);
    bool fresh = true;
    sectors = span / SECTOR;
    if (state_path)
        fresh = open_state(state_path);
    if (state_path && option("cache", 0)) {
        answered = calloc(sectors, sizeof(*answered));
        for (uint64_t i = 0; i < depth; i++)
            reqs[i].covered = calloc(sectors, sizeof(*answered));
    }

    // What the device holds at the start is the reference for bytes not written yet.
    unsigned char *scratch = (unsigned char *)region.addr + depth * max;
    if (image && fresh)
        memcpy(copy, image, span);
    for (uint64_t at = 0; at < span && !(image && fresh); at += piece) {
        uint64_t n = span - at < piece ? span - at : piece;
        read_now(b, offset + at, scratch, n, "first");
        memcpy(copy + at, scratch, n);
        if (state && settle(at, n, scratch))
            return 1;
    }
    memset(known, 1, span / SECTOR);
    for (uint64_t i = 0; answered && i < sectors; i++)
        answered[i] = state[i].acked;
    // Several queues are waited for all at once, so that none holds up the others.
    for (uint64_t i = 0; queues > 1 && i < queues; i++)
        blkioq_set_completion_fd_enabled(blkio_get_queue(b, (int)i), true);

    unsigned long long count[256] = {0}, moved = 0, answers = 0;
    struct request next = {0};
    uint64_t sent = 0, flying = 0;
    bool stop = !ops;
    int bad = 0;
    double told = 0;
    struct timespec t0;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    while (!stop || flying) {
        while (!stop && flying < depth) {
            if (!next.kind) {
                next.kind = mix[rnd() % kinds];
                if (next.kind == 'd' && !longest_discard)
                    next.kind = 'r';
                uint64_t units = rnd() % 4 ? 1 + rnd() % 8 : 1 + rnd() % (max / unit);
                if (units > max / unit)
                    units = max / unit;
                next.len = next.kind == 'f' ? 0 : units * unit;
                next.start = rnd() % (span / unit - units + 1) * unit;
            }
            // Two requests over the same bytes have no order: never have both in flight.
            bool clash = false;
            for (uint64_t i = 0; i < depth && next.len; i++)
                if (reqs[i].busy && next.start < reqs[i].start + reqs[i].len &&
                    reqs[i].start < next.start + next.len &&
                    (next.kind != 'r' || reqs[i].kind != 'r'))
                    clash = true;
            if (clash)
                break;
            struct request *q = reqs;
            while (q->busy)
                q++;
            q->kind = next.kind;
            q->start = next.start;
            q->len = next.len;
            next.kind = 0;
            q->queue = (int)(sent % queues);
            q->busy = true;
            send_request(b, q, offset);
            sent++;
            flying++;
            stop = sent >= ops;
        }
        // Hand every queue its new requests, then wait until one has answers.
        unsigned long long before = answers;
        for (uint64_t i = 0; i < queues; i++) {
            struct blkio_completion done[MAX_DEPTH];
            int want = queues == 1 && flying ? 1 : 0;
            struct timespec limit = {(time_t)option("timeout", 30), 0};
            r = blkioq_do_io(blkio_get_queue(b, (int)i), done, want, (int)depth, &limit);
            if (r < 0)
                return silence(flying, r);
            for (int k = 0; k < r; k++) {
                struct request *q = done[k].user_data;
                if (!q->busy) {
                    fprintf(stderr, "vhost-check: request %c %llu+%llu answered twice\n", q->kind,
                            (unsigned long long)q->start, (unsigned long long)q->len);
                    return 1;
                }
                q->busy = false;
                flying--;
                answers++;
                count[(unsigned char)q->kind]++;
                moved += q->len;
                bytes_of[(unsigned char)q->kind] += q->len;
                bad |= completed(q, done[k].ret, zero);
            }
        }
        stop |= bad;
        if (queues > 1 && answers == before && flying && !wait_for_any(b, queues))
            return silence(flying, -ETIME);
        double now = seconds_since(&t0);
        if ((progress || until) && now - told >= 0.1) {
            told = now;
            if (progress)
                printf("vhost-check: %llu answers\n", answers);
            fflush(stdout);
            stop |= until && !access(until, F_OK);
        }
        stop |= seconds && now >= (double)seconds;
    }
    // What was only compared has been read already.
    bool again = sent || (image && fresh);
    for (uint64_t at = 0; at < span && again && !bad; at += piece) {
        uint64_t n = span - at < piece ? span - at : piece;
        read_now(b, offset + at, scratch, n, "last");
        bad |= compare(at, n, scratch, "last read");
    }
    printf("vhost-check: %llu reads, bytes: %llu r, %llu w, %llu z, %llu d\n", reads + count['r'],
           bytes_of['r'], bytes_of['w'] + bytes_of['u'], bytes_of['z'], bytes_of['d']);
    printf(
        "vhost-check: seed %llu, %llu requests (%llu r, %llu w, %llu u, %llu z, %llu d, %llu f), "
        "%llu errors, %llu MiB, %.2f s: %s\n",
        (unsigned long long)seed, (unsigned long long)sent, count['r'], count['w'], count['u'],
        count['z'], count['d'], count['f'], errors, moved >> 20, seconds_since(&t0),
        bad ? "FAILED" : "ok");
    blkio_destroy(&b);
    return bad;
}
