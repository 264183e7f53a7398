/* election.c - one look at the whole after each event. */
#include "control_plane/election.h"
#include <stdlib.h>

#define TICK_MS 20u
#define ASK_EVERY_MS 50u
#define ANSWER_MS 200u /* an answer is good for so long */
#define RETRY_MS 100u  /* after the store was not reached */
#define CALM_MS 60000u

enum role { FOLLOWING, TAKING, LEADING, STEPPED_DOWN };

struct member {
    bool up, dead, reaches_store;
    uint64_t heard_ms;
    uint64_t answer_ms; /* when it last said whether it hears the leader of the epoch; 0: not yet */
    bool hears;
};
struct election {
    uint32_t self, count;
    enum role role;
    uint64_t now_ms, started_ms, stepped_ms;
    uint64_t epoch; /* the newest seen */
    uint32_t leader;
    bool store_known, store_reached;
    uint64_t store_lost_ms; /* since when; 0: reached */
    uint64_t vacant_ms;     /* since when the leader is known to be dead; 0: it is not */
    uint64_t suspect_ms;    /* since when it is silent; 0: it is not */
    uint64_t agreed_ms;     /* since when a majority agrees; 0: it does not */
    uint64_t asked_ms, retry_ms;
    uint64_t changed_ms; /* when the last replacement on suspicion was seen */
    uint32_t backoff_ms;
    bool was_suspected; /* the leader before */
    struct member members[ELECTION_MEMBERS_MAX];
    struct election_orders *orders;
};

static struct election_order *order(struct election *e, enum election_order_kind kind)
{
    assert(e->orders->count < ELECTION_ORDERS_MAX);
    struct election_order *o = &e->orders->items[e->orders->count++];
    *o = (struct election_order){.kind = kind, .epoch = e->epoch};
    return o;
}

static uint64_t later_ms(const struct election *e)
{
    return MAX(e->now_ms, UINT64_C(1)); /* 0 means "not" */
}

/* ---- what is known ---- */

static bool hears(const struct election *e, uint32_t member)
{
    const struct member *m = &e->members[member];
    return member == e->self || (m->up && e->now_ms - m->heard_ms < ELECTION_SILENCE_MS);
}

static bool hears_leader(const struct election *e)
{
    return e->leader != ELECTION_NOBODY && e->leader != e->self && hears(e, e->leader);
}

/* How many live members come before us. */
static uint32_t position(const struct election *e)
{
    uint32_t before = 0;
    for (uint32_t i = 0; i < e->self; i++)
        before += hears(e, i) && i != e->leader;
    return before;
}

static void suspicion_end(struct election *e)
{
    e->suspect_ms = e->agreed_ms = e->asked_ms = 0;
    for (uint32_t i = 0; i < e->count; i++)
        e->members[i].answer_ms = 0;
}

static void step_down(struct election *e, const char *why)
{
    if (e->role != LEADING)
        return; /* of one that is taking the epoch the store decides: that may be its own which
                   others saw first */
    order(e, ELECTION_STEP_DOWN)->why = why;
    e->role = STEPPED_DOWN;
}

/* The newest epoch, and who leads under it if that is known. */
static void epoch_seen(struct election *e, uint64_t epoch, uint32_t leader)
{
    if (epoch < e->epoch)
        return;
    if (epoch > e->epoch) {
        if (e->suspect_ms != 0 ||
            e->was_suspected) { /* replaced on suspicion, by us or by others */
            bool calm = e->changed_ms == 0 || e->now_ms - e->changed_ms > CALM_MS;
            e->backoff_ms =
                calm ? ELECTION_TENURE_MS : MIN(e->backoff_ms * 2, ELECTION_BACKOFF_MS_MAX);
            e->changed_ms = later_ms(e);
        }
        e->was_suspected = false;
        e->epoch = epoch;
        e->leader = ELECTION_NOBODY;
        e->vacant_ms = 0;
        suspicion_end(e);
        if (leader != e->self)
            step_down(e, "another control plane has taken a newer epoch");
    }
    if (leader != ELECTION_NOBODY && e->leader == ELECTION_NOBODY) {
        e->leader = leader;
        if (leader != e->self && !e->members[leader].up)
            e->suspect_ms = 0; /* it counts from when its absence is looked at */
        if (leader == e->self && e->role == FOLLOWING)
            e->vacant_ms = later_ms(e); /* that was a process of ours before this one */
        else if (leader != e->self && e->members[leader].dead)
            e->vacant_ms = later_ms(e);
    }
}

