//! Each sink against a real file, socket or server that behaves, and that does not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::sync::Mutex;

use apex_core::event::{Start, What};
use apex_core::finding::{Detector, Severity};
use apex_core::watch::Level;

use super::*;

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        let path = std::env::temp_dir().join(format!("apex-sink-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a new directory");
        Temp(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

type Told = Arc<Mutex<Vec<String>>>;

fn surroundings() -> (Surroundings, Told) {
    let told = Told::default();
    let kept = Arc::clone(&told);
    let tell = Arc::new(move |words: &str| kept.lock().expect("not poisoned").push(words.to_owned()));
    let pause = Duration::from_millis(10);
    (Surroundings { tell, pause, finish: Duration::from_secs(3), ..Surroundings::default() }, told)
}

fn told(told: &Told) -> String {
    told.lock().expect("not poisoned").join("\n")
}

fn event(pid: u32) -> Event {
    let what = What::program("/bin/true".to_owned(), vec!["true".to_owned()], false);
    Event { time_ns: 5, sandbox: 7, pid, ppid: 1, uid: 0, comm: "job".to_owned(), what, error: None }
}

fn finding() -> Finding {
    Finding {
        time_ns: 9,
        sandbox: 7,
        detector: Detector::Rule { id: "test-rule".to_owned(), origin: "built-in test.toml".to_owned() },
        title: "A title\nof two lines".to_owned(),
        explanation: "Words.".to_owned(),
        severity: Severity::High,
        techniques: vec!["T1059.004".to_owned(), "T1105".to_owned()],
        ancestry: Vec::new(),
        evidence: vec![event(3)],
        count: 1,
    }
}

fn context() -> Context {
    let start = Start {
        version: 1,
        wall_time_ns: 1_700_000_000_000_000_000,
        mode: "isolation".to_owned(),
        profile: None,
        plan_sha256: "00".to_owned(),
        command: Vec::new(),
        level: Level::Default,
        sources: BTreeMap::new(),
    };
    Context::new(&start, 0)
}

fn counts(written: u64, dropped: u64, counts: &[Counts]) {
    let found: Vec<_> = counts.iter().map(|counts| (counts.written, counts.dropped)).collect();
    assert_eq!(found, [(written, dropped)]);
}

#[test]
fn a_file_gets_events_and_findings_as_lines_and_is_its_owners() {
    let temp = Temp::new("file");
    let path = temp.path("events");
    for _ in 0..2 {
        let mut sinks =
            Sinks::open(&[Sink::File(path.clone())], &Surroundings::default()).expect("a writable directory");
        sinks.event(&event(3));
        sinks.finding(&finding(), &context());
        counts(2, 0, &sinks.finish());
    }
    let text = fs::read_to_string(&path).expect("written");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
    assert_eq!(lines.len(), 4, "appended");
    assert_eq!((&lines[0]["event"], &lines[1]["class_uid"]), (&"exec".into(), &2004.into()));
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_finding_is_written_at_once_and_an_event_within_a_second() {
    let temp = Temp::new("soon");
    let path = temp.path("lines");
    let mut sinks = Sinks::open(&[Sink::File(path.clone())], &Surroundings::default()).expect("a writable directory");
    let lines = || fs::read_to_string(&path).expect("there").lines().count();
    let within = |time: Duration, wanted: usize| {
        let end = Instant::now() + time;
        while lines() < wanted && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        lines()
    };
    sinks.finding(&finding(), &context());
    assert_eq!(within(Duration::from_millis(900), 1), 1);
    sinks.event(&event(1));
    assert_eq!(within(Duration::from_secs(3), 2), 2);
    counts(2, 0, &sinks.finish());
}

#[test]
fn links_directories_and_pipes_without_a_reader_are_refused() {
    let temp = Temp::new("refused");
    std::os::unix::fs::symlink("/dev/null", temp.path("link")).expect("a link");
    nix::unistd::mkfifo(temp.path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for path in [temp.path("link"), temp.path("pipe"), temp.path("no/such"), temp.path(".")] {
        let error = Sinks::open(&[Sink::File(path.clone())], &Surroundings::default()).err().expect("refused");
        assert!(error.to_string().contains(&path), "{error}");
    }
}

#[test]
fn a_full_disk_is_counted_and_told_once() {
    let (surroundings, words) = surroundings();
    let mut sinks = Sinks::open(&[Sink::File("/dev/full".to_owned())], &surroundings).expect("a device");
    for pid in 0..1000 {
        sinks.event(&event(pid));
        if pid % 100 == 0 {
            sinks.finding(&finding(), &context());
        }
    }
    counts(0, 1010, &sinks.finish());
    assert_eq!(words.lock().expect("not poisoned").len(), 1);
    assert!(told(&words).contains("No space left"), "{}", told(&words));
}

#[test]
fn a_sink_that_stands_still_costs_lines_and_no_time() {
    let temp = Temp::new("still");
    let path = temp.path("pipe");
    nix::unistd::mkfifo(path.as_str(), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut options = fs::OpenOptions::new();
    let reader = std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), nix::libc::O_NONBLOCK);
    let _reader = reader.open(&path).expect("a reader that never reads");
    let (surroundings, words) = surroundings();
    let surroundings = Surroundings { finish: Duration::from_millis(200), ..surroundings };
    let mut sinks = Sinks::open(&[Sink::File(path)], &surroundings).expect("a pipe with a reader");
    let began = Instant::now();
    for pid in 0..400_000 {
        sinks.event(&event(pid));
    }
    let found = sinks.finish();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(found[0].written + found[0].dropped, 400_000);
    assert!(found[0].dropped > 100_000, "{found:?}");
    assert!(told(&words).contains("too slow"), "{}", told(&words));
}

/// The fields of an entry in the journal's native form.
fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let mut fields = Vec::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|byte| *byte == b'\n').expect("a field ends");
        match entry[..end].iter().position(|byte| *byte == b'=') {
            Some(equals) => {
                fields.push((text(&entry[..equals]), text(&entry[equals + 1..end])));
                entry = &entry[end + 1..];
            }
            None => {
                let (length, value) = entry[end + 1..].split_first_chunk().expect("a length");
                let length = usize::try_from(u64::from_le_bytes(*length)).expect("small");
                fields.push((text(&entry[..end]), text(&value[..length])));
                assert_eq!(value[length], b'\n');
                entry = &value[length + 1..];
            }
        }
    }
    fields
}

