/* workers.c - simulated workers: each a connection and a list of sandboxes. A sandbox is ready
 * after the start delay and gone when it is told to stop; its address is nobody's. Order of things
 * in a message as in src/worker/worker.c. */
#include "base/limits.h"
#include "base/log.h"
#include "simulate/sim.h"
#include <stdio.h>
#include <stdlib.h>

#define LOAD_PERIOD_NS (2000 * NS_PER_MS)
#define LOAD_PARTS 100u /* of a period: in each a part of the workers says its load */
#define CAPACITY_CPU_MILLI 4000000u
#define CAPACITY_MEMORY_BYTES (4096 * GIB)

struct sim_worker {
    struct sim *sim;
    struct replicas *replicas;
    struct link *link; /* to the control plane that leads; NULL: none does */
    bool welcome;
    size_t number;
    char name[32], address[32];
    uint64_t sequence;
    struct list sandboxes;
    struct map prepared; /* versions it was told of; key version_key() */
};

static uint64_t version_key(uint64_t function_id, uint32_t version)
{
    return function_id << 24 | version;
}

/* ---- sandboxes ---- */

static struct sim_sandbox *sandbox_take(struct sim *s)
{
    struct sim_sandbox *box = s->spare;
    if (box == NULL)
        return mem_new(sizeof(*box));
    s->spare = (struct sim_sandbox *)box->node.next;
    *box = (struct sim_sandbox){0};
    return box;
}

static void sandbox_give(struct sim *s, struct sim_sandbox *box)
{
    box->node.next = (struct list *)s->spare;
    s->spare = box;
}

/* What a status says, in the caller's memory: 48 bytes for each address. */
static void status_of(const struct sim_sandbox *box, Dirigent__SandboxStatus *m, char *address,
                      char *host_address)
{
    static const Dirigent__SandboxStatus__State states[] = {
        [SANDBOX_STARTING] = DIRIGENT__SANDBOX_STATUS__STATE__STARTING,
        [SANDBOX_READY] = DIRIGENT__SANDBOX_STATUS__STATE__READY,
        [SANDBOX_GONE] = DIRIGENT__SANDBOX_STATUS__STATE__GONE};
    size_t number = box->worker->number;
    *m = (Dirigent__SandboxStatus)DIRIGENT__SANDBOX_STATUS__INIT;
    m->id = box->id;
    m->function_id = box->function_id;
    m->version = box->version;
    m->state = states[box->state];
    m->started_at_ms = box->started_at_ms;
    if (box->state == SANDBOX_GONE)
        m->reason = DIRIGENT__GONE_REASON__GONE_STOPPED;
    if (box->state != SANDBOX_READY)
        return;
    unsigned slot = (unsigned)(box->id % 50000);
    snprintf(address, 48, "10.%u.%u.%u:8080", 128 + slot / 65536, slot / 256 % 256, slot % 256);
    snprintf(host_address, 48, "10.%zu.%zu.%zu:%u", number / 65536, number / 256 % 256,
             number % 256, 10000 + slot);
    m->address = address;
    m->host_address = host_address;
    m->create_us = m->exec_us = m->listen_us =
        (uint32_t)((box->ready_ns - box->ordered_ns) / NS_PER_US);
}

static void report(struct sim_worker *w, const struct sim_sandbox *box)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__SandboxStatus status, *statuses[] = {&status};
    char address[48], host_address[48];
    if (w->link == NULL || !w->welcome)
        return; /* the next Hello tells it */
    status_of(box, &status, address, host_address);
    m.sequence = ++w->sequence;
    m.n_sandbox_changes = 1;
    m.sandbox_changes = statuses;
    link_send(w->link, &m.base);
}

static void start(struct sim_worker *w, const Dirigent__StartSandbox *m)
{
    struct sim *s = w->sim;
    uint64_t now_ns = clock_mono_ns();
    if (map_get(&s->sandboxes, m->id) != NULL)
        return; /* it is starting already */
    struct sim_sandbox *box = sandbox_take(s);
    box->id = m->id;
    box->function_id = m->function_id;
    box->version = m->version;
    box->worker = w;
    box->ordered_ns = now_ns;
    box->started_at_ms = clock_real_ms();
    list_push_back(&w->sandboxes, &box->node);
    map_put(&s->sandboxes, box->id, box);
    s->load.counts.starts++;
    s->load.counts.unprepared +=
        map_get(&w->prepared, version_key(m->function_id, m->version)) == NULL;
    load_ordered(s, box);
    delay_line_push(&s->starts, now_ns + s->settings.start_delay * NS_PER_MS, box);
    sim_alarm_at(s, delay_line_next_ns(&s->starts));
}

