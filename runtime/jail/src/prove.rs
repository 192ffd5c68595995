//! The proof: forbidden things are attempted, for real, in a sandbox made from the very plan.
//!
//! Input: a plan and the host on which it was made. Output: a [`Proof`]. What is attempted follows from the plan; what the plan grants
//! is listed as not applicable, with the reason, so that nothing is left out in silence. Each attempt runs in a child of its own, which
//! may break without harm, and its answer comes out through a pipe that was there before the sandbox.

mod calls;
mod files;
mod ids;
mod limits;
mod network;
mod processes;

use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;

use apex_core::layer::{Layer, Requirement};
use apex_core::plan::Plan;
use apex_core::prove::{Attempted, Proof, Verdict};
use apex_core::receipt::Receipt;
use apex_core::seccomp::{self, Decision};
use apex_sys::probe::{self, Probing};
use apex_sys::process::{self, Ended};
use apex_sys::{Errno, fs};

use crate::host::LiveHost;
use crate::launch::{self, Ending, JailError, Options, Payload};
use crate::streams::Streams;
use network::Outside;

/// Seconds after which an attempt that hangs is ended.
const ATTEMPT_SECONDS_MAX: u32 = 30;
/// Bytes of one answer in the pipe: index, kind, value.
const RECORD_BYTES: usize = 12;
/// Attempts of one proof. Their answers must fit into the pipe (64 KiB), which is read only when the sandbox is gone.
const ATTEMPTS_MAX: usize = 4096;

const _: () = assert!(ATTEMPTS_MAX * RECORD_BYTES <= 64 * 1024);

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Got {
    /// It went through.
    Done,
    /// The kernel or the filter refused it.
    Errno(Errno),
    /// The kernel ended the process for it.
    Signal(i32),
    /// It was not one attempt but a look: so much was seen.
    Seen(u32),
    /// The call said that it was done, and nothing had changed.
    Kept,
    /// The child ended without an answer.
    Lost,
    /// It could not be attempted: no child could be had.
    NoChild(Errno),
}

impl Got {
    fn of<T>(result: Result<T, Errno>) -> Got {
        result.map_or_else(Got::Errno, |_| Got::Done)
    }

