/* api_joining.c - /v1/tokens and /v1/authority: who may join the cluster, and whom it trusts. */
#include "control_plane/api_internal.h"
#include "control_plane/joining.h"
#include "control_plane/leadership.h"
#include "control_plane/trust.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Either change; one request. */
struct trust_call {
    struct control_plane *cp;
    struct http_exchange *x; /* NULL: the client went away */
    bool under_way;
    struct token_change token;
    struct trust_change rotation;
};

static void trust_call_free(struct trust_call *call)
{
    secret_wipe(call->token.text, sizeof(call->token.text));
    free(call);
}

static void on_client_gone(struct http_exchange *x, void *user)
{
    struct trust_call *call = user;
    call->x = NULL;
    if (!call->under_way)
        trust_call_free(call);
}

static struct trust_call *trust_call_new(struct control_plane *cp, struct http_exchange *x)
{
    struct trust_call *call = mem_new(sizeof(*call));
    call->cp = cp;
    call->x = x;
    http_exchange_set_user(x, call, on_client_gone);
    return call;
}

/* ---- tokens ---- */

static json_t *token_to_json(const struct token_record *r)
{
    char created[40], expires[40], used[40] = "";
    text_of_time(r->created_s * 1000, created, sizeof(created));
    text_of_time(r->expires_s * 1000, expires, sizeof(expires));
    if (r->used_s != 0)
        text_of_time(r->used_s * 1000, used, sizeof(used));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "id", r->id, "role",
                     node_role_name(r->role), "name", r->name, "created_at", created, "expires_at",
                     expires, "used_at", used, "used_by", r->used_by);
}

void handle_tokens_list(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    json_t *items = json_array();
    size_t cursor = 0;
    const struct token_record *r;
    while ((r = joining_next(cp->joining, &cursor)) != NULL)
        json_array_append_new(items, token_to_json(r));
    answer_json(x, 200, json_pack("{s:o}", "items", items));
}

static const char *current_hash(const struct control_plane *cp, struct pin *ret)
{
    *ret = authority_pin(authority_bundle_signer(trust_bundle(cp->trust)));
    return ret->text;
}

/* "10.0.0.1:9090,10.0.0.2:9090" */
static char *addresses_text(const struct control_plane *cp)
{
    struct member_view view;
    struct buf text = {0};
    size_t cursor = 0;
    if (cp->leadership == NULL)
        buf_append_str(&text, str_of(cp->name));
    while (cp->leadership != NULL && leadership_member_next(cp->leadership, &cursor, &view))
        buf_printf(&text, "%s%s", text.bytes > 0 ? "," : "", view.name);
    return buf_take_text(&text);
}

static void add_secret(const struct control_plane *cp, const struct token_change *c, json_t *json)
{
    struct pin pin;
    cleanup(free_pointer) char *addresses = addresses_text(cp);
    const char *hash = current_hash(cp, &pin);
    const char *role = node_role_name(c->record.role);
    cleanup(free_pointer) char *name =
        c->record.name[0] != '\0' ? mem_printf(" --name %s", c->record.name) : mem_printf("%s", "");
    cleanup(free_pointer) char *command = mem_printf(
        "dirigent %s join%s --token %s --ca-hash %s %s", role, name, c->text, hash, addresses);
    json_object_set_new(json, "token", json_string(c->text));
    json_object_set_new(json, "ca_hash", json_string(hash));
    json_object_set_new(json, "control_planes", json_string(addresses));
    json_object_set_new(json, "command", json_string(command));
    secret_wipe(command, strlen(command));
}

static void on_token_changed(struct token_change *change, enum err err, const struct error *e)
{
    struct trust_call *call = container_of(change, struct trust_call, token);
    if (call->x != NULL && err != ERR_OK) {
        answer_error(call->x, err, e);
    } else if (call->x != NULL) {
        json_t *json = token_to_json(&change->record);
        if (!change->remove)
            add_secret(call->cp, change, json);
        answer_json(call->x, change->remove ? 200 : 201, json);
    }
    trust_call_free(call);
}

/* {"role": "worker|data-plane", "name": …, "ttl_s": N}; name and ttl_s may be left out. */
static enum err read_token(struct str body, struct token_change *ret, struct error *e)
{
    json_t *json = NULL, *value;
    const char *key;
    enum err err = json_text_parse(body, &json, e);
    if (err == ERR_OK && !json_is_object(json))
        err = error_set(e, ERR_INVALID, "the body must be a JSON object with role");
    json_object_foreach(json, key, value)
    {
        const char *text = json_string_value(value);
        if (err != ERR_OK)
            break;
        if (strcmp(key, "role") == 0 && text != NULL)
            err = node_role_of(str_of(text), &ret->order.role, e);
        else if (strcmp(key, "name") == 0 && text != NULL && strlen(text) < sizeof(ret->name))
            (void)snprintf(ret->name, sizeof(ret->name), "%s", text);
        else if (strcmp(key, "ttl_s") == 0 && json_is_integer(value) &&
                 json_integer_value(value) > 0)
            ret->order.lifetime_s = (uint64_t)json_integer_value(value);
        else
            err = error_field(e, ERR_INVALID, key,
                              "'%.64s' is not what it must be: role (worker or data-plane), name "
                              "(text), ttl_s (seconds)",
                              key);
    }
    json_decref(json);
    if (err == ERR_OK && ret->order.role != NODE_WORKER && ret->order.role != NODE_DATA_PLANE)
        err =
            error_field(e, ERR_INVALID, "role",
                        "a token is for a role: worker or data-plane. A control plane needs none, "
                        "it finds all in the store");
    return err;
}

