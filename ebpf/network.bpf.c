// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Family `network`: sockets, connections and bytes, at the sandbox's cgroup. Processes outside of it never meet these programs. They are the
 * network's dial as well: what the sandbox's entry denies is refused with EPERM. The switch of devices is here because it hangs at the same place.
 *
 * A program of a cgroup may be interrupted by another of its kind, so the records are built in the ring and not in the CPU's buffer.
 */
#include "emit.h"
#include "packet.h"
#include <bpf/bpf_endian.h>

#define EPERM 1
/* Results of a program of a cgroup. */
#define REFUSE 0
#define ALLOW 1
/* BPF_DEVCG_DEV_CHAR */
#define DEVICE_CHAR 2

/* As `Deny` in maps.rs; what is not here is asked by lsm.bpf.c. */
enum deny {
	DENY_NETWORK = 1,
	DENY_CONNECT = 32,
	DENY_BIND = 64,
	DENY_SENDMSG = 128,
	DENY_DEVICES = 256,
};

enum direction {
	RECEIVED = 0,
	SENT = 1,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} traffic SEC(".maps");

/* Room in the ring; counted as lost when there is none. */
static __always_inline void *room(struct sandbox *sandbox, u64 id, u64 bytes)
{
	void *room;

	if (!admit(sandbox, id))
		return NULL;
	room = bpf_ringbuf_reserve(&ring, bytes, 0);
	if (!room)
		lose(id, LOSS_RING_FULL);
	return room;
}

static __always_inline struct record *reserve(struct sandbox *sandbox, u64 id, u16 kind, s32 error)
{
	struct record *record = room(sandbox, id, sizeof(*record));

	if (!record)
		return NULL;
	fill_header(&record->header, kind, id, error);
	record->header.size = sizeof(*record);
	__builtin_memset(&record->body, 0, sizeof(record->body));
	return record;
}

static __always_inline int address(struct bpf_sock_addr *ctx, u16 kind, u32 family, u32 deny)
{
	u64 id = subject();
	struct sandbox *sandbox;
	struct record *record;
	bool is_denied;
	u32 ip[4];

	if (!id)
		return ALLOW;
	sandbox = sandbox_of(id);
	if (!sandbox)
		return ALLOW;
	is_denied = sandbox->deny & (DENY_NETWORK | deny);
	record = reserve(sandbox, id, kind, is_denied ? EPERM : 0);
	if (!record)
		return is_denied ? REFUSE : ALLOW;
	record->body.address.family = family;
	record->body.address.port = bpf_ntohs(ctx->user_port);
	if (family == AF_INET) {
		ip[0] = ip[1] = ip[2] = 0;
		ip[3] = ctx->user_ip4;
	} else {
		ip[0] = ctx->user_ip6[0];
		ip[1] = ctx->user_ip6[1];
		ip[2] = ctx->user_ip6[2];
		ip[3] = ctx->user_ip6[3];
	}
	__builtin_memcpy(record->body.address.ip, ip, sizeof(ip));
	bpf_ringbuf_submit(record, 0);
	return is_denied ? REFUSE : ALLOW;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *ctx)
{
	return address(ctx, KIND_CONNECT, AF_INET, DENY_CONNECT);
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *ctx)
{
	return address(ctx, KIND_CONNECT, AF_INET6, DENY_CONNECT);
}

SEC("cgroup/bind4")
int on_bind4(struct bpf_sock_addr *ctx)
{
	return address(ctx, KIND_BIND, AF_INET, DENY_BIND);
}

SEC("cgroup/bind6")
int on_bind6(struct bpf_sock_addr *ctx)
{
	return address(ctx, KIND_BIND, AF_INET6, DENY_BIND);
}

SEC("cgroup/sendmsg4")
int on_send4(struct bpf_sock_addr *ctx)
{
	return address(ctx, KIND_SEND, AF_INET, DENY_SENDMSG);
}

SEC("cgroup/sendmsg6")
int on_send6(struct bpf_sock_addr *ctx)
{
	return address(ctx, KIND_SEND, AF_INET6, DENY_SENDMSG);
}

/* What hardly a program runs without (`Shut::DEVICES_LEFT`): memory(4), tty(4), pts(4). */
static __always_inline bool is_harmless(struct bpf_cgroup_dev_ctx *ctx)
{
	if ((ctx->access_type & 0xffff) != DEVICE_CHAR)
		return false;
	switch (ctx->major) {
	case 1:
		return ctx->minor == 3 || ctx->minor == 5 || (ctx->minor >= 7 && ctx->minor <= 9);
	case 5:
		return ctx->minor == 0 || ctx->minor == 2;
	default:
		return ctx->major >= 136 && ctx->major <= 143;
	}
}

