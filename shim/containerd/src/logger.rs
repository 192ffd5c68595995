//! Log programs, as containerd documents `binary://`: descriptor 3 is the output, 4 the errors, and closing 5 says that it is ready.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::io::{Setting, StreamError, own};
use crate::reaper::{Exit, Spawned};

/// How long a program has to say that it is ready.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long it has to end when its input has ended.
const END_LIMIT: Duration = Duration::from_secs(12);
/// And when it was asked to.
const TERM_LIMIT: Duration = Duration::from_secs(2);

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Reads what follows `binary://`: a path, and arguments as a query whose keys and values each are one.
    pub fn parse(text: &str) -> Self {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let words = pairs.flat_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            [key, value].into_iter().filter(|word| !word.is_empty())
        });
        Program { path: PathBuf::from(decode(path, false)), arguments: words.map(|word| decode(word, true)).collect() }
    }
}

/// Resolves %XX, and in a query + for a space (RFC 3986).
fn decode(text: &str, is_query: bool) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).filter(|_| *first == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if is_query && *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// A log program that runs.
#[derive(Debug)]
pub struct LogProgram {
    path: PathBuf,
    spawned: Spawned,
    end: oneshot::Receiver<Exit>,
}

impl LogProgram {
    /// Starts it and waits until it is ready. The descriptors are for the container: output and errors.
    pub async fn start(program: Program, setting: &Setting<'_>) -> Result<(Self, OwnedFd, OwnedFd), StreamError> {
        let pipe = |source| StreamError::Pipe { program: program.path.clone(), source };
        let (out_reader, out_writer) = io::pipe().map_err(pipe)?;
        let (err_reader, err_writer) = io::pipe().map_err(pipe)?;
        let (ready_reader, ready_writer) = io::pipe().map_err(pipe)?;
        own(&out_writer, setting.owner).and_then(|()| own(&err_writer, setting.owner)).map_err(pipe)?;
        let failed = |source| StreamError::Program { program: program.path.clone(), source };
        // It must get descriptors 3 to 5: this same binary, as a step between, puts them there and becomes the program. By this name it
        // is the same one also when another was installed since.
        let mut command = Command::new("/proc/self/exe");
        command.arg("log").arg(&program.path).args(&program.arguments);
        command.env("CONTAINER_ID", setting.container).env("CONTAINER_NAMESPACE", setting.namespace);
        command.stdin(out_reader).stdout(err_reader).stderr(ready_writer);
        std::fs::metadata(&program.path).map_err(failed)?;
        let (spawned, end) = setting.reaper.spawn(&mut command).map_err(failed)?;
        drop(command);
        let log = LogProgram { path: program.path.clone(), spawned, end };
        let mut ready = pipe::Receiver::from_owned_fd(ready_reader.into()).map_err(pipe)?;
        let mut byte = [0];
        match tokio::time::timeout(READY_LIMIT, ready.read(&mut byte)).await {
            Ok(Ok(_)) => Ok((log, out_writer.into(), err_writer.into())),
            Ok(Err(source)) => Err(log.give_up(failed(source))),
            Err(_) => {
                Err(log
                    .give_up(StreamError::NotReady { program: program.path.clone(), limit_s: READY_LIMIT.as_secs() }))
            }
        }
    }

    fn give_up(self, error: StreamError) -> StreamError {
        self.spawned.signal(Signal::SIGKILL);
        error
    }

    /// Waits until it has written everything, and ends it when it does not end.
    pub async fn finish(mut self) {
        let limits = [(END_LIMIT, Signal::SIGTERM), (TERM_LIMIT, Signal::SIGKILL)];
        for (limit, signal) in limits {
            if tokio::time::timeout(limit, &mut self.end).await.is_ok() {
                return;
            }
            log::warn!("log program {} does not end, {signal} is sent", self.path.display());
            self.spawned.signal(signal);
        }
    }
}

/// The step between: gives streams 0, 1 and 2 the numbers 3, 4 and 5, and becomes the program. Returns only on failure.
pub fn become_program(words: &[String]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no program is named");
    };
    let place = || -> io::Result<()> {
        // Out of the way of 3, 4 and 5, and closed when the program starts.
        let null = {
            let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
            apex_sys::fs::copy_from(opened.as_fd(), 10)?
        };
        apex_sys::fs::place(io::stdin().as_fd(), 3)?;
        apex_sys::fs::place(io::stdout().as_fd(), 4)?;
        apex_sys::fs::place(io::stderr().as_fd(), 5)?;
        Ok((0..3).try_for_each(|number| apex_sys::fs::place(null.as_fd(), number))?)
    };
    match place() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_a_list_of_arguments() {
        let program = Program::parse("/usr/bin/log%20it?id=a+b&quiet&path=%2Fx");
        assert_eq!(program.path, PathBuf::from("/usr/bin/log it"));
        assert_eq!(program.arguments, ["id", "a b", "quiet", "path", "/x"]);
        assert!(Program::parse("/bin/x").arguments.is_empty());
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(decode("100%", true), "100%");
        assert_eq!(decode("%zz%4", false), "%zz%4");
    }
}
