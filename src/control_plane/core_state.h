/* core_state.h - what the files of the core share; nobody else includes it. */
#pragma once
#include "base/hash.h"
#include "base/list.h"
#include "base/rng.h"
#include "control_plane/autoscaler.h"
#include "control_plane/core.h"
#include "control_plane/placement.h"


enum due_kind { DUE_FUNCTION, DUE_SANDBOX, DUE_WORKER };
struct due { /* a place in the heap of what must be looked at later */
    uint64_t at_ms;
    size_t heap_index; /* SIZE_MAX: not there */
    enum due_kind kind;
};

struct demand { /* of one function at one data plane */
    uint32_t in_flight, waiting;
    double average;
};

struct core_function {
    uint64_t id;
    struct function_spec spec, active_spec; /* of latest; of active when it is another version */
    uint32_t latest, active;                /* versions; active 0: none yet */
    int latest_state;                       /* as in struct function_view */
    bool proving, deleted, has_spec, counted_panic;
    char failure[512];
    enum gone_reason failure_reason;
    struct buf failure_output;
    struct list sandboxes;
    uint32_t starting, ready, draining;     /* of all versions */
    struct demand demands[DATA_PLANES_MAX];
    uint64_t demand_mask;                   /* data planes with demand other than zero */
    uint32_t in_flight, waiting;
    double average;
    struct autoscaler autoscaler;
    uint32_t desired, wanted;
    uint64_t next_period_ms, retry_at_ms, zero_since_ms;
    uint32_t backoff_ms;
    bool ticking;
    struct due due;
};

struct core_worker {
    uint64_t id;
    char *name;
    int state;              /* as in struct worker_view */
    bool cordoned;
    struct room room;
    struct list sandboxes;
    uint64_t heard_ms;
    struct strmap digests;  /* code that is unpacked there */
    struct due due;         /* when its absence becomes its death */
};

struct core_sandbox {
    uint64_t id;
    struct core_function *function;
    struct core_worker *worker;
    uint32_t version;
    enum sandbox_state state;
    bool probe;
    struct endpoint_address address;
    uint64_t started_at_ms, ready_at_ms;
    uint32_t create_us, exec_us, listen_us;
    uint32_t cpu_milli;     /* as reserved */
    uint64_t memory_bytes;
    uint64_t undrained;     /* data planes that have not said drained */
    struct list of_function, of_worker;
    struct due due;         /* end of patience with draining */
};

struct control {
    struct control_options options;
    struct rng rng;
    struct map functions, sandboxes, workers;
    struct placement *placement;
    struct {
        uint64_t id, heard_ms;
        bool alive, used;
    } data_planes[DATA_PLANES_MAX];
    uint32_t sandbox_counter, awaited;
    uint64_t started_ms;    /* of the first step */
    bool started;
    struct due **heap;
    size_t heap_count, heap_capacity;
    uint64_t now_ms;
    struct control_orders *orders; /* of the step that runs */
};

/* core.c */
struct control_order *core_order(struct control *c, enum order_kind kind, uint64_t target_id);
void core_due_at(struct control *c, struct due *d, uint64_t at_ms); /* UINT64_MAX: never */
/* scale.c - from demand to sandboxes */
void scale_function(struct control *c, struct core_function *f);     /* starts and drains what is due */
void scale_demand(struct control *c, struct core_function *f, unsigned data_plane, const struct demand *d);
void scale_due(struct control *c, struct core_function *f);
uint32_t scale_serving_version(const struct core_function *f);
const struct function_spec *scale_spec_of(const struct core_function *f, uint32_t version);
const char *scale_failure_code(enum gone_reason reason); /* as answers name it: "sandbox_exited" */
void scale_fail_waiting(struct control *c, struct core_function *f, uint64_t data_plane);
/* sandboxes.c - the life of sandboxes as the core sees it */
struct core_sandbox *sandbox_new(struct control *c, struct core_function *f, struct core_worker *w, uint64_t id, uint32_t version);
void sandbox_report_take(struct control *c, struct core_worker *w, const struct sandbox_report *r);
void sandbox_drain(struct control *c, struct core_sandbox *s);
void sandbox_drained(struct control *c, struct core_sandbox *s, uint64_t data_planes);
void sandbox_gone(struct control *c, struct core_sandbox *s, const struct sandbox_report *why);
void sandbox_due(struct control *c, struct core_sandbox *s);
void sandbox_endpoint_tell(struct control *c, const struct core_sandbox *s, uint64_t data_plane);
/* Frees a deleted function with no sandbox left. */
void core_function_end(struct control *c, struct core_function *f);
