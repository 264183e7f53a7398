/* identity.c - the files, and in which order they are touched. */
#include "keys/identity.h"
#include "keys/key_file.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const file_names[] = {"key.pem", "roots.pem", "cert.pem"};

static char *path_of(const char *data_dir, const char *directory, const char *file)
{
    return mem_printf("%s/%s%s%s", data_dir, directory, file[0] != '\0' ? "/" : "", file);
}

static bool is_there(const char *data_dir, const char *directory, const char *file)
{
    cleanup(free_pointer) char *path = path_of(data_dir, directory, file);
    return access(path, F_OK) == 0;
}

void identity_done(struct identity *i)
{
    key_free(&i->key);
    certificate_free(&i->certificate);
    roots_done(&i->roots);
    *i = (struct identity){0};
}

/* ---- checking ---- */

static enum err check_end(const struct identity *i, uint64_t now_s, struct error *e)
{
    char end[TIME_TEXT_BYTES], now[TIME_TEXT_BYTES];
    if (now_s <= i->times.not_after_s)
        return ERR_OK;
    time_text(i->times.not_after_s, end);
    time_text(now_s, now);
    return error_set(e, ERR_PERMISSION,
                     "its certificate ended at %s, and this machine's clock says %s: unless the "
                     "clock is wrong, join again with a new token",
                     end, now);
}

/* All but the key's file, which has been read. */
static enum err check_whole(struct identity *i, const struct subject *expect, uint64_t now_s,
                            struct error *e)
{
    enum err err = certificate_times_of(i->certificate, &i->times, e);
    if (err != ERR_OK)
        return err;
    if (X509_check_private_key(i->certificate, i->key) != 1) {
        ERR_clear_error();
        return error_set(e, ERR_INVALID, "its certificate does not belong to the key beside it");
    }
    err = check_end(i, now_s, e);
    if (err == ERR_OK)
        err = certificate_verify(i->certificate, &i->roots, now_s, &i->subject, e);
    return err == ERR_OK ? subject_expect(&i->subject, expect, e) : err;
}

/* ---- reading ---- */

static enum err name_file(enum err err, const char *path, struct error *e)
{
    if (err != ERR_OK)
        (void)error_prefix(e, "'%s'", path);
    return err;
}

/* The file of a directory that is there: when it is not, somebody took it away. */
static enum err read_part(const char *path, bool is_key, struct buf *ret_text, struct error *e)
{
    enum err err = is_key ? key_file_read(path, ret_text, e) : public_file_read(path, ret_text, e);
    if (err == ERR_NOT_FOUND)
        return error_set(e, ERR_CORRUPT,
                         "'%s' is missing: put it back, or remove the directory and join again "
                         "with a new token",
                         path);
    return err;
}

static enum err read_key(const char *data_dir, const char *directory, EVP_PKEY **ret_key,
                         struct error *e)
{
    cleanup(free_pointer) char *path = path_of(data_dir, directory, "key.pem");
    struct buf text cleanup(key_buf_done) = {0};
    enum err err = read_part(path, true, &text, e);
    return err != ERR_OK ? err : name_file(key_from_pem(buf_str(&text), ret_key, e), path, e);
}

static enum err read_roots(const char *data_dir, struct roots *ret_roots, struct error *e)
{
    cleanup(free_pointer) char *path = path_of(data_dir, "tls", "roots.pem");
    struct buf text cleanup(buf_done) = {0};
    enum err err = read_part(path, false, &text, e);
    return err != ERR_OK ? err : name_file(roots_from_pem(buf_str(&text), ret_roots, e), path, e);
}

static enum err read_certificate(const char *path, X509 **ret_certificate, struct error *e)
{
    struct buf text cleanup(buf_done) = {0};
    enum err err = read_part(path, false, &text, e);
    return err != ERR_OK
               ? err
               : name_file(certificate_from_pem(buf_str(&text), ret_certificate, e), path, e);
}

/* ---- putting in place ---- */

/* Our own files and no others: a directory with more in it stays, and the reason is told. */
static enum err remove_directory(const char *data_dir, const char *directory, struct error *e)
{
    static const char *const suffixes[] = {"", ".new"};
    for (size_t i = 0; i < ARRAY_COUNT(file_names) * ARRAY_COUNT(suffixes); i++) {
        cleanup(free_pointer) char *file = mem_printf(
            "%s%s", file_names[i % ARRAY_COUNT(file_names)], suffixes[i / ARRAY_COUNT(file_names)]);
        cleanup(free_pointer) char *path = path_of(data_dir, directory, file);
        if (unlink(path) < 0 && errno != ENOENT && errno != ENOTDIR)
            return error_errno(e, "remove '%s'", path);
    }
    cleanup(free_pointer) char *path = path_of(data_dir, directory, "");
    if (rmdir(path) < 0 && errno != ENOENT)
        return error_errno(e, "remove directory '%s'", path);
    return ERR_OK;
}

