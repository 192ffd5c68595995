//! What can go wrong with a request, and the code that containerd sees.

use std::io;
use std::path::PathBuf;

use containerd_shim_protos::ttrpc::{self, Code, get_status};

use crate::io::StreamError;
use crate::options::OptionsError;
use crate::rootfs::RootfsError;
use crate::runtime::RuntimeError;

/// Why a request is refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such container.
    #[error("container {0} is not of this shim; it was deleted or never created here")]
    NoContainer(String),
    /// No such exec.
    #[error("container {container} has no exec {exec}")]
    NoExec {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// An id that is taken.
    #[error("{0} exists already; delete it first or take another id")]
    Exists(String),
    /// A name that is not one.
    #[error("id {0:?} cannot be used: letters, digits and _ . - only, and it starts with a letter or digit")]
    Id(String),
    /// Not in the state for it.
    #[error("cannot {intent} {name}: it is {state}")]
    State {
        /// What was asked.
        intent: &'static str,
        /// Of whom.
        name: String,
        /// How it is.
        state: &'static str,
    },
    /// A signal to a process that has ended.
    #[error("process already finished: {0}")]
    Finished(String),
    /// Checkpoints.
    #[error("checkpoint and restore are not supported by apex; run the container with io.containerd.runc.v2 for it")]
    Checkpoint,
    /// A part of a request that is not there or not readable.
    #[error("the request has no readable {0}")]
    Malformed(&'static str),
    /// A file of the bundle.
    #[error("cannot {intent} {}: {source}", path.display())]
    File {
        /// What was tried.
        intent: &'static str,
        /// The file.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// JSON of the bundle.
    #[error("cannot read {} as JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Metrics.
    #[error("cannot read the counters of {container}: {source}")]
    Stats {
        /// The container.
        container: String,
        /// The errno.
        source: io::Error,
    },
    /// A signal.
    #[error("cannot send signal {signal} to process {pid}: {source}")]
    Signal {
        /// Its number.
        signal: i32,
        /// To whom.
        pid: i32,
        /// The errno.
        source: io::Error,
    },
    /// The size of a terminal.
    #[error("cannot set the size of the terminal of {name}: {source}")]
    Resize {
        /// Whose.
        name: String,
        /// The errno.
        source: io::Error,
    },
    /// A task of this process panicked or was dropped.
    #[error("the request was given up inside of the shim: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// Options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Mounts.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// Streams.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The OCI runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Error {
    /// The file that could not be used, and for what.
    pub fn file(intent: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Error::File { intent, path: path.into(), source }
    }

    fn code(&self) -> Code {
        match self {
            Error::NoContainer(_) | Error::NoExec { .. } | Error::Finished(_) => Code::NOT_FOUND,
            Error::Stats { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::NOT_FOUND,
            Error::Exists(_) => Code::ALREADY_EXISTS,
            Error::Id(_) | Error::Malformed(_) | Error::Options(_) | Error::Json { .. } => Code::INVALID_ARGUMENT,
            Error::State { .. } => Code::FAILED_PRECONDITION,
            Error::Checkpoint => Code::UNIMPLEMENTED,
            Error::Rootfs(RootfsError::Unsupported { .. }) => Code::UNIMPLEMENTED,
            Error::Runtime(error) if error.says_gone() => Code::NOT_FOUND,
            Error::File { .. }
            | Error::Stats { .. }
            | Error::Signal { .. }
            | Error::Resize { .. }
            | Error::Task(_)
            | Error::Rootfs(_)
            | Error::Stream(_)
            | Error::Runtime(_) => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(get_status(error.code(), error))
    }
}
