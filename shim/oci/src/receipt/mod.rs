//! What is in force in a container, read back from the kernel, beside what the bundle asks for (`--receipt`).
//!
//! Input: the process of the container, sealed or running, and the bundle as it was narrowed. Output: a [`Receipt`]. Nothing in it repeats the bundle: each `effective`
//! was read from /proc. A line whose answer gives more than was asked for is a [`State::Mismatch`], and a container with one is not to be started.
//! What the kernel shows of nobody, such as a Landlock domain, says so.

mod mounts;
mod process;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use apex_sys::process::Pid;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use serde::Serialize;

use crate::policy::Narrowing;

/// Version of the shape of [`Receipt`].
const VERSION: u32 = 1;

/// The receipt of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Version of this shape.
    pub version: u32,
    /// Kernel release.
    pub kernel: String,
    /// The container.
    pub id: String,
    /// Its process, as the runtime numbers it.
    pub pid: Pid,
    /// The mode of the policy on top of the bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<&'static str>,
    /// What that mode has by default and nothing holds here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<String>,
    /// Everything that was looked at.
    pub lines: Vec<Line>,
}

/// One thing, as asked for and as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What it is about.
    pub what: String,
    /// What the bundle asks for.
    pub requested: String,
    /// What the kernel says.
    pub effective: String,
    /// Where that was read.
    pub evidence: String,
    /// Whether the two agree.
    pub state: State,
}

/// Whether what is in force is what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The kernel confirms it.
    InForce,
    /// The bundle does not ask for it.
    Off,
    /// The kernel shows it of nobody.
    NotShown,
    /// The kernel says otherwise.
    Mismatch,
}

/// What a receipt is read for.
pub struct Subject<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Its process.
    pub pid: Pid,
    /// The bundle, as it was narrowed.
    pub spec: &'a Spec,
    /// The policy on top.
    pub narrowing: Option<&'a Narrowing>,
    /// Path of the container's cgroup below each hierarchy, where the runtime made one.
    pub cgroup: Option<&'a str>,
}

/// Reads a receipt.
pub fn read(subject: &Subject<'_>) -> Receipt {
    let status = status(subject.pid);
    let mut lines = namespaces(subject);
    lines.extend(id_maps(subject));
    lines.extend(process::lines(subject, &status));
    lines.push(landlock(subject));
    lines.push(cgroups(subject));
    lines.extend(mounts::lines(subject));
    Receipt {
        version: VERSION,
        kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
        id: subject.id.to_owned(),
        pid: subject.pid,
        mode: subject.narrowing.map(|narrowing| narrowing.mode().name()),
        given_up: subject.narrowing.map(|narrowing| narrowing.given_up().to_vec()).unwrap_or_default(),
        lines,
    }
}

impl Receipt {
    /// What the kernel does not confirm, in words; `None` when all is as asked for.
    pub fn mismatch(&self) -> Option<String> {
        let wrong = self.lines.iter().filter(|line| line.state == State::Mismatch);
        let words: Vec<String> = wrong
            .map(|line| format!("{}: asked for {}, found {}", line.what, line.requested, line.effective))
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "container {}, pid {}, Linux {}", self.id, self.pid, self.kernel)?;
        if let Some(mode) = self.mode {
            writeln!(f, "policy    mode {mode}")?;
        }
        for words in &self.given_up {
            writeln!(f, "left out  {words}")?;
        }
        for line in &self.lines {
            let state = match line.state {
                State::InForce => "in force",
                State::Off => "off",
                State::NotShown => "not shown",
                State::Mismatch => "MISMATCH",
            };
            writeln!(f, "{:<22} {state:<9} {}", line.what, line.effective)?;
        }
        Ok(())
    }
}

impl Line {
    fn new(what: &str, requested: String, effective: String, evidence: String, agrees: bool) -> Line {
        let state = if agrees { State::InForce } else { State::Mismatch };
        Line { what: what.to_owned(), requested, effective, evidence, state }
    }

    fn off(what: &str, effective: String, evidence: String) -> Line {
        Line { what: what.to_owned(), requested: "nothing".to_owned(), effective, evidence, state: State::Off }
    }
}

