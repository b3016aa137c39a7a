/* See gcm.h. */
#include "gcm.h"

#include <errno.h>
#include <limits.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "secret.h"

static int start(EVP_CIPHER_CTX **out, int encrypt, uint64_t key, const uint8_t *nonce,
                 const uint8_t *aad, uint32_t aad_length)
{
    const struct openssl *library = openssl();
    int length;

    if (library == NULL || aad_length > INT_MAX)
        return -EIO;
    secrets_begin();
    *out = EVP_CIPHER_CTX_new();
    int works = *out != NULL &&
                EVP_CipherInit_ex(*out, library->gcm, NULL, (const uint8_t *)(uintptr_t)key, nonce,
                                  encrypt) &&
                (aad_length == 0 || EVP_CipherUpdate(*out, NULL, &length, aad, (int)aad_length));
    secrets_end();
    if (works)
        return 0;
    EVP_CIPHER_CTX_free(*out);
    return -EIO;
}

int ubiblk_gcm_wrap(uint64_t key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_length,
                    uint64_t plain, uint32_t length, uint8_t *wrapped)
{
    EVP_CIPHER_CTX *cipher;
    int done;

    if (length > INT_MAX - UBIBLK_GCM_TAG_SIZE || start(&cipher, 1, key, nonce, aad, aad_length))
        return -EIO;
    int works =
        EVP_CipherUpdate(cipher, wrapped, &done, (const uint8_t *)(uintptr_t)plain, (int)length) &&
        EVP_CipherFinal_ex(cipher, wrapped + length, &done) &&
        EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, UBIBLK_GCM_TAG_SIZE, wrapped + length);
    EVP_CIPHER_CTX_free(cipher);
    return works ? 0 : -EIO;
}

int ubiblk_gcm_unwrap(uint64_t key, const uint8_t *nonce, const uint8_t *aad, uint32_t aad_length,
                      const uint8_t *wrapped, uint32_t length, uint64_t plain)
{
    EVP_CIPHER_CTX *cipher;
    uint8_t *out = (uint8_t *)(uintptr_t)plain, tag[UBIBLK_GCM_TAG_SIZE];
    int done, result = 0;

    if (length < UBIBLK_GCM_TAG_SIZE || length > INT_MAX)
        return -EINVAL;
    uint32_t plain_length = length - UBIBLK_GCM_TAG_SIZE;
    if (start(&cipher, 0, key, nonce, aad, aad_length))
        return -EIO;
    for (int i = 0; i < UBIBLK_GCM_TAG_SIZE; i++)
        tag[i] = wrapped[plain_length + (uint32_t)i];
    if (!EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, UBIBLK_GCM_TAG_SIZE, tag) ||
        !EVP_CipherUpdate(cipher, out, &done, wrapped, (int)plain_length))
        result = -EIO;
    else if (!EVP_CipherFinal_ex(cipher, out + plain_length, &done))
        result = -EBADMSG;
    if (result != 0 && plain_length > 0)
        OPENSSL_cleanse(out, plain_length);
    EVP_CIPHER_CTX_free(cipher);
    return result;
}

static int base64_value(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int ubiblk_base64_decode(uint64_t text, uint32_t length, uint64_t bytes)
{
    const uint8_t *in = (const uint8_t *)(uintptr_t)text;
    uint8_t *out = (uint8_t *)(uintptr_t)bytes;
    uint32_t padding = 0, bits = 0;
    int done = 0;

    if (length % 4 != 0 || length > INT_MAX)
        return -EINVAL;
    while (padding < 2 && padding < length && in[length - padding - 1] == '=')
        padding++;
    for (uint32_t i = 0; i < length - padding; i++) {
        int value = base64_value(in[i]);
        if (value < 0)
            return -EINVAL;
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 != 0)
            out[done++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    uint32_t unused = bits & (padding == 2 ? 0xf : padding == 1 ? 0x3 : 0);
    return unused ? -EINVAL : done;
}
