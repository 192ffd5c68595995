//! Paths as policies and flags write them. Input: text; output: an absolute path without `.`, `..` or repeated slashes.
//!
//! Purely lexical: links are the business of the planner and the jail, which open what they use.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What variables and relative paths stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub home: Option<&'a Path>,
    pub cwd: &'a Path,
    pub tmpdir: &'a Path,
}

const VARIABLES: &str = "`${HOME}`, `${CWD}` and `${TMPDIR}`";

/// The path that a file writes; a relative one starts at `base`, or is refused when there is none.
pub(crate) fn in_file(text: &str, base: Option<&Path>, context: &Context<'_>) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("an empty path; write an absolute one".to_owned());
    }
    if text.contains('\0') {
        return Err(format!("path {text:?} holds a NUL byte; no path can"));
    }
    if Path::new(text).components().any(|part| part == Component::ParentDir) {
        return Err(format!("path `{text}` holds `..`; write the path that is meant without it"));
    }
    let expanded = expand(text, context)?;
    let path = Path::new(expanded.as_deref().unwrap_or(text));
    match (path.is_absolute(), base) {
        (true, _) => Ok(normalise(path)),
        (false, Some(base)) => Ok(normalise(&base.join(path))),
        (false, None) => {
            Err(format!("path `{text}` is relative; write an absolute one, `~/...` or one with {VARIABLES}"))
        }
    }
}

/// The path that a flag names. The shell has expanded variables already; `..` is what people type there, so it is taken lexically.
pub(crate) fn in_flag(path: &Path, context: &Context<'_>) -> PathBuf {
    normalise(&context.cwd.join(path))
}

/// Whether `path` is `dir` or below it. On the bytes: paths of policies and plans are absolute and in their shortest form, and taking them apart into components
/// takes longer than all the rest of a merge.
pub fn is_within(path: &Path, dir: &Path) -> bool {
    let (path, dir) = (path.as_os_str().as_bytes(), dir.as_os_str().as_bytes());
    dir == b"/" || path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Resolves `.`, `..` and repeated slashes without looking at the file system.
pub(crate) fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::with_capacity(path.as_os_str().len());
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            Component::RootDir | Component::Normal(_) | Component::Prefix(_) => out.push(part),
        }
    }
    out
}

/// `None` when there is nothing to expand.
fn expand(text: &str, context: &Context<'_>) -> Result<Option<String>, String> {
    let tilde = text.starts_with('~');
    if !tilde && !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::with_capacity(text.len() + 32);
    let mut rest = text;
    if let Some(after) = text.strip_prefix('~') {
        if !after.is_empty() && !after.starts_with('/') {
            return Err(format!("path `{text}` names another user's home; write it as an absolute path"));
        }
        out.push_str(home(text, context)?);
        rest = after;
    }
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let end =
            after.find('}').ok_or_else(|| format!("path `{text}` has `${{` without `}}`; accepted are {VARIABLES}"))?;
        out.push_str(match &after[..end] {
            "HOME" => home(text, context)?,
            "CWD" => utf8(context.cwd, "the working directory")?,
            "TMPDIR" => utf8(context.tmpdir, "TMPDIR")?,
            other => {
                return Err(format!("path `{text}` has the variable `${{{other}}}`; accepted are {VARIABLES}"));
            }
        });
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(Some(out))
}

fn home<'a>(text: &str, context: &Context<'a>) -> Result<&'a str, String> {
    let home = context.home.filter(|home| home.is_absolute());
    let home = home.ok_or_else(|| {
        format!("path `{text}` needs the home directory, and HOME is not set to an absolute path; set it")
    })?;
    utf8(home, "HOME")
}

fn utf8<'a>(path: &'a Path, what: &str) -> Result<&'a str, String> {
    path.to_str()
        .ok_or_else(|| format!("{what} is not UTF-8 and cannot stand in a policy; name it with a flag instead"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(home: Option<&Path>) -> Context<'_> {
        Context { home, cwd: Path::new("/job"), tmpdir: Path::new("/var/tmp") }
    }

    #[test]
    fn paths_in_files() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let got = in_file(text, Some(Path::new("/etc/p")), &context(Some(Path::new("/home/u"))));
            assert_eq!(got, Ok(PathBuf::from(expected)), "{text:?}");
        }
        check("/", "/");
        check("//a/./b//", "/a/b");
        check("./x", "/etc/p/x");
        check("x/y", "/etc/p/x/y");
        check("~", "/home/u");
        check("~/.ssh", "/home/u/.ssh");
        check("${HOME}/a", "/home/u/a");
        check("${CWD}", "/job");
        check("/x${TMPDIR}/y", "/x/var/tmp/y");
        check("/a$b", "/a$b");
        check("/..a/b..", "/..a/b..");
    }

    #[test]
    fn paths_that_are_refused() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let got = in_file(text, None, &context(None)).unwrap_err();
            assert!(got.contains(expected), "{text:?}: {got}");
        }
        check("", "empty path");
        check("x", "is relative");
        check("/a/../b", "holds `..`");
        check("..", "holds `..`");
        check("~bob/x", "another user's home");
        check("~/x", "HOME is not set");
        check("/${NOPE}", "accepted are `${HOME}`, `${CWD}` and `${TMPDIR}`");
        check("/${HOME", "without `}`");
        check("/a\0b", "NUL");
    }

    #[test]
    fn paths_in_flags_start_at_the_working_directory() {
        for (text, expected) in [("a", "/job/a"), ("../a", "/a"), ("../../..", "/"), ("/x/", "/x"), ("~", "/job/~")] {
            assert_eq!(in_flag(Path::new(text), &context(None)), PathBuf::from(expected));
        }
    }

    /// As std compares them, which takes both apart.
    #[test]
    fn within_is_by_whole_names() {
        let check = |path: &str, dir: &str, expected: bool| {
            assert_eq!(is_within(Path::new(path), Path::new(dir)), expected, "{path} {dir}");
            assert_eq!(Path::new(path).starts_with(dir), expected, "{path} {dir}");
        };
        check("/usr/bin", "/", true);
        check("/", "/", true);
        check("/usr", "/usr", true);
        check("/usr/bin", "/usr", true);
        check("/usrlocal", "/usr", false);
        check("/us", "/usr", false);
        check("/", "/usr", false);
    }
}
