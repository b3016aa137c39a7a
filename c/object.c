/*
 * An archive's objects: a stripe is compressed, encrypted and named by its hash, and the reverse
 * (docs/archives.md). Threads of lanes do it, each with compression contexts of its own.
 */
#include "object.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <pthread.h>
#include <snappy-c.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "secret.h"
#include "xts.h"

/*
 * What libstdc++, which Snappy is linked with, looks for exceptions' handlers with; glibc has it
 * since 2.35, and hosts may be older. Through Snappy's C interface nothing is thrown.
 */
__attribute__((visibility("hidden"))) int _dl_find_object(void *pc, void *found);
int _dl_find_object(void *pc, void *found)
{
    (void)pc;
    (void)found;
    return -1;
}

enum { HEADER_BYTES = 4, SECTOR = UBIBLK_XTS_SECTOR_SIZE };

/* A thread's contexts: making one for each stripe would cost more than small stripes do. */
struct contexts {
    ZSTD_CCtx *compress;
    ZSTD_DCtx *decompress;
};

static pthread_key_t contexts_key;
static pthread_once_t contexts_once = PTHREAD_ONCE_INIT;

static void free_contexts(void *value)
{
    struct contexts *contexts = value;
    ZSTD_freeCCtx(contexts->compress);
    ZSTD_freeDCtx(contexts->decompress);
    free(contexts);
}

static void make_key(void)
{
    (void)pthread_key_create(&contexts_key, free_contexts);
}

static struct contexts *own_contexts(void)
{
    pthread_once(&contexts_once, make_key);
    struct contexts *contexts = pthread_getspecific(contexts_key);
    if (contexts)
        return contexts;
    contexts = calloc(1, sizeof(*contexts));
    if (contexts && pthread_setspecific(contexts_key, contexts)) {
        free(contexts);
        return NULL;
    }
    return contexts;
}

static uint8_t *at(uint64_t address)
{
    return (uint8_t *)(uintptr_t)address;
}

static int is_zero(const uint8_t *bytes, uint64_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

static int64_t deflate_zstd(const struct ubiblk_seal *seal, uint8_t *to, size_t room)
{
    struct contexts *own = own_contexts();
    if (own && !own->compress)
        own->compress = ZSTD_createCCtx();
    if (!own || !own->compress)
        return -ENOMEM;
    ZSTD_CCtx *zstd = own->compress;
    ZSTD_CCtx_reset(zstd, ZSTD_reset_session_and_parameters);
    ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, seal->level);
    /* Frames as a streaming encoder makes them. */
    ZSTD_CCtx_setParameter(zstd, ZSTD_c_contentSizeFlag, 0);
    size_t length = ZSTD_compress2(zstd, to, room, at(seal->stripe), seal->stripe_length);
    if (!ZSTD_isError(length))
        return (int64_t)length;
    return ZSTD_getErrorCode(length) == ZSTD_error_memory_allocation ? -ENOMEM : -EIO;
}

static int64_t deflate_snappy(const struct ubiblk_seal *seal, uint8_t *to, size_t room)
{
    size_t length = room;
    snappy_status status =
        snappy_compress((char *)at(seal->stripe), seal->stripe_length, (char *)to, &length);
    return status == SNAPPY_OK ? (int64_t)length : -EIO;
}

/* Makes the container: the payload's length, the payload, zeroes up to a whole sector. */
static int64_t pack(const struct ubiblk_seal *seal)
{
    uint8_t *out = at(seal->object);
    size_t room = seal->object_size - HEADER_BYTES;
    if (seal->object_size < ubiblk_object_bound(seal->compression, seal->stripe_length))
        return -ENOSPC;
    int64_t n = seal->compression == UBIBLK_ZSTD ? deflate_zstd(seal, out + HEADER_BYTES, room)
                                                 : deflate_snappy(seal, out + HEADER_BYTES, room);
    if (n < 0)
        return n;
    for (int i = 0; i < HEADER_BYTES; i++)
        out[i] = (uint8_t)(n >> (8 * i));
    uint64_t length = (HEADER_BYTES + (uint64_t)n + SECTOR - 1) / SECTOR * SECTOR;
    memset(out + HEADER_BYTES + n, 0, length - HEADER_BYTES - (uint64_t)n);
    return (int64_t)length;
}

uint64_t ubiblk_object_bound(uint32_t compression, uint64_t stripe_length)
{
    if (compression == UBIBLK_UNCOMPRESSED)
        return stripe_length;
    uint64_t bound = compression == UBIBLK_ZSTD ? ZSTD_compressBound(stripe_length)
                                                : snappy_max_compressed_length(stripe_length);
    return (HEADER_BYTES + bound + SECTOR - 1) / SECTOR * SECTOR;
}

