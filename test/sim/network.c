/* network.c - connections as TCP makes them: frames arrive in order and late, or the connection
 * ends and what was on the way is lost. The two ends learn of it at different times. */
#include "sim.h"
#include <stdlib.h>

/* ---- frames ---- */

struct item *frame_item(struct frame *f, enum item_kind kind)
{
    if (f->count == f->capacity) {
        f->capacity = MAX(f->capacity * 2, (size_t)8);
        f->items = mem_resize(f->items, f->capacity, sizeof(*f->items));
    }
    struct item *item = &f->items[f->count++];
    *item = (struct item){.kind = kind};
    return item;
}

size_t frame_count(const struct frame *f, enum order_kind order)
{
    size_t count = 0;
    for (size_t i = 0; f != NULL && i < f->count; i++)
        count += f->items[i].kind == ITEM_ORDER && f->items[i].order == order;
    return count;
}

void network_frame_free(struct frame *f)
{
    if (f == NULL)
        return;
    free(f->items);
    free(f);
}

static struct frame *frame_new(uint32_t peer, enum direction d, uint64_t connection)
{
    struct frame *f = mem_new(sizeof(*f));
    f->peer = peer;
    f->direction = d;
    f->connection = connection;
    return f;
}

/* ---- sending ---- */

static void on_arrival(struct sim *s, const struct event *e)
{
    struct frame *f = e->frame;
    struct link *l = &s->links[f->peer];
    if (s->now_ms <= l->stalled_until_ms) {
        clock_again(s, *e, l->stalled_until_ms + 1);
        return;
    }
    bool is_lost = f->connection <= l->broken;
    if (!is_lost && f->direction == TO_CORE) {
        if (f->is_hello ? f->connection == l->newest : f->connection == l->core_end)
            leader_frame(s, f);
    } else if (!is_lost && f->connection == l->peer_end) {
        if (f->peer < WORKERS)
            worker_frame(s, f->peer, f);
        else
            plane_frame(s, f->peer - WORKERS, f);
    }
    network_frame_free(f);
}

static void send_frame(struct sim *s, struct frame *f)
{
    struct link *l = &s->links[f->peer];
    bool is_late = s->phase == PHASE_FAULTS && sim_chance(s, 10);
    uint64_t due = s->now_ms + 1 + sim_below(s, is_late ? 300 : 3);
    due = MAX(due, l->last_due_ms[f->direction]);
    l->last_due_ms[f->direction] = due;
    clock_deliver(s, due, on_arrival, f);
}

void network_send_now(struct sim *s, uint32_t peer, enum direction d)
{
    struct frame *f = s->links[peer].outbox[d];
    if (f == NULL)
        return;
    s->links[peer].outbox[d] = NULL;
    f->number = ++s->links[peer].sent_count[d];
    if (d == TO_CORE && peer >= WORKERS)
        plane_fill(s, f);
    send_frame(s, f);
}

static void on_turn_end(struct sim *s, const struct event *e)
{
    network_send_now(s, (uint32_t)e->a, (enum direction)e->b);
}

struct frame *network_outbox(struct sim *s, uint32_t peer, enum direction d)
{
    struct link *l = &s->links[peer];
    if (l->outbox[d] == NULL) {
        l->outbox[d] = frame_new(peer, d, d == TO_CORE ? l->peer_end : l->core_end);
        l->outbox[d]->epoch = s->epoch;
        clock_after(s, sim_chance(s, 8) ? sim_below(s, 4) : 0, on_turn_end, peer, d);
    }
    return l->outbox[d];
}

struct item *network_item(struct sim *s, uint32_t peer, enum direction d, enum item_kind kind)
{
    return frame_item(network_outbox(s, peer, d), kind);
}

static void outbox_drop(struct sim *s, uint32_t peer, enum direction d)
{
    network_frame_free(s->links[peer].outbox[d]);
    s->links[peer].outbox[d] = NULL;
}

/* ---- the ends ---- */

static void on_core_closes(struct sim *s, const struct event *e)
{
    uint32_t peer = (uint32_t)e->a;
    struct link *l = &s->links[peer];
    if (l->core_end != e->b || s->core == NULL)
        return;
    sim_trace(s, "the control plane loses peer %u", peer);
    l->core_end = 0;
    outbox_drop(s, peer, TO_PEER);
    leader_peer_closed(s, peer);
}

