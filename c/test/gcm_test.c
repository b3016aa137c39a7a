/* gcm.c: the specification's vectors, everything that must not unwrap, and strict base64. */
#include "gcm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "test.h"

static uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

/* The KEK of test-vectors, section 2. */
static uint8_t key[32], nonce[12];
static const uint8_t aad[] = {'t', 'e', 's', 't', '-', 'a', 'a', 'd'};
enum { AAD_LENGTH = sizeof(aad), TAG = UBIBLK_GCM_TAG_SIZE, LONGEST = 32 };

struct vector {
    uint8_t plain[LONGEST];
    uint32_t length;
    const char *wrapped;
};

static struct vector vectors[4];

static void set_vector(int i, const void *plain, uint32_t length, const char *wrapped)
{
    memcpy(vectors[i].plain, plain, length);
    vectors[i].length = length;
    vectors[i].wrapped = wrapped;
}

static void set_vectors(void)
{
    uint8_t key1[32], key2[32];

    memset(key, 0x11, sizeof(key));
    memset(nonce, 0x22, sizeof(nonce));
    memset(key1, 0xaa, sizeof(key1));
    memset(key2, 0xbb, sizeof(key2));
    set_vector(0, key1, 32, "vV2t42plNfVPlXSW4gxDf7U5Z0jAKwbh+OWgQqNLz6n+4sMt/PyELccAmGBh1DGw");
    set_vector(1, key2, 32, "rEy88nt0JORehGWH8x1SbqQodlnROhfw6fSxU7Ja3riwtDtpPsivkd9BJMY3vTuu");
    set_vector(2, "0123456789ABCDEF", 16, "J8Y1evT6qWjdBp9+C+Ksk+PlMD0fR8CD0cfV0dppTOs=");
    set_vector(3, "AKIAEXAMPLE", 11, "VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m");
}

static int decode(const char *text, uint8_t *bytes)
{
    return ubiblk_base64_decode(address(text), (uint32_t)strlen(text), address(bytes));
}

static int unwrap(const uint8_t *wrapped, uint32_t length, uint8_t *plain)
{
    return ubiblk_gcm_unwrap(address(key), nonce, aad, AAD_LENGTH, wrapped, length, address(plain));
}

static int is_zero(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (bytes[i] != 0)
            return 0;
    return 1;
}

static void wraps_and_unwraps_the_vectors(void)
{
    for (int i = 0; i < 4; i++) {
        const struct vector *vector = &vectors[i];
        uint8_t expected[LONGEST + TAG], wrapped[LONGEST + TAG], plain[LONGEST];
        CHECK_EQUAL(decode(vector->wrapped, expected), vector->length + TAG);
        CHECK_EQUAL(ubiblk_gcm_wrap(address(key), nonce, aad, AAD_LENGTH, address(vector->plain),
                                    vector->length, wrapped),
                    0);
        CHECK(memcmp(wrapped, expected, vector->length + TAG) == 0);
        CHECK_EQUAL(unwrap(expected, vector->length + TAG, plain), 0);
        CHECK(memcmp(plain, vector->plain, vector->length) == 0);
    }
}

