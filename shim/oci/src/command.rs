//! The commands, wired to what does the work.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use oci_spec::runtime::{Capability, Process};
use serde_json::json;

use crate::init::Inheritance;
use crate::journal::Journal;
use crate::options::{self, Command, Exec, Global, Make, Shape};
use crate::receipt::Receipt;
use crate::state::{self, Entry, OCI_VERSION, Root, Status};
use crate::{create, delete, events, exec, features, foreground, kill, numbers, own_image, ps, spec, start, update};

/// Bytes of a file of `exec --process`; what is longer is cut and then is no JSON.
const PROCESS_BYTES_MAX: u64 = 16 << 20;
/// Exit code of a command that failed.
const FAILED: i32 = 1;
/// The same of `exec`, where 1 is often the program's own.
const EXEC_FAILED: i32 = 255;

/// Runs one command; the value is the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> i32 {
    // Who reads no more, and hooks that do not read at all, are errors to be told, not the end of this process. It cannot fail: the signal exists.
    let _ = apex_sys::signal::ignore(nix::libc::SIGPIPE);
    let (global, command) = match options::parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            Journal::default().error(&error.to_string());
            return FAILED;
        }
    };
    let journal = match Journal::open(global.log.as_deref(), global.log_format, global.is_verbose) {
        Ok(journal) => journal,
        Err(error) => {
            let path = global.log.unwrap_or_default();
            Journal::default().error(&format!("cannot write the log {}: {error}", path.display()));
            return FAILED;
        }
    };
    let failed = if matches!(command, Command::Exec(_)) { EXEC_FAILED } else { FAILED };
    journal.debug(&format!("apex-oci {} was called: {command:?}", env!("CARGO_PKG_VERSION")));
    match dispatch(&global, command, &journal) {
        Ok(code) => code,
        Err(error) => {
            journal.error(&format!("{error:#}"));
            failed
        }
    }
}

fn dispatch(global: &Global, command: Command, journal: &Journal) -> Result<i32> {
    let root = Root::new(global.root.as_deref());
    match command {
        Command::Create(make) => create_command(&root, global, &make, journal).map(|()| 0),
        Command::Run(make) => run_command(&root, global, &make, journal),
        Command::Start(id) => start_container(&root.find(&id)?, global).map(|()| 0),
        Command::Exec(wanted) => exec_command(&root, &wanted, journal),
        Command::State(id) => print_state(&root.find(&id)?),
        Command::Kill { id, signal, to_all } => {
            kill::kill(&root.find(&id)?, kill::signal(&signal)?, to_all).map(|()| 0)
        }
        Command::Delete { id, is_forced } => delete_command(&root, &id, is_forced, journal),
        Command::List { shape, is_quiet } => list(&root, shape, is_quiet),
        Command::Ps { id, shape, options } => ps(&root.find(&id)?, shape, &options),
        Command::Pause(id) => pause(&root.find(&id)?),
        Command::Resume(id) => resume(&root.find(&id)?),
        Command::Update { id, limits } => update_command(&root.find(&id)?, &limits),
        Command::Events { id, interval_ms, is_once } => events_command(&root.find(&id)?, interval_ms, is_once),
        Command::Spec { bundle, is_rootless } => {
            let rootless = is_rootless.then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
            Ok(spec::write(&bundle, rootless).map(|()| 0)?)
        }
        Command::Features => print(&format!("{}\n", serde_json::to_string_pretty(&features::features())?)),
        Command::Help(None) => print(&options::help::program()),
        Command::Help(Some(topic)) => print(&options::help::command(topic)),
        Command::Version => print(&version()),
    }
}

fn print(text: &str) -> Result<i32> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(0)
}

fn version() -> String {
    format!("apex-oci version {}\nspec: {OCI_VERSION}\n", env!("CARGO_PKG_VERSION"))
}

fn create_options(global: &Global, make: &Make) -> create::Options {
    create::Options {
        id: make.id.clone(),
        bundle: make.bundle.clone(),
        config: make.config.clone(),
        pid_file: make.pid_file.clone(),
        console_socket: make.console_socket.clone(),
        no_pivot: make.no_pivot,
        keeps_keyring: make.keeps_keyring,
        systemd_cgroup: global.systemd_cgroup,
        is_without_cgroup: global.is_without_cgroup,
        inheritance: inheritance(make.preserved),
    }
}

/// Descriptors of socket activation come first among those that are passed on (sd_listen_fds(3)).
fn inheritance(preserved: u32) -> Inheritance {
    let listening = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
    if listening == 0 {
        return Inheritance { preserved, variables: Vec::new() };
    }
    let mut variables = vec![format!("LISTEN_FDS={listening}"), "LISTEN_PID=1".to_owned()];
    variables.extend(std::env::var("LISTEN_FDNAMES").ok().map(|names| format!("LISTEN_FDNAMES={names}")));
    Inheritance { preserved: preserved.saturating_add(listening), variables }
}

