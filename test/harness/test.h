/* test.h - unit and property tests that print TAP.
 *
 *   TEST(a_full_queue_refuses) { CHECK(queue_push(q, r) == ERR_BUSY); }
 *   PROPERTY(queue_agrees_with_model) { ... rng_below(rng, 4) ... }   // 200 seeds, seed printed on
 * failure
 *
 * A test file is a program: link it with the harness, which has main(). Run with names to run only
 * those; `--seed N` runs properties with that seed only. */
#pragma once
#include "base/base.h"
#include "base/rng.h"
#include <stdio.h>
#include <string.h>

struct test_case {
    const char *name, *file;
    void (*test)(void);
    void (*property)(struct rng *rng);
    struct test_case *next;
};
void test_register(struct test_case *test);
/* Notes a failure of the running test; the test goes on to its end, unless REQUIRE. */
void test_fail(const char *file, int line, const char *format, ...) printf_like(3, 4);
_Noreturn void test_abort(void);
void test_skip(const char *reason); /* then return */
extern unsigned test_property_runs; /* 200; TEST_PROPERTY_RUNS in the environment changes it */

#define TEST(n)                                                                   \
    static void n(void);                                                          \
    static struct test_case n##_case = {.name = #n, .file = __FILE__, .test = n}; \
    __attribute__((constructor)) static void n##_register(void)                   \
    {                                                                             \
        test_register(&n##_case);                                                 \
    }                                                                             \
    static void n(void)
#define PROPERTY(n)                                                                   \
    static void n(struct rng *rng);                                                   \
    static struct test_case n##_case = {.name = #n, .file = __FILE__, .property = n}; \
    __attribute__((constructor)) static void n##_register(void)                       \
    {                                                                                 \
        test_register(&n##_case);                                                     \
    }                                                                                 \
    static void n(struct rng *rng)
#define CHECK(condition)                                     \
    do {                                                     \
        if (!(condition))                                    \
            test_fail(__FILE__, __LINE__, "%s", #condition); \
    } while (0)
#define REQUIRE(condition)                                   \
    do {                                                     \
        if (!(condition)) {                                  \
            test_fail(__FILE__, __LINE__, "%s", #condition); \
            test_abort();                                    \
        }                                                    \
    } while (0)
#define CHECK_EQ(a, b)                                                               \
    do {                                                                             \
        long long a_ = (long long)(a), b_ = (long long)(b);                          \
        if (a_ != b_)                                                                \
            test_fail(__FILE__, __LINE__, "%s == %s: %lld != %lld", #a, #b, a_, b_); \
    } while (0)
#define CHECK_STR(a, b)                                                                           \
    do {                                                                                          \
        const char *a_ = (a), *b_ = (b);                                                          \
        if (a_ == NULL || b_ == NULL || strcmp(a_, b_) != 0)                                      \
            test_fail(__FILE__, __LINE__, "%s == %s: \"%s\" != \"%s\"", #a, #b, a_ ? a_ : "NULL", \
                      b_ ? b_ : "NULL");                                                          \
    } while (0)
