/* election_test.c - each rule as a short script of events and orders. Whole clusters with faults:
 * test/sim_election. */
#include "control_plane/election.h"
#include "test.h"

/* ---- scripts: one member, three in all; the others are played ---- */

struct script {
    struct election *e;
    uint64_t now_ms;
    struct election_orders orders; /* of the last step */
    unsigned takes, leads, steps_down, asks, follows;
};

static struct script new_of(uint32_t self, uint32_t count)
{
    struct election_options options = {.self = self, .member_count = count};
    return (struct script){.e = election_new(&options, 1000), .now_ms = 1000};
}

static void step(struct script *s, struct election_event event)
{
    election_step(s->e, &event, s->now_ms, &s->orders);
    for (size_t i = 0; i < s->orders.count; i++) {
        s->takes += s->orders.items[i].kind == ELECTION_TAKE;
        s->leads += s->orders.items[i].kind == ELECTION_LEAD;
        s->steps_down += s->orders.items[i].kind == ELECTION_STEP_DOWN;
        s->asks += s->orders.items[i].kind == ELECTION_ASK;
        s->follows += s->orders.items[i].kind == ELECTION_FOLLOW;
    }
}

#define EVENT(...) ((struct election_event){__VA_ARGS__})

/* Time passes; those in `beating` are heard, `leader` leads under `epoch`. */
static void pass(struct script *s, uint64_t ms, unsigned beating, uint32_t leader, uint64_t epoch)
{
    for (uint64_t end = s->now_ms + ms; s->now_ms < end;) {
        s->now_ms += 10;
        for (uint32_t i = 0; i < 3; i++)
            if ((beating & 1u << i) != 0)
                step(s, EVENT(.kind = ELECTION_HEARD, .member = i, .epoch = epoch,
                              .leads = i == leader, .reaches_store = true));
        step(s, EVENT(.kind = ELECTION_TICK));
    }
}

static struct script follower_of(uint32_t self, uint32_t leader)
{
    struct script s = new_of(self, 3);
    for (uint32_t i = 0; i < 3; i++)
        if (i != self)
            step(&s, EVENT(.kind = ELECTION_PEER_UP, .member = i));
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 5, .member = leader));
    pass(&s, 500, 7u & ~(1u << self), leader, 5);
    CHECK_EQ(s.takes, 0);
    return s;
}

TEST(a_leader_whose_process_died_is_replaced_at_once_by_the_first)
{
    struct script first = follower_of(0, 2), second = follower_of(1, 2);
    step(&first, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    step(&second, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    CHECK_EQ(first.takes, 1);
    CHECK_EQ(second.takes, 0);
    pass(&second, ELECTION_RANK_MS, 1, ELECTION_NOBODY, 5); /* the first lives and does nothing */
    CHECK_EQ(second.takes, 1);
    election_free(first.e);
    election_free(second.e);
}

TEST(of_a_new_cluster_the_first_begins_however_late_the_store_is)
{
    struct script first = new_of(0, 3), second = new_of(1, 3);
    pass(&first, 500, 6, ELECTION_NOBODY, 0);
    pass(&second, 500, 5, ELECTION_NOBODY, 0);
    step(&first, EVENT(.kind = ELECTION_STORE_EPOCH, .member = ELECTION_NOBODY));
    step(&second, EVENT(.kind = ELECTION_STORE_EPOCH, .member = ELECTION_NOBODY));
    CHECK_EQ(first.takes, 1);
    CHECK_EQ(second.takes, 0);
    pass(&second, ELECTION_RANK_MS, 5, ELECTION_NOBODY, 0); /* the first does nothing */
    CHECK_EQ(second.takes, 1);
    election_free(first.e);
    election_free(second.e);
}

TEST(leading_begins_when_the_epoch_is_taken_and_all_before_it_is_known)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    CHECK_EQ(s.leads, 0);
    step(&s, EVENT(.kind = ELECTION_TAKEN, .epoch = 6));
    CHECK_EQ(s.leads, 0);
    CHECK(!election_leads(s.e));
    step(&s, EVENT(.kind = ELECTION_CAUGHT_UP, .epoch = 5)); /* of another try */
    CHECK_EQ(s.leads, 0);
    step(&s, EVENT(.kind = ELECTION_CAUGHT_UP, .epoch = 6));
    CHECK_EQ(s.leads, 1);
    CHECK(election_leads(s.e) && election_epoch(s.e) == 6 && election_leader(s.e) == 0);
    election_free(s.e);
}

TEST(a_silent_leader_is_replaced_when_a_majority_does_not_hear_it)
{
    struct script s = follower_of(0, 2);
    pass(&s, ELECTION_SILENCE_MS + 30, 2, ELECTION_NOBODY, 5);
    CHECK(s.asks > 0);
    CHECK_EQ(s.takes, 0);
    step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 1, .epoch = 5, .hears = false));
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(who_hears_the_leader_vetoes)
{
    struct script s = follower_of(0, 2);
    for (int i = 0; i < 300; i++) {
        pass(&s, 10, 2, ELECTION_NOBODY, 5);
        step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 1, .epoch = 5, .hears = true));
    }
    CHECK_EQ(s.takes, 0);
    election_free(s.e);
}

