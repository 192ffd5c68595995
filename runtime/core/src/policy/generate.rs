//! Writes `generated.rs` from `policies/modes` and `policies/profiles`, checks that it is current, and that a table and its text are the
//! same policy.

use std::fmt::{Debug, Write as _};
use std::path::Path;

use toml::Spanned;

use super::embedded;
use super::file::{self, CeilingTable, File, Lines};
use super::merge::Draft;
use super::path::Context;
use super::resolve::{PROFILES, mode_text};
use super::source::Source;
use super::value::{Entry, PathTable};
use super::{Mode, PolicyError};

const MODES: [Mode; 3] = [Mode::Isolation, Mode::Development, Mode::Hybrid];

/// Writes the rows of one file.
struct Writer<'a> {
    out: String,
    lines: &'a Lines,
}

impl Writer<'_> {
    fn field(&mut self, name: &str, value: &str) {
        writeln!(self.out, "    {name}: {value},").unwrap();
    }

    fn at<T>(&self, value: &Spanned<T>, show: impl Fn(&T) -> String) -> String {
        format!("({}, {})", self.lines.origin(&value.span()).line, show(value.get_ref()))
    }

    fn one<T>(&mut self, name: &str, value: Option<&Spanned<T>>, show: impl Fn(&T) -> String) {
        let value = value.map_or("None".to_owned(), |value| format!("Some({})", self.at(value, show)));
        self.field(name, &value);
    }

    fn list<T>(&mut self, name: &str, values: &[T], show: impl Fn(&Self, &T) -> String) {
        let rows: Vec<String> = values.iter().map(|value| show(self, value)).collect();
        self.field(name, &format!("&[{}]", rows.join(", ")));
    }

    fn names(&mut self, name: &str, values: &[Spanned<String>]) {
        self.list(name, values, |writer, value| writer.at(value, |text| format!("{text:?}")));
    }

    fn paths(&mut self, name: &str, values: &[Spanned<Entry<PathTable>>]) {
        self.list(name, values, |writer, entry| {
            let PathTable { path, dest, reason, optional } = &entry.get_ref().0;
            let line = writer.lines.origin(&entry.span()).line;
            format!(
                "PathRow {{ line: {line}, path: {path:?}, dest: {dest:?}, reason: {reason:?}, optional: {optional:?} }}"
            )
        });
    }
}

fn plain<T: Debug>(value: &T) -> String {
    format!("{value:?}")
}

fn variant<T: Debug>(kind: &str) -> impl Fn(&T) -> String {
    move |value| format!("{kind}::{value:?}")
}

fn option<T>(value: Option<&T>, show: impl Fn(&T) -> String) -> String {
    value.map_or("None".to_owned(), |value| format!("Some({})", show(value)))
}

fn slice<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
    format!("&[{}]", values.iter().map(show).collect::<Vec<_>>().join(", "))
}

fn table(file: &File, lines: &Lines) -> String {
    let mut to = Writer { out: String::from("Embedded {\n"), lines };
    to.field("description", &plain(&file.description));
    to.names("extends", &file.extends);
    let fs = &file.filesystem;
    to.field("inherit", &plain(&fs.inherit));
    for (name, list) in
        [("read", &fs.read), ("write", &fs.write), ("exec", &fs.exec), ("hide", &fs.hide), ("deny", &fs.deny)]
    {
        to.paths(name, list);
    }
    to.list("tmpfs", &fs.tmpfs, |writer, entry| {
        writer.at(entry, |Entry(tmpfs)| format!("({:?}, {:?})", tmpfs.path, tmpfs.size.map(|size| size.0)))
    });
    to.one("proc", fs.proc.as_ref(), variant("ProcView"));
    to.one("network", file.network.access.as_ref(), variant("Network"));
    to.one("syscalls_default", file.syscalls.default.as_ref(), variant("SyscallDefault"));
    to.names("syscalls_allow", &file.syscalls.allow);
    to.names("syscalls_deny", &file.syscalls.deny);
    to.one("compat", file.syscalls.compat.as_ref(), plain);
    to.names("capabilities", &file.capabilities.keep);
    let limits = &file.resources;
    to.one("memory", limits.memory.as_ref(), |limit| plain(&limit.0));
    to.one("swap", limits.swap.as_ref(), |limit| plain(&limit.0));
    to.one("cpu", limits.cpu.as_ref(), |limit| plain(&limit.0));
    to.one("tasks", limits.tasks.as_ref(), |limit| plain(&limit.0));
    to.one("open_files", limits.open_files.as_ref(), |limit| plain(&limit.0));
    to.one("file_size", limits.file_size.as_ref(), |limit| plain(&limit.0));
    to.one("tmp_size", limits.tmp_size.as_ref(), |limit| plain(&limit.0));
    to.one("wall_time", limits.wall_time.as_ref(), |limit| plain(&limit.0));
    to.names("pass", &file.environment.pass);
    let set: Vec<_> = file.environment.set.iter().collect();
    to.list("set", &set, |writer, (name, value)| format!("({name:?}, {})", writer.at(value, plain)));
    to.one("uid", file.identity.uid.as_ref(), plain);
    to.one("gid", file.identity.gid.as_ref(), plain);
    to.one("hostname", file.identity.hostname.as_ref(), plain);
    to.field("tty", &option(file.terminal.tty.as_ref(), variant("Tty")));
    let layers: Vec<_> = file.layers.iter().collect();
    to.list("layers", &layers, |writer, (layer, requirement)| {
        format!("(Layer::{layer:?}, {})", writer.at(requirement, variant("Requirement")))
    });
    to.one("ceiling", file.ceiling.as_ref(), ceiling);
    to.out.push('}');
    to.out
}

