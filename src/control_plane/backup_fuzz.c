/* backup_fuzz.c - files that say they are backups: refused with a sentence, or told in order. */
#include "control_plane/backup_list.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct told {
    unsigned abouts, codes;
    uint64_t code_left;
    struct backup_list list;
};

static enum err on_about(void *user, const struct backup_about *about, struct error *e)
{
    struct told *t = user;
    t->abouts++;
    assert(about->epoch > 0 && about->next_id > 0 && t->list.count == 0);
    return ERR_OK;
}

static enum err on_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                          struct error *e)
{
    struct told *t = user;
    assert(t->abouts == 1 && t->codes == 0 && id > 0 && backup_has_kind(kind));
    return backup_list_add(&t->list, kind, id, value, e);
}

static enum err on_code(void *user, const char *digest, uint64_t bytes, struct error *e)
{
    struct told *t = user;
    assert(strlen(digest) == CODE_DIGEST_BYTES && t->abouts == 1);
    t->codes++;
    t->code_left = bytes;
    return ERR_OK;
}

static enum err on_code_data(void *user, const void *data, size_t bytes, struct error *e)
{
    struct told *t = user;
    assert(bytes > 0 && bytes <= t->code_left);
    t->code_left -= bytes;
    return ERR_OK;
}

static enum err on_code_end(void *user, const char *digest, struct error *e)
{
    assert(((struct told *)user)->code_left == 0);
    return ERR_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct told told = {0};
    struct error e = {0};
    const struct backup_sink sink = {&told,   on_about,     on_record,
                                     on_code, on_code_data, on_code_end};
    cleanup(fd_close) int fd = memfd_create("backup", MFD_CLOEXEC);
    if (fd < 0 || fd_write_all(fd, data, bytes) != ERR_OK)
        abort();
    enum err err = backup_read(fd, "fuzz", &sink, &e);
    assert(err == ERR_OK ? told.abouts == 1 : e.text[0] != '\0');
    backup_list_sort_codes(&told.list);
    backup_list_done(&told.list);
    return 0;
}
