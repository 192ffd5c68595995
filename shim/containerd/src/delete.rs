//! `delete`: what containerd runs when the shim of a container is gone. Nothing of the container stays.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::shim::DeleteResponse;

use crate::arguments::Arguments;
use crate::bundle::{self, Spec};
use crate::events::timestamp;
use crate::group::{self, Claim};
use crate::options::Options;
use crate::reaper::Reaper;
use crate::runtime::Runtime;
use crate::{rootfs, serve};

/// What a killed process ends with.
const KILLED: u32 = 128 + 9;

/// Deletes the container and prints how it ended, as the message that containerd reads.
pub fn delete(arguments: &Arguments) -> Result<()> {
    let id = arguments.checked_id()?;
    let bundle = match arguments.bundle.as_str() {
        "" => std::env::current_dir().context("the bundle is gone")?,
        path => PathBuf::from(path),
    };
    if let Some(options) = Options::noted(&bundle)? {
        serve::block_on(end(id, &bundle, options))?;
    }
    rootfs::unmount_all(&bundle.join("rootfs"))?;
    let spec = Spec::read(&bundle).unwrap_or_default();
    forget_socket(arguments, spec.group().unwrap_or(id))?;
    let pid = bundle::read_pid(&bundle.join("init.pid")).unwrap_or(0);
    let response = DeleteResponse {
        pid: pid.cast_unsigned(),
        exit_status: KILLED,
        exited_at: timestamp(SystemTime::now()),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().context("cannot make the answer")?;
    let mut stdout = std::io::stdout();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("cannot print the answer")
}

async fn end(id: &str, bundle: &Path, options: Options) -> Result<()> {
    let reaper = Reaper::new();
    serve::start_reaping(Arc::clone(&reaper))?;
    let runtime = Runtime::new(options, bundle, id, reaper);
    let spec = Spec::read(bundle).unwrap_or_default();
    // Without a pid namespace of its own the others outlive the first.
    if !spec.dies_as_one()
        && let Err(error) = runtime.kill(KILLED - 128, true).await
        && !error.says_gone()
    {
        log::warn!("{error}");
    }
    match runtime.delete(true).await {
        Err(error) if !error.says_gone() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The socket of a shim that was killed is left; one that is served is another container's of the group.
fn forget_socket(arguments: &Arguments, group: &str) -> Result<()> {
    if arguments.address.is_empty() {
        return Ok(());
    }
    let socket = group::socket(&arguments.address, &arguments.namespace, group);
    let forgotten = match group::claim(&socket) {
        Ok(Claim::Mine(_)) => group::remove(&socket),
        Ok(Claim::Served) => Ok(()),
        Err(error) => Err(error),
    };
    forgotten.with_context(|| format!("cannot remove the socket {}", socket.display()))
}
