/* sandboxes.c - starting -> ready -> draining -> stopping -> gone. */
#include "control_plane/core_state.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BACKOFF_MS_MIN 100u
#define BACKOFF_MS_MAX 30000u
#define PROVEN_AFTER_MS 10000u /* ready for so long: what happens now is no failed start */
#define DRAIN_SLACK_MS 5000u

struct core_sandbox *sandbox_new(struct control *c, struct core_function *f, struct core_worker *w, uint64_t id, uint32_t version)
{
    const struct function_spec *spec = scale_spec_of(f, version);
    struct core_sandbox *s = mem_new(sizeof(*s));
    s->id = id;
    s->function = f;
    s->worker = w;
    s->version = version;
    s->state = SANDBOX_STARTING;
    s->cpu_milli = spec->cpu_milli;
    s->memory_bytes = spec->memory_bytes;
    s->due = (struct due){.heap_index = SIZE_MAX, .kind = DUE_SANDBOX};
    list_push_back(&f->sandboxes, &s->of_function);
    list_push_back(&w->sandboxes, &s->of_worker);
    map_put(&c->sandboxes, id, s);
    placement_reserve(c->placement, &w->room, s->cpu_milli, s->memory_bytes);
    f->starting++;
    return s;
}

void sandbox_endpoint_tell(struct control *c, const struct core_sandbox *s, uint64_t data_plane)
{
    struct control_order *o = core_order(c, ORDER_ENDPOINT, data_plane);
    o->function_id = s->function->id;
    o->sandbox_id = s->id;
    o->version = s->version;
}

static void stop(struct control *c, struct core_sandbox *s)
{
    struct core_function *f = s->function;
    if (s->state == SANDBOX_STOPPING)
        return;
    if (s->state == SANDBOX_STARTING)
        f->starting--;
    else if (s->state == SANDBOX_READY)
        f->ready--;
    else if (s->state == SANDBOX_DRAINING)
        f->draining--;
    s->state = SANDBOX_STOPPING;
    core_due_at(c, &s->due, UINT64_MAX);
    struct control_order *o = core_order(c, ORDER_STOP, s->worker->id);
    o->function_id = f->id;
    o->sandbox_id = s->id;
    o->version = s->version;
    o->grace_ms = scale_spec_of(f, s->version)->stop_grace_ms;
}

void sandbox_drained(struct control *c, struct core_sandbox *s, uint64_t data_planes)
{
    s->undrained &= ~data_planes;
    if (s->state == SANDBOX_DRAINING && s->undrained == 0)
        stop(c, s);
}

void sandbox_drain(struct control *c, struct core_sandbox *s)
{
    struct core_function *f = s->function;
    if (s->state == SANDBOX_STARTING) {
        stop(c, s); /* no data plane knows it */
        return;
    }
    if (s->state != SANDBOX_READY)
        return;
    f->ready--;
    f->draining++;
    s->state = SANDBOX_DRAINING;
    s->undrained = 0;
    for (unsigned i = 0; i < DATA_PLANES_MAX; i++)
        if (c->data_planes[i].alive)
            s->undrained |= UINT64_C(1) << i;
    if (s->undrained == 0) {
        stop(c, s);
        return;
    }
    struct control_order *o = core_order(c, ORDER_DRAIN, ALL_DATA_PLANES);
    o->function_id = f->id;
    o->sandbox_id = s->id;
    core_due_at(c, &s->due, c->now_ms + scale_spec_of(f, s->version)->timeout_ms + DRAIN_SLACK_MS);
}

void sandbox_due(struct control *c, struct core_sandbox *s)
{
    if (s->state == SANDBOX_DRAINING)
        stop(c, s); /* a request has outlived its own deadline */
}

/* ---- ready ---- */

static void version_activate(struct control *c, struct core_function *f)
{
    f->active = f->latest;
    if (f->proving) { /* the sandbox that proved it stays for a window, as if it had been called */
        f->desired = MAX(f->desired, 1u);
        autoscaler_push(&f->autoscaler, &f->spec.scaling, 1, c->now_ms);
    }
    f->proving = false;
    f->latest_state = VERSION_READY;
    function_spec_done(&f->active_spec);
    function_spec_init(&f->active_spec);
    struct control_order *o = core_order(c, ORDER_VERSION_ACTIVE, 0);
    o->function_id = f->id;
    o->version = f->active;
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        if (s->version == f->active) {
            if (s->state == SANDBOX_READY)
                sandbox_endpoint_tell(c, s, ALL_DATA_PLANES);
        } else {
            sandbox_drain(c, s);
        }
    }
}

