/* sockets.c - addresses, listening sockets, signals and children as descriptors. */
#include "loop/internal.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define ACCEPTS_PER_TURN 64
#define ACCEPT_PAUSE_MS 100
#define LISTEN_BACKLOG 4096

/* ---- addresses ---- */

static enum err port_parse(const char *text, const char *whole, uint16_t *ret_port, struct error *e)
{
    char *end;
    errno = 0;
    unsigned long port = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || port > UINT16_MAX)
        return error_set(e, ERR_INVALID, "'%s' has no port from 0 to 65535", whole);
    *ret_port = (uint16_t)port;
    return ERR_OK;
}

enum err address_parse(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_bytes,
                       struct error *e)
{
    const char *colon = strrchr(text, ':');
    if (colon == NULL)
        return error_set(e, ERR_INVALID, "'%s' is no ADDRESS:PORT", text);
    uint16_t port;
    enum err err = port_parse(colon + 1, text, &port, e);
    if (err != ERR_OK)
        return err;
    char host[64];
    size_t host_bytes = (size_t)(colon - text);
    if (host_bytes >= sizeof(host))
        return error_set(e, ERR_INVALID, "'%s' is no ADDRESS:PORT", text);
    memcpy(host, text, host_bytes);
    host[host_bytes] = '\0';
    if (strcmp(host, "localhost") == 0)
        strcpy(host, "127.0.0.1");
    if (host[0] == '\0' || strcmp(host, "*") == 0)
        strcpy(host, "0.0.0.0");
    memset(ret_address, 0, sizeof(*ret_address));
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        *ret_bytes = sizeof(*v4);
        return ERR_OK;
    }
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_address;
    if (host[0] == '[' && host[strlen(host) - 1] == ']') {
        host[strlen(host) - 1] = '\0';
        if (inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1) {
            v6->sin6_family = AF_INET6;
            v6->sin6_port = htons(port);
            *ret_bytes = sizeof(*v6);
            return ERR_OK;
        }
    }
    return error_set(e, ERR_INVALID,
                     "'%s' is no ADDRESS:PORT (an IP address; names are not looked up)", text);
}

struct str address_host(const char *address)
{
    struct str s = str_of(address);
    size_t end = s.bytes;
    while (end > 0 && s.data[end - 1] != ':')
        end--;
    bool has_port = end > 0 && (s.data[0] == '[' ? s.data[end - 2] == ']'
                                                 : strchr(address, ':') == &s.data[end - 1]);
    if (has_port)
        s.bytes = end - 1;
    if (s.bytes >= 2 && s.data[0] == '[' && s.data[s.bytes - 1] == ']')
        s = (struct str){s.data + 1, s.bytes - 2};
    return s;
}

bool address_is_loopback(struct str host)
{
    return str_has_prefix(host, STR("127.")) || str_equal(host, STR("::1")) ||
           str_equal(host, STR("localhost"));
}

bool address_is_any(struct str host)
{
    return host.bytes == 0 || str_equal(host, STR("0.0.0.0")) || str_equal(host, STR("::"));
}

void address_format(const struct sockaddr *address, char *ret_text, size_t bytes)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        (void)inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
        (void)snprintf(ret_text, bytes, "%s:%u", host, ntohs(v4->sin_port));
    } else if (address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
        (void)inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
        (void)snprintf(ret_text, bytes, "[%s]:%u", host, ntohs(v6->sin6_port));
    } else {
        (void)snprintf(ret_text, bytes, "local");
    }
}

enum err socket_listen(const char *address, bool reuse_port, int *ret_fd, struct error *e)
{
    struct sockaddr_storage parsed;
    socklen_t bytes;
    enum err err = address_parse(address, &parsed, &bytes, e);
    if (err != ERR_OK)
        return err;
    cleanup(fd_close) int fd =
        socket(parsed.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(e, "make a socket for %s", address);
    int one = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (reuse_port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) < 0)
        return error_errno(e, "share port of %s", address);
    if (bind(fd, (struct sockaddr *)&parsed, bytes) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
        if (errno == EADDRINUSE)
            return error_set(e, ERR_BUSY, "listen on %s: another program has this address",
                             address);
        return error_errno(e, "listen on %s", address);
    }
    *ret_fd = fd_take(&fd);
    return ERR_OK;
}

