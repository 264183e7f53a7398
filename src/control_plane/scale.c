/* scale.c - from demand to sandboxes: how many, when to start, where, which to drain. */
#include "control_plane/core_state.h"
#include <stdlib.h>
#include <string.h>

#define BACKOFF_MS_MIN 100u
#define BACKOFF_MS_MAX 30000u
#define ROOM_RETRY_MS 500u /* for whoever lacks room; room that comes is noticed at once */
#define PATIENCE_MS 800u   /* of backoff, before a lack of room at a worker is told */

/* ---- what is wanted ---- */

static bool is_idle(const struct core_function *f)
{
    return f->in_flight == 0 && f->waiting == 0 && f->average == 0;
}

static uint32_t wanted_now(const struct core_function *f)
{
    const struct scaling_policy *p = function_policy(f);
    uint32_t wanted = f->desired;
    if (f->proving && f->old.number == 0)
        wanted = MAX(wanted, 1u); /* its trial and its first sandbox are one */
    wanted = MAX(wanted, p->scale_min);
    return MIN(wanted, p->scale_max);
}

/* What those that are away hold serves nobody else: for who waits it is as if it were in use. */
static uint64_t requests_of(struct control *c, struct core_function *f)
{
    uint64_t requests = (uint64_t)f->in_flight + f->waiting;
    return f->waiting > 0 ? requests + leases_locked_slots(c, f) : requests;
}

/* A sandbox would be started for requests that may have been served since: then it is asked first,
 * and what comes back, or the end of patience, brings us here again. */
static bool may_be_old(struct control *c, struct core_function *f)
{
    return leases_stale_requests(c, f) > 0 && leases_ask(c, f);
}

/* What the requests of the moment need. It stands until the period ends: demand alone never takes
 * a sandbox away. */
static void raise_now(struct control *c, struct core_function *f)
{
    const struct scaling_policy *p = function_policy(f);
    if (p->mode != SCALING_IMMEDIATE)
        return;
    const struct core_version *v = function_serving(f);
    uint64_t requests = requests_of(c, f);
    uint32_t needed = MIN(autoscaler_needed_now(p, requests), p->scale_max);
    if (needed > f->desired && needed > v->starting + v->ready && may_be_old(c, f))
        needed =
            MIN(autoscaler_needed_now(p, requests - leases_stale_requests(c, f)), p->scale_max);
    if (needed <= f->desired)
        return;
    autoscaler_raised(&f->autoscaler, p, needed, v->starting + v->ready, c->now_ms);
    f->desired = needed;
}

/* Concurrency as the windows see it. The average is told once a period; before the first time it
 * is what is in flight. */
static double level_of(const struct core_function *f)
{
    double serving = f->average > 0 ? f->average : (double)f->in_flight;
    return serving + f->waiting;
}

/* ---- starting ---- */

static size_t preferred_collect(struct control *c, const struct code *code, struct room **ret_rooms)
{
    size_t count = code->count, found = 0;
    if (count == 0)
        return 0;
    size_t at = rng_below(&c->rng, count), looked_at = MIN(count, 2 * (size_t)PLACEMENT_CANDIDATES);
    for (size_t i = 0; i < looked_at && found < PLACEMENT_CANDIDATES; i++) {
        struct core_worker *w = code->workers[at];
        if (placement_has(&w->room))
            ret_rooms[found++] = &w->room;
        at = at + 1 == count ? 0 : at + 1;
    }
    return found;
}

static bool start_one(struct control *c, struct core_function *f, struct core_version *v)
{
    struct room *preferred[PLACEMENT_CANDIDATES];
    size_t preferred_count = 0;
    if (v->spec.placement == PLACEMENT_LOCALITY && v->code != NULL)
        preferred_count = preferred_collect(c, v->code, preferred);
    struct room *room = placement_choose(c->placement, v->spec.placement, v->spec.cpu_milli,
                                         v->spec.memory_bytes, preferred, preferred_count, &c->rng);
    if (room == NULL)
        return false;
    struct core_worker *w = container_of(room, struct core_worker, room);
    uint64_t id = c->options.epoch << 32 | ++c->sandbox_counter;
    struct core_sandbox *s = sandbox_new(c, f, w, id, v->number);
    if (v->code != NULL)
        code_add_worker(v->code, w); /* it will have it */
    struct control_order *o = core_order(c, ORDER_START, w->id);
    o->function_id = f->id;
    o->sandbox_id = s->id;
    o->version = v->number;
    return true;
}

