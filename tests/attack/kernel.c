/* System calls that open a large or rarely used part of the kernel to whoever may call them. The arguments are harmless:
 * what counts is whether the kernel got as far as looking at them. */
#include "attack.h"

#include <dirent.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int bpf_map(int c, char **v) {
  (void)c, (void)v;
  static uint32_t attr[32] = {2 /* array */, 4, 4, 1};
  return verdict(call3(NR_bpf, 0, P(attr), sizeof attr));
}
static int bpf_prog(int c, char **v) {
  (void)c, (void)v;
  static uint64_t program[2] = {0xb7, 0x95}; /* r0 = 0; exit */
  static char license[] = "GPL";
  static struct {
    uint32_t type, count;
    uint64_t insns, license;
    uint64_t rest[12];
  } attr = {.type = 1 /* socket filter */, .count = 2};
  attr.insns = (uint64_t)P(program), attr.license = (uint64_t)P(license);
  return verdict(call3(NR_bpf, 5, P(&attr), sizeof attr));
}
static int perf_open(int c, char **v) {
  (void)c, (void)v;
  static uint32_t attr[32] = {1 /* software */, sizeof attr};
  attr[10] = 0x60; /* exclude_kernel, exclude_hv */
  return verdict(call5(NR_perf_event_open, P(attr), 0, -1, -1, 0));
}
static int uring_setup(int c, char **v) {
  (void)c, (void)v;
  static uint32_t params[30];
  return verdict(call2(NR_io_uring_setup, 1, P(params)));
}
static int uring_enter(int c, char **v) { (void)c, (void)v; return reached(call6(NR_io_uring_enter, -1, 0, 0, 0, 0, 0), EBADF); }
static int uring_register(int c, char **v) { (void)c, (void)v; return reached(call4(NR_io_uring_register, 1000, 1, 0, 0), EBADF); }
static int uffd(int c, char **v) { (void)c, (void)v; return verdict(call1(NR_userfaultfd, O_CLOEXEC)); }
static int uffd_user(int c, char **v) { (void)c, (void)v; return verdict(call1(NR_userfaultfd, O_CLOEXEC | 1)); }
static int keyctl_get(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_keyctl, 0, -3 /* session keyring */, 1)); }
static int keyctl_join(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_keyctl, 1, 0)); }
static int add_key_user(int c, char **v) {
  (void)c, (void)v;
  return verdict(call5(NR_add_key, P(low("user")), P(low("apex-attack")), P(low("x")), 1, -2 /* process keyring */));
}
static int request_key_user(int c, char **v) {
  (void)c, (void)v;
  return reached(call4(NR_request_key, P(low("user")), P(low("apex-attack-none")), 0, 0), ENOKEY);
}
static int handle_name(int c, char **v) {
  static struct {
    uint32_t bytes, type;
    char data[128];
  } handle = {.bytes = 128};
  static int mount_id;
  return verdict(call5(NR_name_to_handle_at, AT_FDCWD, P(low(arg(c, v, 1, "/"))), P(&handle), P(&mount_id), 0));
}
/* The shocker attack: an invented handle of inode 2, the root of ext4. */
static int handle_open(int c, char **v) {
  static struct {
    uint32_t bytes, type;
    uint32_t data[2];
  } handle = {8, 1, {2, 0}};
  int fd = open(arg(c, v, 1, "/"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  return reached(call3(NR_open_by_handle_at, fd, P(&handle), O_RDONLY), ESTALE);
}
static int memfd_secret(int c, char **v) { (void)c, (void)v; return verdict(call1(NR_memfd_secret, 0)); }
static int remap_pages(int c, char **v) {
  (void)c, (void)v;
  return reached(call5(NR_remap_file_pages, 0, 4096, 0, 0, 0), EINVAL);
}
static int fanotify(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_fanotify_init, 0x200 /* report fid */, O_RDONLY)); }
static int personality_with(long value) { return verdict(call1(NR_personality, value)); }
static int personality_aslr(int c, char **v) { (void)c, (void)v; return personality_with(0x0040000); }
static int personality_exec(int c, char **v) { (void)c, (void)v; return personality_with(0x0400000); }
static int personality_page0(int c, char **v) { (void)c, (void)v; return personality_with(0x0100000); }
static int modify_ldt(int c, char **v) {
  (void)c, (void)v;
  static uint32_t entry[4] = {0, 0, 0xfffff, 0x51};
  return verdict(call3(NR_modify_ldt, 0x11, P(entry), sizeof entry));
}
static int iopl3(int c, char **v) { (void)c, (void)v; return verdict(call1(NR_iopl, 3)); }
static int ioperm_80(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_ioperm, 0x80, 1, 1)); }
static int vm86_old(int c, char **v) {
  (void)c, (void)v;
  if (abi != INT80 && sizeof(long) == 8) return NOT_APPLICABLE;
  return reached(call1(NR_vm86old, 0), EFAULT);
}
static int lsm_set(int c, char **v) {
  (void)c, (void)v;
  return reached(call4(NR_lsm_set_self_attr, 0, 0, 0, 0), EINVAL);
}
static int mbind_any(int c, char **v) { (void)c, (void)v; return reached(call6(NR_mbind, 1, 4096, 0, 0, 0, 0), EINVAL); }
static int landlock_ruleset(int c, char **v) {
  (void)c, (void)v;
  return verdict(call3(NR_landlock_create_ruleset, 0, 0, 1));
}
static int clock_offset(int c, char **v) {
  (void)c, (void)v;
  int fd = open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  return verdict(write(fd, "monotonic 1 0\n", 14));
}

