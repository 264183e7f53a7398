/* simulate_test.c - the pure parts of the simulation: when invocations arrive, percentiles, delays.
 */
#include "simulate/delay_line.h"
#include "simulate/samples.h"
#include "simulate/schedule.h"
#include "test.h"
#include <math.h>
#include <stdlib.h>

TEST(uniform_arrivals_are_a_gap_apart)
{
    struct schedule s;
    schedule_init(&s, 1000, false, 1, 5 * NS_PER_S);
    for (uint64_t i = 1; i <= 100000; i++) {
        CHECK_EQ(schedule_next_ns(&s), 5 * NS_PER_S + i * NS_PER_MS);
        schedule_advance(&s);
    }
}

/* Mean and deviation of an exponential distribution are equal. */
PROPERTY(poisson_arrivals_have_the_rate_and_spread_of_their_process)
{
    enum { COUNT = 20000 };
    struct schedule s;
    double squares = 0, gap = 1e9 / 2500;
    uint64_t begin = 1000, last = begin;
    schedule_init(&s, 2500, true, rng_next(rng), begin);
    for (int i = 0; i < COUNT; i++) {
        uint64_t next = schedule_next_ns(&s);
        CHECK(next >= last);
        squares += (double)(next - last) * (double)(next - last);
        last = next;
        schedule_advance(&s);
    }
    double mean = (double)(last - begin) / COUNT, deviation = sqrt(squares / COUNT - mean * mean);
    CHECK(fabs(mean / gap - 1) < 0.05);
    CHECK(fabs(deviation / gap - 1) < 0.1);
}

TEST(the_same_seed_gives_the_same_arrivals_and_another_does_not)
{
    struct schedule a, b, c;
    schedule_init(&a, 10, true, 7, 0);
    schedule_init(&b, 10, true, 7, 0);
    schedule_init(&c, 10, true, 8, 0);
    CHECK_EQ(schedule_next_ns(&a), schedule_next_ns(&b));
    CHECK(schedule_next_ns(&a) != schedule_next_ns(&c));
}

TEST(percentiles_are_those_of_the_nearest_rank)
{
    struct samples s = {0};
    CHECK_EQ(samples_percentile(&s, 99), 0);
    for (uint64_t i = 1000; i > 0; i--)
        samples_add(&s, i);
    CHECK_EQ(samples_percentile(&s, 50), 500);
    CHECK_EQ(samples_percentile(&s, 99), 990);
    CHECK_EQ(samples_percentile(&s, 99.9), 999);
    CHECK_EQ(samples_percentile(&s, 100), 1000);
    CHECK_EQ(samples_percentile(&s, 0.01), 1);
    samples_add(&s, 5000); /* after it was sorted */
    CHECK_EQ(samples_percentile(&s, 100), 5000);
    samples_done(&s);
}

/* For any sample and any percentage: enough are not above it, and of the next lower one that is not
 * so. */
PROPERTY(a_percentile_is_what_its_definition_says)
{
    struct samples s = {0};
    size_t count = 1 + rng_below(rng, 300), not_above = 0, below = 0;
    double percent = 0.1 + rng_double(rng) * 99.9;
    for (size_t i = 0; i < count; i++)
        samples_add(&s, rng_below(rng, 50));
    uint64_t value = samples_percentile(&s, percent);
    for (size_t i = 0; i < count; i++) {
        not_above += s.items[i] <= value;
        below += s.items[i] < value;
    }
    CHECK((double)not_above >= (double)count * percent / 100);
    CHECK((double)below < (double)count * percent / 100);
    samples_done(&s);
}

/* A line agrees with a plain array of what went in and has not come out. */
PROPERTY(a_delay_line_agrees_with_a_plain_array)
{
    struct delay_line d = {0};
    struct delayed model[2000];
    size_t first = 0, end = 0;
    uint64_t now = 100;
    for (int step = 0; step < 3000 && end < ARRAY_COUNT(model); step++) {
        if (rng_below(rng, 100) < 60) {
            model[end] = (struct delayed){now + 50, (void *)(uintptr_t)(end + 1)};
            delay_line_push(&d, model[end].due_ns, model[end].item);
            end++;
        } else {
            bool is_due = first < end && model[first].due_ns <= now;
            CHECK(delay_line_pop(&d, now) == (is_due ? model[first].item : NULL));
            first += is_due;
        }
        CHECK_EQ(delay_line_next_ns(&d), first < end ? model[first].due_ns : UINT64_MAX);
        now += rng_below(rng, 3);
    }
    delay_line_done(&d);
}
