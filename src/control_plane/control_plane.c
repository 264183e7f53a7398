/* control_plane.c - start and end of the program, and the step that joins the core with the world.
 */
#include "control_plane/control_plane.h"
#include "base/crash_point.h"
#include "base/log.h"
#include "base/privileges.h"
#include "base/program.h"
#include "control_plane/api.h"
#include "control_plane/api_keys.h"
#include "control_plane/backup_place.h"
#include "control_plane/blobs.h"
#include "control_plane/copies.h"
#include "control_plane/election.h"
#include "control_plane/hello.h"
#include "control_plane/joining.h"
#include "control_plane/leadership.h"
#include "control_plane/links.h"
#include "control_plane/log_requests.h"
#include "control_plane/persisted.h"
#include "control_plane/registry.h"
#include "control_plane/store/store_backend.h"
#include "control_plane/trust.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIDY_PERIOD_NS (60 * NS_PER_S)
#define BACKOFF_VARIABLE "DIRIGENT_LIFE_BEFORE_BACKOFF_MS"
#define AGAIN_PAUSE_US (100u * US_PER_MS) /* of one that fails again and again */

static const struct setting settings_table[] = {
#define SETTING(key, type, default_text, help) \
    SETTING_ROW(struct control_plane_settings, key, type, default_text, help)
#include "control_plane/control_plane_settings.def"
#undef SETTING
};

/* The whole program: what shell.h shows, and what only its start and end need. */
struct program {
    struct control_plane cp;
    struct loop_timer tidy;
    int data_lock_fd, run_lock_fd;
};

/* ---- the step ---- */

uint64_t shell_now_ms(const struct control_plane *cp)
{
    return loop_now_ns(cp->loop) / NS_PER_MS;
}

static void on_active_stored(struct change *change, enum err err, const struct error *e)
{
    if (err != ERR_OK)
        log_warn("version.active_not_stored", LOG_STR("function", change->name),
                 LOG_STR("why", e->text));
    free(change);
}

static void store_active(struct control_plane *cp, const struct function *f, uint32_t version)
{
    struct change *change = mem_new(sizeof(*change));
    change->kind = CHANGE_ACTIVE;
    memcpy(change->name, f->record.latest.name, sizeof(change->name));
    change->function_id = f->record.id;
    change->version = version;
    change->on_done = on_active_stored;
    registry_change(cp->registry, change);
}

static void order_version_active(struct control_plane *cp, const struct control_order *order)
{
    const struct function *f = registry_get(cp->registry, order->function_id);
    if (f == NULL)
        return;
    log_info("version.active", LOG_STR("function", f->record.latest.name),
             LOG_U64("version", order->version));
    if (f->record.active_version != order->version)
        store_active(cp, f, order->version);
    if (cp->api != NULL)
        api_version_active(cp->api, order->function_id, order->version);
}

static void order_version_failed(struct control_plane *cp, const struct control_order *order)
{
    struct function *f = registry_get(cp->registry, order->function_id);
    if (f == NULL)
        return;
    function_note_failure(f, order);
    log_warn("version.failed", LOG_STR("function", f->record.latest.name),
             LOG_U64("version", order->version), LOG_STR("code", f->failure.code),
             LOG_STR("why", f->failure.message));
    if (cp->api != NULL)
        api_version_failed(cp->api, order->function_id, order->version);
}

static const char *order_name(enum order_kind kind)
{
    static const char *const names[] = {
        [ORDER_START] = "start",
        [ORDER_STOP] = "stop",
        [ORDER_DROP_VERSION] = "drop_version",
        [ORDER_ROUTE] = "route",
        [ORDER_UNROUTE] = "unroute",
        [ORDER_ENDPOINT] = "endpoint",
        [ORDER_SLOTS_WANTED] = "slots_wanted",
        [ORDER_DRAIN] = "drain",
        [ORDER_ENDPOINT_GONE] = "endpoint_gone",
        [ORDER_SNAPSHOT_BEGIN] = "snapshot_begin",
        [ORDER_SNAPSHOT_END] = "snapshot_end",
        [ORDER_FAIL_WAITING] = "fail_waiting",
        [ORDER_WANT_DEMAND] = "want_demand",
        [ORDER_VERSION_ACTIVE] = "version_active",
        [ORDER_VERSION_FAILED] = "version_failed",
        [ORDER_FUNCTION_GONE] = "function_gone",
    };
    return names[kind];
}

