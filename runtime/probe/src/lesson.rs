//! A policy learned from what is seen: the learner of `apex-core`, and the file that its policy is written to.
//!
//! Input: events. Output: the file, whole or as it was. The file is read before the sandbox stands, so that one that cannot be merged into
//! stops the start, and again at the end, since lessons of runs at one time all count.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::{self, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apex_core::amount::count;
use apex_core::escape;
use apex_core::event::Event;
use apex_core::learn::{Learned, Learner, Outside, PATHS_MAX, Previous, Search, Stands};
use apex_core::observe::{HEAD_BYTES, interpreter};
use apex_core::policy::FILE_SIZE_MAX;
use apex_core::watch::Learn;

/// Paths of a kind that are told of on standard error; the policy lists more.
const TOLD_MAX: usize = 5;
/// Names of a granted tree that are looked at for secrets, nearest first.
const ENTRIES_MAX: usize = 50_000;
/// The same of all trees: who waits for the lesson waits for a minute.
const ENTRIES_ALL_MAX: usize = 500_000;
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
        let learned = self.learner.finish(existing.as_ref().map(|(_, previous)| previous), &Host::default());
        let text = learned.to_toml(existing.as_ref().map(|(text, _)| (text.as_str(), name)))?;
        write(&self.file, &text).with_context(|| format!("writing the learned policy {name}"))?;
        let mut words = told(&learned);
        let variables = self.learn.setting.given.set.iter().map(|name| {
            let name = escape::text(name);
            format!(
                "the value of {name} is not copied into the policy: give it again with --env, or let the policy pass it"
            )
        });
        words.extend(variables);
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

/// What the policy does not hold, for whoever reads standard error.
fn told(learned: &Learned) -> Vec<String> {
    let shown = |path: &PathBuf| escape::text(&path.to_string_lossy()).into_owned();
    let unseen = learned.unseen.iter().take(TOLD_MAX).map(|path| {
        let path = shown(path);
        format!("the command looked for {path}, which is there outside and was not shown inside; --ro shows it")
    });
    let mut words: Vec<String> = unseen.collect();
    if let more @ 1.. = learned.unseen.len().saturating_sub(TOLD_MAX) {
        words.push(format!("{} of this kind; the end of the policy lists them", count(more as u64, "more file")));
    }
    let unsearched = &learned.keys.unsearched;
    words.extend(unsearched.iter().take(TOLD_MAX).map(|dir| {
        let dir = shown(dir);
        format!("{dir} was not searched to its end for keys: deny in the policy what must stay hidden there")
    }));
    if let more @ 1.. = unsearched.len().saturating_sub(TOLD_MAX) {
        let more = if more == 1 { "1 more directory".to_owned() } else { format!("{more} more directories") };
        words.push(format!("{more} of this kind; the end of the policy lists them"));
    }
    if learned.left_out > 0 {
        let events = count(learned.left_out, "event");
        words.push(format!(
            "{events} told of more paths than the {PATHS_MAX} of a kind that are kept: the policy may lack them"
        ));
    }
    words
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
#[derive(Default)]
struct Host {
    /// Names that were looked at for secrets.
    looked: Cell<usize>,
}

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

    fn named_below(&self, dir: &Path, names: &[&str]) -> Search {
        let (mut found, mut seen) = (Vec::new(), 0);
        let mut pending = VecDeque::from([dir.to_owned()]);
        while let Some(dir) = pending.pop_front() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                seen += 1;
                self.looked.set(self.looked.get() + 1);
                if seen > ENTRIES_MAX || self.looked.get() > ENTRIES_ALL_MAX || found.len() == FOUND_MAX {
                    return Search { found, is_cut: true };
                }
                if entry.file_name().to_str().is_some_and(|name| names.contains(&name)) {
                    found.push(entry.path());
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push_back(entry.path());
                }
            }
        }
        Search { found, is_cut: false }
    }

    fn entries(&self, dir: &Path) -> Search {
        let mut entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let found = entries.by_ref().take(FOUND_MAX).collect();
        Search { found, is_cut: entries.next().is_some() }
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
    // Whoever may write to the directory can put a link or a FIFO there at any moment.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = match OpenOptions::new().read(true).custom_flags(flags).open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // It would be replaced, not followed.
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            bail!("it is a symbolic link; name the file that it leads to")
        }
        Err(error) => return Err(error.into()),
    };
    let about = opened.metadata()?;
    if !about.is_file() {
        bail!("not a regular file; learn into another file");
    }
    let caller = nix::unistd::geteuid().as_raw();
    if !is_trusted(about.uid(), caller) {
        bail!(
            "it belongs to user {}, who could have granted anything in it; learn into a file of your own",
            about.uid()
        );
    }
    let mut text = String::new();
    opened.take(FILE_SIZE_MAX as u64 + 1).read_to_string(&mut text)?;
    if text.len() > FILE_SIZE_MAX {
        bail!("larger than {FILE_SIZE_MAX} bytes; learn into another file");
    }
    Ok(Some(text))
}

