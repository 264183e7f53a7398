/* store_conformance.h - what every back end must do. Each function begins with an empty store at
 * `where`. Included by the tests of the back ends. */
#pragma once
#include "base/str.h"
#include "control_plane/store/store_backend.h"
#include "test.h"
#include <stdlib.h>

/* ---- a store with a loop ---- */

struct bench {
    struct loop *loop;
    struct store *store;
    uint64_t epoch, next_id;
    struct buf records; /* "kind/id=value\n" of the load */
    enum err lost;
    unsigned lost_count;
};

static enum err note_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                            struct error *e)
{
    struct bench *b = user;
    buf_printf(&b->records, "%d/%" PRIu64 "=%s\n", (int)kind, id, value);
    return ERR_OK;
}

static void note_lost(void *user, enum err err, const char *why)
{
    struct bench *b = user;
    b->lost = err;
    b->lost_count++;
}

static enum err bench_open_on(struct bench *b, const struct store_backend *backend,
                              const char *path, struct error *e)
{
    *b = (struct bench){0};
    enum err err = store_open(backend, path, &b->store, e);
    if (err != ERR_OK)
        return err;
    err = store_take_epoch(b->store, &b->epoch, e);
    if (err == ERR_OK)
        err = store_load(b->store, note_record, b, &b->next_id, e);
    if (err == ERR_OK)
        err = loop_new(&b->loop, e);
    if (err == ERR_OK)
        err = store_start(b->store, b->loop, note_lost, b, e);
    return err;
}

static void bench_close(struct bench *b)
{
    if (b->store != NULL)
        store_stop(b->store);
    if (b->loop != NULL) {
        loop_run_once(b->loop, 0);
        store_close(b->store);
        loop_free(b->loop);
    } else {
        store_close(b->store);
    }
    buf_done(&b->records);
}

static void bench_open_at(struct bench *b, const struct store_backend *backend, const char *where)
{
    struct error e = {0};
    enum err err = bench_open_on(b, backend, where, &e);
    if (err != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    REQUIRE(err == ERR_OK);
}

struct put {
    struct store_write write;
    unsigned *done;
    enum err err;
};

static void on_put(struct store_write *write, enum err err, const struct error *e)
{
    struct put *p = container_of(write, struct put, write);
    p->err = err;
    (*p->done)++;
}

static void wait_for(struct bench *b, const unsigned *done, unsigned count)
{
    while (*done < count)
        loop_run_once(b->loop, -1);
}

/* One write, waited for. `value` NULL deletes. */
static enum err put(struct bench *b, enum store_kind kind, uint64_t id, const char *value)
{
    unsigned done = 0;
    struct put p = {.write = {.kind = kind, .id = id, .value = (char *)value, .on_done = on_put},
                    .done = &done};
    store_submit(b->store, &p.write);
    wait_for(b, &done, 1);
    return p.err;
}

/* ---- conformance ---- */

static void a_new_store_is_empty_and_its_first_epoch_is_1(const struct store_backend *backend,
                                                          const char *where)
{
    struct bench b;
    bench_open_at(&b, backend, where);
    CHECK_EQ(b.epoch, 1);
    CHECK_EQ(b.next_id, 1);
    CHECK_EQ(b.records.bytes, 0);
    bench_close(&b);
}

static void
what_was_put_is_loaded_in_order_and_ids_are_never_used_again(const struct store_backend *backend,
                                                             const char *where)
{
    struct bench b;
    bench_open_at(&b, backend, where);
    CHECK_EQ(put(&b, STORE_WORKER, 7, "seven"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 9, "nine"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 2, "{\"two\":\"ü\"}"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 9, "nine again"), ERR_OK);
    CHECK_EQ(put(&b, STORE_DATA_PLANE, 30, ""), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 40, "short-lived"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 40, NULL), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 41, NULL), ERR_OK); /* deleting nothing is no failure */
    bench_close(&b);
    bench_open_at(&b, backend, where);
    CHECK_EQ(b.epoch, 2);
    CHECK_EQ(b.next_id, 42);
    buf_append(&b.records, "", 1);
    CHECK_STR(b.records.data, "0/2={\"two\":\"ü\"}\n0/9=nine again\n1/7=seven\n2/30=\n");
    bench_close(&b);
}

/* Whatever is put and deleted in whatever order: a plain array agrees after each reopening. */
static void the_store_agrees_with_an_array(const struct store_backend *backend, const char *where,
                                           struct rng *rng)
{
    struct bench b;
    char model[STORE_KIND_COUNT][8][16] = {0};
    for (int round = 0; round < 3; round++) {
        bench_open_at(&b, backend, where);
        struct buf expected = {0};
        for (int kind = 0; kind < STORE_KIND_COUNT; kind++)
            for (int id = 1; id < 8; id++)
                if (model[kind][id][0] != '\0')
                    buf_printf(&expected, "%d/%d=%s\n", kind, id, model[kind][id]);
        CHECK(str_equal(buf_str(&expected), buf_str(&b.records)));
        buf_done(&expected);
        for (uint64_t n = rng_below(rng, 20); n > 0; n--) {
            unsigned kind = (unsigned)rng_below(rng, STORE_KIND_COUNT);
            unsigned id = 1 + (unsigned)rng_below(rng, 7);
            bool remove = rng_below(rng, 3) == 0;
            snprintf(model[kind][id], 16, "%s", remove ? "" : "v");
            if (!remove)
                snprintf(model[kind][id], 16, "v%u", (unsigned)rng_below(rng, 1000));
            CHECK_EQ(put(&b, kind, id, remove ? NULL : model[kind][id]), ERR_OK);
        }
        bench_close(&b);
    }
}

