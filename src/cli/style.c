/* style.c - ECMA-48 colours, tables, amounts. */
#include "cli/style.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- colours ---- */

bool style_is_on(FILE *file)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if (no_color != NULL && no_color[0] != '\0')
        return false;
    if (term == NULL || strcmp(term, "dumb") == 0)
        return false;
    return isatty(fileno(file)) == 1;
}

const char *style_begin(FILE *file, enum style style)
{
    static const char *const sequences[] = {
        [STYLE_PLAIN] = "",        [STYLE_BOLD] = "\x1b[1m",   [STYLE_DIM] = "\x1b[2m",
        [STYLE_RED] = "\x1b[31m",  [STYLE_GREEN] = "\x1b[32m", [STYLE_YELLOW] = "\x1b[33m",
        [STYLE_CYAN] = "\x1b[36m",
    };
    return style_is_on(file) ? sequences[style] : "";
}

const char *style_end(FILE *file)
{
    return style_is_on(file) ? "\x1b[0m" : "";
}

void style_print_error(const struct error *e)
{
    progress_clear();
    bool field_is_said = e->field[0] == '\0' || strstr(e->text, e->field) != NULL;
    (void)fflush(stdout);
    fprintf(stderr, "%serror:%s %s", style_begin(stderr, STYLE_RED), style_end(stderr), e->text);
    if (!field_is_said)
        fprintf(stderr, " (%s)", e->field);
    fprintf(stderr, "\n");
}

void style_print_note(const char *format, ...)
{
    va_list arguments;
    progress_clear();
    fprintf(stderr, "%snote:%s ", style_begin(stderr, STYLE_YELLOW), style_end(stderr));
    va_start(arguments, format);
    (void)vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
}

enum style style_of_state(const char *state)
{
    static const struct {
        const char *state;
        enum style style;
    } styles[] = {
        {"ready", STYLE_GREEN},     {"alive", STYLE_GREEN},    {"idle", STYLE_DIM},
        {"starting", STYLE_CYAN},   {"updating", STYLE_CYAN},  {"draining", STYLE_YELLOW},
        {"stopping", STYLE_YELLOW}, {"awaited", STYLE_YELLOW}, {"suspected", STYLE_YELLOW},
        {"degraded", STYLE_YELLOW}, {"failed", STYLE_RED},     {"dead", STYLE_RED},
    };
    for (size_t i = 0; i < ARRAY_COUNT(styles); i++)
        if (strcmp(styles[i].state, state) == 0)
            return styles[i].style;
    return STYLE_PLAIN;
}

/* ---- progress ---- */

void progress_show(const char *format, ...)
{
    if (!style_is_on(stderr))
        return;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "\r\x1b[K\x1b[2m");
    (void)vfprintf(stderr, format, arguments);
    fprintf(stderr, "\x1b[0m");
    va_end(arguments);
    (void)fflush(stderr);
}

void progress_clear(void)
{
    if (style_is_on(stderr))
        fprintf(stderr, "\r\x1b[K");
}

/* ---- amounts ---- */

/* At most three digits: "1.5", "12", "940". */
static void write_scaled(double value, const char *unit, char *ret_text)
{
    (void)snprintf(ret_text, HUMAN_BYTES_MAX, value < 9.95 ? "%.1f %s" : "%.0f %s", value, unit);
}

const char *human_bytes(uint64_t bytes, char *ret_text)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1023.5 && unit + 1 < ARRAY_COUNT(units)) {
        value /= 1024;
        unit++;
    }
    if (unit == 0)
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 " B", bytes);
    else
        write_scaled(value, units[unit], ret_text);
    return ret_text;
}

const char *human_duration_us(uint64_t us, char *ret_text)
{
    if (us < 1000)
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 " µs", us);
    else if (us < 999500)
        write_scaled((double)us / 1e3, "ms", ret_text);
    else if (us < UINT64_C(60000000))
        write_scaled((double)us / 1e6, "s", ret_text);
    else
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 "m %" PRIu64 "s", us / 60000000,
                       us / 1000000 % 60);
    return ret_text;
}

