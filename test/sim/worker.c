/* worker.c - workers and the sandboxes as they really are (as src/worker/node.c has them). */
#include "sim.h"
#include <stdlib.h>

static const enum sandbox_state told[] = {[BOX_STARTING] = SANDBOX_STARTING,
                                          [BOX_READY] = SANDBOX_READY,
                                          [BOX_STOPPING] = SANDBOX_STOPPING};

struct box *worker_box(const struct sim *s, uint64_t sandbox_id)
{
    return map_get(&s->boxes, sandbox_id);
}

/* ---- reports ---- */

/* What happens while nobody listens is told by the next hello. */
static void report(struct sim *s, const struct box *b, enum sandbox_state state,
                   enum gone_reason reason)
{
    if (s->links[b->worker].peer_end == 0)
        return;
    struct item *item = network_item(s, b->worker, TO_CORE, ITEM_SANDBOX);
    item->sandbox_id = b->id;
    item->function_id = b->function_id;
    item->version = b->version;
    item->state = state;
    item->reason = reason;
}

void worker_hello(struct sim *s, uint32_t worker, struct frame *hello)
{
    list_for_each(b, &s->workers[worker].boxes, struct box, of_worker)
    {
        struct item *item = frame_item(hello, ITEM_SANDBOX);
        item->sandbox_id = b->id;
        item->function_id = b->function_id;
        item->version = b->version;
        item->state = told[b->state];
    }
}

/* ---- life of a sandbox ---- */

static void box_move(struct sim *s, struct box *b, enum box_state state)
{
    b->state = state;
    b->generation++;
    report(s, b, told[state], GONE_UNKNOWN);
}

void worker_box_end(struct sim *s, struct box *b, enum gone_reason reason)
{
    sim_trace(s, "sandbox %llx ends, %s", (unsigned long long)b->id, failure_code(reason));
    report(s, b, SANDBOX_GONE, reason);
    list_remove(&b->of_worker);
    (void)map_remove(&s->boxes, b->id);
    for (uint32_t plane = 0; plane < PLANES; plane++)
        if (b->requests[plane] > 0)
            requests_break(s, plane, b->id);
    free(b);
}

/* `a` is the sandbox, `b` the generation of the plan. */
static struct box *planned(struct sim *s, const struct event *e)
{
    struct box *b = worker_box(s, e->a);
    return b != NULL && b->generation == e->b ? b : NULL;
}

static void on_ready(struct sim *s, const struct event *e)
{
    struct box *b = planned(s, e);
    if (b == NULL)
        return;
    sim_trace(s, "sandbox %llx is ready", (unsigned long long)b->id);
    box_move(s, b, BOX_READY);
    if (s->phase == PHASE_FAULTS && sim_chance(s, 30))
        network_break(s, b->worker);
}

static void on_start_failed(struct sim *s, const struct event *e)
{
    static const enum gone_reason reasons[] = {GONE_EXITED,  GONE_WRONG_PORT,    GONE_START_TIMEOUT,
                                               GONE_NO_ROOM, GONE_OUT_OF_MEMORY, GONE_INTERNAL};
    struct box *b = planned(s, e);
    if (b != NULL)
        worker_box_end(s, b, reasons[sim_below(s, ARRAY_COUNT(reasons))]);
}

static void on_stopped(struct sim *s, const struct event *e)
{
    struct box *b = planned(s, e);
    if (b != NULL)
        worker_box_end(s, b, GONE_STOPPED);
}

static void stop(struct sim *s, struct box *b)
{
    box_move(s, b, BOX_STOPPING);
    clock_after(s, sim_between(s, 1, 60), on_stopped, b->id, b->generation);
}

