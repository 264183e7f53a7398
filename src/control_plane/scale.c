/* scale.c - from demand to sandboxes: when to start, on which worker, when to drain. */
#include "control_plane/core_state.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFERRED_MAX 64u
#define NO_ROOM_RETRY_MS 500u

/* The version that requests go to: the active one, or while there is none the newest. */
uint32_t scale_serving_version(const struct core_function *f)
{
    return f->active != 0 ? f->active : f->latest;
}

const struct function_spec *scale_spec_of(const struct core_function *f, uint32_t version)
{
    return version == f->latest || f->active_spec.name[0] == '\0' ? &f->spec : &f->active_spec;
}

static const struct scaling_policy *policy_of(const struct core_function *f)
{
    return &f->spec.scaling; /* scaling is a setting of the function, not of a version */
}

static const struct {
    const char *code;
    uint32_t status;
} answers[GONE_REASON_COUNT] = {
    [GONE_UNKNOWN] = {"sandbox_failed", 502},
    [GONE_STOPPED] = {"sandbox_stopped", 503},
    [GONE_EXITED] = {"sandbox_exited", 502},
    [GONE_SIGNALED] = {"sandbox_killed", 502},
    [GONE_OUT_OF_MEMORY] = {"out_of_memory", 502},
    [GONE_START_TIMEOUT] = {"start_timeout", 504},
    [GONE_WRONG_PORT] = {"wrong_port", 502},
    [GONE_EXEC_FAILED] = {"command_failed", 502},
    [GONE_CODE_UNAVAILABLE] = {"code_unavailable", 502},
    [GONE_NO_ROOM] = {"no_room", 503},
    [GONE_WORKER_LOST] = {"worker_lost", 503},
    [GONE_INTERNAL] = {"sandbox_failed", 502},
};

const char *scale_failure_code(enum gone_reason reason)
{
    return answers[reason].code;
}

void scale_fail_waiting(struct control *c, struct core_function *f, uint64_t data_plane)
{
    if (f->waiting == 0)
        return;
    struct control_order *o = core_order(c, ORDER_FAIL_WAITING, data_plane);
    o->function_id = f->id;
    o->reason = f->failure_reason;
    o->status = answers[f->failure_reason].status;
    o->code = answers[f->failure_reason].code;
    o->message = f->failure;
    o->last_output = buf_str(&f->failure_output);
    uint64_t wait_ms = f->retry_at_ms > c->now_ms ? f->retry_at_ms - c->now_ms : NO_ROOM_RETRY_MS;
    o->retry_after_s = (uint32_t)((wait_ms + 999) / 1000);
}

/* ---- starting ---- */

static struct room *room_for(struct control *c, struct core_function *f, const struct function_spec *spec)
{
    struct room *preferred[PREFERRED_MAX];
    size_t count = 0;
    if (spec->placement == PLACEMENT_LOCALITY && spec->code_digest[0] != '\0') {
        size_t cursor = 0;
        for (struct core_worker *w; count < PREFERRED_MAX && (w = map_next(&c->workers, &cursor)) != NULL;)
            if (placement_has(&w->room) && strmap_get(&w->digests, str_of(spec->code_digest)) != NULL)
                preferred[count++] = &w->room;
    }
    return placement_choose(c->placement, spec->placement, spec->cpu_milli, spec->memory_bytes, preferred, count, &c->rng);
}

static bool start_one(struct control *c, struct core_function *f, uint32_t version)
{
    const struct function_spec *spec = scale_spec_of(f, version);
    struct room *room = room_for(c, f, spec);
    if (room == NULL)
        return false;
    struct core_worker *w = container_of(room, struct core_worker, room);
    uint64_t id = c->options.epoch << 32 | ++c->sandbox_counter;
    struct core_sandbox *s = sandbox_new(c, f, w, id, version);
    if (spec->code_digest[0] != '\0' && strmap_get(&w->digests, str_of(spec->code_digest)) == NULL)
        strmap_put(&w->digests, str_of(spec->code_digest), w); /* it will have it */
    struct control_order *o = core_order(c, ORDER_START, w->id);
    o->function_id = f->id;
    o->sandbox_id = s->id;
    o->version = version;
    return true;
}

