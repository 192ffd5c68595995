//! `apex`.
fn main() {}
