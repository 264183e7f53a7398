/* store_standby.h - for tests: a follower of an etcd store that notes what it is told. */
#pragma once
#include "control_plane/store/store_conformance.h"

struct standby {
    struct loop *loop;
    struct store *store;
    struct buf told;
    uint64_t epoch, taken_epoch, next_id;
    unsigned synced, taken, lost;
    enum err taken_err, lost_err;
    bool reached;
    char why[sizeof(((struct error *)0)->text)]; /* it is lost, not taken, or not reached */
};

static void standby_on_record(void *user, enum store_kind kind, uint64_t id, const char *value)
{
    struct standby *s = user;
    buf_printf(&s->told, "%d/%" PRIu64 "=%s\n", (int)kind, id, value != NULL ? value : "(none)");
}
static void standby_on_epoch(void *user, uint64_t epoch, const char *leader)
{
    struct standby *s = user;
    s->epoch = epoch;
    CHECK_STR(leader, "me");
}
static void standby_on_synced(void *user)
{
    struct standby *s = user;
    s->synced++;
}
static void standby_on_reached(void *user, bool reached, const char *why)
{
    struct standby *s = user;
    s->reached = reached;
    if (!reached)
        snprintf(s->why, sizeof(s->why), "%s", why);
}
static void standby_on_taken(void *user, enum err err, uint64_t epoch, uint64_t next_id,
                             const struct error *e)
{
    struct standby *s = user;
    s->taken++;
    s->taken_err = err;
    s->taken_epoch = epoch;
    s->next_id = next_id;
    if (err != ERR_OK)
        snprintf(s->why, sizeof(s->why), "%s", e->text);
}
static void standby_on_lost(void *user, enum err err, const char *why)
{
    struct standby *s = user;
    s->lost++;
    s->lost_err = err;
    snprintf(s->why, sizeof(s->why), "%s", why);
}

static void standby_start(struct standby *s, const char *where)
{
    struct error e = {0};
    *s = (struct standby){0};
    struct store_follower follower = {s,
                                      standby_on_record,
                                      standby_on_epoch,
                                      standby_on_synced,
                                      standby_on_reached,
                                      standby_on_taken,
                                      standby_on_lost};
    REQUIRE(loop_new(&s->loop, &e) == ERR_OK);
    REQUIRE(store_open(&store_etcd, where, &s->store, &e) == ERR_OK);
    REQUIRE(store_follow(s->store, s->loop, &follower, &e) == ERR_OK);
}

static void standby_end(struct standby *s)
{
    store_stop(s->store);
    loop_run_once(s->loop, 0);
    store_close(s->store);
    loop_free(s->loop);
    buf_done(&s->told);
}

#define UNTIL(s, condition)                               \
    do {                                                  \
        for (int i_ = 0; i_ < 1500 && !(condition); i_++) \
            loop_run_once((s)->loop, 10);                 \
        CHECK(condition);                                 \
    } while (0)

static bool was_told(const struct standby *s, const char *text)
{
    return s->told.bytes > 0 && memmem(s->told.data, s->told.bytes, text, strlen(text)) != NULL;
}