static void on_ready(struct control *c, struct core_sandbox *s, const struct sandbox_report *r)
{
    struct core_function *f = s->function;
    if (s->state != SANDBOX_STARTING)
        return;
    f->starting--;
    f->ready++;
    s->state = SANDBOX_READY;
    s->ready_at_ms = c->now_ms;
    s->address = r->address;
    s->started_at_ms = r->started_at_ms;
    s->create_us = r->create_us;
    s->exec_us = r->exec_us;
    s->listen_us = r->listen_us;
    if (s->version == f->latest && f->active != f->latest)
        version_activate(c, f);
    else if (s->version == f->active)
        sandbox_endpoint_tell(c, s, ALL_DATA_PLANES);
    else
        sandbox_drain(c, s); /* overtaken by a newer version */
    if (s->version == f->latest) {
        f->failure[0] = '\0';
        f->latest_state = VERSION_READY;
    }
    scale_function(c, f);
}

/* ---- gone ---- */

/* The story of a sandbox that ended by itself, in one sentence. */
static void failure_tell(struct core_function *f, const struct core_sandbox *s, const struct sandbox_report *r)
{
    const struct function_spec *spec = scale_spec_of(f, s->version);
    const char *before = s->state == SANDBOX_STARTING ? "before it listened on port " : "while it served on port ";
    char detail[300];
    (void)snprintf(detail, sizeof(detail), "%.*s", (int)MIN(r->detail.bytes, sizeof(detail) - 1), r->detail.bytes > 0 ? r->detail.data : "");
    f->failure_reason = r->reason;
    f->failure_output.bytes = 0;
    buf_append_str(&f->failure_output, r->last_output);
    switch (r->reason) {
    case GONE_EXITED:
        (void)snprintf(f->failure, sizeof(f->failure), "the program exited with code %d %s%u", r->exit_code, before, spec->port);
        break;
    case GONE_SIGNALED:
        (void)snprintf(f->failure, sizeof(f->failure), "the program was killed by signal %d (%s) %s%u", r->signal, strsignal(r->signal), before, spec->port);
        break;
    case GONE_OUT_OF_MEMORY:
        (void)snprintf(f->failure, sizeof(f->failure), "the program used more than its %" PRIu64 " MiB of memory", spec->memory_bytes / MIB);
        break;
    case GONE_START_TIMEOUT:
        (void)snprintf(f->failure, sizeof(f->failure), "the program did not listen on port %u within %u s", spec->port, spec->start_deadline_ms / 1000);
        break;
    case GONE_WRONG_PORT:
        (void)snprintf(f->failure, sizeof(f->failure), "the program listens on port %u, not on port %u ($PORT)", r->wrong_port, spec->port);
        break;
    case GONE_NO_ROOM:
        (void)snprintf(f->failure, sizeof(f->failure), "the worker had no room: %s", detail);
        break;
    case GONE_WORKER_LOST:
        (void)snprintf(f->failure, sizeof(f->failure), "the worker of the sandbox is lost");
        break;
    case GONE_EXEC_FAILED:
    case GONE_CODE_UNAVAILABLE:
    case GONE_UNKNOWN:
    case GONE_STOPPED:
    case GONE_INTERNAL:
    case GONE_REASON_COUNT:
        (void)snprintf(f->failure, sizeof(f->failure), "%s", detail[0] != '\0' ? detail : "the sandbox could not be started");
        break;
    }
}

static void start_failed(struct control *c, struct core_function *f, const struct core_sandbox *s, const struct sandbox_report *r)
{
    failure_tell(f, s, r);
    if (r->reason != GONE_WORKER_LOST) {
        f->backoff_ms = f->backoff_ms == 0 ? BACKOFF_MS_MIN : MIN(f->backoff_ms * 2, BACKOFF_MS_MAX);
        f->retry_at_ms = c->now_ms + f->backoff_ms;
    }
    if (s->version == f->latest && f->proving && r->reason != GONE_WORKER_LOST) {
        f->proving = false;
        f->latest_state = VERSION_FAILED;
        struct control_order *o = core_order(c, ORDER_VERSION_FAILED, 0);
        o->function_id = f->id;
        o->version = s->version;
        o->reason = r->reason;
        o->code = scale_failure_code(r->reason);
        o->message = f->failure;
        o->last_output = buf_str(&f->failure_output);
    } else if (s->version == f->latest && f->active != f->latest) {
        f->latest_state = VERSION_FAILED;
    }
    if (f->starting + f->ready == 0 && r->reason != GONE_WORKER_LOST)
        scale_fail_waiting(c, f, ALL_DATA_PLANES);
}

