/* links.c - peers of the cluster protocol. Sections: known peers, the handshake, what peers say,
 * what they are told, code for workers, views. */
#include "control_plane/links.h"
#include "base/crash_point.h"
#include "base/hash.h"
#include "base/log.h"
#include "control_plane/blobs.h"
#include "control_plane/hello.h"
#include "control_plane/joining.h"
#include "control_plane/log_requests.h"
#include "control_plane/members.h"
#include "control_plane/outbox.h"
#include "control_plane/registry.h"
#include "control_plane/trust.h"
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HELLO_TIMEOUT_MS 5000u
#define PENDING_BYTES_MAX ((size_t)MIB) /* bulk to a peer waits above it */
#define SNAPSHOT_PART_COUNT 50000u      /* routes and endpoints in one frame */
#define HELLO_BYTES_MAX (4u << 20)      /* of who has said nothing yet */
#define FRAMES_BEFORE_UP_BYTES_MAX (1u << 20)
#define HEARD_PERIOD_NS (200 * NS_PER_MS)

struct known { /* a registered peer, for ever */
    struct peer_record record;
    bool is_worker;
    struct peer *peer; /* its connection that is up, or NULL */
    bool changing;     /* by an operator: waits for the disk */
    uint64_t heard_ns; /* 0: never */
};
enum peer_state {
    PEER_NEW,
    PEER_STANDING, /* we do not lead; its name is known, no more */
    PEER_ASKED,    /* as new: its whole Hello was asked for */
    PEER_JOINING,  /* has no certificate, and waits for one */
    PEER_MEMBER,   /* another control plane: members.h has it */
    PEER_STORING,
    PEER_UP,
    PEER_CLOSING
};

struct placed { /* what the decision to start a sandbox took, for receipts */
    uint64_t sandbox_id;
    uint32_t place_us;
};
struct transfer { /* an archive on its way to a worker */
    struct list node;
    char digest[CODE_DIGEST_BYTES + 1];
    int fd; /* -1: not begun */
    uint64_t offset, total;
};
struct peer { /* one connection; freed when its link has closed and no write of it is open */
    struct links *links;
    struct list node, plane_node; /* plane_node: in `planes`, a data plane while it is up */
    struct link *link;            /* NULL: closed */
    enum peer_state state;
    bool is_worker, said_goodbye, is_silent;
    bool in_snapshot; /* orders are those of one */
    struct known *known; /* when up */
    char ip[64], software[64];
    Dirigent__ToControlPlane *first; /* with the Hello, until up */
    struct buf early;                /* frames that came before we were up: u32 length, bytes */
    struct store_write write;
    struct peer_record record; /* being stored */
    struct outbox outbox;
    struct loop_deferred flush;
    uint64_t sequence, heard_told_ns;
    uint64_t sync_asked, synced; /* data plane */
    struct map prepared;         /* worker: versions whose spec it has; key version_key() */
    struct map in_flight;        /* data plane: sandbox id → requests + 1 */
    struct map drains; /* data plane: sandbox id → number of the message that last told it to drain,
                          or gave it slots there */
    struct list transfers;
    struct loop_timer pump;
    struct worker_load load;      /* worker */
    struct join_attempt *joining; /* NULL: none, or answered */
};
struct links {
    struct control_plane *cp;
    struct loop_listener listener;
    char address[64];
    struct list peers;     /* struct peer: all connections */
    struct list planes;    /* struct peer: data planes that are up; workers are thousands, and these
                              are told everything */
    struct map known;      /* id → struct known */
    struct strmap by_name; /* "worker/NAME" or "data-plane/NAME" → struct known */
    struct map placed;     /* sandbox → struct placed */
    struct arena received; /* the message that is being taken: forgotten as a whole */
    struct loop_timer heard_timer;
    struct list syncs; /* struct links_sync */
    uint64_t last_sync;
    bool closing;
};

static uint64_t version_key(uint64_t function_id, uint32_t version)
{
    return function_id << 24 | version; /* registry.c bounds versions to 24 bits */
}

/* ---- known peers ---- */

static void known_key(bool is_worker, const char *name, char *ret_key, size_t bytes)
{
    snprintf(ret_key, bytes, "%s/%s", is_worker ? "worker" : "data-plane", name);
}

static struct known *known_find(const struct links *l, bool is_worker, const char *name)
{
    char key[PEER_NAME_BYTES_MAX + 16];
    known_key(is_worker, name, key, sizeof(key));
    return strmap_get(&l->by_name, str_of(key));
}

static struct known *known_add(struct links *l, bool is_worker, const struct peer_record *record)
{
    char key[PEER_NAME_BYTES_MAX + 16];
    struct known *k = mem_new(sizeof(*k));
    k->record = *record;
    k->is_worker = is_worker;
    known_key(is_worker, record->name, key, sizeof(key));
    map_put(&l->known, record->id, k);
    strmap_put(&l->by_name, str_of(key), k);
    return k;
}

void links_load(struct links *l, enum store_kind kind, const struct peer_record *record)
{
    struct known *k = map_get(&l->known, record->id);
    if (k == NULL)
        known_add(l, kind == STORE_WORKER, record);
    else
        k->record = *record; /* its name never changes */
}

static void known_remove(struct links *l, struct known *k);

void links_drop(struct links *l, uint64_t id)
{
    struct known *k = map_get(&l->known, id);
    if (k != NULL)
        known_remove(l, k);
}

static void tell_use(struct links *l, const struct peer_record *record)
{
    struct control_event event = {.kind = EVENT_WORKER_USE};
    event.worker_use.worker_id = record->id;
    event.worker_use.use = record->use;
    shell_step(l->cp, &event);
}

void links_tell_core(struct links *l)
{
    size_t cursor = 0;
    struct known *k;
    while ((k = map_next(&l->known, &cursor)) != NULL) {
        struct control_event event = {.kind = k->is_worker ? EVENT_WORKER_KNOWN
                                                           : EVENT_DATA_PLANE_KNOWN};
        if (k->is_worker) {
            event.worker.worker_id = k->record.id;
            event.worker.name = k->record.name;
        } else {
            event.data_plane.data_plane_id = k->record.id;
        }
        shell_step(l->cp, &event);
        if (k->record.use != WORKER_USE_ALL)
            tell_use(l, &k->record);
    }
}

/* The connection of a peer that is up, or NULL. */
static struct peer *peer_find(const struct links *l, uint64_t id, bool is_worker)
{
    const struct known *k = map_get(&l->known, id);
    return k != NULL && k->is_worker == is_worker ? k->peer : NULL;
}

/* ---- what is sent ---- */

static void on_flush(struct loop_deferred *d)
{
    struct peer *p = container_of(d, struct peer, flush);
    if (p->link != NULL && !outbox_is_empty(&p->outbox))
        outbox_send(&p->outbox, p->link, p->links->cp->epoch, ++p->sequence);
}

static void send_now(struct peer *p)
{
    on_flush(&p->flush);
}

/* Something was put into the outbox: it leaves at the end of this turn. */
static void send_later(struct peer *p)
{
    loop_defer(p->links->cp->loop, &p->flush);
}

/* ---- code for workers ---- */

static void transfer_end(struct transfer *t)
{
    fd_close(&t->fd);
    list_remove(&t->node);
    free(t);
}

static void send_chunk(struct peer *p, const struct transfer *t, const void *data, size_t bytes,
                       const char *error)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__BlobChunk chunk = DIRIGENT__BLOB_CHUNK__INIT, *chunks[] = {&chunk};
    chunk.digest = (char *)t->digest;
    chunk.offset = t->offset;
    chunk.total_bytes = t->total;
    chunk.data = (ProtobufCBinaryData){bytes, (uint8_t *)data};
    chunk.error = (char *)error;
    m.epoch = p->links->cp->epoch;
    m.sequence = ++p->sequence;
    m.n_blob_chunks = 1;
    m.blob_chunks = chunks;
    link_send(p->link, &m.base);
}

