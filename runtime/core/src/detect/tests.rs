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
