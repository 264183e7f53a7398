/* replicas.c - one dialler for each control plane, and who of them leads. */
#include "wire/replicas.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* JOINED: has our whole Hello. At most one at a time, or what happens after a Hello could not be
 * told to whom it belongs. NAMED: has our name only. */
enum replica_state { REPLICA_DOWN, REPLICA_NAMED, REPLICA_JOINED };

struct replica {
    struct replicas *all;
    char address[64];
    struct dialler *dialler;
    struct link *link; /* NULL: down */
    enum replica_state state;
};
struct replicas {
    struct loop *loop;
    struct credentials *credentials;
    struct replicas_callbacks callbacks;
    void *user;
    uint64_t epoch;
    struct replica items[REPLICAS_MAX];
    size_t count;
};

static struct replica *joined(const struct replicas *r)
{
    for (size_t i = 0; i < r->count; i++)
        if (r->items[i].state == REPLICA_JOINED)
            return (struct replica *)&r->items[i];
    return NULL;
}

static void send_name(struct replica *p)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    p->state = REPLICA_NAMED;
    hello.protocol_min = protocol_version_min();
    hello.protocol_max = protocol_version_max();
    p->all->callbacks.on_name(p->all->user, &hello);
    hello.standing = true;
    m.hello = &hello;
    link_send(p->link, &m.base);
}

static void join(struct replica *p)
{
    p->state = REPLICA_JOINED;
    p->all->callbacks.on_hello(p->all->user, p->link);
}

/* It is not the one any more. */
static void leave(struct replica *p, const char *why)
{
    p->state = p->link != NULL ? REPLICA_NAMED : REPLICA_DOWN;
    p->all->callbacks.on_lost(p->all->user, why);
}

static void on_up(struct dialler *d, void *user, struct link *link)
{
    struct replica *p = user;
    p->link = link;
    if (joined(p->all) == NULL)
        join(p);
    else
        send_name(p);
}

static void on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct replica *p = user;
    bool was_joined = p->state == REPLICA_JOINED;
    p->link = NULL;
    p->state = REPLICA_DOWN;
    if (was_joined)
        leave(p, why);
}

static void take_standby(struct replica *p, const Dirigent__Standby *standby)
{
    link_set_timers(p->link, standby->heartbeat_ms, standby->dead_after_ms);
    if (p->state == REPLICA_JOINED)
        leave(p, "it stands by");
}

static void refuse_stale(struct replica *p, uint64_t epoch)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    log_warn("control_plane.stale", LOG_STR("address", p->address), LOG_U64("epoch", epoch),
             LOG_U64("newest", p->all->epoch));
    m.stale_epoch = p->all->epoch;
    link_send(p->link, &m.base);
    link_close(p->link, ERR_STALE, "its orders are of an older epoch");
}

static void take_hello_wanted(struct replica *p)
{
    struct replica *other = joined(p->all);
    if (other == p)
        return; /* it asked while our whole Hello was on its way */
    if (other != NULL)
        leave(other, "another replica leads");
    join(p);
}

static void take_certificates(struct replicas *r, const Dirigent__FromControlPlane *m)
{
    if (r->credentials == NULL)
        return;
    if (m->roots != NULL)
        credentials_take_roots(r->credentials, m->roots);
    if (m->certificate != NULL)
        credentials_take(r->credentials, m->certificate);
}

static bool ask_certificate(void *user, const char *csr)
{
    struct link *link = replicas_link(user);
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__RenewRequest renew = DIRIGENT__RENEW_REQUEST__INIT;
    if (link == NULL)
        return false;
    renew.csr = (char *)csr;
    m.renew = &renew;
    link_send(link, &m.base);
    return true;
}

