//! From a mode, a profile, a policy file and flags to one [`Policy`]. Core does no I/O: text comes through [`Sources`].
//!
//! Order: mode, profile, what the policy file extends (depth first), the policy file, flags.

use std::path::{Path, PathBuf};

use super::ceiling::{self, Bounds, Ceiling};
use super::embedded;
use super::error::{PolicyError, nearest};
use super::file::{self, File, FilesystemTable, Lines, SyscallsTable};
use super::flags::Flags;
use super::merge::Draft;
use super::path::{self, Context};
use super::source::Source;
use super::{Mode, Origin, Policy};

/// Links of `extends` that may follow each other.
pub const DEPTH_MAX: usize = 16;
/// Files that one policy may be made of.
pub const FILES_MAX: usize = 64;

/// The built-in profiles: name and text.
pub const PROFILES: [(&str, &str); 6] = [
    ("build", include_str!("../../../../policies/profiles/build.toml")),
    ("node", include_str!("../../../../policies/profiles/node.toml")),
    ("python", include_str!("../../../../policies/profiles/python.toml")),
    ("secrets", include_str!("../../../../policies/profiles/secrets.toml")),
    ("shell", include_str!("../../../../policies/profiles/shell.toml")),
    ("static", include_str!("../../../../policies/profiles/static.toml")),
];

/// The text of a built-in mode.
pub const fn mode_text(mode: Mode) -> &'static str {
    match mode {
        Mode::Isolation => include_str!("../../../../policies/modes/isolation.toml"),
        Mode::Development => include_str!("../../../../policies/modes/development.toml"),
        Mode::Hybrid => include_str!("../../../../policies/modes/hybrid.toml"),
    }
}

/// Where the text of files comes from. The caller reads; a caller that has none returns `Ok(None)`.
pub trait Sources {
    /// The text at an absolute path, or `None` when nothing is there.
    ///
    /// # Errors
    /// Whatever keeps a file that is there from being read; the resolution then fails.
    fn load(&mut self, path: &Path) -> std::io::Result<Option<String>>;
}

impl<F: FnMut(&Path) -> std::io::Result<Option<String>>> Sources for F {
    fn load(&mut self, path: &Path) -> std::io::Result<Option<String>> {
        self(path)
    }
}

/// Everything that a resolution depends on, beside the files.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// `--mode`; otherwise the policy file names one, otherwise isolation.
    pub mode: Option<Mode>,
    /// `--profile`.
    pub profile: Option<String>,
    /// `--policy`; a relative path starts at `cwd`.
    pub policy_file: Option<PathBuf>,
    /// The flags that are rules.
    pub flags: Flags,
    /// Home directory of the caller.
    pub home: Option<PathBuf>,
    /// Working directory of the caller, absolute.
    pub cwd: PathBuf,
    /// `TMPDIR` of the caller; `/tmp` when not set.
    pub tmpdir: Option<PathBuf>,
    /// The administrator's directory (`/etc/apex`), with `modes/` and `profiles/`.
    pub system_config: Option<PathBuf>,
    /// The user's directory (`~/.config/apex`), with `modes/` and `profiles/`.
    pub user_config: Option<PathBuf>,
    /// Names of the system call groups that exist.
    pub groups: &'a [&'a str],
}

/// A parsed file on its way into the draft.
struct Loaded {
    file: File,
    lines: Lines,
    dir: Option<PathBuf>,
    role: Role,
}

/// Merges everything that `inputs` names, checks it against the ceiling of the mode and gives the policy.
///
/// # Errors
/// [`PolicyError`] names the rule with its file and line, and what is accepted instead.
pub fn resolve(inputs: &Inputs<'_>, sources: &mut dyn Sources) -> Result<Policy, PolicyError> {
    merge(inputs, sources, None).map(|(policy, _)| policy)
}

/// The same for a run that is learned from: `policies/learning.toml` is merged between the policy file and the flags. Under the same
/// ceiling, which comes along: the learned policy must not ask for more.
///
/// # Errors
/// Those of [`resolve`].
pub fn resolve_for_learning(inputs: &Inputs<'_>, sources: &mut dyn Sources) -> Result<(Policy, Bounds), PolicyError> {
    merge(inputs, sources, Some((LEARNING, LEARNING_TEXT))).map(|(policy, ceiling)| (policy, ceiling.bounds()))
}

