//! The address of a socket, as text: `inet:192.0.2.1:80`, `inet6:[2001:db8::1]:80`, `unix:/run/x.sock`, `abstract:x`, `unnamed`, `family:16`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) const AF_UNIX: u32 = 1;
pub(super) const AF_INET: u32 = 2;
pub(super) const AF_INET6: u32 = 10;

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// IPv4 or IPv6 with a port.
    Inet(SocketAddr),
    /// A UNIX socket's path.
    Unix(String),
    /// An abstract UNIX socket.
    Abstract(String),
    /// A UNIX socket without a name.
    Unnamed,
    /// Another family, by number (AF_*).
    Family(u16),
}

impl Address {
    /// A `struct sockaddr` as system calls take it, cut at the length that was given with it; `None` when it is too short for its family.
    pub fn from_bytes(bytes: &[u8]) -> Option<Address> {
        let (family, rest) = bytes.split_first_chunk::<2>()?;
        // The port stands first in both internet families, in network order.
        let port = || rest.split_first_chunk::<2>().map(|(port, rest)| (u16::from_be_bytes(*port), rest));
        let family = u16::from_ne_bytes(*family);
        Some(match u32::from(family) {
            AF_INET => {
                let (port, rest) = port()?;
                let (ip, _) = rest.split_first_chunk::<4>()?;
                Address::Inet(SocketAddr::new(IpAddr::from(*ip), port))
            }
            AF_INET6 => {
                let (port, rest) = port()?;
                // After four bytes of flow label.
                let (ip, _) = rest.get(4..)?.split_first_chunk::<16>()?;
                Address::Inet(SocketAddr::new(IpAddr::from(*ip), port))
            }
            AF_UNIX => match rest {
                [] => Address::Unnamed,
                [0, name @ ..] => Address::Abstract(String::from_utf8_lossy(name).into_owned()),
                path => {
                    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
                    Address::Unix(String::from_utf8_lossy(path).into_owned())
                }
            },
            _ => Address::Family(family),
        })
    }

    /// Host and port of an internet address.
    pub fn inet(&self) -> Option<(IpAddr, u16)> {
        match self {
            Address::Inet(address) => Some((address.ip(), address.port())),
            Address::Unix(_) | Address::Abstract(_) | Address::Unnamed | Address::Family(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address @ SocketAddr::V4(_)) => write!(f, "inet:{address}"),
            Address::Inet(address @ SocketAddr::V6(_)) => write!(f, "inet6:{address}"),
            Address::Unix(path) => write!(f, "unix:{path}"),
            Address::Abstract(name) => write!(f, "abstract:{name}"),
            Address::Unnamed => f.write_str("unnamed"),
            Address::Family(number) => write!(f, "family:{number}"),
        }
    }
}

/// A text that is no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no socket address; expected inet:IP:PORT, inet6:[IP]:PORT, unix:PATH, abstract:NAME, unnamed or family:NUMBER"
)]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let wrong = || AddressError(text.to_owned());
        if text == "unnamed" {
            return Ok(Address::Unnamed);
        }
        match text.split_once(':').ok_or_else(wrong)? {
            ("inet", rest) => rest.parse().map(|address| Address::Inet(SocketAddr::V4(address))).map_err(|_| wrong()),
            ("inet6", rest) => rest.parse().map(|address| Address::Inet(SocketAddr::V6(address))).map_err(|_| wrong()),
            ("unix", path) => Ok(Address::Unix(path.to_owned())),
            ("abstract", name) => Ok(Address::Abstract(name.to_owned())),
            ("family", number) => number.parse().map(Address::Family).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_from_its_text() {
        for text in
            ["inet:192.0.2.1:80", "inet6:[2001:db8::1]:443", "unix:/run/a:b", "abstract:x", "unnamed", "family:16"]
        {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn the_kernels_form_is_read() {
        let check = |bytes: &[u8], text: &str| {
            assert_eq!(Address::from_bytes(bytes).map(|address| address.to_string()).as_deref(), Some(text));
        };
        check(b"\x02\0\0\x50\xc0\0\x02\x01\0\0\0\0\0\0\0\0", "inet:192.0.2.1:80");
        let mut six = vec![10, 0, 1, 187, 0, 0, 0, 0];
        six.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        check(&six, "inet6:[2001:db8::1]:443");
        check(b"\x01\0/run/x\0rest", "unix:/run/x");
        check(b"\x01\0\0name", "abstract:name");
        check(b"\x01\0", "unnamed");
        check(b"\x10\0\0\0", "family:16");
        for short in [&b""[..], b"\x02", b"\x02\0\0\x50\xc0", &six[..20]] {
            assert_eq!(Address::from_bytes(short), None);
        }
    }

    #[test]
    fn a_wrong_text_is_named() {
        for text in ["inet:localhost:80", "inet6:192.0.2.1:80", "family:x", "tcp:1", ""] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
