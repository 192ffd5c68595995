//! Sockets, connections and bytes, as the programs of the sandbox's cgroup see them, and what they refuse.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use apex_core::event::{Address, Errno, What};
use apex_core::watch::{Family, Level, Source};
use apex_probe::bpf::{Deny, Probes};
use apex_tests::watched::{Cgroup, Recorded, channel};

const CLIENT: &str = r#"
import socket, sys
tcp, udp = int(sys.argv[1]), int(sys.argv[2])
s = socket.create_connection(("127.0.0.1", tcp)); s.sendall(b"x" * 10000); s.close()
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); six.connect(("::1", 9))
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d.sendto(b"question", ("127.0.0.1", udp))
b = socket.socket(); b.bind(("127.0.0.1", 0))
"#;

fn inet(text: String) -> Address {
    text.parse().expect("an address")
}

#[test]
fn sockets_connections_and_bytes_are_told() {
    let Some(cgroup) = Cgroup::new() else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (tcp, udp) = (tcp.expect("loopback"), udp.expect("loopback"));
    let ports = [tcp.local_addr().expect("bound").port(), udp.local_addr().expect("bound").port()];
    let (probes, sources) = Probes::load(Level::Default);
    assert_eq!(sources.get(&Family::Network), Some(&Source::Probe));
    let job = cgroup.run(&["/usr/bin/python3", "-c", CLIENT, &ports[0].to_string(), &ports[1].to_string()]);
    let (to, from) = channel();
    let running = probes.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);

    assert!(recorded.lost.is_empty(), "{:?}", recorded.lost);
    let connect = |address: &Address| recorded.whats().any(|what| *what == What::Connect { address: address.clone() });
    assert!(connect(&inet(format!("inet:127.0.0.1:{}", ports[0]))), "{:#?}", recorded.events);
    assert!(connect(&inet("inet6:[::1]:9".to_owned())), "{:#?}", recorded.events);
    let datagram = What::Send { address: inet(format!("inet:127.0.0.1:{}", ports[1])), bytes: 0 };
    recorded.find(|what| *what == datagram);
    recorded.find(|what| *what == What::Bind { address: inet("inet:127.0.0.1:0".to_owned()) });
    let socket = recorded.find(|what| matches!(what, What::Socket { family: 2, kind: 2, protocol: 17 | 0 }));
    assert_eq!(socket.comm, "python3");
    let sent: u64 = recorded
        .whats()
        .filter_map(|what| match what {
            What::Traffic { sent_bytes, .. } => Some(sent_bytes),
            _ => None,
        })
        .sum();
    assert!((10_000..20_000).contains(&sent), "{sent} bytes");
    // Our own sockets of the same time are not the sandbox's.
    assert!(recorded.events.iter().all(|event| event.pid != std::process::id()));
}

const DENIED: &str = r#"
import socket, sys
port = int(sys.argv[1])
def attempt(action):
    try:
        action()
        return "done"
    except PermissionError:
        return "refused"
    except ConnectionRefusedError:
        return "done"
before = attempt(lambda: socket.create_connection(("127.0.0.1", port)))
print(before, flush=True)
sys.stdin.readline()
after = [
    attempt(lambda: socket.create_connection(("127.0.0.1", port))),
    attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::1", 9))),
    attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))),
    attempt(lambda: socket.socket().bind(("127.0.0.1", 0))),
]
sys.exit(0 if before == "done" and after == ["refused"] * 4 else 1)
"#;

#[test]
fn a_tightened_sandbox_gets_no_new_connection() {
    let Some(cgroup) = Cgroup::new() else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let tcp = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = tcp.local_addr().expect("bound").port();
    let mut job = cgroup.run(&["/usr/bin/python3", "-c", DENIED, &port.to_string()]);
    let (to, from) = channel();
    let probes = Probes::load(Level::Default).0.expect("families");
    let running = probes.start(cgroup.sandbox(0), to).expect("root may attach");
    job.start_with_input();
    tcp.accept().expect("the first connection is let through");
    running.deny(&[Deny::Network, Deny::Ptrace, Deny::Privilege]).expect("the map is ours");
    job.tell("go on");
    assert_eq!(job.end(), Some(0), "0 says: let through before, refused after");
    let recorded = Recorded::collect(running, from);

    let address = inet(format!("inet:127.0.0.1:{port}"));
    let errors: Vec<Option<Errno>> = recorded
        .events
        .iter()
        .filter(|event| event.what == What::Connect { address: address.clone() })
        .map(|event| event.error)
        .collect();
    assert_eq!(errors, [None, Some(Errno::EPERM)]);
}

