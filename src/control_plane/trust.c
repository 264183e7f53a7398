/* trust.c - the authority's record, and what follows when it changes. */
#include "control_plane/trust.h"
#include "base/log.h"
#include "control_plane/links.h"
#include "keys/join.h"
#include "keys/key_file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLUSTER_NAME_DEFAULT "dirigent"
#define LOOK_PERIOD_NS (5 * NS_PER_S)

struct trust {
    struct control_plane *cp;
    struct tls *tls;    /* NULL: off */
    uint64_t record_id; /* in the store; 0: none */
    struct authority_bundle bundle;
    struct identity identity;
    struct loop_timer timer;
    struct store_write write; /* of the first one */
    struct authority_bundle first;
    bool changing;
};

uint64_t trust_lifetime_s(const struct trust *t)
{
    return t->cp->settings.certificate_lifetime / 1000;
}

void trust_member_name(const char *address, char *ret_name, size_t bytes)
{
    size_t n = 0;
    for (; *address != '\0' && n + 1 < bytes; address++) {
        bool plain = (*address >= '0' && *address <= '9') || (*address >= 'a' && *address <= 'z') ||
                     (*address >= 'A' && *address <= 'Z') || *address == '.' || *address == '-';
        if (plain || n > 0)
            ret_name[n++] = plain ? *address : '_';
    }
    ret_name[n] = '\0';
}

/* ---- our own certificate ---- */

static enum err issue(const struct trust *t, struct identity *ret, struct error *e)
{
    const struct authority *a = authority_bundle_signer(&t->bundle);
    struct buf csr cleanup(buf_done) = {0}, pem cleanup(buf_done) = {0},
                   roots cleanup(buf_done) = {0};
    struct identity i cleanup(identity_done) = {.key = key_make()};
    struct issue_order order = {.lifetime_s = trust_lifetime_s(t)};
    char name[NODE_NAME_BYTES_MAX + 1];
    trust_member_name(t->cp->name, name, sizeof(name));
    enum err err = subject_make(str_of(authority_cluster(a)), NODE_CONTROL_PLANE, str_of(name),
                                &order.subject, e);
    csr_append_pem(i.key, &csr);
    if (err == ERR_OK)
        err = authority_issue(a, buf_str(&csr), &order, clock_real_s(), &pem, e);
    if (err == ERR_OK)
        err = certificate_from_pem(buf_str(&pem), &i.certificate, e);
    authority_bundle_roots(&t->bundle, &roots);
    if (err == ERR_OK)
        err = roots_from_pem(buf_str(&roots), &i.roots, e);
    if (err == ERR_OK)
        err = certificate_times_of(i.certificate, &i.times, e);
    if (err != ERR_OK)
        return err;
    i.subject = order.subject;
    *ret = i;
    i = (struct identity){0};
    return ERR_OK;
}

static enum err renew(struct trust *t, struct error *e)
{
    struct identity i cleanup(identity_done) = {0};
    enum err err = issue(t, &i, e);
    if (err == ERR_OK)
        err = tls_set_identity(t->tls, &i, e);
    if (err != ERR_OK)
        return err;
    identity_done(&t->identity);
    t->identity = i;
    i = (struct identity){0};
    return ERR_OK;
}

static void on_timer(struct loop_timer *timer)
{
    struct trust *t = container_of(timer, struct trust, timer);
    struct error e = {0};
    loop_timer_start(t->cp->loop, timer, loop_now_ns(t->cp->loop) + LOOK_PERIOD_NS);
    if (t->identity.certificate == NULL || clock_real_s() < identity_renew_s(&t->identity))
        return;
    if (renew(t, &e) == ERR_OK)
        log_info("certificate.renewed");
    else
        log_error("certificate.not_renewed", LOG_STR("why", e.text));
}

/* ---- the authority ---- */

