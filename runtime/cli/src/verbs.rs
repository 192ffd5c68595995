//! What each verb asks apexd for, and what it prints. Input: the parsed command line. Output: the exit code.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apex_api::v1::apex_client::ApexClient;
use apex_api::v1::{
    AuditRequest, CreateRequest, DrainPoolsRequest, Empty, ExecRequest, GroupRef, JsonLine, Limits, ListRequest,
    LogsRequest, RemoveRequest, Sandbox, SandboxRef, SetLimitsRequest, SetModeRequest, SetPoolRequest,
    SetSwitchesRequest, SignalRequest, StreamRequest, Transition,
};
use apex_api::{Error, client};
use clap::CommandFactory;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::args::{Args, AuditVerb, LimitsVerb, ModeVerb, Options, PolicyVerb, PoolVerb, Verb};
use crate::log::Log;
use crate::run::Lines;
use crate::{FAILED, group, mail, policy, request, run, show, signals, terminal};

/// Between two looks of `stats --watch`.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A connection to apexd.
pub type Client = ApexClient<Channel>;

/// Does what the command line says.
///
/// # Errors
/// Whatever Apex failed at; the exit code is 125 then.
pub async fn perform(args: Args) -> Result<u8> {
    let json = args.json;
    let verb = match args.verb {
        Verb::Completions { shell } => return completions(shell),
        Verb::Man => return man(),
        Verb::Version => {
            let version = env!("CARGO_PKG_VERSION");
            let value = serde_json::json!({ "version": version });
            return done(if json { show::json(&value) } else { show::print(&format!("apex {version}\n")) });
        }
        Verb::Policy(PolicyVerb::Check { file, mode, profile }) => {
            let policy = policy::resolve(&file, mode.as_deref(), profile)?;
            let words = accepted(&policy);
            return done(if json { show::json(&policy) } else { show::print(&words) });
        }
        verb => verb,
    };
    let path = socket(args.socket)?;
    let mut client = client::connect(&path).await?;
    match verb {
        Verb::Run { rm, options } => {
            let aside = client::connect(&path).await?;
            run_command(Lines { streams: client, aside }, *options, rm).await
        }
        Verb::Create { options } => {
            let sandbox = got(client.create(request::create(*options)?).await)?;
            let has_failed = sandbox.state == "failed";
            let shown = done(if json { show::json(&sandbox) } else { show::print(&format!("{}\n", sandbox.id)) });
            // It is kept, with its log, and nobody should take it for one that runs.
            if has_failed { ending(&sandbox) } else { shown }
        }
        Verb::Exec { env, workdir, tty, id, command } => {
            let lines = Lines { streams: client, aside: client::connect(&path).await? };
            let (tty, workdir) = (terminal::is_wanted(&tty), workdir.unwrap_or_default());
            exec(lines, ExecRequest { id, command, env, workdir, tty, size: None }).await
        }
        Verb::Attach { id } => {
            ending(&run::attach(&Lines { streams: client, aside: client::connect(&path).await? }, id).await?)
        }
        Verb::Wait { id } => wait(client, id, json).await,
        Verb::Ls { all } => {
            let sandboxes = got(client.list(ListRequest { all }).await)?.sandboxes;
            done(if json { show::json(&sandboxes) } else { show::print(&show::sandboxes(&sandboxes)) })
        }
        Verb::Inspect { id } => {
            let sandbox = got(client.inspect(SandboxRef { id }).await)?;
            done(if json { show::json(&sandbox) } else { show::print(&show::sandbox(&sandbox)) })
        }
        Verb::Signal { id, signal } => {
            let signal = signals::number(&signal)?;
            changed(got(client.signal(SignalRequest { id, signal, exec: 0 }).await)?, json)
        }
        Verb::Pause { id } => changed(got(client.pause(SandboxRef { id }).await)?, json),
        Verb::Resume { id } => changed(got(client.resume(SandboxRef { id }).await)?, json),
        Verb::Kill { ids } => each(ids, async |id| got(client.kill(SandboxRef { id }).await).map(drop)).await,
        Verb::Rm { force, ids } => {
            each(ids, async |id| got(client.remove(RemoveRequest { id, force }).await).map(drop)).await
        }
        Verb::Up { file } => up(client, &file, json).await,
        Verb::Down { names } => each(names, async |name| got(client.down(GroupRef { name }).await).map(drop)).await,
        Verb::Mode(verb) => mode(client, verb, json).await,
        Verb::Limits(verb) => limits(client, verb, json).await,
        Verb::Pool(verb) => pool(client, verb, json).await,
        Verb::Mail(verb) => mail::mail(client, verb, json).await,
        verb => read(client, verb, json).await,
    }
}

