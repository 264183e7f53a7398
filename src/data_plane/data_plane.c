/* data_plane.c - start and end of the program. */
#include "data_plane/data_plane.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/privileges.h"
#include "base/program.h"
#include "base/settings.h"
#include "data_plane/router.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define DESCRIPTORS_KEPT 256u /* for everything but connections */
#define CONNECTIONS_MIN 16u
#define LATE_ROUNDS 4 /* a route that goes is told to all, answered, told again and answered */

struct data_plane_settings {
#define SETTING(key, type, default_text, help) SETTING_FIELD_##type(key)
#include "data_plane/data_plane_settings.def"
#undef SETTING
};
static const struct setting settings_table[] = {
#define SETTING(key, type, default_text, help) \
    SETTING_ROW(struct data_plane_settings, key, type, default_text, help)
#include "data_plane/data_plane_settings.def"
#undef SETTING
};

struct data_plane {
    struct data_plane_settings settings;
    struct loop *loop; /* of the control thread */
    struct loop_signals signals;
    struct thread_shared shared;
    struct router *router;
    uint32_t threads_made;
    bool stopping;
    int *listen_fds;
    char listen_address[64]; /* the one bound, after asking for port 0 */
    char name[64];
    struct credentials *credentials;
    char *data_path, *run_path;
    int data_lock_fd, run_lock_fd;
};

/* ---- settings ---- */

static enum err check_settings(struct data_plane *dp, enum log_level *ret_level, struct error *e)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    struct data_plane_settings *s = &dp->settings;
    if (s->threads >= DISPATCH_THREADS_MAX)
        return error_field(e, ERR_USAGE, "threads", "--threads must be below %u",
                           DISPATCH_THREADS_MAX);
    if (s->drain_deadline > 3600000)
        return error_field(e, ERR_USAGE, "drain_deadline", "--drain-deadline must be at most 1h");
    for (size_t i = 0; i < ARRAY_COUNT(levels); i++) {
        if (strcmp(s->log_level, levels[i]) != 0)
            continue;
        *ret_level = (enum log_level)i;
        return ERR_OK;
    }
    return error_field(e, ERR_USAGE, "log_level",
                       "--log-level must be debug, info, warn or error, and is '%s'", s->log_level);
}

/* As it joined, else host and port: the same after a restart, another for a second data plane on
 * this host. */
static void find_name(struct data_plane *dp)
{
    char host[48] = "data-plane";
    if (dp->settings.name[0] != '\0') {
        snprintf(dp->name, sizeof(dp->name), "%s", dp->settings.name);
        return;
    }
    if (credentials_tls(dp->credentials) != NULL) {
        snprintf(dp->name, sizeof(dp->name), "%s", credentials_name(dp->credentials));
        return;
    }
    if (gethostname(host, sizeof(host) - 1) < 0 || host[0] == '\0')
        strcpy(host, "data-plane");
    snprintf(dp->name, sizeof(dp->name), "%s-%s", host, strrchr(dp->listen_address, ':') + 1);
}

/* ---- start ---- */

/* Every connection of a client may need one to a sandbox, but few do at once: most are idle, or
 * wait. Root may go beyond the hard limit, up to the kernel's (fs.nr_open). */
static void raise_descriptor_limit(struct data_plane *dp)
{
    struct rlimit limit = {.rlim_cur = 1024, .rlim_max = 1024};
    rlim_t wanted = 2 * MIN(dp->settings.connections, (uint64_t)UINT32_MAX) + DESCRIPTORS_KEPT;
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    struct rlimit more = {MAX(limit.rlim_max, wanted), MAX(limit.rlim_max, wanted)};
    if (setrlimit(RLIMIT_NOFILE, &more) < 0) {
        more = (struct rlimit){limit.rlim_max, limit.rlim_max};
        (void)setrlimit(RLIMIT_NOFILE, &more);
    }
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    uint64_t possible =
        limit.rlim_cur > DESCRIPTORS_KEPT ? (limit.rlim_cur - DESCRIPTORS_KEPT) / 4 * 3 : 0;
    uint64_t each = MIN(possible, dp->settings.connections) / dp->shared.thread_count;
    dp->shared.connections_max = (uint32_t)MAX(each, (uint64_t)CONNECTIONS_MIN);
}