static void any_bit_changed_gives_zeroes(void)
{
    uint8_t wrapped[LONGEST + TAG], plain[LONGEST];
    int length = decode(vectors[3].wrapped, wrapped);

    CHECK_EQUAL(length, 11 + TAG);
    for (int bit = 0; bit < 8 * length; bit++) {
        wrapped[bit / 8] ^= (uint8_t)(1 << bit % 8);
        memset(plain, 0xee, sizeof(plain));
        CHECK_EQUAL(unwrap(wrapped, (uint32_t)length, plain), -EBADMSG);
        CHECK(is_zero(plain, 11));
        CHECK_EQUAL(plain[11], 0xee);
        wrapped[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK_EQUAL(unwrap(wrapped, (uint32_t)length, plain), 0);
}

static void another_key_nonce_or_data_does_not_unwrap(void)
{
    uint8_t wrapped[LONGEST + TAG], plain[LONGEST], other_key[32], other_nonce[12];
    uint32_t length = (uint32_t)decode(vectors[0].wrapped, wrapped);
    uint64_t out = address(plain);

    memcpy(other_key, key, sizeof(key));
    other_key[31] ^= 1;
    memcpy(other_nonce, nonce, sizeof(nonce));
    other_nonce[11] ^= 1;
    CHECK_EQUAL(ubiblk_gcm_unwrap(address(other_key), nonce, aad, AAD_LENGTH, wrapped, length, out),
                -EBADMSG);
    CHECK_EQUAL(ubiblk_gcm_unwrap(address(key), other_nonce, aad, AAD_LENGTH, wrapped, length, out),
                -EBADMSG);
    CHECK_EQUAL(ubiblk_gcm_unwrap(address(key), nonce, aad, AAD_LENGTH - 1, wrapped, length, out),
                -EBADMSG);
    CHECK_EQUAL(ubiblk_gcm_unwrap(address(key), nonce, NULL, 0, wrapped, length, out), -EBADMSG);
    /* Cut off, or with a byte too many. */
    CHECK_EQUAL(unwrap(wrapped, length - 1, plain), -EBADMSG);
    CHECK_EQUAL(unwrap(wrapped + 1, length - 1, plain), -EBADMSG);
}

static void lengths_at_their_limits(void)
{
    uint8_t wrapped[TAG], plain[1] = {0xee};

    /* A tag alone is nothing, wrapped. */
    CHECK_EQUAL(ubiblk_gcm_wrap(address(key), nonce, aad, AAD_LENGTH, address(plain), 0, wrapped),
                0);
    CHECK_EQUAL(unwrap(wrapped, TAG, plain), 0);
    wrapped[0] ^= 1;
    CHECK_EQUAL(unwrap(wrapped, TAG, plain), -EBADMSG);
    CHECK_EQUAL(plain[0], 0xee);
    for (uint32_t length = 0; length < TAG; length++)
        CHECK_EQUAL(unwrap(wrapped, length, plain), -EINVAL);
    CHECK_EQUAL(unwrap(wrapped, UINT32_MAX, plain), -EINVAL);
    CHECK_EQUAL(
        ubiblk_gcm_wrap(address(key), nonce, aad, AAD_LENGTH, address(plain), UINT32_MAX, wrapped),
        -EIO);
}

static void works_without_additional_data_and_in_bulk(void)
{
    enum { LENGTH = 100000 };
    uint8_t *plain = malloc(LENGTH), *wrapped = malloc(LENGTH + TAG), *back = malloc(LENGTH);

    for (int i = 0; i < LENGTH; i++)
        plain[i] = (uint8_t)(i % 251);
    CHECK_EQUAL(ubiblk_gcm_wrap(address(key), nonce, NULL, 0, address(plain), LENGTH, wrapped), 0);
    CHECK_EQUAL(
        ubiblk_gcm_unwrap(address(key), nonce, NULL, 0, wrapped, LENGTH + TAG, address(back)), 0);
    CHECK(memcmp(plain, back, LENGTH) == 0);
    wrapped[LENGTH / 2] ^= 1;
    CHECK_EQUAL(
        ubiblk_gcm_unwrap(address(key), nonce, NULL, 0, wrapped, LENGTH + TAG, address(back)),
        -EBADMSG);
    CHECK(is_zero(back, LENGTH));
    free(plain);
    free(wrapped);
    free(back);
}

/* Against OpenSSL's encoder, with no byte more of memory than is promised. */
static void decodes_every_length(void)
{
    for (int length = 0; length < 70; length++) {
        uint8_t bytes[70], text[97];
        for (int i = 0; i < length; i++)
            bytes[i] = (uint8_t)(i * 37 + length * 101);
        int characters = EVP_EncodeBlock(text, bytes, length);
        uint8_t *in = malloc(characters ? (size_t)characters : 1);
        uint8_t *out = malloc(characters ? (size_t)characters / 4 * 3 : 1);
        memcpy(in, text, (size_t)characters);
        CHECK_EQUAL(ubiblk_base64_decode(address(in), (uint32_t)characters, address(out)), length);
        CHECK(memcmp(out, bytes, (size_t)length) == 0);
        free(in);
        free(out);
    }
}

static void knows_each_character_in_each_place(void)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (int place = 0; place < 4; place++) {
        for (int c = 0; c < 256; c++) {
            uint8_t text[] = {'A', 'A', 'A', 'A'}, bytes[3];
            text[place] = (uint8_t)c;
            int result = ubiblk_base64_decode(address(text), 4, address(bytes));
            const char *found = c ? strchr(alphabet, c) : NULL;
            if (found == NULL) {
                CHECK_EQUAL(result, place == 3 && c == '=' ? 2 : -EINVAL);
                continue;
            }
            CHECK_EQUAL(result, 3);
            CHECK_EQUAL(bytes[0] << 16 | bytes[1] << 8 | bytes[2], (found - alphabet)
                                                                       << (6 * (3 - place)));
        }
    }
}

static void refuses_what_is_not_quite_base64(void)
{
    static const char *const texts[] = {
        "Q",         "QQ",       "QQ=",      "QUI",      "QQ==Q", "QQ==QQ==", "QQ=Q",  "Q===",
        "====",      "=QQ=",     "==QQ",     "QR==",     "QS==",  "QUJ=",     "QUK=",  "QUJD\n",
        "QUJ\n",     "QUJD====", "QUJD    ", " QUJDQUJ", "QU-_",  "QU.,",     "QU JD", "QQ==\n",
        "QUJDQQ==A", "\n\n\n\n", "QUJDQUJ=", "QUJDQ===", "Q\tQ=",
    };
    uint8_t bytes[16];

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (decode(texts[i], bytes) != -EINVAL) {
            printf("'%s' was accepted\n", texts[i]);
            test_failures++;
        }
    }
    CHECK_EQUAL(ubiblk_base64_decode(address(bytes), UINT32_MAX - 3, address(bytes)), -EINVAL);
    CHECK_EQUAL(decode("", bytes), 0);
    CHECK_EQUAL(decode("QQ==", bytes), 1);
    CHECK_EQUAL(decode("QUI=", bytes), 2);
}

int main(void)
{
    set_vectors();
    RUN(wraps_and_unwraps_the_vectors);
    RUN(any_bit_changed_gives_zeroes);
    RUN(another_key_nonce_or_data_does_not_unwrap);
    RUN(lengths_at_their_limits);
    RUN(works_without_additional_data_and_in_bulk);
    RUN(decodes_every_length);
    RUN(knows_each_character_in_each_place);
    RUN(refuses_what_is_not_quite_base64);
    return test_summary();
}