async fn up(mut client: Client, file: &Path, json: bool) -> Result<u8> {
    let group = got(client.up(group::up(file)?).await)?;
    done(if json { show::json(&group) } else { show::print(&group::table(&[group])) })
}

/// A policy that a sandbox could have, in a line.
fn accepted(policy: &apex_core::policy::Policy) -> String {
    let sources: Vec<_> = policy.sources.iter().map(|source| apex_core::escape::text(source)).collect();
    let level = if policy.level.is_full() { String::new() } else { format!(" at isolation level {}", policy.level) };
    format!("accepted: mode {}{level}, from {}\n", policy.mode.name(), sources.join(", "))
}

async fn pool(mut client: Client, verb: PoolVerb, json: bool) -> Result<u8> {
    let pools = match verb {
        PoolVerb::Ls => got(client.pools(Empty {}).await)?.pools,
        PoolVerb::Set { size, options } => {
            // As `apex run` has it: a sandbox with a terminal is another one.
            let tty = terminal::is_wanted(&options.tty);
            let like = Some(CreateRequest { tty, ..request::create(*options)? });
            vec![got(client.set_pool(SetPoolRequest { like, size }).await)?]
        }
        PoolVerb::Drain { id } => {
            got(client.drain_pools(DrainPoolsRequest { id: id.unwrap_or_default() }).await)?.pools
        }
    };
    done(if json { show::json(&pools) } else { show::print(&show::pools(&pools)) })
}

/// The verbs that only read.
async fn read(mut client: Client, verb: Verb, json: bool) -> Result<u8> {
    match verb {
        Verb::Logs { id, follow, tail, raw } => logs(client, LogsRequest { id, follow, tail_bytes: tail }, raw).await,
        Verb::Events { id, follow } => {
            let stream = got(client.events(StreamRequest { id, follow }).await)?;
            if json && !follow { array(stream).await } else { lines(stream).await }
        }
        Verb::Findings { id } => {
            let stream = got(client.findings(StreamRequest { id, follow: false }).await)?;
            if json {
                return array(stream).await;
            }
            done(show::print(&show::findings(&show::values(&all(stream).await?)?)))
        }
        Verb::Tree => {
            let tree = got(client.tree(Empty {}).await)?;
            done(if json { show::json(&tree) } else { show::print(&show::tree(&tree)) })
        }
        Verb::Groups => {
            let groups = got(client.groups(Empty {}).await)?.groups;
            done(if json { show::json(&groups) } else { show::print(&group::table(&groups)) })
        }
        Verb::Stats { watch: true } => watch_stats(client, json).await,
        Verb::Stats { watch: false } => {
            let stats = got(client.stats(Empty {}).await)?;
            done(if json { show::json(&stats) } else { show::print(&show::stats(&stats)) })
        }
        Verb::Audit(AuditVerb::Tail { limit }) => {
            let stream = got(client.audit_tail(AuditRequest { limit }).await)?;
            if json { array(stream).await } else { lines(stream).await }
        }
        Verb::Audit(AuditVerb::Verify) => {
            let verdict = got(client.audit_verify(Empty {}).await)?;
            if json {
                show::json(&verdict)?;
            } else if verdict.intact {
                show::print(&format!("intact: {} records, head {}\n", verdict.records, verdict.head_sha256))?;
                if !verdict.words.is_empty() {
                    show::print(&format!("{}\n", verdict.words))?;
                }
            }
            if !verdict.intact {
                bail!("the audit log is broken: {}", verdict.words);
            }
            Ok(0)
        }
        _ => bail!("this verb asks apexd for nothing"),
    }
}

