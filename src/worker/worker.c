/* worker.c - start and end of the daemon, its connection to the control plane, and what joins its
 * parts.
 *
 * SIGTERM and SIGINT stop all sandboxes and leave nothing. SIGUSR1 is for a restart: while there
 * are sandboxes they and their launcher go on, and the next life takes them back. */
#include "worker/worker.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/privileges.h"
#include "base/program.h"
#include "base/settings.h"
#include "http/server.h"
#include "wire/replicas.h"
#include "worker/node.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CPU_OVERCOMMIT 50u
#define MEMORY_SHARE_PERCENT 80u
#define STOP_PATIENCE_MS 20000u
#define LOAD_PERIOD_MS 2000u
#define COLLECT_PERIOD_MS 60000u

struct settings {
#define SETTING(key, type, default_text, help) SETTING_FIELD_##type(key)
#include "worker/worker_settings.def"
#undef SETTING
};
static const struct setting table[] = {
#define SETTING(key, type, default_text, help) \
    SETTING_ROW(struct settings, key, type, default_text, help)
#include "worker/worker_settings.def"
#undef SETTING
};

struct worker {
    struct settings settings;
    struct loop *loop;
    struct loop_signals signals;
    struct launcher_client *launcher;
    struct code_store *code;
    struct logs *logs;
    struct node *node;
    struct replicas *replicas;
    struct link *link; /* to the control plane that leads; NULL: none does */
    struct http_server *http;
    struct loop_deferred flush;
    struct loop_timer load_timer, stop_timer, collect_timer;
    Dirigent__ToControlPlane out; /* what goes out at the end of this turn */
    uint64_t sequence;
    bool welcome, said_unreachable, stopping, shutdown_sent, failed;
    char *data_dir, *run_dir, address[64], name[64];
    struct credentials *credentials;
    int data_lock, run_lock;
};

/* ---- to the control plane: repeated fields grow one by one; the generated code frees them ---- */

static void *grown(void *items, size_t count, size_t item_bytes)
{
    /* powers of two: mem_resize() only when the count reaches one */
    return (count & (count - 1)) == 0 ? mem_resize(items, MAX(count * 2, (size_t)4), item_bytes)
                                      : items;
}

static void blob_gets_clear(struct worker *w)
{
    for (size_t i = 0; i < w->out.n_blob_gets; i++)
        dirigent__blob_get__free_unpacked(w->out.blob_gets[i], NULL);
    w->out.n_blob_gets = 0;
}

static void out_clear(struct worker *w)
{
    for (size_t i = 0; i < w->out.n_sandbox_changes; i++)
        dirigent__sandbox_status__free_unpacked(w->out.sandbox_changes[i], NULL);
    blob_gets_clear(w);
    for (size_t i = 0; i < w->out.n_log_chunks; i++)
        dirigent__log_chunk__free_unpacked(w->out.log_chunks[i], NULL);
    free(w->out.sandbox_changes);
    free(w->out.blob_gets);
    free(w->out.log_chunks);
    dirigent__to_control_plane__init(&w->out);
}

static void on_flush(struct loop_deferred *d)
{
    struct worker *w = container_of(d, struct worker, flush);
    if (w->link != NULL && !w->welcome) {
        blob_gets_clear(w); /* asked for again then */
        return; /* sandboxes that changed after our Hello was written: told when we are welcome */
    }
    if (w->link != NULL &&
        (w->out.n_sandbox_changes | w->out.n_blob_gets | w->out.n_log_chunks) != 0) {
        w->out.sequence = ++w->sequence;
        link_send(w->link, &w->out.base);
    }
    out_clear(w); /* what happens while it is away is told by the next Hello */
}

/* A copy that the generated code can free. */
static ProtobufCMessage *copied(const ProtobufCMessage *m)
{
    size_t bytes = protobuf_c_message_get_packed_size(m);
    uint8_t *packed = mem_new(bytes + 1);
    (void)protobuf_c_message_pack(m, packed);
    ProtobufCMessage *copy = protobuf_c_message_unpack(m->descriptor, NULL, bytes, packed);
    free(packed);
    assert(copy != NULL);
    return copy;
}

static void on_report(void *user, const Dirigent__SandboxStatus *status)
{
    struct worker *w = user;
    w->out.sandbox_changes =
        grown(w->out.sandbox_changes, w->out.n_sandbox_changes, sizeof(void *));
    w->out.sandbox_changes[w->out.n_sandbox_changes++] =
        (Dirigent__SandboxStatus *)copied(&status->base);
    loop_defer(w->loop, &w->flush);
}

