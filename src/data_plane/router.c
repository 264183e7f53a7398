/* router.c - what the control plane says becomes changes of routes; what the threads tell becomes
 * reports to it.
 *
 * Memory: a route goes when every thread has let it go; endpoints and outgrown lists go when every
 * thread has been round its loop since they became unreachable (an empty update, done in the order
 * in which updates are given). */
#include "data_plane/router.h"
#include "base/hash.h"
#include "base/log.h"
#include "data_plane/snapshot.h"
#include "dirigent.pb-c.h"
#include "wire/replicas.h"
#include <stdio.h>
#include <stdlib.h>

#define REPORT_PERIOD_NS (DEMAND_REPORT_PERIOD_MS * NS_PER_MS)
#define REPORT_PAUSE_NS (10 * NS_PER_MS) /* at least, between two messages */
#define READMIT_NS NS_PER_S
#define ALONE_NS (500 * NS_PER_MS) /* a control plane that has not come by then is away */
#define KEEP_SHARE 50u             /* of its time, one part at most goes into snapshots */
#define ENDPOINTS_LOOKED_AT_MAX 4096u

/* The control thread's half of a route: its `control`. */
struct route_state {
    struct router *control;
    struct route *route;
    struct list active_node, garbage_node, due_node;
    double average;                     /* in flight, over the last period */
    uint64_t report_ns;                 /* while active: when its period ends */
    bool in_snapshot, going;            /* going: its end is told to the threads */
    uint32_t queue_max, load_balancing; /* as told */
    uint32_t removed_left;              /* endpoints removed, whose memory is still there */
};

struct sandbox_state { /* one known endpoint */
    uint64_t id;
    struct router *control;
    struct route *route;
    const struct sandbox *sandbox; /* its endpoint's */
    struct loop_timer readmit;
    bool in_snapshot, drained, forget_when_idle;
    uint32_t slots; /* held, but for those of which the giving back is still on its way to us */
    uint32_t reported_in_flight;
};

struct router {
    struct router_options options;
    struct thread_shared *shared;
    struct loop *loop;
    uint32_t thread; /* our index in dispatches */
    struct replicas *replicas;
    struct link *link; /* to the control plane that leads; NULL: none does */
    bool welcome, stopping, said_unreachable, said_unwritten, serves;
    bool snapshot_awaited;            /* its rest */
    bool changed;                     /* what the file of the snapshot does not have */
    uint64_t snapshot_next_ns;        /* not earlier */
    uint64_t sequence, taken;         /* taken: the last message of this connection */
    uint64_t sync;                    /* asked for in this turn; 0: none */
    struct map routes;                /* function id -> struct route */
    struct map sandboxes;             /* sandbox id -> struct sandbox_state */
    struct list active, garbage, due; /* of route_state */
    struct loop_timer report, keep;   /* keep: of the snapshot */
    struct loop_deferred flush;
    struct vector_u64 {
        uint64_t *items;
        size_t count, capacity;
    } drained;
    struct failed_endpoint {
        uint64_t sandbox_id;
        char reason[160];
    } * failed;
    size_t failed_count, failed_capacity;
    struct snapshot_slots *returned; /* slots, to be told */
    size_t returned_count, returned_capacity;
    struct update_item *changes; /* for the threads, of this turn */
    size_t change_count, change_capacity;
    uint32_t threads_stopped;
};

static struct route_state *state_of(const struct route *r)
{
    return r->control;
}

static uint64_t time_now(const struct router *c)
{
    return loop_now_ns(c->loop);
}

#define GROW(items, count, capacity)                                     \
    do {                                                                 \
        if ((count) == (capacity)) {                                     \
            (capacity) = MAX((capacity)*2, (size_t)16);                  \
            (items) = mem_resize((items), (capacity), sizeof(*(items))); \
        }                                                                \
    } while (0)

/* ---- changes for the threads: gathered, and told in one update ---- */

static void change_add(struct router *c, struct update_item item)
{
    GROW(c->changes, c->change_count, c->change_capacity);
    c->changes[c->change_count++] = item;
}

/* What is to be done when every thread has carried an update out. */
struct after {
    struct dispatch_garbage **garbage;
    size_t garbage_count, garbage_capacity;
    struct route *route; /* to be freed, or NULL */
    struct router *router;
    struct link *link; /* that asked for `sync`, if any did: not followed, only compared */
    uint64_t sync;
};

static void route_free(struct route *r)
{
    struct router *c = state_of(r)->control;
    dispatch_free(r->dispatch);
    for (uint32_t i = 0; i < c->shared->thread_count; i++)
        free(r->stats[i]);
    list_remove(&state_of(r)->active_node);
    list_remove(&state_of(r)->garbage_node);
    list_remove(&state_of(r)->due_node);
    free(r->control);
    free(r);
}

static void sync_tell(struct router *c, uint64_t number)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    if (c->link == NULL || !c->welcome)
        return; /* to a control plane that is no more */
    m.sequence = ++c->sequence;
    m.synced = number;
    link_send(c->link, &m.base);
}

static void update_free(struct update *u)
{
    struct after *after = u->user;
    if (after != NULL) {
        if (after->sync != 0 && after->link == after->router->link)
            sync_tell(after->router, after->sync);
        for (size_t i = 0; i < after->garbage_count; i++)
            dispatch_garbage_free(after->garbage[i]);
        if (after->route != NULL)
            route_free(after->route);
        free(after->garbage);
        free(after);
    }
    free(u->items);
    free(u);
}

static void update_tell(struct router *c, struct update_item *items, size_t count,
                        struct after *after)
{
    struct update *u = mem_new(sizeof(*u) + c->shared->thread_count * sizeof(u->posts[0]));
    u->items = items;
    u->count = count;
    u->user = after;
    u->on_done = update_free;
    threads_update(c->shared, u);
}

static void changes_tell(struct router *c)
{
    struct after *after = NULL;
    if (c->change_count == 0 && c->sync == 0)
        return;
    if (c->sync != 0) {
        after = mem_new(sizeof(*after));
        *after = (struct after){.router = c, .sync = c->sync, .link = c->link};
        c->sync = 0;
    }
    update_tell(c, c->changes, c->change_count, after);
    c->changes = NULL;
    c->change_count = c->change_capacity = 0;
}

