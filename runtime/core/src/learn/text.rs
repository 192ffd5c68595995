//! A learned policy as text, and back. Input: what was learned, and the file as it stands. Output: the file with the learned lines brought up
//! to date and every other line as it was, comments included.
//!
//! Which lines are learned ones stands in `[learned.seen]`. A line that is there and not in its list was removed by hand: it stays out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value, value};

use super::calls::companion_of;
use super::edit::{Edit, Row, USED, WITH, close, row, word_of};
use super::needs::{CONTENT, LISTED, NOTES_MAX};
use super::setting::Setting;
use super::{ASKED_MAX, Learned, Need, PROGRAMS_MAX, Right, SEEDS, SEEDS_EXEC, Use, has_own_cwd};
use crate::amount;
use crate::policy::path::{Context, in_file};
use crate::policy::{LearnedTable, Mode, PolicyError, ProcView, SeenTable, learned_table};

/// Version of `[learned]`.
const VERSION: u32 = 1;
/// What every line about something that is not granted begins with.
const NOT_GRANTED: &str = "# asked for and not granted: ";
/// How the line ends that counts those for which there is no room.
const MORE: &str = " other things";
/// What a line begins with about a directory in which keys may have been missed.
const NOT_SEARCHED: &str = "# not searched to its end for keys; deny by hand what must stay hidden: ";
/// What a line begins with about a variable.
const NOT_COPIED: &str =
    "# set in the run that was learned from, its value not copied; give it again with --env, or let it be passed: ";
/// What names a profile in `extends`.
const PROFILE: &str = "profile:";
/// The profile that a learned policy extends beside that of its run.
const SECRETS: &str = "secrets";
/// Longest comment line.
const COMMENT_CHARS_MAX: usize = 240;

/// Why a learned policy cannot be written or merged.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The file that is to be merged into is no policy. No source: its words are told here, and would be told again.
    #[error("{0}; correct it or learn into another file")]
    Policy(PolicyError),
    /// It was learned in another mode: what is granted in it is what that mode does not give.
    #[error("{file}: learned in {learned}, this run is {}; learn into another file", run.name())]
    Mode {
        /// The file.
        file: String,
        /// Its mode.
        learned: String,
        /// The mode of the run.
        run: Mode,
    },
    /// The same of the profile.
    #[error(
        "{file}: learned {}, this run has {run}; learn into another file",
        learned.as_ref().map_or("without a profile".to_owned(), |profile| format!("with profile {profile}"))
    )]
    Profile {
        /// The file.
        file: String,
        /// Its profile.
        learned: Option<String>,
        /// The profile of the run.
        run: String,
    },
    /// The same, of a shape that cannot be edited.
    #[error("{file}: `{key}` is not a list in `[ ]`; write it as one, or learn into another file")]
    Shape {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// The parser that keeps comments does not read it.
    #[error("{file}: cannot be edited: {message}; learn into another file")]
    Toml {
        /// The file.
        file: String,
        /// What that parser says.
        message: String,
    },
    /// A newer version wrote it.
    #[error("{file}: [learned] has version {found}, this Apex knows {VERSION}; learn into another file")]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
    },
}

impl From<PolicyError> for LearnError {
    fn from(error: PolicyError) -> LearnError {
        LearnError::Policy(error)
    }
}

/// What a file holds of earlier runs, and of a person's hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    pub(super) runs: u64,
    pub(super) files: BTreeMap<(Right, PathBuf), Need>,
    pub(super) groups: BTreeMap<String, Need>,
    pub(super) network: Option<Need>,
    removed: BTreeSet<(Right, PathBuf)>,
    removed_groups: BTreeSet<String>,
    hand: BTreeSet<(Right, PathBuf)>,
    /// On the host.
    denied: Vec<PathBuf>,
}

