//! A plan as text: one block for each layer, in the order in which they are put in force.

use apex_core::amount::{duration, size};
use apex_core::layer::{Layer, Requirement};
use apex_core::plan::{BindAccess, LandlockRule, Mount, Plan};
use apex_core::policy::{IsolationLevel, Network, ProcView};

use super::WIDTH;
use super::table::{self, Cell, wrap};
use crate::escape;

pub(super) fn text(plan: &Plan) -> String {
    let mut out = String::new();
    let level = super::at_level(plan.level);
    push(&mut out, 0, &format!("plan of mode {}{level}, from {}", plan.mode.name(), plan.sources.join(", ")));
    push_level(&mut out, plan);
    for layer in Layer::ALL {
        out.push('\n');
        push_layer(&mut out, layer, plan);
    }
    if !plan.watch.is_off() {
        out.push('\n');
        push(&mut out, 0, &format!("watched: {}", plan.watch.name()));
        push(&mut out, 2, "by apex-probe, a process of its own: probes where this user may load them, else ptrace");
        push(&mut out, 2, "in a cgroup v2 directory of its own where one can be made; refused calls go to a listener");
        push(&mut out, 2, "the command does not start before it is watched and ends when it no longer is");
    }
    out.push_str("\ncommand\n");
    push_command(&mut out, plan);
    out
}

/// What a level has instead of what it leaves out.
fn push_level(out: &mut String, plan: &Plan) {
    match plan.level {
        IsolationLevel::Full => return,
        IsolationLevel::Partial => {
            push(out, 2, "the host's own tree, as far as the Landlock rules below go; no socket with a name in it")
        }
        IsolationLevel::None => {
            push(out, 2, "NOTHING IS CONFINED: the program may what its user may, in the host's own tree and network")
        }
    }
    for words in &plan.given_up {
        push(out, 2, &format!("not at this level: {words}"));
    }
    for path in &plan.withheld {
        push(out, 2, &format!("in no rule: {}", path.display()));
    }
}

fn push_layer(out: &mut String, layer: Layer, plan: &Plan) {
    let requirement = plan.layers.get(&layer).copied().unwrap_or(Requirement::Off);
    if let Some(reason) = plan.skipped.get(&layer) {
        push(out, 0, &format!("{layer}: optional, SKIPPED: {reason}"));
        return;
    }
    match requirement {
        Requirement::Off if plan.level.leaves_out(layer) => {
            push(out, 0, &format!("{layer}: left out, isolation level {}", plan.level));
            return;
        }
        Requirement::Off => {
            push(out, 0, &format!("{layer}: off"));
            return;
        }
        Requirement::Required => push(out, 0, &format!("{layer}: required")),
        Requirement::Optional => push(out, 0, &format!("{layer}: optional")),
    }
    match layer {
        Layer::Cgroup => push_cgroup(out, plan),
        Layer::Userns => push_identity(out, plan),
        Layer::Mountns => out.push_str(&mounts(plan)),
        Layer::Netns => push(
            out,
            2,
            match plan.network {
                Network::None => "an empty network with its own loopback",
                Network::Host => "the network of the host",
            },
        ),
        Layer::Utsns => push(out, 2, &format!("host name {}", plan.identity.hostname)),
        Layer::Rlimits => {
            let limits: Vec<String> =
                plan.rlimits.iter().map(|limit| format!("{} {}", limit.name, limit.value)).collect();
            push(out, 2, &or_none(limits.join(", ")));
        }
        Layer::Capabilities => push(out, 2, &format!("kept: {}", or_none(plan.capabilities.join(", ")))),
        Layer::Landlock => push_landlock(out, plan),
        Layer::Seccomp => push_seccomp(out, plan),
        Layer::Pidns => push(out, 2, "its own processes only; all die with its init"),
        Layer::Ipcns => push(out, 2, "its own message queues, semaphores and shared memory"),
        Layer::Cgroupns => push(out, 2, "its own cgroup is the root that it sees"),
        Layer::Timens => push(out, 2, "clocks with an offset of their own"),
        Layer::NoNewPrivs => push(out, 2, "no program gains rights by being executed (setuid, file capabilities)"),
    }
}

