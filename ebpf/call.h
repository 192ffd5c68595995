/* System calls at their end. The hook is sys_exit alone: there the argument registers are still the caller's, the result is known, the pages of
 * its strings are in memory, and a call that the seccomp filter refused passes as well, which it never does at sys_enter.
 *
 * What is recorded of which call is a table that the prober writes: the programs know no call by number.
 */
#ifndef APEX_CALL_H
#define APEX_CALL_H

#include "emit.h"
#include <bpf/bpf_tracing.h>

/* Numbers of one ABI; those of i386 follow those of x86-64. */
#define ABI_CALLS 512
#define CALLS (2 * ABI_CALLS)
/* thread_info.status: the call came by the 32-bit entry. */
#define TS_COMPAT 0x2

struct call {
	/* Two more than there are, so that three bits are an index. */
	u64 args[8];
	long result;
	u32 index;
};

/* Index of a call into tables of CALLS entries, CALLS for a number that is in none. */
static __always_inline u32 call_index(struct pt_regs *regs)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 number = regs->orig_ax;

	if (number >= ABI_CALLS)
		return CALLS;
	return task->thread_info.status & TS_COMPAT ? ABI_CALLS + number : number;
}

static __always_inline void read_call(struct call *call, struct pt_regs *regs, long result)
{
	call->index = call_index(regs);
	call->result = result;
	call->args[6] = call->args[7] = 0;
	if (call->index >= ABI_CALLS) {
		call->args[0] = (u32)regs->bx;
		call->args[1] = (u32)regs->cx;
		call->args[2] = (u32)regs->dx;
		call->args[3] = (u32)regs->si;
		call->args[4] = (u32)regs->di;
		call->args[5] = (u32)regs->bp;
		call->result = (s32)result;
	} else {
		call->args[0] = regs->di;
		call->args[1] = regs->si;
		call->args[2] = regs->dx;
		call->args[3] = regs->r10;
		call->args[4] = regs->r8;
		call->args[5] = regs->r9;
	}
}

#endif