#define DEVICE(id, path, flags) \
  static int dev_##id(int c, char **v) { (void)c, (void)v; return try_open(path, flags); }
DEVICE(mem, "/dev/mem", O_RDONLY)
DEVICE(kmsg, "/dev/kmsg", O_RDONLY | O_NONBLOCK)
DEVICE(port, "/dev/port", O_RDONLY)
DEVICE(kvm, "/dev/kvm", O_RDWR)
DEVICE(fuse, "/dev/fuse", O_RDWR)
DEVICE(uffd, "/dev/userfaultfd", O_RDWR)
DEVICE(loop, "/dev/loop-control", O_RDWR)
DEVICE(tun, "/dev/net/tun", O_RDWR)
DEVICE(vsock, "/dev/vsock", O_RDWR)
DEVICE(console, "/dev/console", O_WRONLY | O_NOCTTY | O_NONBLOCK)
DEVICE(tty0, "/dev/tty0", O_WRONLY | O_NOCTTY | O_NONBLOCK)

/* Any block device that shows itself in /dev. */
static int dev_block(int c, char **v) {
  (void)c, (void)v;
  DIR *dir = opendir("/dev");
  if (!dir) return errno;
  int code = ENOENT;
  for (struct dirent *entry; (entry = readdir(dir));) {
    struct stat info;
    if (fstatat(dirfd(dir), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) || !S_ISBLK(info.st_mode)) continue;
    int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      code = errno;
      continue;
    }
    detail("%s", entry->d_name);
    close(fd);
    code = OK;
    break;
  }
  closedir(dir);
  return code;
}

/* Files of /proc and /sys that change the machine: opening for writing is proof enough, nothing is written. */
#define KNOB(id, path) \
  static int knob_##id(int c, char **v) { (void)c, (void)v; return try_open(path, O_WRONLY); }
KNOB(hostname, "/proc/sys/kernel/hostname")
KNOB(core_pattern, "/proc/sys/kernel/core_pattern")
KNOB(modprobe, "/proc/sys/kernel/modprobe")
KNOB(overcommit, "/proc/sys/vm/overcommit_memory")
KNOB(drop_caches, "/proc/sys/vm/drop_caches")
KNOB(ip_forward, "/proc/sys/net/ipv4/ip_forward")
KNOB(max_userns, "/proc/sys/user/max_user_namespaces")
KNOB(ns_last_pid, "/proc/sys/kernel/ns_last_pid")
KNOB(sysrq, "/proc/sysrq-trigger")
KNOB(uevent_helper, "/sys/kernel/uevent_helper")
KNOB(sys_power, "/sys/power/state")
KNOB(irq, "/proc/irq/default_smp_affinity")
KNOB(oom_score, "/proc/1/oom_score_adj")
/* A mask opens and holds nothing; the file itself gives text, or EAGAIN when all of a log was read. */
static int read_text(const char *path) {
  char text[256];
  int fd = open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) return errno;
  long got = read(fd, text, sizeof text);
  int code = got > 0 || (got < 0 && errno == EAGAIN) ? OK : got < 0 ? errno : ENODATA;
  close(fd);
  return code;
}
static int read_kcore(int c, char **v) { (void)c, (void)v; return read_text("/proc/kcore"); }
static int read_kmsg(int c, char **v) { (void)c, (void)v; return read_text("/proc/kmsg"); }
static int read_kallsyms(int c, char **v) { (void)c, (void)v; return read_text("/proc/kallsyms"); }
static int read_keys(int c, char **v) { (void)c, (void)v; return read_text("/proc/keys"); }
static int read_sched_debug(int c, char **v) { (void)c, (void)v; return try_open("/sys/kernel/debug/sched/debug", O_RDONLY); }
static int write_self_exe(int c, char **v) { (void)c, (void)v; return try_open("/proc/self/exe", O_WRONLY); }
static int cgroup_write(int c, char **v) {
  (void)c, (void)v;
  static const char *const paths[] = {"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs",
                                      "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs"};
  int code = ENOENT;
  for (unsigned i = 0; i < sizeof paths / sizeof *paths && code != OK; i++) code = try_open(paths[i], O_WRONLY);
  return code;
}

