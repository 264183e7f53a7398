/* check.c - what the cluster promises: after every event, and once all is quiet. Each check looks
 * at the world itself (sandboxes, requests), not at what the code under test thinks of it. */
#include "sim.h"

/* After the last peer came or went, the core's numbers are its own again. */
#define QUIET_MS 500u
#define LATE_MS 10u /* a timer may be so late */

static unsigned long long hex(uint64_t id)
{
    return (unsigned long long)id;
}

/* ---- slots ---- */

static const struct request *older_waiting(const struct sim *s, const struct request *r)
{
    list_for_each(other, &r->route->requests, struct request, of_route)
    {
        if (other->waiter.state == DISPATCH_QUEUED && s->now_ms < other->deadline_ms &&
            other->waiter.arrived_ns < r->waiter.arrived_ns)
            return other;
    }
    return NULL;
}

void check_slot_taken(struct sim *s, const struct request *r)
{
    const struct slots *slots = r->endpoint->user;
    uint32_t concurrency = r->route->settings.concurrency;
    uint64_t id = r->endpoint->sandbox_id;
    const struct request *other = older_waiting(s, r);
    FAIL_UNLESS(s, concurrency == 0 || slots->held <= concurrency,
                "sandbox %llx has %u requests at once, its concurrency is %u", hex(id), slots->held,
                concurrency);
    FAIL_UNLESS(s, slots->held <= slots->limit,
                "sandbox %llx has %u requests at once at data plane %u, which has %u slots",
                hex(id), slots->held, r->route->plane, slots->limit);
    FAIL_UNLESS(s, !slots->is_draining, "draining sandbox %llx gets a new request", hex(id));
    FAIL_UNLESS(s, !slots->is_removed, "removed sandbox %llx gets a new request", hex(id));
    FAIL_UNLESS(s, !slots->is_ejected, "sandbox %llx gets a new request after it refused one",
                hex(id));
    FAIL_UNLESS(s, other == NULL, "request %llu overtakes request %llu, which has waited longer",
                (unsigned long long)r->id, (unsigned long long)other->id);
}

static uint32_t limit_of(const struct sim *s, const struct box *b)
{
    const struct function *f = &s->functions[b->function_id];
    uint32_t limit = f->concurrency == 0 ? UINT32_MAX : f->concurrency;
    return s->now_ms < f->loose_until_ms ? MAX(limit, f->loosest) : limit;
}

/* Over all data planes, but for those that were declared dead and may not have heard of it. */
static void check_limit(struct sim *s, struct box *b)
{
    uint32_t sum = 0;
    for (uint32_t plane = 0; plane < PLANES; plane++) {
        if (b->requests[plane] == 0 && map_get(&s->planes[plane].endpoints, b->id) == NULL)
            b->estranged &= ~(1u << plane);
        sum += b->estranged & 1u << plane ? 0 : b->requests[plane];
    }
    FAIL_UNLESS(s, sum <= limit_of(s, b),
                "sandbox %llx has %u requests at once from all data planes, its concurrency is %u",
                hex(b->id), sum, limit_of(s, b));
}

/* Each request that a sandbox has from a data plane holds one of its slots there. */
void check_connected(struct sim *s, const struct request *r, struct box *b)
{
    const struct slots *slots = r->endpoint->user;
    uint32_t requests = b->requests[r->route->plane];
    FAIL_UNLESS(s, b->function_id == r->route->id,
                "sandbox %llx of function %llu gets a request of function %llu", hex(b->id),
                (unsigned long long)b->function_id, (unsigned long long)r->route->id);
    FAIL_UNLESS(s, requests <= slots->held,
                "sandbox %llx serves %u requests of data plane %u, which hold %u slots", hex(b->id),
                requests, r->route->plane, slots->held);
    check_limit(s, b);
}

void check_refused(struct sim *s, const struct request *r)
{
    uint32_t waiting = dispatch_waiting(r->route->dispatch);
    FAIL_UNLESS(s, waiting >= r->route->settings.queue_max,
                "request %llu is refused, and only %u wait", (unsigned long long)r->id, waiting);
}

