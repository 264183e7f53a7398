/* doctor.c - one function for each thing that is looked at. */
#include "cli/doctor.h"
#include "base/str.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/style.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#define TMPFS 0x01021994 /* TMPFS_MAGIC of linux/magic.h */
#define DISK_FREE_BYTES_MIN (5 * GIB)
#define FSYNC_US_SLOW 20000u

struct look {
    const char *root, *data_dir;
    struct findings *findings;
};

static void find(struct look *l, enum finding_level level, const char *subject, const char *advice,
                 const char *format, ...) printf_like(5, 6);

static void find(struct look *l, enum finding_level level, const char *subject, const char *advice,
                 const char *format, ...)
{
    assert(l->findings->count < ARRAY_COUNT(l->findings->items));
    struct finding *f = &l->findings->items[l->findings->count++];
    va_list more;
    *f = (struct finding){.level = level, .subject = subject};
    va_start(more, format);
    (void)vsnprintf(f->text, sizeof(f->text), format, more);
    va_end(more);
    (void)snprintf(f->advice, sizeof(f->advice), "%s", level == FINDING_GOOD ? "" : advice);
}

/* The text of a file below the root, without its last line end; NULL: it is not there. The caller
 * frees. */
static char *text_of(const struct look *l, const char *path)
{
    cleanup(free_pointer) char *whole = mem_printf("%s%s", l->root, path);
    char *text = NULL;
    struct error e = {0};
    if (file_read(whole, MIB, &text, NULL, &e) != ERR_OK)
        return NULL;
    size_t bytes = strlen(text);
    if (bytes > 0 && text[bytes - 1] == '\n')
        text[bytes - 1] = '\0';
    return text;
}

static long number_of(const struct look *l, const char *path, long when_missing)
{
    cleanup(free_pointer) char *text = text_of(l, path);
    return text != NULL ? strtol(text, NULL, 10) : when_missing;
}

/* ---- the kernel ---- */

static void look_kernel(struct look *l)
{
    cleanup(free_pointer) char *release = text_of(l, "/proc/sys/kernel/osrelease");
    unsigned major = 0, minor = 0;
    bool read = release != NULL && sscanf(release, "%u.%u", &major, &minor) == 2;
    bool good = read && (major > 6 || (major == 6 && minor >= 1));
    find(l, good ? FINDING_GOOD : FINDING_BAD, "kernel", "run Linux 6.1 or newer", "Linux %s",
         read ? release : "of an unknown version");
    struct utsname name;
    bool x86 = uname(&name) == 0 && strcmp(name.machine, "x86_64") == 0;
    find(l, x86 ? FINDING_GOOD : FINDING_BAD, "processor", "workers run on x86-64 only", "%s",
         uname(&name) == 0 ? name.machine : "unknown");
}

static void look_user(struct look *l)
{
    find(l, geteuid() == 0 ? FINDING_GOOD : FINDING_WARN, "user",
         "a worker and `dirigent up` need root; a control plane and a data plane do not", "%s",
         geteuid() == 0 ? "root" : "not root");
}

static bool controllers_are(const char *text, const char *const *names)
{
    for (; *names != NULL; names++) {
        size_t bytes = strlen(*names);
        bool found = false;
        for (const char *at = text; (at = strstr(at, *names)) != NULL; at += bytes)
            found |= (at == text || at[-1] == ' ' || at[-1] == '\n') &&
                     strchr(" \t\n", at[bytes]) != NULL; /* strchr finds the end, too */
        if (!found)
            return false;
    }
    return true;
}

