//! Mailboxes: messages between the sandboxes of a user and the host, as a policy allows them.
//!
//! Input: the rules of a policy, messages, the time. Output: what may pass ([`Rule`], [`Schema`], [`Rate`]) and who gets what when ([`Post`]). Stores and
//! sends nothing; what a message says is never looked at but by a schema.

mod post;
mod rate;
mod schema;

use serde::{Deserialize, Serialize};

use crate::policy::Mode;

pub use post::{Bounds, Full, Given, Letter, Lost, Post, Seen, Who};
pub use rate::Rate;
pub use schema::{Mismatch, SCHEMA_BYTES_MAX, Schema};

/// Mailboxes that one policy may name.
pub const RULES_MAX: usize = 16;
/// Bytes of the schemas of one policy together: they travel in one packet.
pub const SCHEMAS_BYTES_MAX: usize = 32 << 10;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a message, as JSON without blanks; also what a rule without `max_size` allows.
pub const BODY_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a reason, which travels as well.
pub const REASON_BYTES_MAX: usize = 512;
/// Messages in a second that a rule without `rate` allows.
pub const RATE_DEFAULT: u32 = 100;
/// The most that one may allow.
pub const RATE_MAX: u32 = 1000;

/// What becomes of what a sandbox sends. The order is that of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Control {
    /// It passes.
    Open,
    /// It passes, and is written down.
    Monitored,
    /// It passes where size, rate and schema allow it; what is refused is written down.
    Filtered,
}

impl Control {
    /// The name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Control::Open => "open",
            Control::Monitored => "monitored",
            Control::Filtered => "filtered",
        }
    }

    /// The laxest that a built-in mode allows. It counts for a sandbox that was turned to a mode later as well.
    pub const fn of(mode: Mode) -> Control {
        match mode {
            Mode::Isolation => Control::Filtered,
            Mode::Hybrid => Control::Monitored,
            Mode::Development => Control::Open,
        }
    }
}

/// What a policy says of one mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name, among those of the same user.
    pub name: String,
    /// Whether the sandbox may send to it.
    pub send: bool,
    /// Whether it may receive from it.
    pub receive: bool,
    /// What becomes of what it sends.
    pub control: Control,
    /// Largest message, in bytes.
    pub max_bytes: u64,
    /// Messages in a second.
    pub rate: u32,
    /// What a message must be: a JSON Schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Why, in a few words.
    pub reason: String,
}

impl Rule {
    /// Both must allow it: what two layers of a policy say of one mailbox.
    ///
    /// # Errors
    /// Two schemas.
    pub fn and(self, other: Rule) -> Result<Rule, String> {
        let schema = match (self.schema, other.schema) {
            (Some(one), Some(another)) if one != another => {
                return Err(format!("mailbox `{}` has another schema already; keep one of them", self.name));
            }
            (one, another) => one.or(another),
        };
        Ok(Rule {
            name: self.name,
            send: self.send && other.send,
            receive: self.receive && other.receive,
            control: self.control.max(other.control),
            max_bytes: self.max_bytes.min(other.max_bytes),
            rate: self.rate.min(other.rate),
            schema,
            reason: other.reason,
        })
    }

    /// Whether it is within the bounds of all rules: a policy's, and again what another process says of it.
    ///
    /// # Errors
    /// What is wrong, and what is accepted.
    pub fn check(&self) -> Result<(), String> {
        check_name(&self.name)?;
        let name = &self.name;
        if !(1..=BODY_BYTES_MAX).contains(&self.max_bytes) {
            return Err(format!("`max_size` of mailbox `{name}` is not from 1 byte to {}K", BODY_BYTES_MAX >> 10));
        }
        if !(1..=RATE_MAX).contains(&self.rate) {
            return Err(format!("`rate` of mailbox `{name}` is not from 1 to {RATE_MAX} messages a second"));
        }
        if self.reason.len() > REASON_BYTES_MAX {
            return Err(format!("the reason of mailbox `{name}` has more than {REASON_BYTES_MAX} bytes"));
        }
        match &self.schema {
            Some(_) if self.control != Control::Filtered => Err(format!(
                "the schema of mailbox `{name}` means nothing with control `{}`; it filters",
                self.control.name()
            )),
            Some(text) => {
                Schema::read(text).map(drop).map_err(|words| format!("the schema of mailbox `{name}`: {words}"))
            }
            None => Ok(()),
        }
    }
}

