/* sandboxes.c - the life of slots and of the sandboxes in them. */
#include "launcher/state.h"
#include "base/crash_point.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUILDS_AT_ONCE 8u
#define BIRTHS_AT_ONCE 16u
/* Until it listens a sandbox has at least one processor: a small limit is dealt out in slices that
 * are used up before the program has begun, and then it stands still for the rest of the period.
 * docs/decisions/0006-cpu-while-starting.md. */
#define START_CPU_MILLI 1000u
/* To write a limit makes the kernel look at every cgroup there is. A version that has started
 * quickly needs no more than this. */
#define TWO_SLICES_MILLI 100u
#define QUICK_START_US 5000u
#define REST_MS 50u
#define POOL_TELL_MS 500u
#define REFILL_DELAY_US                                                       \
    1500u /* a start that has just been ordered has the processors for itself \
           */

static void slot_ready(struct slot *s);
static void quarantine(struct slot *s);
static void start_now(struct slot *s, struct template *t, uint64_t sandbox_id, uint64_t order_ns,
                      int output_fd);

/* ---- the pool ---- */

static uint32_t parked_count(const struct launcher *l)
{
    uint32_t count = 0;
    for (const struct list *n = l->parked.next; n != &l->parked; n = n->next)
        count++;
    return count;
}

static uint32_t list_length(const struct list *head)
{
    uint32_t count = 0;
    for (const struct list *n = head->next; n != head; n = n->next)
        count++;
    return count;
}

void pool_tell(struct launcher *l)
{
    struct launcher_event event = {.kind = LAUNCHER_POOL,
                                   .blanks_ready = parked_count(l),
                                   .slots_free = l->config.slots_max - l->running};
    launcher_event_send(l, &event);
}

static void pool_changed(struct launcher *l)
{
    if (!loop_timer_is_running(&l->pool_timer))
        loop_timer_start(l->loop, &l->pool_timer, loop_now_ns(l->loop) + POOL_TELL_MS * NS_PER_MS);
}

/* Makes what is missing: a blank for each waiting start and blanks_min on top, slots for them in
 * time. */
void slots_refill(struct launcher *l)
{
    if (l->shutting_down)
        return;
    pool_changed(l);
    uint32_t wanted = l->config.blanks_min + list_length(&l->starts),
             have = parked_count(l) + l->births;
    while (have < wanted && l->births < BIRTHS_AT_ONCE && !list_is_empty(&l->free_slots)) {
        struct slot *s = list_entry(l->free_slots.next, struct slot, node);
        list_remove(&s->node);
        helpers_birth(l, s);
        have++;
    }
    /* Slots at rest do not count: under steady load as many as rest at a time must exist beside
     * those in use. */
    uint32_t coming = have + list_length(&l->free_slots) + l->building + l->anchoring;
    while (coming < wanted + l->config.blanks_min && l->building < BUILDS_AT_ONCE &&
           !l->builder_failed && l->slots_made + l->building < l->config.slots_max) {
        struct slot *s = &l->slots[l->slots_made + l->building];
        if (s->state != SLOT_EMPTY)
            break;
        helpers_build(l, s);
        coming++;
    }
}

static void refill_later(struct launcher *l)
{
    if (!loop_timer_is_running(&l->refill_timer))
        loop_timer_start(l->loop, &l->refill_timer,
                         loop_now_ns(l->loop) + REFILL_DELAY_US * NS_PER_US);
}

void slot_built(struct slot *s, int netns_fd, uint64_t netns_cookie)
{
    struct launcher *l = s->launcher;
    l->building--;
    if (netns_fd < 0) {
        s->state = SLOT_EMPTY;
        return;
    }
    l->slots_made++;
    s->netns_fd = netns_fd;
    s->netns_cookie = netns_cookie;
    map_put(&l->by_netns, netns_cookie, s);
    s->outward = true;
    slot_ready(s);
}

static void slot_free(struct slot *s)
{
    struct launcher *l = s->launcher;
    s->state = SLOT_FREE;
    list_push_back(&l->free_slots, &s->node);
    slots_refill(l);
}

