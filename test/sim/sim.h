/* sim.h - a cluster on a virtual clock, in one thread and from one seed: the real core of the
 * control plane and the real slots and queues of the data planes, in a model of all that is around.
 *
 *   sim.c      arguments, one run, what the phases of a run are
 *   clock.c    the events to come, in order of time
 *   network.c  connections: frames in order and late, or lost with their connection
 *   leader.c   the control plane's shell around the core: hellos, reports, orders into frames
 *   store.c    registrations, which outlive it
 *   worker.c   sandboxes as they really are
 *   plane.c    data planes around src/data_plane/dispatch: what router.c does with orders
 *   request.c  one request: slot, connection to the sandbox, answer
 *   faults.c   what goes wrong, and what users do
 *   check.c    what must always hold, and what must hold once all is quiet
 *
 * Nobody here keeps a pointer into another's state across an event: events name what they are
 * about by id, and do nothing when it is gone. The first broken promise ends the run. */
#pragma once
#include "base/hash.h"
#include "base/list.h"
#include "base/rng.h"
#include "control_plane/core.h"
#include "data_plane/dispatch.h"

#define WORKERS 3u
#define PLANES 2u
#define PEERS (WORKERS + PLANES) /* peer p: a worker, or from WORKERS on a data plane */
#define NAMES 4u                 /* functions that are registered at once */
#define FUNCTIONS_MAX 48u        /* ever: a name that comes back has another id */
#define THREADS 2u               /* that serve requests, of each data plane */
#define PEER_DEAD_AFTER_MS 2000u
#define HEARTBEAT_MS 500u
#define RECONNECT_GRACE_MS 2000u
#define RECONSTRUCTION_MS 3000u
/* The phases of a run: faults; time to recover, longer than the longest back-off of a function that
 * failed; calls, all of which must succeed; time to come to rest. */
#define FAULTS_END_MS 20000u
#define CALLS_BEGIN_MS 56000u
#define CALLS_END_MS 62000u
#define REST_MS 82000u
#define DRAIN_SLACK_MS 5000u /* core.h: a drain ends with the function's timeout + 5 s */

struct sim;

/* ---- clock.c ---- */

struct frame;
struct event {
    uint64_t at_ms, order; /* of the same time: the one planned first */
    void (*run)(struct sim *s, const struct event *e);
    uint64_t a, b;
    struct frame *frame; /* owned; NULL but for deliveries */
};
void clock_at(struct sim *s, uint64_t at_ms, void (*run)(struct sim *, const struct event *),
              uint64_t a, uint64_t b);
void clock_after(struct sim *s, uint64_t ms, void (*run)(struct sim *, const struct event *),
                 uint64_t a, uint64_t b);
void clock_deliver(struct sim *s, uint64_t at_ms, void (*run)(struct sim *, const struct event *),
                   struct frame *frame);
/* Later, and yet before what was planned after it. */
void clock_again(struct sim *s, struct event e, uint64_t at_ms);
bool clock_next(struct sim *s, uint64_t until_ms, struct event *ret_event); /* moves the time */
void clock_done(struct sim *s);

/* ---- network.c ---- */