/// The name of the rules of a run that is learned from: what the planner and the merge take for a built-in profile, since it is one.
pub const LEARNING: &str = "profiles/learning.toml";
const LEARNING_TEXT: &str = include_str!("../../../../policies/learning.toml");

fn merge(
    inputs: &Inputs<'_>,
    sources: &mut dyn Sources,
    on_top: Option<(&str, &str)>,
) -> Result<(Policy, Ceiling), PolicyError> {
    let mut loader = Loader { inputs, sources, loaded: Vec::new(), finished: Vec::new(), open: Vec::new() };
    if let Some(name) = &inputs.profile {
        loader.profile(name, &Origin::flag("--profile"))?;
    }
    if let Some(path) = &inputs.policy_file {
        loader.policy(path::normalise(&inputs.cwd.join(path)), &Origin::flag("--policy"))?;
    }
    let named = loader.loaded.iter().rev().find_map(|loaded| loaded.file.mode.as_ref().map(|mode| *mode.get_ref()));
    let mode = inputs.mode.or(named).unwrap_or(Mode::Isolation);
    let (modes, ceiling) = loader.mode(mode)?;
    if let Some((name, text)) = on_top {
        let lines = Lines::new(name.to_owned(), text);
        let file = file::parse(text, &lines)?;
        loader.take(name.to_owned(), Loaded { file, lines, dir: None, role: Role::Profile })?;
    }

    let context = Context {
        home: inputs.home.as_deref(),
        cwd: &inputs.cwd,
        tmpdir: inputs.tmpdir.as_deref().filter(|path| path.is_absolute()).unwrap_or(Path::new("/tmp")),
    };
    let mut draft = Draft::default();
    let mut names = Vec::with_capacity(modes.len() + loader.loaded.len() + 1);
    let mut defaults = Vec::with_capacity(modes.len());
    for Loaded { file, lines, dir, role } in modes.into_iter().chain(loader.loaded) {
        let raise_limits = role == Role::Profile;
        if role == Role::Mode {
            defaults.push(lines.source().to_owned());
        }
        if file.learned.is_some() {
            check_learned(&file.filesystem, &lines, &context)?;
        }
        draft.apply(
            file,
            &Source { lines: &lines, dir: dir.as_deref(), context: &context, groups: inputs.groups, raise_limits },
        )?;
        names.push(lines.into_source());
    }
    if !inputs.flags.is_empty() {
        inputs.flags.apply(&mut draft, &context)?;
        names.push("flags".to_owned());
    }
    let mut policy = draft.finish(mode, names, &defaults, &ceiling)?;
    policy.config = [&inputs.system_config, &inputs.user_config].into_iter().flatten().cloned().collect();
    Ok((policy, ceiling))
}

/// A learned policy says `${CWD}` of the directory of some work, which is what learning writes so (`learn::has_own_cwd`). In a home, `/` or
/// `/tmp` the same line would give what nobody learned, and what learning never grants as a whole.
fn check_learned(table: &FilesystemTable, lines: &Lines, context: &Context<'_>) -> Result<(), PolicyError> {
    if crate::learn::has_own_cwd(context.cwd, context.home) {
        return Ok(());
    }
    let FilesystemTable { read, write, exec, .. } = table;
    let mut follows = read.iter().chain(write).chain(exec).filter(|entry| entry.get_ref().0.path.contains("${CWD}"));
    match follows.next() {
        Some(entry) => Err(PolicyError::value(
            &lines.origin(&entry.span()),
            format!(
                "`${{CWD}}` is `{}` here, which is shared by others and was not learned from; start in the directory of the work, or write its path instead of `${{CWD}}`",
                context.cwd.display()
            ),
        )),
        None => Ok(()),
    }
}

struct Loader<'a> {
    inputs: &'a Inputs<'a>,
    sources: &'a mut dyn Sources,
    /// In the order of the merge.
    loaded: Vec<Loaded>,
    /// Names of what was taken in: a file that is reached twice counts once.
    finished: Vec<String>,
    /// Names of the files that are being read, outermost first.
    open: Vec<String>,
}

