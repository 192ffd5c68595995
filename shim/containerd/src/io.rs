//! The streams of a process: fifos, files or a log program, given to the runtime as they are. The shim copies nothing but terminals.
//!
//! Of each output fifo the shim keeps an end for reading, so that a containerd that ends does not break the container's writes; of an
//! input fifo an end for writing, so that the container sees no end of input before containerd says so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use nix::libc;
use tokio::io::unix::AsyncFd;

use crate::logger::{LogProgram, Program};
use crate::reaper::Reaper;

/// Why a stream is not there.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A kind that is not known.
    #[error("stream {0:?} is none of: a path of a fifo, fifo://, file:// and binary:// with an absolute path")]
    Unknown(String),
    /// A path.
    #[error("cannot open the {kind} {} for the {stream} of the container: {source}", path.display())]
    Open {
        /// A fifo or file.
        kind: &'static str,
        /// Which stream.
        stream: &'static str,
        /// Where.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// A pipe.
    #[error("cannot make a pipe to the log program {}: {source}", program.display())]
    Pipe {
        /// The program.
        program: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// A log program.
    #[error("cannot start the log program {}: {source}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// It never said that it is ready.
    #[error("the log program {} did not say within {limit_s} s that it is ready, by closing descriptor 5", program.display())]
    NotReady {
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit_s: u64,
    },
    /// The terminal.
    #[error("cannot {intent} the terminal of the container: {source}")]
    Terminal {
        /// What was tried.
        intent: &'static str,
        /// The errno.
        source: io::Error,
    },
}

/// Where the streams of a process lead, as the request says.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Input.
    pub stdin: String,
    /// Output.
    pub stdout: String,
    /// Errors; none of a terminal.
    pub stderr: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// What a log program and the pipes to it are made of.
#[derive(Debug)]
pub struct Setting<'a> {
    /// Who reaps.
    pub reaper: &'a Arc<Reaper>,
    /// Of which container.
    pub container: &'a str,
    /// In which namespace of containerd.
    pub namespace: &'a str,
    /// Who owns pipes: user and group.
    pub owner: (u32, u32),
}

/// Where one stream leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Null,
    /// A fifo.
    Fifo(PathBuf),
    /// A file that grows.
    File(PathBuf),
    /// A program.
    Program(Program),
}

impl Place {
    /// Reads the words of a request.
    pub fn parse(text: &str) -> Result<Self, StreamError> {
        let unknown = || StreamError::Unknown(text.to_owned());
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Ok(Place::Null),
                path if path.starts_with('/') => Ok(Place::Fifo(PathBuf::from(path))),
                _ => Err(unknown()),
            };
        };
        if !rest.starts_with('/') {
            return Err(unknown());
        }
        match scheme {
            "fifo" => Ok(Place::Fifo(PathBuf::from(rest))),
            "file" => Ok(Place::File(PathBuf::from(rest.split('?').next().unwrap_or_default()))),
            "binary" => Ok(Place::Program(Program::parse(rest))),
            _ => Err(unknown()),
        }
    }
}

/// What the shim keeps of streams that lead past it.
#[derive(Debug, Default)]
pub struct Kept {
    input: Option<OwnedFd>,
    outputs: Vec<OwnedFd>,
    program: Option<LogProgram>,
}

/// The ends for the process.
#[derive(Debug)]
pub struct Ends {
    /// Input.
    pub stdin: Stdio,
    /// Output.
    pub stdout: Stdio,
    /// Errors.
    pub stderr: Stdio,
}

/// Opens the streams of a process without a terminal.
pub async fn open(places: &Places, setting: &Setting<'_>) -> Result<(Ends, Kept), StreamError> {
    let mut kept = Kept::default();
    let stdin = match Place::parse(&places.stdin)? {
        Place::Null => Stdio::null(),
        Place::Fifo(path) => {
            let (reader, writer) = open_input(&path).map_err(|source| opening("fifo", "input", &path, source))?;
            kept.input = Some(writer);
            Stdio::from(reader)
        }
        Place::File(_) | Place::Program(_) => return Err(StreamError::Unknown(places.stdin.clone())),
    };
    let stdout = Place::parse(&places.stdout)?;
    if let Place::Program(program) = stdout {
        let (log, stdout, stderr) = LogProgram::start(program, setting).await?;
        kept.program = Some(log);
        return Ok((Ends { stdin, stdout: stdout.into(), stderr: stderr.into() }, kept));
    }
    let stderr = Place::parse(&places.stderr)?;
    let is_one_file = matches!(stdout, Place::File(_)) && stdout == stderr;
    let out = output(&stdout, "output", &mut kept)?;
    let err = match (&out, is_one_file) {
        // One description, so that neither writes over the other.
        (Some(out), true) => Some(out.try_clone().map_err(|source| opening("file", "errors", Path::new(""), source))?),
        _ => output(&stderr, "errors", &mut kept)?,
    };
    Ok((Ends { stdin, stdout: stdio(out), stderr: stdio(err) }, kept))
}

