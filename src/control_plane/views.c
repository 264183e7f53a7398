/* views.c - what API, metrics and tests may see. */
#include "control_plane/core_state.h"

/* Only while it keeps something from serving. */
static const char *failure_of(const struct control *c, struct core_function *f)
{
    const struct core_version *v = function_serving(f);
    bool lacks = v->starting + v->ready < f->wanted || v->starting + v->ready == 0;
    bool is_failing = c->now_ms < f->retry_at_ms || f->starving || f->told;
    if (failure_stands(f->trial_failure))
        return f->trial_failure->text;
    if (!failure_stands(f->failure))
        return "";
    bool shown = f->latest_state == VERSION_FAILED || (lacks && is_failing);
    return shown ? f->failure->text : "";
}

static void function_show(const struct control *c, const struct core_function *f_const,
                          struct function_view *v)
{
    struct core_function *f = (struct core_function *)f_const;
    *v = (struct function_view){.function_id = f->id,
                                .spec = &f->latest.spec,
                                .latest_version = f->latest.number,
                                .active_version = function_active_number(f),
                                .failure = failure_of(c, f),
                                .wanted = f->wanted,
                                .starting = f->latest.starting + f->old.starting,
                                .ready = f->latest.ready + f->old.ready,
                                .draining = f->draining,
                                .in_flight = f->in_flight,
                                .waiting = f->waiting,
                                .in_panic = f->autoscaler.in_panic};
    v->latest_state = f->latest_state;
}

bool control_function(const struct control *c, uint64_t function_id, struct function_view *ret)
{
    const struct core_function *f = map_get(&c->functions, function_id);
    if (f == NULL || f->deleted)
        return false;
    function_show(c, f, ret);
    return true;
}

bool control_function_next(const struct control *c, size_t *cursor, struct function_view *ret)
{
    for (const struct core_function *f; (f = map_next(&c->functions, cursor)) != NULL;) {
        if (f->deleted)
            continue;
        function_show(c, f, ret);
        return true;
    }
    return false;
}

static void sandbox_show(const struct core_sandbox *s, struct sandbox_view *v)
{
    *v = (struct sandbox_view){.sandbox_id = s->id,
                               .function_id = s->function->id,
                               .worker_id = s->worker->id,
                               .version = s->version,
                               .state = s->state,
                               .address = &s->address,
                               .started_at_ms = s->started_at_ms,
                               .create_us = s->create_us,
                               .exec_us = s->exec_us,
                               .listen_us = s->listen_us};
}

bool control_sandbox(const struct control *c, uint64_t sandbox_id, struct sandbox_view *ret)
{
    const struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    if (s != NULL)
        sandbox_show(s, ret);
    return s != NULL;
}

bool control_sandbox_next(const struct control *c, size_t *cursor, struct sandbox_view *ret)
{
    const struct core_sandbox *s = map_next(&c->sandboxes, cursor);
    if (s != NULL)
        sandbox_show(s, ret);
    return s != NULL;
}

bool control_worker_next(const struct control *c, size_t *cursor, struct worker_view *ret)
{
    const struct core_worker *w = map_next(&c->workers, cursor);
    if (w == NULL)
        return false;
    *ret = (struct worker_view){.worker_id = w->id,
                                .name = w->name,
                                .use = w->use,
                                .cpu_milli = w->room.cpu_milli,
                                .cpu_reserved_milli = w->room.cpu_reserved_milli,
                                .slots = w->room.slots,
                                .sandboxes = w->room.slots_used,
                                .memory_bytes = w->room.memory_bytes,
                                .memory_reserved_bytes = w->room.memory_reserved_bytes,
                                .heard_ms = w->heard_ms};
    ret->state = w->state;
    return true;
}

bool control_data_plane_next(const struct control *c, size_t *cursor, struct data_plane_view *ret)
{
    while (*cursor < DATA_PLANES_MAX) {
        const struct data_plane *p = &c->data_planes[(*cursor)++];
        if (!p->used)
            continue;
        *ret = (struct data_plane_view){p->id, p->alive, p->heard_ms};
        return true;
    }
    return false;
}
