//! What the launcher and the sandbox's init say to each other. Fixed 16 byte messages over a SEQPACKET socket; what comes from
//! inside is decoded strictly, since a bug there must not become one here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_core::seccomp::trace::Scope;
use apex_sys::process::Ended;
use apex_sys::{Errno, fs, net};

use crate::step::{Failure, Step};

/// From the launcher to the init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The id maps are written.
    Mapped,
    /// The cgroup holds you, or you enter it through the files that come with this; everything the launcher had to do is done.
    Attached {
        /// What the command is to stop at for a tracer, where there is one.
        trace: Option<Scope>,
        /// How many files come along: with one of them missing the sandbox would stand outside of a limit.
        doors: u8,
    },
    /// The receipt is read: go on.
    Go,
    /// The same, with the arguments that the command gets, in the next message: a NUL behind each.
    GoWith,
    /// Pass this signal to the command.
    Signal(i32),
    /// Start one more command, with the three streams that come with this; how is in the next message ([`crate::spawn`]).
    Spawn {
        /// By which it is called from now on.
        number: i32,
        /// Rows and columns of the terminal that it gets instead of its streams, if it does.
        terminal: Option<(u16, u16)>,
    },
    /// Pass a signal to one of those.
    SignalSpawned {
        /// Which.
        number: i32,
        /// The signal.
        signal: i32,
    },
}

/// From the init, or from the command's process before exec, to the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A step failed.
    Failed(Failure),
    /// The terminal's other end comes with this message.
    Terminal,
    /// The command's process (this pid inside) has put every layer in force but has not executed the command yet; its listener, if
    /// any, has this descriptor number there.
    Sealed {
        /// Pid inside.
        pid: i32,
        /// Descriptor number, -1 for none.
        listener: i32,
        /// What the kernel answered when the process tried what only its Landlock domain refuses.
        domain: Domain,
    },
    /// The command ended.
    Ended {
        /// How.
        ended: Ended,
        /// Whether nobody else is left in the sandbox.
        alone: bool,
    },
    /// A step of starting one more command failed. [`Report::Spawned`] comes all the same.
    SpawnFailed(Failure),
    /// The start of one more command is over.
    Spawned {
        /// Which.
        number: i32,
    },
    /// One of those ended.
    SpawnedEnded {
        /// Which.
        number: i32,
        /// How.
        ended: Ended,
    },
}

/// The answer to an attempt that only a Landlock domain refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// Nothing was attempted.
    Unprobed,
    /// It went through: there is no domain.
    Open,
    /// The kernel refused it with this errno.
    Refused(Errno),
}

impl Domain {
    fn encode(self) -> i32 {
        match self {
            Domain::Unprobed => -1,
            Domain::Open => 0,
            Domain::Refused(errno) => errno as i32,
        }
    }

    fn decode(word: i32) -> Domain {
        match word {
            ..=-1 => Domain::Unprobed,
            0 => Domain::Open,
            errno => Domain::Refused(Errno::from_raw(errno)),
        }
    }
}

const SIZE: usize = 16;

