/* store_test.c - the conformance suite of back ends (here: SQLite), damage, kills, and the thread.
 */
#include "control_plane/store/store_conformance.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- a directory of its own per test ---- */

struct place {
    char directory[64];
    char path[96];
};

static void place_make(struct place *p)
{
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(p->directory, sizeof(p->directory), "%s/store-test-XXXXXX", base);
    REQUIRE(mkdtemp(p->directory) != NULL);
    snprintf(p->path, sizeof(p->path), "%s/state.db", p->directory);
}

static void place_remove(struct place *p)
{
    static const char *const suffixes[] = {"",         "-wal",         "-journal",
                                           ".new",     ".new-journal", ".copy",
                                           "-reserve", ".copy-wal",    ".copy-reserve"};
    for (size_t i = 0; i < ARRAY_COUNT(suffixes); i++) {
        char path[128];
        snprintf(path, sizeof(path), "%s%s", p->path, suffixes[i]);
        (void)unlink(path);
    }
    CHECK_EQ(rmdir(p->directory), 0);
}

/* ---- conformance ---- */

static void on_sqlite(void (*check)(const struct store_backend *backend, const char *where))
{
    struct place p;
    place_make(&p);
    check(&store_sqlite, p.path);
    place_remove(&p);
}

static void bench_open(struct bench *b, const char *path)
{
    bench_open_at(b, &store_sqlite, path);
}

TEST(conforms_when_new)
{
    on_sqlite(a_new_store_is_empty_and_its_first_epoch_is_1);
}

TEST(conforms_in_what_is_loaded)
{
    on_sqlite(what_was_put_is_loaded_in_order_and_ids_are_never_used_again);
}

PROPERTY(conforms_to_an_array)
{
    struct place p;
    place_make(&p);
    the_store_agrees_with_an_array(&store_sqlite, p.path, rng);
    place_remove(&p);
}

TEST(conforms_in_refusing_a_leader_that_was_succeeded)
{
    on_sqlite(a_leader_that_was_succeeded_writes_nothing);
}

TEST(conforms_in_sharing_transactions)
{
    on_sqlite(writes_that_wait_together_share_transactions_and_keep_their_order);
}
TEST(conforms_in_epochs_above_a_number)
{
    on_sqlite(an_epoch_can_be_taken_above_any_number);
}
TEST(conforms_in_being_read_while_in_use)
{
    on_sqlite(a_store_in_use_can_be_read);
}

TEST(the_file_is_for_its_owner_only)
{
    struct place p;
    struct bench b;
    struct stat st;
    place_make(&p);
    bench_open(&b, p.path);
    CHECK(stat(p.path, &st) == 0 && (st.st_mode & 0777) == 0600);
    bench_close(&b);
    place_remove(&p);
}

TEST(a_large_store_survives_its_checkpoints)
{
    struct place p;
    struct bench b;
    char *value = mem_new(20001);
    memset(value, 'x', 20000);
    place_make(&p);
    bench_open(&b, p.path);
    for (unsigned i = 1; i <= 400; i++)
        CHECK_EQ(put(&b, STORE_FUNCTION, i, value), ERR_OK);
    struct stat wal;
    char path[128];
    snprintf(path, sizeof(path), "%s-wal", p.path);
    CHECK(stat(path, &wal) == 0 && wal.st_size < 6 * 1024 * 1024); /* 8 MB were written */
    bench_close(&b);
    bench_open(&b, p.path);
    CHECK(b.records.bytes > 400 * 20000);
    bench_close(&b);
    free(value);
    place_remove(&p);
}

/* ---- refused at start, with the file's name ---- */

static void expect_refused(const char *path, enum err expected, const char *says)
{
    struct bench b;
    struct error e = {0};
    enum err err = bench_open_on(&b, &store_sqlite, path, &e);
    bench_close(&b);
    if (err != expected || strstr(e.text, path) == NULL || strstr(e.text, says) == NULL)
        test_fail(__FILE__, __LINE__, "%s: %s", err_name(err), e.text);
}

