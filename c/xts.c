/*
 * AES-256-XTS: see xts.h for the contract.
 *
 * isa-l_crypto, where the build has it and the processor has its instructions, works on plain
 * expanded keys and so needs no state per call. OpenSSL needs a cipher context of its own for each
 * call under way: a context keeps a row of slots, each thread starts looking at a place of its
 * own, and so finds the contexts it used before. OpenSSL refuses XTS keys that are equal
 * ("duplicated keys"); for these XTS is composed here from its AES-ECB.
 */
#include "xts.h"

#include <endian.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#ifdef UBIBLK_ISAL_CRYPTO
#include <isa-l_crypto.h>
#endif

#include "secret.h"

#define BLOCK_SIZE        16
#define BLOCKS_PER_SECTOR (UBIBLK_XTS_SECTOR_SIZE / BLOCK_SIZE)
#define EXPANDED_KEY_SIZE (15 * 16)
/* More than the threads that cipher at once: 64 queues and a helper per core. */
#define SLOTS 128

enum engine {
    /* What a context becomes that is freed: whoever still has its handle must not write noise. */
    ENGINE_NONE,
    ENGINE_ISAL,
    ENGINE_OPENSSL_XTS,
    ENGINE_OPENSSL_ECB,
};

/*
 * A tweak input is stored in one go: read at once from two stores, it would wait for both to reach
 * the cache, which takes as long as an eighth of a sector's encryption.
 */
typedef uint64_t tweak_input __attribute__((vector_size(BLOCK_SIZE)));

/* The cipher contexts of one call: `tweak` only with ENGINE_OPENSSL_ECB. */
struct ciphers {
    EVP_CIPHER_CTX *encrypt;
    EVP_CIPHER_CTX *decrypt;
    EVP_CIPHER_CTX *tweak;
    /* Where the contexts keep their tweak inputs, NULL where they don't tell. */
    tweak_input *encrypt_input, *decrypt_input;
};

struct slot {
    _Alignas(64) atomic_int taken;
    struct ciphers ciphers;
};

struct ubiblk_xts {
    _Alignas(64) uint8_t data_key_encrypt[EXPANDED_KEY_SIZE];
    _Alignas(64) uint8_t data_key_decrypt[EXPANDED_KEY_SIZE];
    _Alignas(64) uint8_t tweak_key[EXPANDED_KEY_SIZE];
    enum engine engine;
    struct ciphers template;
    struct slot slots[SLOTS];
};

#ifdef UBIBLK_ISAL_CRYPTO

static int isal_usable(void)
{
#ifdef __x86_64__
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul") &&
           __builtin_cpu_supports("sse4.1");
#else
    return 1;
#endif
}

static int isal_init(struct ubiblk_xts *xts, const uint8_t *key1, const uint8_t *key2)
{
    uint8_t unused[EXPANDED_KEY_SIZE];
    int failed = isal_aes_keyexp_256(key1, xts->data_key_encrypt, xts->data_key_decrypt);

    failed |= isal_aes_keyexp_256(key2, xts->tweak_key, unused);
    OPENSSL_cleanse(unused, sizeof(unused));
    return failed ? -EIO : 0;
}

static int isal_sector(const struct ubiblk_xts *xts, int encrypt, const uint8_t *tweak,
                       const uint8_t *in, uint8_t *out)
{
    int failed;

    if (encrypt)
        failed = isal_aes_xts_enc_256_expanded_key(xts->tweak_key, xts->data_key_encrypt, tweak,
                                                   UBIBLK_XTS_SECTOR_SIZE, in, out);
    else
        failed = isal_aes_xts_dec_256_expanded_key(xts->tweak_key, xts->data_key_decrypt, tweak,
                                                   UBIBLK_XTS_SECTOR_SIZE, in, out);
    return failed ? -EIO : 0;
}

#else

static int isal_usable(void)
{
    return 0;
}

static int isal_init(struct ubiblk_xts *xts, const uint8_t *key1, const uint8_t *key2)
{
    (void)xts, (void)key1, (void)key2;
    return -ENOSYS;
}

static int isal_sector(const struct ubiblk_xts *xts, int encrypt, const uint8_t *tweak,
                       const uint8_t *in, uint8_t *out)
{
    (void)xts, (void)encrypt, (void)tweak, (void)in, (void)out;
    return -ENOSYS;
}

