/* notify.c - readiness by system call: seccomp_unotify(2). The launcher carries out listen(2)
 * itself, on a copy of the socket, so that the socket listens before anybody is told. bind(2) to
 * 127.0.0.1:$PORT (or [::1]:$PORT) is carried out as a bind to all addresses: development servers
 * bind so, and the namespace has no other network than the platform's. All else goes on in the
 * kernel.
 *
 * All sandboxes share one listener; the network namespace of the socket tells whose it is.
 *
 * Where the kernel gives no listener, the launcher connects to $PORT again and again. That finds
 * neither a wrong port nor a program on 127.0.0.1. */
#include "launcher/state.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define BACKLOG_MAX 4096
#define NOTIFICATIONS_AT_ONCE 32
#define PROBE_FIRST_US 1000u
#define PROBE_LAST_US 50000u
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP UINT64_C(1)
#endif

/* The process of a thread: notifications name threads, pidfds processes. */
static pid_t process_of(pid_t thread)
{
    char path[64], *text = NULL;
    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)thread);
    pid_t process = 0;
    if (file_read(path, 16 * KIB, &text, NULL, NULL) == ERR_OK) {
        const char *at = strstr(text, "\nTgid:");
        process = at != NULL ? (pid_t)atoi(at + 6) : 0;
    }
    free(text);
    return process;
}

/* A copy of the descriptor of the call's first argument; -1 when there is none, or the caller has
 * died meanwhile and its number may be another's. */
static int fetch_fd(const struct launcher *l, const struct seccomp_notif *call)
{
    pid_t thread = (pid_t)call->pid;
    cleanup(fd_close) int pidfd = (int)syscall(SYS_pidfd_open, thread, 0);
    if (pidfd < 0)
        pidfd = (int)syscall(SYS_pidfd_open, process_of(thread), 0);
    cleanup(fd_close) int fd =
        pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, (int)call->data.args[0], 0);
    return ioctl(l->listener_fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &call->id) == 0 ? fd_take(&fd) : -1;
}

/* The slot whose namespace the socket is of, when a program runs there; or NULL. */
static struct slot *slot_of(const struct launcher *l, int fd)
{
    uint64_t cookie = 0;
    socklen_t bytes = sizeof(cookie);
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &bytes) < 0)
        return NULL;
    struct slot *s = map_get(&l->by_netns, cookie);
    return s != NULL && s->state == SLOT_RUNNING && s->template != NULL ? s : NULL;
}

static void answer(const struct launcher *l, uint64_t id, bool go_on, int error_number)
{
    struct seccomp_notif_resp response = {.id = id,
                                          .error = go_on ? 0 : -error_number,
                                          .flags = go_on ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0};
    (void)ioctl(l->listener_fd, SECCOMP_IOCTL_NOTIF_SEND,
                &response); /* ENOENT: the thread has died meanwhile */
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ((const struct sockaddr_in *)address)->sin_addr.s_addr == htonl(INADDR_LOOPBACK);
    return address->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
}

static void on_bind(struct launcher *l, const struct seccomp_notif *call)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {0};
    size_t bytes = MIN((size_t)call->data.args[2], sizeof(address));
    struct iovec local = {&address, bytes}, remote = {(void *)(uintptr_t)call->data.args[1], bytes};
    cleanup(fd_close) int fd = -1;
    const struct slot *s = NULL;
    /* What we cannot read, the kernel will say what is wrong with. The port is at the same place in
     * both. */
    if (process_vm_readv((pid_t)call->pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes &&
        is_loopback(&address.any)) {
        fd = fetch_fd(l, call);
        s = slot_of(l, fd);
    }
    if (s == NULL || ntohs(address.v4.sin_port) != s->template->spec.port) {
        answer(l, call->id, true, 0);
        return;
    }
    int off = 0;
    bool v4 = address.any.sa_family == AF_INET;
    if (v4) {
        address.v4.sin_addr.s_addr = htonl(INADDR_ANY);
    } else {
        address.v6.sin6_addr = in6addr_any;
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    int result = bind(fd, &address.any, v4 ? sizeof(address.v4) : sizeof(address.v6));
    answer(l, call->id, false, result < 0 ? errno : 0);
}

static void told_ready(struct slot *s)
{
    struct launcher_event event;
    if (s->is_ready)
        return;
    s->is_ready = true;
    s->listen_us = (uint32_t)((clock_mono_ns() - s->order_ns) / NS_PER_US);
    launcher_slot_event(s, LAUNCHER_LISTENING, &event);
    launcher_event_send(s->launcher, &event);
}

static void told_listening(struct slot *s, const struct sockaddr *address)
{
    struct launcher_event event;
    bool v4 = address->sa_family == AF_INET;
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
    uint16_t port = ntohs(v4 ? in->sin_port : in6->sin6_port);
    bool reachable =
        v4 ? in->sin_addr.s_addr == htonl(INADDR_ANY) ||
                 in->sin_addr.s_addr == htonl(network_slot_ip(&s->launcher->network, s->index))
           : IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
    if (port == s->template->spec.port && reachable) {
        told_ready(s);
    } else if (!s->is_ready && !s->told_wrong_port) {
        s->told_wrong_port = true;
        launcher_slot_event(s, LAUNCHER_WRONG_PORT, &event);
        event.port = port;
        launcher_event_send(s->launcher, &event);
    }
}

static void on_listen(struct launcher *l, const struct seccomp_notif *call)
{
    cleanup(fd_close) int fd = fetch_fd(l, call);
    int domain = 0, type = 0;
    socklen_t bytes = sizeof(int);
    struct slot *s = slot_of(l, fd);
    if (s == NULL || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) < 0 ||
        (domain != AF_INET && domain != AF_INET6) || type != SOCK_STREAM) {
        answer(l, call->id, true, 0);
        return;
    }
    int backlog = (int)call->data.args[1];
    if (listen(fd, backlog < 0 || backlog > BACKLOG_MAX ? BACKLOG_MAX : backlog) < 0) {
        answer(l, call->id, false, errno);
        return;
    }
    struct sockaddr_storage address = {0};
    bytes = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) == 0)
        told_listening(
            s,
            (struct sockaddr *)&address); /* before the answer: others have the longer way to go */
    answer(l, call->id, false, 0);
    if (s->is_ready)
        sandbox_limit(s);
}

