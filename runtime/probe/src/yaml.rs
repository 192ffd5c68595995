//! YAML as a tree of nodes with lines, for rules of Sigma. Input: text of a bounded size; output: one node for each document. Depth and
//! number of nodes are bounded; anchors are refused, since they let a small text become a large tree.

use anyhow::{Result, bail};
use apex_core::detect::sigma::{Node, Value};
use saphyr_parser::{Event, Parser, ScalarStyle};

/// Bytes of one file.
pub const FILE_SIZE_MAX: u64 = 1 << 20;
const DEPTH_MAX: usize = 32;
const NODES_MAX: usize = 100_000;

/// A list or a table that is not closed yet.
struct Open {
    line: usize,
    /// Keys are the even ones of a table.
    nodes: Vec<Node>,
    is_map: bool,
}

/// Reads every document of a text.
pub fn documents(text: &str) -> Result<Vec<Node>> {
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    let mut documents = Vec::new();
    let mut count = 0;
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        let line = span.start.line();
        let done = match event {
            Event::Alias(_) => bail!("line {line}: an anchor is used again; write the value out"),
            Event::Scalar(text, style, ..) => Some(Node { line, value: scalar(&text, style) }),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() >= DEPTH_MAX {
                    bail!("line {line}: more than {DEPTH_MAX} lists and tables inside each other");
                }
                open.push(Open { line, nodes: Vec::new(), is_map: matches!(event, Event::MappingStart(..)) });
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(closed) => Some(close(closed)?),
                None => None,
            },
            Event::StreamEnd => break,
            _ => None,
        };
        let Some(node) = done else { continue };
        count += 1;
        if count > NODES_MAX {
            bail!("line {line}: more than {NODES_MAX} values");
        }
        match open.last_mut() {
            Some(outer) => outer.nodes.push(node),
            None => documents.push(node),
        }
    }
    Ok(documents)
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" if style == ScalarStyle::Plain => Value::Null,
        _ => Value::Text(text.to_owned()),
    }
}

fn close(open: Open) -> Result<Node> {
    let Open { line, nodes, is_map } = open;
    if !is_map {
        return Ok(Node { line, value: Value::List(nodes) });
    }
    let mut entries: Vec<(String, Node)> = Vec::new();
    let mut nodes = nodes.into_iter();
    while let (Some(key), Some(value)) = (nodes.next(), nodes.next()) {
        let Value::Text(name) = key.value else {
            bail!("line {}: a key is no text", key.line);
        };
        if entries.iter().any(|(known, _)| *known == name) {
            bail!("line {}: the key `{name}` is there already", key.line);
        }
        entries.push((name, value));
    }
    Ok(Node { line, value: Value::Map(entries) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_become_trees_with_lines() {
        let all = documents("a: 1\nb:\n  - x\n  - ~\n---\n'c d': \"~\"\n").expect("valid");
        assert_eq!(all.len(), 2);
        let Value::Map(entries) = &all[0].value else { panic!("a table") };
        assert_eq!(entries[0].1, Node { line: 1, value: Value::Text("1".to_owned()) });
        let Value::List(items) = &entries[1].1.value else { panic!("a list") };
        assert_eq!((items[0].line, &items[1].value), (3, &Value::Null));
        assert_eq!(
            all[1].value,
            Value::Map(vec![("c d".to_owned(), Node { line: 6, value: Value::Text("~".to_owned()) })])
        );
    }

    #[test]
    fn what_has_no_bound_is_refused() {
        for (text, word) in [
            ("a: &x [1]\nb: *x\n", "anchor"),
            (&*"[".repeat(100), "inside each other"),
            ("a: 1\na: 2\n", "already"),
            ("? [a]\n: 1\n", "no text"),
            ("a: [1\n", ""),
        ] {
            let error = documents(text).expect_err(text).to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
