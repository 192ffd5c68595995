//! Plain tables that stay within the width, and text that is broken to fit.

use crate::escape;

use super::WIDTH;

/// Two blanks between columns.
const GAP: usize = 2;
/// A column is never made narrower.
const COLUMN_MIN: usize = 8;

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tint {
    Plain,
    Good,
    Doubtful,
    Bad,
}

impl Tint {
    pub fn or_plain(self, colour: bool) -> Tint {
        if colour { self } else { Tint::Plain }
    }

    pub fn paint(self, text: &str) -> String {
        match self {
            Tint::Plain => text.to_owned(),
            Tint::Good => format!("\x1b[32m{text}\x1b[0m"),
            Tint::Doubtful => format!("\x1b[33m{text}\x1b[0m"),
            Tint::Bad => format!("\x1b[31m{text}\x1b[0m"),
        }
    }
}

/// One field of a table; its text is already harmless.
#[derive(Debug)]
pub(super) struct Cell {
    text: String,
    tint: Tint,
}

impl Cell {
    pub fn new(text: &str) -> Cell {
        Cell::tinted(text, Tint::Plain)
    }

    pub fn tinted(text: &str, tint: Tint) -> Cell {
        Cell { text: escape::text(text).into_owned(), tint }
    }
}

/// A table with a heading; cells that are too long go on in the next line.
pub(super) fn render<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [Cell; N]>, colour: bool) -> String {
    let rows: Vec<[Cell; N]> = rows.collect();
    let widths = widths(heads, &rows);
    let mut out = String::new();
    push_row(&mut out, &heads.map(Cell::new), &widths, false);
    push_row(&mut out, &widths.map(|width| Cell::new(&"-".repeat(width))), &widths, false);
    for row in &rows {
        push_row(&mut out, row, &widths, colour);
    }
    out
}

/// Natural widths, of which the widest give way until the line fits.
fn widths<const N: usize>(heads: [&str; N], rows: &[[Cell; N]]) -> [usize; N] {
    let mut widths = heads.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let room = WIDTH.saturating_sub(GAP * (N - 1));
    while widths.iter().sum::<usize>() > room {
        match widths.iter_mut().max() {
            Some(widest) if *widest > COLUMN_MIN => *widest -= 1,
            Some(_) | None => break,
        }
    }
    widths
}

fn push_row<const N: usize>(out: &mut String, row: &[Cell; N], widths: &[usize; N], colour: bool) {
    let cells: Vec<Vec<String>> = row.iter().zip(widths).map(|(cell, width)| wrap(&cell.text, *width)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    for at in 0..height {
        let mut line = String::new();
        // Blanks are owed until something follows, so that no line ends in them.
        let mut owed = 0;
        for ((lines, cell), width) in cells.iter().zip(row).zip(widths) {
            let text = lines.get(at).map_or("", String::as_str);
            if !text.is_empty() {
                line.push_str(&" ".repeat(owed));
                owed = 0;
                line.push_str(&cell.tint.or_plain(colour).paint(text));
            }
            owed += width - text.chars().count() + GAP;
        }
        out.push_str(&line);
        out.push('\n');
    }
}

/// Breaks text at blanks, or behind a slash, or where it must.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.trim_end().chars().collect();
    while rest.len() > width {
        let blank = rest[..=width].iter().rposition(|c| *c == ' ').filter(|at| *at > 0);
        let slash = rest[..width].iter().rposition(|c| *c == '/').filter(|at| *at > width / 2).map(|at| at + 1);
        let end = blank.or(slash).unwrap_or(width);
        lines.push(rest[..end].iter().collect());
        rest.drain(..end);
        let blanks = rest.iter().take_while(|c| **c == ' ').count();
        rest.drain(..blanks);
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest.into_iter().collect());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_at_blanks_then_slashes_then_anywhere() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("/aaaaaa/bbbb/cccc", 10), ["/aaaaaa/", "bbbb/cccc"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("", 3), [""]);
    }

    #[test]
    fn a_table_never_passes_the_width() {
        let row = || [Cell::new(&"word ".repeat(30)), Cell::new(&"x".repeat(90)), Cell::new("short")];
        let text = render(["a", "b", "c"], [row(), row()].into_iter(), false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
