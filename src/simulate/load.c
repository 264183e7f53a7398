/* load.c - invocations. Times are read when something is seen, not when the turn began: whoever is
 * late here is late in the figures. */
#include "simulate/sim.h"
#include <stdlib.h>
#include <string.h>

void load_init(struct sim *s)
{
    struct load *l = &s->load;
    size_t count = s->settings.functions;
    list_init(&l->cold);
    list_init(&l->waiting);
    l->functions = mem_new_array(count, sizeof(*l->functions));
    size_t *order = mem_new_array(count, sizeof(*order));
    for (size_t i = 0; i < count; i++) {
        size_t other =
            rng_below(&s->rng, i + 1); /* shuffled: neighbours by name are no neighbours in time */
        order[i] = order[other];
        order[other] = i;
    }
    for (size_t i = 0; i < count; i++)
        l->functions[i].plane = planes_of(s, i);
    for (size_t i = 0; i < count; i++)
        list_push_back(&l->cold, &l->functions[order[i]].node);
    free(order);
}

struct sim_function *load_find(struct sim *s, uint64_t function_id)
{
    return map_get(&s->load.by_id, function_id);
}

void load_know(struct sim *s, uint64_t function_id, const char *name)
{
    uint64_t index;
    struct str text = str_of(name), prefix = STR(FUNCTION_NAME);
    if (!str_has_prefix(text, prefix))
        return;
    struct str digits = {text.data + prefix.bytes, text.bytes - prefix.bytes};
    if (str_to_u64(digits, UINT32_MAX, &index) != ERR_OK || index >= s->settings.functions)
        return; /* of another run */
    struct sim_function *f = &s->load.functions[index];
    if (f->id == function_id)
        return;
    if (f->id != 0)
        (void)map_remove(&s->load.by_id, f->id); /* deleted and registered anew meanwhile */
    f->id = function_id;
    map_put(&s->load.by_id, function_id, f);
}

/* ---- asking ---- */

static void ask(struct sim *s, uint64_t scheduled_ns, uint64_t now_ns)
{
    struct load *l = &s->load;
    struct sim_function *f = list_entry(l->cold.next, struct sim_function, node);
    list_remove(&f->node);
    list_push_back(&l->waiting, &f->node);
    l->waiting_count++;
    f->state = FUNCTION_WAITING;
    f->asked_ns = scheduled_ns;
    f->measured = scheduled_ns >= l->measured_from_ns;
    f->ordered = false;
    if (f->measured) {
        l->counts.asked++;
        samples_add(&l->late_ns, now_ns - MIN(now_ns, scheduled_ns));
    }
    sim_plane_demand(f->plane, f);
}

/* All whose time has come. Without a cold function they wait, and their time runs. */
static void ask_due(struct sim *s, uint64_t now_ns)
{
    struct load *l = &s->load;
    while (l->arriving && schedule_next_ns(&l->schedule) <= now_ns) {
        uint64_t due_ns = schedule_next_ns(&l->schedule);
        if (due_ns >= l->ends_ns) {
            l->arriving = false;
            sim_progress(s);
            return;
        }
        if (list_is_empty(&l->cold)) {
            l->starved = true;
            return;
        }
        l->counts.held_up += l->starved && due_ns >= l->measured_from_ns;
        ask(s, due_ns, now_ns);
        schedule_advance(&l->schedule);
    }
    l->starved = false;
}

static void become_cold(struct sim *s, struct sim_function *f)
{
    struct load *l = &s->load;
    bool was_empty = list_is_empty(&l->cold);
    f->state = FUNCTION_COLD;
    list_push_back(&l->cold, &f->node);
    if (!was_empty || !l->arriving)
        return;
    ask_due(s, clock_mono_ns());
    sim_alarm_at(s, load_next_ns(s));
}

void load_begin(struct sim *s)
{
    struct load *l = &s->load;
    const struct simulate_settings *o = &s->settings;
    uint64_t begin_ns = clock_mono_ns();
    l->measured_from_ns = begin_ns + o->warm_up * NS_PER_MS;
    l->ends_ns = l->measured_from_ns + o->duration * NS_PER_MS;
    schedule_init(&l->schedule, (double)o->rate, strcmp(o->arrivals, "poisson") == 0, o->seed,
                  begin_ns);
    l->arriving = true;
    sim_alarm_at(s, load_next_ns(s));
}

void load_give_up(struct sim *s)
{
    struct load *l = &s->load;
    for (; l->arriving && schedule_next_ns(&l->schedule) < l->ends_ns;
         schedule_advance(&l->schedule))
        l->counts.unasked += schedule_next_ns(&l->schedule) >= l->measured_from_ns;
    l->arriving = false;
}

static bool is_measured(const struct load *l, uint64_t now_ns)
{
    return l->measured_from_ns != 0 && now_ns >= l->measured_from_ns && now_ns < l->ends_ns;
}

