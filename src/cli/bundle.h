/* bundle.h - a directory as a tar.gz that is made while it is read: what `deploy --dir` uploads.
 * Blocks on the files. The same files give the same bytes, whoever packs them and when (names in
 * order, no times, no owners), so that code that did not change is known by its digest.
 *
 *   bundle_open("path", &b, &e); while ((n = bundle_read(b, data, sizeof(data))) > 0) send(data,
 * n); n < 0: bundle_error(b) says why. bundle_free(b); */
#pragma once
#include "base/base.h"

struct bundle; /* owned by whoever opened it */
/* Lists the directory first. Refuses a directory without files, and files that no archive can carry
 * (sockets, devices), by name. */
must_check enum err bundle_open(const char *directory, struct bundle **ret_bundle, struct error *e);
void bundle_free(struct bundle *b);
/* The next bytes of the archive; 0 at its end, -1 on failure. */
ssize_t bundle_read(struct bundle *b, char *data, size_t bytes);
const struct error *bundle_error(const struct bundle *b);
size_t bundle_file_count(const struct bundle *b);
uint64_t bundle_bytes(const struct bundle *b);      /* of the files, as they are */
uint64_t bundle_bytes_read(const struct bundle *b); /* of these, packed so far */
/* Whether there is such a file (not a directory) among those that are packed. */
bool bundle_has(const struct bundle *b, const char *path, bool *ret_executable);
