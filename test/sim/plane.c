/* plane.c - a data plane: orders become changes of the real slots and queues, what happens there
 * becomes reports (as src/data_plane/router.c does; events take the place of its posts). */
#include "sim.h"
#include <stdlib.h>
#include <string.h>

#define REPORT_PERIOD_MS 500u
#define READMIT_MS 1000u

static uint64_t now_ns(const struct sim *s)
{
    return s->now_ms * NS_PER_MS;
}

/* Which plane, and in which of its lives. */
static uint64_t self_of(const struct sim *s, uint32_t plane)
{
    return s->planes[plane].life << 8 | plane;
}

static struct plane *self_find(struct sim *s, uint64_t self)
{
    struct plane *p = &s->planes[self & 0xff];
    if (!p->is_up || p->life != self >> 8)
        return NULL;
    s->touched_planes |= 1u << (self & 0xff);
    return p;
}

/* ---- reports ---- */

static bool can_report(const struct sim *s, uint32_t plane)
{
    return s->planes[plane].has_welcome && s->links[WORKERS + plane].peer_end != 0;
}

static void report(struct sim *s, uint32_t plane, enum item_kind kind, uint64_t sandbox_id)
{
    if (can_report(s, plane))
        network_item(s, WORKERS + plane, TO_CORE, kind)->sandbox_id = sandbox_id;
}

void plane_tell_demand(struct sim *s, struct route *r)
{
    if (!can_report(s, r->plane) || r->is_due)
        return;
    r->is_due = true;
    network_item(s, WORKERS + r->plane, TO_CORE, ITEM_DEMAND)->function_id = r->id;
}

void plane_tell_active(struct sim *s, struct route *r)
{
    r->is_active = true;
}

void plane_fill(struct sim *s, struct frame *f)
{
    const struct plane *p = &s->planes[f->peer - WORKERS];
    f->taken = p->taken;
    for (size_t i = 0; i < f->count; i++) {
        struct item *item = &f->items[i];
        struct route *r = item->kind == ITEM_DEMAND ? map_get(&p->routes, item->function_id) : NULL;
        struct dispatch_demand demand;
        if (r == NULL)
            continue; /* of a function that is gone: nobody waits there */
        dispatch_demand(r->dispatch, &demand);
        item->in_flight = demand.in_flight;
        item->in_flight_ending = demand.in_flight_ending;
        item->waiting = demand.waiting;
        item->average = r->average;
        r->is_due = false;
    }
}

static void loads_report(struct sim *s, struct route *r)
{
    const struct plane *p = &s->planes[r->plane];
    size_t cursor = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;) {
        const struct dispatch_endpoint *d = dispatch_endpoint_find(e->route->dispatch, e->id);
        if (e->route != r || d == NULL || dispatch_endpoint_in_flight(d) == e->reported)
            continue;
        e->reported = dispatch_endpoint_in_flight(d);
        struct item *item = network_item(s, WORKERS + r->plane, TO_CORE, ITEM_LOAD);
        item->sandbox_id = e->id;
        item->in_flight = e->reported;
    }
}

static void on_report(struct sim *s, const struct event *e)
{
    struct plane *p = self_find(s, e->a);
    size_t cursor = 0;
    if (p == NULL)
        return;
    for (struct route *r; (r = map_next(&p->routes, &cursor)) != NULL;) {
        dispatch_garbage_free(dispatch_collect(r->dispatch));
        if (!r->is_active)
            continue;
        struct dispatch_demand demand;
        r->average = dispatch_average(r->dispatch, now_ns(s));
        dispatch_demand(r->dispatch, &demand);
        r->is_active = demand.in_flight > 0 || demand.waiting > 0 || r->average > 0;
        plane_tell_demand(s, r);
        if (can_report(s, r->plane))
            loads_report(s, r);
    }
    clock_after(s, REPORT_PERIOD_MS, on_report, e->a, 0);
}

/* ---- sandboxes ---- */

static struct slots *slots_of(const struct endpoint *e)
{
    struct dispatch_endpoint *d = dispatch_endpoint_find(e->route->dispatch, e->id);
    return d != NULL ? d->user : NULL;
}

static void endpoint_forget(struct sim *s, uint32_t plane, struct endpoint *e)
{
    struct slots *slots = slots_of(e);
    sim_trace(s, "data plane %u forgets %llx", plane, (unsigned long long)e->id);
    (void)map_remove(&s->planes[plane].endpoints, e->id);
    if (slots != NULL)
        slots->is_removed = true;
    (void)dispatch_endpoint_remove(e->route->dispatch, e->id);
    requests_break(s, plane, e->id);
    free(e);
}

