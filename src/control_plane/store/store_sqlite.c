/* store_sqlite.c - the embedded store: one SQLite file, one connection, one process.
 *
 * WAL with synchronous=FULL: a commit is one append and one fsync. locking_mode=EXCLUSIVE keeps
 * other processes out and needs no shared memory file; checkpoints run on the same connection.
 * Damage is looked for at start by quick_check, and in every record by a checksum over what it
 * means, since a flipped bit inside a value is none of SQLite's business. A new file is made under
 * another name and renamed when it is complete, so a file that is empty or half-made is always
 * damage and never "new". */
#include "base/str.h"
#include "control_plane/store/store_backend.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCHEMA_VERSION 1
#define APPLICATION_ID 0x44697267 /* "Dirg" */
#define CHECKPOINT_FRAMES 1000
#define RESERVE_BYTES (256 * 1024)

static const char schema[] =
    "PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL;"
    "BEGIN;"
    "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL,"
    " next_id INTEGER NOT NULL, record_count INTEGER NOT NULL, checksum BLOB NOT NULL);"
    "CREATE TABLE records (kind INTEGER NOT NULL, id INTEGER NOT NULL, value TEXT NOT NULL,"
    " checksum BLOB NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;";

enum statement {
    SQL_META_GET,
    SQL_META_SET,
    SQL_LIST,
    SQL_UPDATE,
    SQL_INSERT,
    SQL_DELETE,
    SQL_BEGIN,
    SQL_COMMIT,
    SQL_ROLLBACK,
    SQL_COUNT
};
static const char *const statements[] = {
    [SQL_META_GET] = "SELECT epoch, next_id, record_count, checksum FROM meta WHERE one = 1",
    [SQL_META_SET] = "UPDATE meta SET epoch = ?1, next_id = ?2, record_count = ?3, checksum = ?4",
    [SQL_LIST] = "SELECT kind, id, value, checksum FROM records ORDER BY kind, id",
    [SQL_UPDATE] = "UPDATE records SET value = ?3, checksum = ?4 WHERE kind = ?1 AND id = ?2",
    [SQL_INSERT] = "INSERT INTO records (kind, id, value, checksum) VALUES (?1, ?2, ?3, ?4)",
    [SQL_DELETE] = "DELETE FROM records WHERE kind = ?1 AND id = ?2",
    [SQL_BEGIN] = "BEGIN IMMEDIATE",
    [SQL_COMMIT] = "COMMIT",
    [SQL_ROLLBACK] = "ROLLBACK",
};

struct sqlite_store {
    char *path;
    sqlite3 *db;
    sqlite3_stmt *sql[SQL_COUNT];
    int wal_frames; /* not yet in the main file */
};
struct meta {
    uint64_t epoch, next_id, record_count;
};
struct checksum {
    uint8_t bytes[SHA256_DIGEST_LENGTH];
};

/* ---- checksums: over what a row means, numbers as 8 bytes little-endian ---- */

static void put_u64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static struct checksum checksum_of(uint64_t a, uint64_t b, uint64_t c, struct str value)
{
    struct checksum sum;
    cleanup(buf_done) struct buf text = {0};
    uint8_t head[24];
    put_u64(head, a);
    put_u64(head + 8, b);
    put_u64(head + 16, c);
    buf_append(&text, head, sizeof(head));
    buf_append_str(&text, value);
    SHA256((const unsigned char *)text.data, text.bytes, sum.bytes);
    return sum;
}

static struct checksum meta_checksum(const struct meta *m)
{
    return checksum_of(m->epoch, m->next_id, m->record_count, STR("meta"));
}

static struct checksum record_checksum(uint64_t kind, uint64_t id, struct str value)
{
    return checksum_of(kind, id, value.bytes, value);
}

static bool column_checksum_is(sqlite3_stmt *row, int column, struct checksum expected)
{
    const void *stored = sqlite3_column_blob(row, column);
    return sqlite3_column_bytes(row, column) == sizeof(expected) &&
           memcmp(stored, expected.bytes, sizeof(expected)) == 0;
}

/* ---- failures ---- */

static enum err damaged(const char *path, const char *what, struct error *e)
{
    return error_set(
        e, ERR_CORRUPT,
        "the store file '%s' is damaged: %s; put a backup in its place, or move it away "
        "(with its -wal file) to begin without registrations",
        path, what);
}

static enum err io_failure(const char *path, sqlite3 *db, const char *what, struct error *e)
{
    int number = sqlite3_system_errno(db);
    if (number == ENOSPC || number == EDQUOT)
        return error_set(e, ERR_NO_SPACE, "%s: no space left for the store file '%s'", what, path);
    return error_set(e, ERR_IO, "%s in the store file '%s': %s%s%s", what, path, sqlite3_errmsg(db),
                     number != 0 ? ": " : "", number != 0 ? strerror(number) : "");
}