/* ---- memory ---- */

static void garbage_expect(struct route *r)
{
    struct route_state *s = state_of(r);
    if (!s->going && !list_is_linked(&s->garbage_node))
        list_push_back(&s->control->garbage, &s->garbage_node);
}

static void garbage_collect(struct router *c)
{
    struct after *after = NULL;
    list_for_each(s, &c->garbage, struct route_state, garbage_node)
    {
        struct dispatch_garbage *g = dispatch_collect(s->route->dispatch);
        if (g != NULL) {
            if (after == NULL)
                after = mem_new(sizeof(*after));
            GROW(after->garbage, after->garbage_count, after->garbage_capacity);
            after->garbage[after->garbage_count++] = g;
        }
        if (s->removed_left == 0)
            list_remove(&s->garbage_node);
    }
    if (after == NULL)
        return;
    changes_tell(c); /* that a sandbox has gone is told before its memory goes */
    update_tell(c, NULL, 0, after);
}

static void on_endpoint_free(void *user, struct dispatch_endpoint *endpoint)
{
    struct route *r = user;
    if (state_of(r)->removed_left > 0)
        state_of(r)->removed_left--;
    free(endpoint->user);
}

/* ---- reports ---- */

static void flush_later(struct router *c)
{
    loop_defer(c->loop, &c->flush);
}

static void demand_due(struct route *r)
{
    struct route_state *s = state_of(r);
    if (!list_is_linked(&s->due_node))
        list_push_back(&s->control->due, &s->due_node);
    flush_later(s->control);
}

static void fill_demand(struct route *r, Dirigent__Demand *m)
{
    struct dispatch_demand demand;
    dispatch_demand(r->dispatch, &demand);
    *m = (Dirigent__Demand)DIRIGENT__DEMAND__INIT;
    m->function_id = r->id;
    m->in_flight = demand.in_flight;
    m->in_flight_ending = demand.in_flight_ending;
    m->waiting = demand.waiting;
    m->requests_total = demand.requests_total;
    m->in_flight_average = state_of(r)->average;
}

struct loads { /* what each sandbox has in flight, where that has changed */
    Dirigent__SandboxLoad *items;
    size_t count, capacity;
};

static void loads_add(struct router *c, struct route *r, struct loads *loads)
{
    static_assert(ENDPOINTS_LOOKED_AT_MAX * sizeof(void *) <= 64 * 1024, "fits a stack");
    struct dispatch_endpoint *endpoints[ENDPOINTS_LOOKED_AT_MAX];
    size_t count = MIN(dispatch_endpoints(r->dispatch, endpoints, ENDPOINTS_LOOKED_AT_MAX),
                       (size_t)ENDPOINTS_LOOKED_AT_MAX);
    for (size_t i = 0; i < count; i++) {
        struct sandbox_state *s = map_get(&c->sandboxes, endpoints[i]->sandbox_id);
        uint32_t in_flight = dispatch_endpoint_in_flight(endpoints[i]);
        if (s == NULL || s->reported_in_flight == in_flight)
            continue;
        s->reported_in_flight = in_flight;
        GROW(loads->items, loads->count, loads->capacity);
        loads->items[loads->count] = (Dirigent__SandboxLoad)DIRIGENT__SANDBOX_LOAD__INIT;
        loads->items[loads->count].sandbox_id = endpoints[i]->sandbox_id;
        loads->items[loads->count++].in_flight = in_flight;
    }
}

static size_t due_count(struct router *c)
{
    size_t count = 0;
    list_for_each(s, &c->due, struct route_state, due_node) count++;
    return count;
}

/* Pointers to the items of an array, as protobuf-c wants them. The caller frees. */
static void *pointers_to(void *items, size_t count, size_t item_bytes)
{
    void **pointers = mem_new_array(count + 1, sizeof(*pointers));
    for (size_t i = 0; i < count; i++)
        pointers[i] = (char *)items + i * item_bytes;
    return pointers;
}

/* The file must not promise us later what others have by then. */
static void returned_note(struct router *c)
{
    if (c->returned_count > 0)
        snapshot_note(c->options.data_path, c->returned, c->returned_count);
}

/* They are told by our next Hello: it does not name them. */
static void returned_forget(struct router *c)
{
    returned_note(c);
    c->returned_count = 0;
}

static void *returned_take(struct router *c, Dirigent__SlotsReturned *ret_items)
{
    for (size_t i = 0; i < c->returned_count; i++) {
        ret_items[i] = (Dirigent__SlotsReturned)DIRIGENT__SLOTS_RETURNED__INIT;
        ret_items[i].sandbox_id = c->returned[i].sandbox_id;
        ret_items[i].slots = c->returned[i].slots;
        ret_items[i].left = c->returned[i].left;
    }
    returned_note(c);
    return pointers_to(ret_items, c->returned_count, sizeof(*ret_items));
}

static void send_reports(struct router *c, struct loads *loads)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    size_t demand_count = due_count(c), i = 0;
    Dirigent__Demand *demands = mem_new_array(demand_count + 1, sizeof(*demands));
    Dirigent__EndpointFailed *failures = mem_new_array(c->failed_count + 1, sizeof(*failures));
    list_for_each(s, &c->due, struct route_state, due_node)
    {
        fill_demand(s->route, &demands[i++]);
        list_remove(&s->due_node);
    }
    for (i = 0; i < c->failed_count; i++) {
        failures[i] = (Dirigent__EndpointFailed)DIRIGENT__ENDPOINT_FAILED__INIT;
        failures[i].sandbox_id = c->failed[i].sandbox_id;
        failures[i].reason = c->failed[i].reason;
    }
    Dirigent__SlotsReturned *returned = mem_new_array(c->returned_count + 1, sizeof(*returned));
    m.n_slots_returned = c->returned_count;
    m.slots_returned = returned_take(c, returned);
    m.sequence = ++c->sequence;
    m.n_demands = demand_count;
    m.demands = pointers_to(demands, demand_count, sizeof(*demands));
    m.n_endpoint_failures = c->failed_count;
    m.endpoint_failures = pointers_to(failures, c->failed_count, sizeof(*failures));
    m.n_drained = c->drained.count;
    m.drained = c->drained.items;
    m.taken = c->taken;
    m.n_sandbox_loads = loads != NULL ? loads->count : 0;
    m.sandbox_loads = pointers_to(loads != NULL ? loads->items : NULL, m.n_sandbox_loads,
                                  sizeof(Dirigent__SandboxLoad));
    link_send(c->link, &m.base);
    free(m.demands);
    free(m.endpoint_failures);
    free(m.sandbox_loads);
    free(m.slots_returned);
    free(demands);
    free(failures);
    free(returned);
    c->drained.count = c->failed_count = c->returned_count = 0;
}