/* One chunk of the first transfer. */
static void transfer_step(struct peer *p, struct transfer *t)
{
    static_assert(BLOB_CHUNK_BYTES <= 512 * 1024, "a chunk is no burden for the stack's sake");
    struct error e = {0};
    if (t->fd < 0 && blobs_open(p->links->cp->blobs, t->digest, &t->fd, &t->total, &e) != ERR_OK) {
        send_chunk(p, t, NULL, 0, e.text);
        transfer_end(t);
        return;
    }
    cleanup(free_pointer) char *data = mem_new(BLOB_CHUNK_BYTES);
    ssize_t got = pread(t->fd, data, BLOB_CHUNK_BYTES, (off_t)t->offset);
    if (got <= 0 && t->total > 0) {
        error_set(&e, ERR_IO, "the code %s cannot be read: %s", t->digest,
                  got < 0 ? strerror(errno) : "it is shorter than it was");
        send_chunk(p, t, NULL, 0, e.text);
        transfer_end(t);
        return;
    }
    send_chunk(p, t, data, (size_t)got, "");
    t->offset += (uint64_t)got;
    if (t->offset >= t->total)
        transfer_end(t);
}

/* Sends code while the peer takes it; goes on in the next turn, or when what is pending has gone.
 */
static void pump_transfers(struct peer *p)
{
    if (p->link == NULL)
        return;
    while (!list_is_empty(&p->transfers) && link_pending_bytes(p->link) < PENDING_BYTES_MAX)
        transfer_step(p, list_entry(list_first(&p->transfers), struct transfer, node));
    if (!list_is_empty(&p->transfers))
        loop_timer_start(p->links->cp->loop, &p->pump, loop_now_ns(p->links->cp->loop) + NS_PER_MS);
}

static void on_pump(struct loop_timer *timer)
{
    struct peer *p = container_of(timer, struct peer, pump);
    if (p->link != NULL && link_pending_bytes(p->link) < PENDING_BYTES_MAX)
        pump_transfers(p);
}

static void on_link_drained(struct link *link, void *user)
{
    pump_transfers(user);
}

static void begin_transfer(struct peer *p, const char *digest)
{
    struct transfer *t = mem_new(sizeof(*t));
    t->fd = -1;
    snprintf(t->digest, sizeof(t->digest), "%s", digest);
    list_push_back(&p->transfers, &t->node);
    pump_transfers(p);
}

/* ---- orders ---- */

static Dirigent__Network wire_network(enum network_mode mode)
{
    return mode == NETWORK_MODE_NONE ? DIRIGENT__NETWORK__NETWORK_NONE
                                     : DIRIGENT__NETWORK__NETWORK_INTERNET;
}

static void prepare_env(struct arena *arena, Dirigent__VersionSpec *m,
                        const struct function_spec *spec)
{
    m->n_env = spec->env_count;
    m->env = arena_take(arena, spec->env_count * sizeof(*m->env));
    for (uint32_t i = 0; i < spec->env_count; i++) {
        m->env[i] = arena_take(arena, sizeof(**m->env));
        *m->env[i] = (Dirigent__EnvVar)DIRIGENT__ENV_VAR__INIT;
        m->env[i]->name = arena_text(arena, spec->env[i].name);
        m->env[i]->value = arena_text(arena, spec->env[i].value);
    }
}

static void prepare_version(struct peer *p, const struct function *f, uint32_t version,
                            const struct function_spec *spec)
{
    struct arena *arena = &p->outbox.arena;
    Dirigent__VersionSpec *m = OUTBOX_ADD(&p->outbox, prepare_versions, Dirigent__VersionSpec,
                                          DIRIGENT__VERSION_SPEC__INIT);
    m->function_id = f->record.id;
    m->version = version;
    m->function_name = arena_text(arena, spec->name);
    m->code_digest = arena_text(arena, spec->code_digest);
    m->n_command = spec->command_count;
    m->command = arena_take(arena, spec->command_count * sizeof(*m->command));
    for (uint32_t i = 0; i < spec->command_count; i++)
        m->command[i] = arena_text(arena, spec->command[i]);
    prepare_env(arena, m, spec);
    m->port = spec->port;
    m->memory_bytes = spec->memory_bytes;
    m->cpu_milli = spec->cpu_milli;
    m->network = wire_network(spec->network);
    m->start_deadline_ms = spec->start_deadline_ms;
    m->stop_grace_ms = spec->stop_grace_ms;
    m->pids_max = spec->pids_max;
    m->tmp_bytes = spec->tmp_bytes;
}

/* A worker gets the spec of a version before its first start. */
static bool make_prepared(struct peer *p, uint64_t function_id, uint32_t version)
{
    uint64_t key = version_key(function_id, version);
    if (map_get(&p->prepared, key) != NULL)
        return true;
    const struct function *f = registry_get(p->links->cp->registry, function_id);
    const struct function_spec *spec = f != NULL ? registry_version(f, version) : NULL;
    if (spec == NULL) {
        log_error("order.unknown_version", LOG_U64("function", function_id),
                  LOG_U64("version", version));
        return false;
    }
    prepare_version(p, f, version, spec);
    map_put(&p->prepared, key, p);
    return true;
}

static void order_start(struct peer *p, const struct control_order *order)
{
    struct control_plane *cp = p->links->cp;
    if (p->outbox.drop_versions.count > 0)
        send_now(p); /* a version that goes and comes back in one turn: in this order */
    if (!make_prepared(p, order->function_id, order->version))
        return;
    Dirigent__StartSandbox *m =
        OUTBOX_ADD(&p->outbox, starts, Dirigent__StartSandbox, DIRIGENT__START_SANDBOX__INIT);
    m->id = order->sandbox_id;
    m->function_id = order->function_id;
    m->version = order->version;
    struct placed *placed = mem_new(sizeof(*placed));
    placed->sandbox_id = order->sandbox_id;
    placed->place_us = (uint32_t)((clock_mono_ns() - cp->event_begin_ns) / NS_PER_US);
    free(map_remove(&p->links->placed, order->sandbox_id));
    map_put(&p->links->placed, order->sandbox_id, placed);
}

static void order_stop(struct peer *p, const struct control_order *order)
{
    if (p->outbox.starts.count > 0)
        send_now(p); /* in one message stops come before starts: this may be of one of them */
    Dirigent__StopSandbox *m =
        OUTBOX_ADD(&p->outbox, stops, Dirigent__StopSandbox, DIRIGENT__STOP_SANDBOX__INIT);
    m->id = order->sandbox_id;
    m->grace_ms = order->grace_ms;
}

static void order_drop_version(struct peer *p, const struct control_order *order)
{
    Dirigent__VersionRef *m =
        OUTBOX_ADD(&p->outbox, drop_versions, Dirigent__VersionRef, DIRIGENT__VERSION_REF__INIT);
    m->function_id = order->function_id;
    m->version = order->version;
    map_remove(&p->prepared, version_key(order->function_id, order->version));
}

static void worker_order(struct links *l, const struct control_order *order)
{
    struct peer *p = peer_find(l, order->target_id, true);
    if (p == NULL)
        return; /* it just went; the core hears of it and corrects itself */
    if (order->kind == ORDER_START)
        order_start(p, order);
    else if (order->kind == ORDER_STOP)
        order_stop(p, order);
    else
        order_drop_version(p, order);
    send_later(p);
}

static Dirigent__LoadBalancing wire_load_balancing(enum load_balancing policy)
{
    static_assert((int)LOAD_BALANCING_FIRST_FREE == (int)DIRIGENT__LOAD_BALANCING__LB_FIRST_FREE,
                  "same order");
    return (Dirigent__LoadBalancing)policy;
}

static void order_route(struct peer *p, const struct control_order *order)
{
    struct function_view view;
    if (!control_function(p->links->cp->core, order->function_id, &view))
        return;
    const struct function_spec *spec = view.spec;
    Dirigent__FunctionRoute *m =
        OUTBOX_ADD(&p->outbox, routes, Dirigent__FunctionRoute, DIRIGENT__FUNCTION_ROUTE__INIT);
    m->function_id = order->function_id;
    m->name = arena_text(&p->outbox.arena, spec->name);
    m->concurrency = spec->scaling.concurrency;
    m->load_balancing = wire_load_balancing(spec->load_balancing);
    m->timeout_ms = spec->timeout_ms;
    m->queue_max = spec->queue_max;
    m->request_body_bytes_max = spec->request_body_bytes_max;
    m->scale_max = spec->scaling.scale_max;
}

