/* settings.h - one table per program gives its flags, environment variables, YAML keys, --help text
 * and checks. Order of precedence: flag, then environment (DIRIGENT_ + key in capitals), then the
 * YAML file of --config, then the default. Used in main() before threads start.
 *
 * A program declares its settings once, in `<program>_settings.def`:
 *   SETTING(stop_grace, MILLIS, "10s", "time between SIGTERM and SIGKILL")
 * key `stop_grace` is flag --stop-grace, environment DIRIGENT_STOP_GRACE, YAML `stop_grace:`. */
#pragma once
#include "base/base.h"
#include "base/str.h"

enum setting_type {
    SETTING_STRING,    /* char *, owned by the struct; "" when unset */
    SETTING_UINT,      /* uint64_t */
    SETTING_BOOL,      /* bool; flag alone means true */
    SETTING_MILLIS,    /* uint64_t milliseconds; "10s", "500ms", "2m" */
    SETTING_BYTES,     /* uint64_t; "256Mi" */
    SETTING_ADDRESS,   /* char *, "ip:port", checked */
    SETTING_ADDRESSES, /* char *, one or more of them with commas between, checked */
};
struct setting {
    const char *key;
    enum setting_type type;
    const char *default_text;
    const char *help;
    size_t offset; /* of the value in the program's settings struct */
};
/* Reads argv (after the subcommand), environment and file into `values`. Unknown flags and keys are
 * refused with the nearest known name. --help prints usage to stdout and returns ERR_END. Errors
 * name the flag, variable or key. Positional arguments are refused. */
must_check enum err settings_load(const char *program, const char *summary,
                                  const struct setting *table, size_t count, int argc, char **argv,
                                  void *values, struct error *e);
void settings_done(const struct setting *table, size_t count, void *values);

/* How a .def becomes struct and table:
 *   struct worker_settings { SETTINGS_FIELDS };
 * with, in the .c:   #define SETTING(k, t, d, h) SETTING_FIELD_##t(k)   and so on. */
#define SETTING_FIELD_STRING(k) char *k;
#define SETTING_FIELD_UINT(k) uint64_t k;
#define SETTING_FIELD_BOOL(k) bool k;
#define SETTING_FIELD_MILLIS(k) uint64_t k;
#define SETTING_FIELD_BYTES(k) uint64_t k;
#define SETTING_FIELD_ADDRESS(k) char *k;
#define SETTING_FIELD_ADDRESSES(k) char *k;
#define SETTING_ROW(structure, k, t, d, h) {#k, SETTING_##t, d, h, offsetof(structure, k)},
