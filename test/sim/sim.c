/* sim.c - runs of the simulation, one per seed; prints TAP.
 *
 *   sim [--seeds N] [--first SEED] [--answers]   N seeds from SEED on (4000 from 1)
 *   sim --seed SEED                              one seed, with a trace of what happens */
#include "sim.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAILED_SEEDS_MAX 5u

/* ---- what all use ---- */

uint64_t sim_below(struct sim *s, uint64_t bound)
{
    return rng_below(&s->rng, bound);
}

uint64_t sim_between(struct sim *s, uint64_t min, uint64_t max)
{
    return min + rng_below(&s->rng, max - min + 1);
}

bool sim_chance(struct sim *s, uint32_t one_in)
{
    return rng_below(&s->rng, one_in) == 0;
}

void sim_fail(struct sim *s, const char *format, ...)
{
    va_list args;
    if (s->failure[0] != '\0')
        return;
    va_start(args, format);
    (void)vsnprintf(s->failure, sizeof(s->failure), format, args);
    va_end(args);
}

void sim_trace(const struct sim *s, const char *format, ...)
{
    va_list args;
    if (!s->trace)
        return;
    printf("# [%llu] ", (unsigned long long)s->now_ms);
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    printf("\n");
}

/* ---- one run ---- */

static void run_until(struct sim *s, enum phase phase, uint64_t until_ms)
{
    static const char *const names[] = {[PHASE_FAULTS] = "faults begin",
                                        [PHASE_RECOVERY] = "no more faults",
                                        [PHASE_CALLS] = "calls, all of which must succeed",
                                        [PHASE_REST] = "no more calls"};
    struct event e;
    s->phase = phase;
    if (s->failure[0] == '\0')
        sim_trace(s, "%s", names[phase]);
    while (s->failure[0] == '\0' && clock_next(s, until_ms, &e)) {
        s->touched_planes = 0;
        e.run(s, &e);
        check_step(s);
    }
    if (s->failure[0] == '\0')
        s->now_ms = until_ms;
}

static void begin(struct sim *s, uint64_t seed)
{
    s->seed = seed;
    rng_init(&s->rng, seed);
    s->is_tight = sim_chance(s, 3);
    s->worker_cpu_milli = s->is_tight ? 3000 : 12000;
    s->worker_slots = s->is_tight ? 8 : 40;
    for (uint32_t i = 0; i < WORKERS; i++) {
        list_init(&s->workers[i].boxes);
        s->workers[i].is_up = true;
    }
    for (uint32_t i = 0; i < PLANES; i++)
        plane_begin(s, i);
    network_begin(s);
}

static void end(struct sim *s)
{
    for (uint32_t i = 0; i < PLANES; i++)
        plane_done(s, i);
    for (uint32_t i = 0; i < PEERS; i++) {
        network_frame_free(s->links[i].outbox[TO_CORE]);
        network_frame_free(s->links[i].outbox[TO_PEER]);
        map_done(&s->links[i].drains);
    }
    size_t cursor = 0;
    for (struct box *b; (b = map_next(&s->boxes, &cursor)) != NULL;)
        free(b);
    map_done(&s->boxes);
    map_done(&s->requests);
    control_free(s->core);
    control_orders_done(&s->orders);
    clock_done(s);
}

static void run(struct sim *s, uint64_t seed)
{
    begin(s, seed);
    faults_begin(s);
    calls_begin(s, FAULTS_END_MS);
    run_until(s, PHASE_FAULTS, FAULTS_END_MS);
    faults_end(s);
    run_until(s, PHASE_RECOVERY, CALLS_BEGIN_MS);
    calls_begin(s, CALLS_END_MS);
    run_until(s, PHASE_CALLS, CALLS_END_MS);
    run_until(s, PHASE_REST, REST_MS);
    if (s->failure[0] == '\0')
        check_rest(s);
    end(s);
}

/* ---- all of them ---- */

struct arguments {
    uint64_t seeds, first;
    bool trace, show_answers;
};

static bool arguments_read(int argc, char **argv, struct arguments *a)
{
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--answers") == 0) {
            a->show_answers = true;
        } else if (strcmp(argv[i], "--seeds") == 0 && has_value) {
            a->seeds = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--first") == 0 && has_value) {
            a->first = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && has_value) {
            a->first = strtoull(argv[++i], NULL, 10);
            a->seeds = 1;
            a->trace = true;
        } else {
            fprintf(stderr, "usage: sim [--seeds N] [--first SEED] [--answers] | --seed SEED\n");
            return false;
        }
    }
    return true;
}

static bool run_one(uint64_t seed, bool trace, uint64_t *answers)
{
    struct sim *s = mem_new(sizeof(*s));
    s->trace = trace;
    run(s, seed);
    bool is_fine = s->failure[0] == '\0';
    if (!is_fine)
        printf("# at %llu ms: %s\n# seed %llu: run again with --seed %llu\n",
               (unsigned long long)s->now_ms, s->failure, (unsigned long long)seed,
               (unsigned long long)seed);
    for (int i = 0; i < ANSWER_COUNT; i++)
        answers[i] += s->answers[i];
    free(s);
    return is_fine;
}

int main(int argc, char **argv)
{
    struct arguments a = {.seeds = 4000, .first = 1};
    uint64_t answers[ANSWER_COUNT] = {0}, done = 0;
    unsigned failed = 0;
    if (!arguments_read(argc, argv, &a))
        return 2;
    for (; done < a.seeds && failed < FAILED_SEEDS_MAX; done++)
        failed += !run_one(a.first + done, a.trace, answers);
    for (int i = 0; a.show_answers && i < ANSWER_COUNT; i++)
        printf("# answer %d: %llu requests\n", i, (unsigned long long)answers[i]);
    printf("%s 1 - %llu seeds\n1..1\n", failed > 0 ? "not ok" : "ok", (unsigned long long)done);
    return failed > 0;
}
