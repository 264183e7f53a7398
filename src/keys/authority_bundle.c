/* authority_bundle.c - the root that signs and the one beside it: text, file, rotation. */
#include "keys/authority_internal.h"
#include "keys/key_file.h"
#include "keys/pem.h"
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>

#define FIRST_LINE "# dirigent authority "
#define FORMAT_VERSION 1u

void authority_bundle_done(struct authority_bundle *b)
{
    for (unsigned i = 0; i < b->count; i++)
        authority_free(&b->items[i]);
    *b = (struct authority_bundle){0};
}

enum err authority_bundle_make(struct str cluster, uint64_t now_s,
                               struct authority_bundle *ret_bundle, struct error *e)
{
    struct authority_bundle b = {.count = 1, .since_s = now_s};
    enum err err = authority_make(cluster, now_s, &b.items[0], e);
    if (err == ERR_OK)
        *ret_bundle = b;
    return err;
}

void authority_bundle_roots(const struct authority_bundle *b, struct buf *out)
{
    for (unsigned i = 0; i < b->count; i++)
        certificate_append_pem(b->items[i]->certificate, out);
}

/* ---- as text: "# dirigent authority 1 signer=0 since=S sha256=HEX", then certificate and key of
 * each ---- */

static void head_write(const struct authority_bundle *b, char *ret_head, size_t bytes)
{
    snprintf(ret_head, bytes, FIRST_LINE "%u signer=%u since=%" PRIu64 " sha256=", FORMAT_VERSION,
             b->signer, b->since_s);
}

/* The digest is over all but itself. */
static void digest_text(struct str head, struct str body, char ret_hex[DIGEST_HEX_CHARS + 1])
{
    struct buf both cleanup(key_buf_done) = {0};
    uint8_t digest[DIGEST_BYTES];
    (void)buf_reserve(&both,
                      head.bytes + body.bytes); /* grows once: no copies of keys left behind */
    buf_append_str(&both, head);
    buf_append_str(&both, body);
    digest_of(both.data, both.bytes, digest);
    digest_hex(digest, ret_hex);
}

void authority_bundle_write(const struct authority_bundle *b, struct buf *out)
{
    assert(b->count > 0);
    struct buf body cleanup(key_buf_done) = {0};
    (void)buf_reserve(&body, KEY_FILE_BYTES_MAX);
    for (unsigned i = 0; i < b->count; i++) {
        certificate_append_pem(b->items[i]->certificate, &body);
        key_append_pem(b->items[i]->key, &body);
    }
    char head[128], hex[DIGEST_HEX_CHARS + 1];
    head_write(b, head, sizeof(head));
    digest_text(str_of(head), buf_str(&body), hex);
    (void)buf_reserve(out, strlen(head) + sizeof(hex) + 1 + body.bytes);
    buf_printf(out, "%s%s\n", head, hex);
    buf_append_str(out, buf_str(&body));
}

static enum err head_read(struct str line, struct authority_bundle *b, struct error *e)
{
    char text[256] = "";
    unsigned version = 0;
    if (line.bytes >= sizeof(text) || !str_has_prefix(line, STR(FIRST_LINE)))
        return error_set(e, ERR_CORRUPT, "it is not the file of a cluster's authority, or damaged");
    memcpy(text, line.data, line.bytes);
    int fields = sscanf(text + strlen(FIRST_LINE), "%9u signer=%9u since=%19" SCNu64, &version,
                        &b->signer, &b->since_s);
    if (fields >= 1 && version > FORMAT_VERSION)
        return error_set(e, ERR_VERSION,
                         "it was written by a newer version of dirigent (format %u, here %u)",
                         version, FORMAT_VERSION);
    return fields == 3 && version == FORMAT_VERSION
               ? ERR_OK
               : error_set(e, ERR_CORRUPT, "its first line is damaged");
}

/* What was read must be what would be written: anything else is damage. */
static enum err head_check(const struct authority_bundle *b, struct str line, struct str body,
                           struct error *e)
{
    char head[128], hex[DIGEST_HEX_CHARS + 1], whole[256];
    head_write(b, head, sizeof(head));
    digest_text(str_of(head), body, hex);
    snprintf(whole, sizeof(whole), "%s%s", head, hex);
    if (str_equal(line, str_of(whole)))
        return ERR_OK;
    return error_set(e, ERR_CORRUPT, "it is damaged, or was changed by hand: its digest is wrong");
}

static enum err block_next(struct str *text, enum pem_kind kind, struct pem_block *ret_block,
                           struct error *e)
{
    enum err err = pem_next(text, ret_block, e);
    if (err != ERR_OK)
        return err;
    return ret_block->kind == kind
               ? ERR_OK
               : error_set(e, ERR_CORRUPT, "it has a %s where a %s must be",
                           pem_kind_label(ret_block->kind), pem_kind_label(kind));
}

/* ERR_END: no more. */
static enum err item_read(struct str *text, struct authority **ret_authority, struct error *e)
{
    struct pem_block first cleanup(pem_block_done) = {0}, second cleanup(pem_block_done) = {0};
    X509 *certificate cleanup(certificate_free) = NULL;
    EVP_PKEY *key cleanup(key_free) = NULL;
    enum err err = block_next(text, PEM_CERTIFICATE, &first, e);
    if (err != ERR_OK)
        return err;
    err = block_next(text, PEM_PRIVATE_KEY, &second, e);
    if (err == ERR_END)
        return error_set(e, ERR_CORRUPT, "its last certificate has no key");
    if (err == ERR_OK)
        err = certificate_from_der(first.der, first.bytes, &certificate, e);
    if (err == ERR_OK)
        err = key_from_der(second.der, second.bytes, &key, e);
    return err != ERR_OK ? err : authority_of(&key, &certificate, ret_authority, e);
}

