/*
 * TLS 1.2 with a pre-shared key, cipher suite PSK-AES256-GCM-SHA384 (RFC 5487), over memory: bytes
 * in, bytes out. Who owns the sockets gives us what came and sends what we say.
 */
#include "ubiblk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "secret.h"

enum { IDENTITY_SIZE = 256, SECRET_SIZE = 512 };

struct tls {
    SSL *ssl;
    const uint8_t *secret;
    size_t secret_length;
    char identity[IDENTITY_SIZE + 1];
    /* Of the step that is being done. */
    const uint8_t *in;
    size_t in_left;
    uint8_t *out;
    size_t out_left;
    /* What ended it, once. */
    char error[128];
};

static struct tls *tls_of(uint64_t handle)
{
    return (struct tls *)(uintptr_t)handle;
}

static int bio_read(BIO *bio, char *to, size_t size, size_t *done)
{
    struct tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    *done = size < tls->in_left ? size : tls->in_left;
    if (*done == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    memcpy(to, tls->in, *done);
    tls->in += *done;
    tls->in_left -= *done;
    return 1;
}

static int bio_write(BIO *bio, const char *from, size_t size, size_t *done)
{
    struct tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    *done = size < tls->out_left ? size : tls->out_left;
    if (*done == 0) {
        BIO_set_retry_write(bio);
        return 0;
    }
    memcpy(tls->out, from, *done);
    tls->out += *done;
    tls->out_left -= *done;
    return 1;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

/* Made once, and never given back. */
static struct {
    BIO_METHOD *bio;
    SSL_CTX *context;
} shared;

static unsigned give_client_key(SSL *ssl, const char *hint, char *identity, unsigned identity_size,
                                unsigned char *key, unsigned key_size)
{
    struct tls *tls = SSL_get_app_data(ssl);
    (void)hint;
    if (strlen(tls->identity) + 1 > identity_size || tls->secret_length > key_size)
        return 0;
    memcpy(identity, tls->identity, strlen(tls->identity) + 1);
    memcpy(key, tls->secret, tls->secret_length);
    return (unsigned)tls->secret_length;
}

static unsigned give_server_key(SSL *ssl, const char *identity, unsigned char *key,
                                unsigned key_size)
{
    struct tls *tls = SSL_get_app_data(ssl);
    char given[IDENTITY_SIZE + 1] = {0};
    size_t length = identity ? strlen(identity) : 0;
    if (length == 0 || length > IDENTITY_SIZE || tls->secret_length > key_size)
        return 0;
    /* Compared in full, whatever differs. */
    memcpy(given, identity, length);
    if (CRYPTO_memcmp(given, tls->identity, sizeof(given)) != 0)
        return 0;
    memcpy(key, tls->secret, tls->secret_length);
    return (unsigned)tls->secret_length;
}

static int make_shared(void)
{
    if (shared.context)
        return 0;
    if (!openssl())
        return -EIO;
    BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "memory");
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    if (!method || !context || !BIO_meth_set_read_ex(method, bio_read) ||
        !BIO_meth_set_write_ex(method, bio_write) || !BIO_meth_set_ctrl(method, bio_control) ||
        !SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
        !SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION) ||
        !SSL_CTX_set_cipher_list(context, "PSK-AES256-GCM-SHA384"))
        return -EIO;
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
                                     SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_psk_client_callback(context, give_client_key);
    SSL_CTX_set_psk_server_callback(context, give_server_key);
    shared.bio = method;
    shared.context = context;
    return 0;
}

static int make_ssl(struct tls *tls, int server)
{
    BIO *bio = BIO_new(shared.bio);
    tls->ssl = SSL_new(shared.context);
    if (!bio || !tls->ssl) {
        BIO_free(bio);
        return -ENOMEM;
    }
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    SSL_set_bio(tls->ssl, bio, bio);
    SSL_set_app_data(tls->ssl, tls);
    /* Records' buffers are no secret: made here, they are outside the arena. */
    if (!SSL_alloc_buffers(tls->ssl))
        return -ENOMEM;
    if (server)
        SSL_set_accept_state(tls->ssl);
    else
        SSL_set_connect_state(tls->ssl);
    return 0;
}

/*
 * Begins a session, of which nothing has been said yet. All sessions belong to one thread.
 * identity: up to 256 bytes, not empty. secret: its address, which stays where it is as long as the
 * handshake takes; up to 512 bytes.
 */
int ubiblk_tls_open(int server, const char *identity, uint64_t secret, uint32_t secret_length,
                    uint64_t *handle)
{
    if (strlen(identity) == 0 || strlen(identity) > IDENTITY_SIZE || secret_length == 0 ||
        secret_length > SECRET_SIZE)
        return -EINVAL;
    int err = make_shared();
    if (err < 0)
        return err;
    struct tls *tls = OPENSSL_zalloc(sizeof(*tls));
    if (!tls)
        return -ENOMEM;
    memcpy(tls->identity, identity, strlen(identity));
    tls->secret = (const uint8_t *)(uintptr_t)secret;
    tls->secret_length = secret_length;
    err = make_ssl(tls, server);
    if (err < 0) {
        SSL_free(tls->ssl);
        OPENSSL_free(tls);
        return err;
    }
    *handle = (uintptr_t)tls;
    return 0;
}

