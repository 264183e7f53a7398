/* up_settings.c - one table out of four. */
#include "cli/up_settings.h"
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SETTING(k, t, d, h) {#k, SETTING_##t, d, h, 0},
static const struct setting own_rows[] = {
#include "cli/up_settings.def"
};
static const struct setting control_plane_rows[] = {
#include "control_plane/control_plane_settings.def"
};
static const struct setting worker_rows[] = {
#include "worker/worker_settings.def"
};
static const struct setting data_plane_rows[] = {
#include "data_plane/data_plane_settings.def"
};
#undef SETTING

static const struct {
    const char *name;
    const struct setting *rows;
    size_t count;
} parts[UP_PART_COUNT] = {
    [UP_CONTROL_PLANE] = {"control-plane", control_plane_rows, ARRAY_COUNT(control_plane_rows)},
    [UP_WORKER] = {"worker", worker_rows, ARRAY_COUNT(worker_rows)},
    [UP_DATA_PLANE] = {"data-plane", data_plane_rows, ARRAY_COUNT(data_plane_rows)},
};

/* What `up` knows under another name: the others find the control plane where it listens, and what
 * has the same name in several programs but cannot have the same value bears the program's. */
static const struct {
    enum up_part part;
    const char *key, *ours;
} renamed[] = {
    {UP_WORKER, "control_plane", "cluster"},  {UP_DATA_PLANE, "control_plane", "cluster"},
    {UP_WORKER, "name", "worker_name"},       {UP_DATA_PLANE, "name", "data_plane_name"},
    {UP_WORKER, "address", "worker_address"}, {UP_DATA_PLANE, "address", "data_plane_address"},
    {UP_WORKER, "metrics", "worker_metrics"}, {UP_DATA_PLANE, "metrics", "data_plane_metrics"},
};

static const char *our_key(enum up_part part, const char *key)
{
    for (size_t i = 0; i < ARRAY_COUNT(renamed); i++)
        if (renamed[i].part == part && strcmp(renamed[i].key, key) == 0)
            return renamed[i].ours;
    return key;
}

const char *up_part_name(enum up_part part)
{
    return parts[part].name;
}

/* ---- table ---- */

static const struct setting *find(const struct up_settings *s, const char *key)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->table[i].key, key) == 0)
            return &s->table[i];
    return NULL;
}

static void add_row(struct up_settings *s, const struct setting *row, const char *key)
{
    if (find(s, key) != NULL)
        return;
    s->table = mem_resize(s->table, s->count + 1, sizeof(*s->table));
    s->table[s->count] = *row;
    s->table[s->count].key = key;
    s->table[s->count].offset = s->count * sizeof(*s->values);
    s->count++;
}

enum err up_settings_load(int argc, char **argv, struct up_settings *ret_settings, struct error *e)
{
    static_assert(sizeof(char *) <= sizeof(uint64_t), "a text's pointer fits a place");
    struct up_settings s = {0};
    for (size_t i = 0; i < ARRAY_COUNT(own_rows); i++)
        add_row(&s, &own_rows[i], own_rows[i].key);
    for (size_t part = 0; part < UP_PART_COUNT; part++)
        for (size_t i = 0; i < parts[part].count; i++)
            add_row(&s, &parts[part].rows[i], our_key((enum up_part)part, parts[part].rows[i].key));
    s.values = mem_new_array(s.count, sizeof(*s.values));
    enum err err = settings_load(
        "up",
        "Starts everything on this machine: a control plane, a worker and a data plane, as "
        "processes of their\n"
        "own, and keeps them running. Ctrl-C stops everything and leaves nothing behind.",
        s.table, s.count, argc, argv, s.values, e);
    *ret_settings = s;
    return err;
}

void up_settings_done(struct up_settings *s)
{
    if (s->values != NULL)
        settings_done(s->table, s->count, s->values);
    free(s->values);
    free(s->table);
    *s = (struct up_settings){0};
}

static const void *place_of(const struct up_settings *s, const struct setting *row)
{
    return (const char *)s->values + row->offset;
}

const char *up_settings_text(const struct up_settings *s, const char *key)
{
    const struct setting *row = find(s, key);
    assert(row != NULL && (row->type == SETTING_STRING || row->type == SETTING_ADDRESS));
    return *(char *const *)place_of(s, row);
}

uint64_t up_settings_number(const struct up_settings *s, const char *key)
{
    const struct setting *row = find(s, key);
    assert(row != NULL);
    return *(const uint64_t *)place_of(s, row);
}

