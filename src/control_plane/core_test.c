/* core_test.c - placement against a full scorer, the autoscaler's golden steps, and the core step
 * by step. */
#include "control_plane/autoscaler.h"
#include "control_plane/core.h"
#include "control_plane/placement.h"
#include "test.h"
#include <stdlib.h>

/* ---- placement ---- */

TEST(scores_are_those_of_kubernetes)
{
    /* 10 cores and 10 GiB; with the request 6 cores and 7.6 GiB are reserved: (40 + 24) / 2; 1 -
     * |0.6 - 0.76| / 2 */
    struct room r = {.cpu_milli = 10000,
                     .memory_bytes = 10000,
                     .cpu_reserved_milli = 5000,
                     .memory_reserved_bytes = 6600,
                     .slots = 10};
    CHECK_EQ(placement_score_least_allocated(&r, 1000, 1000), 32);
    CHECK_EQ(placement_score_balanced(&r, 1000, 1000), 92);
    struct room full = {.cpu_milli = 1000, .memory_bytes = 1000, .slots = 1};
    CHECK_EQ(placement_score_least_allocated(&full, 2000, 500),
             25); /* more than there is counts as none left */
}

#define WORKERS 60
/* Whatever is reserved and released: never more than there is, never a worker that is out, always
 * one when one fits. */
PROPERTY(placement_never_overcommits_and_finds_room_when_there_is_some)
{
    struct placement *p = placement_new();
    struct room rooms[WORKERS];
    struct {
        struct room *room;
        uint32_t cpu;
        uint64_t memory;
    } placed[400];
    size_t count = 0;
    for (int i = 0; i < WORKERS; i++) {
        rooms[i] = (struct room){.cpu_milli = 1000 + (uint32_t)rng_below(rng, 4000),
                                 .memory_bytes = (1 + rng_below(rng, 8)) * MIB * 256,
                                 .slots = 1 + (uint32_t)rng_below(rng, 10),
                                 .place = UINT32_MAX};
        placement_add(p, &rooms[i]);
    }
    for (int step = 0; step < 600; step++) {
        uint64_t what = rng_below(rng, 10);
        if (what < 6 && count < ARRAY_COUNT(placed)) {
            uint32_t cpu = (uint32_t)rng_below(rng, 2000);
            uint64_t memory = rng_below(rng, 1024) * MIB;
            struct room *r =
                placement_choose(p, (enum placement_policy)rng_below(rng, PLACEMENT_COUNT), cpu,
                                 memory, NULL, 0, rng);
            bool any = false;
            for (int i = 0; i < WORKERS; i++)
                any |= placement_has(&rooms[i]) && room_fits(&rooms[i], cpu, memory);
            CHECK((r != NULL) == any);
            if (r == NULL)
                continue;
            CHECK(placement_has(r) && room_fits(r, cpu, memory));
            placement_reserve(p, r, cpu, memory);
            placed[count].room = r;
            placed[count].cpu = cpu;
            placed[count++].memory = memory;
        } else if (what < 9 && count > 0) {
            size_t i = rng_below(rng, count);
            placement_release(p, placed[i].room, placed[i].cpu, placed[i].memory);
            placed[i] = placed[--count];
        } else {
            struct room *r = &rooms[rng_below(rng, WORKERS)];
            if (placement_has(r))
                placement_remove(p, r);
            else
                placement_add(p, r);
        }
        for (int i = 0; i < WORKERS; i++)
            CHECK(rooms[i].slots_used <= rooms[i].slots &&
                  rooms[i].cpu_reserved_milli <= rooms[i].cpu_milli &&
                  rooms[i].memory_reserved_bytes <= rooms[i].memory_bytes);
    }
    placement_free(p);
}

/* The few candidates of `balanced` are nearly as good as looking at all. */
PROPERTY(balanced_spreads_as_a_full_scorer_would)
{
    struct placement *p = placement_new();
    struct room rooms[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        rooms[i] = (struct room){
            .cpu_milli = 10000, .memory_bytes = 10 * GIB, .slots = 1000, .place = UINT32_MAX};
        placement_add(p, &rooms[i]);
    }
    for (int i = 0; i < WORKERS * 10; i++) {
        struct room *r = placement_choose(p, PLACEMENT_BALANCED, 100, 100 * MIB, NULL, 0, rng);
        REQUIRE(r != NULL);
        placement_reserve(p, r, 100, 100 * MIB);
    }
    for (int i = 0; i < WORKERS; i++)
        CHECK(rooms[i].slots_used >= 7 &&
              rooms[i].slots_used <= 13); /* a full scorer gives 10 to each */
    placement_free(p);
}

