//! The decision for every system call of every ABI, built from a policy.

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::groups::{self, Group};
use super::rules::{Answer, ArgRules, Cases, INTERNET_FAMILIES, Reading};
use super::{Abi, Arch, DONE, EAFNOSUPPORT, ENOSYS, EPERM};
use crate::policy::{SyscallDefault, Syscalls};

/// What goes to the listener beside calls that a `report` default lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Notify {
    /// Refused calls: the listener answers the errno and records the call.
    pub refusals: bool,
    /// Allowed calls with a path or an address: the listener looks and lets the kernel carry them out. An observation, never a judgement,
    /// since the sandbox can change the path after the look.
    pub paths: bool,
}

impl Notify {
    /// Everything that `--why` explains.
    pub const RECORD: Notify = Notify { refusals: true, paths: true };
    /// What a watched sandbox tells: refusals alone, so that a call that is allowed costs nothing more.
    pub const WATCH: Notify = Notify { refusals: true, paths: false };
}

/// What the policy says about a call; [`Decision`] is what the program answers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Carried out.
    Allow,
    /// Refused with this errno.
    Refuse(u16),
    /// Carried out and recorded as something that a stricter policy would refuse.
    Report,
}

/// What the program answers for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Carried out.
    Allow,
    /// Refused with this errno.
    Errno(u16),
    /// Put before the listener.
    Notify,
    /// By its arguments.
    Args(ArgRules),
}

/// Why a table cannot be built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A group that does not exist.
    #[error("system call group `{name}` ({origin}) does not exist{}", suggestion(.nearest))]
    UnknownGroup {
        /// The name.
        name: String,
        /// The rule.
        origin: String,
        /// Groups that may have been meant.
        nearest: Vec<&'static str>,
    },
    /// `base` among the denied groups.
    #[error(
        "system call group `base` ({origin}) cannot be denied: no program starts without it; remove it from `deny`"
    )]
    BaseDenied {
        /// The rule.
        origin: String,
    },
    /// A machine without a table.
    #[error("there is no table of system calls for this machine; Apex has them for x86-64 and arm64")]
    NoArch,
    /// 32-bit programs where Apex has no table of their calls.
    #[error(
        "`compat = true` needs a table of 32-bit system calls, which Apex has for x86-64 hosts only; remove it from the policy"
    )]
    NoCompat,
}

fn suggestion(nearest: &[&str]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; did you mean {}?", nearest.join(" or ")) }
}

/// Decisions for every system call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    arch: Arch,
    #[serde(serialize_with = "names")]
    abis: Vec<AbiTable>,
    allowed: Vec<&'static str>,
    reported: Vec<&'static str>,
    refused: Vec<&'static str>,
    notify: Notify,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AbiTable {
    abi: Abi,
    /// By number; numbers beyond do not exist.
    entries: Vec<Entry>,
    rules: Vec<ArgRules<Verdict>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    means: Meaning,
    has_path: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Plain(Verdict),
    /// Index in the rules of the ABI.
    Judged(u8),
}

const UNKNOWN: Verdict = Verdict::Refuse(ENOSYS);

fn names<S: Serializer>(abis: &[AbiTable], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(abis.iter().map(|table| table.abi.name()))
}

