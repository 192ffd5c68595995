//! From a record to an event.
//!
//! Input: a record of the kernel's side. Output: the event of `apex-core`. It must not fail on anything that a sandbox chose, only on what
//! no program of ours writes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use apex_core::event::{ARGS_MAX, Address, Errno, Event, Stream, TEXT_BYTES_MAX, What};
use apex_core::observe::{self, absolute};

use super::record::{
    Malformed, Record, Text, address_body, dns_body, exec_body, exit_body, fork_body, header, socket_body,
};
use super::{lsm, meaning};

const FORK: u16 = 1;
const EXEC: u16 = 2;
const EXIT: u16 = 3;
const SOCKET: u16 = 10;
const CONNECT: u16 = 11;
const SEND: u16 = 12;
const BIND: u16 = 13;
const DNS: u16 = 14;
const CALL: u16 = 20;
const LSM: u16 = 30;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Reads one record.
pub fn decode(bytes: &[u8]) -> Result<Event, Malformed> {
    let record = Record::parse(bytes)?;
    let what = match record.head(header::kind) {
        FORK => What::Fork { child: record.body(fork_body::child) },
        EXEC => exec(&record),
        EXIT => exit(record.body(exit_body::status)),
        SOCKET => What::Socket {
            family: record.body(socket_body::family),
            kind: record.body(socket_body::kind),
            protocol: record.body(socket_body::protocol),
        },
        CONNECT => What::Connect { address: address(&record) },
        // The hook does not know how many bytes there are.
        SEND => What::Send { address: address(&record), bytes: 0 },
        BIND => What::Bind { address: address(&record) },
        DNS => dns(&record),
        CALL => meaning::what(&record)?,
        LSM => lsm::what(&record)?,
        other => return Err(Malformed::Kind(other)),
    };
    let error = record.head(header::error);
    Ok(Event {
        time_ns: record.head(header::time_ns),
        sandbox: record.head(header::sandbox),
        pid: record.head(header::pid),
        ppid: record.head(header::ppid),
        uid: record.head(header::uid),
        comm: record.comm(),
        what,
        error: (error != 0).then_some(Errno(error)),
    })
}

/// The name by which the file of an event was opened, where it is another than the file's own and the record has it.
pub fn asked(bytes: &[u8], event: &Event) -> Option<Event> {
    let What::Open { path, .. } = &event.what else { return None };
    let record = Record::parse(bytes).ok()?;
    let what = meaning::asked(&record).filter(|look| !matches!(look, What::Look { path: name, .. } if name == path))?;
    Some(Event { what, ..event.clone() })
}

/// A name as it was asked for, made absolute: links are not followed in it, and where `..` leads depends on them.
pub fn named(words: Text<'_>, start: Text<'_>) -> Option<String> {
    let name = words.to_text();
    if !words.is_some() || words.is_cut() || name.is_empty() {
        return None;
    }
    let start = if start.is_some() { start.to_text() } else { "/".to_owned() };
    // A path that is cut begins with dots and stays what it is: no path.
    Some(bounded(absolute(Path::new(&start), Path::new(&name)).to_string_lossy().into_owned()))
}

/// Arguments of a program, and whether there were more.
pub fn words(text: &Text<'_>) -> (Vec<String>, bool) {
    let mut args = Vec::new();
    for word in text.parts() {
        if args.len() == ARGS_MAX {
            return (args, true);
        }
        args.push(String::from_utf8_lossy(word).into_owned());
    }
    (args, text.is_cut())
}

fn exec(record: &Record<'_>) -> What {
    let (args, cut) = words(&record.text(1));
    let path = bounded(record.text(0).to_text());
    let asked = named(record.text(2), record.text(3)).filter(|asked| *asked != path);
    let fileless = record.body(exec_body::fileless) != 0;
    let pipe = |field| Some(record.body(field)).filter(|inode| *inode > 0);
    let (stdin_pipe, stdout_pipe) = (pipe(exec_body::stdin_pipe), pipe(exec_body::stdout_pipe));
    What::Exec { path, args, asked, cut, fileless, stdin: Some(stdin(record)), stdin_pipe, stdout_pipe }
}

fn stdin(record: &Record<'_>) -> Stream {
    let mode = record.body(exec_body::stdin_mode);
    if mode == 0 {
        return Stream::Closed;
    }
    let device = record.body(exec_body::stdin_device);
    let listens = record.body(exec_body::stdin_listens) != 0;
    Stream::of(mode, (device >> 20, device & 0xf_ffff), record.body(exec_body::stdin_family), listens)
}

fn dns(record: &Record<'_>) -> What {
    let (bytes, tcp) = (record.body(dns_body::bytes), record.body(dns_body::is_tcp) != 0);
    // The kernel's side pads what it sends.
    let sent = record.text(0).bytes();
    observe::dns::event(address(record), u64::from(bytes), &sent[..sent.len().min(bytes as usize)], tcp)
}

