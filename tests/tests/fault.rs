//! Every system call of a start fails once: the start goes on complete, or ends with a message; in no case is anything left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use apex_tests::trace::{self, Fault, Place, Traced};
use apex_tests::{Abi, Sandbox, TempDir, leaks};
use nix::errno::Errno;
use nix::libc;

/// Taken in turn: one per call.
const ERRNOS: [Errno; 3] = [Errno::EIO, Errno::ENOMEM, Errno::EPERM];
const WORKERS: usize = 3;
/// What the command exits with: a code that Apex itself never gives.
const CODE: i32 = 42;
/// After so many failures the picture is clear; each may cost the patience of the search for leaks.
const FAILURES_MAX: usize = 40;
/// In every how-manieth place the start is repeated with a receipt.
const RECEIPT_EVERY: usize = 5;

/// One start: its sandbox, with a grant and a name that is denied before it exists, and where its words go.
struct Start {
    sandbox: Sandbox,
    data: TempDir,
    words: TempDir,
    with_receipt: bool,
}

impl Start {
    fn new(with_receipt: bool) -> Option<Self> {
        let (data, words) = (TempDir::new(), TempDir::new());
        let mut sandbox = Sandbox::with_attack()?.rw(&data.text(), "/tmp/data").deny(&data.at("secret"));
        if with_receipt {
            sandbox = sandbox.args(["--json", "--receipt", &words.at("receipt")]);
        }
        Some(Start { sandbox, data, words, with_receipt })
    }

    fn run(&self, fault: Option<Fault>) -> Traced {
        let command = self.sandbox.command(&[Abi::X64.program(), "exit", &CODE.to_string()]);
        trace::run(&command, Path::new(&self.words.at("stderr")), fault)
    }

    /// What is wrong with a run; empty is good.
    fn judge(&self, traced: &Traced) -> Vec<String> {
        let words = self.words.read("stderr");
        let mut wrong = Vec::new();
        match traced.code {
            None => wrong.push("hung".to_owned()),
            Some(CODE) if self.with_receipt => wrong.extend(self.judge_receipt()),
            Some(CODE) => {}
            Some(125..=127) if words.trim().is_empty() => wrong.push("refused without a word".to_owned()),
            Some(125..=127) if !words.contains("apex-run: ") && !is_of_libc(&words) => {
                wrong.push(format!("refused in words that are not ours: {words}"));
            }
            Some(125..=127) => {}
            // std insists that closing a directory cannot fail; on a file system of the kernel's own it cannot.
            Some(_) if traced.injected == Some(libc::SYS_close) && words.contains("during closedir") => {
                self.clean(traced);
                return Vec::new();
            }
            // Neither can getrandom, asked without flags (getrandom(2)); std's tables take their seeds from it.
            Some(_) if traced.injected == Some(libc::SYS_getrandom) && words.contains("random data") => {}
            Some(code) => wrong.push(format!("exit code {code}: {}", words.trim())),
        }
        if traced.code != Some(CODE) && traced.executed {
            // The command ran: what it did is done, and the message must not say otherwise.
            if words.contains("was not started") {
                wrong.push(format!("it was started, but: {}", words.trim()));
            }
        }
        let mut left = leaks::left_by(self.sandbox.mark(), traced.pid);
        left.extend(self.data.listing().into_iter().map(|name| format!("file {name} ({})", words.trim())));
        // What a refused removal was to remove stays: one thing, which a later start sweeps.
        let is_removal = matches!(traced.injected, Some(libc::SYS_unlinkat | libc::SYS_unlink | libc::SYS_rmdir));
        if left.len() > usize::from(is_removal) || left.iter().any(|it| it.starts_with("process")) {
            wrong.extend(left.into_iter().map(|it| format!("left {it}")));
        }
        wrong.extend(temporary_files(self.sandbox.cwd()).into_iter().map(|left| format!("left the file {left}")));
        self.clean(traced);
        wrong
    }

    fn clean(&self, traced: &Traced) {
        leaks::sweep(traced.pid);
    }

    fn judge_receipt(&self) -> Vec<String> {
        let text = fs::read(self.words.at("receipt")).unwrap_or_default();
        let Ok(receipt) = serde_json::from_slice::<serde_json::Value>(&text) else {
            return vec![format!("the receipt is damaged: {}", String::from_utf8_lossy(&text))];
        };
        let layers = receipt["receipt"]["layers"].as_array().cloned().unwrap_or_default();
        let mut wrong = Vec::new();
        if layers.is_empty() {
            wrong.push("an empty receipt".to_owned());
        }
        for layer in layers {
            if layer["requirement"] == "required" && layer["state"] != "in-force" {
                wrong.push(format!("it ran without a required layer: {layer}"));
            }
        }
        wrong
    }
}

