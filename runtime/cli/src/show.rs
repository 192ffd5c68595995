//! What people see of the answers. Input: messages. Output: text or JSON on standard output. Nothing that a sandbox chose reaches a terminal as it is.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use apex_api::v1::{
    Group, JsonLine, LimitsInForce, MailboxRule, MemberState, Pool, Sandbox, SandboxStats, ServiceState, StatsResponse,
    Suggestion, Transition, TreeResponse, Usage,
};
use apex_core::{amount, escape};
use serde::Serialize;
use serde_json::Value;

use crate::table::{bytes, moment, sheet, span, table};

/// Characters of a command that a table shows.
const COMMAND_MAX: usize = 60;

/// Text as it is: the caller made it harmless.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")
}

/// A value on several lines.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    print(&format!("{}\n", tame(&text)))
}

/// A value in one line, without its end.
pub fn compact(value: &impl Serialize) -> Result<String> {
    Ok(tame(&serde_json::to_string(value).context("writing JSON")?))
}

/// A value on one line.
pub fn line(line: &JsonLine) -> Result<()> {
    let text: String = line.json.lines().collect();
    print(&format!("{}\n", tame(&text)))
}

/// JSON that means the same and that a terminal takes for text: what it would act on stands only within strings, where an escape can stand for it.
fn tame(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !escape::is_hostile(c) {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}

/// The values of lines that are JSON.
pub fn values(lines: &[JsonLine]) -> Result<Vec<Value>> {
    let parse = |line: &JsonLine| serde_json::from_str(&line.json).context("apexd sent a line that is no JSON");
    lines.iter().map(parse).collect()
}

/// `apex ls`.
pub fn sandboxes(sandboxes: &[Sandbox]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let row = |sandbox: &Sandbox| {
        let pid = if sandbox.pid == 0 { String::new() } else { sandbox.pid.to_string() };
        let age = span(now.saturating_sub(sandbox.created_ms));
        let command: String = sandbox.command.join(" ").chars().take(COMMAND_MAX).collect();
        let (id, name) = (sandbox.id.clone(), sandbox.name.clone());
        vec![id, name, mode(sandbox), state(sandbox), pid, age, command]
    };
    let rows: Vec<_> = sandboxes.iter().map(row).collect();
    table(&["ID", "NAME", "MODE", "STATE", "PID", "AGE", "COMMAND"], &rows)
}

/// With the isolation level, where it is less than full.
fn mode(sandbox: &Sandbox) -> String {
    match sandbox.level.as_str() {
        "" | "full" => sandbox.mode.clone(),
        level => format!("{} ({level})", sandbox.mode),
    }
}

fn state(sandbox: &Sandbox) -> String {
    match sandbox.exit_code {
        Some(code) => format!("{} ({code})", sandbox.state),
        None => sandbox.state.clone(),
    }
}

fn mailboxes(sandbox: &Sandbox) -> String {
    let words = |rule: &MailboxRule| {
        let ways = [(rule.send, "send"), (rule.receive, "receive")];
        let ways: Vec<&str> = ways.into_iter().filter(|(may, _)| *may).map(|(_, way)| way).collect();
        format!("{} ({}, {})", rule.name, ways.join(" and "), rule.control)
    };
    sandbox.mailboxes.iter().map(words).collect::<Vec<_>>().join(", ")
}

/// `apex inspect`: what is empty is left out.
pub fn sandbox(sandbox: &Sandbox) -> String {
    let time = |ms: u64| if ms == 0 { String::new() } else { moment(ms) };
    let pid = if sandbox.pid == 0 { String::new() } else { sandbox.pid.to_string() };
    let labels: Vec<String> = sandbox.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut labels = labels;
    labels.sort_unstable();
    let rows = [
        ("id", sandbox.id.clone()),
        ("name", sandbox.name.clone()),
        ("mode", sandbox.mode.clone()),
        ("born in", sandbox.born_mode.clone()),
        ("level", sandbox.level.clone()),
        ("state", sandbox.state.clone()),
        ("pid", pid),
        ("uid", sandbox.uid.to_string()),
        ("command", sandbox.command.join(" ")),
        ("created", time(sandbox.created_ms)),
        ("started", time(sandbox.started_ms)),
        ("ended", time(sandbox.ended_ms)),
        ("exit code", sandbox.exit_code.map(|code| code.to_string()).unwrap_or_default()),
        ("ending", sandbox.ending.clone()),
        ("error", sandbox.error.clone()),
        ("limits", sandbox.limits.as_ref().map(limits).unwrap_or_default()),
        ("born with", sandbox.limits_born.as_ref().map(limits).unwrap_or_default()),
        ("uses", sandbox.usage.as_ref().map(uses).unwrap_or_default()),
        ("limit hits", sandbox.usage.as_ref().map(hits).unwrap_or_default()),
        ("network", sandbox.network.clone()),
        ("switched off", sandbox.switched_off.join(", ")),
        ("watch", sandbox.watch.clone()),
        ("findings", sandbox.findings.to_string()),
        ("tightened by", sandbox.tightened_by.clone()),
        ("limit reached", sandbox.limit_reached.clone()),
        ("labels", labels.join(" ")),
        ("mailboxes", mailboxes(sandbox)),
        ("group", sandbox.group.clone()),
        ("member", sandbox.member.clone()),
        ("predecessor", sandbox.predecessor.clone()),
        ("successor", sandbox.successor.clone()),
    ];
    let rows: Vec<_> = rows.into_iter().filter(|(_, word)| !word.is_empty()).collect();
    sheet(&rows)
}

fn limits(limits: &LimitsInForce) -> String {
    let or_unlimited = |word: Option<String>| word.unwrap_or_else(|| "unlimited".to_owned());
    format!(
        "memory {}, tasks {}, cpu {}",
        or_unlimited(limits.memory_bytes.map(amount::size)),
        or_unlimited(limits.tasks.map(|tasks| tasks.to_string())),
        or_unlimited(limits.cpu_percent.map(|percent| format!("{percent}%"))),
    )
}

fn uses(usage: &Usage) -> String {
    let parts = [
        ("memory", usage.memory_bytes.map(bytes)),
        ("at most", usage.memory_peak_bytes.map(bytes)),
        ("tasks", usage.tasks.map(|tasks| tasks.to_string())),
        ("cpu", usage.cpu_us.map(seconds)),
    ];
    let known = parts.into_iter().filter_map(|(name, word)| Some(format!("{name} {}", word?)));
    known.collect::<Vec<_>>().join(", ")
}

/// The steps of a change, one to a line.
pub fn transition(transition: &Transition) -> String {
    let mut out = format!("{} -> {}\n", escape::text(&transition.from), escape::text(&transition.to));
    for step in &transition.steps {
        let mark = if step.done { "done" } else { "not done" };
        out.push_str(&format!("  {mark:8}  {}", escape::text(&step.what)));
        if !step.words.is_empty() {
            out.push_str(&format!(": {}", escape::text(&step.words)));
        }
        out.push('\n');
    }
    for (mark, lines) in [("carried", &transition.carried_over), ("left", &transition.left_behind)] {
        for line in lines {
            out.push_str(&format!("  {mark:8}  {}\n", escape::text(line)));
        }
    }
    if transition.applied && !transition.words.is_empty() {
        out.push_str(&format!("{}\n", escape::text(&transition.words)));
    }
    out
}

/// `apex tree`.
pub fn tree(tree: &TreeResponse) -> String {
    let mut out = "apexd\n".to_owned();
    let mut twigs = beneath(tree, "");
    twigs.extend(tree.groups.iter().map(group));
    branch(&mut out, &twigs, "");
    out
}

/// A line of a tree and what hangs beneath it.
struct Twig {
    words: String,
    beneath: Vec<Twig>,
}

/// The services that are part of this one.
fn beneath(tree: &TreeResponse, under: &str) -> Vec<Twig> {
    let services = tree.services.iter().filter(|service| service.under == under);
    let twig = |service: &ServiceState| {
        let mut words = format!("{}  {}", escape::text(&service.name), escape::text(&service.state));
        if service.restarts > 0 {
            words.push_str(&format!("  restarts: {}", service.restarts));
        }
        if !service.words.is_empty() {
            words.push_str(&format!("  {}", escape::text(&service.words)));
        }
        let beneath = if service.name.is_empty() { Vec::new() } else { beneath(tree, &service.name) };
        Twig { words, beneath }
    };
    services.map(twig).collect()
}

fn group(group: &Group) -> Twig {
    let member = |member: &MemberState| {
        let mut words = format!("{}  {}", escape::text(&member.name), escape::text(&member.state));
        if member.restarts > 0 {
            words.push_str(&format!("  restarts: {}", member.restarts));
        }
        for more in [&member.sandbox, &member.words] {
            words.push_str(&if more.is_empty() { String::new() } else { format!("  {}", escape::text(more)) });
        }
        Twig { words, beneath: Vec::new() }
    };
    let words = [&group.name, &group.state, &group.strategy, &group.words].map(|word| escape::text(word).into_owned());
    Twig {
        words: format!("group {}", words.join("  ").trim_end()),
        beneath: group.members.iter().map(member).collect(),
    }
}

fn branch(out: &mut String, twigs: &[Twig], indent: &str) {
    for (at, twig) in twigs.iter().enumerate() {
        let (mark, further) = if at + 1 == twigs.len() { ("`--", "    ") } else { ("|--", "|   ") };
        out.push_str(&format!("{indent}{mark} {}\n", twig.words));
        branch(out, &twig.beneath, &format!("{indent}{further}"));
    }
}

/// `apex mode suggest`.
pub fn suggestion(suggestion: &Suggestion) -> String {
    let mut out = format!("{}\n", escape::text(&suggestion.mode));
    for reason in &suggestion.because {
        out.push_str(&format!("  {}\n", escape::text(reason)));
    }
    out
}

/// `apex pool`.
pub fn pools(pools: &[Pool]) -> String {
    let rows: Vec<Vec<String>> = pools
        .iter()
        .map(|pool| {
            vec![
                pool.id.clone(),
                pool.uid.to_string(),
                pool.mode.clone(),
                pool.profile.clone(),
                pool.program.clone(),
                format!("{}/{}", pool.ready, pool.wanted),
                pool.hits.to_string(),
                pool.misses.to_string(),
                pool.error.clone(),
            ]
        })
        .collect();
    table(&["ID", "UID", "MODE", "PROFILE", "PROGRAM", "READY", "HITS", "MISSES", "ERROR"], &rows)
}

/// `apex stats`.
pub fn stats(stats: &StatsResponse) -> String {
    let row = |one: &SandboxStats| {
        let usage = one.usage.unwrap_or_default();
        let size = |count: Option<u64>| count.map(bytes).unwrap_or_default();
        let both = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (None, None) => String::new(),
            _ => format!("{} / {}", size(one), size(other)),
        };
        vec![
            one.id.clone(),
            one.name.clone(),
            one.mode.clone(),
            one.state.clone(),
            size(one.memory_bytes),
            size(usage.memory_peak_bytes),
            one.tasks.map(|tasks| tasks.to_string()).unwrap_or_default(),
            one.cpu_us.map(seconds).unwrap_or_default(),
            usage.cpu_throttled_us.map(seconds).unwrap_or_default(),
            both(usage.io_read_bytes, usage.io_written_bytes),
            both(usage.network_received_bytes, usage.network_sent_bytes),
            hits(&usage),
            one.findings.to_string(),
        ]
    };
    let headings = [
        "ID",
        "NAME",
        "MODE",
        "STATE",
        "MEMORY",
        "PEAK",
        "TASKS",
        "CPU",
        "THROTTLED",
        "IO R/W",
        "NET IN/OUT",
        "LIMIT HITS",
        "FINDINGS",
    ];
    let rows: Vec<_> = stats.sandboxes.iter().map(row).collect();
    table(&headings, &rows)
}

