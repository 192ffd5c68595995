//! Socket addresses of connect(2) and bind(2): what leads to where the sandbox does not reach.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use apex_core::observe;
use apex_core::plan::Plan;
use apex_core::policy::Network;
use apex_core::refusal::Attempt;
use apex_sys::process;
use nix::libc;
use nix::sys::socket::{self, SockType};

use super::look::{Caller, World, exists_outside};

/// Longest address that the kernel takes (`struct sockaddr_storage`).
const ADDRESS_BYTES_MAX: usize = 128;
/// Names of abstract sockets of the sandbox that are remembered.
const NAMES_MAX: usize = 256;
/// Port of name servers, which libraries look for on the loopback when no other is configured.
const DNS_PORT: u16 = 53;

/// Abstract sockets that the sandbox made itself.
#[derive(Default)]
pub struct Sockets(HashSet<Vec<u8>>);

/// An address as the kernel takes it.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Inet(SocketAddr),
    Unix(PathBuf),
    Abstract(Vec<u8>),
}

/// Looks at a connect or bind. `None` when nothing stands in its way, as far as that can be told.
pub fn look(
    plan: &Plan,
    world: &World,
    sockets: &mut Sockets,
    caller: &Caller<'_>,
    call: &str,
) -> Option<(Attempt, &'static str)> {
    let [fd, address, length, ..] = caller.call.args;
    let length = usize::try_from(length as u32).ok()?.min(ADDRESS_BYTES_MAX);
    let outcome = match parse(&caller.bytes(address, length)?)? {
        Address::Inet(to) => (inet(plan, caller, fd, call, to)?, words(&to)),
        Address::Unix(path) => {
            let (outcome, path) = unix(world, caller, call, &path)?;
            (outcome, format!("unix:{}", path.to_string_lossy()))
        }
        Address::Abstract(name) => {
            let outcome = sockets.abstract_name(plan, call, &name)?;
            (outcome, format!("abstract:@{}", String::from_utf8_lossy(&name)))
        }
    };
    let (outcome, address) = outcome;
    Some((Attempt::Address { call: call.to_owned(), address }, outcome))
}

fn words(address: &SocketAddr) -> String {
    let family = if address.is_ipv4() { "inet" } else { "inet6" };
    format!("{family}:{address}")
}

fn parse(bytes: &[u8]) -> Option<Address> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let (port, rest) = rest.split_first_chunk::<2>()?;
            let (ip, _) = rest.split_first_chunk::<4>()?;
            Some(Address::Inet(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(*ip)), u16::from_be_bytes(*port))))
        }
        libc::AF_INET6 => {
            let (port, rest) = rest.split_first_chunk::<2>()?;
            let (ip, _) = rest.get(4..)?.split_first_chunk::<16>()?;
            Some(Address::Inet(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*ip)), u16::from_be_bytes(*port))))
        }
        libc::AF_UNIX => match rest {
            [] => None,
            [0, name @ ..] => Some(Address::Abstract(name.to_vec())),
            path => {
                let path = path.split(|byte| *byte == 0).next()?;
                Some(Address::Unix(PathBuf::from(OsStr::from_bytes(path))))
            }
        },
        _ => None,
    }
}

/// The sandbox has a loopback of its own; Landlock refuses TCP even there.
fn inet(plan: &Plan, caller: &Caller<'_>, fd: u64, call: &str, to: SocketAddr) -> Option<&'static str> {
    if plan.network != Network::None {
        return None;
    }
    let is_tcp = socket_type(caller, fd) == Some(SockType::Stream);
    if is_tcp && plan.landlock.as_ref().is_some_and(|landlock| landlock.tcp_refused) {
        return Some("EACCES");
    }
    let ip = to.ip().to_canonical();
    let is_here = ip.is_loopback() || ip.is_unspecified();
    let asks_for_names = !is_tcp && to.port() == DNS_PORT;
    match call {
        "bind" if is_here => None,
        "bind" => Some("EADDRNOTAVAIL"),
        _ if is_here && asks_for_names => Some("ECONNREFUSED"),
        _ if is_here => None,
        _ => Some("ENETUNREACH"),
    }
}

fn socket_type(caller: &Caller<'_>, fd: u64) -> Option<SockType> {
    let pidfd = process::pidfd_open(caller.process()?).ok()?;
    let socket = process::pidfd_getfd(pidfd.as_fd(), fd as u32 as i32).ok()?;
    socket::getsockopt(&socket, socket::sockopt::SockType).ok()
}

fn unix(world: &World, caller: &Caller<'_>, call: &str, path: &Path) -> Option<(&'static str, PathBuf)> {
    if call != "connect" {
        // What is made inside stays inside: a bind that fails has no one outside to miss.
        return None;
    }
    let path = if path.is_absolute() { path.to_owned() } else { observe::absolute(&caller.base(None)?, path) };
    let place = world.find(&path, true)?;
    (!place.found.inside() && exists_outside(&place.path)).then_some(("ENOENT", place.path))
}

impl Sockets {
    /// An abstract name that somebody outside listens on, and nobody inside as far as we saw.
    fn abstract_name(&mut self, plan: &Plan, call: &str, name: &[u8]) -> Option<&'static str> {
        if call == "bind" {
            if self.0.len() < NAMES_MAX {
                self.0.insert(name.to_vec());
            }
            return None;
        }
        let is_own = self.0.contains(name) || self.0.len() == NAMES_MAX;
        let refusing = match plan.network {
            Network::None => Some("ECONNREFUSED"),
            Network::Host => plan.landlock.as_ref().filter(|landlock| landlock.scoped).map(|_| "EPERM"),
        };
        refusing.filter(|_| !is_own && listens_outside(name))
    }
}

/// Whether the host's network namespace has an abstract socket of this name (proc_pid_net(5)).
fn listens_outside(name: &[u8]) -> bool {
    let Ok(table) = std::fs::read("/proc/self/net/unix") else { return false };
    // The kernel writes a NUL within a name as `@` too.
    let shown: Vec<u8> = std::iter::once(&0).chain(name).map(|byte| if *byte == 0 { b'@' } else { *byte }).collect();
    table
        .split(|byte| *byte == b'\n')
        .any(|line| line.ends_with(&shown) && line[..line.len() - shown.len()].ends_with(b" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet4(port: u16, ip: [u8; 4]) -> Vec<u8> {
        let mut bytes = 2u16.to_ne_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend(ip);
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn addresses_are_read() {
        let Some(Address::Inet(address)) = parse(&inet4(80, [192, 0, 2, 1])) else { panic!() };
        assert_eq!(words(&address), "inet:192.0.2.1:80");
        let mut bytes = 10u16.to_ne_bytes().to_vec();
        bytes.extend(443u16.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        let Some(Address::Inet(address)) = parse(&bytes) else { panic!() };
        assert_eq!(words(&address), "inet6:[::1]:443");
        assert_eq!(parse(b"\x01\x00/run/x\0y"), Some(Address::Unix(PathBuf::from("/run/x"))));
        assert_eq!(parse(b"\x01\x00\0x\0"), Some(Address::Abstract(b"x\0".to_vec())));
    }

    #[test]
    fn malformed_addresses_are_none() {
        for bytes in [
            &b""[..],
            b"\x02",
            b"\x02\x00\x00",
            b"\x02\x00\x00\x50\x01\x02\x03",
            b"\x0a\x00\x00\x50\0\0\0\0\0",
            b"\x01\x00",
            b"\xff\xff1234",
        ] {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }
}