void check_answer(struct sim *s, const struct request *r, enum answer answer)
{
    if (answer == ANSWER_TIMEOUT)
        FAIL_UNLESS(s, s->now_ms >= r->deadline_ms, "request %llu is timed out too early",
                    (unsigned long long)r->id);
    if (answer == ANSWER_FAILED_WAITING)
        FAIL_UNLESS(s, r->failed_with_cause, "request %llu fails without a cause",
                    (unsigned long long)r->id);
    bool is_fine = answer == ANSWER_OK || (s->is_tight && answer == ANSWER_FAILED_WAITING);
    if (s->phase >= PHASE_CALLS && r->arrived_ms >= CALLS_BEGIN_MS)
        FAIL_UNLESS(s, is_fine,
                    "request %llu of function %llu at data plane %u is answered with error %d, and "
                    "all has been well for %llu s",
                    (unsigned long long)r->id, (unsigned long long)r->route->id, r->route->plane,
                    (int)answer, (unsigned long long)(s->now_ms - FAULTS_END_MS) / 1000);
}

static bool has_room(const struct route *r, const struct slots *slots)
{
    return !slots->is_draining && !slots->is_ejected && !slots->is_removed &&
           slots->held < slots->limit &&
           (r->settings.concurrency == 0 || slots->held < r->settings.concurrency);
}

static const struct request *waiting_of(const struct sim *s, const struct route *r)
{
    list_for_each(request, &r->requests, struct request, of_route)
    {
        if (request->waiter.state == DISPATCH_QUEUED && s->now_ms < request->deadline_ms)
            return request;
    }
    return NULL;
}

/* ---- a slot is idle elsewhere ---- */

/* Longer than it takes to ask, to give back, to grant, and the time that a slot stays. */
#define HELPLESS_MS 60u
#define HELPLESS_LATE_MS 1000u  /* while frames may be late */
#define HELPLESS_UNTOLD_MS 500u /* a data plane's next report, where nothing is urgent */

static bool is_well(const struct sim *s)
{
    bool is_well = s->core != NULL && s->now_ms >= s->core_started_ms + RECONSTRUCTION_MS;
    for (uint32_t peer = WORKERS; peer < PEERS; peer++) {
        const struct link *l = &s->links[peer];
        is_well &= l->core_end != 0 && l->core_end == l->peer_end && l->core_end > l->broken &&
                   s->now_ms > l->stalled_until_ms && s->planes[peer - WORKERS].has_welcome;
    }
    return is_well;
}

/* Of a sandbox that serves, and that the core has not yet heard to be otherwise. */
static bool has_idle(const struct sim *s, const struct plane *p, uint64_t function_id)
{
    size_t cursor = 0;
    struct sandbox_view v;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;) {
        const struct dispatch_endpoint *d = dispatch_endpoint_find(e->route->dispatch, e->id);
        if (e->route->id == function_id && d != NULL && has_room(e->route, d->user) &&
            control_sandbox(s->core, e->id, &v) && v.state == SANDBOX_READY)
            return true;
    }
    return false;
}

/* It has slots of a sandbox that refused it: that is another trouble. Or, since the concurrency was
 * lowered, it is to end what it has in one that serves: what begins there again, when the
 * concurrency has been raised meanwhile, begins after that. */
static bool has_hindrance(const struct sim *s, const struct route *r)
{
    size_t cursor = 0;
    struct sandbox_view v;
    for (struct endpoint *e; (e = map_next(&s->planes[r->plane].endpoints, &cursor)) != NULL;) {
        bool serves = control_sandbox(s->core, e->id, &v) && v.state == SANDBOX_READY;
        if (e->route == r && (e->user->is_draining ? serves : e->user->is_ejected))
            return true;
    }
    return false;
}

