/* helpers.c - the launcher's helper processes, so that it never blocks itself:
 *   the nursery clones blanks (it has few descriptors, a small address space and the base filter
 * already), right into their cgroup; version 1 of cgroups cannot, and to move a process makes every
 * clone and exec of the machine wait, so there each slot has an anchor: a process that has been
 * moved once, and clones the slot's blanks where it is; the builder makes the networks and cgroups
 * of slots; a short-lived one for each template ends in the mount namespace it has made. */
#include "launcher/state.h"
#include "base/crash_point.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <malloc.h>
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

struct nursery_order { /* descriptors: network namespace; control end of the blank, or the anchor's
                          own socket */
    uint32_t slot;
    uint32_t anchor;
};
struct nursery_answer {
    enum {
        NURSERY_READY = 1,
        NURSERY_BLANK,
        NURSERY_ANCHOR
    } kind; /* READY: once, with the seccomp listener if there is one */
    uint32_t slot;
    int32_t pid; /* < 0: -errno */
};
struct anchor_answer {
    int32_t pid;    /* of the blank; 0: the anchor is ready; < 0: it cannot be */
    char text[200]; /* why not */
};
struct builder_answer {
    uint32_t slot;
    uint32_t ok;
    uint64_t netns_cookie;
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

static void socket_block(int fd)
{
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

/* Waits for one. False: the launcher has gone. */
static bool order_receive(int fd, void *order, size_t bytes, int *ret_fds, size_t count)
{
    size_t fd_count;
    char byte; /* packet_recv() does not wait */
    return recv(fd, &byte, 1, MSG_PEEK) > 0 &&
           packet_recv(fd, order, bytes, ret_fds, count, &fd_count) == (ssize_t)bytes &&
           fd_count == count;
}

/* A child of the launcher. Its pid, 0 in the child, or -errno. */
static long process_clone(const struct launcher *l, uint64_t flags, int cgroup_fd)
{
    struct clone_args args = {.flags = flags | CLONE_PARENT};
    if (cgroup_fd >= 0) {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = (uint64_t)cgroup_fd;
    }
    CRASH_POINT("launcher.clone");
    long pid = SETUP_CALL(l->shared.secret, SYS_clone3, &args, sizeof(args));
    return pid < 0 ? -errno : pid;
}

#define BLANK_NAMESPACES (CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)

static long blank_clone(const struct launcher *l, uint32_t slot)
{
    char name[32];
    (void)snprintf(name, sizeof(name), "s%u", slot);
    cleanup(fd_close) int group =
        openat(l->shared.cgroups.dirs[0], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return group < 0 ? -errno : process_clone(l, BLANK_NAMESPACES, group);
}

/* Cgroups of version 1 only. Clones blanks that are where they must be from their first moment. */
static _Noreturn void anchor_run(const struct launcher *l, uint32_t slot, int netns_fd, int fd)
{
    struct anchor_answer answer = {0};
    struct error e = {0};
    helper_begin("dirigent-slot");
    bool entered = cgroup_slot_enter(&l->shared.cgroups, slot, &e) == ERR_OK;
    if (entered && (SETUP_CALL(l->shared.secret, SYS_unshare, CLONE_NEWCGROUP) < 0 ||
                    SETUP_CALL(l->shared.secret, SYS_setns, netns_fd, CLONE_NEWNET) < 0))
        entered = error_errno(&e, "enter the slot's namespaces") == ERR_OK;
    if (!entered) {
        answer.pid = -1;
        (void)snprintf(answer.text, sizeof(answer.text), "%.190s", e.text);
        _exit(packet_send(fd, &answer, sizeof(answer), NULL, 0) == ERR_OK ? 1 : 2);
    }
    keep_only(&fd, 1);
    socket_block(fd);
    for (;;) {
        uint32_t order;
        int control;
        if (packet_send(fd, &answer, sizeof(answer), NULL, 0) != ERR_OK ||
            !order_receive(fd, &order, sizeof(order), &control, 1))
            _exit(0);
        answer.pid = (int32_t)process_clone(l, BLANK_NAMESPACES, -1);
        if (answer.pid == 0) {
            (void)close(fd);
            blank_run(&l->shared, -1, control);
        }
        (void)close(control);
    }
}

/* With a listener, which goes to the launcher; where there can be none (an old kernel, or we are
 * below somebody else's) the launcher must look for itself whether programs listen. */
static void filter_install(const struct launcher *l, int fd)
{
    static struct seccomp_program filter;
    struct error e = {0};
    struct nursery_answer ready = {.kind = NURSERY_READY};
    int listener = -1;
    seccomp_build(&filter, l->shared.secret, true);
    if (l->config.probe || seccomp_install(&filter, &listener, &e) != ERR_OK) {
        seccomp_build(&filter, l->shared.secret, false);
        if (seccomp_install(&filter, NULL, &e) != ERR_OK) {
            dprintf(2, "dirigent-launcher: nursery: %s\n", e.text);
            _exit(1);
        }
    }
    if (packet_send(fd, &ready, sizeof(ready), &listener, listener >= 0) != ERR_OK)
        _exit(0);
    fd_close(&listener);
}

static _Noreturn void nursery_run(const struct launcher *l, int fd)
{
    int keep[1 + CGROUP_DIRS_MAX] = {fd};
    memcpy(keep + 1, l->shared.cgroups.dirs, sizeof(l->shared.cgroups.dirs));
    helper_begin("dirigent-nurse");
    keep_only(keep, ARRAY_COUNT(keep));
    limits_set();
    (void)malloc_trim(0); /* each page that we have is one more to copy for every blank */
    umask(022);
    socket_block(fd);
    filter_install(l, fd);
    for (;;) {
        struct nursery_order order;
        int fds[2];
        if (!order_receive(fd, &order, sizeof(order), fds, 2))
            _exit(0);
        long pid = order.anchor ? process_clone(l, 0, -1) : blank_clone(l, order.slot);
        if (pid == 0) {
            (void)close(fd);
            if (order.anchor)
                anchor_run(l, order.slot, fds[0], fds[1]);
            blank_run(&l->shared, fds[0], fds[1]);
        }
        struct nursery_answer answer = {order.anchor ? NURSERY_ANCHOR : NURSERY_BLANK, order.slot,
                                        (int32_t)pid};
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
        int fd = -1;
        ssize_t n = packet_recv(poll->fd, &answer, sizeof(answer), &fd, 1, &fd_count);
        if (n < 0)
            return;
        if (n != (ssize_t)sizeof(answer)) {
            dprintf(2, "dirigent-launcher: the nursery has died\n");
            _exit(1); /* fail-stop: the kernel kills all sandboxes, the worker starts us again */
        }
        if (answer.kind == NURSERY_READY)
            notify_start(l, fd_count > 0 ? fd : -1);
        else if (answer.kind == NURSERY_BLANK)
            slot_born(&l->slots[answer.slot], answer.pid);
        else if (answer.pid > 0)
            l->slots[answer.slot].anchor_pid = answer.pid;
        /* else its socket is closed, which is told in on_anchor_ready() */
    }
}

/* Orders `s` from the nursery; its end of a new socket pair goes with it. False with errno. */
static bool nursery_order(struct launcher *l, const struct slot *s, bool anchor, int *ret_fd)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return false;
    struct nursery_order order = {s->index, anchor};
    int fds[2] = {s->netns_fd, ends[1]};
    bool sent = packet_send(l->nursery_fd, &order, sizeof(order), fds, 2) == ERR_OK;
    (void)close(ends[1]);
    if (sent)
        *ret_fd = ends[0];
    else
        (void)close(ends[0]);
    return sent;
}

static bool anchor_order(struct slot *s)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return false;
    bool sent = packet_send(s->anchor_fd, &s->index, sizeof(s->index), &ends[1], 1) == ERR_OK;
    (void)close(ends[1]);
    if (sent)
        s->control_fd = ends[0];
    else
        (void)close(ends[0]);
    return sent;
}

void helpers_birth(struct launcher *l, struct slot *s)
{
    s->state = SLOT_BIRTH;
    l->births++;
    if (!(s->anchor_fd >= 0 ? anchor_order(s) : nursery_order(l, s, false, &s->control_fd)))
        slot_born(s, -EAGAIN); /* its queue is full: tried again with the next refill */
}

/* ---- anchors ---- */

void helpers_anchor_end(struct slot *s)
{
    loop_poll_stop(&s->anchor_poll);
    fd_close(&s->anchor_fd);
    if (s->anchor_pid > 0)
        (void)waitpid(s->anchor_pid, NULL, __WALL); /* it has ended */
    s->anchor_pid = 0;
}

static void on_anchor_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct slot *s = container_of(poll, struct slot, anchor_poll);
    struct anchor_answer answer;
    size_t fd_count;
    ssize_t n = packet_recv(poll->fd, &answer, sizeof(answer), NULL, 0, &fd_count);
    if (n < 0)
        return;
    bool born = n == (ssize_t)sizeof(answer) && answer.pid > 0,
         failed = n != (ssize_t)sizeof(answer) || answer.pid < 0;
    if (s->state == SLOT_BUILDING) {
        if (failed) {
            dprintf(2, "dirigent-launcher: slot %u cannot be used: %s\n", s->index,
                    n > 0 ? answer.text : "its anchor has died");
            helpers_anchor_end(s);
        }
        slot_anchored(s, !failed);
    } else if (s->state == SLOT_BIRTH && s->pid == 0 && (born || failed)) {
        slot_born(s, born ? answer.pid : -EAGAIN);
    }
    if (failed && s->state != SLOT_BUILDING)
        helpers_anchor_end(s); /* a new one is made when the slot is wanted again */
}

