/* control_plane_test.c - the whole program in a child process; the test plays its workers, its data
 * planes and its clients over real sockets. Every wait ends after TIMEOUT_MS. */
#include "base/limits.h"
#include "base/str.h"
#include "control_plane/control_plane.h"
#include "control_plane/test_tar.h"
#include "test.h"
#include "wire/dirigent.pb-c.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <openssl/sha.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TIMEOUT_MS 10000

/* ---- the program ---- */

struct program {
    char dir[64];
    pid_t pid;
    int log_fd; /* its stderr */
    uint16_t api, cluster;
    struct buf log;
};

static uint16_t port_after(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    at = at != NULL ? strchr(at, ':') : NULL;
    return at != NULL ? (uint16_t)strtoul(at + 1, NULL, 10) : 0;
}

/* Reads the log until `text` is in it or the program has ended. */
static bool wait_log(struct program *p, const char *text)
{
    for (;;) {
        buf_append(&p->log, "", 1);
        p->log.bytes--;
        if (strstr(p->log.data, text) != NULL)
            return true;
        struct pollfd poll_fd = {.fd = p->log_fd, .events = POLLIN};
        if (poll(&poll_fd, 1, TIMEOUT_MS) <= 0)
            return false;
        char *room = buf_reserve(&p->log, 4096);
        ssize_t got = read(p->log_fd, room, 4096);
        if (got <= 0)
            return false;
        p->log.bytes += (size_t)got;
    }
}

/* One that a failed test left behind. */
static pid_t running;

static void kill_left_behind(void)
{
    if (running > 0 && kill(running, SIGKILL) == 0)
        (void)waitpid(running, NULL, 0);
    running = 0;
}

static void spawn(struct program *p)
{
    int fds[2];
    char data[96], run[96];
    snprintf(data, sizeof(data), "%s/data", p->dir);
    snprintf(run, sizeof(run), "%s/run", p->dir);
    REQUIRE(pipe(fds) == 0);
    fflush(stdout);
    p->pid = fork();
    if (p->pid == 0) {
        char *argv[] = {"control-plane",
                        "--api",
                        "127.0.0.1:0",
                        "--cluster",
                        "127.0.0.1:0",
                        "--data-dir",
                        data,
                        "--run-dir",
                        run,
                        "--peer-dead-after",
                        "1s",
                        "--reconnect-grace",
                        "1s",
                        "--reconstruction",
                        "1s",
                        NULL};
        dup2(fds[1], STDERR_FILENO);
        dup2(fds[1], STDOUT_FILENO);
        close(fds[0]);
        close(fds[1]);
        running = 0;
        exit(control_plane_main((int)ARRAY_COUNT(argv) - 1, argv));
    }
    close(fds[1]);
    p->log_fd = fds[0];
    p->log.bytes = 0;
}

static void start_program(struct program *p)
{
    spawn(p);
    if (!wait_log(p, "control_plane.up"))
        test_fail(__FILE__, __LINE__, "it did not start: %s", p->log.data);
    REQUIRE(wait_log(p, "epoch="));
    running = p->pid;
    p->api = port_after(p->log.data, "api=");
    p->cluster = port_after(p->log.data, "cluster=");
    REQUIRE(p->api != 0 && p->cluster != 0);
}

/* Its exit code, or -signal. What it logged is in p->log. */
static int ended(struct program *p)
{
    int status = 0;
    (void)wait_log(p, "no such text is ever logged");
    waitpid(p->pid, &status, 0);
    running = p->pid == running ? 0 : running;
    close(p->log_fd);
    p->pid = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void stop(struct program *p)
{
    kill(p->pid, SIGTERM);
    int status = ended(p);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "it ended with %d: %s", status, p->log.data);
}

static void begin(struct program *p)
{
    static bool registered;
    if (!registered)
        registered = atexit(kill_left_behind) == 0;
    kill_left_behind();
    *p = (struct program){0};
    snprintf(p->dir, sizeof(p->dir), "/tmp/control-plane-test-XXXXXX");
    REQUIRE(mkdtemp(p->dir) != NULL);
    chmod(p->dir, 0755);
    start_program(p);
}

static void end(struct program *p)
{
    char command[128];
    if (p->pid > 0)
        stop(p);
    buf_done(&p->log);
    snprintf(command, sizeof(command), "rm -rf '%s'", p->dir);
    CHECK_EQ(system(command), 0);
}

/* ---- sockets ---- */

static int dial(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval timeout = {.tv_sec = TIMEOUT_MS / 1000};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    return fd;
}

static bool read_exactly(int fd, void *data, size_t bytes)
{
    for (size_t have = 0; have < bytes;) {
        ssize_t got = read(fd, (char *)data + have, bytes - have);
        if (got <= 0)
            return false;
        have += (size_t)got;
    }
    return true;
}

/* ---- a client ---- */

static int http_send(uint16_t port, const char *method, const char *path, const char *headers,
                     struct str body)
{
    struct buf text = {0};
    int fd = dial(port);
    buf_printf(&text, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nConnection: close\r\n%s", method,
               path, port, headers != NULL ? headers : "");
    if (body.data != NULL)
        buf_printf(&text, "Content-Length: %zu\r\n", body.bytes);
    buf_append_str(&text, STR("\r\n"));
    if (body.data != NULL)
        buf_append_str(&text, body);
    (void)!fd_write_all(fd, text.data, text.bytes); /* an early refusal may break it off */
    buf_done(&text);
    return fd;
}

static void dechunk(struct buf *body)
{
    struct buf plain = {0};
    char *at = body->data;
    for (;;) {
        char *data;
        size_t bytes = strtoul(at, &data, 16);
        if (bytes == 0 || data + 2 + bytes > body->data + body->bytes)
            break;
        buf_append(&plain, data + 2, bytes);
        at = data + 2 + bytes + 2;
    }
    buf_append(&plain, "", 1);
    plain.bytes--;
    buf_done(body);
    *body = plain;
}

struct answer {
    unsigned status;
    struct buf head, body; /* NUL-terminated */
    json_t *json;          /* or NULL */
};

static void answer_done(struct answer *a)
{
    buf_done(&a->head);
    buf_done(&a->body);
    json_decref(a->json);
    a->json = NULL;
}

