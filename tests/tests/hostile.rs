//! Hostile and broken surroundings: what a bind source turns out to be, policy files that are none, disks that are full.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use apex_tests::attack::Abi;
use apex_tests::sandbox::exit_code;
use apex_tests::{APEX_FAILED, Mode, Sandbox, TempDir, armed, as_root, leaks, skip};
use nix::fcntl::RenameFlags;
use nix::sys::stat::Mode as Bits;

const SECRET: &str = "the secret";

/// The start is refused with these words, and nothing of it stays.
#[track_caller]
fn expect_refused(sandbox: &Sandbox, words: &[&str]) {
    let output = sandbox.run(&[Abi::X64.program(), "exit", "0"]).expect_refusal(words);
    sandbox.expect_nothing_left(&output);
}

#[test]
fn a_source_that_is_missing() {
    let dir = TempDir::new();
    expect_refused(&armed!().ro(&dir.at("none"), "/tmp/data"), &["none", "does not exist"]);
    expect_refused(&armed!().rw(&dir.at("none/deeper"), "/tmp/data"), &["none/deeper"]);
    assert_eq!(dir.listing(), [""; 0], "a missing source was made");
}

#[test]
fn a_source_that_is_a_dangling_link() {
    let dir = TempDir::new();
    symlink(dir.at("none"), dir.at("link")).expect("we own it");
    expect_refused(&armed!().ro(&dir.at("link"), "/tmp/data"), &["link"]);
    symlink("round", dir.at("round")).expect("we own it");
    expect_refused(&armed!().ro(&dir.at("round"), "/tmp/data"), &["round"]);
    assert_eq!(dir.listing(), ["link", "round"]);
}

/// Nobody writes to it: opening it must not wait for somebody who does.
#[test]
fn a_source_that_is_a_fifo() {
    let dir = TempDir::new();
    nix::unistd::mkfifo(Path::new(&dir.at("fifo")), Bits::S_IRWXU).expect("we own it");
    let sandbox = armed!().ro(&dir.at("fifo"), "/tmp/fifo");
    let output = sandbox.run(&[Abi::X64.program(), "exit", "0"]);
    assert!(output.code == 0 || (output.code == APEX_FAILED && output.err().contains("fifo")), "{output:?}");
    sandbox.expect_nothing_left(&output);
}

#[test]
fn a_source_with_a_file_in_the_middle() {
    let dir = TempDir::new();
    let file = dir.file("file", "plain");
    expect_refused(&armed!().ro(&format!("{file}/below"), "/tmp/data"), &["file/below"]);
}

/// A link in the middle is followed once, before the start; what is granted is what it led to then.
#[test]
fn a_source_through_a_link_in_the_middle() {
    let dir = TempDir::new();
    dir.file("real/data/name", "right");
    dir.file("other/data/name", SECRET);
    symlink("real", dir.at("link")).expect("we own it");
    let mut session = armed!().ro(&dir.at("link/data"), "/tmp/data").session();
    assert_eq!(session.allowed("read /tmp/data/name"), "right");
    fs::remove_file(dir.at("link")).expect("we own it");
    symlink("other", dir.at("link")).expect("we own it");
    assert_eq!(session.allowed("read /tmp/data/name"), "right", "the grant followed the link");
    session.finish().expect_code(0);
}

/// Another user's link, in a directory where everybody may make one (as /tmp is), leads root's grant to a secret: what it gets is
/// never the file of a third one that its caller could not have read.
#[test]
fn a_source_that_is_a_link_of_another_user() {
    if !as_root() {
        skip!("only root can make a link of another user");
    }
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).expect("we own it");
    let secret = dir.file("kept/secret", SECRET);
    symlink(&secret, dir.at("link")).expect("we own it");
    lchown(dir.at("link"), Some(4242), Some(4242)).expect("we are root");
    // As the kernel's protected_symlinks does for every program of the host, where it is on.
    let is_protected = fs::read_to_string("/proc/sys/fs/protected_symlinks").is_ok_and(|text| text.trim() == "1");
    let sandbox = armed!().ro(&dir.at("link"), "/tmp/data");
    let output = sandbox.run(&[Abi::X64.program(), "read", "/tmp/data"]);
    let reached = output.out().contains(SECRET);
    assert!(!reached || !is_protected, "a stranger's link in a sticky directory was followed");
    assert!(reached || output.code == APEX_FAILED, "{output:?}");
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Exchanges two names for as long as `work` lasts.
fn swapping<T>(one: &str, two: &str, work: impl FnOnce() -> T) -> T {
    let (one, two) = (CString::new(one).expect("no NUL"), CString::new(two).expect("no NUL"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let here = nix::fcntl::AT_FDCWD;
            while !stop.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(here, one.as_c_str(), here, two.as_c_str(), RenameFlags::RENAME_EXCHANGE)
                    .expect("both are ours");
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        // Also when an assertion in `work` fails: the scope waits for its threads.
        let _stop = Stop(&stop);
        work()
    })
}

