/* sim_election.c - scenarios, one per seed; prints TAP.
 *
 *   sim_election [--seeds N] [--first SEED]   N seeds from SEED on (2000 from 1)
 *   sim_election --seed SEED                  one seed, with a trace of what happens */
#include "world.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAILED_SEEDS_MAX 5u
#define LAG_MS_MAX 400u
#define REST_US                                                                                  \
    ((ELECTION_BACKOFF_MS_MAX + 5000) * MS)             /* after the last fault: damped at worst \
                                                         */
#define GAP_US_MIN (ELECTION_TENURE_MS * MS * 95 / 100) /* clocks run up to 5 % too fast */

struct numbers {
    uint64_t rest_us_max, epochs, suspicions;
};

/* ---- parts of scenarios ---- */

static uint64_t between_ms(struct world *w, uint64_t min, uint64_t max)
{
    return (min + world_below(w, max - min + 1)) * MS;
}

static bool has_leader(const struct world *w)
{
    return leader_of(w) != ELECTION_NOBODY;
}

static void expect_leader(struct world *w, uint64_t within_us, const char *when)
{
    if (!world_run_until(w, has_leader, within_us))
        world_fail(w, "nobody leads %llu ms after %s", (unsigned long long)(within_us / MS), when);
}

static void expect_settled(struct world *w, uint64_t within_us, const char *when)
{
    if (!world_run_until(w, is_settled, within_us))
        world_fail(w, "%u lead, or not all know who does, %llu ms after %s", leaders(w),
                   (unsigned long long)(within_us / MS), when);
}

static void start_all(struct world *w, uint64_t spread_us)
{
    for (uint32_t i = 0; i < w->count; i++)
        world_start_later(w, i, spread_us > 0 ? world_below(w, spread_us) : 0);
    expect_settled(w, 1 * S + spread_us, "the start");
    world_run(w, between_ms(w, 300, 1300)); /* all are connected */
}

static void cut_member(struct world *w, uint32_t i, bool cut)
{
    for (uint32_t k = 0; k < w->count; k++)
        w->cut[i][k] = w->cut[k][i] = cut && k != i;
}

static void heal(struct world *w)
{
    world_trace(w, "no more faults");
    memset(w->cut, 0, sizeof(w->cut));
    memset(w->lag_us, 0, sizeof(w->lag_us));
    memset(w->worker_cut, 0, sizeof(w->worker_cut));
    memset(w->store_cut, 0, sizeof(w->store_cut));
    memset(w->store_deaf, 0, sizeof(w->store_deaf));
    w->store_away = false;
    w->store_slow = 1;
    w->loss_percent = w->watch_loss_percent = 0;
    for (uint32_t i = 0; i < w->count; i++) {
        world_resume(w, i);
        if (w->members[i].e == NULL)
            world_start_later(w, i, 0);
    }
}

/* Whatever was before: in the end one leads, everybody knows it, and it stays so. */
static void rest(struct world *w, struct numbers *n)
{
    heal(w);
    world_run(w, (LAG_MS_MAX + 10) * MS); /* what is on its way may be old */
    uint64_t begin_us = w->now_us;
    expect_settled(w, REST_US, "the last fault");
    n->rest_us_max = MAX(n->rest_us_max, w->now_us - begin_us);
    uint64_t epoch = w->epoch;
    world_run(w, 5 * S);
    if (w->epoch != epoch || !is_settled(w))
        world_fail(w, "a leader was replaced without a reason");
}

static void expect_calm(struct world *w)
{
    if (w->gap_us < GAP_US_MIN)
        world_fail(w, "two living leaders were replaced within %llu ms",
                   (unsigned long long)(w->gap_us / MS));
}

/* ---- scenarios ---- */