static int hash(const uint8_t *bytes, uint64_t length, uint8_t *digest)
{
    const struct openssl *library = openssl();
    return library && EVP_Digest(bytes, length, digest, NULL, library->sha256, NULL) ? 0 : -EIO;
}

int64_t ubiblk_seal(struct ubiblk_seal *seal)
{
    if (seal->disk_xts) {
        int err = ubiblk_xts_decrypt(seal->disk_xts, seal->disk_sector, seal->disk_length / SECTOR,
                                     seal->stripe, seal->stripe);
        if (err < 0)
            return err;
    }
    seal->zero = (uint32_t)is_zero(at(seal->stripe), seal->stripe_length);
    if (seal->zero && seal->skip_zero)
        return 0;
    int64_t length = (int64_t)seal->stripe_length;
    if (seal->compression == UBIBLK_UNCOMPRESSED)
        seal->object = seal->stripe;
    else
        length = pack(seal);
    if (length < 0)
        return length;
    if (seal->xts) {
        int err = ubiblk_xts_encrypt(seal->xts, seal->sector, (uint64_t)length / SECTOR,
                                     seal->object, seal->object);
        if (err < 0)
            return err;
    }
    int err = hash(at(seal->object), (uint64_t)length, seal->hash);
    return err < 0 ? err : length;
}

static int64_t inflate_zstd(const struct ubiblk_unseal *u, const uint8_t *from, size_t n)
{
    struct contexts *own = own_contexts();
    if (own && !own->decompress)
        own->decompress = ZSTD_createDCtx();
    if (!own || !own->decompress)
        return -ENOMEM;
    size_t length = ZSTD_decompressDCtx(own->decompress, at(u->stripe), u->stripe_length, from, n);
    if (!ZSTD_isError(length))
        return (int64_t)length;
    switch (ZSTD_getErrorCode(length)) {
    case ZSTD_error_dstSize_tooSmall:
        return -EFBIG;
    case ZSTD_error_memory_allocation:
        return -ENOMEM;
    default:
        return -EILSEQ;
    }
}

static int64_t inflate_snappy(const struct ubiblk_unseal *u, const uint8_t *from, size_t n)
{
    size_t length;
    if (snappy_uncompressed_length((const char *)from, n, &length) != SNAPPY_OK)
        return -EILSEQ;
    if (length > u->stripe_length)
        return -EFBIG;
    if (snappy_uncompress((const char *)from, n, (char *)at(u->stripe), &length) != SNAPPY_OK)
        return -EILSEQ;
    return (int64_t)length;
}

static int64_t unpack(const struct ubiblk_unseal *u)
{
    const uint8_t *object = at(u->object);
    if (u->compression == UBIBLK_UNCOMPRESSED) {
        if (u->object_length > u->stripe_length)
            return -EFBIG;
        memcpy(at(u->stripe), object, u->object_length);
        return (int64_t)u->object_length;
    }
    if (u->object_length < HEADER_BYTES)
        return -ENODATA;
    uint64_t n = object[0] | (uint64_t)object[1] << 8 | (uint64_t)object[2] << 16 |
                 (uint64_t)object[3] << 24;
    if (n + HEADER_BYTES > u->object_length)
        return -EOVERFLOW;
    return u->compression == UBIBLK_ZSTD ? inflate_zstd(u, object + HEADER_BYTES, n)
                                         : inflate_snappy(u, object + HEADER_BYTES, n);
}

int64_t ubiblk_unseal(struct ubiblk_unseal *u)
{
    uint8_t digest[UBIBLK_HASH_BYTES];
    int err = hash(at(u->object), u->object_length, digest);
    if (err < 0)
        return err;
    if (memcmp(digest, u->hash, sizeof(digest)) != 0)
        return -EBADMSG;
    if (u->xts) {
        if (u->object_length % SECTOR != 0)
            return -EINVAL;
        err =
            ubiblk_xts_decrypt(u->xts, u->sector, u->object_length / SECTOR, u->object, u->object);
        if (err < 0)
            return err;
    }
    int64_t length = unpack(u);
    if (length < 0)
        return length;
    memset(at(u->stripe) + length, 0, u->stripe_length - (uint64_t)length);
    u->zero = (uint32_t)is_zero(at(u->stripe), u->stripe_length);
    return length;
}

int ubiblk_hmac_sha256(const uint8_t *key, uint32_t key_length, const void *data, uint64_t length,
                       uint8_t *tag)
{
    const struct openssl *library = openssl();
    if (!library)
        return -EIO;
    secrets_begin();
    int works = HMAC(library->sha256, key, (int)key_length, data, length, tag, NULL) != NULL;
    secrets_end();
    return works ? 0 : -EIO;
}

int ubiblk_sha256(const void *data, uint64_t length, uint8_t *digest)
{
    return hash(data, length, digest);
}
