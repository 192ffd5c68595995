//! The command line as clap reads it. Options of `run` and `create` have the names and the words of `apex-run`'s. Checks nothing that apexd checks.

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand};

const TTYS: [&str; 3] = ["auto", "yes", "no"];
const MODES: [&str; 3] = ["isolation", "development", "hybrid"];

/// Sandboxes that a daemon keeps.
///
/// ID is an id, an unambiguous beginning of one, or a name.
///
/// Exit code: that of the command for run and attach, 128+n when signal n ended it; 125 when Apex failed; otherwise 0.
#[derive(Debug, Parser)]
#[command(name = "apex", version, disable_help_subcommand = true)]
pub struct Args {
    /// Socket of apexd [default: /run/apex/apexd.sock as root, else $XDG_RUNTIME_DIR/apex/apexd.sock]
    #[arg(long, global = true, value_name = "PATH", env = "APEX_SOCKET")]
    pub socket: Option<PathBuf>,
    /// JSON instead of words
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a command in a sandbox, with these streams and these signals
    Run {
        /// Forget the sandbox when it has ended
        #[arg(long)]
        rm: bool,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Start a command in a sandbox and print the id of it
    Create {
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Run one more command in a sandbox that runs, with these streams and these signals
    Exec {
        /// Set a variable for it
        #[arg(long, value_name = "K=V")]
        env: Vec<String>,
        /// Where it starts, inside (default: where the command of the sandbox did)
        #[arg(long, value_name = "DIR")]
        workdir: Option<String>,
        /// A terminal of its own: when standard input and output are one, always, or never
        #[arg(long, value_parser = TTYS, default_value = "auto", hide_default_value = true)]
        tty: String,
        id: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Connect to the streams of a sandbox that runs
    Attach { id: String },
    /// Wait until a sandbox has ended; print the exit code of its command
    Wait { id: String },
    /// List sandboxes
    Ls {
        /// Those that have ended as well
        #[arg(short, long)]
        all: bool,
    },
    /// Show all that is known of a sandbox
    Inspect { id: String },
    /// Print what the command wrote
    Logs {
        id: String,
        /// Go on until the sandbox ends
        #[arg(short, long)]
        follow: bool,
        /// Only so much from the end of each stream, in bytes
        #[arg(long, value_name = "BYTES", default_value_t = 0)]
        tail: u64,
        /// Every byte as it was written, also on a terminal, where control characters are made visible otherwise
        #[arg(long)]
        raw: bool,
    },
    /// Print what was seen of a sandbox, a JSON value to a line
    Events {
        id: String,
        /// Go on until the sandbox ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Print what was concluded of a sandbox
    Findings { id: String },
    /// Tell or change the mode of a sandbox
    #[command(subcommand)]
    Mode(ModeVerb),
    /// Change the limits of a sandbox, and what it is refused
    #[command(subcommand)]
    Limits(LimitsVerb),
    /// Freeze every process of a sandbox
    Pause { id: String },
    /// Let a frozen sandbox go on
    Resume { id: String },
    /// Send a signal to the command
    Signal {
        id: String,
        /// Number or name, such as 15, TERM or SIGTERM
        signal: String,
    },
    /// End sandboxes
    Kill {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Forget sandboxes that have ended
    Rm {
        /// End those that still run
        #[arg(short, long)]
        force: bool,
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Start a group of sandboxes and keep it running
    Up {
        /// What is in it (TOML)
        file: PathBuf,
    },
    /// End groups, and forget them
    Down {
        #[arg(required = true, value_name = "GROUP")]
        names: Vec<String>,
    },
    /// List groups and their members
    Groups,
    /// Show the services of apexd and the groups
    Tree,
    /// Show what the sandboxes use
    Stats {
        /// Again every two seconds; with --json a value to a line
        #[arg(short, long)]
        watch: bool,
    },
    /// Sandboxes that are built ahead, for run and create with --pool
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Send messages to sandboxes and receive theirs
    #[command(subcommand)]
    Mail(MailVerb),
    /// Read or check the audit log
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Check policies; needs no daemon
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Print the version
    Version,
    /// Print completions for a shell
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// About modes.
#[derive(Debug, Subcommand)]
pub enum ModeVerb {
    /// Print the mode that a sandbox is in
    Get { id: String },
    /// Propose a mode from what a watched sandbox was seen to do; changes nothing
    Suggest { id: String },
    /// Change it; prints the steps
    Set {
        id: String,
        #[arg(value_parser = MODES)]
        mode: String,
        /// For the audit log
        #[arg(long, default_value = "")]
        reason: String,
        /// Beyond what it was born with, put a new sandbox in its place, made from the same request in that mode
        #[arg(long)]
        successor: bool,
    },
}

/// About limits.
#[derive(Debug, Subcommand)]
pub enum LimitsVerb {
    /// Change those that are given; prints the steps
    Set {
        id: String,
        #[command(flatten)]
        limits: LimitsOptions,
        /// For the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Refuse new calls of one kind, or let them pass again; prints the steps
    Switch {
        id: String,
        /// Such as connect=off; there are connect, bind, sendmsg and devices of a watched sandbox, and reported
        #[arg(required = true, value_name = "SWITCH=on|off")]
        switches: Vec<String>,
        /// For the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Limits that can change while a sandbox runs.
#[derive(Debug, Group)]
#[group(required = true, multiple = true)]
pub struct LimitsOptions {
    /// Memory of the whole sandbox, such as 512M
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    pub tasks: Option<String>,
    /// CPU time, in percent of one core (200 is two cores)
    #[arg(long, value_name = "PERCENT")]
    pub cpu: Option<String>,
}

/// What to do with mailboxes.
#[derive(Debug, Subcommand)]
pub enum MailVerb {
    /// List those with messages in them, or named by a sandbox that runs
    Ls,
    /// Send a message and print its number
    Send {
        #[command(flatten)]
        user: OfUser,
        /// Take the message as text and not as JSON
        #[arg(long)]
        text: bool,
        #[arg(value_name = "NAME")]
        name: String,
        /// The message; that of standard input when it is - or absent
        #[arg(value_name = "BODY", allow_hyphen_values = true)]
        body: Option<String>,
    },
    /// Print the oldest message that nobody has, and be done with it; without one the exit code is 125
    Receive {
        #[command(flatten)]
        user: OfUser,
        /// How long to wait for one, such as 5s or unlimited
        #[arg(long, value_name = "DURATION")]
        wait: Option<String>,
        /// Only look: it is given again, 30 s later
        #[arg(long)]
        keep: bool,
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Throw away what is in a mailbox
    Rm {
        #[command(flatten)]
        user: OfUser,
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// Whose mailbox is meant.
#[derive(Debug, Group)]
pub struct OfUser {
    /// Whose mailbox it is, by name or number (default: yours)
    #[arg(long, value_name = "USER", default_value = "", hide_default_value = true)]
    pub user: String,
}

/// About pools.
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// List them
    Ls,
    /// Have so many of one kind ready from now on; of the command only the program counts
    Set {
        /// How many; 0 leaves it to demand
        #[arg(value_name = "N")]
        size: u64,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Give them up
    Drain {
        /// One of them; all that you may drain when absent
        id: Option<String>,
    },
}

/// About the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Print the newest records, oldest first, a JSON value to a line
    Tail {
        /// How many
        #[arg(short = 'n', long = "lines", value_name = "N", default_value_t = 20)]
        limit: u32,
    },
    /// Tell whether the log is intact
    Verify,
}

/// About policies.
#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// Tell whether a policy file is accepted here, and what it is merged from
    Check {
        file: PathBuf,
        /// On top of this mode, not of the one that the file names
        #[arg(long, value_parser = MODES)]
        mode: Option<String>,
        /// On top of this profile
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
    },
}

/// What a sandbox is made from.
#[derive(Debug, Group)]
pub struct Options {
    /// isolation (default: everything on), development (readable host, writable working directory, reports) or hybrid
    #[arg(long, value_name = "MODE", value_parser = MODES)]
    pub mode: Option<String>,
    /// full (default), partial (the host's own files under Landlock and the filter; not in isolation) or none (nothing is confined; development only)
    #[arg(long, value_name = "LEVEL", value_parser = ["full", "partial", "none"])]
    pub level: Option<String>,
    /// What a kind of program needs: python, node, build, shell, static, or one of your own
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// A policy file (TOML) on top of mode and profile
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// A name for the sandbox, beside its id
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Show PATH of the host, read and execute, at the same place or at DEST (absolute)
    #[arg(long, value_name = "PATH[:DEST]")]
    pub ro: Vec<String>,
    /// The same, writable: changes reach the host
    #[arg(long, value_name = "PATH[:DEST]")]
    pub rw: Vec<String>,
    /// An empty private directory in memory at DEST, such as /var/cache:64M
    #[arg(long, value_name = "DEST[:SIZE]")]
    pub tmpfs: Vec<String>,
    /// Refuse PATH under every name, also before it exists; wins over every grant
    #[arg(long, value_name = "PATH")]
    pub deny: Vec<String>,
    /// Go on without this layer when the host cannot give it
    #[arg(long, value_name = "LAYER")]
    pub optional: Vec<String>,
    /// An empty network with its own loopback, or the network of the host
    #[arg(long, value_parser = ["none", "host"])]
    pub net: Option<String>,
    /// Set a variable inside
    #[arg(long, value_name = "K=V")]
    pub env: Vec<String>,
    /// Working directory inside (default: the caller's where it is visible)
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Memory of the whole sandbox, such as 512M; private directories in memory count
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// CPU time, in percent of one core (200 is two cores)
    #[arg(long, value_name = "PERCENT")]
    pub cpu: Option<String>,
    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    pub tasks: Option<String>,
    /// Life of the sandbox, such as 90s or 10m; then exit code 124
    #[arg(long, value_name = "DURATION")]
    pub time: Option<String>,
    /// Take a sandbox that was built ahead, where there is one, and have more of its kind built
    #[arg(long)]
    pub pool: bool,
    /// With --pool: the interpreter (python3, node) is started ahead as well, and waits for what it is to run
    #[arg(long)]
    pub warm: bool,
    /// A terminal of its own: when standard input and output are one (for run), always, or never
    #[arg(long, value_parser = TTYS, default_value = "auto", hide_default_value = true)]
    pub tty: String,
    /// Watch what the command does: default has no hook on every system call, full has all
    #[arg(
        long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "default",
        value_parser = ["off", "default", "full"],
    )]
    pub watch: Option<String>,
    /// What to do on a finding of severity high or above; needs watching
    #[arg(long, value_name = "REACTION", value_parser = ["warn", "freeze", "cut-network", "shut", "isolate", "kill"])]
    pub on_finding: Option<String>,
    /// What to do when it reaches a limit: of memory, tasks or cpu, warn, throttle (half of its CPU time), freeze or terminate
    #[arg(long, value_name = "LIMIT=ACTION")]
    pub on_limit: Vec<String>,
    /// Wait so long for room in the budget of the host, such as 30s, instead of being refused
    #[arg(long, value_name = "DURATION")]
    pub wait_for_room: Option<String>,
    /// A word of yours that goes along with the sandbox
    #[arg(long = "label", value_name = "K=V")]
    pub labels: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}
