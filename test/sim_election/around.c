/* around.c - network, store and workers. */
#include "world.h"

/* ---- network: connections as TCP has them; what is sent into a cut is lost ---- */

static uint64_t delay_us(struct world *w, uint32_t from, uint32_t to)
{
    return LINK_US + w->lag_us[from][to] + (w->calm ? 0 : world_below(w, LINK_US));
}

/* By the connection that `from` has dialled, after what was sent before. */
static void send_now(struct world *w, uint32_t from, uint32_t to, struct election_event event)
{
    uint64_t at_us = w->now_us + delay_us(w, from, to);
    at_us = MAX(at_us, w->last_us[from][to]);
    event.member = from;
    w->last_us[from][to] = at_us;
    world_add(
        w, at_us - w->now_us,
        (struct happening){
            .kind = TOLD, .from = from, .to = to, .to_life = w->members[to].life, .event = event});
}

void network_send(struct world *w, uint32_t from, uint32_t to, struct election_event event)
{
    struct member *peer = &w->members[to];
    if (peer->e == NULL || peer->connected[from] != w->members[from].life || w->cut[from][to] ||
        world_chance(w, w->loss_percent))
        return;
    peer->arrived_us[from] = w->now_us;
    send_now(w, from, to, event);
}

/* Dialled anew with most beats. The other side learns of the end of the old connection then, if
 * not before. */
static void dial(struct world *w, uint32_t from, uint32_t to)
{
    struct member *peer = &w->members[to];
    if (peer->e == NULL || peer->connected[from] == w->members[from].life)
        return;
    if (w->cut[from][to] || w->cut[to][from] || (!w->calm && world_below(w, 4) == 0))
        return;
    if (peer->connected[from] != 0)
        send_now(w, from, to, (struct election_event){.kind = ELECTION_PEER_DOWN, .dead = true});
    peer->connected[from] = w->members[from].life;
    peer->arrived_us[from] = w->now_us;
    send_now(w, from, to, (struct election_event){.kind = ELECTION_PEER_UP});
}

static void give_up_silent(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    for (uint32_t from = 0; from < w->count; from++) {
        if (m->connected[from] == 0 || w->now_us - m->arrived_us[from] < SILENT_LINK_US)
            continue;
        m->connected[from] = 0;
        world_step(w, i, &(struct election_event){.kind = ELECTION_PEER_DOWN, .member = from});
    }
}

void network_beat(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    give_up_silent(w, i);
    for (uint32_t to = 0; to < w->count; to++) {
        if (to == i)
            continue;
        dial(w, i, to);
        network_send(w, i, to,
                     (struct election_event){.kind = ELECTION_HEARD,
                                             .epoch = election_epoch(m->e),
                                             .leads = election_leads(m->e),
                                             .reaches_store = m->says_reached});
    }
}

/* The system closes what a process had open, which nobody hears of beyond a cut. */
void network_killed(struct world *w, uint32_t i, bool with_host)
{
    for (uint32_t to = 0; to < w->count; to++) {
        struct member *peer = &w->members[to];
        if (to == i || peer->e == NULL || peer->connected[i] != w->members[i].life || with_host ||
            w->cut[i][to])
            continue;
        peer->connected[i] = 0;
        send_now(w, i, to, (struct election_event){.kind = ELECTION_PEER_DOWN, .dead = true});
    }
}

/* ---- store ---- */

static uint64_t store_us(struct world *w)
{
    return (uint64_t)STORE_US * w->store_slow + (w->calm ? 0 : world_below(w, STORE_US));
}

static bool reaches_store(const struct world *w, uint32_t i)
{
    return !w->store_away && !w->store_cut[i];
}

static struct election_event epoch_event(const struct world *w)
{
    return (struct election_event){.kind = ELECTION_STORE_EPOCH,
                                   .epoch = w->epoch,
                                   .member =
                                       w->epoch > 0 ? w->owners[w->epoch].member : ELECTION_NOBODY};
}

static void store_tell(struct world *w, uint32_t i, struct election_event event, uint64_t take,
                       uint64_t more_us)
{
    if (w->members[i].e == NULL || !reaches_store(w, i) || w->store_deaf[i])
        return;
    uint64_t at_us = w->now_us + store_us(w);
    at_us = MAX(at_us, w->last_store_us[i]) + more_us;
    if (more_us == 0)
        w->last_store_us[i] = at_us;
    world_add(
        w, at_us - w->now_us,
        (struct happening){
            .kind = TOLD, .to = i, .to_life = w->members[i].life, .take = take, .event = event});
}

void store_take_epoch(struct world *w, uint32_t i, uint64_t known)
{
    struct member *m = &w->members[i];
    m->take = ++m->take_count;
    world_add(
        w, TAKE_DEADLINE_US,
        (struct happening){.kind = TAKE_OVERDUE, .to = i, .to_life = m->life, .take = m->take});
    if (reaches_store(w, i))
        world_add(w, store_us(w),
                  (struct happening){.kind = CAS,
                                     .from = i,
                                     .from_life = m->life,
                                     .take = m->take,
                                     .event = {.epoch = known}});
}

