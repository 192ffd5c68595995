//! Attempts at the network: what listens on the host's loopback, the way out, and TCP under Landlock.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use apex_core::layer::Layer;
use apex_core::policy::Network;
use apex_sys::process::Pid;
use apex_sys::{Errno, net};

use super::{Got, Trials};

/// How long a datagram may take on a loopback before it counts as delivered.
const DELIVERED: Duration = Duration::from_secs(1);
/// An address that no network has (RFC 5737): where there is a route at all, the attempt to send goes through.
const ELSEWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The Landlock ABI that brought TCP rules.
const TCP_ABI: u32 = 4;

/// Things outside that the sandbox must not reach. They live as long as the proof; inside, their descriptors are closed.
pub(super) struct Outside {
    pub(super) pid: Pid,
    tcp: SocketAddr,
    udp: SocketAddr,
    abstract_name: Vec<u8>,
    _tcp: TcpListener,
    _udp: UdpSocket,
    _abstract: UnixListener,
}

impl Outside {
    pub(super) fn open() -> io::Result<Outside> {
        let pid = std::process::id();
        let abstract_name = format!("apex-prove-{pid}").into_bytes();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Outside {
            pid: Pid::try_from(pid).map_err(io::Error::other)?,
            tcp: tcp.local_addr()?,
            udp: udp.local_addr()?,
            _abstract: UnixListener::bind_addr(&UnixAddr::from_abstract_name(&abstract_name)?)?,
            abstract_name,
            _tcp: tcp,
            _udp: udp,
        })
    }
}

impl<'a> Trials<'a> {
    pub(super) fn network(&mut self, outside: &'a Outside) {
        let own = self.plan.network == Network::None;
        self.namespace(outside, own);
        self.landlock_tcp(outside);
        self.abstract_socket(outside, own);
    }

    fn namespace(&mut self, outside: &'a Outside, own: bool) {
        let interfaces = "network interfaces other than loopback";
        let datagram = "send a datagram to a socket of the host's loopback";
        let connection = "connect to a TCP port of the host's loopback";
        let way_out = "send a datagram to 192.0.2.1";
        let refused = self.or_filter(&[Errno::ECONNREFUSED], &["socket", "sendto"]);
        let unreachable = self.or_filter(&[Errno::ENETUNREACH], &["socket", "sendto"]);
        if !own {
            let reason = "the policy grants the host's network";
            self.skip(Layer::Netns, interfaces, &[Got::Seen(0)], reason);
            self.skip(Layer::Netns, datagram, &refused, reason);
            self.skip(Layer::Netns, connection, &refused, reason);
            return self.skip(Layer::Netns, way_out, &unreachable, reason);
        }
        let mut expected = self.or_filter(&[], &["socket"]);
        expected.insert(0, Got::Seen(0));
        self.attempt(Layer::Netns, interfaces, &expected, |_| other_interfaces());
        self.attempt(Layer::Netns, datagram, &refused, |_| Got::of_io(send_datagram(outside.udp, true)));
        // Where Landlock refuses TCP as a whole, it does so before the network is asked.
        let expected = self.or_filter(&[Errno::ECONNREFUSED, Errno::EACCES], &["socket", "connect"]);
        self.attempt(Layer::Netns, connection, &expected, |_| Got::of_io(TcpStream::connect(outside.tcp)));
        self.attempt(Layer::Netns, way_out, &unreachable, |_| Got::of_io(send_datagram(ELSEWHERE, false)));
    }

    fn landlock_tcp(&mut self, outside: &'a Outside) {
        let expected = self.or_filter(&[Errno::EACCES], &["socket", "connect", "bind"]);
        let (connect, bind) = ("connect to a TCP port", "bind a TCP port");
        if self.plan.landlock.as_ref().is_some_and(|landlock| landlock.tcp_refused) {
            self.attempt(Layer::Landlock, connect, &expected, |_| Got::of_io(TcpStream::connect(outside.tcp)));
            return self.attempt(Layer::Landlock, bind, &expected, |_| Got::of(net::try_tcp_bind()));
        }
        let reason = match (&self.plan.landlock, self.plan.network) {
            (_, Network::None) => "the sandbox's own loopback is open, and nobody else is on it",
            (Some(landlock), Network::Host) if landlock.abi >= TCP_ABI => "the policy grants the host's network",
            (_, Network::Host) => "this kernel's Landlock has no TCP rules (ABI 4)",
        };
        self.skip(Layer::Landlock, connect, &expected, reason);
        self.skip(Layer::Landlock, bind, &expected, reason);
    }

    /// Names without a file belong to a network namespace; with the host's, only a Landlock scope keeps them apart.
    fn abstract_socket(&mut self, outside: &'a Outside, own: bool) {
        let scoped = self.plan.landlock.as_ref().is_some_and(|landlock| landlock.scoped);
        let attempt = "connect to an abstract socket of the host";
        let (layer, errno) = if own { (Layer::Netns, Errno::ECONNREFUSED) } else { (Layer::Landlock, Errno::EPERM) };
        let mut expected = self.or_filter(&[errno], &["socket", "connect"]);
        if !self.plan.level.is_full() {
            // There are no such sockets at all.
            expected.push(Got::Errno(Errno::EAFNOSUPPORT));
        }
        if own || scoped {
            self.attempt(layer, attempt, &expected, |_| {
                let address = UnixAddr::from_abstract_name(&outside.abstract_name);
                Got::of_io(address.and_then(|address| UnixStream::connect_addr(&address)))
            });
        } else {
            self.skip(layer, attempt, &expected, "the host's network has its names, and Landlock here has no scopes");
        }
    }
}

fn other_interfaces() -> Got {
    match nix::net::if_::if_nameindex() {
        Err(errno) => Got::Errno(errno),
        Ok(all) => {
            let others = all.iter().filter(|interface| interface.name() != c"lo").count();
            Got::Seen(u32::try_from(others).unwrap_or(u32::MAX))
        }
    }
}

/// Where nobody has the port, the kernel's answer comes back as the error of the next call.
fn send_datagram(to: SocketAddr, wait: bool) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.send(b"proof")?;
    if !wait {
        return Ok(());
    }
    socket.set_read_timeout(Some(DELIVERED))?;
    match socket.recv(&mut [0; 8]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other.map(drop),
    }
}
