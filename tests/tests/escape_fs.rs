//! Paths: what is not granted is not reached, and what is granted for reading is not changed, by whatever name.

use std::fs;
use std::os::unix::fs::symlink;

use apex_tests::{Mode, Session, TempDir, armed, as_root, each_mode};

const SECRET: &str = "the secret";

/// Every way of reading `path`.
#[track_caller]
fn expect_unreadable(session: &mut Session, path: &str) {
    for way in ["read", "reopen_read", "procroot_read", "initroot_read", "dotdot_read", "openat2_read", "map_write"] {
        session.refused(&format!("{way} {path}"));
    }
    for dir in ["/", "/tmp", "/usr"] {
        session.refused(&format!("up_read {dir} {path}"));
        session.refused(&format!("climb_read {dir} {path}"));
    }
}

/// Every way of changing the existing file `path`, from inside, where `scratch` may be written.
#[track_caller]
fn expect_unwritable(session: &mut Session, path: &str, scratch: &str) {
    for way in [
        "write",
        "append",
        "trunc_open",
        "truncate",
        "unlink",
        "chmod",
        "chown",
        "chown_root",
        "touch",
        "setxattr",
        "reopen_write",
        "reopen_opath",
        "procroot_write",
        "openat2_write",
        "map_write",
        "set_flags",
        "fallocate",
    ] {
        session.refused(&format!("{way} {path}"));
    }
    for way in ["rename", "exchange", "whiteout", "link", "link_follow", "link_procfd"] {
        session.refused(&format!("{way} {path} {path}-moved"));
        session.refused(&format!("{way} {path} {scratch}/moved"));
    }
    session.allowed(&format!("symlink {path} {scratch}/to-it"));
    for way in ["write", "append", "truncate", "chmod", "openat2_write"] {
        session.refused(&format!("{way} {scratch}/to-it"));
    }
    session.allowed(&format!("unlink {scratch}/to-it"));
}

#[test]
fn what_is_not_granted_is_not_reached() {
    let dir = TempDir::new();
    let secret = dir.file("secret", SECRET);
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let mut session = armed!().mode(mode).session();
        expect_unreadable(&mut session, &secret);
        expect_unreadable(&mut session, "/etc/shadow");
        expect_unreadable(&mut session, "/root/.bashrc");
        for way in ["stat", "watch", "chdir", "list", "readlink"] {
            session.refused(&format!("{way} {}", dir.text()));
        }
        session.finish().expect_code(0);
    }
}

#[test]
fn system_directories_cannot_be_changed() {
    each_mode(|mode| {
        let mut session = armed!().mode(mode).session();
        for path in ["/usr/bin/env", "/etc/ld.so.cache"] {
            expect_unwritable(&mut session, path, "/tmp");
        }
        for dir in ["/usr", "/usr/bin", "/etc", "/", "/proc", "/dev"] {
            for way in ["create", "mkdir", "mkfifo", "unix_bind", "symlink /tmp", "link /usr/bin/env"] {
                session.refused(&format!("{way} {dir}/attack"));
            }
            session.refused(&format!("chmod {dir}"));
            session.refused(&format!("rmdir {dir}"));
            session.refused(&format!("rename {dir} /tmp/moved"));
        }
        session.finish().expect_code(0);
    });
}

/// A read-only grant is read-only for its files, its directories and what is mounted beneath them.
#[test]
fn a_read_only_grant_stays_unchanged() {
    let dir = TempDir::new();
    dir.file("ro/file", SECRET);
    dir.file("ro/sub/file", SECRET);
    let scratch = TempDir::new();
    each_mode(|mode| {
        let before = dir.listing();
        let mut session =
            armed!().mode(mode).ro(&dir.at("ro"), "/tmp/data").rw(&scratch.text(), "/tmp/scratch").session();
        assert_eq!(session.allowed("read /tmp/data/file"), SECRET);
        for path in ["/tmp/data/file", "/tmp/data/sub/file"] {
            expect_unwritable(&mut session, path, "/tmp/scratch");
        }
        for way in ["create", "mkdir", "mkfifo", "unix_bind"] {
            session.refused(&format!("{way} /tmp/data/new"));
            session.refused(&format!("{way} /tmp/data/sub/new"));
        }
        session.refused("tmpfile_link /tmp/data /tmp/data/new");
        session.refused("rename /tmp/data/sub /tmp/data/other");
        session.refused("exchange /tmp/data/sub /tmp/data/file");
        session.refused("exchange /tmp/data/sub /tmp/scratch");
        session.finish().expect_code(0);
        assert_eq!(dir.listing(), before);
        assert_eq!(dir.read("ro/file"), SECRET);
    });
}

