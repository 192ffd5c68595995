//! The server against broken and hostile clients: it never panics, never hangs, never calls bad input its own failure, and always serves the next good
//! request. `APEX_FUZZ_SEED` and `APEX_FUZZ_CASES` ask for others and more.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;
#[allow(dead_code, reason = "shared with the tests of the real daemon")]
#[path = "../../../tests/src/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apex_api::{server, v1};
use fake::Fake;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use wire::Dice;

/// Cases of each kind in an ordinary run.
const CASES: usize = 1500;
/// A server that does not answer within this hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes by which the process may have grown: what the allocator keeps, and no more.
const GROWTH_BYTES_MAX: usize = 96 << 20;

static PANICS: AtomicUsize = AtomicUsize::new(0);

fn asked<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// A server on a thread of its own, to the end of the test program.
fn serve(name: &str) -> PathBuf {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        eprintln!("{panic}");
    }));
    let path = std::env::temp_dir().join(format!("apex-api-fuzz-{name}-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let (to, ready) = std::sync::mpsc::channel();
    let at = path.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::bind(at).unwrap();
            to.send(()).unwrap();
            server::serve(listener, Arc::new(Fake::default()), std::future::pending()).await.unwrap();
        });
    });
    ready.recv().unwrap();
    path
}

/// It serves a good request, as ever.
#[track_caller]
fn serves(path: &Path, case: &dyn std::fmt::Display) {
    let answer = wire::say(path, &wire::request("GET", "/healthz", b""));
    assert_eq!(answer.as_deref().and_then(wire::status), Some(200), "{case}");
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "{case}");
}