/* Then the sandbox's own address is reachable from the data plane. */
static bool same_host(const struct peer *data_plane, const struct known *worker)
{
    struct str ip = str_of(data_plane->ip);
    struct str worker_address = str_of(worker->record.address);
    if (worker->peer != NULL && str_equal(ip, str_of(worker->peer->ip)))
        return true;
    return str_equal(ip, worker_address) ||
           str_equal(address_host(data_plane->known->record.address), worker_address) ||
           (address_is_loopback(worker_address) && address_is_loopback(ip));
}

static uint32_t place_us_of(const struct links *l, uint64_t sandbox_id)
{
    const struct placed *placed = map_get(&l->placed, sandbox_id);
    return placed != NULL ? placed->place_us : 0;
}

struct endpoint { /* what an order to publish one says, the same for all data planes */
    struct sandbox_view view;
    const struct known *worker;
    uint32_t place_us, slots;
};

static bool endpoint_find(const struct links *l, const struct control_order *order,
                          struct endpoint *ret)
{
    if (!control_sandbox(l->cp->core, order->sandbox_id, &ret->view))
        return false;
    ret->worker = map_get(&l->known, ret->view.worker_id);
    ret->place_us = place_us_of(l, order->sandbox_id);
    ret->slots = order->slots;
    return ret->worker != NULL;
}

static void order_endpoint(struct peer *p, const struct endpoint *endpoint)
{
    const struct sandbox_view *view = &endpoint->view;
    const struct known *worker = endpoint->worker;
    if (p->outbox.drain_sandboxes.count + p->outbox.remove_sandboxes.count > 0)
        send_now(p); /* in one message endpoints come before these: this may be one that is back */
    bool direct = view->address->direct[0] != '\0' && same_host(p, worker);
    Dirigent__Endpoint *m =
        OUTBOX_ADD(&p->outbox, endpoints, Dirigent__Endpoint, DIRIGENT__ENDPOINT__INIT);
    m->sandbox_id = view->sandbox_id;
    m->function_id = view->function_id;
    m->version = view->version;
    m->address = arena_text(&p->outbox.arena, direct ? view->address->direct : view->address->host);
    m->worker = arena_text(&p->outbox.arena, worker->record.name);
    m->place_us = endpoint->place_us;
    m->create_us = view->create_us;
    m->exec_us = view->exec_us;
    m->listen_us = view->listen_us;
    m->leased = endpoint->slots != SLOTS_ALL;
    m->slots = m->leased ? endpoint->slots : 0;
    if (endpoint->slots > 0) /* what it drained before it took this was another life there */
        map_put(&p->drains, view->sandbox_id, (void *)(uintptr_t)(p->sequence + 1));
}

static void order_slots_wanted(struct peer *p, const struct control_order *order)
{
    Dirigent__SlotsWanted *m =
        OUTBOX_ADD(&p->outbox, slots_wanted, Dirigent__SlotsWanted, DIRIGENT__SLOTS_WANTED__INIT);
    m->function_id = order->function_id;
    m->slots = order->slots;
    m->idle = order->idle;
}

static void order_fail_waiting(struct peer *p, const struct control_order *order)
{
    struct arena *arena = &p->outbox.arena;
    Dirigent__FailWaiting *m =
        OUTBOX_ADD(&p->outbox, fail_waiting, Dirigent__FailWaiting, DIRIGENT__FAIL_WAITING__INIT);
    m->function_id = order->function_id;
    m->status = order->status;
    m->code = arena_text(arena, order->code != NULL ? order->code : "");
    m->message = arena_text(arena, order->message != NULL ? order->message : "");
    m->last_output.data = arena_copy(arena, order->last_output.data, order->last_output.bytes);
    m->last_output.len = order->last_output.bytes;
    m->retry_after_s = order->retry_after_s;
}

/* A snapshot is one message that begins with an empty outbox. Very large ones go on in further
 * messages. */
static void order_snapshot(struct peer *p, bool begin)
{
    send_now(p);
    p->outbox.snapshot = p->in_snapshot = begin;
}

/* `endpoint`: of an ORDER_ENDPOINT, else NULL. */
static void data_plane_order_to(struct peer *p, const struct control_order *order,
                                const struct endpoint *endpoint)
{
    struct outbox *o = &p->outbox;
    if (outbox_count(o) >= SNAPSHOT_PART_COUNT) {
        o->snapshot_more = p->in_snapshot && order->kind != ORDER_SNAPSHOT_END;
        send_now(p);
    }
    switch (order->kind) {
    case ORDER_ROUTE:
        order_route(p, order);
        break;
    case ORDER_UNROUTE:
        outbox_add_number(&o->removed_functions, order->function_id);
        break;
    case ORDER_ENDPOINT:
        order_endpoint(p, endpoint);
        break;
    case ORDER_SLOTS_WANTED:
        order_slots_wanted(p, order);
        break;
    case ORDER_DRAIN:
        if (o->remove_sandboxes.count > 0)
            send_now(p); /* drains are read before: this may be of one that was just removed */
        outbox_add_number(&o->drain_sandboxes, order->sandbox_id);
        map_put(&p->drains, order->sandbox_id, (void *)(uintptr_t)(p->sequence + 1));
        break;
    case ORDER_ENDPOINT_GONE:
        outbox_add_number(&o->remove_sandboxes, order->sandbox_id);
        map_remove(&p->in_flight, order->sandbox_id);
        map_remove(&p->drains, order->sandbox_id);
        break;
    case ORDER_SNAPSHOT_BEGIN:
    case ORDER_SNAPSHOT_END:
        order_snapshot(p, order->kind == ORDER_SNAPSHOT_BEGIN);
        break;
    case ORDER_FAIL_WAITING:
        order_fail_waiting(p, order);
        break;
    case ORDER_WANT_DEMAND:
        outbox_add_number(&o->want_demand, order->function_id);
        break;
    case ORDER_START:
    case ORDER_STOP:
    case ORDER_DROP_VERSION:
    case ORDER_VERSION_ACTIVE:
    case ORDER_VERSION_FAILED:
    case ORDER_FUNCTION_GONE:
        assert(false); /* not for data planes */
    }
    send_later(p);
}

static void data_plane_order(struct links *l, const struct control_order *order)
{
    struct endpoint found, *endpoint = NULL;
    if (order->kind == ORDER_ENDPOINT) {
        if (!endpoint_find(l, order, &found))
            return;
        endpoint = &found;
    }
    if (order->target_id != ALL_DATA_PLANES) {
        struct peer *p = peer_find(l, order->target_id, false);
        if (p != NULL)
            data_plane_order_to(p, order, endpoint);
        return;
    }
    list_for_each(p, &l->planes, struct peer, plane_node)
    {
        data_plane_order_to(p, order, endpoint);
    }
}

void links_order(struct links *l, const struct control_order *order)
{
    bool for_worker = order->kind == ORDER_START || order->kind == ORDER_STOP ||
                      order->kind == ORDER_DROP_VERSION;
    if (for_worker)
        worker_order(l, order);
    else
        data_plane_order(l, order);
}

/* ---- what data planes have in force ---- */

static bool sync_is_done(const struct links *l, uint64_t number)
{
    list_for_each(p, (struct list *)&l->planes, struct peer, plane_node)
    {
        /* One that came later was asked nothing: it got all of it at once. */
        if (p->sync_asked >= number && p->synced < number)
            return false;
    }
    return true;
}

static void sync_end(struct links_sync *sync)
{
    links_sync_cancel(sync);
    sync->on_done(sync);
}

static void syncs_look(struct links *l)
{
    list_for_each(sync, &l->syncs, struct links_sync, node)
    {
        if (sync_is_done(l, sync->number))
            sync_end(sync);
    }
}

static void on_sync_timeout(struct loop_timer *timer)
{
    struct links_sync *sync = container_of(timer, struct links_sync, timer);
    log_warn("data_plane.slow", LOG_U64("ms", LINKS_SYNC_MS));
    sync_end(sync);
}

