//! What `--help` prints, for the program and for each command.
//!
//! The form is the one that runc's users know: NAME, USAGE, OPTIONS.

use super::COMMANDS;
use crate::state::OCI_VERSION;

/// A command's arguments, and its options with what each does.
type Page = (&'static str, &'static [(&'static str, &'static str)]);

const MAKE: [(&str, &str); 7] = [
    ("--bundle DIR, -b DIR", "the bundle (the current directory)"),
    ("--config FILE, -f FILE", "the configuration (the bundle's config.json)"),
    ("--console-socket PATH", "the socket that gets the master of the terminal"),
    ("--pid-file FILE", "where the pid of the first process is written"),
    ("--no-pivot", "change the root by moving a mount, for a root on a ramdisk"),
    ("--no-new-keyring", "keep the caller's session keyring"),
    ("--preserve-fds N", "pass on N descriptors from 3 on"),
];
const RUN: [(&str, &str); 3] = [
    ("--detach, -d", "return once the program runs"),
    ("--keep", "keep the container after its end"),
    ("--no-subreaper", "taken for runc's sake, without effect"),
];
const EXEC: [(&str, &str); 17] = [
    ("--process FILE, -p FILE", "the process, as in config.json, instead of COMMAND"),
    ("--cwd DIR", "its working directory"),
    ("--env NAME=VALUE, -e NAME=VALUE", "a variable more"),
    ("--tty, -t", "with a terminal"),
    ("--user UID[:GID], -u UID[:GID]", "who it is"),
    ("--additional-gids GID, -g GID", "a group more"),
    ("--cap CAPABILITY, -c CAPABILITY", "a capability more"),
    ("--no-new-privs", "with no_new_privs"),
    ("--process-label LABEL", "its SELinux label"),
    ("--apparmor PROFILE", "its AppArmor profile"),
    ("--detach, -d", "return once it runs"),
    ("--console-socket PATH", "the socket that gets the master of the terminal"),
    ("--pid-file FILE", "where its pid is written"),
    ("--preserve-fds N", "pass on N descriptors from 3 on"),
    ("--cgroup [CONTROLLER,...:]PATH", "a cgroup below the container's; may be given for each controller"),
    ("--ignore-paused", "also into a paused container, where it waits"),
    ("--no-subreaper", "taken for runc's sake, without effect"),
];
const UPDATE: [(&str, &str); 17] = [
    ("--resources FILE, -r FILE", "linux.resources as JSON, - for standard input; then nothing else counts"),
    ("--memory BYTES", "memory, with a suffix or not; -1 is no limit"),
    ("--memory-swap BYTES", "memory and swap"),
    ("--memory-reservation BYTES", "memory that is kept when the host is short of it"),
    ("--kernel-memory BYTES", "without effect any more"),
    ("--kernel-memory-tcp BYTES", "memory of TCP buffers"),
    ("--cpu-share N", "weight among the others"),
    ("--cpu-quota US", "time in each period"),
    ("--cpu-period US", "the period"),
    ("--cpu-burst US", "time saved for later"),
    ("--cpu-idle 0|1", "only what others leave"),
    ("--cpu-rt-runtime US", "real-time in each period"),
    ("--cpu-rt-period US", "its period"),
    ("--cpuset-cpus LIST", "CPUs"),
    ("--cpuset-mems LIST", "memory nodes"),
    ("--pids-limit N", "processes and threads"),
    ("--blkio-weight N", "weight among the others, 10 to 1000"),
];
const FORMAT: (&str, &str) = ("--format FORMAT, -f FORMAT", "table or json");

fn page(command: &str) -> Page {
    match command {
        "create" | "run" | "start" | "state" | "pause" | "resume" => ("ID", &[]),
        "exec" => ("ID COMMAND [ARGUMENT...], or --process FILE ID", &EXEC),
        "kill" => ("ID [SIGNAL]", &[("--all, -a", "to every process of the container")]),
        "delete" => ("ID", &[("--force, -f", "kill it first if it runs; one that is not there is no error")]),
        "list" => ("", &[FORMAT, ("--quiet, -q", "only the ids")]),
        "ps" => ("ID [OPTION OF PS...]", &[FORMAT]),
        "update" => ("ID", &UPDATE),
        "events" => {
            ("ID", &[("--interval TIME", "between two, such as 100ms or 5s (5s)"), ("--stats", "once, then end")])
        }
        "spec" => (
            "",
            &[
                ("--bundle DIR, -b DIR", "where (the current directory)"),
                ("--rootless", "for a user without privileges"),
            ],
        ),
        _ => ("", &[]),
    }
}

