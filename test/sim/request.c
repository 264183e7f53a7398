/* request.c - one request at a data plane: it gets a slot or waits, is connected to the sandbox of
 * its slot, and is answered (as src/data_plane/exchange.c does). */
#include "sim.h"
#include <stdlib.h>

#define CONNECT_ATTEMPTS_MAX 4u

static void acquire(struct sim *s, struct request *r, struct dispatch_endpoint *release);

static uint64_t now_ns(const struct sim *s)
{
    return s->now_ms * NS_PER_MS;
}

/* ---- slots ---- */

static void slot_take(struct sim *s, struct request *r, struct dispatch_endpoint *endpoint)
{
    struct slots *slots = endpoint->user;
    r->endpoint = endpoint;
    slots->held++;
    check_slot_taken(s, r);
}

static void slot_give(struct sim *s, struct request *r, struct dispatch_endpoint *endpoint)
{
    struct slots *slots = endpoint->user;
    slots->held--;
    dispatch_release(r->route->dispatch, r->thread, endpoint, now_ns(s));
}

/* ---- the sandbox's side ---- */

static void disconnect(struct sim *s, struct request *r)
{
    struct box *b = r->box != 0 ? worker_box(s, r->box) : NULL;
    r->box = 0;
    if (b != NULL)
        b->requests[r->route->plane]--;
}

/* ---- the end ---- */

static void request_free(struct sim *s, struct request *r)
{
    struct route *route = r->route;
    list_remove(&r->of_route);
    (void)map_remove(&s->requests, r->id);
    free(r);
    plane_request_left(s, route);
}

static void answer(struct sim *s, struct request *r, enum answer answer)
{
    s->answers[answer]++;
    check_answer(s, r, answer);
    disconnect(s, r);
    if (r->endpoint != NULL)
        slot_give(s, r, r->endpoint);
    r->endpoint = NULL;
    request_free(s, r);
}

static void on_worked(struct sim *s, const struct event *e)
{
    struct request *r = map_get(&s->requests, e->a);
    if (r == NULL || r->plan != e->b)
        return;
    s->touched_planes |= 1u << r->route->plane;
    answer(s, r, ANSWER_OK);
}

/* ---- from slot to sandbox ---- */

static void connect_failed(struct sim *s, struct request *r)
{
    struct dispatch_endpoint *endpoint = r->endpoint;
    struct slots *slots = endpoint->user;
    if (dispatch_endpoint_eject(r->route->dispatch, endpoint->sandbox_id)) {
        slots->is_ejected = true;
        plane_report_failed(s, r->route->plane, endpoint->sandbox_id);
    }
    if (r->attempts >= CONNECT_ATTEMPTS_MAX) {
        answer(s, r, ANSWER_CONNECT_FAILED);
        return;
    }
    r->endpoint = NULL;
    acquire(s, r, endpoint);
}

static void granted(struct sim *s, struct request *r)
{
    struct dispatch_endpoint *endpoint = r->endpoint;
    if (dispatch_endpoint_is_gone(endpoint)) { /* between the grant and now: another one */
        r->endpoint = NULL;
        acquire(s, r, endpoint);
        return;
    }
    r->attempts++;
    struct box *b = worker_box(s, endpoint->sandbox_id);
    bool refuses = s->phase == PHASE_FAULTS && sim_chance(s, 200);
    if (b == NULL || b->state == BOX_STARTING || refuses) {
        connect_failed(s, r);
        return;
    }
    r->box = b->id;
    r->state = REQUEST_SERVED;
    b->requests[r->route->plane]++;
    check_connected(s, r, b);
    sim_trace(s, "request %llu at data plane %u is served by %llx for %llu ms",
              (unsigned long long)r->id, r->route->plane, (unsigned long long)b->id,
              (unsigned long long)r->work_ms);
    clock_after(s, r->work_ms, on_worked, r->id, ++r->plan);
}

