/* samples.h - times that were measured, all of them kept: percentiles are exact. Owner: whoever
 * declares it; zeroed is empty. */
#pragma once
#include "base/base.h"

struct samples {
    uint64_t *items;
    size_t count, capacity;
    bool sorted;
};
void samples_add(struct samples *s, uint64_t value);
/* Nearest rank: the least value that at least `percent` % of all are not above; 0 when there is
 * none. 0 < percent <= 100. */
uint64_t samples_percentile(struct samples *s, double percent);
void samples_done(struct samples *s);
