// One privileged call after the other.
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
	unshare(CLONE_NEWUSER | CLONE_NEWNS);
	mount("none", "/mnt", "tmpfs", 0, "");
	syscall(SYS_keyctl, 0, -3, 0, 0, 0);
	syscall(SYS_bpf, 5, 0, 0);
	syscall(SYS_open_by_handle_at, -1, 0, 0);
	syscall(SYS_perf_event_open, 0, 0, -1, -1, 0);
	chroot("/tmp");
	return 0;
}