    fn of_io<T>(result: std::io::Result<T>) -> Got {
        Got::of(result.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
    }

    fn encode(self) -> (u32, u32) {
        match self {
            Got::Done => (0, 0),
            Got::Errno(errno) => (1, errno as u32),
            Got::Signal(signal) => (2, signal.unsigned_abs()),
            Got::Seen(count) => (3, count),
            Got::Lost => (4, 0),
            Got::NoChild(errno) => (5, errno as u32),
            Got::Kept => (6, 0),
        }
    }

    fn decode(kind: u32, value: u32) -> Option<Got> {
        let number = i32::try_from(value);
        Some(match kind {
            0 => Got::Done,
            1 => Got::Errno(Errno::from_raw(number.ok()?)),
            2 => Got::Signal(number.ok()?),
            3 => Got::Seen(value),
            4 => Got::Lost,
            5 => Got::NoChild(Errno::from_raw(number.ok()?)),
            6 => Got::Kept,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Got {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Got::Done => f.write_str("success"),
            Got::Errno(errno) => write!(f, "{errno:?}"),
            Got::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Got::Kept => f.write_str("no change"),
            Got::Seen(0) => f.write_str("none"),
            Got::Seen(count) => write!(f, "{count}"),
            Got::Lost => f.write_str("ended without an answer"),
            Got::NoChild(errno) => write!(f, "no process to try it: {errno:?}"),
        }
    }
}

type Act<'a> = Box<dyn Fn(&Probing) -> Got + 'a>;

enum How<'a> {
    Try(Act<'a>),
    /// Not applicable, for this reason.
    Skip(String),
}

/// One thing that the plan forbids.
struct Trial<'a> {
    layer: Layer,
    attempt: String,
    expected: Vec<Got>,
    how: How<'a>,
}

/// Everything that is attempted.
struct Trials<'a> {
    plan: &'a Plan,
    list: Vec<Trial<'a>>,
}

/// Attempts what a plan forbids, in a sandbox made from it.
///
/// # Errors
/// Those of [`launch::run`], and a sandbox that ended before every attempt was made.
pub fn prove(plan: &Plan, host: &LiveHost, streams: &Streams) -> Result<Proof, JailError> {
    let failed = |what: &str, error: std::io::Error| JailError::Proof(format!("{what}: {error}"));
    let outside = Outside::open().map_err(|error| failed("opening sockets for the sandbox to try", error))?;
    let trials = Trials::of(plan, &outside);
    let (reader, writer) = std::io::pipe().map_err(|error| failed("making a pipe for the answers", error))?;
    let mut layers = Vec::new();
    let mut keep = |receipt: &Receipt| {
        layers.clone_from(&receipt.layers);
        Ok(())
    };
    let mut attempt = || trials.attempt_all(&writer);
    let payload = Payload::Function { run: &mut attempt, answers: writer.as_fd() };
    let options = Options { receipt: Some(&mut keep), watcher: None, control: None, streams, payload };
    let outcome = match launch::run(plan, host, options) {
        // The receipt itself is the finding: nothing can be attempted in a sandbox that is not the one asked for.
        Err(JailError::Mismatch(_)) => return Ok(Proof::new((plan.mode, plan.level), Vec::new(), layers)),
        other => other?,
    };
    drop(writer);
    if let Some(words) = cut_short(outcome.ending) {
        return Err(JailError::Proof(words));
    }
    let answers = read_answers(reader, trials.list.len()).map_err(|error| failed("reading the answers", error))?;
    Ok(Proof::new((plan.mode, plan.level), trials.judge(&answers), layers))
}

fn cut_short(ending: Ending) -> Option<String> {
    match ending {
        Ending::Code(0) => None,
        Ending::Code(code) => Some(format!("the sandbox ended with {code}")),
        Ending::Signal(signal) | Ending::Vanished(signal) => Some(format!("signal {signal} ended the sandbox")),
        Ending::TimedOut => Some("the wall-time limit ended the sandbox; give it more with --time".to_owned()),
        Ending::Caught => Some("it was ended from outside".to_owned()),
        Ending::OutOfMemory => Some("the memory limit ended the sandbox; give it more with --memory".to_owned()),
    }
}

/// The first answer to each attempt counts: the child's own comes before what its end tells.
fn read_answers(reader: PipeReader, count: usize) -> std::io::Result<Vec<Option<Got>>> {
    let mut bytes = Vec::new();
    reader.take((ATTEMPTS_MAX * RECORD_BYTES * 2) as u64).read_to_end(&mut bytes)?;
    Ok(decode_answers(&bytes, count))
}

fn decode_answers(bytes: &[u8], count: usize) -> Vec<Option<Got>> {
    let mut answers = vec![None; count];
    for record in bytes.chunks_exact(RECORD_BYTES) {
        let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        let slot = usize::try_from(word(0)).ok().and_then(|index| answers.get_mut(index));
        if let Some(slot @ None) = slot {
            *slot = Got::decode(word(4), word(8));
        }
    }
    answers
}

impl<'a> Trials<'a> {
    fn of(plan: &'a Plan, outside: &'a Outside) -> Trials<'a> {
        let mut trials = Trials { plan, list: Vec::new() };
        trials.limits();
        trials.ids();
        trials.processes(outside);
        trials.files();
        trials.network(outside);
        trials.calls();
        trials.list.truncate(ATTEMPTS_MAX);
        let order = |layer| Layer::ALL.iter().position(|known| *known == layer);
        trials.list.sort_by_key(|trial| order(trial.layer));
        trials
    }

    /// Adds an attempt, unless its layer is not in force.
    fn attempt(
        &mut self,
        layer: Layer,
        attempt: impl Into<String>,
        expected: &[Got],
        act: impl Fn(&Probing) -> Got + 'a,
    ) {
        let how = match self.off(layer) {
            Some(reason) => How::Skip(reason),
            None => How::Try(Box::new(act)),
        };
        self.list.push(Trial { layer, attempt: attempt.into(), expected: expected.to_vec(), how });
    }

    /// Adds what is not attempted, with the reason.
    fn skip(&mut self, layer: Layer, attempt: impl Into<String>, expected: &[Got], reason: impl Into<String>) {
        let reason = self.off(layer).unwrap_or_else(|| reason.into());
        self.list.push(Trial { layer, attempt: attempt.into(), expected: expected.to_vec(), how: How::Skip(reason) });
    }

    /// Why a layer is not in force.
    fn off(&self, layer: Layer) -> Option<String> {
        if let Some(reason) = self.plan.skipped.get(&layer) {
            return Some(format!("skipped: {reason}"));
        }
        if self.plan.level.leaves_out(layer) {
            return Some(format!("isolation level {} leaves the layer out", self.plan.level));
        }
        (self.plan.layers.get(&layer) == Some(&Requirement::Off)).then(|| "the policy turns the layer off".to_owned())
    }

    /// The errnos among `expected`, and what the filter answers where it refuses one of `calls` before any other layer sees it.
    fn or_filter(&self, expected: &[Errno], calls: &[&str]) -> Vec<Got> {
        let mut all: Vec<Got> = expected.iter().copied().map(Got::Errno).collect();
        let Some(table) = &self.plan.seccomp else { return all };
        let abi = table.arch().abi();
        for nr in calls.iter().filter_map(|name| abi.call_number(name)) {
            // Calls that are judged by their arguments are not refused as such.
            if !matches!(table.decide(abi, nr), Decision::Args(_))
                && let seccomp::Verdict::Refuse(errno) = table.judge(abi, nr, &[0; 6])
                && let got = Got::Errno(Errno::from_raw(errno.into()))
                && !all.contains(&got)
            {
                all.push(got);
            }
        }
        all
    }

