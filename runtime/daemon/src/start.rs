//! From a request to a sandbox that runs.
//!
//! Order: what is asked for is judged and written down; a directory, pipes and the keeper's socket are made; the record is stored; the warden starts the
//! keeper. A daemon that ends in between leaves a directory without a record, or a record without a keeper: the next one clears both up.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apex_api::v1::CreateRequest;
use apex_api::{Error, Kind, Peer};
use apex_core::access::Operation;
use apex_core::audit::{Outcome, mask_words};
use apex_core::control::{Reaction, Reactions, State};
use apex_core::keep::ToKeeper;
use apex_core::policy::Mode;
use serde_json::json;
use tokio::net::unix::pipe;

use crate::ask::{About, Asked};
use crate::bell::{EVENTS, FINDINGS};
use crate::clock::now_ms;
use crate::options;
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::warden::ToWarden;
use crate::who;

/// How long building a sandbox may take.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 64;
/// Labels of one sandbox, and bytes of each half.
const LABELS_MAX: usize = 32;
const LABEL_BYTES_MAX: usize = 256;
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
    let asked = daemon.judge(peer, operation, About { record: Some(&record), mode: None })?;
    start_as(daemon, peer, request, record, &asked, input).await
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
    let sandbox = Sandbox::new(record.clone(), daemon.place.sandbox(&record.id));
    daemon.add(&sandbox)?;
    let after = json!({"command": mask_words(&record.command), "mode": record.facts.born.name(), "watch": record.watch, "labels": record.labels});
    let begun = match daemon.write_down(asked, &record, Outcome::Allowed, "", json!(null), after) {
        Ok(()) => begin(daemon, peer, request, &sandbox, input).await,
        Err(error) => Err(error),
    };
    if let Err(error) = begun {
        // Nothing runs: nobody should find what is not there.
        let _ = daemon.forget(&sandbox);
        return Err(error);
    }
    let is_decided = |record: &Record| record.facts.state != State::Creating;
    if tokio::time::timeout(READY_WITHIN, sandbox.until(is_decided)).await.is_err() {
        let words =
            format!("sandbox {} did not stand within {} s; `apex kill` ends it", sandbox.id, READY_WITHIN.as_secs());
        return Err(Error::new(Kind::Unavailable, words));
    }
    Ok(sandbox)
}

fn invalid(words: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, words)
}

/// What a request asks for, as far as the daemon judges it.
pub fn record_of(daemon: &Daemon, peer: Peer, request: &CreateRequest) -> Result<Record, Error> {
    if request.command.is_empty() {
        return Err(invalid("there is no command; give one"));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if request.name.len() > NAME_BYTES_MAX || !request.name.bytes().all(is_plain) || request.name.starts_with('-') {
        return Err(invalid(format!(
            "{:?} is no name: at most {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores, not beginning with a dash",
            request.name
        )));
    }
    let is_long = |text: &String| text.len() > LABEL_BYTES_MAX;
    if request.labels.len() > LABELS_MAX || request.labels.iter().any(|(key, value)| is_long(key) || is_long(value)) {
        return Err(invalid(format!("more than {LABELS_MAX} labels, or one of more than {LABEL_BYTES_MAX} bytes")));
    }
    let mut record = Record::new(fresh_id(), peer.uid, mode_of(daemon, request)?, now_ms());
    record.name = request.name.clone();
    record.command = request.command.clone();
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
fn mode_of(daemon: &Daemon, request: &CreateRequest) -> Result<Mode, Error> {
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

fn reactions(word: &str) -> Result<Reactions, Error> {
    let reaction = match word {
        "" | "warn" => Reaction::Warn,
        "freeze" => Reaction::Freeze,
        "cut-network" => Reaction::CutNetwork,
        "isolate" => Reaction::Isolate,
        "kill" => Reaction::Kill,
        other => {
            let words = format!("{other:?} is no reaction; there are warn, freeze, cut-network, isolate and kill");
            return Err(invalid(words));
        }
    };
    Ok(Reactions { high: reaction, critical: reaction, ..Reactions::default() })
}

/// From the kernel's random numbers, through the standard library's hasher keys.
fn fresh_id() -> String {
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
    let failed = |error: anyhow::Error| Error::new(Kind::Internal, format!("starting a sandbox: {error:#}"));
    let record = sandbox.record();
    sandbox.dir.make().map_err(failed)?;
    let args = arguments(daemon, sandbox, request, &record).map_err(failed)?;
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
    let pipes = Pipes::make(sandbox, input).map_err(failed)?;
    sandbox.update(&daemon.store, |_| ()).map_err(failed)?;
    let handed: Vec<_> = pipes.handed.iter().map(AsFd::as_fd).collect();
    let started = daemon.errands.start(&to_warden, &handed).await;
    drop(handed);
    let Pipes { handed, ends } = pipes;
    // The keeper has its own by now, and a pipe that we held open would never end.
    drop(handed);
    // A warden that died may have started it and told nobody: then somebody else holds the socket.
    if let Err(words) = started
        && sandbox.dir.connect().is_err()
    {
        return Err(Error::new(Kind::Internal, format!("starting a sandbox: {words}")));
    }
    let taken = take(daemon, sandbox, ends).await.map_err(failed);
    if taken.is_err() {
        // A keeper that nobody knows must not run on.
        if let Ok(keeper) = sandbox.live(&daemon.store) {
            let _ = keeper.ask(&ToKeeper::Kill).await;
        }
    }
    taken
}

/// What the daemon has of a sandbox whose keeper runs.
async fn take(daemon: &Arc<Daemon>, sandbox: &Arc<Sandbox>, ends: Ends) -> anyhow::Result<()> {
    let Ends { stdin, out, err } = ends;
    *sandbox.stdin.lock().await = stdin.map(pipe::Sender::from_owned_fd).transpose()?;
    sandbox.pump(out, &sandbox.out, "standard output")?;
    sandbox.pump(err, &sandbox.err, "standard error")?;
    if sandbox.record().watch != "off" {
        daemon.bell.watch(sandbox)?;
    }
    if sandbox.live(&daemon.store).is_err() {
        // Quicker gone than connected to: it left word of why.
        sandbox.vanished(&daemon.store).await;
    }
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

/// The words of the keeper's command line. Each option holds its value, so that no value is taken for an option.
fn arguments(
    daemon: &Daemon,
    sandbox: &Sandbox,
    request: &CreateRequest,
    record: &Record,
) -> anyhow::Result<Vec<String>> {
    let mut args = Vec::new();
    let mut give = |name: &str, value: &str| {
        if !value.is_empty() {
            args.push(format!("--{name}={value}"));
        }
    };
    give("mode", record.facts.born.name());
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
    give("workdir", &request.workdir);
    let limits = request.limits.clone().unwrap_or_default();
    for (name, value) in
        [("memory", &limits.memory), ("tasks", &limits.tasks), ("cpu", &limits.cpu), ("time", &limits.time)]
    {
        give(name, value);
    }
    // What nobody limits gets the host as its limit: there is then a dial to be turned down, and up again.
    let is_by_mode = request.profile.is_empty() && request.policy_toml.is_empty();
    if is_by_mode && nix::unistd::geteuid().is_root() && record.uid == 0 {
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