static void look_cgroups(struct look *l)
{
    static const char *const needed[] = {"memory", "cpu", "pids", NULL};
    cleanup(free_pointer) char *v2 = text_of(l, "/sys/fs/cgroup/cgroup.controllers");
    cleanup(free_pointer) char *all = text_of(l, "/proc/cgroups");
    cleanup(free_pointer) char *mounts = text_of(l, "/proc/self/mountinfo");
    if (v2 != NULL && controllers_are(v2, needed)) {
        find(l, FINDING_GOOD, "cgroups", "", "version 2 with memory, cpu and pids");
        return;
    }
    bool v1 = mounts != NULL && strstr(mounts, " - cgroup ") != NULL && all != NULL &&
              controllers_are(all, needed);
    find(l, v1 ? FINDING_GOOD : FINDING_BAD, "cgroups",
         "mount version 2 (systemd.unified_cgroup_hierarchy=1) and enable memory, cpu and pids",
         v1 ? "version 1 with memory, cpu and pids" : "memory, cpu and pids are not all there");
}

static void look_namespaces(struct look *l)
{
    static const char *const kinds[] = {"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"};
    char missing[128] = "";
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        cleanup(free_pointer) char *path = mem_printf("%s/proc/self/ns/%s", l->root, kinds[i]);
        if (access(path, F_OK) != 0)
            (void)snprintf(missing + strlen(missing), sizeof(missing) - strlen(missing), " %s",
                           kinds[i]);
    }
    find(l, missing[0] == '\0' ? FINDING_GOOD : FINDING_BAD, "namespaces",
         "run a kernel that has all of them", "%s%s",
         missing[0] == '\0' ? "all kinds are there" : "missing:", missing);
    cleanup(free_pointer) char *max = text_of(l, "/proc/sys/user/max_user_namespaces");
    if (max != NULL && strtol(max, NULL, 10) == 0)
        find(l, FINDING_BAD, "user namespaces", "sysctl -w user.max_user_namespaces=10000",
             "they are switched off");
}

static void look_seccomp(struct look *l)
{
    cleanup(free_pointer) char *actions = text_of(l, "/proc/sys/kernel/seccomp/actions_avail");
    bool there = actions != NULL && strstr(actions, "user_notif") != NULL;
    find(l, there ? FINDING_GOOD : FINDING_WARN, "seccomp",
         "start workers with --readiness connect; they poll then",
         there ? "can tell of a listen(2)" : "cannot tell when a program listens");
}

/* ---- settings of the kernel ---- */

static void look_sysctls(struct look *l)
{
    static const struct {
        const char *name;
        long least;
        const char *why;
    } wanted[] = {
        {"kernel.unprivileged_bpf_disabled", 1, "programs of ordinary users may load BPF"},
        {"kernel.kptr_restrict", 1, "addresses of the kernel are shown"},
        {"kernel.dmesg_restrict", 1, "the kernel's messages are shown to everybody"},
        {"fs.protected_symlinks", 1, "links in shared directories are followed"},
        {"fs.protected_hardlinks", 1, "files of others can be linked"},
        {"fs.protected_fifos", 1, "pipes of others in shared directories are opened"},
        {"fs.protected_regular", 1, "files of others in shared directories are opened"},
    };
    size_t good = 0;
    for (size_t i = 0; i < ARRAY_COUNT(wanted); i++) {
        char path[128], advice[160];
        (void)snprintf(path, sizeof(path), "/proc/sys/%s", wanted[i].name);
        for (char *at = path + sizeof("/proc/sys/") - 1; *at != '\0'; at++)
            *at = *at == '.' ? '/' : *at;
        long value = number_of(l, path, wanted[i].least);
        (void)snprintf(advice, sizeof(advice), "sysctl -w %s=%ld", wanted[i].name, wanted[i].least);
        if (value < wanted[i].least)
            find(l, FINDING_WARN, wanted[i].name, advice, "%ld: %s", value, wanted[i].why);
        else
            good++;
    }
    if (good == ARRAY_COUNT(wanted))
        find(l, FINDING_GOOD, "sysctl", "", "the hardening that is looked for is on");
}

static void look_core_pattern(struct look *l)
{
    cleanup(free_pointer) char *pattern = text_of(l, "/proc/sys/kernel/core_pattern");
    bool pipe = pattern != NULL && pattern[0] == '|';
    find(l, pipe ? FINDING_WARN : FINDING_GOOD, "core_pattern",
         "sysctl -w kernel.core_pattern=core",
         pipe ? "a program of root reads the core dumps of crashed functions"
              : "core dumps go to files (sandboxes make none)");
}

