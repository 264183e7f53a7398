/* etcd_records.h - the keys below /dirigent/, what is in them, and reading them page by page.
 *
 * All values are JSON objects that carry `format` and `op`, the id of the operation that wrote them
 * last:
 *   /dirigent/epoch                   {epoch, leader, time}
 *   /dirigent/next_id                 {next_id}, the head: written by every commit
 *   /dirigent/<kind>/<id, 16 digits>  {value}
 * Blocks; any thread that owns its `struct etcd`. */
#pragma once
#include "control_plane/store/etcd.h"
#include "control_plane/store/store.h"

#define ETCD_PREFIX "/dirigent/"
#define ETCD_PREFIX_END "/dirigent0" /* the character after '/' */
#define ETCD_EPOCH_KEY ETCD_PREFIX "epoch"
#define ETCD_HEAD_KEY ETCD_PREFIX "next_id"
#define ETCD_FORMAT 1
#define ETCD_KEY_BYTES 96u

struct etcd_kv {
    char key[ETCD_KEY_BYTES];
    uint64_t mod_revision, version; /* version: how often it was written since it was made */
    json_t *value;                  /* NULL: of a deleted key */
};
/* From an answer. ERR_CORRUPT: damaged; ERR_VERSION: a newer format. Both name the key. */
must_check enum err etcd_kv_read(const json_t *json, bool deleted, struct etcd_kv *ret_kv,
                                 struct error *e);
void etcd_kv_done(struct etcd_kv *kv);
/* The record's value, borrowed from kv; NULL: damaged, `e` names it. */
const char *etcd_kv_record(const struct etcd_kv *kv, struct error *e);
/* A positive number, as all of ours are. */
must_check enum err etcd_kv_number(const struct etcd_kv *kv, const char *name, uint64_t *ret,
                                   struct error *e);

void etcd_key(enum store_kind kind, uint64_t id, char *ret_key, size_t bytes);
/* The range [from, end) of a kind's keys. */
void etcd_key_range(enum store_kind kind, char *ret_from, char *ret_end, size_t bytes);
/* False: no record's key. */
bool etcd_key_parse(const char *key, enum store_kind *ret_kind, uint64_t *ret_id);

/* ---- parts of requests; the caller owns what is returned ---- */
json_t *etcd_key_json(const char *key);
json_t *etcd_number_json(uint64_t number);
json_t *etcd_compare(const char *key, uint64_t mod_revision);
json_t *etcd_put(const char *key, json_t *value); /* takes `value` */
json_t *etcd_get(const char *key);
json_t *etcd_delete(const char *key);

/* ---- ranges ---- */
typedef enum err etcd_on_kv(void *user, const struct etcd_kv *kv, struct error *e);
struct etcd_range {
    struct etcd *etcd;
    const char *key, *end; /* end NULL: this key only */
    uint64_t revision;     /* 0: the newest; afterwards which that was */
    uint64_t end_ms;       /* when to give up; 0: ETCD_DEADLINE_MS for each page */
    etcd_on_kv *on;        /* its failure ends the range */
    void *user;
};
/* All keys of [key, end) at one revision, in their order. */
must_check enum err etcd_range_each(struct etcd_range *r, struct error *e);
