/* privileges.c - capabilities(7), credentials(7). */
#include "base/privileges.h"
#include "base/str.h"
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum err privileges_resolve(const char *user, uid_t uid_default, uid_t *ret_uid, gid_t *ret_gid,
                            struct error *e)
{
    uint64_t number = uid_default;
    if (user[0] == '\0' || str_to_u64(str_of(user), UINT32_MAX - 1, &number) == ERR_OK) {
        *ret_uid = (uid_t)number;
        *ret_gid = (gid_t)number;
        return ERR_OK;
    }
    errno = 0;
    const struct passwd *entry = getpwnam(user);
    if (entry == NULL)
        return error_field(e, ERR_INVALID, "user", "there is no user '%s' on this host", user);
    *ret_uid = entry->pw_uid;
    *ret_gid = entry->pw_gid;
    return ERR_OK;
}

static int capabilities_clear(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    return (int)syscall(SYS_capset, &header, none);
}

enum err privileges_drop(uid_t uid, gid_t gid, struct error *e)
{
    if (geteuid() != 0)
        return ERR_OK;
    if (uid == 0)
        return error_field(e, ERR_INVALID, "user", "this program does not run as root");
    /* Changing ids forgets it (prctl(2)): whoever started us, `up`, still wants us to end with it.
     */
    int death_signal = 0;
    pid_t parent = getppid();
    if (prctl(PR_GET_PDEATHSIG, &death_signal) < 0)
        return error_errno(e, "read the signal for the parent's death");
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return error_errno(e, "drop capability %d", capability);
    if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
        return error_errno(e, "become user %u", (unsigned)uid);
    if (capabilities_clear() < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_errno(e, "give up privileges");
    if (death_signal != 0 && prctl(PR_SET_PDEATHSIG, death_signal) < 0)
        return error_errno(e, "keep the signal for the parent's death");
    if (death_signal != 0 && getppid() != parent)
        return error_set(e, ERR_CLOSED, "the process that started this one has ended");
    if (setresuid(0, 0, 0) == 0 || geteuid() != uid || getegid() != gid)
        return error_set(e, ERR_FAILED, "privileges could be taken back after they were dropped");
    return ERR_OK;
}
