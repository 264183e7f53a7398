/* spawn.c - runs a command again and again and times it: from spawn to the first byte on its
 * stdout, and how many whole runs a second.
 *
 *   bench-spawn PARALLEL SECONDS COMMAND [ARG…]     "{}" in an argument becomes a number that is
 * unique
 *
 * Prints one JSON object: p50_us, p99_us (to the first byte), rate (whole runs per second), errors.
 */
#include "base/base.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARALLEL_MAX 64
#define SAMPLES_MAX 1000000

extern char **environ;

struct run {
    pid_t pid;
    int fd;
    uint64_t start_ns;
    bool answered;
};

static uint32_t samples_us[SAMPLES_MAX];
static size_t sample_count;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* At rest: so long a pause before each run, the same for all that are compared. */
static void rest(void)
{
    const char *ms = getenv("BENCH_GAP_MS");
    if (ms != NULL)
        usleep((useconds_t)atoi(ms) * 1000);
}

static void run_start(struct run *r, char **command)
{
    static unsigned serial;
    char names[64][256];
    char *argv[65] = {NULL};
    serial++;
    for (unsigned i = 0; command[i] != NULL && i < 64; i++) {
        const char *mark = strstr(command[i], "{}");
        argv[i] = command[i];
        if (mark == NULL)
            continue;
        snprintf(names[i], sizeof(names[i]), "%.*s%u-%u%s", (int)(mark - command[i]), command[i],
                 (unsigned)getpid(), serial, mark + 2);
        argv[i] = names[i];
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        abort();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    rest();
    r->start_ns = now_ns();
    r->answered = false;
    int failure = posix_spawnp(&r->pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    r->fd = ends[0];
    if (failure != 0) {
        fprintf(stderr, "bench-spawn: %s: %s\n", argv[0], strerror(failure));
        exit(2);
    }
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    if (argc < 4 || atoi(argv[1]) < 1 || atoi(argv[1]) > PARALLEL_MAX) {
        fprintf(stderr, "usage: bench-spawn PARALLEL SECONDS COMMAND [ARG...]\n");
        return 2;
    }
    unsigned parallel = (unsigned)atoi(argv[1]), busy = 0, finished = 0, errors = 0;
    struct run runs[PARALLEL_MAX];
    struct pollfd polls[PARALLEL_MAX];
    uint64_t start = now_ns(), end = start + (uint64_t)(atof(argv[2]) * 1e9);
    for (; busy < parallel; busy++)
        run_start(&runs[busy], argv + 3);
    while (busy > 0) {
        for (unsigned i = 0; i < busy; i++)
            polls[i] = (struct pollfd){.fd = runs[i].fd, .events = POLLIN};
        poll(polls, busy, -1);
        for (unsigned i = busy; i-- > 0;) {
            if (polls[i].revents == 0)
                continue;
            struct run *r = &runs[i];
            char data[4096];
            ssize_t n = read(r->fd, data, sizeof(data));
            if (n > 0) {
                if (!r->answered && sample_count < SAMPLES_MAX)
                    samples_us[sample_count++] = (uint32_t)((now_ns() - r->start_ns) / NS_PER_US);
                r->answered = true;
                continue;
            }
            int status = 0;
            close(r->fd);
            waitpid(r->pid, &status, 0);
            finished++;
            errors += status != 0 || !r->answered;
            if (now_ns() < end)
                run_start(r, argv + 3);
            else
                runs[i] = runs[--busy];
        }
    }
    double took = (double)(now_ns() - start) / 1e9;
    qsort(samples_us, sample_count, sizeof(samples_us[0]), compare);
    printf("{\"runs\":%u,\"errors\":%u,\"rate\":%.1f,\"p50_us\":%u,\"p99_us\":%u}\n", finished,
           errors, finished / took, sample_count > 0 ? samples_us[sample_count / 2] : 0,
           sample_count > 0 ? samples_us[sample_count * 99 / 100] : 0);
    return errors > 0;
}
