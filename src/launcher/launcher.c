/* launcher.c - the program: start, the worker's connection, shutdown. See launcher.h. */
#include "base/str.h"
#include "launcher/state.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define OUTGOING_BYTES_MAX (64 * MIB)
#define SHUTDOWN_MS 15000u
#define NEIGHBOUR_PATIENCE_MS 2000u

/* ---- to the worker ---- */

static void outgoing_flush(struct launcher *l)
{
    size_t done = 0;
    while (done < l->outgoing.bytes) {
        enum err err = packet_send(l->worker_fd, l->outgoing.data + done,
                                   sizeof(struct launcher_event), NULL, 0);
        if (err != ERR_OK && err != ERR_MORE)
            done = l->outgoing.bytes; /* its end is told by the descriptor */
        if (err != ERR_OK)
            break;
        done += sizeof(struct launcher_event);
    }
    buf_consume(&l->outgoing, done);
    loop_poll_change(&l->worker_poll, EPOLLIN | (l->outgoing.bytes > 0 ? EPOLLOUT : 0));
}

/* While no worker is attached nothing is sent: the next one asks for the state. */
void launcher_event_send(struct launcher *l, const struct launcher_event *event)
{
    if (l->worker_fd < 0)
        return;
    if (l->outgoing.bytes == 0 &&
        packet_send(l->worker_fd, event, sizeof(*event), NULL, 0) == ERR_OK)
        return;
    if (l->outgoing.bytes > OUTGOING_BYTES_MAX)
        return; /* a worker that reads nothing is asked to attach anew by its own failure */
    buf_append(&l->outgoing, event, sizeof(*event));
    loop_poll_change(&l->worker_poll, EPOLLIN | EPOLLOUT);
}

void launcher_slot_event(struct slot *s, uint32_t kind, struct launcher_event *e)
{
    *e = (struct launcher_event){
        .kind = kind,
        .protocol = LAUNCHER_PROTOCOL,
        .sandbox_id = s->sandbox_id,
        .function_id = s->template->function_id,
        .version = s->template->version,
        .slot = s->index,
        .ip = __builtin_bswap32(network_slot_ip(&s->launcher->network, s->index)),
        .host_port = (uint16_t)(s->launcher->config.host_port_base + s->index),
        .port = s->template->spec.port,
        .is_ready = s->is_ready,
        .is_running = s->started,
        .create_us = s->create_us,
        .exec_us = s->exec_us,
        .listen_us = s->listen_us,
        .exec_errno = s->exec_errno,
        .started_at_ms = s->started_at_ms,
    };
    memcpy(e->text, s->text, sizeof(s->text));
}

static void state_tell(struct launcher *l)
{
    struct launcher_event event = {.kind = LAUNCHER_CONFIG_OK,
                                   .protocol = LAUNCHER_PROTOCOL,
                                   .cgroup_version = l->shared.cgroups.version,
                                   .slots_free = l->config.slots_max - l->running};
    launcher_event_send(l, &event);
    size_t cursor = 0;
    for (struct template *t; (t = map_next(&l->templates, &cursor)) != NULL;) {
        if (!t->ready || t->dropped)
            continue;
        event = (struct launcher_event){
            .kind = LAUNCHER_TEMPLATE_READY, .function_id = t->function_id, .version = t->version};
        launcher_event_send(l, &event);
    }
    cursor = 0;
    for (struct slot *s; (s = map_next(&l->sandboxes, &cursor)) != NULL;) {
        launcher_slot_event(s, LAUNCHER_STATUS, &event);
        launcher_event_send(l, &event);
    }
    event = (struct launcher_event){.kind = LAUNCHER_ATTACHED};
    launcher_event_send(l, &event);
    pool_tell(l);
}

/* ---- from the worker ---- */

static struct template *template_get(struct launcher *l, uint64_t function_id, uint32_t version)
{
    struct template *t = map_get(&l->templates, template_key(function_id, version));
    return t != NULL && !t->dropped ? t : NULL;
}

