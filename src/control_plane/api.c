/* api.c - the router: one table of routes, answers, and calls that wait for a version. */
#include "base/log.h"
#include "control_plane/api_internal.h"
#include "control_plane/api_keys.h"
#include "control_plane/blobs.h"
#include "control_plane/leadership.h"
#include "control_plane/log_requests.h"
#include "control_plane/relay.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

struct route {
    enum http_method method;
    const char *path; /* '*' stands for one name */
    api_handler *handler;
};
/* clang-format off */
static const struct route routes[] = {
    {HTTP_GET,    "/v1/functions",        handle_functions_list},
    {HTTP_GET,    "/v1/functions/*",      handle_function_get},
    {HTTP_PUT,    "/v1/functions/*",      handle_function_put},
    {HTTP_PATCH,  "/v1/functions/*",      handle_function_patch},
    {HTTP_DELETE, "/v1/functions/*",      handle_function_delete},
    {HTTP_PUT,    "/v1/functions/*/code", handle_code_put},
    {HTTP_GET,    "/v1/functions/*/logs", handle_logs_get},
    {HTTP_GET,    "/v1/workers",          handle_workers_list},
    {HTTP_GET,    "/v1/workers/*",        handle_worker_get},
    {HTTP_PATCH,  "/v1/workers/*",        handle_worker_patch},
    {HTTP_DELETE, "/v1/workers/*",        handle_worker_delete},
    {HTTP_GET,    "/v1/data-planes",      handle_data_planes_list},
    {HTTP_DELETE, "/v1/data-planes/*",    handle_data_plane_delete},
    {HTTP_GET,    "/v1/sandboxes",        handle_sandboxes_list},
    {HTTP_GET,    "/v1/keys",             handle_keys_list},
    {HTTP_POST,   "/v1/keys",             handle_key_create},
    {HTTP_DELETE, "/v1/keys/*",           handle_key_delete},
    {HTTP_GET,    "/v1/tokens",           handle_tokens_list},
    {HTTP_POST,   "/v1/tokens",           handle_token_create},
    {HTTP_DELETE, "/v1/tokens/*",         handle_token_delete},
    {HTTP_GET,    "/v1/authority",        handle_authority_get},
    {HTTP_POST,   "/v1/authority/rotate", handle_authority_rotate},
    {HTTP_POST,   "/v1/backup",           handle_backup},
    {HTTP_GET,    "/v1/status",           handle_status},
    {HTTP_GET,    "/healthz",             handle_healthz},
    {HTTP_GET,    "/readyz",              handle_readyz},
    {HTTP_GET,    "/metrics",             handle_metrics},
    {HTTP_GET,    "/health",              handle_healthz}, /* the original's */
    {HTTP_GET,    "/check",               handle_check},
};
/* clang-format on */

/* ---- answers ---- */

static void answer_json_with(struct http_exchange *x, unsigned status, json_t *json,
                             const char *headers)
{
    char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(json);
    assert(text != NULL); /* whatever came from outside was made valid text before */
    struct buf body = {0};
    buf_append_str(&body, str_of(text));
    buf_append_str(&body, STR("\n"));
    free(text);
    http_exchange_answer(x, status, "application/json", buf_str(&body), headers);
    buf_done(&body);
}

void answer_json(struct http_exchange *x, unsigned status, json_t *json)
{
    answer_json_with(x, status, json, "Cache-Control: no-store\r\n");
}

void answer_text(struct http_exchange *x, unsigned status, const char *text)
{
    http_exchange_answer(x, status, "text/plain; charset=utf-8", str_of(text),
                         "Cache-Control: no-store\r\n");
}

json_t *json_lossy(const char *data, size_t bytes)
{
    json_t *json = json_stringn(data != NULL ? data : "", bytes);
    if (json != NULL)
        return json;
    cleanup(free_pointer) char *ascii = mem_strndup(data, bytes);
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)ascii[i] >= 0x80)
            ascii[i] = '?';
    return json_stringn(ascii, bytes);
}

