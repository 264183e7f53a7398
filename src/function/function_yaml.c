/* function_yaml.c - libyaml's events to JSON values, with the line of every field. */
#include "function/function_yaml.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct anchor {
    char *name;
    json_t *json;
    size_t nodes; /* what an alias to it adds */
};
struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    bool has_event;
    struct anchor *anchors; /* of this document */
    size_t anchor_count;
    size_t nodes;
    json_t *lines;   /* of the function being read */
    struct buf path; /* of the field being read */
    struct error *e;
};

static unsigned event_line(const struct reader *r)
{
    return (unsigned)r->event.start_mark.line + 1;
}

/* ---- events ---- */

static void drop_event(struct reader *r)
{
    if (r->has_event)
        yaml_event_delete(&r->event);
    r->has_event = false;
}

static enum err next_event(struct reader *r)
{
    drop_event(r);
    if (yaml_parser_parse(&r->parser, &r->event)) {
        r->has_event = true;
        return ERR_OK;
    }
    const char *problem = r->parser.problem != NULL ? r->parser.problem : "it cannot be read";
    const char *context = r->parser.context != NULL ? r->parser.context : "";
    size_t line = MAX(r->parser.problem_mark.line, r->parser.context_mark.line) + 1;
    return error_set(r->e, ERR_INVALID, "line %zu: not valid YAML: %s%s%s", line, context,
                     context[0] != '\0' ? ": " : "", problem);
}

/* ---- scalars: YAML 1.2.2, 10.3.2, the core schema ---- */

static bool is_one_of(const char *text, const char *const *words)
{
    for (; *words != NULL; words++)
        if (strcmp(text, *words) == 0)
            return true;
    return false;
}

static bool is_integer(const char *text)
{
    size_t i = text[0] == '-' || text[0] == '+';
    size_t digits = strspn(text + i, "0123456789");
    return digits > 0 && text[i + digits] == '\0';
}

/* [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? */
static bool is_float(const char *text)
{
    size_t i = text[0] == '-' || text[0] == '+';
    size_t whole = strspn(text + i, "0123456789"), fraction = 0;
    i += whole;
    if (text[i] == '.') {
        fraction = strspn(text + i + 1, "0123456789");
        i += 1 + fraction;
    }
    if (whole + fraction == 0)
        return false;
    if (text[i] == 'e' || text[i] == 'E') {
        i += 1 + (text[i + 1] == '-' || text[i + 1] == '+');
        size_t exponent = strspn(text + i, "0123456789");
        if (exponent == 0)
            return false;
        i += exponent;
    }
    return text[i] == '\0';
}

static enum err read_number(struct reader *r, const char *text, json_t **ret)
{
    errno = 0;
    if (is_integer(text)) {
        long long number = strtoll(text, NULL, 10);
        if (errno == ERANGE)
            return error_set(r->e, ERR_INVALID, "line %u: the number %.40s is too large",
                             event_line(r), text);
        *ret = json_integer(number);
        return ERR_OK;
    }
    *ret = json_real(strtod(text, NULL));
    if (*ret == NULL)
        return error_set(r->e, ERR_INVALID, "line %u: the number %.40s is too large", event_line(r),
                         text);
    return ERR_OK;
}

static enum err read_text(struct reader *r, const char *text, size_t bytes, json_t **ret)
{
    if (memchr(text, 0, bytes) != NULL)
        return error_set(r->e, ERR_INVALID, "line %u: a text has a NUL byte in it", event_line(r));
    *ret = json_stringn(text, bytes);
    if (*ret == NULL)
        return error_set(r->e, ERR_INVALID, "line %u: a text is not valid UTF-8", event_line(r));
    return ERR_OK;
}

static enum err read_scalar(struct reader *r, json_t **ret)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    static const char *const trues[] = {"true", "True", "TRUE", NULL};
    static const char *const falses[] = {"false", "False", "FALSE", NULL};
    const char *text = (const char *)r->event.data.scalar.value;
    size_t bytes = r->event.data.scalar.length;
    bool text_tag = r->event.data.scalar.tag != NULL; /* foreign ones were refused before */
    bool plain = r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE && !text_tag;
    if (plain && is_one_of(text, nulls) && strlen(text) == bytes)
        *ret = json_null();
    else if (plain && is_one_of(text, trues))
        *ret = json_true();
    else if (plain && is_one_of(text, falses))
        *ret = json_false();
    else if (plain && strlen(text) == bytes && (is_integer(text) || is_float(text)))
        return read_number(r, text, ret);
    else
        return read_text(r, text, bytes, ret);
    return ERR_OK;
}

