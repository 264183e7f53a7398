/* credentials.c - one job at a time: make a request, install an answer, install roots. */
#include "wire/credentials.h"
#include "base/log.h"
#include "keys/key_file.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_PERIOD_NS (2 * NS_PER_S)
#define ASK_TIMEOUT_NS (10 * NS_PER_S)
#define RETRY_NS (10 * NS_PER_S)

enum job_kind { JOB_REQUEST, JOB_INSTALL, JOB_ROOTS };
struct job { /* belongs to its thread while it runs */
    struct credentials *owner;
    enum job_kind kind;
    const char *data_path;
    struct subject subject;
    struct buf first,
        second; /* install: certificate, roots; roots: first. Request: answer in first */
    struct identity identity; /* what is in force then */
    enum err err;
    struct error error;
    struct loop_post post;
    pthread_t thread;
};
struct credentials {
    struct loop *loop;
    struct tls *tls;
    struct identity identity;
    char *data_path, *addresses;
    char name[NODE_NAME_BYTES_MAX + 1];
    credentials_ask *ask;
    void *user;
    struct loop_timer timer;
    struct job *job; /* running; NULL: none */
    struct buf roots,
        asked; /* roots that wait for the job's end; the request that waits for an answer */
    uint64_t asked_ns, not_before_ns;
    bool is_wanted; /* now, whatever the clock says */
};

/* ---- jobs ---- */

static enum err reload(struct job *j)
{
    return identity_load(j->data_path, &j->subject, clock_real_s(), &j->identity, &j->error);
}

static void *job_run(void *user)
{
    struct job *j = user;
    switch (j->kind) {
    case JOB_REQUEST:
        j->err = identity_request(j->data_path, &j->first, &j->error);
        break;
    case JOB_INSTALL:
        j->err = identity_install(j->data_path, buf_str(&j->first), buf_str(&j->second),
                                  &j->subject, clock_real_s(), &j->error);
        j->err = j->err == ERR_OK ? reload(j) : j->err;
        break;
    case JOB_ROOTS:
        j->err =
            identity_install_roots(j->data_path, buf_str(&j->first), clock_real_s(), &j->error);
        j->err = j->err == ERR_OK ? reload(j) : j->err;
        break;
    }
    loop_post(j->owner->loop, &j->post);
    return NULL;
}

static void job_free(struct job *j)
{
    (void)pthread_join(j->thread, NULL);
    buf_done(&j->first);
    buf_done(&j->second);
    identity_done(&j->identity);
    j->owner->job = NULL;
    free(j);
}

static void retry_later(struct credentials *c)
{
    c->asked.bytes = 0;
    c->not_before_ns = loop_now_ns(c->loop) + RETRY_NS;
}

static void put_in_force(struct credentials *c, struct job *j)
{
    char end[TIME_TEXT_BYTES];
    struct error e = {0};
    if (tls_set_identity(c->tls, &j->identity, &e) != ERR_OK) {
        log_error("certificate.failed", LOG_STR("why", e.text));
        return;
    }
    identity_done(&c->identity);
    c->identity = j->identity;
    j->identity = (struct identity){0};
    time_text(c->identity.times.not_after_s, end);
    log_info(j->kind == JOB_ROOTS ? "roots.installed" : "certificate.renewed",
             LOG_STR("valid_until", end), LOG_U64("roots", c->identity.roots.count));
}

static void ask(struct credentials *c);
static void roots_begin(struct credentials *c);

static void on_job_done(struct loop_post *post)
{
    struct job *j = container_of(post, struct job, post);
    struct credentials *c = j->owner;
    if (j->err != ERR_OK) {
        log_warn("certificate.not_renewed", LOG_STR("why", j->error.text));
        retry_later(c);
    } else if (j->kind == JOB_REQUEST) {
        c->asked.bytes = 0;
        buf_append(&c->asked, j->first.data, j->first.bytes);
        buf_append(&c->asked, "", 1);
        ask(c);
    } else {
        c->asked.bytes = 0;
        put_in_force(c, j);
    }
    job_free(j);
    if (c->roots.bytes > 0)
        roots_begin(c);
}