static void template_failed(struct launcher *l, const struct launcher_template *spec,
                            const char *text)
{
    struct launcher_event event = {.kind = LAUNCHER_TEMPLATE_FAILED,
                                   .function_id = spec->function_id,
                                   .version = spec->version};
    (void)snprintf(event.text, sizeof(event.text), "%.500s", text);
    launcher_event_send(l, &event);
}

/* As many NUL-terminated strings as the command says, and nothing behind them. */
static bool strings_are_sound(const char *strings, const struct launcher_template *spec)
{
    uint32_t count = 0;
    if (spec->argc == 0 || spec->argc > 1024 || spec->envc > ENV_COUNT_MAX ||
        spec->strings_bytes == 0 || strings[spec->strings_bytes - 1] != '\0')
        return false;
    for (uint32_t i = 0; i < spec->strings_bytes; i++)
        count += strings[i] == '\0';
    return count == spec->argc + spec->envc + 1 && spec->port != 0 && spec->memory_bytes >= MIB &&
           spec->pids_max > 0;
}

static void on_template(struct launcher *l, const struct launcher_template *spec,
                        const char *strings, int code_fd)
{
    if (template_get(l, spec->function_id, spec->version) != NULL) {
        struct launcher_event event = {.kind = LAUNCHER_TEMPLATE_READY,
                                       .function_id = spec->function_id,
                                       .version = spec->version};
        if (template_get(l, spec->function_id, spec->version)->ready)
            launcher_event_send(l, &event);
        return;
    }
    uint32_t bases = (UINT32_MAX - l->config.userns_base) / ROOT_IDS_PER_VERSION;
    struct template *t = mem_new(sizeof(*t));
    t->launcher = l;
    t->function_id = spec->function_id;
    t->version = spec->version;
    t->spec = *spec;
    t->strings = mem_new(spec->strings_bytes);
    memcpy(t->strings, strings, spec->strings_bytes);
    t->limits = (struct cgroup_limits){spec->memory_bytes, spec->cpu_milli, spec->pids_max};
    t->mntns_fd = t->userns_fd = -1;
    /* The ranges go round: one is used again only after all others have been. */
    t->userns_index = l->userns_next++ % bases;
    t->userns_base = l->config.userns_base + t->userns_index * ROOT_IDS_PER_VERSION;
    map_put(&l->templates, template_key(t->function_id, t->version), t);
    struct error e = {0};
    if (helpers_template(l, t, code_fd, &e) != ERR_OK) {
        template_failed(l, spec, e.text);
        t->dropped = true;
        t->users++;
        template_release(l, t);
    }
}

static void on_start(struct launcher *l, const struct launcher_command *c, int output_fd)
{
    struct template *t = template_get(l, c->function_id, c->version);
    struct launcher_event event = {.kind = LAUNCHER_START_FAILED,
                                   .sandbox_id = c->sandbox_id,
                                   .function_id = c->function_id,
                                   .version = c->version};
    const char *why = NULL;
    if (t == NULL || !t->ready)
        why = "the version has no template";
    else if (map_get(&l->sandboxes, c->sandbox_id) != NULL)
        why = "a sandbox with this id exists";
    else if (l->running >= l->config.slots_max)
        why = "all slots are in use";
    if (why == NULL) {
        sandbox_start(l, c->sandbox_id, t, output_fd);
        return;
    }
    (void)close(output_fd);
    (void)snprintf(event.text, sizeof(event.text), "%s", why);
    launcher_event_send(l, &event);
}

