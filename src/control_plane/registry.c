/* registry.c - changes of functions: one at a time per name, each stored before it is true. */
#include "control_plane/registry.h"
#include "base/crash_point.h"
#include "base/hash.h"
#include "base/log.h"
#include "control_plane/blobs.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


struct registry {
    struct control_plane *cp;
    struct strmap by_name; /* struct function */
    struct map by_id;
    struct strmap queues; /* name → struct queue: changes that wait, the first for the disk */
};
struct queue {
    struct list changes;
};

struct registry *registry_new(struct control_plane *cp)
{
    struct registry *r = mem_new(sizeof(*r));
    r->cp = cp;
    return r;
}

static void failure_done(struct failure *failure)
{
    free(failure->message);
    free(failure->last_output);
    *failure = (struct failure){0};
}

void function_note_failure(struct function *f, const struct control_order *order)
{
    struct str output = order->last_output;
    failure_done(&f->failure);
    f->failure.version = order->version;
    snprintf(f->failure.code, sizeof(f->failure.code), "%s",
             order->code != NULL ? order->code : "failed");
    f->failure.message = mem_strdup(order->message != NULL ? order->message : "");
    f->failure.last_output = mem_strndup(output.data != NULL ? output.data : "", output.bytes);
    f->failure.last_output_bytes = output.bytes;
}

static void function_free(struct function *f)
{
    failure_done(&f->failure);
    function_record_done(&f->record);
    free(f);
}

void registry_free(struct registry *r)
{
    if (r == NULL)
        return;
    size_t cursor = 0;
    struct function *f;
    while ((f = map_next(&r->by_id, &cursor)) != NULL)
        function_free(f);
    assert(r->queues.count == 0); /* the store has told the end of every change */
    map_done(&r->by_id);
    strmap_done(&r->by_name);
    strmap_done(&r->queues);
    free(r);
}

struct function *registry_find(const struct registry *r, struct str name)
{
    return strmap_get(&r->by_name, name);
}

struct function *registry_get(const struct registry *r, uint64_t function_id)
{
    return map_get(&r->by_id, function_id);
}

bool registry_is_busy(const struct registry *r)
{
    return r->queues.count > 0;
}

size_t registry_count(const struct registry *r)
{
    return r->by_id.count;
}

struct function *registry_next(const struct registry *r, size_t *cursor)
{
    return map_next(&r->by_id, cursor);
}

const struct function_spec *registry_version(const struct function *f, uint32_t version)
{
    if (version == f->record.latest_version)
        return &f->record.latest;
    return f->record.has_active && version == f->record.active_version ? &f->record.active : NULL;
}

bool registry_uses_code(const struct registry *r, const char *digest)
{
    size_t cursor = 0;
    struct function *f;
    while ((f = map_next(&r->by_id, &cursor)) != NULL)
        if (strcmp(f->record.latest.code_digest, digest) == 0 ||
            (f->record.has_active && strcmp(f->record.active.code_digest, digest) == 0))
            return true;
    return false;
}

static struct function *function_add(struct registry *r, struct function_record *record)
{
    struct function *f = mem_new(sizeof(*f));
    f->record = *record;
    *record = (struct function_record){0}; /* taken */
    map_put(&r->by_id, f->record.id, f);
    strmap_put(&r->by_name, str_of(f->record.latest.name), f);
    return f;
}

static void function_remove(struct registry *r, struct function *f)
{
    map_remove(&r->by_id, f->record.id);
    strmap_remove(&r->by_name, str_of(f->record.latest.name));
    function_free(f);
}

void registry_drop(struct registry *r, uint64_t function_id)
{
    struct function *f = map_get(&r->by_id, function_id);
    if (f != NULL)
        function_remove(r, f);
}

void registry_load(struct registry *r, struct function_record *record)
{
    struct function *same_name = strmap_get(&r->by_name, str_of(record->latest.name));
    if (same_name != NULL && same_name->record.id != record->id)
        function_remove(r, same_name); /* it was deleted, which we have not been told yet */
    registry_drop(r, record->id);
    function_add(r, record);
}

/* ---- telling the core ---- */