static void whole_cluster_starts(struct world *w)
{
    uint64_t spread_us = world_below(w, 3) * 30 * MS;
    for (uint32_t i = 0; i < w->count; i++)
        world_start_later(w, i, spread_us > 0 ? world_below(w, spread_us) : 0);
    expect_settled(w, 500 * MS, "the start");
    world_run(w, 3 * S);
    if (w->epoch != 1)
        world_fail(w, "%llu epochs were taken at the start", (unsigned long long)w->epoch);
    for (uint32_t i = 0; i < w->count; i++) /* and once more, with an epoch */
        world_kill(w, i, world_below(w, 2) == 0);
    world_run(w, between_ms(w, 1000, 4000)); /* also lost hosts can come back */
    for (uint32_t i = 0; i < w->count; i++)
        world_start_later(w, i, spread_us > 0 ? world_below(w, spread_us) : 0);
    expect_settled(w, 500 * MS, "the second start");
    world_run(w, 3 * S);
    if (w->epoch != 2)
        world_fail(w, "%llu epochs were taken after two starts", (unsigned long long)w->epoch);
}

static void leaders_are_killed(struct world *w)
{
    start_all(w, 0);
    w->kills = 0;
    uint64_t before = w->epoch;
    for (int n = 0; n < 15 && w->failure[0] == '\0'; n++) {
        uint32_t leader = leader_of(w);
        world_kill(w, leader, false);
        if (w->count == 1)
            world_start_later(w, leader, 0);
        expect_leader(w, (w->count == 1 ? 200 : 100) * MS, "the leader was killed");
        if (world_below(w, 4) == 0)
            world_kill(w, (leader + 1) % w->count, false); /* whoever that is */
        world_start_later(w, leader, between_ms(w, 0, 100));
        world_start_later(w, (leader + 1) % w->count, between_ms(w, 0, 100));
        world_run(w, 300 * MS);
        expect_leader(w, 500 * MS, "somebody was killed");
    }
    if (w->epoch - before > w->kills)
        world_fail(w, "%u kills and %llu takeovers", w->kills,
                   (unsigned long long)(w->epoch - before));
}

static bool next_is_taken(const struct world *w)
{
    return w->epoch == 2;
}

static void first_successor_is_killed_too(struct world *w)
{
    start_all(w, 0);
    if (w->epoch != 1 || w->count < 3)
        return;
    world_kill(w, leader_of(w), false);
    if (!world_run_until(w, next_is_taken, 100 * MS))
        world_fail(w, "nobody takes the epoch");
    world_kill(w, w->owners[2].member, false); /* it may not know yet that it has it */
    expect_leader(w, 200 * MS, "two were killed");
    if (w->epoch != 3)
        world_fail(w, "%llu epochs after two kills", (unsigned long long)w->epoch);
}

static void leader_stands_still(struct world *w)
{
    start_all(w, 0);
    uint32_t old = leader_of(w);
    uint64_t epoch = w->epoch;
    world_pause(w, old);
    if (w->count > 1)
        world_run(w, w->count > 2 ? 500 * MS : 2500 * MS);
    if (w->count > 1 && leader_of(w) == ELECTION_NOBODY)
        world_fail(w, "nobody leads while the leader stands still");
    world_run(w, 5 * S);
    world_resume(w, old);
    world_run(w, 100 * MS);
    if (w->count > 1 && w->members[old].leads != 0)
        world_fail(w, "%u leads on after it stood still", old);
    world_run(w, 5 * S);
    if (w->epoch != epoch + (w->count > 1))
        world_fail(w, "%llu takeovers after one stop", (unsigned long long)(w->epoch - epoch));
}

static void leader_is_lost_with_its_host(struct world *w)
{
    start_all(w, 0);
    uint32_t old = leader_of(w);
    uint64_t epoch = w->epoch;
    if (w->count == 1)
        return;
    world_kill(w, old, true);
    expect_leader(w, w->count > 2 ? 500 * MS : 2500 * MS, "the leader's host was lost");
    world_run(w, 3 * S);
    if (w->epoch != epoch + 1)
        world_fail(w, "%llu takeovers", (unsigned long long)(w->epoch - epoch));
}

static void loss_in_one_direction(struct world *w)
{
    start_all(w, 0);
    uint64_t cuts = 1 + world_below(w, 3), epoch = w->epoch;
    for (uint64_t n = 0; n < cuts; n++) {
        uint32_t from = (uint32_t)world_below(w, w->count), to = (uint32_t)world_below(w, w->count);
        w->cut[from][to] = from != to;
    }
    world_run(w, 20 * S);
    expect_calm(w);
    expect_leader(w, 1 * S, "loss in one direction");
    if (cuts == 1 && w->count > 2 && w->epoch > epoch + 1)
        world_fail(w, "%llu takeovers", (unsigned long long)(w->epoch - epoch));
}

