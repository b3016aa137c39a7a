/* secret.c: the arena of keys, and that neither our ciphers nor OpenSSL keep keys anywhere else. */
#include "secret.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "gcm.h"
#include "search.h"
#include "test.h"
#include "xts.h"

enum { MIB = 1024 * 1024, ARENA = 64 * MIB, LOCK_STEP = 4 * MIB, NOBODY = 65534 };

static int is_zero(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != 0)
            return 0;
    return 1;
}

/* Runs a part in a process of its own: what it does to the arena ends with it. */
static void in_child(void (*part)(void))
{
    int status = -1;
    fflush(stdout);
    pid_t child = fork();

    if (child == 0) {
        test_failures = 0;
        part();
        fflush(stdout);
        _exit(test_failures != 0);
    }
    CHECK_EQUAL(waitpid(child, &status, 0), child);
    CHECK_EQUAL(status, 0);
}

static void blocks_are_zeroed_aligned_and_apart(void)
{
    enum { COUNT = 40 };
    uint8_t *blocks[COUNT];

    for (size_t i = 0; i < COUNT; i++) {
        blocks[i] = secret_alloc(i * 7 + 1);
        CHECK(blocks[i] != NULL);
        CHECK_EQUAL(address(blocks[i]) % 64, 0);
        CHECK(is_zero(blocks[i], i * 7 + 1));
        memset(blocks[i], (int)i + 1, i * 7 + 1);
    }
    for (size_t i = 0; i < COUNT; i++) {
        for (size_t at = 0; at < i * 7 + 1; at++)
            CHECK_EQUAL(blocks[i][at], i + 1);
        secret_free(blocks[i]);
    }
}

static void freed_blocks_are_wiped_and_used_again(void)
{
    uint8_t *first = secret_alloc(100), *second = secret_alloc(100);

    CHECK(first != NULL && second != NULL && first != second);
    memset(first, 0xaa, 100);
    memset(second, 0xbb, 100);
    secret_free(first);
    /* The arena stays mapped: what a block held can still be looked at. */
    CHECK(is_zero(first, 128));
    CHECK_EQUAL(second[99], 0xbb);

    uint8_t *other_size = secret_alloc(300);
    CHECK(other_size != first);
    uint8_t *again = secret_alloc(128);
    CHECK(again == first);
    CHECK(is_zero(again, 128));
    secret_free(again);
    secret_free(second);
    secret_free(other_size);
    secret_free(NULL);
}

static void gives_typescript_addresses_or_errors(void)
{
    int64_t at = ubiblk_secret_alloc(32);

    CHECK(at > 0 && at % 64 == 0);
    memset((void *)(uintptr_t)at, 0xcc, 32);
    CHECK_EQUAL(ubiblk_secret_free((uint64_t)at), 0);
    CHECK(is_zero((const uint8_t *)(uintptr_t)at, 32));
    CHECK_EQUAL(ubiblk_secret_free(0), 0);
    CHECK_EQUAL(ubiblk_secret_alloc(0), -ENOMEM);
    CHECK_EQUAL(ubiblk_secret_alloc(ARENA), -ENOMEM);
    CHECK_EQUAL(ubiblk_secret_alloc(ARENA + 1), -ENOMEM);
    CHECK_EQUAL(ubiblk_secret_alloc(UINT32_MAX), -ENOMEM);
    CHECK(secret_alloc(SIZE_MAX) == NULL);
}

/* Takes blocks of `size` bytes until there are none, linked through their first bytes. */
static int take_all(size_t size, void **last)
{
    int count = 0;

    for (void **block; count < ARENA && (block = secret_alloc(size)) != NULL; count++) {
        *block = *last;
        *last = block;
    }
    return count;
}

static void give_back(void **last)
{
    for (void *block = *last, *next; block != NULL; block = next) {
        next = *(void **)block;
        secret_free(block);
    }
    *last = NULL;
}

static void ciphers_without_an_arena(void)
{
    uint8_t key[32] = {1}, other[32] = {2}, wrapped[48];
    void *large = NULL, *small = NULL;

    CHECK(take_all(4096, &large) > 100);
    CHECK(take_all(64, &small) > 0);
    CHECK_EQUAL(ubiblk_secret_alloc(1), -ENOMEM);
    CHECK_EQUAL(ubiblk_xts_new(key, other), -ENOMEM);
    CHECK_EQUAL(ubiblk_xts_new(key, key), -ENOMEM);
    CHECK_EQUAL(ubiblk_gcm_wrap(address(key), other, key, sizeof(key), address(other), 32, wrapped),
                -EIO);
    CHECK_EQUAL(
        ubiblk_gcm_unwrap(address(key), other, key, sizeof(key), wrapped, 48, address(other)),
        -EIO);

    int count = take_all(64, &small);
    CHECK_EQUAL(count, 0);
    give_back(&small);
    give_back(&large);
    /* All of it comes back, none of it in other sizes. */
    CHECK(take_all(4096, &large) > 100);
    CHECK_EQUAL(ubiblk_secret_alloc(5000), -ENOMEM);
    give_back(&large);
}

