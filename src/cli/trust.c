/* trust.c - `dirigent token create|list|remove`, `dirigent ca show|rotate`: who may join, and whom
 * the cluster trusts. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/style.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct create_values {
    const char *role, *name, *ttl;
};
struct rotate_values {
    bool force;
};

/* ---- tokens ---- */

/* "15m", "2h", "3600s" */
static enum err seconds_of(const char *text, json_int_t *ret, struct error *e)
{
    char *unit = NULL;
    unsigned long long n = strtoull(text, &unit, 10);
    unsigned factor = strcmp(unit, "s") == 0   ? 1
                      : strcmp(unit, "m") == 0 ? 60
                      : strcmp(unit, "h") == 0 ? 3600
                      : strcmp(unit, "d") == 0 ? 86400
                                               : 0;
    if (unit == text || text[0] == '-' || factor == 0 || n == 0 || n > 1000000)
        return error_set(e, ERR_USAGE, "--ttl: '%.40s' is no time like 15m, 2h or 7d", text);
    *ret = (json_int_t)(n * factor);
    return ERR_OK;
}

static enum err body_make(const struct create_values *v, json_t **ret_body, struct error *e)
{
    json_int_t ttl_s = 0;
    if (v->role == NULL)
        return error_set(e, ERR_USAGE, "--role must be given: worker or data-plane");
    if (v->ttl != NULL && seconds_of(v->ttl, &ttl_s, e) != ERR_OK)
        return ERR_USAGE;
    *ret_body = json_pack("{s:s}", "role", v->role);
    if (*ret_body == NULL)
        return error_set(e, ERR_USAGE, "--role: '%.40s' is no text", v->role);
    if (v->name != NULL)
        json_object_set_new(*ret_body, "name", json_string(v->name));
    if (ttl_s > 0)
        json_object_set_new(*ret_body, "ttl_s", json_integer(ttl_s));
    return ERR_OK;
}

static enum err run_create(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *body = NULL, *answer = NULL;
    enum err err = body_make(in->values, &body, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_send(&c, "POST", "/v1/tokens", body, &answer, e);
    json_decref(body);
    if (err != ERR_OK)
        return err;
    if (format != OUTPUT_TABLE) {
        output_json(stdout, format, answer);
    } else {
        printf("%s\n", json_text(answer, "command"));
        fprintf(stderr,
                "Run it as root on the new machine. Good for one machine, until %s; shown only "
                "this once.\n",
                json_text(answer, "expires_at"));
    }
    json_decref(answer);
    return ERR_OK;
}

static const char *state_of(const json_t *item)
{
    return json_text(item, "used_at")[0] != '\0' ? json_text(item, "used_by") : "";
}

static enum err run_list(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *json = NULL, *item;
    size_t i;
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, "/v1/tokens", &json, e);
    if (err != ERR_OK)
        return err;
    const json_t *items = json_object_get(json, "items");
    if (format != OUTPUT_TABLE) {
        output_json(stdout, format, json);
    } else if (json_array_size(items) == 0) {
        fprintf(stderr, "no tokens: `dirigent token create --role worker` makes one\n");
    } else {
        struct table *t = table_new("ID|ROLE|FOR|EXPIRES|USED BY");
        json_array_foreach(items, i, item)
        {
            const char *name = json_text(item, "name");
            table_cell(t, STYLE_BOLD, "%s", json_text(item, "id"));
            table_cell(t, STYLE_PLAIN, "%s", json_text(item, "role"));
            table_cell(t, STYLE_PLAIN, "%s", name[0] != '\0' ? name : "anyone");
            table_cell(t, STYLE_PLAIN, "%s", json_text(item, "expires_at"));
            table_cell(t, STYLE_DIM, "%s", state_of(item));
        }
        table_print(t, stdout);
        table_free(t);
    }
    json_decref(json);
    return ERR_OK;
}

static enum err run_remove(const struct command_input *in, struct error *e)
{
    return client_run_remove(in, "/v1/tokens", e);
}

/* ---- the authority ---- */

