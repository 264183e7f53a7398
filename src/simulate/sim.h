/* sim.h - inside src/simulate only: what its files share. One loop thread owns all of it.
 *
 *   simulate.c      settings, the order of things, the end
 *   load.c          invocations: which function is called when, and what was measured of it
 *   planes.c        data planes: routes, endpoints, demand
 *   workers.c       workers: sandboxes that start after a delay and stop at once
 *   registration.c  functions, over the HTTP API
 *   watch.c         processor time and memory of the control plane and of ourselves
 *   report.c        what is printed
 *
 * Life of an invocation: COLD function → asked (its time in the schedule has come, demand is sent)
 * → WAITING → endpoint published → HELD for the time of --exec → ENDING (demand is none; the
 * autoscaler's window ends, the sandbox is drained, stopped, gone) → COLD again. A function has one
 * invocation at a time, so that each is a cold start. */
#pragma once
#include "base/hash.h"
#include "base/list.h"
#include "base/rng.h"
#include "base/settings.h"
#include "loop/loop.h"
#include "simulate/delay_line.h"
#include "simulate/samples.h"
#include "simulate/schedule.h"
#include "wire/dirigent.pb-c.h"
#include "wire/replicas.h"

#define WORKER_NAME "sim-worker-"
#define PLANE_NAME "sim-data-plane-"
#define FUNCTION_NAME "sim-function-"
#define DIALLED_AT_ONCE 256u /* connections that are not welcome yet */

struct simulate_settings {
#define SETTING(key, type, default_text, help) SETTING_FIELD_##type(key)
#include "simulate/simulate_settings.def"
#undef SETTING
};

struct sim_plane;
struct sim_worker;

enum function_state { FUNCTION_COLD, FUNCTION_WAITING, FUNCTION_HELD, FUNCTION_ENDING };
struct sim_function {
    uint64_t id;             /* 0: no data plane was told of it */
    struct list node;        /* in load.cold or load.waiting */
    struct sim_plane *plane; /* where it is called */
    enum function_state state;
    bool measured; /* the invocation's time in the schedule is in the time that counts */
    bool ordered;  /* a start order for it was seen */
    uint64_t asked_ns;
    uint64_t held_sandbox; /* that serves it, while HELD */
    uint32_t endpoints;    /* that its data plane knows */
    bool drain_owed;       /* of held_sandbox */
};

enum sandbox_state { SANDBOX_STARTING, SANDBOX_READY, SANDBOX_GONE };
struct sim_sandbox {
    uint64_t id, function_id;
    uint32_t version;
    enum sandbox_state state; /* GONE: only the delay line has it still */
    struct sim_worker *worker;
    struct list node; /* in worker->sandboxes */
    uint64_t ordered_ns, ready_ns, started_at_ms;
};

/* Counted in the time that is measured, but for those said to be of the whole run. */
struct load_counts {
    /* of calls whose time in the schedule is in it */
    uint64_t asked, scheduled, published, failed, timed_out;
    uint64_t cut;              /* published, and the sandbox went while they held it */
    uint64_t held_up, unasked; /* no function was cold: asked late, or not at all */
    uint64_t scheduled_in_time, published_in_time; /* by when it happened */
    uint64_t starts, readies, stops, unprepared, worker_losses, plane_losses; /* whole run */
};
struct load {
    struct sim_function *functions;
    struct map by_id;    /* id → function, for those that a data plane was told of */
    struct list cold;    /* the one that is so for longest first */
    struct list waiting; /* in the order in which they were asked */
    size_t waiting_count;
    struct schedule schedule;
    bool arriving, starved; /* starved: an arrival waits for a function to become cold */
    uint64_t measured_from_ns, ends_ns; /* arrivals between these count, and there are none after */
    struct delay_line holds;            /* function */
    struct load_counts counts;
    struct samples order_ns, publish_ns, late_ns;
};

