//! `docs/reference/events.md`, made from the types themselves: the words of each event and field from the source, and an example of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;

/// What stands in front of the tables.
const HEAD: &str = "# Events

One line of JSON for one thing that a process of the sandbox did; `apex-run --events` writes them, `apex-probe model` and `apex-run backtest` read
them. This page is made from the source by a test (`cargo test -p apex-core --lib reference`, with `UPDATE_SNAPSHOTS=1` to write it).

Whatever the source, the event is the same; `start` says of each family where its events come from: `probe` (programs in the kernel), `ptrace`,
`listener` (of the system call filter) or `missing`, with the reason. Names in an event were chosen by the sandbox: they describe, and identify no file
for enforcement. Texts are cut at 4096 bytes, arguments at 64, and bytes that are no UTF-8 become U+FFFD. A reader passes over fields that it does not know.

Each event has the fields of the first table and those of its own. The first line is `start`, the last one `end`, whose `events` counts
the lines of the record. What was lost is told where it was noticed (`lost`), and summed up in `end`.

## Every event

";

/// A type's field: its name and its words.
struct Field<'s> {
    name: &'s str,
    words: String,
}

/// One variant of [`What`], or one structure.
struct Shape<'s> {
    words: String,
    fields: Vec<Field<'s>>,
}

/// The variants of `enum NAME`, or the one shape of `struct NAME`, as rustfmt writes them.
fn shapes<'s>(source: &'s str, head: &str) -> Vec<Shape<'s>> {
    let (_, body) = source.split_once(head).expect("the type is in the source");
    let (body, _) = body.split_once("\n}\n").expect("it ends");
    let mut shapes: Vec<Shape<'s>> = Vec::new();
    let mut words = Vec::new();
    for line in body.lines() {
        let text = line.trim();
        let indent = line.len() - line.trim_start().len();
        if let Some(doc) = text.strip_prefix("/// ") {
            words.push(doc);
        } else if let Some((name, _)) =
            text.trim_start_matches("pub ").split_once(": ").filter(|_| !text.starts_with('#'))
        {
            let field = Field { name, words: std::mem::take(&mut words).join(" ") };
            match shapes.last_mut().filter(|_| indent == 8) {
                Some(shape) => shape.fields.push(field),
                None => shapes.push(Shape { words: String::new(), fields: vec![field] }),
            }
        } else if indent == 4 && text.starts_with(|c: char| c.is_ascii_uppercase()) {
            shapes.push(Shape { words: std::mem::take(&mut words).join(" "), fields: Vec::new() });
        }
    }
    shapes
}

fn of_struct(source: &str, name: &str) -> Vec<(String, String)> {
    let shapes = shapes(source, &format!("pub struct {name} {{"));
    shapes.into_iter().flat_map(|shape| shape.fields).map(|field| (field.name.to_owned(), field.words)).collect()
}

fn table(out: &mut String, fields: &[(String, String)]) {
    if fields.is_empty() {
        return;
    }
    out.push_str("| field | meaning |\n| --- | --- |\n");
    for (name, words) in fields {
        let words = words.replace("[`", "`").replace("`]", "`").replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {words} |");
    }
    out.push('\n');
}

fn start() -> Start {
    Start {
        version: VERSION,
        wall_time_ns: 1_795_383_725_713_045_466,
        mode: "isolation".to_owned(),
        profile: Some("python".to_owned()),
        plan_sha256: "af97e76ba8b3df3b89d6b80150a2c1d1f0c9b9e4a3bb2a4f8f0d9c1f6b7e5a21".to_owned(),
        command: vec!["python3".to_owned(), "job.py".to_owned()],
        level: Level::Default,
        sources: BTreeMap::from([
            (Family::Process, Source::Probe),
            (Family::Refusal, Source::Listener),
            (Family::Lsm, Source::Missing { reason: "this kernel has no BPF LSM".to_owned() }),
        ]),
    }
}

