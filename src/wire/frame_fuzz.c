/* frame_fuzz.c - whatever comes: frames are found within the bytes given, and messages unpack or
 * are refused. */
#include "dirigent.pb-c.h"
#include "wire/link.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const uint8_t *payload;
    size_t payload_bytes, frame_bytes, used = 0;
    while (frame_decode(data + used, bytes - used, &payload, &payload_bytes, &frame_bytes) ==
           ERR_OK) {
        assert(payload + payload_bytes <= data + bytes && frame_bytes <= bytes - used);
        Dirigent__ToControlPlane *to =
            dirigent__to_control_plane__unpack(NULL, payload_bytes, payload);
        if (to != NULL)
            dirigent__to_control_plane__free_unpacked(to, NULL);
        Dirigent__FromControlPlane *from =
            dirigent__from_control_plane__unpack(NULL, payload_bytes, payload);
        if (from != NULL)
            dirigent__from_control_plane__free_unpacked(from, NULL);
        used += frame_bytes;
    }
    return 0;
}
