/* Other processes: tracing, memory, descriptors, scheduling and signals of pid 1 inside and of processes of the host,
 * and what /proc shows of them. Inside, pid 1 is Apex's own init. */
#include "attack.h"

#include <dirent.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

static long target_pid(int argc, char **argv) { return argc > 1 ? atol(argv[1]) : init_pid(); }

static pid_t sleeping_child(void) {
  pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  return child;
}

static int ptrace_traceme(int c, char **v) {
  (void)c, (void)v;
  return verdict(call4(NR_ptrace, PTRACE_TRACEME, 0, 0, 0));
}
static int ptrace_own_child(int c, char **v) {
  (void)c, (void)v;
  pid_t child = sleeping_child();
  if (child < 0) return errno;
  int code = verdict(call4(NR_ptrace, 0x4206 /* PTRACE_SEIZE */, child, 0, 0));
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  return code;
}
static int ptrace_attach(int c, char **v) { return verdict(call4(NR_ptrace, PTRACE_ATTACH, target_pid(c, v), 0, 0)); }
static int ptrace_seize(int c, char **v) { return verdict(call4(NR_ptrace, 0x4206, target_pid(c, v), 0, 0)); }

/* iovec as each ABI lays it out; address 0x400000 is where a static program begins, as does apex-run. */
static int vm_access(struct nr nr, long pid) {
  static char buffer[16];
  static uint64_t local64[2], remote64[2];
  static uint32_t local32[2], remote32[2];
  local64[0] = (uint64_t)P(buffer), local64[1] = sizeof buffer, remote64[0] = 0x400000, remote64[1] = sizeof buffer;
  local32[0] = (uint32_t)P(buffer), local32[1] = sizeof buffer, remote32[0] = 0x400000, remote32[1] = sizeof buffer;
  int narrow = abi != NATIVE || sizeof(long) == 4;
  return reached(call6(nr, pid, narrow ? P(local32) : P(local64), 1, narrow ? P(remote32) : P(remote64), 1, 0), EFAULT);
}
static int vm_readv(int c, char **v) { return vm_access(NR_process_vm_readv, target_pid(c, v)); }
static int vm_writev(int c, char **v) { return vm_access(NR_process_vm_writev, target_pid(c, v)); }

static int pidfd_getfd(int c, char **v) {
  long pidfd = call2(NR_pidfd_open, target_pid(c, v), 0);
  if (pidfd < 0) return errno;
  return reached(call3(NR_pidfd_getfd, pidfd, 0, 0), EBADF);
}
static int kcmp_init(int c, char **v) { return verdict(call5(NR_kcmp, target_pid(c, v), getpid(), 2, 0, 0)); }
static int process_madvise_init(int c, char **v) {
  long pidfd = call2(NR_pidfd_open, target_pid(c, v), 0);
  static uint64_t range[2] = {0x400000, 4096};
  if (pidfd < 0) return errno;
  return verdict(call5(NR_process_madvise, pidfd, P(range), 1, 20 /* MADV_COLD */, 0));
}
static int migrate_pages_init(int c, char **v) {
  static unsigned long nodes[2] = {1, 0};
  return verdict(call4(NR_migrate_pages, target_pid(c, v), 2, P(nodes), P(nodes)));
}
static int move_pages_init(int c, char **v) { return verdict(call6(NR_move_pages, target_pid(c, v), 0, 0, 0, 0, 2)); }
static int affinity_init(int c, char **v) {
  static unsigned long mask[16];
  sched_getaffinity(0, sizeof mask, (cpu_set_t *)mask);
  return verdict(call3(NR_sched_setaffinity, target_pid(c, v), sizeof mask, P(mask)));
}
static int prlimit_init(int c, char **v) {
  static uint64_t limit[2] = {1 << 20, 1 << 20};
  return verdict(call4(NR_prlimit64, target_pid(c, v), 4 /* RLIMIT_CORE */, P(limit), 0));
}
static int renice_init(int c, char **v) { return verdict(call3(NR_setpriority, 0, target_pid(c, v), 0)); }
static int realtime(int c, char **v) {
  (void)c, (void)v;
  static int priority = 10;
  return verdict(call3(NR_sched_setscheduler, 0, SCHED_FIFO, P(&priority)));
}
static int nice_up(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_setpriority, 0, 0, -10)); }
static int io_realtime(int c, char **v) { (void)c, (void)v; return verdict(call3(NR_ioprio_set, 1, 0, (1 << 13) | 4)); }

