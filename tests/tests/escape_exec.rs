//! Executing what was not granted for execution, and gaining privileges by executing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use apex_tests::attack::Attack;
use apex_tests::{Mode, Session, TempDir, armed, as_root, each_mode, skip};

/// A file in `place` is executed by no means. The loader maps a program itself, so that mapping must be refused too.
#[track_caller]
fn expect_no_exec(session: &mut Session, place: &str) {
    for way in ["exec_copy", "exec_fd", "exec_symlink", "map_exec", "map_then_exec"] {
        session.refused(&format!("{way} {place}/copy"));
    }
    session.refused(&format!("ld_so /lib64/ld-linux-x86-64.so.2 {place}/true /usr/bin/true"));
}

#[test]
fn private_directories_are_not_executable() {
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let mut session = armed!().mode(mode).session();
        expect_no_exec(&mut session, "/tmp");
        expect_no_exec(&mut session, "/dev/shm");
        session.finish().expect_code(0);
    }
}

/// Development grants execution in /tmp: the same attempts succeed there, so they can.
#[test]
fn development_executes_in_tmp() {
    let mut session = armed!().mode(Mode::Development).session();
    for way in ["exec_copy", "exec_fd", "exec_symlink", "map_exec", "map_then_exec"] {
        session.allowed(&format!("{way} /tmp/copy"));
    }
    session.finish().expect_code(0);
}

/// Not a promise (docs/THREAT-MODEL.md): anonymous memory can hold code anyway. What is executed this way is as confined as the rest.
#[test]
fn memory_files_are_executed_confined() {
    let mut session = armed!().mode(Mode::Isolation).session();
    session.allowed("memfd_exec");
    session.refused("read /etc/shadow");
    session.finish().expect_code(0);
}

/// A policy that grants a directory for writing without `exec` does not make what is written there executable.
#[test]
fn a_write_grant_without_exec_is_not_executable() {
    let dir = TempDir::new();
    let data = dir.dir("data");
    let policy =
        dir.file("policy.toml", &format!("[filesystem]\nwrite = [{{ path = \"{data}\", reason = \"test\" }}]\n"));
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let mut session = armed!().mode(mode).arg("--policy").arg(&policy).session();
        expect_no_exec(&mut session, &data);
        session.finish().expect_code(0);
    }
}

/// Set-user-id programs of the host give nothing: neither the system's own nor one that root put into a grant.
#[test]
fn set_user_id_programs_give_nothing() {
    if !as_root() {
        skip!("only root can make a set-user-id program of another user");
    }
    let attack = Attack::get();
    let Some(attack) = attack else { skip!("no C compiler with static libraries to build the attack program") };
    let dir = TempDir::new();
    for (name, owner) in [("of-root", 0), ("of-other", 1234)] {
        let path = dir.at(name);
        fs::copy(attack.dir().join("attack64"), &path).expect("we own it");
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).expect("we are root");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).expect("we are root");
    }
    each_mode(|mode| {
        for name in ["of-root", "of-other"] {
            let output =
                armed!().mode(mode).ro(&dir.text(), "/tmp/data").run(&[&format!("/tmp/data/{name}"), "effective_ids"]);
            let answer = output.expect_code(0).answer("effective_ids");
            assert!(answer.starts_with("EPERM"), "{name} in {} mode: {answer}", mode.name());
        }
    });
}

/// On a writable grant the bits cannot be set, so nothing set-user-id of the caller's is left for others to execute.
#[test]
fn set_id_bits_cannot_be_put_on_a_grant() {
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let dir = TempDir::new();
        let mut session = armed!().mode(mode).rw(&dir.text(), "/tmp/data").session();
        for attempt in apex_tests::attack::table().iter().filter(|it| it.group == "setid") {
            let answer = session.ask(&format!("{} /tmp/data", attempt.name));
            assert!(!answer.starts_with("ok"), "{} in {} mode: {answer}", attempt.name, mode.name());
        }
        session.finish().expect_code(0);
        for name in dir.listing() {
            let bits = fs::symlink_metadata(dir.at(&name)).expect("it is there").permissions().mode() & 0o6000;
            assert_eq!(bits, 0, "{name} was left set-id");
        }
    }
}

/// Executable grants work, with the same program by which the refusals are shown.
#[test]
fn granted_programs_execute() {
    each_mode(|mode| {
        let mut session = armed!().mode(mode).session();
        session.allowed("exec_path /tmp/attack/attack64 executed");
        session.finish().expect_code(0);
    });
}