fn create_command(root: &Root, global: &Global, make: &Make, journal: &Journal) -> Result<()> {
    own_image::protect()?;
    let options = create_options(global, make);
    create::forget_caller(options.inheritance.preserved)?;
    create::create(root, &options, None, journal).map(drop)
}

fn run_command(root: &Root, global: &Global, make: &Make, journal: &Journal) -> Result<i32> {
    own_image::protect()?;
    let options = create_options(global, make);
    create::forget_caller(options.inheritance.preserved)?;
    let wants_terminal = !make.is_detached && make.console_socket.is_none() && has_terminal(make);
    let (own_end, console) = match wants_terminal.then(foreground::terminal_socket).transpose()? {
        Some((own, other)) => (Some(own), Some(other)),
        None => (None, None),
    };
    let entry = create::create(root, &options, console, journal)?;
    let ended = follow(&entry, global, make.is_detached, own_end);
    if make.is_detached && ended.is_ok() {
        return Ok(0);
    }
    if !make.is_kept {
        let failed = delete::delete(&entry, true)?;
        failed.iter().for_each(|words| journal.warning(words));
    }
    ended
}

/// Starts a container, with its receipt where one is asked for.
fn start_container(entry: &Entry, global: &Global) -> Result<()> {
    let Some(path) = &global.receipt else { return start::start(entry, None) };
    let mut give = |receipt: &Receipt| -> Result<()> {
        if path == Path::new("-") {
            return print(&receipt.to_string()).map(drop);
        }
        let text = serde_json::to_string_pretty(receipt)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write the receipt to {}", path.display()))
    };
    start::start(entry, Some(&mut give))
}

/// Starts a container of this process's own and waits for it.
fn follow(entry: &Entry, global: &Global, is_detached: bool, socket: Option<std::os::fd::OwnedFd>) -> Result<i32> {
    let record = entry.record()?;
    let pidfd = entry.process(&record).context("the container ended before its start")?;
    start_container(entry, global)?;
    if is_detached {
        return Ok(0);
    }
    let terminal = socket.map(|socket| foreground::receive_terminal(&socket)).transpose()?;
    foreground::wait(record.pid, &pidfd, terminal)
}

/// Whether the bundle asks for a terminal; what is wrong with it is told when it is made.
fn has_terminal(make: &Make) -> bool {
    let loaded = crate::bundle::Bundle::load(&make.bundle, make.config.as_deref());
    loaded.is_ok_and(|bundle| bundle.process().terminal().unwrap_or(false))
}

fn exec_command(root: &Root, wanted: &Exec, journal: &Journal) -> Result<i32> {
    own_image::protect()?;
    let inheritance = Inheritance { preserved: wanted.preserved, variables: Vec::new() };
    create::forget_caller(inheritance.preserved)?;
    let entry = root.find(&wanted.id)?;
    let process = process(&entry, wanted, journal)?;
    if let Some(list) = process.exec_cpu_affinity().as_ref().and_then(|affinity| affinity.initial().as_deref()) {
        let mask = numbers::list(list, 63).map(|all| all.iter().fold(0_u64, |mask, number| mask | 1 << number));
        journal.debug(&format!("initial CPU affinity: {}", mask.map_or(list.to_owned(), |mask| format!("{mask:#x}"))));
    }
    let options = exec::Options {
        is_detached: wanted.is_detached,
        pid_file: wanted.pid_file.clone(),
        console_socket: wanted.console_socket.clone(),
        cgroups: wanted.cgroups.clone(),
        ignores_paused: wanted.ignores_paused,
        inheritance,
    };
    exec::exec(&entry, &process, &options)
}

/// The process to execute: a file's, or that of the bundle with the options' changes.
fn process(entry: &Entry, wanted: &Exec, journal: &Journal) -> Result<Process> {
    if let Some(path) = &wanted.process {
        let mut text = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(PROCESS_BYTES_MAX).read_to_end(&mut text))
            .with_context(|| format!("cannot read the process {}", path.display()))?;
        let parsed = crate::bundle::parse(&text);
        return parsed
            .map(|(process, _)| process)
            .with_context(|| format!("{} is not a process of runtime-spec 1.x", path.display()));
    }
    let spec = entry.config()?;
    let mut process = spec.process().clone().context("the container's configuration has no process")?;
    process.set_args(Some(wanted.command.clone())).set_terminal(Some(wanted.is_terminal));
    if let Some(cwd) = &wanted.cwd {
        process.set_cwd(cwd.clone());
    }
    let env = process.env().iter().flatten().chain(&wanted.env).cloned().collect();
    process.set_env(Some(env));
    if wanted.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if wanted.apparmor.is_some() {
        process.set_apparmor_profile(wanted.apparmor.clone());
    }
    if wanted.selinux.is_some() {
        process.set_selinux_label(wanted.selinux.clone());
    }
    if let Some((uid, gid)) = wanted.user {
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !wanted.groups.is_empty() {
        let groups = process.user().additional_gids().iter().flatten().chain(&wanted.groups).copied().collect();
        process.user_mut().set_additional_gids(Some(groups));
    }
    add_capabilities(&mut process, &wanted.capabilities, journal);
    Ok(process)
}

