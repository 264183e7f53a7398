/* members.c - beats out, beats in. */
#include "control_plane/members.h"
#include "base/log.h"
#include "control_plane/registry.h"
#include "control_plane/trust.h"
#include "wire/link.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define SILENT_LINK_MS \
    5000u /* a connection that says nothing for so long is of no use: dial again */

struct member {
    struct members *all;
    char name[64], api_address[64], software[64];
    uint64_t epoch, functions; /* as it last said */
    bool reaches_store;
    struct dialler *dialler; /* NULL: ourselves */
    struct link *out, *in;   /* dialled by us, by it; NULL: none */
    uint64_t instance;       /* of its process */
    bool said_unreachable;
};
struct members {
    struct control_plane *cp;
    struct member_callbacks callbacks;
    void *user;
    struct member items[MEMBERS_MAX];
    uint32_t count, self;
    uint64_t instance; /* random: tells us from another process that claims our name */
    uint64_t epoch;
    bool leads, reaches_store;
    struct loop_timer beat;
};

static uint32_t index_of(const struct member *p)
{
    return (uint32_t)(p - p->all->items);
}

/* ---- what we say ---- */

static void send_more(struct member *to, Dirigent__MemberBeat *beat, const char *digest)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__BlobGet get = DIRIGENT__BLOB_GET__INIT, *gets[] = {&get};
    if (to->out == NULL)
        return;
    if (digest != NULL) {
        get.digest = (char *)digest;
        m.blob_gets = gets;
        m.n_blob_gets = 1;
    }
    beat->epoch = to->all->epoch;
    beat->leads = to->all->leads;
    beat->reaches_store = to->all->reaches_store;
    beat->functions = registry_count(to->all->cp->registry);
    beat->api_address = to->all->items[to->all->self].api_address;
    m.member = beat;
    link_send(to->out, &m.base);
}

static void send_beat(struct member *to, Dirigent__MemberBeat *beat)
{
    send_more(to, beat, NULL);
}

void members_send(struct members *m, uint32_t member, Dirigent__MemberBeat *beat,
                  const char *digest)
{
    send_more(&m->items[member], beat, digest);
}

static void beat_all(struct members *m)
{
    for (uint32_t i = 0; i < m->count; i++) {
        Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
        send_beat(&m->items[i], &beat);
    }
}

static void on_beat_timer(struct loop_timer *timer)
{
    struct members *m = container_of(timer, struct members, beat);
    beat_all(m);
    loop_timer_start(m->cp->loop, timer, loop_now_ns(m->cp->loop) + MEMBER_BEAT_MS * NS_PER_MS);
}

void members_say(struct members *m, uint64_t epoch, bool leads, bool reaches_store)
{
    bool is_news = epoch != m->epoch || leads != m->leads || reaches_store != m->reaches_store;
    m->epoch = epoch;
    m->leads = leads;
    m->reaches_store = reaches_store;
    if (is_news)
        beat_all(m);
}

void members_ask(struct members *m, uint32_t member, uint64_t epoch)
{
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    beat.ask = epoch;
    send_beat(&m->items[member], &beat);
}

void members_answer(struct members *m, uint32_t member, uint64_t epoch, bool hears)
{
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    beat.answer = epoch;
    beat.hears = hears;
    send_beat(&m->items[member], &beat);
}

/* ---- connections that we dial ---- */

static void on_dialled(struct dialler *d, void *user, struct link *link)
{
    struct member *p = user;
    struct members *m = p->all;
    Dirigent__ToControlPlane message = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    p->out = link;
    p->said_unreachable = false;
    hello.protocol_min = protocol_version_min();
    hello.protocol_max = protocol_version_max();
    hello.cluster = m->cp->settings.cluster_name;
    hello.role = DIRIGENT__ROLE__ROLE_CONTROL_PLANE;
    hello.name = m->items[m->self].name;
    hello.software = (char *)"dirigent " DIRIGENT_VERSION;
    hello.instance = m->instance;
    message.hello = &hello;
    link_send(link, &message.base);
    send_beat(p, &beat);
}

static void take_refusal(struct member *p, const Dirigent__Welcome *welcome)
{
    log_error("member.refused_us", LOG_STR("member", p->name), LOG_STR("why", welcome->refused));
    if (welcome->identity_taken)
        p->all->callbacks.on_rival(p->all->user, index_of(p));
}

