/* settings.c - flags over environment over file over defaults, from one table. */
#include "base/settings.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <yaml.h>

#define CONFIG_BYTES_MAX (1u << 20)

static const char *const type_hints[] = {
    "TEXT", "N", "", "DURATION", "SIZE", "ADDRESS:PORT", "ADDRESS:PORT,..."};

/* ---- one value ---- */

static enum err number_with_unit(struct str text, const char *const *units, const uint64_t *factors,
                                 uint64_t *ret_value)
{
    size_t digits = 0;
    while (digits < text.bytes && text.data[digits] >= '0' && text.data[digits] <= '9')
        digits++;
    uint64_t value;
    if (str_to_u64((struct str){text.data, digits}, UINT64_MAX / 2, &value) != ERR_OK)
        return ERR_INVALID;
    struct str unit = {text.data + digits, text.bytes - digits};
    for (size_t i = 0; units[i] != NULL; i++) {
        if (!str_equal(unit, str_of(units[i])))
            continue;
        if (value > UINT64_MAX / 2 / factors[i])
            return ERR_INVALID;
        *ret_value = value * factors[i];
        return ERR_OK;
    }
    return ERR_INVALID;
}

static bool address_is_plausible(struct str text)
{
    struct str rest = text, port = STR_NONE;
    for (size_t i = 0; i < text.bytes; i++)
        if (text.data[i] == ':')
            port = (struct str){text.data + i + 1, text.bytes - i - 1};
    uint64_t number;
    return rest.bytes > 0 && str_to_u64(port, UINT16_MAX, &number) == ERR_OK;
}

static bool addresses_are_plausible(struct str text)
{
    for (;;) {
        size_t bytes = 0;
        while (bytes < text.bytes && text.data[bytes] != ',')
            bytes++;
        if (!address_is_plausible((struct str){text.data, bytes}))
            return false;
        if (bytes == text.bytes)
            return true;
        text = (struct str){text.data + bytes + 1, text.bytes - bytes - 1};
    }
}

static enum err value_set(const struct setting *s, void *values, struct str text,
                          const char *origin, struct error *e)
{
    static const char *const time_units[] = {"ms", "s", "m", "h", NULL};
    static const uint64_t time_factors[] = {1, 1000, 60000, 3600000};
    static const char *const byte_units[] = {"", "Ki", "Mi", "Gi", "Ti", "k", "M", "G", "T", NULL};
    static const uint64_t byte_factors[] = {
        1, KIB, MIB, GIB, GIB * 1024, 1000, 1000000, 1000000000, UINT64_C(1000000000000)};
    void *place = (char *)values + s->offset;
    switch (s->type) {
    case SETTING_ADDRESSES:
        if (text.bytes > 0 && !addresses_are_plausible(text))
            return error_field(e, ERR_USAGE, s->key,
                               "%s: '%.*s' is no ADDRESS:PORT, nor several with commas between",
                               origin, STR_ARG(text));
        free(*(char **)place);
        *(char **)place = mem_strndup(text.bytes > 0 ? text.data : "", text.bytes);
        return ERR_OK;
    case SETTING_ADDRESS:
        if (text.bytes > 0 && !address_is_plausible(text))
            return error_field(e, ERR_USAGE, s->key, "%s: '%.*s' is no ADDRESS:PORT", origin,
                               STR_ARG(text));
        /* fall through */
    case SETTING_STRING:
        free(*(char **)place);
        *(char **)place = mem_strndup(text.bytes > 0 ? text.data : "", text.bytes);
        return ERR_OK;
    case SETTING_UINT:
        if (str_to_u64(text, UINT64_MAX / 2, place) != ERR_OK)
            return error_field(e, ERR_USAGE, s->key, "%s: '%.*s' is no number", origin,
                               STR_ARG(text));
        return ERR_OK;
    case SETTING_BOOL:
        if (str_equal(text, STR("true")) || str_equal(text, STR("1")) ||
            str_equal(text, STR("yes")))
            *(bool *)place = true;
        else if (str_equal(text, STR("false")) || str_equal(text, STR("0")) ||
                 str_equal(text, STR("no")))
            *(bool *)place = false;
        else
            return error_field(e, ERR_USAGE, s->key, "%s: '%.*s' is neither true nor false", origin,
                               STR_ARG(text));
        return ERR_OK;
    case SETTING_MILLIS:
        if (str_equal(text, STR("0")))
            *(uint64_t *)place = 0;
        else if (number_with_unit(text, time_units, time_factors, place) != ERR_OK)
            return error_field(e, ERR_USAGE, s->key,
                               "%s: '%.*s' is no duration such as 500ms, 10s, 2m or 1h", origin,
                               STR_ARG(text));
        return ERR_OK;
    case SETTING_BYTES:
        if (number_with_unit(text, byte_units, byte_factors, place) != ERR_OK)
            return error_field(e, ERR_USAGE, s->key,
                               "%s: '%.*s' is no size such as 1048576, 256Mi or 4Gi", origin,
                               STR_ARG(text));
        return ERR_OK;
    }
    return ERR_INVALID;
}

