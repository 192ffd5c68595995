//! Files that verbs read, within bounds.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Reads a text of at most `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<String> {
    let what = || format!("reading {}", path.display());
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).with_context(what)?;
    if !file.metadata().with_context(what)?.is_file() {
        bail!("{}: not a regular file", path.display());
    }
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text).with_context(what)?;
    if text.len() as u64 > most {
        bail!("{}: larger than {most} bytes", path.display());
    }
    Ok(text)
}

/// Opening a FIFO must not wait for somebody to write.
const O_NONBLOCK: i32 = 0o4000;
