/* The program that records one call as its shape says. Families that have calls include this once each, and so have a ring and a rate of their own. */
#ifndef APEX_SHAPED_H
#define APEX_SHAPED_H

#include "call.h"
#include "path.h"

#define AT_FDCWD -100
#define MAX_ERRNO 4095
#define EINVAL 22
#define PROT_EXEC 0x4
#define MAP_ANONYMOUS 0x20

enum operand_kind {
	OPERAND_NONE = 0,
	/* A path; relative to `dir`. */
	OPERAND_PATH = 1,
	/* What a descriptor stands for. */
	OPERAND_FD = 2,
	/* What the returned descriptor stands for; without one as OPERAND_PATH. */
	OPERAND_RESULT = 3,
	/* A text that is no path. */
	OPERAND_TEXT = 4,
	/* Memory: `bytes` at most, or as many as argument `dir` says. */
	OPERAND_BYTES = 5,
	/* The arguments of a program: pointers to strings, up to a null one. */
	OPERAND_ARGV = 6,
	/* As OPERAND_RESULT, and the path beside the file: what was asked for may lead there over links. The first operand alone. */
	OPERAND_ASKED = 7,
};

/* Instead of an argument: the working directory, or no length. */
#define NO_ARG 0xff

struct operand {
	u8 kind;
	/* Numbers of arguments, from 0. */
	u8 arg;
	u8 dir;
	u8 bytes;
};

enum condition {
	CONDITION_NONE = 0,
	/* CONDITION_ARG + n: argument n has one of the bits of `mask`. */
	CONDITION_ARG = 1,
	/* mmap of anonymous memory that may be executed. */
	CONDITION_MMAP = 7,
	/* Argument 0 is neither the caller's process nor its thread, as the caller numbers them. */
	CONDITION_OTHER = 8,
	/* The 64-bit word that argument 0 points to has one of the bits of `mask`. */
	CONDITION_POINTED = 9,
	/* The address that argument 1 points to is of no internet family: those are the cgroup programs' business. */
	CONDITION_LOCAL_ADDRESS = 10,
	/* The family in argument 0 is no internet family. */
	CONDITION_LOCAL_FAMILY = 11,
	/* The call failed. */
	CONDITION_FAILED = 12,
	/* What the first operand names is there, and the name is not empty: that would be a descriptor's own file. To readlink(2) it is there as
	 * well when it is no link.
	 */
	CONDITION_NAMED = 13,
};

#define OPERANDS_MAX 2

struct shape {
	struct operand operands[OPERANDS_MAX];
	u32 condition;
	u32 mask;
};

_Static_assert(sizeof(struct shape) == 16, "layout shared with calls.rs");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CALLS);
	__type(key, u32);
	__type(value, struct shape);
} shapes SEC(".maps");

static __always_inline s32 call_error(const struct call *call)
{
	return call->result < 0 && call->result >= -MAX_ERRNO ? -call->result : 0;
}

static __always_inline void add_directory(struct buffer *buffer, u32 index, s32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (fd == AT_FDCWD)
		add_path(buffer, index, BPF_CORE_READ(task, fs, pwd.mnt), BPF_CORE_READ(task, fs, pwd.dentry));
	else
		add_file(buffer, index, fd);
}

/* A string of the caller; its first byte, or 0. One that cannot be read counts as cut. */
static __always_inline char add_string(struct buffer *buffer, u32 index, u64 pointer)
{
	char *text = text_room(buffer);
	long bytes;
	char first;

	if (!text)
		return 0;
	bytes = bpf_probe_read_user_str(text, TEXT_BYTES_MAX, (void *)pointer);
	if (bytes <= 0) {
		text_done(buffer, index, 0, TEXT_RAW | TEXT_CUT);
		return 0;
	}
	first = text[0];
	text_done(buffer, index, bytes, bytes == TEXT_BYTES_MAX ? TEXT_RAW | TEXT_CUT : TEXT_RAW);
	return first;
}

static __always_inline void add_bytes(struct buffer *buffer, u32 index, u64 pointer, u64 bytes)
{
	char *text = text_room(buffer);

	if (!text)
		return;
	/* It is less anyhow; older verifiers do not see that, and the compiler would take a plain mask away. */
	asm volatile("%0 &= 0xff" : "+r"(bytes));
	if (bpf_probe_read_user(text, bytes, (void *)pointer) != 0)
		text_done(buffer, index, 0, TEXT_RAW | TEXT_CUT);
	else
		text_done(buffer, index, bytes, TEXT_RAW);
}

/* Arguments of one program that are looked at. */
#define ARGV_MAX 32

struct words {
	char *text;
	/* The next pointer, and the bytes of one. */
	u64 at;
	u32 size;
	u32 bytes;
	u8 how;
};

static long word_step(u32 index, struct words *words)
{
	u32 at = words->bytes, narrow = 0;
	u64 pointer = 0;
	long got;

	if (words->size == sizeof(narrow)) {
		bpf_probe_read_user(&narrow, sizeof(narrow), (void *)words->at);
		pointer = narrow;
	} else {
		bpf_probe_read_user(&pointer, sizeof(pointer), (void *)words->at);
	}
	if (!pointer)
		return 1;
	if (at > TEXT_BYTES_MAX - NAME_BYTES_MAX) {
		words->how |= TEXT_CUT;
		return 1;
	}
	got = bpf_probe_read_user_str(words->text + at, NAME_BYTES_MAX, (void *)pointer);
	if (got <= 0 || got == NAME_BYTES_MAX)
		words->how |= TEXT_CUT;
	if (got <= 0)
		return 1;
	words->bytes = at + got;
	words->at += words->size;
	return 0;
}

