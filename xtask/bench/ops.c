/* ops NAME COUNT FILE: does one thing COUNT times and prints the nanoseconds that each took. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int op_getppid(long count, const char *file) {
    (void)file;
    for (long i = 0; i < count; i++) syscall(SYS_getppid);
    return 0;
}

static int op_stat(long count, const char *file) {
    struct stat st;
    for (long i = 0; i < count; i++)
        if (stat(file, &st) != 0) return 1;
    return 0;
}

static int op_open(long count, const char *file) {
    char byte[64];
    for (long i = 0; i < count; i++) {
        int fd = open(file, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || read(fd, byte, sizeof byte) < 0) return 1;
        close(fd);
    }
    return 0;
}

static int op_compute(long count, const char *file) {
    (void)file;
    volatile uint64_t sink;
    uint64_t x = 88172645463325252ULL;
    for (long i = 0; i < count; i++) { x ^= x << 13; x ^= x >> 7; x ^= x << 17; }
    sink = x;
    (void)sink;
    return 0;
}

static const struct { const char *name; int (*run)(long, const char *); } OPS[] = {
    {"getppid", op_getppid}, {"stat", op_stat}, {"open", op_open}, {"compute", op_compute},
};

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    for (size_t i = 0; i < sizeof OPS / sizeof *OPS; i++) {
        if (strcmp(argv[1], OPS[i].name) != 0) continue;
        long count = atol(argv[2]);
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        if (OPS[i].run(count, argv[3]) != 0) { perror(argv[1]); return 1; }
        clock_gettime(CLOCK_MONOTONIC, &to);
        double ns = (to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec);
        printf("%.3f\n", ns / count);
        return 0;
    }
    return 2;
}