/* What happened in this turn leaves as one message. While the control plane is away it is dropped:
 * demand is told anew when it is back, and so is what was drained. Slots given back after our Hello
 * are told when it has answered. */
static void on_flush(struct loop_deferred *d)
{
    struct router *c = container_of(d, struct router, flush);
    changes_tell(c);
    if (c->link == NULL || !c->welcome) {
        c->drained.count = c->failed_count = 0;
        if (c->link == NULL)
            returned_forget(c);
        list_for_each(s, &c->due, struct route_state, due_node) list_remove(&s->due_node);
        return;
    }
    if (!list_is_empty(&c->due) || c->drained.count + c->failed_count + c->returned_count > 0)
        send_reports(c, NULL);
}

static void make_active(struct route *r)
{
    struct route_state *s = state_of(r);
    if (list_is_linked(&s->active_node))
        return;
    s->report_ns = time_now(s->control) + REPORT_PERIOD_NS;
    list_push_back(&s->control->active, &s->active_node);
}

static void on_active_post(struct loop_post *post)
{
    make_active(container_of(post, struct route, active_post));
}

static void on_demand_post(struct loop_post *post)
{
    struct route *r = container_of(post, struct route, demand_post);
    atomic_store(&r->demand_posted,
                 false); /* before the numbers are read: what comes later posts again */
    make_active(r);
    demand_due(r);
}

/* True when nothing happens there any more; then the next request makes it active again. */
static bool came_to_rest(struct route *r, uint64_t total_before)
{
    struct dispatch_demand demand;
    atomic_store(&r->active, false);
    dispatch_demand(r->dispatch, &demand);
    if (demand.in_flight == 0 && demand.waiting == 0 && demand.requests_total == total_before)
        return true;
    atomic_store(&r->active, true);
    return false;
}

/* Each active function has a period of its own, from its first request on: reported all at once, a
 * thousand idle ones would be stopped all at once. The list is in the order of the periods' ends.
 */
static void on_report(struct loop_timer *timer)
{
    struct router *c = container_of(timer, struct router, report);
    struct loads loads = {0};
    uint64_t now = time_now(c), next = now + REPORT_PERIOD_NS;
    while (!list_is_empty(&c->active)) {
        struct route_state *s = list_entry(c->active.next, struct route_state, active_node);
        if (s->report_ns > now) {
            next = MAX(s->report_ns, now + REPORT_PAUSE_NS);
            break;
        }
        list_remove(&s->active_node);
        struct dispatch_demand demand;
        s->average = dispatch_average(s->route->dispatch, now);
        dispatch_demand(s->route->dispatch, &demand);
        if (!list_is_linked(&s->due_node))
            list_push_back(&c->due, &s->due_node);
        loads_add(c, s->route, &loads);
        if (demand.in_flight == 0 && demand.waiting == 0 && s->average <= 0 &&
            came_to_rest(s->route, demand.requests_total))
            continue;
        s->report_ns = now + REPORT_PERIOD_NS;
        list_push_back(&c->active, &s->active_node);
    }
    if (c->link != NULL && c->welcome && (!list_is_empty(&c->due) || loads.count > 0))
        send_reports(c, &loads);
    free(loads.items);
    garbage_collect(c);
    loop_timer_start(c->loop, timer, next);
}

/* ---- sandboxes ---- */

static void tell_drained(struct router *c, uint64_t sandbox_id)
{
    GROW(c->drained.items, c->drained.count, c->drained.capacity);
    c->drained.items[c->drained.count++] = sandbox_id;
    flush_later(c);
}

static void sandbox_forget(struct router *c, struct sandbox_state *s)
{
    struct route *r = s->route;
    (void)map_remove(&c->sandboxes, s->id);
    loop_timer_stop(c->loop, &s->readmit);
    if (dispatch_endpoint_remove(r->dispatch, s->id))
        state_of(r)->removed_left++;
    garbage_expect(r);
    change_add(c, (struct update_item){.kind = SANDBOX_GONE, .sandbox_id = s->id});
    flush_later(c);
    free(s);
}

struct idle_post {
    struct loop_post post;
    struct router *control;
    uint64_t sandbox_id;
};

static void on_idle_post(struct loop_post *post)
{
    struct idle_post *p = container_of(post, struct idle_post, post);
    struct router *c = p->control;
    struct sandbox_state *s = map_get(&c->sandboxes, p->sandbox_id);
    tell_drained(c, p->sandbox_id);
    if (s != NULL) {
        s->drained = true;
        if (s->forget_when_idle)
            sandbox_forget(c, s);
    }
    free(p);
}

/* Any thread. */
static void on_endpoint_idle(void *user, struct dispatch_endpoint *endpoint)
{
    struct route *r = user;
    struct idle_post *p = mem_new(sizeof(*p));
    *p = (struct idle_post){.post.on_post = on_idle_post,
                            .control = state_of(r)->control,
                            .sandbox_id = endpoint->sandbox_id};
    loop_post(r->control_loop, &p->post);
}

struct returned_post {
    struct loop_post post;
    struct router *control;
    const struct sandbox *sandbox; /* only compared */
    struct snapshot_slots returned;
};