#define D(id) {"dev_" #id, "kernel", ALWAYS | ROOT | RARE, dev_##id}
#define K(id) {"knob_" #id, "kernel", ALWAYS | ROOT | RARE, knob_##id}
const struct attempt kernel_attempts[] = {
    {"bpf_map", "kernel", ALWAYS | ROOT | ABIS, bpf_map},
    {"bpf_prog", "kernel", STRICT | ROOT | ABIS, bpf_prog},
    {"perf_event_open", "kernel", STRICT | ROOT | ABIS, perf_open},
    {"io_uring_setup", "kernel", STRICT | ABIS, uring_setup},
    {"io_uring_enter", "kernel", STRICT | ABIS, uring_enter},
    {"io_uring_register", "kernel", STRICT | ABIS, uring_register},
    {"userfaultfd", "kernel", STRICT | ROOT | ABIS, uffd},
    {"userfaultfd_user", "kernel", STRICT | ABIS, uffd_user},
    {"keyctl_get", "kernel", STRICT | ABIS, keyctl_get},
    {"keyctl_join", "kernel", STRICT | ABIS, keyctl_join},
    {"add_key", "kernel", STRICT | ABIS, add_key_user},
    {"request_key", "kernel", STRICT | ABIS, request_key_user},
    {"name_to_handle_at", "kernel", STRICT | ABIS, handle_name},
    {"open_by_handle_at", "kernel", ALWAYS | ROOT | ABIS, handle_open},
    {"memfd_secret", "kernel", RARE | ABIS, memfd_secret},
    {"remap_file_pages", "kernel", LONE | ABIS, remap_pages},
    {"fanotify_init", "kernel", STRICT | ABIS, fanotify},
    {"personality_aslr", "kernel", ABIS, personality_aslr},
    {"personality_exec", "kernel", STRICT | ABIS, personality_exec},
    {"personality_page0", "kernel", STRICT | ABIS, personality_page0},
    {"modify_ldt", "kernel", STRICT | RARE | ABIS, modify_ldt},
    {"iopl", "kernel", ALWAYS | ROOT | RARE | ABIS, iopl3},
    {"ioperm", "kernel", ALWAYS | ROOT | RARE | ABIS, ioperm_80},
    {"vm86old", "kernel", STRICT | RARE | ABIS, vm86_old},
    {"lsm_set_self_attr", "kernel", STRICT | RARE | ABIS, lsm_set},
    {"mbind", "kernel", LONE | RARE | ABIS, mbind_any},
    {"timens_offsets", "kernel", ALWAYS | INSIDE, clock_offset},
    D(mem), D(kmsg), D(port), D(kvm), D(fuse), D(uffd), D(loop), D(tun), D(vsock), D(console), D(tty0), D(block),
    K(hostname), K(core_pattern), K(modprobe), K(overcommit), K(drop_caches), K(ip_forward), K(max_userns),
    K(ns_last_pid), K(sysrq), K(uevent_helper), K(sys_power), K(irq), K(oom_score),
    {"read_kcore", "kernel", ALWAYS | ROOT | RARE, read_kcore},
    {"read_kallsyms", "kernel", STRICT | RARE, read_kallsyms},
    {"read_kmsg", "kernel", ALWAYS | ROOT | RARE, read_kmsg},
    {"read_keys", "kernel", STRICT | RARE, read_keys},
    {"read_sched_debug", "kernel", ALWAYS | ROOT | RARE, read_sched_debug},
    {"self_exe_write", "kernel", ALWAYS | INSIDE, write_self_exe},
    {"cgroup_write", "kernel", ALWAYS | ROOT | RARE, cgroup_write},
    /* Not refused: confining oneself further is welcome. */
    {"landlock", "welcome", RARE | ABIS, landlock_ruleset},
    {NULL, NULL, 0, NULL},
};
