//! Skips that are known, by class of user; any other one fails the run.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::tally::{Skip, Tally};

/// Who runs the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Root.
    Root,
    /// A user without privileges.
    User,
    /// Root in the virtual machine.
    VmRoot,
    /// A user in the virtual machine, in a session with a systemd user manager.
    VmUser,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Root => "root",
            Class::User => "an unprivileged user",
            Class::VmRoot => "root in the VM",
            Class::VmUser => "an unprivileged user in the VM",
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectations {
    #[serde(default)]
    skip: Vec<Expected>,
}

/// One skip that is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// Who skips it.
    class: Class,
    /// Full name of the test, or `FILE::*` for all of a file.
    name: String,
    /// How the reason begins that the test must give: a skip for another reason is news.
    reason: String,
}

impl Expected {
    fn covers(&self, class: Class, skip: &Skip) -> bool {
        let is_named = match self.name.strip_suffix('*') {
            Some(file) => file.ends_with("::") && skip.name.starts_with(file),
            None => self.name == skip.name,
        };
        self.class == class && is_named && skip.reason.starts_with(&self.reason)
    }
}

/// Reports the skips that were expected, and those that did not happen; returns those that were not, in words.
pub fn compare(tallies: &[Tally], file: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let expected: Expectations = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
    let mut surprises = Vec::new();
    for tally in tallies {
        for skip in &tally.skips {
            let said = format!("{}: {}: {}", tally.class, skip.name, skip.reason);
            if expected.skip.iter().any(|known| known.covers(tally.class, skip)) {
                println!("skipped as {said}");
            } else {
                surprises.push(format!("UNEXPECTED SKIP as {said}"));
            }
        }
        if tally.ignored > 0 {
            surprises.push(format!(
                "UNEXPECTED SKIP as {}: {} tests are marked #[ignore], which gives no reason",
                tally.class, tally.ignored
            ));
        }
        for known in expected.skip.iter().filter(|known| known.class == tally.class) {
            if !tally.skips.iter().any(|skip| known.covers(tally.class, skip)) {
                println!("expected skip did not happen as {}: {} ({})", tally.class, known.name, known.reason);
            }
        }
    }
    Ok(surprises)
}