static enum err rename_directory(const char *data_dir, const char *from, const char *to,
                                 struct error *e)
{
    cleanup(free_pointer) char *old = path_of(data_dir, from, "");
    cleanup(free_pointer) char *new = path_of(data_dir, to, "");
    return rename(old, new) < 0 ? error_errno(e, "rename '%s' to '%s'", old, new) : ERR_OK;
}

/* tls.next becomes tls. Where the file system cannot exchange two directories, there is an instant
 * without tls: finish_installation() knows it. */
static enum err put_in_place(const char *data_dir, struct error *e)
{
    cleanup(free_pointer) char *next = path_of(data_dir, "tls.next", "");
    cleanup(free_pointer) char *tls = path_of(data_dir, "tls", "");
    if (!is_there(data_dir, "tls", ""))
        return rename_directory(data_dir, "tls.next", "tls", e);
    if (renameat2(AT_FDCWD, next, AT_FDCWD, tls, RENAME_EXCHANGE) == 0)
        return ERR_OK;
    if (errno != EINVAL && errno != ENOSYS)
        return error_errno(e, "exchange '%s' and '%s'", next, tls);
    enum err err = remove_directory(data_dir, "tls.old", e);
    if (err == ERR_OK)
        err = rename_directory(data_dir, "tls", "tls.old", e);
    return err == ERR_OK ? rename_directory(data_dir, "tls.next", "tls", e) : err;
}

/* The certificate is written last: with it, all three are there. */
static bool next_is_complete(const char *data_dir)
{
    for (size_t i = 0; i < ARRAY_COUNT(file_names); i++)
        if (!is_there(data_dir, "tls.next", file_names[i]))
            return false;
    return true;
}

/* A crash between writing and renaming: there was no identity, or it has stepped aside. */
static enum err finish_installation(const char *data_dir, struct error *e)
{
    if (is_there(data_dir, "tls", "") || !next_is_complete(data_dir))
        return ERR_OK;
    enum err err = rename_directory(data_dir, "tls.next", "tls", e);
    return err == ERR_OK ? dir_sync(data_dir, e) : err;
}

enum err identity_load(const char *data_dir, const struct subject *expect, uint64_t now_s,
                       struct identity *ret_identity, struct error *e)
{
    enum err err = finish_installation(data_dir, e);
    if (err != ERR_OK)
        return err;
    if (!is_there(data_dir, "tls", ""))
        return error_set(e, ERR_NOT_FOUND,
                         "'%s/tls' is not there: this machine has not joined a cluster yet",
                         data_dir);
    cleanup(free_pointer) char *path = path_of(data_dir, "tls", "cert.pem");
    struct identity i cleanup(identity_done) = {0};
    err = read_key(data_dir, "tls", &i.key, e);
    if (err == ERR_OK)
        err = read_roots(data_dir, &i.roots, e);
    if (err == ERR_OK)
        err = read_certificate(path, &i.certificate, e);
    if (err == ERR_OK)
        err = name_file(check_whole(&i, expect, now_s, e), path, e);
    if (err != ERR_OK)
        return err;
    *ret_identity = i;
    i = (struct identity){0};
    return ERR_OK;
}

uint64_t identity_renew_s(const struct identity *i)
{
    uint64_t issued_s = MIN(i->times.not_before_s + CERTIFICATE_BACKDATED_S, i->times.not_after_s);
    uint64_t life_s = i->times.not_after_s - issued_s;
    struct pin pin = certificate_pin(i->certificate); /* new with each key: as good as random */
    return issued_s + life_s / 2 - str_hash(str_of(pin.text)) % (life_s / 10 + 1);
}

/* ---- asking and installing ---- */

/* What a crash or a former installation left. A key that waits alone is kept. */
static enum err tidy(const char *data_dir, struct error *e)
{
    enum err err = finish_installation(data_dir, e);
    if (err == ERR_OK && is_there(data_dir, "tls.next", "cert.pem"))
        err = remove_directory(data_dir, "tls.next", e);
    return err == ERR_OK ? remove_directory(data_dir, "tls.old", e) : err;
}

