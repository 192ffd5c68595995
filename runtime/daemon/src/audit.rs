//! The audit log: files that are only ever added to, each line sealed to the one before ([`apex_core::audit`]), also from one file to the next. A full one gets a number and
//! stays; nothing here removes one.
//!
//! A record that cannot be written fails the operation that it is about: nothing changes unrecorded.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use apex_core::access::Operation;
use apex_core::audit::{
    Actor, Anchors, Broken, Chain, LINE_BYTES_MAX, Outcome, Record, Target, Verdict, goes_on_after, verify,
};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::json;

use crate::trail::{self, Lines};

/// Bytes of a file before the next is begun.
const FILE_BYTES_MAX: u64 = 64 << 20;

use crate::say::{self, Level};

/// The open log.
pub struct Audit {
    path: PathBuf,
    bytes_max: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// What of the file are whole lines.
    length: u64,
    /// Whether something stands behind them that could not be taken away.
    is_torn: bool,
    chain: Chain,
    /// The number of the newest full file; 0 for none.
    number: u64,
    /// Up to where the disk has given the file room.
    room: u64,
}

/// Bytes that are asked of the disk at once, and how few of them may be left: the lines of every request that may be under way.
const ROOM_BYTES: u64 = 4 << 20;
const ROOM_BYTES_MIN: u64 = 2 << 20;

impl Audit {
    /// Opens it and goes on behind its last line. What a dying machine left of a line was never acknowledged: it is cut off, and said. Any other damage is an
    /// error: a person decides what is done about it.
    pub fn open(path: &Path) -> Result<Audit> {
        Audit::with_size(path, FILE_BYTES_MAX)
    }

