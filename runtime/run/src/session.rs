//! One run of the command: options, policy, plan, sandbox, reports, exit code.

use std::ffi::{CString, OsString};
use std::io::{IsTerminal, Write};
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_core::explain;
use apex_core::host::Host;
use apex_core::plan::{Plan, Request};
use apex_core::planner::{self, PlanError};
use apex_core::policy::{self, Inputs, Policy};
use apex_core::receipt::Receipt;
use apex_core::refusal::{Explanation, Refusal};
use apex_core::seccomp::{Abi, groups};
use apex_core::watch::{Learn, Level};
use apex_jail::control::Control;
use apex_jail::host::LiveHost;
use apex_jail::launch::{self, Ending, JailError, Outcome, Payload};
use apex_jail::streams::Streams;
use apex_jail::watch::Watcher;
use apex_run::escape;
use apex_run::help;
use apex_run::options::{self, Action, Options, Sink};
use apex_run::print::{self, Report, Style};
use apex_sys::Errno;

use crate::fresh::Fresh;
use crate::keeper::Keeper;
use crate::verbs::able::Able;
use crate::verbs::{self, Verb};
use crate::warm::{self, Warm};
use crate::watch::Prober;

/// Largest policy file that is read, in bytes.
const POLICY_BYTES_MAX: u64 = 1 << 20;

/// What the administrator adds.
const SYSTEM_CONFIG: &str = "/etc/apex";

/// Exit codes of apex-run itself; see `--help`.
pub(crate) mod code {
    pub const TIMED_OUT: u8 = 124;
    pub const FAILED: u8 = 125;
    pub const NOT_EXECUTABLE: u8 = 126;
    pub const NOT_FOUND: u8 = 127;
    pub const SIGNAL: i32 = 128;
}

/// The code for an error of ours.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let not_found = matches!(error.downcast_ref(), Some(PlanError::CommandNotFound { .. }))
        || matches!(error.downcast_ref(), Some(JailError::NotFound(_)));
    if not_found {
        return code::NOT_FOUND;
    }
    if matches!(error.downcast_ref(), Some(JailError::NotExecutable(_))) { code::NOT_EXECUTABLE } else { code::FAILED }
}

/// Does what the words ask for.
pub fn run(mut words: impl Iterator<Item = OsString>) -> Result<u8> {
    let first = words.next();
    if let Some(verb) = first.as_deref().and_then(Verb::named) {
        return verbs::run(verb, words);
    }
    let words = first.into_iter().chain(words);
    let options = options::parse(words)?;
    let streams = Streams::settle(&options.fds, &options.keep)?;
    match options.action {
        Action::Help => say(&help::help()),
        Action::Version => say(&help::version()),
        Action::Completions(shell) => say(&help::completions(shell)),
        Action::Doctor => doctor(&options),
        Action::Plan => show_plan(&options),
        Action::Prove => prove(&options, &streams),
        Action::Run if options.keep.is_empty() => run_command(&options, &streams, None),
        Action::Run => run_kept(&options, streams),
    }
}

pub(crate) fn say(text: &str) -> Result<u8> {
    let mut out = std::io::stdout().lock();
    // Flushed here: the process ends without the runtime's own clean-up.
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")?;
    Ok(0)
}

fn show_plan(options: &Options) -> Result<u8> {
    let host = LiveHost::at(working_directory()?);
    let Planned { plan, .. } = plan(options, &host)?;
    report(options, Report::Plan(&plan))?;
    Ok(0)
}

fn prove(options: &Options, streams: &Streams) -> Result<u8> {
    let host = LiveHost::new();
    let Planned { plan, .. } = plan(options, &host)?;
    let proof = apex_jail::prove::prove(&plan, &host, streams)?;
    report(options, Report::Proof(&proof))?;
    Ok(if proof.passed { 0 } else { code::FAILED })
}

fn doctor(options: &Options) -> Result<u8> {
    let diagnosis = apex_jail::doctor::examine();
    report(options, Report::Doctor(&diagnosis))?;
    Ok(if diagnosis.usable() { 0 } else { code::FAILED })
}

