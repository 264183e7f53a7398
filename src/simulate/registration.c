/* registration.c - functions, over the HTTP API: connections that are kept, each with one request
 * at a time, so that the store has many to write together. Before them one connection looks who is
 * there already. */
#include "http/http1.h"
#include "simulate/sim.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECTIONS_MAX 256u
#define ANSWER_BYTES_MAX (64u * MIB)

struct caller { /* one connection to the API */
    struct registration *registration;
    struct loop_stream stream;
    bool open;
    struct buf in;
    size_t scanned, function; /* function: the one that is being registered */
};
enum step { STEP_WORKERS, STEP_DATA_PLANES, STEP_FUNCTIONS };
struct registration {
    struct sim *sim;
    void (*on_done)(struct sim *s, enum err err, const struct error *e);
    struct sockaddr_storage address;
    socklen_t address_bytes;
    enum step step;
    struct caller *callers;
    size_t caller_count, next, registered;
    bool done;
};

static void finish(struct registration *r, enum err err, const struct error *e)
{
    if (r->done)
        return;
    r->done = true;
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (r->callers[i].open)
            loop_stream_close(&r->callers[i].stream);
    r->on_done(r->sim, err, e);
}

static void fail(struct registration *r, enum err code, const char *what, const char *why)
{
    struct error e = {0};
    error_set(&e, code, "the API at %s: %s%s", r->sim->settings.api, what, why);
    finish(r, code, &e);
}

/* ---- requests ---- */

static void send_get(struct caller *c, const char *path)
{
    cleanup(buf_done) struct buf out = {0};
    buf_printf(&out, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path,
               c->registration->sim->settings.api);
    loop_stream_send(&c->stream, out.data, out.bytes);
}

/* A sandbox is idle for one or two windows, then it goes; all of one function's calls would fit one
 * worker many times. */
static void send_function(struct caller *c)
{
    struct registration *r = c->registration;
    const struct simulate_settings *o = &r->sim->settings;
    char body[512];
    cleanup(buf_done) struct buf out = {0};
    c->function = r->next++;
    int bytes =
        snprintf(body, sizeof(body),
                 "{\"command\":[\"/bin/"
                 "true\"],\"memory\":\"4Mi\",\"cpu\":\"10m\",\"scaling\":{\"concurrency\":%" PRIu64
                 ",\"stable_window\":\"%" PRIu64 "ms\"}}",
                 o->concurrency, o->window);
    buf_printf(&out,
               "PUT /v1/functions/" FUNCTION_NAME
               "%zu HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
               "Content-Length: %d\r\n\r\n%s",
               c->function, o->api, bytes, body);
    loop_stream_send(&c->stream, out.data, out.bytes);
}

/* ---- answers ---- */

/* Who must not be there: a peer that is none of ours, or one of ours that is connected, to another
 * simulation. *ret_name is the caller's to free. */
enum stranger { STRANGER_NONE, STRANGER_REAL, STRANGER_SIMULATED };

static enum stranger find_stranger(struct str body, const char *prefix, char **ret_name)
{
    json_t *json = json_loadb(body.data, body.bytes, 0, NULL), *item;
    enum stranger found = STRANGER_NONE;
    size_t i;
    json_array_foreach(json_object_get(json, "items"), i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        const char *state = json_string_value(json_object_get(item, "state"));
        if (found != STRANGER_NONE || name == NULL || state == NULL)
            continue;
        bool ours = strncmp(name, prefix, strlen(prefix)) == 0;
        if (!ours && strcmp(state, "dead") != 0)
            found = STRANGER_REAL;
        else if (ours && strcmp(state, "alive") == 0)
            found = STRANGER_SIMULATED;
        if (found != STRANGER_NONE)
            *ret_name = mem_strdup(name);
    }
    json_decref(json);
    return found;
}

static void refuse(struct registration *r, enum stranger stranger, const char *what,
                   const char *name)
{
    struct error e = {0};
    const char *why = stranger == STRANGER_REAL
                          ? "is real: simulated workers would be given its functions. Start a "
                            "control plane for the simulation, or "
                            "say --force"
                          : "belongs to another simulation that runs now";
    error_set(&e, ERR_CONFLICT, "the %s '%s' of the control plane at %s %s", what, name,
              r->sim->settings.api, why);
    finish(r, ERR_CONFLICT, &e);
}

static void answer_check(struct caller *c, struct str body)
{
    struct registration *r = c->registration;
    bool of_workers = r->step == STEP_WORKERS;
    cleanup(free_pointer) char *name = NULL;
    enum stranger stranger = find_stranger(body, of_workers ? WORKER_NAME : PLANE_NAME, &name);
    if (stranger != STRANGER_NONE && !r->sim->settings.force) {
        refuse(r, stranger, of_workers ? "worker" : "data plane", name);
        return;
    }
    r->step = of_workers ? STEP_DATA_PLANES : STEP_FUNCTIONS;
    if (r->step == STEP_DATA_PLANES)
        send_get(c, "/v1/data-planes");
    else
        r->on_done(r->sim, ERR_MORE, NULL); /* goes on with registration_begin() */
}