static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn number_of(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let rest = status.lines().find_map(|found| found.strip_prefix(line)).unwrap().to_owned();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Cases of one kind; afterwards nothing has grown.
fn cases(name: &str, case: impl Fn(&Path, &mut Dice, u64)) {
    // Descriptors and memory are the whole process's, which other tests of this file may share.
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = serve(name);
    let seed: u64 = asked("APEX_FUZZ_SEED", 1);
    let count = asked("APEX_FUZZ_CASES", CASES);
    let mut before = (0, 0);
    for at in 0..count {
        // The first ones warm the allocator up.
        if at == count / 5 {
            before = (number_of("VmRSS:"), descriptors());
        }
        let seed = seed << 32 | at as u64;
        case(&path, &mut Dice::new(seed), seed);
        if at % 50 == 0 {
            serves(&path, &format!("after case {seed}"));
        }
    }
    serves(&path, &"at the end");
    let grown = (number_of("VmRSS:").saturating_sub(before.0)) << 10;
    assert!(grown < GROWTH_BYTES_MAX, "it grew by {grown} bytes");
    let end = std::time::Instant::now() + PATIENCE;
    while descriptors() > before.1 {
        assert!(std::time::Instant::now() < end, "{} descriptors became {}", before.1, descriptors());
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = std::fs::remove_file(path);
}

#[test]
fn json_of_every_wrong_shape_is_refused_with_words() {
    cases("json", |path, dice, seed| {
        // Half of them make something: most fields are there.
        let (method, route) = if dice.below(2) == 0 { wire::ROUTES[0] } else { dice.of(&wire::ROUTES) };
        let (to, body) = (wire::path(dice, route), wire::body(dice));
        let answer = wire::say(path, &wire::request(method, &to, &body)).unwrap_or_else(|| panic!("{seed}: hangs"));
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = wire::status(&answer).unwrap_or_else(|| panic!("{seed}: no status: {text}"));
        assert!((200..500).contains(&status), "{seed}: {method} {to}: {text}");
        // A path that is no URI never reaches the router.
        if let Some((_, body)) = text.split_once("\r\n\r\n").filter(|(_, body)| status >= 400 && !body.is_empty()) {
            let told: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{seed}: {error}: {text}"));
            assert!(!told["error"]["message"].as_str().unwrap_or_default().is_empty(), "{seed}: {text}");
            assert!(body.len() < 16 << 10, "{seed}: it repeats what was sent: {} bytes", body.len());
        }
    });
}

#[test]
fn broken_http1_is_answered_or_hung_up_on() {
    cases("http1", |path, dice, seed| {
        let bytes = wire::http1(dice);
        let answer = wire::say(path, &bytes).unwrap_or_else(|| panic!("{seed}: hangs"));
        let status = wire::status(&answer).unwrap_or(400);
        assert!(status < 500, "{seed}: {}", String::from_utf8_lossy(&answer));
    });
}

#[test]
fn broken_http2_is_answered_or_hung_up_on() {
    cases("http2", |path, dice, seed| {
        let bytes = wire::http2(dice);
        assert!(wire::say(path, &bytes).is_some(), "{seed}: hangs");
    });
}

/// The gRPC status of an answer, and its words.
async fn call(path: &Path, method: &str, message: Vec<u8>) -> (i32, String) {
    let stream = UnixStream::connect(path).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    let driver = tokio::spawn(connection);
    let request = hyper::Request::builder().method("POST").uri(format!("http://apexd/apex.v1.Apex/{method}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let response = sender.send_request(request.body(Full::new(Bytes::from(message))).unwrap()).await.unwrap();
    let head = response.headers().clone();
    let collected = response.into_body().collect().await.unwrap();
    let end = collected.trailers().cloned().unwrap_or(head);
    driver.abort();
    let text = |name: &str| end.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let code = text("grpc-status").unwrap_or_else(|| panic!("{method}: no status in {end:?}"));
    (code.parse().unwrap(), text("grpc-message").unwrap_or_default())
}

#[test]
fn protobuf_of_every_wrong_shape_is_refused_with_words() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    cases("protobuf", |path, dice, seed| {
        let method = wire::CALLS[usize::try_from(seed).unwrap() % wire::CALLS.len()];
        let answered = async { tokio::time::timeout(PATIENCE, call(path, method, wire::message(dice))).await };
        let (code, words) = runtime.block_on(answered).unwrap_or_else(|_| panic!("{seed}: {method} hangs"));
        // Around the message rather than in it; what tonic says there is not ours to choose.
        let is_framing = ["compress", "Missing%20request%20message", "Unexpected%20EOF"];
        let is_framing = is_framing.iter().any(|known| words.contains(known));
        // `no more` is how lines of the service in memory end.
        assert!(
            matches!(code, 0 | 3 | 5 | 7..=9 | 11 | 12) || is_framing || words == "no%20more",
            "{seed}: {method}: {code} {words}"
        );
        assert!(code == 0 || !words.is_empty(), "{seed}: {method}: {code} without words");
    });
}

/// As the target of libFuzzer has it: what was read is written and read again as the same.
fn read_and_written<T>(bytes: &[u8])
where
    T: prost::Message + Default + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    if let Ok(message) = T::decode(bytes) {
        assert!(T::decode(message.encode_to_vec().as_slice()).is_ok_and(|again| again == message));
    }
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&message).unwrap();
        assert!(serde_json::from_slice::<T>(&text).is_ok_and(|again| again == message));
    }
}

fn every_message(bytes: &[u8]) {
    read_and_written::<v1::CreateRequest>(bytes);
    read_and_written::<v1::RunInput>(bytes);
    read_and_written::<v1::SandboxRef>(bytes);
    read_and_written::<v1::LogsRequest>(bytes);
    read_and_written::<v1::SetModeRequest>(bytes);
    read_and_written::<v1::SetLimitsRequest>(bytes);
    read_and_written::<v1::SetSwitchesRequest>(bytes);
    read_and_written::<v1::SignalRequest>(bytes);
    read_and_written::<v1::RemoveRequest>(bytes);
    read_and_written::<v1::AuditRequest>(bytes);
}

#[test]
fn what_is_read_is_written_and_read_again() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/api");
    let mut tried = 0;
    for entry in std::fs::read_dir(seeds).unwrap() {
        every_message(&std::fs::read(entry.unwrap().path()).unwrap());
        tried += 1;
    }
    assert!(tried > 8, "the seeds are gone");
    let mut dice = Dice::new(asked("APEX_FUZZ_SEED", 1));
    for _ in 0..20 * CASES {
        every_message(&wire::protobuf(&mut dice, 0));
        every_message(&wire::body(&mut dice));
    }
}
