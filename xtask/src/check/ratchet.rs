//! What is longer than the guide is listed with its size, and may only shrink.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Complaint, read, relative, source};

const FUNCTION_LINES_MAX: usize = 70;
pub const FILE_LINES_MAX: usize = 600;
const LIST: &str = "xtask/ratchet.toml";

/// Sizes in lines by name: `path` for files, `path::function` for functions.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    #[serde(default)]
    files: BTreeMap<String, usize>,
    #[serde(default)]
    functions: BTreeMap<String, usize>,
}

pub fn check(root: &Path, sources: &[PathBuf]) -> Result<Vec<Complaint>> {
    Ok(compare(&measure(root, sources)?, &listed(root)?))
}

/// Writes down what is there now, after a complaint that something shrank.
pub fn tighten(root: &Path, sources: &[PathBuf]) -> Result<()> {
    let (found, listed) = (measure(root, sources)?, listed(root)?);
    let grown = grown(&found, &listed);
    if !grown.is_empty() {
        bail!("the ratchet only shrinks:\n{}", grown.join("\n"));
    }
    let mut text = String::from(
        "# Longer than the guide (70 lines to a function, 600 to a file): may only shrink. `cargo xtask ratchet` tightens it.\n",
    );
    for (title, sizes) in [("files", &found.files), ("functions", &found.functions)] {
        write!(text, "\n[{title}]\n")?;
        for (name, lines) in sizes {
            writeln!(text, "{name:?} = {lines}")?;
        }
    }
    std::fs::write(root.join(LIST), text).with_context(|| format!("cannot write {LIST}"))
}

fn listed(root: &Path) -> Result<Long> {
    toml::from_str(&read(&root.join(LIST))?).with_context(|| format!("in {LIST}"))
}

fn measure(root: &Path, sources: &[PathBuf]) -> Result<Long> {
    let mut found = Long::default();
    for path in sources {
        let (name, text) = (relative(root, path), read(path)?);
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            found.files.insert(name.to_string(), lines);
        }
        for function in source::functions(&text).into_iter().filter(|function| function.lines > FUNCTION_LINES_MAX) {
            // Methods of one name in one file share an entry: the longest counts.
            let entry = found.functions.entry(format!("{name}::{}", function.name)).or_default();
            *entry = function.lines.max(*entry);
        }
    }
    Ok(found)
}

fn compare(found: &Long, listed: &Long) -> Vec<Complaint> {
    let mut complaints = grown(found, listed);
    for (found, listed) in [(&found.files, &listed.files), (&found.functions, &listed.functions)] {
        for (name, allowed) in listed {
            let now = found.get(name).copied();
            if now.is_none_or(|now| now < *allowed) {
                complaints.push(format!(
                    "{name} has shrunk below {allowed} lines: well done; run `cargo xtask ratchet` to keep it so"
                ));
            }
        }
    }
    complaints
}

fn grown(found: &Long, listed: &Long) -> Vec<Complaint> {
    let pairs =
        [(&found.files, &listed.files, FILE_LINES_MAX), (&found.functions, &listed.functions, FUNCTION_LINES_MAX)];
    let mut complaints = Vec::new();
    for (found, listed, guide) in pairs {
        for (name, now) in found {
            match listed.get(name) {
                None => complaints.push(format!("{name} has {now} lines, the guide says {guide}: split it")),
                Some(allowed) if now > allowed => {
                    complaints.push(format!("{name} grew from {allowed} to {now} lines; it may only shrink"))
                }
                Some(_) => {}
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(now: usize, listed: Option<usize>, says: &str) {
        let long = |lines: Option<usize>| Long {
            files: lines.map(|lines| ("a.rs".to_owned(), lines)).into_iter().collect(),
            ..Long::default()
        };
        let complaints = compare(&long(Some(now)), &long(listed)).join("\n");
        assert!(if says.is_empty() { complaints.is_empty() } else { complaints.contains(says) }, "{complaints}");
    }

    #[test]
    fn a_long_file_may_only_shrink() {
        check(700, None, "split it");
        check(701, Some(700), "may only shrink");
        check(700, Some(700), "");
        check(699, Some(700), "well done");
    }
}
