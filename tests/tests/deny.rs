//! `--deny`: a path that nobody inside reaches, under no name, before and after it exists; and of which nothing stays on the host.

use std::fs;
use std::os::unix::fs::symlink;

use apex_tests::{Mode, Sandbox, Session, TempDir, armed, each_mode};

const SECRET: &str = "the secret";

/// Every way of reading `path`; none may show the secret, and none may succeed.
#[track_caller]
fn expect_unreadable(session: &mut Session, path: &str) {
    for way in
        ["read", "reopen_read", "procroot_read", "initroot_read", "dotdot_read", "openat2_read", "map_write", "lock"]
    {
        session.refused(&format!("{way} {path}"));
    }
    session.refused(&format!("up_read /tmp {path}"));
    session.refused(&format!("climb_read /tmp/data {path}"));
}

/// Every way of changing it or putting something in its place. `beside` is a writable directory of the same grant.
#[track_caller]
fn expect_immovable(session: &mut Session, path: &str, beside: &str) {
    for way in [
        "write",
        "append",
        "trunc_open",
        "truncate",
        "unlink",
        "rmdir",
        "create",
        "mkdir",
        "mkfifo",
        "chmod",
        "chown",
        "touch",
    ] {
        session.refused(&format!("{way} {path}"));
    }
    for way in ["rename", "exchange", "whiteout", "link", "link_follow", "link_procfd"] {
        session.refused(&format!("{way} {path} {beside}/stolen"));
    }
    session.allowed(&format!("create {beside}/mine"));
    for way in ["rename", "exchange", "link"] {
        session.refused(&format!("{way} {beside}/mine {path}"));
    }
    session.allowed(&format!("unlink {beside}/mine"));
    session.refused(&format!("unix_bind {path}"));
}

fn denying(mode: Mode, dir: &TempDir, denied: &str) -> Option<Sandbox> {
    Some(Sandbox::with_attack()?.mode(mode).rw(&dir.text(), "/tmp/data").deny(&dir.at(denied)))
}

macro_rules! denying {
    ($mode:expr, $dir:expr, $denied:expr) => {
        match denying($mode, $dir, $denied) {
            Some(sandbox) => sandbox,
            None => apex_tests::skip!("no C compiler with static libraries to build the attack program"),
        }
    };
}

/// It can be read, and that is all: the next run goes by it.
#[test]
fn the_policy_that_a_run_goes_by() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.dir("conf");
        dir.file("conf/p.toml", "description = \"mine\"\n");
        let sandbox = armed!().mode(mode).rw(&dir.text(), "/tmp/data").args(["--policy", &dir.at("conf/p.toml")]);
        let mut session = sandbox.session();
        assert_eq!(session.allowed("read /tmp/data/conf/p.toml"), "description = \"mine\"");
        expect_immovable(&mut session, "/tmp/data/conf/p.toml", "/tmp/data/conf");
        session.refused("rename /tmp/data/conf /tmp/data/moved");
        session.allowed("create /tmp/data/other");
        session.finish().expect_code(0);
        assert_eq!(dir.read("conf/p.toml"), "description = \"mine\"\n");
    });
}

/// Nor does it plant a mode or a profile for the next run, where there is none yet.
#[test]
fn modes_and_profiles_of_the_user() {
    for file in ["conf/other", "conf/apex/profiles/mine.toml"] {
        let dir = TempDir::new();
        dir.file(file, "");
        let sandbox = armed!().rw(&dir.text(), "/tmp/data").caller_env("XDG_CONFIG_HOME", &dir.at("conf"));
        let mut session = sandbox.session();
        for attempt in ["mkdir /tmp/data/conf/apex", "mkdir /tmp/data/conf/apex/modes"] {
            session.refused(attempt);
        }
        session.refused("create /tmp/data/conf/apex/profiles/python.toml");
        session.refused("write /tmp/data/conf/apex/profiles/mine.toml");
        session.allowed("mkdir /tmp/data/evil");
        session.refused("rename /tmp/data/evil /tmp/data/conf/apex");
        session.refused("rename /tmp/data/conf /tmp/data/moved");
        session.finish().expect_code(0);
        assert!(dir.listing().iter().all(|name| name.starts_with("conf/") || name == "evil/"), "{:?}", dir.listing());
        assert_eq!(dir.path().join("conf/apex").exists(), file.contains("apex"));
    }
}