/* A sandbox that still waits for a blank is only an order. */
static bool start_cancel(struct launcher *l, uint64_t sandbox_id)
{
    list_for_each(start, &l->starts, struct start, node)
    {
        if (start->sandbox_id != sandbox_id)
            continue;
        struct launcher_event event = {.kind = LAUNCHER_EXITED,
                                       .sandbox_id = sandbox_id,
                                       .function_id = start->template->function_id,
                                       .version = start->template->version,
                                       .wait_status = SIGKILL};
        list_remove(&start->node);
        (void)close(start->output_fd);
        template_release(l, start->template);
        free(start);
        launcher_event_send(l, &event);
        return true;
    }
    return false;
}

/* Of one that is not here, or no more: whoever asks for its end must not wait for it for ever. */
static void start_cancel_or_tell(struct launcher *l, uint64_t sandbox_id)
{
    if (start_cancel(l, sandbox_id))
        return;
    struct launcher_event event = {
        .kind = LAUNCHER_EXITED, .sandbox_id = sandbox_id, .wait_status = SIGKILL};
    launcher_event_send(l, &event);
}

static void shutdown_begin(struct launcher *l);

/* Returns false when the packet is not sound: the connection is closed then. */
static bool command_take(struct launcher *l, const struct launcher_command *c, size_t bytes,
                         int *fds, size_t fd_count)
{
    struct slot *s = map_get(&l->sandboxes, c->sandbox_id);
    switch ((enum launcher_command_kind)c->kind) {
    case LAUNCHER_ATTACH:
        if (c->protocol != LAUNCHER_PROTOCOL)
            return false;
        state_tell(l);
        return true;
    case LAUNCHER_TEMPLATE:
        if (bytes - sizeof(*c) != c->template.strings_bytes ||
            fd_count != (c->template.has_code ? 1u : 0u) ||
            !strings_are_sound((const char *)(c + 1), &c->template))
            return false;
        on_template(l, &c->template, (const char *)(c + 1), fd_count > 0 ? fds[0] : -1);
        return true;
    case LAUNCHER_TEMPLATE_DROP: {
        struct template *t = template_get(l, c->function_id, c->version);
        if (t != NULL) {
            t->users++;
            t->dropped = true;
            template_release(l, t);
        }
        return true;
    }
    case LAUNCHER_START:
        if (fd_count != 1)
            return false;
        on_start(l, c, fds[0]);
        fds[0] = -1; /* taken */
        return true;
    case LAUNCHER_SIGNAL:
        if (s != NULL)
            sandbox_signal(s, c->signo);
        else
            start_cancel_or_tell(l, c->sandbox_id);
        return true;
    case LAUNCHER_KILL:
        if (s != NULL)
            sandbox_kill(s);
        else
            start_cancel_or_tell(l, c->sandbox_id);
        return true;
    case LAUNCHER_SHUTDOWN:
        shutdown_begin(l);
        return true;
    }
    return false;
}

static void worker_lost(struct launcher *l)
{
    loop_poll_stop(&l->worker_poll);
    fd_close(&l->worker_fd);
    l->outgoing.bytes = 0;
    if (!l->shutting_down)
        loop_timer_start(l->loop, &l->orphan_timer,
                         loop_now_ns(l->loop) + l->config.orphan_ms * NS_PER_MS);
}

static void on_worker_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct launcher *l = container_of(poll, struct launcher, worker_poll);
    static _Alignas(8) char packet[LAUNCHER_PACKET_BYTES_MAX];
    if (epoll_events & EPOLLOUT)
        outgoing_flush(l);
    for (int i = 0; i < 64 && l->worker_fd >= 0; i++) {
        int fds[2];
        size_t fd_count;
        ssize_t n = packet_recv(l->worker_fd, packet, sizeof(packet), fds, 2, &fd_count);
        if (n < 0)
            return;
        bool sound = n >= (ssize_t)sizeof(struct launcher_command) &&
                     command_take(l, (struct launcher_command *)packet, (size_t)n, fds, fd_count);
        for (size_t k = 0; k < fd_count; k++)
            fd_close(&fds[k]);
        if (!sound) {
            if (n > 0)
                dprintf(2, "dirigent-launcher: the worker sent a packet that is not understood\n");
            worker_lost(l);
        }
    }
}