/* With cgroups of version 1 a slot is of use when its anchor stands. */
static void slot_ready(struct slot *s)
{
    struct launcher *l = s->launcher;
    if (l->shared.cgroups.version != 1 || s->anchor_fd >= 0) {
        slot_free(s);
        return;
    }
    s->state = SLOT_BUILDING;
    l->anchoring++;
    if (!helpers_anchor(l, s))
        slot_anchored(s, false);
}

void slot_anchored(struct slot *s, bool ok)
{
    s->launcher->anchoring--;
    if (ok)
        slot_free(s);
    else
        quarantine(s); /* and once more */
}

static void descriptors_close(struct slot *s)
{
    loop_poll_stop(&s->control_poll);
    notify_sandbox_ended(s);
    loop_poll_stop(&s->pid_poll);
    fd_close(&s->control_fd);
    fd_close(&s->pidfd);
}

/* Each list is in the order of its ends. */
static void quarantine_plan(struct launcher *l)
{
    uint64_t end = UINT64_MAX;
    if (!list_is_empty(&l->quarantine))
        end = list_entry(l->quarantine.next, struct slot, node)->quarantine_end_ns;
    if (!list_is_empty(&l->rest))
        end = MIN(end, list_entry(l->rest.next, struct slot, node)->quarantine_end_ns);
    if (end != UINT64_MAX)
        loop_timer_start(l->loop, &l->quarantine_timer, end);
}

static void quarantine(struct slot *s)
{
    struct launcher *l = s->launcher;
    struct list *rests = &l->quarantine;
    uint32_t ms = l->config.quarantine_ms;
    if (s->signaled) { /* by order: every data plane has said before that it is done with it */
        rests = &l->rest;
        ms = MIN(ms, REST_MS);
    }
    s->state = SLOT_QUARANTINE;
    s->quarantine_end_ns = loop_now_ns(l->loop) + ms * NS_PER_MS;
    list_push_back(rests, &s->node);
    quarantine_plan(l);
}

static void quarantine_end(struct launcher *l, struct list *rests)
{
    while (!list_is_empty(rests)) {
        struct slot *s = list_entry(rests->next, struct slot, node);
        if (s->quarantine_end_ns > loop_now_ns(l->loop))
            return;
        list_remove(&s->node);
        slot_ready(s);
    }
}

void on_quarantine_timer(struct loop_timer *timer)
{
    struct launcher *l = container_of(timer, struct launcher, quarantine_timer);
    quarantine_end(l, &l->quarantine);
    quarantine_end(l, &l->rest);
    quarantine_plan(l);
}

/* ---- the end of a process 1 ---- */

/* All of the sandbox is gone: the kernel ends a pid namespace with its process 1. */
static void on_reaped(struct slot *s)
{
    struct launcher *l = s->launcher;
    struct launcher_event event;
    bool was_sandbox = s->template != NULL;
    uint64_t oom_kills =
        cgroup_slot_oom_kills(&l->shared.cgroups, s->index); /* since the cgroup was made */
    if (was_sandbox) {
        launcher_slot_event(s, s->failed ? LAUNCHER_START_FAILED : LAUNCHER_EXITED, &event);
        event.wait_status = s->has_status ? s->wait_status : SIGKILL;
        event.oom = oom_kills > s->oom_kills;
        event.memory_peak_bytes =
            cgroup_slot_memory_peak(&l->shared.cgroups, s->index, &s->memory_peak);
        launcher_event_send(l, &event);
        (void)map_remove(&l->sandboxes, s->sandbox_id);
        l->running--;
        template_release(l, s->template);
        s->template = NULL;
    }
    s->oom_kills = oom_kills;
    descriptors_close(s);
    cgroup_slot_reset(&l->shared.cgroups, s->index, &s->memory_peak);
    if (!s->outward) {
        struct error e = {0};
        s->outward = network_slot_outward(&l->network, s->netns_fd, true, &e) == ERR_OK;
    }
    quarantine(s);
}

static void on_pid_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct slot *s = container_of(poll, struct slot, pid_poll);
    if (waitpid(s->pid, NULL, WNOHANG) != s->pid)
        return;
    list_remove(&s->node); /* of the parked, if it was one */
    if (s->state == SLOT_BIRTH)
        s->launcher->births--;
    s->pid = 0;
    on_reaped(s);
}

