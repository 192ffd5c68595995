//! Memory that a waiting process does not need any more (malloc_trim(3), madvise(2)), and files in memory (memfd_create(2)).

use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

/// Bytes below the caller's frame that are given back.
const STACK_BYTES: usize = 64 * 1024;
const PAGE_BYTES: usize = 4096;

/// Gives the kernel back what the heap holds free, and what earlier, deeper calls left on the stack. For a process that is about to wait for long:
/// it costs some system calls, and what is needed again costs a page fault. What cannot be given back stays.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; the allocator guards itself.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: no arguments.
    let is_first_thread = unsafe { libc::gettid() == libc::getpid() };
    if is_first_thread {
        give_back_stack();
    }
}

/// An empty file in memory that cannot be executed, closed on exec. A kernel before Linux 6.3 knows no such mark and makes a plain one.
pub fn file(name: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let make = |flags| check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) }.into());
    let file = match make(libc::MFD_NOEXEC_SEAL) {
        Err(Errno::EINVAL) => make(0)?,
        other => other?,
    };
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(file as RawFd) })
}

/// On the first thread's stack only: the kernel keeps the 1 MiB below it free of other mappings (`stack_guard_gap`).
#[inline(never)]
fn give_back_stack() {
    let here = 0_u8;
    // A page apart: the frame of the call below lies in between.
    let end = (&raw const here as usize - PAGE_BYTES) & !(PAGE_BYTES - 1);
    let start = end.saturating_sub(STACK_BYTES);
    // SAFETY: nothing below the stack pointer is in use, the kernel's own frames are elsewhere, and the range holds no other mapping. ENOMEM only says
    // that the stack has not grown that deep.
    let _ = check(unsafe {
        libc::syscall(libc::SYS_madvise, start as *mut libc::c_void, end - start, libc::MADV_DONTNEED)
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_in_use_stays() {
        let kept: Vec<u8> = (0..200_000).map(|at| at as u8).collect();
        drop(vec![1_u8; 100_000]);
        super::give_back();
        assert!(kept.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }
}
