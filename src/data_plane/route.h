/* route.h - one function as a data plane knows it, shared by its threads and the control thread.
 *
 * Life: made by the control thread, told to every thread (ROUTE_ADD), served, told again
 * (ROUTE_REMOVE), and freed when every thread has ended its last request of it. The dispatch inside
 * says what may be called from where; what may change is atomic. */
#pragma once
#include "base/limits.h"
#include "data_plane/answer.h"
#include "data_plane/dispatch.h"
#include "loop/loop.h"

/* The user of a dispatch_endpoint: constant but for `kept_by`. Freed with the endpoint. */
struct sandbox {
    uint64_t id, added_ns;
    struct sockaddr_storage address;
    socklen_t address_bytes;
    uint32_t place_us, create_us, exec_us, listen_us; /* where the time of its cold start went */
    /* The thread (index + 1) that keeps an idle connection, when it may be the only one: a program
     * that serves one connection at a time would never accept a second one. 0: none. */
    _Atomic uint32_t kept_by;
    char worker[64];
};

/* What one thread counted of one function. Written by it alone (relaxed), read by whoever shows
 * metrics. */
#define HISTOGRAM_BOUNDS 18u
struct histogram {
    _Atomic uint64_t buckets[HISTOGRAM_BOUNDS + 1]; /* the last: above all bounds */
    _Atomic uint64_t sum_ns;
};
enum { STATUS_CLASSES = 6 }; /* by the first digit; 0: the client went away before */
struct route_stats {
    _Atomic uint64_t answers[STATUS_CLASSES];
    _Atomic uint64_t cold, retries, cut;
    struct histogram total; /* arrival to the end of the answer */
    struct histogram wait;  /* arrival to the moment a sandbox was found */
};

struct route {
    uint64_t id;
    char name[FUNCTION_NAME_BYTES_MAX + 1];
    struct dispatch *dispatch;
    _Atomic uint64_t timeout_ns, request_body_bytes_max;
    _Atomic uint32_t concurrency;
    _Atomic uint32_t threads_left; /* that still have it, after ROUTE_REMOVE */
    struct loop *control_loop;
    struct loop_post demand_post, active_post,
        gone_post; /* to the control thread; it sets on_post */
    _Atomic bool demand_posted,
        active;    /* active: it had a request since the control thread last found it at rest */
    void *control; /* the control thread's own */
    _Atomic(struct route_stats *) stats[]; /* by thread; NULL until it served a request */
};

/* Why waiting requests are answered with an error: shared by them, freed with the last. */
struct failure {
    _Atomic uint32_t references;
    unsigned status, retry_after_s;
    char *code, *message;
    struct buf last_output;
};
struct failure *failure_new(unsigned status, const char *code, const char *message,
                            struct str last_output, unsigned retry_after_s);
void failure_hold(struct failure *f);
void failure_drop(struct failure *f);

/* The function needs sandboxes: the control thread reports its demand, in one message for all that
 * happens until it does. */
static inline void route_tell_demand(struct route *r)
{
    if (!atomic_exchange(&r->demand_posted, true))
        loop_post(r->control_loop, &r->demand_post);
}

/* A request has come: its numbers are reported from now on. Nearly always one look at a flag. */
static inline void route_tell_active(struct route *r)
{
    if (!atomic_load_explicit(&r->active, memory_order_relaxed) &&
        !atomic_exchange(&r->active, true))
        loop_post(r->control_loop, &r->active_post);
}

/* One writer: no locked instruction. */
static inline void stat_add(_Atomic uint64_t *counter, uint64_t amount)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + amount,
                          memory_order_relaxed);
}
extern const uint64_t histogram_bounds_us[HISTOGRAM_BOUNDS];
void histogram_add(struct histogram *h, uint64_t ns);
