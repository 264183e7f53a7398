/* core.c - one event in, orders out. */
#include "control_plane/core_state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- orders ---- */

struct control_order *core_order(struct control *c, enum order_kind kind, uint64_t target_id)
{
    struct control_orders *o = c->orders;
    if (o->count == o->capacity) {
        o->capacity = MAX(o->capacity * 2, (size_t)64);
        o->items = mem_resize(o->items, o->capacity, sizeof(*o->items));
    }
    struct control_order *order = &o->items[o->count++];
    *order = (struct control_order){.kind = kind, .target_id = target_id};
    return order;
}

void control_orders_done(struct control_orders *o)
{
    free(o->items);
    *o = (struct control_orders){0};
}

/* ---- what must be looked at later: a binary heap ---- */

static void heap_place(struct control *c, size_t index, struct due *d)
{
    c->heap[index] = d;
    d->heap_index = index;
}

static void heap_fix(struct control *c, size_t index, struct due *d)
{
    while (index > 0 && c->heap[(index - 1) / 2]->at_ms > d->at_ms) {
        heap_place(c, index, c->heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    for (;;) {
        size_t child = index * 2 + 1;
        if (child + 1 < c->heap_count && c->heap[child + 1]->at_ms < c->heap[child]->at_ms)
            child++;
        if (child >= c->heap_count || c->heap[child]->at_ms >= d->at_ms)
            break;
        heap_place(c, index, c->heap[child]);
        index = child;
    }
    heap_place(c, index, d);
}

void core_due_at(struct control *c, struct due *d, uint64_t at_ms)
{
    d->at_ms = at_ms;
    if (at_ms == UINT64_MAX) {
        if (d->heap_index == SIZE_MAX)
            return;
        size_t hole = d->heap_index;
        struct due *last = c->heap[--c->heap_count];
        d->heap_index = SIZE_MAX;
        if (last != d)
            heap_fix(c, hole, last);
        return;
    }
    if (d->heap_index != SIZE_MAX) {
        heap_fix(c, d->heap_index, d);
        return;
    }
    if (c->heap_count == c->heap_capacity) {
        c->heap_capacity = MAX(c->heap_capacity * 2, (size_t)64);
        c->heap = mem_resize(c->heap, c->heap_capacity, sizeof(struct due *));
    }
    heap_fix(c, c->heap_count++, d);
}

uint64_t control_next_due_ms(const struct control *c)
{
    uint64_t due = c->heap_count > 0 ? c->heap[0]->at_ms : UINT64_MAX;
    if (c->awaited > 0)
        due = MIN(due, MAX(c->started_ms + c->options.reconstruction_ms, c->now_ms + 1));
    return due;
}

size_t control_awaited_workers(const struct control *c)
{
    return c->awaited;
}

/* ---- functions ---- */

static void route_tell(struct control *c, const struct core_function *f, uint64_t data_plane)
{
    struct control_order *o = core_order(c, ORDER_ROUTE, data_plane);
    o->function_id = f->id;
    o->version = scale_serving_version(f);
}

static void on_function_put(struct control *c, const struct control_event *e)
{
    struct core_function *f = map_get(&c->functions, e->function_put.function_id);
    if (f == NULL) {
        f = mem_new(sizeof(*f));
        f->id = e->function_put.function_id;
        list_init(&f->sandboxes);
        function_spec_init(&f->active_spec);
        f->due = (struct due){.heap_index = SIZE_MAX, .kind = DUE_FUNCTION};
        map_put(&c->functions, f->id, f);
    }
    bool newer = e->function_put.version != f->latest;
    if (newer && f->active != 0 && f->active == f->latest) { /* what serves on while the new one is proven */
        function_spec_done(&f->active_spec);
        function_spec_copy(&f->spec, &f->active_spec);
    }
    if (f->has_spec)
        function_spec_done(&f->spec);
    function_spec_copy(e->function_put.spec, &f->spec);
    f->has_spec = true;
    f->latest = e->function_put.version;
    if (newer) {
        f->backoff_ms = 0;
        f->retry_at_ms = 0;
        f->failure[0] = '\0';
        f->proving = e->function_put.probe;
        f->latest_state = f->proving ? VERSION_PROVING : VERSION_PENDING;
        if (e->function_put.active_version != 0)
            f->active = MIN(e->function_put.active_version, f->latest);
        else if (!f->proving)
            f->active = f->latest;
        if (f->active == f->latest)
            f->latest_state = e->function_put.active_version != 0 ? VERSION_READY : VERSION_PENDING;
        list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
        {
            if (s->version != f->active && s->version != f->latest)
                sandbox_drain(c, s);
        }
    }
    route_tell(c, f, ALL_DATA_PLANES);
    scale_function(c, f);
}

void core_function_end(struct control *c, struct core_function *f)
{
    if (!list_is_empty(&f->sandboxes))
        return;
    struct control_order *o = core_order(c, ORDER_FUNCTION_GONE, 0);
    o->function_id = f->id;
    core_due_at(c, &f->due, UINT64_MAX);
    (void)map_remove(&c->functions, f->id);
    autoscaler_done(&f->autoscaler);
    function_spec_done(&f->spec);
    function_spec_done(&f->active_spec);
    buf_done(&f->failure_output);
    free(f);
}

static void on_function_delete(struct control *c, const struct control_event *e)
{
    struct core_function *f = map_get(&c->functions, e->function_delete.function_id);
    if (f == NULL || f->deleted)
        return;
    f->deleted = true;
    core_due_at(c, &f->due, UINT64_MAX);
    struct control_order *o = core_order(c, ORDER_UNROUTE, ALL_DATA_PLANES);
    o->function_id = f->id;
    size_t cursor = 0;
    for (struct core_worker *w; (w = map_next(&c->workers, &cursor)) != NULL;) {
        if (w->state != WORKER_ALIVE)
            continue;
        o = core_order(c, ORDER_DROP_VERSION, w->id);
        o->function_id = f->id;
        o->version = f->latest;
    }
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        sandbox_drain(c, s);
    }
    core_function_end(c, f);
}

/* ---- workers ---- */

static struct core_worker *worker_get(struct control *c, uint64_t id, const char *name)
{
    struct core_worker *w = map_get(&c->workers, id);
    if (w != NULL)
        return w;
    w = mem_new(sizeof(*w));
    w->id = id;
    w->name = mem_strdup(name != NULL ? name : "");
    w->room.place = UINT32_MAX;
    w->state = WORKER_DEAD;
    list_init(&w->sandboxes);
    w->due = (struct due){.heap_index = SIZE_MAX, .kind = DUE_WORKER};
    map_put(&c->workers, id, w);
    return w;
}

static void schedulable_update(struct control *c, struct core_worker *w)
{
    bool should = w->state == WORKER_ALIVE && !w->cordoned;
    if (should && !placement_has(&w->room))
        placement_add(c->placement, &w->room);
    else if (!should)
        placement_remove(c->placement, &w->room);
}

/* Room has changed: those that lack sandboxes try again. */
static void rescale_all(struct control *c)
{
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;)
        if (!f->deleted && (f->wanted > f->starting + f->ready || f->spec.scaling.scale_min > f->starting + f->ready || f->waiting > 0 ||
                            f->proving))
            scale_function(c, f);
}