static void on_want(void *user, const char *digest)
{
    struct worker *w = user;
    Dirigent__BlobGet get = DIRIGENT__BLOB_GET__INIT;
    get.digest = (char *)digest;
    w->out.blob_gets = grown(w->out.blob_gets, w->out.n_blob_gets, sizeof(void *));
    w->out.blob_gets[w->out.n_blob_gets++] = (Dirigent__BlobGet *)copied(&get.base);
    loop_defer(w->loop, &w->flush);
}

static void on_log_chunk(void *user, uint64_t request_id, struct str data, bool end)
{
    struct worker *w = user;
    Dirigent__LogChunk chunk = DIRIGENT__LOG_CHUNK__INIT;
    chunk.request_id = request_id;
    chunk.data.data = (uint8_t *)data.data;
    chunk.data.len = data.bytes;
    chunk.end = end;
    w->out.log_chunks = grown(w->out.log_chunks, w->out.n_log_chunks, sizeof(void *));
    w->out.log_chunks[w->out.n_log_chunks++] = (Dirigent__LogChunk *)copied(&chunk.base);
    loop_defer(w->loop, &w->flush);
}

static void on_code_ready(void *user, const char *digest, enum err err, int dir_fd, const char *why)
{
    struct worker *w = user;
    if (err != ERR_OK)
        log_warn("code.failed", LOG_STR("digest", digest), LOG_STR("why", why));
    node_code_ready(w->node, digest, err, dir_fd, why);
}

/* ---- hello ---- */

static void hello_sandbox(void *user, const Dirigent__SandboxStatus *status)
{
    Dirigent__Hello *hello = user;
    hello->sandboxes = grown(hello->sandboxes, hello->n_sandboxes, sizeof(void *));
    hello->sandboxes[hello->n_sandboxes++] = (Dirigent__SandboxStatus *)copied(&status->base);
}

static uint64_t memory_capacity(const struct worker *w)
{
    if (w->settings.memory != 0)
        return w->settings.memory;
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 100 *
           MEMORY_SHARE_PERCENT;
}

static uint32_t cpu_capacity(const struct worker *w)
{
    if (w->settings.cpu != 0)
        return (uint32_t)w->settings.cpu;
    return (uint32_t)sysconf(_SC_NPROCESSORS_ONLN) * 1000 * CPU_OVERCOMMIT;
}

static void on_name(void *user, Dirigent__Hello *hello)
{
    struct worker *w = user;
    hello->cluster = w->settings.cluster_name;
    hello->role = DIRIGENT__ROLE__ROLE_WORKER;
    hello->name = w->name;
    hello->software = (char *)DIRIGENT_VERSION;
    hello->address = w->address;
}

static void on_hello(void *user, struct link *link)
{
    struct worker *w = user;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    w->link = link;
    w->welcome = false;
    w->sequence = 0;
    out_clear(w);
    hello.protocol_min = protocol_version_min();
    hello.protocol_max = protocol_version_max();
    on_name(w, &hello);
    hello.cpu_milli = cpu_capacity(w);
    hello.memory_bytes = memory_capacity(w);
    hello.slots = (uint32_t)w->settings.slots;
    node_each(w->node, hello_sandbox, &hello);
    size_t cursor = 0;
    for (const char *digest; (digest = code_store_next(w->code, &cursor)) != NULL;) {
        hello.code_digests = grown(hello.code_digests, hello.n_code_digests, sizeof(char *));
        hello.code_digests[hello.n_code_digests++] = (char *)digest;
    }
    m.hello = &hello;
    link_send(link, &m.base);
    for (size_t i = 0; i < hello.n_sandboxes; i++)
        dirigent__sandbox_status__free_unpacked(hello.sandboxes[i], NULL);
    free(hello.sandboxes);
    free(hello.code_digests);
}

/* ---- from the control plane ---- */

static void on_welcome(struct worker *w, const Dirigent__Welcome *welcome)
{
    if (welcome->refused[0] != '\0') {
        log_error("control_plane.refused", LOG_STR("why", welcome->refused));
        return;
    }
    w->welcome = true;
    w->said_unreachable = false;
    loop_defer(w->loop, &w->flush);
    link_set_timers(w->link, welcome->heartbeat_ms, welcome->dead_after_ms);
    log_info("control_plane.joined", LOG_STR("name", w->name),
             LOG_U64("epoch", replicas_epoch(w->replicas)));
    code_store_connected(w->code);
}

