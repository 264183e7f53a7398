/* etcd.c - libcurl and jansson. */
#include "control_plane/store/etcd.h"
#include <curl/curl.h>
#include <errno.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_BYTES_MAX (16u * MIB) /* what a member sends within an attempt */
#define GRPC_UNKNOWN 2
#define GRPC_INVALID_ARGUMENT 3
#define GRPC_DEADLINE_EXCEEDED 4
#define GRPC_RESOURCE_EXHAUSTED 8
#define GRPC_OUT_OF_RANGE 11
#define GRPC_UNAVAILABLE 14

struct etcd {
    char *endpoints[ETCD_ENDPOINTS_MAX];
    size_t count, current;
    char *ca, *cert, *key;
    bool single;
    const atomic_bool *stop;
    size_t refused_count; /* attempts in a row that failed over certificates */
    char story[CURL_ERROR_SIZE];
    CURL *curl;
    struct curl_slist *headers, *watch_headers;
};

/* ---- where ---- */

static enum err endpoint_add(struct etcd *c, struct str text, struct error *e)
{
    bool plain = str_has_prefix(text, STR("http://")), tls = str_has_prefix(text, STR("https://"));
    if (c->count == ETCD_ENDPOINTS_MAX)
        return error_set(e, ERR_USAGE, "more than %u members of etcd are given",
                         ETCD_ENDPOINTS_MAX);
    if (!plain && !tls)
        return error_set(e, ERR_USAGE, "'%.*s' is no address of etcd such as https://10.0.0.1:2379",
                         STR_ARG(text));
    while (text.bytes > 0 && text.data[text.bytes - 1] == '/')
        text.bytes--;
    c->endpoints[c->count++] = mem_strndup(text.data, text.bytes);
    return ERR_OK;
}

static enum err option_set(struct etcd *c, struct str text, struct error *e)
{
    static const struct {
        struct str name;
        size_t offset;
    } files[] = {{STR("ca="), offsetof(struct etcd, ca)},
                 {STR("cert="), offsetof(struct etcd, cert)},
                 {STR("key="), offsetof(struct etcd, key)}};
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        if (!str_has_prefix(text, files[i].name))
            continue;
        char **place = (char **)((char *)c + files[i].offset);
        free(*place);
        *place = mem_strndup(text.data + files[i].name.bytes, text.bytes - files[i].name.bytes);
        return ERR_OK;
    }
    if (!str_equal(text, STR("single=1")))
        return error_set(e, ERR_USAGE, "'%.*s' is none of ca=, cert=, key=, single=1",
                         STR_ARG(text));
    c->single = true;
    return ERR_OK;
}

/* The part up to `stop`; *at moves behind it. False at the end. */
static bool part_take(const char **at, const char *stops, struct str *ret_part)
{
    if (**at == '\0')
        return false;
    *ret_part = (struct str){*at, strcspn(*at, stops)};
    *at += ret_part->bytes;
    return true;
}

static enum err where_read(struct etcd *c, const char *where, struct error *e)
{
    const char *at = where;
    struct str part;
    enum err err = ERR_OK;
    while (err == ERR_OK && part_take(&at, ",?", &part)) {
        err = endpoint_add(c, part, e);
        if (*at != ',')
            break;
        at++;
    }
    if (err == ERR_OK && *at == '?')
        at++;
    while (err == ERR_OK && part_take(&at, "&", &part)) {
        err = option_set(c, part, e);
        at += *at == '&';
    }
    if (err == ERR_OK && c->count == 0)
        err = error_set(e, ERR_USAGE, "no address of etcd is given");
    return err;
}

static enum err curl_make(struct etcd *c, struct error *e)
{
    c->curl = curl_easy_init();
    if (c->curl == NULL)
        return error_set(e, ERR_NO_MEMORY, "no HTTP client could be made");
    c->headers = curl_slist_append(c->headers, "Content-Type: application/json");
    c->headers = curl_slist_append(c->headers, "Expect:");
    c->watch_headers = curl_slist_append(c->watch_headers, "Content-Type: application/json");
    c->watch_headers = curl_slist_append(c->watch_headers, "Expect:");
    /* etcd's metadata for "only while you have a leader": a member that is cut off would else keep
     * a silent watch for ever. */
    c->watch_headers = curl_slist_append(c->watch_headers, "Grpc-Metadata-hasleader: true");
    return ERR_OK;
}