/* `active_version`: 0 when the core knows it better. */
static void tell_version(struct registry *r, const struct function_record *record, uint32_t version,
                         uint32_t active_version, bool prove)
{
    struct control_event event = {.kind = EVENT_FUNCTION_PUT};
    event.function_put.function_id = record->id;
    event.function_put.version = version;
    event.function_put.active_version = active_version;
    event.function_put.probe = prove;
    event.function_put.spec = version == record->latest_version ? &record->latest : &record->active;
    shell_step(r->cp, &event);
}

/* After a start the version that serves comes first; one that was on trial is tried again. */
void registry_tell_core(struct registry *r)
{
    size_t cursor = 0;
    struct function *f;
    while ((f = map_next(&r->by_id, &cursor)) != NULL) {
        const struct function_record *record = &f->record;
        uint32_t active = record->active_version;
        if (record->has_active)
            tell_version(r, record, active, active, false);
        tell_version(r, record, record->latest_version, active, record->latest_version != active);
    }
}

static void tell_deleted(struct registry *r, uint64_t function_id)
{
    struct control_event event = {.kind = EVENT_FUNCTION_DELETE};
    event.function_delete.function_id = function_id;
    shell_step(r->cp, &event);
}

/* ---- what a change makes of a record ---- */

/* The spec after the change, on top of what is there (`f` may be NULL). */
static enum err build_spec(const struct change *c, const struct function *f,
                           struct function_spec *ret, struct error *e)
{
    enum err err = ERR_OK;
    bool whole = c->kind == CHANGE_PUT || c->kind == CHANGE_CREATE;
    if (whole || f == NULL)
        function_spec_init(ret);
    else
        function_spec_copy(&f->record.latest, ret);
    if (!whole && f == NULL)
        return error_set(e, ERR_NOT_FOUND, "there is no function '%s'", c->name);
    if (whole && f != NULL && json_object_get(c->json, "code") == NULL)
        memcpy(ret->code_digest, f->record.latest.code_digest, sizeof(ret->code_digest));
    if (whole)
        err = function_spec_from_json(c->json, ret, e);
    else if (c->kind == CHANGE_PATCH)
        err = function_spec_patch(ret, c->json, e);
    else
        memcpy(ret->code_digest, c->digest, sizeof(c->digest));
    if (err != ERR_OK)
        return err;
    if (ret->name[0] != '\0' && strcmp(ret->name, c->name) != 0)
        return error_field(e, ERR_INVALID, "name", "the name '%s' is not the '%s' of the path",
                           ret->name, c->name);
    memcpy(ret->name, c->name, sizeof(ret->name));
    return function_spec_check(ret, e);
}

static enum err check_code(const struct registry *r, const struct function_spec *spec,
                           struct error *e)
{
    if (spec->code_digest[0] == '\0' || blobs_touch(r->cp->blobs, spec->code_digest))
        return ERR_OK;
    return error_field(e, ERR_NOT_FOUND, "code",
                       "there is no code %s here: upload it first (unused code is kept for a while "
                       "only)",
                       spec->code_digest);
}

/* A version that failed or never ran is tried again when somebody deploys the same once more and
 * waits. */
static bool wants_retry(const struct change *c, const struct function *f)
{
    struct function_view view;
    if (!c->prove || !control_function(c->registry->cp->core, f->record.id, &view))
        return false;
    return view.latest_state == VERSION_FAILED ||
           (view.latest_state == VERSION_PENDING && view.ready == 0);
}

