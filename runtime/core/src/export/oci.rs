//! `linux.seccomp` of the OCI runtime specification (config-linux.md, "Seccomp"), both ways.
//!
//! Out: each call of the table with its answer, exactly, conditions on arguments included. A condition that lists what is bad is turned
//! into what is good by prefixes of bits, since a profile can only add up allowances. In: our groups that a profile allows as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::policy::{Origin, SyscallDefault, Syscalls};
use crate::seccomp::rules::Cases;
use crate::seccomp::{Abi, Answer, Arch, ArgRules, Condition, Decision, EPERM, Notify, Table, groups};

const ALLOW: &str = "SCMP_ACT_ALLOW";
const ERRNO: &str = "SCMP_ACT_ERRNO";
const LOG: &str = "SCMP_ACT_LOG";
/// What ends the caller, or sends it a signal that does.
const KILLS: [&str; 4] = ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"];
const MASKED_EQ: &str = "SCMP_CMP_MASKED_EQ";
/// Bits of an argument that conditions look at.
const BITS: u32 = 32;

/// A profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// For calls that no rule names.
    pub default_action: String,
    /// Its errno.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// Architectures, `SCMP_ARCH_*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Rules.
    #[serde(default)]
    pub syscalls: Vec<Rule>,
}

/// One rule: any of the names, with all of the conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Calls.
    pub names: Vec<String>,
    /// `SCMP_ACT_*`.
    pub action: String,
    /// Its errno.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Arg>,
    /// Conditions that container engines resolve before a runtime sees the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub includes: Option<Resolved>,
    /// The same, when they do not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excludes: Option<Resolved>,
}

/// What an engine looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resolved {
    /// Capabilities.
    pub caps: Vec<String>,
    /// Architectures.
    pub arches: Vec<String>,
    /// Least kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arg {
    /// Which, from 0.
    pub index: u32,
    /// Value, or mask.
    pub value: u64,
    /// Value, where the first is a mask.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_*`.
    pub op: String,
}

/// The profile of a table, and what it cannot say.
pub fn profile(table: &Table) -> (Profile, Vec<String>) {
    let mut plain: BTreeMap<Option<u32>, BTreeSet<&'static str>> = BTreeMap::new();
    let mut judged: BTreeMap<&'static str, Vec<Rule>> = BTreeMap::new();
    let mut notes = BTreeSet::new();
    for abi in table.abis() {
        for nr in 0..table.numbers(abi) {
            let Some(name) = abi.call_name(nr) else { continue };
            match table.decide(abi, nr) {
                Decision::Allow => drop(plain.entry(None).or_default().insert(name)),
                // Carried out and recorded: a profile without a listener can only let it through and log it.
                Decision::Notify => {
                    drop(judged.insert(
                        name,
                        vec![Rule { names: vec![name.to_owned()], action: LOG.to_owned(), ..Rule::default() }],
                    ));
                }
                Decision::Errno(EPERM) => {}
                Decision::Errno(errno) => drop(plain.entry(Some(errno.into())).or_default().insert(name)),
                Decision::Args(rules) => drop(judged.insert(name, by_arguments(name, &rules, &mut notes))),
            }
        }
    }
    let rule = |(errno, names): (Option<u32>, BTreeSet<&'static str>)| Rule {
        names: names.into_iter().map(str::to_owned).collect(),
        action: if errno.is_none() { ALLOW } else { ERRNO }.to_owned(),
        errno_ret: errno,
        ..Rule::default()
    };
    let profile = Profile {
        default_action: ERRNO.to_owned(),
        default_errno_ret: Some(EPERM.into()),
        architectures: table.abis().map(|abi| arch_name(abi).to_owned()).collect(),
        syscalls: plain.into_iter().map(rule).chain(judged.into_values().flatten()).collect(),
    };
    notes.insert("calls that Apex does not know are answered EPERM instead of ENOSYS".to_owned());
    (profile, notes.into_iter().collect())
}

const fn arch_name(abi: Abi) -> &'static str {
    match abi {
        Abi::X86_64 => "SCMP_ARCH_X86_64",
        Abi::I386 => "SCMP_ARCH_X86",
        Abi::Aarch64 => "SCMP_ARCH_AARCH64",
    }
}