#[test]
fn the_journal_gets_fields() {
    let temp = Temp::new("journal");
    let journal = UnixDatagram::bind(temp.path("socket")).expect("a socket");
    let (surroundings, _) = surroundings();
    let surroundings = Surroundings { journal: temp.path("socket").into(), ..surroundings };
    let mut sinks = Sinks::open(&[Sink::Journald], &surroundings).expect("it listens");
    sinks.finding(&finding(), &context());
    sinks.event(&event(3));
    counts(2, 0, &sinks.finish());
    let mut buffer = vec![0; 1 << 20];
    let length = journal.recv(&mut buffer).expect("an entry");
    let entry = fields(&buffer[..length]);
    let value = |name: &str| {
        let found = entry.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(value("MESSAGE"), "high: A title\\u000aof two lines (sandbox 7, by test-rule)");
    assert_eq!((value("PRIORITY"), value("APEX_SANDBOX"), value("APEX_DETECTOR")), ("3", "7", "test-rule"));
    assert_eq!(entry.iter().filter(|(field, _)| field == "APEX_TECHNIQUE").count(), 2);
    assert!(serde_json::from_str::<serde_json::Value>(value("APEX_FINDING")).is_ok());
    let length = journal.recv(&mut buffer).expect("the event");
    assert!(fields(&buffer[..length]).iter().any(|(name, value)| name == "MESSAGE" && value.contains("exec")));
}

#[test]
fn a_large_entry_reaches_the_journal_as_a_sealed_memfd() {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd;
    let temp = Temp::new("memfd");
    let journal = UnixDatagram::bind(temp.path("socket")).expect("a socket");
    let (surroundings, _) = surroundings();
    let surroundings = Surroundings { journal: temp.path("socket").into(), ..surroundings };
    let mut sinks = Sinks::open(&[Sink::Journald], &surroundings).expect("it listens");
    let long = Finding { explanation: "x".repeat(1 << 20), ..finding() };
    sinks.finding(&long, &context());
    counts(1, 0, &sinks.finish());
    let mut room = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(journal.as_raw_fd(), &mut [], Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.expect("a message");
    let descriptor = message.cmsgs().expect("whole").find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let path = format!("/proc/self/fd/{}", descriptor.expect("a descriptor"));
    let entry = fields(&fs::read(&path).expect("readable"));
    assert!(entry.iter().any(|(name, value)| name == "APEX_FINDING" && value.len() > 1 << 20));
    let error = fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write(b"x"));
    assert!(error.is_err(), "sealed");
    nix::unistd::close(descriptor.expect("a descriptor")).expect("open");
}

#[test]
fn a_journal_or_syslog_that_is_not_there_stops_the_start() {
    let temp = Temp::new("absent");
    let (surroundings, _) = surroundings();
    let (journal, syslog) = (temp.path("journal").into(), temp.path("log").into());
    let surroundings = Surroundings { journal, syslog, ..surroundings };
    for sink in [Sink::Journald, Sink::Syslog] {
        let error = Sinks::open(&[sink], &surroundings).err().expect("nobody listens");
        assert!(error.to_string().contains("start it"), "{error}");
    }
}

#[test]
fn syslog_gets_a_priority_a_tag_and_json_that_fits() {
    let temp = Temp::new("syslog");
    let log = UnixDatagram::bind(temp.path("log")).expect("a socket");
    let (surroundings, words) = surroundings();
    let surroundings = Surroundings { syslog: temp.path("log").into(), ..surroundings };
    let mut sinks = Sinks::open(&[Sink::Syslog], &surroundings).expect("it listens");
    sinks.finding(&finding(), &context());
    sinks.finding(&Finding { explanation: "x".repeat(9000), ..finding() }, &context());
    let long = What::Memfd { name: "x".repeat(9000) };
    sinks.event(&Event { what: long, ..event(1) });
    counts(2, 1, &sinks.finish());
    let mut buffer = vec![0; 1 << 16];
    let mut next = || {
        let length = log.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).expect("text")
    };
    let first = next();
    let json = first.strip_prefix(&format!("<27>apex-probe[{}]: @cee: ", std::process::id())).expect("a head");
    assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
    let second = next();
    assert!(second.contains("high: A title") && second.ends_with("too many for syslog"), "{second}");
    assert!(told(&words).contains("too long"), "{}", told(&words));
}

