/* sim.c - the control plane's core with model data planes and workers on a virtual clock: links that break and come back, workers, data planes and control planes that
 * crash and restart, sandboxes that fail, functions that change. After every step the promises are checked; when the faults stop, everything must come to rest.
 *
 *   sim [--seeds N] [--first SEED] [--trace]     prints TAP; a failure prints its seed and how to run it again
 *
 * Links are TCP: what is on the way arrives in order and late, or the connection closes and all of it is lost. */
#include "base/hash.h"
#include "base/rng.h"
#include "control_plane/core.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKERS 3u
#define PLANES 2u
#define FUNCTIONS 4u
#define BOXES_MAX 4096u
#define MESSAGES_MAX 65536u
#define FAULTS_END_MS 60000u
#define REST_MS 400000u
#define REQUEST_TIMEOUT_MS 60000u

enum box_state { BOX_NONE, BOX_STARTING, BOX_READY, BOX_STOPPING };
struct box { /* a sandbox as it really is, on its worker */
    uint64_t id, function, due_ms;
    uint32_t version, worker;
    enum box_state state;
    bool fails;
};
struct known { /* an endpoint as a data plane knows it */
    uint64_t id, function;
    uint32_t in_flight;
    bool draining;
};
struct waiting {
    uint64_t function, since_ms;
};
struct serving {
    uint64_t sandbox, function, end_ms;
};
struct plane {
    bool up, linked;
    struct known known[BOXES_MAX / 8];
    size_t known_count;
    struct waiting waiting[2000];
    size_t waiting_count;
    struct serving serving[2000];
    size_t serving_count;
};
enum message_kind { M_TO_WORKER_START, M_TO_WORKER_STOP, M_TO_PLANE, M_FROM_WORKER, M_DRAINED, M_DEMAND, M_ENDPOINT_FAILED };
struct message {
    enum message_kind kind;
    uint64_t due_ms, order, link; /* `link`: generation of the connection it travels on */
    uint32_t peer;
    uint64_t id, function;
    uint32_t version;
    enum order_kind what;
    enum sandbox_state state;
    enum gone_reason reason;
    uint32_t in_flight, waiting;
};
struct sim {
    struct rng rng;
    struct control *core;
    struct control_orders orders;
    uint64_t now_ms, epoch, order, link[WORKERS + PLANES], core_tick_ms, last_due_ms[WORKERS + PLANES][2];
    bool worker_up[WORKERS], worker_linked[WORKERS], core_up, faults, trace;
    struct plane planes[PLANES];
    struct box boxes[BOXES_MAX];
    struct message messages[MESSAGES_MAX];
    size_t message_count;
    struct {
        bool exists;
        uint32_t version, active, min, max;
    } functions[FUNCTIONS + 1];
    uint64_t arrived, answered, failed_requests;
    char failure[300];
};

#define FAIL(s, ...)                                                                                                                                    \
    do {                                                                                                                                               \
        if ((s)->failure[0] == '\0')                                                                                                                   \
            snprintf((s)->failure, sizeof((s)->failure), __VA_ARGS__);                                                                                  \
    } while (0)
#define TRACE(s, ...)                                                                                                                                   \
    do {                                                                                                                                               \
        if ((s)->trace) {                                                                                                                              \
            printf("# [%llu] ", (unsigned long long)(s)->now_ms);                                                                                       \
            printf(__VA_ARGS__);                                                                                                                       \
            printf("\n");                                                                                                                              \
        }                                                                                                                                              \
    } while (0)

static void orders_take(struct sim *s);

static void core_event(struct sim *s, const struct control_event *e)
{
    if (!s->core_up)
        return;
    s->orders.count = 0;
    control_step(s->core, e, s->now_ms, &s->orders);
    orders_take(s);
}

/* ---- messages: in order for each link and direction ---- */

static void send_message(struct sim *s, struct message m, uint32_t link, int direction)
{
    uint64_t due = s->now_ms + 1 + rng_below(&s->rng, s->faults && rng_below(&s->rng, 10) == 0 ? 300 : 3);
    due = MAX(due, s->last_due_ms[link][direction]);
    s->last_due_ms[link][direction] = due;
    m.due_ms = due;
    m.order = ++s->order;
    m.peer = link;
    m.link = s->link[link];
    if (s->message_count < MESSAGES_MAX)
        s->messages[s->message_count++] = m;
    else
        FAIL(s, "more than %u messages are on the way", MESSAGES_MAX);
}

