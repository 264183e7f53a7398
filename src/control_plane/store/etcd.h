/* etcd.h - calls of etcd's v3 API through its JSON gateway (etcd 3.4 and newer, paths below /v3).
 * Blocks; one thread at a time for each `struct etcd`.
 *
 * Source: etcd's api/etcdserverpb/rpc.proto; keys and values are base64, 64-bit numbers are JSON
 * strings. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include <jansson.h>
#include <stdatomic.h>

#define ETCD_ENDPOINTS_MAX 9u
#define ETCD_ATTEMPT_MS 250u /* of one member, before the next is asked */
#define ETCD_DEADLINE_MS \
    7500u /* of the whole: 5 s and twice etcd's election time, during which it holds requests */

struct etcd; /* opaque */

/* `where`: "http://a:2379,http://b:2379", then "?" and any of ca=FILE, cert=FILE, key=FILE,
 * single=1, joined with "&". */
must_check enum err etcd_open(const char *where, struct etcd **ret_etcd, struct error *e);
void etcd_close(struct etcd *c); /* NULL does nothing */
/* Another one with the same endpoints, for another thread. */
must_check enum err etcd_copy(const struct etcd *from, struct etcd **ret_etcd, struct error *e);
bool etcd_allows_single(const struct etcd *c);
const char *etcd_endpoint(const struct etcd *c); /* the member that is asked next */

/* One attempt at one member; after a failure the next attempt asks the next member.
 * ERR_UNREACHABLE: it was not carried out. ERR_TIMEOUT: nobody knows. ERR_NO_SPACE: refused, etcd
 * is full. ERR_STALE: what was asked for is compacted. ERR_FAILED: refused for another reason,
 * which will not change. */
must_check enum err etcd_try(struct etcd *c, const char *path, const json_t *request,
                             uint32_t attempt_ms, json_t **ret_answer, struct error *e);
/* For calls that may be repeated: tries until ETCD_DEADLINE_MS has passed. */
must_check enum err etcd_read(struct etcd *c, const char *path, const json_t *request,
                              json_t **ret_answer, struct error *e);
/* Calls `on_message` for each message of an endless answer (a watch) until it returns false, *stop
 * is set, or for_ms has passed: ERR_OK. Else as etcd_try(). */
typedef bool etcd_on_message(void *user, const json_t *message);
must_check enum err etcd_stream(struct etcd *c, const char *path, const json_t *request,
                                uint32_t for_ms, const atomic_bool *stop,
                                etcd_on_message *on_message, void *user, struct error *e);

/* ---- values ---- */
json_t *etcd_base64(struct str data);
/* ERR_CORRUPT: no base64. */
must_check enum err etcd_unbase64(const json_t *text, struct buf *ret_data, struct error *e);
/* "123" or 123; 0 when absent, as in protobuf. */
uint64_t etcd_number(const json_t *object, const char *key);