static json_t *error_json(const char *code, const char *message, const char *field)
{
    json_t *inner = json_object();
    json_object_set_new(inner, "code", json_string(code));
    json_object_set_new(inner, "message", json_lossy(message, strlen(message)));
    if (field != NULL && field[0] != '\0')
        json_object_set_new(inner, "field", json_lossy(field, strlen(field)));
    return json_pack("{s:o}", "error", inner);
}

void answer_error_status(struct http_exchange *x, unsigned status, const char *code,
                         const char *message, const char *field)
{
    answer_json(x, status, error_json(code, message, field));
}

void answer_error(struct http_exchange *x, enum err err, const struct error *e)
{
    const char *message = e->text[0] != '\0' ? e->text : err_text(err);
    answer_error_status(x, err_http_status(err), err_name(err), message, e->field);
}

#define STORE_ANSWER_MS 8000u
#define STORE_LOST_MS 3000u /* longer than etcd takes to elect a leader */

static void on_store_late(struct http_exchange *x)
{
    answer_error_status(x, err_http_status(ERR_TIMEOUT), err_name(ERR_TIMEOUT),
                        "the store (etcd, or the disk) has not answered: whether this is carried "
                        "out will be known when "
                        "it does; look then, or repeat it",
                        NULL);
}

void store_await(struct http_exchange *x)
{
    http_exchange_answer_within(x, STORE_ANSWER_MS, on_store_late);
}

void store_awaited(struct http_exchange *x)
{
    http_exchange_answer_within(x, 0, NULL);
}

/* A change that would only wait in vain is not begun. */
static bool refused_without_store(const struct control_plane *cp, struct http_exchange *x)
{
    uint64_t lost_ms = cp->leadership != NULL ? leadership_store_lost_ms(cp->leadership) : 0;
    char text[160];
    if (lost_ms < STORE_LOST_MS)
        return false;
    (void)snprintf(text, sizeof(text),
                   "the store has not been reached for %" PRIu64 " s: nothing was changed",
                   lost_ms / 1000);
    answer_json_with(x, 503, error_json("store_unreachable", text, NULL),
                     "Cache-Control: no-store\r\nRetry-After: 1\r\n");
    return true;
}

void text_of_time(uint64_t wall_ms, char *ret_text, size_t bytes)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm utc;
    char day[32];
    (void)gmtime_r(&seconds, &utc);
    (void)strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(ret_text, bytes, "%s.%03uZ", day, (unsigned)(wall_ms % 1000));
}

/* ---- calls ---- */

static void on_call_gone(struct http_exchange *x, void *user)
{
    struct call *call = user;
    call->x = NULL;
    if (call->upload != NULL) {
        upload_cancel(call->upload);
        call->upload = NULL;
    }
    if (!call->changing) /* what was begun is carried through */
        call_free(call);
}

struct call *call_new(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct call *call = mem_new(sizeof(*call));
    call->cp = cp;
    call->x = x;
    snprintf(call->name, sizeof(call->name), "%s", name);
    http_exchange_set_user(x, call, on_call_gone);
    return call;
}

void call_free(struct call *call)
{
    assert(!call->changing);
    links_sync_cancel(&call->sync);
    copies_spread_cancel(&call->spread);
    list_remove(&call->wait_node);
    if (call->wait_timer.on_timer != NULL)
        loop_timer_stop(call->cp->loop, &call->wait_timer);
    json_decref(call->json);
    free(call);
}

/* ---- waiting for versions ---- */

static const char *change_word(enum change_outcome outcome)
{
    switch (outcome) {
    case CHANGE_CREATED:
        return "created";
    case CHANGE_UPDATED:
        return "updated";
    case CHANGE_UNCHANGED:
        return "unchanged";
    case CHANGE_DELETED:
        return "deleted";
    }
    assert(false);
}

