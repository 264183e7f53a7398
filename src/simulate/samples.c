/* samples.c - an array, sorted when it is asked. */
#include "simulate/samples.h"
#include <math.h>
#include <stdlib.h>

void samples_add(struct samples *s, uint64_t value)
{
    if (s->count == s->capacity) {
        s->capacity = MAX(s->capacity * 2, (size_t)1024);
        s->items = mem_resize(s->items, s->capacity, sizeof(*s->items));
    }
    s->items[s->count++] = value;
    s->sorted = false;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

uint64_t samples_percentile(struct samples *s, double percent)
{
    assert(percent > 0 && percent <= 100);
    if (s->count == 0)
        return 0;
    if (!s->sorted)
        qsort(s->items, s->count, sizeof(*s->items), compare);
    s->sorted = true;
    size_t rank = (size_t)ceil((double)s->count * percent / 100);
    return s->items[MIN(MAX(rank, (size_t)1), s->count) - 1];
}

void samples_done(struct samples *s)
{
    free(s->items);
    *s = (struct samples){0};
}
