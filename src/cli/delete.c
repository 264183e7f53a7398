/* delete.c - `dirigent delete`: functions with all their sandboxes. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/style.h"
#include <stdio.h>

static enum err delete_one(struct client *c, const char *name, json_t *results, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("/v1/functions/%s", name);
    json_t *answer = NULL;
    enum err err = client_send(c, "DELETE", path, NULL, &answer, e);
    if (err == ERR_OK)
        json_array_append_new(results, answer);
    return err;
}

static enum err run_delete(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    enum err result = ERR_OK;
    for (size_t i = 0; i < in->argument_count; i++)
        if (client_check_name(in->arguments[i], e) != ERR_OK)
            return ERR_USAGE;
    enum err err = client_open(&c, in, e);
    if (err != ERR_OK)
        return err;
    json_t *results = json_array();
    for (size_t i = 0; i < in->argument_count; i++) {
        struct error one = {0};
        err = delete_one(&c, in->arguments[i], results, &one);
        if (err == ERR_OK && format == OUTPUT_TABLE)
            printf("%s deleted\n", in->arguments[i]);
        if (err == ERR_OK)
            continue;
        style_print_error(&one);
        result = result == ERR_OK ? err : result;
        if (err == ERR_UNREACHABLE)
            break;
    }
    json_t *list = json_pack("{s:o}", "items", results);
    if (format != OUTPUT_TABLE)
        output_json(stdout, format, list);
    json_decref(list);
    return result;
}

const struct command command_delete = {.name = "delete",
                                       .alias = "rm",
                                       .arguments = "NAME...",
                                       .group = GROUP_DEPLOY,
                                       .summary = "remove functions with their sandboxes",
                                       .arguments_min = 1,
                                       .arguments_max = SIZE_MAX,
                                       .is_client = true,
                                       .has_output = true,
                                       .run = run_delete};
