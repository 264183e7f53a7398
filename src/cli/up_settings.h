/* up_settings.h - the settings of `up`: its own, and those of the three programs that it starts, of
 * which each is passed on to the programs that know it. */
#pragma once
#include "base/settings.h"

enum up_part { UP_CONTROL_PLANE, UP_WORKER, UP_DATA_PLANE, UP_PART_COUNT };

struct up_settings { /* up_settings_done() */
    struct setting *table;
    size_t count;
    uint64_t *values; /* one place for each row, of whatever type */
};
must_check enum err up_settings_load(int argc, char **argv, struct up_settings *ret_settings,
                                     struct error *e);
void up_settings_done(struct up_settings *s);
const char *up_settings_text(const struct up_settings *s, const char *key);
uint64_t up_settings_number(const struct up_settings *s, const char *key);
void up_settings_set_text(struct up_settings *s, const char *key, const char *text);

/* The name of a part's subcommand and directory: "control-plane". */
const char *up_part_name(enum up_part part);
/* argv of a part, NULL-terminated: {"dirigent", "worker", "--data-dir", …}. The caller frees each
 * and the array. */
char **up_part_arguments(const struct up_settings *s, enum up_part part);
/* "data_dir" -> "--data-dir"; the caller's to free. */
char *up_settings_flag(const char *key) must_check;
void arguments_free(char **arguments);
/* Takes out of the environment what has been read from it: the programs are told by flags. */
void up_settings_clear_environment(const struct up_settings *s);
