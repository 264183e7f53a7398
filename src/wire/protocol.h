/* protocol.h - which versions of the cluster protocol (dirigent.proto) a program speaks. Two
 * programs work together when their ranges meet; the control plane says which one they use
 * (Welcome).
 *
 * Neighbours are one version apart during an upgrade. In a build with -Dtest_hooks=true the
 * environment may say PROTOCOL_VERSIONS=MIN-MAX: the program claims that, and if MAX is above ours,
 * behaves as the next version's would, as far as one that knows only ours can see: whatever it
 * sends has a field that nobody knows. */
#pragma once
#include "base/str.h"

#define PROTOCOL_VERSION_MIN 1u
#define PROTOCOL_VERSION_MAX 1u

#ifdef DIRIGENT_TEST_HOOKS
uint32_t protocol_version_min(void);
uint32_t protocol_version_max(void);
/* Behind a message that was packed to the end of `out`: returns by how much it grew. */
size_t protocol_add_unknown(struct buf *out);
#else
static inline uint32_t protocol_version_min(void)
{
    return PROTOCOL_VERSION_MIN;
}
static inline uint32_t protocol_version_max(void)
{
    return PROTOCOL_VERSION_MAX;
}
static inline size_t protocol_add_unknown(struct buf *out)
{
    (void)out;
    return 0;
}
#endif
