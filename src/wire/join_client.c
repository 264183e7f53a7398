/* join_client.c - one dialler for each control plane; the first that leads answers. */
#include "wire/join_client.h"
#include "dirigent.pb-c.h"
#include "wire/replicas.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ATTEMPTS 3u /* in vain, to each */

struct asked {
    struct joiner *all;
    char address[64];
    struct dialler *dialler;
    unsigned failures;
};
struct joiner {
    const struct join_order *order;
    struct loop *loop;
    struct tls *tls;
    struct asked items[REPLICAS_MAX];
    size_t count;
    struct loop_timer deadline;
    struct join_grant *grant;
    struct error *e;
    enum err err;
    char last[512]; /* why it did not go on */
};

void join_grant_done(struct join_grant *g)
{
    free(g->certificate);
    free(g->roots);
    free(g->addresses);
    *g = (struct join_grant){0};
}

static void end(struct joiner *j, enum err err)
{
    j->err = err;
    loop_stop(j->loop);
}

static void give_up(struct joiner *j)
{
    end(j, error_set(j->e, ERR_UNREACHABLE, "%s",
                     j->last[0] != '\0' ? j->last : "no control plane answered"));
}

/* ---- the answer ---- */

static enum err code_of(const char *name)
{
    for (int code = 0; code < ERR_COUNT; code++)
        if (strcmp(err_name((enum err)code), name) == 0)
            return (enum err)code;
    return ERR_FAILED;
}

static char *joined(char *const *items, size_t count, const char *fallback)
{
    struct buf text = {0};
    for (size_t i = 0; i < count; i++)
        buf_printf(&text, "%s%s", i > 0 ? "," : "", items[i]);
    if (count == 0)
        buf_append_str(&text, str_of(fallback));
    return buf_take_text(&text);
}

static void take_certificate(struct joiner *j, const struct subject *server,
                             const Dirigent__Certificate *m)
{
    struct join_request request = {.token = str_of(j->order->token),
                                   .role = j->order->role,
                                   .name = str_of(j->order->name),
                                   .csr = str_of(j->order->csr)};
    enum err err = join_accept(&request, str_of(j->order->pin), server, str_of(m->certificate),
                               str_of(m->roots), clock_real_s(), &j->grant->subject, j->e);
    if (err == ERR_OK) {
        j->grant->certificate = mem_strdup(m->certificate);
        j->grant->roots = mem_strdup(m->roots);
        j->grant->addresses = joined(m->control_planes, m->n_control_planes, j->order->addresses);
    }
    end(j, err);
}

static void take(struct asked *a, struct link *link, const Dirigent__Certificate *m)
{
    struct joiner *j = a->all;
    const struct subject *server = link_peer(link);
    if (m->refused[0] == '\0' && server != NULL) {
        take_certificate(j, server, m);
        return;
    }
    (void)snprintf(j->last, sizeof(j->last), "%s: %s", a->address, m->refused);
    if (m->retry_ms > 0)
        link_close(link, ERR_BUSY, "again later"); /* and is dialled again */
    else if (m->field[0] != '\0')
        end(j, error_field(j->e, code_of(m->code), m->field, "%s", m->refused));
    else
        end(j, error_set(j->e, code_of(m->code), "%s", m->refused));
}

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct asked *a = user;
    Dirigent__FromControlPlane *m = dirigent__from_control_plane__unpack(NULL, bytes, data);
    if (m == NULL) {
        link_close(link, ERR_PROTOCOL, "it sent something that is no message");
        return;
    }
    if (m->certificate != NULL)
        take(a, link, m->certificate);
    dirigent__from_control_plane__free_unpacked(m, NULL);
}

/* ---- asking ---- */

static void on_up(struct dialler *d, void *user, struct link *link)
{
    struct asked *a = user;
    const struct join_order *order = a->all->order;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__JoinRequest join = DIRIGENT__JOIN_REQUEST__INIT;
    join.token = (char *)order->token;
    join.role =
        order->role == NODE_WORKER ? DIRIGENT__ROLE__ROLE_WORKER : DIRIGENT__ROLE__ROLE_DATA_PLANE;
    join.name = (char *)order->name;
    join.csr = (char *)order->csr;
    m.join = &join;
    link_send(link, &m.base);
}

static void failed(struct asked *a, const char *why)
{
    struct joiner *j = a->all;
    bool all = true;
    a->failures++;
    (void)snprintf(j->last, sizeof(j->last), "%s: %s", a->address, why);
    for (size_t i = 0; i < j->count; i++)
        all = all && j->items[i].failures >= ATTEMPTS;
    if (all)
        give_up(j);
}

static void on_failed(struct dialler *d, void *user, const char *why)
{
    failed(user, why);
}

static void on_closed(struct link *link, void *user, enum err err, const char *why)
{
    if (err != ERR_BUSY)
        failed(user, why);
}

static void on_deadline(struct loop_timer *timer)
{
    give_up(container_of(timer, struct joiner, deadline));
}

static enum err add(struct joiner *j, struct str address, struct error *e)
{
    static const struct dialler_callbacks callbacks = {
        .on_up = on_up,
        .on_failed = on_failed,
        .link = {.on_frame = on_frame, .on_closed = on_closed}};
    struct asked *a = &j->items[j->count];
    if (j->count == REPLICAS_MAX || address.bytes >= sizeof(a->address))
        return error_set(e, ERR_USAGE, "'%.*s': at most %u addresses, as ip:port", STR_ARG(address),
                         REPLICAS_MAX);
    a->all = j;
    (void)snprintf(a->address, sizeof(a->address), "%.*s", STR_ARG(address));
    enum err err = dialler_new(j->loop, a->address, j->tls, &callbacks, a, &a->dialler, e);
    if (err == ERR_OK)
        j->count++;
    return err == ERR_INVALID ? ERR_USAGE : err;
}

static enum err dial_all(struct joiner *j, struct error *e)
{
    struct str rest = str_of(j->order->addresses);
    enum err err = ERR_OK;
    while (err == ERR_OK && rest.bytes > 0)
        err = add(j, str_split(rest, ',', &rest), e);
    return err;
}

enum err join_client_run(const struct join_order *order, struct join_grant *ret_grant,
                         struct error *e)
{
    struct joiner j = {.order = order, .grant = ret_grant, .e = e};
    uint32_t timeout_ms = order->timeout_ms > 0 ? order->timeout_ms : JOIN_TIMEOUT_MS;
    *ret_grant = (struct join_grant){0};
    enum err err = loop_new(&j.loop, e);
    if (err != ERR_OK)
        return err;
    j.tls = tls_new();
    loop_timer_init(&j.deadline, on_deadline);
    err = tls_set_joiner(j.tls, str_of(order->pin), e);
    if (err == ERR_OK)
        err = dial_all(&j, e);
    if (err == ERR_OK) {
        loop_timer_start(j.loop, &j.deadline, loop_now_ns(j.loop) + timeout_ms * NS_PER_MS);
        loop_run(j.loop);
        err = j.err;
    }
    loop_timer_stop(j.loop, &j.deadline);
    for (size_t i = 0; i < j.count; i++)
        dialler_free(j.items[i].dialler);
    loop_run_once(j.loop, 0);
    tls_free(j.tls);
    loop_free(j.loop);
    return err;
}