static void returned_add(struct returned_list *list, struct returned item)
{
    if (list->count == list->capacity) {
        list->capacity = MAX(list->capacity * 2, (size_t)8);
        list->items = mem_resize(list->items, list->capacity, sizeof(*list->items));
    }
    list->items[list->count++] = item;
}

/* Those given back after our hello are told when it has been answered. */
static void returned_tell(struct sim *s, uint32_t plane)
{
    struct plane *p = &s->planes[plane];
    if (s->links[WORKERS + plane].peer_end == 0)
        p->returned.count = 0; /* our next hello does not name them */
    if (!can_report(s, plane))
        return;
    for (size_t i = 0; i < p->returned.count; i++) {
        struct item *item = network_item(s, WORKERS + plane, TO_CORE, ITEM_RETURNED);
        item->sandbox_id = p->returned.items[i].sandbox_id;
        item->slots = p->returned.items[i].slots;
        item->left = p->returned.items[i].left;
    }
    p->returned.count = 0;
}

static void on_returned_post(struct sim *s, const struct event *event)
{
    struct plane *p = self_find(s, event->a);
    if (p == NULL)
        return;
    uint32_t plane = event->a & 0xff;
    struct returned r = p->posted.items[0];
    memmove(p->posted.items, p->posted.items + 1, --p->posted.count * sizeof(r));
    struct endpoint *e = map_get(&p->endpoints, r.sandbox_id);
    if (e == NULL || e->user != r.user)
        return; /* it has gone, with all its slots */
    sim_trace(s, "data plane %u gives back %u slots of %llx, and has %u", plane, r.slots,
              (unsigned long long)r.sandbox_id, r.left);
    if (r.slots == 0)
        e->slots = r.left;                   /* until then it had all */
    else if (e->slots != DISPATCH_SLOTS_ALL) /* else it has got all since */
        e->slots -= r.slots;
    returned_add(&p->returned, r);
    returned_tell(s, plane);
    if (e->slots == 0)
        endpoint_forget(s, plane, e);
}

static void on_endpoint_returned(void *user, struct dispatch_endpoint *endpoint, uint32_t slots,
                                 uint32_t left)
{
    struct route *r = user;
    struct slots *own = endpoint->user;
    FAIL_UNLESS(r->sim, left >= own->held, "%u slots of sandbox %llx are left, and %u are used",
                left, (unsigned long long)endpoint->sandbox_id, own->held);
    own->limit = left;
    returned_add(&r->sim->planes[r->plane].posted,
                 (struct returned){endpoint->sandbox_id, own, slots, left});
    clock_after(r->sim, 0, on_returned_post, self_of(r->sim, r->plane), 0);
}

static void on_idle_post(struct sim *s, const struct event *event)
{
    struct plane *p = self_find(s, event->a);
    if (p == NULL)
        return;
    uint32_t plane = event->a & 0xff;
    struct endpoint *e = map_get(&p->endpoints, event->b);
    sim_trace(s, "data plane %u has drained %llx", plane, (unsigned long long)event->b);
    report(s, plane, ITEM_DRAINED, event->b);
    if (e == NULL)
        return;
    e->drained = true;
    if (e->forget_when_idle)
        endpoint_forget(s, plane, e);
}

static void on_endpoint_idle(void *user, struct dispatch_endpoint *endpoint)
{
    struct route *r = user;
    struct sim *s = r->sim;
    struct slots *slots = endpoint->user;
    FAIL_UNLESS(s, slots->is_draining, "sandbox %llx is called idle and does not drain",
                (unsigned long long)endpoint->sandbox_id);
    FAIL_UNLESS(s, slots->held == 0, "sandbox %llx is called idle and has %u requests",
                (unsigned long long)endpoint->sandbox_id, slots->held);
    FAIL_UNLESS(s, !slots->was_idle, "sandbox %llx is called idle twice",
                (unsigned long long)endpoint->sandbox_id);
    slots->was_idle = true;
    clock_after(s, 0, on_idle_post, self_of(s, r->plane), endpoint->sandbox_id);
}

static void on_endpoint_free(void *user, struct dispatch_endpoint *endpoint)
{
    free(endpoint->user);
}

