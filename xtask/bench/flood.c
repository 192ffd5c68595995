/* flood SECONDS WORKERS: each worker asks whether its parent is alive, as fast as it can: one event for each kill(2). Prints how often in all. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    double seconds = atof(argv[1]);
    int workers = atoi(argv[2]);
    if (workers < 1 || workers > 64) return 2;
    unsigned long *done = mmap(NULL, sizeof *done * 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (done == MAP_FAILED) return 1;
    pid_t parent = getpid();
    double begin = now();
    for (int i = 0; i < workers; i++) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child > 0) continue;
        while (now() - begin < seconds)
            for (int n = 0; n < 256; n++, done[i]++) kill(parent, 0);
        _exit(0);
    }
    int status, failed = 0;
    while (wait(&status) > 0) failed |= status;
    unsigned long sum = 0;
    for (int i = 0; i < workers; i++) sum += done[i];
    printf("%lu\n", sum);
    return failed != 0;
}