const char *human_age_ms(uint64_t ms, char *ret_text)
{
    uint64_t s = ms / 1000;
    if (s < 120)
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 "s", s);
    else if (s < 2 * 3600)
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 "m", s / 60);
    else if (s < 2 * 86400)
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 "h", s / 3600);
    else
        (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%" PRIu64 "d", s / 86400);
    return ret_text;
}

const char *human_cpu(uint64_t milli, char *ret_text)
{
    (void)snprintf(ret_text, HUMAN_BYTES_MAX, "%.3g", (double)milli / 1000);
    return ret_text;
}

bool time_parse(const char *text, uint64_t *ret_ms)
{
    struct tm utc = {0};
    unsigned ms = 0;
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &utc);
    if (rest == NULL)
        return false;
    if (*rest == '.')
        ms = (unsigned)(strtod(rest, NULL) * 1000 + 0.5);
    time_t seconds = timegm(&utc);
    if (seconds < 0)
        return false;
    *ret_ms = (uint64_t)seconds * 1000 + MIN(ms, 999);
    return true;
}

const char *human_age_of(const char *rfc3339, uint64_t now_ms, char *ret_text)
{
    uint64_t then_ms;
    ret_text[0] = '\0';
    if (time_parse(rfc3339, &then_ms))
        (void)human_age_ms(now_ms > then_ms ? now_ms - then_ms : 0, ret_text);
    return ret_text;
}

/* ---- tables ---- */

struct cell {
    char *text;
    enum style style;
};
struct table {
    size_t column_count, cell_count, capacity;
    struct cell *cells; /* row by row; the titles are the first row */
    bool *right;
};

static void add_cell(struct table *t, char *text, enum style style)
{
    if (t->cell_count == t->capacity) {
        t->capacity = t->capacity * 2 + 16;
        t->cells = mem_resize(t->cells, t->capacity, sizeof(*t->cells));
    }
    t->cells[t->cell_count++] = (struct cell){text, style};
}

struct table *table_new(const char *titles)
{
    struct table *t = mem_new(sizeof(*t));
    struct str rest = str_of(titles);
    while (rest.data != NULL) {
        struct str title = str_split(rest, '|', &rest);
        bool right = title.bytes > 0 && title.data[0] == '>';
        t->right = mem_resize(t->right, t->column_count + 1, sizeof(*t->right));
        t->right[t->column_count++] = right;
        add_cell(t, mem_strndup(title.data + right, title.bytes - right), STYLE_BOLD);
    }
    return t;
}

void table_free(struct table *t)
{
    for (size_t i = 0; i < t->cell_count; i++)
        free(t->cells[i].text);
    free(t->cells);
    free(t->right);
    free(t);
}

void table_cell(struct table *t, enum style style, const char *format, ...)
{
    char *text = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        abort();
    va_end(arguments);
    for (char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = ' '; /* what came from elsewhere must not drive the terminal */
    add_cell(t, text, style);
}

size_t table_row_count(const struct table *t)
{
    return t->cell_count / t->column_count - 1;
}

/* Places on the screen: continuation bytes of UTF-8 take none. */
static size_t width_of(const char *text)
{
    size_t width = 0;
    for (; *text != '\0'; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

void table_print(const struct table *t, FILE *file)
{
    assert(t->cell_count % t->column_count == 0);
    size_t *widths = mem_new_array(t->column_count, sizeof(*widths));
    for (size_t i = 0; i < t->cell_count; i++)
        widths[i % t->column_count] = MAX(widths[i % t->column_count], width_of(t->cells[i].text));
    for (size_t i = 0; i < t->cell_count; i++) {
        size_t column = i % t->column_count;
        const struct cell *c = &t->cells[i];
        int space = (int)(widths[column] - width_of(c->text));
        bool last = column + 1 == t->column_count;
        if (t->right[column])
            fprintf(file, "%*s", space, "");
        fprintf(file, "%s%s%s", style_begin(file, c->style), c->text, style_end(file));
        if (last)
            fprintf(file, "\n");
        else
            fprintf(file, "%*s", t->right[column] ? 2 : space + 2, "");
    }
    free(widths);
}
