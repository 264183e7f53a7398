/* dispatch_test.c - slots and queue against an obvious model, and under many threads. */
#include "data_plane/dispatch.h"
#include "test.h"
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

/* ---- one request and what it was told ---- */

struct request {
    struct dispatch_waiter waiter;
    struct dispatch_endpoint *endpoint;
    enum { R_NEW, R_WAITING, R_GRANTED, R_SERVED, R_FAILED, R_REFUSED } state;
    enum err err;
    uint64_t grant_order;
    void *reason;
};
static uint64_t grants;

static void on_grant(struct dispatch_waiter *w)
{
    struct request *r = container_of(w, struct request, waiter);
    CHECK_EQ(r->state, R_WAITING);
    r->state = R_GRANTED;
    r->grant_order = ++grants;
}

static void on_failed(struct dispatch_waiter *w, enum err err, void *reason)
{
    struct request *r = container_of(w, struct request, waiter);
    CHECK_EQ(r->state, R_WAITING);
    r->state = R_FAILED;
    r->err = err;
    r->reason = reason;
}

static unsigned idle_told;
static void on_idle(void *user, struct dispatch_endpoint *endpoint)
{
    CHECK_EQ(dispatch_endpoint_in_flight(endpoint), 0);
    idle_told++;
}

static struct returned {
    uint64_t sandbox_id;
    uint32_t slots, left;
} returned[16];
static unsigned returned_count;
static void on_returned(void *user, struct dispatch_endpoint *endpoint, uint32_t slots,
                        uint32_t left)
{
    returned[returned_count++ % ARRAY_COUNT(returned)] =
        (struct returned){endpoint->sandbox_id, slots, left};
}

static struct dispatch *make(uint32_t concurrency, uint32_t queue_max, enum dispatch_policy policy)
{
    struct dispatch_options options = {.concurrency = concurrency,
                                       .queue_max = queue_max,
                                       .policy = policy,
                                       .threads = 2,
                                       .seed = 7,
                                       .on_idle = on_idle,
                                       .on_returned = on_returned};
    idle_told = returned_count = 0;
    return dispatch_new(&options);
}

static enum err ask(struct dispatch *d, struct request *r, uint64_t now)
{
    r->waiter.on_grant = on_grant;
    r->waiter.on_failed = on_failed;
    if (r->waiter.arrived_ns == 0)
        r->waiter.arrived_ns = now;
    r->state = R_WAITING;
    enum err err = dispatch_acquire(d, 0, &r->waiter, now, &r->endpoint);
    if (err == ERR_OK)
        r->state = R_SERVED;
    else if (err != ERR_MORE)
        r->state = R_REFUSED;
    r->err = err;
    return err;
}

static void take(struct dispatch *d, struct request *r, uint64_t now)
{
    REQUIRE(r->state == R_GRANTED);
    r->endpoint = dispatch_take_grant(d, 0, &r->waiter, now);
    r->state = R_SERVED;
}

static void give_back(struct dispatch *d, struct request *r, uint64_t now)
{
    REQUIRE(r->state == R_SERVED);
    r->state = R_NEW;
    dispatch_release(d, 0, r->endpoint, now);
}

/* ---- examples ---- */

TEST(a_request_without_endpoint_waits_and_is_granted_by_the_first)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0}, b = {0};
    CHECK_EQ(ask(d, &a, 1), ERR_MORE);
    CHECK_EQ(ask(d, &b, 2), ERR_MORE);
    CHECK(dispatch_endpoint_add(d, 100, DISPATCH_SLOTS_ALL, NULL, 0, 3));
    CHECK_EQ(a.state, R_GRANTED);
    CHECK_EQ(b.state, R_WAITING); /* never more than the concurrency */
    take(d, &a, 3);
    CHECK_EQ(a.endpoint->sandbox_id, 100);
    give_back(d, &a, 4);
    take(d, &b, 4);
    give_back(d, &b, 5);
    CHECK(!dispatch_endpoint_add(d, 100, DISPATCH_SLOTS_ALL, NULL, 0, 6)); /* known */
    dispatch_free(d);
}

TEST(a_full_queue_refuses_and_an_old_request_keeps_its_place)
{
    struct dispatch *d = make(1, 2, DISPATCH_LEAST_LOADED);
    struct request first = {0}, second = {0}, third = {0}, retried = {.waiter.arrived_ns = 5};
    CHECK_EQ(ask(d, &first, 10), ERR_MORE);
    CHECK_EQ(ask(d, &retried, 11), ERR_MORE);
    CHECK_EQ(ask(d, &third, 12), ERR_BUSY);
    CHECK(dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 13));
    CHECK_EQ(retried.state, R_GRANTED); /* arrived first, though it asked again later */
    CHECK_EQ(first.state, R_WAITING);
    CHECK_EQ(ask(d, &second, 14), ERR_MORE);
    take(d, &retried, 15);
    give_back(d, &retried, 16);
    take(d, &first, 16);
    CHECK(dispatch_cancel(d, &second.waiter));
    CHECK(!dispatch_cancel(d, &second.waiter));
    give_back(d, &first, 17);
    CHECK_EQ(second.state, R_WAITING); /* nothing was told to it */
    dispatch_free(d);
}