/* Workers that have not spoken yet may have what is wanted: only those who wait get new ones. */
static uint32_t startable(const struct control *c, const struct core_function *f,
                          const struct core_version *v, uint32_t missing)
{
    if (c->now_ms < f->retry_at_ms)
        return 0;
    if (!core_awaits_workers(c))
        return missing;
    uint32_t needed = f->asked ? autoscaler_needed_now(function_policy(f), f->waiting) : 0;
    return MIN(missing, needed > v->starting ? needed - v->starting : 0);
}

static void starve(struct control *c, struct core_function *f)
{
    f->starving = true;
    list_remove(&f->hungry); /* to the end */
    list_push_back(&c->hungry, &f->hungry);
}

static void start_missing(struct control *c, struct core_function *f, struct core_version *v,
                          uint32_t missing)
{
    for (uint32_t left = startable(c, f, v, missing); left > 0; left--)
        if (!start_one(c, f, v)) {
            starve(c, f);
            return;
        }
}

/* The trial of a new version: one sandbox beside those that serve. */
static bool trial_missing(const struct core_function *f)
{
    return f->proving && f->old.number != 0 && f->latest.starting + f->latest.ready == 0;
}

static void trial_start(struct control *c, struct core_function *f)
{
    if (!trial_missing(f) || c->now_ms < f->retry_at_ms || core_awaits_workers(c))
        return;
    if (start_one(c, f, &f->latest)) {
        failure_clear(f->trial_failure);
        return;
    }
    failure_no_room(&f->trial_failure, c, &f->latest.spec);
    starve(c, f);
}

void scale_back_off(struct control *c, struct core_function *f)
{
    if (c->now_ms - f->failed_at_ms > 2 * BACKOFF_MS_MAX)
        f->backoff_ms = 0; /* long ago */
    f->backoff_ms = f->backoff_ms == 0 ? BACKOFF_MS_MIN : MIN(f->backoff_ms * 2, BACKOFF_MS_MAX);
    f->retry_at_ms = c->now_ms + f->backoff_ms;
    f->failed_at_ms = c->now_ms;
}

/* ---- what those who wait are told ---- */

static bool room_may_come(const struct control *c)
{
    return c->suspected_workers > 0 || core_awaits_workers(c);
}

static bool is_hopeless(struct control *c, struct core_function *f, struct core_version *v)
{
    if (c->now_ms < f->retry_at_ms) {
        bool is_room = failure_stands(f->failure) && f->failure->reason == GONE_NO_ROOM;
        return failure_stands(f->failure) && !f->failure->has_served &&
               (!is_room || f->backoff_ms >= PATIENCE_MS);
    }
    if (!f->starving || room_may_come(c))
        return false;
    failure_no_room(&f->failure, c, &v->spec);
    return true;
}

/* Only when waiting would be in vain: nothing of it is starting or ready. Once for each report. */
static void waiting_tell(struct control *c, struct core_function *f, struct core_version *v)
{
    if (f->waiting == 0 || f->told || v->starting + v->ready > 0 || !is_hopeless(c, f, v))
        return;
    f->told = true;
    uint64_t wait_ms = f->retry_at_ms > c->now_ms ? f->retry_at_ms - c->now_ms : ROOM_RETRY_MS;
    struct control_order *o = core_order(c, ORDER_FAIL_WAITING, ALL_DATA_PLANES);
    o->function_id = f->id;
    o->reason = f->failure->reason;
    o->status = failure_status(f->failure->reason);
    o->code = failure_code(f->failure->reason);
    o->message = f->failure->text;
    o->last_output = (struct str){f->failure->output, f->failure->output_bytes};
    o->retry_after_s = (uint32_t)((wait_ms + 999) / 1000);
}

/* ---- stopping ---- */

