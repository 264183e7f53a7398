/* worker_rate.c - how fast one worker is, without control plane and data plane: plays the control
 * plane to a real `dirigent worker` over the cluster protocol, keeps `parallel` sandboxes of one
 * version in the making, removes each as soon as it is ready.
 *
 *   bench-worker DIRIGENT FUNCTION SECONDS [PARALLEL [CROWD]]
 *
 * CROWD sandboxes are started first and stay. Prints one JSON object: rate of whole lives (started,
 * ready, removed) per second, and from order to ready: p50_us, p99_us. */
#include "base/base.h"
#include "base/limits.h"
#include "base/str.h"
#include "dirigent.pb-c.h"
#include "loop/loop.h"
#include "wire/link.h"
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FUNCTION_ID 1
#define SAMPLES_MAX 4000000
#define SANDBOXES_MAX 10000000

struct bench {
    struct loop *loop;
    struct loop_listener listener;
    struct loop_timer end_timer, heartbeat_timer;
    struct link *link;
    struct buf archive;
    char digest[72];
    uint64_t next_id, parallel, crowd, crowd_ready;
    uint64_t *started_ns; /* by sandbox id */
    uint32_t *samples_us;
    size_t sample_count;
    uint64_t begun_ns, finished, ended_ns, seconds;
    bool measuring, ending;
    pid_t worker;
};

static _Noreturn void die(const struct bench *b, const char *why)
{
    fprintf(stderr, "bench-worker: %s\n", why);
    if (b->worker > 0)
        kill(b->worker, SIGTERM);
    exit(2);
}

/* ustar with one file, POSIX.1-1988 */
static void archive_make(struct bench *b, const char *path)
{
    char *content;
    size_t bytes;
    struct error e = {0};
    if (file_read(path, 64 * MIB, &content, &bytes, &e) != ERR_OK)
        die(b, e.text);
    char head[512] = "server";
    snprintf(head + 100, 8, "%07o", 0755);
    snprintf(head + 108, 8, "%07o", 0);
    snprintf(head + 116, 8, "%07o", 0);
    snprintf(head + 124, 12, "%011zo", bytes);
    snprintf(head + 136, 12, "%011o", 0);
    head[156] = '0';
    memcpy(head + 257, "ustar\00000", 8);
    memset(head + 148, ' ', 8);
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof(head); i++)
        sum += (unsigned char)head[i];
    snprintf(head + 148, 8, "%06o", sum);
    buf_append(&b->archive, head, sizeof(head));
    buf_append(&b->archive, content, bytes);
    static const char zeros[1536];
    buf_append(&b->archive, zeros, (512 - bytes % 512) % 512 + 1024);
    free(content);

    unsigned char sha[32];
    EVP_Digest(b->archive.data, b->archive.bytes, sha, NULL, EVP_sha256(), NULL);
    char *text = b->digest + sprintf(b->digest, "sha256:");
    for (size_t i = 0; i < sizeof(sha); i++)
        text += sprintf(text, "%02x", sha[i]);
}

static void send_message(struct bench *b, Dirigent__FromControlPlane *m)
{
    m->epoch = 1;
    link_send(b->link, &m->base);
}

static void start_one(struct bench *b)
{
    if (b->next_id >= SANDBOXES_MAX)
        return;
    Dirigent__StartSandbox start = DIRIGENT__START_SANDBOX__INIT;
    start.id = (UINT64_C(1) << 32) | b->next_id;
    start.function_id = FUNCTION_ID;
    start.version = 1;
    b->started_ns[b->next_id++] = clock_mono_ns();
    Dirigent__StartSandbox *starts[] = {&start};
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    m.n_starts = 1;
    m.starts = starts;
    send_message(b, &m);
}

static void stop_one(struct bench *b, uint64_t id)
{
    Dirigent__StopSandbox stop = DIRIGENT__STOP_SANDBOX__INIT;
    stop.id = id;
    stop.grace_ms = 0;
    Dirigent__StopSandbox *stops[] = {&stop};
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    m.n_stops = 1;
    m.stops = stops;
    send_message(b, &m);
}

