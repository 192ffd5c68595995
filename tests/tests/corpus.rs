//! How good the detectors are: hostile and honest programs of our own, `tests/corpus`, each in a sandbox under `--watch=full`.
//!
//! What they do is real and stays inside: own network, own /tmp, nothing granted but their directory. Each hostile one must be found with severity high
//! or above within two seconds of its act, no honest one may be. A program whose interpreter or tool is missing is left out and told.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use apex_core::event::{Event, What};
use apex_tests::{Sandbox, TempDir, programs};

/// From the act to the finding.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one program came to.
struct Verdict {
    name: String,
    /// Rules that found it with severity high or above.
    alarms: Vec<String>,
    /// At most so long it took from its act, which ends with it at the latest, until they were told, where there are any.
    delay: Option<Duration>,
}

/// A program of the corpus and what it needs.
struct Job {
    path: PathBuf,
    options: Vec<String>,
    line: Vec<String>,
}

impl Job {
    /// `None` with the reason when something that it needs is missing. C programs are compiled into `built`.
    fn new(path: &Path, built: &Path) -> Result<Job, String> {
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a text");
        let after = |mark: &str| {
            let line = text.lines().find_map(|line| line.split_once(mark));
            line.map(|(_, rest)| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
        };
        let interpreter = match path.extension().and_then(|extension| extension.to_str()) {
            Some("c") => None,
            Some("py") => Some("python3"),
            Some("pl") => Some("perl"),
            _ if text.starts_with("#!/bin/bash") => Some("bash"),
            _ => Some("sh"),
        };
        let needs = after("needs: ");
        let needed = needs.iter().map(String::as_str).chain(interpreter).chain(interpreter.is_none().then_some("gcc"));
        if let Some(missing) = programs::missing_program(&needed.collect::<Vec<_>>()) {
            return Err(format!("{name}: {missing}"));
        }
        let line = match interpreter {
            Some(interpreter) => vec![interpreter.to_owned(), format!("/corpus/{name}")],
            None => {
                let program = built.join(name.trim_end_matches(".c"));
                let status = Command::new("gcc").args(["-O1", "-w", "-static", "-o"]).arg(&program).arg(path).status();
                assert!(status.expect("gcc starts").success(), "{name} does not compile");
                vec![format!("/built/{}", name.trim_end_matches(".c"))]
            }
        };
        Ok(Job { path: path.to_owned(), options: after("apex: "), line })
    }

    fn run(&self, built: &Path) -> Verdict {
        let out = TempDir::new();
        let corpus = self.path.parent().expect("it lies in a directory").display().to_string();
        let sandbox = Sandbox::new()
            .ro(&corpus, "/corpus")
            .ro(&built.display().to_string(), "/built")
            .arg("--watch=full")
            .args(["--events", &out.at("events"), "--findings", &out.at("findings")])
            .args(&self.options);
        let line: Vec<&str> = self.line.iter().map(String::as_str).collect();
        let output = sandbox.run(&line);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let name = self.path.file_name().expect("it has a name").to_string_lossy().into_owned();
        assert_ne!(output.code, apex_tests::APEX_FAILED, "{name}: {}", output.err());
        let events: Vec<Event> =
            out.read("events").lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
        let bound = last_end(&events).map(|end| now.saturating_sub(end));
        let findings: Vec<serde_json::Value> =
            out.read("findings").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        // OCSF: 4 is high, 5 critical.
        let high = findings.iter().filter(|finding| finding["severity_id"].as_u64().is_some_and(|id| id >= 4));
        let high: Vec<&serde_json::Value> = high.collect();
        let text = output.err();
        let alarms = text.lines().filter(|line| line.contains(": high: ") || line.contains(": critical: "));
        let alarms = alarms.filter_map(|line| Some(line.split_once("[rule ")?.1.split([',', ']']).next()?.to_owned()));
        let delay = bound.filter(|_| !high.is_empty());
        Verdict { name, alarms: alarms.collect(), delay }
    }
}

/// When the last process ended, by the wall clock.
fn last_end(events: &[Event]) -> Option<Duration> {
    let ends = events.iter().filter(|event| matches!(event.what, What::Exit { .. })).map(|event| event.time_ns);
    let (start, wall) = events.iter().find_map(|event| match &event.what {
        What::Start(start) => Some((event.time_ns, start.wall_time_ns)),
        _ => None,
    })?;
    Some(Duration::from_nanos(wall.saturating_add(ends.max()?.saturating_sub(start))))
}

/// Runs every program of a directory; what was left out with its reason.
fn verdicts(kind: &str) -> (Vec<Verdict>, Vec<String>) {
    let built = TempDir::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(kind);
    let entries = fs::read_dir(&directory).expect("the corpus is there").map(|entry| entry.expect("readable").path());
    let mut paths: Vec<PathBuf> = entries.collect();
    paths.sort();
    let (mut verdicts, mut left_out) = (Vec::new(), Vec::new());
    for path in paths {
        match Job::new(&path, built.path()) {
            Ok(job) => verdicts.push(job.run(built.path())),
            Err(reason) => left_out.push(reason),
        }
    }
    for verdict in &verdicts {
        println!("{kind}: {}: {}", verdict.name, verdict.alarms.join(", "));
    }
    for reason in &left_out {
        println!("{kind}: left out: {reason}");
    }
    (verdicts, left_out)
}

#[test]
fn every_hostile_program_is_found_in_time() {
    let (verdicts, left_out) = verdicts("hostile");
    let in_time = |verdict: &&Verdict| verdict.delay.is_some_and(|delay| delay <= PATIENCE);
    let found = verdicts.iter().filter(in_time).count();
    println!("detection: {found} of {} hostile programs", verdicts.len());
    let missed: Vec<&str> = verdicts.iter().filter(|one| !in_time(one)).map(|one| one.name.as_str()).collect();
    assert!(missed.is_empty(), "not found, or not within {PATIENCE:?}: {}", missed.join(", "));
    assert!(verdicts.len() >= 20, "{} programs are too few; left out: {left_out:?}", verdicts.len());
}

#[test]
fn no_honest_program_is_found() {
    let (verdicts, left_out) = verdicts("honest");
    let wrong: Vec<String> = verdicts
        .iter()
        .filter(|verdict| verdict.delay.is_some() || !verdict.alarms.is_empty())
        .map(|verdict| format!("{} ({})", verdict.name, verdict.alarms.join(", ")))
        .collect();
    println!("false alarms: {} of {} honest programs", wrong.len(), verdicts.len());
    assert!(wrong.is_empty(), "false alarms: {}", wrong.join("; "));
    assert!(verdicts.len() >= 20, "{} programs are too few; left out: {left_out:?}", verdicts.len());
}
