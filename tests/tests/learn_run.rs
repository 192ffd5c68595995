//! `apex-run --learn`: the command passes under its learned policy, a changed one is refused and told why, and learning changes nothing of
//! the host.

use apex_tests::{Output, Sandbox, TempDir};

/// A working directory with files, and the place of a learned policy outside of it.
struct Lesson {
    work: TempDir,
    policy: TempDir,
    profile: &'static str,
}

impl Lesson {
    fn new(profile: &'static str) -> Self {
        Lesson { work: TempDir::new(), policy: TempDir::new(), profile }
    }

    fn file(&self) -> String {
        self.policy.at("learned.toml")
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Output {
        let cd = format!("cd '{}';", self.work.text());
        Sandbox::new().prelude(&cd).args(options.iter().copied()).run(command)
    }

    #[track_caller]
    fn learn(&self, command: &[&str]) -> String {
        let file = self.file();
        let before = self.work.listing();
        let output = self.run(&["--profile", self.profile, "--learn", &file], command);
        output.expect_code(0);
        assert_eq!(self.work.listing(), before, "nothing that it wrote reached the host");
        self.policy.read("learned.toml")
    }

    fn again(&self, command: &[&str]) -> Output {
        self.run(&["--policy", &self.file(), "--why"], command)
    }
}

#[track_caller]
fn expect_pass(lesson: &Lesson, text: &str, command: &[&str]) {
    let output = lesson.again(command);
    assert_eq!(output.code, 0, "{}\n{text}", output.err());
}

/// It fails, and each of the words stands in what `--why` says.
#[track_caller]
fn expect_refused(lesson: &Lesson, text: &str, command: &[&str], words: &[&str]) {
    let output = lesson.again(command);
    let err = output.err();
    assert_ne!(output.code, 0, "{err}\n{text}");
    for word in words {
        assert!(err.contains(word), "{word}\n{err}\n{text}");
    }
}

/// Eight files make the directory a grant, in which a key lies that nobody touched.
#[test]
fn keys_in_a_granted_directory_stay_denied() {
    let lesson = Lesson::new("shell");
    for number in 0..8 {
        lesson.work.file(&format!("f{number}"), "text");
    }
    lesson.work.dir("sub");
    lesson.work.dir("sub/.ssh");
    lesson.work.file("sub/.ssh/id_rsa", "KEY");
    lesson.work.file(".netrc", "PASSWORD");
    let command = ["/bin/sh", "-c", "cat f*"];
    let text = lesson.learn(&command);
    expect_pass(&lesson, &text, &command);
    for secret in ["sub/.ssh/id_rsa", ".netrc"] {
        expect_refused(&lesson, &text, &["/bin/cat", secret], &["deny"]);
    }
}

/// The directory was denied as a whole, `known_hosts` included, which the run had read.
#[test]
fn keys_beside_what_was_read_stay_denied() {
    let lesson = Lesson::new("shell");
    (0..8).for_each(|number| drop(lesson.work.file(&format!("f{number}"), "text")));
    lesson.work.file(".ssh/id_rsa", "KEY");
    lesson.work.file(".ssh/known_hosts", "hosts");
    let command = ["/bin/sh", "-c", "cat f* .ssh/known_hosts; echo more >> .ssh/known_hosts"];
    let text = lesson.learn(&command);
    expect_pass(&lesson, &text, &command);
    expect_refused(&lesson, &text, &["/bin/cat", ".ssh/id_rsa"], &["deny"]);
}

#[test]
fn python() {
    let lesson = Lesson::new("python");
    lesson.work.file("in.txt", "in");
    lesson.work.file("other.txt", "other");
    lesson.work.dir("out");
    lesson.work.file("job.py", "open('out/x', 'w').write(open('in.txt').read())");
    lesson.work.file("more.py", "open('other.txt')");
    lesson.work.file("net.py", "import socket; socket.create_connection(('127.0.0.1', 9), 1)");
    lesson.work.file("kill.py", "import os; os.kill(os.getpid(), 9)");
    let text = lesson.learn(&["python3", "job.py"]);
    for line in ["\"${CWD}/in.txt\"", "\"${CWD}/out\"", "\"${CWD}/job.py\"", "\"files\""] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("other.txt"), "{text}");
    expect_pass(&lesson, &text, &["python3", "job.py"]);
    assert_eq!(lesson.work.read("out/x"), "in", "its own grant lets it write now");
    expect_refused(&lesson, &text, &["python3", "-c", "open('other.txt')"], &["other.txt", "it exists outside"]);
    expect_refused(
        &lesson,
        &text,
        &["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 9), 1)"],
        &["group `sockets`", "is not granted"],
    );
    lesson.again(&["python3", "-c", "open('new.txt', 'w')"]);
    assert!(!lesson.work.listing().contains(&"new.txt".to_owned()), "no grant lets it write beside its own place");
}

