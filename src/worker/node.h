/* node.h - versions and sandboxes of one worker: what the control plane orders, what the launcher
 * tells, what is reported. Loop thread only. Its neighbours are the launcher client, the code
 * store, the logs, and one way to report; it owns none of them.
 *
 * Version: waiting for code -> template being built -> ready; a failure fails its waiting
 * sandboxes, and the next start tries again. Sandbox: states[] in node.c. */
#pragma once
#include "base/base.h"
#include "dirigent.pb-c.h"
#include "launcher/launcher.h"
#include "loop/loop.h"
#include "worker/code_store.h"
#include "worker/logs.h"

struct node;
struct node_options {
    struct loop *loop;
    struct launcher_client *launcher;
    struct code_store *code;
    struct logs *logs;
    const char *address; /* of this host, for data planes of others */
    /* One change of one sandbox; `status` is valid during the call. */
    void (*on_report)(void *user, const Dirigent__SandboxStatus *status);
    void (*on_empty)(void *user); /* after node_stop_all(): the last one has gone */
    void *user;
};
struct node *node_new(const struct node_options *options);
void node_free(struct node *n);
/* Orders. */
void node_prepare(struct node *n, const Dirigent__VersionSpec *spec);
void node_start(struct node *n, uint64_t sandbox_id, uint64_t function_id, uint32_t version);
void node_stop(struct node *n, uint64_t sandbox_id, uint32_t grace_ms);
void node_drop(struct node *n, uint64_t function_id, uint32_t version);
void node_stop_all(struct node *n, uint32_t grace_ms);
/* What others tell. */
void node_launcher_event(struct node *n, const struct launcher_event *event);
void node_code_ready(struct node *n, const char *digest, enum err err, int dir_fd, const char *why);
bool node_uses_code(const struct node *n, const char *digest);
/* Calls `each` for every live sandbox, as for a Hello. */
void node_each(const struct node *n,
               void (*each)(void *user, const Dirigent__SandboxStatus *status), void *user);
struct node_counts {
    uint32_t versions, starting, ready, stopping;
    uint32_t blanks_ready; /* parked sandboxes that wait for a function */
    uint64_t started_total, failed_total;
};
struct node_counts node_count(const struct node *n);
