/* simulate.c - the order of things: look who is there, connect data planes, register functions,
 * connect workers, call, wait for the last answers, print. */
#include "simulate/simulate.h"
#include "base/log.h"
#include "simulate/sim.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define LOOK_PERIOD_NS (20 * NS_PER_MS)
/* From this rate on the alarm's own cost counts, as setting it leaves a virtual machine: then it
 * goes off so often at most. Who is late by that is measured as late. */
#define BUSY_RATE 5000u
#define BUSY_ALARM_NS (200 * NS_PER_US)
#define DESCRIPTORS_BESIDE 600u /* beside the connections to --cluster */
#define DATA_PLANES_MAX 64u     /* as the control plane takes */
/* clang-format off */
#define SUMMARY \
    "Drives a real control plane with simulated workers and data planes over real connections, and\n" \
    "measures it: how many cold starts a second it schedules, and how long they take from the demand of a\n" \
    "data plane to the start order at a worker, and to the endpoint at the data plane. Start a control\n" \
    "plane for it (what is registered stays there):\n" \
    "\n" \
    "  dirigent control-plane --data-dir /tmp/sim --run-dir /tmp/sim-run &\n" \
    "  dirigent simulate --workers 500 --functions 5000 --rate 2000\n" \
    "\n" \
    "Every call is a cold start: a function is called again only when its last sandbox is gone, about two\n" \
    "windows, the start delay and the time of the call after it was asked for; 300 ms with the defaults. So\n" \
    "--functions must be more than a third of --rate. Calls come when their time in the schedule has come,\n" \
    "and their latency counts from then: a control plane that cannot follow is seen in the latencies, and\n" \
    "so is this program when it has no processor left (see its own lines)."
/* clang-format on */

static const struct setting table[] = {
#define SETTING(key, type, default_text, help) \
    SETTING_ROW(struct simulate_settings, key, type, default_text, help)
#include "simulate/simulate_settings.def"
#undef SETTING
};

enum phase {
    PHASE_CHECK,
    PHASE_DATA_PLANES,
    PHASE_REGISTER,
    PHASE_WORKERS,
    PHASE_CALLS,
    PHASE_LAST_ANSWERS,
    PHASE_END
};
struct program {
    struct sim sim;
    enum phase phase;
    struct registration *registration;
    pid_t control_plane;
    bool is_before_known, is_after_known;
    uint64_t phase_ns, setup_ends_ns;
    struct results results;
    enum err end;
    struct error error;
};

static struct program *program_of(struct sim *s)
{
    return container_of(s, struct program, sim);
}

static void stop_with(struct program *p, enum err err, const struct error *e)
{
    if (p->phase == PHASE_END)
        return;
    p->phase = PHASE_END;
    p->end = err;
    if (e != NULL)
        p->error = *e;
    loop_stop(p->sim.loop);
}

/* ---- what the other files share ---- */

/* One message at a time: when all of its pieces have been given back the next begins at the front.
 */
static void *scratch_take(void *user, size_t bytes)
{
    struct sim *s = user;
    bytes = (bytes + 15) & ~(size_t)15;
    if (bytes > s->scratch.capacity - s->scratch_used)
        return malloc(bytes);
    s->scratch_used += bytes;
    s->scratch_pieces++;
    return s->scratch.data + s->scratch_used - bytes;
}

static void scratch_give(void *user, void *pointer)
{
    struct sim *s = user;
    char *c = pointer;
    if (c < s->scratch.data || c >= s->scratch.data + s->scratch.capacity)
        free(pointer);
    else if (--s->scratch_pieces == 0)
        s->scratch_used = 0;
}

