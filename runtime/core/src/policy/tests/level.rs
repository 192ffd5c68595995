//! Isolation levels in policies: who may say which, and what none of them can keep.

use proptest::prelude::*;

use super::*;

fn at(mode: Mode, level: &str) -> Inputs<'static> {
    let flags = Flags { level: Some(level.to_owned()), ..Flags::default() };
    Inputs { mode: Some(mode), flags, ..inputs() }
}

fn least(mode: Mode) -> IsolationLevel {
    match mode {
        Mode::Isolation => IsolationLevel::Full,
        Mode::Hybrid => IsolationLevel::Partial,
        Mode::Development => IsolationLevel::None,
    }
}

const MODES: [Mode; 3] = [Mode::Isolation, Mode::Hybrid, Mode::Development];

#[test]
fn each_mode_has_its_least_and_full_by_default() {
    for mode in MODES {
        let policy = resolve(&Inputs { mode: Some(mode), ..inputs() }, &mut Files::default()).unwrap();
        assert_eq!(policy.level, IsolationLevel::Full);
        for level in IsolationLevel::ALL {
            let found = resolve(&at(mode, level.name()), &mut Files::default());
            assert_eq!(found.is_ok(), level >= least(mode), "{mode:?} {level}");
        }
    }
}

#[test]
fn a_stricter_level_leaves_out_nothing_more() {
    for layer in Layer::ALL {
        assert!(!IsolationLevel::Full.leaves_out(layer));
        assert!(!IsolationLevel::Partial.leaves_out(layer) || IsolationLevel::None.leaves_out(layer), "{layer}");
    }
    for layer in [Layer::Userns, Layer::Pidns, Layer::Capabilities, Layer::NoNewPrivs, Layer::Cgroup, Layer::Rlimits] {
        assert!(!IsolationLevel::None.leaves_out(layer), "{layer}");
    }
}

/// The user narrows what the administrator leaves open and opens nothing; what the administrator's mode says holds for the user's too.
#[test]
fn ceilings_and_levels_of_mode_files() {
    let with = |system: &str, user: &str, level: &str| {
        let list =
            [("/etc/apex/modes/development.toml", system), ("/home/u/.config/apex/modes/development.toml", user)];
        resolve(&at(Mode::Development, level), &mut files(&list)).map(|policy| policy.level.name())
    };
    let [open, narrow, wide] = ["", "[ceiling]\nlevel = \"partial\"\n", "[ceiling]\nlevel = \"none\"\n"];
    let refused = |system: &str, user: &str, level: &str| with(system, user, level).unwrap_err().to_string();
    assert_eq!(with(open, open, "none").unwrap(), "none");
    assert!(refused(narrow, wide, "none").contains("the least is isolation level partial"));
    assert!(refused(open, narrow, "none").contains("the least is isolation level partial"));
    assert_eq!(with(narrow, open, "partial").unwrap(), "partial");
    assert!(
        refused("level = \"partial\"", "level = \"none\"", "none").contains("modes/development.toml:1 says partial")
    );
    assert!(refused("level = \"full\"", open, "partial").contains("can only ask for more"));
}

#[test]
fn what_the_mode_says_by_default_is_left_out_and_what_is_asked_for_refused() {
    for level in ["partial", "none"] {
        for profile in PROFILES.map(|(name, _)| name) {
            let inputs = Inputs { profile: Some(profile.to_owned()), ..at(Mode::Development, level) };
            assert!(resolve(&inputs, &mut Files::default()).is_ok(), "{profile} at {level}");
        }
        // An administrator's mode is as much of a default as the built-in one.
        let mode = "[filesystem]\ntmpfs = [\"/scratch\"]\n[network]\naccess = \"host\"";
        let list = [("/etc/apex/modes/development.toml", mode)];
        assert!(resolve(&at(Mode::Development, level), &mut files(&list)).is_ok());
        let kept = "[capabilities]\nkeep = [\"CAP_NET_RAW\"]";
        for text in ["filesystem.tmpfs = [\"/x\"]", "filesystem.proc = \"pid\"", "identity.hostname = \"x\"", kept] {
            let inputs = Inputs { policy_file: Some("p.toml".into()), ..at(Mode::Development, level) };
            let error = resolve(&inputs, &mut files(&[("/job/job/p.toml", text)])).unwrap_err().to_string();
            assert!(error.contains("p.toml:") && error.contains(&format!("isolation level {level}")), "{error}");
        }
    }
    // Not even by default: the mode promises no network, and the level has the host's.
    let list = [("/etc/apex/modes/development.toml", "[network]\naccess = \"none\"")];
    let error = resolve(&at(Mode::Development, "none"), &mut files(&list)).unwrap_err().to_string();
    assert!(error.contains("no network") && error.contains("development.toml:2"), "{error}");
}

proptest! {
    /// Whatever says what in whichever order: the result confines as much as each that spoke, and as the mode demands.
    #[test]
    fn no_layer_gets_less_than_a_wider_one_said(
        said in prop::collection::vec(prop::option::of(prop::sample::select(IsolationLevel::ALL.to_vec())), 1..5),
        mode in prop::sample::select(MODES.to_vec()),
    ) {
        let mut list = Files::default();
        let (flag, in_files) = said.split_last().unwrap();
        for (at, level) in in_files.iter().enumerate() {
            let extends = if at == 0 { String::new() } else { format!("extends = [\"{}.toml\"]\n", at - 1) };
            let level = level.map(|level| format!("level = \"{level}\"\n")).unwrap_or_default();
            list.0.insert(PathBuf::from(format!("/job/job/{at}.toml")), format!("{level}{extends}"));
        }
        let policy_file = in_files.len().checked_sub(1).map(|last| PathBuf::from(format!("{last}.toml")));
        let flags = Flags { level: flag.map(|level| level.name().to_owned()), ..Flags::default() };
        let result = resolve(&Inputs { mode: Some(mode), policy_file, flags, ..inputs() }, &mut list);
        let spoken: Vec<IsolationLevel> = said.iter().flatten().copied().collect();
        let may = spoken.is_sorted() && spoken.last().is_none_or(|level| *level >= least(mode));
        match result {
            Ok(policy) => {
                prop_assert!(spoken.iter().all(|level| policy.level >= *level) && policy.level >= least(mode));
                prop_assert_eq!(policy.level, spoken.last().copied().unwrap_or_default());
            }
            Err(error) => prop_assert!(!may, "{}", error),
        }
    }
}
