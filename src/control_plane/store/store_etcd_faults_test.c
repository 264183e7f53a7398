/* store_etcd_faults_test.c - the etcd store against a member that fails at exact moments. */
#include "control_plane/store/etcd.h"
#include "control_plane/store/fake_etcd.h"
#include "control_plane/store/store_etcd_internal.h"
#include "control_plane/store/store_standby.h"

static enum err commit_of(void *self, uint64_t epoch, struct store_write *first, struct error *e)
{
    size_t count = 0;
    return store_etcd.commit(self, epoch, first, NULL, &count, e);
}

/* A store that leads. */
static void *leader_open(const struct fake_etcd *f, uint64_t *ret_epoch)
{
    void *self = NULL;
    struct error e = {0};
    REQUIRE(store_etcd.open(fake_etcd_where(f), &self, &e) == ERR_OK);
    REQUIRE(store_etcd.take_epoch(self, ret_epoch, &e) == ERR_OK);
    return self;
}

#define WRITE(i, v)                                             \
    {                                                           \
        .kind = STORE_FUNCTION, .id = (i), .value = (char *)(v) \
    }

/* ---- conformance, here too, so that it is run where there is no etcd ---- */

static void on_fake(void (*check)(const struct store_backend *backend, const char *where))
{
    struct fake_etcd *f = fake_etcd_new();
    check(&store_etcd, fake_etcd_where(f));
    fake_etcd_free(f);
}

TEST(conforms)
{
    on_fake(a_new_store_is_empty_and_its_first_epoch_is_1);
    on_fake(what_was_put_is_loaded_in_order_and_ids_are_never_used_again);
    on_fake(a_leader_that_was_succeeded_writes_nothing);
    on_fake(writes_that_wait_together_share_transactions_and_keep_their_order);
    on_fake(an_epoch_can_be_taken_above_any_number);
    on_fake(a_store_in_use_can_be_read);
}

TEST(conforms_to_an_array)
{
    struct rng rng;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct fake_etcd *f = fake_etcd_new();
        rng_init(&rng, seed);
        the_store_agrees_with_an_array(&store_etcd, fake_etcd_where(f), &rng);
        fake_etcd_free(f);
    }
}

/* ---- opening ---- */

TEST(an_etcd_that_is_too_old_is_refused_with_its_version)
{
    struct fake_etcd *f = fake_etcd_new();
    void *self = NULL;
    struct error e = {0};
    fake_etcd_set_version(f, "3.3.27", 3);
    CHECK_EQ(store_etcd.open(fake_etcd_where(f), &self, &e), ERR_VERSION);
    CHECK(strstr(e.text, "is version 3.3.27: 3.4 or newer is needed") != NULL);
    fake_etcd_set_version(f, "2", 3);
    CHECK_EQ(store_etcd.open(fake_etcd_where(f), &self, &e), ERR_VERSION);
    fake_etcd_set_version(f, "4.0.1", 3);
    CHECK_EQ(store_etcd.open(fake_etcd_where(f), &self, &e), ERR_OK);
    store_etcd.close(self);
    fake_etcd_free(f);
}

TEST(a_file_for_tls_that_is_not_there_is_named_at_once)
{
    void *self = NULL;
    struct error e = {0};
    uint64_t begin_ns = clock_mono_ns();
    CHECK_EQ(store_etcd.open("me@https://127.0.0.1:1?ca=/nowhere/ca.pem", &self, &e), ERR_USAGE);
    CHECK(strstr(e.text, "'/nowhere/ca.pem'") != NULL);
    CHECK_EQ(store_etcd.open("me@https://127.0.0.1:1?cert=/dev/null", &self, &e), ERR_USAGE);
    CHECK(strstr(e.text, "needs its key") != NULL);
    CHECK(clock_mono_ns() - begin_ns < NS_PER_S);
}

/* ---- writes whose outcome nobody knows ---- */

