/* log_line.h - one line of a sandbox's output as the API gives it: `[SANDBOX ]TIME STREAM FLAG
 * TEXT`, SANDBOX 16 hex digits when there are several, FLAG `F` or `P` (the line goes on in the
 * next one). Pure. */
#pragma once
#include "base/base.h"
#include "base/str.h"

struct log_line {
    struct str sandbox; /* "" when it is not told */
    struct str time, stream, text;
    bool is_partial;
};
/* ERR_INVALID: not such a line. */
must_check enum err log_line_parse(struct str line, struct log_line *ret_line);