/* ---- autoscaler ---- */

static struct scaling_policy windowed(void)
{
    struct scaling_policy p;
    scaling_policy_default(&p);
    p.mode = SCALING_WINDOWED;
    return p;
}

TEST(a_steady_load_gives_its_mean_over_the_target)
{
    struct scaling_policy p = windowed();
    struct autoscaler a = {0};
    for (uint64_t t = 0; t < 60000; t += 2000)
        autoscaler_push(&a, &p, 7.4, t);
    CHECK_EQ(autoscaler_desired(&a, &p, 8, 60000), 8);
    p.target_percentage = 70;
    CHECK_EQ(autoscaler_desired(&a, &p, 8, 60000), 11);
    autoscaler_done(&a);
}

TEST(a_burst_panics_and_the_scale_does_not_fall_while_it_lasts)
{
    struct scaling_policy p = windowed();
    struct autoscaler a = {0};
    uint64_t t = 0;
    for (; t < 60000; t += 2000)
        autoscaler_push(&a, &p, 1, t);
    CHECK_EQ(autoscaler_desired(&a, &p, 1, t), 1);
    for (int i = 0; i < 3; i++, t += 2000)
        autoscaler_push(&a, &p, 30, t);
    CHECK_EQ(autoscaler_desired(&a, &p, 1, t), 30);
    CHECK(a.in_panic);
    autoscaler_push(&a, &p, 0, t);
    autoscaler_push(&a, &p, 0, t += 2000);
    autoscaler_push(&a, &p, 0, t += 2000);
    CHECK_EQ(autoscaler_desired(&a, &p, 30, t), 30);
    for (int i = 0; i < 31; i++)
        autoscaler_push(&a, &p, 0, t += 2000);
    CHECK(autoscaler_desired(&a, &p, 30, t) <= 15); /* the panic is over; half at most in a step */
    CHECK(!a.in_panic);
    CHECK(autoscaler_is_quiet(&a));
    autoscaler_done(&a);
}

PROPERTY(the_scale_stays_within_its_bounds)
{
    struct scaling_policy p = windowed();
    struct autoscaler a = {0};
    p.scale_min = (uint32_t)rng_below(rng, 5);
    p.scale_max = p.scale_min + 1 + (uint32_t)rng_below(rng, 20);
    p.concurrency = (uint32_t)rng_below(rng, 4);
    p.method = (enum scaling_method)rng_below(rng, 2);
    uint32_t ready = 0;
    for (uint64_t t = 0; t < 400000; t += 2000) {
        autoscaler_push(&a, &p, (double)rng_below(rng, 100), t);
        ready = autoscaler_desired(&a, &p, ready, t);
        CHECK(ready >= p.scale_min && ready <= p.scale_max);
    }
    autoscaler_done(&a);
}

/* ---- the core ---- */

struct world {
    struct control *core;
    struct control_orders orders;
    uint64_t now_ms;
};

static void step(struct world *w, const struct control_event *e)
{
    w->orders.count = 0;
    control_step(w->core, e, w->now_ms, &w->orders);
}

static struct world world_new(void)
{
    struct world w = {.now_ms = 1000};
    struct control_options options = {.seed = 1,
                                      .epoch = 7,
                                      .peer_dead_after_ms = 2000,
                                      .reconnect_grace_ms = 5000,
                                      .reconstruction_ms = 10000};
    w.core = control_new(&options);
    return w;
}

static void world_done(struct world *w)
{
    control_free(w->core);
    control_orders_done(&w->orders);
}

static void worker_up(struct world *w, uint64_t id, const struct sandbox_report *sandboxes,
                      size_t count)
{
    struct control_event e = {.kind = EVENT_WORKER_UP};
    e.worker.worker_id = id;
    e.worker.name = "w";
    e.worker.cpu_milli = 10000;
    e.worker.memory_bytes = 10 * GIB;
    e.worker.slots = 20;
    e.worker.sandboxes = sandboxes;
    e.worker.sandbox_count = count;
    step(w, &e);
}

static void data_plane_up(struct world *w, uint64_t id)
{
    struct control_event e = {.kind = EVENT_DATA_PLANE_UP};
    e.data_plane.data_plane_id = id;
    e.data_plane.leases = true;
    step(w, &e);
}

