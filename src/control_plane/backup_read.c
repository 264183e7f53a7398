/* backup_read.c - the reader. Nothing is believed before its digest fits: numbers that lead through
 * the file only say how much is read before that. */
#include "base/limits.h"
#include "control_plane/backup_internal.h"
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INPUT_BYTES (64u * 1024u)
#define ABOUT_BYTES_MAX 4096u
#define NO_KIND STORE_KIND_COUNT

struct reader {
    int fd;
    const char *name;
    const struct backup_sink *sink;
    EVP_MD_CTX *all, *record, *code;
    char *input;
    size_t at, have;
    uint64_t offset;                  /* in the file, of input[at] */
    uint64_t record_begin;            /* offset of the record being read */
    uint64_t count;                   /* records that were read */
    char what[BACKUP_LINE_BYTES_MAX]; /* kind and id of the record being read; "": not yet known */
    struct buf text;
    /* order: what came before */
    enum store_kind kind;
    uint64_t id;
    char last_code[BACKUP_HEX_BYTES + 1];
};
struct head {
    bool is_end, is_about, is_code;
    enum store_kind kind;
    uint64_t id, bytes;
    char hex[BACKUP_HEX_BYTES + 1];
};

/* ---- failures ---- */

static enum err damaged(const struct reader *r, const char *why, struct error *e)
{
    if (r->what[0] == '\0')
        return error_set(e, ERR_CORRUPT,
                         "the backup '%s' is damaged: record %" PRIu64 " at byte %" PRIu64 ": %s",
                         r->name, r->count + 1, r->record_begin, why);
    return error_set(e, ERR_CORRUPT,
                     "the backup '%s' is damaged: record %" PRIu64 " (%s) at byte %" PRIu64 ": %s",
                     r->name, r->count + 1, r->what, r->record_begin, why);
}

static enum err cut(const struct reader *r, struct error *e)
{
    char why[64];
    (void)snprintf(why, sizeof(why), "the file ends too soon, at byte %" PRIu64,
                   r->offset + (r->have - r->at));
    return damaged(r, why, e);
}

/* ---- bytes ---- */

/* *ret_some false: the file has ended. */
static enum err input_fill(struct reader *r, bool *ret_some, struct error *e)
{
    *ret_some = r->at < r->have;
    if (*ret_some)
        return ERR_OK;
    ssize_t got;
    do
        got = pread(r->fd, r->input, INPUT_BYTES, (off_t)r->offset);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return error_errno(e, "read the backup '%s'", r->name);
    r->at = 0;
    r->have = (size_t)got;
    *ret_some = got > 0;
    return ERR_OK;
}

/* The next bytes, at most `max`, borrowed until the next call; hashed, except the last digest. */
static enum err input_take(struct reader *r, size_t max, struct str *ret, struct error *e)
{
    bool some;
    enum err err = input_fill(r, &some, e);
    if (err == ERR_OK && !some)
        err = cut(r, e);
    if (err != ERR_OK)
        return err;
    *ret = (struct str){r->input + r->at, MIN(max, r->have - r->at)};
    r->at += ret->bytes;
    r->offset += ret->bytes;
    EVP_DigestUpdate(r->all, ret->data, ret->bytes);
    EVP_DigestUpdate(r->record, ret->data, ret->bytes);
    return ERR_OK;
}

/* Without its newline. */
static enum err line_take(struct reader *r, char *ret_line, struct error *e)
{
    for (size_t bytes = 0; bytes < BACKUP_LINE_BYTES_MAX; bytes++) {
        struct str one;
        enum err err = input_take(r, 1, &one, e);
        if (err != ERR_OK)
            return err;
        ret_line[bytes] = one.data[0];
        if (one.data[0] != '\n')
            continue;
        ret_line[bytes] = '\0';
        return strlen(ret_line) == bytes ? ERR_OK : damaged(r, "a line of it has a NUL", e);
    }
    return damaged(r, "a line of it does not end", e);
}

/* The line that must be there, after what was hashed so far. */
static enum err digest_take(struct reader *r, EVP_MD_CTX *hash, const char *why, struct error *e)
{
    char expected[BACKUP_HEX_BYTES + 1], line[BACKUP_LINE_BYTES_MAX];
    backup_hash_end(hash, expected);
    enum err err = line_take(r, line, e);
    return err != ERR_OK || strcmp(line, expected) == 0 ? err : damaged(r, why, e);
}

/* What follows each record's content. */
static enum err tail_take(struct reader *r, struct error *e)
{
    struct str newline;
    enum err err = input_take(r, 1, &newline, e);
    return err == ERR_OK ? digest_take(r, r->record, "its digest does not fit", e) : err;
}

/* ---- heads ---- */

static bool is_hex(struct str s)
{
    for (size_t i = 0; i < s.bytes; i++)
        if ((s.data[i] < '0' || s.data[i] > '9') && (s.data[i] < 'a' || s.data[i] > 'f'))
            return false;
    return s.bytes == BACKUP_HEX_BYTES;
}

