//! Every built-in rule with its cases.

use super::*;

#[test]
fn every_built_in_rule_passes_its_cases_and_lacks_none() {
    let mut passed = 0;
    for (name, text, cases) in FILES {
        let report =
            case::run(name, text, (&name.replace(".toml", ".cases.toml"), cases)).unwrap_or_else(|e| panic!("{e}"));
        assert!(report.is_good(), "{:#?}", report);
        passed += report.passed;
    }
    assert!(passed > 0);
}

#[test]
fn the_reference_lists_every_field_and_rule() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/detectors.md");
    let text = std::fs::read_to_string(path).expect("the reference is there");
    let fresh = filled(&filled(&text, "fields", &fields_table()), "rules", &rules_table(&Rules::built_in()));
    if std::env::var_os("APEX_BLESS").is_some() {
        std::fs::write(path, fresh).expect("writable");
    } else {
        assert!(text == fresh, "docs/reference/detectors.md is old: APEX_BLESS=1 cargo test -p apex-core --lib detect");
    }
}

/// Puts a table between the marks of a name.
fn filled(text: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&begin).expect("the mark is there");
    let (_, after) = rest.split_once(&end).expect("the closing mark is there");
    format!("{before}{begin}{table}{end}{after}")
}

#[test]
fn an_exception_of_a_user_and_a_rule_of_the_same_name_change_built_in_rules() {
    let kill: crate::event::Event = serde_json::from_str(
        r#"{"time_ns":1,"sandbox":1,"pid":9,"ppid":1,"uid":0,"comm":"halt","event":"signal","target":-1,"signal":15}"#,
    )
    .expect("an event");
    let check = |text: &str, expected: usize| {
        let mut rules = Rules::built_in();
        rules.add(Rules::parse("own.toml", text).expect("valid")).expect("it names known rules");
        assert_eq!(case::findings(rules, Some("node"), std::slice::from_ref(&kill)).len(), expected, "{text}");
    };
    check("", 1);
    check("off = [\"kill-everyone\"]", 0);
    check("[[except]]\nrules = [\"kill-everyone\"]\ncomm = \"halt\"\nreason = \"it shuts down\"", 0);
    check(
        "[[except]]\nrules = [\"kill-everyone\"]\ncomm = \"halt\"\nprofile = \"python\"\nreason = \"it shuts down\"",
        1,
    );
    let error = Rules::built_in().add(Rules::parse("own.toml", "off = [\"kill-everyon\"]").expect("valid"));
    let error = error.expect_err("there is no such rule").to_string();
    assert!(error.contains("own.toml:1") && error.contains("did you mean `kill-everyone`"), "{error}");
}

#[test]
fn a_rule_is_told_once_in_a_while_and_counts_on() {
    let event = |time_s: u64| -> crate::event::Event {
        serde_json::from_str(&format!(
            r#"{{"time_ns":{},"sandbox":1,"pid":9,"ppid":1,"uid":0,"comm":"x","event":"signal","target":-1,"signal":15}}"#,
            time_s * 1_000_000_000
        ))
        .expect("an event")
    };
    let events: Vec<_> = [1, 2, 3, 100].map(event).into();
    let found = case::findings(Rules::built_in(), None, &events);
    assert_eq!(found.iter().map(|finding| finding.count).collect::<Vec<_>>(), [1, 3]);
}

/// A question to a name server from process 9.
fn question(time_ns: u64, qname: &str) -> crate::event::Event {
    let what = r#""event":"dns","address":"inet:192.0.2.53:53","bytes":60,"qtype":1"#;
    let line =
        format!(r#"{{"time_ns":{time_ns},"sandbox":1,"pid":9,"ppid":1,"uid":0,"comm":"x",{what},"qname":"{qname}"}}"#);
    serde_json::from_str(&line).expect("an event")
}

const HEAD: &str = "title = \"t\"\nexplanation = \"e\"\nseverity = \"high\"\ntechniques = [\"T1071\"]\n";

#[test]
fn one_rule_counted_apart_for_many_values_makes_no_other_forget() {
    let rules = format!(
        "[[rule]]\nid = \"few\"\n{HEAD}within = \"1h\"\nmatch = {{ event = \"dns\", qname = \"wanted\" }}\nat_least = {{ events = 3 }}\n\
         [[rule]]\nid = \"each\"\n{HEAD}match = {{ event = \"dns\" }}\nat_least = {{ events = 900 }}\nper = \"qname\"\n"
    );
    let mut events = vec![question(1, "wanted"), question(2, "wanted")];
    events.extend((0..20_000).map(|n| question(3 + n, &format!("n{n}.example.org"))));
    events.push(question(30_000, "wanted"));
    let found = case::findings(Rules::parse("own.toml", &rules).expect("valid"), None, &events);
    assert_eq!(case::fired(&found, Severity::High), ["few"]);
}

#[test]
fn what_is_counted_apart_is_no_share() {
    let text = format!(
        "[[rule]]\nid = \"x\"\n{HEAD}match = {{ event = \"dns\" }}\nat_least = {{ qname = 3 }}\nper = \"qparent\"\n\
         share = {{ percent = 50, of = {{ event = \"send\" }} }}\n"
    );
    let error = Rules::parse("own.toml", &text).expect_err("no such rule").to_string();
    assert!(error.contains("`share` cannot stand with `per`"), "{error}");
}

#[test]
fn a_name_holds_as_much_data_in_large_letters() {
    let rules = format!("[[rule]]\nid = \"data\"\n{HEAD}match = {{ event = \"dns\", qdata = \">=1\" }}\n");
    // The label that looks like data is the owner's own, below an ending that is shared.
    for name in ["3f0a9b1c7d5e2f8a4b6c8d0e1f2a3b4c.co.uk", "3F0A9B1C7D5E2F8A4B6C8D0E1F2A3B4C.CO.UK"] {
        let found = case::findings(Rules::parse("own.toml", &rules).expect("valid"), None, &[question(1, name)]);
        assert!(found.is_empty(), "{name}");
    }
}

/// Records of real runs of the corpus, shortened: under `hostile` the rule that must fire is the name of the file, under `honest` nothing of
/// severity high or above may.
fn streams(kind: &str) -> Vec<(String, Vec<crate::event::Event>)> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/streams/").to_owned() + kind;
    let files =
        std::fs::read_dir(directory).expect("the records are there").map(|entry| entry.expect("readable").path());
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a text");
        let events = text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
        (path.file_stem().expect("it has a name").to_string_lossy().into_owned(), events)
    };
    files.map(read).collect()
}

#[test]
fn recorded_runs_are_judged_as_they_were() {
    let (hostile, honest) = (streams("hostile"), streams("honest"));
    assert!(hostile.len() >= 10 && honest.len() >= 5, "{} and {} records", hostile.len(), honest.len());
    for (rule, events) in hostile {
        let found = case::fired(&case::findings(Rules::built_in(), None, &events), Severity::High);
        assert!(found.contains(&rule), "{rule}: {found:?}");
    }
    for (name, events) in honest {
        let found = case::fired(&case::findings(Rules::built_in(), None, &events), Severity::High);
        assert!(found.is_empty(), "{name}: {found:?}");
    }
}

#[test]
fn a_stream_cut_short_or_out_of_order_breaks_nothing() {
    for (_, mut events) in streams("hostile") {
        events.reverse();
        case::findings(Rules::built_in(), None, &events);
        let halves: Vec<_> = events.iter().step_by(2).cloned().collect();
        case::findings(Rules::built_in(), Some("python"), &halves);
    }
}
