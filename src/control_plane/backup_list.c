/* backup_list.c - checks each record as a control plane would that loads it. */
#include "control_plane/backup_list.h"
#include "control_plane/records.h"
#include "keys/api_key.h"
#include "keys/authority.h"
#include <stdlib.h>
#include <string.h>

void backup_list_done(struct backup_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i].value);
    free(list->items);
    free(list->codes);
    *list = (struct backup_list){0};
}

static void add_code(struct backup_list *list, const struct function_spec *spec)
{
    if (spec->code_digest[0] == '\0')
        return;
    if (list->code_count == list->code_capacity) {
        list->code_capacity = list->code_capacity * 2 + 16;
        list->codes = mem_resize(list->codes, list->code_capacity, sizeof(*list->codes));
    }
    struct backup_code *code = &list->codes[list->code_count++];
    memcpy(code->digest, spec->code_digest, sizeof(code->digest));
    memcpy(code->function, spec->name, sizeof(code->function));
}

static enum err check_function(struct backup_list *list, uint64_t id, const char *value,
                               struct error *e)
{
    struct function_record record;
    enum err err = function_record_read(id, value, &record, e);
    if (err != ERR_OK)
        return err;
    add_code(list, &record.latest);
    if (record.has_active)
        add_code(list, &record.active);
    function_record_done(&record);
    return ERR_OK;
}

static enum err check(struct backup_list *list, enum store_kind kind, uint64_t id,
                      const char *value, struct error *e)
{
    struct authority_bundle bundle cleanup(authority_bundle_done) = {0};
    struct peer_record peer;
    struct api_key_record key;
    switch (kind) {
    case STORE_FUNCTION:
        return check_function(list, id, value, e);
    case STORE_WORKER:
    case STORE_DATA_PLANE:
        return peer_record_read(id, value, &peer, e);
    case STORE_API_KEY:
        return api_key_record_read(str_of(value), &key, e);
    case STORE_AUTHORITY:
        return authority_bundle_read(str_of(value), &bundle, e);
    case STORE_SANDBOX:
    case STORE_TOKEN:
    case STORE_RESTORE:
    case STORE_KIND_COUNT:
        break;
    }
    assert(false);
}

enum err backup_list_add(void *user, enum store_kind kind, uint64_t id, const char *value,
                         struct error *e)
{
    struct backup_list *list = user;
    if (!backup_has_kind(kind))
        return ERR_OK;
    enum err err = check(list, kind, id, value, e);
    if (err != ERR_OK)
        return error_prefix(e, "record %s %" PRIu64, backup_kind_name(kind), id);
    if (list->count == list->capacity) {
        list->capacity = list->capacity * 2 + 16;
        list->items = mem_resize(list->items, list->capacity, sizeof(*list->items));
    }
    list->items[list->count++] =
        (struct backup_item){.kind = kind, .id = id, .value = mem_strdup(value)};
    list->counts[kind]++;
    return ERR_OK;
}

static int compare_codes(const void *a, const void *b)
{
    return strcmp(((const struct backup_code *)a)->digest, ((const struct backup_code *)b)->digest);
}

void backup_list_sort_codes(struct backup_list *list)
{
    size_t kept = 0;
    if (list->code_count > 0)
        qsort(list->codes, list->code_count, sizeof(*list->codes), compare_codes);
    for (size_t i = 0; i < list->code_count; i++)
        if (kept == 0 || compare_codes(&list->codes[i], &list->codes[kept - 1]) != 0)
            list->codes[kept++] = list->codes[i];
    list->code_count = kept;
}

const struct backup_code *backup_list_find_code(const struct backup_list *list, const char *digest)
{
    struct backup_code wanted = {0};
    if (list->code_count == 0 || strlen(digest) > CODE_DIGEST_BYTES)
        return NULL;
    memcpy(wanted.digest, digest, strlen(digest) + 1);
    return bsearch(&wanted, list->codes, list->code_count, sizeof(wanted), compare_codes);
}

char *backup_list_describe(const struct backup_list *list)
{
    static const struct {
        enum store_kind kind;
        const char *one, *many;
    } words[] = {{STORE_FUNCTION, "function", "functions"},
                 {STORE_WORKER, "worker", "workers"},
                 {STORE_DATA_PLANE, "data plane", "data planes"},
                 {STORE_API_KEY, "API key", "API keys"},
                 {STORE_AUTHORITY, "authority", "authorities"}};
    struct buf text = {0};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        size_t count = list->counts[words[i].kind];
        if (count > 0)
            buf_printf(&text, "%s%zu %s", text.bytes > 0 ? ", " : "", count,
                       count == 1 ? words[i].one : words[i].many);
    }
    if (text.bytes == 0)
        buf_printf(&text, "no registrations");
    return buf_take_text(&text);
}
