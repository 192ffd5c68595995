//! `--overlay`, `apex-run diff` and `apex-run commit`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use apex_core::amount;
use apex_core::overlay::{Change, ChangeKind, FileKind, MANIFEST, Manifest, VERSION};
use apex_core::plan::Plan;
use apex_core::policy::Policy;
use apex_jail::host::LiveHost;
use apex_jail::overlay::{self, OverlayError, Store};
use apex_run::escape;
use apex_run::options::Options;
use apex_sys::Errno;

use crate::session::{code, working_directory};

/// A manifest of as many changes as are listed, with long names.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// Places that are named when they could not be looked at.
const UNSEEN_SHOWN: usize = 5;

/// An overlay that outlives its run.
pub struct Kept {
    store: Store,
    manifest: Manifest,
}

/// What every version of a manifest has.
#[derive(serde::Deserialize)]
struct Head {
    version: u32,
}

/// Makes the directory of a plan that keeps its overlay.
pub fn begin(plan: &Plan, policy: &Policy, host: &LiveHost) -> Result<Option<Kept>> {
    let Some((store, manifest)) = overlay::prepare(plan, policy, host)? else { return Ok(None) };
    let kept = Kept { store, manifest };
    kept.write()?;
    Ok(Some(kept))
}

impl Kept {
    /// Looks the layers through, so that a commit knows what the host was like.
    pub fn end(mut self) -> Result<()> {
        overlay::look(&self.store, &mut self.manifest);
        self.store.clear_work(self.manifest.layers.len());
        self.write()?;
        let dir = escape::path(self.store.path());
        tell_unseen(&self.manifest);
        let kept = match self.manifest.changes.as_ref().map_or(0, Vec::len) {
            0 => format!("nothing was changed; {dir} can be removed"),
            1 => format!("1 change is kept; see it with `apex-run diff {dir}`, apply it with `apex-run commit {dir}`"),
            count => format!(
                "{count} changes are kept; see them with `apex-run diff {dir}`, apply them with `apex-run commit {dir}`"
            ),
        };
        let _ = writeln!(std::io::stderr(), "apex-run: {kept}");
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_string(&self.manifest).context("putting the manifest of the overlay together")?;
        Ok(self.store.write(MANIFEST, &text)?)
    }
}

/// What could not be looked at, in words.
fn tell_unseen(manifest: &Manifest) {
    let mut err = std::io::stderr();
    for unseen in manifest.unseen.iter().take(UNSEEN_SHOWN) {
        let place = escape::path(&manifest.place_of(unseen.layer, &unseen.path)).into_owned();
        let _ = writeln!(err, "apex-run: not looked at: {place}: {}", escape::text(&unseen.why));
    }
    let more = manifest.unseen.len().saturating_sub(UNSEEN_SHOWN) as u64 + manifest.more;
    if more > 0 {
        let _ = writeln!(
            err,
            "apex-run: {} not listed",
            match more {
                1 => "1 more change or place is".to_owned(),
                more => format!("{more} more changes or places are"),
            }
        );
    }
}

fn read(options: &Options) -> Result<(Store, Manifest)> {
    let dir = working_directory()?.join(options.command.first().map(PathBuf::from).unwrap_or_default());
    let opened = Store::open(&dir).and_then(|store| Ok((store.read(MANIFEST, MANIFEST_BYTES_MAX)?, store)));
    let (text, store) = opened.map_err(|error| match error {
        OverlayError::File { errno: Errno::ENOENT | Errno::ENOTDIR, .. } => {
            anyhow::Error::new(error).context(format!("{} is no overlay that --overlay made", escape::path(&dir)))
        }
        error => error.into(),
    })?;
    let file = dir.join(MANIFEST);
    let parsed = |error: serde_json::Error| anyhow::Error::new(error).context(escape::path(&file).into_owned());
    // The version first: another has another shape.
    let Head { version } = serde_json::from_str(&text).map_err(parsed)?;
    if version != VERSION {
        bail!(
            "{}: an overlay of version {version}, and this Apex knows {VERSION}; show and commit it with the Apex that made it, or copy by hand",
            escape::path(&file)
        );
    }
    let manifest = serde_json::from_str(&text).map_err(parsed)?;
    Ok((store, manifest))
}

/// Shows what a run changed; the deeds of a commit that was not asked for.
pub fn diff(options: &Options) -> Result<u8> {
    if options.command.len() > 1 {
        bail!("apex-run diff takes one directory; a command of this name is run by apex-run -- diff");
    }
    let (store, mut manifest) = read(options)?;
    if manifest.changes.is_none() {
        // Killed before its end: what is there can be seen all the same.
        overlay::look(&store, &mut manifest);
    }
    let changes = manifest.changes.as_deref().unwrap_or_default();
    let mut text = String::new();
    for change in changes {
        let place = manifest.place(change);
        if options.json {
            text.push_str(&json(&place, change, None)?);
        } else {
            text.push_str(&line(&place, change));
        }
        text.push('\n');
    }
    if !options.json {
        text.push_str(&sum(changes));
    }
    tell_unseen(&manifest);
    crate::session::say(&text)
}

