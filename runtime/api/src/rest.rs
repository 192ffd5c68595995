//! REST in front of a [`Service`]: the router, what a request holds, and how answers and refusals are written.
//!
//! Input: HTTP requests with the [`Peer`] in their extensions. Output: calls of the service, through the table of [`crate::routes`], which the OpenAPI document
//! is made from as well. What nobody knows (a field, a parameter, a path) is refused by its name. Decides nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query, RawPathParams, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::on;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio_stream::{Stream, StreamExt};

use crate::count::Served;
use crate::routes::{ROUTES, Route};
use crate::server::{BODY_READ_TIMEOUT, MESSAGE_BYTES_MAX};
use crate::v1::JsonLine;
use crate::{Error, Kind, Peer, Service, Streamed};

/// Media type of Server-Sent Events.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";
pub(crate) const JSON: &str = "application/json";

/// The routes of the table, and words for what is none of them.
pub(crate) fn router(service: Arc<dyn Service>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let service = service.clone();
        router = router.route(
            route.path,
            on(route.verb.filter(), move |request: Request| handle(route, service.clone(), request)),
        );
    }
    let unknown = |request: Request| async move {
        let words = format!("there is nothing at {}; /openapi.json lists what there is", request.uri().path());
        refusal(StatusCode::NOT_FOUND, &Error::new(Kind::NotFound, words))
    };
    let wrong_method = |request: Request| async move {
        let words =
            format!("{} does not take {}; /openapi.json lists what it takes", request.uri().path(), request.method());
        refusal(StatusCode::METHOD_NOT_ALLOWED, &Error::new(Kind::Invalid, words))
    };
    router.fallback(unknown).method_not_allowed_fallback(wrong_method)
}

async fn handle(route: &'static Route, service: Arc<dyn Service>, request: Request) -> Response {
    let name = Served(route.name);
    let answer = async { (route.serve)(Call::open(route, service, request).await?).await };
    let mut answer = answer.await.unwrap_or_else(|error| refused(&error));
    answer.extensions_mut().insert(name);
    answer
}

/// An error with the status of its kind.
pub(crate) fn refused(error: &Error) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refusal(status, error)
}

/// One request, read and checked as far as that is the same for all.
pub(crate) struct Call {
    pub service: Arc<dyn Service>,
    pub peer: Peer,
    /// What stands in the place of `{id}` or `{group}`.
    pub id: String,
    /// Whether the client takes Server-Sent Events.
    pub takes_events: bool,
    query: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    async fn open(route: &Route, service: Arc<dyn Service>, request: Request) -> Result<Call, Error> {
        let (mut parts, body) = request.into_parts();
        let peer = parts.extensions.get::<Peer>().copied();
        let peer = peer.ok_or_else(|| Error::new(Kind::Internal, "the server did not tell who asks"))?;
        let params = RawPathParams::from_request_parts(&mut parts, &());
        let params = params.await.map_err(|error| Error::new(Kind::Invalid, error.body_text()))?;
        let id = params.iter().next().map(|(_, id)| id.to_owned()).unwrap_or_default();
        let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
        let Query(query) = query.map_err(|error| Error::new(Kind::Invalid, error.body_text()))?;
        check_names(route, &query)?;
        let body = whole(body, BODY_READ_TIMEOUT).await?;
        if route.body.is_none() && !matches!(body.trim_ascii(), b"" | b"{}") {
            return Err(Error::new(Kind::Invalid, format!("{} takes no body here", parts.method)));
        }
        Ok(Call { service, peer, id, takes_events: takes_events(&parts.headers), query, body })
    }

    /// A parameter of the query; `None` when it is absent or empty.
    pub fn word(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }

    /// A switch: absent is off, and its bare name is on.
    pub fn switch(&self, name: &str) -> Result<bool, Error> {
        match self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str()) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => {
                Err(Error::new(Kind::Invalid, format!("{name} is true or false, not `{}`", other.escape_default())))
            }
        }
    }

    /// A number; absent is 0.
    pub fn number<T: std::str::FromStr + Default>(&self, name: &str) -> Result<T, Error> {
        let Some(text) = self.word(name) else { return Ok(T::default()) };
        text.parse().map_err(|_| {
            Error::new(Kind::Invalid, format!("{name} is a number from 0, not `{}`", text.escape_default()))
        })
    }

    /// The body as a message. A field that it does not have is refused by name.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::new(Kind::Invalid, format!("in the body: {error}")))
    }
}

fn check_names(route: &Route, query: &[(String, String)]) -> Result<(), Error> {
    for (at, (name, _)) in query.iter().enumerate() {
        let shown = name.escape_default();
        if !route.query.iter().any(|param| param.name == name) {
            let known: Vec<_> = route.query.iter().map(|param| format!("`{}`", param.name)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Error::new(Kind::Invalid, format!("unknown parameter `{shown}`; known here: {known}")));
        }
        if query[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(Error::new(Kind::Invalid, format!("parameter `{shown}` was given twice; keep one of them")));
        }
    }
    Ok(())
}

