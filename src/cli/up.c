/* up.c - starts the three programs as children, keeps them running, stops them in order.
 *
 * Life: claim the directories, look whether the addresses are free, start the control plane, then
 * worker and data plane; ready when the API says so. A program that dies later is started again
 * after a pause. The first SIGINT or SIGTERM stops them in order (data plane: requests end; worker:
 * sandboxes end; control plane), the second kills. When `up` itself is killed the kernel sends
 * SIGTERM to each (PR_SET_PDEATHSIG). Whatever they leave as orphans (a launcher whose worker was
 * killed) becomes our child and is ended too. */
#include "cli/up.h"
#include "base/log.h"
#include "base/program.h"
#include "cli/client.h"
#include "cli/style.h"
#include "cli/up_cleanup.h"
#include "cli/up_settings.h"
#include "loop/loop.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_CHECK_MS 20u
#define READY_CALL_MS 500u
#define RESTART_PAUSE_MS_MIN 100u
#define RESTART_PAUSE_MS_MAX 5000u
#define RESTART_FORGOTTEN_MS 10000u /* ran so long: it was well */
#define SAME_SIGNAL_MS 500u         /* a terminal and sudo may both send one Ctrl-C */
#define DRAIN_MARGIN_MS 2000u       /* the data plane keeps the deadline itself */
#define WORKER_STOP_MS 30000u
#define CONTROL_PLANE_STOP_MS 10000u
#define ORPHAN_STOP_MS 20000u /* a launcher kills its sandboxes and gives back what it took */
#define PREDECESSOR_WAIT_MS 30000u

enum phase { PHASE_CONTROL_PLANE, PHASE_OTHERS, PHASE_RUNNING, PHASE_STOPPING };

struct up;
struct part {
    struct up *up;
    enum up_part which;
    struct loop_child child;
    struct loop_timer timer; /* next start, or the kill of one that does not stop */
    bool running;
    uint64_t started_ns;
    uint32_t pause_ms;
};
struct up {
    struct up_settings settings;
    struct loop *loop;
    struct loop_signals signals;
    struct loop_timer ready_check;
    struct part parts[UP_PART_COUNT];
    struct loop_child apply;
    bool applying;
    enum phase phase;
    uint64_t started_ns, stop_ns;
    bool killing;
    int stop_step;
    int exit_code;
    char *data_path, *run_path; /* our own directories below --data-dir and --run-dir */
    int data_lock, run_lock;
    bool run_dir_made;
    char waits_for[160]; /* what is not ready yet */
    struct client client;
};

static void begin_stop(struct up *up, int exit_code);
static void stop_next(struct up *up);
static void start_others(struct up *up);

/* ---- children ---- */

/* In the child, after fork: becomes the program. Only async-signal-safe calls. */
static _Noreturn void become(char **arguments, pid_t parent)
{
    sigset_t none;
    int null = open("/dev/null", O_RDONLY);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGPIPE, SIG_DFL);
    /* Own process group: the terminal's Ctrl-C is for `up`, which stops them in order. */
    (void)setpgid(0, 0);
    if (null >= 0)
        (void)dup2(null, STDIN_FILENO);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || getppid() != parent)
        _exit(1);
    (void)execv("/proc/self/exe", arguments);
    _exit(127);
}

static enum err spawn(struct up *up, struct loop_child *child, char **arguments,
                      void (*on_exit)(struct loop_child *child, int wait_status), struct error *e)
{
    pid_t parent = getpid();
    (void)fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        return error_errno(e, "start a process");
    if (pid == 0)
        become(arguments, parent);
    (void)setpgid(pid, pid);
    child->on_exit = on_exit;
    return loop_child_start(up->loop, child, pid, e);
}

static const char *text_of_exit(int status, char *ret_text, size_t bytes)
{
    if (WIFEXITED(status))
        (void)snprintf(ret_text, bytes, "exit code %d", WEXITSTATUS(status));
    else
        (void)snprintf(ret_text, bytes, "signal %d, %s", WTERMSIG(status),
                       strsignal(WTERMSIG(status)));
    return ret_text;
}

