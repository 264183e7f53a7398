/* node.c - the life of versions and sandboxes on one worker. */
#include "worker/node.h"
#include "base/crash_point.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/list.h"
#include "base/log.h"
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WRONG_PORT_PATIENCE_MS 3000u /* after it listened elsewhere: the right port may come yet \
                                      */

enum state { STATE_STARTING, STATE_READY, STATE_STOPPING, STATE_GONE, STATE_COUNT };
#define TO(s) (1u << (s))
static const struct {
    const char *name;
    unsigned next; /* the states that may follow */
    Dirigent__SandboxStatus__State wire;
} states[STATE_COUNT] = {
    [STATE_STARTING] = {"starting", TO(STATE_READY) | TO(STATE_STOPPING) | TO(STATE_GONE),
                        DIRIGENT__SANDBOX_STATUS__STATE__STARTING},
    [STATE_READY] = {"ready", TO(STATE_STOPPING) | TO(STATE_GONE),
                     DIRIGENT__SANDBOX_STATUS__STATE__READY},
    [STATE_STOPPING] = {"stopping", TO(STATE_GONE), DIRIGENT__SANDBOX_STATUS__STATE__STOPPING},
    [STATE_GONE] = {"gone", 0, DIRIGENT__SANDBOX_STATUS__STATE__GONE},
};

enum version_state { VERSION_NEW, VERSION_CODE, VERSION_TEMPLATE, VERSION_READY };

struct version {
    uint64_t function_id;
    uint32_t number;
    Dirigent__VersionSpec
        *spec; /* NULL: adopted from the launcher, and not told yet by the control plane */
    enum version_state state;
    struct list sandboxes;
    uint32_t sandbox_count;
    bool dropped;
};

struct sandbox {
    struct node *node;
    struct version *version;
    struct list of_version;
    uint64_t id;
    enum state state;
    bool launched; /* the launcher knows it */
    bool stop_ordered;
    Dirigent__GoneReason kill_reason; /* why we killed it ourselves */
    uint16_t wrong_port;
    struct loop_timer timer; /* start deadline; when stopping, the end of the grace */
    char address[48], host_address[72];
    uint64_t started_at_ms;
    uint32_t create_us, exec_us, listen_us;
};

struct node {
    struct node_options options;
    struct map versions, sandboxes;
    struct node_counts counts;
    bool emptying;
};

static uint64_t version_key(uint64_t function_id, uint32_t number)
{
    return function_id << 24 ^ number;
}

/* ---- reports ---- */

static void status_fill(const struct sandbox *s, Dirigent__SandboxStatus *m)
{
    dirigent__sandbox_status__init(m);
    m->id = s->id;
    m->function_id = s->version->function_id;
    m->version = s->version->number;
    m->state = states[s->state].wire;
    m->address = (char *)s->address;
    m->host_address = (char *)s->host_address;
    m->started_at_ms = s->started_at_ms;
    m->create_us = s->create_us;
    m->exec_us = s->exec_us;
    m->listen_us = s->listen_us;
}

/* The only writer of `state`. */
static void sandbox_move(struct sandbox *s, enum state to)
{
    assert((states[s->state].next & TO(to)) != 0);
    log_debug("sandbox.state", LOG_U64("id", s->id), LOG_STR("from", states[s->state].name),
              LOG_STR("to", states[to].name));
    s->state = to;
}

static void version_end(struct node *n, struct version *v)
{
    if (!v->dropped || v->sandbox_count > 0)
        return;
    struct launcher_command drop = {
        .kind = LAUNCHER_TEMPLATE_DROP, .function_id = v->function_id, .version = v->number};
    launcher_client_send(n->options.launcher, &drop, NULL, NULL, 0);
    (void)map_remove(&n->versions, version_key(v->function_id, v->number));
    if (v->spec != NULL)
        dirigent__version_spec__free_unpacked(v->spec, NULL);
    free(v);
}

struct ending {
    Dirigent__GoneReason reason;
    int exit_code, signal;
    uint64_t memory_peak_bytes;
    const char *detail;
};

