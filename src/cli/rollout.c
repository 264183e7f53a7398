/* rollout.c - upload and change. */
#include "cli/rollout.h"
#include "base/limits.h"
#include "cli/guess.h"
#include "cli/style.h"
#include "function/function.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define UPLOAD_DEADLINE_MS (30u * 60u * 1000u)
#define WAIT_MARGIN_MS 30000u

/* ---- code ---- */

static bool has_file(void *user, const char *path, bool *ret_executable)
{
    return bundle_has(user, path, ret_executable);
}

static enum err open_directory(const char *path, struct code *code, struct error *e)
{
    enum err err = bundle_open(path, &code->bundle, e);
    if (err != ERR_OK)
        return err == ERR_USAGE ? err : ERR_USAGE;
    cleanup(free_pointer) char *procfile_path = mem_printf("%s/Procfile", path);
    bool executable;
    if (bundle_has(code->bundle, "Procfile", &executable)) {
        err = file_read(procfile_path, MIB, &code->procfile, NULL, e);
        if (err != ERR_OK)
            return ERR_USAGE;
    }
    code->guessed = guess_command(has_file, code->bundle, code->procfile, &code->guessed_from);
    return ERR_OK;
}

/* The archive itself is checked by the cluster; here only what would make its answer hard to
 * understand. */
static enum err open_zip(const char *path, struct code *code, struct error *e)
{
    struct stat st;
    code->zip_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (code->zip_fd < 0 || fstat(code->zip_fd, &st) < 0) {
        (void)error_errno(e, "open archive '%s'", path);
        return ERR_USAGE;
    }
    if (!S_ISREG(st.st_mode))
        return error_set(e, ERR_USAGE, "archive '%s' is not a file", path);
    if (st.st_size == 0)
        return error_set(e, ERR_USAGE, "archive '%s' is empty", path);
    if ((uint64_t)st.st_size > CODE_ARCHIVE_BYTES_MAX)
        return error_set(e, ERR_USAGE, "archive '%s' is larger than %" PRIu64 " MiB", path,
                         CODE_ARCHIVE_BYTES_MAX / MIB);
    code->zip_bytes = (uint64_t)st.st_size;
    return ERR_OK;
}

enum err code_open(const struct code_source *source, struct code *ret_code, struct error *e)
{
    *ret_code = (struct code){.zip_fd = -1};
    enum err err = ERR_OK;
    if (source->directory != NULL)
        err = open_directory(source->directory, ret_code, e);
    else if (source->zip != NULL)
        err = open_zip(source->zip, ret_code, e);
    if (err != ERR_OK)
        code_done(ret_code);
    return err;
}

void code_done(struct code *code)
{
    bundle_free(code->bundle);
    fd_close(&code->zip_fd);
    free(code->guessed);
    free(code->procfile);
    *code = (struct code){.zip_fd = -1};
}

bool code_is_there(const struct code *code)
{
    return code->bundle != NULL || code->zip_fd >= 0;
}

/* ---- upload ---- */

struct upload {
    struct code *code;
    uint64_t sent_bytes, shown_bytes;
    int error_number;
};

static void show_upload(struct upload *u)
{
    char done[HUMAN_BYTES_MAX], all[HUMAN_BYTES_MAX];
    uint64_t total = u->code->bundle != NULL ? bundle_bytes(u->code->bundle) : u->code->zip_bytes;
    uint64_t now = u->code->bundle != NULL ? bundle_bytes_read(u->code->bundle) : u->sent_bytes;
    if (u->sent_bytes - u->shown_bytes < MIB)
        return;
    u->shown_bytes = u->sent_bytes;
    progress_show("uploading: %s of %s", human_bytes(now, done), human_bytes(total, all));
}

static ssize_t read_upload(void *user, char *data, size_t bytes)
{
    struct upload *u = user;
    ssize_t n;
    if (u->code->bundle != NULL)
        n = bundle_read(u->code->bundle, data, bytes);
    else
        do
            n = read(u->code->zip_fd, data, bytes);
        while (n < 0 && errno == EINTR);
    if (n < 0)
        u->error_number = errno;
    else
        u->sent_bytes += (uint64_t)n;
    show_upload(u);
    return n;
}

enum err code_stage(struct client *c, const char *name, struct code *code, char **ret_digest,
                    struct error *e)
{
    struct upload upload = {.code = code};
    cleanup(free_pointer) char *path = mem_printf("/v1/functions/%s/code?stage=1", name);
    cleanup(answer_done) struct answer answer = {0};
    struct client_call call = {.method = "PUT",
                               .path = path,
                               .deadline_ms = UPLOAD_DEADLINE_MS,
                               .read = read_upload,
                               .user = &upload};
    struct error packing = {0};
    progress_show("uploading");
    enum err err = client_call(c, &call, &answer, e);
    progress_clear();
    if (code->bundle != NULL && bundle_error(code->bundle)->text[0] != '\0')
        packing = *bundle_error(code->bundle);
    if (packing.text[0] != '\0') {
        *e = packing;
        return ERR_USAGE;
    }
    if (err != ERR_OK && e->text[0] == '\0') {
        errno = upload.error_number;
        return error_errno(e, "read the archive");
    }
    if (err == ERR_OK)
        err = answer_check(c, &answer, e);
    if (err == ERR_OK)
        *ret_digest = mem_strdup(json_text(answer.json, "digest"));
    return err;
}