static struct answer http_receive(int fd)
{
    struct answer a = {0};
    struct buf all = {0};
    for (;;) {
        char *room = buf_reserve(&all, 65536);
        ssize_t got = read(fd, room, 65536);
        if (got <= 0)
            break;
        all.bytes += (size_t)got;
    }
    close(fd);
    buf_append(&all, "", 1);
    all.bytes--;
    char *end = strstr(all.data, "\r\n\r\n");
    if (end == NULL) {
        buf_done(&all);
        buf_append(&a.head, "", 1);
        buf_append(&a.body, "", 1);
        return a;
    }
    buf_append(&a.head, all.data, (size_t)(end - all.data) + 2);
    buf_append(&a.head, "", 1);
    buf_append(&a.body, end + 4, all.bytes - (size_t)(end + 4 - all.data));
    buf_append(&a.body, "", 1);
    a.body.bytes--;
    buf_done(&all);
    a.status = (unsigned)strtoul(a.head.data + strlen("HTTP/1.1 "), NULL, 10);
    if (strcasestr(a.head.data, "Transfer-Encoding: chunked") != NULL)
        dechunk(&a.body);
    a.json = json_loadb(a.body.data, a.body.bytes, 0, NULL);
    return a;
}

static struct answer http(uint16_t port, const char *method, const char *path, const char *body)
{
    struct str text = body != NULL ? str_of(body) : STR_NONE;
    return http_receive(http_send(port, method, path, NULL, text));
}

static const char *text_at(const json_t *json, const char *path)
{
    char copy[128], *left = copy, *key;
    snprintf(copy, sizeof(copy), "%s", path);
    while ((key = strsep(&left, ".")) != NULL)
        json = key[0] >= '0' && key[0] <= '9' ? json_array_get(json, strtoul(key, NULL, 10))
                                              : json_object_get(json, key);
    return json_is_string(json) ? json_string_value(json) : "(no text)";
}

static long long number_at(const json_t *json, const char *path)
{
    char copy[128], *left = copy, *key;
    snprintf(copy, sizeof(copy), "%s", path);
    while ((key = strsep(&left, ".")) != NULL)
        json = key[0] >= '0' && key[0] <= '9' ? json_array_get(json, strtoul(key, NULL, 10))
                                              : json_object_get(json, key);
    return json_is_integer(json) ? json_integer_value(json) : -1;
}

#define EXPECT_STATUS(a, expected)                                                   \
    do {                                                                             \
        if ((a).status != (expected))                                                \
            test_fail(__FILE__, __LINE__, "status %u instead of %u: %s", (a).status, \
                      (unsigned)(expected), (a).body.data);                          \
    } while (0)

/* One request whose status is what counts; the rest is thrown away. */
static void expect(uint16_t port, const char *method, const char *path, const char *body,
                   unsigned status)
{
    struct answer a = http(port, method, path, body);
    if (a.status != status)
        test_fail(__FILE__, __LINE__, "%s %s: status %u instead of %u: %s", method, path, a.status,
                  status, a.body.data);
    answer_done(&a);
}

/* ---- peers ---- */

typedef Dirigent__ToControlPlane To;
typedef Dirigent__FromControlPlane From;

struct peer {
    int fd;
    From *last; /* freed by the next receive */
};

static void peer_send(struct peer *p, const To *m)
{
    size_t bytes = dirigent__to_control_plane__get_packed_size(m);
    uint8_t *frame = mem_new(bytes + 4);
    for (int i = 0; i < 4; i++)
        frame[i] = (uint8_t)(bytes >> (24 - 8 * i));
    dirigent__to_control_plane__pack(m, frame + 4);
    CHECK_EQ(fd_write_all(p->fd, frame, bytes + 4), ERR_OK);
    free(frame);
}

