/* test.c - runs registered tests, prints TAP (testanything.org, version 13). */
#include "test.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

static struct test_case *tests, **tests_end = &tests;
static unsigned failures_in_test;
static const char *skip_reason;
static jmp_buf abort_point;
unsigned test_property_runs = 200;

void test_register(struct test_case *test)
{
    *tests_end = test;
    tests_end = &test->next;
}

void test_fail(const char *file, int line, const char *format, ...)
{
    failures_in_test++;
    if (failures_in_test > 10)
        return; /* one line says it as well as a thousand */
    va_list args;
    va_start(args, format);
    printf("# %s:%d: ", file, line);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    fflush(stdout);
}

void test_abort(void)
{
    longjmp(abort_point, 1);
}

void test_skip(const char *reason)
{
    skip_reason = reason;
}

static void run_property(const struct test_case *t, uint64_t seed)
{
    struct rng rng;
    rng_init(&rng, seed);
    t->property(&rng);
    if (failures_in_test > 0)
        printf("# seed %" PRIu64 " (run again with: --seed %" PRIu64 " %s)\n", seed, seed, t->name);
}

/* A frame of its own: longjmp() back here must find no changed variable. */
static void run_one(const struct test_case *t, bool has_seed, uint64_t seed_only)
{
    if (setjmp(abort_point) != 0)
        return;
    if (t->test != NULL)
        t->test();
    else if (has_seed)
        run_property(t, seed_only);
    else
        for (uint64_t s = 1; s <= test_property_runs && failures_in_test == 0; s++)
            run_property(t, s);
}

int main(int argc, char **argv)
{
    uint64_t seed_only = 0;
    bool has_seed = false;
    int first_name = 1;
    if (argc > 2 && strcmp(argv[1], "--seed") == 0) {
        seed_only = strtoull(argv[2], NULL, 10);
        has_seed = true;
        first_name = 3;
    }
    const char *runs = getenv("TEST_PROPERTY_RUNS");
    if (runs != NULL)
        test_property_runs = (unsigned)strtoul(runs, NULL, 10);

    unsigned index = 0, failed = 0;
    for (struct test_case *t = tests; t != NULL; t = t->next) {
        bool wanted = first_name >= argc;
        for (int i = first_name; i < argc; i++)
            wanted |= strcmp(argv[i], t->name) == 0;
        if (!wanted)
            continue;
        failures_in_test = 0;
        skip_reason = NULL;
        run_one(t, has_seed, seed_only);
        index++;
        failed += failures_in_test > 0;
        printf("%s %u - %s%s%s\n", failures_in_test > 0 ? "not ok" : "ok", index, t->name,
               skip_reason != NULL ? " # SKIP " : "", skip_reason != NULL ? skip_reason : "");
        fflush(stdout);
    }
    printf("1..%u\n", index);
    return failed > 0;
}