/// Every kind: its name in /proc, and the bundle's.
const NAMESPACES: [(&str, LinuxNamespaceType); 8] = [
    ("cgroup", LinuxNamespaceType::Cgroup),
    ("ipc", LinuxNamespaceType::Ipc),
    ("mnt", LinuxNamespaceType::Mount),
    ("net", LinuxNamespaceType::Network),
    ("pid", LinuxNamespaceType::Pid),
    ("time", LinuxNamespaceType::Time),
    ("user", LinuxNamespaceType::User),
    ("uts", LinuxNamespaceType::Uts),
];

fn namespaces(subject: &Subject<'_>) -> Vec<Line> {
    let linux = subject.spec.linux().as_ref();
    let asked = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let line = |(name, kind): (&str, LinuxNamespaceType)| {
        let evidence = format!("/proc/{}/ns/{name}", subject.pid);
        let (theirs, ours) = (link(&evidence), link(&format!("/proc/self/ns/{name}")));
        let what = format!("namespace {name}");
        match asked.iter().find(|namespace| namespace.typ() == kind) {
            None => Line::off(&what, format!("{theirs}, {}", whose(&theirs, &ours)), evidence),
            Some(namespace) => match namespace.path() {
                None => {
                    let agrees = !theirs.is_empty() && theirs != ours;
                    Line::new(&what, "one of its own".to_owned(), theirs, evidence, agrees)
                }
                Some(path) => {
                    let agrees = inode(path).is_some_and(|inode| theirs.ends_with(&format!(":[{inode}]")));
                    Line::new(&what, format!("that of {}", path.display()), theirs, evidence, agrees)
                }
            },
        }
    };
    NAMESPACES.into_iter().map(line).collect()
}

fn whose(theirs: &str, ours: &str) -> &'static str {
    if theirs == ours { "the runtime's" } else { "not the runtime's" }
}

/// Joined by its path, whatever that is: a link of /proc or a file that a namespace is mounted on.
fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|facts| std::os::unix::fs::MetadataExt::ino(&facts))
}

fn id_maps(subject: &Subject<'_>) -> Vec<Line> {
    let Some(linux) = subject.spec.linux() else { return Vec::new() };
    let line = |what: &str, asked: &Option<Vec<LinuxIdMapping>>| {
        let asked = asked.as_deref().filter(|asked| !asked.is_empty())?;
        let evidence = format!("/proc/{}/{what}", subject.pid);
        let words = |map: &LinuxIdMapping| format!("{} {} {}", map.container_id(), map.host_id(), map.size());
        let requested: Vec<String> = asked.iter().map(words).collect();
        let effective: Vec<String> = text(&evidence).lines().map(squeeze).collect();
        // The kernel's order is its own.
        let agrees = effective.len() == requested.len() && effective.iter().all(|line| requested.contains(line));
        Some(Line::new(what, requested.join(", "), effective.join(", "), evidence, agrees))
    };
    [line("uid_map", linux.uid_mappings()), line("gid_map", linux.gid_mappings())].into_iter().flatten().collect()
}

/// The kernel tells nobody's domain. The init fails when it cannot enter one, so a container that runs has it.
fn landlock(subject: &Subject<'_>) -> Line {
    let evidence = String::new();
    if subject.narrowing.is_none() {
        return Line::off("landlock", "no rule of a policy".to_owned(), evidence);
    }
    let effective = "entered by the init, which fails otherwise".to_owned();
    let requested = "the policy's rules about files".to_owned();
    Line { what: "landlock".to_owned(), requested, effective, evidence, state: State::NotShown }
}

fn cgroups(subject: &Subject<'_>) -> Line {
    let evidence = format!("/proc/{}/cgroup", subject.pid);
    let table = text(&evidence);
    let places: Vec<&str> = table.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let mut distinct = places.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let effective = format!("{} in {} hierarchies", distinct.join(" "), places.len());
    match subject.cgroup {
        None => Line::off("cgroups", effective, evidence),
        Some(path) => {
            let agrees = places.iter().any(|place| place.ends_with(path.trim_end_matches('/')));
            Line::new("cgroups", path.to_owned(), effective, evidence, agrees)
        }
    }
}

fn status(pid: Pid) -> HashMap<String, String> {
    let text = text(&format!("/proc/{pid}/status"));
    let pair = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

/// What a file of /proc says; nothing where it cannot be read, which agrees with nothing that is asked for.
fn text(path: &str) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn link(path: &str) -> String {
    std::fs::read_link(path).map(|target| target.display().to_string()).unwrap_or_default()
}

fn squeeze(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
