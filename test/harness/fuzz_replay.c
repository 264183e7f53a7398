/* fuzz_replay.c - runs a fuzz target over its corpus without a fuzzer: each file whole, and every
 * shorter prefix of each file of up to 4 KiB. Arguments: corpus directories or files. Prints TAP.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static unsigned files;

static void replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        printf("Bail out! cannot open %s\n", path);
        exit(1);
    }
    static uint8_t data[1 << 20];
    size_t bytes = fread(data, 1, sizeof(data), file);
    fclose(file);
    size_t shortest = bytes <= 4096 ? 0 : bytes;
    for (size_t prefix = shortest; prefix <= bytes; prefix++) {
        uint8_t *copy = malloc(prefix > 0 ? prefix : 1); /* exact size: overreads show */
        if (copy == NULL)
            abort();
        memcpy(copy, data, prefix);
        LLVMFuzzerTestOneInput(copy, prefix);
        free(copy);
    }
    printf("ok %u - %s\n", ++files, path);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        struct stat st;
        if (stat(argv[i], &st) == 0 && S_ISREG(st.st_mode)) {
            replay_file(argv[i]);
            continue;
        }
        DIR *dir = opendir(argv[i]);
        if (dir == NULL) {
            printf("Bail out! no corpus %s\n", argv[i]);
            return 1;
        }
        for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
            char path[4096];
            if (entry->d_name[0] == '.')
                continue;
            snprintf(path, sizeof(path), "%s/%s", argv[i], entry->d_name);
            replay_file(path);
        }
        closedir(dir);
    }
    if (files == 0) {
        printf("Bail out! empty corpus\n");
        return 1;
    }
    printf("1..%u\n", files);
    return 0;
}
