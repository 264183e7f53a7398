/* output.h - results as JSON or YAML, for programs. Prints to stdout. */
#pragma once
#include "base/base.h"
#include <jansson.h>
#include <stdio.h>

enum output_format { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_YAML };
enum output_format output_format_of(const char *name); /* checked before; NULL: table */
/* JSON or YAML as `format` says (not OUTPUT_TABLE). */
void output_json(FILE *file, enum output_format format, const json_t *json);