static void leader_is_cut_off_from_members(struct world *w)
{
    start_all(w, 0);
    cut_member(w, leader_of(w), true);
    world_run(w, 30 * S);
    expect_calm(w);
    expect_leader(w, 1 * S, "a cut between members");
}

static void leader_is_cut_off_from_all(struct world *w)
{
    start_all(w, 0);
    uint32_t old = leader_of(w);
    uint64_t epoch = w->epoch;
    cut_member(w, old, true);
    w->store_cut[old] = true;
    for (uint32_t k = 0; k < WORKERS; k++)
        w->worker_cut[old][k] = true;
    world_run(w, 500 * MS);
    if (w->count > 2 && (w->epoch != epoch + 1 || leader_of(w) == ELECTION_NOBODY))
        world_fail(w, "nobody leads 500 ms after the leader was cut off");
    if (w->members[old].leads == 0)
        world_fail(w, "the leader that is cut off from all does not go on");
    world_run(w, 10 * S);
    if (w->epoch > epoch + 1)
        world_fail(w, "%llu takeovers", (unsigned long long)(w->epoch - epoch));
}

static void leader_is_cut_off_from_the_store(struct world *w)
{
    start_all(w, 0);
    uint32_t old = leader_of(w);
    uint64_t epoch = w->epoch;
    w->store_cut[old] = true;
    world_run(w, 1 * S);
    if (w->count > 1 && (w->members[old].leads == epoch || leader_of(w) == ELECTION_NOBODY))
        world_fail(w, "the leader leads on without the store, or nobody does");
    world_run(w, 10 * S);
    if (w->epoch != epoch + (w->count > 1))
        world_fail(w, "%llu takeovers", (unsigned long long)(w->epoch - epoch));
}

static void store_is_away(struct world *w)
{
    start_all(w, 0);
    uint32_t old = leader_of(w);
    uint64_t epoch = w->epoch;
    w->store_away = true;
    world_run(w, 20 * S);
    if (w->members[old].leads != epoch)
        world_fail(w, "the leader does not go on while nobody reaches the store");
    bool kill = world_below(w, 2) == 0;
    if (kill)
        world_kill(w, old, false);
    world_run(w, between_ms(w, 0, 5000));
    w->store_away = false;
    if (kill && w->count == 1)
        world_start_later(w, old, 0);
    expect_leader(w, TAKE_DEADLINE_US + 500 * MS, "the store is back");
    world_run(w, 3 * S);
    if (w->epoch != epoch + kill)
        world_fail(w, "%llu takeovers", (unsigned long long)(w->epoch - epoch));
}

static void network_is_bad(struct world *w)
{
    start_all(w, 0);
    w->loss_percent = 5 + (uint32_t)world_below(w, 40);
    for (uint32_t i = 0; i < w->count; i++)
        for (uint32_t k = 0; k < w->count; k++)
            w->lag_us[i][k] = (uint32_t)between_ms(w, 0, 80);
    world_run(w, 20 * S);
    expect_calm(w);
}

/* ---- everything ---- */

enum fault {
    KILL,
    LOSE_HOST,
    RESTART,
    PAUSE,
    RESUME,
    CUT_ONE_WAY,
    CUT_BOTH,
    HEAL_ONE,
    HEAL_ALL,
    LAG,
    LOSS,
    CUT_STORE,
    DEAFEN_STORE,
    HEAL_STORE,
    STORE_AWAY,
    STORE_BACK,
    SLOW_STORE,
    LOSE_WATCH,
    CUT_WORKER,
    FAULT_COUNT
};

