/* functions.c - registrations, the versions of a function, and the trial of a new one. */
#include "control_plane/core_state.h"
#include <stdlib.h>

struct core_version *function_version(struct core_function *f, uint32_t number)
{
    if (number == f->latest.number)
        return &f->latest;
    return f->old.number != 0 && number == f->old.number ? &f->old : NULL;
}

struct core_version *function_serving(struct core_function *f)
{
    return f->old.number != 0 ? &f->old : &f->latest;
}

uint32_t function_active_number(const struct core_function *f)
{
    if (f->old.number != 0)
        return f->old.number;
    return f->latest_is_active ? f->latest.number : 0;
}

void function_route_tell(struct control *c, struct core_function *f, uint64_t data_plane_id)
{
    struct control_order *o = core_order(c, ORDER_ROUTE, data_plane_id);
    o->function_id = f->id;
    o->version = function_serving(f)->number;
}

/* ---- versions ---- */

static void version_done(struct control *c, struct core_version *v)
{
    if (v->number != 0)
        function_spec_done(&v->spec);
    code_drop(c, v->code);
    *v = (struct core_version){0};
}

/* The spec is the version's from now; what is the same function's sandboxes stays counted. */
static void version_spec_set(struct control *c, struct core_version *v,
                             const struct function_spec *spec)
{
    struct code *before = v->code;
    if (v->number != 0)
        function_spec_done(&v->spec);
    function_spec_copy(spec, &v->spec);
    v->code = code_take(c, spec->code_digest);
    code_drop(c, before);
}

/* Sandboxes of versions that are no more. */
static void outdated_drain(struct control *c, struct core_function *f)
{
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        if (function_version(f, s->version) == NULL)
            sandbox_drain(c, s);
    }
}

/* Leaves the sandboxes of a version uncounted: they are about to drain. */
static void version_retire(struct control *c, struct core_function *f, struct core_version *v)
{
    if (v->number == 0)
        return;
    version_done(c, v);
    outdated_drain(c, f);
}

void function_activate(struct control *c, struct core_function *f)
{
    f->latest_is_active = true;
    if (f->proving) /* the sandbox that proved it stays for a window, as if it had been called */
        scale_count_as_called(c, f, 1);
    f->proving = false;
    f->latest_state = VERSION_READY;
    struct control_order *o = core_order(c, ORDER_VERSION_ACTIVE, 0);
    o->function_id = f->id;
    o->version = f->latest.number;
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        if (s->version == f->latest.number)
            leases_offer(s);
    }
    leases_grant(c, f);
    version_retire(c, f, &f->old); /* after the endpoints: data planes are never without any */
}

/* ---- registrations ---- */

static struct core_function *function_new(struct control *c, uint64_t id)
{
    struct core_function *f = mem_new(sizeof(*f));
    f->id = id;
    list_init(&f->sandboxes);
    list_init(&f->offered);
    f->due = (struct due){.heap_index = SIZE_MAX, .kind = DUE_FUNCTION};
    map_put(&c->functions, f->id, f);
    return f;
}

/* Deleted under a leader that is no more, or while its worker was away: what is left of it may
 * still serve the last requests. It drains, and then the function is gone again. What it was given
 * on its worker is not known any more, and not reserved. */
struct core_function *function_deleted_before(struct control *c, uint64_t id, uint32_t version)
{
    struct core_function *f = function_new(c, id);
    struct function_spec spec;
    function_spec_init(&spec);
    spec.cpu_milli = 0;
    spec.memory_bytes = 0;
    version_spec_set(c, &f->latest, &spec);
    function_spec_done(&spec);
    f->latest.number = version;
    f->latest_is_active = true;
    f->deleted = true;
    return f;
}

/* A newer version takes the place of the newest; what serves goes on serving while it is proven. */
static void version_put(struct control *c, struct core_function *f, const struct control_event *e)
{
    uint32_t number = e->function_put.version, active = e->function_put.active_version;
    bool proving = e->function_put.probe || (active != 0 && active != number);
    if (f->latest_is_active && proving) {
        f->old = f->latest; /* moved */
        f->latest = (struct core_version){0};
    } else {
        version_done(c, &f->latest);
    }
    version_spec_set(c, &f->latest, e->function_put.spec);
    f->latest.number = number;
    f->latest_is_active = !proving;
    f->proving = e->function_put.probe;
    f->latest_state = f->proving         ? VERSION_PROVING
                      : active == number ? VERSION_READY
                                         : VERSION_PENDING;
    failure_clear(f->trial_failure);
    if (function_serving(f) == &f->latest) { /* what failed before may be mended */
        failure_clear(f->failure);
        f->backoff_ms = 0;
        f->retry_at_ms = 0;
    }
    if (f->latest_is_active && f->old.number != 0)
        version_done(c, &f->old);
    outdated_drain(c, f);
}

void function_put(struct control *c, const struct control_event *e)
{
    struct core_function *f = map_get(&c->functions, e->function_put.function_id);
    if (f == NULL)
        f = function_new(c, e->function_put.function_id);
    if (f->deleted)
        return; /* a name that comes back has another id */
    uint32_t concurrency = f->latest.number != 0 ? function_policy(f)->concurrency : 0;
    if (f->latest.number != e->function_put.version)
        version_put(c, f, e);
    else
        version_spec_set(c, &f->latest, e->function_put.spec);
    function_route_tell(c, f, ALL_DATA_PLANES);
    if (function_policy(f)->concurrency != concurrency)
        leases_offer_serving(f);
    function_touch(c, f);
}

void function_delete(struct control *c, uint64_t function_id)
{
    struct core_function *f = map_get(&c->functions, function_id);
    if (f == NULL || f->deleted)
        return;
    f->deleted = true;
    due_at(c, &f->due, UINT64_MAX);
    list_remove(&f->hungry);
    struct control_order *o = core_order(c, ORDER_UNROUTE, ALL_DATA_PLANES);
    o->function_id = f->id;
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        sandbox_drain(c, s);
    }
    function_touch(c, f);
}

/* Its templates, code and output may go from the workers too. */
static void versions_drop_tell(struct control *c, const struct core_function *f)
{
    size_t cursor = 0;
    for (struct core_worker *w; (w = map_next(&c->workers, &cursor)) != NULL;) {
        if (w->state != WORKER_ALIVE)
            continue;
        struct control_order *o = core_order(c, ORDER_DROP_VERSION, w->id);
        o->function_id = f->id;
        o->version = f->latest.number;
    }
}

void function_end_when_empty(struct control *c, struct core_function *f)
{
    if (!list_is_empty(&f->sandboxes))
        return;
    versions_drop_tell(c, f);
    struct control_order *o = core_order(c, ORDER_FUNCTION_GONE, 0);
    o->function_id = f->id;
    (void)map_remove(&c->functions, f->id);
    function_free(c, f);
}

void function_free(struct control *c, struct core_function *f)
{
    list_remove(&f->touched);
    list_remove(&f->hungry);
    version_done(c, &f->latest);
    version_done(c, &f->old);
    autoscaler_done(&f->autoscaler);
    leases_function_done(f);
    free(f->failure);
    free(f->trial_failure);
    free(f);
}
