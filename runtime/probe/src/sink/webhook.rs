//! Lines to an HTTP(S) URL: each finding by a POST of its own, events many to a POST, one to a line.
//!
//! What may pass later (no answer, 5xx, 408, 429) is tried again after a pause that doubles, with a random part so that many sandboxes do not
//! come back at one instant. Other refusals are final, and redirects are not followed: a finding goes where it was sent and nowhere else.
//! The certificate is checked against the host's authorities. The URL and the words of errors that may repeat it are never told.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use ureq::http::{StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::queue::{Batch, Queue};
use super::{Outlet, SinkError};

/// The first pause.
pub const PAUSE_FIRST: Duration = Duration::from_millis(500);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often a POST is tried.
const TRIES_MAX: u32 = 6;
/// For one try, from the look-up of the name to the end of the answer.
const TRY_MAX: Duration = Duration::from_secs(10);
/// For connecting.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Events of one POST, in bytes; a longer single line goes alone.
const POST_BYTES_MAX: usize = 256 << 10;
/// Of an answer, read so that the connection can be used again.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// See the module.
pub struct Webhook {
    name: String,
    url: String,
    agent: Agent,
    pause: Duration,
}

/// Why a POST did not arrive.
struct Failure {
    words: String,
    /// Whether another try may help, and when the receiver wants it.
    retry: Option<Option<Duration>>,
}

impl Webhook {
    /// Checks the URL. Nothing is sent yet: a receiver may come up later than the sandbox.
    pub fn open(url: &str, pause: Duration) -> Result<Webhook, SinkError> {
        let wrong = |why| SinkError::Url { why };
        let uri: Uri = url.parse().map_err(|_| wrong("has a URL that cannot be read"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("is neither http:// nor https://"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host"))?;
        let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        let scheme = uri.scheme_str().unwrap_or_default();
        let tls = if scheme == "https" { authorities()? } else { TlsConfig::default() };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .tls_config(tls)
            .user_agent(concat!("apex-probe/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Webhook { name: format!("webhook {scheme}://{host}{port}"), url: url.to_owned(), agent, pause })
    }

    /// What may be told of the URL.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tries until it arrives, is refused for good, or the tries or the time are over.
    fn post(&self, body: &[u8], kind: &str, queue: &Queue) -> Result<(), String> {
        let mut pause = self.pause;
        let mut tries = 1;
        loop {
            let failure = match self.try_post(body, kind, queue) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let Some(wanted) = failure.retry else { return Err(failure.words) };
            if tries >= TRIES_MAX || queue.is_over() {
                return Err(format!("{} in {tries} tries", failure.words));
            }
            queue.pause(wanted.unwrap_or_else(|| jittered(pause)).min(PAUSE_MAX));
            pause = (pause * 2).min(PAUSE_MAX);
            tries += 1;
        }
    }

    fn try_post(&self, body: &[u8], kind: &str, queue: &Queue) -> Result<(), Failure> {
        let left = queue.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A last try gets a moment even at the deadline: the finding may be the run's last word.
        let time = left.map_or(TRY_MAX, |left| left.clamp(Duration::from_millis(100), TRY_MAX));
        let request = self.agent.post(&self.url).header("content-type", kind);
        let answer = request.config().timeout_global(Some(time)).build().send(body).map_err(|error| failure(&error))?;
        let status = answer.status();
        let wanted = retry_after(&answer);
        // The answer's text is of no interest, but a connection whose answer is not read cannot be used again.
        let _ = answer.into_body().into_with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        if status.is_success() {
            return Ok(());
        }
        let words = match status.is_redirection() {
            true => format!("the receiver answered {}, and redirects are not followed", status.as_u16()),
            false => format!("the receiver answered {}", status.as_u16()),
        };
        let is_passing =
            status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        Err(Failure { words, retry: is_passing.then_some(wanted) })
    }
}

/// The host's authorities, or those that SSL_CERT_FILE and SSL_CERT_DIR name.
fn authorities() -> Result<TlsConfig, SinkError> {
    // Fails when there is a provider already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return Err(SinkError::Authorities);
    }
    let certificates = found.iter().map(|found| Certificate::from_der(found).to_owned());
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates.collect::<Vec<_>>())).build())
}

fn retry_after(answer: &ureq::http::Response<Body>) -> Option<Duration> {
    let seconds = answer.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The error in words of ours: those of the library may repeat the URL.
fn failure(error: &ureq::Error) -> Failure {
    let words = match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "its host's name is not known".to_owned(),
        ureq::Error::Io(error) => format!("the connection failed: {}", error.kind()),
        ureq::Error::ConnectionFailed => "the connection failed".to_owned(),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
            return Failure { words: format!("TLS failed: {}", tls(error)), retry: None };
        }
        ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => "the answer is no HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    };
    Failure { words, retry: Some(None) }
}

fn tls(error: &ureq::Error) -> String {
    match error {
        // Names the host at most, which is told anyway.
        ureq::Error::Rustls(error) => error.to_string(),
        _ => "no session".to_owned(),
    }
}

/// Half of `pause`, and a random part of the other half.
fn jittered(pause: Duration) -> Duration {
    // Each RandomState has other keys; that is random enough to spread tries.
    let random = RandomState::new().hash_one(0) >> 32;
    pause / 2 + (pause / 2).mul_f64(random as f64 / f64::from(u32::MAX))
}

impl Outlet for Webhook {
    fn deliver(&mut self, batch: &Batch, queue: &Queue) {
        let mut body = Vec::new();
        let mut lines = 0;
        let send = |body: &[u8], kind: &str, lines: usize| match self.post(body, kind, queue) {
            Ok(()) => queue.written(lines),
            Err(words) => queue.dropped(lines, &format!("{words}; what is lost is counted")),
        };
        for (line, facts) in batch.lines() {
            let is_full = body.len() + line.len() > POST_BYTES_MAX;
            if lines > 0 && (facts.is_some() || is_full) {
                send(&body, "application/x-ndjson", lines);
                body.clear();
                lines = 0;
            }
            if facts.is_some() {
                send(line, "application/json", 1);
                continue;
            }
            body.extend_from_slice(line);
            body.push(b'\n');
            lines += 1;
        }
        if lines > 0 {
            send(&body, "application/x-ndjson", lines);
        }
    }
}
