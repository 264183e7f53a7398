/* timers.c - a 4-ary heap of running timers; each knows its place, so that stopping is O(log n). */
#include "loop/internal.h"

static void place(struct loop *loop, size_t index, struct loop_timer *timer)
{
    loop->timers[index] = timer;
    timer->heap_index = index;
}

static void sift_up(struct loop *loop, size_t index, struct loop_timer *timer)
{
    while (index > 0) {
        size_t parent = (index - 1) / 4;
        if (loop->timers[parent]->due_ns <= timer->due_ns)
            break;
        place(loop, index, loop->timers[parent]);
        index = parent;
    }
    place(loop, index, timer);
}

static void sift_down(struct loop *loop, size_t index, struct loop_timer *timer)
{
    for (;;) {
        size_t first = index * 4 + 1, least = first;
        if (first >= loop->timer_count)
            break;
        for (size_t child = first + 1; child < MIN(first + 4, loop->timer_count); child++)
            if (loop->timers[child]->due_ns < loop->timers[least]->due_ns)
                least = child;
        if (loop->timers[least]->due_ns >= timer->due_ns)
            break;
        place(loop, index, loop->timers[least]);
        index = least;
    }
    place(loop, index, timer);
}

void loop_timer_init(struct loop_timer *timer, loop_on_timer *on_timer)
{
    *timer = (struct loop_timer){.on_timer = on_timer, .heap_index = SIZE_MAX};
}

void loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t due_ns)
{
    uint64_t old_due_ns = timer->due_ns;
    timer->due_ns = due_ns;
    if (timer->heap_index != SIZE_MAX) {
        if (due_ns < old_due_ns)
            sift_up(loop, timer->heap_index, timer);
        else
            sift_down(loop, timer->heap_index, timer);
        return;
    }
    if (loop->timer_count == loop->timer_capacity) {
        loop->timer_capacity = MAX(loop->timer_capacity * 2, (size_t)64);
        loop->timers = mem_resize(loop->timers, loop->timer_capacity, sizeof(struct loop_timer *));
    }
    sift_up(loop, loop->timer_count++, timer);
}

void loop_timer_stop(struct loop *loop, struct loop_timer *timer)
{
    if (timer->on_timer == NULL || timer->heap_index == SIZE_MAX)
        return; /* zeroed or not running */
    size_t index = timer->heap_index;
    timer->heap_index = SIZE_MAX;
    struct loop_timer *last = loop->timers[--loop->timer_count];
    if (last == timer)
        return;
    if (index > 0 && last->due_ns < loop->timers[(index - 1) / 4]->due_ns)
        sift_up(loop, index, last);
    else
        sift_down(loop, index, last);
}

void loop_timers_run(struct loop *loop)
{
    /* A timer that is started again for now or the past runs in the next turn, not for ever in this
     * one. */
    size_t most = loop->timer_count;
    while (loop->timer_count > 0 && loop->timers[0]->due_ns <= loop->now_ns && most-- > 0) {
        struct loop_timer *timer = loop->timers[0];
        loop_timer_stop(loop, timer);
        timer->on_timer(timer);
    }
}
