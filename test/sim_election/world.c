/* world.c - virtual time, processes and their clocks, orders. */
#include "world.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t world_below(struct world *w, uint64_t bound)
{
    return rng_below(&w->rng, bound);
}

bool world_chance(struct world *w, uint32_t percent)
{
    return percent > 0 && rng_below(&w->rng, 100) < percent;
}

void world_fail(struct world *w, const char *format, ...)
{
    va_list args;
    if (w->failure[0] != '\0')
        return;
    int n = snprintf(w->failure, sizeof(w->failure), "at %.3f s: ", (double)w->now_us / (double)S);
    va_start(args, format);
    (void)vsnprintf(w->failure + n, sizeof(w->failure) - (size_t)n, format, args);
    va_end(args);
}

void world_trace(const struct world *w, const char *format, ...)
{
    va_list args;
    if (!w->trace)
        return;
    printf("# [%9.3f ms] ", (double)w->now_us / (double)MS);
    va_start(args, format);
    (void)vprintf(format, args);
    va_end(args);
    printf("\n");
}

bool is_alive(const struct world *w, uint32_t i)
{
    return w->members[i].e != NULL && !w->members[i].stepped_down;
}

/* ---- time ---- */

static bool is_before(const struct happening *a, const struct happening *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->order < b->order;
}

void world_add(struct world *w, uint64_t after_us, struct happening h)
{
    if (w->heap_count == w->heap_capacity) {
        w->heap_capacity = MAX(w->heap_capacity * 2, (size_t)256);
        w->heap = realloc(w->heap, w->heap_capacity * sizeof(h));
        assert(w->heap != NULL);
    }
    h.at_us = w->now_us + after_us;
    h.order = w->made++;
    size_t at = w->heap_count++;
    for (; at > 0 && is_before(&h, &w->heap[(at - 1) / 2]); at = (at - 1) / 2)
        w->heap[at] = w->heap[(at - 1) / 2];
    w->heap[at] = h;
}

static struct happening heap_pop(struct world *w)
{
    struct happening first = w->heap[0], last = w->heap[--w->heap_count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < w->heap_count; at = child) {
        if (child + 1 < w->heap_count && is_before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!is_before(&w->heap[child], &last))
            break;
        w->heap[at] = w->heap[child];
    }
    w->heap[at] = last;
    return first;
}

static uint64_t clock_ms(const struct world *w, uint32_t i)
{
    const struct member *m = &w->members[i];
    return m->offset_ms + (uint64_t)((double)w->now_us * m->rate / (double)MS);
}

/* One tick at most is on its way; an earlier one replaces it. */
static void arm(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    double due_us = (double)(election_due_ms(m->e) - m->offset_ms) * (double)MS / m->rate;
    uint64_t at_us = MAX((uint64_t)due_us + 1, w->now_us + 1);
    if (m->tick_us != 0 && m->tick_us <= at_us)
        return;
    m->tick_us = at_us;
    world_add(w, at_us - w->now_us,
              (struct happening){.kind = TICK, .to = i, .to_life = m->life, .take = at_us});
}

/* ---- orders ---- */

static void carry_out(struct world *w, uint32_t i, const struct election_order *o)
{
    struct member *m = &w->members[i];
    check_order(w, i, o);
    switch (o->kind) {
    case ELECTION_ASK:
        network_send(w, i, o->member,
                     (struct election_event){.kind = ELECTION_ASKED, .epoch = o->epoch});
        break;
    case ELECTION_ANSWER:
        network_send(w, i, o->member,
                     (struct election_event){
                         .kind = ELECTION_ANSWERED, .epoch = o->epoch, .hears = o->hears});
        break;
    case ELECTION_TAKE:
        world_trace(w, "%u tries, knowing epoch %llu", i, (unsigned long long)o->epoch);
        store_take_epoch(w, i, o->epoch);
        break;
    case ELECTION_LEAD:
        world_trace(w, "%u leads under %llu", i, (unsigned long long)o->epoch);
        m->leads = o->epoch;
        break;
    case ELECTION_STEP_DOWN:
        world_trace(w, "%u steps down: %s", i, o->why);
        m->leads = 0;
        m->stepped_down = true;
        w->step_downs++;
        world_add(w, 1 * MS, (struct happening){.kind = END, .to = i, .to_life = m->life});
        break;
    case ELECTION_FOLLOW:
        m->told_epoch = o->epoch;
        m->told_leader = o->member;
        world_trace(w, "%u follows %u, epoch %llu", i, o->member, (unsigned long long)o->epoch);
        break;
    }
}