/* libcurl would say it in each attempt, until the deadline, and without the name. */
static enum err files_check(const struct etcd *c, struct error *e)
{
    const char *const files[] = {c->ca, c->cert, c->key};
    static const char *const what[] = {"authority", "certificate", "key"};
    for (size_t i = 0; i < ARRAY_COUNT(files); i++)
        if (files[i] != NULL && access(files[i], R_OK) != 0)
            return error_set(e, ERR_USAGE, "the file '%s' with the %s for etcd cannot be read: %s",
                             files[i], what[i], strerror(errno));
    if ((c->cert == NULL) != (c->key == NULL))
        return error_set(e, ERR_USAGE,
                         "a certificate for etcd needs its key, and a key its certificate");
    return ERR_OK;
}

enum err etcd_open(const char *where, struct etcd **ret_etcd, struct error *e)
{
    struct etcd *c = mem_new(sizeof(*c));
    enum err err = where_read(c, where, e);
    if (err == ERR_OK)
        err = files_check(c, e);
    if (err == ERR_OK)
        err = curl_make(c, e);
    if (err != ERR_OK) {
        etcd_close(c);
        return err;
    }
    *ret_etcd = c;
    return ERR_OK;
}

enum err etcd_copy(const struct etcd *from, struct etcd **ret_etcd, struct error *e)
{
    struct etcd *c = mem_new(sizeof(*c));
    for (size_t i = 0; i < from->count; i++)
        c->endpoints[i] = mem_strdup(from->endpoints[i]);
    c->count = from->count;
    c->current = from->current;
    c->ca = from->ca != NULL ? mem_strdup(from->ca) : NULL;
    c->cert = from->cert != NULL ? mem_strdup(from->cert) : NULL;
    c->key = from->key != NULL ? mem_strdup(from->key) : NULL;
    c->single = from->single;
    enum err err = curl_make(c, e);
    if (err != ERR_OK) {
        etcd_close(c);
        return err;
    }
    *ret_etcd = c;
    return ERR_OK;
}

void etcd_close(struct etcd *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->count; i++)
        free(c->endpoints[i]);
    free(c->ca);
    free(c->cert);
    free(c->key);
    curl_slist_free_all(c->headers);
    curl_slist_free_all(c->watch_headers);
    if (c->curl != NULL)
        curl_easy_cleanup(c->curl);
    free(c);
}

bool etcd_allows_single(const struct etcd *c)
{
    return c->single;
}

const char *etcd_endpoint(const struct etcd *c)
{
    return c->endpoints[c->current];
}

/* ---- one attempt ---- */

static size_t on_bytes(char *data, size_t size, size_t count, void *user)
{
    struct buf *body = user;
    if (body->bytes + size * count > ANSWER_BYTES_MAX)
        return 0;
    buf_append(body, data, size * count);
    return size * count;
}

static void request_set(struct etcd *c, const char *url, const char *body, uint32_t attempt_ms)
{
    curl_easy_reset(c->curl); /* connections stay */
    c->story[0] = '\0';
    curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, c->story);
    curl_easy_setopt(c->curl, CURLOPT_URL, url);
    curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(c->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c->curl, CURLOPT_TIMEOUT_MS, (long)attempt_ms);
    curl_easy_setopt(c->curl, CURLOPT_CONNECTTIMEOUT_MS, (long)ETCD_ATTEMPT_MS);
    curl_easy_setopt(c->curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(c->curl, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, c->headers);
    if (body != NULL)
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, body);
    if (c->ca != NULL)
        curl_easy_setopt(c->curl, CURLOPT_CAINFO, c->ca);
    if (c->cert != NULL)
        curl_easy_setopt(c->curl, CURLOPT_SSLCERT, c->cert);
    if (c->key != NULL)
        curl_easy_setopt(c->curl, CURLOPT_SSLKEY, c->key);
}

static void member_next(struct etcd *c)
{
    c->current = (c->current + 1) % c->count;
}

void etcd_avoid(struct etcd *c)
{
    member_next(c);
}

/* A refusal of our certificate comes as an alert, after the handshake, from where libcurl sees but
 * a failed read. */
static bool is_certificate(const struct etcd *c, CURLcode code)
{
    return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CERTPROBLEM ||
           code == CURLE_SSL_CACERT_BADFILE || code == CURLE_SSL_CLIENTCERT ||
           (strstr(c->story, "alert") != NULL && strstr(c->story, "certificate") != NULL) ||
           strstr(c->story, "unknown ca") != NULL;
}