#[test]
fn a_link_to_a_policy_that_a_run_could_replace() {
    let (dir, safe) = (TempDir::new(), TempDir::new());
    safe.file("p.toml", "");
    symlink(safe.at("p.toml"), dir.at("p.toml")).expect("a link");
    symlink(safe.path(), dir.at("conf")).expect("a link");
    for policy in ["p.toml", "conf/p.toml"] {
        let sandbox = Sandbox::new().args(["--rw", &dir.text(), "--policy", &dir.at(policy)]);
        sandbox.run(&["/bin/true"]).expect_refusal(&[policy, "symbolic link", "at the next run", &safe.at("p.toml")]);
    }
}

/// The policy's file has a bind of its own, which is no wall between the host and what is denied beside it.
#[test]
fn the_directory_of_a_policy_that_the_host_moves() {
    let dir = TempDir::new();
    dir.file("conf/p.toml", "");
    dir.file("conf/secret", SECRET);
    let sandbox = denying!(Mode::Isolation, &dir, "conf/secret").args(["--policy", &dir.at("conf/p.toml")]);
    let mut session = sandbox.session();
    session.refused("read /tmp/data/conf/secret");
    fs::rename(dir.at("conf"), dir.at("moved")).expect("the host may use the name");
    dir.file("conf/secret", SECRET);
    expect_ended(session, "conf");
}

#[test]
fn an_existing_file() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("secret", SECRET);
        dir.file("open", "open");
        let mut session = denying!(mode, &dir, "secret").session();
        assert_eq!(session.allowed("read /tmp/data/open"), "open");
        expect_unreadable(&mut session, "/tmp/data/secret");
        expect_immovable(&mut session, "/tmp/data/secret", "/tmp/data");
        session.finish().expect_code(0);
        assert_eq!(dir.read("secret"), SECRET);
        assert_eq!(dir.listing(), ["open", "secret"]);
    });
}

#[test]
fn an_existing_directory_with_all_beneath_it() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("keys/one", SECRET);
        dir.file("keys/deep/two", SECRET);
        let mut session = denying!(mode, &dir, "keys").session();
        expect_unreadable(&mut session, "/tmp/data/keys/one");
        expect_unreadable(&mut session, "/tmp/data/keys/deep/two");
        for way in ["list", "chdir", "watch", "create", "mkdir", "reopen_read"] {
            session.refused(&format!("{way} /tmp/data/keys/"));
        }
        session.refused("create /tmp/data/keys/new");
        expect_immovable(&mut session, "/tmp/data/keys", "/tmp/data");
        session.finish().expect_code(0);
        assert_eq!(dir.listing(), ["keys/", "keys/deep/", "keys/deep/two", "keys/one"]);
    });
}

/// A name that nobody has yet cannot be taken from inside, and nothing of the placeholder stays.
#[test]
fn a_missing_file_is_not_created_inside() {
    each_mode(|mode| {
        let dir = TempDir::new();
        let mut session = denying!(mode, &dir, "secret").session();
        expect_unreadable(&mut session, "/tmp/data/secret");
        expect_immovable(&mut session, "/tmp/data/secret", "/tmp/data");
        session.allowed("create /tmp/data/other");
        session.refused("rename /tmp/data/other /tmp/data/secret");
        session.finish().expect_code(0);
        assert_eq!(dir.listing(), ["other"], "something was left on the host");
    });
}

/// The directory above is missing too.
#[test]
fn a_missing_file_in_a_missing_directory() {
    let dir = TempDir::new();
    let mut session = denying!(Mode::Isolation, &dir, "keys/secret").session();
    session.ask("mkdir /tmp/data/keys");
    session.refused("create /tmp/data/keys/secret");
    session.refused("read /tmp/data/keys/secret");
    session.finish().expect_code(0);
    assert!(!dir.path().join("keys/secret").exists(), "something was left on the host: {:?}", dir.listing());
}

