//! A policy learned from what is seen: the learner of `apex-core`, and the file that its policy is written to.
//!
//! Input: events. Output: the file, whole or as it was. The file is read before the sandbox stands, so that one that cannot be merged into
//! stops the start, and again at the end, since lessons of runs at one time all count.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apex_core::amount::count;
use apex_core::escape;
use apex_core::event::Event;
use apex_core::learn::{Learner, Outside, Previous, Stands};
use apex_core::observe::{HEAD_BYTES, interpreter};
use apex_core::policy::FILE_SIZE_MAX;
use apex_core::watch::Learn;

/// Files that are told of on standard error; the policy lists more.
const UNSEEN_TOLD_MAX: usize = 5;
/// Names of a granted tree that are looked at for secrets, nearest first.
const ENTRIES_MAX: usize = 50_000;
/// Secrets of one tree that are denied by name.
const FOUND_MAX: usize = 64;
/// How long another lesson may take to write into the same directory.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// One lesson.
pub struct Lesson {
    learner: Learner,
    learn: Learn,
    file: PathBuf,
}

impl Lesson {
    /// Reads what is to be merged into.
    pub fn open(learn: &Learn) -> Result<Lesson> {
        let lesson = Lesson {
            learner: Learner::new((*learn.setting).clone()),
            learn: learn.clone(),
            file: PathBuf::from(&learn.file),
        };
        lesson.previous()?;
        Ok(lesson)
    }

    /// Takes one event in.
    pub fn observe(&mut self, event: &Event) {
        self.learner.observe(event);
    }

    /// Writes the policy; what is to be told of it.
    pub fn finish(self) -> Result<Vec<String>> {
        // Read again, and nobody else writes meanwhile: another run may have learned into the file since this one began.
        let _lock = lock(&self.file)?;
        let existing = self.previous()?;
        let name = self.learn.file.as_str();
        let learned = self.learner.finish(existing.as_ref().map(|(_, previous)| previous), &Host);
        let text = learned.to_toml(existing.as_ref().map(|(text, _)| (text.as_str(), name)))?;
        write(&self.file, &text).with_context(|| format!("writing the learned policy {name}"))?;
        let mut words: Vec<String> = learned.unseen.iter().take(UNSEEN_TOLD_MAX).map(|path| unseen(path)).collect();
        if let more @ 1.. = learned.unseen.len().saturating_sub(UNSEEN_TOLD_MAX) {
            words.push(format!("{} of this kind; the end of the policy lists them", count(more as u64, "more file")));
        }
        Ok(words)
    }

    /// What the file holds, and what of it was learned.
    fn previous(&self) -> Result<Option<(String, Previous)>> {
        let name = self.learn.file.as_str();
        let text = read(&self.file).with_context(|| format!("reading the learned policy {name}"))?;
        let with_previous = |text: String| {
            let previous = Previous::read(&text, name, &self.learn.setting)?;
            Ok((text, previous))
        };
        text.map(with_previous).transpose()
    }
}

fn unseen(path: &Path) -> String {
    let path = escape::text(&path.to_string_lossy()).into_owned();
    format!("the command looked for {path}, which is there outside and was not shown inside; --ro shows it")
}

/// Held on the directory: the file itself is replaced. A directory that cannot be opened for reading cannot be locked; writing goes on.
fn lock(file: &Path) -> Result<Option<fs::File>> {
    let Some(Ok(dir)) = file.parent().map(fs::File::open) else { return Ok(None) };
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match dir.try_lock() {
            Ok(()) => return Ok(Some(dir)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(LOCK_AGAIN),
            Err(TryLockError::WouldBlock) => bail!(
                "{}: another run holds its directory while it writes, for more than {} s; what this run learned is lost, so learn again",
                file.display(),
                LOCK_WITHIN.as_secs()
            ),
            // A file system without locks.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
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

    fn link(&self, path: &Path) -> Option<PathBuf> {
        fs::read_link(path).ok()
    }

    fn named_below(&self, dir: &Path, names: &[&str]) -> Vec<PathBuf> {
        let (mut found, mut seen) = (Vec::new(), 0);
        let mut pending = VecDeque::from([dir.to_owned()]);
        while let Some(dir) = pending.pop_front() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                seen += 1;
                if seen > ENTRIES_MAX || found.len() == FOUND_MAX {
                    return found;
                }
                if entry.file_name().to_str().is_some_and(|name| names.contains(&name)) {
                    found.push(entry.path());
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push_back(entry.path());
                }
            }
        }
        found
    }

    fn interpreter(&self, path: &Path) -> Option<PathBuf> {
        // Whoever opens a FIFO waits.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()?;
        let mut head = Vec::new();
        file.take(HEAD_BYTES as u64).read_to_end(&mut head).ok()?;
        interpreter(&head).map(Path::to_owned)
    }
}

