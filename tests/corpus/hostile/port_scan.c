// Without waiting for an answer, in a mixed order.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void)
{
	for (int n = 0; n < 60; n++) {
		struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(20 + n * 37 % 1000), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		connect(s, (void *)&at, sizeof(at));
		close(s);
	}
	return 0;
}
