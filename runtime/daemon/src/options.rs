//! The command line of `apexd`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};
use apex_core::policy::Mode;
use lexopt::{Arg, Parser};

/// The text of `--help`.
pub const HELP: &str = "\
apexd: keeps sandboxes alive, watches them and turns their dials

usage: apexd [OPTIONS]

  --socket PATH   where to listen; gRPC and REST (default: /run/apex/apexd.sock)
  --state DIR     where sandboxes, audit log and store lie (default: /var/lib/apex)
  --access FILE   who may do what, beside the built-in rules (default: /etc/apex/access.toml, if it is there)
  --mode MODE     mode of sandboxes that are created without one: isolation, hybrid or development (default: isolation)
  --cgroup DIR    cgroup v2 directory of nobody else, below which keepers and sandboxes get theirs (default: the daemon's own)
  --environment NAME
                  label for rules that hold in one environment, such as ci or production
  -h, --help      print this text
  -V, --version   print the version

It runs in the foreground. SIGTERM and SIGINT end it; sandboxes go on and are taken up again by the next apexd with the same --state.
SIGHUP has it read the rules of access anew. Under a service manager it takes the socket that is handed over, tells when it is ready, and beats for the watchdog.
";

/// What is asked for.
pub enum Action {
    /// The help.
    Help,
    /// The version.
    Version,
    /// The daemon.
    Serve(Options),
}

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--socket`.
    pub socket: PathBuf,
    /// `--state`.
    pub state: PathBuf,
    /// `--access`.
    pub access: Option<PathBuf>,
    /// `--mode`.
    pub mode: Mode,
    /// `--cgroup`.
    pub cgroup: Option<PathBuf>,
    /// `--environment`.
    pub environment: Option<String>,
}

/// Words to options.
pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Action> {
    let mut options = Options {
        socket: "/run/apex/apexd.sock".into(),
        state: "/var/lib/apex".into(),
        access: None,
        mode: Mode::Isolation,
        cgroup: None,
        environment: None,
    };
    let mut parser = Parser::from_args(words);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("socket") => options.socket = parser.value()?.into(),
            Arg::Long("state") => options.state = parser.value()?.into(),
            Arg::Long("access") => options.access = Some(parser.value()?.into()),
            Arg::Long("mode") => options.mode = mode(&parser.value()?.to_string_lossy())?,
            Arg::Long("cgroup") => options.cgroup = Some(parser.value()?.into()),
            Arg::Long("environment") => options.environment = Some(parser.value()?.to_string_lossy().into_owned()),
            Arg::Long("help") | Arg::Short('h') => return Ok(Action::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Action::Version),
            other => bail!("{}; `apexd --help` lists the options", other.unexpected()),
        }
    }
    Ok(Action::Serve(options))
}

/// A mode by its name.
pub fn mode(word: &str) -> Result<Mode> {
    [Mode::Isolation, Mode::Hybrid, Mode::Development]
        .into_iter()
        .find(|mode| mode.name() == word)
        .ok_or_else(|| anyhow::anyhow!("{word:?} is no mode; there are isolation, hybrid and development"))
}
