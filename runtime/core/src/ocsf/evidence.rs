//! Events and processes of a finding in OCSF's shape.

use super::shape::{Api, Connection, Endpoint, Evidence, File, Process, Response, User};
use crate::event::{Address, Event, What};
use crate::finding::{ANCESTRY_MAX, EVIDENCE_MAX, Finding};

/// Longest command line, in bytes: sixteen ancestors with the arguments of a linker must not make a megabyte.
const LINE_BYTES_MAX: usize = 2048;

/// `file.type_id`.
mod kind {
    pub const UNKNOWN: u32 = 0;
    pub const FOLDER: u32 = 2;
    pub const SOCKET: u32 = 5;
    pub const SYMLINK: u32 = 7;
    pub const EXECUTABLE: u32 = 8;
}

/// `network_connection_info.direction_id`.
mod direction {
    pub const UNKNOWN: u32 = 0;
    pub const OUTBOUND: u32 = 2;
    pub const LOCAL: u32 = 4;
}

/// One for each event; the chain of parents stands with the first that the finding's own process did.
pub fn all(finding: &Finding) -> Vec<Evidence> {
    let events = &finding.evidence[..finding.evidence.len().min(EVIDENCE_MAX)];
    let own = finding.ancestry.first().map(|process| process.pid);
    let mut chain = chain(finding);
    let mut all = Vec::with_capacity(events.len() + 1);
    for event in events {
        let whole = (own == Some(event.pid)).then(|| chain.take()).flatten();
        all.push(evidence(event, whole));
    }
    if let Some(process) = chain {
        let alone = Evidence { process: Some(process), ..bare("ancestry") };
        all.push(alone);
    }
    all
}

fn chain(finding: &Finding) -> Option<Process> {
    let ancestors = &finding.ancestry[..finding.ancestry.len().min(ANCESTRY_MAX)];
    ancestors.iter().rev().fold(None, |parent, process| {
        // The oldest that was seen still names its parent.
        let unseen = (process.ppid != 0).then(|| nameless(process.ppid));
        Some(Process {
            pid: process.pid,
            name: Some(process.comm.clone()),
            cmd_line: (!process.args.is_empty()).then(|| words(&process.args)),
            file: (!process.exe.is_empty()).then(|| file(&process.exe, kind::EXECUTABLE)),
            user: Some(User { uid: process.uid.to_string() }),
            parent_process: parent.or(unseen).map(Box::new),
        })
    })
}

fn nameless(pid: u32) -> Process {
    Process { pid, name: None, cmd_line: None, file: None, user: None, parent_process: None }
}

fn bare(name: &str) -> Evidence {
    Evidence {
        name: name.to_owned(),
        process: None,
        file: None,
        src_endpoint: None,
        dst_endpoint: None,
        connection_info: None,
        api: None,
        data: None,
    }
}

fn evidence(event: &Event, whole: Option<Process>) -> Evidence {
    let process = whole.or_else(|| (event.pid != 0).then(|| doer(event)));
    let (src, dst) = endpoints(&event.what);
    let connection = match &event.what {
        What::Connect { address } | What::Send { address, .. } => Some(connection(address, direction::OUTBOUND)),
        What::Bind { address } => Some(connection(address, direction::UNKNOWN)),
        _ => None,
    };
    // An answer needs the call that it answers; for the calls of a file the kind of event is the nearest word.
    let operation = operation(&event.what).or(event.error.map(|_| event.what.name()));
    let response = event.error.map(|error| Response { code: error.0, error: error.to_string() });
    Evidence {
        process,
        file: touched(&event.what),
        src_endpoint: src,
        dst_endpoint: dst,
        connection_info: connection,
        api: operation.map(|operation| Api { operation: operation.to_owned(), response }),
        data: Some(cut(event)),
        ..bare(event.what.name())
    }
}

