/*
 * Memory for keys: locked into RAM, left out of core dumps and of child processes, wiped when it is
 * given back. OpenSSL's own copies of keys (key schedules in cipher contexts) live there too.
 */
#ifndef UBIBLK_SECRET_H
#define UBIBLK_SECRET_H

#include <stddef.h>

#include <openssl/evp.h>

#include "ubiblk.h"

/* Zeroed memory aligned to 64 bytes, or NULL where the arena is used up. */
void *secret_alloc(size_t size);

/* Wipes and gives back; does nothing for NULL. */
void secret_free(void *secret);

/* The ciphers and the hash that the shim uses, looked up once. */
struct openssl {
    EVP_CIPHER *xts, *ecb, *gcm;
    EVP_MD *sha256;
};

/*
 * OpenSSL, set up on first use; NULL where that fails. It reads no openssl.cnf of the host, which
 * may name providers built for another OpenSSL, and frees nothing at exit while threads still
 * cipher.
 */
const struct openssl *openssl(void);

/* What OpenSSL allocates on this thread between the two is secret. They don't nest. */
void secrets_begin(void);
void secrets_end(void);

/*
 * For TypeScript: the address of `size` bytes, which lives until ubiblk_secret_free, or -ENOMEM.
 */
UBIBLK_API int64_t ubiblk_secret_alloc(uint32_t size);
UBIBLK_API int ubiblk_secret_free(uint64_t address);

/* 1 while all secrets are locked into memory, 0 where RLIMIT_MEMLOCK didn't allow it. */
UBIBLK_API int ubiblk_secret_locked(void);

#endif
