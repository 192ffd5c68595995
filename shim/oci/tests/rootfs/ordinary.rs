//! What every bundle has, and the options of mounts.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::json;

use crate::bundle::*;

pub fn an_ordinary_bundle_has_what_every_image_expects() {
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

pub fn masks_and_readonly_paths_hold() {
    let bundle = Bundle::new();
    let mut spec = ordinary();
    spec["root"]["readonly"] = true.into();
    run(&bundle, &spec, |_| {
        assert!(fs::metadata("/proc/version").unwrap().file_type().is_char_device());
        assert_eq!(fs::read("/proc/keys").unwrap(), b"");
        fs::write("/proc/keys", "x").unwrap();
        // The device's mode is the host's.
        let mode = fs::metadata("/proc/keys").unwrap().permissions();
        assert_eq!(fs::set_permissions("/proc/keys", mode).unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
        assert!(Path::new("/sys/firmware").read_dir().unwrap().next().is_none());
        let denied = fs::write("/proc/sys/kernel/hostname", "x").unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(nix::libc::EROFS));
        assert_eq!(fs::write("/etc/new", "x").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
        assert_eq!(fs::write("/sys/firmware/x", "x").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
        fs::write("/dev/shm/x", "x").unwrap();
    });
}

pub fn without_a_pivot_it_is_the_same_root() {
    let bundle = Bundle::new();
    run_in(&bundle, &ordinary(), USUAL, None, true, |_| {
        assert_eq!(fs::read_to_string("/etc/name").unwrap(), "inside");
        assert_eq!(fs::read_to_string("/../../etc/name").unwrap(), "inside");
        assert_eq!(fs::read("/proc/keys").unwrap(), b"");
        let kinds: Vec<_> = table().into_iter().filter(|it| it.3 == "proc" && it.0 == "/proc").collect();
        assert_eq!(kinds.len(), 1, "{kinds:?}");
    });
}

pub fn binds_have_the_options_they_were_given() {
    let bundle = Bundle::new();
    let outside = bundle.dir.join("outside");
    fs::create_dir_all(outside.join("below")).unwrap();
    fs::write(outside.join("file"), "content").unwrap();
    let spec = with_mounts(
        ordinary(),
        &[
            json!({"destination": "/new/dir", "type": "bind", "source": "outside", "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]}),
            json!({"destination": "/new/file", "source": outside.join("file"), "options": ["bind", "noatime"]}),
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k,mode=0711", "nosymfollow", "ro"]}),
            json!({"destination": "/shared", "type": "bind", "source": "outside", "options": ["rbind", "rshared", "rro"]}),
            json!({"destination": "/new/sticky", "type": "tmpfs", "source": "none", "options": ["private", "mode=0700,size=8k", "noexec"]}),
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
        assert_eq!(fs::metadata("/data").unwrap().mode() & 0o7777, 0o711, "not that of the directory below");
        assert_eq!(fs::metadata("/new/sticky").unwrap().mode() & 0o7777, 0o700);
        assert!(all.iter().any(|it| it.0 == "/new/sticky" && it.4.contains("size=8k")), "{all:?}");
    });
}

pub fn attributes_of_all_mounts_reach_those_below() {
    use nix::mount::{MsFlags, mount};
    let bundle = Bundle::new();
    let source = bundle.dir.join("source");
    fs::create_dir_all(source.join("below")).unwrap();
    let bind = |place: &str, words: &[&str]| json!({"destination": place, "type": "bind", "source": "source", "options": words});
    let spec = with_mounts(
        ordinary(),
        &[
            bind("/rro", &["rbind", "rro", "rnosuid"]),
            bind("/ro", &["rbind", "ro"]),
            bind("/rw-top", &["rbind", "rro", "rw"]),
            bind("/one", &["bind"]),
            bind("/rsuid", &["rbind", "rsuid", "rnoatime"]),
        ],
    );
    inside(NEWNS, None, || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &source.join("below"), Some("tmpfs"), MsFlags::MS_NOSUID, none).unwrap();
        fs::write(source.join("below/file"), "x").unwrap();
        run(&bundle, &spec, |_| {
            let has = |path: &str, word: &str| options_of(path).split(',').any(|it| it == word);
            for (path, word, expected) in [
                ("/rro", "ro", true),
                ("/rro/below", "ro", true),
                ("/rro/below", "nosuid", true),
                ("/ro", "ro", true),
                ("/ro/below", "rw", true),
                ("/ro/below", "nosuid", true),
                ("/rw-top", "rw", true),
                ("/rw-top/below", "ro", true),
                ("/rsuid/below", "nosuid", false),
                ("/rsuid/below", "noatime", true),
            ] {
                assert_eq!(has(path, word), expected, "{path} {word}: {}", options_of(path));
            }
            assert!(!Path::new("/one/below/file").exists());
        });
    });
}

pub fn what_is_mounted_can_be_changed() {
    let bundle = Bundle::new();
    let spec = with_mounts(
        ordinary(),
        &[
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}),
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "size=128k", "nosuid"]}),
            json!({"destination": "/dev/shm", "type": "none", "options": ["remount", "bind", "ro"]}),
        ],
    );
    run(&bundle, &spec, |_| {
        let all = table();
        let data = all.iter().find(|it| it.0 == "/data").unwrap();
        assert!(data.4.contains("size=128k") && data.1.contains("nosuid"), "{data:?}");
        assert!(options_of("/dev/shm").split(',').any(|it| it == "ro"));
        assert!(options_of("/dev/shm").split(',').any(|it| it == "nosuid"), "what was not named stays");
    });
    for (place, option) in [("/proc/sys", "rw"), ("/data", "ro")] {
        let more = json!({"destination": place, "options": ["remount", "bind", option]});
        refused(&bundle, &with_mounts(ordinary(), &[more]), |error| {
            assert!(!words(&error).is_empty(), "{error}");
        });
    }
}
