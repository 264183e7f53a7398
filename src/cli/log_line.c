/* log_line.c - the Kubernetes CRI log format with an id before it. */
#include "cli/log_line.h"

#define SANDBOX_ID_BYTES 16u

static bool is_sandbox_id(struct str word)
{
    for (size_t i = 0; i < word.bytes; i++)
        if (memchr("0123456789abcdef", word.data[i], 16) == NULL)
            return false;
    return word.bytes == SANDBOX_ID_BYTES;
}

enum err log_line_parse(struct str line, struct log_line *ret_line)
{
    struct log_line l = {.sandbox = STR("")};
    struct str rest, word = str_split(line, ' ', &rest);
    if (is_sandbox_id(word)) {
        l.sandbox = word;
        if (rest.data == NULL)
            return ERR_INVALID;
        word = str_split(rest, ' ', &rest);
    }
    l.time = word;
    if (rest.data == NULL || word.bytes < sizeof("2026-01-02T03:04:05Z") - 1 ||
        word.data[4] != '-' || word.data[10] != 'T')
        return ERR_INVALID;
    l.stream = str_split(rest, ' ', &rest);
    if (rest.data == NULL ||
        (!str_equal(l.stream, STR("stdout")) && !str_equal(l.stream, STR("stderr"))))
        return ERR_INVALID;
    struct str flag = str_split(rest, ' ', &rest);
    if (!str_equal(flag, STR("F")) && !str_equal(flag, STR("P")))
        return ERR_INVALID;
    l.is_partial = flag.data[0] == 'P';
    l.text = rest.data != NULL ? rest : STR("");
    *ret_line = l;
    return ERR_OK;
}