/* One of which we hold nothing any more is another data plane's: its kept connections go too. */
static void on_returned_post(struct loop_post *post)
{
    struct returned_post *p = container_of(post, struct returned_post, post);
    struct router *c = p->control;
    struct sandbox_state *s = map_get(&c->sandboxes, p->returned.sandbox_id);
    if (s != NULL && s->sandbox == p->sandbox) { /* else it has gone, with all its slots */
        if (p->returned.slots == 0)
            s->slots = p->returned.left;         /* until then it had all */
        else if (s->slots != DISPATCH_SLOTS_ALL) /* else it has got all since */
            s->slots -= p->returned.slots;
        GROW(c->returned, c->returned_count, c->returned_capacity);
        c->returned[c->returned_count++] = p->returned;
        c->changed = true;
        flush_later(c);
        if (s->slots == 0)
            sandbox_forget(c, s);
    }
    free(p);
}

/* Any thread, in the order of the giving. */
static void on_endpoint_returned(void *user, struct dispatch_endpoint *endpoint, uint32_t slots,
                                 uint32_t left)
{
    struct route *r = user;
    struct returned_post *p = mem_new(sizeof(*p));
    *p = (struct returned_post){.post.on_post = on_returned_post,
                                .control = state_of(r)->control,
                                .sandbox = endpoint->user,
                                .returned = {endpoint->sandbox_id, slots, left}};
    loop_post(r->control_loop, &p->post);
}

static void sandbox_drain(struct router *c, uint64_t sandbox_id)
{
    struct sandbox_state *s = map_get(&c->sandboxes, sandbox_id);
    if (s == NULL || s->drained) {
        tell_drained(c, sandbox_id); /* nothing of it is in flight here */
        return;
    }
    change_add(c, (struct update_item){.kind = SANDBOX_DRAINS, .sandbox_id = sandbox_id});
    (void)dispatch_endpoint_drain(s->route->dispatch, sandbox_id);
    flush_later(c);
}

/* Takes no new request, and is forgotten when it has none left. */
static void sandbox_retire(struct router *c, uint64_t sandbox_id)
{
    struct sandbox_state *s = map_get(&c->sandboxes, sandbox_id);
    s->forget_when_idle = true;
    if (s->drained) { /* perhaps after our Hello, which said that it was not */
        tell_drained(c, sandbox_id);
        sandbox_forget(c, s);
    } else {
        sandbox_drain(c, sandbox_id);
    }
}

static void on_readmit(struct loop_timer *timer)
{
    struct sandbox_state *s = container_of(timer, struct sandbox_state, readmit);
    (void)dispatch_endpoint_admit(s->route->dispatch, s->id, s->control->thread,
                                  time_now(s->control));
}

static void on_endpoint_failed(struct thread_shared *shared, uint64_t sandbox_id,
                               const char *reason)
{
    struct router *c = shared->user;
    struct sandbox_state *s = map_get(&c->sandboxes, sandbox_id);
    if (s == NULL)
        return; /* gone already */
    loop_timer_start(c->loop, &s->readmit, time_now(c) + READMIT_NS);
    for (uint32_t i = 0; i < shared->thread_count; i++)
        thread_post_forget(shared->threads[i], sandbox_id); /* kept connections fail as well */
    if (reason == NULL)
        return;
    log_warn("endpoint.failed", LOG_U64("sandbox", sandbox_id), LOG_STR("function", s->route->name),
             LOG_STR("why", reason));
    GROW(c->failed, c->failed_count, c->failed_capacity);
    c->failed[c->failed_count].sandbox_id = sandbox_id;
    snprintf(c->failed[c->failed_count++].reason, sizeof(c->failed[0].reason), "%s", reason);
    flush_later(c);
}

static enum err sandbox_new(struct router *c, const Dirigent__Endpoint *m,
                            struct sandbox **ret_sandbox, struct error *e)
{
    struct sandbox *sandbox = mem_new(sizeof(*sandbox));
    enum err err = address_parse(m->address, &sandbox->address, &sandbox->address_bytes, e);
    if (err != ERR_OK) {
        free(sandbox);
        return err;
    }
    sandbox->id = m->sandbox_id;
    sandbox->added_ns = loop_update_now(c->loop); /* compared with the arrival of requests: exact */
    sandbox->place_us = m->place_us;
    sandbox->create_us = m->create_us;
    sandbox->exec_us = m->exec_us;
    sandbox->listen_us = m->listen_us;
    snprintf(sandbox->worker, sizeof(sandbox->worker), "%s", m->worker);
    *ret_sandbox = sandbox;
    return ERR_OK;
}

static bool sandbox_is_ending(const struct sandbox_state *s)
{
    const struct dispatch_endpoint *endpoint = dispatch_endpoint_find(s->route->dispatch, s->id);
    return endpoint == NULL || dispatch_endpoint_is_ending(endpoint);
}

static void sandbox_lease(struct router *c, struct sandbox_state *s, const Dirigent__Endpoint *m)
{
    uint32_t more = m->leased ? m->slots : DISPATCH_SLOTS_ALL;
    if (more == DISPATCH_SLOTS_ALL || s->slots == DISPATCH_SLOTS_ALL)
        s->slots = DISPATCH_SLOTS_ALL;
    else
        s->slots += more;
    if (more > 0)
        (void)dispatch_endpoint_lease(s->route->dispatch, s->id, more, c->thread, time_now(c));
}

static void endpoint_put(struct router *c, const Dirigent__Endpoint *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    struct sandbox_state *s = map_get(&c->sandboxes, m->sandbox_id);
    struct sandbox *sandbox;
    struct error e = {0};
    if (s != NULL)
        s->in_snapshot = true;
    if (s != NULL &&
        s->drained) { /* by a control plane that is no more; the new one has it in use */
        sandbox_forget(c, s);
    } else if (s != NULL) {
        if (sandbox_is_ending(s))
            s->forget_when_idle = true; /* once idle it is told so, and named again */
        else
            sandbox_lease(c, s, m);
        return;
    }
    if (m->leased && m->slots == 0)
        return; /* it was known when this was said; we have just given all of it back */
    if (r == NULL) {
        log_warn("endpoint.no_function", LOG_U64("sandbox", m->sandbox_id),
                 LOG_U64("function", m->function_id));
        return;
    }
    if (sandbox_new(c, m, &sandbox, &e) != ERR_OK) {
        log_error("endpoint.bad_address", LOG_U64("sandbox", m->sandbox_id),
                  LOG_STR("why", e.text));
        return;
    }
    s = mem_new(sizeof(*s));
    *s = (struct sandbox_state){.id = m->sandbox_id,
                                .control = c,
                                .route = r,
                                .sandbox = sandbox,
                                .slots = m->leased ? m->slots : DISPATCH_SLOTS_ALL,
                                .in_snapshot = true};
    loop_timer_init(&s->readmit, on_readmit);
    map_put(&c->sandboxes, s->id, s);
    garbage_expect(r); /* the list may have been outgrown */
    bool added =
        dispatch_endpoint_add(r->dispatch, s->id, s->slots, sandbox, c->thread, sandbox->added_ns);
    assert(added);
}

