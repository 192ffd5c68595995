//! The program: its directory, its environment, where it is, and the exec.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use apex_sys::process::{self, CStrings};
use apex_sys::{Errno, fs};
use oci_spec::runtime::Process;

use super::rootfs::{self, RootfsError};

/// Why there is nothing to execute.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such file.
    #[error("exec: {0:?}: {1}")]
    NotFound(String, &'static str),
    /// A file that is no program.
    #[error("exec: {0:?}: permission denied; it is not an executable file for this user")]
    NotExecutable(String),
    /// The working directory.
    #[error("chdir to cwd set in config.json failed: {0}")]
    Directory(#[from] RootfsError),
    /// The root, in which the working directory is looked for.
    #[error("cannot open the container's root")]
    Root(#[source] Errno),
    /// A working directory of the host.
    #[error("the working directory {0:?} lies outside of the container's root, so it is refused")]
    Outside(PathBuf),
    /// The exec.
    #[error("exec {0:?} failed")]
    Exec(PathBuf, #[source] Errno),
}

/// A program that was found.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    arguments: CStrings,
    environment: CStrings,
}

fn c_string(text: &str) -> CString {
    // `bundle::check_process` refused the others.
    CString::new(text).unwrap_or_default()
}

/// Goes to the working directory; where only the user may enter it, the caller tries again as the user.
///
/// # Errors
/// It is not there, may not be entered, or lies outside of the container.
pub fn enter_directory(cwd: &Path) -> Result<(), ProgramError> {
    let root = fs::open(fs::cwd(), c"/", nix::libc::O_PATH, 0).map_err(ProgramError::Root)?;
    rootfs::change_dir(root.as_fd(), cwd)?;
    // Whatever led there: of a directory outside of the root the kernel names no path, or one that it calls unreachable (CVE-2024-21626).
    match std::env::current_dir() {
        Ok(dir) if dir.is_absolute() => Ok(()),
        _ => Err(ProgramError::Outside(cwd.to_path_buf())),
    }
}

impl Program {
    /// Finds it, as the user and in the container's root: by its path, or in the container's PATH.
    ///
    /// # Errors
    /// It is not there or cannot be executed.
    pub fn find(process: &Process, extra: &[String]) -> Result<Program, ProgramError> {
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().map(String::as_str).unwrap_or_default();
        let environment = environment(process, extra);
        let path = if name.contains('/') { check(Path::new(name), name)? } else { search(name, &environment)? };
        Ok(Program {
            path,
            arguments: CStrings::new(args.iter().map(|text| c_string(text)).collect()),
            environment: CStrings::new(environment.iter().map(|text| c_string(text)).collect()),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces this process by it. Returns only on failure.
    pub fn exec(&self) -> ProgramError {
        let path = CString::new(self.path.as_os_str().as_bytes()).unwrap_or_default();
        let errno = process::exec(&path, &self.arguments, &self.environment);
        ProgramError::Exec(self.path.clone(), errno)
    }
}

fn check(path: &Path, name: &str) -> Result<PathBuf, ProgramError> {
    let facts = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => ProgramError::NotExecutable(name.to_owned()),
        _ => ProgramError::NotFound(name.to_owned(), "no such file or directory"),
    })?;
    let is_executable = facts.is_file() && facts.permissions().mode() & 0o111 != 0;
    if is_executable { Ok(path.to_path_buf()) } else { Err(ProgramError::NotExecutable(name.to_owned())) }
}

fn search(name: &str, environment: &[String]) -> Result<PathBuf, ProgramError> {
    let path = environment.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    let mut seen = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match check(&Path::new(dir).join(name), name) {
            Ok(found) => return Ok(found),
            Err(error @ ProgramError::NotExecutable(_)) => seen = Some(error),
            Err(_) => {}
        }
    }
    Err(seen.unwrap_or_else(|| ProgramError::NotFound(name.to_owned(), "executable file not found in $PATH")))
}

/// The environment of the bundle; HOME is looked up where it is not set, as users of runc expect.
pub fn environment(process: &Process, extra: &[String]) -> Vec<String> {
    let mut environment: Vec<String> = Vec::new();
    for pair in process.env().iter().flatten().chain(extra) {
        let name = pair.split_once('=').map_or(pair.as_str(), |(name, _)| name);
        // Of two of a name the last counts, at the place of the first.
        match environment
            .iter_mut()
            .find(|other| other.split_once('=').map_or(other.as_str(), |(other, _)| other) == name)
        {
            Some(other) => other.clone_from(pair),
            None => environment.push(pair.clone()),
        }
    }
    if !environment.iter().any(|pair| pair.starts_with("HOME=")) {
        environment.push(format!("HOME={}", home(process.user().uid())));
    }
    environment
}

/// The home directory of a user in the container's /etc/passwd (passwd(5)), otherwise the root.
fn home(uid: u32) -> String {
    const BYTES_MAX: usize = 1 << 20;
    let read = || {
        // Inside, and whatever it is, nothing of it holds this process up or fills its memory.
        let flags = nix::libc::O_RDONLY | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
        let file = fs::open(fs::cwd(), c"/etc/passwd", flags, 0)?;
        let facts = fs::stat(file.as_fd(), c"")?;
        if !facts.is_regular() || facts.size > BYTES_MAX as u64 {
            return Err(Errno::EFBIG);
        }
        let mut bytes = vec![0; facts.size as usize];
        let count = fs::read(file.as_fd(), &mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    };
    let text = read().unwrap_or_default();
    let of = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
        let is_user = OsStr::from_bytes(fields.get(2)?).to_str()?.parse() == Ok(uid);
        let home = String::from_utf8(fields.get(5)?.to_vec()).ok()?;
        (is_user && home.starts_with('/')).then_some(home)
    };
    text.split(|byte| *byte == b'\n').find_map(of).unwrap_or_else(|| "/".to_owned())
}
