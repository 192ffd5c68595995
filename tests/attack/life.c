/* Life and death of the command itself: these run in the process that was executed, not in a child of it. */
#include "attack.h"

#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

enum { NAP_S = 600 };

/* Holds an exclusive lock on `path` as long as the process lives: a witness that the test can see from outside. */
static int hold_lock(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT, 0666);
  if (fd < 0) return errno;
  return verdict(flock(fd, LOCK_EX | LOCK_NB));
}
static void say(const char *text) {
  printf("%s\n", text);
  fflush(stdout);
}
static void nap(void) {
  /* Bounded: should the jail fail to end us, we end. */
  for (int i = 0; i < NAP_S; i++) sleep(1);
}

static int exit_with(int c, char **v) { exit(atoi(arg(c, v, 1, "0"))); }
static int raise_signal(int c, char **v) {
  int number = atoi(arg(c, v, 1, "9"));
  signal(number, SIG_DFL);
  raise(number);
  return OK;
}
static int nap_holding(int c, char **v) {
  int code = hold_lock(arg(c, v, 1, "/tmp/lock"));
  if (code != OK) return code;
  say("holding");
  nap();
  return OK;
}
static int stubborn(int c, char **v) {
  for (int number = 1; number < 65; number++) signal(number, SIG_IGN);
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, NULL);
  return nap_holding(c, v);
}
static int stop_self(int c, char **v) {
  int code = hold_lock(arg(c, v, 1, "/tmp/lock"));
  if (code != OK) return code;
  say("holding");
  raise(SIGSTOP);
  say("continued");
  return OK;
}
/* Two forks and an own session; the grandchild lets go of the standard streams and holds the lock. daemon LOCK [stay] */
static int daemonise(int c, char **v) {
  int ends[2];
  char byte = 0;
  if (pipe(ends)) return errno;
  pid_t child = fork();
  if (child < 0) return errno;
  if (child == 0) {
    setsid();
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    if (fork() != 0) _exit(0);
    int failed = hold_lock(arg(c, v, 1, "/tmp/lock")) != OK;
    int devnull = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(devnull, fd);
    if (write(ends[1], failed ? "n" : "y", 1) != 1) _exit(1);
    close(ends[1]);
    nap();
    _exit(0);
  }
  close(ends[1]);
  waitpid(child, NULL, 0);
  if (read(ends[0], &byte, 1) != 1 || byte != 'y') return EIO;
  say("holding");
  if (c > 2) nap();
  return OK;
}
/* Reports each signal of argv[1..] once it arrives; ends on the last. */
static volatile sig_atomic_t got;
static void note(int number) { got = number; }
static int wait_signal(int c, char **v) {
  sigset_t mask;
  int last = atoi(arg(c, v, c - 1, "15"));
  sigfillset(&mask);
  sigprocmask(SIG_SETMASK, &mask, NULL);
  for (int i = 1; i < c; i++) {
    struct sigaction action = {.sa_handler = note};
    sigaction(atoi(v[i]), &action, NULL);
    sigdelset(&mask, atoi(v[i]));
  }
  say("waiting");
  do {
    sigsuspend(&mask);
    printf("signal %d\n", (int)got);
    fflush(stdout);
  } while (got != last);
  return OK;
}
static int list_fds(int c, char **v) {
  (void)c, (void)v;
  for (int fd = 0; fd < 4096; fd++) {
    if (fcntl(fd, F_GETFD) < 0) continue;
    detail("%d ", fd);
  }
  return OK;
}
static int print_env(int c, char **v) {
  (void)c, (void)v;
  for (char **it = environ; *it; it++) say(*it);
  return OK;
}
static int copy_stdin(int c, char **v) {
  (void)c, (void)v;
  static char buffer[1 << 16];
  ssize_t size;
  while ((size = read(0, buffer, sizeof buffer)) > 0)
    for (ssize_t at = 0; at < size;) {
      ssize_t wrote = write(1, buffer + at, (size_t)(size - at));
      if (wrote < 0) exit(3);
      at += wrote;
    }
  exit(size < 0 ? 4 : 0);
}
static int print_bytes(int c, char **v) {
  static char block[1 << 16];
  long wanted = atol(arg(c, v, 1, "1"));
  memset(block, 'y', sizeof block);
  for (long at = 0; at < wanted;) {
    ssize_t wrote = write(1, block, (size_t)(wanted - at < (long)sizeof block ? wanted - at : (long)sizeof block));
    if (wrote < 0) exit(5);
    at += wrote;
  }
  exit(0);
}
static int terminal(int c, char **v) {
  (void)c, (void)v;
  struct winsize size = {0};
  int has_size = !ioctl(0, TIOCGWINSZ, &size);
  char *name = ttyname(0);
  detail("in=%d out=%d err=%d rows=%d cols=%d size=%d leader=%d session=%d foreground=%d name=%s", isatty(0), isatty(1), isatty(2),
         size.ws_row, size.ws_col, has_size, getsid(0) == getpid(), (int)tcgetsid(0) == (int)getsid(0),
         tcgetpgrp(0) == getpgrp(), name ? name : "-");
  return OK;
}
/* Everything of ours in the pid namespace is killed; the sandbox must come to an orderly end. */
static int kill_all(int c, char **v) {
  int number = atoi(arg(c, v, 1, "9"));
  int code = verdict(kill(-1, number));
  say("alive");
  return code;
}
/* signal_init N: each way of sending N to pid 1, then proof of life after a pause. */
static int signal_init(int c, char **v) {
  int number = atoi(arg(c, v, 1, "9"));
  kill(1, number);
  call3(NR_tgkill, 1, 1, number);
  call2(NR_tkill, 1, number);
  long pidfd = call2(NR_pidfd_open, 1, 0);
  if (pidfd >= 0) call4(NR_pidfd_send_signal, pidfd, number, 0, 0);
  struct timespec pause_time = {.tv_nsec = 50000000};
  nanosleep(&pause_time, NULL);
  say("alive");
  return OK;
}
/* Orphans for init to reap: N children whose parent ends first. */
static int orphans(int c, char **v) {
  int wanted = atoi(arg(c, v, 1, "100"));
  for (int i = 0; i < wanted; i++) {
    pid_t child = fork();
    if (child < 0) return errno;
    if (child == 0) {
      if (fork() == 0) _exit(0);
      _exit(0);
    }
    waitpid(child, NULL, 0);
  }
  /* When init reaps them, as many again still fit under the limit of tasks. */
  return OK;
}

#define L(name, fn) {name, "life", 0, fn}
const struct attempt life_attempts[] = {
    L("exit", exit_with),
    L("raise", raise_signal),
    L("nap", nap_holding),
    L("stubborn", stubborn),
    L("stop_self", stop_self),
    L("daemon", daemonise),
    L("wait_signal", wait_signal),
    L("fds", list_fds),
    L("env", print_env),
    L("cat", copy_stdin),
    L("yes", print_bytes),
    L("terminal", terminal),
    L("kill_all", kill_all),
    L("signal_init", signal_init),
    L("orphans", orphans),
    {NULL, NULL, 0, NULL},
};
