/* backup.c - what both halves of the format share, and the writer. */
#include "control_plane/backup.h"
#include "base/limits.h"
#include "control_plane/backup_internal.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    bool in; /* of a backup */
} kinds[] = {
    [STORE_FUNCTION] = {"function", true},     [STORE_WORKER] = {"worker", true},
    [STORE_DATA_PLANE] = {"data-plane", true}, [STORE_SANDBOX] = {"sandbox", false},
    [STORE_API_KEY] = {"api-key", true},       [STORE_AUTHORITY] = {"authority", true},
    [STORE_TOKEN] = {"token", false},          [STORE_RESTORE] = {"restore", false},
};
static_assert(ARRAY_COUNT(kinds) == STORE_KIND_COUNT, "each kind is in a backup or is not");

bool backup_has_kind(enum store_kind kind)
{
    return kinds[kind].in;
}

const char *backup_kind_name(enum store_kind kind)
{
    return kinds[kind].name;
}

bool backup_kind_find(struct str name, enum store_kind *ret_kind)
{
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        if (!kinds[i].in || !str_equal(name, str_of(kinds[i].name)))
            continue;
        *ret_kind = (enum store_kind)i;
        return true;
    }
    return false;
}

/* ---- digests ---- */

EVP_MD_CTX *backup_hash_new(void)
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    if (hash == NULL)
        abort();
    backup_hash_begin(hash);
    return hash;
}

void backup_hash_begin(EVP_MD_CTX *hash)
{
    if (EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1)
        abort();
}

void backup_hash_end(EVP_MD_CTX *hash, char ret_hex[BACKUP_HEX_BYTES + 1])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned bytes = 0;
    if (EVP_DigestFinal_ex(hash, sum, &bytes) != 1 || bytes != BACKUP_HEX_BYTES / 2)
        abort();
    for (unsigned i = 0; i < bytes; i++)
        (void)snprintf(ret_hex + (size_t)2 * i, 3, "%02x", sum[i]);
    backup_hash_begin(hash);
}

/* ---- writing ---- */

struct backup_writer {
    backup_on_bytes *on_bytes;
    void *user;
    EVP_MD_CTX *all, *record, *code;
    uint64_t count, left; /* left: bytes that the code still has to get */
    char digest[BACKUP_HEX_BYTES + 1];
};

struct backup_writer *backup_writer_new(backup_on_bytes *on_bytes, void *user)
{
    struct backup_writer *w = mem_new(sizeof(*w));
    *w = (struct backup_writer){.on_bytes = on_bytes, .user = user};
    w->all = backup_hash_new();
    w->record = backup_hash_new();
    w->code = backup_hash_new();
    return w;
}

void backup_writer_free(struct backup_writer *w)
{
    if (w == NULL)
        return;
    EVP_MD_CTX_free(w->all);
    EVP_MD_CTX_free(w->record);
    EVP_MD_CTX_free(w->code);
    free(w);
}

static enum err put(struct backup_writer *w, const void *data, size_t bytes, struct error *e)
{
    EVP_DigestUpdate(w->all, data, bytes);
    EVP_DigestUpdate(w->record, data, bytes);
    return bytes > 0 ? w->on_bytes(w->user, data, bytes, e) : ERR_OK;
}

static enum err put_head(struct backup_writer *w, const char *kind, const char *id, uint64_t bytes,
                         struct error *e)
{
    char line[BACKUP_LINE_BYTES_MAX];
    int length = snprintf(line, sizeof(line), "%s %s %" PRIu64 "\n", kind, id, bytes);
    w->count++;
    backup_hash_begin(w->record);
    return put(w, line, (size_t)length, e);
}

static enum err put_digest(struct backup_writer *w, EVP_MD_CTX *hash, struct error *e)
{
    char line[BACKUP_HEX_BYTES + 2];
    backup_hash_end(hash, line);
    line[BACKUP_HEX_BYTES] = '\n';
    if (hash == w->all)
        return w->on_bytes(w->user, line, BACKUP_HEX_BYTES + 1, e);
    return put(w, line, BACKUP_HEX_BYTES + 1, e);
}

static enum err put_tail(struct backup_writer *w, struct error *e)
{
    enum err err = put(w, "\n", 1, e);
    return err == ERR_OK ? put_digest(w, w->record, e) : err;
}

static enum err put_text(struct backup_writer *w, const char *kind, uint64_t id, const char *text,
                         struct error *e)
{
    char number[24];
    size_t bytes = strlen(text);
    (void)snprintf(number, sizeof(number), "%" PRIu64, id);
    enum err err = put_head(w, kind, number, bytes, e);
    if (err == ERR_OK)
        err = put(w, text, bytes, e);
    return err == ERR_OK ? put_tail(w, e) : err;
}

enum err backup_write_about(struct backup_writer *w, const struct backup_about *about,
                            struct error *e)
{
    json_t *json = json_pack("{s:I, s:I, s:I, s:s}", "epoch", (json_int_t)about->epoch, "next_id",
                             (json_int_t)about->next_id, "created_ms",
                             (json_int_t)about->created_ms, "version", about->version);
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    assert(text != NULL);
    enum err err = put(w, BACKUP_FIRST_LINE, sizeof(BACKUP_FIRST_LINE) - 1, e);
    if (err == ERR_OK)
        err = put_text(w, BACKUP_ABOUT, 0, text, e);
    free(text);
    return err;
}

enum err backup_write_record(struct backup_writer *w, enum store_kind kind, uint64_t id,
                             const char *value, struct error *e)
{
    assert(backup_has_kind(kind) && w->left == 0);
    return put_text(w, kinds[kind].name, id, value, e);
}

static enum err code_end(struct backup_writer *w, struct error *e)
{
    char hex[BACKUP_HEX_BYTES + 1];
    backup_hash_end(w->code, hex);
    if (strcmp(hex, w->digest) != 0)
        return error_set(e, ERR_CORRUPT, "the archive kept as code sha256:%s is damaged",
                         w->digest);
    return put_tail(w, e);
}

enum err backup_write_code(struct backup_writer *w, const char *digest, uint64_t bytes,
                           struct error *e)
{
    assert(w->left == 0 && strlen(digest) == sizeof(BACKUP_CODE_PREFIX) - 1 + BACKUP_HEX_BYTES);
    memcpy(w->digest, digest + sizeof(BACKUP_CODE_PREFIX) - 1, sizeof(w->digest));
    backup_hash_begin(w->code);
    w->left = bytes;
    enum err err = put_head(w, BACKUP_CODE, w->digest, bytes, e);
    return err == ERR_OK && bytes == 0 ? code_end(w, e) : err;
}

enum err backup_write_code_data(struct backup_writer *w, const void *data, size_t bytes,
                                struct error *e)
{
    assert(bytes > 0 && bytes <= w->left);
    EVP_DigestUpdate(w->code, data, bytes);
    w->left -= bytes;
    enum err err = put(w, data, bytes, e);
    return err == ERR_OK && w->left == 0 ? code_end(w, e) : err;
}

enum err backup_write_end(struct backup_writer *w, struct error *e)
{
    char line[BACKUP_LINE_BYTES_MAX];
    assert(w->left == 0);
    int length = snprintf(line, sizeof(line), BACKUP_END " %" PRIu64 "\n", w->count);
    enum err err = put(w, line, (size_t)length, e);
    return err == ERR_OK ? put_digest(w, w->all, e) : err;
}
