/* load.c - closed-loop HTTP/1.1 load for the benchmarks: `connections` keep-alive connections, each
 * sends a request, waits for the whole answer, sends the next. Functions are called in turn:
 * prefix00000, prefix00001, … so that with enough of them each call meets a cold one.
 *
 *   bench-load ADDRESS:PORT PREFIX FUNCTION_COUNT CONNECTIONS SECONDS [REQUESTS_MAX]
 *
 * BENCH_GAP_MS in the environment: a pause before each request. FUNCTION_COUNT 0: PREFIX is the
 * whole name. Prints one JSON object: requests, errors, rate per second, and from request sent to
 * first byte: p50_us, p99_us, max_us. Exits 1 when any request failed. */
#include "base/base.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
    int fd;
    uint64_t sent_ns;
    bool first_byte_seen;
    size_t bytes;
    char answer[64 * 1024];
};

struct load {
    struct sockaddr_in target;
    const char *prefix;
    unsigned function_count, next_function;
    uint64_t requests, requests_max, errors, sent;
    uint32_t *samples_us;
    size_t sample_count, sample_capacity;
    char first_error[256];
    int epoll_fd;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "bench-load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void connection_open(struct load *l, struct connection *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&l->target, sizeof(l->target)) < 0)
        die("connect");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* At rest: so long a pause before each run, the same for all that are compared. */
static void rest(void)
{
    const char *ms = getenv("BENCH_GAP_MS");
    if (ms != NULL)
        usleep((useconds_t)atoi(ms) * 1000);
}

static void request_send(struct load *l, struct connection *c)
{
    rest();
    char name[128], request[256];
    if (l->function_count > 0)
        snprintf(name, sizeof(name), "%s%05u", l->prefix, l->next_function++ % l->function_count);
    else
        snprintf(name, sizeof(name), "%s", l->prefix);
    int bytes = snprintf(request, sizeof(request), "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", name);
    c->bytes = 0;
    c->first_byte_seen = false;
    c->sent_ns = now_ns();
    l->sent++;
    if (send(c->fd, request, (size_t)bytes, MSG_NOSIGNAL) != bytes)
        die("send");
}

static void sample_add(struct load *l, uint64_t us)
{
    if (l->sample_count == l->sample_capacity) {
        l->sample_capacity = MAX(l->sample_capacity * 2, (size_t)65536);
        l->samples_us = realloc(l->samples_us, l->sample_capacity * sizeof(*l->samples_us));
        if (l->samples_us == NULL)
            die("memory");
    }
    l->samples_us[l->sample_count++] = (uint32_t)us;
}

/* The length of the whole answer, or 0 while it is not known to be complete. */
static bool answer_is_complete(const struct connection *c)
{
    const char *end = memmem(c->answer, c->bytes, "\r\n\r\n", 4);
    if (end == NULL)
        return false;
    const char *length = strcasestr(c->answer, "\r\nContent-Length:");
    if (length == NULL || length > end)
        return memmem(end, c->bytes - (size_t)(end - c->answer), "0\r\n\r\n", 5) != NULL;
    size_t body = strtoul(length + 17, NULL, 10);
    return c->bytes >= (size_t)(end - c->answer) + 4 + body;
}

static void error_note(struct load *l, const char *text)
{
    if (l->errors++ == 0)
        snprintf(l->first_error, sizeof(l->first_error), "%s", text);
}

/* True when the connection is free for the next request. */
static bool on_readable(struct load *l, struct connection *c)
{
    ssize_t n = recv(c->fd, c->answer + c->bytes, sizeof(c->answer) - 1 - c->bytes, 0);
    if (n <= 0) {
        error_note(l, n == 0 ? "connection closed by peer" : strerror(errno));
        close(c->fd);
        connection_open(l, c);
        return true;
    }
    if (!c->first_byte_seen) {
        c->first_byte_seen = true;
        sample_add(l, (now_ns() - c->sent_ns) / NS_PER_US);
    }
    c->bytes += (size_t)n;
    c->answer[c->bytes] = '\0';
    if (!answer_is_complete(c))
        return false;
    l->requests++;
    if (strncmp(c->answer, "HTTP/1.1 200", 12) != 0) {
        char text[200];
        const char *body = strstr(c->answer, "\r\n\r\n");
        snprintf(text, sizeof(text), "%.40s: %.150s", c->answer, body != NULL ? body + 4 : "");
        error_note(l, text);
    }
    return true;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t percentile(const struct load *l, double fraction)
{
    if (l->sample_count == 0)
        return 0;
    return l->samples_us[MIN((size_t)((double)l->sample_count * fraction), l->sample_count - 1)];
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: bench-load ADDRESS:PORT PREFIX FUNCTION_COUNT CONNECTIONS SECONDS "
                        "[REQUESTS_MAX]\n");
        return 2;
    }
    struct load l = {.prefix = argv[2], .function_count = (unsigned)atoi(argv[3])};
    unsigned connection_count = (unsigned)atoi(argv[4]);
    double seconds = atof(argv[5]);
    l.requests_max = argc > 6 ? strtoull(argv[6], NULL, 10) : UINT64_MAX;
    char host[64] = "";
    unsigned port = 0;
    if (sscanf(argv[1], "%63[^:]:%u", host, &port) != 2 ||
        inet_pton(AF_INET, host, &l.target.sin_addr) != 1) {
        fprintf(stderr, "bench-load: '%s' is no ADDRESS:PORT\n", argv[1]);
        return 2;
    }
    l.target.sin_family = AF_INET;
    l.target.sin_port = htons((uint16_t)port);
    l.epoll_fd = epoll_create1(EPOLL_CLOEXEC);

    struct connection *connections = calloc(connection_count, sizeof(*connections));
    if (connections == NULL || l.epoll_fd < 0)
        die("start");
    for (unsigned i = 0; i < connection_count; i++)
        connection_open(&l, &connections[i]);
    uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9);
    unsigned busy = 0;
    for (unsigned i = 0; i < connection_count && l.sent < l.requests_max; i++, busy++)
        request_send(&l, &connections[i]);
    /* After the end the answers under way are waited for, at most 30 s. */
    while (busy > 0 && now_ns() < end + 30 * NS_PER_S) {
        struct epoll_event events[256];
        int n = epoll_wait(l.epoll_fd, events, 256, 1000);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!on_readable(&l, c))
                continue;
            if (now_ns() < end && l.sent < l.requests_max)
                request_send(&l, c);
            else
                busy--;
        }
    }
    double took = (double)(now_ns() - start) / 1e9;
    if (busy > 0)
        error_note(&l, "no answer within 30 s");
    if (l.sample_count > 0)
        qsort(l.samples_us, l.sample_count, sizeof(*l.samples_us), compare);
    printf("{\"requests\":%" PRIu64 ",\"errors\":%" PRIu64
           ",\"rate\":%.1f,\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u,\"seconds\":%.2f}\n",
           l.requests, l.errors, (double)l.requests / took, percentile(&l, 0.5),
           percentile(&l, 0.99), percentile(&l, 1.0), took);
    if (l.errors > 0)
        fprintf(stderr, "bench-load: %" PRIu64 " errors, the first: %s\n", l.errors, l.first_error);
    return l.errors > 0;
}