fn by_arguments(name: &str, rules: &ArgRules, notes: &mut BTreeSet<String>) -> Vec<Rule> {
    let allow =
        |args: Vec<Arg>| Rule { names: vec![name.to_owned()], action: ALLOW.to_owned(), args, ..Rule::default() };
    for answer in [Some(rules.matched), rules.second.map(|(_, answer)| answer), Some(rules.otherwise)] {
        if let Some(Answer::Errno(errno)) = answer.filter(|answer| *answer != Answer::Errno(EPERM)) {
            notes.insert(format!("{name} with arguments that are refused answers EPERM instead of errno {errno}"));
        }
    }
    match (rules.matched, rules.otherwise) {
        (Answer::Allow | Answer::Notify, Answer::Errno(_)) => {
            rules.cases.iter().map(|case| allow(case.iter().map(arg).collect())).collect()
        }
        (Answer::Errno(_), Answer::Allow | Answer::Notify) => match complement(rules.cases) {
            Some(conditions) => conditions.iter().map(|condition| allow(vec![arg(condition)])).collect(),
            None => {
                notes.insert(format!(
                    "{name} is refused as a whole: its conditions on several arguments have no form here"
                ));
                Vec::new()
            }
        },
        (Answer::Allow | Answer::Notify, Answer::Allow | Answer::Notify) => vec![allow(Vec::new())],
        (Answer::Errno(_), Answer::Errno(_)) => Vec::new(),
    }
}

fn arg(condition: &Condition) -> Arg {
    Arg { index: condition.arg.into(), value: condition.mask, value_two: condition.value, op: MASKED_EQ.to_owned() }
}

/// Everything but the values that the cases name, as prefixes: for bad values of one argument alone, compared in its low 32 bits.
fn complement(cases: Cases) -> Option<Vec<Condition>> {
    const LOW_WORD: u64 = (1 << BITS) - 1;
    let mut values = BTreeSet::new();
    let mut index = None;
    for case in cases {
        let [condition] = case else { return None };
        if condition.mask != LOW_WORD || *index.get_or_insert(condition.arg) != condition.arg {
            return None;
        }
        values.insert(condition.value);
    }
    let arg = index?;
    let mut good = Vec::new();
    let mut bad = vec![(0_u64, 0_u32)];
    // From the highest bit down: a prefix without a bad value below it is good, another one is split.
    while let Some((prefix, length)) = bad.pop() {
        let mask = LOW_WORD & !(LOW_WORD >> length);
        let has_bad = values.iter().any(|value| value & mask == prefix);
        if !has_bad {
            good.push(Condition { arg, mask, value: prefix });
        } else if length < BITS {
            bad.push((prefix, length + 1));
            bad.push((prefix | 1 << (BITS - 1 - length), length + 1));
        }
    }
    good.sort_by_key(|condition| (condition.mask, condition.value));
    Some(good)
}

/// The system call section that a profile comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// For what no group says.
    pub default: SyscallDefault,
    /// Groups that the profile allows as a whole.
    pub allow: Vec<&'static str>,
    /// Groups that it refuses, under a default that allows.
    pub deny: Vec<&'static str>,
    /// Groups that it allows in part, with the calls that it does not.
    pub partly: Vec<(&'static str, Vec<&'static str>)>,
    /// What has no translation.
    pub notes: Vec<String>,
}