enum direction { TO_CORE, TO_PEER };
enum item_kind {
    ITEM_ORDER,   /* to a peer, as the core said it */
    ITEM_SANDBOX, /* from a worker */
    ITEM_GOODBYE,
    ITEM_RETURNED, /* from a data plane, as those that follow */
    ITEM_LOAD,
    ITEM_DEMAND,
    ITEM_ENDPOINT_FAILED,
    ITEM_DRAINED,
    ITEM_KNOWN, /* in its hello: a sandbox that it knows */
};
struct settings { /* of a version of a function, and of the function (from its newest version) */
    uint32_t version, cpu_milli, timeout_ms;
    bool is_bad; /* never gets ready */
    uint32_t scale_min, scale_max, concurrency, queue_max;
    int load_balancing, placement, mode;
};
struct item {
    enum item_kind kind;
    enum order_kind order;
    uint64_t sandbox_id, function_id;
    uint32_t version, in_flight, in_flight_ending, waiting;
    uint32_t idle;        /* ORDER_SLOTS_WANTED */
    uint32_t slots, left; /* ORDER_ENDPOINT, ORDER_SLOTS_WANTED, ITEM_RETURNED, ITEM_KNOWN */
    bool is_ending;       /* ITEM_KNOWN */
    double average;
    enum sandbox_state state;
    enum gone_reason reason;
    struct settings settings; /* ORDER_ROUTE, ORDER_START */
    bool has_cause;           /* ORDER_FAIL_WAITING: status, code and sentence are there */
};
struct frame {
    uint32_t peer;
    enum direction direction;
    uint64_t connection, epoch, number, taken; /* of its connection and direction; dirigent.proto */
    bool is_hello, is_snapshot, is_welcome;
    struct item *items;
    size_t count, capacity;
};
/* Connections are numbered. Each end learns by itself that one is over; what was on the way is lost
 * then. While a host's network stands still nothing is lost, until an end loses its patience. */
struct link {
    uint64_t core_end, peer_end; /* connection as each end sees it; 0: none */
    uint64_t newest, broken;     /* broken: this one and all before it carry nothing any more */
    uint64_t last_due_ms[2], stalled_until_ms;
    uint64_t heard_ms, core_lost_ms; /* by the core */
    uint64_t sent_count[2];          /* on this connection */
    struct map drains;               /* sandbox id -> number of the frame that last told it to
                                        drain, or gave it slots */
    struct frame *outbox[2];         /* what leaves at the end of this turn; NULL: nothing */
};
/* What is said in one turn leaves as one frame. Callers see to it that their end is there. */
struct item *network_item(struct sim *s, uint32_t peer, enum direction d, enum item_kind kind);
struct item *frame_item(struct frame *f, enum item_kind kind);
struct frame *network_outbox(struct sim *s, uint32_t peer, enum direction d);
size_t frame_count(const struct frame *f, enum order_kind order); /* NULL has none */
void network_send_now(struct sim *s, uint32_t peer, enum direction d);
void network_break(struct sim *s, uint32_t peer); /* both ends learn of it soon */
void network_stall(struct sim *s, uint32_t peer, uint64_t ms);
void network_peer_ends(struct sim *s, uint32_t peer); /* its program ended */
void network_core_ends(struct sim *s);
void network_dial_later(struct sim *s, uint32_t peer);
void network_begin(struct sim *s);
void network_frame_free(struct frame *f);

/* ---- store.c ---- */

struct record { /* a registered function, as the store has it */
    uint64_t id;
    bool exists, has_active;
    struct settings latest, active; /* active: while has_active, the version that serves */
    uint32_t active_version;
};
struct function {
    uint64_t gave_up_ms; /* when somebody who waited last did: only the next report says so */
                         /* and what is on its way to the store */
    struct record stored, next;
    bool is_writing, writes_active, is_active_unsaved;
    uint32_t active_due;           /* to be written as active, after that */
    uint32_t proven;               /* the newest that the core called active */
    uint32_t concurrency, loosest; /* as told; the highest from which it was lowered lately */
    uint64_t loose_until_ms;
};
const struct function *store_function(const struct sim *s, uint32_t name);      /* NULL: none */
const struct settings *store_version(const struct record *r, uint32_t version); /* NULL: none */
/* A user's change: stored, then told to the core. False: another one is being written. */
bool store_put(struct sim *s, uint32_t name, const struct settings *settings, bool new_version,
               bool prove);
bool store_delete(struct sim *s, uint32_t name);
void store_version_active(struct sim *s, uint64_t function_id, uint32_t version);
void store_tell_core(struct sim *s);   /* that has just started */
void store_interrupted(struct sim *s); /* by a crash */

/* ---- leader.c ---- */

