//! From the options to what apexd is asked for. Input: the options and the caller's working directory. Output: a [`CreateRequest`], whose paths of the host are
//! absolute: apexd stands elsewhere. What the words mean is apexd's to judge.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use apex_api::v1::{CreateRequest, Limits};

use crate::args::Options;

/// What the options ask for.
///
/// # Errors
/// A policy file that cannot be read, a label without `=`, a path that cannot be made absolute.
pub fn create(options: Options) -> Result<CreateRequest> {
    let cwd = std::env::current_dir().context("looking up the working directory; change to one that exists")?;
    let Some(cwd) = cwd.to_str() else {
        bail!("the working directory {} is not UTF-8, and apexd takes text; change to another", cwd.display());
    };
    let grants = |given: &[String]| given.iter().map(|text| grant(cwd, text)).collect::<Result<Vec<_>>>();
    let label = |text: &String| match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => bail!("--label got `{text}`, which has no `=`; write K=V"),
    };
    Ok(CreateRequest {
        name: options.name.unwrap_or_default(),
        mode: options.mode.unwrap_or_default(),
        level: options.level.unwrap_or_default(),
        profile: options.profile.unwrap_or_default(),
        policy_toml: options.policy.map_or(Ok(String::new()), |path| policy_text(&path))?,
        command: options.command,
        env: options.env,
        cwd: cwd.to_owned(),
        ro: grants(&options.ro)?,
        rw: grants(&options.rw)?,
        tmpfs: options.tmpfs,
        deny: options.deny.iter().map(|path| absolute(cwd, path)).collect(),
        optional: options.optional,
        net: options.net.unwrap_or_default(),
        limits: Some(Limits {
            memory: options.memory.unwrap_or_default(),
            tasks: options.tasks.unwrap_or_default(),
            cpu: options.cpu.unwrap_or_default(),
            time: options.time.unwrap_or_default(),
        }),
        watch: options.watch.unwrap_or_default(),
        on_finding: options.on_finding.unwrap_or_default(),
        labels: options.labels.iter().map(label).collect::<Result<_>>()?,
        workdir: options.workdir.unwrap_or_default(),
        pool: options.pool,
        warm: options.warm,
        tty: options.tty == "yes",
        size: None,
        on_limit: options.on_limit,
        wait_for_room: options.wait_for_room.unwrap_or_default(),
    })
}

pub(crate) fn absolute(cwd: &str, path: &str) -> String {
    // An empty path is refused by apexd; the working directory it is not.
    if path.is_empty() || path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", cwd.trim_end_matches('/'))
}

/// `PATH[:DEST]`, split at the last colon as the policy does; DEST is a path inside and stays.
pub(crate) fn grant(cwd: &str, text: &str) -> Result<String> {
    let (path, dest) = match text.rsplit_once(':') {
        Some((path, dest)) => (path, Some(dest)),
        None => (text, None),
    };
    let path = absolute(cwd, path);
    match dest {
        Some(dest) => Ok(format!("{path}:{dest}")),
        None if path.contains(':') => {
            bail!(
                "`{path}` holds a colon, which an option takes for the beginning of DEST; write the path in a policy file"
            )
        }
        None => Ok(path),
    }
}

/// The text of a policy file, or nothing when nothing is there.
///
/// # Errors
/// What is no regular file, too large or not text.
pub fn load(path: &Path) -> std::io::Result<Option<String>> {
    // Looked at before it is opened: opening a FIFO would wait for somebody to write.
    match std::fs::metadata(path) {
        Ok(about) if about.is_file() => {}
        Ok(_) => return Err(std::io::Error::other("not a regular file")),
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let most = apex_core::policy::FILE_SIZE_MAX as u64;
    let mut text = String::new();
    std::fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(std::io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(Some(text))
}

pub(crate) fn policy_text(path: &Path) -> Result<String> {
    let text = load(path).with_context(|| format!("reading the policy file {}", path.display()))?;
    text.with_context(|| format!("there is no policy file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_host_become_absolute() {
        let check = |text: &str, expected: &str| assert_eq!(grant("/home/u", text).unwrap(), expected);
        check("/a", "/a");
        check("a", "/home/u/a");
        check(".", "/home/u/.");
        check("a:/b", "/home/u/a:/b");
        check("/a:b:/c", "/a:b:/c");
        check("a:", "/home/u/a:");
        check(":/b", ":/b");
        assert_eq!(absolute("/", "a"), "/a");
        assert_eq!(absolute("/home/u", "../b"), "/home/u/../b");
        assert_eq!(absolute("/home/u", ""), "");
    }

    #[test]
    fn a_colon_of_the_working_directory_is_no_dest() {
        assert!(grant("/home/a:b", "c").unwrap_err().to_string().contains("colon"));
        assert_eq!(grant("/home/a:b", "c:/d").unwrap(), "/home/a:b/c:/d");
    }
}
