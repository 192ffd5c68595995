//! HTTP/1.1 over the daemon's socket, one request after the other on one connection: what a client of the API can do at best.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A connection, made when it is first needed.
pub struct Client {
    socket: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Client {
    /// To the daemon that listens there.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned(), stream: None }
    }

    /// Another one to the same.
    pub fn another(&self) -> Client {
        Client::new(&self.socket)
    }

    /// The body of the answer, which must be a success.
    pub fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let was_kept = self.stream.is_some();
        let mut answer = self.try_ask(method, path, body);
        // A connection that was silent for long is hung up on: the request was never read.
        if was_kept && answer.as_ref().is_err_and(|error| error.downcast_ref::<std::io::Error>().is_some()) {
            self.stream = None;
            answer = self.try_ask(method, path, body);
        }
        if answer.is_err() {
            self.stream = None;
        }
        answer.with_context(|| format!("{method} {path}"))
    }

    /// The same as JSON.
    pub fn json(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        Ok(serde_json::from_slice(&self.ask(method, path, body)?)?)
    }

    fn try_ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(BufReader::new(UnixStream::connect(&self.socket)?)),
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: apex\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.get_mut().write_all(head.as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let status: u16 = line.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status line")?;
        let mut length = 0;
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().context("a length that is none")?;
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        ensure!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}
