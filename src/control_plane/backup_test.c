/* backup_test.c - what is written is read; whatever is damaged, cut, missing or moved is refused
 * and named. And from one store into another. */
#include "control_plane/backup_place.h"
#include "control_plane/records.h"
#include "test.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FUNCTION_TEXT                                                                        \
    "{\"version\":3,\"active_version\":3,\"created_at_ms\":1,\"updated_at_ms\":2,\"spec\":{" \
    "\"name\":"                                                                              \
    "\"%s\",\"code\":\"%s\",\"command\":[\"./run\"]}}"

/* ---- a file in memory ---- */

static int file_new(const void *data, size_t bytes)
{
    int fd = memfd_create("backup", MFD_CLOEXEC);
    REQUIRE(fd >= 0);
    if (bytes > 0)
        REQUIRE(fd_write_all(fd, data, bytes) == ERR_OK);
    return fd;
}

static enum err to_buf(void *user, const void *data, size_t bytes, struct error *e)
{
    buf_append(user, data, bytes);
    return ERR_OK;
}

/* What a reader is told, as text. */
static enum err tell_about(void *user, const struct backup_about *a, struct error *e)
{
    buf_printf(user, "about %" PRIu64 " %" PRIu64 " %" PRIu64 " %s\n", a->epoch, a->next_id,
               a->created_ms, a->version);
    return ERR_OK;
}
static enum err tell_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                            struct error *e)
{
    buf_printf(user, "%d/%" PRIu64 "=%s\n", (int)kind, id, value);
    return ERR_OK;
}
static enum err tell_code(void *user, const char *digest, uint64_t bytes, struct error *e)
{
    buf_printf(user, "%s %" PRIu64 " ", digest, bytes);
    return ERR_OK;
}
static enum err tell_code_end(void *user, const char *digest, struct error *e)
{
    buf_printf(user, " %s\n", digest);
    return ERR_OK;
}

static enum err read_fd(int fd, struct buf *told, struct error *e)
{
    const struct backup_sink sink = {.user = told,
                                     .on_about = tell_about,
                                     .on_record = tell_record,
                                     .on_code = tell_code,
                                     .on_code_data = to_buf,
                                     .on_code_end = tell_code_end};
    *e = (struct error){0};
    return backup_read(fd, "x.backup", &sink, e);
}

static enum err read_bytes(const void *data, size_t bytes, struct buf *told, struct error *e)
{
    cleanup(fd_close) int fd = file_new(data, bytes);
    return read_fd(fd, told, e);
}

static void digest_text(const void *data, size_t bytes, char *ret)
{
    unsigned char sum[SHA256_DIGEST_LENGTH];
    SHA256(data, bytes, sum);
    ret += sprintf(ret, "sha256:");
    for (size_t i = 0; i < sizeof(sum); i++)
        ret += sprintf(ret, "%02x", sum[i]);
}

static void write_code(struct backup_writer *w, const char *data, size_t bytes, size_t piece)
{
    char digest[CODE_DIGEST_BYTES + 1];
    struct error e = {0};
    digest_text(data, bytes, digest);
    CHECK_EQ(backup_write_code(w, digest, bytes, &e), ERR_OK);
    for (size_t at = 0, n; at < bytes; at += n) {
        n = bytes - at < piece ? bytes - at : piece;
        CHECK_EQ(backup_write_code_data(w, data + at, n, &e), ERR_OK);
    }
}

/* One of each kind, and two pieces of code that stand in the order of their digests. */
static void sample(struct buf *out)
{
    struct error e = {0};
    struct backup_writer *w = backup_writer_new(to_buf, out);
    const struct backup_about about = {7, 42, 1700000000000, "1.2.3"};
    CHECK_EQ(backup_write_about(w, &about, &e), ERR_OK);
    CHECK_EQ(backup_write_record(w, STORE_FUNCTION, 2, "{\"two\":\"ü\\n\"}", &e), ERR_OK);
    CHECK_EQ(backup_write_record(w, STORE_FUNCTION, 9, "nine\nend 3\n", &e), ERR_OK);
    CHECK_EQ(backup_write_record(w, STORE_WORKER, 3, "", &e), ERR_OK);
    CHECK_EQ(backup_write_record(w, STORE_DATA_PLANE, 4, "plane", &e), ERR_OK);
    CHECK_EQ(backup_write_record(w, STORE_API_KEY, 5, "key", &e), ERR_OK);
    CHECK_EQ(backup_write_record(w, STORE_AUTHORITY, 1, "authority", &e), ERR_OK);
    write_code(w, "a\0\nzip", 6, 4); /* 02fe… */
    write_code(w, "b", 1, 1);        /* 3e23… */
    CHECK_EQ(backup_write_end(w, &e), ERR_OK);
    backup_writer_free(w);
}

