//! Names of users and their groups, from the files of this host.
//!
//! Not through the C library, which in a static program loads modules of another build; users of a directory service are known by their number only.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

/// A user as the files know it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: Option<String>,
    pub home: Option<String>,
    pub groups: Vec<String>,
}

/// Looks a user up.
pub fn look_up(uid: u32, gid: u32) -> User {
    find(uid, gid, &PASSWD.text(), &GROUP.text())
}

static PASSWD: Kept = Kept::new("/etc/passwd");
static GROUP: Kept = Kept::new("/etc/group");

/// A file that is asked for with every request, read again when it is another or was changed.
struct Kept {
    path: &'static str,
    last: Mutex<Option<(Stamp, Arc<str>)>>,
}

/// Device, inode, size, and when inode or content were changed: by tools that write a new file, and by hand.
type Stamp = (u64, u64, u64, i64, i64);

impl Kept {
    const fn new(path: &'static str) -> Kept {
        Kept { path, last: Mutex::new(None) }
    }

    /// What it holds; nothing if it cannot be read.
    fn text(&self) -> Arc<str> {
        let Ok(metadata) = fs::metadata(self.path) else { return "".into() };
        let stamp = (metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((of, text)) if *of == stamp => Arc::clone(text),
            _ => {
                let text: Arc<str> = fs::read_to_string(self.path).unwrap_or_default().into();
                *last = Some((stamp, Arc::clone(&text)));
                text
            }
        }
    }
}

/// The user and group id of a user.
pub fn named(name: &str) -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.first() == Some(&name))?;
    Some((entry.get(2)?.parse().ok()?, entry.get(3)?.parse().ok()?))
}

fn find(uid: u32, gid: u32, passwd: &str, group: &str) -> User {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let entry = passwd.lines().map(fields).find(|fields| fields.get(2) == Some(&uid.to_string()));
    let name = entry.as_ref().and_then(|fields| fields.first().cloned());
    let home = entry.as_ref().and_then(|fields| fields.get(5).cloned());
    let is_member = |fields: &Vec<String>| {
        let is_named = |list: &String| name.as_ref().is_some_and(|name| list.split(',').any(|member| member == name));
        fields.get(2) == Some(&gid.to_string()) || fields.get(3).is_some_and(is_named)
    };
    let groups = group.lines().map(fields).filter(is_member).filter_map(|fields| fields.first().cloned()).collect();
    User { name, home, groups }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_was_changed_or_replaced() {
        let dir = std::env::temp_dir().join(format!("apexd-who-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("passwd");
        let kept = Kept::new(path.to_str().expect("a name").to_owned().leak());
        assert_eq!(&*kept.text(), "");
        fs::write(&path, "one").expect("written");
        assert_eq!(&*kept.text(), "one");
        assert_eq!(&*kept.text(), "one");
        fs::write(&path, "other").expect("written");
        assert_eq!(&*kept.text(), "other");
        let next = dir.join("next");
        fs::write(&next, "third").expect("written");
        fs::rename(&next, &path).expect("renamed");
        assert_eq!(&*kept.text(), "third");
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn groups_are_the_first_one_and_those_that_name_the_user() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100:Ann:/home/ann:/bin/sh\n";
        let group = "root:x:0:\nusers:x:100:\napex:x:200:bob,ann\nother:x:300:annabel\n";
        let user = find(1000, 100, passwd, group);
        assert_eq!(user.name.as_deref(), Some("ann"));
        assert_eq!(user.home.as_deref(), Some("/home/ann"));
        assert_eq!(user.groups, ["users", "apex"]);
        assert_eq!(find(7, 7, passwd, group), User::default());
    }
}