/// What the host creates there while the sandbox runs stays denied: written in place, and renamed over the name.
#[test]
fn a_file_that_the_host_creates_later() {
    each_mode(|mode| {
        let dir = TempDir::new();
        let mut session = denying!(mode, &dir, "secret").session();
        session.refused("read /tmp/data/secret");
        fs::write(dir.at("secret"), SECRET).expect("the host may use the name");
        expect_unreadable(&mut session, "/tmp/data/secret");
        session.refused("write /tmp/data/secret");
        dir.file("fresh", SECRET);
        fs::rename(dir.at("fresh"), dir.at("secret")).expect("the host may use the name");
        expect_ended(session, "secret");
        assert_eq!(dir.read("secret"), SECRET, "the host's file was taken away");
    });
}

/// The kernel drops the mask of a file that the host replaces, so the launcher ends the sandbox at once and says so.
#[track_caller]
fn expect_ended(session: Session, name: &str) {
    session.wait_for_end().expect_refusal(&[name, "replaced", "ended"]);
}

/// An editor on the host saves the denied file by writing another and renaming it over.
#[test]
fn a_file_that_the_host_replaces() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("secret", SECRET);
        let mut session = denying!(mode, &dir, "secret").session();
        session.refused("read /tmp/data/secret");
        dir.file("fresh", SECRET);
        fs::rename(dir.at("fresh"), dir.at("secret")).expect("the host may use the name");
        expect_ended(session, "secret");
        assert_eq!(dir.read("secret"), SECRET);
    });
}

/// The same by taking it away and writing it anew.
#[test]
fn a_file_that_the_host_removes_and_writes_anew() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("secret", SECRET);
        let mut session = denying!(mode, &dir, "secret").session();
        session.refused("read /tmp/data/secret");
        fs::remove_file(dir.at("secret")).expect("the host may use the name");
        fs::write(dir.at("secret"), SECRET).expect("the host may use the name");
        expect_ended(session, "secret");
        assert_eq!(dir.read("secret"), SECRET);
    });
}

/// A directory above is moved away from inside and the name made anew.
#[test]
fn moving_the_directory_above() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("a/b/secret", SECRET);
        let mut session = denying!(mode, &dir, "a/b/secret").session();
        for (from, to) in
            [("/tmp/data/a", "/tmp/data/x"), ("/tmp/data/a/b", "/tmp/data/a/y"), ("/tmp/data/a/b", "/tmp/data/z")]
        {
            session.refused(&format!("rename {from} {to}"));
        }
        session.allowed("mkdir /tmp/data/other");
        session.refused("exchange /tmp/data/a /tmp/data/other");
        session.refused("exchange /tmp/data/a/b /tmp/data/other");
        session.refused("rename /tmp/data/other /tmp/data/a");
        expect_unreadable(&mut session, "/tmp/data/a/b/secret");
        session.allowed("create /tmp/data/a/b/beside");
        session.allowed("create /tmp/data/a/beside");
        session.finish().expect_code(0);
        assert_eq!(dir.read("a/b/secret"), SECRET);
    });
}

/// The same for a name that does not exist yet.
#[test]
fn moving_the_directory_above_a_missing_file() {
    let dir = TempDir::new();
    dir.dir("a");
    let mut session = denying!(Mode::Isolation, &dir, "a/secret").session();
    session.refused("rename /tmp/data/a /tmp/data/x");
    session.refused("create /tmp/data/a/secret");
    session.finish().expect_code(0);
    assert_eq!(dir.listing(), ["a/"], "something was left on the host");
}

/// A hard link that existed before is another name of the same file; which of its names were meant cannot be known, so this
/// documents what holds: the denied name, not the inode.
#[test]
fn hard_links_are_not_made_inside() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("secret", SECRET);
        let mut session = denying!(mode, &dir, "secret").session();
        for way in ["link", "link_follow", "link_procfd"] {
            session.refused(&format!("{way} /tmp/data/secret /tmp/data/copy"));
            session.refused(&format!("{way} /tmp/data/secret /tmp/copy"));
        }
        session.finish().expect_code(0);
    });
}

#[test]
fn symbolic_links_lead_to_the_refusal() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("keys/secret", SECRET);
        symlink("keys/secret", dir.at("before")).expect("we own it");
        symlink("keys", dir.at("dir")).expect("we own it");
        let mut session = denying!(mode, &dir, "keys").session();
        session.allowed("symlink /tmp/data/keys/secret /tmp/data/after");
        session.allowed("symlink /tmp/data/keys/secret /tmp/after");
        for name in ["/tmp/data/before", "/tmp/data/dir/secret", "/tmp/data/after", "/tmp/after"] {
            for way in ["read", "reopen_read", "openat2_read", "write", "truncate"] {
                session.refused(&format!("{way} {name}"));
            }
        }
        session.finish().expect_code(0);
        assert_eq!(dir.read("keys/secret"), SECRET);
    });
}

