//! What is started beside apex-run, with command lines that ask for comparable confinement.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Bench, filter};
use crate::shell;

/// Name of apex-run in every table.
pub const APEX: &str = "apex-run";
/// Name of bubblewrap in every table.
pub const BWRAP: &str = "bwrap";
/// Stands for a number that differs at each launch: container engines want a name.
const SERIAL: &str = "{serial}";

/// One way to start the payload.
pub struct Contender {
    pub name: &'static str,
    argv: Vec<OsString>,
    /// What is on standard input: bubblewrap reads its filter from there.
    stdin: Option<PathBuf>,
}

impl Contender {
    /// A command for the launch with this number, silent.
    pub fn command(&self, serial: usize) -> Result<Command> {
        let mut command = Command::new(&self.argv[0]);
        for word in &self.argv[1..] {
            command.arg(word.to_string_lossy().replace(SERIAL, &serial.to_string()));
        }
        self.streams(&mut command)?;
        Ok(command)
    }

    /// Gives `command` the standard streams of this contender.
    pub fn streams(&self, command: &mut Command) -> Result<()> {
        let stdin =
            self.stdin.as_ref().map(|path| File::open(path).with_context(|| format!("cannot open {}", path.display())));
        command
            .stdin(stdin.transpose()?.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(())
    }

    /// Runs it once; `Err` holds what stood in the way here, for the table.
    fn attempt(&self) -> Result<(), String> {
        let output = self.command(0).map_err(|error| format!("{error:#}"))?.stderr(Stdio::piped()).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                Err(format!("{}: {}", output.status, text.lines().next().unwrap_or("no word on standard error")))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Everything that starts `true` here. Who cannot is named with the reason.
pub fn find(bench: &Bench) -> Result<Vec<Contender>> {
    let payload = bench.work.program("true");
    let mut all = vec![plain(&payload), apex(bench, &payload), bwrap(bench, &payload)?, firejail(&payload)];
    for engine in ["crun", "runc"] {
        all.push(engine_in_private_mounts(bench, engine, &payload)?);
    }
    let mut running = Vec::new();
    for contender in all {
        match contender.attempt() {
            Ok(()) => running.push(contender),
            Err(reason) => println!("{} does not run here: {reason}", contender.name),
        }
    }
    Ok(running)
}

fn contender(name: &'static str, argv: Vec<OsString>) -> Contender {
    Contender { name, argv, stdin: None }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn plain(payload: &Path) -> Contender {
    contender("plain exec", vec![payload.into()])
}

fn apex(bench: &Bench, payload: &Path) -> Contender {
    let mut argv =
        vec![bench.apex_run.clone().into_os_string(), "--ro".into(), bench.work.payload().into(), "--".into()];
    argv.push(payload.into());
    contender(APEX, argv)
}

fn bwrap(bench: &Bench, payload: &Path) -> Result<Contender> {
    let filter = bench.work.path().join("filter.bpf");
    fs::write(&filter, filter::program()).with_context(|| format!("cannot write {}", filter.display()))?;
    let mut argv =
        words(&["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]);
    argv.extend(words(&["--unshare-cgroup", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--clearenv"]));
    argv.extend(words(&["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]));
    for (target, link) in [("usr/bin", "/bin"), ("usr/sbin", "/sbin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64")] {
        argv.extend(words(&["--symlink", target, link]));
    }
    argv.extend(words(&["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", "--ro-bind"]));
    argv.extend([bench.work.payload().into(), bench.work.payload().into()]);
    argv.extend(words(&["--remount-ro", "/", "--seccomp", "0", "--"]));
    argv.push(payload.into());
    Ok(Contender { name: BWRAP, argv, stdin: Some(filter) })
}

fn firejail(payload: &Path) -> Contender {
    let mut argv =
        words(&["firejail", "--quiet", "--noprofile", "--net=none", "--private-dev", "--caps.drop=all", "--seccomp"]);
    argv.extend(words(&["--nonewprivs", "--ipc-namespace", "--"]));
    argv.push(payload.into());
    contender("firejail", argv)
}

/// crun and runc refuse a host with both cgroup versions unless the second is out of sight.
fn engine_in_private_mounts(bench: &Bench, engine: &'static str, payload: &Path) -> Result<Contender> {
    let bundle = bench.work.path().join(engine);
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&rootfs).with_context(|| format!("cannot make {}", rootfs.display()))?;
    fs::copy(payload, rootfs.join("true")).context("cannot copy the payload")?;
    if shell::on_path(engine).is_some() {
        shell::run(Command::new(engine).arg("spec").current_dir(&bundle))?;
        let file = bundle.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
        config["process"]["args"] = json!(["/true"]);
        config["process"]["terminal"] = json!(false);
        fs::write(&file, config.to_string())?;
    }
    let state = bench.work.path().join("state");
    let script = format!(
        "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec {engine} --root {} run --bundle {} xtask-bench-{SERIAL}",
        state.display(),
        bundle.display()
    );
    let mut argv = words(&["unshare", "-m", "--propagation", "private", "sh", "-c"]);
    argv.push(script.into());
    Ok(contender(engine, argv))
}