static void schedule_restart(struct part *p)
{
    uint64_t now_ns = loop_now_ns(p->up->loop);
    bool was_well = now_ns - p->started_ns > RESTART_FORGOTTEN_MS * NS_PER_MS;
    p->pause_ms = was_well || p->pause_ms == 0 ? RESTART_PAUSE_MS_MIN
                                               : MIN(p->pause_ms * 2, RESTART_PAUSE_MS_MAX);
    loop_timer_start(p->up->loop, &p->timer, now_ns + p->pause_ms * NS_PER_MS);
}

static void on_part_exit(struct loop_child *child, int status)
{
    struct part *p = container_of(child, struct part, child);
    struct up *up = p->up;
    char text[96];
    p->running = false;
    (void)text_of_exit(status, text, sizeof(text));
    if (up->phase == PHASE_STOPPING) {
        log_info("up.stopped", LOG_STR("program", up_part_name(p->which)), LOG_STR("end", text));
        loop_timer_stop(up->loop, &p->timer);
        stop_next(up);
        return;
    }
    log_error("up.died", LOG_STR("program", up_part_name(p->which)), LOG_STR("end", text));
    if (up->phase == PHASE_RUNNING) {
        schedule_restart(p);
        return;
    }
    /* It has said itself why, on our stderr. */
    struct error e = {0};
    error_set(&e, ERR_FAILED, "the %s could not start (%s; its own last words are above)",
              up_part_name(p->which), text);
    style_print_error(&e);
    begin_stop(up, WIFEXITED(status) && WEXITSTATUS(status) == 2 ? 2 : 1);
}

static void start_part(struct up *up, enum up_part which)
{
    struct part *p = &up->parts[which];
    struct error e = {0};
    char **arguments = up_part_arguments(&up->settings, which);
    enum err err = spawn(up, &p->child, arguments, on_part_exit, &e);
    arguments_free(arguments);
    p->started_ns = loop_now_ns(up->loop);
    p->running = err == ERR_OK;
    if (err == ERR_OK) {
        log_info("up.started", LOG_STR("program", up_part_name(which)),
                 LOG_I64("pid", p->child.pid));
        return;
    }
    log_error("up.start_failed", LOG_STR("program", up_part_name(which)), LOG_STR("error", e.text));
    schedule_restart(p);
}

static void on_part_timer(struct loop_timer *timer)
{
    struct part *p = container_of(timer, struct part, timer);
    if (p->up->phase != PHASE_STOPPING) {
        start_part(p->up, p->which);
        return;
    }
    log_warn("up.kill", LOG_STR("program", up_part_name(p->which)),
             LOG_STR("why", "it did not stop in time"));
    if (p->running)
        (void)kill(p->child.pid, SIGKILL);
}

/* ---- readiness ---- */

/* True when the list of `path` has an item that is alive; else says in waits_for what is awaited.
 */
static bool has_alive(struct up *up, const char *path, const char *what)
{
    json_t *list = NULL, *item;
    size_t i;
    bool found = false;
    struct answer answer = {0};
    struct client_call call = {.method = "GET", .path = path, .deadline_ms = READY_CALL_MS};
    struct error e = {0};
    if (client_call(&up->client, &call, &answer, &e) == ERR_OK && answer.status == 200)
        list = answer.json;
    json_array_foreach(json_object_get(list, "items"), i, item)
    {
        found |= strcmp(json_text(item, "state"), "alive") == 0;
    }
    answer_done(&answer);
    (void)snprintf(up->waits_for, sizeof(up->waits_for), "the %s to join", what);
    return found;
}

