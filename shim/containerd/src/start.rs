//! `start`: makes sure that a shim serves the group of a container, and prints its address.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::arguments::Arguments;
use crate::bundle::{self, Spec};
use crate::cgroup;
use crate::group::{self, Claim};
use crate::options::Options;
use crate::serve::READY;

/// Options on standard input are at most this long.
const OPTIONS_BYTES_MAX: u64 = 1 << 20;
/// The highest score (proc_pid_oom_score_adj(5)).
const OOM_SCORE_MAX: i32 = 1000;

/// Runs in the bundle of the container, as containerd starts it.
pub fn start(arguments: &Arguments) -> Result<()> {
    let id = arguments.checked_id()?;
    let bundle = std::env::current_dir().context("the bundle is gone")?;
    let spec = Spec::read(&bundle)?;
    let socket = group::socket(&arguments.address, &arguments.namespace, spec.group().unwrap_or(id));
    let address = format!("unix://{}", socket.display());
    let claim = group::claim(&socket).with_context(|| format!("cannot take the socket {}", socket.display()))?;
    match claim {
        Claim::Served => {}
        Claim::Mine(listener) => {
            if let Err(error) = launch(arguments, &bundle, &socket, listener) {
                group::remove(&socket).with_context(|| format!("cannot remove the socket {}", socket.display()))?;
                return Err(error);
            }
        }
    }
    write(&bundle.join("address"), &address)?;
    let mut stdout = std::io::stdout();
    stdout.write_all(address.as_bytes()).and_then(|()| stdout.flush()).context("cannot print the address")
}

fn write(path: &Path, text: &str) -> Result<()> {
    bundle::write_whole(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn launch(arguments: &Arguments, bundle: &Path, socket: &Path, listener: UnixListener) -> Result<()> {
    let options = read_options(&arguments.namespace)?;
    let own = std::env::current_exe().context("cannot find the binary of this shim")?;
    let mut command = Command::new(own);
    command.args(["-namespace", &arguments.namespace, "-id", &arguments.id, "-address", &arguments.address]);
    command.arg("-socket").arg(socket);
    if arguments.debug {
        command.arg("-debug");
    }
    // A group of its own: signals for containerd's are not for it.
    // Whatever containerd let through is not for a process that outlives it.
    apex_sys::process::close_from(3, u32::MAX, true).context("cannot keep open files from the shim")?;
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut shim = command.spawn().context("cannot start the shim")?;
    drop(command);
    let set_up = settle(&mut shim, options.as_ref(), bundle);
    if set_up.is_err() {
        // Nobody can use it; that it has ended by itself is well.
        let _ = shim.kill();
        let _ = shim.wait();
    }
    set_up
}

fn settle(shim: &mut Child, options: Option<&Options>, bundle: &Path) -> Result<()> {
    let pid = shim.id();
    if let Some(path) = options.map(|options| &options.shim_cgroup).filter(|path| !path.is_empty()) {
        cgroup::enter(path, pid).with_context(|| format!("cannot put the shim into the cgroup {path} (ShimCgroup)"))?;
    }
    prefer_to_kill(pid).context("cannot set the oom score of the shim")?;
    let mut said = String::new();
    let stdout = shim.stdout.as_mut().context("the shim has no output")?;
    stdout.take(4096).read_to_string(&mut said).context("cannot read what the shim says")?;
    if said != READY {
        bail!("the shim did not start: {}", if said.is_empty() { "it said nothing" } else { said.trim() });
    }
    write(&bundle.join("shim.pid"), &pid.to_string())
}

/// The options of the container; containerd may give none.
fn read_options(namespace: &str) -> Result<Option<Options>> {
    let any = read_any()?;
    // A runtime that is missing is told at create, where the options count.
    let named = any.map(|any| Options::of_request(Some(&any), namespace));
    match named {
        Some(Err(crate::options::OptionsError::NoRuntime(_))) | None => Ok(None),
        Some(options) => Ok(Some(options?)),
    }
}

/// What containerd writes to standard input.
pub fn read_any() -> Result<Option<Any>> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().take(OPTIONS_BYTES_MAX).read_to_end(&mut bytes);
    read.context("cannot read the options from standard input")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Any::parse_from_bytes(&bytes).map(Some).context("the options on standard input are no protobuf message")
}

/// One above containerd's own score: when memory is short, the shim goes first.
fn prefer_to_kill(pid: u32) -> std::io::Result<()> {
    let parent = std::os::unix::process::parent_id();
    let score = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))?;
    let score = score.trim().parse::<i32>().unwrap_or(0);
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).min(OOM_SCORE_MAX).to_string())
}