static void job_begin(struct credentials *c, enum job_kind kind, struct str first,
                      struct str second)
{
    struct job *j = mem_new(sizeof(*j));
    j->owner = c;
    j->kind = kind;
    j->data_path = c->data_path;
    j->subject = c->identity.subject;
    j->post.on_post = on_job_done;
    buf_append(&j->first, first.data, first.bytes);
    buf_append(&j->second, second.data, second.bytes);
    c->job = j;
    int failed = pthread_create(&j->thread, NULL, job_run, j);
    if (failed == 0)
        return;
    log_warn("certificate.not_renewed", LOG_STR("why", strerror(failed)));
    buf_done(&j->first);
    buf_done(&j->second);
    c->job = NULL;
    free(j);
    retry_later(c);
}

/* ---- renewing ---- */

static void ask(struct credentials *c)
{
    c->asked_ns = loop_now_ns(c->loop);
    if (c->ask == NULL || !c->ask(c->user, c->asked.data))
        retry_later(c);
}

static bool is_due(const struct credentials *c)
{
    return c->is_wanted || clock_real_s() >= identity_renew_s(&c->identity);
}

static void on_timer(struct loop_timer *timer)
{
    struct credentials *c = container_of(timer, struct credentials, timer);
    uint64_t now_ns = loop_now_ns(c->loop);
    loop_timer_start(c->loop, timer, now_ns + LOOK_PERIOD_NS);
    if (c->asked.bytes > 0 && now_ns > c->asked_ns + ASK_TIMEOUT_NS)
        retry_later(c);
    if (c->job == NULL && c->asked.bytes == 0 && now_ns >= c->not_before_ns && is_due(c))
        job_begin(c, JOB_REQUEST, STR_NONE, STR_NONE);
}

void credentials_start(struct credentials *c, credentials_ask *ask_call, void *user)
{
    c->ask = ask_call;
    c->user = user;
    if (c->tls != NULL)
        loop_timer_start(c->loop, &c->timer, loop_now_ns(c->loop));
}

void credentials_stop(struct credentials *c)
{
    c->ask = NULL;
    loop_timer_stop(c->loop, &c->timer);
}

void credentials_take(struct credentials *c, const Dirigent__Certificate *m)
{
    if (c->job != NULL || c->asked.bytes == 0)
        return; /* an answer to none, or given already */
    if (m->refused[0] != '\0') {
        log_warn("certificate.not_renewed", LOG_STR("why", m->refused));
        retry_later(c);
        return;
    }
    c->is_wanted = false;
    job_begin(c, JOB_INSTALL, str_of(m->certificate), str_of(m->roots));
}

static void roots_begin(struct credentials *c)
{
    job_begin(c, JOB_ROOTS, buf_str(&c->roots), STR_NONE);
    c->roots.bytes = 0;
}

static bool is_in_force(const struct credentials *c, struct str pem)
{
    struct buf own cleanup(buf_done) = {0};
    roots_append_pem(&c->identity.roots, &own);
    return str_equal(buf_str(&own), pem);
}

/* The last root is the newest, and signs after a switch. */
static bool is_of_newest(const struct credentials *c, struct str pem)
{
    struct roots all cleanup(roots_done) = {0};
    struct subject subject;
    if (roots_from_pem(pem, &all, NULL) != ERR_OK)
        return false;
    struct roots newest = {.items = {all.items[all.count - 1]}, .count = 1}; /* borrowed */
    return certificate_verify(c->identity.certificate, &newest, clock_real_s(), &subject, NULL) ==
           ERR_OK;
}

void credentials_take_roots(struct credentials *c, const Dirigent__Roots *m)
{
    if (c->tls == NULL)
        return;
    if (m->renew && !is_of_newest(c, str_of(m->pem))) {
        c->is_wanted = true;
        c->not_before_ns = 0;
    }
    c->roots.bytes = 0;
    if (!is_in_force(c, str_of(m->pem)))
        buf_append(&c->roots, m->pem, strlen(m->pem));
    if (c->job == NULL && c->roots.bytes > 0)
        roots_begin(c);
}