#endif

/* Eight zero bytes, then the sector number as LE64. */
static tweak_input input_of(uint64_t sector)
{
    return (tweak_input){0, htole64(sector)};
}

static void ciphers_free(struct ciphers *ciphers)
{
    EVP_CIPHER_CTX_free(ciphers->encrypt);
    EVP_CIPHER_CTX_free(ciphers->decrypt);
    EVP_CIPHER_CTX_free(ciphers->tweak);
    memset(ciphers, 0, sizeof(*ciphers));
}

static int cipher_new(EVP_CIPHER_CTX **out, const EVP_CIPHER *cipher, const uint8_t *key,
                      int encrypt)
{
    secrets_begin();
    *out = EVP_CIPHER_CTX_new();
    int works = *out != NULL && EVP_CipherInit_ex(*out, cipher, NULL, key, NULL, encrypt) &&
                EVP_CIPHER_CTX_set_padding(*out, 0);
    secrets_end();
    return works ? 0 : *out == NULL ? -ENOMEM : -EIO;
}

static int template_init(struct ubiblk_xts *xts, const uint8_t *key1, const uint8_t *key2)
{
    struct ciphers *template = &xts->template;
    const EVP_CIPHER *ecb = openssl()->ecb, *whole = openssl()->xts;
    int result;

    if (xts->engine == ENGINE_OPENSSL_ECB) {
        result = cipher_new(&template->tweak, ecb, key2, 1);
        if (result == 0)
            result = cipher_new(&template->encrypt, ecb, key1, 1);
        if (result == 0)
            result = cipher_new(&template->decrypt, ecb, key1, 0);
        return result;
    }

    uint8_t *keys = secret_alloc(2 * UBIBLK_XTS_KEY_SIZE);
    if (keys == NULL)
        return -ENOMEM;
    memcpy(keys, key1, UBIBLK_XTS_KEY_SIZE);
    memcpy(keys + UBIBLK_XTS_KEY_SIZE, key2, UBIBLK_XTS_KEY_SIZE);
    result = cipher_new(&template->encrypt, whole, keys, 1);
    if (result == 0)
        result = cipher_new(&template->decrypt, whole, keys, 0);
    secret_free(keys);
    return result;
}

int64_t ubiblk_xts_new(const uint8_t *key1, const uint8_t *key2)
{
    if (key1 == NULL || key2 == NULL)
        return -EINVAL;
    if (openssl() == NULL)
        return -EIO;
    struct ubiblk_xts *xts = secret_alloc(sizeof(*xts));
    if (xts == NULL)
        return -ENOMEM;

    if (CRYPTO_memcmp(key1, key2, UBIBLK_XTS_KEY_SIZE) == 0)
        xts->engine = ENGINE_OPENSSL_ECB;
    else
        xts->engine = isal_usable() ? ENGINE_ISAL : ENGINE_OPENSSL_XTS;
    int result =
        xts->engine == ENGINE_ISAL ? isal_init(xts, key1, key2) : template_init(xts, key1, key2);
    if (result != 0) {
        ubiblk_xts_free((uintptr_t)xts);
        return result;
    }
    return (int64_t)(uintptr_t)xts;
}

int ubiblk_xts_free(uint64_t handle)
{
    struct ubiblk_xts *xts = (struct ubiblk_xts *)(uintptr_t)handle;

    if (xts == NULL)
        return 0;
    for (int i = 0; i < SLOTS; i++)
        ciphers_free(&xts->slots[i].ciphers);
    ciphers_free(&xts->template);
    secret_free(xts);
    return 0;
}

static EVP_CIPHER_CTX *cipher_copy(const EVP_CIPHER_CTX *from, int *result)
{
    if (from == NULL || *result != 0)
        return NULL;
    secrets_begin();
    EVP_CIPHER_CTX *copy = EVP_CIPHER_CTX_new();
    int works = copy != NULL && EVP_CIPHER_CTX_copy(copy, from);
    secrets_end();
    if (!works) {
        EVP_CIPHER_CTX_free(copy);
        *result = -ENOMEM;
        return NULL;
    }
    return copy;
}

/*
 * Setting the tweak input through EVP_CipherInit_ex takes as long as the encryption of a sector.
 * Its place in the context is told by a function that is deprecated and has no successor; whether
 * it is told truly shows what the context says of it.
 */