/* Fails with each fault once; the write is there once, and acknowledged. */
TEST(a_write_that_gets_no_answer_is_carried_out_once)
{
    static const enum fake_fault faults[][2] = {{FAKE_LOSE_REQUEST, FAKE_NONE},
                                                {FAKE_LOSE_ANSWER, FAKE_NONE},
                                                {FAKE_HANG, FAKE_NONE},
                                                {FAKE_NO_LEADER, FAKE_NONE},
                                                {FAKE_LOSE_REQUEST, FAKE_LOSE_ANSWER}};
    for (size_t i = 0; i < ARRAY_COUNT(faults); i++) {
        struct fake_etcd *f = fake_etcd_new();
        struct error e = {0};
        uint64_t epoch = 0;
        void *self = leader_open(f, &epoch);
        struct store_write first = WRITE(1, "one"), second = WRITE(1, "two");
        CHECK_EQ(commit_of(self, epoch, &first, &e), ERR_OK);
        uint64_t before = fake_etcd_revision(f);
        fake_etcd_fail(f, faults[i], 2);
        CHECK_EQ(commit_of(self, epoch, &second, &e), ERR_OK);
        CHECK_EQ(fake_etcd_revision(f), before + 1);
        CHECK_EQ(commit_of(self, epoch, &first, &e), ERR_OK); /* it goes on from there */
        store_etcd.close(self);
        fake_etcd_free(f);
    }
}

TEST(a_take_that_gets_no_answer_is_found)
{
    static const enum fake_fault lost[] = {FAKE_LOSE_ANSWER};
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0;
    void *self = leader_open(f, &epoch);
    struct store_write write = WRITE(1, "x");
    CHECK_EQ(commit_of(self, epoch, &write, &e), ERR_OK);
    fake_etcd_fail(f, lost, 1);
    CHECK_EQ(store_etcd.take_epoch(self, &epoch, &e), ERR_OK);
    CHECK_EQ(epoch, 2);
    CHECK_EQ(commit_of(self, epoch, &write, &e), ERR_OK);
    store_etcd.close(self);
    fake_etcd_free(f);
}

/* The delete of another leader is not taken for our own: what was to be written with it was not. */
TEST(a_delete_by_the_next_leader_acknowledges_nothing_of_ours)
{
    static const enum fake_fault lost[] = {FAKE_DELAY};
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch_a = 0, epoch_b = 0, next = 0;
    void *a = leader_open(f, &epoch_a), *b = NULL;
    struct store_write one = WRITE(1, "one"), gone = WRITE(1, NULL), two = WRITE(2, "two");
    struct bench unused = {0};
    CHECK_EQ(commit_of(a, epoch_a, &one, &e), ERR_OK);
    b = leader_open(f, &epoch_b);
    REQUIRE(store_etcd.load(b, note_record, &unused, &next, &e) == ERR_OK);
    struct store_write gone_too = gone;
    CHECK_EQ(commit_of(b, epoch_b, &gone_too, &e), ERR_OK);
    fake_etcd_fail(f, lost, 1);
    gone.private.next = &two; /* one transaction: the delete, and what nobody wrote */
    CHECK_EQ(commit_of(a, epoch_a, &gone, &e), ERR_STALE);
    CHECK_EQ(fake_etcd_deliver(f), 1);
    CHECK(fake_etcd_get(f, "/dirigent/functions/0000000000000002") == NULL);
    buf_done(&unused.records);
    store_etcd.close(a);
    store_etcd.close(b);
    fake_etcd_free(f);
}

/* A first try that comes after its second, and after what followed. */
TEST(what_comes_late_does_nothing)
{
    static const enum fake_fault late[] = {FAKE_DELAY};
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0, next = 0;
    void *self = leader_open(f, &epoch);
    /* Nothing but the compare of the head keeps this one out: it deletes what is not there. */
    struct store_write nothing = WRITE(41, NULL), later = WRITE(70, "later"),
                       gone = WRITE(70, NULL);
    fake_etcd_fail(f, late, 1);
    CHECK_EQ(commit_of(self, epoch, &nothing, &e), ERR_OK);
    CHECK_EQ(commit_of(self, epoch, &later, &e), ERR_OK);
    CHECK_EQ(commit_of(self, epoch, &gone, &e), ERR_OK);
    CHECK_EQ(fake_etcd_deliver(f), 1);
    struct bench unused = {0};
    CHECK_EQ(store_etcd.load(self, note_record, &unused, &next, &e), ERR_OK);
    CHECK_EQ(next, 71);
    CHECK_EQ(commit_of(self, epoch, &later, &e), ERR_OK);
    buf_done(&unused.records);
    store_etcd.close(self);
    fake_etcd_free(f);
}