void up_settings_set_text(struct up_settings *s, const char *key, const char *text)
{
    const struct setting *row = find(s, key);
    assert(row != NULL && (row->type == SETTING_STRING || row->type == SETTING_ADDRESS));
    char **place = (char **)((char *)s->values + row->offset);
    char *old = *place;
    *place = mem_strdup(text);
    free(old);
}

/* ---- what the programs are told ---- */

struct unit {
    const char *name;
    uint64_t factor;
};
static const struct unit time_units[] = {{"h", 3600000}, {"m", 60000}, {"s", 1000}, {"ms", 1}};
static const struct unit byte_units[] = {
    {"Ti", GIB * 1024}, {"Gi", GIB}, {"Mi", MIB}, {"Ki", KIB}, {"", 1}};

/* In the largest unit that leaves a whole number: as defaults are written, mostly. */
static char *scaled_text(uint64_t value, const struct unit *units, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (value % units[i].factor == 0 && value >= units[i].factor)
            return mem_printf("%" PRIu64 "%s", value / units[i].factor, units[i].name);
    return mem_strdup("0");
}

static char *value_text(const struct up_settings *s, const struct setting *row)
{
    const void *place = place_of(s, row);
    switch (row->type) {
    case SETTING_STRING:
    case SETTING_ADDRESS:
    case SETTING_ADDRESSES:
        return mem_strdup(*(char *const *)place);
    case SETTING_BOOL:
        return mem_strdup(*(const bool *)place ? "true" : "false");
    case SETTING_MILLIS:
        return scaled_text(*(const uint64_t *)place, time_units, ARRAY_COUNT(time_units));
    case SETTING_BYTES:
        return scaled_text(*(const uint64_t *)place, byte_units, ARRAY_COUNT(byte_units));
    case SETTING_UINT:
        return mem_printf("%" PRIu64, *(const uint64_t *)place);
    }
    return NULL;
}

static bool is_own(const char *key)
{
    for (size_t i = 0; i < ARRAY_COUNT(own_rows); i++)
        if (strcmp(own_rows[i].key, key) == 0)
            return true;
    return false;
}

char *up_settings_flag(const char *key)
{
    char *flag = mem_printf("--%s", key);
    for (char *c = flag; *c != '\0'; c++)
        if (*c == '_')
            *c = '-';
    return flag;
}

/* One listens on all addresses, but connects to one. */
static void reach_locally(char **address)
{
    const char *port = strrchr(*address, ':');
    if (port == NULL || (!str_has_prefix(str_of(*address), STR("0.0.0.0:")) &&
                         !str_has_prefix(str_of(*address), STR("[::]:"))))
        return;
    char *local = mem_printf("127.0.0.1%s", port);
    free(*address);
    *address = local;
}

char **up_part_arguments(const struct up_settings *s, enum up_part part)
{
    char **arguments = mem_new_array(2 * parts[part].count + 3, sizeof(*arguments));
    size_t n = 0;
    arguments[n++] = mem_strdup("dirigent");
    arguments[n++] = mem_strdup(parts[part].name);
    for (size_t i = 0; i < parts[part].count; i++) {
        const struct setting *theirs = &parts[part].rows[i];
        const struct setting *ours = find(s, our_key(part, theirs->key));
        cleanup(free_pointer) char *text = value_text(s, ours);
        if (strcmp(theirs->key, "control_plane") == 0)
            reach_locally(&text);
        cleanup(free_pointer) char *flag = up_settings_flag(theirs->key);
        if (!is_own(ours->key) && strcmp(text, theirs->default_text) == 0)
            continue;                     /* the program takes it without being told */
        if (ours->type == SETTING_BOOL) { /* a flag's value needs the `=` */
            arguments[n++] = mem_printf("%s=%s", flag, text);
            continue;
        }
        arguments[n++] = mem_strdup(flag);
        arguments[n++] = mem_strdup(text);
    }
    return arguments;
}

void arguments_free(char **arguments)
{
    for (size_t i = 0; arguments[i] != NULL; i++)
        free(arguments[i]);
    free(arguments);
}

void up_settings_clear_environment(const struct up_settings *s)
{
    (void)unsetenv("DIRIGENT_CONFIG");
    for (size_t i = 0; i < s->count; i++) {
        cleanup(free_pointer) char *name = mem_printf("DIRIGENT_%s", s->table[i].key);
        for (char *c = name; *c != '\0'; c++)
            *c = (char)toupper((unsigned char)*c);
        (void)unsetenv(name);
    }
}
