/* logs.c - `dirigent logs`: what a function's sandboxes wrote. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/log_line.h"
#include "cli/style.h"
#include "function/function.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOGS_DEADLINE_MS (10u * 60u * 1000u)
#define FOLLOW_DEADLINE_MS UINT64_C(31536000000) /* a year: until Ctrl-C */
#define LINE_BYTES_MAX MIB

struct logs_values {
    bool follow, timestamps, plain, raw;
    const char *since, *lines, *sandbox;
};
static const struct option options[] = {
    {"follow", 'f', OPTION_FLAG, "", "go on with what comes", offsetof(struct logs_values, follow)},
    {"since", 0, OPTION_TEXT, "DURATION", "only what is newer: 10m",
     offsetof(struct logs_values, since)},
    {"lines", 'n', OPTION_TEXT, "N", "only the newest lines of each worker",
     offsetof(struct logs_values, lines)},
    {"sandbox", 0, OPTION_TEXT, "ID", "only this sandbox, as `dirigent ps` names it",
     offsetof(struct logs_values, sandbox)},
    {"timestamps", 't', OPTION_FLAG, "", "the time in front",
     offsetof(struct logs_values, timestamps)},
    {"plain", 0, OPTION_FLAG, "", "only what was written, without the sandbox in front",
     offsetof(struct logs_values, plain)},
    {"raw", 0, OPTION_FLAG, "", "lines as they are kept", offsetof(struct logs_values, raw)},
};

struct printer {
    const struct logs_values *values;
    struct buf pending; /* an unfinished line */
    bool in_partial;    /* the line before goes on */
    char partial_of[32];
};

/* One colour for each sandbox, always the same. */
static enum style style_of_sandbox(struct str id)
{
    static const enum style styles[] = {STYLE_CYAN, STYLE_YELLOW, STYLE_GREEN};
    return styles[str_hash(id) % ARRAY_COUNT(styles)];
}

static void print_line(struct printer *p, struct str line)
{
    struct log_line l;
    if (p->values->raw || log_line_parse(line, &l) != ERR_OK) {
        (void)fwrite(line.data, 1, line.bytes, stdout);
        fputc('\n', stdout);
        return;
    }
    if (p->values->sandbox != NULL && l.sandbox.bytes > 0 &&
        !str_equal(l.sandbox, str_of(p->values->sandbox)))
        return;
    bool goes_on = p->in_partial && str_equal(l.sandbox, str_of(p->partial_of));
    if (p->in_partial && !goes_on)
        fputc('\n', stdout);
    if (!goes_on && l.sandbox.bytes > 0 && !p->values->plain)
        printf("%s%.*s%s ", style_begin(stdout, style_of_sandbox(l.sandbox)), STR_ARG(l.sandbox),
               style_end(stdout));
    if (!goes_on && p->values->timestamps)
        printf("%s%.*s%s ", style_begin(stdout, STYLE_DIM), STR_ARG(l.time), style_end(stdout));
    (void)fwrite(l.text.data, 1, l.text.bytes, stdout);
    p->in_partial = l.is_partial;
    (void)snprintf(p->partial_of, sizeof(p->partial_of), "%.*s", STR_ARG(l.sandbox));
    if (!l.is_partial)
        fputc('\n', stdout);
}

static bool on_data(void *user, const char *data, size_t bytes)
{
    struct printer *p = user;
    buf_append(&p->pending, data, bytes);
    size_t used = 0;
    for (;;) {
        const char *line = p->pending.data + used;
        const char *end = memchr(line, '\n', p->pending.bytes - used);
        if (end == NULL)
            break;
        print_line(p, (struct str){line, (size_t)(end - line)});
        used += (size_t)(end - line) + 1;
    }
    buf_consume(&p->pending, used);
    (void)fflush(stdout);
    return !ferror(stdout) && p->pending.bytes < LINE_BYTES_MAX;
}

static enum err make_path(const struct command_input *in, char **ret_path, struct error *e)
{
    const struct logs_values *v = in->values;
    struct error inner = {0};
    uint32_t ms;
    uint64_t lines;
    struct buf path = {0};
    enum err err = client_check_name(in->arguments[0], e);
    if (err != ERR_OK)
        return err;
    if (v->since != NULL && parse_duration_ms(str_of(v->since), &ms, &inner) != ERR_OK)
        return error_set(e, ERR_USAGE, "--since: %s", inner.text);
    if (v->lines != NULL && str_to_u64(str_of(v->lines), UINT32_MAX, &lines) != ERR_OK)
        return error_set(e, ERR_USAGE, "--lines: '%s' is no number of lines", v->lines);
    buf_printf(&path, "/v1/functions/%s/logs?follow=%d", in->arguments[0], v->follow);
    if (v->since != NULL)
        buf_printf(&path, "&since=%" PRIu32 "ms", ms);
    if (v->lines != NULL)
        buf_printf(&path, "&lines=%" PRIu64, lines);
    *ret_path = buf_take_text(&path);
    return ERR_OK;
}

static enum err run_logs(const struct command_input *in, struct error *e)
{
    const struct logs_values *v = in->values;
    struct printer printer = {.values = v};
    cleanup(client_done) struct client c = {0};
    cleanup(answer_done) struct answer answer = {0};
    cleanup(free_pointer) char *path = NULL;
    enum err err = make_path(in, &path, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err != ERR_OK)
        return err;
    struct client_call call = {.method = "GET",
                               .path = path,
                               .on_data = on_data,
                               .user = &printer,
                               .deadline_ms = v->follow ? FOLLOW_DEADLINE_MS : LOGS_DEADLINE_MS};
    err = client_call(&c, &call, &answer, e);
    if (err == ERR_OK && (answer.status < 200 || answer.status > 299))
        err = answer_check(&c, &answer, e);
    if (printer.pending.bytes > 0)
        print_line(&printer, buf_str(&printer.pending));
    if (printer.in_partial)
        fputc('\n', stdout);
    buf_done(&printer.pending);
    return err;
}

const struct command command_logs = {
    .name = "logs",
    .arguments = "NAME",
    .group = GROUP_LOOK,
    .summary = "what a function's sandboxes wrote, also those that are gone",
    .arguments_min = 1,
    .arguments_max = 1,
    .options = options,
    .option_count = ARRAY_COUNT(options),
    .values_bytes = sizeof(struct logs_values),
    .is_client = true,
    .run = run_logs};
