//! Each route of the REST interface, once: the router and the OpenAPI document are both made from this table.

use std::pin::Pin;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use tokio_stream::StreamExt;

use crate::bodies::{LimitsBody, ModeBody, SignalBody, SwitchesBody};
use crate::mail;
use crate::openapi;
use crate::rest::{Call, array, events, json, typed};
use crate::v1::{
    AuditRequest, AuditVerdict, CreateRequest, DrainPoolsRequest, Group, GroupRef, GroupsResponse, ListRequest,
    ListResponse, LogsRequest, MailSent, MailboxesResponse, Pool, PoolsResponse, RemoveRequest, Sandbox, SandboxRef,
    SetLimitsRequest, SetModeRequest, SetPoolRequest, SetSwitchesRequest, SignalRequest, StatsResponse, StreamRequest,
    Suggestion, Transition, TreeResponse, UpRequest,
};
use crate::{Error, Kind};

type Answered = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One route.
pub(crate) struct Route {
    pub verb: Verb,
    pub path: &'static str,
    /// Its name in the document.
    pub name: &'static str,
    /// What it does, in plain words; no full stop at the end.
    pub what: &'static str,
    pub query: &'static [Param],
    pub body: Option<SchemaOf>,
    pub status: u16,
    pub answer: Answer,
    pub serve: fn(Call) -> Answered,
}

/// A method of HTTP.
#[derive(Clone, Copy)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Delete,
}

impl Verb {
    pub const fn filter(self) -> MethodFilter {
        match self {
            Verb::Get => MethodFilter::GET,
            Verb::Post => MethodFilter::POST,
            Verb::Put => MethodFilter::PUT,
            Verb::Delete => MethodFilter::DELETE,
        }
    }

    /// As the document writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::Post => "post",
            Verb::Put => "put",
            Verb::Delete => "delete",
        }
    }
}

/// One parameter of the query.
pub(crate) struct Param {
    pub name: &'static str,
    /// Its type in JSON Schema.
    pub kind: &'static str,
    pub what: &'static str,
}

/// What a route answers.
pub(crate) enum Answer {
    /// A message.
    Message(SchemaOf),
    /// JSON values: an array, or Server-Sent Events for a client that takes them.
    Followed,
    /// JSON values: an array.
    Values,
    /// A text or bytes of this media type.
    Other(&'static str),
    /// Nothing.
    Empty,
}

/// Media type of Prometheus' text format.
const METRICS: &str = "text/plain; version=0.0.4";
const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

const fn of<T: JsonSchema>() -> SchemaOf {
    |generator| generator.subschema_for::<T>()
}

const fn route(
    verb: Verb,
    path: &'static str,
    name: &'static str,
    what: &'static str,
    answer: Answer,
    serve: fn(Call) -> Answered,
) -> Route {
    Route { verb, path, name, what, query: &[], body: None, status: 200, answer, serve }
}

impl Route {
    const fn query(self, query: &'static [Param]) -> Route {
        Route { query, ..self }
    }

    const fn body(self, body: SchemaOf) -> Route {
        Route { body: Some(body), ..self }
    }