static void fault_link(struct world *w, enum fault fault, uint32_t i, uint32_t k)
{
    if (fault == CUT_ONE_WAY || fault == CUT_BOTH)
        w->cut[i][k] = i != k;
    if (fault == CUT_BOTH)
        w->cut[k][i] = i != k;
    if (fault == HEAL_ONE)
        w->cut[i][k] = w->cut[k][i] = false;
    if (fault == HEAL_ALL)
        memset(w->cut, 0, sizeof(w->cut));
    if (fault == LAG)
        w->lag_us[i][k] = (uint32_t)(world_below(w, 2) == 0 ? 0 : between_ms(w, 1, LAG_MS_MAX));
    if (fault == LOSS)
        w->loss_percent = (uint32_t)(world_below(w, 2) == 0 ? 0 : world_below(w, 60));
    if (fault == CUT_WORKER)
        w->worker_cut[i][k % WORKERS] = world_below(w, 2) == 0;
}

static void fault_store(struct world *w, enum fault fault, uint32_t i)
{
    if (fault == CUT_STORE)
        w->store_cut[i] = true;
    if (fault == DEAFEN_STORE)
        w->store_deaf[i] = true;
    if (fault == HEAL_STORE)
        w->store_cut[i] = w->store_deaf[i] = false;
    if (fault == STORE_AWAY || fault == STORE_BACK)
        w->store_away = fault == STORE_AWAY;
    if (fault == SLOW_STORE)
        w->store_slow = world_below(w, 2) == 0 ? 1 : 1 + (uint32_t)world_below(w, 200);
    if (fault == LOSE_WATCH)
        w->watch_loss_percent = (uint32_t)(world_below(w, 2) == 0 ? 0 : world_below(w, 100));
}

static void fault_process(struct world *w, enum fault fault, uint32_t i)
{
    if (fault == KILL || fault == LOSE_HOST)
        world_kill(w, i, fault == LOSE_HOST);
    if (fault == RESTART && w->members[i].e == NULL)
        world_start_later(w, i, 0);
    if (fault == PAUSE)
        world_pause(w, i);
    if (fault == RESUME)
        world_resume(w, i);
}

static void everything(struct world *w)
{
    uint64_t kinds = rng_next(&w->rng), longest_ms = 20 + world_below(w, 800);
    uint64_t end_us = w->now_us + between_ms(w, 3000, 12000);
    for (uint32_t i = 0; i < w->count; i++)
        world_start_later(w, i, between_ms(w, 0, 500));
    while (w->now_us < end_us && w->failure[0] == '\0') {
        world_run(w, between_ms(w, 0, longest_ms));
        enum fault fault = (enum fault)world_below(w, FAULT_COUNT);
        uint32_t i = (uint32_t)world_below(w, w->count), k = (uint32_t)world_below(w, w->count);
        if (world_below(w, 3) == 0 && has_leader(w))
            i = leader_of(w);
        if ((kinds >> fault & 1) == 0)
            continue;
        world_trace(w, "fault %d at %u, %u", fault, i, k);
        fault_process(w, fault, i);
        fault_link(w, fault, i, k);
        fault_store(w, fault, i);
    }
}

/* ---- runs ---- */

static const struct scenario {
    const char *name;
    void (*run)(struct world *w);
    unsigned share;
} scenarios[] = {
    {"a whole cluster starts", whole_cluster_starts, 1},
    {"leaders are killed", leaders_are_killed, 2},
    {"the first successor is killed too", first_successor_is_killed_too, 1},
    {"the leader stands still", leader_stands_still, 1},
    {"the leader is lost with its host", leader_is_lost_with_its_host, 1},
    {"loss in one direction", loss_in_one_direction, 2},
    {"the leader is cut off from the members", leader_is_cut_off_from_members, 1},
    {"the leader is cut off from all", leader_is_cut_off_from_all, 1},
    {"the leader is cut off from the store", leader_is_cut_off_from_the_store, 1},
    {"the store is away", store_is_away, 1},
    {"the network loses and delays", network_is_bad, 1},
    {"everything at once", everything, 7},
};
#define SHARES 20u

static size_t scenario_of(uint64_t seed)
{
    uint64_t share = seed % SHARES;
    for (size_t i = 0;; i++) {
        if (share < scenarios[i].share)
            return i;
        share -= scenarios[i].share;
    }
}

