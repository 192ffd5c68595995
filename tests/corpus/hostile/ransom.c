// Overwrites documents in place, names kept.
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void)
{
	char path[64], data[256];

	mkdir("/tmp/docs", 0700);
	for (int n = 0; n < 20; n++) {
		snprintf(path, sizeof(path), "/tmp/docs/%d.docx", n);
		int fd = open(path, O_WRONLY | O_CREAT, 0600);
		write(fd, path, sizeof(path));
		close(fd);
	}
	for (int n = 0; n < 20; n++) {
		snprintf(path, sizeof(path), "/tmp/docs/%d.docx", n);
		int fd = open(path, O_RDWR);
		ssize_t got = read(fd, data, sizeof(data));
		for (ssize_t i = 0; i < got; i++)
			data[i] ^= 0x5a;
		pwrite(fd, data, got, 0);
		close(fd);
	}
	return 0;
}