/* ---- the format ---- */

TEST(what_was_written_is_read)
{
    cleanup(buf_done) struct buf file = {0};
    cleanup(buf_done) struct buf told = {0};
    struct error e;
    char first[80], second[80];
    sample(&file);
    CHECK_EQ(read_bytes(file.data, file.bytes, &told, &e), ERR_OK);
    CHECK_STR(e.text, "");
    digest_text("a\0\nzip", 6, first);
    digest_text("b", 1, second);
    cleanup(buf_done) struct buf expected = {0};
    buf_printf(&expected,
               "about 7 42 1700000000000 1.2.3\n0/2={\"two\":\"ü\\n\"}\n0/9=nine\nend 3\n\n1/3=\n"
               "2/4=plane\n4/5=key\n5/1=authority\n%s 6 ",
               first);
    buf_append(&expected, "a\0\nzip", 6);
    buf_printf(&expected, " %s\n%s 1 b %s\n", first, second, second);
    CHECK(str_equal(buf_str(&expected), buf_str(&told)));
}

TEST(each_file_that_is_cut_is_refused_and_says_where)
{
    cleanup(buf_done) struct buf file = {0};
    sample(&file);
    for (size_t bytes = 0; bytes < file.bytes; bytes++) {
        cleanup(buf_done) struct buf told = {0};
        struct error e;
        char where[64];
        CHECK_EQ(read_bytes(file.data, bytes, &told, &e), ERR_CORRUPT);
        CHECK(strstr(e.text, "'x.backup'") != NULL);
        snprintf(where, sizeof(where), "at byte %zu", bytes);
        if (bytes >= sizeof("dirigent backup ") - 1 && strstr(e.text, where) == NULL)
            test_fail(__FILE__, __LINE__, "cut at %zu: %s", bytes, e.text);
    }
}

/* Where each record begins; the last is the end. */
static size_t find_records(const struct buf *file, size_t *ret_begins, size_t max)
{
    size_t count = 0, at = sizeof("dirigent backup 1\n") - 1;
    while (count < max && at < file->bytes) {
        const char *line = file->data + at, *newline = memchr(line, '\n', file->bytes - at);
        ret_begins[count++] = at;
        if (memcmp(line, "end ", 4) == 0)
            break;
        const char *number = newline;
        while (number[-1] != ' ')
            number--;
        at = (size_t)(newline - file->data) + 1 + strtoull(number, NULL, 10) + 1 + 65;
    }
    return count;
}

TEST(each_bit_that_flips_is_found_and_named_by_its_record)
{
    cleanup(buf_done) struct buf file = {0};
    size_t begins[16], record = 0;
    sample(&file);
    size_t count = find_records(&file, begins, ARRAY_COUNT(begins));
    cleanup(fd_close) int fd = file_new(file.data, file.bytes);
    for (size_t at = 0; at < file.bytes; at++) {
        char where[64];
        while (record + 1 < count && begins[record + 1] <= at)
            record++;
        snprintf(where, sizeof(where), "at byte %zu:", begins[record]);
        for (int bit = 0; bit < 8; bit++) {
            cleanup(buf_done) struct buf told = {0};
            struct error e;
            char byte = (char)(file.data[at] ^ (1 << bit));
            REQUIRE(pwrite(fd, &byte, 1, (off_t)at) == 1);
            enum err err = read_fd(fd, &told, &e);
            if ((err != ERR_CORRUPT && err != ERR_VERSION) ||
                (at >= begins[0] && strstr(e.text, where) == NULL) ||
                strstr(e.text, "'x.backup'") == NULL)
                test_fail(__FILE__, __LINE__, "byte %zu bit %d: %s", at, bit, e.text);
            REQUIRE(pwrite(fd, file.data + at, 1, (off_t)at) == 1);
        }
    }
}

