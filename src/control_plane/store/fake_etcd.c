/* fake_etcd.c - a history of changes, a poll() loop, and just enough HTTP. */
#include "control_plane/store/fake_etcd.h"
#include "control_plane/store/etcd.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS_MAX 32u
#define CHANGES_MAX 20000u
#define DELAYED_MAX 64u
#define FAULTS_MAX 16u

struct change {
    uint64_t revision, created, version;
    char *key, *value; /* value NULL: deleted */
};
struct connection {
    int fd; /* 0: free */
    struct buf in;
    bool watches, muted;
    uint64_t watch_next; /* the revision to be told next */
};
struct fake_etcd {
    int listen_fd, wake[2];
    char where[128], version[16];
    unsigned members;
    pthread_t thread;
    struct connection connections[CONNECTIONS_MAX];
    pthread_mutex_t mutex; /* guards what follows; the thread holds it while it works */
    bool stop, mute, cancel, fail_ranges;
    uint64_t revision, skip_revision, hold_revision;
    bool skip_next;
    struct change *changes;
    size_t change_count;
    json_t *delayed[DELAYED_MAX];
    size_t delayed_count;
    enum fake_fault faults[FAULTS_MAX];
    size_t fault_count, fault_next;
    unsigned transactions;
    uint64_t compacted;
};

/* ---- history ---- */

/* The newest change of a key at or before `revision`; NULL: there never was one. */
static const struct change *change_of(const struct fake_etcd *f, const char *key, uint64_t revision)
{
    for (size_t i = f->change_count; i-- > 0;)
        if (f->changes[i].revision <= revision && strcmp(f->changes[i].key, key) == 0)
            return &f->changes[i];
    return NULL;
}

static void change_add(struct fake_etcd *f, const char *key, const char *value, uint64_t revision)
{
    const struct change *before = change_of(f, key, revision);
    bool was_there = before != NULL && before->value != NULL;
    if (value == NULL && !was_there)
        return;
    assert(f->change_count < CHANGES_MAX);
    struct change c = {.revision = revision,
                       .created = was_there ? before->created : revision,
                       .version = value == NULL ? 0
                                  : was_there   ? before->version + 1
                                                : 1,
                       .key = mem_strdup(key),
                       .value = value != NULL ? mem_strdup(value) : NULL};
    f->changes[f->change_count++] = c;
    f->revision = MAX(f->revision, revision);
    if (f->skip_next) {
        f->skip_revision = revision;
        f->skip_next = false;
    }
}

static json_t *number(uint64_t n)
{
    return json_sprintf("%" PRIu64, n);
}

static json_t *kv_json(const struct change *c)
{
    json_t *kv = json_pack("{s:o, s:o}", "key", etcd_base64(str_of(c->key)), "mod_revision",
                           number(c->revision));
    if (c->value == NULL)
        return kv;
    json_object_set_new(kv, "create_revision", number(c->created));
    json_object_set_new(kv, "version", number(c->version));
    json_object_set_new(kv, "value", etcd_base64(str_of(c->value)));
    return kv;
}

static json_t *header_json(const struct fake_etcd *f)
{
    return json_pack("{s:o}", "revision", number(f->revision));
}

static char *text_of(const json_t *request, const char *name)
{
    struct buf text = {0};
    struct error e;
    if (etcd_unbase64(json_object_get(request, name), &text, &e) != ERR_OK || text.bytes == 0) {
        buf_done(&text);
        return NULL;
    }
    buf_append(&text, "", 1);
    return text.data;
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(const struct change *const *)a)->key, (*(const struct change *const *)b)->key);
}

