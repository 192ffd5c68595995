//! Which devices a container may use: `linux.resources.devices` and those that every container has.
//!
//! As with runc, everything is denied at first, the bundle's rules follow in their order, and what every container has comes last. On v1 the
//! kernel keeps one list of exceptions, on v2 a program of ours decides ([`super::device_program`]).

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::dir::Dir;
use super::error::CgroupError;
use apex_sys::Errno;
use nix::libc::O_WRONLY;
use std::os::fd::AsFd;

/// Ways to use a device, in the kernel's bits (`BPF_DEVCG_ACC_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access(pub(super) u8);

impl Access {
    pub(super) const ALL: Access = Access(7);
    const LETTERS: [(char, u8); 3] = [('r', 2), ('w', 4), ('m', 1)];

    fn parse(text: &str) -> Option<Access> {
        // runc passes the letter of the kind `a` over where it stands here, and configurations have it.
        text.chars().filter(|letter| *letter != 'a').try_fold(Access(0), |access, letter| {
            let (_, bit) = Access::LETTERS.into_iter().find(|(known, _)| *known == letter)?;
            Some(Access(access.0 | bit))
        })
    }

    fn words(self) -> String {
        Access::LETTERS.into_iter().filter(|(_, bit)| self.0 & bit != 0).map(|(letter, _)| letter).collect()
    }
}

/// The devices that a rule is about; `None` for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) is_block: bool,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Devices {
    fn covers(self, other: Devices) -> bool {
        let wide = |mine: Option<u32>, its: Option<u32>| mine.is_none() || mine == its;
        self.is_block == other.is_block && wide(self.major, other.major) && wide(self.minor, other.minor)
    }

    fn meets(self, other: Devices) -> bool {
        let same = |mine: Option<u32>, its: Option<u32>| mine.is_none() || its.is_none() || mine == its;
        self.is_block == other.is_block && same(self.major, other.major) && same(self.minor, other.minor)
    }

    fn words(self, access: Access) -> String {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if self.is_block { 'b' } else { 'c' };
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), access.words())
    }
}

/// A rule, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// All devices in all ways: what was said before no longer counts.
    All { allow: bool },
    /// Some.
    Some { devices: Devices, access: Access, allow: bool },
}

/// What every container has (runc 1.1): mknod of anything; null, zero, full, random, urandom, tty, ptmx, pts and tun whole.
const DEFAULTS: [(bool, Option<u32>, Option<u32>, Access); 11] = [
    (false, None, None, Access(1)),
    (true, None, None, Access(1)),
    (false, Some(1), Some(3), Access::ALL),
    (false, Some(1), Some(8), Access::ALL),
    (false, Some(1), Some(7), Access::ALL),
    (false, Some(5), Some(0), Access::ALL),
    (false, Some(1), Some(5), Access::ALL),
    (false, Some(1), Some(9), Access::ALL),
    (false, Some(136), None, Access::ALL),
    (false, Some(5), Some(2), Access::ALL),
    (false, Some(10), Some(200), Access::ALL),
];

/// The rules of a container, in their order.
pub(super) fn rules(given: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, CgroupError> {
    let mut rules: Vec<Rule> = given.iter().map(parse).collect::<Result<_, _>>()?;
    rules.extend(DEFAULTS.map(|(is_block, major, minor, access)| Rule::Some {
        devices: Devices { is_block, major, minor },
        access,
        allow: true,
    }));
    // What stands before the last rule about everything says nothing.
    if let Some(last) = rules.iter().rposition(|rule| matches!(rule, Rule::All { .. })) {
        rules.drain(..last);
    }
    Ok(rules)
}

fn parse(given: &LinuxDeviceCgroup) -> Result<Rule, CgroupError> {
    let words = || {
        let number = |number: Option<i64>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = given.typ().unwrap_or(LinuxDeviceType::A).as_str().to_owned();
        let access = given.access().as_deref().unwrap_or("");
        format!("{kind} {}:{} {access}", number(given.major()), number(given.minor()))
    };
    let fail = |reason| CgroupError::DeviceRule { rule: words(), reason };
    let number = |number: Option<i64>, reason| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| fail(reason)),
    };
    let allow = given.allow();
    let access = match given.access().as_deref() {
        Some(text) if !text.is_empty() => Access::parse(text).ok_or_else(|| fail("access is of r, w and m"))?,
        // Nothing is allowed by a rule that does not say what, and everything denied by one that does not.
        Some(_) | None => Access(if allow { 0 } else { 7 }),
    };
    let major = number(given.major(), "a major number is -1 for any, or not negative")?;
    let minor = number(given.minor(), "a minor number is -1 for any, or not negative")?;
    let is_block = match given.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => return Ok(Rule::All { allow }),
        LinuxDeviceType::B => true,
        LinuxDeviceType::C | LinuxDeviceType::U => false,
        LinuxDeviceType::P => return Err(fail("a fifo is no device; the type is a, b or c")),
    };
    Ok(Rule::Some { devices: Devices { is_block, major, minor }, access, allow })
}

/// The state of v1's controller: what holds for all devices, and what for single ones instead.
#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    allow: bool,
    exceptions: Vec<(Devices, Access)>,
}

impl List {
    fn of(rules: &[Rule]) -> Result<List, CgroupError> {
        let mut list = List::default();
        for rule in rules {
            match *rule {
                Rule::All { allow } => list = List { allow, exceptions: Vec::new() },
                Rule::Some { devices, access, allow } if allow == list.allow => list.forget(devices, access)?,
                Rule::Some { devices, access, .. } => list.add(devices, access),
            }
        }
        Ok(list)
    }

