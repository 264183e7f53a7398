/* thread.h - one thread that serves requests: its own listener, loop, routing table and connections
 * to sandboxes. Threads share the routes (route.h) and nothing else; what changes is posted to them
 * by the control thread. */
#pragma once
#include "data_plane/route.h"

struct thread; /* opaque */

/* What all threads are told at their start. Constant but for what is atomic. Outlives them. */
struct thread_shared {
    uint32_t thread_count;    /* of those that serve; the control thread has index thread_count in
                                 dispatches */
    uint32_t connections_max; /* of clients, each thread */
    uint64_t head_timeout_ns, idle_timeout_ns;
    struct loop *control_loop;
    _Atomic bool ready;            /* has had routes from a control plane */
    _Atomic bool control_plane_up; /* connected and welcome now */
    struct thread **threads;       /* all of them, set before they run */
    void *user;                    /* the control thread's */
    /* Called on the control thread's loop, for posts made by threads. An endpoint was ejected: it
     * is to be admitted again later. `reason` NULL: for another's failure. */
    void (*on_endpoint_failed)(struct thread_shared *shared, uint64_t sandbox_id,
                               const char *reason);
    void (*on_thread_stopped)(struct thread_shared *shared);
};

/* Takes the listening socket over. */
must_check enum err thread_new(struct thread_shared *shared, uint32_t index, int listen_fd,
                               struct thread **ret_thread, struct error *e);
/* Begins to accept, with all updates in force that it was told until now. */
must_check enum err thread_start(struct thread *t, struct error *e);
/* Control thread: no new connections; answers say `Connection: close`; on_thread_stopped when the
 * last request has ended, or at `deadline_ns`, when those that are left are cut. */
void thread_stop(struct thread *t, uint64_t deadline_ns);
/* After on_thread_stopped: waits for the thread's end. */
void thread_join(struct thread *t);
/* Joined: posts that came after its end are carried out by the caller. */
void thread_run_late(struct thread *t);
void thread_free(struct thread *t); /* joined, or never started */

/* A change of the routing tables, carried out by every thread on its own loop. */
struct update_item {
    /* SANDBOX_DRAINS: idle connections are closed. SANDBOX_GONE: those in use too, when they do not
     * end by themselves within a second. */
    enum { ROUTE_ADD, ROUTE_REMOVE, SANDBOX_DRAINS, SANDBOX_GONE } kind;
    struct route *route;
    uint64_t sandbox_id;
};
struct update;
struct update_post {
    struct loop_post post;
    struct update *update;
    struct thread *thread;
};
struct update {
    struct loop_post done; /* to the control thread, after the last thread has carried it out */
    void (*on_done)(struct update *u);
    void *user;
    struct update_item *items;
    size_t count;
    _Atomic uint32_t threads_left;
    struct update_post posts[]; /* one for each thread */
};
void threads_update(struct thread_shared *shared, struct update *u);

/* Any thread: closes the idle connections that this one keeps to the sandbox. */
void thread_post_forget(struct thread *t, uint64_t sandbox_id);

/* Numbers of a thread, for metrics; relaxed. */
struct thread_counters {
    _Atomic uint64_t accepted, refused, connections, requests, parse_errors, upstream_connects,
        upstream_connect_failures, bytes_in, bytes_out;
    _Atomic uint64_t errors[ANSWER_COUNT]; /* answers of ours, by their reason */
};
const struct thread_counters *thread_counters(const struct thread *t);