    fn with_size(path: &Path, bytes_max: u64) -> Result<Audit> {
        let inner = Inner::open(path).with_context(|| {
            format!(
                "opening the audit log {}; `apex audit verify` tells more, moving it away with its older files begins a new one",
                path.display()
            )
        })?;
        Ok(Audit { path: path.to_owned(), bytes_max, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record.
    pub fn add(&self, record: &Record) -> Result<()> {
        let mut inner = self.inner();
        if inner.length >= self.bytes_max {
            inner.next_file(&self.path).with_context(|| format!("beginning a new file for {}", self.path.display()))?;
        }
        let write = |inner: &mut Inner| -> Result<()> {
            if inner.length == 0 && inner.number > 0 {
                let going_on = inner.going_on(record, &self.path);
                inner.write(&going_on)?;
            }
            inner.write(record)
        };
        let head = inner.chain.head().sha256.clone();
        write(&mut inner)
            .with_context(|| format!("writing to the audit log {} (its head was {head})", self.path.display()))
    }

    /// Has the disk keep room for the records to come, so that what is about to be done can be written down when it is.
    pub fn make_room(&self) -> Result<()> {
        let mut inner = self.inner();
        if inner.room >= inner.length + ROOM_BYTES_MIN {
            return Ok(());
        }
        let length = i64::try_from(ROOM_BYTES).unwrap_or(i64::MAX);
        let from = i64::try_from(inner.length).context("the audit log has no end")?;
        match fallocate(&inner.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length) {
            Ok(()) => inner.room = inner.length + ROOM_BYTES,
            // This file system cannot promise anything: the write itself tells.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("keeping room for the audit log {}", self.path.display()));
            }
        }
        Ok(())
    }

    /// The last lines, oldest first. Reads files: not for a thread that serves others.
    pub fn tail(&self, count: usize) -> Result<Vec<String>> {
        let (older, (mut file, length), _) = self.look()?;
        let mut lines = trail::last_lines(&mut file, length, count)?;
        for path in older.iter().rev() {
            if lines.len() >= count {
                break;
            }
            let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            let length = file.metadata()?.len();
            let mut before = trail::last_lines(&mut file, length, count - lines.len())?;
            before.append(&mut lines);
            lines = before;
        }
        Ok(lines)
    }

    /// Looks whether every line follows from the one before, over all files. Reads them whole, a line at a time: not for a thread that serves others.
    pub fn verify(&self) -> Result<Result<Checked, Broken>> {
        // The head that this process has written shows a log that was cut off since.
        let (older, newest, head) = self.look()?;
        let are_several = !older.is_empty();
        let mut lines = Lines::new(older, newest);
        // Older files may be kept elsewhere: then it begins where the first of these says.
        let after = lines.peek().and_then(goes_on_after);
        let begins_at = after.as_ref().map(|after| after.sequence + 1);
        let judged = verify(&mut lines, &Anchors { after, head_sha256: Some(head) });
        let place = lines.place();
        if let Some(error) = lines.error {
            return Err(error).with_context(|| format!("reading the audit log behind {place}"));
        }
        Ok(match judged {
            Ok(verdict) => Ok(Checked { verdict, begins_at }),
            Err(broken) if are_several => Err(Broken { words: format!("({place}) {}", broken.words), ..broken }),
            Err(broken) => Err(broken),
        })
    }

    /// The files, oldest first, and the newest up to where it is whole, with the hash of its last line.
    fn look(&self) -> Result<(Vec<PathBuf>, (File, u64), String)> {
        let inner = self.inner();
        let numbers = trail::numbers(&self.path).with_context(|| format!("listing {}", self.path.display()))?;
        let older = numbers.into_iter().map(|number| trail::numbered(&self.path, number)).collect();
        let file = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        // As it is, not as it was written: whoever added something to it is found.
        let length = if inner.is_torn { inner.length } else { file.metadata()?.len() };
        Ok((older, (file, length), inner.chain.head().sha256.clone()))
    }
}
/// A log that is whole.
#[derive(Debug)]
pub struct Checked {
    pub verdict: Verdict,
    /// The number of its first record, where older files are not there.
    pub begins_at: Option<u64>,
}

impl Inner {
    fn open(path: &Path) -> Result<Inner> {
        let mut file = create(path)?;
        mend_end(&mut file, path)?;
        let number = trail::numbers(path)?.last().copied().unwrap_or(0);
        let last = match last_line(&mut file)? {
            // It was just begun, or an end came between two files.
            None if number > 0 => {
                let older = trail::numbered(path, number);
                last_line(&mut File::open(&older)?).with_context(|| older.display().to_string())?
            }
            other => other,
        };
        let chain = match last {
            Some(line) => Chain::resume(&line).map_err(|broken| anyhow::anyhow!("its last line: {}", broken.words))?,
            None => Chain::new(),
        };
        let length = file.metadata()?.len();
        Ok(Inner { file, length, is_torn: false, chain, number, room: 0 })
    }

    /// Gives the full file the number of its last record, and begins another.
    fn next_file(&mut self, path: &Path) -> Result<()> {
        let number = self.chain.head().sequence;
        let full = trail::numbered(path, number);
        // Renaming would replace what is there.
        if full.exists() {
            anyhow::bail!("{} is there already; move it away", full.display());
        }
        std::fs::rename(path, &full)?;
        match create(path) {
            Ok(file) => {
                (self.file, self.length, self.number, self.room) = (file, 0, number, 0);
                Ok(())
            }
            Err(error) => {
                // The log stays where it is looked for.
                std::fs::rename(&full, path)?;
                Err(error)
            }
        }
    }

    /// The first record of a file that is not the first: which was before it, and how that ended.
    fn going_on(&self, next: &Record, path: &Path) -> Record {
        let older = trail::numbered(path, self.number);
        let file = older.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let head = self.chain.head();
        Record {
            time_ms: next.time_ms,
            actor: Actor { uid: nix::unistd::geteuid().as_raw(), pid: 0, roles: Vec::new() },
            operation: Operation::Audit,
            target: Target::default(),
            outcome: Outcome::Allowed,
            reason: format!("the log goes on from {file}"),
            before: json!({"file": file, "records": head.sequence, "head_sha256": head.sha256}),
            after: json!(null),
        }
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        if self.is_torn {
            self.file.set_len(self.length).context("taking away half a line that was left by a failure before")?;
            self.is_torn = false;
        }
        let before = self.chain.clone();
        let mut line = self.chain.seal(record);
        line.push('\n');
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.chain = before;
            // A part of a line would break the chain for whoever reads it.
            self.is_torn = self.file.set_len(self.length).is_err();
            return Err(error.into());
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

fn create(path: &Path) -> Result<File> {
    Ok(File::options().create(true).append(true).read(true).mode(0o600).open(path)?)
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
        assert_eq!(audit.verify().unwrap().unwrap().verdict.records, records);
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

    /// A log of several files, in a directory of its own, with `records` records that were asked for.
    fn rotated(name: &str, records: u64) -> (PathBuf, PathBuf) {
        let dir = std::env::temp_dir().join(format!("apexd-audit-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("audit.jsonl");
        for number in 1..=records {
            // As if the daemon had been started anew for each.
            Audit::with_size(&path, 2000).unwrap().add(&record(number)).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn full_files_are_numbered_and_the_chain_goes_on() {
        let (dir, path) = rotated("rotated", 12);
        let numbers = trail::numbers(&path).unwrap();
        assert!(numbers.len() > 2 && numbers[0] > 1, "{numbers:?}");
        let audit = Audit::with_size(&path, 2000).unwrap();
        let checked = audit.verify().unwrap().unwrap();
        assert_eq!(checked.verdict.records, 12 + numbers.len() as u64, "each file but the first begins with one more");
        assert_eq!(checked.begins_at, None);
        let text = std::fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let before = std::fs::read_to_string(trail::numbered(&path, *numbers.last().unwrap())).unwrap();
        let last: serde_json::Value = serde_json::from_str(before.lines().last().unwrap()).unwrap();
        assert_eq!(first["unmapped"]["before"]["head_sha256"], last["unmapped"]["sha256"]);
        // The newest lines come from as many files as it takes.
        let tail = audit.tail(8).unwrap();
        assert_eq!(tail.len(), 8);
        assert!(tail[7].contains("number 12") && !tail[0].contains("number 12"), "{tail:?}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn older_files_may_be_elsewhere_and_one_that_is_missing_or_changed_in_the_middle_shows() {
        let (dir, path) = rotated("missing", 12);
        let verify = || Audit::with_size(&path, 2000).unwrap().verify().unwrap();
        let numbers = trail::numbers(&path).unwrap();
        let second = trail::numbered(&path, numbers[1]);
        let text = std::fs::read_to_string(&second).unwrap();
        std::fs::remove_file(&second).unwrap();
        assert!(verify().is_err());
        let changed = text.replacen("number", "Number", 1);
        assert_ne!(changed, text);
        std::fs::write(&second, changed).unwrap();
        let broken = verify().unwrap_err();
        assert!(broken.words.contains(second.file_name().unwrap().to_str().unwrap()), "{}", broken.words);
        std::fs::write(&second, text).unwrap();
        std::fs::remove_file(trail::numbered(&path, numbers[0])).unwrap();
        let begins_at = verify().unwrap().begins_at.unwrap();
        assert_eq!(begins_at, numbers[0] + 1);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_end_between_two_files_goes_on_in_the_next() {
        let (dir, path) = rotated("between", 5);
        std::fs::rename(&path, trail::numbered(&path, 90)).unwrap();
        Audit::with_size(&path, 2000).unwrap().add(&record(6)).unwrap();
        assert!(Audit::open(&path).unwrap().verify().unwrap().is_ok());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