static struct box *box_find(struct sim *s, uint64_t id)
{
    for (size_t i = 0; i < BOXES_MAX; i++)
        if (s->boxes[i].state != BOX_NONE && s->boxes[i].id == id)
            return &s->boxes[i];
    return NULL;
}

static struct known *known_find(struct plane *p, uint64_t id)
{
    for (size_t i = 0; i < p->known_count; i++)
        if (p->known[i].id == id)
            return &p->known[i];
    return NULL;
}

/* ---- data planes ---- */

static void demand_send(struct sim *s, uint32_t plane, uint64_t function)
{
    struct plane *p = &s->planes[plane];
    struct message m = {.kind = M_DEMAND, .function = function};
    for (size_t i = 0; i < p->waiting_count; i++)
        m.waiting += p->waiting[i].function == function;
    for (size_t i = 0; i < p->serving_count; i++)
        m.in_flight += p->serving[i].function == function;
    if (p->linked)
        send_message(s, m, WORKERS + plane, 0);
}

static void drained_check(struct sim *s, uint32_t plane, struct known *k)
{
    if (k->draining && k->in_flight == 0 && s->planes[plane].linked)
        send_message(s, (struct message){.kind = M_DRAINED, .id = k->id}, WORKERS + plane, 0);
}

static void dispatch(struct sim *s, uint32_t plane)
{
    struct plane *p = &s->planes[plane];
    for (size_t w = 0; w < p->waiting_count;) {
        struct known *free_one = NULL;
        for (size_t i = 0; i < p->known_count && free_one == NULL; i++)
            if (p->known[i].function == p->waiting[w].function && !p->known[i].draining && p->known[i].in_flight == 0)
                free_one = &p->known[i];
        if (free_one == NULL || p->serving_count == ARRAY_COUNT(p->serving)) {
            w++;
            continue;
        }
        struct box *b = box_find(s, free_one->id);
        uint64_t function = p->waiting[w].function;
        memmove(&p->waiting[w], &p->waiting[w + 1], (--p->waiting_count - w) * sizeof(p->waiting[0]));
        if (b == NULL || b->state == BOX_STARTING) { /* it is gone, and that is not known here yet: the connect fails */
            free_one->draining = true;
            p->waiting[p->waiting_count++] = (struct waiting){function, s->now_ms};
            if (p->linked)
                send_message(s, (struct message){.kind = M_ENDPOINT_FAILED, .id = free_one->id}, WORKERS + plane, 0);
            continue;
        }
        if (b->function != function)
            FAIL(s, "sandbox %llx of function %llu got a request of %llu", (unsigned long long)b->id, (unsigned long long)b->function, (unsigned long long)function);
        free_one->in_flight++;
        if (free_one->in_flight > 1)
            FAIL(s, "sandbox %llx has %u requests at once", (unsigned long long)b->id, free_one->in_flight);
        p->serving[p->serving_count++] = (struct serving){b->id, function, s->now_ms + 1 + rng_below(&s->rng, 200)};
    }
}

static void known_remove(struct sim *s, uint32_t plane, uint64_t id)
{
    struct plane *p = &s->planes[plane];
    struct known *k = known_find(p, id);
    if (k == NULL)
        return;
    for (size_t i = 0; i < p->serving_count;)
        if (p->serving[i].sandbox == id) { /* broken: an error to the client */
            s->failed_requests++;
            s->answered++;
            p->serving[i] = p->serving[--p->serving_count];
        } else {
            i++;
        }
    *k = p->known[--p->known_count];
}

