//! Known ways out of a container, tried.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use apex_oci::init::rootfs::{Cgroups, Context, Rootfs, RootfsError};
use apex_oci::init::{console, procfs};
use nix::libc;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::bundle::*;

fn replace_by_link(path: &Path, target: &str) {
    fs::remove_dir(path).unwrap();
    symlink(target, path).unwrap();
}

/// A directory of the host that must stay as it is.
fn victim(bundle: &Bundle) -> PathBuf {
    let dir = bundle.dir.join("victim");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "untouched").unwrap();
    dir
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: /proc or /sys a link in the image.
pub fn proc_is_an_ordinary_directory() {
    for name in ["proc", "sys"] {
        for target in ["/etc", "../../victim", "/nowhere"] {
            let bundle = Bundle::new();
            victim(&bundle);
            replace_by_link(&bundle.root().join(name), target);
            refused(&bundle, &ordinary(), |error| {
                assert!(matches!(error, RootfsError::NotOrdinary(..)), "{}", words(&error));
            });
        }
    }
}

pub fn links_at_mount_targets_stay_inside() {
    let bundle = Bundle::new();
    let victim = victim(&bundle);
    let up = format!("../../../../../../../../../..{}", victim.display());
    replace_by_link(&bundle.root().join("dev"), &up);
    replace_by_link(&bundle.root().join("data"), victim.to_str().unwrap());
    symlink("/proc/1/root", bundle.root().join("magic")).unwrap();
    let spec = with_mounts(
        ordinary(),
        &[
            json!({"destination": "/data/file", "type": "bind", "source": "config.json", "options": ["bind"]}),
            json!({"destination": "/data/dir", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/../../../../tmp/up", "type": "tmpfs", "source": "tmpfs"}),
        ],
    );
    fs::write(bundle.dir.join("config.json"), "{}").unwrap();
    run(&bundle, &spec, |_| {
        let inside = victim.to_str().unwrap();
        assert!(options_of(&format!("{inside}/dir")).contains("rw"));
        assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "{}");
        assert!(fs::metadata(victim.join("null")).unwrap().file_type().is_char_device());
    });
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "untouched");
    // A link that the kernel makes up leads to what no name does.
    let magic =
        with_mounts(ordinary(), &[json!({"destination": "/proc/1/root/tmp/x", "type": "tmpfs", "source": "tmpfs"})]);
    refused(&bundle, &magic, |error| assert!(!matches!(error, RootfsError::Attach { .. }), "{}", words(&error)));
}

/// CVE-2019-16884 and its kin: something that stands for the truth about processes.
pub fn nothing_stands_over_proc() {
    let cases: [(Value, bool); 10] = [
        (json!({"destination": "/proc", "type": "tmpfs", "source": "tmpfs"}), false),
        (json!({"destination": "/proc", "type": "bind", "source": "fake", "options": ["rbind"]}), false),
        (json!({"destination": "/proc", "type": "bind", "source": "/proc/self", "options": ["rbind"]}), false),
        (json!({"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs"}), false),
        (
            json!({"destination": "/proc/sys/kernel/core_pattern", "type": "bind", "source": "fake/file", "options": ["bind"]}),
            false,
        ),
        (json!({"destination": "/by-link/sys", "type": "tmpfs", "source": "tmpfs"}), false),
        (json!({"destination": "/etc/../proc/./sys", "type": "tmpfs", "source": "tmpfs"}), false),
        (json!({"destination": "/by-link", "type": "tmpfs", "source": "tmpfs"}), false),
        (json!({"destination": "/proc/uptime", "type": "bind", "source": "fake/file", "options": ["bind"]}), true),
        (json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind", "ro"]}), true),
    ];
    for (mount, allowed) in cases {
        let bundle = Bundle::new();
        fs::create_dir(bundle.dir.join("fake")).unwrap();
        fs::write(bundle.dir.join("fake/file"), "fake").unwrap();
        symlink("/proc", bundle.root().join("by-link")).unwrap();
        let spec = with_mounts(ordinary(), std::slice::from_ref(&mount));
        if allowed {
            run(&bundle, &spec, |_| {});
        } else {
            refused(&bundle, &spec, |error| {
                assert!(
                    matches!(error, RootfsError::InsideProc(_) | RootfsError::NotProc(_)),
                    "{mount}: {}",
                    words(&error)
                );
            });
        }
    }
}

/// An image whose /dev/null is a link, and no file system of its own at /dev.
pub fn a_link_at_a_device_leads_no_writer_astray() {
    let bundle = Bundle::new();
    let victim = victim(&bundle);
    let up = format!("../../../../../../../..{}", victim.join("file").display());
    symlink(&up, bundle.root().join("dev/null")).unwrap();
    fs::write(bundle.root().join("dev/zero"), "a file").unwrap();
    let mut spec = ordinary();
    spec["mounts"].as_array_mut().unwrap().retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    run(&bundle, &spec, |_| {
        for (name, minor) in [("null", 3), ("zero", 5)] {
            let found = fs::symlink_metadata(Path::new("/dev").join(name)).unwrap();
            assert!(found.file_type().is_char_device(), "{name}");
            assert_eq!(found.rdev(), libc::makedev(1, minor));
        }
        fs::write("/dev/null", "x").unwrap();
    });
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "untouched");
}

