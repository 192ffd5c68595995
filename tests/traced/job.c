/* What makes a tracer go wrong: threads, signals, stops, odd births and ends. `job WHAT` does one of them and prints what it saw; a tracer
 * that is faithful changes nothing of that. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t alarms, queued;

static const char *answer(long result) { return result < 0 ? strerrorname_np(errno) : "ok"; }

static void on_alarm(int number) { (void)number; alarms++; }

static void on_queued(int number, siginfo_t *info, void *context) {
    (void)number; (void)context;
    if (info->si_code == SI_QUEUE) queued = info->si_value.sival_int;
}

static void handle(int number, void (*handler)(int)) {
    struct sigaction action = { .sa_handler = handler };
    sigaction(number, &action, NULL);
}

static void *opens(void *argument) {
    for (int round = 0; round < 50; round++) {
        int fd = open("/dev/null", O_RDONLY);
        if (fd >= 0) close(fd);
    }
    return argument;
}

static void *sleeps(void *argument) { for (;;) pause(); return argument; }

static void *executes(void *argument) {
    usleep(20000);
    execl("/bin/echo", "echo", "from a thread", (char *)NULL);
    return argument;
}

static void *ends(void *argument) {
    usleep(50000);
    printf("the last thread\n");
    exit(5);
    return argument;
}

static int threads(void) {
    pthread_t list[32];
    for (int i = 0; i < 32; i++) pthread_create(&list[i], NULL, opens, NULL);
    for (int i = 0; i < 32; i++) pthread_join(list[i], NULL);
    printf("32 threads\n");
    return 0;
}

static int exec_from_thread(void) {
    pthread_t thread;
    for (int i = 0; i < 8; i++) pthread_create(&thread, NULL, sleeps, NULL);
    pthread_create(&thread, NULL, executes, NULL);
    pause();
    return 1;
}

static int leader_ends_first(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, ends, NULL);
    pthread_exit(NULL);
}

static int interrupted(void) {
    handle(SIGALRM, on_alarm);
    struct itimerval often = { { 0, 2000 }, { 0, 2000 } };
    setitimer(ITIMER_REAL, &often, NULL);
    int interrupts = 0;
    while (alarms < 50) {
        if (pause() < 0 && errno == EINTR) interrupts++;
        close(open("/dev/null", O_RDONLY));
    }
    printf("alarms %s\n", interrupts > 0 ? "interrupt" : "are lost");
    return 0;
}

static int real_time(void) {
    struct sigaction action = { .sa_sigaction = on_queued, .sa_flags = SA_SIGINFO };
    sigaction(SIGRTMIN + 3, &action, NULL);
    sigqueue(getpid(), SIGRTMIN + 3, (union sigval){ .sival_int = 4711 });
    printf("queued %d\n", queued);
    return 0;
}

static int traps(void) {
    handle(SIGTRAP, on_alarm);
    raise(SIGTRAP);
#ifdef __x86_64__
    __asm__ volatile("int3");
#else
    raise(SIGTRAP);
#endif
    printf("traps %d\n", alarms);
    return 0;
}

static int stops(void) {
    pid_t child = fork();
    if (child == 0) { setpgid(0, 0); for (;;) pause(); }
    setpgid(child, child);
    int status;
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    printf("stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
    kill(child, SIGCONT);
    waitpid(child, &status, WCONTINUED);
    printf("continued %d\n", WIFCONTINUED(status));
    kill(child, SIGTSTP);
    waitpid(child, &status, WUNTRACED);
    printf("stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
    kill(child, SIGCONT);
    kill(child, SIGTERM);
    waitpid(child, &status, 0);
    printf("ended %d by %d\n", WIFSIGNALED(status), WTERMSIG(status));
    return 0;
}

static int vforked(void) {
    pid_t child = vfork();
    if (child == 0) { execl("/bin/true", "true", (char *)NULL); _exit(1); }
    int status = 1;
    waitpid(child, &status, 0);
    return status;
}

static int vforks(void) {
    for (int i = 0; i < 20; i++) if (vforked() != 0) return 1;
    printf("20 programs\n");
    return 0;
}

static int storm(void) {
    for (int i = 0; i < 200; i++) if (fork() == 0) _exit(i & 1);
    int status, all = 0, ones = 0;
    while (wait(&status) > 0) { all++; ones += WEXITSTATUS(status); }
    printf("%d ended, %d with 1\n", all, ones);
    return 0;
}

static int traces(void) {
    printf("traceme %s\n", answer(ptrace(PTRACE_TRACEME, 0, 0, 0)));
    return 0;
}

/* A child that a tracer would not get (CLONE_UNTRACED), by each of the two calls. */
static int untraced(void) {
    long child = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    printf("clone %s\n", answer(child));
    struct { unsigned long long flags, pidfd, tid, parent, signal, stack, size, tls; } args = { .flags = CLONE_UNTRACED, .signal = SIGCHLD };
    child = syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) _exit(0);
    printf("clone3 %s\n", answer(child));
    return 0;
}