impl Table {
    /// The table of a policy on a machine.
    ///
    /// # Errors
    /// A group that does not exist, a denied `base`, or `compat` where there is no table of 32-bit calls.
    pub fn build(policy: &Syscalls, arch: Arch, notify: Notify) -> Result<Table, TableError> {
        check_names(policy)?;
        let verdicts: Vec<Verdict> = groups::iter().map(|group| group_verdict(policy, group)).collect();
        let with = |wanted: fn(&Verdict) -> bool| -> Vec<&'static str> {
            groups::iter().zip(&verdicts).filter(|(_, verdict)| wanted(verdict)).map(|(group, _)| group.name).collect()
        };
        let mut abis = vec![AbiTable::build(arch.abi(), &verdicts)];
        if policy.compat {
            abis.push(AbiTable::build(arch.compat_abi().ok_or(TableError::NoCompat)?, &verdicts));
        }
        Ok(Table {
            arch,
            abis,
            allowed: with(|verdict| *verdict == Verdict::Allow),
            reported: with(|verdict| *verdict == Verdict::Report),
            refused: with(|verdict| matches!(verdict, Verdict::Refuse(_))),
            notify,
        })
    }

    /// The same without sockets that have names in the file system: where the host's own tree shows, only the filter keeps a program from its
    /// services, as no mount hides them and Landlock does not judge whom a socket connects to. Pairs stay, and what could make sockets out of
    /// the filter's sight goes too.
    #[must_use]
    pub fn without_unix_sockets(mut self) -> Table {
        for table in &mut self.abis {
            for (name, errno) in [("socketcall", ENOSYS), ("io_uring_setup", EPERM)] {
                table.refuse(name, errno);
            }
            table.narrow("socket", INTERNET_FAMILIES, EAFNOSUPPORT);
        }
        self
    }

    /// The machine it is for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The ABIs that have entries; every call of any other is refused with ENOSYS.
    pub fn abis(&self) -> impl Iterator<Item = Abi> {
        self.abis.iter().map(|table| table.abi)
    }

    /// Names of the groups that are granted.
    pub fn allowed(&self) -> &[&'static str] {
        &self.allowed
    }

    /// Names of the groups that are carried out and recorded.
    pub fn reported(&self) -> &[&'static str] {
        &self.reported
    }

    /// Names of the groups that are refused.
    pub fn refused(&self) -> &[&'static str] {
        &self.refused
    }

    /// One more than the highest number that has an entry.
    pub fn numbers(&self, abi: Abi) -> u32 {
        self.of(abi).map_or(0, |table| u32::try_from(table.entries.len()).unwrap_or(u32::MAX))
    }

    /// What the program answers for a call.
    pub fn decide(&self, abi: Abi, nr: u32) -> Decision {
        let Some((table, entry)) = self.entry(abi, nr) else {
            return self.plain(UNKNOWN, false);
        };
        match entry.means {
            Meaning::Plain(verdict) => self.plain(verdict, entry.has_path),
            Meaning::Judged(index) => {
                let rules = table.rules[usize::from(index)];
                let matched = self.answer(rules.matched, entry.has_path);
                let second = rules.second.map(|(cases, verdict)| (cases, self.answer(verdict, entry.has_path)));
                let otherwise = self.answer(rules.otherwise, entry.has_path);
                if matched == otherwise && second.is_none_or(|(_, answer)| answer == otherwise) {
                    return decision(matched);
                }
                Decision::Args(ArgRules { cases: rules.cases, matched, second, otherwise })
            }
        }
    }

    /// What the policy says about a call that came to the listener. The arguments are registers that the kernel copied.
    pub fn judge(&self, abi: Abi, nr: u32, args: &[u64; 6]) -> Verdict {
        match self.entry(abi, nr) {
            None => UNKNOWN,
            Some((_, Entry { means: Meaning::Plain(verdict), .. })) => verdict,
            Some((table, Entry { means: Meaning::Judged(index), .. })) => table.rules[usize::from(index)].judge(args),
        }
    }

    /// Whether the program needs a listener: without one, the kernel answers ENOSYS where the program asks for it.
    pub fn needs_listener(&self) -> bool {
        self.notify.refusals || self.notify.paths || self.has_reported()
    }

    /// Whether there are calls that are carried out and reported.
    pub fn has_reported(&self) -> bool {
        self.abis.iter().any(|table| {
            table.entries.iter().any(|entry| entry.means == Meaning::Plain(Verdict::Report))
                || table
                    .rules
                    .iter()
                    .any(|rules| rules.matched == Verdict::Report || rules.otherwise == Verdict::Report)
        })
    }

    /// SHA-256, in hexadecimal, of everything that decides what a program answers, and of `salt`. Names a cached program.
    pub fn digest(&self, salt: &str) -> String {
        let mut bytes = Vec::with_capacity(8192);
        for table in &self.abis {
            bytes.extend(table.abi.audit_arch().to_le_bytes());
            bytes.extend(self.numbers(table.abi).to_le_bytes());
            for nr in 0..self.numbers(table.abi) {
                encode(&mut bytes, self.decide(table.abi, nr));
            }
        }
        encode(&mut bytes, self.plain(UNKNOWN, false));
        bytes.extend(salt.as_bytes());
        Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn of(&self, abi: Abi) -> Option<&AbiTable> {
        self.abis.iter().find(|table| table.abi == abi)
    }

    fn entry(&self, abi: Abi, nr: u32) -> Option<(&AbiTable, Entry)> {
        let table = self.of(abi)?;
        Some((table, *table.entries.get(usize::try_from(nr).ok()?)?))
    }

    fn answer(&self, verdict: Verdict, has_path: bool) -> Answer {
        match verdict {
            Verdict::Allow if has_path && self.notify.paths => Answer::Notify,
            Verdict::Allow => Answer::Allow,
            // Calls that do not exist stay with the filter, as those that only seem to be carried out: there is nothing to explain, and
            // libraries probe for the first.
            Verdict::Refuse(errno) if !self.notify.refusals || matches!(errno, ENOSYS | DONE) => Answer::Errno(errno),
            Verdict::Refuse(_) | Verdict::Report => Answer::Notify,
        }
    }

    fn plain(&self, verdict: Verdict, has_path: bool) -> Decision {
        decision(self.answer(verdict, has_path))
    }
}

