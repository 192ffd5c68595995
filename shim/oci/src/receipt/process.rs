//! What a process holds: ids, capabilities, no_new_privs, filters, limits, labels.

use std::collections::HashMap;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, PosixRlimitType, Process};

use super::{Line, State, Subject, squeeze, text};
use crate::features::CAPABILITIES;

type Status = HashMap<String, String>;

pub(super) fn lines(subject: &Subject<'_>, status: &Status) -> Vec<Line> {
    let Some(process) = subject.spec.process() else { return Vec::new() };
    let view = View { subject, process, status };
    let mut lines = view.capabilities();
    lines.push(view.no_new_privs());
    lines.push(view.seccomp());
    lines.extend(view.rlimits());
    lines.extend(view.oom_score());
    lines.extend(view.label());
    lines
}

struct View<'a> {
    subject: &'a Subject<'a>,
    process: &'a Process,
    status: &'a Status,
}

/// A set of a bundle's.
type Set = fn(&LinuxCapabilities) -> &Option<Capabilities>;

/// The sets: their name in /proc, and the bundle's.
const SETS: [(&str, Set); 5] = [
    ("CapInh", LinuxCapabilities::inheritable),
    ("CapPrm", LinuxCapabilities::permitted),
    ("CapEff", LinuxCapabilities::effective),
    ("CapBnd", LinuxCapabilities::bounding),
    ("CapAmb", LinuxCapabilities::ambient),
];

impl View<'_> {
    fn of_status(&self, key: &str) -> (String, String) {
        let effective = self.status.get(key).cloned().unwrap_or_default();
        (effective, format!("/proc/{}/status {key}", self.subject.pid))
    }

    /// Fewer than asked for is no mismatch: a user who is not root holds fewer.
    fn capabilities(&self) -> Vec<Line> {
        let held = self.process.capabilities().as_ref();
        let line = |(key, set): (&str, Set)| {
            let asked = held.and_then(|held| set(held).as_ref()).map_or(0, bits);
            let (value, evidence) = self.of_status(key);
            let effective = u64::from_str_radix(&value, 16).ok();
            let agrees = effective.is_some_and(|effective| effective & !asked == 0);
            Line::new(key, names(asked), effective.map_or(value, names), evidence, agrees)
        };
        SETS.into_iter().map(line).collect()
    }

    fn no_new_privs(&self) -> Line {
        let (effective, evidence) = self.of_status("NoNewPrivs");
        if self.process.no_new_privileges() != Some(true) {
            return Line::off("no_new_privs", effective, evidence);
        }
        let agrees = effective == "1";
        Line::new("no_new_privs", "1".to_owned(), effective, evidence, agrees)
    }

    /// The runtime's own filters are inherited and count too.
    fn seccomp(&self) -> Line {
        let linux = self.subject.spec.linux().as_ref();
        let by_bundle = u32::from(linux.is_some_and(|linux| linux.seccomp().is_some()));
        let by_policy = u32::from(self.subject.narrowing.is_some_and(crate::policy::Narrowing::filters));
        let (mode, _) = self.of_status("Seccomp");
        let (filters, evidence) = self.of_status("Seccomp_filters");
        let count = |filters: &str| filters.parse::<u32>().unwrap_or(0);
        let inherited = super::status(std::process::id().cast_signed());
        let inherited = inherited.get("Seccomp_filters").map_or(0, |filters| count(filters));
        let effective = format!("mode {mode}, {filters} filters, {inherited} of them the runtime's");
        let asked = by_bundle + by_policy;
        if asked == 0 {
            return Line::off("seccomp", effective, evidence);
        }
        let agrees = mode == "2" && count(&filters) >= inherited + asked;
        Line::new("seccomp", format!("{asked} filters of bundle and policy"), effective, evidence, agrees)
    }

    fn rlimits(&self) -> Vec<Line> {
        let evidence = format!("/proc/{}/limits", self.subject.pid);
        let table = text(&evidence);
        let number = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
        let rlimits = self.process.rlimits().as_deref().unwrap_or_default();
        let line = |rlimit: &oci_spec::runtime::PosixRlimit| {
            let title = title(rlimit.typ());
            let found = table.lines().find_map(|line| line.strip_prefix(title)).map(squeeze).unwrap_or_default();
            let effective = found.split(' ').take(2).collect::<Vec<_>>().join(" ");
            let requested = format!("{} {}", number(rlimit.soft()), number(rlimit.hard()));
            let agrees = requested == effective;
            Line::new(title, requested, effective, evidence.clone(), agrees)
        };
        rlimits.iter().map(line).collect()
    }

    fn oom_score(&self) -> Option<Line> {
        let asked = self.process.oom_score_adj()?.to_string();
        let evidence = format!("/proc/{}/oom_score_adj", self.subject.pid);
        let effective = text(&evidence).trim().to_owned();
        let agrees = effective == asked;
        Some(Line::new("oom_score_adj", asked, effective, evidence, agrees))
    }

    /// The label of AppArmor or SELinux, whichever this host has.
    fn label(&self) -> Option<Line> {
        let asked = self.process.apparmor_profile().as_ref().or(self.process.selinux_label().as_ref());
        let asked = asked.filter(|asked| !asked.is_empty());
        let evidence = format!("/proc/{}/attr/current", self.subject.pid);
        let found = text(&evidence);
        // AppArmor adds how it is enforced: `docker-default (enforce)`.
        let effective = found.trim_end_matches(['\n', '\0']).to_owned();
        match asked {
            Some(asked) => {
                let agrees = effective == *asked || effective.split(" (").next() == Some(asked);
                Some(Line::new("label", asked.clone(), effective, evidence, agrees))
            }
            None if effective.is_empty() => None,
            None => Some(Line::off("label", effective, evidence)),
        }
    }
}

