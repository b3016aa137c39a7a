/*
 * Lanes: calls on files that may take long, or hang, carried out by threads for whoever must not
 * wait. Each lane has threads of its own, so that what hangs in one holds up nobody in another. A
 * lane's jobs begin in their order. All lanes tell of jobs that are done by one socket, and one
 * thread reaps them.
 */
#include "object.h"
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STACK_BYTES = 256 * 1024, NAME_BYTES = 16 };

struct job {
    struct job *next;
    uint32_t op, ticket;
    int fd, extra;
    uint64_t address, length, offset;
    int64_t result;
};

struct list {
    struct job *first, **end;
};

struct lane {
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct list jobs;
    uint32_t queued, threads, idle, most;
    int closed;
    char name[NAME_BYTES];
};

static struct {
    pthread_mutex_t lock;
    struct list jobs;
    int socket;
} done = {.lock = PTHREAD_MUTEX_INITIALIZER, .socket = -1};

static void push(struct list *list, struct job *job)
{
    job->next = NULL;
    if (!list->first)
        list->end = &list->first;
    *list->end = job;
    list->end = &job->next;
}

static struct job *shift(struct list *list)
{
    struct job *job = list->first;
    if (job)
        list->first = job->next;
    return job;
}

/* A byte tells that there is something to reap; it has been read before the next one is sent. */
static void finish(struct job *job, int64_t result)
{
    job->result = result;
    pthread_mutex_lock(&done.lock);
    int tell = !done.jobs.first;
    push(&done.jobs, job);
    if (tell)
        (void)!send(done.socket, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    pthread_mutex_unlock(&done.lock);
}

static int64_t result_of(ssize_t result)
{
    return result < 0 ? -errno : result;
}

static int is_hole(int fd, uint64_t offset, uint64_t end)
{
    struct stat st;
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    if (data >= 0)
        return (uint64_t)data >= end;
    /* Behind the end of a file that was cut there is no data either. */
    return errno == ENXIO && fstat(fd, &st) == 0 && (uint64_t)st.st_size >= end;
}

static int64_t carry_out(const struct job *job)
{
    void *memory = (void *)(uintptr_t)job->address;
    switch (job->op) {
    case UBIBLK_JOB_READ_DATA:
        if (is_hole(job->fd, job->offset, job->offset + job->length))
            return -ENODATA;
        /* fall through */
    case UBIBLK_JOB_READ:
        return result_of(pread(job->fd, memory, job->length, (off_t)job->offset));
    case UBIBLK_JOB_WRITE:
        return result_of(pwrite(job->fd, memory, job->length, (off_t)job->offset));
    case UBIBLK_JOB_WRITE_OUT:
        return ubiblk_write_out(job->fd, memory, job->length, job->offset);
    case UBIBLK_JOB_SYNC:
        return result_of(fdatasync(job->fd));
    case UBIBLK_JOB_ALLOCATE:
        return ubiblk_fallocate(job->fd, job->extra, job->offset, job->length);
    case UBIBLK_JOB_CLONE:
        return ubiblk_file_clone(job->fd, job->extra, job->offset, job->length);
    case UBIBLK_JOB_CLOSE:
        return ubiblk_close(job->fd);
    case UBIBLK_JOB_SEND_FILE:
        return ubiblk_send_file(job->extra, job->fd, job->offset, job->length);
    case UBIBLK_JOB_SYNC_ALL:
        return result_of(syncfs(job->fd));
    case UBIBLK_JOB_SEAL:
        return ubiblk_seal(memory);
    case UBIBLK_JOB_UNSEAL:
        return ubiblk_unseal(memory);
    case UBIBLK_JOB_READ_FILE:
        return ubiblk_file_read_all((const char *)(uintptr_t)job->offset, memory, job->length);
    case UBIBLK_JOB_RECEIVE:
        return ubiblk_receive(job->fd, memory, job->length, job->extra);
    case UBIBLK_JOB_MAKE_FILE:
        return ubiblk_file_make((const char *)(uintptr_t)job->offset, memory, job->length);
    default:
        return -EINVAL;
    }
}

static void *work(void *argument)
{
    struct lane *lane = argument;
    pthread_setname_np(pthread_self(), lane->name);
    pthread_mutex_lock(&lane->lock);
    for (;;) {
        struct job *job = shift(&lane->jobs);
        if (job) {
            lane->queued--;
            pthread_mutex_unlock(&lane->lock);
            finish(job, carry_out(job));
            pthread_mutex_lock(&lane->lock);
        } else if (lane->closed) {
            break;
        } else {
            lane->idle++;
            pthread_cond_wait(&lane->work, &lane->lock);
            lane->idle--;
        }
    }
    int last = --lane->threads == 0;
    pthread_mutex_unlock(&lane->lock);
    if (last)
        free(lane);
    return NULL;
}

static int start_thread(struct lane *lane)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    /* The process's signals are not for these threads. */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(&thread, &attributes, work, lane);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (!err)
        lane->threads++;
    return -err;
}