static void check_helpless(struct sim *s, struct route *r)
{
    bool is_idle_elsewhere = false;
    if (waiting_of(s, r) != NULL && is_well(s) && !has_hindrance(s, r))
        for (uint32_t other = 0; other < PLANES; other++)
            is_idle_elsewhere |= other != r->plane && has_idle(s, &s->planes[other], r->id);
    if (!is_idle_elsewhere)
        r->helpless_ms = 0;
    else if (r->helpless_ms == 0)
        r->helpless_ms = s->now_ms;
    bool is_late = s->now_ms < FAULTS_END_MS + HELPLESS_LATE_MS;
    uint64_t patience = is_late ? HELPLESS_LATE_MS : HELPLESS_MS;
    uint64_t gave_up_ms = s->functions[r->id].gave_up_ms;
    if (gave_up_ms > 0 && s->now_ms < gave_up_ms + HELPLESS_UNTOLD_MS)
        patience += HELPLESS_UNTOLD_MS;
    FAIL_UNLESS(s, !is_idle_elsewhere || s->now_ms < r->helpless_ms + patience,
                "a request waits for function %llu at data plane %u since %llu ms, and a slot is "
                "idle elsewhere",
                (unsigned long long)r->id, r->plane, (unsigned long long)r->helpless_ms);
}

static void check_all_helpless(struct sim *s)
{
    for (uint32_t plane = 0; plane < PLANES; plane++) {
        size_t cursor = 0;
        for (struct route *r; (r = map_next(&s->planes[plane].routes, &cursor)) != NULL;)
            check_helpless(s, r);
    }
}

void check_plane(struct sim *s, uint32_t plane)
{
    const struct plane *p = &s->planes[plane];
    size_t cursor = 0;
    for (const struct route *r; (r = map_next(&p->removed, &cursor)) != NULL;)
        FAIL_UNLESS(s, waiting_of(s, r) == NULL, "a request waits for function %llu, which is gone",
                    (unsigned long long)r->id);
    cursor = 0;
    for (struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;) {
        const struct request *r = waiting_of(s, e->route);
        if (r == NULL)
            continue;
        const struct dispatch_endpoint *d = dispatch_endpoint_find(e->route->dispatch, e->id);
        FAIL_UNLESS(s, d != NULL, "data plane %u has lost sandbox %llx", plane, hex(e->id));
        if (d != NULL)
            FAIL_UNLESS(s, !has_room(e->route, d->user),
                        "request %llu waits at data plane %u, and sandbox %llx has room",
                        (unsigned long long)r->id, plane, hex(e->id));
    }
}

/* ---- orders ---- */

/* The core cannot know what a data plane has in flight that has been silent or away for so long. */
static_assert(PLANE_GRACE_MS <= RECONNECT_GRACE_MS, "which the core takes, if it is less");
static bool is_dead(const struct sim *s, uint32_t peer)
{
    const struct link *l = &s->links[peer];
    if (l->core_end != 0)
        return false;
    return l->core_lost_ms < s->core_started_ms /* it has not come back to this one */
               ? s->now_ms >= s->core_started_ms + RECONSTRUCTION_MS
               : s->now_ms >= l->core_lost_ms + PLANE_GRACE_MS ||
                     l->core_lost_ms >= l->heard_ms + PEER_DEAD_AFTER_MS;
}

/* Others are given its slots; it may be alive, and serve on. */
void note_dead(struct sim *s)
{
    for (uint32_t plane = 0; plane < PLANES; plane++) {
        size_t cursor = 0;
        if (!s->planes[plane].is_up || !is_dead(s, WORKERS + plane))
            continue;
        for (struct box *b; (b = map_next(&s->boxes, &cursor)) != NULL;)
            b->estranged |= 1u << plane;
    }
}

static void check_stop(struct sim *s, const struct control_order *o)
{
    struct box *b = worker_box(s, o->sandbox_id);
    if (b == NULL || b->stop_epoch == s->epoch)
        return; /* said once more */
    b->stop_epoch = s->epoch;
    for (uint32_t plane = 0; plane < PLANES; plane++) {
        bool is_over =
            b->drain_epoch == s->epoch && s->now_ms >= b->drain_ms + b->timeout_ms + DRAIN_SLACK_MS;
        if (b->requests[plane] == 0 || is_dead(s, WORKERS + plane) || is_over)
            continue;
        sim_fail(s, "sandbox %llx is stopped under %u requests of data plane %u", hex(b->id),
                 b->requests[plane], plane);
    }
}