/* ---- the change ---- */

static void show_waiting(uint64_t seconds, void *user)
{
    progress_show("waiting until %s is ready: %" PRIu64 " s", (const char *)user, seconds);
}

void print_last_output(FILE *file, const char *output)
{
    struct str rest = str_of(output);
    if (str_trim(rest).bytes == 0)
        return;
    fprintf(file, "last output:\n");
    while (rest.data != NULL) {
        struct str line = str_split(rest, '\n', &rest);
        if (rest.data == NULL && line.bytes == 0)
            break;
        fprintf(file, "  %s|%s ", style_begin(file, STYLE_DIM), style_end(file));
        for (size_t i = 0; i < line.bytes; i++) /* a program's output must not drive the terminal */
            fputc((unsigned char)line.data[i] < ' ' && line.data[i] != '\t' ? ' ' : line.data[i],
                  file);
        fputc('\n', file);
    }
}

static enum err tell_failed_start(const char *name, const json_t *error, struct error *e)
{
    const char *message = json_text(error, "message");
    json_t *exit_code = json_object_get(error, "exit_code"),
           *signo = json_object_get(error, "signal");
    struct error told = {.code = ERR_FAILED};
    (void)snprintf(told.text, sizeof(told.text), "version %" PRIu64 " of '%s' did not start: %s",
                   json_number(error, "version"), name, message);
    style_print_error(&told);
    if (json_is_integer(exit_code) && strstr(message, "exit code") == NULL &&
        strstr(message, "code ") == NULL)
        fprintf(stderr, "exit code: %d\n", (int)json_integer_value(exit_code));
    if (json_is_integer(signo) && strstr(message, "signal") == NULL)
        fprintf(stderr, "signal: %d (%s)\n", (int)json_integer_value(signo),
                strsignal((int)json_integer_value(signo)));
    print_last_output(stderr, json_text(error, "last_output"));
    e->text[0] = '\0';
    return ERR_FAILED;
}

enum err rollout(struct client *c, const char *method, const char *name, const json_t *spec,
                 uint64_t wait_ms, json_t **ret_function, struct error *e)
{
    cleanup(free_pointer) char *path =
        wait_ms > 0 ? mem_printf("/v1/functions/%s?wait=%" PRIu64 "ms", name, wait_ms)
                    : mem_printf("/v1/functions/%s", name);
    cleanup(answer_done) struct answer answer = {0};
    struct client_call call = {.method = method,
                               .path = path,
                               .json = spec,
                               .deadline_ms = wait_ms + CLIENT_DEADLINE_MS,
                               .waiting = wait_ms > 0 ? show_waiting : NULL,
                               .user = (void *)name};
    enum err err = client_call(c, &call, &answer, e);
    progress_clear();
    if (err != ERR_OK)
        return err;
    const json_t *error = json_object_get(answer.json, "error");
    if (answer.status == 422 && json_object_get(error, "last_output") != NULL)
        return tell_failed_start(name, error, e);
    err = answer_check(c, &answer, e);
    if (err == ERR_OK)
        *ret_function = json_incref(answer.json);
    return err;
}

uint64_t rollout_wait_ms(const json_t *spec, const json_t *old_spec)
{
    const char *text = json_text(spec, "start_deadline");
    uint32_t ms = START_DEADLINE_MS_DEFAULT;
    if (text[0] == '\0')
        text = json_text(old_spec, "start_deadline");
    if (text[0] == '\0' || parse_duration_ms(str_of(text), &ms, NULL) != ERR_OK)
        ms = START_DEADLINE_MS_DEFAULT;
    return MIN((uint64_t)ms + WAIT_MARGIN_MS, UINT64_C(3600000));
}

void rollout_print(const json_t *function, bool waited)
{
    const char *name = json_text(function, "name"), *change = json_text(function, "change");
    const char *url = json_string_value(json_array_get(json_object_get(function, "urls"), 0));
    uint64_t version = json_number(function, "version");
    bool ready = waited && json_number(function, "active_version") == version;
    printf("%s%s%s %s: version %" PRIu64 "%s\n", style_begin(stdout, STYLE_BOLD), name,
           style_end(stdout), change, version, ready ? ", ready" : "");
    if (url != NULL)
        printf("  curl %s%s%s\n", style_begin(stdout, STYLE_CYAN), url, style_end(stdout));
}
