/*
 * AES-256-GCM, with which a key-encryption key wraps secrets, and base64, in which they are written
 * down: both from secret memory to secret memory (secret.h).
 */
#ifndef UBIBLK_GCM_H
#define UBIBLK_GCM_H

#include <stdint.h>

#include "ubiblk.h"

enum { UBIBLK_GCM_KEY_SIZE = 32, UBIBLK_GCM_NONCE_SIZE = 12, UBIBLK_GCM_TAG_SIZE = 16 };

/*
 * Encrypts `length` bytes at `plain`; writes as many and the tag to `wrapped`. Returns 0, or -EIO
 * where the library fails.
 */
UBIBLK_API int ubiblk_gcm_wrap(uint64_t key, const uint8_t *nonce, const uint8_t *aad,
                               uint32_t aad_length, uint64_t plain, uint32_t length,
                               uint8_t *wrapped);

/*
 * The reverse: `length` bytes at `wrapped`, the tag among them, to UBIBLK_GCM_TAG_SIZE fewer at
 * `plain`. Returns 0, -EINVAL where there is no room for a tag, -EBADMSG where the tag is wrong
 * (and then `plain` is zeroes), -EIO where the library fails.
 */
UBIBLK_API int ubiblk_gcm_unwrap(uint64_t key, const uint8_t *nonce, const uint8_t *aad,
                                 uint32_t aad_length, const uint8_t *wrapped, uint32_t length,
                                 uint64_t plain);

/*
 * Decodes standard base64: padding is mandatory, unused bits are zero, nothing else is in it.
 * `bytes` has room for three quarters of `length`. Returns how many bytes that gave, or -EINVAL.
 */
UBIBLK_API int ubiblk_base64_decode(uint64_t text, uint32_t length, uint64_t bytes);

#endif