impl Previous {
    /// Reads the policy that is to be merged into.
    ///
    /// # Errors
    /// When it is no policy, or not of a shape that can be edited.
    pub fn read(text: &str, file: &str, setting: &Setting) -> Result<Previous, LearnError> {
        let table = learned_table(text, file)?.unwrap_or_default();
        if table.version > VERSION {
            return Err(LearnError::Version { file: file.to_owned(), found: table.version });
        }
        let doc = parse(text, file)?;
        check_head(&doc, &table, file, setting)?;
        let mut previous = Previous { runs: table.runs, ..Previous::default() };
        for right in Right::ALL {
            let mut listed = BTreeSet::new();
            for entry in entries(&doc, "filesystem", right.name(), file)? {
                let Some(path) = expand(&entry, setting) else { continue };
                listed.insert(entry.clone());
                if !table.seen.contains_key(&key(right.name(), &entry)) {
                    previous.hand.insert((right, path));
                }
            }
            previous.take(right, &listed, &table, setting);
        }
        let denied = entries(&doc, "filesystem", "deny", file)?;
        previous.denied = denied.iter().filter_map(|path| expand(path, setting)).collect();
        let allowed = entries(&doc, "syscalls", "allow", file)?;
        for (name, seen) in &table.seen {
            if let Some(group) = name.strip_prefix("calls ") {
                if allowed.iter().any(|allowed| allowed == group) {
                    previous.groups.insert(group.to_owned(), need(seen));
                } else {
                    previous.removed_groups.insert(group.to_owned());
                }
            }
            if name == "network host" {
                previous.network = Some(need(seen));
            }
        }
        Ok(previous)
    }

    /// The profile that a learned policy was learned with: a run that names none is one of the same.
    ///
    /// # Errors
    /// Those of [`Previous::read`].
    pub fn profile(text: &str, file: &str) -> Result<Option<String>, LearnError> {
        let is_learned = learned_table(text, file)?.is_some_and(|table| table.runs > 0);
        let mut profiles = profiles(&parse(text, file)?);
        // Several are a person's work: which of them the runs had nobody knows.
        Ok(profiles.pop().filter(|_| is_learned && profiles.is_empty()))
    }

    fn take(&mut self, right: Right, listed: &BTreeSet<String>, table: &LearnedTable, setting: &Setting) {
        for (name, seen) in &table.seen {
            let Some(word) = name.strip_prefix(right.name()).and_then(|rest| rest.strip_prefix(' ')) else { continue };
            let Some(path) = expand(word, setting) else { continue };
            if listed.contains(word) {
                let mut need = need(seen);
                need.notes.insert(if seen.listed { LISTED } else { CONTENT }.to_owned());
                self.files.insert((right, path), need);
            } else {
                self.removed.insert((right, path));
            }
        }
    }

    /// Whether a person took out a line that gave it.
    pub(super) fn was_removed(&self, path: &Path) -> bool {
        self.removed.iter().any(|(right, removed)| *right != Right::Name && path.starts_with(removed))
    }

    /// The same of a line that gave the name alone.
    pub(super) fn was_name_removed(&self, path: &Path) -> bool {
        self.removed.contains(&(Right::Name, path.to_owned()))
    }

    /// Whether the file denies it: a grant below would stop the start.
    pub(super) fn denies(&self, path: &Path) -> bool {
        self.denied.iter().any(|denied| path.starts_with(denied))
    }

    pub(super) fn was_group_removed(&self, group: &str) -> bool {
        self.removed_groups.contains(group)
    }

    /// Whether a line of a person gives it already.
    pub(super) fn hand_covers(&self, right: Right, path: &Path) -> bool {
        self.hand.iter().any(|(given, place)| {
            path.starts_with(place)
                && match right {
                    Right::Name => {
                        *given == Right::Name && path == place || matches!(given, Right::Read | Right::Write)
                    }
                    _ => *given == right || *given == Right::Write && right == Right::Read,
                }
        })
    }
}

