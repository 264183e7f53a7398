/* cgroup.c - cgroups(7), both versions. */
#include "sandbox/cgroup.h"
#include "sandbox/devices.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEFTOVER_BYTES_MAX MIB

/* The first three are a must and limit each sandbox; the others, where the host has them, hold for
 * all sandboxes together. */
static const char *const controllers[] = {"memory", "cpu", "pids", "devices", "hugetlb"};
enum { MEMORY, CPU, PIDS, DEVICES, HUGETLB };
static_assert(ARRAY_COUNT(controllers) == CGROUP_DIRS_MAX, "a directory for each");

static unsigned dir_count(const struct cgroup_tree *t)
{
    return t->version == 2 ? 1 : 3;
}

static int dir_of(const struct cgroup_tree *t, int controller)
{
    return t->dirs[t->version == 2 ? 0 : controller];
}

static bool list_has(const char *list, const char *word, const char *separators)
{
    size_t bytes = strlen(word);
    for (const char *at = list; bytes > 0 && (at = strstr(at, word)) != NULL; at += bytes) {
        bool begins = at == list || strchr(separators, at[-1]) != NULL;
        if (begins && (at[bytes] == '\0' || strchr(separators, at[bytes]) != NULL))
            return true;
    }
    return false;
}

/* ---- finding out ---- */

enum err cgroup_v1_path(const char *mountinfo, const char *self_cgroup, const char *controller,
                        char *ret_path, size_t bytes)
{
    char point[256] = "", root[256] = "", own[400] = "";
    /* 36 25 0:31 / /sys/fs/cgroup/memory rw … - cgroup cgroup rw,memory (proc(5)) */
    for (const char *line = mountinfo; *line != '\0';
         line += strcspn(line, "\n"), line += *line == '\n') {
        char text[1024], shown[256], at[256], options[256];
        (void)snprintf(text, sizeof(text), "%.*s", (int)strcspn(line, "\n"), line);
        const char *tail = strstr(text, " - cgroup ");
        if (tail == NULL || sscanf(text, "%*s %*s %*s %255s %255s", shown, at) != 2 ||
            sscanf(tail, " - cgroup %*s %255s", options) != 1 ||
            !list_has(options, controller, ","))
            continue;
        strcpy(point, at);
        strcpy(root, strcmp(shown, "/") == 0 ? "" : shown);
        break;
    }
    /* 4:memory:/path */
    for (const char *line = self_cgroup; *line != '\0';
         line += strcspn(line, "\n"), line += *line == '\n') {
        char text[700], names[128], path[400];
        (void)snprintf(text, sizeof(text), "%.*s", (int)strcspn(line, "\n"), line);
        if (sscanf(text, "%*d:%127[^:]:%399s", names, path) == 2 &&
            list_has(names, controller, ","))
            strcpy(own, path);
    }
    if (point[0] == '\0' || own[0] == '\0')
        return ERR_NOT_FOUND;
    /* The mount may show only a part of the hierarchy, as in a container: then ours is there below
     * that part. */
    size_t part = strlen(root);
    const char *below =
        strncmp(own, root, part) == 0 && (own[part] == '/' || own[part] == '\0') ? own + part : own;
    if (strncmp(own, "/..", 3) == 0 || strcmp(below, "/") == 0)
        below = "";
    int n = snprintf(ret_path, bytes, "%s%s", point, below);
    return n > 0 && (size_t)n < bytes ? ERR_OK : ERR_TOO_LARGE;
}

static bool v2_path(const char *mountinfo, char *ret_path, size_t bytes)
{
    for (const char *line = mountinfo; *line != '\0';
         line += strcspn(line, "\n"), line += *line == '\n') {
        char text[1024], at[256], list_path[300];
        (void)snprintf(text, sizeof(text), "%.*s", (int)strcspn(line, "\n"), line);
        if (strstr(text, " - cgroup2 ") == NULL || sscanf(text, "%*s %*s %*s %*s %255s", at) != 1)
            continue;
        (void)snprintf(list_path, sizeof(list_path), "%s/cgroup.controllers", at);
        char *list = NULL;
        bool all = file_read(list_path, 4096, &list, NULL, NULL) == ERR_OK;
        for (int i = 0; i < 3 && all; i++)
            all = list_has(list, controllers[i], " \n");
        free(list);
        (void)snprintf(ret_path, bytes, "%s", at);
        return all;
    }
    return false;
}

