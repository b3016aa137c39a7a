/*
 * AES-256-XTS over runs of 512-byte sectors (docs/building.md says which library does the work).
 *
 * Each sector is a data unit of its own. The 16-byte tweak input of sector n is eight zero bytes,
 * then n as a little-endian u64: the convention of SPDK's software cipher, not dm-crypt's plain64.
 *
 * Contract: a context's keys are expanded once, by ubiblk_xts_new, and never change. Encrypt and
 * decrypt may be called on one context from any number of threads at once. ubiblk_xts_free wipes
 * the keys; the caller sees to it that no call is under way on that context.
 */
#ifndef UBIBLK_XTS_H
#define UBIBLK_XTS_H

#include <stdint.h>

#include "ubiblk.h"

#define UBIBLK_XTS_KEY_SIZE    32
#define UBIBLK_XTS_SECTOR_SIZE 512

/*
 * Expands the two keys, of 32 bytes each: key1 encrypts data, key2 the tweak. Keys that are equal
 * work as well, although IEEE 1619 forbids them: whether to accept them is the caller's policy.
 * Returns the context's handle, an address (those of user space are positive), -EINVAL for a null
 * pointer, -ENOMEM, or -EIO where the cipher library fails.
 */
UBIBLK_API int64_t ubiblk_xts_new(const uint8_t *key1, const uint8_t *key2);

/*
 * Wipes and frees a context; does nothing for 0. Its handle is refused with -EINVAL from then on,
 * until the memory is used again. Returns 0.
 */
UBIBLK_API int ubiblk_xts_free(uint64_t handle);

/*
 * Encrypts or decrypts `sectors` sectors, the first of which has the number `first_sector`, from
 * `in` to `out`: the same address or buffers that don't overlap, of any alignment. Returns 0,
 * -EINVAL for a zero address or a run past the last sector number, -ENOMEM, or -EIO where the
 * cipher library fails; after an error the content of `out` is undefined.
 */
UBIBLK_API int ubiblk_xts_encrypt(uint64_t handle, uint64_t first_sector, uint64_t sectors,
                                  uint64_t in, uint64_t out);
UBIBLK_API int ubiblk_xts_decrypt(uint64_t handle, uint64_t first_sector, uint64_t sectors,
                                  uint64_t in, uint64_t out);

/*
 * The same where the plain side is in several parts: `parts` struct iovec at `iov`, from byte
 * `skip` of them on, divided anywhere. Sectors that lie in several parts are put together in
 * between. Parts that others may see or change while this goes on see plaintext or nothing. -EINVAL
 * where the parts hold less.
 */
UBIBLK_API int ubiblk_xts_encrypt_parts(uint64_t handle, uint64_t first_sector, uint64_t sectors,
                                        uint64_t iov, uint32_t parts, uint64_t skip, uint64_t out);
UBIBLK_API int ubiblk_xts_decrypt_parts(uint64_t handle, uint64_t first_sector, uint64_t sectors,
                                        uint64_t in, uint64_t iov, uint32_t parts, uint64_t skip);

/*
 * Writes the name and version of the library that does the ciphering on this processor ("OpenSSL
 * 3.0.17", "isa-l_crypto 2.25.0") as a string that ends in a zero byte. Returns its length without
 * that byte, or -ENOSPC where `size` bytes don't hold it.
 */
UBIBLK_API int ubiblk_cipher_library(char *buf, uint32_t size);

#endif
