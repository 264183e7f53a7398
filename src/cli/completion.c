/* completion.c - `dirigent completion`: a script for the shell, made from the table of commands. */
#include "cli/commands.h"
#include <stdio.h>
#include <string.h>

static void print_flag(const struct option *option, void *user)
{
    (void)user;
    printf(" --%s", option->name);
    if (option->letter != 0)
        printf(" -%c", option->letter);
}

static void print_program_flags(const struct command *c)
{
    /* Programs list theirs themselves. */
    printf(" $(dirigent %s --help 2>/dev/null | grep -o -- '^  --[a-z-]*')", c->name);
}

/* `worker drain`: completed like `worker`. */
static bool is_of_two_words(const struct command *c)
{
    return strchr(c->name, ' ') != NULL;
}

static void print_script(bool zsh)
{
    if (zsh)
        printf("autoload -Uz bashcompinit && bashcompinit\n");
    printf("_dirigent() {\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} "
           "before=${COMP_WORDS[COMP_CWORD-1]}\n"
           "    if [ \"$COMP_CWORD\" = 1 ]; then\n        COMPREPLY=($(compgen -W '");
    for (size_t i = 0; i < command_count; i++)
        if (!is_of_two_words(commands[i]))
            printf("%s%s", i > 0 ? " " : "", commands[i]->name);
    printf(
        "' -- \"$word\"))\n        return\n    fi\n"
        "    case $before in\n"
        "        -o|--output) COMPREPLY=($(compgen -W 'table json yaml' -- \"$word\")); return ;;\n"
        "        --dir) COMPREPLY=($(compgen -d -- \"$word\")); return ;;\n"
        "        --zip|--env-file|-f|--filename|--config) COMPREPLY=($(compgen -f -- \"$word\")); "
        "return ;;\n"
        "    esac\n"
        "    if [[ $word != -* ]]; then\n        case $command in\n            ");
    for (size_t i = 0, shown = 0; i < command_count; i++)
        if (strstr(commands[i]->arguments, "NAME") != NULL && !is_of_two_words(commands[i]))
            printf("%s%s", shown++ > 0 ? "|" : "", commands[i]->name);
    printf(")\n                COMPREPLY=($(compgen -W \"$(dirigent list 2>/dev/null | awk 'NR > 1 "
           "{print $1}')\" "
           "-- \"$word\")) ;;\n        esac\n        return\n    fi\n    case $command in\n");
    for (size_t i = 0; i < command_count; i++) {
        const struct command *c = commands[i];
        if (is_of_two_words(c))
            continue;
        printf("        %s%s%s) COMPREPLY=($(compgen -W \"", c->name, c->alias != NULL ? "|" : "",
               c->alias != NULL ? c->alias : "");
        if (c->program != NULL)
            print_program_flags(c);
        else
            command_each_option(c, print_flag, NULL);
        printf("\" -- \"$word\")) ;;\n");
    }
    printf("    esac\n}\ncomplete -F _dirigent dirigent\n");
}

static enum err run_completion(const struct command_input *in, struct error *e)
{
    const char *shell = in->arguments[0];
    if (strcmp(shell, "bash") != 0 && strcmp(shell, "zsh") != 0)
        return error_set(e, ERR_USAGE, "'%s': bash or zsh", shell);
    print_script(strcmp(shell, "zsh") == 0);
    return ERR_OK;
}

const struct command command_completion = {
    .name = "completion",
    .arguments = "bash|zsh",
    .group = GROUP_OTHER,
    .summary = "a script for the shell: source <(dirigent completion bash)",
    .arguments_min = 1,
    .arguments_max = 1,
    .run = run_completion};
