/* store.c - `dirigent store backup|restore|migrate`: registrations and code as a file, through the
 * API of a cluster that runs or from a store that nobody uses. */
#include "base/str.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/store_place.h"
#include "cli/style.h"
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LIVE_DEADLINE_MS (24u * 3600u * 1000u)

/* ---- the file ---- */

struct output { /* complete, or not there: FILE.partial until then */
    const char *path;
    char *partial;
    int fd;
};

static void output_done(struct output *o)
{
    if (o->partial != NULL)
        (void)unlink(o->partial);
    free(o->partial);
    fd_close(&o->fd);
}

static enum err output_open(struct output *o, const char *path, bool force, struct error *e)
{
    struct stat st;
    bool there = lstat(path, &st) == 0;
    if (there && !S_ISREG(st.st_mode))
        return error_set(e, ERR_EXISTS, "'%s' is there already, and no file", path);
    if (there && !force)
        return error_set(e, ERR_EXISTS, "'%s' is there already: --force replaces it", path);
    o->path = path;
    o->partial = mem_printf("%s.partial", path);
    (void)unlink(o->partial);
    o->fd = open(o->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (o->fd >= 0)
        return ERR_OK;
    enum err err = error_errno(e, "make the file '%s'", o->partial);
    free(o->partial);
    o->partial = NULL;
    return err;
}

static enum err output_keep(struct output *o, struct error *e)
{
    cleanup(free_pointer) char *copy = mem_strdup(o->path);
    if (fsync(o->fd) != 0)
        return error_errno(e, "make '%s' durable", o->partial);
    if (rename(o->partial, o->path) != 0)
        return error_errno(e, "name the backup '%s'", o->path);
    free(o->partial);
    o->partial = NULL;
    cleanup(fd_close) int dir = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fsync(dir) != 0)
        return error_errno(e, "make the directory entry of '%s' durable", o->path);
    return ERR_OK;
}

/* ---- what is said ---- */

static char *describe(const struct backup_result *r)
{
    char bytes[HUMAN_BYTES_MAX];
    cleanup(free_pointer) char *records = backup_list_describe(&r->list);
    if (r->code_count == 0)
        return mem_printf("%s, no code", records);
    return mem_printf("%s, code of %zu archive%s (%s)", records, r->code_count,
                      r->code_count == 1 ? "" : "s", human_bytes(r->code_bytes, bytes));
}

static void say_saved(const struct backup_result *r, const char *path)
{
    cleanup(free_pointer) char *what = describe(r);
    printf("%s: %s; epoch %" PRIu64 "\n", path, what, r->about.epoch);
    style_print_note("whoever reads this file can be anybody in the cluster: keep it as you keep "
                     "its keys");
}

static void say_restored(const struct backup_result *r, const char *place)
{
    char when[32];
    time_t seconds = (time_t)(r->about.created_ms / MS_PER_S);
    struct tm utc;
    cleanup(free_pointer) char *what = describe(r);
    (void)gmtime_r(&seconds, &utc);
    (void)strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S UTC", &utc);
    printf("%s: %s, as of %s; epoch %" PRIu64 "\n", place, what, when, r->epoch);
}

/* ---- backup ---- */

struct download {
    int fd;
    enum err err;
    struct error error;
};

static bool on_data(void *user, const char *data, size_t bytes)
{
    struct download *d = user;
    if (fd_write_all(d->fd, data, bytes) != ERR_OK)
        d->err = error_errno(&d->error, "write the backup");
    return d->err == ERR_OK;
}

static enum err save_live(const struct command_input *in, const struct store_values *v,
                          struct output *o, struct backup_result *ret, struct error *e)
{
    cleanup(client_done) struct client c = {0};
    cleanup(answer_done) struct answer answer = {0};
    struct download download = {.fd = o->fd};
    struct client_call call = {.method = "POST",
                               .path = v->no_code ? "/v1/backup?code=0" : "/v1/backup",
                               .on_data = on_data,
                               .user = &download,
                               .deadline_ms = LIVE_DEADLINE_MS};
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_call(&c, &call, &answer, e);
    if (err == ERR_OK && (answer.status < 200 || answer.status > 299))
        err = answer_check(&c, &answer, e);
    if (err == ERR_OK && download.err != ERR_OK) {
        *e = download.error;
        err = download.err;
    }
    if (err != ERR_OK)
        return err;
    if (backup_verify(o->fd, o->path, ret, e) == ERR_OK)
        return ERR_OK;
    return error_prefix(e, "what %s sent cannot be used (its log says why, when it broke off)",
                        c.api);
}