bool helpers_anchor(struct launcher *l, struct slot *s)
{
    struct error e = {0};
    if (!nursery_order(l, s, true, &s->anchor_fd))
        return false;
    s->anchor_poll.on_ready = on_anchor_ready;
    if (loop_poll_start(l->loop, &s->anchor_poll, s->anchor_fd, EPOLLIN, &e) == ERR_OK)
        return true;
    fd_close(&s->anchor_fd);
    return false;
}

/* ---- builder ---- */

static _Noreturn void builder_run(const struct launcher *l, int fd)
{
    int keep[1 + CGROUP_DIRS_MAX] = {fd};
    memcpy(keep + 1, l->shared.cgroups.dirs, sizeof(l->shared.cgroups.dirs));
    helper_begin("dirigent-build");
    keep_only(keep, ARRAY_COUNT(keep));
    socket_block(fd);
    uint32_t index;
    while (recv(fd, &index, sizeof(index), 0) == (ssize_t)sizeof(index)) {
        struct builder_answer answer = {.slot = index, .ok = 1};
        struct error e = {0};
        int netns = -1;
        enum err err = cgroup_slot_make(&l->shared.cgroups, index, &e);
        CRASH_POINT("launcher.cgroup");
        if (err == ERR_OK)
            err = network_slot_make(&l->network, index, &netns, &answer.netns_cookie, &e);
        CRASH_POINT("launcher.network");
        if (err != ERR_OK) {
            answer.ok = 0;
            (void)snprintf(answer.text, sizeof(answer.text), "%.190s", e.text);
        }
        err = packet_send(fd, &answer, sizeof(answer), &netns, netns >= 0 ? 1 : 0);
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
        slot_built(&l->slots[answer.slot], netns, answer.netns_cookie);
    }
}