fn decision(answer: Answer) -> Decision {
    match answer {
        Answer::Allow => Decision::Allow,
        Answer::Errno(errno) => Decision::Errno(errno),
        Answer::Notify => Decision::Notify,
    }
}

impl AbiTable {
    fn build(abi: Abi, verdicts: &[Verdict]) -> AbiTable {
        let entries = abi.calls().iter().map(|entry| Entry {
            means: Meaning::Plain(verdicts.get(usize::from(entry & groups::INDEX)).copied().unwrap_or(UNKNOWN)),
            has_path: entry & groups::PATH != 0,
        });
        let mut table = AbiTable { abi, entries: entries.collect(), rules: Vec::new() };
        let verdict_of = |name: &str| {
            groups::iter().zip(verdicts).find(|(group, _)| group.name == name).map(|(_, verdict)| *verdict)
        };
        for (nr, rule) in abi.judged() {
            let reading = rule.read(|name| verdict_of(name) == Some(Verdict::Allow));
            table.apply(usize::from(*nr), &reading, verdict_of);
        }
        table
    }

    /// The entry of a call that is carried out, by its name.
    fn carried_out(&mut self, name: &str) -> Option<(&mut Entry, Verdict)> {
        let nr = usize::try_from(self.abi.call_number(name)?).ok()?;
        let entry = self.entries.get_mut(nr)?;
        let good = match entry.means {
            Meaning::Plain(verdict) => verdict,
            Meaning::Judged(index) => self.rules[usize::from(index)].matched,
        };
        (!matches!(good, Verdict::Refuse(_))).then_some((entry, good))
    }

    fn refuse(&mut self, name: &str, errno: u16) {
        if let Some((entry, _)) = self.carried_out(name) {
            entry.means = Meaning::Plain(Verdict::Refuse(errno));
        }
    }

    /// Leaves of a call only the cases, whatever was carried out besides.
    fn narrow(&mut self, name: &str, cases: Cases, errno: u16) {
        let Some((_, matched)) = self.carried_out(name) else { return };
        self.rules.push(ArgRules { cases, matched, second: None, otherwise: Verdict::Refuse(errno) });
        let index = u8::try_from(self.rules.len() - 1).expect("fewer rules than calls that are judged");
        if let Some((entry, _)) = self.carried_out(name) {
            entry.means = Meaning::Judged(index);
        }
    }

    /// Narrows an entry by a rule about its arguments.
    fn apply(&mut self, nr: usize, reading: &Reading, verdict_of: impl Fn(&str) -> Option<Verdict>) {
        // A refused call needs no further judgement.
        let Meaning::Plain(good @ (Verdict::Allow | Verdict::Report)) = self.entries[nr].means else {
            return;
        };
        match *reading {
            Reading::Plain => {}
            Reading::Whole(errno) => self.entries[nr].means = Meaning::Plain(Verdict::Refuse(errno)),
            Reading::Judged { cases, cases_are_good, second, errno, governors } => {
                let reported =
                    governors.iter().all(|name| matches!(verdict_of(name), Some(Verdict::Report | Verdict::Allow)));
                let bad = if reported { Verdict::Report } else { Verdict::Refuse(errno) };
                let (matched, otherwise) = if cases_are_good { (good, bad) } else { (bad, good) };
                let second = second.filter(|_| !reported).map(|(cases, errno)| (cases, Verdict::Refuse(errno)));
                let rules = ArgRules { cases, matched, second, otherwise };
                let index = self.rules.iter().position(|known| *known == rules).unwrap_or_else(|| {
                    self.rules.push(rules);
                    self.rules.len() - 1
                });
                self.entries[nr].means =
                    Meaning::Judged(u8::try_from(index).expect("fewer rules than calls that are judged"));
            }
        }
    }
}

fn check_names(policy: &Syscalls) -> Result<(), TableError> {
    for (name, origin) in policy.allow.iter().chain(&policy.deny) {
        if !groups::exists(name) {
            return Err(TableError::UnknownGroup {
                name: name.clone(),
                origin: origin.to_string(),
                nearest: groups::nearest(name),
            });
        }
    }
    match policy.deny.get(groups::BASE) {
        Some(origin) => Err(TableError::BaseDenied { origin: origin.to_string() }),
        None => Ok(()),
    }
}