static void carry_out(struct control_plane *cp, const struct control_order *order)
{
    log_debug("order", LOG_STR("kind", order_name(order->kind)),
              LOG_I64("target", (int64_t)order->target_id), LOG_U64("function", order->function_id),
              LOG_U64("version", order->version), LOG_U64("sandbox", order->sandbox_id));
    if (order->kind == ORDER_START)
        CRASH_POINT("control_plane.placed");
    switch (order->kind) {
    case ORDER_VERSION_ACTIVE:
        order_version_active(cp, order);
        return;
    case ORDER_VERSION_FAILED:
        order_version_failed(cp, order);
        return;
    case ORDER_FUNCTION_GONE:
        log_info("function.gone", LOG_U64("function", order->function_id));
        return; /* its code goes with the next tidying */
    case ORDER_START:
    case ORDER_STOP:
        if (cp->settings.persist_sandboxes)
            persisted_order(cp->persisted, order);
        else
            links_order(cp->links, order);
        return;
    case ORDER_DROP_VERSION:
    case ORDER_ROUTE:
    case ORDER_UNROUTE:
    case ORDER_ENDPOINT:
    case ORDER_SLOTS_WANTED:
    case ORDER_DRAIN:
    case ORDER_ENDPOINT_GONE:
    case ORDER_SNAPSHOT_BEGIN:
    case ORDER_SNAPSHOT_END:
    case ORDER_FAIL_WAITING:
    case ORDER_WANT_DEMAND:
        links_order(cp->links, order);
        return;
    }
    assert(false);
}

static void arm_tick(struct control_plane *cp)
{
    uint64_t due_ms = control_next_due_ms(cp->core);
    if (due_ms == UINT64_MAX)
        loop_timer_stop(cp->loop, &cp->tick);
    else if (!loop_timer_is_running(&cp->tick) || cp->tick.due_ns != due_ms * NS_PER_MS)
        loop_timer_start(cp->loop, &cp->tick, due_ms * NS_PER_MS);
}

void shell_step(struct control_plane *cp, const struct control_event *event)
{
    assert(!cp->stepping);
    cp->stepping = true;
    cp->orders.count = 0;
    control_step(cp->core, event, shell_now_ms(cp), &cp->orders);
    cp->events++;
    cp->orders_count += cp->orders.count;
    for (size_t i = 0; i < cp->orders.count; i++)
        carry_out(cp, &cp->orders.items[i]);
    cp->stepping = false;
    arm_tick(cp);
}

static void on_tick(struct loop_timer *timer)
{
    struct control_plane *cp = container_of(timer, struct control_plane, tick);
    struct control_event event = {.kind = EVENT_TICK};
    cp->event_begin_ns = clock_mono_ns();
    shell_step(cp, &event);
}

/* ---- tidying ---- */

static bool is_code_used(void *user, const char *digest)
{
    return registry_uses_code(user, digest);
}

static void on_tidy(struct loop_timer *timer)
{
    struct control_plane *cp = &container_of(timer, struct program, tidy)->cp;
    blobs_collect(cp->blobs, is_code_used, cp->registry);
    if (cp->leads) {
        links_tidy(cp->links);
        joining_tidy(cp->joining);
    }
    loop_timer_start(cp->loop, timer, loop_now_ns(cp->loop) + TIDY_PERIOD_NS);
}

/* ---- loading ---- */

