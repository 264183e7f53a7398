/* workers.c - workers: who is there, with how much room and which code; suspicion and death. */
#include "control_plane/core_state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- code ---- */

struct code *code_take(struct control *c, const char *digest)
{
    if (digest[0] == '\0')
        return NULL;
    struct code *code = strmap_get(&c->codes, str_of(digest));
    if (code == NULL) {
        code = mem_new(sizeof(*code));
        (void)snprintf(code->digest, sizeof(code->digest), "%s", digest);
        strmap_put(&c->codes, str_of(code->digest), code);
    }
    code->refs++;
    return code;
}

void code_drop(struct control *c, struct code *code)
{
    if (code == NULL || --code->refs > 0)
        return;
    (void)strmap_remove(&c->codes, str_of(code->digest));
    map_done(&code->places);
    free(code->workers);
    free(code);
}

bool code_has_worker(const struct code *code, const struct core_worker *w)
{
    return map_get(&code->places, w->id) != NULL;
}

/* Takes a reference of the worker's. */
void code_add_worker(struct code *code, struct core_worker *w)
{
    if (code_has_worker(code, w))
        return;
    if (code->count == code->capacity) {
        code->capacity = MAX(code->capacity * 2, (size_t)4);
        code->workers = mem_resize(code->workers, code->capacity, sizeof(struct core_worker *));
    }
    code->workers[code->count++] = w;
    map_put(&code->places, w->id, (void *)(uintptr_t)code->count);
    if (w->code_count == w->code_capacity) {
        w->code_capacity = MAX(w->code_capacity * 2, (size_t)4);
        w->codes = mem_resize(w->codes, w->code_capacity, sizeof(struct code *));
    }
    w->codes[w->code_count++] = code;
    code->refs++;
}

static void code_remove_worker(struct code *code, const struct core_worker *w)
{
    size_t hole = (size_t)(uintptr_t)map_remove(&code->places, w->id) - 1;
    struct core_worker *last = code->workers[--code->count];
    if (last == w)
        return;
    code->workers[hole] = last;
    map_put(&code->places, last->id, (void *)(uintptr_t)(hole + 1));
}

static void codes_forget(struct control *c, struct core_worker *w)
{
    for (size_t i = 0; i < w->code_count; i++) {
        code_remove_worker(w->codes[i], w);
        code_drop(c, w->codes[i]);
    }
    w->code_count = 0;
}

/* ---- workers ---- */

static struct core_worker *worker_get(struct control *c, uint64_t id, const char *name)
{
    struct core_worker *w = map_get(&c->workers, id);
    if (w != NULL)
        return w;
    w = mem_new(sizeof(*w));
    w->id = id;
    w->name = mem_strdup(name != NULL ? name : "");
    w->room.place = UINT32_MAX;
    w->state = WORKER_DEAD;
    list_init(&w->sandboxes);
    w->due = (struct due){.heap_index = SIZE_MAX, .kind = DUE_WORKER};
    map_put(&c->workers, id, w);
    return w;
}

void worker_free(struct control *c, struct core_worker *w)
{
    codes_forget(c, w);
    free(w->codes);
    free(w->name);
    free(w);
}

static void schedulable_update(struct control *c, struct core_worker *w)
{
    bool should = w->state == WORKER_ALIVE && w->use == WORKER_USE_ALL;
    if (should && !placement_has(&w->room)) {
        placement_add(c->placement, &w->room);
        c->room_came = true;
    } else if (!should) {
        placement_remove(c->placement, &w->room);
    }
}

/* Whoever waits for room of a worker that may come back must be told when it does not. */
static void hungry_touch(struct control *c)
{
    list_for_each(f, &c->hungry, struct core_function, hungry)
    {
        function_touch(c, f);
    }
}

static void state_set(struct control *c, struct core_worker *w, int state)
{
    bool was_awaited = w->state == WORKER_AWAITED, was_suspected = w->state == WORKER_SUSPECTED;
    c->awaited_workers += (state == WORKER_AWAITED) - was_awaited;
    c->suspected_workers += (state == WORKER_SUSPECTED) - was_suspected;
    w->state = state;
    schedulable_update(c, w);
    if (was_awaited)
        c->awaited_less = true;
    if (was_awaited || was_suspected)
        hungry_touch(c);
}

