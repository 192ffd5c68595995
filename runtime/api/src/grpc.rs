//! gRPC in front of a [`Service`].
//!
//! Input: calls of the generated trait, with the [`Peer`] that the server put into the extensions of each request. Output: the same calls of the service,
//! its errors as gRPC codes. Streams are pulled: what nobody takes is not asked for, and HTTP/2 holds back who sends too much. Decides nothing.

use std::sync::Arc;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::server::MESSAGE_BYTES_MAX;
use crate::v1::apex_server::{Apex, ApexServer};
use crate::v1::{
    AuditRequest, AuditVerdict, CreateRequest, DrainPoolsRequest, Empty, Group, GroupRef, GroupsResponse, JsonLine,
    ListRequest, ListResponse, LogChunk, LogsRequest, MailAcknowledgeRequest, MailReceiveRequest, MailReceived,
    MailSendRequest, MailSent, MailboxRef, MailboxesResponse, Pool, PoolsResponse, RemoveRequest, RunInput, RunOutput,
    Sandbox, SandboxRef, SetLimitsRequest, SetModeRequest, SetPoolRequest, SetSwitchesRequest, SignalRequest,
    StatsResponse, StreamRequest, Suggestion, Transition, TreeResponse, UpRequest,
};
use crate::{Error, Kind, Peer, Service, Streamed};

/// The service as tonic serves it.
pub(crate) struct Grpc(Arc<dyn Service>);

/// What a server mounts.
pub(crate) fn server(service: Arc<dyn Service>) -> ApexServer<Grpc> {
    ApexServer::new(Grpc(service)).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Who asks, and what. Without a peer nothing is served: the service would have nobody to judge.
fn opened<T>(request: Request<T>) -> Result<(Peer, T), Error> {
    let peer = request.extensions().get::<Peer>().copied();
    let peer = peer.ok_or_else(|| Error::new(Kind::Internal, "the server did not tell who asks"))?;
    Ok((peer, request.into_inner()))
}

fn one<T>(answer: Result<T, Error>) -> Answer<T> {
    Ok(Response::new(answer?))
}

fn many<T: 'static>(answer: Result<Streamed<T>, Error>) -> Answer<Answers<T>> {
    Ok(Response::new(Box::pin(answer?.map(|item| item.map_err(Status::from)))))
}

impl Grpc {
    async fn streams(&self, request: Request<Streaming<RunInput>>) -> Answer<Answers<RunOutput>> {
        let (peer, input) = opened(request)?;
        many(self.0.run(peer, Box::pin(input.map(|item| item.map_err(Error::from)))).await)
    }
}

#[tonic::async_trait]
impl Apex for Grpc {
    type RunStream = Answers<RunOutput>;
    type ExecStream = Answers<RunOutput>;
    type AttachStream = Answers<RunOutput>;
    type LogsStream = Answers<LogChunk>;
    type EventsStream = Answers<JsonLine>;
    type FindingsStream = Answers<JsonLine>;
    type AuditTailStream = Answers<JsonLine>;