void links_sync(struct links *l, struct links_sync *sync)
{
    struct loop *loop = l->cp->loop;
    sync->links = l;
    sync->number = ++l->last_sync;
    list_for_each(p, &l->planes, struct peer, plane_node)
    {
        p->outbox.sync = p->sync_asked = sync->number;
        send_later(p);
    }
    list_push_back(&l->syncs, &sync->node);
    loop_timer_init(&sync->timer, on_sync_timeout);
    loop_timer_start(loop, &sync->timer, loop_now_ns(loop) + LINKS_SYNC_MS * NS_PER_MS);
    if (sync_is_done(l, sync->number))
        sync_end(sync);
}

void links_sync_cancel(struct links_sync *sync)
{
    if (sync->links == NULL)
        return;
    list_remove(&sync->node);
    loop_timer_stop(sync->links->cp->loop, &sync->timer);
    sync->links = NULL;
}

/* ---- what workers say ---- */

static void copy_address(char *to, size_t bytes, const char *from)
{
    snprintf(to, bytes, "%s", from);
}

/* Numbers of the protocol that we do not know (a newer neighbour) become the nearest that we do. */
static enum sandbox_state state_from_wire(Dirigent__SandboxStatus__State state)
{
    switch ((int)state) {
    case DIRIGENT__SANDBOX_STATUS__STATE__STARTING:
        return SANDBOX_STARTING;
    case DIRIGENT__SANDBOX_STATUS__STATE__READY:
        return SANDBOX_READY;
    case DIRIGENT__SANDBOX_STATUS__STATE__STOPPING:
        return SANDBOX_STOPPING;
    default:
        return SANDBOX_GONE;
    }
}

static struct sandbox_report report_from_wire(const Dirigent__SandboxStatus *m)
{
    static_assert((int)GONE_INTERNAL == (int)DIRIGENT__GONE_REASON__GONE_INTERNAL, "same numbers");
    bool known_reason = (unsigned)m->reason < GONE_REASON_COUNT;
    struct sandbox_report report = {
        .sandbox_id = m->id,
        .function_id = m->function_id,
        .version = m->version,
        .state = state_from_wire(m->state),
        .started_at_ms = m->started_at_ms,
        .create_us = m->create_us,
        .exec_us = m->exec_us,
        .listen_us = m->listen_us,
        .reason = known_reason ? (enum gone_reason)m->reason : GONE_UNKNOWN,
        .exit_code = m->exit_code,
        .signal = m->signal,
        .wrong_port = m->wrong_port,
        .detail = str_of(m->detail),
        .last_output = {(const char *)m->last_output.data, m->last_output.len},
    };
    copy_address(report.address.direct, sizeof(report.address.direct), m->address);
    copy_address(report.address.host, sizeof(report.address.host), m->host_address);
    return report;
}

static void note_exit(struct links *l, const struct sandbox_report *report)
{
    struct function *f = registry_get(l->cp->registry, report->function_id);
    free(map_remove(&l->placed, report->sandbox_id));
    if (f == NULL || report->reason == GONE_STOPPED)
        return;
    f->last_exit = (struct last_exit){report->sandbox_id, clock_real_ms(),   report->version,
                                      report->reason,     report->exit_code, report->signal};
}

static void take_sandbox_change(struct peer *p, const Dirigent__SandboxStatus *m)
{
    struct control_event event = {.kind = EVENT_SANDBOX};
    event.sandbox.worker_id = p->known->record.id;
    event.sandbox.report = report_from_wire(m);
    if (event.sandbox.report.state == SANDBOX_GONE)
        note_exit(p->links, &event.sandbox.report); /* before the core may say FAILED */
    shell_step(p->links->cp, &event);
}

static void take_worker_message(struct peer *p, Dirigent__ToControlPlane *m)
{
    struct control_plane *cp = p->links->cp;
    uint64_t worker_id = p->known->record.id;
    for (size_t i = 0; i < m->n_sandbox_changes && p->state == PEER_UP; i++)
        take_sandbox_change(p, m->sandbox_changes[i]);
    for (size_t i = 0; i < m->n_blob_gets; i++)
        begin_transfer(p, m->blob_gets[i]->digest);
    for (size_t i = 0; i < m->n_log_chunks; i++) {
        const Dirigent__LogChunk *c = m->log_chunks[i];
        log_requests_chunk(cp->logs, c->request_id, worker_id,
                           (struct str){(const char *)c->data.data, c->data.len}, c->end, c->error);
    }
    if (m->worker_load != NULL)
        p->load = (struct worker_load){m->worker_load->cpu_used_milli, m->worker_load->blanks_ready,
                                       m->worker_load->memory_used_bytes,
                                       m->worker_load->disk_free_bytes};
    if (m->goodbye) {
        struct control_event event = {.kind = EVENT_WORKER_GOODBYE};
        event.worker.worker_id = worker_id;
        p->said_goodbye = true;
        shell_step(cp, &event);
    }
}

/* ---- what data planes say ---- */

static void take_demand(struct peer *p, const Dirigent__Demand *m)
{
    struct control_event event = {.kind = EVENT_DEMAND};
    CRASH_POINT("control_plane.scale_asked");
    event.demand.data_plane_id = p->known->record.id;
    event.demand.function_id = m->function_id;
    event.demand.in_flight = m->in_flight;
    event.demand.in_flight_ending = MIN(m->in_flight_ending, m->in_flight);
    event.demand.waiting = m->waiting;
    event.demand.in_flight_average = m->in_flight_average;
    shell_step(p->links->cp, &event);
}

static void take_endpoint_event(struct peer *p, enum event_kind kind, uint64_t sandbox_id)
{
    struct control_event event = {.kind = kind};
    event.endpoint.data_plane_id = p->known->record.id;
    event.endpoint.sandbox_id = sandbox_id;
    shell_step(p->links->cp, &event);
}

static void take_loads(struct peer *p, const Dirigent__ToControlPlane *m)
{
    struct control_event event = {.kind = EVENT_LOADS};
    struct sandbox_load *loads = mem_new_array(m->n_sandbox_loads + 1, sizeof(*loads));
    for (size_t i = 0; i < m->n_sandbox_loads; i++) {
        const Dirigent__SandboxLoad *load = m->sandbox_loads[i];
        map_put(&p->in_flight, load->sandbox_id, (void *)((uintptr_t)load->in_flight + 1));
        loads[i] = (struct sandbox_load){load->sandbox_id, load->in_flight};
    }
    event.loads.data_plane_id = p->known->record.id;
    event.loads.items = loads;
    event.loads.count = m->n_sandbox_loads;
    shell_step(p->links->cp, &event);
    free(loads);
}

static void take_returned(struct peer *p, const Dirigent__ToControlPlane *m)
{
    struct control_event event = {.kind = EVENT_SLOTS_RETURNED};
    struct returned_slots *items = mem_new_array(m->n_slots_returned, sizeof(*items));
    for (size_t i = 0; i < m->n_slots_returned; i++) {
        const Dirigent__SlotsReturned *r = m->slots_returned[i];
        items[i] = (struct returned_slots){r->sandbox_id, r->slots, r->left};
        if (r->left == 0)
            map_remove(&p->in_flight, r->sandbox_id);
    }
    event.returned.data_plane_id = p->known->record.id;
    event.returned.items = items;
    event.returned.count = m->n_slots_returned;
    shell_step(p->links->cp, &event);
    free(items);
}

/* A drain is answered after it was taken. What was said before is of an earlier life of the sandbox
 * there: it was shown again since, and may have requests. */
static void take_drained(struct peer *p, uint64_t sandbox_id, uint64_t taken)
{
    if (taken != 0 && (uintptr_t)map_get(&p->drains, sandbox_id) > taken)
        return;
    map_remove(&p->drains, sandbox_id);
    map_remove(&p->in_flight, sandbox_id);
    take_endpoint_event(p, EVENT_DRAINED, sandbox_id);
}