/// Connects, binds and accepts, waits to be tightened, and tries what it has.
const CONNECTED: &str = r#"
import socket, sys
tcp, udp = int(sys.argv[1]), int(sys.argv[2])
stream = socket.create_connection(("127.0.0.1", tcp))
server = socket.create_server(("127.0.0.1", 0)); server.settimeout(2)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); datagrams.connect(("127.0.0.1", udp))
datagrams.send(str(server.getsockname()[1]).encode())
accepted, _ = server.accept()
sys.stdin.readline()
stream.sendall(b"late"); accepted.sendall(b"late")
try:
    datagrams.send(b"late")
    sys.exit(1)
except PermissionError:
    pass
try:
    server.accept()
    sys.exit(2)
except TimeoutError:
    pass
"#;

#[test]
fn a_tightened_sandbox_keeps_no_connection_that_it_had() {
    let Some(cgroup) = Cgroup::new() else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (tcp, udp) = (tcp.expect("loopback"), udp.expect("loopback"));
    let ports = [tcp.local_addr().expect("bound").port(), udp.local_addr().expect("bound").port()];
    let mut job = cgroup.run(&["/usr/bin/python3", "-c", CONNECTED, &ports[0].to_string(), &ports[1].to_string()]);
    let (to, from) = channel();
    let probes = Probes::load(Level::Default).0.expect("families");
    let running = probes.start(cgroup.sandbox(0), to).expect("root may attach");
    job.start_with_input();
    let (mut outgoing, _) = tcp.accept().expect("let through");
    let mut word = [0; 16];
    let bytes = udp.recv(&mut word).expect("let through");
    let port = std::str::from_utf8(&word[..bytes]).expect("digits").parse().expect("a port");
    let served = SocketAddr::from(([127, 0, 0, 1], port));
    let mut incoming = TcpStream::connect(served).expect("let through");
    running.deny(&[Deny::Network, Deny::Ptrace, Deny::Privilege]).expect("the map is ours");
    job.tell("go on");
    let late = TcpStream::connect_timeout(&served, Duration::from_secs(1));
    assert_eq!(late.map(drop).map_err(|error| error.kind()), Err(ErrorKind::TimedOut));
    for stream in [&mut outgoing, &mut incoming] {
        stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a time");
        let read = stream.read(&mut word).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::WouldBlock), "neither bytes nor an end gets through");
    }
    udp.set_nonblocking(true).expect("a flag");
    assert_eq!(udp.recv(&mut word).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    assert_eq!(job.end(), Some(0), "1: it sent a datagram, 2: it accepted");
    Recorded::collect(running, from);
}

/// Questions by each way that there is: one `sendto`, one connected and sent, one over IPv6, a malformed one, all to ports where nobody listens, and
/// one over TCP.
const ASKS: &str = r#"
import socket, struct
def question(name, qtype):
    labels = b"".join(bytes([len(part)]) + part for part in name.split(b"."))
    return struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", qtype, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(question(b"www.Example.org", 1), ("127.0.0.1", 53))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.connect(("127.0.0.1", 53))
c.send(question(b"connected.example.org", 16))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.sendto(question(b"six.example.org", 28), ("::1", 53))
s.sendto(b"\xff" * 700, ("127.0.0.1", 53))
s.sendto(question(b"elsewhere.example.org", 1), ("127.0.0.1", 54))
server = socket.create_server(("127.0.0.9", 53))
tcp = socket.create_connection(("127.0.0.9", 53)); text = question(b"tcp.example.org", 16)
tcp.sendall(struct.pack(">H", len(text)) + text)
"#;