/* The other side refuses, or sends code. */
static void on_out_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct member *p = user;
    Dirigent__FromControlPlane *m = dirigent__from_control_plane__unpack(NULL, bytes, data);
    if (m != NULL && m->welcome != NULL && m->welcome->refused[0] != '\0')
        take_refusal(p, m->welcome);
    for (size_t i = 0; m != NULL && i < m->n_blob_chunks; i++)
        p->all->callbacks.on_chunk(p->all->user, index_of(p), m->blob_chunks[i]);
    if (m != NULL)
        dirigent__from_control_plane__free_unpacked(m, NULL);
}

static void on_out_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct member *p = user;
    p->out = NULL;
}

static void on_dial_failed(struct dialler *d, void *user, const char *why)
{
    struct member *p = user;
    if (p->said_unreachable)
        return;
    p->said_unreachable = true;
    log_warn("member.unreachable", LOG_STR("member", p->name), LOG_STR("why", why));
}

/* ---- connections that we accept ---- */

static struct member *of_link(struct members *m, const struct link *link)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (m->items[i].in == link)
            return &m->items[i];
    return NULL;
}

static struct member *find(struct members *m, const char *name)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (strcmp(m->items[i].name, name) == 0)
            return &m->items[i];
    return NULL;
}

const char members_identity_taken[] = "another process with its identity is connected already";

const char *members_accept(struct members *m, const Dirigent__Hello *hello, struct link *link)
{
    struct member *p = find(m, hello->name);
    if (p == NULL)
        return "it is none of the control planes that this one was told of (--peers)";
    if (index_of(p) == m->self)
        return hello->instance == m->instance
                   ? "a control plane was told to be its own peer"
                   : "two control planes have this identity (--advertise)";
    if (p->in != NULL && p->instance != hello->instance)
        return members_identity_taken;
    struct link *old = p->in;
    bool was_up = old != NULL;
    p->in = link;
    p->instance = hello->instance;
    (void)snprintf(p->software, sizeof(p->software), "%s", hello->software);
    link_set_timers(link, 0, SILENT_LINK_MS);
    if (old != NULL)
        link_close(old, ERR_CLOSED, "replaced by a new connection");
    if (p->out == NULL) /* while it was away the pauses of our attempts have grown */
        dialler_hurry(p->dialler);
    if (!was_up) {
        log_info("member.up", LOG_STR("member", p->name));
        m->callbacks.on_up(m->user, index_of(p));
    }
    return NULL;
}

/* One that listens on all addresses is reached where it comes from. */
static void take_api_address(struct member *p, const char *address)
{
    char from[64];
    struct str host = address_host(address);
    const char *port = strrchr(address, ':');
    link_peer_address(p->in, from, sizeof(from));
    struct str own = address_host(from);
    bool is_v6 = memchr(own.data, ':', own.bytes) != NULL;
    if (address_is_any(host) && port != NULL)
        (void)snprintf(p->api_address, sizeof(p->api_address), is_v6 ? "[%.*s]%s" : "%.*s%s",
                       STR_ARG(own), port);
    else
        (void)snprintf(p->api_address, sizeof(p->api_address), "%s", address);
}

bool members_come_from(const struct members *m, const char *address)
{
    char from[64];
    for (uint32_t i = 0; i < m->count; i++) {
        if (m->items[i].in == NULL)
            continue;
        link_peer_address(m->items[i].in, from, sizeof(from));
        if (str_equal(address_host(from), address_host(address)))
            return true;
    }
    return false;
}

void members_message(struct members *m, struct link *link, const Dirigent__ToControlPlane *message)
{
    struct member *p = of_link(m, link);
    const Dirigent__MemberBeat *beat = message->member;
    if (p == NULL || beat == NULL)
        return;
    take_api_address(p, beat->api_address);
    p->epoch = beat->epoch;
    p->functions = beat->functions;
    p->reaches_store = beat->reaches_store;
    m->callbacks.on_beat(m->user, index_of(p), beat);
}

void members_closed(struct members *m, struct link *link, enum err err)
{
    struct member *p = of_link(m, link);
    if (p == NULL)
        return; /* was replaced */
    p->in = NULL;
    log_info("member.down", LOG_STR("member", p->name), LOG_STR("why", err_text(err)));
    m->callbacks.on_down(m->user, index_of(p), err == ERR_CLOSED);
}

/* ---- life ---- */

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct member *)a)->name, ((const struct member *)b)->name);
}