void answer_function(struct call *call, const struct function *f)
{
    json_t *json = function_to_json(call->cp, f, true);
    json_object_set_new(json, "change", json_string(change_word(call->change.outcome)));
    if (call->change.digest[0] != '\0')
        json_object_set_new(json, "digest", json_string(call->change.digest));
    answer_json(call->x, call->change.outcome == CHANGE_CREATED ? 201 : 200, json);
    call_free(call);
}

static void answer_failure(struct call *call, const struct function *f,
                           const struct function_view *view)
{
    const struct failure *failure = &f->failure;
    const struct last_exit *exit = &f->last_exit;
    bool told = failure->version == call->version;
    json_t *json = error_json(told ? failure->code : err_name(ERR_FAILED),
                              told ? failure->message : view->failure, NULL);
    json_t *inner = json_object_get(json, "error");
    json_object_set_new(inner, "version", json_integer(call->version));
    if (told)
        json_object_set_new(inner, "last_output",
                            json_lossy(failure->last_output, failure->last_output_bytes));
    if (exit->version == call->version && exit->reason == GONE_EXITED)
        json_object_set_new(inner, "exit_code", json_integer(exit->exit_code));
    if (exit->version == call->version && exit->reason == GONE_SIGNALED)
        json_object_set_new(inner, "signal", json_integer(exit->signal));
    answer_json(call->x, 422, json);
    call_free(call);
}

static void on_change_known(struct links_sync *sync)
{
    struct call *call = container_of(sync, struct call, sync);
    const struct function *f = registry_get(call->cp->registry, call->change.function_id);
    if (call->change.outcome == CHANGE_DELETED) {
        answer_json(call->x, 200, json_pack("{s:s, s:b}", "name", call->name, "deleted", 1));
    } else if (f == NULL) {
        answer_error_status(call->x, 409, err_name(ERR_CONFLICT),
                            "the function was deleted at once", NULL);
    } else {
        answer_function(call, f);
        return;
    }
    call_free(call);
}

void answer_when_known(struct call *call)
{
    call->sync.on_done = on_change_known;
    links_sync(call->cp->links, &call->sync);
}

/* Answers when there is something to say about the call's version. */
static bool wait_settle(struct call *call)
{
    struct function_view view;
    const struct function *f = registry_get(call->cp->registry, call->function_id);
    if (f == NULL) {
        answer_error_status(call->x, 409, err_name(ERR_CONFLICT),
                            "the function was deleted before it was ready", NULL);
        call_free(call);
        return true;
    }
    if (!control_function(call->cp->core, call->function_id, &view))
        return false;
    bool failed = view.latest_version == call->version && view.latest_state == VERSION_FAILED;
    if (failed) {
        answer_failure(call, f, &view);
        return true;
    }
    if (view.active_version >= call->version) {
        list_remove(&call->wait_node);
        if (call->wait_timer.on_timer != NULL)
            loop_timer_stop(call->cp->loop, &call->wait_timer);
        answer_when_known(call);
        return true;
    }
    if (view.latest_version > call->version) {
        answer_error_status(call->x, 409, err_name(ERR_CONFLICT),
                            "a newer version replaced this one before it was ready", NULL);
        call_free(call);
        return true;
    }
    return false;
}

static void on_wait_timeout(struct loop_timer *timer)
{
    struct call *call = container_of(timer, struct call, wait_timer);
    struct function_view view;
    struct error e = {0};
    bool known = control_function(call->cp->core, call->function_id, &view);
    struct cluster_numbers numbers;
    cluster_numbers(call->cp, &numbers);
    const char *why = numbers.workers_alive == 0 ? "no worker is connected"
                      : known                    ? view.failure
                                                 : "";
    error_set(&e, ERR_TIMEOUT,
              "version %u of '%s' is registered, but was not ready within %" PRIu64 " ms%s%s",
              call->version, call->name, call->wait_ms, why[0] != '\0' ? ": " : "", why);
    answer_error(call->x, ERR_TIMEOUT, &e);
    call_free(call);
}

