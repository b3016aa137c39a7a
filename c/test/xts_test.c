/* AES-256-XTS of xts.c: the specification's vectors, runs of sectors, hostile arguments, threads.
 */
#include "xts.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/sha.h>

#include "test.h"

enum { SECTOR = UBIBLK_XTS_SECTOR_SIZE };

static uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

/* The keys of test-vectors, section 1. */
static uint64_t vector_context(void)
{
    uint8_t key1[32], key2[32];

    for (int i = 0; i < 32; i++) {
        key1[i] = (uint8_t)i;
        key2[i] = (uint8_t)(0x80 + i);
    }
    int64_t context = ubiblk_xts_new(key1, key2);
    CHECK(context > 0);
    return (uint64_t)context;
}

static void fill_plaintext(uint8_t *sector)
{
    for (int i = 0; i < SECTOR; i++)
        sector[i] = (uint8_t)(7 * i + 3);
}

static int is_hex(const uint8_t *bytes, size_t length, const char *hex)
{
    char text[3];

    if (strlen(hex) != 2 * length)
        return 0;
    for (size_t i = 0; i < length; i++) {
        snprintf(text, sizeof(text), "%02x", bytes[i]);
        if (memcmp(text, hex + 2 * i, 2) != 0)
            return 0;
    }
    return 1;
}

static void encrypts_the_vectors(void)
{
    static const struct {
        uint64_t sector;
        const char *first, *last, *sha256;
    } vectors[] = {
        {0, "e1239fff098de762b5a0a36567df4ff6", "4b7201dd62e250737c7302dd8668ece6",
         "acb33ed5938efb04f70925062b2194e3216f341db35d390486c921dee2e5bed7"},
        {1, "7e58bcf3faf91e3d09bc32192d1447d7", "cc4331c18a956529c00b3254b881dec8",
         "a00b313d739738118c87b5d1dd167d42399e93ca7f6df6f6398a7607885d40c6"},
        {2048, "3d1d56ea376a7bf32edb0b8e4c4f6d57", "d6346488071d9590e717b957ef70b1c6",
         "f73bc2e2449155f70e2eee1c82e89e05018187b8c4918ddcda07d6ba4d03123e"},
        {0x1122334455667788, "31d3e15dd9c225d0f46fb19099639d0c", "94a8b42c3d7107b6d13f55f901a64f90",
         "f56d0d7c7e3816645735b172eba8c707cd80f9ee267859b0c9bb96261aeee8d2"},
        {1ULL << 60, "820ea0a3516332c2af76e0982bb2df2f", "1f13c1b31cec0e818be503f5fca8fad7",
         "871f2483ba8b36f4cca5732ece45115f0b4a33865189092677a5255d64247070"},
    };
    uint64_t context = vector_context();
    uint8_t plain[SECTOR], cipher[SECTOR], back[SECTOR], digest[SHA256_DIGEST_LENGTH];

    fill_plaintext(plain);
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        uint64_t sector = vectors[i].sector;
        CHECK_EQUAL(ubiblk_xts_encrypt(context, sector, 1, address(plain), address(cipher)), 0);
        CHECK(is_hex(cipher, 16, vectors[i].first));
        CHECK(is_hex(cipher + SECTOR - 16, 16, vectors[i].last));
        CHECK(is_hex(SHA256(cipher, SECTOR, digest), sizeof(digest), vectors[i].sha256));
        CHECK_EQUAL(ubiblk_xts_decrypt(context, sector, 1, address(cipher), address(back)), 0);
        CHECK(memcmp(plain, back, SECTOR) == 0);
    }
    ubiblk_xts_free(context);
}

static void accepts_equal_keys(void)
{
    uint8_t key[32], zero[SECTOR] = {0}, cipher[SECTOR], back[SECTOR];
    uint8_t digest[SHA256_DIGEST_LENGTH];

    memset(key, 7, sizeof(key));
    uint64_t context = (uint64_t)ubiblk_xts_new(key, key);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, 0, 1, address(zero), address(cipher)), 0);
    CHECK(is_hex(cipher, 16, "706cd42abb9c668c556220b558e41d37"));
    /* The whole sector, as isa-l_crypto 2.26, which takes such keys, has it. */
    CHECK(is_hex(SHA256(cipher, SECTOR, digest), sizeof(digest),
                 "a6cc769b8f75e60ff7cad498da87fc4b549a968fdf1ce45bff3e7a1427024fce"));
    CHECK_EQUAL(ubiblk_xts_decrypt(context, 0, 1, address(cipher), address(back)), 0);
    CHECK(memcmp(zero, back, SECTOR) == 0);
    CHECK_EQUAL(ubiblk_xts_decrypt(context, 0, 1, address(cipher), address(cipher)), 0);
    CHECK(memcmp(zero, cipher, SECTOR) == 0);
    ubiblk_xts_free(context);
}

