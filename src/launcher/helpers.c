/* helpers.c - the launcher's helper processes, so that it never blocks itself:
 *   the nursery clones blanks (it has few descriptors, a small address space and the base filter already);
 *   the builder makes the networks and cgroups of slots;
 *   a short-lived one for each template ends in the mount namespace it has made. */
#include "launcher/state.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct nursery_order {
    uint32_t slot;
};
struct nursery_answer {
    uint32_t slot;
    int32_t pid; /* < 0: -errno */
};
struct builder_answer {
    uint32_t slot;
    uint32_t ok;
    char text[200];
};
struct template_answer {
    uint32_t ok;
    char text[300];
};

static void helper_begin(const char *name)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    (void)prctl(PR_SET_NAME, name, 0, 0, 0);
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Only what it needs: everything else of the launcher is closed. */
static void keep_only(const int *keep, size_t count)
{
    long max = sysconf(_SC_OPEN_MAX);
    for (int fd = 3; fd < (int)MIN(max, 65536L); fd++) {
        bool kept = false;
        for (size_t i = 0; i < count; i++)
            kept |= keep[i] == fd;
        if (!kept)
            (void)close(fd);
    }
}

/* ---- nursery ---- */

static void limits_set(void)
{
    static const struct {
        int resource;
        rlim_t value;
    } limits[] = {{RLIMIT_CORE, 0},     {RLIMIT_NOFILE, 1024}, {RLIMIT_MEMLOCK, 64 * 1024},
                  {RLIMIT_MSGQUEUE, 0}, {RLIMIT_RTPRIO, 0},    {RLIMIT_NICE, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(limits); i++) {
        struct rlimit limit = {limits[i].value, limits[i].value};
        (void)setrlimit((__rlimit_resource_t)limits[i].resource, &limit);
    }
    cleanup(fd_close) int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        (void)!write(fd, "500", 3); /* sandboxes go before the host's own programs */
}

static _Noreturn void nursery_run(const struct launcher *l, int fd)
{
    int keep[] = {fd, l->shared.cgroups.dirs[0], l->shared.cgroups.dirs[1], l->shared.cgroups.dirs[2]};
    struct error e = {0};
    static struct seccomp_program filter;
    helper_begin("dirigent-nurse");
    keep_only(keep, ARRAY_COUNT(keep));
    limits_set();
    umask(022);
    seccomp_base_build(&filter);
    if (seccomp_install(&filter, NULL, &e) != ERR_OK) {
        dprintf(2, "dirigent-launcher: nursery: %s\n", e.text);
        _exit(1);
    }
    int flags = fcntl(fd, F_GETFL);
    (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    for (;;) {
        struct nursery_order order;
        int fds[2];
        size_t fd_count;
        char byte; /* packet_recv() does not wait */
        if (recv(fd, &byte, 1, MSG_PEEK) <= 0)
            _exit(0);
        if (packet_recv(fd, &order, sizeof(order), fds, 2, &fd_count) != (ssize_t)sizeof(order) || fd_count != 2)
            _exit(0);
        struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PARENT};
        char name[32];
        cleanup(fd_close) int group = -1;
        if (l->shared.cgroups.version == 2) {
            (void)snprintf(name, sizeof(name), "s%u", order.slot);
            group = openat(l->shared.cgroups.dirs[0], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = (uint64_t)group;
        }
        long pid = syscall(SYS_clone3, &args, sizeof(args));
        if (pid == 0) {
            (void)close(fd);
            blank_run(&l->shared, order.slot, fds[0], fds[1]);
        }
        struct nursery_answer answer = {order.slot, pid < 0 ? -errno : (int32_t)pid};
        (void)close(fds[0]);
        (void)close(fds[1]);
        if (packet_send(fd, &answer, sizeof(answer), NULL, 0) != ERR_OK)
            _exit(0);
    }
}

static void on_nursery_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct launcher *l = container_of(poll, struct launcher, nursery_poll);
    struct nursery_answer answer;
    size_t fd_count;
    for (;;) {
        ssize_t n = packet_recv(poll->fd, &answer, sizeof(answer), NULL, 0, &fd_count);
        if (n < 0)
            return;
        if (n != (ssize_t)sizeof(answer)) {
            dprintf(2, "dirigent-launcher: the nursery has died\n");
            _exit(1); /* fail-stop: the kernel kills all sandboxes, the worker starts us again */
        }
        slot_born(&l->slots[answer.slot], answer.pid);
    }
}

void helpers_birth(struct launcher *l, struct slot *s)
{
    int ends[2];
    s->state = SLOT_BIRTH;
    l->births++;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
        slot_born(s, -errno);
        return;
    }
    s->control_fd = ends[0];
    struct nursery_order order = {s->index};
    int fds[2] = {s->netns_fd, ends[1]};
    enum err err = packet_send(l->nursery_fd, &order, sizeof(order), fds, 2);
    (void)close(ends[1]);
    if (err != ERR_OK)
        slot_born(s, -EAGAIN); /* its queue is full: tried again with the next refill */
}

/* ---- builder ---- */

