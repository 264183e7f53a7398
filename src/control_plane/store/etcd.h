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
#define ETCD_ATTEMPT_MS 250u      /* of one member, before the next is asked */
#define ETCD_PROBE_MS 100u        /* between two looks whether a silent member has a majority */
#define ETCD_PROBE_ANSWER_MS 250u /* it has so long to answer each */
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
 * ERR_UNREACHABLE: there was no connection. ERR_TIMEOUT: no answer. After both nobody knows whether
 * it was carried out, since a request on a connection that broke may have been sent again on one
 * that could not be made. ERR_NO_SPACE: refused, etcd is full. ERR_STALE: what was asked for is
 * compacted. ERR_TOO_LARGE: the answer is, or what is to be written. ERR_FAILED: refused for
 * another reason, which will not change. */
must_check enum err etcd_try(struct etcd *c, const char *path, const json_t *request,
                             uint32_t attempt_ms, json_t **ret_answer, struct error *e);
/* For calls that may be repeated: tries, at least once, until the monotonic clock shows end_ms.
 * ERR_PERMISSION, sooner: every member refused our certificate, or we theirs. */
must_check enum err etcd_read(struct etcd *c, const char *path, const json_t *request,
                              uint64_t end_ms, json_t **ret_answer, struct error *e);
/* *stop ends its reads early, with whatever failed last. NULL: nothing does. */
void etcd_stop_by(struct etcd *c, const atomic_bool *stop);
uint64_t etcd_now_ms(void);
uint64_t etcd_end_ms(void);      /* ETCD_DEADLINE_MS from now */
void etcd_avoid(struct etcd *c); /* the member that was asked last: the next attempt asks another */
/* Calls `on_message` for each message of an endless answer (a watch) until it returns false, *stop
 * or *wake is set, or for_ms has passed: ERR_OK. Else as etcd_try(). One whose
 * member goes out of reach ends (ERR_TIMEOUT), within ETCD_PROBE_MS and twice ETCD_PROBE_ANSWER_MS.
 * on_majority (may be NULL) tells again and again whether the member has a majority: that it has
 * none is known within ETCD_PROBE_MS and ETCD_PROBE_ANSWER_MS; the stream goes on. */
typedef bool etcd_on_message(void *user, const json_t *message);
typedef void etcd_on_majority(void *user, bool has_majority);
must_check enum err etcd_stream(struct etcd *c, const char *path, const json_t *request,
                                uint32_t for_ms, const atomic_bool *stop, const atomic_bool *wake,
                                etcd_on_message *on_message, etcd_on_majority *on_majority,
                                void *user, struct error *e);

/* ---- values ---- */
json_t *etcd_base64(struct str data);
/* ERR_CORRUPT: no base64. */
must_check enum err etcd_unbase64(const json_t *text, struct buf *ret_data, struct error *e);
/* "123" or 123; 0 when absent, as in protobuf. */
uint64_t etcd_number(const json_t *object, const char *key);
