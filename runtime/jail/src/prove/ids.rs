//! Attempts to become somebody else or to gain a power: ids, capabilities, no_new_privs, the host name.

use apex_core::layer::Layer;
use apex_sys::probe::Probing;
use apex_sys::{Errno, fs, prctl, process};
use caps::Capability;

use super::{Got, Trials};

/// An id that is mapped in no sandbox.
const STRANGER: u32 = 4_000_000;

impl Trials<'_> {
    pub(super) fn ids(&mut self) {
        self.users();
        self.capabilities();
        self.new_privileges();
        self.host_name();
    }

    /// Only one id is mapped, so every other one is refused even where the filter is not asked.
    fn users(&mut self) {
        let other = if self.plan.identity.uid == 0 { STRANGER } else { 0 };
        let expected = self.or_filter(&[Errno::EPERM, Errno::EINVAL], &["setresuid"]);
        self.attempt(Layer::Userns, "become another user", &expected, move |_| Got::of(process::set_uid(other)));
        let expected = self.or_filter(&[Errno::EPERM, Errno::EINVAL], &["setresgid"]);
        let other = if self.plan.identity.gid == 0 { STRANGER } else { 0 };
        self.attempt(Layer::Userns, "become another group", &expected, move |_| Got::of(process::set_gid(other)));
        let expected = self.or_filter(&[Errno::EPERM], &["setgroups"]);
        self.attempt(Layer::Userns, "drop supplementary groups", &expected, |_| Got::of(process::clear_groups()));
        let expected = self.or_filter(&[Errno::EPERM, Errno::EINVAL], &["fchownat", "chown"]);
        match self.writable().cloned() {
            None => self.skip(Layer::Userns, "give a file away", &expected, "the sandbox can write nowhere"),
            Some(dir) => self.attempt(Layer::Userns, "give a file away", &expected, move |_| {
                let path = dir.join(format!(".apex-prove-{}", std::process::id()));
                if let Err(error) = std::fs::write(&path, b"") {
                    return Got::of_io::<()>(Err(error));
                }
                let result = std::os::unix::fs::chown(&path, Some(STRANGER), None);
                let _ = std::fs::remove_file(&path);
                Got::of_io(result)
            }),
        }
    }

    fn capabilities(&mut self) {
        let kept: Vec<u8> = self
            .plan
            .capabilities
            .iter()
            .filter_map(|name| name.parse::<Capability>().ok())
            .map(|capability| capability.index())
            .collect();
        let mask = kept.iter().fold(0u64, |mask, number| mask | 1 << number);
        let expected = self.or_filter(&[Errno::EPERM], &["capset"]);
        // One that no mode lets a policy keep.
        let wanted = mask | 1 << Capability::CAP_SYS_MODULE.index();
        self.attempt(Layer::Capabilities, "capset() to CAP_SYS_MODULE", &expected, move |_| {
            Got::of(prctl::set_capabilities(wanted, wanted))
        });
        self.attempt(Layer::Capabilities, "raise an ambient capability", &[Got::Errno(Errno::EPERM)], |_| {
            Got::of(prctl::raise_ambient(u32::from(Capability::CAP_NET_RAW.index())))
        });
        self.attempt(Layer::Capabilities, "capabilities in the bounding set beyond the policy", &[Got::Seen(0)], {
            move |_| {
                let extra = (0..64).filter(|number| mask & (1 << number) == 0 && prctl::is_bounding(*number));
                Got::Seen(u32::try_from(extra.count()).unwrap_or(u32::MAX))
            }
        });
        let expected = self.or_filter(&[Errno::EPERM, Errno::EACCES, Errno::EROFS], &["mknodat"]);
        let dir = self.writable().cloned().unwrap_or_else(|| "/".into());
        self.attempt(Layer::Capabilities, "make a device node", &expected, move |probing| device(probing, &dir));
    }

    fn new_privileges(&mut self) {
        self.attempt(Layer::NoNewPrivs, "no_new_privs, missing", &[Got::Seen(0)], |_| {
            Got::Seen(u32::from(!prctl::no_new_privs()))
        });
        self.attempt(Layer::NoNewPrivs, "take no_new_privs back", &[Got::Errno(Errno::EINVAL)], |_| {
            Got::of(prctl::clear_no_new_privs())
        });
    }

    fn host_name(&mut self) {
        let expected = self.or_filter(&[Errno::EPERM], &["sethostname"]);
        if self.plan.capabilities.iter().any(|name| name == "CAP_SYS_ADMIN") {
            return self.skip(Layer::Utsns, "sethostname()", &expected, "the policy keeps CAP_SYS_ADMIN");
        }
        self.attempt(Layer::Utsns, "sethostname()", &expected, |_| Got::of(process::set_hostname(b"proved")));
    }
}

/// mknod(2) of what /dev/mem is. Where it went through, it is taken away again.
fn device(_: &Probing, dir: &std::path::Path) -> Got {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let path = dir.join(format!(".apex-prove-{}", std::process::id()));
    let result = mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 1));
    if result.is_ok()
        && let Ok(name) = crate::host::c_path(&path)
    {
        let _ = fs::unlink(fs::cwd(), &name);
    }
    Got::of(result)
}