static void endpoint_drain(struct sim *s, uint32_t plane, uint64_t sandbox_id)
{
    struct endpoint *e = map_get(&s->planes[plane].endpoints, sandbox_id);
    if (e == NULL || e->drained) {
        sim_trace(s, "data plane %u has nothing at %llx", plane, (unsigned long long)sandbox_id);
        report(s, plane, ITEM_DRAINED, sandbox_id); /* nothing of it is in flight here */
        return;
    }
    slots_of(e)->is_draining = true;
    (void)dispatch_endpoint_drain(e->route->dispatch, sandbox_id);
}

/* Takes no new request, and is forgotten when it has none left. */
static void endpoint_retire(struct sim *s, uint32_t plane, uint64_t sandbox_id)
{
    struct endpoint *e = map_get(&s->planes[plane].endpoints, sandbox_id);
    e->forget_when_idle = true;
    if (e->drained) { /* perhaps after our hello, which said that it was not */
        report(s, plane, ITEM_DRAINED, sandbox_id);
        endpoint_forget(s, plane, e);
    } else {
        endpoint_drain(s, plane, sandbox_id);
    }
}

static void endpoint_lease(struct sim *s, struct endpoint *e, uint32_t more)
{
    if (more == DISPATCH_SLOTS_ALL || e->slots == DISPATCH_SLOTS_ALL)
        e->slots = DISPATCH_SLOTS_ALL;
    else
        e->slots += more;
    struct slots *slots = slots_of(e);
    slots->limit = more == DISPATCH_SLOTS_ALL || slots->limit == DISPATCH_SLOTS_ALL
                       ? DISPATCH_SLOTS_ALL
                       : slots->limit + more;
    if (more > 0)
        (void)dispatch_endpoint_lease(e->route->dispatch, e->id, more, THREADS, now_ns(s));
}

static void endpoint_put(struct sim *s, uint32_t plane, const struct item *o)
{
    struct plane *p = &s->planes[plane];
    struct route *r = map_get(&p->routes, o->function_id);
    struct endpoint *e = map_get(&p->endpoints, o->sandbox_id);
    if (e != NULL)
        e->in_snapshot = true;
    if (e != NULL && e->drained) { /* by a leader that is no more; the new one has it in use */
        endpoint_forget(s, plane, e);
    } else if (e != NULL) { /* only just draining: once idle it is told so, and named again */
        if (slots_of(e)->is_draining)
            e->forget_when_idle = true;
        else
            endpoint_lease(s, e, o->slots);
        return;
    }
    if (r == NULL || o->slots == 0)
        return;
    struct slots *slots = mem_new(sizeof(*slots));
    slots->limit = o->slots;
    e = mem_new(sizeof(*e));
    *e = (struct endpoint){
        .id = o->sandbox_id, .route = r, .user = slots, .slots = o->slots, .in_snapshot = true};
    map_put(&p->endpoints, e->id, e);
    sim_trace(s, "data plane %u may use %llx", plane, (unsigned long long)e->id);
    bool added = dispatch_endpoint_add(r->dispatch, e->id, o->slots, slots, THREADS, now_ns(s));
    FAIL_UNLESS(s, added, "sandbox %llx was there already", (unsigned long long)e->id);
}

static void on_readmit(struct sim *s, const struct event *event)
{
    struct plane *p = self_find(s, event->a);
    struct endpoint *e = p != NULL ? map_get(&p->endpoints, event->b) : NULL;
    if (e == NULL)
        return;
    slots_of(e)->is_ejected = false;
    (void)dispatch_endpoint_admit(e->route->dispatch, e->id, THREADS, now_ns(s));
}

void plane_report_failed(struct sim *s, uint32_t plane, uint64_t sandbox_id)
{
    report(s, plane, ITEM_ENDPOINT_FAILED, sandbox_id);
    clock_after(s, READMIT_MS, on_readmit, self_of(s, plane), sandbox_id);
}

/* ---- functions ---- */

static void route_put(struct sim *s, uint32_t plane, const struct item *o)
{
    struct plane *p = &s->planes[plane];
    struct route *r = map_get(&p->routes, o->function_id);
    if (r == NULL) {
        r = mem_new(sizeof(*r));
        struct dispatch_options options = {.concurrency = o->settings.concurrency,
                                           .queue_max = o->settings.queue_max,
                                           .policy =
                                               (enum dispatch_policy)o->settings.load_balancing,
                                           .threads = THREADS + 1,
                                           .seed = sim_below(s, UINT32_MAX),
                                           .on_idle = on_endpoint_idle,
                                           .on_returned = on_endpoint_returned,
                                           .on_free = on_endpoint_free,
                                           .user = r};
        *r = (struct route){.id = o->function_id, .plane = plane, .sim = s};
        list_init(&r->requests);
        r->dispatch = dispatch_new(&options);
        map_put(&p->routes, r->id, r);
    }
    r->settings = o->settings;
    r->in_snapshot = true;
    dispatch_configure(r->dispatch, o->settings.concurrency, o->settings.queue_max,
                       (enum dispatch_policy)o->settings.load_balancing, THREADS, now_ns(s));
}

