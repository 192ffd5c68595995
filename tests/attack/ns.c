/* Mounts and namespaces: the new mount API, the old one, and every way into or out of a namespace.
 * Tried outside a sandbox only within private namespaces (see unconfined.rs). */
#include "attack.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
#define AT_EMPTY_PATH_FLAG 0x1000
#define AT_RECURSIVE_FLAG 0x8000

static int mount_with(const char *source, const char *target, const char *type, unsigned long flags) {
  return verdict(call5(NR_mount, P(low(source)), P(low(target)), P(low(type)), (long)flags, 0));
}

static int mount_tmpfs(int c, char **v) { return mount_with("none", arg(c, v, 1, "/tmp"), "tmpfs", 0); }
static int mount_proc(int c, char **v) { return mount_with("proc", arg(c, v, 1, "/tmp"), "proc", 0); }
static int mount_sysfs(int c, char **v) { return mount_with("none", arg(c, v, 1, "/tmp"), "sysfs", 0); }
static int mount_bind(int c, char **v) { return mount_with("/", arg(c, v, 1, "/tmp"), "none", MS_BIND | MS_REC); }
static int mount_remount_rw(int c, char **v) {
  return mount_with("none", arg(c, v, 1, "/"), "none", MS_REMOUNT | MS_BIND);
}
static int mount_move(int c, char **v) { (void)c, (void)v; return reached(call5(NR_mount, P(low("/tmp")), P(low("/")), 0, MS_MOVE, 0), EINVAL); }
static int mount_shared(int c, char **v) { (void)c, (void)v; return mount_with("none", "/", "none", MS_REC | MS_SHARED); }
static int mount_private(int c, char **v) { (void)c, (void)v; return mount_with("none", "/", "none", MS_REC | MS_PRIVATE); }
static int umount_proc(int c, char **v) { return verdict(call2(NR_umount2, P(low(arg(c, v, 1, "/proc"))), MNT_DETACH)); }
static int umount_old(int c, char **v) {
  if (NR_umount.x64 < 0 && abi != INT80 && sizeof(long) == 8) return NOT_APPLICABLE;
  return reached(call1(NR_umount, P(low(arg(c, v, 1, "/tmp")))), EINVAL);
}
static int pivot(int c, char **v) { (void)c, (void)v; return reached(call2(NR_pivot_root, P(low("/")), P(low("/"))), EBUSY); }
static int chroot_root(int c, char **v) { (void)c, (void)v; return verdict(call1(NR_chroot, P(low("/")))); }
static int open_tree_clone(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_open_tree, AT_FDCWD, P(low("/")), 1)); }
static int open_tree_attr(int c, char **v) {
  (void)c, (void)v;
  static uint64_t attr[4];
  return verdict(call5(NR_open_tree_attr, AT_FDCWD, P(low("/")), 1 | AT_RECURSIVE_FLAG, P(attr), sizeof attr));
}
static int move_mount_root(int c, char **v) {
  (void)c, (void)v;
  return reached(call5(NR_move_mount, AT_FDCWD, P(low("/tmp")), AT_FDCWD, P(low("/")), 0), EINVAL);
}
static int fsopen_tmpfs(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_fsopen, P(low("tmpfs")), 0)); }
static int fsconfig_bad(int c, char **v) { (void)c, (void)v; return reached(call5(NR_fsconfig, -1, 0, 0, 0, 0), EINVAL); }
static int fsmount_bad(int c, char **v) { (void)c, (void)v; return reached(call3(NR_fsmount, -1, 0, 0), EBADF); }
static int fspick_root(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_fspick, AT_FDCWD, P(low("/")), 0)); }
static int mount_setattr_rw(int c, char **v) {
  static uint64_t attr[4] = {0, 0, 0, 0};
  attr[1] = 1; /* attr_clr = MOUNT_ATTR_RDONLY */
  return verdict(call5(NR_mount_setattr, AT_FDCWD, P(low(arg(c, v, 1, "/"))), 0, P(attr), sizeof attr));
}
static int listmount_root(int c, char **v) {
  (void)c, (void)v;
  static uint64_t request[4] = {0, 0xffffffffffffffffULL, 0, 0}, ids[64];
  ((uint32_t *)request)[0] = 24; /* MNT_ID_REQ_SIZE_VER0, LSMT_ROOT */
  return verdict(call4(NR_listmount, P(request), P(ids), 64, 0));
}

static int unshare_one(long flag) { return verdict(call1(NR_unshare, flag)); }
static int clone_one(long flag) {
  long pid = call5(NR_clone, flag | SIGCHLD, 0, 0, 0, 0);
  if (pid == 0) _exit(0);
  if (pid < 0) return errno;
  waitpid((pid_t)pid, NULL, 0);
  return OK;
}
#define NAMESPACE(name, flag)                                                                \
  static int unshare_##name(int c, char **v) { (void)c, (void)v; return unshare_one(flag); } \
  static int clone_##name(int c, char **v) { (void)c, (void)v; return clone_one(flag); }
NAMESPACE(user, CLONE_NEWUSER)
NAMESPACE(mnt, CLONE_NEWNS)
NAMESPACE(pid, CLONE_NEWPID)
NAMESPACE(net, CLONE_NEWNET)
NAMESPACE(ipc, CLONE_NEWIPC)
NAMESPACE(uts, CLONE_NEWUTS)
NAMESPACE(cgroup, CLONE_NEWCGROUP)
static int unshare_time(int c, char **v) { (void)c, (void)v; return unshare_one(CLONE_NEWTIME); }

