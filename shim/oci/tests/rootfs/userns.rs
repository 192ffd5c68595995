//! Containers with a user namespace.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};

use apex_oci::init::console;
use serde_json::json;

use crate::bundle::*;

const MAP: &str = "0 100000 65536\n";

pub fn a_root_of_another_user_is_whole() {
    let bundle = Bundle::new();
    for path in ["", "proc", "sys", "dev", "etc", "etc/name", "tmp", "data"] {
        chown(bundle.root().join(path), Some(100_000), Some(100_000)).unwrap();
    }
    // Where only the host's root may look.
    let hidden = bundle.dir.join("hidden");
    fs::create_dir_all(hidden.join("source")).unwrap();
    fs::write(hidden.join("source/file"), "found").unwrap();
    fs::write(hidden.join("source/other"), "x").unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).unwrap();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let mut spec = with_mounts(
        ordinary(),
        &[
            json!({"destination": "/data", "type": "bind", "source": hidden.join("source"), "options": ["rbind", "ro"]}),
            json!({"destination": "/mapped", "type": "bind", "source": hidden.join("source"), "options": ["rbind", "idmap"]}),
        ],
    );
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    // One that the host has under no such name, and one that it has with another owner.
    spec["linux"]["devices"] = json!([
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 10, "gid": 11},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o622, "uid": 10},
    ]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    run_in(&bundle, &spec, USUAL | NEWUSER, Some(MAP), true, |_| {
        assert_eq!(fs::read_to_string("/etc/name").unwrap(), "inside");
        assert_eq!(fs::read("/proc/keys").unwrap(), b"");
    });
    run_in(&bundle, &spec, USUAL | NEWUSER, Some(MAP), false, |rootfs| {
        assert_eq!(fs::read_to_string("/data/file").unwrap(), "found");
        assert_eq!(fs::metadata("/data/file").unwrap().uid(), 65534, "of a user that is not the container's");
        assert_eq!(fs::metadata("/mapped/file").unwrap().uid(), 0, "through the container's own mapping");
        fs::write("/mapped/other", "written").unwrap();
        for name in ["null", "zero", "urandom", "tty"] {
            assert!(fs::metadata(format!("/dev/{name}")).unwrap().file_type().is_char_device(), "{name}");
        }
        fs::write("/dev/null", "x").unwrap();
        let facts = |path: &str| fs::metadata(path).map(|it| (it.uid(), it.gid(), it.mode() & 0o7777)).unwrap();
        assert_eq!(facts("/dev/mine"), (10, 11, 0o640));
        assert_eq!(facts("/dev/null"), (10, 0, 0o622));
        let mut zeros = [1; 4];
        std::io::Read::read_exact(&mut fs::File::open("/dev/mine").unwrap(), &mut zeros).unwrap();
        assert_eq!(zeros, [0; 4], "it works");
        assert!(fs::symlink_metadata("/dev/fd").unwrap().is_symlink(), "what was over /dev is gone");
        assert_eq!(fs::read("/proc/keys").unwrap(), b"");
        assert!(options_of("/sys").contains("ro"));
        let pair = console::console(rootfs).unwrap();
        fs::write("/dev/console", "x").unwrap();
        drop(pair);
    });
    assert_eq!(fs::metadata(hidden.join("source/other")).unwrap().uid(), 0);
}

/// Started by an ordinary user: what the host has set on a mount stays set, whatever the options say, and a group that is not there owns no terminals.
pub fn who_has_no_privileges_gets_what_the_host_allows() {
    use nix::mount::{MsFlags, mount};
    let bundle = Bundle::new();
    for path in [
        "",
        "rootfs",
        "rootfs/proc",
        "rootfs/sys",
        "rootfs/dev",
        "rootfs/etc",
        "rootfs/etc/name",
        "rootfs/tmp",
        "rootfs/data",
    ] {
        chown(bundle.dir.join(path), Some(1000), Some(1000)).unwrap();
    }
    fs::create_dir(bundle.dir.join("locked")).unwrap();
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let mut spec = with_mounts(
        ordinary(),
        &[
            json!({"destination": "/data", "type": "bind", "source": "locked", "options": ["rbind", "rw", "suid", "dev", "relatime", "noexec"]}),
        ],
    );
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    inside(NEWNS, None, || {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        mount(Some("tmpfs"), &bundle.dir.join("locked"), Some("tmpfs"), flags, none).unwrap();
        apex_sys::process::clear_groups().unwrap();
        apex_sys::process::set_gid(1000).unwrap();
        apex_sys::process::set_uid(1000).unwrap();
        apex_sys::prctl::set_dumpable(true).unwrap();
        run_in(&bundle, &spec, USUAL | NEWUSER, Some("0 1000 1\n"), false, |rootfs| {
            let options = options_of("/data");
            for word in ["ro", "nosuid", "noatime", "noexec"] {
                assert!(options.split(',').any(|it| it == word), "{word}: {options}");
            }
            assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
            assert_eq!(fs::read("/proc/keys").unwrap(), b"");
            let _pair = console::console(rootfs).unwrap();
            fs::write("/dev/console", "x").unwrap();
        });
    });
}

pub fn a_root_that_only_the_host_can_reach_is_entered() {
    let bundle = Bundle::new();
    for path in ["", "proc", "sys", "dev", "etc", "etc/name", "tmp", "data"] {
        chown(bundle.root().join(path), Some(100_000), Some(100_000)).unwrap();
    }
    fs::set_permissions(&bundle.dir, fs::Permissions::from_mode(0o700)).unwrap();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let mut spec = ordinary();
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    run_in(&bundle, &spec, USUAL | NEWUSER, Some(MAP), false, |_| {
        assert_eq!(fs::read_to_string("/etc/name").unwrap(), "inside");
        assert!(!std::path::Path::new("/work").exists());
    });
}

/// Whoever shares the host's network and processes sees the host's sysfs and proc, which a user namespace may not mount anew.
pub fn without_namespaces_of_its_own_it_sees_the_hosts_proc_and_sysfs() {
    let bundle = Bundle::new();
    for path in ["", "proc", "sys", "dev", "etc", "etc/name", "tmp", "data"] {
        chown(bundle.root().join(path), Some(100_000), Some(100_000)).unwrap();
    }
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let mut spec = ordinary();
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "user"}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    let own = std::process::id();
    run_in(&bundle, &spec, NEWNS | NEWIPC | NEWUSER, Some(MAP), false, |rootfs| {
        assert!(fs::exists(format!("/proc/{own}/comm")).unwrap());
        assert!(fs::exists("/sys/kernel").unwrap());
        assert!(options_of("/sys").split(',').any(|it| it == "ro"), "{}", options_of("/sys"));
        assert_eq!(fs::read("/proc/version").unwrap(), b"");
        rootfs.procfs().unwrap().write_own("comm", "own").unwrap();
        assert_eq!(fs::read_to_string("/proc/self/comm").unwrap(), "own\n");
    });
}
