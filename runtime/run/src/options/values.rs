//! Values of options: words of the command line to what they mean, or an error that says how they are written.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use apex_core::layer::Layer;
use apex_core::watch;

use super::{OptionError, nearest};
use crate::table::{Hint, Kind, Row};

pub(super) fn text(row: &'static Row, value: OsString) -> Result<String, OptionError> {
    if value.is_empty() {
        return Err(bad(row, &value, "is empty", "give a value or leave the option out"));
    }
    value.into_string().map_err(|value| bad(row, &value, "is not UTF-8", "write it in UTF-8"))
}

/// Where events or findings go. What looks like an address of another kind is no name of a file.
pub(super) fn sink(row: &'static Row, value: OsString) -> Result<watch::Sink, OptionError> {
    let text = text(row, value)?;
    match text.as_str() {
        "-" => Ok(watch::Sink::Stdout),
        "stderr" => Ok(watch::Sink::Stderr),
        "journald" => Ok(watch::Sink::Journald),
        "syslog" => Ok(watch::Sink::Syslog),
        _ if text.starts_with("https://") || text.starts_with("http://") => Ok(watch::Sink::Webhook(text)),
        _ if text.contains("://") => Err(bad(
            row,
            OsStr::new(&text),
            "is an address that nothing can be sent to",
            "give a file, -, stderr, journald, syslog or an https:// address",
        )),
        _ => Ok(watch::Sink::File(text)),
    }
}

pub(super) fn path(row: &'static Row, value: OsString) -> Result<PathBuf, OptionError> {
    if value.is_empty() {
        return Err(bad(row, &value, "is empty", "name a file or a directory"));
    }
    Ok(PathBuf::from(value))
}

pub(super) fn word<T: Copy>(row: &'static Row, value: &OsStr, words: &[(&str, T)]) -> Result<T, OptionError> {
    words.iter().find(|(name, _)| value == *name).map(|(_, meaning)| *meaning).ok_or_else(|| unknown_word(row, value))
}

pub(super) fn unknown_word(row: &'static Row, value: &OsStr) -> OptionError {
    let given = shown(value);
    let words: &[&str] = match &row.kind {
        Kind::May { hint: Hint::Words(words), .. } => words,
        Kind::Takes { hint: Hint::Words(words), .. } => words,
        Kind::May { .. } | Kind::Takes { .. } | Kind::Switch(_) => &[],
    };
    let remedy = match nearest(&given, words.iter().copied()) {
        Some(nearest) => format!("the nearest is `{nearest}` of {}", words.join(", ")),
        None => format!("it is one of {}", words.join(", ")),
    };
    OptionError::UnknownWord { option: row.long, given, remedy }
}

pub(super) fn layer(row: &'static Row, value: &OsStr) -> Result<Layer, OptionError> {
    let layer = Layer::ALL.into_iter().find(|layer| value == layer.name()).ok_or_else(|| unknown_word(row, value))?;
    if layer.is_foundation() {
        let remedy = "leave it out; `apex-run --doctor` says how this host can give the layer";
        return Err(bad(row, value, "no sandbox can do without", remedy));
    }
    Ok(layer)
}

pub(super) fn variable(row: &'static Row, value: OsString) -> Result<(String, String), OptionError> {
    let text = text(row, value)?;
    match text.split_once('=') {
        Some(("", _)) => Err(bad(row, OsStr::new(&text), "has no name before the `=`", "write NAME=VALUE")),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => {
            let remedy = "write NAME=VALUE, or use --pass-env NAME to pass the caller's value";
            Err(bad(row, OsStr::new(&text), "has no `=`", remedy))
        }
    }
}

pub(super) fn variable_name(row: &'static Row, name: String) -> Result<String, OptionError> {
    if name.contains('=') {
        let remedy = "write the name alone, or use --env NAME=VALUE to set it";
        return Err(bad(row, OsStr::new(&name), "holds a `=`", remedy));
    }
    Ok(name)
}

pub(super) fn number<T: std::str::FromStr + PartialOrd>(
    row: &'static Row,
    value: &OsStr,
    least: T,
) -> Result<T, OptionError> {
    let number = value.to_str().and_then(|text| text.parse::<T>().ok()).filter(|number| *number >= least);
    number.ok_or_else(|| bad(row, value, "is not a number in range", "write a whole number, without a sign"))
}

pub(super) fn descriptor(row: &'static Row, value: &OsStr) -> Result<i32, OptionError> {
    let fd = number(row, value, 0)?;
    if fd < 3 {
        return Err(bad(row, value, "is passed in any case", "leave the option out"));
    }
    Ok(fd)
}

/// The socket, the file, and what is held besides.
pub(super) fn kept(row: &'static Row, value: &OsStr) -> Result<Vec<i32>, OptionError> {
    let words = value.to_str().unwrap_or_default().split(',');
    let fds: Result<Vec<i32>, OptionError> = words.map(|word| descriptor(row, OsStr::new(word))).collect();
    let fds = fds?;
    if fds.len() < 2 {
        return Err(bad(row, value, "is too short", "apexd gives a socket and a file; nobody else needs this option"));
    }
    Ok(fds)
}

pub(super) fn tty_size(row: &'static Row, value: &OsStr) -> Result<(u16, u16), OptionError> {
    let halves = value.to_str().and_then(|text| text.split_once('x'));
    let size = halves.and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
    size.ok_or_else(|| bad(row, value, "is no size", "give rows and columns, such as 24x80"))
}

pub(super) fn bad(row: &'static Row, given: &OsStr, problem: &'static str, remedy: &'static str) -> OptionError {
    OptionError::BadValue { option: row.long, given: shown(given), problem, remedy }
}

pub(super) fn shown(word: &OsStr) -> String {
    crate::escape::os(word).into_owned()
}
