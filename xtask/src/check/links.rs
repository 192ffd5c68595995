//! Every relative link in the documents leads to a file that exists.

use std::path::Path;

use anyhow::Result;

use super::{Complaint, files, read, relative};

pub fn check(root: &Path) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for document in files(root, "md")? {
        let dir = document.parent().unwrap_or(root);
        for (line, target) in targets(&read(&document)?) {
            if !dir.join(&target).exists() {
                complaints.push(format!("{}:{line}: the link to {target} leads nowhere", relative(root, &document)));
            }
        }
    }
    Ok(complaints)
}

/// The files that a document links to, with the line of each link. Code blocks hold no links.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or_default();
            let is_elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !is_elsewhere {
                found.push((number + 1, target.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_to_files_are_followed() {
        let text = "see [a](docs/a.md#part) and [b](https://example.org)\n```\n[c](no)\n```\n[d](#here) [e](e.md)";
        assert_eq!(targets(text), [(1, "docs/a.md".to_owned()), (5, "e.md".to_owned())]);
    }
}
