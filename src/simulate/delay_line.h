/* delay_line.h - things that come out after a delay, in the order in which they went in: what all
 * take equally long needs no heap of timers. Pure: no clock. Owner: whoever declares it; zeroed is
 * empty. */
#pragma once
#include "base/base.h"

struct delay_line {
    struct delayed {
        uint64_t due_ns;
        void *item;
    } * ring;
    size_t first, count, capacity; /* capacity: a power of two, or 0 */
};
/* due_ns is not before that of what went in last. */
void delay_line_push(struct delay_line *d, uint64_t due_ns, void *item);
uint64_t delay_line_next_ns(const struct delay_line *d); /* UINT64_MAX: it is empty */
/* The first item if it is due at now_ns; else NULL. */
void *delay_line_pop(struct delay_line *d, uint64_t now_ns);
void delay_line_done(struct delay_line *d); /* the items are not freed */
