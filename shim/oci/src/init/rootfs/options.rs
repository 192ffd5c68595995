//! Options of a mount, as the runtime specification's table has them ("Linux mount options"), parsed once.

use apex_sys::mount::{Change, attr};
use nix::libc;

/// What the options of a mount ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Attributes of the mount itself.
    pub own: Attributes,
    /// Attributes of the mount and all below it.
    pub all: Attributes,
    /// Propagation, in the order given.
    pub propagation: Vec<Propagation>,
    /// Flags of the file system, by the names that fsconfig(2) knows; and the flags of mount(2) for them.
    pub flags: Vec<(&'static str, u64)>,
    /// A bind, with the mounts below when `recursive`.
    pub bind: Option<Bind>,
    /// Changes what is mounted there already.
    pub remount: bool,
    /// The tmpfs starts with what was at its place.
    pub copy_up: bool,
    /// Owners are translated.
    pub idmap: Option<Idmap>,
    /// What only the file system understands.
    pub data: Vec<String>,
}

/// How much is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// The mount.
    One,
    /// The mount and all below it.
    Tree,
}

/// How far owners are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idmap {
    /// In the mount.
    One,
    /// In the mount and all below it.
    Tree,
}

/// Attributes to set and to clear (`MOUNT_ATTR_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// To set.
    pub set: u64,
    /// To clear.
    pub clear: u64,
}

impl Attributes {
    fn set(&mut self, bits: u64) {
        self.set |= bits;
        self.clear &= !bits;
    }

    fn clear(&mut self, bits: u64) {
        self.set &= !bits;
        self.clear |= bits;
    }

    /// The three ways to keep access times exclude each other.
    fn atime(&mut self, value: u64) {
        self.set = self.set & !attr::ATIME | value;
        self.clear |= attr::ATIME;
    }

    /// As the argument of mount_setattr(2).
    pub fn change(self) -> Change<'static> {
        Change { set: self.set, clear: self.clear, ..Change::default() }
    }
}

/// `MS_SHARED` and its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`.
    pub flag: u64,
    /// For all mounts below too.
    pub recursive: bool,
}

impl Propagation {
    /// The word of the specification; `None` for any other.
    pub fn parse(word: &str) -> Option<Propagation> {
        let (flag, recursive) = match word {
            "shared" => (libc::MS_SHARED, false),
            "rshared" => (libc::MS_SHARED, true),
            "slave" => (libc::MS_SLAVE, false),
            "rslave" => (libc::MS_SLAVE, true),
            "private" => (libc::MS_PRIVATE, false),
            "rprivate" => (libc::MS_PRIVATE, true),
            "unbindable" => (libc::MS_UNBINDABLE, false),
            "runbindable" => (libc::MS_UNBINDABLE, true),
            _ => return None,
        };
        Some(Propagation { flag, recursive })
    }

    /// As the argument of mount_setattr(2).
    pub fn change(self) -> Change<'static> {
        Change { propagation: self.flag, ..Change::default() }
    }
}

/// Flags of a file system rather than of a mount: name, key of fsconfig(2), flag of mount(2), and whether it is set or cleared.
const FLAGS: [(&str, &str, u64, bool); 10] = [
    ("sync", "sync", libc::MS_SYNCHRONOUS, true),
    ("async", "sync", libc::MS_SYNCHRONOUS, false),
    ("dirsync", "dirsync", libc::MS_DIRSYNC, true),
    ("mand", "mand", libc::MS_MANDLOCK, true),
    ("nomand", "mand", libc::MS_MANDLOCK, false),
    ("lazytime", "lazytime", libc::MS_LAZYTIME, true),
    ("nolazytime", "lazytime", libc::MS_LAZYTIME, false),
    ("iversion", "iversion", libc::MS_I_VERSION, true),
    ("noiversion", "iversion", libc::MS_I_VERSION, false),
    ("silent", "silent", libc::MS_SILENT, true),
];

