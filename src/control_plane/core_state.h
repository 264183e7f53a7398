/* core_state.h - what the files of the core share; nobody else includes it.
 *
 *   core.c       the step: events in, the functions they touched scaled, orders out
 *   due.c        what must be looked at later
 *   functions.c  registrations, versions, their trial
 *   workers.c    workers, their code, suspicion and death
 *   planes.c     data planes: snapshots, demand, draining
 *   leases.c     which data plane may use how many slots of a sandbox
 *   scale.c      from demand to starts and drains
 *   sandboxes.c  the life of a sandbox
 *   failure.c    why a start failed, in words
 *   views.c      for API, metrics and tests
 *
 * A handler changes state and marks the functions it touched (function_touch); they are scaled
 * once, at the end of the step, in the order of touching. So nothing is decided on half a change.
 */
#pragma once
#include "base/hash.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/rng.h"
#include "control_plane/autoscaler.h"
#include "control_plane/core.h"
#include "control_plane/leases.h"
#include "control_plane/placement.h"

#define PROVEN_AFTER_MS 10000u /* ready for so long: its end is no failed start */

enum due_kind { DUE_FUNCTION, DUE_SANDBOX, DUE_WORKER, DUE_PLANE };
struct due { /* a place in the heap of what must be looked at later */
    uint64_t at_ms;
    size_t heap_index; /* SIZE_MAX: not there */
    enum due_kind kind;
};

struct code { /* an archive of code, and the workers that have it unpacked */
    char digest[CODE_DIGEST_BYTES + 1];
    uint32_t refs; /* versions and workers */
    struct core_worker **workers;
    size_t count, capacity;
    struct map places; /* worker id -> (void *)(its place + 1) */
};

struct core_version {
    uint32_t number; /* 0: none */
    struct function_spec spec;
    struct code *code;        /* NULL: it needs none */
    uint32_t starting, ready; /* its sandboxes */
    uint32_t doubtful;        /* of `starting`: on workers that are away */
    uint32_t leaving;         /* of `ready`: on workers that drain */
};

struct demand { /* of one function at one data plane */
    uint32_t in_flight, waiting;
    uint32_t ending; /* of in_flight, with sandboxes that take no new request there */
    double average;
};

struct failure_text { /* kept until its function goes: orders of the step point into it */
    bool stands;
    bool has_served; /* it failed when it was ready before: the next one may serve, too */
    enum gone_reason reason;
    char text[512];
    char output[EXIT_OUTPUT_BYTES_MAX];
    size_t output_bytes;
};

struct core_function {
    uint64_t id;
    /* `old` serves while the newest is not active; number 0: nothing older is active. */
    struct core_version latest, old;
    bool latest_is_active, proving, deleted;
    int latest_state;             /* as in struct function_view */
    struct failure_text *failure; /* of what serves; NULL: none */
    struct failure_text *trial_failure;
    struct list sandboxes; /* in order of creation */
    uint32_t draining;
    struct demand demands[DATA_PLANES_MAX];
    uint64_t demand_mask; /* data planes with demand other than zero */
    uint32_t in_flight, waiting;
    double average;
    struct autoscaler autoscaler;
    struct meter meter;
    uint32_t desired, wanted; /* by the windows; with the demand of the moment and the bounds */
    uint64_t period_begin_ms, period_end_ms, zero_since_ms;
    uint64_t retry_at_ms, failed_at_ms;
    uint32_t backoff_ms;
    bool ticking, starving, asked, told, adopted;
    struct list offered;         /* sandboxes, some of whose slots may be free */
    struct lease_book *book;     /* leases.c's; NULL: nothing is shared */
    struct list touched, hungry; /* in the control's lists of these names */
    struct due due;
};

struct core_worker {
    uint64_t id;
    char *name;
    int state; /* as in struct worker_view */
    enum worker_use use;
    struct room room;
    struct list sandboxes;
    uint64_t heard_ms;
    struct code **codes;
    size_t code_count, code_capacity;
    struct due due; /* when its absence becomes its death */
};

struct core_sandbox {
    uint64_t id;
    struct core_function *function;
    struct core_worker *worker;
    uint32_t version;
    enum sandbox_state state; /* sandbox_move() writes it */
    bool doubtful;            /* starting on a worker that is away */
    bool leaving;             /* its worker drains */
    uint32_t cpu_milli;       /* as reserved */
    uint64_t memory_bytes;
    uint64_t undrained;                 /* data planes that have not said drained */
    uint32_t in_flight;                 /* as last told, summed over data planes */
    uint32_t timeout_ms, stop_grace_ms; /* of its version */
    uint64_t ready_at_ms, seen_step;
    struct list of_function, of_worker, offered;
    struct due due; /* end of patience with draining */
    /* for people and data planes */
    struct endpoint_address address;
    uint64_t started_at_ms;
    uint32_t create_us, exec_us, listen_us;
};

struct data_plane {
    uint64_t id, heard_ms, up_ms;
    bool used, alive, awaited, snapshot_owed;
    bool leases;            /* it uses only what it was granted */
    struct due due;         /* when its absence becomes its death */
    struct map loads;       /* sandbox id -> (void *)(requests in flight), not 0 */
    struct map leases_held; /* leases.c's: of sandboxes that are not known, too */
};