static void on_connection(struct loop_poll *poll, uint32_t epoll_events)
{
    struct launcher *l = container_of(poll, struct launcher, listen_poll);
    cleanup(fd_close) int fd = accept4(poll->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ucred peer = {0};
    socklen_t bytes = sizeof(peer);
    struct error e = {0};
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0 ||
        (peer.uid != 0 && peer.uid != l->config.worker_uid))
        return;
    if (l->worker_fd >= 0 || l->shutting_down)
        return; /* one worker at a time: the old one's descriptor tells when it is gone */
    l->worker_poll.on_ready = on_worker_ready;
    if (loop_poll_start(l->loop, &l->worker_poll, fd, EPOLLIN, &e) != ERR_OK)
        return;
    l->worker_fd = fd_take(&fd);
    loop_timer_stop(l->loop, &l->orphan_timer);
}

/* ---- the end ---- */

static void shutdown_begin(struct launcher *l)
{
    l->shutting_down = true;
    loop_stop(l->loop);
}

static void on_orphan(struct loop_timer *timer)
{
    struct launcher *l = container_of(timer, struct launcher, orphan_timer);
    dprintf(2, "dirigent-launcher: no worker for %u ms: stopping all sandboxes\n",
            l->config.orphan_ms);
    shutdown_begin(l);
}

static void on_signal(struct loop_signals *s, int signo)
{
    shutdown_begin(container_of(s, struct launcher, signals));
}

static void on_pool_timer(struct loop_timer *timer)
{
    pool_tell(container_of(timer, struct launcher, pool_timer));
}

static void on_refill_timer(struct loop_timer *timer)
{
    slots_refill(container_of(timer, struct launcher, refill_timer));
}

static void on_nothing(struct loop_timer *timer)
{
}

/* Kills and waits for all, then gives everything back to the host. */
static void everything_remove(struct launcher *l)
{
    struct loop_timer tick;
    loop_timer_init(&tick, on_nothing);
    uint64_t end = clock_mono_ns() + SHUTDOWN_MS * NS_PER_MS;
    for (uint32_t i = 0; i < l->config.slots_max; i++)
        if (l->slots[i].pid > 0)
            sandbox_kill(&l->slots[i]);
    for (bool left = true; left && clock_mono_ns() < end;) {
        left = l->births > 0;
        for (uint32_t i = 0; i < l->config.slots_max; i++) {
            struct slot *s = &l->slots[i];
            if (s->state == SLOT_PARKED && s->pid > 0)
                sandbox_kill(s); /* one that was born meanwhile */
            left |= s->pid > 0;
        }
        if (left)
            loop_run_once(l->loop, 50);
    }
    (void)kill(l->nursery_pid, SIGKILL);
    (void)kill(l->builder_pid, SIGKILL);
    /* A network namespace that the builder sent and nobody has taken lives as long as its message.
     */
    loop_poll_stop(&l->nursery_poll);
    loop_poll_stop(&l->builder_poll);
    fd_close(&l->nursery_fd);
    fd_close(&l->builder_fd);
    for (uint32_t i = 0; i < l->config.slots_max; i++) {
        helpers_anchor_end(&l->slots[i]);
        fd_close(&l->slots[i].netns_fd);
        cgroup_peak_done(&l->slots[i].memory_peak);
    }
    size_t cursor = 0;
    for (struct template *t; (t = map_next(&l->templates, &cursor)) != NULL;) {
        fd_close(&t->mntns_fd);
        fd_close(&t->userns_fd);
    }
    network_host_close(&l->network, l->forward_was_off);
    cgroup_tree_remove(&l->shared.cgroups);
    while (network_interfaces_left(&l->network) > 0 && clock_mono_ns() < end)
        (void)usleep(5000); /* the kernel takes namespaces down in its own time */
    char path[300];
    (void)snprintf(path, sizeof(path), "%s/launcher.sock", l->config.run_dir);
    (void)unlink(path);
    (void)snprintf(path, sizeof(path), "%s/launcher.lock", l->config.run_dir);
    (void)unlink(path);
}