/* The next message that is no heartbeat; NULL: closed or nothing in time. */
static From *peer_receive(struct peer *p)
{
    if (p->last != NULL)
        dirigent__from_control_plane__free_unpacked(p->last, NULL);
    p->last = NULL;
    for (;;) {
        uint8_t head[4];
        if (!read_exactly(p->fd, head, 4))
            return NULL;
        size_t bytes =
            (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
        if (bytes == 0)
            continue;
        cleanup(free_pointer) uint8_t *data = mem_new(bytes);
        if (!read_exactly(p->fd, data, bytes))
            return NULL;
        p->last = dirigent__from_control_plane__unpack(NULL, bytes, data);
        return p->last;
    }
}

/* Skips messages until one has `field` (a repeated field or pointer that is not empty). */
#define RECEIVE_WITH(p, field)                                                \
    do {                                                                      \
        From *m_;                                                             \
        while ((m_ = peer_receive(p)) != NULL && !(m_->field))                \
            ;                                                                 \
        if (m_ == NULL)                                                       \
            test_fail(__FILE__, __LINE__, "no message with " #field " came"); \
        REQUIRE(m_ != NULL);                                                  \
    } while (0)

static void peer_close(struct peer *p)
{
    if (p->last != NULL)
        dirigent__from_control_plane__free_unpacked(p->last, NULL);
    close(p->fd);
}

static Dirigent__Hello hello_of(Dirigent__Role role, const char *name)
{
    Dirigent__Hello h = DIRIGENT__HELLO__INIT;
    h.protocol_min = h.protocol_max = 1;
    h.role = role;
    h.name = (char *)name;
    h.software = "test";
    h.cpu_milli = 8000;
    h.memory_bytes = 8 * GIB;
    h.slots = 100;
    h.address = role == DIRIGENT__ROLE__ROLE_WORKER ? "10.9.9.9" : "";
    h.listen_address = role == DIRIGENT__ROLE__ROLE_WORKER ? "" : "0.0.0.0:8080";
    return h;
}

static struct peer peer_dial(struct program *p, Dirigent__Hello *hello)
{
    struct peer peer = {.fd = dial(p->cluster)};
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    m.hello = hello;
    peer_send(&peer, &m);
    return peer;
}

static struct peer join(struct program *p, Dirigent__Role role, const char *name)
{
    Dirigent__Hello hello = hello_of(role, name);
    struct peer peer = peer_dial(p, &hello);
    RECEIVE_WITH(&peer, welcome);
    CHECK_STR(peer.last->welcome->refused, "");
    CHECK(peer.last->epoch >= 1);
    return peer;
}

static struct peer join_worker(struct program *p, const char *name)
{
    return join(p, DIRIGENT__ROLE__ROLE_WORKER, name);
}

static struct peer join_data_plane(struct program *p, const char *name)
{
    return join(p, DIRIGENT__ROLE__ROLE_DATA_PLANE, name);
}

static void send_status(struct peer *worker, const Dirigent__StartSandbox *start,
                        Dirigent__SandboxStatus *status)
{
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__SandboxStatus *all[] = {status};
    status->id = start->id;
    status->function_id = start->function_id;
    status->version = start->version;
    m.n_sandbox_changes = 1;
    m.sandbox_changes = all;
    peer_send(worker, &m);
}

/* What a worker says when the sandbox of the last message's first start listens. */
static Dirigent__StartSandbox say_ready(struct peer *worker)
{
    Dirigent__StartSandbox start = *worker->last->starts[0];
    Dirigent__SandboxStatus status = DIRIGENT__SANDBOX_STATUS__INIT;
    status.state = DIRIGENT__SANDBOX_STATUS__STATE__READY;
    status.address = "10.200.0.4:8080";
    status.host_address = "10.9.9.9:30001";
    status.create_us = 100;
    status.exec_us = 200;
    status.listen_us = 300;
    status.started_at_ms = 1700000000000;
    send_status(worker, &start, &status);
    return start;
}

static void say_exited(struct peer *worker, const Dirigent__StartSandbox *start)
{
    Dirigent__SandboxStatus status = DIRIGENT__SANDBOX_STATUS__INIT;
    status.state = DIRIGENT__SANDBOX_STATUS__STATE__GONE;
    status.reason = DIRIGENT__GONE_REASON__GONE_EXITED;
    status.exit_code = 3;
    status.detail = "the program ended with exit code 3";
    status.last_output.data = (uint8_t *)"Traceback: no module\n\xff";
    status.last_output.len = 22;
    send_status(worker, start, &status);
}

/* Says that what came last is in force. */
static void say_synced(struct peer *data_plane)
{
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    REQUIRE(data_plane->last->sync != 0);
    m.synced = data_plane->last->sync;
    peer_send(data_plane, &m);
}

static bool has_input(int fd, int patience_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, patience_ms) > 0;
}

static void say_demand(struct peer *data_plane, uint64_t function_id, uint32_t waiting)
{
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Demand demand = DIRIGENT__DEMAND__INIT, *all[] = {&demand};
    demand.function_id = function_id;
    demand.waiting = waiting;
    m.n_demands = 1;
    m.demands = all;
    peer_send(data_plane, &m);
}

/* ---- an archive ---- */

static void digest_of(const struct buf *data, char *ret_text)
{
    unsigned char sum[SHA256_DIGEST_LENGTH];
    SHA256((unsigned char *)data->data, data->bytes, sum);
    char *at = ret_text + sprintf(ret_text, "sha256:");
    for (size_t i = 0; i < sizeof(sum); i++)
        at += sprintf(at, "%02x", sum[i]);
}

#define HELLO_SPEC "{\"command\":\"python3 app.py\",\"env\":{\"A\":\"1\"}}"

/* ================================================================ tests */

TEST(the_api_answers_as_its_page_says)
{
    struct program p;
    begin(&p);
    struct answer a = http(p.api, "GET", "/v1/functions", NULL);
    EXPECT_STATUS(a, 200);
    CHECK(json_array_size(json_object_get(a.json, "items")) == 0);
    answer_done(&a);
    a = http(p.api, "GET", "/v1/status", NULL);
    EXPECT_STATUS(a, 200);
    CHECK_EQ(number_at(a.json, "epoch"), 1);
    CHECK_EQ(number_at(a.json, "workers.total"), 0);
    CHECK(json_is_true(json_object_get(a.json, "ready")));
    answer_done(&a);
    expect(p.api, "GET", "/healthz", NULL, 200);
    expect(p.api, "HEAD", "/healthz", NULL, 200);
    expect(p.api, "GET", "/readyz", NULL, 200);
    expect(p.api, "GET", "/health", NULL, 200);
    expect(p.api, "GET", "/v1/workers", NULL, 200);
    expect(p.api, "GET", "/v1/data-planes", NULL, 200);
    expect(p.api, "GET", "/v1/sandboxes", NULL, 200);
    expect(p.api, "GET", "/v1/nothing", NULL, 404);
    expect(p.api, "POST", "/v1/nothing", "", 404);
    expect(p.api, "GET", "/v1/functions/none", NULL, 404);
    expect(p.api, "GET", "/v1/functions/Bad_Name", NULL, 400);
    expect(p.api, "GET", "/v1/functions/%zz", NULL, 400);
    expect(p.api, "DELETE", "/v1/functions/none", NULL, 404);
    expect(p.api, "PATCH", "/v1/functions/none", "{}", 404);
    expect(p.api, "GET", "/v1/functions/none/logs", NULL, 404);
    expect(p.api, "PUT", "/v1/functions/none/code", "x", 404);
    a = http(p.api, "DELETE", "/v1/functions", NULL);
    EXPECT_STATUS(a, 405);
    CHECK(strstr(a.head.data, "Allow: GET, HEAD\r\n") != NULL);
    answer_done(&a);
    a = http(p.api, "POST", "/v1/functions/x", "");
    EXPECT_STATUS(a, 405);
    CHECK(strstr(a.head.data, "Allow: GET, HEAD, PUT, PATCH, DELETE\r\n") != NULL);
    answer_done(&a);
    a = http(p.api, "GET", "/metrics", NULL);
    EXPECT_STATUS(a, 200);
    CHECK(strstr(a.body.data, "\ndirigent_functions 0\n") != NULL);
    CHECK(strstr(a.body.data, "# TYPE dirigent_core_events_total counter\n") != NULL);
    answer_done(&a);
    end(&p);
}

TEST(functions_are_created_changed_patched_and_deleted)
{
    struct program p;
    begin(&p);
    struct answer a = http(p.api, "PUT", "/v1/functions/hello", HELLO_SPEC);
    EXPECT_STATUS(a, 201);
    CHECK_STR(text_at(a.json, "name"), "hello");
    CHECK_STR(text_at(a.json, "change"), "created");
    CHECK_STR(text_at(a.json, "state"), "idle");
    CHECK_EQ(number_at(a.json, "version"), 1);
    CHECK_STR(text_at(a.json, "spec.command.1"), "app.py");
    answer_done(&a);
    a = http(p.api, "PUT", "/v1/functions/hello", HELLO_SPEC);
    EXPECT_STATUS(a, 200);
    CHECK_STR(text_at(a.json, "change"), "unchanged");
    answer_done(&a);
    a = http(p.api, "PATCH", "/v1/functions/hello", "{\"min\":0,\"max\":5}");
    EXPECT_STATUS(a, 200);
    CHECK_EQ(number_at(a.json, "max"), 5);
    CHECK_EQ(number_at(a.json, "version"), 1); /* no new sandboxes for that */
    answer_done(&a);
    a = http(p.api, "PATCH", "/v1/functions/hello", "{\"env\":{\"B\":\"2\"}}");
    EXPECT_STATUS(a, 200);
    CHECK_EQ(number_at(a.json, "version"), 2);
    CHECK_STR(text_at(a.json, "spec.env.A"), "1");
    CHECK_STR(text_at(a.json, "spec.env.B"), "2");
    answer_done(&a);
    a = http(p.api, "GET", "/v1/functions", NULL);
    CHECK_STR(text_at(a.json, "items.0.name"), "hello");
    answer_done(&a);
    expect(p.api, "DELETE", "/v1/functions/hello", NULL, 200);
    expect(p.api, "GET", "/v1/functions/hello", NULL, 404);
    a = http(p.api, "PUT", "/v1/functions/hello", HELLO_SPEC);
    EXPECT_STATUS(a, 201);
    CHECK(number_at(a.json, "id") >= 2); /* another function than the deleted one */
    answer_done(&a);
    end(&p);
}

struct refusal {
    const char *body, *field;
    unsigned status;
};

TEST(wrong_input_is_refused_with_its_field_and_changes_nothing)
{
    static const struct refusal refusals[] = {
        {"{\"command\":\"x\",\"memroy\":1}", "memroy", 400},
        {"{\"command\":\"x\",\"min\":5,\"max\":2}", "scaling.min", 400},
        {"{\"command\":\"x\",\"port\":70000}", "port", 400},
        {"{\"command\":\"x\",\"name\":\"other\"}", "name", 400},
        {"{}", "command", 400},
        {"{\"command\":\"x\",\"image\":\"a\"}", "image", 501},
        {"{\"command\":\"x\",\"code\":\"sha256:"
         "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}",
         "code", 404},
        {"{\"command\":", "(no text)", 400},
        {"[]", "(no text)", 400},
        {"", "(no text)", 400},
        {"{\"command\":\"x\",\"command\":\"y\"}", "(no text)", 400},
    };
    struct program p;
    begin(&p);
    for (size_t i = 0; i < ARRAY_COUNT(refusals); i++) {
        struct answer a = http(p.api, "PUT", "/v1/functions/hello", refusals[i].body);
        if (a.status != refusals[i].status ||
            strcmp(text_at(a.json, "error.field"), refusals[i].field) != 0 ||
            strlen(text_at(a.json, "error.message")) < 10)
            test_fail(__FILE__, __LINE__, "%s: %u %s", refusals[i].body, a.status, a.body.data);
        answer_done(&a);
    }
    expect(p.api, "GET", "/v1/functions/hello", NULL, 404);
    expect(p.api, "PUT", "/v1/functions/hello?wait=5", HELLO_SPEC, 400);
    expect(p.api, "PUT", "/v1/functions/hello?wait=5h", HELLO_SPEC, 400);
    char *big = mem_new(SPEC_JSON_BYTES_MAX + 2);
    memset(big, ' ', SPEC_JSON_BYTES_MAX + 1);
    expect(p.api, "PUT", "/v1/functions/hello", big, 413);
    free(big);
    struct answer a = http_receive(http_send(p.api, "PUT", "/v1/functions/hello",
                                             "Origin: http://evil.example\r\n", STR(HELLO_SPEC)));
    EXPECT_STATUS(a, 403);
    answer_done(&a);
    expect(p.api, "GET", "/v1/functions/hello", NULL, 404);
    end(&p);
}

TEST(what_was_answered_survives_kill_9)
{
    struct program p;
    char path[64];
    unsigned registered = 0;
    begin(&p);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 10; i++, registered++) {
            snprintf(path, sizeof(path), "/v1/functions/f%u", registered);
            expect(p.api, "PUT", path, HELLO_SPEC, 201);
        }
        kill(p.pid, SIGKILL);
        CHECK_EQ(ended(&p), -SIGKILL);
        start_program(&p);
        for (unsigned i = 0; i < registered; i++) {
            snprintf(path, sizeof(path), "/v1/functions/f%u", i);
            expect(p.api, "GET", path, NULL, 200);
        }
    }
    struct answer a = http(p.api, "GET", "/v1/status", NULL);
    CHECK_EQ(number_at(a.json, "epoch"), 4);
    answer_done(&a);
    end(&p);
}

