/* records.c - JSON texts of the store. A record that cannot be read is damage: never skipped. */
#include "control_plane/records.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void function_record_done(struct function_record *r)
{
    function_spec_done(&r->latest);
    if (r->has_active)
        function_spec_done(&r->active);
    *r = (struct function_record){0};
}

void function_record_copy(const struct function_record *from, struct function_record *ret_to)
{
    *ret_to = *from;
    function_spec_copy(&from->latest, &ret_to->latest);
    if (from->has_active)
        function_spec_copy(&from->active, &ret_to->active);
}

char *function_record_write(const struct function_record *r)
{
    json_t *json = json_pack(
        "{s:I, s:I, s:I, s:I, s:o}", "version", (json_int_t)r->latest_version, "active_version",
        (json_int_t)r->active_version, "created_at_ms", (json_int_t)r->created_at_ms,
        "updated_at_ms", (json_int_t)r->updated_at_ms, "spec", function_spec_to_json(&r->latest));
    if (r->versions_used > r->latest_version)
        json_object_set_new(json, "versions_used", json_integer(r->versions_used));
    if (r->has_active)
        json_object_set_new(json, "active_spec", function_spec_to_json(&r->active));
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    assert(text != NULL); /* all texts in it came from valid JSON */
    return text;
}

static enum err parse(const char *kind, uint64_t id, const char *text, json_t **ret_json,
                      struct error *e)
{
    json_error_t story;
    *ret_json = json_loads(text, JSON_REJECT_DUPLICATES, &story);
    if (*ret_json == NULL)
        return error_set(e, ERR_CORRUPT, "the record of %s %" PRIu64 " is no JSON: %s", kind, id,
                         story.text);
    return ERR_OK;
}

static enum err read_spec(const json_t *json, const char *key, struct function_spec *ret,
                          struct error *e)
{
    function_spec_init(ret);
    enum err err = function_spec_from_json(json_object_get(json, key), ret, e);
    return err == ERR_OK ? function_spec_check(ret, e) : err;
}

static enum err read_function(const json_t *json, struct function_record *r, struct error *e)
{
    json_int_t version = 0, active = 0, created = 0, updated = 0, used = 0;
    json_error_t story;
    if (json_unpack_ex((json_t *)json, &story, 0, "{s:I, s:I, s:I, s:I, s?I}", "version", &version,
                       "active_version", &active, "created_at_ms", &created, "updated_at_ms",
                       &updated, "versions_used", &used) != 0)
        return error_set(e, ERR_CORRUPT, "%s", story.text);
    if (version < 1 || version > UINT32_MAX || active < 0 || active > version || used < 0 ||
        used > FUNCTION_VERSION_MAX)
        return error_set(e, ERR_CORRUPT, "its version numbers make no sense");
    r->latest_version = (uint32_t)version;
    r->active_version = (uint32_t)active;
    r->versions_used = (uint32_t)used;
    r->created_at_ms = (uint64_t)created;
    r->updated_at_ms = (uint64_t)updated;
    enum err err = read_spec(json, "spec", &r->latest, e);
    if (err == ERR_OK && active != 0 && active != version) {
        r->has_active = true;
        err = read_spec(json, "active_spec", &r->active, e);
    }
    return err;
}

enum err function_record_read(uint64_t id, const char *text, struct function_record *ret_record,
                              struct error *e)
{
    json_t *json = NULL;
    if (parse("function", id, text, &json, e) != ERR_OK)
        return ERR_CORRUPT;
    struct function_record record = {.id = id};
    enum err err = read_function(json, &record, e);
    json_decref(json);
    if (err != ERR_OK) {
        function_record_done(&record);
        error_prefix(e, "the record of function %" PRIu64, id);
        return err;
    }
    *ret_record = record;
    return ERR_OK;
}

static const char *const worker_use_names[] = {[WORKER_USE_ALL] = "all",
                                               [WORKER_USE_CORDONED] = "cordoned",
                                               [WORKER_USE_DRAINING] = "draining"};

const char *worker_use_name(enum worker_use use)
{
    return worker_use_names[use];
}

bool worker_use_find(const char *name, enum worker_use *ret_use)
{
    for (size_t i = 0; i < ARRAY_COUNT(worker_use_names); i++) {
        if (strcmp(worker_use_names[i], name) != 0)
            continue;
        *ret_use = (enum worker_use)i;
        return true;
    }
    return false;
}

char *peer_record_write(const struct peer_record *r)
{
    json_t *json = json_pack("{s:s, s:s}", "name", r->name, "address", r->address);
    assert(json != NULL); /* names and addresses are checked to be ASCII */
    if (r->use != WORKER_USE_ALL)
        json_object_set_new(json, "use", json_string(worker_use_name(r->use)));
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    return text;
}

enum err peer_record_read(uint64_t id, const char *text, struct peer_record *ret_record,
                          struct error *e)
{
    json_t *json = NULL;
    if (parse("peer", id, text, &json, e) != ERR_OK)
        return ERR_CORRUPT;
    const char *name = json_string_value(json_object_get(json, "name"));
    const char *address = json_string_value(json_object_get(json, "address"));
    const json_t *use = json_object_get(json, "use");
    struct peer_record record = {.id = id};
    bool use_valid = use == NULL ||
                     (json_is_string(use) && worker_use_find(json_string_value(use), &record.use));
    bool valid = use_valid && name != NULL && address != NULL &&
                 strlen(name) < sizeof(record.name) && strlen(address) < sizeof(record.address);
    if (valid) {
        snprintf(record.name, sizeof(record.name), "%s", name);
        snprintf(record.address, sizeof(record.address), "%s", address);
        *ret_record = record;
    }
    json_decref(json);
    return valid
               ? ERR_OK
               : error_set(e, ERR_CORRUPT,
                           "the record of peer %" PRIu64 " has no name, or a use that is not known",
                           id);
}
