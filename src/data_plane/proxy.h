/* proxy.h - what the files of one serving thread share; nobody else includes it. Everything here
 * belongs to the thread.
 *
 *   thread.c    its loop, table, messages
 *   client.c    a client's connection: heads in, answers out, time
 *   exchange.c  one request and its answer: function, slot, sandbox, retry, end
 *   body.c      bodies in both directions
 *   upstream.c  connections to sandboxes
 *   own.c       the data plane's own pages
 *
 * Life of an exchange: head parsed -> function found -> slot (at once, or after waiting) ->
 * connection (kept, or new) -> request sent -> answer passed on -> slot given back -> the client's
 * next request. */
#pragma once
#include "base/hash.h"
#include "base/rng.h"
#include "data_plane/head.h"
#include "data_plane/thread.h"
#include "http/http1.h"
#include <pthread.h>

#define INPUT_KEPT_BYTES_MAX (64u * 1024u) /* of a client that sends ahead, before it is paused */
#define BODY_SMALL_BYTES_MAX \
    (16u * 1024u) /* is sent in one piece with the head, and can be sent again */
#define HEAD_KEPT_BYTES_MAX (8u * 1024u) /* larger buffers are freed after use */
#define SPARE_HEADS_MAX 64u
#define IDLE_UPSTREAMS_MAX 128u /* for each sandbox and thread */
#define IDLE_UPSTREAM_NS (30 * NS_PER_S)
#define SWEEP_PERIOD_NS (10 * NS_PER_S)
#define LINGER_NS (2 * NS_PER_S)
#define GONE_GRACE_NS NS_PER_S
/* A request on a connection that is there: the sandbox's host has not acknowledged a byte of it.
 * With the check, no later than a connect would fail. */
#define ACK_TIMEOUT_NS (750 * NS_PER_MS)
#define ACK_CHECK_NS (250 * NS_PER_MS)
static_assert(ACK_TIMEOUT_NS + ACK_CHECK_NS <= UPSTREAM_CONNECT_TIMEOUT_MS * NS_PER_MS,
              "a kept connection hides a lost host no longer than a new one");
#define CONNECT_ATTEMPTS_MAX 4u
#define NEIGHBOURS_MAX 256u /* endpoints of a function that are looked at when a worker is silent */
#define RESENDS_MAX 1u /* to another sandbox; a stale connection counts extra, once */

/* A function in this thread's table. */
struct thread_route {
    struct route *route;
    struct route_stats *stats;
    uint32_t users; /* exchanges, and connections that still hold a slot */
    bool removed;
};

/* Connections of this thread to one sandbox. */
struct pool {
    struct thread *thread;
    uint64_t sandbox_id;
    struct dispatch_endpoint *endpoint; /* NULL when gone */
    struct list idle, active;           /* struct upstream; the last used first */
    uint32_t idle_count;
    bool gone;
    uint64_t gone_ns;
    struct loop_timer gone_timer;
};

struct client;
struct upstream {
    struct loop_stream stream;
    struct pool *pool;
    struct client *client; /* whose answer it brings; NULL: idle or closing */
    struct list node;
    struct loop_timer connect_timer;
    struct buf in; /* a head that is not complete */
    size_t scanned;
    uint64_t sent_bytes, sent_before; /* on this connection: all, and before this request */
    uint64_t used_ns, received_ns;
    bool connected, closing, is_idle, is_reused;
    bool is_heard; /* something of this request was acknowledged */
    bool spoiled; /* must not carry another request */
    /* the slot of an exchange that ended before its answer did: given back when the connection is
     * closed */
    struct dispatch_endpoint *slot;
    struct thread_route *slot_route;
    struct http_chunked chunked; /* of the answer */
};

