//! `apex-run --baseline`: runs are learned from, another is judged by them, and a model that was changed stops the start.

use std::fs;

use apex_tests::{Output, Sandbox, TempDir};

/// Fewest runs with which anything is judged.
const RUNS_MIN: usize = 15;

/// A script that is granted by its directory: what it does can change while its policy stays the same.
struct Job {
    dir: TempDir,
    state: TempDir,
    sandbox: Sandbox,
}

impl Job {
    fn new() -> Job {
        let (dir, state) = (TempDir::new(), TempDir::new());
        let sandbox = Sandbox::new().ro(&dir.text(), "/job").caller_env("XDG_STATE_HOME", &state.text());
        let job = Job { dir, state, sandbox };
        job.does("ls / >/dev/null; cat /etc/passwd >/dev/null");
        job
    }

    fn does(&self, script: &str) {
        self.dir.file("job.sh", script);
    }

    #[track_caller]
    fn run(&self, option: &str) -> Output {
        self.sandbox.clone().arg(option).run(&["/bin/sh", "/job/job.sh"])
    }

    /// Its model's file.
    #[track_caller]
    fn model(&self) -> String {
        let dir = self.state.at("apex/models");
        let names = fs::read_dir(&dir).expect("a store").map(|entry| entry.expect("an entry").path());
        let models: Vec<_> = names.filter(|path| path.extension().is_some_and(|end| end == "json")).collect();
        assert_eq!(models.len(), 1, "one policy, one model: {models:?}");
        models[0].to_str().expect("text").to_owned()
    }
}

#[test]
fn a_run_that_does_more_than_fifteen_before_it_is_told_of() {
    let job = Job::new();
    for count in 1..=RUNS_MIN {
        let output = job.run("--baseline=learn").expect_code(0);
        assert!(output.err().contains(&format!(": {count} runs;")), "{}", output.err());
    }
    let same = job.run("--baseline=alert").expect_code(0);
    assert_eq!(same.err(), "", "a run like them is not told of");
    job.does("ls / >/dev/null; cat /etc/passwd >/dev/null; id >/dev/null; env | sort >/dev/null; exit 3");
    // Judged by default where there is a model; the exit code stays the command's.
    let other = job.run("--watch").expect_code(3);
    assert!(other.err().contains("Unusual for this policy: new programs"), "{}", other.err());
    assert!(other.err().contains("baseline, score"), "{}", other.err());
    assert_eq!(job.run("--baseline=off").expect_code(3).err(), "");
}

#[test]
fn too_few_runs_are_said_and_a_changed_model_stops_the_start() {
    let job = Job::new();
    let output = job.run("--baseline=alert").expect_code(0);
    assert!(output.err().contains("not judged: there is no baseline"), "{}", output.err());
    job.run("--baseline=learn").expect_code(0);
    let output = job.run("--baseline=alert").expect_code(0);
    assert!(output.err().contains("has 1 of the 15 runs"), "{}", output.err());
    let model = job.model();
    let text = fs::read_to_string(&model).expect("a model");
    fs::write(&model, text.replacen("/cat", "/dog", 1)).expect("our own file");
    job.run("--watch").expect_refusal(&["baseline", "changed after it was learned", "--baseline off"]);
}