/// What a file is decides which keys it may have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Mode,
    Profile,
    Policy,
}

impl Loader<'_> {
    /// The layers of a mode, weakest first, and its ceiling.
    fn mode(&mut self, mode: Mode) -> Result<(Vec<Loaded>, Ceiling), PolicyError> {
        let system = self.config_file(self.inputs.system_config.as_deref(), "modes", mode.name())?;
        let user = self.config_file(self.inputs.user_config.as_deref(), "modes", mode.name())?;
        let (file, lines) = embedded::mode(mode);
        let mut built_in = Loaded { file, lines, dir: None, role: Role::Mode };
        let ceiling = Ceiling::built_in(take_ceiling(&mut built_in.file).unwrap_or_default(), built_in.lines.source());

        let (mut base, ceiling) = match system {
            None => (built_in, ceiling),
            Some((path, text)) => {
                let mut system = read_at(&path, &text, Role::Mode)?;
                let ceiling = ceiling.replaced(take_ceiling(&mut system.file), system.lines.source());
                (system, ceiling)
            }
        };
        let Some((path, text)) = user else {
            return Ok((vec![base], ceiling));
        };
        let mut user = read_at(&path, &text, Role::Mode)?;
        let ceiling = ceiling.narrowed(take_ceiling(&mut user.file), user.lines.source());
        base.file = refusals_of(base.file);
        Ok((vec![base, user], ceiling))
    }

    fn profile(&mut self, name: &str, by: &Origin) -> Result<(), PolicyError> {
        let id = format!("profile:{name}");
        if !self.enter(&id, by)? {
            return Ok(());
        }
        // The name becomes part of a path.
        let plain =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        let text = match plain {
            true => match self.config_file(self.inputs.user_config.as_deref(), "profiles", name)? {
                None => self.config_file(self.inputs.system_config.as_deref(), "profiles", name)?,
                found => found,
            },
            false => None,
        };
        let loaded = match text {
            Some((path, text)) => read_at(&path, &text, Role::Profile)?,
            None => {
                let (file, lines) = embedded::profile(name).ok_or_else(|| self.unknown_profile(name, by))?;
                Loaded { file, lines, dir: None, role: Role::Profile }
            }
        };
        self.take(id, loaded)
    }

    fn policy(&mut self, path: PathBuf, by: &Origin) -> Result<(), PolicyError> {
        let id = path.to_string_lossy().into_owned();
        if !self.enter(&id, by)? {
            return Ok(());
        }
        let Some(text) = self.load(&path)? else {
            return Err(PolicyError::Missing { path, by: by.clone() });
        };
        let loaded = read_at(&path, &text, Role::Policy)?;
        self.take(id, loaded)
    }

    /// Whether `id` is still to be read.
    fn enter(&mut self, id: &str, by: &Origin) -> Result<bool, PolicyError> {
        if let Some(start) = self.open.iter().position(|open| open == id) {
            let mut chain = self.open[start..].to_vec();
            chain.push(id.to_owned());
            return Err(PolicyError::Cycle { at: by.clone(), chain });
        }
        if self.finished.iter().any(|done| done == id) {
            return Ok(false);
        }
        if self.open.len() == DEPTH_MAX {
            return Err(PolicyError::TooMany { at: by.clone(), what: "links of `extends` in a row", max: DEPTH_MAX });
        }
        if self.finished.len() + self.open.len() == FILES_MAX {
            return Err(PolicyError::TooMany { at: by.clone(), what: "files in one policy", max: FILES_MAX });
        }
        Ok(true)
    }

    /// Takes in what `loaded` extends, then itself. The depth is bounded by `enter`.
    fn take(&mut self, id: String, mut loaded: Loaded) -> Result<(), PolicyError> {
        self.open.push(id.clone());
        let context = Context { home: self.inputs.home.as_deref(), cwd: &self.inputs.cwd, tmpdir: Path::new("/tmp") };
        for link in std::mem::take(&mut loaded.file.extends) {
            let at = loaded.lines.origin(&link.span());
            match link.get_ref().strip_prefix("profile:") {
                Some(name) => self.profile(name, &at)?,
                None => {
                    let path = path::in_file(link.get_ref(), loaded.dir.as_deref(), &context);
                    self.policy(path.map_err(|message| PolicyError::value(&at, message))?, &at)?;
                }
            }
        }
        self.open.pop();
        self.finished.push(id);
        self.loaded.push(loaded);
        Ok(())
    }

    fn config_file(
        &mut self,
        dir: Option<&Path>,
        kind: &str,
        name: &str,
    ) -> Result<Option<(PathBuf, String)>, PolicyError> {
        let Some(dir) = dir else { return Ok(None) };
        let path = dir.join(kind).join(format!("{name}.toml"));
        Ok(self.load(&path)?.map(|text| (path, text)))
    }

    fn load(&mut self, path: &Path) -> Result<Option<String>, PolicyError> {
        self.sources.load(path).map_err(|why| PolicyError::Unreadable { path: path.to_owned(), why })
    }

    fn unknown_profile(&self, name: &str, by: &Origin) -> PolicyError {
        let dirs = [&self.inputs.user_config, &self.inputs.system_config];
        let places: Vec<String> =
            dirs.into_iter().flatten().map(|dir| dir.join("profiles").display().to_string()).collect();
        PolicyError::UnknownProfile {
            name: name.to_owned(),
            by: by.clone(),
            nearest: nearest(name, PROFILES.map(|(known, _)| known)),
            places: if places.is_empty() { "no directory".to_owned() } else { places.join(" and ") },
        }
    }
}