static tweak_input *input_place(EVP_CIPHER_CTX *cipher)
{
    tweak_input told, probe = input_of(0x0123456789abcdef), other = input_of(0);

    /* The context must have had one the ordinary way first. */
    if (!EVP_CipherInit_ex(cipher, NULL, NULL, NULL, (const uint8_t *)&other, -1))
        return NULL;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    uint8_t *place = EVP_CIPHER_CTX_iv_noconst(cipher);
#pragma GCC diagnostic pop
    if (place == NULL || (uintptr_t)place % BLOCK_SIZE != 0)
        return NULL;
    *(tweak_input *)(void *)place = probe;
    if (!EVP_CIPHER_CTX_get_updated_iv(cipher, &told, sizeof(told)) ||
        memcmp(&told, &probe, sizeof(probe)) != 0)
        return NULL;
    return (tweak_input *)(void *)place;
}

/* Takes a slot for this call and gives it cipher contexts if it has none. */
static int slot_take(struct ubiblk_xts *xts, struct slot **out)
{
    static atomic_uint threads;
    static _Thread_local unsigned start = SLOTS;
    struct slot *slot;

    if (start == SLOTS)
        start = atomic_fetch_add(&threads, 1) % SLOTS;
    for (unsigned i = start;; i = (i + 1) % SLOTS) {
        slot = &xts->slots[i];
        if (atomic_exchange_explicit(&slot->taken, 1, memory_order_acquire) == 0)
            break;
        if ((i + 1) % SLOTS == start)
            sched_yield();
    }
    if (slot->ciphers.encrypt == NULL) {
        int result = 0;
        slot->ciphers.tweak = cipher_copy(xts->template.tweak, &result);
        slot->ciphers.decrypt = cipher_copy(xts->template.decrypt, &result);
        slot->ciphers.encrypt = cipher_copy(xts->template.encrypt, &result);
        if (result != 0) {
            ciphers_free(&slot->ciphers);
            atomic_store_explicit(&slot->taken, 0, memory_order_release);
            return result;
        }
        if (xts->engine == ENGINE_OPENSSL_XTS) {
            slot->ciphers.encrypt_input = input_place(slot->ciphers.encrypt);
            slot->ciphers.decrypt_input = input_place(slot->ciphers.decrypt);
        }
    }
    *out = slot;
    return 0;
}

static int xts_sector(EVP_CIPHER_CTX *cipher, tweak_input *place, tweak_input input,
                      const uint8_t *in, uint8_t *out)
{
    int length = 0;

    if (place != NULL)
        *place = input;
    else if (!EVP_CipherInit_ex(cipher, NULL, NULL, NULL, (const uint8_t *)&input, -1))
        return -EIO;
    if (!EVP_CipherUpdate(cipher, out, &length, in, UBIBLK_XTS_SECTOR_SIZE))
        return -EIO;
    return length == UBIBLK_XTS_SECTOR_SIZE ? 0 : -EIO;
}

/* The next block's tweak: multiplied by x in GF(2^128), IEEE 1619-2007, 5.2. */
static void tweak_double(uint8_t tweak[BLOCK_SIZE])
{
    uint8_t carry = 0;

    for (int i = 0; i < BLOCK_SIZE; i++) {
        uint8_t next = tweak[i] >> 7;
        tweak[i] = (uint8_t)(tweak[i] << 1 | carry);
        carry = next;
    }
    if (carry)
        tweak[0] ^= 0x87;
}

/* What is between the ciphers stays here: `out` may be memory that others see and change. */
static int ecb_sector(const struct ciphers *ciphers, int encrypt, uint8_t *tweak, const uint8_t *in,
                      uint8_t *out)
{
    uint8_t tweaks[UBIBLK_XTS_SECTOR_SIZE], inner[UBIBLK_XTS_SECTOR_SIZE];
    int length = 0;

    if (!EVP_CipherUpdate(ciphers->tweak, tweak, &length, tweak, BLOCK_SIZE))
        return -EIO;
    for (int block = 0; block < BLOCKS_PER_SECTOR; block++) {
        memcpy(tweaks + block * BLOCK_SIZE, tweak, BLOCK_SIZE);
        tweak_double(tweak);
    }
    for (int i = 0; i < UBIBLK_XTS_SECTOR_SIZE; i++)
        inner[i] = in[i] ^ tweaks[i];
    if (!EVP_CipherUpdate(encrypt ? ciphers->encrypt : ciphers->decrypt, inner, &length, inner,
                          UBIBLK_XTS_SECTOR_SIZE))
        return -EIO;
    for (int i = 0; i < UBIBLK_XTS_SECTOR_SIZE; i++)
        out[i] = inner[i] ^ tweaks[i];
    OPENSSL_cleanse(tweaks, sizeof(tweaks));
    OPENSSL_cleanse(inner, sizeof(inner));
    return length == UBIBLK_XTS_SECTOR_SIZE ? 0 : -EIO;
}

