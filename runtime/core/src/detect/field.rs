//! The fields that a rule can speak of, and where each is found in an event and in what is known of its process.
//!
//! A field that an event does not have matches no pattern. A field can have several values (a program is known by its file and by the name
//! that it was started under); a pattern then needs one of them.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use super::dns;
use super::kind::Kind;
use super::process::{Process, Processes};
use crate::event::{Address, Event, What};
use crate::refusal::Access;

/// What the values of a field look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Text; `*` matches anything.
    Text,
    /// A path; `*` stops at `/`.
    Path,
    /// A whole number.
    Number,
    /// Yes or no.
    Flag,
}

macro_rules! fields {
    ($($variant:ident = $name:literal, $shape:ident, $doc:literal;)+) => {
        /// A field of an event or of its process.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) enum Field { $(#[doc = $doc] $variant,)+ }

        impl Field {
            /// All of them.
            pub const ALL: &[Field] = &[$(Field::$variant,)+];
            /// The key of a rule.
            pub const fn name(self) -> &'static str {
                match self { $(Field::$variant => $name,)+ }
            }
            /// What its values look like.
            pub const fn shape(self) -> Shape {
                match self { $(Field::$variant => Shape::$shape,)+ }
            }
            /// What it means, for the reference.
            pub const fn doc(self) -> &'static str {
                match self { $(Field::$variant => $doc,)+ }
            }
        }
    };
}

fields! {
    Event = "event", Text, "kind of the event";
    Program = "program", Text, "program of the process: name of its file, and the name it was started under";
    Exe = "exe", Path, "program of the process as a path";
    Comm = "comm", Text, "name of the process";
    Args = "args", Text, "arguments of the process, joined by blanks";
    Arg = "arg", Text, "each argument of the process after the first";
    Script = "script", Text, "last component of the first argument that is no option: what an interpreter runs";
    Argc = "argc", Number, "number of arguments, the first included";
    Parent = "parent", Text, "program of the parent";
    ParentExe = "parent_exe", Path, "program of the parent as a path";
    ParentArgs = "parent_args", Text, "arguments of the parent, joined by blanks";
    Ancestor = "ancestor", Text, "program of the parent or of a parent of it, up to eight";
    AncestorArgs = "ancestor_args", Text, "arguments of the parent or of a parent of it, up to eight";
    Uid = "uid", Number, "user id of the process as the host numbers it";
    Pid = "pid", Number, "process; for `bind`, `same` and thresholds";
    Ppid = "ppid", Number, "its parent; for `bind`";
    Serves = "serves", Flag, "whether the process, or one that it was born of, took a port of its own: on loopback it may well be talking to itself";
    Path = "path", Path, "file, directory, new name, target of a mount, program of an exec, UNIX socket";
    From = "from", Path, "old name of a rename or link, what a symbolic link says";
    Name = "name", Text, "last component of `path`; name of a memfd";
    Dir = "dir", Path, "`path` without its last component";
    Extension = "extension", Text, "what follows the last dot of `name`";
    Stem = "stem", Path, "`path` without its extension";
    Added = "added", Text, "what a rename put behind the old name";
    Access = "access", Text, "what an open was for: `look`, `read`, `write`, `exec`";
    Create = "create", Flag, "whether an open would have made the file";
    Truncate = "truncate", Flag, "whether an open emptied the file";
    Executable = "executable", Flag, "whether a chmod made the file executable";
    SetUid = "set_uid", Flag, "whether a chmod made the file set-user-id";
    Fileless = "fileless", Flag, "whether the program of an exec has no name any more";
    Stdin = "stdin", Text, "standard input of the program of an exec: `inet` (a connection), `listener`, `unix`, `pipe`, `terminal`, `file`, `null`, `closed`, `other`";
    StdinPipe = "stdin_pipe", Number, "pipe that the standard input of the program of an exec is; for `bind`";
    StdoutPipe = "stdout_pipe", Number, "pipe that its standard output is; for `bind`";
    Class = "class", Text, "kind of address: `loopback`, `private`, `link-local`, `multicast`, `public`, `unix`, `abstract`, `other`";
    Host = "host", Text, "IP address";
    Port = "port", Number, "port";
    Bytes = "bytes", Number, "bytes of a datagram or of a `dns` message, where the source knows them";
    Qname = "qname", Text, "name that a `dns` event asks for, in small letters";
    Qparent = "qparent", Text, "the last labels of `qname` that the questions of one owner share: two, three below endings such as `co.uk`";
    Qtype = "qtype", Number, "type of the question of a `dns` event (16 is TXT)";
    Qdata = "qdata", Number, "letters of `qname` in front of `qparent` that stand in labels which look like data, not like words";
    Call = "call", Text, "name of the system call, where the event has one";
    Request = "request", Number, "request of ptrace, command of bpf";
    Target = "target", Number, "pid named by ptrace or a signal; a negative one is a group";
    Everyone = "everyone", Flag, "whether a signal went to all processes (pid -1)";
    Signal = "signal", Number, "number of the signal";
    Id = "id", Number, "user or group id asked for";
    Flags = "flags", Number, "CLONE_NEW* flags, new bits of a chmod, kind of a socket, also of a refused one";
    Family = "family", Number, "family of a socket (AF_*), also of a refused one";
    Writable = "writable", Flag, "whether executable memory is writable as well";
    Length = "length", Number, "bytes of executable memory";
    Arg0 = "arg0", Number, "first argument register of a `call` or `refused` event";
    Arg1 = "arg1", Number, "second argument register of a `call` or `refused` event";
    Failed = "failed", Flag, "whether it got an error";
    Error = "error", Text, "name of the error";
    Alive = "alive", Number, "processes of the sandbox that live";
    Clones = "clones", Number, "living processes of the sandbox that never executed a program of their own";
    Nesting = "nesting", Number, "how many parents in a row run the same program with the same arguments";
}

