/* core.h - the control plane's decisions: which function gets how many sandboxes, on which worker,
 * and what data planes are told. Pure: no I/O, no clock, no randomness of its own (seed given), one
 * thread. The shell (control_plane.c) turns what arrives into events, and carries out the orders;
 * the simulation (test/sim) does the same on a virtual clock.
 *
 * One event in, orders out: control_step(). Orders point into memory of the core that is valid
 * until the next step. Functions, workers and data planes are named by numeric ids that the shell
 * gives.
 *
 * Slots: no data plane uses more of a sandbox than it was granted; leases.h.
 *
 * Life of a function's versions: `latest` is the newest registered; `active` is the newest that has
 * been ready once (or was registered without probe). Requests go to sandboxes of `active`; while a
 * newer `latest` is being proven (one probe sandbox), `active` serves and scales on. When the probe
 * is ready, `latest` becomes active (ORDER_VERSION_ACTIVE), and the old version's sandboxes drain.
 * When it fails, ORDER_VERSION_FAILED, and `active` stays. A function without an active version
 * starts `latest` on demand.
 *
 * Life of a sandbox here: starting -> ready -> draining -> stopping -> gone. Draining: routes
 * withdrawn, waiting for every data plane to say drained (or to be away for the reconnect grace),
 * then stopped; never stopped under a request unless the drain deadline (function timeout + 5 s)
 * passes. A draining sandbox never serves again: new demand starts another. `max` bounds starting +
 * ready; a probe comes on top of it.
 *
 * A worker that drains: its ready sandboxes serve on but do not count (`leaving`), so others are
 * started elsewhere; when those are ready, they drain. `max` still bounds all of them: at the
 * maximum, one that leaves goes first. Without room elsewhere they stay.
 *
 * Crash loops: failed starts back off 100 ms, doubled to 30 s, reset by a sandbox that stays ready
 * for 10 s; waiting requests get ORDER_FAIL_WAITING at once with the cause, when nothing of the
 * function is starting or ready and the last failure was one before it listened: what crashed by a
 * request may serve others. Without room they get it too, unless a worker that is away may come
 * back; they are served when room appears.
 *
 * After a start (a new leader): registrations come from the store, sandboxes from the workers'
 * hellos. Before all known workers have spoken, waiting requests start sandboxes, nothing else
 * does; a data plane that knows sandboxes keeps them (its snapshot waits).
 *
 * Sources: Knative KPA as described in docs/decisions/, original's defaults in function.h;
 * placement scores after Kubernetes' LeastAllocated and BalancedAllocation. */
#pragma once
#include "base/base.h"
#include "function/function.h"

struct control; /* opaque */

/* A data plane whose connection closed has so long to come back: one that lives dials again at
 * once. Then the slots that it held are given to others, and nothing waits for its requests any
 * more. */
#define PLANE_GRACE_MS 1000u

struct control_options {
    uint64_t seed;
    uint64_t epoch;              /* of this leadership; sandbox ids carry it */
    uint32_t peer_dead_after_ms; /* a worker whose connection closes after so long a silence is dead
                                    at once */
    uint32_t reconnect_grace_ms; /* a worker whose connection closed: its sandboxes keep serving for
                                    so long before they are given up (its daemon may just restart).
                                    A data plane has at most PLANE_GRACE_MS */
    uint32_t reconstruction_ms;  /* after start: nothing is stopped that may be wanted, and nothing
                                    is  started that nobody waits for, before every peer known from
                                    the  store has spoken, or so long has passed */
};

enum gone_reason { /* as GoneReason in dirigent.proto, same values */
                   GONE_UNKNOWN,
                   GONE_STOPPED,
                   GONE_EXITED,
                   GONE_SIGNALED,
                   GONE_OUT_OF_MEMORY,
                   GONE_START_TIMEOUT,
                   GONE_WRONG_PORT,
                   GONE_EXEC_FAILED,
                   GONE_CODE_UNAVAILABLE,
                   GONE_NO_ROOM,
                   GONE_WORKER_LOST,
                   GONE_INTERNAL,
                   GONE_REASON_COUNT
};
enum sandbox_state {
    SANDBOX_STARTING,
    SANDBOX_READY,
    SANDBOX_DRAINING,
    SANDBOX_STOPPING,
    SANDBOX_GONE,
    SANDBOX_STATE_COUNT
};

struct endpoint_address { /* texts "ip:port", NUL-terminated */
    char direct[48];      /* for data planes on the worker's host */
    char host[48];        /* for all others */
};
/* As answers and people name it: "out_of_memory". */
const char *failure_code(enum gone_reason reason);

struct sandbox_report { /* what a worker says of one sandbox */
    uint64_t sandbox_id, function_id;
    uint32_t version;
    enum sandbox_state state; /* STARTING, READY, STOPPING or GONE */
    struct endpoint_address address;
    uint64_t started_at_ms;
    uint32_t create_us, exec_us, listen_us;
    enum gone_reason reason;
    int32_t exit_code, signal;
    uint32_t wrong_port;
    struct str detail, last_output; /* borrowed */
};