static void take_data_plane_message(struct peer *p, const Dirigent__ToControlPlane *m)
{
    if (m->n_sandbox_loads > 0)
        take_loads(p, m); /* before the demand that may stop some: the idle ones */
    if (m->n_slots_returned > 0)
        take_returned(p, m);
    for (size_t i = 0; i < m->n_demands; i++)
        take_demand(p, m->demands[i]);
    for (size_t i = 0; i < m->n_endpoint_failures; i++) {
        log_debug("endpoint.failed", LOG_U64("sandbox", m->endpoint_failures[i]->sandbox_id),
                  LOG_STR("why", m->endpoint_failures[i]->reason));
        take_endpoint_event(p, EVENT_ENDPOINT_FAILED, m->endpoint_failures[i]->sandbox_id);
    }
    if (m->synced > p->synced) {
        p->synced = m->synced;
        syncs_look(p->links);
    }
    for (size_t i = 0; i < m->n_drained; i++)
        take_drained(p, m->drained[i], m->taken);
}

static void take_message(struct peer *p, Dirigent__ToControlPlane *m)
{
    if (p->is_worker)
        take_worker_message(p, m);
    else
        take_data_plane_message(p, m);
}

/* ---- the handshake ---- */

static void refuse(struct peer *p, const char *why)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Welcome welcome = DIRIGENT__WELCOME__INIT;
    log_warn("peer.refused", LOG_STR("peer", p->ip), LOG_STR("why", why));
    welcome.refused = (char *)why;
    welcome.identity_taken = why == members_identity_taken;
    m.epoch =
        shell_epoch_seen(p->links->cp); /* or it would be taken for an order of an old leader */
    m.welcome = &welcome;
    link_send(p->link, &m.base);
    p->state = PEER_CLOSING;
    link_close(p->link, ERR_PROTOCOL, why);
}

static bool is_full(const struct links *l, const Dirigent__Hello *h)
{
    unsigned others = 0;
    if (h->role != DIRIGENT__ROLE__ROLE_DATA_PLANE)
        return false;
    list_for_each(p, (struct list *)&l->peers, struct peer, node)
    {
        bool counts = p->state == PEER_UP || p->state == PEER_STORING;
        others += counts && !p->is_worker && strcmp(p->record.name, h->name) != 0;
    }
    return others >= DATA_PLANES_MAX;
}

static enum err check_hello(const struct peer *p, const Dirigent__Hello *h, struct error *e)
{
    const struct control_plane *cp = p->links->cp;
    enum err err = hello_check(h,
                               &(struct hello_rules){.cluster = cp->settings.cluster_name,
                                                     .secured = trust_is_on(cp->trust),
                                                     .peer = link_peer(p->link),
                                                     .ip = p->ip,
                                                     .any_address = cp->settings.any_worker_address,
                                                     .has_members = cp->members != NULL},
                               e);
    if (err == ERR_OK && is_full(p->links, h))
        return error_set(e, ERR_BUSY, "as many data planes as can be served are connected already");
    return err;
}

/* In the middle of a rotation, whoever was away hears of it. */
static void send_roots(struct peer *p)
{
    const struct authority_bundle *bundle = trust_bundle(p->links->cp->trust);
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Roots roots = DIRIGENT__ROOTS__INIT;
    cleanup(buf_done) struct buf pem = {0};
    authority_bundle_roots(bundle, &pem);
    buf_append(&pem, "", 1);
    roots.pem = pem.data;
    roots.renew = bundle->signer > 0;
    m.epoch = p->links->cp->epoch;
    m.roots = &roots;
    link_send(p->link, &m.base);
}

void links_tell_roots(struct links *l)
{
    list_for_each(p, &l->peers, struct peer, node)
    {
        if (p->state == PEER_UP && link_peer(p->link) != NULL)
            send_roots(p);
    }
}

static void welcome(struct peer *p)
{
    struct control_plane *cp = p->links->cp;
    Dirigent__Welcome *m = arena_take(&p->outbox.arena, sizeof(*m));
    uint32_t dead_after_ms = (uint32_t)cp->settings.peer_dead_after;
    *m = (Dirigent__Welcome)DIRIGENT__WELCOME__INIT;
    m->protocol = MIN(p->first->hello->protocol_max, protocol_version_max());
    m->heartbeat_ms = MIN(HEARTBEAT_PERIOD_MS, dead_after_ms / 3);
    m->dead_after_ms = dead_after_ms;
    m->cluster = arena_text(&p->outbox.arena, cp->settings.cluster_name);
    p->outbox.welcome = m;
    send_now(p); /* before any order that its arrival brings */
    link_set_timers(p->link, dead_after_ms / 2, dead_after_ms); /* ours are many: half as often */
    if (link_peer(p->link) != NULL && trust_bundle(cp->trust)->count > 1)
        send_roots(p);
}

static void tell_worker_up(struct peer *p)
{
    const Dirigent__Hello *h = p->first->hello;
    struct control_event event = {.kind = EVENT_WORKER_UP};
    struct sandbox_report *reports = mem_new_array(h->n_sandboxes + 1, sizeof(*reports));
    char(*digests)[72] = mem_new_array(h->n_code_digests + 1, sizeof(*digests));
    for (size_t i = 0; i < h->n_sandboxes; i++)
        reports[i] = report_from_wire(h->sandboxes[i]);
    for (size_t i = 0; i < h->n_code_digests; i++)
        snprintf(digests[i], sizeof(digests[i]), "%s", h->code_digests[i]);
    event.worker.worker_id = p->known->record.id;
    event.worker.name = p->known->record.name;
    event.worker.cpu_milli = h->cpu_milli;
    event.worker.memory_bytes = h->memory_bytes;
    event.worker.slots = h->slots;
    event.worker.sandboxes = reports;
    event.worker.sandbox_count = h->n_sandboxes;
    event.worker.code_digests = (const char(*)[72])digests;
    event.worker.code_digest_count = h->n_code_digests;
    shell_step(p->links->cp, &event);
    free(reports);
    free(digests);
}

static void tell_data_plane_up(struct peer *p)
{
    const Dirigent__Hello *h = p->first->hello;
    struct control_event event = {.kind = EVENT_DATA_PLANE_UP};
    event.data_plane.data_plane_id = p->known->record.id;
    struct known_sandbox *known = mem_new_array(h->n_known_sandbox_ids + 1, sizeof(*known));
    event.data_plane.leases = h->leases && h->n_known_slots == h->n_known_sandbox_ids &&
                              h->n_known_ending == h->n_known_sandbox_ids;
    for (size_t i = 0; i < h->n_known_sandbox_ids; i++) {
        known[i].sandbox_id = h->known_sandbox_ids[i];
        known[i].slots = event.data_plane.leases ? h->known_slots[i] : SLOTS_ALL;
        known[i].is_ending = event.data_plane.leases && h->known_ending[i];
    }
    event.data_plane.known = known;
    event.data_plane.known_count = h->n_known_sandbox_ids;
    shell_step(p->links->cp, &event);
    free(known);
}

static void tell_closed(struct peer *p)
{
    struct control_event event = {.kind =
                                      p->is_worker ? EVENT_WORKER_CLOSED : EVENT_DATA_PLANE_CLOSED};
    if (p->is_worker)
        event.worker.worker_id = p->known->record.id;
    else
        event.data_plane.data_plane_id = p->known->record.id;
    if (p->is_worker)
        event.worker.silent = p->is_silent;
    else
        event.data_plane.silent = p->is_silent;
    if (!p->said_goodbye)
        shell_step(p->links->cp, &event);
}

/* It is up no more, whatever becomes of its connection. */
static void take_down(struct peer *p)
{
    struct known *k = p->known;
    p->state = PEER_CLOSING;
    k->peer = NULL;
    list_remove(&p->plane_node);
    if (p->is_worker)
        log_requests_worker_closed(p->links->cp->logs, k->record.id);
    if (!p->links->closing)
        tell_closed(p);
    syncs_look(p->links); /* nobody waits for it any more */
}

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes);

