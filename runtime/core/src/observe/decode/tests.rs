use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::seccomp::Arch;

/// A caller in a directory, with memory by address and files by descriptor.
#[derive(Default)]
struct Invented {
    memory: BTreeMap<u64, Vec<u8>>,
    /// How often bytes were read.
    reads: usize,
}

const CWD: &str = "/home/job";
const DIR: &str = "/srv/data";

impl Invented {
    fn with(mut self, address: u64, bytes: &[u8]) -> Invented {
        self.memory.insert(address, bytes.to_vec());
        self
    }

    fn words(self, address: u64, words: &[u64]) -> Invented {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.with(address, &bytes)
    }

    fn halves(self, address: u64, words: &[u32]) -> Invented {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.with(address, &bytes)
    }
}

impl Caller for Invented {
    fn bytes(&mut self, address: u64, length: usize) -> Option<Vec<u8>> {
        self.reads += 1;
        let (start, block) = self.memory.range(..=address).next_back()?;
        let from = usize::try_from(address - start).ok()?;
        block.get(from..from.checked_add(length)?).map(<[u8]>::to_vec)
    }

    fn text(&mut self, address: u64) -> Option<Vec<u8>> {
        self.memory.get(&address).map(|text| text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
    }

    fn file(&mut self, fd: Option<i32>) -> Option<PathBuf> {
        match fd {
            None => Some(CWD.into()),
            Some(5) => Some(DIR.into()),
            Some(_) => None,
        }
    }

    fn process_of(&mut self, pidfd: i32) -> Option<i32> {
        (pidfd == 9).then_some(77)
    }

    fn own_pid(&mut self) -> Option<i32> {
        Some(2)
    }

    fn peer(&mut self, fd: i32) -> Option<(Address, bool)> {
        let server = "inet:192.0.2.53:53".parse().ok()?;
        matches!(fd, 6 | 7).then_some((server, fd == 7))
    }
}

fn decoded(abi: Abi, name: &str, args: &[u64], mut caller: Invented) -> Result<Vec<What>, Unreadable> {
    assert!(abi.call_number(name).is_some(), "{} has no {name}", abi.name());
    let mut registers = [0; 6];
    registers[..args.len()].copy_from_slice(args);
    let mut events = Vec::new();
    decode(&Call { abi, name, args: registers }, &mut caller, &mut events).map(|()| events)
}

#[track_caller]
fn check(name: &str, args: &[u64], caller: Invented, wanted: What) {
    assert_eq!(decoded(Abi::X86_64, name, args, caller), Ok(vec![wanted]));
}

#[track_caller]
fn check_nothing(name: &str, args: &[u64]) {
    assert_eq!(decoded(Abi::X86_64, name, args, Invented::default()), Ok(Vec::new()));
}

fn open(path: &str, access: Access, create: bool, truncate: bool) -> What {
    What::Open { path: path.to_owned(), access, create, truncate }
}

const AT_FDCWD: u64 = -100i64 as u64;
const INET: &[u8] = b"\x02\0\0\x50\xc0\0\x02\x01\0\0\0\0\0\0\0\0";

fn inet() -> Address {
    "inet:192.0.2.1:80".parse().unwrap()
}

#[test]
fn files_are_named_from_where_they_start() {
    let text = || Invented::default().with(8, b"notes/./a\0").with(64, b"/etc/x\0").with(96, b"\0");
    check("open", &[8, 0], text(), open("/home/job/notes/a", Access::Read, false, false));
    check("openat", &[AT_FDCWD, 8, 0o101], text(), open("/home/job/notes/a", Access::Write, true, false));
    check("openat", &[5, 8, 0o1002], text(), open("/srv/data/notes/a", Access::Write, false, true));
    // A directory that cannot be told leaves the path as it was given.
    check("openat", &[6, 8, 0], text(), open("notes/./a", Access::Read, false, false));
    check("openat", &[6, 64, 0o10_000_000], text(), open("/etc/x", Access::Look, false, false));
    check("creat", &[64, 0], text(), open("/etc/x", Access::Write, true, true));
    check("ftruncate", &[5, 0], text(), open(DIR, Access::Write, false, true));
    check("openat", &[5, 8, 0o20_200_002], text(), open("/srv/data/notes/a", Access::Write, true, false));
    check("truncate", &[64, 0], text(), open("/etc/x", Access::Write, false, true));
    check(
        "openat2",
        &[5, 8, 128, 24],
        text().words(128, &[0o102, 0, 0]),
        open("/srv/data/notes/a", Access::Write, true, false),
    );
    let own = |text: &str| text.to_owned();
    check("mkdirat", &[5, 8, 0], text(), What::Mkdir { path: own("/srv/data/notes/a") });
    check("unlinkat", &[AT_FDCWD, 64, 0x200], text(), What::Unlink { path: own("/etc/x") });
    check("rename", &[8, 64], text(), What::Rename { from: own("/home/job/notes/a"), to: own("/etc/x") });
    check(
        "renameat2",
        &[5, 8, AT_FDCWD, 64, 0],
        text(),
        What::Rename { from: own("/srv/data/notes/a"), to: own("/etc/x") },
    );
    check("linkat", &[5, 8, AT_FDCWD, 64, 0], text(), What::Link { from: own("/srv/data/notes/a"), to: own("/etc/x") });
    check("symlinkat", &[8, 5, 64], text(), What::Symlink { target: own("notes/./a"), path: own("/etc/x") });
    check("fchmodat", &[5, 8, 0o104755], text(), What::Chmod { path: own("/srv/data/notes/a"), mode: 0o4755 });
    check("fchmod", &[5, 0o600], text(), What::Chmod { path: own(DIR), mode: 0o600 });
    check("fchownat", &[5, 96, 7, 8, 0x1000], text(), What::Chown { path: own(DIR), owner: 7, group: 8 });
    check(
        "lchown",
        &[64, u64::from(u32::MAX), 8],
        text(),
        What::Chown { path: own("/etc/x"), owner: u32::MAX, group: 8 },
    );
}

#[test]
fn addresses_are_read_wherever_a_call_has_them() {
    let memory = || Invented::default().with(64, INET).words(256, &[64, 16, 0, 0, 0, 0, 0]);
    check("socket", &[2, 0o2000001, 6], memory(), What::Socket { family: 2, kind: 1, protocol: 6 });
    check("connect", &[3, 64, 16], memory(), What::Connect { address: inet() });
    check("bind", &[3, 64, 16], memory(), What::Bind { address: inet() });
    check("bind", &[3, 64, 0], memory(), What::Bind { address: Address::Unnamed });
    check("sendto", &[3, 1, 40, 0, 64, 16], memory(), What::Send { address: inet(), bytes: 40 });
    check("sendmsg", &[3, 256, 0], memory(), What::Send { address: inet(), bytes: 0 });
    check_nothing("sendto", &[3, 1, 40, 0, 0, 0]);
    assert_eq!(decoded(Abi::X86_64, "connect", &[3, 4096, 16], memory()), Err(Unreadable));
}

#[test]
fn many_datagrams_are_told_once_for_each_address() {
    let mut other = INET.to_vec();
    other[3] = 0x51;
    let header = |name| [name, 16, 0, 0, 0, 0, 0, 0];
    let headers: Vec<u64> = [64, 64, 128].into_iter().flat_map(header).collect();
    let memory = Invented::default().with(64, INET).with(128, &other).words(256, &headers);
    let sent = decoded(Abi::X86_64, "sendmmsg", &[3, 256, 3, 0], memory).unwrap();
    let send = |address: &str| What::Send { address: address.parse().unwrap(), bytes: 0 };
    assert_eq!(sent, [send("inet:192.0.2.1:80"), send("inet:192.0.2.1:81")]);
}

#[test]
fn a_datagram_of_many_parts_is_read_only_where_it_may_be_a_question() {
    let check = |name: u64, length: u64, wanted: usize| {
        let parts = [2048, 20].repeat(8);
        let memory = Invented::default().with(64, INET).with(128, b"\x01\0/run/log\0").with(2048, &[0; 20]);
        let mut caller = memory.words(256, &[name, length, 512, 8, 0, 0, 0]).words(512, &parts);
        let call = Call { abi: Abi::X86_64, name: "sendmsg", args: [3, 256, 0, 0, 0, 0] };
        let mut events = Vec::new();
        assert_eq!(decode(&call, &mut caller, &mut events), Ok(()));
        assert_eq!(caller.reads, wanted, "{events:?}");
        let sent: Vec<bool> = events.iter().map(|what| matches!(what, What::Send { bytes: 160, .. })).collect();
        assert_eq!(sent, vec![true; usize::from(name != 0)]);
    };
    // Header, name, list of parts.
    check(64, 16, 3);
    check(128, 11, 3);
    check(0, 0, 2 + 8);
}

const QUESTION: &[u8] = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03org\0\0\x10\0\x01";

fn asked(address: &str, bytes: usize, tcp: bool) -> What {
    let (address, qname) = (address.parse().unwrap(), "www.example.org".to_owned());
    What::Dns { address, bytes: bytes as u64, qname, qtype: 16, tcp }
}

#[test]
fn questions_are_told_by_whatever_call_they_go() {
    let bytes = QUESTION.len();
    let to_server = [&[2, 0, 0, 53, 127, 0, 0, 1], &[0; 8][..]].concat();
    let memory = || Invented::default().with(64, &to_server).with(1024, QUESTION);
    let length = bytes as u64;
    let tell = |name: &str, args: &[u64], memory| decoded(Abi::X86_64, name, args, memory).unwrap();
    let send = || What::Send { address: "inet:127.0.0.1:53".parse().unwrap(), bytes: length };
    let own = || asked("inet:127.0.0.1:53", bytes, false);
    assert_eq!(tell("sendto", &[3, 1024, length, 0, 64, 16], memory()), [send(), own()]);
    let peers = || asked("inet:192.0.2.53:53", bytes, false);
    assert_eq!(tell("sendto", &[6, 1024, length, 0, 0, 0], memory()), [peers()]);
    // A socket without a peer, and one whose peer gets no question.
    assert_eq!(tell("sendto", &[3, 1024, length, 0, 0, 0], memory()), []);
    assert_eq!(tell("sendto", &[6, 1024, 9, 0, 0, 0], memory()), []);

    // The length that TCP has in front, as a part of its own.
    let memory = || memory().with(2048, &[0, length as u8]).words(4096, &[0, 0, 8192, 2, 0, 0, 0, 0]);
    let memory = || memory().words(8192, &[2048, 2, 1024, length]);
    assert_eq!(tell("sendmsg", &[7, 4096, 0], memory()), [asked("inet:192.0.2.53:53", bytes + 2, true)]);
    assert_eq!(tell("sendmmsg", &[7, 4096, 1, 0], memory()), [asked("inet:192.0.2.53:53", bytes + 2, true)]);
    // Parts that are not there are the call's own failure.
    let absent = Invented::default().words(4096, &[0, 0, 8192, 2, 0, 0, 0, 0]);
    assert_eq!(tell("sendmsg", &[7, 4096, 0], absent), []);
}

#[test]
fn the_i386_door_to_sockets_is_opened() {
    let memory =
        || Invented::default().with(64, INET).halves(512, &[3, 64, 16, 0]).halves(640, &[64, 16, 0, 0, 0, 0, 0]);
    assert_eq!(decoded(Abi::I386, "socketcall", &[3, 512], memory()), Ok(vec![What::Connect { address: inet() }]));
    let indirect = memory().halves(768, &[3, 640, 0]);
    assert_eq!(
        decoded(Abi::I386, "socketcall", &[16, 768], indirect),
        Ok(vec![What::Send { address: inet(), bytes: 0 }])
    );
    assert_eq!(decoded(Abi::I386, "socketcall", &[9, 512], memory()), Ok(Vec::new()));
}

#[test]
fn arguments_are_read_to_their_end_or_their_bound() {
    let run = |count: usize| {
        let pointers: Vec<u64> = std::iter::repeat_n(64, count).chain([0]).collect();
        let memory = Invented::default().with(8, b"/bin/x\0").with(64, b"a\0").words(4096, &pointers);
        decoded(Abi::X86_64, "execve", &[8, 4096, 0], memory).unwrap()
    };
    let program = |count, cut| [What::program("/bin/x".to_owned(), vec!["a".to_owned(); count], cut)];
    assert_eq!(run(0), program(0, false));
    assert_eq!(run(EXEC_ARGS_MAX), program(EXEC_ARGS_MAX, false));
    assert_eq!(run(EXEC_ARGS_MAX + 1), program(EXEC_ARGS_MAX, true));
    // The list, or what it points to, is not there.
    let memory = || Invented::default().with(8, b"/bin/x\0").words(4096, &[64]);
    assert_eq!(decoded(Abi::X86_64, "execve", &[8, 9999, 0], memory()), Ok(program(0, false).into()));
    assert_eq!(decoded(Abi::X86_64, "execve", &[8, 4096, 0], memory()), Ok(program(0, true).into()));
}

#[test]
fn privilege_is_read_from_registers_and_memory() {
    let none = Invented::default;
    let own = |text: &str| text.to_owned();
    check("setresuid", &[0, 0, 0], none(), What::SetIds { call: own("setresuid"), id: 0 });
    check("unshare", &[0x1000_0400], none(), What::Namespace { call: own("unshare"), flags: 0x1000_0000 });
    check_nothing("unshare", &[0x400]);
    check("setns", &[3, 0x4000_0000], none(), What::Namespace { call: own("setns"), flags: 0x4000_0000 });
    check("clone", &[0x2000_0091, 0], none(), What::Namespace { call: own("clone"), flags: 0x2000_0000 });
    check_nothing("clone", &[0x11, 0]);
    check(
        "clone3",
        &[64, 88],
        none().words(64, &[0x1000_0080]),
        What::Namespace { call: own("clone3"), flags: 0x1000_0080 },
    );
    check("ptrace", &[16, 40], none(), What::Ptrace { call: own("ptrace"), request: 16, target: 40 });
    check("process_vm_writev", &[40], none(), What::Ptrace { call: own("process_vm_writev"), request: 0, target: 40 });
    check("bpf", &[5, 64], none(), What::Bpf { command: 5 });
    check("finit_module", &[3], none(), What::Module { call: own("finit_module") });
    check("memfd_create", &[64, 0], none().with(64, b"x\xff\0"), What::Memfd { name: own("x\u{fffd}") });
    let sets = none().halves(64, &[0x2008_0522, 0]).halves(128, &[1, 2, 3, 4, 5, 6]);
    check("capset", &[64, 128], sets, What::Capset { effective: 4 << 32 | 1 });
    let narrow = none().halves(64, &[0x1998_0330, 0]).halves(128, &[1, 2, 3]);
    check("capset", &[64, 128], narrow, What::Capset { effective: 1 });
    check(
        "mount",
        &[0, 64, 0],
        none().with(64, b"mnt\0"),
        What::Mount { call: own("mount"), target: own("/home/job/mnt") },
    );
    check("fsopen", &[64], none().with(64, b"tmpfs\0"), What::Mount { call: own("fsopen"), target: own("tmpfs") });
    check("fsmount", &[3], none(), What::Mount { call: own("fsmount"), target: String::new() });
    check("chroot", &[64], none().with(64, b"../up\0"), What::Mount { call: own("chroot"), target: own("/home/up") });
    check("reboot", &[1, 2], none(), What::Call { name: own("reboot"), args: [1, 2, 0, 0, 0, 0] });
}

#[test]
fn memory_becomes_executable_only_when_it_does() {
    let executable =
        |call: &str, address, writable| What::Executable { call: call.to_owned(), address, length: 4096, writable };
    let none = Invented::default;
    check("mprotect", &[8192, 4096, 5], none(), executable("mprotect", 8192, false));
    check("mmap", &[0, 4096, 7, 0x22], none(), executable("mmap", 0, true));
    check_nothing("mmap", &[0, 4096, 5, 2]);
    check_nothing("mprotect", &[8192, 4096, 3]);
    let old = none().halves(64, &[0, 4096, 4, 0x22, 0, 0]);
    assert_eq!(decoded(Abi::I386, "mmap", &[64], old), Ok(vec![executable("mmap", 0, false)]));
    let mut map = executable("mmap", 0, true);
    complete(&mut map, 0x7000);
    assert_eq!(map, executable("mmap", 0x7000, true));
    let mut protect = executable("mprotect", 8192, true);
    complete(&mut protect, 0);
    assert_eq!(protect, executable("mprotect", 8192, true));
}

#[test]
fn signals_to_others_are_told() {
    let to = |target, signal| What::Signal { target, signal };
    check("kill", &[40, 9], Invented::default(), to(40, 9));
    check("rt_tgsigqueueinfo", &[40, 41, 6], Invented::default(), to(40, 6));
    check("kill", &[-1i64 as u64, 9], Invented::default(), to(-1, 9));
    check("tgkill", &[40, 41, 6], Invented::default(), to(40, 6));
    check("pidfd_send_signal", &[9, 15], Invented::default(), to(77, 15));
    check_nothing("kill", &[2, 9]);
    check_nothing("tgkill", &[2, 3, 6]);
    check_nothing("kill", &[40, 0]);
}

#[test]
fn words_are_bounded_and_valid() {
    assert_eq!(words(b"plain"), "plain");
    assert_eq!(words(b"a\xffb"), "a\u{fffd}b");
    assert!(words(&vec![b'a'; 10_000]).len() == TEXT_BYTES_MAX);
    assert!(words(&vec![0xff; 10_000]).len() <= TEXT_BYTES_MAX);
    assert!(words("é".repeat(5000).as_bytes()).len() <= TEXT_BYTES_MAX);
}

#[test]
fn chosen_calls_are_told_with_their_registers() {
    let memory = || Invented::default().with(0, &[1; 4096]);
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for abi in [Some(arch.abi()), arch.compat_abi()].into_iter().flatten() {
            for name in CHOSEN.iter().filter(|name| abi.call_number(name).is_some()) {
                assert!(matches!(decoded(abi, name, &[], memory()).unwrap()[..], [What::Call { .. }]), "{name}");
            }
        }
    }
}

