//! The question of a message to a name server (RFC 1035).
//!
//! Input: the first bytes of a payload, chosen by the sandbox. Output: name and type of the first question. Nothing is followed: a question that
//! is cut, compressed or longer than a name may be is none.

use crate::event::{Address, What};

/// Bytes of a payload that are enough: the length that TCP has in front, the header, the longest name, type and class.
pub const PAYLOAD_BYTES_MAX: usize = 2 + HEADER_BYTES + NAME_BYTES_MAX + 4;

/// The port of name servers.
pub const PORT: u16 = 53;

const HEADER_BYTES: usize = 12;
/// Longest name in its form on the wire (RFC 1035, 2.3.4).
const NAME_BYTES_MAX: usize = 255;
/// Longest label; the bits above it mean something else.
const LABEL_BYTES_MAX: usize = 63;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name as text, without the dot at its end; `.` for the root.
    pub name: String,
    /// QTYPE.
    pub qtype: u16,
}

/// The event of a packet to a name server. `payload` is its beginning, of `bytes` in all.
pub fn event(address: Address, bytes: u64, payload: &[u8], tcp: bool) -> What {
    let (qname, qtype) = match question(payload, tcp) {
        Some(question) => (question.name, u64::from(question.qtype)),
        None => (String::new(), 0),
    };
    What::Dns { address, bytes, qname, qtype, tcp }
}

/// The first question of a datagram, or of a segment of a TCP connection that begins with a message.
pub fn question(payload: &[u8], tcp: bool) -> Option<Question> {
    let message = if tcp { payload.get(2..)? } else { payload };
    // QDCOUNT.
    if message.get(4..6)? == [0, 0] {
        return None;
    }
    let mut rest = message.get(HEADER_BYTES..)?;
    let mut name = String::new();
    let mut bytes = 0;
    loop {
        let (length, after) = rest.split_first()?;
        let length = usize::from(*length);
        bytes += 1 + length;
        if length > LABEL_BYTES_MAX || bytes > NAME_BYTES_MAX {
            return None;
        }
        let (label, after) = after.split_at_checked(length)?;
        rest = after;
        if label.is_empty() {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        label.iter().for_each(|byte| push(&mut name, *byte));
    }
    if name.is_empty() {
        name.push('.');
    }
    let qtype = rest.first_chunk::<2>()?;
    Some(Question { name, qtype: u16::from_be_bytes(*qtype) })
}

/// A byte of a label as text.
fn push(name: &mut String, byte: u8) {
    match byte {
        b'.' | b'\\' => name.extend(['\\', char::from(byte)]),
        b'!'..=b'~' => name.push(char::from(byte)),
        _ => name.push_str(&format!("\\{byte:03}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(labels: &[&[u8]], qtype: u16) -> Vec<u8> {
        let mut bytes = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(*label);
        }
        bytes.push(0);
        bytes.extend(qtype.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    fn check(labels: &[&[u8]], expected: &str) {
        let question = question(&message(labels, 16), false);
        assert_eq!(question, Some(Question { name: expected.to_owned(), qtype: 16 }));
    }

    #[test]
    fn names_are_read() {
        check(&[b"www", b"Example", b"org"], "www.Example.org");
        check(&[], ".");
        check(&[b"a.b", b"\0\xff\\ "], r"a\.b.\000\255\\\032");
        let mut over_tcp = vec![0, 40];
        over_tcp.extend(message(&[b"x"], 1));
        assert_eq!(question(&over_tcp, true), Some(Question { name: "x".to_owned(), qtype: 1 }));
    }

    #[test]
    fn what_is_cut_compressed_or_too_long_is_no_question() {
        let whole = message(&[b"www", b"example", b"org"], 1);
        for end in 0..whole.len() - 2 {
            assert_eq!(question(&whole[..end], false), None, "cut at {end}");
        }
        let mut pointer = whole.clone();
        pointer[12] = 0xc0;
        assert_eq!(question(&pointer, false), None);
        let mut none = whole.clone();
        none[5] = 0;
        assert_eq!(question(&none, false), None);
        let label = [b'a'; 63];
        assert!(question(&message(&[&label, &label, &label, &label[..61]], 1), false).is_some());
        let longest = message(&[&label, &label, &label, &label[..62]], 1);
        assert_eq!(question(&longest, false), None);
        assert!(longest.len() < PAYLOAD_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
            if let Some(question) = question(&bytes, tcp) {
                prop_assert!(question.name.len() <= 4 * NAME_BYTES_MAX);
            }
        }
    }
}