#[test]
fn a_second_run_merges_and_passes() {
    let lesson = Lesson::new("python");
    lesson.work.file("one", "1");
    lesson.work.file("two", "2");
    lesson.learn(&["python3", "-I", "-c", "open('one')"]);
    let text = lesson.learn(&["python3", "-I", "-c", "open('two'); import socket; socket.socket()"]);
    for line in ["${CWD}/one", "${CWD}/two", "runs = 2", "\"sockets\""] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    expect_pass(&lesson, &text, &["python3", "-I", "-c", "open('one'); open('two')"]);
}

#[test]
fn make_and_gcc() {
    let lesson = Lesson::new("build");
    lesson.work.file("m.c", "#include <stdio.h>\nint main(void) { puts(\"made\"); }\n");
    lesson.work.file("Makefile", "m: m.c\n\tgcc -o m m.c && ./m\n");
    let text = lesson.learn(&["make"]);
    expect_pass(&lesson, &text, &["make"]);
    assert!(lesson.work.listing().contains(&"m".to_owned()));
    expect_refused(&lesson, &text, &["make", "-C", "/etc/alternatives", "-f", "/etc/fstab"], &["/etc/fstab"]);
}

#[test]
fn git() {
    let lesson = Lesson::new("shell");
    let commit =
        "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one && git log --oneline";
    let text = lesson.learn(&["/bin/sh", "-c", commit]);
    expect_pass(&lesson, &text, &["/bin/sh", "-c", commit]);
    expect_refused(&lesson, &text, &["git", "clone", "-q", "/var/lib/dpkg", "x"], &["refused"]);
}

#[test]
fn node() {
    let lesson = Lesson::new("node");
    lesson.work.file("in.txt", "in");
    lesson.work.file("other.txt", "other");
    let read = |name: &str| format!("require('fs').readFileSync('{name}')");
    let text = lesson.learn(&["node", "-e", &read("in.txt")]);
    expect_pass(&lesson, &text, &["node", "-e", &read("in.txt")]);
    expect_refused(&lesson, &text, &["node", "-e", &read("other.txt")], &["other.txt", "it exists outside"]);
}

/// A server and its client in one sandbox: it listens on the sandbox's own loopback.
const SERVE: &str = "/usr/sbin/nginx -p run/ -c ../nginx.conf & server=$!; got=1
for turn in $(seq 60); do
    sleep 0.05; code=$(curl -s -o /tmp/page -w '%{http_code}' \"http://127.0.0.1:8099/$1\")
    case $code in 200) cat /tmp/page; got=0; break;; 4*) break;; esac
done
kill -QUIT \"$server\"; wait \"$server\"; exit $got";
const NGINX: &str = "daemon off; error_log stderr; pid nginx.pid; events { worker_connections 16; }
http {
    access_log off; root ../www; server { listen 127.0.0.1:8099; }
    client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
}
";