void wait_begin(struct api *api, struct call *call)
{
    struct loop *loop = api->cp->loop;
    call->function_id = call->change.function_id;
    call->version = call->change.new_version;
    if (wait_settle(call))
        return;
    list_push_back(&api->waits, &call->wait_node);
    loop_timer_init(&call->wait_timer, on_wait_timeout);
    loop_timer_start(loop, &call->wait_timer, loop_now_ns(loop) + call->wait_ms * NS_PER_MS);
}

static void settle_all(struct api *api, uint64_t function_id)
{
    list_for_each(call, &api->waits, struct call, wait_node)
    {
        if (call->function_id == function_id)
            (void)wait_settle(call);
    }
}

void api_version_active(struct api *api, uint64_t function_id, uint32_t version)
{
    settle_all(api, function_id);
}

void api_version_failed(struct api *api, uint64_t function_id, uint32_t version)
{
    settle_all(api, function_id);
}

void api_function_deleted(struct api *api, uint64_t function_id)
{
    log_requests_function_deleted(api->cp->logs, function_id);
    settle_all(api, function_id);
}

/* ---- routing ---- */

enum err query_get(const struct http_exchange *x, const char *name, char *ret_text, size_t bytes,
                   struct error *e)
{
    struct str value = http_query_get(http_exchange_request(x)->query, str_of(name));
    ret_text[0] = '\0';
    if (value.data == NULL)
        return ERR_OK;
    if (http_percent_decode(value, ret_text, bytes) == ERR_OK)
        return ERR_OK;
    return error_field(e, ERR_INVALID, name, "the value of '%s' in the query is not valid", name);
}

/* Matches `path` with `pattern`; the part at '*' goes to *ret_name, still encoded. */
static bool path_matches(struct str path, const char *pattern, struct str *ret_name)
{
    struct str left = path;
    *ret_name = STR_NONE;
    for (const char *p = pattern; *p != '\0'; p++) {
        if (*p != '*') {
            if (left.bytes == 0 || left.data[0] != *p)
                return false;
            left = (struct str){left.data + 1, left.bytes - 1};
            continue;
        }
        size_t bytes = 0;
        while (bytes < left.bytes && left.data[bytes] != '/')
            bytes++;
        *ret_name = (struct str){left.data, bytes};
        left = (struct str){left.data + bytes, left.bytes - bytes};
    }
    return left.bytes == 0;
}

static struct str header_get(const struct http_request *request, const char *name)
{
    for (uint32_t i = 0; i < request->header_count; i++)
        if (str_equal_nocase(request->headers[i].name, str_of(name)))
            return request->headers[i].value;
    return STR_NONE;
}

/* An address or localhost: not a name that somebody's DNS could turn to us. */
static bool is_local_name(struct str host)
{
    bool v4 = host.bytes > 0, v6 = host.bytes > 0 && host.data[0] == '[';
    for (size_t i = 0; i < host.bytes; i++)
        v4 &= (host.data[i] >= '0' && host.data[i] <= '9') || host.data[i] == '.';
    return v4 || v6 || str_equal_nocase(host, STR("localhost"));
}

/* A page in somebody's browser must not change a cluster that the browser happens to reach: its
 * requests carry their Origin. Our own pages come from the same address. */
static bool is_foreign_page(const struct http_request *request)
{
    struct str origin = header_get(request, "Origin");
    if (origin.data == NULL)
        return false;
    struct str host = {0};
    if (str_has_prefix(origin, STR("http://")))
        host = (struct str){origin.data + 7, origin.bytes - 7};
    return !str_equal_nocase(host, request->host) || !is_local_name(request->host_name);
}

