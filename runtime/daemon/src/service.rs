//! What the API asks, answered: each call finds its sandbox, judges who asks, does it, and writes it down.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use apex_api::v1::{
    self, AuditRequest, AuditVerdict, CreateRequest, DrainPoolsRequest, Group, GroupRef, GroupsResponse, JsonLine,
    ListRequest, ListResponse, LogChunk, LogsRequest, Pool, PoolsResponse, RemoveRequest, RunInput, RunOutput,
    SandboxRef, SandboxStats, SetLimitsRequest, SetModeRequest, SetPoolRequest, SetSwitchesRequest, SignalRequest,
    StatsResponse, StreamRequest, Suggestion, Transition, TreeResponse, UpRequest,
};
use apex_api::{Error, Kind, Peer, Service, Streamed};
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::{Asker, Limits, Wish, strictness};
use apex_core::keep::ToKeeper;
use apex_core::policy::{Flags, Mode};
use serde_json::json;

use crate::ask::{About, Asked};
use crate::audit::{Audit, Checked};
use crate::bell::{EVENTS, FINDINGS};
use crate::record::Record;
use crate::registry::Daemon;
use crate::sandbox::Sandbox;
use crate::start::{self, Input};
use crate::{confine, costs, dial, figures, groups, mail, metrics, options, pool, run, successor, suggest, usage};

/// Answers of a stream that wait for a slow reader, 64 KiB each: one user may have many of those.
pub const WAITING_MAX: usize = 4;
/// Records that one request gets.
const AUDIT_MAX: u32 = 10_000;
/// How long one whose keeper takes no word any more may take to be told as ended.
const ENDING_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a killed sandbox may take to be gone.
const GONE_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// The daemon, as the API sees it.
pub struct Face(pub Arc<Daemon>);

impl Face {
    /// The sandbox, and who asks about it. To whoever may not see it, it is not there.
    fn asked(&self, peer: Peer, word: &str, operation: Operation) -> Result<(Arc<Sandbox>, Asked), Error> {
        let sandbox = self.0.find_for(peer, word)?;
        let asked = self.0.judge_about(peer, word, &sandbox.record(), operation, None)?;
        Ok((sandbox, asked))
    }

    /// To its end: a client that goes away in the middle leaves nothing half done.
    async fn turn(
        &self,
        peer: Peer,
        sandbox: &Arc<Sandbox>,
        wish: Wish,
        asked: Asked,
        reason: String,
    ) -> Result<Transition, Error> {
        let asker = self.may_relax(peer, &sandbox.record());
        let (daemon, sandbox) = (Arc::clone(&self.0), Arc::clone(sandbox));
        whole(async move { dial::wish(&daemon, &sandbox, wish, asker, &asked, &reason).await }).await
    }

    /// On a thread of its own: the log is as large as it has become.
    async fn read_audit<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Audit) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let daemon = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || read(&daemon.audit)).await;
        let done = done.map_err(anyhow::Error::from).and_then(|outcome| outcome);
        done.map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))
    }

    fn may_relax(&self, peer: Peer, record: &Record) -> Asker {
        let may = self.0.may(peer, Operation::ModeRelax, record);
        Asker { is_operator_allowed_to_relax: may, automatic: false }
    }

    async fn wish(&self, peer: Peer, id: &str, operation: Operation, wish: Wish) -> Result<v1::Sandbox, Error> {
        let (sandbox, asked) = self.asked(peer, id, operation)?;
        let transition = self.turn(peer, &sandbox, wish, asked, String::new()).await?;
        if transition.applied { Ok(sandbox.record().wire()) } else { Err(Error::new(Kind::Internal, transition.words)) }
    }
}

#[async_trait::async_trait]
impl Service for Face {
    async fn connected(&self, peer: Peer, connection: BorrowedFd<'_>) {
        self.0.errands.show(peer.uid, peer.gid, connection).await;
    }

    async fn create(&self, peer: Peer, request: CreateRequest) -> Result<v1::Sandbox, Error> {
        let daemon = Arc::clone(&self.0);
        let start = async move { start::start(&daemon, peer, &request, Operation::Create, Input::None).await };
        let sandbox = whole(start).await?;
        Ok(sandbox.record().wire())
    }

