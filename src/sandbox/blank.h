/* blank.h - process 1 of a sandbox, from birth to end.
 *
 * A blank is cloned ahead of time by the nursery into its own pid, ipc, uts and cgroup namespaces,
 * and its slot's cgroup; it enters the slot's network namespace and waits on its control socket
 * (seqpacket). BLANK_GO makes it a sandbox of one version: it joins the version's mount namespace
 * (a copy of it), mounts its own /proc and /tmp, joins the version's user namespace, gives up
 * everything, starts the program and from then on reaps, forwards signals and pumps output.
 *
 * Control socket, launcher to blank: struct blank_go, then its strings; descriptors: mount
 * namespace, user namespace, output file. Or struct blank_signal. Blank to launcher: struct
 * blank_report, one a packet; of which none carries a descriptor. */
#pragma once
#include "base/base.h"
#include "sandbox/cgroup.h"
#include "sandbox/seccomp.h"

enum blank_order { BLANK_GO = 1, BLANK_SIGNAL = 2 };
struct blank_go {
    uint32_t order, argc, envc, strings_bytes; /* strings: argv, then "K=V", then the host name */
    uint64_t tmp_bytes;
    uint32_t userns_base;
};
struct blank_signal {
    uint32_t order;
    int32_t signo;
};
enum blank_report_kind {
    BLANK_PARKED = 1, /* ready for GO */
    BLANK_STARTED,    /* exec has succeeded */
    BLANK_FAILED,     /* text; exec_errno when it was the exec */
    BLANK_EXITED,     /* wait_status of the program */
};
struct blank_report {
    uint32_t kind;
    int32_t wait_status, exec_errno;
    uint64_t created_ns, executed_ns; /* STARTED: CLOCK_MONOTONIC, all set up; exec done */
    char text[200];
};

/* What every blank of this launcher shares; built before the nursery is forked. */
struct blank_shared {
    struct cgroup_tree cgroups;
    uint64_t secret;            /* seccomp.h */
    unsigned long capabilities; /* that the kernel knows */
};
/* In the new process, which is in its cgroup: never returns. `netns_fd` -1: it is in its network
 * and cgroup namespaces too. Owns both descriptors. */
_Noreturn void blank_run(const struct blank_shared *shared, int netns_fd, int control_fd);
/* Output file: bounded, the oldest part is punched away. Tests use a small one. */
#include "sandbox/pump.h"
