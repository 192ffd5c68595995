/* Gaining ids, capabilities and set-id files. */
#include "attack.h"

#include <grp.h>
#include <sys/prctl.h>

/* A file of our own in the directory argv[1] (/tmp when absent) to try modes on. */
static char *own_file(int argc, char **argv) {
  static char path[256];
  snprintf(path, sizeof path, "%s/attack-%d", arg(argc, argv, 1, "/tmp"), (int)getpid());
  int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0700);
  if (fd < 0) return NULL;
  close(fd);
  return path;
}

/* `ok` only when the set-id bits are really there afterwards, whatever the call answered. */
static int bits_set(char *path, int code) {
  struct stat info;
  int there = !stat(path, &info) && (info.st_mode & (S_ISUID | S_ISGID));
  unlink(path);
  if (there) return OK;
  return code == OK ? EPERM : code;
}

static int chmod_bits(int c, char **v, int mode) {
  char *path = own_file(c, v);
  if (!path) return errno;
  return bits_set(path, verdict(call2(NR_chmod, P(path), mode)));
}
static int chmod_uid(int c, char **v) { return chmod_bits(c, v, 04755); }
static int chmod_gid(int c, char **v) { return chmod_bits(c, v, 02755); }
static int chmod_both(int c, char **v) { return chmod_bits(c, v, 06755); }
/* mode_t is 16 bits wide for the kernel: what a filter compares must not be fooled by the rest of the register. */
static int chmod_high(int c, char **v) {
  char *path = own_file(c, v);
  if (!path) return errno;
  if (sizeof(long) == 4 || abi == INT80) return unlink(path), NOT_APPLICABLE;
  return bits_set(path, verdict(call2(NR_chmod, P(path), (long)0xffff000000000000LL | 04755)));
}
static int fchmod_bits(int c, char **v) {
  char *path = own_file(c, v);
  if (!path) return errno;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  return bits_set(path, fd < 0 ? errno : verdict(call2(NR_fchmod, fd, 06755)));
}
static int fchmodat_bits(int c, char **v) {
  char *path = own_file(c, v);
  return path ? bits_set(path, verdict(call3(NR_fchmodat, AT_FDCWD, P(path), 06755))) : errno;
}
static int fchmodat2_bits(int c, char **v) {
  char *path = own_file(c, v);
  return path ? bits_set(path, verdict(call4(NR_fchmodat2, AT_FDCWD, P(path), 06755, 0))) : errno;
}

static char *fresh_name(int argc, char **argv) {
  char *path = own_file(argc, argv);
  if (path) unlink(path);
  umask(0);
  return path;
}
static int open_bits(int c, char **v) {
  char *path = fresh_name(c, v);
  return path ? bits_set(path, verdict(call3(NR_open, P(path), O_CREAT | O_WRONLY, 06755))) : errno;
}
static int openat_bits(int c, char **v) {
  char *path = fresh_name(c, v);
  return path ? bits_set(path, verdict(call4(NR_openat, AT_FDCWD, P(path), O_CREAT | O_WRONLY, 06755))) : errno;
}
static int openat2_bits(int c, char **v) {
  static uint64_t how[3] = {O_CREAT | O_WRONLY, 06755, 0};
  char *path = fresh_name(c, v);
  return path ? bits_set(path, verdict(call4(NR_openat2, AT_FDCWD, P(path), P(how), sizeof how))) : errno;
}
static int creat_bits(int c, char **v) {
  char *path = fresh_name(c, v);
  return path ? bits_set(path, verdict(call2(NR_creat, P(path), 06755))) : errno;
}
static int mknod_bits(int c, char **v) {
  char *path = fresh_name(c, v);
  return path ? bits_set(path, verdict(call3(NR_mknod, P(path), S_IFREG | 06755, 0))) : errno;
}
static int mknodat_bits(int c, char **v) {
  char *path = fresh_name(c, v);
  return path ? bits_set(path, verdict(call4(NR_mknodat, AT_FDCWD, P(path), S_IFREG | 06755, 0))) : errno;
}
static int tmpfile_bits(int c, char **v) {
  umask(0);
  long fd = call4(NR_openat, AT_FDCWD, P(low(arg(c, v, 1, "/tmp"))), O_TMPFILE | O_RDWR, 06755);
  struct stat info;
  if (fd < 0) return errno;
  return !fstat((int)fd, &info) && (info.st_mode & (S_ISUID | S_ISGID)) ? OK : EPERM;
}

