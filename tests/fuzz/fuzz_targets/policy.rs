//! Any text as a policy file: it is resolved or refused, and nothing panics.
#![no_main]

use std::path::{Path, PathBuf};

use apex_core::policy::{Flags, Inputs, resolve};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let inputs = Inputs {
        mode: None,
        profile: None,
        policy_file: Some(PathBuf::from("p.toml")),
        flags: Flags::default(),
        home: Some(PathBuf::from("/home/u")),
        cwd: PathBuf::from("/job"),
        tmpdir: None,
        system_config: None,
        user_config: None,
        groups: &["base", "files"],
    };
    // One file, which may also extend itself.
    let mut sources = |path: &Path| Ok((path == Path::new("/job/p.toml")).then(|| text.to_owned()));
    let _ = resolve(&inputs, &mut sources);
});
