/* function_json_fuzz.c - specs from outside: whatever is accepted must read back equal. */
#include "function/function.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(bool condition)
{
    if (!condition)
        abort();
}

static void try_texts(struct str text)
{
    uint64_t amount;
    uint32_t small, count;
    char **argv;
    (void)!parse_bytes(text, &amount, NULL);
    (void)!parse_cpu_milli(text, &small, NULL);
    (void)!parse_duration_ms(text, &small, NULL);
    if (parse_command_line(text, &argv, &count, NULL) == ERR_OK) {
        for (uint32_t i = 0; i < count; i++)
            free(argv[i]);
        free(argv);
    }
}

static void check_round_trip(const struct function_spec *spec)
{
    struct function_spec back;
    function_spec_init(&back);
    json_t *json = function_spec_to_json(spec);
    must(function_spec_from_json(json, &back, NULL) == ERR_OK);
    must(function_spec_equal(spec, &back));
    must(!function_spec_needs_new_version(spec, &back));
    json_decref(json);
    function_spec_done(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct str text = {(const char *)data, bytes};
    struct function_spec spec;
    struct error e = {0};
    json_t *json = NULL;
    try_texts(text);
    if (json_text_parse(text, &json, &e) != ERR_OK)
        return 0;
    function_spec_init(&spec);
    if (function_spec_from_json(json, &spec, &e) != ERR_OK)
        must(e.text[0] != '\0');
    else if (function_spec_check(&spec, &e) == ERR_OK)
        check_round_trip(&spec);
    (void)!function_spec_patch(&spec, json, &e);
    function_spec_done(&spec);
    json_decref(json);
    return 0;
}
