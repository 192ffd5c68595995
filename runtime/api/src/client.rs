//! The client's side: a channel to apexd over its socket.
//!
//! Input: a path. Output: the generated client. Starts no daemon, and asks nothing by itself.

use std::path::Path;
use std::sync::{Arc, Mutex};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::v1::apex_client::ApexClient;
use crate::{Error, Kind};

/// Largest answer that is read. Not the bound of what is asked: a list of every sandbox is one message.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Connects to the daemon that listens at `path`.
///
/// # Errors
/// [`Kind::Unavailable`] when nobody listens there or the caller may not connect; the words tell what to do.
pub async fn connect(path: &Path) -> Result<ApexClient<Channel>, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        let at = path.display();
        let words =
            format!("connecting to apexd at {at}: {error}; is it running? `apexd --socket {at} --state DIR` starts it");
        Error::new(Kind::Unavailable, words)
    };
    // Connected here, for the sake of its error: the channel wraps what went wrong in "transport error".
    let first = UnixStream::connect(path).await.map_err(|error| failed(&error))?;
    let first = Arc::new(Mutex::new(Some(first)));
    let path_again = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let ready = first.lock().ok().and_then(|mut first| first.take());
        let path = path_again.clone();
        async move {
            match ready {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(&path).await.map(TokioIo::new),
            }
        }
    });
    // The name is only for the authority of the requests; nothing is looked up.
    let channel = Endpoint::from_static("http://apexd").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| failed(&error))?;
    Ok(ApexClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
}
