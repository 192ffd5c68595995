// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Family `lsm`: files and privileges as hooks of the security module `bpf`, without a hook on every system call, and the dial: what the sandbox's
 * entry denies is refused with EPERM by each of these hooks. A refusal is always recorded; the rest only while the families of system
 * calls are not there, or it would be told twice.
 *
 * A hook gets what the modules before it answered as its last argument, and gives it on when it has nothing against it.
 */
#include "path.h"
#include <bpf/bpf_tracing.h>

#define EPERM 1
#define AF_UNIX 1
/* sizeof(struct sockaddr_un) */
#define ADDRESS_BYTES_MAX 110
#define FMODE_WRITE 0x2
#define PROT_EXEC 0x4
#define PTRACE_MODE_ATTACH 0x2

enum deny {
	DENY_NETWORK = 1,
	DENY_EXEC = 2,
	DENY_WRITE = 4,
	DENY_PTRACE = 8,
	DENY_PRIVILEGE = 16,
};

/* Counts the sandbox's refusals and says whether this one is to be refused; `buffer` is for the record, NULL without one. */
struct judged {
	struct buffer *buffer;
	int result;
};

static __always_inline struct judged judge(u32 hook, u32 deny)
{
	struct judged judged = {};
	u64 id = subject();
	struct sandbox *sandbox;

	if (!id)
		return judged;
	sandbox = sandbox_of(id);
	if (!sandbox)
		return judged;
	if (sandbox->deny & deny)
		judged.result = -EPERM;
	if ((filter.quiet && !judged.result) || !admit(sandbox, id))
		return judged;
	judged.buffer = begin(KIND_LSM, id, -judged.result);
	if (judged.buffer)
		judged.buffer->record.body.lsm.hook = hook;
	return judged;
}

static __always_inline int one_path(u32 hook, u32 deny, struct vfsmount *mnt, struct dentry *dentry, u64 first, u64 second)
{
	struct judged judged = judge(hook, deny);

	if (judged.buffer) {
		judged.buffer->record.body.lsm.words[0] = first;
		judged.buffer->record.body.lsm.words[1] = second;
		add_path(judged.buffer, 0, mnt, dentry);
		send(judged.buffer);
	}
	return judged.result;
}

static __always_inline int no_path(u32 hook, u32 deny, u64 first, u64 second)
{
	struct judged judged = judge(hook, deny);

	if (judged.buffer) {
		judged.buffer->record.body.lsm.words[0] = first;
		judged.buffer->record.body.lsm.words[1] = second;
		send(judged.buffer);
	}
	return judged.result;
}

/* The path walk takes no typed pointers. What is read by probe_read has no type, and so has an argument of the hook when it is read like this. */
#define MNT(path) BPF_CORE_READ(path, mnt)
#define DENTRY(path) BPF_CORE_READ(path, dentry)
#define PLAIN(number) \
	({ \
		void *plain = NULL; \
		bpf_probe_read_kernel(&plain, sizeof(plain), &ctx[number]); \
		plain; \
	})

SEC("lsm/file_open")
int BPF_PROG(on_open, struct file *file, int result)
{
	u32 deny = file->f_mode & FMODE_WRITE ? DENY_WRITE : 0;

	if (result)
		return result;
	return one_path(LSM_OPEN, deny, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry), file->f_flags, 0);
}

SEC("lsm/bprm_check_security")
int BPF_PROG(on_exec_check, struct linux_binprm *bprm, int result)
{
	u64 id = subject();
	struct sandbox *sandbox = id ? sandbox_of(id) : NULL;

	/* Programs that are let through are the process family's. */
	if (result || !sandbox || !(sandbox->deny & DENY_EXEC))
		return result;
	return one_path(LSM_EXEC, DENY_EXEC, BPF_CORE_READ(bprm, file, f_path.mnt), BPF_CORE_READ(bprm, file, f_path.dentry), 0, 0);
}

SEC("lsm/path_mkdir")
int BPF_PROG(on_mkdir, struct path *dir, struct dentry *dentry, u16 mode, int result)
{
	return result ?: one_path(LSM_MKDIR, DENY_WRITE, MNT(dir), PLAIN(1), mode, 0);
}

SEC("lsm/path_unlink")
int BPF_PROG(on_unlink, struct path *dir, struct dentry *dentry, int result)
{
	return result ?: one_path(LSM_UNLINK, DENY_WRITE, MNT(dir), PLAIN(1), 0, 0);
}

SEC("lsm/path_rmdir")
int BPF_PROG(on_rmdir, struct path *dir, struct dentry *dentry, int result)
{
	return result ?: one_path(LSM_UNLINK, DENY_WRITE, MNT(dir), PLAIN(1), 0, 0);
}

SEC("lsm/path_truncate")
int BPF_PROG(on_truncate, struct path *path, int result)
{
	return result ?: one_path(LSM_TRUNCATE, DENY_WRITE, MNT(path), DENTRY(path), 0, 0);
}

SEC("lsm/path_chmod")
int BPF_PROG(on_chmod, struct path *path, u16 mode, int result)
{
	return result ?: one_path(LSM_CHMOD, DENY_WRITE, MNT(path), DENTRY(path), mode, 0);
}

