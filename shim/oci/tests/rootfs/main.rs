//! The container's file system for real: every case forks a child into new namespaces, builds a root there, and looks at it from inside.
//!
//! It speaks as libtest does: `--list`, `--exact NAME`, or a part of names. Without root each case says that it was skipped.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bundle;
mod cgroups;
mod escapes;
mod ordinary;
mod special;
mod userns;

use std::panic::catch_unwind;

macro_rules! cases {
    ($($module:ident::$name:ident,)*) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())),*]
    };
}

const CASES: &[(&str, fn())] = cases![
    ordinary::an_ordinary_bundle_has_what_every_image_expects,
    ordinary::masks_and_readonly_paths_hold,
    ordinary::without_a_pivot_it_is_the_same_root,
    ordinary::binds_have_the_options_they_were_given,
    special::devices_have_the_mode_and_owner_they_were_given,
    special::a_tmpfs_starts_with_what_it_covers,
    special::owners_are_translated_through_an_idmapped_mount,
    special::the_root_has_the_propagation_that_was_asked_for,
    special::a_terminal_is_the_containers_own,
    special::parameters_are_set_in_the_containers_namespaces,
    special::an_option_longer_than_the_kernel_takes_one_goes_another_way,
    special::a_shared_bind_reaches_the_host_and_no_other_mount_does,
    cgroups::each_hierarchy_is_the_containers_own,
    userns::a_root_of_another_user_is_whole,
    userns::who_has_no_privileges_gets_what_the_host_allows,
    ordinary::attributes_of_all_mounts_reach_those_below,
    ordinary::what_is_mounted_can_be_changed,
    escapes::proc_is_an_ordinary_directory,
    escapes::links_at_mount_targets_stay_inside,
    escapes::nothing_stands_over_proc,
    escapes::a_link_at_a_device_leads_no_writer_astray,
    escapes::a_mask_is_the_null_device,
    escapes::a_terminal_comes_from_no_link,
    escapes::a_proc_file_that_is_mounted_over_is_not_written,
    escapes::links_that_change_meanwhile_stay_inside,
    escapes::a_working_directory_through_a_leaked_descriptor_is_refused,
    userns::a_root_that_only_the_host_can_reach_is_entered,
    special::the_working_directory_is_made,
    escapes::without_a_pivot_no_other_proc_is_left,
    userns::without_namespaces_of_its_own_it_sees_the_hosts_proc_and_sysfs,
    special::a_mount_at_the_root_is_the_root,
    special::malformed_mounts_are_refused_by_name,
    cgroups::the_one_hierarchy_of_version_2_is_the_containers_own,
    escapes::the_old_root_is_out_of_reach,
    escapes::a_failed_start_leaves_no_mount,
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let is_said = |word: &str| words.iter().any(|other| other == word);
    if is_said("--list") {
        // None is ignored, which is asked for apart.
        let listed = if is_said("--ignored") { &[] } else { CASES };
        listed.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let names: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let is_asked = |case: &str| {
        let fits =
            |name: &&&String| if is_said("--exact") { case == name.as_str() } else { case.contains(name.as_str()) };
        names.is_empty() || names.iter().any(|name| fits(&name))
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES.iter().filter(|(name, _)| is_asked(name)) {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP rootfs::{name}: needs root");
        }
        let has_passed = !nix::unistd::geteuid().is_root() || catch_unwind(case).is_ok();
        println!("test {name} ... {}", if has_passed { "ok" } else { "FAILED" });
        *(if has_passed { &mut passed } else { &mut failed }) += 1;
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s"
    );
    if failed > 0 {
        std::process::exit(101);
    }
}
