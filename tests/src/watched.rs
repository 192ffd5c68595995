//! A cgroup v2 directory with programs in it, watched by the kernel's probes: what the tests of `apex_probe::bpf` share.
//!
//! A program is started outside, waits for a line on its standard input, is moved into the cgroup, and runs when the probes are on. Everything
//! is gone when the value is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use apex_core::event::{Event, Loss, What};
use apex_probe::bpf::{Running, Sandbox};
use apex_probe::source::{Batch, QUEUE_BATCHES_MAX};

/// After this a test counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cgroup of the test's own.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below the root of the v2 hierarchy; `None` where there is none that we may write to.
    pub fn new() -> Option<Cgroup> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let root = root.into_iter().find(|root| Path::new(root).join("cgroup.procs").exists())?;
        let path = Path::new(root).join(format!("apex-test-{}-{number}_", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Cgroup { path })
    }

    /// A cgroup inside this one.
    pub fn nested(&self, name: &str) -> Cgroup {
        let path = self.path.join(name);
        fs::create_dir(&path).expect("a cgroup may have children");
        Cgroup { path }
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("it is there").ino()
    }

    /// As the probes want it; `init` is the pid that is not reported, 0 for none.
    pub fn sandbox(&self, init: u32) -> Sandbox {
        let cgroup = OwnedFd::from(fs::File::open(&self.path).expect("it is there"));
        Sandbox { id: self.id(), cgroup, init }
    }

    /// Starts a shell in it that runs `script` once it is told to [`Waiting::go`].
    pub fn shell(&self, script: &str) -> Waiting {
        self.run(&["/bin/sh", "-c", script])
    }

    /// Starts a program in it that runs once it is told to [`Waiting::go`].
    pub fn run(&self, words: &[&str]) -> Waiting {
        let child = Command::new("/bin/sh")
            .args(["-c", "read go && exec \"$@\"", "sh"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        fs::write(self.path.join("cgroup.procs"), child.id().to_string()).expect("root moves processes");
        Waiting { child }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let until = Instant::now() + Duration::from_secs(5);
        // Busy until the last process is reaped.
        while fs::remove_dir(&self.path).is_err() && self.path.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A program that waits in its cgroup.
#[derive(Debug)]
pub struct Waiting {
    child: Child,
}

impl Waiting {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it run, without waiting for its end.
    pub fn start(&mut self) {
        // Whatever comes later on its standard input it shall not wait for.
        self.child.stdin.take().expect("started once").write_all(b"go\n").expect("the shell reads it");
    }

    /// Lets it run and keeps its standard input open for [`Waiting::tell`].
    pub fn start_with_input(&mut self) {
        self.tell("go");
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is kept open");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// Waits until it has made a file.
    pub fn wait_for(&self, file: &Path) {
        let until = Instant::now() + PATIENCE;
        while !file.exists() {
            assert!(Instant::now() < until, "{} did not come within {PATIENCE:?}", file.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets it run to its end; its exit code.
    pub fn go(mut self) -> Option<i32> {
        self.start();
        self.end()
    }

    /// Waits for its end; its exit code.
    pub fn end(mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status.code();
            }
            if Instant::now() > until {
                self.child.kill().expect("it is ours");
                panic!("the program in the cgroup did not end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A channel of the size that the prober uses.
pub fn channel() -> (std::sync::mpsc::SyncSender<Batch>, Receiver<Batch>) {
    sync_channel(QUEUE_BATCHES_MAX)
}

/// What was recorded.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Every event in the order of arrival.
    pub events: Vec<Event>,
    /// What was lost.
    pub lost: BTreeMap<Loss, u64>,
}

impl Recorded {
    /// Stops the probes and takes all that was sent.
    pub fn collect(running: Running, from: Receiver<Batch>) -> Recorded {
        let reader = Recorded::in_background(from);
        running.stop();
        reader.join().expect("it only collects")
    }

    /// Takes what is sent until the channel is closed.
    pub fn in_background(from: Receiver<Batch>) -> JoinHandle<Recorded> {
        std::thread::spawn(move || {
            let mut recorded = Recorded::default();
            for batch in from {
                recorded.events.extend(batch.events);
                for (reason, count) in batch.lost {
                    *recorded.lost.entry(reason).or_default() += count;
                }
            }
            recorded
        })
    }

    /// What the processes did, without who did it.
    pub fn whats(&self) -> impl Iterator<Item = &What> {
        self.events.iter().map(|event| &event.what)
    }

    /// The first event like this; panics with everything that was recorded when there is none.
    #[track_caller]
    pub fn find(&self, like: impl Fn(&What) -> bool) -> &Event {
        match self.events.iter().find(|event| like(&event.what)) {
            Some(event) => event,
            None => panic!("no such event among: {:#?}", self.events),
        }
    }
}
