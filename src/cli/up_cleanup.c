/* up_cleanup.c - the last things. */
#include "cli/up_cleanup.h"
#include "base/log.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOOK_AGAIN_MS 50
#define DEPTH_MAX 4u
#define CHILDREN_MAX 256u

/* ---- locks ---- */

enum err lock_wait_free(const char *directory, uint64_t wait_ms, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/lock", directory);
    uint64_t end_ns = clock_mono_ns() + wait_ms * NS_PER_MS;
    for (bool told = false;; told = true) {
        cleanup(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) == 0)
            return ERR_OK; /* closing gives it back */
        char holder[32] = "?";
        ssize_t n = pread(fd, holder, sizeof(holder) - 1, 0);
        holder[MAX(n, 0)] = '\0';
        if (clock_mono_ns() > end_ns)
            return error_set(e, ERR_BUSY, "directory '%s' is in use by process %s", directory,
                             holder);
        if (!told)
            log_info("up.waiting", LOG_STR("for", "a program of an earlier start to end"),
                     LOG_STR("pid", holder), LOG_STR("directory", directory));
        (void)poll(NULL, 0, LOOK_AGAIN_MS);
    }
}

/* ---- orphans ---- */

/* The children of this thread, from /proc: needs no list of our own. */
static size_t children(pid_t *ret_pids, size_t count_max)
{
    char path[64];
    char *text = NULL;
    size_t count = 0;
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    if (file_read(path, MIB, &text, NULL, NULL) != ERR_OK)
        return 0;
    char *rest = text;
    while (count < count_max) {
        char *end;
        long pid = strtol(rest, &end, 10);
        if (end == rest)
            break;
        ret_pids[count++] = (pid_t)pid;
        rest = end;
    }
    free(text);
    return count;
}

void orphans_reap(const pid_t *keep, size_t keep_count)
{
    pid_t pids[CHILDREN_MAX];
    size_t count = children(pids, ARRAY_COUNT(pids));
    for (size_t i = 0; i < count; i++) {
        bool kept = false;
        for (size_t k = 0; k < keep_count; k++)
            kept |= keep[k] == pids[i];
        if (!kept)
            (void)waitpid(pids[i], NULL, WNOHANG);
    }
}

static void signal_all(int signo)
{
    pid_t pids[CHILDREN_MAX];
    size_t count = children(pids, ARRAY_COUNT(pids));
    for (size_t i = 0; i < count; i++) {
        log_info("up.orphan", LOG_I64("pid", pids[i]), LOG_I64("signal", signo));
        (void)kill(pids[i], signo); /* not reaped yet: the number is still its own */
    }
}

/* True when there is none left. */
static bool reap_until(uint64_t end_ns)
{
    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid > 0)
            continue;
        if (pid < 0 && errno == ECHILD)
            return true;
        if (clock_mono_ns() >= end_ns)
            return false;
        (void)poll(NULL, 0, LOOK_AGAIN_MS);
    }
}

void orphans_end(uint64_t grace_ms)
{
    if (reap_until(0))
        return;
    signal_all(SIGTERM);
    if (reap_until(clock_mono_ns() + grace_ms * NS_PER_MS))
        return;
    /* Killing one may give us its children: until there is none. */
    uint64_t end_ns = clock_mono_ns() + 10 * NS_PER_S;
    do
        signal_all(SIGKILL);
    while (!reap_until(clock_mono_ns() + 500 * NS_PER_MS) && clock_mono_ns() < end_ns);
}

/* ---- run directories ---- */

/* RESOLVE_NO_XDEV: something that is mounted below (a root of sandboxes, for one) must never be
 * emptied. */
static int open_below(int dir_fd, const char *name)
{
    struct open_how how = {.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS};
    return (int)syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));
}

static void remove_below(int dir_fd, const char *name, unsigned depth)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return;
    if (!S_ISDIR(st.st_mode)) {
        (void)unlinkat(dir_fd, name, 0);
        return;
    }
    int fd = open_below(dir_fd, name);
    if (fd < 0 || depth == DEPTH_MAX) {
        fd_close(&fd);
        return;
    }
    DIR *directory = fdopendir(fd);
    struct dirent *entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_below(fd, entry->d_name, depth + 1);
    if (directory != NULL)
        (void)closedir(directory);
    if (unlinkat(dir_fd, name, AT_REMOVEDIR) < 0)
        log_warn("up.directory_stays", LOG_STR("name", name), LOG_STR("error", strerror(errno)));
}

void run_directory_remove(const char *parent, const char *name)
{
    cleanup(fd_close) int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        remove_below(fd, name, 0);
}