/// The granted name is exchanged for a link to the secret, over and over, while sandboxes start: each gets the granted directory
/// or an error. The secret's directory is denied, so that following the link is no excuse.
#[test]
fn a_source_that_is_exchanged_for_a_link() {
    let dir = TempDir::new();
    dir.file("granted/name", "right");
    dir.file("secrets/name", SECRET);
    symlink(dir.at("secrets"), dir.at("link")).expect("we own it");
    let sandbox = armed!().ro(&dir.at("granted"), "/tmp/data").deny(&dir.at("secrets"));
    let mut right = 0;
    swapping(&dir.at("granted"), &dir.at("link"), || {
        for _ in 0..40 {
            let output = sandbox.run(&[Abi::X64.program(), "read", "/tmp/data/name"]);
            assert!(!output.out().contains(SECRET), "the secret was reached: {}", output.out());
            right += u32::from(output.out().contains("right"));
            let explained = output.code != APEX_FAILED || output.err().contains("apex-run: ");
            assert!(explained, "no words: {output:?}");
            sandbox.expect_nothing_left(&output);
        }
    });
    println!("{right} of 40 starts got the directory");
}

/// The same with the directory above, whose other self holds a directory of the same name.
#[test]
fn a_directory_above_the_source_is_exchanged() {
    let dir = TempDir::new();
    dir.file("one/root/name", "right");
    dir.file("one/root/second", "right");
    dir.file("two/root/name", "other");
    dir.file("two/root/second", "other");
    let sandbox = armed!().ro(&dir.at("one/root"), "/tmp/data");
    swapping(&dir.at("one"), &dir.at("two"), || {
        for _ in 0..20 {
            // Who is not root opens the path again inside: what is another one by then is refused.
            let mut session = match sandbox.session_or_refusal() {
                Ok(session) => session,
                Err(words) => {
                    assert!(words.contains("was replaced while the sandbox was being built"), "{words}");
                    continue;
                }
            };
            let first = session.allowed("read /tmp/data/name");
            for _ in 0..10 {
                assert_eq!(session.allowed("read /tmp/data/second"), first, "one start, two directories");
            }
            session.finish().expect_code(0);
        }
    });
}

/// A denied name that is exchanged for another while sandboxes start.
#[test]
fn a_denied_file_that_is_exchanged_during_starts() {
    let dir = TempDir::new();
    dir.file("data/secret", SECRET);
    dir.file("data/other", "other");
    let sandbox = armed!().ro(&dir.at("data"), "/tmp/data").deny(&dir.at("data/secret"));
    swapping(&dir.at("data/secret"), &dir.at("data/other"), || {
        for _ in 0..20 {
            let output = sandbox.run(&[Abi::X64.program(), "read", "/tmp/data/secret"]);
            // Between the exchange and the launcher's wake-up the name is open (docs/THREAT-MODEL.md), but never unnoticed.
            let answered = output.out().contains("read ok");
            assert!(!answered || output.code == 125, "the denied name was read unnoticed: {}", output.out());
            sandbox.expect_nothing_left(&output);
        }
    });
    // Which file was meant cannot be known; the names and their contents are unharmed.
    let mut texts = [dir.read("data/secret"), dir.read("data/other")];
    texts.sort();
    assert_eq!(texts, ["other", SECRET]);
}

