/* invoke.c - `dirigent invoke`: one call through a data plane. The body goes to stdout, everything
 * about it to stderr; the exit code is 0 for 2xx only. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/receipt.h"
#include "cli/style.h"
#include "function/function.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define INVOKE_DEADLINE_MS (15u * 60u * 1000u)
#define FIRST_BYTES 65536u
#define HINT "is `dirigent up` running? --data-plane or DIRIGENT_DATA_PLANE name another address"

struct invoke_values {
    const char *data, *method, *path, *data_plane, *timeout;
    struct option_list headers;
    bool receipt, include, asynchronous, quiet;
};
static const struct option options[] = {
    {"data", 'd', OPTION_TEXT, "TEXT|@FILE", "the body; @- or a pipe on stdin is streamed",
     offsetof(struct invoke_values, data)},
    {"header", 'H', OPTION_LIST, "'K: V'", "a header", offsetof(struct invoke_values, headers)},
    {"method", 'X', OPTION_TEXT, "METHOD", "GET, or POST with a body",
     offsetof(struct invoke_values, method)},
    {"path", 0, OPTION_TEXT, "/PATH", "path and query (/)", offsetof(struct invoke_values, path)},
    {"receipt", 0, OPTION_FLAG, "", "show where the time went",
     offsetof(struct invoke_values, receipt)},
    {"include", 'i', OPTION_FLAG, "", "the answer's headers too, on stderr",
     offsetof(struct invoke_values, include)},
    {"quiet", 'q', OPTION_FLAG, "", "nothing on stderr unless it fails",
     offsetof(struct invoke_values, quiet)},
    {"timeout", 0, OPTION_TEXT, "DURATION", "longest wait for the whole answer (15m)",
     offsetof(struct invoke_values, timeout)},
    {"data-plane", 0, OPTION_TEXT, "URL", "call this one (DIRIGENT_DATA_PLANE; asked from the API)",
     offsetof(struct invoke_values, data_plane)},
    {"async", 'a', OPTION_FLAG, "", "do not wait for the answer (not yet)",
     offsetof(struct invoke_values, asynchronous)},
};

struct body {
    int fd; /* -1: only what is in `first` */
    char *first;
    size_t first_bytes, first_offset;
    bool there;
};
struct invocation {
    const struct invoke_values *values;
    CURL *curl;
    struct body body;
    struct receipt receipt;
    uint64_t body_bytes;
    char reason[64]; /* the data plane's own, when it answered itself */
    char sandbox[32], worker[64];
    bool cold;
    char last_byte;
    bool write_failed;
};

/* ---- the body ---- */