static void function_put(struct world *w, uint64_t id, uint32_t version, uint32_t min, uint32_t max,
                         bool probe)
{
    struct function_spec spec;
    struct control_event e = {.kind = EVENT_FUNCTION_PUT};
    function_spec_init(&spec);
    strcpy(spec.name, "f");
    spec.scaling.scale_min = min;
    spec.scaling.scale_max = max;
    e.function_put.function_id = id;
    e.function_put.version = version;
    e.function_put.probe = probe;
    e.function_put.spec = &spec;
    step(w, &e);
    function_spec_done(&spec);
}

static void demand(struct world *w, uint64_t data_plane, uint64_t function, uint32_t in_flight,
                   uint32_t waiting)
{
    struct control_event e = {.kind = EVENT_DEMAND};
    e.demand.data_plane_id = data_plane;
    e.demand.function_id = function;
    e.demand.in_flight = in_flight;
    e.demand.waiting = waiting;
    e.demand.in_flight_average = in_flight;
    step(w, &e);
}

static size_t count_orders(const struct world *w, enum order_kind kind)
{
    size_t count = 0;
    for (size_t i = 0; i < w->orders.count; i++)
        count += w->orders.items[i].kind == kind;
    return count;
}

static struct control_order *find_order(const struct world *w, enum order_kind kind)
{
    for (size_t i = 0; i < w->orders.count; i++)
        if (w->orders.items[i].kind == kind)
            return &w->orders.items[i];
    return NULL;
}

static void report(struct world *w, uint64_t worker, uint64_t sandbox, uint64_t function,
                   uint32_t version, enum sandbox_state state, enum gone_reason reason)
{
    struct control_event e = {.kind = EVENT_SANDBOX};
    e.sandbox.worker_id = worker;
    e.sandbox.report = (struct sandbox_report){.sandbox_id = sandbox,
                                               .function_id = function,
                                               .version = version,
                                               .state = state,
                                               .reason = reason,
                                               .exit_code = 3,
                                               .last_output = {"boom\n", 5}};
    strcpy(e.sandbox.report.address.direct, "10.0.0.4:8080");
    step(w, &e);
}

static void tick_to(struct world *w, uint64_t now_ms)
{
    struct control_event e = {.kind = EVENT_TICK};
    while (control_next_due_ms(w->core) <= now_ms) {
        w->now_ms = MAX(control_next_due_ms(w->core), w->now_ms);
        step(w, &e);
    }
    w->now_ms = now_ms;
}

/* Worker 1, data plane 9, and one ready sandbox of function 5. */
static struct world world_with_one(uint64_t *ret_id)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 1, 8, false);
    *ret_id = find_order(&w, ORDER_START)->sandbox_id;
    report(&w, 1, *ret_id, 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    return w;
}

TEST(waiting_requests_start_as_many_sandboxes_at_once)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 0, 8, false);
    CHECK_EQ(count_orders(&w, ORDER_START), 0);
    demand(&w, 9, 5, 0, 3);
    CHECK_EQ(count_orders(&w, ORDER_START), 3);
    demand(&w, 9, 5, 0, 100);
    CHECK_EQ(count_orders(&w, ORDER_START), 5); /* up to the maximum */
    CHECK(find_order(&w, ORDER_START)->sandbox_id >> 32 == 7);
    world_done(&w);
}

TEST(a_burst_keeps_its_sandboxes_for_a_window)
{
    struct world w = world_new();
    uint64_t ids[4];
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 0, 8, false);
    demand(&w, 9, 5, 0, 4);
    REQUIRE(count_orders(&w, ORDER_START) == 4);
    for (size_t i = 0; i < 4; i++)
        ids[i] = w.orders.items[i].sandbox_id;
    for (size_t i = 0; i < 4; i++)
        report(&w, 1, ids[i], 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    w.now_ms += 20;
    demand(&w, 9, 5, 0, 0);
    CHECK_EQ(count_orders(&w, ORDER_DRAIN), 0); /* not by demand */
    struct function_view v;
    for (uint64_t end = w.now_ms + 50000; w.now_ms < end;)
        tick_to(&w, w.now_ms + 1000);
    REQUIRE(control_function(w.core, 5, &v));
    CHECK_EQ(v.ready, 4); /* nor by a window that the burst hardly fills */
    tick_to(&w, w.now_ms + 100000);
    REQUIRE(control_function(w.core, 5, &v));
    CHECK_EQ(v.ready, 0);
    world_done(&w);
}

