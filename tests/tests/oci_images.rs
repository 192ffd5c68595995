//! A Debian image at work: a script, a web server and a database, under podman and under containerd in both ways.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use apex_tests::containerd::Containerd;
use apex_tests::debian::{self, IMAGE};
use apex_tests::oci::apex_oci;
use apex_tests::podman::Podman;
use apex_tests::sandbox::{Output, collect_within};
use apex_tests::{containerd, podman, programs, skip};

/// For a server to come up on a busy machine, and for an image to be unpacked.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_FOR_IMAGES: Duration = Duration::from_secs(240);

/// What runs containers.
trait Engine {
    /// Runs one to its end, with a directory of the host at `/work`.
    fn run(&self, name: &str, work: &Path, command: &[&str]) -> Output;
    /// Starts one, which goes on.
    fn start(&self, name: &str, command: &[&str]);
    /// Runs one more command in it.
    fn exec(&self, name: &str, command: &[&str]) -> Output;
    /// Its first process.
    fn pid(&self, name: &str) -> String;
    /// Asks it to end and removes it; returns its exit code.
    fn stop(&self, name: &str) -> i32;
}

impl Engine for Podman {
    fn run(&self, name: &str, work: &Path, command: &[&str]) -> Output {
        let volume = format!("{}:/work:ro", work.display());
        self.container_of(IMAGE, &["--rm", "--name", name, "-v", &volume], command)
    }

    fn start(&self, name: &str, command: &[&str]) {
        self.container_of(IMAGE, &["-d", "--name", name], command).expect_code(0);
    }

    fn exec(&self, name: &str, command: &[&str]) -> Output {
        Podman::run(self, &[&["exec", name], command].concat())
    }

    fn pid(&self, name: &str) -> String {
        self.inspect(name, ".State.Pid")
    }

    fn stop(&self, name: &str) -> i32 {
        Podman::run(self, &["stop", "-t", "30", name]).expect_code(0);
        let code = self.inspect(name, ".State.ExitCode");
        Podman::run(self, &["rm", name]).expect_code(0);
        code.parse().expect("a code")
    }
}

/// containerd with one of its ways to the runtime.
struct Ctr<'a> {
    containerd: &'a Containerd,
    way: Vec<String>,
}

impl Ctr<'_> {
    fn start_or_run(&self, flags: &[&str], name: &str, command: &[&str]) -> Output {
        let way = self.way.iter().map(String::as_str).collect::<Vec<_>>();
        self.containerd.ctr(&[&["run", "--seccomp"], &way[..], flags, &[IMAGE, name], command].concat())
    }
}

impl Engine for Ctr<'_> {
    fn run(&self, name: &str, work: &Path, command: &[&str]) -> Output {
        let mount = format!("type=bind,src={},dst=/work,options=rbind:ro", work.display());
        self.start_or_run(&["--rm", "--mount", &mount], name, command)
    }

    fn start(&self, name: &str, command: &[&str]) {
        self.start_or_run(&["-d"], name, command).expect_code(0);
    }

    fn exec(&self, name: &str, command: &[&str]) -> Output {
        self.containerd.ctr(&[&["tasks", "exec", "--exec-id", "more", name], command].concat())
    }

    fn pid(&self, name: &str) -> String {
        let list = self.containerd.ctr(&["tasks", "ls"]).expect_code(0).out();
        let row = list.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("it runs");
        row.split_whitespace().nth(1).expect("its pid").to_owned()
    }

    fn stop(&self, name: &str) -> i32 {
        self.containerd.ctr(&["tasks", "kill", "-s", "TERM", name]).expect_code(0);
        self.containerd.expect_status(name, Some("STOPPED"));
        let code = self.containerd.ctr(&["tasks", "rm", name]).code;
        self.containerd.ctr(&["containers", "rm", name]).expect_code(0);
        code
    }
}

