/* join.c - `dirigent worker join`, `dirigent data-plane join`: this machine becomes a node. */
#include "base/privileges.h"
#include "base/program.h"
#include "cli/commands.h"
#include "cli/style.h"
#include "keys/identity.h"
#include "keys/key_file.h"
#include "wire/credentials.h"
#include "wire/join_client.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA_DIR_DEFAULT "/var/lib/dirigent"

struct join_values {
    const char *token, *pin, *name, *data_dir, *user;
    bool again;
};
struct role_texts {
    enum node_role role;
    const char *name; /* of the program and its directory */
    uint32_t uid;
};
static const struct role_texts worker_texts = {NODE_WORKER, "worker", PRIVILEGES_UID_WORKER};
static const struct role_texts data_plane_texts = {NODE_DATA_PLANE, "data-plane",
                                                   PRIVILEGES_UID_DATA_PLANE};

static enum err check(const struct join_values *v, struct error *e)
{
    struct token token;
    if (v->token == NULL || v->pin == NULL)
        return error_set(e, ERR_USAGE,
                         "--%s is missing: `dirigent token create`, where a control plane is, "
                         "prints the whole command",
                         v->token == NULL ? "token" : "ca-hash");
    enum err err = token_parse(str_of(v->token), &token, e);
    if (err == ERR_OK)
        err = pin_check(str_of(v->pin), e);
    if (err == ERR_OK && v->name != NULL)
        err = node_name_check(str_of(v->name), e);
    return err == ERR_OK ? ERR_OK : ERR_USAGE;
}

static void name_of(const struct join_values *v, char ret_name[64])
{
    if (v->name != NULL)
        (void)snprintf(ret_name, 64, "%s", v->name);
    else if (gethostname(ret_name, 64) < 0 || ret_name[0] == '\0')
        (void)snprintf(ret_name, 64, "node");
    ret_name[63] = '\0';
}

/* The directory of the program, as the program will find it; ends without privileges. */
static enum err open_directory(const struct join_values *v, const struct role_texts *r,
                               char **ret_path, int *ret_lock_fd, struct error *e)
{
    uid_t uid;
    gid_t gid;
    if (geteuid() != 0)
        return error_set(e, ERR_PERMISSION,
                         "joining needs root: the key is written where the %s reads it", r->name);
    enum err err = privileges_resolve(v->user != NULL ? v->user : "", r->uid, &uid, &gid, e);
    if (err == ERR_OK)
        err = program_dir_open(v->data_dir != NULL ? v->data_dir : DATA_DIR_DEFAULT, r->name, uid,
                               gid, ret_path, ret_lock_fd, e);
    return err == ERR_OK ? privileges_drop(uid, gid, e) : err;
}

static enum err refuse_joined(const char *path, const struct role_texts *r, struct error *e)
{
    struct subject anyone = {.role = r->role};
    struct identity i cleanup(identity_done) = {0};
    if (identity_load(path, &anyone, clock_real_s(), &i, NULL) != ERR_OK)
        return ERR_OK; /* not there, or of no use */
    return error_set(e, ERR_EXISTS,
                     "this machine is %s '%s' of cluster '%s' already (%s/tls); --again makes it "
                     "join anew",
                     r->name, i.subject.name, i.subject.cluster, path);
}

static enum err install(const char *path, const struct join_grant *grant, struct error *e)
{
    cleanup(free_pointer) char *file = mem_printf("%s/" CREDENTIALS_ADDRESSES_FILE, path);
    cleanup(free_pointer) char *line = mem_printf("%s\n", grant->addresses);
    enum err err = key_file_write(file, 0644, str_of(line), e);
    return err == ERR_OK ? identity_install(path, str_of(grant->certificate), str_of(grant->roots),
                                            &grant->subject, clock_real_s(), e)
                         : err;
}