/// For the daemon, which hears how it ended even when it did not begin.
fn run_kept(options: &Options, streams: Streams) -> Result<u8> {
    let mut keeper =
        Keeper::take(options).map_err(|errno| anyhow::anyhow!("taking the descriptors of --keep: {}", errno.desc()))?;
    let outcome = run_warm(options, streams, &mut keeper);
    let (code, words) = match &outcome {
        Ok(code) => (*code, None),
        Err(error) => (exit_code(error), Some(format!("{error:#}"))),
    };
    keeper.finish(code, words);
    outcome
}

/// An interpreter that is started ahead gets a descriptor more.
fn run_warm(options: &Options, mut streams: Streams, keeper: &mut Keeper) -> Result<u8> {
    if !options.warm {
        return run_command(options, &streams, Some(keeper));
    }
    let warm = Warm::new()?;
    let mut options = options.clone();
    options.command = warm::waiting(&options.command, warm.number())?;
    options.fds.push(warm.number());
    streams.passed.push(warm.number());
    streams.passed.sort_unstable();
    keeper.warm(warm);
    run_command(&options, &streams, Some(keeper))
}

fn run_command(options: &Options, streams: &Streams, mut keeper: Option<&mut Keeper>) -> Result<u8> {
    // The process ends with the sandbox: the kernel closes what the look at the host opened, all at once.
    let host = ManuallyDrop::new(LiveHost::at(working_directory()?));
    let mut fresh = Fresh::default();
    // Freeing touches pages that the init shares: each would be copied.
    let planned = plan_noting(options, &host, (options.defer || options.warm).then_some(&mut fresh))
        .map_err(|error| verbs::meant(error, &options.command))?;
    if let Some(keeper) = keeper.as_deref_mut() {
        keeper.made_from(fresh);
    }
    let planned = ManuallyDrop::new(planned);
    let Planned { policy, plan, learn } = &*planned;
    let kept = verbs::overlay::begin(plan, policy, &host)?;
    let style = options.receipt.as_ref().map(|_| Style::new(options.json, false, None));
    let mut deliver = |receipt: &Receipt| write_receipt(options, receipt, style).map_err(|error| format!("{error:#}"));
    let wants_receipt = options.receipt.is_some();
    let mut before_failing = Vec::new();
    let mut prober = match plan.watch {
        Level::Off => None,
        Level::Default | Level::Full => Some(Prober::new(options, plan, rule_directories())?.learning(learn.clone())),
    };
    let outcome = launch::run_recording(
        plan,
        &host,
        launch::Options {
            receipt: if wants_receipt { Some(&mut deliver) } else { None },
            watcher: prober.as_mut().map(|prober| prober as &mut dyn Watcher),
            control: keeper.as_deref_mut().map(|keeper| keeper as &mut dyn Control),
            streams,
            payload: Payload::Command,
        },
        &mut before_failing,
    );
    if options.why {
        let refusals = outcome.as_ref().map_or(&before_failing, |outcome| &outcome.refusals);
        explain_all(options, policy, plan, refusals)?;
    }
    let outcome = outcome?;
    if let Some(keeper) = keeper {
        keeper.ended(outcome.ending);
    }
    let caught = prober.as_ref().and_then(Prober::caught).map(str::to_owned);
    let code = finish(plan, &outcome, caught.as_deref());
    // Its summary comes last. A record without its end is none: then the run did not go as it was asked for.
    prober.map_or(Ok(()), Prober::finish).map_err(JailError::Watch)?;
    kept.map_or(Ok(()), verbs::overlay::Kept::end)?;
    if let Some(learn) = learn {
        let _ = writeln!(std::io::stderr(), "apex-run: {}", verbs::learn::told(learn, outcome.ending));
    }
    Ok(code)
}