TEST(who_can_ask_nobody_waits_longer)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 1, .dead = true));
    pass(&s, ELECTION_TENURE_MS - 100, 0, ELECTION_NOBODY, 5);
    CHECK_EQ(s.takes, 0);
    pass(&s, ELECTION_SILENCE_MS + 200, 0, ELECTION_NOBODY, 5);
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(what_is_asked_is_answered_by_what_is_heard)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_ASKED, .member = 1, .epoch = 5));
    CHECK(s.orders.count == 1 && s.orders.items[0].kind == ELECTION_ANSWER &&
          s.orders.items[0].hears);
    pass(&s, ELECTION_SILENCE_MS + 20, 2, ELECTION_NOBODY, 5);
    step(&s, EVENT(.kind = ELECTION_ASKED, .member = 1, .epoch = 5));
    bool found = false;
    for (size_t i = 0; i < s.orders.count; i++)
        if (s.orders.items[i].kind == ELECTION_ANSWER)
            found = !s.orders.items[i].hears;
    CHECK(found);
    election_free(s.e);
}

static struct script leader_with(uint64_t epoch)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    step(&s, EVENT(.kind = ELECTION_TAKEN, .epoch = epoch));
    step(&s, EVENT(.kind = ELECTION_CAUGHT_UP, .epoch = epoch));
    CHECK(election_leads(s.e));
    return s;
}

TEST(a_leader_that_learns_of_a_newer_epoch_steps_down_at_once)
{
    for (int way = 0; way < 5; way++) {
        struct script s = leader_with(6);
        if (way == 0)
            step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 7, .member = 1));
        else if (way == 1)
            step(&s, EVENT(.kind = ELECTION_HEARD, .member = 1, .epoch = 7, .leads = true));
        else if (way == 2)
            step(&s, EVENT(.kind = ELECTION_REFUSED, .epoch = 7));
        else if (way == 3)
            step(&s, EVENT(.kind = ELECTION_HEARD, .member = 1, .epoch = 7));
        else
            step(&s, EVENT(.kind = ELECTION_ASKED, .member = 1, .epoch = 7));
        CHECK_EQ(s.steps_down, 1);
        CHECK(!election_leads(s.e));
        pass(&s, 5000, 0, ELECTION_NOBODY, 7);
        CHECK_EQ(s.takes, 1); /* never again in this life */
        election_free(s.e);
    }
}

TEST(a_leader_without_the_store_yields_to_one_that_has_it_and_else_stays)
{
    struct script s = leader_with(6), alone = leader_with(6);
    step(&s, EVENT(.kind = ELECTION_STORE_REACHED, .reaches_store = false));
    pass(&s, ELECTION_STORE_MS + 20, 2, ELECTION_NOBODY, 6);
    CHECK_EQ(s.steps_down, 1);
    step(&alone, EVENT(.kind = ELECTION_STORE_REACHED, .reaches_store = false));
    pass(&alone, 10000, 0, ELECTION_NOBODY, 6);
    CHECK_EQ(alone.steps_down, 0);
    election_free(s.e);
    election_free(alone.e);
}