TEST(records_that_are_missing_doubled_or_moved_are_found)
{
    cleanup(buf_done) struct buf file = {0};
    size_t begins[16];
    sample(&file);
    size_t count = find_records(&file, begins, ARRAY_COUNT(begins));
    REQUIRE(count == 10);
    for (size_t i = 0; i + 1 < count; i++) {
        size_t begin = begins[i], end = begins[i + 1];
        cleanup(buf_done) struct buf without = {0};
        cleanup(buf_done) struct buf twice = {0};
        cleanup(buf_done) struct buf told = {0};
        struct error e;
        buf_append(&without, file.data, begin);
        buf_append(&without, file.data + end, file.bytes - end);
        CHECK_EQ(read_bytes(without.data, without.bytes, &told, &e), ERR_CORRUPT);
        buf_append(&twice, file.data, end);
        buf_append(&twice, file.data + begin, file.bytes - begin);
        CHECK_EQ(read_bytes(twice.data, twice.bytes, &told, &e), ERR_CORRUPT);
        CHECK(strstr(e.text, "wrong place") != NULL);
    }
}

TEST(what_is_no_backup_is_called_so)
{
    cleanup(buf_done) struct buf told = {0};
    cleanup(buf_done) struct buf file = {0};
    struct error e;
    CHECK_EQ(read_bytes("", 0, &told, &e), ERR_CORRUPT);
    CHECK_STR(e.text, "'x.backup' is no backup of Dirigent: it is empty");
    CHECK_EQ(read_bytes("SQLite format 3", 15, &told, &e), ERR_CORRUPT);
    CHECK_STR(e.text, "'x.backup' is no backup of Dirigent: it begins otherwise");
    CHECK_EQ(read_bytes("dirigent backup 2\nwhatever", 26, &told, &e), ERR_VERSION);
    sample(&file);
    buf_append(&file, "\n", 1);
    CHECK_EQ(read_bytes(file.data, file.bytes, &told, &e), ERR_CORRUPT);
    CHECK(strstr(e.text, "something follows") != NULL);
}

TEST(code_that_is_not_that_of_its_digest_is_not_written)
{
    cleanup(buf_done) struct buf file = {0};
    struct error e = {0};
    char digest[80];
    struct backup_writer *w = backup_writer_new(to_buf, &file);
    digest_text("right", 5, digest);
    CHECK_EQ(backup_write_about(w, &(struct backup_about){1, 1, 1, "x"}, &e), ERR_OK);
    CHECK_EQ(backup_write_code(w, digest, 5, &e), ERR_OK);
    CHECK_EQ(backup_write_code_data(w, "wrong", 5, &e), ERR_CORRUPT);
    CHECK(strstr(e.text, digest) != NULL);
    backup_writer_free(w);
}

/* Whatever records and archives, in whatever pieces: what is told is what was given. */
PROPERTY(any_records_come_back)
{
    cleanup(buf_done) struct buf file = {0};
    cleanup(buf_done) struct buf told = {0};
    cleanup(buf_done) struct buf given = {0};
    struct error e = {0};
    struct backup_writer *w = backup_writer_new(to_buf, &file);
    const struct backup_about about = {1 + rng_below(rng, 1u << 20), 1 + rng_below(rng, 1u << 30),
                                       1 + rng_below(rng, 1u << 30), "9"};
    CHECK_EQ(backup_write_about(w, &about, &e), ERR_OK);
    (void)tell_about(&given, &about, &e);
    for (int kind = 0; kind < STORE_KIND_COUNT; kind++) {
        uint64_t id = 0;
        for (uint64_t n = backup_has_kind(kind) ? rng_below(rng, 5) : 0; n > 0; n--) {
            size_t bytes = (size_t)rng_below(rng, rng_below(rng, 8) == 0 ? 200000 : 40);
            cleanup(free_pointer) char *value = mem_new(bytes + 1);
            for (size_t i = 0; i < bytes; i++)
                value[i] = (char)(1 + rng_below(rng, 255));
            id += 1 + rng_below(rng, 1000);
            CHECK_EQ(backup_write_record(w, kind, id, value, &e), ERR_OK);
            (void)tell_record(&given, kind, id, value, &e);
        }
    }
    if (rng_below(rng, 2) == 0) {
        size_t bytes = (size_t)rng_below(rng, 200000);
        char *data = mem_new(bytes + 1), digest[80];
        for (size_t i = 0; i < bytes; i++)
            data[i] = (char)rng_below(rng, 256);
        write_code(w, data, bytes, 1 + (size_t)rng_below(rng, 100000));
        digest_text(data, bytes, digest);
        (void)tell_code(&given, digest, bytes, &e);
        buf_append(&given, data, bytes);
        (void)tell_code_end(&given, digest, &e);
        free(data);
    }
    CHECK_EQ(backup_write_end(w, &e), ERR_OK);
    backup_writer_free(w);
    CHECK_EQ(read_bytes(file.data, file.bytes, &told, &e), ERR_OK);
    CHECK(str_equal(buf_str(&given), buf_str(&told)));
}