static bool api_answers(struct up *up, const char *path)
{
    struct answer answer = {0};
    struct client_call call = {.method = "GET", .path = path, .deadline_ms = READY_CALL_MS};
    struct error e = {0};
    bool good = client_call(&up->client, &call, &answer, &e) == ERR_OK && answer.status == 200;
    const char *message = json_text(json_object_get(answer.json, "error"), "message");
    (void)snprintf(up->waits_for, sizeof(up->waits_for), "%s",
                   message[0] != '\0' ? message : "the control plane to answer");
    answer_done(&answer);
    return good;
}

static void on_apply_exit(struct loop_child *child, int status)
{
    struct up *up = container_of(child, struct up, apply);
    up->applying = false;
    if (status != 0 && up->phase != PHASE_STOPPING)
        style_print_note("not all of '%s' could be deployed; the cluster runs on",
                         up_settings_text(&up->settings, "apply"));
}

static void start_apply(struct up *up)
{
    struct error e = {0};
    const char *file = up_settings_text(&up->settings, "apply");
    char words[][16] = {"dirigent", "apply", "-f", "--api"};
    char *arguments[] = {words[0], words[1],       words[2], (char *)file,
                         words[3], up->client.api, NULL};
    if (file[0] == '\0')
        return;
    up->applying = spawn(up, &up->apply, arguments, on_apply_exit, &e) == ERR_OK;
    if (!up->applying)
        style_print_error(&e);
}

static void print_banner(const struct up *up)
{
    char took[HUMAN_BYTES_MAX], api[128] = "";
    const char *bold = style_begin(stdout, STYLE_BOLD), *end = style_end(stdout);
    const char *listen = up_settings_text(&up->settings, "listen");
    uint64_t us = (loop_now_ns(up->loop) - up->started_ns) / NS_PER_US;
    if (strcmp(up->client.api, "http://127.0.0.1:9091") != 0)
        (void)snprintf(api, sizeof(api), " --api %s", up->client.api);
    printf("%sDirigent is ready%s after %s.\n\n", bold, end, human_duration_us(us, took));
    printf("  calls  http://%s/function/NAME/\n", listen);
    printf("  API    %s\n", up->client.api);
    const char *inside = up_settings_text(&up->settings, "cluster");
    if (strcmp(up_settings_text(&up->settings, "tls"), "off") == 0 &&
        address_is_loopback(address_host(inside)))
        printf("  inside %s, without TLS: loopback needs no certificates\n", inside);
    printf("  data   %s\n", up_settings_text(&up->settings, "data_dir"));
    if (up_settings_text(&up->settings, "apply")[0] == '\0')
        printf("  try    %sdirigent deploy hello --dir examples/python%s%s\n", bold, api, end);
    printf("  stop   Ctrl-C; nothing is left behind\n\n");
    (void)fflush(stdout);
}

static void on_ready_check(struct loop_timer *timer)
{
    struct up *up = container_of(timer, struct up, ready_check);
    uint64_t now_ns = loop_update_now(up->loop);
    if (up->phase == PHASE_CONTROL_PLANE && api_answers(up, "/healthz"))
        start_others(up);
    else if (up->phase == PHASE_OTHERS && api_answers(up, "/readyz") &&
             has_alive(up, "/v1/workers", "worker") &&
             has_alive(up, "/v1/data-planes", "data plane")) {
        up->phase = PHASE_RUNNING;
        print_banner(up);
        start_apply(up);
        return;
    }
    if (now_ns - up->started_ns > up_settings_number(&up->settings, "start_deadline") * NS_PER_MS) {
        struct error e = {0};
        error_set(&e, ERR_TIMEOUT,
                  "not ready in time: waited for %s; --start-deadline gives more time",
                  up->waits_for);
        style_print_error(&e);
        begin_stop(up, 1);
        return;
    }
    loop_timer_start(up->loop, &up->ready_check, now_ns + READY_CHECK_MS * NS_PER_MS);
}

static void start_others(struct up *up)
{
    up->phase = PHASE_OTHERS;
    start_part(up, UP_WORKER);
    start_part(up, UP_DATA_PLANE);
}

/* ---- stopping ---- */