/* On to a slot. `release` is one that it has, and must not get again if another is free. */
static void acquire(struct sim *s, struct request *r, struct dispatch_endpoint *release)
{
    struct dispatch_endpoint *endpoint = NULL;
    r->state = REQUEST_WAITING;
    enum err err =
        dispatch_acquire(r->route->dispatch, r->thread, &r->waiter, now_ns(s), &endpoint);
    if (err == ERR_OK)
        slot_take(s, r, endpoint);
    if (err == ERR_MORE)
        plane_tell_demand(s, r->route);
    if (err == ERR_BUSY)
        check_refused(s, r);
    if (release != NULL)
        slot_give(s, r, release);
    if (err == ERR_OK)
        granted(s, r);
    else if (err == ERR_BUSY)
        answer(s, r, ANSWER_QUEUE_FULL);
    else if (err != ERR_MORE)
        answer(s, r, err == ERR_TIMEOUT ? ANSWER_TIMEOUT : ANSWER_DELETED);
}

/* ---- handed over: granted or failed on any thread, carried on by its own ---- */

static void handed_over(struct sim *s, struct request *r)
{
    r->handover_due = false;
    if (r->waiter.state == DISPATCH_GRANTED)
        (void)dispatch_take_grant(r->route->dispatch, r->thread, &r->waiter, now_ns(s));
    if (r->client_left)
        answer(s, r, ANSWER_CLIENT_LEFT);
    else if (r->endpoint == NULL && r->failed == ERR_TIMEOUT)
        answer(s, r, ANSWER_TIMEOUT);
    else if (r->endpoint == NULL)
        answer(s, r, r->failed == ERR_NOT_FOUND ? ANSWER_DELETED : ANSWER_FAILED_WAITING);
    else if (s->now_ms >= r->deadline_ms)
        answer(s, r, ANSWER_TIMEOUT);
    else
        granted(s, r);
}

static void on_handover(struct sim *s, const struct event *e)
{
    struct request *r = map_get(&s->requests, e->a);
    if (r == NULL)
        return;
    s->touched_planes |= 1u << r->route->plane;
    handed_over(s, r);
}

static void hand_over(struct request *r)
{
    struct sim *s = r->sim;
    r->handover_due = true;
    clock_after(s, sim_chance(s, 4) ? sim_below(s, 3) : 0, on_handover, r->id, 0);
}

static void on_grant(struct dispatch_waiter *w)
{
    struct request *r = container_of(w, struct request, waiter);
    slot_take(r->sim, r, w->granted);
    hand_over(r);
}

static void on_failed(struct dispatch_waiter *w, enum err err, void *reason)
{
    struct request *r = container_of(w, struct request, waiter);
    const bool *has_cause = reason;
    r->failed = err;
    r->failed_with_cause = has_cause != NULL && *has_cause;
    hand_over(r);
}

/* ---- trouble ---- */

static void on_deadline(struct sim *s, const struct event *e)
{
    struct request *r = map_get(&s->requests, e->a);
    if (r == NULL || r->handover_due)
        return;
    s->touched_planes |= 1u << r->route->plane;
    bool waits = r->state == REQUEST_WAITING;
    if (waits)
        s->functions[r->route->id].gave_up_ms = s->now_ms;
    if (waits && !dispatch_cancel(r->route->dispatch, &r->waiter)) {
        sim_fail(s, "request %llu waits and is not in the queue", (unsigned long long)r->id);
        return;
    }
    if (waits || !r->is_tunnel)
        answer(s, r, ANSWER_TIMEOUT);
}

void request_client_leaves(struct sim *s, struct request *r)
{
    s->touched_planes |= 1u << r->route->plane;
    r->client_left = true;
    if (r->handover_due)
        return; /* what was granted comes back when that is here */
    if (r->state == REQUEST_WAITING)
        s->functions[r->route->id].gave_up_ms = s->now_ms;
    if (r->state == REQUEST_WAITING && !dispatch_cancel(r->route->dispatch, &r->waiter))
        sim_fail(s, "request %llu waits and is not in the queue", (unsigned long long)r->id);
    else
        answer(s, r, ANSWER_CLIENT_LEFT);
}