/* ---- anchors ---- */

static void anchors_clear(struct reader *r)
{
    for (size_t i = 0; i < r->anchor_count; i++) {
        free(r->anchors[i].name);
        json_decref(r->anchors[i].json);
    }
    r->anchor_count = 0;
}

static enum err remember_anchor(struct reader *r, char *name, json_t *json, size_t nodes)
{
    if (r->anchor_count == YAML_ANCHORS_MAX) {
        free(name);
        return error_set(r->e, ERR_INVALID, "there are more than %u anchors", YAML_ANCHORS_MAX);
    }
    r->anchors = mem_resize(r->anchors, r->anchor_count + 1, sizeof(*r->anchors));
    r->anchors[r->anchor_count++] = (struct anchor){name, json_incref(json), nodes};
    return ERR_OK;
}

static enum err read_alias(struct reader *r, json_t **ret)
{
    const char *name = (const char *)r->event.data.alias.anchor;
    for (size_t i = r->anchor_count; i-- > 0;) {
        if (strcmp(r->anchors[i].name, name) != 0)
            continue;
        r->nodes += r->anchors[i].nodes;
        if (r->nodes > YAML_NODES_MAX)
            return error_set(r->e, ERR_INVALID, "line %u: aliases make the file too large",
                             event_line(r));
        *ret = json_deep_copy(r->anchors[i].json);
        return ERR_OK;
    }
    return error_set(r->e, ERR_INVALID, "line %u: there is no anchor '%.64s' before this alias",
                     event_line(r), name);
}

/* ---- nodes ---- */

static enum err read_node(struct reader *r, unsigned depth, json_t **ret);

/* Enters a field or list item at the present event's line; gives what path.bytes was. */
static size_t path_enter(struct reader *r, const char *name)
{
    size_t before = r->path.bytes;
    buf_printf(&r->path, "%s%s", before > 0 ? "." : "", name);
    json_object_setn_new_nocheck(r->lines, r->path.data, r->path.bytes,
                                 json_integer(event_line(r)));
    return before;
}

static enum err read_sequence(struct reader *r, unsigned depth, json_t *list)
{
    enum err err;
    while ((err = next_event(r)) == ERR_OK && r->event.type != YAML_SEQUENCE_END_EVENT) {
        json_t *item = NULL;
        char index[24];
        snprintf(index, sizeof(index), "%zu", json_array_size(list));
        size_t before = path_enter(r, index);
        err = read_node(r, depth + 1, &item);
        r->path.bytes = before;
        if (err != ERR_OK)
            return err;
        json_array_append_new(list, item);
    }
    return err;
}

/* The key of an entry; *ret_key is the caller's to free. */
static enum err read_key(struct reader *r, const json_t *object, char **ret_key)
{
    json_t *checked = NULL;
    if (r->event.type != YAML_SCALAR_EVENT)
        return error_set(r->e, ERR_INVALID, "line %u: a name must be a text", event_line(r));
    const char *text = (const char *)r->event.data.scalar.value;
    enum err err = read_text(r, text, r->event.data.scalar.length, &checked);
    if (err != ERR_OK)
        return err;
    json_decref(checked);
    if (strcmp(text, "<<") == 0)
        return error_set(r->e, ERR_UNSUPPORTED, "line %u: merge keys (<<) are not read here",
                         event_line(r));
    if (json_object_get(object, text) != NULL)
        return error_set(r->e, ERR_INVALID, "line %u: '%.64s' is given twice", event_line(r), text);
    *ret_key = mem_strdup(text);
    return ERR_OK;
}

static enum err read_mapping(struct reader *r, unsigned depth, json_t *object)
{
    enum err err;
    while ((err = next_event(r)) == ERR_OK && r->event.type != YAML_MAPPING_END_EVENT) {
        cleanup(free_pointer) char *key = NULL;
        json_t *value = NULL;
        err = read_key(r, object, &key);
        if (err != ERR_OK)
            return err;
        size_t before = path_enter(r, key);
        err = next_event(r);
        if (err == ERR_OK)
            err = read_node(r, depth + 1, &value);
        r->path.bytes = before;
        if (err != ERR_OK)
            return err;
        json_object_set_new(object, key, value);
    }
    return err;
}

static enum err check_tag(struct reader *r, const yaml_char_t *tag, const char *allowed)
{
    if (tag == NULL || strcmp((const char *)tag, allowed) == 0)
        return ERR_OK;
    return error_set(r->e, ERR_UNSUPPORTED, "line %u: the tag '%.64s' is not read here",
                     event_line(r), (const char *)tag);
}