/* The sentence for an SQLite result that is no success. */
static enum err sqlite_failure(const char *path, sqlite3 *db, int result, const char *what,
                               struct error *e)
{
    switch (result & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return damaged(path, sqlite3_errmsg(db), e);
    case SQLITE_FULL:
        return error_set(e, ERR_NO_SPACE, "%s: no space left for the store file '%s'", what, path);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return error_set(e, ERR_BUSY, "the store file '%s' is in use by another process", path);
    default:
        return io_failure(path, db, what, e);
    }
}

static enum err fail(struct sqlite_store *s, int result, const char *what, struct error *e)
{
    return sqlite_failure(s->path, s->db, result, what, e);
}

/* ---- one statement ---- */

/* Runs a statement that gives no row. */
static int run(struct sqlite_store *s, enum statement which)
{
    int result = sqlite3_step(s->sql[which]);
    sqlite3_reset(s->sql[which]);
    return result == SQLITE_DONE ? SQLITE_OK : result;
}

/* First column of the first row of a pragma or query, as a number. */
static int query_number(sqlite3 *db, const char *sql, int64_t *ret)
{
    sqlite3_stmt *row = NULL;
    int result = sqlite3_prepare_v2(db, sql, -1, &row, NULL);
    if (result == SQLITE_OK)
        result = sqlite3_step(row);
    if (result == SQLITE_ROW) {
        *ret = sqlite3_column_int64(row, 0);
        result = SQLITE_OK;
    }
    sqlite3_finalize(row);
    return result;
}

static void bind_checksum(sqlite3_stmt *sql, int index, const struct checksum *sum)
{
    sqlite3_bind_blob(sql, index, sum->bytes, sizeof(sum->bytes), SQLITE_TRANSIENT);
}

static enum err meta_get(struct sqlite_store *s, struct meta *ret, struct error *e)
{
    sqlite3_stmt *row = s->sql[SQL_META_GET];
    int result = sqlite3_step(row);
    bool valid = false;
    if (result == SQLITE_ROW) {
        *ret = (struct meta){(uint64_t)sqlite3_column_int64(row, 0),
                             (uint64_t)sqlite3_column_int64(row, 1),
                             (uint64_t)sqlite3_column_int64(row, 2)};
        valid = column_checksum_is(row, 3, meta_checksum(ret));
    }
    sqlite3_reset(row);
    if (result != SQLITE_ROW && result != SQLITE_DONE)
        return fail(s, result, "reading", e);
    return valid ? ERR_OK : damaged(s->path, "its first record does not match its checksum", e);
}

static int meta_set(struct sqlite_store *s, const struct meta *m)
{
    sqlite3_stmt *sql = s->sql[SQL_META_SET];
    struct checksum sum = meta_checksum(m);
    sqlite3_bind_int64(sql, 1, (sqlite3_int64)m->epoch);
    sqlite3_bind_int64(sql, 2, (sqlite3_int64)m->next_id);
    sqlite3_bind_int64(sql, 3, (sqlite3_int64)m->record_count);
    bind_checksum(sql, 4, &sum);
    return run(s, SQL_META_SET);
}

static void rollback(struct sqlite_store *s)
{
    if (!sqlite3_get_autocommit(s->db))
        (void)run(s, SQL_ROLLBACK);
}

/* ---- making a new file ---- */

static enum err sync_directory_of(const char *path, struct error *e)
{
    cleanup(free_pointer) char *directory = mem_strdup(path);
    char *slash = strrchr(directory, '/');
    if (slash != NULL)
        slash[slash == directory] = '\0';
    cleanup(fd_close) int fd =
        open(slash != NULL ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        return error_errno(e, "make the directory entry of '%s' durable", path);
    return ERR_OK;
}

static enum err fill_new(const char *path, struct error *e)
{
    sqlite3 *db = NULL;
    struct meta first = {.epoch = 0, .next_id = 1, .record_count = 0};
    struct checksum sum = meta_checksum(&first);
    char hex[2 * sizeof(sum.bytes) + 1];
    for (size_t i = 0; i < sizeof(sum.bytes); i++)
        snprintf(hex + 2 * i, 3, "%02x", sum.bytes[i]);
    cleanup(free_pointer) char *sql =
        mem_printf("%s INSERT INTO meta VALUES (1, 0, 1, 0, x'%s');"
                   "PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT;",
                   schema, hex, APPLICATION_ID, SCHEMA_VERSION);
    int result = sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW, NULL);
    if (result == SQLITE_OK)
        result = sqlite3_exec(db, sql, NULL, NULL, NULL);
    enum err err =
        result == SQLITE_OK ? ERR_OK : sqlite_failure(path, db, result, "making the store", e);
    sqlite3_close(db);
    return err;
}

