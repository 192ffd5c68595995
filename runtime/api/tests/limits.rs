//! What one client can hold of the server: places for requests, and time. What is beyond is refused with words, and what ends makes room.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apex_api::v1::{ListRequest, SandboxRef};
use apex_api::{client, server};
use fake::Fake;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// A server's socket; its file is gone with the test.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl std::ops::Deref for Socket {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// A server, to the end of the test.
fn serve(name: &str) -> Socket {
    let path = std::env::temp_dir().join(format!("apex-api-limits-{name}-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(server::serve(listener, Arc::new(Fake::default()), std::future::pending()));
    Socket(path)
}

/// The test is the daemon's own user, who has as many as all others together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_counted() {
    let path = serve("requests");
    let mut held = tokio::task::JoinSet::new();
    let streams = server::CONCURRENT_STREAMS_MAX as usize;
    for _ in 0..server::REQUESTS_MAX.div_ceil(streams) {
        let client = client::connect(&path).await.unwrap();
        for _ in 0..streams {
            let mut client = client.clone();
            held.spawn(async move { client.wait(SandboxRef { id: "for-ever".to_owned() }).await });
        }
    }
    let mut client = client::connect(&path).await.unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        match client.list(ListRequest::default()).await {
            Err(refused) => break refused,
            Ok(_) => assert!(Instant::now() < end, "one more is served"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(refused.message().contains("under way"), "{}", refused.message());
    let by_rest = hear(&path, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.0;
    assert!(by_rest.starts_with("HTTP/1.1 429"), "{by_rest}");
    held.abort_all();
    while held.join_next().await.is_some() {}
    while client.list(ListRequest::default()).await.is_err() {
        assert!(Instant::now() < end, "what ended makes no room");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Says it and goes on listening: what is heard, and after how long the server has hung up.
async fn hear(path: &Path, bytes: &[u8]) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut heard = Vec::new();
    let all = tokio::time::timeout(3 * server::HEADER_READ_TIMEOUT, stream.read_to_end(&mut heard)).await;
    let _ = all.expect("it hangs up at last");
    (String::from_utf8_lossy(&heard).into_owned(), begun.elapsed())
}

/// Whoever is slow for ever, in each way in which one can be, is hung up on after the time that there is for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_slow_for_ever_is_hung_up_on() {
    let path = serve("slow");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let settings = [preface, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    // The head of a request whose end never comes.
    let begun = [&settings[..], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83]].concat();
    let bytes: [&[u8]; 6] = [b"", b"GET / HTT", b"GET / HTTP/1.1\r\nhost: a\r\n", &preface[..9], &settings, &begun];
    let mut slow = tokio::task::JoinSet::new();
    for bytes in bytes {
        let (path, bytes) = (path.to_path_buf(), bytes.to_vec());
        slow.spawn(async move { hear(&path, &bytes).await.1 });
    }
    let dripping = path.to_path_buf();
    slow.spawn(async move {
        let begun = Instant::now();
        let mut stream = UnixStream::connect(dripping).await.unwrap();
        for byte in b"GET /healthz HTTP/1.1\r\n".iter().chain(b"X-Drop: y\r\n".iter().cycle()) {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            assert!(begun.elapsed() < 3 * server::HEADER_READ_TIMEOUT, "a byte at a time it may go on for ever");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        begun.elapsed()
    });
    // Meanwhile others are served.
    let served = hear(&path, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(served.0.starts_with("HTTP/1.1 200") && served.1 < Duration::from_secs(5), "{served:?}");
    while let Some(after) = slow.join_next().await {
        let after = after.unwrap();
        assert!(after < 2 * server::HEADER_READ_TIMEOUT, "it was hung up on after {after:?}");
    }
}
