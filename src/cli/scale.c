/* scale.c - `dirigent scale`: how many sandboxes a function may have; no new version. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/spec_flags.h"
#include "function/function.h"
#include <stdio.h>

struct scale_values {
    struct spec_flags s;
};
static const struct option options[] = {
    SPEC_OPTION_ROW(scale_values, "min", 0, "N", "sandboxes kept running", min),
    SPEC_OPTION_ROW(scale_values, "max", 0, "N", "most sandboxes", max),
    SPEC_OPTION_ROW(scale_values, "concurrency", 0, "N",
                    "requests a sandbox takes at once, 0: no limit", concurrency),
};

static enum err run_scale(const struct command_input *in, struct error *e)
{
    const struct scale_values *v = in->values;
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *patch = NULL, *function = NULL;
    if (v->s.min == NULL && v->s.max == NULL && v->s.concurrency == NULL)
        return error_set(e, ERR_USAGE, "scale to what? --min N, --max N, --concurrency N");
    enum err err = client_check_name(in->arguments[0], e);
    if (err == ERR_OK)
        err = spec_flags_to_json(&v->s, &patch, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    cleanup(free_pointer) char *path = mem_printf("/v1/functions/%s", in->arguments[0]);
    if (err == ERR_OK)
        err = client_send(&c, "PATCH", path, patch, &function, e);
    if (err == ERR_OK && format != OUTPUT_TABLE)
        output_json(stdout, format, function);
    else if (err == ERR_OK)
        printf("%s %s: min %" PRIu64 ", max %" PRIu64 ", concurrency %" PRIu64 "\n",
               json_text(function, "name"), json_text(function, "change"),
               json_number(function, "min"), json_number(function, "max"),
               json_number(function, "concurrency"));
    json_decref(patch);
    json_decref(function);
    return err;
}

const struct command command_scale = {.name = "scale",
                                      .arguments = "NAME",
                                      .group = GROUP_DEPLOY,
                                      .summary = "change how many sandboxes a function may have",
                                      .details = "  dirigent scale hello --min 2 --max 20",
                                      .arguments_min = 1,
                                      .arguments_max = 1,
                                      .options = options,
                                      .option_count = ARRAY_COUNT(options),
                                      .values_bytes = sizeof(struct scale_values),
                                      .is_client = true,
                                      .has_output = true,
                                      .run = run_scale};