/* Returns the socket by which all lanes tell that there is something to reap, the caller's from now
 * on. */
int ubiblk_lanes_start(void)
{
    int sockets[2];
    if (done.socket >= 0)
        return -EALREADY;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sockets) < 0)
        return -errno;
    done.socket = sockets[1];
    return sockets[0];
}

/* Takes jobs that are done: their tickets and results. Whoever gets as many as
 * there was room for comes again at once. */
uint32_t ubiblk_lanes_reap(struct ubiblk_done *found, uint32_t most)
{
    uint32_t count = 0;
    pthread_mutex_lock(&done.lock);
    for (struct job *job; count < most && (job = shift(&done.jobs));) {
        found[count++] = (struct ubiblk_done){(double)job->ticket, (double)job->result};
        free(job);
    }
    pthread_mutex_unlock(&done.lock);
    return count;
}

/* Makes a lane of so many threads at most, which are started when there is work for them. */
int ubiblk_lane_open(const char *name, uint32_t threads, uint64_t *handle)
{
    struct lane *lane = calloc(1, sizeof(*lane));
    if (!lane)
        return -ENOMEM;
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->work, NULL);
    lane->most = threads;
    strncpy(lane->name, name, NAME_BYTES - 1);
    *handle = (uintptr_t)lane;
    return 0;
}

/*
 * Hands a job over; its memory and files must stay until it is reaped. extra is what an allocation
 * does, the file that a clone is of, the socket that is sent to, or patience.
 */
int ubiblk_lane_submit(uint64_t handle, uint32_t op, uint32_t ticket, int fd, uint64_t address,
                       uint64_t length, uint64_t offset, int extra)
{
    struct lane *lane = (struct lane *)(uintptr_t)handle;
    struct job *job = malloc(sizeof(*job));
    int err = 0;
    if (!job)
        return -ENOMEM;
    *job = (struct job){.op = op,
                        .ticket = ticket,
                        .fd = fd,
                        .extra = extra,
                        .address = address,
                        .length = length,
                        .offset = offset};
    pthread_mutex_lock(&lane->lock);
    if (lane->queued >= lane->idle && lane->threads < lane->most)
        err = start_thread(lane);
    if (lane->threads > 0) {
        push(&lane->jobs, job);
        lane->queued++;
        pthread_cond_signal(&lane->work);
        err = 0;
    }
    pthread_mutex_unlock(&lane->lock);
    if (err)
        free(job);
    return err;
}

/*
 * Jobs that have not been begun end with -ECANCELED, and threads end when those that have been are
 * done. The handle is gone.
 */
void ubiblk_lane_close(uint64_t handle)
{
    struct lane *lane = (struct lane *)(uintptr_t)handle;
    pthread_mutex_lock(&lane->lock);
    for (struct job *job; (job = shift(&lane->jobs));)
        finish(job, -ECANCELED);
    lane->queued = 0;
    lane->closed = 1;
    pthread_cond_broadcast(&lane->work);
    int unused = lane->threads == 0;
    pthread_mutex_unlock(&lane->lock);
    if (unused)
        free(lane);
}
