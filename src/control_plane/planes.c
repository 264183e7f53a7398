/* planes.c - data planes: what they are told when they come, the demand they report, and their word
 * that a sandbox is drained. */
#include "control_plane/core_state.h"
#include <stdlib.h>

/* ---- known data planes ---- */

struct data_plane *plane_find(struct control *c, uint64_t id)
{
    for (unsigned i = 0; i < DATA_PLANES_MAX; i++)
        if (c->data_planes[i].used && c->data_planes[i].id == id)
            return &c->data_planes[i];
    return NULL;
}

unsigned plane_index(const struct control *c, const struct data_plane *p)
{
    return (unsigned)(p - c->data_planes);
}

uint64_t plane_bit(const struct control *c, const struct data_plane *p)
{
    return UINT64_C(1) << plane_index(c, p);
}

/* A place never used, else of one that is away, else of one that is awaited. */
static struct data_plane *place_choose(struct control *c)
{
    struct data_plane *best = NULL;
    for (unsigned i = DATA_PLANES_MAX; i-- > 0;) {
        struct data_plane *p = &c->data_planes[i];
        if (!p->used)
            best = p;
        else if (!p->alive && (best == NULL || (best->used && best->awaited)))
            best = p;
    }
    return best;
}

static void awaited_end(struct control *c, struct data_plane *p)
{
    if (!p->awaited)
        return;
    p->awaited = false;
    c->awaited_planes--;
    c->awaited_less = true;
}

static struct data_plane *plane_get(struct control *c, uint64_t id)
{
    struct data_plane *p = plane_find(c, id);
    if (p != NULL)
        return p;
    p = place_choose(c);
    if (p == NULL)
        return NULL; /* the shell refuses more than the limit */
    awaited_end(c, p);
    if (p->used)
        plane_end(c, p);
    map_done(&p->loads);
    map_done(&p->leases_held);
    *p = (struct data_plane){
        .used = true, .id = id, .due = {.heap_index = SIZE_MAX, .kind = DUE_PLANE}};
    return p;
}

void plane_known(struct control *c, uint64_t id)
{
    struct data_plane *p = plane_find(c, id);
    bool has_place = p != NULL || !c->data_planes[DATA_PLANES_MAX - 1].used;
    if (has_place)
        p = plane_get(c, id);
    if (p == NULL || p->alive || p->awaited)
        return;
    p->awaited = true;
    c->awaited_planes++;
}

void plane_removed(struct control *c, uint64_t id)
{
    struct data_plane *p = plane_find(c, id);
    if (p == NULL)
        return;
    plane_closed(c, id, false);
    awaited_end(c, p);
    plane_end(c, p);
    map_done(&p->loads);
    map_done(&p->leases_held);
    *p = (struct data_plane){.due = {.heap_index = SIZE_MAX, .kind = DUE_PLANE}};
}

/* ---- snapshots ---- */

/* All routes and endpoints. */
static void everything_tell(struct control *c, struct data_plane *p)
{
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;) {
        if (f->deleted)
            continue;
        function_route_tell(c, f, p->id);
        uint32_t serving = function_serving(f)->number;
        list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
        {
            if (s->state == SANDBOX_READY && s->version == serving)
                leases_restate(c, s, p);
        }
        function_touch(c, f);
    }
}

static void snapshot_tell(struct control *c, struct data_plane *p)
{
    p->snapshot_owed = false;
    (void)core_order(c, ORDER_SNAPSHOT_BEGIN, p->id);
    everything_tell(c, p);
    (void)core_order(c, ORDER_SNAPSHOT_END, p->id);
    leases_retire_unnamed(c, p);
}

/* Workers have not spoken yet: it may know more sandboxes than we do, and must not lose them. */
static void additions_tell(struct control *c, struct data_plane *p)
{
    p->snapshot_owed = true;
    everything_tell(c, p);
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;) {
        if (f->deleted)
            continue;
        struct control_order *o = core_order(c, ORDER_WANT_DEMAND, p->id);
        o->function_id = f->id;
    }
}

void planes_snapshots_owed(struct control *c)
{
    for (unsigned i = 0; i < DATA_PLANES_MAX; i++)
        if (c->data_planes[i].alive && c->data_planes[i].snapshot_owed)
            snapshot_tell(c, &c->data_planes[i]);
}

/* ---- come and go ---- */

/* What it knows and we are draining: it may have requests there. And what it said that it ends: that
 * may be over since, and was told to nobody, as we were not connected yet. */
static void draining_tell(struct control *c, struct data_plane *p, const struct control_event *e)
{
    for (size_t i = 0; i < e->data_plane.known_count; i++) {
        uint64_t sandbox_id = e->data_plane.known[i].sandbox_id;
        struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
        bool drains = s != NULL && s->state == SANDBOX_DRAINING;
        if (drains)
            s->undrained |= plane_bit(c, p);
        if (!drains && !leases_is_retired(p, sandbox_id))
            continue;
        struct control_order *o = core_order(c, ORDER_DRAIN, p->id);
        o->function_id = s != NULL ? s->function->id : 0;
        o->sandbox_id = sandbox_id;
    }
}