TEST(changes_that_come_together_are_all_carried_out)
{
    enum { COUNT = 60 };
    struct program p;
    int clients[2 * COUNT];
    char path[64], body[64];
    begin(&p);
    expect(p.api, "PUT", "/v1/functions/shared", HELLO_SPEC, 201);
    for (int i = 0; i < COUNT; i++) {
        snprintf(path, sizeof(path), "/v1/functions/own-%d", i);
        clients[2 * i] = http_send(p.api, "PUT", path, NULL, STR(HELLO_SPEC));
        snprintf(body, sizeof(body), "{\"env\":{\"V%d\":\"x\"}}", i);
        clients[2 * i + 1] = http_send(p.api, "PATCH", "/v1/functions/shared", NULL, str_of(body));
    }
    for (int i = 0; i < 2 * COUNT; i++) {
        struct answer a = http_receive(clients[i]);
        EXPECT_STATUS(a, i % 2 == 0 ? 201 : 200);
        answer_done(&a);
    }
    struct answer a = http(p.api, "GET", "/v1/functions/shared", NULL);
    CHECK_EQ(number_at(a.json, "version"), 1 + COUNT); /* none was lost */
    CHECK_EQ(json_object_size(json_object_get(json_object_get(a.json, "spec"), "env")), 1 + COUNT);
    answer_done(&a);
    a = http(p.api, "GET", "/v1/functions", NULL);
    CHECK_EQ(json_array_size(json_object_get(a.json, "items")), 1 + COUNT);
    CHECK_STR(text_at(a.json, "items.0.name"), "own-0"); /* by name */
    answer_done(&a);
    /* a delete among changes: what comes after it finds nothing or begins anew */
    int first = http_send(p.api, "DELETE", "/v1/functions/shared", NULL, STR_NONE);
    a = http_receive(first);
    EXPECT_STATUS(a, 200);
    answer_done(&a);
    expect(p.api, "PATCH", "/v1/functions/shared", "{\"min\":0}", 404);
    end(&p);
}

