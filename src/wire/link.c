/* link.c - one connection. Out: messages are packed into `out` and leave in one write at the end of
 * the turn. In: whole frames are handed over straight from the loop's buffer; what is cut off waits
 * in `in`. */
#include "wire/link.h"
#include "base/limits.h"
#include "base/str.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>

#define FIRST_FRAME_BYTES_MAX (64u * 1024u) /* from who has not shown a certificate */
#define OUT_KEPT_BYTES (256u * 1024u)       /* a larger buffer is given back after use */

struct link {
    struct loop *loop;
    struct loop_stream stream;
    struct loop_deferred flush;
    struct loop_timer timer;
    const struct link_callbacks *callbacks;
    void *user;
    struct buf out, in;
    struct tls_session *tls;  /* NULL: there is none */
    struct buf plain, sealed; /* of it */
    struct buf refusal;       /* a frame for who does not speak TLS */
    size_t frame_max;
    uint64_t sent_ns, heard_ns, heartbeat_ns, dead_after_ns, secured_by_ns;
    bool is_server, has_begun, closing;
    enum err err;
    char why[256], peer[64];
};

static void on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes);
static void on_drained(struct loop_stream *s);
static void on_stream_closed(struct loop_stream *s);

static const struct loop_stream_callbacks stream_callbacks = {
    .on_recv = on_recv, .on_drained = on_drained, .on_closed = on_stream_closed};

static void timer_next(struct link *l)
{
    uint64_t due = UINT64_MAX;
    if (l->heartbeat_ns > 0)
        due = l->sent_ns + l->heartbeat_ns;
    if (l->dead_after_ns > 0)
        due = MIN(due, l->heard_ns + l->dead_after_ns);
    if (l->secured_by_ns > 0)
        due = MIN(due, l->secured_by_ns);
    if (due != UINT64_MAX && !l->closing)
        loop_timer_start(l->loop, &l->timer, due);
}

static void on_timer(struct loop_timer *timer)
{
    struct link *l = container_of(timer, struct link, timer);
    uint64_t now = loop_now_ns(l->loop);
    /* When we are late ourselves, what has come and is not read yet counts. */
    if (l->dead_after_ns > 0 && now >= l->heard_ns + l->dead_after_ns &&
        loop_stream_has_unread(&l->stream))
        l->heard_ns = now;
    if (l->dead_after_ns > 0 && now >= l->heard_ns + l->dead_after_ns) {
        char why[64];
        (void)snprintf(why, sizeof(why), "nothing heard for %" PRIu64 " ms",
                       l->dead_after_ns / NS_PER_MS);
        link_close(l, ERR_TIMEOUT, why);
        return;
    }
    if (l->secured_by_ns > 0 && now >= l->secured_by_ns) {
        link_close(l, ERR_TIMEOUT, "no TLS handshake within 5 s");
        return;
    }
    if (l->heartbeat_ns > 0 && now >= l->sent_ns + l->heartbeat_ns) {
        uint8_t head[FRAME_HEAD_BYTES];
        frame_head_encode(0, head);
        buf_append(&l->out, head, sizeof(head));
        l->sent_ns = now;
        loop_defer(l->loop, &l->flush);
    }
    timer_next(l);
}

static void trim(struct buf *b)
{
    b->bytes = 0;
    if (b->capacity > OUT_KEPT_BYTES)
        buf_done(b);
}

static void send_sealed(struct link *l)
{
    if (l->sealed.bytes > 0)
        loop_stream_send(&l->stream, l->sealed.data, l->sealed.bytes);
    trim(&l->sealed);
}

/* For the handshake. */
static bool is_waiting(const struct link *l)
{
    return l->tls != NULL && !tls_session_is_established(l->tls);
}

static void on_flush(struct loop_deferred *d)
{
    struct link *l = container_of(d, struct link, flush);
    if (l->closing || l->out.bytes == 0 || is_waiting(l))
        return;
    if (l->tls != NULL) {
        tls_session_put(l->tls, l->out.data, l->out.bytes, &l->sealed);
        send_sealed(l);
    } else {
        loop_stream_send(&l->stream, l->out.data, l->out.bytes);
    }
    l->sent_ns = loop_now_ns(l->loop);
    trim(&l->out);
    if (loop_stream_pending(&l->stream) > LINK_PENDING_BYTES_MAX)
        link_close(l, ERR_BUSY, "the peer does not read what it is sent");
}