TEST(without_a_queue_a_free_slot_is_still_given)
{
    struct dispatch *d = make(1, 0, DISPATCH_LEAST_LOADED);
    struct request a = {0}, b = {0};
    CHECK_EQ(ask(d, &a, 1), ERR_BUSY);
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 1);
    CHECK_EQ(ask(d, &a, 2), ERR_OK);
    CHECK_EQ(ask(d, &b, 2), ERR_BUSY);
    give_back(d, &a, 3);
    dispatch_free(d);
}

TEST(draining_tells_once_when_idle_and_takes_no_new_request)
{
    struct dispatch *d = make(2, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0}, b = {0};
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 1);
    CHECK_EQ(ask(d, &a, 1), ERR_OK);
    CHECK(dispatch_endpoint_drain(d, 1));
    CHECK(dispatch_endpoint_drain(d, 1));
    CHECK_EQ(idle_told, 0);
    CHECK_EQ(ask(d, &b, 2), ERR_MORE);
    give_back(d, &a, 3);
    CHECK_EQ(idle_told, 1);
    CHECK_EQ(b.state, R_WAITING);
    dispatch_endpoint_add(d, 2, DISPATCH_SLOTS_ALL, NULL, 0, 4);
    take(d, &b, 4);
    CHECK_EQ(b.endpoint->sandbox_id, 2);
    give_back(d, &b, 4);
    CHECK(dispatch_endpoint_drain(d, 2)); /* idle already */
    CHECK_EQ(idle_told, 2);
    CHECK(!dispatch_endpoint_drain(d, 3));
    dispatch_free(d);
}

TEST(a_removed_endpoint_is_freed_when_its_last_request_has_ended)
{
    struct dispatch *d = make(0, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0};
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 1);
    CHECK_EQ(ask(d, &a, 1), ERR_OK);
    CHECK(dispatch_endpoint_remove(d, 1));
    CHECK(!dispatch_endpoint_remove(d, 1));
    CHECK(dispatch_endpoint_is_gone(a.endpoint));
    CHECK(dispatch_collect(d) == NULL);
    struct dispatch_demand demand;
    dispatch_demand(d, &demand);
    CHECK_EQ(demand.in_flight, 1); /* still there */
    give_back(d, &a, 2);
    CHECK_EQ(idle_told, 0);
    struct dispatch_garbage *garbage = dispatch_collect(d);
    CHECK(garbage != NULL);
    dispatch_garbage_free(garbage);
    dispatch_free(d);
}

TEST(an_ejected_endpoint_comes_back_with_room_for_waiters)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0};
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 1);
    CHECK(dispatch_endpoint_eject(d, 1));
    CHECK_EQ(ask(d, &a, 2), ERR_MORE);
    CHECK(dispatch_endpoint_admit(d, 1, 0, 3));
    take(d, &a, 3);
    give_back(d, &a, 4);
    dispatch_free(d);
}

TEST(failing_the_queue_hands_over_the_reason_and_closing_refuses_the_next)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0}, b = {0};
    int reason = 0;
    CHECK_EQ(ask(d, &a, 1), ERR_MORE);
    CHECK_EQ(dispatch_fail_waiting(d, ERR_FAILED, &reason), 1);
    CHECK_EQ(a.state, R_FAILED);
    CHECK_EQ(a.err, ERR_FAILED);
    CHECK(a.reason == &reason);
    CHECK_EQ(ask(d, &b, 2), ERR_MORE);
    CHECK_EQ(dispatch_close(d, ERR_NOT_FOUND, NULL), 1);
    CHECK_EQ(b.err, ERR_NOT_FOUND);
    CHECK_EQ(ask(d, &a, 3), ERR_NOT_FOUND);
    dispatch_free(d);
}

TEST(a_request_past_its_deadline_fails_instead_of_being_granted)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request a = {.waiter.deadline_ns = 50}, b = {0}, late = {.waiter.deadline_ns = 1};
    CHECK_EQ(ask(d, &late, 2), ERR_TIMEOUT);
    CHECK_EQ(ask(d, &a, 10), ERR_MORE);
    CHECK_EQ(ask(d, &b, 11), ERR_MORE);
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 60);
    CHECK_EQ(a.state, R_FAILED);
    CHECK_EQ(a.err, ERR_TIMEOUT);
    take(d, &b, 60);
    give_back(d, &b, 61);
    dispatch_free(d);
}