TEST(no_space_after_an_unknown_attempt_does_not_say_that_nothing_was_written)
{
    static const enum fake_fault full[] = {FAKE_NO_SPACE}, late[] = {FAKE_DELAY, FAKE_NO_SPACE},
                                 done[] = {FAKE_LOSE_ANSWER, FAKE_NO_SPACE};
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0;
    void *self = leader_open(f, &epoch);
    struct store_write write = WRITE(1, "x");
    fake_etcd_fail(f, full, 1);
    CHECK_EQ(commit_of(self, epoch, &write, &e), ERR_NO_SPACE);
    CHECK_EQ(commit_of(self, epoch, &write, &e), ERR_OK); /* space was made */
    fake_etcd_fail(f, done, 2);
    CHECK_EQ(commit_of(self, epoch, &write, &e), ERR_OK);
    fake_etcd_fail(f, late, 2);
    CHECK_EQ(commit_of(self, epoch, &write, &e), ERR_TIMEOUT);
    CHECK(strstr(e.text, "space exceeded") != NULL);
    store_etcd.close(self);
    fake_etcd_free(f);
}

/* ---- pages ---- */

struct listed {
    uint64_t last, count;
};

static enum err on_one(void *user, enum store_kind kind, uint64_t id, const char *value,
                       struct error *e)
{
    struct listed *l = user;
    char expected[24];
    (void)snprintf(expected, sizeof(expected), "%" PRIu64, id);
    CHECK(id > l->last && kind == STORE_FUNCTION);
    CHECK_STR(value, expected);
    l->last = id;
    l->count++;
    return ERR_OK;
}

/* However ids lie: close together, with gaps, far away, at the end of all. */
PROPERTY(all_records_are_listed_once_and_in_order)
{
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0, id = 0, count = 0, next = 0;
    struct listed listed = {0};
    void *self = leader_open(f, &epoch), *other = NULL;
    while (count < 700) {
        struct store_write writes[100];
        char values[100][24];
        uint64_t stride = rng_below(rng, 4) == 0 ? 1 + rng_below(rng, 3000) : 1;
        id += rng_below(rng, 20) == 0 ? UINT64_C(1) << rng_below(rng, 58) : 0;
        for (size_t i = 0; i < ARRAY_COUNT(writes); i++) {
            id += stride;
            (void)snprintf(values[i], sizeof(values[i]), "%" PRIu64, id);
            writes[i] = (struct store_write)WRITE(id, values[i]);
            writes[i].private.next = i + 1 < ARRAY_COUNT(writes) ? &writes[i + 1] : NULL;
        }
        REQUIRE(commit_of(self, epoch, writes, &e) == ERR_OK);
        count += ARRAY_COUNT(writes);
    }
    REQUIRE(store_etcd.open(fake_etcd_where(f), &other, &e) == ERR_OK);
    CHECK_EQ(store_etcd.load(other, on_one, &listed, &next, &e), ERR_OK);
    CHECK_EQ(listed.count, count);
    CHECK_EQ(listed.last, id);
    store_etcd.close(other);
    store_etcd.close(self);
    fake_etcd_free(f);
}

/* ---- whatever fails, in whatever order ---- */

enum { IDS = 5, BATCH_MAX = 3 };
struct model {
    char acked[IDS][8]; /* "": not there */
    uint64_t next_id;
};

static enum err note_in_model(void *user, enum store_kind kind, uint64_t id, const char *value,
                              struct error *e)
{
    struct model *m = user;
    REQUIRE(id < IDS);
    (void)snprintf(m->acked[id], sizeof(m->acked[id]), "%s", value);
    return ERR_OK;
}

static void random_faults(struct fake_etcd *f, struct rng *rng)
{
    enum fake_fault faults[4];
    size_t count = rng_below(rng, 4);
    for (size_t i = 0; i < count; i++) {
        static const enum fake_fault kinds[] = {
            FAKE_NONE,     FAKE_LOSE_REQUEST, FAKE_LOSE_ANSWER, FAKE_DELAY,
            FAKE_NO_SPACE, FAKE_NO_LEADER,    FAKE_LOSE_ANSWER};
        faults[i] = kinds[rng_below(rng, ARRAY_COUNT(kinds))];
    }
    fake_etcd_fail(f, faults, count);
}