static int compare_use(const void *a, const void *b)
{
    const struct core_sandbox *x = *(struct core_sandbox *const *)a;
    const struct core_sandbox *y = *(struct core_sandbox *const *)b;
    if ((x->state == SANDBOX_STARTING) != (y->state == SANDBOX_STARTING))
        return x->state == SANDBOX_STARTING ? -1 : 1;
    if (x->in_flight != y->in_flight)
        return x->in_flight < y->in_flight ? -1 : 1;
    return x->id > y->id ? -1 : 1; /* the newest first: the oldest have proven themselves */
}

/* Those that do not serve yet, then the idle, then the least loaded. */
static void drain_some(struct control *c, struct core_function *f, const struct core_version *v,
                       uint32_t count)
{
    struct core_sandbox **all = core_scratch(c, v->starting + v->ready);
    size_t found = 0;
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        bool serves = s->state == SANDBOX_STARTING || s->state == SANDBOX_READY;
        if (serves && s->version == v->number && !s->doubtful && !s->leaving)
            all[found++] = s;
    }
    if (count < found)
        qsort(all, found, sizeof(struct core_sandbox *), compare_use);
    for (size_t i = 0; i < MIN(found, (size_t)count); i++)
        sandbox_drain(c, all[i]);
}

/* ---- leaving a worker that drains ---- */

/* Of those that are ready and leave. */
static void leave_some(struct control *c, struct core_function *f, const struct core_version *v,
                       uint32_t count)
{
    struct core_sandbox **all = core_scratch(c, v->leaving);
    size_t found = 0;
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        if (s->state == SANDBOX_READY && s->leaving && s->version == v->number)
            all[found++] = s;
    }
    qsort(all, found, sizeof(struct core_sandbox *), compare_use);
    for (size_t i = 0; i < MIN(found, (size_t)count); i++)
        sandbox_drain(c, all[i]);
}

/* Whether others could be started now; if not, they stay. */
static bool may_start(const struct control *c, const struct core_function *f)
{
    return c->now_ms >= f->retry_at_ms && !core_awaits_anybody(c) &&
           placement_count(c->placement) > 0;
}

static void leaving_look(struct control *c, struct core_function *f, const struct core_version *v)
{
    uint32_t all = v->starting + v->ready, sure = v->ready - v->leaving;
    uint32_t missing = f->wanted > sure + v->starting ? f->wanted - sure - v->starting : 0;
    uint32_t most = function_policy(f)->scale_max;
    uint32_t room = most > all ? most - all : 0;
    if (v->leaving == 0 || core_awaits_anybody(c))
        return;
    if (sure >= f->wanted)
        leave_some(c, f, v, v->leaving);
    else if (missing > room && may_start(c, f))
        leave_some(c, f, v, missing - room);
    else if (all > most) /* it was lowered */
        leave_some(c, f, v, all - most);
}

/* ---- one function ---- */

/* Started, or soon to be, and here to stay. */
static uint32_t sure_count(const struct core_version *v)
{
    return v->starting - v->doubtful + v->ready - v->leaving;
}

static void tick_begin(struct control *c, struct core_function *f, uint32_t have)
{
    if (f->ticking || (is_idle(f) && have <= function_policy(f)->scale_min))
        return;
    f->ticking = true;
    f->period_begin_ms = c->now_ms;
    f->period_end_ms = c->now_ms + autoscaler_period_ms(function_policy(f));
    meter_begin(&f->meter, level_of(f), c->now_ms);
}

/* An idle function with what it wants is not looked at again until something happens. */
static void due_plan(struct control *c, struct core_function *f, bool lacks)
{
    uint64_t at = f->ticking ? f->period_end_ms : UINT64_MAX;
    at = MIN(at, leases_due_ms(c, f));
    if (lacks && c->now_ms < f->retry_at_ms)
        at = MIN(at, f->retry_at_ms);
    else if (lacks && f->starving)
        at = MIN(at, c->now_ms + ROOM_RETRY_MS);
    due_at(c, &f->due, at);
}

