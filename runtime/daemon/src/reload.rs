//! Reading the rules of access anew, on SIGHUP. Rules that are broken change nothing: those in force stay, and it is said and written down.

use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::policy::Mode;
use serde_json::json;

use crate::ask::Asked;
use crate::record::Record;
use crate::registry::{Daemon, access};
use crate::say::{self, Level};

/// What `systemctl status` shows while all is well.
pub const WORDS: &str = "takes requests";

/// The whole of it. The service manager is told at its beginning and end.
pub fn reload(daemon: &Daemon) {
    daemon.manager.reloading();
    match exchange(daemon) {
        Ok(()) => {
            say::line(Level::Notice, "reload", None, format_args!("the rules of access were read anew"));
            daemon.manager.ready(WORDS);
        }
        Err(error) => {
            say::line(Level::Error, "reload", None, format_args!("{error:#}; the rules that were in force stay so"));
            daemon.manager.ready(&format!("{WORDS}; rules of access not read anew: {error:#}"));
        }
    }
}

fn exchange(daemon: &Daemon) -> anyhow::Result<()> {
    let nobody = Record::new(String::new(), nix::unistd::geteuid().as_raw(), Mode::Isolation, 0);
    let write_down = |outcome, words: &str| {
        let asked = Asked::by_itself(Operation::Reload);
        let written = daemon.write_down(&asked, &nobody, outcome, words, json!(null), json!(null));
        written.map_err(|error| anyhow::anyhow!("{error}"))
    };
    match access(&daemon.options) {
        Ok(policy) => {
            // First: what cannot be written down is not done.
            write_down(Outcome::Allowed, "asked by SIGHUP")?;
            daemon.set_access(policy);
            Ok(())
        }
        Err(error) => {
            write_down(Outcome::Failed, &format!("asked by SIGHUP: {error:#}"))?;
            Err(error)
        }
    }
}