/* ---- suspicion ---- */

static void ask_all(struct election *e)
{
    if (e->asked_ms != 0 && e->now_ms - e->asked_ms < ASK_EVERY_MS)
        return;
    e->asked_ms = later_ms(e);
    for (uint32_t i = 0; i < e->count; i++)
        if (i != e->self && i != e->leader && e->members[i].up)
            order(e, ELECTION_ASK)->member = i;
}

static bool answered(const struct election *e, uint32_t i, bool hears_it)
{
    const struct member *m = &e->members[i];
    return i != e->self && i != e->leader && m->up && m->answer_ms != 0 &&
           e->now_ms - m->answer_ms < ANSWER_MS && m->hears == hears_it;
}

/* Whether enough agree, for long enough, that the leader is to be replaced now. */
static bool suspicion_look(struct election *e)
{
    uint32_t deaf = 1, veto = 0;
    if (e->suspect_ms == 0)
        e->suspect_ms = later_ms(e);
    ask_all(e);
    for (uint32_t i = 0; i < e->count; i++) {
        deaf += answered(e, i, false);
        veto += answered(e, i, true);
    }
    bool damped = e->changed_ms != 0 && e->now_ms - e->changed_ms < e->backoff_ms;
    bool agreed = deaf > e->count / 2,
         long_enough = e->now_ms - e->suspect_ms >= ELECTION_TENURE_MS;
    if (veto > 0 || damped || (!agreed && !long_enough)) {
        e->agreed_ms = 0;
        return false;
    }
    if (e->agreed_ms == 0)
        e->agreed_ms = later_ms(e);
    return e->now_ms - e->agreed_ms >= position(e) * ELECTION_RANK_MS;
}

/* ---- looking at the whole ---- */

static void take(struct election *e)
{
    if (e->now_ms < e->retry_ms)
        return;
    e->was_suspected = e->suspect_ms != 0;
    e->role = TAKING;
    order(e, ELECTION_TAKE);
}

static void follow_look(struct election *e)
{
    bool has_started = e->now_ms - e->started_ms >= ELECTION_START_MS;
    if (!e->store_known || hears_leader(e)) {
        suspicion_end(e);
        return;
    }
    if (e->epoch == 0 && e->vacant_ms == 0) /* a new cluster */
        e->vacant_ms = later_ms(e);
    if (e->vacant_ms != 0) {
        uint64_t since_ms =
            e->epoch == 0 ? MAX(e->vacant_ms, e->started_ms + ELECTION_SILENCE_MS) : e->vacant_ms;
        if (e->now_ms >= since_ms + position(e) * ELECTION_RANK_MS)
            take(e);
        return;
    }
    if (has_started && suspicion_look(e))
        take(e);
}

static void lead_look(struct election *e)
{
    if (e->store_lost_ms == 0 || e->now_ms - e->store_lost_ms < ELECTION_STORE_MS)
        return;
    for (uint32_t i = 0; i < e->count; i++)
        if (i != e->self && hears(e, i) && e->members[i].reaches_store) {
            step_down(e, "it does not reach the store, and another control plane does");
            return;
        }
}

/* After a stop of our own process nobody was heard, which says nothing about them. */
static void own_stop_look(struct election *e)
{
    if (e->now_ms - e->stepped_ms <= ELECTION_SILENCE_MS / 2)
        return;
    for (uint32_t i = 0; i < e->count; i++)
        e->members[i].heard_ms = e->now_ms;
    suspicion_end(e);
}

/* ---- events ---- */

static void heard(struct election *e, const struct election_event *event)
{
    struct member *m = &e->members[event->member];
    m->heard_ms = e->now_ms;
    m->up = true;
    m->dead = false;
    m->reaches_store = event->reaches_store;
    if (event->epoch > e->epoch || event->leads)
        epoch_seen(e, event->epoch, event->leads ? event->member : ELECTION_NOBODY);
    if (event->leads && e->leader == event->member && event->epoch == e->epoch)
        e->vacant_ms = 0;
}