/* ---- start ---- */

static enum err config_parse(int argc, char **argv, struct launcher_config *c, struct error *e)
{
    *c = (struct launcher_config){.host_port_base = 20000,
                                  .slots_max = 1024,
                                  .blanks_min = 16,
                                  .quarantine_ms = 500,
                                  .orphan_ms = 30000,
                                  .userns_base = 1 << 20};
    for (int i = 1; i < argc; i++) {
        const struct {
            const char *key;
            uint32_t *number;
        } numbers[] = {{"pool_ip=", &c->pool_ip},       {"slots_max=", &c->slots_max},
                       {"blanks_min=", &c->blanks_min}, {"quarantine_ms=", &c->quarantine_ms},
                       {"orphan_ms=", &c->orphan_ms},   {"userns_base=", &c->userns_base},
                       {"worker_uid=", &c->worker_uid}, {"probe=", &c->probe}};
        bool known = false;
        for (size_t k = 0; k < ARRAY_COUNT(numbers); k++) {
            size_t bytes = strlen(numbers[k].key);
            if (strncmp(argv[i], numbers[k].key, bytes) != 0)
                continue;
            *numbers[k].number = (uint32_t)strtoul(argv[i] + bytes, NULL, 10);
            known = true;
        }
        if (strncmp(argv[i], "host_port_base=", 15) == 0)
            c->host_port_base = (uint16_t)strtoul(argv[i] + 15, NULL, 10);
        else if (strncmp(argv[i], "cgroup_version=", 15) == 0)
            c->cgroup_version = (int32_t)strtol(argv[i] + 15, NULL, 10);
        else if (strncmp(argv[i], "run_dir=", 8) == 0)
            (void)snprintf(c->run_dir, sizeof(c->run_dir), "%s", argv[i] + 8);
        else if (strncmp(argv[i], "instance=", 9) == 0)
            (void)snprintf(c->instance, sizeof(c->instance), "%s", argv[i] + 9);
        else if (!known)
            return error_set(e, ERR_USAGE, "unknown argument '%s'", argv[i]);
    }
    size_t name = strlen(c->instance);
    if (c->run_dir[0] != '/' || name == 0 || name > 8 ||
        strspn(c->instance, "abcdefghijklmnopqrstuvwxyz0123456789") != name || c->pool_ip == 0 ||
        c->slots_max == 0 || c->slots_max > SANDBOXES_PER_WORKER_MAX || c->userns_base < 100000 ||
        c->host_port_base + c->slots_max > UINT16_MAX)
        return error_set(
            e, ERR_USAGE,
            "run_dir, instance, pool_ip, slots_max, host_port_base or userns_base is out of range");
    return ERR_OK;
}