static enum err transport_error(struct etcd *c, CURLcode code, struct error *e)
{
    bool unsent = code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST ||
                  code == CURLE_SSL_CONNECT_ERROR || code == CURLE_PEER_FAILED_VERIFICATION ||
                  code == CURLE_SSL_CERTPROBLEM || code == CURLE_SSL_CACERT_BADFILE;
    curl_off_t connected_us = 0;
    (void)curl_easy_getinfo(c->curl, CURLINFO_PRETRANSFER_TIME_T, &connected_us);
    unsent |= code == CURLE_OPERATION_TIMEDOUT && connected_us == 0;
    if (code == CURLE_WRITE_ERROR)
        return error_set(e, ERR_TOO_LARGE, "etcd at %s sent an answer of more than %u bytes",
                         etcd_endpoint(c), (unsigned)ANSWER_BYTES_MAX);
    enum err err =
        error_set(e, unsent ? ERR_UNREACHABLE : ERR_TIMEOUT, "etcd at %s: %s", etcd_endpoint(c),
                  c->story[0] != '\0' ? c->story : curl_easy_strerror(code));
    c->refused_count = is_certificate(c, code) ? c->refused_count + 1 : 0;
    member_next(c);
    return err;
}

/* {"error": "...", "code": N}, the gateway's form of a gRPC status. */
static enum err refusal(struct etcd *c, long status, const json_t *answer, struct error *e)
{
    const char *text = json_string_value(json_object_get(answer, "message"));
    if (text == NULL)
        text = json_string_value(json_object_get(answer, "error"));
    if (text == NULL)
        text = "it gave no reason";
    uint64_t code = etcd_number(answer, "code");
    enum err err = ERR_FAILED;
    if (code == GRPC_RESOURCE_EXHAUSTED && strstr(text, "space exceeded") != NULL)
        err = ERR_NO_SPACE;
    else if (code == GRPC_OUT_OF_RANGE)
        err = ERR_STALE;
    else if (code == GRPC_INVALID_ARGUMENT &&
             (strstr(text, "too large") != NULL || strstr(text, "too many operations") != NULL))
        err = ERR_TOO_LARGE;
    else if (code == GRPC_UNAVAILABLE || code == GRPC_DEADLINE_EXCEEDED ||
             code == GRPC_RESOURCE_EXHAUSTED || code == GRPC_UNKNOWN || status >= 500)
        err = ERR_TIMEOUT; /* no leader, leader changed, timed out: it may have been carried out */
    error_set(e, err, "etcd at %s: %s", etcd_endpoint(c), text);
    if (err == ERR_TIMEOUT)
        member_next(c);
    return err;
}

enum err etcd_try(struct etcd *c, const char *path, const json_t *request, uint32_t attempt_ms,
                  json_t **ret_answer, struct error *e)
{
    cleanup(free_pointer) char *url = mem_printf("%s%s", etcd_endpoint(c), path);
    cleanup(free_pointer) char *text = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    cleanup(buf_done) struct buf body = {0};
    long status = 0;
    request_set(c, url, text, attempt_ms);
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, &body);
    CURLcode code = curl_easy_perform(c->curl);
    if (code != CURLE_OK)
        return transport_error(c, code, e);
    c->refused_count = 0;
    (void)curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
    json_t *answer = json_loadb(body.bytes > 0 ? body.data : "", body.bytes, 0, NULL);
    if (status == 200 && answer != NULL) {
        *ret_answer = answer;
        return ERR_OK;
    }
    if (status == 404) {
        json_decref(answer);
        return error_set(
            e, ERR_FAILED,
            "etcd at %s has no '%s': it must be 3.4 or newer, with its gRPC gateway enabled",
            etcd_endpoint(c), path);
    }
    enum err err = refusal(c, status, answer, e);
    json_decref(answer);
    return err;
}

uint64_t etcd_now_ms(void)
{
    return clock_mono_ns() / NS_PER_MS;
}

uint64_t etcd_end_ms(void)
{
    return etcd_now_ms() + ETCD_DEADLINE_MS;
}

void etcd_stop_by(struct etcd *c, const atomic_bool *stop)
{
    c->stop = stop;
}

