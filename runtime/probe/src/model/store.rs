//! Model files: where they are, and how they are read and written.
//!
//! A store is one directory of one user, mode 0700: below XDG_STATE_HOME where it is set, else `/var/lib/apex/models` for root and
//! `~/.local/state/apex/models` for others. A file is written beside its place and renamed, so a reader sees the old or the new one whole. A model that somebody else could have
//! written is not read, and one whose hash does not fit its content is refused with words.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use apex_core::baseline::{Key, Model, RunSummary};
use apex_core::escape;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;

/// Of root.
const SYSTEM: &str = "/var/lib/apex/models";
/// Largest file: 64 runs at the bounds of a summary, most of which no run reaches.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// How long another writer is waited for.
const LOCK_TRIES_MAX: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A directory of models.
pub struct Store {
    dir: PathBuf,
}

/// The name of a model: its profile, and enough of a hash to tell policies apart.
pub fn name(key: &Key) -> String {
    let tame = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let profile: String = key.profile.chars().take(40).map(tame).collect();
    // An empty model's hash covers the key and nothing else that differs: profiles that look alike once tamed stay apart.
    let hash = Model::new(key.clone()).sha256;
    format!("{profile}-{}", &hash[..16])
}

/// Whether a word could be such a name.
pub fn is_name(word: &str) -> bool {
    let hash = word.rsplit_once('-').map_or("", |(_, hash)| hash);
    hash.len() == 16
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

impl Store {
    /// That of the caller.
    pub fn of_caller() -> anyhow::Result<Store> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let given = absolute("XDG_STATE_HOME");
        if geteuid().is_root() && given.is_none() {
            return Ok(Store::at(PathBuf::from(SYSTEM)));
        }
        let state = given.or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let state = state.context("models are kept below HOME, which is not set to an absolute path; set it")?;
        Ok(Store::at(state.join("apex/models")))
    }

    /// One in another directory.
    pub fn at(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// Makes the directory.
    pub fn make(&self) -> anyhow::Result<()> {
        let make = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        make.with_context(|| format!("cannot make {} for models", escape::path(&self.dir)))
    }

    /// The model of a key, if there is one.
    pub fn load(&self, key: &Key) -> anyhow::Result<Option<Model>> {
        let model = self.by_name(&name(key))?;
        match model {
            Some(model) if model.key != *key => {
                bail!("the model {} is of another policy; reset it and learn again", name(key))
            }
            model => Ok(model),
        }
    }

    /// A model by its name.
    pub fn by_name(&self, name: &str) -> anyhow::Result<Option<Model>> {
        read(&self.path(name))
    }

    /// Adds runs to the model of their key and gives it back.
    pub fn absorb(&self, key: &Key, runs: &[&RunSummary]) -> anyhow::Result<Model> {
        self.make()?;
        // Two runs that end together must not lose one another.
        let _lock = self.lock()?;
        let mut model = self.load(key)?.unwrap_or_else(|| Model::new(key.clone()));
        for run in runs {
            model.absorb((*run).clone())?;
        }
        write(&self.path(&name(key)), &model)?;
        Ok(model)
    }

    /// The names of all models, in order.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", escape::path(&self.dir))),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.with_context(|| format!("cannot list {}", escape::path(&self.dir)))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json")).filter(|name| is_name(name));
            names.extend(name.map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// All models; one that is refused is told in its place.
    pub fn all(&self) -> anyhow::Result<Vec<(String, anyhow::Result<Model>)>> {
        let model = |name: &String| self.by_name(name).and_then(|model| model.context("it was reset meanwhile"));
        Ok(self.names()?.into_iter().map(|name| (name.clone(), model(&name))).collect())
    }

    /// Forgets a model; whether it was there. It need not be whole for that.
    pub fn remove(&self, name: &str) -> anyhow::Result<bool> {
        match fs::remove_file(self.path(name)) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove the model {name}")),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    fn lock(&self) -> anyhow::Result<Flock<File>> {
        let path = self.dir.join(".lock");
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path);
        let mut file = file.with_context(|| format!("cannot open {}", escape::path(&path)))?;
        for _ in 0..LOCK_TRIES_MAX {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((back, _)) => file = back,
            }
            thread::sleep(LOCK_PAUSE);
        }
        bail!("another run holds {}; try again when it is done", escape::path(&path))
    }
}

/// Reads a model file; `None` when there is none.
pub fn read(path: &Path) -> anyhow::Result<Option<Model>> {
    let told = escape::path(path);
    let mut options = OpenOptions::new();
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match options.read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read the model {told}")),
    };
    let facts = file.metadata().with_context(|| format!("cannot read the model {told}"))?;
    let is_trusted = facts.uid() == geteuid().as_raw() || facts.uid() == 0;
    if !facts.is_file() || !is_trusted || facts.mode() & 0o022 != 0 {
        bail!("the model {told} is not a file that only you or root can write; what it says is not trusted");
    }
    if facts.len() > FILE_BYTES_MAX {
        bail!("the model {told} has {} bytes; none is larger than {FILE_BYTES_MAX}", facts.len());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).with_context(|| format!("cannot read the model {told}"))?;
    let model = parse(&text).with_context(|| format!("the model {told} is refused"))?;
    Ok(Some(model))
}

/// Also where a name on the way is a file: a running sandbox may hold it against what it denies.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A model from its text, whole and unchanged.
pub fn parse(text: &str) -> anyhow::Result<Model> {
    let model: Model = serde_json::from_str(text).context("it is no model; reset it and learn again")?;
    Ok(model.checked()?)
}

/// Writes a model to its file, at once or not at all.
pub fn write(path: &Path, model: &Model) -> anyhow::Result<()> {
    let told = escape::path(path);
    let name = path.file_name().with_context(|| format!("{told} is no name of a file"))?;
    let beside = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let mut text = serde_json::to_string(model).context("cannot put the model into words")?;
    text.push('\n');
    let put = || -> std::io::Result<()> {
        // A file of this name is what a killed writer with our pid left.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    put().inspect_err(|_| drop(fs::remove_file(&beside))).with_context(|| format!("cannot write the model {told}"))
}