/// Whose file is merged into: what a caller learns, the caller will run under.
const fn is_trusted(owner: u32, caller: u32) -> bool {
    owner == caller || owner == 0
}

/// Under another name first: a policy is never half of one. It keeps the permissions that it had; a new one tells others nothing, since it holds the
/// command line.
fn write(file: &Path, text: &str) -> Result<()> {
    if text.len() > FILE_SIZE_MAX {
        bail!(
            "it would have more than {FILE_SIZE_MAX} bytes, which no policy may; grant directories in a policy file of the run first"
        );
    }
    let part = file.with_extension(format!("part-{}", std::process::id()));
    let had = fs::symlink_metadata(file).map(|about| about.permissions().mode() & 0o777).ok();
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
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
        let place = Place { profile: None, home: inputs.home.clone(), cwd: inputs.cwd.clone(), config: vec![] };
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

    /// Planted in a shared directory, it would have granted what its owner likes.
    #[test]
    fn a_file_of_another_user_is_not_merged_into() {
        for (owner, caller, expected) in [(1000, 1000, true), (0, 1000, true), (1000, 0, false), (1001, 1000, false)] {
            assert_eq!(is_trusted(owner, caller), expected, "{owner} {caller}");
        }
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = Dir::new("owner");
        let file = dir.0.join("p.toml");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::chown(&file, Some(59_000), None).unwrap();
        let error = Lesson::open(&learn(&file)).err().unwrap();
        assert!(format!("{error:#}").contains("it belongs to user 59000, who could have"), "{error:#}");
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = Dir::new("fifo");
        let fifo = dir.0.join("p.toml");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, &dir.0] {
            let error = Lesson::open(&learn(path)).err().unwrap();
            assert!(format!("{error:#}").contains("not a regular file; learn into another file"), "{error:#}");
        }
    }

    #[test]
    fn a_search_for_keys_says_when_it_is_cut() {
        let dir = Dir::new("keys");
        let host = Host::default();
        let name = |n: usize| dir.0.join(n.to_string());
        (0..FOUND_MAX).for_each(|n| fs::create_dir(name(n)).unwrap());
        assert_eq!(host.entries(&dir.0).found.len(), FOUND_MAX);
        assert!(!host.entries(&dir.0).is_cut);
        (0..FOUND_MAX).for_each(|n| fs::write(name(n).join(".netrc"), "").unwrap());
        let search = host.named_below(&dir.0, &[".netrc"]);
        assert_eq!((search.found.len(), search.is_cut), (FOUND_MAX, false));
        fs::write(dir.0.join(".netrc"), "").unwrap();
        assert!(host.named_below(&dir.0, &[".netrc"]).is_cut && host.entries(&dir.0).is_cut);
        fs::remove_file(dir.0.join(".netrc")).unwrap();
        assert!(!host.named_below(&dir.0, &[".netrc"]).is_cut);
        host.looked.set(ENTRIES_ALL_MAX - 1);
        assert!(host.named_below(&dir.0, &[".netrc"]).is_cut);
    }

    #[test]
    fn a_policy_is_for_its_owner_and_none_is_larger_than_one_may_be() {
        let dir = Dir::new("new");
        let file = dir.0.join("p.toml");
        Lesson::open(&learn(&file)).unwrap().finish().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let before = fs::read_to_string(&file).unwrap();
        assert!(write(&file, &"#".repeat(FILE_SIZE_MAX + 1)).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), before);
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