    const fn status(self, status: u16) -> Route {
        Route { status, ..self }
    }
}

const fn param(name: &'static str, kind: &'static str, what: &'static str) -> Param {
    Param { name, kind, what }
}

/// Whose mailbox.
const MAIL_USER: Param = param("user", "string", "whose, by name or number; the asker's own when absent");

/// The table, in the order of the document.
pub(crate) static ROUTES: &[Route] = &[
    route(
        Verb::Post,
        "/v1/sandboxes",
        "create",
        "start a sandbox; answers when its command runs, or with the reason why it does not",
        Answer::Message(of::<Sandbox>()),
        |call| Box::pin(create(call)),
    )
    .body(of::<CreateRequest>())
    .query(&[param("wait", "boolean", "answer when it has ended")])
    .status(201),
    route(
        Verb::Get,
        "/v1/sandboxes",
        "list",
        "the sandboxes that are there",
        Answer::Message(of::<ListResponse>()),
        |call| Box::pin(list(call)),
    )
    .query(&[param("all", "boolean", "those that have ended as well")]),
    route(
        Verb::Get,
        "/v1/sandboxes/{id}",
        "inspect",
        "one sandbox, by id, by an unambiguous beginning of it, or by name",
        Answer::Message(of::<Sandbox>()),
        |call| Box::pin(inspect(call)),
    ),
    route(Verb::Delete, "/v1/sandboxes/{id}", "remove", "forget a sandbox that has ended", Answer::Empty, |call| {
        Box::pin(remove(call))
    })
    .query(&[param("force", "boolean", "end one that still runs")])
    .status(204),
    route(
        Verb::Put,
        "/v1/sandboxes/{id}/mode",
        "setMode",
        "change the mode of a sandbox that runs",
        Answer::Message(of::<Transition>()),
        |call| Box::pin(set_mode(call)),
    )
    .body(of::<ModeBody>()),
    route(
        Verb::Get,
        "/v1/sandboxes/{id}/suggestion",
        "suggestMode",
        "a mode that suits what a watched sandbox was seen to do; it changes nothing",
        Answer::Message(of::<Suggestion>()),
        |call| Box::pin(suggest_mode(call)),
    ),
    route(
        Verb::Put,
        "/v1/sandboxes/{id}/limits",
        "setLimits",
        "change the limits of a sandbox that runs",
        Answer::Message(of::<Transition>()),
        |call| Box::pin(set_limits(call)),
    )
    .body(of::<LimitsBody>()),
    route(
        Verb::Put,
        "/v1/sandboxes/{id}/switches",
        "setSwitches",
        "change what a sandbox that runs is refused, one kind of call by itself",
        Answer::Message(of::<Transition>()),
        |call| Box::pin(set_switches(call)),
    )
    .body(of::<SwitchesBody>()),
    route(
        Verb::Post,
        "/v1/sandboxes/{id}/pause",
        "pause",
        "freeze every process of a sandbox",
        Answer::Message(of::<Sandbox>()),
        |call| Box::pin(pause(call)),
    ),
    route(
        Verb::Post,
        "/v1/sandboxes/{id}/resume",
        "resume",
        "let a frozen sandbox go on",
        Answer::Message(of::<Sandbox>()),
        |call| Box::pin(resume(call)),
    ),
    route(Verb::Post, "/v1/sandboxes/{id}/kill", "kill", "end a sandbox", Answer::Message(of::<Sandbox>()), |call| {
        Box::pin(kill(call))
    }),
    route(
        Verb::Post,
        "/v1/sandboxes/{id}/wait",
        "wait",
        "answers when a sandbox has ended",
        Answer::Message(of::<Sandbox>()),
        |call| Box::pin(wait(call)),
    ),
    route(
        Verb::Post,
        "/v1/sandboxes/{id}/signal",
        "signal",
        "send a signal to the command",
        Answer::Message(of::<Sandbox>()),
        |call| Box::pin(signal(call)),
    )
    .body(of::<SignalBody>()),
    route(
        Verb::Get,
        "/v1/sandboxes/{id}/logs",
        "logs",
        "what the command wrote, as far as it is kept",
        Answer::Other(BYTES),
        |call| Box::pin(logs(call)),
    )
    .query(&[
        param("stream", "string", "stdout or stderr; both, as they came, when absent"),
        param("tail_bytes", "integer", "only so much from the end of each stream; 0 for all that is kept"),
        param("follow", "boolean", "go on until the sandbox ends"),
    ]),
    route(Verb::Get, "/v1/sandboxes/{id}/events", "events", "what was seen of a sandbox", Answer::Followed, |call| {
        Box::pin(seen(call))
    }),
    route(
        Verb::Get,
        "/v1/sandboxes/{id}/findings",
        "findings",
        "what was concluded of it, an OCSF Detection Finding each",
        Answer::Followed,
        |call| Box::pin(concluded(call)),
    ),
    route(
        Verb::Get,
        "/v1/tree",
        "tree",
        "the services of apexd itself",
        Answer::Message(of::<TreeResponse>()),
        |call| Box::pin(tree(call)),
    ),
    route(Verb::Get, "/v1/stats", "stats", "what the sandboxes use", Answer::Message(of::<StatsResponse>()), |call| {
        Box::pin(stats(call))
    }),
    route(
        Verb::Post,
        "/v1/groups",
        "up",
        "start a group of sandboxes and keep it running; answers when that is written down, and members start",
        Answer::Message(of::<Group>()),
        |call| Box::pin(up(call)),
    )
    .body(of::<UpRequest>())
    .status(201),
    route(
        Verb::Get,
        "/v1/groups",
        "groups",
        "the groups that are there",
        Answer::Message(of::<GroupsResponse>()),
        |call| Box::pin(groups(call)),
    ),
    route(
        Verb::Delete,
        "/v1/groups/{group}",
        "down",
        "end a group and forget it; answers when its sandboxes are gone",
        Answer::Message(of::<Group>()),
        |call| Box::pin(down(call)),
    ),
    route(
        Verb::Get,
        "/v1/pools",
        "pools",
        "pools of sandboxes that are built ahead",
        Answer::Message(of::<PoolsResponse>()),
        |call| Box::pin(pools(call)),
    ),
    route(
        Verb::Put,
        "/v1/pools",
        "setPool",
        "have so many sandboxes of one kind ready from now on",
        Answer::Message(of::<Pool>()),
        |call| Box::pin(set_pool(call)),
    )
    .body(of::<SetPoolRequest>()),
    route(
        Verb::Delete,
        "/v1/pools",
        "drainPools",
        "give pools up; answers with those that were",
        Answer::Message(of::<PoolsResponse>()),
        |call| Box::pin(drain_pools(call)),
    )
    .query(&[param("id", "string", "one of them; all of those that one may drain when absent")]),
    route(
        Verb::Get,
        "/v1/mailboxes",
        "mailboxes",
        "mailboxes with messages in them, or named by the policy of a sandbox that lives",
        Answer::Message(of::<MailboxesResponse>()),
        |call| Box::pin(mail::mailboxes(call)),
    ),
    route(
        Verb::Post,
        "/v1/mailboxes/{mailbox}/send",
        "mailSend",
        "send a message from the host; answers when it is kept",
        Answer::Message(of::<MailSent>()),
        |call| Box::pin(mail::send(call)),
    )
    .body(of::<mail::SendBody>())
    .query(&[MAIL_USER])
    .status(201),
    route(
        Verb::Post,
        "/v1/mailboxes/{mailbox}/receive",
        "mailReceive",
        "receive the oldest message that nobody has; it is given again unless it is acknowledged within 30 s",
        Answer::Message(of::<mail::Answer>()),
        |call| Box::pin(mail::receive(call)),
    )
    .query(&[MAIL_USER, param("wait_ms", "integer", "how long to wait for one, at most 60000")]),
    route(
        Verb::Post,
        "/v1/mailboxes/{mailbox}/acknowledge",
        "mailAcknowledge",
        "be done with a message",
        Answer::Empty,
        |call| Box::pin(mail::acknowledge(call)),
    )
    .body(of::<mail::DoneBody>())
    .query(&[MAIL_USER])
    .status(204),
    route(Verb::Delete, "/v1/mailboxes/{mailbox}", "mailRemove", "empty a mailbox", Answer::Empty, |call| {
        Box::pin(mail::remove(call))
    })
    .query(&[MAIL_USER])
    .status(204),
    route(
        Verb::Get,
        "/v1/audit",
        "auditTail",
        "the newest records of the audit log, oldest first",
        Answer::Values,
        |call| Box::pin(audit_tail(call)),
    )
    .query(&[param("limit", "integer", "how many; 0 for what apexd thinks right")]),
    route(
        Verb::Get,
        "/v1/audit/verify",
        "auditVerify",
        "whether the audit log is intact",
        Answer::Message(of::<AuditVerdict>()),
        |call| Box::pin(audit_verify(call)),
    ),
    route(Verb::Get, "/healthz", "healthz", "whether the process answers; always ok", Answer::Other(TEXT), |call| {
        Box::pin(healthz(call))
    }),
    route(Verb::Get, "/readyz", "readyz", "whether requests are served", Answer::Other(TEXT), |call| {
        Box::pin(readyz(call))
    }),
    route(
        Verb::Get,
        "/metrics",
        "metrics",
        "numbers in the text format of Prometheus",
        Answer::Other(METRICS),
        |call| Box::pin(metrics(call)),
    )
    .query(&[param(
        "probes",
        "boolean",
        "what each kernel probe costs as well, for which every watched sandbox is asked",
    )]),
    route(Verb::Get, "/openapi.json", "openapi", "this document", Answer::Other("application/json"), |call| {
        Box::pin(document(call))
    }),
];

fn sandbox(call: &Call) -> SandboxRef {
    SandboxRef { id: call.id.clone() }
}

async fn create(call: Call) -> Result<Response, Error> {
    let request: CreateRequest = call.message()?;
    let wait = call.switch("wait")?;
    let mut sandbox = call.service.create(call.peer, request).await?;
    if wait {
        sandbox = call.service.wait(call.peer, SandboxRef { id: sandbox.id }).await?;
    }
    json(StatusCode::CREATED, &sandbox)
}

async fn list(call: Call) -> Result<Response, Error> {
    let request = ListRequest { all: call.switch("all")? };
    json(StatusCode::OK, &call.service.list(call.peer, request).await?)
}

async fn inspect(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.inspect(call.peer, sandbox(&call)).await?)
}

