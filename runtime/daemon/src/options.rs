//! The command line of `apexd`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};
use apex_core::policy::Mode;
use lexopt::{Arg, Parser, ValueExt};

/// The text of `--help`.
pub const HELP: &str = "\
apexd: keeps sandboxes alive, watches them and turns their dials

usage: apexd [OPTIONS]

  --socket PATH   where to listen; gRPC and REST (default: /run/apex/apexd.sock)
  --state DIR     where sandboxes, audit log and store lie (default: /var/lib/apex)
  --user NAME     as whom the process with the API runs when root starts it (default: apexd, if there is that user)
  --access FILE   who may do what, beside the built-in rules (default: /etc/apex/access.toml, if it is there)
  --mode MODE     mode of sandboxes that are created without one: isolation, hybrid or development (default: isolation)
  --max-sandboxes N
                  how many there may be, those that have ended included; a quarter of them for one user (default: 4096)
  --cgroup DIR    cgroup v2 directory of nobody else, below which keepers and sandboxes get theirs (default: the daemon's own)
  --environment NAME
                  label for rules that hold in one environment, such as ci or production
  --pool-max N    sandboxes that all pools together hold ready (default: 64)
  --budget KIND=AMOUNT,...
                  what all sandboxes may have together, by their limits: memory=16G, tasks=8192, cpu=800 (percent of one core), or unlimited
                  (default: unlimited)
  --pressure PERCENT
                  start nothing new while tasks of the host stand still for want of memory for so much of ten seconds; off for never (default: 40)
  -h, --help      print this text
  -V, --version   print the version

It runs in the foreground. SIGTERM and SIGINT end it; sandboxes go on and are taken up again by the next apexd with the same --state.
SIGHUP has it read the rules of access anew. Under a service manager it takes the socket that is handed over, tells when it is ready, and beats for the watchdog.
";

/// Sandboxes that all pools hold together.
const POOL_MAX: usize = 64;
/// Most sandboxes of one daemon, those that have ended included.
const SANDBOXES_MAX: usize = 4096;

/// What is asked for.
pub enum Action {
    /// The help.
    Help,
    /// The version.
    Version,
    /// The daemon.
    Serve(Box<Options>),
}

/// How the daemon runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--socket`.
    pub socket: PathBuf,
    /// `--state`.
    pub state: PathBuf,
    /// `--user`.
    pub user: Option<String>,
    /// `--access`.
    pub access: Option<PathBuf>,
    /// `--mode`.
    pub mode: Mode,
    /// `--max-sandboxes`.
    pub sandboxes_max: usize,
    /// `--cgroup`.
    pub cgroup: Option<PathBuf>,
    /// `--environment`.
    pub environment: Option<String>,
    /// `--pool-max`.
    pub pool_max: usize,
    /// `--budget`, in its words.
    pub budget: Option<String>,
    /// `--pressure`.
    pub pressure_percent: Option<f64>,
}

/// Above this the host does little but to look for memory.
const PRESSURE_PERCENT: f64 = 40.0;

/// Words to options.
pub fn parse(words: impl Iterator<Item = OsString>) -> Result<Action> {
    let mut options = Options {
        socket: "/run/apex/apexd.sock".into(),
        state: "/var/lib/apex".into(),
        user: None,
        access: None,
        mode: Mode::Isolation,
        sandboxes_max: SANDBOXES_MAX,
        cgroup: None,
        environment: None,
        pool_max: POOL_MAX,
        budget: None,
        pressure_percent: Some(PRESSURE_PERCENT),
    };
    let mut parser = Parser::from_args(words);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("socket") => options.socket = parser.value()?.into(),
            Arg::Long("state") => options.state = parser.value()?.into(),
            Arg::Long("user") => options.user = Some(parser.value()?.to_string_lossy().into_owned()),
            Arg::Long("access") => options.access = Some(parser.value()?.into()),
            Arg::Long("mode") => options.mode = mode(&parser.value()?.to_string_lossy())?,
            Arg::Long("max-sandboxes") => options.sandboxes_max = sandboxes_max(&parser.value()?.to_string_lossy())?,
            Arg::Long("cgroup") => options.cgroup = Some(parser.value()?.into()),
            Arg::Long("environment") => options.environment = Some(parser.value()?.to_string_lossy().into_owned()),
            Arg::Long("pool-max") => options.pool_max = parser.value()?.parse()?,
            Arg::Long("budget") => options.budget = Some(parser.value()?.to_string_lossy().into_owned()),
            Arg::Long("pressure") => options.pressure_percent = pressure(&parser.value()?.to_string_lossy())?,
            Arg::Long("help") | Arg::Short('h') => return Ok(Action::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Action::Version),
            other => bail!("{}; `apexd --help` lists the options", other.unexpected()),
        }
    }
    Ok(Action::Serve(Box::new(options)))
}

/// From 1 to the most that the daemon is made for.
fn sandboxes_max(word: &str) -> Result<usize> {
    match word.parse() {
        Ok(count @ 1..=SANDBOXES_MAX) => Ok(count),
        _ => bail!("--max-sandboxes takes a number from 1 to {SANDBOXES_MAX}, not {word:?}"),
    }
}

fn pressure(word: &str) -> Result<Option<f64>> {
    let percent = match word {
        "off" => return Ok(None),
        number => number.parse().ok().filter(|percent| (0.0..=100.0).contains(percent)),
    };
    match percent {
        Some(percent) => Ok(Some(percent)),
        None => bail!("--pressure got {word:?}, expected a number from 0 to 100, or off"),
    }
}

/// A mode by its name.
pub fn mode(word: &str) -> Result<Mode> {
    [Mode::Isolation, Mode::Hybrid, Mode::Development]
        .into_iter()
        .find(|mode| mode.name() == word)
        .ok_or_else(|| anyhow::anyhow!("{word:?} is no mode; there are isolation, hybrid and development"))
}
