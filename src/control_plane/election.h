/* election.h - which of the control planes should lead. Pure: no I/O, no clock, no randomness; one
 * thread; election_step() never blocks.
 *
 * Safety is none of its business: the store lets one take each epoch and refuses the writes of all
 * before, and workers and data planes refuse the orders of older epochs. This decides when to try,
 * so that a dead leader is replaced at once and one that is only slow is left alone:
 *  - The leader is gone: its connection was closed by its system (FIN, RST), it says that it leads
 *    no more, or it was an earlier life of ours. The first live member that reaches the store takes
 *    the epoch at once, the next rank_ms later, and so on, in case the first is in trouble.
 *  - The leader is silent for silence_ms: the others are asked. When a majority of all members,
 *    ourselves included, does not hear it, it is replaced. When a majority cannot be asked, after
 *    tenure_ms, if the store is reached. One that hears it objects, and goes on objecting until it
 *    does not hear it either.
 *  - Who takes an epoch and does not say within tenure_ms that it leads counts as silent.
 *  - A new leader has tenure: for tenure_ms it is not replaced on suspicion. If it came by one,
 *    for twice as long each time, up to ELECTION_BACKOFF_MS_MAX, until ELECTION_CALM_MS without.
 *    Whoever has seen it begin objects for so long, because others may have begun a new life since
 *    and not know.
 *  - A leader steps down in the step in which it learns of a newer epoch, from whomever. It never
 *    leads again in this life: the program starts anew, with a new election.
 *
 * Decided: a leader that for ELECTION_STORE_MS does not reach the store and hears another member
 * that does steps down, and stays when it hears none. Placing, scaling and starting
 * need no store, so a leader without it does all but registrations, and nobody else could do more.
 * One that is cut off from the other members too cannot know whether they reach it. It stays: what
 * it does wrongly is refused by the fence, and workers that are cut off together with it are
 * served.
 *
 * A member that was stopped itself (it is stepped late) has heard nobody, and suspects nobody for
 * that. Times are differences of `now_ms`, so clocks need not agree, only run about equally fast.
 */
#pragma once
#include "base/base.h"

#define ELECTION_MEMBERS_MAX 9u
#define ELECTION_SILENCE_MS 150u
#define ELECTION_RANK_MS 40u
#define ELECTION_TENURE_MS 2000u
#define ELECTION_ANSWER_MS 200u
#define ELECTION_BACKOFF_MS_MAX 30000u
#define ELECTION_CALM_MS 60000u
#define ELECTION_STORE_MS 500u
#define ELECTION_START_MS                                                                        \
    300u                       /* for the others to come, before one that is absent is suspected \
                                */
#define ELECTION_RETRY_MS 100u /* after the store was not reached, or refused */
#define ELECTION_ASK_MS 50u    /* between two questions to one member */
#define ELECTION_TICK_MS 25u   /* between two steps, where there are others to be heard */
#define ELECTION_NOBODY UINT32_MAX

/* Everybody must have the same, but for `self`. What is 0 has the value above. */
struct election_options {
    uint32_t self, member_count; /* self: index among the sorted names of all; counts as its rank */
    uint32_t silence_ms, rank_ms, tenure_ms;
    uint32_t answer_ms;  /* an answer is good for so long; after that it is as if never given */
    uint32_t backoff_ms; /* election_backoff_ms() of the life before, if it stepped down; else 0 */
};

struct election; /* opaque */

enum election_event_kind {
    ELECTION_PEER_UP,       /* member */
    ELECTION_PEER_DOWN,     /* member; dead: its process has ended, else nobody knows */
    ELECTION_HEARD,         /* member, epoch that it has seen, leads, reaches_store */
    ELECTION_ASKED,         /* member, epoch: do you hear that epoch's leader? */
    ELECTION_ANSWERED,      /* member, epoch, hears */
    ELECTION_STORE_EPOCH,   /* epoch, member that took it or ELECTION_NOBODY; 0: none yet. The first
                               says that this member's copy of the store is complete */
    ELECTION_STORE_REACHED, /* reaches_store */
    ELECTION_TAKEN,         /* epoch: ours */
    ELECTION_TAKE_REFUSED,  /* another was faster; the epoch now (0: not known) and its member */
    ELECTION_TAKE_FAILED,   /* the store was not reached; what became of it is not known */
    ELECTION_CAUGHT_UP,     /* epoch: the copy has every change from before it was taken */
    ELECTION_REFUSED,       /* epoch: somebody has orders of it */
    ELECTION_TICK,
};
struct election_event {
    enum election_event_kind kind;
    uint32_t member; /* of the first five: below member_count, not `self` */
    uint64_t epoch;
    bool dead, leads, hears, reaches_store;
};

enum election_order_kind {
    ELECTION_ASK,       /* member, epoch */
    ELECTION_ANSWER,    /* member, epoch, hears: true is an objection to replacing its leader */
    ELECTION_TAKE,      /* epoch: the newest known. Take the next one, unless the store has another
                           by now; exactly one of TAKEN, TAKE_REFUSED, TAKE_FAILED follows */
    ELECTION_LEAD,      /* epoch; after TAKEN and CAUGHT_UP */
    ELECTION_STEP_DOWN, /* why; epoch: the newest known. The last order but for answers */
    ELECTION_FOLLOW,    /* epoch, member that leads under it; each pair once */
};
struct election_order {
    enum election_order_kind kind;
    uint32_t member;
    uint64_t epoch;
    bool hears;
    const char *why; /* a literal */
};
#define ELECTION_ORDERS_MAX 16u
static_assert(ELECTION_ORDERS_MAX >= ELECTION_MEMBERS_MAX + 4, "asks, and one of each other kind");
struct election_orders {
    struct election_order items[ELECTION_ORDERS_MAX];
    size_t count;
};

struct election *election_new(const struct election_options *options, uint64_t now_ms);
void election_free(struct election *e); /* NULL does nothing */
/* `now_ms` is monotonic. `ret_orders` are to be carried out in their order. */
void election_step(struct election *e, const struct election_event *event, uint64_t now_ms,
                   struct election_orders *ret_orders);
/* When TICK is due at the latest; later than the last step. */
uint64_t election_due_ms(const struct election *e);

bool election_leads(const struct election *e);      /* between LEAD and STEP_DOWN */
uint64_t election_epoch(const struct election *e);  /* the newest seen */
uint32_t election_leader(const struct election *e); /* of that epoch; ELECTION_NOBODY: not known */
/* What the next life is to know: two that cannot hear each other would else replace each other at
 * one pace for ever. 0: nothing. */
uint32_t election_backoff_ms(const struct election *e);
bool election_suspects(const struct election *e); /* the leader is gone or silent */