static json_t *range_run(struct fake_etcd *f, const json_t *request)
{
    cleanup(free_pointer) char *from = text_of(request, "key");
    cleanup(free_pointer) char *end = text_of(request, "range_end");
    uint64_t revision = etcd_number(request, "revision"), limit = etcd_number(request, "limit");
    const struct change **found = mem_new_array(f->change_count + 1, sizeof(*found));
    size_t count = 0;
    revision = revision != 0 ? revision : f->revision;
    for (size_t i = 0; i < f->change_count; i++) {
        const struct change *c = &f->changes[i];
        bool in = end == NULL ? strcmp(c->key, from) == 0
                              : strcmp(c->key, from) >= 0 && strcmp(c->key, end) < 0;
        if (in && c->value != NULL && change_of(f, c->key, revision) == c)
            found[count++] = c;
    }
    qsort(found, count, sizeof(*found), by_key);
    bool more = limit > 0 && count > limit;
    json_t *kvs = json_array();
    for (size_t i = 0; i < (more ? limit : count); i++)
        json_array_append_new(kvs, kv_json(found[i]));
    free(found);
    json_t *answer = json_pack("{s:o, s:o}", "header", header_json(f), "kvs", kvs);
    if (more)
        json_object_set_new(answer, "more", json_true());
    return answer;
}

static bool compares_hold(const struct fake_etcd *f, const json_t *request)
{
    json_t *compare;
    size_t i;
    bool hold = true;
    json_array_foreach(json_object_get(request, "compare"), i, compare)
    {
        cleanup(free_pointer) char *key = text_of(compare, "key");
        const struct change *c = change_of(f, key, f->revision);
        uint64_t is = c != NULL && c->value != NULL ? c->revision : 0;
        hold &= is == etcd_number(compare, "mod_revision");
    }
    return hold;
}

static json_t *txn_run(struct fake_etcd *f, const json_t *request)
{
    bool hold = compares_hold(f, request);
    uint64_t revision = f->revision + 1;
    json_t *op, *responses = json_array();
    size_t i;
    json_array_foreach(json_object_get(request, hold ? "success" : "failure"), i, op)
    {
        json_t *put = json_object_get(op, "requestPut"),
               *remove = json_object_get(op, "requestDeleteRange"),
               *range = json_object_get(op, "requestRange");
        cleanup(free_pointer) char *key = text_of(put != NULL ? put : remove, "key");
        cleanup(free_pointer) char *value = text_of(put, "value");
        if (range == NULL)
            change_add(f, key, value, revision);
        json_array_append_new(
            responses, range != NULL ? json_pack("{s:o}", "response_range", range_run(f, range))
                                     : json_pack("{s:{}}", "response_put"));
    }
    json_t *answer = json_pack("{s:o, s:o}", "header", header_json(f), "responses", responses);
    if (hold)
        json_object_set_new(answer, "succeeded", json_true());
    return answer;
}

/* ---- HTTP ---- */

static void connection_end(struct connection *c)
{
    (void)close(c->fd);
    buf_done(&c->in);
    *c = (struct connection){0};
}

static void send_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = send(fd, data, bytes, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        data += n;
        bytes -= (size_t)n;
    }
}

static void answer_send(struct connection *c, int status, json_t *body)
{
    cleanup(free_pointer) char *text = json_dumps(body, JSON_COMPACT);
    cleanup(free_pointer) char *head =
        mem_printf("HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                   "Connection: close\r\n\r\n%s",
                   status, strlen(text), text);
    send_all(c->fd, head, strlen(head));
    json_decref(body);
    /* On a connection that is used again libcurl would itself repeat what gets no answer. */
    connection_end(c);
}

static void refuse(struct connection *c, int status, int code, const char *why)
{
    answer_send(c, status, json_pack("{s:s, s:i}", "error", why, "code", code));
}

static void chunk_send(struct connection *c, json_t *message)
{
    cleanup(free_pointer) char *text = json_dumps(message, JSON_COMPACT);
    cleanup(free_pointer) char *chunk = mem_printf("%zx\r\n%s\n\r\n", strlen(text) + 1, text);
    send_all(c->fd, chunk, strlen(chunk));
    json_decref(message);
}

static void watch_begin(struct fake_etcd *f, struct connection *c, const json_t *request)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    c->watches = true;
    c->muted = f->mute;
    c->watch_next = etcd_number(json_object_get(request, "create_request"), "start_revision");
    send_all(c->fd, head, sizeof(head) - 1);
    chunk_send(c, json_pack("{s:{s:o, s:b}}", "result", "header", header_json(f), "created", 1));
}