/// From a writable grant no way leads out: not by links made inside or on the host, not by `..`, not by moved directories.
#[test]
fn a_writable_grant_is_no_way_out() {
    let dir = TempDir::new();
    let secret = dir.file("outside/secret", SECRET);
    let inside = dir.dir("inside");
    symlink(&secret, dir.at("inside/absolute")).expect("we own it");
    symlink("../outside/secret", dir.at("inside/relative")).expect("we own it");
    symlink("/", dir.at("inside/root")).expect("we own it");
    for mode in [Mode::Isolation, Mode::Hybrid] {
        let mut session = armed!().mode(mode).rw(&inside, "/tmp/data").session();
        for name in ["absolute", "relative", "../outside/secret"] {
            for way in ["read", "write", "reopen_read", "openat2_read", "chmod", "link_follow"] {
                session.refused(&format!("{way} /tmp/data/{name} /tmp/data/copy"));
            }
        }
        session.refused(&format!("read /tmp/data/root{secret}"));
        session.refused(&format!("up_read /tmp/data {secret}"));
        session.refused(&format!("climb_read /tmp/data {secret}"));
        session.refused("climb_read /tmp/data /outside/secret");
        session.allowed("mkdir /tmp/data/deep");
        session.refused(&format!("moved_read /tmp/data/deep /tmp/data {secret}"));
        session.refused("moved_read /tmp/data/deep /tmp/data /outside/secret");
        session.refused(&format!("moved_read /tmp/data /tmp {secret}"));
        session.allowed("rmdir /tmp/data/deep");
        session.finish().expect_code(0);
    }
    assert_eq!(dir.read("outside/secret"), SECRET);
}

/// The host moves a directory out of the grant while the sandbox stands in it; `..` must not lead on from there.
#[test]
fn a_directory_moved_out_of_the_grant_leads_nowhere() {
    let dir = TempDir::new();
    dir.dir("inside/sub");
    let secret = dir.file("secret", SECRET);
    let mut session = armed!().mode(Mode::Isolation).rw(&dir.at("inside"), "/tmp/data").session();
    session.allowed("stat /tmp/data/sub");
    fs::rename(dir.at("inside/sub"), dir.at("moved")).expect("we own it");
    session.refused("stat /tmp/data/sub");
    session.refused(&format!("up_read /tmp/data {secret}"));
    session.refused("climb_read /tmp/data /secret");
    session.finish().expect_code(0);
}

/// Mount points are not moved, removed or exchanged from inside.
#[test]
fn mount_points_stay() {
    let dir = TempDir::new();
    dir.dir("a/b");
    dir.file("c/file", SECRET);
    each_mode(|mode| {
        let mut session = armed!().mode(mode).rw(&dir.at("a"), "/tmp/data").ro(&dir.at("c"), "/tmp/data/b").session();
        for way in ["rmdir", "unlink"] {
            session.refused(&format!("{way} /tmp/data/b"));
            session.refused(&format!("{way} /tmp/data"));
            session.refused(&format!("{way} /tmp"));
        }
        session.allowed("mkdir /tmp/data/x");
        session.refused("rename /tmp/data/b /tmp/data/y");
        session.refused("rename /tmp/data/x /tmp/data/b");
        session.refused("exchange /tmp/data/x /tmp/data/b");
        session.refused("write /tmp/data/b/file");
        session.allowed("rmdir /tmp/data/x");
        session.finish().expect_code(0);
        assert_eq!(dir.listing(), ["a/", "a/b/", "c/", "c/file"]);
    });
}

/// What the sandbox makes on a writable grant belongs to the caller on the host.
#[test]
fn files_made_inside_belong_to_the_caller() {
    use std::os::unix::fs::MetadataExt;
    each_mode(|mode| {
        let dir = TempDir::new();
        let mut session = armed!().mode(mode).rw(&dir.text(), "/tmp/data").session();
        session.allowed("create /tmp/data/new");
        session.finish().expect_code(0);
        let made = fs::metadata(dir.at("new")).expect("it was made");
        assert_eq!(made.uid(), nix::unistd::geteuid().as_raw());
        assert_eq!(made.gid(), nix::unistd::getegid().as_raw());
    });
}

/// root's sandbox must not own what other users own.
#[test]
fn files_of_others_are_not_owned_inside() {
    if !as_root() {
        apex_tests::skip!("only root can make files of another user");
    }
    let dir = TempDir::new();
    let file = dir.file("theirs", SECRET);
    std::os::unix::fs::chown(&file, Some(1234), Some(1234)).expect("we are root");
    each_mode(|mode| {
        let mut session = armed!().mode(mode).rw(&dir.text(), "/tmp/data").session();
        for way in ["write", "chmod", "chown", "chown_root", "touch"] {
            session.refused(&format!("{way} /tmp/data/theirs"));
        }
        session.finish().expect_code(0);
    });
}

/// Device files of the host in a grant are not opened, and only harmless ones are in /dev.
#[test]
fn only_harmless_devices() {
    each_mode(|mode| {
        let mut session = armed!().mode(mode).session();
        let shown = session.allowed("list_devices /dev");
        for name in shown.split_whitespace() {
            let harmless =
                ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "stdin", "stdout", "stderr"];
            assert!(harmless.contains(&name), "/dev/{name} is in {} mode", mode.name());
        }
        session.allowed("write /dev/null");
        session.allowed("read /dev/urandom");
        session.finish().expect_code(0);
    });
    if as_root() {
        let dir = TempDir::new();
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
        nix::sys::stat::mknod(dir.at("null").as_str(), kind, mode, nix::sys::stat::makedev(1, 3)).expect("we are root");
        let mut session = armed!().mode(Mode::Isolation).rw(&dir.text(), "/tmp/data").session();
        session.refused("read /tmp/data/null");
        session.finish().expect_code(0);
    }
}