/// A second name of a denied file that lies in a grant shows it: the name is denied, not the file. A rule for each name holds.
#[test]
fn hard_links_that_were_there_before() {
    let dir = TempDir::new();
    dir.file("data/secret", SECRET);
    fs::hard_link(dir.at("data/secret"), dir.at("data/second")).expect("we own it");
    let denied = || Some(Sandbox::with_attack()?.rw(&dir.at("data"), "/tmp/data").deny(&dir.at("data/secret")));
    let (Some(one), Some(both)) = (denied(), denied()) else {
        skip!("no C compiler with static libraries to build the attack program")
    };
    let mut session = one.session();
    session.refused("read /tmp/data/secret");
    assert_eq!(session.allowed("read /tmp/data/second"), SECRET);
    session.finish().expect_code(0);
    let mut session = both.deny(&dir.at("data/second")).session();
    for way in ["read", "write", "truncate", "unlink", "reopen_read"] {
        session.refused(&format!("{way} /tmp/data/secret"));
        session.refused(&format!("{way} /tmp/data/second"));
    }
    session.finish().expect_code(0);
    assert_eq!(dir.read("data/second"), SECRET);
}

/// A policy file that is refused; the words name the file, and the line where there is one.
#[track_caller]
fn expect_policy_refused(path: &str, words: &[&str]) {
    let sandbox = Sandbox::new().args(["--policy", path]);
    let output = sandbox.run(&["/usr/bin/true"]).expect_refusal(words);
    let text = output.err();
    let name = Path::new(path).file_name().expect("it has a name").to_string_lossy().into_owned();
    assert!(text.contains(&name), "the message does not name the file: {text}");
    assert!(text.len() < 4096, "a message of {} bytes", text.len());
    let harmless = |it: char| it == '\n' || !it.is_control();
    assert!(text.chars().all(harmless), "control characters reach the terminal: {text:?}");
    sandbox.expect_nothing_left(&output);
}

#[test]
fn malformed_policies_name_file_and_line() {
    let dir = TempDir::new();
    for (text, words) in [
        ("[filesystem]\nraed = [\"/usr\"]\n", ["policy.toml:2", "read"]),
        ("[filesystem]\n\nread = [\"/usr\"\n", ["policy.toml:", "TOML"]),
        ("[filesystm]\n", ["policy.toml:1", "filesystem"]),
        ("[resources]\nmemory = \"lots\"\n", ["policy.toml:2", "lots"]),
        ("[network]\nmode = 7\n", ["policy.toml:2", "mode"]),
        ("mode = \"isolated\"\n", ["policy.toml:1", "isolation"]),
        ("[syscalls]\nallow = [\"none-such\"]\n", ["policy.toml:2", "none-such"]),
        ("a = \"\u{1b}[31m", ["policy.toml:1", "TOML"]),
        ("\u{feff}[[[[[[[[", ["policy.toml:1", "TOML"]),
    ] {
        println!("{text:?}");
        expect_policy_refused(&dir.file("policy.toml", text), &words);
    }
}

#[test]
fn policies_that_are_no_text() {
    let dir = TempDir::new();
    fs::write(dir.at("binary"), [0x7f, b'E', b'L', b'F', 0, 0xff, 0xfe, 0x80, 0x1b, b'[']).expect("we own it");
    expect_policy_refused(&dir.at("binary"), &["UTF-8"]);
    dir.file("zeros", &"\0".repeat(64));
    expect_policy_refused(&dir.at("zeros"), &["TOML"]);
    fs::write(dir.at("huge"), "#\n".repeat(1 << 20)).expect("we own it");
    expect_policy_refused(&dir.at("huge"), &["1 MiB"]);
    dir.file("deep", &format!("a = {}", "[".repeat(100_000)));
    expect_policy_refused(&dir.at("deep"), &["TOML"]);
    dir.dir("directory");
    expect_policy_refused(&dir.at("directory"), &["regular file"]);
    expect_policy_refused(&dir.at("none"), &["no such file"]);
    nix::unistd::mkfifo(Path::new(&dir.at("fifo")), Bits::S_IRWXU).expect("we own it");
    expect_policy_refused(&dir.at("fifo"), &["regular file"]);
    expect_policy_refused("/dev/zero", &["regular file"]);
    if !as_root() {
        fs::set_permissions(dir.file("closed", ""), fs::Permissions::from_mode(0o000)).expect("we own it");
        expect_policy_refused(&dir.at("closed"), &["ermission"]);
    }
}

