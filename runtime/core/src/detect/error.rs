//! Why rules cannot be used. Every message names file and line, what is wrong and what is accepted instead.

use crate::policy::Origin;

/// Rules that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// More text than rules can sensibly have.
    #[error("{file}: the rules have {bytes} bytes; at most {max} are accepted")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// The text is not TOML.
    #[error("{at}: not valid TOML: {message}")]
    Syntax {
        /// Where.
        at: Origin,
        /// What the parser says.
        message: String,
    },
    /// A key or word that does not exist there.
    #[error("{at}: unknown {what} `{name}`{} (accepted here: {})", did_you_mean(nearest), accepted.join(", "))]
    Unknown {
        /// Where.
        at: Origin,
        /// `key`, `field`, `event`, `list`, ...
        what: &'static str,
        /// The name.
        name: String,
        /// The valid one with the most similar name.
        nearest: Option<String>,
        /// All valid ones.
        accepted: Vec<String>,
    },
    /// A value of the wrong type, form or range.
    #[error("{at}: {message}")]
    Value {
        /// Where.
        at: Origin,
        /// What was found and what is accepted.
        message: String,
    },
    /// Two rules of one name.
    #[error("{at}: there is a rule `{id}` already, at {first}; give this one another `id`")]
    Twice {
        /// The second.
        at: Origin,
        /// Its id.
        id: String,
        /// The first.
        first: Origin,
    },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}