static void route_free(struct route *r)
{
    dispatch_free(r->dispatch);
    free(r);
}

/* The last to go: what was told to be idle before has been forgotten by now. */
static void on_route_gone(struct sim *s, const struct event *e)
{
    struct plane *p = self_find(s, e->a);
    struct route *r = p != NULL ? map_get(&p->removed, e->b) : NULL;
    if (r == NULL)
        return;
    (void)map_remove(&p->removed, e->b);
    route_free(r);
}

void plane_request_left(struct sim *s, struct route *r)
{
    if (r->is_removed && list_is_empty(&r->requests))
        clock_after(s, 0, on_route_gone, self_of(s, r->plane), r->id);
}

static void endpoints_retire(struct sim *s, uint32_t plane, const struct route *only,
                             bool in_snapshot_too)
{
    struct plane *p = &s->planes[plane];
    uint64_t *ids = mem_new_array(p->endpoints.count + 1, sizeof(*ids));
    size_t cursor = 0, count = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;)
        if ((only == NULL || e->route == only) && (in_snapshot_too || !e->in_snapshot))
            ids[count++] = e->id;
    for (size_t i = 0; i < count; i++)
        endpoint_retire(s, plane, ids[i]);
    free(ids);
}

static void route_remove(struct sim *s, uint32_t plane, struct route *r)
{
    struct plane *p = &s->planes[plane];
    (void)map_remove(&p->routes, r->id);
    map_put(&p->removed, r->id, r);
    r->is_removed = true;
    (void)dispatch_close(r->dispatch, ERR_NOT_FOUND, NULL);
    endpoints_retire(s, plane, r, true);
    plane_request_left(s, r);
}

static void fail_waiting(struct sim *s, struct route *r, const struct item *o)
{
    bool has_cause = o->has_cause;
    (void)dispatch_fail_waiting(r->dispatch, ERR_FAILED, &has_cause);
    plane_tell_demand(s, r); /* whoever waits from now on is told in a new report */
}

/* ---- orders ---- */

static void snapshot_begin(struct plane *p)
{
    size_t cursor = 0;
    for (struct route *r; (r = map_next(&p->routes, &cursor)) != NULL;)
        r->in_snapshot = false;
    cursor = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;)
        e->in_snapshot = false;
}

static void forget_routes(struct sim *s, uint32_t plane)
{
    struct plane *p = &s->planes[plane];
    struct route **gone = mem_new_array(p->routes.count + 1, sizeof(struct route *));
    size_t cursor = 0, count = 0;
    for (struct route *r; (r = map_next(&p->routes, &cursor)) != NULL;)
        if (!r->in_snapshot)
            gone[count++] = r;
    for (size_t i = 0; i < count; i++)
        route_remove(s, plane, gone[i]);
    free(gone);
}

static void slots_wanted(struct sim *s, struct route *r, const struct item *o)
{
    if (dispatch_owe(r->dispatch, o->slots, o->idle) > 0)
        plane_tell_demand(s, r); /* it may do better elsewhere */
}

static void order_take(struct sim *s, uint32_t plane, const struct item *o)
{
    struct plane *p = &s->planes[plane];
    struct route *r = map_get(&p->routes, o->function_id);
    struct endpoint *e = map_get(&p->endpoints, o->sandbox_id);
    if (o->order == ORDER_ROUTE)
        route_put(s, plane, o);
    else if (o->order == ORDER_UNROUTE && r != NULL)
        route_remove(s, plane, r);
    else if (o->order == ORDER_SLOTS_WANTED && r != NULL)
        slots_wanted(s, r, o);
    else if (o->order == ORDER_ENDPOINT)
        endpoint_put(s, plane, o);
    else if (o->order == ORDER_DRAIN)
        endpoint_drain(s, plane, o->sandbox_id);
    else if (o->order == ORDER_ENDPOINT_GONE && e != NULL)
        endpoint_forget(s, plane, e);
    else if (o->order == ORDER_FAIL_WAITING && r != NULL)
        fail_waiting(s, r, o);
    else if (o->order == ORDER_WANT_DEMAND && r != NULL)
        plane_tell_demand(s, r);
}

