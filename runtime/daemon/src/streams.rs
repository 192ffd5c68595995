//! The daemon's ends of a command's streams: from the pipes to the logs, and from a client to standard input.

use std::sync::Arc;

use crate::log::Log;
use crate::say::{self, Level};
use crate::terminal::Source;

/// Bytes that are taken from a pipe at once.
const PIPE_BYTES: usize = 64 << 10;

/// Takes everything from a pipe or a terminal into a log, until its last writer is gone. What cannot be written is lost, and said once on the daemon's own standard error:
/// a full disk must not stop a command for ever.
pub fn pump(mut from: Source, log: Arc<Log>, what: String) {
    tokio::spawn(async move {
        let mut has_told = false;
        // Most wait for most of their lives, and need no room then.
        while from.ready().await.is_ok() {
            let mut bytes = vec![0; PIPE_BYTES];
            let Ok(count @ 1..) = from.read(&mut bytes).await else { break };
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
}
