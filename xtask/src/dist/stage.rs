//! The tree of the package: what is installed, and `DEBIAN/` about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{About, NAME};
use crate::shell;

const FILE: u32 = 0o644;
const PROGRAM: u32 = 0o755;
const UNITS: &str = "usr/lib/systemd/system";
const DOC: &str = "usr/share/doc/apex";

/// Files that are taken as they are: from where in the repository to where in the package.
const FILES: &[(&str, &str)] = &[
    ("systemd/apexd.service", UNITS),
    ("systemd/apexd.socket", UNITS),
    ("systemd/apex-sandboxes.service", UNITS),
    ("policies/access.toml", "usr/share/doc/apex/examples"),
    ("docs/guides/operating.md", DOC),
    ("docs/guides/permissions.md", DOC),
    ("docs/guides/first-steps.md", DOC),
];

/// The same under another name.
const RENAMED: &[(&str, &str)] = &[
    ("systemd/apex.sysusers", "usr/lib/sysusers.d/apex.conf"),
    ("systemd/apex.tmpfiles", "usr/lib/tmpfiles.d/apex.conf"),
    ("systemd/debian/lintian-overrides", "usr/share/lintian/overrides/apex"),
    ("docs/reference/completions/apex-run.bash", "usr/share/bash-completion/completions/apex-run"),
    ("docs/reference/completions/_apex-run", "usr/share/zsh/vendor-completions/_apex-run"),
    ("docs/reference/completions/apex-run.fish", "usr/share/fish/vendor_completions.d/apex-run.fish"),
];

/// Completions that `apex` prints, by shell.
const PRINTED: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/apex"),
    ("zsh", "usr/share/zsh/vendor-completions/_apex"),
    ("fish", "usr/share/fish/vendor_completions.d/apex.fish"),
];

/// Fills it.
pub fn fill(tree: &Path, apex_run: &Path, about: &About) -> Result<()> {
    let repo = shell::root();
    for name in ["apexd", "apex", "apex-run"] {
        copy(&apex_run.with_file_name(name), &tree.join("usr/bin").join(name), PROGRAM)?;
    }
    copy(&apex_run.with_file_name("apex-probe"), &tree.join("usr/libexec/apex/apex-probe"), PROGRAM)?;
    for (from, dir) in FILES {
        let from = repo.join(from);
        let name = from.file_name().context("a file of the package has no name")?;
        copy(&from, &tree.join(dir).join(name), FILE)?;
    }
    for (from, to) in RENAMED {
        copy(&repo.join(from), &tree.join(to), FILE)?;
    }
    let apex = apex_run.with_file_name("apex");
    for (shell, to) in PRINTED {
        write(&tree.join(to), &said(&apex, &["completions", shell])?, FILE)?;
    }
    // Where an administrator's rules, modes and profiles go.
    make_dir(&tree.join("etc/apex"))?;
    pages(tree, &repo, apex_run, about)?;
    write(&tree.join(DOC).join("copyright"), &copyright(), FILE)?;
    let changes = fs::read_to_string(repo.join("CHANGELOG.md")).context("cannot read CHANGELOG.md")?;
    zipped(&tree.join(DOC).join("changelog"), &changes)?;
    about_it(&tree.join("DEBIAN"), tree, &repo, about)
}

fn pages(tree: &Path, repo: &Path, apex_run: &Path, about: &About) -> Result<()> {
    let man = tree.join("usr/share/man");
    let page =
        fs::read_to_string(repo.join("docs/reference/apex-run.1")).context("cannot read the page of apex-run")?;
    zipped(&man.join("man1/apex-run.1"), &page)?;
    zipped(&man.join("man1/apex.1"), &said(&apex_run.with_file_name("apex"), &["man"])?)?;
    let help = said(&apex_run.with_file_name("apexd"), &["--help"])?;
    let options: Vec<&str> = help.lines().filter(|line| line.starts_with("  ")).collect();
    ensure!(!options.is_empty(), "apexd --help lists no options");
    let page = fs::read_to_string(repo.join("systemd/debian/apexd.8")).context("cannot read the page of apexd")?;
    let page = page.replace("@VERSION@", &about.version).replace("@OPTIONS@", &options.join("\n").replace('-', "\\-"));
    zipped(&man.join("man8/apexd.8"), &page)
}

/// `DEBIAN/`: the control file, the scripts, and digests of all files.
fn about_it(dir: &Path, tree: &Path, repo: &Path, about: &About) -> Result<()> {
    let mut files = Vec::new();
    list(tree, &mut files)?;
    files.sort();
    let (mut kib, mut digests) = (0, String::new());
    for file in &files {
        kib += fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?.len().div_ceil(1024);
        let name = file.strip_prefix(tree).context("a file lies outside of the tree")?;
        let line = said(Path::new("md5sum"), &[&file.to_string_lossy()])?;
        let digest = line.split_whitespace().next().context("md5sum wrote nothing")?;
        digests.push_str(&format!("{digest}  {}\n", name.display()));
    }
    let control =
        fs::read_to_string(repo.join("systemd/debian/control")).context("cannot read systemd/debian/control")?;
    let control = control
        .replace("@VERSION@", &about.version)
        .replace("@ARCH@", about.arch)
        .replace("@MAINTAINER@", &about.maintainer)
        .replace("@SIZE@", &kib.to_string());
    write(&dir.join("control"), &control, FILE)?;
    write(&dir.join("md5sums"), &digests, FILE)?;
    for script in ["postinst", "prerm", "postrm"] {
        copy(&repo.join("systemd/debian").join(script), &dir.join(script), PROGRAM)?;
    }
    Ok(())
}

fn copyright() -> String {
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: {NAME}\n\n\
         Files: *\nCopyright: the developers of Apex\nLicense: Apache-2.0\n \
         On Debian systems the text of the Apache License 2.0 is in\n /usr/share/common-licenses/Apache-2.0.\n"
    )
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// What a program prints.
fn said(program: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "{} {}: {}", program.display(), words.join(" "), output.status);
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote no text", program.display()))
}

/// Without name and time, which would differ from build to build.
fn zipped(file: &Path, text: &str) -> Result<()> {
    write(file, text, FILE)?;
    shell::run(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(file))
}

fn write(file: &Path, text: &str, mode: u32) -> Result<()> {
    make_dir(file.parent().context("a file of the package lies nowhere")?)?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    set_mode(file, mode)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_dir(to.parent().context("a file of the package lies nowhere")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    set_mode(to, mode)
}

/// Whatever the umask is.
fn make_dir(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        if let Some(above) = dir.parent() {
            make_dir(above)?;
        }
        fs::create_dir(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        set_mode(dir, PROGRAM)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}
