//! What containerd passes on the command line, by the conventions of Go's flag package.

/// What this process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes sure that a shim serves the group of this container, and prints its address.
    Start,
    /// Cleans up after a shim that is gone.
    Delete,
    /// Is the shim.
    Serve,
    /// Becomes the program of a `binary://` log.
    Log,
}

/// The flags; unknown ones are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub action: Action,
    /// `-debug`: more is logged.
    pub debug: bool,
    /// `-namespace`: the namespace of containerd that the container is in.
    pub namespace: String,
    /// `-id`: the container.
    pub id: String,
    /// `-bundle`: its directory, when it is not the working directory.
    pub bundle: String,
    /// `-address`: containerd's own socket.
    pub address: String,
    /// `-socket`: what it serves on; the socket itself is inherited.
    pub socket: String,
    /// `-v`: print the version and end.
    pub version: bool,
    /// `-info`: print what the runtime can do and end.
    pub info: bool,
    /// What follows the action; only the log has any.
    pub rest: Vec<String>,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    /// An unknown flag.
    #[error("flag {0} is unknown; containerd runs this program, see docs/guides/containers.md")]
    Unknown(String),
    /// A flag at the end.
    #[error("flag {0} needs a value")]
    NoValue(String),
    /// Neither start nor delete.
    #[error("action {0:?} is unknown; start, delete or none, which serves")]
    Action(String),
    /// A name that could leave its directory.
    #[error("container id {0:?} cannot be used: letters, digits and _ . - only, and it starts with a letter or digit")]
    Id(String),
}

impl Arguments {
    /// Reads a command line without the program's name.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut parsed = Arguments {
            action: Action::Serve,
            debug: false,
            namespace: String::new(),
            id: String::new(),
            bundle: String::new(),
            address: String::new(),
            socket: String::new(),
            version: false,
            info: false,
            rest: Vec::new(),
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                parsed.action = action(&argument)?;
                parsed.rest.extend(arguments);
                break;
            };
            let (name, value) =
                flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
            let is_on = value.as_deref().is_none_or(|value| value == "true");
            let mut text =
                || value.clone().or_else(|| arguments.next()).ok_or(ArgumentError::NoValue(argument.clone()));
            match name {
                "debug" => parsed.debug = is_on,
                "v" | "version" => parsed.version = is_on,
                "info" => parsed.info = is_on,
                "namespace" => parsed.namespace = text()?,
                "id" => parsed.id = text()?,
                "bundle" => parsed.bundle = text()?,
                "address" => parsed.address = text()?,
                "socket" => parsed.socket = text()?,
                // Where to publish events stands in the environment since containerd 1.4.
                "publish-binary" => drop(text()?),
                _ => return Err(ArgumentError::Unknown(argument)),
            }
        }
        Ok(parsed)
    }

    /// The id, when it can be a name of a file.
    pub fn checked_id(&self) -> Result<&str, ArgumentError> {
        if is_identifier(&self.id) { Ok(&self.id) } else { Err(ArgumentError::Id(self.id.clone())) }
    }
}

/// Whether a name of a container or exec can be one of a file: what containerd itself asks of identifiers, and of bounded length.
pub fn is_identifier(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    name.len() <= 255
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.bytes().all(is_plain)
}

fn action(word: &str) -> Result<Action, ArgumentError> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        "log" => Ok(Action::Log),
        other => Err(ArgumentError::Action(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_line_of_containerd_is_read() {
        let parsed =
            parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a1 -debug start")
                .unwrap();
        assert_eq!((parsed.action, parsed.debug), (Action::Start, true));
        assert_eq!((parsed.namespace.as_str(), parsed.id.as_str()), ("k8s.io", "a1"));
        assert_eq!(parse("--id=x -bundle /b delete").unwrap().bundle, "/b");
        assert_eq!(parse("-id x").unwrap().action, Action::Serve);
        assert!(parse("-v").unwrap().version);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(parse("-ids x start"), Err(ArgumentError::Unknown("-ids".to_owned())));
        assert_eq!(parse("-id"), Err(ArgumentError::NoValue("-id".to_owned())));
        assert_eq!(parse("stop"), Err(ArgumentError::Action("stop".to_owned())));
    }

    #[test]
    fn an_id_is_a_plain_name() {
        for good in ["a", "a.b-c_d", "0", &"a".repeat(255)] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "a\n", "ä", &"a".repeat(256)] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }
}
