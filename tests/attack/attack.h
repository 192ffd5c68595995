/* The attack program: one process that tries, from inside a sandbox, what a sandbox must refuse.
 *
 * Input: the name of an attempt and its arguments, on the command line or line by line on standard input (`serve`).
 * Output: one line an attempt, `NAME VERDICT DETAIL`; VERDICT is `ok` when the attempt got what it wanted, the name of
 * the errno that stopped it, `SIGn` when a signal did, or `n/a` when it means nothing here. The exit code is 0 always:
 * the tests compare, this program only tries. */
#ifndef ATTACK_H
#define ATTACK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* By which door a system call enters the kernel. */
enum abi { NATIVE, INT80, X32 };
extern enum abi abi;

/* Numbers of one system call: on x86-64, on i386 and under the x32 bit; -1 where the ABI has none. */
struct nr {
  int x64, compat, x32;
};
#define CALL(name, x64, compat, x32) static const struct nr NR_##name __attribute__((unused)) = {x64, compat, x32};
#include "nr.h"
#undef CALL

/* One system call through `abi`; -1 and errno as libc does. Pointers must be below 4 GiB: use static storage. */
long call6(struct nr nr, long a, long b, long c, long d, long e, long f);
#define P(x) ((long)(intptr_t)(x))
#define PICK(_0, _1, _2, _3, _4, _5, _6, NAME, ...) NAME
#define call0(n) call6(n, 0, 0, 0, 0, 0, 0)
#define call1(n, a) call6(n, a, 0, 0, 0, 0, 0)
#define call2(n, a, b) call6(n, a, b, 0, 0, 0, 0)
#define call3(n, a, b, c) call6(n, a, b, c, 0, 0, 0)
#define call4(n, a, b, c, d) call6(n, a, b, c, d, 0, 0)
#define call5(n, a, b, c, d, e) call6(n, a, b, c, d, e, 0)

/* What `run` returns beside an errno. */
#define OK 0
#define NOT_APPLICABLE (-1)

/* Where an attempt must fail, and where it may be validated. */
enum {
  ALWAYS = 1,   /* refused in every mode */
  STRICT = 2,   /* refused in isolation and, unless a policy grants it, in hybrid; development lets it through */
  ROOT = 4,     /* outside a sandbox it succeeds for root only */
  INSIDE = 8,   /* never tried outside: it would hurt the host, or means nothing there */
  ABIS = 16,    /* also through int 0x80 and x32 numbers */
  RARE = 32,    /* a kernel may lack it: outside it may fail too */
  LONE = 64,    /* refused in isolation only: hybrid allows its group */
};

struct attempt {
  const char *name, *group;
  int flags;
  int (*run)(int argc, char **argv);
};

/* The tables, one a file. Each ends with a NULL name. */
extern const struct attempt ns_attempts[], proc_attempts[], kernel_attempts[], admin_attempts[], cred_attempts[],
    net_attempts[], fs_attempts[], exec_attempts[], exhaust_attempts[], life_attempts[];

/* More to say about the attempt that is running; printed after the verdict. */
void detail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* 0 when `result` is a success, else errno. */
static inline int verdict(long result) { return result < 0 ? errno : OK; }

/* Like `verdict`, where `reached` is the errno by which the kernel shows that only the harmless argument stopped it. */
static inline int reached(long result, int reached_errno) {
  return result >= 0 || errno == reached_errno ? OK : errno;
}

/* Opens `path`, closes it again. */
int try_open(const char *path, int flags);

/* argv[i], or `other` when there is none. */
static inline char *arg(int argc, char **argv, int i, char *other) { return i < argc ? argv[i] : other; }

/* Pid 1 of the sandbox; outside one a process of our own stands in for it. */
long init_pid(void);

/* Copies `text` to static storage, for pointers that must stay below 4 GiB. */
char *low(const char *text);
#endif