/// The body, if it comes in time: one that never does would hold its connection for ever.
async fn whole(body: Body, within: Duration) -> Result<Bytes, Error> {
    match tokio::time::timeout(within, axum::body::to_bytes(body, MESSAGE_BYTES_MAX)).await {
        Ok(read) => read.map_err(|error| unreadable(&error)),
        Err(_) => {
            let words = format!("the body did not come within {} s; send the request again", within.as_secs());
            Err(Error::new(Kind::Invalid, words))
        }
    }
}

fn unreadable(error: &axum::Error) -> Error {
    // The limit is an error of the body like any other; only its words tell.
    match error.to_string().contains("length limit exceeded") {
        true => Error::new(Kind::Invalid, format!("the body is larger than {MESSAGE_BYTES_MAX} bytes")),
        false => Error::new(Kind::Invalid, format!("reading the body: {error}")),
    }
}

fn takes_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|one| one.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(EVENT_STREAM)))
}

/// How a refusal looks.
#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Refusal {
    error: Told,
}

/// Why a request was refused.
#[derive(Serialize, schemars::JsonSchema)]
struct Told {
    /// `invalid`, `not-found`, `denied`, `conflict`, `exhausted`, `unavailable` or `internal`.
    kind: &'static str,
    /// For people.
    message: String,
}

impl Refusal {
    fn of(error: &Error) -> Refusal {
        Refusal { error: Told { kind: error.kind.word(), message: error.words.clone() } }
    }
}

fn refusal(status: StatusCode, error: &Error) -> Response {
    json(status, &Refusal::of(error)).unwrap_or_else(|_| status.into_response())
}

/// A message as JSON.
pub(crate) fn json(status: StatusCode, message: &impl Serialize) -> Result<Response, Error> {
    let body = serde_json::to_vec(message).map_err(|error| Error::new(Kind::Internal, format!("as JSON: {error}")))?;
    Ok(typed(status, JSON, Body::from(body)))
}

/// A body of this media type.
pub(crate) fn typed(status: StatusCode, media: &'static str, body: Body) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    // State of the moment, and of one caller: nothing in between may keep it.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The lines as a JSON array, one after the other: it is never in memory as a whole. What goes wrong at the first line is a refusal; later the body breaks off.
pub(crate) async fn array(lines: Streamed<JsonLine>) -> Result<Response, Error> {
    let mut lines = lines.map(checked);
    let Some(first) = lines.next().await.transpose()? else {
        return Ok(typed(StatusCode::OK, JSON, Body::from("[]")));
    };
    let head = tokio_stream::once(Ok(format!("[{}", first.json)));
    let rest = lines.map(|line| line.map(|line| format!(",{}", line.json)));
    let whole = head.chain(rest).chain(tokio_stream::once(Ok::<_, Error>("]".to_owned())));
    Ok(typed(StatusCode::OK, JSON, Body::from_stream(until_error(whole))))
}

/// The lines as Server-Sent Events, as they come. What goes wrong is an event called `error`.
pub(crate) fn events(lines: Streamed<JsonLine>) -> Response {
    let written = until_error(lines.map(checked)).map(|line| {
        Ok::<_, Infallible>(match line {
            Ok(line) => event("", &line.json),
            Err(error) => event("event: error\n", &serde_json::to_string(&Refusal::of(&error)).unwrap_or_default()),
        })
    });
    typed(StatusCode::OK, EVENT_STREAM, Body::from_stream(written))
}

/// A line, if it is one JSON value. Whoever runs a sandbox can write into the files that these come from: anything else could end the array, and go on as if the
/// daemon had said it.
fn checked(line: Result<JsonLine, Error>) -> Result<JsonLine, Error> {
    let line = line?;
    match serde_json::from_str::<IgnoredAny>(&line.json) {
        Ok(_) => Ok(line),
        Err(error) => Err(Error::new(Kind::Internal, format!("a line of what is kept is no JSON: {error}"))),
    }
}

/// A line break inside would end the event: each line of the data is one of the event. A carriage return alone is a line break, too (HTML, 9.2.5).
fn event(head: &str, data: &str) -> String {
    let data: String = data.split(['\n', '\r']).map(|line| format!("data: {line}\n")).collect();
    format!("{head}{data}\n")
}

/// Up to the first error, and with it.
fn until_error<T>(stream: impl Stream<Item = Result<T, Error>>) -> impl Stream<Item = Result<T, Error>> {
    let mut over = false;
    stream.take_while(move |item| {
        let goes_on = !over;
        over = item.is_err();
        goes_on
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>());
        let refused = whole(never, Duration::from_millis(10)).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Invalid);
        assert_eq!(whole(Body::from("{}"), BODY_READ_TIMEOUT).await.unwrap(), "{}");
    }
}