TEST(a_member_that_stood_still_suspects_nobody_for_it)
{
    struct script s = follower_of(0, 2);
    s.now_ms += 5000;
    step(&s, EVENT(.kind = ELECTION_TICK));
    pass(&s, 100, 0, ELECTION_NOBODY, 5);
    CHECK_EQ(s.asks + s.takes, 0);
    pass(&s, 500, 6, 2, 5);
    CHECK_EQ(s.asks + s.takes, 0);
    election_free(s.e);
}

TEST(after_a_replacement_on_suspicion_the_next_waits)
{
    struct script s = follower_of(0, 2);
    pass(&s, ELECTION_SILENCE_MS + 30, 2, ELECTION_NOBODY, 5);
    step(&s,
         EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 1)); /* the other was faster */
    pass(&s, 300, 2, 1, 6);
    unsigned takes = s.takes;
    for (int i = 0; i < 150; i++) { /* the new one falls silent, too, and 2 does not hear it */
        pass(&s, 10, 4, ELECTION_NOBODY, 6);
        step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 2, .epoch = 6, .hears = false));
    }
    CHECK_EQ(s.takes, takes);
    for (int i = 0; i < 50; i++) {
        pass(&s, 10, 4, ELECTION_NOBODY, 6);
        step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 2, .epoch = 6, .hears = false));
    }
    CHECK_EQ(s.takes, takes + 1);
    election_free(s.e);
}

TEST(one_alone_leads_soon_and_again_after_a_restart)
{
    struct script s = new_of(0, 1);
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 0, .member = ELECTION_NOBODY));
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
    s = new_of(0, 1);
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 9, .member = 0));
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(others_who_see_our_epoch_first_do_not_make_us_take_another)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    step(&s, EVENT(.kind = ELECTION_HEARD, .member = 1, .epoch = 6, .reaches_store = true));
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 0));
    step(&s, EVENT(.kind = ELECTION_TAKEN, .epoch = 6));
    step(&s, EVENT(.kind = ELECTION_CAUGHT_UP, .epoch = 6));
    CHECK_EQ(s.takes, 1);
    CHECK_EQ(s.leads, 1);
    election_free(s.e);
}

/* ---- what a leader is that is heard and does not lead ---- */

TEST(a_leader_that_comes_back_as_a_standby_is_replaced_although_it_is_heard)
{
    for (int seen = 0; seen < 2; seen++) { /* that its connection was closed in between */
        struct script s = follower_of(1, 2);
        if (seen)
            step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
        step(&s, EVENT(.kind = ELECTION_PEER_UP, .member = 2));
        pass(&s, ELECTION_RANK_MS + 10, 5, ELECTION_NOBODY, 5);
        CHECK_EQ(s.takes, 1); /* the first was in trouble */
        election_free(s.e);
    }
}

TEST(one_that_took_the_epoch_and_does_not_begin_is_replaced_after_a_while)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 1));
    for (int i = 0; i < 195; i++) {
        pass(&s, 10, 6, ELECTION_NOBODY, 6);
        step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 2, .epoch = 6, .hears = false));
    }
    CHECK_EQ(s.takes, 0);
    for (int i = 0; i < 10; i++) {
        pass(&s, 10, 6, ELECTION_NOBODY, 6);
        step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 2, .epoch = 6, .hears = false));
    }
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(a_take_whose_answer_was_lost_is_followed_by_another)
{
    for (int order = 0; order < 2;
         order++) { /* what comes first: the store's news, or the failure */
        struct script s = follower_of(0, 2);
        step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
        if (order == 0)
            step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 0));
        step(&s, EVENT(.kind = ELECTION_TAKE_FAILED));
        if (order == 1)
            step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 0));
        pass(&s, ELECTION_RETRY_MS + 10, 2, ELECTION_NOBODY, 6);
        CHECK_EQ(s.takes, 2);
        step(&s, EVENT(.kind = ELECTION_TAKEN, .epoch = 7));
        step(&s, EVENT(.kind = ELECTION_CAUGHT_UP, .epoch = 7));
        CHECK_EQ(s.leads, 1);
        election_free(s.e);
    }
}

