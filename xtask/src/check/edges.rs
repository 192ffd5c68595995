//! Dependency edges that the design does not draw are forbidden.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Complaint;
use crate::build;

/// Each crate of ours and what it may stand on.
const EDGES: &[(&str, &[&str])] = &[
    ("apex-core", &[]),
    ("apex-sys", &[]),
    ("apex-jail", &["apex-core", "apex-sys"]),
    ("apex-run", &["apex-core", "apex-sys", "apex-jail"]),
    ("apex-probe", &["apex-core", "apex-sys"]),
    ("apex-wasm", &["apex-core"]),
    ("apex-devtools", &["apex-core", "apex-sys"]),
    ("apex-api", &[]),
    // Nothing that confines: the daemon acts by asking keepers, each an apex-run (docs/adr/0012).
    ("apexd", &["apex-core", "apex-sys", "apex-api"]),
    ("apex-cli", &["apex-core", "apex-api"]),
    ("apex-oci", &["apex-core", "apex-sys", "apex-jail"]),
    ("containerd-shim-apex-v2", &["apex-core", "apex-sys", "apex-jail"]),
    // Not part of the product: the tests may look into the libraries; xtask must build before what it installs is there.
    ("apex-tests", &["apex-core", "apex-sys", "apex-jail", "apex-run", "apex-probe"]),
    ("xtask", &[]),
];

/// Heavy dependencies and the one crate that may name each.
const HEAVY: &[(&str, &str)] = &[("aya", "apex-probe"), ("wasmtime", "apex-wasm")];

pub fn check() -> Result<Vec<Complaint>> {
    let metadata = build::metadata()?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(packages.iter().flat_map(package).collect())
}

fn package(package: &Value) -> Vec<Complaint> {
    let name = package["name"].as_str().unwrap_or_default();
    let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
        return vec![format!(
            "crate {name} is not in the design; draw it in xtask/src/check/edges.rs and write down why in docs/adr/"
        )];
    };
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    // Test-only edges into the shared harness would turn around the arrows just as well: they count too.
    let names = dependencies.filter_map(|dependency| dependency["name"].as_str());
    names.filter_map(|dependency| refuse(name, allowed, dependency)).collect()
}

fn refuse(name: &str, allowed: &[&str], dependency: &str) -> Option<Complaint> {
    let is_ours = EDGES.iter().any(|(known, _)| *known == dependency);
    if is_ours && !allowed.contains(&dependency) {
        return Some(format!("{name} depends on {dependency}, which the design does not draw"));
    }
    let keeper = HEAVY.iter().find(|(heavy, keeper)| dependency.starts_with(heavy) && *keeper != name);
    keeper.map(|(heavy, keeper)| format!("{name} depends on {dependency}; only {keeper} may name {heavy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, dependency: &str, complains: bool) {
        let value = serde_json::json!({ "name": name, "dependencies": [{ "name": dependency }] });
        assert_eq!(!package(&value).is_empty(), complains, "{name} -> {dependency}");
    }

    #[test]
    fn an_edge_that_is_not_drawn_is_refused() {
        check("apex-jail", "apex-core", false);
        check("apex-core", "apex-sys", true);
        check("apex-run", "aya-obj", true);
        check("apex-probe", "aya", false);
        check("apexd", "apex-jail", true);
        check("apex-misc", "libc", true);
    }
}
