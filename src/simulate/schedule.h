/* schedule.h - when invocations arrive. Open loop: the times are those of a process that nobody
 * holds up, so whoever is late with one is late, and does not move the next. Pure: no clock. */
#pragma once
#include "base/base.h"
#include "base/rng.h"

struct schedule {
    struct rng rng;
    double gap_ns, next_ns; /* exact to a nanosecond for 100 days */
    bool poisson;
};
/* The first arrival is one gap after begin_ns. per_second > 0. Poisson: gaps are exponential with
 * that mean; else they are all equal. */
void schedule_init(struct schedule *s, double per_second, bool poisson, uint64_t seed,
                   uint64_t begin_ns);
uint64_t schedule_next_ns(const struct schedule *s); /* of the next arrival */
void schedule_advance(struct schedule *s);           /* to the one after it */
