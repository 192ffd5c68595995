//! One container: its life by the runtime, its events in their order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::shim::shim::CreateTaskRequest;
use containerd_shim_protos::topics;
use nix::libc::SIGKILL;
use tokio::sync::oneshot;

use crate::bundle::{Spec, Transient};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::events::{Publisher, timestamp};
use crate::io::{Places, Setting};
use crate::oom::OomCount;
use crate::options::Options;
use crate::process::{Made, Phase, Process, Way};
use crate::reaper::{Exit, Reaper};
use crate::rootfs;
use crate::runtime::Runtime;

/// How long the end of the container waits for those of its execs, which the kernel brings about before.
const EXECS_LIMIT: Duration = Duration::from_secs(2);
/// How long a container that never ran has to end when it is deleted.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What containers of a shim share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The namespace of containerd.
    pub namespace: String,
    /// Who reaps.
    pub reaper: Arc<Reaper>,
    /// Who tells.
    pub events: Arc<Publisher>,
}

/// A container that is there.
#[derive(Debug)]
pub struct Container {
    id: String,
    /// Its directory.
    pub bundle: PathBuf,
    /// Drives it.
    pub runtime: Runtime,
    /// What counts it.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    oom: Option<OomCount>,
    dies_as_one: bool,
    owner: (u32, u32),
    /// Held while it is paused, resumed, changed or deleted.
    pub change: tokio::sync::Mutex<()>,
    shared: Shared,
}

