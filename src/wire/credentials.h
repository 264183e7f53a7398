/* credentials.h - what a worker or a data plane has for its links: where the control planes are,
 * and its certificate, which is renewed before half of its life is over. Loop thread only; never
 * blocks after credentials_new(), since files are written by a thread of its own. */
#pragma once
#include "dirigent.pb-c.h"
#include "loop/loop.h"
#include "wire/tls.h"

/* Written by joining, beside the key: addresses of the control planes, one line. */
#define CREDENTIALS_ADDRESSES_FILE "control-planes"
#define CREDENTIALS_ADDRESS_DEFAULT "127.0.0.1:9090"

struct credentials; /* opaque */
struct credentials_options {
    struct loop *loop;
    const char *tls;       /* on, off, or auto: on where this machine has joined or an address is
                              not on loopback */
    const char *data_path; /* of this program; its lock is held */
    const char *addresses; /* of the control planes; "": those it has joined, else the default */
    enum node_role role;
    const char *name; /* "": the one in the certificate */
};
/* Reads what there is. ERR_USAGE: `tls` is none of its words. ERR_NOT_FOUND: this machine has not
 * joined, and must; the others are identity_load()'s. */
must_check enum err credentials_new(const struct credentials_options *options,
                                    struct credentials **ret_credentials, struct error *e);
/* Waits for a file that is being written. NULL does nothing. */
void credentials_free(struct credentials *c);

struct tls *credentials_tls(const struct credentials *c); /* NULL: in the clear */
const char *credentials_addresses(const struct credentials *c);
const char *credentials_name(const struct credentials *c); /* "": nothing says */

/* Looks from now on when to renew. `ask` sends the request to the control plane that leads; false:
 * there is none now, it is called again later. */
typedef bool credentials_ask(void *user, const char *csr);
void credentials_start(struct credentials *c, credentials_ask *ask, void *user);
void credentials_stop(struct credentials *c); /* asks no more */
/* What the control plane sent; valid during the call. */
void credentials_take(struct credentials *c, const Dirigent__Certificate *m);
void credentials_take_roots(struct credentials *c, const Dirigent__Roots *m);
