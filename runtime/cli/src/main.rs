//! `apex`: what people type to ask apexd for things. Input: the command line. Output: requests over the socket of apexd, their answers in words or JSON, and an
//! exit code: the command's own where there is one, 125 where Apex failed. Makes no sandbox itself.
#![forbid(unsafe_code)]

mod args;
mod group;
mod log;
mod mail;
mod policy;
mod request;
mod run;
mod show;
mod signals;
mod table;
mod terminal;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

use apex_core::escape;
use clap::Parser;

/// Exit code for whatever went wrong with Apex, not with the command.
const FAILED: u8 = 125;
/// What a shell shows of a program whose reader went away: 128 and SIGPIPE.
const NO_READER: u8 = 141;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return misread(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::anyhow!("starting the runtime: {error}")),
    };
    let outcome = runtime.block_on(verbs::perform(args));
    // A read of standard input may still be waiting; nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(broken) {
        return ExitCode::from(NO_READER);
    }
    tell(&format!("{error:#}"));
    ExitCode::from(FAILED)
}

/// Words for a person, each line made harmless. A closed standard error leaves nobody to tell.
fn tell(words: &str) {
    let lines: Vec<_> = words.lines().map(escape::text).collect();
    let _ = writeln!(std::io::stderr(), "apex: {}", lines.join("\n"));
}

/// Help and version are answers; the rest is an error of ours, and 2 would look like the command's.
fn misread(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::from(NO_READER) };
    }
    let words = error.render().to_string();
    tell(words.strip_prefix("error: ").unwrap_or(&words).trim_end());
    ExitCode::from(FAILED)
}
