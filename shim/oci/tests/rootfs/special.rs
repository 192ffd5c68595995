//! What some bundles ask for.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use apex_oci::init::{console, procfs, sysctl};
use apex_sys::terminal;
use nix::libc;
use oci_spec::runtime::Spec;
use serde_json::json;

use crate::bundle::*;

pub fn devices_have_the_mode_and_owner_they_were_given() {
    let bundle = Bundle::new();
    let mut spec = ordinary();
    spec["linux"]["devices"] = json!([
        {"path": "/dev/deep/er/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o4640, "uid": 7, "gid": 8},
        {"path": "/dev/disk", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}
    ]);
    run(&bundle, &spec, |_| {
        let fuse = fs::metadata("/dev/deep/er/fuse").unwrap();
        assert!(fuse.file_type().is_char_device());
        assert_eq!((libc::major(fuse.rdev()), libc::minor(fuse.rdev())), (10, 229));
        assert_eq!((fuse.mode() & 0o7777, fuse.uid(), fuse.gid()), (0o4640, 7, 8));
        assert!(fs::metadata("/dev/disk").unwrap().file_type().is_block_device());
        assert!(fs::metadata("/dev/pipe").unwrap().file_type().is_fifo());
        assert_eq!(fs::metadata("/dev/pipe").unwrap().mode() & 0o7777, 0o622);
        assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o7777, 0o600);
    });
}

pub fn a_tmpfs_starts_with_what_it_covers() {
    let bundle = Bundle::new();
    let data = bundle.root().join("data");
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("a/b/file"), "kept").unwrap();
    fs::set_permissions(data.join("a/b/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(data.join("a"), Some(12), Some(13)).unwrap();
    symlink("/etc/name", data.join("link")).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1751)).unwrap();
    let more = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]});
    run(&bundle, &with_mounts(ordinary(), &[more]), |_| {
        assert_eq!(fs::read_to_string("/data/a/b/file").unwrap(), "kept");
        assert_eq!(fs::metadata("/data/a/b/file").unwrap().mode() & 0o7777, 0o4711);
        assert_eq!(fs::metadata("/data/a").unwrap().uid(), 12);
        assert_eq!(fs::metadata("/data").unwrap().mode() & 0o7777, 0o1751);
        assert_eq!(fs::read_link("/data/link").unwrap(), Path::new("/etc/name"));
        assert_eq!(fs::write("/data/x", "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    });
    assert!(data.join("a/b/file").exists());
}

pub fn owners_are_translated_through_an_idmapped_mount() {
    let bundle = Bundle::new();
    let source = bundle.dir.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    let mapping = |host| json!([{"containerID": 0, "hostID": host, "size": 10}]);
    let more = json!({"destination": "/mapped", "type": "bind", "source": "source", "options": ["rbind", "idmap"],
                      "uidMappings": mapping(1000), "gidMappings": mapping(2000)});
    run(&bundle, &with_mounts(ordinary(), &[more]), |_| {
        let found = fs::metadata("/mapped/file").unwrap();
        assert_eq!((found.uid(), found.gid()), (1000, 2000));
    });
}

pub fn the_root_has_the_propagation_that_was_asked_for() {
    for (word, fields) in [
        ("private", vec![]),
        ("rprivate", vec![]),
        ("slave", vec![]),
        ("shared", vec!["shared:"]),
        ("rshared", vec!["shared:"]),
        ("unbindable", vec!["unbindable"]),
    ] {
        let bundle = Bundle::new();
        let mut spec = ordinary();
        spec["linux"]["rootfsPropagation"] = word.into();
        run(&bundle, &spec, |_| {
            let all = table();
            let root = all.iter().find(|it| it.0 == "/").unwrap();
            for field in &fields {
                assert!(root.2.contains(field), "{word}: {root:?}");
            }
            assert_eq!(root.2.contains("shared:"), fields.contains(&"shared:"), "{word}: {root:?}");
        });
    }
    let bundle = Bundle::new();
    let mut spec = ordinary();
    spec["linux"]["rootfsPropagation"] = "sideways".into();
    refused(&bundle, &spec, |error| assert!(words(&error).contains("sideways"), "{error}"));
}

pub fn a_terminal_is_the_containers_own() {
    let bundle = Bundle::new();
    run(&bundle, &ordinary(), |rootfs| {
        let mut pair = console::console(rootfs).unwrap();
        assert!(terminal::is_terminal(std::os::fd::AsFd::as_fd(&pair.slave)));
        let console = fs::metadata("/dev/console").unwrap();
        assert_eq!(console.rdev(), fs::metadata("/dev/pts/0").unwrap().rdev());
        fs::OpenOptions::new().write(true).open("/dev/console").unwrap().write_all(b"hello\n").unwrap();
        let mut bytes = [0; 7];
        let mut master = fs::File::from(std::mem::replace(&mut pair.master, fs::File::open("/").unwrap().into()));
        master.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello\r\n");
    });
}

pub fn parameters_are_set_in_the_containers_namespaces() {
    let bundle = Bundle::new();
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    let mut spec = ordinary();
    spec["linux"]["sysctl"] =
        json!({"net.ipv4.ip_default_ttl": "77", "net/ipv4/conf/lo/forwarding": "1", "kernel.shmmni": "99"});
    let parsed: Spec = serde_json::from_value(spec.clone()).unwrap();
    sysctl::validate(&parsed).unwrap();
    run_with(
        &bundle,
        &spec,
        |rootfs| sysctl::apply(&parsed, &rootfs.procfs().unwrap()).unwrap(),
        |_| assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), "99\n"),
    );
    run(&bundle, &spec, |rootfs| {
        sysctl::apply(&parsed, &procfs::Verified::open().unwrap()).unwrap();
        // The container's own will not do here any more: /proc/sys is read-only.
        sysctl::apply(&parsed, &rootfs.procfs().unwrap()).unwrap_err();
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(), "77\n");
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/conf/lo/forwarding").unwrap(), "1\n");
        assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), "99\n");
    });
    assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(), host);
}

