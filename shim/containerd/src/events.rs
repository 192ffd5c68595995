//! What happened, told to containerd in its order.
//!
//! The queue is bounded; while containerd is away the oldest is given up when it is full, and counted. An event that containerd itself
//! refuses is given up after some tries, as others wait behind it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, context};
use tokio::sync::{Notify, watch};

/// Events that wait for containerd.
const WAITING_MAX: usize = 2048;
/// Tries of an event that containerd refuses.
const REFUSED_MAX: u32 = 5;
/// Between tries, doubled up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long one event may take.
const FORWARD_LIMIT: Duration = Duration::from_secs(10);

/// Where events go in.
#[derive(Debug)]
pub struct Publisher {
    namespace: String,
    waiting: Mutex<Waiting>,
    more: Notify,
    is_empty: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Envelope>,
    lost: u64,
}

/// A time as the protocol has it.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().cast_signed();
    MessageField::some(Timestamp { seconds, nanos: since.subsec_nanos().cast_signed(), ..Timestamp::default() })
}

/// A message as any, by its full name, as Go's typeurl has it.
pub fn any<M: MessageFull>(message: &M) -> Any {
    // Only a message with required fields fails to be written, and proto3 has none.
    let value = message.write_to_bytes().unwrap_or_default();
    Any { type_url: M::descriptor().full_name().to_owned(), value, ..Any::default() }
}

impl Publisher {
    /// Starts to tell events to the socket at this path.
    pub fn start(address: String, namespace: String) -> Arc<Self> {
        let (is_empty, _) = watch::channel(true);
        let (waiting, more) = (Mutex::default(), Notify::new());
        let publisher = Arc::new(Publisher { namespace, waiting, more, is_empty });
        tokio::spawn(Arc::clone(&publisher).run(address));
        publisher
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event in line. Never waits.
    pub fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        log::debug!("event {topic}");
        let envelope = Envelope {
            timestamp: timestamp(SystemTime::now()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(any(event)),
            ..Envelope::default()
        };
        let mut waiting = self.lock();
        if waiting.events.len() == WAITING_MAX {
            waiting.events.pop_front();
            waiting.lost += 1;
            if waiting.lost.is_power_of_two() {
                log::warn!("{} events are lost: containerd takes none", waiting.lost);
            }
        }
        waiting.events.push_back(envelope);
        self.is_empty.send_replace(false);
        drop(waiting);
        self.more.notify_one();
    }

    /// Waits until all are told, but no longer than this.
    pub async fn flush(&self, limit: Duration) {
        let mut is_empty = self.is_empty.subscribe();
        let told = is_empty.wait_for(|is_empty| *is_empty);
        if tokio::time::timeout(limit, told).await.is_err() {
            log::warn!("{} events are lost at the end: containerd takes none", self.lock().events.len());
        }
    }

    async fn run(self: Arc<Self>, address: String) {
        let mut client = None;
        loop {
            let next = self.lock().events.front().cloned();
            let Some(event) = next else {
                self.more.notified().await;
                continue;
            };
            tell(&mut client, &address, &event).await;
            let mut waiting = self.lock();
            // It may have been pushed out meanwhile; then another stands there.
            if waiting.events.front() == Some(&event) {
                waiting.events.pop_front();
            }
            if waiting.events.is_empty() {
                waiting.events.shrink_to_fit();
                self.is_empty.send_replace(true);
            }
        }
    }
}

/// Tells one event, however long containerd is away.
async fn tell(client: &mut Option<EventsClient>, address: &str, event: &Envelope) {
    let mut pause = PAUSE_MIN;
    let mut refused = 0;
    let request = ForwardRequest { envelope: MessageField::some(event.clone()), ..ForwardRequest::default() };
    loop {
        match forward(client, address, &request).await {
            Ok(()) => return,
            Err(ttrpc::Error::RpcStatus(status)) => {
                refused += 1;
                if refused == REFUSED_MAX {
                    log::warn!("event {} is lost, containerd refuses it: {}", event.topic, status.message());
                    return;
                }
            }
            Err(error) => {
                log::debug!("containerd cannot be told of {}: {error}", event.topic);
                *client = None;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn forward(client: &mut Option<EventsClient>, address: &str, request: &ForwardRequest) -> ttrpc::Result<()> {
    let connected = match client {
        Some(connected) => connected,
        None => {
            let address = format!("unix://{}", address.strip_prefix("unix://").unwrap_or(address));
            client.insert(EventsClient::new(Client::connect(&address).await?))
        }
    };
    connected.forward(context::with_duration(FORWARD_LIMIT), request).await.map(drop)
}