static void plane_order(struct sim *s, uint32_t plane, const struct message *m)
{
    struct plane *p = &s->planes[plane];
    struct known *k = known_find(p, m->id);
    switch (m->what) {
    case ORDER_SNAPSHOT_BEGIN: /* what it does not name is forgotten; endpoints that follow come back */
        for (size_t i = 0; i < p->known_count; i++)
            p->known[i].draining = true;
        break;
    case ORDER_ENDPOINT:
        if (k == NULL && p->known_count < ARRAY_COUNT(p->known))
            p->known[p->known_count++] = (struct known){.id = m->id, .function = m->function};
        else if (k != NULL)
            k->draining = false;
        break;
    case ORDER_DRAIN:
        if (k == NULL) {
            send_message(s, (struct message){.kind = M_DRAINED, .id = m->id}, WORKERS + plane, 0);
        } else {
            k->draining = true;
            drained_check(s, plane, k);
        }
        break;
    case ORDER_ENDPOINT_GONE:
        known_remove(s, plane, m->id);
        break;
    case ORDER_FAIL_WAITING:
    case ORDER_UNROUTE:
        for (size_t i = 0; i < p->waiting_count;)
            if (p->waiting[i].function == m->function) {
                s->failed_requests++;
                s->answered++;
                memmove(&p->waiting[i], &p->waiting[i + 1], (--p->waiting_count - i) * sizeof(p->waiting[0]));
            } else {
                i++;
            }
        demand_send(s, plane, m->function);
        break;
    case ORDER_START:
    case ORDER_STOP:
    case ORDER_DROP_VERSION:
    case ORDER_ROUTE:
    case ORDER_SNAPSHOT_END:
    case ORDER_WANT_DEMAND:
    case ORDER_VERSION_ACTIVE:
    case ORDER_VERSION_FAILED:
    case ORDER_FUNCTION_GONE:
        break;
    }
    dispatch(s, plane);
}

static void request_arrive(struct sim *s)
{
    uint32_t plane = (uint32_t)rng_below(&s->rng, PLANES);
    struct plane *p = &s->planes[plane];
    uint64_t function = 1 + rng_below(&s->rng, FUNCTIONS);
    if (!p->up || !s->functions[function].exists || p->waiting_count > 1000)
        return;
    s->arrived++;
    p->waiting[p->waiting_count++] = (struct waiting){function, s->now_ms};
    dispatch(s, plane);
    demand_send(s, plane, function);
}

/* ---- workers ---- */

static void worker_tell(struct sim *s, uint32_t worker, const struct box *b, enum sandbox_state state, enum gone_reason reason)
{
    if (s->worker_linked[worker])
        send_message(s, (struct message){.kind = M_FROM_WORKER, .id = b->id, .function = b->function, .version = b->version, .state = state, .reason = reason}, worker, 0);
}

static void box_end(struct sim *s, struct box *b, enum gone_reason reason)
{
    TRACE(s, "sandbox %llx ends, reason %d", (unsigned long long)b->id, reason);
    worker_tell(s, b->worker, b, SANDBOX_GONE, reason);
    b->state = BOX_NONE;
    for (uint32_t i = 0; i < PLANES; i++)
        for (size_t k = 0; k < s->planes[i].serving_count;)
            if (s->planes[i].serving[k].sandbox == b->id) {
                struct known *known = known_find(&s->planes[i], b->id);
                if (known != NULL)
                    known->in_flight--;
                s->failed_requests++;
                s->answered++;
                s->planes[i].serving[k] = s->planes[i].serving[--s->planes[i].serving_count];
            } else {
                k++;
            }
}

static void worker_order(struct sim *s, uint32_t worker, const struct message *m)
{
    struct box *b = box_find(s, m->id);
    if (m->kind == M_TO_WORKER_STOP) {
        if (b != NULL && b->worker == worker && b->state != BOX_STOPPING) {
            b->state = BOX_STOPPING;
            b->due_ms = s->now_ms + 1 + rng_below(&s->rng, 50);
        }
        return;
    }
    if (b != NULL)
        return;
    for (size_t i = 0; i < BOXES_MAX; i++) {
        if (s->boxes[i].state != BOX_NONE)
            continue;
        s->boxes[i] = (struct box){.id = m->id, .function = m->function, .version = m->version, .worker = worker, .state = BOX_STARTING,
                                   .due_ms = s->now_ms + 1 + rng_below(&s->rng, 40), .fails = s->faults && rng_below(&s->rng, 10) == 0};
        TRACE(s, "worker %u starts %llx of function %llu", worker, (unsigned long long)m->id, (unsigned long long)m->function);
        return;
    }
    FAIL(s, "more than %u sandboxes", BOXES_MAX);
}

/* ---- the control plane's shell ---- */

