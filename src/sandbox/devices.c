/* devices.c - one list of devices, as lines for version 1 and as a BPF program for version 2. */
#include "sandbox/devices.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ANY UINT32_MAX
#define PROGRAM_MAX 64u

static const struct {
    uint32_t major, minor;
} allowed[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8},
               {1, 9}, {5, 0}, {5, 2}, {136, ANY}}; /* devices.txt of the kernel */

static enum err line_write(int dir, const char *file, const char *line, struct error *e)
{
    cleanup(fd_close) int fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, line, strlen(line)) != (ssize_t)strlen(line))
        return error_errno(e, "write '%s' to %s of the sandboxes' cgroup", line, file);
    return ERR_OK;
}

enum err devices_restrict_v1(int cgroup_fd, struct error *e)
{
    enum err err = line_write(cgroup_fd, "devices.deny", "a", e);
    for (size_t i = 0; i < ARRAY_COUNT(allowed) && err == ERR_OK; i++) {
        char line[48];
        if (allowed[i].minor == ANY)
            (void)snprintf(line, sizeof(line), "c %u:* rw", allowed[i].major);
        else
            (void)snprintf(line, sizeof(line), "c %u:%u rw", allowed[i].major, allowed[i].minor);
        err = line_write(cgroup_fd, "devices.allow", line, e);
    }
    return err;
}

/* ---- version 2 ---- */

struct program {
    uint64_t code[PROGRAM_MAX]; /* as struct bpf_insn on a little-endian machine */
    unsigned count;
};

static void emit(struct program *p, uint8_t code, uint8_t dst, uint8_t src, int16_t offset,
                 int32_t immediate)
{
    assert(p->count < PROGRAM_MAX);
    p->code[p->count++] = (uint64_t)code | (uint64_t)dst << 8 | (uint64_t)src << 12 |
                          (uint64_t)(uint16_t)offset << 16 | (uint64_t)(uint32_t)immediate << 32;
}

static void emit_return(struct program *p, int32_t value)
{
    emit(p, BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, value);
    emit(p, BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

/* Of struct bpf_cgroup_dev_ctx in r1: access and type in one word, major, minor. */
static void build(struct program *p)
{
    emit(p, BPF_LDX | BPF_MEM | BPF_W, BPF_REG_2, BPF_REG_1,
         offsetof(struct bpf_cgroup_dev_ctx, access_type), 0);
    emit(p, BPF_LDX | BPF_MEM | BPF_W, BPF_REG_4, BPF_REG_1,
         offsetof(struct bpf_cgroup_dev_ctx, major), 0);
    emit(p, BPF_LDX | BPF_MEM | BPF_W, BPF_REG_5, BPF_REG_1,
         offsetof(struct bpf_cgroup_dev_ctx, minor), 0);
    emit(p, BPF_ALU64 | BPF_MOV | BPF_X, BPF_REG_3, BPF_REG_2, 0, 0);
    emit(p, BPF_ALU64 | BPF_AND | BPF_K, BPF_REG_3, 0, 0, 0xffff);
    emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_3, 0, 2,
         BPF_DEVCG_DEV_CHAR); /* to the refusal below */
    emit(p, BPF_ALU64 | BPF_AND | BPF_K, BPF_REG_2, 0, 0, BPF_DEVCG_ACC_MKNOD << 16);
    emit(p, BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_2, 0, 2, 0); /* past it */
    emit_return(p, 0);
    for (size_t i = 0; i < ARRAY_COUNT(allowed); i++) {
        bool any = allowed[i].minor == ANY;
        emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_4, 0, any ? 2 : 3,
             (int32_t)allowed[i].major); /* to the next one */
        if (!any)
            emit(p, BPF_JMP | BPF_JNE | BPF_K, BPF_REG_5, 0, 2, (int32_t)allowed[i].minor);
        emit_return(p, 1);
    }
    emit_return(p, 0);
}

enum err devices_restrict_v2(int cgroup_fd, struct error *e)
{
    struct program p = {.count = 0};
    build(&p);
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
                           .insns = (uint64_t)(uintptr_t)p.code,
                           .insn_cnt = p.count,
                           .license = (uint64_t)(uintptr_t) "",
                           .prog_name = "dirigent_dev"};
    cleanup(fd_close) int program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof(load));
    if (program < 0 && (errno == ENOSYS || errno == EINVAL || errno == EPERM))
        return error_set(e, ERR_UNSUPPORTED,
                         "the kernel takes no program that restricts devices: %s", strerror(errno));
    if (program < 0)
        return error_errno(e, "load the program that restricts devices");
    union bpf_attr attach = {.target_fd = (uint32_t)cgroup_fd,
                             .attach_bpf_fd = (uint32_t)program,
                             .attach_type = BPF_CGROUP_DEVICE,
                             .attach_flags = BPF_F_ALLOW_MULTI};
    if (syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof(attach)) < 0)
        return error_errno(e, "restrict the devices of the sandboxes' cgroup");
    return ERR_OK; /* it goes with the cgroup */
}
