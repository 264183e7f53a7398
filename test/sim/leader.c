/* leader.c - the control plane around its core: hellos and reports into events, orders into frames
 * (as src/control_plane/links.c does). */
#include "sim.h"
#include <stdio.h>
#include <stdlib.h>

static void orders_carry_out(struct sim *s);
static void order_trace(const struct sim *s, const struct control_order *o);

/* Worker and data plane ids are peer + 1. */
static uint64_t id_of(uint32_t peer)
{
    return peer + 1;
}

/* ---- the core ---- */

static void on_tick(struct sim *s, const struct event *e)
{
    struct control_event tick = {.kind = EVENT_TICK};
    if (s->core_tick_ms != e->at_ms || s->epoch != e->a)
        return;
    s->core_tick_ms = UINT64_MAX;
    if (s->core != NULL)
        leader_event(s, &tick);
}

static void tick_plan(struct sim *s)
{
    uint64_t due = control_next_due_ms(s->core);
    if (due == UINT64_MAX)
        return;
    due = MAX(due, s->now_ms + 1);
    if (s->core_tick_ms <= due && s->core_tick_ms > s->now_ms)
        return;
    s->core_tick_ms = due;
    clock_at(s, due, on_tick, s->epoch, 0);
}

void leader_event(struct sim *s, const struct control_event *e)
{
    note_dead(s);
    s->orders.count = 0;
    control_step(s->core, e, s->now_ms, &s->orders);
    s->steps++;
    for (size_t i = 0; i < s->orders.count; i++)
        order_trace(s, &s->orders.items[i]);
    check_orders(s, &s->orders);
    orders_carry_out(s);
    tick_plan(s);
}

/* ---- life ---- */

void leader_start(struct sim *s)
{
    struct control_options options = {.seed = sim_below(s, UINT32_MAX),
                                      .epoch = ++s->epoch,
                                      .peer_dead_after_ms = PEER_DEAD_AFTER_MS,
                                      .reconnect_grace_ms = RECONNECT_GRACE_MS,
                                      .reconstruction_ms = RECONSTRUCTION_MS};
    if (s->core != NULL)
        return;
    sim_trace(s, "control plane of epoch %llu starts", (unsigned long long)s->epoch);
    s->core = control_new(&options);
    s->core_started_ms = s->core_quiet_since_ms = s->now_ms;
    s->core_tick_ms = UINT64_MAX;
    for (uint32_t peer = 0; peer < PEERS; peer++) {
        bool is_worker = peer < WORKERS;
        struct control_event e = {.kind = is_worker ? EVENT_WORKER_KNOWN : EVENT_DATA_PLANE_KNOWN};
        if (s->links[peer].newest == 0)
            continue; /* it has never been here */
        if (is_worker) {
            e.worker.worker_id = id_of(peer);
            e.worker.name = "w";
        } else {
            e.data_plane.data_plane_id = id_of(peer);
        }
        leader_event(s, &e);
    }
    store_tell_core(s);
}

void leader_crash(struct sim *s)
{
    if (s->core == NULL)
        return;
    sim_trace(s, "the control plane dies");
    control_free(s->core);
    s->core = NULL;
    network_core_ends(s);
    store_interrupted(s);
}

/* ---- what peers say ---- */

static void worker_hello_take(struct sim *s, const struct frame *f)
{
    struct control_event e = {.kind = EVENT_WORKER_UP};
    struct sandbox_report *reports = mem_new_array(f->count + 1, sizeof(*reports));
    for (size_t i = 0; i < f->count; i++)
        reports[i] = (struct sandbox_report){.sandbox_id = f->items[i].sandbox_id,
                                             .function_id = f->items[i].function_id,
                                             .version = f->items[i].version,
                                             .state = f->items[i].state};
    e.worker.worker_id = id_of(f->peer);
    e.worker.name = "w";
    e.worker.cpu_milli = s->worker_cpu_milli;
    e.worker.memory_bytes = s->worker_cpu_milli * MIB;
    e.worker.slots = s->worker_slots;
    e.worker.sandboxes = reports;
    e.worker.sandbox_count = f->count;
    leader_event(s, &e);
    free(reports);
}

