//! The main job on real input: an honest piece of work and five dishonest ones, in one sandbox, beside the receipt.
//!
//! Nothing harmful happens outside: the key is a decoy, the listener is ours and on loopback, and forking and filling are only
//! attempted inside. What would have been possible outside is asked of the system, not tried.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{build, setup, shell, vm};

const DECOY: &str = "DECOY-PRIVATE-KEY-4f1c0d";
/// What the honest part must find in `xtask/demo/orders.csv`.
const TOTALS: &str = r#"{"east": "2256.50", "north": "1187.85", "south": "1459.65", "west": "1988.00"}"#;
/// The report about refusals can be long; the demo is one screen.
const WHY_LINES_MAX: usize = 16;
/// Exit code of apex-run when it could not start the sandbox.
const APEX_FAILED: i32 = 125;

/// One line of the script.
#[derive(Deserialize)]
struct Attempt {
    attempt: String,
    got: bool,
    said: String,
}

/// What the script tries and what the demo finds out about the same thing without a sandbox.
struct Crime {
    name: &'static str,
    title: &'static str,
    outside: String,
}

/// Builds, runs the job confined, shows what came of it. Fails when anything got through.
pub fn run() -> Result<()> {
    // An apex-run that is there needs no compiler.
    setup::ensure(if build::given().is_some() { setup::Need::Job } else { setup::Need::Demo })?;
    let apex_run = build::apex_run()?;
    let scene = Scene::new()?;
    let crimes = scene.crimes()?;
    // The demo's own look at the listener came in above; everything from here on is the script's.
    let output = scene.play(&apex_run)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let attempts: Vec<Attempt> = stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();

    let receipt = fs::read_to_string(scene.receipt()).context("apex-run wrote no receipt")?;
    println!("\nthe receipt, read back from the kernel\n\n{}\n", receipt.trim_end());
    let mut wrong: Vec<String> = scene.honest_work(&attempts).into_iter().collect();
    wrong.extend(judge(&crimes, &attempts));
    wrong.extend(scene.evidence(&stdout));
    why(&String::from_utf8_lossy(&output.stderr));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n       "));
    }
    println!("the work was done, and nothing got through");
    Ok(())
}

/// Prints each attempt beside what the system would have allowed, and returns what got through.
fn judge(crimes: &[Crime], attempts: &[Attempt]) -> Vec<String> {
    let mut wrong = Vec::new();
    println!("{:<24} {:<44} without apex-run", "it tried to", "under apex-run");
    for crime in crimes {
        let said = match attempts.iter().find(|attempt| attempt.attempt == crime.name) {
            Some(attempt) if attempt.got => {
                wrong.push(format!("it could {}: {}", crime.title, attempt.said));
                format!("GOT THROUGH: {}", attempt.said)
            }
            Some(attempt) => format!("refused: {}", attempt.said),
            None => {
                wrong.push(format!("the script never got to {}; its own words are missing", crime.title));
                "no answer".to_owned()
            }
        };
        println!("{:<24} {said:<44} {}", crime.title, crime.outside);
    }
    println!();
    wrong
}

fn why(stderr: &str) {
    println!("what --why says about it\n");
    for line in stderr.lines().take(WHY_LINES_MAX) {
        println!("  {line}");
    }
    let more = stderr.lines().count().saturating_sub(WHY_LINES_MAX);
    if more > 0 {
        println!("  ... and {more} more lines");
    }
    println!();
}

/// Files and the listener of one demo; gone when it ends.
struct Scene {
    dir: PathBuf,
    listener: TcpListener,
}