static void owner_note(struct world *w, const struct happening *h)
{
    struct owner before = w->owners[w->epoch - 1];
    bool was_alive = w->epoch > 1 && before.member != h->from && is_alive(w, before.member) &&
                     w->members[before.member].life == before.life;
    w->owners[w->epoch] = (struct owner){h->from, h->from_life, w->now_us, was_alive};
    if (!was_alive)
        return;
    if (w->suspicion_us != 0)
        w->gap_us = MIN(w->gap_us, w->now_us - w->suspicion_us);
    w->suspicion_us = w->now_us;
}

void store_cas(struct world *w, const struct happening *h)
{
    struct election_event answer = {.kind = ELECTION_TAKE_REFUSED, .member = ELECTION_NOBODY};
    if (h->event.epoch != w->epoch) {
        if (world_below(w, 2) == 0) { /* not every store says more than no */
            answer.epoch = w->epoch;
            answer.member = world_below(w, 2) == 0 ? w->owners[w->epoch].member : ELECTION_NOBODY;
        }
        store_tell(w, h->from, answer, h->take, 0);
        return;
    }
    if (w->epoch + 1 == EPOCHS_MAX) {
        world_fail(w, "%u epochs were taken", EPOCHS_MAX);
        return;
    }
    w->epoch++;
    owner_note(w, h);
    world_trace(w, "%u takes epoch %llu%s", h->from, (unsigned long long)w->epoch,
                w->owners[w->epoch].on_suspicion ? " from one that lives" : "");
    bool alive = w->members[h->from].e != NULL && w->members[h->from].life == h->from_life;
    bool watch_is_first = world_below(w, 2) == 0;
    for (uint32_t n = 0; n < w->count; n++)
        if ((n != h->from || watch_is_first) && !world_chance(w, w->watch_loss_percent))
            store_tell(w, n, epoch_event(w), 0, 0);
    if (!alive)
        return;
    uint64_t list_us = w->calm ? 0 : world_below(w, 5 * MS) * w->store_slow;
    answer = (struct election_event){.kind = ELECTION_TAKEN, .epoch = w->epoch};
    store_tell(w, h->from, answer, h->take, 0);
    answer.kind = ELECTION_CAUGHT_UP;
    store_tell(w, h->from, answer, h->take, w->calm ? 1 : 10 + list_us + 2 * STORE_US);
    if (!watch_is_first)
        store_tell(w, h->from, epoch_event(w), 0, 0);
}

/* Whether it is reached, as it seems to a member, and what its listings tell. */
void store_beat(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    bool reached = reaches_store(w, i) && !w->store_deaf[i];
    if (reached)
        m->unreached_us = 0;
    else if (m->unreached_us == 0)
        m->unreached_us = w->now_us;
    bool says_reached = reached || w->now_us - m->unreached_us < REACHED_AFTER_US;
    bool is_back = says_reached && !m->says_reached;
    if (says_reached != m->says_reached) {
        m->says_reached = says_reached;
        world_step(w, i,
                   &(struct election_event){.kind = ELECTION_STORE_REACHED,
                                            .reaches_store = says_reached});
    }
    if (reached && (is_back || m->relist_us == 0 || w->now_us - m->relist_us >= RELIST_US)) {
        m->relist_us = w->now_us;
        store_tell(w, i, epoch_event(w), 0, 0);
    }
}

static bool owns(const struct world *w, const struct happening *h)
{
    const struct owner *o = &w->owners[h->event.epoch];
    return h->event.epoch < EPOCHS_MAX && o->member == h->from && o->life == h->from_life;
}

/* The fence: a write under an epoch that is not the newest is refused, and the leader told. */
void store_write(struct world *w, const struct happening *h)
{
    if (h->event.epoch != w->epoch) {
        if (w->members[h->from].life == h->from_life)
            store_tell(w, h->from,
                       (struct election_event){.kind = ELECTION_REFUSED, .epoch = w->epoch}, 0, 0);
        return;
    }
    if (!owns(w, h))
        world_fail(w, "the store accepts a write of %u under epoch %llu, which is another's",
                   h->from, (unsigned long long)h->event.epoch);
    if (h->event.epoch < w->write_epoch)
        world_fail(w, "the store accepts a write under an epoch older than the last one's");
    w->write_epoch = h->event.epoch;
}

/* ---- workers ---- */

void work_beat(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    struct happening h = {.from = i, .from_life = m->life, .event = {.epoch = m->leads}};
    h.kind = WRITE;
    if (reaches_store(w, i))
        world_add(w, store_us(w), h);
    h.kind = ORDER;
    for (h.to = 0; h.to < WORKERS; h.to++)
        if (!w->worker_cut[i][h.to])
            world_add(w, LINK_US, h);
}

void worker_order(struct world *w, const struct happening *h)
{
    uint64_t *highest = &w->worker_epoch[h->to];
    if (h->event.epoch < *highest) {
        struct member *m = &w->members[h->from];
        if (m->life == h->from_life && m->e != NULL && !w->worker_cut[h->from][h->to])
            world_add(w, LINK_US,
                      (struct happening){.kind = TOLD,
                                         .to = h->from,
                                         .to_life = m->life,
                                         .event = {.kind = ELECTION_REFUSED, .epoch = *highest}});
        return;
    }
    if (!owns(w, h))
        world_fail(w, "worker %u takes an order of %u under epoch %llu, which is another's", h->to,
                   h->from, (unsigned long long)h->event.epoch);
    *highest = h->event.epoch;
}
