//! `apex-run export seccomp|systemd` and `apex-run import seccomp FILE`.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use apex_core::export::{oci, systemd};
use apex_core::seccomp::Arch;
use apex_jail::host::LiveHost;
use apex_run::escape;
use apex_run::options::{self, Action, Options};

use super::files;
use crate::session::{self, Planned, working_directory};

/// Profiles in use have some ten thousand bytes.
const PROFILE_BYTES_MAX: u64 = 4 << 20;
const USAGE: &str = "apex-run export seccomp|systemd [--policy FILE] [options of a run]";

/// Prints the policy of the options in another language.
pub fn export(mut words: Vec<OsString>) -> Result<u8> {
    if words.is_empty() {
        bail!("into what is missing; write {USAGE}");
    }
    let kind = words.remove(0);
    // The plan of no command in particular.
    words.push("/bin/true".into());
    let options = Options { action: Action::Plan, ..options::parse(words)? };
    let host = LiveHost::at(working_directory()?);
    match kind.to_str() {
        Some("seccomp") => {
            let Planned { plan, .. } = session::plan_of_nothing(&options, &host)?;
            let table =
                plan.seccomp.as_ref().context("the policy filters no system calls: there is nothing to export")?;
            let (profile, notes) = oci::profile(table);
            for note in notes {
                let _ = writeln!(std::io::stderr(), "apex-run: {note}");
            }
            session::say(&(serde_json::to_string_pretty(&profile)? + "\n"))
        }
        Some("systemd") => {
            let Planned { plan, policy, .. } = session::plan_of_nothing(&options, &host)?;
            session::say(&systemd::unit(&plan, &policy))
        }
        _ => bail!("`{}` is nothing to export into; write {USAGE}", escape::os(&kind)),
    }
}

/// Prints the policy that a profile comes to.
pub fn import(words: Vec<OsString>) -> Result<u8> {
    let [kind, file] = words.as_slice() else {
        bail!("what to import is missing; write apex-run import seccomp FILE");
    };
    if kind != "seccomp" {
        bail!("`{}` is nothing to import; write apex-run import seccomp FILE", escape::os(kind));
    }
    let path = Path::new(file);
    let text = files::read(path, PROFILE_BYTES_MAX)?;
    let profile: oci::Profile = serde_json::from_str(&text)
        .or_else(|error| whole(&text).ok_or(error))
        .with_context(|| format!("{}: no OCI seccomp profile", escape::path(path)))?;
    let arch = Arch::native().context("Apex has no table of system calls for this machine")?;
    session::say(&oci::import(&profile, arch).to_toml())
}

/// The profile within a whole `config.json`.
fn whole(text: &str) -> Option<oci::Profile> {
    let config: serde_json::Value = serde_json::from_str(text).ok()?;
    serde_json::from_value(config.get("linux")?.get("seccomp")?.clone()).ok()
}