/* ---- names ---- */

/* Edits to get from a to b (Levenshtein), for "did you mean". */
static size_t edit_distance(struct str a, struct str b)
{
    size_t row[65];
    if (a.bytes > 64 || b.bytes > 64)
        return SIZE_MAX;
    for (size_t j = 0; j <= b.bytes; j++)
        row[j] = j;
    for (size_t i = 1; i <= a.bytes; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.bytes; j++) {
            size_t change = diagonal + (a.data[i - 1] != b.data[j - 1]);
            diagonal = row[j];
            row[j] = MIN(change, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[b.bytes];
}

/* "stop-grace" and "STOP_GRACE" are the key "stop_grace". */
static void key_of(struct str name, char *ret_key, size_t bytes)
{
    size_t i = 0;
    for (; i < name.bytes && i + 1 < bytes; i++)
        ret_key[i] = name.data[i] == '-' ? '_' : (char)tolower((unsigned char)name.data[i]);
    ret_key[i] = '\0';
}

static const struct setting *find(const struct setting *table, size_t count, struct str name)
{
    char key[128];
    key_of(name, key, sizeof(key));
    for (size_t i = 0; i < count; i++)
        if (strcmp(table[i].key, key) == 0)
            return &table[i];
    return NULL;
}

static void flag_of(const struct setting *s, char *ret_flag, size_t bytes)
{
    (void)snprintf(ret_flag, bytes, "--%s", s->key);
    for (char *c = ret_flag; *c != '\0'; c++)
        if (*c == '_')
            *c = '-';
}

static enum err unknown(const struct setting *table, size_t count, struct str name,
                        const char *what, struct error *e)
{
    char key[128], flag[128];
    key_of(name, key, sizeof(key));
    const struct setting *nearest = NULL;
    size_t least = 4;
    for (size_t i = 0; i < count; i++) {
        size_t distance = edit_distance(str_of(key), str_of(table[i].key));
        if (distance < least) {
            least = distance;
            nearest = &table[i];
        }
    }
    if (nearest == NULL)
        return error_field(e, ERR_USAGE, key, "%s is not known; --help lists what is", what);
    flag_of(nearest, flag, sizeof(flag));
    return error_field(e, ERR_USAGE, key, "%s is not known; did you mean %s?", what, flag);
}

/* ---- sources ---- */

static enum err load_defaults(const struct setting *table, size_t count, void *values,
                              struct error *e)
{
    for (size_t i = 0; i < count; i++) {
        enum err err = value_set(&table[i], values, str_of(table[i].default_text), table[i].key, e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

static enum err load_environment(const struct setting *table, size_t count, void *values,
                                 struct error *e)
{
    for (size_t i = 0; i < count; i++) {
        char name[128] = "DIRIGENT_";
        for (size_t j = 0; table[i].key[j] != '\0' && j + 10 < sizeof(name); j++) {
            name[9 + j] = (char)toupper((unsigned char)table[i].key[j]);
            name[10 + j] = '\0';
        }
        const char *text = getenv(name);
        if (text == NULL)
            continue;
        enum err err = value_set(&table[i], values, str_of(text), name, e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

static enum err load_document(const struct setting *table, size_t count, const char *path,
                              yaml_document_t *document, void *values, struct error *e)
{
    yaml_node_t *root = yaml_document_get_root_node(document);
    if (root == NULL)
        return ERR_OK; /* an empty file says nothing */
    if (root->type != YAML_MAPPING_NODE)
        return error_set(e, ERR_USAGE, "'%s': not a mapping of settings", path);
    for (yaml_node_pair_t *pair = root->data.mapping.pairs.start;
         pair < root->data.mapping.pairs.top; pair++) {
        yaml_node_t *key = yaml_document_get_node(document, pair->key);
        yaml_node_t *value = yaml_document_get_node(document, pair->value);
        char origin[512];
        if (key->type != YAML_SCALAR_NODE)
            return error_set(e, ERR_USAGE, "'%s' line %zu: a key that is no text", path,
                             key->start_mark.line + 1);
        struct str name = {(const char *)key->data.scalar.value, key->data.scalar.length};
        (void)snprintf(origin, sizeof(origin), "'%s' line %zu: %.*s", path,
                       key->start_mark.line + 1, STR_ARG(name));
        const struct setting *s = find(table, count, name);
        if (s == NULL)
            return unknown(table, count, name, origin, e);
        if (value->type != YAML_SCALAR_NODE)
            return error_field(e, ERR_USAGE, s->key, "%s: needs a single value", origin);
        enum err err = value_set(
            s, values,
            (struct str){(const char *)value->data.scalar.value, value->data.scalar.length}, origin,
            e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

static enum err load_file(const struct setting *table, size_t count, const char *path, void *values,
                          struct error *e)
{
    char *text;
    size_t bytes;
    enum err err = file_read(path, CONFIG_BYTES_MAX, &text, &bytes, e);
    if (err != ERR_OK)
        return err;
    yaml_parser_t parser;
    yaml_document_t document;
    if (!yaml_parser_initialize(&parser))
        abort();
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    if (yaml_parser_load(&parser, &document)) {
        err = load_document(table, count, path, &document, values, e);
        yaml_document_delete(&document);
    } else {
        err = error_set(e, ERR_USAGE, "'%s' line %zu: %s", path, parser.problem_mark.line + 1,
                        parser.problem != NULL ? parser.problem : "not YAML");
    }
    yaml_parser_delete(&parser);
    free(text);
    return err;
}

/* Walks the flags: with `values` NULL it only looks for --help and --config. */
static enum err load_flags(const struct setting *table, size_t count, int argc, char **argv,
                           void *values, const char **config, bool *help, struct error *e)
{
    for (int i = 1; i < argc; i++) {
        struct str flag = str_of(argv[i]), text;
        if (str_equal(flag, STR("--help")) || str_equal(flag, STR("-h"))) {
            *help = true;
            continue;
        }
        if (!str_has_prefix(flag, STR("--")))
            return error_set(e, ERR_USAGE, "'%s' is not expected here", argv[i]);
        struct str name = str_split((struct str){flag.data + 2, flag.bytes - 2}, '=', &text);
        bool is_config = str_equal(name, STR("config"));
        const struct setting *s = find(table, count, name);
        char origin[160];
        (void)snprintf(origin, sizeof(origin), "--%.*s", STR_ARG(name));
        if (s == NULL && !is_config)
            return unknown(table, count, name, origin, e);
        if (text.data == NULL && s != NULL && s->type == SETTING_BOOL)
            text = STR("true");
        if (text.data == NULL) {
            if (i + 1 == argc)
                return error_set(e, ERR_USAGE, "%s needs a value", origin);
            text = str_of(argv[++i]);
        }
        if (is_config)
            *config = text.data;
        if (s == NULL || values == NULL)
            continue;
        enum err err = value_set(s, values, text, origin, e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

static void print_help(const char *program, const char *summary, const struct setting *table,
                       size_t count)
{
    printf("usage: dirigent %s [flags]\n\n%s\n\nflags (each also as DIRIGENT_<KEY> in the "
           "environment, or as "
           "<key>: in the file of --config):\n",
           program, summary);
    for (size_t i = 0; i < count; i++) {
        char flag[128], left[192];
        flag_of(&table[i], flag, sizeof(flag));
        (void)snprintf(left, sizeof(left), "%s %s", flag, type_hints[table[i].type]);
        printf("  %-34s %s", left, table[i].help);
        if (table[i].default_text[0] != '\0')
            printf(" (%s)", table[i].default_text);
        printf("\n");
    }
    printf("  %-34s %s\n", "--config FILE", "YAML file with any of these");
}

enum err settings_load(const char *program, const char *summary, const struct setting *table,
                       size_t count, int argc, char **argv, void *values, struct error *e)
{
    const char *config = getenv("DIRIGENT_CONFIG");
    bool help = false;
    enum err err = load_flags(table, count, argc, argv, NULL, &config, &help, e);
    if (help) {
        print_help(program, summary, table, count);
        return ERR_END;
    }
    if (err == ERR_OK)
        err = load_defaults(table, count, values, e);
    if (err == ERR_OK && config != NULL)
        err = load_file(table, count, config, values, e);
    if (err == ERR_OK)
        err = load_environment(table, count, values, e);
    if (err == ERR_OK)
        err = load_flags(table, count, argc, argv, values, &config, &help, e);
    return err;
}

void settings_done(const struct setting *table, size_t count, void *values)
{
    for (size_t i = 0; i < count; i++) {
        if (table[i].type != SETTING_STRING && table[i].type != SETTING_ADDRESS &&
            table[i].type != SETTING_ADDRESSES)
            continue;
        char **text = (char **)((char *)values + table[i].offset);
        free(*text);
        *text = NULL;
    }
}
