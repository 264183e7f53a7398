/* cgroup.h - limits of sandboxes: a pool of cgroups, one for each slot, in a subtree of our own.
 * Version 2 where the host has it with controllers, else version 1 (memory, cpu, pids each in its
 * hierarchy), found out once. Limits are read back after they are written: a limit that did not
 * take is an error. Huge pages are forbidden where the host has that controller. Block I/O is not
 * limited: docs/decisions/0010-no-limit-on-block-io.md. Blocks (cgroupfs). One thread. */
#pragma once
#include "base/base.h"

struct cgroup_limits {
    uint64_t memory_bytes;
    uint32_t cpu_milli, pids_max;
};
#define CGROUP_DIRS_MAX 5
struct cgroup_tree {
    int version;               /* 1 or 2 */
    int dirs[CGROUP_DIRS_MAX]; /* v1: memory, cpu, pids, and where they are mounted devices and
                                  hugetlb; v2: [0]. Directory of our subtree */
    char paths[CGROUP_DIRS_MAX][512];
};
/* What is needed to tell one use's most memory from those before; kept with the slot. */
struct cgroup_peak {
    int fd;                /* -1 at first */
    bool is_fixed;         /* this kernel cannot clear it */
    uint64_t before_bytes; /* then: of all uses before */
};
/* `name` is the subtree's; `force_version` 0 finds out. Removes what a dead launcher left in it. */
must_check enum err cgroup_tree_open(const char *name, int force_version,
                                     struct cgroup_tree *ret_tree, struct error *e);
/* Its part that needs no more than files, for tests: all but devices, out of the texts of
 * /proc/self/mountinfo and /proc/self/cgroup. */
must_check enum err cgroup_tree_make(const char *name, int force_version, const char *mountinfo,
                                     const char *self_cgroup, struct cgroup_tree *ret_tree,
                                     struct error *e);
/* Removes all cgroups of the subtree (they must be empty of processes) and the subtree. */
void cgroup_tree_remove(struct cgroup_tree *t);
must_check enum err cgroup_slot_make(const struct cgroup_tree *t, uint32_t slot, struct error *e);
must_check enum err cgroup_slot_limit(const struct cgroup_tree *t, uint32_t slot,
                                      const struct cgroup_limits *limits, struct error *e);
/* The processor time alone; part of cgroup_slot_limit(). */
must_check enum err cgroup_slot_cpu(const struct cgroup_tree *t, uint32_t slot, uint32_t cpu_milli,
                                    struct error *e);
/* Puts the calling process into the slot's cgroup. Works across pid namespaces. */
must_check enum err cgroup_slot_enter(const struct cgroup_tree *t, uint32_t slot, struct error *e);
/* How often the kernel killed here for want of memory since the slot was made. 0 where unknown. */
uint64_t cgroup_slot_oom_kills(const struct cgroup_tree *t, uint32_t slot);
/* The most memory used since the last reset; 0: not known, as on version 2 before Linux 6.12 when
 * an earlier use of the slot has used as much. */
uint64_t cgroup_slot_memory_peak(const struct cgroup_tree *t, uint32_t slot,
                                 const struct cgroup_peak *peak);
/* After its last process: gives back what is still charged when it is much, and clears the peak,
 * for the next use. */
void cgroup_slot_reset(const struct cgroup_tree *t, uint32_t slot, struct cgroup_peak *peak);
void cgroup_peak_done(struct cgroup_peak *peak);
/* Kills what runs in leftover cgroups of the subtree; part of cgroup_tree_open(). Pure part, for
 * tests: the mount point and the path of our own cgroup for a v1 controller, out of the texts of
 * mountinfo and cgroup files. */
must_check enum err cgroup_v1_path(const char *mountinfo, const char *self_cgroup,
                                   const char *controller, char *ret_path, size_t bytes);