/* ---- room ---- */

static void look_swap(struct look *l)
{
    cleanup(free_pointer) char *swaps = text_of(l, "/proc/swaps");
    const char *second = swaps != NULL ? strchr(swaps, '\n') : NULL;
    bool on = second != NULL && second[1] != '\0';
    find(l, on ? FINDING_WARN : FINDING_GOOD, "swap",
         "swapoff -a, or encrypt it: memory of functions may be written to it",
         on ? "it is on" : "it is off");
}

static void look_limits(struct look *l)
{
    long pids = number_of(l, "/proc/sys/kernel/pid_max", 0);
    find(l, pids >= 32768 ? FINDING_GOOD : FINDING_WARN, "pid_max",
         "sysctl -w kernel.pid_max=4194304", "%ld processes at once; a sandbox has two at least",
         pids);
    long ports = number_of(l, "/proc/sys/net/ipv4/ip_local_port_range", 32768);
    find(l, ports >= 22500 ? FINDING_GOOD : FINDING_WARN, "ports",
         "sysctl -w net.ipv4.ip_local_port_range='32768 60999', or move --host-port-base",
         "the kernel gives out ports from %ld on; sandboxes are reached by 20000 to 22048", ports);
}

/* Where the data directory is or would be. */
static char *existing_parent(const char *data_dir)
{
    char *path = mem_strdup(data_dir);
    while (access(path, F_OK) != 0 && strrchr(path, '/') != NULL && strrchr(path, '/') != path)
        *strrchr(path, '/') = '\0';
    if (access(path, F_OK) != 0)
        (void)snprintf(path, strlen(path) + 1, "/");
    return path;
}

static uint64_t fsync_us(const char *directory)
{
    cleanup(free_pointer) char *path = mem_printf("%s/.dirigent-doctor-XXXXXX", directory);
    cleanup(fd_close) int fd = mkostemp(path, O_CLOEXEC);
    uint64_t total_ns = 0;
    if (fd < 0)
        return 0;
    (void)unlink(path);
    for (int i = 0; i < 5; i++) {
        if (write(fd, "doctor", 6) != 6)
            return 0;
        uint64_t begin_ns = clock_mono_ns();
        (void)fdatasync(fd);
        total_ns += clock_mono_ns() - begin_ns;
    }
    return total_ns / 5 / NS_PER_US;
}

static void look_disk(struct look *l)
{
    cleanup(free_pointer) char *path = existing_parent(l->data_dir);
    struct statvfs space;
    struct statfs kind;
    if (statvfs(path, &space) != 0 || statfs(path, &kind) != 0) {
        find(l, FINDING_BAD, "data directory", "choose another --data-dir", "%s: %s", path,
             strerror(errno));
        return;
    }
    uint64_t free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    find(l, free_bytes >= DISK_FREE_BYTES_MIN ? FINDING_GOOD : FINDING_WARN, "disk",
         "make room: code and output of functions are kept here", "%" PRIu64 " GiB free at %s",
         free_bytes / GIB, path);
    if (kind.f_type == TMPFS)
        find(l, FINDING_BAD, "data directory", "choose a --data-dir on a disk",
             "%s is in memory: registrations would not survive a restart of the host", path);
    uint64_t us = fsync_us(path);
    if (us > 0)
        find(l, us < FSYNC_US_SLOW ? FINDING_GOOD : FINDING_WARN, "fsync",
             "use a faster disk for the control plane or etcd",
             "%" PRIu64 " us until a write is on the disk", us);
}

static void look_clock(struct look *l)
{
    struct timex state = {0};
    int result = adjtimex(&state);
    bool synced = result >= 0 && result != TIME_ERROR && (state.status & STA_UNSYNC) == 0;
    find(l, synced ? FINDING_GOOD : FINDING_WARN, "clock",
         "run chrony or systemd-timesyncd: certificates and keys expire by this clock",
         synced ? "is kept by a time service" : "is kept by nobody");
}

