//! One unix socket for both ways in: gRPC (HTTP/2 with prior knowledge) and REST (HTTP/1.1 or 2).
//!
//! Input: a listener that the daemon made, with the mode and owner that it chose. Output: calls of the [`Service`], each with the [`Peer`] that the kernel names.
//! Everything a stranger can make grow has a bound below. Must not decide who may do what.

use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tower::Service as _;

use crate::peer::{self, Place};
use crate::seats::{Bounds, Seat, Seats};
use crate::{Error, Kind, Peer, Service, count, grpc, rest};

/// Largest message of gRPC and largest body of REST that is read, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Connections at once of all users but the daemon's own, who has as many again. A further one is closed.
pub const CONNECTIONS_MAX: usize = 1024;
/// Connections of one user at once, so that nobody keeps the others out: everybody may connect. A further one is closed.
pub const CONNECTIONS_PER_USER_MAX: usize = 256;
/// Requests under way at once of all users but the daemon's own, who has as many again. A further one is refused.
pub const REQUESTS_MAX: usize = 1024;
/// Requests under way of one user: each may hold a message that is not yet whole, and an answer that nobody reads.
pub const REQUESTS_PER_USER_MAX: usize = 256;
/// How long the head of a request may take, and how long a connection may be silent before its first request.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the body of a REST request may take, once its head is there.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests at once on one connection of HTTP/2.
pub const CONCURRENT_STREAMS_MAX: u32 = 256;
/// What requests that are under way have left when the server ends.
pub const GRACE: Duration = Duration::from_secs(5);
/// Bytes of the answer to one request that wait for a slow reader of HTTP/2.
const SEND_BYTES_MAX: usize = 64 << 10;
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
    let own_uid = own_uid()?;
    let bounds = |all, each| Seats::new(Bounds { own_uid, own: all, each, others: all });
    let connecting = bounds(CONNECTIONS_MAX, CONNECTIONS_PER_USER_MAX);
    let asking = bounds(REQUESTS_MAX, REQUESTS_PER_USER_MAX);
    let graceful = GracefulShutdown::new();
    // Dropped at the end: what the grace did not suffice for is cut off.
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    let outcome = loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = &mut shutdown => break Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // A socket whose other end the kernel cannot name is closed.
                let Some(seat) = stream.peer_cred().ok().and_then(|peer| connecting.take(peer.uid())) else { continue };
                let (router, watcher, asking) = (router.clone(), graceful.watcher(), Arc::clone(&asking));
                let service = service.clone();
                connections.spawn(async move {
                    if let Ok((peer, place)) = find(&stream).await {
                        if place == Place::Outside {
                            service.connected(peer, stream.as_fd()).await;
                        }
                        serve_one(stream, Client { peer, place, asking, service }, router, watcher).await;
                    }
                    drop(seat);
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

/// The user that this process is, as the kernel names it to others.
fn own_uid() -> std::io::Result<u32> {
    Ok(UnixStream::pair()?.0.peer_cred()?.uid())
}

/// Who asks. Without a descriptor left to ask the kernel with it waits for one, as long as a silent connection may last.
async fn find(stream: &UnixStream) -> std::io::Result<(Peer, Place)> {
    let begun = Instant::now();
    loop {
        match peer::find(stream) {
            Err(error) if is_passing(&error) && begun.elapsed() < HEADER_READ_TIMEOUT => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            found => return found,
        }
    }
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

/// Who is at the other end of a connection, and who is asked.
struct Client {
    peer: Peer,
    place: Place,
    asking: Arc<Seats>,
    service: Arc<dyn Service>,
}

async fn serve_one(stream: UnixStream, client: Client, router: Router, watcher: Watcher) {
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = asked.clone();
    let client = Arc::new(client);
    let answers = hyper::service::service_fn(move |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let (path, client) = (request.uri().path().to_owned(), Arc::clone(&client));
        let answer = answer(Arc::clone(&client), router.clone(), request.map(Body::new));
        async move {
            let answer = answer.await?;
            count::tell(client.service.as_ref(), &path, &answer);
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).max_concurrent_streams(CONCURRENT_STREAMS_MAX).max_send_buf_size(SEND_BYTES_MAX);
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

/// One request, if its user has a place for it.
async fn answer(
    client: Arc<Client>,
    mut router: Router,
    mut request: Request<Body>,
) -> Result<Response<Body>, std::convert::Infallible> {
    if client.place == Place::Inside {
        let words = "apexd is not to be had from inside a sandbox or container: what is asked for would be done outside; ask from outside";
        return Ok(refuse(&request, &Error::new(Kind::Denied, words)));
    }
    let Some(seat) = client.asking.take(client.peer.uid) else {
        let words =
            format!("{REQUESTS_PER_USER_MAX} requests of one user are under way; ask again when some have ended");
        return Ok(refuse(&request, &Error::new(Kind::Exhausted, words)));
    };
    request.extensions_mut().insert(client.peer);
    let response = router.call(request).await?;
    Ok(response.map(|body| Body::new(Held { body, _seat: seat })))
}

/// In the words of whichever way was come in by.
fn refuse(request: &Request<Body>, error: &Error) -> Response<Body> {
    let media = request.headers().get(axum::http::header::CONTENT_TYPE);
    let mut response = match media.is_some_and(|media| media.as_bytes().starts_with(b"application/grpc")) {
        true => tonic::Status::from(error.clone()).into_http(),
        false => rest::refused(error),
    };
    // No route was looked for: the path is whatever a stranger wrote.
    response.extensions_mut().insert(count::Served(count::OTHER));
    response
}

/// The body of an answer, which has its place until it is read or given up.
struct Held {
    body: Body,
    _seat: Seat,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