#[test]
fn nginx() {
    let lesson = Lesson::new("shell");
    lesson.work.file("nginx.conf", NGINX);
    lesson.work.dir("run");
    lesson.work.file("www/index.html", "a page");
    lesson.work.file("www/other.html", "another");
    lesson.work.file("serve.sh", SERVE);
    let text = lesson.learn(&["/bin/sh", "serve.sh", "index.html"]);
    for line in ["\"${CWD}/www/index.html\"", "\"${CWD}/run\"", "\"sockets\""] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let output = lesson.again(&["/bin/sh", "serve.sh", "index.html"]).expect_code(0);
    assert_eq!(output.out(), "a page", "{text}");
    expect_refused(&lesson, &text, &["/bin/sh", "serve.sh", "other.html"], &["www/other.html", "it exists outside"]);
}

#[test]
fn secrets_stay_denied_and_are_told() {
    let lesson = Lesson::new("shell");
    lesson.work.dir(".ssh");
    lesson.work.file(".ssh/id", "secret");
    let home = lesson.work.text();
    let cd = format!("cd '{home}';");
    let file = lesson.file();
    let output = Sandbox::new().prelude(&cd).caller_env("HOME", &home).args(["--learn", &file]).run(&[
        "/bin/sh",
        "-c",
        "cat .ssh/id /etc/shadow; true",
    ]);
    assert!(!output.out().contains("secret") && !output.out().contains("root:"), "{}", output.out());
    output.expect_code(0);
    let text = lesson.policy.read("learned.toml");
    assert!(text.contains("# asked for and not granted: read /etc/shadow"), "{text}");
}

/// Learns `command` and expects the same output under what was learned, without `--why`, which would wait for nothing here.
#[track_caller]
fn expect_the_same(lesson: &Lesson, command: &[&str]) -> String {
    let _ = std::fs::remove_file(lesson.file());
    let first = lesson.run(&["--learn", &lesson.file()], command).expect_code(0);
    let text = lesson.policy.read("learned.toml");
    let again = lesson.run(&["--policy", &lesson.file()], command);
    assert_eq!((again.code, again.out()), (0, first.out()), "{command:?}: {}\n{text}", again.err());
    text
}

fn with_links() -> Lesson {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let lesson = Lesson::new("shell");
    lesson.work.file("tool", "#!/bin/sh\necho tool \"$@\"\n");
    lesson.work.file("nested", &format!("#!{}\n", lesson.work.at("tool")));
    for script in ["tool", "nested"] {
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(lesson.work.at(script), mode).expect("own file");
    }
    lesson.work.file("rel/1/x", "behind links\n");
    lesson.work.file("rel/1/other", "other\n");
    lesson.work.dir("empty");
    for (target, link) in [("rel/1", "current"), ("current/x", "lx"), ("../tool", "empty/t")] {
        symlink(target, lesson.work.at(link)).expect("own directory");
    }
    lesson
}

#[test]
fn scripts_are_executed_again() {
    let lesson = with_links();
    for command in [&["./tool", "a"][..], &["./nested", "b"], &["empty/t", "c"], &["/bin/sh", "-c", "./tool d"]] {
        let text = expect_the_same(&lesson, command);
        assert!(text.contains("\"${CWD}/tool\", reason = \"executed"), "{text}");
    }
}

#[test]
fn links_stand_inside_and_what_they_lead_to_is_granted_by_itself() {
    let lesson = with_links();
    let text = expect_the_same(&lesson, &["cat", "lx", "current/x", "/etc/os-release"]);
    assert!(text.contains("\"${CWD}/rel/1/x\", reason = \"read") && !text.contains("rel/1/other"), "{text}");
    expect_refused(&lesson, &text, &["cat", "current/other"], &["rel/1/other"]);
    expect_the_same(&lesson, &["cat", "empty/../rel/1/x"]);
    expect_the_same(&lesson, &["/bin/sh", "-c", "readlink lx current; readlink -f lx; cd current && cat x"]);
}

