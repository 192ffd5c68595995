//! What a request to make a sandbox may hold at all, whoever asks.
//!
//! Input: the request as it came. Output: nothing, or what is wrong with it. It comes before the rules of access, the audit log and the warden: what cannot be carried
//! out costs none of them anything. Whether the words make sense is the keeper's to say.

use apex_api::v1::{CreateRequest, Limits};
use apex_api::{Error, Kind};

use crate::warden::{PACKET_BYTES_MAX, WORDS_MAX};

/// Bytes of a name.
const NAME_BYTES_MAX: usize = 64;
/// Labels of one sandbox, and bytes of each half.
const LABELS_MAX: usize = 32;
const LABEL_BYTES_MAX: usize = 256;
/// Bytes of the text of a policy.
const POLICY_BYTES_MAX: usize = 256 << 10;
/// What the daemon itself adds to the words of a keeper: options, environment, paths of the state directory.
const OWN_WORDS_MAX: usize = 64;
const OWN_BYTES_MAX: usize = 16 << 10;

fn invalid(words: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, words)
}

/// Whether the request could be carried out at all.
pub fn check(request: &CreateRequest) -> Result<(), Error> {
    if request.command.is_empty() {
        return Err(invalid("there is no command; give one"));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if request.name.len() > NAME_BYTES_MAX || !request.name.bytes().all(is_plain) || request.name.starts_with('-') {
        return Err(invalid(format!(
            "{:?} is no name: at most {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores, not beginning with a dash",
            request.name
        )));
    }
    if request.warm && !request.pool {
        return Err(invalid("warm is for pools: without one there is nothing to be started ahead; give pool as well"));
    }
    let is_long = |text: &String| text.len() > LABEL_BYTES_MAX;
    if request.labels.len() > LABELS_MAX || request.labels.iter().any(|(key, value)| is_long(key) || is_long(value)) {
        return Err(invalid(format!("more than {LABELS_MAX} labels, or one of more than {LABEL_BYTES_MAX} bytes")));
    }
    if request.policy_toml.len() > POLICY_BYTES_MAX {
        return Err(invalid(format!(
            "the policy has more than {POLICY_BYTES_MAX} bytes; extend one that lies in a file"
        )));
    }
    let words = words(request);
    if words.len() > WORDS_MAX - OWN_WORDS_MAX {
        let most = WORDS_MAX - OWN_WORDS_MAX;
        return Err(invalid(format!(
            "command, environment and options come to {} words; at most {most} go",
            words.len()
        )));
    }
    if let Some(word) = words.iter().find(|word| word.contains('\0')) {
        return Err(invalid(format!("{word:?} holds a NUL byte, which no word of a command line or environment can")));
    }
    let bytes: usize = words.iter().map(|word| in_packet(word)).sum();
    if bytes > PACKET_BYTES_MAX - OWN_BYTES_MAX {
        let most = PACKET_BYTES_MAX - OWN_BYTES_MAX;
        return Err(invalid(format!("command, environment and options come to {bytes} bytes; at most {most} go")));
    }
    Ok(())
}

/// Every text that becomes a word of the keeper's command line, or a part of one.
fn words(request: &CreateRequest) -> Vec<&str> {
    let CreateRequest { command, env, ro, rw, tmpfs, deny, optional, .. } = request;
    let lists = [command, env, ro, rw, tmpfs, deny, optional].into_iter().flatten();
    let CreateRequest { profile, cwd, net, workdir, level, .. } = request;
    let mut words: Vec<&str> = lists.chain([profile, cwd, net, workdir, level]).map(String::as_str).collect();
    if let Some(Limits { memory, tasks, cpu, time }) = &request.limits {
        words.extend([memory, tasks, cpu, time].map(String::as_str));
    }
    words
}

/// Bytes of a word in the packet to the warden, which is JSON, with quotes, comma and the name of its option.
fn in_packet(word: &str) -> usize {
    const AROUND: usize = "\"--optional=\",".len();
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    AROUND + word.bytes().map(escaped).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut CreateRequest), expected: &str) {
        let mut request = CreateRequest { command: vec!["true".to_owned()], ..Default::default() };
        assert_eq!(check(&request), Ok(()));
        change(&mut request);
        let error = check(&request).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.words.contains(expected), "{}", error.words);
    }

    #[test]
    fn what_cannot_be_carried_out_is_the_clients_mistake() {
        refused(|request| request.command.clear(), "no command");
        refused(|request| request.command.push("a\0b".to_owned()), "NUL");
        refused(|request| request.env.push("A=\0".to_owned()), "NUL");
        refused(|request| request.cwd = "\0".to_owned(), "NUL");
        refused(|request| request.limits = Some(Limits { time: "\0".to_owned(), ..Default::default() }), "NUL");
        refused(|request| request.command.resize(500_000, "x".to_owned()), "words");
        refused(|request| request.command.push("x".repeat(PACKET_BYTES_MAX)), "bytes");
        refused(|request| request.command.push("\u{1}".repeat(PACKET_BYTES_MAX / 5)), "bytes");
        refused(|request| request.name = "-x".to_owned(), "no name");
        refused(|request| request.name = "a\nb".to_owned(), "no name");
        refused(|request| request.policy_toml = "#".repeat(POLICY_BYTES_MAX + 1), "policy");
        refused(|request| drop(request.labels.insert("k".to_owned(), "v".repeat(300))), "labels");
    }

    /// What passes here passes there.
    #[test]
    fn the_measure_is_that_of_the_packet() {
        for word in ["plain", "a \"quoted\" \\ one", "\u{1}\n\t", "ä💥"] {
            let packed = serde_json::to_string(&format!("--optional={word}")).unwrap().len() + 1;
            assert!(in_packet(word) >= packed, "{word:?}: {} is less than {packed}", in_packet(word));
        }
    }
}
