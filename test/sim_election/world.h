/* world.h - control planes with real elections (src/control_plane/election.h) in a model of all
 * that is around them: processes, clocks, a network, a store that lets one take each epoch, workers
 * that refuse old orders. One thread, one seed, virtual time in microseconds.
 *
 *   world.c   time, members' processes, what the shell (leadership.c, members.c) does with orders
 *   around.c  network, store, workers
 *   check.c   what must always hold, and what at rest
 *   sim_election.c  scenarios, the runs */
#pragma once
#include "base/base.h"
#include "base/rng.h"
#include "control_plane/election.h"

#define MEMBERS 5u
#define WORKERS 2u
#define EPOCHS_MAX 4096u
#define MS UINT64_C(1000) /* of the world's clock */
#define S (1000 * MS)
#define LINK_US 200u
#define STORE_US 1700u /* one way: 3.4 ms for a compare-and-swap */
#define BEAT_US (25 * MS)
#define SILENT_LINK_US (5 * S) /* after that a connection is given up, as in members.c */
#define RESTART_US                                                                \
    (100 * MS) /* control_plane.c waits for so long, and who starts programs does \
                */
#define TAKE_DEADLINE_US (2 * S)
#define RELIST_US (10 * S)          /* the store's watch is a hint */
#define REACHED_AFTER_US (100 * MS) /* how long a member takes to see that the store is away */

enum happening_kind {
    TOLD,         /* `event` to `to` */
    TICK,         /* of `to` */
    BEAT,         /* of `to` */
    START,        /* of `to` */
    END,          /* of `to`, which has stepped down: the program starts anew */
    CAS,          /* of `from` arrives at the store: event.epoch is what it knows */
    TAKE_OVERDUE, /* `to` has waited for the store for too long */
    WRITE,        /* of `from` arrives at the store, under event.epoch */
    ORDER,        /* of `from` arrives at worker `to`, under event.epoch */
};
struct happening {
    uint64_t at_us, order; /* what is due at one time happens in the order in which it was made */
    enum happening_kind kind;
    uint32_t from, to, from_life, to_life; /* a life that has ended takes and does nothing */
    uint64_t take;                         /* CAS and its answers: which try */
    struct election_event event;
};

struct member {
    struct election *e; /* NULL: not running */
    uint32_t life;      /* counts */
    bool paused, synced, stepped_down;
    bool says_reached; /* what it was told of the store, or sees */
    uint64_t unreached_us, relist_us;
    uint64_t ended_us;
    uint32_t backoff_ms;              /* its life before left that */
    double rate;                      /* of its clock */
    uint64_t offset_ms;               /* of its clock */
    uint64_t tick_us;                 /* the one that is on its way; 0: none */
    uint64_t take, take_count;        /* the try that has no answer yet; 0: none */
    uint64_t taken, caught_up, leads; /* epochs; 0: none */
    uint64_t seen, told_epoch;        /* for the checks */
    uint32_t told_leader;
    struct happening *backlog; /* while paused */
    size_t backlog_count;
    /* of this member's own accepted connections, by who dialled: the life of it; 0: none */
    uint32_t connected[MEMBERS];
    uint64_t arrived_us[MEMBERS];
};

struct owner {
    uint32_t member, life;
    uint64_t at_us;
    bool on_suspicion; /* the owner before was alive and had not stepped down */
};
struct world {
    struct rng rng;
    uint64_t now_us, made;
    uint32_t count;
    bool trace, calm; /* calm: no chance in delays */
    char failure[256];
    struct member members[MEMBERS];
    struct happening *heap;
    size_t heap_count, heap_capacity;

    /* network: from, to */
    bool cut[MEMBERS][MEMBERS], worker_cut[MEMBERS][WORKERS];
    uint32_t lag_us[MEMBERS][MEMBERS], loss_percent;
    uint64_t last_us[MEMBERS][MEMBERS], last_store_us[MEMBERS]; /* no message overtakes another */

    /* store */
    uint64_t epoch;
    struct owner owners[EPOCHS_MAX];
    bool store_away, store_cut[MEMBERS], store_deaf[MEMBERS]; /* deaf: answers are lost */
    uint32_t store_slow;                                      /* times */
    uint32_t watch_loss_percent;
    uint64_t write_epoch; /* of the last accepted */

    uint64_t worker_epoch[WORKERS];
    unsigned kills, step_downs, pauses;
    uint64_t suspicion_us; /* the last replacement of one that was alive */
    uint64_t gap_us;       /* the shortest between two of them */
};

/* world.c */
void world_init(struct world *w, uint64_t seed, uint32_t count);
void world_done(struct world *w);
void world_run(struct world *w, uint64_t us);
/* Until `is_so`, or for `us`: whether it became so. */
bool world_run_until(struct world *w, bool (*is_so)(const struct world *w), uint64_t us);
void world_start(struct world *w, uint32_t i);
void world_start_later(struct world *w, uint32_t i, uint64_t us);
void world_kill(struct world *w, uint32_t i, bool with_host); /* with_host: nothing is closed */
void world_pause(struct world *w, uint32_t i);
void world_resume(struct world *w, uint32_t i);
void world_add(struct world *w, uint64_t after_us, struct happening h);
void world_step(struct world *w, uint32_t i, const struct election_event *event);
void world_fail(struct world *w, const char *format, ...) printf_like(2, 3);
void world_trace(const struct world *w, const char *format, ...) printf_like(2, 3);
uint64_t world_below(struct world *w, uint64_t bound);
bool world_chance(struct world *w, uint32_t percent);
bool is_alive(const struct world *w, uint32_t i); /* it runs, and has not stepped down */

/* around.c */
void network_send(struct world *w, uint32_t from, uint32_t to, struct election_event event);
void network_beat(struct world *w, uint32_t i);
void network_killed(struct world *w, uint32_t i, bool with_host);
void store_take_epoch(struct world *w, uint32_t i, uint64_t known);
void store_beat(struct world *w, uint32_t i);
void store_cas(struct world *w, const struct happening *h);
void store_write(struct world *w, const struct happening *h);
void work_beat(struct world *w, uint32_t i);
void worker_order(struct world *w, const struct happening *h);

/* check.c */
void check_order(struct world *w, uint32_t i, const struct election_order *o);
void check_member(struct world *w, uint32_t i); /* after each of its steps */
uint32_t leaders(const struct world *w);
uint32_t leader_of(const struct world *w); /* one that leads under the newest epoch, or NOBODY */
bool is_settled(const struct world *w);    /* one leads, all others know it and suspect nobody */
