//! `config.json` as an enemy or a broken tool would write it: each ends within a bound, with words, and leaves nothing.
//!
//! `APEX_SEED` repeats a run of the mutations, `APEX_CASES` sets how many are made. They run in namespaces of their own, since one that takes the
//! container's namespaces away would otherwise change the machine.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use apex_tests::oci::Bundle;
use apex_tests::{Output, bundle};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Map, Value, json};

/// Longer than any configuration may take to be refused or carried out, on a busy machine.
const BOUND: Duration = Duration::from_secs(20);
const CASES: u64 = 150;

/// `run` of the configuration that lies there, away from the machine's mounts, names and network.
#[track_caller]
fn run_aside(bundle: &Bundle) -> Output {
    let plain = bundle.command(&["run", "--bundle", &bundle.path(), &bundle.id]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--uts", "--ipc", "--propagation", "private"]);
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(bundle.dir().path());
    let begun = Instant::now();
    let output = bundle.finish(command);
    assert!(begun.elapsed() < BOUND, "{:?}: {output:?}", begun.elapsed());
    output
}

/// Whatever it asks for, the runtime ends in order.
#[track_caller]
fn expect_order(bundle: &Bundle, output: &Output, case: &str) {
    let err = output.err();
    assert!(!err.contains("panicked") && !err.contains("overflow"), "{case}: {err}");
    // 134 is an abort; other signals may be those of the program, whose limits were changed.
    assert!(![101, 134].contains(&output.code), "{case}: {output:?}");
    assert!(output.code != 1 || !err.trim().is_empty(), "{case}: a failure without words");
    assert!(err.len() < 10_000, "{case}: {} bytes of words", err.len());
    // A line each for warnings and the error, and nothing else that moves a cursor.
    let is_control = |letter: char| letter.is_control() && letter != '\n';
    assert!(!err.contains(is_control), "{case}: controls of a terminal: {err:?}");
    let left = bundle.left();
    assert!(left.is_empty(), "{case}: left behind: {left:#?}");
}

#[track_caller]
fn check_text(bundle: &Bundle, text: &[u8], words: &str) {
    fs::write(bundle.dir().path().join("bundle/config.json"), text).expect("we own it");
    let output = run_aside(bundle).expect_code(1);
    let case = String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
    expect_order(bundle, &output, &case);
    assert!(output.err().contains(words), "{case}: the message lacks {words:?}: {}", output.err());
}

#[test]
fn what_is_no_configuration_is_refused() {
    let bundle = bundle!();
    let valid = bundle.config.to_string();
    let wrong = "not a configuration";
    let texts: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"\"config\"",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"{\"ociVersion\": \"1.0.0\xff\"}",
        b"{\"ociVersion\": 1.0}",
        b"{\"ociVersion\":\"1.0.0\",}",
        &valid.as_bytes()[..valid.len() / 2],
        &[valid.as_bytes(), b"x"].concat(),
        &[b'\0'; 4096],
    ];
    for text in texts {
        check_text(&bundle, text, wrong);
    }
    check_text(&bundle, b"{}", "ociVersion");
    check_text(&bundle, b"[]", "ociVersion");
    check_text(&bundle, "[".repeat(200_000).as_bytes(), wrong);
    let nested =
        format!("{{\"ociVersion\":\"1.0.0\",\"annotations\":{}{}}}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    check_text(&bundle, nested.as_bytes(), wrong);
    check_text(&bundle, &vec![b' '; 17 << 20], "16 MiB");
    let twice = valid.replacen("\"ociVersion\"", "\"ociVersion\":\"1.0.0\",\"ociVersion\"", 1);
    check_text(&bundle, twice.as_bytes(), wrong);
}

/// Puts something in the place of a file.
type Prepare = fn(&Path);

#[test]
fn a_file_that_is_none_is_refused_at_once() {
    let bundle = bundle!();
    let config = bundle.dir().path().join("bundle/config.json");
    let make: [(&str, Prepare); 5] = [
        ("directory", |path| fs::create_dir(path).expect("we own it")),
        ("fifo", |path| mkfifo(path, Mode::from_bits_truncate(0o600)).expect("we own it")),
        ("endless", |path| symlink("/dev/zero", path).expect("we own it")),
        ("circle", |path| symlink("config.json", path).expect("we own it")),
        ("nowhere", |path| symlink("/no/such/file", path).expect("we own it")),
    ];
    for (name, make) in make {
        make(&config);
        let output = run_aside(&bundle).expect_code(1);
        expect_order(&bundle, &output, name);
        let removed =
            if config.is_dir() && !config.is_symlink() { fs::remove_dir(&config) } else { fs::remove_file(&config) };
        removed.expect("we own it");
    }
    bundle.write();
    for path in ["/no/such/bundle", "/dev/null", ""] {
        let output = bundle.oci(&["run", "--bundle", path, &bundle.id]).expect_code(1);
        expect_order(&bundle, &output, path);
    }
}

/// Paths that lead in a circle or out, wherever a path stands.
#[test]
fn paths_in_circles_are_refused() {
    let paths = ["/circle", "/circle/x", "/a/../circle", "circle", "/../../circle/y"];
    for path in paths {
        for pointer in ["/process/cwd", "/process/args/0", "/mounts/0/destination"] {
            let bundle = bundle!();
            symlink("other", bundle.rootfs().join("circle")).expect("we own it");
            symlink("circle", bundle.rootfs().join("other")).expect("we own it");
            let bundle = bundle.set(pointer, json!(path));
            bundle.write();
            let output = run_aside(&bundle).expect_code(1);
            expect_order(&bundle, &output, &format!("{pointer} {path}"));
        }
        for pointer in ["/linux/maskedPaths", "/linux/readonlyPaths"] {
            let bundle = bundle!();
            symlink("circle", bundle.rootfs().join("circle")).expect("we own it");
            let bundle = bundle.set(pointer, json!([path]));
            bundle.write();
            let output = run_aside(&bundle);
            expect_order(&bundle, &output, &format!("{pointer} {path}"));
        }
    }
}

/// A hundred thousand of everything.
#[test]
fn very_many_of_everything_end_within_the_bound() {
    const MANY: usize = 100_000;
    let entry = |pointer: &str| match pointer {
        "/mounts" => json!({"destination": "/mnt", "type": "tmpfs", "source": "x"}),
        "/linux/devices" => json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3}),
        "/process/rlimits" => json!({"type": "RLIMIT_CORE", "soft": 0, "hard": 0}),
        "/hooks/createRuntime" => json!({"path": "/no/such/hook"}),
        "/linux/uidMappings" => json!({"containerID": 0, "hostID": 0, "size": 1}),
        "/process/user/additionalGids" => json!(7),
        "/linux/resources/hugepageLimits" => json!({"pageSize": "2MB", "limit": 1}),
        "/linux/resources/devices" => json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}),
        _ => json!("/x"),
    };
    let pointers = [
        "/mounts",
        "/linux/devices",
        "/linux/maskedPaths",
        "/linux/readonlyPaths",
        "/process/rlimits",
        "/process/env",
        "/process/args",
        "/process/user/additionalGids",
        "/hooks/createRuntime",
        "/linux/uidMappings",
        "/linux/resources/hugepageLimits",
    ];
    for pointer in pointers {
        let bundle = bundle!().set(pointer, json!(vec![entry(pointer); MANY]));
        bundle.write();
        let output = run_aside(&bundle);
        expect_order(&bundle, &output, pointer);
    }
}