/* A batch of one transaction; *ret_after is the model if it is carried out. */
static size_t random_batch(struct rng *rng, const struct model *before, struct store_write *writes,
                           char values[BATCH_MAX][8], struct model *ret_after)
{
    size_t count = 1 + rng_below(rng, BATCH_MAX);
    uint64_t id = 1 + rng_below(rng, IDS - BATCH_MAX);
    *ret_after = *before;
    for (size_t i = 0; i < count; i++, id++) {
        bool gone = rng_below(rng, 3) == 0;
        (void)snprintf(values[i], sizeof(values[i]), gone ? "" : "v%u",
                       (unsigned)rng_below(rng, 10000));
        writes[i] = (struct store_write)WRITE(id, gone ? NULL : values[i]);
        writes[i].next_id = before->next_id + rng_below(rng, 2);
        ret_after->next_id = MAX(ret_after->next_id, MAX(writes[i].next_id, id + 1));
        memcpy(ret_after->acked[id], values[i], sizeof(values[i]));
        if (i > 0)
            writes[i - 1].private.next = &writes[i];
    }
    return count;
}

static bool model_equal(const struct model *a, const struct model *b)
{
    return a->next_id == b->next_id && memcmp(a->acked, b->acked, sizeof(a->acked)) == 0;
}

/* Who begins finds what was acknowledged, and of the one batch of which nobody knew all or nothing.
 */
static void *next_leader(struct fake_etcd *f, const struct model *acked, const struct model *maybe,
                         struct model *ret_found, uint64_t *ret_epoch)
{
    struct error e = {0};
    void *self = leader_open(f, ret_epoch);
    *ret_found = (struct model){0};
    REQUIRE(store_etcd.load(self, note_in_model, ret_found, &ret_found->next_id, &e) == ERR_OK);
    for (int id = 0; id < IDS; id++) { /* what is behind the text is not compared */
        char text[8] = "";
        (void)snprintf(text, sizeof(text), "%s", ret_found->acked[id]);
        memcpy(ret_found->acked[id], text, sizeof(text));
    }
    REQUIRE(model_equal(ret_found, acked) || model_equal(ret_found, maybe));
    return self;
}

PROPERTY(no_acknowledged_write_is_lost_and_none_is_carried_out_twice)
{
    struct fake_etcd *f = fake_etcd_new();
    struct model acked = {.next_id = 1}, maybe = acked, found;
    struct error e = {0};
    uint64_t epoch = 0;
    void *self = next_leader(f, &acked, &maybe, &found, &epoch);
    for (unsigned steps = 1 + (unsigned)rng_below(rng, 3); steps > 0; steps--) {
        struct store_write writes[BATCH_MAX];
        char values[BATCH_MAX][8] = {0};
        size_t count = random_batch(rng, &acked, writes, values, &maybe), done = 0;
        random_faults(f, rng);
        uint64_t before = fake_etcd_revision(f);
        enum err err = store_etcd.commit(self, epoch, writes, NULL, &done, &e);
        fake_etcd_fail(f, NULL, 0);
        if (rng_below(rng, 2) == 0)
            (void)fake_etcd_deliver(f);
        if (err == ERR_OK) {
            CHECK_EQ(done, count);
            CHECK_EQ(fake_etcd_revision(f), before + 1);
            acked = maybe;
        } else if (err == ERR_NO_SPACE) {
            CHECK_EQ(fake_etcd_revision(f), before);
        }
        if (err == ERR_NO_SPACE && rng_below(rng, 2) == 0)
            continue;
        if (err != ERR_OK || rng_below(rng, 3) == 0) { /* the next leader */
            void *old = self;
            uint64_t old_epoch = epoch;
            struct store_write late = WRITE(1, "stale");
            self = next_leader(f, &acked, err == ERR_OK || err == ERR_NO_SPACE ? &acked : &maybe,
                               &found, &epoch);
            acked = found;
            CHECK_EQ(store_etcd.commit(old, old_epoch, &late, NULL, &done, &e), ERR_STALE);
            store_etcd.close(old);
        }
    }
    (void)fake_etcd_deliver(f); /* nothing that is still on its way matters now */
    store_etcd.close(self);
    self = next_leader(f, &acked, &acked, &found, &epoch);
    store_etcd.close(self);
    fake_etcd_free(f);
}

/* ---- growth ---- */