    /// Runs inside. Its value is the exit code of the sandbox.
    fn attempt_all(&self, answers: &PipeWriter) -> i32 {
        for (index, trial) in self.list.iter().enumerate() {
            let How::Try(act) = &trial.how else { continue };
            if answer(index, act, answers).is_err() {
                return 1;
            }
        }
        0
    }

    fn judge(self, answers: &[Option<Got>]) -> Vec<Attempted> {
        self.list
            .into_iter()
            .zip(answers)
            .map(|(trial, answer)| {
                let words: Vec<String> = trial.expected.iter().map(Got::to_string).collect();
                let (got, verdict) = verdict(&trial.how, &trial.expected, *answer);
                Attempted { layer: trial.layer, attempt: trial.attempt, expected: words.join(" or "), got, verdict }
            })
            .collect()
    }
}

fn verdict(how: &How<'_>, expected: &[Got], answer: Option<Got>) -> (String, Verdict) {
    match (how, answer) {
        (How::Skip(reason), _) => ("-".to_owned(), Verdict::NotApplicable(reason.clone())),
        (How::Try(_), Some(got @ Got::NoChild(_))) => ("-".to_owned(), Verdict::NotApplicable(got.to_string())),
        (How::Try(_), Some(got)) if expected.contains(&got) => (got.to_string(), Verdict::Refused),
        (How::Try(_), Some(got)) => (got.to_string(), Verdict::Allowed),
        (How::Try(_), None) => (Got::Lost.to_string(), Verdict::Allowed),
    }
}

/// Makes one attempt in a child and sends its answer out.
fn answer(index: usize, act: &Act<'_>, answers: &PipeWriter) -> Result<(), Errno> {
    let spawned = probe::spawn(&mut |probing| {
        // A default action ends the child; where the filter refuses the call, the wall time is the bound.
        nix::unistd::alarm::set(ATTEMPT_SECONDS_MAX);
        send(index, act(probing), answers).map_or(1, |()| 0)
    });
    let pid = match spawned {
        Ok(pid) => pid,
        Err(errno) => return send(index, Got::NoChild(errno), answers),
    };
    match process::wait(pid, 0)? {
        Some((_, Ended::Signal(signal))) => send(index, Got::Signal(signal), answers),
        Some((_, Ended::Code(0))) | None => Ok(()),
        Some((_, Ended::Code(_))) => send(index, Got::Lost, answers),
    }
}

fn send(index: usize, got: Got, answers: &PipeWriter) -> Result<(), Errno> {
    let (kind, value) = got.encode();
    let mut record = [0; RECORD_BYTES];
    let words = [u32::try_from(index).unwrap_or(u32::MAX), kind, value];
    for (slot, word) in record.chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    fs::write(answers.as_fd(), &record).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_as_they_were_sent() {
        let all = [
            Got::Done,
            Got::Errno(Errno::EPERM),
            Got::Signal(9),
            Got::Seen(3),
            Got::Kept,
            Got::Lost,
            Got::NoChild(Errno::EAGAIN),
        ];
        let (reader, writer) = std::io::pipe().unwrap();
        for (index, got) in all.into_iter().enumerate() {
            send(index, got, &writer).unwrap();
        }
        // A second answer does not replace the first, and one to nothing is dropped.
        send(0, Got::Errno(Errno::EACCES), &writer).unwrap();
        send(99, Got::Done, &writer).unwrap();
        drop(writer);
        assert_eq!(read_answers(reader, all.len()).unwrap(), all.map(Some));
    }

    #[test]
    fn broken_answers_are_no_answers() {
        assert_eq!(decode_answers(&[1, 2, 3], 1), [None]);
        let mut record = [0; RECORD_BYTES];
        record[4] = 77;
        assert_eq!(decode_answers(&record, 1), [None]);
    }

    #[test]
    fn only_the_expected_answer_is_a_refusal() {
        let tried = How::Try(Box::new(|_| Got::Done));
        let expected = [Got::Errno(Errno::EPERM)];
        let of = |answer| verdict(&tried, &expected, answer).1;
        assert_eq!(of(Some(Got::Errno(Errno::EPERM))), Verdict::Refused);
        assert_eq!(of(Some(Got::Errno(Errno::EFAULT))), Verdict::Allowed);
        assert_eq!(of(Some(Got::Done)), Verdict::Allowed);
        assert_eq!(of(None), Verdict::Allowed);
        assert!(matches!(of(Some(Got::NoChild(Errno::EAGAIN))), Verdict::NotApplicable(_)));
        assert!(matches!(verdict(&How::Skip("why".to_owned()), &expected, None).1, Verdict::NotApplicable(_)));
    }
}
