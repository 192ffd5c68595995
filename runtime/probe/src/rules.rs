//! The verbs `rules` and `import`: which rules there are, whether a file of rules can be used and passes its cases, what rules find in a
//! record of events, and rules of Sigma as rules of ours. Input: files; output: text, and 1 as exit code when something is wrong with them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_core::detect::{self, Engine, FILES, Rules, case, sigma};
use apex_core::escape;
use apex_core::event::{Event, What};
use apex_core::finding::{Detector, Finding};

use crate::yaml;

/// A line of a record: an event has bounds of its own, far below.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// `rules list|check|test|replay [ARGS]`.
pub fn run(args: Vec<OsString>) -> Result<u8> {
    let mut words = args.into_iter();
    let word = words.next().map(|word| word.to_string_lossy().into_owned());
    let rest: Vec<PathBuf> = words.map(PathBuf::from).collect();
    match word.as_deref() {
        Some("list") => list(&rest),
        Some("check") => check(&rest),
        Some("test") => test(&rest),
        Some("replay") => replay(&rest),
        _ => bail!("after `rules` comes list [FILE...], check FILE..., test [FILE...] or replay EVENTS [FILE...]"),
    }
}

/// `import sigma FILE... [-o DIR]`.
pub fn import(args: Vec<OsString>) -> Result<u8> {
    let mut words = args.into_iter();
    if words.next().as_deref() != Some("sigma".as_ref()) {
        bail!("after `import` comes sigma FILE... [-o DIR]: no other form is translated");
    }
    let (mut files, mut directory) = (Vec::new(), None);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-o") => directory = Some(PathBuf::from(words.next().context("a directory follows `-o`")?)),
            _ => files.push(PathBuf::from(word)),
        }
    }
    if files.is_empty() {
        bail!("name at least one file: apex-probe import sigma FILE... [-o DIR]");
    }
    let mut failed = 0;
    for file in &files {
        failed += import_file(file, directory.as_deref())?;
    }
    Ok(u8::from(failed > 0))
}

fn list(files: &[PathBuf]) -> Result<u8> {
    let mut text = String::new();
    for rule in all(files)?.about() {
        let severity = format!("{:?}", rule.severity).to_lowercase();
        let line = format!("{:<32} {severity:<14} {:<32} {}\n", rule.id, rule.techniques.join(","), rule.title);
        text.push_str(&line);
    }
    say(&text)
}

fn check(files: &[PathBuf]) -> Result<u8> {
    if files.is_empty() {
        bail!("name at least one file of rules: apex-probe rules check FILE...");
    }
    let rules = all(files)?;
    rules.check()?;
    say(&format!("{} rules, those that are built in included; no complaint\n", rules.about().count()))
}

/// Runs the cases of files, or of the built-in rules.
fn test(files: &[PathBuf]) -> Result<u8> {
    let mut reports = Vec::new();
    if files.is_empty() {
        for (name, text, cases) in FILES {
            reports.push((*name).to_owned());
            let report = case::run(name, text, (&cases_of(Path::new(name)).display().to_string(), cases))?;
            tell(&mut reports, &report);
        }
    }
    let mut is_good = true;
    for file in files {
        let cases = cases_of(file);
        let report = case::run(
            &file.display().to_string(),
            &text_of(file)?,
            (&cases.display().to_string(), &text_of(&cases).context("the cases stand beside the rules")?),
        )?;
        reports.push(file.display().to_string());
        is_good &= report.is_good();
        tell(&mut reports, &report);
    }
    say(&(reports.join("\n") + "\n"))?;
    Ok(u8::from(!is_good))
}

fn tell(lines: &mut Vec<String>, report: &case::Report) {
    lines.push(format!("  {} cases passed, {} failed", report.passed, report.failed.len()));
    lines.extend(report.failed.iter().chain(&report.lacking).map(|words| format!("  {words}")));
}

/// What the rules find in a record, as lines like those of a run.
fn replay(args: &[PathBuf]) -> Result<u8> {
    let Some((record, files)) = args.split_first() else {
        bail!("name a record of events: apex-probe rules replay EVENTS [FILE...]");
    };
    let file = File::open(record).with_context(|| format!("cannot read {}", record.display()))?;
    let mut lines = BufReader::new(file);
    let rules = all(files)?;
    let mut engine: Option<Engine> = None;
    let (mut count, mut found) = (0_u64, 0_u64);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            break;
        }
        count += 1;
        let event: Event =
            serde_json::from_str(&line).with_context(|| format!("{}:{count} is no event", record.display()))?;
        let profile = match &event.what {
            What::Start(start) => start.profile.clone(),
            _ => None,
        };
        let engine = engine.get_or_insert_with(|| Engine::new(rules.clone(), profile.as_deref()));
        for finding in engine.observe(&event) {
            found += 1;
            say(&words_of(&finding))?;
        }
    }
    say(&format!("{count} events, {found} findings\n"))
}

fn words_of(finding: &Finding) -> String {
    let severity = format!("{:?}", finding.severity).to_lowercase();
    let rule = match &finding.detector {
        Detector::Rule { id, .. } => id.as_str(),
        Detector::Baseline { .. } => "baseline",
    };
    let process = finding.ancestry.first();
    let process =
        process.map(|process| format!("{} (pid {})", escape::text(&process.comm), process.pid)).unwrap_or_default();
    format!("{severity}: {} [{rule}]: {process}, {} events\n", finding.title, finding.count)
}

fn import_file(file: &Path, directory: Option<&Path>) -> Result<usize> {
    let name = file.display();
    let documents = yaml::documents(&text_of(file)?).with_context(|| format!("{name} is not readable as YAML"))?;
    let mut failed = 0;
    for document in &documents {
        match sigma::translate(document) {
            Ok(translation) => {
                let remarks = translation.remarks.iter().map(|remark| format!("{name}: {remark}\n"));
                complain(&remarks.collect::<String>())?;
                keep(&translation, directory)?;
            }
            Err(error) => {
                failed += 1;
                complain(&format!("{name}: {error}\n"))?;
            }
        }
    }
    if documents.is_empty() {
        failed += 1;
        complain(&format!("{name}: there is no rule in it\n"))?;
    }
    Ok(failed)
}

fn keep(translation: &sigma::Translation, directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else {
        return say(&format!("{}\n", translation.text)).map(drop);
    };
    let path = directory.join(format!("{}.toml", translation.id));
    // An existing file may have been worked on by hand.
    let mut file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(translation.text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    say(&format!("{}\n", path.display())).map(drop)
}

/// The built-in rules and those of files.
fn all(files: &[PathBuf]) -> Result<Rules> {
    let mut rules = Rules::built_in();
    for file in files {
        rules.add(Rules::parse(&file.display().to_string(), &text_of(file)?)?)?;
    }
    Ok(rules)
}

fn cases_of(rules: &Path) -> PathBuf {
    rules.with_extension("cases.toml")
}

fn text_of(file: &Path) -> Result<String> {
    let size = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    let most = yaml::FILE_SIZE_MAX.min(detect::FILE_SIZE_MAX as u64);
    if size > most {
        bail!("{} has {size} bytes; at most {most} are accepted", file.display());
    }
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn say(text: &str) -> Result<u8> {
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(0)
}

fn complain(text: &str) -> Result<()> {
    Ok(std::io::stderr().lock().write_all(text.as_bytes())?)
}