static void orders_take(struct sim *s)
{
    for (size_t i = 0; i < s->orders.count; i++) {
        const struct control_order *o = &s->orders.items[i];
        struct message m = {.id = o->sandbox_id, .function = o->function_id, .version = o->version, .what = o->kind};
        if (o->kind == ORDER_VERSION_ACTIVE)
            s->functions[o->function_id].active = o->version; /* stored at once */
        if (o->kind == ORDER_START || o->kind == ORDER_STOP) {
            uint32_t worker = (uint32_t)o->target_id - 1;
            m.kind = o->kind == ORDER_START ? M_TO_WORKER_START : M_TO_WORKER_STOP;
            if (s->worker_linked[worker])
                send_message(s, m, worker, 1);
            continue;
        }
        bool for_planes = o->kind == ORDER_ENDPOINT || o->kind == ORDER_DRAIN || o->kind == ORDER_ENDPOINT_GONE || o->kind == ORDER_SNAPSHOT_BEGIN ||
                          o->kind == ORDER_FAIL_WAITING || o->kind == ORDER_UNROUTE;
        m.kind = M_TO_PLANE;
        for (uint32_t p = 0; p < PLANES && for_planes; p++)
            if (s->planes[p].linked && (o->target_id == ALL_DATA_PLANES || o->target_id == p + 1))
                send_message(s, m, WORKERS + p, 1);
    }
}

static void function_tell(struct sim *s, uint64_t id, bool probe, bool loading)
{
    struct function_spec spec;
    struct control_event e = {.kind = EVENT_FUNCTION_PUT};
    function_spec_init(&spec);
    snprintf(spec.name, sizeof(spec.name), "f%llu", (unsigned long long)id);
    spec.scaling.scale_min = s->functions[id].min;
    spec.scaling.scale_max = s->functions[id].max;
    spec.scaling.stable_window_ms = 4000;
    spec.scaling.panic_window_ms = 1000;
    spec.scaling.period_ms = 500;
    spec.timeout_ms = REQUEST_TIMEOUT_MS;
    e.function_put.function_id = id;
    e.function_put.version = s->functions[id].version;
    e.function_put.active_version = loading ? s->functions[id].active : 0;
    e.function_put.probe = probe;
    e.function_put.spec = &spec;
    if (!probe && !loading)
        s->functions[id].active = s->functions[id].version;
    core_event(s, &e);
    function_spec_done(&spec);
}

static void link_close(struct sim *s, uint32_t link)
{
    bool *linked = link < WORKERS ? &s->worker_linked[link] : &s->planes[link - WORKERS].linked;
    if (!*linked)
        return;
    *linked = false;
    s->link[link]++; /* what is on the way is lost */
    s->last_due_ms[link][0] = s->last_due_ms[link][1] = 0;
    struct control_event e = {.kind = link < WORKERS ? EVENT_WORKER_CLOSED : EVENT_DATA_PLANE_CLOSED};
    if (link < WORKERS)
        e.worker.worker_id = link + 1;
    else
        e.data_plane.data_plane_id = link - WORKERS + 1;
    core_event(s, &e);
}

static void link_open(struct sim *s, uint32_t link)
{
    static struct sandbox_report reports[BOXES_MAX];
    size_t count = 0;
    if (!s->core_up)
        return;
    if (link >= WORKERS) {
        struct plane *p = &s->planes[link - WORKERS];
        if (!p->up || p->linked)
            return;
        p->linked = true;
        struct control_event e = {.kind = EVENT_DATA_PLANE_UP};
        e.data_plane.data_plane_id = link - WORKERS + 1;
        core_event(s, &e);
        for (uint64_t f = 1; f <= FUNCTIONS; f++)
            demand_send(s, link - WORKERS, f);
        return;
    }
    if (!s->worker_up[link] || s->worker_linked[link])
        return;
    s->worker_linked[link] = true;
    for (size_t i = 0; i < BOXES_MAX; i++) {
        const struct box *b = &s->boxes[i];
        if (b->state == BOX_NONE || b->worker != link)
            continue;
        reports[count++] = (struct sandbox_report){.sandbox_id = b->id, .function_id = b->function, .version = b->version,
                                                   .state = b->state == BOX_STARTING ? SANDBOX_STARTING : b->state == BOX_READY ? SANDBOX_READY : SANDBOX_STOPPING};
    }
    struct control_event e = {.kind = EVENT_WORKER_UP};
    e.worker.worker_id = link + 1;
    e.worker.name = "w";
    e.worker.cpu_milli = 10000;
    e.worker.memory_bytes = 16 * GIB;
    e.worker.slots = 30;
    e.worker.sandboxes = reports;
    e.worker.sandbox_count = count;
    core_event(s, &e);
}

