/* client.c - the API over libcurl. */
#include "cli/client.h"
#include "cli/output.h"
#include "cli/style.h"
#include "function/function.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEADER_PATIENCE_MS 10000u
#define LEADER_LOOK_US (100u * US_PER_MS)
#define CONNECT_TIMEOUT_MS 5000L
#define ANSWER_BYTES_MAX (256u * MIB)
#define DEFAULT_API "http://127.0.0.1:9091"
#define API_HINT "is `dirigent up` running? --api or DIRIGENT_API name another address"

/* ---- addresses ---- */

enum err url_normalize(const char *text, const char *origin, char **ret_url, struct error *e)
{
    struct str rest = str_trim(str_of(text));
    const char *scheme = "http://";
    if (str_has_prefix(rest, STR("http://")) || str_has_prefix(rest, STR("https://"))) {
        scheme = "";
    } else if (rest.bytes > 0 && rest.data[0] == ':') {
        scheme = "http://127.0.0.1";
    }
    while (rest.bytes > 0 && rest.data[rest.bytes - 1] == '/')
        rest.bytes--;
    cleanup(free_pointer) char *url = mem_printf("%s%.*s", scheme, STR_ARG(rest));
    CURLU *parsed = curl_url();
    CURLUcode code = curl_url_set(parsed, CURLUPART_URL, url, 0);
    curl_url_cleanup(parsed);
    if (rest.bytes == 0 || code != CURLUE_OK)
        return error_set(e, ERR_USAGE, "%s: '%s' is no address such as http://127.0.0.1:9091",
                         origin, text);
    *ret_url = url;
    url = NULL;
    return ERR_OK;
}

enum err client_open(struct client *c, const struct command_input *in, struct error *e)
{
    const char *api = in->common->api, *origin = "--api";
    if (api == NULL) {
        api = getenv("DIRIGENT_API");
        origin = "DIRIGENT_API";
    }
    if (api == NULL || api[0] == '\0')
        api = DEFAULT_API;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return error_set(e, ERR_FAILED, "libcurl could not be started");
    enum err err = url_normalize(api, origin, &c->api, e);
    if (err != ERR_OK)
        return err;
    c->curl = curl_easy_init();
    if (c->curl == NULL)
        abort();
    return ERR_OK;
}

void client_done(struct client *c)
{
    if (c->curl != NULL)
        curl_easy_cleanup(c->curl);
    free(c->api);
    *c = (struct client){0};
}

void answer_done(struct answer *a)
{
    buf_done(&a->body);
    json_decref(a->json);
    a->json = NULL;
}

enum err client_check_plain_name(const char *name, struct error *e)
{
    size_t good = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._");
    if (name[0] == '\0' || name[good] != '\0')
        return error_set(e, ERR_USAGE, "'%.100s' is no name: letters, digits, '-', '.' and '_'",
                         name);
    return ERR_OK;
}

enum err client_check_name(const char *name, struct error *e)
{
    struct error inner = {0};
    if (function_name_check(str_of(name), &inner) == ERR_OK)
        return ERR_OK;
    return error_set(e, ERR_USAGE, "%s", inner.text);
}

/* ---- one call ---- */

struct transfer {
    const struct client_call *call;
    struct answer *answer;
    CURL *curl;
    uint64_t started_ns, told_s;
    bool too_large;
};

static size_t on_body(char *data, size_t size, size_t count, void *user)
{
    struct transfer *t = user;
    size_t bytes = size * count;
    long status = 0;
    (void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (t->call->on_data != NULL && status < 300)
        return t->call->on_data(t->call->user, data, bytes) ? bytes : CURL_WRITEFUNC_ERROR;
    if (t->answer->body.bytes + bytes > ANSWER_BYTES_MAX) {
        t->too_large = true;
        return CURL_WRITEFUNC_ERROR;
    }
    buf_append(&t->answer->body, data, bytes);
    return bytes;
}

static size_t on_read(char *data, size_t size, size_t count, void *user)
{
    struct transfer *t = user;
    ssize_t n = t->call->read(t->call->user, data, size * count);
    return n < 0 ? CURL_READFUNC_ABORT : (size_t)n;
}

static int on_progress(void *user, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                       curl_off_t up)
{
    struct transfer *t = user;
    uint64_t seconds = (clock_mono_ns() - t->started_ns) / NS_PER_S;
    (void)down_total, (void)down, (void)up_total, (void)up;
    if (t->call->waiting != NULL && seconds != t->told_s) {
        t->told_s = seconds;
        t->call->waiting(seconds, t->call->user);
    }
    return 0;
}

void client_set_common(CURL *curl)
{
    const char *more = getenv("no_proxy");
    cleanup(free_pointer) char *no_proxy = mem_printf(
        "localhost,127.0.0.1,::1%s%s", more != NULL ? "," : "", more != NULL ? more : "");
    curl_easy_setopt(curl, CURLOPT_NOPROXY, no_proxy); /* copied */
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "dirigent/" DIRIGENT_VERSION);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
}

