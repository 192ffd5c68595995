//! A daemon for the tests: it runs commands as plain processes, without a sandbox, over the real server and a real socket.
//!
//! A command `fail` is refused; a command `broken` begins and ends with an error of Apex. The request comes back as JSON in `ending` of what `create` answers.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use apex_api::v1::*;
use apex_api::{Error, Kind, Peer, Service, Streamed, server};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// What the tests started; ends with them.
pub struct Daemon {
    pub socket: PathBuf,
    dir: PathBuf,
    // Dropped first: no task outlives the directory.
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    pub fn start(name: &str) -> Daemon {
        let dir = std::env::temp_dir().join(format!("apex-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("apexd.sock");
        let _ = std::fs::remove_file(&socket);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(&socket).unwrap()
        };
        runtime.spawn(server::serve(listener, Arc::new(Fake::default()), std::future::pending()));
        Daemon { socket, dir, _runtime: runtime }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Vec<Sandbox>>>);

type Outputs = mpsc::Sender<Result<RunOutput, Error>>;

async fn say(to: &Outputs, output: run_output::Output) {
    let _ = to.send(Ok(RunOutput { output: Some(output) })).await;
}

async fn carry(mut from: impl AsyncRead + Unpin, to: Outputs, wrap: fn(Vec<u8>) -> run_output::Output) {
    let mut chunk = vec![0; 10_000];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        say(&to, wrap(chunk[..count].to_vec())).await;
    }
}

async fn feed(mut input: Streamed<RunInput>, to: tokio::process::ChildStdin) {
    let mut to = Some(to);
    while let Some(Ok(message)) = input.next().await {
        match (message.input, &mut to) {
            (Some(run_input::Input::Stdin(bytes)), Some(to)) => drop(to.write_all(&bytes).await),
            (Some(run_input::Input::CloseStdin(_)), to) => *to = None,
            _ => {}
        }
    }
}

impl Fake {
    fn add(&self, request: &CreateRequest, pid: u32) -> Sandbox {
        let mut sandboxes = self.0.lock().unwrap();
        let sandbox = Sandbox {
            id: format!("sb{}", sandboxes.len() + 1),
            name: request.name.clone(),
            mode: "hybrid".to_owned(),
            state: "running".to_owned(),
            pid,
            command: request.command.clone(),
            ..Default::default()
        };
        sandboxes.push(sandbox.clone());
        sandbox
    }

    fn find(&self, id: &str) -> Result<Sandbox, Error> {
        let sandboxes = self.0.lock().unwrap();
        let found = sandboxes.iter().find(|sandbox| sandbox.id == id || sandbox.name == id).cloned();
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no sandbox {id}")))
    }