/// Nothing is merged into what another mode or profile was the ground of: grants would be missing, or stand twice.
fn check_head(doc: &DocumentMut, table: &LearnedTable, file: &str, setting: &Setting) -> Result<(), LearnError> {
    let mode = doc.get("mode").and_then(Item::as_str);
    if let Some(learned) = mode.filter(|mode| *mode != setting.mode.name()) {
        return Err(LearnError::Mode { file: file.to_owned(), learned: learned.to_owned(), run: setting.mode });
    }
    let mut profiles = profiles(doc);
    let is_same = |run: &String| if run == SECRETS { profiles.is_empty() } else { profiles.contains(run) };
    match &setting.profile {
        Some(run) if table.runs > 0 && !is_same(run) => {
            let learned = if profiles.is_empty() { None } else { Some(profiles.swap_remove(0)) };
            Err(LearnError::Profile { file: file.to_owned(), learned, run: format!("profile {run}") })
        }
        _ => Ok(()),
    }
}

/// The profiles that a file extends, but for the one that every learned policy does.
fn profiles(doc: &DocumentMut) -> Vec<String> {
    let extends = doc.get("extends").and_then(Item::as_array);
    let names = extends.into_iter().flatten().filter_map(|word| word.as_str()?.strip_prefix(PROFILE));
    names.filter(|name| *name != SECRETS).map(str::to_owned).collect()
}

fn need(seen: &SeenTable) -> Need {
    let by = seen.by.iter().take(PROGRAMS_MAX).cloned().collect();
    Need { seen: Use { times: seen.times, by }, runs: seen.runs, notes: BTreeSet::new(), is_opened: !seen.looked }
}

pub(super) fn parse(text: &str, file: &str) -> Result<DocumentMut, LearnError> {
    let failed = |error: toml_edit::TomlError| LearnError::Toml {
        file: file.to_owned(),
        message: error.message().trim().to_owned(),
    };
    text.parse().map_err(failed)
}

pub(super) fn key(kind: &str, word: &str) -> String {
    format!("{kind} {word}")
}

/// The names in a list of paths or words: of a path, the one inside.
fn entries(doc: &DocumentMut, table: &str, list: &str, file: &str) -> Result<Vec<String>, LearnError> {
    let Some(item) = doc.get(table).and_then(|table| table.get(list)) else { return Ok(Vec::new()) };
    let array =
        item.as_array().ok_or_else(|| LearnError::Shape { file: file.to_owned(), key: format!("{table}.{list}") })?;
    Ok(array.iter().filter_map(word_of).collect())
}

fn expand(word: &str, setting: &Setting) -> Option<PathBuf> {
    let context = Context { home: setting.home.as_deref(), cwd: &setting.cwd, tmpdir: Path::new("/tmp") };
    in_file(word, None, &context).ok()
}

/// With `${CWD}`, where that is nothing shared, and `~`; `None` when the path has no text of its own.
fn shorten(path: &Path, setting: &Setting) -> Option<String> {
    let within = |base: &Path, name: &str| {
        let rest = path.strip_prefix(base).ok()?.to_str()?;
        Some(if rest.is_empty() { name.to_owned() } else { format!("{name}/{rest}") })
    };
    let own = has_own_cwd(&setting.cwd, setting.home.as_deref());
    let cwd = own.then(|| within(&setting.cwd, "${CWD}")).flatten();
    let home = setting.home.as_deref().filter(|home| *home != Path::new("/")).and_then(|home| within(home, "~"));
    cwd.or(home).or_else(|| path.to_str().map(str::to_owned))
}

impl Learned {
    /// The policy file: fresh, or `existing` brought up to date. `file` is its name in errors.
    ///
    /// # Errors
    /// When `existing` is no policy, or not of a shape that can be edited.
    pub fn to_toml(&self, existing: Option<(&str, &str)>) -> Result<String, LearnError> {
        let (text, file) = existing.unwrap_or(("", "the learned policy"));
        let mut edit = Edit::new(text, file)?;
        self.head(&mut edit.doc, existing.is_none());
        self.extends(&mut edit)?;
        self.filesystem(&mut edit)?;
        self.denies(&mut edit)?;
        self.access(&mut edit);
        self.calls(&mut edit)?;
        self.given(&mut edit);
        self.counters(&mut edit.doc);
        self.trailing(&mut edit.doc);
        Ok(edit.finish())
    }