void world_step(struct world *w, uint32_t i, const struct election_event *event)
{
    struct member *m = &w->members[i];
    struct election_orders orders;
    if (event->kind == ELECTION_TAKEN)
        m->taken = event->epoch;
    if (event->kind == ELECTION_CAUGHT_UP)
        m->caught_up = event->epoch;
    election_step(m->e, event, clock_ms(w, i), &orders);
    for (size_t n = 0; n < orders.count; n++)
        carry_out(w, i, &orders.items[n]);
    check_member(w, i);
    if (election_due_ms(m->e) <= clock_ms(w, i))
        world_fail(w, "%u is due again at once", i);
    arm(w, i);
}

/* ---- processes ---- */

void world_start(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    if (m->e != NULL)
        return;
    struct election_options options = {
        .self = i, .member_count = w->count, .backoff_ms = m->backoff_ms};
    *m = (struct member){
        .life = m->life + 1, .rate = m->rate, .offset_ms = m->offset_ms, .says_reached = true};
    m->e = election_new(&options, clock_ms(w, i));
    m->told_leader = ELECTION_NOBODY;
    world_trace(w, "%u starts", i);
    world_add(w, w->calm ? 0 : world_below(w, 5 * MS),
              (struct happening){.kind = BEAT, .to = i, .to_life = m->life});
    arm(w, i);
}

void world_start_later(struct world *w, uint32_t i, uint64_t us)
{
    const struct member *m = &w->members[i];
    if (m->life > 0 && m->e == NULL) /* nothing starts anew at once */
        us = MAX(w->now_us + us, m->ended_us + RESTART_US) - w->now_us;
    world_add(w, us, (struct happening){.kind = START, .to = i});
}

static void end(struct world *w, uint32_t i, bool with_host)
{
    struct member *m = &w->members[i];
    network_killed(w, i, with_host);
    election_free(m->e);
    m->e = NULL;
    m->ended_us = w->now_us + (with_host ? 1 * S : 0); /* a host takes longer */
    free(m->backlog);
    m->backlog = NULL;
    m->paused = false;
    m->leads = 0;
}

void world_kill(struct world *w, uint32_t i, bool with_host)
{
    if (w->members[i].e == NULL)
        return;
    world_trace(w, "%u %s", i, with_host ? "is lost with its host" : "is killed");
    w->kills++;
    w->members[i].backoff_ms = 0;
    end(w, i, with_host);
}

void world_pause(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    if (m->e == NULL || m->paused)
        return;
    world_trace(w, "%u stands still", i);
    m->paused = true;
    w->pauses++;
}

static void happen(struct world *w, const struct happening *h);

/* What has come in the meantime is read at once, before or after the timers are looked at. */
void world_resume(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    if (m->e == NULL || !m->paused)
        return;
    world_trace(w, "%u goes on", i);
    struct happening *backlog = m->backlog;
    size_t count = m->backlog_count;
    uint32_t life = m->life;
    m->paused = false;
    m->backlog = NULL;
    m->backlog_count = 0;
    if (world_below(w, 2) == 0)
        world_step(w, i, &(struct election_event){.kind = ELECTION_TICK});
    for (size_t n = 0; n < count && m->e != NULL && m->life == life; n++)
        happen(w, &backlog[n]);
    free(backlog);
}