static void look_tools(struct look *l)
{
    static const char *const places[] = {"/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"};
    bool there = false;
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) {
        cleanup(free_pointer) char *path = mem_printf("%s%s", l->root, places[i]);
        there |= access(path, X_OK) == 0;
    }
    find(l, there ? FINDING_GOOD : FINDING_BAD, "nftables", "apt-get install nftables",
         there ? "is installed" : "nft is not installed: a worker cannot set up its network");
}

void doctor_look(const char *root, const char *data_dir, struct findings *ret_findings)
{
    struct look l = {root, data_dir, ret_findings};
    ret_findings->count = 0;
    look_kernel(&l);
    look_user(&l);
    look_cgroups(&l);
    look_namespaces(&l);
    look_seccomp(&l);
    look_tools(&l);
    look_disk(&l);
    look_limits(&l);
    look_swap(&l);
    look_clock(&l);
    look_core_pattern(&l);
    look_sysctls(&l);
}

/* ---- the command ---- */

struct doctor_values {
    const char *data_dir;
};

static const char *const level_names[] = {
    [FINDING_GOOD] = "good", [FINDING_WARN] = "warn", [FINDING_BAD] = "bad"};

static json_t *to_json(const struct findings *all)
{
    json_t *items = json_array();
    for (size_t i = 0; i < all->count; i++) {
        const struct finding *f = &all->items[i];
        json_array_append_new(items, json_pack("{s:s, s:s, s:s, s:s}", "subject", f->subject,
                                               "level", level_names[f->level], "text", f->text,
                                               "advice", f->advice));
    }
    return json_pack("{s:o}", "items", items);
}

static void print_findings(const struct findings *all)
{
    static const enum style styles[] = {
        [FINDING_GOOD] = STYLE_GREEN, [FINDING_WARN] = STYLE_YELLOW, [FINDING_BAD] = STYLE_RED};
    struct table *t = table_new("|WHAT|HOW IT IS|WHAT TO DO");
    for (size_t i = 0; i < all->count; i++) {
        const struct finding *f = &all->items[i];
        table_cell(t, styles[f->level], "%s", level_names[f->level]);
        table_cell(t, STYLE_BOLD, "%s", f->subject);
        table_cell(t, STYLE_PLAIN, "%s", f->text);
        table_cell(t, STYLE_PLAIN, "%s", f->advice);
    }
    table_print(t, stdout);
    table_free(t);
}

static enum err run_doctor(const struct command_input *in, struct error *e)
{
    const struct doctor_values *values = in->values;
    enum output_format format = output_format_of(in->common->output);
    static struct findings all;
    size_t bad = 0;
    doctor_look("", values->data_dir != NULL ? values->data_dir : "/var/lib/dirigent", &all);
    for (size_t i = 0; i < all.count; i++)
        bad += all.items[i].level == FINDING_BAD;
    json_t *json = to_json(&all);
    if (format == OUTPUT_TABLE)
        print_findings(&all);
    else
        output_json(stdout, format, json);
    json_decref(json);
    return bad == 0 ? ERR_OK
                    : error_set(e, ERR_FAILED,
                                "%zu of these must be put right before a worker can run here", bad);
}

static const struct option doctor_options[] = {
    {"data-dir", 0, OPTION_TEXT, "DIR",
     "where programs keep their data; /var/lib/dirigent when not given",
     offsetof(struct doctor_values, data_dir)},
};
const struct command command_doctor = {
    .name = "doctor",
    .arguments = "",
    .group = GROUP_RUN,
    .summary = "whether this host can do what a worker needs, and what to do",
    .options = doctor_options,
    .option_count = ARRAY_COUNT(doctor_options),
    .values_bytes = sizeof(struct doctor_values),
    .has_output = true,
    .run = run_doctor};