/* What came before it was up. */
static void replay_early(struct peer *p)
{
    struct buf early = p->early;
    p->early = (struct buf){0};
    for (size_t at = 0; at < early.bytes && p->state == PEER_UP;) {
        uint32_t bytes;
        memcpy(&bytes, early.data + at, sizeof(bytes));
        on_frame(p->link, p, (uint8_t *)early.data + at + sizeof(bytes), bytes);
        at += sizeof(bytes) + bytes;
    }
    buf_done(&early);
}

static void bring_up(struct peer *p, struct known *k)
{
    if (k->peer != NULL) { /* a new connection with its name replaces the old */
        struct peer *old = k->peer;
        take_down(old);
        if (old->link != NULL)
            link_close(old->link, ERR_CLOSED, "replaced by a new connection of the same name");
    }
    k->peer = p;
    p->known = k;
    p->state = PEER_UP;
    if (!p->is_worker)
        list_push_back(&p->links->planes, &p->plane_node);
    k->heard_ns = p->heard_told_ns = loop_now_ns(p->links->cp->loop);
    log_info(p->is_worker ? "worker.up" : "data_plane.up", LOG_STR("name", k->record.name),
             LOG_U64("id", k->record.id), LOG_STR("address", k->record.address),
             LOG_STR("peer", p->ip));
    welcome(p);
    if (p->is_worker)
        tell_worker_up(p);
    else
        tell_data_plane_up(p);
    take_message(p, p->first); /* a Hello may carry more */
    dirigent__to_control_plane__free_unpacked(p->first, NULL);
    p->first = NULL;
    replay_early(p);
    if (p->is_worker && p->state == PEER_UP)
        log_requests_worker_up(p->links->cp->logs, k->record.id);
}

static void peer_free_when_done(struct peer *p);

static void on_peer_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct peer *p = container_of(write, struct peer, write);
    struct links *l = p->links;
    free(write->value);
    write->value = NULL;
    struct known *k = known_find(l, p->is_worker, p->record.name);
    if (err == ERR_OK && k == NULL)
        k = known_add(l, p->is_worker, &p->record);
    else if (err == ERR_OK)
        k->record = p->record;
    if (p->link != NULL && p->state == PEER_STORING && err == ERR_OK)
        bring_up(p, k);
    else if (p->link != NULL && p->state == PEER_STORING)
        refuse(p, e->text);
    else
        peer_free_when_done(p);
}

static void store_peer(struct peer *p)
{
    struct links *l = p->links;
    p->state = PEER_STORING;
    p->write = (struct store_write){
        .kind = p->is_worker ? STORE_WORKER : STORE_DATA_PLANE,
        .id = p->record.id,
        .value = peer_record_write(&p->record),
        .next_id = l->cp->next_id,
        .on_done = on_peer_stored,
    };
    store_submit(l->cp->store, &p->write);
}

/* Where a data plane that listens on all addresses, or a worker that names none, is found. */
static void record_from_hello(struct peer *p, const Dirigent__Hello *h)
{
    const char *address = p->is_worker ? h->address : h->listen_address;
    if (p->is_worker && address[0] == '\0')
        address = p->ip;
    p->record = (struct peer_record){0};
    snprintf(p->record.name, sizeof(p->record.name), "%s", h->name);
    snprintf(p->record.address, sizeof(p->record.address), "%s", address);
}

/* Another connection with this role and name waits for the disk: there must be one record only. */
static bool is_being_stored(const struct links *l, const Dirigent__Hello *h)
{
    bool is_worker = h->role == DIRIGENT__ROLE__ROLE_WORKER;
    list_for_each(p, (struct list *)&l->peers, struct peer, node)
    {
        if (p->write.value != NULL && p->is_worker == is_worker &&
            strcmp(p->record.name, h->name) == 0)
            return true;
    }
    return false;
}

/* We do not lead: it is kept, and asked when we do. */
static void stand(struct peer *p)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Standby standby = DIRIGENT__STANDBY__INIT;
    uint32_t dead_after_ms = (uint32_t)p->links->cp->settings.peer_dead_after;
    standby.heartbeat_ms = MIN(HEARTBEAT_PERIOD_MS, dead_after_ms / 3);
    standby.dead_after_ms = dead_after_ms;
    m.standby = &standby;
    p->state = PEER_STANDING;
    link_send(p->link, &m.base);
    link_set_timers(p->link, dead_after_ms / 2, 2 * dead_after_ms);
}

static void ask_hello(struct peer *p)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    m.epoch = p->links->cp->epoch;
    m.hello_wanted = true;
    p->state = PEER_ASKED;
    link_send(p->link, &m.base);
    link_set_timers(p->link, 0, HELLO_TIMEOUT_MS);
}

void links_lead(struct links *l)
{
    list_for_each(p, &l->peers, struct peer, node)
    {
        if (p->state == PEER_STANDING)
            ask_hello(p);
    }
}

static void take_whole_hello(struct peer *p, Dirigent__ToControlPlane *m);

static void take_hello(struct peer *p, Dirigent__ToControlPlane *m)
{
    struct links *l = p->links;
    struct error e = {0};
    const char *why = check_hello(p, m->hello, &e) != ERR_OK ? e.text : NULL;
    if (why == NULL)
        link_set_frame_max(p->link, FRAME_BYTES_MAX);
    if (why == NULL && is_being_stored(l, m->hello))
        why = "another connection with its name is being registered: try again";
    if (why == NULL && l->cp->leads && m->hello->role != DIRIGENT__ROLE__ROLE_CONTROL_PLANE &&
        !m->hello->standing) {
        take_whole_hello(p, m);
        return;
    }
    bool is_member = m->hello->role == DIRIGENT__ROLE__ROLE_CONTROL_PLANE;
    if (why == NULL && is_member)
        why = members_accept(l->cp->members, m->hello, p->link);
    dirigent__to_control_plane__free_unpacked(m, NULL);
    if (why != NULL)
        refuse(p, why);
    else if (is_member)
        p->state = PEER_MEMBER;
    else if (l->cp->leads)
        ask_hello(p);
    else
        stand(p);
}

static void take_whole_hello(struct peer *p, Dirigent__ToControlPlane *m)
{
    struct links *l = p->links;
    const Dirigent__Hello *h = m->hello;
    p->is_worker = h->role == DIRIGENT__ROLE__ROLE_WORKER;
    p->first = m; /* taken */
    snprintf(p->software, sizeof(p->software), "%s", h->software);
    record_from_hello(p, h);
    struct known *k = known_find(l, p->is_worker, h->name);
    p->record.id = k != NULL ? k->record.id : l->cp->next_id;
    p->record.use = k != NULL ? k->record.use : WORKER_USE_ALL;
    if (k != NULL && strcmp(k->record.address, p->record.address) == 0) {
        bring_up(p, k);
        return;
    }
    if (k == NULL)
        l->cp->next_id++;
    store_peer(p);
}

/* ---- what operators change ---- */

static void tell_removed(struct links *l, const struct known *k)
{
    struct control_event event = {.kind = k->is_worker ? EVENT_WORKER_REMOVED
                                                       : EVENT_DATA_PLANE_REMOVED};
    if (k->is_worker)
        event.worker.worker_id = k->record.id;
    else
        event.data_plane.data_plane_id = k->record.id;
    shell_step(l->cp, &event);
}

static void known_remove(struct links *l, struct known *k)
{
    char key[PEER_NAME_BYTES_MAX + 16];
    known_key(k->is_worker, k->record.name, key, sizeof(key));
    (void)strmap_remove(&l->by_name, str_of(key));
    (void)map_remove(&l->known, k->record.id);
    free(k);
}

static void on_change_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct links_change *change = container_of(write, struct links_change, write);
    struct links *l = change->links;
    struct known *k = map_get(&l->known, change->record.id);
    k->changing = false;
    free(write->value);
    write->value = NULL;
    if (err == ERR_OK && change->remove) {
        if (k->peer != NULL)
            link_close(k->peer->link, ERR_CLOSED, "an operator removed it");
        tell_removed(l, k);
        if (k->peer == NULL) /* else it has come back while the disk was written: known, as new */
            known_remove(l, k);
    } else if (err == ERR_OK) {
        k->record.use = change->use;
        tell_use(l, &k->record);
    }
    change->on_done(change, err, e);
}

