/* clock.c - the events to come: a binary heap by time, then by when they were planned. */
#include "sim.h"
#include <stdlib.h>

static bool is_before(const struct event *a, const struct event *b)
{
    return a->at_ms != b->at_ms ? a->at_ms < b->at_ms : a->order < b->order;
}

static void push(struct sim *s, struct event e)
{
    if (s->heap_count == s->heap_capacity) {
        s->heap_capacity = MAX(s->heap_capacity * 2, (size_t)256);
        s->heap = mem_resize(s->heap, s->heap_capacity, sizeof(*s->heap));
    }
    e.at_ms = MAX(e.at_ms, s->now_ms);
    if (e.order == 0)
        e.order = ++s->order;
    size_t index = s->heap_count++;
    for (; index > 0 && is_before(&e, &s->heap[(index - 1) / 2]); index = (index - 1) / 2)
        s->heap[index] = s->heap[(index - 1) / 2];
    s->heap[index] = e;
}

void clock_at(struct sim *s, uint64_t at_ms, void (*run)(struct sim *, const struct event *),
              uint64_t a, uint64_t b)
{
    push(s, (struct event){.at_ms = at_ms, .run = run, .a = a, .b = b});
}

void clock_after(struct sim *s, uint64_t ms, void (*run)(struct sim *, const struct event *),
                 uint64_t a, uint64_t b)
{
    clock_at(s, s->now_ms + ms, run, a, b);
}

void clock_deliver(struct sim *s, uint64_t at_ms, void (*run)(struct sim *, const struct event *),
                   struct frame *frame)
{
    push(s, (struct event){.at_ms = at_ms, .run = run, .frame = frame});
}

void clock_again(struct sim *s, struct event e, uint64_t at_ms)
{
    e.at_ms = at_ms;
    push(s, e);
}

bool clock_next(struct sim *s, uint64_t until_ms, struct event *ret_event)
{
    if (s->heap_count == 0 || s->heap[0].at_ms > until_ms)
        return false;
    *ret_event = s->heap[0];
    s->now_ms = ret_event->at_ms;
    struct event last = s->heap[--s->heap_count];
    size_t index = 0;
    for (size_t child; (child = index * 2 + 1) < s->heap_count; index = child) {
        if (child + 1 < s->heap_count && is_before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!is_before(&s->heap[child], &last))
            break;
        s->heap[index] = s->heap[child];
    }
    s->heap[index] = last;
    return true;
}

void clock_done(struct sim *s)
{
    for (size_t i = 0; i < s->heap_count; i++)
        network_frame_free(s->heap[i].frame);
    free(s->heap);
    s->heap = NULL;
    s->heap_count = s->heap_capacity = 0;
}