impl Field {
    /// The field of a key.
    pub fn from_name(name: &str) -> Option<Field> {
        Field::ALL.iter().copied().find(|field| field.name() == name)
    }
}

/// An event with what is known of its process.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub event: &'a Event,
    pub kind: Kind,
    pub processes: &'a Processes,
    pub process: &'a Process,
}

/// A value that is kept: bound to a variable or counted as distinct.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Text(Box<str>),
    Number(u64),
}

impl View<'_> {
    /// Asks `yes` about each text of a field until it agrees.
    pub fn any_text(&self, field: Field, yes: &mut dyn FnMut(&str) -> bool) -> bool {
        match field {
            Field::Event => yes(self.kind.name()),
            Field::Program => self.process.programs().any(&mut *yes),
            Field::Exe => yes(&self.process.exe),
            Field::Comm => yes(&self.event.comm),
            Field::Args => yes(&self.process.line),
            Field::Arg => self.process.args.iter().skip(1).any(|arg| yes(arg)),
            Field::Script => self.process.script().is_some_and(yes),
            Field::Parent => self.processes.parent(self.process).is_some_and(|parent| parent.programs().any(&mut *yes)),
            Field::ParentExe => self.processes.parent(self.process).is_some_and(|parent| yes(&parent.exe)),
            Field::ParentArgs => self.processes.parent(self.process).is_some_and(|parent| yes(&parent.line)),
            Field::Ancestor => self.processes.ancestors(self.process).any(|parent| parent.programs().any(&mut *yes)),
            Field::AncestorArgs => self.processes.ancestors(self.process).any(|parent| yes(&parent.line)),
            Field::Path | Field::From | Field::Name | Field::Dir | Field::Extension | Field::Stem | Field::Added => {
                self.any_path(field, yes)
            }
            Field::Access => match &self.event.what {
                What::Open { access, .. } => yes(access_name(*access)),
                _ => false,
            },
            Field::Stdin => match &self.event.what {
                What::Exec { stdin: Some(stdin), .. } => yes(stdin.name()),
                _ => false,
            },
            Field::Class => self.address().is_some_and(|address| yes(class(address))),
            Field::Host => self.inet().is_some_and(|(host, _)| yes(&host.to_string())),
            Field::Qname => self.qname().is_some_and(|name| yes(&name)),
            Field::Qparent => self.qname().is_some_and(|name| yes(dns::parent(&name))),
            Field::Call => self.call().is_some_and(yes),
            Field::Error => match self.event.error {
                Some(error) => yes(error.name().map_or_else(|| error.to_string().into(), Cow::Borrowed).as_ref()),
                None => false,
            },
            _ => false,
        }
    }

    fn any_path(&self, field: Field, yes: &mut dyn FnMut(&str) -> bool) -> bool {
        let (from, path) = self.paths();
        match field {
            Field::From => from.is_some_and(|from| yes(from) || plain(from).is_some_and(|plain| yes(&plain))),
            Field::Path => path.is_some_and(|path| yes(path) || plain(path).is_some_and(|plain| yes(&plain))),
            Field::Name => match &self.event.what {
                What::Memfd { name } => yes(name),
                _ => path.is_some_and(|path| yes(name_of(path))),
            },
            Field::Dir => path.is_some_and(|path| yes(dir_of(path))),
            Field::Stem => path.is_some_and(|path| {
                let extension = extension_of(path).map_or(0, |extension| extension.len() + 1);
                extension > 0 && yes(&path[..path.len() - extension])
            }),
            Field::Extension => path.and_then(extension_of).is_some_and(yes),
            _ => from.zip(path).and_then(|(from, to)| added(from, to)).is_some_and(yes),
        }
    }

    /// The number in a field.
    pub fn number(&self, field: Field) -> Option<u64> {
        match (field, &self.event.what) {
            (Field::Argc, _) => Some(self.process.args.len() as u64).filter(|count| *count > 0),
            (Field::Uid, _) => Some(u64::from(self.event.uid)),
            (Field::Pid, _) => Some(u64::from(self.event.pid)),
            (Field::Ppid, _) => Some(u64::from(self.process.ppid)),
            (Field::Alive, _) => Some(self.processes.alive(self.event.sandbox)),
            (Field::Clones, _) => Some(self.processes.clones(self.event.sandbox)),
            (Field::Nesting, _) => Some(self.processes.nesting(self.process)),
            (Field::Port, _) => self.inet().map(|(_, port)| u64::from(port)),
            (Field::Bytes, What::Send { bytes, .. }) => Some(*bytes).filter(|bytes| *bytes > 0),
            (Field::Bytes, What::Dns { bytes, .. }) => Some(*bytes),
            (Field::StdinPipe, What::Exec { stdin_pipe, .. }) => *stdin_pipe,
            (Field::StdoutPipe, What::Exec { stdout_pipe, .. }) => *stdout_pipe,
            (Field::Qtype, What::Dns { qtype, .. }) => Some(*qtype).filter(|qtype| *qtype > 0),
            (Field::Qdata, What::Dns { .. }) => Some(self.qname().map_or(0, |name| dns::data(&name))),
            (Field::Request, What::Ptrace { request, .. }) => Some(*request),
            (Field::Request, What::Bpf { command }) => Some(u64::from(*command)),
            (Field::Target, What::Ptrace { target, .. }) => Some(u64::from(*target)),
            (Field::Target, What::Signal { target, .. }) => Some(u64::from(target.unsigned_abs())),
            (Field::Signal, What::Signal { signal, .. }) => u64::try_from(*signal).ok(),
            (Field::Signal, What::Exit { signal, .. }) => signal.and_then(|signal| u64::try_from(signal).ok()),
            (Field::Id, What::SetIds { id, .. }) => Some(u64::from(*id)),
            (Field::Flags, What::Namespace { flags, .. }) => Some(*flags),
            (Field::Flags, What::Chmod { mode, .. }) => Some(u64::from(*mode)),
            (Field::Flags, What::Socket { kind, .. }) => Some(u64::from(*kind)),
            (Field::Family, What::Socket { family, .. }) => Some(u64::from(*family)),
            // What the filter refuses is told as its call alone, where the tracer does not see the attempt.
            (Field::Flags, What::Refused(refused)) if refused.call == "socket" => Some(refused.args[1] & 0xf),
            (Field::Family, What::Refused(refused)) if refused.call == "socket" => {
                Some(u64::from(refused.args[0] as u32))
            }
            (Field::Length, What::Executable { length, .. }) => Some(*length),
            (Field::Arg0, What::Call { args, .. }) => Some(args[0]),
            (Field::Arg1, What::Call { args, .. }) => Some(args[1]),
            (Field::Arg0, What::Refused(refused)) => Some(refused.args[0]),
            (Field::Arg1, What::Refused(refused)) => Some(refused.args[1]),
            _ => None,
        }
    }

    /// The answer in a field.
    pub fn flag(&self, field: Field) -> Option<bool> {
        match (field, &self.event.what) {
            (Field::Failed, _) => Some(self.event.error.is_some()),
            (Field::Serves, _) => Some(self.process.serves),
            (Field::Create, What::Open { create, .. }) => Some(*create),
            (Field::Truncate, What::Open { truncate, .. }) => Some(*truncate),
            (Field::Executable, What::Chmod { mode, .. }) => Some(mode & 0o111 != 0),
            (Field::SetUid, What::Chmod { mode, .. }) => Some(mode & 0o4000 != 0),
            (Field::Fileless, What::Exec { fileless, .. }) => Some(*fileless),
            (Field::Writable, What::Executable { writable, .. }) => Some(*writable),
            (Field::Everyone, What::Signal { target, .. }) => Some(*target == -1),
            _ => None,
        }
    }

    /// The value of a field, the first where there are several.
    pub fn value(&self, field: Field) -> Option<Value> {
        match field.shape() {
            Shape::Number => self.number(field).map(Value::Number),
            Shape::Flag => self.flag(field).map(|flag| Value::Number(u64::from(flag))),
            Shape::Text | Shape::Path => {
                let mut found = None;
                self.any_text(field, &mut |text| {
                    found = Some(Value::Text(plain(text).unwrap_or_else(|| text.to_owned()).into_boxed_str()));
                    true
                });
                found
            }
        }
    }

    /// A digest of [`View::value`] that is cheap to keep.
    pub fn digest(&self, field: Field) -> Option<u64> {
        match field.shape() {
            Shape::Number => self.number(field).map(|number| digest(&number)),
            Shape::Flag => self.flag(field).map(|flag| digest(&flag)),
            Shape::Text | Shape::Path => {
                let mut found = None;
                self.any_text(field, &mut |text| {
                    found = Some(plain(text).map_or_else(|| digest(text), |plain| digest(plain.as_str())));
                    true
                });
                found
            }
        }
    }

    fn address(&self) -> Option<&Address> {
        match &self.event.what {
            What::Connect { address }
            | What::Send { address, .. }
            | What::Dns { address, .. }
            | What::Bind { address } => Some(address),
            _ => None,
        }
    }

    fn inet(&self) -> Option<(IpAddr, u16)> {
        self.address().and_then(Address::inet)
    }

    /// In small letters: resolvers change them at will.
    fn qname(&self) -> Option<String> {
        match &self.event.what {
            What::Dns { qname, .. } if !qname.is_empty() => Some(qname.to_ascii_lowercase()),
            _ => None,
        }
    }

    fn call(&self) -> Option<&str> {
        match &self.event.what {
            What::SetIds { call, .. }
            | What::Namespace { call, .. }
            | What::Ptrace { call, .. }
            | What::Module { call }
            | What::Executable { call, .. }
            | What::Mount { call, .. } => Some(call),
            What::Call { name, .. } => Some(name),
            What::Refused(refused) => Some(&refused.call),
            What::Bpf { .. } => Some("bpf"),
            What::Capset { .. } => Some("capset"),
            What::Memfd { .. } => Some("memfd_create"),
            _ => None,
        }
    }

    /// Old name and name.
    fn paths(&self) -> (Option<&str>, Option<&str>) {
        match &self.event.what {
            What::Exec { path, .. }
            | What::Open { path, .. }
            | What::Look { path, .. }
            | What::Mkdir { path }
            | What::Unlink { path }
            | What::Chmod { path, .. }
            | What::Chown { path, .. }
            | What::Mount { target: path, .. } => (None, Some(path)),
            What::Rename { from, to } | What::Link { from, to } => (Some(from), Some(to)),
            What::Symlink { target, path } => (Some(target), Some(path)),
            What::Connect { address: Address::Unix(path) }
            | What::Send { address: Address::Unix(path), .. }
            | What::Bind { address: Address::Unix(path) } => (None, Some(path)),
            _ => (None, None),
        }
    }
}