static void start(struct sim *s, uint32_t worker, const struct item *o)
{
    if (worker_box(s, o->sandbox_id) != NULL) {
        FAIL_UNLESS(s, worker_box(s, o->sandbox_id)->function_id == o->function_id,
                    "sandbox %llx is started for a second function",
                    (unsigned long long)o->sandbox_id);
        return; /* said twice */
    }
    struct box *b = mem_new(sizeof(*b));
    *b = (struct box){.id = o->sandbox_id,
                      .function_id = o->function_id,
                      .version = o->version,
                      .worker = worker,
                      .cpu_milli = o->settings.cpu_milli,
                      .timeout_ms = o->settings.timeout_ms};
    list_push_back(&s->workers[worker].boxes, &b->of_worker);
    map_put(&s->boxes, b->id, b);
    sim_trace(s, "worker %u starts %llx of function %llu version %u", worker,
              (unsigned long long)b->id, (unsigned long long)b->function_id, b->version);
    bool fails = o->settings.is_bad || (s->phase == PHASE_FAULTS && sim_chance(s, 12));
    clock_after(s, sim_between(s, 1, 40), fails ? on_start_failed : on_ready, b->id, b->generation);
}

/* Stops before starts: none in a message may be about a start of the same. */
void worker_frame(struct sim *s, uint32_t worker, const struct frame *f)
{
    for (size_t i = 0; i < f->count; i++) {
        struct box *b = worker_box(s, f->items[i].sandbox_id);
        if (f->items[i].order != ORDER_STOP || b == NULL || b->worker != worker)
            continue;
        if (b->state != BOX_STOPPING)
            stop(s, b);
    }
    for (size_t i = 0; i < f->count; i++)
        if (f->items[i].order == ORDER_START)
            start(s, worker, &f->items[i]);
}

/* ---- trouble ---- */

static void on_worker_up(struct sim *s, const struct event *e)
{
    uint32_t worker = (uint32_t)e->a;
    if (s->workers[worker].is_up)
        return;
    s->workers[worker].is_up = true;
    network_dial_later(s, worker);
}

/* The sandboxes that are ready live on with the launcher. Those that start are killed; of those
 * that were told to end it is only seen that they still live. */
void worker_restart(struct sim *s, uint32_t worker)
{
    if (!s->workers[worker].is_up)
        return;
    sim_trace(s, "the daemon of worker %u restarts", worker);
    network_peer_ends(s, worker);
    s->workers[worker].is_up = false;
    list_for_each(b, &s->workers[worker].boxes, struct box, of_worker)
    {
        if (b->state == BOX_STARTING)
            stop(s, b);
        else if (b->state == BOX_STOPPING && sim_chance(s, 2))
            box_move(s, b, BOX_READY); /* it did not heed the signal: it must be told again */
    }
    clock_after(s, sim_between(s, 1, 1500), on_worker_up, worker, 0);
}

static void boxes_end(struct sim *s, uint32_t worker, enum gone_reason reason)
{
    list_for_each(b, &s->workers[worker].boxes, struct box, of_worker)
    {
        worker_box_end(s, b, reason);
    }
}

void worker_crash(struct sim *s, uint32_t worker, uint64_t away_ms)
{
    if (!s->workers[worker].is_up)
        return;
    sim_trace(s, "worker %u dies with its sandboxes for %llu ms", worker,
              (unsigned long long)away_ms);
    network_break(s, worker); /* nothing more is heard of it */
    network_peer_ends(s, worker);
    s->workers[worker].is_up = false;
    boxes_end(s, worker, GONE_WORKER_LOST);
    clock_after(s, away_ms, on_worker_up, worker, 0);
}

void worker_leave(struct sim *s, uint32_t worker, uint64_t away_ms)
{
    if (!s->workers[worker].is_up || s->links[worker].peer_end == 0)
        return;
    sim_trace(s, "worker %u says goodbye", worker);
    boxes_end(s, worker, GONE_STOPPED);
    (void)network_item(s, worker, TO_CORE, ITEM_GOODBYE);
    network_send_now(s, worker, TO_CORE);
    network_peer_ends(s, worker);
    s->workers[worker].is_up = false;
    clock_after(s, away_ms, on_worker_up, worker, 0);
}