static void sandbox_remove(struct router *c, uint64_t sandbox_id)
{
    struct sandbox_state *s = map_get(&c->sandboxes, sandbox_id);
    if (s != NULL)
        sandbox_forget(c, s);
}

/* ---- functions ---- */

/* What it still has of garbage goes with it, in one update: collected on its own, that could be
 * freed after the route to which it belongs. */
static void on_route_gone(struct loop_post *post)
{
    struct route *r = container_of(post, struct route, gone_post);
    struct router *c = state_of(r)->control;
    struct after *after = mem_new(sizeof(*after));
    after->route = r; /* after the updates that may still free endpoints of it */
    changes_tell(
        c); /* one of this turn may be about its sandboxes: threads must have done with them */
    state_of(r)->going = true;
    list_remove(&state_of(r)->garbage_node);
    struct dispatch_garbage *g = dispatch_collect(r->dispatch);
    if (g != NULL) {
        GROW(after->garbage, after->garbage_count, after->garbage_capacity);
        after->garbage[after->garbage_count++] = g;
    }
    update_tell(c, NULL, 0, after);
}

static enum dispatch_policy policy_of(Dirigent__LoadBalancing lb)
{
    return (unsigned)lb < DISPATCH_POLICY_COUNT ? (enum dispatch_policy)lb : DISPATCH_LEAST_LOADED;
}

static struct route *route_new(struct router *c, const Dirigent__FunctionRoute *m)
{
    struct route *r = mem_new(sizeof(*r) + c->shared->thread_count * sizeof(r->stats[0]));
    struct route_state *s = mem_new(sizeof(*s));
    struct dispatch_options options = {.concurrency = m->concurrency,
                                       .queue_max = m->queue_max,
                                       .policy = policy_of(m->load_balancing),
                                       .threads = c->shared->thread_count + 1,
                                       .seed = clock_mono_ns(),
                                       .on_idle = on_endpoint_idle,
                                       .on_returned = on_endpoint_returned,
                                       .on_free = on_endpoint_free,
                                       .user = r};
    s->control = c;
    s->route = r;
    r->id = m->function_id;
    snprintf(r->name, sizeof(r->name), "%s", m->name);
    r->control = s;
    r->control_loop = c->loop;
    r->threads_left = c->shared->thread_count;
    r->demand_post.on_post = on_demand_post;
    r->active_post.on_post = on_active_post;
    r->gone_post.on_post = on_route_gone;
    r->dispatch = dispatch_new(&options);
    return r;
}

static void route_settings(struct route *r, const Dirigent__FunctionRoute *m)
{
    atomic_store(&r->timeout_ns, (m->timeout_ms > 0 ? m->timeout_ms : 60000u) * NS_PER_MS);
    atomic_store(&r->request_body_bytes_max, m->request_body_bytes_max > 0
                                                 ? m->request_body_bytes_max
                                                 : REQUEST_BODY_BYTES_DEFAULT);
    atomic_store(&r->concurrency, m->concurrency);
    state_of(r)->queue_max = m->queue_max;
    state_of(r)->load_balancing = m->load_balancing;
}

static void route_put(struct router *c, const Dirigent__FunctionRoute *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    if (r != NULL) {
        route_settings(r, m);
        dispatch_configure(r->dispatch, m->concurrency, m->queue_max, policy_of(m->load_balancing),
                           c->thread, time_now(c));
        state_of(r)->in_snapshot = true;
        return;
    }
    if (m->name[0] == '\0' || strlen(m->name) > FUNCTION_NAME_BYTES_MAX) {
        log_error("function.bad_name", LOG_STR("name", m->name));
        return;
    }
    r = route_new(c, m);
    route_settings(r, m);
    state_of(r)->in_snapshot = true;
    map_put(&c->routes, r->id, r);
    change_add(c, (struct update_item){.kind = ROUTE_ADD, .route = r});
}

/* Waiting requests are answered, those in flight go on with the sandboxes they have. The last slot
 * given back is told (on_endpoint_idle) before the last thread lets the route go: its sandboxes are
 * forgotten before it is freed. */
static void route_remove(struct router *c, struct route *r)
{
    char text[128];
    size_t cursor = 0, count = 0;
    struct sandbox_state *s;
    snprintf(text, sizeof(text), "function '%s' was deleted while the request waited", r->name);
    struct failure *f = failure_new(answer_status(ANSWER_function_deleted),
                                    answer_code(ANSWER_function_deleted), text, STR_NONE, 0);
    (void)map_remove(&c->routes, r->id);
    (void)dispatch_close(r->dispatch, ERR_NOT_FOUND, f);
    failure_drop(f);
    uint64_t *ids = mem_new_array(c->sandboxes.count + 1, sizeof(*ids));
    while ((s = map_next(&c->sandboxes, &cursor)) != NULL)
        if (s->route == r)
            ids[count++] = s->id;
    for (size_t i = 0; i < count; i++)
        sandbox_retire(c, ids[i]);
    free(ids);
    change_add(c, (struct update_item){.kind = ROUTE_REMOVE, .route = r});
}

