/* api_keys.c - `dirigent api-key create|list|remove`: who may use the API. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/style.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct create_values {
    const char *role, *days;
};

static enum err body_make(const struct command_input *in, json_t **ret_body, struct error *e)
{
    const struct create_values *values = in->values;
    char *rest = NULL;
    if (values->role == NULL)
        return error_set(e, ERR_USAGE, "--role must be given: read, deploy or admin");
    *ret_body = json_pack("{s:s, s:s}", "name", in->arguments[0], "role", values->role);
    if (*ret_body == NULL)
        return error_set(e, ERR_USAGE, "the name is no text");
    if (values->days == NULL)
        return ERR_OK;
    long days = strtol(values->days, &rest, 10);
    if (days < 1 || days > 3650 || *rest != '\0')
        return error_set(e, ERR_USAGE, "--days: '%.40s' is no number from 1 to 3650", values->days);
    json_object_set_new(*ret_body, "days", json_integer(days));
    return ERR_OK;
}

static enum err run_create(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *body = NULL, *answer = NULL;
    enum err err = body_make(in, &body, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_send(&c, "POST", "/v1/keys", body, &answer, e);
    json_decref(body);
    if (err != ERR_OK)
        return err;
    if (format != OUTPUT_TABLE) {
        output_json(stdout, format, answer);
    } else {
        printf("%s\n", json_text(answer, "key"));
        fprintf(stderr, "This is the only time that the key is shown. Use it as\n"
                        "  export DIRIGENT_API_KEY=dk_...\n");
    }
    json_decref(answer);
    return ERR_OK;
}

static enum err run_list(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *json = NULL, *item;
    size_t i;
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, "/v1/keys", &json, e);
    if (err != ERR_OK)
        return err;
    const json_t *items = json_object_get(json, "items");
    if (format != OUTPUT_TABLE) {
        output_json(stdout, format, json);
    } else if (json_array_size(items) == 0) {
        fprintf(stderr, "no keys: only clients on the API's own host are served, and need none\n");
    } else {
        struct table *t = table_new("NAME|ROLE|ENDS WITH|CREATED|EXPIRES");
        json_array_foreach(items, i, item)
        {
            const char *expires = json_text(item, "expires_at");
            table_cell(t, STYLE_BOLD, "%s", json_text(item, "name"));
            table_cell(t, STYLE_PLAIN, "%s", json_text(item, "role"));
            table_cell(t, STYLE_DIM, "%s", json_text(item, "ends_with"));
            table_cell(t, STYLE_PLAIN, "%s", json_text(item, "created_at"));
            table_cell(t, STYLE_PLAIN, "%s", expires[0] != '\0' ? expires : "never");
        }
        table_print(t, stdout);
        table_free(t);
    }
    json_decref(json);
    return ERR_OK;
}

static enum err run_remove(const struct command_input *in, struct error *e)
{
    return client_run_remove(in, "/v1/keys", e);
}

static const struct option create_options[] = {
    {"role", 0, OPTION_TEXT, "ROLE", "read, deploy (and read) or admin (everything)",
     offsetof(struct create_values, role)},
    {"days", 0, OPTION_TEXT, "N", "how long it is valid; for ever when not given",
     offsetof(struct create_values, days)},
};

const struct command command_api_key_create = {
    .name = "api-key create",
    .arguments = "NAME",
    .group = GROUP_RUN,
    .summary = "make a key of the API; with the first one every client needs one",
    .details = "Without keys the API serves clients on its own host only. The first key must be an "
               "admin's.\nThe client takes its key from DIRIGENT_API_KEY.",
    .arguments_min = 1,
    .arguments_max = 1,
    .options = create_options,
    .option_count = ARRAY_COUNT(create_options),
    .values_bytes = sizeof(struct create_values),
    .is_client = true,
    .has_output = true,
    .run = run_create};
const struct command command_api_key_list = {.name = "api-key list",
                                             .arguments = "",
                                             .group = GROUP_RUN,
                                             .summary = "the keys that there are",
                                             .is_client = true,
                                             .has_output = true,
                                             .run = run_list};
const struct command command_api_key_remove = {.name = "api-key remove",
                                               .arguments = "NAME",
                                               .group = GROUP_RUN,
                                               .summary = "end a key at once",
                                               .arguments_min = 1,
                                               .arguments_max = 1,
                                               .is_client = true,
                                               .has_output = true,
                                               .run = run_remove};