int ubiblk_tls_close(uint64_t handle)
{
    struct tls *tls = tls_of(handle);
    SSL_free(tls->ssl);
    OPENSSL_free(tls);
    return 0;
}

/* Notes why the session has ended, for ubiblk_tls_error. */
static int failed(struct tls *tls)
{
    unsigned long code = ERR_peek_last_error();
    const char *reason = code ? ERR_reason_error_string(code) : NULL;
    if (!tls->error[0])
        snprintf(tls->error, sizeof(tls->error), "%s", reason ? reason : "protocol error");
    ERR_clear_error();
    return -EPROTO;
}

/* 1: go on; 0: nothing more can be done now; -EPROTO, -EPIPE: the session has ended. */
static int outcome(struct tls *tls, int result)
{
    if (result > 0)
        return 1;
    switch (SSL_get_error(tls->ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        return -EPIPE;
    default:
        return failed(tls);
    }
}

static int shake_hands(struct tls *tls)
{
    if (SSL_is_init_finished(tls->ssl))
        return 1;
    secrets_begin();
    int result = SSL_do_handshake(tls->ssl);
    secrets_end();
    return outcome(tls, result);
}

/* How many bytes can be sent in records that fit: a record that is begun must be ended. */
static uint32_t fitting(size_t room)
{
    enum { RECORD = SSL3_RT_MAX_PLAIN_LENGTH, AROUND = 5 + 8 + 16 };
    size_t rest = room % (RECORD + AROUND);
    return (uint32_t)(room / (RECORD + AROUND) * RECORD + (rest > AROUND ? rest - AROUND : 0));
}

static int write_plain(struct tls *tls, struct ubiblk_tls_io *io)
{
    const uint8_t *from = (const uint8_t *)(uintptr_t)io->plain_in;
    uint32_t end = fitting(tls->out_left);
    int result = 1;
    if (end > io->plain_in_length)
        end = io->plain_in_length;
    while (io->plain_written < end && result > 0) {
        size_t done = 0;
        result = SSL_write_ex(tls->ssl, from + io->plain_written, end - io->plain_written, &done);
        io->plain_written += (uint32_t)done;
        result = outcome(tls, result);
    }
    return result;
}

static int read_plain(struct tls *tls, struct ubiblk_tls_io *io)
{
    uint8_t *to = (uint8_t *)(uintptr_t)io->plain_out;
    int result = 1;
    while (io->plain_read < io->plain_out_size && result > 0) {
        size_t done = 0;
        result =
            SSL_read_ex(tls->ssl, to + io->plain_read, io->plain_out_size - io->plain_read, &done);
        io->plain_read += (uint32_t)done;
        result = outcome(tls, result);
    }
    return result;
}

/*
 * Does all that can be done with what there is: takes bytes that came from the peer, at `in`, and
 * gives those for it; takes plain bytes to send, and gives those received. Returns 1 when the
 * session is established, 0 while hands are shaken, -EPIPE when the peer has ended it, and -EPROTO
 * where it can't go on; then, too, the bytes given are to be sent.
 */
int ubiblk_tls_step(uint64_t handle, const uint8_t *in, struct ubiblk_tls_io *io)
{
    struct tls *tls = tls_of(handle);
    tls->in = in;
    tls->in_left = io->in_length;
    tls->out = (uint8_t *)(uintptr_t)io->out;
    tls->out_left = io->out_size;
    io->plain_written = 0;
    io->plain_read = 0;
    ERR_clear_error();
    int result = shake_hands(tls);
    if (result > 0 && io->plain_in_length > 0)
        result = write_plain(tls, io);
    /* What can't be written now doesn't keep from reading. */
    if (result >= 0 && SSL_is_init_finished(tls->ssl) && io->plain_out_size > 0)
        result = read_plain(tls, io);
    io->in_taken = io->in_length - (uint32_t)tls->in_left;
    io->out_written = io->out_size - (uint32_t)tls->out_left;
    return result < 0 ? result : SSL_is_init_finished(tls->ssl) ? 1 : 0;
}

/* Says goodbye: gives the bytes for it as a step does. */
int ubiblk_tls_end(uint64_t handle, struct ubiblk_tls_io *io)
{
    struct tls *tls = tls_of(handle);
    tls->in_left = 0;
    tls->out = (uint8_t *)(uintptr_t)io->out;
    tls->out_left = io->out_size;
    ERR_clear_error();
    if (SSL_is_init_finished(tls->ssl))
        SSL_shutdown(tls->ssl);
    ERR_clear_error();
    io->out_written = io->out_size - (uint32_t)tls->out_left;
    return 0;
}

/* Why the session can't go on, in OpenSSL's words; empty while it can. */
int ubiblk_tls_error(uint64_t handle, char *buf, uint32_t size)
{
    return snprintf(buf, size, "%s", tls_of(handle)->error);
}