static void check_start(struct sim *s, const struct control_order *o)
{
    FAIL_UNLESS(s, worker_box(s, o->sandbox_id) == NULL, "sandbox %llx is started and lives",
                hex(o->sandbox_id));
    FAIL_UNLESS(s, o->sandbox_id >> 32 == s->epoch, "sandbox %llx is not of this epoch",
                hex(o->sandbox_id));
    FAIL_UNLESS(s, s->links[o->target_id - 1].core_end != 0,
                "sandbox %llx is started on worker %llu, which is away", hex(o->sandbox_id),
                (unsigned long long)o->target_id);
}

static void check_endpoint(struct sim *s, const struct control_order *o)
{
    const struct box *b = worker_box(s, o->sandbox_id);
    struct function_view f;
    struct sandbox_view v;
    bool is_known = control_sandbox(s->core, o->sandbox_id, &v);
    if (control_function(s->core, o->function_id, &f) && f.active_version != 0)
        FAIL_UNLESS(s, o->version <= f.active_version,
                    "sandbox %llx of version %u takes requests of version %u", hex(o->sandbox_id),
                    o->version, f.active_version);
    FAIL_UNLESS(s, is_known, "sandbox %llx takes requests and has no record", hex(o->sandbox_id));
    if (b == NULL)
        return; /* it has just ended */
    FAIL_UNLESS(s, b->function_id == o->function_id && b->version == o->version,
                "sandbox %llx of function %llu version %u is shown as one of function %llu "
                "version %u",
                hex(b->id), (unsigned long long)b->function_id, b->version,
                (unsigned long long)o->function_id, o->version);
    FAIL_UNLESS(s, b->drain_epoch != s->epoch, "draining sandbox %llx is to serve again",
                hex(b->id));
    FAIL_UNLESS(s, b->state != BOX_STARTING, "sandbox %llx is to serve and is not ready",
                hex(b->id));
}

/* One data plane alone may end there, too, when it holds more than there is. */
static void note_drain(struct sim *s, uint64_t sandbox_id)
{
    struct box *b = worker_box(s, sandbox_id);
    struct sandbox_view v;
    if (b == NULL || b->drain_epoch == s->epoch ||
        (control_sandbox(s->core, sandbox_id, &v) && v.state == SANDBOX_READY))
        return;
    b->drain_epoch = s->epoch;
    b->drain_ms = s->now_ms;
}

/* Given up with its worker: when that comes back it may serve. */
static void note_gone(struct sim *s)
{
    size_t cursor = 0;
    struct sandbox_view v;
    for (struct box *b; (b = map_next(&s->boxes, &cursor)) != NULL;)
        if (b->drain_epoch + b->stop_epoch != 0 && !control_sandbox(s->core, b->id, &v))
            b->drain_epoch = b->stop_epoch = 0;
}

void check_orders(struct sim *s, const struct control_orders *orders)
{
    for (size_t i = 0; i < orders->count; i++) {
        const struct control_order *o = &orders->items[i];
        if (o->kind == ORDER_START)
            check_start(s, o);
        else if (o->kind == ORDER_STOP)
            check_stop(s, o);
        else if (o->kind == ORDER_ENDPOINT)
            check_endpoint(s, o);
        else if (o->kind == ORDER_DRAIN)
            note_drain(s, o->sandbox_id);
    }
    note_gone(s);
}

/* ---- after every event ---- */

static void check_worker(struct sim *s, uint32_t worker)
{
    uint32_t count = 0, cpu_milli = 0;
    list_for_each(b, &s->workers[worker].boxes, struct box, of_worker)
    {
        count++;
        if (s->functions[b->function_id].stored.exists)
            cpu_milli += b->cpu_milli; /* else a leader may not know any more */
    }
    FAIL_UNLESS(s, count <= s->worker_slots, "worker %u has %u sandboxes, and %u slots", worker,
                count, s->worker_slots);
    FAIL_UNLESS(s, cpu_milli <= s->worker_cpu_milli,
                "sandboxes on worker %u may use %u milli-CPU of %u", worker, cpu_milli,
                s->worker_cpu_milli);
}

static bool is_past(const struct sim *s, uint64_t since_ms, uint64_t patience_ms)
{
    return s->now_ms > since_ms + patience_ms + LATE_MS;
}