/* One after the other: requests end first, then what serves them, then who knows about both. */
static const enum up_part stop_order[] = {UP_DATA_PLANE, UP_WORKER, UP_CONTROL_PLANE};

static uint64_t stop_deadline_ms(const struct up *up, enum up_part which)
{
    switch (which) {
    case UP_DATA_PLANE:
        return up_settings_number(&up->settings, "drain_deadline") + DRAIN_MARGIN_MS;
    case UP_WORKER:
        return WORKER_STOP_MS;
    case UP_CONTROL_PLANE:
    case UP_PART_COUNT:
        return CONTROL_PLANE_STOP_MS;
    }
    return CONTROL_PLANE_STOP_MS;
}

/* Goes on with the stop: called at its beginning and whenever a program has ended. */
static void stop_next(struct up *up)
{
    for (; up->stop_step < (int)ARRAY_COUNT(stop_order); up->stop_step++) {
        struct part *p = &up->parts[stop_order[up->stop_step]];
        if (!p->running)
            continue;
        if (loop_timer_is_running(&p->timer))
            return; /* told before, not gone yet */
        (void)kill(p->child.pid, up->killing ? SIGKILL : SIGTERM);
        loop_timer_start(up->loop, &p->timer,
                         loop_now_ns(up->loop) + stop_deadline_ms(up, p->which) * NS_PER_MS);
        return;
    }
    loop_stop(up->loop);
}

static void begin_stop(struct up *up, int exit_code)
{
    if (up->phase == PHASE_STOPPING)
        return;
    up->phase = PHASE_STOPPING;
    up->exit_code = exit_code;
    up->stop_ns = loop_now_ns(up->loop);
    loop_timer_stop(up->loop, &up->ready_check);
    for (size_t i = 0; i < UP_PART_COUNT; i++)
        loop_timer_stop(up->loop, &up->parts[i].timer);
    if (up->applying)
        (void)kill(up->apply.pid, SIGTERM);
    stop_next(up);
}

static void kill_all(struct up *up)
{
    up->killing = true;
    style_print_note("second signal: killing what still runs");
    for (size_t i = 0; i < UP_PART_COUNT; i++)
        if (up->parts[i].running)
            (void)kill(up->parts[i].child.pid, SIGKILL);
}

/* The launcher is nobody's child but, by PR_SET_CHILD_SUBREAPER, ours. */
static void reap_strangers(const struct up *up)
{
    pid_t keep[UP_PART_COUNT + 1];
    for (size_t i = 0; i < UP_PART_COUNT; i++)
        keep[i] = up->parts[i].child.pid;
    keep[UP_PART_COUNT] = up->apply.pid;
    orphans_reap(keep, ARRAY_COUNT(keep));
}

static void on_signal(struct loop_signals *s, int signo)
{
    struct up *up = container_of(s, struct up, signals);
    uint64_t now_ns = loop_now_ns(up->loop);
    if (signo == SIGCHLD) {
        reap_strangers(up);
        return;
    }
    if (up->phase != PHASE_STOPPING) {
        fprintf(stderr, "%sstopping (%s); once more kills%s\n", style_begin(stderr, STYLE_DIM),
                signo == SIGINT ? "Ctrl-C" : "SIGTERM", style_end(stderr));
        begin_stop(up, 0);
    } else if (now_ns - up->stop_ns > SAME_SIGNAL_MS * NS_PER_MS && !up->killing) {
        kill_all(up);
    }
}

/* ---- before the start ---- */

static enum err check_root(struct error *e)
{
    if (geteuid() == 0)
        return ERR_OK;
    return error_set(
        e, ERR_PERMISSION,
        "`dirigent up` must be started as root: it makes namespaces, cgroups and network "
        "interfaces. Try: sudo dirigent up");
}

