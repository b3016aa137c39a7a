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

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#ifdef UBIBLK_ISAL_CRYPTO
#include <isa-l_crypto.h>
#endif

#define BLOCK_SIZE        16
#define BLOCKS_PER_SECTOR (UBIBLK_XTS_SECTOR_SIZE / BLOCK_SIZE)
#define EXPANDED_KEY_SIZE (15 * 16)
/* More than the threads that cipher at once: 64 queues and a helper per core. */
#define SLOTS 128

enum engine {
    ENGINE_ISAL,
    ENGINE_OPENSSL_XTS,
    ENGINE_OPENSSL_ECB,
};

/* The cipher contexts of one call: `tweak` only with ENGINE_OPENSSL_ECB. */
struct ciphers {
    EVP_CIPHER_CTX *encrypt;
    EVP_CIPHER_CTX *decrypt;
    EVP_CIPHER_CTX *tweak;
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

/*
 * OpenSSL would read the host's openssl.cnf, which may name providers built for another OpenSSL,
 * and would free its tables at exit while other threads still cipher.
 */
static int openssl_init(void)
{
    return OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, NULL) ? 0
                                                                                           : -EIO;
}

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

/* Spec: block-device stack, crypt layer: eight zero bytes, then the sector number as LE64. */
static void tweak_input(uint64_t sector, uint8_t tweak[BLOCK_SIZE])
{
    memset(tweak, 0, 8);
    for (int i = 0; i < 8; i++)
        tweak[8 + i] = (uint8_t)(sector >> (8 * i));
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
    *out = EVP_CIPHER_CTX_new();
    if (*out == NULL)
        return -ENOMEM;
    if (!EVP_CipherInit_ex(*out, cipher, NULL, key, NULL, encrypt))
        return -EIO;
    return EVP_CIPHER_CTX_set_padding(*out, 0) ? 0 : -EIO;
}

static int template_init(struct ubiblk_xts *xts, const uint8_t *key1, const uint8_t *key2)
{
    struct ciphers *template = &xts->template;
    int result;

    if (xts->engine == ENGINE_OPENSSL_ECB) {
        result = cipher_new(&template->tweak, EVP_aes_256_ecb(), key2, 1);
        if (result == 0)
            result = cipher_new(&template->encrypt, EVP_aes_256_ecb(), key1, 1);
        if (result == 0)
            result = cipher_new(&template->decrypt, EVP_aes_256_ecb(), key1, 0);
        return result;
    }

    uint8_t keys[2 * UBIBLK_XTS_KEY_SIZE];
    memcpy(keys, key1, UBIBLK_XTS_KEY_SIZE);
    memcpy(keys + UBIBLK_XTS_KEY_SIZE, key2, UBIBLK_XTS_KEY_SIZE);
    result = cipher_new(&template->encrypt, EVP_aes_256_xts(), keys, 1);
    if (result == 0)
        result = cipher_new(&template->decrypt, EVP_aes_256_xts(), keys, 0);
    OPENSSL_cleanse(keys, sizeof(keys));
    return result;
}

int64_t ubiblk_xts_new(const uint8_t *key1, const uint8_t *key2)
{
    if (key1 == NULL || key2 == NULL)
        return -EINVAL;
    int result = openssl_init();
    if (result != 0)
        return result;

    struct ubiblk_xts *xts =
        mmap(NULL, sizeof(*xts), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (xts == MAP_FAILED)
        return -ENOMEM;
    /* Keys belong in no core dump; a kernel that can't leave them out still serves. */
    (void)madvise(xts, sizeof(*xts), MADV_DONTDUMP);

    if (CRYPTO_memcmp(key1, key2, UBIBLK_XTS_KEY_SIZE) == 0)
        xts->engine = ENGINE_OPENSSL_ECB;
    else
        xts->engine = isal_usable() ? ENGINE_ISAL : ENGINE_OPENSSL_XTS;
    result =
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
    OPENSSL_cleanse(xts, sizeof(*xts));
    munmap(xts, sizeof(*xts));
    return 0;
}

static EVP_CIPHER_CTX *cipher_copy(const EVP_CIPHER_CTX *from, int *result)
{
    if (from == NULL || *result != 0)
        return NULL;
    EVP_CIPHER_CTX *copy = EVP_CIPHER_CTX_new();
    if (copy == NULL || !EVP_CIPHER_CTX_copy(copy, from)) {
        EVP_CIPHER_CTX_free(copy);
        *result = -ENOMEM;
        return NULL;
    }
    return copy;
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
    }
    *out = slot;
    return 0;
}