static void run_equals_its_sectors_one_by_one(void)
{
    enum { SECTORS = 37 };
    uint8_t equal[32];
    memset(equal, 9, sizeof(equal));
    uint64_t contexts[] = {vector_context(), (uint64_t)ubiblk_xts_new(equal, equal)};
    uint8_t *plain = calloc(SECTORS, SECTOR), *run = malloc(SECTORS * SECTOR), one[SECTOR];

    for (int c = 0; c < 2; c++) {
        CHECK_EQUAL(ubiblk_xts_encrypt(contexts[c], 1000, SECTORS, address(plain), address(run)),
                    0);
        for (int i = 0; i < SECTORS; i++) {
            CHECK_EQUAL(ubiblk_xts_encrypt(contexts[c], 1000 + i, 1, address(plain), address(one)),
                        0);
            CHECK(memcmp(run + i * SECTOR, one, SECTOR) == 0);
            CHECK(i == 0 || memcmp(run, one, SECTOR) != 0);
        }
        CHECK_EQUAL(ubiblk_xts_decrypt(contexts[c], 1000, SECTORS, address(run), address(run)), 0);
        CHECK(memcmp(run, plain, SECTORS * SECTOR) == 0);
        ubiblk_xts_free(contexts[c]);
    }
    free(plain);
    free(run);
}

static void works_in_place_and_at_odd_addresses(void)
{
    uint64_t context = vector_context();
    uint8_t plain[SECTOR], expected[SECTOR], buffer[SECTOR + 16];

    fill_plaintext(plain);
    ubiblk_xts_encrypt(context, 5, 1, address(plain), address(expected));
    for (int shift = 0; shift < 16; shift++) {
        memcpy(buffer + shift, plain, SECTOR);
        CHECK_EQUAL(
            ubiblk_xts_encrypt(context, 5, 1, address(buffer + shift), address(buffer + shift)), 0);
        CHECK(memcmp(buffer + shift, expected, SECTOR) == 0);
        CHECK_EQUAL(
            ubiblk_xts_decrypt(context, 5, 1, address(buffer + shift), address(buffer + shift)), 0);
        CHECK(memcmp(buffer + shift, plain, SECTOR) == 0);
    }
    ubiblk_xts_free(context);
}

static void refuses_impossible_arguments(void)
{
    uint8_t key[32] = {1}, sector[SECTOR] = {0};
    uint64_t context = vector_context(), at = address(sector);

    CHECK_EQUAL(ubiblk_xts_new(NULL, key), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_new(key, NULL), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt(0, 0, 1, at, at), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, 0, 1, 0, at), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_decrypt(context, 0, 1, at, 0), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, UINT64_MAX, 2, at, at), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, 0, UINT64_MAX, at, at), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, UINT64_MAX, 1, at, at), 0);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, UINT64_MAX, 0, at, at), 0);
    CHECK_EQUAL(ubiblk_xts_free(0), 0);
    ubiblk_xts_free(context);
}

struct thread_task {
    uint64_t context, first_sector;
    int mismatches;
};

static void *cipher_many(void *argument)
{
    struct thread_task *task = argument;
    uint8_t plain[4 * SECTOR], work[4 * SECTOR];

    for (int i = 0; i < 4 * SECTOR; i++)
        plain[i] = (uint8_t)(i * 13 + (int)task->first_sector);
    for (int turn = 0; turn < 50; turn++) {
        uint64_t sector = task->first_sector + (uint64_t)turn;
        memcpy(work, plain, sizeof(work));
        if (ubiblk_xts_encrypt(task->context, sector, 4, address(work), address(work)) != 0 ||
            ubiblk_xts_decrypt(task->context, sector, 4, address(work), address(work)) != 0 ||
            memcmp(work, plain, sizeof(work)) != 0)
            task->mismatches++;
    }
    return NULL;
}

/* More threads than a context has room for at once. */
static void serves_many_threads_on_one_context(void)
{
    enum { THREADS = 200 };
    uint8_t equal[32] = {3};
    uint64_t contexts[] = {vector_context(), (uint64_t)ubiblk_xts_new(equal, equal)};
    static pthread_t threads[THREADS];
    static struct thread_task tasks[THREADS];

    for (int i = 0; i < THREADS; i++) {
        tasks[i] = (struct thread_task){contexts[i % 2], (uint64_t)i << 32, 0};
        CHECK_EQUAL(pthread_create(&threads[i], NULL, cipher_many, &tasks[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQUAL(tasks[i].mismatches, 0);
    }
    ubiblk_xts_free(contexts[0]);
    ubiblk_xts_free(contexts[1]);
}

static void names_the_cipher_library(void)
{
    char name[64];
    int length = ubiblk_cipher_library(name, sizeof(name));

    CHECK_EQUAL(length, strlen(name));
    CHECK(strncmp(name, "OpenSSL 3.", 10) == 0 || strncmp(name, "isa-l_crypto 2.", 15) == 0);
    CHECK_EQUAL(ubiblk_cipher_library(name, (uint32_t)length + 1), length);
    CHECK_EQUAL(ubiblk_cipher_library(name, (uint32_t)length), -ENOSPC);
}

int main(void)
{
    RUN(encrypts_the_vectors);
    RUN(accepts_equal_keys);
    RUN(run_equals_its_sectors_one_by_one);
    RUN(works_in_place_and_at_odd_addresses);
    RUN(refuses_impossible_arguments);
    RUN(serves_many_threads_on_one_context);
    RUN(names_the_cipher_library);
    return test_summary();
}