/* One call's work: a direction, and the contexts it has for itself with OpenSSL. */
struct call {
    struct ubiblk_xts *xts;
    struct slot *slot;
    int encrypt;
};

static int call_begin(struct call *call, int encrypt, uint64_t handle, uint64_t first_sector,
                      uint64_t sectors)
{
    call->xts = (struct ubiblk_xts *)(uintptr_t)handle;
    call->slot = NULL;
    call->encrypt = encrypt;
    if (call->xts == NULL || call->xts->engine == ENGINE_NONE)
        return -EINVAL;
    if (sectors != 0 &&
        (sectors - 1 > UINT64_MAX - first_sector || sectors > SIZE_MAX / UBIBLK_XTS_SECTOR_SIZE))
        return -EINVAL;
    return call->xts->engine == ENGINE_ISAL ? 0 : slot_take(call->xts, &call->slot);
}

static void call_end(const struct call *call)
{
    if (call->slot != NULL)
        atomic_store_explicit(&call->slot->taken, 0, memory_order_release);
}

static int cipher_sectors(const struct call *call, uint64_t first_sector, uint64_t sectors,
                          const uint8_t *in, uint8_t *out)
{
    const struct ciphers *ciphers = call->slot != NULL ? &call->slot->ciphers : NULL;
    int result = 0;

    for (uint64_t i = 0; i < sectors && result == 0; i++) {
        tweak_input input = input_of(first_sector + i);
        if (call->xts->engine == ENGINE_ISAL)
            result = isal_sector(call->xts, call->encrypt, (const uint8_t *)&input, in, out);
        else if (call->xts->engine == ENGINE_OPENSSL_ECB)
            result = ecb_sector(ciphers, call->encrypt, (uint8_t *)&input, in, out);
        else if (call->encrypt)
            result = xts_sector(ciphers->encrypt, ciphers->encrypt_input, input, in, out);
        else
            result = xts_sector(ciphers->decrypt, ciphers->decrypt_input, input, in, out);
        in += UBIBLK_XTS_SECTOR_SIZE;
        out += UBIBLK_XTS_SECTOR_SIZE;
    }
    return result;
}

static int run(int encrypt, uint64_t handle, uint64_t first_sector, uint64_t sectors,
               uint64_t in_address, uint64_t out_address)
{
    struct call call;

    if (in_address == 0 || out_address == 0)
        return -EINVAL;
    int result = call_begin(&call, encrypt, handle, first_sector, sectors);
    if (result != 0)
        return result;
    result = cipher_sectors(&call, first_sector, sectors, (const uint8_t *)(uintptr_t)in_address,
                            (uint8_t *)(uintptr_t)out_address);
    call_end(&call);
    return result;
}

int ubiblk_xts_encrypt(uint64_t handle, uint64_t first_sector, uint64_t sectors, uint64_t in,
                       uint64_t out)
{
    return run(1, handle, first_sector, sectors, in, out);
}

int ubiblk_xts_decrypt(uint64_t handle, uint64_t first_sector, uint64_t sectors, uint64_t in,
                       uint64_t out)
{
    return run(0, handle, first_sector, sectors, in, out);
}

/* A place in a list of parts. */
struct cursor {
    const struct iovec *part;
    uint32_t parts;
    size_t at;
};

/* The next byte's address, and how many follow it in its part; NULL where there is none. */
static uint8_t *cursor_look(struct cursor *cursor, size_t *left)
{
    while (cursor->parts > 0 && cursor->at == cursor->part->iov_len) {
        cursor->part++;
        cursor->parts--;
        cursor->at = 0;
    }
    if (cursor->parts == 0)
        return NULL;
    *left = cursor->part->iov_len - cursor->at;
    return (uint8_t *)cursor->part->iov_base + cursor->at;
}