TEST(a_second_one_on_the_same_directory_and_a_damaged_store_are_refused)
{
    struct program p, second;
    char path[128];
    begin(&p);
    second = p;
    second.log = (struct buf){0};
    spawn(&second);
    CHECK(ended(&second) != 0);
    CHECK(strstr(second.log.data, "in use") != NULL && strstr(second.log.data, p.dir) != NULL);
    stop(&p);
    snprintf(path, sizeof(path), "%s/data/control-plane/state.db", p.dir);
    int fd = open(path, O_WRONLY);
    REQUIRE(fd >= 0);
    CHECK_EQ(pwrite(fd, "garbage garbage", 15, 0), 15);
    close(fd);
    spawn(&p);
    CHECK(ended(&p) != 0);
    CHECK(strstr(p.log.data, "damaged") != NULL && strstr(p.log.data, path) != NULL);
    buf_done(&second.log);
    end(&p);
}

TEST(peers_are_registered_for_ever_and_strangers_are_refused)
{
    struct program p;
    begin(&p);
    struct peer worker = join_worker(&p, "worker-1"), data_plane = join_data_plane(&p, "dp-1");
    struct answer a = http(p.api, "GET", "/v1/workers", NULL);
    CHECK_STR(text_at(a.json, "items.0.name"), "worker-1");
    CHECK_STR(text_at(a.json, "items.0.state"), "alive");
    CHECK_STR(text_at(a.json, "items.0.address"), "10.9.9.9");
    CHECK_EQ(number_at(a.json, "items.0.cpu_milli"), 8000);
    long long id = number_at(a.json, "items.0.id");
    answer_done(&a);
    a = http(p.api, "GET", "/v1/data-planes", NULL);
    CHECK_STR(text_at(a.json, "items.0.state"), "alive");
    CHECK_STR(text_at(a.json, "items.0.url"), "http://127.0.0.1:8080/");
    answer_done(&a);

    static const char *const wrong_names[] = {"", "a b", "x\n"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong_names); i++) {
        Dirigent__Hello hello = hello_of(DIRIGENT__ROLE__ROLE_WORKER, wrong_names[i]);
        struct peer stranger = peer_dial(&p, &hello);
        RECEIVE_WITH(&stranger, welcome);
        CHECK(strstr(stranger.last->welcome->refused, "name") != NULL);
        CHECK(peer_receive(&stranger) == NULL);
        peer_close(&stranger);
    }
    Dirigent__Hello hello = hello_of(DIRIGENT__ROLE__ROLE_WORKER, "future");
    hello.protocol_min = hello.protocol_max = 99;
    struct peer stranger = peer_dial(&p, &hello);
    RECEIVE_WITH(&stranger, welcome);
    CHECK(strstr(stranger.last->welcome->refused, "protocol") != NULL);
    peer_close(&stranger);
    stranger = (struct peer){.fd = dial(p.cluster)};
    CHECK_EQ(fd_write_all(stranger.fd, "GET / HTTP/1.1\r\n\r\n", 18), ERR_OK);
    CHECK(peer_receive(&stranger) == NULL);
    peer_close(&stranger);

    struct peer many[63];
    char name[16];
    for (unsigned i = 0; i < ARRAY_COUNT(many); i++) {
        snprintf(name, sizeof(name), "many-%u", i);
        many[i] = join_data_plane(&p, name);
    }
    hello = hello_of(DIRIGENT__ROLE__ROLE_DATA_PLANE, "one-too-many");
    stranger = peer_dial(&p, &hello);
    RECEIVE_WITH(&stranger, welcome);
    CHECK(strstr(stranger.last->welcome->refused, "as many data planes") != NULL);
    peer_close(&stranger);
    for (unsigned i = 0; i < ARRAY_COUNT(many); i++)
        peer_close(&many[i]);

    peer_close(&worker);
    peer_close(&data_plane);
    stop(&p);
    start_program(&p);
    a = http(p.api, "GET", "/v1/workers", NULL);
    CHECK_EQ(json_array_size(json_object_get(a.json, "items")), 1);
    CHECK_EQ(number_at(a.json, "items.0.id"), id);
    CHECK_STR(text_at(a.json, "items.0.state"), "awaited");
    answer_done(&a);
    expect(p.api, "GET", "/readyz", NULL, 503);
    worker = join_worker(&p, "worker-1");
    expect(p.api, "GET", "/readyz", NULL, 200);
    struct peer again = join_worker(&p, "worker-1"); /* replaces the first */
    while (peer_receive(&worker) != NULL)
        ;
    a = http(p.api, "GET", "/v1/workers", NULL);
    CHECK_EQ(json_array_size(json_object_get(a.json, "items")), 1);
    CHECK_STR(text_at(a.json, "items.0.state"), "alive");
    answer_done(&a);
    peer_close(&worker);
    peer_close(&again);
    end(&p);
}

/* Stages code and gives its digest. */
static void stage(struct program *p, const struct buf *tar, char *ret_digest)
{
    struct answer a = http_receive(
        http_send(p->api, "PUT", "/v1/functions/hello/code?stage=1", NULL, buf_str(tar)));
    EXPECT_STATUS(a, 200);
    digest_of(tar, ret_digest);
    CHECK_STR(text_at(a.json, "digest"), ret_digest);
    answer_done(&a);
}