struct sim {
    struct simulate_settings settings;
    struct loop *loop;
    struct loop_signals signals;
    struct loop_timer timer; /* deadlines, and what is looked at now and then */
    struct loop_poll alarm;  /* timerfd: for what must be on time to the microsecond */
    int alarm_fd;
    uint64_t alarm_ns, alarm_rang_ns; /* when it goes off, UINT64_MAX: never; when it last did */
    struct rng rng;
    struct load load;
    struct sim_plane *planes;
    struct sim_worker *workers;
    size_t planes_up, workers_up, workers_dialled;
    struct map sandboxes;     /* id → struct sim_sandbox, not those GONE */
    struct delay_line starts; /* struct sim_sandbox */
    struct sim_sandbox *spare;
    struct loop_timer worker_load, worker_loss;
    size_t worker_load_part;
    char last_failure[192];       /* of a connection */
    ProtobufCAllocator allocator; /* of one message: from `scratch`, as far as it goes */
    struct buf scratch;
    size_t scratch_used, scratch_pieces; /* pieces: not given back yet */
};

/* A connection is up, was lost, or could not be made. */
void sim_progress(struct sim *s);
void sim_alarm_at(struct sim *s, uint64_t due_ns); /* the earliest of all that were asked for */

/* ---- load.c ---- */
void load_init(struct sim *s);
void load_begin(struct sim *s);   /* arrivals from now on */
void load_give_up(struct sim *s); /* on calls whose time has come and that found no cold function */
void load_due(struct sim *s, uint64_t now_ns); /* what the alarm rang for */
uint64_t load_next_ns(const struct sim *s);
void load_check_timeouts(struct sim *s);
struct sim_function *load_find(struct sim *s, uint64_t function_id);
void load_know(struct sim *s, uint64_t function_id, const char *name);
void load_ordered(struct sim *s, struct sim_sandbox *box);
/* At the function's own data plane: */
void load_published(struct sim *s, struct sim_function *f, uint64_t sandbox_id);
void load_endpoint_gone(struct sim *s, struct sim_function *f, uint64_t sandbox_id);
void load_failed(struct sim *s, struct sim_function *f);
void load_done(struct sim *s);

/* ---- planes.c ---- */
void planes_init(struct sim *s);
enum err planes_dial(struct sim *s, struct error *e); /* as many as may be on their way at once */
struct sim_plane *planes_of(struct sim *s, size_t function_index);
void sim_plane_demand(struct sim_plane *p, struct sim_function *f);
void sim_plane_drained(struct sim_plane *p, uint64_t sandbox_id);
void planes_goodbye(struct sim *s);
void planes_free(struct sim *s);

/* ---- workers.c ---- */
void workers_init(struct sim *s);
enum err workers_dial(struct sim *s, struct error *e);
void workers_begin_losses(struct sim *s);
void workers_due(struct sim *s, uint64_t now_ns);
void workers_goodbye(struct sim *s);
void workers_free(struct sim *s);

/* ---- registration.c ---- */
/* Looks whether the control plane has workers or data planes that are none of ours, and refuses it
 * then unless forced; that it has none is told as ERR_MORE. Then registration_begin() registers the
 * functions. The end of all is told once. */
struct registration;
must_check enum err
registration_new(struct sim *s, void (*on_done)(struct sim *s, enum err err, const struct error *e),
                 struct registration **ret_registration, struct error *e);
void registration_begin(struct registration *r);
size_t registration_count(const struct registration *r); /* registered until now */
void registration_free(struct registration *r); /* not from its callback; runs a turn of the loop */

/* ---- watch.c ---- */
struct usage {
    uint64_t at_ns, cpu_ns, main_cpu_ns; /* main: of the thread that the process began with */
    uint64_t wait_ns;                    /* its threads could have run, and had no processor */
    uint64_t rss_bytes;
};
/* The process that listens here on the port of the first address; 0: none that we may see. */
pid_t watch_find(const char *addresses);
must_check enum err watch_usage(pid_t pid, struct usage *ret_usage, struct error *e);

/* ---- report.c ---- */
struct results {
    double registered_s, joined_s; /* functions; workers */
    double measured_s;
    bool has_control_plane; /* its usage is known */
    struct usage before, after, own_before, own_after;
};
void report_print(struct sim *s, const struct results *r);