async fn remove(call: Call) -> Result<Response, Error> {
    let request = RemoveRequest { id: call.id.clone(), force: call.switch("force")? };
    call.service.remove(call.peer, request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn set_mode(call: Call) -> Result<Response, Error> {
    let ModeBody { mode, reason, successor } = call.message()?;
    let request = SetModeRequest { id: call.id.clone(), mode, reason, successor };
    json(StatusCode::OK, &call.service.set_mode(call.peer, request).await?)
}

async fn suggest_mode(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.suggest_mode(call.peer, sandbox(&call)).await?)
}

async fn set_limits(call: Call) -> Result<Response, Error> {
    let LimitsBody { limits, reason } = call.message()?;
    let request = SetLimitsRequest { id: call.id.clone(), limits: Some(limits), reason };
    json(StatusCode::OK, &call.service.set_limits(call.peer, request).await?)
}

async fn set_switches(call: Call) -> Result<Response, Error> {
    let SwitchesBody { switches, reason } = call.message()?;
    let request = SetSwitchesRequest { id: call.id.clone(), switches, reason };
    json(StatusCode::OK, &call.service.set_switches(call.peer, request).await?)
}

async fn pause(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.pause(call.peer, sandbox(&call)).await?)
}

async fn resume(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.resume(call.peer, sandbox(&call)).await?)
}

