// A static program connects, forks twice and becomes a shell.
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(4444), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int server = socket(AF_INET, SOCK_STREAM, 0), one = 1, peer;
	char text[256];

	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	bind(server, (void *)&at, sizeof(at));
	listen(server, 1);
	if (fork() == 0) {
		int s = socket(AF_INET, SOCK_STREAM, 0);

		if (connect(s, (void *)&at, sizeof(at)) != 0)
			return 1;
		if (fork() == 0) {
			for (int fd = 0; fd < 3; fd++)
				dup2(s, fd);
			execl("/bin/sh", "sh", NULL);
		}
		wait(NULL);
		return 0;
	}
	peer = accept(server, NULL, NULL);
	write(peer, "echo got in\nexit\n", 17);
	while (read(peer, text, sizeof(text)) > 0)
		;
	wait(NULL);
	return 0;
}
