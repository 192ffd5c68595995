//! What the daemon does, whichever way it was asked.

use std::os::fd::BorrowedFd;
use std::pin::Pin;

use tokio_stream::Stream;

use crate::Error;
use crate::v1::{
    AuditRequest, AuditVerdict, CreateRequest, DrainPoolsRequest, Group, GroupRef, GroupsResponse, JsonLine,
    ListRequest, ListResponse, LogChunk, LogsRequest, MailAcknowledgeRequest, MailReceiveRequest, MailReceived,
    MailSendRequest, MailSent, MailboxRef, MailboxesResponse, Pool, PoolsResponse, RemoveRequest, RunInput, RunOutput,
    Sandbox, SandboxRef, SetLimitsRequest, SetModeRequest, SetPoolRequest, SetSwitchesRequest, SignalRequest,
    StatsResponse, StreamRequest, Suggestion, Transition, TreeResponse, UpRequest,
};

/// Who asks, as the kernel tells it of the socket's other end (unix(7), `SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; 0 when it is not known.
    pub pid: u32,
}

/// Answers that come one after the other.
pub type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Error>> + Send>>;

/// The daemon. Each call judges for itself whether the peer may.
#[async_trait::async_trait]
#[expect(missing_docs, reason = "the proto file says what each call does")]
pub trait Service: Send + Sync + 'static {
    /// Somebody has connected. Before the first request of the connection, for whoever must see with their own eyes who that is.
    async fn connected(&self, _peer: Peer, _connection: BorrowedFd<'_>) {}
    async fn create(&self, peer: Peer, request: CreateRequest) -> Result<Sandbox, Error>;
    /// `Run`, `Exec` and `Attach`: the first message tells which.
    async fn run(&self, peer: Peer, input: Streamed<RunInput>) -> Result<Streamed<RunOutput>, Error>;
    async fn wait(&self, peer: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error>;
    async fn list(&self, peer: Peer, request: ListRequest) -> Result<ListResponse, Error>;
    async fn inspect(&self, peer: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error>;
    async fn logs(&self, peer: Peer, request: LogsRequest) -> Result<Streamed<LogChunk>, Error>;
    async fn events(&self, peer: Peer, request: StreamRequest) -> Result<Streamed<JsonLine>, Error>;
    async fn findings(&self, peer: Peer, request: StreamRequest) -> Result<Streamed<JsonLine>, Error>;
    async fn set_mode(&self, peer: Peer, request: SetModeRequest) -> Result<Transition, Error>;
    async fn suggest_mode(&self, peer: Peer, sandbox: SandboxRef) -> Result<Suggestion, Error>;
    async fn set_limits(&self, peer: Peer, request: SetLimitsRequest) -> Result<Transition, Error>;
    async fn set_switches(&self, peer: Peer, request: SetSwitchesRequest) -> Result<Transition, Error>;
    async fn pause(&self, peer: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error>;
    async fn resume(&self, peer: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error>;
    async fn signal(&self, peer: Peer, request: SignalRequest) -> Result<Sandbox, Error>;
    async fn kill(&self, peer: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error>;
    async fn remove(&self, peer: Peer, request: RemoveRequest) -> Result<(), Error>;
    async fn audit_tail(&self, peer: Peer, request: AuditRequest) -> Result<Streamed<JsonLine>, Error>;
    async fn audit_verify(&self, peer: Peer) -> Result<AuditVerdict, Error>;
    async fn tree(&self, peer: Peer) -> Result<TreeResponse, Error>;
    async fn stats(&self, peer: Peer) -> Result<StatsResponse, Error>;
    async fn pools(&self, peer: Peer) -> Result<PoolsResponse, Error>;
    async fn set_pool(&self, peer: Peer, request: SetPoolRequest) -> Result<Pool, Error>;
    async fn drain_pools(&self, peer: Peer, request: DrainPoolsRequest) -> Result<PoolsResponse, Error>;
    async fn up(&self, peer: Peer, request: UpRequest) -> Result<Group, Error>;
    async fn down(&self, peer: Peer, group: GroupRef) -> Result<Group, Error>;
    async fn groups(&self, peer: Peer) -> Result<GroupsResponse, Error>;
    async fn mailboxes(&self, peer: Peer) -> Result<MailboxesResponse, Error>;
    async fn mail_send(&self, peer: Peer, request: MailSendRequest) -> Result<MailSent, Error>;
    async fn mail_receive(&self, peer: Peer, request: MailReceiveRequest) -> Result<MailReceived, Error>;
    async fn mail_acknowledge(&self, peer: Peer, request: MailAcknowledgeRequest) -> Result<(), Error>;
    async fn mail_remove(&self, peer: Peer, mailbox: MailboxRef) -> Result<(), Error>;
    /// Prometheus' text format.
    /// With `probes`, what each kernel probe costs as well, for which every watched sandbox is asked.
    async fn metrics(&self, peer: Peer, probes: bool) -> Result<String, Error>;
    /// A request was answered: `grpc` or `rest`, which call or route, and `ok`, the word of an error, or `unknown`. Each from a fixed set.
    fn answered(&self, _way: &'static str, _method: &str, _status: &'static str) {}
    /// Whether requests are served; the reason when they are not.
    async fn ready(&self) -> Result<(), Error>;
}
