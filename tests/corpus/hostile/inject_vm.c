// Writes into another process by process_vm_writev.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/uio.h>
#include <unistd.h>
static long word = 1;
int main(void)
{
	long value = 2;
	struct iovec from = { &value, sizeof(value) }, to = { &word, sizeof(word) };
	pid_t victim = fork();

	if (victim == 0)
		for (;;)
			pause();
	process_vm_writev(victim, &from, 1, &to, 1, 0);
	kill(victim, SIGKILL);
	return 0;
}