static bool frame_is_too_long(const struct link *l, const uint8_t *data, size_t bytes)
{
    if (bytes < FRAME_HEAD_BYTES)
        return false;
    uint32_t length =
        (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
    size_t most = l->tls != NULL && link_peer(l) == NULL ? FIRST_FRAME_BYTES_MAX : l->frame_max;
    return length > most;
}

static bool speaks_tls(const uint8_t *data, size_t bytes)
{
    return bytes >= 2 && data[0] == TLS_FIRST_BYTE && data[1] == 3;
}

/* Hands over whole frames; returns how many bytes were used. */
static size_t frames_take(struct link *l, const uint8_t *data, size_t bytes)
{
    size_t used = 0;
    while (!l->closing) {
        const uint8_t *payload;
        size_t payload_bytes, frame_bytes;
        enum err err =
            frame_decode(data + used, bytes - used, &payload, &payload_bytes, &frame_bytes);
        if (err == ERR_OK || err == ERR_MORE)
            err = frame_is_too_long(l, data + used, bytes - used) ? ERR_TOO_LARGE : err;
        if (err == ERR_MORE)
            break;
        if (err != ERR_OK) {
            bool is_tls = l->tls == NULL && !l->has_begun && speaks_tls(data, bytes);
            link_close(l, ERR_PROTOCOL,
                       is_tls ? "it speaks TLS, and this side does not (--tls)"
                              : "a frame is larger than the limit");
            break;
        }
        l->has_begun = true;
        used += frame_bytes;
        if (payload_bytes > 0)
            l->callbacks->on_frame(l, l->user, payload, payload_bytes);
    }
    return used;
}

/* Bytes of frames, in the clear. */
static void take(struct link *l, const char *data, size_t bytes)
{
    if (l->in.bytes == 0) {
        size_t used = frames_take(l, (const uint8_t *)data, bytes);
        if (!l->closing)
            buf_append(&l->in, data + used, bytes - used);
        return;
    }
    buf_append(&l->in, data, bytes);
    size_t used = frames_take(l, (const uint8_t *)l->in.data, l->in.bytes);
    if (l->closing)
        return;
    buf_consume(&l->in, used);
    if (l->in.bytes == 0)
        trim(&l->in);
}

static void secured(struct link *l)
{
    l->secured_by_ns = 0;
    if (l->callbacks->on_secured != NULL)
        l->callbacks->on_secured(l, l->user);
    if (!l->closing && l->out.bytes > 0)
        loop_defer(l->loop, &l->flush);
}

static void refuse_plain(struct link *l)
{
    if (l->refusal.bytes > 0)
        loop_stream_send(&l->stream, l->refusal.data, l->refusal.bytes);
    l->out.bytes = 0; /* not in the clear */
    link_close(l, ERR_PROTOCOL,
               l->is_server ? "it does not speak TLS, which this cluster does"
                            : "it does not speak TLS, and this side does (--tls)");
}

static void take_sealed(struct link *l, const char *data, size_t bytes)
{
    struct error e = {0};
    bool was_waiting = is_waiting(l);
    if (!l->has_begun && (uint8_t)data[0] != TLS_FIRST_BYTE) {
        refuse_plain(l);
        return;
    }
    l->has_begun = true;
    enum err err = tls_session_take(l->tls, data, bytes, &l->plain, &l->sealed, &e);
    send_sealed(l);
    if (was_waiting && !is_waiting(l))
        secured(l);
    if (!l->closing && l->plain.bytes > 0)
        take(l, l->plain.data, l->plain.bytes);
    trim(&l->plain);
    if (err != ERR_OK && !l->closing)
        link_close(l, err == ERR_END ? ERR_CLOSED : err, e.text);
}

static void on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct link *l = container_of(s, struct link, stream);
    if (err != ERR_OK) {
        link_close(l, ERR_CLOSED,
                   is_waiting(l)    ? "closed by the other side in the TLS handshake"
                   : err == ERR_END ? "closed by the other side"
                                    : "connection broken");
        return;
    }
    l->heard_ns = loop_now_ns(l->loop);
    if (l->tls != NULL)
        take_sealed(l, data, bytes);
    else
        take(l, data, bytes);
}

static void on_drained(struct loop_stream *s)
{
    struct link *l = container_of(s, struct link, stream);
    if (l->callbacks->on_drained != NULL)
        l->callbacks->on_drained(l, l->user);
}

static void on_stream_closed(struct loop_stream *s)
{
    struct link *l = container_of(s, struct link, stream);
    if (l->callbacks != NULL)
        l->callbacks->on_closed(l, l->user, l->err, l->why);
    tls_session_free(l->tls);
    buf_done(&l->in);
    buf_done(&l->out);
    buf_done(&l->plain);
    buf_done(&l->sealed);
    buf_done(&l->refusal);
    free(l);
}

