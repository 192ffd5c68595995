//! What broken and hostile clients send over the socket of apexd, from a seed: the same seed sends the same bytes.
//!
//! Only the standard library: the tests of `apex-api` include this file, so that the server in memory and the real daemon hear the same.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// After this a server that neither answers nor hangs up counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a server that waits for more is left waiting.
const MOMENT: Duration = Duration::from_millis(5);
/// What makes an answer the last one.
const CLOSE: &str = "Connection: close\r\n";

/// Numbers that look random (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub const fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % end.max(1) as u64).unwrap_or(0)
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Bytes, fewer than `end`.
    pub fn bytes(&mut self, end: usize) -> Vec<u8> {
        let count = self.below(end);
        (0..count).map(|_| self.number() as u8).collect()
    }

    /// Changes a few bytes: turned, lost, doubled, cut off.
    pub fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 if !bytes.is_empty() => bytes[at] = self.number() as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 if !bytes.is_empty() => drop(bytes.remove(at)),
                3 => bytes.truncate(at),
                _ => {
                    let more = bytes[at.min(bytes.len())..].to_vec();
                    bytes.extend(more.into_iter().take(64));
                }
            }
        }
    }
}

/// The routes that take a body, and some that do not.
pub const ROUTES: [(&str, &str); 18] = [
    ("POST", "/v1/sandboxes"),
    ("GET", "/v1/sandboxes"),
    ("GET", "/v1/sandboxes/ID"),
    ("DELETE", "/v1/sandboxes/ID"),
    ("PUT", "/v1/sandboxes/ID/mode"),
    ("PUT", "/v1/sandboxes/ID/limits"),
    ("POST", "/v1/sandboxes/ID/pause"),
    ("POST", "/v1/sandboxes/ID/resume"),
    ("POST", "/v1/sandboxes/ID/signal"),
    ("POST", "/v1/sandboxes/ID/wait"),
    ("POST", "/v1/sandboxes/ID/kill"),
    ("GET", "/v1/sandboxes/ID/logs"),
    ("GET", "/v1/sandboxes/ID/events"),
    ("GET", "/v1/sandboxes/ID/findings"),
    ("GET", "/v1/audit"),
    ("GET", "/v1/audit/verify"),
    ("GET", "/v1/stats"),
    ("GET", "/metrics"),
];

/// The calls of gRPC.
pub const CALLS: [&str; 20] = [
    "Create",
    "Run",
    "Attach",
    "Wait",
    "List",
    "Inspect",
    "Logs",
    "Events",
    "Findings",
    "SetMode",
    "SetLimits",
    "Pause",
    "Resume",
    "Signal",
    "Kill",
    "Remove",
    "AuditTail",
    "AuditVerify",
    "Tree",
    "Stats",
];

/// Fields of messages, and one that none has.
const FIELDS: [&str; 26] = [
    "name",
    "mode",
    "profile",
    "policy_toml",
    "command",
    "env",
    "cwd",
    "ro",
    "rw",
    "tmpfs",
    "deny",
    "optional",
    "net",
    "limits",
    "watch",
    "on_finding",
    "labels",
    "workdir",
    "reason",
    "signal",
    "memory",
    "tasks",
    "cpu",
    "time",
    "id",
    "no",
];

/// Texts that others stumbled over.
const TEXTS: [&str; 24] = [
    "",
    "isolation",
    "hybrid",
    "development",
    "../../../etc/passwd",
    "/",
    "/proc/self/environ",
    "a\u{0}b",
    "--keep=3",
    "--",
    "\r\nX: y",
    "%00",
    "%2e%2e%2f",
    "\u{202e}\u{feff}",
    "💥",
    "true",
    "18446744073709551616",
    "-1",
    "1e999",
    "NaN",
    "none",
    "freeze",
    "\u{1b}]0;x\u{7}",
    "extends = [\"/etc/shadow\"]",
];