static enum err make_new(const char *path, struct error *e)
{
    cleanup(free_pointer) char *wal = mem_printf("%s-wal", path);
    cleanup(free_pointer) char *temporary = mem_printf("%s.new", path);
    cleanup(free_pointer) char *journal = mem_printf("%s-journal", temporary);
    if (access(wal, F_OK) == 0)
        return damaged(path, "it is missing, but its -wal file is there", e);
    (void)unlink(temporary); /* of a start that was cut short */
    (void)unlink(journal);
    cleanup(fd_close) int fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(e, "make the store file '%s'", temporary);
    enum err err = fill_new(temporary, e);
    if (err != ERR_OK)
        return err;
    if (fsync(fd) != 0 || rename(temporary, path) != 0)
        return error_errno(e, "make the store file '%s'", path);
    return sync_directory_of(path, e);
}

/* ---- opening ---- */

static enum err check_identity(struct sqlite_store *s, struct error *e)
{
    int64_t application = 0, version = 0;
    int result = query_number(s->db, "PRAGMA application_id", &application);
    if (result == SQLITE_OK)
        result = query_number(s->db, "PRAGMA user_version", &version);
    if (result != SQLITE_OK)
        return fail(s, result, "reading", e);
    if (application != APPLICATION_ID || version < 1)
        return damaged(s->path, "it is no store of Dirigent", e);
    if (version > SCHEMA_VERSION)
        return error_set(e, ERR_VERSION,
                         "the store file '%s' was written by a newer Dirigent (format %" PRId64
                         ", this one knows up to %d); run the newer program, or move the file away",
                         s->path, version, SCHEMA_VERSION);
    return ERR_OK;
}

static enum err quick_check(struct sqlite_store *s, struct error *e)
{
    sqlite3_stmt *row = NULL;
    enum err err = ERR_OK;
    int result = sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &row, NULL);
    if (result == SQLITE_OK)
        result = sqlite3_step(row);
    const char *verdict = result == SQLITE_ROW ? (const char *)sqlite3_column_text(row, 0) : NULL;
    if (verdict == NULL)
        err = fail(s, result, "checking", e);
    else if (strcmp(verdict, "ok") != 0)
        err = damaged(s->path, verdict, e);
    sqlite3_finalize(row);
    return err;
}

static int on_wal(void *user, sqlite3 *db, const char *name, int frames)
{
    ((struct sqlite_store *)user)->wal_frames = frames;
    return SQLITE_OK;
}

static enum err configure(struct sqlite_store *s, struct error *e)
{
    /* cell_size_check finds more kinds of damage; trusted_schema: a file cannot run code */
    int result = sqlite3_exec(s->db,
                              "PRAGMA locking_mode=EXCLUSIVE; PRAGMA trusted_schema=OFF;"
                              "PRAGMA cell_size_check=ON; PRAGMA journal_mode=WAL;"
                              "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;"
                              "BEGIN IMMEDIATE; COMMIT;", /* takes the lock now */
                              NULL, NULL, NULL);
    if (result != SQLITE_OK)
        return fail(s, result, "opening", e);
    sqlite3_wal_hook(s->db, on_wal, s);
    return ERR_OK;
}

static enum err prepare_all(struct sqlite_store *s, struct error *e)
{
    for (int i = 0; i < SQL_COUNT; i++) {
        int result = sqlite3_prepare_v3(s->db, statements[i], -1, SQLITE_PREPARE_PERSISTENT,
                                        &s->sql[i], NULL);
        if (result == SQLITE_ERROR) /* a table or column is missing */
            return damaged(s->path, sqlite3_errmsg(s->db), e);
        if (result != SQLITE_OK)
            return fail(s, result, "opening", e);
    }
    return ERR_OK;
}

static void sqlite_store_close(void *self)
{
    struct sqlite_store *s = self;
    for (int i = 0; i < SQL_COUNT; i++)
        sqlite3_finalize(s->sql[i]);
    sqlite3_close(s->db);
    free(s->path);
    free(s);
}