struct control {
    struct control_options options;
    struct rng rng;
    struct map functions, sandboxes, workers;
    struct strmap codes;
    struct placement *placement;
    struct data_plane data_planes[DATA_PLANES_MAX];
    uint64_t alive_mask; /* data planes that are alive */
    uint64_t away_mask;  /* and those that are only just away: they may have requests in flight */
    uint32_t sandbox_counter;
    uint32_t awaited_workers, awaited_planes, suspected_workers;
    uint64_t started_ms, now_ms, steps;
    /* in this step: somebody hungry may be served; somebody is awaited no more */
    bool room_came, awaited_less;
    struct list touched; /* functions to scale at the end of the step */
    struct list hungry;  /* functions that lack room, the longest first */
    struct due **heap;
    size_t heap_count, heap_capacity;
    struct core_sandbox *spare; /* freed sandboxes, chained by `of_function.next` */
    struct core_sandbox **scratch;
    size_t scratch_capacity;
    struct control_orders *orders; /* of the step that runs */
};

/* core.c */
struct control_order *core_order(struct control *c, enum order_kind kind, uint64_t target_id);
void function_touch(struct control *c, struct core_function *f);
bool core_awaits_workers(const struct control *c);
bool core_awaits_anybody(const struct control *c);
bool core_awaits_planes(const struct control *c);
struct core_sandbox **core_scratch(struct control *c, size_t count);

/* due.c */
void due_at(struct control *c, struct due *d, uint64_t at_ms); /* UINT64_MAX: never */
struct due *due_take(struct control *c);                       /* NULL: nothing is due */

/* functions.c */
void function_put(struct control *c, const struct control_event *e);
void function_delete(struct control *c, uint64_t function_id);
struct core_function *function_deleted_before(struct control *c, uint64_t id, uint32_t version);
void function_end_when_empty(struct control *c, struct core_function *f);
void function_free(struct control *c, struct core_function *f);
void function_activate(struct control *c, struct core_function *f); /* latest is proven */
/* The version that requests go to: the active one, or while there is none the newest. */
struct core_version *function_serving(struct core_function *f);
struct core_version *function_version(struct core_function *f, uint32_t number); /* or NULL */
uint32_t function_active_number(const struct core_function *f);
static inline const struct scaling_policy *function_policy(const struct core_function *f)
{
    return &f->latest.spec.scaling; /* a setting of the function, not of a version */
}
void function_route_tell(struct control *c, struct core_function *f, uint64_t data_plane_id);

/* workers.c */
void worker_known(struct control *c, const struct control_event *e);
void worker_up(struct control *c, const struct control_event *e);
void worker_closed(struct control *c, uint64_t worker_id, bool silent);
void worker_end(struct control *c, struct core_worker *w);
void worker_use(struct control *c, uint64_t worker_id, enum worker_use use);
void worker_removed(struct control *c, uint64_t worker_id);
void worker_free(struct control *c, struct core_worker *w);
struct code *code_take(struct control *c, const char *digest); /* NULL for "" */
void code_drop(struct control *c, struct code *code);          /* NULL is nothing */
void code_add_worker(struct code *code, struct core_worker *w);
bool code_has_worker(const struct code *code, const struct core_worker *w);

/* planes.c */
struct data_plane *plane_find(struct control *c, uint64_t id);
void plane_removed(struct control *c, uint64_t id);
void plane_known(struct control *c, uint64_t id);
void plane_up(struct control *c, const struct control_event *e);
void plane_closed(struct control *c, uint64_t id, bool silent);
void plane_end(struct control *c, struct data_plane *p);
void plane_demand(struct control *c, const struct control_event *e);
void plane_returned(struct control *c, const struct control_event *e);
void plane_loads(struct control *c, const struct control_event *e);
void plane_drained(struct control *c, uint64_t data_plane_id, uint64_t sandbox_id);
void plane_endpoint_failed(struct control *c, uint64_t sandbox_id);
void planes_snapshots_owed(struct control *c);
unsigned plane_index(const struct control *c, const struct data_plane *p);
uint64_t plane_bit(const struct control *c, const struct data_plane *p);
void planes_forget_sandbox(struct control *c, const struct core_sandbox *s);

/* scale.c */
void scale_function(struct control *c, struct core_function *f); /* starts and drains what is due */
void scale_demand(struct control *c, struct core_function *f, unsigned data_plane,
                  const struct demand *d);
void scale_due(struct control *c, struct core_function *f);
/* What runs now counts as called, for a window: a new leader does not know the demand yet. */
void scale_count_as_called(struct control *c, struct core_function *f, uint32_t count);
void scale_back_off(struct control *c, struct core_function *f);

/* sandboxes.c */
struct core_sandbox *sandbox_new(struct control *c, struct core_function *f, struct core_worker *w,
                                 uint64_t id, uint32_t version);
void sandbox_report_take(struct control *c, struct core_worker *w, const struct sandbox_report *r);
void sandbox_drain(struct control *c, struct core_sandbox *s);
void sandbox_stop_when_drained(struct control *c, struct core_sandbox *s);
void sandbox_stop_tell(struct control *c, const struct core_sandbox *s);
void sandbox_doubt(struct core_sandbox *s, bool doubtful);
void sandbox_leave(struct core_sandbox *s, bool leaving); /* the caller touches its function */
void sandbox_gone(struct control *c, struct core_sandbox *s, const struct sandbox_report *why);
void sandbox_endpoint_tell(struct control *c, const struct core_sandbox *s, uint64_t data_plane_id,
                           uint32_t slots);

/* failure.c */
uint32_t failure_status(enum gone_reason reason);
/* The story of a sandbox that ended by itself, in one sentence. `was`: its state then. */
void failure_tell(struct failure_text **failure, const struct function_spec *spec,
                  enum sandbox_state was, const struct sandbox_report *r);
void failure_no_room(struct failure_text **failure, const struct control *c,
                     const struct function_spec *spec);
void failure_clear(struct failure_text *failure); /* it stands no more; NULL is nothing */
static inline bool failure_stands(const struct failure_text *failure)
{
    return failure != NULL && failure->stands;
}
