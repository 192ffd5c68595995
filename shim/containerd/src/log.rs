//! The shim's log: lines on standard error, which containerd gives to its own log through the fifo `log` of the bundle.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{LevelFilter, Metadata, Record};

struct Lines {
    dropped: AtomicU64,
}

static LINES: Lines = Lines { dropped: AtomicU64::new(0) };

/// Logs to standard error from here on.
pub fn start(debug: bool) {
    // The only other logger there could be is this one.
    if log::set_logger(&LINES).is_ok() {
        log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    }
}

/// Makes the fifo of a bundle standard error. It is opened for both ways, so that a containerd that ends does not break it, and never
/// waits: what containerd does not take is dropped and counted.
pub fn into_fifo(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW);
    let fifo = options.open(path)?;
    if !fifo.metadata()?.file_type().is_fifo() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a fifo"));
    }
    Ok(apex_sys::fs::place(fifo.as_fd(), 2)?)
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The protocol's own lines are of use only to whoever works on the protocol.
        metadata.level() <= log::max_level()
            && (metadata.level() <= log::Level::Info || !metadata.target().starts_with("ttrpc"))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warning",
            log::Level::Info => "info",
            log::Level::Debug | log::Level::Trace => "debug",
        };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let lost = if dropped > 0 { format!(" lines_lost={dropped}") } else { String::new() };
        // Quoted as Rust quotes: a text from a runtime cannot end the line.
        let line = format!("level={level} shim=apex{lost} msg={:?}\n", record.args().to_string());
        // Lines up to PIPE_BUF go through whole or not at all (pipe(7)).
        let cut = &line.as_bytes()[..line.len().min(4096)];
        if std::io::stderr().write_all(cut).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}
