/* json_text.c - JSON from outside, bounded before anything looks at it. */
#include "function/function.h"

/* How deep brackets nest outside of strings; no recursion, so that depth itself is no danger. */
static unsigned text_depth(struct str text)
{
    unsigned depth = 0, deepest = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.bytes; i++) {
        char c = text.data[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"')
            in_string = true;
        else if (c == '{' || c == '[')
            depth++;
        else if ((c == '}' || c == ']') && depth > 0)
            depth--;
        deepest = MAX(deepest, depth);
    }
    return deepest;
}

enum err json_text_parse(struct str text, json_t **ret_json, struct error *e)
{
    if (text.bytes > SPEC_JSON_BYTES_MAX)
        return error_set(e, ERR_TOO_LARGE, "the JSON has %zu bytes, at most %u are taken",
                         text.bytes, SPEC_JSON_BYTES_MAX);
    if (text.bytes == 0)
        return error_set(e, ERR_INVALID, "the JSON is empty");
    if (text_depth(text) > JSON_DEPTH_MAX)
        return error_set(e, ERR_INVALID, "the JSON nests deeper than %u levels", JSON_DEPTH_MAX);
    json_error_t story;
    json_t *json =
        json_loadb(text.data, text.bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &story);
    if (json == NULL)
        return error_set(e, ERR_INVALID, "not valid JSON at line %d, column %d: %s", story.line,
                         story.column, story.text);
    *ret_json = json;
    return ERR_OK;
}
