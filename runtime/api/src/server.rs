//! One unix socket for both ways in: gRPC (HTTP/2 with prior knowledge) and REST (HTTP/1.1 or 2).
//!
//! Input: a listener that the daemon made, with the mode and owner that it chose. Output: calls of the [`Service`], each with the [`Peer`] that the kernel names.
//! Everything a stranger can make grow has a bound below. Must not decide who may do what.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Service as _;

use crate::{Peer, Service, count, grpc, rest};

/// Largest message of gRPC and largest body of REST that is read, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Connections at once. Who comes later waits in the backlog of the socket.
pub const CONNECTIONS_MAX: usize = 1024;
/// Connections of one user at once, so that nobody keeps the others out: everybody may connect. A further one is closed.
pub const CONNECTIONS_PER_USER_MAX: usize = 256;
/// How long the head of a request may take, and how long a connection may be silent before its first request.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the body of a REST request may take, once its head is there.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests at once on one connection of HTTP/2.
pub const CONCURRENT_STREAMS_MAX: u32 = 256;
/// What requests that are under way have left when the server ends.
pub const GRACE: Duration = Duration::from_secs(5);
/// Pause when the process is out of descriptors: the connection stays in the backlog, and a loop without pause would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is done and what was under way has ended, or [`GRACE`] is over.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: UnixListener,
    service: Arc<dyn Service>,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let router = router(service.clone());
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let users = Arc::new(Users::default());
    let graceful = GracefulShutdown::new();
    // Dropped at the end: what the grace did not suffice for is cut off.
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let outcome = loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break Ok(()),
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                // A socket whose other end the kernel cannot name is closed.
                let Ok(peer) = peer(&stream) else { continue };
                let Some(seat) = Seat::take(&users, peer.uid) else { continue };
                let (served, watcher) = ((router.clone(), service.clone()), graceful.watcher());
                connections.spawn(async move {
                    serve_one(stream, peer, served, watcher).await;
                    drop((place, seat));
                });
            }
            Err(error) if is_passing(&error) => {
                tokio::select! {
                    () = &mut shutdown => break Ok(()),
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
            Err(error) => break Err(error),
        }
    };
    // Nobody new while the rest ends.
    drop(listener);
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    outcome
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// Whether accept(2) may work again: a peer that went away, a signal, or a resource that is short (EMFILE, ENFILE, ENOBUFS, ENOMEM).
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, Interrupted, OutOfMemory, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | OutOfMemory | WouldBlock)
        || matches!(error.raw_os_error(), Some(23 | 24 | 105))
}

/// Both ways in.
fn router(service: Arc<dyn Service>) -> Router {
    rest::router(service.clone()).route_service("/apex.v1.Apex/{*method}", grpc::server(service))
}

async fn serve_one(stream: UnixStream, peer: Peer, served: (Router, Arc<dyn Service>), watcher: Watcher) {
    let (router, service) = served;
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = asked.clone();
    let answers = hyper::service::service_fn(move |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let (path, service) = (request.uri().path().to_owned(), service.clone());
        let answer = router.clone().call(request);
        async move {
            let Ok(response) = answer.await;
            count::tell(service.as_ref(), &path, &response);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(CONCURRENT_STREAMS_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), answers).into_owned();
    let mut connection = std::pin::pin!(watcher.watch(connection));
    // The timeout of the head begins with its first byte: without this one a silent connection would hold its place for ever.
    let silent = async {
        tokio::time::sleep(HEADER_READ_TIMEOUT).await;
        if asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        // How a connection ends is the client's business: nobody is left to tell.
        _ = &mut connection => {}
        () = silent => {}
    }
}

fn peer(stream: &UnixStream) -> std::io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), pid })
}

/// How many connections each user has.
type Users = Mutex<HashMap<u32, usize>>;

/// A connection, counted for its user as long as it lasts.
struct Seat {
    users: Arc<Users>,
    uid: u32,
}

impl Seat {
    /// `None` when this user has as many as one may have.
    fn take(users: &Arc<Users>, uid: u32) -> Option<Seat> {
        let mut counts = users.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        if *count >= CONNECTIONS_PER_USER_MAX {
            return None;
        }
        *count += 1;
        Some(Seat { users: Arc::clone(users), uid })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.uid) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_keep_the_others_out() {
        let users = Arc::new(Users::default());
        let mut seats: Vec<_> = (0..CONNECTIONS_PER_USER_MAX).filter_map(|_| Seat::take(&users, 1)).collect();
        assert_eq!(seats.len(), CONNECTIONS_PER_USER_MAX);
        assert!(Seat::take(&users, 1).is_none());
        assert!(Seat::take(&users, 2).is_some());
        seats.pop();
        assert!(Seat::take(&users, 1).is_some());
        drop(seats);
        assert!(users.lock().unwrap().is_empty(), "nothing is kept of a user who left");
    }
}
