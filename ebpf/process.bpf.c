// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Family `process`: births, programs, ends. All of its records are essential: no rate limit, a ring of its own. */
#include "path.h"
#include <bpf/bpf_tracing.h>

#define SIGNAL_GROUP_EXIT 0x4
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFIFO 0010000
#define TCP_LISTEN 10

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	u64 id = subject();
	struct buffer *buffer;

	/* A thread is no process. */
	if (!id || child->pid != child->tgid)
		return 0;
	buffer = begin(KIND_FORK, id, 0);
	if (!buffer)
		return 0;
	buffer->record.body.fork.child = child->tgid;
	send(buffer);
	return 0;
}

static __always_inline void add_args(struct buffer *buffer, u32 index, struct mm_struct *mm)
{
	unsigned long start = BPF_CORE_READ(mm, arg_start);
	unsigned long bytes = BPF_CORE_READ(mm, arg_end) - start;
	char *text = text_room(buffer);
	u8 how = TEXT_RAW;

	if (!text)
		return;
	if (bytes > TEXT_BYTES_MAX) {
		bytes = TEXT_BYTES_MAX;
		how |= TEXT_CUT;
	}
	if (bpf_probe_read_user(text, bytes, (void *)start) != 0) {
		bytes = 0;
		how |= TEXT_CUT;
	}
	text_done(buffer, index, bytes, how);
}

/* What one of the first descriptors stands for; a table has room for many more. */
static __always_inline struct file *stream(struct task_struct *task, u32 number)
{
	struct file **slots = BPF_CORE_READ(task, files, fdt, fd), *file = NULL;

	bpf_probe_read_kernel(&file, sizeof(file), slots + number);
	return file;
}

/* Inode of a pipe, 0 of anything else. */
static __always_inline u64 pipe_of(struct file *file)
{
	struct inode *inode = file ? BPF_CORE_READ(file, f_inode) : NULL;

	return inode && (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFIFO ? BPF_CORE_READ(inode, i_ino) : 0;
}

static __always_inline void look_at_streams(struct task_struct *task, struct exec_body *body)
{
	struct file *file = stream(task, 0);
	struct inode *inode;
	struct socket *socket;

	body->stdin_pipe = pipe_of(file);
	body->stdout_pipe = pipe_of(stream(task, 1));
	if (!file)
		return;
	inode = BPF_CORE_READ(file, f_inode);
	body->stdin_mode = BPF_CORE_READ(inode, i_mode);
	body->stdin_device = BPF_CORE_READ(inode, i_rdev);
	if ((body->stdin_mode & S_IFMT) != S_IFSOCK)
		return;
	socket = BPF_CORE_READ(file, private_data);
	body->stdin_family = BPF_CORE_READ(socket, sk, __sk_common.skc_family);
	body->stdin_listens = BPF_CORE_READ(socket, sk, __sk_common.skc_state) == TCP_LISTEN;
}

/* Digits of a descriptor. */
#define DIGITS_MAX 10

/* The descriptor in the name that the kernel gives to what is executed by one, /dev/fd/NUMBER; -1 for every other name. */
static __always_inline s64 descriptor_of(const char *text)
{
	const char prefix[] = "/dev/fd/";
	s64 number = 0;
	u32 at;

	for (at = 0; at < sizeof(prefix) - 1; at++)
		if (text[at] != prefix[at])
			return -1;
	for (at = 0; at < DIGITS_MAX; at++) {
		char digit = text[sizeof(prefix) - 1 + at];

		if (!digit)
			return at ? number : -1;
		if (digit < '0' || digit > '9')
			return -1;
		number = number * 10 + (digit - '0');
	}
	return -1;
}

/* The name that execve was called with: of a script that file, where the program is its interpreter by now. */
static __always_inline void add_asked(struct buffer *buffer, u32 index, struct task_struct *task, struct linux_binprm *bprm)
{
	char *text = text_room(buffer);
	s64 descriptor;
	long bytes;
	char first;

	if (!text)
		return;
	bytes = bpf_probe_read_kernel_str(text, TEXT_BYTES_MAX, bprm->filename);
	if (bytes <= 0)
		return;
	descriptor = descriptor_of(text);
	if (descriptor >= 0) {
		add_file(buffer, index, descriptor);
		return;
	}
	first = text[0];
	text_done(buffer, index, bytes, bytes == TEXT_BYTES_MAX ? TEXT_RAW | TEXT_CUT : TEXT_RAW);
	if (first != '/')
		add_path(buffer, index + 1, BPF_CORE_READ(task, fs, pwd.mnt), BPF_CORE_READ(task, fs, pwd.dentry));
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	u64 id = subject();
	struct buffer *buffer;

	if (!id)
		return 0;
	buffer = begin(KIND_EXEC, id, 0);
	if (!buffer)
		return 0;
	buffer->record.body.exec.fileless = bprm->file->f_inode->i_nlink == 0;
	look_at_streams(task, &buffer->record.body.exec);
	add_path(buffer, 0, BPF_CORE_READ(bprm, file, f_path.mnt), BPF_CORE_READ(bprm, file, f_path.dentry));
	add_args(buffer, 1, task->mm);
	add_asked(buffer, 2, task, bprm);
	send(buffer);
	return 0;
}

static __always_inline int process_end(struct task_struct *task)
{
	u64 id = subject();
	struct buffer *buffer;
	u32 status;

	if (!id)
		return 0;
	if (task->signal->flags & SIGNAL_GROUP_EXIT)
		status = task->signal->group_exit_code;
	else
		status = task->group_leader->exit_code;
	buffer = begin(KIND_EXIT, id, 0);
	if (!buffer)
		return 0;
	buffer->record.body.exit.status = status;
	send(buffer);
	return 0;
}

/* Kernels that tell whether it is the last thread (since 6.16). */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task, bool group_dead)
{
	return group_dead ? process_end(task) : 0;
}

/* Kernels that do not: two threads that end at once may both be seen as the last. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit_older, struct task_struct *task)
{
	return task->signal->live.counter == 0 ? process_end(task) : 0;
}

char LICENSE[] SEC("license") = "GPL";