#[test]
fn a_syslog_with_a_stream_is_served_too_and_found_again_after_a_restart() {
    let temp = Temp::new("stream");
    let listener = UnixListener::bind(temp.path("log")).expect("a socket");
    let (surroundings, _) = surroundings();
    let surroundings = Surroundings { syslog: temp.path("log").into(), ..surroundings };
    let mut sinks = Sinks::open(&[Sink::Syslog], &surroundings).expect("it listens");
    let (first, _) = listener.accept().expect("connected");
    sinks.finding(&finding(), &context());
    let mut message = Vec::new();
    BufReader::new(first).read_until(0, &mut message).expect("a message");
    assert!(message.starts_with(b"<27>") && message.ends_with(b"\0"));
    // Its end of the connection is closed now, and the next message needs another.
    sinks.finding(&finding(), &context());
    let (second, _) = listener.accept().expect("connected again");
    let mut message = Vec::new();
    BufReader::new(second).read_until(0, &mut message).expect("a message");
    assert!(message.starts_with(b"<27>"));
    counts(2, 0, &sinks.finish());
}

/// Heads and bodies of requests.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// A server that gives each request the next of its answers, the last again and again; what it was asked comes back.
fn server(answers: &'static [&'static [u8]]) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let asked = Asked::default();
    let kept = Arc::clone(&asked);
    thread::spawn(move || {
        let mut count = 0;
        while let Ok((connection, _)) = listener.accept() {
            // One request to a connection: the answers say so.
            let request = request(&connection);
            kept.lock().expect("not poisoned").push(request);
            let answer = answers[count.min(answers.len() - 1)];
            count += 1;
            let _ = (&connection).write_all(answer);
        }
    });
    (format!("http://{address}/hook/SECRET?key=SECRET"), asked)
}

