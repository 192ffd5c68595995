//! The services of the daemon and their supervision.
//!
//! Each service that fails is started anew by itself (one for one), at most [`RESTARTS_MAX`] times within [`RESTARTS_WITHIN`]; one that fails more often ends the
//! daemon, whose own supervisor begins anew with everything. The warden is no such service: what it keeps cannot be had again without the privileges that
//! only the start has, so its end is the daemon's.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apex_api::v1::ServiceState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::errand::{Errands, News};
use crate::options::Options;
use crate::place::Place;
use crate::registry::Daemon;
use crate::service::Face;
use crate::tokens::Tokens;
use crate::{limits, pool, warden};

/// Restarts of one service that are borne.
const RESTARTS_MAX: usize = 5;
/// Within this time.
const RESTARTS_WITHIN: Duration = Duration::from_secs(30);
/// Between an end and the next beginning.
const BACK_OFF: Duration = Duration::from_millis(100);
/// News of the warden that wait.
const NEWS_MAX: usize = 1024;

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
pub async fn live(
    options: &Options,
    place: Place,
    child: warden::Child,
    listener: std::os::unix::net::UnixListener,
) -> Result<()> {
    // Both before anything is told to be ready: a signal that comes in between must not kill it half way.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (to, news) = mpsc::channel(NEWS_MAX);
    let tokens = Tokens::open(place.file("tokens"));
    let errands = Errands::new(child.socket, tokens, to).context("speaking to the warden")?;
    let daemon = Daemon::open(options, place, errands).await?;
    let (stop, stopped) = watch::channel(false);
    let api = supervise(Arc::clone(&daemon), "api", {
        let (daemon, listener, stopped) = (Arc::clone(&daemon), Arc::new(listener), stopped.clone());
        move || serve(Arc::clone(&daemon), Arc::clone(&listener), stopped.clone())
    });
    let bell = supervise(Arc::clone(&daemon), "findings", {
        let daemon = Arc::clone(&daemon);
        move || {
            let daemon = Arc::clone(&daemon);
            async move { daemon.bell.ring(&daemon).await }
        }
    });
    let pool = supervise(Arc::clone(&daemon), "pool", {
        let daemon = Arc::clone(&daemon);
        move || pool::fill(Arc::clone(&daemon))
    });
    let limits = supervise(Arc::clone(&daemon), "limits", {
        let daemon = Arc::clone(&daemon);
        move || {
            let daemon = Arc::clone(&daemon);
            async move { limits::look(&daemon).await }
        }
    });
    let _ = daemon.metrics.warden.set(child.pid);
    daemon.services.note("warden", "running", 0, format!("pid {}", child.pid));
    let api = tokio::spawn(api);
    let outcome = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        outcome = bell => outcome,
        outcome = pool => outcome,
        outcome = limits => outcome,
        outcome = hear(&daemon, news) => outcome,
        outcome = wait_for(api) => outcome,
    };
    // Requests under way get their answers; sandboxes go on.
    let _ = stop.send(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    // With a user of its own it cannot: the next daemon, which starts as root, takes the file over.
    let _ = fs::remove_file(&options.socket);
    drop(child.pidfd);
    outcome
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
        eprintln!("apexd: service {name}: {error:#}");
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

async fn serve(
    daemon: Arc<Daemon>,
    listener: Arc<std::os::unix::net::UnixListener>,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    let listener = listener.try_clone().and_then(UnixListener::from_std).context("taking the socket")?;
    let until = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    apex_api::server::serve(listener, Arc::new(Face(daemon)), until).await.context("serving the API")
}