/// Applies what a run changed.
pub fn commit(options: &Options) -> Result<u8> {
    let (store, manifest) = read(options)?;
    let Some(changes) = &manifest.changes else {
        bail!(
            "{}: its run has not come to its end, so nobody knows what the host was like then; see it with apex-run diff and copy by hand",
            escape::path(store.path())
        );
    };
    let cwd = working_directory()?;
    let picked: Vec<PathBuf> = options.command.iter().skip(1).map(|path| cwd.join(path)).collect();
    for path in &picked {
        if !changes.iter().any(|change| manifest.place(change).starts_with(path)) {
            bail!("{}: the run changed nothing there; apex-run diff lists what it changed", escape::path(path));
        }
    }
    let wanted = |place: &Path, change: &Change| {
        // A new directory on the way to what is picked has to come along.
        let leads_on = change.kind == FileKind::Dir && change.change == ChangeKind::Added;
        picked.is_empty() || picked.iter().any(|path| place.starts_with(path) || leads_on && path.starts_with(place))
    };
    let deeds = overlay::apply(&store, &manifest, &wanted)?;
    let mut out = String::new();
    let refused = deeds.iter().filter(|deed| deed.refused.is_some()).count();
    for deed in &deeds {
        let (place, change) = (escape::path(&deed.place), &changes[deed.index]);
        out.push_str(&match (&deed.refused, options.json) {
            (why, true) => json(&deed.place, change, Some(why.as_deref()))?,
            (None, false) => format!("{} {place}", past(change.change)),
            (Some(why), false) => format!("left {place}: {}", escape::text(why)),
        });
        out.push('\n');
    }
    crate::session::say(&out)?;
    if refused > 0 {
        let was = if refused == 1 { "was" } else { "were" };
        let all = amount::count(deeds.len() as u64, "change");
        let _ = writeln!(std::io::stderr(), "apex-run: {refused} of {all} {was} not applied");
    }
    // Who asks for everything is told that something was never looked at; a part can be picked all the same.
    let is_short = picked.is_empty() && !manifest.unseen.is_empty();
    if is_short {
        tell_unseen(&manifest);
    }
    Ok(if refused > 0 || is_short { code::FAILED } else { 0 })
}

const fn past(change: ChangeKind) -> &'static str {
    match change {
        ChangeKind::Added => "added",
        ChangeKind::Changed => "changed",
        ChangeKind::Removed => "removed",
        ChangeKind::Mode => "set the permissions of",
    }
}

fn line(place: &Path, change: &Change) -> String {
    let sign = match change.change {
        ChangeKind::Added => '+',
        ChangeKind::Changed => '~',
        ChangeKind::Removed => '-',
        ChangeKind::Mode => 'm',
    };
    let name = escape::path(place);
    let detail = match (change.change, change.kind) {
        (ChangeKind::Removed, FileKind::Dir) | (ChangeKind::Added, FileKind::Dir) => "directory".to_owned(),
        (ChangeKind::Removed, _) => String::new(),
        (ChangeKind::Mode, _) => {
            format!("{:03o} to {:03o}", change.before.as_ref().map_or(0, |before| before.mode), change.mode)
        }
        (_, FileKind::Link) => {
            format!("link to {}", change.target.as_deref().map(escape::path).unwrap_or_default())
        }
        (_, FileKind::Other) => "FIFO, socket or device: is never applied".to_owned(),
        (ChangeKind::Changed, _) => {
            format!("{} to {} bytes", change.before.as_ref().map_or(0, |before| before.size), change.size)
        }
        (ChangeKind::Added, _) => format!("{} bytes, {:03o}", change.size, change.mode),
    };
    if detail.is_empty() { format!("{sign} {name}") } else { format!("{sign} {name} ({detail})") }
}

fn sum(changes: &[Change]) -> String {
    let count = |kind| changes.iter().filter(|change| change.change == kind).count();
    format!(
        "{} added, {} changed, {} removed, {} permissions\n",
        count(ChangeKind::Added),
        count(ChangeKind::Changed),
        count(ChangeKind::Removed),
        count(ChangeKind::Mode)
    )
}

/// One line for one change; `outcome` tells of a commit, and within it why it was left out.
fn json(place: &Path, change: &Change, outcome: Option<Option<&str>>) -> Result<String> {
    let mut value = serde_json::to_value(change)?;
    let object = value.as_object_mut().context("a change is an object")?;
    object.insert("path".to_owned(), place.to_string_lossy().into());
    // What only a commit needs.
    for key in ["layer", "holder", "moved"] {
        object.remove(key);
    }
    if let Some(refused) = outcome {
        object.insert("applied".to_owned(), refused.is_none().into());
        if let Some(why) = refused {
            object.insert("because".to_owned(), why.into());
        }
    }
    // What a terminal acts on stands inside strings only.
    let text = value.to_string();
    let safe = text.chars().map(|c| match escape::is_hostile(c) {
        true => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        false => c.to_string(),
    });
    Ok(safe.collect())
}
