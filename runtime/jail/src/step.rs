//! The steps of a start by name, so that a failure anywhere says what was tried, what stood in the way and what to do next.

use apex_core::plan::Plan;
use apex_core::planner::mount_dest;
use apex_sys::Errno;

/// A step that can fail. The order is the order of execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Making the cgroup and its limits.
    CreateCgroup,
    /// Copying a granted tree.
    CloneTree,
    /// Translating its owners.
    Idmap,
    /// Making the layers that take what is written.
    Layers,
    /// Making the placeholder of a path that is denied before it exists.
    Placeholder,
    /// Compiling or loading the system call program.
    CompileSeccomp,
    /// Cloning into new namespaces.
    CreateNamespaces,
    /// Writing the id maps.
    WriteIdMaps,
    /// Moving the init into its cgroup.
    AttachCgroup,
    /// Talking to the other side.
    Handshake,
    /// Becoming the sandbox's user.
    BecomeUser,
    /// Asking to die with the launcher.
    BindLife,
    /// Cutting mounts off from the host's.
    PrivateMounts,
    /// Making the new root.
    CreateRoot,
    /// Putting one mount into it.
    Mount,
    /// Making the new root read-only.
    SealRoot,
    /// Entering the new root and letting go of the old one.
    EnterRoot,
    /// Setting the host name.
    SetHostname,
    /// Bringing loopback up.
    Loopback,
    /// Entering the cgroup namespace.
    CgroupNamespace,
    /// Opening the terminal.
    OpenTerminal,
    /// Making the Landlock rules.
    LandlockRules,
    /// Dropping capabilities.
    DropCapabilities,
    /// Setting no_new_privs.
    NoNewPrivs,
    /// Creating the command's process.
    Spawn,
    /// Making a session.
    NewSession,
    /// Entering the working directory.
    EnterWorkdir,
    /// Setting a process limit.
    SetRlimit,
    /// Arranging descriptors.
    ArrangeDescriptors,
    /// Putting Landlock in force.
    SealLandlock,
    /// Putting the system call filter in force.
    SealSeccomp,
    /// Executing the command.
    Exec,
    /// Watching over the sandbox.
    Supervise,
}

impl Step {
    /// Every step, for decoding what crosses the socket.
    const ALL: [Step; 33] = [
        Step::CreateCgroup,
        Step::CloneTree,
        Step::Idmap,
        Step::Layers,
        Step::Placeholder,
        Step::CompileSeccomp,
        Step::CreateNamespaces,
        Step::WriteIdMaps,
        Step::AttachCgroup,
        Step::Handshake,
        Step::BecomeUser,
        Step::BindLife,
        Step::PrivateMounts,
        Step::CreateRoot,
        Step::Mount,
        Step::SealRoot,
        Step::EnterRoot,
        Step::SetHostname,
        Step::Loopback,
        Step::CgroupNamespace,
        Step::OpenTerminal,
        Step::LandlockRules,
        Step::DropCapabilities,
        Step::NoNewPrivs,
        Step::Spawn,
        Step::NewSession,
        Step::EnterWorkdir,
        Step::SetRlimit,
        Step::ArrangeDescriptors,
        Step::SealLandlock,
        Step::SealSeccomp,
        Step::Exec,
        Step::Supervise,
    ];

    /// The step with this number.
    pub fn from_number(number: u8) -> Option<Step> {
        Step::ALL.get(usize::from(number)).copied()
    }

    const fn words(self) -> &'static str {
        match self {
            Step::CreateCgroup => "making the sandbox's cgroup",
            Step::CloneTree => "taking the granted tree",
            Step::Idmap => "translating the owners of the granted tree",
            Step::Layers => "making the layers of the overlay",
            Step::Placeholder => "holding the name of the denied path",
            Step::CompileSeccomp => "compiling the system call filter",
            Step::CreateNamespaces => "creating the sandbox's namespaces",
            Step::WriteIdMaps => "mapping the sandbox's user",
            Step::AttachCgroup => "moving the sandbox into its cgroup",
            Step::Handshake => "talking to the sandbox's init",
            Step::BecomeUser => "becoming the sandbox's user",
            Step::BindLife => "tying the sandbox's life to apex-run",
            Step::PrivateMounts => "cutting mounts off from the host",
            Step::CreateRoot => "making the new root",
            Step::Mount => "mounting",
            Step::SealRoot => "making the new root read-only",
            Step::EnterRoot => "entering the new root",
            Step::SetHostname => "setting the host name",
            Step::Loopback => "bringing loopback up",
            Step::CgroupNamespace => "entering the cgroup namespace",
            Step::OpenTerminal => "opening the sandbox's terminal",
            Step::LandlockRules => "making the Landlock rule for",
            Step::DropCapabilities => "dropping capabilities",
            Step::NoNewPrivs => "setting no_new_privs",
            Step::Spawn => "creating the command's process",
            Step::NewSession => "making the command's session",
            Step::EnterWorkdir => "entering the working directory",
            Step::SetRlimit => "setting the process limit",
            Step::ArrangeDescriptors => "arranging the command's descriptors",
            Step::SealLandlock => "putting Landlock in force",
            Step::SealSeccomp => "putting the system call filter in force",
            Step::Exec => "executing",
            Step::Supervise => "watching over the sandbox",
        }
    }
}