fn read(file: &Path) -> Result<Option<String>> {
    let about = match fs::symlink_metadata(file) {
        Ok(about) => about,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // It would be replaced, not followed; and who may write to the directory could have made it lead anywhere.
    if about.is_symlink() {
        bail!("it is a symbolic link; name the file that it leads to");
    }
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

/// Under another name first: a policy is never half of one. It keeps the permissions that it had.
fn write(file: &Path, text: &str) -> Result<()> {
    let part = file.with_extension(format!("part-{}", std::process::id()));
    let had = fs::symlink_metadata(file).map(|about| about.permissions().mode() & 0o777).ok();
    let mut new = OpenOptions::new().write(true).create_new(true).mode(had.map_or(0o644, |_| 0o600)).open(&part)?;
    let written = new
        .write_all(text.as_bytes())
        .and_then(|()| had.map_or(Ok(()), |mode| new.set_permissions(fs::Permissions::from_mode(mode))))
        .and_then(|()| new.sync_all())
        .and_then(|()| fs::rename(&part, file));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use apex_core::event::What;
    use apex_core::learn::{Place, Setting};
    use apex_core::policy::{Flags, Inputs, resolve, resolve_for_learning};

    use super::*;

    /// A directory of the test's own.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("apex-lesson-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn learn(file: &Path) -> Learn {
        let groups: Vec<&str> = apex_core::seccomp::groups::iter().map(|group| group.name).collect();
        let inputs = Inputs {
            mode: None,
            profile: None,
            policy_file: None,
            flags: Flags::default(),
            home: Some("/nonexistent/home".into()),
            cwd: "/nonexistent/work".into(),
            tmpdir: None,
            system_config: None,
            user_config: None,
            groups: &groups,
        };
        let mut none = |_: &Path| Ok(None);
        let base = resolve(&inputs, &mut none).unwrap();
        let (run, bounds) = resolve_for_learning(&inputs, &mut none).unwrap();
        let place = Place { profile: None, home: inputs.home.clone(), cwd: inputs.cwd.clone() };
        let setting = Box::new(Setting::new(place, &base, &run, bounds));
        Learn { file: file.to_str().unwrap().to_owned(), setting }
    }

    fn calls(name: &str) -> Event {
        let what = What::Calls { counts: [(name.to_owned(), 1)].into() };
        Event { time_ns: 1, sandbox: 1, pid: 0, ppid: 0, uid: 0, comm: String::new(), what, error: None }
    }

    /// The one that ended last won.
    #[test]
    fn lessons_at_one_time_all_count() {
        let dir = Dir::new("two");
        let learn = learn(&dir.0.join("p.toml"));
        let (mut one, mut other) = (Lesson::open(&learn).unwrap(), Lesson::open(&learn).unwrap());
        one.observe(&calls("socket"));
        other.observe(&calls("pipe2"));
        one.finish().unwrap();
        other.finish().unwrap();
        let text = fs::read_to_string(&learn.file).unwrap();
        for word in ["\"sockets\"", "\"ipc\"", "runs = 2"] {
            assert!(text.contains(word), "{word}\n{text}");
        }
    }

    #[test]
    fn a_policy_keeps_its_permissions_and_a_link_is_not_replaced() {
        let dir = Dir::new("mode");
        let file = dir.0.join("p.toml");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        Lesson::open(&learn(&file)).unwrap().finish().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&file).unwrap().contains("runs = 1"));
        let link = dir.0.join("link.toml");
        symlink("p.toml", &link).unwrap();
        let error = Lesson::open(&learn(&link)).err().unwrap();
        assert!(format!("{error:#}").contains("name the file that it leads to"), "{error:#}");
    }
}
