//! Limits as a list of writes, which [`super::v1`] and [`super::v2`] make of `linux.resources` and a [`Tree`](super::Cgroup) carries out.

use super::dir::Dir;
use super::error::CgroupError;
use apex_sys::Errno;

/// One write to a control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) controller: String,
    /// The file, and what it is called on other kernels: the first that is there is written.
    pub(super) files: Vec<String>,
    pub(super) value: String,
    /// Whether a host without the file is no failure.
    pub(super) is_optional: bool,
}

impl Write {
    pub(super) fn new(controller: &str, file: impl Into<String>, value: impl ToString) -> Write {
        Write {
            controller: controller.to_owned(),
            files: vec![file.into()],
            value: value.to_string(),
            is_optional: false,
        }
    }

    pub(super) fn or(mut self, file: impl Into<String>) -> Write {
        self.files.push(file.into());
        self
    }

    pub(super) fn optional(mut self) -> Write {
        self.is_optional = true;
        self
    }

    fn carry_out(&self, dir: &Dir) -> Result<(), (String, Errno)> {
        let mut last = (self.files[0].clone(), Errno::ENOENT);
        for file in &self.files {
            match dir.write(file, &self.value) {
                Ok(()) => return Ok(()),
                Err(Errno::ENOENT) => {}
                Err(errno) => {
                    last = (file.clone(), errno);
                    break;
                }
            }
        }
        // EOPNOTSUPP: the file is there, and the kernel no longer does what it says.
        if self.is_optional && matches!(last.1, Errno::ENOENT | Errno::EOPNOTSUPP) { Ok(()) } else { Err(last) }
    }

    fn error(&self, dir: &Dir, (file, errno): (String, Errno)) -> CgroupError {
        CgroupError::Set {
            controller: self.controller.clone(),
            hint: hint(&file, errno),
            file: dir.path().join(file),
            value: self.value.clone(),
            source: errno.into(),
        }
    }
}

/// What an errno usually means at this file.
fn hint(file: &str, errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT if file.starts_with("memory.memsw") || file.starts_with("memory.swap") => {
            "; this kernel counts no swap (swapaccount=1)"
        }
        Errno::ENOENT => "; this kernel, or the cgroup above, has no such limit",
        Errno::EBUSY => "; the container uses more than that already",
        Errno::EINVAL => "; the value contradicts another limit of this cgroup or of the one above",
        Errno::EACCES | Errno::EPERM => "; the cgroup is not delegated to this user",
        Errno::ENODEV => "; there is no such device",
        _ => "",
    }
}

/// One step of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write(Write),
    /// Two limits that the kernel compares with each other: which order it takes depends on the values that stand there.
    Pair(Write, Write),
    /// One limit with a value for each of the two mechanisms that know it: the second where the first is not there.
    Else(Write, Write),
    /// `checkBeforeUpdate`: fails when the file tells more than this.
    Usage {
        controller: String,
        file: &'static str,
        limit: i64,
    },
}

impl From<Write> for Step {
    fn from(write: Write) -> Step {
        Step::Write(write)
    }
}

impl Step {
    pub(super) fn controller(&self) -> &str {
        match self {
            Step::Write(write) | Step::Pair(write, _) | Step::Else(write, _) => &write.controller,
            Step::Usage { controller, .. } => controller,
        }
    }

    /// The first file and what is written to it, for errors.
    pub(super) fn words(&self) -> (String, String) {
        match self {
            Step::Write(write) | Step::Pair(write, _) | Step::Else(write, _) => {
                (write.files[0].clone(), write.value.clone())
            }
            Step::Usage { file, limit, .. } => ((*file).to_owned(), limit.to_string()),
        }
    }

    /// Whether a host without the controller is no failure.
    pub(super) fn is_optional(&self) -> bool {
        match self {
            Step::Write(write) => write.is_optional,
            Step::Pair(first, second) | Step::Else(first, second) => first.is_optional && second.is_optional,
            Step::Usage { .. } => true,
        }
    }

    pub(super) fn carry_out(&self, dir: &Dir) -> Result<(), CgroupError> {
        match self {
            Step::Write(write) => write.carry_out(dir).map_err(|fault| write.error(dir, fault)),
            Step::Pair(first, second) => match first.carry_out(dir) {
                Ok(()) => second.carry_out(dir).map_err(|fault| second.error(dir, fault)),
                Err((_, Errno::EINVAL)) => {
                    second.carry_out(dir).map_err(|fault| second.error(dir, fault))?;
                    first.carry_out(dir).map_err(|fault| first.error(dir, fault))
                }
                Err(fault) => Err(first.error(dir, fault)),
            },
            Step::Else(first, second) => match first.carry_out(dir) {
                Err((_, Errno::ENOENT)) => second.carry_out(dir).map_err(|fault| second.error(dir, fault)),
                other => other.map_err(|fault| first.error(dir, fault)),
            },
            Step::Usage { file, limit, .. } => {
                let text = dir.read(file)?;
                let usage = text.trim().parse().map_err(|_| CgroupError::malformed(dir.path().join(file), &text))?;
                match u64::try_from(*limit) {
                    Ok(most) if usage > most => Err(CgroupError::BelowUsage { limit: *limit, usage }),
                    Ok(_) | Err(_) => Ok(()),
                }
            }
        }
    }
}
