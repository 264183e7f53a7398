/* guess.h - what command runs a directory, when nobody says. Pure. */
#pragma once
#include "base/base.h"

/* Asks about files of the top directory. */
typedef bool guess_has_file(void *user, const char *path, bool *ret_executable);
/* A new text such as "python3 app.py" and, in *ret_because, the file that made us think so; NULL
 * when nothing fits. `procfile` is the text of a Procfile or NULL: its `web:` line comes first. */
char *guess_command(guess_has_file *has_file, void *user, const char *procfile,
                    const char **ret_because);
