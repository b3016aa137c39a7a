/*
 * What the linked cipher library does with 512-byte units on one core, in bytes a second: the limit
 * that the crypt layer is measured against. Prints one line, "NAME RATE".
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>

#ifdef UBIBLK_ISAL_CRYPTO
#include <isa-l_crypto.h>
#endif

enum { UNIT = 512, UNITS = 256, SECONDS = 1 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static uint8_t *buffer(void)
{
    uint8_t *at = aligned_alloc(4096, UNIT * UNITS);
    if (!at)
        exit(1);
    memset(at, 7, UNIT * UNITS);
    return at;
}

int main(void)
{
    uint8_t keys[64], tweak[16] = {0}, *in = buffer(), *out = buffer();
    for (int i = 0; i < 64; i++)
        keys[i] = (uint8_t)i;
#ifdef UBIBLK_ISAL_CRYPTO
    static _Alignas(64) uint8_t encrypt[15 * 16], decrypt[15 * 16], tweak_key[15 * 16];
    const char *name = "isa-l_crypto";
    isal_aes_keyexp_256(keys, encrypt, decrypt);
    isal_aes_keyexp_256(keys + 32, tweak_key, decrypt);
#else
    const char *name = "OpenSSL";
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    if (!cipher || !EVP_CipherInit_ex(cipher, EVP_aes_256_xts(), NULL, keys, tweak, 1))
        return 1;
#endif
    uint64_t bytes = 0;
    double start = now(), end;
    do {
        for (int i = 0; i < UNITS; i++) {
#ifdef UBIBLK_ISAL_CRYPTO
            isal_aes_xts_enc_256_expanded_key(tweak_key, encrypt, tweak, UNIT, in + i * UNIT,
                                              out + i * UNIT);
#else
            int length;
            EVP_EncryptUpdate(cipher, out + i * UNIT, &length, in + i * UNIT, UNIT);
#endif
        }
        bytes += UNIT * UNITS;
        end = now();
    } while (end - start < SECONDS);
    printf("%s %.0f\n", name, (double)bytes / (end - start));
    return 0;
}
