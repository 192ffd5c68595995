//! `apex-probe serve`: one sandbox, from `Begin` to `Done`.
//!
//! Input: packets of `apex-run` and batches of the sources, joined in one bounded channel. Output: what the [`Pipeline`] makes of them, and
//! packets back. The order of the start is the protocol's; nothing is read from the sandbox before privileges are given up.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apex_core::event::{Event, Loss, What};
use apex_core::watch::{FromProbe, Reaction, ToProbe};
use nix::sys::signal::{SigSet, Signal};

use crate::engines::Engines;
use crate::lesson::Lesson;
use crate::link::{self, Link, LinkError};
use crate::pipeline::Pipeline;
use crate::privilege;
use crate::ptrace;
use crate::source::{Batch, QUEUE_BATCHES_MAX};
use crate::sources::{self, Dials, Running, Sandbox, Wish};

/// How long a prober whose launcher is gone may take to write what it has.
const LAST_WITHIN: Duration = Duration::from_secs(20);

/// How long a refusal waits for what happened before it: longer than the sources take to send.
const EARLY_FOR: Duration = Duration::from_millis(50);
/// How often a sandbox that does nothing is thought about.
const TICK: Duration = Duration::from_secs(1);
/// How often a tracer is rung for that has not taken its order.
const RING_EVERY: Duration = Duration::from_millis(5);
/// Refusals that wait.
const EARLY_MAX: usize = 1024;

/// What reaches the pipeline.
enum Input {
    Batch(Batch),
    /// Every source has stopped and everything it sent is before this.
    Drained,
    Said(ToProbe),
    /// `apex-run` is gone, or speaks no sense any more.
    Gone,
}

/// The verb.
pub fn run(arguments: Vec<OsString>) -> Result<u8> {
    if !arguments.is_empty() {
        bail!("`serve` takes no arguments");
    }
    let link = Link::take()?;
    settle().context("arranging the prober's signals")?;
    match watch(link) {
        Ok(()) => Ok(0),
        Err(error) => {
            // Whoever started it puts it into words; by hand there is nobody at the other end.
            link.say(&FromProbe::Failed { words: format!("{error:#}") })?;
            Ok(1)
        }
    }
}

/// What a terminal or an impatient person sends is for the launcher to decide. The launcher's death is no signal either: the socket
/// closes, what was seen is written, and [`LAST_WITHIN`] bounds that.
fn settle() -> Result<()> {
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGTSTP] {
        ignored.add(signal);
    }
    // Blocked for good; threads inherit it.
    ignored.thread_block()?;
    Ok(())
}

fn watch(link: Link) -> Result<()> {
    let begin = match link.hear()? {
        Some((ToProbe::Begin(begin), _)) => *begin,
        Some((other, _)) => return Err(LinkError::OutOfTurn(link::name_of(&other)).into()),
        None => return Ok(()),
    };
    let lesson = begin.learn.as_ref().map(Lesson::open).transpose()?;
    let mut pipeline = Pipeline::open(&begin, Engines::new(&begin)?, lesson)?;
    let chosen = sources::choose(Wish::of(&begin));
    if chosen.wants_trace() && begin.record && begin.learn.is_some() {
        bail!(
            "--learn with --why: as an ordinary user files and connections are traced, and --why takes those calls from the tracer, so nothing \
             of them would be learned; leave --why out, or run as root"
        );
    }
    pipeline.sources(chosen.sources.clone());
    link.say(&FromProbe::Prepared {
        sources: chosen.sources.clone(),
        wants_cgroup: chosen.wants_cgroup(),
        wants_trace: chosen.wants_trace(),
    })?;
    let Some(sandbox) = sandbox(link)? else { return Ok(()) };
    pipeline.sandbox(sandbox.id);
    let (to, inputs) = sync_channel(QUEUE_BATCHES_MAX);
    let (to_forwarder, from_sources) = sync_channel(QUEUE_BATCHES_MAX);
    let running = chosen.start(sandbox, to_forwarder).map_err(anyhow::Error::msg)?;
    // Before the threads that read what the sandbox wrote are started: they inherit what is left.
    privilege::give_up().map_err(|errno| anyhow::anyhow!("giving up privileges: {}", errno.desc()))?;
    let from_sources_to = to.clone();
    thread::spawn(move || forward(from_sources, &from_sources_to));
    thread::spawn(move || listen(link, &to));
    pipeline.start();
    link.say(&FromProbe::Watching)?;
    let mut service = Service {
        link,
        pipeline,
        running: Some(running),
        dials: Dials::default(),
        early: VecDeque::new(),
        hold_until: None,
    };
    let is_told = service.until_the_end(&inputs)?;
    let done = service.pipeline.finish();
    if is_told {
        link.say(&done)?;
    }
    Ok(())
}