enum err shell_take_record(struct control_plane *cp, enum store_kind kind, uint64_t id,
                           const char *value, struct error *e)
{
    struct function_record function;
    struct peer_record peer;
    enum err err = ERR_OK;
    switch (kind) {
    case STORE_FUNCTION:
        if (value != NULL)
            err = function_record_read(id, value, &function, e);
        if (err == ERR_OK && value != NULL)
            registry_load(cp->registry, &function);
        else if (err == ERR_OK)
            registry_drop(cp->registry, id);
        return err;
    case STORE_WORKER:
    case STORE_DATA_PLANE:
        if (value != NULL)
            err = peer_record_read(id, value, &peer, e);
        if (err == ERR_OK && value != NULL)
            links_load(cp->links, kind, &peer);
        else if (err == ERR_OK)
            links_drop(cp->links, id);
        return err;
    case STORE_API_KEY:
        if (value != NULL)
            return api_keys_load(cp->api_keys, id, value, e);
        api_keys_drop(cp->api_keys, id);
        return ERR_OK;
    case STORE_AUTHORITY:
        return trust_load(cp->trust, id, value, e);
    case STORE_TOKEN:
        if (value != NULL)
            return joining_load(cp->joining, id, value, e);
        joining_drop(cp->joining, id);
        return ERR_OK;
    case STORE_SANDBOX:
        if (value != NULL)
            persisted_load(cp->persisted, id);
        return ERR_OK;
    case STORE_RESTORE:
        if (value != NULL)
            return error_set(e, ERR_CORRUPT,
                             "a backup is being restored into this store, or that was cut short: "
                             "wait for its end, or run `dirigent store restore` again with --force");
        return ERR_OK;
    case STORE_KIND_COUNT:
        break;
    }
    assert(false);
}

static enum err load_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                            struct error *e)
{
    return shell_take_record(user, kind, id, value, e);
}

void shell_succeeded(struct control_plane *cp, uint64_t epoch, const char *why)
{
    log_warn("control_plane.succeeded", LOG_U64("epoch", cp->epoch), LOG_U64("newer", epoch),
             LOG_STR("why", why));
    cp->end = ERR_STALE;
    cp->again = cp->leadership != NULL;
    loop_stop(cp->loop);
}

void shell_refused(struct control_plane *cp, uint64_t epoch)
{
    if (cp->leadership != NULL)
        leadership_refused(cp->leadership, epoch);
    else
        shell_succeeded(cp, epoch,
                        "a worker or data plane has orders of it: is there another control plane?");
}

uint64_t shell_epoch_seen(const struct control_plane *cp)
{
    return cp->leadership != NULL ? MAX(cp->epoch, leadership_epoch(cp->leadership)) : cp->epoch;
}

void shell_store_lost(struct control_plane *cp, enum err err, const char *why)
{
    log_error("store.lost", LOG_STR("code", err_name(err)), LOG_STR("why", why));
    cp->end = err;
    cp->again = cp->leadership != NULL && err != ERR_CORRUPT && err != ERR_VERSION;
    loop_stop(cp->loop);
}

static void on_store_lost(void *user, enum err err, const char *why)
{
    shell_store_lost(user, err, why);
}

/* "https://10.0.0.1:2379" is on the host of our own name, "10.0.0.1:9090". */
static bool is_on_our_host(const struct control_plane *cp, struct str member)
{
    struct str host = address_host(cp->name);
    size_t at = 0;
    while (at < member.bytes && member.data[at] != '/')
        at++;
    return member.bytes > at + 2 + host.bytes && host.bytes > 0 &&
           memcmp(member.data + at + 2, host.data, host.bytes) == 0 &&
           member.data[at + 2 + host.bytes] == ':';
}

/* The first is asked first. One on this host lives and dies with us: when another host is lost,
 * no time goes by on asking there. */
static void append_members(const struct control_plane *cp, bool ours, struct buf *out)
{
    for (struct str rest = str_of(cp->settings.etcd), one; rest.bytes > 0;) {
        one = str_split(rest, ',', &rest);
        if (is_on_our_host(cp, one) != ours)
            continue;
        if (out->bytes > 0 && out->data[out->bytes - 1] != '@')
            buf_append_str(out, STR(","));
        buf_append_str(out, one);
    }
}