TEST(the_minimum_holds_from_registration_and_comes_back_after_a_crash)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 2, 8, false);
    CHECK_EQ(count_orders(&w, ORDER_START), 2);
    uint64_t id = find_order(&w, ORDER_START)->sandbox_id;
    report(&w, 1, id, 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT), 1);
    w.now_ms += 20000;
    report(&w, 1, id, 5, 1, SANDBOX_GONE, GONE_EXITED);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT_GONE), 1);
    CHECK_EQ(find_order(&w, ORDER_ENDPOINT_GONE)->sandbox_id, id);
    CHECK_EQ(count_orders(&w, ORDER_START), 1);
    world_done(&w);
}

TEST(an_idle_function_goes_to_zero_and_only_after_the_drain_was_acknowledged)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 0, 8, false);
    demand(&w, 9, 5, 0, 1);
    uint64_t id = find_order(&w, ORDER_START)->sandbox_id;
    report(&w, 1, id, 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    demand(&w, 9, 5, 1, 0);
    tick_to(&w, 30000);
    demand(&w, 9, 5, 0, 0);
    struct sandbox_view v;
    tick_to(&w, 80000);
    REQUIRE(control_sandbox(w.core, id, &v));
    CHECK_EQ(v.state, SANDBOX_READY); /* the window still has load in it */
    tick_to(&w, 93000);
    REQUIRE(control_sandbox(w.core, id, &v));
    CHECK_EQ(v.state, SANDBOX_DRAINING);
    struct control_event drained = {.kind = EVENT_DRAINED};
    drained.endpoint.data_plane_id = 9;
    drained.endpoint.sandbox_id = id;
    step(&w, &drained);
    CHECK_EQ(count_orders(&w, ORDER_STOP), 1);
    report(&w, 1, id, 5, 1, SANDBOX_GONE, GONE_STOPPED);
    CHECK_EQ(control_next_due_ms(w.core), UINT64_MAX); /* idle costs nothing */
    world_done(&w);
}

TEST(failed_starts_back_off_and_tell_why)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 0, 8, false);
    uint64_t starts = 0;
    demand(&w, 9, 5, 0, 1);
    for (int i = 0; i < 12; i++) {
        const struct control_order *start = find_order(&w, ORDER_START);
        REQUIRE(start != NULL);
        starts++;
        report(&w, 1, start->sandbox_id, 5, 1, SANDBOX_GONE, GONE_EXITED);
        const struct control_order *fail = find_order(&w, ORDER_FAIL_WAITING);
        REQUIRE(fail != NULL);
        CHECK_EQ(fail->status, 502);
        CHECK_STR(fail->code, "sandbox_exited");
        CHECK_STR(fail->message, "the program exited with code 3 before it listened on port 8080");
        CHECK(str_equal(fail->last_output, STR("boom\n")));
        demand(&w, 9, 5, 0, 1); /* told at once */
        CHECK_EQ(count_orders(&w, ORDER_START), 0);
        CHECK_EQ(count_orders(&w, ORDER_FAIL_WAITING), 1);
        struct control_event tick = {.kind = EVENT_TICK};
        for (int k = 0; k < 100 && find_order(&w, ORDER_START) == NULL; k++) {
            w.now_ms = control_next_due_ms(w.core);
            step(&w, &tick);
        }
    }
    CHECK_EQ(starts, 12);
    CHECK(w.now_ms > 100000); /* twelve starts, doubling from 100 ms to 30 s */
    world_done(&w);
}

TEST(a_new_version_is_proven_beside_the_old_one)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 1, 8, false);
    uint64_t old = find_order(&w, ORDER_START)->sandbox_id;
    report(&w, 1, old, 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    function_put(&w, 5, 2, 1, 8, true);
    CHECK_EQ(count_orders(&w, ORDER_START), 1);
    CHECK_EQ(find_order(&w, ORDER_START)->version, 2);
    CHECK_EQ(count_orders(&w, ORDER_DRAIN), 0);
    uint64_t probe = find_order(&w, ORDER_START)->sandbox_id;
    report(&w, 1, probe, 5, 2, SANDBOX_GONE, GONE_EXITED);
    CHECK_EQ(count_orders(&w, ORDER_VERSION_FAILED), 1);
    CHECK_EQ(count_orders(&w, ORDER_DRAIN), 0); /* the old one serves on */
    w.now_ms += 60000;
    function_put(&w, 5, 3, 1, 8, true);
    probe = find_order(&w, ORDER_START)->sandbox_id;
    report(&w, 1, probe, 5, 3, SANDBOX_READY, GONE_UNKNOWN);
    CHECK_EQ(count_orders(&w, ORDER_VERSION_ACTIVE), 1);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT), 1);
    REQUIRE(find_order(&w, ORDER_DRAIN) != NULL);
    CHECK_EQ(find_order(&w, ORDER_DRAIN)->sandbox_id, old);
    world_done(&w);
}