/* Of a worker that nobody drained, sandboxes would be lost. */
static enum err check_change(struct links *l, const struct links_change *change,
                             const struct known *k, struct error *e)
{
    if (k == NULL)
        return error_field(e, ERR_NOT_FOUND, "name", "there is no %s '%s'",
                           change->is_worker ? "worker" : "data plane", change->name);
    if (k->changing || (k->peer != NULL && k->peer->write.value != NULL))
        return error_field(e, ERR_CONFLICT, "name", "'%s' is being changed: try again",
                           change->name);
    if (change->remove && k->peer != NULL)
        return error_field(e, ERR_CONFLICT, "name", "%s '%s' is connected: stop it first%s",
                           change->is_worker ? "worker" : "data plane", change->name,
                           change->is_worker ? " (after `dirigent worker drain`)" : "");
    return ERR_OK;
}

void links_change(struct links *l, struct links_change *change)
{
    struct known *k = known_find(l, change->is_worker, change->name);
    struct error e = {0};
    enum err err = check_change(l, change, k, &e);
    if (err != ERR_OK) {
        change->on_done(change, err, &e);
        return;
    }
    k->changing = true;
    change->links = l;
    change->record = k->record;
    change->record.use = change->use;
    change->write = (struct store_write){
        .kind = k->is_worker ? STORE_WORKER : STORE_DATA_PLANE,
        .id = k->record.id,
        .value = change->remove ? NULL : peer_record_write(&change->record),
        .next_id = l->cp->next_id,
        .on_done = on_change_stored,
    };
    store_submit(l->cp->store, &change->write);
}

/* ---- the connection ---- */

static void keep_early(struct peer *p, const uint8_t *data, size_t bytes)
{
    uint32_t length = (uint32_t)bytes;
    if (p->early.bytes + bytes > FRAMES_BEFORE_UP_BYTES_MAX) {
        p->state = PEER_CLOSING;
        link_close(p->link, ERR_PROTOCOL, "it says too much before it is welcome");
        return;
    }
    buf_append(&p->early, &length, sizeof(length));
    buf_append(&p->early, data, bytes);
}

/* ---- certificates ---- */

static void on_certificate(void *user, const Dirigent__Certificate *answer)
{
    struct peer *p = user;
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    p->joining = NULL;
    m.epoch = shell_epoch_seen(p->links->cp);
    m.certificate = (Dirigent__Certificate *)answer;
    link_send(p->link, &m.base);
}

static void take_join(struct peer *p, const Dirigent__JoinRequest *m)
{
    struct links *l = p->links;
    bool is_worker = m->role == DIRIGENT__ROLE__ROLE_WORKER;
    p->state = PEER_JOINING; /* closed by its side, or by time */
    p->joining = joining_ask(l->cp->joining, p->ip, m, known_find(l, is_worker, m->name) != NULL,
                             on_certificate, p);
}

/* Whoever was removed gets no new one. */
static void take_renew(struct peer *p, const Dirigent__RenewRequest *m)
{
    const struct subject *peer = link_peer(p->link);
    if (peer != NULL && p->known != NULL)
        joining_renew(p->links->cp->joining, peer, m, on_certificate, p);
}

static const char no_message[] = "it sent something that is no message of the protocol";

static void take_first_frame(struct peer *p, const uint8_t *data, size_t bytes)
{
    Dirigent__ToControlPlane *m = dirigent__to_control_plane__unpack(NULL, bytes, data);
    if (m != NULL && m->hello != NULL) {
        take_hello(p, m); /* takes it: it lives until the peer is up */
        return;
    }
    if (m != NULL && m->join != NULL && trust_is_on(p->links->cp->trust)) {
        take_join(p, m->join);
        dirigent__to_control_plane__free_unpacked(m, NULL);
        return;
    }
    if (m != NULL)
        dirigent__to_control_plane__free_unpacked(m, NULL);
    link_close(p->link, ERR_PROTOCOL, no_message);
}

static void take_checked(struct peer *p, Dirigent__ToControlPlane *m)
{
    struct error e = {0};
    if (message_check(p->is_worker, m, &e) != ERR_OK) {
        log_warn("peer.refused", LOG_STR("peer", p->ip), LOG_STR("name", p->known->record.name),
                 LOG_STR("why", e.text));
        link_close(p->link, ERR_PROTOCOL, e.text);
        return;
    }
    if (m->renew != NULL)
        take_renew(p, m->renew);
    take_message(p, m);
}

static void *received_take(void *user, size_t bytes)
{
    return arena_take(user, bytes);
}

static void received_give(void *user, void *pointer)
{
}

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct peer *p = user;
    if (p->state == PEER_CLOSING)
        return;
    if (p->state == PEER_STORING) {
        keep_early(p, data, bytes);
        return;
    }
    p->links->cp->event_begin_ns = clock_mono_ns();
    if (p->state == PEER_NEW || p->state == PEER_ASKED) {
        take_first_frame(p, data, bytes);
        return;
    }
    struct arena *arena = &p->links->received;
    ProtobufCAllocator allocator = {received_take, received_give, arena};
    Dirigent__ToControlPlane *m = dirigent__to_control_plane__unpack(&allocator, bytes, data);
    if (m == NULL || m->hello != NULL)
        link_close(link, ERR_PROTOCOL, no_message);
    else if (p->state == PEER_MEMBER) {
        members_message(p->links->cp->members, link, m);
        for (size_t i = 0; i < m->n_blob_gets; i++)
            begin_transfer(p, m->blob_gets[i]->digest);
    } else if (m->stale_epoch > p->links->cp->epoch)
        shell_refused(p->links->cp, m->stale_epoch);
    else if (p->state == PEER_UP)
        take_checked(p, m);
    arena_reset(arena);
}

/* Freed when the link has told its end and the store has no write of it. */
static void peer_free_when_done(struct peer *p)
{
    if (p->link != NULL || p->write.value != NULL)
        return;
    loop_defer_cancel(&p->flush);
    loop_timer_stop(p->links->cp->loop, &p->pump);
    while (!list_is_empty(&p->transfers))
        transfer_end(list_entry(list_first(&p->transfers), struct transfer, node));
    if (p->first != NULL)
        dirigent__to_control_plane__free_unpacked(p->first, NULL);
    buf_done(&p->early);
    outbox_done(&p->outbox);
    map_done(&p->prepared);
    map_done(&p->in_flight);
    map_done(&p->drains);
    list_remove(&p->node);
    free(p);
}

static void on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct peer *p = user;
    p->link = NULL;
    joining_cancel(p->joining);
    if (p->known == NULL && p->state == PEER_NEW && err != ERR_CLOSED && err != ERR_BUSY)
        log_warn("peer.refused", LOG_STR("peer", p->ip), LOG_STR("why", why));
    if (p->known != NULL)
        log_info(p->is_worker ? "worker.closed" : "data_plane.closed",
                 LOG_STR("name", p->known->record.name), LOG_STR("why", why));
    p->is_silent = err == ERR_TIMEOUT;
    if (p->state == PEER_UP)
        take_down(p);
    else if (p->state == PEER_MEMBER)
        members_closed(p->links->cp->members, link, err);
    p->state = PEER_CLOSING;
    peer_free_when_done(p);
}

/* Who does not speak TLS is told why in words that it reads. */
static void secure(struct peer *p)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Welcome welcome = DIRIGENT__WELCOME__INIT;
    struct trust *trust = p->links->cp->trust;
    struct error e = {0};
    if (!trust_is_on(trust))
        return;
    welcome.refused = (char *)"this cluster speaks TLS: join it first, with a token that `dirigent "
                              "token create` makes";
    m.welcome = &welcome;
    m.epoch = shell_epoch_seen(p->links->cp);
    if (link_secure(p->link, trust_tls(trust), true, &m.base, &e) != ERR_OK)
        log_debug("peer.too_early", LOG_STR("peer", p->ip), LOG_STR("why", e.text));
}

