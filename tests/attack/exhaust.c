/* Using up what is shared. Each stops at the bound given as an argument, so that outside a sandbox it hurts nobody, and
 * says how far it came: the bound reached is `ok`. */
#include "attack.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/wait.h>

enum { CHILDREN_MAX = 5000, BLOCK = 1 << 20 };

static long bound(int argc, char **argv, int at, long other) { return at < argc ? atol(argv[at]) : other; }

static int stopped(long reached_count, long wanted, int code) {
  detail("reached=%ld", reached_count);
  return reached_count >= wanted ? OK : code;
}

/* forks N: children that only wait. */
static int fork_bomb(int c, char **v) {
  static pid_t children[CHILDREN_MAX];
  long wanted = bound(c, v, 1, CHILDREN_MAX), count = 0;
  int code = OK;
  if (wanted > CHILDREN_MAX) wanted = CHILDREN_MAX;
  while (count < wanted) {
    pid_t child = fork();
    if (child < 0) {
      code = errno;
      break;
    }
    if (child == 0) {
      pause();
      _exit(0);
    }
    children[count++] = child;
  }
  for (long i = 0; i < count; i++) kill(children[i], SIGKILL);
  for (long i = 0; i < count; i++) waitpid(children[i], NULL, 0);
  return stopped(count, wanted, code);
}
static void *sleeper(void *unused) {
  pause();
  return unused;
}
static int thread_bomb(int c, char **v) {
  long wanted = bound(c, v, 1, CHILDREN_MAX), count = 0;
  int code = OK;
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 1 << 16);
  for (; count < wanted && code == OK; count += code == OK) {
    pthread_t thread;
    code = pthread_create(&thread, &attr, sleeper, NULL);
  }
  return stopped(count, wanted, code);
}
/* memory BYTES: touched, page by page; the kernel may kill us. */
static int memory(int c, char **v) {
  long wanted = bound(c, v, 1, BLOCK);
  for (long used = 0; used < wanted; used += BLOCK) {
    char *block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return stopped(used, wanted, errno);
    for (int i = 0; i < BLOCK; i += 4096) block[i] = 1;
  }
  return stopped(wanted, wanted, OK);
}
/* fill PATH BYTES */
static int fill(int c, char **v) {
  static char block[BLOCK];
  long wanted = bound(c, v, 2, BLOCK), done = 0;
  signal(SIGXFSZ, SIG_IGN);
  memset(block, 'x', sizeof block);
  char *path = arg(c, v, 1, "/tmp/attack-fill");
  int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600), code = OK;
  if (fd < 0) return errno;
  while (done < wanted) {
    ssize_t wrote = write(fd, block, sizeof block);
    if (wrote < 0) {
      code = errno;
      break;
    }
    done += wrote;
  }
  close(fd);
  unlink(path);
  return stopped(done, wanted, code);
}
/* inodes DIR N: empty files cost kernel memory that no size limit counts. */
static int inodes(int c, char **v) {
  long wanted = bound(c, v, 2, 1000), count = 0;
  char path[512];
  int code = OK;
  for (; count < wanted; count++) {
    snprintf(path, sizeof path, "%s/attack-inode-%ld", arg(c, v, 1, "/tmp"), count);
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) {
      code = errno;
      break;
    }
    close(fd);
  }
  for (long i = 0; i < count; i++) {
    snprintf(path, sizeof path, "%s/attack-inode-%ld", arg(c, v, 1, "/tmp"), i);
    unlink(path);
  }
  return stopped(count, wanted, code);
}
static int open_until(const char *path, int flags, long wanted) {
  long count = 0;
  for (; count < wanted; count++)
    if (open(path, flags | O_CLOEXEC) < 0) return stopped(count, wanted, errno);
  return stopped(count, wanted, OK);
}
static int open_files(int c, char **v) { return open_until("/dev/null", O_RDONLY, bound(c, v, 1, 1000)); }
static int ptys(int c, char **v) { return open_until("/dev/ptmx", O_RDWR | O_NOCTTY, bound(c, v, 1, 1000)); }
static int inotifies(int c, char **v) {
  long wanted = bound(c, v, 1, 1000), count = 0;
  for (; count < wanted; count++)
    if (inotify_init1(IN_CLOEXEC) < 0) return stopped(count, wanted, errno);
  return stopped(count, wanted, OK);
}
static int sysv_shm(int c, char **v) {
  long bytes = bound(c, v, 1, BLOCK);
  int id = shmget(IPC_PRIVATE, (size_t)bytes, IPC_CREAT | 0600);
  if (id < 0) return errno;
  char *block = shmat(id, NULL, 0);
  int code = block == (char *)-1 ? errno : OK;
  for (long i = 0; code == OK && i < bytes; i += 4096) block[i] = 1;
  shmctl(id, IPC_RMID, NULL);
  return code;
}
static int limit(int c, char **v) {
  struct rlimit value;
  if (getrlimit(atoi(arg(c, v, 1, "7")), &value)) return errno;
  detail("soft=%lld hard=%lld", (long long)value.rlim_cur, (long long)value.rlim_max);
  return OK;
}
/* raise_limit RESOURCE: one above the hard limit. */
static int raise_limit(int c, char **v) {
  int resource = atoi(arg(c, v, 1, "7"));
  struct rlimit value;
  if (getrlimit(resource, &value)) return errno;
  if (value.rlim_max == RLIM_INFINITY) return EDOM;
  value.rlim_max++;
  return verdict(setrlimit(resource, &value));
}
/* spin SECONDS of CPU time; says how much wall time it took, for limits on CPU. */
static int spin(int c, char **v) {
  struct timespec start, now, used;
  long wanted_ms = bound(c, v, 1, 100);
  clock_gettime(CLOCK_MONOTONIC, &start);
  do
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  while (used.tv_sec * 1000 + used.tv_nsec / 1000000 < wanted_ms);
  clock_gettime(CLOCK_MONOTONIC, &now);
  detail("wall_ms=%ld", (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000);
  return OK;
}

#define E(name, fn) {name, "exhaust", 0, fn}
const struct attempt exhaust_attempts[] = {
    E("forks", fork_bomb),
    E("threads", thread_bomb),
    E("memory", memory),
    E("fill", fill),
    E("inodes", inodes),
    E("open_files", open_files),
    E("ptys", ptys),
    E("inotifies", inotifies),
    E("sysv_shm", sysv_shm),
    E("limit", limit),
    E("raise_limit", raise_limit),
    E("spin", spin),
    {"memory_here", "life", 0, memory},
    {NULL, NULL, 0, NULL},
};