fn request(connection: &TcpStream) -> (String, String) {
    let mut reader = BufReader::new(connection);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).expect("a request") <= 2 {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbusy";

fn webhook(url: &str, findings: usize) -> (Vec<Counts>, String, Duration) {
    let (surroundings, words) = surroundings();
    let mut sinks = Sinks::open(&[Sink::Webhook(url.to_owned())], &surroundings).expect("a URL");
    for _ in 0..findings {
        sinks.finding(&finding(), &context());
    }
    // Time for all tries, which the end would cut short.
    thread::sleep(Duration::from_millis(700));
    let began = Instant::now();
    let counts = sinks.finish();
    let words = told(&words);
    assert!(!words.contains("SECRET"), "{words}");
    (counts, words, began.elapsed())
}

#[test]
fn a_webhook_gets_each_finding_as_a_post_of_its_own() {
    let (url, asked) = server(&[OK]);
    let (found, _, _) = webhook(&url, 3);
    counts(3, 0, &found);
    let asked = asked.lock().expect("not poisoned");
    assert_eq!(asked.len(), 3);
    let (head, body) = &asked[0];
    assert!(head.starts_with("POST /hook/SECRET?key=SECRET HTTP/1.1"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("json")["class_uid"], 2004);
    assert_eq!(found[0].sink, format!("webhook {}", url.split("/hook").next().expect("a host")));
}

#[test]
fn events_are_posted_many_at_once_before_the_finding_that_follows_them() {
    let (url, asked) = server(&[OK]);
    let (surroundings, _) = surroundings();
    let mut sinks = Sinks::open(&[Sink::Webhook(url)], &surroundings).expect("a URL");
    for pid in 0..100 {
        sinks.event(&event(pid));
    }
    sinks.finding(&finding(), &context());
    counts(101, 0, &sinks.finish());
    let asked = asked.lock().expect("not poisoned");
    let lines: Vec<usize> = asked.iter().map(|(_, body)| body.lines().count()).collect();
    assert_eq!(lines.iter().sum::<usize>(), 101);
    assert!(lines.len() <= 4, "{lines:?}");
    assert!(asked[0].0.to_ascii_lowercase().contains("application/x-ndjson"), "{}", asked[0].0);
}

#[test]
fn a_receiver_that_fails_twice_gets_the_finding_the_third_time() {
    let (url, asked) = server(&[BUSY, b"", OK]);
    let (found, words, _) = webhook(&url, 1);
    counts(1, 0, &found);
    let asked = asked.lock().expect("not poisoned");
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].1, asked[2].1, "the same finding with the same id");
    assert_eq!(words, "", "what arrived is no trouble");
}

#[test]
fn a_receiver_that_always_fails_is_given_up_and_counted() {
    let (url, asked) = server(&[BUSY]);
    let (found, words, _) = webhook(&url, 1);
    counts(0, 1, &found);
    assert_eq!(asked.lock().expect("not poisoned").len(), 6);
    assert!(words.contains("answered 503 in 6 tries"), "{words}");
}

#[test]
fn redirects_and_refusals_are_final() {
    let (elsewhere, not_asked) = server(&[OK]);
    let answer = format!("HTTP/1.1 307 T\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let moved: &'static [u8] = answer.into_bytes().leak();
    let (url, asked) = server(Vec::from([moved]).leak());
    let (found, words, _) = webhook(&url, 1);
    counts(0, 1, &found);
    assert_eq!((asked.lock().expect("fine").len(), not_asked.lock().expect("fine").len()), (1, 0));
    assert!(words.contains("redirects are not followed"), "{words}");
    let (url, asked) = server(&[b"HTTP/1.1 403 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]);
    counts(0, 1, &webhook(&url, 1).0);
    assert_eq!(asked.lock().expect("fine").len(), 1);
}

#[test]
fn garbage_for_an_answer_and_a_closed_port_are_survived() {
    let (url, _) = server(&[b"\xff\xfe garbage\r\n\r\n"]);
    counts(0, 1, &webhook(&url, 1).0);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/SECRET", listener.local_addr().expect("bound"));
    drop(listener);
    let (found, words, _) = webhook(&url, 2);
    counts(0, 2, &found);
    assert!(words.contains("connection"), "{words}");
}

#[test]
fn a_receiver_that_never_answers_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/SECRET", listener.local_addr().expect("bound"));
    let (found, _, time) = webhook(&url, 2);
    counts(0, 2, &found);
    assert!(time < Duration::from_secs(5), "{time:?}");
    drop(listener);
}

#[test]
fn a_wrong_url_is_refused_without_repeating_it() {
    for url in ["ftp://host/SECRET", "SECRET", "http:///SECRET", "https://u:SECRET@ho st/"] {
        let error =
            Sinks::open(&[Sink::Webhook(url.to_owned())], &Surroundings::default()).err().expect("refused").to_string();
        assert!(!error.contains("SECRET") && error.contains("https://HOST/PATH"), "{error}");
    }
    let (surroundings, _) = surroundings();
    let sinks = Sinks::open(&[Sink::Webhook("http://user:SECRET@127.0.0.1:9/x".to_owned())], &surroundings);
    assert_eq!(sinks.expect("a URL").finish()[0].sink, "webhook http://127.0.0.1:9");
}
