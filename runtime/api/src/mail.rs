//! Routes of mailboxes. A message is the JSON value itself here, where gRPC carries its text.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rest::{Call, json};
use crate::v1::{MailAcknowledgeRequest, MailReceiveRequest, MailSendRequest, MailboxRef};
use crate::{Error, Kind};

/// Body of POST .../send.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "MailSendBody")]
pub(crate) struct SendBody {
    /// The message: any JSON value.
    body: serde_json::Value,
}

/// Body of POST .../acknowledge.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "MailAcknowledgeBody")]
pub(crate) struct DoneBody {
    /// The number of the message.
    id: u64,
}

/// What POST .../receive answers.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MailReceiveAnswer")]
pub(crate) struct Answer {
    /// The message; null when there was none.
    message: Option<Answered>,
}

/// A message.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MailReceivedMessage")]
struct Answered {
    /// Its number.
    id: u64,
    /// Id of the sandbox that sent it, or "host".
    from: String,
    /// Name of that sandbox; empty for none.
    name: String,
    /// When it was sent, in milliseconds since the epoch.
    at_ms: u64,
    /// How often it was given, this time included, since apexd started.
    attempt: u32,
    /// What it says.
    body: serde_json::Value,
}

pub(crate) async fn mailboxes(call: Call) -> Result<Response, Error> {
    json(StatusCode::OK, &call.service.mailboxes(call.peer).await?)
}

fn user(call: &Call) -> String {
    call.word("user").unwrap_or_default().to_owned()
}

pub(crate) async fn send(call: Call) -> Result<Response, Error> {
    let SendBody { body } = call.message()?;
    let request = MailSendRequest { mailbox: call.id.clone(), user: user(&call), body: body.to_string() };
    json(StatusCode::CREATED, &call.service.mail_send(call.peer, request).await?)
}

pub(crate) async fn receive(call: Call) -> Result<Response, Error> {
    let wait_ms = call.number("wait_ms")?;
    let request = MailReceiveRequest { mailbox: call.id.clone(), user: user(&call), wait_ms };
    let received = call.service.mail_receive(call.peer, request).await?;
    let message = received.message.map(|message| {
        let body = serde_json::from_str(&message.body);
        let body = body.map_err(|error| Error::new(Kind::Internal, format!("the message is no JSON: {error}")))?;
        let (id, from, name) = (message.id, message.from, message.name);
        Ok::<_, Error>(Answered { id, from, name, at_ms: message.at_ms, attempt: message.attempt, body })
    });
    json(StatusCode::OK, &Answer { message: message.transpose()? })
}

pub(crate) async fn acknowledge(call: Call) -> Result<Response, Error> {
    let DoneBody { id } = call.message()?;
    let request = MailAcknowledgeRequest { mailbox: call.id.clone(), user: user(&call), id };
    call.service.mail_acknowledge(call.peer, request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn remove(call: Call) -> Result<Response, Error> {
    let request = MailboxRef { mailbox: call.id.clone(), user: user(&call) };
    call.service.mail_remove(call.peer, request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
