//! Trails that are whole and trails that are not; secrets that are known.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn record(reason: &str) -> Record {
    Record {
        time_ms: 1_700_000_000_123,
        actor: Actor { uid: 1000, pid: 42, roles: vec![Role::Developer] },
        operation: Operation::ModeTighten,
        target: Target { id: "17".to_owned(), name: "job".to_owned() },
        outcome: Outcome::Allowed,
        reason: reason.to_owned(),
        before: json!({ "mode": "hybrid" }),
        after: json!({ "mode": "isolation" }),
    }
}

fn trail(count: usize) -> (Vec<String>, Chain) {
    let mut chain = Chain::new();
    let lines = (0..count).map(|at| chain.seal(&record(&format!("reason {at}")))).collect();
    (lines, chain)
}

fn check(lines: &[String]) -> Result<Verdict, Broken> {
    verify(lines, &Anchors::default())
}

#[track_caller]
fn broken(lines: &[String], anchors: &Anchors, line: u64, words: &str) {
    let broken = verify(lines, anchors).expect_err("is to be found");
    assert_eq!(broken.line, line, "{broken}");
    assert!(broken.words.contains(words), "{broken}\nlacks {words}");
}

#[test]
fn a_trail_that_nobody_touched_is_whole() {
    let (lines, chain) = trail(5);
    let verdict = check(&lines).expect("whole");
    assert_eq!((verdict.records, verdict.head_sha256.as_str()), (5, chain.head().sha256.as_str()));
    assert_eq!(chain.head().sequence, 5);
    let nothing = check(&[]).expect("whole");
    assert_eq!((nothing.records, nothing.head_sha256.as_str()), (0, GENESIS));
}

/// The way that the module's header tells people, in other words.
#[test]
fn the_hash_is_that_of_the_bytes_before_it() {
    use sha2::{Digest, Sha256};
    let (lines, _) = trail(2);
    let (body, seal) = lines[1].rsplit_once(",\"sha256\":\"").expect("sealed");
    let hex: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(seal, format!("{hex}\"}}}}"));
    let first = lines[0].rsplit_once(",\"sha256\":\"").expect("sealed").1.trim_end_matches("\"}}");
    assert!(body.ends_with(&format!(",\"prev_sha256\":\"{first}\"")));
    assert!(lines[0].contains(&format!(",\"prev_sha256\":\"{GENESIS}\"")));
}

#[test]
fn what_was_done_to_a_trail_is_named() {
    let (lines, chain) = trail(5);
    let none = Anchors::default();
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        lines
    };
    broken(&with(&|lines| lines[2] = lines[2].replace("1000", "1001")), &none, 3, "edited");
    broken(&with(&|lines| _ = lines.remove(2)), &none, 3, "1 record before it was removed");
    broken(&with(&|lines| _ = lines.drain(..2)), &none, 1, "older");
    broken(&with(&|lines| lines.swap(1, 2)), &none, 2, "removed or moved");
    broken(&with(&|lines| lines.insert(3, lines[2].clone())), &none, 4, "moved or inserted");
    broken(&with(&|lines| lines.insert(3, String::new())), &none, 4, "does not end with its hash");
    broken(&with(&|lines| lines[4].truncate(100)), &none, 5, "cut short");
    let mut other = Chain::new();
    other.seal(&record("reason 0"));
    let forged = other.seal(&record("another"));
    broken(&with(&|lines| lines[1] = forged.clone()), &none, 3, "was replaced");
    // The end alone shows by nothing but a head that was noted.
    let short = with(&|lines| lines.truncate(3));
    assert!(check(&short).is_ok());
    let noted = Anchors { head_sha256: Some(chain.head().sha256.clone()), after: None };
    broken(&short, &noted, 4, "cut off");
    broken(&[], &noted, 1, "cut off");
    broken(&trail_of("forged").0, &noted, 6, "written anew");
    assert!(verify(&lines, &noted).is_ok());
}

fn trail_of(reason: &str) -> (Vec<String>, Chain) {
    let mut chain = Chain::new();
    ((0..5).map(|_| chain.seal(&record(reason))).collect(), chain)
}

#[test]
fn a_head_that_was_noted_earlier_is_enough() {
    let (mut lines, mut chain) = trail(3);
    let noted = Anchors { head_sha256: Some(chain.head().sha256.clone()), after: None };
    lines.push(chain.seal(&record("later")));
    assert_eq!(verify(&lines, &noted).expect("whole").records, 4);
}

