/* output.c - JSON by jansson, YAML by libyaml. */
#include "cli/output.h"
#include "base/str.h"
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum output_format output_format_of(const char *name)
{
    if (name != NULL && strcmp(name, "json") == 0)
        return OUTPUT_JSON;
    if (name != NULL && strcmp(name, "yaml") == 0)
        return OUTPUT_YAML;
    return OUTPUT_TABLE;
}

/* ---- YAML ---- */

/* Whether every YAML reader takes these characters for this text: letters first, and none of the
 * words (of 1.1 too) that mean something else. */
static bool is_plain(const char *text, size_t bytes)
{
    static const char *const words[] = {"null", "true", "false", "yes", "no",
                                        "on",   "off",  "y",     "n"};
    if (bytes == 0 || bytes > 256)
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (str_equal_nocase((struct str){text, bytes}, str_of(words[i])))
            return false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        bool inside = (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.' || c == '/';
        if (!letter && !(i > 0 && inside))
            return false;
    }
    return true;
}

static bool emit_text(yaml_emitter_t *emitter, const char *text, size_t bytes, bool plain)
{
    yaml_event_t event;
    yaml_scalar_style_t style = plain ? YAML_PLAIN_SCALAR_STYLE
                                : memchr(text, '\n', bytes) != NULL
                                    ? YAML_LITERAL_SCALAR_STYLE
                                    : YAML_DOUBLE_QUOTED_SCALAR_STYLE;
    return yaml_scalar_event_initialize(&event, NULL, NULL, (const yaml_char_t *)text, (int)bytes,
                                        plain, 1, style) &&
           yaml_emitter_emit(emitter, &event);
}

static bool emit(yaml_emitter_t *emitter, const json_t *json);

static bool emit_object(yaml_emitter_t *emitter, const json_t *json)
{
    yaml_event_t event;
    const char *key;
    json_t *value;
    if (!yaml_mapping_start_event_initialize(
            &event, NULL, NULL, 1,
            json_object_size(json) > 0 ? YAML_BLOCK_MAPPING_STYLE : YAML_FLOW_MAPPING_STYLE) ||
        !yaml_emitter_emit(emitter, &event))
        return false;
    json_object_foreach((json_t *)json, key, value)
    {
        if (!emit_text(emitter, key, strlen(key), is_plain(key, strlen(key))) ||
            !emit(emitter, value))
            return false;
    }
    return yaml_mapping_end_event_initialize(&event) && yaml_emitter_emit(emitter, &event);
}

static bool emit_array(yaml_emitter_t *emitter, const json_t *json)
{
    yaml_event_t event;
    if (!yaml_sequence_start_event_initialize(
            &event, NULL, NULL, 1,
            json_array_size(json) > 0 ? YAML_BLOCK_SEQUENCE_STYLE : YAML_FLOW_SEQUENCE_STYLE) ||
        !yaml_emitter_emit(emitter, &event))
        return false;
    for (size_t i = 0; i < json_array_size(json); i++)
        if (!emit(emitter, json_array_get(json, i)))
            return false;
    return yaml_sequence_end_event_initialize(&event) && yaml_emitter_emit(emitter, &event);
}

static bool emit(yaml_emitter_t *emitter, const json_t *json)
{
    if (json_is_object(json))
        return emit_object(emitter, json);
    if (json_is_array(json))
        return emit_array(emitter, json);
    if (json_is_string(json)) {
        const char *text = json_string_value(json);
        size_t bytes = json_string_length(json);
        return emit_text(emitter, text, bytes, is_plain(text, bytes));
    }
    cleanup(free_pointer) char *text = json_dumps(json, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    return text != NULL && emit_text(emitter, text, strlen(text), true);
}

static void output_yaml(FILE *file, const json_t *json)
{
    yaml_emitter_t emitter;
    yaml_event_t event;
    if (!yaml_emitter_initialize(&emitter))
        abort();
    yaml_emitter_set_output_file(&emitter, file);
    yaml_emitter_set_unicode(&emitter, 1);
    yaml_emitter_set_width(&emitter, -1);
    bool fine = yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING) &&
                yaml_emitter_emit(&emitter, &event) &&
                yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1) &&
                yaml_emitter_emit(&emitter, &event) && emit(&emitter, json) &&
                yaml_document_end_event_initialize(&event, 1) &&
                yaml_emitter_emit(&emitter, &event) && yaml_stream_end_event_initialize(&event) &&
                yaml_emitter_emit(&emitter, &event);
    if (!fine) /* only when the file cannot be written: main() looks at ferror(stdout) */
        (void)fflush(file);
    yaml_emitter_delete(&emitter);
}

void output_json(FILE *file, enum output_format format, const json_t *json)
{
    if (format == OUTPUT_YAML) {
        output_yaml(file, json);
        return;
    }
    (void)json_dumpf(json, file, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
    fprintf(file, "\n");
}