/// The command's own code, or ours with a word why.
fn finish(plan: &Plan, outcome: &Outcome, caught: Option<&str>) -> u8 {
    let tell = |words: String| {
        let _ = writeln!(std::io::stderr(), "apex-run: {words}");
    };
    let number = |value: i32| u8::try_from(value & 0xff).unwrap_or(code::FAILED);
    match outcome.ending {
        Ending::Code(value) => number(value),
        Ending::Signal(signal) => number(code::SIGNAL + signal),
        Ending::Vanished(signal) => {
            tell(format!(
                "the sandbox was ended because its init was, by signal {signal}: from outside, or by a limit that a program inside set for it"
            ));
            number(code::SIGNAL + signal)
        }
        Ending::TimedOut => {
            let limit = plan.wall_time_ms.unwrap_or_default();
            tell(format!("the command was ended at its wall-time limit of {limit} ms; give it more with --time"));
            code::TIMED_OUT
        }
        Ending::Caught => {
            let because = escape::text(caught.unwrap_or_default());
            tell(format!("the sandbox was ended because of a finding: `{because}`; its line above tells more"));
            number(code::SIGNAL + 9)
        }
        Ending::OutOfMemory => {
            let limit = plan.cgroup.as_ref().and_then(|limits| limits.memory_bytes).unwrap_or_default();
            tell(format!(
                "the kernel ended the command at its memory limit of {limit} bytes; give it more with --memory"
            ));
            number(code::SIGNAL + 9)
        }
    }
}

/// What the options come to.
pub(crate) struct Planned {
    pub policy: Policy,
    pub plan: Plan,
    /// What a run that is learned from hands to the prober.
    pub learn: Option<Learn>,
}

/// Policy and plan of the options.
pub(crate) fn plan(options: &Options, host: &LiveHost) -> Result<Planned> {
    plan_noting(options, host, None)
}

/// The same; `fresh` gets what they come from.
fn plan_noting(options: &Options, host: &LiveHost, mut fresh: Option<&mut Fresh>) -> Result<Planned> {
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let inputs = inputs(options, host, &groups);
    let mut load = |path: &Path| {
        if let Some(fresh) = fresh.as_deref_mut() {
            fresh.note(path);
        }
        load(path)
    };
    let (policy, learn) = match &options.learn {
        None => (policy::resolve(&inputs, &mut load)?, None),
        Some(file) => verbs::learn::resolve(&inputs, file, &mut load)?,
    };
    if matches!(options.action, Action::Run) {
        host.make_ahead(&policy);
    }
    let request = request(options);
    let dir = options.overlay.as_ref().map(|dir| host.cwd().join(dir));
    let plan = match learn.is_some() || dir.is_some() {
        true => planner::build_on_overlay(&policy, &request, host, dir),
        false => planner::build(&policy, &request, host),
    };
    let plan = plan.inspect_err(|_| host.forgo_ahead())?;
    if let Some(fresh) = fresh {
        rule_directories().iter().for_each(|dir| fresh.note(dir));
        fresh.note_plan(&plan);
    }
    Ok(Planned { policy, plan, learn })
}

/// The same for what runs nothing here: the plan of a host that lacks no layer.
pub(crate) fn plan_of_nothing(options: &Options, host: &LiveHost) -> Result<Planned> {
    if let Some(option) = options.needs_watch() {
        bail!("--{option} is about a run, and nothing is run here; leave it out");
    }
    let groups: Vec<&str> = groups::iter().map(|group| group.name).collect();
    let policy = policy::resolve(&inputs(options, host, &groups), &mut load)?;
    if !policy.level.is_full() {
        bail!(
            "isolation level {} has no root of its own, which is what is looked at here; leave --level out",
            policy.level
        );
    }
    let plan = planner::build(&policy, &request(options), &Able(host))?;
    Ok(Planned { policy, plan, learn: None })
}

fn request(options: &Options) -> Request {
    Request {
        argv: if options.command.is_empty() { default_command(options) } else { options.command.clone() },
        workdir: options.workdir.clone(),
        fds: options.fds.clone(),
        on_terminal: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        record: options.why,
        watch: options.level(),
        mail: options.mail.clone(),
    }
}