static void on_accept(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer)
{
    static const struct link_callbacks callbacks = {
        .on_frame = on_frame, .on_drained = on_link_drained, .on_closed = on_closed};
    struct links *l = container_of(listener, struct links, listener);
    struct peer *p = mem_new(sizeof(*p));
    struct error e = {0};
    char address[64] = "";
    p->links = l;
    p->flush.on_turn_end = on_flush;
    list_init(&p->transfers);
    loop_timer_init(&p->pump, on_pump);
    if (link_accept(l->cp->loop, fd, &callbacks, p, &p->link, &e) != ERR_OK) {
        log_warn("peer.accept", LOG_STR("why", e.text));
        free(p);
        return;
    }
    link_peer_address(p->link, address, sizeof(address));
    struct str ip = address_host(address);
    snprintf(p->ip, sizeof(p->ip), "%.*s", STR_ARG(ip));
    list_push_back(&l->peers, &p->node);
    link_set_frame_max(p->link, HELLO_BYTES_MAX);
    link_set_timers(p->link, 0, HELLO_TIMEOUT_MS);
    secure(p);
}

/* Heartbeats are seen by links only: this tells the core who is alive. */
static void on_heard_timer(struct loop_timer *timer)
{
    struct links *l = container_of(timer, struct links, heard_timer);
    l->cp->event_begin_ns = clock_mono_ns();
    list_for_each(p, &l->peers, struct peer, node)
    {
        if (p->state != PEER_UP || p->link == NULL || link_heard_ns(p->link) == p->heard_told_ns)
            continue;
        struct control_event event = {.kind = EVENT_PEER_ALIVE};
        event.alive.is_worker = p->is_worker;
        event.alive.id = p->known->record.id;
        p->known->heard_ns = p->heard_told_ns = link_heard_ns(p->link);
        shell_step(l->cp, &event);
    }
    uint64_t period = MIN(HEARD_PERIOD_NS, l->cp->settings.peer_dead_after * NS_PER_MS / 8);
    loop_timer_start(l->cp->loop, timer, loop_now_ns(l->cp->loop) + period);
}

/* Sandboxes that went with their worker were never reported gone. */
void links_tidy(struct links *l)
{
    size_t cursor = 0;
    struct placed *placed;
    struct sandbox_view view;
    struct map kept = {0};
    while ((placed = map_next(&l->placed, &cursor)) != NULL) {
        if (control_sandbox(l->cp->core, placed->sandbox_id, &view))
            map_put(&kept, placed->sandbox_id, placed);
        else
            free(placed);
    }
    map_done(&l->placed);
    l->placed = kept;
}

/* ---- life ---- */

enum err links_new(struct control_plane *cp, struct links **ret_links, struct error *e)
{
    struct links *l = mem_new(sizeof(*l));
    l->cp = cp;
    l->listener.poll.fd = -1;
    list_init(&l->peers);
    list_init(&l->planes);
    list_init(&l->syncs);
    loop_timer_init(&l->heard_timer, on_heard_timer);
    *ret_links = l;
    return ERR_OK;
}

enum err links_listen(struct links *l, struct error *e)
{
    int fd = -1;
    enum err err = socket_listen(l->cp->settings.cluster, false, &fd, e);
    if (err != ERR_OK)
        return error_prefix(e, "cluster protocol");
    l->listener.on_accept = on_accept;
    err = loop_listener_start(l->cp->loop, &l->listener, fd, e);
    if (err != ERR_OK)
        return err;
    struct sockaddr_storage bound = {0};
    socklen_t bytes = sizeof(bound);
    if (getsockname(fd, (struct sockaddr *)&bound, &bytes) == 0)
        address_format((struct sockaddr *)&bound, l->address, sizeof(l->address));
    on_heard_timer(&l->heard_timer);
    return ERR_OK;
}

const char *links_address(const struct links *l)
{
    return l->address;
}

void links_close(struct links *l)
{
    l->closing = true;
    loop_timer_stop(l->cp->loop, &l->heard_timer);
    if (l->address[0] != '\0')
        loop_listener_stop(&l->listener);
    list_for_each(p, &l->peers, struct peer, node)
    {
        if (p->link != NULL)
            link_close(p->link, ERR_CLOSED, "the control plane stops");
    }
}

void links_free(struct links *l)
{
    size_t cursor = 0;
    struct known *k;
    if (l == NULL)
        return;
    assert(list_is_empty(&l->peers));
    while ((k = map_next(&l->known, &cursor)) != NULL)
        free(k);
    map_done(&l->known);
    strmap_done(&l->by_name);
    cursor = 0;
    struct placed *placed;
    while ((placed = map_next(&l->placed, &cursor)) != NULL)
        free(placed);
    map_done(&l->placed);
    arena_done(&l->received);
    free(l);
}

/* ---- output of sandboxes ---- */

static void ask_logs(struct peer *p, const struct log_query *query, bool cancel)
{
    Dirigent__LogGet *m =
        OUTBOX_ADD(&p->outbox, log_gets, Dirigent__LogGet, DIRIGENT__LOG_GET__INIT);
    m->request_id = query->request_id;
    m->function_id = query->function_id;
    m->lines = query->lines;
    m->since_ms = query->since_ms;
    m->follow = query->follow;
    m->cancel = cancel;
    send_later(p);
}

static size_t ask_all_logs(struct links *l, const struct log_query *query, bool cancel)
{
    size_t count = 0;
    list_for_each(p, &l->peers, struct peer, node)
    {
        if (p->state != PEER_UP || !p->is_worker)
            continue;
        ask_logs(p, query, cancel);
        count++;
    }
    return count;
}

size_t links_logs_ask(struct links *l, const struct log_query *query)
{
    return ask_all_logs(l, query, false);
}

void links_logs_ask_one(struct links *l, uint64_t worker_id, const struct log_query *query)
{
    struct peer *p = peer_find(l, worker_id, true);
    if (p != NULL)
        ask_logs(p, query, false);
}

void links_logs_cancel(struct links *l, uint64_t request_id)
{
    struct log_query query = {.request_id = request_id};
    (void)ask_all_logs(l, &query, true);
}

/* ---- views ---- */

static void view_of(const struct links *l, const struct known *k, struct peer_view *ret)
{
    const struct peer *p = k->peer;
    uint64_t now = loop_now_ns(l->cp->loop);
    *ret = (struct peer_view){
        .record = &k->record,
        .is_worker = k->is_worker,
        .connected = p != NULL,
        .software = p != NULL ? p->software : "",
        .peer_ip = p != NULL ? p->ip : "",
        .heard_ms_ago = k->heard_ns == 0 ? UINT64_MAX : (now - MIN(now, k->heard_ns)) / NS_PER_MS,
    };
    if (p != NULL)
        ret->load = p->load;
}

bool links_peer_next(const struct links *l, size_t *cursor, struct peer_view *ret)
{
    const struct known *k = map_next(&l->known, cursor);
    if (k != NULL)
        view_of(l, k, ret);
    return k != NULL;
}

bool links_peer(const struct links *l, uint64_t id, struct peer_view *ret)
{
    const struct known *k = map_get(&l->known, id);
    if (k != NULL)
        view_of(l, k, ret);
    return k != NULL;
}

uint32_t links_sandbox_in_flight(const struct links *l, uint64_t sandbox_id)
{
    uint64_t sum = 0;
    list_for_each(p, (struct list *)&l->planes, struct peer, plane_node)
    {
        uintptr_t stored = (uintptr_t)map_get(&p->in_flight, sandbox_id);
        sum += stored > 0 ? stored - 1 : 0;
    }
    return (uint32_t)MIN(sum, UINT32_MAX);
}

void links_public_address(const struct peer_view *v, char *ret_text, size_t bytes)
{
    const char *address = v->record->address;
    struct str host = address_host(address);
    bool wildcard =
        host.bytes == 0 || str_equal(host, STR("0.0.0.0")) || str_equal(host, STR("::"));
    const char *port = strrchr(address, ':');
    bool v6 = strchr(v->peer_ip, ':') != NULL;
    if (!wildcard || port == NULL || v->peer_ip[0] == '\0')
        snprintf(ret_text, bytes, "%s", address);
    else
        snprintf(ret_text, bytes, v6 ? "[%s]%s" : "%s%s", v->peer_ip, port);
}
