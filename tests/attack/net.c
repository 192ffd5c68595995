/* Sockets: families a program has no business with, and addresses of the host. */
#include "attack.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#ifndef AF_SMC
#define AF_SMC 43
#endif
#ifndef AF_MCTP
#define AF_MCTP 45
#endif

static int family(int number, int type, int protocol) {
  long fd = call3(NR_socket, number, type, protocol);
  return fd < 0 ? errno : OK;
}
#define FAMILY(id, number, type, protocol) \
  static int af_##id(int c, char **v) { (void)c, (void)v; return family(number, type, protocol); }
FAMILY(alg, AF_ALG, SOCK_SEQPACKET, 0)
FAMILY(packet, AF_PACKET, SOCK_RAW, 0x0300)
FAMILY(packet_dgram, AF_PACKET, SOCK_DGRAM, 0)
FAMILY(vsock, AF_VSOCK, SOCK_STREAM, 0)
FAMILY(bluetooth, AF_BLUETOOTH, SOCK_RAW, 1)
FAMILY(key, AF_KEY, SOCK_RAW, 2)
FAMILY(can, AF_CAN, SOCK_RAW, 1)
FAMILY(tipc, AF_TIPC, SOCK_RDM, 0)
FAMILY(rds, AF_RDS, SOCK_SEQPACKET, 0)
FAMILY(xdp, AF_XDP, SOCK_RAW, 0)
FAMILY(nfc, AF_NFC, SOCK_RAW, 0)
FAMILY(qipcrtr, AF_QIPCRTR, SOCK_DGRAM, 0)
FAMILY(smc, AF_SMC, SOCK_STREAM, 0)
FAMILY(mctp, AF_MCTP, SOCK_DGRAM, 0)
FAMILY(llc, AF_LLC, SOCK_DGRAM, 0)
FAMILY(appletalk, AF_APPLETALK, SOCK_DGRAM, 0)
FAMILY(x25, AF_X25, SOCK_SEQPACKET, 0)
FAMILY(kcm, AF_KCM, SOCK_DGRAM, 0)
FAMILY(netlink_audit, AF_NETLINK, SOCK_RAW, 9)
FAMILY(netlink_netfilter, AF_NETLINK, SOCK_RAW, 12)
FAMILY(netlink_uevent, AF_NETLINK, SOCK_RAW, 15)
FAMILY(netlink_diag, AF_NETLINK, SOCK_RAW, 4)
FAMILY(netlink_crypto, AF_NETLINK, SOCK_RAW, 21)
FAMILY(netlink_generic, AF_NETLINK, SOCK_RAW, 16)
FAMILY(netlink_route, AF_NETLINK, SOCK_RAW, 0)
FAMILY(raw, AF_INET, SOCK_RAW, IPPROTO_ICMP)
FAMILY(raw_all, AF_INET, SOCK_RAW, IPPROTO_RAW)
FAMILY(raw6, AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)
FAMILY(old_packet, AF_INET, SOCK_PACKET, 0x0300)
FAMILY(sctp, AF_INET, SOCK_STREAM, IPPROTO_SCTP)
FAMILY(dccp, AF_INET, 6, 33)

/* i386 and s390 multiplex every socket call through one, whose arguments lie in memory. */
static int socketcall_packet(int c, char **v) {
  (void)c, (void)v;
  static uint32_t args[3] = {AF_PACKET, SOCK_RAW, 0x0300};
  if (abi != INT80 && sizeof(long) == 8) return NOT_APPLICABLE;
  return verdict(call2(NR_socketcall, 1, P(args)));
}
static int socketcall_inet(int c, char **v) {
  (void)c, (void)v;
  static uint32_t args[3] = {AF_INET, SOCK_STREAM, 0};
  if (abi != INT80 && sizeof(long) == 8) return NOT_APPLICABLE;
  return verdict(call2(NR_socketcall, 1, P(args)));
}
/* A family whose number differs only in the upper half of the register. */
static int af_high(int c, char **v) {
  (void)c, (void)v;
  if (sizeof(long) == 4 || abi == INT80) return NOT_APPLICABLE;
  return verdict(call3(NR_socket, (long)(0x100000000ULL | AF_PACKET), SOCK_RAW, 0x0300));
}