static enum err read_first(struct body *b, const char *name, struct error *e)
{
    b->first = mem_new(FIRST_BYTES);
    while (b->first_bytes < FIRST_BYTES) {
        ssize_t n = read(b->fd, b->first + b->first_bytes, FIRST_BYTES - b->first_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(e, "read %s", name);
        if (n == 0) {
            if (b->fd != STDIN_FILENO)
                (void)close(b->fd);
            b->fd = -1;
            break;
        }
        b->first_bytes += (size_t)n;
    }
    b->there = true;
    return ERR_OK;
}

/* A pipe or a file on stdin is a body; a terminal or /dev/null is none. */
static bool stdin_has_body(const struct invoke_values *v)
{
    struct stat st;
    if (v->method != NULL &&
        (strcasecmp(v->method, "GET") == 0 || strcasecmp(v->method, "HEAD") == 0))
        return false;
    return fstat(STDIN_FILENO, &st) == 0 && (S_ISREG(st.st_mode) || S_ISFIFO(st.st_mode));
}

static enum err body_open(const struct invoke_values *v, struct body *b, struct error *e)
{
    b->fd = -1;
    if (v->data == NULL) {
        if (!stdin_has_body(v))
            return ERR_OK;
        b->fd = STDIN_FILENO;
        enum err err = read_first(b, "stdin", e);
        b->there = b->first_bytes > 0;
        return err;
    }
    if (v->data[0] != '@') {
        b->first = mem_strdup(v->data);
        b->first_bytes = strlen(v->data);
        b->there = true;
        return ERR_OK;
    }
    if (strcmp(v->data, "@-") == 0) {
        b->fd = STDIN_FILENO;
        return read_first(b, "stdin", e);
    }
    b->fd = open(v->data + 1, O_RDONLY | O_CLOEXEC);
    if (b->fd < 0) {
        (void)error_errno(e, "-d: open '%s'", v->data + 1);
        return ERR_USAGE;
    }
    return read_first(b, v->data + 1, e);
}

static size_t on_read(char *data, size_t size, size_t count, void *user)
{
    struct body *b = user;
    size_t room = size * count, left = b->first_bytes - b->first_offset;
    if (left > 0) {
        size_t n = MIN(room, left);
        memcpy(data, b->first + b->first_offset, n);
        b->first_offset += n;
        return n;
    }
    if (b->fd < 0)
        return 0;
    ssize_t n;
    do
        n = read(b->fd, data, room);
    while (n < 0 && errno == EINTR);
    return n < 0 ? CURL_READFUNC_ABORT : (size_t)n;
}

static void body_done(struct body *b)
{
    if (b->fd > STDIN_FILENO)
        fd_close(&b->fd);
    free(b->first);
}

/* ---- the answer ---- */

static size_t on_body(char *data, size_t size, size_t count, void *user)
{
    struct invocation *i = user;
    size_t bytes = size * count;
    i->body_bytes += bytes;
    if (bytes > 0)
        i->last_byte = data[bytes - 1];
    if (fwrite(data, 1, bytes, stdout) == bytes && fflush(stdout) == 0)
        return bytes;
    i->write_failed = true;
    return CURL_WRITEFUNC_ERROR;
}

static void keep_header(struct str name, struct str value, const char *wanted, char *place,
                        size_t bytes)
{
    if (str_equal_nocase(name, str_of(wanted)))
        (void)snprintf(place, bytes, "%.*s", STR_ARG(value));
}

static size_t on_header(char *data, size_t size, size_t count, void *user)
{
    struct invocation *i = user;
    size_t bytes = size * count;
    struct str value, line = str_trim((struct str){data, bytes});
    while (line.bytes > 0 &&
           (line.data[line.bytes - 1] == '\n' || line.data[line.bytes - 1] == '\r'))
        line.bytes--;
    if (i->values->include && line.bytes > 0)
        fprintf(stderr, "%.*s\n", STR_ARG(line));
    struct str name = str_split(line, ':', &value);
    if (value.data == NULL)
        return bytes;
    value = str_trim(value);
    if (str_equal_nocase(name, STR("Server-Timing")))
        receipt_parse(value, &i->receipt);
    keep_header(name, value, "Dirigent-Error", i->reason, sizeof(i->reason));
    keep_header(name, value, "Dirigent-Sandbox", i->sandbox, sizeof(i->sandbox));
    keep_header(name, value, "Dirigent-Worker", i->worker, sizeof(i->worker));
    if (str_equal_nocase(name, STR("Dirigent-Cold")))
        i->cold = str_equal(value, STR("1"));
    return bytes;
}

/* ---- which data plane ---- */

static enum err ask_api(const struct command_input *in, char **ret_url, struct error *e)
{
    cleanup(client_done) struct client c = {0};
    json_t *list = NULL, *item;
    size_t index;
    const char *url = NULL;
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, "/v1/data-planes", &list, e);
    if (err != ERR_OK)
        return err;
    json_array_foreach(json_object_get(list, "items"), index, item)
    {
        if (url == NULL && strcmp(json_text(item, "state"), "alive") == 0)
            url = json_text(item, "url");
    }
    if (url == NULL)
        err = error_set(e, ERR_UNREACHABLE, "no data plane is alive: nothing takes calls");
    else
        err = url_normalize(url, "the API's data plane", ret_url, e);
    json_decref(list);
    return err;
}

static enum err find_data_plane(const struct command_input *in, char **ret_url, struct error *e)
{
    const struct invoke_values *v = in->values;
    const char *environment = getenv("DIRIGENT_DATA_PLANE");
    if (v->data_plane != NULL)
        return url_normalize(v->data_plane, "--data-plane", ret_url, e);
    if (environment != NULL && environment[0] != '\0')
        return url_normalize(environment, "DIRIGENT_DATA_PLANE", ret_url, e);
    return ask_api(in, ret_url, e);
}

/* ---- the call ---- */

