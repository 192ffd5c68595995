//! The caller's terminal while a command has one of its own: raw mode, and its size.

use std::io::{IsTerminal, stdin, stdout};

use anyhow::{Context, Result};
use apex_api::v1::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Whether a command gets a terminal that may have one.
pub fn is_wanted(word: &str) -> bool {
    word == "yes" || word == "auto" && stdin().is_terminal() && stdout().is_terminal()
}

/// Its size; `None` where there is none.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    Some(TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// Raw mode until dropped: each key goes to the command's terminal, which does with it what that one is set to do.
pub struct Raw(Termios);

impl Raw {
    /// Where standard input is a terminal.
    pub fn enter() -> Result<Option<Raw>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(stdin()).context("asking for the modes of the terminal")?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).context("setting the terminal to raw mode")?;
        Ok(Some(Raw(saved)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}
