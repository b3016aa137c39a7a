/* The least that a C test needs: CHECK, RUN and a last line of "N passed, N failed". */
#ifndef UBIBLK_TEST_H
#define UBIBLK_TEST_H

#include <stdio.h>

static int test_failures, tests_passed, tests_failed;

/* Notes a failure with its place and goes on. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                         \
            test_failures++;                                                                       \
        }                                                                                          \
    } while (0)

/* The same for two integers, with their values. */
#define CHECK_EQUAL(actual, expected)                                                              \
    do {                                                                                           \
        long long actual_ = (long long)(actual), expected_ = (long long)(expected);                \
        if (actual_ != expected_) {                                                                \
            printf("%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #actual, actual_,          \
                   expected_);                                                                     \
            test_failures++;                                                                       \
        }                                                                                          \
    } while (0)

#define RUN(test)                                                                                  \
    do {                                                                                           \
        test_failures = 0;                                                                         \
        test();                                                                                    \
        printf("%s %s\n", test_failures ? "FAIL" : "ok  ", #test);                                 \
        if (test_failures)                                                                         \
            tests_failed++;                                                                        \
        else                                                                                       \
            tests_passed++;                                                                        \
        fflush(stdout);                                                                            \
    } while (0)

static inline int test_summary(void)
{
    printf("%d passed, %d failed\n", tests_passed, tests_failed);
    return tests_failed != 0;
}

#endif