static void sandboxes_lost(struct control *c, struct core_worker *w)
{
    struct sandbox_report lost = {.reason = GONE_WORKER_LOST, .state = SANDBOX_GONE};
    while (!list_is_empty(&w->sandboxes))
        sandbox_gone(c, list_entry(w->sandboxes.next, struct core_sandbox, of_worker), &lost);
}

static void awaited_end(struct control *c, struct core_worker *w)
{
    if (w->state != WORKER_AWAITED)
        return;
    c->awaited--;
    if (c->awaited == 0)
        rescale_all(c);
}

static void on_worker_up(struct control *c, const struct control_event *e)
{
    struct core_worker *w = worker_get(c, e->worker.worker_id, e->worker.name);
    bool awaited = w->state == WORKER_AWAITED;
    if (e->worker.name != NULL && strcmp(w->name, e->worker.name) != 0) {
        free(w->name);
        w->name = mem_strdup(e->worker.name);
    }
    placement_remove(c->placement, &w->room);
    w->room.cpu_milli = MAX(e->worker.cpu_milli, w->room.cpu_reserved_milli);
    w->room.memory_bytes = MAX(e->worker.memory_bytes, w->room.memory_reserved_bytes);
    w->room.slots = MAX(e->worker.slots, w->room.slots_used);
    w->heard_ms = c->now_ms;
    core_due_at(c, &w->due, UINT64_MAX);
    strmap_done(&w->digests);
    for (size_t i = 0; i < e->worker.code_digest_count; i++)
        strmap_put(&w->digests, str_of(e->worker.code_digests[i]), w);
    /* Both directions: what we know and it has not is gone; what it has and we do not know is adopted or stopped. */
    struct map reported = {0};
    for (size_t i = 0; i < e->worker.sandbox_count; i++)
        map_put(&reported, e->worker.sandboxes[i].sandbox_id, (void *)&e->worker.sandboxes[i]);
    if (awaited)
        c->awaited--;
    w->state = WORKER_ALIVE;
    struct sandbox_report lost = {.reason = GONE_WORKER_LOST, .state = SANDBOX_GONE};
    list_for_each(s, &w->sandboxes, struct core_sandbox, of_worker)
    {
        const struct sandbox_report *r = map_get(&reported, s->id);
        if (r == NULL)
            sandbox_gone(c, s, &lost);
        else if (s->state == SANDBOX_STOPPING && r->state != SANDBOX_STOPPING && r->state != SANDBOX_GONE) {
            struct control_order *o = core_order(c, ORDER_STOP, w->id); /* the order was lost with the connection */
            o->function_id = s->function->id;
            o->sandbox_id = s->id;
            o->version = s->version;
            o->grace_ms = scale_spec_of(s->function, s->version)->stop_grace_ms;
        }
    }
    map_done(&reported);
    for (size_t i = 0; i < e->worker.sandbox_count; i++)
        sandbox_report_take(c, w, &e->worker.sandboxes[i]);
    /* More than it says it holds may have been adopted: then it is full, not overcommitted by us. */
    w->room.cpu_milli = MAX(w->room.cpu_milli, w->room.cpu_reserved_milli);
    w->room.memory_bytes = MAX(w->room.memory_bytes, w->room.memory_reserved_bytes);
    w->room.slots = MAX(w->room.slots, w->room.slots_used);
    schedulable_update(c, w);
    rescale_all(c);
}