void scale_function(struct control *c, struct core_function *f)
{
    struct core_version *v = function_serving(f);
    if (f->adopted) { /* a new leader has not heard the demand for which they were started */
        f->adopted = false;
        scale_count_as_called(c, f, v->starting + v->ready);
    }
    f->wanted = wanted_now(f);
    f->starving = false;
    leaving_look(c, f, v);
    uint32_t sure = sure_count(v), left = function_policy(f)->scale_max;
    left -= MIN(left, v->starting - v->doubtful + v->ready);
    uint32_t at_most = core_awaits_anybody(c) ? function_policy(f)->scale_max : f->wanted;
    if (sure < f->wanted)
        start_missing(c, f, v, v->leaving > 0 ? MIN(f->wanted - sure, left) : f->wanted - sure);
    else if (sure > at_most)
        drain_some(c, f, v, sure - at_most);
    trial_start(c, f);
    leases_settle(c, f);
    if (f->starving && f->proving && f->old.number == 0 && !room_may_come(c))
        failure_no_room(&f->failure, c, &v->spec); /* for who waits for it to be ready */
    waiting_tell(c, f, v);
    if (!f->starving) {
        list_remove(&f->hungry);
        f->asked = false;
    }
    sure = sure_count(v);
    tick_begin(c, f, sure);
    due_plan(c, f, sure < f->wanted || trial_missing(f));
}

/* ---- demand and time ---- */

void scale_demand(struct control *c, struct core_function *f, unsigned data_plane,
                  const struct demand *d)
{
    struct demand *old = &f->demands[data_plane];
    const struct scaling_policy *p = function_policy(f);
    bool was_idle = is_idle(f), is_zero = d->in_flight == 0 && d->waiting == 0 && d->average == 0;
    uint64_t bit = UINT64_C(1) << data_plane;
    f->in_flight += d->in_flight - old->in_flight;
    f->waiting += d->waiting - old->waiting;
    f->average += d->average - old->average;
    *old = *d;
    f->demand_mask = is_zero ? f->demand_mask & ~bit : f->demand_mask | bit;
    if (f->demand_mask == 0)
        f->average = 0; /* no rounding stays */
    if (f->ticking)
        meter_set(&f->meter, level_of(f), c->now_ms);
    /* As the original: the first decision is one sandbox, at once; windows decide after a period.*/
    if (was_idle && !is_idle(f) && p->mode == SCALING_WINDOWED && f->desired == 0)
        f->desired = 1;
    raise_now(c, f);
    function_touch(c, f);
}

void scale_count_as_called(struct control *c, struct core_function *f, uint32_t count)
{
    const struct scaling_policy *p = function_policy(f);
    double each = p->concurrency == 0 ? 100 : p->concurrency;
    f->desired = MAX(f->desired, count);
    if (count > 0 && autoscaler_is_quiet(&f->autoscaler)) {
        autoscaler_reset(&f->autoscaler);
        autoscaler_push(&f->autoscaler, p, count * each * p->target_percentage / 100, c->now_ms);
    }
}

/* The extra time before the last one goes. */
static void zero_delay(const struct control *c, struct core_function *f, uint32_t have)
{
    if (f->desired > 0 || have == 0) {
        f->zero_since_ms = 0;
        return;
    }
    if (f->zero_since_ms == 0)
        f->zero_since_ms = c->now_ms;
    if (c->now_ms - f->zero_since_ms < function_policy(f)->scale_to_zero_delay_ms)
        f->desired = 1;
}

static void rest(struct core_function *f)
{
    f->ticking = false;
    f->desired = 0;
    f->zero_since_ms = 0;
    autoscaler_reset(&f->autoscaler);
}

static void period(struct control *c, struct core_function *f)
{
    const struct scaling_policy *p = function_policy(f);
    struct core_version *v = function_serving(f);
    uint32_t have = v->starting + v->ready;
    double concurrency = meter_take(&f->meter, f->period_begin_ms, c->now_ms);
    autoscaler_push(&f->autoscaler, p, concurrency, c->now_ms);
    f->desired = autoscaler_desired(&f->autoscaler, p, have, c->now_ms);
    raise_now(c, f);
    zero_delay(c, f, have);
    f->period_begin_ms = c->now_ms;
    f->period_end_ms = c->now_ms + autoscaler_period_ms(p);
    if (is_idle(f) && autoscaler_is_quiet(&f->autoscaler) && f->desired <= p->scale_min)
        rest(f);
}

void scale_due(struct control *c, struct core_function *f)
{
    if (f->ticking && c->now_ms >= f->period_end_ms)
        period(c, f);
    else
        raise_now(c, f); /* who was asked has had their time */
    function_touch(c, f);
}