TEST(a_worker_that_comes_back_keeps_what_it_has_and_loses_what_nobody_knows)
{
    struct world w = world_new();
    worker_up(&w, 1, NULL, 0);
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 2, 8, false);
    uint64_t a = w.orders.items[w.orders.count - 2].sandbox_id,
             b = w.orders.items[w.orders.count - 1].sandbox_id;
    report(&w, 1, a, 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    report(&w, 1, b, 5, 1, SANDBOX_READY, GONE_UNKNOWN);
    struct control_event closed = {.kind = EVENT_WORKER_CLOSED};
    closed.worker.worker_id = 1;
    step(&w, &closed);
    CHECK_EQ(w.orders.count, 0); /* suspected: nothing is given up yet */
    struct sandbox_report has[] = {
        {.sandbox_id = a, .function_id = 5, .version = 1, .state = SANDBOX_READY},
        {.sandbox_id = 77, .function_id = 5, .version = 1, .state = SANDBOX_READY},
        {.sandbox_id = 78, .function_id = 6, .version = 1, .state = SANDBOX_READY}};
    worker_up(&w, 1, has, 3);
    struct sandbox_view v;
    CHECK(control_sandbox(w.core, a, &v) && v.state == SANDBOX_READY);
    CHECK(!control_sandbox(w.core, b, &v));
    CHECK(control_sandbox(w.core, 77, &v) && v.state != SANDBOX_GONE); /* adopted */
    /* Its function was deleted while nobody looked, and the data plane holds nothing of it. */
    CHECK(control_sandbox(w.core, 78, &v) && v.state == SANDBOX_STOPPING);
    CHECK_EQ(find_order(&w, ORDER_ENDPOINT_GONE)->sandbox_id, b);
    REQUIRE(find_order(&w, ORDER_STOP) != NULL);
    CHECK_EQ(find_order(&w, ORDER_STOP)->sandbox_id, 78);
    report(&w, 1, 78, 6, 1, SANDBOX_GONE, GONE_STOPPED);
    CHECK_EQ(count_orders(&w, ORDER_FUNCTION_GONE), 1);
    world_done(&w);
}

TEST(a_worker_silent_for_its_grace_is_replaced)
{
    uint64_t id;
    struct world w = world_with_one(&id);
    worker_up(&w, 2, NULL, 0);
    struct control_event closed = {.kind = EVENT_WORKER_CLOSED};
    closed.worker.worker_id = 1;
    step(&w, &closed);
    w.now_ms += 5000;
    struct control_event tick = {.kind = EVENT_TICK};
    step(&w, &tick);
    REQUIRE(find_order(&w, ORDER_START) != NULL);
    CHECK_EQ(find_order(&w, ORDER_START)->target_id, 2);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT_GONE), 0);
    REQUIRE(find_order(&w, ORDER_DRAIN) != NULL);
    CHECK_EQ(find_order(&w, ORDER_DRAIN)->sandbox_id, id);
    world_done(&w);
}

/* It may live, cut off from us alone. */
TEST(what_is_in_flight_at_a_worker_that_is_silent_is_not_cut)
{
    uint64_t id;
    struct world w = world_with_one(&id);
    struct control_event closed = {.kind = EVENT_WORKER_CLOSED};
    closed.worker.worker_id = 1;
    closed.worker.silent = true;
    step(&w, &closed);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT_GONE), 0);
    CHECK_EQ(count_orders(&w, ORDER_DRAIN), 1);
    struct sandbox_report has[] = {
        {.sandbox_id = id, .function_id = 5, .version = 1, .state = SANDBOX_READY}};
    worker_up(&w, 1, has, 1);
    CHECK_EQ(count_orders(&w, ORDER_STOP), 0);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT), 0); /* the data plane still ends there */
    struct control_event drained = {.kind = EVENT_DRAINED};
    drained.endpoint.data_plane_id = 9;
    drained.endpoint.sandbox_id = id;
    step(&w, &drained);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT), 1); /* the same, again */
    CHECK_EQ(find_order(&w, ORDER_ENDPOINT)->sandbox_id, id);
    step(&w, &closed);
    step(&w, &drained); /* of one that is not there now: forgotten by both */
    REQUIRE(find_order(&w, ORDER_ENDPOINT_GONE) != NULL);
    CHECK_EQ(find_order(&w, ORDER_ENDPOINT_GONE)->sandbox_id, id);
    CHECK_EQ(find_order(&w, ORDER_ENDPOINT_GONE)->target_id, 9);
    world_done(&w);
}

