//! The receipt: what the kernel says about a sandbox whose command waits, sealed, for the word to go on.
//!
//! Nothing here repeats what the plan says: each line's `effective` was read from /proc, from a cgroup file, or is the answer to a
//! system call. What cannot be read back says so.

use std::collections::HashMap;
use std::path::Path;

use apex_core::layer::{Layer, Requirement};
use apex_core::plan::{BindAccess, Mount, Plan};
use apex_core::policy::{Network, ProcView};
use apex_core::receipt::{LayerReceipt, Receipt, State};
use apex_sys::Errno;
use apex_sys::process::Pid;

use crate::cgroup::Cgroup;
use crate::wire::Domain;

/// Version of the shape of [`Receipt`].
const RECEIPT_VERSION: u32 = 1;

/// Reads a receipt. `sealed` is the process that will become the command, `domain` the answer to its own attempt on Landlock.
pub fn read(plan: &Plan, init: Pid, sealed: Pid, domain: Domain, cgroup: Option<&Cgroup>) -> Receipt {
    let view = View { plan, pid: sealed, status: status(sealed), domain, cgroup };
    Receipt {
        version: RECEIPT_VERSION,
        kernel: text("/proc/sys/kernel/osrelease"),
        mode: plan.mode,
        level: plan.level,
        plan_sha256: plan.digest(),
        init_pid: init,
        watch: plan.watch,
        layers: Layer::ALL.into_iter().map(|layer| view.layer(layer)).collect(),
    }
}

/// The first layers that the kernel does not confirm, in words; `None` when all is as planned.
pub fn mismatch(receipt: &Receipt) -> Option<String> {
    let words: Vec<String> = receipt
        .layers
        .iter()
        .filter_map(|line| match &line.state {
            State::Mismatch(reason) => Some(format!("{}: {reason}", line.layer)),
            State::InForce | State::Skipped(_) | State::Off | State::LeftOut(_) => None,
        })
        .collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// One answer of the kernel: what was asked for, what is, where that was read, and whether the two agree.
struct Answer {
    requested: String,
    effective: String,
    evidence: String,
    agrees: bool,
}

struct View<'a> {
    plan: &'a Plan,
    pid: Pid,
    status: HashMap<String, String>,
    domain: Domain,
    cgroup: Option<&'a Cgroup>,
}

