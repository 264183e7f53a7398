/* api_functions.c - /v1/functions: views, changes, code, output. */
#include "control_plane/api_internal.h"
#include "control_plane/blobs.h"
#include "control_plane/log_requests.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_MS_MAX (60u * 60u * 1000u)

/* ---- views ---- */

static const char *state_of(const struct function_view *v)
{
    bool failing = v->failure[0] != '\0' || v->latest_state == VERSION_FAILED;
    if (failing)
        return v->ready > 0 || (v->active_version > 0 && v->active_version < v->latest_version)
                   ? "degraded"
                   : "failed";
    if (v->latest_state == VERSION_PROVING)
        return v->active_version > 0 ? "updating" : "starting";
    if (v->ready > 0)
        return "ready";
    return v->starting > 0 ? "starting" : "idle";
}

static json_t *urls_of(const struct control_plane *cp, const char *name)
{
    json_t *urls = json_array();
    size_t cursor = 0;
    struct peer_view peer;
    while (links_peer_next(cp->links, &cursor, &peer)) {
        char address[128];
        if (peer.is_worker || !peer.connected)
            continue;
        links_public_address(&peer, address, sizeof(address));
        json_array_append_new(urls, json_sprintf("http://%s/function/%s/", address, name));
    }
    return urls;
}

static json_t *exit_to_json(const struct last_exit *exit)
{
    char at[40], sandbox[20];
    if (exit->version == 0)
        return json_null();
    text_of_time(exit->at_ms, at, sizeof(at));
    snprintf(sandbox, sizeof(sandbox), "%016" PRIx64, exit->sandbox_id);
    json_t *json = json_pack("{s:s, s:I, s:s, s:s}", "reason", failure_code(exit->reason),
                             "version", (json_int_t)exit->version, "sandbox", sandbox, "at", at);
    if (exit->reason == GONE_EXITED)
        json_object_set_new(json, "exit_code", json_integer(exit->exit_code));
    if (exit->reason == GONE_SIGNALED)
        json_object_set_new(json, "signal", json_integer(exit->signal));
    return json;
}

json_t *function_to_json(const struct control_plane *cp, const struct function *f, bool with_spec)
{
    const struct function_record *r = &f->record;
    struct function_view v = {
        .failure = "", .latest_version = r->latest_version, .active_version = r->active_version};
    char created[40], updated[40];
    (void)control_function(cp->core, r->id, &v);
    text_of_time(r->created_at_ms, created, sizeof(created));
    text_of_time(r->updated_at_ms, updated, sizeof(updated));
    json_t *json = json_pack(
        "{s:s, s:I, s:I, s:I, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:s, "
        "s:s}",
        "name", r->latest.name, "id", (json_int_t)r->id, "version", (json_int_t)r->latest_version,
        "active_version", (json_int_t)v.active_version, "state", state_of(&v), "failure",
        json_lossy(v.failure, strlen(v.failure)), "wanted", (json_int_t)v.wanted, "starting",
        (json_int_t)v.starting, "ready", (json_int_t)v.ready, "draining", (json_int_t)v.draining,
        "in_flight", (json_int_t)v.in_flight, "waiting", (json_int_t)v.waiting, "min",
        (json_int_t)r->latest.scaling.scale_min, "max", (json_int_t)r->latest.scaling.scale_max,
        "concurrency", (json_int_t)r->latest.scaling.concurrency, "urls",
        urls_of(cp, r->latest.name), "created_at", created, "updated_at", updated);
    json_object_set_new(json, "last_exit", exit_to_json(&f->last_exit));
    if (with_spec)
        json_object_set_new(json, "spec", function_spec_to_json(&r->latest));
    return json;
}

static int compare_functions(const void *a, const void *b)
{
    const struct function *const *left = a, *const *right = b;
    return strcmp((*left)->record.latest.name, (*right)->record.latest.name);
}

void handle_functions_list(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    size_t count = 0, cursor = 0;
    struct function *f, **all = mem_new_array(registry_count(cp->registry) + 1, sizeof(*all));
    while ((f = registry_next(cp->registry, &cursor)) != NULL)
        all[count++] = f;
    qsort(all, count, sizeof(*all), compare_functions);
    json_t *items = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(items, function_to_json(cp, all[i], false));
    free(all);
    answer_json(x, 200, json_pack("{s:o}", "items", items));
}