/// A digest of a value.
pub(super) fn digest<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The last component of a path.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn dir_of(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((dir, _)) => dir,
        None => "",
    }
}

fn extension_of(path: &str) -> Option<&str> {
    name_of(path).rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map(|(_, extension)| extension)
}

/// What a rename put behind the name: `x` to `y/x.old` adds `.old`.
fn added<'a>(from: &str, to: &'a str) -> Option<&'a str> {
    name_of(to).strip_prefix(name_of(from)).filter(|rest| !rest.is_empty())
}

/// The same path without `//`, `.` and `..` and without the way around by /proc/self/root; `None` when it is plain already.
fn plain(path: &str) -> Option<String> {
    const AROUND: [&str; 2] = ["/proc/self/root/", "/proc/thread-self/root/"];
    if !path.starts_with('/') {
        return None;
    }
    let around = AROUND.iter().find(|around| path.starts_with(**around));
    let is_odd = path.contains("//") || path.contains("/./") || path.contains("/../");
    let is_odd = is_odd || path.ends_with("/.") || path.ends_with("/..");
    if around.is_none() && !is_odd {
        return None;
    }
    let rest = around.map_or(path, |around| &path[around.len() - 1..]);
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

const fn access_name(access: Access) -> &'static str {
    match access {
        Access::Look => "look",
        Access::Read => "read",
        Access::Write => "write",
        Access::Exec => "exec",
    }
}

