/* launcher.h - the small root process beside a worker, and what it may be asked.
 *
 * The launcher is a static program of its own (dirigent-launcher), carried inside the `dirigent`
 * executable and run from a sealed memfd. It is the only code that is root while a worker runs:
 * single- threaded, no network service, no parser of outside formats. It owns what needs root:
 * network namespaces and their addresses, cgroups, templates (a version's finished root), sandboxes
 * and their pidfds, seccomp listeners. It keeps all of that when its worker dies, and gives it to
 * the next one that attaches; when the launcher itself dies, the kernel kills every sandbox
 * (PR_SET_PDEATHSIG), so nothing is left running unsupervised. Without a worker for `orphan_ms` it
 * stops everything and exits.
 *
 * Protocol: SOCK_SEQPACKET, one struct a packet, native byte order (same machine, same build: the
 * first packet carries LAUNCHER_PROTOCOL). Strings in a template are packed NUL-terminated.
 * Descriptors by SCM_RIGHTS. Every field is bounds-checked by the launcher; a wrong packet closes
 * the connection.
 *
 * Slot n has the address pool + 4 + n (sandbox/network.h); data planes of this host connect to
 * (address, function's port), others to host port host_port_base + n of this host. A program that
 * binds 127.0.0.1:$PORT is bound to all addresses of its own namespace instead
 * (docs/decisions/0003), so it is reached like any other.
 */
#pragma once
#include "base/base.h"
#include "base/limits.h"

#define LAUNCHER_PROTOCOL 2u
#define LAUNCHER_PACKET_BYTES_MAX (128u * 1024u)

enum launcher_command_kind {
    LAUNCHER_ATTACH = 1, /* first packet of a worker: answered by CONFIG_OK, then one TEMPLATE_READY
                            for each template, one STATUS for each sandbox, then ATTACHED */
    LAUNCHER_TEMPLATE, /* build a version's root; fds: [0] code directory (O_PATH) when has_code */
    LAUNCHER_TEMPLATE_DROP,
    LAUNCHER_START,    /* fds: [0] output file (O_WRONLY|O_APPEND) */
    LAUNCHER_SIGNAL,   /* to the function's process */
    LAUNCHER_KILL,     /* SIGKILL to all of the sandbox */
    LAUNCHER_SHUTDOWN, /* kill all, remove all, exit */
};
struct launcher_template { /* followed by `strings_bytes` of strings */
    uint64_t function_id;
    uint32_t version;
    uint32_t argc, envc; /* strings: argv[0..argc), then "K=V"[0..envc), then host name */
    uint32_t strings_bytes;
    uint64_t memory_bytes, tmp_bytes;
    uint32_t cpu_milli, pids_max;
    uint16_t port;
    uint8_t network_none, has_code;
    uint32_t start_deadline_ms;
};
struct launcher_command {
    uint32_t kind;
    uint32_t protocol;    /* ATTACH */
    uint64_t sandbox_id;  /* START, SIGNAL, KILL */
    uint64_t function_id; /* START, TEMPLATE_DROP */
    uint32_t version;
    int32_t signo;                     /* SIGNAL */
    struct launcher_template template; /* TEMPLATE; its strings follow the command struct */
};

enum launcher_event_kind {
    LAUNCHER_CONFIG_OK = 1,
    LAUNCHER_TEMPLATE_READY,
    LAUNCHER_TEMPLATE_FAILED, /* text */
    LAUNCHER_LISTENING,       /* on the right port: ready, and the socket listens already */
    LAUNCHER_WRONG_PORT, /* listens on `port`, not the function's (told once per port; not fatal) */
    LAUNCHER_EXITED,     /* all of it is gone and its slot is being cleaned */
    LAUNCHER_START_FAILED, /* before the program ran: text; exec failure has exec_errno */
    LAUNCHER_STATUS,       /* on attach: state of a live sandbox, fields as above */
    LAUNCHER_ATTACHED,
    LAUNCHER_POOL, /* blanks ready, slots free: on attach, and within POOL_TELL_MS of a change */
};
struct launcher_event {
    uint32_t kind;
    uint32_t protocol;
    uint64_t sandbox_id, function_id;
    uint32_t version;
    uint32_t slot;
    uint32_t ip; /* of the sandbox, network byte order */
    uint16_t host_port;
    uint16_t port; /* LISTENING, WRONG_PORT, STATUS */
    uint8_t is_ready, oom, is_running;
    uint32_t create_us, exec_us, listen_us; /* since the START command arrived */
    int32_t wait_status;                    /* EXITED: of the function's process, as wait(2) */
    int32_t exec_errno;
    uint64_t memory_peak_bytes; /* EXITED: 0 when not known */
    uint64_t cpu_us;
    uint64_t started_at_ms; /* wall clock */
    uint32_t blanks_ready, slots_free;
    int32_t cgroup_version; /* CONFIG_OK: 1 or 2; 0: none (then nothing can be started) */
    char text[512];
};

/* Settings the worker hands to the launcher's command line (as key=value arguments). */
struct launcher_config {
    char run_dir[256]; /* of the worker: holds launcher.sock and launcher.lock */
    char instance[32]; /* names cgroup subtree, nftables table and interfaces: [a-z0-9]{1,8} */
    uint32_t pool_ip;  /* host byte order: base of the sandbox address pool (a /19 or larger) */
    uint16_t host_port_base; /* 20000 */
    uint32_t slots_max;      /* <= SANDBOXES_PER_WORKER_MAX */
    uint32_t blanks_min;     /* parked sandboxes kept ready */
    uint32_t quarantine_ms;  /* before an address is used again whose sandbox ended by itself */
    uint32_t orphan_ms;
    uint32_t userns_base;   /* first host uid for sandboxes, 65536 per version; >= 100000 */
    uint32_t worker_uid;    /* who may attach */
    int32_t cgroup_version; /* 0: find out; 1 or 2: force */
    uint32_t probe; /* 1: find out by connecting whether programs listen, as where there is no
                       seccomp listener */
};

/* ---- client side, used by the worker (launcher_client.c) ---- */
struct loop;
struct launcher_client;
struct launcher_callbacks {
    void (*on_event)(struct launcher_client *c, void *user, const struct launcher_event *event);
    void (*on_closed)(struct launcher_client *c, void *user, const char *why);
};
/* As root, before privileges are dropped: attaches to the launcher that runs for this run_dir, or
 * starts one. *ret_started tells which. Blocks until it answers, at most 10 s. Errors say what the
 * host lacks. */
must_check enum err launcher_open(const struct launcher_config *config, int *ret_fd,
                                  bool *ret_started, struct error *e);
must_check enum err launcher_client_new(struct loop *loop, int fd,
                                        const struct launcher_callbacks *callbacks, void *user,
                                        struct launcher_client **ret_client, struct error *e);
void launcher_client_free(struct launcher_client *c);
/* `strings` and `fds` as the command says. Sends at once; packets the socket does not take are kept
 * and sent in order. */
void launcher_client_send(struct launcher_client *c, const struct launcher_command *command,
                          const char *strings, const int *fds, size_t fd_count);