    async fn run(&self, peer: Peer, input: Streamed<RunInput>) -> Result<Streamed<RunOutput>, Error> {
        whole(run::run(Arc::clone(&self.0), peer, input)).await
    }

    async fn wait(&self, peer: Peer, sandbox: SandboxRef) -> Result<v1::Sandbox, Error> {
        let (sandbox, _) = self.asked(peer, &sandbox.id, Operation::Inspect)?;
        Ok(sandbox.until(Record::is_over).await.wire())
    }

    async fn list(&self, peer: Peer, request: ListRequest) -> Result<ListResponse, Error> {
        let records = self.0.all().into_iter().map(|sandbox| sandbox.record());
        let may = self.0.may_of(peer, Operation::List);
        let shown = records.filter(|record| (request.all || !record.is_over()) && may(record));
        Ok(ListResponse { sandboxes: shown.map(|record| record.row()).collect() })
    }

    async fn inspect(&self, peer: Peer, sandbox: SandboxRef) -> Result<v1::Sandbox, Error> {
        let (sandbox, _) = self.asked(peer, &sandbox.id, Operation::Inspect)?;
        let record = sandbox.record();
        let usage = if record.is_alive() { usage::of(&sandbox).await } else { None };
        Ok(v1::Sandbox { usage: usage.as_deref().map(usage::wire), ..record.wire() })
    }

    async fn logs(&self, peer: Peer, request: LogsRequest) -> Result<Streamed<LogChunk>, Error> {
        let (sandbox, _) = self.asked(peer, &request.id, Operation::Logs)?;
        Ok(run::logs(&sandbox, request.follow, request.tail_bytes))
    }

    async fn events(&self, peer: Peer, request: StreamRequest) -> Result<Streamed<JsonLine>, Error> {
        let (sandbox, _) = self.asked(peer, &request.id, Operation::Events)?;
        Ok(run::lines(sandbox, EVENTS, request.follow))
    }

    async fn findings(&self, peer: Peer, request: StreamRequest) -> Result<Streamed<JsonLine>, Error> {
        let (sandbox, _) = self.asked(peer, &request.id, Operation::Findings)?;
        Ok(run::lines(sandbox, FINDINGS, request.follow))
    }

    async fn set_mode(&self, peer: Peer, request: SetModeRequest) -> Result<Transition, Error> {
        let mode = options::mode(&request.mode).map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
        let sandbox = self.0.find_for(peer, &request.id)?;
        let record = sandbox.record();
        let relaxes = strictness(mode) < strictness(record.facts.mode);
        let operation = if relaxes { Operation::ModeRelax } else { Operation::ModeTighten };
        let asked = self.0.judge_about(peer, &request.id, &record, operation, Some(mode))?;
        if request.successor && strictness(mode) < strictness(record.facts.born) {
            let daemon = Arc::clone(&self.0);
            return whole(
                async move { successor::succeed(&daemon, peer, &sandbox, mode, &asked, &request.reason).await },
            )
            .await;
        }
        self.turn(peer, &sandbox, Wish::Mode(mode), asked, request.reason).await
    }

    async fn suggest_mode(&self, peer: Peer, sandbox: SandboxRef) -> Result<Suggestion, Error> {
        let (sandbox, _) = self.asked(peer, &sandbox.id, Operation::Events)?;
        suggest::mode(&sandbox).await
    }

    async fn set_limits(&self, peer: Peer, request: SetLimitsRequest) -> Result<Transition, Error> {
        let (sandbox, asked) = self.asked(peer, &request.id, Operation::Limits)?;
        let record = sandbox.record();
        let limits = limits(&record, request.limits.unwrap_or_default())?;
        self.turn(peer, &sandbox, Wish::Limits(limits), asked, request.reason).await
    }

    async fn set_switches(&self, peer: Peer, request: SetSwitchesRequest) -> Result<Transition, Error> {
        let (sandbox, asked) = self.asked(peer, &request.id, Operation::Limits)?;
        let shut = sandbox.record().facts.shut.changed(&request.switches);
        let shut = shut.map_err(|words| Error::new(Kind::Invalid, words))?;
        self.turn(peer, &sandbox, Wish::Shut(shut), asked, request.reason).await
    }

