/* function_yaml_fuzz.c - apply files from outside. */
#include "function/function_yaml.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct function_file file;
    struct error e = {0};
    if (function_yaml_parse((struct str){(const char *)data, bytes}, &file, &e) != ERR_OK)
        return 0;
    for (size_t i = 0; i < file.count; i++) {
        struct function_spec spec;
        function_spec_init(&spec);
        if (file.items[i].line == 0)
            abort();
        if (function_spec_from_json(file.items[i].json, &spec, &e) != ERR_OK &&
            function_yaml_line(&file.items[i], e.field) == 0)
            abort();
        function_spec_done(&spec);
    }
    function_file_done(&file);
    return 0;
}
