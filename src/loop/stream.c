/* stream.c - connected sockets on edge-triggered epoll. A stream is registered once, for both
 * directions; from then on only recv and send are called. `readable` means that the kernel may have
 * bytes: it becomes false with a short read, so that no recv is spent on learning EAGAIN. */
#include "loop/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECVS_PER_TURN 16

static void ready_later(struct loop_stream *s)
{
    if (!s->in_ready_list) {
        s->in_ready_list = true;
        list_push_back(&s->loop->ready, &s->ready_node);
    }
}

static void ready_forget(struct loop_stream *s)
{
    if (s->in_ready_list) {
        s->in_ready_list = false;
        list_remove(&s->ready_node);
    }
}

static void tell_broken(struct loop_stream *s, int error_number)
{
    if (s->broken || s->closing)
        return;
    s->broken = true;
    s->readable = s->writable = false;
    s->error_number = error_number;
    s->pending_bytes = s->pending_offset = 0;
    ready_forget(s);
    s->callbacks->on_recv(s, ERR_CLOSED, NULL, 0);
}

static void receive(struct loop_stream *s)
{
    struct loop *loop = s->loop;
    for (int i = 0; i < RECVS_PER_TURN; i++) {
        if (!s->readable || s->paused || s->closing || s->broken || s->ended)
            return;
        ssize_t n = recv(s->fd, loop->receive_buffer, LOOP_RECV_BYTES_MAX, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            s->readable = false;
            if (s->send_failure != 0)
                tell_broken(s, s->send_failure);
            return;
        }
        if (n < 0) {
            tell_broken(s, errno);
            return;
        }
        if (n == 0) {
            s->ended = true;
            s->readable = false;
            s->callbacks->on_recv(s, ERR_END, NULL, 0);
            return;
        }
        /* A short read has emptied the socket; what comes later makes a new edge. The end of the
         * stream makes its edge too (EPOLLRDHUP), which may have come before this read: it sets
         * `rdhup`. */
        if ((size_t)n < LOOP_RECV_BYTES_MAX && !s->shutdown_seen)
            s->readable = false;
        s->callbacks->on_recv(s, ERR_OK, loop->receive_buffer, (size_t)n);
    }
    if (s->readable && !s->paused && !s->closing)
        ready_later(s);
}

static void send_pending(struct loop_stream *s)
{
    while (s->pending_offset < s->pending_bytes) {
        ssize_t n = send(s->fd, s->pending + s->pending_offset,
                         s->pending_bytes - s->pending_offset, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            s->writable = false;
            return;
        }
        if (n < 0) {
            tell_broken(s, errno);
            return;
        }
        s->pending_offset += (size_t)n;
    }
    s->pending_offset = s->pending_bytes = 0;
    if (s->pending_capacity > 2 * LOOP_RECV_BYTES_MAX) { /* idle connections hold no large buffer */
        free(s->pending);
        s->pending = NULL;
        s->pending_capacity = 0;
    }
    if (s->shutdown_pending) {
        s->shutdown_pending = false;
        (void)shutdown(s->fd, SHUT_WR);
    }
    if (s->callbacks->on_drained != NULL)
        s->callbacks->on_drained(s);
}

static void connect_finished(struct loop_stream *s)
{
    int error_number = 0;
    socklen_t bytes = sizeof(error_number);
    if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error_number, &bytes) < 0)
        error_number = errno;
    s->connecting = false;
    s->error_number = error_number;
    if (error_number != 0) {
        s->broken = true;
        s->callbacks->on_connect(s, ERR_UNREACHABLE);
        return;
    }
    s->writable = true;
    s->callbacks->on_connect(s, ERR_OK);
}