/// Where apexd listens.
fn socket(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path);
    }
    // The owner of one's own entry is the effective user (proc(5)).
    let about = std::fs::metadata("/proc/self").context("looking up the user in /proc/self")?;
    if about.uid() == 0 {
        return Ok(PathBuf::from("/run/apex/apexd.sock"));
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = dir.context("XDG_RUNTIME_DIR is not set; name the socket of apexd with --socket PATH or APEX_SOCKET")?;
    Ok(dir.join("apex/apexd.sock"))
}

/// What was answered, or the error.
pub fn got<T>(answer: Result<Response<T>, Status>) -> Result<T> {
    Ok(answer.map_err(Error::from)?.into_inner())
}

/// It went well.
pub fn done(outcome: Result<()>) -> Result<u8> {
    outcome.map(|()| 0)
}

/// Quiet when it worked, as the shell's own verbs are.
fn changed(sandbox: Sandbox, json: bool) -> Result<u8> {
    done(if json { show::json(&sandbox) } else { Ok(()) })
}

/// One after the other; what fails is told, and the rest is still done.
async fn each(ids: Vec<String>, mut ask: impl AsyncFnMut(String) -> Result<()>) -> Result<u8> {
    let mut code = 0;
    for id in ids {
        if let Err(error) = ask(id.clone()).await {
            crate::tell(&format!("{id}: {error:#}"));
            code = FAILED;
        }
    }
    Ok(code)
}

async fn exec(lines: Lines, request: ExecRequest) -> Result<u8> {
    let ended = run::exec(&lines, request).await?;
    if !ended.error.is_empty() {
        crate::tell(&apex_core::escape::text(&ended.error));
    }
    Ok(u8::try_from(ended.exit_code).unwrap_or(FAILED))
}

async fn run_command(mut lines: Lines, options: Options, rm: bool) -> Result<u8> {
    let tty = terminal::is_wanted(&options.tty);
    let request = CreateRequest { tty, ..request::create(options)? };
    let sandbox = run::run(&lines, request).await?;
    if rm && !sandbox.id.is_empty() {
        let request = RemoveRequest { id: sandbox.id.clone(), force: false };
        // How the command ended counts for more than what is left of it.
        if let Err(error) = got(lines.aside.remove(request).await) {
            crate::tell(&format!("forgetting sandbox {}: {error:#}", sandbox.id));
        }
    }
    ending(&sandbox)
}

/// The exit code of the command, or words why there is none.
fn ending(sandbox: &Sandbox) -> Result<u8> {
    let id = &sandbox.id;
    match sandbox.ending.as_str() {
        _ if !sandbox.error.is_empty() => crate::tell(&sandbox.error),
        "time" => crate::tell("the command was ended at its time limit; give it more with --time"),
        "memory" => crate::tell("the kernel ended the command at its memory limit; give it more with --memory"),
        "finding" => crate::tell(&format!("the sandbox was ended because of a finding; `apex findings {id}` shows it")),
        _ => {}
    }
    match sandbox.exit_code {
        Some(code) => Ok(u8::try_from(code & 0xff).unwrap_or(FAILED)),
        // The words stand above.
        None if !sandbox.error.is_empty() => Ok(FAILED),
        None => bail!("sandbox {id} is {} and has no exit code", sandbox.state),
    }
}

async fn wait(mut client: Client, id: String, json: bool) -> Result<u8> {
    let sandbox = got(client.wait(SandboxRef { id }).await)?;
    if json {
        return done(show::json(&sandbox));
    }
    match sandbox.exit_code {
        Some(code) => done(show::print(&format!("{code}\n"))),
        None if sandbox.error.is_empty() => bail!("sandbox {} ended without an exit code", sandbox.id),
        None => bail!("{}", sandbox.error),
    }
}

async fn mode(mut client: Client, verb: ModeVerb, json: bool) -> Result<u8> {
    match verb {
        ModeVerb::Get { id } => {
            let sandbox = got(client.inspect(SandboxRef { id }).await)?;
            let value = serde_json::json!({ "mode": sandbox.mode, "born_mode": sandbox.born_mode });
            let words = format!("{}\n", apex_core::escape::text(&sandbox.mode));
            done(if json { show::json(&value) } else { show::print(&words) })
        }
        ModeVerb::Suggest { id } => {
            let suggestion = got(client.suggest_mode(SandboxRef { id }).await)?;
            done(if json { show::json(&suggestion) } else { show::print(&show::suggestion(&suggestion)) })
        }
        ModeVerb::Set { id, mode, reason, successor } => {
            applied(got(client.set_mode(SetModeRequest { id, mode, reason, successor }).await)?, json)
        }
    }
}