static void broke(struct sim *s, struct request *r)
{
    struct dispatch_endpoint *endpoint = r->endpoint;
    disconnect(s, r);
    if (!r->is_idempotent || r->was_resent) {
        answer(s, r, ANSWER_BROKEN);
        return;
    }
    r->endpoint = NULL;
    r->was_resent = true;
    acquire(s, r, endpoint); /* another sandbox, if there is one */
}

static void on_broken(struct sim *s, const struct event *e)
{
    struct request *r = map_get(&s->requests, e->a);
    if (r == NULL || r->plan != e->b)
        return;
    s->touched_planes |= 1u << r->route->plane;
    broke(s, r);
}

/* Each thread sees its connections end by itself. In the sandbox it is over at once. */
void requests_break(struct sim *s, uint32_t plane, uint64_t sandbox_id)
{
    size_t cursor = 0;
    for (struct request *r; (r = map_next(&s->requests, &cursor)) != NULL;) {
        if (r->box != sandbox_id || r->route->plane != plane)
            continue;
        disconnect(s, r);
        clock_after(s, sim_below(s, 3), on_broken, r->id, ++r->plan);
    }
}

void requests_drop(struct sim *s, struct route *route)
{
    list_for_each(r, &route->requests, struct request, of_route)
    {
        if (r->waiter.state == DISPATCH_QUEUED)
            (void)dispatch_cancel(route->dispatch, &r->waiter);
        else if (r->waiter.state == DISPATCH_GRANTED)
            (void)dispatch_take_grant(route->dispatch, r->thread, &r->waiter, now_ns(s));
        s->answers[ANSWER_PLANE_DIED]++;
        disconnect(s, r);
        if (r->endpoint != NULL)
            slot_give(s, r, r->endpoint);
        list_remove(&r->of_route);
        (void)map_remove(&s->requests, r->id);
        free(r);
    }
}

/* ---- arrival ---- */

static uint64_t work_choose(struct sim *s, bool is_tunnel)
{
    if (is_tunnel)
        return sim_between(s, 1000, 15000);
    if (s->phase == PHASE_FAULTS && sim_chance(s, 20))
        return sim_between(s, 500, 4000);
    return sim_between(s, 1, 150);
}

void request_arrive(struct sim *s, uint32_t plane, uint64_t function_id)
{
    struct plane *p = &s->planes[plane];
    struct route *route = p->is_up ? map_get(&p->routes, function_id) : NULL;
    s->request_count++;
    if (route == NULL) {
        s->answers[ANSWER_NOT_FOUND]++;
        FAIL_UNLESS(s, s->phase != PHASE_CALLS, "data plane %u does not know function %llu", plane,
                    (unsigned long long)function_id);
        return;
    }
    struct request *r = mem_new(sizeof(*r));
    r->sim = s;
    r->id = s->request_count;
    r->route = route;
    r->thread = (uint32_t)sim_below(s, THREADS);
    r->arrived_ms = s->now_ms;
    r->deadline_ms = s->now_ms + route->settings.timeout_ms;
    r->is_tunnel = s->phase == PHASE_FAULTS && sim_chance(s, 100);
    r->is_idempotent = sim_chance(s, 2);
    r->work_ms = work_choose(s, r->is_tunnel);
    /* Several arrive in a millisecond: the later ones stand behind. */
    r->waiter = (struct dispatch_waiter){.arrived_ns = now_ns(s) + r->id % NS_PER_MS,
                                         .deadline_ns = r->deadline_ms * NS_PER_MS,
                                         .on_grant = on_grant,
                                         .on_failed = on_failed};
    map_put(&s->requests, r->id, r);
    list_push_back(&route->requests, &r->of_route);
    s->touched_planes |= 1u << plane;
    plane_tell_active(s, route);
    clock_at(s, r->deadline_ms, on_deadline, r->id, 0);
    acquire(s, r, NULL);
}