/* Without a tag the "!" of a quoted scalar means text, too. */
static enum err check_scalar_tag(struct reader *r)
{
    const yaml_char_t *tag = r->event.data.scalar.tag;
    if (tag != NULL && strcmp((const char *)tag, "!") == 0)
        return ERR_OK;
    return check_tag(r, tag, YAML_STR_TAG);
}

static char *copy_anchor(const yaml_char_t *anchor)
{
    return anchor != NULL ? mem_strdup((const char *)anchor) : NULL;
}

static enum err read_content(struct reader *r, unsigned depth, char **ret_anchor, json_t **ret)
{
    enum err err = ERR_OK;
    switch ((int)r->event.type) {
    case YAML_SCALAR_EVENT:
        *ret_anchor = copy_anchor(r->event.data.scalar.anchor);
        err = check_scalar_tag(r);
        return err == ERR_OK ? read_scalar(r, ret) : err;
    case YAML_SEQUENCE_START_EVENT:
        *ret_anchor = copy_anchor(r->event.data.sequence_start.anchor);
        err = check_tag(r, r->event.data.sequence_start.tag, YAML_SEQ_TAG);
        *ret = json_array();
        return err == ERR_OK ? read_sequence(r, depth, *ret) : err;
    case YAML_MAPPING_START_EVENT:
        *ret_anchor = copy_anchor(r->event.data.mapping_start.anchor);
        err = check_tag(r, r->event.data.mapping_start.tag, YAML_MAP_TAG);
        *ret = json_object();
        return err == ERR_OK ? read_mapping(r, depth, *ret) : err;
    default:
        assert(false); /* the parser's grammar has no other event here */
    }
}

/* The node that begins with the present event; ends with its last event present. `*ret` is the
 * caller's on success. */
static enum err read_node(struct reader *r, unsigned depth, json_t **ret)
{
    if (depth > JSON_DEPTH_MAX)
        return error_set(r->e, ERR_INVALID, "line %u: it nests deeper than %u levels",
                         event_line(r), JSON_DEPTH_MAX);
    if (++r->nodes > YAML_NODES_MAX)
        return error_set(r->e, ERR_INVALID, "line %u: the file has more than %u values",
                         event_line(r), YAML_NODES_MAX);
    if (r->event.type == YAML_ALIAS_EVENT)
        return read_alias(r, ret);
    size_t nodes_before = r->nodes - 1;
    cleanup(free_pointer) char *anchor = NULL;
    json_t *json = NULL;
    enum err err = read_content(r, depth, &anchor, &json);
    if (err == ERR_OK && anchor != NULL)
        err = remember_anchor(r, mem_strdup(anchor), json, r->nodes - nodes_before);
    if (err == ERR_OK)
        *ret = json;
    else
        json_decref(json);
    return err;
}

/* ---- functions ---- */

/* Takes json and lines. */
static void file_add(struct function_file *file, json_t *json, json_t *lines, unsigned line)
{
    file->items = mem_resize(file->items, file->count + 1, sizeof(*file->items));
    file->items[file->count++] =
        (struct function_document){.json = json, .lines = lines, .line = line};
}

/* One item of a `functions:` list: its lines stay with those of the whole. */
static void file_add_item(struct function_file *file, json_t *json, json_t *lines, size_t index)
{
    char prefix[DOCUMENT_PREFIX_BYTES_MAX];
    snprintf(prefix, sizeof(prefix), "functions.%zu", index);
    json_int_t line = json_integer_value(json_object_get(lines, prefix));
    file_add(file, json_incref(json), json_incref(lines), (unsigned)line);
    memcpy(file->items[file->count - 1].prefix, prefix, sizeof(prefix));
}

/* A mapping that is one function; `r` has read its start event. */
static enum err read_function(struct reader *r, struct function_file *file)
{
    unsigned line = event_line(r);
    if (r->event.type != YAML_MAPPING_START_EVENT && r->event.type != YAML_ALIAS_EVENT)
        return error_set(r->e, ERR_INVALID, "line %u: a function must be a mapping of its fields",
                         line);
    json_t *json = NULL, *lines = json_object();
    r->lines = lines;
    r->path.bytes = 0;
    enum err err = read_node(r, 1, &json);
    r->lines = NULL;
    if (err == ERR_OK && json_is_object(json)) {
        file_add(file, json, lines, line);
        return ERR_OK;
    }
    json_decref(lines);
    if (err == ERR_OK)
        err = error_set(r->e, ERR_INVALID, "line %u: a function must be a mapping of its fields",
                        line);
    json_decref(json);
    return err;
}