fn push_cgroup(out: &mut String, plan: &Plan) {
    let Some(cgroup) = &plan.cgroup else {
        push(out, 2, "no limit");
        return;
    };
    let limits = [
        cgroup.memory_bytes.map(|bytes| format!("memory {}", size(bytes))),
        cgroup.swap_bytes.map(|bytes| format!("swap {}", size(bytes))),
        cgroup.cpu_percent.map(|percent| format!("cpu {percent}% of one core")),
        cgroup.tasks.map(|tasks| format!("tasks {tasks}")),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    if limits.is_empty() {
        push(out, 2, "no limit, only measured");
    } else {
        push(out, 2, &format!("{} for the whole sandbox", limits.join(", ")));
    }
}

fn push_identity(out: &mut String, plan: &Plan) {
    let identity = &plan.identity;
    let outside = if identity.own_host_ids { "host ids of its own" } else { "the caller's ids on the host" };
    push(out, 2, &format!("uid {}, gid {} inside; {outside}", identity.uid, identity.gid));
    if identity.own_host_ids && !plan.level.is_full() {
        return push(out, 2, "no file of the host belongs to it: what root alone may, it may not");
    }
    push(out, 2, &format!("files of uid {}, gid {} belong to it", identity.caller_uid, identity.caller_gid));
}

fn mounts(plan: &Plan) -> String {
    table::render(["dest", "source", "rights", "reason", "origin"], plan.mounts.iter().map(mount_row), false)
}

fn mount_row(mount: &Mount) -> [Cell; 5] {
    let path = |path: &std::path::Path| escape::path(path).into_owned();
    let cells = match mount {
        Mount::Bind { source, dest, access, exec, reason, origin, idmap, .. } => {
            let access = match access {
                BindAccess::Read => "read",
                BindAccess::Write => "read, write",
                BindAccess::Overlay => "read, write to a layer on top",
            };
            let exec = if *exec { ", exec" } else { "" };
            let idmap = if *idmap { ", idmap" } else { "" };
            let rights = format!("{access}{exec}{idmap}");
            [
                path(dest),
                if source == dest { "same".to_owned() } else { path(source) },
                rights,
                reason.clone(),
                origin.to_string(),
            ]
        }
        Mount::Symlink { dest, target } => {
            [path(dest), format!("-> {}", path(target)), "link".into(), String::new(), String::new()]
        }
        Mount::Dir { dest } => [path(dest), "empty".into(), "read".into(), String::new(), String::new()],
        Mount::File { dest, .. } => [path(dest), "made".into(), "read".into(), String::new(), String::new()],
        Mount::Tmpfs { dest, size_bytes, exec, origin } => {
            let rights = if *exec { "read, write, exec" } else { "read, write" };
            [path(dest), format!("tmpfs {}", size(*size_bytes)), rights.into(), "private".into(), origin.to_string()]
        }
        Mount::Proc { view } => {
            let rights = match view {
                ProcView::None => "none",
                ProcView::Pid => "its own processes",
                ProcView::Masked => "masked",
            };
            ["/proc".into(), "proc".into(), rights.into(), String::new(), String::new()]
        }
        Mount::Dev { shm_size_bytes } => [
            "/dev".into(),
            format!("made; shm {}", size(*shm_size_bytes)),
            "minimal".into(),
            String::new(),
            String::new(),
        ],
        Mount::Hide { dest, origin, .. } => {
            [path(dest), "empty".into(), "hidden".into(), String::new(), origin.to_string()]
        }
        Mount::Deny { dest, origin, .. } => {
            [path(dest), "-".into(), "DENIED".into(), String::new(), origin.to_string()]
        }
    };
    cells.map(|text| Cell::new(&text))
}

fn push_landlock(out: &mut String, plan: &Plan) {
    let Some(landlock) = &plan.landlock else {
        push(out, 2, "no rule: nothing is handled");
        return;
    };
    let tcp = if landlock.tcp_refused { "TCP refused" } else { "TCP not handled" };
    let scope = if landlock.scoped { "signals and abstract sockets stay inside" } else { "no scope" };
    push(out, 2, &format!("ABI {}; {tcp}; {scope}", landlock.abi));
    for rule in &landlock.rules {
        push(out, 2, &format!("{}  {}", rights(rule), rule.path.display()));
    }
}

/// Like a file's mode: list, read, write, execute, ioctl.
fn rights(rule: &LandlockRule) -> String {
    let flags = [(rule.list, 'l'), (rule.read, 'r'), (rule.write, 'w'), (rule.exec, 'x'), (rule.ioctl, 'i')];
    flags.map(|(on, letter)| if on { letter } else { '-' }).iter().collect()
}

fn push_seccomp(out: &mut String, plan: &Plan) {
    push(
        out,
        2,
        match (&plan.seccomp, plan.record) {
            (None, _) => "no filter",
            (Some(_), false) => "every system call of every ABI is decided; --json lists the decisions",
            (Some(_), true) => {
                "every system call of every ABI is decided, refusals are recorded; --json lists the decisions"
            }
        },
    );
}

fn push_command(out: &mut String, plan: &Plan) {
    let command = &plan.command;
    let words = |words: &[std::ffi::OsString]| {
        words.iter().map(|word| format!("{:?}", word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    };
    let paths = |paths: &[std::path::PathBuf]| {
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    push(out, 2, &format!("arguments    {}", words(&command.argv)));
    push(out, 2, &format!("tried        {}", paths(&command.candidates)));
    push(out, 2, &format!("directory    {}", paths(&command.workdir)));
    push(out, 2, &format!("environment  {}", or_none(words(&command.env))));
    let fds: Vec<String> = plan.fds.iter().map(i32::to_string).collect();
    push(
        out,
        2,
        &format!("descriptors  {}", ["0, 1, 2".to_owned()].into_iter().chain(fds).collect::<Vec<_>>().join(", ")),
    );
    for rule in &plan.mailboxes {
        let ways = match (rule.send, rule.receive) {
            (true, true) => "send and receive",
            (true, false) => "send",
            (false, _) => "receive",
        };
        let (name, control, reason) = (&rule.name, rule.control.name(), &rule.reason);
        push(out, 2, &format!("mailbox      {name}: {ways}, {control} ({reason})"));
    }
    push(out, 2, &format!("terminal     {}", if plan.tty { "of its own" } else { "none of its own" }));
    push(out, 2, &format!("life         {}", plan.wall_time_ms.map_or_else(|| "unlimited".to_owned(), duration)));
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn push(out: &mut String, indent: usize, text: &str) {
    for (at, line) in wrap(&escape::text(text), WIDTH - indent - 4).iter().enumerate() {
        let indent = if at == 0 { indent } else { indent + 4 };
        out.push_str(&format!("{:indent$}{line}\n", ""));
    }
}