static enum err open_directories(struct data_plane *dp, uid_t uid, gid_t gid, struct error *e)
{
    enum err err = program_dir_open(dp->settings.data_dir, "data-plane", uid, gid, &dp->data_path,
                                    &dp->data_lock_fd, e);
    if (err == ERR_OK)
        err = program_dir_open(dp->settings.run_dir, "data-plane", uid, gid, &dp->run_path,
                               &dp->run_lock_fd, e);
    return err;
}

/* One socket for each thread. SO_REUSEPORT would let a second data plane of the same user share the
 * address in silence, so the first look is without it. */
static enum err open_sockets(struct data_plane *dp, struct error *e)
{
    struct sockaddr_storage bound;
    socklen_t bytes = sizeof(bound);
    cleanup(fd_close) int probe = -1;
    enum err err = socket_listen(dp->settings.listen, false, &probe, e);
    if (err != ERR_OK)
        return err;
    if (getsockname(probe, (struct sockaddr *)&bound, &bytes) < 0)
        return error_errno(e, "find the address that listens");
    address_format((struct sockaddr *)&bound, dp->listen_address, sizeof(dp->listen_address));
    fd_close(&probe);
    dp->listen_fds = mem_new_array(dp->shared.thread_count, sizeof(*dp->listen_fds));
    for (uint32_t i = 0; i < dp->shared.thread_count; i++)
        dp->listen_fds[i] = -1;
    for (uint32_t i = 0; err == ERR_OK && i < dp->shared.thread_count; i++)
        err = socket_listen(dp->listen_address, true, &dp->listen_fds[i], e);
    return err;
}

static enum err make_threads(struct data_plane *dp, struct error *e)
{
    enum err err = ERR_OK;
    dp->shared.threads = mem_new_array(dp->shared.thread_count, sizeof(struct thread *));
    for (uint32_t i = 0; err == ERR_OK && i < dp->shared.thread_count; i++) {
        err = thread_new(&dp->shared, i, dp->listen_fds[i], &dp->shared.threads[i], e);
        if (err != ERR_OK)
            break;
        dp->listen_fds[i] = -1;
        dp->threads_made++;
    }
    return err;
}

static void on_serve(void *user)
{
    struct data_plane *dp = user;
    struct error e = {0};
    for (uint32_t i = 0; i < dp->shared.thread_count; i++) {
        if (thread_start(dp->shared.threads[i], &e) == ERR_OK)
            continue;
        log_error("data_plane.failed", LOG_STR("why", e.text));
        _exit(err_exit_code(ERR_NO_MEMORY)); /* others may run: there is nothing to save */
    }
}

static void on_stopped(void *user)
{
    struct data_plane *dp = user;
    loop_stop(dp->loop);
}

static void on_signal(struct loop_signals *s, int signo)
{
    struct data_plane *dp = container_of(s, struct data_plane, signals);
    log_info("signal", LOG_STR("name", sigabbrev_np(signo)));
    if (dp->stopping)
        return; /* the deadline stands */
    dp->stopping = true;
    router_stop(dp->router, loop_now_ns(dp->loop) + dp->settings.drain_deadline * NS_PER_MS);
}

static enum err start_loop(struct data_plane *dp, struct error *e)
{
    static const int signos[] = {SIGTERM, SIGINT};
    enum err err = loop_new(&dp->loop, e);
    if (err != ERR_OK)
        return err;
    dp->signals.on_signal = on_signal;
    dp->shared.control_loop = dp->loop;
    return loop_signals_start(dp->loop, &dp->signals, signos, ARRAY_COUNT(signos), e);
}

