//! Filters are loaded into children, and each answer is the kernel's.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use apex_core::seccomp::{Abi, ENOSYS};
use apex_sys::probe::{self, Call, Entry};
use apex_sys::process::{self, Ended};
use apex_sys::{net, signal};
use oci_spec::runtime::LinuxSeccompAction;

use super::*;

const SIGSYS: i32 = 31;
const EPERM: i64 = 1;

fn parse(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

/// A profile that allows all but what `syscalls` says.
fn lenient(syscalls: &str) -> LinuxSeccomp {
    parse(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{syscalls}]}}"#))
}

fn compiled(seccomp: &LinuxSeccomp) -> Compiled {
    compile(seccomp, None).unwrap()
}

fn nr(name: &str) -> u32 {
    Abi::X86_64.call_number(name).unwrap()
}

fn call(name: &str, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { entry: Entry::Native, nr: nr(name), args: all }
}

/// What the kernel answers: a result, or a negative errno.
fn answers(seccomp: &LinuxSeccomp, calls: &[Call]) -> Vec<i64> {
    probe::try_calls(compiled(seccomp).filter(), calls).unwrap()
}

#[track_caller]
fn check_refused(seccomp: &str, words: &str) {
    let error = compile(&parse(seccomp), None).expect_err("it is refused");
    let text = error.to_string();
    assert!(text.contains(words), "{text}");
}

/// How a child ends that loads the filter and calls getpgid(-1), which answers ESRCH. The child allocates nothing, so that other threads of
/// the tests may hold what they like.
fn end_of_child(program: &Compiled, handles_sigsys: bool) -> Ended {
    let getpgid = call("getpgid", &[u64::MAX]);
    let pid = probe::spawn(&mut |probing| {
        if handles_sigsys && signal::interrupts_calls(SIGSYS).is_err() {
            return 100;
        }
        if apex_sys::prctl::set_no_new_privs().is_err() || program.load().is_err() {
            return 101;
        }
        match probing.call(&getpgid) {
            Ok(_) => 0,
            Err(errno) => errno as i32,
        }
    });
    process::wait(pid.unwrap(), 0).unwrap().unwrap().1
}

