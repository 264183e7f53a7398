/* main.c - the executable: finds the command that is meant and turns its end into an exit code. */
#include "cli/commands.h"
#include "cli/style.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum err run_help(const struct command_input *in, struct error *e);
static enum err run_version(const struct command_input *in, struct error *e);

static const struct command command_help = {.name = "help",
                                            .arguments = "[COMMAND]",
                                            .group = GROUP_OTHER,
                                            .arguments_max = 2,
                                            .summary = "what there is, or more about one command",
                                            .run = run_help};
static const struct command command_version = {.name = "version",
                                               .arguments = "",
                                               .group = GROUP_OTHER,
                                               .summary = "the version of this program",
                                               .run = run_version};

/* clang-format off */
const struct command *const commands[] = {
    &command_up, &command_control_plane, &command_data_plane, &command_worker, &command_simulate,
    &command_worker_cordon, &command_worker_uncordon, &command_worker_drain, &command_worker_remove,
    &command_data_plane_remove, &command_worker_join, &command_data_plane_join,
    &command_token_create, &command_token_list, &command_token_remove,
    &command_ca_show, &command_ca_rotate,
    &command_store_backup, &command_store_restore, &command_store_migrate,
    &command_api_key_create, &command_api_key_list, &command_api_key_remove,
    &command_deploy, &command_apply, &command_scale, &command_delete,
    &command_invoke, &command_list, &command_describe, &command_logs, &command_sandboxes,
    &command_workers, &command_data_planes, &command_status,
    &command_doctor, &command_completion, &command_version, &command_help,
};
/* clang-format on */
const size_t command_count = ARRAY_COUNT(commands);

const struct command *command_find(const char *name)
{
    for (size_t i = 0; i < command_count; i++)
        if (strcmp(commands[i]->name, name) == 0 ||
            (commands[i]->alias != NULL && strcmp(commands[i]->alias, name) == 0))
            return commands[i];
    return NULL;
}

/* "worker", "drain" -> the command of two words; NULL: there is none. */
static const struct command *command_find_two(const char *first, const char *second)
{
    cleanup(free_pointer) char *name = mem_printf("%.32s %.32s", first, second);
    return command_find(name);
}

static enum err refuse_unknown(const char *name, struct error *e)
{
    if (name[0] == '-')
        return error_set(e, ERR_USAGE,
                         "the command comes first, then its flags: '%.64s' is none; "
                         "`dirigent help` lists the commands",
                         name);
    const char *nearest = NULL;
    size_t least = 4; /* further away it is no misspelling */
    for (size_t i = 0; i < command_count; i++) {
        size_t distance = edit_distance(name, commands[i]->name);
        if (distance < least && distance < strlen(name)) {
            least = distance;
            nearest = commands[i]->name;
        }
    }
    if (nearest != NULL)
        return error_set(e, ERR_USAGE, "there is no command '%.64s'; did you mean '%s'?", name,
                         nearest);
    return error_set(e, ERR_USAGE, "there is no command '%.64s'; `dirigent help` lists them", name);
}

static void print_overview(void)
{
    static const char *const titles[GROUP_COUNT] = {[GROUP_RUN] = "run a cluster",
                                                    [GROUP_DEPLOY] = "change functions",
                                                    [GROUP_LOOK] = "call and look",
                                                    [GROUP_OTHER] = "other"};
    printf("dirigent runs functions: programs that answer HTTP, started when requests come and "
           "removed "
           "when they stop.\n\nusage: dirigent COMMAND [arguments] [flags]\n");
    for (size_t group = 0; group < GROUP_COUNT; group++) {
        printf("\n%s\n", titles[group]);
        for (size_t i = 0; i < command_count; i++) {
            const struct command *c = commands[i];
            char left[64];
            if (c->group != group)
                continue;
            (void)snprintf(left, sizeof(left), "%s %s", c->name, c->arguments);
            printf("  %-28s %s%s%s%s\n", left, c->summary, c->alias != NULL ? " (also: " : "",
                   c->alias != NULL ? c->alias : "", c->alias != NULL ? ")" : "");
        }
    }
    printf(
        "\nA first function, with the cluster on this machine:\n"
        "  sudo dirigent up\n"
        "  dirigent deploy hello --dir examples/python\n"
        "  dirigent invoke hello\n\n"
        "`dirigent help COMMAND` says more. Exit codes: 0 done, 1 refused by the cluster, 2 wrong "
        "usage, 3 cluster not reachable.\n");
}

static int print_program_help(const struct command *c)
{
    char name[64], flag[] = "--help";
    (void)snprintf(name, sizeof(name), "%s", c->name);
    char *arguments[] = {name, flag, NULL};
    return c->program(2, arguments);
}

static enum err run_help(const struct command_input *in, struct error *e)
{
    if (in->argument_count == 0) {
        print_overview();
        return ERR_OK;
    }
    const struct command *c = in->argument_count == 2
                                  ? command_find_two(in->arguments[0], in->arguments[1])
                                  : command_find(in->arguments[0]);
    if (c == NULL)
        return refuse_unknown(in->arguments[0], e);
    if (c->program == NULL)
        command_print_help(c);
    else
        (void)print_program_help(c);
    return ERR_OK;
}

static enum err run_version(const struct command_input *in, struct error *e)
{
    (void)in, (void)e;
    printf("dirigent %s\n", DIRIGENT_VERSION);
    return ERR_OK;
}

static int end(enum err err, const struct error *e)
{
    if (err != ERR_OK && e->text[0] != '\0')
        style_print_error(e);
    /* A full disk or a closed pipe behind stdout must not look like success. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && err == ERR_OK)
        return 1;
    return err_exit_code(err);
}

static int run_client(const struct command *command, int argc, char **argv)
{
    struct common_values common = {0};
    struct command_input in = {0};
    struct error e = {0};
    void *values = mem_new(MAX(command->values_bytes, 1));
    enum err err = command_parse(command, argc, argv, &common, values, &in, &e);
    if (err == ERR_OK && common.help)
        command_print_help(command);
    else if (err == ERR_OK)
        err = command->run(&in, &e);
    command_input_done(&in, values);
    free(values);
    return end(err, &e);
}

int main(int argc, char **argv)
{
    struct error e = {0};
    if (argc < 2) {
        print_overview();
        return err_exit_code(ERR_USAGE);
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    if (strcmp(name, "--version") == 0)
        name = "version";
    const struct command *two = argc > 2 ? command_find_two(name, argv[2]) : NULL;
    if (two != NULL)
        return run_client(two, argc - 2, argv + 2);
    const struct command *command = command_find(name);
    if (command != NULL && command->program != NULL && argc > 2 && argv[2][0] != '-') {
        cleanup(free_pointer) char *words = mem_printf("%.32s %.32s", name, argv[2]);
        return end(refuse_unknown(words, &e), &e);
    }
    if (command == NULL)
        return end(refuse_unknown(name, &e), &e);
    if (command->program != NULL)
        return command->program(argc - 1, argv + 1);
    return run_client(command, argc - 1, argv + 1);
}