static struct buf fetch_code(struct peer *worker, const char *digest)
{
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__BlobGet get = DIRIGENT__BLOB_GET__INIT, *all[] = {&get};
    struct buf code = {0};
    get.digest = (char *)digest;
    m.n_blob_gets = 1;
    m.blob_gets = all;
    peer_send(worker, &m);
    for (;;) {
        RECEIVE_WITH(worker, n_blob_chunks > 0);
        const Dirigent__BlobChunk *chunk = worker->last->blob_chunks[0];
        CHECK_STR(chunk->digest, digest);
        CHECK_EQ(chunk->offset, code.bytes);
        CHECK_STR(chunk->error, "");
        buf_append(&code, chunk->data.data, chunk->data.len);
        if (chunk->data.len == 0 || code.bytes >= chunk->total_bytes)
            return code;
    }
}

TEST(a_deploy_with_wait_ends_when_the_version_has_been_ready)
{
    struct program p;
    char digest[80], body[512];
    begin(&p);
    struct peer worker = join_worker(&p, "worker-1");
    char *large = mem_new(3 * MIB + 1);
    memset(large, 'x', 3 * MIB);
    struct buf tar = make_tar("app.py", large);
    free(large);
    stage(&p, &tar, digest);
    snprintf(body, sizeof(body), "{\"command\":\"python3 app.py\",\"code\":\"%s\"}", digest);
    int client = http_send(p.api, "PUT", "/v1/functions/hello?wait=10s", NULL, str_of(body));

    RECEIVE_WITH(&worker, n_starts > 0);
    REQUIRE(worker.last->n_prepare_versions == 1);
    const Dirigent__VersionSpec *spec = worker.last->prepare_versions[0];
    CHECK_STR(spec->function_name, "hello");
    CHECK_STR(spec->code_digest, digest);
    CHECK_STR(spec->command[1], "app.py");
    CHECK_EQ(spec->port, 8080);
    CHECK_EQ(spec->memory_bytes, 256 * MIB);
    say_ready(&worker);
    struct answer a = http_receive(client);
    EXPECT_STATUS(a, 201);
    CHECK_EQ(number_at(a.json, "active_version"), 1);
    CHECK_STR(text_at(a.json, "change"), "created");
    answer_done(&a);

    struct buf code = fetch_code(&worker, digest);
    CHECK(str_equal(buf_str(&code), buf_str(&tar)));
    a = http(p.api, "GET", "/v1/sandboxes?function=hello", NULL);
    CHECK_STR(text_at(a.json, "items.0.function"), "hello");
    CHECK_STR(text_at(a.json, "items.0.worker"), "worker-1");
    CHECK_STR(text_at(a.json, "items.0.state"), "ready");
    CHECK_STR(text_at(a.json, "items.0.address"), "10.200.0.4:8080");
    CHECK_EQ(number_at(a.json, "items.0.cold_start_us"), 300);
    CHECK_STR(text_at(a.json, "items.0.started_at"), "2023-11-14T22:13:20.000Z");
    CHECK_EQ(strlen(text_at(a.json, "items.0.id")), 16);
    answer_done(&a);
    /* the same once more: nothing to do, answered at once */
    expect(p.api, "PUT", "/v1/functions/hello?wait=10s", body, 200);
    /* what is there is not fetched when it is unknown */
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__BlobGet get = DIRIGENT__BLOB_GET__INIT, *all[] = {&get};
    get.digest = "sha256:../../state.db";
    m.n_blob_gets = 1;
    m.blob_gets = all;
    peer_send(&worker, &m);
    RECEIVE_WITH(&worker, n_blob_chunks > 0);
    CHECK(strstr(worker.last->blob_chunks[0]->error, "there is no code") != NULL);
    buf_done(&code);
    buf_done(&tar);
    peer_close(&worker);
    end(&p);
}

TEST(a_deploy_that_fails_says_why_and_the_old_version_serves_on)
{
    struct program p;
    begin(&p);
    struct peer worker = join_worker(&p, "worker-1");
    int client = http_send(p.api, "PUT", "/v1/functions/hello?wait=10s", NULL, STR(HELLO_SPEC));
    RECEIVE_WITH(&worker, n_starts > 0);
    say_ready(&worker);
    struct answer a = http_receive(client);
    EXPECT_STATUS(a, 201);
    answer_done(&a);

    client = http_send(p.api, "PUT", "/v1/functions/hello?wait=10s", NULL,
                       STR("{\"command\":\"false\"}"));
    RECEIVE_WITH(&worker, n_starts > 0);
    Dirigent__StartSandbox start = *worker.last->starts[0];
    CHECK_EQ(start.version, 2);
    say_exited(&worker, &start);
    a = http_receive(client);
    EXPECT_STATUS(a, 422);
    CHECK_STR(text_at(a.json, "error.code"), "sandbox_exited");
    CHECK_EQ(number_at(a.json, "error.exit_code"), 3);
    CHECK_EQ(number_at(a.json, "error.version"), 2);
    CHECK_STR(text_at(a.json, "error.last_output"), "Traceback: no module\n?");
    CHECK(strlen(text_at(a.json, "error.message")) > 10);
    answer_done(&a);
    a = http(p.api, "GET", "/v1/functions/hello", NULL);
    CHECK_EQ(number_at(a.json, "version"), 2);
    CHECK_EQ(number_at(a.json, "active_version"), 1);
    CHECK_STR(text_at(a.json, "state"), "degraded");
    answer_done(&a);
    /* the same program after a restart: both versions are known, the old one serves */
    kill(p.pid, SIGKILL);
    (void)ended(&p);
    start_program(&p);
    a = http(p.api, "GET", "/v1/functions/hello", NULL);
    CHECK_EQ(number_at(a.json, "version"), 2);
    CHECK_EQ(number_at(a.json, "active_version"), 1);
    answer_done(&a);
    peer_close(&worker);
    end(&p);
}

TEST(a_wait_ends_in_time_and_the_registration_stays)
{
    struct program p;
    begin(&p);
    struct answer a = http(p.api, "PUT", "/v1/functions/hello?wait=300ms", HELLO_SPEC);
    EXPECT_STATUS(a, 504);
    CHECK_STR(text_at(a.json, "error.code"), "timeout");
    answer_done(&a);
    expect(p.api, "GET", "/v1/functions/hello", NULL, 200);
    /* one that waits when the function is deleted hears that */
    int client = http_send(p.api, "PUT", "/v1/functions/other?wait=10s", NULL, STR(HELLO_SPEC));
    for (;;) {
        a = http(p.api, "GET", "/v1/functions/other", NULL);
        unsigned status = a.status;
        answer_done(&a);
        if (status == 200)
            break;
    }
    expect(p.api, "DELETE", "/v1/functions/other", NULL, 200);
    a = http_receive(client);
    EXPECT_STATUS(a, 409);
    answer_done(&a);
    /* a client that goes while it waits harms nobody */
    client = http_send(p.api, "PUT", "/v1/functions/third?wait=10s", NULL, STR(HELLO_SPEC));
    close(client);
    expect(p.api, "GET", "/healthz", NULL, 200);
    end(&p);
}