/* The programs are told absolute paths: they show in their command lines. */
static enum err make_absolute(struct up *up, const char *key, struct error *e)
{
    char path[PATH_MAX];
    const char *text = up_settings_text(&up->settings, key);
    cleanup(free_pointer) char *flag = up_settings_flag(key);
    if (text[0] == '\0')
        return error_set(e, ERR_USAGE, "%s is empty", flag);
    enum err err = dir_make_all(text, 0755, e);
    if (err != ERR_OK)
        return err;
    if (realpath(text, path) == NULL)
        return error_errno(e, "look at directory '%s'", text);
    up_settings_set_text(&up->settings, key, path);
    return ERR_OK;
}

/* Programs of an `up` that was killed may still be stopping: waits for them rather than fail. */
static enum err wait_for_predecessors(const struct up *up, struct error *e)
{
    static const char *const keys[] = {"data_dir", "run_dir"};
    for (size_t k = 0; k < ARRAY_COUNT(keys); k++)
        for (size_t i = 0; i < UP_PART_COUNT; i++) {
            cleanup(free_pointer) char *directory = mem_printf(
                "%s/%s", up_settings_text(&up->settings, keys[k]), up_part_name((enum up_part)i));
            enum err err = lock_wait_free(directory, PREDECESSOR_WAIT_MS, e);
            if (err != ERR_OK)
                return err;
        }
    return ERR_OK;
}

static enum err claim_directories(struct up *up, struct error *e)
{
    enum err err = make_absolute(up, "data_dir", e);
    if (err == ERR_OK)
        err = make_absolute(up, "run_dir", e);
    up->run_dir_made = err == ERR_OK;
    if (err == ERR_OK)
        err = program_dir_open(up_settings_text(&up->settings, "data_dir"), "up", 0, 0,
                               &up->data_path, &up->data_lock, e);
    if (err == ERR_OK)
        err = program_dir_open(up_settings_text(&up->settings, "run_dir"), "up", 0, 0,
                               &up->run_path, &up->run_lock, e);
    if (err == ERR_BUSY)
        return error_prefix(e, "`dirigent up` runs already");
    return err == ERR_OK ? wait_for_predecessors(up, e) : err;
}

/* Nothing is started when an address is taken. Port 0 becomes the one that was free. */
static enum err check_address(struct up *up, const char *key, struct error *e)
{
    cleanup(fd_close) int fd = -1;
    struct sockaddr_storage bound;
    socklen_t bytes = sizeof(bound);
    char text[64];
    cleanup(free_pointer) char *flag = up_settings_flag(key);
    enum err err = socket_listen(up_settings_text(&up->settings, key), false, &fd, e);
    if (err != ERR_OK) {
        error_prefix(e, "%s", flag);
        return err == ERR_INVALID ? ERR_USAGE : err;
    }
    if (getsockname(fd, (struct sockaddr *)&bound, &bytes) < 0)
        return error_errno(e, "%s: read the address", flag);
    address_format((struct sockaddr *)&bound, text, sizeof(text));
    up_settings_set_text(&up->settings, key, text);
    return ERR_OK;
}

static enum err check_addresses(struct up *up, struct error *e)
{
    const struct up_settings *s = &up->settings;
    for (size_t i = 0; i < s->count; i++) {
        const char *key = s->table[i].key;
        if (s->table[i].type != SETTING_ADDRESS || up_settings_text(s, key)[0] == '\0')
            continue;
        enum err err = check_address(up, key, e);
        if (err != ERR_OK)
            return err;
        for (size_t j = 0; j < i; j++)
            if (s->table[j].type == SETTING_ADDRESS &&
                strcmp(up_settings_text(s, key), up_settings_text(s, s->table[j].key)) == 0)
                return error_set(e, ERR_USAGE, "two settings have the same address %s: %s and %s",
                                 up_settings_text(s, key), s->table[j].key, key);
    }
    return ERR_OK;
}

static enum err check_apply_file(const struct up *up, struct error *e)
{
    const char *file = up_settings_text(&up->settings, "apply");
    if (file[0] == '\0' || access(file, R_OK) == 0)
        return ERR_OK;
    return error_errno(e, "--apply: read '%s'", file);
}

