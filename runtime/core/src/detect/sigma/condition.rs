//! The condition of a Sigma rule. Input: `detection` with its selections; output: one expression. Grammar: `or` over `and` over `not` over
//! names, parentheses, and `1 of`, `any of` or `all of` a name with `*`, or `them`.

use super::{Category, Expression, Node, Selections, SigmaError, Value, selection};

/// Parentheses and `not` inside each other.
const DEPTH_MAX: usize = 32;
const WORDS_MAX: usize = 1024;

/// Reads selections and condition.
pub(super) fn read(detection: &Node, category: Category) -> Result<Expression, SigmaError> {
    let Value::Map(entries) = &detection.value else {
        return Err(detection.wrong("`detection` is no table of selections"));
    };
    if let Some(frame) = detection.get("timeframe") {
        return Err(
            frame.wrong("`timeframe` counts events; counting is not translated, write `at_least` and `within` by hand")
        );
    }
    let mut selections = Selections::new();
    for (name, node) in entries.iter().filter(|(name, _)| name != "condition") {
        selections.insert(name.clone(), selection::read(name, node, category)?);
    }
    let condition = detection.need("condition")?;
    match &condition.value {
        Value::Text(text) => parse(text, condition, &selections),
        Value::List(several) => {
            let any = several.iter().map(|one| match one.text() {
                Some(text) => parse(text, one, &selections),
                None => Err(one.wrong("a condition is no text")),
            });
            any.collect::<Result<_, _>>().map(Expression::Any)
        }
        _ => Err(condition.wrong("`condition` is no text")),
    }
}

fn parse(text: &str, node: &Node, selections: &Selections) -> Result<Expression, SigmaError> {
    if text.contains('|') {
        return Err(node.wrong(format!(
            "`{text}` counts events; counting is not translated, write `at_least` and `within` by hand"
        )));
    }
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().take(WORDS_MAX + 1).collect();
    if words.len() > WORDS_MAX {
        return Err(node.wrong(format!("a condition of more than {WORDS_MAX} words")));
    }
    let mut parser = Parser { words: &words, node, selections };
    let expression = parser.or(0)?;
    match parser.words.first() {
        None => Ok(expression),
        Some(word) => Err(node.wrong(format!("`{word}` in `{text}` is not expected there"))),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    node: &'a Node,
    selections: &'a Selections,
}

impl Parser<'_> {
    fn or(&mut self, depth: usize) -> Result<Expression, SigmaError> {
        let mut any = vec![self.and(depth)?];
        while self.take("or") {
            any.push(self.and(depth)?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Expression::Any(any) })
    }

    fn and(&mut self, depth: usize) -> Result<Expression, SigmaError> {
        let mut all = vec![self.not(depth)?];
        while self.take("and") {
            all.push(self.not(depth)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expression::All(all) })
    }

    fn not(&mut self, depth: usize) -> Result<Expression, SigmaError> {
        if depth > DEPTH_MAX {
            return Err(self.node.wrong(format!("a condition with more than {DEPTH_MAX} parts inside each other")));
        }
        if self.take("not") {
            return Ok(Expression::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.take("(") {
            let inner = self.or(depth + 1)?;
            return if self.take(")") {
                Ok(inner)
            } else {
                Err(self.node.wrong("a `(` of the condition is not closed"))
            };
        }
        self.name()
    }

    fn name(&mut self) -> Result<Expression, SigmaError> {
        let Some((word, rest)) = self.words.split_first() else {
            return Err(self.node.wrong("the condition ends where a selection is expected"));
        };
        self.words = rest;
        if rest.first().is_some_and(|next| next.eq_ignore_ascii_case("of")) {
            return self.quantified(word);
        }
        let found = self.selections.get(*word).cloned();
        found.ok_or_else(|| {
            self.node.wrong(format!("the condition names `{word}`, which is no selection{}", self.listed()))
        })
    }

    fn quantified(&mut self, quantity: &str) -> Result<Expression, SigmaError> {
        let [_, pattern, rest @ ..] = self.words else {
            return Err(self.node.wrong(format!("nothing follows `{quantity} of`")));
        };
        self.words = rest;
        // A name that begins with `_` is not one of `them`.
        let is_meant = |name: &str| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None if *pattern == "them" => !name.starts_with('_'),
            None => name == *pattern,
        };
        let meant = self.selections.iter().filter(|(name, _)| is_meant(name));
        let meant: Vec<Expression> = meant.map(|(_, expression)| expression.clone()).collect();
        if meant.is_empty() {
            return Err(self.node.wrong(format!("`{quantity} of {pattern}` means no selection{}", self.listed())));
        }
        match quantity.to_ascii_lowercase().as_str() {
            "1" | "any" => Ok(Expression::Any(meant)),
            "all" => Ok(Expression::All(meant)),
            _ => Err(self.node.wrong(format!("`{quantity} of`: only `1 of`, `any of` and `all of` are translated"))),
        }
    }

    fn listed(&self) -> String {
        let names: Vec<&str> = self.selections.keys().map(String::as_str).collect();
        format!(" (selections: {})", names.join(", "))
    }

    fn take(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if first.eq_ignore_ascii_case(word) => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }
}