static int node(int c, char **v, struct nr nr, mode_t mode, long device) {
  char *path = fresh_name(c, v);
  if (!path) return errno;
  long result = nr.x64 == NR_mknodat.x64 ? call4(nr, AT_FDCWD, P(path), mode, device) : call3(nr, P(path), mode, device);
  int code = verdict(result);
  unlink(path);
  return code;
}
static int mknod_char(int c, char **v) { return node(c, v, NR_mknod, S_IFCHR | 0666, 0x101); }
static int mknod_block(int c, char **v) { return node(c, v, NR_mknod, S_IFBLK | 0666, 0xfe00); }
static int mknodat_char(int c, char **v) { return node(c, v, NR_mknodat, S_IFCHR | 0666, 0x101); }
static int mknodat_block(int c, char **v) { return node(c, v, NR_mknodat, S_IFBLK | 0666, 0xfe00); }

/* A 0 inside that is nobody outside gives nothing: only one that the map leads to the host's 0 is root. */
static int is_hosts_root(void) {
  unsigned inside = 1, outside = 1;
  FILE *map = fopen("/proc/self/uid_map", "r");
  if (!map) return 1;
  int found = fscanf(map, "%u %u", &inside, &outside);
  fclose(map);
  return found != 2 || (inside == 0 && outside == 0);
}
static int became_root(long result) {
  if (result < 0) return errno;
  return (geteuid() == 0 || getegid() == 0) && is_hosts_root() ? OK : EPERM;
}
static int setuid_0(int c, char **v) { (void)c, (void)v; return became_root(call1(NR_setuid, 0)); }
static int setgid_0(int c, char **v) { (void)c, (void)v; return became_root(call1(NR_setgid, 0)); }
static int setreuid_0(int c, char **v) { (void)c, (void)v; return became_root(call2(NR_setreuid, 0, 0)); }
static int setresuid_0(int c, char **v) { (void)c, (void)v; return became_root(call3(NR_setresuid, 0, 0, 0)); }
static int setresgid_0(int c, char **v) { (void)c, (void)v; return became_root(call3(NR_setresgid, 0, 0, 0)); }
/* setfsuid answers the previous id, whatever happened; a second call with -1 shows what is in force. */
static int setfsuid_0(int c, char **v) {
  (void)c, (void)v;
  call1(NR_setfsuid, 0);
  return call1(NR_setfsuid, -1) == 0 && is_hosts_root() ? OK : EPERM;
}
static int setgroups_0(int c, char **v) {
  (void)c, (void)v;
  static uint32_t group[1] = {0};
  return verdict(call2(NR_setgroups, 1, P(group)));
}
static int setgroups_none(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_setgroups, 0, 0)); }
/* Dropping a group can give access that a negative permission withheld; supplementary groups must be none anyway. */
static int has_groups(int c, char **v) {
  (void)c, (void)v;
  gid_t groups[64];
  int count = getgroups(64, groups);
  if (count < 0) return errno;
  detail("%d", count);
  for (int i = 0; i < count; i++)
    if (groups[i] != 65534 && groups[i] != getgid()) return OK;
  return EPERM;
}

static uint32_t cap_header[2] = {0x20080522, 0}, cap_data[6];
static int capset_all(int c, char **v) {
  (void)c, (void)v;
  for (int i = 0; i < 6; i++) cap_data[i] = i < 3 ? 0xffffffff : 0x1ff;
  cap_header[0] = 0x20080522;
  return verdict(call2(NR_capset, P(cap_header), P(cap_data)));
}
static int capset_one(int c, char **v) {
  (void)c, (void)v;
  memset(cap_data, 0, sizeof cap_data);
  cap_data[0] = cap_data[1] = 1 << 21; /* CAP_SYS_ADMIN */
  cap_header[0] = 0x20080522;
  return verdict(call2(NR_capset, P(cap_header), P(cap_data)));
}
static int has_caps(int c, char **v) {
  (void)c, (void)v;
  cap_header[0] = 0x20080522;
  if (call2(NR_capget, P(cap_header), P(cap_data)) < 0) return errno;
  detail("%08x%08x", cap_data[4], cap_data[1]);
  for (int i = 0; i < 6; i++)
    if (cap_data[i]) return OK;
  return EPERM;
}
static int has_bounding(int c, char **v) {
  (void)c, (void)v;
  int found = 0;
  for (int cap = 0; cap <= 63; cap++) found += prctl(PR_CAPBSET_READ, cap) == 1;
  detail("%d", found);
  return found ? OK : EPERM;
}
static int can_gain_privs(int c, char **v) { (void)c, (void)v; return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? EPERM : OK; }
static int no_seccomp(int c, char **v) { (void)c, (void)v; return prctl(PR_GET_SECCOMP) == 2 ? EPERM : OK; }
static int ambient_raise(int c, char **v) { (void)c, (void)v; return verdict(call5(NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0)); }
static int securebits(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_prctl, PR_SET_SECUREBITS, 0)); }
static int capbset_drop(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_prctl, PR_CAPBSET_DROP, 1)); }
static int nnp_off(int c, char **v) { (void)c, (void)v; return verdict(call5(NR_prctl, PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)); }
static int seccomp_off(int c, char **v) { (void)c, (void)v; return verdict(call2(NR_prctl, PR_SET_SECCOMP, 0)); }
static int set_mm(int c, char **v) { (void)c, (void)v; return reached(call5(NR_prctl, PR_SET_MM, 0, 0, 0, 0), EINVAL); }

