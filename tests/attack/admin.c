/* Calls by which an administrator changes the machine. Valid arguments would change it, so most carry one harmless flaw
 * and count as `ok` when the kernel got as far as finding it. */
#include "attack.h"

#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <time.h>

static int init_module(int c, char **v) { (void)c, (void)v; return reached(call3(NR_init_module, 0, 0, P(low(""))), EINVAL); }
static int finit_module(int c, char **v) { (void)c, (void)v; return reached(call3(NR_finit_module, -1, P(low("")), 0), EBADF); }
static int delete_module(int c, char **v) { (void)c, (void)v; return reached(call2(NR_delete_module, P(low("apex-none")), 04000), ENOENT); }
static int create_module(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_create_module, P(low("apex-none")), 1)); }
static int query_module(int c, char **v) { (void)c, (void)v; return verdict(call5(NR_query_module, 0, 0, 0, 0, 0)); }
static int kexec_load(int c, char **v) { (void)c, (void)v; return reached(call4(NR_kexec_load, 0, 1000, 0, 0), EINVAL); }
static int kexec_file(int c, char **v) { (void)c, (void)v; return reached(call5(NR_kexec_file_load, -1, -1, 0, 0, 0), EBADF); }
/* Wrong magic numbers: the kernel checks the capability first. */
static int reboot_magic(int c, char **v) { (void)c, (void)v; return reached(call4(NR_reboot, 1, 2, 3, 0), EINVAL); }
static int settimeofday_bad(int c, char **v) {
  (void)c, (void)v;
  static uint64_t zone[1];
  /* A zone only, as the machine has it: no clock moves. */
  return verdict(call2(NR_settimeofday, 0, P(zone)));
}
static int clock_set(int c, char **v) {
  (void)c, (void)v;
  static struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return verdict(call2(NR_clock_settime, CLOCK_REALTIME, P(&now)));
}
static int clock_set64(int c, char **v) {
  (void)c, (void)v;
  static int64_t now[2];
  struct timespec current;
  clock_gettime(CLOCK_REALTIME, &current);
  now[0] = current.tv_sec, now[1] = current.tv_nsec;
  if (NR_clock_settime64.x64 < 0 && abi != INT80 && sizeof(long) == 8) return NOT_APPLICABLE;
  return verdict(call2(NR_clock_settime64, CLOCK_REALTIME, P(now)));
}
static int stime_now(int c, char **v) {
  (void)c, (void)v;
  static int32_t now;
  now = (int32_t)time(NULL);
  if (NR_stime.x64 < 0 && abi != INT80 && sizeof(long) == 8) return NOT_APPLICABLE;
  return verdict(call1(NR_stime, P(&now)));
}
static int adjtimex_status(int c, char **v) {
  (void)c, (void)v;
  static uint32_t timex[64] = {0x4000}; /* ADJ_TICK to 0, which is out of range: found after the capability check */
  return reached(call1(NR_adjtimex, P(timex)), EINVAL);
}
static int swapon_none(int c, char **v) { (void)c, (void)v; return reached(call2(NR_swapon, P(low("/apex-none")), 0), ENOENT); }
static int swapoff_none(int c, char **v) { (void)c, (void)v; return reached(call1(NR_swapoff, P(low("/apex-none"))), ENOENT); }
static int quota(int c, char **v) { (void)c, (void)v; return reached(call4(NR_quotactl, 0x800001 << 8, 0, 0, 0), ENODEV); }
static int quota_fd(int c, char **v) { (void)c, (void)v; return reached(call4(NR_quotactl_fd, -1, 0x800001 << 8, 0, 0), EBADF); }
static int syslog_read(int c, char **v) {
  (void)c, (void)v;
  static char buffer[64];
  return verdict(call3(NR_syslog, 3, P(buffer), sizeof buffer));
}
static int syslog_level(int c, char **v) { (void)c, (void)v; return reached(call3(NR_syslog, 8, 0, 100), EINVAL); }
static int acct_none(int c, char **v) { (void)c, (void)v; return reached(call1(NR_acct, P(low("/apex-none"))), ENOENT); }
static int nfsservctl(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_nfsservctl, 0, 0, 0)); }
static int sysfs_count(int c, char **v) { (void)c, (void)v; return verdict(call1(NR_sysfs, 3)); }
static int uselib_none(int c, char **v) { (void)c, (void)v; return reached(call1(NR_uselib, P(low("/apex-none"))), ENOENT); }
static int vhangup_tty(int c, char **v) { (void)c, (void)v; return verdict(call0(NR_vhangup)); }
static int hostname_same(int c, char **v) {
  (void)c, (void)v;
  static char name[256];
  gethostname(name, sizeof name - 1);
  return verdict(call2(NR_sethostname, P(name), (long)strlen(name)));
}
static int domainname_same(int c, char **v) {
  (void)c, (void)v;
  static char name[256];
  if (getdomainname(name, sizeof name - 1)) return errno;
  return verdict(call2(NR_setdomainname, P(name), (long)strlen(name)));
}
static int dcookie(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_lookup_dcookie, 0, 0, 0)); }
static int sysctl_old(int c, char **v) { (void)c, (void)v; return reached(call1(NR__sysctl, 0), EFAULT); }
static int ustat_root(int c, char **v) {
  (void)c, (void)v;
  static char buffer[64];
  struct stat info;
  if (stat("/", &info)) return errno;
  return reached(call2(NR_ustat, (long)info.st_dev, P(buffer)), EINVAL);
}
static int vserver(int c, char **v) { (void)c, (void)v; return verdict(call0(NR_vserver)); }
static int afs(int c, char **v) { (void)c, (void)v; return verdict(call0(NR_afs_syscall)); }

