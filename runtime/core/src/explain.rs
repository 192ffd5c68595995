//! Refusals in words: what was tried, what stood in the way, and the smallest safe change.
//!
//! Input: a [`Refusal`] as the jail saw it, the [`Plan`] that was in force and the [`Policy`] it came from. Output: an
//! [`Explanation`]. Names and paths in a refusal were chosen by the sandbox: they are quoted for a shell where a person may copy
//! them, and no change is offered that a hostile name could turn into another one. Terminal escapes are the printer's concern.

mod path;
pub(crate) mod sensitive;

use crate::amount::{duration, size};
use crate::layer::Layer;
use crate::plan::Plan;
use crate::policy::{Mode, Network, Origin, Policy};
use crate::refusal::{Access, Attempt, Explanation, Refusal};

/// What is known of a group of system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name in policies.
    pub name: String,
    /// Why it is a group of its own, in a few words.
    pub reason: String,
    /// The modes whose ceiling lets a policy allow it.
    pub modes: Vec<Mode>,
}

/// Finds the group that holds a system call.
pub type GroupOf<'g> = dyn Fn(&str) -> Option<Group> + 'g;

/// What stood in the way, before it is joined with the refusal.
#[derive(Debug, Default)]
struct Answer {
    layer: Option<Layer>,
    because: String,
    rule: Option<Origin>,
    change: Option<String>,
    caution: Option<String>,
}

impl Answer {
    fn new(layer: Option<Layer>, because: impl Into<String>) -> Self {
        Answer { layer, because: because.into(), ..Answer::default() }
    }

    fn rule(self, origin: &Origin) -> Self {
        Answer { rule: Some(origin.clone()), ..self }
    }

    fn change(self, change: impl Into<String>) -> Self {
        Answer { change: Some(change.into()), ..self }
    }

    /// Adds to what is to be thought of.
    fn caution(mut self, caution: &str) -> Self {
        self.caution = Some(match self.caution.take() {
            Some(first) => format!("{first}; {caution}"),
            None => caution.to_owned(),
        });
        self
    }
}

/// Explains one refusal.
pub fn explain(refusal: &Refusal, plan: &Plan, policy: &Policy, group_of: &GroupOf<'_>) -> Explanation {
    let mut answer = match &refusal.attempt {
        Attempt::Path { path, access, exists_inside, exists_outside } => {
            let seen = path::Seen {
                path,
                access: *access,
                exists_inside: *exists_inside,
                exists_outside: *exists_outside,
                outcome: &refusal.outcome,
            };
            path::explain(&seen, plan, policy)
        }
        Attempt::Syscall { name, abi, .. } => explain_syscall(name, abi, plan, policy, group_of),
        Attempt::Address { address, .. } => explain_address(address, plan),
        Attempt::Limit { resource, limit } => explain_limit(resource, limit, plan, policy),
    };
    if refusal.outcome == "reported" {
        answer.because.push_str(" (this mode let it through and recorded it)");
    }
    Explanation {
        tried: tried(&refusal.attempt),
        refusal: refusal.clone(),
        layer: answer.layer,
        because: answer.because,
        rule: answer.rule,
        change: answer.change,
        caution: answer.caution,
    }
}

fn tried(attempt: &Attempt) -> String {
    match attempt {
        Attempt::Syscall { name, abi, .. } => format!("call {name} ({abi})"),
        Attempt::Path { path, access, .. } => {
            let verb = match access {
                Access::Look => "look at",
                Access::Read => "read",
                Access::Write => "write to",
                Access::Exec => "execute",
            };
            format!("{verb} {}", path.display())
        }
        Attempt::Address { call, address } => format!("{call} {address}"),
        Attempt::Limit { resource, limit } => format!("go beyond {limit} of {resource}"),
    }
}

fn explain_syscall(name: &str, abi: &str, plan: &Plan, policy: &Policy, group_of: &GroupOf<'_>) -> Answer {
    let layer = Some(Layer::Seccomp);
    match abi {
        "x32" => {
            return Answer::new(layer, "the x32 ABI is refused as a whole, in every mode")
                .caution("build the program for x86-64");
        }
        "i386" | "arm" if !policy.syscalls.compat => return explain_compat(abi, plan),
        _ => {}
    }
    let Some(group) = group_of(name) else {
        return Answer::new(
            layer,
            format!("no group holds `{name}`: it is answered as a kernel answers that does not have it"),
        )
        .caution("programs fall back on an older call; when this one does not, no policy can grant it");
    };
    let Group { name: group_name, reason, modes } = &group;
    if let Some(origin) = policy.syscalls.deny.get(group_name) {
        return Answer::new(layer, format!("group `{group_name}` ({reason}) is denied"))
            .rule(origin)
            .caution(&deliberate(origin));
    }
    if let Some(origin) = policy.syscalls.allow.get(group_name) {
        return Answer::new(layer, format!("group `{group_name}` is granted, but not `{name}` with these arguments"))
            .rule(origin)
            .caution("what the arguments ask for leads out of the sandbox; no policy grants it");
    }
    let because = format!("group `{group_name}` ({reason}) is not granted");
    if modes.contains(&plan.mode) {
        return Answer::new(layer, because)
            .change(snippet("syscalls", &format!("allow = [\"{group_name}\"]")))
            .caution("it opens every call of the group");
    }
    let because = format!("{because}, and the ceiling of mode {} forbids it", plan.mode.name());
    match modes.first() {
        Some(mode) => Answer::new(layer, because)
            .caution(&format!("--mode {} could grant it, and is wider in everything else too", mode.name())),
        None => Answer::new(layer, because).caution("no mode can grant it"),
    }
}