static enum err join(const char *path, const struct join_values *v, const struct role_texts *r,
                     const char *addresses, struct join_grant *grant, struct error *e)
{
    struct buf csr cleanup(buf_done) = {0};
    char name[64];
    name_of(v, name);
    enum err err = identity_request(path, &csr, e);
    buf_append(&csr, "", 1);
    struct join_order order = {.addresses = addresses,
                               .token = v->token,
                               .pin = v->pin,
                               .name = name,
                               .csr = csr.data,
                               .role = r->role};
    if (err == ERR_OK)
        err = join_client_run(&order, grant, e);
    return err == ERR_OK ? install(path, grant, e) : err;
}

static enum err run(const struct command_input *in, const struct role_texts *r, struct error *e)
{
    const struct join_values *v = in->values;
    cleanup(free_pointer) char *path = NULL;
    cleanup(fd_close) int lock_fd = -1;
    struct join_grant grant cleanup(join_grant_done) = {0};
    enum err err = check(v, e);
    if (err == ERR_OK)
        err = open_directory(v, r, &path, &lock_fd, e);
    if (err == ERR_OK && !v->again)
        err = refuse_joined(path, r, e);
    if (err == ERR_OK)
        err = join(path, v, r, in->arguments[0], &grant, e);
    if (err != ERR_OK)
        return err;
    printf("this machine is %s '%s' of cluster '%s' now\n", r->name, grant.subject.name,
           grant.subject.cluster);
    fprintf(stderr,
            "Its key and certificate are in %s/tls; the certificate is renewed by itself while "
            "the %s runs.\nStart it:  systemctl start dirigent-%s   or   dirigent %s%s%s\n",
            path, r->name, r->name, r->name, v->data_dir != NULL ? " --data-dir " : "",
            v->data_dir != NULL ? v->data_dir : "");
    return ERR_OK;
}

static enum err run_worker(const struct command_input *in, struct error *e)
{
    return run(in, &worker_texts, e);
}

static enum err run_data_plane(const struct command_input *in, struct error *e)
{
    return run(in, &data_plane_texts, e);
}

static const struct option options[] = {
    {"token", 0, OPTION_TEXT, "TOKEN", "from `dirigent token create`; good for one machine",
     offsetof(struct join_values, token)},
    {"ca-hash", 0, OPTION_TEXT, "HASH",
     "sha256:… of the cluster's authority, printed with the token",
     offsetof(struct join_values, pin)},
    {"name", 0, OPTION_TEXT, "NAME", "its name in the cluster; this host's when not given",
     offsetof(struct join_values, name)},
    {"data-dir", 0, OPTION_TEXT, "DIR", "as the program is started with (" DATA_DIR_DEFAULT ")",
     offsetof(struct join_values, data_dir)},
    {"user", 0, OPTION_TEXT, "USER", "as the program is started with",
     offsetof(struct join_values, user)},
    {"again", 0, OPTION_FLAG, NULL, "although this machine has joined already",
     offsetof(struct join_values, again)},
};
#define DETAILS                                                                                    \
    "ADDRESSES are those of the control planes, as 10.0.0.1:9090,10.0.0.2:9090. Needs root. The\n" \
    "secret key is made here and does not leave this machine."

const struct command command_worker_join = {.name = "worker join",
                                            .arguments = "ADDRESSES",
                                            .group = GROUP_RUN,
                                            .summary = "make this machine a worker of a cluster",
                                            .details = DETAILS,
                                            .arguments_min = 1,
                                            .arguments_max = 1,
                                            .options = options,
                                            .option_count = ARRAY_COUNT(options),
                                            .values_bytes = sizeof(struct join_values),
                                            .run = run_worker};
const struct command command_data_plane_join = {.name = "data-plane join",
                                                .arguments = "ADDRESSES",
                                                .group = GROUP_RUN,
                                                .summary =
                                                    "make this machine a data plane of a cluster",
                                                .details = DETAILS,
                                                .arguments_min = 1,
                                                .arguments_max = 1,
                                                .options = options,
                                                .option_count = ARRAY_COUNT(options),
                                                .values_bytes = sizeof(struct join_values),
                                                .run = run_data_plane};
