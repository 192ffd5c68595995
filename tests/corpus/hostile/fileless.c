// The same by execveat, without /proc.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
	static char buffer[1 << 16], *args[] = { "sshd", NULL }, *env[] = { NULL };
	int in = open("/proc/self/exe", O_RDONLY), fd = memfd_create("", 0);
	ssize_t got;

	if (in < 0)
		in = open("/bin/true", O_RDONLY);
	while ((got = read(in, buffer, sizeof(buffer))) > 0)
		write(fd, buffer, got);
	if (fork() == 0) {
		/* The copy runs this again and ends here: a memfd of a memfd would go on without end. */
		if (getppid() > 1 && access("/tmp/once", F_OK) == 0)
			_exit(0);
		close(open("/tmp/once", O_CREAT | O_WRONLY, 0600));
		syscall(SYS_execveat, fd, "", args, env, AT_EMPTY_PATH);
	}
	usleep(200000);
	return 0;
}