enum err etcd_read(struct etcd *c, const char *path, const json_t *request, uint64_t end_ms,
                   json_t **ret_answer, struct error *e)
{
    for (size_t attempt = 1;; attempt++) {
        /* One that is large takes longer; a member that hangs is passed over quickly the first time
         * round. */
        uint32_t attempt_ms = attempt <= c->count ? ETCD_ATTEMPT_MS : 8 * ETCD_ATTEMPT_MS;
        enum err err = etcd_try(c, path, request, attempt_ms, ret_answer, e);
        bool again = err == ERR_UNREACHABLE || err == ERR_TIMEOUT;
        if (again && c->refused_count >= c->count) {
            e->code = ERR_PERMISSION; /* the sentence stays */
            return ERR_PERMISSION;
        }
        if (!again || etcd_now_ms() >= end_ms || (c->stop != NULL && atomic_load(c->stop)))
            return err;
        if (attempt % c->count == 0)
            (void)poll(NULL, 0, 20);
    }
}

/* ---- endless answers ---- */

struct stream {
    const atomic_bool *stop, *wake;
    uint64_t end_ms, first_ms; /* first_ms: by when it must have begun */
    etcd_on_message *on_message;
    etcd_on_majority *on_majority;
    void *user;
    struct buf line;
    bool begun, ended; /* ended: by us */
};

/* The gateway sends one JSON object a line. */
static void line_take(struct stream *s, size_t bytes)
{
    json_t *message = json_loadb(s->line.data, bytes, 0, NULL);
    if (message != NULL)
        s->ended |= !s->on_message(s->user, message);
    json_decref(message);
}

static size_t on_stream_bytes(char *data, size_t size, size_t count, void *user)
{
    struct stream *s = user;
    s->begun = true;
    if (s->line.bytes + size * count > ANSWER_BYTES_MAX)
        return 0;
    buf_append(&s->line, data, size * count);
    for (const char *end; !s->ended && (end = memchr(s->line.data, '\n', s->line.bytes)) != NULL;) {
        size_t bytes = (size_t)(end - s->line.data) + 1;
        line_take(s, bytes);
        buf_consume(&s->line, bytes);
    }
    return s->ended ? 0 : size * count;
}

static bool goes_on(struct stream *s)
{
    s->ended |= atomic_load(s->stop) || atomic_load(s->wake) || etcd_now_ms() >= s->end_ms;
    return !s->ended && (s->begun || etcd_now_ms() < s->first_ms);
}

/* A stream is silent when nothing happens, and when its member is out of reach or has lost the
 * majority: every now and then the member is asked something that it cannot answer alone; when
 * there is no answer, something that it can, which tells the one from the other. */
struct probe {
    CURLM *multi;
    CURL *curl;
    uint64_t next_ms;
    bool running, alone, failed; /* alone: that is what is asked next */
};

static size_t on_probe_bytes(char *data, size_t size, size_t count, void *user)
{
    (void)data, (void)user;
    return size * count;
}