static void empty(struct dispatch *d, struct request *requests, size_t count);

TEST(only_the_slots_that_are_held_are_used)
{
    struct dispatch *d = make(5, 10, DISPATCH_LEAST_LOADED);
    struct request r[4] = {0};
    dispatch_endpoint_add(d, 1, 2, NULL, 0, 0);
    CHECK_EQ(ask(d, &r[0], 1), ERR_OK);
    CHECK_EQ(ask(d, &r[1], 2), ERR_OK);
    CHECK_EQ(ask(d, &r[2], 3), ERR_MORE);
    CHECK(dispatch_endpoint_lease(d, 1, 1, 0, 4));
    CHECK_EQ(r[2].state, R_GRANTED);
    CHECK_EQ(ask(d, &r[3], 5), ERR_MORE);
    CHECK(dispatch_endpoint_lease(d, 1, DISPATCH_SLOTS_ALL, 0, 6));
    CHECK_EQ(r[3].state, R_GRANTED);
    CHECK(!dispatch_endpoint_lease(d, 2, 1, 0, 7)); /* not known */
    take(d, &r[2], 8);
    take(d, &r[3], 8);
    empty(d, r, 4);
    dispatch_free(d);
}

TEST(what_is_owed_is_given_from_idle_slots_and_then_before_the_queue)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request r[3] = {0};
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 0);
    dispatch_endpoint_add(d, 2, DISPATCH_SLOTS_ALL, NULL, 0, 0);
    CHECK_EQ(ask(d, &r[0], 1), ERR_OK);
    CHECK_EQ(dispatch_owe(d, 2, 0), 1); /* one at once */
    REQUIRE(returned_count == 1);
    CHECK(returned[0].sandbox_id != r[0].endpoint->sandbox_id);
    CHECK_EQ(returned[0].slots, 0); /* all, so far */
    CHECK_EQ(returned[0].left, 0);
    CHECK_EQ(ask(d, &r[1], 2), ERR_MORE); /* none of the one that went */
    CHECK_EQ(ask(d, &r[2], 3), ERR_MORE);
    give_back(d, &r[0], 4);
    CHECK_EQ(returned_count, 2);
    CHECK_EQ(r[1].state, R_WAITING);
    CHECK(dispatch_endpoint_lease(d, 1, 1, 0, 5)); /* and back */
    CHECK_EQ(r[1].state, R_GRANTED);
    CHECK_EQ(dispatch_owe(d, 1, 0), 1);
    CHECK_EQ(dispatch_owe(d, 0, 0), 0); /* not owed any more */
    take(d, &r[1], 6);
    give_back(d, &r[1], 7);
    CHECK_EQ(returned_count, 2);
    CHECK_EQ(r[2].state, R_GRANTED);
    take(d, &r[2], 8);
    CHECK_EQ(dispatch_owe(d, 1, 0), 1);
    give_back(d, &r[2], 9); /* nobody waits */
    CHECK_EQ(returned_count, 3);
    dispatch_free(d);
}

TEST(of_idle_slots_only_those_are_given_for_which_nobody_waits)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request r[2] = {0};
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 0);
    CHECK_EQ(ask(d, &r[0], 1), ERR_OK);
    CHECK_EQ(ask(d, &r[1], 2), ERR_MORE);
    CHECK_EQ(dispatch_owe(d, 0, 2), 2);
    give_back(d, &r[0], 3);
    CHECK_EQ(returned_count, 0);
    CHECK_EQ(r[1].state, R_GRANTED); /* it waits here */
    take(d, &r[1], 4);
    give_back(d, &r[1], 5);
    CHECK_EQ(returned_count, 1); /* nobody does */
    dispatch_endpoint_add(d, 2, DISPATCH_SLOTS_ALL, NULL, 0, 6);
    CHECK_EQ(returned_count, 2);
    dispatch_endpoint_add(d, 3, DISPATCH_SLOTS_ALL, NULL, 0, 7);
    CHECK_EQ(returned_count, 2); /* no more than that */
    dispatch_free(d);
}

TEST(slots_above_a_lowered_concurrency_go_back_with_the_others)
{
    struct dispatch *d = make(5, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0};
    dispatch_endpoint_add(d, 1, 4, NULL, 0, 0);
    CHECK_EQ(ask(d, &a, 1), ERR_OK);
    dispatch_configure(d, 2, 10, DISPATCH_LEAST_LOADED, 0, 2);
    CHECK_EQ(dispatch_owe(d, 1, 0), 0);
    REQUIRE(returned_count == 1);
    CHECK_EQ(returned[0].slots, 3);
    CHECK_EQ(returned[0].left, 1);
    give_back(d, &a, 3);
    dispatch_configure(d, 0, 10, DISPATCH_LEAST_LOADED, 0, 4);
    CHECK_EQ(dispatch_owe(d, 1, 0), 1); /* without a limit there is nothing to give */
    CHECK(dispatch_endpoint_drain(d, 1));
    dispatch_configure(d, 2, 10, DISPATCH_LEAST_LOADED, 0, 5);
    CHECK_EQ(returned_count, 1); /* nor of one that drains: all of it goes */
    dispatch_free(d);
}