static void an_arena_that_is_used_up_is_an_error(void)
{
    in_child(ciphers_without_an_arena);
}

/* Bytes of the arena that are left to the child. */
static size_t left;

static void make_ciphers_of_what_is_left(void)
{
    uint8_t key[32] = {1}, other[32] = {2}, sector[512] = {0}, wrapped[48];
    int enough = left >= 65536;

    CHECK(secret_alloc(ARENA - 64 - left) != NULL);
    for (int equal = 0; equal < 2; equal++) {
        int64_t context = ubiblk_xts_new(key, equal ? key : other);
        CHECK(context > 0 || (!enough && (context == -ENOMEM || context == -EIO)));
        if (context > 0) {
            int result =
                ubiblk_xts_encrypt((uint64_t)context, 0, 1, address(sector), address(sector));
            CHECK(result == 0 || (!enough && result == -ENOMEM));
            ubiblk_xts_free((uint64_t)context);
        }
    }
    int result = ubiblk_gcm_wrap(address(key), other, key, 32, address(other), 32, wrapped);
    CHECK(result == 0 || (!enough && result == -EIO));
}

/* The arena may end anywhere within the making of a cipher or of its copies. */
static void a_cipher_that_does_not_fit_is_an_error(void)
{
    for (left = 64; left < 20000; left += 320)
        in_child(make_ciphers_of_what_is_left);
    left = 65536;
    in_child(make_ciphers_of_what_is_left);
}

/* Whether the flags that the kernel shows for the mapping of `pointer` have this one. */
static int has_flag(const void *pointer, const char *flag)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    char line[512];
    int inside = 0, found = 0;

    CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            inside = address(pointer) >= start && address(pointer) < end;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, flag) != NULL;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

static const void *parents_secret;

static void look_for_the_parents_arena(void)
{
    void *page = (void *)((uintptr_t)parents_secret & ~(uintptr_t)4095);

    CHECK_EQUAL(msync(page, 4096, MS_ASYNC), -1);
    CHECK_EQUAL(errno, ENOMEM);
}

static void the_arena_is_locked_and_in_no_dump_and_no_child(void)
{
    void *secret = secret_alloc(64);

    CHECK(has_flag(secret, " dd"));
    CHECK(has_flag(secret, " dc"));
    CHECK_EQUAL(ubiblk_secret_locked(), has_flag(secret, " lo"));
    parents_secret = secret;
    in_child(look_for_the_parents_arena);
    secret_free(secret);
}

