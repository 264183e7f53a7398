/* error.c - the list of failures and the sentence that goes with one. */
#include "base/base.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *text;
    unsigned http_status;
    int exit_code;
} kinds[ERR_COUNT] = {
#define ERR(n, lower, http, exit, t) [ERR_##n] = {#lower, t, http, exit},
#include "base/err.def"
#undef ERR
};

const char *err_name(enum err err)
{
    assert(err < ERR_COUNT);
    return kinds[err].name;
}

const char *err_text(enum err err)
{
    assert(err < ERR_COUNT);
    return kinds[err].text;
}

unsigned err_http_status(enum err err)
{
    assert(err < ERR_COUNT);
    return kinds[err].http_status;
}

int err_exit_code(enum err err)
{
    assert(err < ERR_COUNT);
    return kinds[err].exit_code;
}

enum err err_from_errno(int errno_value)
{
    switch (errno_value) {
    case 0:
        return ERR_OK;
    case ENOENT:
    case ESRCH:
        return ERR_NOT_FOUND;
    case EEXIST:
        return ERR_EXISTS;
    case EACCES:
    case EPERM:
        return ERR_PERMISSION;
    case ENOMEM:
        return ERR_NO_MEMORY;
    case ENOSPC:
    case EDQUOT:
        return ERR_NO_SPACE;
    case EINVAL:
        return ERR_INVALID;
    case ETIMEDOUT:
        return ERR_TIMEOUT;
    case ECONNREFUSED:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return ERR_UNREACHABLE;
    case ECONNRESET:
    case EPIPE:
        return ERR_CLOSED;
    case EMFILE:
    case ENFILE:
    case EBUSY:
    case EADDRINUSE:
        return ERR_BUSY;
    case EFBIG:
        return ERR_TOO_LARGE;
    case ENOSYS:
    case EOPNOTSUPP:
        return ERR_UNSUPPORTED;
    default:
        return ERR_IO;
    }
}

static void text_set(struct error *e, enum err code, const char *field, const char *format,
                     va_list args)
{
    e->code = code;
    (void)snprintf(e->field, sizeof(e->field), "%s", field);
    (void)vsnprintf(e->text, sizeof(e->text), format, args);
}

enum err error_set(struct error *e, enum err code, const char *format, ...)
{
    if (e != NULL) {
        va_list args;
        va_start(args, format);
        text_set(e, code, "", format, args);
        va_end(args);
    }
    return code;
}

enum err error_field(struct error *e, enum err code, const char *field, const char *format, ...)
{
    if (e != NULL) {
        va_list args;
        va_start(args, format);
        text_set(e, code, field, format, args);
        va_end(args);
    }
    return code;
}

enum err error_errno(struct error *e, const char *format, ...)
{
    int kept = errno;
    enum err code = kept == 0 ? ERR_IO : err_from_errno(kept);
    if (e != NULL) {
        va_list args;
        va_start(args, format);
        text_set(e, code, "", format, args);
        va_end(args);
        size_t used = strlen(e->text);
        (void)snprintf(e->text + used, sizeof(e->text) - used, ": %s", strerror(kept));
    }
    errno = kept;
    return code;
}

enum err error_prefix(struct error *e, const char *format, ...)
{
    if (e == NULL)
        return ERR_FAILED;
    char old[ERROR_TEXT_BYTES_MAX];
    memcpy(old, e->text, sizeof(old));
    va_list args;
    va_start(args, format);
    (void)vsnprintf(e->text, sizeof(e->text), format, args);
    va_end(args);
    size_t used = strlen(e->text);
    (void)snprintf(e->text + used, sizeof(e->text) - used, ": %s", old);
    return e->code;
}
