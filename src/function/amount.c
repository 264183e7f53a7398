/* amount.c - the texts in which people write bytes, cpu and durations, and command lines. */
#include "function/function.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unit {
    const char *suffix;
    uint64_t factor;
};
/* Kubernetes' quantities: powers of two with an i, powers of ten without. */
static const struct unit byte_units[] = {
    {"", 1},
    {"B", 1},
    {"Ki", KIB},
    {"Mi", MIB},
    {"Gi", GIB},
    {"Ti", GIB * 1024},
    {"KiB", KIB},
    {"MiB", MIB},
    {"GiB", GIB},
    {"k", 1000},
    {"K", 1000},
    {"M", 1000000},
    {"G", 1000000000},
    {"T", UINT64_C(1000000000000)},
    {"KB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
};
static const struct unit cpu_units[] = {{"", 1000}, {"m", 1}};
static const struct unit duration_units[] = {
    {"ms", 1}, {"s", 1000}, {"m", 60 * 1000}, {"h", 60 * 60 * 1000}};

/* Digits with at most one point, at most 9 digits behind it, as `units` and billionths of one. */
struct decimal {
    uint64_t whole;
    uint64_t billionths;
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Reads the number at the front; *ret_rest is what follows. */
static bool read_decimal(struct str text, struct decimal *ret, struct str *ret_rest)
{
    size_t i = 0;
    *ret = (struct decimal){0};
    for (; i < text.bytes && is_digit(text.data[i]); i++) {
        if (__builtin_mul_overflow(ret->whole, 10, &ret->whole) ||
            __builtin_add_overflow(ret->whole, (uint64_t)(text.data[i] - '0'), &ret->whole))
            return false;
    }
    if (i == 0)
        return false;
    if (i < text.bytes && text.data[i] == '.') {
        size_t first = ++i;
        uint64_t place = 100000000;
        for (; i < text.bytes && is_digit(text.data[i]); i++) {
            if (i - first >= 9)
                return false;
            ret->billionths += (uint64_t)(text.data[i] - '0') * place;
            place /= 10;
        }
        if (i == first)
            return false;
    }
    *ret_rest = (struct str){text.data + i, text.bytes - i};
    return true;
}

/* decimal * factor, when that is whole and fits. */
static bool scale_decimal(struct decimal d, uint64_t factor, uint64_t *ret)
{
    __uint128_t billionths = (__uint128_t)d.billionths * factor;
    __uint128_t value = (__uint128_t)d.whole * factor + billionths / 1000000000;
    if (billionths % 1000000000 != 0 || value > UINT64_MAX)
        return false;
    *ret = (uint64_t)value;
    return true;
}

static bool read_amount(struct str text, const struct unit *units, size_t count, uint64_t *ret)
{
    struct decimal number;
    struct str suffix;
    if (!read_decimal(text, &number, &suffix))
        return false;
    for (size_t i = 0; i < count; i++)
        if (str_equal(suffix, str_of(units[i].suffix)))
            return scale_decimal(number, units[i].factor, ret);
    return false;
}

enum err parse_bytes(struct str text, uint64_t *ret_bytes, struct error *e)
{
    if (!read_amount(text, byte_units, ARRAY_COUNT(byte_units), ret_bytes))
        return error_set(
            e, ERR_INVALID,
            "'%.*s' is no amount of bytes: write a number, with Ki, Mi or Gi behind it "
            "when it is not bytes (for example 256Mi)",
            (int)MIN(text.bytes, 64), text.data);
    return ERR_OK;
}

enum err parse_cpu_milli(struct str text, uint32_t *ret_milli, struct error *e)
{
    uint64_t milli;
    if (!read_amount(text, cpu_units, ARRAY_COUNT(cpu_units), &milli) || milli > UINT32_MAX)
        return error_set(e, ERR_INVALID,
                         "'%.*s' is no amount of cpu: write cores (0.5, 2) or thousandths of one "
                         "(500m)",
                         (int)MIN(text.bytes, 64), text.data);
    *ret_milli = (uint32_t)milli;
    return ERR_OK;
}

/* "90s", and like Go's also several parts: "1m30s". */
static bool read_duration(struct str text, uint64_t *ret_ms)
{
    uint64_t total = 0;
    if (str_equal(text, STR("0"))) {
        *ret_ms = 0;
        return true;
    }
    while (text.bytes > 0) {
        struct decimal number;
        struct str rest;
        uint64_t part = 0;
        if (!read_decimal(text, &number, &rest))
            return false;
        size_t letters = 0;
        while (letters < rest.bytes && !is_digit(rest.data[letters]))
            letters++;
        struct str suffix = {rest.data, letters};
        bool known = false;
        for (size_t i = 0; i < ARRAY_COUNT(duration_units) && !known; i++)
            if (str_equal(suffix, str_of(duration_units[i].suffix)))
                known = scale_decimal(number, duration_units[i].factor, &part);
        if (!known || part > UINT32_MAX - total)
            return false;
        total += part;
        text = (struct str){rest.data + letters, rest.bytes - letters};
    }
    *ret_ms = total;
    return true;
}

enum err parse_duration_ms(struct str text, uint32_t *ret_ms, struct error *e)
{
    uint64_t ms;
    if (text.bytes == 0 || !read_duration(text, &ms))
        return error_set(e, ERR_INVALID,
                         "'%.*s' is no duration: write a number and its unit, ms, s, m or h "
                         "(for example 10s)",
                         (int)MIN(text.bytes, 64), text.data != NULL ? text.data : "");
    *ret_ms = (uint32_t)ms;
    return ERR_OK;
}

void format_bytes(uint64_t bytes, char *ret_text)
{
    static const struct unit units[] = {{"Ti", GIB * 1024}, {"Gi", GIB}, {"Mi", MIB}, {"Ki", KIB}};
    for (size_t i = 0; i < ARRAY_COUNT(units); i++) {
        if (bytes == 0 || bytes % units[i].factor != 0)
            continue;
        snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%" PRIu64 "%s", bytes / units[i].factor,
                 units[i].suffix);
        return;
    }
    snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%" PRIu64, bytes);
}

void format_cpu_milli(uint32_t milli, char *ret_text)
{
    snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%" PRIu32 "m", milli);
}

void format_duration_ms(uint64_t ms, char *ret_text)
{
    if (ms % 1000 == 0)
        snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%" PRIu64 "s", ms / 1000);
    else
        snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%" PRIu64 "ms", ms);
}

/* ---- command lines ---- */

struct words {
    char **items; /* always ended by a NULL */
    uint32_t count;
};

static void words_add(struct words *words, struct buf *word)
{
    words->items = mem_resize(words->items, words->count + 2u, sizeof(char *));
    words->items[words->count++] = buf_take_text(word);
    words->items[words->count] = NULL;
}

static void words_done(struct words *words)
{
    for (uint32_t i = 0; i < words->count; i++)
        free(words->items[i]);
    free(words->items);
    *words = (struct words){0};
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* One quoted part, from behind its opening quote; returns the index behind its end, or 0 when there
 * is no end. POSIX XCU 2.2.2, 2.2.3. */
static size_t read_quoted(struct str text, size_t i, char quote, struct buf *word)
{
    for (; i < text.bytes; i++) {
        char c = text.data[i];
        if (c == quote)
            return i + 1;
        bool escapes = quote == '"' && c == '\\' && i + 1 < text.bytes &&
                       strchr("\"\\$`", text.data[i + 1]) != NULL;
        if (escapes)
            c = text.data[++i];
        buf_append(word, &c, 1);
    }
    return 0;
}

/* One word from i; returns the index behind it, or 0 with the reason in *ret_why. */
static size_t read_word(struct str text, size_t i, struct buf *word, const char **ret_why)
{
    while (i < text.bytes && !is_blank(text.data[i])) {
        char c = text.data[i++];
        if (c == '\'' || c == '"') {
            i = read_quoted(text, i, c, word);
            if (i == 0) {
                *ret_why =
                    c == '"' ? "a double quote is not closed" : "a single quote is not closed";
                return 0;
            }
            continue;
        }
        if (c == '\\') {
            if (i == text.bytes) {
                *ret_why = "it ends in a backslash";
                return 0;
            }
            c = text.data[i++];
        }
        buf_append(word, &c, 1);
    }
    return i;
}

enum err parse_command_line(struct str text, char ***ret_argv, uint32_t *ret_count, struct error *e)
{
    struct words words = {0};
    const char *why = NULL;
    if (text.bytes > 0 && memchr(text.data, 0, text.bytes) != NULL)
        why = "it has a NUL byte in it";
    for (size_t i = 0; why == NULL && i < text.bytes;) {
        if (is_blank(text.data[i])) {
            i++;
            continue;
        }
        cleanup(buf_done) struct buf word = {0};
        i = read_word(text, i, &word, &why);
        if (why == NULL)
            words_add(&words, &word);
    }
    if (why == NULL && words.count == 0)
        why = "it is empty";
    if (why != NULL) {
        words_done(&words);
        return error_set(e, ERR_INVALID, "the command line cannot be read: %s", why);
    }
    *ret_argv = words.items;
    *ret_count = words.count;
    return ERR_OK;
}