static void backlog_add(struct member *m, const struct happening *h)
{
    if ((m->backlog_count & (m->backlog_count - 1)) == 0) {
        size_t capacity = MAX(m->backlog_count * 2, (size_t)1);
        m->backlog = realloc(m->backlog, capacity * sizeof(*h));
        assert(m->backlog != NULL);
    }
    m->backlog[m->backlog_count++] = *h;
}

/* ---- what happens ---- */

static void beat(struct world *w, uint32_t i)
{
    struct member *m = &w->members[i];
    if (m->stepped_down)
        return;
    store_beat(w, i);
    network_beat(w, i);
    if (m->leads != 0)
        work_beat(w, i);
    world_add(w, (uint64_t)((double)BEAT_US / m->rate),
              (struct happening){.kind = BEAT, .to = i, .to_life = m->life});
}

static void told(struct world *w, const struct happening *h)
{
    struct member *m = &w->members[h->to];
    if (m->stepped_down)
        return;
    if (h->take != 0) { /* the store's answer: none is told after "it was not reached" */
        if (m->take_count != h->take || (m->take == 0 && h->event.kind != ELECTION_CAUGHT_UP))
            return;
        m->take = 0;
    }
    if (h->event.kind == ELECTION_STORE_EPOCH)
        m->synced = true;
    world_step(w, h->to, &h->event);
}

/* Of a member that runs. */
static void member_happen(struct world *w, const struct happening *h)
{
    struct member *m = &w->members[h->to];
    if (h->kind == TICK && m->tick_us == h->take) {
        m->tick_us = 0;
        if (!m->stepped_down)
            world_step(w, h->to, &(struct election_event){.kind = ELECTION_TICK});
    } else if (h->kind == BEAT) {
        beat(w, h->to);
    } else if (h->kind == TOLD) {
        told(w, h);
    } else if (h->kind == TAKE_OVERDUE && m->take == h->take) {
        m->take = 0;
        m->take_count++; /* its answers are not told any more */
        if (!m->stepped_down)
            world_step(w, h->to, &(struct election_event){.kind = ELECTION_TAKE_FAILED});
    } else if (h->kind == END) {
        m->backoff_ms = election_backoff_ms(m->e);
        end(w, h->to, false);
        world_start_later(w, h->to, RESTART_US + world_below(w, 50 * MS));
    }
}

static void happen(struct world *w, const struct happening *h)
{
    if (h->kind == START) {
        world_start(w, h->to);
    } else if (h->kind == CAS) {
        store_cas(w, h);
    } else if (h->kind == WRITE) {
        store_write(w, h);
    } else if (h->kind == ORDER) {
        worker_order(w, h);
    } else if (w->members[h->to].e != NULL && w->members[h->to].life == h->to_life) {
        if (w->members[h->to].paused)
            backlog_add(&w->members[h->to], h);
        else
            member_happen(w, h);
    }
}

bool world_run_until(struct world *w, bool (*is_so)(const struct world *w), uint64_t us)
{
    uint64_t end_us = w->now_us + us;
    while (w->failure[0] == '\0') {
        if (is_so != NULL && is_so(w))
            return true;
        if (w->heap_count == 0 || w->heap[0].at_us > end_us)
            break;
        struct happening h = heap_pop(w);
        w->now_us = h.at_us;
        happen(w, &h);
    }
    w->now_us = end_us;
    return false;
}

void world_run(struct world *w, uint64_t us)
{
    (void)world_run_until(w, NULL, us);
}

void world_init(struct world *w, uint64_t seed, uint32_t count)
{
    *w = (struct world){.count = count, .store_slow = 1, .gap_us = UINT64_MAX};
    rng_init(&w->rng, seed);
    for (uint32_t i = 0; i < count; i++) {
        w->members[i].rate = 0.95 + (double)world_below(w, 1001) / 10000.0;
        w->members[i].offset_ms = world_below(w, 3) == 0 ? 0 : world_below(w, 1000000);
    }
}

void world_done(struct world *w)
{
    for (uint32_t i = 0; i < w->count; i++) {
        election_free(w->members[i].e);
        free(w->members[i].backlog);
    }
    free(w->heap);
}