static bool head_parse(const char *line, struct head *ret)
{
    struct str rest = str_of(line);
    struct str kind = str_split(rest, ' ', &rest), id = str_split(rest, ' ', &rest);
    *ret = (struct head){.kind = NO_KIND};
    ret->is_end = str_equal(kind, STR(BACKUP_END));
    if (ret->is_end)
        return rest.data == NULL && str_to_u64(id, UINT64_MAX, &ret->bytes) == ERR_OK;
    ret->is_about = str_equal(kind, STR(BACKUP_ABOUT));
    ret->is_code = str_equal(kind, STR(BACKUP_CODE));
    uint64_t bytes_max = ret->is_code    ? CODE_ARCHIVE_BYTES_MAX
                         : ret->is_about ? ABOUT_BYTES_MAX
                                         : STORE_VALUE_BYTES_MAX;
    if (rest.data == NULL || str_to_u64(rest, bytes_max, &ret->bytes) != ERR_OK)
        return false;
    if (ret->is_code && is_hex(id)) {
        memcpy(ret->hex, id.data, id.bytes);
        return true;
    }
    return !ret->is_code && (ret->is_about || backup_kind_find(kind, &ret->kind)) &&
           str_to_u64(id, INT64_MAX, &ret->id) == ERR_OK && (ret->id == 0) == ret->is_about;
}

/* About, then the kinds, then code; each rising. */
static bool is_in_order(const struct reader *r, const struct head *h)
{
    if (h->is_about || r->count == 0)
        return h->is_about && r->count == 0;
    if (h->is_code)
        return strcmp(h->hex, r->last_code) > 0;
    if (r->last_code[0] != '\0')
        return false;
    return r->count == 1 || h->kind > r->kind || (h->kind == r->kind && h->id > r->id);
}

static enum err head_take(struct reader *r, struct head *ret, struct error *e)
{
    char line[BACKUP_LINE_BYTES_MAX];
    r->what[0] = '\0';
    r->record_begin = r->offset;
    backup_hash_begin(r->record);
    enum err err = line_take(r, line, e);
    if (err != ERR_OK)
        return err;
    if (!head_parse(line, ret))
        return damaged(r, "no record begins like this", e);
    (void)snprintf(r->what, sizeof(r->what), "%.*s", (int)strcspn(line, " "), line);
    if (ret->is_code || ret->id > 0) /* with its id */
        (void)snprintf(r->what, sizeof(r->what), "%.*s", (int)(strrchr(line, ' ') - line), line);
    return ERR_OK;
}

static void note_order(struct reader *r, const struct head *h)
{
    r->count++;
    if (h->is_code)
        memcpy(r->last_code, h->hex, sizeof(r->last_code));
    else if (!h->is_about) {
        r->kind = h->kind;
        r->id = h->id;
    }
}

/* ---- records ---- */

static enum err about_read(const struct reader *r, struct backup_about *ret, struct error *e)
{
    json_t *json = json_loads(r->text.data, 0, NULL);
    const char *version = json_string_value(json_object_get(json, "version"));
    const struct {
        const char *key;
        uint64_t *place;
    } numbers[] = {
        {"epoch", &ret->epoch}, {"next_id", &ret->next_id}, {"created_ms", &ret->created_ms}};
    bool good = version != NULL && strlen(version) < sizeof(ret->version);
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        json_int_t number = json_integer_value(json_object_get(json, numbers[i].key));
        good &= number > 0;
        *numbers[i].place = (uint64_t)number;
    }
    if (good)
        (void)snprintf(ret->version, sizeof(ret->version), "%s", version);
    json_decref(json);
    return good ? ERR_OK : damaged(r, "it does not say epoch, next id, time and version", e);
}

static enum err text_read(struct reader *r, const struct head *h, struct error *e)
{
    struct str piece;
    enum err err = ERR_OK;
    r->text.bytes = 0;
    while (err == ERR_OK && r->text.bytes < h->bytes) {
        err = input_take(r, (size_t)h->bytes - r->text.bytes, &piece, e);
        if (err == ERR_OK)
            buf_append_str(&r->text, piece);
    }
    if (err == ERR_OK)
        err = tail_take(r, e);
    if (err != ERR_OK)
        return err;
    buf_append(&r->text, "", 1);
    if (strlen(r->text.data) != h->bytes)
        return damaged(r, "it has a NUL", e);
    if (!h->is_about)
        return r->sink->on_record != NULL
                   ? r->sink->on_record(r->sink->user, h->kind, h->id, r->text.data, e)
                   : ERR_OK;
    struct backup_about about;
    err = about_read(r, &about, e);
    return err == ERR_OK && r->sink->on_about != NULL ? r->sink->on_about(r->sink->user, &about, e)
                                                      : err;
}