TEST(demand_starts_sandboxes_and_data_planes_hear_of_them)
{
    struct program p;
    begin(&p);
    struct peer data_plane = join_data_plane(&p, "dp-1");
    if (!data_plane.last->snapshot)
        RECEIVE_WITH(&data_plane, snapshot);
    CHECK_EQ(data_plane.last->n_routes, 0);
    struct peer worker = join_worker(&p, "worker-1");
    int client = http_send(p.api, "PUT", "/v1/functions/hello", NULL, STR(HELLO_SPEC));
    RECEIVE_WITH(&data_plane, n_routes > 0);
    CHECK_STR(data_plane.last->routes[0]->name, "hello");
    CHECK(!has_input(client, 100)); /* registered is what data planes have in force */
    say_synced(&data_plane);
    struct answer a = http_receive(client);
    EXPECT_STATUS(a, 201);
    uint64_t function_id = (uint64_t)number_at(a.json, "id");
    answer_done(&a);
    CHECK_EQ(data_plane.last->routes[0]->concurrency, 1);
    CHECK_EQ(data_plane.last->routes[0]->timeout_ms, 60000);
    say_demand(&data_plane, function_id, 1);
    RECEIVE_WITH(&worker, n_starts > 0);
    Dirigent__StartSandbox start = say_ready(&worker);
    RECEIVE_WITH(&data_plane, n_endpoints > 0);
    CHECK_EQ(data_plane.last->endpoints[0]->sandbox_id, start.id);
    CHECK_STR(data_plane.last->endpoints[0]->address, "10.200.0.4:8080"); /* same host: direct */
    CHECK_STR(data_plane.last->endpoints[0]->worker, "worker-1");
    CHECK_EQ(data_plane.last->endpoints[0]->listen_us, 300);
    CHECK(data_plane.last->endpoints[0]->place_us < 1000000);

    /* a data plane that comes later hears all of it at once */
    struct peer second = join_data_plane(&p, "dp-2");
    if (!second.last->snapshot)
        RECEIVE_WITH(&second, snapshot);
    REQUIRE(second.last->n_routes == 1 && second.last->n_endpoints == 1);
    CHECK_EQ(second.last->endpoints[0]->sandbox_id, start.id);

    /* a crash takes the endpoint away everywhere */
    say_exited(&worker, &start);
    RECEIVE_WITH(&data_plane, n_remove_sandboxes > 0);
    CHECK_EQ(data_plane.last->remove_sandboxes[0], start.id);
    RECEIVE_WITH(&second, n_remove_sandboxes > 0);
    expect(p.api, "DELETE", "/v1/functions/hello", NULL, 200);
    RECEIVE_WITH(&data_plane, n_removed_functions > 0);
    CHECK_EQ(data_plane.last->removed_functions[0], function_id);
    peer_close(&worker);
    peer_close(&data_plane);
    peer_close(&second);
    end(&p);
}

TEST(a_restarted_control_plane_learns_its_sandboxes_from_the_worker)
{
    struct program p;
    begin(&p);
    struct answer a = http(p.api, "PUT", "/v1/functions/hello", HELLO_SPEC);
    uint64_t function_id = (uint64_t)number_at(a.json, "id");
    answer_done(&a);
    struct peer worker = join_worker(&p, "worker-1"), data_plane = join_data_plane(&p, "dp-1");
    say_demand(&data_plane, function_id, 1);
    RECEIVE_WITH(&worker, n_starts > 0);
    Dirigent__StartSandbox start = say_ready(&worker);
    RECEIVE_WITH(&data_plane, n_endpoints > 0);
    uint64_t epoch = data_plane.last->epoch;
    kill(p.pid, SIGKILL);
    (void)ended(&p);
    peer_close(&worker);
    peer_close(&data_plane);

    start_program(&p);
    Dirigent__Hello hello = hello_of(DIRIGENT__ROLE__ROLE_WORKER, "worker-1");
    Dirigent__SandboxStatus status = DIRIGENT__SANDBOX_STATUS__INIT, *all[] = {&status};
    status.id = start.id;
    status.function_id = start.function_id;
    status.version = start.version;
    status.state = DIRIGENT__SANDBOX_STATUS__STATE__READY;
    status.address = "10.200.0.4:8080";
    status.host_address = "10.9.9.9:30001";
    hello.n_sandboxes = 1;
    hello.sandboxes = all;
    worker = peer_dial(&p, &hello);
    RECEIVE_WITH(&worker, welcome);
    data_plane = join_data_plane(&p, "dp-1");
    CHECK(data_plane.last->epoch > epoch);
    if (!data_plane.last->snapshot)
        RECEIVE_WITH(&data_plane, snapshot);
    REQUIRE(data_plane.last->n_endpoints == 1);
    CHECK_EQ(data_plane.last->endpoints[0]->sandbox_id, start.id);
    peer_close(&worker);
    peer_close(&data_plane);
    end(&p);
}

