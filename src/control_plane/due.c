/* due.c - what must be looked at later: a binary heap by time, with places known to their owners.
 */
#include "control_plane/core_state.h"

static void place(struct control *c, size_t index, struct due *d)
{
    c->heap[index] = d;
    d->heap_index = index;
}

/* Puts `d` where it belongs, from a hole at `index`. */
static void fix(struct control *c, size_t index, struct due *d)
{
    while (index > 0 && c->heap[(index - 1) / 2]->at_ms > d->at_ms) {
        place(c, index, c->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    for (;;) {
        size_t child = index * 2 + 1;
        if (child + 1 < c->heap_count && c->heap[child + 1]->at_ms < c->heap[child]->at_ms)
            child++;
        if (child >= c->heap_count || c->heap[child]->at_ms >= d->at_ms)
            break;
        place(c, index, c->heap[child]);
        index = child;
    }
    place(c, index, d);
}

static void leave(struct control *c, struct due *d)
{
    if (d->heap_index == SIZE_MAX)
        return;
    size_t hole = d->heap_index;
    struct due *last = c->heap[--c->heap_count];
    d->heap_index = SIZE_MAX;
    if (last != d)
        fix(c, hole, last);
}

void due_at(struct control *c, struct due *d, uint64_t at_ms)
{
    if (d->heap_index != SIZE_MAX && d->at_ms == at_ms)
        return;
    if (at_ms == UINT64_MAX) {
        leave(c, d);
        return;
    }
    d->at_ms = at_ms;
    if (d->heap_index != SIZE_MAX) {
        fix(c, d->heap_index, d);
        return;
    }
    if (c->heap_count == c->heap_capacity) {
        c->heap_capacity = MAX(c->heap_capacity * 2, (size_t)64);
        c->heap = mem_resize(c->heap, c->heap_capacity, sizeof(struct due *));
    }
    fix(c, c->heap_count++, d);
}

struct due *due_take(struct control *c)
{
    if (c->heap_count == 0 || c->heap[0]->at_ms > c->now_ms)
        return NULL;
    struct due *d = c->heap[0];
    leave(c, d);
    return d;
}
