/* subject.c - names, checked and written. */
#include "keys/subject.h"
#include <stdio.h>

static const char *const role_names[NODE_ROLE_COUNT] = {
    [NODE_NONE] = "none",
    [NODE_CONTROL_PLANE] = "control-plane",
    [NODE_DATA_PLANE] = "data-plane",
    [NODE_WORKER] = "worker",
};

const char *node_role_name(enum node_role role)
{
    assert(role < NODE_ROLE_COUNT);
    return role_names[role];
}

enum err node_role_of(struct str text, enum node_role *ret_role, struct error *e)
{
    for (enum node_role role = NODE_CONTROL_PLANE; role < NODE_ROLE_COUNT; role++) {
        if (str_equal(text, str_of(role_names[role]))) {
            *ret_role = role;
            return ERR_OK;
        }
    }
    return error_field(e, ERR_INVALID, "role",
                       "the role '%.*s' is none of control-plane, data-plane, worker",
                       (int)MIN(text.bytes, (size_t)32), text.bytes > 0 ? text.data : "");
}

static bool is_lower_or_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_letter_or_digit(char c)
{
    return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z');
}

enum err cluster_name_check(struct str name, struct error *e)
{
    bool good = name.bytes > 0 && name.bytes <= CLUSTER_NAME_BYTES_MAX && name.data[0] != '-' &&
                name.data[name.bytes - 1] != '-';
    for (size_t i = 0; good && i < name.bytes; i++)
        good = is_lower_or_digit(name.data[i]) || name.data[i] == '-';
    if (good)
        return ERR_OK;
    return error_field(e, ERR_INVALID, "cluster",
                       "a cluster's name has 1 to %u lower-case letters, digits and inner '-'",
                       CLUSTER_NAME_BYTES_MAX);
}

enum err node_name_check(struct str name, struct error *e)
{
    bool good =
        name.bytes > 0 && name.bytes <= NODE_NAME_BYTES_MAX && is_letter_or_digit(name.data[0]);
    for (size_t i = 0; good && i < name.bytes; i++) {
        char c = name.data[i];
        good = is_letter_or_digit(c) || c == '-' || c == '.' || c == '_';
    }
    if (good)
        return ERR_OK;
    return error_field(e, ERR_INVALID, "name",
                       "a node's name has 1 to %u letters, digits, '-', '.' and '_', and begins "
                       "with a letter or digit",
                       NODE_NAME_BYTES_MAX);
}

enum err subject_make(struct str cluster, enum node_role role, struct str name,
                      struct subject *ret_subject, struct error *e)
{
    enum err err = cluster_name_check(cluster, e);
    if (err == ERR_OK)
        err = node_name_check(name, e);
    if (err != ERR_OK)
        return err;
    if (role <= NODE_NONE || role >= NODE_ROLE_COUNT)
        return error_field(e, ERR_INVALID, "role", "there is no role of number %d", (int)role);
    *ret_subject = (struct subject){.role = role};
    memcpy(ret_subject->cluster, cluster.data, cluster.bytes);
    memcpy(ret_subject->name, name.data, name.bytes);
    return ERR_OK;
}

bool subject_equal(const struct subject *a, const struct subject *b)
{
    return a->role == b->role && strcmp(a->cluster, b->cluster) == 0 &&
           strcmp(a->name, b->name) == 0;
}

void subject_uri(const struct subject *s, char ret_uri[SUBJECT_URI_BYTES])
{
    int bytes = snprintf(ret_uri, SUBJECT_URI_BYTES, "dirigent://%s/%s/%s", s->cluster,
                         node_role_name(s->role), s->name);
    assert(bytes > 0 && (size_t)bytes < SUBJECT_URI_BYTES);
}

enum err subject_from_uri(struct str uri, struct subject *ret_subject, struct error *e)
{
    struct str scheme = STR("dirigent://"), rest, name;
    if (!str_has_prefix(uri, scheme))
        return error_set(e, ERR_INVALID, "it is not dirigent://<cluster>/<role>/<name>");
    rest = (struct str){uri.data + scheme.bytes, uri.bytes - scheme.bytes};
    struct str cluster = str_split(rest, '/', &rest);
    struct str role_text = str_split(rest, '/', &name);
    enum node_role role = NODE_NONE;
    enum err err = node_role_of(role_text, &role, e);
    return err != ERR_OK ? err : subject_make(cluster, role, name, ret_subject, e);
}