struct sandbox_load {
    uint64_t sandbox_id;
    uint32_t in_flight;
};

#define SLOTS_ALL UINT32_MAX /* as many as the function's concurrency, whatever that is */
struct known_sandbox {       /* as a data plane that comes has it */
    uint64_t sandbox_id;
    uint32_t slots; /* held; of one that ends there: requests that still run */
    bool is_ending; /* it takes no new request there, and says drained when the last has ended */
};
struct returned_slots { /* that a data plane has given back */
    uint64_t sandbox_id;
    uint32_t slots, left; /* so many, 0: of SLOTS_ALL; left: those that it still holds */
};

enum worker_use {
    WORKER_USE_ALL,
    WORKER_USE_CORDONED, /* no new sandboxes; those that are there serve on */
    WORKER_USE_DRAINING, /* as cordoned, and each that serves there leaves as soon as others serve
                            in its place */
};

enum event_kind {
    EVENT_TICK,         /* time has passed; the shell calls at control_next_due_ms() */
    EVENT_FUNCTION_PUT, /* create or update; also when loading the store */
    EVENT_FUNCTION_DELETE,
    EVENT_WORKER_KNOWN,     /* from the store, before it has connected */
    EVENT_WORKER_UP,        /* said hello, with all its sandboxes */
    EVENT_WORKER_CLOSED,    /* connection closed: suspected */
    EVENT_WORKER_GOODBYE,   /* left on purpose */
    EVENT_WORKER_USE,       /* what an operator lets it be used for */
    EVENT_WORKER_REMOVED,   /* an operator forgets it */
    EVENT_PEER_ALIVE,       /* anything was heard from worker or data plane */
    EVENT_DATA_PLANE_KNOWN, /* from the store, before it has connected */
    EVENT_DATA_PLANE_UP,    /* said hello, with the sandboxes it knows */
    EVENT_DATA_PLANE_CLOSED,
    EVENT_DATA_PLANE_REMOVED, /* an operator forgets one that is away */
    EVENT_DEMAND,
    EVENT_SLOTS_RETURNED,
    EVENT_LOADS, /* what sandboxes have in flight at a data plane: idle ones are stopped first */
    EVENT_DRAINED,
    EVENT_ENDPOINT_FAILED, /* a data plane could not connect to it */
    EVENT_SANDBOX,         /* a worker's report of one sandbox */
};
struct control_event {
    enum event_kind kind;
    union {
        struct {
            uint64_t function_id;
            uint32_t
                version; /* of this spec; a higher one than before, or equal: settings changed */
            uint32_t active_version;          /* when loading the store: which is active; else 0 */
            bool probe;                       /* prove the version before it becomes active */
            const struct function_spec *spec; /* copied */
        } function_put;
        struct {
            uint64_t function_id;
        } function_delete;
        struct {
            uint64_t worker_id;
            const char *name;
            uint32_t cpu_milli, slots;
            uint64_t memory_bytes;
            const struct sandbox_report *sandboxes; /* all that live there */
            size_t sandbox_count;
            const char (*code_digests)[72]; /* for locality */
            size_t code_digest_count;
            bool silent; /* CLOSED: for too long, and not that it broke: it is dead */
        } worker;        /* KNOWN, UP, CLOSED, GOODBYE; KNOWN needs id and name, CLOSED, GOODBYE and
                            REMOVED the id */
        struct {
            uint64_t worker_id;
            enum worker_use use;
        } worker_use;
        struct {
            bool is_worker;
            uint64_t id;
        } alive;
        struct {
            uint64_t data_plane_id;
            const struct known_sandbox *known;
            size_t known_count;
            bool leases; /* it uses only what it is granted; else it is not counted */
            bool silent; /* as with workers */
        } data_plane;    /* KNOWN, UP, CLOSED, REMOVED */
        struct {
            uint64_t data_plane_id;
            const struct returned_slots *items;
            size_t count;
        } returned;
        struct {
            uint64_t data_plane_id, function_id;
            uint32_t in_flight, waiting;
            uint32_t in_flight_ending; /* of them, with sandboxes that take no new request */
            double in_flight_average;
        } demand;
        struct {
            uint64_t data_plane_id;
            const struct sandbox_load *items; /* those that changed */
            size_t count;
        } loads;
        struct {
            uint64_t data_plane_id, sandbox_id;
        } endpoint; /* DRAINED, ENDPOINT_FAILED */
        struct {
            uint64_t worker_id;
            struct sandbox_report report;
        } sandbox;
    };
};