fn inputs<'g>(options: &Options, host: &LiveHost, groups: &'g [&'g str]) -> Inputs<'g> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    Inputs {
        mode: options.mode,
        profile: options.profile.clone(),
        policy_file: options.policy.clone(),
        flags: options.flags(),
        user_config: user_config(),
        home,
        cwd: host.cwd(),
        tmpdir: std::env::var_os("TMPDIR").map(PathBuf::from),
        system_config: Some(PathBuf::from(SYSTEM_CONFIG)),
        groups,
    }
}

/// What the user adds to the embedded modes, profiles and rules.
fn user_config() -> Option<PathBuf> {
    let is_absolute = |dir: &PathBuf| dir.is_absolute();
    let named = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(is_absolute);
    let home = || std::env::var_os("HOME").map(PathBuf::from).filter(is_absolute);
    named.or_else(|| home().map(|home| home.join(".config"))).map(|dir| dir.join("apex"))
}

/// Where rules of detectors stand beside the built-in ones.
fn rule_directories() -> Vec<PathBuf> {
    [Some(PathBuf::from(SYSTEM_CONFIG)), user_config()].into_iter().flatten().map(|dir| dir.join("detectors")).collect()
}

pub(crate) fn working_directory() -> Result<PathBuf> {
    std::env::current_dir().context("looking up the working directory; change to one that exists")
}

/// A plan or a proof needs no command; this one stands for any.
fn default_command(options: &Options) -> Vec<OsString> {
    match options.action {
        Action::Plan | Action::Prove => vec![OsString::from("/bin/true")],
        _ => Vec::new(),
    }
}

/// Reads a policy file; what is not there is `None`.
pub(crate) fn load(path: &Path) -> std::io::Result<Option<String>> {
    use std::io::Read;
    // Before it is opened: opening a FIFO would wait for somebody to write.
    // By fstatat(2): where a file is not there, the standard library makes a second call to find out whether the first is known.
    let name = CString::new(path.as_os_str().as_bytes()).map_err(std::io::Error::from)?;
    let about = match apex_sys::fs::stat_followed(&name) {
        Ok(about) => about,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !about.is_regular() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let file = std::fs::File::open(path)?;
    let mut text = String::new();
    file.take(POLICY_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > POLICY_BYTES_MAX {
        return Err(std::io::Error::other("larger than 1 MiB"));
    }
    Ok(Some(text))
}

fn report(options: &Options, report: Report<'_>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let style = Style::new(options.json, out.is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    print::print(&mut out, report, style).and_then(|()| out.flush()).context("writing to standard output")
}

fn write_receipt(options: &Options, receipt: &Receipt, style: Option<Style>) -> Result<()> {
    let style = style.unwrap_or(Style::Json);
    match &options.receipt {
        None => Ok(()),
        Some(Sink::Stdout) => Ok(print::print(&mut std::io::stdout().lock(), Report::Receipt(receipt), style)?),
        Some(Sink::File(path)) => {
            let mut file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
            print::print(&mut file, Report::Receipt(receipt), style)
                .with_context(|| format!("writing {}", path.display()))
        }
    }
}

/// After the run, on standard error: standard output is the command's.
fn explain_all(options: &Options, policy: &Policy, plan: &Plan, refusals: &[Refusal]) -> Result<()> {
    let explanations: Vec<Explanation> =
        refusals.iter().map(|refusal| explain::explain(refusal, plan, policy, &group_of)).collect();
    let mut out = std::io::stderr().lock();
    let style = Style::new(options.json, out.is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    print::print(&mut out, Report::Why(&explanations), style).context("writing the explanations to standard error")
}

/// What explanations say about the group of a call.
pub(crate) fn group_of(call: &str) -> Option<explain::Group> {
    let group = [Abi::X86_64, Abi::Aarch64, Abi::I386]
        .into_iter()
        .find_map(|abi| groups::of_call(abi, abi.call_number(call)?))?;
    Some(explain::Group {
        name: group.name.to_owned(),
        reason: group.reason.to_owned(),
        modes: policy::modes_allowing(group.name),
    })
}
