/* pem.c - a line at a time. Base64 is decoded here because libcrypto's takes '=' anywhere. */
#include "keys/pem.h"
#include "keys/secret.h"
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

#define LINE_CHARS_MAX 76u /* RFC 2045 6.8; we write 64 */

static const char *const labels[PEM_KIND_COUNT] = {
    [PEM_PRIVATE_KEY] = "PRIVATE KEY",
    [PEM_CERTIFICATE] = "CERTIFICATE",
    [PEM_CSR] = "CERTIFICATE REQUEST",
};

const char *pem_kind_label(enum pem_kind kind)
{
    assert(kind < PEM_KIND_COUNT);
    return labels[kind];
}

void pem_block_done(struct pem_block *b)
{
    if (b->der != NULL)
        secret_wipe(b->der, b->bytes);
    free(b->der);
    *b = (struct pem_block){0};
}

static struct str take_line(struct str *text)
{
    struct str rest, line = str_split(*text, '\n', &rest);
    *text = rest;
    if (line.bytes > 0 && line.data[line.bytes - 1] == '\r')
        line.bytes--;
    return line;
}

/* "-----<word> <label>-----" */
static bool is_mark(struct str line, const char *word, enum pem_kind kind)
{
    char mark[64];
    int bytes = snprintf(mark, sizeof(mark), "-----%s %s-----", word, labels[kind]);
    return str_equal(line, (struct str){mark, (size_t)bytes});
}

static int sextet(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

struct decoder {
    struct pem_block *block; /* der has room for all of the text */
    uint32_t bits;
    unsigned bit_count, chars, pads;
};

static bool decode_char(struct decoder *d, char c)
{
    d->chars++;
    if (c == '=')
        return ++d->pads <= 2;
    int value = sextet(c);
    if (value < 0 || d->pads > 0)
        return false;
    d->bits = d->bits << 6 | (uint32_t)value;
    d->bit_count += 6;
    if (d->bit_count >= 8) {
        d->bit_count -= 8;
        d->block->der[d->block->bytes++] = (uint8_t)(d->bits >> d->bit_count);
    }
    d->bits &= (1u << d->bit_count) - 1;
    return true;
}

static bool decode_line(struct decoder *d, struct str line)
{
    if (line.bytes == 0 || line.bytes > LINE_CHARS_MAX || d->pads > 0)
        return false;
    for (size_t i = 0; i < line.bytes; i++)
        if (!decode_char(d, line.data[i]))
            return false;
    return true;
}

/* Whole groups of four, and nothing in the bits that stand for no byte (RFC 4648 3.5). */
static bool decode_end(const struct decoder *d)
{
    return d->chars % 4 == 0 && d->bits == 0 && d->block->bytes > 0;
}

static enum err decode_body(struct str *text, struct pem_block *block, struct error *e)
{
    const char *label = labels[block->kind];
    struct decoder d = {.block = block};
    block->der = mem_new(text->bytes); /* base64 never grows when it is decoded */
    while (text->bytes > 0) {
        struct str line = take_line(text);
        if (is_mark(line, "END", block->kind))
            return decode_end(&d) ? ERR_OK
                                  : error_set(e, ERR_INVALID, "its %s ends too early", label);
        if (!decode_line(&d, line))
            return error_set(e, ERR_INVALID, "its %s has a line that is no base64", label);
    }
    return error_set(e, ERR_INVALID, "its %s has no end: it is cut off", label);
}

static enum err block_begin(struct str line, enum pem_kind *ret_kind, struct error *e)
{
    for (enum pem_kind kind = 0; kind < PEM_KIND_COUNT; kind++) {
        if (is_mark(line, "BEGIN", kind)) {
            *ret_kind = kind;
            return ERR_OK;
        }
    }
    if (str_has_prefix(line, STR("-----BEGIN EC PRIVATE")) ||
        str_has_prefix(line, STR("-----BEGIN ENCRYPTED")))
        return error_set(e, ERR_INVALID,
                         "its key must be plain PKCS#8 ('BEGIN PRIVATE KEY'): 'openssl pkcs8 "
                         "-topk8 -nocrypt' writes that");
    return error_set(e, ERR_INVALID, "it has a line that is not PEM");
}

enum err pem_next(struct str *text, struct pem_block *ret_block, struct error *e)
{
    struct str rest = *text;
    while (rest.bytes > 0) {
        struct str line = take_line(&rest);
        if (line.bytes == 0 || line.data[0] == '#')
            continue;
        struct pem_block block cleanup(pem_block_done) = {0};
        enum err err = block_begin(line, &block.kind, e);
        if (err == ERR_OK)
            err = decode_body(&rest, &block, e);
        if (err != ERR_OK)
            return err;
        *ret_block = block;
        block = (struct pem_block){0};
        *text = rest;
        return ERR_OK;
    }
    *text = STR_NONE;
    return ERR_END;
}

enum err pem_only(struct str text, enum pem_kind kind, struct pem_block *ret_block, struct error *e)
{
    struct pem_block block cleanup(pem_block_done) = {0}, more cleanup(pem_block_done) = {0};
    enum err err = pem_next(&text, &block, e);
    if (err == ERR_END)
        return error_set(e, ERR_INVALID, "it is empty, and must hold a %s", labels[kind]);
    if (err != ERR_OK)
        return err;
    if (block.kind != kind)
        return error_set(e, ERR_INVALID, "it holds a %s and no %s", labels[block.kind],
                         labels[kind]);
    err = pem_next(&text, &more, e);
    if (err == ERR_OK)
        return error_set(e, ERR_INVALID, "it holds more than one %s", labels[kind]);
    if (err != ERR_END)
        return err;
    *ret_block = block;
    block = (struct pem_block){0};
    return ERR_OK;
}

void pem_append(struct buf *out, enum pem_kind kind, const uint8_t *der, size_t bytes)
{
    buf_printf(out, "-----BEGIN %s-----\n", labels[kind]);
    for (size_t at = 0; at < bytes; at += 48) {
        unsigned char line[65];
        int chars = EVP_EncodeBlock(line, der + at, (int)MIN(bytes - at, (size_t)48));
        buf_append(out, line, (size_t)chars);
        buf_append(out, "\n", 1);
        secret_wipe(line, sizeof(line));
    }
    buf_printf(out, "-----END %s-----\n", labels[kind]);
}