/* Where a client on this machine reaches what listens on all addresses. */
static enum err open_client(struct up *up, struct error *e)
{
    const char *api = up_settings_text(&up->settings, "api");
    const char *port = strrchr(api, ':');
    bool all = strncmp(api, "0.0.0.0:", 8) == 0 || strncmp(api, "[::]:", 5) == 0;
    cleanup(free_pointer) char *local = all ? mem_printf("127.0.0.1%s", port) : mem_strdup(api);
    const struct common_values common = {.api = local};
    const struct command_input in = {.common = &common};
    return client_open(&up->client, &in, e);
}

static enum err prepare(struct up *up, int argc, char **argv, struct error *e)
{
    static const int signos[] = {SIGINT, SIGTERM, SIGCHLD};
    enum err err = up_settings_load(argc, argv, &up->settings, e);
    if (err == ERR_OK)
        err = check_root(e);
    if (err == ERR_OK)
        err = check_apply_file(up, e);
    if (err == ERR_OK)
        err = claim_directories(up, e); /* also waits for those who may still have the addresses */
    if (err == ERR_OK)
        err = check_addresses(up, e);
    if (err == ERR_OK)
        err = open_client(up, e);
    if (err == ERR_OK)
        err = loop_new(&up->loop, e);
    if (err == ERR_OK)
        err = loop_signals_start(up->loop, &up->signals, signos, ARRAY_COUNT(signos), e);
    if (err != ERR_OK)
        return err;
    up_settings_clear_environment(&up->settings);
    (void)signal(SIGPIPE, SIG_IGN); /* a closed pipe behind our output stops nothing */
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    return ERR_OK;
}

/* ---- life ---- */

static void run(struct up *up)
{
    up->signals.on_signal = on_signal;
    up->started_ns = loop_update_now(up->loop);
    loop_timer_init(&up->ready_check, on_ready_check);
    for (size_t i = 0; i < UP_PART_COUNT; i++) {
        up->parts[i].up = up;
        up->parts[i].which = (enum up_part)i;
        loop_timer_init(&up->parts[i].timer, on_part_timer);
    }
    start_part(up, UP_CONTROL_PLANE);
    loop_timer_start(up->loop, &up->ready_check, up->started_ns);
    loop_run(up->loop);
}

/* The run directory as it was before: nobody else's part of it is touched. */
static void clean_run_directory(struct up *up)
{
    const char *run_dir = up_settings_text(&up->settings, "run_dir");
    if (up->run_lock >= 0) {
        for (size_t i = 0; i < UP_PART_COUNT; i++)
            run_directory_remove(run_dir, up_part_name((enum up_part)i));
        run_directory_remove(run_dir, "up");
        fd_close(&up->run_lock);
    }
    (void)rmdir(run_dir); /* stays when something is in it */
}

static void done(struct up *up)
{
    if (up->loop != NULL) {
        loop_signals_stop(&up->signals);
        loop_child_stop(&up->apply);
        loop_free(up->loop);
    }
    fd_close(&up->run_lock);
    fd_close(&up->data_lock);
    client_done(&up->client);
    free(up->data_path);
    free(up->run_path);
    up_settings_done(&up->settings);
}

int up_main(int argc, char **argv)
{
    struct up up = {.data_lock = -1, .run_lock = -1};
    struct error e = {0};
    log_init("up", LOG_LEVEL_INFO);
    enum err err = prepare(&up, argc, argv, &e);
    if (err == ERR_OK) {
        run(&up);
        orphans_end(ORPHAN_STOP_MS);
    } else if (err != ERR_END) {
        style_print_error(&e);
    }
    if (up.run_dir_made)
        clean_run_directory(&up);
    int exit_code = err == ERR_END ? 0 : err != ERR_OK ? err_exit_code(err) : up.exit_code;
    done(&up);
    return exit_code;
}
