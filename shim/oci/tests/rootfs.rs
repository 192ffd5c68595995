//! The container's file system for real: every case forks a child into new namespaces, builds a root there, and looks at it from inside.
//!
//! Without root there is nothing to test, and it says so.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use apex_oci::init::rootfs::{self, Cgroups, Context, Rootfs, RootfsError};
use apex_sys::process::{self, Ended, Side};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

const NEWNS: u64 = 0x0002_0000;
const NEWPID: u64 = 0x2000_0000;
const NEWNET: u64 = 0x4000_0000;
const NEWUSER: u64 = 0x1000_0000;
const NEWIPC: u64 = 0x0800_0000;

/// A bundle in a directory of its own, removed at the end.
struct Bundle {
    dir: PathBuf,
}

impl Bundle {
    fn new() -> Bundle {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("apex-oci-rootfs-{}-{count}", std::process::id()));
        fs::create_dir_all(dir.join("rootfs")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["proc", "sys", "dev", "etc", "tmp", "data"] {
            fs::create_dir(dir.join("rootfs").join(name)).unwrap();
        }
        fs::write(dir.join("rootfs/etc/name"), "inside").unwrap();
        Bundle { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What every image expects.
fn ordinary() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "ipc"}],
            "maskedPaths": ["/proc/version", "/proc/kcore", "/proc/keys", "/proc/acpi", "/sys/firmware", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/proc/bus", "/no/such/path"]
        }
    })
}

fn with_mounts(mut spec: Value, more: &[Value]) -> Value {
    spec["mounts"].as_array_mut().unwrap().extend_from_slice(more);
    spec
}

/// Runs `body` in a child that is in new namespaces; its panic is ours.
fn inside(namespaces: u64, maps: Option<&str>, body: impl FnOnce()) {
    let (mut wait, mut go) = std::io::pipe().unwrap();
    match process::clone_into(namespaces, None).unwrap() {
        Side::Child => {
            let done = catch_unwind(AssertUnwindSafe(move || {
                drop(go);
                let mut byte = [0];
                let _ = wait.read(&mut byte);
                if maps.is_some() {
                    process::set_gid(0).unwrap();
                    process::set_uid(0).unwrap();
                }
                body();
            }));
            process::exit_now(i32::from(done.is_err()));
        }
        Side::Parent { pid, .. } => {
            if let Some(map) = maps {
                fs::write(format!("/proc/{pid}/uid_map"), map).unwrap();
                fs::write(format!("/proc/{pid}/gid_map"), map).unwrap();
            }
            go.write_all(b"x").unwrap();
            drop(go);
            let ended = process::wait(pid, 0).unwrap().map(|(_, ended)| ended);
            assert_eq!(ended, Some(Ended::Code(0)), "the child failed");
        }
    }
}

const USUAL: u64 = NEWNS | NEWPID | NEWNET | NEWIPC;