static bool code_is_used(void *user, const char *digest)
{
    const struct worker *w = user;
    return node_uses_code(w->node, digest);
}

static void orders_take(struct worker *w, const Dirigent__FromControlPlane *m)
{
    for (size_t i = 0; i < m->n_prepare_versions; i++)
        node_prepare(w->node, m->prepare_versions[i]);
    for (size_t i = 0; i < m->n_stops; i++)
        node_stop(w->node, m->stops[i]->id, m->stops[i]->grace_ms);
    for (size_t i = 0; i < m->n_starts; i++)
        node_start(w->node, m->starts[i]->id, m->starts[i]->function_id, m->starts[i]->version);
    for (size_t i = 0; i < m->n_drop_versions; i++) {
        node_drop(w->node, m->drop_versions[i]->function_id, m->drop_versions[i]->version);
        logs_function_gone(w->logs, m->drop_versions[i]->function_id);
    }
    if (m->n_drop_versions > 0)
        code_store_collect(w->code, loop_now_ns(w->loop), 0);
    for (size_t i = 0; i < m->n_blob_chunks; i++) {
        const Dirigent__BlobChunk *c = m->blob_chunks[i];
        code_store_chunk(w->code, c->digest, c->offset, c->total_bytes,
                         (struct str){(const char *)c->data.data, c->data.len}, c->error);
    }
    for (size_t i = 0; i < m->n_log_gets; i++) {
        const Dirigent__LogGet *g = m->log_gets[i];
        if (g->cancel)
            logs_cancel(w->logs, g->request_id);
        else
            logs_get(w->logs, &(struct logs_query){g->request_id, g->function_id, g->sandbox_id,
                                                   g->lines, g->since_ms, g->follow});
    }
}

static void on_message(void *user, struct link *link, const Dirigent__FromControlPlane *m)
{
    struct worker *w = user;
    if (m->welcome != NULL)
        on_welcome(w, m->welcome);
    if (w->welcome)
        orders_take(w, m);
}

static void on_lost(void *user, const char *why)
{
    struct worker *w = user;
    if (w->welcome && !w->stopping)
        log_warn("control_plane.lost", LOG_STR("why", why));
    w->link = NULL;
    w->welcome = false;
    logs_cancel_all(w->logs);
}

static void on_dial_failed(void *user, const char *address, const char *why)
{
    struct worker *w = user;
    if (w->said_unreachable || w->welcome)
        return; /* once; `joined` ends it */
    w->said_unreachable = true;
    log_warn("control_plane.unreachable", LOG_STR("address", address), LOG_STR("why", why));
}

static void on_collect_timer(struct loop_timer *timer)
{
    struct worker *w = container_of(timer, struct worker, collect_timer);
    uint64_t now_ns = loop_now_ns(w->loop);
    code_store_collect(w->code, now_ns, CODE_UNUSED_MS_MAX * NS_PER_MS);
    loop_timer_start(w->loop, timer, now_ns + COLLECT_PERIOD_MS * NS_PER_MS);
}

static void on_load_timer(struct loop_timer *timer)
{
    struct worker *w = container_of(timer, struct worker, load_timer);
    loop_timer_start(w->loop, timer, loop_now_ns(w->loop) + LOAD_PERIOD_MS * NS_PER_MS);
    if (!w->welcome)
        return;
    struct statvfs disk = {0};
    Dirigent__WorkerLoad load = DIRIGENT__WORKER_LOAD__INIT;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    double average = 0;
    if (getloadavg(&average, 1) == 1)
        load.cpu_used_milli = (uint32_t)(average * 1000);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    load.memory_used_bytes =
        ((uint64_t)sysconf(_SC_PHYS_PAGES) - (uint64_t)sysconf(_SC_AVPHYS_PAGES)) * page;
    if (statvfs(w->data_dir, &disk) == 0)
        load.disk_free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    load.blanks_ready = node_count(w->node).blanks_ready;
    m.worker_load = &load;
    link_send(w->link, &m.base);
}

/* ---- launcher ---- */

