/* Two sessions that talk to each other through memory, and peers that don't know how to. */
#include "../secret.h"
#include "../ubiblk.h"
#include "search.h"
#include "test.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/ssl.h>

static const uint8_t secret[32] = "a secret of thirty-two bytes...";
static const uint8_t other_secret[32] = "another one of thirty-two bytes";

enum { WIRE_SIZE = 1 << 16, OUT_SIZE = 1 << 15 };

/* One end: its session, and what it was sent and has not taken yet. */
struct end {
    uint64_t handle;
    uint8_t wire[WIRE_SIZE];
    uint32_t wire_length;
    int state;
    char error[128];
};

static struct end client, server;

static int begin(struct end *end, int is_server, const char *identity, const uint8_t *key)
{
    memset(end, 0, sizeof(*end));
    return ubiblk_tls_open(is_server, identity, address(key), 32, &end->handle);
}

/* One step of an end that takes at most `most` bytes of its wire; what it says goes to the other.
 */
static struct ubiblk_tls_io step(struct end *end, struct end *other, uint32_t most,
                                 const void *send, uint32_t send_length, void *receive,
                                 uint32_t receive_size)
{
    static uint8_t out[OUT_SIZE];
    struct ubiblk_tls_io io = {.out = address(out),
                               .out_size = other ? WIRE_SIZE - other->wire_length : OUT_SIZE,
                               .plain_in = address(send),
                               .plain_in_length = send_length,
                               .plain_out = address(receive),
                               .plain_out_size = receive_size,
                               .in_length = end->wire_length < most ? end->wire_length : most};
    if (io.out_size > OUT_SIZE)
        io.out_size = OUT_SIZE;
    end->state = ubiblk_tls_step(end->handle, end->wire, &io);
    memmove(end->wire, end->wire + io.in_taken, end->wire_length - io.in_taken);
    end->wire_length -= io.in_taken;
    if (other) {
        memcpy(other->wire + other->wire_length, out, io.out_written);
        other->wire_length += io.out_written;
    }
    ubiblk_tls_error(end->handle, end->error, sizeof(end->error));
    return io;
}

/* Both in turns, until both are established or one has failed and the other has heard of it. */
static void shake_hands(uint32_t most)
{
    for (int turn = 0; turn < 10000; turn++) {
        step(&client, &server, most, NULL, 0, NULL, 0);
        step(&server, &client, most, NULL, 0, NULL, 0);
        if (client.state != 0 && server.state != 0)
            break;
    }
}

static void end_both(void)
{
    ubiblk_tls_close(client.handle);
    ubiblk_tls_close(server.handle);
}

static void connect_both(void)
{
    CHECK_EQUAL(begin(&client, 0, "me", secret), 0);
    CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
    shake_hands(WIRE_SIZE);
    CHECK_EQUAL(client.state, 1);
    CHECK_EQUAL(server.state, 1);
}

static void shakes_hands_byte_by_byte(void)
{
    CHECK_EQUAL(begin(&client, 0, "me", secret), 0);
    CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
    shake_hands(1);
    CHECK_EQUAL(client.state, 1);
    CHECK_EQUAL(server.state, 1);
    end_both();
}

static void carries_megabytes_in_pieces_of_any_size(void)
{
    enum { LENGTH = 3 << 20 };
    static uint8_t sent[LENGTH], received[LENGTH];
    uint32_t written = 0, read = 0;
    srand(7);
    for (int i = 0; i < LENGTH; i++)
        sent[i] = (uint8_t)rand();
    connect_both();
    while (read < LENGTH) {
        uint32_t most = (uint32_t)rand() % 40000 + 1;
        uint32_t piece = (uint32_t)rand() % 100000;
        if (piece > LENGTH - written)
            piece = LENGTH - written;
        written += step(&server, &client, 0, sent + written, piece, NULL, 0).plain_written;
        uint32_t room = (uint32_t)rand() % 50000 + 1;
        if (room > LENGTH - read)
            room = LENGTH - read;
        read += step(&client, &server, most, NULL, 0, received + read, room).plain_read;
        if (client.state != 1 || server.state != 1)
            break;
    }
    CHECK_EQUAL(written, LENGTH);
    CHECK(memcmp(sent, received, LENGTH) == 0);
    end_both();
}

static void refuses_another_identity(void)
{
    CHECK_EQUAL(begin(&client, 0, "you", secret), 0);
    CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
    shake_hands(WIRE_SIZE);
    CHECK_EQUAL(server.state, -EPROTO);
    CHECK_EQUAL(client.state, -EPROTO);
    CHECK(strstr(client.error, "unknown psk identity") != NULL);
    end_both();
}

static void refuses_an_identity_that_begins_alike(void)
{
    CHECK_EQUAL(begin(&client, 0, "me too", secret), 0);
    CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
    shake_hands(WIRE_SIZE);
    CHECK_EQUAL(server.state, -EPROTO);
    end_both();
}

static void refuses_another_secret(void)
{
    CHECK_EQUAL(begin(&client, 0, "me", other_secret), 0);
    CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
    shake_hands(WIRE_SIZE);
    CHECK_EQUAL(server.state, -EPROTO);
    CHECK_EQUAL(client.state, -EPROTO);
    end_both();
}

static void refuses_what_is_no_tls(void)
{
    static const char hello[] = "\2\0\0\0\0\0\0\0\0 plain bytes of another protocol";
    CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
    memcpy(server.wire, hello, sizeof(hello));
    server.wire_length = sizeof(hello);
    step(&server, NULL, WIRE_SIZE, NULL, 0, NULL, 0);
    CHECK_EQUAL(server.state, -EPROTO);
    CHECK(server.error[0] != 0);
    ubiblk_tls_close(server.handle);
}