/* Takes `bundle`. */
static enum err put_in_force(struct trust *t, struct authority_bundle *bundle, struct error *e)
{
    authority_bundle_done(&t->bundle);
    t->bundle = *bundle;
    *bundle = (struct authority_bundle){0};
    enum err err = renew(t, e);
    if (err != ERR_OK)
        return err;
    const struct authority *a = authority_bundle_signer(&t->bundle);
    struct pin pin = authority_pin(a);
    log_info("authority.in_force", LOG_STR("cluster", authority_cluster(a)),
             LOG_STR("ca_hash", pin.text), LOG_U64("trusted", t->bundle.count));
    links_tell_roots(t->cp->links);
    return ERR_OK;
}

enum err trust_load(struct trust *t, uint64_t id, const char *value, struct error *e)
{
    struct authority_bundle bundle cleanup(authority_bundle_done) = {0};
    const char *wanted = t->cp->settings.cluster_name;
    if (value == NULL)
        return ERR_OK; /* what is in force stays: nobody deletes it */
    t->record_id = id;
    if (t->tls == NULL)
        return ERR_OK;
    enum err err = authority_bundle_read(str_of(value), &bundle, e);
    if (err != ERR_OK) {
        error_prefix(e, "the record of the cluster's authority");
        return err;
    }
    const char *is = authority_cluster(bundle.items[0]);
    if (wanted[0] != '\0' && strcmp(wanted, is) != 0)
        return error_field(e, ERR_CONFLICT, "cluster_name",
                           "the store is that of the cluster '%s', and --cluster-name says '%s'",
                           is, wanted);
    return put_in_force(t, &bundle, e);
}

static char *text_of(const struct authority_bundle *bundle)
{
    struct buf text = {0};
    authority_bundle_write(bundle, &text);
    return buf_take_text(&text);
}

static void write_done(struct store_write *write)
{
    secret_wipe(write->value, strlen(write->value));
    free(write->value);
    write->value = NULL;
}

static void on_first_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct trust *t = container_of(write, struct trust, write);
    struct error story = {0};
    write_done(write);
    t->changing = false;
    if (err == ERR_OK) {
        t->record_id = write->id;
        err = put_in_force(t, &t->first, &story);
        e = &story;
    }
    if (err != ERR_OK)
        log_error("authority.not_made", LOG_STR("why", e->text));
    authority_bundle_done(&t->first);
}

static void submit(struct trust *t, struct store_write *write,
                   const struct authority_bundle *bundle,
                   void (*on_done)(struct store_write *, enum err, const struct error *))
{
    *write = (struct store_write){.kind = STORE_AUTHORITY,
                                  .id = t->record_id != 0 ? t->record_id : t->cp->next_id++,
                                  .value = text_of(bundle),
                                  .on_done = on_done};
    write->next_id = t->cp->next_id;
    t->changing = true;
    store_submit(t->cp->store, write);
}

void trust_lead(struct trust *t)
{
    const char *name = t->cp->settings.cluster_name;
    struct error e = {0};
    if (t->tls == NULL || t->record_id != 0)
        return;
    if (authority_bundle_make(str_of(name[0] != '\0' ? name : CLUSTER_NAME_DEFAULT), clock_real_s(),
                              &t->first, &e) == ERR_OK)
        submit(t, &t->write, &t->first, on_first_stored);
    else
        log_error("authority.not_made", LOG_STR("why", e.text));
}

/* ---- rotation ---- */

static void on_rotated(struct store_write *write, enum err err, const struct error *e)
{
    struct trust_change *change = container_of(write, struct trust_change, write);
    struct error story = {0};
    write_done(write);
    change->trust->changing = false;
    if (err == ERR_OK) {
        err = put_in_force(change->trust, &change->next, &story);
        e = &story;
    }
    authority_bundle_done(&change->next);
    change->on_done(change, err, e);
}

