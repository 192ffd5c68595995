//! What was refused, each kind once, in bounded memory.

use std::collections::HashMap;

use apex_core::refusal::{Attempt, Refusal};

/// Kinds of refusal that are kept; what comes after is counted.
const KINDS_MAX: usize = 1024;

/// Refusals in the order in which they were first seen.
#[derive(Default)]
pub struct Record {
    kinds: Vec<Refusal>,
    by_kind: HashMap<Attempt, usize>,
    /// Refusals beyond the limit.
    dropped: u64,
}

impl Record {
    /// Counts a refusal; `who` is asked for name and pid of the process when it is the first of its kind.
    pub fn add(&mut self, attempt: Attempt, outcome: &str, who: impl FnOnce() -> (String, i32)) {
        let kind = kind_of(&attempt);
        if let Some(index) = self.by_kind.get(&kind) {
            self.kinds[*index].count += 1;
            return;
        }
        if self.kinds.len() == KINDS_MAX {
            self.dropped += 1;
            return;
        }
        let (comm, pid) = who();
        self.by_kind.insert(kind, self.kinds.len());
        self.kinds.push(Refusal { attempt, comm, pid, count: 1, outcome: outcome.to_owned() });
    }

    /// All of them; the last one stands for those that were only counted.
    pub fn finish(self) -> Vec<Refusal> {
        let mut refusals = self.kinds;
        if self.dropped > 0 {
            refusals.push(Refusal {
                attempt: Attempt::Limit {
                    resource: "different refusals kept".to_owned(),
                    limit: KINDS_MAX.to_string(),
                },
                comm: String::new(),
                pid: 0,
                count: self.dropped,
                outcome: "counted".to_owned(),
            });
        }
        refusals
    }
}

/// Calls that differ in their arguments alone are one kind: pointers differ from call to call.
fn kind_of(attempt: &Attempt) -> Attempt {
    match attempt {
        Attempt::Syscall { name, abi, .. } => Attempt::Syscall { name: name.clone(), abi: abi.clone(), args: [0; 6] },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, first: u64) -> Attempt {
        Attempt::Syscall { name: name.to_owned(), abi: "x86_64".to_owned(), args: [first, 0, 0, 0, 0, 0] }
    }

    fn who() -> (String, i32) {
        ("job".to_owned(), 2)
    }

    #[test]
    fn one_kind_is_kept_once_with_the_first_arguments() {
        let mut record = Record::default();
        record.add(call("mount", 1), "EPERM", who);
        record.add(call("mount", 2), "EPERM", || panic!("nobody asks who comes second"));
        record.add(call("bpf", 1), "EPERM", who);
        let refusals = record.finish();
        assert_eq!(refusals.len(), 2);
        assert_eq!((refusals[0].count, &refusals[0].attempt), (2, &call("mount", 1)));
    }

    #[test]
    fn memory_is_bounded_and_the_rest_is_counted() {
        let mut record = Record::default();
        for number in 0..KINDS_MAX + 7 {
            record.add(call(&format!("call{number}"), 0), "EPERM", who);
        }
        record.add(call("call3", 0), "EPERM", who);
        let refusals = record.finish();
        assert_eq!(refusals.len(), KINDS_MAX + 1);
        assert_eq!(refusals[3].count, 2);
        assert_eq!(refusals[KINDS_MAX].count, 7);
    }
}