#[test]
fn a_trail_goes_on_after_a_restart_and_in_another_file() {
    let (lines, chain) = trail(3);
    let mut resumed = Chain::resume(&lines[2]).expect("whole");
    assert_eq!(resumed, chain);
    let next = [resumed.seal(&record("next"))];
    let after = Anchors { after: Some(chain.head().clone()), head_sha256: Some(chain.head().sha256.clone()) };
    assert_eq!(verify(&next, &after).expect("whole").records, 1);
    broken(&next, &Anchors::default(), 1, "number 4 and not 1");
    let torn = Chain::resume(&lines[2][..90]).expect_err("torn");
    assert!(torn.words.contains("take it away"), "{torn}");
}

#[test]
fn hashes_do_not_make_a_record() {
    let sealed = |body: &str| {
        use sha2::{Digest, Sha256};
        let hex: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body},\"sha256\":\"{hex}\"}}}}")
    };
    let none = Anchors::default();
    broken(&[sealed("x")], &none, 1, "no audit record");
    broken(&[sealed("{\"unmapped\":{\"prev_sha256\":\"0\"")], &none, 1, "no audit record");
    let elsewhere = format!("{{\"metadata\":{{\"sequence\":1}},\"unmapped\":{{\"prev_sha256\":\"{GENESIS}\",\"x\":1");
    broken(&[sealed(&elsewhere)], &none, 1, "last key but one");
    let twice =
        format!("{{\"metadata\":{{\"sequence\":1}},\"unmapped\":{{\"prev_sha256\":\"\",\"prev_sha256\":\"{GENESIS}\"");
    broken(&[sealed(&twice)], &none, 1, "no audit record");
    broken(&["x".repeat(LINE_BYTES_MAX + 1)], &none, 1, "no record has more");
    assert!(verify([&b"\xff\xfe"[..]], &none).is_err());
}

#[test]
fn a_line_is_an_api_activity_of_ocsf() {
    let (lines, _) = trail(1);
    let event: Value = serde_json::from_str(&lines[0]).expect("JSON");
    for (key, value) in [
        ("activity_id", json!(3)),
        ("category_uid", json!(6)),
        ("class_uid", json!(6003)),
        ("type_uid", json!(600_303)),
        ("time", json!(1_700_000_000_123_u64)),
        ("severity_id", json!(1)),
        ("status_id", json!(1)),
        ("status_detail", json!("reason 0")),
        ("src_endpoint", json!({ "name": "local" })),
        ("actor", json!({ "user": { "uid": "1000" }, "process": { "pid": 42 } })),
        ("api", json!({ "operation": "mode-tighten", "service": { "name": "apexd" } })),
    ] {
        assert_eq!(event[key], value, "{key}");
    }
    assert_eq!(event["metadata"]["version"], crate::ocsf::SCHEMA_VERSION);
    assert_eq!(event["metadata"]["sequence"], 1);
    assert_eq!(event["resources"][0]["uid"], "17");
    assert_eq!(event["unmapped"]["roles"], json!(["developer"]));
    assert_eq!(event["unmapped"]["after"], json!({ "mode": "isolation" }));
    let refused = Record { outcome: Outcome::Refused, target: Target::default(), ..record("no") };
    let event: Value = serde_json::from_str(&Chain::new().seal(&refused)).expect("JSON");
    assert_eq!((&event["status_id"], &event["unmapped"]["outcome"]), (&json!(2), &json!("refused")));
    assert!(event.get("resources").is_none());
}

#[test]
fn each_operation_has_an_activity_of_the_schema() {
    for operation in Operation::ALL {
        let line = Chain::new().seal(&Record { operation, ..record("") });
        let event: Value = serde_json::from_str(&line).expect("JSON");
        let id = event["activity_id"].as_u64().expect("a number");
        assert!((1..=4).contains(&id), "{}", operation.name());
        assert_eq!(event["type_uid"], 600_300 + id);
    }
}

#[test]
fn a_line_is_masked_and_bounded() {
    let huge = "x".repeat(1 << 20);
    let nested = (0..500).fold(json!("leaf"), |inner, _| json!([inner]));
    let odd = Record {
        reason: format!("cannot run --token abcdef: {huge}"),
        target: Target { id: huge.clone(), name: "PASSWORD=hunter2 \"}}\n".to_owned() },
        before: json!({ "env": { "API_TOKEN": "abcdef" }, "command": ["mysql", "--password", "hunter2"], "nested": nested }),
        after: json!([huge]),
        ..record("")
    };
    let mut chain = Chain::new();
    let lines = [chain.seal(&odd), chain.seal(&record("next"))];
    assert!(lines[0].len() < LINE_BYTES_MAX / 4 && !lines[0].contains('\n'), "{}", lines[0].len());
    assert!(!lines[0].contains("abcdef") && !lines[0].contains("hunter2"), "{}", lines[0]);
    assert!(check(&lines).is_ok());
}

