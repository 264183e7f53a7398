/* store_place.c - what control_plane.c does at its start, for a program that ends at once. */
#include "cli/store_place.h"
#include "base/privileges.h"
#include "base/program.h"
#include "base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void store_place_done(struct store_place *p)
{
    fd_close(&p->place.code_fd);
    fd_close(&p->lock_fd);
    free(p->where);
    free(p->name);
    free(p->data_path);
}

/* ---- the other user ---- */

static enum err user_take(const struct store_place *p, struct error *e)
{
    if (geteuid() != 0 || p->uid == 0)
        return ERR_OK;
    if (setegid(p->gid) != 0 || seteuid(p->uid) != 0)
        return error_errno(e, "become user %u", (unsigned)p->uid);
    return ERR_OK;
}

static void user_give_back(void)
{
    if (getuid() == 0 && (seteuid(0) != 0 || setegid(0) != 0))
        abort(); /* root cannot be refused itself */
}

/* ---- what is named ---- */

struct named {
    bool is_etcd;
    char *data_dir; /* the caller's to free */
};

static enum err name_read(const struct store_values *v, const char *text, struct named *ret,
                          struct error *e)
{
    const char *given = text != NULL ? text : v->store != NULL ? v->store : "sqlite";
    struct str directory = STR_NONE, kind = str_split(str_of(given), ':', &directory);
    const char *fallback = v->data_dir != NULL ? v->data_dir : STORE_DATA_DIR;
    *ret = (struct named){.is_etcd = str_equal(kind, STR("etcd"))};
    if (!ret->is_etcd && !str_equal(kind, STR("sqlite")))
        return error_set(e, ERR_USAGE, "'%s' is no store: sqlite or etcd", given);
    if (text == NULL && v->etcd != NULL && !ret->is_etcd)
        return error_set(e, ERR_USAGE, "--etcd is for --store etcd");
    if (ret->is_etcd && v->etcd == NULL)
        return error_set(e, ERR_USAGE, "etcd needs --etcd with the addresses of its members");
    if (directory.data != NULL && (text == NULL || directory.bytes == 0))
        return error_set(e, ERR_USAGE, "'%s' is no store: sqlite or etcd%s", given,
                         text == NULL ? " (and --data-dir)" : "");
    ret->data_dir = directory.data != NULL ? mem_strndup(directory.data, directory.bytes)
                                           : mem_strdup(fallback);
    return ERR_OK;
}

/* NAME@MEMBERS?OPTIONS, as store_etcd reads it. The name is no control plane's. */
static char *etcd_where(const struct store_values *v, enum store_place_use use)
{
    const struct {
        const char *key, *value;
    } options[] = {{"ca", v->etcd_ca}, {"cert", v->etcd_cert}, {"key", v->etcd_key}};
    struct buf where = {0};
    buf_printf(&where, "restore@%s?", v->etcd);
    for (size_t i = 0; i < ARRAY_COUNT(options); i++)
        if (options[i].value != NULL)
            buf_printf(&where, "%s=%s&", options[i].key, options[i].value);
    if (v->i_know || use == STORE_PLACE_READ)
        buf_printf(&where, "single=1&");
    return buf_take_text(&where);
}

/* ---- opening ---- */

static enum err code_open(struct store_place *p, enum store_place_use use, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" BACKUP_CODE_DIR, p->data_path);
    enum err err = user_take(p, e);
    if (err == ERR_OK && use == STORE_PLACE_WRITE)
        err = dir_make_all(path, 0700, e);
    if (err == ERR_OK) {
        p->place.code_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (p->place.code_fd < 0 && (use == STORE_PLACE_WRITE || errno != ENOENT))
            err = error_errno(e, "open the directory with code '%s'", path);
    }
    user_give_back();
    return err;
}

/* A control plane's start would make a new store. */
static enum err refuse_missing(const char *data_dir, struct error *e)
{
    struct stat st;
    cleanup(free_pointer) char *path = mem_printf("%s/control-plane/" BACKUP_STORE_FILE, data_dir);
    if (stat(path, &st) == 0)
        return ERR_OK;
    if (errno == ENOENT || errno == ENOTDIR)
        return error_set(e, ERR_NOT_FOUND, "there is no store in '%s': '%s' is missing", data_dir,
                         path);
    return error_errno(e, "look for the store file '%s'", path);
}

static bool is_same_directory(const char *a, const char *b)
{
    struct stat of_a, of_b;
    return stat(a, &of_a) == 0 && stat(b, &of_b) == 0 && of_a.st_dev == of_b.st_dev &&
           of_a.st_ino == of_b.st_ino;
}