    async fn execute(self, request: CreateRequest, input: Streamed<RunInput>, to: Outputs) {
        use std::os::unix::process::ExitStatusExt;
        let [program, words @ ..] = request.command.as_slice() else { return };
        if program == "broken" {
            let sandbox = self.add(&request, 0);
            let ended = Sandbox { state: "failed".to_owned(), error: "the jail\u{1b}broke".to_owned(), ..sandbox };
            return say(&to, run_output::Output::Ended(ended)).await;
        }
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let sandbox = self.add(&request, child.id().unwrap());
        say(&to, run_output::Output::Started(sandbox.clone())).await;
        let feeding = tokio::spawn(feed(input, child.stdin.take().unwrap()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        tokio::join!(
            carry(stdout, to.clone(), run_output::Output::Stdout),
            carry(stderr, to.clone(), run_output::Output::Stderr)
        );
        let status = child.wait().await.unwrap();
        feeding.abort();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        let ended = Sandbox { exit_code: Some(code), state: "ended".to_owned(), pid: 0, ..sandbox };
        for known in self.0.lock().unwrap().iter_mut().filter(|known| known.id == ended.id) {
            *known = ended.clone();
        }
        say(&to, run_output::Output::Ended(ended)).await;
    }
}

fn lines(lines: &[&str]) -> Streamed<JsonLine> {
    let lines: Vec<_> = lines.iter().map(|json| Ok(JsonLine { json: (*json).to_owned() })).collect();
    Box::pin(tokio_stream::iter(lines))
}

#[async_trait::async_trait]
impl Service for Fake {
    async fn create(&self, _: Peer, request: CreateRequest) -> Result<Sandbox, Error> {
        let ending = serde_json::to_string(&request).unwrap();
        Ok(Sandbox { ending, ..self.add(&request, 4711) })
    }

    async fn run(&self, _: Peer, mut input: Streamed<RunInput>) -> Result<Streamed<RunOutput>, Error> {
        let request = match input.next().await.unwrap()?.input {
            Some(run_input::Input::Create(request)) => request,
            // Anything that is there is a spring of words.
            Some(run_input::Input::Attach(sandbox)) => {
                self.find(&sandbox.id)?;
                let output = run_output::Output::Stdout(b"word\n".to_vec());
                let spring = std::iter::repeat_with(move || Ok(RunOutput { output: Some(output.clone()) }));
                return Ok(Box::pin(tokio_stream::iter(spring)));
            }
            _ => return Err(Error::new(Kind::Invalid, "the first message names nothing")),
        };
        if request.command[0] == "fail" {
            return Err(Error::new(Kind::Conflict, "no room for it"));
        }
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(self.clone().execute(request, input, sender));
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn wait(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        Ok(Sandbox { exit_code: Some(3), ..self.find(&sandbox.id)? })
    }

    async fn list(&self, _: Peer, _: ListRequest) -> Result<ListResponse, Error> {
        Ok(ListResponse { sandboxes: self.0.lock().unwrap().clone() })
    }

    async fn inspect(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn logs(&self, _: Peer, _: LogsRequest) -> Result<Streamed<LogChunk>, Error> {
        let chunk = |stream: &str, data: &[u8]| Ok(LogChunk { stream: stream.to_owned(), data: data.to_vec() });
        Ok(Box::pin(tokio_stream::iter([chunk("stdout", b"\x00\xffout"), chunk("stderr", b"err")])))
    }

    async fn events(&self, _: Peer, _: StreamRequest) -> Result<Streamed<JsonLine>, Error> {
        Ok(lines(&["{\"n\":1}", "{\"n\":\"\u{9b}\"}"]))
    }

    async fn findings(&self, _: Peer, _: StreamRequest) -> Result<Streamed<JsonLine>, Error> {
        Ok(lines(&["{\"severity_id\":5,\"time\":0,\"finding_info\":{\"title\":\"reads secrets\"}}"]))
    }

    async fn set_mode(&self, _: Peer, request: SetModeRequest) -> Result<Transition, Error> {
        let step = Step { what: "limits".to_owned(), done: true, words: String::new() };
        let applied = request.mode != "development" || request.successor;
        let words = if applied { String::new() } else { "above the ceiling".to_owned() };
        Ok(Transition {
            from: "hybrid".to_owned(),
            to: request.mode,
            applied,
            steps: vec![step],
            words,
            successor_needed: !applied,
            carried_over: if request.successor { vec!["files".to_owned()] } else { Vec::new() },
            left_behind: if request.successor { vec!["memory".to_owned()] } else { Vec::new() },
            ..Default::default()
        })
    }

    async fn suggest_mode(&self, _: Peer, _: SandboxRef) -> Result<Suggestion, Error> {
        Ok(Suggestion { mode: "hybrid".to_owned(), because: vec!["a reason".to_owned()], events: 3 })
    }

    async fn set_limits(&self, _: Peer, request: SetLimitsRequest) -> Result<Transition, Error> {
        Ok(Transition { to: request.limits.unwrap().memory, applied: true, ..Default::default() })
    }

    async fn set_switches(&self, _: Peer, request: SetSwitchesRequest) -> Result<Transition, Error> {
        Ok(Transition { to: request.switches.join(","), applied: true, ..Default::default() })
    }

    async fn pause(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn resume(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn signal(&self, _: Peer, request: SignalRequest) -> Result<Sandbox, Error> {
        let sandbox = self.find(&request.id)?;
        if sandbox.name == "spared" {
            self.0.lock().unwrap().iter_mut().for_each(|known| known.state = format!("signal {}", request.signal));
            return Ok(sandbox);
        }
        let order = format!("kill -{} {}", request.signal, sandbox.pid);
        Command::new("sh").arg("-c").arg(order).status().await.unwrap();
        Ok(sandbox)
    }

    async fn kill(&self, _: Peer, sandbox: SandboxRef) -> Result<Sandbox, Error> {
        self.find(&sandbox.id)
    }

    async fn remove(&self, _: Peer, request: RemoveRequest) -> Result<(), Error> {
        self.find(&request.id)?;
        self.0.lock().unwrap().retain(|sandbox| sandbox.id != request.id);
        Ok(())
    }

    async fn audit_tail(&self, _: Peer, request: AuditRequest) -> Result<Streamed<JsonLine>, Error> {
        Ok(lines(&["{\"a\":1}", "{\"a\":2}"][..request.limit.min(2) as usize]))
    }

    async fn audit_verify(&self, _: Peer) -> Result<AuditVerdict, Error> {
        Ok(AuditVerdict { intact: false, words: "record 7".to_owned(), ..Default::default() })
    }

    async fn tree(&self, _: Peer) -> Result<TreeResponse, Error> {
        let service =
            |name: &str| ServiceState { name: name.to_owned(), state: "running".to_owned(), ..Default::default() };
        Ok(TreeResponse { services: vec![service("api"), service("audit")], ..Default::default() })
    }

    async fn stats(&self, _: Peer) -> Result<StatsResponse, Error> {
        let one = SandboxStats {
            id: "sb1".to_owned(),
            memory_bytes: Some(1536),
            cpu_us: Some(1_230_000),
            ..Default::default()
        };
        Ok(StatsResponse { sandboxes: vec![one] })
    }

    async fn pools(&self, _: Peer) -> Result<PoolsResponse, Error> {
        Ok(PoolsResponse {
            pools: vec![Pool { id: "1".to_owned(), program: "true".to_owned(), ready: 2, ..Default::default() }],
        })
    }

    async fn set_pool(&self, _: Peer, request: SetPoolRequest) -> Result<Pool, Error> {
        let program = request.like.and_then(|like| like.command.first().cloned()).unwrap_or_default();
        Ok(Pool { id: "1".to_owned(), program, wanted: request.size, ..Default::default() })
    }

    async fn drain_pools(&self, _: Peer, request: DrainPoolsRequest) -> Result<PoolsResponse, Error> {
        Ok(PoolsResponse { pools: vec![Pool { id: request.id, ..Default::default() }] })
    }

    async fn up(&self, _: Peer, request: UpRequest) -> Result<Group, Error> {
        let state = |member: &GroupMember| MemberState {
            name: member.name.clone(),
            state: "starting".to_owned(),
            after: member.after.clone(),
            words: member.sandbox.as_ref().map(|sandbox| sandbox.command.join(" ")).unwrap_or_default(),
            ..Default::default()
        };
        let members = request.members.iter().map(state).collect();
        Ok(Group {
            name: request.name,
            strategy: request.strategy,
            state: "up".to_owned(),
            members,
            ..Default::default()
        })
    }

    async fn down(&self, _: Peer, group: GroupRef) -> Result<Group, Error> {
        Ok(Group { name: group.name, state: "stopping".to_owned(), ..Default::default() })
    }

    async fn groups(&self, _: Peer) -> Result<GroupsResponse, Error> {
        let member =
            MemberState { name: "web".to_owned(), state: "running".to_owned(), restarts: 2, ..Default::default() };
        let group =
            Group { name: "shop".to_owned(), state: "up".to_owned(), members: vec![member], ..Default::default() };
        Ok(GroupsResponse { groups: vec![group] })
    }

    async fn mailboxes(&self, _: Peer) -> Result<MailboxesResponse, Error> {
        let mailbox = Mailbox { name: "jobs".to_owned(), messages: 3, held: 1, bytes: 20, ..Default::default() };
        Ok(MailboxesResponse { mailboxes: vec![mailbox] })
    }

    async fn mail_send(&self, _: Peer, request: MailSendRequest) -> Result<MailSent, Error> {
        // Tells how it came.
        Err(Error::new(Kind::Conflict, format!("{}/{} {}", request.user, request.mailbox, request.body)))
    }

    async fn mail_receive(&self, _: Peer, request: MailReceiveRequest) -> Result<MailReceived, Error> {
        let body = "{\"b\":\"\u{9b}2J\"}".to_owned();
        let message = MailMessage { id: 7, from: "host".to_owned(), body, ..Default::default() };
        Ok(MailReceived { message: (request.mailbox != "empty").then_some(message) })
    }

    async fn mail_acknowledge(&self, _: Peer, request: MailAcknowledgeRequest) -> Result<(), Error> {
        let is_ours = request.mailbox == "jobs" && request.id == 7;
        if is_ours { Ok(()) } else { Err(Error::new(Kind::Conflict, "you do not hold this message")) }
    }

    async fn mail_remove(&self, _: Peer, _: MailboxRef) -> Result<(), Error> {
        Ok(())
    }

    async fn metrics(&self, _: Peer, _: bool) -> Result<String, Error> {
        Ok(String::new())
    }

    async fn ready(&self) -> Result<(), Error> {
        Ok(())
    }
}
