/* Looks for bytes in all of this process's memory: in the arena of secrets, and outside of it. */
#ifndef UBIBLK_TEST_SEARCH_H
#define UBIBLK_TEST_SEARCH_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "../secret.h"
#include "test.h"

static inline uint64_t address(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

/* What is looked for in memory, masked so that it is not found here. */
enum { NEEDLE = 16, MASK = 0xa5, LARGEST_MAPPING = 64 << 20 };

static uint8_t needles[8][NEEDLE];
static int needle_count;

static inline void look_for(const uint8_t *bytes)
{
    for (int i = 0; i < NEEDLE; i++)
        needles[needle_count][i] = bytes[i] ^ MASK;
    needle_count++;
}

/* Not sanitized: memory that was freed is looked at as well. */
__attribute__((no_sanitize("address", "undefined"))) static int count_needles(uintptr_t start,
                                                                              uintptr_t end)
{
    int found = 0;

    for (uintptr_t at = start; at + NEEDLE <= end; at++) {
        const uint8_t *bytes = (const uint8_t *)at;
        for (int n = 0; n < needle_count; n++) {
            int same = 0;
            while (same < NEEDLE && (bytes[same] ^ MASK) == needles[n][same])
                same++;
            found += same == NEEDLE;
        }
    }
    return found;
}

struct found {
    int inside, outside;
};

/* Counts them in the arena and in all other writable memory but the sanitizer's shadow. */
static inline struct found search(void)
{
    struct found found = {0, 0};
    void *secret = secret_alloc(64);
    FILE *file = fopen("/proc/self/maps", "re");
    char line[512];

    CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        unsigned long start, end;
        char mode[5];
        if (sscanf(line, "%lx-%lx %4s", &start, &end, mode) != 3 || strncmp(mode, "rw", 2) != 0 ||
            end - start > LARGEST_MAPPING)
            continue;
        int inside = address(secret) >= start && address(secret) < end;
        *(inside ? &found.inside : &found.outside) += count_needles(start, end);
    }
    if (file != NULL)
        fclose(file);
    secret_free(secret);
    return found;
}

#endif