static enum err directory_open(struct store_place *p, const struct named *n,
                               enum store_place_use use, const struct store_place *other,
                               struct error *e)
{
    p->data_path = mem_printf("%s/control-plane", n->data_dir);
    if (use == STORE_PLACE_READ && n->is_etcd)
        return ERR_OK;
    if (other != NULL && other->lock_fd >= 0 && is_same_directory(p->data_path, other->data_path))
        return ERR_OK;
    char *path = NULL;
    enum err err =
        program_dir_open(n->data_dir, "control-plane", p->uid, p->gid, &path, &p->lock_fd, e);
    free(path);
    if (err == ERR_BUSY)
        error_prefix(e,
                     use == STORE_PLACE_READ
                         ? "a control plane is running (it is backed up through its API, without "
                           "--data-dir and --store)"
                         : "a control plane is running: stop it first");
    return err;
}

static enum err open_named(struct store_place *p, const struct store_values *v,
                           const struct named *n, enum store_place_use use,
                           const struct store_place *other, struct error *e)
{
    enum err err = privileges_resolve(v->user != NULL ? v->user : "", PRIVILEGES_UID_CONTROL_PLANE,
                                      &p->uid, &p->gid, e);
    if (err == ERR_OK && !n->is_etcd && use == STORE_PLACE_READ)
        err = refuse_missing(n->data_dir, e);
    if (err == ERR_OK)
        err = directory_open(p, n, use, other, e);
    if (err == ERR_OK)
        err = code_open(p, use, e);
    if (err != ERR_OK)
        return err;
    if (n->is_etcd) {
        p->where = etcd_where(v, use);
        p->name = mem_printf("the etcd at %s", v->etcd);
    } else {
        p->where = mem_printf("%s/" BACKUP_STORE_FILE, p->data_path);
        p->name = mem_printf("the store in '%s'", n->data_dir);
    }
    p->place.backend = n->is_etcd ? &store_etcd : &store_sqlite;
    p->place.where = p->where;
    p->place.name = p->name;
    return ERR_OK;
}

static enum err open_text(struct store_place *p, const struct store_values *v, const char *text,
                          enum store_place_use use, const struct store_place *other,
                          struct error *e)
{
    struct named n = {0};
    enum err err = name_read(v, text, &n, e);
    if (err == ERR_OK)
        err = open_named(p, v, &n, use, other, e);
    free(n.data_dir);
    return err;
}

enum err store_place_open(struct store_place *p, const struct store_values *v, const char *text,
                          enum store_place_use use, struct error *e)
{
    return open_text(p, v, text, use, NULL, e);
}

enum err store_place_open_beside(struct store_place *p, const struct store_values *v,
                                 const char *text, const struct store_place *other, struct error *e)
{
    return open_text(p, v, text, STORE_PLACE_WRITE, other, e);
}

bool store_place_is(const struct store_place *p, const struct store_values *v, const char *text)
{
    struct named n = {0};
    struct error e = {0};
    bool is_etcd = p->place.backend == &store_etcd, same = false;
    if (name_read(v, text, &n, &e) == ERR_OK) {
        cleanup(free_pointer) char *path = mem_printf("%s/control-plane", n.data_dir);
        same = n.is_etcd == is_etcd && (is_etcd || is_same_directory(path, p->data_path));
    }
    free(n.data_dir);
    return same;
}

bool store_place_shares_code(const struct store_place *a, const struct store_place *b)
{
    return is_same_directory(a->data_path, b->data_path);
}

/* ---- as that user ---- */

enum err store_place_save(const struct store_place *p, bool with_code, int fd, const char *name,
                          struct backup_result *ret, struct error *e)
{
    enum err err = user_take(p, e);
    if (err == ERR_OK)
        err = backup_save(&p->place, with_code, fd, name, ret, e);
    user_give_back();
    return err;
}

enum err store_place_restore(const struct store_place *p, const struct backup_restore *how,
                             struct backup_result *ret, struct error *e)
{
    enum err err = user_take(p, e);
    if (err == ERR_OK)
        err = backup_restore(&p->place, how, ret, e);
    user_give_back();
    return err;
}

enum err store_place_temporary(const struct store_place *p, int *ret_fd, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/.migrate-XXXXXX", p->data_path);
    enum err err = user_take(p, e);
    if (err == ERR_OK) {
        *ret_fd = mkostemp(path, O_CLOEXEC);
        if (*ret_fd < 0 || unlink(path) != 0)
            err = error_errno(e, "make a file in '%s'", p->data_path);
    }
    user_give_back();
    return err;
}