static void tell_everything(struct sim *s, struct plane *p)
{
    size_t cursor = 0;
    for (struct route *r; (r = map_next(&p->routes, &cursor)) != NULL;)
        if (r->is_active)
            plane_tell_demand(s, r);
    cursor = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;)
        e->reported = 0;
}

/* Kind after kind, as one message of the protocol is read. */
void plane_frame(struct sim *s, uint32_t plane, const struct frame *f)
{
    static const enum order_kind kinds[] = {
        ORDER_ROUTE, ORDER_UNROUTE,       ORDER_SLOTS_WANTED, ORDER_ENDPOINT,
        ORDER_DRAIN, ORDER_ENDPOINT_GONE, ORDER_FAIL_WAITING, ORDER_WANT_DEMAND};
    struct plane *p = &s->planes[plane];
    s->touched_planes |= 1u << plane;
    network_send_now(s, WORKERS + plane, TO_CORE); /* it is no answer to what comes now */
    p->taken = f->number;
    FAIL_UNLESS(s, f->epoch >= p->epoch, "data plane %u is ordered by an old leader", plane);
    p->epoch = f->epoch;
    p->has_welcome |= f->is_welcome;
    returned_tell(s, plane);
    if (f->is_snapshot)
        snapshot_begin(p);
    for (size_t k = 0; k < ARRAY_COUNT(kinds); k++) {
        for (size_t i = 0; i < f->count; i++)
            if (f->items[i].order == kinds[k])
                order_take(s, plane, &f->items[i]);
        if (f->is_snapshot && kinds[k] == ORDER_ROUTE)
            forget_routes(s, plane);
        if (f->is_snapshot && kinds[k] == ORDER_ENDPOINT)
            endpoints_retire(s, plane, NULL, false);
    }
    if (f->is_snapshot)
        tell_everything(s, p);
}

/* ---- life ---- */

void plane_hello(struct sim *s, uint32_t plane, struct frame *hello)
{
    struct plane *p = &s->planes[plane];
    size_t cursor = 0;
    for (struct route *r; (r = map_next(&p->routes, &cursor)) != NULL;)
        (void)dispatch_owe(r->dispatch, 0, 0);
    p->returned.count = 0;
    cursor = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;) {
        struct item *item = frame_item(hello, ITEM_KNOWN);
        const struct dispatch_endpoint *d = dispatch_endpoint_find(e->route->dispatch, e->id);
        item->sandbox_id = e->id;
        item->is_ending = slots_of(e)->is_draining;
        item->slots = item->is_ending ? dispatch_endpoint_in_flight(d) : e->slots;
    }
}

void plane_disconnected(struct sim *s, uint32_t plane)
{
    struct plane *p = &s->planes[plane];
    size_t cursor = 0;
    p->has_welcome = false;
    p->taken = 0;
    for (struct route *r; (r = map_next(&p->routes, &cursor)) != NULL;)
        r->is_due = false;
}

void plane_done(struct sim *s, uint32_t plane)
{
    struct plane *p = &s->planes[plane];
    struct map *maps[] = {&p->routes, &p->removed};
    size_t cursor = 0;
    for (size_t i = 0; i < ARRAY_COUNT(maps); i++) {
        cursor = 0;
        for (struct route *r; (r = map_next(maps[i], &cursor)) != NULL;) {
            (void)dispatch_close(r->dispatch, ERR_FAILED, NULL);
            requests_drop(s, r);
            route_free(r);
        }
        map_done(maps[i]);
    }
    cursor = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;)
        free(e);
    map_done(&p->endpoints);
    free(p->posted.items);
    free(p->returned.items);
    p->posted = p->returned = (struct returned_list){0};
}

void plane_begin(struct sim *s, uint32_t plane)
{
    s->planes[plane] = (struct plane){.is_up = true, .life = s->planes[plane].life + 1};
    clock_after(s, sim_between(s, 1, REPORT_PERIOD_MS), on_report, self_of(s, plane), 0);
}

static void on_plane_up(struct sim *s, const struct event *e)
{
    if (s->planes[e->a].is_up)
        return;
    plane_begin(s, (uint32_t)e->a);
    network_dial_later(s, WORKERS + (uint32_t)e->a);
}

void plane_crash(struct sim *s, uint32_t plane, uint64_t away_ms)
{
    if (!s->planes[plane].is_up)
        return;
    sim_trace(s, "data plane %u dies with its requests", plane);
    network_peer_ends(s, WORKERS + plane);
    plane_done(s, plane);
    s->planes[plane].is_up = false;
    clock_after(s, away_ms, on_plane_up, plane, 0);
}