/* That it has ended may have been lost with the connection. */
TEST(a_data_plane_that_says_that_it_ends_a_sandbox_is_asked_for_its_word)
{
    uint64_t id;
    struct world w = world_with_one(&id);
    struct known_sandbox ending = {.sandbox_id = id, .slots = 1, .is_ending = true};
    struct control_event up = {.kind = EVENT_DATA_PLANE_UP};
    up.data_plane.data_plane_id = 9;
    up.data_plane.leases = true;
    up.data_plane.known = &ending;
    up.data_plane.known_count = 1;
    step(&w, &up);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT), 0);
    REQUIRE(find_order(&w, ORDER_DRAIN) != NULL);
    CHECK_EQ(find_order(&w, ORDER_DRAIN)->sandbox_id, id);
    struct control_event drained = {.kind = EVENT_DRAINED};
    drained.endpoint.data_plane_id = 9;
    drained.endpoint.sandbox_id = id;
    step(&w, &drained);
    CHECK_EQ(count_orders(&w, ORDER_ENDPOINT), 1);
    world_done(&w);
}

TEST(a_deleted_function_takes_its_sandboxes_with_it)
{
    uint64_t id;
    struct world w = world_with_one(&id);
    struct control_event gone = {.kind = EVENT_FUNCTION_DELETE};
    gone.function_delete.function_id = 5;
    step(&w, &gone);
    CHECK_EQ(count_orders(&w, ORDER_UNROUTE), 1);
    CHECK_EQ(count_orders(&w, ORDER_DRAIN), 1);
    struct control_event closed = {.kind = EVENT_DATA_PLANE_CLOSED};
    closed.data_plane.data_plane_id = 9;
    step(&w, &closed);
    CHECK_EQ(count_orders(&w, ORDER_STOP), 0); /* it may come back, with a request in flight */
    struct control_event tick = {.kind = EVENT_TICK};
    w.now_ms = control_next_due_ms(w.core);
    step(&w, &tick); /* one that stays away counts as drained */
    CHECK_EQ(count_orders(&w, ORDER_STOP), 1);
    report(&w, 1, id, 5, 1, SANDBOX_GONE, GONE_STOPPED);
    CHECK_EQ(count_orders(&w, ORDER_FUNCTION_GONE), 1);
    struct function_view v;
    CHECK(!control_function(w.core, 5, &v));
    world_done(&w);
}

TEST(without_room_the_waiting_are_told_and_served_when_room_appears)
{
    struct world w = world_new();
    data_plane_up(&w, 9);
    function_put(&w, 5, 1, 0, 8, false);
    demand(&w, 9, 5, 0, 1);
    REQUIRE(find_order(&w, ORDER_FAIL_WAITING) != NULL);
    CHECK_EQ(find_order(&w, ORDER_FAIL_WAITING)->status, 503);
    worker_up(&w, 1, NULL, 0);
    CHECK_EQ(count_orders(&w, ORDER_START), 1);
    world_done(&w);
}

TEST(after_a_start_nothing_is_decided_before_the_known_workers_have_spoken)
{
    struct world w = world_new();
    struct control_event known = {.kind = EVENT_WORKER_KNOWN};
    known.worker.worker_id = 1;
    known.worker.name = "w";
    step(&w, &known);
    function_put(&w, 5, 1, 1, 8, false);
    CHECK_EQ(count_orders(&w, ORDER_START), 0);
    CHECK_EQ(control_awaited_workers(w.core), 1);
    struct sandbox_report has = {
        .sandbox_id = 3, .function_id = 5, .version = 1, .state = SANDBOX_READY};
    worker_up(&w, 1, &has, 1);
    CHECK_EQ(count_orders(&w, ORDER_START), 0); /* what is wanted is there: not counted twice */
    CHECK_EQ(control_awaited_workers(w.core), 0);
    world_done(&w);
}