static void plane_hello_take(struct sim *s, const struct frame *f)
{
    struct control_event e = {.kind = EVENT_DATA_PLANE_UP};
    struct known_sandbox *known = mem_new_array(f->count + 1, sizeof(*known));
    for (size_t i = 0; i < f->count; i++)
        known[i] = (struct known_sandbox){f->items[i].sandbox_id, f->items[i].slots,
                                          f->items[i].is_ending};
    e.data_plane.data_plane_id = id_of(f->peer);
    e.data_plane.leases = true;
    e.data_plane.known = known;
    e.data_plane.known_count = f->count;
    leader_event(s, &e);
    free(known);
}

/* A new connection of a peer replaces its old one. */
static void hello_take(struct sim *s, const struct frame *f)
{
    struct link *l = &s->links[f->peer];
    if (l->core_end != 0) {
        network_frame_free(l->outbox[TO_PEER]);
        l->outbox[TO_PEER] = NULL;
        leader_peer_closed(s, f->peer);
    }
    sim_trace(s, "peer %u says hello, with %zu sandboxes", f->peer, f->count);
    s->core_quiet_since_ms = s->now_ms;
    l->core_end = f->connection;
    l->heard_ms = s->now_ms;
    l->last_due_ms[TO_PEER] = 0;
    l->sent_count[TO_PEER] = 0;
    map_done(&l->drains);
    network_outbox(s, f->peer, TO_PEER)->is_welcome = true;
    network_send_now(s, f->peer, TO_PEER);
    if (f->peer < WORKERS)
        worker_hello_take(s, f);
    else
        plane_hello_take(s, f);
}

void leader_peer_closed(struct sim *s, uint32_t peer)
{
    struct control_event e = {.kind =
                                  peer < WORKERS ? EVENT_WORKER_CLOSED : EVENT_DATA_PLANE_CLOSED};
    s->core_quiet_since_ms = s->links[peer].core_lost_ms = s->now_ms;
    if (peer < WORKERS)
        e.worker.worker_id = id_of(peer);
    else
        e.data_plane.data_plane_id = id_of(peer);
    leader_event(s, &e);
}

static void load_take(struct sim *s, uint32_t peer, const struct item *item)
{
    struct sandbox_load load = {item->sandbox_id, item->in_flight};
    struct control_event e = {.kind = EVENT_LOADS};
    e.loads.data_plane_id = id_of(peer);
    e.loads.items = &load;
    e.loads.count = 1;
    leader_event(s, &e);
}

static void returned_take(struct sim *s, const struct frame *f)
{
    struct control_event e = {.kind = EVENT_SLOTS_RETURNED};
    struct returned_slots *items = mem_new_array(f->count + 1, sizeof(*items));
    for (size_t i = 0; i < f->count; i++)
        if (f->items[i].kind == ITEM_RETURNED)
            items[e.returned.count++] = (struct returned_slots){
                f->items[i].sandbox_id, f->items[i].slots, f->items[i].left};
    e.returned.data_plane_id = id_of(f->peer);
    e.returned.items = items;
    if (e.returned.count > 0)
        leader_event(s, &e);
    free(items);
}

static void demand_take(struct sim *s, uint32_t peer, const struct item *item)
{
    struct control_event e = {.kind = EVENT_DEMAND};
    e.demand.data_plane_id = id_of(peer);
    e.demand.function_id = item->function_id;
    e.demand.in_flight = item->in_flight;
    e.demand.in_flight_ending = item->in_flight_ending;
    e.demand.waiting = item->waiting;
    e.demand.in_flight_average = item->average;
    leader_event(s, &e);
}

