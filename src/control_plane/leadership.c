/* leadership.c - translates: what the store and the members say becomes events of the election, its
 * orders become calls. */
#include "control_plane/leadership.h"
#include "base/crash_point.h"
#include "base/log.h"
#include "control_plane/copies.h"
#include "control_plane/election.h"
#include "control_plane/members.h"
#include "control_plane/registry.h"
#include <stdlib.h>
#include <string.h>

struct leadership {
    struct control_plane *cp;
    struct election *election;
    struct members *members; /* NULL: alone */
    struct loop_timer timer;
    void (*on_lead)(struct control_plane *cp);
    bool synced, reached, closed, is_refused;
    uint64_t stored_epoch; /* the newest that the store has told, and who took it */
    uint32_t stored_leader;
    uint64_t suspected_ns; /* since when, for the log; 0: not */
    uint64_t take_ns;
    uint64_t started_ms, rival_until_ms;
    uint64_t store_lost_ms; /* since when, where it is not reached */
};

#define RIVAL_FIRST_MS 300u /* whoever has our name is known by then */
#define RIVAL_MS 3000u      /* since a member has refused us: it is asked again within a second */

static uint64_t now_ms(const struct leadership *l)
{
    return loop_now_ns(l->cp->loop) / NS_PER_MS;
}

/* ---- orders ---- */

/* Another process may have our name, by mistake: to the election it is an earlier life of ours,
 * whose place is ours. The members that it is connected to refuse us. */
static bool has_rival(const struct leadership *l)
{
    bool is_heir = l->members != NULL && l->stored_leader == members_self(l->members);
    return now_ms(l) < l->rival_until_ms || (is_heir && now_ms(l) < l->started_ms + RIVAL_FIRST_MS);
}

static void step(struct leadership *l, struct election_event event);
#define STEP(l, ...) step(l, (struct election_event){__VA_ARGS__})

static void lead(struct leadership *l, uint64_t epoch)
{
    struct control_plane *cp = l->cp;
    log_info("control_plane.leads", LOG_U64("epoch", epoch),
             LOG_U64("took_us", (loop_update_now(cp->loop) - l->take_ns) / NS_PER_US));
    l->on_lead(cp);
}

static void carry_out(struct leadership *l, const struct election_order *o)
{
    switch (o->kind) {
    case ELECTION_ASK:
        members_ask(l->members, o->member, o->epoch);
        return;
    case ELECTION_ANSWER:
        members_answer(l->members, o->member, o->epoch, o->hears);
        return;
    case ELECTION_TAKE:
        l->take_ns = loop_update_now(l->cp->loop);
        if (has_rival(l)) {
            l->is_refused = true;
            return;
        }
        store_take(l->cp->store, o->epoch);
        return;
    case ELECTION_LEAD:
        lead(l, o->epoch);
        return;
    case ELECTION_STEP_DOWN:
        l->cp->backoff_ms = election_backoff_ms(l->election);
        shell_succeeded(l->cp, o->epoch, o->why);
        return;
    case ELECTION_FOLLOW:
        log_info("control_plane.follows", LOG_U64("epoch", o->epoch),
                 LOG_STR("leader", members_name(l->members, o->member)));
        return;
    }
    assert(false);
}

static void arm(struct leadership *l)
{
    loop_timer_start(l->cp->loop, &l->timer, election_due_ms(l->election) * NS_PER_MS);
}

static void step(struct leadership *l, struct election_event event)
{
    struct election_orders orders;
    if (l->closed)
        return;
    election_step(l->election, &event, now_ms(l), &orders);
    for (size_t i = 0; i < orders.count; i++)
        carry_out(l, &orders.items[i]);
    if (l->members != NULL)
        members_say(l->members, election_epoch(l->election), election_leads(l->election),
                    l->reached);
    arm(l);
    if (!l->is_refused)
        return;
    l->is_refused = false; /* by ourselves: it is tried again later */
    STEP(l, .kind = ELECTION_TAKE_FAILED, .member = ELECTION_NOBODY);
}

static void on_timer(struct loop_timer *timer)
{
    struct leadership *l = container_of(timer, struct leadership, timer);
    STEP(l, .kind = ELECTION_TICK, .member = ELECTION_NOBODY);
}

/* ---- members ---- */

static void on_member_up(void *user, uint32_t member)
{
    STEP(user, .kind = ELECTION_PEER_UP, .member = member);
}

