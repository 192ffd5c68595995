//! Why a request was not answered as hoped: one set of kinds, as gRPC codes and as HTTP statuses.

use tonic::{Code, Status};

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// There is no such sandbox.
    NotFound,
    /// Whoever asked may not.
    Denied,
    /// It does not go with the state that things are in.
    Conflict,
    /// A limit is reached.
    Exhausted,
    /// Not now.
    Unavailable,
    /// Apex failed.
    Internal,
}

impl Kind {
    /// Each with its word, its gRPC code and its HTTP status.
    const ALL: [(Kind, &str, Code, u16); 7] = [
        (Kind::Invalid, "invalid", Code::InvalidArgument, 400),
        (Kind::NotFound, "not-found", Code::NotFound, 404),
        (Kind::Denied, "denied", Code::PermissionDenied, 403),
        (Kind::Conflict, "conflict", Code::FailedPrecondition, 409),
        (Kind::Exhausted, "exhausted", Code::ResourceExhausted, 429),
        (Kind::Unavailable, "unavailable", Code::Unavailable, 503),
        (Kind::Internal, "internal", Code::Internal, 500),
    ];

    fn row(self) -> (&'static str, Code, u16) {
        let row = Self::ALL.iter().find(|row| row.0 == self);
        row.map_or(("internal", Code::Internal, 500), |(_, word, code, status)| (*word, *code, *status))
    }

    /// Its word in JSON.
    pub fn word(self) -> &'static str {
        self.row().0
    }

    /// The one with this HTTP status.
    pub(crate) fn of_status(status: u16) -> Option<Kind> {
        Self::ALL.iter().find(|row| row.3 == status).map(|row| row.0)
    }

    /// Its HTTP status.
    pub fn status(self) -> u16 {
        self.row().2
    }
}

/// An error with its words: what was tried, what stood in the way, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Its kind.
    pub kind: Kind,
    /// For people.
    pub words: String,
}

/// Bytes of an error's words: they repeat what was asked, and gRPC carries them in a header.
const WORDS_BYTES_MAX: usize = 2048;

impl Error {
    /// One of this kind. Words beyond 2 KiB are cut.
    pub fn new(kind: Kind, words: impl Into<String>) -> Error {
        let mut words = words.into();
        if words.len() > WORDS_BYTES_MAX {
            words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
            words.push_str("...");
        }
        Error { kind, words }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::new(error.kind.row().1, error.words)
    }
}

impl From<Status> for Error {
    /// On the client's side. A code that apexd never sends is an internal error.
    fn from(status: Status) -> Error {
        let kind = match status.code() {
            // What tonic itself says of a message that is too large.
            Code::OutOfRange => Kind::Invalid,
            code => Kind::ALL.iter().find(|row| row.2 == code).map_or(Kind::Internal, |row| row.0),
        };
        Error::new(kind, status.message())
    }
}