/// CVE-2025-31133: the container's /dev/null is something else when paths are masked.
pub fn a_mask_is_the_null_device() {
    let bundle = Bundle::new();
    run_with(
        &bundle,
        &ordinary(),
        |rootfs| {
            // Between building and masking, as another container with the same volume would.
            let dev = bundle.root().join("dev");
            fs::remove_file(dev.join("null")).unwrap();
            symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
            let _ = rootfs;
        },
        |_| {
            assert_eq!(fs::metadata("/proc/version").unwrap().rdev(), libc::makedev(1, 3));
            assert_eq!(fs::read("/proc/keys").unwrap(), b"");
        },
    );
}

/// CVE-2025-52565: /dev/console or /dev/pts is a link.
pub fn a_terminal_comes_from_no_link() {
    let bundle = Bundle::new();
    let victim = victim(&bundle);
    run_with(
        &bundle,
        &ordinary(),
        |rootfs| {
            symlink("/proc/sys/kernel/core_pattern", bundle.root().join("dev/console")).unwrap();
            let error = console::console(rootfs).unwrap_err();
            assert!(words(&error).contains("/dev/console"), "{}", words(&error));
        },
        |_| {},
    );
    for (at, link) in [("pts", Some("/tmp/pts")), ("pts", None)] {
        let bundle = Bundle::new();
        let mut spec = ordinary();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/pts");
        mounts.push(json!({"destination": "/tmp/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}));
        run_with(
            &bundle,
            &spec,
            |rootfs| {
                let place = bundle.root().join("dev").join(at);
                match link {
                    Some(target) => symlink(target, place).unwrap(),
                    None => {
                        fs::create_dir(&place).unwrap();
                        fs::write(place.join("ptmx"), "").unwrap();
                    }
                }
                console::console(rootfs).unwrap_err();
            },
            |_| {},
        );
    }
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "untouched");
}

/// CVE-2025-52881 and CVE-2019-19921: what is written to /proc goes where somebody else wants it.
pub fn a_proc_file_that_is_mounted_over_is_not_written() {
    inside(NEWNS | NEWPID, None, || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).unwrap();
        let over = Some(Path::new("/proc/sys/kernel/ostype"));
        mount(over, "/proc/sys/kernel/hostname", none, MsFlags::MS_BIND, none).unwrap();
        mount(Some("tmpfs"), "/proc/sys/net", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let checked = procfs::Verified::at_proc().unwrap();
        for path in [
            "sys/kernel/hostname",
            "sys/net/core/somaxconn",
            "self/comm",
            "1/cwd",
            "../etc/passwd",
            "1/root/etc/passwd",
        ] {
            checked.file(Path::new(path), libc::O_RDONLY).unwrap_err();
        }
        checked.write_own("comm", "checked").unwrap();
        assert_eq!(fs::read_to_string("/proc/1/comm").unwrap(), "checked\n");
        // One made for the purpose is untouched by what stands over the other.
        let fresh = procfs::Verified::open().unwrap();
        fresh.file(Path::new("sys/kernel/hostname"), libc::O_RDONLY).unwrap();
        fresh.write_own("comm", "fresh").unwrap();
        assert_eq!(fs::read_to_string("/proc/1/comm").unwrap(), "fresh\n");
        mount(Some("tmpfs"), "/proc", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        procfs::Verified::at_proc().unwrap_err();
    });
}

/// Tells the other thread to end.
struct Stop<'p>(&'p Path);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        fs::write(self.0, "").unwrap();
    }
}

