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

/// The open log.
pub struct Audit {
    path: PathBuf,
    inner: Mutex<(File, Chain)>,
}

impl Audit {
    /// Opens it and goes on behind its last line. A line that a dying machine left half is an error: a person decides what is done about it.
    pub fn open(path: &Path) -> Result<Audit> {
        let open = || -> Result<(File, Chain)> {
            let mut file = File::options().create(true).append(true).read(true).mode(0o600).open(path)?;
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
