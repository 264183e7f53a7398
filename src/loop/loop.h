/* loop.h - completion-based events: one loop per thread. What is asked for is carried out by the
 * loop and its end is told to a callback; callers never see EAGAIN.
 *
 * Two back ends fit behind this header: epoll(7), edge-triggered (here), and io_uring(7) (later).
 *
 * Rules
 * - Every call is made on the loop's own thread, except loop_post().
 * - Callbacks run from loop_run() only, never from inside the call that asked, with one exception
 *   that is stated where it holds.
 * - An object may be closed from any callback, its own too. Closing is asynchronous: memory may be
 *   freed when `on_closed` runs (or at once when `on_closed` is NULL and the header says so), and
 * no other callback of that object runs after the close call.
 * - Objects are embedded in their owner's struct (container_of); the loop allocates nothing per
 *   operation on the warm path.
 * - Time is monotonic: loop_now_ns() is read once per turn. */
#pragma once
#include "base/base.h"
#include "base/list.h"
#include "base/str.h"
#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct loop; /* opaque; owned by its thread */

must_check enum err loop_new(struct loop **ret_loop, struct error *e);
void loop_free(struct loop *loop); /* all objects closed before */
/* Runs until loop_stop(). */
void loop_run(struct loop *loop);
/* One turn: waits at most timeout_ms (-1: until something happens), runs what is due. For tests. */
void loop_run_once(struct loop *loop, int timeout_ms);
void loop_stop(struct loop *loop);
/* Monotonic time of this turn. loop_update_now() reads the clock again and returns it. */
uint64_t loop_now_ns(const struct loop *loop);
uint64_t loop_update_now(struct loop *loop);

/* ---- timers: a 4-ary heap; O(log n) start and stop ---- */
struct loop_timer;
typedef void loop_on_timer(struct loop_timer *timer);
struct loop_timer {
    loop_on_timer *on_timer;
    uint64_t due_ns;
    size_t heap_index; /* SIZE_MAX: not running. Private to the loop. */
};
void loop_timer_init(struct loop_timer *timer, loop_on_timer *on_timer);
/* (Re)starts it, once, `due_ns` on the monotonic clock. */
void loop_timer_start(struct loop *loop, struct loop_timer *timer, uint64_t due_ns);
void loop_timer_stop(struct loop *loop, struct loop_timer *timer); /* also when not running */
static inline bool loop_timer_is_running(const struct loop_timer *t)
{
    return t->heap_index != SIZE_MAX;
}

/* ---- deferred work: runs once at the end of this turn, before waiting. For batching: "whatever is
 * due in one turn goes out in one write". Adding one that waits already does nothing. ---- */
struct loop_deferred {
    struct list node;
    void (*on_turn_end)(struct loop_deferred *d);
};
void loop_defer(struct loop *loop, struct loop_deferred *d);
void loop_defer_cancel(struct loop_deferred *d);

/* ---- posts: the only call for other threads. Wakes the loop when it sleeps. The node belongs to
 * the loop until on_post runs. FIFO per poster. ---- */
struct loop_post {
    struct loop_post *next; /* private */
    void (*on_post)(struct loop_post *post);
};
void loop_post(struct loop *loop, struct loop_post *post);

/* ---- descriptor readiness, for descriptors that are no stream (pidfd, eventfd, netlink, seccomp
 * listener, seqpacket). Level-triggered. Does not own the fd. ---- */
struct loop_poll {
    struct loop *loop;
    int fd;
    void (*on_ready)(struct loop_poll *poll, uint32_t epoll_events); /* EPOLLIN | EPOLLHUP … */
    bool active;
    /* private */
    uint32_t kind;
};
must_check enum err loop_poll_start(struct loop *loop, struct loop_poll *poll, int fd,
                                    uint32_t epoll_events, struct error *e);
void loop_poll_change(struct loop_poll *poll, uint32_t epoll_events);
void loop_poll_stop(struct loop_poll *poll); /* synchronous; memory may go at once. Call before
                                                 closing the fd. No-op when not active. */

/* ---- signals of the process, by signalfd(2); blocks them for the calling thread. One loop only.
 */
struct loop_signals {
    struct loop_poll poll;
    void (*on_signal)(struct loop_signals *s, int signo);
};
must_check enum err loop_signals_start(struct loop *loop, struct loop_signals *s, const int *signos,
                                       size_t count, struct error *e);
void loop_signals_stop(struct loop_signals *s);

/* ---- child exit by pidfd. on_exit gets the status of waitid(2) as wait(2) encodes it. ---- */
struct loop_child {
    struct loop_poll poll;
    pid_t pid;
    void (*on_exit)(struct loop_child *child, int wait_status);
};
must_check enum err loop_child_start(struct loop *loop, struct loop_child *child, pid_t pid,
                                     struct error *e);
void loop_child_stop(struct loop_child *child);

/* ---- listeners (TCP or unix stream). Accepts until the kernel has no more, at most 64 a turn. On
 * EMFILE/ENFILE it gives up a reserved descriptor to refuse one connection, and pauses 100 ms
 * rather than spin. The callback owns fd (non-blocking, close-on-exec; TCP_NODELAY set on TCP).
 * ---- */
struct loop_listener {
    struct loop_poll poll;
    struct loop_timer pause;
    int reserve_fd;
    void (*on_accept)(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer);
};
must_check enum err loop_listener_start(struct loop *loop, struct loop_listener *listener, int fd,
                                        struct error *e);
