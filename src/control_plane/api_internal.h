/* api_internal.h - shared by the API's files. */
#pragma once
#include "control_plane/api.h"
#include "control_plane/copies.h"
#include "control_plane/links.h"
#include "control_plane/registry.h"
#include <jansson.h>

/* One request being served. Made by the router, freed by whoever answers it last. */
struct call {
    struct control_plane *cp;
    struct http_exchange *x;                /* NULL: the client went away */
    char name[FUNCTION_NAME_BYTES_MAX + 1]; /* NAME of the path, checked; or "" */
    uint64_t wait_ms;                       /* 0: answer at once */
    struct change change;
    bool changing; /* `change` is with the registry */
    json_t *json;  /* body, as the change needs it */
    bool plain;    /* the original's registration: answers are text */
    bool stage;
    struct upload *upload;
    struct copies_spread spread; /* of what was uploaded */
    uint64_t code_bytes;
    struct links_sync sync; /* until data planes know of the change */
    /* waiting for a version */
    struct list wait_node;
    struct loop_timer wait_timer;
    uint64_t function_id;
    uint32_t version;
};
/* Takes the exchange; on_gone lets go of it. */
struct call *call_new(struct control_plane *cp, struct http_exchange *x, const char *name);
void call_free(struct call *call);

/* ---- answers; each ends the exchange ---- */
void answer_json(struct http_exchange *x, unsigned status, json_t *json); /* takes json */
void answer_text(struct http_exchange *x, unsigned status, const char *text);
void answer_error(struct http_exchange *x, enum err err, const struct error *e);
/* From here on the store is waited for: if it takes too long, the answer is that nobody knows what
 * became of it, and the handler is told on_gone. What was begun is carried through. */
void store_await(struct http_exchange *x);
void store_awaited(struct http_exchange *x); /* and now something else is */
void answer_error_status(struct http_exchange *x, unsigned status, const char *code,
                         const char *message, const char *field);

/* The function as it is after the call's change. Frees the call. */
void answer_function(struct call *call, const struct function *f);

/* ---- waiting for versions ---- */
struct api {
    struct control_plane *cp;
    struct http_server *server;
    struct relays *relays; /* of clients that came while another led */
    struct list waits;     /* struct call */
    uint64_t requests;
};
/* Answers the call when its version is ready or has failed, or its time is up. */
/* Who was answered calls what it has changed, at every data plane. */
void answer_when_known(struct call *call);
void wait_begin(struct api *api, struct call *call);

/* ---- handlers ---- */
typedef void api_handler(struct control_plane *cp, struct http_exchange *x, const char *name);
api_handler handle_functions_list, handle_function_get, handle_function_put, handle_function_patch,
    handle_function_delete, handle_code_put, handle_logs_get, handle_workers_list, handle_keys_list,
    handle_key_create, handle_key_delete, handle_worker_get, handle_worker_patch,
    handle_worker_delete, handle_data_plane_delete, handle_data_planes_list, handle_sandboxes_list,
    handle_tokens_list, handle_token_create, handle_token_delete, handle_authority_get,
    handle_authority_rotate, handle_status, handle_healthz, handle_readyz, handle_metrics,
    handle_check, handle_registration, handle_backup;

/* ---- shared pieces ---- */
json_t *function_to_json(const struct control_plane *cp, const struct function *f, bool with_spec);
void text_of_time(uint64_t wall_ms, char *ret_text, size_t bytes); /* RFC 3339, UTC */
/* A query value, decoded; "" when it is not there. Wrong encoding and more than `bytes` are
 * refused. */
must_check enum err query_get(const struct http_exchange *x, const char *name, char *ret_text,
                              size_t bytes, struct error *e);
/* `json` from bytes that may be no UTF-8: what is none becomes '?'. */
json_t *json_lossy(const char *data, size_t bytes);

/* The cluster in numbers, for status and metrics. */
struct cluster_numbers {
    uint64_t functions;
    uint64_t sandboxes_starting, sandboxes_ready, sandboxes_draining, sandboxes_stopping;
    uint64_t workers, workers_alive, data_planes, data_planes_alive;
    uint64_t requests_in_flight, requests_waiting;
    uint64_t code_archives, code_bytes;
    uint64_t events, orders, api_requests;
    uint64_t store_writes, store_transactions, store_failures, store_commit_us_last,
        store_commit_us_max;
    uint64_t epoch, uptime_s, ready;
};
void cluster_numbers(const struct control_plane *cp, struct cluster_numbers *ret);