/* From the stream's handle, with its certificates. */
static void probe_init(struct probe *p, struct etcd *c, CURLM *multi)
{
    cleanup(free_pointer) char *url = mem_printf("%s/v3/kv/range", etcd_endpoint(c));
    *p = (struct probe){.multi = multi,
                        .curl = curl_easy_duphandle(c->curl),
                        .next_ms = etcd_now_ms() + ETCD_PROBE_MS};
    if (p->curl == NULL)
        return;
    curl_easy_setopt(p->curl, CURLOPT_URL, url);
    curl_easy_setopt(p->curl, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(p->curl, CURLOPT_TIMEOUT_MS, (long)ETCD_PROBE_ANSWER_MS);
    curl_easy_setopt(p->curl, CURLOPT_WRITEFUNCTION, on_probe_bytes);
}

static void probe_done(struct probe *p)
{
    if (p->running)
        curl_multi_remove_handle(p->multi, p->curl);
    if (p->curl != NULL)
        curl_easy_cleanup(p->curl);
}

static void probe_begin(struct probe *p)
{
    if (p->curl == NULL || p->running || etcd_now_ms() < p->next_ms)
        return;
    p->running = true;
    curl_easy_setopt(p->curl, CURLOPT_COPYPOSTFIELDS,
                     p->alone ? "{\"key\":\"AA==\",\"serializable\":true,\"count_only\":true}"
                              : "{\"key\":\"AA==\",\"count_only\":true}");
    curl_multi_add_handle(p->multi, p->curl);
}

static void probe_end(struct probe *p, struct stream *s, CURLcode result)
{
    long status = 0;
    (void)curl_easy_getinfo(p->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_multi_remove_handle(p->multi, p->curl);
    p->running = false;
    bool failed = result != CURLE_OK || status >= 500; /* 503: it has no leader */
    if (!p->alone && s->on_majority != NULL)
        s->on_majority(s->user, !failed);
    p->failed = failed && p->alone;
    p->alone = failed;
    p->next_ms = etcd_now_ms() + (failed ? 0 : ETCD_PROBE_MS);
}

/* The multi interface, to be able to look in between whether it is to end. */
static CURLcode perform(struct etcd *c, struct stream *s)
{
    CURLM *multi = curl_multi_init();
    CURLcode result = CURLE_OPERATION_TIMEDOUT; /* unless it says otherwise */
    struct probe probe;
    bool ended = false;
    int running, left;
    if (multi == NULL)
        return CURLE_OUT_OF_MEMORY;
    curl_multi_add_handle(multi, c->curl);
    probe_init(&probe, c, multi);
    while (!ended && !probe.failed && goes_on(s)) {
        if (curl_multi_perform(multi, &running) != CURLM_OK)
            break;
        for (CURLMsg *m; (m = curl_multi_info_read(multi, &left)) != NULL;) {
            if (m->msg != CURLMSG_DONE)
                continue;
            if (m->easy_handle == probe.curl) {
                probe_end(&probe, s, m->data.result);
                continue;
            }
            ended = true;
            result = m->data.result;
        }
        if (s->begun)
            probe_begin(&probe);
        if (!ended && !probe.failed)
            (void)curl_multi_poll(multi, NULL, 0, 20, NULL);
    }
    probe_done(&probe);
    curl_multi_remove_handle(multi, c->curl);
    curl_multi_cleanup(multi);
    return result;
}

enum err etcd_stream(struct etcd *c, const char *path, const json_t *request, uint32_t for_ms,
                     const atomic_bool *stop, const atomic_bool *wake, etcd_on_message *on_message,
                     etcd_on_majority *on_majority, void *user, struct error *e)
{
    cleanup(free_pointer) char *url = mem_printf("%s%s", etcd_endpoint(c), path);
    cleanup(free_pointer) char *text = json_dumps(request, JSON_COMPACT);
    struct stream s = {.stop = stop,
                       .wake = wake,
                       .end_ms = etcd_now_ms() + for_ms,
                       .first_ms = etcd_now_ms() + 4 * ETCD_ATTEMPT_MS,
                       .on_message = on_message,
                       .on_majority = on_majority,
                       .user = user};
    request_set(c, url, text, 0);
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, c->watch_headers);
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_stream_bytes);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, &s);
    CURLcode code = perform(c, &s);
    buf_done(&s.line);
    if (s.ended)
        return ERR_OK;
    if (code != CURLE_OK)
        return transport_error(c, code, e);
    enum err err = error_set(e, ERR_UNREACHABLE, "etcd at %s ended a watch", etcd_endpoint(c));
    member_next(c);
    return err;
}

/* ---- values ---- */

json_t *etcd_base64(struct str data)
{
    cleanup(free_pointer) char *text = mem_new((data.bytes + 2) / 3 * 4 + 1);
    (void)EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)data.data, (int)data.bytes);
    return json_string(text);
}

enum err etcd_unbase64(const json_t *text, struct buf *ret_data, struct error *e)
{
    size_t bytes = json_string_length(text);
    const char *from = json_string_value(text);
    if (text == NULL) /* protobuf leaves out what is empty */
        return ERR_OK;
    char *to = buf_reserve(ret_data, bytes / 4 * 3 + 4);
    int n = from != NULL && bytes % 4 == 0
                ? EVP_DecodeBlock((unsigned char *)to, (const unsigned char *)from, (int)bytes)
                : -1;
    if (n < 0)
        return error_set(e, ERR_CORRUPT, "etcd sent a value that is no base64");
    size_t padding =
        bytes > 0 && from[bytes - 1] == '=' ? (bytes > 1 && from[bytes - 2] == '=' ? 2 : 1) : 0;
    ret_data->bytes += (size_t)n - padding;
    return ERR_OK;
}

uint64_t etcd_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (json_is_integer(value))
        return (uint64_t)json_integer_value(value);
    return json_is_string(value) ? strtoull(json_string_value(value), NULL, 10) : 0;
}