/// Translates a profile. Nothing is granted that it does not allow.
pub fn import(profile: &Profile, arch: Arch) -> Imported {
    let mut notes = changed(profile, arch);
    let mut allowed: BTreeSet<&str> = BTreeSet::new();
    let mut refused: BTreeSet<&str> = BTreeSet::new();
    let mut judged: BTreeSet<&str> = BTreeSet::new();
    for rule in &profile.syscalls {
        let names = rule.names.iter().map(String::as_str);
        if rule.includes.is_some() || rule.excludes.is_some() {
            notes.push(format!(
                "conditional on capabilities, architecture or kernel, left out: {}",
                rule.names.join(" ")
            ));
            continue;
        }
        match rule.action.as_str() {
            ALLOW | LOG => {
                allowed.extend(names.clone());
                if !rule.args.is_empty() {
                    judged.extend(names);
                }
            }
            action if action == ERRNO || KILLS.contains(&action) => {
                if rule.args.is_empty() {
                    refused.extend(names)
                } else {
                    judged.extend(names)
                }
            }
            other => notes.push(format!("action {other} has no translation, left out: {}", rule.names.join(" "))),
        }
    }
    if !judged.is_empty() {
        let names: Vec<&str> = judged.into_iter().collect();
        notes.push(format!(
            "Apex judges arguments by rules of its own, not by those of the profile: {}",
            names.join(" ")
        ));
    }
    let abi = arch.abi();
    let unknown: Vec<&str> = allowed.iter().filter(|name| !is_known(name)).copied().collect();
    if !unknown.is_empty() {
        notes.push(format!("Apex does not know: {}", unknown.join(" ")));
    }
    let lets = |name: &str| allowed.contains(name) && !refused.contains(name);
    let mut imported =
        Imported { default: SyscallDefault::Deny, allow: Vec::new(), deny: Vec::new(), partly: Vec::new(), notes };
    match profile.default_action.as_str() {
        ALLOW => imported.default = SyscallDefault::Allow,
        LOG => imported.default = SyscallDefault::Report,
        _ => {}
    }
    for group in groups::iter() {
        let calls: Vec<&'static str> = groups::calls(group, abi).map(|(_, name)| name).collect();
        if imported.default == SyscallDefault::Deny {
            let never = never_let_through(group.name, arch);
            let missing: Vec<&'static str> =
                calls.iter().filter(|name| !lets(name) && !never.contains(*name)).copied().collect();
            match (missing.len(), calls.len()) {
                (_, 0) => {}
                (0, _) => imported.allow.push(group.name),
                (missing, all) if missing == all => {}
                _ => imported.partly.push((group.name, missing)),
            }
        } else if group.name != groups::BASE && calls.iter().any(|name| refused.contains(name)) {
            imported.deny.push(group.name);
        }
    }
    imported
}

/// What of the profile as a whole, and of its actions, Apex does otherwise.
fn changed(profile: &Profile, arch: Arch) -> Vec<String> {
    let mut notes = Vec::new();
    let own = arch_name(arch.abi());
    let others: Vec<&str> = profile.architectures.iter().map(String::as_str).filter(|name| *name != own).collect();
    if !others.is_empty() {
        notes.push(format!(
            "other architectures than {own} are left out: {} (i386 runs where a mode and `compat = true` let it)",
            others.join(" ")
        ));
    }
    let errno = |errno: Option<u32>| errno.filter(|errno| *errno != u32::from(EPERM));
    if let Some(errno) = errno(profile.default_errno_ret) {
        notes.push(format!("defaultErrnoRet {errno} becomes EPERM, or ENOSYS where policies/syscalls.toml says so"));
    }
    if profile.default_action == LOG {
        notes.push(format!(
            "{LOG} becomes `report` for everything else: carried out, and told of where a run is watched"
        ));
    }
    let everything = (profile.default_action.as_str(), "everything else".to_owned());
    let rules = profile.syscalls.iter().filter(|rule| rule.includes.is_none() && rule.excludes.is_none());
    let named = rules.clone().map(|rule| (rule.action.as_str(), rule.names.join(" ")));
    let mut by_action: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (action, names) in named.chain([everything].into_iter().filter(|(action, _)| *action != LOG)) {
        by_action.entry(action).or_default().push(names);
    }
    for (action, names) in by_action {
        let names = names.join(" ");
        match action {
            action if KILLS.contains(&action) => {
                notes.push(format!("{action} becomes an error, the program goes on: {names}"));
            }
            LOG => notes.push(format!("{LOG} becomes an allowance without a log: {names}")),
            "SCMP_ACT_TRACE" | "SCMP_ACT_NOTIFY" if action == profile.default_action => {
                notes.push(format!("{action} has no translation, refused: everything else"));
            }
            _ => {}
        }
    }
    for rule in rules.filter(|rule| rule.action == ERRNO) {
        if let Some(errno) = errno(rule.errno_ret) {
            notes.push(format!("errnoRet {errno} becomes Apex's own answer: {}", rule.names.join(" ")));
        }
    }
    notes
}

