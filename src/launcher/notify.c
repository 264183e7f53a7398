/* notify.c - readiness by system call: seccomp_unotify(2). The launcher carries out listen(2) itself, on a copy of the socket, so
 * that the socket listens before anybody is told. bind(2) to 127.0.0.1:$PORT (or [::1]:$PORT) is carried out as a bind to all addresses:
 * development servers bind so, and the namespace has no other network than the platform's. All else goes on in the kernel. */
#include "launcher/state.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define BACKLOG_MAX 4096

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

/* A copy of descriptor `remote_fd` of the thread; -1 with errno. */
static int fetch_fd(pid_t thread, int remote_fd)
{
    cleanup(fd_close) int pidfd = (int)syscall(SYS_pidfd_open, thread, 0);
    if (pidfd < 0)
        pidfd = (int)syscall(SYS_pidfd_open, process_of(thread), 0);
    return pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, remote_fd, 0);
}

static void answer(const struct slot *s, uint64_t id, bool go_on, int error_number)
{
    struct seccomp_notif_resp response = {.id = id,
                                          .error = go_on ? 0 : -error_number,
                                          .flags = go_on ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0};
    (void)ioctl(s->listener_fd, SECCOMP_IOCTL_NOTIF_SEND, &response); /* ENOENT: the thread has died meanwhile */
}

static void on_bind(struct slot *s, const struct seccomp_notif *call)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {0};
    size_t bytes = MIN((size_t)call->data.args[2], sizeof(address));
    struct iovec local = {&address, bytes}, remote = {(void *)(uintptr_t)call->data.args[1], bytes};
    if (process_vm_readv((pid_t)call->pid, &local, 1, &remote, 1, 0) != (ssize_t)bytes) {
        answer(s, call->id, true, 0); /* the kernel will say what is wrong with it */
        return;
    }
    in_port_t port = htons(s->template->spec.port);
    bool v4 = address.any.sa_family == AF_INET && address.v4.sin_addr.s_addr == htonl(INADDR_LOOPBACK) && address.v4.sin_port == port;
    bool v6 = address.any.sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&address.v6.sin6_addr) && address.v6.sin6_port == port;
    if (!v4 && !v6) {
        answer(s, call->id, true, 0);
        return;
    }
    cleanup(fd_close) int fd = fetch_fd((pid_t)call->pid, (int)call->data.args[0]);
    if (fd < 0) {
        answer(s, call->id, true, 0);
        return;
    }
    int off = 0;
    if (v4) {
        address.v4.sin_addr.s_addr = htonl(INADDR_ANY);
    } else {
        address.v6.sin6_addr = in6addr_any;
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    }
    int result = bind(fd, &address.any, v4 ? sizeof(address.v4) : sizeof(address.v6));
    answer(s, call->id, false, result < 0 ? errno : 0);
}

static void told_listening(struct slot *s, const struct sockaddr *address)
{
    struct launcher_event event;
    bool v4 = address->sa_family == AF_INET;
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
    uint16_t port = ntohs(v4 ? in->sin_port : in6->sin6_port);
    bool reachable = v4 ? in->sin_addr.s_addr == htonl(INADDR_ANY) ||
                              in->sin_addr.s_addr == htonl(network_slot_ip(&s->launcher->network, s->index))
                        : IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);
    if (port == s->template->spec.port && reachable) {
        if (s->is_ready)
            return;
        s->is_ready = true;
        s->listen_us = (uint32_t)((clock_mono_ns() - s->order_ns) / NS_PER_US);
        launcher_slot_event(s, LAUNCHER_LISTENING, &event);
        launcher_event_send(s->launcher, &event);
    } else if (!s->is_ready && !s->told_wrong_port) {
        s->told_wrong_port = true;
        launcher_slot_event(s, LAUNCHER_WRONG_PORT, &event);
        event.port = port;
        launcher_event_send(s->launcher, &event);
    }
}

static void on_listen(struct slot *s, const struct seccomp_notif *call)
{
    cleanup(fd_close) int fd = fetch_fd((pid_t)call->pid, (int)call->data.args[0]);
    int domain = 0, type = 0;
    socklen_t bytes = sizeof(int);
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) < 0 ||
        (domain != AF_INET && domain != AF_INET6) || type != SOCK_STREAM) {
        answer(s, call->id, true, 0);
        return;
    }
    int backlog = (int)call->data.args[1];
    if (listen(fd, backlog < 0 || backlog > BACKLOG_MAX ? BACKLOG_MAX : backlog) < 0) {
        answer(s, call->id, false, errno);
        return;
    }
    struct sockaddr_storage address = {0};
    bytes = sizeof(address);
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) == 0)
        told_listening(s, (struct sockaddr *)&address); /* before the answer: others have the longer way to go */
    answer(s, call->id, false, 0);
    if (s->is_ready)
        sandbox_limit(s);
}

void on_listener_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct slot *s = container_of(poll, struct slot, listener_poll);
    struct seccomp_notif call = {0}; /* the kernel wants zeros */
    if (ioctl(s->listener_fd, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0) {
        if (errno != EINTR && errno != ENOENT && errno != EAGAIN)
            loop_poll_stop(poll); /* all of its users have gone */
        else if (epoll_events == EPOLLHUP)
            loop_poll_stop(poll);
        return;
    }
    if (s->template == NULL)
        answer(s, call.id, true, 0);
    else if (call.data.nr == SYS_bind)
        on_bind(s, &call);
    else
        on_listen(s, &call);
}