static enum err check_values(const struct command_input *in, uint64_t *ret_deadline_ms,
                             struct error *e)
{
    const struct invoke_values *v = in->values;
    struct error inner = {0};
    uint32_t ms = INVOKE_DEADLINE_MS;
    enum err err = client_check_name(in->arguments[0], e);
    if (err != ERR_OK)
        return err;
    if (v->asynchronous)
        return error_set(e, ERR_UNSUPPORTED, "--async: asynchronous calls are not there yet");
    if (v->path != NULL && v->path[0] != '/')
        return error_set(e, ERR_USAGE, "--path '%s' must begin with /", v->path);
    if (v->timeout != NULL && parse_duration_ms(str_of(v->timeout), &ms, &inner) != ERR_OK)
        return error_set(e, ERR_USAGE, "--timeout: %s", inner.text);
    if (ms == 0)
        return error_set(e, ERR_USAGE, "--timeout must be longer than 0");
    for (size_t i = 0; i < v->headers.count; i++)
        if (strchr(v->headers.items[i], ':') == NULL || v->headers.items[i][0] == ':' ||
            strpbrk(v->headers.items[i], "\r\n") != NULL)
            return error_set(e, ERR_USAGE, "-H '%s' is not 'NAME: VALUE'", v->headers.items[i]);
    *ret_deadline_ms = ms;
    return ERR_OK;
}

static bool has_header(const struct invoke_values *v, const char *name)
{
    for (size_t i = 0; i < v->headers.count; i++)
        if (strncasecmp(v->headers.items[i], name, strlen(name)) == 0 &&
            v->headers.items[i][strlen(name)] == ':')
            return true;
    return false;
}

static struct curl_slist *make_headers(const struct invocation *inv, const char *name)
{
    const struct invoke_values *v = inv->values;
    struct curl_slist *headers = NULL;
    cleanup(free_pointer) char *host = mem_printf("Host: %s", name);
    if (!has_header(v, "Host"))
        headers = curl_slist_append(headers, host);
    if (inv->body.there && !has_header(v, "Content-Type"))
        headers = curl_slist_append(headers, "Content-Type: application/octet-stream");
    if (v->receipt)
        headers = curl_slist_append(headers, "Dirigent-Receipt: 1");
    if (inv->body.fd < 0)
        headers = curl_slist_append(headers, "Expect:"); /* small: no need to ask first */
    for (size_t i = 0; i < v->headers.count; i++) {
        const char *value = strchr(v->headers.items[i], ':') + 1;
        if (str_trim(str_of(value)).bytes > 0) {
            headers = curl_slist_append(headers, v->headers.items[i]);
            continue;
        }
        /* libcurl's way to send a header without a value */
        cleanup(free_pointer) char *empty =
            mem_printf("%.*s;", (int)(value - 1 - v->headers.items[i]), v->headers.items[i]);
        headers = curl_slist_append(headers, empty);
    }
    return headers;
}

static void set_call(struct invocation *inv, const char *url, uint64_t deadline_ms)
{
    const struct invoke_values *v = inv->values;
    CURL *curl = inv->curl;
    client_set_common(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)deadline_ms);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, inv);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, inv);
    if (inv->body.there) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(curl, CURLOPT_READDATA, &inv->body);
        if (inv->body.fd < 0)
            curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)inv->body.first_bytes);
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, v->method != NULL ? v->method : "POST");
    } else if (v->method != NULL && strcasecmp(v->method, "HEAD") == 0) {
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    } else if (v->method != NULL) {
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, v->method);
    }
}

