/* memory.c: buffers, a peer's memory and its truncation, copies to and from vectors. */
#include "ubiblk.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "test.h"

enum { PAGE = 4096 };

static uint8_t *bytes(int64_t address)
{
    return (uint8_t *)(uintptr_t)address;
}

static void gives_zeroed_pages(void)
{
    int64_t at = ubiblk_memory_map(3 * PAGE);

    CHECK(at > 0 && at % PAGE == 0);
    CHECK(bytes(at)[0] == 0 && bytes(at)[3 * PAGE - 1] == 0);
    CHECK_EQUAL(ubiblk_memory_fill((uint64_t)at, 0xab, 3 * PAGE), 0);
    CHECK(bytes(at)[3 * PAGE - 1] == 0xab);
    CHECK_EQUAL(ubiblk_memory_unmap((uint64_t)at, 3 * PAGE), 0);
    CHECK_EQUAL(ubiblk_memory_map(0), -EINVAL);
}

static void shares_a_peers_memory_at_any_offset(void)
{
    int fd = ubiblk_memory_memfd("test", 4 * PAGE);
    uint64_t mapping[3];
    int64_t at = ubiblk_memory_map_shared(fd, PAGE + 100, PAGE, mapping);

    CHECK(at > 0 && at % PAGE == 100);
    CHECK_EQUAL(pwrite(fd, "hello", 5, PAGE + 100), 5);
    CHECK(memcmp(bytes(at), "hello", 5) == 0);
    bytes(at)[PAGE - 1] = 'x';
    char last;
    CHECK_EQUAL(pread(fd, &last, 1, 2 * PAGE + 99), 1);
    CHECK_EQUAL(last, 'x');
    CHECK_EQUAL(ubiblk_memory_unmap_shared(mapping[0], mapping[1]), 0);
    close(fd);
}

static void maps_nothing_past_the_end_of_the_file(void)
{
    int fd = ubiblk_memory_memfd("test", 2 * PAGE), event = ubiblk_eventfd();
    uint64_t mapping[3];

    CHECK_EQUAL(ubiblk_memory_map_shared(fd, 0, 2 * PAGE + 1, mapping), -ERANGE);
    CHECK_EQUAL(ubiblk_memory_map_shared(fd, 2 * PAGE, 1, mapping), -ERANGE);
    CHECK_EQUAL(ubiblk_memory_map_shared(fd, 0, 0, mapping), -ERANGE);
    CHECK_EQUAL(ubiblk_memory_map_shared(fd, UINT64_MAX, 2, mapping), -ERANGE);
    CHECK_EQUAL(ubiblk_memory_map_shared(fd, 2, UINT64_MAX, mapping), -ERANGE);
    CHECK_EQUAL(ubiblk_memory_map_shared(event, 0, 1, mapping), -EBADF);
    CHECK_EQUAL(ubiblk_memory_map_shared(-1, 0, 1, mapping), -EBADF);
    close(fd), close(event);
}

static void outlives_a_peer_that_truncates_its_memory(void)
{
    const uint32_t *lost = (const uint32_t *)(uintptr_t)ubiblk_memory_lost_counter();
    int fd = ubiblk_memory_memfd("test", 4 * PAGE);
    uint64_t mapping[3];
    int64_t at = ubiblk_memory_map_shared(fd, 0, 4 * PAGE, mapping);
    uint32_t before = *lost;

    memset(bytes(at), 1, 4 * PAGE);
    CHECK_EQUAL(ftruncate(fd, PAGE), 0);
    CHECK_EQUAL(*(volatile uint8_t *)bytes(at + 2 * PAGE), 0);
    CHECK_EQUAL(__atomic_load_n(lost, __ATOMIC_SEQ_CST), before + 1);
    bytes(at)[3 * PAGE] = 7;
    CHECK_EQUAL(__atomic_load_n(lost, __ATOMIC_SEQ_CST), before + 1);
    CHECK_EQUAL(ubiblk_memory_unmap_shared(mapping[0], mapping[1]), 0);
    close(fd);
}

static void gathers_and_scatters_across_pieces(void)
{
    char a[3] = "abc", b[1] = "d", c[4] = "efgh", flat[8];
    struct iovec vector[] = {{a, 3}, {NULL, 0}, {b, 1}, {c, 4}};
    uint64_t iov = (uintptr_t)vector, at = (uintptr_t)flat;

    CHECK_EQUAL(ubiblk_memory_gather(at, iov, 4, 0, 8), 0);
    CHECK(memcmp(flat, "abcdefgh", 8) == 0);
    CHECK_EQUAL(ubiblk_memory_gather(at, iov, 4, 2, 3), 0);
    CHECK(memcmp(flat, "cdedefgh", 8) == 0);
    memcpy(flat, "12345678", 8);
    CHECK_EQUAL(ubiblk_memory_scatter(iov, 4, 3, at, 2), 0);
    CHECK(a[2] == 'c' && b[0] == '1' && c[0] == '2' && c[1] == 'f');
    CHECK_EQUAL(ubiblk_memory_gather(at, iov, 4, 1, 8), -EINVAL);
    CHECK_EQUAL(ubiblk_memory_gather(at, iov, 4, 8, 0), 0);
}

int main(void)
{
    RUN(gives_zeroed_pages);
    RUN(shares_a_peers_memory_at_any_offset);
    RUN(maps_nothing_past_the_end_of_the_file);
    RUN(outlives_a_peer_that_truncates_its_memory);
    RUN(gathers_and_scatters_across_pieces);
    return test_summary();
}
