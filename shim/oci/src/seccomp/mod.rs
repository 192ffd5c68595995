//! The container's system call filter: from `linux.seccomp` of a bundle to a program in the kernel.
//!
//! Input: what the bundle says, and perhaps a directory of programs that were compiled before. Output: [`Compiled`], loaded by the init as its
//! last step before exec. [`words`] turns the bundle's words into libseccomp's and refuses what does not fit together, [`compile`] has
//! libseccomp make a program, [`later`] says what the calls answer that libseccomp or the profile is too old to know, and [`fold`] joins
//! both into one short program and proves that it answers the same.

mod cache;
mod compile;
mod fold;
mod later;
mod listener;
mod words;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use apex_core::seccomp::bpf::{Insn, RET_K, RET_USER_NOTIF};
use apex_sys::Errno;
use apex_sys::seccomp::{FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV, Filter};
use oci_spec::runtime::LinuxSeccomp;

pub use cache::CacheDir;
pub use listener::{ListenerError, hand_over};
pub use words::{SeccompError, knows};

/// A program for the container's process, with how it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    filter: Vec<Filter>,
    flags: u64,
    listener: Option<Listener>,
    origin: Origin,
    skipped: Vec<String>,
}

/// Where notified calls are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The agent's socket, a path of the host.
    pub path: PathBuf,
    /// What the agent is told beside the state.
    pub metadata: Option<String>,
}

/// Where a program came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Compiled just now.
    Compiled,
    /// Read from the cache.
    Cached,
}

/// The program of a bundle: from the cache when it is there, otherwise compiled and put there. What is wrong with a cache never fails a start.
///
/// # Errors
/// The words do not fit together, libseccomp or the kernel cannot do what they ask for, or the program is too long.
pub fn compile(seccomp: &LinuxSeccomp, cache: Option<&CacheDir>) -> Result<Compiled, SeccompError> {
    let flags = words::flags(seccomp)?;
    let rules = words::rules(seccomp)?;
    let digest = cache.map(|_| words::digest(&rules, &compile::version()));
    let file = cache.zip(digest.as_ref());
    if let Some(program) = file.and_then(|(cache, digest)| cache.read(digest)) {
        return finish(seccomp, &program, flags, Origin::Cached, Vec::new());
    }
    let (program, skipped) = compile::compile(&rules)?;
    if let Some((cache, digest)) = file {
        cache.write(digest, &program);
    }
    finish(seccomp, &program, flags, Origin::Compiled, skipped)
}

fn finish(
    seccomp: &LinuxSeccomp,
    program: &[Insn],
    flags: u64,
    origin: Origin,
    skipped: Vec<String>,
) -> Result<Compiled, SeccompError> {
    let notifies = program.iter().any(|insn| insn.code == RET_K && insn.k == RET_USER_NOTIF);
    let path = seccomp.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    let listener = match (notifies, path) {
        (false, _) => None,
        (true, None) => return Err(SeccompError::NoListener),
        (true, Some(path)) => Some(Listener { path: path.clone(), metadata: seccomp.listener_metadata().clone() }),
    };
    // Without a listener there is no notification to wait for, and the kernel refuses the flag.
    let flags = if listener.is_some() { flags | FLAG_NEW_LISTENER } else { flags & !FLAG_WAIT_KILLABLE_RECV };
    let filter = program.iter().map(instruction).collect();
    Ok(Compiled { filter, flags, listener, origin, skipped })
}

fn instruction(insn: &Insn) -> Filter {
    Filter { code: insn.code, jt: insn.jt, jf: insn.jf, k: insn.k }
}

impl Compiled {
    /// Puts the program on the calling process, which has no_new_privs or CAP_SYS_ADMIN in its user namespace; returns the descriptor of the
    /// listener where the program notifies. Allocates nothing. The last step before exec: the program may refuse any other call.
    ///
    /// # Errors
    /// EACCES without the right to load one, EINVAL when the kernel refuses program or flags, EBUSY when there is a listener already.
    pub fn load(&self) -> Result<Option<OwnedFd>, Errno> {
        apex_sys::seccomp::load_flagged(&self.filter, self.flags)
    }

    /// Where notified calls are judged; `None` when none is.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// A connection to the agent that judges notified calls, if there is one.
    ///
    /// # Errors
    /// Nobody listens at `listenerPath`.
    pub fn connect(&self) -> Result<Option<OwnedFd>, ListenerError> {
        self.listener.as_ref().map(Listener::connect).transpose()
    }

    /// Its instructions.
    pub fn filter(&self) -> &[Filter] {
        &self.filter
    }

    /// The flags that it is loaded with (seccomp(2)).
    pub fn flags(&self) -> u64 {
        self.flags
    }

    /// Whether it was compiled or read from the cache.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Names in the profile that neither libseccomp nor Apex knows: nothing is said about them. Empty for a cached program, whose names were
    /// told when it was compiled.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// Whether this libseccomp can put an architecture into a filter.
pub fn has_arch(arch: oci_spec::runtime::Arch) -> bool {
    let name = libseccomp::ScmpSyscall::from_name_by_arch("read", words::arch(arch));
    name.is_ok()
}

/// The version of libseccomp.
pub fn version() -> String {
    compile::version()
}

#[cfg(test)]
mod tests;
