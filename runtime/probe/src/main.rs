//! The command `apex-probe`: a verb and its arguments. `apex-run --watch` starts `serve`; the other verbs are for people.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use apex_probe::{doctor, model, rules, serve};

/// A verb of the command line.
struct Verb {
    name: &'static str,
    /// What stands behind it.
    usage: &'static str,
    /// What it does, in one line.
    help: &'static str,
    /// Does it; the value is the exit code.
    run: fn(Vec<OsString>) -> anyhow::Result<u8>,
}

/// Every verb, in the order of the help.
const VERBS: &[Verb] = &[
    Verb {
        name: "doctor",
        usage: "[--json]",
        help: "tell which families of events this host and user can have, and from where",
        run: doctor::run,
    },
    Verb {
        name: "import",
        usage: "sigma FILE... [-o DIR]",
        help: "translate rules of Sigma for Linux processes and files",
        run: rules::import,
    },
    Verb {
        name: "model",
        usage: "WORD [ARGS]",
        help: "train, show, score, list or reset what is known of the behaviour of a policy's runs",
        run: model::run,
    },
    Verb {
        name: "rules",
        usage: "WORD [ARGS]",
        help: "list, check or test the rules of the detectors, or replay a record of events",
        run: rules::run,
    },
    Verb {
        name: "serve",
        usage: "",
        help: "watch a sandbox: started by `apex-run --watch`, which holds the other end of descriptor 3",
        run: serve::run,
    },
];

/// The code of a failure of ours, as in apex-run.
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let verb = words.next().map(|word| word.to_string_lossy().into_owned());
    let result = match verb.as_deref() {
        None | Some("help" | "--help" | "-h") => say(&help()),
        Some("--version" | "-V") => say(&format!("apex-probe {}\n", env!("CARGO_PKG_VERSION"))),
        Some(name) => match VERBS.iter().find(|verb| verb.name == name) {
            Some(verb) => (verb.run)(words.collect()),
            None => Err(unknown(name)),
        },
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        // A closed standard error leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "apex-probe: {error:#}");
        FAILED
    }))
}

fn say(text: &str) -> anyhow::Result<u8> {
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(0)
}

fn unknown(name: &str) -> anyhow::Error {
    let names: Vec<&str> = VERBS.iter().map(|verb| verb.name).collect();
    anyhow::anyhow!("there is no `{}`; the verbs are {}", apex_core::escape::text(name), names.join(", "))
}

fn help() -> String {
    let mut text = String::from(
        "apex-probe: what a sandbox does, seen from the kernel\n\nUsage: apex-probe VERB [ARGS]\n\nVerbs:\n",
    );
    for verb in VERBS {
        let head = format!("{} {}", verb.name, verb.usage);
        text.push_str(&format!("  {:<28}{}\n", head.trim_end(), verb.help));
    }
    text
}