static enum err items_read(struct str text, struct authority_bundle *b, struct error *e)
{
    for (;;) {
        struct authority *a cleanup(authority_free) = NULL;
        enum err err = item_read(&text, &a, e);
        if (err == ERR_END)
            break;
        if (err != ERR_OK)
            return e->code = ERR_CORRUPT; /* whatever it was, the file is damaged */
        if (b->count == ROOTS_MAX)
            return error_set(e, ERR_CORRUPT, "it has more than %u authorities", ROOTS_MAX);
        b->items[b->count++] = a;
        a = NULL;
    }
    if (b->signer >= b->count || strcmp(b->items[0]->cluster, b->items[b->count - 1]->cluster) != 0)
        return error_set(e, ERR_CORRUPT, "its parts do not belong together");
    return ERR_OK;
}

enum err authority_bundle_read(struct str text, struct authority_bundle *ret_bundle,
                               struct error *e)
{
    struct authority_bundle b cleanup(authority_bundle_done) = {0};
    struct error own = {0};
    struct error *why = e != NULL ? e : &own;
    struct str body, line = str_split(text, '\n', &body);
    enum err err = head_read(line, &b, why);
    if (err == ERR_OK)
        err = head_check(&b, line, body, why);
    if (err == ERR_OK)
        err = items_read(body, &b, why);
    if (err != ERR_OK)
        return err;
    *ret_bundle = b;
    b = (struct authority_bundle){0};
    return ERR_OK;
}

/* ---- as a file ---- */

enum err authority_bundle_store(const struct authority_bundle *b, const char *path, struct error *e)
{
    struct buf text cleanup(key_buf_done) = {0};
    authority_bundle_write(b, &text);
    return key_file_write(path, 0600, buf_str(&text), e);
}

enum err authority_bundle_load(const char *path, uint64_t now_s,
                               struct authority_bundle *ret_bundle, struct error *e)
{
    struct buf text cleanup(key_buf_done) = {0};
    struct authority_bundle b cleanup(authority_bundle_done) = {0};
    struct certificate_times times;
    enum err err = key_file_read(path, &text, e);
    if (err != ERR_OK)
        return err; /* the sentence names the file */
    err = authority_bundle_read(buf_str(&text), &b, e);
    if (err == ERR_OK)
        err = authority_check_time(b.items[b.signer], now_s, &times, e);
    if (err != ERR_OK) {
        error_prefix(e, "'%s'", path);
        return err;
    }
    *ret_bundle = b;
    b = (struct authority_bundle){0};
    return ERR_OK;
}

/* ---- rotation ---- */

enum err authority_bundle_begin(struct authority_bundle *b, uint64_t now_s, struct error *e)
{
    assert(b->count > 0);
    if (b->count > 1)
        return error_set(e, ERR_CONFLICT,
                         "a rotation is under way already: two authorities are trusted");
    enum err err = authority_make(str_of(b->items[0]->cluster), now_s, &b->items[1], e);
    if (err != ERR_OK)
        return err;
    b->count = 2;
    b->since_s = now_s;
    return ERR_OK;
}

/* Whoever is in the cluster has asked for a certificate within a lifetime; who has not, has none
 * now. */
static enum err check_waited(const struct authority_bundle *b, uint64_t now_s, uint64_t lifetime_s,
                             bool force, const char *why, struct error *e)
{
    uint64_t due_s = b->since_s + (lifetime_s != 0 ? lifetime_s : CERTIFICATE_LIFETIME_S_DEFAULT);
    if (force || now_s >= due_s)
        return ERR_OK;
    char due[TIME_TEXT_BYTES];
    time_text(due_s, due);
    return error_set(e, ERR_BUSY, "too early: %s before %s", why, due);
}

enum err authority_bundle_switch(struct authority_bundle *b, uint64_t now_s, uint64_t lifetime_s,
                                 bool force, struct error *e)
{
    if (b->count < 2 || b->signer != 0)
        return error_set(e, ERR_CONFLICT,
                         b->count < 2 ? "there is no second authority yet: begin the rotation"
                                      : "the second authority signs already: finish the rotation");
    enum err err = check_waited(b, now_s, lifetime_s, force,
                                "not everybody may have heard of the new authority", e);
    if (err != ERR_OK)
        return err;
    b->signer = 1;
    b->since_s = now_s;
    return ERR_OK;
}

enum err authority_bundle_finish(struct authority_bundle *b, uint64_t now_s, uint64_t lifetime_s,
                                 bool force, struct error *e)
{
    if (b->count < 2 || b->signer != 1)
        return error_set(e, ERR_CONFLICT,
                         b->count < 2 ? "no rotation is under way"
                                      : "the old authority signs still: switch to the new one");
    enum err err = check_waited(b, now_s, lifetime_s, force,
                                "certificates of the old authority may be in use", e);
    if (err != ERR_OK)
        return err;
    authority_free(&b->items[0]);
    b->items[0] = b->items[1];
    b->items[1] = NULL;
    b->count = 1;
    b->signer = 0;
    b->since_s = now_s;
    return ERR_OK;
}
