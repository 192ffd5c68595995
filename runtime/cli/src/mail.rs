//! `apex mail`: messages from here into mailboxes and back. Input: the parsed command line, and a message from it or from standard input. Output: a message's body on standard output,
//! which is acknowledged once it stands there.

use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use apex_api::v1::{Empty, MailAcknowledgeRequest, MailReceiveRequest, MailSendRequest, Mailbox, MailboxRef};
use apex_core::policy::time_ms;

use crate::args::{MailVerb, OfUser};
use crate::table::table as lines;
use crate::verbs::{Client, done, got};
use crate::{FAILED, show};

/// Bytes of a message that are read; how many apexd takes is its to say.
const BODY_BYTES_MAX: u64 = 512 << 10;
/// What apexd waits at most; more is asked again.
const PIECE: Duration = Duration::from_secs(30);

/// Does what the verb says.
///
/// # Errors
/// Whatever apexd refuses, and a message that is no JSON or cannot be read or written.
pub async fn mail(client: Client, verb: MailVerb, json: bool) -> Result<u8> {
    match verb {
        MailVerb::Ls => ls(client, json).await,
        MailVerb::Send { user, text, name, body } => send(client, (user, name), &read(body)?, (text, json)).await,
        MailVerb::Receive { user, wait, keep, name } => {
            receive(client, (user, name), wait.as_deref(), (keep, json)).await
        }
        MailVerb::Rm { user, name } => {
            let mut client = client;
            got(client.mail_remove(MailboxRef { mailbox: name, user: user.user }).await).map(|Empty {}| 0)
        }
    }
}

async fn ls(mut client: Client, json: bool) -> Result<u8> {
    let mailboxes = got(client.mailboxes(Empty {}).await)?.mailboxes;
    done(if json { show::json(&mailboxes) } else { show::print(&table(&mailboxes)) })
}

fn table(mailboxes: &[Mailbox]) -> String {
    let row = |mailbox: &Mailbox| {
        let Mailbox { name, uid, messages, bytes, held, sandboxes } = mailbox;
        vec![
            name.clone(),
            uid.to_string(),
            messages.to_string(),
            held.to_string(),
            bytes.to_string(),
            sandboxes.join(" "),
        ]
    };
    let rows: Vec<_> = mailboxes.iter().map(row).collect();
    lines(&["NAME", "UID", "MESSAGES", "HELD", "BYTES", "SANDBOXES"], &rows)
}

/// From the command line, or from standard input when it says `-` or nothing.
fn read(body: Option<String>) -> Result<String> {
    if let Some(body) = body.filter(|body| body != "-") {
        return Ok(body);
    }
    let mut text = String::new();
    std::io::stdin()
        .take(BODY_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .context("reading the message from standard input")?;
    if text.len() as u64 > BODY_BYTES_MAX {
        bail!("the message on standard input has more than {BODY_BYTES_MAX} bytes");
    }
    Ok(text)
}

async fn send(
    mut client: Client,
    (user, name): (OfUser, String),
    body: &str,
    (text, json): (bool, bool),
) -> Result<u8> {
    let body = if text {
        serde_json::Value::String(body.to_owned()).to_string()
    } else {
        let value: serde_json::Value = serde_json::from_str(body)
            .context("the message is no JSON; quote it for the shell, or give --text to send it as text")?;
        value.to_string()
    };
    let sent = got(client.mail_send(MailSendRequest { mailbox: name, user: user.user, body }).await)?;
    done(if json { show::json(&sent) } else { show::print(&format!("{}\n", sent.id)) })
}

async fn receive(
    mut client: Client,
    (user, mailbox): (OfUser, String),
    wait: Option<&str>,
    (keep, json): (bool, bool),
) -> Result<u8> {
    let wait = wait.map(|text| time_ms("--wait", text)).transpose()?;
    // `None` is unlimited.
    let mut left = wait.unwrap_or(Some(0)).map_or(Duration::MAX, Duration::from_millis);
    let message = loop {
        let piece = left.min(PIECE);
        let wait_ms = u64::try_from(piece.as_millis()).unwrap_or(0);
        let request = MailReceiveRequest { mailbox: mailbox.clone(), user: user.user.clone(), wait_ms };
        let received = got(client.mail_receive(request).await)?.message;
        left = left.saturating_sub(piece);
        match received {
            Some(message) => break message,
            None if left.is_zero() => {
                crate::tell(&format!("there is no message in {mailbox} that nobody has"));
                return Ok(FAILED);
            }
            None => {}
        }
    };
    let body: serde_json::Value =
        serde_json::from_str(&message.body).context("apexd sent a message that is no JSON")?;
    if json {
        let (from, name) = (&message.from, &message.name);
        show::json(
            &serde_json::json!({"id": message.id, "from": from, "name": name, "at_ms": message.at_ms, "attempt": message.attempt, "body": body}),
        )?;
    } else {
        show::print(&format!("{}\n", show::compact(&body)?))?;
    }
    std::io::stdout().flush().context("writing to standard output")?;
    if !keep {
        let request = MailAcknowledgeRequest { mailbox, user: user.user, id: message.id };
        got(client.mail_acknowledge(request).await)?;
    }
    Ok(0)
}
