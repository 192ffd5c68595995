//! Schemas and messages that fit and do not, what is refused, and what would never end.

use super::*;
use serde_json::json;

#[track_caller]
fn check(schema: Value, fitting: &[Value], others: &[Value]) {
    let schema = Schema::read(&schema.to_string()).unwrap();
    for value in fitting {
        assert_eq!(schema.judge(value).0, Ok(()), "{value}");
    }
    for value in others {
        assert!(schema.judge(value).0.is_err(), "{value}");
    }
}

#[test]
fn kinds_and_values() {
    check(json!(true), &[json!(1)], &[]);
    check(json!(false), &[], &[json!(1)]);
    check(json!({"type": "integer"}), &[json!(1), json!(1.0)], &[json!(1.5), json!("1"), json!(null)]);
    check(json!({"type": ["null", "string"]}), &[json!(null), json!("")], &[json!(0), json!([])]);
    check(json!({"enum": [1, "a", {"b": [2]}]}), &[json!(1.0), json!({"b": [2]})], &[json!("b"), json!({"b": [3]})]);
    check(
        json!({"const": 9_007_199_254_740_993_u64}),
        &[json!(9_007_199_254_740_993_u64)],
        &[json!(9_007_199_254_740_992_u64)],
    );
    check(json!({"minimum": 1, "exclusiveMaximum": 3}), &[json!(1), json!(2.9), json!("x")], &[json!(0), json!(3)]);
    check(json!({"multipleOf": 3}), &[json!(9), json!(0)], &[json!(10)]);
    check(json!({"minLength": 2, "maxLength": 3}), &[json!("äö"), json!(1)], &[json!("a"), json!("abcd")]);
    check(json!({"pattern": "^[a-z]+$"}), &[json!("abc")], &[json!("aBc"), json!("")]);
}

#[test]
fn objects_and_arrays() {
    let job = json!({
        "type": "object",
        "properties": {"url": {"type": "string"}, "tries": {"type": "integer", "minimum": 0}},
        "patternProperties": {"^x-": true},
        "required": ["url"],
        "additionalProperties": false,
    });
    check(
        job.clone(),
        &[json!({"url": "a"}), json!({"url": "a", "tries": 3, "x-y": []})],
        &[json!({}), json!({"url": 1}), json!({"url": "a", "tries": -1}), json!({"url": "a", "other": 1}), json!([])],
    );
    let mismatch = Schema::read(&job.to_string()).unwrap().judge(&json!({"url": "a", "tries": -1})).0.unwrap_err();
    assert_eq!((mismatch.at.as_str(), mismatch.keyword), ("/tries", "minimum"));
    check(
        json!({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}),
        &[json!(["a", 1, 2]), json!([])],
        &[json!([1]), json!(["a", "b"])],
    );
    check(
        json!({"uniqueItems": true, "maxItems": 3}),
        &[json!([1, "1", true])],
        &[json!([1, 1.0]), json!([1, 2, 3, 4])],
    );
    check(json!({"contains": {"const": 1}}), &[json!([0, 1])], &[json!([]), json!([0])]);
    check(
        json!({"propertyNames": {"maxLength": 2}, "minProperties": 1}),
        &[json!({"ab": 1})],
        &[json!({"abc": 1}), json!({})],
    );
}

#[test]
fn schemas_of_schemas() {
    check(json!({"anyOf": [{"type": "string"}, {"minimum": 5}]}), &[json!("a"), json!(5)], &[json!(4)]);
    check(json!({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}), &[json!(4), json!(9)], &[json!(6), json!(5)]);
    check(json!({"allOf": [{"minimum": 1}, {"maximum": 2}]}), &[json!(1)], &[json!(3)]);
    check(json!({"not": {"type": "string"}}), &[json!(1)], &[json!("a")]);
    let tree = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}});
    check(tree, &[json!([[], [[]]])], &[json!([[1]])]);
    check(json!({"type": "array", "items": {"$ref": "#"}}), &[json!([[[]]])], &[json!([[0]])]);
}

#[test]
fn what_is_not_understood_is_refused() {
    let check = |text: &str, words: &str| {
        let error = Schema::read(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    };
    check("", "no JSON");
    check("[]", "an object");
    check(r#"{"unevaluatedProperties": false}"#, "not known");
    check(r#"{"format": "uri"}"#, "not known");
    check(r#"{"properties": {"a": {"if": {}}}}"#, "not known");
    check(r#"{"$ref": "https://example.org/s.json"}"#, "leads to");
    check(r##"{"$ref": "#/$defs/none"}"##, "leads to");
    check(r#"{"pattern": "(?=a)"}"#, "no pattern");
    check(r#"{"pattern": "(\\pL{1000}){1000}"}"#, "no pattern");
    check(r#"{"type": "text"}"#, "`type`");
    check(r#"{"minLength": -1}"#, "`minLength`");
    check(&" ".repeat(SCHEMA_BYTES_MAX + 1), "bytes");
    check(&format!(r#"{{"anyOf": [{}true]}}"#, "true,".repeat(NODES_MAX)), "more than");
    check(&format!("{}true{}", r#"{"not":"#.repeat(500), "}".repeat(500)), "no JSON");
}

/// Each of these would run for ever, for ages, or out of stack.
#[test]
fn judging_comes_to_an_end() {
    let check = |schema: Value, message: Value| {
        let mismatch = Schema::read(&schema.to_string()).unwrap().judge(&message).0.unwrap_err();
        assert_eq!(mismatch.keyword, "steps", "{schema}");
    };
    check(json!({"$ref": "#"}), json!(1));
    check(json!({"not": {"$ref": "#"}}), json!(1));
    check(json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}), json!(1));
    let mut doubling = Map::new();
    for number in 0..60 {
        let next = json!({"$ref": format!("#/$defs/{}", number + 1)});
        doubling.insert(number.to_string(), json!({"allOf": [next, next]}));
    }
    doubling.insert("60".to_owned(), json!(true));
    check(json!({"$ref": "#/$defs/0", "$defs": doubling}), json!(1));
    let many: Vec<u32> = (0..30_000).collect();
    check(json!({"uniqueItems": true}), json!(many));
    let branches: Vec<Value> = (0..500).map(|number| json!({"const": number + 100_000})).collect();
    check(json!({"items": {"not": {"anyOf": branches}}}), json!(many));
    let long = "a".repeat(60_000);
    let patterns: Vec<Value> = (0..300).map(|number| json!({"pattern": format!("a*b{number}")})).collect();
    check(json!({"not": {"anyOf": patterns}}), json!(long));
}
