// Opens what it knows by name, without any other program; most is not there.
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void)
{
	static const char *const files[] = {
		"/home/user/.ssh/id_ed25519", "/home/user/.config/google-chrome/Default/Login Data", "/home/user/.mozilla/firefox/a.default/logins.json",
		"/home/user/.docker/config.json", "/home/user/.gnupg/secring.gpg", "/proc/self/root/etc/shadow",
	};
	for (unsigned i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		close(open(files[i], O_RDONLY));
	return 0;
}
