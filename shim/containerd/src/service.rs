//! The Task API: each request to the container it is about.
//!
//! The protocol gives up a request when its connection ends or its time is over. What changes a container runs in a task of its own, so
//! that it is done whole; only the answer gets lost then.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim::shim as api;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::Result as Answer;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use containerd_shim_protos::types::empty::Empty;
use containerd_shim_protos::types::task::ProcessInfo;
use tokio::sync::watch;

use crate::arguments::is_identifier;
use crate::container::{Container, Shared};
use crate::error::Error;
use crate::events::{any, timestamp};
use crate::io::Places;
use crate::process::Phase;
use crate::stats;

/// All containers of this shim.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Shared,
    containers: Mutex<Containers>,
    over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Containers {
    there: HashMap<String, Arc<Container>>,
    /// Ids of containers that are being made.
    coming: HashSet<String>,
}

impl Service {
    /// None yet.
    pub fn new(shared: Shared) -> Self {
        let (over, _) = watch::channel(false);
        Service(Arc::new(Inner { shared, containers: Mutex::default(), over }))
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.0.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers().there.get(id).cloned().ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    /// Whether the shim can go.
    pub fn is_idle(&self) -> bool {
        let containers = self.containers();
        containers.there.is_empty() && containers.coming.is_empty()
    }

    /// Waits until containerd has no more use for the shim.
    pub async fn over(&self) {
        let mut over = self.0.over.subscribe();
        // The sender lives as long as the service.
        let _ = over.wait_for(|over| *over).await;
    }

    async fn create_container(&self, request: api::CreateTaskRequest) -> Result<u32, Error> {
        if !is_identifier(&request.id) {
            return Err(Error::Id(request.id));
        }
        if !request.checkpoint.is_empty() {
            return Err(Error::Checkpoint);
        }
        {
            let mut containers = self.containers();
            let id = request.id.clone();
            if containers.there.contains_key(&id) || !containers.coming.insert(id.clone()) {
                return Err(Error::Exists(format!("container {id}")));
            }
        }
        let created = Container::create(&request, self.0.shared.clone()).await;
        let mut containers = self.containers();
        containers.coming.remove(&request.id);
        let container = created?;
        let pid = container.init.pid();
        containers.there.insert(request.id, container);
        Ok(pid)
    }

    async fn delete_process(&self, id: &str, exec: &str) -> Result<api::DeleteResponse, Error> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        let exit = if exec.is_empty() {
            let exit = container.delete().await?;
            self.containers().there.remove(id);
            exit
        } else {
            container.delete_exec(&process).await?
        };
        let (pid, exit_status, exited_at) = (process.pid(), exit.status, timestamp(exit.at));
        Ok(api::DeleteResponse { pid, exit_status, exited_at, ..Default::default() })
    }

    fn describe(&self, request: &api::StateRequest) -> Result<api::StateResponse, Error> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let phase = process.phase();
        let mut response = api::StateResponse {
            id: request.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: process.pid(),
            status: phase.status().into(),
            stdin: process.places.stdin.clone(),
            stdout: process.places.stdout.clone(),
            stderr: process.places.stderr.clone(),
            terminal: process.places.terminal,
            exec_id: request.exec_id.clone(),
            ..Default::default()
        };
        if let Phase::Ended(exit) = phase {
            (response.exit_status, response.exited_at) = (exit.status, timestamp(exit.at));
        }
        Ok(response)
    }

    fn add_exec(&self, request: api::ExecProcessRequest) -> Result<(), Error> {
        if !is_identifier(&request.exec_id) {
            return Err(Error::Id(request.exec_id));
        }
        let container = self.container(&request.id)?;
        let spec = request.spec.into_option().filter(|spec| !spec.value.is_empty());
        let spec = spec.ok_or(Error::Malformed("process"))?;
        let places =
            Places { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        container.add_exec(&request.exec_id, places, spec.value)
    }

    async fn list_pids(&self, id: &str) -> Result<Vec<ProcessInfo>, Error> {
        let container = self.container(id)?;
        let describe = |pid: u32| {
            let info = container.exec_of(pid).map(|exec_id| any(&ProcessDetails { exec_id, ..Default::default() }));
            ProcessInfo { pid, info: MessageField::from_option(info), ..Default::default() }
        };
        Ok(container.runtime.pids().await?.into_iter().map(describe).collect())
    }
}

/// Does a request whole, also when nobody waits for the answer any more.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Answer<T> {
    let done = tokio::spawn(work).await.map_err(Error::from).flatten();
    done.map_err(|error| {
        log::debug!("request refused: {error}");
        error.into()
    })
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> Answer<api::StateResponse> {
        Ok(self.describe(&request)?)
    }

    async fn create(&self, _: &TtrpcContext, request: api::CreateTaskRequest) -> Answer<api::CreateTaskResponse> {
        let service = self.clone();
        let pid = whole(async move { service.create_container(request).await }).await?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> Answer<api::StartResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let pid = whole(async move {
            if process.exec.is_empty() { container.start().await } else { container.start_exec(process).await }
        });
        Ok(api::StartResponse { pid: pid.await?, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> Answer<api::DeleteResponse> {
        let service = self.clone();
        whole(async move { service.delete_process(&request.id, &request.exec_id).await }).await
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Answer<api::PidsResponse> {
        let processes = self.list_pids(&request.id).await?;
        Ok(api::PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        whole(async move { container.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        whole(async move { container.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Answer<Empty> {
        Err(Error::Checkpoint.into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        whole(async move { container.kill(&process, request.signal, request.all).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Answer<Empty> {
        self.add_exec(request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> Answer<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        process.resize(request.width, request.height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Answer<Empty> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_input().await;
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> Answer<Empty> {
        let container = self.container(&request.id)?;
        let resources = request.resources.into_option().ok_or(Error::Malformed("resources"))?;
        whole(async move { container.update(&resources.value).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Answer<api::WaitResponse> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let exit = process.ended().await;
        Ok(api::WaitResponse { exit_status: exit.status, exited_at: timestamp(exit.at), ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> Answer<api::StatsResponse> {
        let container = self.container(&request.id)?;
        let read = stats::read(&container.cgroup);
        let stats = read.map_err(|source| Error::Stats { container: request.id, source })?;
        Ok(api::StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> Answer<api::ConnectResponse> {
        let task_pid = self.container(&request.id).map_or(0, |container| container.init.pid());
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Answer<Empty> {
        if self.is_idle() {
            self.0.over.send_replace(true);
        }
        Ok(Empty::new())
    }
}
