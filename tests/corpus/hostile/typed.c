// Types a command into the terminal.
#include <sys/ioctl.h>
int main(void)
{
	for (const char *c = "id\n"; *c; c++)
		ioctl(0, TIOCSTI, c);
	return 0;
}
