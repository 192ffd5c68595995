//! The descriptors that the command gets: the three standard streams and those that were asked for by number. Nothing else that the
//! caller had open gets past this point.

use std::os::fd::{AsFd, IntoRawFd};

use apex_sys::{Errno, fs, process};

/// Why a descriptor cannot be passed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It would be a way around the new root.
    #[error(
        "descriptor {0} is a directory, and with it the command could walk the host's files; pass a file or a pipe"
    )]
    Directory(i32),
    /// It is not there.
    #[error("descriptor {0} is not open; open it in the calling shell, as in `apex-run --fd 3 -- CMD 3<file`")]
    Closed(i32),
    /// The kernel refused something.
    #[error("looking at descriptor {number}: {errno}")]
    Kernel {
        /// The descriptor.
        number: i32,
        /// What the kernel said.
        errno: Errno,
    },
}

/// The descriptors of the command, looked at once.
#[derive(Debug)]
pub struct Streams {
    /// Those above 2.
    pub passed: Vec<i32>,
    /// Those that are files or devices, which a program may open anew by their names in /dev and /proc.
    pub files: Vec<StreamFile>,
}

/// A descriptor that is a file or device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamFile {
    /// Its number.
    pub number: i32,
    /// Device and inode of its file.
    pub file: (u64, u64),
    /// How it was opened (fcntl(2), `F_GETFL`).
    pub mode: i32,
}

impl Streams {
    /// Closes everything else but `kept`, which is the launcher's own. To be called before anything of our own is opened.
    pub fn settle(passed: &[i32], kept: &[i32]) -> Result<Streams, StreamError> {
        let mut passed: Vec<i32> = passed.iter().copied().filter(|number| *number > 2).collect();
        passed.sort_unstable();
        passed.dedup();
        let mut files = Vec::new();
        for number in (0..=2).chain(passed.iter().copied()) {
            match fs::stat_number(number) {
                Ok(stat) if stat.is(nix::libc::S_IFDIR) => return Err(StreamError::Directory(number)),
                Ok(stat) if stat.is(nix::libc::S_IFREG) || stat.is(nix::libc::S_IFCHR) => {
                    let mode = fs::status_flags(number).map_err(|errno| StreamError::Kernel { number, errno })?;
                    files.push(StreamFile { number, file: (stat.device, stat.inode), mode });
                }
                Ok(_) => {}
                // A closed standard stream would be taken by the next file that somebody opens.
                Err(Errno::EBADF) if number <= 2 => fill(number)?,
                Err(Errno::EBADF) => return Err(StreamError::Closed(number)),
                Err(errno) => return Err(StreamError::Kernel { number, errno }),
            }
        }
        let open: Vec<i32> = passed.iter().chain(kept).copied().collect();
        close_others(3, &open).map_err(|errno| StreamError::Kernel { number: 3, errno })?;
        Ok(Streams { passed, files })
    }
}

/// The lowest free number is `number`, since those below it are open by now.
fn fill(number: i32) -> Result<(), StreamError> {
    let failed = |errno| StreamError::Kernel { number, errno };
    let null = fs::open(fs::cwd(), c"/dev/null", nix::libc::O_RDWR, 0).map_err(failed)?.into_raw_fd();
    if null != number {
        return Err(failed(Errno::EBADF));
    }
    fs::set_inherited(number, true).map_err(failed)
}

/// Puts /dev/null in the place of the standard streams.
pub fn let_go() -> Result<(), Errno> {
    let null = fs::open(fs::cwd(), c"/dev/null", nix::libc::O_RDWR, 0)?;
    (0..=2).try_for_each(|number| fs::place(null.as_fd(), number))
}

/// Closes every descriptor from `first` on that is not among `kept`.
pub fn close_others(first: u32, kept: &[i32]) -> Result<(), Errno> {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut first = first;
    for number in kept.iter().filter_map(|number| u32::try_from(*number).ok()) {
        if number > first {
            process::close_from(first, number - 1, false)?;
        }
        first = first.max(number + 1);
    }
    process::close_from(first, u32::MAX, false)
}
