/* style.h - how things look: colours only on a terminal (and not with NO_COLOR), amounts and times
 * as people say them, aligned tables. stdout is for results, stderr for everything about them. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include <stdio.h>

enum style { STYLE_PLAIN, STYLE_BOLD, STYLE_DIM, STYLE_RED, STYLE_GREEN, STYLE_YELLOW, STYLE_CYAN };

/* https://no-color.org: NO_COLOR that is not empty; also not with TERM=dumb. */
bool style_is_on(FILE *file);
/* The escape sequences to begin and end a style on `file`; "" where there is no colour. */
const char *style_begin(FILE *file, enum style style);
const char *style_end(FILE *file);
/* "error: sentence (field)" on stderr. */
void style_print_error(const struct error *e);
void style_print_note(const char *format, ...) printf_like(1, 2); /* "note: …" on stderr */
/* "ready" is green, "failed" red, … */
enum style style_of_state(const char *state);

/* One line on a terminal's stderr that is replaced by the next; nothing elsewhere. */
void progress_show(const char *format, ...) printf_like(1, 2);
void progress_clear(void);

/* ---- amounts: into at least HUMAN_BYTES_MAX bytes; return ret_text ---- */
#define HUMAN_BYTES_MAX 32
const char *human_bytes(uint64_t bytes, char *ret_text); /* "1.5 GiB" */
const char *human_duration_us(uint64_t us,
                              char *ret_text);         /* "412 µs", "1.3 ms", "2.1 s", "3m 5s" */
const char *human_age_ms(uint64_t ms, char *ret_text); /* "12s", "5m", "3h", "2d" */
const char *human_cpu(uint64_t milli, char *ret_text); /* "0.5", "2" cores */
/* RFC 3339 in UTC as the API writes it, to milliseconds since 1970. False: it is none. */
bool time_parse(const char *text, uint64_t *ret_ms);
const char *human_age_of(const char *rfc3339, uint64_t now_ms,
                         char *ret_text); /* "" when it is no time */

/* ---- tables ---- */
struct table; /* owns copies of its cells */
/* Titles divided by '|'; a title that begins with '>' is for a column of numbers, at the right. */
struct table *table_new(const char *titles);
void table_free(struct table *t);
void table_cell(struct table *t, enum style style, const char *format, ...) printf_like(3, 4);
size_t table_row_count(const struct table *t);
void table_print(const struct table *t, FILE *file);