static void dial(struct worker *w)
{
    static const struct replicas_callbacks callbacks = {.on_hello = on_hello,
                                                        .on_name = on_name,
                                                        .on_message = on_message,
                                                        .on_lost = on_lost,
                                                        .on_failed = on_dial_failed};
    struct error e = {0};
    if (w->replicas == NULL &&
        replicas_new(w->loop, credentials_addresses(w->credentials), w->credentials, &callbacks, w,
                     &w->replicas, &e) != ERR_OK) {
        log_error("worker.failed", LOG_STR("why", e.text));
        w->failed = true;
        loop_stop(w->loop);
    }
}

static void on_launcher_event(struct launcher_client *c, void *user,
                              const struct launcher_event *event)
{
    struct worker *w = user;
    node_launcher_event(w->node, event);
    if (event->kind == LAUNCHER_CONFIG_OK)
        log_info("launcher.attached", LOG_I64("cgroup_version", event->cgroup_version));
    if (event->kind == LAUNCHER_ATTACHED)
        dial(w); /* from now on we know what lives here, and can say so */
}

static void on_launcher_closed(struct launcher_client *c, void *user, const char *why)
{
    struct worker *w = user;
    if (!w->shutdown_sent) { /* all sandboxes died with it: start anew with a new one */
        log_error("launcher.lost", LOG_STR("why", why));
        w->failed = true;
    }
    loop_stop(w->loop);
}

/* ---- stopping ---- */

static void launcher_shutdown(struct worker *w)
{
    struct launcher_command c = {.kind = LAUNCHER_SHUTDOWN};
    if (w->shutdown_sent)
        return;
    w->shutdown_sent = true;
    launcher_client_send(w->launcher, &c, NULL, NULL, 0); /* its end is the end of its socket */
}

static void on_empty(void *user)
{
    launcher_shutdown(user);
}

static void on_stop_timer(struct loop_timer *timer)
{
    struct worker *w = container_of(timer, struct worker, stop_timer);
    if (w->shutdown_sent) {
        log_error("worker.stop", LOG_STR("why", "the launcher did not end in time"));
        loop_stop(w->loop);
        return;
    }
    launcher_shutdown(w);
    loop_timer_start(w->loop, timer, loop_now_ns(w->loop) + STOP_PATIENCE_MS * NS_PER_MS);
}

static void on_signal(struct loop_signals *s, int signo)
{
    struct worker *w = container_of(s, struct worker, signals);
    struct node_counts there = node_count(w->node);
    uint32_t sandboxes = there.starting + there.ready; /* of those that stop nothing is lost */
    if (w->stopping)
        return;
    w->stopping = true;
    if (signo == SIGUSR1 && sandboxes > 0) {
        log_info("worker.leaves", LOG_U64("sandboxes", sandboxes));
        loop_stop(w->loop);
        return;
    }
    log_info("worker.stopping", LOG_I64("signal", signo));
    if (w->welcome) {
        Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
        m.goodbye = true;
        link_send(w->link, &m.base);
    }
    loop_timer_start(w->loop, &w->stop_timer, loop_now_ns(w->loop) + STOP_PATIENCE_MS * NS_PER_MS);
    node_stop_all(w->node, STOP_GRACE_MS_DEFAULT);
}

/* ---- metrics ---- */

