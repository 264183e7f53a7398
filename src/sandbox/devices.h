/* devices.h - which device nodes sandboxes may use, on top of a read-only /dev, nodev mounts and a
 * user namespace in which none can be made: null, zero, full, random, urandom, tty and
 * pseudo-terminals; none may be made. For a cgroup and all below it: the devices controller of
 * version 1 (cgroups(7)), a program of type BPF_PROG_TYPE_CGROUP_DEVICE (bpf(2)) with version 2. */
#pragma once
#include "base/base.h"

/* `cgroup_fd` is the directory. ERR_UNSUPPORTED where the kernel has no such programs. */
must_check enum err devices_restrict_v2(int cgroup_fd, struct error *e);
must_check enum err devices_restrict_v1(int cgroup_fd, struct error *e);
