/* Dispatch: finds attempts by name or group, runs each in a process of its own, prints one line for each. */
#include "attack.h"

#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PATIENCE_MS = 20000, DETAIL_MAX = 400, WORDS_MAX = 16, LINE_MAX_BYTES = 4096 };

enum abi abi = NATIVE;
static int outside;
static char detail_text[DETAIL_MAX];

static const struct attempt *const tables[] = {ns_attempts,   proc_attempts, kernel_attempts, admin_attempts,
                                               cred_attempts, net_attempts,  fs_attempts,     exec_attempts,
                                               exhaust_attempts, life_attempts};
enum { TABLES = sizeof tables / sizeof *tables };

void detail(const char *format, ...) {
  va_list list;
  va_start(list, format);
  size_t used = strlen(detail_text);
  vsnprintf(detail_text + used, sizeof detail_text - used, format, list);
  va_end(list);
  /* One line of text, whatever was read. */
  for (char *at = detail_text + used; *at; at++)
    if ((unsigned char)*at < ' ' || (unsigned char)*at > '~') *at = '.';
}

long init_pid(void) { return outside ? getppid() : 1; }

char *low(const char *text) {
  static char arena[1 << 16];
  static size_t used;
  size_t need = strlen(text) + 1;
  if (used + need > sizeof arena) abort();
  char *copy = memcpy(arena + used, text, need);
  used += need;
  return copy;
}

int try_open(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC);
  if (fd < 0) return errno;
  close(fd);
  return OK;
}

#ifdef __x86_64__
/* int 0x80 truncates each argument to 32 bits; the callers keep what they point at below 4 GiB (the program is linked
 * without PIE). Compiled without a red zone, since it pushes. */
static long by_int80(int nr, long a, long b, long c, long d, long e, long f) {
  long result;
  register long sixth __asm__("r12") = f;
  __asm__ volatile("push %%rbp\n mov %%r12, %%rbp\n int $0x80\n pop %%rbp"
                   : "=a"(result)
                   : "a"((long)nr), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), "r"(sixth)
                   : "memory", "r8", "r9", "r10", "r11", "cc");
  return (int)result;
}
#endif

long call6(struct nr nr, long a, long b, long c, long d, long e, long f) {
#ifdef __x86_64__
  if (abi == INT80) {
    if (nr.compat < 0) return errno = ENOSYS, -1;
    long result = by_int80(nr.compat, a, b, c, d, e, f);
    if (result < 0 && result > -4096) return errno = (int)-result, -1;
    return result;
  }
  int number = abi == X32 ? nr.x32 : nr.x64;
  if (number < 0) return errno = ENOSYS, -1;
  return syscall(abi == X32 ? number | 0x40000000 : number, a, b, c, d, e, f);
#else
  if (nr.compat < 0) return errno = ENOSYS, -1;
  return syscall(nr.compat, a, b, c, d, e, f);
#endif
}

static int has_number(void) {
  /* Whether this kernel serves the ABI at all is asked with a call that nothing harmless refuses. */
  return call0(NR_getppid) >= 0;
}

static const struct attempt *find(const char *name) {
  for (int t = 0; t < TABLES; t++)
    for (const struct attempt *it = tables[t]; it->name; it++)
      if (!strcmp(it->name, name)) return it;
  return NULL;
}

static void print_verdict(const char *name, int code, const char *text) {
  const char *word = code == OK ? "ok" : code == NOT_APPLICABLE ? "n/a" : strerrorname_np(code);
  printf("%s %s%s%s\n", name, word ? word : "E?", *text ? " " : "", text);
  fflush(stdout);
}

/* Outside a sandbox, root's attempts go to namespaces of their own, so that the host keeps its mounts and its name. */
static int take_cover(void) {
  if (!outside || geteuid() != 0) return OK;
  if (unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET)) return errno;
  return verdict(mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL));
}