fn lines(rows: impl IntoIterator<Item = (&'static str, &'static str)>) -> String {
    rows.into_iter().map(|(name, what)| format!("   {name:<34} {what}\n")).collect()
}

/// The help of a command.
pub fn command(name: &str) -> String {
    let what = COMMANDS.iter().find(|(known, _)| *known == name).map_or("", |(_, what)| what);
    let (arguments, options) = page(name);
    let more: &[_] = match name {
        "create" => &MAKE,
        "run" => &RUN,
        _ => &[],
    };
    let shared: &[_] = if name == "run" { &MAKE } else { &[] };
    let all = shared.iter().chain(more).chain(options).copied();
    format!(
        "NAME:\n   apex-oci {name} - {what}\n\nUSAGE:\n   {}\n\nOPTIONS:\n{}",
        format!("apex-oci {name} [OPTIONS] {arguments}").trim_end(),
        lines(all.chain([("--help, -h", "this text")]))
    )
}

/// The help of the program.
pub fn program() -> String {
    format!(
        "NAME:\n   apex-oci - Open Container Initiative runtime: runs containers from bundles (runtime-spec {OCI_VERSION})\n\n\
         USAGE:\n   apex-oci [OPTIONS] COMMAND [OPTIONS OF THE COMMAND] [ARGUMENTS]\n\nCOMMANDS:\n{}\n\
         apex-oci COMMAND --help has the options of each.\n\nOPTIONS:\n{}",
        lines(COMMANDS),
        lines([
            ("--root DIR", "where containers are kept (/run/apex-oci, or $XDG_RUNTIME_DIR/apex-oci)"),
            ("--log FILE", "errors are also appended there"),
            ("--log-format FORMAT", "text or json"),
            ("--debug", "the log tells more"),
            ("--receipt FILE", "of start and run: what the kernel says is in force, as JSON; - prints it for people"),
            ("--systemd-cgroup", "systemd makes the cgroups; linux.cgroupsPath is SLICE:PREFIX:NAME"),
            ("--cgroup-manager WHO", "cgroupfs, systemd, or disabled: the container stays in the caller's cgroup"),
            ("--rootless VALUE, --criu VALUE", "taken for runc's sake, without effect"),
            ("--help, -h", "this text"),
            ("--version, -v", "the version, and that of the specification"),
        ])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Command, UsageError, parse};

    fn asked(words: &str) -> Result<Command, UsageError> {
        parse(words.split_whitespace().map(Into::into)).map(|(_, command)| command)
    }

    #[test]
    fn every_command_has_a_page_and_every_option_of_a_page_is_known() {
        for (name, what) in COMMANDS {
            for words in
                [format!("{name} --help"), format!("{name} -h"), format!("help {name}"), format!("{name} x -h")]
            {
                // What stands behind the id of these is the program's own, and ps's.
                if !(words.ends_with("x -h") && ["exec", "ps", "list", "spec", "features"].contains(&name)) {
                    assert!(matches!(asked(&words), Ok(Command::Help(Some(topic))) if topic == name), "{words}");
                }
            }
            let text = command(name);
            assert!(text.starts_with(&format!("NAME:\n   apex-oci {name} - {what}\n")), "{text}");
            let options = text.split("OPTIONS:\n").nth(1).expect("the part of the options");
            for option in options.lines().flat_map(|line| line.split(&[' ', ','])).filter(|word| word.starts_with("--"))
            {
                // An unknown one is told as such before its value, or the id, is missed.
                let told = asked(&format!("{name} {option}")).map_err(|error| error.to_string());
                assert!(!told.is_err_and(|words| words.contains("invalid option")), "{name} {option}");
            }
        }
    }

    #[test]
    fn there_is_no_help_on_what_is_no_command() {
        for words in ["foo --help", "foo -h", "help foo"] {
            let told = asked(words).expect_err("no command").to_string();
            assert!(told.starts_with("No help topic for 'foo'"), "{words}: {told}");
        }
        assert!(matches!(asked("help"), Ok(Command::Help(None))));
        assert!(matches!(asked("--help"), Ok(Command::Help(None))));
        assert!(matches!(asked("exec x ls -h"), Ok(Command::Exec(_))));
    }
}