static void down(struct election *e, const struct election_event *event)
{
    struct member *m = &e->members[event->member];
    m->up = false;
    m->dead = event->dead;
    m->answer_ms = 0;
    if (event->dead && event->member == e->leader && e->role == FOLLOWING)
        e->vacant_ms = later_ms(e);
}

static void answer(struct election *e, const struct election_event *event)
{
    struct election_order *o = order(e, ELECTION_ANSWER);
    o->member = event->member;
    o->epoch = event->epoch;
    o->hears = e->role == LEADING || event->epoch < e->epoch ||
               (event->epoch == e->epoch && hears_leader(e));
}

static void take_event(struct election *e, const struct election_event *event)
{
    struct member *m = event->member < e->count ? &e->members[event->member] : NULL;
    switch (event->kind) {
    case ELECTION_PEER_UP:
        m->up = true;
        m->dead = false;
        m->heard_ms = e->now_ms;
        break;
    case ELECTION_PEER_DOWN:
        down(e, event);
        break;
    case ELECTION_HEARD:
        heard(e, event);
        break;
    case ELECTION_ASKED:
        m->heard_ms = e->now_ms;
        answer(e, event);
        break;
    case ELECTION_ANSWERED:
        if (event->epoch == e->epoch) {
            m->answer_ms = later_ms(e);
            m->hears = event->hears;
        }
        break;
    case ELECTION_STORE_EPOCH:
        e->store_known = true;
        epoch_seen(e, event->epoch, event->member);
        break;
    case ELECTION_STORE_REACHED:
        e->store_lost_ms = event->reaches_store    ? 0
                           : e->store_lost_ms != 0 ? e->store_lost_ms
                                                   : later_ms(e);
        break;
    case ELECTION_TAKEN:
        epoch_seen(e, event->epoch, e->self);
        if (e->role == TAKING && e->epoch == event->epoch) {
            e->role = LEADING;
            e->leader = e->self;
            e->vacant_ms = 0;
            suspicion_end(e);
            order(e, ELECTION_LEAD);
        } else if (e->role == TAKING) {
            e->role = FOLLOWING; /* and another has taken the next one since */
        }
        break;
    case ELECTION_TAKE_REFUSED: /* the store tells of the newer epoch */
    case ELECTION_TAKE_FAILED:
        e->role = e->role == TAKING ? FOLLOWING : e->role;
        e->retry_ms = e->now_ms + RETRY_MS;
        break;
    case ELECTION_REFUSED:
        epoch_seen(e, event->epoch, ELECTION_NOBODY);
        break;
    case ELECTION_TICK:
        break;
    }
}

void election_step(struct election *e, const struct election_event *event, uint64_t now_ms,
                   struct election_orders *ret_orders)
{
    ret_orders->count = 0;
    e->orders = ret_orders;
    e->now_ms = MAX(now_ms, e->now_ms);
    own_stop_look(e);
    e->stepped_ms = e->now_ms;
    take_event(e, event);
    if (e->role == FOLLOWING)
        follow_look(e);
    else if (e->role == LEADING)
        lead_look(e);
    e->orders = NULL;
}

struct election *election_new(uint32_t self, uint32_t member_count, uint64_t now_ms)
{
    assert(member_count > 0 && member_count <= ELECTION_MEMBERS_MAX && self < member_count);
    struct election *e = mem_new(sizeof(*e));
    e->self = self;
    e->count = member_count;
    e->leader = ELECTION_NOBODY;
    e->now_ms = e->started_ms = e->stepped_ms = now_ms;
    return e;
}

void election_free(struct election *e)
{
    free(e);
}

uint64_t election_due_ms(const struct election *e)
{
    return e->now_ms + TICK_MS;
}

bool election_leads(const struct election *e)
{
    return e->role == LEADING;
}

uint64_t election_epoch(const struct election *e)
{
    return e->epoch;
}

uint32_t election_leader(const struct election *e)
{
    return e->leader;
}

bool election_suspects(const struct election *e)
{
    return e->suspect_ms != 0 || e->vacant_ms != 0;
}