/// The denied path is named through a symbolic link of the host: what it leads to is denied.
#[test]
fn a_deny_through_a_symbolic_link() {
    let dir = TempDir::new();
    dir.file("real/secret", SECRET);
    symlink("real", dir.at("alias")).expect("we own it");
    let mut session = denying!(Mode::Isolation, &dir, "alias/secret").session();
    session.refused("read /tmp/data/alias/secret");
    session.refused("read /tmp/data/real/secret");
    session.finish().expect_code(0);
}

/// The denied name itself is a symbolic link: neither the name nor what it leads to is reached.
#[test]
fn a_deny_of_a_symbolic_link() {
    let dir = TempDir::new();
    dir.file("real", SECRET);
    symlink("real", dir.at("secret")).expect("we own it");
    let mut session = denying!(Mode::Isolation, &dir, "secret").session();
    session.refused("read /tmp/data/secret");
    session.refused("read /tmp/data/real");
    session.finish().expect_code(0);
}

/// One directory granted at two places: the rule holds at both.
#[test]
fn a_directory_that_is_granted_twice() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("secret", SECRET);
        dir.file("sub/secret", SECRET);
        let sandbox = armed!()
            .mode(mode)
            .rw(&dir.text(), "/tmp/one")
            .ro(&dir.text(), "/tmp/two")
            .rw(&dir.at("sub"), "/tmp/three")
            .deny(&dir.at("secret"))
            .deny(&dir.at("sub/secret"));
        let mut session = sandbox.session();
        for path in
            ["/tmp/one/secret", "/tmp/two/secret", "/tmp/one/sub/secret", "/tmp/two/sub/secret", "/tmp/three/secret"]
        {
            session.refused(&format!("read {path}"));
            session.refused(&format!("reopen_read {path}"));
        }
        session.refused("rename /tmp/one/sub /tmp/one/moved");
        session.finish().expect_code(0);
    });
}

#[test]
fn inside_a_read_only_grant() {
    each_mode(|mode| {
        let dir = TempDir::new();
        dir.file("secret", SECRET);
        let sandbox = armed!().mode(mode).ro(&dir.text(), "/tmp/data").deny(&dir.at("secret")).deny(&dir.at("missing"));
        let mut session = sandbox.session();
        session.refused("read /tmp/data/secret");
        session.refused("read /tmp/data/missing");
        fs::write(dir.at("missing"), SECRET).expect("the host may use the name");
        session.refused("read /tmp/data/missing");
        session.finish().expect_code(0);
        assert_eq!(dir.listing(), ["missing", "secret"]);
    });
}

/// The grant itself is denied: deny wins.
#[test]
fn deny_wins_over_the_grant() {
    let dir = TempDir::new();
    dir.file("secret", SECRET);
    let file = dir.at("secret");
    for sandbox in [
        armed!().rw(&dir.text(), "/tmp/data").deny(&dir.text()),
        armed!().ro(&file, "/tmp/data/secret").deny(&file),
        armed!().deny(&file).ro(&dir.text(), "/tmp/data"),
    ] {
        let output = sandbox.mode(Mode::Isolation).run(&["/tmp/attack/attack64", "read", "/tmp/data/secret"]);
        // A contradiction may also be refused before anything starts.
        if output.code != apex_tests::APEX_FAILED {
            assert!(output.answer("read").starts_with('E'), "{}", output.out());
        }
    }
}

/// A path of another spelling is the same path.
#[test]
fn other_spellings() {
    let dir = TempDir::new();
    dir.file("a/secret", SECRET);
    for spelling in ["a/./secret", "a//secret", "a/../a/secret", "a/secret/"] {
        let sandbox = denying!(Mode::Isolation, &dir, spelling);
        let output = sandbox.run(&["/tmp/attack/attack64", "read", "/tmp/data/a/secret"]);
        if output.code != apex_tests::APEX_FAILED {
            assert!(output.answer("read").starts_with('E'), "--deny {spelling}: {}", output.out());
        }
    }
}