static void answer_take(struct caller *c, unsigned status, struct str body)
{
    struct registration *r = c->registration;
    if (status != 200 && status != 201) {
        cleanup(free_pointer) char *text =
            mem_strndup(body.data != NULL ? body.data : "", MIN(body.bytes, (size_t)400));
        char what[96];
        snprintf(what, sizeof(what), "%s answered %u: ",
                 r->step == STEP_FUNCTIONS ? "registering a function was" : "a list was", status);
        fail(r, ERR_FAILED, what, text);
        return;
    }
    if (r->step != STEP_FUNCTIONS) {
        answer_check(c, body);
        return;
    }
    r->registered++;
    if (r->registered == r->sim->settings.functions)
        finish(r, ERR_OK, NULL);
    else if (r->next < r->sim->settings.functions)
        send_function(c);
}

static void on_recv(struct loop_stream *stream, enum err err, const char *data, size_t bytes)
{
    struct caller *c = container_of(stream, struct caller, stream);
    struct registration *r = c->registration;
    struct http_response response;
    struct error e = {0};
    if (r->done)
        return;
    if (err != ERR_OK) {
        fail(r, ERR_UNREACHABLE, "the connection was closed before its answer", "");
        return;
    }
    buf_append(&c->in, data, bytes);
    while (!r->done && c->in.bytes > 0) {
        err = http_response_parse(c->in.data, c->in.bytes, &c->scanned, HTTP_GET, &response, &e);
        if (err == ERR_MORE)
            return;
        if (err == ERR_OK &&
            (response.body != HTTP_BODY_LENGTH || response.content_length > ANSWER_BYTES_MAX))
            err = error_set(&e, ERR_PROTOCOL, "its answer has no length, or one above the limit");
        if (err != ERR_OK) {
            fail(r, err, e.text, "");
            return;
        }
        size_t whole = response.head_bytes + response.content_length;
        if (c->in.bytes < whole)
            return;
        cleanup(buf_done) struct buf answer = {0};
        buf_append(&answer, c->in.data + response.head_bytes, response.content_length);
        buf_consume(&c->in, whole);
        c->scanned = 0;
        answer_take(c, response.status, buf_str(&answer));
    }
}

/* ---- connections ---- */

static void on_connect(struct loop_stream *stream, enum err err)
{
    struct caller *c = container_of(stream, struct caller, stream);
    struct registration *r = c->registration;
    if (r->done)
        return;
    if (err != ERR_OK)
        fail(r, ERR_UNREACHABLE, "it cannot be reached: ", strerror(stream->error_number));
    else if (r->step != STEP_FUNCTIONS)
        send_get(c, "/v1/workers");
    else if (r->next < r->sim->settings.functions)
        send_function(c);
}

static void on_stream_closed(struct loop_stream *stream)
{
    container_of(stream, struct caller, stream)->open = false;
}

static enum err connect_one(struct registration *r, struct error *e)
{
    static const struct loop_stream_callbacks callbacks = {
        .on_connect = on_connect, .on_recv = on_recv, .on_closed = on_stream_closed};
    struct caller *c = &r->callers[r->caller_count];
    enum err err = loop_stream_connect(r->sim->loop, &c->stream, &callbacks,
                                       (struct sockaddr *)&r->address, r->address_bytes, NULL, e);
    if (err != ERR_OK)
        return error_prefix(e, "the API at %s", r->sim->settings.api);
    c->registration = r;
    c->open = true;
    r->caller_count++;
    return ERR_OK;
}

static void start_callers(struct registration *r)
{
    struct error e = {0};
    size_t count = MIN((size_t)CONNECTIONS_MAX, (size_t)r->sim->settings.functions);
    while (!r->done && r->caller_count < count) {
        enum err err = connect_one(r, &e);
        if (err != ERR_OK)
            finish(r, err, &e);
    }
}

void registration_begin(struct registration *r)
{
    send_function(&r->callers[0]);
    start_callers(r);
}

enum err registration_new(struct sim *s,
                          void (*on_done)(struct sim *s, enum err err, const struct error *e),
                          struct registration **ret_registration, struct error *e)
{
    struct registration *r = mem_new(sizeof(*r));
    r->sim = s;
    r->on_done = on_done;
    r->callers = mem_new_array(CONNECTIONS_MAX, sizeof(*r->callers));
    enum err err = address_parse(s->settings.api, &r->address, &r->address_bytes, e);
    if (err == ERR_OK)
        err = connect_one(r, e);
    if (err == ERR_OK) {
        *ret_registration = r;
        return ERR_OK;
    }
    free(r->callers);
    free(r);
    return err;
}

size_t registration_count(const struct registration *r)
{
    return r->registered;
}

void registration_free(struct registration *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; i < r->caller_count; i++) {
        if (r->callers[i].open)
            loop_stream_close(&r->callers[i].stream);
    }
    loop_run_once(r->sim->loop, 0); /* they close */
    for (size_t i = 0; i < r->caller_count; i++)
        buf_done(&r->callers[i].in);
    free(r->callers);
    free(r);
}