/* NAME@MEMBERS?OPTIONS, as store_etcd reads it. */
static char *etcd_where(const struct control_plane *cp)
{
    const struct control_plane_settings *s = &cp->settings;
    struct buf where = {0};
    buf_printf(&where, "%s@", cp->name);
    append_members(cp, true, &where);
    append_members(cp, false, &where);
    buf_append_str(&where, STR("?"));
    if (s->etcd_ca[0] != '\0')
        buf_printf(&where, "ca=%s&", s->etcd_ca);
    if (s->etcd_cert[0] != '\0')
        buf_printf(&where, "cert=%s&", s->etcd_cert);
    if (s->etcd_key[0] != '\0')
        buf_printf(&where, "key=%s&", s->etcd_key);
    if (s->i_know)
        buf_printf(&where, "single=1&");
    buf_append(&where, "", 1);
    return where.data;
}

static void on_lead(struct control_plane *cp);

/* Among several: follows, and leads when it is its turn. */
static enum err follow_store(struct control_plane *cp, struct error *e)
{
    cleanup(free_pointer) char *where = etcd_where(cp);
    enum err err = store_open(&store_etcd, where, &cp->store, e);
    return err == ERR_OK ? leadership_start(cp, on_lead, &cp->leadership, e) : err;
}

static enum err open_store(struct control_plane *cp, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" BACKUP_STORE_FILE, cp->data_path);
    enum err err = store_open(&store_sqlite, path, &cp->store, e);
    if (err == ERR_OK)
        err = store_take_epoch(cp->store, &cp->epoch, e);
    if (err == ERR_OK)
        err = store_load(cp->store, load_record, cp, &cp->next_id, e);
    if (err == ERR_OK)
        err = store_start(cp->store, cp->loop, on_store_lost, cp, e);
    if (err != ERR_OK && strstr(e->text, path) == NULL)
        error_prefix(e, "store file '%s'", path);
    return err;
}

/* ---- start ---- */

static enum err check_settings(const struct control_plane_settings *s, enum log_level *ret_level,
                               struct error *e)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    if (s->peer_dead_after < 200 || s->peer_dead_after > 600000)
        return error_field(e, ERR_USAGE, "peer_dead_after",
                           "--peer-dead-after must be between 200ms and 10m");
    if (s->reconnect_grace > 600000 || s->reconstruction > 600000)
        return error_field(e, ERR_USAGE, "reconnect_grace",
                           "--reconnect-grace and --reconstruction must be at most 10m");
    if (strcmp(s->store, "sqlite") != 0 && strcmp(s->store, "etcd") != 0)
        return error_field(e, ERR_USAGE, "store", "--store must be sqlite or etcd, and is '%s'",
                           s->store);
    if (strcmp(s->store, "etcd") == 0 && s->etcd[0] == '\0')
        return error_field(e, ERR_USAGE, "etcd",
                           "--store etcd needs --etcd with the addresses of its members");
    if (strcmp(s->store, "sqlite") == 0 && (s->etcd[0] != '\0' || s->peers[0] != '\0'))
        return error_field(
            e, ERR_USAGE, s->etcd[0] != '\0' ? "etcd" : "peers",
            "--%s is for several control planes, which share an etcd: say --store etcd",
            s->etcd[0] != '\0' ? "etcd" : "peers");
    if (s->code_staged_for < 10000)
        return error_field(e, ERR_USAGE, "code_staged_for",
                           "--code-staged-for must be at least 10s");
    for (size_t i = 0; i < ARRAY_COUNT(levels); i++) {
        if (strcmp(s->log_level, levels[i]) != 0)
            continue;
        *ret_level = (enum log_level)i;
        return ERR_OK;
    }
    return error_field(e, ERR_USAGE, "log_level",
                       "--log-level must be debug, info, warn or error, and is '%s'", s->log_level);
}

/* Directories and locks as root, everything else without it. */
static enum err open_directories(struct program *p, struct error *e)
{
    struct control_plane *cp = &p->cp;
    cleanup(free_pointer) char *run_path = NULL;
    uid_t uid;
    gid_t gid;
    enum err err =
        privileges_resolve(cp->settings.user, PRIVILEGES_UID_CONTROL_PLANE, &uid, &gid, e);
    if (err == ERR_OK)
        err = program_dir_open(cp->settings.data_dir, "control-plane", uid, gid, &cp->data_path,
                               &p->data_lock_fd, e);
    if (err == ERR_OK)
        err = program_dir_open(cp->settings.run_dir, "control-plane", uid, gid, &run_path,
                               &p->run_lock_fd, e);
    return err == ERR_OK ? privileges_drop(uid, gid, e) : err;
}