/* ---- from one store into another ---- */

struct home { /* a data directory */
    char directory[64], path[96], name[96], code[96];
    struct backup_place place;
};

static void home_make(struct home *h)
{
    snprintf(h->directory, sizeof(h->directory), "/tmp/backup-test-XXXXXX");
    REQUIRE(mkdtemp(h->directory) != NULL);
    snprintf(h->path, sizeof(h->path), "%s/state.db", h->directory);
    snprintf(h->name, sizeof(h->name), "the store in '%s'", h->directory);
    snprintf(h->code, sizeof(h->code), "%s/blobs", h->directory);
    REQUIRE(mkdir(h->code, 0700) == 0);
    h->place = (struct backup_place){
        .backend = &store_sqlite, .where = h->path, .name = h->name, .code_fd = -1};
    h->place.code_fd = open(h->code, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(h->place.code_fd >= 0);
}

static void home_remove(struct home *h)
{
    char command[160];
    fd_close(&h->place.code_fd);
    snprintf(command, sizeof(command), "rm -r %s", h->directory);
    CHECK_EQ(system(command), 0);
}

static void code_keep(struct home *h, const char *data, const char *digest)
{
    cleanup(fd_close) int fd = openat(h->place.code_fd, digest + strlen("sha256:"),
                                      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0 && fd_write_all(fd, data, strlen(data)) == ERR_OK);
}

static void commit_one(void *self, uint64_t epoch, enum store_kind kind, uint64_t id,
                       const char *value)
{
    struct error e = {0};
    size_t count = 0;
    struct store_write write = {.kind = kind, .id = id, .value = (char *)value};
    CHECK_EQ(store_sqlite.commit(self, epoch, &write, NULL, &count, &e), ERR_OK);
}

/* A function with code, one worker, a token and a sandbox; epoch 1, the next id is 71. */
static void home_fill(struct home *h, char *ret_digest)
{
    struct error e = {0};
    uint64_t epoch = 0;
    void *self = NULL;
    char function[512];
    digest_text("archive", 7, ret_digest);
    code_keep(h, "archive", ret_digest);
    snprintf(function, sizeof(function), FUNCTION_TEXT, "hello", ret_digest);
    REQUIRE(store_sqlite.open(h->path, &self, &e) == ERR_OK);
    CHECK_EQ(store_sqlite.take_epoch(self, &epoch, &e), ERR_OK);
    commit_one(self, epoch, STORE_FUNCTION, 2, function);
    commit_one(self, epoch, STORE_WORKER, 3, "{\"name\":\"w\",\"address\":\"10.0.0.1\"}");
    commit_one(self, epoch, STORE_TOKEN, 4, "{}");
    commit_one(self, epoch, STORE_SANDBOX, 5, "{}");
    commit_one(self, epoch, STORE_FUNCTION, 70, function);
    commit_one(self, epoch, STORE_FUNCTION, 70, NULL);
    store_sqlite.close(self);
}

static enum err list_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                            struct error *e)
{
    buf_printf(user, "%d/%" PRIu64 "=%s\n", (int)kind, id, value);
    return ERR_OK;
}

