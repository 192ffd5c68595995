//! `--overlay`, `apex-run diff` and `apex-run commit`: the host stays as it is until somebody applies what a run changed.

use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use apex_tests::{Sandbox, TempDir, as_root};

struct Overlay {
    work: TempDir,
    kept: TempDir,
}

impl Overlay {
    /// Runs a shell line in the directory, on an overlay.
    fn run(work: TempDir, line: &str) -> Overlay {
        let kept = TempDir::new();
        let (host, dir) = (work.text(), kept.at("o"));
        let output =
            Sandbox::new().args(["--rw", &host, "--workdir", &host, "--overlay", &dir]).run(&["/bin/sh", "-c", line]);
        output.expect_code(0);
        Overlay { work, kept }
    }

    fn verb(&self, words: &[&str]) -> (i32, String) {
        let (verb, rest) = words.split_first().expect("a verb");
        let output = Command::new(apex_tests::apex_run())
            .arg(verb)
            .arg(self.kept.at("o"))
            .args(rest)
            .output()
            .expect("apex-run can be started");
        (output.status.code().expect("it exits"), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Exit code, output and errors of a verb.
fn verb(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(apex_tests::apex_run()).args(words).output().expect("apex-run can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it exits"), text(&output.stdout), text(&output.stderr))
}

fn tree() -> TempDir {
    let work = TempDir::new();
    work.file("changed", "old");
    work.file("removed", "old");
    work.file("kept", "old");
    work.file("mode", "old");
    work.dir("dir");
    work.file("dir/inner", "old");
    work
}

const CHANGES: &str = "echo new > changed; rm removed; chmod 600 mode; rm -r dir; mkdir dir; echo new > dir/other; echo new > added; \
    ln -s /etc/passwd link; touch kept; mkfifo pipe";

#[test]
fn the_host_changes_only_when_somebody_applies_it() {
    let overlay = Overlay::run(tree(), CHANGES);
    assert_eq!(overlay.work.read("changed"), "old");
    assert_eq!(overlay.work.read("dir/inner"), "old");
    let work = overlay.kept.at("o/0/work");
    assert!(!Path::new(&work).exists(), "what the kernel needed is gone, so the owner can remove the rest");
    let (code, diff) = overlay.verb(&["diff"]);
    assert_eq!(code, 0);
    let work = overlay.work.text();
    let signs: Vec<String> =
        diff.lines().filter_map(|line| Some(line.split(" (").next()?.replace(&work, ""))).collect();
    for line in
        ["+ /added", "~ /changed", "- /dir/inner", "+ /dir/other", "+ /link", "m /mode", "+ /pipe", "- /removed"]
    {
        assert!(signs.iter().any(|sign| sign == line), "{line}\n{diff}");
    }
    assert!(!diff.contains("kept"), "what was only touched is no change: {diff}");
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 125, "a FIFO is never applied: {said}");
    assert_eq!(overlay.work.read("changed"), "new\n");
    assert_eq!(overlay.work.read("dir/other"), "new\n");
    assert_eq!(std::fs::metadata(overlay.work.at("mode")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_link(overlay.work.at("link")).unwrap(), Path::new("/etc/passwd"));
    for gone in ["removed", "dir/inner", "pipe"] {
        assert!(!Path::new(&overlay.work.at(gone)).exists(), "{gone}");
    }
}

#[test]
fn what_changed_on_the_host_since_is_left() {
    let overlay = Overlay::run(tree(), "echo new > changed; rm removed; echo new > added");
    overlay.work.file("changed", "by hand");
    overlay.work.file("added", "by hand");
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 125);
    assert!(
        said.contains("it changed on the host since") && said.contains("it came into being on the host since"),
        "{said}"
    );
    assert_eq!(
        (overlay.work.read("changed"), overlay.work.read("added")),
        ("by hand".to_owned(), "by hand".to_owned())
    );
    assert!(!Path::new(&overlay.work.at("removed")).exists());
}

#[test]
fn a_part_can_be_picked() {
    let overlay = Overlay::run(tree(), "mkdir new; echo new > new/a; echo new > new/b; echo new > added");
    let (code, said) = overlay.verb(&["commit", &overlay.work.at("new/a")]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(overlay.work.read("new/a"), "new\n");
    assert!(!Path::new(&overlay.work.at("new/b")).exists() && !Path::new(&overlay.work.at("added")).exists());
}

#[test]
fn a_link_on_the_host_leads_nobody_out() {
    let outside = TempDir::new();
    let overlay = Overlay::run(tree(), "echo new > dir/inner; echo new > dir/more");
    // Between the run and the commit somebody turns the directory into a link.
    std::fs::remove_dir_all(overlay.work.at("dir")).unwrap();
    symlink(outside.path(), overlay.work.at("dir")).unwrap();
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 125, "{said}");
    assert!(outside.listing().is_empty(), "{said}");
}

#[test]
fn hostile_names_are_shown_harmlessly() {
    let overlay = Overlay::run(tree(), "touch \"$(printf 'x\\033[2Jy')\"");
    for words in [&["diff"][..], &["diff", "--json"]] {
        let (_, text) = overlay.verb(words);
        assert!(!text.contains('\u{1b}') && text.contains("[2Jy"), "{text:?}");
    }
    let (code, _) = overlay.verb(&["commit"]);
    assert_eq!(code, 0);
    assert!(Path::new(&overlay.work.at("x\u{1b}[2Jy")).exists(), "the name itself is applied as it is");
}

#[test]
fn set_user_id_bits_do_not_pass() {
    let work = TempDir::new();
    work.file("tool", "old");
    let overlay = Overlay::run(work, "echo new > tool");
    // The sandbox's own filter refuses such bits; a layer that has them all the same gives nothing on.
    let upper = overlay.kept.at("o/0/upper/tool");
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(std::fs::metadata(overlay.work.at("tool")).unwrap().mode() & 0o6000, 0);
}

#[test]
fn an_overlay_is_never_made_in_what_it_covers_or_over_another() {
    let work = TempDir::new();
    let host = work.text();
    let within = work.at("o");
    let run = |dir: &str| Sandbox::new().args(["--rw", &host, "--overlay", dir]).run(&["/bin/true"]);
    run(&within).expect_refusal(&["is overlaid", "outside of it"]);
    let kept = TempDir::new();
    kept.file("something", "");
    run(&kept.text()).expect_refusal(&["not empty"]);
}

#[test]
fn a_command_of_a_verbs_name_runs_behind_dashes() {
    let output = Sandbox::new().run(&["diff", "/etc/nsswitch.conf", "/etc/nsswitch.conf"]);
    output.expect_code(0);
}

/// What a review found: a link or another directory under the name of the piece, put there between the run and the commit by who owns
/// the directory above it.
#[test]
fn a_piece_that_was_exchanged_is_left() {
    let above = TempDir::new();
    above.dir("piece");
    let other = TempDir::new();
    let (host, kept) = (above.at("piece"), TempDir::new());
    let dir = kept.at("o");
    let output = Sandbox::new().args(["--rw", &host, "--overlay", &dir]).run(&[
        "/bin/sh",
        "-c",
        &format!("echo new > {host}/x"),
    ]);
    assert!(output.expect_code(0).err().contains("1 change is kept; see it with"));
    std::fs::rename(&host, above.at("moved")).unwrap();
    std::fs::create_dir(&host).unwrap();
    let (code, said, _) = verb(&["commit", &dir]);
    assert!(code == 125 && said.contains("another directory than the one that the run was given"), "{said}");
    std::fs::remove_dir(&host).unwrap();
    symlink(other.path(), &host).unwrap();
    let (code, said, _) = verb(&["commit", &dir]);
    assert_eq!(code, 125, "{said}");
    assert!(other.listing().is_empty() && above.listing() == ["moved/", "piece"], "{said}");
    // The same link to the same directory is harmless, as long as it is not another user's.
    std::fs::remove_file(&host).unwrap();
    symlink("moved", &host).unwrap();
    if as_root() {
        lchown(&host, Some(4242), Some(4242)).unwrap();
        let (code, said, _) = verb(&["commit", &dir]);
        assert!(code == 125 && said.contains("belongs to user 4242"), "{said}");
        lchown(&host, Some(0), Some(0)).unwrap();
    }
    let (code, said, _) = verb(&["commit", &dir]);
    assert_eq!((code, std::fs::read_to_string(above.at("moved/x")).unwrap().as_str()), (0, "new\n"), "{said}");
}

#[test]
fn an_overlay_of_another_user_is_not_believed() {
    let overlay = Overlay::run(tree(), "echo new > changed");
    let dir = overlay.kept.at("o");
    let manifest = format!("{dir}/apex-overlay.json");
    let refused = |words: &str| {
        for word in ["diff", "commit"] {
            let (code, said, err) = verb(&[word, &dir]);
            assert!(code == 125 && err.contains(words), "{word}: {said}{err}");
        }
        assert_eq!(overlay.work.read("changed"), "old");
    };
    let mode = |path: &str, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(&dir, 0o770);
    refused("others than its owner may write it");
    mode(&dir, 0o700);
    mode(&manifest, 0o622);
    refused("others than its owner may write it");
    mode(&manifest, 0o600);
    if as_root() {
        for path in [&dir, &manifest] {
            lchown(path, Some(4242), None).unwrap();
            refused("belongs to user 4242");
            lchown(path, Some(0), None).unwrap();
        }
    }
    symlink(&dir, overlay.kept.at("link")).unwrap();
    let (code, _, err) = verb(&["diff", &overlay.kept.at("link")]);
    assert!(code == 125 && err.contains("name the directory itself"), "{err}");
}

/// A planted link in it would have what it leads to copied into the open.
#[test]
fn links_in_an_overlay_lead_nowhere() {
    let secret = TempDir::new();
    secret.file("changed", "secret");
    for place in ["o/0/upper", "o/0"] {
        let overlay = Overlay::run(tree(), "echo new > changed");
        std::fs::rename(overlay.kept.at(place), overlay.kept.at("away")).unwrap();
        symlink(secret.path(), overlay.kept.at(place)).unwrap();
        if place == "o/0" {
            symlink(".", secret.at("upper")).unwrap();
        }
        let (code, said) = overlay.verb(&["commit"]);
        assert!(code == 125 && overlay.work.read("changed") == "old", "{place}: {said}");
    }
}

#[test]
fn a_denied_path_is_not_committed_through_links() {
    let above = TempDir::new();
    above.dir("real/home");
    symlink("real", above.at("lnk")).unwrap();
    let real = above.at("real/home");
    let run = |name: &str, home: &str, line: &str| {
        let dir = above.at(name);
        let line = format!("cd {real}; {line}");
        let sandbox =
            Sandbox::new().args(["--mode", "hybrid", "--rw", &real, "--overlay", &dir]).caller_env("HOME", home);
        sandbox.run(&["/bin/sh", "-c", &line]).expect_code(0);
        verb(&["commit", &dir])
    };
    let (code, said, _) = run("o1", &above.at("lnk/home"), "mkdir .ssh; echo key > .ssh/authorized_keys");
    assert!(code == 125 && !Path::new(&above.at("real/home/.ssh")).exists(), "{said}");
    let line = "mkdir -p .cfg/gcloud; echo evil > .cfg/gcloud/credentials.db; ln -s .cfg .config";
    let (code, said, _) = run("o2", &real, line);
    assert!(code == 125 && said.contains("a link on the way to what a rule of the run denies"), "{said}");
    assert!(!Path::new(&above.at("real/home/.config")).exists(), "{said}");
    // A link of the host on the way may not be led elsewhere either.
    symlink("dot", above.at("real/home/.config")).unwrap();
    above.dir("real/home/dot");
    let line = "mkdir -p dot/gcloud evil/gcloud; echo evil > dot/gcloud/x; rm .config; ln -s evil .config";
    let (code, said, _) = run("o3", &real, line);
    assert_eq!(code, 125, "{said}");
    assert_eq!(std::fs::read_link(above.at("real/home/.config")).unwrap(), Path::new("dot"), "{said}");
    assert!(!Path::new(&above.at("real/home/dot/gcloud")).exists(), "{said}");
}

/// Without the standard library of Rust, which knows no extended attributes.
fn python(work: &TempDir, line: &str) -> String {
    let output = Command::new("python3").args(["-c", &format!("import os\n{line}")]).current_dir(work.path()).output();
    let output = output.expect("python3 starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The group bits of a file with an access list are the mask of that list: without it they would be a right of the group. Capabilities
/// were given to the program that stood there, and not to what a sandbox wrote.
#[test]
fn access_list_and_attributes_of_the_old_file_stay_and_its_capabilities_go() {
    const LIST: &str = "02000000 01000600ffffffff 02000600d2040000 04000000ffffffff 10000600ffffffff 20000000ffffffff";
    const NET_RAW: &str = "0100000200200000000000000000000000000000";
    let work = tree();
    let set = |name: &str, value: &str| format!("os.setxattr('changed', '{name}', bytes.fromhex('{value}'))\n");
    python(&work, &format!("os.chmod('changed', 0o660)\n{}", set("system.posix_acl_access", LIST)));
    python(&work, &set("user.note", "6b657074"));
    if as_root() {
        python(&work, &set("security.capability", NET_RAW));
    }
    // Inside it is made anew: the layer knows nothing of the list.
    let overlay = Overlay::run(work, "rm changed; echo new > changed; chmod 660 changed");
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!((code, overlay.work.read("changed").as_str()), (0, "new\n"), "{said}");
    let names =
        "print(*sorted(os.listxattr('changed')))\nprint(os.getxattr('changed', 'system.posix_acl_access').hex())";
    let expected = format!("system.posix_acl_access user.note\n{}", LIST.replace(' ', ""));
    assert_eq!(python(&overlay.work, names), expected);
}

#[test]
fn deep_names_stand_in_nobodys_way() {
    let work = TempDir::new();
    let name = "d".repeat(250);
    let line = format!(
        "echo new > added; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mkdir {name}; cd {name}; done; echo deep > x"
    );
    let overlay = Overlay::run(work, &line);
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(overlay.work.read("added"), "new\n");
    let steps = format!(
        "cd {}; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do cd {name}; done; cat x",
        overlay.work.text()
    );
    let output = Command::new("/bin/sh").args(["-c", &steps]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deep\n", "{output:?}");
    // Beside them, the removal of what lies as deep on the host.
    let kept = TempDir::new();
    let line = format!("rm -r {name}; echo newer > added");
    let host = overlay.work.text();
    let sandbox = Sandbox::new().args(["--rw", &host, "--workdir", &host, "--overlay", &kept.at("o")]);
    sandbox.run(&["/bin/sh", "-c", &line]).expect_code(0);
    let (code, said, _) = verb(&["commit", &kept.at("o")]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(overlay.work.listing(), ["added"]);
}

#[test]
fn what_cannot_be_looked_at_is_told_and_ends_nothing() {
    let work = TempDir::new();
    let line = "echo new > added; n=0; while [ $n -lt 260 ]; do mkdir d; cd d; n=$((n+1)); done; echo x > x; exit 7";
    let kept = TempDir::new();
    let (host, dir) = (work.text(), kept.at("o"));
    let sandbox = Sandbox::new().args(["--rw", &host, "--workdir", &host, "--overlay", &dir]);
    let output = sandbox.run(&["/bin/sh", "-c", line]);
    assert!(output.expect_code(7).err().contains("not looked at: "));
    let (code, said, err) = verb(&["commit", &dir]);
    assert!(code == 125 && err.contains("deeper than 256 directories"), "{said}{err}");
    assert_eq!(work.read("added"), "new\n");
}

#[test]
fn a_commit_can_be_repeated() {
    let line = "echo new > changed; rm removed; chmod 600 mode; rm -r dir; ln -s kept dir; mkdir closed; echo x > closed/x; \
        chmod 500 closed; echo new > added; rm kept; mkdir kept; echo x > kept/x";
    let overlay = Overlay::run(tree(), line);
    for round in ["first", "second"] {
        let (code, said) = overlay.verb(&["commit"]);
        assert_eq!(code, 0, "{round}: {said}");
    }
    assert_eq!(overlay.work.listing(), ["added", "changed", "closed/", "closed/x", "dir", "kept/", "kept/x", "mode"]);
    overlay.work.file("added", "by hand");
    let (code, said) = overlay.verb(&["commit"]);
    assert!(code == 125 && overlay.work.read("added") == "by hand", "what is no longer equal is a conflict: {said}");
    std::fs::set_permissions(overlay.work.at("closed"), std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Whenever a commit is killed, the next one completes it and leaves nothing beside.
#[test]
fn a_killed_commit_is_completed_by_the_next() {
    let line = "n=0; mkdir -p new/dir; while [ $n -lt 150 ]; do echo new > c$n; echo new > new/dir/$n; ln -s x l$n; n=$((n+1)); done";
    let work = TempDir::new();
    for number in 0..150 {
        work.file(&format!("c{number}"), "old");
    }
    let overlay = Overlay::run(work, line);
    let dir = overlay.kept.at("o");
    for pause_ms in [5, 20, 40, 60] {
        let mut commit = Command::new(apex_tests::apex_run())
            .args(["commit", &dir])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(pause_ms));
        let _ = commit.kill();
        commit.wait().unwrap();
    }
    // What one leaves that is killed between two calls, or where files without a name cannot be had.
    let about = std::fs::metadata(&dir).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&overlay.kept.read("o/apex-overlay.json")).unwrap();
    let at = |key: &str| manifest["started"][key].as_i64().unwrap();
    let half = format!(".apex-commit-{:x}-{:x}-{:x}", about.ino(), at("s"), at("ns"));
    // A kill may have left a link there, through which the file would be written elsewhere.
    let _ = std::fs::remove_file(overlay.work.at(&half));
    overlay.work.file(&half, "half");
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 0, "{said}");
    let listing = overlay.work.listing();
    assert_eq!(listing.len(), 3 * 150 + 2, "{listing:?}");
    assert!((0..150).all(|number| overlay.work.read(&format!("c{number}")) == "new\n"));
}

#[test]
fn an_overlay_is_never_made_in_what_it_covers_by_any_name() {
    let work = TempDir::new();
    work.dir("p");
    work.dir("x");
    symlink("p", work.at("plink")).unwrap();
    let host = work.at("p");
    for dir in [work.at("plink/o"), work.at("x/../p/o"), work.at("p")] {
        let output = Sandbox::new().args(["--rw", &host, "--overlay", &dir]).run(&["/bin/true"]);
        output.expect_refusal(&["is overlaid", "outside of it"]);
        assert!(std::fs::read_dir(&host).unwrap().next().is_none(), "{dir}: something was made");
    }
    symlink(work.at("x"), work.at("own")).unwrap();
    let output = Sandbox::new().args(["--rw", &host, "--overlay", &work.at("own")]).run(&["/bin/true"]);
    output.expect_refusal(&["name the directory itself"]);
    // Beside it is not in it, however it is spelled.
    Sandbox::new().args(["--rw", &host, "--overlay", &work.at("p/../beside")]).run(&["/bin/true"]).expect_code(0);
    if as_root() {
        let (other, aim) = (TempDir::new(), TempDir::new());
        symlink(aim.path(), other.at("link")).unwrap();
        lchown(other.at("link"), Some(4242), Some(4242)).unwrap();
        let output = Sandbox::new().args(["--rw", &host, "--overlay", &other.at("link/o")]).run(&["/bin/true"]);
        output.expect_refusal(&["belongs to user 4242"]);
        assert!(aim.listing().is_empty(), "something was made beyond another user's link");
    }
}

#[test]
fn a_directory_that_was_exchanged_on_the_host_is_left() {
    // Since the run.
    let overlay = Overlay::run(tree(), "echo new > dir/more");
    std::fs::rename(overlay.work.at("dir"), overlay.work.at("dir2")).unwrap();
    overlay.work.dir("dir");
    let (code, said) = overlay.verb(&["commit"]);
    assert!(code == 125 && said.contains("is another on the host since"), "{said}");
    assert!(std::fs::read_dir(overlay.work.at("dir")).unwrap().next().is_none());
}

/// By a new one, and by one that was there before.
#[test]
fn a_directory_that_is_exchanged_during_the_run_is_left() {
    for old in [None, Some("before")] {
        exchange_during_a_run(old);
    }
}

fn exchange_during_a_run(old: Option<&str>) {
    let (work, kept, sign) = (tree(), TempDir::new(), TempDir::new());
    work.dir("before");
    let (host, dir) = (work.text(), kept.at("o"));
    let sandbox = Sandbox::new().args(["--rw", &host, "--workdir", &host, "--overlay", &dir, "--ro", &sign.text()]);
    let line = format!(
        "echo new > dir/more; n=0; while [ $n -lt 100 ] && ! [ -e {}/go ]; do sleep 0.1; n=$((n+1)); done",
        sign.text()
    );
    let session = std::thread::spawn(move || sandbox.run(&["/bin/sh", "-c", &line]));
    let upper = kept.at("o/0/upper/dir/more");
    for _ in 0..200 {
        if Path::new(&upper).exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::rename(work.at("dir"), work.at("dir2")).expect("we own it");
    let new = old.unwrap_or("fresh");
    work.dir(new);
    std::fs::rename(work.at(new), work.at("dir")).expect("we own it");
    sign.file("go", "");
    session.join().expect("it does not panic").expect_code(0);
    let (code, said, _) = verb(&["commit", &dir]);
    assert_eq!(code, 125, "{old:?}: {said}");
    assert!(std::fs::read_dir(work.at("dir")).expect("we own it").next().is_none(), "{old:?}: {said}");
}

#[test]
fn permissions_of_a_directory_that_changed_on_the_host_are_left() {
    let overlay = Overlay::run(tree(), "chmod 711 dir");
    let mode = |mode| std::fs::set_permissions(overlay.work.at("dir"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o700);
    let (code, said) = overlay.verb(&["commit"]);
    assert!(code == 125 && said.contains("its permissions changed on the host since"), "{said}");
    assert_eq!(std::fs::metadata(overlay.work.at("dir")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_sparse_file_stays_sparse() {
    let overlay = Overlay::run(tree(), "truncate -s 64M added; echo x >> added");
    let (code, said) = overlay.verb(&["commit"]);
    assert_eq!(code, 0, "{said}");
    let about = std::fs::metadata(overlay.work.at("added")).unwrap();
    assert!(about.size() > 64 << 20 && about.blocks() < 8192, "{} bytes in {} blocks", about.size(), about.blocks());
}

/// By whatever name: the next run goes by what the commit would leave there.
#[test]
fn the_policy_of_the_run_is_not_committed() {
    let (work, kept) = (tree(), TempDir::new());
    work.file("p.toml", "");
    symlink("p.toml", work.at("link.toml")).unwrap();
    let (host, dir) = (work.text(), kept.at("o"));
    let line = "echo 'description = \"other\"' > p.toml; rm link.toml; echo > link.toml; echo new > changed";
    let sandbox = Sandbox::new().args(["--rw", &host, "--workdir", &host, "--overlay", &dir]);
    sandbox.args(["--policy", &work.at("link.toml")]).run(&["/bin/sh", "-c", line]).expect_code(0);
    let (code, said, _) = verb(&["commit", &dir]);
    assert!(code == 125 && said.contains("or it is a file of its policy"), "{said}");
    assert_eq!((work.read("p.toml"), work.read("changed")), (String::new(), "new\n".to_owned()), "{said}");
    assert_eq!(std::fs::read_link(work.at("link.toml")).unwrap(), Path::new("p.toml"));
}

/// Beside each other, so that not all of them are open at once.
#[test]
fn many_closed_directories_are_committed_with_few_descriptors() {
    let line = "n=0; while [ $n -lt 60 ]; do mkdir d$n; echo new > d$n/x; chmod 500 d$n; n=$((n+1)); done";
    let overlay = Overlay::run(TempDir::new(), line);
    let commit = format!("ulimit -n 40; exec {} commit {}", apex_tests::apex_run().display(), overlay.kept.at("o"));
    let output = Command::new("/bin/sh").args(["-c", &commit]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    for number in 0..60 {
        let mode = std::fs::metadata(overlay.work.at(&format!("d{number}"))).unwrap().mode() & 0o777;
        assert_eq!((mode, overlay.work.read(&format!("d{number}/x")).as_str()), (0o500, "new\n"));
    }
}

/// Also again, when it is closed already.
#[test]
fn a_directory_that_the_run_closed_is_filled_before() {
    let overlay = Overlay::run(tree(), "echo new > dir/inner; echo new > dir/more; chmod 555 dir");
    for round in ["first", "second"] {
        let (code, said) = overlay.verb(&["commit"]);
        let mode = std::fs::metadata(overlay.work.at("dir")).unwrap().mode() & 0o777;
        assert_eq!((code, mode), (0, 0o555), "{round}: {said}");
    }
    std::fs::set_permissions(overlay.work.at("dir"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!((overlay.work.read("dir/inner"), overlay.work.read("dir/more")), ("new\n".into(), "new\n".into()));
}

#[test]
fn a_commit_tells_each_change_as_json() {
    let overlay = Overlay::run(tree(), "rm kept; mkdir kept; echo new > changed; mkfifo pipe");
    overlay.work.file("changed", "by hand");
    let (code, said) = overlay.verb(&["commit", "--json"]);
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let word = |key: &str| line[key].as_str().unwrap().to_owned();
            let name = word("path").rsplit('/').next().unwrap().to_owned();
            (name, word("change"), word("kind"), line["applied"].as_bool().unwrap(), line["because"].is_string())
        })
        .collect();
    let row = |name: &str, change: &str, kind: &str, applied: bool| {
        (name.to_owned(), change.to_owned(), kind.to_owned(), applied, !applied)
    };
    let expected = [
        row("changed", "changed", "file", false),
        row("kept", "removed", "file", true),
        row("kept", "added", "dir", true),
        row("pipe", "added", "other", false),
    ];
    assert_eq!((code, told), (125, expected.to_vec()), "{said}");
}
