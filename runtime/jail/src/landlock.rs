//! The Landlock rules of a plan as a ruleset (landlock(7)), made in the new root and put in force by the command's process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_core::plan::{LandlockPlan, LandlockRule};
use apex_sys::{Errno, fs, prctl};
use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags, Scope};

use crate::host::c_path;
use crate::step::{Failure, Step};
use crate::streams::StreamFile;

/// The newest ABI whose rights Apex knows.
const ABI_KNOWN: [ABI; 7] = [ABI::Unsupported, ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5, ABI::V6];

/// Descriptors that the init may hold at once beside its own.
const LEFT_OPEN_MAX: usize = 256;

fn abi_of(number: u32) -> ABI {
    let known = usize::try_from(number).unwrap_or(0).min(ABI_KNOWN.len() - 1);
    ABI_KNOWN[known]
}

/// Makes the ruleset. The standard streams stay usable under their names in /proc when they are files.
pub fn ruleset(plan: &LandlockPlan, streams: &[StreamFile], is_own_root: bool) -> Result<OwnedFd, Failure> {
    let abi = abi_of(plan.abi);
    let rules = create(plan, abi).map_err(Failure::at(Step::LandlockRules, 0))?;
    for (index, rule) in plan.rules.iter().enumerate() {
        let name = c_path(&rule.path).map_err(Failure::at(Step::LandlockRules, index))?;
        let place = match fs::open(fs::cwd(), &name, nix::libc::O_PATH, fs::resolve::NO_SYMLINKS) {
            // A place to execute from that is not there grants nothing, and a link is judged where it leads.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => continue,
            // In the host's own tree lies what root may reach and its sandbox's user may not: a rule would give it nothing.
            Err(Errno::EACCES) if !is_own_root => continue,
            other => other.map_err(Failure::at(Step::LandlockRules, index))?,
        };
        add(&rules, place.as_fd(), rights(rule, abi), abi).map_err(Failure::at(Step::LandlockRules, index))?;
        // Left open until the init closes all of them in one call, instead of one call for each, as long as they are few.
        if index < LEFT_OPEN_MAX {
            std::mem::forget(place);
        }
    }
    for (at, stream) in streams.iter().enumerate() {
        if streams[..at].iter().any(|earlier| earlier.file == stream.file) {
            continue;
        }
        // One rule for one file, however often it is open.
        let same = streams[at..].iter().filter(|other| other.file == stream.file);
        let rights = same.fold(BitFlags::empty(), |rights, stream| rights | stream_rights(stream, abi));
        add(&rules, fs::borrow_known(stream.number), rights, abi).map_err(Failure::at(Step::LandlockRules, 0))?;
    }
    Ok(rules)
}

/// Everything that the ABI can restrict is restricted: a kernel that lacks a right makes it an error. The crate's own way asks for the ABI once more.
fn create(plan: &LandlockPlan, abi: ABI) -> Result<OwnedFd, Errno> {
    let network = if plan.tcp_refused { AccessNet::from_all(abi).bits() } else { 0 };
    let scoped = if plan.scoped { Scope::from_all(abi).bits() } else { 0 };
    prctl::landlock_ruleset(AccessFs::from_all(abi).bits(), network, scoped)
}

/// Directly, not through the crate's `PathBeneath`, which looks at each file first: most rules are on directories, and the kernel
/// says `EINVAL` to a right that only a directory can have. What is asked for again is less, so nothing is granted by mistake.
fn add(rules: &OwnedFd, place: BorrowedFd<'_>, rights: BitFlags<AccessFs>, abi: ABI) -> Result<(), Errno> {
    if rights.is_empty() {
        return Ok(());
    }
    let of_files = rights & AccessFs::from_file(abi);
    match prctl::landlock_allow_beneath(rules.as_fd(), place, rights.bits()) {
        Err(Errno::EINVAL) if of_files != rights => {
            if of_files.is_empty() {
                return Ok(());
            }
            prctl::landlock_allow_beneath(rules.as_fd(), place, of_files.bits())
        }
        other => other,
    }
}

/// `echo > /dev/stderr` opens the stream anew: the file itself is granted as it was opened, nothing beside it.
fn stream_rights(stream: &StreamFile, abi: ABI) -> BitFlags<AccessFs> {
    let mut rights = BitFlags::<AccessFs>::empty();
    if stream.mode & nix::libc::O_PATH != 0 {
        return rights;
    }
    if stream.mode & nix::libc::O_ACCMODE != nix::libc::O_WRONLY {
        rights |= AccessFs::ReadFile;
    }
    if stream.mode & nix::libc::O_ACCMODE != nix::libc::O_RDONLY {
        rights |= (AccessFs::WriteFile | AccessFs::Truncate) & AccessFs::from_all(abi);
    }
    rights
}

fn rights(rule: &LandlockRule, abi: ABI) -> BitFlags<AccessFs> {
    let mut rights = BitFlags::<AccessFs>::empty();
    if rule.list {
        rights |= AccessFs::ReadDir;
    }
    if rule.read {
        rights |= AccessFs::ReadFile;
    }
    if rule.write {
        // Device nodes are never made: no capability allows it, and no right here either.
        rights |= AccessFs::from_write(abi) & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    }
    if rule.exec {
        rights |= AccessFs::Execute;
    }
    if rule.ioctl {
        rights |= AccessFs::IoctlDev;
    }
    rights & AccessFs::from_all(abi)
}
