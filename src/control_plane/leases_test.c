/* leases_test.c - slots of one sandbox, step by step: who gets them, who is asked, who is not.
 * Whole clusters, with everything that goes wrong, are test/sim's. */
#include "control_plane/core.h"
#include "control_plane/leases.h"
#include "test.h"
#include <string.h>

#define FUNCTION 5u
#define A 9u
#define B 10u

struct world {
    struct control *core;
    struct control_orders orders;
    uint64_t now_ms, sandbox;
};

static void step(struct world *w, const struct control_event *e)
{
    w->orders.count = 0;
    control_step(w->core, e, w->now_ms, &w->orders);
}

static void plane(struct world *w, enum event_kind kind, uint64_t id, bool silent)
{
    struct control_event e = {.kind = kind};
    e.data_plane.data_plane_id = id;
    e.data_plane.leases = true;
    e.data_plane.silent = silent;
    step(w, &e);
}

static void demand(struct world *w, uint64_t id, uint32_t in_flight, uint32_t waiting)
{
    struct control_event e = {.kind = EVENT_DEMAND};
    e.demand.data_plane_id = id;
    e.demand.function_id = FUNCTION;
    e.demand.in_flight = in_flight;
    e.demand.waiting = waiting;
    e.demand.in_flight_average = in_flight;
    step(w, &e);
}

static void returned(struct world *w, uint64_t id, uint32_t slots, uint32_t left)
{
    struct returned_slots item = {w->sandbox, slots, left};
    struct control_event e = {.kind = EVENT_SLOTS_RETURNED};
    e.returned.data_plane_id = id;
    e.returned.items = &item;
    e.returned.count = 1;
    step(w, &e);
}

static void time_to(struct world *w, uint64_t now_ms)
{
    struct control_event e = {.kind = EVENT_TICK};
    w->now_ms = now_ms;
    step(w, &e);
}

static const struct control_order *order(const struct world *w, enum order_kind kind, uint64_t to)
{
    for (size_t i = 0; i < w->orders.count; i++)
        if (w->orders.items[i].kind == kind && w->orders.items[i].target_id == to)
            return &w->orders.items[i];
    return NULL;
}

static uint32_t lease(const struct world *w, uint64_t id)
{
    return control_lease(w->core, id, w->sandbox);
}

static void sandbox_ready(struct world *w)
{
    struct control_event e = {.kind = EVENT_SANDBOX};
    e.sandbox.worker_id = 1;
    e.sandbox.report = (struct sandbox_report){
        .sandbox_id = w->sandbox, .function_id = FUNCTION, .version = 1, .state = SANDBOX_READY};
    strcpy(e.sandbox.report.address.direct, "10.0.0.4:8080");
    step(w, &e);
}

/* One worker, the data plane A and, with `planes` of 2, B; one sandbox of a function that may have
 * no other. A has asked for it and has been told. */
static struct world world_new(unsigned planes, uint32_t concurrency)
{
    struct world w = {.now_ms = 1000};
    struct control_options options = {.seed = 1,
                                      .epoch = 7,
                                      .peer_dead_after_ms = 2000,
                                      .reconnect_grace_ms = 5000,
                                      .reconstruction_ms = 10000};
    struct function_spec spec;
    struct control_event e = {.kind = EVENT_WORKER_UP};
    w.core = control_new(&options);
    e.worker.worker_id = 1;
    e.worker.name = "w";
    e.worker.cpu_milli = 10000;
    e.worker.memory_bytes = 10 * GIB;
    e.worker.slots = 20;
    step(&w, &e);
    for (unsigned i = 0; i < planes; i++)
        plane(&w, EVENT_DATA_PLANE_UP, A + i, false);
    function_spec_init(&spec);
    strcpy(spec.name, "f");
    spec.scaling.scale_max = 1;
    spec.scaling.concurrency = concurrency;
    e = (struct control_event){.kind = EVENT_FUNCTION_PUT};
    e.function_put.function_id = FUNCTION;
    e.function_put.version = 1;
    e.function_put.spec = &spec;
    step(&w, &e);
    function_spec_done(&spec);
    demand(&w, A, 0, 1);
    const struct control_order *start = order(&w, ORDER_START, 1);
    w.sandbox = start != NULL ? start->sandbox_id : 0;
    sandbox_ready(&w);
    return w;
}

static void world_done(struct world *w)
{
    control_free(w->core);
    control_orders_done(&w->orders);
}

TEST(one_data_plane_gets_all_with_the_first_word_and_hears_nothing_more)
{
    struct world w = world_new(1, 4);
    REQUIRE(order(&w, ORDER_ENDPOINT, A) != NULL); /* in the step in which it became ready */
    CHECK_EQ(order(&w, ORDER_ENDPOINT, A)->slots, SLOTS_ALL);
    CHECK_EQ(w.orders.count, 1);
    demand(&w, A, 4, 30);
    for (int i = 0; i < 20; i++) {
        time_to(&w, w.now_ms + 10);
        demand(&w, A, 4, 30);
        CHECK_EQ(w.orders.count, 0);
    }
    CHECK_EQ(lease(&w, A), 4);
    world_done(&w);
}