fn group_verdict(policy: &Syscalls, group: &Group) -> Verdict {
    let refused = Verdict::Refuse(group.errno);
    if group.name == groups::BASE {
        return Verdict::Allow;
    }
    if policy.deny.contains_key(group.name) {
        return refused;
    }
    if policy.allow.contains_key(group.name) {
        return Verdict::Allow;
    }
    match policy.default {
        SyscallDefault::Deny => refused,
        SyscallDefault::Report if group.report => Verdict::Report,
        SyscallDefault::Report => refused,
        SyscallDefault::Allow => Verdict::Allow,
    }
}

fn encode(bytes: &mut Vec<u8>, decision: Decision) {
    match decision {
        Decision::Allow => bytes.extend(Answer::Allow.action().to_le_bytes()),
        Decision::Errno(errno) => bytes.extend(Answer::Errno(errno).action().to_le_bytes()),
        Decision::Notify => bytes.extend(Answer::Notify.action().to_le_bytes()),
        Decision::Args(rules) => {
            // No action has this value, and the counts keep two encodings from running into each other.
            bytes.extend(u32::MAX.to_le_bytes());
            bytes.extend(rules.matched.action().to_le_bytes());
            bytes.extend(rules.otherwise.action().to_le_bytes());
            encode_cases(bytes, rules.cases);
            if let Some((cases, answer)) = rules.second {
                bytes.extend(answer.action().to_le_bytes());
                encode_cases(bytes, cases);
            }
        }
    }
}