static void check_suspicion(struct sim *s, const struct worker_view *w)
{
    uint64_t lost_ms = s->links[w->worker_id - 1].core_lost_ms;
    FAIL_UNLESS(s, w->state != WORKER_SUSPECTED || !is_past(s, lost_ms, RECONNECT_GRACE_MS),
                "worker %llu has been away for longer than its grace",
                (unsigned long long)w->worker_id);
}

/* Of a function that is deleted, a new leader does not know the timeout. */
static void check_drain(struct sim *s, uint64_t sandbox_id)
{
    const struct box *b = worker_box(s, sandbox_id);
    note_drain(s, sandbox_id);
    if (b != NULL && s->functions[b->function_id].stored.exists)
        FAIL_UNLESS(s, !is_past(s, b->drain_ms, b->timeout_ms + DRAIN_SLACK_MS),
                    "sandbox %llx drains for longer than its deadline", hex(sandbox_id));
}

/* The core's own books. */
static bool check_reservations(struct sim *s)
{
    struct worker_view w;
    struct sandbox_view v;
    uint32_t records[PEERS + 1] = {0};
    size_t cursor = 0;
    bool all_alive = true;
    while (control_sandbox_next(s->core, &cursor, &v)) {
        records[v.worker_id]++;
        if (v.state == SANDBOX_DRAINING)
            check_drain(s, v.sandbox_id);
    }
    cursor = 0;
    while (control_worker_next(s->core, &cursor, &w)) {
        all_alive &= w.state == WORKER_ALIVE;
        check_suspicion(s, &w);
        if (w.cpu_milli == 0)
            continue; /* it has not told its size yet */
        FAIL_UNLESS(s, w.sandboxes == records[w.worker_id], "worker %llu has %u records, not %u",
                    (unsigned long long)w.worker_id, records[w.worker_id], w.sandboxes);
        FAIL_UNLESS(s,
                    w.sandboxes <= w.slots && w.cpu_reserved_milli <= w.cpu_milli &&
                        w.memory_reserved_bytes <= w.memory_bytes,
                    "worker %llu is reserved beyond its capacity: %u of %u milli-CPU, %u of %u "
                    "slots",
                    (unsigned long long)w.worker_id, w.cpu_reserved_milli, w.cpu_milli, w.sandboxes,
                    w.slots);
    }
    return all_alive;
}

static void check_scale(struct sim *s)
{
    struct function_view f;
    size_t cursor = 0;
    while (control_function_next(s->core, &cursor, &f))
        FAIL_UNLESS(s, f.starting + f.ready <= f.spec->scaling.scale_max + 1,
                    "function %llu has %u sandboxes, its maximum is %u",
                    (unsigned long long)f.function_id, f.starting + f.ready,
                    f.spec->scaling.scale_max);
}

void check_step(struct sim *s)
{
    for (uint32_t worker = 0; worker < WORKERS; worker++)
        check_worker(s, worker);
    for (uint32_t plane = 0; plane < PLANES; plane++)
        if (s->touched_planes & 1u << plane)
            check_plane(s, plane);
    check_all_helpless(s);
    if (s->core == NULL)
        return;
    bool all_alive = check_reservations(s);
    bool is_quiet = s->now_ms >= s->core_quiet_since_ms + QUIET_MS &&
                    s->now_ms >= s->core_started_ms + RECONSTRUCTION_MS + QUIET_MS;
    if (all_alive && is_quiet)
        check_scale(s);
}

/* ---- when all is quiet ---- */

static enum box_state state_of(enum sandbox_state state)
{
    return state == SANDBOX_STARTING ? BOX_STARTING
           : state == SANDBOX_READY  ? BOX_READY
                                     : BOX_STOPPING;
}