static enum err add(struct members *m, struct str name, struct error *e)
{
    struct member *p = &m->items[m->count];
    if (m->count == MEMBERS_MAX)
        return error_field(e, ERR_USAGE, "peers", "--peers: more than %u control planes in all",
                           MEMBERS_MAX);
    if (name.bytes >= sizeof(p->name))
        return error_field(e, ERR_USAGE, "peers", "--peers: '%.*s' is too long", STR_ARG(name));
    (void)snprintf(p->name, sizeof(p->name), "%.*s", STR_ARG(name));
    for (uint32_t i = 0; i < m->count; i++)
        if (strcmp(m->items[i].name, p->name) == 0)
            return error_field(e, ERR_USAGE, "peers",
                               "--peers: %s is there twice, or is this control plane itself",
                               p->name);
    m->count++;
    return ERR_OK;
}

static enum err add_all(struct members *m, const char *own, const char *others, struct error *e)
{
    enum err err = add(m, str_of(own), e);
    for (const char *at = others; err == ERR_OK;) {
        size_t bytes = strcspn(at, ",");
        err = add(m, (struct str){at, bytes}, e);
        if (at[bytes] == '\0')
            break;
        at += bytes + 1;
    }
    if (err != ERR_OK)
        return err;
    qsort(m->items, m->count, sizeof(m->items[0]), compare);
    for (uint32_t i = 0; i < m->count; i++) {
        m->items[i].all = m;
        if (strcmp(m->items[i].name, own) == 0)
            m->self = i;
    }
    return ERR_OK;
}

static enum err dial_all(struct members *m, struct error *e)
{
    static const struct dialler_callbacks callbacks = {
        .on_up = on_dialled,
        .on_failed = on_dial_failed,
        .link = {.on_frame = on_out_frame, .on_closed = on_out_closed}};
    enum err err = ERR_OK;
    for (uint32_t i = 0; i < m->count && err == ERR_OK; i++)
        if (i != m->self)
            err = dialler_new(m->cp->loop, m->items[i].name, trust_tls(m->cp->trust), &callbacks,
                              &m->items[i], &m->items[i].dialler, e);
    return err;
}

enum err members_new(struct control_plane *cp, const char *own, const char *others,
                     const struct member_callbacks *callbacks, void *user,
                     struct members **ret_members, struct error *e)
{
    struct members *m = mem_new(sizeof(*m));
    m->cp = cp;
    m->callbacks = *callbacks;
    m->user = user;
    loop_timer_init(&m->beat, on_beat_timer);
    enum err err = add_all(m, own, others, e);
    if (err == ERR_OK &&
        getrandom(&m->instance, sizeof(m->instance), 0) != (ssize_t)sizeof(m->instance))
        err = error_errno(e, "get a random number");
    if (err == ERR_OK)
        (void)snprintf(m->items[m->self].api_address, sizeof(m->items[m->self].api_address), "%s",
                       cp->settings.api);
    if (err == ERR_OK)
        err = dial_all(m, e);
    if (err != ERR_OK) {
        members_free(m);
        return err;
    }
    on_beat_timer(&m->beat);
    *ret_members = m;
    return ERR_OK;
}

void members_close(struct members *m)
{
    loop_timer_stop(m->cp->loop, &m->beat);
    for (uint32_t i = 0; i < m->count; i++) {
        dialler_free(m->items[i].dialler);
        m->items[i].dialler = NULL;
        m->items[i].out = NULL;
    }
}

void members_free(struct members *m)
{
    if (m == NULL)
        return;
    members_close(m);
    free(m);
}

uint32_t members_count(const struct members *m)
{
    return m->count;
}

uint32_t members_self(const struct members *m)
{
    return m->self;
}

const char *members_name(const struct members *m, uint32_t member)
{
    return m->items[member].name;
}

bool members_is_up(const struct members *m, uint32_t member)
{
    return member == m->self || m->items[member].in != NULL;
}

void members_said(const struct members *m, uint32_t member, struct member_said *ret)
{
    const struct member *p = &m->items[member];
    if (member == m->self)
        *ret = (struct member_said){.epoch = m->epoch,
                                    .functions = registry_count(m->cp->registry),
                                    .reaches_store = m->reaches_store,
                                    .software = "dirigent " DIRIGENT_VERSION};
    else
        *ret = (struct member_said){
            .epoch = p->epoch,
            .functions = p->functions,
            .heard_ms_ago = p->in == NULL
                                ? UINT64_MAX
                                : (loop_now_ns(m->cp->loop) - link_heard_ns(p->in)) / NS_PER_MS,
            .reaches_store = p->reaches_store,
            .software = p->software};
}

const char *members_api_address(const struct members *m, uint32_t member)
{
    return m->items[member].api_address;
}