fn sandbox(link: Link) -> Result<Option<Sandbox>> {
    match link.hear()? {
        Some((ToProbe::Sandbox { id, has_cgroup, init, command, traced }, fd)) => {
            if has_cgroup && fd.is_none() {
                bail!("the sandbox's cgroup did not come along");
            }
            Ok(Some(Sandbox { id, cgroup: fd, init, command, traced }))
        }
        Some((other, _)) => Err(LinkError::OutOfTurn(link::name_of(&other)).into()),
        // The sandbox did not come to be.
        None => Ok(None),
    }
}

/// From the sources' channel into the common one. A full one holds the sources up, which is theirs to count or to bear.
fn forward(from: Receiver<Batch>, to: &SyncSender<Input>) {
    for batch in from {
        if to.send(Input::Batch(batch)).is_err() {
            return;
        }
    }
    let _ = to.send(Input::Drained);
}

/// From the socket into the common channel. A full one fills the socket, and `apex-run` counts what does not fit.
fn listen(link: Link, to: &SyncSender<Input>) {
    loop {
        let input = match link.hear() {
            Ok(Some((said, _))) => Input::Said(said),
            Ok(None) | Err(_) => Input::Gone,
        };
        let is_last = matches!(input, Input::Gone | Input::Said(ToProbe::Ended));
        if to.send(input).is_err() || is_last {
            return;
        }
    }
}

/// The prober while the sandbox lives.
struct Service {
    link: Link,
    pipeline: Pipeline,
    running: Option<Running>,
    dials: Dials,
    /// Refusals come by a shorter way than what happened before them: they wait a moment for it.
    early: VecDeque<Event>,
    /// By when a tracer that was told to hold the sandbox, or to let it go on, must have obeyed.
    hold_until: Option<Instant>,
}

impl Service {
    /// Takes what comes until the sandbox has ended and everything that was seen is through. Whether `apex-run` waits for the end.
    fn until_the_end(&mut self, inputs: &Receiver<Input>) -> Result<bool> {
        let (mut ended, mut drained) = (None, false);
        while ended.is_none() || !drained {
            self.see_to_hold()?;
            let input = match inputs.recv_timeout(self.patience()) {
                Ok(input) => input,
                Err(RecvTimeoutError::Timeout) if self.hold_until.is_some() => continue,
                Err(RecvTimeoutError::Timeout) => {
                    self.let_early_in(u64::MAX)?;
                    let wish = self.pipeline.tick();
                    self.act(wish)?;
                    continue;
                }
                // Two threads send, and end with a last word each.
                Err(RecvTimeoutError::Disconnected) => bail!("the sources ended without a word"),
            };
            match input {
                Input::Batch(batch) => self.batch(batch)?,
                Input::Drained => drained = true,
                Input::Said(ToProbe::Ended) => {
                    ended = Some(true);
                    self.stop();
                }
                Input::Gone => {
                    ended = Some(false);
                    self.stop();
                    thread::spawn(|| {
                        thread::sleep(LAST_WITHIN);
                        std::process::exit(1);
                    });
                }
                Input::Said(said) => self.said(said)?,
            }
        }
        self.let_early_in(u64::MAX)?;
        Ok(ended == Some(true))
    }

    fn patience(&self) -> Duration {
        match (self.hold_until, self.early.is_empty()) {
            (Some(_), _) => RING_EVERY,
            (None, true) => TICK,
            (None, false) => EARLY_FOR,
        }
    }

    /// Takes the refusals in that happened before a moment.
    fn let_early_in(&mut self, before_ns: u64) -> Result<()> {
        while self.early.front().is_some_and(|event| event.time_ns < before_ns)
            && let Some(event) = self.early.pop_front()
        {
            self.event(event)?;
        }
        Ok(())
    }

    /// Beside the loop, which reads what the sources still send.
    fn stop(&mut self) {
        self.hold_until = None;
        if let Some(running) = self.running.take() {
            self.pipeline.cost(running.costs());
            thread::spawn(move || running.stop());
        }
    }

    fn batch(&mut self, batch: Batch) -> Result<()> {
        self.pipeline.lost(&batch.lost);
        for event in batch.events {
            self.let_early_in(event.time_ns)?;
            self.event(event)?;
        }
        Ok(())
    }

