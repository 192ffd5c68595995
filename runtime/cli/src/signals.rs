//! Signals by number and by name. Input: a word. Output: a number that the kernel knows.

use anyhow::{Result, bail};

/// Highest signal number of Linux.
const HIGHEST: i32 = 64;

#[rustfmt::skip]
const NAMES: [(&str, i32); 31] = [
    ("HUP", libc::SIGHUP), ("INT", libc::SIGINT), ("QUIT", libc::SIGQUIT), ("ILL", libc::SIGILL), ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT), ("BUS", libc::SIGBUS), ("FPE", libc::SIGFPE), ("KILL", libc::SIGKILL), ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV), ("USR2", libc::SIGUSR2), ("PIPE", libc::SIGPIPE), ("ALRM", libc::SIGALRM), ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT), ("CHLD", libc::SIGCHLD), ("CONT", libc::SIGCONT), ("STOP", libc::SIGSTOP), ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN), ("TTOU", libc::SIGTTOU), ("URG", libc::SIGURG), ("XCPU", libc::SIGXCPU), ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM), ("PROF", libc::SIGPROF), ("WINCH", libc::SIGWINCH), ("IO", libc::SIGIO), ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The number of a signal.
///
/// # Errors
/// A word that is none.
pub fn number(word: &str) -> Result<i32> {
    if let Ok(number) = word.parse::<i32>() {
        if (1..=HIGHEST).contains(&number) {
            return Ok(number);
        }
        bail!("there is no signal {number}; they go from 1 to {HIGHEST}");
    }
    let upper = word.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, number)) => Ok(*number),
        None => bail!("there is no signal `{word}`; write its number or its name, such as TERM"),
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_have_numbers_and_names() {
        for word in ["15", "TERM", "SIGTERM", "sigterm"] {
            assert_eq!(number(word).unwrap(), 15);
        }
        for word in ["0", "65", "-9", "SIG", "TERMINATE", ""] {
            assert!(number(word).is_err(), "{word}");
        }
    }
}