    async fn create(&self, request: Request<CreateRequest>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.create(peer, message).await)
    }

    async fn run(&self, request: Request<Streaming<RunInput>>) -> Answer<Self::RunStream> {
        self.streams(request).await
    }

    async fn exec(&self, request: Request<Streaming<RunInput>>) -> Answer<Self::ExecStream> {
        self.streams(request).await
    }

    async fn attach(&self, request: Request<Streaming<RunInput>>) -> Answer<Self::AttachStream> {
        self.streams(request).await
    }

    async fn wait(&self, request: Request<SandboxRef>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.wait(peer, message).await)
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        let (peer, message) = opened(request)?;
        one(self.0.list(peer, message).await)
    }

    async fn inspect(&self, request: Request<SandboxRef>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.inspect(peer, message).await)
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let (peer, message) = opened(request)?;
        many(self.0.logs(peer, message).await)
    }

    async fn events(&self, request: Request<StreamRequest>) -> Answer<Self::EventsStream> {
        let (peer, message) = opened(request)?;
        many(self.0.events(peer, message).await)
    }

    async fn findings(&self, request: Request<StreamRequest>) -> Answer<Self::FindingsStream> {
        let (peer, message) = opened(request)?;
        many(self.0.findings(peer, message).await)
    }

    async fn set_mode(&self, request: Request<SetModeRequest>) -> Answer<Transition> {
        let (peer, message) = opened(request)?;
        one(self.0.set_mode(peer, message).await)
    }

    async fn suggest_mode(&self, request: Request<SandboxRef>) -> Answer<Suggestion> {
        let (peer, message) = opened(request)?;
        one(self.0.suggest_mode(peer, message).await)
    }

    async fn set_limits(&self, request: Request<SetLimitsRequest>) -> Answer<Transition> {
        let (peer, message) = opened(request)?;
        one(self.0.set_limits(peer, message).await)
    }

    async fn set_switches(&self, request: Request<SetSwitchesRequest>) -> Answer<Transition> {
        let (peer, message) = opened(request)?;
        one(self.0.set_switches(peer, message).await)
    }

    async fn pause(&self, request: Request<SandboxRef>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.pause(peer, message).await)
    }

    async fn resume(&self, request: Request<SandboxRef>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.resume(peer, message).await)
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.signal(peer, message).await)
    }

    async fn kill(&self, request: Request<SandboxRef>) -> Answer<Sandbox> {
        let (peer, message) = opened(request)?;
        one(self.0.kill(peer, message).await)
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Answer<Empty> {
        let (peer, message) = opened(request)?;
        one(self.0.remove(peer, message).await.map(|()| Empty {}))
    }

    async fn audit_tail(&self, request: Request<AuditRequest>) -> Answer<Self::AuditTailStream> {
        let (peer, message) = opened(request)?;
        many(self.0.audit_tail(peer, message).await)
    }

    async fn audit_verify(&self, request: Request<Empty>) -> Answer<AuditVerdict> {
        let (peer, Empty {}) = opened(request)?;
        one(self.0.audit_verify(peer).await)
    }

    async fn tree(&self, request: Request<Empty>) -> Answer<TreeResponse> {
        let (peer, Empty {}) = opened(request)?;
        one(self.0.tree(peer).await)
    }

    async fn stats(&self, request: Request<Empty>) -> Answer<StatsResponse> {
        let (peer, Empty {}) = opened(request)?;
        one(self.0.stats(peer).await)
    }

    async fn pools(&self, request: Request<Empty>) -> Answer<PoolsResponse> {
        let (peer, Empty {}) = opened(request)?;
        one(self.0.pools(peer).await)
    }

    async fn set_pool(&self, request: Request<SetPoolRequest>) -> Answer<Pool> {
        let (peer, message) = opened(request)?;
        one(self.0.set_pool(peer, message).await)
    }

    async fn drain_pools(&self, request: Request<DrainPoolsRequest>) -> Answer<PoolsResponse> {
        let (peer, message) = opened(request)?;
        one(self.0.drain_pools(peer, message).await)
    }

    async fn up(&self, request: Request<UpRequest>) -> Answer<Group> {
        let (peer, message) = opened(request)?;
        one(self.0.up(peer, message).await)
    }

    async fn down(&self, request: Request<GroupRef>) -> Answer<Group> {
        let (peer, message) = opened(request)?;
        one(self.0.down(peer, message).await)
    }

    async fn groups(&self, request: Request<Empty>) -> Answer<GroupsResponse> {
        let (peer, Empty {}) = opened(request)?;
        one(self.0.groups(peer).await)
    }

    async fn mailboxes(&self, request: Request<Empty>) -> Answer<MailboxesResponse> {
        let (peer, Empty {}) = opened(request)?;
        one(self.0.mailboxes(peer).await)
    }

    async fn mail_send(&self, request: Request<MailSendRequest>) -> Answer<MailSent> {
        let (peer, message) = opened(request)?;
        one(self.0.mail_send(peer, message).await)
    }

    async fn mail_receive(&self, request: Request<MailReceiveRequest>) -> Answer<MailReceived> {
        let (peer, message) = opened(request)?;
        one(self.0.mail_receive(peer, message).await)
    }

    async fn mail_acknowledge(&self, request: Request<MailAcknowledgeRequest>) -> Answer<Empty> {
        let (peer, message) = opened(request)?;
        one(self.0.mail_acknowledge(peer, message).await.map(|()| Empty {}))
    }

    async fn mail_remove(&self, request: Request<MailboxRef>) -> Answer<Empty> {
        let (peer, message) = opened(request)?;
        one(self.0.mail_remove(peer, message).await.map(|()| Empty {}))
    }
}