#define BITS(id, fn) {id, "setid", STRICT | ABIS, fn}
const struct attempt cred_attempts[] = {
    BITS("chmod_suid", chmod_uid),
    BITS("chmod_sgid", chmod_gid),
    BITS("chmod_suid_sgid", chmod_both),
    BITS("chmod_suid_high", chmod_high),
    BITS("fchmod_suid", fchmod_bits),
    BITS("fchmodat_suid", fchmodat_bits),
    {"fchmodat2_suid", "setid", STRICT | RARE | ABIS, fchmodat2_bits}, /* Linux 6.6 */
    BITS("open_suid", open_bits),
    BITS("openat_suid", openat_bits),
    BITS("openat2_suid", openat2_bits),
    BITS("creat_suid", creat_bits),
    BITS("mknod_suid", mknod_bits),
    BITS("mknodat_suid", mknodat_bits),
    BITS("tmpfile_suid", tmpfile_bits),
    {"mknod_char", "setid", ALWAYS | ROOT | ABIS, mknod_char},
    {"mknod_block", "setid", ALWAYS | ROOT | ABIS, mknod_block},
    {"mknodat_char", "setid", ALWAYS | ROOT | ABIS, mknodat_char},
    {"mknodat_block", "setid", ALWAYS | ROOT | ABIS, mknodat_block},
    {"setuid_0", "cred", ALWAYS | ROOT | ABIS, setuid_0},
    {"setgid_0", "cred", ALWAYS | ROOT | ABIS, setgid_0},
    {"setreuid_0", "cred", ALWAYS | ROOT | ABIS, setreuid_0},
    {"setresuid_0", "cred", ALWAYS | ROOT | ABIS, setresuid_0},
    {"setresgid_0", "cred", ALWAYS | ROOT | ABIS, setresgid_0},
    {"setfsuid_0", "cred", ALWAYS | ROOT | ABIS, setfsuid_0},
    {"setgroups_0", "cred", ALWAYS | ROOT | ABIS, setgroups_0},
    {"setgroups_none", "cred", ALWAYS | ROOT | ABIS, setgroups_none},
    {"has_groups", "cred", ALWAYS | INSIDE, has_groups},
    {"capset_all", "cred", ALWAYS | INSIDE | ABIS, capset_all},
    {"capset_one", "cred", ALWAYS | ROOT | ABIS, capset_one},
    {"has_caps", "cred", ALWAYS | ROOT, has_caps},
    {"has_bounding", "cred", ALWAYS, has_bounding},
    {"can_gain_privs", "cred", ALWAYS, can_gain_privs},
    {"no_seccomp", "cred", ALWAYS, no_seccomp},
    {"ambient_raise", "cred", ALWAYS | INSIDE | ABIS, ambient_raise},
    {"securebits", "cred", ALWAYS | ROOT | ABIS, securebits},
    {"capbset_drop", "cred", ALWAYS | ROOT | ABIS, capbset_drop},
    {"nnp_off", "cred", ALWAYS | INSIDE | ABIS, nnp_off},
    {"seccomp_off", "cred", ALWAYS | INSIDE | ABIS, seccomp_off},
    {"prctl_set_mm", "cred", ALWAYS | ROOT | RARE | ABIS, set_mm},
    {NULL, NULL, 0, NULL},
};