/* Runs one attempt in a child: some change the process for good, some are killed. */
static void run_forked(const struct attempt *it, int argc, char **argv) {
  struct record {
    int code;
    char text[DETAIL_MAX];
  } record = {.code = NOT_APPLICABLE};
  int ends[2], status = 0;
  if (pipe2(ends, O_CLOEXEC)) return print_verdict(it->name, errno, "pipe");
  fflush(stdout);
  pid_t child = fork();
  if (child < 0) return print_verdict(it->name, errno, "fork");
  if (child == 0) {
    record.code = take_cover();
    if (record.code == OK) record.code = it->run(argc, argv);
    memcpy(record.text, detail_text, sizeof record.text);
    _exit(write(ends[1], &record, sizeof record) != sizeof record);
  }
  close(ends[1]);
  struct pollfd poller = {.fd = ends[0], .events = POLLIN};
  int ready = poll(&poller, 1, PATIENCE_MS);
  ssize_t got = ready == 1 ? read(ends[0], &record, sizeof record) : 0;
  close(ends[0]);
  if (got != sizeof record) {
    if (ready == 0) kill(child, SIGKILL);
    waitpid(child, &status, 0);
    if (ready == 0)
      printf("%s HANG\n", it->name);
    else
      printf("%s SIG%d\n", it->name, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    fflush(stdout);
    return;
  }
  waitpid(child, &status, 0);
  print_verdict(it->name, record.code, record.text);
}

static void run_line(char *line) {
  char *words[WORDS_MAX + 1], *rest = NULL;
  int count = 0;
  for (char *word = strtok_r(line, " \n", &rest); word && count < WORDS_MAX; word = strtok_r(NULL, " \n", &rest))
    words[count++] = word;
  words[count] = NULL;
  if (count == 0) return;
  const struct attempt *it = find(words[0]);
  if (!it) {
    printf("%s unknown\n", words[0]);
    fflush(stdout);
    return;
  }
  run_forked(it, count, words);
}

static void serve(void) {
  char line[LINE_MAX_BYTES];
  puts("ready ok");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) run_line(line);
}

static void run_group(const char *group) {
  for (int t = 0; t < TABLES; t++)
    for (const struct attempt *it = tables[t]; it->name; it++) {
      if (strcmp(it->group, group)) continue;
      if (abi != NATIVE && !(it->flags & ABIS)) continue;
      if (outside && (it->flags & INSIDE)) continue;
      char *argv[] = {(char *)it->name, NULL};
      run_forked(it, 1, argv);
    }
}

static void list(void) {
  for (int t = 0; t < TABLES; t++)
    for (const struct attempt *it = tables[t]; it->name; it++)
      printf("%s %s%s%s%s%s%s%s%s\n", it->name, it->group, it->flags & ALWAYS ? " always" : "",
             it->flags & STRICT ? " strict" : "", it->flags & ROOT ? " root" : "", it->flags & INSIDE ? " inside" : "",
             it->flags & ABIS ? " abis" : "", it->flags & RARE ? " rare" : "", it->flags & LONE ? " lone" : "");
}

/* Every number of an ABI with arguments that no call accepts; prints those that are answered otherwise than ENOSYS. Inside only. */
static void sweep(int from, int to) {
  for (int number = from; number < to; number++) {
    struct nr nr = {number, number, number};
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) return;
    if (child == 0) {
      alarm(2);
      long result = call6(nr, -1, -1, -1, -1, -1, -1);
      _exit(result < 0 ? errno & 0xff : 0xfe);
    }
    int status = 0;
    waitpid(child, &status, 0);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0xff;
    if (code == ENOSYS) continue;
    const char *word = WIFEXITED(status) ? strerrorname_np(code) : "SIG";
    printf("sweep %d %s\n", number, code == 0xfe ? "ok" : word ? word : "E?");
  }
  puts("sweep done");
}

static int usage(void) {
  fputs("usage: attack [--abi=native|int80|x32] [--outside] list | serve | has-abi | group G | sweep FROM TO | NAME [ARG...]\n", stderr);
  return 2;
}

int main(int argc, char **argv) {
  int at = 1;
  for (; at < argc && !strncmp(argv[at], "--", 2); at++) {
    if (!strcmp(argv[at], "--outside"))
      outside = 1;
    else if (!strncmp(argv[at], "--abi=", 6)) {
      const char *word = argv[at] + 6;
      abi = !strcmp(word, "int80") ? INT80 : !strcmp(word, "x32") ? X32 : NATIVE;
    } else
      return usage();
  }
  if (at >= argc) return usage();
  const char *verb = argv[at];
  if (!strcmp(verb, "list")) return list(), 0;
  if (!strcmp(verb, "serve")) return serve(), 0;
  if (!strcmp(verb, "has-abi")) return puts(has_number() ? "yes" : "no"), 0;
  if (!strcmp(verb, "group") && at + 1 < argc) return run_group(argv[at + 1]), puts("group done"), 0;
  if (!strcmp(verb, "sweep") && at + 2 < argc) return sweep(atoi(argv[at + 1]), atoi(argv[at + 2])), 0;
  const struct attempt *it = find(verb);
  if (!it) return usage();
  if (!strcmp(it->group, "life")) {
    /* These are about the process itself: its signals, its end, its children. */
    int code = it->run(argc - at, argv + at);
    print_verdict(it->name, code, detail_text);
    return 0;
  }
  run_forked(it, argc - at, argv + at);
  return 0;
}
