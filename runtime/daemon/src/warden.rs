//! The warden: the one process that keeps the daemon's privileges.
//!
//! Input: a [`Packet`] each over a socket that only its parent has. Output: keepers, as children, and [`FromWarden`]. It executes one program, which
//! was opened before the first request, as a user who has asked ([`Vouch`]), with descriptors that came along; whatever else a request asks for is refused. It
//! has one thread, and ends with its parent: keepers go on.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use apex_sys::process::{self, CStrings, Ended, Pid, Side};
use apex_sys::signal::{self, Interest, Set};
use apex_sys::{Errno, fs, net};
use nix::sys::socket::UnixAddr;
use serde::{Deserialize, Serialize};

use crate::privilege;
use crate::vouch::Vouch;

/// Largest packet: what a kernel's default socket buffer takes whole.
pub const PACKET_BYTES_MAX: usize = 128 << 10;
/// The descriptors of a keeper: standard streams, listener, result, and three that it holds. Behind them comes the sandbox's directory, for the warden.
pub const FDS: usize = 8;
/// Files in that directory that the keeper's user reads or writes.
const GIVEN: [&CStr; 3] = [c"policy.toml", c"findings.jsonl", c"events.jsonl"];
/// Words of a keeper's command line, and of its environment.
pub const WORDS_MAX: usize = 4096;
/// Above the numbers that a keeper gets.
const ASIDE: i32 = 32;

/// The daemon to the warden.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Packet {
    /// Who is at the other end of this connection?
    Vouch {
        /// Comes back with the answer.
        id: String,
    },
    /// A keeper is to be started.
    Start {
        /// Which.
        request: ToWarden,
        /// The warden's own word that its user has asked.
        token: String,
    },
}

/// A keeper to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToWarden {
    /// Of the sandbox.
    pub id: String,
    /// As whom the keeper runs.
    pub uid: u32,
    /// Likewise.
    pub gid: u32,
    /// Arguments of `apex-run` behind `--keep`.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
}

/// The warden to the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromWarden {
    /// A keeper runs.
    Started {
        /// Of the sandbox.
        id: String,
        /// The keeper's.
        pid: i32,
    },
    /// None was started.
    Refused {
        /// Of the sandbox.
        id: String,
        /// Why.
        words: String,
    },
    /// This is who is there.
    Vouched {
        /// Of the question.
        id: String,
        /// As the kernel tells it.
        uid: u32,
        /// Likewise.
        gid: u32,
        /// For starts as that user.
        token: String,
    },
    /// A keeper has ended.
    Ended {
        /// Of the sandbox.
        id: String,
        /// Its exit code; 128 + n for a signal.
        code: i32,
    },
}

/// The warden as its parent has it.
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub socket: OwnedFd,
}

/// Becomes the warden, which keeps its key in the directory `state` and knows connections by the name of the daemon's socket.
pub fn begin(socket: &OwnedFd, program: &File, state: File, name: UnixAddr, owner: u32) -> i32 {
    let narrowed = privilege::narrow_warden().map_err(anyhow::Error::from);
    match narrowed.and_then(|()| Vouch::take(state.as_fd(), name)) {
        Ok(vouch) => {
            drop(state);
            serve(socket, program, vouch, owner)
        }
        Err(error) => {
            eprintln!("apexd: the warden: {error:#}");
            125
        }
    }
}

/// The warden's life. Returns its exit code. `owner` is as whom the daemon runs, to whom the files of its directory belong.
fn serve(socket: &OwnedFd, program: &File, vouch: Vouch, owner: u32) -> i32 {
    match Warden::new(socket.as_fd(), program, vouch, owner).and_then(|mut warden| warden.live()) {
        Ok(()) => 0,
        Err(errno) => {
            eprintln!("apexd: the warden: {}", errno.desc());
            125
        }
    }
}