#[test]
fn what_is_only_looked_at_is_there_again() {
    let lesson = with_links();
    let looks = "test -e /etc/debian_version && stat -c %s /etc/hostname && readlink /etc/os-release && test -L lx";
    let text = expect_the_same(&lesson, &["/bin/sh", "-c", looks]);
    assert!(text.contains("\"/etc/hostname\", reason = \"looked at by stat"), "{text}");
    let text = expect_the_same(&lesson, &["/bin/sh", "-c", "test -d rel && cd empty && pwd"]);
    assert!(text.contains("names = [") && !text.contains("read = ["), "the directories alone, empty: {text}");
    expect_refused(&lesson, &text, &["cat", "rel/1/x"], &["rel/1/x"]);
    let text = expect_the_same(&lesson, &["/bin/sh", "-c", "stat /etc/shadow > /tmp/out; test -e /proc/self/exe"]);
    assert!(text.contains("# asked for and not granted: look at /etc/shadow"), "{text}");
}

/// The listener of `--why` outranks a tracer: what it would hide is not learned from.
#[test]
fn learning_with_why_is_whole_or_refused() {
    let lesson = with_links();
    let output = lesson.run(&["--learn", &lesson.file(), "--why"], &["cat", "rel/1/x"]);
    if nix::unistd::geteuid().is_root() {
        output.expect_code(0);
        assert!(lesson.policy.read("learned.toml").contains("${CWD}/rel/1/x"));
        return;
    }
    assert_eq!(output.out(), "", "nothing ran");
    output.expect_refusal(&["--learn with --why", "leave --why out"]);
}

#[test]
fn a_file_that_is_no_policy_stops_the_start() {
    let lesson = Lesson::new("shell");
    lesson.policy.file("learned.toml", "[filesystem]\nraed = []\n");
    let output = lesson.run(&["--learn", &lesson.file()], &["/bin/sh", "-c", "echo ran"]);
    assert_eq!(output.out(), "");
    output.expect_refusal(&["learned.toml", "raed"]);
    let output = lesson.run(&["--learn", &lesson.policy.text()], &["/bin/sh", "-c", "echo ran"]);
    assert_eq!(output.out(), "");
    output.expect_refusal(&["not a regular file; learn into another file"]);
}

#[test]
fn a_record_of_the_run_holds_against_its_policy_and_not_against_less() {
    let lesson = Lesson::new("python");
    lesson.work.file("in.txt", "in");
    let events = lesson.policy.at("events");
    let output = lesson.run(
        &["--profile", "python", "--learn", &lesson.file(), "--events", &events],
        &["python3", "-I", "-c", "open('in.txt')"],
    );
    output.expect_code(0);
    let backtest = |policy: &str| backtest(&lesson, &["--policy", policy, &events]);
    let own = backtest(&lesson.file());
    assert_eq!(own.status.code(), Some(0), "{}", String::from_utf8_lossy(&own.stdout));
    let less = lesson.policy.file("less.toml", "extends = [\"profile:python\"]\n");
    let refused = backtest(&less);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(said.contains("in.txt") && said.contains("it exists outside"), "{said}");
}

/// `apex-run backtest` without the layers of this host: it runs nothing.
fn backtest(lesson: &Lesson, words: &[&str]) -> std::process::Output {
    std::process::Command::new(apex_tests::apex_run())
        .current_dir(lesson.work.path())
        .arg("backtest")
        .args(words)
        .output()
        .expect("apex-run can be started")
}