static void welcome(struct bench *b)
{
    Dirigent__Welcome w = DIRIGENT__WELCOME__INIT;
    w.protocol = 1;
    w.heartbeat_ms = 500;
    w.dead_after_ms = 10000;
    char *command[] = {(char *)"./server"};
    Dirigent__VersionSpec v = DIRIGENT__VERSION_SPEC__INIT;
    v.function_id = FUNCTION_ID;
    v.version = 1;
    v.function_name = (char *)"bench";
    v.code_digest = b->digest;
    v.n_command = 1;
    v.command = command;
    v.port = 8080;
    v.memory_bytes = 16 * MIB;
    v.cpu_milli = 100;
    v.start_deadline_ms = 30000;
    v.stop_grace_ms = 1000;
    v.pids_max = 64;
    v.tmp_bytes = 4 * MIB;
    Dirigent__VersionSpec *versions[] = {&v};
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    m.welcome = &w;
    m.n_prepare_versions = 1;
    m.prepare_versions = versions;
    send_message(b, &m);
    for (uint64_t i = 0; i < MAX(b->crowd, UINT64_C(1)); i++)
        start_one(b); /* the crowd, or one to have everything built before the clock runs */
}

static void blob_send(struct bench *b, const char *digest)
{
    for (size_t offset = 0; offset < b->archive.bytes; offset += BLOB_CHUNK_BYTES) {
        Dirigent__BlobChunk chunk = DIRIGENT__BLOB_CHUNK__INIT;
        chunk.digest = (char *)digest;
        chunk.offset = offset;
        chunk.total_bytes = b->archive.bytes;
        chunk.data.data = (uint8_t *)b->archive.data + offset;
        chunk.data.len = MIN((size_t)BLOB_CHUNK_BYTES, b->archive.bytes - offset);
        Dirigent__BlobChunk *chunks[] = {&chunk};
        Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
        m.n_blob_chunks = 1;
        m.blob_chunks = chunks;
        send_message(b, &m);
    }
}

static void measure_begin(struct bench *b)
{
    b->measuring = true;
    b->begun_ns = clock_mono_ns();
    loop_timer_start(b->loop, &b->end_timer, b->begun_ns + b->seconds * NS_PER_S);
    for (uint64_t i = 0; i < b->parallel; i++)
        start_one(b);
}

static void on_sandbox(struct bench *b, const Dirigent__SandboxStatus *s)
{
    uint64_t number = s->id & UINT32_MAX;
    if (s->state == DIRIGENT__SANDBOX_STATUS__STATE__READY) {
        if (!b->measuring) {
            if (++b->crowd_ready == MAX(b->crowd, UINT64_C(1)))
                measure_begin(b);
            return;
        }
        if (b->sample_count < SAMPLES_MAX && number < SANDBOXES_MAX)
            b->samples_us[b->sample_count++] =
                (uint32_t)((clock_mono_ns() - b->started_ns[number]) / NS_PER_US);
        stop_one(b, s->id);
        return;
    }
    if (s->state != DIRIGENT__SANDBOX_STATUS__STATE__GONE)
        return;
    if (!b->measuring || s->reason != DIRIGENT__GONE_REASON__GONE_STOPPED)
        die(b, s->detail[0] != '\0' ? s->detail : "a sandbox ended by itself");
    b->finished++;
    if (!b->ending)
        start_one(b);
}

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct bench *b = user;
    Dirigent__ToControlPlane *m = dirigent__to_control_plane__unpack(NULL, bytes, data);
    if (m == NULL)
        die(b, "a frame could not be read");
    if (m->hello != NULL)
        welcome(b);
    for (size_t i = 0; i < m->n_blob_gets; i++)
        blob_send(b, m->blob_gets[i]->digest);
    for (size_t i = 0; i < m->n_sandbox_changes; i++)
        on_sandbox(b, m->sandbox_changes[i]);
    dirigent__to_control_plane__free_unpacked(m, NULL);
}