void sim_alarm_at(struct sim *s, uint64_t due_ns)
{
    if (s->settings.rate >= BUSY_RATE)
        due_ns = MAX(due_ns, s->alarm_rang_ns + BUSY_ALARM_NS);
    if (due_ns >= s->alarm_ns)
        return;
    struct itimerspec at = {.it_value = {(time_t)(due_ns / NS_PER_S), (long)(due_ns % NS_PER_S)}};
    s->alarm_ns = due_ns;
    if (due_ns == 0)
        at.it_value.tv_nsec = 1; /* 0 would disarm it */
    (void)timerfd_settime(s->alarm_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void on_alarm(struct loop_poll *poll, uint32_t epoll_events)
{
    struct sim *s = container_of(poll, struct sim, alarm);
    uint64_t count;
    if (read(s->alarm_fd, &count, sizeof(count)) < 0 && errno == EAGAIN)
        return;
    s->alarm_ns = UINT64_MAX;
    s->alarm_rang_ns = clock_mono_ns();
    workers_due(s, s->alarm_rang_ns);
    load_due(s, clock_mono_ns());
    sim_alarm_at(s, MIN(delay_line_next_ns(&s->starts), load_next_ns(s)));
}

/* ---- phases ---- */

static void say(const struct program *p, const char *text)
{
    if (isatty(STDERR_FILENO) && !p->sim.settings.json)
        fprintf(stderr, "%s\n", text);
}

static void on_registration(struct sim *s, enum err err, const struct error *e)
{
    struct program *p = program_of(s);
    if (err != ERR_OK && err != ERR_MORE) {
        stop_with(p, err, e);
        return;
    }
    if (err == ERR_MORE && p->phase == PHASE_CHECK) {
        struct error inner = {0};
        p->phase = PHASE_DATA_PLANES;
        err = planes_dial(s, &inner);
        if (err != ERR_OK)
            stop_with(p, err, &inner);
    }
    sim_progress(s);
}

static bool is_everything_registered(const struct program *p)
{
    size_t functions = p->sim.settings.functions;
    return registration_count(p->registration) == functions && p->sim.load.by_id.count == functions;
}

static void phase_enter(struct program *p, enum phase phase)
{
    p->phase = phase;
    p->phase_ns = clock_mono_ns();
}

static double phase_seconds(const struct program *p)
{
    return (double)(clock_mono_ns() - p->phase_ns) / NS_PER_S;
}

static void begin_calls(struct program *p)
{
    phase_enter(p, PHASE_CALLS);
    say(p, "calling");
    load_begin(&p->sim);
    workers_begin_losses(&p->sim);
}

void sim_progress(struct sim *s)
{
    struct program *p = program_of(s);
    struct error e = {0};
    if (p->phase == PHASE_DATA_PLANES && s->planes_up == s->settings.data_planes) {
        phase_enter(p, PHASE_REGISTER);
        say(p, "registering functions");
        registration_begin(p->registration);
    }
    if (p->phase == PHASE_REGISTER && is_everything_registered(p)) {
        p->results.registered_s = phase_seconds(p);
        phase_enter(p, PHASE_WORKERS);
        say(p, "connecting workers");
    }
    if (p->phase == PHASE_WORKERS) {
        enum err err = workers_dial(s, &e);
        if (err != ERR_OK)
            stop_with(p, err, &e);
        else if (s->workers_up == s->settings.workers) {
            p->results.joined_s = phase_seconds(p);
            begin_calls(p);
        }
    }
    if (p->phase == PHASE_LAST_ANSWERS && s->load.waiting_count == 0 && !s->load.arriving)
        stop_with(p, ERR_OK, NULL);
}

/* ---- time ---- */

static bool usage_take(const struct program *p, struct usage *ret_usage, struct usage *ret_own)
{
    struct error e = {0};
    bool is_known = watch_usage(getpid(), ret_own, &e) == ERR_OK;
    return is_known && p->control_plane != 0 &&
           watch_usage(p->control_plane, ret_usage, &e) == ERR_OK;
}

static void look_at_calls(struct program *p, uint64_t now_ns)
{
    struct load *l = &p->sim.load;
    struct results *r = &p->results;
    load_check_timeouts(&p->sim);
    if (r->own_before.at_ns == 0 && now_ns >= l->measured_from_ns)
        p->is_before_known = usage_take(p, &r->before, &r->own_before);
    if (p->phase == PHASE_CALLS && now_ns >= l->ends_ns) {
        p->is_after_known = usage_take(p, &r->after, &r->own_after);
        phase_enter(p, PHASE_LAST_ANSWERS);
        sim_progress(&p->sim);
    }
    if (p->phase == PHASE_LAST_ANSWERS &&
        now_ns >= l->ends_ns + p->sim.settings.call_timeout * NS_PER_MS)
        load_give_up(&p->sim);
    if (p->phase == PHASE_LAST_ANSWERS)
        sim_progress(&p->sim);
}

static void setup_timed_out(struct program *p)
{
    struct sim *s = &p->sim;
    struct error e = {0};
    const char *comma = s->last_failure[0] != '\0' ? "; last: " : "";
    if (p->phase == PHASE_REGISTER)
        error_set(&e, ERR_TIMEOUT,
                  "%zu of %" PRIu64 " functions were registered within %" PRIu64 " ms%s%s",
                  registration_count(p->registration), s->settings.functions,
                  s->settings.setup_timeout, comma, s->last_failure);
    else
        error_set(&e, ERR_TIMEOUT,
                  "%zu of %" PRIu64 " data planes and %zu of %" PRIu64
                  " workers were connected to %s within %" PRIu64 " ms%s%s",
                  s->planes_up, s->settings.data_planes, s->workers_up, s->settings.workers,
                  s->settings.cluster, s->settings.setup_timeout, comma, s->last_failure);
    stop_with(p, ERR_TIMEOUT, &e);
}

/* A control plane that takes nobody, or that is not there, is known before the time is over. */
static bool is_hopeless(const struct program *p)
{
    const struct sim *s = &p->sim;
    return p->phase < PHASE_CALLS && strncmp(s->last_failure, "it refuses", 10) == 0;
}

static void on_timer(struct loop_timer *timer)
{
    struct sim *s = container_of(timer, struct sim, timer);
    struct program *p = program_of(s);
    uint64_t now_ns = clock_mono_ns();
    if (is_hopeless(p)) {
        struct error e = {0};
        error_set(&e, ERR_FAILED, "the control plane at %s: %s", s->settings.cluster,
                  s->last_failure);
        stop_with(p, ERR_FAILED, &e);
    } else if (p->phase < PHASE_CALLS && now_ns >= p->setup_ends_ns) {
        setup_timed_out(p);
    } else if (p->phase >= PHASE_CALLS) {
        look_at_calls(p, now_ns);
    }
    loop_timer_start(s->loop, timer, loop_now_ns(s->loop) + LOOK_PERIOD_NS);
}

static void on_signal(struct loop_signals *signals, int signo)
{
    struct program *p = program_of(container_of(signals, struct sim, signals));
    struct error e = {0};
    error_set(&e, ERR_CLOSED, "stopped by SIG%s", sigabbrev_np(signo));
    stop_with(p, ERR_CLOSED, &e);
}

/* ---- start ---- */

static enum err check_range(const char *key, uint64_t value, uint64_t min, uint64_t max,
                            struct error *e)
{
    char flag[64];
    snprintf(flag, sizeof(flag), "%s", key);
    for (char *c = flag; *c != '\0'; c++)
        *c = *c == '_' ? '-' : *c;
    if (value >= min && value <= max)
        return ERR_OK;
    return error_field(e, ERR_USAGE, key,
                       "--%s must be from %" PRIu64 " to %" PRIu64 ", and is %" PRIu64, flag, min,
                       max, value);
}

/* DIRIGENT_API is an address for clients too, and they take a URL. */
static void strip_scheme(char *address)
{
    static const char scheme[] = "http://";
    size_t bytes = strlen(address), scheme_bytes = sizeof(scheme) - 1;
    if (bytes >= scheme_bytes && memcmp(address, scheme, scheme_bytes) == 0)
        memmove(address, address + scheme_bytes, bytes - scheme_bytes + 1);
}

static enum err check_settings(const struct simulate_settings *o, enum log_level *ret_level,
                               struct error *e)
{
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    const struct {
        const char *key;
        uint64_t value, min, max;
    } ranges[] = {
        {"workers", o->workers, 1, 100000},
        {"data_planes", o->data_planes, 1, DATA_PLANES_MAX},
        {"functions", o->functions, 1, 1000000},
        {"rate", o->rate, 1, 1000000},
        {"duration", o->duration, 100, 3600000},
        {"warm_up", o->warm_up, 0, 3600000},
        {"start_delay", o->start_delay, 0, 60000},
        {"exec", o->exec, 0, 3600000},
        {"concurrency", o->concurrency, 0, 100000},
        {"window", o->window, 100, 3600000},
        {"call_timeout", o->call_timeout, 100, 3600000},
        {"setup_timeout", o->setup_timeout, 100, 3600000},
        {"lose_workers", o->lose_workers, 0, 1000},
        {"pid", o->pid, 0, INT32_MAX},
    };
    enum err err = ERR_OK;
    for (size_t i = 0; err == ERR_OK && i < ARRAY_COUNT(ranges); i++)
        err = check_range(ranges[i].key, ranges[i].value, ranges[i].min, ranges[i].max, e);
    if (err != ERR_OK)
        return err;
    if (strcmp(o->arrivals, "poisson") != 0 && strcmp(o->arrivals, "uniform") != 0)
        return error_field(e, ERR_USAGE, "arrivals",
                           "--arrivals must be poisson or uniform, and is '%s'", o->arrivals);
    for (size_t i = 0; i < ARRAY_COUNT(levels); i++) {
        if (strcmp(o->log_level, levels[i]) != 0)
            continue;
        *ret_level = (enum log_level)i;
        return ERR_OK;
    }
    return error_field(e, ERR_USAGE, "log_level",
                       "--log-level must be debug, info, warn or error, and is '%s'", o->log_level);
}

static enum err raise_descriptor_limit(const struct simulate_settings *o, struct error *e)
{
    struct rlimit limit = {0};
    rlim_t replicas = 1;
    for (const char *c = o->cluster; *c != '\0'; c++)
        replicas += *c == ',';
    rlim_t needed = (o->workers + o->data_planes) * replicas + DESCRIPTORS_BESIDE;
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= needed)
        return ERR_OK;
    limit.rlim_cur = needed;
    limit.rlim_max = MAX(limit.rlim_max, needed);
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
        return ERR_OK;
    return error_errno(
        e,
        "%" PRIu64 " workers and %" PRIu64
        " data planes need %ju open files, and the limit cannot be raised (ulimit -Hn)",
        o->workers, o->data_planes, (uintmax_t)needed);
}

static void warn_of_few_functions(const struct simulate_settings *o)
{
    uint64_t cycle_ms = o->start_delay + o->exec + 5 * o->window / 2 + 10,
             needed = o->rate * cycle_ms / 1000;
    if (o->functions < needed)
        fprintf(stderr,
                "dirigent simulate: %" PRIu64 " functions are too few for %" PRIu64
                " cold starts a second: each takes about %" PRIu64
                " ms to be cold again, so calls will wait for a function; --functions %" PRIu64
                " are enough\n",
                o->functions, o->rate, cycle_ms, needed + needed / 4);
}

static enum err start(struct program *p, struct error *e)
{
    static const int signos[] = {SIGTERM, SIGINT};
    struct sim *s = &p->sim;
    enum err err = raise_descriptor_limit(&s->settings, e);
    if (err == ERR_OK)
        err = loop_new(&s->loop, e);
    if (err != ERR_OK)
        return err;
    s->signals.on_signal = on_signal;
    s->alarm.on_ready = on_alarm;
    s->alarm_ns = UINT64_MAX;
    s->allocator = (ProtobufCAllocator){scratch_take, scratch_give, s};
    (void)buf_reserve(&s->scratch, MIB);
    rng_init(&s->rng, s->settings.seed);
    planes_init(s);
    workers_init(s);
    load_init(s);
    s->alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (s->alarm_fd < 0)
        return error_errno(e, "make a timer");
    err = loop_signals_start(s->loop, &s->signals, signos, ARRAY_COUNT(signos), e);
    if (err == ERR_OK)
        err = loop_poll_start(s->loop, &s->alarm, s->alarm_fd, EPOLLIN, e);
    if (err == ERR_OK)
        err = registration_new(s, on_registration, &p->registration, e);
    if (err == ERR_OK && s->settings.pid != 0) {
        p->control_plane = (pid_t)s->settings.pid;
        err = watch_usage(p->control_plane, &p->results.before, e);
    } else if (err == ERR_OK) {
        p->control_plane = watch_find(s->settings.cluster);
    }
    loop_timer_init(&s->timer, on_timer);
    loop_timer_start(s->loop, &s->timer, 0);
    p->setup_ends_ns = clock_mono_ns() + s->settings.setup_timeout * NS_PER_MS;
    return err;
}

/* ---- end ---- */

static void done(struct program *p)
{
    struct sim *s = &p->sim;
    if (s->loop != NULL) {
        planes_goodbye(s);
        workers_goodbye(s);
        loop_run_once(s->loop, 0); /* it leaves */
        registration_free(p->registration);
        workers_free(s);
        planes_free(s);
        loop_timer_stop(s->loop, &s->timer);
        loop_poll_stop(&s->alarm);
        loop_signals_stop(&s->signals);
        loop_run_once(s->loop, 0); /* connections close */
        load_done(s);
        fd_close(&s->alarm_fd);
        loop_free(s->loop);
    }
    buf_done(&s->scratch);
    settings_done(table, ARRAY_COUNT(table), &s->settings);
}

int simulate_main(int argc, char **argv)
{
    struct program p = {.sim.alarm_fd = -1};
    enum log_level level = LOG_LEVEL_WARN;
    enum err err = settings_load("simulate", SUMMARY, table, ARRAY_COUNT(table), argc, argv,
                                 &p.sim.settings, &p.error);
    if (err == ERR_END)
        return 0;
    if (err == ERR_OK)
        err = check_settings(&p.sim.settings, &level, &p.error);
    if (err == ERR_OK) {
        log_init("simulate", level);
        strip_scheme(p.sim.settings.api);
        warn_of_few_functions(&p.sim.settings);
        (void)signal(SIGPIPE, SIG_IGN);
        err = start(&p, &p.error);
    }
    if (err == ERR_OK) {
        loop_run(p.sim.loop);
        err = p.end;
    }
    if (err == ERR_OK) {
        p.results.measured_s = (double)p.sim.settings.duration / MS_PER_S;
        p.results.has_control_plane = p.is_before_known && p.is_after_known;
        report_print(&p.sim, &p.results);
    } else {
        fprintf(stderr, "dirigent simulate: %s\n", p.error.text);
    }
    done(&p);
    return err_exit_code(err);
}