void leader_start(struct sim *s);
void leader_crash(struct sim *s);
void leader_event(struct sim *s, const struct control_event *e);
void leader_frame(struct sim *s, const struct frame *f); /* also hellos */
void leader_heard(struct sim *s, uint32_t peer);
void leader_peer_closed(struct sim *s, uint32_t peer);

/* ---- worker.c ---- */

enum box_state { BOX_STARTING, BOX_READY, BOX_STOPPING };
struct box { /* a sandbox as it really is */
    uint64_t id, function_id;
    uint32_t version, worker, cpu_milli, timeout_ms;
    enum box_state state;
    uint64_t generation; /* of its plans: an event of an older one is void */
    uint32_t requests[PLANES];
    uint32_t estranged; /* data planes that were declared dead and may still hold some of it */
    /* what the core of the moment ordered */
    uint64_t drain_epoch, drain_ms, stop_epoch;
    struct list of_worker;
};
struct worker {
    bool is_up, is_cordoned;
    struct list boxes;
};
void worker_frame(struct sim *s, uint32_t worker, const struct frame *f);
void worker_hello(struct sim *s, uint32_t worker, struct frame *hello);
void worker_restart(struct sim *s, uint32_t worker); /* the daemon; its sandboxes live on */
void worker_crash(struct sim *s, uint32_t worker, uint64_t away_ms); /* the host, with all on it */
void worker_leave(struct sim *s, uint32_t worker, uint64_t away_ms); /* on purpose */
struct box *worker_box(const struct sim *s, uint64_t sandbox_id);    /* NULL: there is none */
void worker_box_end(struct sim *s, struct box *b, enum gone_reason reason);

/* ---- plane.c ---- */

struct route {
    uint64_t id;
    uint32_t plane;
    struct sim *sim;
    struct dispatch *dispatch;
    struct settings settings;
    struct list requests;
    double average;
    uint64_t helpless_ms; /* since then a request waits, and a slot is idle elsewhere; 0: not so */
    bool in_snapshot, is_active, is_due, is_removed;
};
struct endpoint { /* a sandbox as a data plane knows it */
    uint64_t id;
    struct route *route;
    const struct slots *user;
    bool in_snapshot, drained, forget_when_idle;
    uint32_t slots, reported;
};
struct returned {
    uint64_t sandbox_id;
    const struct slots *user; /* only compared */
    uint32_t slots, left;
};
struct returned_list {
    struct returned *items;
    size_t count, capacity;
};
struct slots { /* the user of a dispatch_endpoint: our own count, beside that of the dispatch */
    uint32_t held;
    uint32_t limit; /* that it may hold: what was granted without what was given back */
    bool is_draining, is_ejected, is_removed, was_idle;
};
struct plane {
    bool is_up, has_welcome;
    uint64_t life; /* raised by a restart: what belongs to an older one is void */
    uint64_t epoch, taken;
    struct map routes, removed, endpoints; /* removed: routes that still have requests */
    struct returned_list posted, returned; /* on their way to the control thread; to be told */
};
void plane_frame(struct sim *s, uint32_t plane, const struct frame *f);
void plane_hello(struct sim *s, uint32_t plane, struct frame *hello);
void plane_disconnected(struct sim *s, uint32_t plane);
void plane_crash(struct sim *s, uint32_t plane, uint64_t away_ms);
void plane_begin(struct sim *s, uint32_t plane);
void plane_done(struct sim *s, uint32_t plane);
void plane_fill(struct sim *s, struct frame *f); /* demand is read when it leaves */
void plane_tell_demand(struct sim *s, struct route *r);
void plane_tell_active(struct sim *s, struct route *r);
void plane_report_failed(struct sim *s, uint32_t plane, uint64_t sandbox_id);
void plane_request_left(struct sim *s, struct route *r);

/* ---- request.c ---- */