/* ---- what process 1 says ---- */

static void on_parked(struct slot *s)
{
    struct launcher *l = s->launcher;
    l->births--;
    s->state = SLOT_PARKED;
    if (list_is_empty(&l->starts)) {
        list_push_back(&l->parked, &s->node);
        pool_changed(l);
        if (parked_count(l) < l->config.blanks_min)
            slots_refill(l);
        return;
    }
    struct start *start = list_entry(l->starts.next, struct start, node);
    list_remove(&start->node);
    start_now(s, start->template, start->sandbox_id, start->order_ns, start->output_fd);
    free(start);
}

static void on_report(struct slot *s, const struct blank_report *report)
{
    switch (report->kind) {
    case BLANK_PARKED:
        if (s->state == SLOT_BIRTH)
            on_parked(s);
        break;
    case BLANK_STARTED:
        CRASH_POINT("launcher.executed");
        s->started = true;
        s->create_us = (uint32_t)((report->created_ns - s->order_ns) / NS_PER_US);
        s->exec_us = (uint32_t)((report->executed_ns - s->order_ns) / NS_PER_US);
        notify_sandbox_started(s);
        break;
    case BLANK_FAILED:
        s->failed = true;
        s->exec_errno = report->exec_errno;
        memcpy(s->text, report->text, sizeof(s->text));
        s->text[sizeof(s->text) - 1] = '\0';
        if (s->template == NULL)
            dprintf(2, "dirigent-launcher: a blank could not be made: %s\n", s->text);
        break;
    case BLANK_EXITED:
        s->has_status = true;
        s->wait_status = report->wait_status;
        break;
    default:
        break;
    }
}

static void on_control_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct slot *s = container_of(poll, struct slot, control_poll);
    for (;;) {
        struct blank_report report;
        size_t fd_count;
        ssize_t n = packet_recv(poll->fd, &report, sizeof(report), NULL, 0, &fd_count);
        if (n < 0)
            return;
        if (n == 0) {
            loop_poll_stop(poll); /* its end is told by the pidfd */
            return;
        }
        if (n == (ssize_t)sizeof(report))
            on_report(s, &report);
        if (!poll->active)
            return;
    }
}

void slot_born(struct slot *s, pid_t pid)
{
    struct launcher *l = s->launcher;
    struct error e = {0};
    if (pid < 0) {
        l->births--;
        fd_close(&s->control_fd);
        quarantine(s);
        return;
    }
    s->pid = pid;
    s->signaled = s->failed = s->started = s->is_ready = s->has_status = s->told_wrong_port = false;
    s->create_us = s->exec_us = s->listen_us = 0;
    s->exec_errno = 0;
    s->text[0] = '\0';
    s->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    s->control_poll.on_ready = on_control_ready;
    s->pid_poll.on_ready = on_pid_ready;
    if (s->pidfd < 0 || loop_poll_start(l->loop, &s->pid_poll, s->pidfd, EPOLLIN, &e) != ERR_OK ||
        loop_poll_start(l->loop, &s->control_poll, s->control_fd, EPOLLIN, &e) != ERR_OK) {
        dprintf(2, "dirigent-launcher: cannot watch process %d: %s\n", (int)pid, strerror(errno));
        _exit(1); /* unsupervised is worse than gone */
    }
}

/* ---- processor time ---- */

static void cpu_limit(struct slot *s, uint32_t cpu_milli)
{
    struct error e = {0};
    if (s->limits.cpu_milli == cpu_milli)
        return;
    if (cgroup_slot_cpu(&s->launcher->shared.cgroups, s->index, cpu_milli, &e) == ERR_OK) {
        s->limits.cpu_milli = cpu_milli;
        return;
    }
    dprintf(2, "dirigent-launcher: slot %u: %s\n", s->index, e.text);
    s->limits = (struct cgroup_limits){0}; /* all are written before the next use */
    sandbox_kill(s);
}

void sandbox_limit(struct slot *s)
{
    struct template *t = s->template;
    uint32_t took_us = MAX(s->listen_us - MIN(s->listen_us, s->exec_us), 1u);
    t->best_start_us = t->best_start_us == 0 ? took_us : MIN(t->best_start_us, took_us);
    cpu_limit(s, s->template->limits.cpu_milli);
}