impl Scene {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("xtask-demo-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on loopback")?;
        let scene = Scene { dir, listener };
        scene.listener.set_nonblocking(true)?;
        fs::create_dir(scene.out())?;
        fs::create_dir(scene.dir.join(".ssh"))?;
        fs::write(scene.key(), format!("{DECOY}\n"))?;
        for file in ["job.py", "orders.csv"] {
            fs::copy(shell::root().join("xtask/demo").join(file), scene.dir.join(file))?;
        }
        Ok(scene)
    }

    fn out(&self) -> PathBuf {
        self.dir.join("out")
    }

    fn key(&self) -> PathBuf {
        self.dir.join(".ssh/id_ed25519")
    }

    fn receipt(&self) -> PathBuf {
        self.dir.join("receipt")
    }

    fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Asks the system what it would have allowed this user.
    fn crimes(&self) -> Result<Vec<Crime>> {
        let key = fs::read_to_string(self.key()).context("cannot read the decoy")?;
        let _line =
            TcpStream::connect(self.listener.local_addr()?).context("the demo's own listener does not answer")?;
        self.listener.accept().context("the demo's own listener does not answer")?;
        let overwrite = if shell::is_root() { "root writes where it likes" } else { "refused as well: not root" };
        let crime = |name, title, outside| Crime { name, title, outside };
        Ok(vec![
            crime("steal", "read a private key", format!("{} bytes read by this demo just now", key.len())),
            crime("phone", "phone out", "the same port answered this demo just now".to_owned()),
            crime(
                "fill",
                "fill the disk",
                format!("{} free in {}", free(&self.dir)?, self.dir.parent().unwrap_or(&self.dir).display()),
            ),
            crime("overwrite", "write into /usr/bin", overwrite.to_owned()),
            crime("fork", "fork without end", format!("{} processes allowed", process_limit()?)),
        ])
    }

    /// Runs the script confined. A user whose machine delegates no cgroup gets the rest of the layers, and is told.
    fn play(&self, apex_run: &Path) -> Result<Output> {
        let first = self.command(apex_run, false)?.output().context("cannot run apex-run")?;
        let stderr = String::from_utf8_lossy(&first.stderr);
        if first.status.code() != Some(APEX_FAILED) {
            return Ok(first);
        }
        let may_lack_cgroup = !shell::is_root() && std::env::var_os(vm::VARIABLE).is_none();
        ensure!(may_lack_cgroup && stderr.contains("cgroup"), "apex-run could not start the sandbox:\n{stderr}");
        println!(
            "\nThis user may make no cgroup here, so `--optional cgroup` is passed: memory and CPU of the whole sandbox go unlimited."
        );
        println!("apex-run says:\n{stderr}");
        let second = self.command(apex_run, true)?.output().context("cannot run apex-run")?;
        let stderr = String::from_utf8_lossy(&second.stderr);
        ensure!(second.status.code() != Some(APEX_FAILED), "apex-run could not start the sandbox:\n{stderr}");
        Ok(second)
    }

    fn command(&self, apex_run: &Path, without_cgroup: bool) -> Result<Command> {
        let (job, orders) = (self.dir.join("job.py"), self.dir.join("orders.csv"));
        let mut command = Command::new(apex_run);
        command.args(["--profile", "python", "--why", "--rw"]).arg(self.out());
        command.arg("--ro").arg(&job).arg("--ro").arg(&orders).arg("--receipt").arg(self.receipt());
        if without_cgroup {
            command.args(["--optional", "cgroup"]);
        }
        command
            .args(["--", "/usr/bin/python3"])
            .args([job, orders, self.out(), self.key()])
            .arg(self.port()?.to_string());
        println!("\n$ {}", shell::line(&command).replace(&apex_run.display().to_string(), "apex-run"));
        Ok(command)
    }

    /// The result must be in the granted folder, and right.
    fn honest_work(&self, attempts: &[Attempt]) -> Option<String> {
        let said = attempts.iter().find(|attempt| attempt.attempt == "work").map_or("nothing", |attempt| &attempt.said);
        println!("its work: {said}\n");
        match fs::read_to_string(self.out().join("totals.json")) {
            Ok(totals) if totals == TOTALS => None,
            Ok(totals) => Some(format!("the honest work came out wrong: {totals}")),
            Err(error) => Some(format!("the honest work left no result: {error}")),
        }
    }

    /// What the host saw, whatever the script says of itself.
    fn evidence(&self, stdout: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        if stdout.contains(DECOY) || holds_decoy(&self.out()) {
            wrong.push("the key came out of the sandbox".to_owned());
        }
        if self.listener.accept().is_ok() {
            wrong.push("the listener on the host was called".to_owned());
        }
        wrong
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("xtask: cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn holds_decoy(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(DECOY)))
}

fn free(dir: &Path) -> Result<String> {
    let stat = nix::sys::statvfs::statvfs(dir)
        .with_context(|| format!("cannot ask for the free space of {}", dir.display()))?;
    Ok(format!("{} GiB", (stat.blocks_available() * stat.fragment_size()) >> 30))
}

fn process_limit() -> Result<String> {
    let limits = fs::read_to_string("/proc/self/limits").context("cannot read /proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max processes")).unwrap_or_default();
    Ok(line.split_whitespace().next().unwrap_or("unknown").to_owned())
}