/* clone3's flags lie in memory that a filter cannot see: the call must be refused whole. */
static int clone3_with(uint64_t flags) {
  static uint64_t args[11];
  args[0] = flags;
  args[4] = SIGCHLD;
  long pid = call2(NR_clone3, P(args), 64);
  if (pid == 0) _exit(0);
  if (pid < 0) return errno;
  waitpid((pid_t)pid, NULL, 0);
  return OK;
}
static int clone3_user(int c, char **v) { (void)c, (void)v; return clone3_with(CLONE_NEWUSER); }
static int clone3_mnt(int c, char **v) { (void)c, (void)v; return clone3_with(CLONE_NEWNS); }
static int clone3_time(int c, char **v) { (void)c, (void)v; return clone3_with(CLONE_NEWTIME); }

static int setns_proc(const char *name, int flag) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/ns/%s", name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  return reached(call2(NR_setns, fd, flag), EINVAL);
}
#define SETNS(name, flag) \
  static int setns_##name(int c, char **v) { (void)c, (void)v; return setns_proc(#name, flag); }
SETNS(user, CLONE_NEWUSER)
SETNS(mnt, CLONE_NEWNS)
SETNS(pid, CLONE_NEWPID)
SETNS(net, CLONE_NEWNET)
SETNS(ipc, CLONE_NEWIPC)
SETNS(uts, CLONE_NEWUTS)
SETNS(cgroup, CLONE_NEWCGROUP)
SETNS(time, CLONE_NEWTIME)

static int setns_pidfd(int c, char **v) {
  (void)c, (void)v;
  long fd = call2(NR_pidfd_open, init_pid(), 0);
  if (fd < 0) return errno;
  return verdict(call2(NR_setns, fd, CLONE_NEWUTS | CLONE_NEWNET));
}

/* NS_GET_USERNS and NS_GET_PARENT hand out descriptors of namespaces one stands in or beneath. */
static int ns_get_parent(int c, char **v) {
  (void)c, (void)v;
  int fd = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  return verdict(call3(NR_ioctl, fd, 0xb702, 0));
}
static int listns_all(int c, char **v) {
  (void)c, (void)v;
  static uint64_t request[4], ids[16];
  ((uint32_t *)request)[0] = sizeof request;
  return verdict(call4(NR_listns, P(request), P(ids), 16, 0));
}

#define UNSHARE(name, flags) {"unshare_" #name, "ns", flags | ABIS, unshare_##name}, {"clone_" #name, "ns", flags | ABIS, clone_##name}
#define R (ALWAYS | ROOT | ABIS)
const struct attempt ns_attempts[] = {
    {"mount_tmpfs", "ns", R, mount_tmpfs},
    {"mount_proc", "ns", R, mount_proc},
    {"mount_sysfs", "ns", R, mount_sysfs},
    {"mount_bind", "ns", R, mount_bind},
    {"mount_remount_rw", "ns", R, mount_remount_rw},
    {"mount_move", "ns", R, mount_move},
    {"mount_shared", "ns", R, mount_shared},
    {"mount_private", "ns", R, mount_private},
    {"umount_proc", "ns", R, umount_proc},
    {"umount_old", "ns", R, umount_old},
    {"pivot_root", "ns", R | RARE, pivot},
    {"chroot", "ns", R, chroot_root},
    {"open_tree_clone", "ns", R, open_tree_clone},
    {"open_tree_attr", "ns", R | RARE, open_tree_attr},
    {"move_mount", "ns", R, move_mount_root},
    {"fsopen", "ns", R, fsopen_tmpfs},
    {"fsconfig", "ns", STRICT | ABIS, fsconfig_bad},
    {"fsmount", "ns", R, fsmount_bad},
    {"fspick", "ns", R, fspick_root},
    {"mount_setattr", "ns", R, mount_setattr_rw},
    {"listmount", "ns", RARE | ABIS, listmount_root},
    UNSHARE(user, STRICT),
    UNSHARE(mnt, ALWAYS | ROOT),
    UNSHARE(pid, ALWAYS | ROOT),
    UNSHARE(net, ALWAYS | ROOT),
    UNSHARE(ipc, ALWAYS | ROOT),
    UNSHARE(uts, ALWAYS | ROOT),
    UNSHARE(cgroup, ALWAYS | ROOT),
    {"unshare_time", "ns", R, unshare_time},
    {"clone3_user", "ns", STRICT | ABIS, clone3_user},
    {"clone3_mnt", "ns", R, clone3_mnt},
    {"clone3_time", "ns", R, clone3_time},
    {"setns_user", "ns", STRICT | ABIS, setns_user},
    {"setns_mnt", "ns", R, setns_mnt},
    {"setns_pid", "ns", R, setns_pid},
    {"setns_net", "ns", R, setns_net},
    {"setns_ipc", "ns", R, setns_ipc},
    {"setns_uts", "ns", R, setns_uts},
    {"setns_cgroup", "ns", R, setns_cgroup},
    {"setns_time", "ns", R, setns_time},
    {"setns_pidfd", "ns", R, setns_pidfd},
    {"ns_get_parent", "ns", ALWAYS | INSIDE | ABIS, ns_get_parent},
    {"listns", "ns", STRICT | RARE | ABIS, listns_all},
    {NULL, NULL, 0, NULL},
};