static bool may_start(const struct control *c, const struct core_function *f)
{
    if (c->awaited > 0 && c->now_ms < c->started_ms + c->options.reconstruction_ms)
        return false; /* workers that have not spoken may have what is wanted */
    return c->now_ms >= f->retry_at_ms;
}

/* ---- stopping ---- */

/* The newest first: the oldest have proven themselves. Those that are not ready yet before all. */
static void drain_some(struct control *c, struct core_function *f, uint32_t version, uint32_t count)
{
    for (int ready = 0; ready < 2 && count > 0; ready++) {
        for (struct list *n = f->sandboxes.prev, *next; n != &f->sandboxes && count > 0; n = next) {
            struct core_sandbox *s = list_entry(n, struct core_sandbox, of_function);
            next = n->prev;
            if (s->version != version || s->state != (ready ? SANDBOX_READY : SANDBOX_STARTING))
                continue;
            sandbox_drain(c, s);
            count--;
        }
    }
}

static uint32_t count_of(const struct core_function *f, uint32_t version)
{
    if (f->latest == f->active || f->active == 0)
        return f->starting + f->ready; /* all are of one version, or of ones that drain already */
    uint32_t count = 0;
    for (const struct list *n = f->sandboxes.next; n != &f->sandboxes; n = n->next) {
        const struct core_sandbox *s = list_entry(n, struct core_sandbox, of_function);
        count += s->version == version && (s->state == SANDBOX_STARTING || s->state == SANDBOX_READY);
    }
    return count;
}

static bool may_shrink(const struct control *c)
{
    return c->awaited == 0 || c->now_ms >= c->started_ms + c->options.reconstruction_ms;
}

/* ---- the wanted scale ---- */

static uint32_t wanted_now(const struct core_function *f)
{
    const struct scaling_policy *p = policy_of(f);
    uint32_t wanted = f->desired;
    if (p->mode == SCALING_IMMEDIATE)
        wanted = MAX(wanted, autoscaler_needed_now(p, (uint64_t)f->in_flight + f->waiting));
    wanted = MAX(wanted, p->scale_min);
    return MIN(wanted, p->scale_max);
}

static bool is_idle(const struct core_function *f)
{
    return f->in_flight == 0 && f->waiting == 0 && f->average == 0;
}

static void plan_due(struct control *c, struct core_function *f)
{
    uint64_t at = UINT64_MAX;
    if (f->ticking)
        at = f->next_period_ms;
    bool wants_more = f->wanted > f->starting + f->ready;
    if (wants_more)
        at = MIN(at, MAX(f->retry_at_ms, c->now_ms + NO_ROOM_RETRY_MS));
    core_due_at(c, &f->due, at);
}

/* The probe of a version that is to be proven: one sandbox beside those that serve. */
static void probe_start(struct control *c, struct core_function *f)
{
    if (!f->proving || count_of(f, f->latest) > 0 || c->now_ms < f->retry_at_ms)
        return;
    if (start_one(c, f, f->latest))
        return;
    f->failure_reason = GONE_NO_ROOM;
    (void)snprintf(f->failure, sizeof(f->failure), "no worker has room for %u milli-CPU and %" PRIu64 " MiB", f->spec.cpu_milli,
                   f->spec.memory_bytes / MIB);
}

