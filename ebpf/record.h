/* The records that the programs send, shared with runtime/probe/src/bpf/record.rs. Both sides check the layout: the asserts below, and a test
 * there that reads these structures from the objects' BTF.
 *
 * A record is a header, a body of fixed size and texts, back to back. Nothing in it is a pointer; every length is bounded.
 */
#ifndef APEX_RECORD_H
#define APEX_RECORD_H

#include "vmlinux.h"

#define COMM_BYTES 16
#define TEXTS_MAX 4
/* Longest text, as apex_core::event::TEXT_BYTES_MAX. */
#define TEXT_BYTES_MAX 4096
/* Longest name of a directory entry with its NUL. */
#define NAME_BYTES_MAX 256
/* What is sent of a payload for a name server: enough for the longest question and what stands around it (PAYLOAD_BYTES_MAX in
 * runtime/core/src/observe/dns.rs). A power of two, see load_payload().
 */
#define DNS_BYTES 512

enum kind {
	KIND_FORK = 1,
	KIND_EXEC = 2,
	KIND_EXIT = 3,
	KIND_SOCKET = 10,
	KIND_CONNECT = 11,
	KIND_SEND = 12,
	KIND_BIND = 13,
	KIND_DNS = 14,
	/* A system call, as the tables of runtime/probe/src/bpf/calls.rs shape it. */
	KIND_CALL = 20,
	/* What a hook of the security module saw. */
	KIND_LSM = 30,
};

enum hook {
	LSM_OPEN = 1,
	LSM_EXEC = 2,
	LSM_MKDIR = 3,
	LSM_UNLINK = 4,
	LSM_TRUNCATE = 5,
	LSM_CHMOD = 6,
	LSM_CHOWN = 7,
	LSM_SYMLINK = 8,
	LSM_RENAME = 9,
	LSM_LINK = 10,
	LSM_CONNECT = 11,
	LSM_BIND = 12,
	LSM_PTRACE = 13,
	LSM_SETUID = 14,
	LSM_BPF = 15,
	LSM_MOUNT = 16,
	LSM_USERNS = 17,
	LSM_MPROTECT = 18,
};

/* How a text is to be read. */
enum text {
	TEXT_NONE = 0,
	/* Bytes as they are. */
	TEXT_RAW = 1,
	/* Names of a path from the last to the first, each with its NUL. */
	TEXT_NAMES = 2,
	/* Flag: it was longer. */
	TEXT_CUT = 0x40,
	/* Flag of TEXT_NAMES: it does not lead to the root of the process. */
	TEXT_ASTRAY = 0x80,
};

struct header {
	/* Bytes of the whole record. */
	u32 size;
	u16 kind;
	/* Of KIND_CALL: the call, see call_index(). */
	u16 call;
	/* Nanoseconds since boot (CLOCK_BOOTTIME). */
	u64 time_ns;
	/* Id of the sandbox's cgroup. */
	u64 sandbox;
	/* Thread group that did it, its parent, its user: all as the host numbers them. */
	u32 pid;
	u32 ppid;
	u32 uid;
	/* errno, 0 for success. */
	s32 error;
	char comm[COMM_BYTES];
	u16 text_bytes[TEXTS_MAX];
	u8 text_how[TEXTS_MAX];
	u32 padding;
};

struct fork_body {
	u32 child;
};

/* Texts: the file, the arguments (each with its NUL), the file as it was asked for, and the directory that it starts from. */
struct exec_body {
	u32 fileless;
	/* Of descriptor 0: as in st_mode, 0 when nothing is open. */
	u32 stdin_mode;
	/* Of a device: major number << 20 | minor number. */
	u32 stdin_device;
	/* Of a socket. */
	u32 stdin_family;
	u32 stdin_listens;
	/* Inodes of the pipes that descriptors 0 and 1 are, 0 for anything else. */
	u64 stdin_pipe;
	u64 stdout_pipe;
};

struct exit_body {
	/* As wait(2) tells it. */
	u32 status;
};

struct socket_body {
	u32 family;
	u32 kind;
	u32 protocol;
};

/* An internet address. The last four bytes of `ip` are the address of AF_INET. */
struct address_body {
	u32 family;
	/* In the order of this machine. */
	u32 port;
	u8 ip[16];
};

/* A packet to a name server. Text: the beginning of its payload, padded with zeros. */
struct dns_body {
	struct address_body to;
	/* Bytes of the payload. */
	u32 bytes;
	u32 is_tcp;
};

/* Texts: for each operand two, what the caller named, and the directory that it starts from or the file itself. Of an opened file that is told by
 * both, the last one is the directory.
 */
struct call_body {
	u64 args[6];
};

/* Texts: paths or an address, as the hook has them. */
struct lsm_body {
	u32 hook;
	u32 padding;
	u64 words[2];
};

union body {
	struct fork_body fork;
	struct exec_body exec;
	struct exit_body exit;
	struct socket_body socket;
	struct address_body address;
	struct dns_body dns;
	struct call_body call;
	struct lsm_body lsm;
};

struct record {
	struct header header;
	union body body;
};

_Static_assert(sizeof(struct header) == 72, "layout shared with record.rs");
_Static_assert(sizeof(union body) == 48, "layout shared with record.rs");
_Static_assert(sizeof(struct record) == 120, "layout shared with record.rs");

#endif
