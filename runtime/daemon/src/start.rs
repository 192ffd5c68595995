//! From a request to a sandbox that runs.
//!
//! Order: what is asked for is judged; it gets room in the budget, or waits for it; it is written down; a directory, pipes and the keeper's socket are made; the record is stored; the warden starts the
//! keeper. A daemon that ends in between leaves a directory without a record, or a record without a keeper: the next one clears both up.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use apex_api::v1::CreateRequest;
use apex_api::{Error, Kind, Peer};
use apex_core::access::Operation;
use apex_core::audit::{Outcome, mask_words};
use apex_core::control::{OnLimits, Reaction, Reactions, Shut, State};
use apex_core::keep::ToKeeper;
use apex_core::policy::{IsolationLevel, Mode};
use serde_json::json;

use crate::ask::Asked;
use crate::bell::{EVENTS, FINDINGS};
use crate::clock::now_ms;
use crate::errand::NotStarted;
use crate::mail::door;
use crate::pool::{self, Taken};
use crate::record::Record;
use crate::registry::Daemon;
use crate::request;
use crate::sandbox::Sandbox;
use crate::terminal::{self, Sink};
use crate::warden::ToWarden;
use crate::who;
use crate::{bell, budget, metrics, options};

/// How long building a sandbox may take.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// What a keeper's PATH is: the caller's own is not known.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether standard input comes from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing comes.
    None,
    /// Through [`Sandbox::stdin`].
    Client,
}

/// Starts one, and returns when its command runs or has failed to.
pub async fn start(
    daemon: &Arc<Daemon>,
    peer: Peer,
    request: &CreateRequest,
    operation: Operation,
    input: Input,
) -> Result<Arc<Sandbox>, Error> {
    let record = record_of(daemon, peer, request)?;
    // Words that mean nothing are refused before anything is judged.
    budget::wait_of(request)?;
    let asked = daemon.judge_making(peer, operation, &record)?;
    let began = Instant::now();
    let admit = |sandbox: &Arc<Sandbox>| daemon.add(sandbox).and_then(|()| note(daemon, &asked, sandbox));
    // A command in a sandbox that stands already is as much of a load as one in a new one.
    if request.pool
        && !daemon.budget.is_short()
        && let Taken::Started(sandbox) = pool::take(daemon, peer, request, &record, input, admit).await?
    {
        tell_start(daemon, &sandbox.record(), began);
        return Ok(sandbox);
    }
    start_as(daemon, peer, request, record, &asked, input).await
}

/// Writes down that it is started.
fn note(daemon: &Daemon, asked: &Asked, sandbox: &Sandbox) -> Result<(), Error> {
    let record = sandbox.record();
    let after = json!({"command": mask_words(&record.command), "mode": record.facts.born.name(), "level": record.facts.level.name(), "watch": record.watch, "labels": record.labels});
    daemon.write_down(asked, &record, Outcome::Allowed, "", json!(null), after)
}

/// The same, of somebody who may, with this record.
pub async fn start_as(
    daemon: &Arc<Daemon>,
    peer: Peer,
    request: &CreateRequest,
    record: Record,
    asked: &Asked,
    input: Input,
) -> Result<Arc<Sandbox>, Error> {
    let wait = budget::wait_of(request)?;
    let sandbox = Sandbox::new(record.clone(), daemon.place.sandbox(&record.id));
    sandbox.is_made_from(request);
    daemon.add(&sandbox)?;
    if let Err(error) = budget::admit(daemon, &sandbox, asked, wait).await {
        daemon.discard(&sandbox);
        return Err(error);
    }
    let began = Instant::now();
    let begun = match note(daemon, asked, &sandbox) {
        Ok(()) => begin(daemon, peer, request, &sandbox, input).await,
        Err(error) => Err(error),
    };
    if let Err(error) = begun {
        // Nothing runs: nobody should find what is not there, and the log that allowed it says so.
        let _ = daemon.write_down(asked, &record, Outcome::Failed, &error.words, json!(null), json!(null));
        daemon.discard(&sandbox);
        daemon.metrics.count(&metrics::STARTS, &[record.facts.born.name(), "error"]);
        return Err(error);
    }
    let is_decided = |record: &Record| record.facts.state != State::Creating;
    if tokio::time::timeout(READY_WITHIN, sandbox.until(is_decided)).await.is_err() {
        let words =
            format!("sandbox {} did not stand within {} s; `apex kill` ends it", sandbox.id, READY_WITHIN.as_secs());
        daemon.metrics.count(&metrics::STARTS, &[record.facts.born.name(), "error"]);
        return Err(Error::new(Kind::Unavailable, words));
    }
    tell_start(daemon, &sandbox.record(), began);
    Ok(sandbox)
}

