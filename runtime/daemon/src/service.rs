//! What the API asks, answered: each call finds its sandbox, judges who asks, does it, and writes it down.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use apex_api::v1::{
    self, AuditRequest, AuditVerdict, CreateRequest, Group, GroupRef, GroupsResponse, JsonLine, ListRequest,
    ListResponse, LogChunk, LogsRequest, RemoveRequest, RunInput, RunOutput, SandboxRef, SandboxStats,
    SetLimitsRequest, SetModeRequest, SignalRequest, StatsResponse, StreamRequest, Transition, TreeResponse, UpRequest,
};
use apex_api::{Error, Kind, Peer, Service, Streamed};
use apex_core::access::Operation;
use apex_core::audit::Outcome;
use apex_core::control::{Asker, Limits, State, Wish, strictness};
use apex_core::keep::{FromKeeper, ToKeeper, Usage};
use apex_core::policy::{Flags, Mode};
use serde_json::json;

use crate::ask::{About, Asked};
use crate::bell::{EVENTS, FINDINGS};
use crate::record::Record;
use crate::registry::{Daemon, nobody};
use crate::sandbox::Sandbox;
use crate::start::{self, Input};
use crate::{dial, groups, options, run};

/// Answers of a stream that wait for a slow reader.
pub const WAITING_MAX: usize = 16;
/// Records that one request gets.
const AUDIT_MAX: u32 = 10_000;
/// How long a killed sandbox may take to be gone.
const GONE_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);

/// The daemon, as the API sees it.
pub struct Face(pub Arc<Daemon>);

impl Face {
    /// The sandbox, and who asks about it. To whoever may not see it, it is not there.
    fn asked(&self, peer: Peer, word: &str, operation: Operation) -> Result<(Arc<Sandbox>, Asked), Error> {
        let sandbox = self.0.find(word)?;
        let asked = self.judge(peer, word, &sandbox.record(), operation, None)?;
        Ok((sandbox, asked))
    }

    fn judge(
        &self,
        peer: Peer,
        word: &str,
        record: &Record,
        operation: Operation,
        mode: Option<Mode>,
    ) -> Result<Asked, Error> {
        let judged = self.0.judge(peer, operation, About { record: Some(record), mode });
        judged.map_err(|error| if self.0.may(peer, Operation::List, record) { error } else { nobody(word) })
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
        let shown =
            records.filter(|record| (request.all || !record.is_over()) && self.0.may(peer, Operation::List, record));
        Ok(ListResponse { sandboxes: shown.map(|record| record.wire()).collect() })
    }

    async fn inspect(&self, peer: Peer, sandbox: SandboxRef) -> Result<v1::Sandbox, Error> {
        let (sandbox, _) = self.asked(peer, &sandbox.id, Operation::Inspect)?;
        Ok(sandbox.record().wire())
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
        let sandbox = self.0.find(&request.id)?;
        let record = sandbox.record();
        let relaxes = strictness(mode) < strictness(record.facts.mode);
        let operation = if relaxes { Operation::ModeRelax } else { Operation::ModeTighten };
        let asked = self.judge(peer, &request.id, &record, operation, Some(mode))?;
        self.turn(peer, &sandbox, Wish::Mode(mode), asked, request.reason).await
    }