    fn head(&self, doc: &mut DocumentMut, is_fresh: bool) {
        if is_fresh {
            let text = "# Written by apex-run --learn. Learn again to merge; lines of your own stay, lines that you remove stay out.\n";
            let command = self.command.as_deref().unwrap_or("recorded events");
            let lines: Vec<&str> = command.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let about = format!("learned from {}", clean(&lines.join("; ")));
            doc.insert("description", Item::Value(about.into()));
            if let Some(mut key) = doc.key_mut("description") {
                key.leaf_decor_mut().set_prefix(text);
            }
        }
        if !doc.contains_key("mode") {
            doc.insert("mode", Item::Value(self.setting.mode.name().into()));
        }
    }

    /// Once: what a person takes out later stays out.
    fn extends(&self, edit: &mut Edit<'_>) -> Result<(), LearnError> {
        if edit.old.runs > 0 {
            return Ok(());
        }
        let shape = edit.shape("extends");
        let item = edit.doc.entry("extends").or_insert_with(|| Item::Value(Value::Array(Array::new())));
        let list = item.as_array_mut().ok_or(shape)?;
        for profile in self.setting.profile.iter().map(String::as_str).chain([SECRETS]) {
            let word = format!("{PROFILE}{profile}");
            if !list.iter().any(|known| known.as_str() == Some(&word)) {
                list.push(word);
            }
        }
        Ok(())
    }

    /// What the run denied stays denied, whatever is granted around it later; and so do keys that lie in what is granted.
    fn denies(&self, edit: &mut Edit<'_>) -> Result<(), LearnError> {
        let denied = self.setting.given.deny.iter().map(|path| (path, "denied in the run that was learned from"));
        let found = self.keys.denied.iter().map(|(path, why)| (path, *why));
        for (path, reason) in denied.chain(found) {
            let Some(word) = shorten(path, &self.setting) else { continue };
            let list = edit.list("filesystem", "deny")?;
            if list.iter().filter_map(word_of).any(|known| known == word) {
                continue;
            }
            let mut deny = InlineTable::new();
            deny.insert("path", word.into());
            deny.insert("reason", reason.into());
            list.push_formatted(row(Value::InlineTable(deny), None));
            close(list);
        }
        Ok(())
    }

    fn filesystem(&self, edit: &mut Edit<'_>) -> Result<(), LearnError> {
        if self.setting.starts_bare() && !edit.table("filesystem").contains_key("inherit") {
            self.start_bare(edit)?;
        }
        for right in Right::ALL {
            let of_right = self.files.iter().filter(|((of, _), _)| *of == right);
            let rows = of_right.filter_map(|((_, path), need)| self.row(right, path, need)).collect();
            edit.update("filesystem", right.name(), right.name(), rows)?;
        }
        Ok(())
    }

    fn start_bare(&self, edit: &mut Edit<'_>) -> Result<(), LearnError> {
        edit.absent("filesystem", "inherit", false.into());
        for (right, places) in [(Right::Read, &SEEDS[..]), (Right::Exec, &SEEDS[..SEEDS_EXEC])] {
            let list = edit.list("filesystem", right.name())?;
            for place in places {
                list.push_formatted(row(piece(place, None, "the system: no program starts without"), None));
            }
        }
        let list = edit.list("filesystem", "tmpfs")?;
        for place in &self.setting.base.tmpfs {
            list.extend(place.to_str().map(|place| row(place.into(), None)));
        }
        Ok(())
    }

    fn row(&self, right: Right, path: &Path, need: &Need) -> Option<Row> {
        let word = shorten(path, &self.setting)?;
        let value = match right {
            Right::Tmpfs => Value::from(word.as_str()),
            Right::Read | Right::Write | Right::Exec | Right::Name => {
                let source = self.setting.source(path);
                let source = (source != *path).then(|| shorten(&source, &self.setting)).flatten();
                piece(&word, source.as_deref(), &self.reason(right, need))
            }
        };
        Some(Row { word, value, comment: None })
    }

