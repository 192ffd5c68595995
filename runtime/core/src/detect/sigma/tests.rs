//! Rules of Sigma's form, written for these tests, given as nodes.

use super::*;
use crate::detect::case::findings;
use crate::event::{Event, What};

fn text(text: &str) -> Node {
    Node { line: 1, value: Value::Text(text.to_owned()) }
}

fn list(items: &[&str]) -> Node {
    Node { line: 1, value: Value::List(items.iter().map(|item| text(item)).collect()) }
}

fn map(entries: &[(&str, Node)]) -> Node {
    Node { line: 2, value: Value::Map(entries.iter().map(|(key, node)| ((*key).to_owned(), node.clone())).collect()) }
}

fn null() -> Node {
    Node { line: 1, value: Value::Null }
}

fn rule(category: &str, selections: &[(&str, Node)], condition: &str) -> Node {
    let mut detection = selections.to_vec();
    detection.push(("condition", text(condition)));
    map(&[
        ("title", text("Odd use of a tool")),
        ("id", text("0f3a4c1e-0000-4000-8000-000000000001")),
        ("level", text("high")),
        ("tags", list(&["attack.execution", "attack.t1059.004"])),
        ("logsource", map(&[("product", text("linux")), ("category", text(category))])),
        ("detection", map(&detection)),
    ])
}

fn exec(line: &str) -> Event {
    let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let what = What::program(args[0].clone(), args, false);
    Event { time_ns: 1, sandbox: 1, pid: 10, ppid: 1, uid: 0, comm: "x".to_owned(), what, error: None }
}

fn check(rule: &Node, yes: &[&str], no: &[&str]) {
    let translation = translate(rule).unwrap_or_else(|error| panic!("{error}"));
    for (lines, expected) in [(yes, 1), (no, 0)] {
        for line in lines {
            let rules = Rules::parse("x", &translation.text).expect("own text is a rule");
            assert_eq!(findings(rules, None, &[exec(line)]).len(), expected, "{line}\n{}", translation.text);
        }
    }
}

fn refused(rule: &Node, word: &str) {
    let error = translate(rule).expect_err("this cannot be translated").to_string();
    assert!(error.contains(word), "{error}");
}

#[test]
fn a_rule_becomes_a_rule_that_says_the_same() {
    let selection = map(&[("Image|endswith", text("/nc")), ("CommandLine|contains", list(&[" -e ", " -c "]))]);
    let rule = rule("process_creation", &[("selection", selection)], "selection");
    let translation = translate(&rule).expect("translatable");
    assert_eq!(translation.id, "sigma-0f3a4c1e-0000-4000-8000-000000000001");
    assert!(translation.text.contains(r#"techniques = ["T1059.004"]"#), "{}", translation.text);
    check(
        &rule,
        &["/usr/bin/nc -e x", "/bin/NC -C x -c sh"],
        &["/usr/bin/nc x", "/usr/bin/ncat -e x", "/usr/bin/x -e x"],
    );
}

#[test]
fn all_needs_every_value() {
    let selection = map(&[("CommandLine|contains|all", list(&["--a", "--b"]))]);
    check(&rule("process_creation", &[("s", selection)], "s"), &["/x --b --a"], &["/x --a", "/x --b"]);
}

#[test]
fn wildcards_and_signs_are_kept_apart() {
    let selection = map(&[("CommandLine", list(&["/x a*b?", r"/x \*[1]{2},\\"]))]);
    let rule = rule("process_creation", &[("s", selection)], "s");
    check(&rule, &["/x ab1", "/x aXYb1", r"/x *[1]{2},\"], &["/x ab", "/x 1[1]{2},", "/y ab1"]);
}

#[test]
fn conditions_are_grouped_as_written() {
    let selections = [
        ("sel_a", map(&[("CommandLine|contains", text("aa"))])),
        ("sel_b", map(&[("CommandLine|contains", text("bb"))])),
        ("filter", map(&[("CommandLine|endswith", text("ok"))])),
    ];
    for (condition, yes, no) in [
        ("1 of sel_* and not filter", &["/x aa", "/x bb"][..], &["/x aa ok", "/x cc"][..]),
        ("all of sel_*", &["/x aa bb"], &["/x aa", "/x bb"]),
        ("all of them", &["/x aabbok"], &["/x aabb"]),
        ("sel_a or sel_b and filter", &["/x aa", "/x bb ok"], &["/x bb"]),
        ("(sel_a or sel_b) and filter", &["/x aa ok", "/x bb ok"], &["/x aa"]),
        ("not (sel_a or not sel_b)", &["/x bb"], &["/x aa bb", "/x"]),
    ] {
        check(&rule("process_creation", &selections, condition), yes, no);
    }
}

#[test]
fn lists_of_tables_nothing_and_expressions() {
    let any = Node { line: 3, value: Value::List(vec![map(&[("Image", text("/a"))]), map(&[("Image", text("/b"))])]) };
    check(&rule("process_creation", &[("s", any)], "s"), &["/a", "/b"], &["/c"]);
    let nothing = map(&[("ParentImage", null())]);
    check(&rule("process_creation", &[("s", nothing)], "s"), &["/a"], &[]);
    let expression = map(&[("CommandLine|re", text(r"^/x \d+$"))]);
    check(&rule("process_creation", &[("s", expression)], "s"), &["/x 12"], &["/x 1a"]);
    let cased = map(&[("CommandLine|contains|cased", text("Ab"))]);
    check(&rule("process_creation", &[("s", cased)], "s"), &["/x Abc"], &["/x abc"]);
}

#[test]
fn a_file_event_is_a_file_that_is_written_or_gets_a_name() {
    let rule = rule("file_event", &[("s", map(&[("TargetFilename|startswith", text("/etc/cron"))]))], "s");
    let translation = translate(&rule).expect("translatable");
    let open = |path: &str| {
        let mut event = exec("/x");
        event.what =
            What::Open { path: path.to_owned(), access: crate::refusal::Access::Write, create: true, truncate: false };
        event
    };
    for (path, expected) in [("/etc/cron.d/x", 1), ("/etc/x", 0)] {
        let rules = Rules::parse("x", &translation.text).expect("own text is a rule");
        assert_eq!(findings(rules, None, &[open(path)]).len(), expected, "{path}");
    }
}

#[test]
fn what_cannot_be_translated_is_said() {
    let plain = [("s", map(&[("Image", text("/a"))]))];
    refused(&rule("network_connection", &plain, "s"), "process_creation and file_event");
    refused(&rule("process_creation", &[("s", map(&[("User", text("root"))]))], "s"), "the field `User`");
    refused(&rule("process_creation", &[("s", map(&[("Image|base64offset", text("x"))]))], "s"), "`base64offset`");
    refused(&rule("process_creation", &[("s", list(&["word"]))], "s"), "in any field");
    refused(&rule("process_creation", &plain, "s | count() > 5"), "counts events");
    refused(&rule("process_creation", &plain, "t"), "which is no selection (selections: s)");
    refused(&rule("process_creation", &plain, "s and"), "ends where");
    refused(&rule("process_creation", &plain, "(s"), "not closed");
    refused(&rule("process_creation", &plain, "2 of them"), "only `1 of`");
    refused(&rule("process_creation", &[("s", map(&[("CommandLine|re", text("(?=x)"))]))], "s"), "regular expression");
    refused(&text("x"), "no Sigma rule");
    let deep = format!("{}s{}", "(".repeat(40), ")".repeat(40));
    refused(&rule("process_creation", &plain, &deep), "inside each other");
}
