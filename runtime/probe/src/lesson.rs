//! A policy learned from what is seen: the learner of `apex-core`, and the file that its policy is written to.
//!
//! Input: events. Output: the file, whole or as it was. The file is read before the sandbox stands, so that one that cannot be merged into
//! stops the start.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_core::event::Event;
use apex_core::learn::{Learner, Outside, Previous, Stands};
use apex_core::policy::FILE_SIZE_MAX;
use apex_core::watch::Learn;

/// One lesson.
pub struct Lesson {
    learner: Learner,
    file: PathBuf,
    /// What the file held before, and what of it was learned.
    existing: Option<(String, Previous)>,
}

impl Lesson {
    /// Reads what is to be merged into.
    pub fn open(learn: &Learn) -> Result<Lesson> {
        let file = PathBuf::from(&learn.file);
        let existing = match read(&file).with_context(|| format!("reading the learned policy {}", file.display()))? {
            Some(text) => {
                let previous = Previous::read(&text, &learn.file, &learn.setting)?;
                Some((text, previous))
            }
            None => None,
        };
        Ok(Lesson { learner: Learner::new((*learn.setting).clone()), file, existing })
    }

    /// Takes one event in.
    pub fn observe(&mut self, event: &Event) {
        self.learner.observe(event);
    }

    /// Writes the policy.
    pub fn finish(self) -> Result<()> {
        let previous = self.existing.as_ref().map(|(_, previous)| previous);
        let learned = self.learner.finish(previous, &Host);
        let name = self.file.to_string_lossy().into_owned();
        let text = learned.to_toml(self.existing.as_ref().map(|(text, _)| (text.as_str(), name.as_str())))?;
        write(&self.file, &text).with_context(|| format!("writing the learned policy {name}"))
    }
}

/// The host, as the prober sees it.
struct Host;

impl Outside for Host {
    fn stands(&self, path: &Path) -> Stands {
        match fs::metadata(path) {
            Ok(about) if about.is_dir() => Stands::Dir,
            Ok(_) => Stands::File,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Stands::Nothing,
            Err(_) => Stands::Unknown,
        }
    }
}

fn read(file: &Path) -> Result<Option<String>> {
    let about = match fs::metadata(file) {
        Ok(about) => about,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !about.is_file() {
        bail!("not a regular file");
    }
    let mut text = String::new();
    fs::File::open(file)?.take(FILE_SIZE_MAX as u64 + 1).read_to_string(&mut text)?;
    if text.len() > FILE_SIZE_MAX {
        bail!("larger than {FILE_SIZE_MAX} bytes");
    }
    Ok(Some(text))
}

/// Under another name first: a policy is never half of one.
fn write(file: &Path, text: &str) -> Result<()> {
    let part = file.with_extension(format!("part-{}", std::process::id()));
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&part)?;
    let written = new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).and_then(|()| fs::rename(&part, file));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    Ok(written?)
}
