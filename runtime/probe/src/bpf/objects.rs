//! The objects of `ebpf/`, as built, and what their programs hook.
//!
//! Input: the level. Output: for each family either programs that the kernel has verified, attached to nothing, or why not. A family that is
//! refused takes no other with it.

use std::collections::BTreeMap;

use apex_core::watch::{Family, Level, Source};
use aya::programs::{BtfTracePoint, Program, ProgramError};
use aya::{
    Btf, BtfError as AyaBtfError, Ebpf, EbpfError, EbpfLoader, Endianness, VerifierLogLevel, include_bytes_aligned,
};

use super::btf;

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
    /// The kernel's tracepoint; empty where the program's section says it all.
    tracepoint: &'static str,
    /// Loaded only when this one was refused.
    instead_of: Option<&'static str>,
}

const fn tracepoint(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook { program, tracepoint, instead_of: None }
}

const OBJECTS: &[Object] = &[Object {
    family: Family::Process,
    bytes: include_bytes_aligned!("../../../../ebpf/prebuilt/process.bpf.o"),
    level: Level::Default,
    ring_bytes: 8 << 20,
    hooks: &[
        tracepoint("on_fork", "sched_process_fork"),
        tracepoint("on_exec", "sched_process_exec"),
        tracepoint("on_exit", "sched_process_exit"),
        Hook { program: "on_exit_older", tracepoint: "sched_process_exit", instead_of: Some("on_exit") },
    ],
}];

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// A family whose programs the kernel has verified.
#[derive(Debug)]
pub struct Loaded {
    /// Which.
    pub family: Family,
    /// Its programs and maps.
    pub ebpf: Ebpf,
    /// The programs that are to be attached.
    pub programs: Vec<&'static str>,
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
    #[error("{0}")]
    Object(EbpfError),
    #[error("the kernel refuses its program {name}: {words}")]
    Program { name: &'static str, words: String },
}

/// Loads what belongs to a level.
pub fn load(level: Level) -> (Vec<Loaded>, BTreeMap<Family, Source>) {
    let mut sources = BTreeMap::new();
    let mut loaded = Vec::new();
    let types = kernel_types();
    for object in OBJECTS {
        let source = if object.level > level {
            Source::Missing { reason: format!("it is watched at level {} only", name(object.level)) }
        } else {
            match types
                .as_ref()
                .map_err(ToString::to_string)
                .and_then(|types| load_object(object, types).map_err(|error| error.to_string()))
            {
                Ok(object) => {
                    loaded.push(object);
                    Source::Probe
                }
                Err(reason) => Source::Missing { reason },
            }
        };
        sources.insert(object.family, source);
    }
    (loaded, sources)
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

fn load_object(object: &Object, types: &Btf) -> Result<Loaded, LoadError> {
    // The verifier's log costs more than the verification; a refusal is tried again with it by `aya`.
    let mut ebpf = EbpfLoader::new()
        .btf(Some(types))
        .verifier_log_level(VerifierLogLevel::DISABLE)
        .map_max_entries("ring", object.ring_bytes)
        .load(object.bytes)
        .map_err(|error| if is_refusal(&error) { LoadError::NotPermitted } else { LoadError::Object(error) })?;
    let mut programs: Vec<&'static str> = Vec::new();
    let mut refused: Option<(&'static str, ProgramError)> = None;
    for hook in object.hooks {
        if hook.instead_of.is_some_and(|other| programs.contains(&other)) {
            continue;
        }
        let program = ebpf.program_mut(hook.program).expect("the table names programs of its object");
        match load_program(program, hook, types) {
            Ok(()) => programs.push(hook.program),
            Err(error) if hook.instead_of.is_none() && has_substitute(object, hook) => {
                refused = Some((hook.program, error));
            }
            Err(error) => {
                let (name, error) = refused.unwrap_or((hook.program, error));
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
        Program::BtfTracePoint(program) => BtfTracePoint::load(program, hook.tracepoint, types),
        _ => unreachable!("the table has programs of these types only"),
    }
}

/// Attaches a program to its hook.
pub fn attach(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        _ => unreachable!("the table has programs of these types only"),
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