    fn reason(&self, right: Right, need: &Need) -> String {
        let verb = match right {
            Right::Read if !need.is_opened => "looked at",
            Right::Read if need.is_listing() => "listed",
            Right::Read => "read",
            Right::Write => "written",
            Right::Exec => "executed",
            Right::Tmpfs => "used",
            Right::Name => "its name alone: passed or looked at",
        };
        format!("{verb}{}", self.counted(need))
    }

    fn counted(&self, need: &Need) -> String {
        let by: Vec<String> = need.seen.by.iter().map(|by| clean(by)).collect();
        let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
        let times = if need.seen.times == 1 { "once".to_owned() } else { format!("{} times", need.seen.times) };
        format!("{by}, {times} in {} of {} runs", need.runs, self.runs)
    }

    fn access(&self, edit: &mut Edit<'_>) {
        let current = edit.doc.get("network").and_then(|table| table.get("access")).and_then(Item::as_str);
        if current.is_some_and(|value| !edit.is_learned("network", value)) {
            return;
        }
        let wanted = match &self.network {
            Some(_) => "host",
            None if self.setting.base.has_network => "none",
            None => return,
        };
        let mut value = Value::from(wanted);
        if let Some(need) = &self.network {
            let peers = if need.notes.is_empty() { String::new() } else { format!(": {}", need.noted(", ")) };
            value.decor_mut().set_suffix(format!(" # used{}{peers}", self.counted(need)));
        }
        edit.table("network").insert("access", Item::Value(value));
    }

    fn calls(&self, edit: &mut Edit<'_>) -> Result<(), LearnError> {
        let Some(groups) = &self.groups else { return Ok(()) };
        edit.absent("syscalls", "inherit", false.into());
        edit.absent("syscalls", "default", "deny".into());
        let rows = groups.iter().map(|(group, need)| {
            let comment = match companion_of(group, groups).filter(|_| need.runs == 0) {
                Some(of) => format!("{WITH}{of}: it reaches nothing outside of the sandbox"),
                None => {
                    let calls = if need.notes.is_empty() { String::new() } else { format!(": {}", need.noted(" ")) };
                    format!("{USED}{}{calls}", self.counted(need).trim_start_matches([',', ' ']))
                }
            };
            Row { word: group.clone(), value: Value::from(group.as_str()), comment: Some(comment) }
        });
        edit.update("syscalls", "allow", "calls", rows.collect())
    }

    /// What the run was given beside: into a file that says nothing about it. Values of variables may be secrets: only names are written.
    fn given(&self, edit: &mut Edit<'_>) {
        let given = &self.setting.given;
        let names: Array = given.pass.iter().chain(&given.set).collect();
        if !names.is_empty() {
            edit.absent("environment", "pass", Value::Array(names));
        }
        if !given.capabilities.is_empty() {
            let names: Array = given.capabilities.iter().collect();
            edit.absent("capabilities", "keep", Value::Array(names));
        }
        if let Some(view) = given.proc {
            let word = match view {
                ProcView::None => "none",
                ProcView::Pid => "pid",
                ProcView::Masked => "masked",
            };
            edit.absent("filesystem", "proc", word.into());
        }
        for (name, limit) in &given.limits {
            let value = match (name.as_str(), limit) {
                (_, None) => Value::from("unlimited"),
                ("wall_time", Some(ms)) => Value::from(format!("{ms}ms")),
                ("memory" | "swap" | "file_size" | "tmp_size", Some(bytes)) => Value::from(amount::size(*bytes)),
                (_, Some(count)) => Value::from(i64::try_from(*count).unwrap_or(i64::MAX)),
            };
            edit.absent("resources", name, value);
        }
    }

