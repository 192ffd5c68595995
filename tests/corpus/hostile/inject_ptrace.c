// Takes hold of a child that did not ask for it, and writes to its memory.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
static long word = 1;
int main(void)
{
	pid_t victim = fork();

	if (victim == 0)
		for (;;)
			pause();
	if (ptrace(PTRACE_ATTACH, victim, 0, 0) == 0) {
		waitpid(victim, 0, 0);
		ptrace(PTRACE_POKEDATA, victim, &word, 2);
	}
	kill(victim, SIGKILL);
	return 0;
}