fn read_at(path: &Path, text: &str, role: Role) -> Result<Loaded, PolicyError> {
    let lines = Lines::new(path.to_string_lossy().into_owned(), text);
    let file = file::parse(text, &lines)?;
    let misplaced = |span: std::ops::Range<usize>, what: &str, place: &str| {
        Err(PolicyError::value(&lines.origin(&span), format!("{what} has no place here, only in {place}; remove it")))
    };
    match (&file.ceiling, role) {
        (Some(ceiling), Role::Mode) => ceiling::check_table(ceiling.get_ref(), &lines, &ceiling.span())?,
        (Some(ceiling), Role::Profile | Role::Policy) => {
            return misplaced(ceiling.span(), "`[ceiling]`", "mode files");
        }
        (None, _) => {}
    }
    if let (Some(mode), Role::Mode | Role::Profile) = (&file.mode, role) {
        return misplaced(mode.span(), "`mode`", "policy files");
    }
    if file.learned.is_some() && role != Role::Policy {
        return misplaced(0..0, "`[learned]`", "policy files");
    }
    if let (Some(link), Role::Mode) = (file.extends.first(), role) {
        return misplaced(link.span(), "`extends`", "profiles and policy files");
    }
    Ok(Loaded { file, lines, dir: path.parent().map(Path::to_owned), role })
}

fn take_ceiling(file: &mut File) -> Option<file::CeilingTable> {
    file.ceiling.take().map(toml::Spanned::into_inner)
}

/// What stays of the administrator's mode when the user has an own one: what it refuses, and the isolation level.
fn refusals_of(file: File) -> File {
    File {
        level: file.level,
        filesystem: FilesystemTable {
            hide: file.filesystem.hide,
            deny: file.filesystem.deny,
            ..FilesystemTable::default()
        },
        syscalls: SyscallsTable { deny: file.syscalls.deny, ..SyscallsTable::default() },
        ..File::default()
    }
}

/// The built-in modes whose ceiling lets a policy allow a group of system calls.
pub fn modes_allowing(group: &str) -> Vec<Mode> {
    let allows = |mode: &Mode| {
        let parsed: Result<ModeCeiling, _> = toml::from_str(mode_text(*mode));
        parsed.is_ok_and(|mode| !mode.ceiling.syscalls_forbidden.iter().any(|forbidden| forbidden == group))
    };
    [Mode::Isolation, Mode::Hybrid, Mode::Development].into_iter().filter(allows).collect()
}

#[derive(serde::Deserialize)]
struct ModeCeiling {
    ceiling: ForbiddenGroups,
}

#[derive(serde::Deserialize)]
struct ForbiddenGroups {
    syscalls_forbidden: Vec<String>,
}