SEC("lsm/path_chown")
int BPF_PROG(on_chown, struct path *path, u32 owner, u32 group, int result)
{
	return result ?: one_path(LSM_CHOWN, DENY_WRITE, MNT(path), DENTRY(path), owner, group);
}

SEC("lsm/path_symlink")
int BPF_PROG(on_symlink, struct path *dir, struct dentry *dentry, const char *target, int result)
{
	struct judged judged;
	char *text;
	long bytes;

	if (result)
		return result;
	judged = judge(LSM_SYMLINK, DENY_WRITE);
	if (!judged.buffer)
		return judged.result;
	add_path(judged.buffer, 0, MNT(dir), PLAIN(1));
	text = text_room(judged.buffer);
	if (text) {
		bytes = bpf_probe_read_kernel_str(text, TEXT_BYTES_MAX, target);
		text_done(judged.buffer, 1, bytes < 0 ? 0 : bytes, TEXT_RAW);
	}
	send(judged.buffer);
	return judged.result;
}

static __always_inline int two_paths(u32 hook, struct vfsmount *mnt, struct dentry *from, struct vfsmount *to_mnt, struct dentry *to)
{
	struct judged judged = judge(hook, DENY_WRITE);

	if (judged.buffer) {
		add_path(judged.buffer, 0, mnt, from);
		add_path(judged.buffer, 1, to_mnt, to);
		send(judged.buffer);
	}
	return judged.result;
}

SEC("lsm/path_rename")
int BPF_PROG(on_rename, struct path *old, struct dentry *from, struct path *new, struct dentry *to, u32 flags, int result)
{
	return result ?: two_paths(LSM_RENAME, MNT(old), PLAIN(1), MNT(new), PLAIN(3));
}

SEC("lsm/path_link")
int BPF_PROG(on_link, struct dentry *from, struct path *dir, struct dentry *to, int result)
{
	/* A link stays in its file system, so the new name's mount serves for the old one too. */
	return result ?: two_paths(LSM_LINK, MNT(dir), PLAIN(0), MNT(dir), PLAIN(2));
}

static __always_inline int local_socket(u32 hook, struct sockaddr *address, int length)
{
	u16 family = BPF_CORE_READ(address, sa_family);
	struct judged judged;
	char *text;

	/* The network family records the internet ones, and refuses them where this is not there. */
	if (family != AF_UNIX)
		return 0;
	judged = judge(hook, DENY_NETWORK);
	if (!judged.buffer)
		return judged.result;
	text = text_room(judged.buffer);
	/* The kernel's copy has room for every kind of address, so more than its length may be read. */
	if (text && length > 0 && bpf_probe_read_kernel(text, ADDRESS_BYTES_MAX, address) == 0)
		text_done(judged.buffer, 0, length < ADDRESS_BYTES_MAX ? length : ADDRESS_BYTES_MAX, TEXT_RAW);
	send(judged.buffer);
	return judged.result;
}

SEC("lsm/socket_connect")
int BPF_PROG(on_local_connect, struct socket *socket, struct sockaddr *address, int length, int result)
{
	return result ?: local_socket(LSM_CONNECT, address, length);
}

SEC("lsm/socket_bind")
int BPF_PROG(on_local_bind, struct socket *socket, struct sockaddr *address, int length, int result)
{
	return result ?: local_socket(LSM_BIND, address, length);
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(on_ptrace, struct task_struct *child, u32 mode, int result)
{
	/* Looking into /proc asks here as well. */
	if (result || !(mode & PTRACE_MODE_ATTACH))
		return result;
	return no_path(LSM_PTRACE, DENY_PTRACE, child->tgid, 0);
}

SEC("lsm/task_fix_setuid")
int BPF_PROG(on_setuid, struct cred *new, struct cred *old, int flags, int result)
{
	return result ?: no_path(LSM_SETUID, DENY_PRIVILEGE, new->uid.val, 0);
}

SEC("lsm/bpf")
int BPF_PROG(on_bpf, int command)
{
	return no_path(LSM_BPF, DENY_PRIVILEGE, command, 0);
}

SEC("lsm/sb_mount")
int BPF_PROG(on_mount, const char *device, struct path *path, const char *type, unsigned long flags, void *data, int result)
{
	return result ?: one_path(LSM_MOUNT, DENY_PRIVILEGE, MNT(path), DENTRY(path), flags, 0);
}

SEC("lsm/userns_create")
int BPF_PROG(on_userns, struct cred *cred, int result)
{
	return result ?: no_path(LSM_USERNS, DENY_PRIVILEGE, 0, 0);
}

SEC("lsm/file_mprotect")
int BPF_PROG(on_mprotect, struct vm_area_struct *area, unsigned long wanted, unsigned long given, int result)
{
	if (result || !(given & PROT_EXEC))
		return result;
	return no_path(LSM_MPROTECT, 0, area->vm_start, area->vm_end - area->vm_start);
}

char LICENSE[] SEC("license") = "GPL";