/// The whole way; then `check` inside.
fn run(bundle: &Bundle, spec: &Value, check: impl FnOnce(&Rootfs<'_>)) {
    run_in(bundle, spec, USUAL, None, false, check);
}

fn run_in(
    bundle: &Bundle,
    spec: &Value,
    namespaces: u64,
    maps: Option<&str>,
    no_pivot: bool,
    check: impl FnOnce(&Rootfs<'_>),
) {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let outside = rootfs::outside(&spec, &bundle.dir).unwrap();
    inside(namespaces, maps, || {
        let cgroups = Cgroups::default();
        let context = Context::new(&spec, &bundle.dir, &cgroups);
        let mut rootfs = Rootfs::prepare(&context, outside).unwrap_or_else(|error| panic!("{}", words(&error)));
        rootfs.enter(no_pivot).unwrap_or_else(|error| panic!("{}", words(&error)));
        rootfs.seal().unwrap_or_else(|error| panic!("{}", words(&error)));
        check(&rootfs);
    });
}

/// Prepares only, and gives the error to `check`.
fn refused(bundle: &Bundle, spec: &Value, check: impl FnOnce(RootfsError)) {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    let outside = rootfs::outside(&spec, &bundle.dir).unwrap();
    inside(USUAL, None, || {
        let cgroups = Cgroups::default();
        let context = Context::new(&spec, &bundle.dir, &cgroups);
        check(Rootfs::prepare(&context, outside).map(drop).unwrap_err());
    });
}

fn words(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

/// Mount point, options of the mount, optional fields, type, options of the file system.
fn table() -> Vec<(String, String, String, String, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = |line: &str| {
        let (before, after) = line.split_once(" - ").unwrap();
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        (before[4].into(), before[5].into(), before[6..].join(" "), after[0].into(), after[2].into())
    };
    text.lines().map(line).collect()
}

fn options_of(path: &str) -> String {
    let all = table();
    all.iter().rfind(|it| it.0 == path).unwrap_or_else(|| panic!("nothing is mounted at {path}: {all:?}")).1.clone()
}

fn an_ordinary_bundle_has_what_every_image_expects() {
    let bundle = Bundle::new();
    run(&bundle, &ordinary(), |_| {
        assert_eq!(fs::read_to_string("/etc/name").unwrap(), "inside");
        for (name, number) in
            [("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("urandom", (1, 9)), ("tty", (5, 0))]
        {
            let found = fs::metadata(Path::new("/dev").join(name)).unwrap();
            assert!(found.file_type().is_char_device(), "{name}");
            assert_eq!((nix::libc::major(found.rdev()), nix::libc::minor(found.rdev())), number, "{name}");
            assert_eq!(found.mode() & 0o7777, 0o666, "{name}");
        }
        fs::write("/dev/null", "x").unwrap();
        assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
        assert_eq!(fs::read_link("/dev/fd").unwrap(), Path::new("/proc/self/fd"));
        assert_eq!(fs::metadata("/dev").unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata("/dev/shm").unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_link("/proc/self").unwrap(), Path::new("1"));
        assert!(options_of("/sys").contains("ro"), "{}", options_of("/sys"));
        assert!(!options_of("/dev").contains("relatime"), "{}", options_of("/dev"));
        let points: Vec<_> = table().into_iter().map(|it| it.0).collect();
        assert_eq!(points[0], "/");
        assert!(points.iter().all(|point| !point.contains("rootfs")), "{points:?}");
        assert!(!Path::new("/proc/1/root/../../work").exists());
    });
    assert!(fs::read_dir(bundle.root().join("dev")).unwrap().next().is_none(), "the image's /dev is as it was");
}

fn masks_and_readonly_paths_hold() {
    let bundle = Bundle::new();
    let mut spec = ordinary();
    spec["root"]["readonly"] = true.into();
    run(&bundle, &spec, |_| {
        assert!(fs::metadata("/proc/version").unwrap().file_type().is_char_device());
        assert_eq!(fs::read("/proc/keys").unwrap(), b"");
        assert!(Path::new("/sys/firmware").read_dir().unwrap().next().is_none());
        let denied = fs::write("/proc/sys/kernel/hostname", "x").unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(nix::libc::EROFS));
        assert_eq!(fs::write("/etc/new", "x").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
        assert_eq!(fs::write("/sys/firmware/x", "x").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
        fs::write("/dev/shm/x", "x").unwrap();
    });
}

fn without_a_pivot_it_is_the_same_root() {
    let bundle = Bundle::new();
    run_in(&bundle, &ordinary(), USUAL, None, true, |_| {
        assert_eq!(fs::read_to_string("/etc/name").unwrap(), "inside");
        assert_eq!(fs::read_to_string("/../../etc/name").unwrap(), "inside");
        assert_eq!(fs::read("/proc/keys").unwrap(), b"");
        let kinds: Vec<_> = table().into_iter().filter(|it| it.3 == "proc" && it.0 == "/proc").collect();
        assert_eq!(kinds.len(), 1, "{kinds:?}");
    });
}

fn binds_have_the_options_they_were_given() {
    let bundle = Bundle::new();
    let outside = bundle.dir.join("outside");
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::write(outside.join("file"), "content").unwrap();
    let spec = with_mounts(
        ordinary(),
        &[
            json!({"destination": "/new/dir", "type": "bind", "source": "outside", "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]}),
            json!({"destination": "/new/file", "source": outside.join("file"), "options": ["bind", "noatime"]}),
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "nosymfollow", "ro"]}),
            json!({"destination": "/shared", "type": "bind", "source": "outside", "options": ["rbind", "rshared", "rro"]}),
            json!({"destination": "/new/sticky", "type": "tmpfs", "source": "none", "options": ["private", "mode=0700", "noexec"]}),
        ],
    );
    run(&bundle, &spec, |_| {
        assert_eq!(fs::read_to_string("/new/dir/file").unwrap(), "content");
        assert_eq!(fs::read_to_string("/new/file").unwrap(), "content");
        assert_eq!(fs::write("/new/dir/file", "x").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
        for word in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options_of("/new/dir").split(',').any(|it| it == word), "{word}: {}", options_of("/new/dir"));
        }
        assert!(options_of("/new/file").contains("noatime"), "{}", options_of("/new/file"));
        assert!(options_of("/data").contains("ro") && options_of("/data").contains("nosymfollow"));
        let all = table();
        let shared = all.iter().rfind(|it| it.0 == "/shared").unwrap();
        assert!(shared.1.contains("ro") && shared.2.contains("shared:"), "{shared:?}");
        assert!(all.iter().any(|it| it.0 == "/data" && it.4.contains("size=64k")), "{all:?}");
        assert_eq!(fs::metadata("/new/sticky").unwrap().mode() & 0o7777, 0o700);
    });
}

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped, all of it: needs root");
        return;
    }
    let cases: &[(&str, fn())] = &[
        ("an_ordinary_bundle_has_what_every_image_expects", an_ordinary_bundle_has_what_every_image_expects),
        ("masks_and_readonly_paths_hold", masks_and_readonly_paths_hold),
        ("without_a_pivot_it_is_the_same_root", without_a_pivot_it_is_the_same_root),
        ("binds_have_the_options_they_were_given", binds_have_the_options_they_were_given),
    ];
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut failed = 0;
    for (name, case) in cases {
        if !only.is_empty() && !only.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let ended = catch_unwind(case);
        println!("test {name} ... {}", if ended.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(ended.is_err());
    }
    if failed > 0 {
        println!("{failed} failed");
        std::process::exit(1);
    }
}
