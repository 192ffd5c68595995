//! Kinds of events by number: rules are found by them without a look at any other field.

use crate::event::What;

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind(u8);

/// As in the JSON of an event, in the order of [`Kind::of`].
const NAMES: [&str; 34] = [
    "start",
    "end",
    "fork",
    "exec",
    "exit",
    "socket",
    "connect",
    "send",
    "bind",
    "traffic",
    "open",
    "mkdir",
    "rename",
    "unlink",
    "link",
    "symlink",
    "chmod",
    "chown",
    "set-ids",
    "capset",
    "namespace",
    "ptrace",
    "bpf",
    "module",
    "memfd",
    "executable",
    "mount",
    "signal",
    "call",
    "calls",
    "refused",
    "lost",
    "dns",
    "look",
];

impl Kind {
    /// How many there are.
    pub const COUNT: usize = NAMES.len();

    /// Of an event.
    pub const fn of(what: &What) -> Kind {
        Kind(match what {
            What::Start(_) => 0,
            What::End(_) => 1,
            What::Fork { .. } => 2,
            What::Exec { .. } => 3,
            What::Exit { .. } => 4,
            What::Socket { .. } => 5,
            What::Connect { .. } => 6,
            What::Send { .. } => 7,
            What::Bind { .. } => 8,
            What::Traffic { .. } => 9,
            What::Open { .. } => 10,
            What::Mkdir { .. } => 11,
            What::Rename { .. } => 12,
            What::Unlink { .. } => 13,
            What::Link { .. } => 14,
            What::Symlink { .. } => 15,
            What::Chmod { .. } => 16,
            What::Chown { .. } => 17,
            What::SetIds { .. } => 18,
            What::Capset { .. } => 19,
            What::Namespace { .. } => 20,
            What::Ptrace { .. } => 21,
            What::Bpf { .. } => 22,
            What::Module { .. } => 23,
            What::Memfd { .. } => 24,
            What::Executable { .. } => 25,
            What::Mount { .. } => 26,
            What::Signal { .. } => 27,
            What::Call { .. } => 28,
            What::Calls { .. } => 29,
            What::Refused(_) => 30,
            What::Lost { .. } => 31,
            What::Dns { .. } => 32,
            What::Look { .. } => 33,
        })
    }

    /// The name in JSON and in rules.
    pub const fn name(self) -> &'static str {
        NAMES[self.0 as usize]
    }

    /// The kind of a name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::all().find(|kind| kind.name() == name)
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Kind> {
        (0..Kind::COUNT as u8).map(Kind)
    }

    /// For tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn names_are_those_of_the_events() {
        for (json, name) in [
            (r#""event":"set-ids","call":"setuid","id":0"#, "set-ids"),
            (r#""event":"lost","counts":{}"#, "lost"),
            (r#""event":"refused","call":"x","abi":"y","args":[0,0,0,0,0,0]"#, "refused"),
            (r#""event":"chown","path":"/x","owner":1,"group":1"#, "chown"),
            (r#""event":"executable","call":"x","address":1,"length":1,"writable":true"#, "executable"),
        ] {
            let line = format!(r#"{{"time_ns":1,"sandbox":1,"pid":1,"ppid":1,"uid":1,"comm":"x",{json}}}"#);
            let event: Event = serde_json::from_str(&line).expect(name);
            assert_eq!(Kind::of(&event.what).name(), name);
            assert_eq!(Kind::from_name(name), Some(Kind::of(&event.what)));
        }
        assert_eq!(Kind::from_name("none"), None);
    }
}
