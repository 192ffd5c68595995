//! The words of `apex-run`: its command line, its help, and how plans, receipts and explanations look to people and programs.
//!
//! Nothing here touches the host; the binary wires this to `apex-core` and `apex-jail`.
#![forbid(unsafe_code)]

pub mod help;
pub mod options;
pub mod print;
pub mod table;
pub mod unsaid;

pub use apex_core::escape;