TEST(history_goes_when_it_is_ten_minutes_old)
{
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0, revisions[3];
    struct etcd_store *s = leader_open(f, &epoch);
    struct store_write write = WRITE(1, "x");
    store_etcd.tidy(s);
    CHECK(s->compact_next_ms > etcd_now_ms() + 4 * 60 * 1000);
    for (size_t i = 0; i < ARRAY_COUNT(revisions); i++) { /* each time 5 minutes later */
        CHECK_EQ(fake_etcd_compacted(f), 0);
        CHECK_EQ(commit_of(s, epoch, &write, &e), ERR_OK);
        revisions[i] = fake_etcd_revision(f);
        s->compact_next_ms = 0;
        store_etcd.tidy(s);
    }
    CHECK_EQ(fake_etcd_compacted(f), revisions[0]);
    store_etcd.tidy(s);
    CHECK_EQ(fake_etcd_compacted(f), revisions[0]); /* not before the next 5 minutes */
    store_etcd.close(s);
    fake_etcd_free(f);
}

/* ---- sizes ---- */

TEST(a_record_too_large_for_etcd_is_refused_alone)
{
    struct fake_etcd *f = fake_etcd_new();
    struct bench b;
    struct store_numbers numbers;
    static struct put puts[3];
    unsigned done = 0;
    char *large = mem_new(800 * 1024 + 1);
    memset(large, '"', 800 * 1024); /* twice as much, as a JSON string */
    bench_open_at(&b, &store_etcd, fake_etcd_where(f));
    char *values[] = {(char *)"a", large, (char *)"c"};
    for (unsigned i = 0; i < 3; i++) {
        puts[i] = (struct put){
            .write = {.kind = STORE_FUNCTION, .id = 1 + i, .value = values[i], .on_done = on_put},
            .done = &done};
        store_submit(b.store, &puts[i].write);
    }
    wait_for(&b, &done, 3);
    CHECK_EQ(puts[0].err, ERR_OK);
    CHECK_EQ(puts[1].err, ERR_TOO_LARGE);
    CHECK_EQ(puts[2].err, ERR_OK);
    CHECK_EQ(b.lost_count, 0);
    store_numbers(b.store, &numbers);
    CHECK_EQ(numbers.writes, 2);
    CHECK_EQ(numbers.failures, 1);
    bench_close(&b);
    free(large);
    fake_etcd_free(f);
}

TEST(an_etcd_with_lower_limits_gets_smaller_transactions)
{
    static const enum fake_fault less[] = {FAKE_TOO_MANY, FAKE_TOO_MANY};
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0;
    size_t count = 0;
    void *self = leader_open(f, &epoch);
    struct store_write writes[8];
    for (size_t i = 0; i < ARRAY_COUNT(writes); i++) {
        writes[i] = (struct store_write)WRITE(1 + i, "x");
        writes[i].private.next = i + 1 < ARRAY_COUNT(writes) ? &writes[i + 1] : NULL;
    }
    fake_etcd_fail(f, less, 2);
    CHECK_EQ(store_etcd.commit(self, epoch, writes, NULL, &count, &e), ERR_OK);
    CHECK_EQ(count, 2);
    CHECK_EQ(store_etcd.commit(self, epoch, &writes[2], NULL, &count, &e), ERR_OK);
    CHECK_EQ(count, 6);
    store_etcd.close(self);
    fake_etcd_free(f);
}

/* ---- following ---- */

/* A standby that knows all there is, beside a leader. */
struct scene {
    struct fake_etcd *f;
    struct bench leader;
    struct standby s;
};

static void scene_begin(struct scene *c)
{
    *c = (struct scene){.f = fake_etcd_new()};
    bench_open_at(&c->leader, &store_etcd, fake_etcd_where(c->f));
    CHECK_EQ(put(&c->leader, STORE_FUNCTION, 1, "one"), ERR_OK);
    standby_start(&c->s, fake_etcd_where(c->f));
    UNTIL(&c->s, c->s.synced == 1 && was_told(&c->s, "0/1=one\n"));
}

static void scene_end(struct scene *c)
{
    standby_end(&c->s);
    bench_close(&c->leader);
    fake_etcd_free(c->f);
}

static void take(struct standby *s)
{
    unsigned before = s->taken;
    store_take(s->store, s->epoch);
    UNTIL(s, s->taken == before + 1);
}

