//! The options of `apex-run`, once: the parser, `--help`, the man page and the completions all read this table.
//!
//! What an option does stands elsewhere. [`Switch`] and [`Value`] tie a row to its arm in the parser, whose matches are total: a row
//! without a meaning does not compile.

/// One row: an option as people write it.
#[derive(Debug)]
pub struct Row {
    /// Name after the two dashes.
    pub long: &'static str,
    /// Name after one dash.
    pub short: Option<char>,
    /// What it is, and what it takes.
    pub kind: Kind,
    /// Whether it may be given more than once.
    pub repeatable: bool,
    /// Under which heading it stands.
    pub section: Section,
    /// What it does, in plain words; no full stop at the end.
    pub help: &'static str,
}

/// An option is a switch or takes a value.
#[derive(Debug)]
pub enum Kind {
    /// Takes nothing.
    Switch(Switch),
    /// Takes one value.
    Takes {
        /// Which option it is.
        value: Value,
        /// How the help writes the value.
        name: &'static str,
        /// What a shell can offer for it.
        hint: Hint,
    },
    /// Takes a value behind `=`, or nothing.
    May {
        /// Which option it is.
        value: Value,
        /// How the help writes the value.
        name: &'static str,
        /// What stands for a value that is not given.
        absent: &'static str,
        /// What a shell can offer for it.
        hint: Hint,
    },
}

/// What a shell can offer.
#[derive(Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nothing sensible.
    Nothing,
    /// Names of files and directories.
    Path,
    /// Names of directories.
    Directory,
    /// Names of environment variables.
    Variable,
    /// One of these words.
    Words(&'static [&'static str]),
}

/// A heading of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Where the rules come from.
    Policy,
    /// Files and directories.
    Files,
    /// Network, environment, identity, descriptors.
    World,
    /// Limits.
    Limits,
    /// Seeing what is in force and why.
    Insight,
    /// Seeing what the command does.
    Watching,
    /// The rest.
    General,
}

impl Section {
    /// Every heading, in the order of the help.
    pub const ALL: [Section; 7] = [
        Section::Policy,
        Section::Files,
        Section::World,
        Section::Limits,
        Section::Insight,
        Section::Watching,
        Section::General,
    ];

    /// The heading.
    pub const fn title(self) -> &'static str {
        match self {
            Section::Policy => "Policy",
            Section::Files => "Files",
            Section::World => "Surroundings",
            Section::Limits => "Limits",
            Section::Insight => "Insight",
            Section::Watching => "Watching",
            Section::General => "General",
        }
    }
}

/// Each option that takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the row of each says what it does")]
pub enum Switch {
    Plan,
    Why,
    Prove,
    Doctor,
    Json,
    Summary,
    Defer,
    Warm,
    Help,
    Version,
}

/// Each option that takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the row of each says what it does")]
pub enum Value {
    Mode,
    Policy,
    Profile,
    Level,
    Optional,
    Ro,
    Rw,
    Tmpfs,
    Deny,
    Net,
    Env,
    PassEnv,
    Workdir,
    Uid,
    Gid,
    Hostname,
    Fd,
    Tty,
    Memory,
    Cpu,
    Tasks,
    Nofile,
    TmpSize,
    Time,
    Receipt,
    Watch,
    Events,
    Findings,
    OnFinding,
    Baseline,
    Learn,
    TtySize,
    Overlay,
    Keep,
    Mail,
    Completions,
}

/// Names of the modes.
pub const ISOLATION: &[&str] = &["full", "partial", "none"];
const MODES: &[&str] = &["isolation", "development", "hybrid"];
/// Names of the profiles that are embedded. Others come from `/etc/apex` and `~/.config/apex`.
pub const PROFILES: &[&str] = &["python", "node", "build", "shell", "static"];
/// Names of the layers that may be optional.
pub const OPTIONAL_LAYERS: &[&str] =
    &["netns", "ipcns", "utsns", "cgroupns", "timens", "seccomp", "landlock", "cgroup", "rlimits"];
/// Shells for which completions can be printed.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];
/// Levels of watching.
pub const LEVELS: &[&str] = &["off", "default", "full"];
/// What can be done on a finding.
pub const REACTIONS: &[&str] = &["warn", "freeze", "kill", "tighten"];
/// What is done with the baseline.
pub const BASELINES: &[&str] = &["alert", "learn", "off"];
const NETWORKS: &[&str] = &["none", "host"];
const TTYS: &[&str] = &["auto", "yes", "no"];

const fn row(section: Section, long: &'static str, kind: Kind, help: &'static str) -> Row {
    Row { long, short: None, kind, repeatable: false, section, help }
}

const fn takes(value: Value, name: &'static str, hint: Hint) -> Kind {
    Kind::Takes { value, name, hint }
}

