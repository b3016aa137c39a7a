/* AES-256-XTS of xts.c: the specification's vectors, runs of sectors, hostile arguments, threads.
 */
#include "xts.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

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

/* The memory for secrets stays mapped: a call that comes too late must not find keys of zeroes. */
static void refuses_a_context_that_is_freed(void)
{
    uint8_t equal[32] = {9}, sector[SECTOR] = {0};
    uint64_t contexts[] = {vector_context(), (uint64_t)ubiblk_xts_new(equal, equal)};
    uint64_t at = address(sector);
    struct iovec part = {sector, SECTOR};

    for (int c = 0; c < 2; c++) {
        ubiblk_xts_free(contexts[c]);
        CHECK_EQUAL(ubiblk_xts_encrypt(contexts[c], 0, 1, at, at), -EINVAL);
        CHECK_EQUAL(ubiblk_xts_decrypt(contexts[c], 0, 1, at, at), -EINVAL);
        CHECK_EQUAL(ubiblk_xts_encrypt_parts(contexts[c], 0, 1, address(&part), 1, 0, at), -EINVAL);
        CHECK_EQUAL(ubiblk_xts_decrypt_parts(contexts[c], 0, 1, at, address(&part), 1, 0), -EINVAL);
    }
}

/* Sectors in several parts, each in an allocation of its own: the sanitizer sees a step beside it.
 */
enum { PART_SECTORS = 5, PART_BYTES = PART_SECTORS * SECTOR, MAX_PARTS = PART_BYTES + 64 };

struct divided {
    struct iovec parts[MAX_PARTS];
    uint32_t count;
};

static void add_part(struct divided *divided, size_t length)
{
    struct iovec *part = &divided->parts[divided->count++];

    part->iov_base = malloc(length ? length : 1);
    part->iov_len = length;
    memset(part->iov_base, 0xee, length);
}

static void free_parts(struct divided *divided)
{
    for (uint32_t i = 0; i < divided->count; i++)
        free(divided->parts[i].iov_base);
    divided->count = 0;
}

/* Copies bytes to the parts, or from them, from byte `skip` of them on. */
static void move_bytes(const struct divided *divided, size_t skip, uint8_t *bytes, size_t length,
                       int to_parts)
{
    for (uint32_t i = 0; i < divided->count; i++) {
        uint8_t *part = divided->parts[i].iov_base;
        for (size_t at = 0; at < divided->parts[i].iov_len; at++) {
            if (skip > 0) {
                skip--;
            } else if (length > 0) {
                *(to_parts ? part + at : bytes) = *(to_parts ? bytes : part + at);
                bytes++;
                length--;
            }
        }
    }
    CHECK_EQUAL(length, 0);
}

static int untouched(const struct divided *divided, size_t from, size_t to)
{
    size_t at = 0;

    for (uint32_t i = 0; i < divided->count; i++)
        for (size_t j = 0; j < divided->parts[i].iov_len; j++, at++)
            if (at >= from && at < to && ((uint8_t *)divided->parts[i].iov_base)[j] != 0xee)
                return 0;
    return 1;
}

/* The parts, from `skip` on, must give and take what one run of memory does. */
static void check_divided(uint64_t context, const struct divided *divided, size_t skip)
{
    static uint8_t plain[PART_BYTES], expected[PART_BYTES], cipher[PART_BYTES], back[PART_BYTES];
    uint64_t iov = address(divided->parts);
    size_t whole = 0;

    for (uint32_t i = 0; i < divided->count; i++)
        whole += divided->parts[i].iov_len;
    for (int i = 0; i < PART_BYTES; i++)
        plain[i] = (uint8_t)(i * 11 + i / 256);
    CHECK_EQUAL(ubiblk_xts_encrypt(context, 77, PART_SECTORS, address(plain), address(expected)),
                0);

    CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, 77, PART_SECTORS, address(expected), iov,
                                         divided->count, skip),
                0);
    move_bytes(divided, skip, back, PART_BYTES, 0);
    CHECK(memcmp(back, plain, PART_BYTES) == 0);
    CHECK(untouched(divided, 0, skip));
    CHECK(untouched(divided, skip + PART_BYTES, whole));

    memset(cipher, 0, sizeof(cipher));
    CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, 77, PART_SECTORS, iov, divided->count, skip,
                                         address(cipher)),
                0);
    CHECK(memcmp(cipher, expected, PART_BYTES) == 0);
    /* The plain side is only read. */
    move_bytes(divided, skip, back, PART_BYTES, 0);
    CHECK(memcmp(back, plain, PART_BYTES) == 0);
}

static uint64_t equal_keys_context(void)
{
    uint8_t key[32];

    memset(key, 9, sizeof(key));
    int64_t context = ubiblk_xts_new(key, key);
    CHECK(context > 0);
    return (uint64_t)context;
}