/* ---- start ---- */

static bool is_loopback_only(const char *addresses)
{
    for (struct str rest = str_of(addresses), one; rest.bytes > 0;) {
        one = str_split(rest, ',', &rest);
        cleanup(free_pointer) char *address = mem_strndup(one.data, one.bytes);
        if (!address_is_loopback(address_host(address)))
            return false;
    }
    return true;
}

static enum err read_addresses(struct credentials *c, const char *given, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" CREDENTIALS_ADDRESSES_FILE, c->data_path);
    struct buf text cleanup(buf_done) = {0};
    if (given[0] != '\0') {
        c->addresses = mem_printf("%s", given);
        return ERR_OK;
    }
    enum err err = public_file_read(path, &text, e);
    if (err == ERR_NOT_FOUND)
        c->addresses = mem_printf("%s", CREDENTIALS_ADDRESS_DEFAULT);
    if (err == ERR_OK) {
        struct str rest, line = str_split(buf_str(&text), '\n', &rest);
        c->addresses = mem_printf("%.*s", STR_ARG(line));
    }
    return err == ERR_NOT_FOUND ? ERR_OK : err;
}

static const char *command_of(enum node_role role)
{
    return role == NODE_WORKER ? "worker" : "data-plane";
}

static enum err load(struct credentials *c, const struct credentials_options *o, struct error *e)
{
    struct subject expect = {.role = o->role};
    (void)snprintf(expect.name, sizeof(expect.name), "%s", o->name);
    enum err err = identity_load(c->data_path, &expect, clock_real_s(), &c->identity, e);
    if (err == ERR_NOT_FOUND && strcmp(o->tls, "auto") == 0 && is_loopback_only(c->addresses))
        return ERR_OK;
    if (err == ERR_NOT_FOUND)
        return error_set(
            e, err,
            "this machine has not joined the cluster ('%s/tls' is not there): make a "
            "token by `dirigent token create --role %s` where the control plane is, and "
            "run the command that it prints; or say --tls off, here and there, in a "
            "network that you trust",
            c->data_path, command_of(o->role));
    if (err != ERR_OK)
        return err;
    c->tls = tls_new();
    (void)snprintf(c->name, sizeof(c->name), "%s", c->identity.subject.name);
    return tls_set_identity(c->tls, &c->identity, e);
}

enum err credentials_new(const struct credentials_options *o, struct credentials **ret_credentials,
                         struct error *e)
{
    struct credentials *c = mem_new(sizeof(*c));
    c->loop = o->loop;
    c->data_path = mem_printf("%s", o->data_path);
    (void)snprintf(c->name, sizeof(c->name), "%s", o->name);
    loop_timer_init(&c->timer, on_timer);
    enum err err = ERR_OK;
    if (strcmp(o->tls, "auto") != 0 && strcmp(o->tls, "on") != 0 && strcmp(o->tls, "off") != 0)
        err =
            error_field(e, ERR_USAGE, "tls", "--tls must be auto, on or off, and is '%s'", o->tls);
    if (err == ERR_OK)
        err = read_addresses(c, o->addresses, e);
    if (err == ERR_OK && strcmp(o->tls, "off") != 0)
        err = load(c, o, e);
    if (err != ERR_OK) {
        credentials_free(c);
        return err;
    }
    *ret_credentials = c;
    return ERR_OK;
}

void credentials_free(struct credentials *c)
{
    if (c == NULL)
        return;
    credentials_stop(c);
    c->roots.bytes = 0;
    while (c->job != NULL)
        loop_run_once(c->loop, 10);
    tls_free(c->tls);
    identity_done(&c->identity);
    buf_done(&c->roots);
    buf_done(&c->asked);
    free(c->data_path);
    free(c->addresses);
    free(c);
}

struct tls *credentials_tls(const struct credentials *c)
{
    return c->tls;
}

const char *credentials_addresses(const struct credentials *c)
{
    return c->addresses;
}

const char *credentials_name(const struct credentials *c)
{
    return c->name;
}
