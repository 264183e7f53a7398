/* hello.c - the rules, one after the other. */
#include "control_plane/hello.h"
#include "control_plane/records.h"
#include "control_plane/trust.h"
#include "wire/link.h"
#include <string.h>

static bool is_peer_name(const char *name)
{
    size_t bytes = strlen(name);
    size_t good = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._");
    return bytes > 0 && bytes <= PEER_NAME_BYTES_MAX && good == bytes;
}

static bool is_address_text(const char *text)
{
    return strlen(text) < sizeof(((struct peer_record *)0)->address) &&
           strspn(text, "0123456789abcdefABCDEFlohst.:[]%") == strlen(text);
}

enum node_role role_of_wire(Dirigent__Role role)
{
    switch (role) {
    case DIRIGENT__ROLE__ROLE_WORKER:
        return NODE_WORKER;
    case DIRIGENT__ROLE__ROLE_DATA_PLANE:
        return NODE_DATA_PLANE;
    case DIRIGENT__ROLE__ROLE_CONTROL_PLANE:
        return NODE_CONTROL_PLANE;
    case DIRIGENT__ROLE__ROLE_UNKNOWN:
    case _DIRIGENT__ROLE_IS_INT_SIZE:
        break;
    }
    return NODE_NONE;
}

static enum err check_certificate(const Dirigent__Hello *h, const struct hello_rules *rules,
                                  struct error *e)
{
    char name[NODE_NAME_BYTES_MAX + 1];
    enum node_role role = role_of_wire(h->role);
    if (!rules->secured)
        return ERR_OK;
    if (rules->peer == NULL)
        return error_set(e, ERR_PERMISSION,
                         "it shows no certificate: this cluster takes only who has joined it "
                         "(`dirigent token create`)");
    if (role == NODE_CONTROL_PLANE)
        trust_member_name(h->name, name, sizeof(name));
    else
        (void)snprintf(name, sizeof(name), "%s", h->name);
    if (rules->peer->role == role && strcmp(rules->peer->name, name) == 0)
        return ERR_OK;
    return error_set(
        e, ERR_PERMISSION, "it says that it is %s '%s', and its certificate is that of %s '%s'",
        node_role_name(role), name, node_role_name(rules->peer->role), rules->peer->name);
}

/* Data planes would send other people's requests there. */
static enum err check_address(const Dirigent__Hello *h, const struct hello_rules *rules,
                              struct error *e)
{
    struct str host = address_host(h->address);
    bool same = str_equal(host, str_of(rules->ip)) ||
                address_is_loopback(str_of(rules->ip)); /* on this host: it may have many */
    if (h->role != DIRIGENT__ROLE__ROLE_WORKER || h->address[0] == '\0' || rules->any_address ||
        same)
        return ERR_OK;
    return error_set(e, ERR_PERMISSION,
                     "it says that data planes reach it at %s, and it comes from %s: leave out its "
                     "--address, or, where hosts have several networks, start the control planes "
                     "with --any-worker-address",
                     h->address, rules->ip);
}

enum err hello_check(const Dirigent__Hello *h, const struct hello_rules *rules, struct error *e)
{
    if (h->protocol_min > protocol_version_max() || h->protocol_max < protocol_version_min())
        return error_set(
            e, ERR_VERSION,
            "it speaks the cluster protocol %u to %u, and this control plane %u to %u: "
            "upgrade the control planes first, then the others, one version at a time",
            h->protocol_min, h->protocol_max, protocol_version_min(), protocol_version_max());
    if (h->cluster[0] != '\0' && rules->cluster[0] != '\0' &&
        strcmp(h->cluster, rules->cluster) != 0)
        return error_set(e, ERR_PERMISSION, "it belongs to another cluster, '%.63s'", h->cluster);
    if (role_of_wire(h->role) == NODE_NONE)
        return error_set(e, ERR_INVALID, "its role is neither worker nor data plane");
    if (h->role == DIRIGENT__ROLE__ROLE_CONTROL_PLANE)
        return rules->has_members
                   ? check_certificate(h, rules, e)
                   : error_set(e, ERR_PERMISSION,
                               "this control plane was told of no other one (--peers)");
    if (!is_peer_name(h->name))
        return error_set(e, ERR_INVALID,
                         "its name is empty, too long, or has other characters than letters, "
                         "digits, '-', '.', '_'");
    if (!is_address_text(h->address) || !is_address_text(h->listen_address))
        return error_set(e, ERR_INVALID, "its address is no address");
    enum err err = check_certificate(h, rules, e);
    return err == ERR_OK ? check_address(h, rules, e) : err;
}

enum err message_check(bool is_worker, const Dirigent__ToControlPlane *m, struct error *e)
{
    bool of_worker = m->n_sandbox_changes > 0 || m->n_blob_gets > 0 || m->n_log_chunks > 0 ||
                     m->worker_load != NULL;
    bool of_data_plane = m->n_demands > 0 || m->n_drained > 0 || m->n_endpoint_failures > 0 ||
                         m->n_sandbox_loads > 0 || m->n_slots_returned > 0 || m->synced != 0;
    if (m->member != NULL || m->join != NULL)
        return error_set(e, ERR_PERMISSION, "it says what only %s may say",
                         m->member != NULL ? "a control plane" : "who has not joined");
    if (is_worker ? of_data_plane : of_worker)
        return error_set(e, ERR_PERMISSION, "it says what only a %s may say",
                         is_worker ? "data plane" : "worker");
    return ERR_OK;
}