/// The set as the kernel counts it. A capability that is not known here counts as none, so holding it is a mismatch.
fn bits(set: &Capabilities) -> u64 {
    let number = |capability: &oci_spec::runtime::Capability| {
        let name = serde_json::to_value(capability).ok()?;
        let name = name.as_str()?.trim_start_matches("CAP_").to_owned();
        CAPABILITIES.iter().position(|known| known.trim_start_matches("CAP_") == name)
    };
    set.iter().filter_map(number).fold(0, |bits, number| bits | 1 << number)
}

fn names(bits: u64) -> String {
    if bits == 0 {
        return "none".to_owned();
    }
    let named = (0..64).filter(|number| bits & 1 << number != 0);
    let name = |number: usize| CAPABILITIES.get(number).map_or_else(|| number.to_string(), |name| (*name).to_owned());
    named.map(name).collect::<Vec<_>>().join(" ")
}

/// The words of /proc/PID/limits (proc_pid_limits(5)).
fn title(kind: PosixRlimitType) -> &'static str {
    match kind {
        PosixRlimitType::RlimitCpu => "Max cpu time",
        PosixRlimitType::RlimitFsize => "Max file size",
        PosixRlimitType::RlimitData => "Max data size",
        PosixRlimitType::RlimitStack => "Max stack size",
        PosixRlimitType::RlimitCore => "Max core file size",
        PosixRlimitType::RlimitRss => "Max resident set",
        PosixRlimitType::RlimitNproc => "Max processes",
        PosixRlimitType::RlimitNofile => "Max open files",
        PosixRlimitType::RlimitMemlock => "Max locked memory",
        PosixRlimitType::RlimitAs => "Max address space",
        PosixRlimitType::RlimitLocks => "Max file locks",
        PosixRlimitType::RlimitSigpending => "Max pending signals",
        PosixRlimitType::RlimitMsgqueue => "Max msgqueue size",
        PosixRlimitType::RlimitNice => "Max nice priority",
        PosixRlimitType::RlimitRtprio => "Max realtime priority",
        PosixRlimitType::RlimitRttime => "Max realtime timeout",
    }
}

impl Line {
    /// Whether it is as asked for.
    pub fn agrees(&self) -> bool {
        self.state != State::Mismatch
    }
}