pub fn an_option_longer_than_the_kernel_takes_one_goes_another_way() {
    let bundle = Bundle::new();
    // Overlay refuses itself on some file systems as upper layer, so there is none.
    let layers: Vec<String> = (0..12)
        .map(|index| {
            let dir = bundle.dir.join(format!("a-layer-with-a-name-that-is-long-{index}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(format!("file{index}")), "x").unwrap();
            dir.to_str().unwrap().to_owned()
        })
        .collect();
    let option = format!("lowerdir={}", layers.join(":"));
    assert!(option.len() > 256);
    let more =
        json!({"destination": "/data", "type": "overlay", "source": "overlay", "options": [option, "ro", "nosuid"]});
    run(&bundle, &with_mounts(ordinary(), &[more]), |_| {
        for index in 0..12 {
            assert!(Path::new(&format!("/data/file{index}")).exists());
        }
        assert!(options_of("/data").contains("nosuid"), "{}", options_of("/data"));
    });
}

/// With rootfsPropagation shared the bind is a peer of its source: the host sees what is mounted there, and nothing else of the container.
pub fn a_shared_bind_reaches_the_host_and_no_other_mount_does() {
    let bundle = Bundle::new();
    let source = bundle.dir.join("source");
    fs::create_dir_all(source.join("point")).unwrap();
    let mut spec = with_mounts(
        ordinary(),
        &[json!({"destination": "/data", "type": "bind", "source": "source", "options": ["rbind", "rshared"]})],
    );
    spec["linux"]["rootfsPropagation"] = "rshared".into();
    // A host of our own, whose mounts are shared.
    inside(NEWNS, None, || {
        use nix::mount::{MsFlags, mount};
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some(&bundle.dir), &bundle.dir, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, &bundle.dir, none, MsFlags::MS_SHARED, none).unwrap();
        mount(Some(&source), &source, none, MsFlags::MS_BIND, none).unwrap();
        let before = table();
        run(&bundle, &spec, |_| {
            mount(Some("tmpfs"), "/data/point", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        });
        let mut after: Vec<_> = table().into_iter().filter(|it| !before.contains(it)).map(|it| it.0).collect();
        // Under it too, on the peer that the source was bound from.
        after.dedup();
        assert_eq!(after, [source.join("point").to_str().unwrap()]);
    });
}

pub fn the_working_directory_is_made() {
    let bundle = Bundle::new();
    let mut spec = ordinary();
    spec["process"]["cwd"] = "/srv/deep/er".into();
    run(&bundle, &spec, |_| assert!(Path::new("/srv/deep/er").is_dir()));
}

pub fn a_mount_at_the_root_is_the_root() {
    let bundle = Bundle::new();
    let other = bundle.dir.join("other");
    for name in ["proc", "sys", "dev", "etc"] {
        fs::create_dir_all(other.join(name)).unwrap();
    }
    fs::write(other.join("etc/name"), "other").unwrap();
    for destination in ["/", "", "/etc/.."] {
        let mut spec = ordinary();
        let over = json!({"destination": destination, "type": "bind", "source": "other", "options": ["rbind"]});
        spec["mounts"].as_array_mut().unwrap().insert(0, over);
        spec["root"]["readonly"] = true.into();
        run(&bundle, &spec, |_| {
            assert_eq!(fs::read_to_string("/etc/name").unwrap(), "other");
            assert_eq!(fs::read("/proc/version").unwrap(), b"");
            assert_eq!(fs::write("/x", "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        });
    }
}

/// Words that no bundle should have end in an error that names the mount.
pub fn malformed_mounts_are_refused_by_name() {
    let bundle = Bundle::new();
    let long = "x".repeat(5000);
    for mount in [
        json!({"destination": "/data/nul\u{0}x", "type": "tmpfs"}),
        json!({"destination": format!("/data/{long}"), "type": "tmpfs"}),
        json!({"destination": "/data", "type": "tmpfs", "options": ["mode=nonsense"]}),
        json!({"destination": "/data", "type": "tmpfs", "options": ["no-such-option"]}),
        json!({"destination": "/data", "type": "tmpfs", "options": ["si\u{0}ze=1"]}),
        json!({"destination": "/data", "type": "bind", "source": "/no/such/source"}),
        json!({"destination": "/data", "type": "bind"}),
        json!({"destination": "/data"}),
        json!({"destination": "/etc/name/below", "type": "tmpfs"}),
        json!({"destination": "/etc/name", "type": "tmpfs"}),
        json!({"destination": "/data", "type": "bind", "source": "config.json", "options": ["bind"]}),
        json!({"destination": "/data", "type": "\u{0}", "source": "x"}),
    ] {
        fs::write(bundle.dir.join("config.json"), "{}").unwrap();
        let destination = mount["destination"].as_str().unwrap().to_owned();
        refused(&bundle, &with_mounts(ordinary(), &[mount]), |error| {
            let start = format!("{destination:.12?}");
            assert!(words(&error).contains(start.trim_end_matches(['"', '\\', '0', 'x'])), "{}", words(&error));
        });
    }
}