/// Repeats it until it succeeds.
#[track_caller]
fn until(what: &str, attempt: impl Fn() -> Output) -> String {
    let end = Instant::now() + PATIENCE;
    loop {
        let output = attempt();
        if output.code == 0 {
            return output.out();
        }
        assert!(Instant::now() < end, "{what}: {} {} {}", output.code, output.out(), output.err());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn a_script_works(engine: &dyn Engine) {
    let work = programs::fixtures().expect("they are there").join("oci_images");
    let output = engine.run("script", &work, &["python3", "/work/work.py"]).expect_code(0);
    let expected = serde_json::json!({
        "child": [3, "from a child\n"], "rows": [1000, 499_500], "squares": 328_350, "cubes": 1_500_625, "answer": "OVER LOOPBACK",
    });
    assert_eq!(output.json(), expected);
}

fn a_web_server_serves(engine: &dyn Engine) {
    let script = "echo 'hello from the container' > /var/www/html/index.html; exec nginx -g 'daemon off;'";
    engine.start("web", &["sh", "-c", script]);
    let ask = "import urllib.request as r; a = r.urlopen('http://127.0.0.1/'); print(a.status, a.read().decode())";
    let inside = until("nginx answers inside", || engine.exec("web", &["python3", "-c", ask]));
    assert_eq!(inside.trim(), "200 hello from the container");
    // From the host, by the same loopback.
    let mut curl = Command::new("nsenter");
    curl.arg(format!("--net=/proc/{}/ns/net", engine.pid("web"))).args([
        "curl",
        "-sS",
        "-m",
        "20",
        "http://127.0.0.1/",
    ]);
    assert_eq!(programs::run(&mut curl).expect("curl is there"), "hello from the container\n");
    assert_eq!(engine.stop("web"), 0);
}

fn a_database_answers(engine: &dyn Engine) {
    let script = "set -e; b=$(echo /usr/lib/postgresql/*/bin); $b/initdb -D /tmp/db -A trust -N > /tmp/initdb.log; \
        exec $b/postgres -D /tmp/db -k /tmp -c listen_addresses=127.0.0.1";
    // As an entry point of an image does it: begun as root, gone on as another.
    let user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-c", script];
    engine.start("database", &user);
    let psql = ["psql", "-qAt", "-U", "postgres", "-d", "postgres", "-h"];
    until("postgres answers", || engine.exec("database", &[&psql[..], &["/tmp", "-c", "select 1"]].concat()));
    let query = "create table t as select g, md5(g::text) m from generate_series(1, 10000) g; create index on t (m); \
        select count(*), max(m) from t";
    let answer = engine.exec("database", &[&psql[..], &["127.0.0.1", "-c", query]].concat()).expect_code(0);
    assert_eq!(answer.out(), "10000|ffeed84c7cb1ae7bf4ec4bd78275bb98\n");
    assert_eq!(engine.stop("database"), 0);
}

fn everything_works(engine: &dyn Engine) {
    a_script_works(engine);
    a_web_server_serves(engine);
    a_database_answers(engine);
}

/// The tree, or why these tests are not run.
fn tree(reason: Option<String>) -> Result<std::path::PathBuf, String> {
    match reason.or_else(|| programs::missing_program(&["curl", "nsenter", "sha256sum"])) {
        Some(reason) => Err(reason),
        None => debian::tree().map_err(|error| format!("no Debian tree: {error:#}")),
    }
}

#[test]
fn debian_works_under_podman() {
    let tree = match tree(podman::missing(&["podman", "conmon"])) {
        Ok(tree) => tree,
        Err(reason) => skip!(reason),
    };
    let podman = Podman::for_large_images();
    podman.run_long(&["import", "-q", &tree.display().to_string(), IMAGE]).expect_code(0);
    everything_works(&podman);
}

#[test]
fn debian_works_under_containerd_in_both_ways() {
    let tree = match tree(containerd::missing()) {
        Ok(tree) => tree,
        Err(reason) => skip!(reason),
    };
    let runtime = apex_oci();
    let containerd = Containerd::start(&runtime);
    let archive = debian::archive(&tree, Path::new(&containerd.at(""))).expect("there is room");
    let mut import = containerd.command(&["images", "import", &archive.display().to_string()]);
    let import = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ctr is there");
    collect_within(import, PATIENCE_FOR_IMAGES).expect_code(0);

    let own_shim = ["--runtime", "io.containerd.apex.v2", "--runtime-config-path", &containerd.at("shim.toml")];
    let state = containerd.at("runtime");
    let other_shim =
        ["--runtime", "io.containerd.runc.v2", "--runc-binary", &runtime.display().to_string(), "--runc-root", &state];
    for way in [&own_shim[..], &other_shim[..]] {
        println!("way: {way:?}");
        everything_works(&Ctr { containerd: &containerd, way: way.iter().map(|word| (*word).to_owned()).collect() });
        containerd.expect_nothing_left(&["script", "web", "database"]);
    }
}
