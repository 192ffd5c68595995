//! One look at the host: which cgroup hierarchies are mounted, and where this process is in them.

use std::path::{Component, Path, PathBuf};

use super::dir::read_path;
use super::error::CgroupError;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its controllers, or `name=...`; empty for v2.
    pub(super) names: Vec<String>,
    /// Where.
    pub(super) point: PathBuf,
    /// The part of the hierarchy that the mount shows.
    pub(super) root: String,
    /// The cgroup of this process, `None` when it is not told.
    pub(super) own: Option<String>,
}

impl Hierarchy {
    pub(super) fn is_v2(&self) -> bool {
        self.names.is_empty()
    }

    /// Where the mount shows the cgroup of this process; its root when it does not show it.
    fn own_dir(&self) -> PathBuf {
        let below = self
            .own
            .as_deref()
            .filter(|own| !own.split('/').any(|part| part == ".."))
            .and_then(|own| Path::new(own).strip_prefix(&self.root).ok());
        match below {
            Some(below) if !below.as_os_str().is_empty() => self.point.join(below),
            Some(_) | None => self.point.clone(),
        }
    }

    /// The directory for `path`: an absolute one from the mount's root, a relative one from the cgroup of this process, on v2 from the one above it, which can
    /// hand controllers down although processes are in ours.
    pub(super) fn dir(&self, path: &CgroupPath) -> PathBuf {
        if path.is_absolute {
            return self.point.join(&path.below);
        }
        let own = self.own_dir();
        let own = if self.is_v2() && own != self.point { own.parent().unwrap_or(&own).to_owned() } else { own };
        own.join(&path.below)
    }
}

/// `linux.cgroupsPath`, clean: no dots, no way above the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CgroupPath {
    is_absolute: bool,
    below: PathBuf,
}

impl CgroupPath {
    pub(super) fn parse(path: Option<&Path>, id: &str) -> Result<CgroupPath, CgroupError> {
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(CgroupPath { is_absolute: false, below: PathBuf::from(id) });
        };
        let fail = |reason| CgroupError::Path { path: path.display().to_string(), reason };
        let bytes = path.as_os_str().as_encoded_bytes();
        if bytes.contains(&0) || bytes.contains(&b'\n') {
            return Err(fail("no cgroup has a line break or a NUL in its name"));
        }
        let below = clean(path);
        if below.as_os_str().is_empty() {
            return Err(fail("it names the root of the hierarchy, which can be nobody's container"));
        }
        Ok(CgroupPath { is_absolute: path.is_absolute(), below })
    }

    /// Where a cgroup stands that systemd makes.
    pub(super) fn absolute(path: &str) -> CgroupPath {
        CgroupPath { is_absolute: true, below: clean(Path::new(path)) }
    }
}

/// Without dots; what would go above the beginning stays there.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut below = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => below.push(part),
            Component::ParentDir => {
                below.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    below
}

/// Every hierarchy that is mounted, each once.
pub(super) fn look() -> Result<Vec<Hierarchy>, CgroupError> {
    let read = |file: &'static str| {
        read_path(Path::new(file))
            .map_err(|errno| CgroupError::Look { file: PathBuf::from(file), source: errno.into() })
    };
    let found = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    if found.is_empty() { Err(CgroupError::NoHierarchy) } else { Ok(found) }
}

/// Whether limits are those of v2: no controller has a hierarchy of its own.
pub(super) fn is_unified(found: &[Hierarchy]) -> bool {
    !found.iter().any(|hierarchy| hierarchy.names.iter().any(|name| !name.starts_with("name=")))
}

fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let own = parse_own(own);
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((point, mount)) = parse_mount(line) else {
            continue;
        };
        // What is mounted later over a hierarchy, or above it, hides it.
        found.retain(|hierarchy| !hierarchy.point.starts_with(&point));
        let Some((root, kind, options)) = mount else {
            continue;
        };
        let names = match own.iter().find(|(names, _)| is_mount_of(names, kind, &options)) {
            Some((names, _)) => names.clone(),
            None if kind == "cgroup2" => Vec::new(),
            None => continue,
        };
        let own = own.iter().find(|(known, _)| *known == names).map(|(_, path)| path.clone());
        found.push(Hierarchy { names, point, root, own });
    }
    let mut seen = Vec::new();
    found.retain(|hierarchy| {
        let is_new = !seen.contains(&hierarchy.names);
        seen.push(hierarchy.names.clone());
        is_new
    });
    found
}

fn is_mount_of(names: &[String], kind: &str, options: &str) -> bool {
    let has = |name: &String| options.split(',').any(|option| option == name);
    if kind == "cgroup2" { names.is_empty() } else { !names.is_empty() && names.iter().all(has) }
}

