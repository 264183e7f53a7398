/* sandboxes.c - the life of a sandbox: starting -> ready -> draining -> stopping -> gone. */
#include "control_plane/core_state.h"
#include <stdio.h>
#include <stdlib.h>

#define DRAIN_SLACK_MS 5000u /* over the function's timeout, for a request that just came */
#define SPARES_AT_ONCE 128u

#define TO(s) (1u << (s))
static const struct {
    const char *name;
    unsigned next; /* the states that may follow; GONE is sandbox_gone() */
} states[SANDBOX_STATE_COUNT] = {
    [SANDBOX_STARTING] = {"starting", TO(SANDBOX_READY) | TO(SANDBOX_STOPPING)},
    [SANDBOX_READY] = {"ready", TO(SANDBOX_DRAINING)},
    [SANDBOX_DRAINING] = {"draining", TO(SANDBOX_STOPPING)},
    [SANDBOX_STOPPING] = {"stopping", 0},
    [SANDBOX_GONE] = {"gone", 0},
};

/* ---- counting ---- */

static void count(const struct core_sandbox *s, int32_t by)
{
    struct core_function *f = s->function;
    struct core_version *v = function_version(f, s->version);
    if (s->state == SANDBOX_DRAINING)
        f->draining += (uint32_t)by;
    if (v == NULL)
        return; /* of a version that is no more */
    if (s->state == SANDBOX_STARTING) {
        v->starting += (uint32_t)by;
        v->doubtful += s->doubtful ? (uint32_t)by : 0;
    } else if (s->state == SANDBOX_READY) {
        v->ready += (uint32_t)by;
        v->leaving += s->leaving ? (uint32_t)by : 0;
    }
}

/* The only writer of `state`. */
static void sandbox_move(struct control *c, struct core_sandbox *s, enum sandbox_state to)
{
    assert(states[s->state].next & TO(to));
    count(s, -1);
    s->state = to;
    s->doubtful = false;
    count(s, 1);
    function_touch(c, s->function);
}

void sandbox_doubt(struct core_sandbox *s, bool doubtful)
{
    count(s, -1);
    s->doubtful = doubtful && s->state == SANDBOX_STARTING;
    count(s, 1);
}

void sandbox_leave(struct core_sandbox *s, bool leaving)
{
    count(s, -1);
    s->leaving = leaving;
    count(s, 1);
}

/* ---- memory: records are reused, in slabs that go with the process of their control ---- */

static struct core_sandbox *record_take(struct control *c)
{
    struct core_sandbox *s = c->spare;
    if (s == NULL) {
        for (unsigned i = 0; i < SPARES_AT_ONCE; i++) {
            s = mem_new(sizeof(*s));
            s->of_function.next = (struct list *)c->spare;
            c->spare = s;
        }
    }
    c->spare = (struct core_sandbox *)s->of_function.next;
    *s = (struct core_sandbox){0};
    return s;
}

static void record_give(struct control *c, struct core_sandbox *s)
{
    s->of_function.next = (struct list *)c->spare;
    c->spare = s;
}

struct core_sandbox *sandbox_new(struct control *c, struct core_function *f, struct core_worker *w,
                                 uint64_t id, uint32_t version)
{
    const struct core_version *v = function_version(f, version);
    const struct function_spec *spec = v != NULL ? &v->spec : &f->latest.spec;
    struct core_sandbox *s = record_take(c);
    s->id = id;
    s->function = f;
    s->worker = w;
    s->version = version;
    s->state = SANDBOX_STARTING;
    s->cpu_milli = spec->cpu_milli;
    s->memory_bytes = spec->memory_bytes;
    s->timeout_ms = spec->timeout_ms;
    s->stop_grace_ms = spec->stop_grace_ms;
    s->seen_step = c->steps;
    s->leaving = w->use == WORKER_USE_DRAINING;
    s->due = (struct due){.heap_index = SIZE_MAX, .kind = DUE_SANDBOX};
    list_push_back(&f->sandboxes, &s->of_function);
    list_push_back(&w->sandboxes, &s->of_worker);
    map_put(&c->sandboxes, id, s);
    placement_reserve(c->placement, &w->room, s->cpu_milli, s->memory_bytes);
    count(s, 1);
    return s;
}

/* ---- draining and stopping ---- */

void sandbox_endpoint_tell(struct control *c, const struct core_sandbox *s, uint64_t data_plane_id,
                           uint32_t slots)
{
    struct control_order *o = core_order(c, ORDER_ENDPOINT, data_plane_id);
    o->function_id = s->function->id;
    o->sandbox_id = s->id;
    o->version = s->version;
    o->slots = slots;
}