static enum err open_existing(struct sqlite_store *s, struct error *e)
{
    struct stat st;
    if (stat(s->path, &st) != 0)
        return error_errno(e, "open the store file '%s'", s->path);
    if (st.st_size == 0)
        return damaged(s->path, "it is empty", e);
    int result = sqlite3_open_v2(s->path, &s->db,
                                 SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW |
                                     SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
                                 NULL);
    if (result != SQLITE_OK)
        return fail(s, result, "opening", e);
    struct meta meta;
    enum err err = configure(s, e);
    if (err == ERR_OK)
        err = check_identity(s, e);
    if (err == ERR_OK)
        err = quick_check(s, e);
    if (err == ERR_OK)
        err = prepare_all(s, e);
    return err == ERR_OK ? meta_get(s, &meta, e) : err;
}

static enum err sqlite_store_open(const char *where, void **ret_self, struct error *e)
{
    enum err err = ERR_OK;
    if (access(where, F_OK) != 0) {
        if (errno != ENOENT)
            return error_errno(e, "open the store file '%s'", where);
        err = make_new(where, e);
        if (err != ERR_OK)
            return err;
    }
    struct sqlite_store *s = mem_new(sizeof(*s));
    s->path = mem_strdup(where);
    err = open_existing(s, e);
    if (err != ERR_OK) {
        sqlite_store_close(s);
        return err;
    }
    *ret_self = s;
    return ERR_OK;
}

/* ---- reading ---- */

static enum err load_row(struct sqlite_store *s, store_on_record *on_record, void *user,
                         struct error *e)
{
    sqlite3_stmt *row = s->sql[SQL_LIST];
    uint64_t kind = (uint64_t)sqlite3_column_int64(row, 0);
    uint64_t id = (uint64_t)sqlite3_column_int64(row, 1);
    const char *text = (const char *)sqlite3_column_text(row, 2);
    struct str value = {text != NULL ? text : "", (size_t)sqlite3_column_bytes(row, 2)};
    if (kind >= STORE_KIND_COUNT || !column_checksum_is(row, 3, record_checksum(kind, id, value))) {
        char what[96];
        snprintf(what, sizeof(what), "record %" PRIu64 "/%" PRIu64 " does not match its checksum",
                 kind, id);
        return damaged(s->path, what, e);
    }
    return on_record(user, (enum store_kind)kind, id, value.data, e);
}

static enum err sqlite_store_load(void *self, store_on_record *on_record, void *user,
                                  uint64_t *ret_next_id, struct error *e)
{
    struct sqlite_store *s = self;
    struct meta meta;
    uint64_t count = 0;
    enum err err = meta_get(s, &meta, e);
    int result = SQLITE_DONE;
    while (err == ERR_OK && (result = sqlite3_step(s->sql[SQL_LIST])) == SQLITE_ROW) {
        err = load_row(s, on_record, user, e);
        count++;
    }
    sqlite3_reset(s->sql[SQL_LIST]);
    if (err == ERR_OK && result != SQLITE_DONE)
        err = fail(s, result, "reading", e);
    if (err == ERR_OK && count != meta.record_count)
        err = damaged(s->path, "records are missing", e);
    if (err == ERR_OK)
        *ret_next_id = meta.next_id;
    return err;
}

/* ---- writing ---- */

static int write_one(struct sqlite_store *s, const struct store_write *w, struct meta *meta)
{
    enum statement first = w->value != NULL ? SQL_UPDATE : SQL_DELETE;
    struct str value = w->value != NULL ? str_of(w->value) : STR("");
    struct checksum sum = record_checksum(w->kind, w->id, value);
    for (enum statement which = first;; which = SQL_INSERT) {
        sqlite3_stmt *sql = s->sql[which];
        sqlite3_bind_int64(sql, 1, (sqlite3_int64)w->kind);
        sqlite3_bind_int64(sql, 2, (sqlite3_int64)w->id);
        if (which != SQL_DELETE) {
            sqlite3_bind_text(sql, 3, value.data, (int)value.bytes, SQLITE_STATIC);
            bind_checksum(sql, 4, &sum);
        }
        int result = run(s, which);
        bool again = which == SQL_UPDATE && result == SQLITE_OK && sqlite3_changes(s->db) == 0;
        if (again)
            continue;
        if (result == SQLITE_OK && which == SQL_INSERT)
            meta->record_count++;
        if (result == SQLITE_OK && which == SQL_DELETE)
            meta->record_count -= (uint64_t)sqlite3_changes(s->db);
        meta->next_id = MAX(meta->next_id, MAX(w->next_id, w->id + 1));
        return result;
    }
}

