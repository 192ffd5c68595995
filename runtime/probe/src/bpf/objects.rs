//! The objects of `ebpf/`, as built, and what their programs hook.
//!
//! Input: the level. Output: for each family either programs that the kernel has verified, attached to nothing, or why not. A family that is
//! refused takes no other with it.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use apex_core::watch::{Family, Level, Source};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{
    Btf, BtfError as AyaBtfError, Ebpf, EbpfError, EbpfLoader, Endianness, VerifierLogLevel, include_bytes_aligned,
};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::chroot;

use super::{btf, maps};

/// One family's object.
struct Object {
    family: Family,
    bytes: &'static [u8],
    /// Level from which on it is loaded.
    level: Level,
    ring_bytes: u32,
    hooks: &'static [Hook],
}

/// A program and what it is attached to.
struct Hook {
    program: &'static str,
    /// The kernel's tracepoint, or the security module's hook; empty where the program's section says it all.
    tracepoint: &'static str,
    /// Loaded only when this one was refused.
    instead_of: Option<&'static str>,
    /// Whether it is reached from another program and attached to nothing itself.
    is_called: bool,
    /// Whether the family does without it on kernels that do not have the hook.
    is_optional: bool,
}

const fn tracepoint(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook { program, tracepoint, instead_of: None, is_called: false, is_optional: false }
}

const fn cgroup(program: &'static str) -> Hook {
    tracepoint(program, "")
}

impl Hook {
    const fn instead_of(self, other: &'static str) -> Hook {
        Hook { instead_of: Some(other), ..self }
    }

    const fn optional(self) -> Hook {
        Hook { is_optional: true, ..self }
    }

    const fn called(self) -> Hook {
        Hook { is_called: true, ..self }
    }
}

const OBJECTS: &[Object] = &[
    Object {
        family: Family::Process,
        bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/process.bpf.o"),
        level: Level::Default,
        ring_bytes: 4 << 20,
        hooks: &[
            tracepoint("on_fork", "sched_process_fork"),
            tracepoint("on_exec", "sched_process_exec"),
            tracepoint("on_exit", "sched_process_exit"),
            tracepoint("on_exit_older", "sched_process_exit").instead_of("on_exit"),
        ],
    },
    Object {
        family: Family::Network,
        bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/network.bpf.o"),
        level: Level::Default,
        ring_bytes: 1 << 20,
        hooks: &[
            cgroup("on_connect4"),
            cgroup("on_connect6"),
            cgroup("on_bind4"),
            cgroup("on_bind6"),
            cgroup("on_send4"),
            cgroup("on_send6"),
            cgroup("on_socket"),
            cgroup("on_device"),
            cgroup("on_ingress"),
            cgroup("on_egress"),
        ],
    },
    Object {
        family: Family::File,
        bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/file.bpf.o"),
        level: Level::Full,
        ring_bytes: 4 << 20,
        hooks: &[tracepoint("on_file_call", SYS_EXIT).called()],
    },
    Object {
        family: Family::Privilege,
        bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/privilege.bpf.o"),
        level: Level::Full,
        ring_bytes: 1 << 20,
        hooks: &[tracepoint("on_privilege_call", SYS_EXIT).called()],
    },
    Object {
        family: Family::Lsm,
        bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/lsm.bpf.o"),
        level: Level::Default,
        ring_bytes: 4 << 20,
        // The first says whether the kernel permits such programs at all.
        hooks: &[
            tracepoint("on_open", "file_open"),
            tracepoint("on_exec_check", "bprm_check_security").optional(),
            tracepoint("on_mkdir", "path_mkdir").optional(),
            tracepoint("on_unlink", "path_unlink").optional(),
            tracepoint("on_rmdir", "path_rmdir").optional(),
            tracepoint("on_truncate", "path_truncate").optional(),
            tracepoint("on_chmod", "path_chmod").optional(),
            tracepoint("on_chown", "path_chown").optional(),
            tracepoint("on_symlink", "path_symlink").optional(),
            tracepoint("on_rename", "path_rename").optional(),
            tracepoint("on_link", "path_link").optional(),
            tracepoint("on_local_connect", "socket_connect").optional(),
            tracepoint("on_local_bind", "socket_bind").optional(),
            tracepoint("on_ptrace", "ptrace_access_check").optional(),
            tracepoint("on_setuid", "task_fix_setuid").optional(),
            tracepoint("on_bpf", "bpf").optional(),
            tracepoint("on_mount", "sb_mount").optional(),
            tracepoint("on_userns", "userns_create").optional(),
            tracepoint("on_mprotect", "file_mprotect").optional(),
        ],
    },
    // The last: it is attached when the programs that it calls are ready.
    Object {
        family: Family::Syscall,
        bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/syscall.bpf.o"),
        level: Level::Full,
        ring_bytes: 4096,
        hooks: &[tracepoint("on_call", SYS_EXIT)],
    },
];