/* To data planes that are alive; the others learn it when they are back. */
static void planes_tell(struct control *c, uint64_t planes, enum order_kind kind,
                        const struct core_sandbox *s, enum gone_reason reason)
{
    uint64_t told = planes & c->alive_mask;
    for (uint64_t left = told; left != 0; left &= left - 1) {
        uint64_t id = c->data_planes[__builtin_ctzll(left)].id;
        struct control_order *o = core_order(c, kind, told == c->alive_mask ? ALL_DATA_PLANES : id);
        o->function_id = s->function->id;
        o->sandbox_id = s->id;
        o->reason = reason;
        if (told == c->alive_mask)
            return;
    }
}

void sandbox_stop_tell(struct control *c, const struct core_sandbox *s)
{
    struct control_order *o = core_order(c, ORDER_STOP, s->worker->id);
    o->function_id = s->function->id;
    o->sandbox_id = s->id;
    o->version = s->version;
    o->grace_ms = s->stop_grace_ms;
}

static void stop(struct control *c, struct core_sandbox *s)
{
    sandbox_move(c, s, SANDBOX_STOPPING);
    due_at(c, &s->due, UINT64_MAX);
    sandbox_stop_tell(c, s);
}

/* A data plane that has not come back yet may have requests there too. */
void sandbox_stop_when_drained(struct control *c, struct core_sandbox *s)
{
    bool is_over = c->now_ms >= s->due.at_ms;
    bool is_idle = s->undrained == 0 && (c->awaited_planes == 0 || !core_awaits_anybody(c));
    if (s->state == SANDBOX_DRAINING && (is_idle || is_over))
        stop(c, s);
}

void sandbox_drain(struct control *c, struct core_sandbox *s)
{
    if (s->state == SANDBOX_STARTING) {
        stop(c, s); /* no data plane knows it */
        return;
    }
    if (s->state != SANDBOX_READY)
        return;
    leases_sandbox_leaves(c, s);
    sandbox_move(c, s, SANDBOX_DRAINING);
    s->undrained = leases_holders(c, s->id);
    due_at(c, &s->due, c->now_ms + s->timeout_ms + DRAIN_SLACK_MS);
    planes_tell(c, s->undrained, ORDER_DRAIN, s, GONE_UNKNOWN);
    sandbox_stop_when_drained(c, s);
}

/* ---- ready ---- */

static void on_ready(struct control *c, struct core_sandbox *s, const struct sandbox_report *r)
{
    struct core_function *f = s->function;
    if (s->state != SANDBOX_STARTING)
        return;
    s->ready_at_ms = c->now_ms;
    s->address = r->address;
    s->started_at_ms = r->started_at_ms;
    s->create_us = r->create_us;
    s->exec_us = r->exec_us;
    s->listen_us = r->listen_us;
    sandbox_move(c, s, SANDBOX_READY);
    leases_sandbox_ready(c, s);
    if (f->deleted) {
        sandbox_drain(c, s);
    } else if (s->version == f->latest.number && !f->latest_is_active) {
        function_activate(c, f);
    } else if (s->version == function_serving(f)->number) {
        leases_offer(s);
        f->latest_state = f->latest_is_active ? VERSION_READY : f->latest_state;
    } else {
        sandbox_drain(c, s); /* overtaken by a newer version */
    }
    if (s->version == function_serving(f)->number)
        failure_clear(f->failure);
}

/* ---- gone ---- */

/* The program's fault, or that of its spec: the next start will not be different. */
static bool is_of_program(enum gone_reason reason)
{
    return reason != GONE_STOPPED && reason != GONE_WORKER_LOST && reason != GONE_NO_ROOM;
}

static void trial_failed(struct control *c, struct core_function *f, const struct core_sandbox *s,
                         const struct sandbox_report *r)
{
    failure_tell(&f->trial_failure, &f->latest.spec, s->state, r);
    f->proving = false;
    f->latest_state = VERSION_FAILED;
    struct control_order *o = core_order(c, ORDER_VERSION_FAILED, 0);
    o->function_id = f->id;
    o->version = s->version;
    o->reason = r->reason;
    o->code = failure_code(r->reason);
    o->message = f->trial_failure->text;
    o->last_output = (struct str){f->trial_failure->output, f->trial_failure->output_bytes};
}

static void start_failed(struct control *c, struct core_function *f, const struct core_sandbox *s,
                         const struct sandbox_report *r)
{
    const struct core_version *v = function_version(f, s->version);
    if (v == NULL || r->reason == GONE_STOPPED || r->reason == GONE_WORKER_LOST)
        return; /* elsewhere it may go well */
    if (v == &f->latest && f->proving && is_of_program(r->reason))
        trial_failed(c, f, s, r);
    if (v != function_serving(f)) {
        f->retry_at_ms = MAX(f->retry_at_ms, c->now_ms + 100); /* a trial goes on elsewhere */
        return;
    }
    failure_tell(&f->failure, &v->spec, s->state, r);
    scale_back_off(c, f);
    if (!f->latest_is_active && f->old.number == 0 && is_of_program(r->reason))
        f->latest_state = VERSION_FAILED;
    f->told = false;
}

