//! The shim itself: one thread, which serves the Task API of its group until containerd sends it away.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::r#async::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::Arguments;
use crate::container::Shared;
use crate::events::Publisher;
use crate::reaper::Reaper;
use crate::service::Service;
use crate::{group, log as lines};

/// What is printed when requests are taken; anything else is the reason why not.
pub const READY: &str = "ready";
/// How long the last events may take.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);
/// For the answer to the request that ends the shim.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);

/// Serves until the end; standard input is the listening socket.
pub fn serve(arguments: &Arguments) -> Result<()> {
    // Containerd need not read the log, and the shim need not have one.
    let logged = lines::into_fifo(Path::new("log"));
    lines::start(arguments.debug);
    if let Err(error) = logged {
        log::debug!("the fifo of the log is not there: {error}");
    }
    let listener = take_listener().context("cannot take the socket from standard input")?;
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the one who reaps")?;
    block_on(run(arguments, listener))
}

/// Runs one future on this thread, with all that waits for the kernel.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot make an epoll instance")?.block_on(future)
}

/// Reaps from here on.
pub fn start_reaping(reaper: Arc<Reaper>) -> Result<()> {
    let mut ends = signal(SignalKind::child()).context("cannot be told of children that end")?;
    tokio::spawn(async move {
        while ends.recv().await.is_some() {
            reaper.reap();
        }
    });
    Ok(())
}

fn take_listener() -> std::io::Result<UnixListener> {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // That it is one is known before anybody is told that it is served.
    listener.local_addr()?;
    quiet(0)?;
    Ok(listener)
}

fn quiet(number: i32) -> std::io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    Ok(apex_sys::fs::place(null.as_fd(), number)?)
}

async fn run(arguments: &Arguments, listener: UnixListener) -> Result<()> {
    let reaper = Reaper::new();
    start_reaping(Arc::clone(&reaper))?;
    let address = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
    let address = address.unwrap_or_else(|| format!("{}.ttrpc", arguments.address));
    let events = Publisher::start(address, arguments.namespace.clone());
    let namespace = arguments.namespace.clone();
    let service = Service::new(Shared { namespace, reaper, events: Arc::clone(&events) });
    let listener = Listener::try_from(listener).context("cannot wait for connections")?;
    let mut server = Server::new().add_listener(listener).register_service(create_task(Arc::new(service.clone())));
    server.start().await.context("cannot serve")?;
    say_ready().context("cannot say that requests are taken")?;
    wait_for_end(&service).await?;
    // First, so that nobody finds a shim that goes.
    if !arguments.socket.is_empty()
        && let Err(error) = group::remove(Path::new(&arguments.socket))
    {
        log::warn!("cannot remove the socket {}: {error}", arguments.socket);
    }
    events.flush(FLUSH_LIMIT).await;
    tokio::time::sleep(ANSWER_PAUSE).await;
    Ok(())
}

fn say_ready() -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    // Its end is what the start waits for.
    quiet(1)
}

/// Until containerd has no more use for it. A signal to end is taken only without containers, which nobody could follow any more.
async fn wait_for_end(service: &Service) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot be told to end")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot be told to end")?;
    loop {
        tokio::select! {
            () = service.over() => return Ok(()),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if service.is_idle() {
            return Ok(());
        }
        log::warn!("a signal to end is not followed: containers are there");
    }
}