static void fail_waiting(struct router *c, const Dirigent__FailWaiting *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    if (r == NULL)
        return;
    struct failure *f = failure_new(
        m->status >= 400 && m->status <= 599 ? m->status : answer_status(ANSWER_waiting_failed),
        m->code[0] != '\0' ? m->code : answer_code(ANSWER_waiting_failed),
        m->message[0] != '\0' ? m->message : answer_message(ANSWER_waiting_failed),
        (struct str){(const char *)m->last_output.data, m->last_output.len}, m->retry_after_s);
    size_t count = dispatch_fail_waiting(r->dispatch, ERR_FAILED, f);
    failure_drop(f);
    log_debug("function.fail_waiting", LOG_STR("function", r->name), LOG_STR("code", m->code),
              LOG_U64("requests", count));
    demand_due(r); /* at once: whoever waits from now on is told in a new report */
}

/* ---- snapshots ---- */

static void snapshot_begin(struct router *c)
{
    size_t cursor = 0;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
        state_of(r)->in_snapshot = false;
    cursor = 0;
    for (struct sandbox_state *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        s->in_snapshot = false;
}

static void forget_routes(struct router *c)
{
    size_t cursor = 0, count = 0;
    struct route **gone = mem_new_array(c->routes.count + 1, sizeof(struct route *));
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
        if (!state_of(r)->in_snapshot)
            gone[count++] = r;
    for (size_t i = 0; i < count; i++)
        route_remove(c, gone[i]);
    free(gone);
}

/* A sandbox that is not named takes no new request, but what it has may end: it may only be
 * draining. When it is dead its connections say so. */
static void forget_sandboxes(struct router *c)
{
    size_t cursor = 0, count = 0;
    uint64_t *ids = mem_new_array(c->sandboxes.count + 1, sizeof(*ids));
    for (struct sandbox_state *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        if (!s->in_snapshot)
            ids[count++] = s->id;
    for (size_t i = 0; i < count; i++)
        sandbox_retire(c, ids[i]);
    free(ids);
}

/* ---- from the control plane ---- */

static void slots_wanted(struct router *c, const Dirigent__SlotsWanted *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    if (r != NULL && dispatch_owe(r->dispatch, m->slots, m->idle) > 0)
        demand_due(r); /* it may do better elsewhere */
}

/* Whether all of a snapshot is there, with this message. */
static bool snapshot_ends(struct router *c, const Dirigent__FromControlPlane *m)
{
    if (m->snapshot)
        snapshot_begin(c);
    c->snapshot_awaited |= m->snapshot;
    bool ends = c->snapshot_awaited && !m->snapshot_more;
    c->snapshot_awaited &= !ends;
    return ends;
}

/* True: the last of a snapshot. */
static bool take_orders(struct router *c, const Dirigent__FromControlPlane *m)
{
    c->changed |= m->snapshot || m->n_routes + m->n_removed_functions + m->n_endpoints +
                                         m->n_drain_sandboxes + m->n_remove_sandboxes >
                                     0;
    bool ends = snapshot_ends(c, m);
    for (size_t i = 0; i < m->n_routes; i++)
        route_put(c, m->routes[i]);
    if (ends)
        forget_routes(c);
    for (size_t i = 0; i < m->n_removed_functions; i++) {
        struct route *r = map_get(&c->routes, m->removed_functions[i]);
        if (r != NULL)
            route_remove(c, r);
    }
    for (size_t i = 0; i < m->n_slots_wanted; i++)
        slots_wanted(c, m->slots_wanted[i]);
    for (size_t i = 0; i < m->n_endpoints; i++)
        endpoint_put(c, m->endpoints[i]);
    if (ends)
        forget_sandboxes(c);
    for (size_t i = 0; i < m->n_drain_sandboxes; i++)
        sandbox_drain(c, m->drain_sandboxes[i]);
    for (size_t i = 0; i < m->n_remove_sandboxes; i++)
        sandbox_remove(c, m->remove_sandboxes[i]);
    for (size_t i = 0; i < m->n_fail_waiting; i++)
        fail_waiting(c, m->fail_waiting[i]);
    for (size_t i = 0; i < m->n_want_demand; i++) {
        struct route *r = map_get(&c->routes, m->want_demand[i]);
        if (r != NULL)
            demand_due(r);
    }
    flush_later(c);
    return ends;
}

/* ---- the snapshot on the disk ---- */

static size_t keep_routes(struct router *c, Dirigent__FunctionRoute *items)
{
    size_t cursor = 0, count = 0;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;) {
        Dirigent__FunctionRoute *m = &items[count++];
        *m = (Dirigent__FunctionRoute)DIRIGENT__FUNCTION_ROUTE__INIT;
        m->function_id = r->id;
        m->name = r->name;
        m->concurrency = atomic_load(&r->concurrency);
        m->load_balancing = (Dirigent__LoadBalancing)state_of(r)->load_balancing;
        m->timeout_ms = (uint32_t)(atomic_load(&r->timeout_ns) / NS_PER_MS);
        m->queue_max = state_of(r)->queue_max;
        m->request_body_bytes_max = atomic_load(&r->request_body_bytes_max);
    }
    return count;
}

struct kept_endpoint {
    Dirigent__Endpoint m;
    char address[64];
};

/* Those that take new requests. */
static size_t keep_endpoints(struct router *c, struct kept_endpoint *items)
{
    size_t cursor = 0, count = 0;
    for (struct sandbox_state *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;) {
        const struct dispatch_endpoint *endpoint =
            dispatch_endpoint_find(s->route->dispatch, s->id);
        if (endpoint == NULL || s->drained || s->forget_when_idle || s->slots == 0 ||
            dispatch_endpoint_is_ending(endpoint))
            continue;
        struct sandbox *sandbox = endpoint->user;
        struct kept_endpoint *k = &items[count++];
        address_format((const struct sockaddr *)&sandbox->address, k->address, sizeof(k->address));
        k->m = (Dirigent__Endpoint)DIRIGENT__ENDPOINT__INIT;
        k->m.sandbox_id = s->id;
        k->m.function_id = s->route->id;
        k->m.address = k->address;
        k->m.worker = sandbox->worker;
        k->m.leased = s->slots != DISPATCH_SLOTS_ALL;
        k->m.slots = k->m.leased ? s->slots : 0;
    }
    return count;
}

static void keep_packed(struct router *c, const Dirigent__FromControlPlane *m)
{
    struct error e = {0};
    size_t bytes = protobuf_c_message_get_packed_size(&m->base);
    uint8_t *packed = mem_new(bytes + 1);
    (void)protobuf_c_message_pack(&m->base, packed);
    enum err err = snapshot_write(c->options.data_path, (struct str){(char *)packed, bytes}, &e);
    free(packed);
    if (err != ERR_OK && !c->said_unwritten)
        log_warn("snapshot.not_written",
                 LOG_STR("why", e.text)); /* it serves on; only a start alone would know less */
    c->said_unwritten = err != ERR_OK;
}

static void keep(struct router *c)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    uint64_t begin_ns = clock_mono_ns();
    Dirigent__FunctionRoute *routes = mem_new_array(c->routes.count + 1, sizeof(*routes));
    struct kept_endpoint *endpoints = mem_new_array(c->sandboxes.count + 1, sizeof(*endpoints));
    m.snapshot = true;
    m.n_routes = keep_routes(c, routes);
    m.routes = pointers_to(routes, m.n_routes, sizeof(*routes));
    m.n_endpoints = keep_endpoints(c, endpoints);
    m.endpoints = pointers_to(endpoints, m.n_endpoints, sizeof(*endpoints));
    keep_packed(c, &m);
    free(m.routes);
    free(m.endpoints);
    free(routes);
    free(endpoints);
    c->changed = false;
    c->snapshot_next_ns = time_now(c) + KEEP_SHARE * (clock_mono_ns() - begin_ns);
}