static void on_token_body(struct http_exchange *x, void *user, enum err err, char *data,
                          size_t bytes)
{
    struct trust_call *call = user;
    struct error e = {0};
    if (err != ERR_OK)
        return; /* on_gone is next */
    err = read_token((struct str){data, bytes}, &call->token, &e);
    if (err == ERR_OK && trust_is_on(call->cp->trust) && trust_bundle(call->cp->trust) == NULL)
        err = error_set(&e, ERR_BUSY, "the cluster's authority is being made: try again");
    if (err == ERR_OK) {
        call->under_way = true;
        store_await(x);
        joining_change(call->cp->joining, &call->token);
        return;
    }
    answer_error(x, err, &e);
    trust_call_free(call);
}

void handle_token_create(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct trust_call *call = trust_call_new(cp, x);
    call->token.on_done = on_token_changed;
    http_exchange_read_body(x, 4096, on_token_body, call);
}

void handle_token_delete(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct trust_call *call = trust_call_new(cp, x);
    call->token.on_done = on_token_changed;
    call->token.remove = true;
    (void)snprintf(call->token.id, sizeof(call->token.id), "%s", name);
    call->under_way = true;
    store_await(x);
    joining_change(cp->joining, &call->token);
}

/* ---- the authority ---- */

static const char *next_step(const struct authority_bundle *b)
{
    if (b->count == 1)
        return "begin";
    return b->signer == 0 ? "switch" : "finish";
}

static json_t *root_to_json(const struct authority *a, bool signs)
{
    struct pin pin = authority_pin(a);
    struct certificate_times times = {0};
    char end[40] = "";
    if (certificate_times_of(authority_certificate(a), &times, NULL) == ERR_OK)
        text_of_time(times.not_after_s * 1000, end, sizeof(end));
    return json_pack("{s:s, s:b, s:s}", "hash", pin.text, "signs", signs, "valid_until", end);
}

static json_t *authority_to_json(const struct control_plane *cp)
{
    const struct authority_bundle *b = trust_bundle(cp->trust);
    const struct identity *own = trust_identity(cp->trust);
    struct pin pin;
    char since[40], end[40] = "";
    if (b == NULL)
        return json_pack("{s:b}", "tls", trust_is_on(cp->trust));
    text_of_time(b->since_s * 1000, since, sizeof(since));
    if (own != NULL)
        text_of_time(own->times.not_after_s * 1000, end, sizeof(end));
    json_t *roots = json_array();
    for (unsigned i = 0; i < b->count; i++)
        json_array_append_new(roots, root_to_json(b->items[i], i == b->signer));
    return json_pack("{s:b, s:s, s:s, s:o, s:s, s:s, s:I, s:s}", "tls", 1, "cluster",
                     authority_cluster(b->items[0]), "ca_hash", current_hash(cp, &pin), "roots",
                     roots, "changed_at", since, "next_step", next_step(b),
                     "certificate_lifetime_s", (json_int_t)trust_lifetime_s(cp->trust),
                     "certificate_valid_until", end);
}

void handle_authority_get(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    answer_json(x, 200, authority_to_json(cp));
}

static void on_rotated(struct trust_change *change, enum err err, const struct error *e)
{
    struct trust_call *call = container_of(change, struct trust_call, rotation);
    if (call->x != NULL && err != ERR_OK)
        answer_error(call->x, err, e);
    else if (call->x != NULL)
        answer_json(call->x, 200, authority_to_json(call->cp));
    trust_call_free(call);
}

void handle_authority_rotate(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct error e = {0};
    char force[8];
    enum err err = query_get(x, "force", force, sizeof(force), &e);
    if (err == ERR_OK && force[0] != '\0' && strcmp(force, "true") != 0 &&
        strcmp(force, "false") != 0)
        err = error_field(&e, ERR_INVALID, "force", "'force' is true or false");
    if (err != ERR_OK) {
        answer_error(x, err, &e);
        return;
    }
    struct trust_call *call = trust_call_new(cp, x);
    call->rotation.force = strcmp(force, "true") == 0;
    call->rotation.on_done = on_rotated;
    call->under_way = true;
    store_await(x);
    trust_rotate(cp->trust, &call->rotation);
}