/* "" or what went wrong. */
static void run_seed(uint64_t seed, bool trace, struct numbers *n, char ret_failure[256])
{
    struct world w;
    uint32_t count = 1 + (uint32_t)(seed / SHARES) % MEMBERS;
    world_init(&w, seed, count);
    w.trace = trace;
    world_trace(&w, "%s, %u members", scenarios[scenario_of(seed)].name, count);
    scenarios[scenario_of(seed)].run(&w);
    if (w.failure[0] == '\0')
        rest(&w, n);
    n->epochs += w.epoch;
    for (uint64_t epoch = 1; epoch <= w.epoch; epoch++)
        n->suspicions += w.owners[epoch].on_suspicion;
    memcpy(ret_failure, w.failure, sizeof(w.failure));
    world_done(&w);
}

/* ---- how long a takeover takes ---- */

#define KILLS 500u

static int compare_times(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static void measure(char ret_failure[256])
{
    static uint64_t took_us[KILLS];
    struct world w;
    world_init(&w, 7, 3);
    w.calm = true;
    for (uint32_t i = 0; i < w.count; i++)
        world_start(&w, i);
    world_run(&w, 1 * S);
    for (unsigned n = 0; n < KILLS && w.failure[0] == '\0'; n++) {
        world_run(&w, 200 * MS + world_below(&w, 100 * MS));
        uint32_t leader = leader_of(&w);
        uint64_t begin_us = w.now_us;
        world_kill(&w, leader, false);
        expect_leader(&w, 1 * S, "a kill");
        took_us[n] = w.now_us - begin_us;
        world_start_later(&w, leader, 100 * MS);
    }
    qsort(took_us, KILLS, sizeof(took_us[0]), compare_times);
    printf("# from kill to lead, with 3.4 ms for a compare-and-swap and 0.2 ms for a link: "
           "p50 %.1f ms, p99 %.1f ms\n",
           (double)took_us[KILLS / 2] / (double)MS, (double)took_us[KILLS * 99 / 100] / (double)MS);
    if (took_us[KILLS * 99 / 100] > 25 * MS)
        world_fail(&w, "it takes too long");
    memcpy(ret_failure, w.failure, sizeof(w.failure));
    world_done(&w);
}

static int run_many(uint64_t first, uint64_t seeds)
{
    char failure[256];
    struct numbers n = {0};
    uint64_t failed[ARRAY_COUNT(scenarios)] = {0}, all = 0;
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        run_seed(seed, false, &n, failure);
        if (failure[0] == '\0')
            continue;
        failed[scenario_of(seed)]++;
        if (++all <= FAILED_SEEDS_MAX)
            printf("# seed %llu, %s: %s\n# repeat it with: sim_election --seed %llu\n",
                   (unsigned long long)seed, scenarios[scenario_of(seed)].name, failure,
                   (unsigned long long)seed);
    }
    for (size_t i = 0; i < ARRAY_COUNT(scenarios); i++)
        printf("%s %zu - %s\n", failed[i] == 0 ? "ok" : "not ok", i + 1, scenarios[i].name);
    measure(failure);
    if (failure[0] != '\0')
        printf("# %s\n", failure);
    printf("%s %zu - a takeover is quick\n", failure[0] == '\0' ? "ok" : "not ok",
           ARRAY_COUNT(scenarios) + 1);
    printf("# %llu seeds, %llu epochs, %llu of them taken from one that lived; after the last "
           "fault settled within %.1f s\n1..%zu\n",
           (unsigned long long)seeds, (unsigned long long)n.epochs,
           (unsigned long long)n.suspicions, (double)n.rest_us_max / (double)S,
           ARRAY_COUNT(scenarios) + 1);
    return all > 0 || failure[0] != '\0';
}

int main(int argc, char **argv)
{
    uint64_t first = 1, seeds = 2000, one = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t value = strtoull(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--seed") == 0)
            one = value;
        else if (strcmp(argv[i], "--first") == 0)
            first = value;
        else if (strcmp(argv[i], "--seeds") == 0)
            seeds = value;
        else
            return 2;
    }
    if (one == 0)
        return run_many(first, seeds);
    char failure[256];
    struct numbers n = {0};
    run_seed(one, true, &n, failure);
    printf("%s 1 - seed %llu%s%s\n1..1\n", failure[0] == '\0' ? "ok" : "not ok",
           (unsigned long long)one, failure[0] != '\0' ? ": " : "", failure);
    return failure[0] != '\0';
}