TEST(an_epoch_of_which_the_leader_is_not_known_yet_suspects_nobody)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    step(&s, EVENT(.kind = ELECTION_TAKE_REFUSED, .epoch = 6, .member = ELECTION_NOBODY));
    pass(&s, ELECTION_SILENCE_MS - 20, 2, ELECTION_NOBODY, 6);
    CHECK_EQ(s.asks, 0);
    pass(&s, 20, 2, 1, 6);
    CHECK_EQ(s.takes, 1);
    CHECK_EQ(s.follows, 2);
    CHECK_EQ(election_leader(s.e), 1);
    election_free(s.e);
}

TEST(a_process_that_died_long_before_its_epoch_was_seen_has_another_life)
{
    struct script soon = follower_of(0, 2), late = follower_of(0, 2);
    step(&soon, EVENT(.kind = ELECTION_PEER_DOWN, .member = 1, .dead = true));
    pass(&soon, 20, 4, 2, 5);
    step(&soon, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 1));
    CHECK_EQ(soon.takes, 1); /* it took the epoch and was killed: the store's news came last */
    step(&late, EVENT(.kind = ELECTION_PEER_DOWN, .member = 1, .dead = true));
    pass(&late, 1000, 4, 2, 5);
    step(&late, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 1));
    pass(&late, ELECTION_SILENCE_MS - 20, 4, ELECTION_NOBODY, 6);
    CHECK_EQ(late.takes, 0);
    election_free(soon.e);
    election_free(late.e);
}

TEST(who_has_seen_a_replacement_on_suspicion_objects_to_the_next)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 6, .member = 1));
    pass(&s, 300, 2, 1, 6);
    pass(&s, 300, 4, ELECTION_NOBODY, 6); /* 1 falls silent; 2, in a new life, asks */
    step(&s, EVENT(.kind = ELECTION_ASKED, .member = 2, .epoch = 6));
    CHECK(s.orders.items[0].kind == ELECTION_ANSWER && s.orders.items[0].hears);
    pass(&s, ELECTION_TENURE_MS, 4, ELECTION_NOBODY, 6);
    step(&s, EVENT(.kind = ELECTION_ASKED, .member = 2, .epoch = 6));
    CHECK(s.orders.items[0].kind == ELECTION_ANSWER && !s.orders.items[0].hears);
    election_free(s.e);
}

TEST(replacements_on_suspicion_wait_twice_as_long_each_time)
{
    struct script s = follower_of(0, 1);
    uint64_t begin_ms = 0;
    for (uint32_t round = 0; round < 7; round++) {
        unsigned takes = s.takes;
        while (s.takes == takes && s.now_ms < begin_ms + 100000) {
            pass(&s, 10, 4, ELECTION_NOBODY, 5 + round);
            step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 2, .epoch = 5 + round));
        }
        if (round > 0) {
            uint64_t least_ms = MIN(ELECTION_TENURE_MS << (round - 1), ELECTION_BACKOFF_MS_MAX);
            CHECK(s.now_ms - begin_ms >= least_ms && s.now_ms - begin_ms < least_ms + 200);
        }
        begin_ms = s.now_ms;
        step(&s, EVENT(.kind = ELECTION_TAKE_REFUSED, .epoch = 6 + round, .member = 1));
    }
    election_free(s.e);
}