static void watch_tell(struct fake_etcd *f, struct connection *c)
{
    json_t *events = json_array();
    uint64_t newest = MIN(f->revision, f->hold_revision);
    for (size_t i = 0; i < f->change_count; i++) {
        const struct change *ch = &f->changes[i];
        if (ch->revision < c->watch_next || ch->revision > newest ||
            ch->revision == f->skip_revision)
            continue;
        json_t *event = json_pack("{s:o}", "kv", kv_json(ch));
        if (ch->value == NULL)
            json_object_set_new(event, "type", json_string("DELETE"));
        json_array_append_new(events, event);
    }
    c->watch_next = MAX(c->watch_next, newest + 1);
    if (json_array_size(events) > 0 && !c->muted)
        chunk_send(
            c, json_pack("{s:{s:o, s:o}}", "result", "header", header_json(f), "events", events));
    else
        json_decref(events);
}

/* ---- requests ---- */

static enum fake_fault fault_take(struct fake_etcd *f)
{
    return f->fault_next < f->fault_count ? f->faults[f->fault_next++] : FAKE_NONE;
}

static void on_txn(struct fake_etcd *f, struct connection *c, json_t *request)
{
    enum fake_fault fault = fault_take(f);
    f->transactions++;
    switch (fault) {
    case FAKE_NONE:
        answer_send(c, 200, txn_run(f, request));
        return;
    case FAKE_LOSE_ANSWER:
    case FAKE_HANG:
        json_decref(txn_run(f, request));
        if (fault == FAKE_LOSE_ANSWER)
            connection_end(c);
        return;
    case FAKE_DELAY:
        assert(f->delayed_count < DELAYED_MAX);
        f->delayed[f->delayed_count++] = json_incref(request);
        connection_end(c);
        return;
    case FAKE_LOSE_REQUEST:
        connection_end(c);
        return;
    case FAKE_NO_SPACE:
        refuse(c, 429, 8, "etcdserver: mvcc: database space exceeded");
        return;
    case FAKE_NO_LEADER:
        refuse(c, 503, 14, "etcdserver: no leader");
        return;
    case FAKE_TOO_MANY:
        refuse(c, 400, 3, "etcdserver: too many operations in txn request");
        return;
    }
}

static void on_request(struct fake_etcd *f, struct connection *c, const char *path, json_t *request)
{
    if (strcmp(path, "/v3/kv/txn") == 0) {
        on_txn(f, c, request);
    } else if (strcmp(path, "/v3/kv/range") == 0) {
        if (f->fail_ranges)
            refuse(c, 503, 14, "etcdserver: no leader");
        else
            answer_send(c, 200, range_run(f, request));
    } else if (strcmp(path, "/v3/kv/compaction") == 0) {
        f->compacted = etcd_number(request, "revision");
        answer_send(c, 200, json_object());
    } else if (strcmp(path, "/v3/watch") == 0) {
        watch_begin(f, c, request);
    } else if (strcmp(path, "/version") == 0) {
        answer_send(c, 200, json_pack("{s:s}", "etcdserver", f->version));
    } else if (strcmp(path, "/v3/cluster/member/list") == 0) {
        json_t *members = json_array();
        for (unsigned i = 0; i < f->members; i++)
            json_array_append_new(members, json_object());
        answer_send(c, 200, json_pack("{s:o}", "members", members));
    } else {
        refuse(c, 404, 5, "Not Found");
    }
}