/// A command that has ended by now did run.
fn tell_start(daemon: &Daemon, record: &Record, began: Instant) {
    let mode = record.facts.born.name();
    let has_failed = matches!(record.facts.state, State::Failed | State::Lost);
    daemon.metrics.count(&metrics::STARTS, &[mode, if has_failed { "failed" } else { "running" }]);
    if !has_failed {
        daemon.metrics.observe(&metrics::START_SECONDS, &[mode], began.elapsed());
    }
}

fn invalid(words: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, words)
}

/// What a request asks for, as far as the daemon judges it.
pub fn record_of(daemon: &Daemon, peer: Peer, request: &CreateRequest) -> Result<Record, Error> {
    request::check(request)?;
    let mut record = Record::new(fresh_id(), peer.uid, mode_of(daemon, request)?, now_ms());
    record.facts.level = level_of(request)?;
    record.name = request.name.clone();
    record.command = request.command.clone();
    record.cwd = request.cwd.clone();
    record.tty = request.tty;
    record.on_limits = OnLimits::parse(&request.on_limit).map_err(|words| invalid(format!("on_limit: {words}")))?;
    record.claim = budget::claim_of(daemon, request, record.facts.born);
    record.labels = request.labels.clone().into_iter().collect();
    record.reactions = reactions(&request.on_finding)?;
    record.watch = match request.watch.as_str() {
        "" if request.on_finding.is_empty() => "off",
        "" => "default",
        word @ ("off" | "default" | "full") => word,
        other => return Err(invalid(format!("{other:?} is no level of watching; there are off, default and full"))),
    }
    .to_owned();
    if record.watch == "off" && !request.on_finding.is_empty() {
        return Err(invalid("on_finding needs watching; leave watch out, or give default or full"));
    }
    Ok(record)
}

/// The mode: the one that is asked for, or that the policy names, or the daemon's default. The keeper is told it, and what a policy says by itself or through
/// what it extends counts no more: nobody gets another mode than the one that was judged.
pub fn mode_of(daemon: &Daemon, request: &CreateRequest) -> Result<Mode, Error> {
    if !request.mode.is_empty() {
        return options::mode(&request.mode).map_err(|error| invalid(error.to_string()));
    }
    let policy: toml::Table =
        request.policy_toml.parse().map_err(|error| invalid(format!("the policy is no TOML: {error}")))?;
    if let Some(named) = policy.get("mode") {
        let word = named.as_str().ok_or_else(|| invalid("the policy's `mode` is no text"))?;
        return options::mode(word).map_err(|error| invalid(error.to_string()));
    }
    Ok(daemon.options.mode)
}

/// The isolation level: the one that is asked for, or that the policy names, or full. As with the mode, the keeper is told it.
pub fn level_of(request: &CreateRequest) -> Result<IsolationLevel, Error> {
    let named;
    let word = if request.level.is_empty() {
        let policy: toml::Table =
            request.policy_toml.parse().map_err(|error| invalid(format!("the policy is no TOML: {error}")))?;
        let Some(level) = policy.get("level") else { return Ok(IsolationLevel::Full) };
        named = level.as_str().ok_or_else(|| invalid("the policy's `level` is no text"))?.to_owned();
        &named
    } else {
        &request.level
    };
    let found = IsolationLevel::ALL.into_iter().find(|level| level.name() == word);
    found.ok_or_else(|| invalid(format!("{word:?} is no isolation level; there are full, partial and none")))
}

fn reactions(word: &str) -> Result<Reactions, Error> {
    let reaction = match word {
        "" | "warn" => Reaction::Warn,
        "freeze" => Reaction::Freeze,
        "cut-network" => Reaction::CutNetwork,
        "shut" => Reaction::Shut(Shut::ALL),
        "isolate" => Reaction::Isolate,
        "kill" => Reaction::Kill,
        other => {
            let words =
                format!("{other:?} is no reaction; there are warn, freeze, cut-network, shut, isolate and kill");
            return Err(invalid(words));
        }
    };
    Ok(Reactions { high: reaction, critical: reaction, ..Reactions::default() })
}

/// From the kernel's random numbers, through the standard library's hasher keys.
pub fn fresh_id() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:012x}", random >> 16)
}

