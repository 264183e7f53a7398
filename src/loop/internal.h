/* internal.h - what the files of src/loop share; nobody else includes it. */
#pragma once
#include "loop/loop.h"
#include <stdatomic.h>
#include <sys/epoll.h>

/* First field that epoll's data.ptr leads to: which kind of object it is. Both loop_poll and
 * loop_stream hold it as `kind`. */
enum loop_kind { LOOP_KIND_POLL = 1, LOOP_KIND_STREAM = 2 };

#define LOOP_EVENTS_PER_TURN 256

struct loop {
    int epoll_fd, wake_fd;
    uint64_t now_ns;
    bool stopping;
    struct loop_timer **timers; /* 4-ary heap by due_ns */
    size_t timer_count, timer_capacity;
    struct list deferred;
    struct list ready;                 /* streams with more to read than their share of a turn */
    struct list closed;                /* streams whose on_closed is due */
    _Atomic(struct loop_post *) posts; /* newest first */
    struct loop_poll wake;
    /* Objects that died in this turn may still be named by events already fetched. */
    struct epoll_event events[LOOP_EVENTS_PER_TURN];
    int event_count, event_index;
    char *receive_buffer;
};

void loop_stream_on_events(struct loop_stream *s, uint32_t epoll_events);
void loop_streams_run_ready(struct loop *loop);
void loop_streams_run_closed(struct loop *loop);
void loop_timers_run(struct loop *loop);
/* Forgets events of `object` that were fetched but not yet handled. */
void loop_forget_events(struct loop *loop, const void *object);