/// Before `main` the C library speaks: about memory and its own set-up.
fn is_of_libc(words: &str) -> bool {
    words.starts_with("Fatal glibc error") || words.contains("cannot set up thread-local storage")
}

/// Whatever lies in the caller's home and is not a finished program of the cache.
fn temporary_files(home: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![home.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            } else if !is_cached_program(&name) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

fn is_cached_program(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    stem.len() >= 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Places of every process; `of` may shorten the list.
fn places(traced: &Traced) -> Vec<(Place, i64)> {
    let mut all = Vec::new();
    for (process, calls) in &traced.calls {
        all.extend(calls.iter().enumerate().map(|(index, number)| (Place { process: *process, index }, *number)));
    }
    all
}

/// Calls whose failure the C library or the kernel turns into the end of the process before anybody could speak.
fn is_before_main(place: Place, number: i64) -> bool {
    const CALLS_OF_LIBC: usize = 16;
    let of_libc = [
        libc::SYS_brk,
        libc::SYS_arch_prctl,
        libc::SYS_set_tid_address,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_prlimit64,
        libc::SYS_readlinkat,
        libc::SYS_readlink,
        libc::SYS_getrandom,
        libc::SYS_mprotect,
        libc::SYS_mmap,
    ];
    // Calls that the kernel never refuses (getpid(2), and getrandom(2) once the pool is ready): nobody looks at their result.
    const NEVER_FAIL: [i64; 2] = [libc::SYS_getpid, libc::SYS_getrandom];
    let is_of_libc = place.process == 0 && place.index < CALLS_OF_LIBC && of_libc.contains(&number);
    is_of_libc || NEVER_FAIL.contains(&number)
}

fn fail_each(with_receipt: bool, errnos: &[Errno], every: usize) {
    let Some(plain) = Start::new(with_receipt) else {
        apex_tests::skip!("no C compiler with static libraries to build the attack program")
    };
    let first = plain.run(None);
    assert_eq!(first.code, Some(CODE), "without any fault: {}", plain.words.read("stderr"));
    assert_eq!(plain.judge(&first), [""; 0], "without any fault");
    assert!(first.executed && first.calls.len() >= 3, "the tracer missed a process: {:?}", first.calls.keys());
    let places: Vec<_> = places(&first).into_iter().step_by(every).collect();
    println!("{} places in {} processes", places.len(), first.calls.len());
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(BTreeSet::new());
    let injected = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    let enough = failures.lock().expect("no worker panics").len() >= FAILURES_MAX;
                    let (Some((place, number)), false) = (places.get(turn / errnos.len()), enough) else { return };
                    let rotation = if errnos.len() == 1 { turn } else { turn % errnos.len() };
                    let errno = ERRNOS[rotation % ERRNOS.len()];
                    let start = Start::new(with_receipt).expect("the first one was there");
                    let traced = start.run(Some(Fault { place: *place, errno }));
                    injected.fetch_add(usize::from(traced.injected.is_some()), Ordering::Relaxed);
                    let wrong = start.judge(&traced);
                    // glibc's malloc, refused its very first memory halfway, aborts when it next grows, wherever that is.
                    let is_broken_malloc = *number == libc::SYS_brk;
                    let is_excused = is_before_main(*place, *number) && (is_of_a_start(&traced) || is_broken_malloc);
                    if !wrong.is_empty() && !is_excused {
                        let when = if first.start.get(&place.process).is_some_and(|at| place.index < *at) {
                            "start"
                        } else {
                            "end"
                        };
                        let text = format!(
                            "process {} call {:3} ({}, {when}) {errno:?}: {wrong:?}",
                            place.process,
                            place.index,
                            traced.injected.unwrap_or(*number)
                        );
                        failures.lock().expect("no worker panics").insert(text);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no worker panics");
    let reached = injected.into_inner();
    assert!(failures.is_empty(), "{} faults of {reached}: {failures:#?}", failures.len());
    let wanted = places.len() * errnos.len();
    assert!(reached * 10 >= wanted * 9, "only {reached} of {wanted} calls were made again");
}

/// Nothing had been made yet, so an end without a word is all that can be asked.
fn is_of_a_start(traced: &Traced) -> bool {
    !traced.executed && traced.code.is_some()
}

#[test]
fn each_call_of_a_start_fails_once() {
    fail_each(false, &ERRNOS[..1], 1);
}

#[test]
fn what_starts_in_spite_of_a_fault_is_complete() {
    fail_each(true, &ERRNOS[..1], RECEIPT_EVERY);
}