/// The event with no more arguments than fit a line; it says so itself.
fn cut(event: &Event) -> Event {
    let mut event = event.clone();
    if let What::Exec { args, cut, .. } = &mut event.what {
        let mut room = LINE_BYTES_MAX;
        let kept = args.iter().take_while(|word| {
            let fits = word.len() < room;
            room = room.saturating_sub(word.len() + 1);
            fits
        });
        let kept = kept.count();
        *cut |= kept < args.len();
        args.truncate(kept);
    }
    event
}

fn doer(event: &Event) -> Process {
    let exec = match &event.what {
        What::Exec { path, args, .. } if event.error.is_none() => Some((file(path, kind::EXECUTABLE), words(args))),
        _ => None,
    };
    let (program, line) = exec.unzip();
    Process {
        pid: event.pid,
        name: Some(event.comm.clone()),
        cmd_line: line,
        file: program,
        user: Some(User { uid: event.uid.to_string() }),
        parent_process: (event.ppid != 0).then(|| Box::new(nameless(event.ppid))),
    }
}

/// Arguments as one line, cut at a bound.
pub fn words(args: &[String]) -> String {
    let mut line = String::new();
    for word in args {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > LINE_BYTES_MAX {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
            line.push('…');
            break;
        }
    }
    line
}

fn file(path: &str, type_id: u32) -> File {
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path);
    File { name: name.to_owned(), path: path.to_owned(), type_id }
}

fn touched(what: &What) -> Option<File> {
    match what {
        What::Exec { path, .. } => Some(file(path, kind::EXECUTABLE)),
        What::Open { path, .. } | What::Look { path, .. } | What::Unlink { path } => Some(file(path, kind::UNKNOWN)),
        What::Chmod { path, .. } | What::Chown { path, .. } => Some(file(path, kind::UNKNOWN)),
        What::Mkdir { path } => Some(file(path, kind::FOLDER)),
        What::Symlink { path, .. } => Some(file(path, kind::SYMLINK)),
        What::Rename { to, .. } | What::Link { to, .. } => Some(file(to, kind::UNKNOWN)),
        What::Mount { target, .. } if !target.is_empty() => Some(file(target, kind::FOLDER)),
        What::Connect { address: Address::Unix(path) } | What::Bind { address: Address::Unix(path) } => {
            Some(file(path, kind::SOCKET))
        }
        _ => None,
    }
}

fn endpoints(what: &What) -> (Option<Endpoint>, Option<Endpoint>) {
    match what {
        What::Connect { address } | What::Send { address, .. } => (None, Some(endpoint(address))),
        What::Bind { address } => (Some(endpoint(address)), None),
        _ => (None, None),
    }
}

fn endpoint(address: &Address) -> Endpoint {
    match address.inet() {
        Some((ip, port)) => Endpoint { ip: Some(ip.to_string()), port: Some(port), name: None },
        None => Endpoint { ip: None, port: None, name: Some(address.to_string()) },
    }
}

fn connection(address: &Address, way: u32) -> Connection {
    match address.inet() {
        Some((ip, _)) => {
            let direction_id = if ip.is_loopback() { direction::LOCAL } else { way };
            Connection { direction_id, protocol_ver_id: if ip.is_ipv4() { 4 } else { 6 } }
        }
        None => Connection { direction_id: direction::LOCAL, protocol_ver_id: 99 },
    }
}

/// The call behind an event, where there is just one.
fn operation(what: &What) -> Option<&str> {
    match what {
        What::Socket { .. } => Some("socket"),
        What::Connect { .. } => Some("connect"),
        What::Bind { .. } => Some("bind"),
        What::Capset { .. } => Some("capset"),
        What::Bpf { .. } => Some("bpf"),
        What::Memfd { .. } => Some("memfd_create"),
        What::SetIds { call, .. } | What::Namespace { call, .. } | What::Ptrace { call, .. } => Some(call),
        What::Module { call } | What::Executable { call, .. } | What::Mount { call, .. } => Some(call),
        What::Call { name, .. } => Some(name),
        What::Refused(refused) => Some(&refused.call),
        _ => None,
    }
}
