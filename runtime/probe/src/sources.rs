//! Where a sandbox's events come from on this host: chosen before the sandbox stands, started when it does.
//!
//! BPF programs where they can be loaded, else ptrace, for the families that each gives; refusals always come from the listener of the
//! system call filter, which `apex-run` holds. A family that nobody gives is reported with its reason.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;

use apex_core::control::Shut;
use apex_core::seccomp::trace::Scope;
use apex_core::summary::ProbeCost;
use apex_core::watch::{Begin, Family, Level, Source};

use crate::bpf::{self, Deny, Probes};
use crate::ptrace;
use crate::source::Batch;

/// What was chosen.
pub struct Chosen {
    /// Where each family comes from.
    pub sources: BTreeMap<Family, Source>,
    means: Means,
}

enum Means {
    Probes(Probes),
    Ptrace(Scope),
    /// The listener alone.
    Nothing,
}

/// A sandbox that stands, as it is named over the socket.
pub struct Sandbox {
    /// Its id.
    pub id: u64,
    /// Its own cgroup v2 directory.
    pub cgroup: Option<OwnedFd>,
    /// Its init.
    pub init: u32,
    /// The process that becomes the command.
    pub command: u32,
    /// Whether the filter that stops for a tracer is in force.
    pub traced: bool,
}

/// The sources of a sandbox, at work.
pub enum Running {
    /// Programs in the kernel.
    Probes(bpf::Running),
    /// The tracer.
    Ptrace(ptrace::Running),
    /// The listener alone.
    Nothing,
}

/// What the dials refuse of a running sandbox. A sandbox's entry in the kernel is written as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dials {
    /// The network as a whole.
    pub cut: bool,
    /// Calls one by one.
    pub shut: Shut,
    /// What a finding took: the network, and what a suspicious program should not gain. What the attached programs cannot refuse is left: without family `lsm`
    /// that is all but the network.
    pub tightened: bool,
}

impl Dials {
    fn needs_network(&self) -> bool {
        self.cut || self.shut.of_probes() != Shut::default()
    }

    fn denied(&self) -> Vec<Deny> {
        // What is reported is refused by the launcher.
        let Dials { cut, shut: Shut { connect, bind, sendmsg, devices, reported: _ }, tightened } = *self;
        let all = [
            (cut || tightened, Deny::Network),
            (tightened, Deny::Ptrace),
            (tightened, Deny::Privilege),
            (connect, Deny::Connect),
            (bind, Deny::Bind),
            (sendmsg, Deny::Sendmsg),
            (devices, Deny::Devices),
        ];
        all.into_iter().filter(|(is_refused, _)| *is_refused).map(|(_, deny)| deny).collect()
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// How much.
    pub level: Level,
    /// What a tracer would see.
    pub scope: Option<Scope>,
    /// Spares a caller without privilege the attempt to load.
    pub may_probe: bool,
    /// Whether there is a system call filter that refuses, and what its listener is told of.
    pub listener: Listener,
    /// Whether the run is learned from.
    pub learns: bool,
}

/// The listener of the system call filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// No filter is in force.
    None,
    /// It is told of what is refused.
    Refusals,
    /// It gets every call with a path or an address (`--why`), before a tracer would.
    Paths,
}

impl Wish {
    /// Of a run.
    pub fn of(begin: &Begin) -> Wish {
        Wish {
            level: begin.start.level,
            scope: Scope::of_run(begin),
            may_probe: begin.may_probe,
            listener: match (begin.has_listener, begin.record) {
                (false, _) => Listener::None,
                (true, false) => Listener::Refusals,
                (true, true) => Listener::Paths,
            },
            learns: begin.learn.is_some(),
        }
    }
}

/// Chooses, and loads what takes time.
pub fn choose(wish: Wish) -> Chosen {
    let mut chosen = choose_means(wish);
    if wish.listener != Listener::None && wish.level != Level::Off {
        chosen.sources.insert(Family::Refusal, Source::Listener);
    }
    chosen
}