fn stdio(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

fn opening(kind: &'static str, stream: &'static str, path: &Path, source: io::Error) -> StreamError {
    StreamError::Open { kind, stream, path: path.to_path_buf(), source }
}

fn output(place: &Place, stream: &'static str, kept: &mut Kept) -> Result<Option<OwnedFd>, StreamError> {
    match place {
        Place::Null => Ok(None),
        Place::Fifo(path) => {
            let (reader, writer) = open_output(path).map_err(|source| opening("fifo", stream, path, source))?;
            kept.outputs.push(reader);
            Ok(Some(writer))
        }
        Place::File(path) => open_file(path).map(Some).map_err(|source| opening("file", stream, path, source)),
        Place::Program(program) => Err(StreamError::Unknown(program.path.display().to_string())),
    }
}

/// A file that grows; its directory is made as well.
pub fn open_file(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644);
    options.open(path).map(OwnedFd::from)
}

fn fifo(path: &Path, flags: libc::c_int, read: bool, write: bool) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(read).write(write).custom_flags(flags | libc::O_NOFOLLOW);
    let file: File = options.open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a fifo"));
    }
    Ok(file.into())
}

/// Both ends of an output: one for reading that is kept, one for the process. Neither open waits (fifo(7)).
pub fn open_output(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let reader = fifo(path, libc::O_NONBLOCK, true, false)?;
    Ok((reader, fifo(path, 0, false, true)?))
}

/// Both ends of an input: one for the process, one for writing that is kept.
pub fn open_input(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    // An end for both never waits, and lets the others not wait.
    let both = fifo(path, libc::O_NONBLOCK, true, true)?;
    let reader = fifo(path, 0, true, false)?;
    let writer = fifo(path, libc::O_NONBLOCK, false, true)?;
    drop(both);
    Ok((reader, writer))
}

impl Kept {
    /// The process sees the end of its input when containerd has closed its end as well.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Lets go of all; a log program has until its time is over to write what it got.
    pub async fn release(&mut self) {
        self.input = None;
        self.outputs.clear();
        if let Some(program) = self.program.take() {
            program.finish().await;
        }
    }
}

/// A descriptor whose reads and writes do not wait, and that is watched instead.
#[expect(deprecated, reason = "unsound only for types that give another number each time, which OwnedFd does not")]
pub fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    apex_sys::terminal::set_nonblocking(fd.as_fd())?;
    AsyncFd::new(fd)
}

/// Gives a pipe to a user and group; root's stay as they are.
pub fn own(fd: impl AsFd, owner: (u32, u32)) -> io::Result<()> {
    if owner == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(owner.0), nix::unistd::Gid::from_raw(owner.1));
    Ok(nix::unistd::fchown(fd, Some(uid), Some(gid))?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    struct Fifo(PathBuf);

    impl Fifo {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("apex-shim-{name}-{}", std::process::id()));
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
            Fifo(path)
        }
    }

    impl Drop for Fifo {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn places_are_paths_and_addresses() {
        assert_eq!(Place::parse("").unwrap(), Place::Null);
        assert_eq!(Place::parse("/a/b").unwrap(), Place::Fifo(PathBuf::from("/a/b")));
        assert_eq!(Place::parse("file:///var/log/x").unwrap(), Place::File(PathBuf::from("/var/log/x")));
        for bad in ["a", "file://x", "http:///x", "://"] {
            assert!(matches!(Place::parse(bad), Err(StreamError::Unknown(_))), "{bad}");
        }
    }

    #[test]
    fn a_reader_that_goes_does_not_break_the_writer() {
        let fifo = Fifo::new("out");
        let (_kept, writer) = open_output(&fifo.0).unwrap();
        drop(File::open(&fifo.0).unwrap());
        File::from(writer).write_all(b"still here").unwrap();
        let mut text = [0; 10];
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK).open(&fifo.0).unwrap().read_exact(&mut text).unwrap();
        assert_eq!(&text, b"still here");
    }

    #[test]
    fn input_ends_when_both_have_closed() {
        let fifo = Fifo::new("in");
        let (reader, kept) = open_input(&fifo.0).unwrap();
        OpenOptions::new().write(true).open(&fifo.0).unwrap().write_all(b"x").unwrap();
        let mut reader = File::from(reader);
        let mut byte = [0];
        assert_eq!(reader.read(&mut byte).unwrap(), 1);
        apex_sys::terminal::set_nonblocking(reader.as_fd()).unwrap();
        assert_eq!(reader.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(kept);
        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn a_file_in_place_of_a_fifo_is_refused() {
        let path = std::env::temp_dir().join(format!("apex-shim-file-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        assert_eq!(open_output(&path).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::fs::remove_file(&path).unwrap();
    }
}
