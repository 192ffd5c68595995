//! The daemon's ends of a command's streams: from the pipes to the logs, and from a client to standard input.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::log::Log;
use crate::say::{self, Level};

/// Bytes that are taken from a pipe at once.
const PIPE_BYTES: usize = 64 << 10;

/// Takes everything from a pipe into a log, until its last writer is gone. What cannot be written is lost, and said once on the daemon's own standard error:
/// a full disk must not stop a command for ever.
pub fn pump(read: OwnedFd, log: Arc<Log>, what: String) -> std::io::Result<()> {
    let mut pipe = pipe::Receiver::from_owned_fd(read)?;
    tokio::spawn(async move {
        let mut bytes = vec![0; PIPE_BYTES];
        let mut has_told = false;
        while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
            if let Err(error) = log.append(&bytes[..count])
                && !std::mem::replace(&mut has_told, true)
            {
                let words =
                    format_args!("keeping {what}: {error}; what the command writes is lost until there is room");
                say::line(Level::Warning, "streams", None, words);
            }
            log.wait_for_followers().await;
        }
        log.close();
    });
    Ok(())
}
