/* clock.c: the clock that requests are timed with, before and after it changes its way of counting.
 */
#include "ubiblk.h"

#include <pthread.h>
#include <time.h>

#include "test.h"

static double system_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

/* 300 ms: the way of counting changes in it. */
static void *is_the_systems_clock(void *unused)
{
    double most = 0, start = system_ns(), last = 0, now = 0;
    long turns = 0;
    while (last - start < 3e8) {
        now = ubiblk_clock_ns();
        last = system_ns();
        double late = last - now;
        /* It was looked at first; a processor that was taken away in between makes it later. */
        if (late < -2e4 || late > 1e9)
            most = late;
        turns++;
    }
    CHECK(turns > 100);
    CHECK_EQUAL((long)most, 0);
    return unused;
}

static void shows_the_same_time_to_all_threads(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(pthread_create(&threads[i], NULL, is_the_systems_clock, NULL), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    is_the_systems_clock(NULL);
}

static void never_goes_back(void)
{
    double last = ubiblk_clock_ns();
    long back = 0;
    for (int i = 0; i < 1000000; i++) {
        double now = ubiblk_clock_ns();
        back += now < last;
        last = now;
    }
    CHECK_EQUAL(back, 0);
}

int main(void)
{
    RUN(shows_the_same_time_to_all_threads);
    RUN(never_goes_back);
    return test_summary();
}
