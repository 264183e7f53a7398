/* core.c - one event in, orders out. */
#include "control_plane/core_state.h"
#include <stdlib.h>

#define HUNGRY_AT_ONCE 16u /* functions tried when room comes; the others have their timer */

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

/* ---- what the files share ---- */

void function_touch(struct control *c, struct core_function *f)
{
    if (!list_is_linked(&f->touched))
        list_push_back(&c->touched, &f->touched);
}

static bool is_reconstructing(const struct control *c)
{
    return c->now_ms < c->started_ms + c->options.reconstruction_ms;
}

bool core_awaits_workers(const struct control *c)
{
    return c->awaited_workers > 0 && is_reconstructing(c);
}

bool core_awaits_anybody(const struct control *c)
{
    return c->awaited_workers + c->awaited_planes > 0 && is_reconstructing(c);
}

bool core_awaits_planes(const struct control *c)
{
    return c->awaited_planes > 0 && is_reconstructing(c);
}

struct core_sandbox **core_scratch(struct control *c, size_t count)
{
    if (count > c->scratch_capacity) {
        c->scratch_capacity = MAX(c->scratch_capacity * 2, count);
        c->scratch = mem_resize(c->scratch, c->scratch_capacity, sizeof(struct core_sandbox *));
    }
    return c->scratch;
}

size_t control_awaited_workers(const struct control *c)
{
    return c->awaited_workers;
}

uint64_t control_next_due_ms(const struct control *c)
{
    uint64_t due = c->heap_count > 0 ? c->heap[0]->at_ms : UINT64_MAX;
    if (c->awaited_workers + c->awaited_planes > 0)
        due = MIN(due, c->started_ms + c->options.reconstruction_ms);
    return due;
}

/* ---- after a start ---- */

static void all_functions_touch(struct control *c)
{
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;)
        function_touch(c, f);
}

