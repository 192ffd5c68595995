//! The words of every refusal, as a person sees them.

use super::*;

/// Resolves `/job/job/p.toml` with this text.
#[track_caller]
fn check(text: &str, expected: &str) {
    check_files(&[("/job/job/p.toml", text)], expected);
}

#[track_caller]
fn check_files(list: &[(&str, &str)], expected: &str) {
    let inputs = Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
    same(&resolve(&inputs, &mut files(list)).expect_err("it must be refused"), expected);
}

#[track_caller]
fn same(error: &PolicyError, expected: &str) {
    assert_eq!(error.to_string(), expected);
}

#[track_caller]
fn check_flags(flags: Flags, expected: &str) {
    same(&resolve(&Inputs { flags, ..inputs() }, &mut files(&[])).expect_err("it must be refused"), expected);
}

#[test]
fn unknown_names() {
    check(
        "\n[filesystem]\nraed = []",
        "/job/job/p.toml:3: unknown key `raed`, did you mean `read`? (accepted here: `inherit`, `read`, `write`, `exec`, `names`, `hide`, `deny`, `tmpfs`, `proc`)",
    );
    check(
        "[filesistem]\nread = []",
        "/job/job/p.toml:1: unknown key `filesistem`, did you mean `filesystem`? (accepted here: `description`, `mode`, `level`, `extends`, `filesystem`, `network`, `syscalls`, `capabilities`, `resources`, `environment`, `identity`, `terminal`, `mailboxes`, `layers`, `ceiling`, `learned`)",
    );
    check(
        "[filesystem]\nread = [{ path = \"/x\", raeson = \"y\" }]",
        "/job/job/p.toml:2: unknown key `raeson`, did you mean `reason`? (accepted here: `path`, `dest`, `reason`, `optional`)",
    );
    check(
        "[network]\naccess = \"hots\"",
        "/job/job/p.toml:2: unknown value `hots`, did you mean `host`? (accepted here: `none`, `host`)",
    );
    check(
        "[layers]\nlandlok = \"required\"",
        "/job/job/p.toml:2: unknown value `landlok`, did you mean `landlock`? (accepted here: `userns`, `mountns`, `pidns`, `netns`, `ipcns`, `utsns`, `cgroupns`, `timens`, `capabilities`, `no-new-privs`, `seccomp`, `landlock`, `cgroup`, `rlimits`)",
    );
    check(
        "[layers]\nlandlock = \"maybe\"",
        "/job/job/p.toml:2: unknown value `maybe` (accepted here: `required`, `optional`, `off`)",
    );
    check(
        "[syscalls]\nallow = [\"files\",\n\"io-urnig\"]",
        "/job/job/p.toml:3: there is no system call group `io-urnig`, did you mean `io-uring`? (policies/syscalls.toml lists them)",
    );
    check(
        "extends = [\"profile:pyhton\"]",
        "/job/job/p.toml:1: there is no profile `pyhton`, did you mean `python`? (built in: `build`, `node`, `python`, `secrets`, `shell`, `static`; others are read from /home/u/.config/apex/profiles and /etc/apex/profiles)",
    );
}