static void on_member_down(void *user, uint32_t member, bool dead)
{
    struct leadership *l = user;
    copies_member_down(l->cp->copies, member);
    STEP(user, .kind = ELECTION_PEER_DOWN, .member = member, .dead = dead);
}

static void on_member_rival(void *user, uint32_t member)
{
    struct leadership *l = user;
    (void)member;
    l->rival_until_ms = now_ms(l) + RIVAL_MS;
}

static void on_member_beat(void *user, uint32_t member, const Dirigent__MemberBeat *beat)
{
    struct leadership *l = user;
    STEP(l, .kind = ELECTION_HEARD, .member = member, .epoch = beat->epoch, .leads = beat->leads,
         .reaches_store = beat->reaches_store);
    if (beat->ask != 0)
        STEP(l, .kind = ELECTION_ASKED, .member = member, .epoch = beat->ask);
    if (beat->answer != 0)
        STEP(l, .kind = ELECTION_ANSWERED, .member = member, .epoch = beat->answer,
             .hears = beat->hears);
    if (!l->closed)
        copies_beat(l->cp->copies, member, beat);
}

static void on_member_chunk(void *user, uint32_t member, const Dirigent__BlobChunk *chunk)
{
    struct leadership *l = user;
    copies_chunk(l->cp->copies, member, chunk);
}

/* ---- the store ---- */

static void on_record(void *user, enum store_kind kind, uint64_t id, const char *value)
{
    struct leadership *l = user;
    struct error e = {0};
    if (l->cp->leads || l->closed)
        return; /* our own, come back */
    if (shell_take_record(l->cp, kind, id, value, &e) == ERR_OK)
        return;
    log_error("store.record", LOG_STR("why", e.text));
    l->cp->end = ERR_CORRUPT;
    loop_stop(l->cp->loop);
}

static uint32_t member_of(const struct leadership *l, const char *name)
{
    if (l->members == NULL)
        return strcmp(name, l->cp->name) == 0 ? 0 : ELECTION_NOBODY;
    for (uint32_t i = 0; i < members_count(l->members); i++)
        if (strcmp(members_name(l->members, i), name) == 0)
            return i;
    return ELECTION_NOBODY;
}

static void on_epoch(void *user, uint64_t epoch, const char *leader)
{
    struct leadership *l = user;
    log_info("control_plane.epoch", LOG_U64("epoch", epoch), LOG_STR("leader", leader));
    l->stored_epoch = epoch;
    l->stored_leader = member_of(l, leader);
    if (l->synced)
        STEP(l, .kind = ELECTION_STORE_EPOCH, .epoch = epoch, .member = l->stored_leader);
    else
        STEP(l, .kind = ELECTION_REFUSED, .epoch = epoch,
             .member = ELECTION_NOBODY); /* not yet in a position to lead */
}

static void on_synced(void *user)
{
    struct leadership *l = user;
    l->synced = true;
    log_info("control_plane.stands_by", LOG_STR("name", l->cp->name),
             LOG_U64("functions", registry_count(l->cp->registry)),
             LOG_U64("epoch", election_epoch(l->election)));
    STEP(l, .kind = ELECTION_STORE_EPOCH, .epoch = l->stored_epoch, .member = l->stored_leader);
}

static void on_reached(void *user, bool reached, const char *why)
{
    struct leadership *l = user;
    if (reached != l->reached && !reached)
        log_warn("store.unreachable", LOG_STR("why", why));
    else if (reached != l->reached)
        log_info("store.reached");
    if (l->reached && !reached)
        l->store_lost_ms = now_ms(l);
    l->reached = reached;
    STEP(l, .kind = ELECTION_STORE_REACHED, .member = ELECTION_NOBODY, .reaches_store = reached);
}

static void on_taken(void *user, enum err err, uint64_t epoch, uint64_t next_id,
                     const struct error *e)
{
    struct leadership *l = user;
    if (err == ERR_OK) {
        CRASH_POINT("control_plane.taken");
        l->cp->epoch = epoch;
        l->cp->next_id = next_id;
        STEP(l, .kind = ELECTION_TAKEN, .epoch = epoch, .member = ELECTION_NOBODY);
        STEP(l, .kind = ELECTION_CAUGHT_UP, .epoch = epoch,
             .member = ELECTION_NOBODY); /* the store waits for it before it tells */
        return;
    }
    log_warn("control_plane.not_taken", LOG_STR("why", e->text));
    STEP(l, .kind = err == ERR_STALE ? ELECTION_TAKE_REFUSED : ELECTION_TAKE_FAILED,
         .member = ELECTION_NOBODY);
}

