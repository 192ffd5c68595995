//! The services of the daemon and their supervision.
//!
//! Each service that fails is started anew by itself (one for one), at most [`RESTARTS_MAX`] times within [`RESTARTS_WITHIN`]; one that fails more often ends the
//! daemon, whose own supervisor begins anew with everything. The warden is no such service: what it keeps cannot be had again without the privileges that
//! only the start has, so its end is the daemon's.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apex_api::v1::ServiceState;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::errand::{Errands, News};
use crate::manager::Manager;
use crate::options::Options;
use crate::place::Place;
use crate::registry::Daemon;
use crate::reload;
use crate::say::{self, Level};
use crate::service::Face;
use crate::warden;

/// Restarts of one service that are borne.
const RESTARTS_MAX: usize = 5;
/// Within this time.
const RESTARTS_WITHIN: Duration = Duration::from_secs(30);
/// Between an end and the next beginning.
const BACK_OFF: Duration = Duration::from_millis(100);
/// News of the warden that wait.
const NEWS_MAX: usize = 1024;
/// Who may connect: the rules of access say who may do what.
const SOCKET_MODE: u32 = 0o666;

/// What is known of the services.
#[derive(Default)]
pub struct Services(Mutex<BTreeMap<&'static str, ServiceState>>);

impl Services {
    fn note(&self, name: &'static str, state: &str, restarts: usize, words: String) {
        let state = ServiceState {
            name: name.to_owned(),
            state: state.to_owned(),
            restarts: u32::try_from(restarts).unwrap_or(u32::MAX),
            words,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, state);
    }

    /// All of them.
    pub fn states(&self) -> Vec<ServiceState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// The daemon's life: until it is told to end, or cannot go on.
pub async fn live(options: &Options, place: Place, child: warden::Child, manager: Manager) -> Result<()> {
    // Both before anything is told to be ready: a signal that comes in between must not kill it half way.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let hangup = signal(SignalKind::hangup())?;
    let (to, news) = mpsc::channel(NEWS_MAX);
    let errands = Errands::new(child.socket, to).context("speaking to the warden")?;
    let daemon = Daemon::open(options, place, errands, manager).await?;
    let (stop, stopped) = watch::channel(false);
    let api = supervise(Arc::clone(&daemon), "api", {
        let (daemon, stopped) = (Arc::clone(&daemon), stopped.clone());
        move || serve(Arc::clone(&daemon), stopped.clone())
    });
    let bell = supervise(Arc::clone(&daemon), "findings", {
        let daemon = Arc::clone(&daemon);
        move || {
            let daemon = Arc::clone(&daemon);
            async move { daemon.bell.ring(&daemon).await }
        }
    });
    daemon.services.note("warden", "running", 0, format!("pid {}", child.pid));
    let api = tokio::spawn(api);
    let outcome = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = reload_on(&daemon, hangup) => Ok(()),
        outcome = beat(&daemon) => outcome,
        outcome = bell => outcome,
        outcome = hear(&daemon, news) => outcome,
        outcome = wait_for(api) => outcome,
    };
    daemon.manager.stopping();
    // Requests under way get their answers; sandboxes go on.
    let _ = stop.send(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    if daemon.manager.listener().is_none() {
        let _ = fs::remove_file(&options.socket);
    }
    drop(child.pidfd);
    outcome
}

async fn reload_on(daemon: &Daemon, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        reload::reload(daemon);
    }
    std::future::pending().await
}

/// Beats for the watchdog as long as what every request needs can be had: a worker, the list of sandboxes, each one's record, behind which the store is.
async fn beat(daemon: &Arc<Daemon>) -> Result<()> {
    let Some(every) = daemon.manager.beat_every() else { return std::future::pending().await };
    loop {
        let looking = Arc::clone(daemon);
        tokio::spawn(async move { looking.by_state() }).await.context("looking at the sandboxes for the watchdog")?;
        daemon.manager.beat();
        tokio::time::sleep(every).await;
    }
}

async fn wait_for(api: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    api.await.context("the API")?
}

async fn hear(daemon: &Daemon, mut news: mpsc::Receiver<News>) -> Result<()> {
    while let Some(News::Ended { id, code }) = news.recv().await {
        if let Ok(sandbox) = daemon.find(&id) {
            sandbox.keeper_ended(code);
        }
    }
    bail!("the warden is gone; sandboxes go on, and the next apexd takes them up")
}

async fn supervise<F>(daemon: Arc<Daemon>, name: &'static str, begin: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut ends: VecDeque<Instant> = VecDeque::new();
    let mut restarts = 0;
    loop {
        daemon.services.note(name, "running", restarts, String::new());
        let Err(error) = begin().await else { return Ok(()) };
        say::line(Level::Error, "service", None, format_args!("service {name}: {error:#}"));
        ends.push_back(Instant::now());
        ends.retain(|end| end.elapsed() < RESTARTS_WITHIN);
        if ends.len() > RESTARTS_MAX {
            daemon.services.note(name, "failed", restarts, format!("{error:#}"));
            return Err(error).with_context(|| {
                format!("service {name} ended {} times within {} s", ends.len(), RESTARTS_WITHIN.as_secs())
            });
        }
        restarts += 1;
        daemon.services.note(name, "restarting", restarts, format!("{error:#}"));
        tokio::time::sleep(BACK_OFF).await;
    }
}

async fn serve(daemon: Arc<Daemon>, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let listener = match daemon.manager.listener() {
        Some(handed) => {
            handed.and_then(UnixListener::from_std).context("listening at the socket that was handed over")?
        }
        None => listen(&daemon.options.socket)?,
    };
    daemon.manager.ready(reload::WORDS);
    let until = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    apex_api::server::serve(listener, Arc::new(Face(daemon)), until).await.context("serving the API")
}

/// A socket file that nobody listens to any more is taken over; one that somebody does is left alone.
fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making the directory {}", dir.display()))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("somebody listens at {} already; choose another --socket, or end that apexd", path.display());
        }
        fs::remove_file(path).with_context(|| format!("removing the old socket {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening at {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("opening {} to everybody", path.display()))?;
    Ok(listener)
}
