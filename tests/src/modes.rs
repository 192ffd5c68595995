//! Bodies that run under each mode, with what each mode lets them do declared beside them. Input: a way to run a shell in a mode (`apex-run`, or the daemon). Output:
//! a failed test with each body whose outcome was another. One table for all ways: a mode means the same whoever starts the sandbox.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpListener;

use crate::attack::Attack;
use crate::sandbox::Output;
use crate::{Mode, has_cgroup};

/// One body: a shell command that either works or does not.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    /// Its name, without a blank.
    pub name: &'static str,
    /// What is tried. `$PORT` is a server of the host, `$HOST` a process of it.
    pub script: &'static str,
    /// Whether it works in mode isolation.
    pub isolation: bool,
    /// In mode hybrid.
    pub hybrid: bool,
    /// In mode development.
    pub development: bool,
}

const fn body(name: &'static str, script: &'static str, in_modes: [bool; 3]) -> Body {
    let [isolation, hybrid, development] = in_modes;
    Body { name, script, isolation, hybrid, development }
}

const ALL: [bool; 3] = [true; 3];
const NONE: [bool; 3] = [false; 3];
const DEVELOPMENT: [bool; 3] = [false, false, true];

/// The bodies, by what they try.
pub const BODIES: [Body; 29] = [
    // Files.
    body("read-a-file-of-the-host", "cat /etc/os-release", DEVELOPMENT),
    body("read-password-hashes", "cat /etc/shadow", NONE),
    body("read-a-granted-file", "cat /tmp/attack/attack64", ALL),
    body("write-a-granted-file", "echo x >> /tmp/attack/attack64", NONE),
    body("write-system-files", "echo x > /etc/apex-modes", NONE),
    body("write-programs", "echo x > /usr/bin/apex-modes", NONE),
    body("write-temporary-files", "echo x > /tmp/written && cat /tmp/written", ALL),
    body("execute-what-was-written", "cp /bin/true /tmp/t && /tmp/t", DEVELOPMENT),
    // Network.
    body("connect-to-the-host", "bash -c 'exec 3<>/dev/tcp/127.0.0.1/'$PORT", DEVELOPMENT),
    body("configure-the-network", "ip link set lo down", NONE),
    // Processes.
    body("make-processes", "sh -c true | cat", ALL),
    body("signal-own-processes", "sleep 9 & kill $!", ALL),
    body("see-processes-of-the-host", "test -d /proc/$HOST", NONE),
    body("signal-processes-of-the-host", "kill -0 $HOST", NONE),
    body("read-the-environment-of-init", "cat /proc/1/environ", NONE),
    body("trace-an-own-child", "/tmp/attack/attack64 --abi=native ptrace_child | grep -q ' ok'", [false, true, true]),
    // Devices.
    body("use-null", "echo > /dev/null", ALL),
    body("use-random", "head -c 8 /dev/urandom", ALL),
    body("find-memory-or-disks", "test -e /dev/mem || test -e /dev/vda || test -e /dev/sda", NONE),
    body("make-a-device", "mknod /tmp/n c 1 3", NONE),
    // Limits.
    body("a-hundred-tasks", "for i in $(seq 100); do sleep 1 & done; wait $!", [false, true, true]),
    // Environment.
    body("have-a-given-variable", "test \"$GIVEN\" = 'a b'", ALL),
    body("have-no-others", "test -z \"$APEX_RUN$CARGO_MANIFEST_DIR\"", ALL),
    // The system.
    body("mount", "mount -t tmpfs none /mnt", NONE),
    body("make-a-user-namespace", "unshare -U true", DEVELOPMENT),
    body("set-the-clock", "date -s 2001-01-01", NONE),
    body("change-the-kernel", "echo x > /proc/sys/kernel/domainname", NONE),
    body("read-the-kernels-log", "dmesg", NONE),
    body("become-somebody-else", "su nobody -s /bin/true", NONE),
];

impl Body {
    fn works_in(&self, mode: Mode) -> bool {
        match mode {
            Mode::Isolation => self.isolation,
            Mode::Hybrid => self.hybrid,
            Mode::Development => self.development,
        }
    }
}

/// What all bodies need of the host.
pub struct Stage {
    attack: std::sync::Arc<Attack>,
    server: TcpListener,
    script: String,
}

impl Stage {
    /// `None` when no C compiler was there to build the attack program.
    pub fn set() -> Option<Stage> {
        let attack = Attack::get()?;
        let server = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let tries = BODIES.iter().map(|Body { name, script, .. }| {
            let script = script.replace('\'', "'\\''");
            format!("if sh -c '{script}' >/dev/null 2>&1; then echo {name} yes; else echo {name} no; fi\n")
        });
        let script = tries.collect();
        Some(Stage { attack, server, script })
    }

    /// The options and the command for a mode, as `apex-run` and `apex run` take them.
    pub fn words(&self, mode: Mode) -> Vec<String> {
        let port = self.server.local_addr().expect("it listens").port();
        let attack = self.attack.dir().display();
        let options = [
            format!("--mode={}", mode.name()),
            format!("--ro={attack}:/tmp/attack"),
            format!("--env=PORT={port}"),
            format!("--env=HOST={}", std::process::id()),
            "--env=GIVEN=a b".to_owned(),
        ];
        let command = ["--", "/bin/sh", "-c", &self.script].map(str::to_owned);
        options
            .into_iter()
            .chain(crate::daemon::lenient().iter().map(|word| (*word).to_owned()))
            .chain(command)
            .collect()
    }

    /// Fails with each body whose outcome was another.
    #[track_caller]
    pub fn check(&self, mode: Mode, output: &Output) {
        assert_eq!(output.code, 0, "{output:?}");
        let text = output.out();
        let told: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        let mut wrong = Vec::new();
        for body in BODIES {
            // Without a cgroup nothing counts tasks.
            if body.name == "a-hundred-tasks" && !has_cgroup() {
                continue;
            }
            let expected = if body.works_in(mode) { "yes" } else { "no" };
            match told.get(body.name) {
                Some(word) if *word == expected => {}
                Some(word) => wrong.push(format!("{}: {word}, and it should be {expected}", body.name)),
                None => wrong.push(format!("{}: it was never tried", body.name)),
            }
        }
        assert!(wrong.is_empty(), "mode {}: {wrong:#?}\n{}", mode.name(), output.err());
        // What somebody inside reached of the host, the host has seen.
        self.server.set_nonblocking(true).expect("it is a socket");
        let has_seen = self.server.accept().map(|(mut stream, _)| drop(stream.read(&mut [0]))).is_ok();
        assert_eq!(has_seen, mode == Mode::Development, "mode {}: the server of the host was reached", mode.name());
    }
}
