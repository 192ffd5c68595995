//! A `main` without the start-up of Rust's runtime.
//!
//! That start-up costs some twenty system calls, among them reading /proc/self/maps to find the stack's guard page for a nicer
//! message on overflow, and it ignores SIGPIPE, which every command would then inherit.
//!
//! SIGCHLD alone is set to its default: where the caller ignored it, the kernel would reap children by itself (wait(2)), and whoever
//! waits for one would wait for ever. A command that Apex starts finds it at its default too.

/// Makes `$main: fn() -> i32` the program's entry point; the crate must be `#![no_main]`. `std::env::args_os` works as ever.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the C runtime calls `main` once, on the initial thread; no other symbol of that name is linked, as the crate has no
        // Rust `main`.
        #[unsafe(no_mangle)]
        extern "C" fn main() -> i32 {
            // It cannot fail: the signal exists and may be caught.
            let _ = $crate::signal::by_default($crate::signal::SIGCHLD);
            // Not by exit(3): Rust's streams register nothing there, and C's are not used.
            $crate::process::exit_now($main())
        }
    };
}