static bool poll_now(struct pollfd *fd)
{
    return poll(fd, 1, 0) > 0;
}

static void on_listener_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct launcher *l = container_of(poll, struct launcher, listener_poll);
    struct pollfd more = {.fd = l->listener_fd, .events = POLLIN};
    for (int i = 0; i < NOTIFICATIONS_AT_ONCE && (i == 0 || poll_now(&more)); i++) {
        struct seccomp_notif call = {0}; /* the kernel wants zeros */
        if (ioctl(l->listener_fd, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
            continue; /* ENOENT: whoever called has died */
        if (call.data.nr == SYS_bind)
            on_bind(l, &call);
        else
            on_listen(l, &call);
    }
}

/* ---- without a listener ---- */

static void probe_again(struct slot *s)
{
    struct loop *loop = s->launcher->loop;
    int fd = s->probe_poll.fd;
    loop_poll_stop(&s->probe_poll);
    fd_close(&fd);
    loop_timer_start(loop, &s->probe_timer, loop_now_ns(loop) + s->probe_wait_us * NS_PER_US);
    s->probe_wait_us =
        MIN(s->probe_wait_us * 27 / 20, PROBE_LAST_US); /* times 1.35, as the original's probes */
}

static void on_probe_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct slot *s = container_of(poll, struct slot, probe_poll);
    int failure = 0, fd = poll->fd;
    socklen_t bytes = sizeof(failure);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &bytes) < 0 || failure != 0) {
        probe_again(s);
        return;
    }
    loop_poll_stop(poll);
    fd_close(&fd);
    told_ready(s);
    sandbox_limit(s);
}

static void on_probe_timer(struct loop_timer *timer)
{
    struct slot *s = container_of(timer, struct slot, probe_timer);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(s->template->spec.port),
                                  .sin_addr.s_addr =
                                      htonl(network_slot_ip(&s->launcher->network, s->index))};
    struct error e = {0};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    s->probe_poll.fd = fd;
    s->probe_poll.on_ready = on_probe_ready;
    if (fd < 0 ||
        (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno != EINPROGRESS) ||
        loop_poll_start(s->launcher->loop, &s->probe_poll, fd, EPOLLOUT, &e) != ERR_OK)
        probe_again(s);
}

/* ---- life ---- */

void notify_sandbox_started(struct slot *s)
{
    struct loop *loop = s->launcher->loop;
    if (s->launcher->listener_fd >= 0)
        return;
    loop_timer_init(&s->probe_timer, on_probe_timer);
    s->probe_wait_us = PROBE_FIRST_US;
    loop_timer_start(loop, &s->probe_timer, loop_now_ns(loop) + s->probe_wait_us * NS_PER_US);
}

void notify_sandbox_ended(struct slot *s)
{
    int fd = s->probe_poll.active ? s->probe_poll.fd : -1;
    loop_poll_stop(&s->probe_poll);
    fd_close(&fd);
    if (s->probe_timer.on_timer != NULL)
        loop_timer_stop(s->launcher->loop, &s->probe_timer);
}

void notify_start(struct launcher *l, int listener_fd)
{
    struct error e = {0};
    uint64_t flags = SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP;
    if (listener_fd < 0) {
        dprintf(2, "dirigent-launcher: no seccomp listener: programs are probed, and must listen "
                   "on all addresses\n");
        return;
    }
    (void)ioctl(listener_fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags); /* only faster */
    l->listener_fd = listener_fd;
    l->listener_poll.on_ready = on_listener_ready;
    if (loop_poll_start(l->loop, &l->listener_poll, listener_fd, EPOLLIN, &e) != ERR_OK) {
        dprintf(2, "dirigent-launcher: cannot watch the seccomp listener: %s\n", e.text);
        _exit(1);
    }
}