enum client_state {
    CLIENT_HEAD,       /* reads a head, or is idle */
    CLIENT_WAITING,    /* for a slot */
    CLIENT_CONNECTING, /* has a slot, the connection is being made */
    CLIENT_SENT,       /* the head went to the sandbox */
    CLIENT_ANSWERING,  /* the answer's head went to the client */
    CLIENT_TUNNEL,     /* after a 101 */
    CLIENT_FLUSHING,   /* the answer is complete, the client has not taken all of it */
    CLIENT_LINGERING,  /* answered, closing: what still comes is thrown away, so that no reset
                          destroys the answer */
    CLIENT_CLOSED,
    CLIENT_STATE_COUNT
};

struct client {
    struct loop_stream stream;
    struct thread *thread;
    struct list node;
    enum client_state state;
    /* One timer for everything, started late: when it runs out before `due_ns` it is started again.
     */
    struct loop_timer timer;
    uint64_t due_ns;
    struct loop_deferred again; /* more input is there, at the end of the turn */
    struct buf in;              /* came, and is not used yet */
    size_t scanned;
    char ip[46];
    uint8_t ip_bytes;
    bool keep_alive, client_is_1_0, head_only, receipt, trailers_accepted, expect_continue, upgrade;
    bool gone; /* went away while its grant was on its way */
    bool close_after_flush;

    /* the exchange */
    struct thread_route *route; /* NULL: none */
    struct dispatch_waiter waiter;
    struct loop_post handover_post;
    struct loop_deferred handover_here;
    bool handover_due;
    struct failure *failure;
    enum err failure_err;
    struct dispatch_endpoint *endpoint; /* whose slot it holds */
    struct upstream *upstream;
    struct buf head; /* for the sandbox, a small body too: all that is needed to send it again */
    bool replayable; /* nothing else was sent */
    bool is_idempotent, was_queued, was_stale;
    uint8_t connect_attempts, resends;
    enum http_method method;
    uint64_t arrived_ns, deadline_ns, granted_ns, sent_ns;
    uint32_t connect_us;
    /* its body */
    enum http_body body;
    uint64_t body_left, body_bytes;
    bool request_done;
    struct http_chunked chunked;
    /* the answer's body */
    unsigned status;
    enum http_body answer_body; /* as it comes */
    bool answer_chunked;        /* as it goes */
    uint64_t answer_left;
    /* the tunnel */
    bool tunnel_client_ended, tunnel_upstream_ended;
};

struct thread {
    struct thread_shared *shared;
    uint32_t index;
    pthread_t id;
    bool started, stopping, stopped_told;
    struct loop *loop;
    int listen_fd; /* until it starts; then the listener's, and -1 */
    struct loop_listener listener;
    struct strmap table; /* name -> struct thread_route */
    struct map pools;    /* sandbox id -> struct pool */
    struct list clients;
    uint64_t client_count, upstream_count;
    struct rng rng;
    struct loop_timer sweep, stop_timer, ack_timer;
    bool acks_awaited; /* the timer runs */
    struct loop_post stop_post, stopped_post;
    uint64_t stop_deadline_ns;
    /* scratch, used within one callback */
    struct http_request request;
    struct http_response response;
    struct error error;
    struct buf out, extra;
    struct buf spare_heads[SPARE_HEADS_MAX];
    uint32_t spare_count;
    char date[HEAD_DATE_BYTES];
    uint64_t date_until_ns;
    struct thread_counters counters;
};

static inline uint64_t now_ns(const struct thread *t)
{
    return loop_now_ns(t->loop);
}

/* thread.c */
struct str thread_date(struct thread *t);
struct buf thread_spare_head(struct thread *t);
void thread_keep_head(struct thread *t, struct buf *head);
struct route_stats *thread_stats(struct thread *t, struct thread_route *tr);
void thread_route_leave(struct thread *t, struct thread_route *tr);
void thread_check_stopped(struct thread *t);
/* It was ejected. `reason` NULL: only to be admitted again, the control plane is not told. */
void thread_report_endpoint(struct thread *t, uint64_t sandbox_id, const char *reason);
void thread_await_ack(struct thread *t); /* a request went out */

