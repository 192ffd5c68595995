//! The virtual machine's disk, kernel and initial RAM disk: found in the cache, or made there by debootstrap.
//!
//! Input: the recipe, and the mirror that this machine's own apt uses. Output: three files, put in place by one rename. While the tree is
//! made, its mounts and processes live in namespaces of their own, so that a build that is killed leaves files only.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use super::recipe;
use crate::{cache, shell};

/// A slow mirror is waited for this long, a step at a time.
const STEP_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Images of other recipes that may stay: a branch that changes the recipe should not cost the others theirs.
const OTHERS_MAX: usize = 2;
/// Names the mirror where the machine's own sources know none.
const MIRROR_VARIABLE: &str = "APEX_VM_MIRROR";

/// A machine that can be started.
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The root file system.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initial RAM disk.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// The image of this recipe, when a cache has it.
    pub fn cached() -> Option<Image> {
        cache::find(&Path::new("vm").join(name())).map(|dir| Image { dir })
    }

    /// The image of this recipe: the cached one, or a new one.
    pub fn ensure() -> Result<Image> {
        if let Some(image) = Image::cached() {
            println!("image: {}", image.dir.display());
            return Ok(image);
        }
        if !shell::is_root() {
            bail!("debootstrap needs root to make the image; run `sudo cargo xtask vm --image-only` once");
        }
        let shelf = cache::writable()?.join("vm");
        fs::create_dir_all(&shelf).with_context(|| format!("cannot make {}", shelf.display()))?;
        // Whoever waited for another's build finds it done.
        let lock = fs::File::create(shelf.join("lock")).context("cannot make the lock of the images")?;
        lock.lock().context("cannot lock the images")?;
        if let Some(image) = Image::cached() {
            return Ok(image);
        }
        let begun = Instant::now();
        let image = build(&shelf)?;
        println!("image: {}, made in {} s", image.dir.display(), begun.elapsed().as_secs());
        Ok(image)
    }
}

fn name() -> String {
    format!("{}-{}", recipe::SUITE, recipe::digest())
}

fn build(shelf: &Path) -> Result<Image> {
    sweep(shelf)?;
    let mirror = mirror()?;
    let site = Site(shelf.join(format!(".making-{}", std::process::id())));
    fs::create_dir(&site.0).with_context(|| format!("cannot make {}", site.0.display()))?;
    let (tree, made) = (site.0.join("tree"), site.0.join("made"));
    fs::create_dir(&made)?;

    println!("image: debootstrap {} from the mirror that apt uses here", recipe::SUITE);
    let mut debootstrap = apart("debootstrap");
    debootstrap.args(["--variant=minbase", "--merged-usr"]).arg(format!("--include={}", recipe::PACKAGES.join(",")));
    quietly(debootstrap.arg(recipe::SUITE).arg(&tree).arg(mirror))?;
    furnish(&tree)?;
    for words in recipe::COMMANDS {
        quietly(apart("chroot").arg(&tree).args(*words))?;
    }
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        take_boot_file(&tree.join("boot"), prefix, &made.join(name))?;
    }
    let disk = made.join("root.ext4");
    // No journal: nothing that is written lives longer than the machine.
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-O", "^has_journal", "-L", "apex-root", "-d"])
        .arg(&tree)
        .arg(&disk)
        .arg(recipe::IMAGE_SIZE);
    quietly(&mut mkfs)?;
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o444))?;

    let dir = shelf.join(name());
    fs::rename(&made, &dir).with_context(|| format!("cannot put the image in place as {}", dir.display()))?;
    Ok(Image { dir })
}

/// Writes the recipe's files and masks its units.
fn furnish(tree: &Path) -> Result<()> {
    for (path, text) in recipe::FILES {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().context("a file of the recipe has no folder")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for unit in recipe::MASKED {
        let path = tree.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &path).with_context(|| format!("cannot mask {}", path.display()))?;
    }
    Ok(())
}

fn take_boot_file(boot: &Path, prefix: &str, to: &Path) -> Result<()> {
    let mut entries = fs::read_dir(boot).with_context(|| format!("cannot list {}", boot.display()))?.flatten();
    let file = entries
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .with_context(|| format!("no {prefix}* in {}: the kernel's package did not bring it", boot.display()))?;
    fs::rename(file.path(), to).with_context(|| format!("cannot move {}", file.path().display()))
}

/// A command whose mounts and processes end with it.
fn apart(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", program]);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").env_remove("TMPDIR");
    command
}

/// Runs a step; its words are only worth reading when it fails.
fn quietly(command: &mut Command) -> Result<()> {
    const LINES_SHOWN: usize = 20;
    let mut last = std::collections::VecDeque::with_capacity(LINES_SHOWN);
    let status = shell::stream(command, STEP_LIMIT, |line| {
        if last.len() == LINES_SHOWN {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    })?;
    if !status.success() {
        bail!("{} failed: {status}\n{}", shell::line(command), Vec::from(last).join("\n"));
    }
    Ok(())
}

/// Removes what builds that were killed left, and the oldest images. Called with the lock held.
fn sweep(shelf: &Path) -> Result<()> {
    let mut images = Vec::new();
    for entry in fs::read_dir(shelf).with_context(|| format!("cannot list {}", shelf.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".making-") {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        } else if entry.file_type()?.is_dir() {
            images.push((entry.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
    }
    images.sort();
    let excess = images.len().saturating_sub(OTHERS_MAX);
    for (_, path) in images.into_iter().take(excess) {
        // A machine that runs from it keeps its open files.
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The building site; removed whatever happens.
struct Site(PathBuf);

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("xtask: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The mirror from which this machine's apt takes the recipe's release.
fn mirror() -> Result<String> {
    if let Ok(given) = std::env::var(MIRROR_VARIABLE) {
        return Ok(given);
    }
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    files.extend(more);
    files.sort();
    let found = files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text));
    found.with_context(|| {
        format!("no source of apt on this machine has {} with main; name a mirror in {MIRROR_VARIABLE}", recipe::SUITE)
    })
}

/// In the one-line style or in stanzas (sources.list(5)).
fn mirror_in(text: &str) -> Option<String> {
    text.lines().find_map(one_line).or_else(|| text.split("\n\n").find_map(stanza))
}

fn one_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (suite == recipe::SUITE && words.any(|word| word == "main")).then(|| uri.to_owned())
}

fn stanza(text: &str) -> Option<String> {
    let field = |name: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    };
    let has =
        |name: &str, wanted: &str| field(name).is_some_and(|value| value.split_whitespace().any(|word| word == wanted));
    let is_it = has("Types", "deb") && has("Suites", recipe::SUITE) && has("Components", "main");
    if !is_it {
        return None;
    }
    field("URIs")?.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(mirror_in(text).as_deref(), expected, "{text}");
    }

    #[test]
    fn the_mirror_is_read_from_both_styles() {
        check("# deb http://no bookworm main\ndeb http://a/debian bookworm main contrib\n", Some("http://a/debian"));
        check("deb [arch=amd64 signed-by=/k] http://b bookworm main", Some("http://b"));
        check("deb http://security bookworm-security main\ndeb http://c bullseye main", None);
        check("deb http://d bookworm contrib", None);
        check(
            "Types: deb\n# comment: x\nURIs: http://security\nSuites: bookworm-security\nComponents: main\n\n\
             Types: deb deb-src\nURIs: http://e http://f\nSuites: bookworm bookworm-updates\nComponents: main\n",
            Some("http://e"),
        );
        check("Types: deb-src\nURIs: http://g\nSuites: bookworm\nComponents: main\n", None);
        check("", None);
    }
}
