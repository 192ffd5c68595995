//! npm installs a local package and node uses it, with files, children, threads, hashes and HTTP, under the profile `node`.

use anyhow::Result;
use apex_tests::programs::{Job, missing_program};
use apex_tests::skip;

#[test]
fn npm_installs_a_package_and_node_runs_it() -> Result<()> {
    if let Some(reason) = missing_program(&["node", "npm"]) {
        skip!(reason, Ok(()));
    }
    Job::new("node", "node", &["sh", "job.sh"])?.succeeds().map(drop)
}
