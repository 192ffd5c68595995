//! Limits hold: what runs into one fails inside, and the host does not notice.

use apex_tests::attack::Abi;
use apex_tests::{APEX_FAILED, MEMORY_OVER, Mode, Sandbox, TempDir, armed, as_root, has_cgroup, skip};

/// `reached=N` of an answer.
#[track_caller]
fn reached(answer: &str) -> u64 {
    let text = answer.rsplit("reached=").next().unwrap_or_default();
    text.parse().unwrap_or_else(|_| panic!("no count in {answer}"))
}

/// Limits of groups of processes need a cgroup, which an unprivileged user on a machine without delegation does not have.
macro_rules! limited {
    () => {{
        if !has_cgroup() {
            skip!("no delegated cgroup for an unprivileged user");
        }
        armed!().mode(Mode::Isolation)
    }};
}

#[test]
fn a_fork_bomb_stops_at_the_task_limit() {
    let answer = limited!().args(["--tasks", "20"]).attempt(&["forks", "5000"]);
    assert!(answer.starts_with("EAGAIN"), "{answer}");
    let count = reached(&answer);
    assert!((10..20).contains(&count), "{count} processes under a limit of 20 tasks");
}

#[test]
fn threads_count_as_tasks() {
    let answer = limited!().args(["--tasks", "20"]).attempt(&["threads", "5000"]);
    assert!(answer.starts_with("EAGAIN"), "{answer}");
    assert!(reached(&answer) < 20, "{answer}");
}

/// The default of isolation, without any flag.
#[test]
fn isolation_limits_tasks_by_itself() {
    let answer = limited!().attempt(&["forks", "5000"]);
    assert!(answer.starts_with("EAGAIN"), "{answer}");
    assert!(reached(&answer) < 64, "{answer}");
}

#[test]
fn memory_over_the_limit_ends_the_command() {
    let output =
        limited!().args(["--memory", "32M"]).attack(Abi::X64, &["memory_here", "67108864"]).expect_code(MEMORY_OVER);
    assert!(
        output.err().contains("memory") && output.err().contains("32"),
        "the message does not name the limit: {}",
        output.err()
    );
}

/// Memory of a child of the command: the command itself goes on, as without a sandbox.
#[test]
fn memory_of_a_child_is_counted() {
    let output = limited!().args(["--memory", "32M"]).attack(Abi::X64, &["memory", "67108864"]);
    assert!(output.code == MEMORY_OVER || output.answer("memory").starts_with("SIG9"), "{}", output.out());
}

#[test]
fn memory_below_the_limit_is_there() {
    limited!().args(["--memory", "128M"]).attack(Abi::X64, &["memory_here", "67108864"]).expect_code(0);
}

/// What lies in memory-backed directories counts as memory.
#[test]
fn a_private_directory_counts_as_memory() {
    let sandbox = limited!().args(["--memory", "32M", "--tmp-size", "256M"]);
    let output = sandbox.attack(Abi::X64, &["fill", "/tmp/big", "134217728"]);
    let stopped = output.code == MEMORY_OVER || !output.answer("fill").starts_with("ok");
    assert!(stopped, "128 MiB fit into /tmp under a limit of 32 MiB: {}", output.out());
}

#[test]
fn private_directories_are_bounded() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--tmp-size", "4M"]);
    for path in ["/tmp/big", "/dev/shm/big"] {
        let answer = sandbox.attempt(&["fill", path, "268435456"]);
        assert!(answer.starts_with("ENOSPC") || answer.starts_with("EFBIG"), "{path}: {answer}");
        assert!(reached(&answer) <= 64 << 20, "{path}: {answer}");
    }
    let answer = sandbox.attempt(&["fill", "/tmp/big", "268435456"]);
    assert!(reached(&answer) <= 4 << 20, "{answer}");
}

/// Empty files take kernel memory that no size counts.
#[test]
fn the_number_of_files_is_bounded() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--tmp-size", "4M"]);
    for dir in ["/tmp", "/dev/shm"] {
        let output = sandbox.attack(Abi::X64, &["inodes", dir, "300000"]);
        let stopped = output.code == MEMORY_OVER || !output.answer("inodes").starts_with("ok");
        assert!(stopped, "300000 files in {dir}: {}", output.out());
    }
}

