//! Committed texts that a run must give again. `UPDATE_SNAPSHOTS=1` rewrites them.

use std::path::{Path, PathBuf};

/// Compares a text, in which nothing of this machine or run is left, with `tests/snapshots/NAME`.
#[track_caller]
pub fn check(name: &str, text: &str) {
    let path = package().join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).expect("writable source tree");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, (old, new)) in expected.lines().zip(text.lines()).enumerate() {
        assert_eq!(new, old, "line {} of {}; UPDATE_SNAPSHOTS=1 rewrites it", line + 1, path.display());
    }
    assert_eq!(text, expected, "{}", path.display());
}

/// The folder of this package; an unprivileged run has a copy of it.
fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), PathBuf::from)
}
