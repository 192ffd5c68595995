//! A mode for what a sandbox was seen to do (`core/control/suggest`), from its events and findings.

use std::sync::Arc;

use apex_api::v1::{JsonLine, Suggestion};
use apex_api::{Error, Kind, Streamed};
use apex_core::control::{Usage, suggest};
use apex_core::event::Event;
use apex_core::summary::Summary;
use serde_json::Value;
use tokio_stream::StreamExt;

use crate::bell::{EVENTS, FINDINGS};
use crate::run;
use crate::sandbox::Sandbox;

/// High, as OCSF numbers severities.
const HIGH: u64 = 4;

/// Reads what was seen of it, and proposes.
pub async fn mode(sandbox: &Arc<Sandbox>) -> Result<Suggestion, Error> {
    let record = sandbox.record();
    if record.watch == "off" {
        let words = format!("nothing was seen of sandbox {}: it is not watched; make one with --watch", record.id);
        return Err(Error::new(Kind::Conflict, words));
    }
    let mut summary = Summary::default();
    let mut events = 0;
    each(run::lines(Arc::clone(sandbox), EVENTS, false), |line| {
        // A line that is none belongs to the sandbox's user, like the file.
        if let Ok(event) = serde_json::from_str::<Event>(line) {
            summary.observe(&event);
            events += 1;
        }
    })
    .await?;
    let mut findings = 0;
    each(run::lines(Arc::clone(sandbox), FINDINGS, false), |line| {
        let severity = serde_json::from_str::<Value>(line).ok().and_then(|finding| finding["severity_id"].as_u64());
        findings += u64::from(severity >= Some(HIGH));
    })
    .await?;
    let suggestion = suggest(&Usage::of(&summary.account(), &record.cwd, findings));
    Ok(Suggestion { mode: suggestion.mode.name().to_owned(), because: suggestion.because, events })
}

async fn each(mut lines: Streamed<JsonLine>, mut take: impl FnMut(&str)) -> Result<(), Error> {
    while let Some(line) = lines.next().await {
        take(&line?.json);
    }
    Ok(())
}
