/* planes.c - simulated data planes: they route nothing, but say and answer what the real one does
 * (src/data_plane/router.c): demand at once when the first request waits, drained when nothing is
 * in flight, `synced` when a message is in force. Which sandboxes are known is kept for the
 * functions that are called here only. */
#include "base/log.h"
#include "simulate/sim.h"
#include <stdio.h>
#include <stdlib.h>

struct sim_plane {
    struct sim *sim;
    struct replicas *replicas;
    struct link *link; /* to the control plane that leads; NULL: none does */
    bool welcome;
    size_t number;
    char name[48], address[48];
    uint64_t sequence, taken, synced;
    struct map known; /* sandbox → struct sim_function of ours that it serves */
    struct map named; /* by a snapshot, as far as it has come */
    bool in_snapshot;
    struct loop_deferred flush;
    Dirigent__Demand *demands; /* due at the end of this turn */
    size_t demand_count, demand_capacity;
    Dirigent__Demand **pointers; /* as protobuf-c wants them; capacity as demands */
    uint64_t *drained;
    size_t drained_count, drained_capacity;
};

static struct sim_function *own_function(struct sim_plane *p, uint64_t function_id)
{
    struct sim_function *f = load_find(p->sim, function_id);
    return f != NULL && f->plane == p ? f : NULL;
}

/* ---- what is said ---- */

static void on_flush(struct loop_deferred *d)
{
    struct sim_plane *p = container_of(d, struct sim_plane, flush);
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    if (p->link != NULL && p->welcome && p->demand_count + p->drained_count + p->synced > 0) {
        for (size_t i = 0; i < p->demand_count; i++)
            p->pointers[i] = &p->demands[i];
        m.sequence = ++p->sequence;
        m.n_demands = p->demand_count;
        m.demands = p->pointers;
        m.n_drained = p->drained_count;
        m.drained = p->drained;
        m.taken = p->taken;
        m.synced = p->synced;
        link_send(p->link, &m.base);
    }
    p->demand_count = p->drained_count = 0; /* while it is away: told anew when it is back */
    p->synced = 0;
}

static void flush_later(struct sim_plane *p)
{
    loop_defer(p->sim->loop, &p->flush);
}

void sim_plane_demand(struct sim_plane *p, struct sim_function *f)
{
    if (p->demand_count == p->demand_capacity) {
        p->demand_capacity = MAX(p->demand_capacity * 2, (size_t)64);
        p->demands = mem_resize(p->demands, p->demand_capacity, sizeof(*p->demands));
        p->pointers =
            mem_resize(p->pointers, p->demand_capacity, sizeof(struct Dirigent__Demand *));
    }
    Dirigent__Demand *m = &p->demands[p->demand_count++];
    *m = (Dirigent__Demand)DIRIGENT__DEMAND__INIT;
    m->function_id = f->id;
    m->waiting = f->state == FUNCTION_WAITING;
    m->in_flight = f->state == FUNCTION_HELD;
    m->requests_total = 1;
    flush_later(p);
}

void sim_plane_drained(struct sim_plane *p, uint64_t sandbox_id)
{
    if (p->drained_count == p->drained_capacity) {
        p->drained_capacity = MAX(p->drained_capacity * 2, (size_t)64);
        p->drained = mem_resize(p->drained, p->drained_capacity, sizeof(*p->drained));
    }
    p->drained[p->drained_count++] = sandbox_id;
    flush_later(p);
}

/* ---- what is heard ---- */

static void forget(struct sim_plane *p, uint64_t sandbox_id)
{
    struct sim_function *f = map_remove(&p->known, sandbox_id);
    if (f != NULL)
        load_endpoint_gone(p->sim, f, sandbox_id);
}