static char *home_list(struct home *h, uint64_t *ret_next_id, uint64_t *ret_epoch)
{
    struct error e = {0};
    void *self = NULL;
    char leader[16];
    struct buf text = {0};
    REQUIRE(store_sqlite.open(h->path, &self, &e) == ERR_OK);
    CHECK_EQ(store_sqlite.load(self, list_record, &text, ret_next_id, &e), ERR_OK);
    CHECK_EQ(store_sqlite.last_epoch(self, ret_epoch, leader, sizeof(leader), &e), ERR_OK);
    store_sqlite.close(self);
    return buf_take_text(&text);
}

static int home_save(struct home *h)
{
    struct error e = {0};
    struct backup_result result;
    int fd = file_new(NULL, 0);
    CHECK_EQ(backup_save(&h->place, true, fd, "x.backup", &result, &e), ERR_OK);
    CHECK_STR(e.text, "");
    CHECK_EQ(result.about.epoch, 1);
    CHECK_EQ(result.about.next_id, 71);
    CHECK_EQ(result.code_bytes, 7);
    backup_list_done(&result.list);
    return fd;
}

static enum err home_restore(struct home *h, int fd, bool force, struct error *e)
{
    struct backup_result result;
    const struct backup_restore how = {.fd = fd, .name = "x.backup", .force = force};
    *e = (struct error){0};
    enum err err = backup_restore(&h->place, &how, &result, e);
    backup_list_done(&result.list);
    return err;
}

TEST(a_store_comes_back_in_an_empty_place_with_its_code_and_a_higher_epoch)
{
    struct home from, to;
    struct error e;
    char digest[80], kept[16] = "";
    uint64_t next_id = 0, epoch = 0;
    home_make(&from);
    home_make(&to);
    home_fill(&from, digest);
    cleanup(fd_close) int fd = home_save(&from);
    CHECK_EQ(home_restore(&to, fd, false, &e), ERR_OK);
    CHECK_STR(e.text, "");
    cleanup(free_pointer) char *records = home_list(&to, &next_id, &epoch);
    struct function_record r;
    cleanup(free_pointer) char *value = mem_strndup(records + 4, strcspn(records, "\n") - 4);
    REQUIRE(function_record_read(2, value, &r, &e) == ERR_OK);
    CHECK_EQ(r.latest_version, 3);
    CHECK_EQ(r.versions_used, 3 + BACKUP_VERSIONS_SKIPPED);
    CHECK_STR(r.latest.code_digest, digest);
    function_record_done(&r);
    CHECK_STR(strchr(records, '\n') + 1, "1/3={\"name\":\"w\",\"address\":\"10.0.0.1\"}\n");
    CHECK_EQ(epoch, 1 + BACKUP_EPOCHS_SKIPPED);
    CHECK_EQ(next_id, 71 + BACKUP_IDS_SKIPPED);
    cleanup(fd_close) int code = openat(to.place.code_fd, digest + strlen("sha256:"), O_RDONLY);
    CHECK_EQ(read(code, kept, sizeof(kept)), 7);
    CHECK_STR(kept, "archive");
    home_remove(&from);
    home_remove(&to);
}

TEST(a_store_that_is_not_empty_is_replaced_only_by_force)
{
    struct home from, to;
    struct error e;
    char digest[80];
    uint64_t next_id = 0, epoch = 0, epoch_after = 0;
    void *self = NULL;
    home_make(&from);
    home_make(&to);
    home_fill(&from, digest);
    REQUIRE(store_sqlite.open(to.path, &self, &e) == ERR_OK);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(store_sqlite.take_epoch(self, &epoch, &e), ERR_OK);
    for (uint64_t id = 1; id < 250; id++) /* more than one transaction */
        commit_one(self, epoch, STORE_TOKEN, id, "{}");
    store_sqlite.close(self);
    cleanup(free_pointer) char *before = home_list(&to, &next_id, &epoch);
    cleanup(fd_close) int fd = home_save(&from);
    CHECK_EQ(home_restore(&to, fd, false, &e), ERR_EXISTS);
    CHECK(strstr(e.text, to.name) != NULL && strstr(e.text, "--force") != NULL);
    cleanup(free_pointer) char *unchanged = home_list(&to, &next_id, &epoch_after);
    CHECK_STR(unchanged, before);
    CHECK_EQ(epoch_after, epoch);
    CHECK_EQ(home_restore(&to, fd, true, &e), ERR_OK);
    cleanup(free_pointer) char *after = home_list(&to, &next_id, &epoch_after);
    CHECK(strstr(after, "hello") != NULL && strstr(after, "6/") == NULL);
    CHECK_EQ(epoch_after, 5 + BACKUP_EPOCHS_SKIPPED);
    CHECK_EQ(next_id, 250 + BACKUP_IDS_SKIPPED);
    home_remove(&from);
    home_remove(&to);
}