/* Lets this process lock so many bytes. */
static void limit_locked_memory(size_t most)
{
    struct rlimit limit = {most, most};

    CHECK_EQUAL(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    if (geteuid() == 0)
        CHECK_EQUAL(setresuid(NOBODY, NOBODY, NOBODY), 0);
}

static void use_an_arena_that_cannot_be_locked(void)
{
    limit_locked_memory(0);
    CHECK_EQUAL(ubiblk_secret_locked(), 1);
    uint8_t *secret = secret_alloc(64);
    CHECK(secret != NULL);
    CHECK_EQUAL(ubiblk_secret_locked(), 0);
    memset(secret, 1, 64);
    secret_free(secret);
    CHECK(is_zero(secret, 64));
}

static void secrets_work_where_memory_cannot_be_locked(void)
{
    in_child(use_an_arena_that_cannot_be_locked);
}

static void use_more_than_can_be_locked(void)
{
    limit_locked_memory(LOCK_STEP);
    void *first = secret_alloc(64);
    CHECK(has_flag(first, " lo"));
    CHECK_EQUAL(ubiblk_secret_locked(), 1);
    CHECK(secret_alloc(LOCK_STEP) != NULL);
    CHECK_EQUAL(ubiblk_secret_locked(), 0);
    CHECK(has_flag(first, " lo"));
    CHECK(secret_alloc(64) != NULL);
}

/* Few secrets are locked also where the limit is far below the size of the arena. */
static void what_is_used_is_locked(void)
{
    in_child(use_more_than_can_be_locked);
}

/* Two keys that are nowhere else in memory, halves of which are what is looked for. */
static void make_keys(uint8_t *keys, uint32_t random)
{
    needle_count = 0;
    for (int i = 0; i < 64; i++) {
        random = random * 1103515245 + 12345;
        keys[i] = (uint8_t)(random >> 16);
    }
    for (int i = 0; i < 64; i += NEEDLE)
        look_for(keys + i);
}

static void the_search_finds_what_is_left(void)
{
    uint8_t *keys = malloc(64);

    make_keys(keys, 1);
    struct found found = search();
    CHECK_EQUAL(found.inside, 0);
    CHECK_EQUAL(found.outside, 4);
    OPENSSL_cleanse(keys, 64);
    found = search();
    CHECK_EQUAL(found.outside, 0);
    free(keys);
}

static void *encrypt_a_sector(void *context)
{
    uint8_t sector[512] = {0};

    CHECK_EQUAL(ubiblk_xts_encrypt(*(uint64_t *)context, 0, 1, address(sector), address(sector)),
                0);
    return NULL;
}

static void check_keys_of_xts(int equal)
{
    enum { THREADS = 3 };
    uint8_t *keys = malloc(64);
    pthread_t threads[THREADS];

    make_keys(keys, equal ? 2 : 3);
    int64_t made = ubiblk_xts_new(keys, keys + (equal ? 0 : 32));
    CHECK(made > 0);
    uint64_t context = (uint64_t)made;
    OPENSSL_cleanse(keys, 64);
    free(keys);
    struct found found = search();
    CHECK(found.inside > 0);
    CHECK_EQUAL(found.outside, 0);

    for (int i = 0; i < THREADS; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, encrypt_a_sector, &context), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    encrypt_a_sector(&context);
    found = search();
    CHECK(found.inside > 0);
    CHECK_EQUAL(found.outside, 0);

    ubiblk_xts_free(context);
    found = search();
    CHECK_EQUAL(found.inside, 0);
    CHECK_EQUAL(found.outside, 0);
}

static void keys_of_xts_are_in_the_arena_alone(void)
{
    check_keys_of_xts(0);
    check_keys_of_xts(1);
}

static void keys_and_plaintext_of_gcm_are_in_the_arena_alone(void)
{
    static const uint8_t nonce[12] = {1}, aad[3] = {2};
    uint8_t *key = secret_alloc(32), *plain = secret_alloc(32), *back = secret_alloc(32);
    uint8_t keys[64], wrapped[48], garbled[48];

    make_keys(keys, 4);
    memcpy(key, keys, 32);
    memcpy(plain, keys + 32, 32);
    OPENSSL_cleanse(keys, sizeof(keys));
    CHECK_EQUAL(ubiblk_gcm_wrap(address(key), nonce, aad, 3, address(plain), 32, wrapped), 0);
    CHECK_EQUAL(ubiblk_gcm_unwrap(address(key), nonce, aad, 3, wrapped, 48, address(back)), 0);
    CHECK(memcmp(plain, back, 32) == 0);
    memcpy(garbled, wrapped, 48);
    garbled[47] ^= 1;
    CHECK_EQUAL(ubiblk_gcm_unwrap(address(key), nonce, aad, 3, garbled, 48, address(back)),
                -EBADMSG);
    struct found found = search();
    CHECK_EQUAL(found.inside, 4);
    CHECK_EQUAL(found.outside, 0);
    secret_free(key);
    secret_free(plain);
    secret_free(back);
    found = search();
    CHECK_EQUAL(found.inside, 0);
    CHECK_EQUAL(found.outside, 0);
}

int main(void)
{
    /* A child has no arena of its parent's: these come before this process has one. */
    RUN(an_arena_that_is_used_up_is_an_error);
    RUN(a_cipher_that_does_not_fit_is_an_error);
    RUN(secrets_work_where_memory_cannot_be_locked);
    RUN(what_is_used_is_locked);

    RUN(blocks_are_zeroed_aligned_and_apart);
    RUN(freed_blocks_are_wiped_and_used_again);
    RUN(gives_typescript_addresses_or_errors);
    RUN(the_arena_is_locked_and_in_no_dump_and_no_child);
    RUN(the_search_finds_what_is_left);
    RUN(keys_of_xts_are_in_the_arena_alone);
    RUN(keys_and_plaintext_of_gcm_are_in_the_arena_alone);
    return test_summary();
}
