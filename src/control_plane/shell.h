/* shell.h - inside src/control_plane only: the program around the core. One loop thread owns all of
 * it.
 *
 * What arrives (frames, API calls, timers) becomes events; shell_step() gives them to the core and
 * carries out its orders. Registrations go to the store first and to the core when they are on
 * disk. */
#pragma once
#include "base/settings.h"
#include "base/str.h"
#include "control_plane/core.h"
#include "control_plane/store/store.h"
#include "http/server.h"
#include "loop/loop.h"

struct control_plane_settings {
#define SETTING(key, type, default_text, help) SETTING_FIELD_##type(key)
#include "control_plane/control_plane_settings.def"
#undef SETTING
};

struct registry;
struct links;
struct members;
struct leadership;
struct blobs;
struct copies;
struct api_keys;
struct trust;
struct joining;
struct log_requests;
struct persisted;
struct api;

struct control_plane {
    struct control_plane_settings settings;
    char *data_path; /* <data_dir>/control-plane */
    struct loop *loop;
    struct loop_signals signals;
    struct store *store;
    bool leads;              /* else: stands by, or has not yet begun */
    uint64_t epoch, next_id; /* next_id: ids of functions, workers and data planes */

    struct control *core;
    struct control_orders orders;
    struct loop_timer tick;
    bool stepping;
    uint64_t event_begin_ns; /* when what led to this step arrived, to tell what placing took */
    uint64_t events, orders_count;

    struct registry *registry;
    struct links *links;
    struct members *members;       /* NULL: there is no other control plane */
    struct leadership *leadership; /* NULL: the embedded store, and no other */
    const char *name;              /* of this control plane among the others */
    bool again;                    /* after the end: start anew, to stand by */
    uint32_t backoff_ms;           /* the election's, from the life before and for the next one */
    struct blobs *blobs;
    struct copies *copies;
    struct api_keys *api_keys;
    struct trust *trust;
    struct joining *joining;
    struct log_requests *logs;
    struct persisted *persisted;
    struct api *api;
    uint64_t started_at_ms, started_ns;
    enum err end; /* why the loop stopped */
};

/* Gives the event to the core and carries out what it orders. Not from within an order. */
void shell_step(struct control_plane *cp, const struct control_event *event);
/* What the store has, while it is loaded or followed; NULL: it was deleted. */
must_check enum err shell_take_record(struct control_plane *cp, enum store_kind kind, uint64_t id,
                                      const char *value, struct error *e);
/* The store cannot be used any more. */
void shell_store_lost(struct control_plane *cp, enum err err, const char *why);
/* Another leads, under a newer epoch: this one ends, and starts anew to stand by where there are
 * several. */
void shell_succeeded(struct control_plane *cp, uint64_t epoch, const char *why);
/* Somebody refused our orders, having seen that epoch. */
void shell_refused(struct control_plane *cp, uint64_t epoch);
uint64_t shell_epoch_seen(const struct control_plane *cp);
uint64_t shell_now_ms(const struct control_plane *cp); /* monotonic */
