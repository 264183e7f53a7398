/* frame.c - a 4-byte big-endian length, then so many bytes. Length 0 is a heartbeat. */
#include "base/limits.h"
#include "wire/link.h"

enum err frame_decode(const uint8_t *data, size_t bytes, const uint8_t **ret_payload,
                      size_t *ret_payload_bytes, size_t *ret_frame_bytes)
{
    if (bytes < FRAME_HEAD_BYTES)
        return ERR_MORE;
    uint32_t length =
        (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
    if (length > FRAME_BYTES_MAX)
        return ERR_TOO_LARGE;
    if (bytes - FRAME_HEAD_BYTES < length)
        return ERR_MORE;
    *ret_payload = data + FRAME_HEAD_BYTES;
    *ret_payload_bytes = length;
    *ret_frame_bytes = FRAME_HEAD_BYTES + length;
    return ERR_OK;
}

void frame_head_encode(uint32_t payload_bytes, uint8_t *ret_head)
{
    ret_head[0] = (uint8_t)(payload_bytes >> 24);
    ret_head[1] = (uint8_t)(payload_bytes >> 16);
    ret_head[2] = (uint8_t)(payload_bytes >> 8);
    ret_head[3] = (uint8_t)payload_bytes;
}