enum request_state { REQUEST_WAITING, REQUEST_SERVED };
enum answer { /* what the client got; the first is success, all others are errors with a reason */
              ANSWER_OK,
              ANSWER_NOT_FOUND,
              ANSWER_QUEUE_FULL,
              ANSWER_TIMEOUT,
              ANSWER_DELETED,
              ANSWER_FAILED_WAITING,
              ANSWER_CONNECT_FAILED,
              ANSWER_BROKEN,
              ANSWER_PLANE_DIED,
              ANSWER_CLIENT_LEFT,
              ANSWER_COUNT
};
struct request {
    struct dispatch_waiter waiter;
    struct sim *sim;
    uint64_t id, arrived_ms, deadline_ms, work_ms;
    uint32_t thread;
    enum request_state state;
    bool is_idempotent, is_tunnel, was_resent, handover_due, client_left, failed_with_cause;
    enum err failed;
    uint32_t attempts;
    uint64_t plan; /* raised with each: an event of an older one is void */
    struct route *route;
    struct dispatch_endpoint *endpoint; /* whose slot it has */
    uint64_t box;                       /* where it is served; 0: not connected */
    struct list of_route;
};
void request_arrive(struct sim *s, uint32_t plane, uint64_t function_id);
void request_client_leaves(struct sim *s, struct request *r);
/* The sandbox, or the data plane's knowledge of it, is gone: its connections break. */
void requests_break(struct sim *s, uint32_t plane, uint64_t sandbox_id);
void requests_drop(struct sim *s, struct route *r); /* with their data plane */

/* ---- faults.c ---- */

void faults_begin(struct sim *s);
void faults_end(struct sim *s);
void calls_begin(struct sim *s, uint64_t until_ms);

/* ---- check.c ---- */

void check_step(struct sim *s);                                        /* after every event */
void check_orders(struct sim *s, const struct control_orders *orders); /* after every core step */
void check_slot_taken(struct sim *s, const struct request *r);
void check_connected(struct sim *s, const struct request *r, struct box *b);
void check_refused(struct sim *s, const struct request *r); /* the queue is full */
void check_answer(struct sim *s, const struct request *r, enum answer answer);
void check_plane(struct sim *s, uint32_t plane); /* nobody waits while a slot is free */
void check_rest(struct sim *s);
void note_dead(struct sim *s); /* before anything is said to the core */

/* ---- sim.c ---- */

enum phase { PHASE_FAULTS, PHASE_RECOVERY, PHASE_CALLS, PHASE_REST };
struct sim {
    struct rng rng;
    uint64_t seed, now_ms, order;
    enum phase phase;
    bool trace, is_tight; /* tight: not everything that is wanted has room */
    struct event *heap;
    size_t heap_count, heap_capacity;
    struct link links[PEERS];

    struct control *core; /* NULL: it is down */
    struct control_orders orders;
    uint64_t epoch, core_started_ms, core_quiet_since_ms, core_tick_ms;
    struct function functions[FUNCTIONS_MAX]; /* by id */
    uint64_t function_count, names[NAMES];    /* name -> id, 0: not registered */

    struct worker workers[WORKERS];
    struct map boxes;
    uint32_t worker_cpu_milli, worker_slots;
    struct plane planes[PLANES];
    struct map requests;
    uint64_t request_count, calls_until_ms, answers[ANSWER_COUNT], steps;
    uint32_t touched_planes; /* in this event */
    char failure[300];
};
uint64_t sim_below(struct sim *s, uint64_t bound);
uint64_t sim_between(struct sim *s, uint64_t min, uint64_t max);
bool sim_chance(struct sim *s, uint32_t one_in);
void sim_fail(struct sim *s, const char *format, ...) printf_like(2, 3);
void sim_trace(const struct sim *s, const char *format, ...) printf_like(2, 3);
#define FAIL_UNLESS(s, condition, ...)  \
    do {                                \
        if (!(condition))               \
            sim_fail((s), __VA_ARGS__); \
    } while (0)
