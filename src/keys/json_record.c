/* json_record.c - a record that cannot be read is damage, never skipped. */
#include "keys/json_record.h"
#include <stdlib.h>

enum err json_record_parse(struct str text, const char *kind, json_t **ret_json, struct error *e)
{
    json_error_t story;
    json_t *json =
        json_loadb(text.data != NULL ? text.data : "", text.bytes, JSON_REJECT_DUPLICATES, &story);
    if (json_is_object(json)) {
        *ret_json = json;
        return ERR_OK;
    }
    error_set(e, ERR_CORRUPT, "the record of %s is no JSON object%s%s", kind,
              json == NULL ? ": " : "", json == NULL ? story.text : "");
    json_decref(json);
    return ERR_CORRUPT;
}

enum err json_record_text(const json_t *json, const char *key, char *ret_text, size_t bytes,
                          struct error *e)
{
    const json_t *member = json_object_get(json, key);
    const char *text = json_string_value(member);
    if (text == NULL || strlen(text) != json_string_length(member) || strlen(text) >= bytes)
        return error_set(e, ERR_CORRUPT, "the record's '%s' is missing or wrong", key);
    memcpy(ret_text, text, strlen(text) + 1);
    return ERR_OK;
}

enum err json_record_time(const json_t *json, const char *key, uint64_t *ret_s, struct error *e)
{
    const json_t *member = json_object_get(json, key);
    json_int_t value = json_integer_value(member);
    if (!json_is_integer(member) || value < 0)
        return error_set(e, ERR_CORRUPT, "the record's '%s' is missing or wrong", key);
    *ret_s = (uint64_t)value;
    return ERR_OK;
}

enum err json_record_digest(const json_t *json, const char *key, uint8_t ret_digest[DIGEST_BYTES],
                            struct error *e)
{
    char hex[DIGEST_HEX_CHARS + 1];
    enum err err = json_record_text(json, key, hex, sizeof(hex), e);
    if (err == ERR_OK && digest_from_hex(str_of(hex), ret_digest) != ERR_OK)
        err = error_set(e, ERR_CORRUPT, "the record's '%s' is no digest", key);
    return err;
}

char *json_record_text_of(json_t *json)
{
    assert(json != NULL); /* all texts in it were checked to be ASCII */
    char *text = json_dumps(json, JSON_COMPACT);
    assert(text != NULL);
    json_decref(json);
    return text;
}