static int xts_sector(EVP_CIPHER_CTX *cipher, const uint8_t *tweak, const uint8_t *in, uint8_t *out)
{
    int length = 0;

    if (!EVP_CipherInit_ex(cipher, NULL, NULL, NULL, tweak, -1) ||
        !EVP_CipherUpdate(cipher, out, &length, in, UBIBLK_XTS_SECTOR_SIZE))
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

static int ecb_sector(const struct ciphers *ciphers, int encrypt, uint8_t *tweak, const uint8_t *in,
                      uint8_t *out)
{
    uint8_t tweaks[UBIBLK_XTS_SECTOR_SIZE];
    int length = 0;

    if (!EVP_CipherUpdate(ciphers->tweak, tweak, &length, tweak, BLOCK_SIZE))
        return -EIO;
    for (int block = 0; block < BLOCKS_PER_SECTOR; block++) {
        memcpy(tweaks + block * BLOCK_SIZE, tweak, BLOCK_SIZE);
        tweak_double(tweak);
    }
    for (int i = 0; i < UBIBLK_XTS_SECTOR_SIZE; i++)
        out[i] = in[i] ^ tweaks[i];
    if (!EVP_CipherUpdate(encrypt ? ciphers->encrypt : ciphers->decrypt, out, &length, out,
                          UBIBLK_XTS_SECTOR_SIZE))
        return -EIO;
    for (int i = 0; i < UBIBLK_XTS_SECTOR_SIZE; i++)
        out[i] ^= tweaks[i];
    OPENSSL_cleanse(tweaks, sizeof(tweaks));
    return length == UBIBLK_XTS_SECTOR_SIZE ? 0 : -EIO;
}

static int run(int encrypt, uint64_t handle, uint64_t first_sector, uint64_t sectors,
               uint64_t in_address, uint64_t out_address)
{
    struct ubiblk_xts *xts = (struct ubiblk_xts *)(uintptr_t)handle;
    const uint8_t *in = (const uint8_t *)(uintptr_t)in_address;
    uint8_t *out = (uint8_t *)(uintptr_t)out_address;

    if (xts == NULL || in == NULL || out == NULL)
        return -EINVAL;
    if (sectors == 0)
        return 0;
    if (sectors - 1 > UINT64_MAX - first_sector || sectors > SIZE_MAX / UBIBLK_XTS_SECTOR_SIZE)
        return -EINVAL;

    struct slot *slot = NULL;
    int result = xts->engine == ENGINE_ISAL ? 0 : slot_take(xts, &slot);

    for (uint64_t i = 0; i < sectors && result == 0; i++) {
        uint8_t tweak[BLOCK_SIZE];
        tweak_input(first_sector + i, tweak);
        if (xts->engine == ENGINE_ISAL)
            result = isal_sector(xts, encrypt, tweak, in, out);
        else if (xts->engine == ENGINE_OPENSSL_XTS)
            result =
                xts_sector(encrypt ? slot->ciphers.encrypt : slot->ciphers.decrypt, tweak, in, out);
        else
            result = ecb_sector(&slot->ciphers, encrypt, tweak, in, out);
        in += UBIBLK_XTS_SECTOR_SIZE;
        out += UBIBLK_XTS_SECTOR_SIZE;
    }
    if (slot != NULL)
        atomic_store_explicit(&slot->taken, 0, memory_order_release);
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