/// Words that ask for nothing that is not so already.
const IDLE: [&str; 4] = ["defaults", "loud", "acl", "noacl"];

impl Options {
    /// Parses the words of a mount; what is unknown is for the file system.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> Options {
        let mut options = Options::default();
        for word in words {
            options.take(word.as_ref());
        }
        options
    }

    fn take(&mut self, word: &str) {
        if IDLE.contains(&word) || self.take_attribute(word) {
            return;
        }
        if let Some(propagation) = Propagation::parse(word) {
            self.propagation.push(propagation);
        } else if let Some((_, key, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == word) {
            self.flags.retain(|(known, _)| known != key);
            if *set {
                self.flags.push((key, *flag));
            }
        } else {
            match word {
                "bind" if self.bind.is_none() => self.bind = Some(Bind::One),
                "bind" => {}
                "rbind" => self.bind = Some(Bind::Tree),
                "remount" => self.remount = true,
                "tmpcopyup" => self.copy_up = true,
                "idmap" => self.idmap = Some(Idmap::One),
                "ridmap" => self.idmap = Some(Idmap::Tree),
                "" => {}
                other => self.data.push(other.to_owned()),
            }
        }
    }

    /// Attributes of mounts; with an `r` in front for all mounts below too.
    fn take_attribute(&mut self, word: &str) -> bool {
        if apply(&mut self.own, word) {
            return true;
        }
        word.strip_prefix('r').is_some_and(|rest| apply(&mut self.all, rest))
    }

    /// Whether the mount itself is to be read-only.
    pub fn is_readonly(&self) -> bool {
        self.own.set & attr::RDONLY != 0
    }
}

/// Applies one word to attributes. `relatime` is never `elatime` of all mounts: it is found first.
fn apply(attributes: &mut Attributes, word: &str) -> bool {
    match word {
        "ro" => attributes.set(attr::RDONLY),
        "rw" => attributes.clear(attr::RDONLY),
        "nosuid" => attributes.set(attr::NOSUID),
        "suid" => attributes.clear(attr::NOSUID),
        "nodev" => attributes.set(attr::NODEV),
        "dev" => attributes.clear(attr::NODEV),
        "noexec" => attributes.set(attr::NOEXEC),
        "exec" => attributes.clear(attr::NOEXEC),
        "nosymfollow" => attributes.set(attr::NOSYMFOLLOW),
        "symfollow" => attributes.clear(attr::NOSYMFOLLOW),
        "nodiratime" => attributes.set(attr::NODIRATIME),
        "diratime" => attributes.clear(attr::NODIRATIME),
        "noatime" => attributes.atime(attr::NOATIME),
        "strictatime" => attributes.atime(attr::STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => attributes.atime(attr::RELATIME),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_words_win_and_unknown_ones_are_data() {
        let options = Options::parse(&["ro", "nosuid", "rw", "mode=755", "size=64k", "rbind", "bind", "rslave"]);
        assert_eq!(options.own, Attributes { set: attr::NOSUID, clear: attr::RDONLY });
        assert_eq!(options.data, ["mode=755", "size=64k"]);
        assert_eq!(options.bind, Some(Bind::Tree));
        assert_eq!(options.propagation, [Propagation { flag: libc::MS_SLAVE, recursive: true }]);
    }

    #[test]
    fn an_r_in_front_is_for_all_mounts_below() {
        let options = Options::parse(&["rro", "rnosuid", "rsuid", "rrelatime", "relatime"]);
        assert_eq!(options.all, Attributes { set: attr::RDONLY, clear: attr::NOSUID | attr::ATIME });
        assert_eq!(options.own, Attributes { set: 0, clear: attr::ATIME });
        assert!(options.data.is_empty(), "{:?}", options.data);
    }

    #[test]
    fn flags_of_file_systems_can_be_taken_back() {
        assert_eq!(Options::parse(&["sync", "async", "dirsync"]).flags, [("dirsync", libc::MS_DIRSYNC)]);
    }
}