#[test]
fn secrets_are_masked() {
    #[rustfmt::skip]
    const CASES: &[(&str, &str)] = &[
        ("AWS_SECRET_ACCESS_KEY=abc/def+1 ./job", "AWS_SECRET_ACCESS_KEY=*** ./job"),
        ("env API_KEY='a b' DB_PASSWORD=\"c \\\" d\" x", "env API_KEY=*** DB_PASSWORD=*** x"),
        ("PASSWD=ab\\ cd\"e f\"g h", "PASSWD=*** h"),
        ("token=\"never closed", "token=***"),
        ("job --password hunter2 -v", "job --password *** -v"),
        ("job --password=hunter2 -v", "job --password=*** -v"),
        ("job --api-key abc --verbose", "job --api-key *** --verbose"),
        ("-token abc", "-token ***"),
        ("--token --password abc x", "--token *** x"),
        ("--password x-token: abc y", "--password *** y"),
        ("token: x-token: abc; y", "token: *** y"),
        ("Authorization= --token abc x", "Authorization= *** *** x"),
        ("sshpass -phunter2 ssh host", "sshpass -p*** ssh host"),
        ("sshpass -p hunter2 ssh host", "sshpass -p *** ssh host"),
        ("curl -u ann:hunter2 https://host/", "curl -u ann:*** https://host/"),
        ("curl -H \"Authorization: Bearer abc.def\" https://host", "curl -H \"Authorization: Bearer ***\" https://host"),
        ("Authorization: Basic YW5uOmh1bnRlcjI=", "Authorization: Basic ***"),
        ("Authorization: s3cr3t", "Authorization: ***"),
        ("{\"authorization\": \"Bearer abc\", \"user\": \"ann\"}", "{\"authorization\": ***, \"user\": \"ann\"}"),
        ("curl -H 'X-Auth-Token: abc' https://host", "curl -H 'X-Auth-Token: ***' https://host"),
        ("{\"password\": \"a\\\"b\", \"user\": \"ann\"}", "{\"password\": ***, \"user\": \"ann\"}"),
        ("{\\\"token\\\":\\\"abc\\\"}", "{\\\"token\\\":***}"),
        ("sent bearer 0123456789abcdef", "sent bearer ***"),
        ("postgres://ann:hunter2@db:5432/x", "postgres://ann:***@db:5432/x"),
        ("https://ann:p@ss/w@host/x", "https://ann:***@host/x"),
        ("https://0123456789abcdefghij@host/x", "https://***@host/x"),
        ("https://host/x?access_token=abc&y=1", "https://host/x?access_token=***"),
        ("id AKIAIOSFODNN7EXAMPLE used", "id *** used"),
        ("git clone ghp_0123456789abcdefghijABCDEFGHIJ012345", "git clone ***"),
        ("xoxb-123456789012-abcdefgh", "***"),
        ("sk-0123456789abcdefghijkl", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "***"),
        ("a -----BEGIN RSA PRIVATE KEY-----\nMII\nE\n-----END RSA PRIVATE KEY----- b", "a *** b"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", "***"),
    ];
    for (text, expected) in CASES {
        assert_eq!(mask(text), *expected, "{text}");
        assert_eq!(mask(expected), *expected, "twice");
    }
}

#[test]
fn what_is_no_secret_stays() {
    for text in [
        "make -j2 all",
        "https://host:8080/path?x=1",
        "ssh://git@host/repo.git",
        "cannot switch to mode development: it was born in mode isolation",
        "PATH=/usr/bin HOME=/root",
        "ls -l /etc/ssl",
        "cp a:b c@d",
        "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
        "",
    ] {
        assert_eq!(mask(text), text);
    }
}

#[test]
fn words_of_a_command_are_masked_one_by_one() {
    let words = ["x", "--password", "two words", "SECRET=a b", "--token=t t", "-u", "plain", "PATH=/a b"];
    assert_eq!(mask_words(&words), ["x", "--password", "***", "SECRET=***", "--token=***", "-u", "plain", "PATH=/a b"]);
    assert_eq!(mask_words(&["--token", "--password", "abc", "d"]), ["--token", "***", "***", "d"]);
    let value = json!({ "env": ["DB_PASSWORD=a b"], "auth_token": ["a"], "tokens": 3, "note": "key=abc", "x": [1, "token=abc"] });
    let masked = json!({ "env": ["DB_PASSWORD=***"], "auth_token": "***", "tokens": 3, "note": "key=***", "x": [1, "token=***"] });
    assert_eq!(mask_value(&value), masked);
}

/// What a command may begin with.
fn a_beginning() -> impl Strategy<Value = String> {
    let pieces: &'static [&'static str] = &[
        "curl ",
        "-v ",
        "https://host/x?y=1 ",
        "\"",
        "'",
        "\\",
        "{",
        ", ",
        "A=b ",
        "ann:pw@",
        "/bin/job ",
        "é",
        "\n",
        "=",
        "***",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..8).prop_map(|pieces| pieces.concat())
}