static const char *status_phrase(long status)
{
    static const struct {
        long status;
        const char *phrase;
    } phrases[] = {
        {200, " OK"},
        {201, " Created"},
        {202, " Accepted"},
        {204, " No Content"},
        {301, " Moved Permanently"},
        {302, " Found"},
        {304, " Not Modified"},
        {400, " Bad Request"},
        {401, " Unauthorized"},
        {403, " Forbidden"},
        {404, " Not Found"},
        {405, " Method Not Allowed"},
        {408, " Request Timeout"},
        {413, " Content Too Large"},
        {429, " Too Many Requests"},
        {500, " Internal Server Error"},
        {501, " Not Implemented"},
        {502, " Bad Gateway"},
        {503, " Service Unavailable"},
        {504, " Gateway Timeout"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(phrases); i++)
        if (phrases[i].status == status)
            return phrases[i].phrase;
    return "";
}

static void print_outcome(const struct invocation *inv, long status)
{
    char first[HUMAN_BYTES_MAX], total[HUMAN_BYTES_MAX], bytes[HUMAN_BYTES_MAX];
    curl_off_t first_us = 0, total_us = 0;
    bool good = status >= 200 && status < 300;
    (void)curl_easy_getinfo(inv->curl, CURLINFO_STARTTRANSFER_TIME_T, &first_us);
    (void)curl_easy_getinfo(inv->curl, CURLINFO_TOTAL_TIME_T, &total_us);
    if (inv->values->quiet && good && !inv->values->receipt)
        return;
    fprintf(stderr, "%s%ld%s%s  first byte after %s, all %s after %s\n",
            style_begin(stderr, good ? STYLE_GREEN : STYLE_RED), status, status_phrase(status),
            style_end(stderr), human_duration_us((uint64_t)first_us, first),
            human_bytes(inv->body_bytes, bytes), human_duration_us((uint64_t)total_us, total));
    if (inv->reason[0] != '\0')
        fprintf(stderr, "reason: %s\n", inv->reason);
    if (!inv->values->receipt)
        return;
    if (inv->receipt.count == 0) {
        fprintf(stderr, "the answer has no receipt\n");
        return;
    }
    receipt_print(&inv->receipt, stderr);
    if (inv->sandbox[0] != '\0')
        fprintf(stderr, "  %s, sandbox %s on %s\n", inv->cold ? "cold start" : "warm", inv->sandbox,
                inv->worker);
}

static enum err call(struct invocation *inv, const char *base, const char *name,
                     uint64_t deadline_ms, struct error *e)
{
    long status = 0;
    const char *path = inv->values->path != NULL ? inv->values->path : "/";
    cleanup(free_pointer) char *url = mem_printf("%s%s", base, path);
    cleanup(free_pointer) char *what = mem_printf("the data plane at %s", base);
    set_call(inv, url, deadline_ms);
    struct curl_slist *headers = make_headers(inv, name);
    curl_easy_setopt(inv->curl, CURLOPT_HTTPHEADER, headers);
    CURLcode code = curl_easy_perform(inv->curl);
    (void)curl_easy_getinfo(inv->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    if (inv->write_failed)
        return error_set(e, ERR_FAILED, "the answer could not be written to stdout");
    if (code == CURLE_ABORTED_BY_CALLBACK)
        return error_set(e, ERR_FAILED, "the body could not be read to its end");
    if (code == CURLE_URL_MALFORMAT)
        return error_set(e, ERR_USAGE, "'%s' is no address that can be called", url);
    if (code == CURLE_PARTIAL_FILE || (code != CURLE_OK && status > 0 && inv->body_bytes > 0))
        return error_set(e, ERR_FAILED,
                         "the answer of '%s' (status %ld) was cut after %" PRIu64 " bytes: %s",
                         name, status, inv->body_bytes, curl_easy_strerror(code));
    /* What was answered while we still sent counts. */
    if (code != CURLE_OK && !(code == CURLE_SEND_ERROR && status >= 400))
        return client_transport_error(inv->curl, code, what, HINT, deadline_ms, e);
    if (style_is_on(stdout) && inv->body_bytes > 0 && inv->last_byte != '\n')
        fputc('\n', stderr);
    print_outcome(inv, status);
    e->text[0] = '\0';
    return status >= 200 && status < 300 ? ERR_OK : ERR_FAILED;
}

static enum err run_invoke(const struct command_input *in, struct error *e)
{
    struct invocation inv = {.values = in->values, .body = {.fd = -1}};
    uint64_t deadline_ms = 0;
    cleanup(free_pointer) char *base = NULL;
    enum err err = check_values(in, &deadline_ms, e);
    if (err == ERR_OK)
        err = body_open(inv.values, &inv.body, e);
    if (err == ERR_OK)
        err = find_data_plane(in, &base, e);
    if (err == ERR_OK) {
        (void)curl_global_init(CURL_GLOBAL_DEFAULT);
        inv.curl = curl_easy_init();
        err = call(&inv, base, in->arguments[0], deadline_ms, e);
        curl_easy_cleanup(inv.curl);
    }
    body_done(&inv.body);
    return err;
}

const struct command command_invoke = {
    .name = "invoke",
    .alias = "call",
    .arguments = "NAME",
    .group = GROUP_LOOK,
    .summary = "call a function: body to stdout, status and times to stderr",
    .details =
        "  dirigent invoke hello\n"
        "  dirigent invoke hello -d '{\"a\":1}' -H 'Content-Type: application/json' --path /add\n"
        "  tar c . | dirigent invoke pack --receipt > packed",
    .arguments_min = 1,
    .arguments_max = 1,
    .options = options,
    .option_count = ARRAY_COUNT(options),
    .values_bytes = sizeof(struct invoke_values),
    .is_client = true,
    .run = run_invoke};