/* The watch's first message carries the newest revision before it tells what led to it. */
TEST(a_watch_that_began_has_told_nothing_yet)
{
    struct fake_etcd *f = fake_etcd_new();
    struct bench leader;
    struct standby s;
    bench_open_at(&leader, &store_etcd, fake_etcd_where(f));
    fake_etcd_mute_watches(f, true);
    standby_start(&s, fake_etcd_where(f));
    UNTIL(&s, s.synced == 1);
    CHECK_EQ(put(&leader, STORE_FUNCTION, 5, "five"), ERR_OK);
    fake_etcd_cancel_watches(f); /* the next one begins behind the write, and stays silent */
    CHECK_EQ(put(&leader, STORE_FUNCTION, 6, "six"), ERR_OK);
    uint64_t begin_ns = clock_mono_ns();
    take(&s);
    CHECK_EQ(s.taken_err, ERR_OK);
    CHECK(was_told(&s, "0/5=five\n") && was_told(&s, "0/6=six\n"));
    CHECK_EQ(s.next_id, 7);
    CHECK(clock_mono_ns() - begin_ns < NS_PER_S); /* it did not wait for the next listing */
    standby_end(&s);
    bench_close(&leader);
    fake_etcd_free(f);
}

TEST(a_commit_that_the_watch_leaves_out_is_noticed_by_the_next)
{
    struct scene c;
    scene_begin(&c);
    fake_etcd_skip_change(c.f);
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 2, "left out"), ERR_OK);
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 3, "three"), ERR_OK);
    UNTIL(&c.s, was_told(&c.s, "0/2=left out\n") && was_told(&c.s, "0/3=three\n"));
    scene_end(&c);
}

TEST(whoever_leads_was_told_the_last_commit_though_the_watch_left_it_out)
{
    struct scene c;
    scene_begin(&c);
    fake_etcd_skip_change(c.f);
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 1, NULL), ERR_OK);
    take(&c.s);
    CHECK_EQ(c.s.taken_err, ERR_OK);
    CHECK(was_told(&c.s, "0/1=(none)\n"));
    scene_end(&c);
}

TEST(whoever_cannot_be_told_all_does_not_lead)
{
    struct scene c;
    scene_begin(&c);
    fake_etcd_skip_change(c.f);
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 2, "two"), ERR_OK);
    fake_etcd_fail_ranges(c.f, true);
    store_take(c.s.store, c.s.epoch);
    UNTIL(&c.s, c.s.epoch == 2); /* ours, and we do not lead */
    store_stop(c.s.store);
    loop_run_once(c.s.loop, 0);
    CHECK_EQ(c.s.taken, 1);
    CHECK_EQ(c.s.taken_err, ERR_CLOSED);
    CHECK(strstr(c.s.why, "epoch 2 was taken, but") != NULL);
    scene_end(&c);
}

TEST(after_a_compaction_it_lists_and_goes_on)
{
    struct scene c;
    scene_begin(&c);
    fake_etcd_cancel_watches(c.f);
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 1, NULL), ERR_OK);
    CHECK_EQ(put(&c.leader, STORE_WORKER, 2, "two"), ERR_OK);
    UNTIL(&c.s, was_told(&c.s, "0/1=(none)\n") && was_told(&c.s, "1/2=two\n"));
    CHECK_EQ(c.s.lost, 0);
    scene_end(&c);
}

/* One write of the standby that leads. */
static enum err standby_put(struct standby *s, uint64_t id, const char *value)
{
    unsigned done = 0;
    struct put p = {.write = WRITE(id, value), .done = &done};
    p.write.on_done = on_put;
    store_submit(s->store, &p.write);
    UNTIL(s, done == 1);
    return p.err;
}

/* Its watch tells it of the first write when the record is gone again. */
TEST(a_leader_is_not_misled_by_its_own_writes_that_come_back_late)
{
    struct scene c;
    scene_begin(&c);
    take(&c.s);
    fake_etcd_hold_watches(c.f, fake_etcd_revision(c.f));
    CHECK_EQ(standby_put(&c.s, 9, "nine"), ERR_OK);
    uint64_t then = fake_etcd_revision(c.f);
    CHECK_EQ(standby_put(&c.s, 9, NULL), ERR_OK);
    fake_etcd_hold_watches(c.f, then);
    for (int i = 0; i < 10; i++)
        loop_run_once(c.s.loop, 10);
    CHECK_EQ(standby_put(&c.s, 9, "again"), ERR_OK);
    fake_etcd_hold_watches(c.f, UINT64_MAX);
    CHECK_EQ(standby_put(&c.s, 9, NULL), ERR_OK);
    CHECK_EQ(c.s.lost, 0);
    scene_end(&c);
}

