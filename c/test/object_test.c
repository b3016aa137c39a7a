/* object.c: stripes to objects and back, and objects that are no such thing. */
#include "object.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "test.h"

enum { STRIPE = 8 * 512, ROUNDS = 20000 };

/* Of their exact sizes, so that the sanitizers see each byte beyond. */
static uint8_t *stripe, *object;
static size_t room;

static void prepare(uint32_t compression)
{
    room = ubiblk_object_bound(compression, STRIPE);
    stripe = malloc(STRIPE);
    object = malloc(room);
    for (size_t i = 0; i < STRIPE; i++)
        stripe[i] = (uint8_t)(i % 61 + (size_t)rand() % 3);
}

static void release(void)
{
    free(stripe);
    free(object);
}

static int64_t unseal(uint32_t compression, const uint8_t *bytes, uint64_t length, uint64_t size)
{
    uint8_t *copy = malloc(length ? length : 1), *to = malloc(size);
    memcpy(copy, bytes, length);
    struct ubiblk_unseal job = {.object = (uintptr_t)copy,
                                .object_length = length,
                                .stripe = (uintptr_t)to,
                                .stripe_length = size,
                                .compression = compression};
    ubiblk_sha256(copy, length, job.hash);
    int64_t result = ubiblk_unseal(&job);
    if (result == STRIPE && size == STRIPE)
        CHECK(memcmp(to, stripe, STRIPE) == 0);
    job.hash[0] ^= 1;
    CHECK_EQUAL(ubiblk_unseal(&job), -EBADMSG);
    free(copy);
    free(to);
    return result;
}

static int64_t seal(uint32_t compression)
{
    struct ubiblk_seal job = {.stripe = (uintptr_t)stripe,
                              .stripe_length = STRIPE,
                              .object = (uintptr_t)object,
                              .object_size = room,
                              .compression = compression,
                              .level = 3};
    return ubiblk_seal(&job);
}

static void stripes_come_back(void)
{
    for (uint32_t compression = UBIBLK_SNAPPY; compression <= UBIBLK_ZSTD; compression++) {
        prepare(compression);
        int64_t length = seal(compression);
        CHECK(length > 0 && length < STRIPE && length % 512 == 0);
        CHECK_EQUAL(unseal(compression, object, (uint64_t)length, STRIPE), STRIPE);
        CHECK_EQUAL(unseal(compression, object, (uint64_t)length, STRIPE - 512), -EFBIG);
        room--;
        CHECK_EQUAL(seal(compression), -ENOSPC);
        release();
    }
}

static void what_is_damaged_touches_nothing_else(void)
{
    for (uint32_t compression = UBIBLK_UNCOMPRESSED; compression <= UBIBLK_ZSTD; compression++) {
        prepare(compression);
        int64_t length = seal(compression);
        const uint8_t *bytes = compression == UBIBLK_UNCOMPRESSED ? stripe : object;
        uint8_t *changed = malloc((size_t)length);
        for (int i = 0; i < ROUNDS; i++) {
            memcpy(changed, bytes, (size_t)length);
            for (int flips = 1 + rand() % 3; flips > 0; flips--)
                changed[(size_t)rand() % (size_t)length] ^= (uint8_t)(1 << rand() % 8);
            size_t cut = rand() % 4 ? (size_t)length : (size_t)rand() % (size_t)length;
            (void)unseal(compression, changed, cut, STRIPE + 512);
        }
        free(changed);
        release();
    }
}

static void hmac_is_that_of_rfc_4231(void)
{
    uint8_t key[20], tag[32];
    static const uint8_t start[] = {0xb0, 0x34, 0x4c, 0x61};
    memset(key, 0x0b, sizeof(key));
    CHECK_EQUAL(ubiblk_hmac_sha256(key, sizeof(key), "Hi There", 8, tag), 0);
    CHECK(memcmp(tag, start, sizeof(start)) == 0);
}

int main(void)
{
    srand(1);
    RUN(stripes_come_back);
    RUN(what_is_damaged_touches_nothing_else);
    RUN(hmac_is_that_of_rfc_4231);
    return test_summary();
}
