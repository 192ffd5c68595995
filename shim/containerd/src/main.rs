//! `containerd-shim-apex-v2`: the Task API of containerd over an OCI runtime, `apex-oci` by default.
//!
//! Containerd runs it in three ways: `start` in the bundle of a container, which leaves a shim behind for the container's group, without
//! an action, which is that shim, and `delete` when a shim is gone. It confines nothing itself: that is the runtime's.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

mod arguments;
mod bundle;
mod cgroup;
mod console;
mod container;
mod delete;
mod error;
mod events;
mod group;
mod io;
mod log;
mod logger;
mod oom;
mod options;
mod process;
mod reaper;
mod rootfs;
mod runtime;
mod serve;
mod service;
mod start;
mod stats;

use arguments::{Action, Arguments};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error.into()),
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if arguments.action == Action::Serve && !arguments.version && !arguments.info {
                // Whoever started it reads the reason there, as long as it has not said that it is ready.
                let _ = write!(std::io::stdout(), "{error:#}");
            }
            fail(&error)
        }
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("containerd-shim-apex-v2: {error:#}");
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.version {
        println!("containerd-shim-apex-v2 {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if arguments.info {
        return print_info();
    }
    match arguments.action {
        Action::Start => start::start(arguments),
        Action::Delete => {
            log::start(arguments.debug);
            delete::delete(arguments)
        }
        Action::Serve => serve::serve(arguments),
        Action::Log => Err(logger::become_program(&arguments.rest)).context("cannot become the log program"),
    }
}

/// What containerd 2 asks before it uses a runtime: versions and the runtime's features.
fn print_info() -> Result<()> {
    let options = options::Options::of_request(start::read_any()?.as_ref(), "")?;
    let output = std::process::Command::new(&options.binary).arg("features").output();
    let output = output.with_context(|| format!("cannot ask {} for its features", options.binary.display()))?;
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let mut info = RuntimeInfo { name: "io.containerd.apex.v2".to_owned(), ..Default::default() };
    info.version = MessageField::some(version);
    if output.status.success() {
        info.features = MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
            value: output.stdout,
            ..Default::default()
        });
    }
    let bytes = info.write_to_bytes().context("cannot make the answer")?;
    std::io::stdout().write_all(&bytes).context("cannot print the answer")
}