/* ---- files ---- */

static enum err write_file(int dir, const char *name, const char *text)
{
    cleanup(fd_close) int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(errno);
    ssize_t n = write(fd, text, strlen(text));
    return n < 0 ? err_from_errno(errno) : ERR_OK;
}

static enum err read_text(int dir, const char *name, char *ret_text, size_t bytes)
{
    cleanup(fd_close) int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(errno);
    ssize_t n = read(fd, ret_text, bytes - 1);
    if (n < 0)
        return err_from_errno(errno);
    ret_text[n] = '\0';
    return ERR_OK;
}

/* False: the file cannot be read, or there is no number in it ("max"). */
static bool number_is(int dir, const char *name, uint64_t *ret_value)
{
    char text[64], *end = text;
    if (read_text(dir, name, text, sizeof(text)) == ERR_OK)
        *ret_value = strtoull(text, &end, 10);
    return end != text && (*end == '\n' || *end == '\0');
}

static uint64_t read_number(int dir, const char *name)
{
    uint64_t value = 0;
    return number_is(dir, name, &value) ? value : 0;
}

static void slot_file(uint32_t slot, const char *file, char *ret_name, size_t bytes)
{
    (void)snprintf(ret_name, bytes, "s%u/%s", slot, file);
}

/* Writes a value and checks that the kernel took it. `name` is the file's, from `dir`. */
static enum err value_set(int dir, const char *name, uint64_t value, struct error *e)
{
    char text[32], got[64] = "";
    (void)snprintf(text, sizeof(text), "%" PRIu64, value);
    enum err err = write_file(dir, name, text);
    if (err != ERR_OK)
        return error_errno(e, "write %s to %s of the cgroup", text, name);
    uint64_t is = 0;
    bool is_size = strstr(name, "memory.") != NULL; /* the kernel rounds down to whole pages */
    if (number_is(dir, name, &is) && is <= value && value - is < (is_size ? 65536u : 1u))
        return ERR_OK;
    (void)read_text(dir, name, got, sizeof(got));
    got[strcspn(got, "\n")] = '\0';
    return error_set(e, ERR_FAILED, "the cgroup's %s is '%s' after %" PRIu64 " was written", name,
                     got, value);
}

static enum err limit_set(int dir, uint32_t slot, const char *file, uint64_t value, struct error *e)
{
    char name[64];
    slot_file(slot, file, name, sizeof(name));
    return value_set(dir, name, value, e);
}

/* ---- the subtree ---- */

static void kill_all(int dir, const char *group)
{
    char name[300];
    (void)snprintf(name, sizeof(name), "%s/cgroup.procs", group);
    cleanup(fd_close) int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    char text[4096];
    ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : 0;
    if (n <= 0)
        return;
    text[n] = '\0';
    char *rest = NULL;
    for (char *pid = strtok_r(text, "\n", &rest); pid != NULL; pid = strtok_r(NULL, "\n", &rest))
        if (atoi(pid) > 1)
            (void)kill(atoi(pid), SIGKILL);
}

/* Removes every cgroup of one hierarchy's subtree; kills what a dead launcher left there, with
 * patience. */
static void sweep(int dir)
{
    cleanup(fd_close) int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy >= 0 ? fdopendir(fd_take(&copy)) : NULL;
    if (list == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        if (entry->d_name[0] != 's' ||
            strspn(entry->d_name + 1, "0123456789") != strlen(entry->d_name + 1))
            continue;
        for (int i = 0; i < 200 && unlinkat(dir, entry->d_name, AT_REMOVEDIR) < 0 && errno == EBUSY;
             i++) {
            kill_all(dir, entry->d_name);
            (void)usleep(5000);
        }
    }
    closedir(list);
}