impl View<'_> {
    fn layer(&self, layer: Layer) -> LayerReceipt {
        let requirement = self.plan.layers.get(&layer).copied().unwrap_or(Requirement::Required);
        let answer = if self.plan.level.leaves_out(layer) { self.left_out(layer) } else { self.answer(layer) };
        let state = match (self.plan.skipped.get(&layer), self.is_asked(layer)) {
            (Some(reason), _) => State::Skipped(reason.clone()),
            (None, false) if self.plan.level.leaves_out(layer) => State::LeftOut(self.plan.level),
            (None, false) => State::Off,
            (None, true) if answer.agrees => State::InForce,
            (None, true) => State::Mismatch(format!("asked for {}, found {}", answer.requested, answer.effective)),
        };
        LayerReceipt {
            layer,
            requirement,
            requested: answer.requested,
            effective: answer.effective,
            evidence: answer.evidence,
            state,
        }
    }

    fn is_asked(&self, layer: Layer) -> bool {
        self.plan.has(layer)
            && match layer {
                Layer::Netns => self.plan.network == Network::None,
                Layer::Cgroup => self.plan.cgroup.is_some(),
                Layer::Rlimits => !self.plan.rlimits.is_empty(),
                _ => true,
            }
    }

    /// What there is in the place of a layer that the level leaves out.
    fn left_out(&self, layer: Layer) -> Answer {
        let (effective, evidence) = match layer {
            Layer::Seccomp => (
                format!("{} filters, all of them the caller's", self.status("Seccomp_filters")),
                self.of_status("Seccomp_filters"),
            ),
            Layer::Landlock => ("no rule of this sandbox".to_owned(), String::new()),
            Layer::Mountns => self.shared("mnt"),
            Layer::Netns => self.shared("net"),
            Layer::Ipcns => self.shared("ipc"),
            Layer::Utsns => self.shared("uts"),
            Layer::Cgroupns => self.shared("cgroup"),
            Layer::Timens => self.shared("time"),
            Layer::Userns | Layer::Pidns | Layer::Capabilities | Layer::NoNewPrivs | Layer::Cgroup | Layer::Rlimits => {
                (String::new(), String::new())
            }
        };
        Answer { requested: "nothing".to_owned(), effective, evidence, agrees: true }
    }

    fn of_status(&self, key: &str) -> String {
        format!("/proc/{}/status {key}", self.pid)
    }

    /// The namespace of a kind, and whether it is the launcher's.
    fn shared(&self, kind: &str) -> (String, String) {
        let ours = link(&format!("/proc/self/ns/{kind}"));
        let evidence = format!("/proc/{}/ns/{kind}", self.pid);
        let theirs = link(&evidence);
        let whose = if ours == theirs { "the host's" } else { "NOT the host's" };
        (format!("{theirs}, {whose}"), evidence)
    }

    fn answer(&self, layer: Layer) -> Answer {
        match layer {
            Layer::Userns => self.userns(),
            Layer::Pidns => self.pidns(),
            Layer::Mountns => self.root(),
            Layer::Netns => self.namespace("net"),
            Layer::Ipcns => self.namespace("ipc"),
            Layer::Utsns => self.namespace("uts"),
            Layer::Cgroupns => self.namespace("cgroup"),
            Layer::Timens => self.namespace("time"),
            Layer::Capabilities => self.capabilities(),
            Layer::NoNewPrivs => self.no_new_privs(),
            Layer::Seccomp => self.seccomp(),
            Layer::Landlock => self.landlock(),
            Layer::Cgroup => self.cgroup(),
            Layer::Rlimits => self.rlimits(),
        }
    }

    fn status(&self, key: &str) -> String {
        self.status.get(key).cloned().unwrap_or_else(|| "not shown by this kernel".to_owned())
    }

    fn namespace(&self, kind: &str) -> Answer {
        let ours = link(&format!("/proc/self/ns/{kind}"));
        let evidence = format!("/proc/{}/ns/{kind}", self.pid);
        let theirs = link(&evidence);
        let is_wanted = kind != "net" || self.plan.network == Network::None;
        let requested = if is_wanted { "a namespace of its own" } else { "the host's" };
        Answer {
            requested: requested.to_owned(),
            agrees: is_known(&theirs) && (ours != theirs) == is_wanted,
            effective: theirs,
            evidence,
        }
    }

    fn userns(&self) -> Answer {
        let base = self.namespace("user");
        let identity = &self.plan.identity;
        let uid_map = squeeze(&text(&format!("/proc/{}/uid_map", self.pid)));
        let uids = self.status("Uid");
        let inside = uid_map.split(' ').next().unwrap_or_default().to_owned();
        let outside = uid_map.split(' ').nth(1).unwrap_or_default().to_owned();
        let only_one = uid_map.split(' ').count() == 3 && uid_map.ends_with(" 1");
        let not_host = !identity.own_host_ids || outside != identity.caller_uid.to_string();
        Answer {
            requested: format!(
                "user {} alone, as {}",
                identity.uid,
                if identity.own_host_ids { "a host id of its own" } else { "the caller" }
            ),
            agrees: base.agrees && only_one && inside == identity.uid.to_string() && not_host,
            effective: format!(
                "{}, uid map `{uid_map}`, host uid {}",
                base.effective,
                uids.split('\t').next().unwrap_or_default()
            ),
            evidence: format!("/proc/{}/uid_map", self.pid),
        }
    }

    fn pidns(&self) -> Answer {
        let base = self.namespace("pid");
        let pids = self.status("NSpid");
        Answer {
            requested: "a namespace of its own, under an init".to_owned(),
            agrees: base.agrees && pids.split_whitespace().count() >= 2,
            effective: format!("{}, pids `{}`", base.effective, squeeze(&pids)),
            evidence: format!("/proc/{}/status NSpid", self.pid),
        }
    }

    /// Every mount of the plan is looked up in the kernel's own table, and every writable one must be one that the plan makes so.
    fn root(&self) -> Answer {
        let evidence = format!("/proc/{}/mountinfo", self.pid);
        let table = text(&evidence);
        let mounted: HashMap<String, Vec<String>> = table.lines().filter_map(parse_mount).collect();
        let mut missing = Vec::new();
        for mount in &self.plan.mounts {
            if let Some((place, needs)) = expected(mount)
                && !mounted
                    .get(&place)
                    .is_some_and(|have| needs.iter().all(|need| have.iter().any(|have| have == need)))
            {
                missing.push(format!("{place} ({})", needs.join(",")));
            }
        }
        let writable: Vec<&String> =
            mounted.iter().filter(|(_, flags)| flags.iter().any(|flag| flag == "rw")).map(|(place, _)| place).collect();
        let stray: Vec<&str> =
            writable.iter().filter(|place| !self.may_be_writable(place)).map(|place| place.as_str()).collect();
        let mut effective = format!("{} mounts, {} writable", mounted.len(), writable.len());
        if !missing.is_empty() {
            effective += &format!(", not as planned: {}", missing.join(" "));
        }
        if !stray.is_empty() {
            effective += &format!(", writable without a rule: {}", stray.join(" "));
        }
        Answer {
            requested: format!("a root of its own, {} planned mounts", self.plan.mounts.len()),
            agrees: missing.is_empty() && stray.is_empty() && !mounted.is_empty(),
            effective,
            evidence,
        }
    }

    fn may_be_writable(&self, place: &str) -> bool {
        let own = [
            "/proc",
            "/dev/null",
            "/dev/zero",
            "/dev/full",
            "/dev/random",
            "/dev/urandom",
            "/dev/tty",
            "/dev/pts",
            "/dev/shm",
        ];
        own.contains(&place)
            || self.plan.mounts.iter().any(|mount| match mount {
                Mount::Bind { dest, access: BindAccess::Write | BindAccess::Overlay, .. }
                | Mount::Tmpfs { dest, .. } => Path::new(place).starts_with(dest),
                _ => false,
            })
    }

    fn capabilities(&self) -> Answer {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let values: Vec<String> = sets.iter().map(|set| self.status(set)).collect();
        let kept = crate::init::kept(&self.plan.capabilities).unwrap_or(0);
        let agrees = values.iter().all(|value| u64::from_str_radix(value, 16).is_ok_and(|bits| bits & !kept == 0));
        let requested = if self.plan.capabilities.is_empty() {
            "every set empty".to_owned()
        } else {
            self.plan.capabilities.join(" ")
        };
        let all_zero = values.iter().all(|value| u64::from_str_radix(value, 16) == Ok(0));
        let effective = if all_zero {
            "inheritable, permitted, effective, bounding and ambient all 0".to_owned()
        } else {
            sets.iter().zip(&values).map(|(set, value)| format!("{set} {value}")).collect::<Vec<_>>().join(" ")
        };
        Answer { requested, effective, evidence: format!("/proc/{}/status Cap*", self.pid), agrees }
    }

    fn no_new_privs(&self) -> Answer {
        let effective = self.status("NoNewPrivs");
        let agrees = effective == "1";
        Answer {
            requested: "1".to_owned(),
            effective,
            evidence: format!("/proc/{}/status NoNewPrivs", self.pid),
            agrees,
        }
    }

    fn seccomp(&self) -> Answer {
        let mode = self.status("Seccomp");
        let filters = self.status("Seccomp_filters");
        // Filters that the caller already stood under count too (a container has some).
        let inherited =
            status(std::process::id() as Pid).get("Seccomp_filters").and_then(|count| count.parse().ok()).unwrap_or(0);
        let own = filters.parse::<u32>().unwrap_or(0).saturating_sub(inherited);
        let requested = self.plan.seccomp.as_ref().map_or("off".to_owned(), |table| {
            format!("filter: {} groups allowed, {} refused", table.allowed().len(), table.refused().len())
        });
        Answer {
            requested,
            agrees: mode == "2" && own > 0,
            effective: format!("mode {mode} (filter), {own} own of {filters} filters"),
            evidence: format!("/proc/{}/status Seccomp", self.pid),
        }
    }

    /// The kernel shows no process's domain. With scopes (ABI 6) a signal to the init, which stands outside the domain, must be refused
    /// although both have one user: the sealed process tries that, and its errno is the evidence.
    fn landlock(&self) -> Answer {
        let Some(landlock) = &self.plan.landlock else {
            return Answer {
                requested: "off".to_owned(),
                effective: "off".to_owned(),
                evidence: String::new(),
                agrees: true,
            };
        };
        let net = if landlock.tcp_refused { ", TCP refused" } else { "" };
        let scope = if landlock.scoped { ", signals and abstract sockets scoped" } else { "" };
        let abi = apex_sys::prctl::landlock_abi();
        let (attempt, expected) = if landlock.scoped {
            ("a signal to pid 1, which stands outside the domain", Errno::EPERM)
        } else {
            ("a TCP bind", Errno::EACCES)
        };
        let answer = match self.domain {
            Domain::Unprobed => "the policy holds nothing that could be tried here".to_owned(),
            Domain::Open => format!("{attempt} went through"),
            Domain::Refused(errno) => format!("{attempt}: {errno:?}"),
        };
        let evidence = match self.domain {
            Domain::Unprobed => "landlock_create_ruleset(VERSION), landlock_restrict_self() = 0; --prove tries files",
            Domain::Open | Domain::Refused(_) => "the sealed process tried it before its filter was loaded",
        };
        // Without scopes and TCP rules there is nothing to try that Landlock alone refuses; `restrict_self` has succeeded then.
        let holds = match self.domain {
            Domain::Unprobed => !landlock.scoped && !landlock.tcp_refused,
            Domain::Open => false,
            Domain::Refused(errno) => errno == expected,
        };
        Answer {
            requested: format!("ABI {}, {} rules{net}{scope}", landlock.abi, landlock.rules.len()),
            effective: format!("kernel ABI {abi}; {answer}"),
            evidence: evidence.to_owned(),
            agrees: abi >= landlock.abi && holds,
        }
    }

    fn cgroup(&self) -> Answer {
        let (Some(plan), Some(cgroup)) = (&self.plan.cgroup, self.cgroup) else {
            return Answer {
                requested: "no limits".to_owned(),
                effective: "no limits".to_owned(),
                evidence: String::new(),
                agrees: true,
            };
        };
        let mut wanted = Vec::new();
        wanted.extend(plan.memory_bytes.map(|bytes| format!("memory {bytes}")));
        wanted.extend(plan.swap_bytes.map(|bytes| format!("swap {bytes}")));
        wanted.extend(plan.tasks.map(|tasks| format!("tasks {tasks}")));
        wanted.extend(plan.cpu_percent.map(|percent| format!("cpu {percent}%")));
        let requested = wanted.join(", ");
        match cgroup.effective(self.pid) {
            Err(error) => Answer { requested, effective: error.to_string(), evidence: String::new(), agrees: false },
            Ok(effective) => {
                let show = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| value.to_string());
                let mut limits: Vec<String> =
                    effective.limits.iter().map(|limit| format!("{} {}", limit.resource, show(limit.value))).collect();
                limits.push(if effective.member {
                    "process inside".to_owned()
                } else {
                    "process NOT inside".to_owned()
                });
                Answer {
                    requested,
                    effective: format!("{}: {}", effective.version, limits.join(", ")),
                    evidence: effective.membership_file.display().to_string(),
                    agrees: effective.mismatch().is_none(),
                }
            }
        }
    }

    fn rlimits(&self) -> Answer {
        let evidence = format!("/proc/{}/limits", self.pid);
        let table = text(&evidence);
        let shown = |name: &str| {
            let line = table.lines().find(|line| line.starts_with(limit_title(name)))?;
            line[limit_title(name).len()..].split_whitespace().nth(1).map(str::to_owned)
        };
        let pairs: Vec<(String, u64, Option<String>)> =
            self.plan.rlimits.iter().map(|limit| (limit.name.to_owned(), limit.value, shown(limit.name))).collect();
        Answer {
            requested: pairs.iter().map(|(name, value, _)| format!("{name} {value}")).collect::<Vec<_>>().join(", "),
            effective: pairs
                .iter()
                .map(|(name, _, shown)| format!("{name} {}", shown.as_deref().unwrap_or("unknown")))
                .collect::<Vec<_>>()
                .join(", "),
            agrees: pairs.iter().all(|(_, value, shown)| {
                shown.as_deref().is_some_and(|shown| shown.parse::<u64>().is_ok_and(|have| have <= *value))
            }),
            evidence,
        }
    }
}