fn ceiling(table: &CeilingTable) -> String {
    format!(
        "EmbeddedCeiling {{\n        level: {},\n        network: {},\n        syscalls_default: {},\n        syscalls_forbidden: {},\n        \
         compat: {:?},\n        capabilities: {},\n        grant_forbidden: {},\n        write_forbidden: {},\n        \
         mailboxes: {},\n        finite: {},\n        optional_layers: {},\n        off_layers: {},\n    }}",
        option(table.level.as_ref(), variant("IsolationLevel")),
        option(table.network.as_ref(), variant("Network")),
        option(table.syscalls_default.as_ref(), variant("SyscallDefault")),
        option(table.syscalls_forbidden.as_ref(), |list| slice(list, plain)),
        table.compat,
        option(table.capabilities.as_ref(), |list| slice(list, plain)),
        option(table.grant_forbidden.as_ref(), |list| slice(list, plain)),
        option(table.write_forbidden.as_ref(), |list| slice(list, plain)),
        option(table.mailboxes.as_ref(), variant("Control")),
        option(table.finite.as_ref(), |list| slice(list, variant("LimitName"))),
        option(table.optional_layers.as_ref(), |list| slice(list, variant("Layer"))),
        option(table.off_layers.as_ref(), |list| slice(list, variant("Layer"))),
    )
}

fn parsed(source: String, text: &str) -> (File, Lines) {
    let lines = Lines::new(source, text);
    (file::parse(text, &lines).unwrap(), lines)
}

fn generate() -> String {
    let mut out = String::from(
        "//! Generated from `policies/modes` and `policies/profiles` by the test beside this file: do not edit.\n\n\
         use super::embedded::{Embedded, EmbeddedCeiling, PathRow};\nuse super::file::LimitName;\n\
         use super::{IsolationLevel, Network, ProcView, SyscallDefault, Tty};\nuse crate::layer::{Layer, Requirement};\nuse crate::mail::Control;\n",
    );
    let sum = embedded::sum_of_texts();
    writeln!(out, "\n/// Sum of the texts (see `embedded`).\n#[cfg_attr(test, expect(dead_code))]\npub(super) const SUM: u64 = {sum:#x};").unwrap();
    for mode in MODES {
        let (file, lines) = parsed(mode.name().to_owned(), mode_text(mode));
        let name = mode.name().to_uppercase();
        writeln!(out, "\n#[rustfmt::skip]\npub(super) static {name}: Embedded = {};", table(&file, &lines)).unwrap();
    }
    out.push_str("\n#[rustfmt::skip]\npub(super) static PROFILES: &[(&str, Embedded)] = &[\n");
    for (name, text) in PROFILES {
        let (file, lines) = parsed(name.to_owned(), text);
        writeln!(out, "({name:?}, {}),", table(&file, &lines)).unwrap();
    }
    out.push_str("];\n");
    out
}

#[test]
fn generated_policies_are_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/generated.rs");
    let wanted = generate();
    if std::env::var_os("APEX_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == wanted,
        "generated.rs is older than policies/: APEX_BLESS=1 cargo test -p apex-core --lib generate"
    );
}

/// Everything that the merge learns from a file, places included.
fn effect((mut file, lines): (File, Lines)) -> Result<String, PolicyError> {
    let ceiling = file.ceiling.take().map(Spanned::into_inner);
    let mode = file.mode.take().map(Spanned::into_inner);
    let extends: Vec<_> =
        file.extends.iter().map(|link| (link.get_ref().clone(), lines.origin(&link.span()))).collect();
    let description = file.description.clone();
    let context = Context { home: Some(Path::new("/home/u")), cwd: Path::new("/job"), tmpdir: Path::new("/var/tmp") };
    let groups: Vec<&str> = crate::seccomp::groups::iter().map(|group| group.name).collect();
    let mut draft = Draft::default();
    let source = Source { lines: &lines, dir: None, context: &context, groups: &groups, raise_limits: false };
    draft.apply(file, &source)?;
    Ok(format!("{} {description:?} {mode:?} {extends:?} {ceiling:?} {draft:?}", lines.source()))
}

#[test]
fn a_table_is_the_same_policy_as_its_text() {
    for mode in MODES {
        let text = parsed(format!("modes/{}.toml", mode.name()), mode_text(mode));
        assert_eq!(effect(embedded::mode(mode)).unwrap(), effect(text).unwrap());
    }
    for (name, text) in PROFILES {
        let text = parsed(format!("profiles/{name}.toml"), text);
        assert_eq!(effect(embedded::profile(name).unwrap()).unwrap(), effect(text).unwrap());
    }
}