/// A generator of numbers (xorshift64).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides.max(1) as u64).expect("below the sides")
    }
}

/// A configuration in which everything stands that can.
fn rich(bundle: &Bundle) -> Value {
    let mut config = bundle.config.clone();
    config["annotations"] = json!({"a": "b"});
    config["hooks"] = json!({"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}]});
    config["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 1});
    config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 4});
    config["process"]["oomScoreAdj"] = json!(10);
    config["process"]["consoleSize"] = json!({"height": 10, "width": 20});
    config["process"]["user"] = json!({"uid": 0, "gid": 0, "umask": 18, "additionalGids": [1]});
    config["linux"]["sysctl"] = json!({"kernel.shmmni": "100"});
    config["linux"]["rootfsPropagation"] = json!("private");
    config["linux"]["personality"] = json!({"domain": "LINUX"});
    config["linux"]["devices"] =
        json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}]);
    config["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
        "memory": {"limit": 268_435_456, "reservation": 134_217_728, "swappiness": 10},
        "cpu": {"shares": 100, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 50}, "blockIO": {"weight": 100}, "hugepageLimits": [],
    });
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["swapoff"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
            "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}]}],
    });
    config
}

/// The pointer of each value, but those of the root: what is meant to be mounted there must not become the machine's.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    if at == "/root/path" {
        return;
    }
    if !at.is_empty() {
        found.push(at.to_owned());
    }
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{}", escape(key)), found))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at_list, value)| pointers(value, &format!("{at}/{at_list}"), found))
        }
        _ => {}
    }
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Something else in its place. Names hold the mark, so that whatever is made of them is found.
fn other(dice: &mut Dice, mark: &str) -> Value {
    let choices = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(4_294_967_296_u64),
        json!(1e300),
        json!(0.5),
        json!(""),
        json!(format!("{mark}\0x")),
        json!(format!("../../../../../../{mark}")),
        json!(format!("/{mark}/../../../{mark}")),
        json!(format!("{mark}\u{1b}[31m\n")),
        json!(mark.repeat(300)),
        json!([]),
        json!({}),
        json!([[[[[]]]]]),
        json!([null]),
        json!({"type": mark, "path": format!("/{mark}")}),
        json!([{"destination": format!("/{mark}"), "type": mark}]),
    ];
    choices[dice.throw(choices.len())].clone()
}