/* What a snapshot names is all there is. */
static void forget_others(struct sim_plane *p)
{
    uint64_t *gone = mem_new_array(p->known.count + 1, sizeof(*gone));
    size_t count = 0;
    for (size_t i = 0; i < p->known.capacity; i++)
        if (p->known.entries[i].value != NULL && map_get(&p->named, p->known.entries[i].key) == NULL)
            gone[count++] = p->known.entries[i].key;
    for (size_t i = 0; i < count; i++)
        forget(p, gone[i]);
    free(gone);
    map_done(&p->named);
    p->in_snapshot = false;
}

static void take_endpoint(struct sim_plane *p, const Dirigent__Endpoint *m)
{
    struct sim_function *f = own_function(p, m->function_id);
    if (f == NULL)
        return;
    if (map_get(&p->known, m->sandbox_id) == NULL) {
        map_put(&p->known, m->sandbox_id, f);
        f->endpoints++;
    }
    load_published(p->sim, f, m->sandbox_id);
}

/* Answered at once, or when the call that holds it ends. */
static void take_drain(struct sim_plane *p, uint64_t sandbox_id)
{
    struct sim_function *f = map_get(&p->known, sandbox_id);
    if (f != NULL && f->state == FUNCTION_HELD && f->held_sandbox == sandbox_id)
        f->drain_owed = true;
    else
        sim_plane_drained(p, sandbox_id);
}

/* A control plane that was away knows nothing of who waits here. */
static void tell_everything(struct sim_plane *p)
{
    struct sim *s = p->sim;
    for (size_t i = 0; i < s->settings.functions; i++) {
        struct sim_function *f = &s->load.functions[i];
        if (f->plane == p && (f->state == FUNCTION_WAITING || f->state == FUNCTION_HELD))
            sim_plane_demand(p, f);
    }
}

static void take_orders(struct sim_plane *p, const Dirigent__FromControlPlane *m)
{
    for (size_t i = 0; i < m->n_routes; i++)
        load_know(p->sim, m->routes[i]->function_id, m->routes[i]->name);
    if (m->snapshot)
        map_done(&p->named);
    p->in_snapshot |= m->snapshot;
    bool ends = p->in_snapshot && !m->snapshot_more;
    for (size_t i = 0; i < m->n_endpoints; i++) {
        take_endpoint(p, m->endpoints[i]);
        if (p->in_snapshot)
            map_put(&p->named, m->endpoints[i]->sandbox_id, p);
    }
    if (ends)
        forget_others(p);
    for (size_t i = 0; i < m->n_drain_sandboxes; i++)
        take_drain(p, m->drain_sandboxes[i]);
    for (size_t i = 0; i < m->n_remove_sandboxes; i++)
        forget(p, m->remove_sandboxes[i]);
    for (size_t i = 0; i < m->n_fail_waiting; i++) {
        struct sim_function *f = own_function(p, m->fail_waiting[i]->function_id);
        if (f != NULL)
            load_failed(p->sim, f);
    }
    for (size_t i = 0; i < m->n_want_demand; i++) {
        struct sim_function *f = own_function(p, m->want_demand[i]);
        if (f != NULL)
            sim_plane_demand(p, f);
    }
    if (ends)
        tell_everything(p);
    if (m->sync != 0) {
        p->synced = m->sync;
        flush_later(p);
    }
}

static void take_welcome(struct sim_plane *p, const Dirigent__Welcome *w)
{
    struct sim *s = p->sim;
    if (w->refused[0] != '\0') {
        snprintf(s->last_failure, sizeof(s->last_failure), "it refuses a data plane: %s",
                 w->refused);
        return; /* it closes */
    }
    p->welcome = true;
    s->planes_up++;
    link_set_timers(p->link, w->heartbeat_ms, w->dead_after_ms);
    sim_progress(s);
}

static void on_message(void *user, struct link *link, const Dirigent__FromControlPlane *m)
{
    struct sim_plane *p = user;
    if (p->drained_count > 0)
        on_flush(&p->flush); /* it is no answer to what comes now */
    p->taken = m->sequence;
    if (m->welcome != NULL)
        take_welcome(p, m->welcome);
    if (p->welcome)
        take_orders(p, m);
}

