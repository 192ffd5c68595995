//! A service that lives in memory. A sandbox called `fail-KIND` fails with that kind; one called `for-ever` never ends, nor does what it writes. The lines of
//! `forger` and `returner` are what a hostile user would write.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use apex_api::v1::*;
use apex_api::{Error, Kind, Peer, Service, Streamed};
use tokio_stream::StreamExt;

/// Bytes of each chunk of an endless log.
pub const CHUNK_BYTES: usize = 64 << 10;

#[derive(Default)]
pub struct Fake {
    /// In the order in which they were made.
    sandboxes: Mutex<Vec<Sandbox>>,
    /// Chunks of endless logs that were asked for.
    pub made: Arc<AtomicUsize>,
}

fn lines(id: &str, follow: bool) -> Streamed<JsonLine> {
    let line = |json: &str| Ok(JsonLine { json: json.to_owned() });
    match id {
        "forger" => return Box::pin(tokio_stream::iter([line("{\"n\":1}"), line("2],\"forged\":[3"), line("4")])),
        "returner" => return Box::pin(tokio_stream::iter([line("{\"n\":\r1}")])),
        _ => {}
    }
    let mut lines = vec![line("{\"n\":1}"), line("{\"n\":2}")];
    if follow {
        lines.extend([line("{\"n\":\n3}"), Err(Error::new(Kind::Unavailable, "no more")), line("after")]);
    }
    Box::pin(tokio_stream::iter(lines))
}

impl Fake {
    fn find(&self, id: &str) -> Result<Sandbox, Error> {
        if let Some(word) = id.strip_prefix("fail-") {
            let kinds =
                [Kind::Invalid, Kind::NotFound, Kind::Denied, Kind::Conflict, Kind::Exhausted, Kind::Unavailable];
            let kind = kinds.into_iter().find(|kind| kind.word() == word).unwrap_or(Kind::Internal);
            return Err(Error::new(kind, "as asked for"));
        }
        let sandboxes = self.sandboxes.lock().expect("as the test wants it");
        let found = sandboxes.iter().find(|sandbox| sandbox.id == id || sandbox.name == id);
        found.cloned().ok_or_else(|| Error::new(Kind::NotFound, format!("no sandbox {id}")))
    }
}

#[async_trait::async_trait]
impl Service for Fake {
    async fn create(&self, peer: Peer, request: CreateRequest) -> Result<Sandbox, Error> {
        let mut sandboxes = self.sandboxes.lock().expect("as the test wants it");
        let sandbox = Sandbox {
            id: format!("id{}", sandboxes.len()),
            name: request.name,
            uid: peer.uid,
            pid: peer.pid,
            command: request.command,
            labels: request.labels,
            exit_code: Some(0),
            ..Default::default()
        };
        sandboxes.push(sandbox.clone());
        Ok(sandbox)
    }

