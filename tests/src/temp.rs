//! Directories that vanish with the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A directory of its own beneath the system's temporary one, readable by every user, removed on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one. Its name is a mark of sandboxes as well: none is the beginning of another.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(place: &Path) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("apex-test-{}-{number}_", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("we own it");
        TempDir(path)
    }

    /// The same where names are short: some programs take no long ones.
    pub fn short() -> Self {
        Self::below(Path::new("/tmp"))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it, as text for a command line.
    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("names in tests are UTF-8").to_owned()
    }

    /// Its own path, as text.
    pub fn text(&self) -> String {
        self.0.to_str().expect("names in tests are UTF-8").to_owned()
    }

    /// Writes a file in it, with the directories above, and returns its path.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("it lies beneath us")).expect("we own it");
        fs::write(&path, content).expect("we own it");
        self.at(name)
    }

    /// Makes a directory in it and returns its path.
    pub fn dir(&self, name: &str) -> String {
        fs::create_dir_all(self.0.join(name)).expect("we own it");
        self.at(name)
    }

    /// What it holds now, by name relative to it, sorted; directories end in a slash.
    pub fn listing(&self) -> Vec<String> {
        let mut names = Vec::new();
        walk(&self.0, "", &mut names);
        names.sort();
        names
    }

    /// Content of a file in it.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A test may leave directories that their owner cannot change.
        if fs::remove_dir_all(&self.0).is_err() {
            open_up(&self.0);
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

fn walk(dir: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(format!("{name}/"));
            walk(&entry.path(), &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}