void scale_function(struct control *c, struct core_function *f)
{
    if (f->deleted || !f->has_spec)
        return;
    uint32_t version = scale_serving_version(f);
    f->wanted = wanted_now(f);
    if (f->proving && f->active == 0)
        f->wanted = MAX(f->wanted, 1u);
    uint32_t have = count_of(f, version);
    bool failed = false;
    if (have < f->wanted && may_start(c, f)) {
        while (have < f->wanted && !failed) {
            failed = !start_one(c, f, version);
            have += !failed;
        }
        if (failed && f->starting + f->ready == 0) {
            const struct function_spec *spec = scale_spec_of(f, version);
            f->failure_reason = GONE_NO_ROOM;
            f->failure_output.bytes = 0;
            (void)snprintf(f->failure, sizeof(f->failure), "no worker has room for %u milli-CPU and %" PRIu64 " MiB", spec->cpu_milli,
                           spec->memory_bytes / MIB);
            scale_fail_waiting(c, f, ALL_DATA_PLANES);
        }
    } else if (have < f->wanted && f->starting + f->ready == 0 && f->failure[0] != '\0' && c->now_ms < f->retry_at_ms) {
        scale_fail_waiting(c, f, ALL_DATA_PLANES); /* backing off: waiting would be in vain */
    } else if (have > f->wanted && may_shrink(c)) {
        drain_some(c, f, version, have - f->wanted);
    }
    if (f->active != 0)
        probe_start(c, f);
    if (!f->ticking && (!is_idle(f) || f->starting + f->ready > f->wanted || f->ready > policy_of(f)->scale_min)) {
        f->ticking = true;
        f->next_period_ms = c->now_ms + policy_of(f)->period_ms;
    }
    plan_due(c, f);
}

/* ---- demand and time ---- */

void scale_demand(struct control *c, struct core_function *f, unsigned data_plane, const struct demand *d)
{
    struct demand *old = &f->demands[data_plane];
    bool was_idle = is_idle(f);
    f->in_flight += d->in_flight - old->in_flight;
    f->waiting += d->waiting - old->waiting;
    f->average += d->average - old->average;
    *old = *d;
    uint64_t bit = UINT64_C(1) << data_plane;
    bool zero = d->in_flight == 0 && d->waiting == 0 && d->average == 0;
    f->demand_mask = zero ? f->demand_mask & ~bit : f->demand_mask | bit;
    if (f->demand_mask == 0)
        f->average = 0; /* no rounding stays */
    const struct scaling_policy *p = policy_of(f);
    if (was_idle && !is_idle(f) && p->mode == SCALING_WINDOWED && !f->ticking) {
        /* As the original: the first decision is one sandbox, at once; the windows decide from the next period on. */
        f->desired = MAX(1u, p->scale_min);
        autoscaler_push(&f->autoscaler, p, (double)f->in_flight + f->waiting, c->now_ms);
    }
    scale_function(c, f);
}

static void period(struct control *c, struct core_function *f)
{
    const struct scaling_policy *p = policy_of(f);
    double concurrency = MAX(f->average, p->mode == SCALING_WINDOWED ? (double)f->in_flight : 0) + f->waiting;
    if (p->mode == SCALING_IMMEDIATE && f->in_flight > 0 && concurrency == 0)
        concurrency = f->in_flight; /* not reported as an average yet */
    autoscaler_push(&f->autoscaler, p, concurrency, c->now_ms);
    f->desired = autoscaler_desired(&f->autoscaler, p, f->ready, c->now_ms);
    if (f->desired == 0 && f->ready > 0) { /* scale to zero waits its extra time */
        if (f->zero_since_ms == 0)
            f->zero_since_ms = c->now_ms;
        if (c->now_ms - f->zero_since_ms < p->scale_to_zero_delay_ms)
            f->desired = 1;
    } else {
        f->zero_since_ms = 0;
    }
    f->next_period_ms = c->now_ms + p->period_ms;
    if (is_idle(f) && autoscaler_is_quiet(&f->autoscaler) && f->desired <= p->scale_min) {
        f->ticking = false;
        f->desired = 0;
        f->zero_since_ms = 0;
        autoscaler_reset(&f->autoscaler);
    }
}

void scale_due(struct control *c, struct core_function *f)
{
    if (f->ticking && c->now_ms >= f->next_period_ms)
        period(c, f);
    scale_function(c, f);
}
