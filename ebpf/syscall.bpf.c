// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Family `syscall`: the one hook on every system call, there at level `full` only. It counts, and hands the calls that other families
 * want to their programs: a call that nobody wants costs nothing more.
 */
#include "call.h"

/* How often each call was made; the last entry is for numbers that are no call. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CALLS + 1);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

/* Programs of other families by call. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CALLS);
	__type(key, u32);
	__type(value, u32);
} wanted SEC(".maps");

SEC("tp_btf/sys_exit")
int BPF_PROG(on_call, struct pt_regs *regs, long result)
{
	u32 index;
	u64 *count;

	if (!subject())
		return 0;
	index = call_index(regs);
	count = bpf_map_lookup_elem(&counts, &index);
	if (count)
		(*count)++;
	bpf_tail_call(ctx, &wanted, index);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