#[test]
fn policies_that_extend_each_other() {
    let dir = TempDir::new();
    dir.file("self.toml", "extends = [\"self.toml\"]\n");
    expect_policy_refused(&dir.at("self.toml"), &["circle", "self.toml:1"]);
    dir.file("a.toml", "# first\nextends = [\"b.toml\"]\n");
    dir.file("b.toml", "extends = [\"c.toml\"]\n");
    dir.file("c.toml", "\n\nextends = [\"a.toml\"]\n");
    expect_policy_refused(&dir.at("a.toml"), &["circle", "c.toml:3", "a.toml -> "]);
    for level in 0..40 {
        dir.file(&format!("l{level}.toml"), &format!("extends = [\"l{}.toml\"]\n", level + 1));
    }
    dir.file("l40.toml", "");
    Sandbox::new()
        .args(["--policy", &dir.at("l0.toml")])
        .run(&["/usr/bin/true"])
        .expect_refusal(&["more than", ".toml:1"]);
    dir.file("lost.toml", "\nextends = [\"nowhere.toml\"]\n");
    expect_policy_refused(&dir.at("lost.toml"), &["lost.toml:2", "nowhere.toml"]);
}

/// Runs a shell in namespaces of its own with a full file system of 64 kB at `$FULL`; its own words, and the exit code.
fn on_a_full_disk(script: &str) -> Option<(i32, String)> {
    in_own_mounts(&format!(
        "mount -t tmpfs -o size=64k,mode=777 full \"$FULL\" || exit 99; \
         dd if=/dev/zero of=\"$FULL/filler\" bs=4k count=64 2>/dev/null; {script}"
    ))
}

/// Whether root may grant what lies on a tmpfs: its owners can be translated since Linux 6.3.
fn tmpfs_translates_owners() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    !as_root() || (numbers.next(), numbers.next()) >= (Some(6), Some(3))
}

/// Runs a shell in a mount namespace of its own; `$@` starts a sandbox that may write to `$FULL`.
fn in_own_mounts(script: &str) -> Option<(i32, String)> {
    let dir = TempDir::new();
    let full = dir.dir("full");
    let mut sandbox = Sandbox::with_attack()?;
    sandbox = sandbox.arg("--rw").arg(format!("{full}:/tmp/data"));
    let plain = sandbox.command(&[Abi::X64.program()]);
    let mut args: Vec<String> = plain.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
    args.truncate(args.len() - 2);
    let mut command = Command::new("unshare");
    if !as_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(apex_tests::apex_run())
        .args(args);
    command.current_dir(dir.path()).env("FULL", &full).env("HOME", dir.path());
    let output = command.output().expect("unshare starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let code = exit_code(output.status);
    assert_ne!(code, 99, "no file system of our own: {text}");
    assert_eq!(leaks::processes(sandbox.mark()), [""; 0]);
    Some((code, text))
}

/// A cache that cannot be written only costs time.
#[test]
fn a_full_disk_beneath_the_cache() {
    if !tmpfs_translates_owners() {
        skip!("this kernel translates no owners on tmpfs");
    }
    let script = "export XDG_CACHE_HOME=\"$FULL\"; \"$@\" -- /tmp/attack/attack64 exit 7; code=$?; \
                  ls -A \"$FULL\"/apex/* 2>/dev/null | grep -v '^$' | grep '^\\.' && exit 98; exit $code";
    let Some((code, text)) = on_a_full_disk(script) else {
        skip!("no C compiler with static libraries to build the attack program")
    };
    assert_eq!(code, 7, "{text}");
}

/// Without the receipt that was asked for the command does not run.
#[test]
fn a_full_disk_beneath_the_receipt() {
    if !tmpfs_translates_owners() {
        skip!("this kernel translates no owners on tmpfs");
    }
    let script = "\"$@\" --receipt \"$FULL/receipt\" -- /tmp/attack/attack64 write /tmp/data/ran";
    let Some((code, text)) = on_a_full_disk(script) else {
        skip!("no C compiler with static libraries to build the attack program")
    };
    assert_eq!(code, APEX_FAILED, "{text}");
    assert!(text.contains("receipt") && text.contains("space"), "{text}");
    assert!(!text.contains("write "), "the command ran: {text}");
}

#[test]
fn a_full_disk_beneath_a_grant() {
    if !tmpfs_translates_owners() {
        skip!("this kernel translates no owners on tmpfs");
    }
    let script = "\"$@\" -- /tmp/attack/attack64 fill /tmp/data/new 1048576";
    let Some((code, text)) = on_a_full_disk(script) else {
        skip!("no C compiler with static libraries to build the attack program")
    };
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("fill ENOSPC"), "{text}");
}

