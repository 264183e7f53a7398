/* ignore.h - which files of a directory are left out of an upload: a .dirigentignore, written like
 * a .gitignore. Pure; any thread.
 *
 * One pattern a line; `#` begins a comment, `!` takes back what an earlier line left out, a `/` at
 * the end matches directories only, a `/` at the beginning or inside ties the pattern to the top
 * directory, otherwise it matches a name at any depth. `*` and `?` stop at `/`; a leading `**` and
 * `/` match at any depth, a trailing
 * `/` and `**` everything below. The last line that matches counts. What is below a directory that
 * is left out is not looked at. Built in, before the file's own lines: version control, editors'
 * and Python's leavings. */
#pragma once
#include "base/base.h"
#include "base/str.h"

struct ignore_rules; /* owned by whoever made it */
struct ignore_rules *ignore_rules_new(struct str text);
void ignore_rules_free(struct ignore_rules *rules);
/* `path` is relative to the top, without "./" in front: "src/app.py". */
bool ignore_rules_match(const struct ignore_rules *rules, const char *path, bool is_directory);