/* The arguments that a program was to get, each with its NUL. */
static __always_inline void add_argv(struct buffer *buffer, u32 index, u64 pointer, u32 size)
{
	struct words words = { .text = text_room(buffer), .at = pointer, .size = size, .how = TEXT_RAW };

	if (!words.text)
		return;
	if (bpf_loop(ARGV_MAX, word_step, &words, 0) >= ARGV_MAX)
		words.how |= TEXT_CUT;
	text_done(buffer, index, words.bytes, words.how);
}

static __always_inline u64 arg_of(const struct call *call, u8 number)
{
	return call->args[number & 7];
}

/* Adds an operand as two texts: the caller's words, and the directory that they start from or the file itself. Texts are added in order. */
static __always_inline void add_operand(struct buffer *buffer, u32 index, const struct operand *operand,
					const struct call *call)
{
	u64 arg = arg_of(call, operand->arg), bytes;
	bool is_opened;
	char first = 0;

	switch (operand->kind) {
	case OPERAND_FD:
		add_file(buffer, index + 1, arg);
		break;
	case OPERAND_ASKED:
	case OPERAND_RESULT:
	case OPERAND_PATH:
		is_opened = operand->kind != OPERAND_PATH && call->result >= 0;
		if (!is_opened || operand->kind == OPERAND_ASKED)
			first = add_string(buffer, index, arg);
		if (is_opened)
			add_file(buffer, index + 1, call->result);
		else if (first != '/')
			add_directory(buffer, index + 1, operand->dir == NO_ARG ? AT_FDCWD : (s32)arg_of(call, operand->dir));
		break;
	case OPERAND_TEXT:
		add_string(buffer, index, arg);
		break;
	case OPERAND_BYTES:
		bytes = operand->bytes;
		if (operand->dir != NO_ARG && arg_of(call, operand->dir) < bytes)
			bytes = arg_of(call, operand->dir);
		add_bytes(buffer, index, arg, bytes);
		break;
	case OPERAND_ARGV:
		add_argv(buffer, index, arg, call->index >= ABI_CALLS ? 4 : 8);
		break;
	}
}

/* Where a path begins that was opened and is told beside its file; the text after all others. */
static __always_inline void add_start(struct buffer *buffer, const struct operand *operand, const struct call *call)
{
	if (operand->kind == OPERAND_ASKED && call->result >= 0 && buffer->text[0] != '/')
		add_directory(buffer, 3, operand->dir == NO_ARG ? AT_FDCWD : (s32)arg_of(call, operand->dir));
}

static __always_inline bool is_named(u64 pointer)
{
	char first = 0;

	bpf_probe_read_user(&first, sizeof(first), (void *)pointer);
	return first;
}

static __always_inline bool is_other(u32 target)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u32 level = BPF_CORE_READ(task, thread_pid, level);
	struct pid *pids[2] = { BPF_CORE_READ(task, thread_pid), BPF_CORE_READ(task, group_leader, thread_pid) };

	for (int i = 0; i < 2; i++) {
		struct upid *own = (void *)pids[i] + bpf_core_field_offset(struct pid, numbers) +
				   level * bpf_core_type_size(struct upid);

		if (BPF_CORE_READ(own, nr) == (int)target)
			return false;
	}
	return true;
}

static __always_inline bool is_internet(u64 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline bool is_local(u64 address)
{
	u16 family = 0;

	bpf_probe_read_user(&family, sizeof(family), (void *)address);
	return !is_internet(family);
}

static __always_inline bool is_met(const struct shape *shape, const struct call *call)
{
	u64 word = 0;

	switch (shape->condition) {
	case CONDITION_NONE:
		return true;
	case CONDITION_MMAP:
		return (call->args[2] & PROT_EXEC) && (call->args[3] & MAP_ANONYMOUS);
	case CONDITION_OTHER:
		return is_other(call->args[0]);
	case CONDITION_POINTED:
		bpf_probe_read_user(&word, sizeof(word), (void *)call->args[0]);
		return word & shape->mask;
	case CONDITION_LOCAL_ADDRESS:
		return is_local(call->args[1]);
	case CONDITION_LOCAL_FAMILY:
		return !is_internet(call->args[0]);
	case CONDITION_FAILED:
		return call_error(call) != 0;
	case CONDITION_NAMED:
		return (call->result >= 0 || call->result == -EINVAL) && is_named(arg_of(call, shape->operands[0].arg));
	default:
		return arg_of(call, shape->condition - CONDITION_ARG) & shape->mask;
	}
}

static __always_inline int record_call(struct pt_regs *regs, long result)
{
	struct sandbox *sandbox;
	struct buffer *buffer;
	struct shape *shape;
	struct call call;
	u64 id = watched();

	read_call(&call, regs, result);
	shape = bpf_map_lookup_elem(&shapes, &call.index);
	if (!id || !shape || !is_met(shape, &call))
		return 0;
	sandbox = sandbox_of(id);
	if (!sandbox || !admit(sandbox, id))
		return 0;
	buffer = begin(KIND_CALL, id, call_error(&call));
	if (!buffer)
		return 0;
	buffer->record.header.call = call.index;
	__builtin_memcpy(&buffer->record.body.call, call.args, sizeof(buffer->record.body.call));
	add_operand(buffer, 0, &shape->operands[0], &call);
	add_operand(buffer, 2, &shape->operands[1], &call);
	add_start(buffer, &shape->operands[0], &call);
	send(buffer);
	return 0;
}

#endif