    async fn pause(&self, peer: Peer, sandbox: SandboxRef) -> Result<v1::Sandbox, Error> {
        self.wish(peer, &sandbox.id, Operation::Pause, Wish::Freeze).await
    }

    async fn resume(&self, peer: Peer, sandbox: SandboxRef) -> Result<v1::Sandbox, Error> {
        self.wish(peer, &sandbox.id, Operation::Resume, Wish::Thaw).await
    }

    async fn signal(&self, peer: Peer, request: SignalRequest) -> Result<v1::Sandbox, Error> {
        let (sandbox, asked) = self.asked(peer, &request.id, Operation::Signal)?;
        if !(1..=64).contains(&request.signal) {
            return Err(Error::new(Kind::Invalid, format!("{} is no signal", request.signal)));
        }
        let order = match request.exec {
            0 => ToKeeper::Signal { number: request.signal },
            number => ToKeeper::SignalSpawned { number, signal: request.signal },
        };
        let said = sandbox.ask(&order).await;
        let outcome = if said.is_ok() { Outcome::Allowed } else { Outcome::Failed };
        self.0.write_down(
            &asked,
            &sandbox.record(),
            outcome,
            "",
            json!(null),
            json!({"signal": request.signal, "exec": request.exec}),
        )?;
        said.map_err(|words| {
            Error::new(Kind::Conflict, format!("signal {} for {}: {words}", request.signal, sandbox.id))
        })?;
        Ok(sandbox.record().wire())
    }

    async fn kill(&self, peer: Peer, sandbox: SandboxRef) -> Result<v1::Sandbox, Error> {
        let (sandbox, asked) = self.asked(peer, &sandbox.id, Operation::Kill)?;
        let daemon = Arc::clone(&self.0);
        whole(async move {
            end(&daemon, &sandbox, &asked).await?;
            Ok(sandbox.record().wire())
        })
        .await
    }