/* /proc/1/NAME of Apex's init (or of the host's, should /proc be the host's). */
static int open_init(const char *name, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%ld/%s", init_pid(), name);
  return try_open(path, flags);
}
#define INIT_FILE(id, name, flags) \
  static int init_##id(int c, char **v) { (void)c, (void)v; return open_init(name, flags); }
INIT_FILE(mem, "mem", O_RDONLY)
INIT_FILE(mem_write, "mem", O_RDWR)
INIT_FILE(environ, "environ", O_RDONLY)
INIT_FILE(maps, "maps", O_RDONLY)
INIT_FILE(exe, "exe", O_RDONLY)
INIT_FILE(exe_path, "exe", O_PATH)
INIT_FILE(exe_write, "exe", O_WRONLY)
INIT_FILE(root, "root", O_RDONLY | O_DIRECTORY)
INIT_FILE(root_path, "root", O_PATH)
INIT_FILE(cwd, "cwd", O_RDONLY | O_DIRECTORY)
INIT_FILE(fd, "fd", O_RDONLY | O_DIRECTORY)
INIT_FILE(fdinfo, "fdinfo", O_RDONLY | O_DIRECTORY)
INIT_FILE(ns_mnt, "ns/mnt", O_RDONLY)
INIT_FILE(stack, "stack", O_RDONLY)
INIT_FILE(syscall, "syscall", O_RDONLY)
INIT_FILE(map_files, "map_files", O_RDONLY | O_DIRECTORY)

static int init_readlink(const char *name) {
  char path[64], target[512];
  snprintf(path, sizeof path, "/proc/%ld/%s", init_pid(), name);
  ssize_t got = readlink(path, target, sizeof target - 1);
  if (got < 0) return errno;
  target[got] = 0;
  detail("%s", target);
  return OK;
}
static int init_exe_name(int c, char **v) { (void)c, (void)v; return init_readlink("exe"); }
static int init_root_name(int c, char **v) { (void)c, (void)v; return init_readlink("root"); }
static int init_fd_any(int c, char **v) {
  (void)c, (void)v;
  char path[64];
  int code = ENOENT;
  for (int fd = 0; fd < 64; fd++) {
    snprintf(path, sizeof path, "/proc/%ld/fd/%d", init_pid(), fd);
    code = try_open(path, O_RDONLY | O_NONBLOCK);
    if (code == OK) {
      detail("%s", path);
      return OK;
    }
  }
  return code;
}

/* What /proc lists beside ourselves: with a private pid namespace, only pid 1 and our own tree. */
static int proc_strangers(int c, char **v) {
  (void)c, (void)v;
  DIR *dir = opendir("/proc");
  if (!dir) return errno;
  long most = 0;
  for (struct dirent *entry; (entry = readdir(dir));) {
    long pid = atol(entry->d_name);
    if (pid > most) most = pid;
  }
  closedir(dir);
  detail("max-pid=%ld", most);
  return most > 50 ? OK : EPERM;
}

static int signal_pid(int c, char **v) {
  int number = c > 2 ? atoi(v[2]) : 0;
  return verdict(call2(NR_kill, target_pid(c, v), number));
}
static int signal_thread(int c, char **v) {
  return verdict(call3(NR_tgkill, target_pid(c, v), target_pid(c, v), c > 2 ? atoi(v[2]) : 0));
}
static int signal_pidfd(int c, char **v) {
  long pidfd = call2(NR_pidfd_open, target_pid(c, v), 0);
  if (pidfd < 0) return errno;
  return verdict(call4(NR_pidfd_send_signal, pidfd, c > 2 ? atoi(v[2]) : 0, 0, 0));
}
static int signal_queue(int c, char **v) {
  static siginfo_t info;
  info.si_signo = c > 2 ? atoi(v[2]) : 0;
  info.si_code = SI_QUEUE;
  return verdict(call3(NR_rt_sigqueueinfo, target_pid(c, v), info.si_signo, P(&info)));
}
/* Signals the process group that the sandbox was started in, and everything that can be reached. */
static int signal_group(int c, char **v) {
  return verdict(call2(NR_kill, -target_pid(c, v), c > 2 ? atoi(v[2]) : 0));
}
/* F_SETOWN sends a signal by way of a descriptor, from the kernel. */
static int signal_setown(int c, char **v) {
  int ends[2];
  if (pipe(ends)) return errno;
  return verdict(call3(NR_fcntl, ends[0], F_SETOWN, target_pid(c, v)));
}