static void on_request(struct http_exchange *x, void *user)
{
    struct worker *w = user;
    const struct http_request *r = http_exchange_request(x);
    cleanup(buf_done) struct buf body = {0};
    if (r->method != HTTP_GET && r->method != HTTP_HEAD) {
        http_exchange_answer(x, 405, "text/plain", STR("only GET\n"), "Allow: GET, HEAD\r\n");
        return;
    }
    if (str_equal(r->path, STR("/healthz"))) {
        http_exchange_answer(x, 200, "text/plain", STR("ok\n"), NULL);
        return;
    }
    if (str_equal(r->path, STR("/readyz"))) {
        http_exchange_answer(x, w->welcome ? 200 : 503, "text/plain",
                             w->welcome ? STR("ok\n") : STR("the control plane is not reached\n"),
                             NULL);
        return;
    }
    if (!str_equal(r->path, STR("/metrics"))) {
        http_exchange_answer(x, 404, "text/plain", STR("/metrics, /healthz and /readyz are here\n"),
                             NULL);
        return;
    }
    struct node_counts c = node_count(w->node);
    buf_printf(&body, "# HELP dirigent_worker_sandboxes Sandboxes on this worker by state.\n# TYPE "
                      "dirigent_worker_sandboxes gauge\n");
    buf_printf(&body,
               "dirigent_worker_sandboxes{state=\"starting\"} "
               "%u\ndirigent_worker_sandboxes{state=\"ready\"} %u\n",
               c.starting, c.ready);
    buf_printf(&body, "dirigent_worker_sandboxes{state=\"stopping\"} %u\n", c.stopping);
    buf_printf(&body, "# HELP dirigent_worker_versions Versions of functions known here.\n# TYPE "
                      "dirigent_worker_versions gauge\n");
    buf_printf(&body, "dirigent_worker_versions %u\n", c.versions);
    buf_printf(&body, "# HELP dirigent_worker_blanks Parked sandboxes that wait for a function.\n"
                      "# TYPE dirigent_worker_blanks gauge\n");
    buf_printf(&body, "dirigent_worker_blanks %u\n", c.blanks_ready);
    buf_printf(&body, "# HELP dirigent_worker_starts_total Sandboxes given to the launcher.\n# "
                      "TYPE dirigent_worker_starts_total counter\n");
    buf_printf(&body, "dirigent_worker_starts_total %" PRIu64 "\n", c.started_total);
    buf_printf(&body, "# HELP dirigent_worker_failures_total Sandboxes that ended without an "
                      "order.\n# TYPE dirigent_worker_failures_total counter\n");
    buf_printf(&body, "dirigent_worker_failures_total %" PRIu64 "\n", c.failed_total);
    buf_printf(&body, "# HELP dirigent_worker_connected Whether the control plane is reached.\n# "
                      "TYPE dirigent_worker_connected gauge\n");
    buf_printf(&body, "dirigent_worker_connected %d\n", w->welcome);
    http_exchange_answer(x, 200, "text/plain; version=0.0.4", buf_str(&body), NULL);
}

/* ---- start ---- */

/* The address of the interface that leads to the control plane: what connect(2) of a datagram
 * socket picks. */
static void address_find(struct worker *w)
{
    struct sockaddr_storage peer, own = {0};
    socklen_t bytes, own_bytes = sizeof(own);
    char text[80] = "127.0.0.1";
    if (w->settings.address[0] != '\0') {
        (void)snprintf(w->address, sizeof(w->address), "%s", w->settings.address);
        return;
    }
    const char *all = credentials_addresses(w->credentials);
    cleanup(free_pointer) char *first = mem_printf("%.*s", (int)strcspn(all, ","), all);
    if (address_parse(first, &peer, &bytes, NULL) == ERR_OK) {
        cleanup(fd_close) int fd = socket(peer.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&peer, bytes) == 0 &&
            getsockname(fd, (struct sockaddr *)&own, &own_bytes) == 0)
            address_format((struct sockaddr *)&own, text, sizeof(text));
    }
    char *colon = strrchr(text, ':');
    if (colon != NULL)
        *colon = '\0';
    (void)snprintf(w->address, sizeof(w->address), "%s", text);
}