static bool is_near(double a, double b)
{
    return a > b - 0.001 && a < b + 0.001;
}

TEST(the_average_is_weighted_by_time)
{
    struct dispatch *d = make(4, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0}, b = {0};
    struct dispatch_demand demand;
    dispatch_endpoint_add(d, 1, DISPATCH_SLOTS_ALL, NULL, 0, 0);
    (void)dispatch_average(d, 1000);
    ask(d, &a, 1000);
    ask(d, &b, 1500);
    give_back(d, &b, 1750); /* 1 for the whole period, 1 more for a quarter */
    CHECK(is_near(dispatch_average(d, 2000), 1.25));
    dispatch_demand(d, &demand);
    CHECK_EQ(demand.in_flight, 1);
    CHECK_EQ(demand.requests_total, 2);
    give_back(d, &a, 2500);
    CHECK(is_near(dispatch_average(d, 3000), 0.5));
    CHECK(is_near(dispatch_average(d, 4000), 0));
    dispatch_free(d);
}

static void fill(struct dispatch *d, struct request *requests, size_t count)
{
    for (size_t i = 0; i < count; i++)
        REQUIRE(ask(d, &requests[i], i + 1) == ERR_OK);
}

static void empty(struct dispatch *d, struct request *requests, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (requests[i].state == R_SERVED)
            give_back(d, &requests[i], 100);
}

TEST(each_policy_chooses_as_its_name_says)
{
    struct request r[12] = {0};
    for (enum dispatch_policy policy = 0; policy < DISPATCH_POLICY_COUNT; policy++) {
        struct dispatch *d = make(4, 10, policy);
        memset(r, 0, sizeof(r));
        for (uint64_t id = 1; id <= 3; id++)
            dispatch_endpoint_add(d, id, DISPATCH_SLOTS_ALL, NULL, 0, 0);
        fill(d, r, 6);
        struct dispatch_endpoint *e[3];
        CHECK_EQ(dispatch_endpoints(d, e, 3), 3);
        uint32_t loads[3];
        for (int i = 0; i < 3; i++)
            loads[i] = dispatch_endpoint_in_flight(e[i]);
        CHECK_EQ(loads[0] + loads[1] + loads[2], 6);
        if (policy == DISPATCH_LEAST_LOADED || policy == DISPATCH_ROUND_ROBIN)
            CHECK(loads[0] == 2 && loads[1] == 2 && loads[2] == 2);
        if (policy == DISPATCH_FIRST_FREE)
            CHECK(loads[0] == 4 && loads[1] == 2 && loads[2] == 0);
        fill(d, r + 6, 6); /* all policies fill up all places */
        struct request more = {0};
        CHECK_EQ(ask(d, &more, 50), ERR_MORE);
        CHECK(dispatch_cancel(d, &more.waiter));
        empty(d, r, 12);
        dispatch_free(d);
    }
}

TEST(least_loaded_stays_with_the_endpoint_it_used_last_when_that_is_idle)
{
    struct dispatch *d = make(1, 10, DISPATCH_LEAST_LOADED);
    struct request a = {0}, b = {0};
    for (uint64_t id = 1; id <= 4; id++)
        dispatch_endpoint_add(d, id, DISPATCH_SLOTS_ALL, NULL, 0, 0);
    ask(d, &a, 1);
    ask(d, &b, 1);
    uint64_t last = b.endpoint->sandbox_id;
    give_back(d, &a, 2);
    give_back(d, &b, 2);
    for (int i = 0; i < 10; i++) {
        ask(d, &a, 3);
        CHECK_EQ(a.endpoint->sandbox_id, last);
        give_back(d, &a, 4);
    }
    dispatch_free(d);
}

/* ---- against a model ---- */

#define REQUESTS 40
#define SANDBOXES 8

struct model_endpoint {
    bool known, draining, ejected;
    uint32_t in_flight;
};
struct model {
    struct model_endpoint endpoints[SANDBOXES + 1];
    uint32_t concurrency, queue_max, waiting, idle;
};

static bool model_takes(const struct model *m, uint32_t id)
{
    const struct model_endpoint *e = &m->endpoints[id];
    return e->known && !e->draining && !e->ejected &&
           (m->concurrency == 0 || e->in_flight < m->concurrency);
}