    fn counters(&self, doc: &mut DocumentMut) {
        let mut seen = Table::new();
        for ((right, path), need) in &self.files {
            if let Some(word) = shorten(path, &self.setting) {
                let mut row = counter(need);
                if *right == Right::Read && !need.is_opened {
                    row.insert("looked", true.into());
                }
                seen.insert(&key(right.name(), &word), value(row));
            }
        }
        for (group, need) in self.groups.iter().flatten() {
            seen.insert(&key("calls", group), value(counter(need)));
        }
        match &self.network {
            Some(need) => drop(seen.insert("network host", value(counter(need)))),
            None if self.setting.base.has_network => {
                drop(seen.insert("network none", value(counter(&Need::default()))))
            }
            None => {}
        }
        let mut learned = Table::new();
        learned.insert("version", Item::Value(i64::from(VERSION).into()));
        learned.insert("runs", Item::Value(i64::try_from(self.runs).unwrap_or(i64::MAX).into()));
        learned.insert("seen", Item::Table(seen));
        if let Some(old) = doc.get("learned").and_then(Item::as_table) {
            // The comments before it.
            *learned.decor_mut() = old.decor().clone();
        }
        doc.insert("learned", Item::Table(learned));
    }

    /// The comments at the end: those of a person stay, ours are written anew.
    fn trailing(&self, doc: &mut DocumentMut) {
        let old = doc.trailing().as_str().unwrap_or_default().to_owned();
        let is_ours = |line: &&str| [NOT_GRANTED, NOT_SEARCHED, NOT_COPIED].iter().any(|start| line.starts_with(start));
        let mut lines: Vec<String> =
            old.lines().filter(|line| !line.is_empty() && !is_ours(line)).map(str::to_owned).collect();
        let told = old.lines().filter_map(|line| line.strip_prefix(NOT_GRANTED)).filter(|line| !line.ends_with(MORE));
        let mut asked: BTreeSet<String> = told.map(str::to_owned).collect();
        for (what, why) in &self.asked {
            let start = format!("{} (", clean(what));
            while let Some(line) = asked.range(start.clone()..).next().filter(|line| line.starts_with(&start)).cloned()
            {
                asked.remove(&line);
            }
            asked.insert(format!("{start}{})", clean(why)));
        }
        let more = asked.len().saturating_sub(ASKED_MAX);
        let mut own: Vec<String> =
            asked.into_iter().take(ASKED_MAX).map(|line| format!("{NOT_GRANTED}{line}")).collect();
        if more > 0 {
            own.push(format!("{NOT_GRANTED}{more}{MORE}"));
        }
        own.extend(self.keys.unsearched.iter().map(|dir| format!("{NOT_SEARCHED}{}", clean(&dir.to_string_lossy()))));
        own.extend(self.setting.given.set.iter().map(|name| format!("{NOT_COPIED}{}", clean(name))));
        if !own.is_empty() {
            lines.push(String::new());
        }
        let text: String = lines.into_iter().chain(own).map(|line| line + "\n").collect();
        doc.set_trailing(text);
    }
}

fn counter(need: &Need) -> InlineTable {
    let mut row = InlineTable::new();
    row.insert("times", i64::try_from(need.seen.times).unwrap_or(i64::MAX).into());
    row.insert("runs", i64::try_from(need.runs).unwrap_or(i64::MAX).into());
    if !need.seen.by.is_empty() {
        let by: Array = need.seen.by.iter().collect();
        row.insert("by", Value::Array(by));
    }
    if need.is_listing() {
        row.insert("listed", true.into());
    }
    row
}

impl Need {
    /// The first notes, and that there are more.
    fn noted(&self, between: &str) -> String {
        let mut notes: Vec<String> = self.notes.iter().take(NOTES_MAX).map(|note| clean(note)).collect();
        if self.notes.len() > NOTES_MAX {
            notes.push("…".to_owned());
        }
        notes.join(between)
    }
}

fn piece(word: &str, source: Option<&str>, reason: &str) -> Value {
    let mut row = InlineTable::new();
    row.insert("path", source.unwrap_or(word).into());
    if source.is_some() {
        row.insert("dest", word.into());
    }
    row.insert("reason", reason.into());
    // A host without it goes on, and the program finds out.
    row.insert("optional", true.into());
    Value::InlineTable(row)
}

/// Words of the sandbox on one line, without what a terminal or a parser would take for something else.
fn clean(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut short: String = plain.take(COMMENT_CHARS_MAX).collect();
    if text.chars().count() > COMMENT_CHARS_MAX {
        short.push_str("...");
    }
    short
}