    async fn remove(&self, peer: Peer, request: RemoveRequest) -> Result<(), Error> {
        let (sandbox, asked) = self.asked(peer, &request.id, Operation::Remove)?;
        if !sandbox.record().is_over() && !request.force {
            let words = format!("sandbox {} still runs; end it first, or remove it with force", sandbox.id);
            return Err(Error::new(Kind::Conflict, words));
        }
        let daemon = Arc::clone(&self.0);
        whole(async move {
            end(&daemon, &sandbox, &asked).await?;
            if tokio::time::timeout(GONE_WITHIN, sandbox.until_gone()).await.is_err() {
                let words = format!("sandbox {} has ended and is not taken down yet; try again", sandbox.id);
                return Err(Error::new(Kind::Unavailable, words));
            }
            daemon.write_down(&asked, &sandbox.record(), Outcome::Allowed, "", json!(null), json!(null))?;
            daemon.forget(&sandbox).map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))
        })
        .await
    }

    async fn audit_tail(&self, peer: Peer, request: AuditRequest) -> Result<Streamed<JsonLine>, Error> {
        self.0.judge(peer, Operation::Audit, About::default())?;
        let count = if request.limit == 0 { 100 } else { request.limit.min(AUDIT_MAX) };
        let lines = self.read_audit(move |audit| audit.tail(count as usize)).await?;
        Ok(Box::pin(tokio_stream::iter(lines.into_iter().map(|json| Ok(JsonLine { json })))))
    }

    async fn audit_verify(&self, peer: Peer) -> Result<AuditVerdict, Error> {
        self.0.judge(peer, Operation::Audit, About::default())?;
        match self.read_audit(Audit::verify).await? {
            Ok(Checked { verdict, begins_at }) => Ok(AuditVerdict {
                intact: true,
                records: verdict.records,
                head_sha256: verdict.head_sha256,
                words: begins_at.map_or_else(String::new, |number| {
                    format!("it begins with record {number}: the files before are not here")
                }),
            }),
            Err(broken) => Ok(AuditVerdict {
                intact: false,
                records: broken.line.saturating_sub(1),
                head_sha256: String::new(),
                words: format!("line {}: {}", broken.line, broken.words),
            }),
        }
    }

    async fn tree(&self, peer: Peer) -> Result<TreeResponse, Error> {
        self.0.judge(peer, Operation::Tree, About::default())?;
        let own = v1::ServiceState {
            name: "apexd".to_owned(),
            state: "running".to_owned(),
            words: confine::in_force(),
            ..Default::default()
        };
        let services = [vec![own], self.0.services.states()].concat();
        Ok(TreeResponse { services, groups: groups::visible(&self.0, peer) })
    }

    async fn stats(&self, peer: Peer) -> Result<StatsResponse, Error> {
        let may = self.0.may_of(peer, Operation::Stats);
        let mut asking = Vec::new();
        for sandbox in self.0.all() {
            let record = sandbox.record();
            if !record.is_over() && may(&record) {
                // All at once: a keeper that its user has stopped costs everybody the same moment, and not one each.
                asking.push((record, tokio::spawn(async move { usage::of(&sandbox).await })));
            }
        }
        let mut rows = Vec::new();
        for (record, used) in asking {
            let usage = used.await.ok().flatten().map(|usage| *usage).unwrap_or_default();
            rows.push(SandboxStats {
                id: record.id,
                name: record.name,
                mode: record.facts.mode.name().to_owned(),
                state: record.facts.state.name().to_owned(),
                memory_bytes: usage.memory_bytes,
                tasks: usage.tasks,
                cpu_us: usage.cpu_us,
                findings: record.findings,
                usage: Some(usage::wire(&usage)),
            });
        }
        Ok(StatsResponse { sandboxes: rows })
    }

    async fn pools(&self, peer: Peer) -> Result<PoolsResponse, Error> {
        Ok(PoolsResponse { pools: pool::list(&self.0, |record| self.0.may(peer, Operation::List, record)) })
    }

    async fn set_pool(&self, peer: Peer, request: SetPoolRequest) -> Result<Pool, Error> {
        let like = request.like.ok_or_else(|| Error::new(Kind::Invalid, "there is nothing to build; give `like`"))?;
        let like = CreateRequest { pool: true, ..like };
        let record = start::record_of(&self.0, peer, &like)?;
        let asked = self.0.judge_making(peer, Operation::Create, &record)?;
        let program = like.command.first().cloned().unwrap_or_default();
        let after = json!({"pool": program, "mode": record.facts.born.name(), "level": record.facts.level.name(), "size": request.size});
        self.0.write_down(&asked, &record, Outcome::Allowed, "", json!(null), after)?;
        pool::set(&self.0, peer, &like, request.size)
    }

    async fn drain_pools(&self, peer: Peer, request: DrainPoolsRequest) -> Result<PoolsResponse, Error> {
        let may = |record: &Record| self.0.may(peer, Operation::Remove, record);
        let mut meant = pool::list(&self.0, may);
        meant.retain(|pool| request.id.is_empty() || pool.id == request.id);
        if !request.id.is_empty() && meant.is_empty() {
            let words = format!("there is no pool {:?} that you may drain; `apex pool ls` lists them", request.id);
            return Err(Error::new(Kind::NotFound, words));
        }
        for pool in &meant {
            let of = Record::new(String::new(), pool.uid, options::mode(&pool.mode).unwrap_or(Mode::Isolation), 0);
            let asked = self.0.judge(peer, Operation::Remove, About { record: Some(&of), mode: None })?;
            let before = json!({"pool": pool.program, "mode": pool.mode, "ready": pool.ready});
            self.0.write_down(&asked, &of, Outcome::Allowed, "", before, json!(null))?;
        }
        let pools = meant.iter().filter_map(|pool| pool::drain(&self.0, &pool.id)).collect();
        Ok(PoolsResponse { pools })
    }

    async fn up(&self, peer: Peer, request: UpRequest) -> Result<Group, Error> {
        let daemon = Arc::clone(&self.0);
        whole(async move { groups::up(&daemon, peer, request) }).await
    }

    async fn down(&self, peer: Peer, group: GroupRef) -> Result<Group, Error> {
        let daemon = Arc::clone(&self.0);
        whole(async move { groups::down(&daemon, peer, &group.name).await }).await
    }

    async fn groups(&self, peer: Peer) -> Result<GroupsResponse, Error> {
        Ok(GroupsResponse { groups: groups::visible(&self.0, peer) })
    }

    async fn mailboxes(&self, peer: Peer) -> Result<v1::MailboxesResponse, Error> {
        Ok(mail::host::list(&self.0, peer))
    }

    async fn mail_send(&self, peer: Peer, request: v1::MailSendRequest) -> Result<v1::MailSent, Error> {
        mail::host::send(&self.0, peer, &request)
    }

    async fn mail_receive(&self, peer: Peer, request: v1::MailReceiveRequest) -> Result<v1::MailReceived, Error> {
        mail::host::receive(Arc::clone(&self.0), peer, request).await
    }

    async fn mail_acknowledge(&self, peer: Peer, request: v1::MailAcknowledgeRequest) -> Result<(), Error> {
        mail::host::acknowledge(&self.0, peer, &request)
    }

    async fn mail_remove(&self, peer: Peer, mailbox: v1::MailboxRef) -> Result<(), Error> {
        mail::host::remove(&self.0, peer, &mailbox)
    }

    async fn metrics(&self, peer: Peer, probes: bool) -> Result<String, Error> {
        self.0.judge(peer, Operation::Metrics, About::default())?;
        let costs = if probes { Some(costs::all(&self.0).await) } else { None };
        Ok(figures::text(&self.0, costs.as_ref()))
    }

    fn answered(&self, way: &'static str, method: &str, status: &'static str) {
        self.0.metrics.count(&metrics::REQUESTS, &[way, method, status]);
    }

    async fn ready(&self) -> Result<(), Error> {
        let failed = self.0.services.states().into_iter().find(|service| service.state != "running");
        match failed {
            Some(service) => Err(Error::new(
                Kind::Unavailable,
                format!("service {} is {}: {}", service.name, service.state, service.words),
            )),
            None => Ok(()),
        }
    }
}