/// What a shell does when its child is slower than in the run that was learned from: it waits in other calls.
#[test]
fn the_slow_path_of_a_command_passes() {
    let lesson = Lesson::new("shell");
    lesson.work.file("w.sh", "sleep ${1:-0} & sleep 0.3; wait $!; echo done\n");
    let text = lesson.learn(&["sh", "w.sh"]);
    assert!(text.contains("    \"signals\""), "{text}");
    let output = lesson.run(&["--policy", &lesson.file(), "--time", "20s"], &["sh", "w.sh", "1"]);
    assert_eq!(output.expect_code(0).out(), "done\n", "{text}");
}

#[test]
fn a_run_of_another_mode_does_not_start() {
    let lesson = Lesson::new("shell");
    lesson.learn(&["true"]);
    let file = lesson.file();
    let output = lesson.run(&["--mode", "hybrid", "--learn", &file], &["sh", "-c", "echo ran"]);
    assert_eq!(output.out(), "");
    output.expect_refusal(&["learned in isolation, this run is hybrid; learn into another file"]);
    let output = lesson.run(&["--profile", "node", "--learn", &file], &["sh", "-c", "echo ran"]);
    output.expect_refusal(&["learned with profile shell, this run has profile node"]);
    // Without one it is of the same.
    lesson.run(&["--learn", &file], &["true"]).expect_code(0);
    assert!(lesson.policy.read("learned.toml").contains("runs = 2"));
}

#[test]
fn a_failed_run_is_told_and_so_is_what_it_did_not_see() {
    let lesson = Lesson::new("shell");
    let outside = TempDir::new();
    outside.file("data.txt", "data");
    let data = outside.at("data.txt");
    let command = format!("cat '{data}'; exit 7");
    let output = lesson.run(&["--profile", "shell", "--learn", &lesson.file()], &["sh", "-c", &command]);
    let err = output.err();
    assert_eq!(output.code, 7, "{err}");
    for words in [
        "but the command ended with 7: the policy may lack what a good run needs",
        &format!("the command looked for {data}, which is there outside and was not shown inside; --ro shows it"),
    ] {
        assert!(err.contains(words), "{words}\n{err}");
    }
    let text = lesson.policy.read("learned.toml");
    assert!(text.contains(&format!("# asked for and not granted: read {data} (it is there outside")), "{text}");
}

#[test]
fn denied_in_the_run_is_denied_by_its_policy() {
    let lesson = Lesson::new("shell");
    lesson.work.file("open.txt", "open");
    lesson.work.file("key", "secret");
    let file = lesson.file();
    lesson.run(&["--profile", "shell", "--deny", "key", "--learn", &file], &["cat", "open.txt"]).expect_code(0);
    let text = lesson.policy.read("learned.toml");
    assert!(text.contains("profile:secrets") && text.contains("\"${CWD}/key\""), "{text}");
    // Whoever widens it by hand does not widen it over what was denied.
    lesson.policy.file("learned.toml", &text.replacen("read = [", "read = [\n    \"${CWD}\",", 1));
    let before = lesson.work.listing();
    let output = lesson.run(&["--policy", &file], &["cat", "open.txt", "key"]);
    assert_ne!(output.code, 0);
    assert_eq!(output.out(), "open");
    assert_eq!(lesson.work.listing(), before);
}

#[test]
fn a_learned_working_directory_is_not_the_home() {
    let lesson = Lesson::new("shell");
    lesson.work.file("lib-1.2.3.txt", "x");
    lesson.learn(&["cat", "lib-1.2.3.txt"]);
    let home = lesson.work.text();
    let cd = format!("cd '{home}';");
    let output =
        Sandbox::new().prelude(&cd).caller_env("HOME", &home).args(["--policy", &lesson.file()]).run(&["true"]);
    output.expect_refusal(&["`${CWD}` is `", "start in the directory of the work"]);
}

#[test]
fn learning_in_a_directory_of_the_system_says_where_to_go() {
    let lesson = Lesson::new("shell");
    let output = Sandbox::new().prelude("cd /usr;").args(["--learn", &lesson.file()]).run(&["true"]);
    let output = output.expect_refusal(&["start from another directory"]);
    assert!(!output.err().contains("profiles/learning.toml"), "{}", output.err());
}