/* ---- answers ---- */

static bool leave_waiting(struct sim *s, struct sim_function *f)
{
    if (f->state != FUNCTION_WAITING)
        return false;
    list_remove(&f->node);
    s->load.waiting_count--;
    f->state = FUNCTION_ENDING;
    return true;
}

/* Nobody calls it any more. */
static void end(struct sim *s, struct sim_function *f)
{
    f->state = FUNCTION_ENDING;
    sim_plane_demand(f->plane, f);
    if (f->endpoints == 0)
        become_cold(s, f);
    if (s->load.waiting_count == 0 && !s->load.arriving)
        sim_progress(s);
}

void load_ordered(struct sim *s, struct sim_sandbox *box)
{
    struct load *l = &s->load;
    struct sim_function *f = load_find(s, box->function_id);
    l->counts.scheduled_in_time += is_measured(l, box->ordered_ns);
    if (f == NULL || f->state != FUNCTION_WAITING || f->ordered)
        return; /* for nobody who waits, or one more: `starts` counts it */
    f->ordered = true;
    if (!f->measured)
        return;
    l->counts.scheduled++;
    samples_add(&l->order_ns, box->ordered_ns - f->asked_ns);
}

static void hold_end(struct sim *s, struct sim_function *f)
{
    uint64_t sandbox_id = f->held_sandbox;
    bool drained = f->drain_owed;
    f->held_sandbox = 0;
    f->drain_owed = false;
    end(s, f);
    if (drained)
        sim_plane_drained(f->plane, sandbox_id);
}

void load_published(struct sim *s, struct sim_function *f, uint64_t sandbox_id)
{
    struct load *l = &s->load;
    uint64_t now_ns = clock_mono_ns();
    const struct sim_sandbox *box = map_get(&s->sandboxes, sandbox_id);
    if (f->state ==
        FUNCTION_COLD) { /* of an invocation that was given up: it must go before the next */
        list_remove(&f->node);
        f->state = FUNCTION_ENDING;
    }
    if (!leave_waiting(s, f))
        return;
    l->counts.published_in_time += is_measured(l, now_ns);
    if (f->measured) {
        uint64_t own_ns = box != NULL && box->ready_ns != 0 ? box->ready_ns - box->ordered_ns : 0;
        uint64_t whole_ns = now_ns - f->asked_ns;
        l->counts.published++;
        samples_add(&l->publish_ns, whole_ns - MIN(whole_ns, own_ns));
    }
    if (s->settings.exec == 0) {
        end(s, f);
        return;
    }
    f->state = FUNCTION_HELD;
    f->held_sandbox = sandbox_id;
    f->drain_owed = false;
    sim_plane_demand(f->plane, f);
    delay_line_push(&l->holds, now_ns + s->settings.exec * NS_PER_MS, f);
    sim_alarm_at(s, load_next_ns(s));
}

void load_endpoint_gone(struct sim *s, struct sim_function *f, uint64_t sandbox_id)
{
    assert(f->endpoints > 0);
    f->endpoints--;
    s->load.counts.cut += f->measured && f->state == FUNCTION_HELD && f->held_sandbox == sandbox_id;
    if (f->endpoints == 0 && f->state == FUNCTION_ENDING)
        become_cold(s, f);
}

void load_failed(struct sim *s, struct sim_function *f)
{
    if (!leave_waiting(s, f))
        return;
    s->load.counts.failed += f->measured;
    end(s, f);
}

void load_check_timeouts(struct sim *s)
{
    struct load *l = &s->load;
    uint64_t now_ns = clock_mono_ns(), patience_ns = s->settings.call_timeout * NS_PER_MS;
    while (!list_is_empty(&l->waiting)) {
        struct sim_function *f = list_entry(l->waiting.next, struct sim_function, node);
        if (now_ns - MIN(now_ns, f->asked_ns) < patience_ns)
            return;
        (void)leave_waiting(s, f);
        l->counts.timed_out += f->measured;
        end(s, f);
    }
}

/* ---- time ---- */

uint64_t load_next_ns(const struct sim *s)
{
    const struct load *l = &s->load;
    uint64_t next_ns = delay_line_next_ns(&l->holds);
    if (l->arriving && !list_is_empty(&l->cold))
        next_ns = MIN(next_ns, schedule_next_ns(&l->schedule));
    return next_ns;
}

void load_due(struct sim *s, uint64_t now_ns)
{
    struct sim_function *f;
    while ((f = delay_line_pop(&s->load.holds, now_ns)) != NULL)
        hold_end(s, f);
    ask_due(s, now_ns);
}

void load_done(struct sim *s)
{
    struct load *l = &s->load;
    free(l->functions);
    map_done(&l->by_id);
    delay_line_done(&l->holds);
    samples_done(&l->order_ns);
    samples_done(&l->publish_ns);
    samples_done(&l->late_ns);
}