static void run_sql(const char *path, const char *sql)
{
    sqlite3 *db = NULL;
    REQUIRE(sqlite3_open(path, &db) == SQLITE_OK);
    CHECK_EQ(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void make_store(const char *path)
{
    struct bench b;
    bench_open(&b, path);
    for (unsigned i = 1; i <= 20; i++)
        CHECK_EQ(put(&b, i % STORE_KIND_COUNT, i, "{\"name\":\"some value that fills a line\"}"),
                 ERR_OK);
    bench_close(&b);
}

TEST(a_store_from_a_newer_version_is_refused)
{
    struct place p;
    place_make(&p);
    make_store(p.path);
    run_sql(p.path, "PRAGMA user_version=2");
    expect_refused(p.path, ERR_VERSION, "newer Dirigent (format 2, this one knows up to 1)");
    place_remove(&p);
}

TEST(a_file_that_is_no_store_is_refused)
{
    struct place p;
    place_make(&p);
    run_sql(p.path, "CREATE TABLE other (a)");
    expect_refused(p.path, ERR_CORRUPT, "no store of Dirigent");
    (void)unlink(p.path);
    int fd = open(p.path, O_WRONLY | O_CREAT, 0600);
    expect_refused(p.path, ERR_CORRUPT, "it is empty");
    for (int i = 0; i < 5000; i++)
        (void)!write(fd, "garbage ", 8);
    close(fd);
    expect_refused(p.path, ERR_CORRUPT, "damaged");
    place_remove(&p);
}

TEST(a_missing_file_beside_its_log_is_damage)
{
    struct place p;
    char wal[128];
    place_make(&p);
    snprintf(wal, sizeof(wal), "%s-wal", p.path);
    close(open(wal, O_WRONLY | O_CREAT, 0600));
    expect_refused(p.path, ERR_CORRUPT, "-wal file is there");
    place_remove(&p);
}

TEST(removed_and_changed_records_are_found)
{
    struct place p;
    char mismatch[64];
    place_make(&p);
    make_store(p.path);
    run_sql(p.path, "DELETE FROM records WHERE id = 5");
    expect_refused(p.path, ERR_CORRUPT, "records are missing");
    (void)unlink(p.path);
    make_store(p.path);
    run_sql(p.path, "UPDATE records SET value = 'other' WHERE id = 5");
    (void)snprintf(mismatch, sizeof(mismatch), "record %d/5 does not match its checksum",
                   5 % STORE_KIND_COUNT);
    expect_refused(p.path, ERR_CORRUPT, mismatch);
    (void)unlink(p.path);
    make_store(p.path);
    run_sql(p.path, "UPDATE meta SET epoch = 0");
    expect_refused(p.path, ERR_CORRUPT, "checksum");
    (void)unlink(p.path);
    make_store(p.path);
    run_sql(p.path, "DROP TABLE records");
    expect_refused(p.path, ERR_CORRUPT, "records");
    place_remove(&p);
}

TEST(a_store_in_use_is_refused)
{
    struct place p;
    struct bench b;
    place_make(&p);
    bench_open(&b, p.path);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) { /* another process, as with a second program on the same directory */
        void *self;
        struct error e = {0};
        enum err err = store_sqlite.open(p.path, &self, &e);
        _exit(err == ERR_BUSY && strstr(e.text, "in use by another process") != NULL ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "still ours"), ERR_OK);
    bench_close(&b);
    place_remove(&p);
}

static char *read_file(const char *path, size_t *ret_bytes)
{
    char *text = NULL;
    struct error e = {0};
    REQUIRE(file_read(path, 64 * MIB, &text, ret_bytes, &e) == ERR_OK);
    return text;
}

static void write_file(const char *path, const char *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    REQUIRE(fd >= 0);
    CHECK_EQ(fd_write_all(fd, data, bytes), ERR_OK);
    close(fd);
}

/* A damaged copy is refused with its name, or holds exactly what the sound one held. */
static void check_copy(const char *path, struct str records, const char *what, size_t at)
{
    struct bench b;
    struct error e = {0};
    enum err err = bench_open_on(&b, &store_sqlite, path, &e);
    if (err == ERR_OK && !str_equal(buf_str(&b.records), records))
        test_fail(__FILE__, __LINE__, "%s at byte %zu went unseen", what, at);
    if (err != ERR_OK && strstr(e.text, path) == NULL)
        test_fail(__FILE__, __LINE__, "%s at byte %zu: %s", what, at, e.text);
    bench_close(&b);
    char beside[160];
    snprintf(beside, sizeof(beside), "%s-wal", path);
    (void)unlink(beside);
}

TEST(every_flipped_byte_is_found_or_harmless)
{
    struct place p;
    struct bench b;
    char copy[128];
    size_t bytes = 0;
    place_make(&p);
    snprintf(copy, sizeof(copy), "%s.copy", p.path);
    make_store(p.path);
    char *sound = read_file(p.path, &bytes);
    bench_open(&b, p.path);
    /* headers whole, the rest by steps; the free middle of pages is zero and says nothing */
    for (size_t at = 0; at < bytes; at += at % 4096 < 200 ? 1 : sound[at] != 0 ? 5 : 97) {
        sound[at] = (char)(sound[at] ^ 0x41);
        write_file(copy, sound, bytes);
        check_copy(copy, buf_str(&b.records), "a flipped byte", at);
        sound[at] = (char)(sound[at] ^ 0x41);
    }
    for (size_t cut = 0; cut < bytes; cut += 509) {
        write_file(copy, sound, cut);
        check_copy(copy, buf_str(&b.records), "a cut", cut);
    }
    free(sound);
    bench_close(&b);
    place_remove(&p);
}

/* ---- kills ---- */

/* Writes 1, 2, 3 … and says each on `fd` once it is stored. */
static void write_and_tell(const char *path, int fd)
{
    struct bench b;
    struct error e = {0};
    if (bench_open_on(&b, &store_sqlite, path, &e) != ERR_OK)
        _exit(1);
    for (uint64_t id = b.next_id;; id++)
        if (put(&b, STORE_FUNCTION, id, "value") != ERR_OK || write(fd, &id, sizeof(id)) < 0)
            _exit(1);
}

TEST(what_was_told_as_stored_survives_kill_9)
{
    struct place p;
    uint64_t last_told = 0;
    struct rng rng;
    rng_init(&rng, 9);
    place_make(&p);
    for (int round = 0; round < 12; round++) {
        int pipe_fds[2];
        uint64_t told = 0;
        REQUIRE(pipe(pipe_fds) == 0);
        fflush(stdout);
        pid_t child = fork();
        if (child == 0)
            write_and_tell(p.path, pipe_fds[1]);
        close(pipe_fds[1]);
        for (uint64_t n = 1 + rng_below(&rng, 60); n > 0; n--)
            if (read(pipe_fds[0], &told, sizeof(told)) != sizeof(told))
                break;
        kill(child, SIGKILL);
        while (read(pipe_fds[0], &told, sizeof(told)) == sizeof(told))
            ;
        close(pipe_fds[0]);
        waitpid(child, NULL, 0);
        CHECK(told > last_told);
        last_told = told;

        struct bench b;
        bench_open(&b, p.path);
        CHECK(b.next_id > told);
        char line[64];
        buf_append(&b.records, "", 1);
        for (uint64_t id = 1; id <= told; id++) {
            snprintf(line, sizeof(line), "0/%" PRIu64 "=value\n", id);
            CHECK(strstr(b.records.data, line) != NULL);
        }
        bench_close(&b);
    }
    place_remove(&p);
}

/* ---- no space ---- */

static int fill_small_disk(const char *directory)
{
    char path[128];
    struct bench b;
    struct error e = {0};
    snprintf(path, sizeof(path), "%s/state.db", directory);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", directory, "tmpfs", 0, "size=1m") != 0)
        return 77;
    if (bench_open_on(&b, &store_sqlite, path, &e) != ERR_OK)
        return 1;
    char *value = mem_new(10001);
    memset(value, 'x', 10000);
    uint64_t id = 1;
    enum err err = ERR_OK;
    for (; err == ERR_OK && id < 1000; id++)
        err = put(&b, STORE_FUNCTION, id, value);
    if (err != ERR_NO_SPACE || b.lost_count != 0)
        return 2;
    /* nothing of it is half there, and what was there is */
    bench_close(&b);
    if (bench_open_on(&b, &store_sqlite, path, &e) != ERR_OK)
        return 3;
    buf_append(&b.records, "", 1);
    char last[32], failed[32];
    snprintf(last, sizeof(last), "0/%" PRIu64 "=x", id - 2);
    snprintf(failed, sizeof(failed), "0/%" PRIu64 "=x", id - 1);
    if (strstr(b.records.data, last) == NULL || strstr(b.records.data, failed) != NULL)
        return 4;
    bench_close(&b);
    free(value);
    return 0;
}

TEST(a_full_disk_fails_the_write_and_nothing_else)
{
    struct place p;
    place_make(&p);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(fill_small_disk(p.directory));
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        test_skip("needs the right to mount");
    else
        CHECK_EQ(WEXITSTATUS(status), 0);
    place_remove(&p);
}

/* ---- a back end that breaks ---- */

static unsigned broken_commits;

static enum err broken_open(const char *where, void **ret_self, struct error *e)
{
    *ret_self = NULL;
    return ERR_OK;
}
static enum err broken_take_epoch(void *self, uint64_t *ret_epoch, struct error *e)
{
    *ret_epoch = 1;
    return ERR_OK;
}
static enum err broken_load(void *self, store_on_record *on_record, void *user,
                            uint64_t *ret_next_id, struct error *e)
{
    *ret_next_id = 1;
    return ERR_OK;
}
static enum err broken_commit(void *self, uint64_t epoch, const struct store_write *first,
                              const atomic_bool *stop, size_t *ret_count, struct error *e)
{
    *ret_count = 1;
    broken_commits++;
    if (broken_commits == 2)
        return error_set(e, ERR_NO_SPACE, "full");
    return broken_commits == 3 ? error_set(e, ERR_IO, "the disk is gone") : ERR_OK;
}
static void broken_close(void *self)
{
}

TEST(after_an_io_error_nothing_is_written_and_the_owner_is_told_once)
{
    static const struct store_backend broken = {.name = "broken",
                                                .open = broken_open,
                                                .take_epoch = broken_take_epoch,
                                                .load = broken_load,
                                                .commit = broken_commit,
                                                .close = broken_close};
    struct bench b;
    struct error e = {0};
    broken_commits = 0;
    REQUIRE(bench_open_on(&b, &broken, "", &e) == ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "x"), ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "x"), ERR_NO_SPACE);
    CHECK_EQ(b.lost_count, 0);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "x"), ERR_IO);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "x"), ERR_IO);
    CHECK_EQ(broken_commits, 3);
    CHECK_EQ(b.lost_count, 1);
    CHECK_EQ(b.lost, ERR_IO);
    bench_close(&b);
}