static void answer_not_allowed(struct http_exchange *x, struct str path)
{
    static const struct {
        enum http_method method;
        const char *text;
    } words[] = {{HTTP_GET, "GET, HEAD"},
                 {HTTP_POST, "POST"},
                 {HTTP_PUT, "PUT"},
                 {HTTP_PATCH, "PATCH"},
                 {HTTP_DELETE, "DELETE"}};
    cleanup(buf_done) struct buf header = {0};
    struct str name;
    buf_printf(&header, "Cache-Control: no-store\r\nAllow: ");
    size_t empty = header.bytes;
    for (size_t i = 0; i < ARRAY_COUNT(routes); i++)
        for (size_t j = 0; j < ARRAY_COUNT(words); j++)
            if (routes[i].method == words[j].method && path_matches(path, routes[i].path, &name))
                buf_printf(&header, "%s%s", header.bytes > empty ? ", " : "", words[j].text);
    buf_printf(&header, "\r\n");
    buf_append(&header, "", 1);
    http_exchange_answer(x, 405, "application/json",
                         STR("{\"error\":{\"code\":\"method_not_allowed\",\"message\":"
                             "\"this path does not take this method, see Allow\"}}\n"),
                         header.data);
}

static bool names_a_function(const struct route *route)
{
    return str_has_prefix(str_of(route->path), STR("/v1/functions/"));
}

static enum err peer_name_check(const char *name, struct error *e)
{
    return name[0] != '\0' && strlen(name) <= PEER_NAME_BYTES_MAX
               ? ERR_OK
               : error_field(e, ERR_INVALID, "name", "the name in the path is empty or too long");
}

/* Runs the handler of a route whose path and method fit. */
static void run_route(struct api *api, struct http_exchange *x, const struct route *route,
                      struct str encoded_name)
{
    char name[256] = "";
    struct error e = {0};
    enum err err = ERR_OK;
    if (encoded_name.data != NULL) {
        err = http_percent_decode(encoded_name, name, sizeof(name));
        if (err != ERR_OK)
            err = error_field(&e, ERR_INVALID, "name", "the name in the path is not valid");
        else
            err = names_a_function(route) ? function_name_check(str_of(name), &e)
                                          : peer_name_check(name, &e);
    }
    if (err == ERR_OK)
        route->handler(api->cp, x, name);
    else
        answer_error(x, err, &e);
}

static void answer_no_route(struct api *api, struct http_exchange *x, bool path_known)
{
    const struct http_request *request = http_exchange_request(x);
    struct error e = {0};
    if (path_known) {
        answer_not_allowed(x, request->path);
    } else if (request->method == HTTP_POST && !str_has_prefix(request->path, STR("/v1/"))) {
        if (refused_without_store(api->cp, x))
            return;
        handle_registration(api->cp, x, "");
    } else {
        error_set(&e, ERR_NOT_FOUND, "there is no '%.*s' here", (int)MIN(request->path.bytes, 200),
                  request->path.data);
        answer_error(x, ERR_NOT_FOUND, &e);
    }
}

/* Why it may be that nobody leads, as far as one that stands by can tell. */
static void explain_standing(const struct control_plane *cp, struct buf *text)
{
    struct member_view v;
    size_t cursor = 0, unheard = 0;
    buf_printf(text, "no control plane leads at the moment");
    if (cp->leadership == NULL)
        return;
    while (leadership_member_next(cp->leadership, &cursor, &v))
        if (!v.is_self && (!v.up || v.heard_ms_ago > MEMBER_SUSPECT_MS))
            buf_printf(text, "%s%s", unheard++ == 0 ? ", this one does not hear " : ", ", v.name);
    if (!leadership_store_reached(cp->leadership))
        buf_printf(text, "%s does not reach the store (%s)", unheard > 0 ? " and" : ", this one",
                   cp->settings.store);
}

/* What can be said by one that does not lead; it carries connections to the one that does, where
 * there is one. */