/* What was drained before the drain was taken was drained in an earlier life. */
static bool is_answer(struct sim *s, const struct frame *f, const struct item *item)
{
    struct map *drains = &s->links[f->peer].drains;
    if ((uintptr_t)map_get(drains, item->sandbox_id) > f->taken)
        return false;
    (void)map_remove(drains, item->sandbox_id);
    return true;
}

static void item_take(struct sim *s, const struct frame *f, const struct item *item)
{
    uint32_t peer = f->peer;
    struct control_event e = {.kind = EVENT_SANDBOX};
    switch (item->kind) {
    case ITEM_SANDBOX:
        e.sandbox.worker_id = id_of(peer);
        e.sandbox.report = (struct sandbox_report){.sandbox_id = item->sandbox_id,
                                                   .function_id = item->function_id,
                                                   .version = item->version,
                                                   .state = item->state,
                                                   .reason = item->reason};
        leader_event(s, &e);
        break;
    case ITEM_GOODBYE:
        e.kind = EVENT_WORKER_GOODBYE;
        e.worker.worker_id = id_of(peer);
        leader_event(s, &e);
        break;
    case ITEM_LOAD:
        load_take(s, peer, item);
        break;
    case ITEM_DEMAND:
        demand_take(s, peer, item);
        break;
    case ITEM_ENDPOINT_FAILED:
    case ITEM_DRAINED:
        if (item->kind == ITEM_DRAINED && !is_answer(s, f, item))
            break;
        e.kind = item->kind == ITEM_DRAINED ? EVENT_DRAINED : EVENT_ENDPOINT_FAILED;
        e.endpoint.data_plane_id = id_of(peer);
        e.endpoint.sandbox_id = item->sandbox_id;
        leader_event(s, &e);
        break;
    case ITEM_RETURNED: /* all at once */
    case ITEM_KNOWN:
    case ITEM_ORDER:
        break;
    }
}

void leader_heard(struct sim *s, uint32_t peer)
{
    struct control_event alive = {.kind = EVENT_PEER_ALIVE};
    s->links[peer].heard_ms = s->now_ms;
    alive.alive.is_worker = peer < WORKERS;
    alive.alive.id = id_of(peer);
    leader_event(s, &alive);
}

/* Kind after kind, as one message of the protocol is read. */
void leader_frame(struct sim *s, const struct frame *f)
{
    if (s->core == NULL)
        return;
    if (f->is_hello) {
        hello_take(s, f);
        return;
    }
    leader_heard(s, f->peer);
    returned_take(s, f);
    for (int kind = ITEM_SANDBOX; kind <= ITEM_DRAINED; kind++)
        for (size_t i = 0; i < f->count; i++)
            if ((int)f->items[i].kind == kind)
                item_take(s, f, &f->items[i]);
}

/* ---- orders ---- */

/* One message of the protocol has its orders by kind: what depends on another order goes in the
 * next one. */
static bool must_come_later(const struct frame *outbox, enum order_kind kind)
{
    if (kind == ORDER_STOP)
        return frame_count(outbox, ORDER_START) > 0;
    if (kind == ORDER_DRAIN)
        return frame_count(outbox, ORDER_ENDPOINT_GONE) > 0;
    if (kind == ORDER_ENDPOINT)
        return frame_count(outbox, ORDER_ENDPOINT_GONE) + frame_count(outbox, ORDER_DRAIN) > 0;
    return false;
}