TEST(nothing_is_changed_by_a_backup_that_is_damaged_or_lacks_code)
{
    struct home from, to;
    struct error e;
    char digest[80];
    struct backup_result result;
    home_make(&from);
    home_make(&to);
    home_fill(&from, digest);
    cleanup(fd_close) int fd = home_save(&from);
    off_t end = lseek(fd, 0, SEEK_END);
    REQUIRE(ftruncate(fd, end - 1) == 0);
    CHECK_EQ(home_restore(&to, fd, false, &e), ERR_CORRUPT);
    CHECK(access(to.path, F_OK) != 0);
    cleanup(fd_close) int bare = file_new(NULL, 0);
    CHECK_EQ(backup_save(&from.place, false, bare, "x.backup", &result, &e), ERR_OK);
    backup_list_done(&result.list);
    CHECK_EQ(home_restore(&to, bare, false, &e), ERR_NOT_FOUND);
    CHECK(strstr(e.text, "'hello'") != NULL);
    code_keep(&from, "broken!", digest);
    CHECK_EQ(backup_save(&from.place, true, bare, "x.backup", &result, &e), ERR_CORRUPT);
    CHECK(strstr(e.text, digest) != NULL);
    backup_list_done(&result.list);
    home_remove(&from);
    home_remove(&to);
}

/* A store whose commits fail after a while, as on a full disk. */
static size_t commits_left;
static enum err failing_commit(void *self, uint64_t epoch, const struct store_write *first,
                               const atomic_bool *stop, size_t *ret_count, struct error *e)
{
    if (commits_left-- == 0)
        return error_set(e, ERR_NO_SPACE, "no space");
    return store_sqlite.commit(self, epoch, first, stop, ret_count, e);
}

TEST(a_restore_that_is_cut_short_anywhere_leaves_a_mark_until_it_is_done_again)
{
    for (size_t commits = 0; commits < 3; commits++) {
        struct home from, to;
        struct error e;
        char digest[80];
        uint64_t next_id = 0, epoch = 0;
        struct store_backend failing = store_sqlite;
        failing.commit = failing_commit;
        home_make(&from);
        home_make(&to);
        home_fill(&from, digest);
        cleanup(fd_close) int fd = home_save(&from);
        commits_left = commits;
        to.place.backend = &failing;
        CHECK_EQ(home_restore(&to, fd, false, &e), ERR_NO_SPACE);
        CHECK(strstr(e.text, "cut short") != NULL);
        cleanup(free_pointer) char *cut = home_list(&to, &next_id, &epoch);
        CHECK_EQ(strstr(cut, "7/1={}") != NULL, commits > 0);
        to.place.backend = &store_sqlite;
        CHECK_EQ(home_restore(&to, fd, false, &e), commits > 0 ? ERR_EXISTS : ERR_OK);
        CHECK_EQ(home_restore(&to, fd, true, &e), ERR_OK);
        cleanup(free_pointer) char *whole = home_list(&to, &next_id, &epoch);
        CHECK(strstr(whole, "7/1={}") == NULL && strstr(whole, "hello") != NULL);
        home_remove(&from);
        home_remove(&to);
    }
}

TEST(a_disk_that_is_full_is_said_so_with_the_name_of_the_backup)
{
    struct home from;
    struct error e = {0};
    struct backup_result result;
    char digest[80];
    home_make(&from);
    home_fill(&from, digest);
    cleanup(fd_close) int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    CHECK_EQ(backup_save(&from.place, true, fd, "x.backup", &result, &e), ERR_NO_SPACE);
    CHECK(strstr(e.text, "x.backup") != NULL && strstr(e.text, "No space") != NULL);
    backup_list_done(&result.list);
    home_remove(&from);
}
