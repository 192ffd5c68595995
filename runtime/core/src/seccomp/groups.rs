//! The named groups of system calls, from `policies/syscalls.toml`.

use super::{Abi, generated};

/// A group of system calls.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    /// Name in policies.
    pub name: &'static str,
    /// Why programs need it, or why it is refused.
    pub reason: &'static str,
    /// What a call of it answers when it is refused.
    pub errno: u16,
    /// Whether a policy whose default is `report` lets it through and records it.
    pub report: bool,
}

/// The group that every sandbox has.
pub const BASE: &str = "base";

/// Bits of a generated entry that are the index of the group.
pub(super) const INDEX: u8 = 0x7f;
/// The index of calls that do not exist.
#[cfg(test)]
pub(super) const NONE: u8 = 0x7f;
/// Bit of a generated entry: the call takes a path or an address.
pub(super) const PATH: u8 = 0x80;

/// Every group, by name.
pub fn iter() -> impl Iterator<Item = &'static Group> {
    generated::GROUPS.iter()
}

/// The group of this name.
pub fn find(name: &str) -> Option<&'static Group> {
    iter().find(|group| group.name == name)
}

/// Whether there is a group of this name.
pub fn exists(name: &str) -> bool {
    find(name).is_some()
}

/// Names that someone who wrote `name` may have meant, the likeliest first, three at most.
pub fn nearest(name: &str) -> Vec<&'static str> {
    let mut candidates: Vec<(usize, &'static str)> = iter()
        .map(|group| (strsim::damerau_levenshtein(name, group.name), group.name))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .collect();
    candidates.sort_unstable();
    candidates.truncate(3);
    candidates.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The group that holds a call.
pub fn of_call(abi: Abi, nr: u32) -> Option<&'static Group> {
    let entry = *abi.calls().get(usize::try_from(nr).ok()?)?;
    generated::GROUPS.get(usize::from(entry & INDEX))
}

/// Whether a call takes a path or an address.
#[cfg(test)]
pub(crate) fn names_path(abi: Abi, nr: u32) -> bool {
    usize::try_from(nr).ok().and_then(|nr| abi.calls().get(nr)).is_some_and(|entry| entry & PATH != 0)
}

/// The calls of a group, as number and name.
pub fn calls(group: &Group, abi: Abi) -> impl Iterator<Item = (u32, &'static str)> {
    (0u32..)
        .zip(abi.calls())
        .filter(move |(_, entry)| {
            generated::GROUPS.get(usize::from(**entry & INDEX)).is_some_and(|found| found.name == group.name)
        })
        .filter_map(move |(nr, _)| Some((nr, abi.call_name(nr)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_every_abi_has_a_group() {
        for abi in [Abi::X86_64, Abi::I386, Abi::Aarch64] {
            for nr in 0..600 {
                assert_eq!(abi.call_name(nr).is_some(), of_call(abi, nr).is_some(), "{} {nr}", abi.name());
            }
        }
    }

    #[test]
    fn names_that_are_near_are_found() {
        assert_eq!(nearest("socket").first(), Some(&"sockets"));
        assert_eq!(nearest("io_uring").first(), Some(&"io-uring"));
        assert!(nearest("zzzzzzzzzzzzzz").is_empty());
    }

    #[test]
    fn base_holds_what_a_program_needs_to_run() {
        let base = find(BASE).unwrap();
        let names: Vec<_> = calls(base, Abi::X86_64).map(|(_, name)| name).collect();
        for needed in ["read", "write", "execve", "exit_group", "mmap", "rt_sigreturn"] {
            assert!(names.contains(&needed), "{needed}");
        }
    }
}