static void notes_apply(struct router *c, Dirigent__FromControlPlane *m)
{
    size_t count;
    struct map left = {0}; /* sandbox id -> 1 + the smallest that was left */
    struct snapshot_slots *notes = snapshot_noted(c->options.data_path, &count);
    for (size_t i = 0; i < count; i++) {
        uintptr_t known = (uintptr_t)map_get(&left, notes[i].sandbox_id);
        if (known == 0 || known > (uintptr_t)notes[i].left + 1)
            map_put(&left, notes[i].sandbox_id, (void *)((uintptr_t)notes[i].left + 1));
    }
    for (size_t i = 0; i < m->n_endpoints; i++) {
        Dirigent__Endpoint *endpoint = m->endpoints[i];
        uintptr_t known = (uintptr_t)map_get(&left, endpoint->sandbox_id);
        if (known == 0)
            continue;
        endpoint->slots =
            (uint32_t)(endpoint->leased ? MIN(known - 1, endpoint->slots) : known - 1);
        endpoint->leased = true;
    }
    map_done(&left);
    free(notes);
}

/* Serves what was known, until a control plane says what is so now. */
static void snapshot_take(struct router *c)
{
    cleanup(buf_done) struct buf packed = {0};
    struct error e = {0};
    enum err err = snapshot_read(c->options.data_path, clock_real_ms(), &packed, &e);
    if (err == ERR_NOT_FOUND)
        return;
    Dirigent__FromControlPlane *m =
        err == ERR_OK
            ? dirigent__from_control_plane__unpack(NULL, packed.bytes, (uint8_t *)packed.data)
            : NULL;
    if (m == NULL) {
        log_warn("snapshot.refused",
                 LOG_STR("why", err == ERR_OK ? "it is no message of the protocol" : e.text));
        return;
    }
    log_warn("snapshot.taken", LOG_STR("why", "no control plane is reached"),
             LOG_U64("functions", m->n_routes), LOG_U64("sandboxes", m->n_endpoints));
    notes_apply(c, m);
    if (take_orders(c, m))
        atomic_store(&c->shared->ready, true);
    dirigent__from_control_plane__free_unpacked(m, NULL);
}

static void serve(struct router *c)
{
    if (c->serves)
        return;
    c->serves = true;
    changes_tell(c); /* before the threads begin */
    c->options.on_serve(c->options.user);
}

/* The first time: has no control plane come by now? */
static void on_keep(struct loop_timer *timer)
{
    struct router *c = container_of(timer, struct router, keep);
    if (!atomic_load(&c->shared->ready) && !c->welcome)
        snapshot_take(c);
    else if (c->changed && time_now(c) >= c->snapshot_next_ns)
        keep(c);
    else
        snapshot_touch(c->options.data_path);
    serve(c);
    loop_timer_start(c->loop, timer, time_now(c) + SNAPSHOT_TOUCH_MS * NS_PER_MS);
}

