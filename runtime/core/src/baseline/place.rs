//! Names made general: what differs from run to run without meaning anything is replaced.

use crate::event::Address;

/// Directories below this depth are told by their ancestor.
const DEPTH_MAX: usize = 6;
/// Longest name that is kept, in bytes.
pub const NAME_BYTES_MAX: usize = 256;
/// From here on the kernel gives ports away by itself (`ip_local_port_range`).
const EPHEMERAL: u16 = 32768;

/// Directories whose entries have invented names.
const SCRATCH: [&str; 3] = ["/tmp/", "/var/tmp/", "/dev/shm/"];

/// The directory of a path, general: numbers become `#`, invented names `*`.
pub fn directory(path: &str) -> String {
    if let Some(scratch) = SCRATCH.iter().find(|scratch| path.starts_with(**scratch)) {
        return format!("{scratch}*");
    }
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut out = String::with_capacity(parent.len());
    for component in parent.split('/').filter(|component| !component.is_empty()).take(DEPTH_MAX) {
        out.push('/');
        out.push_str(&general(component));
    }
    if out.is_empty() {
        out.push_str(if path.starts_with('/') { "/" } else { "." });
    }
    cut(out)
}

/// A program's path, general in its directories alone.
pub fn program(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((_, name)) if SCRATCH.iter().any(|scratch| path.starts_with(scratch)) => {
            cut(format!("{}/{}", directory(path), general(name)))
        }
        Some((_, name)) => cut(format!("{}/{name}", directory(path).trim_end_matches('/'))),
        None => cut(general(path)),
    }
}

/// An address, its port general where the kernel chose it.
pub fn peer(address: &Address, is_own: bool) -> String {
    match (address, address.inet()) {
        (_, Some((ip, port))) if port >= EPHEMERAL && (is_own || ip.is_loopback()) => format!("inet:{ip}:ephemeral"),
        (_, Some((ip, port))) => format!("inet:{ip}:{port}"),
        (Address::Unix(path), _) => cut(format!("unix:{}", components(path))),
        (Address::Abstract(name), _) => cut(format!("abstract:{}", components(name))),
        (other, _) => other.to_string(),
    }
}

fn components(path: &str) -> String {
    path.split('/').take(DEPTH_MAX + 1).map(general).collect::<Vec<_>>().join("/")
}

/// One name: a long hexadecimal or mixed one becomes `*`, each number within another `#`.
fn general(name: &str) -> String {
    let is_hex = name.len() >= 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if is_hex || name.starts_with("tmp") && name.len() > 3 {
        return "*".to_owned();
    }
    let mut out = String::with_capacity(name.len());
    let mut was_digit = false;
    for c in name.chars() {
        let is_digit = c.is_ascii_digit();
        if !is_digit {
            out.push(c);
        } else if !was_digit {
            out.push('#');
        }
        was_digit = is_digit;
    }
    out
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(NAME_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_general() {
        for (path, expected) in [
            ("/usr/lib/python3.11/os.py", "/usr/lib/python#.#"),
            ("/proc/4711/status", "/proc/#"),
            ("/tmp/tmpab12/x/y", "/tmp/*"),
            ("/home/u/.git/objects/3fa9c2d1e0b7/x", "/home/u/.git/objects/*"),
            ("/etc/passwd", "/etc"),
            ("/x", "/"),
            ("name", "."),
            ("/a/b/c/d/e/f/g/h/i", "/a/b/c/d/e/f"),
            ("", "."),
        ] {
            assert_eq!(directory(path), expected, "{path}");
        }
    }

    #[test]
    fn programs_keep_their_names() {
        assert_eq!(program("/usr/bin/python3.11"), "/usr/bin/python3.11");
        assert_eq!(program("/tmp/build-4711"), "/tmp/*/build-#");
        assert_eq!(program("/sh"), "/sh");
    }

    #[test]
    fn ports_that_the_kernel_chose_are_general() {
        let check = |text: &str, is_own, expected: &str| {
            assert_eq!(peer(&text.parse().expect("an address"), is_own), expected);
        };
        check("inet:192.0.2.1:443", false, "inet:192.0.2.1:443");
        check("inet:192.0.2.1:40000", false, "inet:192.0.2.1:40000");
        check("inet:127.0.0.1:40000", false, "inet:127.0.0.1:ephemeral");
        check("inet:0.0.0.0:40000", true, "inet:0.0.0.0:ephemeral");
        check("unix:/run/user/1000/bus", false, "unix:/run/user/#/bus");
        check("unnamed", false, "unnamed");
    }

    #[test]
    fn length_is_bounded_at_a_character() {
        let long = format!("/{}/x", "é".repeat(4000));
        assert!(directory(&long).len() <= NAME_BYTES_MAX);
    }
}