/* Terminals: typing into the one that started the sandbox. On whatever standard input and /dev/tty are. */
static int tty_ioctl(long request, void *argument, int other) {
  int code = ENOTTY;
  int tty = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
  int fds[] = {tty, 0, 1, 2};
  for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++) {
    if (fds[i] < 0) continue;
    long result = call3(NR_ioctl, fds[i], request, P(argument));
    code = result >= 0 || errno == other ? OK : errno;
    if (code == OK) break;
  }
  return code;
}
static int tiocsti(int c, char **v) {
  (void)c, (void)v;
  static char key[] = "#";
  return tty_ioctl(TIOCSTI, key, OK);
}
static int tiocsti_high(int c, char **v) {
  (void)c, (void)v;
  static char key[] = "#";
  if (sizeof(long) == 4 || abi == INT80) return NOT_APPLICABLE;
  return tty_ioctl((long)(0xdeadbeef00000000ULL | TIOCSTI), key, OK);
}
/* TIOCLINUX 3 pastes the selection. EINVAL comes from the driver, ENOTTY from a descriptor that is no console. */
static int tioclinux(int c, char **v) {
  (void)c, (void)v;
  static char paste[] = {3, 0};
  return tty_ioctl(TIOCLINUX, paste, EINVAL);
}
static int tioclinux_high(int c, char **v) {
  (void)c, (void)v;
  static char paste[] = {3, 0};
  if (sizeof(long) == 4 || abi == INT80) return NOT_APPLICABLE;
  return tty_ioctl((long)(0x100000000ULL | TIOCLINUX), paste, EINVAL);
}
static int tioccons(int c, char **v) { (void)c, (void)v; return tty_ioctl(TIOCCONS, NULL, EBUSY); }
static int tiocsctty(int c, char **v) { (void)c, (void)v; return tty_ioctl(TIOCSCTTY, (void *)1L, OK); }
static int tiocsetd(int c, char **v) {
  (void)c, (void)v;
  static int discipline = 3; /* PPP */
  return tty_ioctl(TIOCSETD, &discipline, EINVAL);
}

#define A(id, fn) {id, "admin", ALWAYS | ROOT | ABIS, fn}
#define AR(id, fn) {id, "admin", ALWAYS | ROOT | RARE | ABIS, fn}
const struct attempt admin_attempts[] = {
    AR("init_module", init_module),
    AR("finit_module", finit_module),
    AR("delete_module", delete_module),
    AR("create_module", create_module),
    AR("query_module", query_module),
    AR("kexec_load", kexec_load),
    AR("kexec_file_load", kexec_file),
    A("reboot", reboot_magic),
    {"settimeofday", "admin", ALWAYS | INSIDE | ABIS, settimeofday_bad},
    {"clock_settime", "admin", ALWAYS | INSIDE | ABIS, clock_set},
    {"clock_settime64", "admin", ALWAYS | INSIDE | ABIS, clock_set64},
    {"stime", "admin", ALWAYS | INSIDE | ABIS, stime_now},
    AR("adjtimex", adjtimex_status),
    A("swapon", swapon_none),
    A("swapoff", swapoff_none),
    {"quotactl", "admin", STRICT | RARE | ABIS, quota},
    {"quotactl_fd", "admin", STRICT | RARE | ABIS, quota_fd},
    A("syslog_read", syslog_read),
    A("syslog_level", syslog_level),
    A("acct", acct_none),
    AR("nfsservctl", nfsservctl),
    {"sysfs", "admin", LONE | RARE | ABIS, sysfs_count},
    {"uselib", "admin", LONE | RARE | ABIS, uselib_none},
    {"vhangup", "admin", ALWAYS | INSIDE | ABIS, vhangup_tty},
    A("sethostname", hostname_same),
    A("setdomainname", domainname_same),
    AR("lookup_dcookie", dcookie),
    AR("_sysctl", sysctl_old),
    {"ustat", "admin", LONE | RARE | ABIS, ustat_root},
    AR("vserver", vserver),
    AR("afs_syscall", afs),
    {"tiocsti", "tty", ALWAYS | INSIDE | ABIS, tiocsti},
    {"tiocsti_high", "tty", ALWAYS | INSIDE | ABIS, tiocsti_high},
    {"tioclinux", "tty", ALWAYS | INSIDE | ABIS, tioclinux},
    {"tioclinux_high", "tty", ALWAYS | INSIDE | ABIS, tioclinux_high},
    {"tioccons", "tty", ALWAYS | INSIDE | ABIS, tioccons},
    {"tiocsctty_steal", "tty", ALWAYS | INSIDE | ABIS, tiocsctty},
    {"tiocsetd", "tty", STRICT | INSIDE | ABIS, tiocsetd},
    {NULL, NULL, 0, NULL},
};