TEST(an_objection_that_ends_begins_the_wait_anew)
{
    struct script s = follower_of(0, 2);
    for (int i = 0; i < 300; i++) {
        pass(&s, 10, 2, ELECTION_NOBODY, 5);
        step(&s, EVENT(.kind = ELECTION_ANSWERED, .member = 1, .epoch = 5, .hears = true));
    }
    pass(&s, ELECTION_TENURE_MS - 20, 2, ELECTION_NOBODY, 5); /* it answers no more */
    CHECK_EQ(s.takes, 0);
    pass(&s, ELECTION_ANSWER_MS + 50, 2, ELECTION_NOBODY, 5);
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(one_that_does_not_reach_the_store_keeps_nobody_waiting)
{
    struct script next = follower_of(1, 2);
    step(&next, EVENT(.kind = ELECTION_HEARD, .member = 0, .epoch = 5, .reaches_store = false));
    step(&next, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    CHECK_EQ(next.takes, 1);
    election_free(next.e);
}

TEST(one_that_can_ask_nobody_tries_only_when_it_reaches_the_store)
{
    struct script s = follower_of(0, 2);
    step(&s, EVENT(.kind = ELECTION_STORE_REACHED, .reaches_store = false));
    pass(&s, 3 * ELECTION_TENURE_MS, 0, ELECTION_NOBODY, 5);
    CHECK_EQ(s.takes, 0);
    step(&s, EVENT(.kind = ELECTION_STORE_REACHED, .reaches_store = true));
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(a_new_cluster_waits_for_the_first_in_rank_but_not_for_long)
{
    struct script all = new_of(0, 2), second = new_of(1, 2), alone = new_of(1, 2);
    step(&all, EVENT(.kind = ELECTION_PEER_UP, .member = 1));
    step(&all, EVENT(.kind = ELECTION_STORE_EPOCH, .member = ELECTION_NOBODY));
    CHECK_EQ(all.takes, 1);
    step(&second, EVENT(.kind = ELECTION_PEER_UP, .member = 0));
    step(&second, EVENT(.kind = ELECTION_STORE_EPOCH, .member = ELECTION_NOBODY));
    pass(&second, ELECTION_RANK_MS - 10, 1, ELECTION_NOBODY, 0);
    CHECK_EQ(second.takes, 0);
    step(&alone, EVENT(.kind = ELECTION_STORE_EPOCH, .member = ELECTION_NOBODY));
    pass(&alone, ELECTION_SILENCE_MS - 10, 0, ELECTION_NOBODY, 0);
    CHECK_EQ(alone.takes, 0);
    pass(&alone, 10, 0, ELECTION_NOBODY, 0);
    CHECK_EQ(alone.takes, 1);
    election_free(all.e);
    election_free(second.e);
    election_free(alone.e);
}

TEST(nobody_tries_before_its_copy_of_the_store_is_complete)
{
    struct script s = new_of(0, 3);
    step(&s, EVENT(.kind = ELECTION_PEER_UP, .member = 1));
    step(&s, EVENT(.kind = ELECTION_PEER_UP, .member = 2));
    pass(&s, 400, 6, 2, 5);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    pass(&s, 5000, 2, ELECTION_NOBODY, 5);
    CHECK_EQ(s.takes, 0);
    step(&s, EVENT(.kind = ELECTION_STORE_EPOCH, .epoch = 5, .member = 2));
    CHECK_EQ(s.takes, 1);
    election_free(s.e);
}

TEST(a_tick_is_due_later_than_now_and_when_something_happens)
{
    struct script s = follower_of(1, 2);
    CHECK(election_due_ms(s.e) > s.now_ms);
    CHECK(election_due_ms(s.e) <= s.now_ms + ELECTION_TICK_MS);
    step(&s, EVENT(.kind = ELECTION_PEER_DOWN, .member = 2, .dead = true));
    uint64_t end_ms = s.now_ms + ELECTION_RANK_MS;
    while (s.takes == 0 && s.now_ms < end_ms + 100) { /* not later than it need be */
        CHECK(election_due_ms(s.e) > s.now_ms);
        s.now_ms = election_due_ms(s.e);
        step(&s, EVENT(.kind = ELECTION_HEARD, .member = 0, .epoch = 5, .reaches_store = true));
    }
    CHECK_EQ(s.now_ms, end_ms);
    election_free(s.e);
}
