/* state.h - what the launcher's files share: slots, templates, the worker's connection. Nobody else
 * includes it.
 *
 * A slot is an address with its network namespace and cgroup. Its life:
 *   EMPTY -> BUILDING (builder process, then the anchor) -> FREE -> BIRTH (nursery or anchor clones
 * a blank) -> PARKED -> RUNNING (a sandbox)
 *   -> DYING (killed, not reaped yet) -> QUARANTINE -> FREE -> … */
#pragma once
#include "base/hash.h"
#include "base/list.h"
#include "launcher/launcher.h"
#include "loop/loop.h"
#include "sandbox/blank.h"
#include "sandbox/network.h"
#include "sandbox/root.h"

enum slot_state {
    SLOT_EMPTY,
    SLOT_BUILDING,
    SLOT_FREE,
    SLOT_BIRTH,
    SLOT_PARKED,
    SLOT_RUNNING,
    SLOT_DYING,
    SLOT_QUARANTINE
};

struct template
{
    struct launcher *launcher;
    uint64_t function_id;
    uint32_t version;
    struct launcher_template spec;
    char *strings;
    struct cgroup_limits limits;
    int mntns_fd, userns_fd; /* -1 while it is built */
    uint32_t userns_base, userns_index;
    uint32_t users; /* sandboxes and waiting starts */
    bool ready, dropped;
    uint32_t best_start_us;      /* least time from exec to listen of its sandboxes; 0: none yet */
    struct loop_poll build_poll; /* the helper's result */
    pid_t build_pid;
};

struct slot {
    struct launcher *launcher;
    uint32_t index;
    enum slot_state state;
    int netns_fd, control_fd, pidfd, anchor_fd;
    pid_t pid, anchor_pid; /* the anchor: with cgroups of version 1 only, see helpers.c */
    struct loop_poll control_poll, pid_poll, anchor_poll;
    uint64_t netns_cookie; /* socket(7), SO_NETNS_COOKIE: tells whose a notification is */
    struct list node;      /* in the list of its state: free, parked, quarantine */
    uint64_t quarantine_end_ns;
    struct cgroup_limits limits; /* as they are written now */
    bool outward;                /* its default route is there */
    uint64_t oom_kills;          /* counted before this use */
    struct cgroup_peak memory_peak;
    /* while RUNNING or DYING */
    uint64_t sandbox_id, order_ns, started_at_ms;
    struct template *template;
    uint32_t create_us, exec_us, listen_us;
    int32_t wait_status, exec_errno;
    bool has_status, is_ready, started, told_wrong_port, failed, signaled;
    struct loop_timer probe_timer; /* without a listener: the next look whether it listens */
    struct loop_poll probe_poll;   /* a connection that is being tried */
    uint32_t probe_wait_us;
    char text[200];
};

struct start { /* an order that waits for a blank */
    struct list node;
    uint64_t sandbox_id, order_ns;
    struct template *template;
    int output_fd;
};

struct launcher {
    struct launcher_config config;
    struct network_config network;
    struct blank_shared shared;
    struct loop *loop;
    struct slot *slots;
    struct list free_slots, parked, quarantine, rest, starts; /* rest: as quarantine, shorter */
    uint32_t slots_made, births, building, anchoring, running;
    struct map templates; /* template_key() */
    struct map sandboxes; /* id -> slot */
    struct map by_netns;  /* cookie -> slot */
    int listener_fd;      /* -1: none */
    struct loop_poll listener_poll;
    uint32_t userns_next;
    int nursery_fd, builder_fd; /* seqpacket to our two helper processes */
    struct loop_poll nursery_poll, builder_poll;
    pid_t nursery_pid, builder_pid;
    struct loop_poll listen_poll, worker_poll; /* launcher.sock; the attached worker */
    int worker_fd;
    struct buf outgoing;
    struct loop_timer orphan_timer, quarantine_timer, refill_timer, pool_timer;
    struct loop_signals signals;
    bool forward_was_off, shutting_down, builder_failed;
};

/* launcher.c */
void launcher_event_send(struct launcher *l, const struct launcher_event *event);
void launcher_slot_event(struct slot *s, uint32_t kind, struct launcher_event *ret_event);
/* helpers.c - nursery and builder */
must_check enum err helpers_start(struct launcher *l, struct error *e);
void helpers_birth(struct launcher *l, struct slot *s);
bool helpers_anchor(struct launcher *l, struct slot *s); /* ends with slot_anchored() */
void helpers_anchor_end(struct slot *s);                 /* also when there is none */
void helpers_build(struct launcher *l, struct slot *s);
must_check enum err helpers_template(struct launcher *l, struct template *t, int code_fd,
                                     struct error *e);
/* sandboxes.c - slots and sandboxes */
void slot_built(struct slot *s, int netns_fd, uint64_t netns_cookie);
void slot_anchored(struct slot *s, bool ok);
void slot_born(struct slot *s, pid_t pid);
void slots_refill(struct launcher *l);
void pool_tell(struct launcher *l); /* to the worker, how many blanks and slots there are */
void sandbox_start(struct launcher *l, uint64_t sandbox_id, struct template *t, int output_fd);
void sandbox_signal(struct slot *s, int signo);
void sandbox_kill(struct slot *s);
void sandbox_limit(
    struct slot *s); /* it listens: from now on it has what it was promised, no more */
void template_release(struct launcher *l, struct template *t);
void on_quarantine_timer(struct loop_timer *timer);
/* notify.c - bind(2) and listen(2) of sandboxes */
void notify_start(struct launcher *l,
                  int listener_fd); /* -1: there is none, programs are probed instead */
void notify_sandbox_started(struct slot *s);
void notify_sandbox_ended(struct slot *s);
/* packets */
must_check enum err packet_send(int fd, const void *data, size_t bytes, const int *fds,
                                size_t fd_count);
/* Returns bytes, 0 at the end, -1 when there is none now. Received descriptors: up to `fds_max`;
 * *ret_fd_count. */
ssize_t packet_recv(int fd, void *data, size_t bytes, int *ret_fds, size_t fds_max,
                    size_t *ret_fd_count);
static inline uint64_t template_key(uint64_t function_id, uint32_t version)
{
    return function_id << 24 ^ version; /* both are counters from 1 */
}