static void stop(struct sim_worker *w, uint64_t sandbox_id)
{
    struct sim *s = w->sim;
    struct sim_sandbox *box = map_get(&s->sandboxes, sandbox_id);
    struct sim_sandbox unknown = {.id = sandbox_id, .state = SANDBOX_GONE, .worker = w};
    s->load.counts.stops++;
    if (box == NULL || box->worker != w) {
        report(w, &unknown); /* as the real one: it is not here */
        return;
    }
    bool was_starting = box->state == SANDBOX_STARTING;
    box->state = SANDBOX_GONE;
    report(w, box);
    list_remove(&box->node);
    (void)map_remove(&s->sandboxes, sandbox_id);
    if (!was_starting) /* else the delay line gives it back */
        sandbox_give(s, box);
}

void workers_due(struct sim *s, uint64_t now_ns)
{
    struct sim_sandbox *box;
    while ((box = delay_line_pop(&s->starts, now_ns)) != NULL) {
        if (box->state == SANDBOX_GONE) {
            sandbox_give(s, box);
            continue;
        }
        box->state = SANDBOX_READY;
        box->ready_ns = clock_mono_ns();
        s->load.counts.readies++;
        report(box->worker, box);
    }
}

/* ---- what is heard ---- */

static void take_welcome(struct sim_worker *w, const Dirigent__Welcome *m)
{
    struct sim *s = w->sim;
    if (m->refused[0] != '\0') {
        snprintf(s->last_failure, sizeof(s->last_failure), "it refuses a worker: %s", m->refused);
        return; /* it closes */
    }
    w->welcome = true;
    s->workers_up++;
    link_set_timers(w->link, m->heartbeat_ms, m->dead_after_ms);
    list_for_each(box, &w->sandboxes, struct sim_sandbox, node)
        report(w, box); /* what changed since the Hello */
    sim_progress(s);
}

static void on_message(void *user, struct link *link, const Dirigent__FromControlPlane *m)
{
    struct sim_worker *w = user;
    if (m->welcome != NULL)
        take_welcome(w, m->welcome);
    if (!w->welcome)
        return;
    for (size_t i = 0; i < m->n_prepare_versions; i++)
        map_put(&w->prepared,
                version_key(m->prepare_versions[i]->function_id, m->prepare_versions[i]->version),
                w);
    for (size_t i = 0; i < m->n_stops; i++)
        stop(w, m->stops[i]->id);
    for (size_t i = 0; i < m->n_starts; i++)
        start(w, m->starts[i]);
    for (size_t i = 0; i < m->n_drop_versions; i++)
        (void)map_remove(&w->prepared, version_key(m->drop_versions[i]->function_id,
                                                   m->drop_versions[i]->version));
}

/* ---- the connection ---- */

static void on_lost(void *user, const char *why)
{
    struct sim_worker *w = user;
    struct sim *s = w->sim;
    w->link = NULL;
    map_done(&w->prepared); /* told anew on each connection */
    if (!w->welcome)
        return; /* refused: the reason is known */
    w->welcome = false;
    s->workers_up--;
    s->load.counts.worker_losses++;
    log_info("worker.lost", LOG_U64("number", w->number), LOG_STR("why", why));
}

static void on_failed(void *user, const char *address, const char *why)
{
    struct sim_worker *w = user;
    snprintf(w->sim->last_failure, sizeof(w->sim->last_failure), "%s: %s", address, why);
}

struct hello_sandbox {
    Dirigent__SandboxStatus status;
    char address[48], host_address[48];
};

static void on_name(void *user, Dirigent__Hello *hello)
{
    struct sim_worker *w = user;
    hello->cluster = w->sim->settings.cluster_name;
    hello->role = DIRIGENT__ROLE__ROLE_WORKER;
    hello->name = w->name;
    hello->software = (char *)"dirigent simulate " DIRIGENT_VERSION;
    hello->address = w->address;
}

static void on_hello(void *user, struct link *link)
{
    struct sim_worker *w = user;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    size_t count = 0, i = 0;
    list_for_each(box, &w->sandboxes, struct sim_sandbox, node) count++;
    struct hello_sandbox *sandboxes = mem_new_array(count + 1, sizeof(*sandboxes));
    hello.sandboxes = mem_new_array(count + 1, sizeof(*hello.sandboxes));
    list_for_each(box, &w->sandboxes, struct sim_sandbox, node)
    {
        status_of(box, &sandboxes[i].status, sandboxes[i].address, sandboxes[i].host_address);
        hello.sandboxes[i] = &sandboxes[i].status;
        i++;
    }
    hello.n_sandboxes = count;
    w->link = link;
    w->sequence = 1;
    hello.protocol_min = protocol_version_min();
    hello.protocol_max = protocol_version_max();
    on_name(w, &hello);
    hello.cpu_milli = CAPACITY_CPU_MILLI;
    hello.memory_bytes = CAPACITY_MEMORY_BYTES;
    hello.slots = SANDBOXES_PER_WORKER_MAX;
    m.hello = &hello;
    m.sequence = w->sequence;
    link_send(link, &m.base);
    free(hello.sandboxes);
    free(sandboxes);
}