fn choose_means(wish: Wish) -> Chosen {
    let mut refused = BTreeMap::new();
    if wish.may_probe {
        match Probes::load_for(wish.level, wish.learns) {
            (Some(probes), sources) => return Chosen { sources, means: Means::Probes(probes) },
            (None, sources) => refused = sources,
        }
    }
    let mut sources = ptrace::sources(wish.scope, wish.listener);
    let scope = wish.scope.filter(|_| sources.values().any(|source| *source == Source::Ptrace));
    for (family, source) in &mut sources {
        // Where neither gives it, why the kernel refused the probe says more to somebody who may load probes.
        if let (Source::Missing { .. }, Some(better @ Source::Missing { .. })) = (&*source, refused.remove(family)) {
            *source = better;
        }
    }
    Chosen { sources, means: scope.map_or(Means::Nothing, Means::Ptrace) }
}

impl Chosen {
    /// Whether a cgroup v2 directory of the sandbox's own is needed.
    pub fn wants_cgroup(&self) -> bool {
        matches!(self.means, Means::Probes(_))
    }

    /// Whether the filter that stops for a tracer is needed.
    pub fn wants_trace(&self) -> bool {
        matches!(self.means, Means::Ptrace(_))
    }

    /// Attaches to the sandbox; returns when everything is on.
    pub fn start(self, sandbox: Sandbox, to: SyncSender<Batch>) -> Result<Running, String> {
        match self.means {
            Means::Probes(probes) => {
                let Some(cgroup) = sandbox.cgroup else {
                    return Err("probes need the sandbox's cgroup v2 directory, and none came along".to_owned());
                };
                let sandbox = bpf::Sandbox { id: sandbox.id, cgroup, init: sandbox.init };
                probes.start(sandbox, to).map(Running::Probes).map_err(|error| words(&error))
            }
            Means::Ptrace(scope) => {
                if !sandbox.traced {
                    return Err("the filter that stops for a tracer is not in force".to_owned());
                }
                let target =
                    ptrace::Target { sandbox: sandbox.id, init: sandbox.init, command: sandbox.command, scope };
                ptrace::start(target, to).map(Running::Ptrace).map_err(|error| words(&error))
            }
            Means::Nothing => Ok(Running::Nothing),
        }
    }
}

impl Running {
    /// Turns the dials: from now on so much is refused, and nothing else.
    pub fn turn(&self, dials: &Dials) -> Result<(), String> {
        match self {
            // What is asked for by name is refused or said not to be.
            Running::Probes(probes) if dials.needs_network() && !probes.has(Family::Network) => {
                Err("the probes of family network, which refuse that, could not be loaded".to_owned())
            }
            Running::Probes(probes) => probes.deny(&dials.denied()).map_err(|error| words(&error)),
            // There is nothing that could be open again either.
            Running::Ptrace(_) | Running::Nothing => Err("only kernel probes refuse calls".to_owned()),
        }
    }

    /// Whether it has dials.
    pub fn has_dials(&self) -> bool {
        matches!(self, Running::Probes(_))
    }

    /// Has every process of the sandbox stopped, or let go on, where it is traced; [`Running::has_obeyed`] tells when.
    pub fn hold(&self, frozen: bool) -> Result<(), String> {
        match self {
            Running::Ptrace(tracer) => {
                tracer.ask(frozen);
                Ok(())
            }
            Running::Probes(_) | Running::Nothing => {
                Err("only a tracer can hold a sandbox without a cgroup".to_owned())
            }
        }
    }

    /// Whether nothing is left to be done of what was last asked for.
    pub fn has_obeyed(&self) -> bool {
        match self {
            Running::Ptrace(tracer) => tracer.has_obeyed(),
            Running::Probes(_) | Running::Nothing => true,
        }
    }

    /// What each probe that ran has cost, as far as the kernel measures it.
    pub fn costs(&self) -> Vec<ProbeCost> {
        let Running::Probes(probes) = self else { return Vec::new() };
        // Figures for people: that they cannot be had takes nothing from the record.
        let stats = probes.stats().unwrap_or_default().into_iter().filter(|program| program.run_count > 0);
        let cost = |program: bpf::ProgramStats| ProbeCost {
            name: program.name.to_owned(),
            family: program.family,
            run_count: program.run_count,
            run_time_ns: program.run_time_ns,
        };
        stats.map(cost).collect()
    }

    /// Detaches. What was seen before is sent first, so the channel must be read meanwhile.
    pub fn stop(self) {
        match self {
            Running::Probes(probes) => probes.stop(),
            Running::Ptrace(tracer) => {
                if let Err(error) = tracer.stop() {
                    eprintln!("apex-probe: {}", words(&error));
                }
            }
            Running::Nothing => {}
        }
    }
}

/// An error with what caused it.
pub fn words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error}"));
        cause = error.source();
    }
    words
}