static enum err tree_dir_open(struct cgroup_tree *t, int index, const char *parent,
                              const char *name, struct error *e)
{
    int n = snprintf(t->paths[index], sizeof(t->paths[index]), "%s/%s", parent, name);
    if (n < 0 || (size_t)n >= sizeof(t->paths[index]))
        return error_set(e, ERR_TOO_LARGE, "the path of the cgroup below '%s' is too long", parent);
    if (mkdir(t->paths[index], 0755) < 0 && errno != EEXIST)
        return error_errno(e, "make cgroup '%s'", t->paths[index]);
    t->dirs[index] = open(t->paths[index], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (t->dirs[index] < 0)
        return error_errno(e, "open cgroup '%s'", t->paths[index]);
    /* Held as long as we or a helper of ours live: what lies in it is swept, so it must be nobody
     * else's. */
    if (flock(t->dirs[index], LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
        return error_set(e, ERR_BUSY,
                         "cgroup '%s' is in use by another worker of the same --instance",
                         t->paths[index]);
    sweep(t->dirs[index]);
    return ERR_OK;
}

/* All sandboxes together weigh as much as one task on each processor: without it they would be as
 * one against every single process beside them, and starts would wait for whatever else the host
 * does. */
static void weight_set(const struct cgroup_tree *t)
{
    unsigned long processors = (unsigned long)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L);
    char text[32];
    if (t->version == 1)
        (void)snprintf(text, sizeof(text), "%lu", MIN(1024 * processors, 262144ul));
    else
        (void)snprintf(text, sizeof(text), "%lu", MIN(100 * processors, 10000ul));
    (void)write_file(dir_of(t, CPU), t->version == 1 ? "cpu.shares" : "cpu.weight",
                     text); /* a nicety */
}

/* Huge pages are memory that the memory controller does not count: there are none, of no size and
 * not even reserved, for all sandboxes together. */
static enum err hugetlb_forbid(int dir, struct error *e)
{
    static const char *const endings[] = {".max", ".limit_in_bytes"}; /* version 2, 1 */
    cleanup(fd_close) int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy >= 0 ? fdopendir(fd_take(&copy)) : NULL;
    enum err err = list == NULL ? error_errno(e, "list a cgroup") : ERR_OK;
    for (struct dirent *entry; err == ERR_OK && (entry = readdir(list)) != NULL;) {
        size_t bytes = strlen(entry->d_name);
        bool is_limit = false;
        for (size_t i = 0; i < ARRAY_COUNT(endings); i++)
            is_limit |= bytes > strlen(endings[i]) &&
                        strcmp(entry->d_name + bytes - strlen(endings[i]), endings[i]) == 0;
        if (is_limit && strncmp(entry->d_name, "hugetlb.", 8) == 0)
            err = value_set(dir, entry->d_name, 0, e);
    }
    if (list != NULL)
        closedir(list);
    return err;
}

enum err cgroup_tree_make(const char *name, int force_version, const char *mountinfo,
                          const char *own, struct cgroup_tree *t, struct error *e)
{
    *t = (struct cgroup_tree){.dirs = {-1, -1, -1, -1, -1}};
    char path[700];
    enum err err;
    if (force_version != 1 && v2_path(mountinfo, path, sizeof(path))) {
        t->version = 2;
        cleanup(fd_close) int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (write_file(root, "cgroup.subtree_control", "+memory +cpu +pids") ==
            ERR_BUSY) /* the rest shows in ours, below */
            return error_set(e, ERR_BUSY,
                             "memory, cpu and pids cannot be enabled below cgroup '%s': processes "
                             "are in it, as in a "
                             "container; move them into a cgroup below it first",
                             path);
        (void)write_file(root, "cgroup.subtree_control", "+hugetlb"); /* where there is one */
        err = tree_dir_open(t, 0, path, name, e);
        if (err == ERR_OK &&
            write_file(t->dirs[0], "cgroup.subtree_control", "+memory +cpu +pids") != ERR_OK)
            err = error_errno(e, "enable memory, cpu and pids in cgroup '%s'", t->paths[0]);
        if (err == ERR_OK)
            weight_set(t);
        return err == ERR_OK ? hugetlb_forbid(t->dirs[0], e) : err;
    }
    if (force_version == 2)
        return error_set(e, ERR_UNSUPPORTED,
                         "cgroup version 2 with memory, cpu and pids is not mounted on this host");
    t->version = 1;
    for (int i = 0; i < 3; i++) {
        if (cgroup_v1_path(mountinfo, own, controllers[i], path, sizeof(path)) != ERR_OK)
            return error_set(e, ERR_UNSUPPORTED,
                             "no cgroup controller '%s' on this host, neither version 2 nor "
                             "version 1: sandboxes need "
                             "memory, cpu and pids",
                             controllers[i]);
        err = tree_dir_open(t, i, path, name, e);
        if (err != ERR_OK)
            return err;
    }
    weight_set(t);
    /* One cgroup for all sandboxes: what is allowed is the same. */
    for (int i = DEVICES; i <= HUGETLB && err == ERR_OK; i++)
        if (cgroup_v1_path(mountinfo, own, controllers[i], path, sizeof(path)) == ERR_OK)
            err = tree_dir_open(t, i, path, name, e);
    if (err == ERR_OK && t->dirs[HUGETLB] >= 0)
        err = hugetlb_forbid(t->dirs[HUGETLB], e);
    return err;
}

enum err cgroup_tree_open(const char *name, int force_version, struct cgroup_tree *t,
                          struct error *e)
{
    *t = (struct cgroup_tree){.dirs = {-1, -1, -1, -1, -1}};
    char *mountinfo cleanup(free_pointer) = NULL, *own cleanup(free_pointer) = NULL;
    enum err err = file_read("/proc/self/mountinfo", MIB, &mountinfo, NULL, e);
    if (err == ERR_OK)
        err = file_read("/proc/self/cgroup", 64 * KIB, &own, NULL, e);
    if (err == ERR_OK)
        err = cgroup_tree_make(name, force_version, mountinfo, own, t, e);
    if (err != ERR_OK)
        return err;
    if (t->version == 1)
        return t->dirs[DEVICES] >= 0 ? devices_restrict_v1(t->dirs[DEVICES], e) : ERR_OK;
    err = devices_restrict_v2(t->dirs[0], e);
    if (err == ERR_UNSUPPORTED) { /* the mounts alone keep devices away then */
        dprintf(2, "dirigent-launcher: %s\n", e->text);
        err = ERR_OK;
    }
    return err;
}

void cgroup_tree_remove(struct cgroup_tree *t)
{
    for (unsigned i = 0; i < ARRAY_COUNT(t->dirs); i++) {
        if (t->dirs[i] < 0)
            continue;
        sweep(t->dirs[i]);
        fd_close(&t->dirs[i]);
        for (int k = 0; k < 200 && rmdir(t->paths[i]) < 0 && errno == EBUSY; k++)
            (void)usleep(5000); /* of who has just ended the kernel still counts */
    }
}

/* ---- slots ---- */

/* What is the same for all sandboxes, so that it is not in the way of a start. */
static enum err constants_v2(int dir, uint32_t slot, struct error *e)
{
    char name[64];
    slot_file(slot, "memory.swap.max", name, sizeof(name));
    enum err err = ERR_OK;
    if (faccessat(dir, name, F_OK, 0) == 0) /* absent when the kernel counts no swap */
        err = limit_set(dir, slot, "memory.swap.max", 0, e);
    if (err == ERR_OK)
        err = limit_set(dir, slot, "memory.oom.group", 1, e);
    return err == ERR_OK ? limit_set(dir, slot, "cgroup.max.descendants", 0, e) : err;
}

enum err cgroup_slot_make(const struct cgroup_tree *t, uint32_t slot, struct error *e)
{
    char name[32];
    (void)snprintf(name, sizeof(name), "s%u", slot);
    for (unsigned i = 0; i < dir_count(t); i++)
        if (mkdirat(t->dirs[i], name, 0755) < 0 && errno != EEXIST)
            return error_errno(e, "make cgroup '%s/%s'", t->paths[i], name);
    return t->version == 2 ? constants_v2(t->dirs[0], slot, e) : ERR_OK;
}

enum err cgroup_slot_cpu(const struct cgroup_tree *t, uint32_t slot, uint32_t cpu_milli,
                         struct error *e)
{
    uint64_t quota_us = MAX((uint64_t)cpu_milli * 100, UINT64_C(1000)); /* the kernel's least */
    if (t->version == 1)
        return limit_set(t->dirs[CPU], slot, "cpu.cfs_quota_us", quota_us, e);
    char name[64], text[64], got[64] = "";
    slot_file(slot, "cpu.max", name, sizeof(name));
    (void)snprintf(text, sizeof(text), "%" PRIu64 " 100000\n", quota_us);
    if (write_file(t->dirs[0], name, text) != ERR_OK ||
        read_text(t->dirs[0], name, got, sizeof(got)) != ERR_OK || strcmp(got, text) != 0)
        return error_set(e, ERR_FAILED, "the cgroup's cpu.max is '%s' after '%s' was written", got,
                         text);
    return ERR_OK;
}

static enum err limit_v1(const struct cgroup_tree *t, uint32_t slot, const struct cgroup_limits *l,
                         struct error *e)
{
    char name[64];
    int memory = t->dirs[MEMORY];
    slot_file(slot, "memory.limit_in_bytes", name, sizeof(name));
    bool shrinks = read_number(memory, name) > l->memory_bytes;
    slot_file(slot, "memory.memsw.limit_in_bytes", name, sizeof(name));
    bool swap_counted = faccessat(memory, name, W_OK, 0) == 0;
    enum err err = ERR_OK;
    /* memory + swap may never be below memory, at no moment */
    if (swap_counted && !shrinks)
        err = limit_set(memory, slot, "memory.memsw.limit_in_bytes", l->memory_bytes, e);
    if (err == ERR_OK)
        err = limit_set(memory, slot, "memory.limit_in_bytes", l->memory_bytes, e);
    if (err == ERR_OK && swap_counted && shrinks)
        err = limit_set(memory, slot, "memory.memsw.limit_in_bytes", l->memory_bytes, e);
    if (err == ERR_OK)
        err = cgroup_slot_cpu(t, slot, l->cpu_milli, e);
    if (err == ERR_OK)
        err = limit_set(t->dirs[PIDS], slot, "pids.max", l->pids_max + 1,
                        e); /* and the slot's anchor */
    return err;
}

static enum err limit_v2(const struct cgroup_tree *t, uint32_t slot, const struct cgroup_limits *l,
                         struct error *e)
{
    enum err err = limit_set(t->dirs[0], slot, "memory.max", l->memory_bytes, e);
    if (err == ERR_OK)
        err = limit_set(t->dirs[0], slot, "pids.max", l->pids_max, e);
    return err == ERR_OK ? cgroup_slot_cpu(t, slot, l->cpu_milli, e) : err;
}

enum err cgroup_slot_limit(const struct cgroup_tree *t, uint32_t slot,
                           const struct cgroup_limits *limits, struct error *e)
{
    return t->version == 2 ? limit_v2(t, slot, limits, e) : limit_v1(t, slot, limits, e);
}

enum err cgroup_slot_enter(const struct cgroup_tree *t, uint32_t slot, struct error *e)
{
    char name[64];
    slot_file(slot, "cgroup.procs", name, sizeof(name));
    for (unsigned i = 0; i < dir_count(t); i++)
        if (write_file(t->dirs[i], name, "0") != ERR_OK)
            return error_errno(e, "enter cgroup '%s/s%u'", t->paths[i], slot);
    for (int i = DEVICES; i <= HUGETLB; i++)
        if (t->dirs[i] >= 0 && write_file(t->dirs[i], "cgroup.procs", "0") != ERR_OK)
            return error_errno(e, "enter cgroup '%s'", t->paths[i]);
    return ERR_OK;
}

uint64_t cgroup_slot_oom_kills(const struct cgroup_tree *t, uint32_t slot)
{
    char name[64], text[512];
    slot_file(slot, t->version == 2 ? "memory.events" : "memory.oom_control", name, sizeof(name));
    if (read_text(dir_of(t, MEMORY), name, text, sizeof(text)) != ERR_OK)
        return 0;
    const char *at = strstr(text, "oom_kill ");
    return at != NULL ? strtoull(at + 9, NULL, 10) : 0;
}

/* ---- the most memory used ---- */

static uint64_t peak_read(const struct cgroup_tree *t, uint32_t slot,
                          const struct cgroup_peak *peak)
{
    char name[64], text[64];
    if (peak->fd >= 0) {
        ssize_t n = pread(peak->fd, text, sizeof(text) - 1, 0);
        text[MAX(n, 0)] = '\0';
        return strtoull(text, NULL, 10);
    }
    slot_file(slot, t->version == 2 ? "memory.peak" : "memory.max_usage_in_bytes", name,
              sizeof(name));
    return read_number(dir_of(t, MEMORY), name);
}

uint64_t cgroup_slot_memory_peak(const struct cgroup_tree *t, uint32_t slot,
                                 const struct cgroup_peak *peak)
{
    uint64_t most = peak_read(t, slot, peak);
    return most > peak->before_bytes ? most : 0;
}

/* What is written to memory.peak clears it for who reads by the same descriptor, since Linux 6.12;
 * before, it tells of all uses, and so of the last one only when that used the most. */
static void peak_clear(const struct cgroup_tree *t, uint32_t slot, struct cgroup_peak *peak)
{
    char name[64];
    if (t->version == 1) {
        slot_file(slot, "memory.max_usage_in_bytes", name, sizeof(name));
        if (write_file(t->dirs[MEMORY], name, "0") == ERR_OK)
            peak->before_bytes = 0;
        else
            peak->before_bytes = peak_read(t, slot, peak);
        return;
    }
    if (peak->fd < 0 && !peak->is_fixed) {
        slot_file(slot, "memory.peak", name, sizeof(name));
        peak->fd = openat(t->dirs[0], name, O_RDWR | O_CLOEXEC);
    }
    if (peak->fd >= 0 && write(peak->fd, "0", 1) != 1)
        fd_close(&peak->fd);
    peak->is_fixed = peak->fd < 0;
    peak->before_bytes = peak->is_fixed ? peak_read(t, slot, peak) : 0;
}

void cgroup_peak_done(struct cgroup_peak *peak)
{
    fd_close(&peak->fd);
}

/* What the last use left charged is page cache, which goes when the next one needs the room. To
 * drive it out costs the kernel milliseconds, so that is done only where it is much. */
void cgroup_slot_reset(const struct cgroup_tree *t, uint32_t slot, struct cgroup_peak *peak)
{
    bool v2 = t->version == 2;
    char name[64];
    slot_file(slot, v2 ? "memory.current" : "memory.usage_in_bytes", name, sizeof(name));
    uint64_t charged = read_number(dir_of(t, MEMORY), name);
    if (charged > LEFTOVER_BYTES_MAX) {
        char bytes[32];
        (void)snprintf(bytes, sizeof(bytes), "%" PRIu64, charged);
        slot_file(slot, v2 ? "memory.reclaim" : "memory.force_empty", name, sizeof(name));
        (void)write_file(dir_of(t, MEMORY), name, v2 ? bytes : "0");
    }
    peak_clear(t, slot, peak);
}