fn seconds(us: u64) -> String {
    format!("{}.{:02}s", us / 1_000_000, us / 10_000 % 100)
}

/// How often which limit was met; what never was is left out.
fn hits(usage: &Usage) -> String {
    let kinds = [("memory", usage.memory_limit_hits), ("oom", usage.oom_kills), ("tasks", usage.tasks_refused)];
    let met = kinds.into_iter().filter_map(|(kind, count)| Some((kind, count.filter(|count| *count > 0)?)));
    met.map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}

/// `apex findings`: OCSF Detection Findings (docs/reference/findings.md).
pub fn findings(findings: &[Value]) -> String {
    let severity = |id: Option<u64>| match id {
        Some(1) => "informational",
        Some(2) => "low",
        Some(3) => "medium",
        Some(4) => "high",
        Some(5) => "critical",
        _ => "unknown",
    };
    let row = |finding: &Value| {
        let about = &finding["finding_info"];
        let attack = &about["attacks"][0];
        let technique = [&attack["sub_technique"]["uid"], &attack["technique"]["uid"]];
        let technique = technique.into_iter().find_map(Value::as_str).unwrap_or_default();
        vec![
            finding["time"].as_u64().map(moment).unwrap_or_default(),
            severity(finding["severity_id"].as_u64()).to_owned(),
            technique.to_owned(),
            about["title"].as_str().or(finding["message"].as_str()).unwrap_or_default().to_owned(),
        ]
    };
    let rows: Vec<_> = findings.iter().map(row).collect();
    table(&["TIME", "SEVERITY", "TECHNIQUE", "FINDING"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_for_a_terminal_means_the_same() {
        let value = json!({ "a\u{9b}": "b\u{202e}\u{e0001}\u{7f}\n" });
        let text = tame(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.chars().any(|c| c != '\n' && escape::is_hostile(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn findings_are_a_line_each() {
        let finding = json!({ "time": 0, "severity_id": 4, "finding_info": {
            "title": "reads\u{1b}secrets", "attacks": [{ "technique": { "uid": "T1552" } }] } });
        let text = findings(&[finding]);
        assert!(text.ends_with("1970-01-01T00:00:00Z  high      T1552      reads\\u{1b}secrets\n"), "{text}");
    }

    #[test]
    fn a_change_tells_its_steps() {
        let step = |what: &str, done| apex_api::v1::Step { what: what.to_owned(), done, words: "why".to_owned() };
        let change = Transition {
            from: "hybrid".to_owned(),
            to: "isolation".to_owned(),
            steps: vec![step("limits", true), step("network", false)],
            ..Default::default()
        };
        assert_eq!(transition(&change), "hybrid -> isolation\n  done      limits: why\n  not done  network: why\n");
    }
}