static void core_stop(struct sim *s)
{
    for (uint32_t i = 0; i < WORKERS + PLANES; i++)
        link_close(s, i);
    control_free(s->core);
    s->core = NULL;
    s->core_up = false;
}

static void core_start(struct sim *s)
{
    struct control_options options = {.seed = s->now_ms, .epoch = ++s->epoch, .peer_dead_after_ms = 2000, .reconnect_grace_ms = 2000, .reconstruction_ms = 3000};
    s->core = control_new(&options);
    s->core_up = true;
    for (uint64_t f = 1; f <= FUNCTIONS; f++)
        if (s->functions[f].exists)
            function_tell(s, f, false, true);
    for (uint32_t w = 0; w < WORKERS; w++) {
        struct control_event e = {.kind = EVENT_WORKER_KNOWN};
        e.worker.worker_id = w + 1;
        e.worker.name = "w";
        core_event(s, &e);
    }
}

/* ---- faults ---- */

static void fault(struct sim *s)
{
    uint32_t which = (uint32_t)rng_below(&s->rng, WORKERS + PLANES);
    switch (rng_below(&s->rng, 7)) {
    case 0:
        link_close(s, which);
        break;
    case 1: /* a host dies with all on it */
        if (which < WORKERS && s->worker_up[which]) {
            link_close(s, which);
            s->worker_up[which] = false;
            for (size_t i = 0; i < BOXES_MAX; i++)
                if (s->boxes[i].state != BOX_NONE && s->boxes[i].worker == which)
                    box_end(s, &s->boxes[i], GONE_WORKER_LOST);
        }
        break;
    case 2: /* a data plane dies with its clients */
        if (which >= WORKERS && s->planes[which - WORKERS].up) {
            struct plane *p = &s->planes[which - WORKERS];
            link_close(s, which);
            s->answered += p->waiting_count + p->serving_count;
            s->failed_requests += p->waiting_count + p->serving_count;
            memset(p, 0, sizeof(*p));
        }
        break;
    case 3:
        if (s->core_up && rng_below(&s->rng, 4) == 0)
            core_stop(s);
        break;
    case 4: { /* a program crashes */
        struct box *b = &s->boxes[rng_below(&s->rng, BOXES_MAX)];
        if (b->state == BOX_READY)
            box_end(s, b, GONE_EXITED);
        break;
    }
    default: { /* registrations change */
        uint64_t f = 1 + rng_below(&s->rng, FUNCTIONS);
        if (!s->core_up)
            break;
        if (s->functions[f].exists && rng_below(&s->rng, 6) == 0) {
            struct control_event e = {.kind = EVENT_FUNCTION_DELETE};
            e.function_delete.function_id = f;
            s->functions[f].exists = false;
            core_event(s, &e);
        } else if (s->functions[f].exists) {
            s->functions[f].version += (uint32_t)rng_below(&s->rng, 2);
            s->functions[f].min = (uint32_t)rng_below(&s->rng, 3);
            s->functions[f].max = s->functions[f].min + 1 + (uint32_t)rng_below(&s->rng, 6);
            function_tell(s, f, rng_below(&s->rng, 2) == 0, false);
        }
        break;
    }
    }
}

static void mend(struct sim *s)
{
    if (!s->core_up)
        core_start(s);
    for (uint32_t i = 0; i < WORKERS; i++)
        s->worker_up[i] = true;
    for (uint32_t i = 0; i < PLANES; i++)
        s->planes[i].up = true;
    for (uint32_t i = 0; i < WORKERS + PLANES; i++)
        link_open(s, i);
}

/* ---- time ---- */

static void deliver(struct sim *s, const struct message *m)
{
    struct control_event e = {.kind = EVENT_SANDBOX};
    if (m->link != s->link[m->peer])
        return;
    switch (m->kind) {
    case M_TO_WORKER_START:
    case M_TO_WORKER_STOP:
        worker_order(s, m->peer, m);
        return;
    case M_TO_PLANE:
        plane_order(s, m->peer - WORKERS, m);
        return;
    case M_FROM_WORKER:
        e.sandbox.worker_id = m->peer + 1;
        e.sandbox.report = (struct sandbox_report){.sandbox_id = m->id, .function_id = m->function, .version = m->version, .state = m->state, .reason = m->reason};
        break;
    case M_DRAINED:
    case M_ENDPOINT_FAILED:
        e.kind = m->kind == M_DRAINED ? EVENT_DRAINED : EVENT_ENDPOINT_FAILED;
        e.endpoint.data_plane_id = m->peer - WORKERS + 1;
        e.endpoint.sandbox_id = m->id;
        break;
    case M_DEMAND:
        e.kind = EVENT_DEMAND;
        e.demand.data_plane_id = m->peer - WORKERS + 1;
        e.demand.function_id = m->function;
        e.demand.in_flight = m->in_flight;
        e.demand.waiting = m->waiting;
        e.demand.in_flight_average = m->in_flight;
        break;
    }
    core_event(s, &e);
}