static void on_lost(void *user, enum err err, const char *why)
{
    struct leadership *l = user;
    shell_store_lost(l->cp, err, why);
}

/* ---- life ---- */

enum err leadership_start(struct control_plane *cp, void (*on_lead)(struct control_plane *cp),
                          struct leadership **ret_leadership, struct error *e)
{
    static const struct member_callbacks callbacks = {on_member_up, on_member_down, on_member_rival,
                                                      on_member_beat, on_member_chunk};
    struct leadership *l = mem_new(sizeof(*l));
    uint32_t self = 0, count = 1;
    enum err err = ERR_OK;
    l->cp = cp;
    l->on_lead = on_lead;
    l->reached = true;
    l->started_ms = now_ms(l);
    l->stored_leader = ELECTION_NOBODY;
    loop_timer_init(&l->timer, on_timer);
    if (cp->settings.peers[0] != '\0')
        err = members_new(cp, cp->name, cp->settings.peers, &callbacks, l, &l->members, e);
    if (err == ERR_OK && l->members != NULL) {
        self = members_self(l->members);
        count = members_count(l->members);
    }
    if (err == ERR_OK)
        l->election = election_new(&(struct election_options){.self = self,
                                                              .member_count = count,
                                                              .backoff_ms = cp->backoff_ms},
                                   now_ms(l));
    cp->backoff_ms = 0;
    const struct store_follower follower = {l,          on_record, on_epoch, on_synced,
                                            on_reached, on_taken,  on_lost};
    cp->members = l->members;
    *ret_leadership = l;
    if (err == ERR_OK)
        err = store_follow(cp->store, cp->loop, &follower, e);
    if (err == ERR_OK)
        arm(l);
    return err;
}

void leadership_close(struct leadership *l)
{
    if (l == NULL)
        return;
    l->closed = true;
    loop_timer_stop(l->cp->loop, &l->timer);
    if (l->members != NULL)
        members_close(l->members);
}

void leadership_free(struct leadership *l)
{
    if (l == NULL)
        return;
    members_free(l->members);
    election_free(l->election);
    free(l);
}

void leadership_refused(struct leadership *l, uint64_t epoch)
{
    STEP(l, .kind = ELECTION_REFUSED, .epoch = epoch, .member = ELECTION_NOBODY);
}

/* ---- views ---- */

uint64_t leadership_epoch(const struct leadership *l)
{
    return election_epoch(l->election);
}

const char *leadership_api_address(const struct leadership *l)
{
    uint32_t leader = election_leader(l->election);
    if (leader == ELECTION_NOBODY || l->members == NULL || !members_is_up(l->members, leader))
        return "";
    return members_api_address(l->members, leader);
}

bool leadership_member_next(const struct leadership *l, size_t *cursor, struct member_view *ret)
{
    uint32_t count = l->members != NULL ? members_count(l->members) : 1, i = (uint32_t)*cursor;
    if (i >= count)
        return false;
    ++*cursor;
    bool is_self = l->members == NULL || i == members_self(l->members);
    struct member_said said = {.epoch = election_epoch(l->election),
                               .functions = registry_count(l->cp->registry),
                               .reaches_store = l->reached,
                               .software = "dirigent " DIRIGENT_VERSION};
    if (l->members != NULL)
        members_said(l->members, i, &said);
    *ret = (struct member_view){
        .name = l->members != NULL ? members_name(l->members, i) : l->cp->name,
        .api_address =
            l->members != NULL ? members_api_address(l->members, i) : l->cp->settings.api,
        .is_self = is_self,
        .up = l->members == NULL || members_is_up(l->members, i),
        .leads = is_self ? election_leads(l->election) : election_leader(l->election) == i,
        .epoch = said.epoch,
        .functions = said.functions,
        .heard_ms_ago = said.heard_ms_ago,
        .reaches_store = said.reaches_store,
        .software = said.software,
    };
    return true;
}

bool leadership_is_synced(const struct leadership *l)
{
    return l->synced;
}

bool leadership_suspects(const struct leadership *l)
{
    return election_suspects(l->election);
}

bool leadership_store_reached(const struct leadership *l)
{
    return l->reached;
}

uint64_t leadership_store_lost_ms(const struct leadership *l)
{
    return l->reached ? 0 : MAX(now_ms(l) - l->store_lost_ms, UINT64_C(1));
}