static void takes_parts_divided_anywhere(void)
{
    /* Each row: lengths of parts up to the 0 that ends it; what is missing is one more part. */
    static const size_t rows[][8] = {
        {0},
        {SECTOR, SECTOR, 3 * SECTOR},
        {1},
        {SECTOR - 1, 2},
        {SECTOR + 1, SECTOR - 1, SECTOR},
        {100, 200, 300, 400, 500, 600},
        {2 * SECTOR + 511, 1, 1, 511},
        {3, 5, 7, 11, 13, 2 * SECTOR, 17},
    };
    uint64_t contexts[] = {vector_context(), equal_keys_context()};
    static struct divided divided;

    for (int c = 0; c < 2; c++) {
        for (size_t row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
            size_t left = PART_BYTES;
            for (int i = 0; i < 8 && rows[row][i] != 0; i++) {
                add_part(&divided, rows[row][i]);
                left -= rows[row][i];
            }
            add_part(&divided, left);
            check_divided(contexts[c], &divided, 0);
            free_parts(&divided);
        }
        ubiblk_xts_free(contexts[c]);
    }
}

static void takes_random_parts_from_any_byte_on(void)
{
    uint64_t context = vector_context();
    static struct divided divided;
    uint32_t random = 1;

    for (int turn = 0; turn < 200; turn++) {
        size_t skip = 0, left;
        random = random * 1103515245 + 12345;
        if (turn % 4 != 0)
            skip = random >> 8 & 0x7ff;
        /* Some bytes too many behind the last sector, too. */
        left = skip + PART_BYTES + (random >> 20 & 0xff);
        while (left > 0) {
            random = random * 1103515245 + 12345;
            size_t length = random >> 12 & (turn % 2 ? 0x1ff : 0x7ff);
            if (length > left)
                length = left;
            add_part(&divided, length);
            left -= length;
        }
        check_divided(context, &divided, skip);
        free_parts(&divided);
    }
    ubiblk_xts_free(context);
}

static void takes_parts_of_one_byte_and_of_none(void)
{
    uint64_t context = vector_context();
    static struct divided divided;

    for (int i = 0; i < PART_BYTES + 3; i++) {
        add_part(&divided, 1);
        if (i % 100 == 0)
            add_part(&divided, 0);
    }
    check_divided(context, &divided, 3);
    free_parts(&divided);

    add_part(&divided, 0);
    add_part(&divided, SECTOR);
    add_part(&divided, 0);
    add_part(&divided, 0);
    add_part(&divided, PART_BYTES - SECTOR);
    add_part(&divided, 0);
    free(divided.parts[3].iov_base);
    divided.parts[3].iov_base = NULL;
    check_divided(context, &divided, 0);
    free_parts(&divided);
    ubiblk_xts_free(context);
}

static void refuses_parts_that_hold_less(void)
{
    uint64_t context = vector_context();
    static struct divided divided;
    static uint8_t run[PART_BYTES];
    uint64_t iov = address(divided.parts), at = address(run);

    add_part(&divided, SECTOR + 7);
    add_part(&divided, 2 * SECTOR - 8);
    for (uint32_t count = 0; count <= 2; count++) {
        CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, 0, 3, iov, count, 0, at), -EINVAL);
        CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, 0, 3, at, iov, count, 0), -EINVAL);
    }
    /* One byte behind what is enough, the whole length, and more than there is. */
    static const uint64_t skips[] = {SECTOR, 3 * SECTOR - 1, 3 * SECTOR, UINT64_MAX};
    for (int i = 0; i < 4; i++) {
        CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, 0, 2, iov, 2, skips[i], at), -EINVAL);
        CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, 0, 2, at, iov, 2, skips[i]), -EINVAL);
    }
    CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, 0, 2, iov, 2, SECTOR - 1, at), 0);
    CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, 0, 2, at, iov, 2, SECTOR - 1), 0);

    CHECK_EQUAL(ubiblk_xts_encrypt_parts(0, 0, 1, iov, 2, 0, at), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_decrypt_parts(0, 0, 1, at, iov, 2, 0), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, UINT64_MAX, 2, iov, 2, 0, at), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, UINT64_MAX, 2, at, iov, 2, 0), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, 0, 1, iov, 2, 0, 0), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, 0, 1, 0, iov, 2, 0), -EINVAL);
    CHECK_EQUAL(ubiblk_xts_encrypt_parts(context, 0, 0, iov, 0, 0, at), 0);
    CHECK_EQUAL(ubiblk_xts_decrypt_parts(context, 0, 0, at, iov, 0, 0), 0);
    free_parts(&divided);
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
    RUN(refuses_a_context_that_is_freed);
    RUN(takes_parts_divided_anywhere);
    RUN(takes_random_parts_from_any_byte_on);
    RUN(takes_parts_of_one_byte_and_of_none);
    RUN(refuses_parts_that_hold_less);
    RUN(serves_many_threads_on_one_context);
    RUN(names_the_cipher_library);
    return test_summary();
}