void worker_known(struct control *c, const struct control_event *e)
{
    struct core_worker *w = worker_get(c, e->worker.worker_id, e->worker.name);
    if (w->state == WORKER_DEAD)
        state_set(c, w, WORKER_AWAITED);
}

static void describe(struct control *c, struct core_worker *w, const struct control_event *e)
{
    if (e->worker.name != NULL && strcmp(w->name, e->worker.name) != 0) {
        free(w->name);
        w->name = mem_strdup(e->worker.name);
    }
    w->room.cpu_milli = e->worker.cpu_milli;
    w->room.memory_bytes = e->worker.memory_bytes;
    w->room.slots = e->worker.slots;
    codes_forget(c, w);
    for (size_t i = 0; i < e->worker.code_digest_count; i++) {
        struct code *code = code_take(c, e->worker.code_digests[i]);
        if (code == NULL)
            continue;
        code_add_worker(code, w);
        code_drop(c, code);
    }
}

/* Both directions: what it has and we do not know is adopted or stopped; what we know and it has
 * not is gone; what we told it and it did not hear is told again. */
static void compare_sandboxes(struct control *c, struct core_worker *w,
                              const struct control_event *e)
{
    static const struct sandbox_report lost = {.reason = GONE_WORKER_LOST, .state = SANDBOX_GONE};
    for (size_t i = 0; i < e->worker.sandbox_count; i++)
        sandbox_report_take(c, w, &e->worker.sandboxes[i]);
    list_for_each(s, &w->sandboxes, struct core_sandbox, of_worker)
    {
        if (s->seen_step != c->steps)
            sandbox_gone(c, s, &lost);
        else if (s->state == SANDBOX_STOPPING)
            sandbox_stop_tell(c, s);
        else
            sandbox_doubt(s, false);
    }
}

void worker_up(struct control *c, const struct control_event *e)
{
    struct core_worker *w = worker_get(c, e->worker.worker_id, e->worker.name);
    placement_remove(c->placement, &w->room);
    describe(c, w, e);
    w->heard_ms = c->now_ms;
    due_at(c, &w->due, UINT64_MAX);
    if (w->state == WORKER_ALIVE)
        schedulable_update(c, w);
    else
        state_set(c, w, WORKER_ALIVE);
    compare_sandboxes(c, w, e);
}

void worker_end(struct control *c, struct core_worker *w)
{
    static const struct sandbox_report lost = {.reason = GONE_WORKER_LOST, .state = SANDBOX_GONE};
    due_at(c, &w->due, UINT64_MAX);
    if (w->state != WORKER_DEAD)
        state_set(c, w, WORKER_DEAD);
    list_for_each(s, &w->sandboxes, struct core_sandbox, of_worker)
    {
        sandbox_gone(c, s, &lost);
    }
}

void worker_closed(struct control *c, uint64_t worker_id, bool silent)
{
    struct core_worker *w = map_get(&c->workers, worker_id);
    if (w == NULL || w->state != WORKER_ALIVE)
        return;
    if (silent || c->options.reconnect_grace_ms == 0) {
        worker_end(c, w); /* no daemon that restarts */
        return;
    }
    state_set(c, w, WORKER_SUSPECTED);
    due_at(c, &w->due, c->now_ms + c->options.reconnect_grace_ms);
    list_for_each(s, &w->sandboxes, struct core_sandbox, of_worker)
    {
        if (s->state == SANDBOX_STARTING)
            sandbox_doubt(s, true); /* somebody waits for it: elsewhere another is started */
    }
    list_for_each(s, &w->sandboxes, struct core_sandbox, of_worker)
    {
        function_touch(c, s->function);
    }
}

void worker_use(struct control *c, uint64_t worker_id, enum worker_use use)
{
    struct core_worker *w = map_get(&c->workers, worker_id);
    if (w == NULL || w->use == use)
        return;
    w->use = use;
    schedulable_update(c, w);
    list_for_each(s, &w->sandboxes, struct core_sandbox, of_worker)
    {
        sandbox_leave(s, use == WORKER_USE_DRAINING);
        function_touch(c, s->function);
    }
}

void worker_removed(struct control *c, uint64_t worker_id)
{
    struct core_worker *w = map_get(&c->workers, worker_id);
    if (w == NULL)
        return;
    worker_end(c, w);
    placement_remove(c->placement, &w->room);
    (void)map_remove(&c->workers, worker_id);
    worker_free(c, w);
}