static enum err make_waiting_key(const char *data_dir, EVP_PKEY **ret_key, struct error *e)
{
    cleanup(free_pointer) char *next = path_of(data_dir, "tls.next", "");
    cleanup(free_pointer) char *path = path_of(data_dir, "tls.next", "key.pem");
    if (mkdir(next, 0700) < 0 && errno != EEXIST)
        return error_errno(e, "make directory '%s'", next);
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf text cleanup(key_buf_done) = {0};
    (void)buf_reserve(&text, 4096); /* grows once: no copies of the key left behind */
    key_append_pem(key, &text);
    enum err err = key_file_write(path, 0600, buf_str(&text), e);
    if (err == ERR_OK)
        err = dir_sync(data_dir, e);
    if (err != ERR_OK)
        return err;
    *ret_key = key;
    key = NULL;
    return ERR_OK;
}

enum err identity_request(const char *data_dir, struct buf *out, struct error *e)
{
    EVP_PKEY *key cleanup(key_free) = NULL;
    enum err err = tidy(data_dir, e);
    if (err != ERR_OK)
        return err;
    bool waits = is_there(data_dir, "tls.next", "key.pem") &&
                 read_key(data_dir, "tls.next", &key, NULL) == ERR_OK;
    if (!waits)
        err = make_waiting_key(data_dir, &key, e);
    if (err == ERR_OK)
        csr_append_pem(key, out);
    return err;
}

enum err identity_forget_request(const char *data_dir, struct error *e)
{
    enum err err = tidy(data_dir, e);
    return err == ERR_OK ? remove_directory(data_dir, "tls.next", e) : err;
}

static enum err check_answer(const char *data_dir, struct str certificate_pem, struct str roots_pem,
                             const struct subject *expect, uint64_t now_s, struct error *e)
{
    struct identity i cleanup(identity_done) = {0};
    enum err err = read_key(data_dir, "tls.next", &i.key, e);
    if (err != ERR_OK)
        return err;
    err = roots_from_pem(roots_pem, &i.roots, e);
    if (err == ERR_OK)
        err = certificate_from_pem(certificate_pem, &i.certificate, e);
    if (err == ERR_OK)
        err = check_whole(&i, expect, now_s, e);
    if (err != ERR_OK)
        (void)error_prefix(e, "the certificate that was answered is not installed");
    return err;
}

static enum err write_next(const char *data_dir, const char *file, struct str text, struct error *e)
{
    cleanup(free_pointer) char *path = path_of(data_dir, "tls.next", file);
    return key_file_write(path, 0644, text, e); /* a crash leaves none rather than an empty one */
}

enum err identity_install(const char *data_dir, struct str certificate_pem, struct str roots_pem,
                          const struct subject *expect, uint64_t now_s, struct error *e)
{
    cleanup(free_pointer) char *next = path_of(data_dir, "tls.next", "");
    if (!is_there(data_dir, "tls.next", "key.pem"))
        return error_set(e, ERR_CONFLICT, "'%s/key.pem' is not there: no request was made", next);
    enum err err = check_answer(data_dir, certificate_pem, roots_pem, expect, now_s, e);
    if (err == ERR_OK)
        err = write_next(data_dir, "roots.pem", roots_pem, e);
    if (err == ERR_OK)
        err = write_next(data_dir, "cert.pem", certificate_pem, e);
    if (err == ERR_OK)
        err = dir_sync(next, e);
    if (err == ERR_OK)
        err = put_in_place(data_dir, e);
    if (err == ERR_OK)
        err = dir_sync(data_dir, e);
    if (err == ERR_OK)
        (void)tidy(data_dir,
                   NULL); /* in force already; what stays is removed with the next request */
    return err;
}

enum err identity_install_roots(const char *data_dir, struct str roots_pem, uint64_t now_s,
                                struct error *e)
{
    cleanup(free_pointer) char *path = path_of(data_dir, "tls", "roots.pem");
    struct identity i cleanup(identity_done) = {0};
    struct subject anyone = {0};
    enum err err = identity_load(data_dir, &anyone, now_s, &i, e);
    if (err != ERR_OK)
        return err;
    roots_done(&i.roots);
    err = roots_from_pem(roots_pem, &i.roots, e);
    if (err == ERR_OK)
        err = check_whole(&i, &i.subject, now_s, e);
    if (err != ERR_OK) {
        (void)error_prefix(e, "the authorities that were sent are not installed");
        return err;
    }
    return key_file_write(path, 0644, roots_pem, e);
}