void sandbox_gone(struct control *c, struct core_sandbox *s, const struct sandbox_report *r)
{
    struct core_function *f = s->function;
    enum sandbox_state was = s->state;
    list_remove(&s->of_function);
    list_remove(&s->of_worker);
    (void)map_remove(&c->sandboxes, s->id);
    core_due_at(c, &s->due, UINT64_MAX);
    placement_release(c->placement, &s->worker->room, s->cpu_milli, s->memory_bytes);
    f->starting -= was == SANDBOX_STARTING;
    f->ready -= was == SANDBOX_READY;
    f->draining -= was == SANDBOX_DRAINING;
    if (was != SANDBOX_STARTING) { /* data planes may know it */
        struct control_order *o = core_order(c, ORDER_ENDPOINT_GONE, ALL_DATA_PLANES);
        o->function_id = f->id;
        o->sandbox_id = s->id;
        o->reason = r->reason;
    }
    if (was == SANDBOX_STARTING && r->reason != GONE_STOPPED) {
        start_failed(c, f, s, r);
    } else if (was == SANDBOX_READY && r->reason != GONE_STOPPED) {
        failure_tell(f, s, r);
        if (c->now_ms - s->ready_at_ms >= PROVEN_AFTER_MS)
            f->backoff_ms = 0;
        else if (r->reason != GONE_WORKER_LOST) { /* it dies soon after each start */
            f->backoff_ms = f->backoff_ms == 0 ? BACKOFF_MS_MIN : MIN(f->backoff_ms * 2, BACKOFF_MS_MAX);
            f->retry_at_ms = c->now_ms + f->backoff_ms;
        }
    } else if (was == SANDBOX_STOPPING && c->now_ms - s->ready_at_ms >= PROVEN_AFTER_MS && s->ready_at_ms != 0) {
        f->backoff_ms = 0;
    }
    free(s);
    if (f->deleted)
        core_function_end(c, f);
    else
        scale_function(c, f);
}

/* ---- what workers report ---- */

/* A new leader has not heard the demand yet for which it was started: it counts as called, for a window. */
static void adopted_count_as_called(struct control *c, struct core_function *f)
{
    const struct scaling_policy *p = &f->spec.scaling;
    uint32_t count = f->starting + f->ready;
    double each = p->concurrency == 0 ? 100.0 : (double)p->concurrency * p->target_percentage / 100;
    f->desired = MAX(f->desired, count);
    autoscaler_reset(&f->autoscaler);
    autoscaler_push(&f->autoscaler, p, count * each, c->now_ms);
}

void sandbox_report_take(struct control *c, struct core_worker *w, const struct sandbox_report *r)
{
    struct core_sandbox *s = map_get(&c->sandboxes, r->sandbox_id);
    if (s == NULL) {
        struct core_function *f = map_get(&c->functions, r->function_id);
        if (r->state == SANDBOX_GONE)
            return;
        if (f == NULL || f->deleted || (r->version != f->latest && r->version != f->active) || r->state == SANDBOX_STOPPING ||
            r->state == SANDBOX_DRAINING) {
            struct control_order *o = core_order(c, ORDER_STOP, w->id); /* nobody's */
            o->function_id = r->function_id;
            o->sandbox_id = r->sandbox_id;
            o->version = r->version;
            o->grace_ms = r->state == SANDBOX_READY ? 1000 : 0;
            return;
        }
        s = sandbox_new(c, f, w, r->sandbox_id, r->version); /* adopted */
        adopted_count_as_called(c, f);
    }
    if (s->worker != w)
        return; /* another's: a worker speaks of its own only */
    switch (r->state) {
    case SANDBOX_READY:
        on_ready(c, s, r);
        break;
    case SANDBOX_GONE:
        sandbox_gone(c, s, r);
        break;
    case SANDBOX_STARTING:
    case SANDBOX_DRAINING:
    case SANDBOX_STOPPING:
    case SANDBOX_STATE_COUNT:
        break;
    }
}