async fn begin(
    daemon: &Arc<Daemon>,
    peer: Peer,
    request: &CreateRequest,
    sandbox: &Arc<Sandbox>,
    input: Input,
) -> Result<(), Error> {
    let (to_warden, pipes) = prepare(daemon, peer, request, sandbox, input, false).map_err(failed)?;
    // Before anything runs: without a descriptor left there would be a keeper that nobody could reach.
    let connection = sandbox.dir.connect().map_err(failed)?;
    sandbox.update(&daemon.store, |_| ()).map_err(failed)?;
    let (started, ends) = send(daemon, &to_warden, pipes).await;
    match started {
        Ok(_) => {}
        // A warden that died may have started it and told nobody: then somebody else holds the socket.
        Err(NotStarted::Unheard(_)) if sandbox.dir.connect().is_ok() => {}
        Err(error) => return Err(Error::new(Kind::Internal, format!("starting a sandbox: {error}"))),
    }
    let keeper = sandbox.live_over(connection, &daemon.store).map_err(failed)?;
    let taken = take(daemon, sandbox, ends).await.map_err(failed);
    if taken.is_err() {
        // A keeper that nobody knows must not run on.
        let _ = keeper.ask(&ToKeeper::Kill).await;
    }
    taken
}

/// Has a sandbox built whose command waits for its arguments. It belongs to this process: nothing of it is stored, and the keeper ends it when the connection, which is
/// made before the keeper is, is gone.
pub async fn begin_deferred(
    daemon: &Arc<Daemon>,
    peer: Peer,
    request: &CreateRequest,
    sandbox: &Arc<Sandbox>,
) -> Result<(), Error> {
    let (to_warden, pipes) = prepare(daemon, peer, request, sandbox, Input::Client, true).map_err(failed)?;
    sandbox.live(&daemon.store).map_err(failed)?;
    let (started, ends) = send(daemon, &to_warden, pipes).await;
    started.map_err(|error| Error::new(Kind::Internal, format!("starting a sandbox: {error}")))?;
    take(daemon, sandbox, ends).await.map_err(failed)
}

fn failed(error: anyhow::Error) -> Error {
    Error::new(Kind::Internal, format!("starting a sandbox: {error:#}"))
}

/// Its directory, its keeper's command line, and its pipes.
fn prepare(
    daemon: &Daemon,
    peer: Peer,
    request: &CreateRequest,
    sandbox: &Sandbox,
    input: Input,
    defer: bool,
) -> anyhow::Result<(ToWarden, Pipes)> {
    let record = sandbox.record();
    sandbox.dir.make()?;
    sandbox.listen_for_mail()?;
    let args = arguments(daemon, sandbox, request, &record, defer)?;
    let user = who::look_up(peer.uid, peer.gid);
    let home = user.home.unwrap_or_else(|| "/".to_owned());
    let to_warden = ToWarden {
        id: sandbox.id.clone(),
        uid: peer.uid,
        gid: peer.gid,
        args,
        env: vec![format!("PATH={PATH}"), format!("HOME={home}"), "LANG=C.UTF-8".to_owned()],
        cwd: if request.cwd.is_empty() { "/".to_owned() } else { request.cwd.clone() },
    };
    Ok((to_warden, Pipes::make(sandbox, input)?))
}

/// Has the warden start the keeper.
async fn send(daemon: &Daemon, to_warden: &ToWarden, pipes: Pipes) -> (Result<i32, NotStarted>, Ends) {
    let Pipes { handed, ends } = pipes;
    let lent: Vec<_> = handed.iter().map(AsFd::as_fd).collect();
    // The keeper has its own when this returns, and a pipe that we held open would never end.
    (daemon.errands.start(to_warden, &lent).await, ends)
}

/// What the daemon has of a sandbox whose keeper runs.
async fn take(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, ends: Ends) -> anyhow::Result<()> {
    let Ends { stdin, out, err } = ends;
    *sandbox.stdin.lock().await = stdin.map(Sink::pipe).transpose()?;
    // A terminal takes the place of standard output when it comes.
    if !sandbox.record().tty {
        sandbox.pump(out, &sandbox.out, "standard output")?;
    }
    sandbox.pump(err, &sandbox.err, "standard error")?;
    if sandbox.record().watch != "off" {
        daemon.bell.watch(sandbox)?;
    }
    bell::count_at_end(daemon, sandbox);
    daemon.watched.watch(sandbox);
    door::open(daemon, sandbox);
    Ok(())
}

/// The descriptors of a new sandbox.
struct Pipes {
    /// For the keeper and the warden, in the warden's order.
    handed: Vec<OwnedFd>,
    ends: Ends,
}

/// The daemon's ends.
struct Ends {
    stdin: Option<OwnedFd>,
    out: OwnedFd,
    err: OwnedFd,
}