static void ready_failed(struct control *c, struct core_function *f, const struct core_sandbox *s,
                         const struct sandbox_report *r)
{
    const struct core_version *v = function_version(f, s->version);
    if (v == NULL || !is_of_program(r->reason))
        return;
    if (c->now_ms - s->ready_at_ms >= PROVEN_AFTER_MS) {
        f->backoff_ms = 0;
        return;
    }
    failure_tell(&f->failure, &v->spec, s->state, r); /* it dies soon after each start */
    scale_back_off(c, f);
    f->told = false;
}

/* Of a worker that was given up we only know that it does not speak to us: its sandboxes may live and
 * answer what they have. Data planes give them nothing new and forget them when that has ended. */
void sandbox_gone(struct control *c, struct core_sandbox *s, const struct sandbox_report *r)
{
    struct core_function *f = s->function;
    bool is_unheard = s->worker->state == WORKER_DEAD;
    if (s->state != SANDBOX_STARTING) { /* data planes may know it */
        uint64_t planes = leases_knowers(c, s->id);
        if (is_unheard)
            planes &= ~leases_holders(c, s->id); /* leases_sandbox_gone() drains those */
        planes_tell(c, planes, ORDER_ENDPOINT_GONE, s, r->reason);
    }
    if (s->ready_at_ms != 0 && c->now_ms - s->ready_at_ms >= PROVEN_AFTER_MS)
        f->backoff_ms = 0;
    if (s->state == SANDBOX_STARTING && !f->deleted)
        start_failed(c, f, s, r);
    else if (s->state == SANDBOX_READY && !f->deleted)
        ready_failed(c, f, s, r);
    if (s->state == SANDBOX_READY)
        leases_sandbox_leaves(c, s);
    leases_sandbox_gone(c, s, r->reason == GONE_WORKER_LOST);
    count(s, -1);
    list_remove(&s->of_function);
    list_remove(&s->of_worker);
    (void)map_remove(&c->sandboxes, s->id);
    due_at(c, &s->due, UINT64_MAX);
    planes_forget_sandbox(c, s);
    placement_release(c->placement, &s->worker->room, s->cpu_milli, s->memory_bytes);
    c->room_came |= placement_has(&s->worker->room);
    record_give(c, s);
    function_touch(c, f);
}

/* ---- what workers report ---- */

/* One that nobody of us started: of the leader before, or of a worker that was given up. */
static struct core_sandbox *adopt(struct control *c, struct core_worker *w,
                                  const struct sandbox_report *r)
{
    struct core_function *f = map_get(&c->functions, r->function_id);
    if (r->function_id == 0 || r->version == 0) {
        struct control_order *o = core_order(c, ORDER_STOP, w->id); /* nobody's */
        o->function_id = r->function_id;
        o->sandbox_id = r->sandbox_id;
        o->version = r->version;
        o->grace_ms = STOP_GRACE_MS_DEFAULT;
        return NULL;
    }
    if (f == NULL)
        f = function_deleted_before(c, r->function_id, r->version);
    struct core_sandbox *s = sandbox_new(c, f, w, r->sandbox_id, r->version);
    f->adopted = true;
    function_touch(c, f);
    return s;
}

/* What it is, beside what we took it for. */
static void state_take(struct control *c, struct core_sandbox *s, const struct sandbox_report *r)
{
    if (r->state == SANDBOX_READY)
        on_ready(c, s, r);
    else if (r->state == SANDBOX_STOPPING && s->state != SANDBOX_STOPPING)
        sandbox_drain(c, s); /* by an order that we do not know of */
    bool outdated = s->function->deleted || function_version(s->function, s->version) == NULL;
    if (outdated)
        sandbox_drain(c, s);
}

void sandbox_report_take(struct control *c, struct core_worker *w, const struct sandbox_report *r)
{
    struct core_sandbox *s = map_get(&c->sandboxes, r->sandbox_id);
    if (w->state != WORKER_ALIVE || (s != NULL && s->worker != w))
        return; /* it was given up, or speaks of another's */
    if (s == NULL && r->state != SANDBOX_GONE)
        s = adopt(c, w, r);
    if (s == NULL)
        return;
    s->seen_step = c->steps;
    if (r->state == SANDBOX_GONE)
        sandbox_gone(c, s, r);
    else
        state_take(c, s, r);
}