static bool model_has_room(const struct model *m)
{
    for (uint32_t id = 1; id <= SANDBOXES; id++)
        if (model_takes(m, id))
            return true;
    return false;
}

/* After each step: everyone granted since is the oldest then, on an endpoint with room, and nobody
 * waits beside room. */
static void settle(struct dispatch *d, struct model *m, struct request *r, uint64_t now)
{
    for (;;) {
        struct request *next = NULL;
        for (int i = 0; i < REQUESTS; i++)
            if (r[i].state == R_GRANTED && (next == NULL || r[i].grant_order < next->grant_order))
                next = &r[i];
        if (next == NULL)
            break;
        for (int i = 0; i < REQUESTS; i++)
            CHECK(r[i].state != R_WAITING || r[i].waiter.arrived_ns >= next->waiter.arrived_ns);
        take(d, next, now);
        uint64_t id = next->endpoint->sandbox_id;
        CHECK(model_takes(m, (uint32_t)id));
        m->endpoints[id].in_flight++;
        m->waiting--;
    }
    CHECK(m->waiting == 0 || !model_has_room(m));
    CHECK_EQ(dispatch_waiting(d), m->waiting);
    CHECK_EQ(idle_told, m->idle);
}

static void check_numbers(struct dispatch *d, const struct model *m, const struct request *r)
{
    struct dispatch_demand demand;
    uint32_t served = 0, ready = 0;
    for (int i = 0; i < REQUESTS; i++)
        served += r[i].state == R_SERVED;
    for (uint32_t id = 1; id <= SANDBOXES; id++)
        ready += m->endpoints[id].known && !m->endpoints[id].draining && !m->endpoints[id].ejected;
    dispatch_demand(d, &demand);
    CHECK_EQ(demand.in_flight, served);
    CHECK_EQ(demand.waiting, m->waiting);
    CHECK_EQ(demand.endpoints_ready, ready);
}

static void step_request(struct dispatch *d, struct model *m, struct request *r, struct rng *rng,
                         uint64_t now)
{
    bool had_room = model_has_room(m);
    switch (r->state) {
    case R_SERVED: {
        uint64_t id = r->endpoint->sandbox_id;
        struct model_endpoint *e = &m->endpoints[id];
        bool gone = dispatch_endpoint_is_gone(r->endpoint);
        if (!gone) {
            e->in_flight--;
            if (e->draining && e->in_flight == 0)
                m->idle++;
        }
        give_back(d, r, now);
        break;
    }
    case R_WAITING:
        CHECK(dispatch_cancel(d, &r->waiter));
        r->state = R_NEW;
        m->waiting--;
        break;
    case R_NEW:
    case R_FAILED:
    case R_REFUSED: {
        r->waiter = (struct dispatch_waiter){
            .arrived_ns = rng_below(rng, 8) == 0 ? now - rng_below(rng, 20) : now};
        enum err err = ask(d, r, now);
        CHECK_EQ(err, had_room ? ERR_OK : m->waiting >= m->queue_max ? ERR_BUSY : ERR_MORE);
        if (err == ERR_OK) {
            CHECK(model_takes(m, (uint32_t)r->endpoint->sandbox_id));
            m->endpoints[r->endpoint->sandbox_id].in_flight++;
        }
        m->waiting += err == ERR_MORE;
        break;
    }
    case R_GRANTED:
        CHECK(false); /* settled */
    }
}

static void step_endpoint(struct dispatch *d, struct model *m, uint32_t id, uint64_t action,
                          uint64_t now)
{
    struct model_endpoint *e = &m->endpoints[id];
    switch (action) {
    case 0:
    case 1:
        /* requests of a removed namesake are still in flight: as if it had another id */
        CHECK_EQ(dispatch_endpoint_add(d, id, DISPATCH_SLOTS_ALL, NULL, 1, now), !e->known);
        if (!e->known)
            *e = (struct model_endpoint){.known = true};
        break;
    case 2:
        CHECK_EQ(dispatch_endpoint_drain(d, id), e->known);
        m->idle += e->known && !e->draining && e->in_flight == 0;
        e->draining |= e->known;
        break;
    case 3:
        CHECK_EQ(dispatch_endpoint_remove(d, id), e->known);
        *e = (struct model_endpoint){0};
        break;
    case 4:
        CHECK_EQ(dispatch_endpoint_eject(d, id), e->known);
        e->ejected |= e->known;
        break;
    default:
        e->ejected = false;
        CHECK_EQ(dispatch_endpoint_admit(d, id, 1, now), e->known);
        break;
    }
}