fn pack(tag: u8, step: u8, words: [i32; 3]) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    bytes[0] = tag;
    bytes[1] = step;
    for (slot, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn unpack(bytes: &[u8; SIZE]) -> (u8, u8, [i32; 3]) {
    let word = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (bytes[0], bytes[1], [word(4), word(8), word(12)])
}

fn encode_scope(scope: Option<Scope>) -> i32 {
    match scope {
        None => 0,
        Some(Scope::Default) => 1,
        Some(Scope::Full) => 2,
        Some(Scope::Every) => 3,
    }
}

fn decode_scope(word: i32) -> Result<Option<Scope>, Errno> {
    Ok(match word {
        0 => None,
        1 => Some(Scope::Default),
        2 => Some(Scope::Full),
        3 => Some(Scope::Every),
        _ => return Err(Errno::EBADMSG),
    })
}

fn encode_size(size: Option<(u16, u16)>) -> i32 {
    let (rows, columns) = size.unwrap_or_default();
    (u32::from(rows) << 16 | u32::from(columns)).cast_signed()
}

fn decode_size(word: i32) -> (u16, u16) {
    let word = word.cast_unsigned();
    ((word >> 16) as u16, word as u16)
}

fn encode_order(order: Order) -> [u8; SIZE] {
    match order {
        Order::Mapped => pack(1, 0, [0; 3]),
        Order::Attached { trace, doors } => pack(2, 0, [encode_scope(trace), doors.into(), 0]),
        Order::Go => pack(3, 0, [0; 3]),
        Order::Signal(signal) => pack(4, 0, [signal, 0, 0]),
        Order::GoWith => pack(5, 0, [0; 3]),
        Order::Spawn { number, terminal } => pack(6, 0, [number, terminal.is_some().into(), encode_size(terminal)]),
        Order::SignalSpawned { number, signal } => pack(7, 0, [number, signal, 0]),
    }
}

fn encode(report: Report) -> [u8; SIZE] {
    match report {
        Report::Failed(Failure { step, index, errno }) => pack(1, step as u8, [index as i32, errno as i32, 0]),
        Report::Terminal => pack(2, 0, [0; 3]),
        Report::Sealed { pid, listener, domain } => pack(3, 0, [pid, listener, domain.encode()]),
        Report::Ended { ended: Ended::Code(code), alone } => pack(4, 0, [code, alone.into(), 0]),
        Report::Ended { ended: Ended::Signal(signal), alone } => pack(5, 0, [signal, alone.into(), 0]),
        Report::SpawnFailed(Failure { step, index, errno }) => pack(6, step as u8, [index as i32, errno as i32, 0]),
        Report::Spawned { number } => pack(7, 0, [number, 0, 0]),
        Report::SpawnedEnded { number, ended: Ended::Code(code) } => pack(8, 0, [number, code, 0]),
        Report::SpawnedEnded { number, ended: Ended::Signal(signal) } => pack(9, 0, [number, signal, 0]),
    }
}

fn failure(step: u8, index: i32, errno: i32) -> Result<Failure, Errno> {
    Ok(Failure {
        step: Step::from_number(step).ok_or(Errno::EBADMSG)?,
        index: usize::try_from(index).map_err(|_| Errno::EBADMSG)?,
        errno: Errno::from_raw(errno),
    })
}

/// One end of the socket.
#[derive(Debug)]
pub struct End(pub OwnedFd);

impl End {
    /// The two ends.
    pub fn pair() -> Result<(End, End), Errno> {
        net::pair().map(|(one, other)| (End(one), End(other)))
    }

    /// Sends an order.
    pub fn order(&self, order: Order) -> Result<(), Errno> {
        self.order_with(order, &[])
    }

    /// Sends an order with the descriptors that are needed to follow it.
    pub fn order_with(&self, order: Order, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        net::send(self.0.as_fd(), &encode_order(order), fds)
    }

    /// Waits for an order; `None` when the launcher is gone.
    pub fn next_order(&self) -> Result<Option<Order>, Errno> {
        self.next_order_with().map(|next| next.map(|(order, _)| order))
    }

    /// The same, with the descriptors that came along.
    pub fn next_order_with(&self) -> Result<Option<(Order, Vec<OwnedFd>)>, Errno> {
        let mut bytes = [0; SIZE];
        let (count, fds) = net::receive(self.0.as_fd(), &mut bytes)?;
        if count == 0 {
            return Ok(None);
        }
        let order = match unpack(&bytes) {
            (1, ..) => Order::Mapped,
            (2, _, [scope, doors, _]) => {
                let doors = u8::try_from(doors).map_err(|_| Errno::EBADMSG)?;
                Order::Attached { trace: decode_scope(scope)?, doors }
            }
            (3, ..) => Order::Go,
            (4, _, [signal, ..]) => Order::Signal(signal),
            (5, ..) => Order::GoWith,
            (6, _, [number, 0, _]) => Order::Spawn { number, terminal: None },
            (6, _, [number, 1, size]) => Order::Spawn { number, terminal: Some(decode_size(size)) },
            (7, _, [number, signal, _]) => Order::SignalSpawned { number, signal },
            _ => return Err(Errno::EBADMSG),
        };
        Ok(Some((order, fds)))
    }

    /// Waits for one particular order.
    pub fn expect(&self, order: Order) -> Result<(), Errno> {
        match self.next_order()? {
            Some(next) if next == order => Ok(()),
            Some(_) => Err(Errno::EBADMSG),
            None => Err(Errno::EPIPE),
        }
    }

    /// Sends a report with write(2), which every system call filter allows.
    pub fn write_report(&self, report: Report) -> Result<(), Errno> {
        fs::write(self.0.as_fd(), &encode(report)).map(drop)
    }

    /// Waits for one particular order with read(2), which every system call filter allows.
    pub fn read_expect(&self, order: Order) -> Result<(), Errno> {
        let mut bytes = [0; SIZE];
        match fs::read(self.0.as_fd(), &mut bytes)? {
            0 => Err(Errno::EPIPE),
            _ if bytes == encode_order(order) => Ok(()),
            _ => Err(Errno::EBADMSG),
        }
    }

    /// Sends what [`Order::GoWith`] or [`Order::Spawn`] announced.
    pub fn words(&self, words: &[u8]) -> Result<(), Errno> {
        net::send(self.0.as_fd(), words, &[])
    }

    /// Waits for them with read(2), which every system call filter allows.
    pub fn read_words(&self, room: &mut [u8]) -> Result<usize, Errno> {
        match fs::read(self.0.as_fd(), room)? {
            0 => Err(Errno::EPIPE),
            count => Ok(count),
        }
    }

    /// Sends a report, with a descriptor when it has one.
    pub fn report(&self, report: Report, fd: Option<&OwnedFd>) -> Result<(), Errno> {
        let fd = fd.map(AsFd::as_fd);
        net::send(self.0.as_fd(), &encode(report), fd.as_slice())
    }

    /// Waits for a report; `None` when the sandbox is gone.
    pub fn next_report(&self) -> Result<Option<(Report, Option<OwnedFd>)>, Errno> {
        let mut bytes = [0; SIZE];
        let (count, fds) = match net::receive(self.0.as_fd(), &mut bytes) {
            // The other end was closed before it had read everything. What it sent before still waits here.
            Err(Errno::ECONNRESET) => net::receive(self.0.as_fd(), &mut bytes)?,
            other => other?,
        };
        if count == 0 {
            return Ok(None);
        }
        let report = match unpack(&bytes) {
            (1, step, [index, errno, _]) => Report::Failed(failure(step, index, errno)?),
            (2, ..) => Report::Terminal,
            (3, _, [pid, listener, domain]) => Report::Sealed { pid, listener, domain: Domain::decode(domain) },
            (4, _, [code, alone @ (0 | 1), _]) => Report::Ended { ended: Ended::Code(code), alone: alone == 1 },
            (5, _, [signal, alone @ (0 | 1), _]) => Report::Ended { ended: Ended::Signal(signal), alone: alone == 1 },
            (6, step, [index, errno, _]) => Report::SpawnFailed(failure(step, index, errno)?),
            (7, _, [number, ..]) => Report::Spawned { number },
            (8, _, [number, code, _]) => Report::SpawnedEnded { number, ended: Ended::Code(code) },
            (9, _, [number, signal, _]) => Report::SpawnedEnded { number, ended: Ended::Signal(signal) },
            _ => return Err(Errno::EBADMSG),
        };
        let fd = fds.into_iter().next();
        // A terminal without its master would be one that nobody serves.
        if matches!(report, Report::Terminal) != fd.is_some() {
            return Err(Errno::EBADMSG);
        }
        Ok(Some((report, fd)))
    }
}
