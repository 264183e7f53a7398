/* links.h - the cluster protocol's server: workers and data planes that dial us. Their messages
 * become events of the core, the core's orders become messages, one per peer and turn. Loop thread
 * only.
 *
 * Life of a peer: connection → Hello → (stored, when it is new or its address is) → Welcome → up →
 * closed. A new connection with the name of one that is up replaces it. */
#pragma once
#include "control_plane/records.h"
#include "control_plane/shell.h"

struct links;

must_check enum err links_new(struct control_plane *cp, struct links **ret_links, struct error *e);
/* While the store is loaded, or followed: new, or changed. */
void links_load(struct links *l, enum store_kind kind, const struct peer_record *record);
void links_drop(struct links *l, uint64_t id); /* while the store is followed */
/* After the load: tells the core the peers that are known. */
void links_tell_core(struct links *l);
/* Begins to listen on the settings' `cluster`. */
must_check enum err links_listen(struct links *l, struct error *e);
/* We lead from now on (cp->leads): asks all who wait for their Hello. */
void links_lead(struct links *l);
/* The authorities changed: tells all who are up. */
void links_tell_roots(struct links *l);
const char *links_address(const struct links *l);
/* Forgets what belongs to sandboxes that are gone. Now and then. */
void links_tidy(struct links *l);
void links_close(struct links *l); /* closes all; a turn of the loop later links_free() */
void links_free(struct links *l);

/* Carries out an order that is for workers or data planes. */
void links_order(struct links *l, const struct control_order *order);

/* Calls on_done when every data plane that is up has said that what it was told until now is in
 * force, or after LINKS_SYNC_MS. It may do so before it returns. Zeroed before; links_sync_cancel()
 * at any time. */
#define LINKS_SYNC_MS 2000u
struct links_sync {
    void (*on_done)(struct links_sync *sync);
    struct list node; /* the rest is links.c's */
    struct links *links;
    struct loop_timer timer;
    uint64_t number;
};
void links_sync(struct links *l, struct links_sync *sync);
void links_sync_cancel(struct links_sync *sync);

/* ---- what operators change ---- */
struct links_change { /* owned by the caller until on_done */
    bool is_worker, remove;
    char name[PEER_NAME_BYTES_MAX + 1];
    enum worker_use use; /* unless removed */
    /* ERR_OK: stored, and the core knows. ERR_NOT_FOUND, ERR_CONFLICT (it is there or has
     * sandboxes, or is being changed), or the store's. May be told before links_change() returns;
     * may be freed here. */
    void (*on_done)(struct links_change *change, enum err err, const struct error *e);
    struct links *links; /* the rest is links.c's */
    struct store_write write;
    struct peer_record record;
};
void links_change(struct links *l, struct links_change *change);

/* ---- output of sandboxes ---- */
struct log_query {
    uint64_t request_id, function_id;
    uint32_t lines;    /* 0: all */
    uint64_t since_ms; /* wall clock; 0: from the beginning */
    bool follow;
};
/* Asks every worker that is up; returns how many. Answers come through log_requests.h. */
size_t links_logs_ask(struct links *l, const struct log_query *query);
void links_logs_ask_one(struct links *l, uint64_t worker_id, const struct log_query *query);
void links_logs_cancel(struct links *l, uint64_t request_id);

/* ---- views for the API ---- */
struct worker_load { /* as a worker last reported it */
    uint32_t cpu_used_milli, blanks_ready;
    uint64_t memory_used_bytes, disk_free_bytes;
};
struct peer_view {
    const struct peer_record *record;
    bool is_worker, connected;
    const char *software; /* "" when not connected */
    const char *peer_ip;
    uint64_t heard_ms_ago;   /* UINT64_MAX: not since we started */
    struct worker_load load; /* workers */
};
/* Iteration over known peers: *cursor starts at 0. */
bool links_peer_next(const struct links *l, size_t *cursor, struct peer_view *ret);
bool links_peer(const struct links *l, uint64_t id, struct peer_view *ret);
/* Requests a sandbox serves now, summed over the data planes. */
uint32_t links_sandbox_in_flight(const struct links *l, uint64_t sandbox_id);
/* "10.0.0.1:8080" by which a data plane is reached: its listen address, with a wildcard replaced.
 */
void links_public_address(const struct peer_view *v, char *ret_text, size_t bytes);
