/* etcd_records.c - names, values and pages. */
#include "control_plane/store/etcd_records.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_RECORDS 500u

static const char *const kind_names[STORE_KIND_COUNT] = {
    [STORE_FUNCTION] = "functions",     [STORE_WORKER] = "workers",
    [STORE_DATA_PLANE] = "data_planes", [STORE_SANDBOX] = "sandboxes",
    [STORE_API_KEY] = "api_keys",       [STORE_AUTHORITY] = "authority",
    [STORE_TOKEN] = "tokens",           [STORE_RESTORE] = "restore"};
static_assert(STORE_KIND_COUNT == 8, "each kind has a name");

/* ---- keys ---- */

void etcd_key(enum store_kind kind, uint64_t id, char *ret_key, size_t bytes)
{
    (void)snprintf(ret_key, bytes, ETCD_PREFIX "%s/%016" PRIx64, kind_names[kind], id);
}

void etcd_key_range(enum store_kind kind, char *ret_from, char *ret_end, size_t bytes)
{
    (void)snprintf(ret_from, bytes, ETCD_PREFIX "%s/", kind_names[kind]);
    (void)snprintf(ret_end, bytes, ETCD_PREFIX "%s0", kind_names[kind]);
}

bool etcd_key_parse(const char *key, enum store_kind *ret_kind, uint64_t *ret_id)
{
    if (strncmp(key, ETCD_PREFIX, sizeof(ETCD_PREFIX) - 1) != 0)
        return false;
    const char *at = key + sizeof(ETCD_PREFIX) - 1;
    for (int kind = 0; kind < STORE_KIND_COUNT; kind++) {
        size_t bytes = strlen(kind_names[kind]);
        if (strncmp(at, kind_names[kind], bytes) != 0 || at[bytes] != '/' ||
            strlen(at + bytes + 1) != 16 || strspn(at + bytes + 1, "0123456789abcdef") != 16)
            continue;
        *ret_kind = (enum store_kind)kind;
        *ret_id = strtoull(at + bytes + 1, NULL, 16);
        return *ret_id > 0;
    }
    return false;
}

/* ---- values ---- */

void etcd_kv_done(struct etcd_kv *kv)
{
    json_decref(kv->value);
}

enum err etcd_kv_read(const json_t *json, bool deleted, struct etcd_kv *ret_kv, struct error *e)
{
    cleanup(buf_done) struct buf key = {0};
    cleanup(buf_done) struct buf text = {0};
    *ret_kv = (struct etcd_kv){.mod_revision = etcd_number(json, "mod_revision"),
                               .version = etcd_number(json, "version")};
    if (etcd_unbase64(json_object_get(json, "key"), &key, e) != ERR_OK || key.bytes == 0 ||
        key.bytes >= sizeof(ret_kv->key))
        return error_set(e, ERR_CORRUPT,
                         "etcd has a key below " ETCD_PREFIX " that is none of ours");
    memcpy(ret_kv->key, key.data, key.bytes);
    if (deleted)
        return ERR_OK;
    enum err err = etcd_unbase64(json_object_get(json, "value"), &text, e);
    json_t *value =
        err == ERR_OK ? json_loadb(text.bytes > 0 ? text.data : "", text.bytes, 0, NULL) : NULL;
    if (!json_is_object(value))
        err = error_set(e, ERR_CORRUPT, "the value of etcd's key %s is damaged", ret_kv->key);
    else if (json_integer_value(json_object_get(value, "format")) > ETCD_FORMAT)
        err =
            error_set(e, ERR_VERSION, "etcd's key %s was written by a newer Dirigent", ret_kv->key);
    if (err == ERR_OK)
        ret_kv->value = value;
    else
        json_decref(value);
    return err;
}

const char *etcd_kv_record(const struct etcd_kv *kv, struct error *e)
{
    const char *value = json_string_value(json_object_get(kv->value, "value"));
    if (value == NULL)
        error_set(e, ERR_CORRUPT, "the value of etcd's key %s is damaged: it has no record",
                  kv->key);
    return value;
}

enum err etcd_kv_number(const struct etcd_kv *kv, const char *name, uint64_t *ret, struct error *e)
{
    json_int_t number = json_integer_value(json_object_get(kv->value, name));
    if (number <= 0)
        return error_set(e, ERR_CORRUPT, "the value of etcd's key %s is damaged: it has no %s",
                         kv->key, name);
    *ret = (uint64_t)number;
    return ERR_OK;
}

/* ---- parts of requests ---- */

json_t *etcd_key_json(const char *key)
{
    return etcd_base64(str_of(key));
}

json_t *etcd_number_json(uint64_t number)
{
    return json_sprintf("%" PRIu64, number);
}

json_t *etcd_compare(const char *key, uint64_t mod_revision)
{
    return json_pack("{s:s, s:s, s:o, s:o}", "target", "MOD", "result", "EQUAL", "key",
                     etcd_key_json(key), "mod_revision", etcd_number_json(mod_revision));
}

