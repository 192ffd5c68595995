//! The audit log: a file that is only ever added to, each line sealed to the one before ([`apex_core::audit`]).
//!
//! A record that cannot be written fails the operation that it is about: nothing changes unrecorded.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use apex_core::audit::{Anchors, Broken, Chain, LINE_BYTES_MAX, Record, Verdict, verify};

use crate::say::{self, Level};

/// The open log.
pub struct Audit {
    path: PathBuf,
    inner: Mutex<(File, Chain)>,
}

impl Audit {
    /// Opens it and goes on behind its last line. What a dying machine left of a line was never acknowledged: it is cut off, and said. Any other damage is an
    /// error: a person decides what is done about it.
    pub fn open(path: &Path) -> Result<Audit> {
        let open = || -> Result<(File, Chain)> {
            let mut file = File::options().create(true).append(true).read(true).mode(0o600).open(path)?;
            mend_end(&mut file, path)?;
            let last = last_line(&mut file)?;
            let chain = match last {
                Some(line) => {
                    Chain::resume(&line).map_err(|broken| anyhow::anyhow!("its last line: {}", broken.words))?
                }
                None => Chain::new(),
            };
            Ok((file, chain))
        };
        let inner = open().with_context(|| {
            format!(
                "opening the audit log {}; `apex audit verify` tells more, moving it away begins a new one",
                path.display()
            )
        })?;
        Ok(Audit { path: path.to_owned(), inner: Mutex::new(inner) })
    }

    /// Adds a record.
    pub fn add(&self, record: &Record) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, chain) = &mut *inner;
        let before = chain.head().clone();
        let mut line = chain.seal(record);
        line.push('\n');
        let end = file.seek(SeekFrom::End(0)).unwrap_or(0);
        file.write_all(line.as_bytes())
            .with_context(|| {
                // A part of a line would break the chain for whoever reads it.
                let _ = file.set_len(end);
                format!("writing to the audit log {} (its head stays {})", self.path.display(), before.sha256)
            })
            .inspect_err(|_| *chain = resume(&self.path).unwrap_or_default())
    }

    /// The last lines, oldest first.
    pub fn tail(&self, count: usize) -> Result<Vec<String>> {
        let file = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        let mut lines = std::collections::VecDeque::with_capacity(count.min(1024));
        for line in BufReader::new(file).lines() {
            if lines.len() == count {
                lines.pop_front();
            }
            lines.push_back(line?);
        }
        Ok(lines.into())
    }

    /// Looks whether every line follows from the one before.
    pub fn verify(&self) -> Result<Result<Verdict, Broken>> {
        let file = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        let head = self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.head().sha256.clone();
        let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
        // The head that this process has written shows a log that was cut off since.
        Ok(verify(lines, &Anchors { after: None, head_sha256: Some(head) }))
    }
}

fn resume(path: &Path) -> Option<Chain> {
    let last = last_line(&mut File::open(path).ok()?).ok()??;
    Chain::resume(&last).ok()
}

/// Gives the file whole lines. A last line that lacks no more than its end stays.
fn mend_end(file: &mut File, path: &Path) -> Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(LINE_BYTES_MAX as u64 + 1);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    (&mut *file).take(length - from).read_to_end(&mut bytes)?;
    if bytes.is_empty() || bytes.last() == Some(&b'\n') {
        return Ok(());
    }
    let start = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let part = &bytes[start..];
    if std::str::from_utf8(part).is_ok_and(|line| Chain::resume(line).is_ok()) {
        file.write_all(b"\n")?;
        return Ok(());
    }
    say::line(
        Level::Warning,
        "audit",
        None,
        format_args!("{}: its last line was never finished and is cut off ({} bytes)", path.display(), part.len()),
    );
    Ok(file.set_len(from + start as u64)?)
}

fn last_line(file: &mut File) -> Result<Option<String>> {
    let length = file.seek(SeekFrom::End(0))?;
    if length == 0 {
        return Ok(None);
    }
    let from = length.saturating_sub(LINE_BYTES_MAX as u64 + 1);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length - from).read_to_end(&mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        anyhow::bail!("its last line has no end: whoever wrote it was stopped in the middle");
    }
    let start = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(Some(String::from_utf8(bytes.split_off(start)).context("its last line is no text")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apex_core::access::Operation;
    use apex_core::audit::{Actor, Outcome, Target};
    use serde_json::json;

    fn record(number: u64) -> Record {
        Record {
            time_ms: number,
            actor: Actor { uid: 0, pid: 1, roles: Vec::new() },
            operation: Operation::Kill,
            target: Target::default(),
            outcome: Outcome::Allowed,
            reason: format!("number {number}"),
            before: json!(null),
            after: json!(null),
        }
    }

    fn written(name: &str) -> (PathBuf, String) {
        let path = std::env::temp_dir().join(format!("apexd-audit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let audit = Audit::open(&path).unwrap();
        (1..=3).for_each(|number| audit.add(&record(number)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        (path, text)
    }

    /// The log is opened with this content, one more record is added, and this many stand in it, each following from the one before.
    #[track_caller]
    fn check(path: &Path, content: &str, records: u64) {
        std::fs::write(path, content).unwrap();
        let audit = Audit::open(path).unwrap();
        audit.add(&record(9)).unwrap();
        assert_eq!(audit.verify().unwrap().unwrap().records, records);
    }

    #[test]
    fn a_line_that_was_never_finished_is_cut_off() {
        let (path, text) = written("torn");
        check(&path, &text, 4);
        check(&path, &text[..text.len() - 40], 3);
        check(&path, text.trim_end(), 4);
        check(&path, &text.lines().next().unwrap()[..30], 1);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn other_damage_is_an_error() {
        let (path, text) = written("damage");
        let last = text.lines().last().unwrap();
        std::fs::write(&path, text.replace(last, "not a record")).unwrap();
        assert!(Audit::open(&path).is_err());
        std::fs::write(&path, text.replacen("number 2", "number 7", 1)).unwrap();
        let broken = Audit::open(&path).unwrap().verify().unwrap().unwrap_err();
        assert_eq!(broken.line, 2);
        std::fs::remove_file(path).unwrap();
    }
}