/* Thousands of connections are ordinary here. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void on_signal(struct loop_signals *s, int signo)
{
    struct control_plane *cp = container_of(s, struct control_plane, signals);
    log_info("signal", LOG_STR("name", sigabbrev_np(signo)));
    loop_stop(cp->loop);
}

static enum err start_loop(struct control_plane *cp, struct error *e)
{
    static const int signos[] = {SIGTERM, SIGINT};
    enum err err = loop_new(&cp->loop, e);
    if (err != ERR_OK)
        return err;
    cp->signals.on_signal = on_signal;
    loop_timer_init(&cp->tick, on_tick);
    cp->started_ns = loop_update_now(cp->loop);
    cp->started_at_ms = clock_real_ms();
    return loop_signals_start(cp->loop, &cp->signals, signos, ARRAY_COUNT(signos), e);
}

static void start_core(struct control_plane *cp)
{
    struct control_options options = {
        .epoch = cp->epoch,
        .peer_dead_after_ms = (uint32_t)cp->settings.peer_dead_after,
        .reconnect_grace_ms = (uint32_t)cp->settings.reconnect_grace,
        .reconstruction_ms = (uint32_t)cp->settings.reconstruction,
    };
    if (getrandom(&options.seed, sizeof(options.seed), 0) != (ssize_t)sizeof(options.seed))
        options.seed = clock_mono_ns(); /* it only spreads placements */
    cp->core = control_new(&options);
}

/* All records are known: begins to decide. */
static void on_lead(struct control_plane *cp)
{
    start_core(cp);
    cp->leads = true;
    trust_lead(cp->trust);
    persisted_begin(cp->persisted);
    links_tell_core(cp->links);
    registry_tell_core(cp->registry);
    links_lead(cp->links);
    if (cp->api != NULL)
        api_lead(cp->api);
}

static enum err start(struct program *p, struct error *e)
{
    struct control_plane *cp = &p->cp;
    enum err err = open_directories(p, e);
    if (err == ERR_OK)
        err = start_loop(cp, e);
    if (err != ERR_OK)
        return err;
    cleanup(free_pointer) char *blob_path = mem_printf("%s/" BACKUP_CODE_DIR, cp->data_path);
    cp->registry = registry_new(cp);
    cp->logs = log_requests_new(cp);
    cp->persisted = persisted_new(cp);
    cp->api_keys = api_keys_new(cp);
    cp->joining = joining_new(cp);
    cp->name = cp->settings.advertise[0] != '\0' ? cp->settings.advertise : cp->settings.cluster;
    err = links_new(cp, &cp->links, e);
    if (err == ERR_OK)
        err = trust_new(cp, &cp->trust, e);
    if (err == ERR_OK)
        err = blobs_new(cp->loop, blob_path, cp->settings.code_staged_for, &cp->blobs, e);
    cp->copies = copies_new(cp);
    bool shared = strcmp(cp->settings.store, "etcd") == 0;
    if (err == ERR_OK)
        err = shared ? follow_store(cp, e) : open_store(cp, e);
    if (err == ERR_OK && !shared)
        on_lead(cp);
    if (err == ERR_OK)
        err = links_listen(cp->links, e);
    if (err == ERR_OK)
        err = api_new(cp, &cp->api, e);
    return err;
}

/* ---- end ---- */