static enum err code_pieces(struct reader *r, uint64_t bytes, struct error *e)
{
    enum err err = ERR_OK;
    backup_hash_begin(r->code);
    while (err == ERR_OK && bytes > 0) {
        struct str piece;
        err = input_take(r, (size_t)MIN(bytes, INPUT_BYTES), &piece, e);
        if (err != ERR_OK)
            return err;
        bytes -= piece.bytes;
        EVP_DigestUpdate(r->code, piece.data, piece.bytes);
        if (r->sink->on_code_data != NULL)
            err = r->sink->on_code_data(r->sink->user, piece.data, piece.bytes, e);
    }
    return err;
}

static enum err code_read(struct reader *r, const struct head *h, struct error *e)
{
    const struct backup_sink *sink = r->sink;
    char digest[sizeof(BACKUP_CODE_PREFIX) + BACKUP_HEX_BYTES], hex[BACKUP_HEX_BYTES + 1];
    (void)snprintf(digest, sizeof(digest), BACKUP_CODE_PREFIX "%s", h->hex);
    enum err err = sink->on_code != NULL ? sink->on_code(sink->user, digest, h->bytes, e) : ERR_OK;
    if (err == ERR_OK)
        err = code_pieces(r, h->bytes, e);
    if (err == ERR_OK)
        err = tail_take(r, e);
    if (err != ERR_OK)
        return err;
    backup_hash_end(r->code, hex);
    if (strcmp(hex, h->hex) != 0)
        return damaged(r, "it is not the code of its name", e);
    return sink->on_code_end != NULL ? sink->on_code_end(sink->user, digest, e) : ERR_OK;
}

static enum err end_read(struct reader *r, uint64_t count, struct error *e)
{
    bool more = false;
    if (r->count == 0)
        return damaged(r, "there is nothing before it", e);
    enum err err = digest_take(r, r->all,
                               "the digest of the whole does not fit: records are missing or were "
                               "changed",
                               e);
    if (err == ERR_OK && count != r->count)
        err = damaged(r, "records are missing", e);
    if (err == ERR_OK)
        err = input_fill(r, &more, e);
    return err == ERR_OK && more ? damaged(r, "something follows it", e) : err;
}

static enum err first_line(struct reader *r, struct error *e)
{
    char line[sizeof(BACKUP_FIRST_LINE)] = "";
    ssize_t got = pread(r->fd, line, sizeof(line) - 1, 0);
    if (got < 0)
        return error_errno(e, "read the backup '%s'", r->name);
    if (got == 0)
        return error_set(e, ERR_CORRUPT, "'%s' is no backup of Dirigent: it is empty", r->name);
    size_t same = MIN((size_t)got, sizeof(BACKUP_FORMAT) - 1);
    if (memcmp(line, BACKUP_FORMAT, same) != 0)
        return error_set(e, ERR_CORRUPT, "'%s' is no backup of Dirigent: it begins otherwise",
                         r->name);
    if (strcmp(line, BACKUP_FIRST_LINE) == 0) {
        struct str taken;
        return input_take(r, sizeof(BACKUP_FIRST_LINE) - 1, &taken, e);
    }
    if ((size_t)got < sizeof(line) - 1)
        return error_set(e, ERR_CORRUPT,
                         "the backup '%s' is damaged: it ends in its first line, at byte %zd",
                         r->name, got);
    if (line[same] > '1' && line[same] <= '9')
        return error_set(e, ERR_VERSION,
                         "the backup '%s' is of a format that this version (" DIRIGENT_VERSION
                         ") does not know: use a newer one",
                         r->name);
    return error_set(e, ERR_CORRUPT, "the backup '%s' is damaged: its first line is wrong",
                     r->name);
}

static enum err read_records(struct reader *r, struct error *e)
{
    enum err err = first_line(r, e);
    while (err == ERR_OK) {
        struct head h;
        err = head_take(r, &h, e);
        if (err != ERR_OK)
            return err;
        if (h.is_end)
            return end_read(r, h.bytes, e);
        if (!is_in_order(r, &h))
            return damaged(r, "it stands at the wrong place", e);
        err = h.is_code ? code_read(r, &h, e) : text_read(r, &h, e);
        note_order(r, &h);
    }
    return err;
}

enum err backup_read(int fd, const char *name, const struct backup_sink *sink, struct error *e)
{
    struct reader r = {.fd = fd, .name = name, .sink = sink, .kind = NO_KIND};
    r.all = backup_hash_new();
    r.record = backup_hash_new();
    r.code = backup_hash_new();
    r.input = mem_new(INPUT_BYTES);
    enum err err = read_records(&r, e);
    EVP_MD_CTX_free(r.all);
    EVP_MD_CTX_free(r.record);
    EVP_MD_CTX_free(r.code);
    free(r.input);
    buf_done(&r.text);
    return err;
}