static enum err copy_of(const struct authority_bundle *b, struct authority_bundle *ret,
                        struct error *e)
{
    char *text = text_of(b);
    enum err err = authority_bundle_read(str_of(text), ret, e);
    secret_wipe(text, strlen(text));
    free(text);
    return err;
}

static enum err next_step(struct trust *t, struct trust_change *change, struct error *e)
{
    uint64_t lifetime_s = trust_lifetime_s(t);
    struct authority_bundle *b = &change->next;
    if (t->bundle.count == 0 || t->changing)
        return error_set(e, ERR_CONFLICT,
                         t->tls == NULL ? "this cluster has no authority: its programs talk in the "
                                          "clear (--tls)"
                                        : "the authority is being made or changed: try again");
    enum err err = copy_of(&t->bundle, b, e);
    if (err != ERR_OK)
        return err;
    if (b->count == 1)
        return authority_bundle_begin(b, clock_real_s(), e);
    if (b->signer == 0)
        return authority_bundle_switch(b, clock_real_s(), lifetime_s, change->force, e);
    return authority_bundle_finish(b, clock_real_s(), lifetime_s, change->force, e);
}

void trust_rotate(struct trust *t, struct trust_change *change)
{
    struct error e = {0};
    change->trust = t;
    enum err err = next_step(t, change, &e);
    if (err == ERR_OK) {
        submit(t, &change->write, &change->next, on_rotated);
        return;
    }
    authority_bundle_done(&change->next);
    change->on_done(change, err, &e);
}

/* ---- life ---- */

enum err trust_new(struct control_plane *cp, struct trust **ret_trust, struct error *e)
{
    const char *mode = cp->settings.tls;
    bool is_auto = strcmp(mode, "auto") == 0, is_off = strcmp(mode, "off") == 0;
    bool inside = address_is_loopback(address_host(cp->settings.cluster));
    if (!is_auto && !is_off && strcmp(mode, "on") != 0)
        return error_field(e, ERR_USAGE, "tls", "--tls must be auto, on or off, and is '%s'", mode);
    if (cp->settings.certificate_lifetime / 1000 < CERTIFICATE_LIFETIME_S_MIN ||
        cp->settings.certificate_lifetime / 1000 > CERTIFICATE_LIFETIME_S_MAX)
        return error_field(e, ERR_USAGE, "certificate_lifetime",
                           "--certificate-lifetime must be from 1m to 90 days (2160h)");
    if (cp->settings.cluster_name[0] != '\0') {
        enum err err = cluster_name_check(str_of(cp->settings.cluster_name), e);
        if (err != ERR_OK)
            return error_prefix(e, "--cluster-name");
    }
    struct trust *t = mem_new(sizeof(*t));
    t->cp = cp;
    loop_timer_init(&t->timer, on_timer);
    if (!is_off && !(is_auto && inside)) {
        t->tls = tls_new();
        loop_timer_start(cp->loop, &t->timer, loop_now_ns(cp->loop) + LOOK_PERIOD_NS);
    } else if (!inside) {
        log_warn("tls.off", LOG_STR("why", "--tls off: whoever reaches the cluster's address can "
                                           "be a worker or a data plane"));
    }
    *ret_trust = t;
    return ERR_OK;
}

void trust_free(struct trust *t)
{
    if (t == NULL)
        return;
    loop_timer_stop(t->cp->loop, &t->timer);
    tls_free(t->tls);
    identity_done(&t->identity);
    authority_bundle_done(&t->bundle);
    authority_bundle_done(&t->first);
    free(t);
}

bool trust_is_on(const struct trust *t)
{
    return t->tls != NULL;
}

struct tls *trust_tls(const struct trust *t)
{
    return t->tls;
}

const struct authority_bundle *trust_bundle(const struct trust *t)
{
    return t->bundle.count > 0 ? &t->bundle : NULL;
}

const struct identity *trust_identity(const struct trust *t)
{
    return t->identity.certificate != NULL ? &t->identity : NULL;
}