static void on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct bench *b = user;
    if (!b->ending)
        die(b, why);
}

static const struct link_callbacks link_callbacks = {.on_frame = on_frame, .on_closed = on_closed};

static void on_accept(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer)
{
    struct bench *b = container_of(listener, struct bench, listener);
    struct error e = {0};
    if (b->link != NULL || link_accept(b->loop, fd, &link_callbacks, b, &b->link, &e) != ERR_OK)
        die(b, "second connection");
    link_set_timers(b->link, 500, 0);
}

static void on_end(struct loop_timer *timer)
{
    struct bench *b = container_of(timer, struct bench, end_timer);
    b->ending = true;
    b->ended_ns = clock_mono_ns();
    loop_stop(b->loop);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void worker_spawn(struct bench *b, const char *dirigent, const char *directory,
                         unsigned port)
{
    char control_plane[64];
    snprintf(control_plane, sizeof(control_plane), "127.0.0.1:%u", port);
    b->worker = fork();
    if (b->worker != 0)
        return;
    char *data = mem_printf("%s/data", directory), *run = mem_printf("%s/run", directory);
    execl(dirigent, "dirigent", "worker", "--control-plane", control_plane, "--data-dir", data,
          "--run-dir", run, (char *)NULL);
    _exit(127);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: bench-worker DIRIGENT FUNCTION SECONDS [PARALLEL [CROWD]]\n");
        return 2;
    }
    struct bench b = {.seconds = strtoull(argv[3], NULL, 10),
                      .parallel = argc > 4 ? strtoull(argv[4], NULL, 10) : 8,
                      .crowd = argc > 5 ? strtoull(argv[5], NULL, 10) : 0};
    b.started_ns = mem_new_array(SANDBOXES_MAX, sizeof(*b.started_ns));
    b.samples_us = mem_new_array(SAMPLES_MAX, sizeof(*b.samples_us));
    archive_make(&b, argv[2]);
    struct error e = {0};
    char directory[] = "/tmp/bench-worker-XXXXXX";
    if (mkdtemp(directory) == NULL || chmod(directory, 0755) < 0)
        die(&b, "no temporary directory");
    int fd;
    if (loop_new(&b.loop, &e) != ERR_OK || socket_listen("127.0.0.1:0", false, &fd, &e) != ERR_OK)
        die(&b, e.text);
    struct sockaddr_storage address;
    socklen_t bytes = sizeof(address);
    getsockname(fd, (struct sockaddr *)&address, &bytes);
    char text[64];
    address_format((struct sockaddr *)&address, text, sizeof(text));
    b.listener.on_accept = on_accept;
    if (loop_listener_start(b.loop, &b.listener, fd, &e) != ERR_OK)
        die(&b, e.text);
    loop_timer_init(&b.end_timer, on_end);
    worker_spawn(&b, argv[1], directory, (unsigned)atoi(strrchr(text, ':') + 1));
    loop_run(b.loop);

    kill(b.worker, SIGTERM);
    int status;
    waitpid(b.worker, &status, 0);
    char *remove = mem_printf("rm -rf '%s'", directory);
    if (system(remove) != 0)
        fprintf(stderr, "bench-worker: %s is left\n", directory);
    free(remove);
    qsort(b.samples_us, b.sample_count, sizeof(*b.samples_us), compare);
    printf("{\"rate\":%.1f,\"p50_us\":%u,\"p99_us\":%u,\"finished\":%" PRIu64 "}\n",
           (double)b.finished * 1e9 / (double)(b.ended_ns - b.begun_ns),
           b.sample_count > 0 ? b.samples_us[b.sample_count / 2] : 0,
           b.sample_count > 0 ? b.samples_us[b.sample_count * 99 / 100] : 0, b.finished);
    return b.finished == 0;
}