/* The record's next state in c->next, or c->outcome is UNCHANGED. Takes `spec`. */
static enum err plan_update(struct change *c, const struct function *f, struct function_spec *spec,
                            struct error *e)
{
    const struct function_record *old = &f->record;
    bool equal = function_spec_equal(&old->latest, spec);
    bool retry = equal && wants_retry(c, f);
    if (equal && !retry) {
        function_spec_done(spec);
        c->outcome = CHANGE_UNCHANGED;
        return ERR_OK;
    }
    bool new_version = retry || function_spec_needs_new_version(&old->latest, spec);
    uint32_t used = MAX(old->latest_version, old->versions_used);
    if (new_version && used >= FUNCTION_VERSION_MAX) {
        function_spec_done(spec);
        return error_set(e, ERR_TOO_LARGE, "the function '%s' has had %u versions: delete it first",
                         c->name, FUNCTION_VERSION_MAX);
    }
    c->outcome = CHANGE_UPDATED;
    c->next = *old;
    c->next.updated_at_ms = clock_real_ms();
    c->next.latest = *spec; /* taken */
    c->next.has_active = old->has_active;
    if (old->has_active) {
        function_spec_copy(&old->active, &c->next.active);
    } else if (new_version && old->active_version == old->latest_version) {
        c->next.has_active = true; /* what was newest serves on */
        function_spec_copy(&old->latest, &c->next.active);
    }
    if (new_version)
        c->next.latest_version = used + 1;
    if (c->next.active_version == 0 && !c->prove)
        c->next.active_version = c->next.latest_version; /* nothing to protect: taken as it is */
    return ERR_OK;
}

static enum err plan_put(struct change *c, struct function *f, struct error *e)
{
    struct function_spec spec;
    enum err err = build_spec(c, f, &spec, e);
    if (err == ERR_OK)
        err = check_code(c->registry, &spec, e);
    if (err == ERR_OK && f == NULL && c->registry->by_id.count >= FUNCTION_COUNT_MAX)
        err = error_set(e, ERR_BUSY, "there are %u functions, more are not taken",
                        FUNCTION_COUNT_MAX);
    if (err == ERR_OK && c->kind == CHANGE_CREATE && f != NULL &&
        !function_spec_equal(&f->record.latest, &spec))
        err = error_set(e, ERR_CONFLICT, "another function is registered as '%s'", c->name);
    if (err != ERR_OK) {
        function_spec_done(&spec);
        return err;
    }
    if (f != NULL)
        return plan_update(c, f, &spec, e);
    c->outcome = CHANGE_CREATED;
    c->next = (struct function_record){.id = c->registry->cp->next_id++,
                                       .latest_version = 1,
                                       .active_version = c->prove ? 0 : 1,
                                       .latest = spec, /* taken */
                                       .created_at_ms = clock_real_ms()};
    c->next.updated_at_ms = c->next.created_at_ms;
    return ERR_OK;
}

static enum err plan_active(struct change *c, const struct function *f, struct error *e)
{
    c->outcome = CHANGE_UNCHANGED;
    bool stale = f == NULL || f->record.id != c->function_id ||
                 (f->record.active_version >= c->version && !f->is_active_unsaved) ||
                 registry_version(f, c->version) == NULL;
    if (stale) /* deleted or changed again in the meantime: what came later is right */
        return ERR_OK;
    c->outcome = CHANGE_UPDATED;
    function_record_copy(&f->record, &c->next);
    if (c->version != f->record.latest_version)
        return ERR_OK; /* a newer one came meanwhile: the record says so already */
    c->next.active_version = c->version;
    if (c->next.has_active) /* the old one goes */
        function_spec_done(&c->next.active);
    c->next.has_active = false;
    return ERR_OK;
}

static enum err plan_delete(struct change *c, const struct function *f, struct error *e)
{
    if (f == NULL)
        return error_set(e, ERR_NOT_FOUND, "there is no function '%s'", c->name);
    c->outcome = CHANGE_DELETED;
    c->function_id = f->record.id;
    return ERR_OK;
}

static enum err plan(struct change *c, struct function *f, struct error *e)
{
    switch (c->kind) {
    case CHANGE_PUT:
    case CHANGE_CREATE:
    case CHANGE_PATCH:
    case CHANGE_CODE:
        return plan_put(c, f, e);
    case CHANGE_DELETE:
        return plan_delete(c, f, e);
    case CHANGE_ACTIVE:
        return plan_active(c, f, e);
    }
    assert(false);
}

/* ---- carrying out ---- */

/* Ends the change that is first in its queue. */
static void finish(struct change *c, enum err err, const struct error *e)
{
    free(c->write.value);
    function_record_done(&c->next);
    list_remove(&c->node);
    c->on_done(c, err, e);
}

