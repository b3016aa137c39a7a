/*
 * Secrets live in one arena of address space, locked page by page as it fills: blocks of rounded
 * size, cut from its end or taken again from those given back. There are few of them, and they live
 * long.
 */
#include "secret.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include <openssl/crypto.h>

/*
 * Ciphers of 64 queues take some 300 KiB, a TLS session some 6; what isn't used takes no memory.
 * Locked is what is used, in steps: all of it doesn't fit into the usual limit of 8 MiB.
 */
#define ARENA_SIZE (64 * 1024 * 1024)
#define LOCK_STEP  (4 * 1024 * 1024)
#define ALIGN      64

/* What OpenSSL needs of this size or more is for records and messages, never for keys. */
#define MESSAGE_SIZE 16384

/* Before each block; as large as ALIGN, so that blocks are aligned. */
struct block {
    size_t size;
    struct block *next_free;
    char padding[ALIGN - sizeof(size_t) - sizeof(struct block *)];
};

static struct {
    pthread_mutex_t mutex;
    uint8_t *start;
    size_t used;
    /* What of it is locked, or has been tried to. */
    size_t lock_end;
    int locked;
    struct block *free;
} arena = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local int secret_section;

static int in_arena(const void *pointer)
{
    uintptr_t start = (uintptr_t)__atomic_load_n(&arena.start, __ATOMIC_ACQUIRE);
    return start && (uintptr_t)pointer - start < ARENA_SIZE;
}

static int arena_map(void)
{
    if (arena.start)
        return 0;
    void *at = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return -1;
    /* A kernel that can't leave them out still serves. */
    (void)madvise(at, ARENA_SIZE, MADV_DONTDUMP);
    (void)madvise(at, ARENA_SIZE, MADV_DONTFORK);
    arena.locked = 1;
    /* Nor are they for debuggers and core dumps of the whole process. */
    (void)prctl(PR_SET_DUMPABLE, 0);
    __atomic_store_n(&arena.start, (uint8_t *)at, __ATOMIC_RELEASE);
    return 0;
}

static struct block *take_freed(size_t size)
{
    for (struct block **link = &arena.free; *link; link = &(*link)->next_free) {
        struct block *block = *link;
        if (block->size != size)
            continue;
        *link = block->next_free;
        return block;
    }
    return NULL;
}

static void lock_up_to(size_t end)
{
    while (arena.lock_end < end) {
        if (mlock2(arena.start + arena.lock_end, LOCK_STEP, MLOCK_ONFAULT) != 0)
            arena.locked = 0;
        arena.lock_end += LOCK_STEP;
    }
}

static struct block *cut(size_t size)
{
    size_t whole = sizeof(struct block) + size;
    if (whole > ARENA_SIZE - arena.used)
        return NULL;
    lock_up_to(arena.used + whole);
    struct block *block = (struct block *)(void *)(arena.start + arena.used);
    arena.used += whole;
    block->size = size;
    return block;
}

void *secret_alloc(size_t size)
{
    struct block *block = NULL;
    if (size == 0 || size > ARENA_SIZE)
        return NULL;
    size = (size + ALIGN - 1) / ALIGN * ALIGN;
    pthread_mutex_lock(&arena.mutex);
    if (arena_map() == 0) {
        block = take_freed(size);
        if (!block)
            block = cut(size);
    }
    pthread_mutex_unlock(&arena.mutex);
    return block ? block + 1 : NULL;
}

void secret_free(void *secret)
{
    if (!secret)
        return;
    struct block *block = (struct block *)secret - 1;
    OPENSSL_cleanse(secret, block->size);
    pthread_mutex_lock(&arena.mutex);
    block->next_free = arena.free;
    arena.free = block;
    pthread_mutex_unlock(&arena.mutex);
}

static void *openssl_malloc(size_t size, const char *file, int line)
{
    (void)file, (void)line;
    return secret_section && size < MESSAGE_SIZE ? secret_alloc(size) : malloc(size);
}

static void openssl_free(void *pointer, const char *file, int line)
{
    (void)file, (void)line;
    if (in_arena(pointer))
        secret_free(pointer);
    else
        free(pointer);
}

static void *openssl_realloc(void *pointer, size_t size, const char *file, int line)
{
    if (!pointer)
        return openssl_malloc(size, file, line);
    if (size == 0) {
        openssl_free(pointer, file, line);
        return NULL;
    }
    if (!in_arena(pointer))
        return realloc(pointer, size);
    size_t before = ((struct block *)pointer - 1)->size;
    void *fresh = secret_alloc(size);
    if (!fresh)
        return NULL;
    memcpy(fresh, pointer, before < size ? before : size);
    secret_free(pointer);
    return fresh;
}

static struct openssl ciphers;
static int openssl_works;

static void openssl_start(void)
{
    if (!CRYPTO_set_mem_functions(openssl_malloc, openssl_realloc, openssl_free))
        return;
    if (!OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL))
        return;
    ciphers.xts = EVP_CIPHER_fetch(NULL, "AES-256-XTS", NULL);
    ciphers.ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
    ciphers.gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    ciphers.sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    openssl_works = ciphers.xts && ciphers.ecb && ciphers.gcm && ciphers.sha256;
}

const struct openssl *openssl(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, openssl_start);
    return openssl_works ? &ciphers : NULL;
}

void secrets_begin(void)
{
    secret_section = 1;
}

void secrets_end(void)
{
    secret_section = 0;
}

int64_t ubiblk_secret_alloc(uint32_t size)
{
    void *secret = secret_alloc(size);
    return secret ? (int64_t)(uintptr_t)secret : -ENOMEM;
}

int ubiblk_secret_free(uint64_t address)
{
    secret_free((void *)(uintptr_t)address);
    return 0;
}

int ubiblk_secret_locked(void)
{
    pthread_mutex_lock(&arena.mutex);
    int locked = arena.start == NULL || arena.locked;
    pthread_mutex_unlock(&arena.mutex);
    return locked;
}
