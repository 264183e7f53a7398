/* faults.c - what goes wrong, what users change, and who calls. */
#include "sim.h"

#define MENDING_MS 10000u

/* ---- users ---- */

static struct settings settings_choose(struct sim *s, uint32_t name)
{
    static const uint32_t concurrencies[] = {1, 1, 1, 2, 5, 0};
    struct settings n = {.cpu_milli = 300 + 100 * name, .timeout_ms = 3000 + 1000 * name};
    n.scale_min = (uint32_t)sim_below(s, 3);
    n.scale_max = n.scale_min + 1 + (uint32_t)sim_below(s, 6);
    n.concurrency = concurrencies[sim_below(s, ARRAY_COUNT(concurrencies))];
    n.queue_max = (uint32_t)sim_between(s, 5, 60);
    n.load_balancing = (int)sim_below(s, LOAD_BALANCING_COUNT);
    n.placement = (int)sim_below(s, PLACEMENT_COUNT);
    n.mode = sim_chance(s, 4) ? SCALING_WINDOWED : SCALING_IMMEDIATE;
    return n;
}

static void register_again(struct sim *s)
{
    uint32_t name = (uint32_t)sim_below(s, NAMES);
    const struct function *f = store_function(s, name);
    struct settings n = settings_choose(s, name);
    if (f == NULL) {
        (void)store_put(s, name, &n, true, sim_chance(s, 3));
        return;
    }
    if (sim_chance(s, 8)) {
        (void)store_delete(s, name);
        return;
    }
    bool new_version = sim_chance(s, 2);
    if (!new_version) /* what needs a new version stays */
        n.is_bad = f->stored.latest.is_bad;
    n.version = f->stored.latest.version;
    n.is_bad = new_version ? sim_chance(s, 5) : n.is_bad;
    (void)store_put(s, name, &n, new_version, sim_chance(s, 2));
}

static void client_leaves(struct sim *s)
{
    uint64_t back = sim_below(s, 20);
    struct request *r =
        back < s->request_count ? map_get(&s->requests, s->request_count - back) : NULL;
    if (r != NULL && !r->client_left)
        request_client_leaves(s, r);
}

static void burst(struct sim *s)
{
    uint64_t id = s->names[sim_below(s, NAMES)];
    for (uint64_t left = sim_between(s, 5, 40); left > 0 && id != 0; left--)
        request_arrive(s, (uint32_t)sim_below(s, PLANES), id);
}

/* ---- faults ---- */

static uint64_t away_ms(struct sim *s)
{
    return sim_chance(s, 3) ? sim_between(s, 1500, 5000) : sim_between(s, 20, 400);
}

static void on_leader_up(struct sim *s, const struct event *e)
{
    leader_start(s);
}

static void worker_use(struct sim *s, uint32_t worker, enum worker_use use)
{
    struct control_event e = {.kind = EVENT_WORKER_USE};
    if (s->core == NULL)
        return;
    e.worker_use.worker_id = worker + 1;
    e.worker_use.use = use;
    leader_event(s, &e);
}

static void box_crash(struct sim *s)
{
    size_t cursor = 0, skip = s->boxes.count > 0 ? sim_below(s, s->boxes.count) : 0;
    struct box *b;
    do
        b = map_next(&s->boxes, &cursor);
    while (b != NULL && skip-- > 0);
    if (b != NULL && b->state == BOX_READY)
        worker_box_end(s, b, sim_chance(s, 2) ? GONE_EXITED : GONE_OUT_OF_MEMORY);
}

static void cluster_fault(struct sim *s)
{
    uint32_t worker = (uint32_t)sim_below(s, WORKERS), plane = (uint32_t)sim_below(s, PLANES);
    switch (sim_below(s, 7)) {
    case 0:
        worker_restart(s, worker);
        break;
    case 1:
        worker_crash(s, worker, away_ms(s));
        break;
    case 2:
        plane_crash(s, plane, away_ms(s));
        break;
    case 3:
        if (s->core != NULL) {
            leader_crash(s);
            clock_after(s, away_ms(s), on_leader_up, 0, 0);
        }
        break;
    case 4:
        worker_use(s, worker, (enum worker_use)sim_below(s, 3));
        break;
    case 5:
        if (sim_chance(s, 3))
            worker_leave(s, worker, away_ms(s));
        break;
    default:
        network_break(s, (uint32_t)sim_below(s, PEERS));
        break;
    }
}

static void on_fault(struct sim *s, const struct event *e)
{
    if (s->phase != PHASE_FAULTS)
        return;
    switch (sim_below(s, 10)) {
    case 0:
    case 1:
        network_break(s, (uint32_t)sim_below(s, PEERS));
        break;
    case 2:
        network_stall(s, (uint32_t)sim_below(s, PEERS),
                      sim_chance(s, 2) ? sim_between(s, 1500, 6000) : sim_between(s, 50, 1500));
        break;
    case 3:
    case 4:
        box_crash(s);
        break;
    case 5:
        burst(s);
        break;
    case 6:
    case 7:
        register_again(s);
        break;
    default:
        cluster_fault(s);
        break;
    }
    clock_after(s, sim_between(s, 1, 600), on_fault, 0, 0);
}

void faults_begin(struct sim *s)
{
    leader_start(s);
    for (uint32_t name = 0; name < NAMES; name++) {
        struct settings n = settings_choose(s, name);
        (void)store_put(s, name, &n, true, false);
    }
    clock_after(s, 500, on_fault, 0, 0);
}

static bool needs_mending(const struct sim *s, const struct function *f)
{
    struct function_view v;
    return f == NULL || f->stored.latest.is_bad || f->next.latest.is_bad ||
           (control_function(s->core, f->stored.id, &v) && v.latest_state == VERSION_FAILED);
}

/* Users deploy what does not work once more, and operators let workers be. */
static void on_mend(struct sim *s, const struct event *e)
{
    for (uint32_t name = 0; name < NAMES && s->core != NULL; name++) {
        struct settings n = settings_choose(s, name);
        if (needs_mending(s, store_function(s, name)))
            (void)store_put(s, name, &n, true, sim_chance(s, 2));
    }
    for (uint32_t worker = 0; worker < WORKERS; worker++)
        worker_use(s, worker, WORKER_USE_ALL);
    if (s->now_ms < FAULTS_END_MS + MENDING_MS)
        clock_after(s, 100, on_mend, 0, 0);
}

void faults_end(struct sim *s)
{
    clock_after(s, 0, on_mend, 0, 0);
}

/* ---- calls ---- */

static void on_call(struct sim *s, const struct event *e)
{
    bool is_calm = s->phase != PHASE_FAULTS;
    if (s->now_ms >= s->calls_until_ms)
        return;
    uint64_t id = s->names[sim_below(s, NAMES)];
    if (id != 0)
        request_arrive(s, (uint32_t)sim_below(s, PLANES), id);
    if (!is_calm && sim_chance(s, 15))
        client_leaves(s);
    clock_after(s, is_calm ? sim_between(s, 20, 300) : sim_between(s, 1, 60), on_call, 0, 0);
}

void calls_begin(struct sim *s, uint64_t until_ms)
{
    s->calls_until_ms = until_ms;
    clock_after(s, 1, on_call, 0, 0);
}
