//! The lines that a sandbox and the daemon say to each other: one JSON object each.

use std::time::Duration;

use apex_core::policy::time_ms;
use serde_json::{Map, Value, json};

use super::Message;

/// Bytes of a line: a body of the largest size, with blanks and escapes that do not count there.
pub const LINE_BYTES_MAX: usize = 128 << 10;

/// What a sandbox asks for.
#[derive(Debug, PartialEq)]
pub enum Request {
    Send { mailbox: String, body: Value },
    Receive { mailbox: String, wait: Duration },
    Acknowledge { id: u64 },
}

/// An error as it is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: &'static str,
    pub words: String,
}

/// With a code from a fixed set.
pub fn refusal(code: &'static str, words: impl Into<String>) -> Refusal {
    Refusal { code, words: words.into() }
}

const FORMS: &str = r#"a line is {"send":"NAME","body":ANY}, {"receive":"NAME","wait":"5s"} or {"acknowledge":ID}"#;

/// Reads a line.
pub fn read(line: &[u8]) -> Result<Request, Refusal> {
    let wrong = |what: &str| refusal("bad-request", format!("{what}; {FORMS}"));
    // Nesting is bounded by the parser, at 128.
    let mut fields: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| wrong(&format!("it is no JSON object ({error})")))?;
    let request = if let Some(mailbox) = fields.remove("send") {
        let body = fields.remove("body").ok_or_else(|| wrong("a message has a `body`, which may be null"))?;
        Request::Send { mailbox: name(mailbox).ok_or_else(|| wrong("`send` names a mailbox"))?, body }
    } else if let Some(mailbox) = fields.remove("receive") {
        let wait = match fields.remove("wait") {
            None => Duration::ZERO,
            Some(Value::String(text)) if text == "0" => Duration::ZERO,
            Some(Value::String(text)) => {
                let ms = time_ms("wait", &text).map_err(|_| wrong("`wait` is a time with its unit such as \"5s\""))?;
                Duration::from_millis(ms.unwrap_or(u64::MAX))
            }
            Some(_) => return Err(wrong("`wait` is a time with its unit such as \"5s\"")),
        };
        Request::Receive { mailbox: name(mailbox).ok_or_else(|| wrong("`receive` names a mailbox"))?, wait }
    } else if let Some(id) = fields.remove("acknowledge") {
        Request::Acknowledge { id: id.as_u64().ok_or_else(|| wrong("`acknowledge` is the number of a message"))? }
    } else {
        return Err(wrong("it asks for nothing"));
    };
    match fields.keys().next() {
        Some(field) => {
            let shown: String = field.chars().take(64).collect();
            Err(wrong(&format!("{shown:?} is not known there")))
        }
        None => Ok(request),
    }
}

fn name(value: Value) -> Option<String> {
    match value {
        Value::String(name) => Some(name),
        _ => None,
    }
}

/// A message.
pub fn message(message: &Message) -> Result<Value, serde_json::Error> {
    let letter = &message.given.letter;
    let body: Value = serde_json::from_str(&message.body)?;
    let mut told = json!({"id": letter.id, "from": letter.from, "at": letter.at_ms, "attempt": message.given.attempt, "body": body});
    if !letter.name.is_empty() {
        told["name"] = json!(letter.name);
    }
    Ok(told)
}

impl Refusal {
    /// As it is told.
    pub fn told(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.words}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_strictly() {
        let send = Request::Send { mailbox: "a".to_owned(), body: json!({"b": [1]}) };
        assert_eq!(read(br#"{"send":"a","body":{"b":[1]}}"#), Ok(send));
        assert_eq!(
            read(br#"{"body":null,"send":"a"}"#),
            Ok(Request::Send { mailbox: "a".to_owned(), body: Value::Null })
        );
        let receive = |wait| Ok(Request::Receive { mailbox: "a".to_owned(), wait });
        assert_eq!(read(br#"{"receive":"a"}"#), receive(Duration::ZERO));
        assert_eq!(read(br#"{"receive":"a","wait":"0"}"#), receive(Duration::ZERO));
        assert_eq!(read(br#"{"receive":"a","wait":"1500ms"}"#), receive(Duration::from_millis(1500)));
        assert_eq!(read(br#"{"acknowledge":7}"#), Ok(Request::Acknowledge { id: 7 }));
        let deep = format!(r#"{{"send":"a","body":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for line in [
            "",
            "7",
            "[]",
            "{}",
            "\u{0}",
            r#"{"send":"a"}"#,
            r#"{"send":7,"body":1}"#,
            r#"{"send":"a","body":1,"from":"host"}"#,
            r#"{"send":"a","body":1,"receive":"b"}"#,
            r#"{"receive":"a","wait":5}"#,
            r#"{"receive":"a","wait":"5"}"#,
            r#"{"acknowledge":-1}"#,
            r#"{"acknowledge":"7"}"#,
            r#"{"send":"a","body":1} {"send":"a","body":1}"#,
            &deep,
        ] {
            assert_eq!(read(line.as_bytes()).unwrap_err().code, "bad-request", "{}", &line[..line.len().min(80)]);
        }
        assert_eq!(read(b"{\"send\":\"\xff\",\"body\":1}").unwrap_err().code, "bad-request");
    }
}