type CgroupMount<'a> = Option<(String, &'a str, String)>;

/// A line of proc_pid_mountinfo(5): where, and for a cgroup mount the part that it shows, its kind and its options.
fn parse_mount(line: &str) -> Option<(PathBuf, CgroupMount<'_>)> {
    let (mount, device) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let root = unescape(fields.next()?);
    let point = PathBuf::from(unescape(fields.next()?));
    let mut device = device.split(' ');
    let kind = device.next()?;
    if kind != "cgroup" && kind != "cgroup2" {
        return Some((point, None));
    }
    let options = device.nth(1).unwrap_or_default().to_owned();
    Some((point, Some((root, kind, options))))
}

/// Controllers and path of each line of proc_pid_cgroup(5).
fn parse_own(text: &str) -> Vec<(Vec<String>, String)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let names = fields.next()?;
            let path = fields.next()?.to_owned();
            Some((names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(), path))
        })
        .collect()
}

/// The v2 cgroup of a process.
pub(super) fn path_v2(pid: i32) -> Result<String, CgroupError> {
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text = read_path(&file).map_err(|errno| CgroupError::read(file.clone(), errno))?;
    parse_own(&text)
        .into_iter()
        .find(|(names, _)| names.is_empty())
        .map(|(_, path)| path)
        .ok_or_else(|| CgroupError::malformed(file, &text))
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
23 1 0:1 / /sys rw - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /box /sys/fs/cgroup/my\\040memory rw,relatime - cgroup cgroup rw,memory
36 31 0:32 / /again rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate";
    const OWN: &str = "4:memory:/box/a:b\n3:cpu,cpuacct:/\n2:name=systemd:/x\n0::/user/shell\n";

    fn seen(found: &[Hierarchy]) -> Vec<(String, &str)> {
        found.iter().map(|hierarchy| (hierarchy.names.join(","), hierarchy.point.to_str().unwrap())).collect()
    }

    #[test]
    fn each_hierarchy_is_seen_once() {
        let found = hierarchies(MOUNTS, OWN);
        let expected = [
            ("cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory".to_owned(), "/sys/fs/cgroup/my memory"),
            ("name=systemd".to_owned(), "/sys/fs/cgroup/systemd"),
            (String::new(), "/sys/fs/cgroup/unified"),
        ];
        assert_eq!(seen(&found), expected);
        assert!(!is_unified(&found));
    }

    #[test]
    fn what_is_covered_is_not_there() {
        let covered = format!("{MOUNTS}\n50 23 0:50 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
        let found = hierarchies(&covered, OWN);
        assert_eq!(seen(&found), [("memory".to_owned(), "/again"), (String::new(), "/sys/fs/cgroup")]);
        let found = hierarchies("50 23 0:50 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/\n");
        assert!(is_unified(&found));
        assert_eq!(hierarchies("\n - \n1 2 3 - cgroup\nx - cgroup2 y z", "\n0:\nx"), []);
    }

    #[test]
    fn a_path_becomes_a_directory_in_each_hierarchy() {
        let found = hierarchies(MOUNTS, OWN);
        let check = |path: Option<&str>, expected: [&str; 4]| {
            let path = CgroupPath::parse(path.map(Path::new), "id").unwrap();
            let dirs: Vec<PathBuf> = found.iter().map(|hierarchy| hierarchy.dir(&path)).collect();
            assert_eq!(dirs, expected.map(|dir| PathBuf::from("/sys/fs/cgroup").join(dir)));
        };
        check(Some("/a/b"), ["cpu,cpuacct/a/b", "my memory/a/b", "systemd/a/b", "unified/a/b"]);
        check(Some("a"), ["cpu,cpuacct/a", "my memory/a:b/a", "systemd/x/a", "unified/user/a"]);
        check(None, ["cpu,cpuacct/id", "my memory/a:b/id", "systemd/x/id", "unified/user/id"]);
        check(Some("/../../a/./b/.."), ["cpu,cpuacct/a", "my memory/a", "systemd/a", "unified/a"]);
        check(Some("../../a"), ["cpu,cpuacct/a", "my memory/a:b/a", "systemd/x/a", "unified/user/a"]);
    }

    #[test]
    fn a_path_to_the_root_or_with_a_line_break_is_refused() {
        for path in ["/", "/..", ".", "a/..", "/a\nb"] {
            assert!(matches!(CgroupPath::parse(Some(Path::new(path)), "id"), Err(CgroupError::Path { .. })), "{path}");
        }
    }
}
