//! The network of the host, its sockets, and descriptors that could carry something across.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use apex_tests::attack::Abi;
use apex_tests::sandbox::collect;
use apex_tests::{Mode, TempDir, armed, each_mode, has_scopes, skip};

const CLOSED: [Mode; 2] = [Mode::Isolation, Mode::Hybrid];

/// Nobody has connected.
#[track_caller]
fn expect_nobody(listener: &TcpListener) {
    listener.set_nonblocking(true).expect("it is ours");
    let came = listener.accept();
    assert!(matches!(&came, Err(error) if error.kind() == ErrorKind::WouldBlock), "somebody came: {came:?}");
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn loopback_of_the_host_is_out_of_reach() {
    for mode in CLOSED {
        let four = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let any = TcpListener::bind("0.0.0.0:0").expect("it can be bound");
        let mut session = armed!().mode(mode).session();
        for address in ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::ffff:127.0.0.1"] {
            session.refused(&format!("tcp {address} {}", port(&four)));
            session.refused(&format!("tcp {address} {}", port(&any)));
        }
        session.refused(&format!("tcp_fastopen 127.0.0.1 {}", port(&four)));
        session.refused("tcp 192.0.2.1 80");
        session.refused("tcp 8.8.8.8 53");
        assert_eq!(session.refused("interfaces"), "ENODEV", "an interface beside loopback");
        session.finish().expect_code(0);
        expect_nobody(&four);
        expect_nobody(&any);
    }
}

#[test]
fn datagrams_do_not_arrive() {
    for mode in CLOSED {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback is there");
        let port = socket.local_addr().expect("it is bound").port();
        let mut session = armed!().mode(mode).session();
        session.ask(&format!("udp 127.0.0.1 {port}"));
        session.refused("udp 192.0.2.1 53");
        session.finish().expect_code(0);
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("not zero");
        let mut buffer = [0; 16];
        assert!(socket.recv(&mut buffer).is_err(), "a datagram arrived");
    }
}

/// With the host's network granted, the same attempts arrive.
#[test]
fn granted_network_works() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let mut session = armed!().mode(Mode::Hybrid).args(["--net", "host"]).session();
    session.allowed(&format!("tcp 127.0.0.1 {}", port(&listener)));
    session.finish().expect_code(0);
    listener.set_nonblocking(true).expect("it is ours");
    listener.accept().expect("the sandbox connected");
}

#[test]
fn own_loopback_works() {
    for mode in CLOSED {
        let mut session = armed!().mode(mode).session();
        session.allowed("own_loopback");
        session.finish().expect_code(0);
    }
}

/// Abstract sockets belong to the network namespace; where that is the host's, Landlock's scope keeps them out of reach.
#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    if !has_scopes() {
        skip!("the kernel's Landlock has no scopes");
    }
    each_mode(|mode| {
        let name = format!("apex-test-{}-{}", std::process::id(), mode.name());
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("the name is ours");
        UnixStream::connect_addr(&address).expect("it can be reached from the host");
        let mut session = armed!().mode(mode).session();
        session.refused(&format!("unix_abstract {name}"));
        session.finish().expect_code(0);
        drop(listener);
    });
    let address =
        SocketAddr::from_abstract_name(format!("apex-test-net-{}", std::process::id())).expect("a short name");
    let _listener = UnixListener::bind_addr(&address).expect("the name is ours");
    let mut session = armed!().mode(Mode::Hybrid).args(["--net", "host"]).session();
    session.refused(&format!("unix_abstract apex-test-net-{}", std::process::id()));
    session.finish().expect_code(0);
}

#[test]
fn sockets_at_paths_that_are_not_granted_are_out_of_reach() {
    for mode in CLOSED {
        let dir = TempDir::new();
        let _listener = UnixListener::bind(dir.at("sock")).expect("we own it");
        let mut session = armed!().mode(mode).session();
        session.refused(&format!("unix_path {}", dir.at("sock")));
        session.refused("unix_path /run/dbus/system_bus_socket");
        session.finish().expect_code(0);
    }
}

/// Documents what a grant gives: a directory comes with the sockets in it, also for reading, since the kernel asks for no right of the
/// mount or of Landlock to connect. A socket that is denied is out of reach.
#[test]
fn a_grant_comes_with_its_sockets() {
    let dir = TempDir::new();
    let _open = UnixListener::bind(dir.at("open")).expect("we own it");
    let closed = UnixListener::bind(dir.at("closed")).expect("we own it");
    let sandbox = armed!().mode(Mode::Isolation).ro(&dir.text(), "/tmp/data").deny(&dir.at("closed"));
    let mut session = sandbox.session();
    session.allowed("unix_path /tmp/data/open");
    session.refused("unix_path /tmp/data/closed");
    session.finish().expect_code(0);
    closed.set_nonblocking(true).expect("it is ours");
    assert!(closed.accept().is_err(), "the sandbox connected to a denied service of the host");
}

/// A socket that the caller forgot to close is not there, so nothing can be sent through it. It reaches `apex-run` as its
/// standard error's neighbour: descriptor 9.
#[test]
fn an_inherited_socket_is_closed() {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair can be made");
    let sandbox = armed!().mode(Mode::Isolation).prelude("exec 9<&0 0</dev/null;");
    let mut command = sandbox.command(&[Abi::X64.program(), "scm_send", "9"]);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("apex-run starts");
    drop(command);
    let output = collect(child).expect_code(0);
    assert!(output.answer("scm_send").starts_with("EBADF"), "{}", output.out());
    ours.set_nonblocking(true).expect("it is ours");
    let mut byte = [0];
    assert!(!matches!(ours.read(&mut byte), Ok(1)), "something was sent through it");
}

/// The same socket, passed on purpose, works: so the refusal above is one.
#[test]
fn a_passed_socket_works() {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair can be made");
    let sandbox = armed!().mode(Mode::Isolation).args(["--fd", "9"]).prelude("exec 9<&0 0</dev/null;");
    let mut command = sandbox.command(&[Abi::X64.program(), "scm_send", "9"]);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("apex-run starts");
    drop(command);
    let output = collect(child).expect_code(0);
    assert!(output.answer("scm_send").starts_with("ok"), "{}", output.out());
    let mut byte = [0];
    assert_eq!(ours.read(&mut byte).expect("it was sent"), 1);
}