/* A control plane that was away, or is a new one, knows nothing of what is going on here. */
static void tell_everything(struct router *c)
{
    list_for_each(s, &c->active, struct route_state, active_node) demand_due(s->route);
    size_t cursor = 0;
    for (struct sandbox_state *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        s->reported_in_flight = 0;
}

static void take_welcome(struct router *c, struct link *link, const Dirigent__Welcome *w)
{
    if (w->refused[0] != '\0') {
        log_error("control_plane.refused", LOG_STR("why", w->refused));
        return; /* it closes */
    }
    c->welcome = true;
    c->said_unreachable = false;
    link_set_timers(link, w->heartbeat_ms, w->dead_after_ms);
    atomic_store(&c->shared->control_plane_up, true);
    log_info("control_plane.joined", LOG_STR("name", c->options.name),
             LOG_U64("epoch", replicas_epoch(c->replicas)));
}

static void on_message(void *user, struct link *link, const Dirigent__FromControlPlane *m)
{
    struct router *c = user;
    if (c->threads_stopped == c->shared->thread_count)
        return; /* nobody is left to do anything */
    if (c->drained.count > 0 && c->link != NULL && c->welcome)
        send_reports(c, NULL); /* it is no answer to what comes now */
    c->taken = m->sequence;
    if (m->welcome != NULL)
        take_welcome(c, link, m->welcome);
    if (!c->welcome)
        return;
    c->sync = MAX(c->sync, m->sync);
    if (take_orders(c, m)) {
        atomic_store(&c->shared->ready, true);
        tell_everything(c);
        serve(c);
    }
}

static void on_lost(void *user, const char *why)
{
    struct router *c = user;
    if (c->welcome && !c->stopping)
        log_warn("control_plane.lost", LOG_STR("why", why));
    c->link = NULL;
    c->welcome = c->snapshot_awaited = false;
    atomic_store(&c->shared->control_plane_up, false);
}

static void on_dial_failed(void *user, const char *address, const char *why)
{
    struct router *c = user;
    if (c->said_unreachable || c->welcome)
        return; /* once; `joined` ends it */
    c->said_unreachable = true;
    log_warn("control_plane.unreachable", LOG_STR("address", address), LOG_STR("why", why));
}

static void on_name(void *user, Dirigent__Hello *hello)
{
    const struct router *c = user;
    hello->cluster = (char *)c->options.cluster_name;
    hello->role = DIRIGENT__ROLE__ROLE_DATA_PLANE;
    hello->name = (char *)c->options.name;
    hello->software = (char *)"dirigent " DIRIGENT_VERSION;
    hello->listen_address = (char *)c->options.listen_address;
}

struct known_sandboxes {
    uint64_t *ids;
    uint32_t *slots;
    protobuf_c_boolean *ending;
};

/* What we hold, and of those that end what we still have there. Nothing is owed to anybody else. */
static void known_collect(struct router *c, struct known_sandboxes *known, Dirigent__Hello *hello)
{
    size_t cursor = 0, count = 0, room = c->sandboxes.count + 1;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
        (void)dispatch_owe(r->dispatch, 0, 0);
    *known = (struct known_sandboxes){mem_new_array(room, sizeof(*known->ids)),
                                      mem_new_array(room, sizeof(*known->slots)),
                                      mem_new_array(room, sizeof(*known->ending))};
    cursor = 0;
    for (struct sandbox_state *s; (s = map_next(&c->sandboxes, &cursor)) != NULL; count++) {
        const struct dispatch_endpoint *endpoint =
            dispatch_endpoint_find(s->route->dispatch, s->id);
        known->ids[count] = s->id;
        known->ending[count] = sandbox_is_ending(s);
        known->slots[count] = !known->ending[count] ? s->slots
                              : endpoint != NULL    ? dispatch_endpoint_in_flight(endpoint)
                                                    : 0;
    }
    hello->n_known_sandbox_ids = hello->n_known_slots = hello->n_known_ending = count;
    hello->known_sandbox_ids = known->ids;
    hello->known_slots = known->slots;
    hello->known_ending = known->ending;
    hello->leases = true;
}

static void known_done(struct known_sandboxes *known)
{
    free(known->ids);
    free(known->slots);
    free(known->ending);
}

static void on_hello(void *user, struct link *link)
{
    struct router *c = user;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    struct known_sandboxes known;
    known_collect(c, &known, &hello);
    returned_forget(c);
    c->link = link;
    c->sequence = 1;
    c->taken = 0;
    hello.protocol_min = protocol_version_min();
    hello.protocol_max = protocol_version_max();
    on_name(c, &hello);
    m.hello = &hello;
    m.sequence = c->sequence;
    link_send(link, &m.base);
    known_done(&known);
}

/* ---- life ---- */

static void on_thread_stopped(struct thread_shared *shared)
{
    struct router *c = shared->user;
    if (++c->threads_stopped < shared->thread_count)
        return;
    loop_timer_stop(c->loop, &c->report);
    loop_timer_stop(c->loop, &c->keep);
    snapshot_remove(
        c->options
            .data_path); /* it stops on purpose: whoever starts it again asks the control plane */
    if (c->link != NULL && c->welcome) {
        Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
        m.goodbye = true;
        m.sequence = ++c->sequence;
        link_send(c->link, &m.base);
    }
    c->options.on_stopped(c->options.user);
}

enum err router_new(const struct router_options *options, struct router **ret_router,
                    struct error *e)
{
    static const struct replicas_callbacks callbacks = {.on_hello = on_hello,
                                                        .on_name = on_name,
                                                        .on_message = on_message,
                                                        .on_lost = on_lost,
                                                        .on_failed = on_dial_failed};
    struct router *c = mem_new(sizeof(*c));
    c->options = *options;
    c->shared = options->shared;
    c->loop = options->shared->control_loop;
    c->thread = options->shared->thread_count;
    list_init(&c->active);
    list_init(&c->garbage);
    list_init(&c->due);
    c->flush.on_turn_end = on_flush;
    loop_timer_init(&c->report, on_report);
    loop_timer_init(&c->keep, on_keep);
    enum err err = replicas_new(c->loop, credentials_addresses(options->credentials),
                                options->credentials, &callbacks, c, &c->replicas, e);
    if (err != ERR_OK) {
        free(c);
        return err;
    }
    c->shared->user = c;
    c->shared->on_endpoint_failed = on_endpoint_failed;
    c->shared->on_thread_stopped = on_thread_stopped;
    loop_timer_start(c->loop, &c->report, time_now(c) + REPORT_PERIOD_NS);
    loop_timer_start(c->loop, &c->keep, loop_update_now(c->loop) + ALONE_NS);
    *ret_router = c;
    return ERR_OK;
}

void router_stop(struct router *c, uint64_t deadline_ns)
{
    c->stopping = true;
    serve(c); /* threads that have not begun could not end */
    for (uint32_t i = 0; i < c->shared->thread_count; i++)
        thread_stop(c->shared->threads[i], deadline_ns);
}

void router_free(struct router *c)
{
    if (c == NULL)
        return;
    size_t cursor = 0;
    loop_timer_stop(c->loop, &c->report);
    loop_timer_stop(c->loop, &c->keep);
    loop_defer_cancel(&c->flush);
    for (struct sandbox_state *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;) {
        loop_timer_stop(c->loop, &s->readmit);
        free(s);
    }
    cursor = 0;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
        route_free(r);
    replicas_free(c->replicas);
    loop_run_once(c->loop, 0); /* the goodbye leaves, the link closes */
    map_done(&c->sandboxes);
    map_done(&c->routes);
    free(c->drained.items);
    free(c->failed);
    free(c->returned);
    free(c->changes);
    free(c);
}