static void take(struct replica *p, const Dirigent__FromControlPlane *m)
{
    if (m->standby != NULL) {
        dialler_settled(p->dialler);
        take_standby(p, m->standby);
        return;
    }
    if (m->epoch < p->all->epoch) {
        refuse_stale(p, m->epoch);
        return;
    }
    p->all->epoch = m->epoch;
    if (m->welcome != NULL && m->welcome->refused[0] == '\0')
        dialler_settled(p->dialler);
    take_certificates(p->all, m);
    if (m->hello_wanted)
        take_hello_wanted(p);
    else if (p->state == REPLICA_JOINED)
        p->all->callbacks.on_message(p->all->user, p->link, m);
    else
        link_close(p->link, ERR_PROTOCOL, "it gives orders and never asked who we are");
}

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct replica *p = user;
    ProtobufCAllocator *allocator = p->all->callbacks.allocator;
    Dirigent__FromControlPlane *m = dirigent__from_control_plane__unpack(allocator, bytes, data);
    if (m == NULL) {
        link_close(link, ERR_PROTOCOL, "the control plane sent something that is no message");
        return;
    }
    take(p, m);
    dirigent__from_control_plane__free_unpacked(m, allocator);
}

static void on_failed(struct dialler *d, void *user, const char *why)
{
    struct replica *p = user;
    p->all->callbacks.on_failed(p->all->user, p->address, why);
}

static enum err add(struct replicas *r, struct str address, struct error *e)
{
    static const struct dialler_callbacks callbacks = {
        .on_up = on_up,
        .on_failed = on_failed,
        .link = {.on_frame = on_frame, .on_closed = on_closed}};
    struct replica *p = &r->items[r->count];
    if (r->count == REPLICAS_MAX)
        return error_set(e, ERR_INVALID, "more than %u control planes are given", REPLICAS_MAX);
    if (address.bytes == 0 || address.bytes >= sizeof(p->address))
        return error_set(e, ERR_INVALID, "'%.*s' is no address of a control plane",
                         STR_ARG(address));
    (void)snprintf(p->address, sizeof(p->address), "%.*s", STR_ARG(address));
    for (size_t i = 0; i < r->count; i++)
        if (strcmp(r->items[i].address, p->address) == 0)
            return error_set(e, ERR_INVALID, "the control plane %s is given twice", p->address);
    p->all = r;
    struct tls *tls = r->credentials != NULL ? credentials_tls(r->credentials) : NULL;
    enum err err = dialler_new(r->loop, p->address, tls, &callbacks, p, &p->dialler, e);
    if (err == ERR_OK)
        r->count++;
    return err;
}

enum err replicas_new(struct loop *loop, const char *addresses, struct credentials *credentials,
                      const struct replicas_callbacks *callbacks, void *user,
                      struct replicas **ret_replicas, struct error *e)
{
    struct replicas *r = mem_new(sizeof(*r));
    enum err err = ERR_OK;
    r->loop = loop;
    r->callbacks = *callbacks;
    r->user = user;
    r->credentials = credentials;
    for (const char *at = addresses; err == ERR_OK;) {
        size_t bytes = strcspn(at, ",");
        err = add(r, (struct str){at, bytes}, e);
        if (at[bytes] == '\0')
            break;
        at += bytes + 1;
    }
    if (err != ERR_OK) {
        replicas_free(r);
        return err;
    }
    if (credentials != NULL)
        credentials_start(credentials, ask_certificate, r);
    *ret_replicas = r;
    return ERR_OK;
}

void replicas_free(struct replicas *r)
{
    if (r == NULL)
        return;
    if (r->credentials != NULL)
        credentials_stop(r->credentials);
    for (size_t i = 0; i < r->count; i++)
        dialler_free(r->items[i].dialler);
    free(r);
}

struct link *replicas_link(const struct replicas *r)
{
    const struct replica *p = joined(r);
    return p != NULL ? p->link : NULL;
}

uint64_t replicas_epoch(const struct replicas *r)
{
    return r->epoch;
}

size_t replicas_count(const struct replicas *r)
{
    return r->count;
}
