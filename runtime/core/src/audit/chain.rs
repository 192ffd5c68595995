//! Lines sealed to each other. Input: records, or lines as they were read; output: lines, or what was found of a trail. One line is held at a
//! time, whatever the length of the trail. What is hashed is said in the module's header. Must not accept a line that it would not write so.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Record, event};

/// The hash before the first line.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Most bytes of a line, its end excluded.
pub const LINE_BYTES_MAX: usize = 256 << 10;

const SEAL: &str = ",\"sha256\":\"";
const END: &str = "\"}}";
const HEX: usize = 64;

/// The end of a trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of its last record, from 1; 0 for none yet.
    pub sequence: u64,
    /// Hash of its last line.
    pub sha256: String,
}

impl Head {
    /// The head of a trail without a record.
    pub fn genesis() -> Head {
        Head { sequence: 0, sha256: GENESIS.to_owned() }
    }
}

/// A trail that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    head: Head,
}

impl Default for Chain {
    fn default() -> Self {
        Chain::new()
    }
}

impl Chain {
    /// A trail without a record.
    pub fn new() -> Chain {
        Chain { head: Head::genesis() }
    }

    /// Goes on after a line, also into another file.
    ///
    /// # Errors
    /// A line that is not whole: the daemon was stopped while it wrote, or it was edited. The words say which.
    pub fn resume(last_line: &str) -> Result<Chain, Broken> {
        let sealed = unseal(last_line.as_bytes()).map_err(|words| Broken { line: 1, words })?;
        Ok(Chain { head: sealed.head })
    }

    /// The end of the trail, to be noted elsewhere.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The line of the next record, without a line end.
    pub fn seal(&mut self, record: &Record) -> String {
        let sequence = self.head.sequence.saturating_add(1);
        let activity = event::activity(record, sequence, &self.head.sha256);
        let text = serde_json::to_string(&activity).expect("texts, numbers and values of JSON are representable");
        let body = text.strip_suffix("}}").expect("the event ends with its object `unmapped`");
        let sha256 = digest(body.as_bytes());
        let line = format!("{body}{SEAL}{sha256}{END}");
        self.head = Head { sequence, sha256 };
        line
    }
}

/// What is known of a trail from elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchors {
    /// The end of what comes before the first line, where the trail was begun in an older file; `None` for the first line ever.
    pub after: Option<Head>,
    /// A hash that was noted as the head once: its line must be there. Without it a missing end cannot be seen.
    pub head_sha256: Option<String>,
}

/// A trail that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How many lines.
    pub records: u64,
    /// Hash of the last one, or what was before the first.
    pub head_sha256: String,
}

/// A trail that is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("audit trail broken at line {line}: {words}")]
pub struct Broken {
    /// Where, from 1; one past the last for an end that is missing.
    pub line: u64,
    /// What was found, what that means, what to do.
    pub words: String,
}

/// What came before the first line of a file that goes on where an older one ended, as its record says and the seal of the line repeats. `None` for any other line.
/// That nothing else came before is only known with the older file.
pub fn goes_on_after(line: &[u8]) -> Option<Head> {
    let sealed = unseal(line).ok()?;
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    let is_named = event["unmapped"]["before"]["head_sha256"] == sealed.prev_sha256.as_str();
    let sequence = sealed.head.sequence.checked_sub(1)?;
    is_named.then_some(Head { sequence, sha256: sealed.prev_sha256 })
}

/// Checks a trail, line by line without line ends.
///
/// # Errors
/// The first line that was edited, that does not follow the one before it, or at which the noted head is missing.
pub fn verify<I>(lines: I, anchors: &Anchors) -> Result<Verdict, Broken>
where
    I: IntoIterator,
    I::Item: AsRef<[u8]>,
{
    let mut head = anchors.after.clone().unwrap_or_else(Head::genesis);
    let mut is_head_met = anchors.head_sha256.as_ref().is_none_or(|noted| *noted == head.sha256);
    let mut records = 0;
    for line in lines {
        let number = records + 1;
        let broken = |words| Broken { line: number, words };
        let sealed = unseal(line.as_ref()).map_err(broken)?;
        follows(&sealed, &head, records).map_err(broken)?;
        is_head_met |= anchors.head_sha256.as_ref() == Some(&sealed.head.sha256);
        (head, records) = (sealed.head, number);
    }
    if !is_head_met {
        let noted = anchors.head_sha256.as_deref().unwrap_or_default();
        let words = format!(
            "the trail ends without the record whose hash was noted ({noted}): its end was cut off, or all of it was written anew; \
             compare with a copy"
        );
        return Err(Broken { line: records + 1, words });
    }
    Ok(Verdict { records, head_sha256: head.sha256 })
}

/// Whether a line comes right after `head`.
fn follows(sealed: &Sealed, head: &Head, records: u64) -> Result<(), String> {
    let expected = head.sequence.saturating_add(1);
    let found = sealed.head.sequence;
    if found > expected && records == 0 {
        return Err(format!(
            "the first record is number {found} and not {expected}: what is before it is missing, or stands in an older \
             file, whose head is then to be given"
        ));
    }
    if found > expected {
        return Err(format!(
            "record {found} stands where {expected} belongs: {} removed or moved",
            missing(found - expected)
        ));
    }
    if found < expected {
        return Err(format!("record {found} stands where {expected} belongs: it was moved or inserted"));
    }
    if sealed.prev_sha256 != head.sha256 {
        return Err(format!(
            "record {found} was sealed to another record than the one before it: that one was replaced, or this one was inserted"
        ));
    }
    Ok(())
}

fn missing(count: u64) -> String {
    format!("{} before it {}", crate::amount::count(count, "record"), if count == 1 { "was" } else { "were" })
}

/// A line whose own hash is right.
struct Sealed {
    head: Head,
    prev_sha256: String,
}

/// What of an event links it.
#[derive(Deserialize)]
struct Links {
    metadata: Sequence,
    unmapped: Previous,
}

#[derive(Deserialize)]
struct Sequence {
    sequence: u64,
}

#[derive(Deserialize)]
struct Previous {
    prev_sha256: String,
}

fn unseal(line: &[u8]) -> Result<Sealed, String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("it has {} bytes, and no record has more than {LINE_BYTES_MAX}", line.len()));
    }
    let cut_short = || "it does not end with its hash: it was edited, or its writing was cut short (as the last line, by a crash: take it away)";
    let body = body(line).ok_or_else(cut_short)?;
    let sha256 = digest(body);
    let stated = &line[body.len() + SEAL.len()..body.len() + SEAL.len() + HEX];
    if stated != sha256.as_bytes() {
        return Err(
            "it was edited after it was written: its hash is that of another text; compare with a copy".to_owned()
        );
    }
    let links: Links = serde_json::from_slice(line).map_err(|error| format!("it is no audit record: {error}"))?;
    let prev_sha256 = links.unmapped.prev_sha256;
    // The bytes that are hashed must end with the link that is followed, and not with another that looks like it.
    if !body.ends_with(format!(",\"prev_sha256\":\"{prev_sha256}\"").as_bytes()) {
        return Err("it is no audit record: `prev_sha256` is not its last key but one".to_owned());
    }
    Ok(Sealed { head: Head { sequence: links.metadata.sequence, sha256 }, prev_sha256 })
}

/// The bytes that are hashed.
fn body(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_suffix(END.as_bytes())?;
    let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(HEX)?)?;
    hex.iter().all(u8::is_ascii_hexdigit).then_some(rest)?.strip_suffix(SEAL.as_bytes())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
