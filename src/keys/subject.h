/* subject.h - who a program is in the cluster: cluster, role and name, as it stands in its
 * certificate: dirigent://<cluster>/<role>/<name>. Pure; any thread. */
#pragma once
#include "base/limits.h"
#include "base/str.h"

enum node_role {
    NODE_NONE, /* not said */
    NODE_CONTROL_PLANE,
    NODE_DATA_PLANE,
    NODE_WORKER,
    NODE_ROLE_COUNT,
};
const char *node_role_name(enum node_role role); /* "control-plane"; NODE_NONE is "none" */
/* ERR_INVALID with the words that there are, field "role". NODE_NONE cannot be named. */
must_check enum err node_role_of(struct str text, enum node_role *ret_role, struct error *e);

struct subject {
    char cluster[CLUSTER_NAME_BYTES_MAX + 1];
    enum node_role role;
    char name[NODE_NAME_BYTES_MAX + 1];
};

/* A cluster's name is a DNS label in lower case; a node's name has letters, digits, '-', '.' and
 * '_' and begins with a letter or digit. ERR_INVALID, fields "cluster" and "name". */
must_check enum err cluster_name_check(struct str name, struct error *e);
must_check enum err node_name_check(struct str name, struct error *e);
/* Fills and checks all three. */
must_check enum err subject_make(struct str cluster, enum node_role role, struct str name,
                                 struct subject *ret_subject, struct error *e);
bool subject_equal(const struct subject *a, const struct subject *b);

#define SUBJECT_URI_BYTES (11 + CLUSTER_NAME_BYTES_MAX + 1 + 13 + 1 + NODE_NAME_BYTES_MAX + 1)
void subject_uri(const struct subject *s, char ret_uri[SUBJECT_URI_BYTES]);
/* Only what subject_uri() writes; ERR_INVALID for anything else. */
must_check enum err subject_from_uri(struct str uri, struct subject *ret_subject, struct error *e);