#[test]
fn the_root_and_dev_cannot_be_filled() {
    let mut session = armed!().mode(Mode::Isolation).session();
    for path in ["/big", "/dev/big", "/dev/pts/big", "/etc/big", "/run/big", "/proc/big"] {
        session.refused(&format!("fill {path} 1048576"));
    }
    session.finish().expect_code(0);
}

#[test]
fn the_size_of_a_file_is_bounded() {
    let dir = TempDir::new();
    let policy = dir.file("policy.toml", "[resources]\nfile_size = \"1M\"\n");
    let data = dir.dir("data");
    let sandbox = armed!().mode(Mode::Isolation).arg("--policy").arg(policy).rw(&data, "/tmp/data");
    let answer = sandbox.attempt(&["fill", "/tmp/data/big", "8388608"]);
    assert!(answer.starts_with("EFBIG"), "{answer}");
    assert_eq!(reached(&answer), 1 << 20);
}

#[test]
fn open_files_are_bounded() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--nofile", "50"]);
    let answer = sandbox.attempt(&["open_files", "1000"]);
    assert!(answer.starts_with("EMFILE"), "{answer}");
    assert!(reached(&answer) < 50, "{answer}");
    let answer = sandbox.attempt(&["inotifies", "1000"]);
    assert!(answer.starts_with('E'), "{answer}");
    let answer = sandbox.attempt(&["ptys", "1000"]);
    assert!(answer.starts_with('E'), "{answer}");
}

/// Terminals come from a pool of the whole host; a private devpts has a bound of its own.
#[test]
fn terminals_are_bounded() {
    let answer = armed!().mode(Mode::Isolation).args(["--nofile", "1000"]).attempt(&["ptys", "990"]);
    assert!(answer.starts_with('E'), "{answer}");
}

#[test]
fn shared_memory_is_counted() {
    let output = limited!().args(["--memory", "32M"]).attack(Abi::X64, &["sysv_shm", "134217728"]);
    let stopped = output.code == MEMORY_OVER || !output.answer("sysv_shm").starts_with("ok");
    assert!(stopped, "{}", output.out());
}

#[test]
fn limits_are_not_raised_from_inside() {
    let sandbox = armed!().mode(Mode::Isolation).args(["--nofile", "50"]);
    let mut session = sandbox.session();
    for resource in ["7", "1"] {
        session.refused(&format!("raise_limit {resource}"));
    }
    session.finish().expect_code(0);
}

/// Core files would write memory of the sandbox to wherever the host's pattern says. One byte is no file, and unlike none it also keeps
/// a handler behind a pipe from being started (core(5)).
#[test]
fn no_core_files() {
    let answer = armed!().mode(Mode::Isolation).attempt(&["limit", "4"]);
    assert_eq!(answer, "ok soft=1 hard=1");
}

#[test]
fn malformed_limits_are_refused() {
    for args in [
        ["--memory", "lots"],
        ["--memory", "-1"],
        ["--memory", "99999999999999999999"],
        ["--tasks", "0"],
        ["--time", "soon"],
        ["--cpu", "x"],
        ["--nofile", ""],
        ["--tmp-size", "1Q"],
    ] {
        let output = Sandbox::new().args(args).run(&["/usr/bin/true"]);
        assert_eq!(output.code, APEX_FAILED, "{args:?}: {}", output.err());
        assert!(output.err().contains(args[0]), "{args:?}: {}", output.err());
    }
}

/// Without a delegated cgroup an unprivileged user is told so, instead of running without limits.
#[test]
fn a_missing_cgroup_is_said() {
    if as_root() {
        skip!("root has cgroups here");
    }
    let mut command = std::process::Command::new(apex_tests::apex_run());
    let output = command.args(["--mode", "isolation", "--", "/usr/bin/true"]).output().expect("apex-run starts");
    if output.status.code() == Some(0) {
        skip!("this user has a delegated cgroup");
    }
    assert_eq!(output.status.code(), Some(APEX_FAILED));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cgroup") && text.contains("--optional cgroup"), "{text}");
}
