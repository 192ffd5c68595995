//! From calls to groups. Input: how often each call was made, what arguments asked for, what was refused. Output: the groups that hold them,
//! and their companions.
//!
//! Which call a program takes depends on who is faster: a parent that its child has overtaken waits in no call, a lock that is free sleeps
//! on none. So what was used brings along what stands on its slower paths, where that reaches nothing outside of the sandbox and
//! isolation grants it by itself.

use std::collections::{BTreeMap, BTreeSet};

use super::{Learner, Need, Previous, Use};
use crate::amount::count;
use crate::event::What;
use crate::seccomp::{Abi, groups};

/// Companions of every program: clocks, random bytes, its own ids, the system's name, waiting for its own descriptors.
const ALWAYS: [&str; 5] = ["identity-read", "polling", "random", "system-info", "time"];
/// Companions of whoever has threads or children, which wait for, wake, end and place each other.
const OF_SEVERAL: [&str; 3] = ["memory-advice", "scheduling", "signals"];
/// What brings [`OF_SEVERAL`] along.
const SEVERAL: [&str; 2] = ["process", "threads"];

/// Why a group is granted that no call asked for.
pub(super) fn companion_of(group: &str, granted: &BTreeMap<String, Need>) -> Option<String> {
    if ALWAYS.contains(&group) {
        return Some("every program".to_owned());
    }
    let has = |group: &&&str| granted.get(**group).is_some_and(|need| need.runs > 0);
    let of = SEVERAL.iter().find(has).filter(|_| OF_SEVERAL.contains(&group))?;
    Some(format!("`{of}`"))
}

impl Learner {
    /// The groups that hold the calls that were made, and their companions; `None` when nobody counted calls.
    pub(super) fn groups(
        &self,
        previous: Option<&Previous>,
        asked: &mut BTreeMap<String, String>,
    ) -> Option<BTreeMap<String, Need>> {
        let mut used: BTreeMap<String, Need> = previous.map(|previous| previous.groups.clone()).unwrap_or_default();
        if !self.has_calls && used.is_empty() {
            return None;
        }
        let mut now: BTreeSet<&'static str> = BTreeSet::new();
        let mut take = |group: &'static str, call: &str, seen: &Use| {
            if !self.may_call(group) {
                return note_call(asked, group, call, seen, "");
            }
            if previous.is_some_and(|previous| previous.was_group_removed(group)) {
                return note_call(asked, group, call, seen, "its line was removed by hand; ");
            }
            let need = used.entry(group.to_owned()).or_default();
            need.seen.times = need.seen.times.saturating_add(seen.times);
            need.notes.insert(call.to_owned());
            now.insert(group);
        };
        for (call, count) in &self.calls {
            if let Some(group) = group_of(call) {
                take(group, call, &Use { times: *count, by: BTreeSet::new() });
            }
        }
        for (group, seen) in &self.governors {
            take(group, "by its arguments", seen);
        }
        for (call, seen) in &self.refused_calls {
            note_call(asked, group_of(call).unwrap_or("none"), call, seen, "");
        }
        now.insert(groups::BASE);
        used.entry(groups::BASE.to_owned()).or_default();
        for (group, need) in &mut used {
            need.runs = need.runs.saturating_add(u64::from(now.contains(group.as_str())));
            need.trim();
        }
        for group in ALWAYS.iter().chain(&OF_SEVERAL) {
            let is_removed = previous.is_some_and(|previous| previous.was_group_removed(group));
            if !is_removed && self.may_call(group) && companion_of(group, &used).is_some() {
                used.entry((*group).to_owned()).or_default();
            }
        }
        Some(used)
    }

    /// Whether the run had the group and the ceiling lets a policy grant it.
    fn may_call(&self, group: &str) -> bool {
        let setting = &self.setting;
        group == groups::BASE
            || setting.run.groups.contains(group)
                && !setting.bounds.syscalls_forbidden.iter().any(|forbidden| forbidden == group)
    }
}

fn note_call(asked: &mut BTreeMap<String, String>, group: &str, call: &str, seen: &Use, why: &str) {
    let by = seen.by.iter().next().map(|by| format!(" by {by}")).unwrap_or_default();
    asked.insert(format!("system call {call} (group {group})"), format!("{why}{}{by}", count(seen.times, "time")));
}

/// The group that holds a call.
pub(crate) fn group_of(call: &str) -> Option<&'static str> {
    [Abi::X86_64, Abi::Aarch64, Abi::I386]
        .into_iter()
        .find_map(|abi| groups::of_call(abi, abi.call_number(call)?))
        .map(|group| group.name)
}

/// The group that a rule about arguments asks for, where an event shows the arguments (`seccomp::rules`).
pub(super) fn governor(what: &What) -> Option<&'static str> {
    const COMMON_FAMILIES: [u32; 4] = [1, 2, 10, 16];
    const SETUID_BITS: u32 = 0o6000;
    match what {
        What::Namespace { flags, .. } if *flags != 0 => Some("namespaces"),
        What::Socket { family, .. } if !COMMON_FAMILIES.contains(family) => Some("rare-sockets"),
        What::Chmod { mode, .. } if mode & SETUID_BITS != 0 => Some("setuid-bits"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Mode, mode_text};

    #[test]
    fn companions_are_what_isolation_grants_by_itself() {
        let isolation = mode_text(Mode::Isolation);
        for group in ALWAYS.iter().chain(&OF_SEVERAL) {
            assert!(isolation.contains(&format!("    \"{group}\", ")), "{group}");
        }
    }
}