#[test]
fn wrong_values() {
    check(
        "[resources]\nmemory = \"12Q\"",
        "/job/job/p.toml:2: invalid value: string \"12Q\", expected a size above zero such as \"512M\" (K, M, G, T: powers of 1024; no unit: bytes) or \"unlimited\"",
    );
    check(
        "[resources]\nmemory = 0",
        "/job/job/p.toml:2: invalid value: integer `0`, expected a size above zero such as \"512M\" (K, M, G, T: powers of 1024; no unit: bytes) or \"unlimited\"",
    );
    check(
        "[resources]\nmemory = true",
        "/job/job/p.toml:2: invalid type: boolean `true`, expected a size above zero such as \"512M\" (K, M, G, T: powers of 1024; no unit: bytes) or \"unlimited\"",
    );
    check(
        "[resources]\nwall_time = 10",
        "/job/job/p.toml:2: invalid value: integer `10`, expected a time above zero with its unit such as \"10m\" (ms, s, m, h, d) or \"unlimited\"",
    );
    check(
        "[resources]\ncpu = 1.5",
        "/job/job/p.toml:2: invalid type: floating point `1.5`, expected percent of one core as a whole number from 1 (200 is two cores) or \"unlimited\"",
    );
    check(
        "[resources]\ntmp_size = \"unlimited\"",
        "/job/job/p.toml:2: invalid value: string \"unlimited\", expected a finite size above zero such as \"64M\" (K, M, G, T: powers of 1024; no unit: bytes)",
    );
    check("[filesystem]\nread = \"/x\"", "/job/job/p.toml:2: invalid type: string \"/x\", expected a list in `[ ]`");
    check(
        "[filesystem]\nread = [5]",
        "/job/job/p.toml:2: invalid type: integer `5`, expected a path or a table `{ path, dest, reason, optional }`",
    );
    check("[filesystem]\nread = [{ dest = \"/x\" }]", "/job/job/p.toml:2: missing field `path`");
    check(
        "[filesystem]\nread = [{ path = \"/x\", dest = \"y\" }]",
        "/job/job/p.toml:2: path `y` is relative; write an absolute one, `~/...` or one with `${HOME}`, `${CWD}` and `${TMPDIR}`",
    );
    check(
        "[filesystem]\nread = [\"/a\", \"../x\"]",
        "/job/job/p.toml:2: path `../x` holds `..`; write the path that is meant without it",
    );
    check(
        "[filesystem]\ndeny = [{ path = \"/x\", optional = true }]",
        "/job/job/p.toml:2: `optional` means nothing in `deny`; remove it",
    );
    check(
        "[filesystem]\ntmpfs = [\"/\"]",
        "/job/job/p.toml:2: `/` is the root of the sandbox, which Apex builds; put the tmpfs beneath it",
    );
    check(
        "[identity]\nuid = -1",
        "/job/job/p.toml:2: invalid value: integer `-1`, expected an id from 0 to 4294967294",
    );
    check(
        "[identity]\nuid = 4294967295",
        "/job/job/p.toml:2: 4294967295 is not an id; write a number from 0 to 4294967294",
    );
    check(
        "[identity]\nhostname = \"a b\"",
        "/job/job/p.toml:2: `a b` is not a host name; write 1 to 64 letters, digits, `-` or `.`",
    );
    check(
        "[environment]\npass = [\"LC_*\"]",
        "/job/job/p.toml:2: `LC_*` is not the name of a variable; write each name by itself, without `=` or `*`",
    );
    check(
        "[capabilities]\nkeep = [\"net_raw\"]",
        "/job/job/p.toml:2: `net_raw` is not a capability; write its name as in capabilities(7), such as `CAP_NET_RAW`",
    );
    check("network = 5", "/job/job/p.toml:1: invalid type: integer `5`, expected the table `[network]`");
    check("layers = []", "/job/job/p.toml:1: invalid type: sequence, expected a table");
    check(
        "[network]\naccess = 5",
        "/job/job/p.toml:2: not a text, expected one of the words that this key takes, in quotes",
    );
    check("[environment.set]\nA = 1", "/job/job/p.toml:2: invalid type: integer `1`, expected a string");
    check("[network\n", "/job/job/p.toml:1: not valid TOML: unclosed table, expected `]`");
    check("[syscalls]\nallow = []\nallow = []", "/job/job/p.toml:3: not valid TOML: duplicate key");
    check(
        "mode = \"hybrid\"\n[ceiling]\n",
        "/job/job/p.toml:2: `[ceiling]` has no place here, only in mode files; remove it",
    );
}

#[test]
fn files_that_cannot_be_had() {
    check_files(&[], "--policy: cannot read policy `/job/job/p.toml`: there is no such file; give a path that exists");
    check(
        "extends = [\"base.toml\"]",
        "/job/job/p.toml:1: cannot read policy `/job/job/base.toml`: there is no such file; give a path that exists (a relative one starts at the directory of this file)",
    );
    check_files(
        &[("/job/job/p.toml", "extends = [\"a.toml\"]"), ("/job/job/a.toml", "\n\nextends = [\"./p.toml\"]")],
        "/job/job/a.toml:3: `extends` leads in a circle: /job/job/p.toml -> /job/job/a.toml -> /job/job/p.toml; remove one of these links",
    );
    let inputs = Inputs { profile: Some("../x".to_owned()), user_config: None, ..inputs() };
    same(
        &resolve(&inputs, &mut files(&[])).unwrap_err(),
        "--profile: there is no profile `../x` (built in: `build`, `node`, `python`, `secrets`, `shell`, `static`; others are read from /etc/apex/profiles)",
    );
}

#[test]
fn too_much_for_isolation() {
    check(
        "[network]\naccess = \"host\"",
        "/job/job/p.toml:2: asks for the network of the host, but no network can be given (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[syscalls]\ndefault = \"report\"",
        "/job/job/p.toml:2: asks for system calls to be `report` by default, but the widest default is `deny` (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[syscalls]\nallow = [\"bpf\"]",
        "/job/job/p.toml:2: asks for the system call group `bpf`, but it can never be allowed (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[syscalls]\ncompat = true",
        "/job/job/p.toml:2: asks for 32-bit programs, but only the ABI of the machine can be used (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[capabilities]\nkeep = [\"CAP_NET_RAW\"]",
        "/job/job/p.toml:2: asks for capability CAP_NET_RAW, but it cannot be kept (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[filesystem]\nread = [\"/\"]",
        "/job/job/p.toml:2: asks for `/`, but it contains `/proc`, of which nothing can be granted (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[filesystem]\nread = [{ path = \"/home/u\", dest = \"/proc/x\" }]",
        "/job/job/p.toml:2: asks for `/proc/x`, but nothing of `/proc` can be granted (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[filesystem]\nwrite = [\"/usr/local\"]",
        "/job/job/p.toml:2: asks for `/usr/local` writable, but nothing of `/usr` can be granted for writing (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[resources]\nmemory = \"unlimited\"",
        "/job/job/p.toml:2: asks for no limit for `memory`, but it must be finite (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[layers]\nseccomp = \"optional\"",
        "/job/job/p.toml:2: asks for layer seccomp to be optional, but a file cannot do that (`--optional` on the command line can) (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "[layers]\ncgroup = \"off\"",
        "/job/job/p.toml:2: asks for layer cgroup to be off, but it cannot be turned off (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check(
        "mode = \"development\"\n[layers]\nuserns = \"off\"",
        "/job/job/p.toml:3: layer userns cannot be off: no sandbox exists without it, in any mode; remove the rule",
    );
}