/// Texts in which secrets are likely, whole and in pieces.
fn a_text() -> impl Strategy<Value = String> {
    let pieces: &'static [&'static str] = &[
        "PASSWORD",
        "token",
        "API_KEY",
        "=",
        ":",
        ": ",
        " ",
        "\"",
        "'",
        "\\",
        "--",
        "-u",
        "-p",
        "sshpass",
        "abc",
        "ann:pw",
        "@host",
        "https://",
        "Authorization",
        "Bearer ",
        "Basic ",
        "***",
        "*",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJI.",
        "-----BEGIN PRIVATE KEY-----",
        "-----END PRIVATE KEY-----",
        "\n",
        "\t",
        "&",
        "?",
        "é",
        "/",
        "0123456789abcdefghij",
        "{",
        "}",
        "sk-",
        "ghp_",
    ];
    prop_oneof![
        3 => prop::collection::vec(prop::sample::select(pieces), 0..14).prop_map(|pieces| pieces.concat()),
        1 => ".{0,60}",
    ]
}

proptest! {
    #[test]
    fn masked_twice_is_masked_once(text in a_text()) {
        let once = mask(&text);
        prop_assert_eq!(mask(&once), once);
    }

    #[test]
    fn words_masked_twice_are_masked_once(words in prop::collection::vec(a_text(), 0..5)) {
        let once = mask_words(&words);
        prop_assert_eq!(mask_words(&once), once);
    }

    #[test]
    fn a_named_secret_never_stays(
        name in "[A-Z_]{0,6}(TOKEN|SECRET|PASSWORD|API_KEY)[A-Z_]{0,4}", before in a_beginning(), secret in "zq[a-z0-9/+&;,@:=]{0,20}qz",
    ) {
        for text in [format!("{before} {name}={secret} x"), format!("{before} --{name} {secret} x"), format!("{before} {name}: {secret}")] {
            prop_assert!(!mask(&text).contains(&secret), "{}", mask(&text));
        }
        let options = ["x".to_owned(), format!("--{name}"), secret.clone(), format!("{name}={before}{secret}")];
        let words = mask_words(&options);
        prop_assert!(!words.iter().any(|word| word.contains(&secret)), "{words:?}");
    }

    #[test]
    fn whatever_is_sealed_is_one_line_and_whole(reasons in prop::collection::vec(any::<String>(), 1..6), name in any::<String>(), value in a_text()) {
        let mut chain = Chain::new();
        let records = reasons.iter().map(|reason| Record {
            target: Target { id: String::new(), name: name.clone() }, after: json!({ value.clone(): [value] }), ..record(reason)
        });
        let lines: Vec<String> = records.map(|record| chain.seal(&record)).collect();
        prop_assert!(lines.iter().all(|line| !line.contains(['\n', '\r'])));
        prop_assert_eq!(check(&lines).map(|verdict| verdict.head_sha256), Ok(chain.head().sha256.clone()));
        prop_assert_eq!(Chain::resume(&lines[lines.len() - 1]), Ok(chain));
    }

    #[test]
    fn one_changed_byte_is_found(at in any::<prop::sample::Index>(), line in 0_usize..4, byte in any::<u8>()) {
        let (lines, chain) = trail(4);
        let mut lines: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
        let at = at.index(lines[line].len());
        prop_assume!(lines[line][at] != byte);
        lines[line][at] = byte;
        let noted = Anchors { head_sha256: Some(chain.head().sha256.clone()), after: None };
        let broken = verify(&lines, &noted).expect_err("is found");
        prop_assert_eq!(broken.line, line as u64 + 1);
    }

    #[test]
    fn any_other_order_or_choice_of_lines_is_found(picks in prop::collection::vec(0_usize..5, 0..7)) {
        let (lines, chain) = trail(5);
        let picked: Vec<&String> = picks.iter().map(|at| &lines[*at]).collect();
        let noted = Anchors { head_sha256: Some(chain.head().sha256.clone()), after: None };
        prop_assert_eq!(verify(picked, &noted).is_ok(), picks == [0, 1, 2, 3, 4]);
    }
}
