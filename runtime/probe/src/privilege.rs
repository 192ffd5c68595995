//! What the prober gives up before it reads what a hostile program wrote.
//!
//! Everything is attached by then: files are open, programs are in the kernel. What stays is CAP_BPF, where it was there, since moving the
//! dial of a sandbox (a write to a map) and reading counters are bpf(2) calls that the kernel may ask it for. Reading /proc and the memory
//! of a sandbox's processes needs no capability here: whoever made a user namespace holds all of them in it (user_namespaces(7)),
//! as long as the user id stays. Capabilities belong to threads: each thread of the prober gives its own up.

use apex_sys::{Errno, prctl};

/// CAP_BPF, as capabilities(7) numbers it (Linux 5.8).
const CAP_BPF: u32 = 39;

/// Gives up every capability but CAP_BPF, and the way to any other, for the calling thread and those that it starts.
pub fn give_up() -> Result<(), Errno> {
    prctl::set_no_new_privs()?;
    match prctl::set_capabilities(1 << CAP_BPF, 0) {
        // It had not even that: then it keeps nothing.
        Err(Errno::EPERM) => prctl::set_capabilities(0, 0),
        other => other,
    }
}

/// The same at the beginning of a thread, which must not go on otherwise: its end is seen by whoever waits for its channel.
pub fn give_up_or_panic() {
    give_up().expect("a thread may always give its own capabilities up");
}
