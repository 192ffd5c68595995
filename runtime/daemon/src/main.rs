//! `apexd`: keeps sandboxes alive, watches them and turns their dials.
//!
//! Three kinds of processes. The **warden** is forked first, before there is a thread: it alone starts keepers, as whom it is told. A **keeper** is an
//! `apex-run --keep`, one for each sandbox, which goes on when everything else is gone. The rest is this process: the API, the decisions (which are
//! `apex-core`'s), the store. It acts on a sandbox only by asking its keeper.

mod ask;
mod audit;
mod bell;
mod clock;
mod dial;
mod errand;
mod keeper;
mod log;
mod manager;
mod nest;
mod options;
mod place;
mod privilege;
mod ready;
mod record;
mod registry;
mod reload;
mod run;
mod sandbox;
mod say;
mod service;
mod start;
mod store;
mod streams;
mod tree;
mod warden;
mod who;

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use apex_sys::process::{self, Side};

use crate::options::{Action, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say::line(say::Level::Error, "end", None, format_args!("{error:#}"));
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<()> {
    match options::parse(std::env::args_os().skip(1))? {
        Action::Help => print!("{}", options::HELP),
        Action::Version => println!("apexd {}", env!("CARGO_PKG_VERSION")),
        Action::Serve(options) => serve(&options)?,
    }
    Ok(())
}

fn serve(options: &Options) -> Result<()> {
    let manager = manager::Manager::take()?;
    let place = place::Place::take(&options.state)?;
    let program = warden::find_program()?;
    let (ours, its) = apex_sys::net::pair().context("making a socket for the warden")?;
    // Before any thread: what is forked later would inherit locks that nobody gives back.
    let nest = options.cgroup.as_deref().map(nest::make).transpose()?;
    match process::clone_into(0, nest.as_ref().map(AsFd::as_fd)).context("forking the warden")? {
        Side::Child => {
            drop((ours, place, manager, nest));
            process::exit_now(warden::serve(&its, &program))
        }
        Side::Parent { pid, pidfd } => {
            drop((its, program, nest));
            say::begin();
            // What is made from here on is for nobody else; a keeper has the umask that we were given.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o066));
            raise_descriptors()?;
            privilege::give_up()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .context("starting the runtime")?;
            runtime.block_on(tree::live(options, place, warden::Child { pid, pidfd, socket: ours }, manager))
        }
    }
}

/// A sandbox takes five descriptors or so, and the usual limit is made for programs that select(2).
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of descriptors")
}

/// Threads that serve requests: the work is done by the kernel and by keepers.
const WORKERS: usize = 2;
