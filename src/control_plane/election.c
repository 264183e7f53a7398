/* election.c - each event changes what is known; then one look at the whole decides. */
#include "control_plane/election.h"
#include <stdlib.h>

enum role { FOLLOWING, TAKING, CATCHING_UP, LEADING, STEPPED_DOWN };

struct member {
    bool up, dead; /* dead: its last connection was closed by its system */
    bool reaches_store;
    uint64_t heard_ms; /* or forgiven, after a stop of our own */
    uint64_t spoke_ms; /* when what it said had come just then */
    uint64_t dead_ms;
    uint64_t answer_ms; /* when it last said whether it hears the leader of the epoch; 0: not yet */
    bool hears;
};
struct election { /* times that may be 0 are "since when", and 0 is "it is not so" */
    struct election_options options;
    uint32_t self, count;
    enum role role;
    uint64_t now_ms, started_ms, due_ms;
    uint64_t epoch, epoch_ms; /* the newest seen, and when it was */
    uint32_t leader;
    bool leader_led;      /* it has said so, under that epoch */
    uint64_t patience_ms; /* until then a leader that is not heard is not suspected */
    uint64_t fresh_ms;    /* until then what is heard may have been said long before */
    uint64_t known_ms;    /* since when our copy of the store is complete */
    uint64_t store_lost_ms;
    uint64_t yield_ms;   /* we lead without the store, and another member reaches it */
    uint64_t gone_ms;    /* the leader is gone */
    uint64_t suspect_ms; /* it is silent, and nobody objects */
    uint64_t agreed_ms;  /* it is to be replaced */
    uint64_t asked_ms, retry_ms;
    uint64_t damped_until_ms;
    uint64_t replaced_ms; /* when the last replacement on suspicion was seen */
    uint32_t backoff_ms;  /* after it */
    uint64_t told_epoch;  /* the last FOLLOW */
    uint32_t told_leader;
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

/* ---- what is known ---- */

static bool hears(const struct election *e, uint32_t member)
{
    const struct member *m = &e->members[member];
    return member == e->self || (m->up && e->now_ms - m->heard_ms < e->options.silence_ms);
}

/* One that began to lead and does not say so is let be for as long as one that is suspected. */
static bool leader_is_silent(const struct election *e)
{
    if (e->now_ms < e->patience_ms)
        return false;
    if (e->leader == ELECTION_NOBODY || e->leader == e->self || !hears(e, e->leader))
        return true;
    return !e->leader_led && e->now_ms - e->epoch_ms >= e->options.tenure_ms;
}

static bool is_damped(const struct election *e)
{
    return e->now_ms < e->damped_until_ms;
}

/* How many others come before us: live ones that could take the epoch. */
static uint32_t position(const struct election *e)
{
    uint32_t before = 0;
    for (uint32_t i = 0; i < e->self; i++)
        before += i != e->leader && hears(e, i) && e->members[i].reaches_store;
    return before;
}

static bool everyone_is_here(const struct election *e)
{
    for (uint32_t i = 0; i < e->count; i++)
        if (i != e->self && !(hears(e, i) && e->members[i].reaches_store))
            return false;
    return true;
}

/* ---- a newer epoch ---- */

static void suspicion_end(struct election *e)
{
    e->suspect_ms = e->agreed_ms = e->asked_ms = 0;
    for (uint32_t i = 0; i < e->count; i++)
        e->members[i].answer_ms = 0;
}

static void step_down(struct election *e, const char *why)
{
    order(e, ELECTION_STEP_DOWN)->why = why;
    e->role = STEPPED_DOWN;
}

static bool is_calm(const struct election *e)
{
    return e->replaced_ms == 0 || e->now_ms - e->replaced_ms > ELECTION_CALM_MS;
}

/* The leader was replaced: the next replacement on suspicion has to wait, whoever thinks of it, and
 * longer when this was one too. One that is replaced and begins a new life closes its connections:
 * whether that came before the news of the epoch is chance, so that it always has to wait. */
static void damp(struct election *e, bool was_gone)
{
    uint32_t wait_ms = e->options.tenure_ms;
    if (!was_gone) {
        e->backoff_ms = is_calm(e) ? wait_ms : MIN(e->backoff_ms * 2, ELECTION_BACKOFF_MS_MAX);
        e->replaced_ms = e->now_ms;
        wait_ms = e->backoff_ms;
    }
    e->damped_until_ms = MAX(e->damped_until_ms, e->now_ms + wait_ms);
}

/* Of one that is taking the epoch the store decides: what others saw first may be its own. */
static void epoch_begin(struct election *e, uint64_t epoch, bool is_ours)
{
    bool is_first = e->epoch == 0;
    if (!is_first)
        damp(e, e->gone_ms != 0);
    e->epoch = epoch;
    e->epoch_ms = e->now_ms;
    e->leader = ELECTION_NOBODY;
    e->leader_led = false;
    e->gone_ms = 0;
    e->patience_ms = e->now_ms + e->options.silence_ms;
    if (is_first)
        e->patience_ms = MAX(e->patience_ms, e->started_ms + ELECTION_START_MS);
    suspicion_end(e);
    if (e->role == LEADING && !is_ours)
        step_down(e, "another control plane has taken a newer epoch");
    else if (e->role == CATCHING_UP && !is_ours)
        e->role = FOLLOWING;
}

/* Whether the process that took this epoch is the one that has ended. It said so, or it took it and
 * was killed before it could; one whose last word had come long before the epoch is an earlier
 * life, of which we only learn now, or have learnt long ago, that it is over. */
static bool died_under_it(const struct election *e, uint32_t member)
{
    const struct member *m = &e->members[member];
    if (!m->dead)
        return false;
    return (member == e->leader && e->leader_led) ||
           m->spoke_ms + e->options.silence_ms / 2 > e->epoch_ms;
}

static void epoch_seen(struct election *e, uint64_t epoch, uint32_t leader)
{
    if (epoch < e->epoch || epoch == 0)
        return;
    if (epoch > e->epoch)
        epoch_begin(e, epoch, leader == e->self);
    if (leader == ELECTION_NOBODY || e->leader != ELECTION_NOBODY)
        return;
    e->leader = leader;
    if (leader != e->self && died_under_it(e, leader))
        e->gone_ms = e->now_ms;
}

/* ---- the leader is silent ---- */

static void ask_all(struct election *e)
{
    if (e->asked_ms != 0 && e->now_ms - e->asked_ms < ELECTION_ASK_MS)
        return;
    e->asked_ms = e->now_ms;
    for (uint32_t i = 0; i < e->count; i++)
        if (i != e->self && i != e->leader && e->members[i].up)
            order(e, ELECTION_ASK)->member = i;
}

static bool answered(const struct election *e, uint32_t i, bool hears_it)
{
    const struct member *m = &e->members[i];
    return i != e->self && i != e->leader && m->up && m->answer_ms != 0 &&
           e->now_ms - m->answer_ms < e->options.answer_ms && m->hears == hears_it;
}

/* Whether it is to be replaced, as far as we know from the others. */
static bool is_agreed(struct election *e)
{
    uint32_t deaf = 1, objections = 0;
    for (uint32_t i = 0; i < e->count; i++) {
        deaf += answered(e, i, false);
        objections += answered(e, i, true);
    }
    if (e->suspect_ms == 0 || objections > 0)
        e->suspect_ms = e->now_ms;
    if (objections > 0 || is_damped(e))
        return false;
    bool has_waited = e->now_ms - e->suspect_ms >= e->options.tenure_ms;
    return deaf > e->count / 2 || (has_waited && e->store_lost_ms == 0);
}

/* ---- looking at the whole ---- */

/* Also when the store seems to be away: it will say so. */
static void take(struct election *e)
{
    if (e->now_ms < e->retry_ms)
        return;
    e->role = TAKING;
    order(e, ELECTION_TAKE);
}

/* When the first candidate may take the epoch; 0: not now. */
static uint64_t open_since_ms(struct election *e)
{
    if (e->epoch == 0) /* a new cluster: whoever comes first in rank, if it comes soon */
        return everyone_is_here(e) ? e->known_ms
                                   : MAX(e->known_ms, e->started_ms + e->options.silence_ms);
    if (e->leader == e->self && e->gone_ms == 0) /* an earlier life of ours, or a lost answer */
        e->gone_ms = e->now_ms;
    if (e->gone_ms != 0)
        return e->gone_ms;
    if (!leader_is_silent(e)) {
        suspicion_end(e);
        return 0;
    }
    if (!is_damped(e))
        ask_all(e);
    if (!is_agreed(e))
        e->agreed_ms = 0;
    else if (e->agreed_ms == 0)
        e->agreed_ms = e->now_ms;
    return e->agreed_ms;
}

static void follow_look(struct election *e)
{
    if (e->known_ms == 0)
        return;
    uint64_t since_ms = open_since_ms(e);
    if (since_ms != 0 && e->now_ms >= since_ms + position(e) * e->options.rank_ms)
        take(e);
}

/* When the store comes back to all, some are told before others: it counts from when both are so.
 */
static void lead_look(struct election *e)
{
    bool other_reaches = false;
    for (uint32_t i = 0; i < e->count; i++)
        other_reaches |= i != e->self && hears(e, i) && e->members[i].reaches_store;
    if (e->store_lost_ms == 0 || !other_reaches)
        e->yield_ms = 0;
    else if (e->yield_ms == 0)
        e->yield_ms = e->now_ms;
    else if (e->now_ms - e->yield_ms >= ELECTION_STORE_MS)
        step_down(e, "it does not reach the store, and another control plane does");
}

/* After a stop of our own process nobody was heard, which says nothing about them. */
static void own_stop_look(struct election *e)
{
    if (e->now_ms <= e->due_ms + e->options.silence_ms / 2)
        return;
    for (uint32_t i = 0; i < e->count; i++)
        e->members[i].heard_ms = e->now_ms;
    e->patience_ms = MAX(e->patience_ms, e->now_ms + e->options.silence_ms);
    e->fresh_ms = e->now_ms + e->options.silence_ms / 2; /* what is read now may be old */
    suspicion_end(e);
}

/* ---- events ---- */

static void came_up(struct election *e, struct member *m)
{
    m->up = m->reaches_store = true; /* of the store it will tell */
    m->dead = false;
    m->heard_ms = e->now_ms;
    if (e->now_ms >= e->fresh_ms)
        m->spoke_ms = e->now_ms;
}

static void heard(struct election *e, const struct election_event *event)
{
    struct member *m = &e->members[event->member];
    came_up(e, m);
    m->reaches_store = event->reaches_store;
    epoch_seen(e, event->epoch, event->leads ? event->member : ELECTION_NOBODY);
    if (event->member != e->leader || event->epoch != e->epoch)
        return;
    if (event->leads)
        e->gone_ms = 0; /* its connection was closed, its process lives */
    else if (e->leader_led && e->gone_ms == 0)
        e->gone_ms = e->now_ms; /* it has stepped down, or this is its next life */
    e->leader_led |= event->leads;
}

static void went_down(struct election *e, const struct election_event *event)
{
    struct member *m = &e->members[event->member];
    m->up = false;
    m->answer_ms = 0;
    m->dead = event->dead;
    m->dead_ms = e->now_ms;
    if (died_under_it(e, event->member) && event->member == e->leader && e->gone_ms == 0)
        e->gone_ms = e->now_ms;
}

static void asked(struct election *e, const struct election_event *event)
{
    e->members[event->member].heard_ms = e->now_ms;
    epoch_seen(e, event->epoch, ELECTION_NOBODY);
    struct election_order *o = order(e, ELECTION_ANSWER);
    bool leads = e->role == LEADING || e->role == CATCHING_UP;
    o->member = event->member;
    o->epoch = event->epoch;
    o->hears = event->epoch < e->epoch || leads || is_damped(e) ||
               (e->gone_ms == 0 && !leader_is_silent(e));
}

static void take_ended(struct election *e, const struct election_event *event)
{
    if (event->kind == ELECTION_TAKEN) {
        epoch_seen(e, event->epoch, e->self);
        if (e->role == TAKING) /* or another has taken the next one since */
            e->role = e->epoch == event->epoch ? CATCHING_UP : FOLLOWING;
        return;
    }
    if (event->kind == ELECTION_TAKE_REFUSED)
        epoch_seen(e, event->epoch, event->member);
    if (e->role == TAKING)
        e->role = FOLLOWING;
    e->retry_ms = e->now_ms + ELECTION_RETRY_MS;
}

static void caught_up(struct election *e, uint64_t epoch)
{
    if (e->role != CATCHING_UP || epoch != e->epoch)
        return;
    e->role = LEADING;
    order(e, ELECTION_LEAD);
}

static void take_event(struct election *e, const struct election_event *event)
{
    struct member *m = event->member < e->count ? &e->members[event->member] : NULL;
    switch (event->kind) {
    case ELECTION_PEER_UP:
        came_up(e, m);
        break;
    case ELECTION_PEER_DOWN:
        went_down(e, event);
        break;
    case ELECTION_HEARD:
        heard(e, event);
        break;
    case ELECTION_ASKED:
        asked(e, event);
        break;
    case ELECTION_ANSWERED:
        if (event->epoch == e->epoch) {
            m->answer_ms = e->now_ms;
            m->hears = event->hears;
        }
        break;
    case ELECTION_STORE_EPOCH:
        if (e->known_ms == 0)
            e->known_ms = e->now_ms;
        epoch_seen(e, event->epoch, event->member);
        break;
    case ELECTION_STORE_REACHED:
        if (event->reaches_store)
            e->store_lost_ms = 0;
        else if (e->store_lost_ms == 0)
            e->store_lost_ms = e->now_ms;
        break;
    case ELECTION_TAKEN:
    case ELECTION_TAKE_REFUSED:
    case ELECTION_TAKE_FAILED:
        take_ended(e, event);
        break;
    case ELECTION_CAUGHT_UP:
        caught_up(e, event->epoch);
        break;
    case ELECTION_REFUSED:
        epoch_seen(e, event->epoch, ELECTION_NOBODY);
        break;
    case ELECTION_TICK:
        break;
    }
}

/* ---- steps ---- */

static void tell_leader(struct election *e)
{
    bool is_other = e->leader != ELECTION_NOBODY && e->leader != e->self;
    if (!is_other || e->role == STEPPED_DOWN ||
        (e->told_epoch == e->epoch && e->told_leader == e->leader))
        return;
    e->told_epoch = e->epoch;
    e->told_leader = e->leader;
    order(e, ELECTION_FOLLOW)->member = e->leader;
}

static void due_at(struct election *e, uint64_t at_ms)
{
    if (at_ms > e->now_ms)
        e->due_ms = MIN(e->due_ms, at_ms);
}

/* Where others are heard the tick bounds it, and the rest only makes it exact. */
static void due_find(struct election *e)
{
    uint64_t rank_ms = position(e) * e->options.rank_ms;
    e->due_ms = e->now_ms + (e->count > 1 ? ELECTION_TICK_MS : ELECTION_START_MS);
    due_at(e, e->retry_ms);
    if (e->epoch == 0)
        due_at(e, MAX(e->known_ms, e->started_ms + e->options.silence_ms) + rank_ms);
    if (e->gone_ms != 0)
        due_at(e, e->gone_ms + rank_ms);
    if (e->agreed_ms != 0)
        due_at(e, e->agreed_ms + rank_ms);
    if (e->leader != ELECTION_NOBODY && e->leader != e->self)
        due_at(e, e->members[e->leader].heard_ms + e->options.silence_ms);
}

void election_step(struct election *e, const struct election_event *event, uint64_t now_ms,
                   struct election_orders *ret_orders)
{
    ret_orders->count = 0;
    e->orders = ret_orders;
    e->now_ms = MAX(now_ms, e->now_ms);
    own_stop_look(e);
    take_event(e, event);
    if (e->role == FOLLOWING)
        follow_look(e);
    else if (e->role == LEADING)
        lead_look(e);
    tell_leader(e);
    due_find(e);
    e->orders = NULL;
}

static uint32_t or_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

struct election *election_new(const struct election_options *options, uint64_t now_ms)
{
    const struct election_options *o = options;
    assert(o->member_count > 0 && o->member_count <= ELECTION_MEMBERS_MAX);
    assert(o->self < o->member_count);
    struct election *e = mem_new(sizeof(*e));
    e->options = (struct election_options){
        .silence_ms = or_default(o->silence_ms, ELECTION_SILENCE_MS),
        .rank_ms = or_default(o->rank_ms, ELECTION_RANK_MS),
        .tenure_ms = or_default(o->tenure_ms, ELECTION_TENURE_MS),
        .answer_ms = or_default(o->answer_ms, ELECTION_ANSWER_MS),
    };
    e->self = o->self;
    e->count = o->member_count;
    e->leader = e->told_leader = ELECTION_NOBODY;
    e->now_ms = e->started_ms = MAX(now_ms, UINT64_C(1)); /* 0 is "not" */
    e->due_ms = e->now_ms + ELECTION_TICK_MS;
    if (o->backoff_ms > 0) {
        e->backoff_ms = o->backoff_ms;
        e->replaced_ms = e->started_ms;
        e->damped_until_ms = e->started_ms + o->backoff_ms;
    }
    return e;
}

void election_free(struct election *e)
{
    free(e);
}

uint64_t election_due_ms(const struct election *e)
{
    return e->due_ms;
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

uint32_t election_backoff_ms(const struct election *e)
{
    return is_calm(e) ? 0 : e->backoff_ms;
}

bool election_suspects(const struct election *e)
{
    return e->suspect_ms != 0 || e->gone_ms != 0;
}