/* The body of a transaction that has begun. */
static enum err write_all(struct sqlite_store *s, uint64_t epoch, const struct store_write *first,
                          struct error *e)
{
    struct meta meta;
    enum err err = meta_get(s, &meta, e);
    if (err != ERR_OK)
        return err;
    if (meta.epoch != epoch)
        return error_set(e, ERR_STALE,
                         "another control plane took over the store (its epoch is %" PRIu64
                         ", ours %" PRIu64 ")",
                         meta.epoch, epoch);
    int result = SQLITE_OK;
    for (const struct store_write *w = first; w != NULL && result == SQLITE_OK; w = w->private.next)
        result = write_one(s, w, &meta);
    if (result == SQLITE_OK)
        result = meta_set(s, &meta);
    if (result == SQLITE_OK)
        result = run(s, SQL_COMMIT);
    return result == SQLITE_OK ? ERR_OK : fail(s, result, "writing", e);
}

/* Before a transaction, so that its failure never follows a commit. No space: later then. */
static enum err checkpoint_when_due(struct sqlite_store *s, struct error *e)
{
    if (s->wal_frames < CHECKPOINT_FRAMES)
        return ERR_OK;
    int result = sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    s->wal_frames = 0;
    if (result == SQLITE_OK)
        return ERR_OK;
    enum err err = fail(s, result, "moving the log", e);
    return err == ERR_NO_SPACE ? ERR_OK : err;
}

static enum err sqlite_store_commit(void *self, uint64_t epoch, const struct store_write *first,
                                    const atomic_bool *stop, size_t *ret_count, struct error *e)
{
    struct sqlite_store *s = self;
    *ret_count = 0;
    for (const struct store_write *w = first; w != NULL; w = w->private.next)
        ++*ret_count;
    enum err err = checkpoint_when_due(s, e);
    if (err != ERR_OK)
        return err;
    int result = run(s, SQL_BEGIN);
    if (result != SQLITE_OK)
        return fail(s, result, "writing", e);
    err = write_all(s, epoch, first, e);
    rollback(s); /* nothing after a commit */
    return err;
}

/* Space that is given up to begin a leadership on a full disk: a control plane that only has to
 * serve what is registered must be able to start there. */
static void reserve_take(struct sqlite_store *s)
{
    cleanup(free_pointer) char *path = mem_printf("%s-reserve", s->path);
    cleanup(fd_close) int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0 && fallocate(fd, 0, 0, RESERVE_BYTES) != 0)
        (void)unlink(path);
}

static void reserve_give_up(struct sqlite_store *s)
{
    cleanup(free_pointer) char *path = mem_printf("%s-reserve", s->path);
    (void)unlink(path);
}

static enum err add_epoch(struct sqlite_store *s, uint64_t above, uint64_t *ret_epoch,
                          struct error *e)
{
    struct meta meta;
    int result = run(s, SQL_BEGIN);
    if (result != SQLITE_OK)
        return fail(s, result, "writing", e);
    enum err err = meta_get(s, &meta, e);
    if (err == ERR_OK) {
        meta.epoch = MAX(meta.epoch, above) + 1;
        result = meta_set(s, &meta);
        if (result == SQLITE_OK)
            result = run(s, SQL_COMMIT);
        err = result == SQLITE_OK ? ERR_OK : fail(s, result, "writing", e);
    }
    rollback(s);
    if (err == ERR_OK)
        *ret_epoch = meta.epoch;
    return err;
}

static enum err sqlite_store_take_epoch_above(void *self, uint64_t above, uint64_t *ret_epoch,
                                              struct error *e)
{
    struct sqlite_store *s = self;
    enum err err = add_epoch(s, above, ret_epoch, e);
    if (err == ERR_NO_SPACE) {
        reserve_give_up(s);
        err = add_epoch(s, above, ret_epoch, e);
    }
    if (err == ERR_OK)
        reserve_take(s);
    return err;
}

static enum err sqlite_store_take_epoch(void *self, uint64_t *ret_epoch, struct error *e)
{
    return sqlite_store_take_epoch_above(self, 0, ret_epoch, e);
}

static enum err sqlite_store_last_epoch(void *self, uint64_t *ret_epoch, char *ret_leader,
                                        size_t leader_bytes, struct error *e)
{
    struct meta meta;
    enum err err = meta_get(self, &meta, e);
    if (err != ERR_OK)
        return err;
    *ret_epoch = meta.epoch;
    ret_leader[0] = '\0';
    return ERR_OK;
}

const struct store_backend store_sqlite = {
    .name = "sqlite",
    .open = sqlite_store_open,
    .take_epoch = sqlite_store_take_epoch,
    .take_epoch_above = sqlite_store_take_epoch_above,
    .last_epoch = sqlite_store_last_epoch,
    .load = sqlite_store_load,
    .commit = sqlite_store_commit,
    .close = sqlite_store_close,
};