static void refuses_a_record_that_was_changed(void)
{
    uint8_t received[100];
    connect_both();
    step(&server, &client, 0, "0123456789", 10, NULL, 0);
    client.wire[client.wire_length - 1] ^= 1;
    struct ubiblk_tls_io io =
        step(&client, &server, WIRE_SIZE, NULL, 0, received, sizeof(received));
    CHECK_EQUAL(client.state, -EPROTO);
    CHECK_EQUAL(io.plain_read, 0);
    end_both();
}

static void tells_of_the_end(void)
{
    static uint8_t out[OUT_SIZE];
    uint8_t received[10];
    struct ubiblk_tls_io io = {.out = address(out), .out_size = OUT_SIZE};
    connect_both();
    CHECK_EQUAL(ubiblk_tls_end(server.handle, &io), 0);
    memcpy(client.wire, out, io.out_written);
    client.wire_length = io.out_written;
    step(&client, &server, WIRE_SIZE, NULL, 0, received, sizeof(received));
    CHECK_EQUAL(client.state, -EPIPE);
    end_both();
}

static void takes_no_garbage_at_any_moment(void)
{
    for (unsigned seed = 0; seed < 300; seed++) {
        uint8_t received[1000];
        srand(seed);
        CHECK_EQUAL(begin(&client, 0, "me", secret), 0);
        CHECK_EQUAL(begin(&server, 1, "me", secret), 0);
        int at = rand() % 6;
        for (int turn = 0; turn < 12; turn++) {
            struct end *end = turn % 2 ? &server : &client, *other = turn % 2 ? &client : &server;
            if (turn >= at && end->wire_length > 0)
                end->wire[(uint32_t)rand() % end->wire_length] ^= (uint8_t)(1 + rand() % 255);
            step(end, other, WIRE_SIZE, "hello", 5, received, sizeof(received));
            if (end->state < 0)
                break;
        }
        end_both();
    }
    CHECK(1);
}

static void refuses_identities_and_secrets_of_wrong_lengths(void)
{
    static char long_identity[300];
    uint64_t handle;
    memset(long_identity, 'x', sizeof(long_identity) - 1);
    CHECK_EQUAL(ubiblk_tls_open(0, "", address(secret), 32, &handle), -EINVAL);
    CHECK_EQUAL(ubiblk_tls_open(0, long_identity, address(secret), 32, &handle), -EINVAL);
    CHECK_EQUAL(ubiblk_tls_open(0, "me", address(secret), 0, &handle), -EINVAL);
    CHECK_EQUAL(ubiblk_tls_open(0, "me", address(secret), 513, &handle), -EINVAL);
}

/* The key that a session's keys are made of, masked, so that it isn't found here. */
static void look_for_master_key(uint64_t handle)
{
    uint8_t key[48];
    SSL *ssl = *(SSL **)(uintptr_t)handle;
    CHECK_EQUAL(SSL_SESSION_get_master_key(SSL_get_session(ssl), key, sizeof(key)), sizeof(key));
    for (size_t at = 0; at < sizeof(key); at += NEEDLE)
        look_for(key + at);
    OPENSSL_cleanse(key, sizeof(key));
}

static void keys_are_in_the_arena_alone(void)
{
    uint8_t *key = secret_alloc(32), *received = malloc(100);
    for (int i = 0; i < 32; i++)
        key[i] = (uint8_t)(i * 37 + 11);
    look_for(key);
    look_for(key + NEEDLE);
    CHECK_EQUAL(begin(&client, 0, "me", key), 0);
    CHECK_EQUAL(begin(&server, 1, "me", key), 0);
    shake_hands(WIRE_SIZE);
    look_for_master_key(client.handle);
    step(&server, &client, 0, "0123456789", 10, NULL, 0);
    CHECK_EQUAL(step(&client, &server, WIRE_SIZE, NULL, 0, received, 100).plain_read, 10);
    struct found found = search();
    /* Two halves of the secret, and three parts of what both sides have made of it. */
    CHECK(found.inside >= 2 + 3 * 2);
    CHECK_EQUAL(found.outside, 0);
    end_both();
    secret_free(key);
    found = search();
    CHECK_EQUAL(found.inside, 0);
    CHECK_EQUAL(found.outside, 0);
    free(received);
}

/* As many as a server has clients, and more. */
static void has_room_for_thousands_of_sessions(void)
{
    enum { COUNT = 2000 };
    static uint64_t handles[2 * COUNT];
    for (int i = 0; i < COUNT; i++) {
        connect_both();
        handles[2 * i] = client.handle;
        handles[2 * i + 1] = server.handle;
        if (client.state != 1 || server.state != 1)
            break;
    }
    for (int i = 0; i < 2 * COUNT && handles[i]; i++)
        ubiblk_tls_close(handles[i]);
}

int main(void)
{
    RUN(shakes_hands_byte_by_byte);
    RUN(carries_megabytes_in_pieces_of_any_size);
    RUN(refuses_another_identity);
    RUN(refuses_an_identity_that_begins_alike);
    RUN(refuses_another_secret);
    RUN(refuses_what_is_no_tls);
    RUN(refuses_a_record_that_was_changed);
    RUN(tells_of_the_end);
    RUN(takes_no_garbage_at_any_moment);
    RUN(keys_are_in_the_arena_alone);
    RUN(has_room_for_thousands_of_sessions);
    RUN(refuses_identities_and_secrets_of_wrong_lengths);
    return test_summary();
}