impl Pipes {
    fn make(sandbox: &Sandbox, input: Input) -> anyhow::Result<Pipes> {
        let pipe = || std::io::pipe().context("making a pipe");
        let ((out, out_end), (err, err_end)) = (pipe()?, pipe()?);
        let (in_end, stdin) = match input {
            Input::Client => {
                let (read, write) = pipe()?;
                (OwnedFd::from(read), Some(OwnedFd::from(write)))
            }
            Input::None => (File::open("/dev/null").context("opening /dev/null")?.into(), None),
        };
        let result = sandbox.dir.file("result.json");
        let result = File::create(&result).with_context(|| format!("making {}", result.display()))?;
        let (out, err) = (OwnedFd::from(out), OwnedFd::from(err));
        // What stands for standard input where there is none is as good as any file: it is let go like the pipe would be.
        let held_in = match &stdin {
            Some(stdin) => stdin.try_clone()?,
            None => in_end.try_clone()?,
        };
        let (held_out, held_err) = (out.try_clone()?, err.try_clone()?);
        let streams = [in_end, out_end.into(), err_end.into()];
        let own = [sandbox.dir.listen()?, result.into(), held_in, held_out, held_err, sandbox.dir.open()?];
        Ok(Pipes { handed: streams.into_iter().chain(own).collect(), ends: Ends { stdin, out, err } })
    }
}

fn terminal_arguments(request: &CreateRequest) -> [(&'static str, String); 2] {
    let size = request.size.as_ref().and_then(terminal::size);
    let size = size.map(|(rows, columns)| format!("{rows}x{columns}"));
    [("tty", if request.tty { "yes" } else { "no" }.to_owned()), ("tty-size", size.unwrap_or_default())]
}

/// The words of the keeper's command line. Each option holds its value, so that no value is taken for an option.
fn arguments(
    daemon: &Daemon,
    sandbox: &Sandbox,
    request: &CreateRequest,
    record: &Record,
    defer: bool,
) -> anyhow::Result<Vec<String>> {
    let mut args = Vec::new();
    if defer {
        args.push(if request.warm { "--warm" } else { "--defer" }.to_owned());
    }
    let mut give = |name: &str, value: &str| {
        if !value.is_empty() {
            args.push(format!("--{name}={value}"));
        }
    };
    give("mode", record.facts.born.name());
    give("level", record.facts.level.name());
    give("profile", &request.profile);
    if !request.policy_toml.is_empty() {
        let path = sandbox.dir.write("policy.toml", &request.policy_toml)?;
        give("policy", &path.to_string_lossy());
    }
    let lists = [
        ("ro", &request.ro),
        ("rw", &request.rw),
        ("tmpfs", &request.tmpfs),
        ("deny", &request.deny),
        ("optional", &request.optional),
        ("env", &request.env),
    ];
    for (name, values) in lists {
        values.iter().for_each(|value| give(name, value));
    }
    give("net", &request.net);
    give("mail", &sandbox.dir.mail().to_string_lossy());
    give("workdir", &request.workdir);
    let limits = request.limits.clone().unwrap_or_default();
    for (name, value) in
        [("memory", &limits.memory), ("tasks", &limits.tasks), ("cpu", &limits.cpu), ("time", &limits.time)]
    {
        give(name, value);
    }
    // What nobody limits gets the host as its limit: there is then a dial to be turned down, and up again.
    let is_by_mode = request.profile.is_empty() && request.policy_toml.is_empty();
    if is_by_mode && record.uid == 0 {
        let host = daemon.defaults(record.facts.born).limits;
        let number = |limit: Option<u64>| limit.map(|limit| limit.to_string()).unwrap_or_default();
        let bounds = [
            (&limits.memory, "memory", number(host.memory_bytes)),
            (&limits.tasks, "tasks", number(host.tasks)),
            (&limits.cpu, "cpu", host.cpu_percent.map(|percent| format!("{percent}%")).unwrap_or_default()),
        ];
        for (given, name, value) in bounds {
            if given.is_empty() {
                give(name, &value);
            }
        }
    }
    terminal_arguments(request).iter().for_each(|(name, value)| give(name, value));
    if record.watch != "off" {
        give("watch", &record.watch);
        // Appended to by the prober, which is the caller's process.
        give("findings", &sandbox.dir.write(FINDINGS, "")?.to_string_lossy());
        give("events", &sandbox.dir.write(EVENTS, "")?.to_string_lossy());
    }
    args.push("--".to_owned());
    args.extend(request.command.iter().cloned());
    Ok(args)
}