const SYS_EXIT: &str = "sys_exit";
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// A family whose programs the kernel has verified.
#[derive(Debug)]
pub struct Loaded {
    /// Which.
    pub family: Family,
    /// Its programs and maps.
    pub ebpf: Ebpf,
    /// Its programs.
    pub programs: Vec<LoadedProgram>,
}

/// A program that the kernel has verified.
#[derive(Clone, Copy, Debug)]
pub struct LoadedProgram {
    /// Its name.
    pub name: &'static str,
    /// Whether it is reached from another program and attached to nothing itself.
    pub is_called: bool,
}

/// Why a family cannot be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("cannot read the kernel's types in {VMLINUX}: {0}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Types(std::io::Error),
    #[error("cannot understand the kernel's types in {VMLINUX}: {0}")]
    Trim(btf::BtfError),
    #[error("cannot understand the kernel's types in {VMLINUX}: {0}")]
    Btf(AyaBtfError),
    #[error(
        "loading BPF programs is not permitted; it needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run as root of the host"
    )]
    NotPermitted,
    #[error("the security module `bpf` is not in force; boot with it in the list `lsm=` of the kernel's command line")]
    NoModule,
    #[error("this kernel does not permit BPF programs of this kind, asked for with {name}")]
    KindNotPermitted { name: &'static str },
    #[error("{}", words(.0))]
    Object(EbpfError),
    #[error("the kernel refuses its program {name}: {words}")]
    Program { name: &'static str, words: String },
}

/// Loads what belongs to a level. `learns` says whether the run is learned from.
pub fn load(level: Level, learns: bool) -> (Vec<Loaded>, BTreeMap<Family, Source>) {
    let mut sources = BTreeMap::new();
    let mut loaded = Vec::new();
    if level == Level::Off {
        return (loaded, sources);
    }
    let types = kernel_types();
    let mut loader = types.as_ref().ok().map(loader);
    for object in OBJECTS {
        let source = if object.level > level {
            Source::Missing { reason: format!("it is watched at level {} only", name(object.level)) }
        } else {
            let result = match (&types, &mut loader) {
                (Ok(types), Some(loader)) => load_object(object, loader, types).map_err(|error| error.to_string()),
                (Err(error), _) => Err(error.to_string()),
                (Ok(_), None) => unreachable!("with types there is a loader"),
            };
            match result {
                Ok(object) => {
                    loaded.push(object);
                    Source::Probe
                }
                Err(reason) => Source::Missing { reason },
            }
        };
        sources.insert(object.family, source);
    }
    connect_calls(&mut loaded, &mut sources, learns);
    if sources.get(&Family::Lsm) == Some(&Source::Probe) {
        // Its hooks tell of files and privileges where the system calls do not.
        for family in [Family::File, Family::Privilege] {
            sources.insert(family, Source::Probe);
        }
    }
    (loaded, sources)
}

/// Writes the tables by which the hook on system calls reaches the families that want them. Without it they are not reached at all.
fn connect_calls(loaded: &mut Vec<Loaded>, sources: &mut BTreeMap<Family, Source>, learns: bool) {
    let is_called = |object: &Loaded| object.programs.iter().any(|program| program.is_called);
    let hook = loaded.iter().position(|object| object.family == Family::Syscall);
    let outcome = match hook {
        Some(at) => {
            let mut hook = loaded.remove(at);
            let outcome = loaded
                .iter_mut()
                .filter(|object| is_called(object))
                .try_for_each(|object| maps::connect(&mut hook.ebpf, object, learns))
                .map_err(|error| format!("cannot write the tables of system calls: {}", words(&error)));
            loaded.push(hook);
            outcome
        }
        None => Err("the hook on system calls, which leads to it, is missing; see family syscall".to_owned()),
    };
    if let Err(reason) = outcome {
        for object in loaded.iter().filter(|object| is_called(object)) {
            sources.insert(object.family, Source::Missing { reason: reason.clone() });
        }
        loaded.retain(|object| !is_called(object));
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Off => "off",
        Level::Default => "default",
        Level::Full => "full",
    }
}

fn kernel_types() -> Result<Btf, LoadError> {
    let data = std::fs::read(VMLINUX).map_err(LoadError::Types)?;
    let trimmed = btf::trim(&data).map_err(LoadError::Trim)?;
    Btf::parse(&trimmed, Endianness::default()).map_err(LoadError::Btf)
}

/// aya's loader with these types.
///
/// Its constructor reads and builds all types of the kernel, 20 to 40 ms for nothing. So it runs in a thread that has another root directory and does
/// not find them. Where that is not permitted it only takes longer.
fn loader(types: &Btf) -> EbpfLoader<'_> {
    let mut loader = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let is_away = unshare(CloneFlags::CLONE_FS).and_then(|()| chroot("/sys/kernel/btf"));
            // Both outcomes are right, see above.
            let _ = is_away;
            EbpfLoader::new()
        });
        thread.join().expect("the constructor does not panic")
    });
    // The verifier's log costs more than the verification; a refused load is tried again with it.
    loader.btf(Some(types)).verifier_log_level(VerifierLogLevel::DISABLE);
    loader
}