    fn said(&mut self, said: ToProbe) -> Result<()> {
        match said {
            ToProbe::Refused { time_ns, pid, ppid, uid, comm, refused, error } => {
                let sandbox = self.pipeline.sandbox_id();
                let event = Event { time_ns, sandbox, pid, ppid, uid, comm, what: What::Refused(refused), error };
                if self.pipeline.admits_refusal(time_ns) {
                    self.early.push_back(event);
                }
                match self.early.front() {
                    Some(first) if self.early.len() > EARLY_MAX => self.let_early_in(first.time_ns + 1),
                    _ => Ok(()),
                }
            }
            ToProbe::Lost { count } => {
                self.pipeline.lost(&[(Loss::QueueFull, count)].into());
                Ok(())
            }
            ToProbe::Hold { frozen } => self.hold(frozen),
            // A finding's tightening is taken back with it.
            ToProbe::Cut { cut } => self.turn(Dials { cut, tightened: self.dials.tightened && cut, ..self.dials }),
            ToProbe::Costs => {
                let probes = self.running.as_ref().map(Running::costs).unwrap_or_default();
                self.link.say(&FromProbe::Costs { probes })?;
                Ok(())
            }
            ToProbe::Shut { shut } => self.turn(Dials { shut, ..self.dials }),
            other @ (ToProbe::Begin(_) | ToProbe::Sandbox { .. } | ToProbe::Ended) => {
                Err(LinkError::OutOfTurn(link::name_of(&other)).into())
            }
        }
    }

    fn turn(&mut self, dials: Dials) -> Result<()> {
        // The end is on its way: nothing is left to be refused.
        let error = self.running.as_ref().and_then(|running| running.turn(&dials).err());
        if error.is_none() {
            self.dials = dials;
        }
        self.link.say(&FromProbe::Turned { error })?;
        Ok(())
    }

    /// Without waiting: a tracer with much to tell takes no order before this loop has made room for it.
    fn hold(&mut self, frozen: bool) -> Result<()> {
        let Some(running) = &self.running else { return Ok(()) };
        running.hold(frozen).map_err(anyhow::Error::msg)?;
        self.hold_until = Some(Instant::now() + ptrace::PATIENCE);
        Ok(())
    }

    /// An error ends the prober, and with it a sandbox that was to stand still and does not.
    fn see_to_hold(&mut self) -> Result<()> {
        let (Some(until), Some(running)) = (self.hold_until, &self.running) else { return Ok(()) };
        if running.has_obeyed() {
            self.hold_until = None;
        } else if Instant::now() > until {
            bail!("the tracer did not hold the sandbox or let it go on within {:?}", ptrace::PATIENCE);
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<()> {
        let wish = self.pipeline.observe(event);
        self.act(wish)
    }

    fn act(&mut self, wish: Option<(Reaction, String)>) -> Result<()> {
        let Some((reaction, because)) = wish else { return Ok(()) };
        if reaction == Reaction::Tighten
            && let Some(running) = self.running.as_ref().filter(|running| running.has_dials())
        {
            let dials = Dials { tightened: true, ..self.dials };
            running.turn(&dials).map_err(anyhow::Error::msg)?;
            self.dials = dials;
        }
        // Before anybody is told: whoever reads standard error may be slow, and the sandbox can fill it.
        // Nobody to act any more: the end is on its way through the socket.
        match self.link.say(&FromProbe::Act { reaction, because }) {
            Ok(()) | Err(LinkError::Send(apex_sys::Errno::EPIPE)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use apex_core::event::{Start, VERSION};
    use apex_core::watch::{Begin, Level};
    use apex_sys::fs;

    use super::*;

    fn begin() -> Begin {
        Begin {
            start: Start {
                version: VERSION,
                wall_time_ns: 0,
                mode: "isolation".to_owned(),
                profile: None,
                plan_sha256: String::new(),
                command: Vec::new(),
                level: Level::Default,
                sources: Default::default(),
            },
            events: Vec::new(),
            findings: Vec::new(),
            on_finding: Reaction::Freeze,
            summary: false,
            json: false,
            learn: None,
            rules: Vec::new(),
            has_listener: false,
            record: false,
            baseline: None,
            may_probe: false,
        }
    }

    /// The channels hold less than the tracer sends before it looks at its orders.
    #[test]
    fn a_tracer_with_much_to_tell_is_held_all_the_same() {
        let begin = begin();
        let pipeline = Pipeline::open(&begin, Engines::new(&begin).unwrap(), None).unwrap();
        let (to, inputs) = sync_channel(1);
        to.send(Input::Said(ToProbe::Hold { frozen: true })).unwrap();
        let (to_forwarder, from_tracer) = sync_channel(1);
        let tracer = ptrace::Running::busy(to_forwarder, 20);
        let running = Some(Running::Ptrace(tracer));
        let link = Link::over(fs::borrow(2).unwrap());
        let mut service =
            Service { link, pipeline, running, dials: Dials::default(), early: VecDeque::new(), hold_until: None };
        thread::spawn(move || {
            // Ends with the tracer, which has then obeyed.
            forward(from_tracer, &to);
            let _ = to.send(Input::Said(ToProbe::Ended));
        });
        let start = Instant::now();
        assert!(service.until_the_end(&inputs).unwrap());
        assert!(start.elapsed() < ptrace::PATIENCE, "it was waited for");
    }

    #[test]
    fn serving_needs_a_socket_and_takes_no_words() {
        let error = run(vec!["x".into()]).unwrap_err();
        assert!(error.to_string().contains("takes no arguments"));
    }
}