static void sandbox_end(struct sandbox *s, const struct ending *why)
{
    struct node *n = s->node;
    Dirigent__SandboxStatus m;
    cleanup(buf_done) struct buf output = {0};
    bool failed = why->reason != DIRIGENT__GONE_REASON__GONE_STOPPED;
    sandbox_move(s, STATE_GONE);
    loop_timer_stop(n->options.loop, &s->timer);
    status_fill(s, &m);
    if (failed && s->launched) {
        logs_tail(n->options.logs, s->version->function_id, s->id, EXIT_OUTPUT_BYTES_MAX, &output);
        log_warn("sandbox.failed", LOG_U64("id", s->id),
                 LOG_U64("function", s->version->function_id),
                 LOG_STR("reason", protobuf_c_enum_descriptor_get_value(
                                       &dirigent__gone_reason__descriptor, (int)why->reason)
                                       ->name),
                 LOG_STR("detail", why->detail));
    }
    n->counts.failed_total += failed;
    m.reason = why->reason;
    m.exit_code = why->exit_code;
    m.signal = why->signal;
    m.wrong_port = s->wrong_port;
    m.detail = (char *)why->detail;
    m.last_output.data = (uint8_t *)output.data;
    m.last_output.len = output.bytes;
    m.memory_peak_bytes = why->memory_peak_bytes;
    n->options.on_report(n->options.user, &m);
    struct version *v = s->version;
    (void)map_remove(&n->sandboxes, s->id);
    list_remove(&s->of_version);
    v->sandbox_count--;
    free(s);
    version_end(n, v);
    if (n->emptying && n->sandboxes.count == 0)
        n->options.on_empty(n->options.user);
}

static void kill_now(struct sandbox *s)
{
    struct launcher_command kill = {.kind = LAUNCHER_KILL, .sandbox_id = s->id};
    launcher_client_send(s->node->options.launcher, &kill, NULL, NULL, 0);
}

/* ---- versions ---- */

static void version_failed(struct node *n, struct version *v, Dirigent__GoneReason reason,
                           const char *why)
{
    struct ending ending = {.reason = reason, .detail = why};
    v->state = VERSION_NEW; /* the next start tries again */
    v->sandbox_count++;     /* held: the last of its sandboxes may end it */
    while (!list_is_empty(&v->sandboxes))
        sandbox_end(list_entry(v->sandboxes.next, struct sandbox, of_version), &ending);
    v->sandbox_count--;
    version_end(n, v);
}

static void strings_put(struct buf *b, const char *text)
{
    buf_append(b, text, strlen(text) + 1);
}

/* The environment: what the platform promises first, then the user's, who may override all but
 * PORT. */