static int network(void) {
    int datagrams = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), six = socket(AF_INET6, SOCK_STREAM, 0), own = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(53), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct sockaddr_in6 peer = { .sin6_family = AF_INET6, .sin6_port = htons(443), .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    sendto(datagrams, "hello", 5, 0, (void *)&to, sizeof to);
    struct iovec part = { "hi", 2 };
    struct mmsghdr messages[2] = { { .msg_hdr = { .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &part, .msg_iovlen = 1 } } };
    messages[1] = messages[0];
    to.sin_port = htons(54);
    sendmsg(datagrams, &messages[0].msg_hdr, 0);
    to.sin_port = htons(55);
    sendmmsg(datagrams, messages, 2, 0);
    int connected = socket(AF_INET, SOCK_DGRAM, 0);
    to.sin_port = htons(53);
    connect(connected, (void *)&to, sizeof to);
    static const char question[] = "\0\1\1\0\0\1\0\0\0\0\0\0\3www\7example\3org\0\0\20\0\1";
    send(connected, question, sizeof question - 1, 0);
    struct iovec parts[2] = { { (void *)question, 12 }, { (void *)(question + 12), sizeof question - 13 } };
    struct msghdr message = { .msg_name = &to, .msg_namelen = sizeof to, .msg_iov = parts, .msg_iovlen = 2 };
    sendmsg(datagrams, &message, 0);
    printf("connect %s\n", answer(connect(six, (void *)&peer, sizeof peer)));
    to.sin_port = htons(8080);
    printf("bind %s\n", answer(bind(own, (void *)&to, sizeof to)));
    return 0;
}

static int privilege(void) {
    printf("memfd %s\n", answer(memfd_create("hidden", 0)));
    void *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("mprotect %s\n", answer(mprotect(pages, 4096, PROT_READ | PROT_EXEC)));
    void *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("mmap %s\n", answer(code == MAP_FAILED ? -1 : 0));
    printf("setuid %s\n", answer(setuid(getuid())));
    printf("kill %s\n", answer(kill(1, SIGWINCH)));
    prctl(PR_SET_NAME, "renamed");
    printf("memfd %s\n", answer(memfd_create("again", 0)));
    return 0;
}

/* An open that waits, ended by a signal, and one that is killed in it. */
static int waits(void) {
    handle(SIGALRM, on_alarm);
    mkfifo("/tmp/fifo", 0600);
    ualarm(100000, 0);
    printf("open %s\n", answer(open("/tmp/fifo", O_RDONLY)));
    pid_t child = fork();
    if (child == 0) { open("/tmp/fifo", O_RDONLY); _exit(0); }
    usleep(100000);
    kill(child, SIGKILL);
    int status;
    waitpid(child, &status, 0);
    printf("ended %d by %d\n", WIFSIGNALED(status), WTERMSIG(status));
    return 0;
}

/* Counts until it is told to end. */
static int ticks(void) {
    for (int i = 0; i < 3000; i++) {
        printf("tick %d\n", i);
        fflush(stdout);
        usleep(10000);
    }
    return 0;
}

static int from_memory(char **argv) {
    int source = open("/proc/self/exe", O_RDONLY), target = memfd_create("hidden", 0);
    if (source < 0) source = open(argv[0], O_RDONLY);
    char buffer[65536];
    for (ssize_t count; (count = read(source, buffer, sizeof buffer)) > 0;) if (write(target, buffer, count) != count) return 1;
    char *words[] = { "ghost", "said", NULL }, *none[] = { NULL };
    syscall(SYS_execveat, target, "", words, none, AT_EMPTY_PATH);
    printf("exec %s\n", answer(-1));
    return 0;
}

int main(int argc, char **argv) {
    static const struct { const char *name; int (*run)(void); } jobs[] = {
        { "threads", threads }, { "exec-from-thread", exec_from_thread }, { "leader-ends-first", leader_ends_first },
        { "interrupted", interrupted }, { "real-time", real_time }, { "traps", traps }, { "stops", stops }, { "vforks", vforks },
        { "storm", storm }, { "traces", traces }, { "untraced", untraced }, { "network", network }, { "privilege", privilege },
        { "waits", waits }, { "ticks", ticks },
    };
    const char *what = argc > 1 ? argv[1] : "";
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) if (strcmp(jobs[i].name, what) == 0) return jobs[i].run();
    if (strcmp(what, "from-memory") == 0) return from_memory(argv);
    if (strcmp(what, "said") == 0) { printf("from memory\n"); return 0; }
    return 99;
}