static void stop(struct program *p)
{
    struct control_plane *cp = &p->cp;
    if (cp->loop != NULL)
        loop_timer_stop(cp->loop, &p->tidy);
    leadership_close(cp->leadership);
    if (cp->links != NULL)
        links_close(cp->links);
    if (cp->store != NULL)
        store_stop(cp->store);
    if (cp->loop != NULL)
        loop_run_once(cp->loop, 0); /* the last writes are answered, the links close */
    while (cp->registry != NULL && registry_is_busy(cp->registry))
        loop_run_once(cp->loop, 0); /* changes that waited for those */
    api_free(cp->api);
    if (cp->loop != NULL) {
        loop_timer_stop(cp->loop, &cp->tick);
        loop_signals_stop(&cp->signals);
        loop_run_once(cp->loop, 0);
    }
    copies_free(cp->copies);
    log_requests_free(cp->logs);
    persisted_free(cp->persisted);
    api_keys_free(cp->api_keys);
    joining_free(cp->joining);
    links_free(cp->links);
    leadership_free(cp->leadership);
    trust_free(cp->trust);
    registry_free(cp->registry);
    if (cp->core != NULL)
        control_free(cp->core);
    control_orders_done(&cp->orders);
    store_close(cp->store);
    blobs_free(cp->blobs);
    if (cp->loop != NULL)
        loop_free(cp->loop);
    free(cp->data_path);
    fd_close(&p->data_lock_fd);
    fd_close(&p->run_lock_fd);
    settings_done(settings_table, ARRAY_COUNT(settings_table), &cp->settings);
}

static void run(struct program *p)
{
    struct control_plane *cp = &p->cp;
    loop_timer_init(&p->tidy, on_tidy);
    loop_timer_start(cp->loop, &p->tidy, loop_now_ns(cp->loop) + TIDY_PERIOD_NS);
    log_info("control_plane.up", LOG_STR("api", api_address(cp->api)),
             LOG_STR("cluster", links_address(cp->links)), LOG_U64("epoch", cp->epoch),
             LOG_U64("functions", registry_count(cp->registry)));
    loop_run(cp->loop);
    log_info("control_plane.stop", LOG_STR("why", err_text(cp->end)));
}

/* From one life to the next: by the environment, since its arguments are the user's. */
static void backoff_hand_on(uint32_t backoff_ms)
{
    char text[16];
    (void)snprintf(text, sizeof(text), "%u", backoff_ms);
    (void)setenv(BACKOFF_VARIABLE, text, 1);
}

static uint32_t backoff_of_life_before(void)
{
    const char *text = getenv(BACKOFF_VARIABLE);
    unsigned long value = text != NULL ? strtoul(text, NULL, 10) : 0;
    (void)unsetenv(BACKOFF_VARIABLE);
    return (uint32_t)MIN(value, (unsigned long)ELECTION_BACKOFF_MS_MAX);
}

int control_plane_main(int argc, char **argv)
{
    struct program program = {.data_lock_fd = -1, .run_lock_fd = -1};
    struct error e = {0};
    enum log_level level = LOG_LEVEL_INFO;
    enum err err = settings_load(
        "control-plane", "API, autoscaler, placement and health of a cluster", settings_table,
        ARRAY_COUNT(settings_table), argc, argv, &program.cp.settings, &e);
    if (err == ERR_END)
        return 0;
    if (err == ERR_OK)
        err = check_settings(&program.cp.settings, &level, &e);
    if (err == ERR_OK) {
        log_init("control-plane", level);
        program.cp.backoff_ms = backoff_of_life_before();
        raise_descriptor_limit();
        (void)signal(SIGPIPE, SIG_IGN);
        err = start(&program, &e);
    }
    if (err == ERR_OK) {
        run(&program);
        err = program.cp.end;
    } else {
        fprintf(stderr, "dirigent control-plane: %s\n", e.text);
    }
    stop(&program);
    if (program.cp.again) { /* what was in memory may not be what is stored: begin with nothing */
        (void)usleep(AGAIN_PAUSE_US);
        char **arguments = mem_new_array((size_t)argc + 2, sizeof(*arguments));
        arguments[0] = (char *)"dirigent";
        memcpy(arguments + 1, argv, (size_t)argc * sizeof(*argv));
        backoff_hand_on(program.cp.backoff_ms);
        (void)execv("/proc/self/exe", arguments);
    }
    return err == ERR_OK ? 0 : err_exit_code(err);
}
