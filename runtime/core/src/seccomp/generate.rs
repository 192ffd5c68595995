//! Writes `generated.rs` from `policies/syscalls.toml` and the kernel's tables, and checks that it is current.
//! The tables are checked in so that neither a start of Apex nor its build reads TOML.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use super::groups::{NONE, PATH};
use super::rules::{CALLS, PATH_CALLS};
use super::{Abi, ENOSYS, EPERM};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    group: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupText {
    reason: String,
    #[serde(default)]
    errno: Option<String>,
    #[serde(default)]
    report: Option<bool>,
    calls: String,
}

const ABIS: [(&str, Abi); 3] = [("X86_64", Abi::X86_64), ("I386", Abi::I386), ("AARCH64", Abi::Aarch64)];
const LAST_NUMBER: u32 = 1023;

fn source() -> Vec<(String, GroupText)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies/syscalls.toml");
    let file: File = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file.group.into_iter().map(|(name, value)| (name, value.try_into().unwrap())).collect()
}

/// The group of each call.
fn membership(groups: &[(String, GroupText)]) -> BTreeMap<&str, usize> {
    let mut membership = BTreeMap::new();
    for (index, (name, group)) in groups.iter().enumerate() {
        for call in group.calls.split_whitespace() {
            assert!(
                ABIS.iter().any(|(_, abi)| abi.call_number(call).is_some()),
                "`{call}` of `{name}` exists in no table"
            );
            assert_eq!(membership.insert(call, index), None, "`{call}` of `{name}` is in another group too");
        }
    }
    membership
}

fn generate() -> String {
    let groups = source();
    let membership = membership(&groups);
    let mut out = String::from(
        "//! Generated from `policies/syscalls.toml` by the test beside this file: do not edit.\n\n\
         use super::groups::Group;\nuse super::rules::Rule;\n\n#[rustfmt::skip]\npub(super) static GROUPS: &[Group] = &[\n",
    );
    for (name, group) in &groups {
        let errno = match group.errno.as_deref() {
            None | Some("EPERM") => EPERM,
            Some("ENOSYS") => ENOSYS,
            Some(other) => panic!("errno `{other}` of `{name}` is neither EPERM nor ENOSYS"),
        };
        let (reason, report) = (&group.reason, group.report.unwrap_or(true));
        writeln!(out, "    Group {{ name: {name:?}, reason: {reason:?}, errno: {errno}, report: {report} }},").unwrap();
    }
    out.push_str("];\n");
    for (constant, abi) in ABIS {
        write_calls(&mut out, constant, abi, &membership);
        let judged: BTreeMap<u32, _> =
            CALLS.iter().filter_map(|(name, rule)| Some((abi.call_number(name)?, rule))).collect();
        writeln!(out, "\n#[rustfmt::skip]\npub(super) static {constant}_RULES: &[(u16, Rule)] = &[").unwrap();
        for (nr, rule) in judged {
            writeln!(out, "    ({nr}, Rule::{rule:?}),").unwrap();
        }
        out.push_str("];\n");
    }
    out
}

fn write_calls(out: &mut String, constant: &str, abi: Abi, membership: &BTreeMap<&str, usize>) {
    let with_path: Vec<&str> = PATH_CALLS.split_whitespace().collect();
    let last = (0..=LAST_NUMBER).rev().find(|nr| abi.call_name(*nr).is_some()).unwrap();
    let entries: Vec<u8> = (0..=last)
        .map(|nr| match abi.call_name(nr) {
            None => NONE,
            Some(name) => {
                let group = membership.get(name).unwrap_or_else(|| panic!("`{name}` of {} is in no group", abi.name()));
                let path = if with_path.contains(&name) { PATH } else { 0 };
                u8::try_from(*group).unwrap() | path
            }
        })
        .collect();
    writeln!(
        out,
        "\n/// By number: index of the group, 0x7f for none; 0x80 is set for calls with a path or an address."
    )
    .unwrap();
    writeln!(out, "#[rustfmt::skip]\npub(super) static {constant}: &[u8] = &[").unwrap();
    for row in entries.chunks(24) {
        let row: Vec<String> = row.iter().map(u8::to_string).collect();
        writeln!(out, "    {},", row.join(", ")).unwrap();
    }
    out.push_str("];\n");
}

#[test]
fn generated_tables_are_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/seccomp/generated.rs");
    let wanted = generate();
    if std::env::var_os("APEX_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "generated.rs is older than policies/syscalls.toml: APEX_BLESS=1 cargo test -p apex-core --lib generate"
    );
}

#[test]
fn every_named_call_exists() {
    for name in PATH_CALLS.split_whitespace().chain(CALLS.iter().map(|(name, _)| *name)) {
        assert!(ABIS.iter().any(|(_, abi)| abi.call_number(name).is_some()), "{name}");
    }
}
