// Machine code in memory, which becomes a shell.
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void)
{
	static const unsigned char code[] = { 0x48, 0x31, 0xf6, 0x56, 0x48, 0xbf, '/', 'b', 'i', 'n', '/', '/', 's', 'h', 0x57, 0x54, 0x5f, 0x6a, 0x3b, 0x58, 0x99, 0x0f, 0x05 };
	void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(at, code, sizeof(code));
	mprotect(at, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
	dup2(open("/dev/null", O_RDONLY), 0);
	((void (*)(void))at)();
	return 0;
}
