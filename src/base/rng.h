/* rng.h - seeded pseudo-random numbers (xoshiro256**, Blackman and Vigna 2018) for placement,
 * simulation and tests. Not for secrets: those come from getrandom(2). */
#pragma once
#include "base/base.h"
struct rng {
    uint64_t s[4];
};
void rng_init(struct rng *r, uint64_t seed); /* any seed, also 0 */
uint64_t rng_next(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t bound); /* 0 .. bound-1, unbiased; bound > 0 */
double rng_double(struct rng *r);                  /* [0, 1) */
