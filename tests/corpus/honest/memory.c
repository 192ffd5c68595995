// Allocates, maps, shares and protects memory as allocators and compilers do.
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	int fd = memfd_create("shared", 0);
	char *shared;

	ftruncate(fd, 1 << 20);
	shared = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	for (int n = 0; n < 8; n++)
		if (fork() == 0) {
			shared[n] = n;
			_exit(0);
		}
	while (wait(NULL) > 0)
		;
	for (int n = 0; n < 200; n++) {
		char *code = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(code, 0xc3, 4096);
		mprotect(code, 4096, PROT_READ | PROT_EXEC);
		((void (*)(void))code)();
		munmap(code, 4096);
	}
	puts("done");
	return 0;
}