static int compare_messages(const void *a, const void *b)
{
    const struct message *x = a, *y = b;
    return x->due_ms != y->due_ms ? (x->due_ms < y->due_ms ? -1 : 1) : x->order < y->order ? -1 : 1;
}

static void messages_deliver(struct sim *s)
{
    static struct message due[MESSAGES_MAX];
    size_t count = 0, kept = 0;
    for (size_t i = 0; i < s->message_count; i++)
        if (s->messages[i].due_ms <= s->now_ms)
            due[count++] = s->messages[i];
        else
            s->messages[kept++] = s->messages[i];
    s->message_count = kept;
    qsort(due, count, sizeof(due[0]), compare_messages);
    for (size_t i = 0; i < count; i++)
        deliver(s, &due[i]);
}

static void world_move(struct sim *s)
{
    for (size_t i = 0; i < BOXES_MAX; i++) {
        struct box *b = &s->boxes[i];
        if (b->state == BOX_NONE || b->due_ms > s->now_ms)
            continue;
        if (b->state == BOX_STARTING && b->fails) {
            box_end(s, b, GONE_EXITED);
        } else if (b->state == BOX_STARTING) {
            b->state = BOX_READY;
            b->due_ms = UINT64_MAX;
            worker_tell(s, b->worker, b, SANDBOX_READY, GONE_UNKNOWN);
        } else if (b->state == BOX_STOPPING) {
            box_end(s, b, GONE_STOPPED);
        }
    }
    for (uint32_t p = 0; p < PLANES; p++) {
        struct plane *plane = &s->planes[p];
        for (size_t i = 0; i < plane->serving_count;) {
            struct serving done = plane->serving[i];
            if (done.end_ms > s->now_ms) {
                i++;
                continue;
            }
            plane->serving[i] = plane->serving[--plane->serving_count];
            s->answered++;
            struct known *k = known_find(plane, done.sandbox);
            if (k != NULL) {
                k->in_flight--;
                drained_check(s, p, k);
            }
            dispatch(s, p);
            demand_send(s, p, done.function);
        }
        for (size_t i = 0; i < plane->waiting_count;)
            if (s->now_ms - plane->waiting[i].since_ms > REQUEST_TIMEOUT_MS) {
                if (!s->faults && s->now_ms > FAULTS_END_MS + 2 * REQUEST_TIMEOUT_MS)
                    FAIL(s, "a request of function %llu was forgotten", (unsigned long long)plane->waiting[i].function);
                s->answered++;
                s->failed_requests++;
                memmove(&plane->waiting[i], &plane->waiting[i + 1], (--plane->waiting_count - i) * sizeof(plane->waiting[0]));
            } else {
                i++;
            }
        if (s->now_ms % 500 == 0)
            for (uint64_t f = 1; f <= FUNCTIONS; f++)
                demand_send(s, p, f);
    }
}

static void check_always(struct sim *s)
{
    uint32_t slots[WORKERS] = {0};
    for (size_t i = 0; i < BOXES_MAX; i++)
        if (s->boxes[i].state != BOX_NONE)
            slots[s->boxes[i].worker]++;
    if (!s->core_up)
        return;
    size_t cursor = 0;
    struct worker_view w;
    while (control_worker_next(s->core, &cursor, &w))
        if (w.cpu_reserved_milli > w.cpu_milli || w.memory_reserved_bytes > w.memory_bytes || w.sandboxes > w.slots)
            FAIL(s, "worker %llu is reserved beyond its capacity", (unsigned long long)w.worker_id);
    cursor = 0;
    struct function_view f;
    while (control_function_next(s->core, &cursor, &f))
        if (f.starting + f.ready > f.spec->scaling.scale_max + 1 + (s->epoch > 1 || s->faults ? 60 : 0))
            FAIL(s, "function %llu has %u sandboxes, its maximum is %u", (unsigned long long)f.function_id, f.starting + f.ready, f.spec->scaling.scale_max);
}