static int parent_pid(int c, char **v) {
  (void)c, (void)v;
  detail("pid=%d ppid=%d sid=%d pgrp=%d", getpid(), getppid(), getsid(0), getpgrp());
  return OK;
}

#define FILE_ATTEMPT(id) {"proc1_" #id, "proc", ALWAYS | ROOT, init_##id}
const struct attempt proc_attempts[] = {
    {"ptrace_traceme", "proc", LONE | ABIS, ptrace_traceme},
    {"ptrace_child", "proc", LONE | ABIS, ptrace_own_child},
    {"ptrace_attach_1", "proc", ALWAYS | INSIDE | ABIS, ptrace_attach},
    {"ptrace_seize_1", "proc", ALWAYS | INSIDE | ABIS, ptrace_seize},
    {"vm_readv_1", "proc", ALWAYS | ROOT | ABIS, vm_readv},
    {"vm_writev_1", "proc", ALWAYS | INSIDE | ABIS, vm_writev},
    {"pidfd_getfd_1", "proc", ALWAYS | ROOT | ABIS, pidfd_getfd},
    {"kcmp_1", "proc", ALWAYS | ROOT | ABIS, kcmp_init},
    {"process_madvise_1", "proc", ALWAYS | INSIDE | ABIS, process_madvise_init},
    {"migrate_pages_1", "proc", ALWAYS | ROOT | RARE | ABIS, migrate_pages_init},
    {"move_pages_1", "proc", ALWAYS | ROOT | RARE | ABIS, move_pages_init},
    {"affinity_1", "proc", INSIDE | ABIS, affinity_init},
    {"prlimit_1", "proc", INSIDE | ABIS, prlimit_init},
    {"renice_1", "proc", INSIDE | ABIS, renice_init},
    {"realtime", "proc", ALWAYS | ROOT | RARE | ABIS, realtime},
    {"nice_up", "proc", ALWAYS | ROOT | ABIS, nice_up},
    {"io_realtime", "proc", ALWAYS | ROOT | ABIS, io_realtime},
    FILE_ATTEMPT(mem),
    FILE_ATTEMPT(mem_write),
    FILE_ATTEMPT(environ),
    FILE_ATTEMPT(maps),
    FILE_ATTEMPT(exe),
    FILE_ATTEMPT(exe_path),
    {"proc1_exe_write", "proc", ALWAYS | INSIDE, init_exe_write},
    FILE_ATTEMPT(root),
    FILE_ATTEMPT(root_path),
    FILE_ATTEMPT(cwd),
    FILE_ATTEMPT(fd),
    FILE_ATTEMPT(fdinfo),
    FILE_ATTEMPT(ns_mnt),
    FILE_ATTEMPT(stack),
    FILE_ATTEMPT(syscall),
    FILE_ATTEMPT(map_files),
    FILE_ATTEMPT(exe_name),
    FILE_ATTEMPT(root_name),
    FILE_ATTEMPT(fd_any),
    {"proc_strangers", "proc", ALWAYS | RARE, proc_strangers},
    /* Below: with arguments, and judged by what becomes of the target. */
    {"kill", "signal", ABIS, signal_pid},
    {"tgkill", "signal", ABIS, signal_thread},
    {"pidfd_send_signal", "signal", ABIS, signal_pidfd},
    {"sigqueue", "signal", ABIS, signal_queue},
    {"kill_group", "signal", ABIS, signal_group},
    {"setown", "signal", ABIS, signal_setown},
    {"whoami", "signal", 0, parent_pid},
    {NULL, NULL, 0, NULL},
};
