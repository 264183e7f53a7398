/* receipt.c - name;dur=1.5;desc="cold", … */
#include "cli/receipt.h"
#include "cli/style.h"
#include <stdlib.h>
#include <string.h>

#define BAR_WIDTH 32

/* Up to a separator that is not inside quotes. */
static struct str take_until(struct str *rest, char separator)
{
    bool quoted = false;
    struct str whole = *rest;
    for (size_t i = 0; i < whole.bytes; i++) {
        if (whole.data[i] == '"')
            quoted = !quoted;
        if (whole.data[i] == separator && !quoted) {
            *rest = (struct str){whole.data + i + 1, whole.bytes - i - 1};
            return (struct str){whole.data, i};
        }
    }
    *rest = STR_NONE;
    return whole;
}

static void copy_text(char *place, size_t bytes, struct str text)
{
    size_t used = 0;
    for (size_t i = 0; i < text.bytes && used + 1 < bytes; i++)
        if (text.data[i] != '"' && (unsigned char)text.data[i] >= ' ')
            place[used++] = text.data[i];
    place[used] = '\0';
}

static void parse_part(struct str text, struct receipt *r)
{
    struct receipt_part part = {0};
    struct str rest = text, name = str_trim(take_until(&rest, ';'));
    copy_text(part.name, sizeof(part.name), name);
    if (part.name[0] == '\0' || r->count == RECEIPT_PARTS_MAX)
        return;
    while (rest.data != NULL) {
        struct str value, key = str_trim(take_until(&rest, ';'));
        key = str_trim(str_split(key, '=', &value));
        if (value.data == NULL)
            continue;
        value = str_trim(value);
        if (str_equal_nocase(key, STR("dur"))) {
            char number[32];
            copy_text(number, sizeof(number), value);
            part.ms = strtod(number, NULL);
            part.has_duration = part.ms >= 0 && part.ms < 1e12;
        } else if (str_equal_nocase(key, STR("desc"))) {
            copy_text(part.text, sizeof(part.text), value);
        }
    }
    if (!part.has_duration)
        part.ms = 0;
    r->parts[r->count++] = part;
}

void receipt_parse(struct str value, struct receipt *r)
{
    while (value.data != NULL)
        parse_part(take_until(&value, ','), r);
}

void receipt_print(const struct receipt *r, FILE *file)
{
    double longest = 0;
    char took[HUMAN_BYTES_MAX];
    for (size_t i = 0; i < r->count; i++)
        longest = MAX(longest, r->parts[i].ms);
    for (size_t i = 0; i < r->count; i++) {
        const struct receipt_part *p = &r->parts[i];
        if (!p->has_duration) {
            fprintf(file, "  %-12s %s\n", p->name, p->text[0] != '\0' ? p->text : "yes");
            continue;
        }
        int bar = longest > 0 ? (int)(p->ms / longest * BAR_WIDTH + 0.5) : 0;
        fprintf(file, "  %-12s %*s%s %s", p->name,
                (int)(9 + (strstr(human_duration_us((uint64_t)(p->ms * 1000 + 0.5), took), "µ") !=
                           NULL)),
                took, bar > 0 ? " " : "", style_begin(file, STYLE_CYAN));
        for (int j = 0; j < bar; j++)
            fputs("▇", file);
        fprintf(file, "%s%s%s\n", style_end(file), p->text[0] != '\0' ? "  " : "", p->text);
    }
}
