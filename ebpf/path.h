/* The path of a dentry, as the process sees it: from the name up to the root of its process, over mounts.
 *
 * Names are written from the last to the first, each with its NUL; the reader turns them round.
 */
#ifndef APEX_PATH_H
#define APEX_PATH_H

#include "emit.h"

/* Names and mounts on the way at most. */
#define STEPS_MAX 160

struct walk {
	struct dentry *dentry;
	struct mount *mount;
	struct dentry *root;
	struct mount *root_mount;
	char *text;
	u32 bytes;
	u8 how;
};

static __always_inline struct mount *mount_of(struct vfsmount *vfsmount)
{
	return (void *)vfsmount - bpf_core_field_offset(struct mount, mnt);
}

static long walk_step(u32 index, struct walk *walk)
{
	/* Named apart: an access through `walk` would be relocated as one of the kernel's structures. */
	struct dentry *dentry = walk->dentry, *parent;
	struct mount *mount = walk->mount;
	const unsigned char *name;
	u32 at = walk->bytes;
	long got;

	if (dentry == walk->root && mount == walk->root_mount)
		return 1;
	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);

		if (above == mount) {
			walk->how |= TEXT_ASTRAY;
			return 1;
		}
		walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		walk->mount = above;
		return 0;
	}
	if (at > TEXT_BYTES_MAX - NAME_BYTES_MAX) {
		walk->how |= TEXT_CUT;
		return 1;
	}
	name = BPF_CORE_READ(dentry, d_name.name);
	got = bpf_probe_read_kernel_str(walk->text + at, NAME_BYTES_MAX, name);
	if (got < 0) {
		walk->how |= TEXT_ASTRAY;
		return 1;
	}
	walk->bytes = at + got;
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry) {
		walk->how |= TEXT_ASTRAY;
		return 1;
	}
	walk->dentry = parent;
	return 0;
}

/* Adds the path of a dentry in a mount as text `index`. Not static, so that the verifier looks at it once and not at every call; it knows nothing of
 * its arguments there, and the kernel's pointers come as numbers.
 */
__noinline int add_path_of(struct buffer *buffer, u32 index, u64 vfsmount, u64 dentry)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct walk walk = {
		.dentry = (void *)dentry,
		.mount = mount_of((void *)vfsmount),
		.root = BPF_CORE_READ(task, fs, root.dentry),
		.root_mount = mount_of(BPF_CORE_READ(task, fs, root.mnt)),
		.how = TEXT_NAMES,
	};

	if (!buffer)
		return 0;
	walk.text = text_room(buffer);
	if (!walk.text)
		return 0;
	if (bpf_loop(STEPS_MAX, walk_step, &walk, 0) >= STEPS_MAX)
		walk.how |= TEXT_CUT;
	text_done(buffer, index, walk.bytes, walk.how);
	return 0;
}

static __always_inline void add_path(struct buffer *buffer, u32 index, struct vfsmount *mnt, struct dentry *dentry)
{
	add_path_of(buffer, index, (u64)mnt, (u64)dentry);
}

/* The path of an open file. */
static __always_inline void add_file(struct buffer *buffer, u32 index, u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **slots = BPF_CORE_READ(table, fd), *file = NULL;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return;
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	if (!file)
		return;
	add_path(buffer, index, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry));
}

#endif
