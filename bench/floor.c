/* floor.c - the floor under a cold start: clone3 into new mount, pid, ipc, uts and cgroup
 * namespaces, bind and pivot_root, /proc, exec of the program; no cgroup, no network (with `net` a
 * new network namespace, empty), no seccomp, no user namespace, no HTTP. Timed from clone3 to the
 * first byte the program writes.
 *
 *   bench-floor PROGRAM PARALLEL SECONDS [net]      needs root; PROGRAM writes a byte and exits
 * when it has an argument
 *
 * Prints one JSON object: p50_us, p99_us, rate (whole runs per second of all PARALLEL loops
 * together). */
#include "base/base.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern int mount(const char *source, const char *target, const char *type, unsigned long flags,
                 const void *data);
extern int umount2(const char *target, int flags);
#define MNT_DETACH 2
#define SAMPLES_MAX 400000u
#define PARALLEL_MAX 16u

struct result {
    uint32_t count, errors;
    uint32_t samples_us[SAMPLES_MAX];
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static _Noreturn void child(const char *root, int out)
{
    char *argv[] = {(char *)"/f", (char *)"1", NULL}, *environment[] = {(char *)"PORT=0", NULL};
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount(root, root, NULL, MS_BIND, NULL) < 0 || chdir(root) < 0 ||
        syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ||
        mount("proc", "/proc", "proc", 0, NULL) < 0)
        _exit(1);
    dup2(out, 1);
    execve("/f", argv, environment);
    _exit(1);
}

/* At rest: so long a pause before each run, the same for all that are compared. */
static void rest(void)
{
    const char *ms = getenv("BENCH_GAP_MS");
    if (ms != NULL)
        usleep((useconds_t)atoi(ms) * 1000);
}

static void run(const char *root, double seconds, uint64_t more_flags, struct result *r)
{
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
    while (now_ns() < end && r->count < SAMPLES_MAX) {
        rest();
        int ends[2], status = 0;
        char byte;
        if (pipe2(ends, O_CLOEXEC) < 0)
            _exit(2);
        struct clone_args args = {.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC |
                                           CLONE_NEWUTS | CLONE_NEWCGROUP | more_flags,
                                  .exit_signal = SIGCHLD};
        uint64_t start = now_ns();
        pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
        if (pid == 0)
            child(root, ends[1]);
        close(ends[1]);
        bool answered = pid > 0 && read(ends[0], &byte, 1) == 1;
        r->samples_us[r->count] = (uint32_t)((now_ns() - start) / NS_PER_US);
        close(ends[0]);
        if (pid > 0)
            waitpid(pid, &status, 0);
        r->errors += !answered || status != 0;
        r->count++;
    }
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    unsigned parallel = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
    double seconds = argc > 3 ? atof(argv[3]) : 0;
    if (argc < 4 || parallel < 1 || parallel > PARALLEL_MAX) {
        fprintf(stderr, "usage: bench-floor PROGRAM PARALLEL SECONDS [net]\n");
        return 2;
    }
    char root[] = "/tmp/bench-floor-XXXXXX", command[600];
    if (mkdtemp(root) == NULL)
        return 2;
    snprintf(command, sizeof(command), "mkdir '%s/proc' && cp '%s' '%s/f'", root, argv[1], root);
    struct result *results = mmap(NULL, sizeof(*results) * parallel, PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (system(command) != 0 || results == MAP_FAILED)
        return 2;
    uint64_t start = now_ns();
    for (unsigned i = 0; i < parallel; i++)
        if (fork() == 0) {
            run(root, seconds, argc > 4 ? CLONE_NEWNET : 0, &results[i]);
            _exit(0);
        }
    while (wait(NULL) > 0)
        ;
    double took = (double)(now_ns() - start) / 1e9;
    uint32_t count = 0, errors = 0;
    for (unsigned i = 0; i < parallel; i++) {
        errors += results[i].errors;
        if (i > 0)
            memmove(&results[0].samples_us[MIN(count, SAMPLES_MAX - results[i].count)],
                    results[i].samples_us, results[i].count * sizeof(uint32_t));
        count = MIN(count + results[i].count, SAMPLES_MAX);
    }
    qsort(results[0].samples_us, count, sizeof(uint32_t), compare);
    printf("{\"runs\":%u,\"errors\":%u,\"rate\":%.1f,\"p50_us\":%u,\"p99_us\":%u}\n", count, errors,
           count / took, count > 0 ? results[0].samples_us[count / 2] : 0,
           count > 0 ? results[0].samples_us[count * 99 / 100] : 0);
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command) != 0 || errors > 0;
}
