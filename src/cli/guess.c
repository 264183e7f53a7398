/* guess.c - the usual names of programs, the most explicit first. */
#include "cli/guess.h"
#include "base/str.h"
#include <string.h>

static const struct {
    const char *file, *command;
    bool needs_executable;
} rules[] = {
    {"bootstrap", "./bootstrap", true},        {"server", "./server", true},
    {"app.py", "python3 app.py", false},       {"main.py", "python3 main.py", false},
    {"server.py", "python3 server.py", false}, {"server.js", "node server.js", false},
    {"index.js", "node index.js", false},      {"app.js", "node app.js", false},
    {"server.mjs", "node server.mjs", false},  {"index.mjs", "node index.mjs", false},
    {"app.rb", "ruby app.rb", false},          {"run.sh", "./run.sh", true},
};

/* A Procfile's lines are for a shell ("--port $PORT"), ours are not: what a shell would change is
 * given to one. */
static char *as_command(struct str line)
{
    struct buf out = {0};
    bool needs_shell = false;
    for (size_t i = 0; i < line.bytes; i++)
        needs_shell |= strchr("$`|&;<>()*?[]~#", line.data[i]) != NULL;
    if (!needs_shell)
        return mem_strndup(line.data, line.bytes);
    buf_append_str(&out, STR("sh -c 'exec "));
    for (size_t i = 0; i < line.bytes; i++) {
        if (line.data[i] == '\'')
            buf_append_str(&out, STR("'\\''"));
        else
            buf_append(&out, &line.data[i], 1);
    }
    buf_append_str(&out, STR("'"));
    return buf_take_text(&out);
}

static char *web_line(const char *procfile)
{
    struct str rest = str_of(procfile);
    while (rest.data != NULL) {
        struct str line = str_trim(str_split(rest, '\n', &rest));
        if (!str_has_prefix(line, STR("web:")))
            continue;
        line = str_trim((struct str){line.data + 4, line.bytes - 4});
        while (line.bytes > 0 && line.data[line.bytes - 1] == '\r')
            line.bytes--;
        if (line.bytes > 0)
            return as_command(line);
    }
    return NULL;
}

char *guess_command(guess_has_file *has_file, void *user, const char *procfile,
                    const char **ret_because)
{
    char *command = procfile != NULL ? web_line(procfile) : NULL;
    if (command != NULL) {
        *ret_because = "Procfile";
        return command;
    }
    for (size_t i = 0; i < ARRAY_COUNT(rules); i++) {
        bool executable = false;
        if (!has_file(user, rules[i].file, &executable) ||
            (rules[i].needs_executable && !executable))
            continue;
        *ret_because = rules[i].file;
        return mem_strdup(rules[i].command);
    }
    return NULL;
}
