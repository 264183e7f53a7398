/* keys_token_fuzz.c - texts of tokens and their stored records: refused, or what they are when
 * written again. */
#include "keys/token.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct str text = {(const char *)data, bytes};
    struct error e = {0};
    struct token token = {0};
    if (token_parse(text, &token, &e) == ERR_OK)
        assert(strlen(token.id) == SECRET_ID_CHARS);
    else
        assert(e.text[0] != '\0');
    struct token_record record, again;
    if (token_record_read(text, &record, &e) != ERR_OK)
        return 0;
    (void)token_verify(&token, &record, record.role, STR("w"), record.created_s, &e);
    char *written cleanup(free_pointer) = token_record_write(&record);
    enum err err = token_record_read(str_of(written), &again, &e);
    assert(err == ERR_OK && digest_equal(record.secret_digest, again.secret_digest));
    assert(record.used_s == again.used_s && strcmp(record.used_by, again.used_by) == 0);
    return 0;
}
