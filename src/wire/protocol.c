/* protocol.c - only in builds for tests. */
#include "wire/protocol.h"
#include <stdio.h>
#include <stdlib.h>

static bool claimed(unsigned *ret_min, unsigned *ret_max)
{
    const char *text = getenv("PROTOCOL_VERSIONS");
    return text != NULL && sscanf(text, "%u-%u", ret_min, ret_max) == 2;
}

uint32_t protocol_version_min(void)
{
    unsigned min, max;
    return claimed(&min, &max) ? min : PROTOCOL_VERSION_MIN;
}

uint32_t protocol_version_max(void)
{
    unsigned min, max;
    return claimed(&min, &max) ? max : PROTOCOL_VERSION_MAX;
}

/* As the encoding has it (protobuf.dev/programming-guides/encoding): field 15000 with a text, field
 * 15001 with a number. */
size_t protocol_add_unknown(struct buf *out)
{
    static const uint8_t unknown[] = {0xc2, 0xa9, 0x07, 3, 'n', 'e', 'w', 0xc8, 0xa9, 0x07, 42};
    if (protocol_version_max() <= PROTOCOL_VERSION_MAX)
        return 0;
    buf_append(out, unknown, sizeof(unknown));
    return sizeof(unknown);
}