static uint32_t environment_put(const Dirigent__VersionSpec *spec, struct buf *strings)
{
    static const struct {
        const char *name, *value;
    } defaults[] = {{"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                    {"HOME", "/tmp"},
                    {"TMPDIR", "/tmp"},
                    {"LANG", "C.UTF-8"}};
    uint32_t count = 0;
    for (size_t i = 0; i < ARRAY_COUNT(defaults); i++) {
        bool own = false;
        for (size_t k = 0; k < spec->n_env; k++)
            own |= strcmp(spec->env[k]->name, defaults[i].name) == 0;
        if (own)
            continue;
        buf_printf(strings, "%s=%s", defaults[i].name, defaults[i].value);
        buf_append(strings, "", 1);
        count++;
    }
    buf_printf(strings, "PORT=%u", spec->port);
    buf_append(strings, "", 1);
    buf_printf(strings, "DIRIGENT_FUNCTION=%s", spec->function_name);
    buf_append(strings, "", 1);
    buf_printf(strings, "DIRIGENT_VERSION=%u", spec->version);
    buf_append(strings, "", 1);
    count += 3;
    for (size_t k = 0; k < spec->n_env && count < ENV_COUNT_MAX; k++) {
        if (strcmp(spec->env[k]->name, "PORT") == 0)
            continue;
        buf_printf(strings, "%s=%s", spec->env[k]->name, spec->env[k]->value);
        buf_append(strings, "", 1);
        count++;
    }
    return count;
}

static void template_order(struct node *n, struct version *v, int dir_fd)
{
    const Dirigent__VersionSpec *spec = v->spec;
    cleanup(buf_done) struct buf strings = {0};
    for (size_t i = 0; i < spec->n_command; i++)
        strings_put(&strings, spec->command[i]);
    uint32_t envc = environment_put(spec, &strings);
    strings_put(&strings, spec->function_name);
    if (strings.bytes + sizeof(struct launcher_command) > LAUNCHER_PACKET_BYTES_MAX) {
        version_failed(n, v, DIRIGENT__GONE_REASON__GONE_INTERNAL,
                       "command and environment are too large");
        return;
    }
    struct launcher_command c = {
        .kind = LAUNCHER_TEMPLATE,
        .template = {.function_id = v->function_id,
                     .version = v->number,
                     .argc = (uint32_t)spec->n_command,
                     .envc = envc,
                     .strings_bytes = (uint32_t)strings.bytes,
                     .memory_bytes = spec->memory_bytes,
                     .tmp_bytes = spec->tmp_bytes,
                     .cpu_milli = spec->cpu_milli,
                     .pids_max = spec->pids_max,
                     .port = (uint16_t)spec->port,
                     .network_none = spec->network == DIRIGENT__NETWORK__NETWORK_NONE,
                     .has_code = dir_fd >= 0,
                     .start_deadline_ms = spec->start_deadline_ms}};
    v->state = VERSION_TEMPLATE;
    launcher_client_send(n->options.launcher, &c, strings.data, &dir_fd, dir_fd >= 0 ? 1 : 0);
}

static void version_build(struct node *n, struct version *v)
{
    int dir_fd = -1;
    if (v->state != VERSION_NEW || v->spec == NULL)
        return;
    if (v->spec->code_digest[0] == '\0') {
        template_order(n, v, -1);
        return;
    }
    enum err err = code_store_need(n->options.code, v->spec->code_digest, &dir_fd);
    if (err == ERR_OK)
        template_order(n, v, dir_fd);
    else if (err == ERR_MORE)
        v->state = VERSION_CODE;
    else
        version_failed(n, v, DIRIGENT__GONE_REASON__GONE_CODE_UNAVAILABLE,
                       "the digest of the code is not valid");
}

static struct version *version_new(struct node *n, uint64_t function_id, uint32_t number)
{
    struct version *v = mem_new(sizeof(*v));
    v->function_id = function_id;
    v->number = number;
    list_init(&v->sandboxes);
    map_put(&n->versions, version_key(function_id, number), v);
    return v;
}

static Dirigent__VersionSpec *spec_copy(const Dirigent__VersionSpec *spec)
{
    size_t bytes = dirigent__version_spec__get_packed_size(spec);
    uint8_t *packed = mem_new(bytes + 1);
    (void)dirigent__version_spec__pack(spec, packed);
    Dirigent__VersionSpec *copy = dirigent__version_spec__unpack(NULL, bytes, packed);
    free(packed);
    return copy;
}

/* Older versions of the function that nothing runs any more leave with their templates. */
static void older_drop(struct node *n, const struct version *newer)
{
    for (bool again = true; again;) {
        size_t cursor = 0;
        again = false;
        for (struct version *v; !again && (v = map_next(&n->versions, &cursor)) != NULL;)
            if (v->function_id == newer->function_id && v->number + 1 < newer->number &&
                !v->dropped) {
                v->dropped = again = true;
                version_end(n, v);
            }
    }
}

void node_prepare(struct node *n, const Dirigent__VersionSpec *spec)
{
    struct version *v = map_get(&n->versions, version_key(spec->function_id, spec->version));
    if (v == NULL)
        v = version_new(n, spec->function_id, spec->version);
    v->dropped = false;
    if (v->spec == NULL)
        v->spec = spec_copy(spec);
    older_drop(n, v);
    version_build(n, v);
}

void node_drop(struct node *n, uint64_t function_id, uint32_t number)
{
    /* A function that goes takes all its versions and its output with it. */
    for (bool again = true; again;) {
        size_t cursor = 0;
        again = false;
        for (struct version *v; !again && (v = map_next(&n->versions, &cursor)) != NULL;)
            if (v->function_id == function_id && v->number <= number && !v->dropped) {
                v->dropped = again = true;
                version_end(n, v);
            }
    }
}

void node_code_ready(struct node *n, const char *digest, enum err err, int dir_fd, const char *why)
{
    for (bool again = true; again;) {
        size_t cursor = 0;
        again = false;
        for (struct version *v; !again && (v = map_next(&n->versions, &cursor)) != NULL;) {
            if (v->state != VERSION_CODE || v->spec == NULL ||
                strcmp(v->spec->code_digest, digest) != 0)
                continue;
            again = true; /* the map may change */
            if (err == ERR_OK)
                template_order(n, v, dir_fd);
            else
                version_failed(n, v, DIRIGENT__GONE_REASON__GONE_CODE_UNAVAILABLE, why);
        }
    }
}

bool node_uses_code(const struct node *n, const char *digest)
{
    size_t cursor = 0;
    for (const struct version *v; (v = map_next(&n->versions, &cursor)) != NULL;)
        if (v->spec == NULL || strcmp(v->spec->code_digest, digest) == 0)
            return true; /* of one that is not told yet: it might be */
    return false;
}

/* ---- sandboxes ---- */

static void on_timer(struct loop_timer *timer)
{
    struct sandbox *s = container_of(timer, struct sandbox, timer);
    if (s->state == STATE_STARTING) {
        s->kill_reason = s->wrong_port != 0 ? DIRIGENT__GONE_REASON__GONE_WRONG_PORT
                                            : DIRIGENT__GONE_REASON__GONE_START_TIMEOUT;
        if (!s->launched) { /* it waits for code or template */
            sandbox_end(s,
                        &(struct ending){.reason = DIRIGENT__GONE_REASON__GONE_CODE_UNAVAILABLE,
                                         .detail = "the code or its root was not ready in time"});
            return;
        }
    }
    kill_now(s);
}

static void launch(struct sandbox *s)
{
    struct node *n = s->node;
    struct error e = {0};
    cleanup(fd_close) int fd = -1;
    if (logs_open(n->options.logs, s->version->function_id, s->id, &fd, &e) != ERR_OK) {
        sandbox_end(
            s, &(struct ending){.reason = DIRIGENT__GONE_REASON__GONE_NO_ROOM, .detail = e.text});
        return;
    }
    struct launcher_command c = {.kind = LAUNCHER_START,
                                 .sandbox_id = s->id,
                                 .function_id = s->version->function_id,
                                 .version = s->version->number};
    s->launched = true;
    n->counts.started_total++;
    launcher_client_send(n->options.launcher, &c, NULL, &fd, 1);
}

static struct sandbox *sandbox_new(struct node *n, struct version *v, uint64_t id)
{
    struct sandbox *s = mem_new(sizeof(*s));
    s->node = n;
    s->version = v;
    s->id = id;
    loop_timer_init(&s->timer, on_timer);
    list_push_back(&v->sandboxes, &s->of_version);
    v->sandbox_count++;
    map_put(&n->sandboxes, id, s);
    return s;
}

static void timer_after(struct sandbox *s, uint64_t ms)
{
    struct loop *loop = s->node->options.loop;
    loop_timer_start(loop, &s->timer, loop_now_ns(loop) + ms * NS_PER_MS);
}

void node_start(struct node *n, uint64_t id, uint64_t function_id, uint32_t number)
{
    struct version *v = map_get(&n->versions, version_key(function_id, number));
    CRASH_POINT("worker.create");
    if (map_get(&n->sandboxes, id) != NULL)
        return; /* said twice */
    if (v == NULL)
        v = version_new(n, function_id, number);
    struct sandbox *s = sandbox_new(n, v, id);
    if (v->spec == NULL || n->emptying) {
        sandbox_end(s, &(struct ending){
                           .reason = DIRIGENT__GONE_REASON__GONE_INTERNAL,
                           .detail = n->emptying ? "the worker is stopping"
                                                 : "the worker was not told about this version"});
        return;
    }
    timer_after(s, v->spec->start_deadline_ms > 0 ? v->spec->start_deadline_ms
                                                  : START_DEADLINE_MS_DEFAULT);
    if (v->state == VERSION_READY)
        launch(s);
    else
        version_build(n, v);
}

void node_stop(struct node *n, uint64_t id, uint32_t grace_ms)
{
    struct sandbox *s = map_get(&n->sandboxes, id);
    if (s == NULL || s->stop_ordered)
        return;
    s->stop_ordered = true;
    if (!s->launched) {
        sandbox_end(s,
                    &(struct ending){.reason = DIRIGENT__GONE_REASON__GONE_STOPPED, .detail = ""});
        return;
    }
    if (s->state != STATE_STOPPING)
        sandbox_move(s, STATE_STOPPING);
    if (grace_ms == 0) {
        kill_now(s);
        return;
    }
    struct launcher_command c = {.kind = LAUNCHER_SIGNAL, .sandbox_id = id, .signo = SIGTERM};
    launcher_client_send(n->options.launcher, &c, NULL, NULL, 0);
    timer_after(s, grace_ms);
}

void node_stop_all(struct node *n, uint32_t grace_ms)
{
    size_t count = 0, cursor = 0;
    uint64_t *ids = mem_new_array(n->sandboxes.count, sizeof(*ids));
    for (const struct sandbox *s; (s = map_next(&n->sandboxes, &cursor)) != NULL;)
        ids[count++] = s->id;
    for (size_t i = 0; i < count; i++)
        node_stop(n, ids[i], grace_ms);
    free(ids);
    n->emptying = true;
    if (n->sandboxes.count == 0)
        n->options.on_empty(n->options.user);
}

/* ---- the launcher's events ---- */

static void address_set(struct sandbox *s, const struct launcher_event *e)
{
    struct in_addr ip = {e->ip};
    char text[INET_ADDRSTRLEN] = "";
    (void)inet_ntop(AF_INET, &ip, text, sizeof(text));
    (void)snprintf(s->address, sizeof(s->address), "%s:%u", text, e->port);
    (void)snprintf(s->host_address, sizeof(s->host_address), "%s:%u", s->node->options.address,
                   e->host_port);
    s->started_at_ms = e->started_at_ms;
    s->create_us = e->create_us;
    s->exec_us = e->exec_us;
    s->listen_us = e->listen_us;
}

static void on_listening(struct sandbox *s, const struct launcher_event *e)
{
    Dirigent__SandboxStatus m;
    if (s->state != STATE_STARTING)
        return;
    loop_timer_stop(s->node->options.loop, &s->timer);
    CRASH_POINT("worker.ready");
    address_set(s, e);
    sandbox_move(s, STATE_READY);
    status_fill(s, &m);
    s->node->options.on_report(s->node->options.user, &m);
    CRASH_POINT("worker.reported");
}

static void on_exited(struct sandbox *s, const struct launcher_event *e)
{
    struct ending end = {.memory_peak_bytes = e->memory_peak_bytes, .detail = ""};
    if (s->stop_ordered) {
        end.reason = DIRIGENT__GONE_REASON__GONE_STOPPED;
    } else if (s->kill_reason != DIRIGENT__GONE_REASON__GONE_UNKNOWN) {
        end.reason = s->kill_reason;
    } else if (e->oom) {
        end.reason = DIRIGENT__GONE_REASON__GONE_OUT_OF_MEMORY;
    } else if (WIFEXITED(e->wait_status)) {
        end.reason = DIRIGENT__GONE_REASON__GONE_EXITED;
        end.exit_code = WEXITSTATUS(e->wait_status);
    } else {
        end.reason = DIRIGENT__GONE_REASON__GONE_SIGNALED;
        end.signal = WTERMSIG(e->wait_status);
    }
    sandbox_end(s, &end);
}

static void on_template(struct node *n, const struct launcher_event *e, bool ready)
{
    struct version *v = map_get(&n->versions, version_key(e->function_id, e->version));
    if (v == NULL && ready)
        v = version_new(n, e->function_id, e->version); /* kept by the launcher over our restart */
    if (v == NULL)
        return;
    if (!ready) {
        version_failed(n, v, DIRIGENT__GONE_REASON__GONE_INTERNAL, e->text);
        return;
    }
    v->state = VERSION_READY;
    v->sandbox_count++; /* held while its sandboxes may end */
    list_for_each(s, &v->sandboxes, struct sandbox, of_version)
    {
        if (!s->launched)
            launch(s);
    }
    v->sandbox_count--;
    version_end(n, v);
}

static void on_adopted(struct node *n, const struct launcher_event *e)
{
    struct version *v = map_get(&n->versions, version_key(e->function_id, e->version));
    if (v == NULL)
        v = version_new(n, e->function_id, e->version);
    struct sandbox *s = sandbox_new(n, v, e->sandbox_id);
    s->launched = true;
    if (e->is_ready) {
        address_set(s, e);
        sandbox_move(s, STATE_READY);
        return;
    }
    s->stop_ordered = true; /* whoever ordered it may have forgotten it: a new one starts faster
                               than we find out */
    sandbox_move(s, STATE_STOPPING);
    kill_now(s);
}

void node_launcher_event(struct node *n, const struct launcher_event *e)
{
    struct sandbox *s = map_get(&n->sandboxes, e->sandbox_id);
    switch ((enum launcher_event_kind)e->kind) {
    case LAUNCHER_TEMPLATE_READY:
    case LAUNCHER_TEMPLATE_FAILED:
        on_template(n, e, e->kind == LAUNCHER_TEMPLATE_READY);
        break;
    case LAUNCHER_LISTENING:
        if (s != NULL)
            on_listening(s, e);
        break;
    case LAUNCHER_WRONG_PORT:
        if (s != NULL && s->state == STATE_STARTING) {
            s->wrong_port = e->port;
            timer_after(s, WRONG_PORT_PATIENCE_MS);
        }
        break;
    case LAUNCHER_EXITED:
        if (s != NULL)
            on_exited(s, e);
        break;
    case LAUNCHER_START_FAILED:
        if (s != NULL)
            sandbox_end(s, &(struct ending){.reason = s->stop_ordered
                                                          ? DIRIGENT__GONE_REASON__GONE_STOPPED
                                                      : e->exec_errno != 0
                                                          ? DIRIGENT__GONE_REASON__GONE_EXEC_FAILED
                                                          : DIRIGENT__GONE_REASON__GONE_INTERNAL,
                                            .detail = e->text});
        break;
    case LAUNCHER_STATUS:
        on_adopted(n, e);
        break;
    case LAUNCHER_CONFIG_OK:
    case LAUNCHER_ATTACHED:
        break;
    case LAUNCHER_POOL:
        n->counts.blanks_ready = e->blanks_ready;
        break;
    }
}

/* ---- views ---- */

void node_each(const struct node *n,
               void (*each)(void *user, const Dirigent__SandboxStatus *status), void *user)
{
    size_t cursor = 0;
    for (const struct sandbox *s; (s = map_next(&n->sandboxes, &cursor)) != NULL;) {
        Dirigent__SandboxStatus m;
        status_fill(s, &m);
        each(user, &m);
    }
}

struct node_counts node_count(const struct node *n)
{
    struct node_counts c = n->counts;
    size_t cursor = 0;
    c.versions = (uint32_t)n->versions.count;
    for (const struct sandbox *s; (s = map_next(&n->sandboxes, &cursor)) != NULL;) {
        c.starting += s->state == STATE_STARTING;
        c.ready += s->state == STATE_READY;
        c.stopping += s->state == STATE_STOPPING;
    }
    return c;
}

struct node *node_new(const struct node_options *options)
{
    struct node *n = mem_new(sizeof(*n));
    n->options = *options;
    return n;
}

void node_free(struct node *n)
{
    if (n == NULL)
        return;
    size_t cursor = 0;
    for (struct sandbox *s; (s = map_next(&n->sandboxes, &cursor)) != NULL;) {
        loop_timer_stop(n->options.loop, &s->timer);
        free(s);
    }
    cursor = 0;
    for (struct version *v; (v = map_next(&n->versions, &cursor)) != NULL;) {
        if (v->spec != NULL)
            dirigent__version_spec__free_unpacked(v->spec, NULL);
        free(v);
    }
    map_done(&n->sandboxes);
    map_done(&n->versions);
    free(n);
}