/* client.c */
void client_accept(struct thread *t, int fd, const struct sockaddr_storage *peer);
void client_move(struct client *c, enum client_state to);
void client_due(struct client *c, uint64_t due_ns);
void client_write(struct client *c, struct str data);
/* Answers with an error of ours. `message` may be STR_NONE for the usual text. */
void client_answer(struct client *c, enum answer answer, struct str message);
void client_answer_failure(struct client *c, const struct failure *f);
void client_answer_page(struct client *c, unsigned status, const char *content_type,
                        struct str body);
/* The answer is complete: on to the next request, or to the end. */
void client_answered(struct client *c);
void client_take_kept(struct client *c);
void client_handed_over(struct client *c); /* the grant that was on its way has arrived */
void client_close(struct client *c);
void client_cut(struct client *c); /* with a reset */

/* exchange.c */
/* A head was parsed into thread->request; `data` is what came behind it. Returns how much of it was
 * used. */
size_t exchange_begin(struct client *c, const char *data, size_t bytes);
void exchange_client_gone(struct client *c);
void exchange_timeout(struct client *c);
void exchange_tunnel_client_ended(struct client *c, enum err err);
void exchange_connected(struct client *c);
/* `is_silent`: nothing answers at all. */
void exchange_connect_failed(struct client *c, bool is_silent, const char *why);
/* The host of its sandbox has acknowledged nothing of its request. */
void exchange_unheard(struct client *c);
void exchange_receive(struct client *c, enum err err, const char *data, size_t bytes);
void exchange_sandbox_gone(struct client *c);
/* Ends with an error of ours before any byte of the answer went out. Gives the slot back when the
 * connection is closed. */
void exchange_fail(struct client *c, enum answer answer, struct str message);

/* body.c */
void body_begin(struct client *c, const struct http_request *r);
/* What is small is put behind the head. ERR_PROTOCOL: chunks that are not valid. */
must_check enum err body_take_small(struct client *c, const char *data, size_t bytes,
                                    size_t *ret_used);
/* Sends to the sandbox; returns how much was used, all of it unless the body ends before. */
size_t body_send(struct client *c, const char *data, size_t bytes);
/* Of the answer, behind `head` (in thread->out, or STR_NONE). *ret_done: the answer is complete,
 * *ret_used of the bytes were its. */
must_check enum err body_answer(struct client *c, struct str head, const char *data, size_t bytes,
                                size_t *ret_used, bool *ret_done);

/* upstream.c */
struct pool *pool_of(struct thread *t, struct dispatch_endpoint *endpoint);
struct upstream *pool_take_idle(struct pool *p);
/* Connects for the client: exchange_connected() or exchange_connect_failed() comes, at once too. */
void upstream_connect(struct pool *p, struct client *c);
void upstream_attach(struct upstream *u, struct client *c);
void upstream_send(struct upstream *u, const struct iovec *parts, int count);
/* The answer is complete: back to the pool, or closed. */
void upstream_finish(struct upstream *u);
/* Closes; when the client holds a slot through it, that is given back when it is closed. */
void upstream_abandon(struct upstream *u, struct client *c);
/* The other side has acknowledged no byte of this request: nothing of it can have reached the
 * program. */
bool upstream_took_nothing(const struct upstream *u);
void pool_gone(struct pool *p);
void pool_forget_idle(struct pool *p);
/* It takes no new request. What it has may last as long as it likes while its host is there: that is
 * asked for from now on. */
void pool_drain(struct pool *p);
/* Puts those whose request is unheard into ret_clients[count_max] and returns how many; *ret_awaits
 * is set when there are some of whom that is not known yet. */
size_t pool_unheard(struct pool *p, struct client **ret_clients, size_t count_max,
                    bool *ret_awaits);
void pool_sweep(struct pool *p);
void pool_close(struct pool *p); /* when the thread ends */

/* own.c */
bool own_is_page(struct str path);
void own_answer(struct client *c, const struct http_request *r);