static enum err save_offline(const struct store_values *v, struct output *o,
                             struct backup_result *ret, struct error *e)
{
    cleanup(store_place_done) struct store_place from = STORE_PLACE_NONE;
    enum err err = store_place_open(&from, v, NULL, STORE_PLACE_READ, e);
    if (err == ERR_OK)
        err = store_place_save(&from, !v->no_code, o->fd, o->path, ret, e);
    return err;
}

static enum err run_backup(const struct command_input *in, struct error *e)
{
    const struct store_values *v = in->values;
    cleanup(output_done) struct output o = {.fd = -1};
    struct backup_result result = {0};
    bool is_live = v->store == NULL && v->data_dir == NULL && v->etcd == NULL;
    enum err err = output_open(&o, in->arguments[0], v->force, e);
    if (err == ERR_OK)
        err = is_live ? save_live(in, v, &o, &result, e) : save_offline(v, &o, &result, e);
    if (err == ERR_OK)
        err = output_keep(&o, e);
    if (err == ERR_OK)
        say_saved(&result, o.path);
    backup_list_done(&result.list);
    return err;
}

/* ---- restore ---- */

static enum err run_restore(const struct command_input *in, struct error *e)
{
    const struct store_values *v = in->values;
    cleanup(store_place_done) struct store_place to = STORE_PLACE_NONE;
    struct backup_result result = {0};
    cleanup(fd_close) int fd = open(in->arguments[0], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(e, "open the backup '%s'", in->arguments[0]);
    const struct backup_restore how = {
        .fd = fd, .name = in->arguments[0], .force = v->force, .without_code = v->no_code};
    /* First of all, so that a wrong file does not even make a directory. */
    enum err err = backup_verify(fd, how.name, &result, e);
    backup_list_done(&result.list);
    if (err == ERR_OK)
        err = store_place_open(&to, v, NULL, STORE_PLACE_WRITE, e);
    if (err == ERR_OK)
        err = store_place_restore(&to, &how, &result, e);
    if (err == ERR_OK)
        say_restored(&result, to.place.name);
    if (err == ERR_OK && result.list.counts[STORE_API_KEY] > 0)
        style_print_note("keys of the API that were removed since then are good again: "
                         "`dirigent api-key list` shows all");
    backup_list_done(&result.list);
    return err;
}

/* ---- migrate ---- */

static enum err migrate(const struct store_values *v, struct store_place *from,
                        struct store_place *to, struct backup_result *ret, struct error *e)
{
    struct backup_result saved = {0};
    bool same_code = store_place_shares_code(from, to);
    cleanup(fd_close) int fd = -1;
    enum err err = store_place_temporary(to, &fd, e);
    if (err == ERR_OK)
        err = store_place_save(from, !v->no_code && !same_code, fd, from->place.name, &saved, e);
    backup_list_done(&saved.list);
    if (err != ERR_OK)
        return err;
    const struct backup_restore how = {
        .fd = fd, .name = from->place.name, .force = v->force, .without_code = v->no_code};
    return store_place_restore(to, &how, ret, e);
}

static enum err run_migrate(const struct command_input *in, struct error *e)
{
    const struct store_values *v = in->values;
    cleanup(store_place_done) struct store_place from = STORE_PLACE_NONE;
    cleanup(store_place_done) struct store_place to = STORE_PLACE_NONE;
    struct backup_result result = {0};
    if (v->from == NULL || v->to == NULL)
        return error_set(
            e, ERR_USAGE,
            "--from and --to are needed: each is sqlite or etcd, as in "
            "`dirigent store migrate --from sqlite --to etcd --etcd https://a:2379,…`");
    enum err err = store_place_open(&from, v, v->from, STORE_PLACE_READ, e);
    if (err == ERR_OK && store_place_is(&from, v, v->to))
        err = error_set(e, ERR_USAGE, "--from and --to are the same store");
    if (err == ERR_OK)
        err = store_place_open_beside(&to, v, v->to, &from, e);
    if (err == ERR_OK)
        err = migrate(v, &from, &to, &result, e);
    if (err == ERR_OK) {
        say_restored(&result, to.place.name);
        style_print_note("%s is as it was: do not start a control plane with it any more",
                         from.place.name);
    }
    backup_list_done(&result.list);
    return err;
}

/* ---- flags ---- */

/* clang-format off */
#define TEXT(name, argument, member, help) \
    {name, 0, OPTION_TEXT, argument, help, offsetof(struct store_values, member)}
#define FLAG(name, letter, member, help) \
    {name, letter, OPTION_FLAG, "", help, offsetof(struct store_values, member)}
#define PLACE_OPTIONS                                                                     \
    TEXT("etcd", "URLS", etcd, "members of etcd: https://10.0.0.1:2379,…"),               \
    TEXT("etcd-ca", "FILE", etcd_ca, "authority of etcd's certificates"),                 \
    TEXT("etcd-cert", "FILE", etcd_cert, "a control plane's certificate for etcd"),       \
    TEXT("etcd-key", "FILE", etcd_key, "its key"),                                        \
    TEXT("user", "NAME", user, "user of the control plane, as its own --user")
#define STORE_OPTION TEXT("store", "KIND", store, "sqlite (in the data directory) or etcd")
#define INTO_OPTIONS                                                                      \
    FLAG("i-know", 0, i_know, "use an etcd of a single member all the same"),             \
    FLAG("force", 'f', force, "replace what the store has"),                              \
    FLAG("no-code", 0, no_code, "also when code of functions is missing")

static const struct option backup_options[] = {
    TEXT("data-dir", "DIR", data_dir, "of a control plane that is not running; no API is asked"),
    STORE_OPTION, PLACE_OPTIONS,
    FLAG("force", 'f', force, "replace FILE"),
    FLAG("no-code", 0, no_code, "leave uploaded code out"),
};
static const struct option restore_options[] = {
    TEXT("data-dir", "DIR", data_dir, "of the control plane (" STORE_DATA_DIR ")"),
    STORE_OPTION, PLACE_OPTIONS, INTO_OPTIONS,
};
static const struct option migrate_options[] = {
    TEXT("from", "STORE", from, "sqlite or etcd, or with its data directory: sqlite:DIR"),
    TEXT("to", "STORE", to, "likewise"),
    TEXT("data-dir", "DIR", data_dir, "where none is named (" STORE_DATA_DIR ")"),
    PLACE_OPTIONS, INTO_OPTIONS,
};
/* clang-format on */

const struct command command_store_backup = {
    .name = "store backup",
    .arguments = "FILE",
    .group = GROUP_RUN,
    .summary = "all registrations and their code as one file",
    .details =
        "Of a running cluster, through its API (an admin's key), as it is at one moment. With\n"
        "--data-dir: of a control plane that is not running. With --store etcd --etcd URLS: from\n"
        "etcd, and the code from the data directory.\nThe file has the key of the cluster's "
        "authority, and digests of the API's keys.",
    .arguments_min = 1,
    .arguments_max = 1,
    .options = backup_options,
    .option_count = ARRAY_COUNT(backup_options),
    .values_bytes = sizeof(struct store_values),
    .is_client = true,
    .run = run_backup};
const struct command command_store_restore = {
    .name = "store restore",
    .arguments = "FILE",
    .group = GROUP_RUN,
    .summary = "fills an empty store from a backup",
    .details =
        "No control plane may be running. The backup is read through before anything is changed.\n"
        "Code goes to the data directory; other control planes ask this one for it.\nJoin tokens "
        "are in no backup: make new ones.",
    .arguments_min = 1,
    .arguments_max = 1,
    .options = restore_options,
    .option_count = ARRAY_COUNT(restore_options),
    .values_bytes = sizeof(struct store_values),
    .run = run_restore};
const struct command command_store_migrate = {
    .name = "store migrate",
    .arguments = "",
    .group = GROUP_RUN,
    .summary = "backup and restore in one, from one kind of store to the other",
    .details = "No control plane may be running. The first store is not changed.",
    .options = migrate_options,
    .option_count = ARRAY_COUNT(migrate_options),
    .values_bytes = sizeof(struct store_values),
    .run = run_migrate};
