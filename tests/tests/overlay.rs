//! `--overlay`, `apex-run diff` and `apex-run commit`: the host stays as it is until somebody applies what a run changed.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use apex_tests::{Sandbox, TempDir};

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