    async fn set_limits(&self, peer: Peer, request: SetLimitsRequest) -> Result<Transition, Error> {
        let (sandbox, asked) = self.asked(peer, &request.id, Operation::Limits)?;
        let record = sandbox.record();
        let limits = limits(&record, request.limits.unwrap_or_default())?;
        self.turn(peer, &sandbox, Wish::Limits(limits), asked, request.reason).await
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
        let said = sandbox.ask(&ToKeeper::Signal { number: request.signal }).await;
        let outcome = if said.is_ok() { Outcome::Allowed } else { Outcome::Failed };
        self.0.write_down(&asked, &sandbox.record(), outcome, "", json!(null), json!({"signal": request.signal}))?;
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
            daemon.write_down(&asked, &sandbox.record(), Outcome::Allowed, "", json!(null), json!(null))?;
            daemon.forget(&sandbox).map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))
        })
        .await
    }

    async fn audit_tail(&self, peer: Peer, request: AuditRequest) -> Result<Streamed<JsonLine>, Error> {
        self.0.judge(peer, Operation::Audit, About::default())?;
        let count = if request.limit == 0 { 100 } else { request.limit.min(AUDIT_MAX) };
        let lines = self.0.audit.tail(count as usize);
        let lines = lines.map_err(|error| Error::new(Kind::Internal, format!("{error:#}")))?;
        Ok(Box::pin(tokio_stream::iter(lines.into_iter().map(|json| Ok(JsonLine { json })))))
    }

    async fn audit_verify(&self, peer: Peer) -> Result<AuditVerdict, Error> {
        self.0.judge(peer, Operation::Audit, About::default())?;
        match self.0.audit.verify() {
            Ok(Ok(verdict)) => Ok(AuditVerdict {
                intact: true,
                records: verdict.records,
                head_sha256: verdict.head_sha256,
                words: String::new(),
            }),
            Ok(Err(broken)) => Ok(AuditVerdict {
                intact: false,
                records: broken.line.saturating_sub(1),
                head_sha256: String::new(),
                words: format!("line {}: {}", broken.line, broken.words),
            }),
            Err(error) => Err(Error::new(Kind::Internal, format!("{error:#}"))),
        }
    }

    async fn tree(&self, peer: Peer) -> Result<TreeResponse, Error> {
        self.0.judge(peer, Operation::Tree, About::default())?;
        Ok(TreeResponse { services: self.0.services.states(), groups: groups::visible(&self.0, peer) })
    }

    async fn stats(&self, peer: Peer) -> Result<StatsResponse, Error> {
        let mut rows = Vec::new();
        for sandbox in self.0.all() {
            let record = sandbox.record();
            if record.is_over() || !self.0.may(peer, Operation::Stats, &record) {
                continue;
            }
            let usage = match sandbox.ask(&ToKeeper::Use).await {
                Ok(FromKeeper::Used(usage)) => usage,
                // It is about to end: a row without numbers tells no lie.
                Ok(_) | Err(_) => Usage::default(),
            };
            rows.push(SandboxStats {
                id: record.id,
                name: record.name,
                mode: record.facts.mode.name().to_owned(),
                state: record.facts.state.name().to_owned(),
                memory_bytes: usage.memory_bytes,
                tasks: usage.tasks,
                cpu_us: usage.cpu_us,
                findings: record.findings,
            });
        }
        Ok(StatsResponse { sandboxes: rows })
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

    async fn metrics(&self, peer: Peer) -> Result<String, Error> {
        self.0.judge(peer, Operation::Metrics, About::default())?;
        Ok(metrics(&self.0))
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
    let asker = Asker { is_operator_allowed_to_relax: false, automatic: false };
    match dial::wish(daemon, sandbox, Wish::Kill, asker, asked, "").await {
        Ok(transition) if !transition.applied && !sandbox.record().is_over() => {
            return Err(Error::new(Kind::Internal, transition.words));
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

/// In Prometheus' text format.
fn metrics(daemon: &Daemon) -> String {
    let mut text = String::from("# HELP apex_sandboxes Sandboxes by mode and state.\n# TYPE apex_sandboxes gauge\n");
    let mut counts: Vec<_> =
        daemon.by_state().into_iter().map(|((mode, state), count)| (mode, state.name(), count)).collect();
    counts.sort_unstable();
    for (mode, state, count) in counts {
        // A String takes everything.
        let _ = writeln!(text, "apex_sandboxes{{mode=\"{mode}\",state=\"{state}\"}} {count}");
    }
    let (mut findings, mut held): (u64, HashMap<bool, u64>) = (0, HashMap::new());
    for sandbox in daemon.all() {
        let record = sandbox.record();
        findings += record.findings;
        let is_running = matches!(record.facts.state, State::Running | State::Frozen);
        *held.entry(is_running && record.facts.tightened_by.is_some()).or_default() += 1;
    }
    let _ = writeln!(
        text,
        "# HELP apex_findings Findings about the sandboxes that there are.\n# TYPE apex_findings gauge\napex_findings {findings}"
    );
    let tightened = held.get(&true).copied().unwrap_or_default();
    let _ = writeln!(
        text,
        "# HELP apex_tightened_sandboxes Sandboxes that a finding tightened.\n# TYPE apex_tightened_sandboxes gauge\napex_tightened_sandboxes {tightened}"
    );
    let _ = writeln!(
        text,
        "# HELP apex_service_restarts_total Restarts of the daemon's services.\n# TYPE apex_service_restarts_total counter"
    );
    for service in daemon.services.states() {
        let _ = writeln!(text, "apex_service_restarts_total{{service=\"{}\"}} {}", service.name, service.restarts);
    }
    text
}