void loop_stream_on_events(struct loop_stream *s, uint32_t epoll_events)
{
    if (s->closing || s->broken)
        return;
    if (s->connecting) {
        if ((epoll_events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0)
            return;
        connect_finished(s);
        if (s->closing || s->broken)
            return;
    }
    if (epoll_events & EPOLLOUT) {
        s->writable = true;
        if (s->pending_bytes > 0)
            send_pending(s);
    }
    if (epoll_events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        s->readable = true;
        if (epoll_events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            s->shutdown_seen = true;
        if (s->paused && s->shutdown_seen && s->callbacks->on_peer_ended != NULL)
            s->callbacks->on_peer_ended(s, (epoll_events & (EPOLLHUP | EPOLLERR)) != 0);
        else
            receive(s);
    }
}

void loop_streams_run_ready(struct loop *loop)
{
    struct list turn;
    if (list_is_empty(&loop->ready))
        return;
    /* Take the list as it is now: who becomes ready meanwhile has its next turn. */
    turn = loop->ready;
    turn.next->prev = &turn;
    turn.prev->next = &turn;
    list_init(&loop->ready);
    while (!list_is_empty(&turn)) {
        struct loop_stream *s = list_entry(turn.next, struct loop_stream, ready_node);
        ready_forget(s);
        if (s->error_number != 0 && s->connecting) { /* a connect that failed at once */
            s->connecting = false;
            s->broken = true;
            s->callbacks->on_connect(s, ERR_UNREACHABLE);
            continue;
        }
        if (s->send_failure != 0 && s->paused)
            tell_broken(s,
                        s->send_failure); /* what has come is not read, but nothing can be sent */
        else
            receive(s);
    }
}

static enum err stream_register(struct loop *loop, struct loop_stream *s,
                                const struct loop_stream_callbacks *callbacks, int fd,
                                struct error *e)
{
    *s = (struct loop_stream){
        .loop = loop, .callbacks = callbacks, .fd = fd, .kind = LOOP_KIND_STREAM};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.ptr = &s->kind};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return error_errno(e, "watch socket %d", fd);
    return ERR_OK;
}

enum err loop_stream_init(struct loop *loop, struct loop_stream *s,
                          const struct loop_stream_callbacks *callbacks, int fd, struct error *e)
{
    enum err err = stream_register(loop, s, callbacks, fd, e);
    s->writable = err == ERR_OK;
    return err;
}

enum err loop_stream_connect(struct loop *loop, struct loop_stream *s,
                             const struct loop_stream_callbacks *callbacks,
                             const struct sockaddr *address, socklen_t address_bytes,
                             bool *ret_connected, struct error *e)
{
    if (ret_connected != NULL)
        *ret_connected = false;
    cleanup(fd_close) int fd =
        socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(e, "make a socket");
    int one = 1;
    if (address->sa_family == AF_INET || address->sa_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    int result = connect(fd, address, address_bytes), failure = result < 0 ? errno : 0;
    enum err err = stream_register(loop, s, callbacks, fd, e);
    if (err != ERR_OK)
        return err;
    fd_take(&fd);
    if (result == 0 && ret_connected != NULL) {
        s->writable = true;
        *ret_connected = true;
        return ERR_OK;
    }
    s->connecting = true;
    if (failure != 0 && failure != EINPROGRESS) {
        s->error_number = failure;
        ready_later(s);
    }
    return ERR_OK;
}

static void pending_append(struct loop_stream *s, const char *data, size_t bytes)
{
    if (s->pending_offset == s->pending_bytes)
        s->pending_offset = s->pending_bytes = 0;
    if (s->pending_capacity - s->pending_bytes < bytes) {
        if (s->pending_offset > 0) {
            memmove(s->pending, s->pending + s->pending_offset,
                    s->pending_bytes - s->pending_offset);
            s->pending_bytes -= s->pending_offset;
            s->pending_offset = 0;
        }
        while (s->pending_capacity - s->pending_bytes < bytes) {
            s->pending_capacity = MAX(s->pending_capacity * 2, (size_t)4096);
            s->pending = mem_resize(s->pending, s->pending_capacity, 1);
        }
    }
    memcpy(s->pending + s->pending_bytes, data, bytes);
    s->pending_bytes += bytes;
}

void loop_stream_sendv(struct loop_stream *s, const struct iovec *parts, int count)
{
    if (s->closing || s->broken)
        return;
    size_t sent = 0;
    if (s->writable && s->pending_bytes == 0) {
        struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
        ssize_t n;
        do {
            n = count == 1
                    ? send(s->fd, parts[0].iov_base, parts[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT)
                    : sendmsg(s->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        } while (n < 0 && errno == EINTR);
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            /* The reader of this stream is told, from the loop: callbacks never run inside a send.
             */
            s->send_failure = errno;
            s->writable = false;
            s->readable = true;
            ready_later(s);
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
    }
    for (int i = 0; i < count; i++) {
        if (sent >= parts[i].iov_len) {
            sent -= parts[i].iov_len;
            continue;
        }
        s->writable = false; /* until the next edge, which comes when there is room */
        pending_append(s, (const char *)parts[i].iov_base + sent, parts[i].iov_len - sent);
        sent = 0;
    }
}

void loop_stream_send(struct loop_stream *s, const void *data, size_t bytes)
{
    struct iovec part = {.iov_base = (void *)data, .iov_len = bytes};
    loop_stream_sendv(s, &part, 1);
}

void loop_stream_pause(struct loop_stream *s)
{
    s->paused = true;
}

void loop_stream_resume(struct loop_stream *s)
{
    if (!s->paused)
        return;
    s->paused = false;
    if (s->readable && !s->closing && !s->broken && !s->ended)
        ready_later(s);
}

void loop_stream_shutdown(struct loop_stream *s)
{
    if (s->closing || s->broken)
        return;
    if (s->pending_bytes > 0)
        s->shutdown_pending = true;
    else
        (void)shutdown(s->fd, SHUT_WR);
}

void loop_stream_close(struct loop_stream *s)
{
    if (s->closing)
        return;
    s->closing = true;
    ready_forget(s);
    loop_forget_events(s->loop, &s->kind);
    fd_close(&s->fd); /* the only descriptor of the socket: leaves epoll by itself */
    list_push_back(&s->loop->closed, &s->ready_node);
}

bool loop_stream_has_unread(const struct loop_stream *s)
{
    char byte;
    return recv(s->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
}

int loop_stream_release(struct loop_stream *s)
{
    assert(!s->closing);
    (void)epoll_ctl(s->loop->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
    int fd = fd_take(&s->fd);
    loop_stream_close(s);
    return fd;
}

void loop_stream_reset(struct loop_stream *s)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    if (!s->closing)
        (void)setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    loop_stream_close(s);
}

void loop_streams_run_closed(struct loop *loop)
{
    while (!list_is_empty(&loop->closed)) {
        struct loop_stream *s = list_entry(loop->closed.next, struct loop_stream, ready_node);
        list_remove(&s->ready_node);
        free(s->pending);
        s->pending = NULL;
        s->pending_capacity = s->pending_bytes = s->pending_offset = 0;
        if (s->callbacks->on_closed != NULL)
            s->callbacks->on_closed(s);
    }
}
