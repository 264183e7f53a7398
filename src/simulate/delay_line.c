/* delay_line.c - a growing ring. */
#include "simulate/delay_line.h"
#include <stdlib.h>

static struct delayed *at(const struct delay_line *d, size_t index)
{
    return &d->ring[(d->first + index) & (d->capacity - 1)];
}

static void grow(struct delay_line *d)
{
    size_t capacity = MAX(d->capacity * 2, (size_t)256);
    struct delayed *ring = mem_new_array(capacity, sizeof(*ring));
    for (size_t i = 0; i < d->count; i++)
        ring[i] = *at(d, i);
    free(d->ring);
    d->ring = ring;
    d->first = 0;
    d->capacity = capacity;
}

void delay_line_push(struct delay_line *d, uint64_t due_ns, void *item)
{
    assert(d->count == 0 || at(d, d->count - 1)->due_ns <= due_ns);
    if (d->count == d->capacity)
        grow(d);
    *at(d, d->count++) = (struct delayed){due_ns, item};
}

uint64_t delay_line_next_ns(const struct delay_line *d)
{
    return d->count > 0 ? at(d, 0)->due_ns : UINT64_MAX;
}

void *delay_line_pop(struct delay_line *d, uint64_t now_ns)
{
    if (d->count == 0 || at(d, 0)->due_ns > now_ns)
        return NULL;
    void *item = at(d, 0)->item;
    d->first = (d->first + 1) & (d->capacity - 1);
    d->count--;
    return item;
}

void delay_line_done(struct delay_line *d)
{
    free(d->ring);
    *d = (struct delay_line){0};
}