/// Whether rules can stand together, each of them checked.
///
/// # Errors
/// What is wrong, and what is accepted.
pub fn check(rules: &[Rule]) -> Result<(), String> {
    if rules.len() > RULES_MAX {
        return Err(format!("more than {RULES_MAX} mailboxes"));
    }
    let bytes: usize = rules.iter().filter_map(|rule| rule.schema.as_ref()).map(String::len).sum();
    if bytes > SCHEMAS_BYTES_MAX {
        return Err(format!("the schemas of all mailboxes come to {bytes} bytes; at most {SCHEMAS_BYTES_MAX} go"));
    }
    for (at, rule) in rules.iter().enumerate() {
        rule.check()?;
        if rules[..at].iter().any(|other| other.name == rule.name) {
            return Err(format!("mailbox `{}` is named twice", rule.name));
        }
    }
    Ok(())
}

/// Whether a text can be the name of a mailbox.
///
/// # Errors
/// What is accepted.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if name.len() > NAME_BYTES_MAX || !begins_well || !name.bytes().all(is_plain) {
        let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
        return Err(format!(
            "{shown:?} is no name of a mailbox: 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes and underscores, beginning with a letter or digit"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Rule {
        Rule {
            name: "jobs".to_owned(),
            send: true,
            receive: true,
            control: Control::Open,
            max_bytes: 100,
            rate: 10,
            schema: None,
            reason: "a".to_owned(),
        }
    }

    #[test]
    fn two_layers_allow_what_both_allow() {
        let narrow = Rule { receive: false, control: Control::Filtered, max_bytes: 50, rate: 20, ..rule() };
        let both = rule().and(narrow.clone()).unwrap();
        assert_eq!(both, narrow.clone().and(rule()).unwrap());
        assert_eq!((both.send, both.receive, both.control), (true, false, Control::Filtered));
        assert_eq!((both.max_bytes, both.rate), (50, 10));
        let schema = |text: &str| Rule { schema: Some(text.to_owned()), ..narrow.clone() };
        assert_eq!(rule().and(schema("{}")).unwrap().schema.as_deref(), Some("{}"));
        assert_eq!(schema("{}").and(rule()).unwrap().schema.as_deref(), Some("{}"));
        assert!(schema("{}").and(schema("true")).is_err());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        assert_eq!(rule().check(), Ok(()));
        let check = |rule: Rule, words: &str| {
            let error = rule.check().unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        for name in ["", "-a", ".", "a/b", "a b", "a\n", "ä", &"x".repeat(65)] {
            check(Rule { name: name.to_owned(), ..rule() }, "no name");
        }
        check(Rule { max_bytes: 0, ..rule() }, "max_size");
        check(Rule { max_bytes: BODY_BYTES_MAX + 1, ..rule() }, "max_size");
        check(Rule { rate: 0, ..rule() }, "rate");
        check(Rule { rate: RATE_MAX + 1, ..rule() }, "rate");
        check(Rule { reason: "x".repeat(REASON_BYTES_MAX + 1), ..rule() }, "reason");
        check(Rule { schema: Some("{}".to_owned()), ..rule() }, "filters");
        check(Rule { schema: Some("{".to_owned()), control: Control::Filtered, ..rule() }, "JSON");
        assert!(check_rules_of(RULES_MAX).is_ok());
        assert!(check_rules_of(RULES_MAX + 1).is_err());
        assert!(super::check(&[rule(), rule()]).unwrap_err().contains("twice"));
        let long = format!("{{\"const\":\"{}\"}}", "x".repeat(SCHEMA_BYTES_MAX - 20));
        let of = |number: usize| Rule {
            name: number.to_string(),
            schema: Some(long.clone()),
            control: Control::Filtered,
            ..rule()
        };
        assert!(super::check(&[of(1), of(2)]).is_ok());
        assert!(super::check(&[of(1), of(2), of(3)]).unwrap_err().contains("come to"));
    }

    fn check_rules_of(count: usize) -> Result<(), String> {
        let rules: Vec<Rule> = (0..count).map(|number| Rule { name: number.to_string(), ..rule() }).collect();
        super::check(&rules)
    }

    #[test]
    fn stricter_modes_have_stricter_controls() {
        assert!(Control::of(Mode::Isolation) > Control::of(Mode::Hybrid));
        assert!(Control::of(Mode::Hybrid) > Control::of(Mode::Development));
    }
}
