/* rollout.h - what `deploy` and `apply` share: code goes up first (staged), then one change of the
 * function names it, so that a function never has half of both. */
#pragma once
#include "cli/bundle.h"
#include "cli/client.h"

/* Where a function's code is: one of the two, or neither. Paths. */
struct code_source {
    const char *directory, *zip;
};
/* Opens what there is before anything is sent. */
struct code {
    struct bundle *bundle;
    int zip_fd; /* -1: none */
    uint64_t zip_bytes;
    char *guessed, *procfile; /* a command, or NULL */
    const char *guessed_from;
};
must_check enum err code_open(const struct code_source *source, struct code *ret_code,
                              struct error *e);
void code_done(struct code *code);
bool code_is_there(const struct code *code);
/* Uploads it; *ret_digest ("sha256:…") is the caller's. */
must_check enum err code_stage(struct client *c, const char *name, struct code *code,
                               char **ret_digest, struct error *e);

/* Sends the change and waits until the version is ready, at most wait_ms (0: does not wait). A
 * start that failed is told on stderr with the program's last output; then `e` has no text and the
 * result is ERR_FAILED. */
must_check enum err rollout(struct client *c, const char *method, const char *name,
                            const json_t *spec, uint64_t wait_ms, json_t **ret_function,
                            struct error *e);
/* How long a spec (may be NULL) gives a start, and some time for the machinery. */
uint64_t rollout_wait_ms(const json_t *spec, const json_t *old_spec);
/* "hello updated: version 3, ready" and how to call it, on stdout. */
void rollout_print(const json_t *function, bool waited);
/* The last lines of a program that failed, indented; nothing when there are none. */
void print_last_output(FILE *file, const char *output);