impl Row {
    const fn repeatable(self) -> Row {
        Row { repeatable: true, ..self }
    }

    const fn short(self, letter: char) -> Row {
        Row { short: Some(letter), ..self }
    }
}

/// The table, in the order of the help.
pub static TABLE: &[Row] = &[
    row(
        Section::Policy,
        "mode",
        takes(Value::Mode, "MODE", Hint::Words(MODES)),
        "isolation (default: everything on), development (readable host, writable working directory, reports) or hybrid",
    ),
    row(
        Section::Policy,
        "level",
        takes(Value::Level, "LEVEL", Hint::Words(ISOLATION)),
        "full (default), partial (the host's own files under Landlock and the filter; not in isolation) or none (a managed process that nothing confines; development only)",
    ),
    row(
        Section::Policy,
        "profile",
        takes(Value::Profile, "NAME", Hint::Words(PROFILES)),
        "what a kind of program needs: python, node, build, shell, static, or one of your own",
    ),
    row(
        Section::Policy,
        "policy",
        takes(Value::Policy, "FILE", Hint::Path),
        "a policy file (TOML) on top of mode and profile",
    ),
    row(
        Section::Policy,
        "optional",
        takes(Value::Optional, "LAYER", Hint::Words(OPTIONAL_LAYERS)),
        "go on without this layer when the host cannot give it; the receipt shows the skip",
    )
    .repeatable(),
    row(
        Section::Files,
        "ro",
        takes(Value::Ro, "PATH[:DEST]", Hint::Path),
        "show PATH of the host, read and execute, at the same place or at DEST (absolute)",
    )
    .repeatable(),
    row(
        Section::Files,
        "rw",
        takes(Value::Rw, "PATH[:DEST]", Hint::Path),
        "the same, writable: changes reach the host",
    )
    .repeatable(),
    row(
        Section::Files,
        "tmpfs",
        takes(Value::Tmpfs, "DEST[:SIZE]", Hint::Nothing),
        "an empty private directory in memory at DEST, such as /var/cache:64M",
    )
    .repeatable(),
    row(
        Section::Files,
        "deny",
        takes(Value::Deny, "PATH", Hint::Path),
        "refuse PATH under every name, also before it exists; wins over every grant",
    )
    .repeatable(),
    row(
        Section::Files,
        "overlay",
        takes(Value::Overlay, "DIR", Hint::Directory),
        "writes go to DIR, not to the host: see them with `apex-run diff DIR`, apply them with `apex-run commit DIR`",
    ),
    row(
        Section::World,
        "net",
        takes(Value::Net, "none|host", Hint::Words(NETWORKS)),
        "an empty network with its own loopback, or the network of the host",
    ),
    row(Section::World, "env", takes(Value::Env, "K=V", Hint::Nothing), "set a variable inside").repeatable(),
    row(
        Section::World,
        "pass-env",
        takes(Value::PassEnv, "K", Hint::Variable),
        "pass a variable of the caller; nothing else of the caller's environment goes in",
    )
    .repeatable(),
    row(
        Section::World,
        "workdir",
        takes(Value::Workdir, "DIR", Hint::Directory),
        "working directory inside (default: the caller's where it is visible)",
    ),
    row(Section::World, "uid", takes(Value::Uid, "ID", Hint::Nothing), "user id inside"),
    row(Section::World, "gid", takes(Value::Gid, "ID", Hint::Nothing), "group id inside"),
    row(Section::World, "hostname", takes(Value::Hostname, "NAME", Hint::Nothing), "host name inside"),
    row(
        Section::World,
        "fd",
        takes(Value::Fd, "N", Hint::Nothing),
        "pass descriptor N (3 or more); every other one above 2 is closed",
    )
    .repeatable(),
    row(
        Section::World,
        "tty",
        takes(Value::Tty, "auto|yes|no", Hint::Words(TTYS)),
        "a terminal of its own for the command; auto gives one when input and output are a terminal",
    ),
    row(
        Section::Limits,
        "memory",
        takes(Value::Memory, "SIZE", Hint::Nothing),
        "memory of the whole sandbox, such as 512M; private directories in memory count",
    ),
    row(
        Section::Limits,
        "cpu",
        takes(Value::Cpu, "PERCENT", Hint::Nothing),
        "CPU time, in percent of one core (200 is two cores)",
    ),
    row(Section::Limits, "tasks", takes(Value::Tasks, "N", Hint::Nothing), "processes and threads at once"),
    row(Section::Limits, "nofile", takes(Value::Nofile, "N", Hint::Nothing), "open descriptors of one process"),
    row(
        Section::Limits,
        "tmp-size",
        takes(Value::TmpSize, "SIZE", Hint::Nothing),
        "size of /tmp and of each --tmpfs without one",
    ),
    row(
        Section::Limits,
        "time",
        takes(Value::Time, "DURATION", Hint::Nothing),
        "life of the sandbox, such as 90s or 10m; then exit code 124",
    ),
    row(
        Section::Insight,
        "plan",
        Kind::Switch(Switch::Plan),
        "print what would be done, and from which rule each step comes; do nothing",
    ),
    row(
        Section::Insight,
        "receipt",
        takes(Value::Receipt, "FILE|-", Hint::Path),
        "write what is really in force, read back from the kernel (- is standard output)",
    ),
    row(
        Section::Insight,
        "why",
        Kind::Switch(Switch::Why),
        "afterwards explain each refusal: layer, rule, and the smallest safe change that allows it",
    ),
    row(
        Section::Insight,
        "prove",
        Kind::Switch(Switch::Prove),
        "attempt the forbidden things in a sandbox made from this very policy; needs no command",
    ),
    row(
        Section::Insight,
        "doctor",
        Kind::Switch(Switch::Doctor),
        "tell which layers this host and user can have; needs no command",
    ),
    row(Section::Insight, "json", Kind::Switch(Switch::Json), "JSON instead of text for each of these"),
    row(
        Section::Watching,
        "watch",
        Kind::May { value: Value::Watch, name: "LEVEL", absent: "default", hint: Hint::Words(LEVELS) },
        "watch what the command does: default has no hook on every system call, full has all; the next five imply default",
    ),
    row(
        Section::Watching,
        "events",
        takes(Value::Events, "SINK", Hint::Path),
        "write each event as a line of JSON to a file, - (standard output), stderr, journald, syslog or an https:// address",
    )
    .repeatable(),
    row(
        Section::Watching,
        "findings",
        takes(Value::Findings, "SINK", Hint::Path),
        "write each finding there too, beside its line on standard error",
    )
    .repeatable(),
    row(
        Section::Watching,
        "on-finding",
        takes(Value::OnFinding, "REACTION", Hint::Words(REACTIONS)),
        "on a finding of severity high or above: warn (default), freeze, kill, or tighten network and resources",
    ),
    row(
        Section::Watching,
        "baseline",
        takes(Value::Baseline, "WHAT", Hint::Words(BASELINES)),
        "alert of a run that does what no earlier one of its policy did (default where that was learned), learn from it, or off",
    ),
    row(
        Section::Watching,
        "summary",
        Kind::Switch(Switch::Summary),
        "afterwards tell on standard error what the command did: programs, files, hosts, refusals, odd things",
    ),
    row(
        Section::Watching,
        "learn",
        takes(Value::Learn, "FILE", Hint::Path),
        "watch at full and write the narrowest policy to FILE, or merge into it; writes go to an overlay, secrets stay denied",
    ),
    row(
        Section::General,
        "keep",
        takes(Value::Keep, "FD,FD,...", Hint::Nothing),
        "hold the sandbox for apexd: a listening socket, a file for how it ended, and descriptors to be handed out",
    ),
    row(
        Section::General,
        "defer",
        Kind::Switch(Switch::Defer),
        "with --keep: build the sandbox and start the command when its arguments come",
    ),
    row(
        Section::General,
        "warm",
        Kind::Switch(Switch::Warm),
        "with --keep: start the interpreter (python3, node), which waits for the command line that it is to run",
    ),
    row(
        Section::General,
        "mail",
        takes(Value::Mail, "DIR", Hint::Path),
        "with --keep: where apexd listens for the messages of a policy with mailboxes",
    ),
    row(
        Section::General,
        "tty-size",
        takes(Value::TtySize, "ROWSxCOLUMNS", Hint::Nothing),
        "with --keep: size of the command's terminal, which otherwise is that of the caller",
    ),
    row(
        Section::General,
        "completions",
        takes(Value::Completions, "SHELL", Hint::Words(SHELLS)),
        "print completions for bash, zsh or fish",
    ),
    row(Section::General, "help", Kind::Switch(Switch::Help), "print this text").short('h'),
    row(Section::General, "version", Kind::Switch(Switch::Version), "print the version").short('V'),
];

#[cfg(test)]
mod tests {
    use super::*;
    use apex_core::layer::Layer;

    #[test]
    fn names_are_unique() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(!TABLE[..index].iter().any(|other| other.long == row.long), "--{}", row.long);
        }
    }

    #[test]
    fn optional_layers_are_those_that_are_no_foundation() {
        let mut expected: Vec<_> = Layer::ALL.iter().filter(|layer| !layer.is_foundation()).map(|l| l.name()).collect();
        let mut listed = OPTIONAL_LAYERS.to_vec();
        expected.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, expected);
    }

    #[test]
    fn help_has_no_full_stop_and_is_ascii() {
        for row in TABLE {
            assert!(!row.help.ends_with('.') && row.help.is_ascii(), "--{}", row.long);
        }
    }
}