static int connect_to(int fd, const void *address, socklen_t size) {
  struct timeval patience = {.tv_sec = 3};
  static char copy[128];
  if (fd < 0) return errno;
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  memcpy(copy, address, size);
  int code = verdict(connect(fd, (struct sockaddr *)copy, size));
  close(fd);
  return code;
}
/* tcp ADDRESS PORT */
static int tcp(int c, char **v) {
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arg(c, v, 2, "9")))};
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = four.sin_port};
  char *address = arg(c, v, 1, "127.0.0.1");
  if (inet_pton(AF_INET, address, &four.sin_addr) == 1)
    return connect_to(socket(AF_INET, SOCK_STREAM, 0), &four, sizeof four);
  if (inet_pton(AF_INET6, address, &six.sin6_addr) == 1)
    return connect_to(socket(AF_INET6, SOCK_STREAM, 0), &six, sizeof six);
  return EINVAL;
}
/* udp ADDRESS PORT: `ok` says only that it was sent; the test looks at the other end. */
static int udp(int c, char **v) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arg(c, v, 2, "9")))};
  if (inet_pton(AF_INET, arg(c, v, 1, "127.0.0.1"), &to.sin_addr) != 1) return EINVAL;
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0) return errno;
  return verdict(sendto(fd, "attack", 6, 0, (struct sockaddr *)&to, sizeof to));
}
/* TCP Fast Open connects without connect(). */
static int tcp_fastopen(int c, char **v) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arg(c, v, 2, "9")))};
  if (inet_pton(AF_INET, arg(c, v, 1, "127.0.0.1"), &to.sin_addr) != 1) return EINVAL;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) return errno;
  return verdict(sendto(fd, "attack", 6, MSG_FASTOPEN, (struct sockaddr *)&to, sizeof to));
}
static int unix_to(int type, const char *name, int abstract) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  size_t size = strlen(name);
  if (size + 2 > sizeof to.sun_path) return ENAMETOOLONG;
  memcpy(to.sun_path + abstract, name, size);
  return connect_to(socket(AF_UNIX, type, 0), &to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + 1));
}
static int unix_path(int c, char **v) { return unix_to(SOCK_STREAM, arg(c, v, 1, "/none"), 0); }
static int unix_abstract(int c, char **v) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  char *name = arg(c, v, 1, "none");
  size_t size = strlen(name);
  if (size + 2 > sizeof to.sun_path) return ENAMETOOLONG;
  memcpy(to.sun_path + 1, name, size);
  return connect_to(socket(AF_UNIX, SOCK_STREAM, 0), &to, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + size));
}
static int unix_bind(int c, char **v) {
  struct sockaddr_un at = {.sun_family = AF_UNIX};
  snprintf(at.sun_path, sizeof at.sun_path, "%s", arg(c, v, 1, "/tmp/s"));
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) return errno;
  return verdict(bind(fd, (struct sockaddr *)&at, sizeof at));
}
/* Own loopback must work: programs and their tests talk to themselves. */
static int own_loopback(int c, char **v) {
  (void)c, (void)v;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof at;
  int server = socket(AF_INET, SOCK_STREAM, 0);
  if (server < 0 || bind(server, (struct sockaddr *)&at, size) || listen(server, 1)) return errno;
  if (getsockname(server, (struct sockaddr *)&at, &size)) return errno;
  return connect_to(socket(AF_INET, SOCK_STREAM, 0), &at, size);
}
/* Any interface beside loopback. */
static int interfaces(int c, char **v) {
  (void)c, (void)v;
  struct if_nameindex *list = if_nameindex();
  int found = 0;
  if (!list) return errno;
  for (struct if_nameindex *it = list; it->if_index; it++)
    if (strcmp(it->if_name, "lo")) found++, detail("%s ", it->if_name);
  if_freenameindex(list);
  return found ? OK : ENODEV;
}
static int interface_up(int c, char **v) {
  (void)c, (void)v;
  static struct ifreq request = {.ifr_name = "lo"};
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0) return errno;
  request.ifr_flags = IFF_UP;
  return verdict(call3(NR_ioctl, fd, SIOCSIFFLAGS, P(&request)));
}

/* Descriptor passing through descriptor argv[1], a socket to the host: sends our root, receives what the host offers. */
static int scm_send(int c, char **v) {
  int socket_fd = atoi(arg(c, v, 1, "9"));
  int root = open("/", O_PATH | O_CLOEXEC);
  char byte = 'x', control[CMSG_SPACE(sizeof root)];
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  if (root < 0) return errno;
  memset(control, 0, sizeof control);
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof root);
  memcpy(CMSG_DATA(header), &root, sizeof root);
  return verdict(sendmsg(socket_fd, &message, MSG_NOSIGNAL));
}

#define F(id) {"af_" #id, "net", STRICT | RARE | ROOT | ABIS, af_##id}
const struct attempt net_attempts[] = {
    F(alg), F(packet), F(packet_dgram), F(vsock), F(bluetooth), F(key), F(can), F(tipc), F(rds), F(xdp), F(nfc),
    F(qipcrtr), F(smc), F(mctp), F(llc), F(appletalk), F(x25), F(kcm), F(netlink_audit), F(netlink_netfilter),
    F(netlink_uevent), F(netlink_diag), F(netlink_crypto), F(netlink_generic), F(sctp), F(dccp),
    {"raw_socket", "net", ALWAYS | ROOT | ABIS, af_raw},
    {"raw_all", "net", ALWAYS | ROOT | ABIS, af_raw_all},
    {"raw6_socket", "net", ALWAYS | ROOT | RARE | ABIS, af_raw6},
    {"old_packet", "net", ALWAYS | ROOT | RARE | ABIS, af_old_packet},
    {"socketcall_packet", "net", ALWAYS | ROOT | ABIS, socketcall_packet},
    {"af_high", "net", ALWAYS | ROOT | ABIS, af_high},
    {"interface_up", "net", ALWAYS | ROOT | ABIS, interface_up},
    {"socketcall_inet", "probe", ABIS, socketcall_inet},
    {"netlink_route", "probe", ABIS, af_netlink_route},
    {"tcp", "address", 0, tcp},
    {"tcp_fastopen", "address", 0, tcp_fastopen},
    {"udp", "address", 0, udp},
    {"unix_path", "address", 0, unix_path},
    {"unix_abstract", "address", 0, unix_abstract},
    {"unix_bind", "address", 0, unix_bind},
    {"own_loopback", "address", 0, own_loopback},
    {"interfaces", "address", 0, interfaces},
    {"scm_send", "address", 0, scm_send},
    {NULL, NULL, 0, NULL},
};
