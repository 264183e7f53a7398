/* launcher_rate.c - how fast the launcher alone is: keeps PARALLEL sandboxes of one program in the
 * making, kills each as soon as it listens.
 *
 *   bench-launcher PROGRAM SECONDS [PARALLEL [CROWD]]      needs root
 *
 * CROWD sandboxes are started first and stay. Prints one JSON object: rate, p50_us, p99_us (order
 * to listening), create_us, exec_us. */
#include "base/base.h"
#include "launcher/launcher.h"
#include "loop/loop.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SAMPLES_MAX 2000000

struct bench {
    struct loop *loop;
    struct launcher_client *client;
    struct loop_timer end;
    uint32_t *samples_us;
    uint64_t sample_count, create_sum, exec_sum, next_id, finished, begun_ns, seconds;
    unsigned parallel, crowd, crowd_ready;
    bool measuring, ended;
    int output_fd;
};

static void start_one(struct bench *b)
{
    struct launcher_command c = {
        .kind = LAUNCHER_START, .sandbox_id = ++b->next_id, .function_id = 1, .version = 1};
    launcher_client_send(b->client, &c, NULL, &b->output_fd, 1);
}

static void on_event(struct launcher_client *client, void *user, const struct launcher_event *e)
{
    struct bench *b = user;
    struct launcher_command kill = {.kind = LAUNCHER_KILL, .sandbox_id = e->sandbox_id};
    switch ((enum launcher_event_kind)e->kind) {
    case LAUNCHER_TEMPLATE_READY:
        for (unsigned i = 0; i < MAX(b->crowd, 1u); i++)
            start_one(b);
        break;
    case LAUNCHER_LISTENING:
        if (!b->measuring) {
            if (++b->crowd_ready < MAX(b->crowd, 1u))
                break;
            b->measuring = true;
            b->begun_ns = clock_mono_ns();
            loop_timer_start(b->loop, &b->end, b->begun_ns + b->seconds * NS_PER_S);
            for (unsigned i = 0; i < b->parallel; i++)
                start_one(b);
            break;
        }
        if (b->sample_count < SAMPLES_MAX)
            b->samples_us[b->sample_count++] = e->listen_us;
        b->create_sum += e->create_us;
        b->exec_sum += e->exec_us;
        launcher_client_send(client, &kill, NULL, NULL, 0);
        break;
    case LAUNCHER_EXITED:
        b->finished++;
        if (!b->ended)
            start_one(b);
        break;
    case LAUNCHER_TEMPLATE_FAILED:
    case LAUNCHER_START_FAILED:
        fprintf(stderr, "bench-launcher: %s\n", e->text);
        b->ended = true;
        loop_stop(b->loop);
        break;
    case LAUNCHER_CONFIG_OK:
    case LAUNCHER_WRONG_PORT:
    case LAUNCHER_STATUS:
    case LAUNCHER_ATTACHED:
    case LAUNCHER_POOL:
        break;
    }
}

static void on_closed(struct launcher_client *client, void *user, const char *why)
{
    struct bench *b = user;
    b->client = NULL;
    launcher_client_free(client);
    loop_stop(b->loop);
}

static void on_end(struct loop_timer *timer)
{
    struct bench *b = container_of(timer, struct bench, end);
    b->ended = true;
    loop_stop(b->loop);
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: bench-launcher PROGRAM SECONDS [PARALLEL [CROWD]]\n");
        return 2;
    }
    static struct bench b;
    b.seconds = strtoull(argv[2], NULL, 10);
    b.parallel = argc > 3 ? (unsigned)atoi(argv[3]) : 1;
    b.crowd = argc > 4 ? (unsigned)atoi(argv[4]) : 0;
    b.samples_us = mem_new_array(SAMPLES_MAX, sizeof(*b.samples_us));
    char directory[] = "/tmp/bench-launcher-XXXXXX", path[64];
    struct error e = {0};
    struct launcher_config config = {.instance = "bench",
                                     .pool_ip = 0x0adc0000,
                                     .host_port_base = 40000,
                                     .slots_max = 4096,
                                     .blanks_min = 32,
                                     .quarantine_ms = 100,
                                     .orphan_ms = 1000,
                                     .userns_base = 1 << 20};
    if (mkdtemp(directory) == NULL || chmod(directory, 0755) < 0)
        return 2;
    (void)snprintf(config.run_dir, sizeof(config.run_dir), "%s", directory);
    (void)snprintf(path, sizeof(path), "%s/output", directory);
    b.output_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    char *copy =
        mem_printf("mkdir %s/code && cp '%s' %s/code/server", directory, argv[1], directory);
    char *code = mem_printf("%s/code", directory);
    if (system(copy) != 0)
        return 2;
    int fd, code_fd = open(code, O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool started;
    if (launcher_open(&config, &fd, &started, &e) != ERR_OK || loop_new(&b.loop, &e) != ERR_OK) {
        fprintf(stderr, "bench-launcher: %s\n", e.text);
        return 2;
    }
    static const struct launcher_callbacks callbacks = {.on_event = on_event,
                                                        .on_closed = on_closed};
    if (launcher_client_new(b.loop, fd, &callbacks, &b, &b.client, &e) != ERR_OK)
        return 2;
    loop_timer_init(&b.end, on_end);
    struct launcher_command attach = {.kind = LAUNCHER_ATTACH, .protocol = LAUNCHER_PROTOCOL};
    launcher_client_send(b.client, &attach, NULL, NULL, 0);
    static const char strings[] = "./server\0PORT=8080\0PATH=/usr/bin:/bin\0bench";
    struct launcher_command make = {.kind = LAUNCHER_TEMPLATE,
                                    .template = {.function_id = 1,
                                                 .version = 1,
                                                 .argc = 1,
                                                 .envc = 2,
                                                 .strings_bytes = sizeof(strings),
                                                 .memory_bytes = 16 * MIB,
                                                 .tmp_bytes = MIB,
                                                 .cpu_milli = 500,
                                                 .pids_max = 64,
                                                 .port = 8080,
                                                 .has_code = 1}};
    launcher_client_send(b.client, &make, strings, &code_fd, 1);
    loop_run(b.loop);
    double took = (double)(clock_mono_ns() - b.begun_ns) / 1e9;
    struct launcher_command shutdown = {.kind = LAUNCHER_SHUTDOWN};
    if (b.client != NULL) {
        launcher_client_send(b.client, &shutdown, NULL, NULL, 0);
        b.ended = true;
        loop_run(b.loop); /* until it has gone */
    }
    qsort(b.samples_us, b.sample_count, sizeof(*b.samples_us), compare);
    uint64_t n = MAX(b.sample_count, UINT64_C(1));
    printf("{\"rate\":%.1f,\"p50_us\":%u,\"p99_us\":%u,\"create_us\":%" PRIu64
           ",\"exec_us\":%" PRIu64 "}\n",
           (double)b.finished / took, b.samples_us[b.sample_count / 2],
           b.samples_us[b.sample_count * 99 / 100], b.create_sum / n, b.exec_sum / n);
    char *remove = mem_printf("rm -rf '%s'", directory);
    return system(remove) != 0 || b.finished == 0;
}