json_t *etcd_put(const char *key, json_t *value)
{
    cleanup(free_pointer) char *text = json_dumps(value, JSON_COMPACT);
    assert(text != NULL); /* values are texts of our own making */
    json_decref(value);
    return json_pack("{s:{s:o, s:o}}", "requestPut", "key", etcd_key_json(key), "value",
                     etcd_base64(str_of(text)));
}

json_t *etcd_get(const char *key)
{
    return json_pack("{s:{s:o}}", "requestRange", "key", etcd_key_json(key));
}

json_t *etcd_delete(const char *key)
{
    return json_pack("{s:{s:o}}", "requestDeleteRange", "key", etcd_key_json(key));
}

/* ---- ranges ---- */

/* etcd counts all keys of a range for each answer, however few it may put into it: a page is asked
 * for by the ids that should fill it, and by the whole rest only where there seem to be none. */
struct page {
    char from[ETCD_KEY_BYTES + 1], end[ETCD_KEY_BYTES + 1];
    unsigned limit;
    uint64_t window; /* ids in it */
    bool is_rest;    /* `end` is that of the range */
};

static void page_first(const struct etcd_range *r, struct page *ret)
{
    *ret = (struct page){.limit = PAGE_RECORDS, .window = 2 * PAGE_RECORDS, .is_rest = true};
    (void)snprintf(ret->from, sizeof(ret->from), "%s", r->key);
    (void)snprintf(ret->end, sizeof(ret->end), "%s", r->end != NULL ? r->end : "");
}

/* Behind the page's end, or behind `last` when that was not all of it. */
static void page_next(const struct etcd_range *r, struct page *p, const char *last, size_t count)
{
    enum store_kind kind;
    uint64_t id;
    if (last[0] != '\0') /* nothing of ours lies between them */
        (void)snprintf(p->from, sizeof(p->from), "%s.", last);
    else
        (void)snprintf(p->from, sizeof(p->from), "%s", p->end);
    const char *at = last[0] != '\0' ? last : p->end;
    if (2 * count < p->limit && !p->is_rest)
        p->window *= 2;
    p->is_rest = count == 0 || !etcd_key_parse(at, &kind, &id) || id > UINT64_MAX - p->window;
    if (!p->is_rest)
        etcd_key(kind, id + p->window, p->end, sizeof(p->end));
    if (p->is_rest || strcmp(p->end, r->end) >= 0) {
        (void)snprintf(p->end, sizeof(p->end), "%s", r->end);
        p->is_rest = true;
    }
}

static json_t *range_request(const struct etcd_range *r, const struct page *p)
{
    json_t *request = json_object();
    json_object_set_new(request, "key", etcd_key_json(p->from));
    if (p->end[0] != '\0')
        json_object_set_new(request, "range_end", etcd_key_json(p->end));
    if (r->revision > 0)
        json_object_set_new(request, "revision", etcd_number_json(r->revision));
    json_object_set_new(request, "limit", json_integer(p->limit));
    return request;
}

/* A page of large records is asked for again, with fewer. */
static enum err page_read(const struct etcd_range *r, struct page *p, json_t **ret_answer,
                          struct error *e)
{
    enum err err;
    do {
        json_t *request = range_request(r, p);
        err = etcd_read(r->etcd, "/v3/kv/range", request,
                        r->end_ms != 0 ? r->end_ms : etcd_end_ms(), ret_answer, e);
        json_decref(request);
    } while (err == ERR_TOO_LARGE && (p->limit /= 2) > 0);
    return err;
}

/* `last`: the last key that it told. */
static enum err page_tell(const struct etcd_range *r, const json_t *items, char *last, size_t bytes,
                          struct error *e)
{
    json_t *item;
    size_t i;
    enum err err = ERR_OK;
    json_array_foreach(items, i, item)
    {
        struct etcd_kv kv = {0};
        err = etcd_kv_read(item, false, &kv, e);
        if (err == ERR_OK)
            err = r->on(r->user, &kv, e);
        (void)snprintf(last, bytes, "%s", kv.key);
        etcd_kv_done(&kv);
        if (err != ERR_OK)
            break;
    }
    return err;
}

enum err etcd_range_each(struct etcd_range *r, struct error *e)
{
    struct page page;
    page_first(r, &page);
    for (;;) {
        char last[ETCD_KEY_BYTES] = "";
        json_t *answer = NULL;
        enum err err = page_read(r, &page, &answer, e);
        if (err != ERR_OK)
            return err;
        if (r->revision == 0)
            r->revision = etcd_number(json_object_get(answer, "header"), "revision");
        const json_t *items = json_object_get(answer, "kvs");
        bool more = json_is_true(json_object_get(answer, "more"));
        size_t count = json_array_size(items);
        err = page_tell(r, items, last, sizeof(last), e);
        json_decref(answer);
        if (err != ERR_OK || (!more && page.is_rest))
            return err;
        if (!more)
            last[0] = '\0';
        page_next(r, &page, last, count);
    }
}
