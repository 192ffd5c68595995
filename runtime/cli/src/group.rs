//! Groups: from a file to what apexd is asked for, and back in words. Input: TOML, whose paths begin at the directory of the file. What the words mean is apexd's to judge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_api::v1::{CreateRequest, Group, GroupMember, HealthCheck, Limits, UpRequest};
use apex_core::supervise::{self, MemberFile};

use crate::request::{absolute, grant, load, policy_text};
use crate::table::table as lines;

/// What a file asks for.
///
/// # Errors
/// A file that cannot be read or is no group, a policy file that cannot be read, a path that cannot be made absolute.
pub fn up(file: &Path) -> Result<UpRequest> {
    let text = load(file).with_context(|| format!("reading the group {}", file.display()))?;
    let Some(text) = text else { bail!("there is no file {}; give one that describes a group", file.display()) };
    let group = supervise::read(&text, &file.display().to_string())?;
    let dir = directory(file)?;
    let members = group.members.into_iter().map(|one| member(&dir, one)).collect::<Result<_>>()?;
    Ok(UpRequest {
        name: group.name,
        strategy: group.strategy.name().to_owned(),
        restarts: Some(group.intensity.restarts),
        within_ms: group.intensity.within_ms,
        back_off_first_ms: group.back_off.first_ms,
        back_off_max_ms: group.back_off.max_ms,
        members,
    })
}

fn directory(file: &Path) -> Result<String> {
    let path = std::path::absolute(file).with_context(|| format!("finding {}", file.display()))?;
    let dir = path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let text = dir.to_str().map(str::to_owned);
    text.with_context(|| format!("the directory {} is not UTF-8, and apexd takes text", dir.display()))
}

fn member(dir: &str, member: MemberFile) -> Result<GroupMember> {
    let grants = |given: &[String]| given.iter().map(|text| grant(dir, text)).collect::<Result<Vec<_>>>();
    let about = |error: anyhow::Error| error.context(format!("member {}", member.name));
    let policy_toml = match member.policy.as_str() {
        "" => String::new(),
        path => policy_text(Path::new(&absolute(dir, path))).map_err(about)?,
    };
    let pairs = |map: &BTreeMap<String, String>| map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let sandbox = CreateRequest {
        name: String::new(),
        mode: member.mode.clone(),
        level: member.level.clone(),
        profile: member.profile.clone(),
        policy_toml,
        command: member.command.clone(),
        env: pairs(&member.env),
        cwd: if member.cwd.is_empty() { dir.to_owned() } else { absolute(dir, &member.cwd) },
        ro: grants(&member.ro).map_err(about)?,
        rw: grants(&member.rw).map_err(about)?,
        tmpfs: member.tmpfs.clone(),
        deny: member.deny.iter().map(|path| absolute(dir, path)).collect(),
        optional: member.optional.clone(),
        net: member.net.clone(),
        limits: Some(Limits {
            memory: member.limits.memory.0.clone(),
            tasks: member.limits.tasks.0.clone(),
            cpu: member.limits.cpu.0.clone(),
            time: member.limits.time.0.clone(),
        }),
        watch: member.watch.clone(),
        on_finding: member.on_finding.clone(),
        on_limit: member.on_limit.clone(),
        wait_for_room: member.wait_for_room.clone(),
        labels: member.labels.clone().into_iter().collect(),
        workdir: member.workdir.clone(),
        ..Default::default()
    };
    Ok(GroupMember {
        name: member.name,
        sandbox: Some(sandbox),
        restart: member.restart.name().to_owned(),
        after: member.after,
        stop_within_ms: member.stop_within.0.unwrap_or_default(),
        health: member.health.map(|health| HealthCheck {
            command: health.command,
            interval_ms: health.interval.0.unwrap_or_default(),
            timeout_ms: health.timeout.0.unwrap_or_default(),
            retries: health.retries.unwrap_or_default(),
        }),
    })
}

/// `apex groups`: a line for each member.
pub fn table(groups: &[Group]) -> String {
    let mut rows = Vec::new();
    for group in groups {
        for member in &group.members {
            rows.push(vec![
                group.name.clone(),
                group.state.clone(),
                member.name.clone(),
                member.state.clone(),
                member.sandbox.clone(),
                member.restarts.to_string(),
                member.words.clone(),
            ]);
        }
        if !group.words.is_empty() {
            let none = String::new;
            rows.push(vec![
                group.name.clone(),
                group.state.clone(),
                none(),
                none(),
                none(),
                none(),
                group.words.clone(),
            ]);
        }
    }
    lines(&["GROUP", "STATE", "MEMBER", "STATE", "SANDBOX", "RESTARTS", "WORDS"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_the_directory_of_the_file() {
        let dir = std::env::temp_dir().join(format!("apex-group-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("p.toml"), "mode = \"hybrid\"\n").unwrap();
        let text = "[group]\nname = \"g\"\n[[member]]\nname = \"a\"\ncommand = [\"b\"]\nrw = [\"data:/data\", \"/x\"]\npolicy = \"p.toml\"\nenv = { K = \"v=w\" }\nlimits = { tasks = 7 }\non_limit = [\"tasks=warn\"]\nwait_for_room = \"5s\"\n";
        std::fs::write(dir.join("g.toml"), text).unwrap();
        let asked = up(&dir.join("g.toml")).unwrap();
        let sandbox = asked.members[0].sandbox.clone().unwrap();
        let at = dir.to_str().unwrap();
        assert_eq!(sandbox.rw, [format!("{at}/data:/data"), "/x".to_owned()]);
        assert_eq!((sandbox.cwd.as_str(), sandbox.policy_toml.as_str()), (at, "mode = \"hybrid\"\n"));
        assert_eq!((sandbox.env, sandbox.limits.unwrap().tasks.as_str()), (vec!["K=v=w".to_owned()], "7"));
        assert_eq!((sandbox.on_limit, sandbox.wait_for_room.as_str()), (vec!["tasks=warn".to_owned()], "5s"));
        assert_eq!((asked.restarts, asked.within_ms, asked.members[0].restart.as_str()), (Some(5), 60_000, "always"));
        std::fs::remove_file(dir.join("p.toml")).unwrap();
        let error = format!("{:#}", up(&dir.join("g.toml")).unwrap_err());
        assert!(error.contains("member a") && error.contains("p.toml"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = up(Path::new("/no/such/group.toml")).unwrap_err().to_string();
        assert!(error.contains("/no/such/group.toml"), "{error}");
    }
}
