/* answer.h - the answers that the data plane makes itself. Pure; any thread.
 *
 * Every one names its reason: `Dirigent-Error: <code>` in the head, and in the body
 *   {"error":{"code":"queue_full","message":"…","function":"hello","last_output":"…"}} */
#pragma once
#include "base/base.h"
#include "base/str.h"

enum answer {
#define ANSWER(name, status, retry_after_s, text) ANSWER_##name,
#include "data_plane/answers.def"
#undef ANSWER
    ANSWER_COUNT
};
const char *answer_code(enum answer answer);
unsigned answer_status(enum answer answer);
unsigned answer_retry_after_s(enum answer answer);
const char *answer_message(enum answer answer);

struct answer_error {
    unsigned status, retry_after_s;
    struct str code, message; /* a code is a token */
    struct str function;      /* or STR_NONE */
    struct str last_output;   /* any bytes, or STR_NONE */
};
struct answer_frame {
    bool head_only; /* the request was HEAD */
    bool keep_alive, client_is_1_0;
    struct str date, extra; /* as in struct head_answer */
};
/* Appends a whole answer, head and body. */
void answer_write(struct buf *out, unsigned status, const char *content_type, struct str body,
                  const struct answer_frame *frame);
void answer_write_error(struct buf *out, const struct answer_error *error,
                        const struct answer_frame *frame);
/* Appends `text` as a JSON string with its quotes; bytes that are no UTF-8 become U+FFFD. */
void answer_write_json_text(struct buf *out, struct str text);
