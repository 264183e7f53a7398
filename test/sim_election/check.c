/* check.c - what must hold after every step of a member, and what at rest. */
#include "world.h"

static bool owns_epoch(const struct world *w, uint32_t i, uint64_t epoch)
{
    const struct owner *o = &w->owners[epoch];
    return epoch > 0 && epoch <= w->epoch && o->member == i && o->life == w->members[i].life;
}

static void check_lead(struct world *w, uint32_t i, uint64_t epoch)
{
    const struct member *m = &w->members[i];
    if (!owns_epoch(w, i, epoch))
        world_fail(w, "%u is to lead under epoch %llu, which is not its own", i,
                   (unsigned long long)epoch);
    if (m->taken != epoch || m->caught_up != epoch)
        world_fail(w, "%u is to lead and has not caught up", i);
    if (m->leads != 0)
        world_fail(w, "%u is to lead and does", i);
}

static void check_follow(struct world *w, uint32_t i, const struct election_order *o)
{
    const struct member *m = &w->members[i];
    if (o->epoch > w->epoch || w->owners[o->epoch].member != o->member)
        world_fail(w, "%u follows %u under epoch %llu, which is another's", i, o->member,
                   (unsigned long long)o->epoch);
    if (o->epoch < m->told_epoch || (o->epoch == m->told_epoch && o->member == m->told_leader))
        world_fail(w, "%u is told twice to follow %u", i, o->member);
}

void check_order(struct world *w, uint32_t i, const struct election_order *o)
{
    const struct member *m = &w->members[i];
    bool is_speech = o->kind == ELECTION_ASK || o->kind == ELECTION_ANSWER;
    if (is_speech && (o->member >= w->count || o->member == i))
        world_fail(w, "%u speaks to %u", i, o->member);
    if (m->stepped_down && o->kind != ELECTION_ANSWER)
        world_fail(w, "%u has stepped down and goes on", i);
    if (o->kind == ELECTION_TAKE &&
        (m->take != 0 || !m->synced || m->leads != 0 || o->epoch != election_epoch(m->e)))
        world_fail(w, "%u takes an epoch and should not", i);
    if (o->kind == ELECTION_LEAD)
        check_lead(w, i, o->epoch);
    if (o->kind == ELECTION_FOLLOW)
        check_follow(w, i, o);
    if (o->kind == ELECTION_STEP_DOWN && m->leads == 0)
        world_fail(w, "%u steps down and does not lead", i);
}

void check_member(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    uint64_t epoch = election_epoch(m->e);
    if (epoch < m->seen || epoch > w->epoch)
        world_fail(w, "%u knows epoch %llu after %llu, of %llu", i, (unsigned long long)epoch,
                   (unsigned long long)m->seen, (unsigned long long)w->epoch);
    m->seen = epoch;
    if (election_leads(m->e) != (m->leads != 0))
        world_fail(w, "%u says that it %s, its orders say otherwise", i,
                   election_leads(m->e) ? "leads" : "does not lead");
    if (m->leads != 0 && epoch != m->leads)
        world_fail(w, "%u leads under epoch %llu and knows of %llu", i,
                   (unsigned long long)m->leads, (unsigned long long)epoch);
}

uint32_t leaders(const struct world *w)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < w->count; i++)
        count += w->members[i].leads != 0;
    return count;
}

uint32_t leader_of(const struct world *w)
{
    uint32_t owner = w->epoch > 0 ? w->owners[w->epoch].member : ELECTION_NOBODY;
    return owner != ELECTION_NOBODY && w->members[owner].leads == w->epoch ? owner
                                                                           : ELECTION_NOBODY;
}

bool is_settled(const struct world *w)
{
    uint32_t leader = leader_of(w);
    if (leader == ELECTION_NOBODY || leaders(w) != 1)
        return false;
    for (uint32_t i = 0; i < w->count; i++) {
        const struct member *m = &w->members[i];
        if (m->e == NULL || m->paused || !m->synced || election_leader(m->e) != leader ||
            election_epoch(m->e) != w->epoch || election_suspects(m->e))
            return false;
    }
    return true;
}