PROPERTY(dispatch_agrees_with_model)
{
    struct model m = {.concurrency = (uint32_t)rng_below(rng, 4),
                      .queue_max = (uint32_t)rng_below(rng, 12)};
    struct dispatch *d = make(m.concurrency, m.queue_max,
                              (enum dispatch_policy)rng_below(rng, DISPATCH_POLICY_COUNT));
    struct request r[REQUESTS] = {0};
    uint64_t now = 1000;
    for (int step = 0; step < 600; step++) {
        uint64_t action = rng_below(rng, 100);
        now += rng_below(rng, 5);
        if (action < 75) {
            step_request(d, &m, &r[rng_below(rng, REQUESTS)], rng, now);
        } else if (action < 95) {
            step_endpoint(d, &m, 1 + (uint32_t)rng_below(rng, SANDBOXES), rng_below(rng, 6), now);
        } else if (action < 97) {
            CHECK_EQ(dispatch_fail_waiting(d, ERR_FAILED, NULL), m.waiting);
            m.waiting = 0;
        } else if (action < 99) {
            m.concurrency = (uint32_t)rng_below(rng, 4);
            m.queue_max = (uint32_t)rng_below(rng, 12);
            dispatch_configure(d, m.concurrency, m.queue_max,
                               (enum dispatch_policy)rng_below(rng, DISPATCH_POLICY_COUNT), 1, now);
        } else {
            dispatch_garbage_free(dispatch_collect(d));
        }
        settle(d, &m, r, now);
        check_numbers(d, &m, r);
    }
    for (int i = 0; i < REQUESTS; i++)
        if (r[i].state == R_WAITING)
            CHECK(dispatch_cancel(d, &r[i].waiter));
    empty(d, r, REQUESTS);
    dispatch_free(d);
}

/* ---- many threads ---- */

/* Each thread owns requests that ask, hold the slot a moment, give it back, and count; another
 * adds, drains, removes and ejects endpoints meanwhile. Every request must end, no endpoint may
 * ever hold more than its concurrency, and when all is over the books must balance. */
#define THREADS 4
#define REQUESTS_PER_THREAD 16
#define ROUNDS 3000

struct stress {
    struct dispatch *d;
    uint32_t concurrency;
    _Atomic uint32_t over, stop;
    _Atomic uint64_t served, failed;
};
struct stress_sandbox { /* an endpoint's `user` */
    _Atomic uint32_t holders, idle_told;
};
struct stress_request {
    struct dispatch_waiter waiter;
    struct dispatch_endpoint *endpoint;
    _Atomic uint32_t told; /* 1: granted, 2: failed */
    enum { S_IDLE, S_WAITING, S_HOLDING } state;
};
struct stress_thread {
    struct stress *s;
    uint32_t index;
    struct rng rng;
    pthread_t id;
};

static void stress_on_grant(struct dispatch_waiter *w)
{
    atomic_store(&container_of(w, struct stress_request, waiter)->told, 1);
}

static void stress_on_failed(struct dispatch_waiter *w, enum err err, void *reason)
{
    atomic_store(&container_of(w, struct stress_request, waiter)->told, 2);
}

static void stress_on_idle(void *user, struct dispatch_endpoint *endpoint)
{
    struct stress_sandbox *sandbox = endpoint->user;
    if (atomic_fetch_add(&sandbox->idle_told, 1) > 0)
        atomic_fetch_add(&((struct stress *)user)->over, 1);
}

static void stress_on_free(void *user, struct dispatch_endpoint *endpoint)
{
    struct stress_sandbox *sandbox = endpoint->user;
    if (atomic_load(&sandbox->holders) != 0)
        atomic_fetch_add(&((struct stress *)user)->over, 1);
    free(sandbox);
}

static void stress_add(struct stress *s, uint64_t id, uint32_t thread, uint64_t now)
{
    struct stress_sandbox *sandbox = mem_new(sizeof(*sandbox));
    if (!dispatch_endpoint_add(s->d, id, DISPATCH_SLOTS_ALL, sandbox, thread, now))
        free(sandbox);
}

static void stress_hold(struct stress *s, struct stress_request *r)
{
    struct stress_sandbox *sandbox = r->endpoint->user;
    uint32_t before = atomic_fetch_add(&sandbox->holders, 1);
    if (s->concurrency > 0 && before >= s->concurrency)
        atomic_fetch_add(&s->over, 1);
    r->state = S_HOLDING;
}