static enum err start(struct launcher *l, int *ret_lock_fd, struct error *e)
{
    struct launcher_config *c = &l->config;
    char path[300], group[64];
    (void)snprintf(path, sizeof(path), "%s/launcher.lock", c->run_dir);
    *ret_lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*ret_lock_fd < 0 || flock(*ret_lock_fd, LOCK_EX | LOCK_NB) < 0)
        return error_errno(e, "lock '%s'", path);
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    l->network = (struct network_config){
        .pool_ip = c->pool_ip, .slots_max = c->slots_max, .host_port_base = c->host_port_base};
    (void)snprintf(l->network.instance, sizeof(l->network.instance), "%.8s", c->instance);
    enum err err = network_neighbours_check(&l->network, NEIGHBOUR_PATIENCE_MS, e);
    (void)snprintf(group, sizeof(group), "dirigent-%s", c->instance);
    if (err == ERR_OK)
        err = cgroup_tree_open(group, c->cgroup_version, &l->shared.cgroups, e);
    if (err != ERR_OK)
        return err;
    for (int i = 0; i < 2000 && network_interfaces_left(&l->network) > 0; i++)
        (void)usleep(5000); /* of a launcher that was killed: the kernel is at it */
    err = network_host_open(&l->network, &l->forward_was_off, e);
    if (err != ERR_OK) {
        cgroup_tree_remove(&l->shared.cgroups); /* ours: we hold it */
        return err;
    }
    if (getrandom(&l->shared.secret, sizeof(l->shared.secret), 0) !=
        (ssize_t)sizeof(l->shared.secret))
        return error_errno(e, "get random bytes");
    while (prctl(PR_CAPBSET_READ, l->shared.capabilities, 0, 0, 0) >= 0)
        l->shared.capabilities++;
    err = loop_new(&l->loop, e);
    if (err == ERR_OK)
        err = helpers_start(l, e);
    /* Not before: each page that the nursery has of us is one more to copy and to drop for every
     * sandbox. */
    l->slots = mem_new_array(c->slots_max, sizeof(*l->slots));
    for (uint32_t i = 0; i < c->slots_max; i++)
        l->slots[i] = (struct slot){.launcher = l,
                                    .index = i,
                                    .netns_fd = -1,
                                    .control_fd = -1,
                                    .pidfd = -1,
                                    .anchor_fd = -1,
                                    .memory_peak = {.fd = -1},
                                    .probe_poll = {.fd = -1}};
    static const int signals[] = {SIGTERM};
    l->signals.on_signal = on_signal;
    if (err == ERR_OK)
        err = loop_signals_start(l->loop, &l->signals, signals, 1, e);
    (void)snprintf(path, sizeof(path), "%s/launcher.sock", c->run_dir);
    int fd = -1;
    if (err == ERR_OK)
        err = socket_listen_unix(path, 0600, SOCK_SEQPACKET, &fd, e);
    if (err == ERR_OK && chown(path, c->worker_uid, (gid_t)-1) < 0)
        err = error_errno(e, "give '%s' to the worker", path);
    l->listen_poll.on_ready = on_connection;
    if (err == ERR_OK)
        err = loop_poll_start(l->loop, &l->listen_poll, fd, EPOLLIN, e);
    return err;
}

/* Descriptor 3 is where the starter waits for the outcome: "ok" or a sentence. */
#define OUTCOME_FD 3

int main(int argc, char **argv)
{
    static struct launcher l = {.worker_fd = -1, .listener_fd = -1};
    struct error e = {0};
    int lock_fd = -1;
    (void)setsid();
    (void)signal(SIGHUP, SIG_IGN);
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)fcntl(OUTCOME_FD, F_SETFD, FD_CLOEXEC);
    enum err err = config_parse(argc, argv, &l.config, &e);
    if (err == ERR_OK) {
        list_init(&l.free_slots);
        list_init(&l.parked);
        list_init(&l.quarantine);
        list_init(&l.rest);
        list_init(&l.starts);
        loop_timer_init(&l.orphan_timer, on_orphan);
        loop_timer_init(&l.quarantine_timer, on_quarantine_timer);
        loop_timer_init(&l.refill_timer, on_refill_timer);
        loop_timer_init(&l.pool_timer, on_pool_timer);
        err = start(&l, &lock_fd, &e);
    }
    const char *outcome = err == ERR_OK ? "ok" : e.text;
    (void)!write(OUTCOME_FD, outcome, strlen(outcome));
    (void)close(OUTCOME_FD);
    if (err != ERR_OK) {
        return 1; /* what was made so far is swept by the next start */
    }
    loop_timer_start(l.loop, &l.orphan_timer, loop_now_ns(l.loop) + l.config.orphan_ms * NS_PER_MS);
    slots_refill(&l);
    loop_run(l.loop);
    everything_remove(&l);
    return 0;
}
