/* limits.h - every bound, and how the bounds hang together. */
#pragma once
#include "base/base.h"
#include <assert.h>

/* names and specs */
#define FUNCTION_NAME_BYTES_MAX 63u /* one DNS label, RFC 1123 2.1 */
#define FUNCTION_COUNT_MAX 1000000u
#define ENV_COUNT_MAX 256u
#define ENV_BYTES_MAX (64u * 1024u) /* all of a function's names and values */
#define COMMAND_BYTES_MAX (16u * 1024u)
#define SPEC_JSON_BYTES_MAX (1024u * 1024u)

/* archives */
#define CODE_ARCHIVE_BYTES_MAX (512 * MIB) /* as uploaded */
#define CODE_UNPACKED_BYTES_MAX (2 * GIB)  /* as unpacked */
#define CODE_ENTRIES_MAX 200000u
#define CODE_RATIO_MAX 1032u      /* deflate cannot do more */
#define CODE_PATH_BYTES_MAX 4095u /* PATH_MAX without its NUL */
#define CODE_NAME_BYTES_MAX 255u

#define CODE_UNUSED_MS_MAX                                                 \
    (60u * 60u * 1000u) /* unpacked on a worker, and used by nothing there \
                         */
#define CODE_UNUSED_COUNT_MAX 16u

/* HTTP (RFC 9110/9112) */
#define HTTP_HEAD_BYTES_MAX (32u * 1024u)
#define HTTP_HEADER_COUNT_MAX 100u
#define HTTP_CHUNK_LINE_BYTES_MAX 256u
#define HTTP_TRAILER_BYTES_MAX (8u * 1024u)
#define HTTP_HEAD_TIMEOUT_MS 10000u
#define HTTP_IDLE_TIMEOUT_MS 60000u

/* data plane */
#define QUEUE_PER_FUNCTION_DEFAULT 10000u
#define REQUEST_BODY_BYTES_DEFAULT (4 * GIB)
#define UPSTREAM_CONNECT_TIMEOUT_MS 1000u

/* cluster protocol */
#define FRAME_BYTES_MAX (16u * 1024u * 1024u)
#define BLOB_CHUNK_BYTES (256u * 1024u)
#define HEARTBEAT_PERIOD_MS 250u /* of workers and data planes */
#define PEER_DEAD_AFTER_MS_DEFAULT 800u
static_assert(PEER_DEAD_AFTER_MS_DEFAULT >= 3 * HEARTBEAT_PERIOD_MS, "one lost beat kills nobody");
#define DEMAND_REPORT_PERIOD_MS 500u /* of a data plane, where nothing is urgent */
static_assert(BLOB_CHUNK_BYTES * 4 < FRAME_BYTES_MAX, "a chunk fits a frame with room");

/* sandboxes of one worker */
#define SANDBOXES_PER_WORKER_MAX 4096u
#define STOP_GRACE_MS_DEFAULT 10000u
#define START_DEADLINE_MS_DEFAULT 60000u
#define SANDBOX_LOG_BYTES_MAX (8u * 1024u * 1024u)
#define SANDBOX_LOG_LINE_BYTES_MAX (16u * 1024u)
#define EXIT_OUTPUT_BYTES_MAX 2048u /* last output carried with an exit */

/* keys: certificates, tokens, API keys */
#define CLUSTER_NAME_BYTES_MAX 63u
#define NODE_NAME_BYTES_MAX 253u         /* a host's name, RFC 1035 2.3.4 */
#define KEY_FILE_BYTES_MAX (64u * 1024u) /* one key, certificate, or all roots */
#define CSR_BYTES_MAX (16u * 1024u)
#define CERTIFICATE_HOSTS_MAX 16u /* names and addresses of a control plane */
#define ROOTS_MAX 2u              /* trusted at once: the old and the new one of a rotation */
#define AUTHORITY_LIFETIME_S (10u * 365u * 24u * 3600u)
#define CERTIFICATE_LIFETIME_S_DEFAULT (24u * 3600u)
#define CERTIFICATE_LIFETIME_S_MIN 60u
#define CERTIFICATE_LIFETIME_S_MAX (90u * 24u * 3600u)
#define CERTIFICATE_BACKDATED_S 300u /* for clocks that are behind */
static_assert(CERTIFICATE_LIFETIME_S_MAX < AUTHORITY_LIFETIME_S / 10,
              "roots outlive what they sign");
#define TOKEN_LIFETIME_S_DEFAULT (15u * 60u)
#define TOKEN_LIFETIME_S_MAX (7u * 24u * 3600u)
#define JOIN_ADDRESSES_MAX 1024u    /* remembered by the limiter */
#define JOIN_ADDRESS_BURST 10u      /* attempts of one address at once */
#define JOIN_ADDRESS_PER_MINUTE 12u /* and later */
#define JOIN_TOTAL_BURST 200u       /* of all: each costs a signature and a write */
#define JOIN_TOTAL_PER_MINUTE 1200u
#define API_KEY_NAME_BYTES_MAX 63u