struct Warden<'a> {
    socket: BorrowedFd<'a>,
    program: BorrowedFd<'a>,
    vouch: Vouch,
    owner: u32,
    signals: OwnedFd,
    keepers: HashMap<Pid, String>,
}

impl<'a> Warden<'a> {
    fn new(socket: BorrowedFd<'a>, program: &'a File, vouch: Vouch, owner: u32) -> Result<Warden<'a>, Errno> {
        // A terminal's signals are for the daemon, whose end is the warden's.
        let own = Set::of(&[nix::libc::SIGCHLD, nix::libc::SIGINT, nix::libc::SIGTERM, nix::libc::SIGHUP]);
        signal::block(&own)?;
        let signals = signal::descriptor(&own)?;
        Ok(Warden { socket, program: program.as_fd(), vouch, owner, signals, keepers: HashMap::new() })
    }

    /// Until its parent is gone.
    fn live(&mut self) -> Result<(), Errno> {
        loop {
            let mut interests = [
                Interest { fd: self.socket, write: false, ready: false },
                Interest { fd: self.signals.as_fd(), write: false, ready: false },
            ];
            signal::poll(&mut interests, None)?;
            let (has_request, has_signal) = (interests[0].ready, interests[1].ready);
            if has_signal {
                while signal::next(self.signals.as_fd())?.is_some() {}
                self.reap()?;
            }
            if has_request && !self.request()? {
                return Ok(());
            }
        }
    }

    /// `false` when the parent is gone.
    fn request(&mut self) -> Result<bool, Errno> {
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        let (count, fds) = match net::receive(self.socket, &mut bytes) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => return Ok(false),
            other => other?,
        };
        match serde_json::from_slice(&bytes[..count]) {
            Ok(Packet::Start { request, token }) => self.start_one(&request, &token, &fds),
            Ok(Packet::Vouch { id }) => {
                let vouched = match fds.as_slice() {
                    [connection] => self.vouch.vouch(connection.as_fd()),
                    _ => Err(format!("{} descriptors came along instead of a connection", fds.len())),
                };
                self.say(&match vouched {
                    Ok((uid, gid, token)) => FromWarden::Vouched { id, uid, gid, token },
                    Err(words) => FromWarden::Refused { id, words },
                })
            }
            Err(error) => self.say(&FromWarden::Refused { id: String::new(), words: error.to_string() }),
        }
    }

    fn start_one(&mut self, request: &ToWarden, token: &str, fds: &[OwnedFd]) -> Result<bool, Errno> {
        let id = request.id.clone();
        let judged = check(request, fds).and_then(|()| {
            if self.vouch.knows(request.uid, request.gid, token) {
                return Ok(());
            }
            let (uid, gid) = (request.uid, request.gid);
            Err(format!("nobody of uid {uid} and gid {gid} has asked: the token is not the warden's; connect again"))
        });
        let said = match judged.and_then(|()| self.start(request, fds)) {
            Ok(pid) => {
                self.keepers.insert(pid, id.clone());
                FromWarden::Started { id, pid }
            }
            Err(words) => FromWarden::Refused { id, words },
        };
        self.say(&said)
    }

    fn start(&self, request: &ToWarden, fds: &[OwnedFd]) -> Result<Pid, String> {
        let text = |words: &[String]| -> Result<CStrings, String> {
            let words: Result<Vec<CString>, _> = words.iter().map(|word| CString::new(word.as_str())).collect();
            words.map(CStrings::new).map_err(|_| "a word holds a NUL byte".to_owned())
        };
        let numbers: Vec<String> = (3..FDS).map(|number| number.to_string()).collect();
        let head = ["apex-run".to_owned(), format!("--keep={}", numbers.join(","))];
        let argv = text(&[&head[..], &request.args[..]].concat())?;
        let env = text(&request.env)?;
        let cwd = CString::new(request.cwd.as_str()).map_err(|_| "the directory holds a NUL byte".to_owned())?;
        match process::clone_into(0, None).map_err(|errno| format!("forking a keeper: {}", errno.desc()))? {
            Side::Parent { pid, .. } => Ok(pid),
            Side::Child => {
                let failed = |what: &str, errno: Errno| -> ! {
                    eprintln!("apex-run: {what}: {}", errno.desc());
                    process::exit_now(125)
                };
                let errno = match become_keeper(request, fds, self.program, self.owner, &cwd) {
                    Ok(program) => process::exec_open(program.as_fd(), &argv, &env),
                    Err((what, errno)) => failed(what, errno),
                };
                failed("executing apex-run", errno)
            }
        }
    }

    fn reap(&mut self) -> Result<(), Errno> {
        loop {
            match process::wait(-1, nix::libc::WNOHANG) {
                Ok(Some((pid, ended))) => {
                    let code = match ended {
                        Ended::Code(code) => code,
                        Ended::Signal(number) => 128 + number,
                    };
                    if let Some(id) = self.keepers.remove(&pid) {
                        self.say(&FromWarden::Ended { id, code })?;
                    }
                }
                Ok(None) | Err(Errno::ECHILD) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// A parent that is gone is noticed by the next read.
    fn say(&self, said: &FromWarden) -> Result<bool, Errno> {
        let bytes = serde_json::to_vec(said).expect("plain values are representable");
        match net::send(self.socket, &bytes, &[]) {
            Ok(()) => Ok(true),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

/// By name in the directory that came along, so that no path leads elsewhere; the daemon itself can give nothing away. What is given is a plain file of the daemon's
/// with one name: a link to somebody else's would be given as well.
fn give_files(dir: BorrowedFd<'_>, owner: u32, uid: u32) -> Result<(), Errno> {
    use nix::libc::{O_NOFOLLOW, O_PATH};
    let strictly = fs::resolve::BENEATH | fs::resolve::NO_SYMLINKS;
    for name in GIVEN {
        let file = match fs::open(dir, name, O_PATH | O_NOFOLLOW, strictly) {
            // Without a policy of its own, or unwatched.
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        let about = fs::stat(file.as_fd(), c"")?;
        if !about.is_regular() || about.links != 1 || about.uid != owner {
            return Err(Errno::EPERM);
        }
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        nix::unistd::fchownat(file.as_fd(), c"", Some(nix::unistd::Uid::from_raw(uid)), None, flags)?;
    }
    Ok(())
}

/// Judges a request anew: whoever speaks for the daemon reads what strangers wrote.
fn check(request: &ToWarden, fds: &[OwnedFd]) -> Result<(), String> {
    let own = nix::unistd::geteuid().as_raw();
    if own != 0 && request.uid != own {
        return Err(format!("a warden of uid {own} starts nothing as uid {}", request.uid));
    }
    if request.uid != 0 && request.gid == 0 {
        return Err("only root runs with group 0".to_owned());
    }
    if fds.len() != FDS + 1 {
        return Err(format!("{} descriptors came along instead of {}", fds.len(), FDS + 1));
    }
    if request.args.len() + request.env.len() > WORDS_MAX {
        return Err(format!("more than {WORDS_MAX} words"));
    }
    let before_command = request.args.iter().take_while(|word| *word != "--");
    if let Some(word) = before_command.into_iter().find(|word| !word.starts_with("--") || word.starts_with("--keep")) {
        return Err(format!("{word:?} is no option that the daemon gives"));
    }
    if !request.args.iter().any(|word| word == "--") {
        return Err("no command".to_owned());
    }
    Ok(())
}

/// In the child. The ids last: a directory of the user's is entered as that user, after the descriptors are in place.
fn become_keeper(
    request: &ToWarden,
    fds: &[OwnedFd],
    program: BorrowedFd<'_>,
    owner: u32,
    cwd: &CString,
) -> Result<OwnedFd, (&'static str, Errno)> {
    let at = |what: &'static str| move |errno| (what, errno);
    process::new_session().map_err(at("making a session"))?;
    let program = fs::copy_from(program, ASIDE).map_err(at("keeping the program"))?;
    let [handed @ .., dir] = fds else { return Err(("taking descriptors", Errno::EBADF)) };
    let aside: Result<Vec<OwnedFd>, Errno> = handed.iter().map(|fd| fs::copy_from(fd.as_fd(), ASIDE)).collect();
    for (number, fd) in aside.map_err(at("keeping descriptors"))?.iter().enumerate() {
        fs::place(fd.as_fd(), number as i32).map_err(at("placing descriptors"))?;
    }
    process::close_from(FDS as u32, u32::MAX, true).map_err(at("closing descriptors"))?;
    if nix::unistd::geteuid().is_root() {
        give_files(dir.as_fd(), owner, request.uid).map_err(at("giving the user its files"))?;
        process::clear_groups().map_err(at("leaving groups"))?;
        process::set_gid(request.gid).map_err(at("becoming the user"))?;
        process::set_uid(request.uid).map_err(at("becoming the user"))?;
    }
    fs::chdir(cwd).map_err(at("entering the working directory"))?;
    signal::set_mask(&Set::of(&[])).map_err(at("arranging signals"))?;
    debug_assert!(program.as_raw_fd() >= ASIDE);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn packet(uid: u32, gid: u32, token: &str) -> Packet {
        let request = ToWarden {
            id: "0123".to_owned(),
            uid,
            gid,
            args: vec!["--".to_owned(), "/bin/true".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
        };
        Packet::Start { request, token: token.to_owned() }
    }

    /// What the warden says to a packet. Nothing here gets as far as a fork, which a test with threads must not do.
    fn said(warden: &mut Warden<'_>, ours: &OwnedFd, packet: &Packet, fds: &[BorrowedFd<'_>]) -> FromWarden {
        net::send(ours.as_fd(), &serde_json::to_vec(packet).unwrap(), fds).unwrap();
        assert!(warden.request().unwrap());
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        let (count, _) = net::receive(ours.as_fd(), &mut bytes).unwrap();
        serde_json::from_slice(&bytes[..count]).unwrap()
    }

    #[test]
    fn a_start_needs_the_seal_of_whoever_has_connected() {
        let dir = std::env::temp_dir().join(format!("apexd-warden-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        let name = nix::sys::socket::getsockname(listener.as_raw_fd()).unwrap();
        let vouch = Vouch::take(File::open(&dir).unwrap().as_fd(), name).unwrap();
        let (ours, its) = net::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let mut warden = Warden::new(its.as_fd(), &null, vouch, own.0).unwrap();
        let _client = UnixStream::connect(dir.join("s")).unwrap();
        let accepted = listener.accept().unwrap().0;
        let question = Packet::Vouch { id: "q".to_owned() };
        let FromWarden::Vouched { uid, gid, token, .. } = said(&mut warden, &ours, &question, &[accepted.as_fd()])
        else {
            panic!("a connection is vouched for");
        };
        assert_eq!((uid, gid), own);
        let fds = [null.as_fd(); FDS + 1];
        let mut refused = |packet: &Packet, fds: &[BorrowedFd<'_>], part: &str| {
            let answer = said(&mut warden, &ours, packet, fds);
            assert!(matches!(&answer, FromWarden::Refused { words, .. } if words.contains(part)), "{part}: {answer:?}");
        };
        refused(&packet(own.0, own.1, ""), &fds, "the token is not the warden's");
        refused(&packet(own.0, own.1 + 1, &token), &fds, "the token is not the warden's");
        let another = if own.0 == 0 { "the token is not the warden's" } else { "starts nothing as uid" };
        refused(&packet(own.0 + 1, own.1.max(1), &token), &fds, another);
        refused(&packet(own.0, own.1, &token), &fds[1..], "descriptors came along");
        refused(&question, &[null.as_fd()], "the connection's own name");
        refused(&question, &[], "0 descriptors");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
