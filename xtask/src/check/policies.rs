//! Every path, system call group and capability that a shipped policy allows says why.

use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::{Complaint, files, read, relative};

/// Keys of `[filesystem]` that grant something.
const GRANTS: &[&str] = &["read", "write", "exec"];

pub fn check(root: &Path) -> Result<Vec<Complaint>> {
    let dir = root.join("policies");
    let mut complaints = Vec::new();
    for file in files(&dir, "toml")? {
        let name = relative(root, &file);
        let table: Table = read(&file)?.parse().with_context(|| format!("in {name}"))?;
        complaints.extend(unreasoned(&table).into_iter().map(|what| format!("{name}: {what} gives no reason")));
    }
    Ok(complaints)
}

fn unreasoned(table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    let files = table.get("filesystem").and_then(Value::as_table);
    for key in GRANTS {
        for grant in files.and_then(|files| files.get(*key)).and_then(Value::as_array).into_iter().flatten() {
            if !has_reason(grant) {
                found.push(format!("filesystem.{key} {}", grant.get("path").unwrap_or(grant)));
            }
        }
    }
    // policies/syscalls.toml: a table or an array of groups.
    match table.get("group").or_else(|| table.get("groups")) {
        Some(Value::Table(groups)) => {
            found
                .extend(groups.iter().filter(|(_, group)| !has_reason(group)).map(|(name, _)| format!("group {name}")));
        }
        Some(Value::Array(groups)) => {
            let bare = groups.iter().filter(|group| !has_reason(group));
            found.extend(bare.map(|group| format!("group {}", group.get("name").unwrap_or(group))));
        }
        _ => {}
    }
    found
}

fn has_reason(value: &Value) -> bool {
    let reason = value.get("reason").or_else(|| value.get("why"));
    reason.and_then(Value::as_str).is_some_and(|reason| !reason.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_without_a_reason_is_named() {
        let table: Table = r#"
            [filesystem]
            read = [{ path = "/usr", reason = "programs" }, { path = "/etc" }, "/opt"]
            [group.io]
            reason = "reads and writes"
            [group.odd]
            reason = " "
        "#
        .parse()
        .expect("valid TOML");
        assert_eq!(unreasoned(&table), ["filesystem.read \"/etc\"", "filesystem.read \"/opt\"", "group odd"]);
    }
}