/* The function of the path, or NULL after the answer 404. */
static struct function *find_or_answer(struct control_plane *cp, struct http_exchange *x,
                                       const char *name)
{
    struct function *f = registry_find(cp->registry, str_of(name));
    struct error e = {0};
    if (f == NULL) {
        error_set(&e, ERR_NOT_FOUND, "there is no function '%s'", name);
        answer_error(x, ERR_NOT_FOUND, &e);
    }
    return f;
}

void handle_function_get(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    const struct function *f = find_or_answer(cp, x, name);
    if (f != NULL)
        answer_json(x, 200, function_to_json(cp, f, true));
}

/* ---- changes ---- */

/* ?wait=60s into the call. False: it was wrong, and that was answered. */
static bool read_wait(struct call *call)
{
    char text[32];
    uint32_t ms = 0;
    struct error e = {0};
    enum err err = query_get(call->x, "wait", text, sizeof(text), &e);
    if (err == ERR_OK && text[0] != '\0') {
        struct error inner = {0};
        err = parse_duration_ms(str_of(text), &ms, &inner);
        if (err != ERR_OK || ms > WAIT_MS_MAX)
            err = error_field(&e, ERR_INVALID, "wait", "%s",
                              err != ERR_OK ? inner.text : "one cannot wait for more than 1h");
    }
    call->wait_ms = ms;
    if (err == ERR_OK)
        return true;
    answer_error(call->x, err, &e);
    call_free(call);
    return false;
}

/* Stored (or refused): answers, or waits on. */
static void on_change_done(struct change *change, enum err err, const struct error *e)
{
    struct call *call = container_of(change, struct call, change);
    struct control_plane *cp = call->cp;
    call->changing = false;
    if (err == ERR_OK && change->outcome == CHANGE_DELETED)
        api_function_deleted(cp->api, change->function_id);
    if (call->x == NULL) {
        call_free(call);
        return;
    }
    if (err != ERR_OK) {
        answer_error(call->x, err, e);
        call_free(call);
        return;
    }
    store_awaited(call->x);
    if (call->wait_ms > 0)
        wait_begin(cp->api, call);
    else
        answer_when_known(call);
}

static void begin_change(struct call *call, enum change_kind kind)
{
    call->change.kind = kind;
    memcpy(call->change.name, call->name, sizeof(call->change.name));
    call->change.json = call->json;
    call->change.prove = call->wait_ms > 0;
    call->change.on_done = on_change_done;
    call->changing = true;
    store_await(call->x);
    registry_change(call->cp->registry, &call->change);
}

static void on_change_body(struct http_exchange *x, void *user, enum err err, char *data,
                           size_t bytes)
{
    struct call *call = user;
    struct error e = {0};
    if (err != ERR_OK)
        return; /* on_gone comes */
    err = json_text_parse((struct str){data, bytes}, &call->json, &e);
    if (err == ERR_OK && !json_is_object(call->json))
        err = error_set(&e, ERR_INVALID, "the body must be a JSON object");
    if (err != ERR_OK) {
        answer_error(x, err, &e);
        call_free(call);
        return;
    }
    begin_change(call, call->change.kind);
}

static void read_change(struct control_plane *cp, struct http_exchange *x, const char *name,
                        enum change_kind kind)
{
    struct call *call = call_new(cp, x, name);
    call->change.kind = kind;
    if (read_wait(call))
        http_exchange_read_body(x, SPEC_JSON_BYTES_MAX, on_change_body, call);
}

void handle_function_put(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    read_change(cp, x, name, CHANGE_PUT);
}

void handle_function_patch(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    read_change(cp, x, name, CHANGE_PATCH);
}

void handle_function_delete(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    begin_change(call_new(cp, x, name), CHANGE_DELETE);
}

/* ---- code ---- */