/* When all is quiet: every function at its minimum, no sandbox that nobody knows, nobody waiting. */
static void check_rest(struct sim *s)
{
    uint32_t live[FUNCTIONS + 1] = {0};
    struct sandbox_view v;
    for (size_t i = 0; i < BOXES_MAX; i++) {
        if (s->boxes[i].state == BOX_NONE)
            continue;
        if (!control_sandbox(s->core, s->boxes[i].id, &v))
            FAIL(s, "sandbox %llx lives and has no record", (unsigned long long)s->boxes[i].id);
        live[s->boxes[i].function]++;
    }
    size_t cursor = 0;
    while (control_sandbox_next(s->core, &cursor, &v))
        if (box_find(s, v.sandbox_id) == NULL)
            FAIL(s, "sandbox %llx has a record and does not live", (unsigned long long)v.sandbox_id);
    for (uint64_t f = 1; f <= FUNCTIONS; f++) {
        uint32_t min = s->functions[f].exists ? s->functions[f].min : 0;
        if (live[f] != min)
            FAIL(s, "function %llu rests with %u sandboxes, its minimum is %u", (unsigned long long)f, live[f], min);
    }
    for (uint32_t p = 0; p < PLANES; p++)
        if (s->planes[p].waiting_count + s->planes[p].serving_count > 0)
            FAIL(s, "data plane %u still has requests", p);
    if (s->arrived != s->answered)
        FAIL(s, "%llu requests arrived, %llu were answered", (unsigned long long)s->arrived, (unsigned long long)s->answered);
}

static void run(struct sim *s, uint64_t seed)
{
    rng_init(&s->rng, seed);
    s->faults = true;
    for (uint64_t f = 1; f <= FUNCTIONS; f++) {
        s->functions[f].exists = true;
        s->functions[f].version = s->functions[f].active = 1;
        s->functions[f].min = (uint32_t)rng_below(&s->rng, 2);
        s->functions[f].max = 1 + s->functions[f].min + (uint32_t)rng_below(&s->rng, 5);
    }
    mend(s);
    uint64_t step_ms = 10;
    for (s->now_ms = step_ms; s->now_ms < FAULTS_END_MS + REST_MS && s->failure[0] == '\0'; s->now_ms += step_ms) {
        bool calls = s->now_ms < FAULTS_END_MS + 20000;
        if (s->faults && s->now_ms >= FAULTS_END_MS)
            s->faults = false;
        if (s->faults && rng_below(&s->rng, 60) == 0)
            fault(s);
        if (rng_below(&s->rng, 40) == 0)
            mend(s);
        if (calls && rng_below(&s->rng, 8) == 0)
            request_arrive(s);
        messages_deliver(s);
        world_move(s);
        struct control_event tick = {.kind = EVENT_TICK};
        if (s->core_up && control_next_due_ms(s->core) <= s->now_ms)
            core_event(s, &tick);
        check_always(s);
        /* Once nothing happens any more, time may run. */
        if (!calls && s->message_count == 0)
            step_ms = 100;
        if (!s->faults && s->now_ms > FAULTS_END_MS + 200000)
            break;
    }
    if (s->failure[0] == '\0')
        check_rest(s);
    control_free(s->core);
    control_orders_done(&s->orders);
}

int main(int argc, char **argv)
{
    uint64_t seeds = 2000, first = 1;
    bool trace = false;
    unsigned failed = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc)
            seeds = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--first") == 0 && i + 1 < argc)
            first = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--trace") == 0)
            trace = true;
    }
    struct sim *s = mem_new(sizeof(*s));
    for (uint64_t seed = first; seed < first + seeds && failed < 5; seed++) {
        memset(s, 0, sizeof(*s));
        s->trace = trace;
        run(s, seed);
        if (s->failure[0] == '\0')
            continue;
        failed++;
        printf("# at %llu ms: %s\n# seed %llu: run again with --first %llu --seeds 1 --trace\n", (unsigned long long)s->now_ms, s->failure, (unsigned long long)seed,
               (unsigned long long)seed);
    }
    free(s);
    printf("%s 1 - %llu seeds\n1..1\n", failed > 0 ? "not ok" : "ok", (unsigned long long)seeds);
    return failed > 0;
}