/// A step that failed, as it crosses the socket: `index` says which mount, rule or limit of the plan it was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// Index into the plan's list that the step works through, 0 for the others.
    pub index: usize,
    /// What the kernel said.
    pub errno: Errno,
}

impl Failure {
    /// For `map_err`.
    pub fn at(step: Step, index: usize) -> impl Fn(Errno) -> Failure {
        move |errno| Failure { step, index, errno }
    }

    /// In words, with what can be done about it.
    pub fn explain(&self, plan: &Plan) -> String {
        let object = self.object(plan);
        let space = if object.is_empty() { "" } else { " " };
        let remedy = self.remedy();
        let semicolon = if remedy.is_empty() { "" } else { "; " };
        let (words, error) = (self.step.words(), self.errno.desc());
        format!("{words}{space}{object}: {error} ({:?}){semicolon}{remedy}", self.errno)
    }

    fn object(&self, plan: &Plan) -> String {
        match self.step {
            Step::CloneTree | Step::Idmap | Step::Placeholder | Step::Mount => {
                plan.mounts.get(self.index).map(|mount| mount_dest(mount).display().to_string())
            }
            Step::LandlockRules => plan
                .landlock
                .as_ref()
                .and_then(|landlock| landlock.rules.get(self.index))
                .map(|rule| rule.path.display().to_string()),
            Step::SetRlimit => plan.rlimits.get(self.index).map(|limit| limit.name.to_owned()),
            Step::EnterWorkdir => plan.command.workdir.last().map(|dir| dir.display().to_string()),
            Step::Exec => plan.command.candidates.first().map(|path| path.display().to_string()),
            _ => None,
        }
        .unwrap_or_default()
    }

    fn remedy(&self) -> &'static str {
        match (self.step, self.errno) {
            (Step::CreateNamespaces | Step::WriteIdMaps, Errno::EPERM | Errno::EACCES) => {
                "user namespaces are blocked for this user: on Ubuntu set `sysctl kernel.apparmor_restrict_unprivileged_userns=0` or give \
                 apex-run an AppArmor profile with `userns,`; on Debian set `sysctl kernel.unprivileged_userns_clone=1`; in a container allow \
                 clone with CLONE_NEWUSER in its seccomp profile; `apex-run --doctor` tells more"
            }
            (Step::CreateNamespaces, Errno::ENOSPC) => {
                "too many namespaces: raise `sysctl user.max_user_namespaces` (and max_net_namespaces, max_mnt_namespaces, ...)"
            }
            (Step::CreateNamespaces, Errno::EINVAL | Errno::ENOSYS) => {
                "the kernel lacks a namespace that the policy requires; `apex-run --doctor` names it"
            }
            (Step::Idmap, Errno::EINVAL) => {
                "its file system cannot translate owners: grant a directory on ext4, xfs, btrfs or (from Linux 6.3) tmpfs, or start apex-run as the owner of the files"
            }
            (Step::CloneTree, Errno::ESTALE) => {
                "the path was replaced while the sandbox was being built; start again when it is at rest"
            }
            (Step::Mount, Errno::ENOENT) => {
                "its mount point does not exist inside another grant, and Apex creates nothing there: create it on the host"
            }
            (Step::Mount, Errno::ELOOP) => {
                "the way to the mount point leads over a symbolic link inside another grant; name the real path"
            }
            (Step::Mount, Errno::EPERM) => {
                "a container with a masked /proc cannot give a fresh one; start it with an unmasked /proc"
            }
            (Step::Placeholder, _) => {
                "the name does not exist yet and apex-run may not hold it; create the path first, or deny its directory"
            }
            (Step::Handshake, _) => "the sandbox's init ended early; it may have been killed for memory",
            (Step::Spawn, Errno::EAGAIN) => "the limit on tasks is too low to start the command; raise --tasks",
            (_, Errno::ENOSPC | Errno::EDQUOT) => "make room, or clean up what fills it",
            (_, Errno::ENOMEM) => "the machine or the sandbox's memory limit is too small; raise --memory",
            (_, Errno::EMFILE | Errno::ENFILE) => "too many open files; raise the limit of the calling shell",
            _ => "",
        }
    }
}