static void stress_step(struct stress_thread *t, struct stress_request *r, uint64_t now,
                        uint64_t *ended)
{
    struct stress *s = t->s;
    switch (r->state) {
    case S_IDLE: {
        r->waiter = (struct dispatch_waiter){
            .on_grant = stress_on_grant, .on_failed = stress_on_failed, .arrived_ns = now};
        atomic_store(&r->told, 0);
        enum err err = dispatch_acquire(s->d, t->index, &r->waiter, now, &r->endpoint);
        if (err == ERR_OK)
            stress_hold(s, r);
        else
            r->state = S_WAITING; /* the queue is large: never ERR_BUSY */
        break;
    }
    case S_WAITING:
        if (atomic_load(&r->told) == 0) {
            if (rng_below(&t->rng, 200) == 0 && dispatch_cancel(s->d, &r->waiter)) {
                r->state = S_IDLE;
                ++*ended;
            }
            break;
        }
        if (atomic_load(&r->told) == 2) {
            atomic_fetch_add(&s->failed, 1);
            r->state = S_IDLE;
            ++*ended;
            break;
        }
        r->endpoint = dispatch_take_grant(s->d, t->index, &r->waiter, now);
        stress_hold(s, r);
        break;
    case S_HOLDING:
        if (rng_below(&t->rng, 3) > 0)
            break;
        atomic_fetch_sub(&((struct stress_sandbox *)r->endpoint->user)->holders, 1);
        dispatch_release(s->d, t->index, r->endpoint, now);
        atomic_fetch_add(&s->served, 1);
        r->state = S_IDLE;
        ++*ended;
        break;
    }
}

static void *stress_run(void *user)
{
    struct stress_thread *t = user;
    struct stress_request *r = mem_new_array(REQUESTS_PER_THREAD, sizeof(*r));
    uint64_t ended = 0, now = 0;
    bool busy = true;
    while (busy) {
        busy = false;
        for (int i = 0; i < REQUESTS_PER_THREAD; i++) {
            if (ended < ROUNDS || r[i].state != S_IDLE) {
                stress_step(t, &r[i], ++now, &ended);
                busy = true;
            }
        }
        if (rng_below(&t->rng, 4) == 0)
            (void)sched_yield();
    }
    free(r);
    return NULL;
}

/* Sandbox 0 stays, so that everything that waits is served in the end. */
static void *stress_churn(void *user)
{
    struct stress_thread *t = user;
    struct stress *s = t->s;
    for (uint64_t round = 0; atomic_load(&s->stop) == 0; round++) {
        uint64_t id = 1 + rng_below(&t->rng, 6) + 64 * (round / 64);
        switch (rng_below(&t->rng, 8)) {
        case 0:
        case 1:
        case 2:
            stress_add(s, id, t->index, round);
            break;
        case 3:
            (void)dispatch_endpoint_drain(s->d, id);
            break;
        case 4:
            (void)dispatch_endpoint_eject(s->d, id);
            break;
        case 5:
            (void)dispatch_endpoint_admit(s->d, id, t->index, round);
            break;
        case 6:
            if (round % 16 == 0)
                (void)dispatch_fail_waiting(s->d, ERR_FAILED, NULL);
            break;
        default: {
            struct dispatch_demand demand;
            dispatch_demand(s->d, &demand);
            (void)dispatch_average(s->d, round);
            break;
        }
        }
        if (round % 64 == 63) /* all of this generation go; the next one has other ids */
            for (uint64_t i = 1; i < 7; i++)
                (void)dispatch_endpoint_remove(s->d, i + 64 * (round / 64));
        (void)sched_yield();
    }
    return NULL;
}

static void stress(uint32_t concurrency, enum dispatch_policy policy, uint64_t seed, bool churn)
{
    struct stress *s = mem_new(sizeof(*s));
    struct dispatch_options options = {.concurrency = concurrency,
                                       .queue_max = 1000,
                                       .policy = policy,
                                       .threads = THREADS + 1,
                                       .seed = seed,
                                       .on_idle = stress_on_idle,
                                       .on_free = stress_on_free,
                                       .user = s};
    s->d = dispatch_new(&options);
    s->concurrency = concurrency;
    struct stress_thread threads[THREADS + 1];
    stress_add(s, 0, THREADS, 1);
    for (uint32_t i = 0; i <= THREADS; i++) {
        threads[i] = (struct stress_thread){.s = s, .index = i};
        rng_init(&threads[i].rng, seed * 100 + i);
        if (i < THREADS || churn)
            REQUIRE(pthread_create(&threads[i].id, NULL, i < THREADS ? stress_run : stress_churn,
                                   &threads[i]) == 0);
    }
    for (uint32_t i = 0; i < THREADS; i++)
        pthread_join(threads[i].id, NULL);
    atomic_store(&s->stop, 1);
    if (churn)
        pthread_join(threads[THREADS].id, NULL);
    struct dispatch_demand demand;
    dispatch_demand(s->d, &demand);
    CHECK_EQ(demand.in_flight, 0);
    CHECK_EQ(demand.waiting, 0);
    CHECK_EQ(demand.requests_total, atomic_load(&s->served));
    CHECK(atomic_load(&s->served) > 0);
    dispatch_free(s->d);
    CHECK_EQ(atomic_load(&s->over), 0);
    free(s);
}