/// Changes it in one place; what was done, in words.
fn mutate(config: &mut Value, dice: &mut Dice, mark: &str) -> String {
    let mut found = Vec::new();
    pointers(config, "", &mut found);
    let at = found[dice.throw(found.len())].clone();
    let (parent, key) = at.rsplit_once('/').expect("a pointer");
    let parent = config.pointer_mut(parent).expect("it was found");
    match (dice.throw(4), parent) {
        (0, Value::Object(map)) => {
            map.remove(&key.replace("~1", "/").replace("~0", "~"));
            format!("without {at}")
        }
        (1, Value::Array(list)) => {
            let index: usize = key.parse().expect("of an array");
            list.extend_from_slice(&vec![list[index].clone(); 50]);
            format!("{at} 50 times more")
        }
        (2, Value::Object(map)) => {
            let new: Map<String, Value> =
                [(mark.to_owned(), other(dice, mark)), (String::new(), other(dice, mark))].into_iter().collect();
            map.extend(new);
            format!("more beside {at}")
        }
        _ => {
            let new = other(dice, mark);
            let words = format!("{at} = {new}");
            *config.pointer_mut(&at).expect("it was found") = new;
            words
        }
    }
}

#[test]
fn mutated_configurations_end_in_order() {
    let number = |name: &str| std::env::var(name).ok().and_then(|word| word.parse::<u64>().ok());
    let seed = number("APEX_SEED").unwrap_or_else(|| u64::from(std::process::id())).max(1);
    println!("APEX_SEED={seed}");
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let bundle = bundle!();
    let base = rich(&bundle);
    fs::write(bundle.dir().path().join("bundle/config.json"), base.to_string()).expect("we own it");
    // Otherwise each of them would be refused for one and the same reason.
    run_aside(&bundle).expect_code(0);
    let mut codes = [0, 0];
    for case in 0..number("APEX_CASES").unwrap_or(CASES) {
        let mut config = base.clone();
        let count = 1 + dice.throw(2);
        let done: Vec<String> = (0..count).map(|_| mutate(&mut config, &mut dice, &bundle.mark().0)).collect();
        let words = done.join("; ").chars().take(500).collect::<String>();
        println!("{case}: {words}");
        fs::write(bundle.dir().path().join("bundle/config.json"), config.to_string()).expect("we own it");
        let output = run_aside(&bundle);
        codes[usize::from(output.code != 0)] += 1;
        expect_order(&bundle, &output, &format!("case {case}: {words}"));
    }
    assert!(codes[0] > 0 && codes[1] > 0, "{codes:?} worked and did not: the mutations reach nothing");
}
