/* fields.h - inside src/function only: the one table of a spec's plain fields (numbers, amounts,
 * words), from which defaults, JSON in and out, ranges and comparison are made. Pure. */
#pragma once
#include "function/function.h"

enum spec_field_kind {
    SPEC_U16,
    SPEC_U32,
    SPEC_BYTES,    /* uint64_t */
    SPEC_CPU,      /* uint32_t, thousandths of a core */
    SPEC_DURATION, /* uint32_t, milliseconds */
    SPEC_RATE,     /* double; the table's numbers are thousandths */
    SPEC_WORD,     /* an enum from 0; `words` ends with NULL */
};
struct spec_field {
    const char *path;  /* "scaling.min" */
    const char *alias; /* also accepted at top level, or NULL */
    enum spec_field_kind kind;
    size_t offset; /* in struct function_spec */
    uint64_t min, max, standard;
    const char *const *words;
    bool makes_version; /* a change needs new sandboxes */
};
extern const struct spec_field spec_fields[];
extern const size_t spec_field_count;

void spec_field_set_default(const struct spec_field *f, struct function_spec *s);
bool spec_field_equal(const struct spec_field *f, const struct function_spec *a,
                      const struct function_spec *b);
must_check enum err spec_field_check(const struct spec_field *f, const struct function_spec *s,
                                     struct error *e);
must_check enum err spec_field_from_json(const struct spec_field *f, const char *called,
                                         const json_t *json, struct function_spec *s,
                                         struct error *e);
json_t *spec_field_to_json(const struct spec_field *f, const struct function_spec *s);

/* Free what they own and leave it empty. */
void env_list_done(struct env_var **items, uint32_t *count);
void command_done(char ***command, uint32_t *count);
