/* store.c - registrations: what a user changes is written, then told to the core; what the core
 * finds good is written, too. A write takes a while, and a crash may come before its end (as
 * src/control_plane/registry.c). */
#include "sim.h"
#include <stdio.h>

const struct function *store_function(const struct sim *s, uint32_t name)
{
    return s->names[name] != 0 ? &s->functions[s->names[name]] : NULL;
}

/* ---- registrations ---- */

static void spec_make(const struct record *r, const struct settings *settings,
                      struct function_spec *ret)
{
    function_spec_init(ret);
    (void)snprintf(ret->name, sizeof(ret->name), "f%llu", (unsigned long long)r->id);
    ret->cpu_milli = settings->cpu_milli;
    ret->memory_bytes = settings->cpu_milli * MIB;
    ret->timeout_ms = settings->timeout_ms;
    ret->queue_max = settings->queue_max;
    ret->load_balancing = (enum load_balancing)settings->load_balancing;
    ret->placement = (enum placement_policy)settings->placement;
    ret->scaling.mode = (enum scaling_mode)settings->mode;
    ret->scaling.concurrency = settings->concurrency;
    ret->scaling.scale_min = settings->scale_min;
    ret->scaling.scale_max = settings->scale_max;
    ret->scaling.stable_window_ms = 4000;
    ret->scaling.panic_window_ms = 1000;
    ret->scaling.period_ms = 500;
}

/* Requests that run go on when it is lowered. */
#define LOOSE_MS 20000u

static uint32_t limit_of(uint32_t concurrency)
{
    return concurrency == 0 ? UINT32_MAX : concurrency;
}

static void concurrency_note(struct sim *s, struct function *f, uint32_t concurrency)
{
    if (f->concurrency != concurrency && limit_of(concurrency) < limit_of(f->concurrency)) {
        bool is_loose = s->now_ms < f->loose_until_ms;
        f->loosest =
            is_loose ? MAX(f->loosest, limit_of(f->concurrency)) : limit_of(f->concurrency);
        f->loose_until_ms = s->now_ms + LOOSE_MS;
    }
    f->concurrency = concurrency;
}

static void tell_version(struct sim *s, const struct record *r, const struct settings *settings,
                         uint32_t active_version, bool probe)
{
    struct function_spec spec;
    struct control_event e = {.kind = EVENT_FUNCTION_PUT};
    spec_make(r, settings, &spec);
    concurrency_note(s, &s->functions[r->id], settings->concurrency);
    e.function_put.function_id = r->id;
    e.function_put.version = settings->version;
    e.function_put.active_version = active_version;
    e.function_put.probe = probe;
    e.function_put.spec = &spec;
    leader_event(s, &e);
    function_spec_done(&spec);
}

const struct settings *store_version(const struct record *r, uint32_t version)
{
    if (r->latest.version == version)
        return &r->latest;
    return r->has_active && r->active.version == version ? &r->active : NULL;
}

/* ---- the store ---- */

static void on_stored(struct sim *s, const struct event *e);

static void write_begin(struct sim *s, struct function *f)
{
    f->is_writing = true;
    f->writes_active = false;
    clock_after(s, sim_between(s, 1, 8), on_stored, f->next.id, s->epoch);
}

/* `active_due` was overtaken by what has been stored meanwhile: then that is right. */
static void write_active(struct sim *s, struct function *f)
{
    uint32_t version = f->active_due;
    f->active_due = 0;
    if (!f->stored.exists || store_version(&f->stored, version) == NULL ||
        (f->stored.active_version >= version && !f->is_active_unsaved))
        return;
    f->next = f->stored;
    if (version == f->stored.latest.version) {
        f->next.active_version = version;
        f->next.has_active = false;
    }
    write_begin(s, f);
    f->writes_active = true;
}

static void tell_stored(struct sim *s, const struct record *before, const struct record *now)
{
    bool is_new = !before->exists || before->latest.version != now->latest.version;
    if (!now->exists) {
        struct control_event e = {.kind = EVENT_FUNCTION_DELETE};
        e.function_delete.function_id = now->id;
        leader_event(s, &e);
        return;
    }
    bool prove = now->has_active || now->active_version != now->latest.version;
    tell_version(s, now, &now->latest, 0, is_new && prove);
}

