//! Mounts of type cgroup.

use std::fs;
use std::path::{Path, PathBuf};

use apex_oci::init::rootfs::{Cgroups, Context, Rootfs, View};
use oci_spec::runtime::Spec;
use serde_json::json;

use crate::bundle::*;

const NEWCGROUP: u64 = 0x0200_0000;

/// A cgroup below the host's, removed at the end.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn views(groups: &[Group]) -> Vec<View> {
    let view = |group: &Group| {
        let host_mount = group.0.parent().unwrap().to_owned();
        let name = host_mount.file_name().unwrap().to_str().unwrap().to_owned();
        let controllers = match name.as_str() {
            "unified" => String::new(),
            "systemd" => "name=systemd".to_owned(),
            _ => name.clone(),
        };
        View { links: vec![format!("link-to-{name}")], name, controllers, host_mount, host_dir: group.0.clone() }
    };
    groups.iter().map(view).collect()
}

pub fn each_hierarchy_is_the_containers_own() {
    let name = format!("apex-oci-rootfs-{}", std::process::id());
    let hierarchies: Vec<_> = ["pids", "freezer", "systemd", "unified"]
        .iter()
        .map(|kind| Path::new("/sys/fs/cgroup").join(kind))
        .filter(|dir| dir.join("cgroup.procs").exists())
        .collect();
    if hierarchies.is_empty() {
        println!("skipped: no hierarchies of version 1 here");
        return;
    }
    let groups: Vec<_> = hierarchies
        .iter()
        .map(|dir| {
            let group = Group(dir.join(&name));
            fs::create_dir(&group.0).unwrap();
            group
        })
        .collect();
    for own_namespace in [false, true] {
        let bundle = Bundle::new();
        let mut spec = with_mounts(
            ordinary(),
            &[json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                     "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]})],
        );
        if own_namespace {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        }
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let cgroups = Cgroups { unified: false, views: views(&groups) };
        inside(NEWNS, None, || {
            // The namespace's root is where the process is when it makes the namespace.
            for group in &groups {
                fs::write(group.0.join("cgroup.procs"), "0").unwrap();
            }
            inside(USUAL | if own_namespace { NEWCGROUP } else { 0 }, None, || {
                let context = Context::new(&spec, &bundle.dir, &cgroups);
                let mut rootfs =
                    Rootfs::prepare(&context, Default::default()).unwrap_or_else(|error| panic!("{}", words(&error)));
                rootfs.enter(false).unwrap();
                rootfs.seal().unwrap();
                for view in &cgroups.views {
                    let dir = Path::new("/sys/fs/cgroup").join(&view.name);
                    assert_eq!(fs::read_link(dir.with_file_name(&view.links[0])).unwrap(), Path::new(&view.name));
                    let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
                    assert!(members.lines().any(|pid| pid == "1"), "{}: {members}", view.name);
                    let refused = fs::create_dir(dir.join("below")).unwrap_err();
                    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS), "{}", view.name);
                }
                assert!(options_of("/sys/fs/cgroup").contains("ro"));
            });
        });
    }
}

pub fn the_one_hierarchy_of_version_2_is_the_containers_own() {
    let found = table().into_iter().find(|it| it.3 == "cgroup2");
    let Some((mounted, ..)) = found else {
        println!("skipped: no hierarchy of version 2 here");
        return;
    };
    let group = Group(Path::new(&mounted).join(format!("apex-oci-rootfs-2-{}", std::process::id())));
    fs::create_dir(&group.0).unwrap();
    let view = View { host_mount: mounted.into(), host_dir: group.0.clone(), ..View::default() };
    let cgroups = Cgroups { unified: true, views: vec![view] };
    for own_namespace in [false, true] {
        let bundle = Bundle::new();
        let more =
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "ro"]});
        let mut spec = with_mounts(ordinary(), &[more]);
        if own_namespace {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        }
        let spec: Spec = serde_json::from_value(spec).unwrap();
        inside(NEWNS, None, || {
            fs::write(group.0.join("cgroup.procs"), "0").unwrap();
            inside(USUAL | if own_namespace { NEWCGROUP } else { 0 }, None, || {
                let context = Context::new(&spec, &bundle.dir, &cgroups);
                let mut rootfs =
                    Rootfs::prepare(&context, Default::default()).unwrap_or_else(|error| panic!("{}", words(&error)));
                rootfs.enter(false).unwrap();
                rootfs.seal().unwrap();
                let members = fs::read_to_string("/sys/fs/cgroup/cgroup.procs").unwrap();
                assert!(members.lines().any(|pid| pid == "1"), "{members}");
                let refused = fs::create_dir("/sys/fs/cgroup/below").unwrap_err();
                assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
            });
        });
    }
}