static enum err read_function_list(struct reader *r, struct function_file *file)
{
    enum err err;
    while ((err = next_event(r)) == ERR_OK && r->event.type != YAML_SEQUENCE_END_EVENT) {
        err = read_function(r, file);
        if (err != ERR_OK)
            return err;
    }
    return err;
}

/* After a document was read as one function: when its one key is `functions`, its list is meant. */
static enum err split_functions(struct reader *r, struct function_file *file)
{
    struct function_document whole = file->items[file->count - 1];
    json_t *list = json_object_get(whole.json, "functions");
    if (list == NULL)
        return ERR_OK;
    unsigned line = function_yaml_line(&whole, "functions");
    if (json_object_size(whole.json) != 1)
        return error_set(r->e, ERR_INVALID, "line %u: nothing may stand beside `functions`", line);
    if (!json_is_array(list))
        return error_set(r->e, ERR_INVALID, "line %u: `functions` must be a list", line);
    file->count--;
    enum err err = ERR_OK;
    for (size_t i = 0; i < json_array_size(list) && err == ERR_OK; i++) {
        json_t *item = json_array_get(list, i);
        if (json_is_object(item))
            file_add_item(file, item, whole.lines, i);
        else
            err = error_set(r->e, ERR_INVALID,
                            "line %u: item %zu of `functions` must be a mapping of its fields",
                            line, i + 1);
    }
    json_decref(whole.json);
    json_decref(whole.lines);
    return err;
}

static bool is_empty_document(const struct reader *r)
{
    return r->event.type == YAML_SCALAR_EVENT && r->event.data.scalar.length == 0 &&
           r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* The present event is the first of the document's content. */
static enum err read_document(struct reader *r, struct function_file *file)
{
    if (is_empty_document(r))
        return ERR_OK;
    if (r->event.type == YAML_SEQUENCE_START_EVENT)
        return read_function_list(r, file);
    enum err err = read_function(r, file);
    return err == ERR_OK ? split_functions(r, file) : err;
}

static enum err read_documents(struct reader *r, struct function_file *file)
{
    enum err err;
    while ((err = next_event(r)) == ERR_OK && r->event.type != YAML_STREAM_END_EVENT) {
        if (r->event.type != YAML_DOCUMENT_START_EVENT)
            continue;
        err = next_event(r);
        if (err == ERR_OK)
            err = read_document(r, file);
        if (err != ERR_OK)
            return err;
        anchors_clear(r);
    }
    return err;
}

enum err function_yaml_parse(struct str text, struct function_file *ret_file, struct error *e)
{
    if (text.bytes > YAML_BYTES_MAX)
        return error_set(e, ERR_TOO_LARGE, "the file has %zu bytes, at most %u are read",
                         text.bytes, YAML_BYTES_MAX);
    struct reader r = {.e = e};
    struct function_file file = {0};
    if (!yaml_parser_initialize(&r.parser))
        return error_set(e, ERR_NO_MEMORY, "no memory for the YAML parser");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text.data, text.bytes);
    enum err err = read_documents(&r, &file);
    if (err == ERR_OK && file.count == 0)
        err = error_set(e, ERR_INVALID, "there is no function in the file");
    anchors_clear(&r);
    free(r.anchors);
    buf_done(&r.path);
    drop_event(&r);
    yaml_parser_delete(&r.parser);
    if (err == ERR_OK)
        *ret_file = file;
    else
        function_file_done(&file);
    return err;
}

void function_file_done(struct function_file *file)
{
    for (size_t i = 0; i < file->count; i++) {
        json_decref(file->items[i].json);
        json_decref(file->items[i].lines);
    }
    free(file->items);
    *file = (struct function_file){0};
}

unsigned function_yaml_line(const struct function_document *document, const char *field)
{
    cleanup(buf_done) struct buf path = {0};
    buf_printf(&path, "%s%s%s", document->prefix, document->prefix[0] != '\0' ? "." : "", field);
    while (path.bytes > strlen(document->prefix)) {
        const json_t *line = json_object_getn(document->lines, path.data, path.bytes);
        if (line != NULL)
            return (unsigned)json_integer_value(line);
        while (path.bytes > 0 && path.data[path.bytes - 1] != '.')
            path.bytes--;
        path.bytes -= path.bytes > 0; /* the point */
    }
    return document->line;
}