/* ---- loads, each worker every two seconds, spread over that time ---- */

static void on_load_timer(struct loop_timer *timer)
{
    struct sim *s = container_of(timer, struct sim, worker_load);
    size_t count = s->settings.workers, part = s->worker_load_part++ % LOAD_PARTS;
    Dirigent__WorkerLoad load = DIRIGENT__WORKER_LOAD__INIT;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    m.worker_load = &load;
    load.blanks_ready = 16;
    load.disk_free_bytes = 100 * GIB;
    for (size_t i = part * count / LOAD_PARTS; i < (part + 1) * count / LOAD_PARTS; i++)
        if (s->workers[i].welcome)
            link_send(s->workers[i].link, &m.base);
    loop_timer_start(s->loop, timer, loop_now_ns(s->loop) + LOAD_PERIOD_NS / LOAD_PARTS);
}

/* ---- losses ---- */

static void on_loss_timer(struct loop_timer *timer)
{
    struct sim *s = container_of(timer, struct sim, worker_loss);
    struct sim_worker *w = &s->workers[rng_below(&s->rng, s->settings.workers)];
    if (w->link != NULL && w->welcome)
        link_close(w->link, ERR_CLOSED, "broken on purpose");
    loop_timer_start(s->loop, timer, loop_now_ns(s->loop) + NS_PER_S / s->settings.lose_workers);
}

void workers_begin_losses(struct sim *s)
{
    if (s->settings.lose_workers > 0)
        on_loss_timer(&s->worker_loss);
}

/* ---- life ---- */

void workers_init(struct sim *s)
{
    s->workers = mem_new_array(s->settings.workers, sizeof(*s->workers));
    for (size_t i = 0; i < s->settings.workers; i++) {
        s->workers[i].sim = s;
        s->workers[i].number = i;
        snprintf(s->workers[i].name, sizeof(s->workers[i].name), WORKER_NAME "%zu", i);
        snprintf(s->workers[i].address, sizeof(s->workers[i].address), "10.%zu.%zu.%zu", i / 65536,
                 i / 256 % 256, i % 256);
        list_init(&s->workers[i].sandboxes);
    }
    loop_timer_init(&s->worker_load, on_load_timer);
    loop_timer_init(&s->worker_loss, on_loss_timer);
}

enum err workers_dial(struct sim *s, struct error *e)
{
    const struct replicas_callbacks callbacks = {.on_hello = on_hello,
                                                 .on_name = on_name,
                                                 .on_message = on_message,
                                                 .on_lost = on_lost,
                                                 .on_failed = on_failed,
                                                 .allocator = &s->allocator};
    if (s->workers_dialled == 0)
        on_load_timer(&s->worker_load);
    while (s->workers_dialled < s->settings.workers &&
           s->workers_dialled < s->workers_up + DIALLED_AT_ONCE) {
        struct sim_worker *w = &s->workers[s->workers_dialled];
        enum err err =
            replicas_new(s->loop, s->settings.cluster, NULL, &callbacks, w, &w->replicas, e);
        if (err != ERR_OK)
            return err;
        s->workers_dialled++;
    }
    return ERR_OK;
}

void workers_goodbye(struct sim *s)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    m.goodbye = true;
    loop_timer_stop(s->loop, &s->worker_load);
    loop_timer_stop(s->loop, &s->worker_loss);
    for (size_t i = 0; i < s->settings.workers; i++)
        if (s->workers[i].welcome)
            link_send(s->workers[i].link, &m.base);
}

void workers_free(struct sim *s)
{
    struct sim_sandbox *box;
    while ((box = delay_line_pop(&s->starts, UINT64_MAX)) != NULL)
        if (box->state == SANDBOX_GONE)
            free(box); /* the others are in their workers' lists */
    for (size_t i = 0; s->workers != NULL && i < s->settings.workers; i++) {
        struct sim_worker *w = &s->workers[i];
        replicas_free(w->replicas);
        map_done(&w->prepared);
        list_for_each(one, &w->sandboxes, struct sim_sandbox, node) free(one);
    }
    while ((box = s->spare) != NULL) {
        s->spare = (struct sim_sandbox *)box->node.next;
        free(box);
    }
    free(s->workers);
    map_done(&s->sandboxes);
    delay_line_done(&s->starts);
}
