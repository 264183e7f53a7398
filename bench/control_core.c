/* control_core.c - the control plane's core alone: whole lives of sandboxes through control_step(),
 * in one thread, with many workers and functions. Prints JSON lines {name, value, unit, …}; a
 * linear scorer over all workers (the original's rule) is the peer. */
#include "control_plane/core.h"
#include "control_plane/placement.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUNCTIONS 10000u
#define ROUNDS 5

static struct control *core;
static struct control_orders orders;
static uint64_t now_ms, lives;

static void step(const struct control_event *e)
{
    orders.count = 0;
    control_step(core, e, now_ms, &orders);
}

static void set_up(uint32_t workers, enum placement_policy policy)
{
    struct control_options options = {.seed = 1,
                                      .epoch = 1,
                                      .peer_dead_after_ms = 2000,
                                      .reconnect_grace_ms = 5000,
                                      .reconstruction_ms = 1};
    core = control_new(&options);
    now_ms = 1000;
    lives = 0;
    for (uint32_t i = 1; i <= workers; i++) {
        struct control_event e = {.kind = EVENT_WORKER_UP};
        e.worker.worker_id = i;
        e.worker.name = "w";
        e.worker.cpu_milli = 64000;
        e.worker.memory_bytes = 256 * GIB;
        e.worker.slots = 4000;
        step(&e);
    }
    struct control_event plane = {.kind = EVENT_DATA_PLANE_UP};
    plane.data_plane.data_plane_id = 1;
    plane.data_plane.leases = true;
    step(&plane);
    struct function_spec spec;
    function_spec_init(&spec);
    spec.placement = policy;
    spec.cpu_milli = 100;
    spec.scaling.stable_window_ms = spec.scaling.panic_window_ms = 100;
    spec.scaling.period_ms = 50;
    for (uint32_t i = 1; i <= FUNCTIONS; i++) {
        struct control_event e = {.kind = EVENT_FUNCTION_PUT};
        snprintf(spec.name, sizeof(spec.name), "f%u", i);
        e.function_put.function_id = i;
        e.function_put.version = 1;
        e.function_put.spec = &spec;
        step(&e);
    }
    function_spec_done(&spec);
}

static void demand(uint32_t function, uint32_t in_flight, uint32_t waiting)
{
    struct control_event e = {.kind = EVENT_DEMAND};
    e.demand.data_plane_id = 1;
    e.demand.function_id = function;
    e.demand.in_flight = in_flight;
    e.demand.waiting = waiting;
    e.demand.in_flight_average = in_flight;
    step(&e);
}

static struct { /* what the orders of a step are answered with, once they are all read */
    struct control_event *events;
    size_t count, capacity;
} answers;

static void answer(struct control_event e)
{
    if (answers.count == answers.capacity) {
        answers.capacity = MAX(answers.capacity * 2, (size_t)64);
        answers.events = mem_resize(answers.events, answers.capacity, sizeof(*answers.events));
    }
    answers.events[answers.count++] = e;
}

/* A data plane says drained, a worker stops. */
static void orders_answer(void)
{
    for (size_t i = 0; i < orders.count; i++) {
        const struct control_order *o = &orders.items[i];
        struct control_event e = {.kind = EVENT_DRAINED};
        if (o->kind == ORDER_DRAIN) {
            e.endpoint.data_plane_id = 1;
            e.endpoint.sandbox_id = o->sandbox_id;
            answer(e);
        } else if (o->kind == ORDER_STOP) {
            e.kind = EVENT_SANDBOX;
            e.sandbox.worker_id = o->target_id;
            e.sandbox.report = (struct sandbox_report){.sandbox_id = o->sandbox_id,
                                                       .function_id = o->function_id,
                                                       .version = 1,
                                                       .state = SANDBOX_GONE,
                                                       .reason = GONE_STOPPED};
            answer(e);
        }
    }
}

/* Time goes on: windows end, sandboxes that are not wanted any more drain, stop and go. */
static void time_pass(void)
{
    struct control_event tick = {.kind = EVENT_TICK};
    while (control_next_due_ms(core) <= now_ms) {
        step(&tick);
        answers.count = 0;
        orders_answer();
        for (size_t i = 0; i < answers.count; i++) {
            step(&answers.events[i]);
            orders_answer();
        }
    }
}

/* One begins every 40 microseconds of the core's clock: demand, order, ready, served; and whose
 * windows are over by now ends. Returns the nanoseconds from demand to order. */