#[track_caller]
fn check_action(action: &str, plain: Ended, with_handler: Ended) {
    let program = compiled(&lenient(&format!(r#"{{"names": ["getpgid"], {action}}}"#)));
    assert_eq!(end_of_child(&program, false), plain, "{action}");
    assert_eq!(end_of_child(&program, true), with_handler, "{action}");
}

#[test]
fn each_action_does_in_the_kernel_what_it_says() {
    let esrch = Ended::Code(3);
    let killed = Ended::Signal(SIGSYS);
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS"] {
        // Unlike a trap it cannot be handled.
        check_action(&format!(r#""action": "{action}""#), killed, killed);
    }
    let program = compiled(&lenient(r#"{"names": ["getpgid"], "action": "SCMP_ACT_TRAP"}"#));
    assert_eq!(end_of_child(&program, false), killed);
    assert!(matches!(end_of_child(&program, true), Ended::Code(_)), "a trap can be handled");
    check_action(r#""action": "SCMP_ACT_ERRNO""#, Ended::Code(1), Ended::Code(1));
    check_action(r#""action": "SCMP_ACT_ERRNO", "errnoRet": 95"#, Ended::Code(95), Ended::Code(95));
    // Without a tracer.
    check_action(r#""action": "SCMP_ACT_TRACE", "errnoRet": 7"#, Ended::Code(38), Ended::Code(38));
    check_action(r#""action": "SCMP_ACT_LOG""#, esrch, esrch);
    check_action(r#""action": "SCMP_ACT_ALLOW""#, esrch, esrch);
    let strict = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "syscalls": [
        {"names": ["exit_group", "write"], "action": "SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(end_of_child(&compiled(&parse(strict)), false), Ended::Code(13));
}

#[test]
fn actions_that_look_alike_are_told_apart_by_their_words() {
    let words = [
        (LinuxSeccompAction::ScmpActKill, 0),
        (LinuxSeccompAction::ScmpActKillThread, 0),
        (LinuxSeccompAction::ScmpActKillProcess, 0x8000_0000),
        (LinuxSeccompAction::ScmpActTrap, 0x0003_0000),
        (LinuxSeccompAction::ScmpActLog, 0x7ffc_0000),
        (LinuxSeccompAction::ScmpActTrace, 0x7ff0_0001),
    ];
    for (action, word) in words {
        let program = compiled(&lenient(&format!(r#"{{"names": ["getpgid"], "action": "{action}"}}"#)));
        let has = |k| program.filter().iter().any(|insn| insn.code == RET_K && insn.k == k);
        assert!(has(word) && has(0x7fff_0000), "{action}");
    }
}

/// Calls getpgid with an argument under one rule of two comparisons at most; a rule that holds answers 99.
#[track_caller]
fn check_args(args: &str, refused: &[u64], let_through: &[u64]) {
    let rule = r#"{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": "#;
    let profile = lenient(&format!("{rule}[{args}]}}"));
    let calls: Vec<Call> = refused.iter().chain(let_through).map(|arg| call("getpgid", &[*arg, *arg])).collect();
    let answers = answers(&profile, &calls);
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(*answer == -99, at < refused.len(), "{args}: {:?} answers {answer}", calls[at].args);
    }
}

fn arg(op: &str, value: u64) -> String {
    format!(r#"{{"index": 0, "op": "SCMP_CMP_{op}", "value": {value}}}"#)
}

#[test]
fn each_operator_compares_all_64_bits() {
    const WIDE: u64 = 1 << 40;
    check_args(&arg("EQ", WIDE + 5), &[WIDE + 5], &[5, WIDE, WIDE + 6]);
    check_args(&arg("NE", WIDE + 5), &[5, WIDE, WIDE + 6], &[WIDE + 5]);
    check_args(&arg("LT", WIDE + 5), &[0, 6, WIDE, WIDE + 4], &[WIDE + 5, WIDE + 6, 2 * WIDE]);
    check_args(&arg("LE", WIDE + 5), &[0, 6, WIDE + 5], &[WIDE + 6, 2 * WIDE]);
    check_args(&arg("GT", WIDE + 5), &[WIDE + 6, 2 * WIDE, u64::MAX], &[0, 6, WIDE + 5]);
    check_args(&arg("GE", WIDE + 5), &[WIDE + 5, 2 * WIDE], &[0, 6, WIDE + 4]);
    let masked =
        format!(r#"{{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": {}, "valueTwo": {}}}"#, WIDE + 0xf0, WIDE + 0x10);
    check_args(&masked, &[WIDE + 0x10, WIDE + 0x1f, 3 * WIDE + 0x10], &[0x10, WIDE + 0x30, WIDE]);
    // Without a second value nothing may be left under the mask.
    check_args(r#"{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 15}"#, &[0, 16, 240], &[1, 8, 17]);
}

#[test]
fn comparisons_of_several_arguments_hold_together_and_of_one_each_by_itself() {
    let both = format!(r#"{}, {{"index": 1, "op": "SCMP_CMP_LT", "value": 9}}"#, arg("GT", 5));
    check_args(&both, &[6, 8], &[5, 9, 100]);
    // As in runc: two rules.
    check_args(&format!("{}, {}", arg("EQ", 5), arg("EQ", 7)), &[5, 7], &[0, 6, 8]);
}

#[test]
fn several_rules_for_one_call_hold_each() {
    let rule = |errno: u32, arg: &str| {
        format!(r#"{{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": {errno}, "args": [{arg}]}}"#)
    };
    let profile = lenient(&format!("{}, {}", rule(70, &arg("EQ", 1 << 33)), rule(71, &arg("EQ", 1 << 34))));
    let calls = [1 << 33, 1 << 34, u64::MAX].map(|arg| call("getpgid", &[arg]));
    assert_eq!(answers(&profile, &calls), [-70, -71, -3]);
    // The same rule twice is one, as profiles are put together from parts.
    let twice = lenient(&format!("{0}, {0}", rule(70, &arg("EQ", 4))));
    assert_eq!(answers(&twice, &[call("getpgid", &[4])]), [-70]);
    let plain = |errno: u32| format!(r#"{{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": {errno}}}"#);
    let twice = lenient(&format!("{0}, {0}", plain(72)));
    assert_eq!(answers(&twice, &[call("getpgid", &[4])]), [-72]);
    // Of two for all arguments the first counts, as in libseccomp, also where libseccomp does not know the call.
    assert_eq!(answers(&lenient(&format!("{}, {}", plain(72), plain(73))), &[call("getpgid", &[4])]), [-72]);
    let later = |errno: u32| plain(errno).replace("getpgid", "mseal");
    assert_eq!(answers(&lenient(&format!("{}, {}", later(72), later(73))), &[call("mseal", &[4])]), [-72]);
}

#[test]
fn names_that_nobody_knows_are_skipped_and_told() {
    let profile = lenient(r#"{"names": ["no_such_call", "getpgid"], "action": "SCMP_ACT_ERRNO"}"#);
    assert_eq!(compiled(&profile).skipped(), ["no_such_call"]);
    assert_eq!(answers(&profile, &[call("getpgid", &[0])]), [-EPERM]);
}

/// Numbers above 500 are no calls of any kernel; the highest that a profile may name in these tests is far below.
const FUTURE: Call = Call { entry: Entry::Native, nr: 900, args: [0; 6] };
const FUTURE_I386: Call = Call { entry: Entry::Int80, nr: 900, args: [0; 6] };

fn strict(action: &str, names: &str, more: &str) -> LinuxSeccomp {
    parse(&format!(
        r#"{{"defaultAction": {action}, "syscalls": [{{"names": ["write", "exit_group", "getpgid"{names}], "action": "SCMP_ACT_ALLOW"}}]{more}}}"#
    ))
}

#[test]
fn what_is_newer_than_the_profile_answers_enosys() {
    let profile = strict(r#""SCMP_ACT_ERRNO""#, r#", "pidfd_open""#, r#", "architectures": ["SCMP_ARCH_X86"]"#);
    let calls = [
        FUTURE,
        FUTURE_I386,
        call("clone3", &[]),
        call("pidfd_open", &[u64::MAX]),
        call("io_uring_setup", &[]),
        call("getpid", &[]),
    ];
    let enosys = -i64::from(ENOSYS);
    // pidfd_open is 434: clone3 (435) is newer, io_uring_setup (425) is not.
    assert_eq!(answers(&profile, &calls), [enosys, enosys, enosys, -22, -EPERM, -EPERM]);
    // A default that kills does so only for what the profile could have named.
    let kills = strict(r#""SCMP_ACT_KILL_PROCESS""#, "", "");
    assert_eq!(answers(&kills, &[FUTURE]), [enosys]);
}

#[test]
fn a_lenient_or_an_enosys_default_gets_no_stub() {
    let traced = strict(r#""SCMP_ACT_TRACE", "defaultErrnoRet": 9"#, "", "");
    let has = |program: &Compiled, k: u32| program.filter().iter().any(|insn| insn.code == RET_K && insn.k == k);
    assert!(!has(&compiled(&traced), 0x0005_0026));
    let logged = strict(r#""SCMP_ACT_LOG""#, "", "");
    assert!(!has(&compiled(&logged), 0x0005_0026));
    let allowed = lenient(r#"{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO"}"#);
    assert!(!has(&compiled(&allowed), 0x0005_0026));
}

#[test]
fn calls_newer_than_libseccomp_are_held_by_number() {
    // libseccomp 2.5 ends at 452.
    assert!(libseccomp::ScmpSyscall::from_name("mseal").is_err(), "take a newer call for this test");
    let refused = lenient(r#"{"names": ["mseal"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}"#);
    assert_eq!(answers(&refused, &[call("mseal", &[])]), [-77]);
    let allowed = strict(r#""SCMP_ACT_ERRNO""#, r#", "mseal""#, "");
    let newer = Call { nr: nr("mseal") + 1, ..FUTURE };
    let older = Call { nr: nr("mseal") - 1, ..FUTURE };
    // The kernel judges it: no such flags.
    let call = call("mseal", &[0, 0, u64::MAX]);
    assert_eq!(answers(&allowed, &[call, newer, older]), [-22, -i64::from(ENOSYS), -EPERM]);
    let judged = |default: &str, action: &str| {
        format!(
            r#"{{"defaultAction": "{default}", "syscalls": [{{"names": ["mseal"], "action": "{action}",
            "args": [{{"index": 0, "op": "SCMP_CMP_EQ", "value": 1}}]}}]}}"#
        )
    };
    check_refused(&judged("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"), "refuse the call whole");
    assert!(compile(&parse(&judged("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")), None).is_ok());
}

#[test]
fn the_native_abi_is_always_there_and_others_when_they_are_named() {
    let both = parse(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": [
        {"names": ["getpgid", "socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 88}]}"#,
    );
    let i386 = |nr| Call { entry: Entry::Int80, nr, args: [0; 6] };
    let x32 = Call { entry: Entry::Native, nr: nr("getpgid") | 0x4000_0000, args: [0; 6] };
    // getpgid, socket, getpid of i386.
    let calls = [call("getpgid", &[]), i386(132), i386(359), x32];
    assert_eq!(answers(&both, &calls), [-88, -88, -88, -88]);
    assert!(answers(&both, &[i386(20)])[0] > 0);
    // A call of an ABI that is not named kills.
    let native = lenient(r#"{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO"}"#);
    let error = probe::try_calls(compiled(&native).filter(), &[i386(20)]).expect_err("it is killed");
    assert!(error.to_string().contains("wait status"), "{error}");
    check_refused(r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PPC"]}"#, "SCMP_ARCH_PPC");
}

#[test]
fn what_does_not_fit_together_is_refused_with_words() {
    let rule =
        |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a", "syscalls": [{rule}]}}"#);
    check_refused(&rule(r#"{"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}"#), "the rule for read");
    check_refused(&rule(r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096}"#), "highest is 4095");
    check_refused(&rule(r#"{"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536}"#), "highest is 65535");
    check_refused(&rule(r#"{"names": [""], "action": "SCMP_ACT_ERRNO"}"#), "empty name");
    let sixth =
        r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}"#;
    check_refused(&rule(sixth), "arguments 0 to 5");
    check_refused(
        &rule(r#"{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}"#),
        "SCMP_ACT_NOTIFY cannot be used for the write syscall",
    );
    check_refused(&rule(r#"{"names": ["read", "sendmsg"], "action": "SCMP_ACT_NOTIFY"}"#), "for the sendmsg syscall");
    check_refused(r#"{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/a"}"#, "default action");
    check_refused(r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}"#, "listenerPath");
    check_refused(r#"{"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}"#, "defaultErrnoRet");
    let nobody =
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}"#;
    check_refused(nobody, "listenerPath");
    check_refused(&nobody.replacen('{', r#"{"listenerPath": "", "#, 1), "listenerPath");
    let unknown = serde_json::from_str::<LinuxSeccomp>(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_X"]}"#,
    );
    assert!(unknown.is_err());
}

#[test]
fn flags_reach_the_kernel_and_one_for_listeners_waits_for_a_listener() {
    let all = r#""flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;
    let rule = |action: &str| format!(r#""syscalls": [{{"names": ["getpgid"], "action": "{action}"}}]"#);
    let plain = parse(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", {all}, {}}}"#, rule("SCMP_ACT_ERRNO")));
    let program = compiled(&plain);
    assert_eq!(program.flags(), 0b111);
    assert_eq!(end_of_child(&program, false), Ended::Code(1));
    let notified = parse(&format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a", {all}, {}}}"#,
        rule("SCMP_ACT_NOTIFY")
    ));
    assert_eq!(compiled(&notified).flags(), 0b10_1111);
    assert_eq!(compiled(&lenient("")).flags(), 0);
}

#[test]
fn without_no_new_privs_root_may_load_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let program = compiled(&lenient(r#"{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO"}"#));
    let pid = probe::spawn(&mut |_| match program.load() {
        Ok(None) if !apex_sys::prctl::no_new_privs() => 0,
        Ok(_) => 1,
        Err(errno) => errno as i32,
    });
    assert_eq!(process::wait(pid.unwrap(), 0).unwrap().unwrap().1, Ended::Code(0));
}

#[test]
fn the_agent_gets_the_listener_and_answers_through_it() {
    let dir = Dir::new("agent");
    let path = dir.0.join("agent.sock");
    let agent = UnixListener::bind(&path).unwrap();
    let profile = parse(&format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": {path:?}, "listenerMetadata": "who", "syscalls": [
        {{"names": ["getpgid"], "action": "SCMP_ACT_NOTIFY"}}]}}"#
    ));
    let program = compiled(&profile);
    let (ours, theirs) = net::pair().unwrap();
    let getpgid = call("getpgid", &[u64::MAX]);
    let pid = probe::spawn(&mut |probing| {
        let loaded = apex_sys::prctl::set_no_new_privs().and_then(|()| program.load());
        let Ok(Some(listener)) = loaded else { return 101 };
        if net::send(theirs.as_fd(), b"l", &[listener.as_fd()]).is_err() {
            return 102;
        }
        drop(listener);
        i32::try_from(probing.call(&getpgid).unwrap_or(103)).unwrap_or(104)
    })
    .unwrap();
    let (_, mut fds) = net::receive(ours.as_fd(), &mut [0; 8]).unwrap();
    let fd = fds.pop().unwrap();
    // Longer than a socket takes at once, so that the agent has to read while it is sent.
    let long = "x".repeat(1 << 20);
    let record: crate::state::Record = serde_json::from_value(serde_json::json!({
        "ociVersion": "1.2.0", "id": "c1", "bundle": "/b", "rootfs": "/b/r", "created": "", "owner": 0, "pid": pid, "pidStarted": 1,
        "cgroup": null, "hooks": null, "annotations": { "long": long }, "hasOwnPidNamespace": true, "hasOwnMountNamespace": true,
    }))
    .unwrap();
    let state = crate::state::state(&record, crate::state::Status::Running);
    let agent_of = program.listener().unwrap();
    let (socket, message) = (agent_of.connect().unwrap(), agent_of.message(&state));
    let (json, mut fds) = std::thread::scope(|scope| {
        let sender = scope.spawn({
            let (message, fd) = (&message, fd.as_fd());
            move || {
                let sent = hand_over(&socket, message, fd);
                drop(socket);
                sent
            }
        });
        let (mut connection, _) = agent.accept().unwrap();
        let mut json = vec![0; 4096];
        let (size, fds) = net::receive(connection.as_fd(), &mut json).unwrap();
        json.truncate(size);
        connection.read_to_end(&mut json).unwrap();
        sender.join().unwrap().unwrap();
        (json, fds)
    });
    drop(fd);
    let told: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(told["state"]["annotations"]["long"], long);
    assert_eq!(told["fds"], serde_json::json!(["seccompFd"]));
    assert_eq!((&told["metadata"], &told["pid"]), (&serde_json::json!("who"), &serde_json::json!(pid)));
    let listener = fds.pop().unwrap();
    let notification = apex_sys::seccomp::receive(listener.as_fd()).unwrap();
    assert_eq!(notification.nr, i32::try_from(nr("getpgid")).unwrap());
    apex_sys::seccomp::send(listener.as_fd(), notification.id, apex_sys::seccomp::Reply::Return(42)).unwrap();
    assert_eq!(process::wait(pid, 0).unwrap().unwrap().1, Ended::Code(42));
    drop(agent);
    std::fs::remove_file(&path).unwrap();
    let error = program.listener().unwrap().connect().unwrap_err();
    assert!(error.to_string().contains("agent.sock"), "{error}");
}

/// A directory that is gone with its value.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("apex-oci-seccomp-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The file of one program, in a fresh cache.
fn filled(dir: &Dir) -> (CacheDir, LinuxSeccomp, PathBuf) {
    let cache = CacheDir::at(dir.0.join("cache"));
    let profile = lenient(r#"{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO"}"#);
    assert_eq!(compile(&profile, Some(&cache)).unwrap().origin(), Origin::Compiled);
    let files: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    (cache, profile, files.into_iter().next().unwrap())
}

#[test]
fn a_program_is_read_back_as_it_was_compiled() {
    let dir = Dir::new("hit");
    let (cache, profile, _) = filled(&dir);
    let cached = compile(&profile, Some(&cache)).unwrap();
    assert_eq!(cached.origin(), Origin::Cached);
    assert_eq!(cached.filter(), compiled(&profile).filter());
    let other = lenient(r#"{"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2}"#);
    assert_eq!(compile(&other, Some(&cache)).unwrap().origin(), Origin::Compiled);
}

#[track_caller]
fn check_distrusted(name: &str, spoil: impl Fn(&CacheDir, &PathBuf)) {
    let dir = Dir::new(name);
    let (cache, profile, file) = filled(&dir);
    spoil(&cache, &file);
    let program = compile(&profile, Some(&cache)).unwrap();
    assert_eq!(program.origin(), Origin::Compiled, "{name}");
    assert_eq!(program.filter(), compiled(&profile).filter());
}

#[test]
fn a_damaged_or_planted_program_is_not_loaded() {
    for at in [0, 31, 32, 40] {
        check_distrusted(&format!("flipped-{at}"), |_, file| {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[at] ^= 1;
            std::fs::write(file, bytes).unwrap();
        });
    }
    check_distrusted("short", |_, file| {
        let bytes = std::fs::read(file).unwrap();
        std::fs::write(file, &bytes[..bytes.len() - 8]).unwrap();
    });
    check_distrusted("empty", |_, file| std::fs::write(file, "").unwrap());
    check_distrusted("linked", |_, file| std::fs::hard_link(file, file.with_extension("second")).unwrap());
    check_distrusted("symlink", |_, file| {
        let moved = file.with_extension("moved");
        std::fs::rename(file, &moved).unwrap();
        symlink(&moved, file).unwrap();
    });
    check_distrusted("open", |_, file| {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    });
    check_distrusted("open-directory", |cache, _| {
        std::fs::set_permissions(cache.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    });
    check_distrusted("fifo", |_, file| {
        std::fs::remove_file(file).unwrap();
        nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRUSR).unwrap();
    });
    // The program of other rules under this name.
    check_distrusted("renamed", |cache, file| {
        let other = lenient(r#"{"names": ["setpgid"], "action": "SCMP_ACT_ERRNO"}"#);
        let before = std::fs::read(file).unwrap();
        compile(&other, Some(cache)).unwrap();
        let is_other = |path: &PathBuf| path != file;
        let mut files = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path());
        std::fs::rename(files.find(is_other).unwrap(), file).unwrap();
        assert_ne!(std::fs::read(file).unwrap(), before);
    });
    if nix::unistd::geteuid().is_root() {
        check_distrusted("foreign", |_, file| std::os::unix::fs::chown(file, Some(1234), None).unwrap());
        check_distrusted("foreign-directory", |cache, _| {
            std::os::unix::fs::chown(cache.path(), Some(1234), None).unwrap();
        });
    }
}

#[test]
fn an_ordinary_user_has_a_cache_of_their_own_or_none() {
    assert_eq!(CacheDir::locate(0, |_| None).unwrap().path(), "/run/apex/seccomp-oci");
    let env = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| "/run/user/7".into());
    assert_eq!(CacheDir::locate(7, env).unwrap().path(), "/run/user/7/apex/seccomp-oci");
    assert_eq!(CacheDir::locate(7, |_| None), None);
    assert_eq!(CacheDir::locate(7, |_| Some("here".into())), None);
}

/// As engines make them: some three hundred calls for three ABIs, and a few that are judged by arguments.
fn engine_profile() -> LinuxSeccomp {
    let calls = (0..452).filter(|nr| nr % 7 != 3).filter_map(|nr| Abi::X86_64.call_name(nr));
    let judged = ["personality", "socket", "clone", "clone3"];
    let names: Vec<_> = calls.filter(|name| !judged.contains(name)).collect();
    parse(&format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": [
        {{"names": {}, "action": "SCMP_ACT_ALLOW"}},
        {{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}}]}},
        {{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}}]}},
        {{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}}]}},
        {{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [
            {{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}}]}},
        {{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}}]}}"#,
        serde_json::to_string(&names).unwrap()
    ))
}

#[test]
fn a_profile_of_an_engine_is_short_and_fast_from_the_cache() {
    let dir = Dir::new("engine");
    let cache = CacheDir::at(dir.0.join("cache"));
    let profile = engine_profile();
    let begin = std::time::Instant::now();
    let program = compile(&profile, Some(&cache)).unwrap();
    let compiled_in = begin.elapsed();
    let mut hits: Vec<_> = (0..20)
        .map(|_| {
            let begin = std::time::Instant::now();
            assert_eq!(compile(&profile, Some(&cache)).unwrap().origin(), Origin::Cached);
            begin.elapsed()
        })
        .collect();
    hits.sort();
    println!("{} instructions, compiled in {compiled_in:?}, cached in {:?}", program.filter().len(), hits[2]);
    assert!(program.filter().len() < 1000, "{}", program.filter().len());
    let calls = [
        call("getpgid", &[u64::MAX]),
        call("personality", &[8]),
        call("personality", &[5]),
        call("socket", &[40, 1, 0]),
        call("clone3", &[]),
        call("unshare", &[u64::MAX]),
        FUTURE,
    ];
    let answers = probe::try_calls(program.filter(), &calls).unwrap();
    assert_eq!(answers[0], -3);
    assert!(answers[1] >= 0);
    assert_eq!(answers[2..5], [-1, -1, -38]);
    assert_eq!(answers[6], -38);
}
