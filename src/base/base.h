/* base.h - what every module uses: attributes, scoped release, errors, descriptors, time units.
 * No state; any thread. */
#pragma once
#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define must_check __attribute__((warn_unused_result))
#define printf_like(format_index, first_index) \
    __attribute__((format(printf, format_index, first_index)))
/* Calls `function`(&variable) when the variable leaves its scope. */
#define cleanup(function) __attribute__((cleanup(function)))
#define container_of(pointer, type, member) \
    ((type *)((char *)(1 ? (pointer) : &((type *)0)->member) - offsetof(type, member)))
#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define US_PER_MS UINT64_C(1000)
#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)
#define MS_PER_S UINT64_C(1000)
#define KIB UINT64_C(1024)
#define MIB (KIB * 1024)
#define GIB (MIB * 1024)

enum err {
#define ERR(name, lower, http, exit, text) ERR_##name,
#include "base/err.def"
#undef ERR
    ERR_COUNT
};

const char *err_name(enum err err); /* "not_found": the `code` of API errors */
const char *err_text(enum err err); /* "not found" */
unsigned err_http_status(enum err err);
int err_exit_code(enum err err);
/* The nearest kind for an errno value; ERR_IO where there is none. */
enum err err_from_errno(int errno_value);

/* The story of one failure. Fixed size, no pointers: usable after fork and across a socket.
 * `field` names the input field that was wrong, or is "". Zero-initialise: (struct error){0}. */
#define ERROR_TEXT_BYTES_MAX 1024
#define ERROR_FIELD_BYTES_MAX 64
struct error {
    enum err code;
    char field[ERROR_FIELD_BYTES_MAX];
    char text[ERROR_TEXT_BYTES_MAX];
};

/* Write code and sentence into `e` (may be NULL) and return the code, so a failure is one line.
 * A sentence says what could not be done and why, without a full stop. */
enum err error_set(struct error *e, enum err code, const char *format, ...) printf_like(3, 4);
/* The same, for a wrong input field. */
enum err error_field(struct error *e, enum err code, const char *field, const char *format, ...)
    printf_like(4, 5);
/* The same from errno: appends ": <strerror>". Keeps errno. */
enum err error_errno(struct error *e, const char *format, ...) printf_like(2, 3);
/* Puts "<text>: " in front of the sentence already there. Returns e's code. */
enum err error_prefix(struct error *e, const char *format, ...) printf_like(2, 3);

/* Descriptors. fd_close() closes *fd if >= 0, sets it to -1 and keeps errno. close() is never
 * retried. fd_take() moves ownership out of a scoped variable. */
void fd_close(int *fd);
static inline int fd_take(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}
void free_pointer(void *pointer_to_pointer); /* for cleanup(): free(*(void **)p) */

/* Memory that must exist: aborts when there is none. Freed with free(). */
void *mem_new(size_t bytes) must_check;                          /* zeroed */
void *mem_new_array(size_t count, size_t item_bytes) must_check; /* zeroed, checks overflow */
void *mem_resize(void *old, size_t count, size_t item_bytes) must_check;
char *mem_strdup(const char *text) must_check;
char *mem_strndup(const char *text, size_t bytes) must_check;
char *mem_printf(const char *format, ...) must_check printf_like(1, 2);

/* Monotonic clock, and wall clock for people. Never used by pure modules: they take `now`. */
uint64_t clock_mono_ns(void);
uint64_t clock_real_ms(void);
static inline uint64_t clock_real_s(void)
{
    return clock_real_ms() / 1000;
}

/* Whole-file helpers for small files (configuration, /proc). Blocks. *ret_text is NUL-terminated
 * and the caller's to free. ERR_TOO_LARGE above bytes_max. */
must_check enum err file_read(const char *path, size_t bytes_max, char **ret_text,
                              size_t *ret_bytes, struct error *e);
/* Writes all of it, retrying short writes and EINTR. */
enum err fd_write_all(int fd, const void *data, size_t bytes);
/* mkdir -p with the mode for what it makes. */
must_check enum err dir_make_all(const char *path, mode_t mode, struct error *e);