static void answer_standing(const struct control_plane *cp, struct http_exchange *x)
{
    struct str path = http_exchange_request(x)->path;
    if (str_equal(path, STR("/healthz")) || str_equal(path, STR("/health"))) {
        answer_text(x, 200, "ok\n");
        return;
    }
    cleanup(buf_done) struct buf message = {0};
    explain_standing(cp, &message);
    buf_printf(&message, ": try again");
    buf_append(&message, "", 1);
    answer_json_with(x, 503, error_json("no_leader", message.data, NULL),
                     "Cache-Control: no-store\r\nRetry-After: 1\r\nConnection: close\r\n");
}

/* False: it has been answered. */
static bool may_go_on(struct api *api, struct http_exchange *x)
{
    struct error e = {0};
    unsigned status = 0;
    if (api_keys_check(api->cp->api_keys, x, &status, &e) == ERR_OK)
        return true;
    answer_json_with(x, status,
                     error_json(status == 401 ? "unauthorized" : "permission", e.text, NULL),
                     status == 401 ? "WWW-Authenticate: Bearer\r\n" : NULL);
    return false;
}

/* Without keys only clients on this host are served. Whoever comes by a relay is on that one's host
 * for the leader, so it is the relay that has to look. */
static bool is_refused(const struct control_plane *cp, bool is_local)
{
    size_t cursor = 0;
    return !is_local && cp->leadership != NULL && leadership_is_synced(cp->leadership) &&
           api_keys_next(cp->api_keys, &cursor) == NULL;
}

static bool on_connection(int fd, bool is_local, void *user)
{
    struct api *api = user;
    const char *address = api->cp->leads || api->cp->leadership == NULL
                              ? ""
                              : leadership_api_address(api->cp->leadership);
    if (address[0] == '\0' || is_refused(api->cp, is_local))
        return false;
    relays_add(api->relays, fd, address);
    return true;
}

static void on_request(struct http_exchange *x, void *user)
{
    struct api *api = user;
    const struct http_request *request = http_exchange_request(x);
    bool reading = request->method == HTTP_GET || request->method == HTTP_HEAD;
    enum http_method method = reading ? HTTP_GET : request->method;
    bool path_known = false;
    api->requests++;
    if (!api->cp->leads) {
        if (!is_refused(api->cp, http_exchange_is_local(x)) || may_go_on(api, x))
            answer_standing(api->cp, x);
        return;
    }
    if (!reading && is_foreign_page(request)) {
        answer_error_status(x, 403, err_name(ERR_PERMISSION),
                            "changes from a page of another origin are refused", "Origin");
        return;
    }
    if (!may_go_on(api, x))
        return;
    for (size_t i = 0; i < ARRAY_COUNT(routes); i++) {
        struct str name;
        if (!path_matches(request->path, routes[i].path, &name))
            continue;
        path_known = true;
        if (routes[i].method == method) {
            if (reading || !refused_without_store(api->cp, x))
                run_route(api, x, &routes[i], name);
            return;
        }
    }
    answer_no_route(api, x, path_known);
}

/* ---- life ---- */

enum err api_new(struct control_plane *cp, struct api **ret_api, struct error *e)
{
    static const struct http_server_callbacks callbacks = {.on_request = on_request,
                                                           .on_connection = on_connection};
    struct api *api = mem_new(sizeof(*api));
    api->cp = cp;
    api->relays = relays_new(cp->loop);
    list_init(&api->waits);
    enum err err = http_server_new(cp->loop, cp->settings.api, &callbacks, api, &api->server, e);
    if (err != ERR_OK) {
        relays_free(api->relays);
        free(api);
        return error_prefix(e, "HTTP API");
    }
    *ret_api = api;
    return ERR_OK;
}

const char *api_address(const struct api *api)
{
    return http_server_address(api->server);
}

void api_lead(struct api *api)
{
    relays_drop(api->relays);
}

void api_free(struct api *api)
{
    if (api == NULL)
        return;
    http_server_free(api->server);
    relays_close(api->relays);
    loop_run_once(api->cp->loop, 0);
    relays_free(api->relays);
    list_for_each(call, &api->waits, struct call, wait_node)
    {
        call_free(call);
    }
    free(api);
}
