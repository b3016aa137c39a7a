/*
 * The clock that requests are timed with: two looks for each that is alone. It is CLOCK_MONOTONIC,
 * until it has told how fast the processor's counter runs; then it is the counter, which is read in
 * a third of the time. That needs a counter that the kernel trusts itself: the same on all
 * processors, at one rate.
 */
#include "ubiblk.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

/* The longer the two clocks are compared, the less the moments between two looks matter. */
static const double COMPARED_NS = 1e8;

enum { UNKNOWN, COMPARING, SETTLING, COUNTER, SYSTEM };
static atomic_int state = UNKNOWN;
/* Written by whoever takes the state away from UNKNOWN or COMPARING, read in later states alone. */
static uint64_t first_count, base_count;
static double first_ns, base_ns, ns_per_count;

static double system_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

#if defined(__x86_64__)
static int counter_is_trusted(void)
{
    char name[16] = "";
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
    if (!file)
        return 0;
    int trusted = fgets(name, sizeof(name), file) && !strcmp(name, "tsc\n");
    fclose(file);
    return trusted;
}

/* One moment by both clocks: of several tries the one with the least time in between. */
static void look_at_both(double *ns, uint64_t *count)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < 8; i++) {
        uint64_t before = __rdtsc();
        double now = system_ns();
        uint64_t after = __rdtsc();
        if (after - before >= least)
            continue;
        least = after - before;
        *ns = now;
        *count = before + least / 2;
    }
}

static double compare(void)
{
    int before = atomic_load(&state);
    double now = system_ns();
    if (before == UNKNOWN && atomic_compare_exchange_strong(&state, &before, SETTLING)) {
        look_at_both(&first_ns, &first_count);
        atomic_store(&state, counter_is_trusted() ? COMPARING : SYSTEM);
    } else if (before == COMPARING && now - first_ns > COMPARED_NS &&
               atomic_compare_exchange_strong(&state, &before, SETTLING)) {
        look_at_both(&base_ns, &base_count);
        ns_per_count = (base_ns - first_ns) / (double)(base_count - first_count);
        atomic_store(&state, COUNTER);
    }
    return now;
}

/* Nanoseconds of a clock that all threads share: Bun's own begins anew in each. */
double ubiblk_clock_ns(void)
{
    int now = atomic_load_explicit(&state, memory_order_acquire);
    if (now == COUNTER)
        return base_ns + (double)(int64_t)(__rdtsc() - base_count) * ns_per_count;
    return now == SYSTEM ? system_ns() : compare();
}
#else
double ubiblk_clock_ns(void)
{
    return system_ns();
}
#endif
