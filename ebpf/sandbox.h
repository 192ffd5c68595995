/* Who is watched. A sandbox is its cgroup v2 directory and all below it; its id is that of the directory.
 *
 * Every program begins with `watched()`, and whoever is not in a sandbox of ours leaves it without a look into any map.
 */
#ifndef APEX_SANDBOX_H
#define APEX_SANDBOX_H

#include "record.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define AF_INET 2
#define AF_INET6 10
/* Cgroups between a process and its sandbox that are looked through. */
#define CGROUPS_MAX 8
/* Sandboxes of one prober at most. */
#define SANDBOXES_MAX 1024

/* Set by the prober; until then the range is empty and nobody is watched. */
struct filter {
	/* Range of the ids of all watched sandboxes. */
	u64 lowest;
	u64 highest;
	/* Depth of their directories below the root of the hierarchy. */
	u32 level;
	/* How many sandboxes. With one the range is its id. */
	u32 count;
	/* The init of the only one. */
	u32 init;
	/* Whether the security module's hooks record refusals alone. */
	u32 quiet;
};

struct sandbox {
	/* Our own pid 1 inside: what it does itself is not the sandbox's. */
	u32 init;
	/* What is refused, see the programs that ask. */
	u32 deny;
	/* Ordinary records in a window that are let through. */
	u64 window_records_max;
	/* The window: its number and the records taken in it. */
	u64 window;
	u64 taken;
};

_Static_assert(sizeof(struct filter) == 32, "layout shared with maps.rs");
_Static_assert(sizeof(struct sandbox) == 32, "layout shared with maps.rs");

volatile struct filter filter SEC(".data.filter") = { .lowest = ~0ULL };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SANDBOXES_MAX);
	__type(key, u64);
	__type(value, struct sandbox);
} sandboxes SEC(".maps");

static __always_inline u32 current_tgid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

/* Id of the current process's sandbox, 0 when it is in none of ours. Turns strangers away before any map is asked. */
static __always_inline u64 watched(void)
{
	u64 id = bpf_get_current_ancestor_cgroup_id(filter.level);

	if (id < filter.lowest || id > filter.highest)
		return 0;
	return id;
}

/* The sandbox's entry; NULL for one that only lies between ours. */
static __always_inline struct sandbox *sandbox_of(u64 id)
{
	return bpf_map_lookup_elem(&sandboxes, &id);
}

/* As watched(), and the init's own doings are left out. With one sandbox no map is asked. */
static __always_inline u64 subject(void)
{
	u64 id = watched();
	u32 init;

	if (!id)
		return 0;
	init = filter.init;
	if (filter.count > 1) {
		struct sandbox *sandbox = sandbox_of(id);

		if (!sandbox)
			return 0;
		init = sandbox->init;
	}
	return init == current_tgid() ? 0 : id;
}

/* Whether a task is in the cgroup with this id or below it. */
static __always_inline bool is_below(struct task_struct *task, u64 id)
{
	struct cgroup *cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp);

	for (int i = 0; i < CGROUPS_MAX && cgroup; i++) {
		if (BPF_CORE_READ(cgroup, kn, id) == id)
			return true;
		cgroup = (void *)BPF_CORE_READ(cgroup, self.parent);
	}
	return false;
}

#endif