fn encode_cases(bytes: &mut Vec<u8>, cases: Cases) {
    bytes.push(u8::try_from(cases.len()).unwrap_or(u8::MAX));
    for case in cases {
        bytes.push(u8::try_from(case.len()).unwrap_or(u8::MAX));
        for condition in *case {
            bytes.push(condition.arg);
            bytes.extend(condition.mask.to_le_bytes());
            bytes.extend(condition.value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::policy::Origin;
    use crate::seccomp::EPERM;

    fn policy(default: SyscallDefault, allow: &[&str], deny: &[&str]) -> Syscalls {
        let rules = |names: &[&str]| -> BTreeMap<_, _> {
            names.iter().map(|name| ((*name).to_owned(), Origin::flag("--test"))).collect()
        };
        Syscalls { default, allow: rules(allow), deny: rules(deny), compat: true }
    }

    fn decide(policy: &Syscalls, notify: Notify, abi: Abi, name: &str) -> Decision {
        Table::build(policy, Arch::X86_64, notify).unwrap().decide(abi, abi.call_number(name).unwrap())
    }

    #[test]
    fn nothing_but_base_is_granted_by_itself() {
        let policy = policy(SyscallDefault::Deny, &[], &[]);
        let quiet = Notify::default();
        assert_eq!(decide(&policy, quiet, Abi::X86_64, "read"), Decision::Allow);
        assert_eq!(decide(&policy, quiet, Abi::X86_64, "openat"), Decision::Errno(EPERM));
        assert_eq!(decide(&policy, quiet, Abi::X86_64, "mbind"), Decision::Errno(ENOSYS));
        assert_eq!(decide(&policy, quiet, Abi::I386, "ipc"), Decision::Errno(ENOSYS));
    }

    #[test]
    fn deny_wins_over_allow() {
        let policy = policy(SyscallDefault::Allow, &["sockets"], &["sockets"]);
        assert_eq!(decide(&policy, Notify::default(), Abi::X86_64, "connect"), Decision::Errno(EPERM));
    }

    #[test]
    fn report_stops_at_groups_that_cannot_be_let_through() {
        let policy = policy(SyscallDefault::Report, &[], &[]);
        let quiet = Notify::default();
        assert_eq!(decide(&policy, quiet, Abi::X86_64, "ptrace"), Decision::Notify);
        for name in ["mount", "init_module", "reboot", "bpf", "swapon", "settimeofday", "keyctl", "io_uring_setup"] {
            assert_eq!(decide(&policy, quiet, Abi::X86_64, name), Decision::Errno(EPERM), "{name}");
        }
        assert!(Table::build(&policy, Arch::X86_64, quiet).unwrap().needs_listener());
    }

    #[test]
    fn recording_asks_about_refusals_and_paths() {
        let policy = policy(SyscallDefault::Deny, &["files", "threads"], &[]);
        assert_eq!(decide(&policy, Notify::RECORD, Abi::X86_64, "openat"), Decision::Notify);
        assert_eq!(decide(&policy, Notify::RECORD, Abi::X86_64, "bpf"), Decision::Notify);
        assert_eq!(decide(&policy, Notify::RECORD, Abi::X86_64, "read"), Decision::Allow);
        assert_eq!(decide(&policy, Notify::RECORD, Abi::X86_64, "clone3"), Decision::Errno(ENOSYS));
    }

    #[test]
    fn judgement_of_registers_follows_the_policy() {
        let policy = policy(SyscallDefault::Deny, &["threads", "files"], &[]);
        let table = Table::build(&policy, Arch::X86_64, Notify::RECORD).unwrap();
        let judge =
            |name: &str, args: [u64; 6]| table.judge(Abi::X86_64, Abi::X86_64.call_number(name).unwrap(), &args);
        assert_eq!(judge("clone", [0x11, 0, 0, 0, 0, 0]), Verdict::Allow);
        assert_eq!(judge("clone", [0x1000_0011, 0, 0, 0, 0, 0]), Verdict::Refuse(EPERM));
        assert_eq!(judge("openat", [0, 0, 0o100, 0o4755, 0, 0]), Verdict::Refuse(EPERM));
        assert_eq!(judge("openat", [0, 0, 0, 0o4755, 0, 0]), Verdict::Allow);
    }

    #[test]
    fn a_core_limit_is_set_by_nobody_and_nobody_is_told() {
        let refused = policy(SyscallDefault::Report, &["process"], &[]);
        for (name, set, ask) in [
            ("setrlimit", [4, 0x7fff_0000, 0, 0, 0, 0], None),
            ("prlimit64", [0, 4, 0x7fff_0000, 0, 0, 0], Some([0, 4, 0, 0x7fff_0000, 0, 0])),
            // The kernel looks at the low word of the resource, and at the whole pointer.
            ("prlimit64", [0, 0xffff_ffff_0000_0004, 0x1_0000_0000, 0, 0, 0], None),
        ] {
            for abi in [Abi::X86_64, Abi::I386] {
                let table = Table::build(&refused, Arch::X86_64, Notify::RECORD).unwrap();
                let number = abi.call_number(name).unwrap();
                let Decision::Args(rules) = table.decide(abi, number) else { panic!("{name} is judged") };
                assert_eq!(rules.judge(&set), Answer::Errno(DONE), "{name} {set:x?}");
                if name == "prlimit64" {
                    let other = [1, set[1], set[2], 0, 0, 0];
                    assert_eq!(rules.judge(&other), Answer::Notify, "of another process");
                }
                assert!(ask.is_none_or(|ask| rules.judge(&ask) == Answer::Allow), "{name} {ask:x?}");
                let resource = usize::from(name == "prlimit64");
                for other in (0..16).filter(|other| *other != 4) {
                    let mut args = set;
                    args[resource] = other;
                    assert_eq!(rules.judge(&args), Answer::Allow, "{name} of limit {other}");
                }
            }
        }
        let granted = policy(SyscallDefault::Deny, &["core-dumps"], &[]);
        assert_eq!(decide(&granted, Notify::default(), Abi::X86_64, "prlimit64"), Decision::Allow);
    }

    #[test]
    fn errors_name_the_rule_and_the_nearest_group() {
        let error =
            Table::build(&policy(SyscallDefault::Deny, &["socket"], &[]), Arch::X86_64, Notify::default()).unwrap_err();
        assert_eq!(error.to_string(), "system call group `socket` (--test) does not exist; did you mean sockets?");
        let error =
            Table::build(&policy(SyscallDefault::Deny, &[], &["base"]), Arch::X86_64, Notify::default()).unwrap_err();
        assert!(matches!(error, TableError::BaseDenied { .. }));
        let error =
            Table::build(&policy(SyscallDefault::Deny, &[], &[]), Arch::Aarch64, Notify::default()).unwrap_err();
        assert_eq!(error, TableError::NoCompat);
    }

    #[test]
    fn tables_that_answer_differently_have_different_names() {
        let names: std::collections::BTreeSet<String> =
            [&[][..], &["files"], &["sockets"], &["sockets", "rare-sockets"]]
                .iter()
                .map(|allow| {
                    Table::build(&policy(SyscallDefault::Deny, allow, &[]), Arch::X86_64, Notify::default())
                        .unwrap()
                        .digest("")
                })
                .collect();
        assert_eq!(names.len(), 4);
    }
}