/// Where a mount of the plan must be found, and with which flags.
fn expected(mount: &Mount) -> Option<(String, Vec<&'static str>)> {
    let place = apex_core::planner::mount_dest(mount).display().to_string();
    let mut flags = vec!["nosuid"];
    match mount {
        Mount::Bind { access, exec, .. } => {
            flags.push("nodev");
            flags.push(if *access == BindAccess::Read { "ro" } else { "rw" });
            if !exec {
                flags.push("noexec");
            }
        }
        Mount::Tmpfs { exec, .. } => {
            flags.extend(["nodev", "rw"]);
            if !exec {
                flags.push("noexec");
            }
        }
        Mount::Proc { view } => {
            flags.extend(["nodev", "noexec"]);
            if *view == ProcView::Masked {
                flags.push("ro");
            }
        }
        Mount::Dev { .. } => flags.extend(["ro", "noexec"]),
        Mount::Hide { .. } | Mount::Deny { .. } => flags.extend(["ro", "nodev", "noexec"]),
        Mount::Symlink { .. } | Mount::Dir { .. } | Mount::File { .. } => return None,
    }
    Some((place, flags))
}

/// Place and flags from a line of mountinfo (proc_pid_mountinfo(5)).
fn parse_mount(line: &str) -> Option<(String, Vec<String>)> {
    let mut fields = line.split(' ').skip(4);
    let place = unescape(fields.next()?);
    let flags = fields.next()?.split(',').map(str::to_owned).collect();
    Some((place, flags))
}

/// Blanks and their like are written in octal there.
fn unescape(word: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(word.to_owned(), |word, (code, plain)| word.replace(code, plain))
}

fn limit_title(name: &str) -> &'static str {
    match name {
        "core" => "Max core file size",
        "nofile" => "Max open files",
        "fsize" => "Max file size",
        "nproc" => "Max processes",
        "memlock" => "Max locked memory",
        _ => "unknown limit",
    }
}

fn status(pid: Pid) -> HashMap<String, String> {
    text(&format!("/proc/{pid}/status"))
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim_end().to_owned()).unwrap_or_default()
}

fn link(path: &str) -> String {
    std::fs::read_link(path).map_or_else(|error| format!("unreadable: {error}"), |target| target.display().to_string())
}

fn is_known(link: &str) -> bool {
    link.contains(":[")
}

fn squeeze(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}
