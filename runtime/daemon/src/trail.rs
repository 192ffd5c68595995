//! The files of the audit log, oldest first: full ones, named by the number of their last record, and `audit.jsonl`, to which is added. Reads lines forwards and from the end, in bounded memory.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use apex_core::audit::LINE_BYTES_MAX;

/// Bytes of the newest lines that one request gets.
const TAIL_BYTES_MAX: u64 = 16 << 20;
/// Bytes that are looked at first for the newest lines.
const TAIL_BYTES_FIRST: u64 = 64 << 10;

/// The file of this number, beside the one that is added to.
pub fn numbered(path: &Path, number: u64) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{number:012}.jsonl"))
}

/// The numbers that there are, rising. Whoever keeps the log may have moved older files away.
pub fn numbers(path: &Path) -> io::Result<Vec<u64>> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stem = format!("{}-", path.file_stem().unwrap_or_default().to_string_lossy());
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let middle = name.to_str().and_then(|name| name.strip_prefix(&stem)?.strip_suffix(".jsonl"));
        numbers.extend(middle.and_then(|middle| middle.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The newest whole lines of a file of this length, oldest first: so many, or as many as come to [`TAIL_BYTES_MAX`].
pub fn last_lines(file: &mut File, length: u64, count: usize) -> io::Result<Vec<String>> {
    let mut window = TAIL_BYTES_FIRST;
    loop {
        let from = length.saturating_sub(window);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        (&mut *file).take(length - from).read_to_end(&mut bytes)?;
        // What stands before the first end of a line may have begun earlier; what stands behind the last is being written.
        let begin =
            if from == 0 { 0 } else { bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1) };
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(begin, |at| at + 1);
        let lines: Vec<&[u8]> = bytes[begin..end.max(begin)].split_inclusive(|byte| *byte == b'\n').collect();
        if lines.len() >= count || from == 0 || window >= TAIL_BYTES_MAX {
            let newest = &lines[lines.len().saturating_sub(count)..];
            return Ok(newest.iter().map(|line| String::from_utf8_lossy(line).trim_end().to_owned()).collect());
        }
        window = (window * 4).min(TAIL_BYTES_MAX);
    }
}

/// All lines of several files, without their ends, one at a time. A line is cut behind the longest that a record can be, which no record is.
pub struct Lines {
    files: std::vec::IntoIter<PathBuf>,
    /// The last file, up to where it was whole.
    newest: Option<(File, u64)>,
    reader: Option<BufReader<Take<File>>>,
    name: String,
    number: u64,
    peeked: Option<Vec<u8>>,
    /// Why it ended early.
    pub error: Option<io::Error>,
}

impl Lines {
    /// Those of older files, then of the newest.
    pub fn new(older: Vec<PathBuf>, newest: (File, u64)) -> Lines {
        let files = older.into_iter();
        Lines { files, newest: Some(newest), reader: None, name: String::new(), number: 0, peeked: None, error: None }
    }

    /// Where the line stands that was given last.
    pub fn place(&self) -> String {
        format!("line {} of {}", self.number, self.name)
    }

    /// The line that comes next.
    pub fn peek(&mut self) -> Option<&[u8]> {
        if self.peeked.is_none() {
            self.peeked = self.next();
        }
        self.peeked.as_deref()
    }

    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(reader) = &mut self.reader {
                let mut line = Vec::new();
                reader.take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line)?;
                if !line.is_empty() {
                    self.number += 1;
                    if line.last() == Some(&b'\n') {
                        line.pop();
                    }
                    return Ok(Some(line));
                }
            }
            let (file, length) = match (self.files.next(), &self.newest) {
                (Some(path), _) => {
                    self.name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    (File::open(path)?, u64::MAX)
                }
                (None, Some(_)) => {
                    self.name = "audit.jsonl".to_owned();
                    let Some(newest) = self.newest.take() else { return Ok(None) };
                    newest
                }
                (None, None) => return Ok(None),
            };
            self.number = 0;
            self.reader = Some(BufReader::new(file.take(length)));
        }
    }
}

impl Iterator for Lines {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(line) = self.peeked.take() {
            return Some(line);
        }
        if self.error.is_some() {
            return None;
        }
        self.read().unwrap_or_else(|error| {
            self.error = Some(error);
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_found_from_the_end() {
        let path = std::env::temp_dir().join(format!("apexd-trail-{}", std::process::id()));
        let lines: Vec<String> = (0..20_000).map(|number| format!("line {number}")).collect();
        let text = lines.join("\n") + "\nhalf a li";
        fs::write(&path, &text).unwrap();
        let mut file = File::open(&path).unwrap();
        for count in [0, 1, 2, 10, 5_000, 19_999, 20_000, 30_000] {
            let found = last_lines(&mut file, text.len() as u64, count).unwrap();
            assert_eq!(found, lines[lines.len().saturating_sub(count)..], "{count}");
        }
        assert_eq!(last_lines(&mut file, 0, 5).unwrap(), Vec::<String>::new());
        assert_eq!(last_lines(&mut file, 7, 5).unwrap(), ["line 0"]);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory_without_a_bound() {
        let path = std::env::temp_dir().join(format!("apexd-trail-long-{}", std::process::id()));
        fs::write(&path, vec![b'x'; 3 * LINE_BYTES_MAX]).unwrap();
        let lines = Lines::new(Vec::new(), (File::open(&path).unwrap(), u64::MAX));
        let lengths: Vec<usize> = lines.map(|line| line.len()).collect();
        assert_eq!(lengths.iter().sum::<usize>(), 3 * LINE_BYTES_MAX);
        assert!(lengths.iter().all(|length| *length <= LINE_BYTES_MAX + 2), "{lengths:?}");
        fs::remove_file(path).unwrap();
    }
}