static void print_authority(const json_t *json)
{
    const json_t *item;
    size_t i;
    if (!json_is_true(json_object_get(json, "tls")) || json_text(json, "ca_hash")[0] == '\0') {
        printf("%s\n", json_is_true(json_object_get(json, "tls"))
                           ? "the authority is being made"
                           : "no TLS: the programs of this cluster talk in the clear");
        return;
    }
    struct table *t = table_new("AUTHORITY|SIGNS|VALID UNTIL");
    json_array_foreach(json_object_get(json, "roots"), i, item)
    {
        table_cell(t, STYLE_BOLD, "%s", json_text(item, "hash"));
        table_cell(t, STYLE_PLAIN, "%s",
                   json_is_true(json_object_get(item, "signs")) ? "yes" : "no");
        table_cell(t, STYLE_PLAIN, "%s", json_text(item, "valid_until"));
    }
    printf("cluster %s, last change %s\n", json_text(json, "cluster"),
           json_text(json, "changed_at"));
    table_print(t, stdout);
    table_free(t);
}

static enum err run_show(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *json = NULL;
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, "/v1/authority", &json, e);
    if (err != ERR_OK)
        return err;
    if (format != OUTPUT_TABLE)
        output_json(stdout, format, json);
    else
        print_authority(json);
    json_decref(json);
    return ERR_OK;
}

static const char *what_is_next(const json_t *json)
{
    const char *next = json_text(json, "next_step");
    if (strcmp(next, "switch") == 0)
        return "A second authority is trusted now. After a lifetime of the certificates, run this "
               "again: "
               "then it signs.";
    if (strcmp(next, "finish") == 0)
        return "The second authority signs now. After another lifetime, run this again: then the "
               "old one "
               "is forgotten.";
    return "The rotation is finished: the old authority is trusted no more.";
}

static enum err run_rotate(const struct command_input *in, struct error *e)
{
    const struct rotate_values *v = in->values;
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *answer = NULL;
    const char *path = v->force ? "/v1/authority/rotate?force=true" : "/v1/authority/rotate";
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_send(&c, "POST", path, NULL, &answer, e);
    if (err != ERR_OK)
        return err;
    if (format != OUTPUT_TABLE) {
        output_json(stdout, format, answer);
    } else {
        print_authority(answer);
        printf("\n%s\n", what_is_next(answer));
    }
    json_decref(answer);
    return ERR_OK;
}

/* ---- the commands ---- */

static const struct option create_options[] = {
    {"role", 0, OPTION_TEXT, "ROLE", "worker or data-plane", offsetof(struct create_values, role)},
    {"name", 0, OPTION_TEXT, "NAME",
     "only for the node of this name; needed to put a new machine in its place",
     offsetof(struct create_values, name)},
    {"ttl", 0, OPTION_TEXT, "TIME", "how long it may be used: 15m (the default) to 7d",
     offsetof(struct create_values, ttl)},
};
static const struct option rotate_options[] = {
    {"force", 0, OPTION_FLAG, NULL,
     "without waiting: programs that are not connected now may have to join again",
     offsetof(struct rotate_values, force)},
};

const struct command command_token_create = {
    .name = "token create",
    .arguments = "",
    .group = GROUP_RUN,
    .summary = "let one machine join; prints the command to run there",
    .options = create_options,
    .option_count = ARRAY_COUNT(create_options),
    .values_bytes = sizeof(struct create_values),
    .is_client = true,
    .has_output = true,
    .run = run_create};
const struct command command_token_list = {.name = "token list",
                                           .arguments = "",
                                           .group = GROUP_RUN,
                                           .summary = "the join tokens that there are",
                                           .is_client = true,
                                           .has_output = true,
                                           .run = run_list};
const struct command command_token_remove = {.name = "token remove",
                                             .arguments = "ID",
                                             .group = GROUP_RUN,
                                             .summary = "nobody can join by it any more",
                                             .arguments_min = 1,
                                             .arguments_max = 1,
                                             .is_client = true,
                                             .has_output = true,
                                             .run = run_remove};
const struct command command_ca_show = {.name = "ca show",
                                        .arguments = "",
                                        .group = GROUP_RUN,
                                        .summary = "the authority of the cluster's certificates",
                                        .is_client = true,
                                        .has_output = true,
                                        .run = run_show};
const struct command command_ca_rotate = {
    .name = "ca rotate",
    .arguments = "",
    .group = GROUP_RUN,
    .summary = "the next step towards a new authority; three steps in all",
    .details =
        "First a second authority is trusted beside the first, then it signs, then the old one is\n"
        "forgotten. Between the steps a lifetime of the certificates must pass, so that nobody is\n"
        "left behind; a step that comes too early is refused, with the time.",
    .options = rotate_options,
    .option_count = ARRAY_COUNT(rotate_options),
    .values_bytes = sizeof(struct rotate_values),
    .is_client = true,
    .has_output = true,
    .run = run_rotate};