static void worker_end(struct control *c, struct core_worker *w)
{
    awaited_end(c, w);
    w->state = WORKER_DEAD;
    core_due_at(c, &w->due, UINT64_MAX);
    schedulable_update(c, w);
    sandboxes_lost(c, w);
}

static void on_worker(struct control *c, const struct control_event *e)
{
    struct core_worker *w = worker_get(c, e->worker.worker_id, e->worker.name);
    if (e->kind == EVENT_WORKER_KNOWN) {
        if (w->state == WORKER_DEAD) {
            w->state = WORKER_AWAITED;
            c->awaited++;
        }
    } else if (e->kind == EVENT_WORKER_GOODBYE) {
        worker_end(c, w);
    } else if (w->state == WORKER_ALIVE) { /* CLOSED: its daemon may be restarting */
        w->state = WORKER_SUSPECTED;
        schedulable_update(c, w);
        core_due_at(c, &w->due, c->now_ms + c->options.reconnect_grace_ms);
    }
}

/* ---- data planes ---- */

static unsigned data_plane_index(struct control *c, uint64_t id, bool make)
{
    unsigned unused = DATA_PLANES_MAX;
    for (unsigned i = 0; i < DATA_PLANES_MAX; i++) {
        if (c->data_planes[i].used && c->data_planes[i].id == id)
            return i;
        if (!c->data_planes[i].alive && unused == DATA_PLANES_MAX && (!c->data_planes[i].used || make))
            unused = i;
    }
    if (!make || unused == DATA_PLANES_MAX)
        return DATA_PLANES_MAX;
    c->data_planes[unused].used = true;
    c->data_planes[unused].id = id;
    return unused;
}

static void demand_forget(struct control *c, unsigned index)
{
    static const struct demand none;
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;)
        if (f->demand_mask & UINT64_C(1) << index)
            scale_demand(c, f, index, &none);
}

static void snapshot_tell(struct control *c, uint64_t id)
{
    size_t cursor = 0;
    (void)core_order(c, ORDER_SNAPSHOT_BEGIN, id);
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;) {
        if (f->deleted)
            continue;
        route_tell(c, f, id);
        list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
        {
            if (s->state == SANDBOX_READY && s->version == f->active)
                sandbox_endpoint_tell(c, s, id);
        }
    }
    (void)core_order(c, ORDER_SNAPSHOT_END, id);
}

