/* watch.c - what a process used, from /proc. */
#include "simulate/sim.h"
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The inode of a socket that listens on `port` in a table of /proc/net; 0: none. */
static uint64_t listener_inode(const char *path, unsigned port)
{
    FILE *table = fopen(path, "re");
    char line[512];
    uint64_t found = 0;
    while (table != NULL && found == 0 && fgets(line, sizeof(line), table) != NULL) {
        unsigned local_port, state;
        uint64_t inode;
        if (sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*s %*s %*s %*s %*s %" SCNu64,
                   &local_port, &state, &inode) == 3 &&
            local_port == port && state == 0x0A /* TCP_LISTEN */)
            found = inode;
    }
    if (table != NULL)
        fclose(table);
    return found;
}

static bool has_descriptor(const char *pid, const char *target)
{
    char path[300], link[64];
    snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    DIR *dir = opendir(path);
    bool found = false;
    for (struct dirent *entry; dir != NULL && !found && (entry = readdir(dir)) != NULL;) {
        ssize_t bytes = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link) - 1);
        link[MAX(bytes, 0)] = '\0';
        found = strcmp(link, target) == 0;
    }
    if (dir != NULL)
        closedir(dir);
    return found;
}

pid_t watch_find(const char *addresses)
{
    cleanup(free_pointer) char *first = mem_strndup(addresses, strcspn(addresses, ","));
    const char *colon = strrchr(first, ':');
    unsigned port = colon != NULL ? (unsigned)strtoul(colon + 1, NULL, 10) : 0;
    uint64_t inode = listener_inode("/proc/net/tcp", port);
    if (inode == 0)
        inode = listener_inode("/proc/net/tcp6", port);
    char target[48];
    snprintf(target, sizeof(target), "socket:[%" PRIu64 "]", inode);
    DIR *dir = inode != 0 ? opendir("/proc") : NULL;
    pid_t found = 0;
    for (struct dirent *entry; dir != NULL && found == 0 && (entry = readdir(dir)) != NULL;)
        if (isdigit((unsigned char)entry->d_name[0]) && has_descriptor(entry->d_name, target))
            found = (pid_t)strtol(entry->d_name, NULL, 10);
    if (dir != NULL)
        closedir(dir);
    return found;
}

/* schedstat: time on a processor, and time it could have run and had none, in nanoseconds. */
static uint64_t thread_add(pid_t pid, const char *thread, struct usage *u)
{
    char path[300], *end;
    cleanup(free_pointer) char *text = NULL;
    size_t bytes;
    snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", pid, thread);
    if (file_read(path, 4096, &text, &bytes, NULL) != ERR_OK)
        return 0; /* it ended just now */
    uint64_t cpu_ns = strtoull(text, &end, 10);
    u->cpu_ns += cpu_ns;
    u->wait_ns += strtoull(end, NULL, 10);
    return cpu_ns;
}

static uint64_t resident_bytes(pid_t pid)
{
    char path[64];
    cleanup(free_pointer) char *text = NULL;
    size_t bytes;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    if (file_read(path, 16384, &text, &bytes, NULL) != ERR_OK)
        return 0;
    const char *line = strstr(text, "\nVmRSS:");
    return line != NULL ? strtoull(line + 7, NULL, 10) * KIB : 0;
}

enum err watch_usage(pid_t pid, struct usage *ret_usage, struct error *e)
{
    char path[64], main_thread[16];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    snprintf(main_thread, sizeof(main_thread), "%d", pid);
    DIR *dir = opendir(path);
    if (dir == NULL)
        return error_errno(e, "look at process %d", pid);
    *ret_usage = (struct usage){.at_ns = clock_mono_ns(), .rss_bytes = resident_bytes(pid)};
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        uint64_t cpu_ns = thread_add(pid, entry->d_name, ret_usage);
        if (strcmp(entry->d_name, main_thread) == 0)
            ret_usage->main_cpu_ns = cpu_ns;
    }
    closedir(dir);
    return ERR_OK;
}