static void set_request(struct client *c, struct transfer *t, uint64_t deadline_ms)
{
    const struct client_call *call = t->call;
    curl_easy_setopt(c->curl, CURLOPT_CUSTOMREQUEST, call->method);
    curl_easy_setopt(c->curl, CURLOPT_TIMEOUT_MS, (long)deadline_ms);
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c->curl, CURLOPT_XFERINFODATA, t);
    curl_easy_setopt(c->curl, CURLOPT_NOPROGRESS, 0L);
    if (call->read != NULL) {
        curl_easy_setopt(c->curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(c->curl, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(c->curl, CURLOPT_READDATA, t);
        curl_easy_setopt(c->curl, CURLOPT_UPLOAD_BUFFERSIZE, 256L * 1024);
    }
}

enum err client_transport_error(CURL *curl, CURLcode code, const char *what, const char *hint,
                                uint64_t deadline_ms, struct error *e)
{
    long os_error = 0;
    double connect_seconds = 0;
    (void)curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &os_error);
    (void)curl_easy_getinfo(curl, CURLINFO_CONNECT_TIME, &connect_seconds);
    switch ((int)code) {
    case CURLE_COULDNT_CONNECT:
        return error_set(e, ERR_UNREACHABLE, "cannot reach %s (%s): %s", what,
                         os_error != 0 ? strerror((int)os_error) : "no connection", hint);
    case CURLE_COULDNT_RESOLVE_HOST:
        return error_set(e, ERR_UNREACHABLE, "cannot reach %s (its name is not known): %s", what,
                         hint);
    case CURLE_OPERATION_TIMEDOUT:
        if (connect_seconds <= 0)
            return error_set(e, ERR_UNREACHABLE, "cannot reach %s (no connection within %ld s): %s",
                             what, CONNECT_TIMEOUT_MS / 1000, hint);
        return error_set(e, ERR_TIMEOUT, "no complete answer from %s within %" PRIu64 " s", what,
                         deadline_ms / MS_PER_S);
    default:
        return error_set(e, ERR_UNREACHABLE, "the connection to %s broke: %s", what,
                         curl_easy_strerror(code));
    }
}

/* The key is no argument: those can be read by others on this host. */
static struct curl_slist *key_append(struct curl_slist *headers)
{
    const char *key = getenv("DIRIGENT_API_KEY");
    if (key == NULL || key[0] == '\0')
        return headers;
    cleanup(free_pointer) char *header = mem_printf("Authorization: Bearer %s", key);
    return curl_slist_append(headers, header);
}

static enum err call_once(struct client *c, const struct client_call *call,
                          struct answer *ret_answer, struct error *e)
{
    struct answer answer = {0};
    struct transfer t = {
        .call = call, .answer = &answer, .curl = c->curl, .started_ns = clock_mono_ns()};
    uint64_t deadline_ms = call->deadline_ms != 0 ? call->deadline_ms : CLIENT_DEADLINE_MS;
    cleanup(free_pointer) char *url = mem_printf("%s%s", c->api, call->path);
    cleanup(free_pointer) char *body = NULL;
    struct curl_slist *headers = NULL;
    curl_easy_reset(c->curl);
    client_set_common(c->curl);
    curl_easy_setopt(c->curl, CURLOPT_URL, url);
    set_request(c, &t, deadline_ms);
    if (call->json != NULL) {
        body = json_dumps(call->json, JSON_COMPACT | JSON_REAL_PRECISION(9));
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, body);
        headers = curl_slist_append(headers, "Content-Type: application/json");
    }
    headers =
        curl_slist_append(headers, call->read != NULL ? "Content-Type: application/octet-stream"
                                                      : "Accept: application/json, text/plain");
    headers = key_append(headers);
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers);
    CURLcode code = curl_easy_perform(c->curl);
    (void)curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &answer.status);
    curl_slist_free_all(headers);
    /* A refusal may come while we still send: what was answered counts. */
    bool answered = answer.status >= 400 && answer.body.bytes > 0;
    bool stopped = code == CURLE_WRITE_ERROR && call->on_data != NULL; /* by on_data */
    if (code != CURLE_OK && !answered && !stopped) {
        cleanup(free_pointer) char *what = mem_printf("the API at %s", c->api);
        buf_done(&answer.body);
        if (code == CURLE_ABORTED_BY_CALLBACK)
            return ERR_FAILED; /* by `read`, which has said why */
        if (t.too_large)
            return error_set(e, ERR_TOO_LARGE, "the answer of %s is larger than %" PRIu64 " MiB",
                             what, ANSWER_BYTES_MAX / MIB);
        return client_transport_error(c->curl, code, what, API_HINT, deadline_ms, e);
    }
    answer.json = json_loadb(answer.body.data != NULL ? answer.body.data : "", answer.body.bytes,
                             JSON_DECODE_ANY, NULL);
    *ret_answer = answer;
    return ERR_OK;
}