static _Noreturn void builder_run(const struct launcher *l, int fd)
{
    int keep[] = {fd, l->shared.cgroups.dirs[0], l->shared.cgroups.dirs[1], l->shared.cgroups.dirs[2]};
    helper_begin("dirigent-build");
    keep_only(keep, ARRAY_COUNT(keep));
    int flags = fcntl(fd, F_GETFL);
    (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    uint32_t index;
    while (recv(fd, &index, sizeof(index), 0) == (ssize_t)sizeof(index)) {
        struct builder_answer answer = {.slot = index, .ok = 1};
        struct error e = {0};
        int netns = -1;
        if (cgroup_slot_make(&l->shared.cgroups, index, &e) != ERR_OK ||
            network_slot_make(&l->network, index, &netns, &e) != ERR_OK) {
            answer.ok = 0;
            (void)snprintf(answer.text, sizeof(answer.text), "%.190s", e.text);
        }
        enum err err = packet_send(fd, &answer, sizeof(answer), &netns, netns >= 0 ? 1 : 0);
        fd_close(&netns);
        if (err != ERR_OK)
            break;
    }
    _exit(0);
}

static void on_builder_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct launcher *l = container_of(poll, struct launcher, builder_poll);
    for (;;) {
        struct builder_answer answer;
        int netns = -1;
        size_t fd_count;
        ssize_t n = packet_recv(poll->fd, &answer, sizeof(answer), &netns, 1, &fd_count);
        if (n < 0)
            return;
        if (n != (ssize_t)sizeof(answer)) {
            dprintf(2, "dirigent-launcher: the builder has died\n");
            _exit(1);
        }
        if (!answer.ok) {
            dprintf(2, "dirigent-launcher: slot %u cannot be made: %s\n", answer.slot, answer.text);
            l->builder_failed = true; /* the pool stays as large as it is */
        }
        slot_built(&l->slots[answer.slot], netns);
    }
}

void helpers_build(struct launcher *l, struct slot *s)
{
    s->state = SLOT_BUILDING;
    l->building++;
    if (packet_send(l->builder_fd, &s->index, sizeof(s->index), NULL, 0) != ERR_OK)
        slot_built(s, -1);
}

/* ---- templates ---- */

static _Noreturn void template_run(const struct launcher *l, const struct template *t, int code_fd, int fd)
{
    helper_begin("dirigent-root");
    struct template_answer answer = {.ok = 1};
    struct error e = {0};
    int fds[2] = {-1, -1}; /* mount namespace, user namespace */
    struct root_plan plan = {.code_fd = code_fd, .userns_base = t->userns_base, .mount_point = l->config.run_dir};
    enum err err = root_userns_make(t->userns_base, &fds[1], &e);
    if (err == ERR_OK)
        err = root_make(&plan, fds[1], &fds[0], &e);
    if (err != ERR_OK) {
        answer.ok = 0;
        (void)snprintf(answer.text, sizeof(answer.text), "%.290s", e.text);
    }
    _exit(packet_send(fd, &answer, sizeof(answer), fds, err == ERR_OK ? 2 : 0) == ERR_OK ? 0 : 1);
}

static void on_template_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct template *t = container_of(poll, struct template, build_poll);
    struct launcher *l = t->launcher;
    struct template_answer answer = {0};
    struct launcher_event event = {.function_id = t->function_id, .version = t->version};
    int fds[2], fd = poll->fd;
    size_t fd_count;
    ssize_t n = packet_recv(fd, &answer, sizeof(answer), fds, 2, &fd_count);
    if (n < 0)
        return;
    loop_poll_stop(poll);
    (void)close(fd);
    (void)waitpid(t->build_pid, NULL, 0);
    t->build_pid = 0;
    if (n == (ssize_t)sizeof(answer) && answer.ok && fd_count == 2) {
        t->mntns_fd = fds[0];
        t->userns_fd = fds[1];
        t->ready = true;
        event.kind = LAUNCHER_TEMPLATE_READY;
    } else {
        event.kind = LAUNCHER_TEMPLATE_FAILED;
        (void)snprintf(event.text, sizeof(event.text), "%s", n > 0 ? answer.text : "its builder has died");
        t->dropped = true;
    }
    launcher_event_send(l, &event);
    template_release(l, t); /* the builder's hold */
}

enum err helpers_template(struct launcher *l, struct template *t, int code_fd, struct error *e)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
        return error_errno(e, "make a socket pair");
    t->build_pid = fork();
    if (t->build_pid == 0)
        template_run(l, t, code_fd, ends[1]);
    (void)close(ends[1]);
    enum err err = t->build_pid < 0 ? error_errno(e, "start a helper") : ERR_OK;
    t->build_poll.on_ready = on_template_ready;
    if (err == ERR_OK)
        err = loop_poll_start(l->loop, &t->build_poll, ends[0], EPOLLIN, e);
    if (err != ERR_OK) {
        (void)close(ends[0]);
        return err;
    }
    t->users++;
    return ERR_OK;
}

/* ---- start ---- */

static enum err helper_fork(struct launcher *l, void (*run)(const struct launcher *l, int fd), int *ret_fd, pid_t *ret_pid,
                            struct loop_poll *poll, struct error *e)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
        return error_errno(e, "make a socket pair");
    *ret_pid = fork();
    if (*ret_pid == 0)
        run(l, ends[1]);
    (void)close(ends[1]);
    if (*ret_pid < 0)
        return error_errno(e, "start a helper process");
    *ret_fd = ends[0];
    return loop_poll_start(l->loop, poll, ends[0], EPOLLIN, e);
}

enum err helpers_start(struct launcher *l, struct error *e)
{
    l->nursery_poll.on_ready = on_nursery_ready;
    l->builder_poll.on_ready = on_builder_ready;
    enum err err = helper_fork(l, nursery_run, &l->nursery_fd, &l->nursery_pid, &l->nursery_poll, e);
    if (err == ERR_OK)
        err = helper_fork(l, builder_run, &l->builder_fd, &l->builder_pid, &l->builder_poll, e);
    return err;
}