static void peer_end_gone(struct sim *s, uint32_t peer)
{
    struct link *l = &s->links[peer];
    uint64_t at = MAX(s->now_ms, l->stalled_until_ms) + sim_below(s, 4);
    clock_at(s, at, on_core_closes, peer, l->peer_end);
    l->peer_end = 0;
    outbox_drop(s, peer, TO_CORE);
    if (peer >= WORKERS)
        plane_disconnected(s, peer - WORKERS);
}

static void on_peer_closes(struct sim *s, const struct event *e)
{
    uint32_t peer = (uint32_t)e->a;
    if (s->links[peer].peer_end != e->b)
        return;
    sim_trace(s, "peer %u loses the control plane", peer);
    peer_end_gone(s, peer);
    network_dial_later(s, peer);
}

/* Both learn of it when their network lets them. */
void network_break(struct sim *s, uint32_t peer)
{
    struct link *l = &s->links[peer];
    uint64_t from = MAX(s->now_ms, l->stalled_until_ms);
    l->broken = l->newest;
    if (l->core_end != 0)
        clock_at(s, from + sim_below(s, 4), on_core_closes, peer, l->core_end);
    if (l->peer_end != 0)
        clock_at(s, from + sim_below(s, 4), on_peer_closes, peer, l->peer_end);
}

void network_stall(struct sim *s, uint32_t peer, uint64_t ms)
{
    struct link *l = &s->links[peer];
    if (l->stalled_until_ms >= s->now_ms)
        return;
    sim_trace(s, "the network of peer %u stands still for %llu ms", peer, (unsigned long long)ms);
    l->stalled_until_ms = s->now_ms + ms;
    uint64_t core = PEER_DEAD_AFTER_MS + HEARTBEAT_MS,
             own = PEER_DEAD_AFTER_MS - sim_below(s, HEARTBEAT_MS);
    if (ms > core && l->core_end != 0)
        clock_after(s, core, on_core_closes, peer, l->core_end);
    if (ms > own && l->peer_end != 0)
        clock_after(s, own, on_peer_closes, peer, l->peer_end);
}

void network_peer_ends(struct sim *s, uint32_t peer)
{
    struct link *l = &s->links[peer];
    if (l->peer_end != 0)
        peer_end_gone(s, peer);
}

void network_core_ends(struct sim *s)
{
    for (uint32_t peer = 0; peer < PEERS; peer++) {
        struct link *l = &s->links[peer];
        l->broken = l->newest;
        l->core_end = 0;
        outbox_drop(s, peer, TO_PEER);
        if (l->peer_end != 0)
            clock_at(s, MAX(s->now_ms, l->stalled_until_ms) + sim_below(s, 4), on_peer_closes, peer,
                     l->peer_end);
    }
}

/* ---- dialling ---- */

static bool is_up(const struct sim *s, uint32_t peer)
{
    return peer < WORKERS ? s->workers[peer].is_up : s->planes[peer - WORKERS].is_up;
}

static void on_dial(struct sim *s, const struct event *e)
{
    uint32_t peer = (uint32_t)e->a;
    struct link *l = &s->links[peer];
    if (!is_up(s, peer) || l->peer_end != 0)
        return;
    if (s->core == NULL || s->now_ms <= l->stalled_until_ms) {
        network_dial_later(s, peer);
        return;
    }
    l->peer_end = ++l->newest;
    l->last_due_ms[TO_CORE] = l->last_due_ms[TO_PEER] = 0;
    l->sent_count[TO_CORE] = 0;
    struct frame *f = frame_new(peer, TO_CORE, l->peer_end);
    f->is_hello = true;
    if (peer < WORKERS)
        worker_hello(s, peer, f);
    else
        plane_hello(s, peer - WORKERS, f);
    send_frame(s, f);
}

void network_dial_later(struct sim *s, uint32_t peer)
{
    clock_after(s, sim_between(s, 10, 100), on_dial, peer, 0);
}

/* ---- signs of life ---- */

static void on_heartbeat(struct sim *s, const struct event *e)
{
    uint32_t peer = (uint32_t)e->a;
    struct link *l = &s->links[peer];
    bool arrives = l->core_end != 0 && l->core_end == l->peer_end && l->core_end > l->broken &&
                   s->now_ms > l->stalled_until_ms;
    if (arrives && s->core != NULL)
        leader_heard(s, peer);
    clock_after(s, HEARTBEAT_MS, on_heartbeat, peer, 0);
}

void network_begin(struct sim *s)
{
    for (uint32_t peer = 0; peer < PEERS; peer++) {
        clock_after(s, sim_below(s, HEARTBEAT_MS), on_heartbeat, peer, 0);
        clock_after(s, sim_below(s, 20), on_dial, peer, 0);
    }
}
