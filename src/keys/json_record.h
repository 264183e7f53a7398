/* json_record.h - reading stored records: members that must be there, in their form. Pure. */
#pragma once
#include "keys/secret.h"
#include <jansson.h>

/* The object that `text` is. ERR_CORRUPT. The caller's to json_decref(). */
must_check enum err json_record_parse(struct str text, const char *kind, json_t **ret_json,
                                      struct error *e);
/* A member. ERR_CORRUPT, naming it. Texts have no NUL inside and fit with theirs. */
must_check enum err json_record_text(const json_t *json, const char *key, char *ret_text,
                                     size_t bytes, struct error *e);
must_check enum err json_record_time(const json_t *json, const char *key, uint64_t *ret_s,
                                     struct error *e);
must_check enum err json_record_digest(const json_t *json, const char *key,
                                       uint8_t ret_digest[DIGEST_BYTES], struct error *e);
/* Writes it compact and releases it; the text is the caller's to free. */
char *json_record_text_of(json_t *json);