static void tell_peer(struct sim *s, uint32_t peer, const struct control_order *o)
{
    const struct record *r = &s->functions[o->function_id].stored;
    if (s->links[peer].core_end == 0)
        return; /* the core has heard of it, or will */
    if (o->kind == ORDER_SNAPSHOT_BEGIN || o->kind == ORDER_SNAPSHOT_END ||
        must_come_later(s->links[peer].outbox[TO_PEER], o->kind))
        network_send_now(s, peer, TO_PEER);
    if (o->kind == ORDER_SNAPSHOT_BEGIN)
        network_outbox(s, peer, TO_PEER)->is_snapshot = true;
    if (o->kind == ORDER_SNAPSHOT_BEGIN || o->kind == ORDER_SNAPSHOT_END)
        return;
    const struct settings *settings =
        o->kind == ORDER_START ? store_version(r, o->version) : &r->latest;
    if (settings == NULL)
        return; /* the version has just been replaced: the core hears of that next */
    struct item *item = network_item(s, peer, TO_PEER, ITEM_ORDER);
    if (o->kind == ORDER_DRAIN || (o->kind == ORDER_ENDPOINT && o->slots > 0))
        map_put(&s->links[peer].drains, o->sandbox_id,
                (void *)(uintptr_t)(s->links[peer].sent_count[TO_PEER] + 1));
    if (o->kind == ORDER_ENDPOINT_GONE)
        (void)map_remove(&s->links[peer].drains, o->sandbox_id);
    item->order = o->kind;
    item->sandbox_id = o->sandbox_id;
    item->function_id = o->function_id;
    item->version = o->version;
    item->slots = o->slots;
    item->idle = o->idle;
    item->settings = *settings;
    item->has_cause = o->status >= 400 && o->code != NULL && o->code[0] != '\0' &&
                      o->message != NULL && o->message[0] != '\0';
}

static void order_trace(const struct sim *s, const struct control_order *o)
{
    static const char *const names[] = {[ORDER_START] = "start",
                                        [ORDER_STOP] = "stop",
                                        [ORDER_DROP_VERSION] = "drop version",
                                        [ORDER_ROUTE] = "route",
                                        [ORDER_UNROUTE] = "unroute",
                                        [ORDER_ENDPOINT] = "endpoint",
                                        [ORDER_SLOTS_WANTED] = "slots wanted",
                                        [ORDER_DRAIN] = "drain",
                                        [ORDER_ENDPOINT_GONE] = "endpoint gone",
                                        [ORDER_SNAPSHOT_BEGIN] = "snapshot begin",
                                        [ORDER_SNAPSHOT_END] = "snapshot end",
                                        [ORDER_FAIL_WAITING] = "fail waiting",
                                        [ORDER_WANT_DEMAND] = "want demand",
                                        [ORDER_VERSION_ACTIVE] = "version active",
                                        [ORDER_VERSION_FAILED] = "version failed",
                                        [ORDER_FUNCTION_GONE] = "function gone"};
    if (s->trace)
        sim_trace(s, "  order to %lld: %s %llx, function %llu version %u slots %d",
                  (long long)o->target_id, names[o->kind], (unsigned long long)o->sandbox_id,
                  (unsigned long long)o->function_id, o->version, (int)o->slots);
}

static void order_carry_out(struct sim *s, const struct control_order *o)
{
    switch (o->kind) {
    case ORDER_START:
    case ORDER_STOP:
        tell_peer(s, (uint32_t)o->target_id - 1, o);
        break;
    case ORDER_ROUTE:
    case ORDER_UNROUTE:
    case ORDER_ENDPOINT:
    case ORDER_SLOTS_WANTED:
    case ORDER_DRAIN:
    case ORDER_ENDPOINT_GONE:
    case ORDER_SNAPSHOT_BEGIN:
    case ORDER_SNAPSHOT_END:
    case ORDER_FAIL_WAITING:
    case ORDER_WANT_DEMAND:
        for (uint32_t peer = WORKERS; peer < PEERS; peer++)
            if (o->target_id == ALL_DATA_PLANES || o->target_id == id_of(peer))
                tell_peer(s, peer, o);
        break;
    case ORDER_VERSION_ACTIVE:
        store_version_active(s, o->function_id, o->version);
        break;
    case ORDER_DROP_VERSION:
    case ORDER_VERSION_FAILED:
    case ORDER_FUNCTION_GONE:
        break;
    }
}

static void orders_carry_out(struct sim *s)
{
    for (size_t i = 0; i < s->orders.count; i++)
        order_carry_out(s, &s->orders.items[i]);
}