/* ---- the connection ---- */

static void on_lost(void *user, const char *why)
{
    struct sim_plane *p = user;
    struct sim *s = p->sim;
    p->link = NULL;
    if (!p->welcome)
        return; /* refused: the reason is known */
    p->welcome = p->in_snapshot = false;
    s->planes_up--;
    s->load.counts.plane_losses++;
    snprintf(s->last_failure, sizeof(s->last_failure), "a data plane's connection was lost: %s",
             why);
    log_info("data_plane.lost", LOG_U64("number", p->number), LOG_STR("why", why));
}

static void on_failed(void *user, const char *address, const char *why)
{
    struct sim_plane *p = user;
    snprintf(p->sim->last_failure, sizeof(p->sim->last_failure), "%s: %s", address, why);
}

static void on_name(void *user, Dirigent__Hello *hello)
{
    struct sim_plane *p = user;
    hello->cluster = p->sim->settings.cluster_name;
    hello->role = DIRIGENT__ROLE__ROLE_DATA_PLANE;
    hello->name = p->name;
    hello->software = (char *)"dirigent simulate " DIRIGENT_VERSION;
    hello->listen_address = p->address;
}

static void on_hello(void *user, struct link *link)
{
    struct sim_plane *p = user;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    uint64_t *known = mem_new_array(p->known.count + 1, sizeof(*known));
    for (size_t i = 0; i < p->known.capacity; i++)
        if (p->known.entries[i].value != NULL)
            known[hello.n_known_sandbox_ids++] = p->known.entries[i].key;
    p->link = link;
    p->sequence = 1;
    p->taken = 0;
    hello.protocol_min = protocol_version_min();
    hello.protocol_max = protocol_version_max();
    on_name(p, &hello);
    hello.known_sandbox_ids = known;
    m.hello = &hello;
    m.sequence = p->sequence;
    link_send(link, &m.base);
    free(known);
}

/* ---- life ---- */

void planes_init(struct sim *s)
{
    s->planes = mem_new_array(s->settings.data_planes, sizeof(*s->planes));
    for (size_t i = 0; i < s->settings.data_planes; i++) {
        s->planes[i].sim = s;
        s->planes[i].number = i;
        snprintf(s->planes[i].name, sizeof(s->planes[i].name), PLANE_NAME "%zu", i);
        snprintf(s->planes[i].address, sizeof(s->planes[i].address), "10.254.0.%zu:8080", i + 1);
        s->planes[i].flush.on_turn_end = on_flush;
    }
}

struct sim_plane *planes_of(struct sim *s, size_t function_index)
{
    return &s->planes[function_index % s->settings.data_planes];
}

enum err planes_dial(struct sim *s, struct error *e)
{
    const struct replicas_callbacks callbacks = {.on_hello = on_hello,
                                                 .on_name = on_name,
                                                 .on_message = on_message,
                                                 .on_lost = on_lost,
                                                 .on_failed = on_failed,
                                                 .allocator = &s->allocator};
    for (size_t i = 0; i < s->settings.data_planes; i++) {
        struct sim_plane *p = &s->planes[i];
        enum err err =
            replicas_new(s->loop, s->settings.cluster, NULL, &callbacks, p, &p->replicas, e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

void planes_goodbye(struct sim *s)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    m.goodbye = true;
    for (size_t i = 0; i < s->settings.data_planes; i++)
        if (s->planes[i].welcome)
            link_send(s->planes[i].link, &m.base);
}

void planes_free(struct sim *s)
{
    for (size_t i = 0; s->planes != NULL && i < s->settings.data_planes; i++) {
        struct sim_plane *p = &s->planes[i];
        replicas_free(p->replicas);
        loop_defer_cancel(&p->flush);
        map_done(&p->known);
        map_done(&p->named);
        free(p->demands);
        free(p->pointers);
        free(p->drained);
    }
    free(s->planes);
}