static uint64_t life(uint32_t function)
{
    now_ms = 1000 + ++lives / 25;
    uint64_t begin = clock_mono_ns(), took;
    demand(function, 0, 1);
    took = clock_mono_ns() - begin;
    const struct control_order *start = NULL;
    for (size_t i = 0; i < orders.count; i++)
        if (orders.items[i].kind == ORDER_START)
            start = &orders.items[i];
    if (start == NULL) {
        fprintf(stderr, "bench-control-core: no sandbox was started\n");
        exit(1);
    }
    struct control_event e = {.kind = EVENT_SANDBOX};
    e.sandbox.worker_id = start->target_id;
    e.sandbox.report = (struct sandbox_report){.sandbox_id = start->sandbox_id,
                                               .function_id = function,
                                               .version = 1,
                                               .state = SANDBOX_READY};
    strcpy(e.sandbox.report.address.direct, "10.0.0.1:8080");
    step(&e);
    demand(function, 0, 0);
    time_pass();
    return took;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double rate_of(uint32_t workers, enum placement_policy policy)
{
    double rates[ROUNDS];
    set_up(workers, policy);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t begin = clock_mono_ns();
        for (uint32_t i = 1; i <= FUNCTIONS; i++)
            (void)life(i);
        rates[round] = FUNCTIONS * 1e9 / (double)(clock_mono_ns() - begin);
    }
    control_free(core);
    for (int i = 0; i < ROUNDS; i++) /* the median of few */
        for (int j = i + 1; j < ROUNDS; j++)
            if (rates[j] < rates[i]) {
                double swap = rates[i];
                rates[i] = rates[j];
                rates[j] = swap;
            }
    return rates[ROUNDS / 2];
}

/* Open loop: a life is due every 40 microseconds; the time counts from when it was due. */
static void latency(uint32_t workers)
{
    static uint64_t samples[FUNCTIONS * 5];
    size_t count = 0;
    set_up(workers, PLACEMENT_BALANCED);
    uint64_t begin = clock_mono_ns();
    for (; count < ARRAY_COUNT(samples); count++) {
        uint64_t due = begin + count * 40000;
        while (clock_mono_ns() < due)
            ;
        uint64_t late = clock_mono_ns() - due;
        samples[count] = late + life((uint32_t)(count % FUNCTIONS) + 1);
    }
    control_free(core);
    qsort(samples, count, sizeof(samples[0]), compare);
    printf("{\"name\":\"demand to order at 25,000/s, %u workers\",\"value\":%.1f,\"unit\":\"us "
           "p50\",\"p99_us\":%.1f}\n",
           workers, (double)samples[count / 2] / 1e3, (double)samples[count * 99 / 100] / 1e3);
}

static void linear_peer(uint32_t workers)
{
    struct room *rooms = mem_new_array(workers, sizeof(*rooms));
    for (uint32_t i = 0; i < workers; i++)
        rooms[i] = (struct room){.cpu_milli = 64000,
                                 .memory_bytes = 256 * GIB,
                                 .slots = 4000,
                                 .cpu_reserved_milli = i % 64000};
    uint64_t begin = clock_mono_ns();
    uint32_t decisions = 20000000 / workers;
    volatile uint64_t chosen = 0;
    for (uint32_t d = 0; d < decisions; d++) {
        uint32_t best = 0, best_score = 0;
        for (uint32_t i = 0; i < workers; i++) {
            uint32_t score = placement_score_least_allocated(&rooms[i], 100, MIB) +
                             placement_score_balanced(&rooms[i], 100, MIB);
            if (score > best_score) {
                best = i;
                best_score = score;
            }
        }
        chosen += best;
    }
    printf("{\"name\":\"peer: linear scorer, %u workers, placement "
           "only\",\"value\":%.0f,\"unit\":\"/s\"}\n",
           workers, decisions * 1e9 / (double)(clock_mono_ns() - begin));
    free(rooms);
}

int main(void)
{
    for (int policy = 0; policy < PLACEMENT_COUNT; policy++)
        for (uint32_t workers = 50; workers <= 5000; workers *= 100) {
            double rate = rate_of(workers, (enum placement_policy)policy);
            printf("{\"name\":\"core, %s, %u workers, %u "
                   "functions\",\"value\":%.0f,\"unit\":\"/s\",\"ns\":%.0f}\n",
                   placement_policy_name((enum placement_policy)policy), workers, FUNCTIONS, rate,
                   1e9 / rate);
            fflush(stdout);
        }
    latency(5000);
    linear_peer(50);
    linear_peer(5000);
    control_orders_done(&orders);
    free(answers.events);
    return 0;
}