/// One of each, in the order of the source.
fn examples() -> Vec<What> {
    let path = || "/tmp/job/out.txt".to_owned();
    let address = || "inet:192.0.2.1:443".parse::<Address>().expect("an address");
    let call = |name: &str| name.to_owned();
    let refused = Refused { call: call("mount"), abi: "x86_64".to_owned(), args: [1, 2, 3, 0, 0, 0], reported: false };
    vec![
        What::Start(Box::new(start())),
        What::End(Box::new(End { events: 87, lost: BTreeMap::from([(Loss::RingFull, 3)]), findings: 1 })),
        What::Fork { child: 4712 },
        What::Exec {
            path: "/usr/bin/ls".to_owned(),
            args: vec!["ls".to_owned(), "/".to_owned()],
            asked: Some("/bin/ls".to_owned()),
            cut: false,
            fileless: false,
            stdin: Some(Stream::Pipe),
            stdin_pipe: Some(60122),
            stdout_pipe: None,
        },
        What::Exit { code: Some(0), signal: None },
        What::Socket { family: 2, kind: 1, protocol: 6 },
        What::Connect { address: address() },
        What::Send { address: address(), bytes: 64 },
        What::Dns {
            address: "inet:192.0.2.53:53".parse().expect("an address"),
            bytes: 29,
            qname: "example.org".to_owned(),
            qtype: 1,
            tcp: false,
        },
        What::Bind { address: address() },
        What::Traffic { received_bytes: 4096, sent_bytes: 512 },
        What::Open { path: path(), access: Access::Write, create: true, truncate: true },
        What::Look { path: "/etc/os-release".to_owned(), follow: true },
        What::Mkdir { path: "/tmp/job".to_owned() },
        What::Rename { from: "/tmp/job/out.part".to_owned(), to: path() },
        What::Unlink { path: path() },
        What::Link { from: path(), to: "/tmp/job/copy".to_owned() },
        What::Symlink { target: "out.txt".to_owned(), path: "/tmp/job/link".to_owned() },
        What::Chmod { path: path(), mode: 0o755 },
        What::Chown { path: path(), owner: 1000, group: u32::MAX },
        What::SetIds { call: call("setuid"), id: 0 },
        What::Capset { effective: 0 },
        What::Namespace { call: call("unshare"), flags: 0x1000_0000 },
        What::Ptrace { call: call("ptrace"), request: 16, target: 12 },
        What::Bpf { command: 5 },
        What::Module { call: call("finit_module") },
        What::Memfd { name: "jit".to_owned() },
        What::Executable { call: call("mprotect"), address: 0x7f00_0000_0000, length: 4096, writable: false },
        What::Mount { call: call("mount"), target: "/mnt".to_owned() },
        What::Signal { target: 12, signal: 15 },
        What::Call { name: call("personality"), args: [0x4_0000, 0, 0, 0, 0, 0] },
        What::Calls { counts: BTreeMap::from([("read".to_owned(), 120), ("write".to_owned(), 7)]) },
        What::Refused(Box::new(refused)),
        What::Lost { counts: BTreeMap::from([(Loss::RateLimited, 12)]) },
    ]
}

fn render() -> String {
    let source = include_str!("../event.rs");
    let mut out = HEAD.to_owned();
    let common: Vec<_> = of_struct(source, "Event").into_iter().filter(|(name, _)| name != "what").collect();
    table(&mut out, &common);
    let variants = shapes(source, "pub enum What {");
    let examples = examples();
    assert_eq!(variants.len(), examples.len(), "an example for each event");
    for (shape, what) in variants.iter().zip(examples) {
        let is_of_watch = matches!(
            what,
            What::Start(_) | What::End(_) | What::Lost { .. } | What::Traffic { .. } | What::Calls { .. }
        );
        let event = match is_of_watch {
            true => Event {
                time_ns: 14_817_760_834_080,
                sandbox: 3141,
                pid: 0,
                ppid: 0,
                uid: 0,
                comm: String::new(),
                what,
                error: None,
            },
            false => Event {
                time_ns: 14_817_762_178_146,
                sandbox: 3141,
                pid: 4711,
                ppid: 4709,
                uid: 1_879_065_058,
                comm: "job".to_owned(),
                what,
                error: None,
            },
        };
        let event = Event { error: matches!(event.what, What::Refused(_)).then_some(Errno::EPERM), ..event };
        let line = serde_json::to_string(&event).expect("an event is representable");
        assert_eq!(serde_json::from_str::<Event>(&line).expect("own output is readable"), event);
        let fields = match &event.what {
            What::Start(_) => of_struct(source, "Start"),
            What::End(_) => of_struct(source, "End"),
            What::Refused(_) => of_struct(source, "Refused"),
            _ => shape.fields.iter().map(|field| (field.name.to_owned(), field.words.clone())).collect(),
        };
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let _ = writeln!(out, "## {}\n\n{}\n", value["event"].as_str().unwrap_or_default(), shape.words);
        table(&mut out, &fields);
        let _ = writeln!(out, "```json\n{line}\n```\n");
    }
    out.pop();
    out
}

#[test]
fn the_reference_is_as_committed() {
    let text = render();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/events.md");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &text).expect("the reference can be written");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == text, "docs/reference/events.md is stale: run this once with UPDATE_SNAPSHOTS=1");
}

#[test]
fn every_field_of_an_example_has_its_words() {
    let text = render();
    for what in examples() {
        let value = serde_json::to_value(&what).expect("representable");
        let name = value["event"].as_str().expect("it is tagged");
        let (_, section) = text.split_once(&format!("\n## {name}\n")).expect("a section for each");
        let section = section.split("\n## ").next().unwrap_or_default();
        for field in value.as_object().expect("an object").keys().filter(|key| *key != "event") {
            assert!(section.contains(&format!("| `{field}` | ")), "{name} lacks {field}");
        }
    }
}
