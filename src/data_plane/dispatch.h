/* dispatch.h - the slots and the queue of one function: which request is served by which sandbox,
 * and who waits. Pure: no I/O, no clock (time is a parameter, monotonic nanoseconds), no randomness
 * of its own (seed given).
 *
 * Threads. The threads that serve requests share a function's dispatch. Each names itself by its
 * index in all calls
 * (`thread`, below `options.threads`); a single-threaded user passes 0. While nobody waits, acquire
 * and release are one atomic operation on the chosen endpoint's word, with no lock. When somebody
 * waits, or all are full, they go on under a mutex. Callbacks run without it, inside the call that
 * caused them, on that call's thread: so `on_grant` and `on_failed` of a request can run on another
 * thread than its own, which passes the news on (loop_post) and touches nothing else.
 *
 * Promises
 * - No endpoint has more requests at once than `concurrency`, nor than the slots of it that we
 * hold, whichever threads take part.
 * - Waiting requests are granted oldest arrival first, over all threads; a request that comes while
 * others wait never overtakes them.
 * - No wake-up is lost: whenever a call has returned, nobody waits while a slot is free.
 * - What is owed (dispatch_owe) is given back from idle slots at once, else by the next requests
 * that end, before those who wait get their slots. A slot that was told as returned is used no
 * more.
 * - An endpoint that drains or is removed gets no request any more; `on_idle` is told exactly once,
 * when a draining one has no request left (within dispatch_endpoint_drain() when it has none
 * already), unless it is removed before.
 *
 * Life of a request's waiter: idle -> (acquire) -> has a lease, or queued -> granted ->
 * (take_grant) has a lease, or queued -> failed, or queued -> (cancel) idle. */
#pragma once
#include "base/base.h"
#include "base/list.h"
#include <stdatomic.h>

#define DISPATCH_THREADS_MAX 256u
#define DISPATCH_REQUESTS_MAX 0xfffffffu /* of an endpoint at once, and its slots */

/* Same order as LoadBalancing in dirigent.proto. A full endpoint is passed over by all. */
enum dispatch_policy {
    DISPATCH_LEAST_LOADED, /* fewest requests; of equals, the one that this thread used last (its
                              connection is warm) */
    DISPATCH_RANDOM,
    DISPATCH_ROUND_ROBIN,  /* each thread by itself */
    DISPATCH_POWER_OF_TWO, /* the less loaded of two random ones */
    DISPATCH_FIRST_FREE,   /* in the order in which they were added */
    DISPATCH_POLICY_COUNT
};

struct dispatch; /* opaque */

/* A sandbox that takes requests of this function. The fields are constant; `thread_user[i]` belongs
 * to thread i. */
struct dispatch_endpoint {
    uint64_t sandbox_id;
    void *user;            /* as given to dispatch_endpoint_add() */
    _Atomic uint64_t word; /* private: requests, slots, flags */
    struct dispatch_endpoint *next_garbage;
    void *thread_user[]; /* options.threads of them; NULL at first */
};

/* Of an endpoint's slots: as many as the function's concurrency, whatever that is. */
#define DISPATCH_SLOTS_ALL UINT32_MAX

struct dispatch_options {
    uint32_t concurrency; /* requests an endpoint takes at once; 0: no limit */
    uint32_t queue_max;   /* requests that may wait */
    enum dispatch_policy policy;
    uint32_t threads; /* 1 .. DISPATCH_THREADS_MAX; fixed for life */
    uint64_t seed;
    /* A draining endpoint has no request left. Any thread. May be NULL. */
    void (*on_idle)(void *user, struct dispatch_endpoint *endpoint);
    /* `slots` of it are given back (0: it had all), `left` remain. Any thread, under the mutex, so
     * that it is told in the order of the giving: it only passes it on, and calls nothing of the
     * dispatch. May be NULL when nothing is ever owed. */
    void (*on_returned)(void *user, struct dispatch_endpoint *endpoint, uint32_t slots,
                        uint32_t left);
    /* An endpoint's memory goes: free what its `user` and `thread_user` hold. May be NULL. */
    void (*on_free)(void *user, struct dispatch_endpoint *endpoint);
    void *user;
};

/* One request, embedded in it. The owner sets the callbacks, `deadline_ns` and `arrived_ns` before
 * the first acquire. Zero-initialised is idle. */
struct dispatch_waiter {
    struct list node;    /* private while queued */
    uint64_t arrived_ns; /* its place in the queue; a retried request keeps its own */
    uint64_t
        deadline_ns; /* it is failed with ERR_TIMEOUT rather than granted from then on; 0: none */
    /* A slot is kept for it until its own thread calls dispatch_take_grant(). Any thread. */
    void (*on_grant)(struct dispatch_waiter *w);
    /* It waits no more: ERR_TIMEOUT (only when it would have been granted), or as
     * dispatch_fail_waiting() says, with its `reason`, valid during the call. Any thread. */
    void (*on_failed)(struct dispatch_waiter *w, enum err err, void *reason);
    enum {
        DISPATCH_IDLE,
        DISPATCH_QUEUED,
        DISPATCH_GRANTED,
        DISPATCH_FAILED
    } state; /* under the mutex */
    struct dispatch_endpoint *granted;
};

struct dispatch *dispatch_new(const struct dispatch_options *options);
/* No request holds a slot or waits, and no thread is inside a call. Frees the endpoints too. */
void dispatch_free(struct dispatch *d);
/* New concurrency, queue bound and policy (`threads`, `seed` and the callbacks stay). More room is
 * given to waiters at once. */