/* Nothing was done, and nothing of an upload was read that could not be read again. */
static bool is_leaderless(const struct client_call *call, const struct answer *a)
{
    const json_t *error = json_object_get(a->json, "error");
    return call->read == NULL && a->status == 503 &&
           strcmp(json_text(error, "code"), "no_leader") == 0;
}

/* Between two leaders of the control plane there may be a moment without one. */
enum err client_call(struct client *c, const struct client_call *call, struct answer *ret_answer,
                     struct error *e)
{
    uint64_t end_ns = clock_mono_ns() + LEADER_PATIENCE_MS * NS_PER_MS;
    for (;;) {
        enum err err = call_once(c, call, ret_answer, e);
        if (err != ERR_OK || !is_leaderless(call, ret_answer) || clock_mono_ns() >= end_ns)
            return err;
        answer_done(ret_answer);
        *ret_answer = (struct answer){0};
        (void)usleep(LEADER_LOOK_US);
    }
}

enum err answer_check(const struct client *c, const struct answer *a, struct error *e)
{
    const json_t *error = json_object_get(a->json, "error");
    if (a->status >= 200 && a->status < 300) {
        if (a->json != NULL)
            return ERR_OK;
        return error_set(e, ERR_FAILED, "the answer of %s is not that of a Dirigent API", c->api);
    }
    if (json_is_object(error))
        return error_field(e, ERR_FAILED, json_text(error, "field"), "%s",
                           json_text(error, "message"));
    return error_set(
        e, ERR_FAILED, "%s answered with status %ld, not as a Dirigent API does: '%.*s'", c->api,
        a->status, (int)MIN(a->body.bytes, 200), a->body.data != NULL ? a->body.data : "");
}

enum err client_send(struct client *c, const char *method, const char *path, const json_t *json,
                     json_t **ret_json, struct error *e)
{
    cleanup(answer_done) struct answer answer = {0};
    struct client_call call = {.method = method, .path = path, .json = json};
    enum err err = client_call(c, &call, &answer, e);
    if (err == ERR_OK)
        err = answer_check(c, &answer, e);
    if (err == ERR_OK)
        *ret_json = json_incref(answer.json);
    return err;
}

enum err client_get(struct client *c, const char *path, json_t **ret_json, struct error *e)
{
    return client_send(c, "GET", path, NULL, ret_json, e);
}

/* ---- reading ---- */

const char *json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

uint64_t json_number(const json_t *object, const char *key)
{
    json_int_t number = json_integer_value(json_object_get(object, key));
    return number > 0 ? (uint64_t)number : 0;
}

enum err client_run_remove(const struct command_input *in, const char *collection, struct error *e)
{
    cleanup(client_done) struct client c = {0};
    enum output_format format = output_format_of(in->common->output);
    json_t *answer = NULL;
    if (client_check_plain_name(in->arguments[0], e) != ERR_OK)
        return ERR_USAGE;
    cleanup(free_pointer) char *path = mem_printf("%s/%s", collection, in->arguments[0]);
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_send(&c, "DELETE", path, NULL, &answer, e);
    if (err == ERR_OK && format == OUTPUT_TABLE)
        printf("%s removed\n", in->arguments[0]);
    else if (err == ERR_OK)
        output_json(stdout, format, answer);
    json_decref(answer);
    return err;
}