    fn add(&mut self, devices: Devices, access: Access) {
        match self.exceptions.iter_mut().find(|(known, _)| *known == devices) {
            Some((_, known)) => known.0 |= access.0,
            None => self.exceptions.push((devices, access)),
        }
    }

    /// Takes back exceptions. The kernel cannot take back a part of one, and would pass over the attempt without a word.
    fn forget(&mut self, devices: Devices, access: Access) -> Result<(), CgroupError> {
        for (known, its) in &mut self.exceptions {
            if devices.covers(*known) {
                its.0 &= !access.0;
            } else if devices.meets(*known) && its.0 & access.0 != 0 {
                return Err(CgroupError::DeviceHole { rule: devices.words(access), wider: known.words(*its) });
            }
        }
        Ok(())
    }

    /// The file and the lines for it, of which the first clears what the cgroup got from the one above.
    fn lines(&self) -> (&'static str, &'static str, Vec<String>) {
        let lines = self.exceptions.iter().filter(|(_, access)| access.0 != 0);
        let lines = lines.map(|(devices, access)| devices.words(*access)).collect();
        match self.allow {
            true => ("devices.allow", "devices.deny", lines),
            false => ("devices.deny", "devices.allow", lines),
        }
    }
}

/// What is allowed, as devices and letters; `None` when everything is that is not denied.
pub(super) fn allowed(rules: &[Rule]) -> Result<Option<Vec<(Devices, String)>>, CgroupError> {
    let list = List::of(rules)?;
    let allowed = list.exceptions.iter().filter(|(_, access)| access.0 != 0);
    let allowed = allowed.map(|(devices, access)| (*devices, access.words())).collect();
    Ok((!list.allow).then_some(allowed))
}

/// Sets the rules on v1.
pub(super) fn set_v1(dir: &Dir, rules: &[Rule]) -> Result<(), CgroupError> {
    let (clear, except, lines) = List::of(rules)?.lines();
    let fail = |file: &str, value: &str, errno: Errno| CgroupError::Set {
        controller: "devices".to_owned(),
        file: dir.path().join(file),
        value: value.to_owned(),
        hint: match errno {
            Errno::EPERM => "; the cgroup above does not allow it",
            Errno::EINVAL => "; the cgroup has children already",
            _ => "",
        },
        source: errno.into(),
    };
    dir.write(clear, "a").map_err(|errno| fail(clear, "a", errno))?;
    let file = dir.file(except, O_WRONLY).map_err(|errno| fail(except, "", errno))?;
    // One rule a write: the kernel reads only the first.
    for line in lines {
        apex_sys::fs::write(file.as_fd(), line.as_bytes()).map_err(|errno| fail(except, &line, errno))?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn given(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    fn check(json: &str, clear: &str, expected: &[&str]) {
        let mut parsed = rules(&given(json)).unwrap();
        parsed.truncate(parsed.len() - DEFAULTS.len());
        let list = List::of(&parsed).unwrap();
        let (file, _, lines) = list.lines();
        assert_eq!((file, lines.iter().map(String::as_str).collect::<Vec<_>>()), (clear, expected.to_vec()), "{json}");
    }

    #[test]
    fn rules_become_lines() {
        check("[]", "devices.deny", &[]);
        check(r#"[{"allow":false,"access":"rwm"}]"#, "devices.deny", &[]);
        check(r#"[{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#, "devices.deny", &["c 10:229 rw"]);
        check(r#"[{"allow":true,"type":"b","major":8,"minor":-1,"access":"r"}]"#, "devices.deny", &["b 8:* r"]);
        check(
            r#"[{"allow":true,"type":"a"},{"allow":false,"type":"b","major":8,"access":"w"}]"#,
            "devices.allow",
            &["b 8:* w"],
        );
        // What came before everything is forgotten; what is taken back is taken back.
        check(
            r#"[{"allow":true,"type":"c","major":1,"access":"r"},{"allow":false,"access":"rwm"}]"#,
            "devices.deny",
            &[],
        );
        check(
            r#"[{"allow":true,"type":"c","major":1,"minor":2,"access":"rwm"},{"allow":false,"type":"c","major":1,"access":"w"}]"#,
            "devices.deny",
            &["c 1:2 rm"],
        );
        check(r#"[{"allow":true,"type":"c","major":1,"minor":2}]"#, "devices.deny", &[]);
    }

    #[test]
    fn everybody_has_the_defaults() {
        let list = List::of(&rules(&given(r#"[{"allow":false,"access":"rwm"}]"#)).unwrap()).unwrap();
        let (_, _, lines) = list.lines();
        assert_eq!(lines.len(), 11);
        assert!(lines.contains(&"c *:* m".to_owned()) && lines.contains(&"c 136:* rwm".to_owned()), "{lines:?}");
    }

    #[test]
    fn a_hole_is_refused() {
        let json = r#"[{"allow":true,"type":"c","major":8,"access":"rwm"},{"allow":false,"type":"c","major":8,"minor":1,"access":"w"}]"#;
        let error = List::of(&rules(&given(json)).unwrap()).unwrap_err();
        assert!(matches!(error, CgroupError::DeviceHole { .. }), "{error}");
    }

    #[test]
    fn malformed_rules_are_refused() {
        for json in [
            r#"[{"allow":true,"type":"c","access":"rx"}]"#,
            r#"[{"allow":true,"type":"p","access":"r"}]"#,
            r#"[{"allow":true,"type":"c","major":-2,"access":"r"}]"#,
            r#"[{"allow":true,"type":"c","major":4294967296,"access":"r"}]"#,
        ] {
            assert!(matches!(rules(&given(json)), Err(CgroupError::DeviceRule { .. })), "{json}");
        }
    }
}