async fn kill(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.kill(call.peer, sandbox(&call)).await?)
}

async fn wait(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.wait(call.peer, sandbox(&call)).await?)
}

async fn signal(call: Call) -> Result<Response, Error> {
    let SignalBody { signal, exec } = call.message()?;
    let request = SignalRequest { id: call.id.clone(), signal, exec };
    json(StatusCode::OK, &call.service.signal(call.peer, request).await?)
}

async fn logs(call: Call) -> Result<Response, Error> {
    let stream = call.word("stream").map(str::to_owned);
    if let Some(other) = stream.as_deref().filter(|stream| !matches!(*stream, "stdout" | "stderr")) {
        let words = format!("stream is stdout or stderr, not `{}`", other.escape_default());
        return Err(Error::new(Kind::Invalid, words));
    }
    let (follow, tail_bytes) = (call.switch("follow")?, call.number("tail_bytes")?);
    let chunks = call.service.logs(call.peer, LogsRequest { id: call.id.clone(), follow, tail_bytes }).await?;
    let wanted = chunks.filter_map(move |chunk| match (chunk, &stream) {
        (Ok(chunk), Some(stream)) if chunk.stream != *stream => None,
        (Ok(chunk), _) => Some(Ok(chunk.data)),
        (Err(error), _) => Some(Err(error)),
    });
    Ok(typed(StatusCode::OK, BYTES, Body::from_stream(wanted)))
}

async fn seen(call: Call) -> Result<Response, Error> {
    let follow = call.takes_events;
    let lines = call.service.events(call.peer, StreamRequest { id: call.id.clone(), follow }).await?;
    if follow { Ok(events(lines)) } else { array(lines).await }
}

async fn concluded(call: Call) -> Result<Response, Error> {
    let follow = call.takes_events;
    let lines = call.service.findings(call.peer, StreamRequest { id: call.id.clone(), follow }).await?;
    if follow { Ok(events(lines)) } else { array(lines).await }
}

async fn tree(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.tree(call.peer).await?)
}

async fn stats(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.stats(call.peer).await?)
}

async fn pools(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.pools(call.peer).await?)
}

async fn set_pool(call: Call) -> Result<Response, Error> {
    let request: SetPoolRequest = call.message()?;
    json(StatusCode::OK, &call.service.set_pool(call.peer, request).await?)
}

async fn drain_pools(call: Call) -> Result<Response, Error> {
    let request = DrainPoolsRequest { id: call.word("id").unwrap_or_default().to_owned() };
    json(StatusCode::OK, &call.service.drain_pools(call.peer, request).await?)
}

async fn up(call: Call) -> Result<Response, Error> {
    let request: UpRequest = call.message()?;
    json(StatusCode::CREATED, &call.service.up(call.peer, request).await?)
}

async fn groups(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.groups(call.peer).await?)
}

async fn down(call: Call) -> Result<Response, Error> {
    let group = GroupRef { name: call.id.clone() };
    json(StatusCode::OK, &call.service.down(call.peer, group).await?)
}

async fn audit_tail(call: Call) -> Result<Response, Error> {
    let request = AuditRequest { limit: call.number("limit")? };
    array(call.service.audit_tail(call.peer, request).await?).await
}

async fn audit_verify(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.audit_verify(call.peer).await?)
}

async fn healthz(_: Call) -> Result<Response, Error> {
    Ok(typed(StatusCode::OK, TEXT, Body::from("ok")))
}

async fn readyz(call: Call) -> Result<Response, Error> {
    call.service.ready().await?;
    Ok(typed(StatusCode::OK, TEXT, Body::from("ready")))
}

async fn metrics(call: Call) -> Result<Response, Error> {
    let text = call.service.metrics(call.peer, call.switch("probes")?).await?;
    Ok(typed(StatusCode::OK, METRICS, Body::from(text)))
}

async fn document(_: Call) -> Result<Response, Error> {
    Ok(typed(StatusCode::OK, "application/json", Body::from(openapi::document())))
}