static void on_stored(struct sim *s, const struct event *e)
{
    struct function *f = &s->functions[e->a];
    if (s->epoch != e->b || s->core == NULL || !f->is_writing)
        return;
    struct record before = f->stored;
    f->is_writing = f->is_active_unsaved = false;
    if (f->next.exists && f->next.latest.version != before.latest.version &&
        f->proven == before.latest.version && f->next.active_version < f->proven) {
        f->next.has_active = true; /* proven while this was being written */
        f->next.active = before.latest;
        f->next.active_version = f->proven;
        f->is_active_unsaved = true;
    }
    f->stored = f->next;
    if (!f->writes_active) /* the core said that itself */
        tell_stored(s, &before, &f->stored);
    if (f->active_due != 0)
        write_active(s, f);
}

static struct function *function_new(struct sim *s, uint32_t name)
{
    if (s->function_count + 1 >= FUNCTIONS_MAX)
        return NULL;
    struct function *f = &s->functions[++s->function_count];
    *f = (struct function){.stored.id = s->function_count};
    s->names[name] = s->function_count;
    return f;
}

bool store_put(struct sim *s, uint32_t name, const struct settings *settings, bool new_version,
               bool prove)
{
    struct function *f = s->names[name] != 0 ? &s->functions[s->names[name]] : NULL;
    if (s->core == NULL || (f != NULL && f->is_writing))
        return false;
    if (f == NULL && (f = function_new(s, name)) == NULL)
        return false;
    bool exists = f->stored.exists;
    f->next = f->stored;
    f->next.exists = true;
    f->next.latest = *settings;
    f->next.latest.version = f->stored.latest.version + (new_version || !exists);
    if (exists && new_version && !f->stored.has_active &&
        f->stored.active_version == f->stored.latest.version) {
        f->next.has_active = true; /* what was newest serves on */
        f->next.active = f->stored.latest;
    }
    if (f->next.active_version == 0 && !prove)
        f->next.active_version = f->next.latest.version;
    sim_trace(s, "function %llu: version %u, min %u, max %u, concurrency %u%s%s",
              (unsigned long long)f->next.id, f->next.latest.version, settings->scale_min,
              settings->scale_max, settings->concurrency, prove ? ", to be proven" : "",
              settings->is_bad ? ", bad" : "");
    write_begin(s, f);
    return true;
}

bool store_delete(struct sim *s, uint32_t name)
{
    struct function *f = &s->functions[s->names[name]];
    if (s->core == NULL || s->names[name] == 0 || f->is_writing)
        return false;
    sim_trace(s, "function %llu is deleted", (unsigned long long)f->stored.id);
    f->next = f->stored;
    f->next.exists = false;
    s->names[name] = 0;
    write_begin(s, f);
    return true;
}

void store_version_active(struct sim *s, uint64_t function_id, uint32_t version)
{
    struct function *f = &s->functions[function_id];
    sim_trace(s, "function %llu: version %u is active", (unsigned long long)function_id, version);
    f->active_due = f->proven = version;
    if (!f->is_writing)
        write_active(s, f);
}

/* ---- starts and crashes ---- */

void store_tell_core(struct sim *s)
{
    for (uint64_t id = 1; id <= s->function_count; id++) {
        const struct record *r = &s->functions[id].stored;
        if (r->exists && r->has_active)
            tell_version(s, r, &r->active, r->active_version, false);
        if (r->exists)
            tell_version(s, r, &r->latest, r->active_version,
                         r->active_version != r->latest.version);
    }
}

/* A write that nobody saw the end of may have come through. */
void store_interrupted(struct sim *s)
{
    for (uint64_t id = 1; id <= s->function_count; id++) {
        struct function *f = &s->functions[id];
        if (f->is_writing && (sim_chance(s, 2) || !f->next.exists || !f->stored.exists))
            f->stored = f->next;
        f->is_writing = f->is_active_unsaved = false;
        f->active_due = f->proven = 0;
    }
}