/// Calls of a group that Apex answers with an error of its own even where the group is granted (clone3, whose arguments no filter sees): that a profile refuses
/// them too takes nothing from the grant.
fn never_let_through(group: &str, arch: Arch) -> BTreeSet<&'static str> {
    let allow = BTreeMap::from([(group.to_owned(), Origin::flag("import"))]);
    let policy = Syscalls { default: SyscallDefault::Deny, allow, deny: BTreeMap::new(), compat: false };
    let Ok(table) = Table::build(&policy, arch, Notify::default()) else { return BTreeSet::new() };
    let abi = arch.abi();
    let refused = |nr: &u32| matches!(table.decide(abi, *nr), Decision::Errno(_));
    (0..table.numbers(abi)).filter(refused).filter_map(|nr| abi.call_name(nr)).collect()
}

fn is_known(name: &str) -> bool {
    [Abi::X86_64, Abi::I386, Abi::Aarch64].into_iter().any(|abi| abi.call_number(name).is_some())
}

impl Imported {
    /// The policy file.
    pub fn to_toml(&self) -> String {
        let list = |names: &[&str]| names.iter().map(|name| format!("    \"{name}\",\n")).collect::<String>();
        let default = match self.default {
            SyscallDefault::Deny => "deny",
            SyscallDefault::Report => "report",
            SyscallDefault::Allow => "allow",
        };
        let mut text = String::from("# Imported from an OCI seccomp profile.\n");
        for note in &self.notes {
            text.push_str(&format!("# {}\n", note.replace(char::is_control, "?")));
        }
        if self.default != SyscallDefault::Deny {
            let mode = if self.default == SyscallDefault::Report { "hybrid" } else { "development" };
            text.push_str(&format!("mode = \"{mode}\"\n"));
        }
        text.push_str(&format!("\n[syscalls]\ninherit = false\ndefault = \"{default}\"\nallow = [\n"));
        text.push_str(&list(&self.allow));
        for (group, missing) in &self.partly {
            text.push_str(&format!("    # \"{group}\", # allowed in part, not: {}\n", missing.join(" ")));
        }
        text.push_str("]\n");
        if !self.deny.is_empty() {
            text.push_str(&format!("deny = [\n{}]\n", list(&self.deny)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(groups: &[&str]) -> Table {
        let allow = groups.iter().map(|name| ((*name).to_owned(), Origin::flag("test"))).collect();
        let policy = Syscalls { default: SyscallDefault::Deny, allow, deny: BTreeMap::new(), compat: false };
        Table::build(&policy, Arch::X86_64, Notify::default()).unwrap()
    }

    const USUAL: [&str; 8] = ["base", "files", "dirs", "fs-change", "threads", "sockets", "terminal", "process"];

    /// What a runtime makes of a profile: the first kind of rule that fits, the default otherwise.
    fn answer(profile: &Profile, name: &str, args: &[u64; 6]) -> bool {
        profile.syscalls.iter().any(|rule| {
            rule.action == ALLOW
                && rule.names.iter().any(|other| other == name)
                && rule.args.iter().all(|arg| args[arg.index as usize] & arg.value == arg.value_two)
        })
    }

    #[test]
    fn every_call_is_answered_as_by_the_table() {
        let table = table(&USUAL);
        let (profile, _) = profile(&table);
        let edges = [
            0,
            1,
            2,
            16,
            0o644,
            0o4755,
            0o100,
            0x5401,
            0x5412,
            0x5413,
            0x541c,
            0x541d,
            0x5423,
            0x1000_0000,
            0x7e02_0080,
            8,
            35,
            u64::MAX,
        ];
        for nr in 0..table.numbers(Abi::X86_64) {
            let Some(name) = Abi::X86_64.call_name(nr) else { continue };
            for first in edges {
                for second in edges {
                    let args = [first, second, second, first, 0, 0];
                    let lets = matches!(table.judge(Abi::X86_64, nr, &args), crate::seccomp::Verdict::Allow);
                    assert_eq!(answer(&profile, name, &args), lets, "{name} {args:x?}");
                }
            }
        }
    }

    #[test]
    fn an_exported_profile_comes_back() {
        let (profile, _) = profile(&table(&USUAL));
        let text = serde_json::to_string(&profile).unwrap();
        let imported = import(&serde_json::from_str(&text).unwrap(), Arch::X86_64);
        let mut expected = USUAL.to_vec();
        expected.sort_unstable();
        let mut got = imported.allow.clone();
        got.sort_unstable();
        assert_eq!(got, expected);
        let parsed: toml::Table = toml::from_str(&imported.to_toml()).unwrap();
        assert_eq!(parsed["syscalls"]["default"].as_str(), Some("deny"));
    }

    #[test]
    fn a_part_of_a_group_is_not_granted_and_told() {
        let rule = |names: &[&str], action: &str| Rule {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            action: action.to_owned(),
            ..Rule::default()
        };
        let profile = Profile {
            default_action: ERRNO.to_owned(),
            syscalls: vec![rule(&["getrandom", "uname", "nonsense"], ALLOW), rule(&["read"], "SCMP_ACT_NOTIFY")],
            ..Profile::default()
        };
        let imported = import(&profile, Arch::X86_64);
        assert_eq!(imported.allow, ["random"]);
        assert!(imported.partly.iter().any(|(group, missing)| *group == "system-info" && missing.contains(&"sysinfo")));
        let text = imported.to_toml();
        for told in ["nonsense", "SCMP_ACT_NOTIFY", "# \"system-info\", # allowed in part"] {
            assert!(text.contains(told), "{told}\n{text}");
        }
    }

    #[test]
    fn what_an_import_changes_is_told() {
        let rule = |name: &str, action: &str, errno_ret| Rule {
            names: vec![name.to_owned()],
            action: action.to_owned(),
            errno_ret,
            ..Rule::default()
        };
        let profile = Profile {
            default_action: "SCMP_ACT_KILL_PROCESS".to_owned(),
            default_errno_ret: Some(38),
            architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_ARM"].map(str::to_owned).to_vec(),
            syscalls: vec![
                rule("mount", "SCMP_ACT_KILL", None),
                rule("swapon", "SCMP_ACT_TRAP", None),
                rule("getrandom", LOG, None),
                rule("bpf", "SCMP_ACT_TRACE", None),
                rule("reboot", ERRNO, Some(13)),
            ],
        };
        let text = import(&profile, Arch::X86_64).to_toml();
        for told in [
            "# other architectures than SCMP_ARCH_X86_64 are left out: SCMP_ARCH_ARM (",
            "# defaultErrnoRet 38 becomes EPERM",
            "# SCMP_ACT_KILL becomes an error, the program goes on: mount\n",
            "# SCMP_ACT_KILL_PROCESS becomes an error, the program goes on: everything else\n",
            "# SCMP_ACT_TRAP becomes an error, the program goes on: swapon\n",
            "# SCMP_ACT_LOG becomes an allowance without a log: getrandom\n",
            "# action SCMP_ACT_TRACE has no translation, left out: bpf\n",
            "# errnoRet 13 becomes Apex's own answer: reboot\n",
        ] {
            assert!(text.contains(told), "{told}\n{text}");
        }
        let plain = Profile {
            default_action: ERRNO.to_owned(),
            default_errno_ret: Some(EPERM.into()),
            architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
            syscalls: vec![rule("getrandom", ALLOW, None)],
        };
        assert!(import(&plain, Arch::X86_64).notes.is_empty());
        let logs = Profile { default_action: LOG.to_owned(), ..Profile::default() };
        assert_eq!(import(&logs, Arch::X86_64).notes.len(), 1);
    }

    #[test]
    fn under_a_default_that_allows_a_refused_call_refuses_its_group() {
        let profile = Profile {
            default_action: ALLOW.to_owned(),
            syscalls: vec![Rule { names: vec!["mount".to_owned()], action: ERRNO.to_owned(), ..Rule::default() }],
            ..Profile::default()
        };
        let imported = import(&profile, Arch::X86_64);
        assert_eq!((imported.default, imported.deny), (SyscallDefault::Allow, vec!["mount"]));
    }
}