/* Sandboxes that drain wait for its word no more; those for which `known` says so, do again. */
static void words_awaited(struct control *c, struct data_plane *p,
                          const struct control_event *known)
{
    size_t cursor = 0;
    for (struct core_sandbox *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        s->undrained &= ~plane_bit(c, p);
    if (known != NULL)
        draining_tell(c, p, known);
    cursor = 0;
    for (struct core_sandbox *s; (s = map_next(&c->sandboxes, &cursor)) != NULL;)
        sandbox_stop_when_drained(c, s);
}

static void absence_end(struct control *c, struct data_plane *p)
{
    due_at(c, &p->due, UINT64_MAX);
    c->away_mask &= ~plane_bit(c, p);
}

void plane_up(struct control *c, const struct control_event *e)
{
    plane_closed(c, e->data_plane.data_plane_id, false); /* a new connection replaces the old */
    struct data_plane *p = plane_get(c, e->data_plane.data_plane_id);
    if (p == NULL)
        return;
    p->alive = true;
    p->heard_ms = c->now_ms;
    c->alive_mask |= plane_bit(c, p);
    absence_end(c, p);
    leases_hello(c, p, e);
    if (core_awaits_workers(c) && e->data_plane.known_count > 0)
        additions_tell(c, p);
    else
        snapshot_tell(c, p);
    words_awaited(c, p, e); /* what it does not know any more has no request of it */
    awaited_end(c, p);
}

static void demand_forget(struct control *c, unsigned index)
{
    static const struct demand none;
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;)
        if (f->demand_mask & UINT64_C(1) << index)
            scale_demand(c, f, index, &none);
}

static void load_set(struct control *c, struct data_plane *p, uint64_t sandbox_id, uint32_t load)
{
    struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    if (s == NULL)
        return;
    s->in_flight += load - (uint32_t)(uintptr_t)map_get(&p->loads, sandbox_id);
    if (load > 0)
        map_put(&p->loads, sandbox_id, (void *)(uintptr_t)load);
    else
        (void)map_remove(&p->loads, sandbox_id);
}

static void loads_forget(struct control *c, struct data_plane *p)
{
    for (size_t i = 0; i < p->loads.capacity; i++) {
        const struct map_entry *entry = &p->loads.entries[i];
        struct core_sandbox *s = entry->value != NULL ? map_get(&c->sandboxes, entry->key) : NULL;
        if (s != NULL)
            s->in_flight -= (uint32_t)(uintptr_t)entry->value;
    }
    map_done(&p->loads);
}

void planes_forget_sandbox(struct control *c, const struct core_sandbox *s)
{
    for (unsigned i = 0; s->in_flight > 0 && i < DATA_PLANES_MAX; i++)
        (void)map_remove(&c->data_planes[i].loads, s->id);
}

/* What it had in flight is lost with it. */
void plane_end(struct control *c, struct data_plane *p)
{
    leases_plane_end(c, p);
    absence_end(c, p);
    words_awaited(c, p, NULL);
}

/* A connection that broke takes no request away: for a while it may come back and say what it has.
 */
void plane_closed(struct control *c, uint64_t id, bool silent)
{
    struct data_plane *p = plane_find(c, id);
    if (p == NULL || !p->alive)
        return;
    p->alive = p->snapshot_owed = false;
    c->alive_mask &= ~plane_bit(c, p);
    demand_forget(c, plane_index(c, p));
    loads_forget(c, p);
    c->away_mask |= plane_bit(c, p);
    if (silent)
        plane_end(c, p); /* no connection that only broke */
    else
        due_at(c, &p->due, c->now_ms + MIN(c->options.reconnect_grace_ms, PLANE_GRACE_MS));
}

/* ---- what they say ---- */

void plane_demand(struct control *c, const struct control_event *e)
{
    struct core_function *f = map_get(&c->functions, e->demand.function_id);
    const struct data_plane *p = plane_find(c, e->demand.data_plane_id);
    if (f == NULL || f->deleted || p == NULL || !p->alive)
        return;
    struct demand d = {e->demand.in_flight, e->demand.waiting, e->demand.in_flight_ending,
                       e->demand.in_flight_average};
    f->asked = true;
    f->told = false;
    leases_told(c, f, plane_index(c, p));
    scale_demand(c, f, plane_index(c, p), &d);
}

void plane_returned(struct control *c, const struct control_event *e)
{
    struct data_plane *p = plane_find(c, e->returned.data_plane_id);
    if (p != NULL && p->alive)
        leases_returned(c, p, e);
}

void plane_loads(struct control *c, const struct control_event *e)
{
    struct data_plane *p = plane_find(c, e->loads.data_plane_id);
    if (p == NULL || !p->alive)
        return;
    for (size_t i = 0; i < e->loads.count; i++)
        load_set(c, p, e->loads.items[i].sandbox_id, e->loads.items[i].in_flight);
}

void plane_drained(struct control *c, uint64_t data_plane_id, uint64_t sandbox_id)
{
    struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    struct data_plane *p = plane_find(c, data_plane_id);
    if (p == NULL || !p->alive)
        return;
    leases_drained(c, p, sandbox_id);
    if (s == NULL) { /* of a worker that was given up: this ended what could not be cut before */
        core_order(c, ORDER_ENDPOINT_GONE, p->id)->sandbox_id = sandbox_id;
        return;
    }
    s->undrained &= ~plane_bit(c, p);
    sandbox_stop_when_drained(c, s);
}

void plane_endpoint_failed(struct control *c, uint64_t sandbox_id)
{
    struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    if (s == NULL || s->state != SANDBOX_READY)
        return;
    if (c->now_ms - s->ready_at_ms < PROVEN_AFTER_MS)
        scale_back_off(c, s->function); /* or one that refuses would be replaced without end */
    sandbox_drain(c, s); /* it listens and yet cannot be reached: another takes its place */
}