/* One whole request of what has come; false: more bytes are needed. */
static bool request_take(struct fake_etcd *f, struct connection *c)
{
    char path[128] = "";
    const char *end = memmem(c->in.data, c->in.bytes, "\r\n\r\n", 4), *length;
    if (c->in.bytes == 0 || end == NULL)
        return false;
    size_t head = (size_t)(end - c->in.data) + 4, body = 0;
    cleanup(free_pointer) char *text = mem_strndup(c->in.data, head);
    if ((length = strcasestr(text, "\r\nContent-Length:")) != NULL)
        body = strtoul(length + 17, NULL, 10);
    if (c->in.bytes < head + body)
        return false;
    (void)sscanf(text, "%*s %127s", path);
    json_t *request = body > 0 ? json_loadb(c->in.data + head, body, 0, NULL) : NULL;
    buf_consume(&c->in, head + body);
    on_request(f, c, path, request);
    json_decref(request);
    return c->fd != 0;
}

/* ---- the thread ---- */

static void accept_one(struct fake_etcd *f)
{
    int fd = accept4(f->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    for (size_t i = 0; fd >= 0 && i < CONNECTIONS_MAX; i++)
        if (f->connections[i].fd == 0) {
            f->connections[i].fd = fd;
            return;
        }
    (void)close(fd);
}

static void connection_read(struct fake_etcd *f, struct connection *c)
{
    char *at = buf_reserve(&c->in, 65536);
    ssize_t n = recv(c->fd, at, 65536, 0);
    if (n <= 0) {
        connection_end(c);
        return;
    }
    c->in.bytes += (size_t)n;
    while (request_take(f, c))
        ;
}

static void watches_step(struct fake_etcd *f)
{
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *c = &f->connections[i];
        if (c->fd != 0 && c->watches && f->cancel) {
            chunk_send(c, json_pack("{s:{s:{}, s:b, s:s}}", "result", "header", "canceled", 1,
                                    "compact_revision", "1"));
            connection_end(c);
        } else if (c->fd != 0 && c->watches) {
            watch_tell(f, c);
        }
    }
    f->cancel = false;
}

static void *fake_thread(void *argument)
{
    struct fake_etcd *f = argument;
    for (bool stop = false; !stop;) {
        struct pollfd polls[CONNECTIONS_MAX + 2] = {{.fd = f->wake[0], .events = POLLIN},
                                                    {.fd = f->listen_fd, .events = POLLIN}};
        for (size_t i = 0; i < CONNECTIONS_MAX; i++)
            polls[i + 2] = (struct pollfd){
                .fd = f->connections[i].fd != 0 ? f->connections[i].fd : -1, .events = POLLIN};
        (void)poll(polls, CONNECTIONS_MAX + 2, -1);
        pthread_mutex_lock(&f->mutex);
        char wakes[64];
        if (polls[0].revents != 0)
            (void)!read(f->wake[0], wakes, sizeof(wakes));
        for (size_t i = 0; i < CONNECTIONS_MAX; i++)
            if (polls[i + 2].revents != 0 && f->connections[i].fd == polls[i + 2].fd)
                connection_read(f, &f->connections[i]);
        if (polls[1].revents != 0)
            accept_one(f);
        watches_step(f);
        stop = f->stop;
        pthread_mutex_unlock(&f->mutex);
    }
    return NULL;
}

/* ---- the test's side ---- */

static void wake(struct fake_etcd *f)
{
    (void)!write(f->wake[1], "", 1);
}

struct fake_etcd *fake_etcd_new(void)
{
    struct fake_etcd *f = mem_new(sizeof(*f));
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(a);
    f->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(f->listen_fd, (struct sockaddr *)&a, bytes) != 0 || listen(f->listen_fd, 16) != 0 ||
        getsockname(f->listen_fd, (struct sockaddr *)&a, &bytes) != 0 || pipe(f->wake) != 0)
        abort();
    (void)snprintf(f->where, sizeof(f->where), "me@http://127.0.0.1:%u,http://127.0.0.1:%u",
                   ntohs(a.sin_port), ntohs(a.sin_port));
    pthread_mutex_init(&f->mutex, NULL);
    fake_etcd_set_version(f, "3.4.23", 3);
    f->changes = mem_new_array(CHANGES_MAX, sizeof(*f->changes));
    f->revision = 1;
    f->hold_revision = UINT64_MAX;
    if (pthread_create(&f->thread, NULL, fake_thread, f) != 0)
        abort();
    return f;
}