fn class(address: &Address) -> &'static str {
    let ip = match address {
        Address::Inet(address) => address.ip().to_canonical(),
        Address::Unix(_) | Address::Unnamed => return "unix",
        Address::Abstract(_) => return "abstract",
        Address::Family(_) => return "other",
    };
    // An unspecified destination is the host itself (connect(2) on Linux).
    if ip.is_loopback() || ip.is_unspecified() {
        return "loopback";
    }
    if ip.is_multicast() {
        return "multicast";
    }
    match ip {
        IpAddr::V4(ip) if ip.is_private() || ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64 => "private",
        IpAddr::V4(ip) if ip.is_link_local() => "link-local",
        IpAddr::V4(ip) if ip.is_broadcast() => "multicast",
        IpAddr::V6(ip) if ip.is_unique_local() => "private",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => "link-local",
        IpAddr::V4(_) | IpAddr::V6(_) => "public",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_class() {
        for (text, expected) in [
            ("inet:127.8.8.8:1", "loopback"),
            ("inet:0.0.0.0:1", "loopback"),
            ("inet6:[::1]:1", "loopback"),
            ("inet6:[::ffff:127.0.0.1]:1", "loopback"),
            ("inet:10.1.1.1:1", "private"),
            ("inet:100.64.0.1:1", "private"),
            ("inet6:[fd00::1]:1", "private"),
            ("inet:169.254.169.254:80", "link-local"),
            ("inet6:[fe80::1]:1", "link-local"),
            ("inet:224.0.0.1:1", "multicast"),
            ("inet:8.8.8.8:53", "public"),
            ("unix:/run/x", "unix"),
            ("abstract:x", "abstract"),
            ("family:16", "other"),
        ] {
            assert_eq!(class(&text.parse().expect(text)), expected, "{text}");
        }
    }

    #[test]
    fn ways_around_a_path_are_undone() {
        for (path, expected) in [
            ("/etc//shadow", Some("/etc/shadow")),
            ("/etc/x/../shadow", Some("/etc/shadow")),
            ("/proc/self/root/etc/shadow", Some("/etc/shadow")),
            ("/../../etc/./shadow", Some("/etc/shadow")),
            ("/etc/.", Some("/etc")),
            ("/etc/shadow", None),
            ("relative/../x", None),
        ] {
            assert_eq!(plain(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn parts_of_names() {
        assert_eq!(
            (extension_of("/a.b/c"), extension_of("/a/.bashrc"), extension_of("x.tar.gz")),
            (None, None, Some("gz"))
        );
        assert_eq!((dir_of("/x"), dir_of("/a/x"), dir_of("x")), ("/", "/a", ""));
        assert_eq!(
            (added("/a/x", "/b/x.old"), added("/a/x", "/a/y"), added("/a/x", "/b/x")),
            (Some(".old"), None, None)
        );
    }
}
