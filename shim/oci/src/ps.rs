//! `ps`: the processes of a container, by the host's ps(1) or as JSON.

use std::io;
use std::process::Command;

/// A `ps` that failed.
#[derive(Debug, thiserror::Error)]
pub enum PsError {
    /// The host's program.
    #[error("cannot run ps for the table; install procps, or give --format json")]
    Run {
        /// Why.
        source: io::Error,
    },
    /// What it said.
    #[error("ps {arguments} failed: {words}")]
    Refused {
        /// Its arguments.
        arguments: String,
        /// Its words.
        words: String,
    },
    /// A table that cannot be narrowed.
    #[error(
        "the table of ps {arguments} has no column PID, by which the container's processes are found; add it, such as -o pid,args"
    )]
    NoPid {
        /// Its arguments.
        arguments: String,
    },
}

/// `--format json`: the pids, as an array.
pub fn json(pids: &[i32]) -> String {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    format!("[{}]", pids.join(","))
}

/// `--format table`: what `ps` says of these processes. Without arguments `-ef` is asked for.
pub fn table(pids: &[i32], arguments: &[String]) -> Result<String, PsError> {
    let default = ["-ef".to_owned()];
    let arguments = if arguments.is_empty() { &default[..] } else { arguments };
    let output = Command::new("ps").args(arguments).output().map_err(|source| PsError::Run { source })?;
    let joined = arguments.join(" ");
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(PsError::Refused { arguments: joined, words });
    }
    narrow(&String::from_utf8_lossy(&output.stdout), pids).ok_or(PsError::NoPid { arguments: joined })
}

/// The heading, and the lines of these processes.
fn narrow(table: &str, pids: &[i32]) -> Option<String> {
    let mut lines = table.lines();
    let heading = lines.next()?;
    let column = heading.split_whitespace().position(|word| word == "PID")?;
    let is_ours = |line: &&str| {
        let word = line.split_whitespace().nth(column);
        word.and_then(|word| word.parse().ok()).is_some_and(|pid: i32| pids.contains(&pid))
    };
    let mut narrowed = format!("{heading}\n");
    for line in lines.filter(is_ours) {
        narrowed.push_str(line);
        narrowed.push('\n');
    }
    Some(narrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_lines_stay() {
        let table = "UID   PID PPID CMD\nroot    1    0 init 7\nroot    7    1 sh\nroot   77    7 a 7\n";
        assert_eq!(narrow(table, &[7]).unwrap(), "UID   PID PPID CMD\nroot    7    1 sh\n");
        assert_eq!(narrow(table, &[]).unwrap(), "UID   PID PPID CMD\n");
        assert_eq!(narrow("UID CMD\nroot sh\n", &[7]), None);
        assert_eq!(narrow("", &[7]), None);
    }

    #[test]
    fn pids_are_an_array() {
        assert_eq!(json(&[]), "[]");
        assert_eq!(json(&[1, 22]), "[1,22]");
    }

    #[test]
    fn the_hosts_table_has_this_process() {
        let me = std::process::id().cast_signed();
        let table = table(&[me], &[]).unwrap();
        assert_eq!(table.lines().count(), 2, "{table}");
    }
}
