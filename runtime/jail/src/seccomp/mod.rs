//! The system call filter: from a table to a program that the kernel runs.
//!
//! Input: a [`Table`] and perhaps a cache directory. Output: a [`Program`], compiled by libseccomp or read from the cache, and in both cases
//! proved to mean the table: a planted file is never trusted, and neither is the compiler.

mod cache;
mod compile;
mod fold;

use std::os::fd::OwnedFd;

use apex_core::seccomp::bpf::Insn;
use apex_core::seccomp::trace::{self, Scope};
use apex_core::seccomp::{Abi, Arch, Mismatch, Table, verify};
use apex_sys::Errno;
use apex_sys::seccomp::Filter;

pub use cache::CacheDir;

/// Part of a cached program's name: to be raised when the shape of cached files changes.
const FORMAT: &str = "apex-seccomp-2";

/// A program that means its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    filter: Vec<Filter>,
    origin: Origin,
}

/// Where a program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Compiled just now.
    Compiled,
    /// Read from the cache.
    Cached,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// libseccomp refused something.
    #[error(
        "libseccomp could not compile the system call filter ({step}); the policy's `[syscalls]` decides what goes into it"
    )]
    Compile {
        /// What was asked of it.
        step: &'static str,
        /// Its answer.
        source: libseccomp::error::SeccompError,
    },
    /// The compiled program could not be taken over.
    #[error("the compiled system call filter could not be taken over from libseccomp")]
    Export(#[source] std::io::Error),
    /// The compiled program is too long for the kernel or for its jumps.
    #[error(
        "the compiled system call filter has {0} instructions, more than a kernel takes; grant or deny fewer groups singly"
    )]
    TooLong(usize),
    /// The compiled program does not mean the table.
    #[error(
        "the compiled system call filter differs from the policy and was not loaded; please report it with the output of --plan"
    )]
    Proof(#[from] Mismatch),
}

/// The program of a table: from the cache when a proved one is there, otherwise compiled, proved and put there. What is wrong with a cache
/// never fails a start.
///
/// # Errors
/// libseccomp does not compile the table, or the result is not what the table says.
pub fn program(table: &Table, cache: Option<&CacheDir>) -> Result<Program, SeccompError> {
    let name = cache.map(|_| table.digest(&format!("{FORMAT} {}", compile::version())));
    let file = cache.zip(name.as_deref());
    if let Some(cached) = file.and_then(|(cache, name)| cache.read(name))
        && verify(&cached, table).is_ok()
    {
        return Ok(Program::new(&cached, Origin::Cached));
    }
    let compiled = compile::compile(table)?;
    verify(&compiled, table)?;
    if let Some((cache, name)) = file {
        cache.write(name, &compiled);
    }
    Ok(Program::new(&compiled, Origin::Compiled))
}

/// Puts the program on the calling thread; with `listener`, returns the descriptor on which notified calls arrive. Allocates nothing, since
/// it is called between fork and exec.
///
/// # Errors
/// See [`apex_sys::seccomp::load`].
pub fn load(program: &Program, listener: bool) -> Result<Option<OwnedFd>, Errno> {
    // The filter that stops for a tracer is in force already where there is one, and must let this one through.
    apex_sys::seccomp::load_marked(&program.filter, listener, trace::UNTRACED_MARK)
}

/// The program that stops at the calls of a scope for a tracer, loaded before that of the table.
pub fn tracing(table: Option<&Table>, scope: Scope) -> Program {
    let abis: Vec<Abi> = match (table, Arch::native()) {
        (Some(table), _) => table.abis().collect(),
        (None, Some(arch)) => [Some(arch.abi()), arch.compat_abi()].into_iter().flatten().collect(),
        (None, None) => Vec::new(),
    };
    Program::new(&trace::filter(abis.into_iter(), scope), Origin::Compiled)
}

impl Program {
    fn new(insns: &[Insn], origin: Origin) -> Program {
        let filter = insns.iter().map(|insn| Filter { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k });
        Program { filter: filter.collect(), origin }
    }

    /// Its instructions.
    pub fn filter(&self) -> &[Filter] {
        &self.filter
    }

    /// Whether it was compiled or read from the cache.
    pub fn origin(&self) -> Origin {
        self.origin
    }
}
