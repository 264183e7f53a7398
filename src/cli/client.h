/* client.h - the HTTP API as the client commands use it. One connection, one call at a time;
 * blocks, each call with a deadline. The API is found by --api, then DIRIGENT_API, then
 * http://127.0.0.1:9091. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include "cli/command.h"
#include <curl/curl.h>
#include <jansson.h>

#define CLIENT_DEADLINE_MS 30000u

struct client {
    char *api; /* "http://127.0.0.1:9091", without a slash at its end */
    CURL *curl;
};
must_check enum err client_open(struct client *c, const struct command_input *in, struct error *e);
void client_done(struct client *c); /* also of a zeroed one; for cleanup() too */

struct answer {
    long status;
    struct buf body;
    json_t *json; /* NULL: the body is no JSON */
};
void answer_done(struct answer *a);

/* One call. `json` may be NULL. ERR_OK whatever the status says; otherwise a sentence about the
 * connection: ERR_UNREACHABLE, ERR_TIMEOUT. `waiting` (may be NULL) runs about once a second with
 * the seconds passed. */
struct client_call {
    const char *method, *path;
    const json_t *json;
    uint64_t deadline_ms; /* 0: CLIENT_DEADLINE_MS */
    void (*waiting)(uint64_t seconds, void *user);
    /* An upload: gives up to `bytes` bytes, 0 at the end, -1 when it failed (the reader has its
     * error). */
    ssize_t (*read)(void *user, char *data, size_t bytes);
    /* A body that is not kept but given on; false ends the call. Only with a status of success. */
    bool (*on_data)(void *user, const char *data, size_t bytes);
    void *user;
};
must_check enum err client_call(struct client *c, const struct client_call *call,
                                struct answer *ret_answer, struct error *e);
/* ERR_FAILED with the API's own sentence when the status is no success, or the body is not the
 * API's. */
must_check enum err answer_check(const struct client *c, const struct answer *a, struct error *e);
/* client_call() and answer_check() of GET; *ret_json is the caller's. */
must_check enum err client_get(struct client *c, const char *path, json_t **ret_json,
                               struct error *e);
must_check enum err client_send(struct client *c, const char *method, const char *path,
                                const json_t *json, json_t **ret_json, struct error *e);

/* The sentence for a transfer that failed. `what` is "the API at http://…". */
enum err client_transport_error(CURL *curl, CURLcode code, const char *what, const char *hint,
                                uint64_t deadline_ms, struct error *e);
/* "127.0.0.1:9091", "http://host/" -> "http://host"; ERR_USAGE names `origin`. */
must_check enum err url_normalize(const char *text, const char *origin, char **ret_url,
                                  struct error *e);
/* Whether a function can have this name: it goes into paths. ERR_USAGE. */
must_check enum err client_check_name(const char *name, struct error *e);
/* Proxies are not asked for what is on this machine. */
/* The same of a worker, data plane or key. */
must_check enum err client_check_plain_name(const char *name, struct error *e);
/* A whole command: deletes COLLECTION/<its argument> and says so. */
must_check enum err client_run_remove(const struct command_input *in, const char *collection,
                                      struct error *e);

void client_set_common(CURL *curl);

/* ---- reading answers: a missing member is "" or 0 ---- */
const char *json_text(const json_t *object, const char *key);
uint64_t json_number(const json_t *object, const char *key);