void helpers_build(struct launcher *l, struct slot *s)
{
    s->state = SLOT_BUILDING;
    l->building++;
    if (packet_send(l->builder_fd, &s->index, sizeof(s->index), NULL, 0) != ERR_OK)
        slot_built(s, -1, 0);
}

/* ---- templates ---- */

/* Its host name (launcher.h). */
static const char *last_string(const struct template *t)
{
    const char *at = t->strings;
    for (uint32_t i = 0; i < t->spec.argc + t->spec.envc; i++)
        at += strlen(at) + 1;
    return at;
}

static _Noreturn void template_run(const struct launcher *l, const struct template *t, int code_fd,
                                   int fd)
{
    helper_begin("dirigent-root");
    struct template_answer answer = {.ok = 1};
    struct error e = {0};
    int fds[2] = {-1, -1}; /* mount namespace, user namespace */
    struct root_plan plan = {.code_fd = code_fd,
                             .userns_base = t->userns_base,
                             .host_name = last_string(t),
                             .mount_point = l->config.run_dir};
    enum err err = root_userns_make(t->userns_base, &fds[1], &e);
    CRASH_POINT("launcher.root"); /* later the directory is out of sight */
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
        (void)snprintf(event.text, sizeof(event.text), "%s",
                       n > 0 ? answer.text : "its builder has died");
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

static enum err helper_fork(struct launcher *l, void (*run)(const struct launcher *l, int fd),
                            int *ret_fd, pid_t *ret_pid, struct loop_poll *poll, struct error *e)
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
    enum err err =
        helper_fork(l, nursery_run, &l->nursery_fd, &l->nursery_pid, &l->nursery_poll, e);
    if (err == ERR_OK)
        err = helper_fork(l, builder_run, &l->builder_fd, &l->builder_pid, &l->builder_poll, e);
    return err;
}