/// One that this runtime does not know is not had, and told, as with those of a bundle.
fn add_capabilities(process: &mut Process, names: &[String], journal: &Journal) {
    for name in names {
        let Ok(capability) = serde_json::from_value::<Capability>(json!(name)) else {
            journal.warning(&format!("ignoring the unknown capability {name:?} of --cap"));
            continue;
        };
        let mut sets = process.capabilities().clone().unwrap_or_default();
        let with = |set: &Option<oci_spec::runtime::Capabilities>| {
            Some(set.iter().flatten().copied().chain([capability]).collect())
        };
        let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
        process.set_capabilities(Some(sets));
    }
}

fn print_state(entry: &Entry) -> Result<i32> {
    let record = entry.record()?;
    let value = state::state_for_people(&record, entry.status(&record));
    print(&format!("{}\n", serde_json::to_string_pretty(&value)?))
}

fn delete_command(root: &Root, id: &str, is_forced: bool, journal: &Journal) -> Result<i32> {
    let entry = match root.find(id) {
        // As runc does: what is not there is deleted.
        Err(state::StateError::Missing { .. }) if is_forced => return Ok(0),
        other => other?,
    };
    let failed = delete::delete(&entry, is_forced)?;
    failed.iter().for_each(|words| journal.warning(words));
    Ok(0)
}

fn list(root: &Root, shape: Shape, is_quiet: bool) -> Result<i32> {
    let mut all = Vec::new();
    for id in root.ids()? {
        // One that goes away meanwhile, or is damaged, is not listed; `state` tells what is wrong with it.
        let Ok(entry) = root.find(&id) else { continue };
        let Ok(record) = entry.record() else { continue };
        all.push(state::state_for_people(&record, entry.status(&record)));
    }
    let text = match (is_quiet, shape) {
        (true, _) => all.iter().map(|one| format!("{}\n", one.id)).collect(),
        (false, Shape::Json) => format!("{}\n", serde_json::to_string(&all)?),
        (false, Shape::Table) => {
            let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned).to_vec();
            let rows = all.iter().map(|one| {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                let bundle = one.bundle.display().to_string();
                let pid = one.pid.unwrap_or(0).to_string();
                vec![one.id.clone(), pid, one.status.to_owned(), bundle, text(&one.created), text(&one.owner)]
            });
            table(std::iter::once(head).chain(rows).collect())
        }
    };
    print(&text)
}

/// Columns as wide as their widest word.
fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn ps(entry: &Entry, shape: Shape, options: &[String]) -> Result<i32> {
    let record = entry.record()?;
    let Some(cgroup) = &record.cgroup else {
        bail!("container {:?} has no cgroup that would tell its processes", entry.id())
    };
    let pids = cgroup.pids()?;
    match shape {
        Shape::Json => print(&format!("{}\n", ps::json(&pids))),
        Shape::Table => print(&ps::table(&pids, options)?),
    }
}

fn pause(entry: &Entry) -> Result<i32> {
    let record = entry.record()?;
    match (entry.status(&record), &record.cgroup) {
        (Status::Running | Status::Created, Some(cgroup)) => cgroup.freeze()?,
        (Status::Running | Status::Created, None) => {
            bail!("container {:?} has no cgroup that could be frozen", entry.id())
        }
        (status, _) => bail!("cannot pause container {:?}: it is {}", entry.id(), status.name()),
    }
    Ok(0)
}

fn resume(entry: &Entry) -> Result<i32> {
    let record = entry.record()?;
    match (entry.status(&record), &record.cgroup) {
        (Status::Paused, Some(cgroup)) => cgroup.thaw()?,
        (status, _) => bail!("cannot resume container {:?}: it is {}", entry.id(), status.name()),
    }
    Ok(0)
}

fn update_command(entry: &Entry, limits: &update::Options) -> Result<i32> {
    let record = entry.record()?;
    let Some(cgroup) = &record.cgroup else { bail!("container {:?} has no cgroup that could be limited", entry.id()) };
    if entry.status(&record) == Status::Stopped {
        bail!("cannot update container {:?}: it has stopped", entry.id());
    }
    let resources = update::resources(limits, &mut std::io::stdin())?;
    update::update(entry.id(), cgroup, &resources)?;
    Ok(0)
}

fn events_command(entry: &Entry, interval_ms: u64, is_once: bool) -> Result<i32> {
    let record = entry.record()?;
    let Some(cgroup) = &record.cgroup else { bail!("container {:?} has no cgroup that would count", entry.id()) };
    if entry.status(&record) == Status::Stopped {
        bail!("container {:?} is not running", entry.id());
    }
    let mut out = std::io::stdout();
    if is_once {
        events::once(entry.id(), cgroup, &mut out)?;
    } else {
        events::follow(entry.id(), cgroup, Duration::from_millis(interval_ms), &mut out)?;
    }
    Ok(0)
}
