/* keys_api_key_fuzz.c - texts of API keys, their stored records, and what a request line may do. */
#include "keys/api_key.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct str text = {(const char *)data, bytes}, path;
    struct error e = {0};
    struct api_key key = {0};
    if (api_key_parse(text, &key, &e) == ERR_OK)
        assert(strlen(key.id) == SECRET_ID_CHARS);
    else
        assert(e.text[0] != '\0');

    /* a path that any filter would see as that of keys is for admins only, however it is written */
    struct str method = str_split(text, ' ', &path);
    enum api_role needed = api_role_needed(method, path);
    if (str_has_prefix(path, STR("/v1/keys/")) || str_has_prefix(path, STR("/v1/tokens/")))
        assert(needed == API_ADMIN);
    if (path.bytes > 0 && memchr(path.data, '%', path.bytes) != NULL)
        assert(needed == API_ADMIN);

    struct api_key_record record, again;
    if (api_key_record_read(text, &record, &e) != ERR_OK)
        return 0;
    if (api_key_verify(&key, &record, record.created_s, &e) == ERR_OK)
        assert(strcmp(key.id, record.id) == 0);
    char *written cleanup(free_pointer) = api_key_record_write(&record);
    enum err err = api_key_record_read(str_of(written), &again, &e);
    assert(err == ERR_OK && digest_equal(record.secret_digest, again.secret_digest));
    assert(record.role == again.role && record.expires_s == again.expires_s);
    return 0;
}