/* ---- orders ---- */

static void start_failed(struct slot *s, const char *text)
{
    s->failed = true;
    (void)snprintf(s->text, sizeof(s->text), "%.190s", text);
    sandbox_kill(s);
}

static void start_now(struct slot *s, struct template *t, uint64_t sandbox_id, uint64_t order_ns,
                      int output_fd)
{
    struct launcher *l = s->launcher;
    struct error e = {0};
    CRASH_POINT("launcher.slot");
    s->state = SLOT_RUNNING;
    s->template = t; /* the hold goes over from the start */
    s->sandbox_id = sandbox_id;
    s->order_ns = order_ns;
    s->started_at_ms = clock_real_ms();
    map_put(&l->sandboxes, sandbox_id, s);
    l->running++;
    struct cgroup_limits limits = t->limits;
    bool is_quick = t->best_start_us > 0 && t->best_start_us < QUICK_START_US;
    if (!is_quick || limits.cpu_milli < TWO_SLICES_MILLI)
        limits.cpu_milli = MAX(limits.cpu_milli, START_CPU_MILLI);
    enum err err = ERR_OK;
    if (memcmp(&s->limits, &limits, sizeof(limits)) != 0) {
        s->limits = (struct cgroup_limits){0};
        err = cgroup_slot_limit(&l->shared.cgroups, s->index, &limits, &e);
        if (err == ERR_OK)
            s->limits = limits;
    }
    if (err == ERR_OK && t->spec.network_none) {
        err = network_slot_outward(&l->network, s->netns_fd, false, &e);
        s->outward = err != ERR_OK;
    }
    if (err == ERR_OK) {
        struct {
            struct blank_go go;
            char strings[LAUNCHER_PACKET_BYTES_MAX];
        } *packet = mem_new(sizeof(struct blank_go) + t->spec.strings_bytes);
        packet->go = (struct blank_go){.order = BLANK_GO,
                                       .argc = t->spec.argc,
                                       .envc = t->spec.envc,
                                       .strings_bytes = t->spec.strings_bytes,
                                       .tmp_bytes = t->spec.tmp_bytes,
                                       .userns_base = t->userns_base};
        memcpy(packet->strings, t->strings, t->spec.strings_bytes);
        int fds[3] = {t->mntns_fd, t->userns_fd, output_fd};
        err =
            packet_send(s->control_fd, packet, sizeof(packet->go) + t->spec.strings_bytes, fds, 3);
        if (err != ERR_OK)
            (void)error_errno(&e, "reach a blank");
        free(packet);
    }
    (void)close(output_fd);
    if (err != ERR_OK)
        start_failed(s, e.text);
    refill_later(l);
}

void sandbox_start(struct launcher *l, uint64_t sandbox_id, struct template *t, int output_fd)
{
    t->users++;
    if (!list_is_empty(&l->parked)) {
        struct slot *s = list_entry(l->parked.next, struct slot, node);
        list_remove(&s->node);
        start_now(s, t, sandbox_id, clock_mono_ns(), output_fd);
        return;
    }
    struct start *start = mem_new(sizeof(*start));
    *start = (struct start){.sandbox_id = sandbox_id,
                            .order_ns = clock_mono_ns(),
                            .template = t,
                            .output_fd = output_fd};
    list_push_back(&l->starts, &start->node);
    slots_refill(l);
}

void sandbox_signal(struct slot *s, int signo)
{
    s->signaled = true;
    struct blank_signal order = {BLANK_SIGNAL, signo};
    if (s->state == SLOT_RUNNING &&
        packet_send(s->control_fd, &order, sizeof(order), NULL, 0) != ERR_OK)
        sandbox_kill(s);
}

void sandbox_kill(struct slot *s)
{
    if (s->state == SLOT_RUNNING)
        s->state = SLOT_DYING;
    if (s->pidfd >= 0)
        (void)syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
}

void template_release(struct launcher *l, struct template *t)
{
    if (--t->users > 0 || !t->dropped)
        return;
    (void)map_remove(&l->templates, template_key(t->function_id, t->version));
    fd_close(&t->mntns_fd);
    fd_close(&t->userns_fd);
    free(t->strings);
    free(t);
}