static void check_lists(struct sim *s, uint32_t *live)
{
    struct sandbox_view v;
    size_t cursor = 0;
    for (const struct box *b; (b = map_next(&s->boxes, &cursor)) != NULL;) {
        bool is_known = control_sandbox(s->core, b->id, &v);
        FAIL_UNLESS(s, is_known, "sandbox %llx lives and has no record", hex(b->id));
        if (is_known)
            FAIL_UNLESS(s,
                        v.worker_id == b->worker + 1 && v.function_id == b->function_id &&
                            v.version == b->version && state_of(v.state) == b->state,
                        "sandbox %llx is not as its record says", hex(b->id));
        live[b->function_id]++;
    }
    cursor = 0;
    while (control_sandbox_next(s->core, &cursor, &v))
        FAIL_UNLESS(s, worker_box(s, v.sandbox_id) != NULL,
                    "sandbox %llx has a record and does not live", hex(v.sandbox_id));
}

static void check_endpoints(struct sim *s, uint32_t plane)
{
    const struct plane *p = &s->planes[plane];
    size_t cursor = 0, routes = 0;
    FAIL_UNLESS(s, p->removed.count == 0, "data plane %u keeps a deleted function", plane);
    for (const struct box *b; (b = map_next(&s->boxes, &cursor)) != NULL;) {
        const struct endpoint *e = map_get(&p->endpoints, b->id);
        uint32_t limit = s->functions[b->function_id].stored.latest.concurrency;
        uint32_t booked = control_lease(s->core, WORKERS + plane + 1, b->id);
        uint32_t held = e == NULL || e->drained ? 0 : limit == 0 ? SLOTS_ALL : MIN(e->slots, limit);
        FAIL_UNLESS(s, held == booked,
                    "data plane %u has %u slots of sandbox %llx, in the books it has %u", plane,
                    held, hex(b->id), booked);
    }
    cursor = 0;
    for (const struct endpoint *e; (e = map_next(&p->endpoints, &cursor)) != NULL;)
        FAIL_UNLESS(s, worker_box(s, e->id) != NULL,
                    "data plane %u knows sandbox %llx, which is no more", plane, hex(e->id));
    for (uint32_t name = 0; name < NAMES; name++)
        routes += s->names[name] != 0;
    FAIL_UNLESS(s, p->routes.count == routes, "data plane %u knows %zu of %zu functions", plane,
                p->routes.count, routes);
}

/* At rest every slot is somebody's, once. */
static void check_leases(struct sim *s)
{
    size_t cursor = 0;
    for (const struct box *b; (b = map_next(&s->boxes, &cursor)) != NULL;) {
        uint32_t limit = s->functions[b->function_id].stored.latest.concurrency;
        uint64_t sum = 0;
        for (uint32_t plane = 0; plane < PLANES; plane++)
            sum += control_lease(s->core, WORKERS + plane + 1, b->id);
        FAIL_UNLESS(s, sum == (limit == 0 ? (uint64_t)PLANES * SLOTS_ALL : limit),
                    "of sandbox %llx %llu slots are leased, and there are %u", hex(b->id),
                    (unsigned long long)sum, limit);
    }
}

void check_rest(struct sim *s)
{
    uint32_t live[FUNCTIONS_MAX] = {0};
    FAIL_UNLESS(s, s->core != NULL, "there is no control plane");
    if (s->core == NULL)
        return;
    check_lists(s, live);
    for (uint64_t id = 1; id <= s->function_count; id++) {
        const struct record *r = &s->functions[id].stored;
        uint32_t min = r->exists ? r->latest.scale_min : 0;
        FAIL_UNLESS(s, live[id] == min, "function %llu rests with %u sandboxes, its minimum is %u",
                    (unsigned long long)id, live[id], min);
        FAIL_UNLESS(s, !r->exists || r->active_version == r->latest.version,
                    "version %u of function %llu never became active", r->latest.version,
                    (unsigned long long)id);
    }
    for (uint32_t plane = 0; plane < PLANES; plane++)
        check_endpoints(s, plane);
    check_leases(s);
    FAIL_UNLESS(s, s->requests.count == 0, "%zu requests were forgotten", s->requests.count);
    uint64_t answered = 0;
    for (int answer = 0; answer < ANSWER_COUNT; answer++)
        answered += s->answers[answer];
    FAIL_UNLESS(s, answered == s->request_count, "%llu requests came, %llu were answered",
                (unsigned long long)s->request_count, (unsigned long long)answered);
}