fn explain_compat(abi: &str, plan: &Plan) -> Answer {
    let answer = Answer::new(Some(Layer::Seccomp), format!("32-bit programs are off: every {abi} call is refused"));
    match plan.mode {
        Mode::Isolation => answer.caution(
            "the ceiling of mode isolation forbids them; --mode hybrid could grant them, and is wider in everything else too",
        ),
        Mode::Hybrid | Mode::Development => answer
            .change(snippet("syscalls", "compat = true"))
            .caution("32-bit entry points of the kernel are less used and less tested"),
    }
}

fn explain_address(address: &str, plan: &Plan) -> Answer {
    if let Some(path) = address.strip_prefix("unix:") {
        return path::explain_socket(std::path::Path::new(path), plan);
    }
    if address.starts_with("abstract:") {
        let layer = if plan.network == Network::None { Layer::Netns } else { Layer::Landlock };
        return Answer::new(Some(layer), "abstract sockets of the host stay outside")
            .caution("a socket with a path can be shared instead, with --rw PATH");
    }
    if plan.network == Network::None {
        return explain_no_network(address, plan);
    }
    if plan.landlock.as_ref().is_some_and(|landlock| landlock.tcp_refused) {
        return Answer::new(Some(Layer::Landlock), "the policy refuses TCP");
    }
    Answer::new(
        None,
        "the sandbox has the network of the host: what refused is outside of Apex (a firewall, the peer, a port below 1024)",
    )
}

fn explain_no_network(address: &str, plan: &Plan) -> Answer {
    let answer = Answer::new(Some(Layer::Netns), "the sandbox has an empty network of its own (network `none`)");
    if address.contains("169.254.169.254") || address.contains("fd00:ec2::254") {
        return answer.caution("this is the metadata service of cloud hosts, which hands out the host's credentials");
    }
    let answer = match plan.mode {
        // Its ceiling has no network.
        Mode::Isolation => {
            answer.change("--mode hybrid --net host").caution("mode hybrid is wider in other things too")
        }
        Mode::Hybrid | Mode::Development => answer.change("--net host"),
    };
    answer.caution("it opens everything that the host can reach, services on its loopback included")
}

fn explain_limit(resource: &str, limit: &str, plan: &Plan, policy: &Policy) -> Answer {
    let reached = |layer, what: &str| Answer::new(layer, format!("the limit of {what} ({limit}) was reached"));
    let cgroup = plan.cgroup.as_ref();
    let raise = |answer: Answer, change: Option<String>| Answer { change, ..answer };
    match resource {
        "memory" => raise(
            reached(Some(Layer::Cgroup), "memory"),
            cgroup.and_then(|c| c.memory_bytes).map(|bytes| format!("--memory {}", size(bytes.saturating_mul(2)))),
        )
        .caution("private directories in memory count too"),
        "tasks" => raise(
            reached(Some(Layer::Cgroup), "processes and threads"),
            cgroup.and_then(|c| c.tasks).map(|tasks| format!("--tasks {}", tasks.saturating_mul(2))),
        )
        .caution("a program that forks without end looks the same: see first what it starts"),
        "wall-time" => raise(
            reached(None, "life time"),
            plan.wall_time_ms.map(|ms| format!("--time {}", duration(ms.saturating_mul(2)))),
        ),
        "tmpfs" => raise(
            reached(Some(Layer::Mountns), "a private directory in memory"),
            Some(format!("--tmp-size {}", size(policy.resources.tmp_size_bytes.saturating_mul(2)))),
        )
        .caution("it counts as memory: --memory may have to follow"),
        "open-files" => raise(
            reached(Some(Layer::Rlimits), "open descriptors of one process"),
            rlimit(plan, "nofile").map(|value| format!("--nofile {}", value.saturating_mul(2))),
        ),
        "file-size" => raise(
            reached(Some(Layer::Rlimits), "the size of one file"),
            rlimit(plan, "fsize")
                .map(|value| snippet("resources", &format!("file_size = \"{}\"", size(value.saturating_mul(2))))),
        ),
        other => reached(None, other),
    }
}

fn rlimit(plan: &Plan, name: &str) -> Option<u64> {
    plan.rlimits.iter().find(|rlimit| rlimit.name == name).map(|rlimit| rlimit.value)
}

/// The smallest policy file for what has no flag.
fn snippet(table: &str, line: &str) -> String {
    format!("--policy FILE, with in FILE:\n[{table}]\n{line}")
}

fn deliberate(origin: &Origin) -> String {
    format!("a deny is deliberate and wins over every grant; if it is wrong, remove the rule at {origin}")
}