static void a_leader_that_was_succeeded_writes_nothing(const struct store_backend *backend,
                                                       const char *where)
{
    struct error e = {0};
    void *self = NULL;
    uint64_t old_epoch = 0, new_epoch = 0;
    REQUIRE(backend->open(where, &self, &e) == ERR_OK);
    REQUIRE(backend->take_epoch(self, &old_epoch, &e) == ERR_OK);
    REQUIRE(backend->take_epoch(self, &new_epoch, &e) == ERR_OK);
    CHECK_EQ(new_epoch, old_epoch + 1);
    struct store_write write = {.kind = STORE_FUNCTION, .id = 1, .value = (char *)"x"};
    size_t count = 0;
    CHECK_EQ(backend->commit(self, old_epoch, &write, NULL, &count, &e), ERR_STALE);
    CHECK_EQ(backend->commit(self, new_epoch, &write, NULL, &count, &e), ERR_OK);
    CHECK_EQ(count, 1);
    backend->close(self);
}

/* For a store that is filled from a backup of another. */
static void an_epoch_can_be_taken_above_any_number(const struct store_backend *backend,
                                                   const char *where)
{
    struct error e = {0};
    void *self = NULL;
    uint64_t epoch = 9;
    char leader[64] = "x";
    REQUIRE(backend->open(where, &self, &e) == ERR_OK);
    CHECK_EQ(backend->last_epoch(self, &epoch, leader, sizeof(leader), &e), ERR_OK);
    CHECK_EQ(epoch, 0);
    CHECK_STR(leader, "");
    CHECK_EQ(backend->take_epoch_above(self, 1000, &epoch, &e), ERR_OK);
    CHECK_EQ(epoch, 1001);
    CHECK_EQ(backend->take_epoch_above(self, 5, &epoch, &e), ERR_OK);
    CHECK_EQ(epoch, 1002);
    CHECK_EQ(backend->take_epoch(self, &epoch, &e), ERR_OK);
    CHECK_EQ(backend->last_epoch(self, &epoch, leader, sizeof(leader), &e), ERR_OK);
    CHECK_EQ(epoch, 1003);
    struct store_write write = {.kind = STORE_RESTORE, .id = 1, .value = (char *)"{}"};
    size_t count = 0;
    CHECK_EQ(backend->commit(self, 1002, &write, NULL, &count, &e), ERR_STALE);
    CHECK_EQ(backend->commit(self, 1003, &write, NULL, &count, &e), ERR_OK);
    backend->close(self);
}

struct reading {
    struct store_read read;
    struct buf told;
    enum err err;
    unsigned done;
};
static enum err on_reading_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                                  struct error *e)
{
    buf_printf(&((struct reading *)user)->told, "%d/%" PRIu64 "=%s\n", (int)kind, id, value);
    return ERR_OK;
}
static void on_reading_done(struct store_read *read, enum err err, const struct error *e)
{
    struct reading *r = container_of(read, struct reading, read);
    r->err = err;
    r->done++;
}

/* Behind every write that was answered. */
static void a_store_in_use_can_be_read(const struct store_backend *backend, const char *where)
{
    struct bench b;
    struct reading r = {.read = {.on_record = on_reading_record, .on_done = on_reading_done}};
    r.read.user = &r;
    bench_open_at(&b, backend, where);
    CHECK_EQ(put(&b, STORE_WORKER, 7, "seven"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 9, "nine"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 9, "nine again"), ERR_OK);
    store_read(b.store, &r.read);
    wait_for(&b, &r.done, 1);
    CHECK_EQ(r.err, ERR_OK);
    CHECK_EQ(r.read.next_id, 10);
    CHECK(str_equal(buf_str(&r.told), STR("0/9=nine again\n1/7=seven\n")));
    CHECK_EQ(put(&b, STORE_FUNCTION, 9, NULL), ERR_OK); /* it goes on */
    store_stop(b.store);
    store_read(b.store, &r.read);
    wait_for(&b, &r.done, 2);
    CHECK_EQ(r.err, ERR_CLOSED);
    buf_done(&r.told);
    bench_close(&b);
}

static void writes_that_wait_together_share_transactions_and_keep_their_order(
    const struct store_backend *backend, const char *where)
{
    enum { COUNT = 500 };
    struct bench b;
    struct store_numbers numbers;
    static struct put puts[COUNT];
    static char values[COUNT][16];
    unsigned done = 0;
    bench_open_at(&b, backend, where);
    for (unsigned i = 0; i < COUNT; i++) {
        snprintf(values[i], sizeof(values[i]), "%u", i);
        puts[i] = (struct put){.write = {.kind = STORE_FUNCTION,
                                         .id = 1 + i % 5,
                                         .value = values[i],
                                         .on_done = on_put},
                               .done = &done};
        store_submit(b.store, &puts[i].write);
    }
    wait_for(&b, &done, COUNT);
    store_numbers(b.store, &numbers);
    CHECK_EQ(numbers.writes, COUNT);
    CHECK(numbers.transactions < COUNT);
    for (unsigned i = 0; i < COUNT; i++)
        CHECK_EQ(puts[i].err, ERR_OK);
    bench_close(&b);
    bench_open_at(&b, backend, where);
    buf_append(&b.records, "", 1);
    CHECK_STR(b.records.data, "0/1=495\n0/2=496\n0/3=497\n0/4=498\n0/5=499\n");
    bench_close(&b);
}