/// A text, now and then a long one.
fn text(dice: &mut Dice) -> String {
    match dice.below(12) {
        0 => "a".repeat(dice.below(200_000)),
        1 => String::from_utf8_lossy(&dice.bytes(64)).into_owned(),
        _ => dice.of(&TEXTS).to_owned(),
    }
}

/// A text as JSON writes it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter < ' ' => quoted.push_str(&format!("\\u{:04x}", letter as u32)),
            letter => quoted.push(letter),
        }
    }
    quoted + "\""
}

/// Any JSON, with the names that messages have; at times what is nearly JSON.
pub fn json(dice: &mut Dice, depth: usize) -> String {
    match dice.below(if depth > 4 { 9 } else { 12 }) {
        0 => dice.of(&["null", "true", "false", "[]", "{}", "", "0"]).to_owned(),
        1 => dice
            .of(&["-0", "1e400", "99999999999999999999999", "-9223372036854775809", "0.1", "15", "2147483648"])
            .to_owned(),
        2 => {
            dice.of(&["NaN", "{a:1}", "'x'", "[1,]", "/**/1", "\u{feff}{}", "\"\\ud800\"", "\"\\x\"", "01"]).to_owned()
        }
        3..=6 => quoted(&text(dice)),
        7 | 8 => format!("[{}]", quoted(dice.of(&["true", "/bin/true", "sh", "A=b", "/tmp"]))),
        9 => {
            let items: Vec<String> = (0..dice.below(5)).map(|_| json(dice, depth + 1)).collect();
            format!("[{}]", items.join(","))
        }
        10 if depth == 0 => {
            let deep = dice.below(100_000);
            dice.of(&["[", "{\"limits\":", "[{\"a\":"]).repeat(deep)
        }
        _ => {
            let fields = (0..dice.below(8)).map(|_| format!("{}:{}", quoted(dice.of(&FIELDS)), json(dice, depth + 1)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
    }
}

/// A body for a route: any JSON, one that is nearly right, or bytes.
pub fn body(dice: &mut Dice) -> Vec<u8> {
    let mut body = match dice.below(4) {
        0 => dice.bytes(300),
        1 => {
            let field = dice.of(&FIELDS);
            format!("{{\"command\":[\"/no/such\"],\"optional\":[\"cgroup\"],{}:{}}}", quoted(field), json(dice, 1))
                .into_bytes()
        }
        2 => dice
            .of(&["{\"mode\":\"isolation\"}", "{\"signal\":15}", "{\"limits\":{\"memory\":\"1M\"}}"])
            .as_bytes()
            .to_vec(),
        _ => json(dice, 0).into_bytes(),
    };
    if dice.below(3) == 0 {
        dice.spoil(&mut body);
    }
    body
}

/// A path of a route, its id and query made up; never one of another route.
pub fn path(dice: &mut Dice, route: &str) -> String {
    let ids = ["x", "..%2f..", "%2e%2e", "%ff%fe", "%00", "-", "a%20b", "%f0%9f%92%a5", "0", "fail-conflict", "%25"];
    let id = match dice.below(8) {
        0 => "y".repeat(1 + dice.below(4000)),
        _ => dice.of(&ids).to_owned(),
    };
    let queries = [
        "",
        "?all",
        "?all=maybe",
        "?all=1&all=1",
        "?force",
        "?%00=%00",
        "?tail_bytes=-1",
        "?tail_bytes=18446744073709551615",
        "?limit=4294967296",
        "?limit=3",
        "?stream=stdout",
        "?stream=%ff",
        "?=&=&=",
        "?a=%",
        "?follow=0",
        "?&&&&",
    ];
    format!("{}{}", route.replace("ID", &id), dice.of(&queries))
}

/// A whole request of HTTP/1.1 after which the server hangs up.
pub fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: apexd\r\n{CLOSE}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A conversation of HTTP/1 that breaks its rules: heads, lengths, chunks, pipelines.
pub fn http1(dice: &mut Dice) -> Vec<u8> {
    let (method, route) = dice.of(&ROUTES);
    let path = path(dice, route);
    let body = body(dice);
    let lie = dice.below(2_000_000);
    let many = "X-A: b\r\n".repeat(dice.below(400));
    let long = "z".repeat(dice.below(600_000));
    let chunk = format!("{:x}\r\n", body.len() + dice.below(3));
    let text = String::from_utf8_lossy(&body).into_owned();
    let mut bytes = match dice.below(14) {
        0 => String::from_utf8_lossy(&dice.bytes(400)).into_owned(),
        1 => format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {lie}\r\n\r\n{text}"),
        2 => format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: {lie}\r\n\r\n{text}"),
        3 => format!("{method} {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n{chunk}{text}\r\n"),
        4 => format!("{method} {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{text}"),
        5 => format!("{method} {path} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{text}"),
        6 => "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1 + dice.below(100)),
        7 => format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{many}\r\n"),
        8 => format!("{method} {path} HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
        9 => format!("{method} /{long} HTTP/1.1\r\nHost: a\r\n\r\n"),
        10 => format!("{method} {path} HTTP/1.1\r\n Host: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
        11 => format!("{} {path} HTTP/{}\r\n\r\n", text.escape_default(), dice.of(&["0.9", "1.0", "1.1", "2.0", "9"])),
        12 => format!("CONNECT {path} HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n\r\n"),
        _ => format!("{method} http://user:pw@other:99{path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{text}"),
    }
    .into_bytes();
    if dice.below(3) == 0 {
        dice.spoil(&mut bytes);
    }
    bytes
}

/// Where HTTP/2 begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header that is spelt out (RFC 7541, 6.2.2); both parts are short.
fn header(name: &str, value: &str) -> Vec<u8> {
    let part = |text: &str| [&[(text.len() & 0x7f) as u8], &text.as_bytes()[..text.len() & 0x7f]].concat();
    [vec![0], part(name), part(value)].concat()
}

/// The head of a gRPC call.
fn head(call: &str) -> Vec<u8> {
    let path = format!("/apex.v1.Apex/{call}");
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", &path),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    .iter()
    .flat_map(|(name, value)| header(name, value))
    .collect()
}

/// A conversation of HTTP/2 that breaks its rules: frames of any kind, size and order, floods, calls that never end.
pub fn http2(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    if dice.below(8) != 0 {
        bytes.extend(frame(4, 0, 0, &[]));
    }
    let flood = dice.of(&[1, 1, 1, 3, 300]);
    for at in 0..1 + dice.below(6) {
        let stream = dice.of(&[1, 1, 3, 5, 2, 0, u32::MAX, 0x7fff_ffff]).wrapping_add(at as u32 * 2);
        let payload = dice.bytes(200);
        let some = match dice.below(10) {
            0 => frame(dice.number() as u8, dice.number() as u8, stream, &payload),
            1 => frame(1, 4, stream, &payload),
            2 => [frame(1, 4, stream, &head(dice.of(&CALLS))), frame(3, 0, stream, &[0, 0, 0, 8])].concat(),
            3 => [frame(1, 4, stream, &head(dice.of(&CALLS))), frame(0, dice.of(&[0, 1]), stream, &message(dice))]
                .concat(),
            4 => frame(4, 0, 0, &[0, dice.below(8) as u8, 0xff, 0xff, 0xff, dice.number() as u8]),
            5 => frame(8, 0, stream, &dice.of(&[0_u32, 1, 0x7fff_ffff, u32::MAX]).to_be_bytes()),
            6 => frame(6, 0, 0, &[0; 8]),
            7 => [frame(1, 0, stream, &head("Create")), frame(9, 0, stream, &payload)].concat(),
            8 => frame(1, 4, stream, &[head("List"), header("x", "y").repeat(dice.below(300))].concat()),
            _ => frame(7, 0, 0, &payload),
        };
        bytes.extend(some.repeat(flood));
    }
    if dice.below(4) == 0 {
        let mut rest = bytes.split_off(PREFACE.len());
        dice.spoil(&mut rest);
        bytes.extend(rest);
    }
    bytes
}

/// A number of protobuf, seven bits to a byte.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Fields of protobuf as messages of this API number them, with any wire type, nested now and then.
pub fn protobuf(dice: &mut Dice, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..dice.below(8) {
        let fields = dice.of(&[19, 19, 19, 19, 19, 19, 1 << 28]);
        let field = 1 + dice.below(fields) as u64;
        match dice.below(8) {
            0 => bytes.extend([varint(field << 3), varint(dice.number() >> dice.below(64))].concat()),
            1 => bytes.extend([varint(field << 3 | dice.below(8) as u64), dice.bytes(12)].concat()),
            2 => bytes.extend([varint(field << 3 | 2), varint(dice.number() >> dice.below(64))].concat()),
            3 if depth < 4 => {
                let inner = protobuf(dice, depth + 1);
                bytes.extend([varint(field << 3 | 2), varint(inner.len() as u64), inner].concat());
            }
            4 => bytes.extend(varint(field << 3 | 3).repeat(1 + dice.below(500))),
            _ => {
                let text = text(dice);
                bytes.extend([varint(field << 3 | 2), varint(text.len() as u64), text.into_bytes()].concat());
            }
        }
    }
    if dice.below(4) == 0 {
        dice.spoil(&mut bytes);
    }
    bytes
}

/// A message of gRPC with its head, which may lie about its length or about compression.
pub fn message(dice: &mut Dice) -> Vec<u8> {
    let payload = protobuf(dice, 0);
    let length = match dice.below(12) {
        0 => dice.number() as u32,
        1 => payload.len() as u32 + 1,
        _ => payload.len() as u32,
    };
    let flag = if dice.below(20) == 0 { dice.number() as u8 } else { 0 };
    [&[flag], &length.to_be_bytes()[..], &payload].concat()
}

/// Says it, and hears the answer to its end. `None` when the server neither answers nor hangs up: it hangs.
///
/// Whoever waits for more is told after a moment that nothing comes. Not at once: a client that has closed its side is gone to the server, and gets no answer.
pub fn say(socket: &Path, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream.set_write_timeout(Some(PATIENCE)).expect("it is a socket");
    match stream.write_all(bytes) {
        Err(error) if is_timeout(&error) => return None,
        // It may hang up in the middle of what it does not want to hear, and still have said why.
        Ok(()) | Err(_) => {}
    }
    let mut heard = Vec::new();
    let moment = if is_whole(bytes) { PATIENCE } else { MOMENT };
    if hear(&mut stream, moment, &mut heard) {
        return Some(heard);
    }
    let _ = stream.shutdown(Shutdown::Write);
    hear(&mut stream, PATIENCE, &mut heard).then_some(heard)
}

/// Whether this is what [`request`] makes.
fn is_whole(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(8 << 10)];
    head.windows(CLOSE.len()).any(|window| window == CLOSE.as_bytes())
}

/// To the end of what is said; `false` when nothing comes for so long.
fn hear(stream: &mut UnixStream, patience: Duration, heard: &mut Vec<u8>) -> bool {
    stream.set_read_timeout(Some(patience)).expect("it is a socket");
    let mut chunk = vec![0; 64 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return true,
            Ok(count) => heard.extend(&chunk[..count]),
            Err(error) => return !is_timeout(&error),
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The status of an answer of HTTP/1; `None` for anything else.
pub fn status(answer: &[u8]) -> Option<u16> {
    let head = std::str::from_utf8(answer.get(..12)?).ok()?;
    head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?.parse().ok()
}