static void on_data_plane_closed(struct control *c, uint64_t id)
{
    unsigned index = data_plane_index(c, id, false);
    if (index == DATA_PLANES_MAX || !c->data_planes[index].alive)
        return;
    c->data_planes[index].alive = false;
    demand_forget(c, index);
    /* What it had in flight is lost with it: nobody waits for its word. Collected first: draining changes the map. */
    struct core_sandbox **draining = mem_new_array(c->sandboxes.count, sizeof(struct core_sandbox *));
    size_t count = 0, cursor = 0;
    for (struct core_sandbox *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        if (s->state == SANDBOX_DRAINING)
            draining[count++] = s;
    for (size_t i = 0; i < count; i++)
        sandbox_drained(c, draining[i], UINT64_C(1) << index);
    free(draining);
}

static void on_data_plane_up(struct control *c, const struct control_event *e)
{
    uint64_t id = e->data_plane.data_plane_id;
    on_data_plane_closed(c, id); /* a new connection replaces the old */
    unsigned index = data_plane_index(c, id, true);
    if (index == DATA_PLANES_MAX)
        return; /* the shell refuses more than the limit */
    c->data_planes[index].alive = true;
    c->data_planes[index].heard_ms = c->now_ms;
    snapshot_tell(c, id);
}

static void on_demand(struct control *c, const struct control_event *e)
{
    struct core_function *f = map_get(&c->functions, e->demand.function_id);
    unsigned index = data_plane_index(c, e->demand.data_plane_id, false);
    if (f == NULL || f->deleted || index == DATA_PLANES_MAX || !c->data_planes[index].alive)
        return;
    struct demand d = {e->demand.in_flight, e->demand.waiting, e->demand.in_flight_average};
    scale_demand(c, f, index, &d);
}

static void on_endpoint(struct control *c, const struct control_event *e)
{
    struct core_sandbox *s = map_get(&c->sandboxes, e->endpoint.sandbox_id);
    unsigned index = data_plane_index(c, e->endpoint.data_plane_id, false);
    if (s == NULL || index == DATA_PLANES_MAX)
        return;
    if (e->kind == EVENT_DRAINED)
        sandbox_drained(c, s, UINT64_C(1) << index);
    else if (s->state == SANDBOX_READY) {
        sandbox_drain(c, s); /* it listens and yet cannot be reached: another takes its place */
        scale_function(c, s->function);
    }
}

/* ---- time ---- */

static void on_tick(struct control *c)
{
    if (c->awaited > 0 && c->now_ms >= c->started_ms + c->options.reconstruction_ms) {
        size_t cursor = 0;
        for (struct core_worker *w; (w = map_next(&c->workers, &cursor)) != NULL;)
            if (w->state == WORKER_AWAITED)
                w->state = WORKER_DEAD;
        c->awaited = 0;
        rescale_all(c);
    }
    while (c->heap_count > 0 && c->heap[0]->at_ms <= c->now_ms) {
        struct due *d = c->heap[0];
        core_due_at(c, d, UINT64_MAX);
        switch (d->kind) {
        case DUE_FUNCTION:
            scale_due(c, container_of(d, struct core_function, due));
            break;
        case DUE_SANDBOX:
            sandbox_due(c, container_of(d, struct core_sandbox, due));
            break;
        case DUE_WORKER:
            worker_end(c, container_of(d, struct core_worker, due));
            break;
        }
    }
}

/* ---- the step ---- */

void control_step(struct control *c, const struct control_event *e, uint64_t now_ms, struct control_orders *orders)
{
    assert(now_ms >= c->now_ms);
    c->now_ms = now_ms;
    c->orders = orders;
    if (!c->started) {
        c->started = true;
        c->started_ms = now_ms;
    }
    switch (e->kind) {
    case EVENT_TICK:
        on_tick(c);
        break;
    case EVENT_FUNCTION_PUT:
        on_function_put(c, e);
        break;
    case EVENT_FUNCTION_DELETE:
        on_function_delete(c, e);
        break;
    case EVENT_WORKER_UP:
        on_worker_up(c, e);
        break;
    case EVENT_WORKER_KNOWN:
    case EVENT_WORKER_CLOSED:
    case EVENT_WORKER_GOODBYE:
        on_worker(c, e);
        break;
    case EVENT_WORKER_CORDON: {
        struct core_worker *w = map_get(&c->workers, e->cordon.worker_id);
        if (w != NULL) {
            w->cordoned = e->cordon.cordoned;
            schedulable_update(c, w);
            rescale_all(c);
        }
        break;
    }
    case EVENT_PEER_ALIVE:
        if (e->alive.is_worker) {
            struct core_worker *w = map_get(&c->workers, e->alive.id);
            if (w != NULL)
                w->heard_ms = now_ms;
        } else {
            unsigned index = data_plane_index(c, e->alive.id, false);
            if (index != DATA_PLANES_MAX)
                c->data_planes[index].heard_ms = now_ms;
        }
        break;
    case EVENT_DATA_PLANE_UP:
        on_data_plane_up(c, e);
        break;
    case EVENT_DATA_PLANE_CLOSED:
        on_data_plane_closed(c, e->data_plane.data_plane_id);
        break;
    case EVENT_DEMAND:
        on_demand(c, e);
        break;
    case EVENT_DRAINED:
    case EVENT_ENDPOINT_FAILED:
        on_endpoint(c, e);
        break;
    case EVENT_SANDBOX: {
        struct core_worker *w = map_get(&c->workers, e->sandbox.worker_id);
        if (w != NULL)
            sandbox_report_take(c, w, &e->sandbox.report);
        break;
    }
    }
    c->orders = NULL;
}

struct control *control_new(const struct control_options *options)
{
    struct control *c = mem_new(sizeof(*c));
    c->options = *options;
    rng_init(&c->rng, options->seed);
    c->placement = placement_new();
    return c;
}

void control_free(struct control *c)
{
    if (c == NULL)
        return;
    size_t cursor = 0;
    for (struct core_sandbox *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        free(s);
    cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;) {
        autoscaler_done(&f->autoscaler);
        function_spec_done(&f->spec);
        function_spec_done(&f->active_spec);
        buf_done(&f->failure_output);
        free(f);
    }
    cursor = 0;
    for (struct core_worker *w; (w = map_next(&c->workers, &cursor)) != NULL;) {
        strmap_done(&w->digests);
        free(w->name);
        free(w);
    }
    map_done(&c->sandboxes);
    map_done(&c->functions);
    map_done(&c->workers);
    placement_free(c->placement);
    free(c->heap);
    free(c);
}

/* ---- views ---- */

static void function_show(const struct core_function *f, struct function_view *v)
{
    *v = (struct function_view){.function_id = f->id, .spec = &f->spec, .latest_version = f->latest, .active_version = f->active,
                                .failure = f->failure, .wanted = f->wanted, .starting = f->starting, .ready = f->ready,
                                .draining = f->draining, .in_flight = f->in_flight, .waiting = f->waiting, .in_panic = f->autoscaler.in_panic};
    v->latest_state = f->latest_state;
}

static void sandbox_show(const struct core_sandbox *s, struct sandbox_view *v)
{
    *v = (struct sandbox_view){.sandbox_id = s->id, .function_id = s->function->id, .worker_id = s->worker->id, .version = s->version,
                               .state = s->state, .address = &s->address, .started_at_ms = s->started_at_ms, .create_us = s->create_us,
                               .exec_us = s->exec_us, .listen_us = s->listen_us};
}

bool control_function(const struct control *c, uint64_t function_id, struct function_view *ret)
{
    const struct core_function *f = map_get(&c->functions, function_id);
    if (f == NULL || f->deleted)
        return false;
    function_show(f, ret);
    return true;
}

bool control_function_next(const struct control *c, size_t *cursor, struct function_view *ret)
{
    for (const struct core_function *f; (f = map_next(&c->functions, cursor)) != NULL;) {
        if (f->deleted)
            continue;
        function_show(f, ret);
        return true;
    }
    return false;
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
    *ret = (struct worker_view){.worker_id = w->id, .name = w->name, .cordoned = w->cordoned, .cpu_milli = w->room.cpu_milli,
                                .cpu_reserved_milli = w->room.cpu_reserved_milli, .slots = w->room.slots, .sandboxes = w->room.slots_used,
                                .memory_bytes = w->room.memory_bytes, .memory_reserved_bytes = w->room.memory_reserved_bytes,
                                .heard_ms = w->heard_ms};
    ret->state = w->state;
    return true;
}

bool control_data_plane_next(const struct control *c, size_t *cursor, struct data_plane_view *ret)
{
    while (*cursor < DATA_PLANES_MAX) {
        size_t i = (*cursor)++;
        if (!c->data_planes[i].used)
            continue;
        *ret = (struct data_plane_view){c->data_planes[i].id, c->data_planes[i].alive, c->data_planes[i].heard_ms};
        return true;
    }
    return false;
}