enum err link_accept(struct loop *loop, int fd, const struct link_callbacks *callbacks, void *user,
                     struct link **ret_link, struct error *e)
{
    struct link *l = mem_new(sizeof(*l));
    l->loop = loop;
    l->callbacks = callbacks;
    l->user = user;
    l->frame_max = FRAME_BYTES_MAX;
    l->flush.on_turn_end = on_flush;
    l->sent_ns = l->heard_ns = loop_now_ns(loop);
    loop_timer_init(&l->timer, on_timer);
    struct sockaddr_storage peer = {0};
    socklen_t bytes = sizeof(peer);
    if (getpeername(fd, (struct sockaddr *)&peer, &bytes) == 0)
        address_format((struct sockaddr *)&peer, l->peer, sizeof(l->peer));
    enum err err = loop_stream_init(loop, &l->stream, &stream_callbacks, fd, e);
    if (err != ERR_OK) {
        free(l);
        return err;
    }
    /* Who only sends hears no silence: what nobody acknowledges ends the connection. */
    unsigned unheard_ms = LINK_UNHEARD_MS;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unheard_ms, sizeof(unheard_ms));
    *ret_link = l;
    return ERR_OK;
}

static void pack(struct buf *out, const ProtobufCMessage *message, size_t bytes)
{
    size_t begin = out->bytes;
    uint8_t *frame = (uint8_t *)buf_reserve(out, FRAME_HEAD_BYTES + bytes);
    (void)protobuf_c_message_pack(message, frame + FRAME_HEAD_BYTES);
    out->bytes += FRAME_HEAD_BYTES + bytes;
    bytes += protocol_add_unknown(out);
    frame_head_encode((uint32_t)bytes, (uint8_t *)out->data + begin);
}

enum err link_secure(struct link *l, struct tls *tls, bool is_server,
                     const ProtobufCMessage *refusal, struct error *e)
{
    enum err err = tls_session_new(tls, is_server, &l->sealed, &l->tls, e);
    if (err != ERR_OK) {
        link_close(l, err, e->text);
        return err;
    }
    l->is_server = is_server;
    if (refusal != NULL)
        pack(&l->refusal, refusal, protobuf_c_message_get_packed_size(refusal));
    l->secured_by_ns = loop_now_ns(l->loop) + LINK_HANDSHAKE_MS * NS_PER_MS;
    send_sealed(l);
    timer_next(l);
    return ERR_OK;
}

const struct subject *link_peer(const struct link *l)
{
    return l->tls != NULL ? tls_session_peer(l->tls) : NULL;
}

void link_set_frame_max(struct link *l, size_t bytes)
{
    l->frame_max = bytes;
}

void link_send(struct link *l, const ProtobufCMessage *message)
{
    if (l->closing)
        return;
    size_t bytes = protobuf_c_message_get_packed_size(message);
    if (bytes > FRAME_BYTES_MAX) {
        link_close(l, ERR_TOO_LARGE, "a message of ours is larger than a frame may be");
        return;
    }
    pack(&l->out, message, bytes);
    loop_defer(l->loop, &l->flush);
}

size_t link_pending_bytes(const struct link *l)
{
    return l->out.bytes + loop_stream_pending(&l->stream);
}

static void say_end(struct link *l)
{
    if (l->tls != NULL)
        tls_session_end(l->tls, &l->sealed);
    send_sealed(l);
}

void link_close(struct link *l, enum err err, const char *why)
{
    if (l->closing)
        return;
    on_flush(&l->flush); /* a refusal that was just sent should arrive */
    if (l->closing)
        return; /* the flush itself gave up */
    say_end(l);
    l->closing = true;
    l->err = err;
    (void)snprintf(l->why, sizeof(l->why), "%s", why);
    loop_timer_stop(l->loop, &l->timer);
    loop_defer_cancel(&l->flush);
    loop_stream_close(&l->stream);
}

/* For a dialler that goes: closes and tells nobody. */
void link_abandon(struct link *l)
{
    l->callbacks = NULL;
    if (l->closing)
        return;
    on_flush(&l->flush);
    say_end(l);
    l->closing = true;
    loop_timer_stop(l->loop, &l->timer);
    loop_defer_cancel(&l->flush);
    loop_stream_close(&l->stream);
}

void link_set_timers(struct link *l, uint32_t heartbeat_ms, uint32_t dead_after_ms)
{
    l->heartbeat_ns = heartbeat_ms * NS_PER_MS;
    l->dead_after_ns = dead_after_ms * NS_PER_MS;
    timer_next(l);
}

uint64_t link_heard_ns(const struct link *l)
{
    return l->heard_ns;
}

void link_peer_address(const struct link *l, char *ret_text, size_t bytes)
{
    (void)snprintf(ret_text, bytes, "%s", l->peer);
}
