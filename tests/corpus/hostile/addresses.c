// Where the kernel lies.
#include <fcntl.h>
#include <unistd.h>
int main(void)
{
	static const char *names[] = { "/proc/kallsyms", "/proc/iomem", "/sys/kernel/notes", "/proc/modules", "/boot/System.map" };

	for (int n = 0; n < 5; n++)
		close(open(names[n], O_RDONLY));
	return 0;
}
