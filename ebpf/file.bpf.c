// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Family `file`: files and names. Reached from syscall.bpf.c by tail call, for the calls that have a shape here. */
#include "shaped.h"

SEC("tp_btf/sys_exit")
int BPF_PROG(on_file_call, struct pt_regs *regs, long result)
{
	return record_call(regs, result);
}

char LICENSE[] SEC("license") = "GPL";