impl Container {
    /// Makes it as the request says. On failure nothing of it stays.
    pub async fn create(request: &CreateTaskRequest, shared: Shared) -> Result<Arc<Self>, Error> {
        let bundle = PathBuf::from(&request.bundle);
        let options = Options::of_request(request.options.as_ref(), &shared.namespace)?;
        let spec = Spec::read(&bundle)?;
        options.note(&bundle)?;
        let root = bundle.join("rootfs");
        rootfs::mount_all(&request.rootfs, &root)?;
        let owner = (options.io_uid, options.io_gid);
        let runtime = Runtime::new(options, &bundle, &request.id, Arc::clone(&shared.reaper));
        let places = Places {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let init = Process::new(&request.id, "", places, Vec::new());
        let setting = Setting { reaper: &shared.reaper, container: &request.id, namespace: &shared.namespace, owner };
        let made = match init.make(&runtime, Way::Create, &bundle.join("init.pid"), &setting).await {
            Ok(made) => made,
            Err(error) => {
                undo(&runtime, &root, !request.rootfs.is_empty()).await;
                return Err(error);
            }
        };
        let cgroup = Cgroup::of(made.pid).unwrap_or_else(|error| {
            log::warn!("the cgroups of {} are not known: {error}", request.id);
            Cgroup::default()
        });
        init.gate.lock().await.streams = made.streams;
        let container = Arc::new(Container {
            id: request.id.clone(),
            bundle,
            runtime,
            oom: OomCount::of(&cgroup),
            cgroup,
            init: Arc::clone(&init),
            execs: Mutex::default(),
            dies_as_one: spec.dies_as_one(),
            owner,
            change: tokio::sync::Mutex::default(),
            shared,
        });
        container.tell_created(request);
        container.follow(init, made.end);
        Ok(container)
    }

    fn tell_created(&self, request: &CreateTaskRequest) {
        let io = event::TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        };
        let created = event::TaskCreate {
            container_id: self.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(io).into(),
            pid: self.init.pid(),
            ..Default::default()
        };
        self.shared.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &created);
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first process, or an exec by its name.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let missing = || Error::NoExec { container: self.id.clone(), exec: exec.to_owned() };
        self.execs().get(exec).cloned().ok_or_else(missing)
    }

    /// The exec with this pid.
    pub fn exec_of(&self, pid: u32) -> Option<String> {
        self.execs().values().find(|process| process.pid() == pid).map(|process| process.exec.clone())
    }

    /// Lets it run.
    pub async fn start(self: &Arc<Self>) -> Result<u32, Error> {
        let gate = self.init.gate.lock().await;
        self.init.require("start", |phase| phase == Phase::Created)?;
        self.watch_memory();
        self.runtime.start().await?;
        self.init.set_phase(Phase::Running);
        let pid = self.init.pid();
        let started = event::TaskStart { container_id: self.id.clone(), pid, ..Default::default() };
        self.shared.events.publish(topics::TASK_START_EVENT_TOPIC, &started);
        drop(gate);
        Ok(pid)
    }

    fn watch_memory(self: &Arc<Self>) {
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let Some(oom) = &container.oom else { return };
            let end = async {
                container.init.ended().await;
            };
            tokio::select! {
                watched = oom.watch(|| container.tell_oom()) => if let Err(error) = watched {
                    log::warn!("kills for memory in {} are told at its end only: {error}", container.id);
                },
                () = end => {}
            }
        });
    }

    fn tell_oom(&self) {
        let oom = event::TaskOOM { container_id: self.id.clone(), ..Default::default() };
        self.shared.events.publish(topics::TASK_OOM_EVENT_TOPIC, &oom);
    }

    /// Takes note of a process that is to run in it.
    pub fn add_exec(&self, exec: &str, places: Places, spec: Vec<u8>) -> Result<(), Error> {
        let process = Process::new(&self.id, exec, places, spec);
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            return Err(Error::Exists(process.name()));
        }
        execs.insert(exec.to_owned(), process);
        drop(execs);
        let added =
            event::TaskExecAdded { container_id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        self.shared.events.publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &added);
        Ok(())
    }

    /// Runs a process that was noted.
    pub async fn start_exec(self: &Arc<Self>, process: Arc<Process>) -> Result<u32, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut gate = process.gate.lock().await;
        process.require("start", |phase| phase == Phase::Created)?;
        self.init.require("run a process in", |phase| matches!(phase, Phase::Running | Phase::Paused))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = |ending: &str| Transient(self.bundle.join(format!(".apex-exec-{number}.{ending}")));
        let (spec, pid_file) = (file("json"), file("pid"));
        std::fs::write(&spec.0, &process.spec).map_err(|source| Error::file("write", &spec.0, source))?;
        let (reaper, namespace) = (&self.shared.reaper, &self.shared.namespace);
        let setting = Setting { reaper, container: &self.id, namespace, owner: self.owner };
        let made = process.make(&self.runtime, Way::Exec(&spec.0), &pid_file.0, &setting).await;
        let Made { pid, end, mut streams } = match made {
            Ok(made) => made,
            Err(error) => {
                // Whoever waits for it, as containerd's clients do before they start it, must not wait for ever.
                process.set_ended(Exit::unknown());
                return Err(error);
            }
        };
        if gate.is_input_closed {
            streams.close_input();
        }
        gate.streams = streams;
        process.set_phase(Phase::Running);
        let started = event::TaskExecStarted {
            container_id: self.id.clone(),
            exec_id: process.exec.clone(),
            pid: pid.cast_unsigned(),
            ..Default::default()
        };
        self.shared.events.publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &started);
        drop(gate);
        self.follow(process, end);
        Ok(pid.cast_unsigned())
    }

    fn follow(self: &Arc<Self>, process: Arc<Process>, end: oneshot::Receiver<Exit>) {
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let exit = end.await.unwrap_or_else(|_| Exit::unknown());
            if process.exec.is_empty() {
                container.end_others().await;
            }
            container.tell_ended(&process, exit).await;
        });
    }

    /// The first process has ended: the others end as well, and are told before.
    async fn end_others(&self) {
        if !self.dies_as_one
            && let Err(error) = self.runtime.kill(SIGKILL.cast_unsigned(), true).await
            && !error.says_gone()
        {
            log::warn!("processes of {} may be left: {error}", self.id);
        }
        let running = self.execs().values().filter(|exec| exec.phase() == Phase::Running).cloned().collect::<Vec<_>>();
        let all = async {
            for exec in running {
                exec.ended().await;
            }
        };
        if tokio::time::timeout(EXECS_LIMIT, all).await.is_err() {
            log::warn!("the end of {} is told before those of its execs, which take long", self.id);
        }
    }

    async fn tell_ended(&self, process: &Process, exit: Exit) {
        // Free only when the start was told.
        let mut gate = process.gate.lock().await;
        gate.streams.finish().await;
        if process.exec.is_empty() && self.oom.as_ref().is_some_and(OomCount::has_more) {
            self.tell_oom();
        }
        let id = if process.exec.is_empty() { &self.id } else { &process.exec };
        let ended = event::TaskExit {
            container_id: self.id.clone(),
            id: id.clone(),
            pid: process.pid(),
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        };
        self.shared.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &ended);
        process.set_ended(exit);
    }

    /// Forgets an exec that does not run.
    pub async fn delete_exec(&self, process: &Process) -> Result<Exit, Error> {
        process.require("delete", |phase| matches!(phase, Phase::Created | Phase::Ended(_)))?;
        process.gate.lock().await.streams.release().await;
        self.execs().remove(&process.exec);
        Ok(ended_or_unknown(process))
    }

    /// Removes what is left of it; it has ended, or never ran.
    pub async fn delete(&self) -> Result<Exit, Error> {
        let _change = self.change.lock().await;
        self.init.require("delete", |phase| matches!(phase, Phase::Created | Phase::Ended(_)))?;
        let has_run = self.init.phase() != Phase::Created;
        match self.runtime.delete(!has_run).await {
            Err(error) if !error.says_gone() => return Err(error.into()),
            _ => {}
        }
        if !has_run && tokio::time::timeout(END_LIMIT, self.init.ended()).await.is_err() {
            log::warn!("container {} is deleted, its process has not ended", self.id);
        }
        self.init.gate.lock().await.streams.release().await;
        rootfs::unmount_all(&self.bundle.join("rootfs"))?;
        let exit = ended_or_unknown(&self.init);
        let deleted = event::TaskDelete {
            container_id: self.id.clone(),
            pid: self.init.pid(),
            exit_status: exit.status,
            exited_at: timestamp(exit.at),
            ..Default::default()
        };
        self.shared.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &deleted);
        Ok(exit)
    }

    /// Freezes it.
    pub async fn pause(&self) -> Result<(), Error> {
        let _change = self.change.lock().await;
        self.init.require("pause", |phase| phase == Phase::Running)?;
        self.runtime.pause().await?;
        self.init.set_phase(Phase::Paused);
        let paused = event::TaskPaused { container_id: self.id.clone(), ..Default::default() };
        self.shared.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &paused);
        Ok(())
    }

    /// Thaws it.
    pub async fn resume(&self) -> Result<(), Error> {
        let _change = self.change.lock().await;
        self.init.require("resume", |phase| phase == Phase::Paused)?;
        self.runtime.resume().await?;
        self.init.set_phase(Phase::Running);
        let resumed = event::TaskResumed { container_id: self.id.clone(), ..Default::default() };
        self.shared.events.publish(topics::TASK_RESUMED_EVENT_TOPIC, &resumed);
        Ok(())
    }

    /// Gives it other limits, as JSON.
    pub async fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let _change = self.change.lock().await;
        let file = Transient(self.bundle.join(".apex-resources.json"));
        std::fs::write(&file.0, resources).map_err(|source| Error::file("write", &file.0, source))?;
        Ok(self.runtime.update(&file.0).await?)
    }

    /// Signals a process, or all.
    pub async fn kill(&self, process: &Process, signal: u32, all: bool) -> Result<(), Error> {
        if !process.exec.is_empty() {
            return process.signal(signal);
        }
        if matches!(process.phase(), Phase::Ended(_)) && !all {
            return Err(Error::Finished(process.name()));
        }
        Ok(self.runtime.kill(signal, all).await?)
    }
}

fn ended_or_unknown(process: &Process) -> Exit {
    match process.phase() {
        Phase::Ended(exit) => exit,
        Phase::Created | Phase::Running | Phase::Paused => Exit::unknown(),
    }
}

/// After a failed create: what the runtime may have left, and the root.
async fn undo(runtime: &Runtime, root: &Path, is_mounted: bool) {
    match runtime.delete(true).await {
        Err(error) if !error.says_gone() => log::debug!("{error}"),
        _ => {}
    }
    if is_mounted && let Err(error) = rootfs::unmount_all(root) {
        log::warn!("{error}");
    }
}
