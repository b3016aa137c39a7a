/*
 * Objects of archives: what a stripe becomes, and the reverse. The container of compressed ones is
 * a little-endian u32, the length of the payload; the payload, a Snappy block or zstd frames;
 * zeroes up to a whole sector. Encrypted ones are ciphered sector by sector, numbered by the
 * stripe's place.
 */
#ifndef UBIBLK_OBJECT_H
#define UBIBLK_OBJECT_H

#include "ubiblk.h"

enum { UBIBLK_UNCOMPRESSED, UBIBLK_SNAPPY, UBIBLK_ZSTD };
enum { UBIBLK_HASH_BYTES = 32 };

/* A stripe to be made an object. */
struct ubiblk_seal {
    uint64_t stripe, stripe_length; /* changed where something is decrypted or encrypted in place */
    uint64_t disk_xts, disk_sector,
        disk_length;              /* keys that its first bytes are decrypted with first; 0: none */
    uint64_t object, object_size; /* room of ubiblk_object_bound; uncompressed: set to `stripe` */
    uint64_t xts, sector;         /* keys of the archive, 0: none; the first sector's number */
    uint32_t compression;
    int32_t level;                   /* of zstd */
    uint32_t skip_zero;              /* whether stripes of zeroes are only told of */
    uint32_t zero;                   /* result: it is one */
    uint8_t hash[UBIBLK_HASH_BYTES]; /* result */
};

/* An object to be made a stripe; its bytes are changed where they are encrypted. */
struct ubiblk_unseal {
    uint64_t object, object_length;
    uint64_t stripe, stripe_length; /* filled with zeroes behind what the object holds */
    uint64_t xts, sector;
    uint32_t compression;
    uint32_t zero; /* result: all of it is zeroes */
    uint8_t hash[UBIBLK_HASH_BYTES];
};

/* Bytes that an object of a stripe may have at most. */
UBIBLK_API uint64_t ubiblk_object_bound(uint32_t compression, uint64_t stripe_length);

/* Returns the object's length; 0 where a stripe of zeroes was skipped. */
int64_t ubiblk_seal(struct ubiblk_seal *seal);

/*
 * Returns the length of what the object held; -EBADMSG: another hash; -EINVAL: encrypted, but no
 * whole sectors; -ENODATA: too short for a container; -EOVERFLOW: the payload is longer than the
 * object; -EILSEQ: it can't be decompressed; -EFBIG: it is longer than a stripe.
 */
int64_t ubiblk_unseal(struct ubiblk_unseal *unseal);

UBIBLK_API int ubiblk_hmac_sha256(const uint8_t *key, uint32_t key_length, const void *data,
                                  uint64_t length, uint8_t *tag);
UBIBLK_API int ubiblk_sha256(const void *data, uint64_t length, uint8_t *digest);

#endif
