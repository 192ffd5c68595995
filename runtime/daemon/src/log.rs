//! What a command wrote to one stream, in files of bounded size.
//!
//! Two segments: the newer one takes the bytes, and takes the place of the older when it is full. Readers ask by offset from the beginning; what is gone is
//! skipped. Whoever must miss nothing holds its place with a [`Follower`]: then the writer waits, and with it, through the pipe, the command.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

/// Bytes of a segment.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// How far the writer may be ahead of the slowest follower.
const AHEAD_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read at once.
const READ_BYTES_MAX: u64 = 64 << 10;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset behind the last byte.
    pub end: u64,
    /// Whether nothing more comes.
    pub is_closed: bool,
}

/// The log of one stream.
pub struct Log {
    path: PathBuf,
    inner: Mutex<Inner>,
    extent: watch::Sender<Extent>,
    followers: Mutex<HashMap<u64, u64>>,
    read_on: Notify,
}

struct Inner {
    newer: Option<File>,
    /// Offset of the first byte of the newer segment, and of the older one.
    newer_start: u64,
    older_start: u64,
}

impl Log {
    /// The log in these files, going on where they end.
    pub fn open(path: PathBuf) -> Log {
        let size = |path: &Path| fs::metadata(path).map_or(0, |about| about.len());
        let older = size(&older(&path));
        let end = older + size(&path);
        let inner = Inner { newer: None, newer_start: older, older_start: 0 };
        Log {
            path,
            inner: Mutex::new(inner),
            extent: watch::Sender::new(Extent { end, is_closed: false }),
            followers: Mutex::new(HashMap::new()),
            read_on: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner();
        let end = self.extent.borrow().end;
        if end - inner.newer_start + bytes.len() as u64 > SEGMENT_BYTES_MAX && end > inner.newer_start {
            fs::rename(&self.path, older(&self.path))?;
            (inner.older_start, inner.newer_start, inner.newer) = (inner.newer_start, end, None);
        }
        if inner.newer.is_none() {
            inner.newer = Some(File::options().create(true).append(true).read(true).mode(0o600).open(&self.path)?);
        }
        let kept = end - inner.newer_start;
        if let Some(file) = &mut inner.newer
            && let Err(error) = file.write_all(bytes)
        {
            // A disk that is full took a part: left there, it would shift everything that comes after.
            file.set_len(kept)?;
            return Err(error);
        }
        self.extent.send_modify(|extent| extent.end += bytes.len() as u64);
        Ok(())
    }

    /// Nothing more comes.
    pub fn close(&self) {
        self.extent.send_modify(|extent| extent.is_closed = true);
    }

    /// Tells of changes.
    pub fn extent(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }

    /// Bytes from `offset` on, or from the first that is still there, and the offset behind them. Empty at the end.
    pub fn read(&self, offset: u64) -> io::Result<(u64, Vec<u8>)> {
        let inner = self.inner();
        let end = self.extent.borrow().end;
        let offset = offset.max(inner.older_start);
        let (path, start, stop) = if offset >= inner.newer_start {
            (self.path.clone(), inner.newer_start, end)
        } else {
            (older(&self.path), inner.older_start, inner.newer_start)
        };
        let count = (stop.saturating_sub(offset)).min(READ_BYTES_MAX);
        if count == 0 {
            return Ok((offset, Vec::new()));
        }
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        File::open(path)?.read_exact_at(&mut bytes, offset - start)?;
        Ok((offset + count, bytes))
    }

    /// Waits until every follower has read on far enough.
    pub async fn wait_for_followers(&self) {
        loop {
            let read_on = self.read_on.notified();
            let end = self.extent.borrow().end;
            let slowest = self.places().values().copied().min().unwrap_or(end);
            if end.saturating_sub(slowest) <= AHEAD_BYTES_MAX {
                return;
            }
            read_on.await;
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// A reader for whom the writer waits.
pub struct Follower {
    log: Arc<Log>,
    key: u64,
    offset: u64,
    extent: watch::Receiver<Extent>,
}

impl Follower {
    /// From this offset on.
    pub fn new(log: &Arc<Log>, offset: u64) -> Follower {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        log.places().insert(key, offset);
        Follower { log: Arc::clone(log), key, offset, extent: log.extent() }
    }

    /// The next bytes; empty when there are no more.
    pub async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let extent = *self.extent.borrow_and_update();
            let (offset, bytes) = self.log.read(self.offset)?;
            self.offset = offset;
            self.log.places().insert(self.key, offset);
            self.log.read_on.notify_waiters();
            if !bytes.is_empty() || extent.is_closed {
                return Ok(bytes);
            }
            if self.extent.changed().await.is_err() {
                return Ok(bytes);
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.places().remove(&self.key);
        self.log.read_on.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str) -> (Arc<Log>, PathBuf) {
        let dir = std::env::temp_dir().join(format!("apexd-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        (Arc::new(Log::open(dir.join("stdout.log"))), dir)
    }

    fn all(log: &Log, mut offset: u64) -> Vec<u8> {
        let mut whole = Vec::new();
        loop {
            let (next, bytes) = log.read(offset).unwrap();
            if bytes.is_empty() {
                return whole;
            }
            offset = next;
            whole.extend(bytes);
        }
    }

    #[test]
    fn what_is_written_is_read_and_goes_on_after_a_restart() {
        let (log, dir) = log("restart");
        log.append(b"one").unwrap();
        log.append(b"two").unwrap();
        assert_eq!(all(&log, 0), b"onetwo");
        assert_eq!(all(&log, 4), b"wo");
        let again = Log::open(dir.join("stdout.log"));
        again.append(b"three").unwrap();
        assert_eq!(all(&again, 0), b"onetwothree");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn two_segments_bound_it_and_the_newest_bytes_stay() {
        let (log, dir) = log("bound");
        let block = vec![b'x'; 1 << 20];
        for _ in 0..40 {
            log.append(&block).unwrap();
        }
        log.append(b"end").unwrap();
        let kept = all(&log, 0);
        assert!(kept.len() as u64 <= 2 * SEGMENT_BYTES_MAX && kept.len() as u64 >= SEGMENT_BYTES_MAX, "{}", kept.len());
        assert!(kept.ends_with(b"xend"));
        let on_disk: u64 = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(on_disk, kept.len() as u64);
        fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_follower_misses_nothing_and_holds_the_writer_back() {
        let (log, dir) = log("follower");
        let mut follower = Follower::new(&log, 0);
        let writer = {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for number in 0..200u32 {
                    log.append(&vec![(number % 251) as u8; 100_000]).unwrap();
                    log.wait_for_followers().await;
                }
                log.close();
            })
        };
        let mut count = 0u64;
        loop {
            let bytes = follower.next().await.unwrap();
            if bytes.is_empty() {
                break;
            }
            for byte in bytes {
                assert_eq!(u64::from(byte), count / 100_000 % 251);
                count += 1;
            }
        }
        writer.await.unwrap();
        assert_eq!(count, 200 * 100_000);
        fs::remove_dir_all(dir).unwrap();
    }
}