/// Does something to its end, also when whoever asked is gone and the call is dropped.
pub async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(Error::new(Kind::Internal, format!("the request came to no end: {error}"))))
}

/// Ends a sandbox and waits until it is gone.
async fn end(daemon: &Daemon, sandbox: &Arc<Sandbox>, asked: &Asked) -> Result<(), Error> {
    if sandbox.record().is_over() {
        return Ok(());
    }
    if sandbox.give_up(&daemon.store) {
        return daemon.write_down(asked, &sandbox.record(), Outcome::Allowed, "", json!(null), json!(null));
    }
    let asker = Asker { is_operator_allowed_to_relax: false, automatic: false };
    match dial::wish(daemon, sandbox, Wish::Kill, asker, asked, "").await {
        Ok(transition) if !transition.applied => {
            // It may end already, by itself or at the word of somebody else: that is what was asked for.
            let ended = tokio::time::timeout(ENDING_WITHIN, sandbox.until(Record::is_over)).await;
            ended.map_err(|_| Error::new(Kind::Internal, transition.words))?;
        }
        Ok(_) => {}
        // It ended by itself meanwhile.
        Err(_) if sandbox.record().is_over() => return Ok(()),
        Err(error) => return Err(error),
    }
    let gone = tokio::time::timeout(GONE_WITHIN, sandbox.until(Record::is_over)).await;
    gone.map(drop)
        .map_err(|_| Error::new(Kind::Unavailable, format!("sandbox {} is killed and not gone yet", sandbox.id)))
}

/// What is given, in the place of what is in force; judged by the same words as the command line's.
fn limits(record: &Record, given: v1::Limits) -> Result<Limits, Error> {
    if !given.time.is_empty() {
        return Err(Error::new(Kind::Invalid, "the wall time of a sandbox that runs cannot be changed; leave it out"));
    }
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let flags =
        Flags { memory: some(&given.memory), tasks: some(&given.tasks), cpu: some(&given.cpu), ..Flags::default() };
    flags.limits_over(record.facts.limits).map_err(|error| Error::new(Kind::Invalid, error.to_string()))
}