enum order_kind {
    ORDER_START,          /* worker: start a sandbox */
    ORDER_STOP,           /* worker: SIGTERM, after grace SIGKILL */
    ORDER_DROP_VERSION,   /* worker: template and code of a version may go */
    ORDER_ROUTE,          /* data plane: function known or changed */
    ORDER_UNROUTE,        /* data plane: function deleted */
    ORDER_ENDPOINT,       /* data plane: a sandbox takes requests; see `slots` */
    ORDER_SLOTS_WANTED,   /* data plane: it is to give back `slots` of the function in all */
    ORDER_DRAIN,          /* data plane: no new requests to it; say drained when idle */
    ORDER_ENDPOINT_GONE,  /* data plane: it is dead */
    ORDER_SNAPSHOT_BEGIN, /* data plane: routes and endpoints up to SNAPSHOT_END are all there are
                           */
    ORDER_SNAPSHOT_END,
    ORDER_FAIL_WAITING,   /* data plane: answer waiting requests with this failure */
    ORDER_WANT_DEMAND,    /* data plane: report this function now */
    ORDER_VERSION_ACTIVE, /* shell: store it, tell who waits for the deploy */
    ORDER_VERSION_FAILED, /* shell: tell who waits */
    ORDER_FUNCTION_GONE,  /* shell: the deleted function has no sandbox left; its code may go */
};
#define ALL_DATA_PLANES UINT64_MAX
#define DATA_PLANES_MAX 64u /* alive at once; the shell refuses more */
struct control_order {
    enum order_kind kind;
    uint64_t target_id; /* worker or data plane id (or ALL_DATA_PLANES); 0 for the shell */
    uint64_t function_id, sandbox_id;
    uint32_t version;
    uint32_t grace_ms;       /* STOP */
    uint32_t slots;          /* ENDPOINT: so many more, 0 when it is only named again, or
                                SLOTS_ALL; SLOTS_WANTED */
    uint32_t idle;           /* SLOTS_WANTED: so many more, of those that nobody there needs */
    uint32_t place_us;       /* filled by the shell */
    enum gone_reason reason; /* FAIL_WAITING, VERSION_FAILED */
    uint32_t status, retry_after_s; /* FAIL_WAITING: HTTP status */
    const char *code;               /* FAIL_WAITING, VERSION_FAILED: e.g. "sandbox_exited" */
    const char *message;            /* a sentence with the cause */
    struct str last_output;
};
struct control_orders { /* grows; owned by the caller, reused between steps */
    struct control_order *items;
    size_t count, capacity;
};
void control_orders_done(struct control_orders *o);

struct control *control_new(const struct control_options *options);
void control_free(struct control *c);
/* Appends to *orders (the shell clears it). `now_ms` is monotonic and never goes back. */
void control_step(struct control *c, const struct control_event *event, uint64_t now_ms,
                  struct control_orders *orders);
/* When the next EVENT_TICK is needed; UINT64_MAX: never. */
uint64_t control_next_due_ms(const struct control *c);
/* Which workers have not spoken yet after start (reconstruction); 0 when all have. */
size_t control_awaited_workers(const struct control *c);

/* ---- views, for API, metrics and tests. Valid until the next step. ---- */
struct function_view {
    uint64_t function_id;
    const struct function_spec *spec; /* of latest */
    uint32_t latest_version, active_version;
    enum { VERSION_PENDING, VERSION_PROVING, VERSION_READY, VERSION_FAILED } latest_state;
    const char *failure; /* sentence, when FAILED or in crash backoff; else "" */
    uint32_t wanted, starting, ready, draining; /* sandboxes */
    uint32_t in_flight, waiting;                /* summed over data planes */
    bool in_panic;
};
struct sandbox_view {
    uint64_t sandbox_id, function_id, worker_id;
    uint32_t version;
    enum sandbox_state state;
    const struct endpoint_address *address;
    uint64_t started_at_ms;
    uint32_t create_us, exec_us, listen_us;
};
struct worker_view {
    uint64_t worker_id;
    const char *name;
    enum { WORKER_AWAITED, WORKER_ALIVE, WORKER_SUSPECTED, WORKER_DEAD } state;
    enum worker_use use;
    uint32_t cpu_milli, cpu_reserved_milli, slots, sandboxes;
    uint64_t memory_bytes, memory_reserved_bytes;
    uint64_t heard_ms;
};
struct data_plane_view {
    uint64_t data_plane_id;
    bool alive;
    uint64_t heard_ms;
};
/* Each returns false when there is none. The *_next form iterates: *cursor starts at 0. */
bool control_function(const struct control *c, uint64_t function_id, struct function_view *ret);
bool control_function_next(const struct control *c, size_t *cursor, struct function_view *ret);
bool control_sandbox(const struct control *c, uint64_t sandbox_id, struct sandbox_view *ret);
bool control_sandbox_next(const struct control *c, size_t *cursor, struct sandbox_view *ret);
/* Slots of a sandbox that a data plane may be using: at most the function's concurrency, or
 * SLOTS_ALL without a limit. */
uint32_t control_lease(const struct control *c, uint64_t data_plane_id, uint64_t sandbox_id);
bool control_worker_next(const struct control *c, size_t *cursor, struct worker_view *ret);
bool control_data_plane_next(const struct control *c, size_t *cursor, struct data_plane_view *ret);
