/* Executing what may not be executed. `true` as an argument makes a copy of this program print `executed` and end. */
#include "attack.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

static int copy_to(int from, int to) {
  static char buffer[1 << 16];
  ssize_t got;
  while ((got = read(from, buffer, sizeof buffer)) > 0)
    if (write(to, buffer, (size_t)got) != got) return errno ? errno : EIO;
  return got < 0 ? errno : OK;
}
/* Puts `source` at `target`, mode 0755. */
static int install(const char *source, const char *target) {
  int from = open(source, O_RDONLY | O_CLOEXEC);
  if (from < 0) return errno;
  unlink(target);
  int to = open(target, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0755);
  int code = to < 0 ? errno : copy_to(from, to);
  if (to >= 0) close(to);
  close(from);
  return code;
}
/* A child that executes; exit code 42 from `executed` proves that it ran. */
static int child_runs(int fd, char *path, char *const argv[]) {
  char *envp[] = {NULL};
  int ends[2], code = OK, status = 0;
  if (pipe2(ends, O_CLOEXEC)) return errno;
  pid_t child = fork();
  if (child < 0) return errno;
  if (child == 0) {
    int devnull = open("/dev/null", O_WRONLY);
    dup2(devnull, 1);
    dup2(devnull, 2);
    if (fd >= 0)
      syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH);
    else
      execve(path, argv, envp);
    code = errno;
    _exit(write(ends[1], &code, sizeof code) != sizeof code);
  }
  close(ends[1]);
  if (read(ends[0], &code, sizeof code) == sizeof code) {
    waitpid(child, NULL, 0);
    return code;
  }
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 42) return OK;
  detail("status=%d", status);
  return ENOEXEC;
}

#define SELF "/proc/self/exe"
static char *const runs[] = {"attack", "executed", NULL};

static int exec_copy(int c, char **v) {
  char *target = arg(c, v, 1, "/tmp/attack-copy");
  int code = install(SELF, target);
  return code != OK ? code : child_runs(-1, target, runs);
}
static int exec_path(int c, char **v) {
  char *argv[] = {arg(c, v, 1, "/none"), arg(c, v, 2, NULL), NULL};
  return child_runs(-1, argv[0], argv);
}
static int exec_fd(int c, char **v) {
  char *target = arg(c, v, 1, "/tmp/attack-copy");
  int code = install(SELF, target);
  if (code != OK) return code;
  int fd = open(target, O_RDONLY | O_CLOEXEC);
  return fd < 0 ? errno : child_runs(fd, NULL, runs);
}
static int exec_symlink(int c, char **v) {
  char *target = arg(c, v, 1, "/tmp/attack-copy"), path[512];
  int code = install(SELF, target);
  if (code != OK) return code;
  snprintf(path, sizeof path, "%s-link", target);
  unlink(path);
  if (symlink(target, path)) return errno;
  return child_runs(-1, path, runs);
}
static int map_exec(int c, char **v) {
  char *target = arg(c, v, 1, "/tmp/attack-copy");
  int code = install(SELF, target);
  if (code != OK) return code;
  int fd = open(target, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  void *page = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
  return page == MAP_FAILED ? errno : OK;
}
static int map_then_exec(int c, char **v) {
  char *target = arg(c, v, 1, "/tmp/attack-copy");
  int code = install(SELF, target);
  if (code != OK) return code;
  int fd = open(target, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
  if (page == MAP_FAILED) return errno;
  return verdict(mprotect(page, 4096, PROT_READ | PROT_EXEC));
}
/* The dynamic loader maps a program that execve refuses: LOADER COPY-OF */
static int ld_so(int c, char **v) {
  char *target = arg(c, v, 2, "/tmp/attack-true");
  int code = install(arg(c, v, 3, "/bin/true"), target);
  if (code != OK) return code;
  char *loader = arg(c, v, 1, "/lib64/ld-linux-x86-64.so.2");
  pid_t child = fork();
  if (child < 0) return errno;
  if (child == 0) {
    int devnull = open("/dev/null", O_WRONLY);
    dup2(devnull, 2);
    execl(loader, loader, target, (char *)NULL);
    _exit(100 + (errno == EACCES || errno == EPERM));
  }
  int status = 0;
  waitpid(child, &status, 0);
  detail("status=%d", status);
  return status == 0 ? OK : WIFEXITED(status) && WEXITSTATUS(status) == 100 ? ENOENT : EACCES;
}
static int memfd_exec_with(unsigned flags) {
  int self = open(SELF, O_RDONLY | O_CLOEXEC);
  long fd = call2(NR_memfd_create, P(low("attack")), (long)(flags | 1U /* MFD_CLOEXEC */));
  /* MFD_EXEC came with Linux 6.3; before it every one was executable. */
  if (fd < 0 && errno == EINVAL && flags) return memfd_exec_with(0);
  if (self < 0 || fd < 0) return errno;
  int code = copy_to(self, (int)fd);
  if (code != OK) return code;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%ld", fd);
  int reader = open(path, O_RDONLY | O_CLOEXEC);
  if (reader < 0) return errno;
  close((int)fd);
  return child_runs(reader, NULL, runs);
}
static int memfd_exec(int c, char **v) { (void)c, (void)v; return memfd_exec_with(MFD_EXEC); }
static int memfd_exec_plain(int c, char **v) { (void)c, (void)v; return memfd_exec_with(0); }
static int memfd_map(int c, char **v) {
  (void)c, (void)v;
  long fd = call2(NR_memfd_create, P(low("attack")), 0);
  if (fd < 0) return errno;
  if (ftruncate((int)fd, 4096)) return errno;
  return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, (int)fd, 0) == MAP_FAILED ? errno : OK;
}
static int shm_exec(int c, char **v) { (void)c, (void)v; char *argv[] = {"", "/dev/shm/attack-copy", NULL}; return exec_copy(2, argv); }

static int executed(int c, char **v) {
  (void)c, (void)v;
  exit(42);
}
/* For a set-user-id copy: says who it runs as. */
static int effective_ids(int c, char **v) {
  (void)c, (void)v;
  detail("uid=%d euid=%d gid=%d egid=%d", (int)getuid(), (int)geteuid(), (int)getgid(), (int)getegid());
  return geteuid() != getuid() || getegid() != getgid() ? OK : EPERM;
}

#define X(name, fn) {name, "exec", 0, fn}
const struct attempt exec_attempts[] = {
    X("exec_copy", exec_copy),
    X("exec_fd", exec_fd),
    X("exec_symlink", exec_symlink),
    X("exec_path", exec_path),
    X("map_exec", map_exec),
    X("map_then_exec", map_then_exec),
    X("ld_so", ld_so),
    X("memfd_exec", memfd_exec),
    X("memfd_exec_plain", memfd_exec_plain),
    X("memfd_map_exec", memfd_map),
    X("shm_exec", shm_exec),
    {"executed", "life", 0, executed},
    {"effective_ids", "life", 0, effective_ids},
    {NULL, NULL, 0, NULL},
};
