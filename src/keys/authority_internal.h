/* authority_internal.h - what authority.c and authority_bundle.c share. */
#pragma once
#include "keys/authority.h"

struct authority {
    char cluster[CLUSTER_NAME_BYTES_MAX + 1];
    EVP_PKEY *key;
    X509 *certificate;
};

/* From its parts, which it takes on success. ERR_INVALID when they do not belong together. */
must_check enum err authority_of(EVP_PKEY **key, X509 **certificate,
                                 struct authority **ret_authority, struct error *e);
/* ERR_PERMISSION when it is not valid now. */
must_check enum err authority_check_time(const struct authority *a, uint64_t now_s,
                                         struct certificate_times *ret_times, struct error *e);
