//! `apex-run`: see the library for its words.

fn main() {}
