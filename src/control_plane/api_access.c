/* api_access.c - GET, POST, DELETE /v1/keys: who may use the API. */
#include "control_plane/api_internal.h"
#include "control_plane/api_keys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DAY_S 86400u

struct key_call {
    struct control_plane *cp;
    struct http_exchange *x; /* NULL: the client went away */
    bool under_way;
    struct api_key_change change;
};

static void key_call_free(struct key_call *call)
{
    secret_wipe(call->change.text, sizeof(call->change.text));
    free(call);
}

static json_t *key_to_json(const struct api_key_record *r)
{
    char created[40], expires[40] = "";
    text_of_time(r->created_s * 1000, created, sizeof(created));
    if (r->expires_s != 0)
        text_of_time(r->expires_s * 1000, expires, sizeof(expires));
    return json_pack("{s:s, s:s, s:s, s:s, s:s}", "name", r->name, "role", api_role_name(r->role),
                     "ends_with", r->last4, "created_at", created, "expires_at", expires);
}

void handle_keys_list(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    json_t *items = json_array();
    size_t cursor = 0;
    const struct api_key_record *r;
    while ((r = api_keys_next(cp->api_keys, &cursor)) != NULL)
        json_array_append_new(items, key_to_json(r));
    answer_json(x, 200, json_pack("{s:o}", "items", items));
}

static void on_key_changed(struct api_key_change *change, enum err err, const struct error *e)
{
    struct key_call *call = container_of(change, struct key_call, change);
    if (call->x != NULL && err != ERR_OK) {
        answer_error(call->x, err, e);
    } else if (call->x != NULL) {
        json_t *json = key_to_json(&change->record);
        if (!change->remove)
            json_object_set_new(json, "key", json_string(change->text));
        answer_json(call->x, change->remove ? 200 : 201, json);
    }
    key_call_free(call);
}

static void on_key_client_gone(struct http_exchange *x, void *user)
{
    struct key_call *call = user;
    call->x = NULL;
    if (!call->under_way)
        key_call_free(call);
}

static struct key_call *key_call_new(struct control_plane *cp, struct http_exchange *x)
{
    struct key_call *call = mem_new(sizeof(*call));
    call->cp = cp;
    call->x = x;
    call->change.on_done = on_key_changed;
    http_exchange_set_user(x, call, on_key_client_gone);
    return call;
}

static void begin(struct key_call *call)
{
    call->under_way = true;
    store_await(call->x);
    api_keys_change(call->cp->api_keys, &call->change);
}

/* {"name": …, "role": "read|deploy|admin", "days": N}; days may be left out: for ever. */
static enum err read_key(struct str body, struct api_key_change *ret, struct error *e)
{
    json_t *json = NULL, *value;
    const char *key;
    enum err err = json_text_parse(body, &json, e);
    if (err == ERR_OK && !json_is_object(json))
        err = error_set(e, ERR_INVALID, "the body must be a JSON object with name and role");
    json_object_foreach(json, key, value)
    {
        const char *text = json_string_value(value);
        if (err != ERR_OK)
            break;
        if (strcmp(key, "name") == 0 && text != NULL && strlen(text) < sizeof(ret->name))
            (void)snprintf(ret->name, sizeof(ret->name), "%s", text);
        else if (strcmp(key, "role") == 0 && text != NULL)
            err = api_role_of(str_of(text), &ret->role, e);
        else if (strcmp(key, "days") == 0 && json_is_integer(value) &&
                 json_integer_value(value) > 0 && json_integer_value(value) <= 3650)
            ret->lifetime_s = (uint64_t)json_integer_value(value) * DAY_S;
        else
            err = error_field(e, ERR_INVALID, key,
                              "'%.64s' is not what it must be: name (text), role (read, deploy or "
                              "admin), days (1 to 3650)",
                              key);
    }
    json_decref(json);
    if (err == ERR_OK && (ret->name[0] == '\0' || ret->role == API_NOBODY))
        err = error_field(e, ERR_INVALID, ret->name[0] == '\0' ? "name" : "role",
                          "a key needs a name and a role");
    return err;
}

static void on_key_body(struct http_exchange *x, void *user, enum err err, char *data, size_t bytes)
{
    struct key_call *call = user;
    struct error e = {0};
    if (err != ERR_OK)
        return; /* on_gone is next */
    err = read_key((struct str){data, bytes}, &call->change, &e);
    if (err == ERR_OK) {
        begin(call);
        return;
    }
    answer_error(x, err, &e);
    key_call_free(call);
}

void handle_key_create(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    http_exchange_read_body(x, 4096, on_key_body, key_call_new(cp, x));
}

void handle_key_delete(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct key_call *call = key_call_new(cp, x);
    call->change.remove = true;
    (void)snprintf(call->change.name, sizeof(call->change.name), "%s", name);
    begin(call);
}
