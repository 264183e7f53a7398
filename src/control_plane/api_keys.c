/* api_keys.c - records by the id in a key's text. */
#include "control_plane/api_keys.h"
#include "base/hash.h"
#include "base/log.h"
#include "control_plane/members.h"
#include "control_plane/records.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct registered {
    uint64_t id; /* in the store */
    struct api_key_record record;
};
struct api_keys {
    struct control_plane *cp;
    struct map by_id;         /* struct registered */
    struct strmap by_text_id; /* the same */
};

static struct registered *add(struct api_keys *k, uint64_t id, const struct api_key_record *record)
{
    struct registered *r = mem_new(sizeof(*r));
    r->id = id;
    r->record = *record;
    map_put(&k->by_id, id, r);
    strmap_put(&k->by_text_id, str_of(record->id), r);
    return r;
}

void api_keys_drop(struct api_keys *k, uint64_t id)
{
    struct registered *r = map_remove(&k->by_id, id);
    if (r == NULL)
        return;
    (void)strmap_remove(&k->by_text_id, str_of(r->record.id));
    free(r);
}

enum err api_keys_load(struct api_keys *k, uint64_t id, const char *value, struct error *e)
{
    struct api_key_record record;
    enum err err = api_key_record_read(str_of(value), &record, e);
    if (err != ERR_OK) {
        error_prefix(e, "the record of API key %" PRIu64, id);
        return err;
    }
    api_keys_drop(k, id);
    (void)add(k, id, &record);
    return ERR_OK;
}

static struct registered *find_name(const struct api_keys *k, const char *name)
{
    size_t cursor = 0;
    for (struct registered *r; (r = map_next(&k->by_id, &cursor)) != NULL;)
        if (strcmp(r->record.name, name) == 0)
            return r;
    return NULL;
}

static size_t count_role(const struct api_keys *k, enum api_role role)
{
    size_t cursor = 0, count = 0;
    for (struct registered *r; (r = map_next(&k->by_id, &cursor)) != NULL;)
        count += r->record.role == role;
    return count;
}

const struct api_key_record *api_keys_next(const struct api_keys *k, size_t *cursor)
{
    const struct registered *r = map_next(&k->by_id, cursor);
    return r != NULL ? &r->record : NULL;
}

/* ---- requests ---- */

static struct str bearer_of(const struct http_request *request)
{
    static const struct str scheme = {"Bearer ", 7};
    struct str value = STR_NONE;
    for (uint32_t i = 0; i < request->header_count; i++)
        if (str_equal_nocase(request->headers[i].name, STR("Authorization")))
            value = request->headers[i].value;
    if (value.bytes < scheme.bytes ||
        !str_equal_nocase((struct str){value.data, scheme.bytes}, scheme))
        return STR_NONE;
    return (struct str){value.data + scheme.bytes, value.bytes - scheme.bytes};
}

static enum err role_of(const struct api_keys *k, const struct http_request *request,
                        enum api_role *ret_role, struct error *e)
{
    struct api_key key;
    struct str text = bearer_of(request);
    if (text.data == NULL)
        return error_set(e, ERR_PERMISSION,
                         "this API needs a key: Authorization: Bearer dk_… (the client takes it "
                         "from DIRIGENT_API_KEY)");
    enum err err = api_key_parse(text, &key, e);
    if (err != ERR_OK)
        return err;
    const struct registered *r = strmap_get(&k->by_text_id, str_of(key.id));
    err = api_key_verify(&key, r != NULL ? &r->record : NULL, clock_real_s(), e);
    if (err == ERR_OK)
        *ret_role = r->record.role;
    return err;
}

/* Another control plane has looked whence it came (api.c). */
static bool comes_by_relay(const struct api_keys *k, const struct http_exchange *x)
{
    char address[64];
    http_exchange_peer(x, address, sizeof(address));
    return k->cp->members != NULL && members_come_from(k->cp->members, address);
}

enum err api_keys_check(const struct api_keys *k, struct http_exchange *x, unsigned *ret_status,
                        struct error *e)
{
    const struct http_request *request = http_exchange_request(x);
    if (api_role_needed(request->method_text, request->path) == API_NOBODY)
        return ERR_OK;
    if (k->by_id.count == 0) {
        *ret_status = 403;
        return http_exchange_is_local(x) || comes_by_relay(k, x)
                   ? ERR_OK
                   : error_set(e, ERR_PERMISSION,
                               "without API keys only clients on its own host are served: make "
                               "one there by `dirigent api-key create NAME --role admin`");
    }
    enum api_role role = API_NOBODY;
    *ret_status = 401;
    enum err err = role_of(k, request, &role, e);
    if (err != ERR_OK)
        return err;
    *ret_status = 403;
    return api_key_check(role, request->method_text, request->path, e);
}

/* ---- changes ---- */

static void on_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct api_key_change *c = container_of(write, struct api_key_change, write);
    free(write->value);
    write->value = NULL;
    if (err == ERR_OK && c->remove)
        api_keys_drop(c->keys, write->id);
    else if (err == ERR_OK)
        (void)add(c->keys, write->id, &c->record);
    if (err == ERR_OK)
        log_info(c->remove ? "api_key.removed" : "api_key.made", LOG_STR("name", c->name),
                 LOG_STR("role", api_role_name(c->record.role)));
    c->on_done(c, err, e);
}

static enum err check_removal(const struct api_keys *k, const struct api_key_change *c,
                              const struct registered *r, struct error *e)
{
    if (r == NULL)
        return error_field(e, ERR_NOT_FOUND, "name", "there is no API key '%s'", c->name);
    if (r->record.role == API_ADMIN && count_role(k, API_ADMIN) == 1 && k->by_id.count > 1)
        return error_field(e, ERR_CONFLICT, "name",
                           "'%s' is the last administrator's key: nobody could change the others",
                           c->name);
    return ERR_OK;
}

static enum err check_creation(const struct api_keys *k, struct api_key_change *c,
                               const struct registered *r, struct error *e)
{
    if (r != NULL)
        return error_field(e, ERR_EXISTS, "name", "there is an API key '%s' already", c->name);
    if (k->by_id.count == 0 && c->role != API_ADMIN)
        return error_field(e, ERR_CONFLICT, "role",
                           "the first key must be an administrator's, or nobody could make others");
    return api_key_make(str_of(c->name), c->role, clock_real_s(), c->lifetime_s, &c->record,
                        c->text, e);
}

void api_keys_change(struct api_keys *k, struct api_key_change *c)
{
    struct error e = {0};
    const struct registered *r = find_name(k, c->name);
    enum err err = c->remove ? check_removal(k, c, r, &e) : check_creation(k, c, r, &e);
    if (err != ERR_OK) {
        c->on_done(c, err, &e);
        return;
    }
    c->keys = k;
    if (c->remove)
        c->record = r->record;
    c->write = (struct store_write){.kind = STORE_API_KEY,
                                    .id = c->remove ? r->id : k->cp->next_id++,
                                    .value = c->remove ? NULL : api_key_record_write(&c->record),
                                    .on_done = on_stored};
    c->write.next_id = k->cp->next_id;
    store_submit(k->cp->store, &c->write);
}

struct api_keys *api_keys_new(struct control_plane *cp)
{
    struct api_keys *k = mem_new(sizeof(*k));
    k->cp = cp;
    return k;
}

void api_keys_free(struct api_keys *k)
{
    if (k == NULL)
        return;
    size_t cursor = 0;
    for (struct registered *r; (r = map_next(&k->by_id, &cursor)) != NULL;)
        free(r);
    map_done(&k->by_id);
    strmap_done(&k->by_text_id);
    free(k);
}
