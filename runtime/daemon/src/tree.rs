//! The supervision tree of the daemon's services, and its end.
//!
//! ```text
//! apexd            rest-for-one
//! |-- warden       never started anew: what it keeps cannot be had again without the privileges that only the start has
//! `-- services     one-for-one
//!     |-- api
//!     |-- findings
//!     |-- limits
//!     |-- pool
//!     `-- groups
//! ```
//!
//! A service that fails is started anew by itself. When they fail too often, all of them begin anew, once; when that does not help either, the daemon ends, and its own
//! supervisor begins anew with everything. The end of the warden is the end of all.

use std::fs;
use std::os::unix::net::UnixListener as Listener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apex_core::supervise::{BackOff, Intensity, Restart, Strategy};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch};

use crate::crew::{Rules, Service, supervise};
use crate::errand::{Errands, News};
use crate::groups;
use crate::manager::Manager;
use crate::options::Options;
use crate::place::Place;
use crate::registry::Daemon;
use crate::reload;
use crate::service::Face;
use crate::tokens::Tokens;
use crate::{limits, pool, warden};

/// The daemon: what comes first, and all that stands on it.
const APEXD: Rules = Rules {
    under: "",
    strategy: Strategy::RestForOne,
    intensity: Intensity { restarts: 1, within_ms: 300_000 },
    back_off: BACK_OFF,
};
/// Those that can fail each for itself.
const SERVICES: Rules = Rules {
    under: "services",
    strategy: Strategy::OneForOne,
    intensity: Intensity { restarts: 5, within_ms: 30_000 },
    back_off: BACK_OFF,
};
/// Short: whoever connects meanwhile is refused.
const BACK_OFF: BackOff = BackOff { first_ms: 100, max_ms: 200 };
/// News of the warden that wait.
const NEWS_MAX: usize = 1024;

/// The daemon's life: until it is told to end, or cannot go on.
pub async fn live(
    options: &Options,
    place: Place,
    child: warden::Child,
    (listener, manager): (Listener, Manager),
) -> Result<()> {
    // Both before anything is told to be ready: a signal that comes in between must not kill it half way.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let hangup = signal(SignalKind::hangup())?;
    let (to, news) = mpsc::channel(NEWS_MAX);
    let tokens = Tokens::open(place.file("tokens"));
    let errands = Errands::new(child.socket, tokens, to).context("speaking to the warden")?;
    let daemon = Daemon::open(options, place, errands, manager).await?;
    let (stop, stopped) = watch::channel(false);
    let _ = daemon.metrics.warden.set(child.pid);
    // In a task of its own: what is under way goes on when the wait below ends.
    let all = all(&daemon, child.pid, news, (&Arc::new(listener), &stopped));
    let crew = tokio::spawn(supervise(Arc::clone(&daemon.services), APEXD, all));
    let outcome = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = reload_on(&daemon, hangup) => Ok(()),
        outcome = beat(&daemon) => outcome,
        outcome = crew => outcome.context("the services").flatten(),
    };
    daemon.manager.stopping();
    // Requests under way get their answers; sandboxes go on.
    let _ = stop.send(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    if daemon.manager.listener().is_none() {
        // With a user of its own it cannot: the next daemon, which starts as root, takes the file over.
        let _ = fs::remove_file(&options.socket);
    }
    drop(child.pidfd);
    outcome
}

/// The listening socket, and word of the end.
type Door<'a> = (&'a Arc<Listener>, &'a watch::Receiver<bool>);

fn all(daemon: &Arc<Daemon>, warden: i32, news: mpsc::Receiver<News>, (listener, stopped): Door<'_>) -> Vec<Service> {
    let (hearing, news) = (Arc::clone(daemon), Arc::new(Mutex::new(news)));
    let ear = Service::new("warden", move || hear(Arc::clone(&hearing), Arc::clone(&news)));
    let ear = Service { restart: Restart::Never, words: format!("pid {warden}"), ..ear };
    let (daemon, listener, stopped) = (Arc::clone(daemon), Arc::clone(listener), stopped.clone());
    let services = Service::new("services", move || {
        supervise(Arc::clone(&daemon.services), SERVICES, services(&daemon, (&listener, &stopped)))
    });
    vec![ear, Service { after: &["warden"], ..services }]
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
        tokio::spawn(async move { looking.all().len() }).await.context("looking at the sandboxes for the watchdog")?;
        daemon.manager.beat();
        tokio::time::sleep(every).await;
    }
}

fn services(daemon: &Arc<Daemon>, (listener, stopped): Door<'_>) -> Vec<Service> {
    let (serving, listener, stopped) = (Arc::clone(daemon), Arc::clone(listener), stopped.clone());
    let api = Service::new("api", move || serve(Arc::clone(&serving), Arc::clone(&listener), stopped.clone()));
    let ringing = Arc::clone(daemon);
    let findings = Service::new("findings", move || {
        let daemon = Arc::clone(&ringing);
        async move { daemon.bell.ring(&daemon).await }
    });
    let supervising = Arc::clone(daemon);
    let groups = Service::new("groups", move || groups::live(Arc::clone(&supervising)));
    let looking = Arc::clone(daemon);
    let limits = Service::new("limits", move || {
        let daemon = Arc::clone(&looking);
        async move { limits::look(daemon).await }
    });
    let filling = Arc::clone(daemon);
    let pool = Service::new("pool", move || pool::fill(Arc::clone(&filling)));
    vec![findings, limits, pool, groups, api]
}

/// What the warden tells. Nobody else listens there, so the lock is free.
async fn hear(daemon: Arc<Daemon>, news: Arc<Mutex<mpsc::Receiver<News>>>) -> Result<()> {
    let mut news = news.lock().await;
    while let Some(News::Ended { id, code }) = news.recv().await {
        if let Some(sandbox) = daemon.get(&id) {
            sandbox.keeper_ended(code);
        }
    }
    bail!("the warden is gone; sandboxes go on, and the next apexd takes them up")
}

async fn serve(daemon: Arc<Daemon>, listener: Arc<Listener>, mut stopped: watch::Receiver<bool>) -> Result<()> {
    let listener = listener.try_clone().and_then(UnixListener::from_std).context("taking the socket")?;
    daemon.manager.ready(reload::WORDS);
    let until = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    apex_api::server::serve(listener, Arc::new(Face(daemon)), until).await.context("serving the API")
}
