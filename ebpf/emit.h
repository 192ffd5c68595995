/* From a program to the reader: a record is built in a buffer of the CPU and copied into the ring at its real length.
 *
 * Whatever cannot be sent is counted by reason and sandbox.
 */
#ifndef APEX_EMIT_H
#define APEX_EMIT_H

#include "sandbox.h"

#define TEXT_AREA_BYTES (TEXTS_MAX * TEXT_BYTES_MAX)
/* One window of the rate limit: 2^27 ns, 134 ms. */
#define WINDOW_SHIFT 27

/* As `Loss` in maps.rs. */
enum loss {
	LOSS_RING_FULL = 0,
	LOSS_RATE_LIMITED = 1,
	LOSS_BUSY = 2,
	LOSS_UNREADABLE = 3,
	LOSS_REASONS = 4,
};

struct loss_key {
	u64 sandbox;
	u64 reason;
};

struct buffer {
	/* Taken by a program that another task may have interrupted. */
	u32 taken;
	u32 text_bytes;
	struct record record;
	char text[TEXT_AREA_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct buffer);
} buffers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, LOSS_REASONS * SANDBOXES_MAX);
	__uint(map_flags, 1 /* BPF_F_NO_PREALLOC */);
	__type(key, struct loss_key);
	__type(value, u64);
} losses SEC(".maps");

/* The size is set by the prober. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

static __always_inline void lose(u64 sandbox, u64 reason)
{
	struct loss_key key = { .sandbox = sandbox, .reason = reason };
	u64 *count = bpf_map_lookup_elem(&losses, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Whether the sandbox may send one more ordinary record in this window; counts it as lost when not. */
static __always_inline bool admit(struct sandbox *sandbox, u64 id)
{
	u64 window = bpf_ktime_get_boot_ns() >> WINDOW_SHIFT;
	u64 old = sandbox->window;

	/* Whoever sees the new window first empties it; a record counted beside that is one too many or too few, no more. */
	if (old != window && __sync_val_compare_and_swap(&sandbox->window, old, window) == old)
		sandbox->taken = 0;
	if (__sync_fetch_and_add(&sandbox->taken, 1) < sandbox->window_records_max)
		return true;
	lose(id, LOSS_RATE_LIMITED);
	return false;
}

/* The fields that every record has. */
static __always_inline void fill_header(struct header *header, u16 kind, u64 id, s32 error)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	header->kind = kind;
	header->call = 0;
	header->time_ns = bpf_ktime_get_boot_ns();
	header->sandbox = id;
	header->pid = current_tgid();
	header->ppid = BPF_CORE_READ(task, real_parent, tgid);
	header->uid = (u32)bpf_get_current_uid_gid();
	header->error = error;
	bpf_get_current_comm(header->comm, sizeof(header->comm));
	header->padding = 0;
	__builtin_memset(header->text_bytes, 0, sizeof(header->text_bytes));
	__builtin_memset(header->text_how, 0, sizeof(header->text_how));
}

/* The CPU's buffer with its header filled in and its body empty; NULL (counted) when an interrupted program holds it. */
static __always_inline struct buffer *begin(u16 kind, u64 id, s32 error)
{
	u32 zero = 0;
	struct buffer *buffer = bpf_map_lookup_elem(&buffers, &zero);

	if (!buffer)
		return NULL;
	if (__sync_val_compare_and_swap(&buffer->taken, 0, 1) != 0) {
		lose(id, LOSS_BUSY);
		return NULL;
	}
	fill_header(&buffer->record.header, kind, id, error);
	__builtin_memset(&buffer->record.body, 0, sizeof(buffer->record.body));
	buffer->text_bytes = 0;
	return buffer;
}

/* Copies the record into the ring and gives the buffer back. */
static __always_inline void send(struct buffer *buffer)
{
	u32 text_bytes = buffer->text_bytes;
	u64 size;

	if (text_bytes > TEXT_AREA_BYTES)
		text_bytes = TEXT_AREA_BYTES;
	size = sizeof(struct record) + text_bytes;
	buffer->record.header.size = size;
	if (bpf_ringbuf_output(&ring, &buffer->record, size, 0) != 0)
		lose(buffer->record.header.sandbox, LOSS_RING_FULL);
	buffer->taken = 0;
}

/* Where the next text begins, or NULL when the area is used up. */
static __always_inline char *text_room(struct buffer *buffer)
{
	u32 at = buffer->text_bytes;

	if (at > TEXT_AREA_BYTES - TEXT_BYTES_MAX)
		return NULL;
	return &buffer->text[at];
}

static __always_inline void text_done(struct buffer *buffer, u32 index, u32 bytes, u8 how)
{
	/* A power of two: the verifier sees the bound. */
	index &= TEXTS_MAX - 1;
	buffer->record.header.text_bytes[index] = bytes;
	buffer->record.header.text_how[index] = how;
	buffer->text_bytes += bytes;
}

#endif