TEST(threads_lose_no_wake_up_and_exceed_no_limit)
{
    for (uint64_t seed = 1; seed <= 4; seed++)
        stress((uint32_t)seed % 3 + 1, (enum dispatch_policy)(seed % DISPATCH_POLICY_COUNT), seed,
               false);
}

TEST(threads_agree_while_endpoints_come_and_go)
{
    for (uint64_t seed = 1; seed <= 6; seed++)
        stress((uint32_t)(seed % 4), (enum dispatch_policy)(seed % DISPATCH_POLICY_COUNT), seed,
               true);
}

/* ---- slots that move between two data planes ---- */

struct market { /* two dispatches with one sandbox, whose slots another thread moves to and fro */
    struct dispatch *d[2];
    _Atomic uint32_t holders, over, moved, returned[2], stop;
    uint32_t over_while_moving;
};
struct market_side {
    struct market *m;
    uint32_t side, thread;
    pthread_t id;
};
#define MARKET_SLOTS 3u

static void market_on_returned(void *user, struct dispatch_endpoint *endpoint, uint32_t slots,
                               uint32_t left)
{
    atomic_fetch_add((_Atomic uint32_t *)user, slots);
}

static void *market_call(void *user)
{
    struct market_side *self = user;
    struct market *m = self->m;
    struct dispatch *d = m->d[self->side];
    for (uint64_t now = 1; atomic_load(&m->stop) == 0; now++) {
        struct stress_request r = {.waiter = {.on_grant = stress_on_grant,
                                              .on_failed = stress_on_failed,
                                              .arrived_ns = now}};
        enum err err = dispatch_acquire(d, self->thread, &r.waiter, now, &r.endpoint);
        while (err == ERR_MORE && atomic_load(&r.told) == 0)
            (void)sched_yield();
        if (err == ERR_MORE)
            r.endpoint = dispatch_take_grant(d, self->thread, &r.waiter, now);
        if (atomic_fetch_add(&m->holders, 1) >= MARKET_SLOTS)
            atomic_fetch_add(&m->over, 1);
        (void)sched_yield();
        atomic_fetch_sub(&m->holders, 1);
        dispatch_release(d, self->thread, r.endpoint, now);
    }
    return NULL;
}

static void *market_move(void *user)
{
    struct market *m = user;
    uint32_t from = 0;
    for (uint32_t round = 1; round <= 4000; round++) {
        (void)dispatch_owe(m->d[from], round % MARKET_SLOTS + 1, round % 2);
        (void)sched_yield();
        (void)dispatch_owe(m->d[from], 0, 0);
        uint32_t slots = atomic_exchange(&m->returned[from], 0);
        if (slots > 0)
            (void)dispatch_endpoint_lease(m->d[1 - from], 1, slots, 2, round);
        atomic_fetch_add(&m->moved, slots);
        from = 1 - from;
    }
    m->over_while_moving = atomic_load(&m->over);
    /* More than there are, so that nobody waits when it ends. */
    for (int side = 0; side < 2; side++)
        (void)dispatch_endpoint_lease(m->d[side], 1, MARKET_SLOTS, 2, 5000);
    return NULL;
}

/* However slots move: no more requests at once than there are slots, and none is lost. */
TEST(moving_slots_are_never_used_twice)
{
    struct market *m = mem_new(sizeof(*m));
    struct market_side sides[4];
    pthread_t mover;
    for (uint32_t i = 0; i < 2; i++) {
        struct dispatch_options options = {.concurrency = MARKET_SLOTS,
                                           .queue_max = 1000,
                                           .threads = 3,
                                           .seed = i,
                                           .on_returned = market_on_returned,
                                           .user = (void *)&m->returned[i]};
        m->d[i] = dispatch_new(&options);
        dispatch_endpoint_add(m->d[i], 1, i == 0 ? MARKET_SLOTS : 0, NULL, 2, 0);
    }
    for (uint32_t i = 0; i < ARRAY_COUNT(sides); i++) {
        sides[i] = (struct market_side){.m = m, .side = i / 2, .thread = i % 2};
        REQUIRE(pthread_create(&sides[i].id, NULL, market_call, &sides[i]) == 0);
    }
    REQUIRE(pthread_create(&mover, NULL, market_move, m) == 0);
    pthread_join(mover, NULL);
    CHECK(atomic_load(&m->moved) > 100);
    atomic_store(&m->stop, 1);
    for (uint32_t i = 0; i < ARRAY_COUNT(sides); i++)
        pthread_join(sides[i].id, NULL);
    CHECK_EQ(m->over_while_moving, 0);
    for (int side = 0; side < 2; side++)
        dispatch_free(m->d[side]);
    free(m);
}
