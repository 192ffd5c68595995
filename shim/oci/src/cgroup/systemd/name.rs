//! Names of slices and scopes, from `slice:prefix:name`.

use std::path::Path;

use super::super::error::CgroupError;

/// `linux.cgroupsPath` with `--systemd-cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Triple {
    pub(super) slice: String,
    prefix: String,
    name: String,
}

impl Triple {
    /// Without a path, or without a slice, the machine's services or the user's are beside the container.
    pub(super) fn parse(path: Option<&Path>, id: &str, is_user: bool) -> Result<Triple, CgroupError> {
        let text = path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let default = if is_user { "user.slice" } else { "system.slice" };
        if text.is_empty() {
            return Ok(Triple { slice: default.to_owned(), prefix: "apex".to_owned(), name: id.to_owned() });
        }
        let fail = |reason| CgroupError::Triple { path: text.clone(), reason };
        let parts: Vec<&str> = text.split(':').collect();
        let &[slice, prefix, name] = &parts[..] else {
            return Err(fail("three parts with colons between them are expected"));
        };
        if name.is_empty() {
            return Err(fail("the name is empty"));
        }
        // What systemd allows in the name of a unit (systemd.unit(5)), but for templates and escapes that would mean another.
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        if ![prefix, name].iter().all(|part| part.bytes().all(is_known)) {
            return Err(fail("a unit's name has letters, digits, and :-_.\\@ only"));
        }
        let slice = if slice.is_empty() { default } else { slice };
        Ok(Triple { slice: slice.to_owned(), prefix: prefix.to_owned(), name: name.to_owned() })
    }

    /// A scope; a name that is a slice stays one.
    pub(super) fn unit(&self) -> String {
        if self.is_slice() {
            return self.name.clone();
        }
        match self.prefix.as_str() {
            "" => format!("{}.scope", self.name),
            prefix => format!("{prefix}-{}.scope", self.name),
        }
    }

    /// Whether the container is to be a slice.
    pub(super) fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }
}

/// Where a slice stands: `a-b.slice` is in `a.slice` (systemd.slice(5)).
pub(super) fn slice_path(slice: &str) -> Result<String, CgroupError> {
    let fail = |reason| CgroupError::Triple { path: slice.to_owned(), reason };
    let Some(name) = slice.strip_suffix(".slice") else {
        return Err(fail("the name of a slice ends with .slice"));
    };
    if name == "-" {
        return Ok(String::new());
    }
    if name.is_empty() || name.contains('/') {
        return Err(fail("the name of a slice is not empty and has no slash"));
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(fail("each dash in the name of a slice stands between two parts"));
        }
        prefix.push_str(part);
        path.push_str(&format!("/{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_nested() {
        let check = |slice: &str, expected: Option<&str>| {
            assert_eq!(slice_path(slice).ok().as_deref(), expected, "{slice}");
        };
        check("system.slice", Some("/system.slice"));
        check("a-b-c.slice", Some("/a.slice/a-b.slice/a-b-c.slice"));
        check("-.slice", Some(""));
        for slice in ["", ".slice", "a", "a--b.slice", "-a.slice", "a-.slice", "a/b.slice"] {
            check(slice, None);
        }
    }

    #[test]
    fn units_have_a_prefix() {
        let check = |path: &str, slice: &str, unit: &str| {
            let triple = Triple::parse(Some(Path::new(path)), "id", false).unwrap();
            assert_eq!((triple.slice.as_str(), triple.unit().as_str()), (slice, unit), "{path}");
        };
        check("machine.slice:libpod:abc", "machine.slice", "libpod-abc.scope");
        check("::abc", "system.slice", "abc.scope");
        check("", "system.slice", "apex-id.scope");
        check(":x:kube-pod.slice", "system.slice", "kube-pod.slice");
        let user = Triple::parse(None, "id", true).unwrap();
        assert_eq!(user.slice, "user.slice");
        for path in ["/a/b", "a:b", "a:b:c:d", "a.slice:b:", "a.slice:b:c/d", "a.slice:b c:d"] {
            assert!(Triple::parse(Some(Path::new(path)), "id", false).is_err(), "{path}");
        }
    }
}
