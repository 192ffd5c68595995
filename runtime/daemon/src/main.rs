//! `apexd`: keeps sandboxes alive, watches them and turns their dials.
//!
//! Three kinds of processes. The **warden** is forked first, before there is a thread: it alone starts keepers, as whom it is told. A **keeper** is an
//! `apex-run --keep`, one for each sandbox, which goes on when everything else is gone. The rest is this process: the API, the decisions (which are
//! `apex-core`'s), the store. It acts on a sandbox only by asking its keeper, and confines itself before it reads anything that a stranger sent.

mod ask;
mod audit;
mod bell;
mod budget;
mod clock;
mod confine;
mod costs;
mod crew;
mod dial;
mod door;
mod errand;
mod exec;
mod figures;
mod group;
mod groups;
mod handover;
mod health;
mod keeper;
mod limits;
mod log;
mod mail;
mod manager;
mod member;
mod metrics;
mod nest;
mod options;
mod place;
mod pool;
mod privilege;
mod program;
mod ready;
mod record;
mod refusals;
mod registry;
mod reload;
mod request;
mod run;
mod sandbox;
mod say;
mod service;
mod settle;
mod start;
mod store;
mod streams;
mod successor;
mod suggest;
mod terminal;
mod tokens;
mod trail;
mod tree;
mod usage;
mod vouch;
mod warden;
mod who;

use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;

use anyhow::{Context, Result};
use apex_sys::process::{self, Side};
use nix::sys::socket::getsockname;

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
    let options = &Options { socket: std::path::absolute(&options.socket)?, ..options.clone() };
    let user = privilege::choose(options.user.as_deref())?;
    // All that needs root, or a directory that is root's.
    let state = handover::prepare(&options.state, user.as_ref())?;
    let program = program::find()?;
    let listener = match manager.listener() {
        Some(handed) => handed.context("listening at the socket that was handed over")?,
        None => door::listen(&options.socket)?,
    };
    let (ours, its) = apex_sys::net::pair().context("making a socket for the warden")?;
    // Before any thread: what is forked later would inherit locks that nobody gives back.
    let nest = options.cgroup.as_deref().map(nest::make).transpose()?;
    match process::clone_into(0, nest.as_ref().map(AsFd::as_fd)).context("forking the warden")? {
        Side::Child => {
            let name = getsockname(listener.as_raw_fd()).context("the name of the socket")?;
            drop((ours, listener, manager, nest));
            let owner = user.map_or_else(|| nix::unistd::geteuid().as_raw(), |user| user.uid);
            process::exit_now(warden::begin(&its, &program, state, name, owner))
        }
        Side::Parent { pid, pidfd } => {
            drop((its, program, state, nest));
            say::begin();
            // What is made from here on is for nobody else; a keeper has the umask that we were given.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o066));
            raise_descriptors()?;
            privilege::give_up(user.as_ref())?;
            let place = place::Place::take(&options.state)?;
            confine::confine(&reach(options, user.as_ref()))?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .context("starting the runtime")?;
            let child = warden::Child { pid, pidfd, socket: ours };
            runtime.block_on(tree::live(options, place, child, (listener, manager)))
        }
    }
}

fn reach(options: &Options, user: Option<&privilege::User>) -> confine::Reach {
    // A user of its own could not remove the socket anyway, and must not be able to make another of its name.
    let socket_dir = if user.is_some() { None } else { options.socket.parent().map(Into::into) };
    confine::Reach { state: options.state.clone(), socket_dir, access: options.access.clone() }
}

/// A sandbox takes five descriptors or so, and the usual limit is made for programs that select(2).
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of descriptors")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of descriptors")
}

/// Threads that serve requests: the work is done by the kernel and by keepers.
const WORKERS: usize = 2;