static int cursor_skip(struct cursor *cursor, uint64_t count)
{
    while (count > 0) {
        size_t left;
        if (cursor_look(cursor, &left) == NULL)
            return -EINVAL;
        size_t step = left < count ? left : (size_t)count;
        cursor->at += step;
        count -= step;
    }
    return 0;
}

/* Copies a sector that lies in several parts, to them or from them. */
static int cursor_copy(struct cursor *cursor, uint8_t *sector, int to_parts)
{
    for (size_t done = 0; done < UBIBLK_XTS_SECTOR_SIZE;) {
        size_t left;
        uint8_t *at = cursor_look(cursor, &left);
        if (at == NULL)
            return -EINVAL;
        if (left > UBIBLK_XTS_SECTOR_SIZE - done)
            left = UBIBLK_XTS_SECTOR_SIZE - done;
        memcpy(to_parts ? at : sector + done, to_parts ? sector + done : at, left);
        cursor->at += left;
        done += left;
    }
    return 0;
}

/* Ciphers between parts and one run of memory: whole sectors in place, those on a border by a copy.
 */
static int run_parts(int encrypt, uint64_t handle, uint64_t first_sector, uint64_t sectors,
                     struct cursor cursor, uint8_t *memory)
{
    struct call call;

    if (memory == NULL)
        return -EINVAL;
    int result = call_begin(&call, encrypt, handle, first_sector, sectors);
    if (result != 0)
        return result;
    while (sectors > 0 && result == 0) {
        uint8_t border[UBIBLK_XTS_SECTOR_SIZE];
        size_t left = 0;
        uint8_t *at = cursor_look(&cursor, &left);
        uint64_t count = left / UBIBLK_XTS_SECTOR_SIZE;
        if (at == NULL) {
            result = -EINVAL;
        } else if (count > 0) {
            if (count > sectors)
                count = sectors;
            result = cipher_sectors(&call, first_sector, count, encrypt ? at : memory,
                                    encrypt ? memory : at);
            cursor.at += count * UBIBLK_XTS_SECTOR_SIZE;
        } else {
            count = 1;
            if (encrypt)
                result = cursor_copy(&cursor, border, 0);
            if (result == 0)
                result = cipher_sectors(&call, first_sector, 1, encrypt ? border : memory,
                                        encrypt ? memory : border);
            if (result == 0 && !encrypt)
                result = cursor_copy(&cursor, border, 1);
            OPENSSL_cleanse(border, sizeof(border));
        }
        first_sector += count;
        sectors -= count;
        memory += count * UBIBLK_XTS_SECTOR_SIZE;
    }
    call_end(&call);
    return result;
}

int ubiblk_xts_encrypt_parts(uint64_t handle, uint64_t first_sector, uint64_t sectors, uint64_t iov,
                             uint32_t parts, uint64_t skip, uint64_t out)
{
    struct cursor cursor = {(const struct iovec *)(uintptr_t)iov, parts, 0};
    int result = cursor_skip(&cursor, skip);
    return result ? result
                  : run_parts(1, handle, first_sector, sectors, cursor, (uint8_t *)(uintptr_t)out);
}

int ubiblk_xts_decrypt_parts(uint64_t handle, uint64_t first_sector, uint64_t sectors, uint64_t in,
                             uint64_t iov, uint32_t parts, uint64_t skip)
{
    struct cursor cursor = {(const struct iovec *)(uintptr_t)iov, parts, 0};
    int result = cursor_skip(&cursor, skip);
    return result ? result
                  : run_parts(0, handle, first_sector, sectors, cursor, (uint8_t *)(uintptr_t)in);
}

int ubiblk_cipher_library(char *buf, uint32_t size)
{
    int length;

#ifdef UBIBLK_ISAL_CRYPTO
    if (isal_usable())
        length = snprintf(buf, size, "isa-l_crypto %d.%d.%d", ISAL_CRYPTO_MAJOR_VERSION,
                          ISAL_CRYPTO_MINOR_VERSION, ISAL_CRYPTO_PATCH_VERSION);
    else
#endif
        length = snprintf(buf, size, "OpenSSL %s", OpenSSL_version(OPENSSL_VERSION_STRING));
    return (uint32_t)length < size ? length : -ENOSPC;
}
