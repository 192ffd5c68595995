//! One more command in a sandbox that stands: asked for by whoever keeps it, started by the init, sealed like the first.
//!
//! The init makes it from what it still has: the Landlock rules, the filter and the limits of the plan. So nothing about it can differ from what was judged but
//! its words, its directory, its environment and its streams.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use apex_core::plan::CommandPlan;
use apex_sys::Errno;

/// Bytes of a command with its environment.
pub const BYTES_MAX: usize = 128 << 10;
/// Words of it.
pub const WORDS_MAX: usize = 4096;

/// A command as a message: how many candidates, arguments, variables and directories there are, then each, with a NUL behind every word.
///
/// # Errors
/// In words, what cannot be sent.
pub fn encode(command: &CommandPlan) -> Result<Vec<u8>, String> {
    let paths = |paths: &[PathBuf]| paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect::<Vec<_>>();
    let words = |words: &[OsString]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
    let lists = [paths(&command.candidates), words(&command.argv), words(&command.env), paths(&command.workdir)];
    let counts = lists.iter().map(|list| list.len().to_string().into_bytes());
    let all: Vec<Vec<u8>> = counts.chain(lists.iter().flatten().cloned()).collect();
    if all.iter().any(|word| word.contains(&0)) {
        return Err("a word of the command holds a NUL byte".to_owned());
    }
    let bytes: Vec<u8> = all.iter().flat_map(|word| word.iter().copied().chain([0])).collect();
    if bytes.len() > BYTES_MAX || all.len() > WORDS_MAX {
        return Err(format!(
            "the command and its environment come to {} bytes in {} words; at most {BYTES_MAX} in {WORDS_MAX} go: pass less, or by a file",
            bytes.len(),
            all.len()
        ));
    }
    Ok(bytes)
}

/// The command of a message.
pub fn decode(bytes: &[u8]) -> Result<CommandPlan, Errno> {
    let mut words = bytes.strip_suffix(&[0]).ok_or(Errno::EBADMSG)?.split(|byte| *byte == 0);
    let mut counts = [0; 4];
    for count in &mut counts {
        let text = words.next().and_then(|word| std::str::from_utf8(word).ok());
        *count = text.and_then(|text| text.parse::<usize>().ok()).ok_or(Errno::EBADMSG)?;
    }
    let mut take = |count: usize| -> Vec<OsString> {
        words.by_ref().take(count).map(|word| OsString::from_vec(word.to_vec())).collect()
    };
    let [candidates, argv, env, workdir] = counts.map(&mut take);
    let is_whole = [candidates.len(), argv.len(), env.len(), workdir.len()] == counts && words.next().is_none();
    if !is_whole {
        return Err(Errno::EBADMSG);
    }
    let paths = |list: Vec<OsString>| list.into_iter().map(PathBuf::from).collect();
    Ok(CommandPlan { candidates: paths(candidates), argv, env, workdir: paths(workdir) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str]) -> CommandPlan {
        CommandPlan {
            candidates: vec!["/bin/a".into(), "/usr/bin/a".into()],
            argv: argv.iter().map(OsString::from).collect(),
            env: vec!["A=b".into()],
            workdir: vec!["/".into()],
        }
    }

    #[test]
    fn a_command_comes_back_from_its_message() {
        for argv in [&["a"][..], &["a", "", "b c", ""], &["a", "\u{fe}\n"]] {
            assert_eq!(decode(&encode(&command(argv)).unwrap()).unwrap(), command(argv));
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        assert!(encode(&command(&["a\0b"])).unwrap_err().contains("NUL"));
        assert!(encode(&command(&[&"x".repeat(BYTES_MAX)])).unwrap_err().contains("bytes"));
        assert!(encode(&command(&vec!["x"; WORDS_MAX])).unwrap_err().contains("words"));
    }

    #[test]
    fn a_message_that_is_not_whole_is_none() {
        let bytes = encode(&command(&["a", "b"])).unwrap();
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(decode(&[&bytes[..], b"more\0"].concat()).is_err());
        assert!(decode(b"18446744073709551615\09\09\09\0").is_err());
    }
}