enum err socket_listen_unix(const char *path, mode_t mode, int type, int *ret_fd, struct error *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(e, ERR_INVALID, "socket path '%s' is longer than %zu bytes", path,
                         sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    cleanup(fd_close) int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(e, "make a socket for '%s'", path);
    (void)unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || chmod(path, mode) < 0 ||
        listen(fd, 64) < 0)
        return error_errno(e, "listen on '%s'", path);
    *ret_fd = fd_take(&fd);
    return ERR_OK;
}

/* ---- listeners ---- */

static void on_pause_over(struct loop_timer *timer)
{
    struct loop_listener *l = container_of(timer, struct loop_listener, pause);
    if (l->reserve_fd < 0)
        l->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    loop_poll_change(&l->poll, EPOLLIN);
}

/* No descriptor is left: one connection is refused with the reserved one, then nothing is accepted
 * for a while. */
static void out_of_descriptors(struct loop_listener *l)
{
    fd_close(&l->reserve_fd);
    int fd = accept4(l->poll.fd, NULL, NULL, SOCK_CLOEXEC);
    fd_close(&fd);
    l->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    loop_poll_change(&l->poll, 0);
    loop_timer_start(l->poll.loop, &l->pause,
                     loop_now_ns(l->poll.loop) + ACCEPT_PAUSE_MS * NS_PER_MS);
}

static void on_listener_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct loop_listener *l = container_of(poll, struct loop_listener, poll);
    for (int i = 0; i < ACCEPTS_PER_TURN && l->poll.active; i++) {
        struct sockaddr_storage peer;
        socklen_t bytes = sizeof(peer);
        int fd = accept4(poll->fd, (struct sockaddr *)&peer, &bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE)
                out_of_descriptors(l);
            return;
        }
        int one = 1;
        if (peer.ss_family != AF_UNIX)
            (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        l->on_accept(l, fd, &peer);
    }
}

enum err loop_listener_start(struct loop *loop, struct loop_listener *l, int fd, struct error *e)
{
    l->poll = (struct loop_poll){.on_ready = on_listener_ready};
    loop_timer_init(&l->pause, on_pause_over);
    l->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return loop_poll_start(loop, &l->poll, fd, EPOLLIN, e);
}

void loop_listener_stop(struct loop_listener *l)
{
    if (!l->poll.active)
        return;
    loop_timer_stop(l->poll.loop, &l->pause);
    loop_poll_stop(&l->poll);
    fd_close(&l->poll.fd);
    fd_close(&l->reserve_fd);
}

/* ---- signals ---- */

static void on_signals_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct loop_signals *s = container_of(poll, struct loop_signals, poll);
    struct signalfd_siginfo info;
    while (s->poll.active && read(poll->fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        s->on_signal(s, (int)info.ssi_signo);
}

enum err loop_signals_start(struct loop *loop, struct loop_signals *s, const int *signos,
                            size_t count, struct error *e)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < count; i++)
        sigaddset(&set, signos[i]);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return error_errno(e, "block signals");
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return error_errno(e, "receive signals by descriptor");
    s->poll = (struct loop_poll){.on_ready = on_signals_ready};
    enum err err = loop_poll_start(loop, &s->poll, fd, EPOLLIN, e);
    if (err != ERR_OK)
        fd_close(&fd);
    return err;
}

void loop_signals_stop(struct loop_signals *s)
{
    if (!s->poll.active)
        return;
    loop_poll_stop(&s->poll);
    fd_close(&s->poll.fd);
}

/* ---- children ---- */

static void on_child_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct loop_child *child = container_of(poll, struct loop_child, poll);
    siginfo_t info = {0};
    if (waitid(P_PIDFD, (id_t)poll->fd, &info, WEXITED | WNOHANG) < 0 || info.si_pid == 0)
        return;
    int status = info.si_code == CLD_EXITED
                     ? info.si_status << 8
                     : info.si_status | (info.si_code == CLD_DUMPED ? 0x80 : 0);
    loop_child_stop(child);
    child->on_exit(child, status);
}

enum err loop_child_start(struct loop *loop, struct loop_child *child, pid_t pid, struct error *e)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return error_errno(e, "watch process %d", (int)pid);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    child->pid = pid;
    child->poll = (struct loop_poll){.on_ready = on_child_ready};
    enum err err = loop_poll_start(loop, &child->poll, fd, EPOLLIN, e);
    if (err != ERR_OK)
        fd_close(&fd);
    return err;
}

void loop_child_stop(struct loop_child *child)
{
    if (!child->poll.active)
        return;
    loop_poll_stop(&child->poll);
    fd_close(&child->poll.fd);
}