TEST(an_idle_slot_moves_to_who_waits_and_never_before_it_is_given_back)
{
    struct world w = world_new(2, 1);
    CHECK_EQ(lease(&w, A), 1);
    CHECK_EQ(lease(&w, B), 0);
    CHECK(order(&w, ORDER_ENDPOINT, B) == NULL);
    demand(&w, A, 0, 0);
    demand(&w, B, 0, 1);
    REQUIRE(order(&w, ORDER_SLOTS_WANTED, A) != NULL);
    const struct control_order *o = order(&w, ORDER_SLOTS_WANTED, A);
    CHECK_EQ(o->slots + o->idle, 1);
    for (int i = 0; i < 10; i++) { /* however long it takes */
        time_to(&w, w.now_ms + 30);
        CHECK(order(&w, ORDER_ENDPOINT, B) == NULL);
        CHECK_EQ(lease(&w, B), 0);
    }
    returned(&w, A, 1, 0);
    REQUIRE(order(&w, ORDER_ENDPOINT, B) != NULL); /* in the same step */
    CHECK_EQ(lease(&w, A), 0);
    CHECK_EQ(lease(&w, B), 1);
    world_done(&w);
}

TEST(a_slot_that_is_needed_on_both_sides_goes_back_and_forth)
{
    struct world w = world_new(2, 1);
    uint64_t has = A, lacks = B;
    for (int turn = 0; turn < 6; turn++) {
        demand(&w, has, 1, 5);
        demand(&w, lacks, 0, 5);
        for (int ms = 0; ms < 60 && order(&w, ORDER_SLOTS_WANTED, has) == NULL; ms++) {
            time_to(&w, w.now_ms + 1);
            if (order(&w, ORDER_WANT_DEMAND, has) != NULL)
                demand(&w, has, 1, 5);
        }
        REQUIRE(order(&w, ORDER_SLOTS_WANTED, has) != NULL);
        CHECK_EQ(order(&w, ORDER_SLOTS_WANTED, has)->slots, 1); /* though its own queue needs it */
        returned(&w, has, 1, 0);
        CHECK_EQ(lease(&w, lacks), 1);
        CHECK_EQ(lease(&w, has), 0);
        uint64_t other = has;
        has = lacks;
        lacks = other;
    }
    world_done(&w);
}

TEST(slots_of_a_data_plane_that_is_away_wait_for_it_and_then_are_free)
{
    struct world w = world_new(2, 1);
    demand(&w, A, 1, 0);
    demand(&w, B, 0, 1);
    uint64_t closed_ms = w.now_ms;
    plane(&w, EVENT_DATA_PLANE_CLOSED, A, false);
    while (w.now_ms < closed_ms + PLANE_GRACE_MS - 1) {
        time_to(&w, MIN(w.now_ms + 100, closed_ms + PLANE_GRACE_MS - 1));
        demand(&w, B, 0, 1);
        CHECK_EQ(lease(&w, B), 0);
    }
    time_to(&w, closed_ms + PLANE_GRACE_MS);
    CHECK(order(&w, ORDER_ENDPOINT, B) != NULL);
    CHECK_EQ(lease(&w, B), 1);
    world_done(&w);
}

TEST(who_was_silent_before_it_closed_is_not_waited_for)
{
    struct world w = world_new(2, 1);
    demand(&w, A, 1, 0);
    demand(&w, B, 0, 1);
    plane(&w, EVENT_DATA_PLANE_CLOSED, A, true);
    CHECK(order(&w, ORDER_ENDPOINT, B) != NULL);
    CHECK_EQ(lease(&w, B), 1);
    world_done(&w);
}

/* It lost its connection with the slot in use, and was given up; then it is there again. */
TEST(who_comes_back_with_slots_that_others_have_by_now_ends_there)
{
    struct world w = world_new(2, 1);
    demand(&w, A, 1, 0);
    demand(&w, B, 0, 1);
    plane(&w, EVENT_DATA_PLANE_CLOSED, A, true);
    CHECK_EQ(lease(&w, B), 1);
    w.now_ms += 10;
    struct known_sandbox known = {w.sandbox, 1, false};
    struct control_event e = {.kind = EVENT_DATA_PLANE_UP};
    e.data_plane.data_plane_id = A;
    e.data_plane.leases = true;
    e.data_plane.known = &known;
    e.data_plane.known_count = 1;
    step(&w, &e);
    REQUIRE(order(&w, ORDER_DRAIN, A) != NULL);
    CHECK_EQ(order(&w, ORDER_DRAIN, A)->sandbox_id, w.sandbox);
    CHECK(order(&w, ORDER_DRAIN, B) == NULL);
    CHECK_EQ(lease(&w, B), 1);
    world_done(&w);
}

TEST(without_a_limit_everybody_has_all)
{
    struct world w = world_new(2, 0);
    for (uint64_t id = A; id <= B; id++) {
        REQUIRE(order(&w, ORDER_ENDPOINT, id) != NULL);
        CHECK_EQ(order(&w, ORDER_ENDPOINT, id)->slots, SLOTS_ALL);
    }
    world_done(&w);
}

PROPERTY(never_more_slots_than_there_are_and_in_the_end_none_too_few)
{
    uint32_t concurrency = 1 + (uint32_t)rng_below(rng, 8), waiting[2] = {0};
    struct world w = world_new(2, concurrency);
    for (int i = 0; i < 200; i++) {
        unsigned who = (unsigned)rng_below(rng, 2);
        waiting[who] = (uint32_t)rng_below(rng, 10);
        demand(&w, A + who, lease(&w, A + who), waiting[who]);
        const struct control_order *o = order(&w, ORDER_SLOTS_WANTED, A);
        uint64_t from = o != NULL ? A : B;
        o = o != NULL ? o : order(&w, ORDER_SLOTS_WANTED, B);
        uint32_t held = lease(&w, from);
        if (o != NULL && held > 0 && o->slots + o->idle > 0) {
            uint32_t given = MIN(o->slots + o->idle, held);
            returned(&w, from, given, held - given);
        }
        CHECK_EQ(lease(&w, A) + lease(&w, B), concurrency);
        time_to(&w, w.now_ms + rng_below(rng, 40));
    }
    world_done(&w);
}