fn load_object<'a>(object: &Object, loader: &mut EbpfLoader<'a>, types: &'a Btf) -> Result<Loaded, LoadError> {
    if object.family == Family::Lsm && !is_module_active() {
        return Err(LoadError::NoModule);
    }
    let mut ebpf = loader
        .map_max_entries("ring", object.ring_bytes)
        .load(object.bytes)
        .map_err(|error| if is_refusal(&error) { LoadError::NotPermitted } else { LoadError::Object(error) })?;
    let mut programs: Vec<LoadedProgram> = Vec::new();
    let mut refused: Option<(&'static str, ProgramError)> = None;
    for hook in object.hooks {
        if hook.instead_of.is_some_and(|other| programs.iter().any(|program| program.name == other)) {
            continue;
        }
        let program = ebpf.program_mut(hook.program).expect("the table names programs of its object");
        match load_program(program, hook, types) {
            Ok(()) => programs.push(LoadedProgram { name: hook.program, is_called: hook.is_called }),
            Err(error) if hook.instead_of.is_none() && has_substitute(object, hook) => {
                refused = Some((hook.program, error));
            }
            Err(_) if hook.is_optional => {}
            Err(error) => {
                let (name, error) = refused.unwrap_or((hook.program, error));
                if is_refusal(&error) {
                    return Err(LoadError::KindNotPermitted { name });
                }
                return Err(LoadError::Program { name, words: words(&error) });
            }
        }
    }
    Ok(Loaded { family: object.family, ebpf, programs })
}

fn has_substitute(object: &Object, hook: &Hook) -> bool {
    object.hooks.iter().any(|other| other.instead_of == Some(hook.program))
}

fn load_program(program: &mut Program, hook: &Hook, types: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.load(hook.tracepoint, types),
        Program::Lsm(program) => program.load(hook.tracepoint, types),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupDevice(program) => program.load(),
        other => unreachable!("no object has a program of type {:?}", other.prog_type()),
    }
}

/// Attaches a program to its hook; those of cgroups to this one.
pub fn attach(program: &mut Program, cgroup: BorrowedFd<'_>) -> Result<(), ProgramError> {
    // The mode is a flag of the older way to attach; a link goes beside those that are there.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    match program {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::Lsm(program) => program.attach().map(drop),
        Program::CgroupSockAddr(program) => program.attach(cgroup, MODE).map(drop),
        Program::CgroupSock(program) => program.attach(cgroup, MODE).map(drop),
        Program::CgroupDevice(program) => program.attach(cgroup, MODE).map(drop),
        Program::CgroupSkb(program) => {
            let direction = program.expected_attach_type().expect("its section names the direction");
            program.attach(cgroup, direction, MODE).map(drop)
        }
        other => unreachable!("no object has a program of type {:?}", other.prog_type()),
    }
}

/// Whether the security module `bpf` is in force. Without it its programs load and never run. Where the list cannot be read, loading decides.
fn is_module_active() -> bool {
    match std::fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(list) => list.trim().split(',').any(|module| module == "bpf"),
        Err(_) => true,
    }
}

/// Whether the kernel said EPERM or EACCES somewhere in the chain.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|it| it.kind() == std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The whole chain in one line.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        words.push_str(": ");
        words.push_str(&error.to_string());
        next = error.source();
    }
    words.replace('\n', " ")
}
