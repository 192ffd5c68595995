// All capabilities, then user id 0.
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { -1, -1, -1 }, { -1, -1, -1 } };

	syscall(SYS_capset, &header, data);
	setuid(0);
	setresuid(0, 0, 0);
	return 0;
}