/* While `next` was on its way to the disk, the core found the newest version before it good: that
 * one serves beside `next`, not the one before. CHANGE_ACTIVE waits in the queue and stores it. */
static void keep_proven(struct function *f, struct function_record *next)
{
    uint32_t proven = f->proven;
    if (proven != f->record.latest_version || next->latest_version == proven ||
        next->active_version >= proven)
        return;
    if (next->has_active)
        function_spec_done(&next->active);
    function_spec_copy(&f->record.latest, &next->active);
    next->has_active = true;
    next->active_version = proven;
    f->is_active_unsaved = true;
}

/* What is stored becomes true. */
static void apply(struct change *c)
{
    struct registry *r = c->registry;
    struct function *f = strmap_get(&r->by_name, str_of(c->name));
    if (c->kind == CHANGE_DELETE) {
        function_remove(r, f);
        tell_deleted(r, c->function_id);
        return;
    }
    bool new_version = f == NULL || f->record.latest_version != c->next.latest_version;
    if (f == NULL) {
        f = function_add(r, &c->next);
    } else {
        f->is_active_unsaved = false;
        keep_proven(f, &c->next);
        function_record_done(&f->record);
        f->record = c->next;
        c->next = (struct function_record){0}; /* taken */
    }
    c->function_id = f->record.id;
    c->new_version = f->record.latest_version;
    if (c->kind != CHANGE_ACTIVE) /* the core said that itself */
        tell_version(r, &f->record, f->record.latest_version, 0,
                     new_version && (c->prove || f->record.has_active));
}

static void run_queue(struct registry *r, const char *name);

static void on_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct change *c = container_of(write, struct change, write);
    struct registry *r = c->registry;
    char name[sizeof(c->name)];
    CRASH_POINT("control_plane.stored");
    memcpy(name, c->name, sizeof(name)); /* the change may go in finish() */
    if (err == ERR_OK)
        apply(c);
    finish(c, err, e);
    run_queue(r, name);
}

static void store(struct change *c)
{
    bool delete = c->kind == CHANGE_DELETE;
    c->write = (struct store_write){
        .kind = STORE_FUNCTION,
        .id = delete ? c->function_id : c->next.id,
        .value = delete ? NULL : function_record_write(&c->next),
        .next_id = c->registry->cp->next_id,
        .on_done = on_stored,
    };
    store_submit(c->registry->cp->store, &c->write);
}

/* False: it waits for the disk now. */
static bool run(struct change *c)
{
    struct error e = {0};
    struct function *f = strmap_get(&c->registry->by_name, str_of(c->name));
    enum err err = plan(c, f, &e);
    if (err == ERR_OK && c->outcome != CHANGE_UNCHANGED) {
        store(c);
        return false;
    }
    if (err == ERR_OK && f != NULL) {
        c->function_id = f->record.id;
        c->new_version = f->record.latest_version;
    }
    finish(c, err, &e);
    return true;
}

/* Runs the changes of a name until one waits for the disk or none is left. */
static void run_queue(struct registry *r, const char *name)
{
    struct queue *q = strmap_get(&r->queues, str_of(name));
    while (!list_is_empty(&q->changes))
        if (!run(list_entry(list_first(&q->changes), struct change, node)))
            return;
    strmap_remove(&r->queues, str_of(name));
    free(q);
}

void registry_change(struct registry *r, struct change *c)
{
    struct queue *q = strmap_get(&r->queues, str_of(c->name));
    struct function *f = map_get(&r->by_id, c->function_id);
    if (c->kind == CHANGE_ACTIVE && f != NULL)
        f->proven = c->version;
    c->registry = r;
    c->next = (struct function_record){0};
    c->write = (struct store_write){0};
    if (q != NULL) { /* whoever works on it comes to this one */
        list_push_back(&q->changes, &c->node);
        return;
    }
    char name[sizeof(c->name)];
    memcpy(name, c->name, sizeof(name));
    q = mem_new(sizeof(*q));
    list_init(&q->changes);
    strmap_put(&r->queues, str_of(name), q);
    list_push_back(&q->changes, &c->node);
    run_queue(r, name);
}
