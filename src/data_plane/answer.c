/* answer.c - errors with their reasons. */
#include "data_plane/answer.h"
#include "http/http1.h"

static const struct {
    const char *code, *text;
    unsigned status, retry_after_s;
} answers[] = {
#define ANSWER(name, status, retry_after_s, text) {#name, text, status, retry_after_s},
#include "data_plane/answers.def"
#undef ANSWER
};

const char *answer_code(enum answer answer)
{
    return answers[answer].code;
}

unsigned answer_status(enum answer answer)
{
    return answers[answer].status;
}

unsigned answer_retry_after_s(enum answer answer)
{
    return answers[answer].retry_after_s;
}

const char *answer_message(enum answer answer)
{
    return answers[answer].text;
}

/* Length of the valid UTF-8 sequence at `s` (RFC 3629 4), 0 when it is none. */
static size_t utf8_bytes(const unsigned char *s, size_t bytes)
{
    if (s[0] < 0x80)
        return 1;
    size_t count = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || bytes < count)
        return 0;
    for (size_t i = 1; i < count; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xed && s[1] > 0x9f, beyond = s[0] == 0xf4 && s[1] > 0x8f;
    return overlong || surrogate || beyond ? 0 : count;
}

static void write_json_char(struct buf *out, unsigned char c)
{
    switch (c) {
    case '"':
        buf_append_str(out, STR("\\\""));
        break;
    case '\\':
        buf_append_str(out, STR("\\\\"));
        break;
    case '\n':
        buf_append_str(out, STR("\\n"));
        break;
    case '\r':
        buf_append_str(out, STR("\\r"));
        break;
    case '\t':
        buf_append_str(out, STR("\\t"));
        break;
    default:
        if (c < 0x20 || c == 0x7f)
            buf_printf(out, "\\u%04x", c);
        else
            buf_append(out, &c, 1);
        break;
    }
}

void answer_write_json_text(struct buf *out, struct str text)
{
    const unsigned char *data = (const unsigned char *)text.data;
    buf_append_str(out, STR("\""));
    for (size_t i = 0; i < text.bytes;) {
        size_t count = utf8_bytes(data + i, text.bytes - i);
        if (count == 1)
            write_json_char(out, data[i]);
        else if (count > 1)
            buf_append(out, data + i, count);
        else
            buf_append_str(out, STR("\\ufffd"));
        i += MAX(count, (size_t)1);
    }
    buf_append_str(out, STR("\""));
}

static void write_connection(struct buf *out, const struct answer_frame *frame)
{
    if (!frame->keep_alive)
        buf_append_str(out, STR("Connection: close\r\n"));
    else if (frame->client_is_1_0)
        buf_append_str(out, STR("Connection: keep-alive\r\n"));
}

void answer_write(struct buf *out, unsigned status, const char *content_type, struct str body,
                  const struct answer_frame *frame)
{
    buf_printf(out, "HTTP/1.1 %u %s\r\nDate: %.*s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n",
               status, http_status_text(status), STR_ARG(frame->date), content_type, body.bytes);
    write_connection(out, frame);
    buf_append_str(out, frame->extra);
    buf_append_str(out, STR("\r\n"));
    if (!frame->head_only)
        buf_append_str(out, body);
}

static void write_field(struct buf *out, const char *name, struct str value)
{
    buf_printf(out, ",\"%s\":", name);
    answer_write_json_text(out, value);
}

/* A token for a header, whatever the control plane sent. */
static void write_code(struct buf *out, struct str code)
{
    for (size_t i = 0; i < code.bytes; i++) {
        char c = code.data[i];
        bool fits = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
        buf_append(out, fits ? &c : "_", 1);
    }
}

void answer_write_error(struct buf *out, const struct answer_error *error,
                        const struct answer_frame *frame)
{
    cleanup(buf_done) struct buf body = {0}, extra = {0};
    buf_append_str(&body, STR("{\"error\":{\"code\":\""));
    write_code(&body, error->code);
    buf_append_str(&body, STR("\",\"message\":"));
    answer_write_json_text(&body, error->message);
    if (error->function.bytes > 0)
        write_field(&body, "function", error->function);
    if (error->last_output.bytes > 0)
        write_field(&body, "last_output", error->last_output);
    buf_append_str(&body, STR("}}\n"));
    buf_append_str(&extra, frame->extra);
    buf_append_str(&extra, STR("Dirigent-Error: "));
    write_code(&extra, error->code);
    buf_append_str(&extra, STR("\r\n"));
    if (error->retry_after_s > 0)
        buf_printf(&extra, "Retry-After: %u\r\n", error->retry_after_s);
    struct answer_frame with_extra = *frame;
    with_extra.extra = buf_str(&extra);
    answer_write(out, error->status, "application/json", buf_str(&body), &with_extra);
}