/// Holding a denied name takes no block; where it is refused the start is, and the rule is not forgotten.
#[test]
fn a_full_disk_beneath_a_denied_name() {
    if !tmpfs_translates_owners() {
        skip!("this kernel translates no owners on tmpfs");
    }
    let script = "\"$@\" --deny \"$FULL/none\" -- /tmp/attack/attack64 create /tmp/data/none; code=$?; \
                  test -e \"$FULL/none\" && exit 98; exit $code";
    let Some((code, text)) = on_a_full_disk(script) else {
        skip!("no C compiler with static libraries to build the attack program")
    };
    assert!(code == APEX_FAILED || (code != 98 && text.contains("create E")), "{code}: {text}");
}

/// systemd shares every mount with whoever copies it (mount_namespaces(7)): a mask mounted in a sandbox must not appear on the host.
#[test]
fn a_host_that_shares_its_mounts_sees_none_of_ours() {
    let script = "mount --make-rshared / || exit 99; echo secret >\"$FULL/filler\"; cat /proc/self/mountinfo >\"$HOME/before\"; \
                  for mode in isolation development hybrid; do \
                  \"$@\" --mode $mode --deny \"$FULL/filler\" --deny \"$FULL/none\" -- /tmp/attack/attack64 exit 7; \
                  test $? = 7 || exit 97; done; \
                  test -e \"$FULL/none\" && exit 98; \
                  cat /proc/self/mountinfo >\"$HOME/after\"; diff \"$HOME/before\" \"$HOME/after\"";
    let Some((code, text)) = in_own_mounts(script) else {
        skip!("no C compiler with static libraries to build the attack program")
    };
    assert_eq!(code, 0, "{text}");
}

/// Fifty at once, each with its own directory and one shared: none sees another's, none fails, none leaves anything.
#[test]
fn fifty_at_once() {
    let shared = TempDir::new();
    let own: Vec<TempDir> = (0..50).map(|_| TempDir::new()).collect();
    let mut running = Vec::new();
    for (number, dir) in own.iter().enumerate() {
        dir.file("name", &number.to_string());
        let sandbox = armed!()
            .mode(Mode::Isolation)
            .ro(&dir.text(), "/tmp/own")
            .rw(&shared.text(), "/tmp/shared")
            .deny(&shared.at("secret"));
        running.push((sandbox.session(), sandbox, number));
    }
    for (session, _, number) in &mut running {
        assert_eq!(session.allowed("read /tmp/own/name"), number.to_string());
        session.allowed(&format!("create /tmp/shared/{number}"));
        session.refused("create /tmp/shared/secret");
    }
    for (session, sandbox, _) in running {
        let output = session.finish().expect_code(0);
        sandbox.expect_nothing_left(&output);
    }
    assert_eq!(shared.listing().len(), 50, "{:?}", shared.listing());
}

/// The launcher is killed at some moment of the start: whatever existed by then dies with it.
#[test]
fn a_launcher_killed_during_its_start() {
    let shared = TempDir::new();
    for turn in 0..50u64 {
        let sandbox = armed!().mode(Mode::Isolation).rw(&shared.text(), "/tmp/data").deny(&shared.at("secret"));
        let session = sandbox.start(&[Abi::X64.program(), "nap", "/tmp/lock"]);
        // Spread over the few milliseconds that a start takes; not a bound on anything.
        std::thread::sleep(Duration::from_micros(turn * 397 % 15_000));
        let pid = session.pid().unsigned_abs();
        drop(session);
        leaks::expect_none(sandbox.mark(), pid);
    }
    // What a killed launcher held of the host, the next one with the same rule gives back.
    let output = armed!().rw(&shared.text(), "/tmp/data").deny(&shared.at("secret")).attack(Abi::X64, &["exit", "0"]);
    output.expect_code(0);
    assert_eq!(shared.listing(), [""; 0], "a placeholder stays for ever");
}
