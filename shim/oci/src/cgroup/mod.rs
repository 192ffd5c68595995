//! stub
#![allow(missing_docs, unused)]
use serde::{Deserialize, Serialize};
use std::os::fd::*; use std::path::Path; use apex_sys::Errno; use std::collections::HashMap;
use oci_spec::runtime::LinuxResources;
#[derive(Debug, thiserror::Error)] #[error("cgroup")] pub struct CgroupError;
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> { pub id: &'a str, pub path: Option<&'a Path>, pub systemd: bool, pub resources: Option<&'a LinuxResources>, pub is_rootless: bool, pub annotations: Option<&'a HashMap<String, String>> }
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Cgroup {}
#[derive(Debug)] pub struct Doors;
impl Doors { pub fn walk_in(&self) -> Result<(), CgroupError> { Ok(()) } pub fn birth(&self) -> Option<BorrowedFd<'_>> { None } }
type R<T> = Result<T, CgroupError>;
impl Cgroup {
 pub fn make(_: &Wanted) -> R<Cgroup> { Ok(Cgroup{}) }
 pub fn doors(&self) -> R<Doors> { Ok(Doors) } pub fn doors_below(&self, _: &Path) -> R<Doors> { Ok(Doors) }
 pub fn admit(&self, _: i32) -> R<()> { Ok(()) } pub fn needs_admission(&self) -> bool { false }
 pub fn kill(&self, _: i32) -> R<()> { Ok(()) } pub fn remove(&self) -> R<()> { Ok(()) }
 pub fn views(&self) -> crate::init::rootfs::Cgroups { Default::default() }
 pub fn is_frozen(&self) -> R<bool> { Ok(false) } pub fn freeze(&self) -> R<()> { Ok(()) } pub fn thaw(&self) -> R<()> { Ok(()) }
 pub fn pids(&self) -> R<Vec<i32>> { Ok(vec![]) } pub fn limit(&self, _: &LinuxResources) -> R<()> { Ok(()) }
}
