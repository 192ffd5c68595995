//! Mailboxes over the API: what the host sends and receives, and what people see of them. A mailbox is its user's; another's is named by a user.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apex_api::v1::{
    self, MailAcknowledgeRequest, MailMessage, MailReceiveRequest, MailReceived, MailSendRequest, MailSent,
};
use apex_api::{Error, Kind, Peer};
use apex_core::access::Operation;
use apex_core::audit::{Outcome, mask};
use apex_core::mail::{self, Who};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Failed, Message, Sending};
use crate::ask::Asked;
use crate::registry::Daemon;
use crate::{metrics, who};

/// What the host is called as a sender.
const HOST: &str = "host";
/// Bytes of a message that a record shows, once secrets are masked.
const SHOWN_BYTES: usize = 128;
/// Bytes that are looked through for secrets, so that one that begins in what is shown is known by its end.
const MASKED_BYTES: usize = 4096;

/// What a record says of a message.
pub fn about(mailbox: &str, text: &str) -> Value {
    let digest: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let beginning = mask(&text[..text.floor_char_boundary(MASKED_BYTES)]);
    let shown = &beginning[..beginning.floor_char_boundary(SHOWN_BYTES)];
    json!({"mailbox": mailbox, "bytes": text.len(), "sha256": digest, "begins": shown})
}

/// Counts a message that was given.
pub fn count_given(daemon: &Daemon, message: &Message) {
    let result = if message.given.attempt > 1 { "redelivered" } else { "delivered" };
    daemon.metrics.count(&metrics::MAIL, &[result]);
}

/// Whose mailbox is meant: the asker's, or that of a user by name or number.
fn owner(peer: Peer, user: &str) -> Result<u32, Error> {
    if user.is_empty() {
        return Ok(peer.uid);
    }
    let found = user.parse().ok().or_else(|| who::named(user).map(|(uid, _)| uid));
    found.ok_or_else(|| Error::new(Kind::NotFound, format!("/etc/passwd has no user {user:?}")))
}

fn asked(daemon: &Daemon, peer: Peer, operation: Operation, user: &str, mailbox: &str) -> Result<(u32, Asked), Error> {
    mail::check_name(mailbox).map_err(|words| Error::new(Kind::Invalid, words))?;
    let owner = owner(peer, user)?;
    let asked = daemon.judge_group(peer, operation, owner, mailbox)?;
    Ok((owner, asked))
}

fn failed(error: Failed) -> Error {
    let kind = match &error {
        Failed::Full(_) => Kind::Exhausted,
        Failed::Lost(_) => Kind::Conflict,
        Failed::Disk(_) => Kind::Unavailable,
    };
    Error::new(kind, error.to_string())
}

/// Those that somebody may see: with messages in them, or named by the policy of a sandbox that lives.
pub fn list(daemon: &Daemon, peer: Peer) -> v1::MailboxesResponse {
    let mut all: BTreeMap<(u32, String), v1::Mailbox> = BTreeMap::new();
    let empty = |uid: u32, name: &str| v1::Mailbox { uid, name: name.to_owned(), ..Default::default() };
    for seen in daemon.mail.seen() {
        let mut mailbox = empty(seen.uid, &seen.name);
        (mailbox.messages, mailbox.bytes, mailbox.held) = (seen.count, seen.bytes, seen.held);
        all.insert((seen.uid, seen.name), mailbox);
    }
    for sandbox in daemon.all() {
        let record = sandbox.record();
        if record.is_alive() {
            for rule in &record.mailboxes {
                let place = all.entry((record.uid, rule.name.clone()));
                place.or_insert_with(|| empty(record.uid, &rule.name)).sandboxes.push(record.id.clone());
            }
        }
    }
    all.retain(|(uid, _), _| daemon.may_group(peer, Operation::MailList, *uid));
    v1::MailboxesResponse { mailboxes: all.into_values().collect() }
}

/// A message from the host.
pub fn send(daemon: &Daemon, peer: Peer, request: &MailSendRequest) -> Result<MailSent, Error> {
    let (uid, asked) = asked(daemon, peer, Operation::MailSend, &request.user, &request.mailbox)?;
    let invalid = |words: String| Error::new(Kind::Invalid, words);
    let body: Value =
        serde_json::from_str(&request.body).map_err(|error| invalid(format!("the body is no JSON: {error}")))?;
    let body = body.to_string();
    if body.len() as u64 > mail::BODY_BYTES_MAX {
        return Err(invalid(format!("the message has {} bytes; at most {} go", body.len(), mail::BODY_BYTES_MAX)));
    }
    let sending = Sending { uid, mailbox: &request.mailbox, from: HOST, name: "", body: &body };
    let sent = daemon.mail.send(&sending);
    let (outcome, words) = match &sent {
        Ok(_) => (Outcome::Allowed, String::new()),
        Err(error) => (Outcome::Failed, error.to_string()),
    };
    daemon.write_down_group(&asked, &request.mailbox, uid, outcome, &words, about(&request.mailbox, &body))?;
    daemon.metrics.count(&metrics::MAIL, &[if sent.is_ok() { "sent" } else { "refused-full" }]);
    sent.map(|id| MailSent { id }).map_err(failed)
}

/// A message for the host.
pub async fn receive(daemon: Arc<Daemon>, peer: Peer, request: MailReceiveRequest) -> Result<MailReceived, Error> {
    let (uid, asked) = asked(&daemon, peer, Operation::MailReceive, &request.user, &request.mailbox)?;
    let wait = Duration::from_millis(request.wait_ms);
    let message = daemon.mail.receive(uid, &request.mailbox, Who::Host, wait).await.map_err(failed)?;
    let Some(message) = message else { return Ok(MailReceived { message: None }) };
    let after = about(&request.mailbox, &message.body);
    let written = daemon.write_down_group(&asked, &request.mailbox, uid, Outcome::Allowed, "", after);
    if let Err(error) = written {
        let held = [(request.mailbox, message.given.letter.id)];
        daemon.mail.let_go(uid, &held, Who::Host);
        return Err(error);
    }
    count_given(&daemon, &message);
    let letter = message.given.letter;
    Ok(MailReceived {
        message: Some(MailMessage {
            id: letter.id,
            from: letter.from,
            name: letter.name,
            at_ms: letter.at_ms,
            attempt: message.given.attempt,
            body: message.body,
        }),
    })
}

/// The host is done with a message.
pub fn acknowledge(daemon: &Daemon, peer: Peer, request: &MailAcknowledgeRequest) -> Result<(), Error> {
    let (uid, _) = asked(daemon, peer, Operation::MailReceive, &request.user, &request.mailbox)?;
    daemon.mail.acknowledge(uid, request.id, Who::Host).map_err(failed)?;
    daemon.metrics.count(&metrics::MAIL, &["acknowledged"]);
    Ok(())
}

/// Empties a mailbox. One that the policy of a sandbox names is there all the same.
pub fn remove(daemon: &Daemon, peer: Peer, request: &v1::MailboxRef) -> Result<(), Error> {
    let (uid, asked) = asked(daemon, peer, Operation::MailRemove, &request.user, &request.mailbox)?;
    let emptied = daemon.mail.empty(uid, &request.mailbox).map_err(|error| failed(error.into()))?;
    let after = json!({"mailbox": request.mailbox, "messages": emptied});
    daemon.write_down_group(&asked, &request.mailbox, uid, Outcome::Allowed, "", after)?;
    daemon.metrics.add(&metrics::MAIL, &["removed"], emptied);
    Ok(())
}