/* Enough control planes have it. */
static void on_spread(struct copies_spread *spread, enum err err, const struct error *e)
{
    struct call *call = container_of(spread, struct call, spread);
    if (err == ERR_OK && !call->stage) {
        begin_change(call, CHANGE_CODE);
        return;
    }
    if (err == ERR_OK)
        answer_json(call->x, 200,
                    json_pack("{s:s, s:I}", "digest", call->change.digest, "bytes",
                              (json_int_t)call->code_bytes));
    else
        answer_error(call->x, err, e);
    call_free(call);
}

static void on_upload_done(void *user, enum err err, const char *digest, uint64_t bytes,
                           const struct error *e)
{
    struct call *call = user;
    call->upload = NULL;
    if (err != ERR_OK) {
        answer_error(call->x, err, e);
        call_free(call);
        return;
    }
    snprintf(call->change.digest, sizeof(call->change.digest), "%s", digest);
    call->code_bytes = bytes;
    call->spread.on_done = on_spread;
    copies_spread(call->cp->copies, digest, &call->spread);
}

/* Refuses what comes and what is still on its way. */
static void end_upload(struct call *call, enum err err, const struct error *e)
{
    upload_cancel(call->upload);
    call->upload = NULL;
    answer_error(call->x, err, e);
    call_free(call);
}

static void on_code_piece(struct http_exchange *x, void *user, enum err err, const char *data,
                          size_t bytes)
{
    struct call *call = user;
    struct error e = {0};
    if (err != ERR_OK)
        return; /* on_gone comes */
    if (bytes == 0) {
        upload_finish(call->upload, on_upload_done, call);
        return;
    }
    err = upload_write(call->upload, data, bytes, &e);
    if (err != ERR_OK)
        end_upload(call, err, &e);
}

void handle_code_put(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct call *call = call_new(cp, x, name);
    struct error e = {0};
    char stage[8];
    if (!read_wait(call))
        return;
    enum err err = query_get(x, "stage", stage, sizeof(stage), &e);
    call->stage = strcmp(stage, "1") == 0 || strcmp(stage, "true") == 0;
    if (err == ERR_OK && !call->stage && registry_find(cp->registry, str_of(name)) == NULL)
        err = error_set(&e, ERR_NOT_FOUND,
                        "there is no function '%s': register it first, or stage the code", name);
    if (err == ERR_OK)
        err = upload_begin(cp->blobs, &call->upload, &e);
    if (err != ERR_OK) {
        answer_error(x, err, &e);
        call_free(call);
        return;
    }
    http_exchange_stream_body(x, CODE_ARCHIVE_BYTES_MAX, on_code_piece, call);
}

/* ---- output ---- */

static enum err read_log_query(struct http_exchange *x, struct log_query *q, struct error *e)
{
    char follow[8], since[32], lines[16];
    enum err err = query_get(x, "follow", follow, sizeof(follow), e);
    if (err == ERR_OK)
        err = query_get(x, "since", since, sizeof(since), e);
    if (err == ERR_OK)
        err = query_get(x, "lines", lines, sizeof(lines), e);
    if (err != ERR_OK)
        return err;
    q->follow = strcmp(follow, "1") == 0 || strcmp(follow, "true") == 0;
    uint32_t since_ms = 0;
    struct error inner = {0};
    if (since[0] != '\0' && parse_duration_ms(str_of(since), &since_ms, &inner) != ERR_OK)
        return error_field(e, ERR_INVALID, "since", "%s", inner.text);
    q->since_ms = since[0] != '\0' ? clock_real_ms() - since_ms : 0;
    uint64_t count = 0;
    if (lines[0] != '\0' && str_to_u64(str_of(lines), UINT32_MAX, &count) != ERR_OK)
        return error_field(e, ERR_INVALID, "lines", "'%s' is no number of lines", lines);
    q->lines = (uint32_t)count;
    return ERR_OK;
}

void handle_logs_get(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct log_query query = {0};
    struct error e = {0};
    const struct function *f = find_or_answer(cp, x, name);
    if (f == NULL)
        return;
    query.function_id = f->record.id;
    enum err err = read_log_query(x, &query, &e);
    if (err != ERR_OK)
        answer_error(x, err, &e);
    else
        log_requests_begin(cp->logs, x, &query);
}
