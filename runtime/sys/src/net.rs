//! Network namespaces and the socket between the jail's processes: netdevice(7), unix(7).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{Errno, check};

/// Brings the loopback interface of this network namespace up (netdevice(7), `SIOCSIFFLAGS`). The socket stays open until the init
/// closes everything that building the sandbox opened.
pub fn loopback_up() -> Result<(), Errno> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: a fresh descriptor from the kernel.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut request = loopback_request();
    // SAFETY: `request` is a valid ifreq and outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) }.into())?;
    std::mem::forget(socket);
    Ok(())
}

/// What `SIOCSIFFLAGS` wants in order to bring loopback up.
pub(crate) fn loopback_request() -> libc::ifreq {
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    request
}

/// Tries to bind a TCP socket to a free port of 127.0.0.1 (bind(2)); nothing listens on it and it is closed at once.
pub fn try_tcp_bind() -> Result<(), Errno> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: a fresh descriptor from the kernel.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // SAFETY: sockaddr_in is plain data; all zeroes is a valid value.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as libc::sa_family_t;
    address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    let size = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: `address` has `size` bytes and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) }.into()).map(drop)
}

/// The other end of a socket as a `struct sockaddr`, cut at its length (getpeername(2)).
///
/// # Errors
/// ENOTCONN without one.
pub fn peer(socket: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; size_of::<libc::sockaddr_storage>()];
    let mut size = bytes.len() as libc::socklen_t;
    // SAFETY: `bytes` has `size` bytes; the kernel writes no more than that.
    check(unsafe { libc::getpeername(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), &raw mut size) }.into())?;
    bytes.truncate(size as usize);
    Ok(bytes)
}

/// A socket's option of level SOL_SOCKET that is a number (socket(7)).
pub fn option(socket: BorrowedFd<'_>, name: i32) -> Result<i32, Errno> {
    let mut value = 0i32;
    let mut size = size_of::<i32>() as libc::socklen_t;
    let (fd, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
    // SAFETY: `value` has `size` bytes and outlives the call.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) }.into())?;
    Ok(value)
}

/// A connected pair of sockets that keep message boundaries (unix(7), `SOCK_SEQPACKET`).
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for the two descriptors.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) }.into())?;
    // SAFETY: two fresh descriptors from the kernel.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// The next connection of a listening socket, which like its messages never waits (accept4(2)).
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    let fd = check(fd.into())?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The same, and neither the connection nor its messages are non-blocking.
pub fn accept_blocking(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    loop {
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        match check(fd.into()) {
            Err(Errno::EINTR) => {}
            // SAFETY: a fresh descriptor from the kernel.
            other => return other.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    }
}

/// Descriptors that one message may carry.
pub const FDS_MAX: usize = 12;

/// Room for so many descriptors beside a message (cmsg(3)).
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends a message, with descriptors when given (sendmsg(2)); `E2BIG` for more than [`FDS_MAX`]. A closed peer is an error, not a signal.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_with(socket, bytes, fds, 0)
}

/// The same without waiting: `EAGAIN` when there is no room.
pub fn try_send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_with(socket, bytes, fds, libc::MSG_DONTWAIT)
}

fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: libc::c_int) -> Result<(), Errno> {
    if fds.len() > FDS_MAX {
        return Err(Errno::E2BIG);
    }
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data; all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let size = size_of_val(fds) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE computes a size; 64 bytes hold a header and FDS_MAX descriptors.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as _;
        // SAFETY: `msg_control` points to aligned room for one control message with these descriptors.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size) as _;
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            for (at, fd) in fds.iter().enumerate() {
                data.add(at).write_unaligned(fd.as_raw_fd());
            }
        }
    }
    // SAFETY: `header` points to `iov` and `control`, which outlive the call.
    check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL | flags) } as libc::c_long)
        .map(drop)
}

/// Receives a message and the descriptors that came with it, at most [`FDS_MAX`] (recvmsg(2)). Zero bytes mean that the peer is gone.
///
/// # Errors
/// `EMSGSIZE` when a part did not get through: bytes beyond the room for them, or descriptors that could not be installed.
pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut control = Control([0; 64]);
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data; all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let count = loop {
        // SAFETY: `header` points to `iov` and `control`, which outlive the call.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        match check(result as libc::c_long) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled `control` up to `msg_controllen`; `cmsg_len` tells how many descriptors a SCM_RIGHTS message holds, now ours.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        if !message.is_null() && (*message).cmsg_type == libc::SCM_RIGHTS {
            let size = ((*message).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            let data = libc::CMSG_DATA(message).cast::<RawFd>();
            let received = (size / size_of::<RawFd>()).min(FDS_MAX);
            fds.extend((0..received).map(|at| OwnedFd::from_raw_fd(data.add(at).read_unaligned())));
        }
    }
    if header.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0 {
        return Err(Errno::EMSGSIZE);
    }
    Ok((count as usize, fds))
}

fn address(path: &std::ffi::CStr) -> Result<(libc::sockaddr_un, libc::socklen_t), Errno> {
    // SAFETY: sockaddr_un is plain data; all zeroes is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn message_socket() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) }.into())?;
    // SAFETY: a fresh descriptor from the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A socket that keeps message boundaries, listening under a new name (unix(7), bind(2), listen(2)).
pub fn listen_for_messages(path: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let (address, size) = address(path)?;
    let socket = message_socket()?;
    // SAFETY: `address` has `size` bytes and outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) }.into())?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 8) }.into())?;
    Ok(socket)
}

/// A connection to such a socket (connect(2)).
pub fn connect_for_messages(path: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let (address, size) = address(path)?;
    let socket = message_socket()?;
    // SAFETY: `address` has `size` bytes and outlives the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size) }.into())?;
    Ok(socket)
}