void loop_listener_stop(struct loop_listener *listener); /* closes its descriptor; synchronous */

/* ---- streams: connected or connecting sockets. Owns fd from init on. ----
 *
 * Receiving: on_recv gets bytes in the loop's own buffer (LOOP_RECV_BYTES_MAX at most), valid
 * during the callback only: idle connections hold no buffer. bytes == 0 with ERR_END: the peer
 * ended its direction (half-close). Any other err: the connection is broken; on_recv is not called
 * again. loop_stream_pause()/resume() stop and start receiving: this is back-pressure.
 *
 * Sending: loop_stream_send() tries the kernel at once; what it does not take is copied to the
 * stream and sent when there is room. Then on_drained runs, once, when all of it has gone. Whoever
 * relays pauses its source while loop_stream_pending() > 0, so that at most one chunk is ever
 * copied. A broken connection is told by on_recv (ERR_CLOSED), not by send; when a send has failed,
 * also while receiving is paused.
 *
 * on_connect runs once for loop_stream_connect(): ERR_OK, or the failure with errno in
 * `error_number`.
 */
#define LOOP_RECV_BYTES_MAX (64u * 1024u)
struct loop_stream;
struct loop_stream_callbacks {
    void (*on_connect)(struct loop_stream *s, enum err err);
    void (*on_recv)(struct loop_stream *s, enum err err, const char *data, size_t bytes);
    void (*on_drained)(struct loop_stream *s);
    void (*on_closed)(struct loop_stream *s); /* may free */
    /* May be NULL. The peer ended its direction (`all` false), or the connection is broken (true),
     * while receiving is paused, so that on_recv cannot tell; what it sent before may still be
     * unread. May be told more than once. */
    void (*on_peer_ended)(struct loop_stream *s, bool all);
};
struct loop_stream {
    struct loop *loop;
    const struct loop_stream_callbacks *callbacks;
    int fd;
    int error_number; /* errno of the failure last told */
    /* private to the loop */
    uint32_t kind;
    int send_failure; /* errno of a failed send, until it is told */
    bool paused, connecting, readable, writable, ended, broken, shutdown_pending, shutdown_seen,
        closing, in_ready_list;
    char *pending;
    size_t pending_bytes, pending_offset, pending_capacity;
    struct list ready_node;
};
/* Takes over a connected fd. Receiving begins at once (on the next turn). */
must_check enum err loop_stream_init(struct loop *loop, struct loop_stream *s,
                                     const struct loop_stream_callbacks *callbacks, int fd,
                                     struct error *e);
/* Makes a non-blocking socket and connects. The end is told to on_connect, also when it is known at
 * once (that is then on the next turn, except that a connect that succeeds at once may be told
 * before this returns when `*ret_connected` is not NULL: it is set true and on_connect does not
 * run). */
must_check enum err loop_stream_connect(struct loop *loop, struct loop_stream *s,
                                        const struct loop_stream_callbacks *callbacks,
                                        const struct sockaddr *address, socklen_t address_bytes,
                                        bool *ret_connected, struct error *e);
void loop_stream_send(struct loop_stream *s, const void *data, size_t bytes);
void loop_stream_sendv(struct loop_stream *s, const struct iovec *parts, int count);
static inline size_t loop_stream_pending(const struct loop_stream *s)
{
    return s->pending_bytes - s->pending_offset;
}
/* Whether bytes, or the end, wait in the kernel. */
bool loop_stream_has_unread(const struct loop_stream *s);
void loop_stream_pause(struct loop_stream *s);
void loop_stream_resume(struct loop_stream *s);
/* Half-close our direction after what is pending has gone. */
void loop_stream_shutdown(struct loop_stream *s);
/* Closes (dropping what is pending); on_closed runs at the end of this turn. Once. */
void loop_stream_close(struct loop_stream *s);
/* As close, but the socket lives on and is the caller's: returned. on_closed runs as after a close.
 */
int loop_stream_release(struct loop_stream *s);
/* As close, but the peer gets a reset (SO_LINGER 0): a cut answer must not look complete. */
void loop_stream_reset(struct loop_stream *s);

/* ---- sockets ---- */
/* "127.0.0.1:8080", "[::1]:8080", ":8080" (all addresses), "localhost:0". No DNS. */
must_check enum err address_parse(const char *text, struct sockaddr_storage *ret_address,
                                  socklen_t *ret_bytes, struct error *e);
/* "127.0.0.1:8080" into ret_text of at least 64 bytes. */
void address_format(const struct sockaddr *address, char *ret_text, size_t bytes);
/* "10.0.0.1" of "10.0.0.1:80", "::1" of "[::1]:80", "" of ":80"; what has no port is a host
 * already. */
struct str address_host(const char *address);
bool address_is_loopback(struct str host);
bool address_is_any(struct str host); /* "", "0.0.0.0", "::": all addresses of this host */
/* Non-blocking close-on-exec listening socket, SO_REUSEADDR, and SO_REUSEPORT when asked. The error
 * names the address, and for EADDRINUSE says that another program has it. */
must_check enum err socket_listen(const char *address, bool reuse_port, int *ret_fd,
                                  struct error *e);
must_check enum err socket_listen_unix(const char *path, mode_t mode, int type, int *ret_fd,
                                       struct error *e);
