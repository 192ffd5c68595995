//! The command line.

use std::ffi::OsString;

/// Runs one command; the value is the exit code.
pub fn run(_arguments: impl Iterator<Item = OsString>) -> i32 {
    1
}