proptest! {
    /// Whatever stands in the registers and in memory, decoding ends and stays within its bounds.
    #[test]
    fn nothing_in_registers_or_memory_breaks_it(
        nr in 0u32..470,
        args in prop::array::uniform6(prop_oneof![0u64..600, any::<u64>()]),
        memory in prop::collection::vec(any::<u8>(), 0..600),
        wide in any::<bool>(),
    ) {
        let abi = if wide { Abi::X86_64 } else { Abi::I386 };
        if let Some(name) = abi.call_name(nr) {
            let mut caller = Invented::default().with(0, &memory).with(64, &memory);
            let mut events = Vec::new();
            let _ = decode(&Call { abi, name, args }, &mut caller, &mut events);
            prop_assert!(events.len() <= 16);
            for what in events {
                prop_assert!(serde_json::to_string(&what).is_ok());
            }
        }
    }
}

#[test]
fn looks_are_told_as_they_were_asked_for() {
    let look_of = |name: &str, args: [u64; 6], path: &[u8]| {
        let mut caller = Invented::default().with(0x100, path).words(0x200, &[0o400_000, 0, 0]);
        look(&Call { abi: Abi::X86_64, name, args }, &mut caller).expect("readable")
    };
    let expect = |path: &str, follow| Some(What::Look { path: path.to_owned(), follow });
    assert_eq!(look_of("stat", [0x100, 0, 0, 0, 0, 0], b"l/../x\0"), expect("/home/job/l/../x", true));
    assert_eq!(look_of("readlinkat", [5, 0x100, 0, 0, 0, 0], b"./l\0"), expect("/srv/data/l", false));
    assert_eq!(look_of("openat2", [5, 0x100, 0x200, 24, 0, 0], b"/l\0"), expect("/l", false));
    // A descriptor's own file, and what looks at nothing.
    assert_eq!(look_of("newfstatat", [5, 0x100, 0, 0x1000, 0, 0], b"\0"), None);
    assert_eq!(look_of("unlink", [0x100, 0, 0, 0, 0, 0], b"x\0"), None);
}