async fn limits(mut client: Client, verb: LimitsVerb, json: bool) -> Result<u8> {
    let (id, limits, reason) = match verb {
        LimitsVerb::Set { id, limits, reason } => (id, limits, reason),
        LimitsVerb::Switch { id, switches, reason } => {
            return applied(got(client.set_switches(SetSwitchesRequest { id, switches, reason }).await)?, json);
        }
    };
    let limits = Limits {
        memory: limits.memory.unwrap_or_default(),
        tasks: limits.tasks.unwrap_or_default(),
        cpu: limits.cpu.unwrap_or_default(),
        time: String::new(),
    };
    applied(got(client.set_limits(SetLimitsRequest { id, limits: Some(limits), reason }).await)?, json)
}

fn applied(transition: Transition, json: bool) -> Result<u8> {
    if json {
        show::json(&transition)?;
    } else {
        show::print(&show::transition(&transition))?;
    }
    if transition.applied {
        return Ok(0);
    }
    let remedy = if transition.successor_needed { "; it takes a new sandbox" } else { "" };
    match transition.words.as_str() {
        "" => bail!("not applied{remedy}"),
        words => bail!("not applied: {words}{remedy}"),
    }
}

/// Until somebody interrupts it. On a terminal each look takes the place of the last one.
async fn watch_stats(mut client: Client, json: bool) -> Result<u8> {
    // Home, and erase to the end (ECMA-48): without a flash of an empty screen.
    let clear = if std::io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
    loop {
        let stats = got(client.stats(Empty {}).await)?;
        match json {
            true => show::line(&JsonLine { json: serde_json::to_string(&stats).context("writing JSON")? })?,
            false => show::print(&format!("{clear}{}", show::stats(&stats)))?,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The command's own bytes, each to the stream that it wrote to.
async fn logs(mut client: Client, request: LogsRequest, raw: bool) -> Result<u8> {
    let mut chunks = got(client.logs(request).await)?;
    let mut stdout = Log::new(std::io::stdout(), !raw && std::io::stdout().is_terminal());
    let mut stderr = Log::new(std::io::stderr(), !raw && std::io::stderr().is_terminal());
    while let Some(chunk) = chunks.message().await.map_err(Error::from)? {
        let written = match chunk.stream.as_str() {
            "stderr" => stderr.write(&chunk.data),
            _ => stdout.write(&chunk.data),
        };
        written.context("writing the logs")?;
    }
    stdout.end().and_then(|()| stderr.end()).context("writing the logs")?;
    Ok(0)
}

/// A JSON array, a value to a line: it is never in memory as a whole. One that breaks off has no end, and is no JSON.
async fn array(mut stream: Streaming<JsonLine>) -> Result<u8> {
    let mut before = "[";
    while let Some(line) = stream.message().await.map_err(Error::from)? {
        let value = show::values(&[line])?.remove(0);
        show::print(&format!("{before}\n{}", show::compact(&value)?))?;
        before = ",";
    }
    let end = if before == "[" { "[]\n" } else { "\n]\n" };
    done(show::print(end))
}

async fn all(mut stream: Streaming<JsonLine>) -> Result<Vec<JsonLine>> {
    let mut lines = Vec::new();
    while let Some(line) = stream.message().await.map_err(Error::from)? {
        lines.push(line);
    }
    Ok(lines)
}

async fn lines(mut stream: Streaming<JsonLine>) -> Result<u8> {
    while let Some(line) = stream.message().await.map_err(Error::from)? {
        show::line(&line)?;
    }
    Ok(0)
}

fn completions(shell: clap_complete::Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "apex", &mut text);
    done(show::print(&String::from_utf8(text).context("completions are text")?))
}

fn man() -> Result<u8> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut text).context("writing the manual page")?;
    done(show::print(&String::from_utf8(text).context("the manual page is text")?))
}