#[test]
fn flags_that_are_refused() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).into()).collect::<Vec<std::ffi::OsString>>();
    check_flags(
        Flags { ro: words(&["a:b"]), ..Flags::default() },
        "--ro: `b` is not a path inside the sandbox; write an absolute one after the last `:`",
    );
    check_flags(
        Flags { rw: words(&[""]), ..Flags::default() },
        "--rw: an empty path; name the file or directory that is meant",
    );
    check_flags(
        Flags { rw: words(&["/"]), ..Flags::default() },
        "--rw: asks for `/`, but it contains `/proc`, of which nothing can be granted (ceiling of mode isolation, modes/isolation.toml); remove the rule or take a wider mode (`--mode hybrid` or `--mode development`)",
    );
    check_flags(
        Flags { tmpfs: words(&["/x:5Q"]), ..Flags::default() },
        "--tmpfs: `5Q` is not accepted, expected a finite size above zero such as \"64M\" (K, M, G, T: powers of 1024; no unit: bytes)",
    );
    check_flags(
        Flags { net: Some("hots".to_owned()), ..Flags::default() },
        "--net: unknown value `hots`, did you mean `host`? (accepted here: `none`, `host`)",
    );
    check_flags(Flags { env: vec!["A".to_owned()], ..Flags::default() }, "--env: `A` has no `=`; write NAME=VALUE");
    check_flags(
        Flags { uid: Some("me".to_owned()), ..Flags::default() },
        "--uid: `me` is not an id; write a number from 0 to 4294967294",
    );
    check_flags(
        Flags { memory: Some("lots".to_owned()), ..Flags::default() },
        "--memory: `lots` is not accepted, expected a size above zero such as \"512M\" (K, M, G, T: powers of 1024; no unit: bytes) or \"unlimited\"",
    );
    check_flags(
        Flags { optional: vec!["userns".to_owned()], ..Flags::default() },
        "--optional: layer userns cannot be optional: no sandbox exists without it, in any mode; remove the rule",
    );
    check_flags(
        Flags { optional: vec!["cgruop".to_owned()], ..Flags::default() },
        "--optional: unknown value `cgruop`, did you mean `cgroup`? (accepted here: `cgroup`, `netns`, `ipcns`, `utsns`, `cgroupns`, `timens`, `rlimits`, `landlock`, `seccomp`)",
    );
}

#[test]
fn mailboxes_that_cannot_be() {
    let check = |rest: &str, expected: &str| {
        check(&format!("\n[[mailboxes]]\nname = \"a\"\n{rest}"), &format!("/job/job/p.toml:2: {expected}"));
    };
    check("", "mailbox `a` is for nothing; write `send = true`, `receive = true` or both");
    check("send = true\nmax_size = \"65K\"", "`max_size` of mailbox `a` is not from 1 byte to 64K");
    check("send = true\nrate = 0", "`rate` of mailbox `a` is not from 1 to 1000 messages a second");
    check(
        "send = true\nschema = '{\"format\": \"uri\"}'",
        "the schema of mailbox `a`: `format` is not known here, and what is not known is not left out",
    );
    super::errors::check(
        "[[mailboxes]]\nname = \"a\"\nsend = true\n[[mailboxes]]\nname = \"a\"\nsend = true",
        "/job/job/p.toml:4: mailbox `a` is named twice; write one table for it",
    );
    let text = "[[mailboxes]]\nname = \"a\"\nsend = true\ncontrol = \"monitored\"";
    let inputs = Inputs { policy_file: Some(PathBuf::from("p.toml")), ..inputs() };
    let error = resolve(&inputs, &mut files(&[("/job/job/p.toml", text)])).unwrap_err().to_string();
    assert!(error.starts_with("/job/job/p.toml:1:") && error.contains("mailbox `a` to be `monitored`"), "{error}");
    assert!(error.contains("the laxest control is `filtered`"), "{error}");
}
