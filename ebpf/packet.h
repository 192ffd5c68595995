/* A packet on its way out, from its network header on. Everything in it was chosen by the sandbox. */
#ifndef APEX_PACKET_H
#define APEX_PACKET_H

#include "sandbox.h"
#include <bpf/bpf_endian.h>

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define UDP_HEADER_BYTES 8
#define DNS_PORT 53
/* The offset of a fragment; only the first has the header of UDP. */
#define FRAGMENT_OFFSET 0x1fff
/* Headers between those of IPv6 and of the transport that are passed over. */
#define EXTENSIONS_MAX 4

struct packet {
	u32 family;
	/* As in address_body. */
	u8 to[16];
	u32 is_tcp;
	u32 port;
	/* Where the payload begins, and how long it is. */
	u32 payload;
	u32 payload_bytes;
};

static __always_inline bool read_ip4(struct __sk_buff *skb, struct packet *packet, u8 *protocol, u32 *transport)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) != 0 || (ip.frag_off & bpf_htons(FRAGMENT_OFFSET)))
		return false;
	packet->family = AF_INET;
	__builtin_memcpy(packet->to + 12, ip.daddr, sizeof(ip.daddr));
	*protocol = ip.protocol;
	*transport = (ip.version_ihl & 0xf) * 4;
	return true;
}

static __always_inline bool read_ip6(struct __sk_buff *skb, struct packet *packet, u8 *protocol, u32 *transport)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) != 0)
		return false;
	packet->family = AF_INET6;
	__builtin_memcpy(packet->to, ip.daddr, sizeof(ip.daddr));
	*protocol = ip.nexthdr;
	*transport = sizeof(ip);
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		/* Kind of the next one, and length in eights beyond the first. */
		u8 head[2];

		/* Hop-by-hop options, routing, options for the destination. */
		if (*protocol != 0 && *protocol != 43 && *protocol != 60)
			break;
		if (bpf_skb_load_bytes(skb, *transport, head, sizeof(head)) != 0)
			return false;
		*protocol = head[0];
		*transport += 8 + head[1] * 8;
	}
	return true;
}

/* Whether it is one of TCP or UDP that has a payload or could have one. */
static __always_inline bool read_packet(struct __sk_buff *skb, struct packet *packet)
{
	u32 transport = 0;
	u8 first, protocol = 0, words;
	__be16 port;

	__builtin_memset(packet, 0, sizeof(*packet));
	if (bpf_skb_load_bytes(skb, 0, &first, 1) != 0)
		return false;
	if (first >> 4 == 4 ? !read_ip4(skb, packet, &protocol, &transport) : !read_ip6(skb, packet, &protocol, &transport))
		return false;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return false;
	/* Both have it in their second word. */
	if (bpf_skb_load_bytes(skb, transport + 2, &port, sizeof(port)) != 0)
		return false;
	packet->port = bpf_ntohs(port);
	packet->is_tcp = protocol == IPPROTO_TCP;
	packet->payload = transport + UDP_HEADER_BYTES;
	if (packet->is_tcp) {
		if (bpf_skb_load_bytes(skb, transport + 12, &words, 1) != 0)
			return false;
		packet->payload = transport + (words >> 4) * 4;
	}
	if (packet->payload < skb->len)
		packet->payload_bytes = skb->len - packet->payload;
	return true;
}

/* The beginning of a payload that is not empty, DNS_BYTES at most; what is beyond it in `to` stays as it is. */
static __always_inline void load_payload(struct __sk_buff *skb, const struct packet *packet, void *to)
{
	u64 bytes = packet->payload_bytes;

	if (bytes > DNS_BYTES)
		bytes = DNS_BYTES;
	/* It is from 1 to DNS_BYTES anyhow; older verifiers do not see the lower bound of a comparison. */
	asm volatile("%0 += -1; %0 &= 0x1ff; %0 += 1" : "+r"(bytes));
	/* Packets of a segmented size are in pieces, which this helper follows. A failure leaves zeros: no question. */
	bpf_skb_load_bytes(skb, packet->payload, to, bytes);
}

#endif