void dispatch_configure(struct dispatch *d, uint32_t concurrency, uint32_t queue_max,
                        enum dispatch_policy policy, uint32_t thread, uint64_t now_ns);

/* ---- requests: the thread that owns them ---- */

/* ERR_OK: *ret_endpoint has a slot less, give it back with dispatch_release(). ERR_MORE: it waits
 * now; on_grant or on_failed comes, unless dispatch_cancel() is first. ERR_BUSY: queue_max wait
 * already. ERR_TIMEOUT: none is free and its deadline has passed. ERR_NOT_FOUND: after
 * dispatch_close(). */
must_check enum err dispatch_acquire(struct dispatch *d, uint32_t thread, struct dispatch_waiter *w,
                                     uint64_t now_ns, struct dispatch_endpoint **ret_endpoint);
/* After on_grant, on the request's own thread: the endpoint whose slot it has. It may have been
 * removed meanwhile, see dispatch_endpoint_is_gone(). */
struct dispatch_endpoint *dispatch_take_grant(struct dispatch *d, uint32_t thread,
                                              struct dispatch_waiter *w, uint64_t now_ns);
/* Gives the slot back, and to the oldest who waits. */
void dispatch_release(struct dispatch *d, uint32_t thread, struct dispatch_endpoint *endpoint,
                      uint64_t now_ns);
/* True: it waits no more and no callback comes. False: it was granted or failed already, the
 * callback has run or is about to (on another thread): wait for it, then release what was granted.
 */
bool dispatch_cancel(struct dispatch *d, struct dispatch_waiter *w);

/* ---- endpoints: whoever knows of them, any thread ---- */

/* We hold `slots` of it (DISPATCH_SLOTS_ALL: all). Grants waiters, oldest first, up to those. False
 * (and nothing is done) when the sandbox is there already. */
bool dispatch_endpoint_add(struct dispatch *d, uint64_t sandbox_id, uint32_t slots, void *user,
                           uint32_t thread, uint64_t now_ns);
/* So many slots more (DISPATCH_SLOTS_ALL: all from now on). False when there is no such sandbox. */
bool dispatch_endpoint_lease(struct dispatch *d, uint64_t sandbox_id, uint32_t slots,
                             uint32_t thread, uint64_t now_ns);
/* From now on so many slots are owed, of whichever endpoints, and `idle` more of those for which
 * nobody waits here; replaces what was owed before. Returns what is still owed when all that are
 * idle have been given back. */
uint64_t dispatch_owe(struct dispatch *d, uint32_t slots, uint32_t idle);
/* Each returns false when there is no such sandbox.
 * drain: no new requests, on_idle when there are none left (told once, also when drained twice); it
 * stays known until removed. remove: forgotten. Requests that it has are the caller's to break;
 * they give their slot back as ever. eject: no new requests until admitted again; admit grants
 * waiters. */
bool dispatch_endpoint_drain(struct dispatch *d, uint64_t sandbox_id);
bool dispatch_endpoint_remove(struct dispatch *d, uint64_t sandbox_id);
bool dispatch_endpoint_eject(struct dispatch *d, uint64_t sandbox_id);
bool dispatch_endpoint_admit(struct dispatch *d, uint64_t sandbox_id, uint32_t thread,
                             uint64_t now_ns);
/* The endpoint, or NULL. Under the mutex: not for the path of a request. */
struct dispatch_endpoint *dispatch_endpoint_find(struct dispatch *d, uint64_t sandbox_id);
/* All that are known, drained ones too, into ret_endpoints[count_max]; returns how many there are.
 */
size_t dispatch_endpoints(struct dispatch *d, struct dispatch_endpoint **ret_endpoints,
                          size_t count_max);
static inline uint32_t dispatch_endpoint_in_flight(const struct dispatch_endpoint *endpoint)
{
    return (uint32_t)atomic_load_explicit(&endpoint->word, memory_order_relaxed) &
           DISPATCH_REQUESTS_MAX;
}
bool dispatch_endpoint_is_gone(const struct dispatch_endpoint *endpoint);   /* removed */
bool dispatch_endpoint_is_ending(const struct dispatch_endpoint *endpoint); /* drained or removed */

/* All who wait get on_failed(err, reason). New ones may wait again. Returns how many. */
size_t dispatch_fail_waiting(struct dispatch *d, enum err err, void *reason);
/* The function is deleted: as fail_waiting, and acquire answers ERR_NOT_FOUND from now on. Requests
 * in flight go on. */
size_t dispatch_close(struct dispatch *d, enum err err, void *reason);

/* ---- numbers ---- */

struct dispatch_demand {
    uint32_t in_flight;        /* requests that hold a slot */
    uint32_t in_flight_ending; /* of them, on endpoints that take no new one */
    uint32_t waiting;
    uint32_t endpoints_ready; /* that take requests */
    uint64_t requests_total;  /* that were given a slot, ever */
};
void dispatch_demand(struct dispatch *d, struct dispatch_demand *ret_demand);
/* Requests in flight, time-weighted since the last call. One caller at a time. */
double dispatch_average(struct dispatch *d, uint64_t now_ns);
uint32_t dispatch_waiting(const struct dispatch *d); /* at this moment, for cheap */

/* ---- memory that other threads may still look at ---- */

/* What was removed is not freed at once, since another thread may just be choosing among the
 * endpoints. Returns what nobody can find any more (removed endpoints without requests, outgrown
 * lists), or NULL; free it after every thread has been outside of all calls at least once. A
 * single-threaded user does so at once. */
struct dispatch_garbage *dispatch_collect(struct dispatch *d);
void dispatch_garbage_free(struct dispatch_garbage *g);