void fake_etcd_free(struct fake_etcd *f)
{
    pthread_mutex_lock(&f->mutex);
    f->stop = true;
    pthread_mutex_unlock(&f->mutex);
    wake(f);
    (void)pthread_join(f->thread, NULL);
    fake_etcd_rewind(f, 0);
    for (size_t i = 0; i < f->delayed_count; i++)
        json_decref(f->delayed[i]);
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (f->connections[i].fd != 0)
            connection_end(&f->connections[i]);
    (void)close(f->listen_fd);
    (void)close(f->wake[0]);
    (void)close(f->wake[1]);
    pthread_mutex_destroy(&f->mutex);
    free(f->changes);
    free(f);
}

const char *fake_etcd_where(const struct fake_etcd *f)
{
    return f->where;
}

#define LOCKED(f, ...)                     \
    do {                                   \
        pthread_mutex_lock(&(f)->mutex);   \
        __VA_ARGS__;                       \
        pthread_mutex_unlock(&(f)->mutex); \
        wake(f);                           \
    } while (0)

void fake_etcd_set_version(struct fake_etcd *f, const char *version, unsigned members)
{
    LOCKED(f, (void)snprintf(f->version, sizeof(f->version), "%s", version); f->members = members);
}

void fake_etcd_fail(struct fake_etcd *f, const enum fake_fault *faults, size_t count)
{
    assert(count <= FAULTS_MAX);
    LOCKED(f, for (size_t i = 0; i < count; i++) f->faults[i] = faults[i]; f->fault_count = count;
           f->fault_next = 0);
}

size_t fake_etcd_deliver(struct fake_etcd *f)
{
    size_t count;
    LOCKED(
        f, count = f->delayed_count; for (size_t i = 0; i < count; i++) {
            json_decref(txn_run(f, f->delayed[i]));
            json_decref(f->delayed[i]);
        } f->delayed_count = 0);
    return count;
}

void fake_etcd_mute_watches(struct fake_etcd *f, bool mute)
{
    LOCKED(f, f->mute = mute);
}

void fake_etcd_fail_ranges(struct fake_etcd *f, bool fail)
{
    LOCKED(f, f->fail_ranges = fail);
}

void fake_etcd_skip_change(struct fake_etcd *f)
{
    LOCKED(f, f->skip_next = true);
}

void fake_etcd_hold_watches(struct fake_etcd *f, uint64_t revision)
{
    LOCKED(f, f->hold_revision = revision);
}

void fake_etcd_cancel_watches(struct fake_etcd *f)
{
    LOCKED(f, f->cancel = true);
}

void fake_etcd_put(struct fake_etcd *f, const char *key, const char *value)
{
    LOCKED(f, change_add(f, key, value, f->revision + 1));
}

void fake_etcd_rewind(struct fake_etcd *f, uint64_t revision)
{
    pthread_mutex_lock(&f->mutex);
    while (f->change_count > 0 && f->changes[f->change_count - 1].revision > revision) {
        f->change_count--;
        free(f->changes[f->change_count].key);
        free(f->changes[f->change_count].value);
    }
    f->revision = MAX(revision, UINT64_C(1));
    f->cancel = true;
    pthread_mutex_unlock(&f->mutex);
    if (revision > 0)
        wake(f);
}

uint64_t fake_etcd_revision(struct fake_etcd *f)
{
    uint64_t revision;
    LOCKED(f, revision = f->revision);
    return revision;
}

unsigned fake_etcd_transactions(struct fake_etcd *f)
{
    unsigned count;
    LOCKED(f, count = f->transactions);
    return count;
}

uint64_t fake_etcd_compacted(struct fake_etcd *f)
{
    uint64_t revision;
    LOCKED(f, revision = f->compacted);
    return revision;
}

char *fake_etcd_get(struct fake_etcd *f, const char *key)
{
    char *value = NULL;
    LOCKED(f, const struct change *c = change_of(f, key, f->revision);
           value = c != NULL && c->value != NULL ? mem_strdup(c->value) : NULL);
    return value;
}
