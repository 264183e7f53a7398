/* function_yaml.h - reads an apply file: functions written in YAML. Pure; any thread.
 *
 * A file holds one or many functions: YAML documents divided by `---`; a list of functions; or a
 * mapping with the one key `functions:` that holds a list. Each function is a mapping; what may
 * stand in it is not decided here: function_spec_from_json() checks the spec's fields, and keys
 * that are a client's own (`dir:`, `zip:`) are taken out by the client before.
 *
 *   struct function_file file;
 *   if (function_yaml_parse(text, &file, &e) != ERR_OK) → e says "line 3: …"
 *   for (size_t i = 0; i < file.count; i++)
 *       use file.items[i].json; an error in its field `e.field` is at
 *       function_yaml_line(&file.items[i], e.field)
 *   function_file_done(&file);
 *
 * Plain scalars are read as YAML 1.2's core schema says (null, true, false, integers, floats; "yes"
 * and "on" are texts), quoted ones are texts. Anchors and aliases work; merge keys (`<<`) are
 * refused. Refused too, with the line: names given twice, keys that are no texts, foreign tags,
 * nesting deeper than JSON_DEPTH_MAX, more than YAML_NODES_MAX nodes with aliases counted each
 * time, files above SPEC_JSON_BYTES_MAX x 16. */
#pragma once
#include "function/function.h"

#define YAML_BYTES_MAX (16u * SPEC_JSON_BYTES_MAX)
#define YAML_NODES_MAX 200000u
#define YAML_ANCHORS_MAX 1000u
#define DOCUMENT_PREFIX_BYTES_MAX 32

struct function_document {
    json_t *json;                           /* an object */
    json_t *lines;                          /* dotted path → line, for function_yaml_line() */
    unsigned line;                          /* where it begins, from 1 */
    char prefix[DOCUMENT_PREFIX_BYTES_MAX]; /* of its paths in `lines`: "" or "functions.3" */
};
struct function_file { /* owns all of it; function_file_done() */
    struct function_document *items;
    size_t count;
};

/* At least one function on success. `*ret_file` is written on success only. */
must_check enum err function_yaml_parse(struct str text, struct function_file *ret_file,
                                        struct error *e);
void function_file_done(struct function_file *file);
/* The line of a field such as "scaling.min"; when that is not written there, of the nearest that
 * holds it, at last of the function itself. */
unsigned function_yaml_line(const struct function_document *document, const char *field);