/* Asked when a node is opened or made. No task is looked at: only processes of the sandbox meet this, and a prober has one. */
SEC("cgroup/dev")
int on_device(struct bpf_cgroup_dev_ctx *ctx)
{
	struct sandbox *sandbox = sandbox_of(filter.lowest);

	return sandbox && sandbox->deny & DENY_DEVICES && !is_harmless(ctx) ? REFUSE : ALLOW;
}

SEC("cgroup/sock_create")
int on_socket(struct bpf_sock *ctx)
{
	u64 id = subject();
	struct sandbox *sandbox;
	struct record *record;

	if (!id)
		return ALLOW;
	sandbox = sandbox_of(id);
	if (!sandbox)
		return ALLOW;
	record = reserve(sandbox, id, KIND_SOCKET, 0);
	if (!record)
		return ALLOW;
	record->body.socket.family = ctx->family;
	record->body.socket.kind = ctx->type;
	record->body.socket.protocol = ctx->protocol;
	bpf_ringbuf_submit(record, 0);
	return ALLOW;
}

/* Whether the dial denies the network to any sandbox: until then no packet is asked whose it is. Set by the prober. */
volatile u32 cut SEC(".data.cut") = 0;

/* Packets of what was connected, bound or accepted before the dial was turned. */
static __always_inline bool is_cut(struct __sk_buff *skb)
{
	struct sandbox *sandbox;

	if (!cut)
		return false;
	sandbox = sandbox_of(bpf_skb_ancestor_cgroup_id(skb, filter.level));
	return sandbox && sandbox->deny & DENY_NETWORK;
}

static __always_inline int count(struct __sk_buff *skb, u32 direction)
{
	u64 *bytes = bpf_map_lookup_elem(&traffic, &direction);

	if (bytes)
		__sync_fetch_and_add(bytes, skb->len);
	return ALLOW;
}

struct dns_record {
	struct record record;
	char payload[DNS_BYTES];
};

/* The task that runs, where it is the sandbox's: most packets leave in the call that sent them. What leaves later, as a retransmission does, finds
 * whatever runs just then: a stranger is not told, another process of the sandbox is taken for the sender. */
static __always_inline void fill_sender(struct header *header, u64 id)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	__builtin_memset(header, 0, sizeof(*header));
	header->kind = KIND_DNS;
	header->time_ns = bpf_ktime_get_boot_ns();
	header->sandbox = id;
	header->size = sizeof(struct dns_record);
	header->text_bytes[0] = DNS_BYTES;
	header->text_how[0] = TEXT_RAW;
	if (!is_below(task, id))
		return;
	header->pid = BPF_CORE_READ(task, tgid);
	header->ppid = BPF_CORE_READ(task, real_parent, tgid);
	header->uid = BPF_CORE_READ(task, cred, uid.val);
	BPF_CORE_READ_INTO(&header->comm, task, comm);
}

static __always_inline void tell_dns(struct __sk_buff *skb)
{
	struct sandbox *sandbox;
	struct dns_record *dns;
	struct packet packet;
	u64 id;

	if (!read_packet(skb, &packet) || packet.port != DNS_PORT || !packet.payload_bytes)
		return;
	id = bpf_skb_ancestor_cgroup_id(skb, filter.level);
	sandbox = sandbox_of(id);
	if (!sandbox)
		return;
	dns = room(sandbox, id, sizeof(*dns));
	if (!dns)
		return;
	fill_sender(&dns->record.header, id);
	__builtin_memset(&dns->record.body, 0, sizeof(dns->record.body));
	__builtin_memset(dns->payload, 0, sizeof(dns->payload));
	dns->record.body.dns.to.family = packet.family;
	dns->record.body.dns.to.port = packet.port;
	__builtin_memcpy(dns->record.body.dns.to.ip, packet.to, sizeof(packet.to));
	dns->record.body.dns.bytes = packet.payload_bytes;
	dns->record.body.dns.is_tcp = packet.is_tcp;
	load_payload(skb, &packet, dns->payload);
	bpf_ringbuf_submit(dns, 0);
}

SEC("cgroup_skb/ingress")
int on_ingress(struct __sk_buff *skb)
{
	return is_cut(skb) ? REFUSE : count(skb, RECEIVED);
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	if (is_cut(skb))
		return REFUSE;
	tell_dns(skb);
	return count(skb, SENT);
}

char LICENSE[] SEC("license") = "GPL";
