/*
 * Memory that the kernel or a guest shares with TypeScript: private buffers, mappings of a guest's
 * memory, and the guard that keeps a guest which truncates its memory from ending the process.
 */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/*
 * Shared mappings that a SIGBUS may come from. The handler only reads the table; slots are written
 * under the lock, the length last when a slot is taken and first when it is given back.
 */
enum { MAX_GUARDED = 1024 };

static struct {
    uint64_t base, length;
} guarded[MAX_GUARDED];
static uint32_t lost;
static pthread_mutex_t guard_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous_action;
static int installed;

/*
 * A page of a guest's memory has no file behind it any more: put zeroes in its place for the whole
 * mapping, so that the access succeeds, and count it. Whoever serves that guest sees the count.
 */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    uint64_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < MAX_GUARDED; i++) {
        uint64_t length = __atomic_load_n(&guarded[i].length, __ATOMIC_ACQUIRE);
        uint64_t base = guarded[i].base;
        if (!length || at < base || at - base >= length)
            continue;
        /* Counted first: whoever sees zeroes in its place sees the count, too. */
        __atomic_add_fetch(&lost, 1, __ATOMIC_SEQ_CST);
        void *fresh = mmap((void *)(uintptr_t)base, length, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (fresh == MAP_FAILED)
            break;
        return;
    }
    if (previous_action.sa_flags & SA_SIGINFO) {
        previous_action.sa_sigaction(sig, info, context);
    } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
        previous_action.sa_handler(sig);
    } else {
        signal(sig, SIG_DFL);
        raise(sig);
    }
}

static int guard_add(uint64_t base, uint64_t length)
{
    int err = -ENOSPC;
    pthread_mutex_lock(&guard_lock);
    if (!installed) {
        struct sigaction action;
        memset(&action, 0, sizeof(action));
        action.sa_sigaction = on_sigbus;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        installed = sigaction(SIGBUS, &action, &previous_action) == 0;
    }
    for (int i = 0; i < MAX_GUARDED; i++) {
        if (guarded[i].length)
            continue;
        guarded[i].base = base;
        __atomic_store_n(&guarded[i].length, length, __ATOMIC_RELEASE);
        err = 0;
        break;
    }
    pthread_mutex_unlock(&guard_lock);
    return err;
}

static void guard_remove(uint64_t base)
{
    pthread_mutex_lock(&guard_lock);
    for (int i = 0; i < MAX_GUARDED; i++)
        if (guarded[i].length && guarded[i].base == base)
            __atomic_store_n(&guarded[i].length, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&guard_lock);
}

/* The address of a 32-bit count of the guest mappings lost to truncation so far. */
uint64_t ubiblk_memory_lost_counter(void)
{
    return (uintptr_t)&lost;
}

/* Returns the address of length bytes of zeroes, page aligned; pages cost nothing until touched. */
int64_t ubiblk_memory_map(uint64_t length)
{
    void *at = mmap(NULL, length, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? -errno : (int64_t)(uintptr_t)at;
}

int ubiblk_memory_unmap(uint64_t address, uint64_t length)
{
    return munmap((void *)(uintptr_t)address, length) < 0 ? -errno : 0;
}

/*
 * Maps length bytes at offset of a peer's memory file, shared, guarded against its truncation.
 * Returns the address of byte offset; in mapping what unmap_shared takes, and the size of the
 * pages. -ERANGE where the file is smaller than that, -EBADF where it isn't a file of memory.
 */
int64_t ubiblk_memory_map_shared(int fd, uint64_t offset, uint64_t length, uint64_t *mapping)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EBADF;
    if (length == 0 || offset > (uint64_t)st.st_size || length > (uint64_t)st.st_size - offset)
        return -ERANGE;
    /* Of huge pages, offset and length must be whole ones; st_blksize is their size. */
    uint64_t page = (uint64_t)st.st_blksize;
    if (page < 4096 || (page & (page - 1)))
        page = 4096;
    uint64_t before = offset & (page - 1);
    uint64_t whole = (length + before + page - 1) & ~(page - 1);
    void *at = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
                    (off_t)(offset - before));
    if (at == MAP_FAILED)
        return -errno;
    int err = guard_add((uintptr_t)at, whole);
    if (err < 0) {
        munmap(at, whole);
        return err;
    }
    madvise(at, whole, MADV_DONTDUMP);
    mapping[0] = (uintptr_t)at;
    mapping[1] = whole;
    mapping[2] = page;
    return (int64_t)((uintptr_t)at + before);
}

int ubiblk_memory_unmap_shared(uint64_t base, uint64_t length)
{
    guard_remove(base);
    return ubiblk_memory_unmap(base, length);
}

/* A new file of length bytes of shared memory, close-on-exec. Returns its descriptor. */
int ubiblk_memory_memfd(const char *name, uint64_t length)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)length) < 0) {
        int err = -errno;
        close(fd);
        return err;
    }
    return fd;
}

/*
 * The same of huge pages of the default size, length rounded up to whole ones, which are taken at
 * once: -ENOSPC or -ENOMEM where there are too few.
 */
int ubiblk_memory_memfd_huge(const char *name, uint64_t length)
{
    struct stat st;
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_HUGETLB);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0)
        goto fail;
    uint64_t page = (uint64_t)st.st_blksize;
    if (fallocate(fd, 0, 0, (off_t)((length + page - 1) / page * page)) < 0)
        goto fail;
    return fd;
fail:;
    int err = -errno;
    close(fd);
    return err;
}

int ubiblk_memory_copy(uint64_t to, uint64_t from, uint64_t length)
{
    memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, length);
    return 0;
}

int ubiblk_memory_fill(uint64_t to, int byte, uint64_t length)
{
    memset((void *)(uintptr_t)to, byte, length);
    return 0;
}

/*
 * Copies length bytes between a flat buffer and an iovec, of which the first skip bytes are passed
 * over. The caller has checked that the iovec is that long.
 */
static int copy_iovec(const struct iovec *iov, uint32_t count, uint64_t skip, uint8_t *flat,
                      uint64_t length, int scatter)
{
    for (uint32_t i = 0; i < count && length; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint64_t part = iov[i].iov_len - skip;
        if (part > length)
            part = length;
        uint8_t *at = (uint8_t *)iov[i].iov_base + skip;
        if (scatter)
            memcpy(at, flat, part);
        else
            memcpy(flat, at, part);
        flat += part;
        length -= part;
        skip = 0;
    }
    return length ? -EINVAL : 0;
}

int ubiblk_memory_gather(uint64_t to, uint64_t iov, uint32_t count, uint64_t skip, uint64_t length)
{
    return copy_iovec((const struct iovec *)(uintptr_t)iov, count, skip, (uint8_t *)(uintptr_t)to,
                      length, 0);
}

int ubiblk_memory_scatter(uint64_t iov, uint32_t count, uint64_t skip, uint64_t from,
                          uint64_t length)
{
    return copy_iovec((const struct iovec *)(uintptr_t)iov, count, skip, (uint8_t *)(uintptr_t)from,
                      length, 1);
}
