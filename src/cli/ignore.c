/* ignore.c - patterns as gitignore(5) has them, by fnmatch(3). */
#include "cli/ignore.h"
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

/* Compiled Python goes too: the times of files are not uploaded, so it would be out of date anyway.
 * A program that ships hash-based .pyc files takes it back with `!__pycache__`. */
static const char built_in[] =
    ".git\n.hg\n.svn\n.bzr\n.DS_Store\n__pycache__\n.pytest_cache\n.mypy_cache\n"
    "*~\n*.swp\n/.dirigentignore\n";

struct rule {
    char *pattern;
    bool negative, directory_only, anchored;
};
struct ignore_rules {
    struct rule *items;
    size_t count;
};

static void add_line(struct ignore_rules *rules, struct str line)
{
    struct rule rule = {0};
    while (line.bytes > 0 && strchr(" \t\r", line.data[line.bytes - 1]) != NULL)
        line.bytes--;
    if (line.bytes == 0 || line.data[0] == '#')
        return;
    if (line.data[0] == '!') {
        rule.negative = true;
        line = (struct str){line.data + 1, line.bytes - 1};
    } else if (line.data[0] == '\\') {
        line = (struct str){line.data + 1, line.bytes - 1};
    }
    if (line.bytes > 0 && line.data[line.bytes - 1] == '/') {
        rule.directory_only = true;
        line.bytes--;
    }
    if (str_has_prefix(line, STR("**/"))) { /* any depth is what a pattern without `/` has */
        line = (struct str){line.data + 3, line.bytes - 3};
        rule.anchored = false;
    } else if (line.bytes > 0 && memchr(line.data, '/', line.bytes) != NULL) {
        rule.anchored = true;
    }
    if (line.bytes > 0 && line.data[0] == '/')
        line = (struct str){line.data + 1, line.bytes - 1};
    if (line.bytes == 0)
        return;
    rule.pattern = mem_strndup(line.data, line.bytes);
    rules->items = mem_resize(rules->items, rules->count + 1, sizeof(*rules->items));
    rules->items[rules->count++] = rule;
}

static void add_text(struct ignore_rules *rules, struct str text)
{
    while (text.data != NULL) {
        struct str line = str_split(text, '\n', &text);
        add_line(rules, line);
    }
}

struct ignore_rules *ignore_rules_new(struct str text)
{
    struct ignore_rules *rules = mem_new(sizeof(*rules));
    add_text(rules, STR(built_in));
    add_text(rules, text);
    return rules;
}

void ignore_rules_free(struct ignore_rules *rules)
{
    if (rules == NULL)
        return;
    for (size_t i = 0; i < rules->count; i++)
        free(rules->items[i].pattern);
    free(rules->items);
    free(rules);
}

/* "build/" and "**": the directory stays, everything in it goes. */
static bool matches_below(const char *pattern, const char *path)
{
    size_t bytes = strlen(pattern);
    if (bytes < 4 || strcmp(pattern + bytes - 3, "/**") != 0)
        return false;
    cleanup(free_pointer) char *directory = mem_strndup(pattern, bytes - 3);
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        cleanup(free_pointer) char *above = mem_strndup(path, (size_t)(slash - path));
        if (fnmatch(directory, above, FNM_PATHNAME) == 0)
            return true;
    }
    return false;
}

static bool rule_matches(const struct rule *rule, const char *path, bool is_directory)
{
    if (rule->directory_only && !is_directory)
        return false;
    if (rule->anchored)
        return fnmatch(rule->pattern, path, FNM_PATHNAME) == 0 ||
               matches_below(rule->pattern, path);
    /* At any depth: the path itself or what begins after one of its slashes. */
    for (const char *tail = path; tail != NULL; tail = strchr(tail, '/')) {
        tail += *tail == '/';
        if (fnmatch(rule->pattern, tail, FNM_PATHNAME) == 0)
            return true;
    }
    return false;
}

bool ignore_rules_match(const struct ignore_rules *rules, const char *path, bool is_directory)
{
    for (size_t i = rules->count; i > 0; i--)
        if (rule_matches(&rules->items[i - 1], path, is_directory))
            return !rules->items[i - 1].negative;
    return false;
}