    async fn run(&self, _: Peer, input: Streamed<RunInput>) -> Result<Streamed<RunOutput>, Error> {
        let output = |output| Ok(RunOutput { output: Some(output) });
        let begun = tokio_stream::once(output(run_output::Output::Started(Sandbox::default())));
        let echoed = input.filter_map(move |item| match item.map(|item| item.input) {
            Ok(Some(run_input::Input::Stdin(bytes))) => Some(output(run_output::Output::Stdout(bytes))),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        let ended = Sandbox { exit_code: Some(0), ..Default::default() };
        let ended = tokio_stream::once(output(run_output::Output::Ended(ended)));
        Ok(Box::pin(begun.chain(echoed).chain(ended)))
    }

    async fn wait(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        if sandbox.id == "for-ever" {
            std::future::pending::<()>().await;
        }
        self.find(&sandbox.id)
    }

    async fn list(&self, _: Peer, _: ListRequest) -> Result<ListResponse, Error> {
        Ok(ListResponse { sandboxes: self.sandboxes.lock().expect("as the test wants it").clone() })
    }

    async fn inspect(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn logs(&self, _: Peer, request: LogsRequest) -> Result<Streamed<LogChunk>, Error> {
        if request.id == "for-ever" {
            let made = Arc::clone(&self.made);
            return Ok(Box::pin(tokio_stream::iter(0_u64..).map(move |_| {
                made.fetch_add(1, Ordering::Relaxed);
                Ok(LogChunk { stream: "stdout".to_owned(), data: vec![b'x'; CHUNK_BYTES] })
            })));
        }
        let chunk = |stream: &str, data: &[u8]| Ok(LogChunk { stream: stream.to_owned(), data: data.to_vec() });
        Ok(Box::pin(tokio_stream::iter([chunk("stdout", b"\x00\xffout"), chunk("stderr", b"err")])))
    }

    async fn events(&self, _: Peer, request: StreamRequest) -> Result<Streamed<JsonLine>, Error> {
        Ok(lines(&request.id, request.follow))
    }

    async fn findings(&self, _: Peer, request: StreamRequest) -> Result<Streamed<JsonLine>, Error> {
        Ok(lines(&request.id, request.follow))
    }

    async fn set_mode(&self, _: Peer, request: SetModeRequest) -> Result<Transition, Error> {
        Ok(Transition { to: request.mode, words: request.reason, applied: true, ..Default::default() })
    }

    async fn suggest_mode(&self, _: Peer, _: SandboxRef) -> Result<Suggestion, Error> {
        Ok(Suggestion { mode: "hybrid".to_owned(), because: vec!["a reason".to_owned()], events: 3 })
    }

    async fn set_limits(&self, _: Peer, request: SetLimitsRequest) -> Result<Transition, Error> {
        Ok(Transition { to: request.limits.unwrap_or_default().tasks, ..Default::default() })
    }

    async fn set_switches(&self, _: Peer, request: SetSwitchesRequest) -> Result<Transition, Error> {
        Ok(Transition { to: request.switches.join(","), ..Default::default() })
    }

    async fn pause(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn resume(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn signal(&self, _: Peer, request: SignalRequest) -> Result<Sandbox, Error> {
        Ok(Sandbox { ending: format!("signal {}", request.signal), ..self.find(&request.id)? })
    }

    async fn kill(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn remove(&self, _: Peer, request: RemoveRequest) -> Result<(), Error> {
        if !request.force {
            return Err(Error::new(Kind::Conflict, "without force"));
        }
        self.sandboxes
            .lock()
            .expect("as the test wants it")
            .retain(|sandbox| sandbox.id != request.id && sandbox.name != request.id);
        Ok(())
    }

    async fn audit_tail(&self, _: Peer, _: AuditRequest) -> Result<Streamed<JsonLine>, Error> {
        Ok(Box::pin(tokio_stream::empty()))
    }

    async fn audit_verify(&self, _: Peer) -> Result<AuditVerdict, Error> {
        Ok(AuditVerdict { intact: true, ..Default::default() })
    }

    async fn tree(&self, _: Peer) -> Result<TreeResponse, Error> {
        Ok(TreeResponse::default())
    }

    async fn stats(&self, _: Peer) -> Result<StatsResponse, Error> {
        Ok(StatsResponse::default())
    }

    async fn pools(&self, _: Peer) -> Result<PoolsResponse, Error> {
        Ok(PoolsResponse {
            pools: vec![Pool { id: "1".to_owned(), program: "true".to_owned(), ready: 2, ..Default::default() }],
        })
    }

    async fn set_pool(&self, _: Peer, request: SetPoolRequest) -> Result<Pool, Error> {
        let program = request.like.and_then(|like| like.command.first().cloned()).unwrap_or_default();
        Ok(Pool { id: "1".to_owned(), program, wanted: request.size, ..Default::default() })
    }

    async fn drain_pools(&self, _: Peer, request: DrainPoolsRequest) -> Result<PoolsResponse, Error> {
        Ok(PoolsResponse { pools: vec![Pool { id: request.id, ..Default::default() }] })
    }

    async fn up(&self, _: Peer, request: UpRequest) -> Result<Group, Error> {
        let state = |member: &GroupMember| MemberState {
            name: member.name.clone(),
            state: "starting".to_owned(),
            after: member.after.clone(),
            words: member.sandbox.as_ref().map(|sandbox| sandbox.command.join(" ")).unwrap_or_default(),
            ..Default::default()
        };
        let members = request.members.iter().map(state).collect();
        Ok(Group {
            name: request.name,
            strategy: request.strategy,
            state: "up".to_owned(),
            members,
            ..Default::default()
        })
    }

    async fn down(&self, _: Peer, group: GroupRef) -> Result<Group, Error> {
        Ok(Group { name: group.name, state: "stopping".to_owned(), ..Default::default() })
    }

    async fn groups(&self, _: Peer) -> Result<GroupsResponse, Error> {
        let member =
            MemberState { name: "web".to_owned(), state: "running".to_owned(), restarts: 2, ..Default::default() };
        let group =
            Group { name: "shop".to_owned(), state: "up".to_owned(), members: vec![member], ..Default::default() };
        Ok(GroupsResponse { groups: vec![group] })
    }

    async fn mailboxes(&self, _: Peer) -> Result<MailboxesResponse, Error> {
        let mailbox = Mailbox { name: "jobs".to_owned(), messages: 3, ..Default::default() };
        Ok(MailboxesResponse { mailboxes: vec![mailbox] })
    }

    async fn mail_send(&self, _: Peer, request: MailSendRequest) -> Result<MailSent, Error> {
        Ok(MailSent { id: request.body.len() as u64 })
    }

    async fn mail_receive(&self, _: Peer, request: MailReceiveRequest) -> Result<MailReceived, Error> {
        let message =
            MailMessage { id: 7, from: "host".to_owned(), body: "{\"n\":1}".to_owned(), ..Default::default() };
        Ok(MailReceived { message: (request.mailbox == "jobs").then_some(message) })
    }

    async fn mail_acknowledge(&self, _: Peer, request: MailAcknowledgeRequest) -> Result<(), Error> {
        if request.id == 7 { Ok(()) } else { Err(Error::new(Kind::Conflict, "you do not hold this message")) }
    }

    async fn mail_remove(&self, _: Peer, _: MailboxRef) -> Result<(), Error> {
        Ok(())
    }

    async fn metrics(&self, _: Peer, _: bool) -> Result<String, Error> {
        Ok("apex_sandboxes 0\n".to_owned())
    }

    async fn ready(&self) -> Result<(), Error> {
        Ok(())
    }
}