/// The address at the beginning of the body.
fn address(record: &Record<'_>) -> Address {
    // Ports are 16 bits wide; the hook's field is not.
    let port = record.body(address_body::port) as u16;
    let ip = record.body_bytes(address_body::ip);
    match record.body(address_body::family) {
        AF_INET => Address::Inet(SocketAddr::new(Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]).into(), port)),
        AF_INET6 => Address::Inet(SocketAddr::new(Ipv6Addr::from(ip).into(), port)),
        other => Address::Family(other as u16),
    }
}

/// A wait status (wait(2)).
fn exit(status: u32) -> What {
    match (status >> 8 & 0xff, status & 0x7f) {
        (code, 0) => What::Exit { code: Some(code as i32), signal: None },
        (_, signal) => What::Exit { code: None, signal: Some(signal as i32) },
    }
}

/// Bytes that are no UTF-8 become three each: a text may be longer here than it was in the kernel.
pub fn bounded(mut text: String) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::{NAMES, RAW, bytes_of};
    use super::*;

    fn check(kind: u16, body: &[u32], texts: &[(u8, &[u8])], expected: What) {
        let event = decode(&bytes_of(kind, body, texts)).expect("well formed");
        let frame = Event {
            time_ns: 5,
            sandbox: 77,
            pid: 12,
            ppid: 11,
            uid: 1000,
            comm: "job".to_owned(),
            what: expected,
            error: None,
        };
        assert_eq!(event, frame);
    }

    #[test]
    fn processes() {
        check(FORK, &[99], &[], What::Fork { child: 99 });
        check(EXIT, &[3 << 8], &[], What::Exit { code: Some(3), signal: None });
        check(EXIT, &[9], &[], What::Exit { code: None, signal: Some(9) });
        check(EXIT, &[0x80 | 11], &[], What::Exit { code: None, signal: Some(11) });
        let args = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        check(
            EXEC,
            &[1, 0o140_777, 0, 2, 0, 0, 0, 0, 71, 1],
            &[(NAMES, b"sh\0bin\0"), (RAW, b"sh\0-c\0\0")],
            What::Exec {
                path: "/bin/sh".to_owned(),
                args: args(&["sh", "-c", ""]),
                asked: None,
                cut: false,
                fileless: true,
                stdin: Some(Stream::Inet),
                stdin_pipe: None,
                stdout_pipe: Some(71 | 1 << 32),
            },
        );
        let many = b"x\0".repeat(ARGS_MAX + 1);
        check(
            EXEC,
            &[0],
            &[(NAMES, b"a\0"), (RAW, &many)],
            What::Exec {
                path: "/a".to_owned(),
                args: vec!["x".to_owned(); ARGS_MAX],
                asked: None,
                cut: true,
                fileless: false,
                stdin: Some(Stream::Closed),
                stdin_pipe: None,
                stdout_pipe: None,
            },
        );
    }

    #[test]
    fn addresses() {
        let inet = |text: &str| text.parse::<Address>().expect("an address");
        let localhost = u32::from_le_bytes([127, 0, 0, 1]);
        check(CONNECT, &[2, 80, 0, 0, 0, localhost], &[], What::Connect { address: inet("inet:127.0.0.1:80") });
        let one = u32::from_le_bytes([0, 0, 0, 1]);
        check(BIND, &[10, 53, 0, 0, 0, one], &[], What::Bind { address: inet("inet6:[::1]:53") });
        check(SEND, &[2, 53, 0, 0, 0, localhost], &[], What::Send { address: inet("inet:127.0.0.1:53"), bytes: 0 });
        check(SOCKET, &[2, 1, 6], &[], What::Socket { family: 2, kind: 1, protocol: 6 });
    }

    #[test]
    fn questions_to_name_servers() {
        let mut payload = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03org\0\0\x10\0\x01".to_vec();
        let bytes = payload.len() as u32;
        payload.resize(280, 0);
        let server = u32::from_le_bytes([192, 0, 2, 53]);
        let event = |bytes, qname: &str, qtype, tcp| What::Dns {
            address: "inet:192.0.2.53:53".parse().expect("an address"),
            bytes,
            qname: qname.to_owned(),
            qtype,
            tcp,
        };
        let told = event(u64::from(bytes), "www.example.org", 16, false);
        check(DNS, &[2, 53, 0, 0, 0, server, bytes, 0], &[(RAW, &payload)], told);
        // What is beyond the packet is padding and no part of it.
        check(DNS, &[2, 53, 0, 0, 0, server, 20, 0], &[(RAW, &payload)], event(20, "", 0, false));
        check(DNS, &[2, 53, 0, 0, 0, server, 9000, 1], &[(RAW, b"")], event(9000, "", 0, true));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert_eq!(decode(&bytes_of(999, &[], &[])), Err(Malformed::Kind(999)));
    }

    #[test]
    fn texts_stay_bounded() {
        let text = bounded("\u{fffd}".repeat(TEXT_BYTES_MAX));
        assert!(text.len() <= TEXT_BYTES_MAX && text.len() > TEXT_BYTES_MAX - 3);
    }
}