static void draining_look(struct control *c)
{
    size_t cursor = 0;
    for (struct core_sandbox *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        sandbox_stop_when_drained(c, s);
}

/* Those that have not come by now are not awaited any more. */
static void reconstruction_end(struct control *c)
{
    size_t cursor = 0;
    for (struct core_worker *w; (w = map_next(&c->workers, &cursor)) != NULL;)
        if (w->state == WORKER_AWAITED)
            w->state = WORKER_DEAD;
    for (unsigned i = 0; i < DATA_PLANES_MAX; i++)
        c->data_planes[i].awaited = false;
    c->awaited_workers = c->awaited_planes = 0;
    c->awaited_less = true;
}

static void awaited_look(struct control *c)
{
    if (c->awaited_workers + c->awaited_planes > 0 && !is_reconstructing(c))
        reconstruction_end(c);
    if (!c->awaited_less)
        return;
    c->awaited_less = false;
    if (!core_awaits_workers(c))
        planes_snapshots_owed(c);
    if (!core_awaits_anybody(c))
        draining_look(c);
    all_functions_touch(c);
}

/* ---- time ---- */

static void tick(struct control *c)
{
    for (struct due *d; (d = due_take(c)) != NULL;) {
        switch (d->kind) {
        case DUE_FUNCTION:
            scale_due(c, container_of(d, struct core_function, due));
            break;
        case DUE_SANDBOX: /* a request has outlived its own deadline */
            sandbox_stop_when_drained(c, container_of(d, struct core_sandbox, due));
            break;
        case DUE_WORKER:
            worker_end(c, container_of(d, struct core_worker, due));
            break;
        case DUE_PLANE:
            plane_end(c, container_of(d, struct data_plane, due));
            break;
        }
    }
}

/* ---- the step ---- */

static void peer_alive(struct control *c, const struct control_event *e)
{
    if (e->alive.is_worker) {
        struct core_worker *w = map_get(&c->workers, e->alive.id);
        if (w != NULL)
            w->heard_ms = c->now_ms;
        return;
    }
    struct data_plane *p = plane_find(c, e->alive.id);
    if (p != NULL)
        p->heard_ms = c->now_ms;
}

static void sandbox_event(struct control *c, const struct control_event *e)
{
    struct core_worker *w = map_get(&c->workers, e->sandbox.worker_id);
    if (w != NULL)
        sandbox_report_take(c, w, &e->sandbox.report);
}

static void goodbye(struct control *c, uint64_t worker_id)
{
    struct core_worker *w = map_get(&c->workers, worker_id);
    if (w != NULL)
        worker_end(c, w);
}

static void take(struct control *c, const struct control_event *e)
{
    switch (e->kind) {
    case EVENT_TICK:
        tick(c);
        break;
    case EVENT_FUNCTION_PUT:
        function_put(c, e);
        break;
    case EVENT_FUNCTION_DELETE:
        function_delete(c, e->function_delete.function_id);
        break;
    case EVENT_WORKER_KNOWN:
        worker_known(c, e);
        break;
    case EVENT_WORKER_UP:
        worker_up(c, e);
        break;
    case EVENT_WORKER_CLOSED:
        worker_closed(c, e->worker.worker_id, e->worker.silent);
        break;
    case EVENT_WORKER_GOODBYE:
        goodbye(c, e->worker.worker_id);
        break;
    case EVENT_WORKER_USE:
        worker_use(c, e->worker_use.worker_id, e->worker_use.use);
        break;
    case EVENT_WORKER_REMOVED:
        worker_removed(c, e->worker.worker_id);
        break;
    case EVENT_PEER_ALIVE:
        peer_alive(c, e);
        break;
    case EVENT_DATA_PLANE_KNOWN:
        plane_known(c, e->data_plane.data_plane_id);
        break;
    case EVENT_DATA_PLANE_REMOVED:
        plane_removed(c, e->data_plane.data_plane_id);
        break;
    case EVENT_DATA_PLANE_UP:
        plane_up(c, e);
        break;
    case EVENT_DATA_PLANE_CLOSED:
        plane_closed(c, e->data_plane.data_plane_id, e->data_plane.silent);
        break;
    case EVENT_DEMAND:
        plane_demand(c, e);
        break;
    case EVENT_SLOTS_RETURNED:
        plane_returned(c, e);
        break;
    case EVENT_LOADS:
        plane_loads(c, e);
        break;
    case EVENT_DRAINED:
        plane_drained(c, e->endpoint.data_plane_id, e->endpoint.sandbox_id);
        break;
    case EVENT_ENDPOINT_FAILED:
        plane_endpoint_failed(c, e->endpoint.sandbox_id);
        break;
    case EVENT_SANDBOX:
        sandbox_event(c, e);
        break;
    }
}

/* Scales what the step has touched. What drains there touches its function again, which then finds
 * nothing left to do. */
static void settle(struct control *c)
{
    while (!list_is_empty(&c->touched)) {
        struct core_function *f = list_entry(c->touched.next, struct core_function, touched);
        list_remove(&f->touched);
        if (f->deleted)
            function_end_when_empty(c, f);
        else
            scale_function(c, f);
    }
}

static void hungry_feed(struct control *c)
{
    unsigned left = HUNGRY_AT_ONCE;
    if (!c->room_came)
        return;
    c->room_came = false;
    list_for_each(f, &c->hungry, struct core_function, hungry)
    {
        if (left-- == 0)
            break;
        function_touch(c, f);
    }
    settle(c);
}

void control_step(struct control *c, const struct control_event *e, uint64_t now_ms,
                  struct control_orders *orders)
{
    assert(now_ms >= c->now_ms);
    if (c->steps++ == 0)
        c->started_ms = now_ms;
    c->now_ms = now_ms;
    c->orders = orders;
    take(c, e);
    awaited_look(c);
    settle(c);
    hungry_feed(c);
    c->orders = NULL;
}

/* ---- life ---- */

struct control *control_new(const struct control_options *options)
{
    struct control *c = mem_new(sizeof(*c));
    c->options = *options;
    list_init(&c->touched);
    list_init(&c->hungry);
    rng_init(&c->rng, options->seed);
    c->placement = placement_new();
    return c;
}

static void spares_free(struct control *c)
{
    while (c->spare != NULL) {
        struct core_sandbox *s = c->spare;
        c->spare = (struct core_sandbox *)s->of_function.next;
        free(s);
    }
}

void control_free(struct control *c)
{
    if (c == NULL)
        return;
    size_t cursor = 0;
    for (struct core_sandbox *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        free(s);
    spares_free(c);
    cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;)
        function_free(c, f);
    cursor = 0;
    for (struct core_worker *w; (w = map_next(&c->workers, &cursor)) != NULL;)
        worker_free(c, w);
    for (unsigned i = 0; i < DATA_PLANES_MAX; i++) {
        map_done(&c->data_planes[i].loads);
        map_done(&c->data_planes[i].leases_held);
    }
    map_done(&c->sandboxes);
    map_done(&c->functions);
    map_done(&c->workers);
    strmap_done(&c->codes);
    placement_free(c->placement);
    free(c->heap);
    free(c->scratch);
    free(c);
}