#[test]
fn questions_to_name_servers_are_told_with_their_bytes() {
    let Some(cgroup) = Cgroup::new() else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let (probes, _) = Probes::load(Level::Default);
    let job = cgroup.run(&["/usr/bin/python3", "-c", ASKS]);
    let (to, from) = channel();
    let running = probes.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    assert_eq!(job.go(), Some(0));
    let recorded = Recorded::collect(running, from);

    let dns = |address: &str, bytes, qname: &str, qtype| {
        let (address, qname, tcp) = (inet(address.to_owned()), qname.to_owned(), address.contains(".9:"));
        What::Dns { address, bytes, qname, qtype, tcp }
    };
    let asked: Vec<_> = recorded.events.iter().filter(|event| matches!(event.what, What::Dns { .. })).collect();
    let wanted = [
        dns("inet:127.0.0.1:53", 33, "www.Example.org", 1),
        dns("inet:127.0.0.1:53", 39, "connected.example.org", 16),
        dns("inet6:[::1]:53", 33, "six.example.org", 28),
        dns("inet:127.0.0.1:53", 700, "", 0),
        dns("inet:127.0.0.9:53", 35, "tcp.example.org", 16),
    ];
    assert_eq!(asked.iter().map(|event| &event.what).collect::<Vec<_>>(), wanted.iter().collect::<Vec<_>>());
    let own = recorded.find(|what| matches!(what, What::Exec { .. }));
    for event in asked {
        assert_eq!((event.pid, event.ppid, event.comm.as_str()), (own.pid, own.ppid, "python3"));
    }
}

/// What each kind of call gives, once with every switch and once more after each line that it is told.
const SWITCHED: &str = r#"
import os, socket, sys
port, udp = int(sys.argv[1]), int(sys.argv[2])
bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); bound.connect(("127.0.0.1", udp))
def connect():
    socket.create_connection(("127.0.0.1", port)).close()
def connect6():
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::1", 9))
def bind():
    socket.socket().bind(("127.0.0.1", 0))
def bind6():
    socket.socket(socket.AF_INET6).bind(("::1", 0))
def sendmsg():
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", udp))
def sendmsg6():
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", ("::1", 9))
def devices():
    os.close(os.open("/dev/kmsg", os.O_RDONLY))
def left():
    for name in ["null", "zero", "full", "random", "urandom", "ptmx"]:
        os.close(os.open("/dev/" + name, os.O_RDWR if name != "full" else os.O_RDONLY))
def connected():
    bound.send(b"x")
for line in iter(sys.stdin.readline, "end\n"):
    refused = []
    for call in [connect, connect6, bind, bind6, sendmsg, sendmsg6, devices, left, connected]:
        try:
            call()
        except PermissionError:
            refused.append(call.__name__)
        except ConnectionRefusedError:
            pass
    print(" ".join(refused) or "none", file=open(sys.argv[3], "a"), flush=True)
"#;

/// A switch refuses its own kind of call, over both versions of the protocol, and takes nothing that is there.
#[test]
fn each_switch_refuses_its_own_calls_alone() {
    let Some(cgroup) = Cgroup::new() else {
        apex_tests::skip!("no cgroup v2 directory that we may write to");
    };
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
    let (tcp, udp) = (tcp.expect("loopback"), udp.expect("loopback"));
    let ports = [tcp.local_addr().expect("bound").port(), udp.local_addr().expect("bound").port()];
    let dir = apex_tests::TempDir::new();
    let told = dir.at("told");
    let mut job =
        cgroup.run(&["/usr/bin/python3", "-c", SWITCHED, &ports[0].to_string(), &ports[1].to_string(), &told]);
    let (to, from) = channel();
    let running =
        Probes::load(Level::Default).0.expect("families").start(cgroup.sandbox(0), to).expect("root may attach");
    job.start_with_input();
    let turns: [(&[Deny], &str); 7] = [
        (&[], "none"),
        (&[Deny::Connect], "connect connect6"),
        (&[Deny::Bind], "bind bind6"),
        (&[Deny::Sendmsg], "sendmsg sendmsg6"),
        (&[Deny::Devices], "devices"),
        (&[Deny::Bind, Deny::Devices], "bind bind6 devices"),
        (&[], "none"),
    ];
    for (turn, (denied, expected)) in turns.iter().enumerate() {
        running.deny(denied).expect("the map is ours");
        job.tell("go on");
        let end = std::time::Instant::now() + Duration::from_secs(30);
        let line = loop {
            let text = std::fs::read_to_string(&told).unwrap_or_default();
            if let Some(line) = text.lines().nth(turn).filter(|_| text.ends_with('\n')) {
                break line.to_owned();
            }
            assert!(std::time::Instant::now() < end, "it tells nothing of turn {turn}");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(line, *expected, "{denied:?}");
    }
    job.tell("end");
    assert_eq!(job.end(), Some(0));
    Recorded::collect(running, from);
}
