/* receipt.h - where the time of one call went: the Server-Timing header (W3C Server Timing) as a
 * picture. Pure but for printing. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include <stdio.h>

#define RECEIPT_PARTS_MAX 32
struct receipt_part {
    char name[32], text[64]; /* `desc`, or "" */
    double ms;               /* `dur`, or 0 */
    bool has_duration;
};
struct receipt {
    struct receipt_part parts[RECEIPT_PARTS_MAX];
    size_t count;
};
/* Adds the parts of one header's value; what is no such part is left out. */
void receipt_parse(struct str value, struct receipt *r);
void receipt_print(const struct receipt *r, FILE *file);
