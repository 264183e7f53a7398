/* function.c - a function that misbehaves on request, and tells what it sees.
 *
 *   GET /          "well"
 *   GET /cgroup    its own /proc/self/cgroup
 *   GET /burn      computes for a second of wall time
 *   GET /eat       takes memory, a MiB at a time, each announced on stderr, without end
 *   GET /eat-child the same in a child; answers when the child has died, which it must not live to
 * see GET /fork      as many children as it can get; tells how many and why no more GET /bomb
 * answers, and leaves processes behind that fork and fork
 *
 * With EAT=1 it eats before it listens.
 */
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1024 * 1024)
#define FORKS_MAX 100000

static _Noreturn void eat(void)
{
    for (int i = 1;; i++) {
        char *piece = malloc(MIB);
        if (piece == NULL) {
            fprintf(stderr, "malloc: %s\n", strerror(errno));
            exit(3);
        }
        fprintf(stderr, "eating %d MiB\n", i);
        for (size_t at = 0; at < MIB; at += 512)
            piece[at] = (char)(i + 1);
    }
}

static void eat_child(char *answer, size_t bytes)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0)
        eat();
    (void)waitpid(pid, &status, 0);
    (void)snprintf(answer, bytes, "outlived the child, status %d\n", status);
}

static void fork_many(char *answer, size_t bytes)
{
    int count = 0;
    pid_t pid = 0;
    while (count < FORKS_MAX && (pid = fork()) >= 0) {
        if (pid == 0)
            for (;;)
                (void)pause();
        count++;
    }
    (void)snprintf(answer, bytes, "%d children, then: %s\n", count,
                   pid < 0 ? strerror(errno) : "no end");
}

static void bomb(void)
{
    if (fork() != 0)
        return;
    for (;;)
        if (fork() < 0)
            (void)usleep(1000);
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void burn(char *answer, size_t bytes)
{
    unsigned long rounds = 0;
    for (double end = now() + 1; now() < end;)
        rounds++;
    (void)snprintf(answer, bytes, "%lu rounds\n", rounds);
}

static void cgroup_tell(char *answer, size_t bytes)
{
    FILE *f = fopen("/proc/self/cgroup", "r");
    size_t n = f != NULL ? fread(answer, 1, bytes - 1, f) : 0;
    answer[n] = '\0';
    if (f != NULL)
        (void)fclose(f);
}

static void act(const char *path, char *answer, size_t bytes)
{
    (void)snprintf(answer, bytes, "well\n");
    if (strcmp(path, "/eat") == 0)
        eat();
    if (strcmp(path, "/eat-child") == 0)
        eat_child(answer, bytes);
    if (strcmp(path, "/fork") == 0)
        fork_many(answer, bytes);
    if (strcmp(path, "/bomb") == 0)
        bomb();
    if (strcmp(path, "/burn") == 0)
        burn(answer, bytes);
    if (strcmp(path, "/cgroup") == 0)
        cgroup_tell(answer, bytes);
}

static void serve(int fd)
{
    char head[8192], path[64] = "", answer[4096], whole[4400];
    size_t got = 0;
    for (ssize_t n;
         got < sizeof(head) - 1 && (n = read(fd, head + got, sizeof(head) - 1 - got)) > 0;) {
        got += (size_t)n;
        head[got] = '\0';
        if (strstr(head, "\r\n\r\n") != NULL)
            break;
    }
    if (got == 0 || sscanf(head, "%*s %63s", path) != 1)
        return;
    act(path, answer, sizeof(answer));
    int n = snprintf(whole, sizeof(whole),
                     "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                     strlen(answer), answer);
    if (write(fd, whole, (size_t)n) != n)
        fprintf(stderr, "write: %s\n", strerror(errno));
}

int main(void)
{
    const char *port = getenv("PORT");
    if (getenv("EAT") != NULL)
        eat();
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port =
                                      htons((unsigned short)atoi(port != NULL ? port : "8080"))};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(listener, 64) < 0) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        serve(fd);
        (void)close(fd);
    }
}
