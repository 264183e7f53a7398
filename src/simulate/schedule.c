/* schedule.c - arrival times by adding up gaps. */
#include "simulate/schedule.h"
#include <math.h>

void schedule_init(struct schedule *s, double per_second, bool poisson, uint64_t seed,
                   uint64_t begin_ns)
{
    assert(per_second > 0);
    *s = (struct schedule){
        .gap_ns = (double)NS_PER_S / per_second, .next_ns = (double)begin_ns, .poisson = poisson};
    rng_init(&s->rng, seed);
    schedule_advance(s);
}

uint64_t schedule_next_ns(const struct schedule *s)
{
    return (uint64_t)s->next_ns;
}

void schedule_advance(struct schedule *s)
{
    /* 1 - [0, 1) is never 0, whose logarithm there is none of */
    s->next_ns += s->poisson ? -log(1 - rng_double(&s->rng)) * s->gap_ns : s->gap_ns;
}