/// CVE-2021-30465: a link takes the place of a directory between the look and the mount.
pub fn links_that_change_meanwhile_stay_inside() {
    let bundle = Bundle::new();
    let victim = victim(&bundle);
    let swap = bundle.root().join("swap");
    fs::create_dir_all(swap.join("target")).unwrap();
    fs::create_dir(victim.join("target")).unwrap();
    let up = format!("../../../../../../../..{}", victim.display());
    symlink(&up, bundle.root().join("link")).unwrap();
    let targets: Vec<_> = (0..40)
        .map(|index| {
            let name = if index % 2 == 0 { "/swap/target".to_owned() } else { format!("/swap/new{index}/er") };
            json!({"destination": name, "type": "tmpfs", "source": "escaped"})
        })
        .collect();
    let spec: Spec = serde_json::from_value(with_mounts(ordinary(), &targets)).unwrap();
    let stop = bundle.dir.join("stop");
    let racer = std::thread::scope(|scope| {
        let (root, stop_at) = (bundle.root(), stop.clone());
        let racer = scope.spawn(move || {
            use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
            let mut count = 0_u64;
            while !stop_at.exists() {
                let flags = RenameFlags::RENAME_EXCHANGE;
                let _ = renameat2(AT_FDCWD, &root.join("swap"), AT_FDCWD, &root.join("link"), flags);
                count += 1;
            }
            count
        });
        // The other thread ends also when an assertion fails.
        let stop = Stop(&stop);
        for _ in 0..30 {
            inside(USUAL, None, || {
                let cgroups = Cgroups::default();
                let context = Context::new(&spec, &bundle.dir, &cgroups);
                // Whether it works out is the image's fault; where it mounts is not.
                let _ = Rootfs::prepare(&context, Default::default());
                let inside = bundle.root();
                for line in table() {
                    let is_ours = line.4.contains("escaped") || line.3 == "tmpfs" && line.0.contains("target");
                    assert!(!is_ours || Path::new(&line.0).starts_with(&inside), "{line:?}");
                    assert!(!Path::new(&line.0).starts_with(&victim), "{line:?}");
                }
            });
        }
        drop(stop);
        racer.join().unwrap()
    });
    assert!(racer > 100, "the links changed {racer} times only");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 2, "made something on the host");
}

pub fn the_old_root_is_out_of_reach() {
    let bundle = Bundle::new();
    let marker = bundle.dir.join("marker");
    fs::write(&marker, "host").unwrap();
    for no_pivot in [false, true] {
        run_in(&bundle, &ordinary(), USUAL, None, no_pivot, |_| {
            assert!(!marker.exists());
            assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
            for up in ["..", "/..", "/proc/1/root/..", "/proc/self/cwd/../.."] {
                let found = fs::metadata(up).unwrap();
                let root = fs::metadata("/").unwrap();
                assert_eq!((found.dev(), found.ino()), (root.dev(), root.ino()), "{up}");
            }
        });
    }
}

/// What the child mounted is in no namespace but its own.
pub fn a_failed_start_leaves_no_mount() {
    let before = table();
    let bundle = Bundle::new();
    let last = json!({"destination": "/data", "type": "no-such-type", "source": "none"});
    refused(&bundle, &with_mounts(ordinary(), &[last]), |error| {
        assert!(words(&error).contains("no-such-type"), "{}", words(&error));
        assert!(words(&error).contains("ENODEV"), "{}", words(&error));
    });
    assert_eq!(table(), before);
}

/// CVE-2024-21626: a directory of the host that was left open, as the working directory.
pub fn a_working_directory_through_a_leaked_descriptor_is_refused() {
    let bundle = Bundle::new();
    let leaked = fs::File::open("/").unwrap();
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&leaked));
    let mut spec = ordinary();
    for cwd in [name.clone(), format!("{name}/tmp"), "/link".to_owned()] {
        let _ = fs::remove_file(bundle.root().join("link"));
        symlink(&name, bundle.root().join("link")).unwrap();
        spec["process"]["cwd"] = cwd.into();
        refused(&bundle, &spec, |error| {
            assert!(matches!(error, RootfsError::WorkingDirectory { .. }), "{}", words(&error));
        });
    }
    run(&bundle, &ordinary(), |rootfs| {
        for cwd in [name.as_str(), "/link", "/proc/self/cwd"] {
            apex_oci::init::rootfs::change_dir(rootfs.root(), Path::new(cwd)).unwrap_err();
            assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        }
        apex_oci::init::rootfs::change_dir(rootfs.root(), Path::new("/etc")).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/etc"));
    });
}

/// Without a pivot the old root stays in the namespace, below the new one; a proc or sysfs of the host that stayed with it would let whoever may mount have
/// one that nothing is masked in.
pub fn without_a_pivot_no_other_proc_is_left() {
    use std::io::Read;
    let bundle = Bundle::new();
    let spec: Spec = serde_json::from_value(ordinary()).unwrap();
    inside(USUAL, None, || {
        let cgroups = Cgroups::default();
        let context = Context::new(&spec, &bundle.dir, &cgroups);
        let mut rootfs = Rootfs::prepare(&context, Default::default()).unwrap();
        // What is read shows all that the root of the one who opened it leads to.
        let mut table = fs::File::open("/proc/self/mountinfo").unwrap();
        rootfs.enter(true).unwrap();
        let mut text = String::new();
        table.read_to_string(&mut text).unwrap();
        let systems: Vec<_> =
            text.lines().filter(|line| line.contains(" - proc ") || line.contains(" - sysfs ")).collect();
        assert_eq!(systems.len(), 2, "{text}");
        assert!(
            systems.iter().all(|line| line.split(' ').any(|word| word == "/proc" || word == "/sys")),
            "{systems:?}"
        );
    });
}
