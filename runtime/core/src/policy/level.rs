//! Isolation levels: how many layers a sandbox has at all. Input: a level and a merged draft; output: nothing, or the rule that the level
//! cannot keep.
//!
//! What a mode or a built-in profile says by default is left out where a level has no layer for it, and the plan tells so. What somebody asked
//! for is refused: nothing that was asked for is dropped in silence. What a denied path comes to is for the planner, which sees the host.

use serde::{Deserialize, Serialize};

use super::error::PolicyError;
use super::merge::{Draft, Place};
use super::{Network, Origin, ProcView};
use crate::layer::{Layer, Requirement};

/// How many layers a sandbox has. The order is that of confinement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum IsolationLevel {
    /// A managed process: counted, limited and ended as a whole, with the host's files and network and no filter.
    None,
    /// The host's own tree, under the rules that the kernel holds without mounts: Landlock, the filter, limits, the network namespace.
    Partial,
    /// Every layer.
    #[default]
    Full,
}

impl IsolationLevel {
    /// All of them, the most confining first.
    pub const ALL: [IsolationLevel; 3] = [IsolationLevel::Full, IsolationLevel::Partial, IsolationLevel::None];

    /// The name in policies, flags and reports.
    pub const fn name(self) -> &'static str {
        match self {
            IsolationLevel::None => "none",
            IsolationLevel::Partial => "partial",
            IsolationLevel::Full => "full",
        }
    }

    /// Whether it is the one that leaves nothing out.
    pub const fn is_full(self) -> bool {
        matches!(self, IsolationLevel::Full)
    }

    /// Whether no sandbox of this level has the layer.
    pub const fn leaves_out(self, layer: Layer) -> bool {
        let without_mounts =
            matches!(layer, Layer::Mountns | Layer::Ipcns | Layer::Utsns | Layer::Cgroupns | Layer::Timens);
        match self {
            IsolationLevel::Full => false,
            IsolationLevel::Partial => without_mounts,
            IsolationLevel::None => without_mounts || matches!(layer, Layer::Netns | Layer::Landlock | Layer::Seccomp),
        }
    }
}

impl std::fmt::Display for IsolationLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Finds the first rule that the level cannot keep. `defaults` are the sources that say what is so by default.
pub(super) fn check(draft: &Draft, level: IsolationLevel, defaults: &[String]) -> Result<(), PolicyError> {
    let check = Check { level, defaults };
    if level.is_full() {
        return Ok(());
    }
    for (layer, rule) in &draft.layers {
        if level.leaves_out(*layer) && rule.value == Requirement::Required {
            let asked = format!("layer {layer} to be required");
            return Err(check.refusal(&rule.origin, asked, "it does not have that layer"));
        }
    }
    // With nothing mounted these two are all that keeps what is denied.
    for layer in [Layer::Landlock, Layer::Seccomp].into_iter().filter(|layer| !level.leaves_out(*layer)) {
        if let Some(rule) = draft.layers.get(&layer)
            && rule.value == Requirement::Off
        {
            return Err(check.refusal(&rule.origin, format!("layer {layer} to be off"), "it stands on that layer"));
        }
    }
    if let Some(rule) = draft.capabilities.first() {
        let why = "capabilities are kept over namespaces of the sandbox's own, which it does not have";
        return Err(check.refusal(&rule.origin, format!("capability {}", rule.value), why));
    }
    check.tree(draft)?;
    if level == IsolationLevel::None { check.unconfined(draft) } else { Ok(()) }
}

struct Check<'a> {
    level: IsolationLevel,
    defaults: &'a [String],
}

const OWN_ROOT: &str = "it has the host's own tree, and nothing is mounted there";

impl Check<'_> {
    fn refusal(&self, at: &Origin, asked: String, why: &'static str) -> PolicyError {
        PolicyError::AtLevel { at: at.clone(), level: self.level, asked, why }
    }

    /// Refuses a rule that somebody asked for; a default is left out.
    fn refuse(&self, at: &Origin, asked: impl FnOnce() -> String, why: &'static str) -> Result<(), PolicyError> {
        if at.is_embedded() || self.defaults.contains(&at.source) {
            return Ok(());
        }
        Err(self.refusal(at, asked(), why))
    }

    /// What needs a root or a host name of the sandbox's own.
    fn tree(&self, draft: &Draft) -> Result<(), PolicyError> {
        for place in &draft.places {
            match place {
                Place::Tmpfs(tmpfs) => {
                    self.refuse(
                        &tmpfs.origin,
                        || format!("a private directory at {}", tmpfs.dest.display()),
                        OWN_ROOT,
                    )?;
                }
                Place::Bind(_, grant) if grant.path != grant.dest => {
                    let asked = || format!("{} at {}", grant.path.display(), grant.dest.display());
                    self.refuse(&grant.origin, asked, OWN_ROOT)?;
                }
                Place::Bind(..) => {}
            }
        }
        for name in &draft.names {
            self.refuse(&name.origin, || format!("the name {}", name.path.display()), OWN_ROOT)?;
        }
        if let Some(rule) = &draft.proc
            && rule.value != ProcView::None
        {
            self.refuse(&rule.origin, || "a /proc of its own".to_owned(), OWN_ROOT)?;
        }
        if let Some(rule) = &draft.limits.tmp_size {
            self.refuse(&rule.origin, || "a size of private directories".to_owned(), OWN_ROOT)?;
        }
        if let Some(rule) = &draft.hostname {
            self.refuse(&rule.origin, || format!("the host name {}", rule.value), "it has the host's own name")?;
        }
        Ok(())
    }

    /// What needs Landlock, the filter or a network namespace.
    fn unconfined(&self, draft: &Draft) -> Result<(), PolicyError> {
        const FILES: &str = "no rule about files holds there: it may what its user may";
        const CALLS: &str = "it has no system call filter";
        let binds = draft.places.iter().filter_map(|place| match place {
            Place::Bind(_, grant) => Some(grant),
            Place::Tmpfs(_) => None,
        });
        for grant in binds.chain(&draft.exec).chain(&draft.hide).chain(&draft.deny) {
            self.refuse(&grant.origin, || format!("a rule about {}", grant.path.display()), FILES)?;
        }
        for (group, origin) in draft.syscalls_allow.iter().chain(&draft.syscalls_deny) {
            self.refuse(origin, || format!("a rule about the system call group `{group}`"), CALLS)?;
        }
        if let Some(rule) = &draft.syscalls_default {
            self.refuse(&rule.origin, || "a default for system calls".to_owned(), CALLS)?;
        }
        match &draft.network {
            // Not even by default: it would be more than the mode gives.
            Some(rule) if rule.value == Network::None => {
                Err(self.refusal(&rule.origin, "no network".to_owned(), "it has the network of the host"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