TEST(a_restored_backup_ends_who_follows)
{
    struct scene c;
    scene_begin(&c);
    uint64_t then = fake_etcd_revision(c.f);
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 2, "two"), ERR_OK);
    UNTIL(&c.s, was_told(&c.s, "0/2=two\n"));
    fake_etcd_rewind(c.f, then);
    UNTIL(&c.s, c.s.lost == 1);
    CHECK_EQ(c.s.lost_err, ERR_CONFLICT);
    CHECK(strstr(c.s.why, "restored from a backup") != NULL);
    scene_end(&c);
}

/* ---- others who write ---- */

TEST(a_leader_is_told_at_once_that_a_record_was_wiped)
{
    struct scene c;
    scene_begin(&c);
    take(&c.s);
    fake_etcd_put(c.f, "/dirigent/functions/0000000000000001", NULL);
    UNTIL(&c.s, c.s.lost == 1);
    CHECK_EQ(c.s.lost_err, ERR_CONFLICT);
    CHECK(strstr(c.s.why, "/dirigent/functions/0000000000000001 was changed by something else") !=
          NULL);
    scene_end(&c);
}

TEST(a_write_to_a_record_that_was_wiped_is_refused_with_its_key)
{
    struct fake_etcd *f = fake_etcd_new();
    struct error e = {0};
    uint64_t epoch = 0;
    void *self = leader_open(f, &epoch);
    struct store_write one = WRITE(1, "one"), two = WRITE(2, "two");
    one.private.next = &two;
    CHECK_EQ(commit_of(self, epoch, &one, &e), ERR_OK);
    fake_etcd_put(f, "/dirigent/functions/0000000000000002", NULL);
    CHECK_EQ(commit_of(self, epoch, &one, &e), ERR_CONFLICT);
    CHECK(strstr(e.text, "/dirigent/functions/0000000000000002") != NULL);
    store_etcd.close(self);
    fake_etcd_free(f);
}

TEST(keys_that_must_be_there_are_missed)
{
    static const char *const keys[] = {"/dirigent/epoch", "/dirigent/next_id"};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        struct scene c;
        void *fresh = NULL;
        struct error e = {0};
        struct bench unused = {0};
        uint64_t next = 0;
        scene_begin(&c);
        fake_etcd_put(c.f, keys[i], NULL);
        UNTIL(&c.s, c.s.lost == 1);
        CHECK_EQ(c.s.lost_err, ERR_CORRUPT);
        CHECK(strstr(c.s.why, keys[i]) != NULL);
        REQUIRE(store_etcd.open(fake_etcd_where(c.f), &fresh, &e) == ERR_OK);
        CHECK_EQ(store_etcd.load(fresh, note_record, &unused, &next, &e), ERR_CORRUPT);
        CHECK(strstr(e.text, keys[i]) != NULL);
        store_etcd.close(fresh);
        buf_done(&unused.records);
        scene_end(&c);
    }
}

TEST(who_begins_does_not_take_a_first_epoch_over_records)
{
    struct fake_etcd *f = fake_etcd_new();
    void *self = NULL;
    struct error e = {0};
    uint64_t epoch = 0;
    fake_etcd_put(f, "/dirigent/functions/0000000000000001",
                  "{\"format\":1,\"op\":\"x\",\"value\":\"{}\"}");
    REQUIRE(store_etcd.open(fake_etcd_where(f), &self, &e) == ERR_OK);
    CHECK_EQ(store_etcd.take_epoch(self, &epoch, &e), ERR_CORRUPT);
    CHECK(strstr(e.text, "/dirigent/epoch is missing") != NULL);
    store_etcd.close(self);
    fake_etcd_free(f);
}

TEST(what_a_newer_version_wrote_is_refused_and_its_new_kinds_are_passed_over)
{
    struct scene c;
    scene_begin(&c);
    fake_etcd_put(c.f, "/dirigent/quotas/0000000000000001", "{\"format\":1,\"op\":\"x\"}");
    CHECK_EQ(put(&c.leader, STORE_FUNCTION, 2, "two"), ERR_OK);
    UNTIL(&c.s, was_told(&c.s, "0/2=two\n"));
    CHECK_EQ(c.s.lost, 0);
    fake_etcd_put(c.f, "/dirigent/functions/0000000000000003", "{\"format\":2,\"op\":\"x\"}");
    UNTIL(&c.s, c.s.lost == 1);
    CHECK_EQ(c.s.lost_err, ERR_VERSION);
    CHECK(strstr(c.s.why, "newer Dirigent") != NULL);
    scene_end(&c);
}