static enum err launcher_configure(const struct worker *w, uid_t uid, struct launcher_config *c,
                                   struct error *e)
{
    struct in_addr pool;
    *c = (struct launcher_config){.host_port_base = (uint16_t)w->settings.host_port_base,
                                  .slots_max = (uint32_t)w->settings.slots,
                                  .blanks_min = (uint32_t)w->settings.blanks,
                                  .probe = strcmp(w->settings.readiness, "connect") == 0,
                                  .quarantine_ms = (uint32_t)w->settings.quarantine,
                                  .orphan_ms = (uint32_t)w->settings.orphan_after,
                                  .userns_base = 1u << 20,
                                  .worker_uid = uid,
                                  .cgroup_version = (int32_t)w->settings.cgroup};
    char base[64];
    (void)snprintf(base, sizeof(base), "%.*s", (int)strcspn(w->settings.address_pool, "/"),
                   w->settings.address_pool);
    if (inet_pton(AF_INET, base, &pool) != 1)
        return error_field(e, ERR_USAGE, "address_pool", "--address-pool: '%s' is no IPv4 address",
                           w->settings.address_pool);
    c->pool_ip = ntohl(pool.s_addr);
    if (strcmp(w->settings.readiness, "listen") != 0 &&
        strcmp(w->settings.readiness, "connect") != 0)
        return error_field(e, ERR_USAGE, "readiness",
                           "--readiness: '%s' is neither listen nor connect",
                           w->settings.readiness);
    if (w->settings.slots == 0 || w->settings.slots > SANDBOXES_PER_WORKER_MAX)
        return error_field(e, ERR_USAGE, "slots", "--slots: %" PRIu64 " is not from 1 to %u",
                           w->settings.slots, SANDBOXES_PER_WORKER_MAX);
    if (w->settings.host_port_base == 0 ||
        w->settings.host_port_base + w->settings.slots > UINT16_MAX)
        return error_field(e, ERR_USAGE, "host_port_base",
                           "--host-port-base: %" PRIu64 " and %" PRIu64
                           " slots go beyond port 65535",
                           w->settings.host_port_base, w->settings.slots);
    if (w->settings.cgroup > 2)
        return error_field(e, ERR_USAGE, "cgroup", "--cgroup: %" PRIu64 " is neither 0, 1 nor 2",
                           w->settings.cgroup);
    if (strlen(w->run_dir) >= sizeof(c->run_dir))
        return error_field(e, ERR_USAGE, "run_dir", "--run-dir: '%s' is too long", w->run_dir);
    strcpy(c->run_dir, w->run_dir);
    if (w->settings.instance[0] != '\0') {
        size_t bytes = strlen(w->settings.instance);
        if (bytes > 6 ||
            strspn(w->settings.instance, "abcdefghijklmnopqrstuvwxyz0123456789") != bytes)
            return error_field(e, ERR_USAGE, "instance",
                               "--instance: '%s' is not 1 to 6 of a-z and 0-9",
                               w->settings.instance);
        strcpy(c->instance, w->settings.instance);
        return ERR_OK;
    }
    uint64_t hash = str_hash(str_of(w->run_dir));
    for (int i = 0; i < 6; i++, hash /= 36)
        c->instance[i] = "0123456789abcdefghijklmnopqrstuvwxyz"[hash % 36];
    return ERR_OK;
}

static void name_find(struct worker *w)
{
    (void)snprintf(w->name, sizeof(w->name), "%s", credentials_name(w->credentials));
    if (w->name[0] == '\0' && (gethostname(w->name, sizeof(w->name) - 1) < 0 || w->name[0] == '\0'))
        (void)snprintf(w->name, sizeof(w->name), "worker");
}

/* As the user that will renew it: root's own rights would hide a key that it cannot read. */
static enum err credentials_open(struct worker *w, uid_t uid, gid_t gid, struct error *e)
{
    struct credentials_options options = {.loop = w->loop,
                                          .tls = w->settings.tls,
                                          .data_path = w->data_dir,
                                          .addresses = w->settings.control_plane,
                                          .role = NODE_WORKER,
                                          .name = w->settings.name};
    int death_signal = 0; /* changing ids forgets it (prctl(2)) */
    if (prctl(PR_GET_PDEATHSIG, &death_signal) < 0 || setegid(gid) < 0 || seteuid(uid) < 0)
        return error_errno(e, "become user %u for a moment", uid);
    enum err err = credentials_new(&options, &w->credentials, e);
    if (seteuid(0) < 0 || setegid(0) < 0 ||
        (death_signal != 0 && prctl(PR_SET_PDEATHSIG, death_signal) < 0))
        return error_errno(e, "become root again");
    return err;
}

/* As root; ends without privileges. */
static enum err root_stage(struct worker *w, int *ret_launcher_fd, struct error *e)
{
    uid_t uid;
    gid_t gid;
    bool started;
    if (geteuid() != 0)
        return error_set(e, ERR_PERMISSION,
                         "a worker must be started as root: it starts the launcher, which makes "
                         "namespaces and cgroups, and then gives up "
                         "its own privileges");
    enum err err = privileges_resolve(w->settings.user, PRIVILEGES_UID_WORKER, &uid, &gid, e);
    if (err == ERR_OK)
        err = program_dir_open(w->settings.data_dir, "worker", uid, gid, &w->data_dir,
                               &w->data_lock, e);
    if (err == ERR_OK)
        err =
            program_dir_open(w->settings.run_dir, "worker", uid, gid, &w->run_dir, &w->run_lock, e);
    if (err == ERR_OK && chmod(w->data_dir, 0711) < 0) /* sandboxes reach their code through it */
        err = error_errno(e, "open directory '%s' for passing through", w->data_dir);
    if (err == ERR_OK) /* before anything is started */
        err = credentials_open(w, uid, gid, e);
    if (err != ERR_OK)
        return err;
    name_find(w);
    address_find(w);
    struct launcher_config config;
    if (err == ERR_OK)
        err = launcher_configure(w, uid, &config, e);
    if (err == ERR_OK)
        err = launcher_open(&config, ret_launcher_fd, &started, e);
    if (err == ERR_OK)
        err = privileges_drop(uid, gid, e);
    return err;
}

