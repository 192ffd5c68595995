//! What every source of events has in common.
//!
//! A source is a thread that sends [`Batch`]es into a bounded channel. The kernel's probes must not wait for a reader: their source blocks on
//! a full channel, the ring buffer behind it fills, and the kernel's side counts what is lost. The ptrace source blocks as well, and
//! with it the sandbox: nothing is lost, it is only slower.

use std::collections::{BTreeMap, HashSet};

use apex_core::event::{Errno, Event, Loss, What};

/// Batches that may wait between a source and the pipeline.
pub const QUEUE_BATCHES_MAX: usize = 64;
/// Events of one batch at most.
pub const BATCH_EVENTS_MAX: usize = 512;

/// What a source sends.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events, in the order in which they were read. Each source keeps the order of time within a process.
    pub events: Vec<Event>,
    /// Lost since the batch before.
    pub lost: BTreeMap<Loss, u64>,
}

/// Names that looks were told of, so that each is told once: programs look at the same ones by the thousand.
#[derive(Debug, Default)]
pub struct Looks {
    /// By whether a link at the end was followed.
    told: [HashSet<String>; 2],
}

impl Looks {
    /// As many as a learner keeps; what is looked at beyond is told each time, and counted there.
    const MAX: usize = apex_core::learn::PATHS_MAX;

    /// Whether it is to be told of.
    pub fn is_new(&self, look: &What) -> bool {
        match look {
            What::Look { path, follow } => !self.told[usize::from(*follow)].contains(path),
            _ => true,
        }
    }

    /// Whether it is to be told of now, with this outcome; then it was.
    pub fn take(&mut self, look: &What, error: Option<Errno>) -> bool {
        let What::Look { path, follow } = look else { return true };
        let is_new = is_found(*follow, error) && self.is_new(look);
        if is_new && self.told.iter().map(HashSet::len).sum::<usize>() < Self::MAX {
            self.told[usize::from(*follow)].insert(path.clone());
        }
        is_new
    }
}

/// Whether a name was there. That it is no link is an answer to readlink(2) too, and realpath(3) asks for nothing else.
fn is_found(follow: bool, error: Option<Errno>) -> bool {
    const EINVAL: Errno = Errno(22);
    error.is_none() || !follow && error == Some(EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_that_was_there_is_told_once() {
        let look = |path: &str, follow| What::Look { path: path.to_owned(), follow };
        let mut looks = Looks::default();
        for (what, error, expected) in [
            (look("/a", true), Some(Errno::ENOENT), false),
            (look("/a", true), None, true),
            (look("/a", true), None, false),
            (look("/a", false), Some(Errno(22)), true),
            (look("/b", true), Some(Errno(22)), false),
            (What::Unlink { path: "/a".to_owned() }, Some(Errno::ENOENT), true),
            (What::Unlink { path: "/a".to_owned() }, None, true),
        ] {
            assert_eq!(looks.take(&what, error), expected, "{what:?} {error:?}");
        }
    }
}