#[test]
fn a_record_that_is_none_is_not_judged() {
    let lesson = Lesson::new("shell");
    let policy = lesson.policy.file("job.toml", "extends = [\"profile:shell\"]\n");
    let empty = lesson.policy.file("empty", "");
    #[track_caller]
    fn check(output: std::process::Output, words: &str) {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(125), "{err}");
        assert!(err.contains(words), "{words}\n{err}");
    }
    check(backtest(&lesson, &["--policy", &policy, &policy]), "is no record of events");
    check(backtest(&lesson, &["--policy", &policy, &empty]), "is no record of events");
    let events = lesson.policy.at("events");
    lesson.run(&["--events", &events], &["true"]).expect_code(0);
    let whole = lesson.policy.read("events");
    let cut = lesson.policy.file("cut", &whole[..whole.len() - 20]);
    check(backtest(&lesson, &["--policy", &policy, &cut]), "1 line of the record could not be read as events");
    let (without_end, _) = whole.trim_end().rsplit_once('\n').expect("a start and an end");
    let without_end = lesson.policy.file("without", &format!("{without_end}\n"));
    check(backtest(&lesson, &["--policy", &policy, &without_end]), "the record of a run has no end");
    // A run that ended does not speak for one before that was cut.
    let whole = lesson.policy.file("whole", &whole);
    for records in [&[&without_end, &whole], &[&whole, &without_end]] {
        let words: Vec<&str> =
            ["--policy", &policy].into_iter().chain(records.iter().map(|file| file.as_str())).collect();
        check(backtest(&lesson, &words), "the record of a run has no end");
    }
    assert_eq!(backtest(&lesson, &["--policy", &policy, &whole, &whole]).status.code(), Some(0));
    let lost = lesson.policy.read("whole").replace("\"lost\":{}", "\"lost\":{\"ring-full\":3}");
    let lost = lesson.policy.file("lost", &lost);
    let words = ["--policy", &policy, "--learn", &lesson.file(), &whole];
    check(backtest(&lesson, &words), "--learn is about a run, and nothing is run here; leave it out");
    check(backtest(&lesson, &["--policy", &policy, &lost]), "not judged: 3 events that the watch lost");
}

#[test]
fn what_a_record_does_not_hold_is_told() {
    let lesson = Lesson::new("shell");
    let policy = lesson.policy.file("job.toml", "extends = [\"profile:shell\"]\n");
    let events = lesson.policy.at("events");
    lesson.run(&["--events", &events], &["true"]).expect_code(0);
    let output = backtest(&lesson, &["--policy", &policy, &events]);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains("not judged, since the record does not hold it: ") && err.contains("files ("), "{err}");
    assert!(err.contains("record with --watch=full"), "{err}");
}

#[test]
fn a_verb_behind_options_gets_a_hint() {
    let err = Sandbox::new().run(&["backtest", "x"]).expect_code(127).err();
    assert!(err.contains("`backtest` is a verb as the first word only: apex-run backtest [OPTIONS]"), "{err}");
}

#[test]
fn values_of_variables_are_told_and_not_copied() {
    let lesson = Lesson::new("shell");
    let command = ["sh", "-c", "test ${#TOKEN} = 6"];
    let output = lesson.run(&["--env", "TOKEN=s3cret", "--learn", &lesson.file()], &command).expect_code(0);
    let words = "the value of TOKEN is not copied into the policy";
    assert!(output.err().contains(words), "{}", output.err());
    let text = lesson.policy.read("learned.toml");
    assert!(!text.contains("s3cret"), "{text}");
    let again = |options: &[&str]| lesson.run(&[&["--policy", &lesson.file()], options].concat(), &command).code;
    assert_eq!((again(&[]), again(&["--env", "TOKEN=s3cret"])), (1, 0), "{text}");
}
