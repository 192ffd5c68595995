//! `apex-probe model`: baselines of behaviour, learned from records of events, shown, tried and reset.
//!
//! Input: files that `--events` wrote. Output: words on standard output, model files. What is usual and what is not is `apex-core`'s to say
//! ([`apex_core::baseline`]).

mod records;
mod show;
pub mod store;
pub mod watched;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use apex_core::baseline::{Model, Observer, RunSummary};
use apex_core::escape;
use apex_core::finding::Detector;

use store::Store;

const USAGE: &str = "usage: apex-probe model train [-o FILE] EVENTS...
       apex-probe model show FILE|NAME
       apex-probe model score FILE|NAME EVENTS...
       apex-probe model list
       apex-probe model reset NAME|--all";

/// The code when a run is unusual.
const UNUSUAL: u8 = 1;

/// Does what the words after `model` say; the value is the exit code.
pub fn run(words: Vec<OsString>) -> anyhow::Result<u8> {
    let mut words = words.into_iter();
    let verb = words.next().map(|word| word.to_string_lossy().into_owned());
    let rest: Vec<PathBuf> = words.map(PathBuf::from).collect();
    match verb.as_deref() {
        Some("train") => train(&rest),
        Some("show") => show(&rest),
        Some("score") => score(&rest),
        Some("list") if rest.is_empty() => list(),
        Some("reset") => reset(&rest),
        _ => bail!("{USAGE}"),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn train(words: &[PathBuf]) -> anyhow::Result<u8> {
    let (output, files) = match words {
        [option, file, files @ ..] if option.as_os_str() == "-o" => (Some(file), files),
        files => (None, files),
    };
    if files.is_empty() || files.iter().any(|file| file.as_os_str().as_encoded_bytes().starts_with(b"-")) {
        bail!("{USAGE}");
    }
    let mut runs = Vec::new();
    for file in files {
        runs.extend(whole_runs(file)?);
    }
    if runs.is_empty() {
        bail!("no record of a whole run is in these files; a record begins with `start` and ends with `end`");
    }
    let Some(output) = output else {
        return train_stored(&runs);
    };
    let model = Model::learn(&runs).context("cannot learn one model from these records; give those of one policy")?;
    store::write(output, &model)?;
    say(&learned(&model, runs.len(), &output.display().to_string()))?;
    Ok(0)
}

fn train_stored(runs: &[RunSummary]) -> anyhow::Result<u8> {
    let store = Store::of_caller()?;
    let mut keys: Vec<_> = runs.iter().map(|run| &run.key).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let own: Vec<&RunSummary> = runs.iter().filter(|run| run.key == *key).collect();
        let model = store.absorb(key, &own)?;
        say(&learned(&model, own.len(), &store::name(key)))?;
    }
    Ok(0)
}

fn learned(model: &Model, runs: usize, place: &str) -> String {
    let state = show::state(model);
    format!("{}: learned from {runs} runs, {} in all; {state}\n", escape::text(place), model.absorbed)
}

/// The whole runs of a file; what cannot be used is told.
fn whole_runs(file: &Path) -> anyhow::Result<Vec<RunSummary>> {
    let read = records::read(file, None)?;
    tell(file, read.unreadable, "lines could not be read");
    tell(file, read.left_out, "runs are left out: a file may hold 256, of 64 sandboxes at a time");
    let (whole, cut): (Vec<_>, Vec<_>) = read.runs.into_iter().partition(|run| run.is_whole);
    tell(file, cut.len() as u64, "records have no end and are left out");
    Ok(whole.into_iter().map(|run| run.summary).collect())
}

fn tell(file: &Path, count: u64, what: &str) {
    if count > 0 {
        eprintln!("apex-probe: {}: {count} {what}", escape::path(file));
    }
}

/// A model by its file, or by its name in the store.
fn find(word: &Path) -> anyhow::Result<Model> {
    let name = word.to_str().filter(|name| store::is_name(name));
    if let Some(name) = name
        && !word.exists()
    {
        return Store::of_caller()?
            .by_name(name)?
            .with_context(|| format!("there is no model `{name}`; `apex-probe model list` tells which there are"));
    }
    store::read(word)?.with_context(|| format!("there is no file {}", escape::path(word)))
}

fn show(words: &[PathBuf]) -> anyhow::Result<u8> {
    let [word] = words else { bail!("{USAGE}") };
    say(&show::model(&find(word)?))?;
    Ok(0)
}

fn score(words: &[PathBuf]) -> anyhow::Result<u8> {
    let [word, files @ ..] = words else { bail!("{USAGE}") };
    if files.is_empty() {
        bail!("{USAGE}");
    }
    let model = find(word)?;
    if let Some(why) = Observer::new(Some(&model), model.key.clone()).mute() {
        bail!("{why}; train it with more");
    }
    let (mut judged, mut unusual) = (0, 0);
    for file in files {
        let read = records::read(file, Some(&model))?;
        tell(file, read.unreadable, "lines could not be read");
        tell(file, read.left_out, "runs are left out: a file may hold 256, of 64 sandboxes at a time");
        for run in &read.runs {
            let alarms = run.findings.iter().filter(|finding| matches!(finding.detector, Detector::Baseline { .. }));
            judged += 1;
            unusual += usize::from(alarms.count() > 0);
            say(&show::verdict(file, run))?;
        }
    }
    say(&format!("{unusual} of {judged} runs are unusual\n"))?;
    Ok(if unusual > 0 { UNUSUAL } else { 0 })
}

fn list() -> anyhow::Result<u8> {
    let store = Store::of_caller()?;
    for (name, model) in store.all()? {
        match model {
            Ok(model) => say(&show::row(&name, &model))?,
            Err(error) => say(&format!("{name}  {error:#}\n"))?,
        }
    }
    Ok(0)
}

fn reset(words: &[PathBuf]) -> anyhow::Result<u8> {
    let [word] = words else { bail!("{USAGE}") };
    let store = Store::of_caller()?;
    let names = match word.to_str() {
        Some("--all") => store.names()?,
        Some(name) if store::is_name(name) => vec![name.to_owned()],
        _ => bail!("`{}` is no name of a model; `apex-probe model list` tells them", escape::path(word)),
    };
    for name in names {
        if !store.remove(&name)? {
            bail!("there is no model `{name}`; `apex-probe model list` tells which there are");
        }
        say(&format!("{name}: forgotten\n"))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