static enum err parts_make(struct worker *w, int launcher_fd, struct error *e)
{
    static const struct launcher_callbacks launcher_callbacks = {.on_event = on_launcher_event,
                                                                 .on_closed = on_launcher_closed};
    static const struct code_store_callbacks code_callbacks = {
        .on_want = on_want, .on_ready = on_code_ready, .is_used = code_is_used};
    static const struct http_server_callbacks http_callbacks = {.on_request = on_request};
    static const int signals[] = {SIGTERM, SIGINT, SIGUSR1};
    char *code cleanup(free_pointer) = mem_printf("%s/code", w->data_dir);
    char *logs cleanup(free_pointer) = mem_printf("%s/logs", w->data_dir);
    struct error http_error = {0};
    enum err err = ERR_OK;
    w->signals.on_signal = on_signal;
    if (err == ERR_OK)
        err = loop_signals_start(w->loop, &w->signals, signals, ARRAY_COUNT(signals), e);
    if (err == ERR_OK)
        err = code_store_new(w->loop, code, &code_callbacks, w, &w->code, e);
    if (err == ERR_OK)
        err = logs_new(w->loop, logs, on_log_chunk, w, &w->logs, e);
    if (err == ERR_OK)
        err = launcher_client_new(w->loop, launcher_fd, &launcher_callbacks, w, &w->launcher, e);
    if (err != ERR_OK)
        return err;
    w->node = node_new(&(struct node_options){.loop = w->loop,
                                              .launcher = w->launcher,
                                              .code = w->code,
                                              .logs = w->logs,
                                              .address = w->address,
                                              .on_report = on_report,
                                              .on_empty = on_empty,
                                              .user = w});
    if (w->settings.metrics[0] != '\0' &&
        http_server_new(w->loop, w->settings.metrics, &http_callbacks, w, &w->http, &http_error) !=
            ERR_OK)
        log_warn("worker.no_metrics",
                 LOG_STR("why", http_error.text)); /* no reason not to run functions */
    on_load_timer(&w->load_timer);
    on_collect_timer(&w->collect_timer);
    struct launcher_command attach = {.kind = LAUNCHER_ATTACH, .protocol = LAUNCHER_PROTOCOL};
    launcher_client_send(w->launcher, &attach, NULL, NULL, 0);
    return ERR_OK;
}

static enum log_level level_of(const char *text)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0)
            return (enum log_level)i;
    return LOG_LEVEL_INFO;
}

int worker_main(int argc, char **argv)
{
    static struct worker w = {.data_lock = -1, .run_lock = -1};
    struct error e = {0};
    int launcher_fd = -1;
    enum err err = settings_load("worker", "Starts and watches sandboxes on this host.", table,
                                 ARRAY_COUNT(table), argc, argv, &w.settings, &e);
    if (err == ERR_END)
        return 0;
    dirigent__to_control_plane__init(&w.out);
    w.flush.on_turn_end = on_flush;
    loop_timer_init(&w.load_timer, on_load_timer);
    loop_timer_init(&w.stop_timer, on_stop_timer);
    loop_timer_init(&w.collect_timer, on_collect_timer);
    if (err == ERR_OK) {
        log_init("worker", level_of(w.settings.log_level));
        err = loop_new(&w.loop, &e);
    }
    if (err == ERR_OK) {
        err = root_stage(&w, &launcher_fd, &e);
    }
    if (err == ERR_OK)
        err = parts_make(&w, launcher_fd, &e);
    if (err != ERR_OK) {
        fprintf(stderr, "dirigent worker: %s\n", e.text);
        return err_exit_code(err);
    }
    loop_run(w.loop);
    replicas_free(w.replicas);
    http_server_free(w.http);
    credentials_free(w.credentials);
    loop_run_once(w.loop, 0);
    launcher_client_free(w.launcher);
    node_free(w.node);
    code_store_free(w.code);
    logs_free(w.logs);
    out_clear(&w);
    loop_signals_stop(&w.signals);
    loop_free(w.loop);
    settings_done(table, ARRAY_COUNT(table), &w.settings);
    return w.failed ? 1 : 0;
}
