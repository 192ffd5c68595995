//! The server over a real socket, with a service that lives in memory: both ways in give the same answers, and nothing unknown or outsized passes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apex_api::v1::{
    CreateRequest, Empty, GroupRef, LogsRequest, MailReceiveRequest, RunInput, Sandbox, SandboxRef, StreamRequest,
    run_input, run_output,
};
use apex_api::{Error, Kind, Service, client, server};
use fake::{CHUNK_BYTES, Fake};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt;

/// A server in a directory of its own; both end with the test.
struct Served {
    dir: PathBuf,
    path: PathBuf,
    /// Chunks of endless logs that were asked of the service.
    made: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Served {
    fn start(name: &str) -> Served {
        let dir = std::env::temp_dir().join(format!("apex-api-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("as the test wants it");
        let path = dir.join("apexd.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("as the test wants it");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let fake = Fake::default();
        let made = Arc::clone(&fake.made);
        let service: Arc<dyn Service> = Arc::new(fake);
        let done = tokio::spawn(server::serve(listener, service, async {
            let _ = stopped.await;
        }));
        Served { dir, path, made, stop: Some(stop), done }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.done.abort();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// One request over HTTP/1.1: status, media type and body.
async fn ask(path: &Path, method: &str, uri: &str, accept: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let stream = UnixStream::connect(path).await.expect("as the test wants it");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("as the test wants it");
    tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(uri).header("host", "apexd").header("accept", accept);
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).expect("as the test wants it");
    let response = sender.send_request(request).await.expect("as the test wants it");
    let status = response.status().as_u16();
    let media =
        response.headers().get("content-type").map(|media| media.to_str().expect("as the test wants it").to_owned());
    let body = response.into_body().collect().await.expect("as the test wants it").to_bytes().to_vec();
    (status, media.unwrap_or_default(), body)
}

async fn ask_json(path: &Path, method: &str, uri: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let (status, media, body) = ask(path, method, uri, "application/json", &body).await;
    assert_eq!(media, "application/json", "{}", String::from_utf8_lossy(&body));
    (status, serde_json::from_slice(&body).expect("as the test wants it"))
}

async fn refused(path: &Path, method: &str, uri: &str, body: &Value, status: u16, kind: &str, words: &str) {
    let (got, answer) = ask_json(path, method, uri, body).await;
    assert_eq!((got, answer["error"]["kind"].as_str()), (status, Some(kind)), "{answer}");
    assert!(answer["error"]["message"].as_str().expect("as the test wants it").contains(words), "{answer}");
}

fn of(id: &str) -> SandboxRef {
    SandboxRef { id: id.to_owned() }
}

#[tokio::test]
async fn both_ways_give_the_same_answers_and_the_peer_is_the_kernels() {
    let served = Served::start("same");
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let request = json!({ "name": "one", "command": ["true"], "limits": { "memory": "1M" }, "labels": { "a": "b" } });
    let (status, made) = ask_json(&served.path, "POST", "/v1/sandboxes", &request).await;
    assert_eq!((status, made["name"].as_str()), (201, Some("one")));
    let me = (made["uid"].as_u64().expect("as the test wants it"), made["pid"].as_u64().expect("as the test wants it"));
    // The fake tells who asked: this very process.
    assert_eq!(me.1, u64::from(std::process::id()));
    let second = CreateRequest { name: "two".to_owned(), command: vec!["false".to_owned()], ..Default::default() };
    let second = grpc.create(second).await.expect("as the test wants it").into_inner();
    assert_eq!((u64::from(second.uid), u64::from(second.pid)), me);

    for id in [made["id"].as_str().expect("as the test wants it"), "two"] {
        let by_grpc = grpc.inspect(of(id)).await.expect("as the test wants it").into_inner();
        let (status, by_rest) = ask_json(&served.path, "GET", &format!("/v1/sandboxes/{id}"), &Value::Null).await;
        assert_eq!((status, by_rest), (200, serde_json::to_value(by_grpc).expect("as the test wants it")));
    }
    let by_grpc = grpc.list(apex_api::v1::ListRequest { all: true }).await.expect("as the test wants it").into_inner();
    let (_, by_rest) = ask_json(&served.path, "GET", "/v1/sandboxes?all=true", &Value::Null).await;
    assert_eq!(by_rest, serde_json::to_value(by_grpc).expect("as the test wants it"));
    let change = json!({ "mode": "isolation", "reason": "because" });
    let (_, change) = ask_json(&served.path, "PUT", "/v1/sandboxes/two/mode", &change).await;
    assert_eq!((change["to"].as_str(), change["words"].as_str()), (Some("isolation"), Some("because")));
    let switches = json!({ "switches": ["connect=off", "bind=on"] });
    let (_, switches) = ask_json(&served.path, "PUT", "/v1/sandboxes/two/switches", &switches).await;
    assert_eq!(switches["to"], "connect=off,bind=on");
    let limits = json!({ "limits": { "tasks": "8" } });
    let (_, limits) = ask_json(&served.path, "PUT", "/v1/sandboxes/two/limits", &limits).await;
    assert_eq!(limits["to"], "8");
    let (_, signalled) = ask_json(&served.path, "POST", "/v1/sandboxes/two/signal", &json!({ "signal": 15 })).await;
    assert_eq!(signalled["ending"], "signal 15");
    for verb in ["pause", "resume", "wait", "kill"] {
        let (status, answer) = ask_json(&served.path, "POST", &format!("/v1/sandboxes/two/{verb}"), &Value::Null).await;
        assert_eq!((status, answer["id"].as_str()), (200, Some(second.id.as_str())), "{verb}");
    }
    assert_eq!(ask(&served.path, "DELETE", "/v1/sandboxes/two?force", "*/*", b"").await.0, 204);
    assert_eq!(grpc.inspect(of("two")).await.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn what_is_not_known_is_refused_by_name() {
    let served = Served::start("names");
    let at = served.path.as_path();
    refused(at, "POST", "/v1/sandboxes", &json!({ "comand": [] }), 400, "invalid", "`comand`").await;
    let nested = json!({ "limits": { "memroy": "1M" } });
    refused(at, "POST", "/v1/sandboxes", &nested, 400, "invalid", "`memroy`").await;
    let other = json!({ "id": "x", "mode": "hybrid" });
    refused(at, "PUT", "/v1/sandboxes/x/mode", &other, 400, "invalid", "`id`").await;
    refused(at, "GET", "/v1/sandboxes?al=1", &Value::Null, 400, "invalid", "`al`").await;
    refused(at, "GET", "/v1/sandboxes?all=maybe", &Value::Null, 400, "invalid", "maybe").await;
    refused(at, "GET", "/v1/sandboxes/x/logs?stream=out", &Value::Null, 400, "invalid", "`out`").await;
    refused(at, "POST", "/v1/sandboxes/x/kill", &json!({ "a": 1 }), 400, "invalid", "no body").await;
    refused(at, "GET", "/v1/nothing", &Value::Null, 404, "not-found", "/v1/nothing").await;
    refused(at, "PATCH", "/v1/sandboxes", &Value::Null, 405, "invalid", "PATCH").await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_both() {
    let served = Served::start("large");
    let policy = "#".repeat(server::MESSAGE_BYTES_MAX + 1);
    let body = json!({ "policy_toml": policy });
    refused(&served.path, "POST", "/v1/sandboxes", &body, 400, "invalid", "larger than 1048576 bytes").await;
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let error = grpc.create(CreateRequest { policy_toml: policy, ..Default::default() }).await.unwrap_err();
    assert_eq!((error.code(), Error::from(error).kind), (tonic::Code::OutOfRange, Kind::Invalid));
    assert!(grpc.list(apex_api::v1::ListRequest::default()).await.is_ok());
}

#[tokio::test]
async fn an_error_arrives_as_the_error_that_it_was() {
    let served = Served::start("errors");
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    for (kind, status) in [
        (Kind::Invalid, 400),
        (Kind::NotFound, 404),
        (Kind::Denied, 403),
        (Kind::Conflict, 409),
        (Kind::Exhausted, 429),
        (Kind::Unavailable, 503),
        (Kind::Internal, 500),
    ] {
        // The fake fails as the name of the sandbox says.
        let name = format!("fail-{}", kind.word());
        let by_grpc = Error::from(grpc.inspect(of(&name)).await.unwrap_err());
        assert_eq!(by_grpc, Error::new(kind, "as asked for"));
        let uri = format!("/v1/sandboxes/{name}");
        refused(&served.path, "GET", &uri, &Value::Null, status, kind.word(), "as asked for").await;
    }
}

#[tokio::test]
async fn lines_are_an_array_or_events() {
    let served = Served::start("lines");
    let (status, media, body) = ask(&served.path, "GET", "/v1/sandboxes/x/events", "application/json", b"").await;
    assert_eq!((status, media.as_str()), (200, "application/json"));
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("as the test wants it"), json!([{ "n": 1 }, { "n": 2 }]));
    let (status, media, body) = ask(&served.path, "GET", "/v1/sandboxes/x/findings", "text/event-stream", b"").await;
    assert_eq!((status, media.as_str()), (200, "text/event-stream"));
    // The fake, asked to follow, adds a line and then fails.
    let text = String::from_utf8(body).expect("as the test wants it");
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events[..3], ["data: {\"n\":1}", "data: {\"n\":2}", "data: {\"n\":\ndata: 3}"]);
    let told = "event: error\ndata: {\"error\":{\"kind\":\"unavailable\",\"message\":\"no more\"}}";
    assert_eq!(events[3..], [told]);
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let lines = grpc
        .events(StreamRequest { id: "x".to_owned(), follow: false })
        .await
        .expect("as the test wants it")
        .into_inner();
    let lines: Vec<_> = lines.map(|line| line.expect("as the test wants it").json).collect().await;
    assert_eq!(lines, ["{\"n\":1}", "{\"n\":2}"]);
    let audit = ask_json(&served.path, "GET", "/v1/audit?limit=0", &Value::Null).await;
    assert_eq!(audit, (200, json!([])));
}

/// Events and findings lie in files that the sandbox's user can write: what stands there must not become the answer's own structure.
#[tokio::test]
async fn a_line_that_is_no_json_forges_nothing() {
    let served = Served::start("forged");
    let asked = "GET /v1/sandboxes/forger/events HTTP/1.1\r\nhost: apexd\r\nconnection: close\r\n\r\n";
    let mut stream = UnixStream::connect(&served.path).await.expect("as the test wants it");
    stream.write_all(asked.as_bytes()).await.expect("as the test wants it");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("as the test wants it");
    let answer = String::from_utf8(answer).expect("as the test wants it");
    // Broken off: without the last chunk, which is empty.
    assert!(!answer.contains("forged") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    let (_, _, body) = ask(&served.path, "GET", "/v1/sandboxes/forger/events", "text/event-stream", b"").await;
    let text = String::from_utf8(body).expect("as the test wants it");
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert!(
        matches!(events[..], [first, last] if first == "data: {\"n\":1}" && last.starts_with("event: error\n")),
        "{text}"
    );
}

/// A carriage return ends a line of server-sent events as well, and is white space to JSON.
#[tokio::test]
async fn a_carriage_return_begins_no_line_of_an_event() {
    let served = Served::start("return");
    let (_, _, body) = ask(&served.path, "GET", "/v1/sandboxes/returner/events", "text/event-stream", b"").await;
    assert_eq!(String::from_utf8(body).expect("as the test wants it"), "data: {\"n\":\ndata: 1}\n\n");
}

#[tokio::test]
async fn logs_are_the_bytes_that_were_written() {
    let served = Served::start("logs");
    let (_, media, body) = ask(&served.path, "GET", "/v1/sandboxes/x/logs?stream=stdout", "*/*", b"").await;
    assert_eq!((media.as_str(), body.as_slice()), ("application/octet-stream", b"\x00\xffout".as_slice()));
    let (_, _, body) = ask(&served.path, "GET", "/v1/sandboxes/x/logs", "*/*", b"").await;
    assert_eq!(body, b"\x00\xffouterr");
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let request = LogsRequest { id: "x".to_owned(), ..Default::default() };
    let chunks: Vec<_> = grpc.logs(request).await.expect("as the test wants it").into_inner().collect().await;
    assert_eq!(chunks[0].as_ref().expect("as the test wants it").data, b"\x00\xffout");
}

/// Bytes that may lie between the service and a reader that stands still: windows of HTTP/2, buffers, the socket.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Bytes that the service was asked for by the time that it is asked no more.
async fn settled(served: &Served) -> usize {
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = served.made.load(Ordering::Relaxed);
        assert!(now * CHUNK_BYTES < 8 * WAITING_BYTES_MAX, "it goes on and on");
        if now == last && now > 0 {
            return now * CHUNK_BYTES;
        }
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stands_still_is_not_written_for() {
    let served = Served::start("still-grpc");
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let request = LogsRequest { id: "for-ever".to_owned(), ..Default::default() };
    let _unread = grpc.logs(request).await.expect("as the test wants it").into_inner();
    let bytes = settled(&served).await;
    assert!(bytes < WAITING_BYTES_MAX, "{bytes} bytes wait");

    let served = Served::start("still-rest");
    let mut stream = UnixStream::connect(&served.path).await.expect("as the test wants it");
    let asked = b"GET /v1/sandboxes/for-ever/logs HTTP/1.1\r\nhost: apexd\r\n\r\n";
    stream.write_all(asked).await.expect("as the test wants it");
    let bytes = settled(&served).await;
    assert!(bytes < WAITING_BYTES_MAX, "{bytes} bytes wait");
}

#[tokio::test]
async fn the_streams_of_a_run_come_back() {
    let served = Served::start("run");
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let input = |input| RunInput { input: Some(input) };
    let request = tokio_stream::iter([
        input(run_input::Input::Create(CreateRequest::default())),
        input(run_input::Input::Stdin(b"\x00\xff".to_vec())),
        input(run_input::Input::CloseStdin(Default::default())),
    ]);
    let output = grpc.run(request).await.expect("as the test wants it").into_inner();
    let output: Vec<_> =
        output.map(|item| item.expect("as the test wants it").output.expect("as the test wants it")).collect().await;
    assert!(matches!(&output[0], run_output::Output::Started(_)));
    assert_eq!(output[1], run_output::Output::Stdout(b"\x00\xff".to_vec()));
    assert!(matches!(&output[2], run_output::Output::Ended(ended) if ended.exit_code == Some(0)));
}

#[tokio::test]
async fn the_plain_routes_answer() {
    let served = Served::start("plain");
    for (uri, media, start) in [
        ("/healthz", "text/plain; charset=utf-8", "ok"),
        ("/readyz", "text/plain; charset=utf-8", "ready"),
        ("/metrics", "text/plain; version=0.0.4", "apex_"),
        ("/openapi.json", "application/json", "{"),
    ] {
        let (status, got, body) = ask(&served.path, "GET", uri, "*/*", b"").await;
        assert_eq!((status, got.as_str()), (200, media), "{uri}");
        assert!(String::from_utf8(body).expect("as the test wants it").starts_with(start), "{uri}");
    }
    for uri in ["/v1/tree", "/v1/stats", "/v1/audit/verify"] {
        assert_eq!(ask_json(&served.path, "GET", uri, &Value::Null).await.0, 200, "{uri}");
    }
}

#[tokio::test]
async fn groups_come_and_go_both_ways() {
    let served = Served::start("groups");
    let member = json!({"name": "web", "sandbox": {"command": ["a", "b"]}, "after": ["db"]});
    let asked = json!({"name": "shop", "strategy": "one-for-all", "members": [member]});
    let (status, group) = ask_json(&served.path, "POST", "/v1/groups", &asked).await;
    assert_eq!((status, &group["name"], &group["members"][0]["words"]), (201, &json!("shop"), &json!("a b")));
    let (status, refused) =
        ask_json(&served.path, "POST", "/v1/groups", &json!({"name": "shop", "strategie": ""})).await;
    assert_eq!(status, 400);
    assert!(refused["error"]["message"].as_str().is_some_and(|words| words.contains("strategie")), "{refused}");
    let (status, groups) = ask_json(&served.path, "GET", "/v1/groups", &Value::Null).await;
    assert_eq!((status, &groups["groups"][0]["members"][0]["restarts"]), (200, &json!(2)));
    let (status, group) = ask_json(&served.path, "DELETE", "/v1/groups/shop", &Value::Null).await;
    assert_eq!((status, &group["name"], &group["state"]), (200, &json!("shop"), &json!("stopping")));
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let group = grpc.down(GroupRef { name: "shop".to_owned() }).await.expect("as the test wants it").into_inner();
    assert_eq!(group.state, "stopping");
}

#[tokio::test]
async fn messages_go_both_ways_as_the_values_that_they_are() {
    let served = Served::start("mail");
    let asked = json!({"body": {"a": [1, null]}});
    let (status, sent) = ask_json(&served.path, "POST", "/v1/mailboxes/jobs/send?user=ann", &asked).await;
    assert_eq!((status, &sent["id"]), (201, &json!(r#"{"a":[1,null]}"#.len())));
    let (status, got) = ask_json(&served.path, "POST", "/v1/mailboxes/jobs/receive?wait_ms=5", &Value::Null).await;
    assert_eq!((status, &got["message"]["body"]), (200, &json!({"n": 1})));
    let (status, got) = ask_json(&served.path, "POST", "/v1/mailboxes/empty/receive", &Value::Null).await;
    assert_eq!((status, got), (200, json!({"message": null})));
    let acknowledge = "/v1/mailboxes/jobs/acknowledge";
    assert_eq!(ask(&served.path, "POST", acknowledge, "*/*", br#"{"id":7}"#).await.0, 204);
    assert_eq!(ask_json(&served.path, "POST", acknowledge, &json!({"id": 8})).await.0, 409);
    assert_eq!(ask_json(&served.path, "POST", acknowledge, &json!({"di": 7})).await.0, 400);
    assert_eq!(ask(&served.path, "DELETE", "/v1/mailboxes/jobs", "*/*", b"").await.0, 204);
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let listed = grpc.mailboxes(Empty {}).await.expect("as the test wants it").into_inner().mailboxes;
    assert_eq!((listed[0].name.as_str(), listed[0].messages), ("jobs", 3));
    let request = MailReceiveRequest { mailbox: "jobs".to_owned(), ..Default::default() };
    let message = grpc.mail_receive(request).await.expect("as the test wants it").into_inner().message;
    assert_eq!(message.map(|message| message.body).as_deref(), Some(r#"{"n":1}"#));
}

#[tokio::test]
async fn a_server_that_ends_lets_nobody_in_and_returns() {
    let mut served = Served::start("end");
    let grpc = client::connect(&served.path).await.expect("as the test wants it");
    served.stop.take().expect("as the test wants it").send(()).expect("as the test wants it");
    let done = tokio::time::timeout(server::GRACE * 2, &mut served.done).await;
    done.expect("it returns").expect("as the test wants it").expect("as the test wants it");
    drop(grpc);
    let error = client::connect(&served.path).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    let words = error.words;
    assert!(
        words.contains(served.path.to_str().expect("as the test wants it"))
            && words.contains("is it running? `apexd --socket"),
        "{words}"
    );
}

#[tokio::test]
async fn a_follower_is_cut_off_after_the_grace() {
    let mut served = Served::start("grace");
    let mut grpc = client::connect(&served.path).await.expect("as the test wants it");
    let mut waits = tokio::spawn(async move { grpc.wait(of("for-ever")).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    served.stop.take().expect("as the test wants it").send(()).expect("as the test wants it");
    let done = tokio::time::timeout(server::GRACE * 2, &mut served.done).await;
    done.expect("it returns").expect("as the test wants it").expect("as the test wants it");
    assert!((&mut waits).await.expect("as the test wants it").is_err());
}

/// A daemon that is newer than its client.
#[test]
fn an_answer_may_grow_and_a_request_may_not() {
    let grown = json!({ "id": "a", "of_tomorrow": 1 });
    assert_eq!(serde_json::from_value::<Sandbox>(grown.clone()).expect("as the test wants it").id, "a");
    assert!(serde_json::from_value::<SandboxRef>(grown).is_err());
}

#[test]
fn the_document_is_the_one_that_is_kept() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/openapi.json");
    let document = apex_api::openapi();
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some_and(|value| value == "1") {
        std::fs::write(path, &document).expect("as the test wants it");
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == document,
        "docs/reference/openapi.json is not what the code says; UPDATE_SNAPSHOTS=1 writes it anew"
    );
}