static void say_log(struct peer *worker, uint64_t request_id, const char *text, bool last)
{
    To m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__LogChunk chunk = DIRIGENT__LOG_CHUNK__INIT, *all[] = {&chunk};
    chunk.request_id = request_id;
    chunk.data = (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
    chunk.end = last;
    m.n_log_chunks = 1;
    m.log_chunks = all;
    peer_send(worker, &m);
}

TEST(output_comes_from_the_workers_to_the_client)
{
    struct program p;
    begin(&p);
    struct answer a = http(p.api, "PUT", "/v1/functions/hello", HELLO_SPEC);
    uint64_t function_id = (uint64_t)number_at(a.json, "id");
    answer_done(&a);
    a = http(p.api, "GET", "/v1/functions/hello/logs", NULL);
    EXPECT_STATUS(a, 200);
    CHECK(strstr(a.body.data, "no worker is connected") != NULL);
    answer_done(&a);
    expect(p.api, "GET", "/v1/functions/hello/logs?lines=x", NULL, 400);
    expect(p.api, "GET", "/v1/functions/hello/logs?since=5", NULL, 400);

    struct peer worker = join_worker(&p, "worker-1"), other = join_worker(&p, "worker-2");
    int client =
        http_send(p.api, "GET", "/v1/functions/hello/logs?lines=7&since=10m", NULL, STR_NONE);
    RECEIVE_WITH(&worker, n_log_gets > 0);
    const Dirigent__LogGet *get = worker.last->log_gets[0];
    CHECK_EQ(get->function_id, function_id);
    CHECK_EQ(get->lines, 7);
    CHECK(get->since_ms + 600000 <= clock_real_ms() && get->since_ms + 700000 > clock_real_ms());
    CHECK(!get->follow);
    uint64_t request_id = get->request_id;
    RECEIVE_WITH(&other, n_log_gets > 0);
    say_log(&worker, request_id, "line 1\n", false);
    say_log(&worker, request_id, "line 2\n", true);
    say_log(&worker, request_id, "after the end\n", true);
    peer_close(&other); /* has nothing more to say */
    a = http_receive(client);
    EXPECT_STATUS(a, 200);
    CHECK(strstr(a.body.data, "line 1\nline 2\n") != NULL);
    CHECK(strstr(a.body.data, "after") == NULL);
    answer_done(&a);

    client = http_send(p.api, "GET", "/v1/functions/hello/logs?follow=1", NULL, STR_NONE);
    RECEIVE_WITH(&worker, n_log_gets > 0);
    CHECK(worker.last->log_gets[0]->follow);
    request_id = worker.last->log_gets[0]->request_id;
    say_log(&worker, request_id, "now\n", false);
    char seen[4096] = "";
    size_t have = 0;
    while (strstr(seen, "now\n") == NULL) {
        ssize_t got = read(client, seen + have, sizeof(seen) - 1 - have);
        REQUIRE(got > 0);
        have += (size_t)got;
    }
    close(client);
    RECEIVE_WITH(&worker, n_log_gets > 0);
    CHECK(worker.last->log_gets[0]->cancel);
    CHECK_EQ(worker.last->log_gets[0]->request_id, request_id);
    peer_close(&worker);
    end(&p);
}

TEST(bad_archives_are_refused_and_leave_nothing)
{
    struct program p;
    char command[128];
    begin(&p);
    expect(p.api, "PUT", "/v1/functions/hello/code?stage=1", "this is no archive at all", 400);
    expect(p.api, "PUT", "/v1/functions/hello/code?stage=1", "", 400);
    struct buf tar = make_tar("../escape", "x");
    struct answer a = http_receive(
        http_send(p.api, "PUT", "/v1/functions/hello/code?stage=1", NULL, buf_str(&tar)));
    EXPECT_STATUS(a, 400);
    CHECK(strstr(text_at(a.json, "error.message"), "..") != NULL);
    answer_done(&a);
    buf_done(&tar);
    /* one that breaks off */
    int client = http_send(p.api, "PUT", "/v1/functions/hello/code?stage=1",
                           "Content-Length: 1000000\r\n", STR_NONE);
    close(client);
    expect(p.api, "GET", "/healthz", NULL, 200);
    stop(&p);
    snprintf(command, sizeof(command), "test -z \"$(ls -A '%s/data/control-plane/blobs')\"", p.dir);
    CHECK_EQ(system(command), 0);
    end(&p);
}

#define FORM                                                                           \
    "port_forwarding=8080&port_forwarding=tcp&requested_cpu=100&requested_memory=128&" \
    "scaling_upper_bound=5&scaling_lower_bound=0&unknown=1&"

TEST(the_originals_registration_is_understood)
{
    struct program p;
    begin(&p);
    const char *good = "name=warm-1&image=host&program_args=python3&program_args=app.py&"
                       "env_vars=A%3Db+c&iteration_multiplier=102&" FORM;
    expect(p.api, "POST", "/registerService", good, 503); /* no data plane to name */
    struct peer data_plane = join_data_plane(&p, "dp-1");
    for (int i = 0; i < 2; i++) { /* the same twice is no conflict */
        struct answer a = http(p.api, "POST", i == 0 ? "/" : "/registerService", good);
        EXPECT_STATUS(a, 200);
        CHECK_STR(a.body.data, "127.0.0.1:8080");
        answer_done(&a);
    }
    struct answer a = http(p.api, "GET", "/v1/functions/warm-1", NULL);
    CHECK_EQ(number_at(a.json, "max"), 5);
    CHECK_STR(text_at(a.json, "spec.memory"), "128Mi");
    CHECK_STR(text_at(a.json, "spec.cpu"), "100m");
    CHECK_STR(text_at(a.json, "spec.env.A"), "b c");
    CHECK_STR(text_at(a.json, "spec.env.ITERATIONS_MULTIPLIER"), "102");
    answer_done(&a);
    expect(p.api, "POST", "/", "name=warm-1&image=host&program_args=other&" FORM, 409);
    a = http(p.api, "POST", "/", "name=x&image=docker.io/cvetkovic/dirigent_empty_function&" FORM);
    EXPECT_STATUS(a, 501);
    CHECK(strstr(a.body.data, "image") != NULL);
    answer_done(&a);
    expect(p.api, "POST", "/", "image=host&program_args=a&" FORM, 400);
    expect(p.api, "POST", "/", "name=x&image=host&program_args=a&port_forwarding=80", 400);
    expect(p.api, "POST", "/",
           "name=x&image=host&program_args=a&port_forwarding=80&port_forwarding=udp", 400);
    expect(p.api, "POST", "/", "name=x&image=host&program_args=a&scaling_lower_bound=9&" FORM, 400);
    expect(p.api, "POST", "/", "name=x&image=host&program_args=%zz&" FORM, 400);
    expect(p.api, "GET", "/check?name=warm-1", NULL, 200);
    expect(p.api, "GET", "/check?name=x", NULL, 404);
    expect(p.api, "GET", "/check", NULL, 400);
    peer_close(&data_plane);
    end(&p);
}