static enum err start(struct data_plane *dp, struct error *e)
{
    uid_t uid;
    gid_t gid;
    dp->shared.thread_count = (uint32_t)dp->settings.threads;
    if (dp->shared.thread_count == 0)
        dp->shared.thread_count =
            (uint32_t)MIN(MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L), (long)DISPATCH_THREADS_MAX - 1);
    dp->shared.head_timeout_ns = HTTP_HEAD_TIMEOUT_MS * NS_PER_MS;
    dp->shared.idle_timeout_ns = HTTP_IDLE_TIMEOUT_MS * NS_PER_MS;
    raise_descriptor_limit(dp);
    enum err err = privileges_resolve(dp->settings.user, PRIVILEGES_UID_DATA_PLANE, &uid, &gid, e);
    if (err == ERR_OK)
        err = open_directories(dp, uid, gid, e);
    if (err == ERR_OK)
        err = open_sockets(dp, e);
    if (err == ERR_OK)
        err = privileges_drop(uid, gid, e);
    if (err == ERR_OK)
        err = start_loop(dp, e);
    struct credentials_options credentials = {.loop = dp->loop,
                                              .tls = dp->settings.tls,
                                              .data_path = dp->data_path,
                                              .addresses = dp->settings.control_plane,
                                              .role = NODE_DATA_PLANE,
                                              .name = dp->settings.name};
    if (err == ERR_OK)
        err = credentials_new(&credentials, &dp->credentials, e);
    if (err == ERR_OK)
        err = make_threads(dp, e);
    if (err != ERR_OK)
        return err;
    find_name(dp);
    struct router_options options = {.shared = &dp->shared,
                                     .credentials = dp->credentials,
                                     .name = dp->name,
                                     .cluster_name = dp->settings.cluster_name,
                                     .listen_address = dp->listen_address,
                                     .data_path = dp->data_path,
                                     .user = dp,
                                     .on_serve = on_serve,
                                     .on_stopped = on_stopped};
    return router_new(&options, &dp->router, e);
}

/* ---- end ---- */

static void stop(struct data_plane *dp)
{
    for (uint32_t i = 0; i < dp->threads_made; i++)
        thread_join(dp->shared.threads[i]);
    for (int round = 0; dp->loop != NULL && round < LATE_ROUNDS; round++) {
        for (uint32_t i = 0; i < dp->threads_made; i++)
            thread_run_late(dp->shared.threads[i]);
        loop_run_once(dp->loop, 0);
    }
    for (uint32_t i = 0; i < dp->threads_made; i++)
        thread_free(dp->shared.threads[i]);
    router_free(dp->router);
    credentials_free(dp->credentials);
    if (dp->loop != NULL) {
        loop_signals_stop(&dp->signals);
        loop_free(dp->loop);
    }
    for (uint32_t i = 0; dp->listen_fds != NULL && i < dp->shared.thread_count; i++)
        fd_close(&dp->listen_fds[i]);
    free(dp->listen_fds);
    free(dp->shared.threads);
    free(dp->data_path);
    free(dp->run_path);
    fd_close(&dp->data_lock_fd);
    fd_close(&dp->run_lock_fd);
    settings_done(settings_table, ARRAY_COUNT(settings_table), &dp->settings);
}

int data_plane_main(int argc, char **argv)
{
    struct data_plane dp = {.data_lock_fd = -1, .run_lock_fd = -1};
    struct error e = {0};
    enum log_level level = LOG_LEVEL_INFO;
    enum err err =
        settings_load("data-plane", "Takes calls of functions and brings them to sandboxes.",
                      settings_table, ARRAY_COUNT(settings_table), argc, argv, &dp.settings, &e);
    if (err == ERR_END)
        return 0;
    if (err == ERR_OK)
        err = check_settings(&dp, &level, &e);
    if (err == ERR_OK) {
        log_init("data-plane", level);
        (void)signal(SIGPIPE, SIG_IGN);
        err = start(&dp, &e);
    }
    if (err != ERR_OK) {
        fprintf(stderr, "dirigent data-plane: %s\n", e.text);
    } else {
        log_info("data_plane.up", LOG_STR("listen", dp.listen_address), LOG_STR("name", dp.name),
                 LOG_U64("threads", dp.shared.thread_count),
                 LOG_U64("connections", dp.shared.connections_max));
        loop_run(dp.loop);
        log_info("data_plane.stopped", LOG_STR("name", dp.name));
    }
    stop(&dp);
    return err == ERR_OK ? 0 : err_exit_code(err);
}
