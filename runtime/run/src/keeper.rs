//! A sandbox that is kept for the daemon (`--keep`): orders over a socket, which outlives the daemon.
//!
//! Input: descriptors that the daemon handed over, and packets of [`apex_core::keep`]. Output: [`Order`]s for the jail, answers, and how it ended, which
//! is written to a file as well: nobody need be there to hear it. Never waits for the daemon; one that does not read loses its connection and
//! may make another. Whoever reaches the socket may order, so it lies where only the daemon can.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;

use apex_core::keep::{Ended, FromKeeper, PACKET_BYTES_MAX, Standing, ToKeeper};
use apex_jail::control::{Answer, Control, Defers, Order, Spawn};
use apex_jail::launch::Ending;
use apex_jail::streams;
use apex_run::options::Options;
use apex_sys::{Errno, clock, fs, net, process, terminal};

use crate::fresh::Fresh;
use crate::warm::Warm;

/// Counts from 1.
const NOBODY: u64 = 0;

/// What needs nothing of the jail.
enum Own {
    Streams,
    LetGo(usize),
    Refuse(String),
}

/// The keeper's side.
pub struct Keeper {
    listener: BorrowedFd<'static>,
    result: BorrowedFd<'static>,
    /// By number, each until it is let go.
    held: Vec<Option<i32>>,
    /// The other end of the command's terminal, for as long as this process lives.
    terminal: Option<i32>,
    /// What it is to have.
    size: Option<(u16, u16)>,
    connection: Option<OwnedFd>,
    standing: Option<Standing>,
    /// What will be told when the interpreter is ready.
    unready: Option<Standing>,
    /// Whether the command is put off, and whether it still is.
    defers: Defers,
    waits: bool,
    /// The interpreter that waits for it.
    warm: Option<Warm>,
    /// What a sandbox was made from whose command is put off.
    fresh: Fresh,
    /// Orders that arrived and are not yet given: connections that broke may have left some.
    orders: VecDeque<Order>,
    /// What it answers by itself when its turn comes.
    own: VecDeque<Own>,
    /// For each answer that is still to come, which connection asked; [`NOBODY`] for what it orders by itself.
    owed: VecDeque<u64>,
    /// Connections there have been.
    connections: u64,
    /// Whether the last word was said before the sandbox was taken down.
    has_exited: bool,
    /// How the sandbox ended, in a word.
    how: Option<String>,
}

impl Keeper {
    /// Takes the descriptors of `--keep`.
    pub fn take(options: &Options) -> Result<Keeper, Errno> {
        let fds = &options.keep;
        let [listener, result, held @ ..] = fds.as_slice() else { return Err(Errno::EBADF) };
        for number in fds {
            fs::borrow(*number)?;
            fs::set_inherited(*number, false)?;
        }
        Ok(Keeper {
            listener: fs::borrow(*listener)?,
            result: fs::borrow(*result)?,
            held: held.iter().copied().map(Some).collect(),
            terminal: None,
            size: options.tty_size,
            connection: None,
            standing: None,
            unready: None,
            defers: if options.defer { Defers::Sealed } else { Defers::No },
            warm: None,
            waits: options.defer || options.warm,
            fresh: Fresh::default(),
            orders: VecDeque::new(),
            own: VecDeque::new(),
            owed: VecDeque::new(),
            connections: 0,
            has_exited: false,
            how: None,
        })
    }

    /// The command is an interpreter that waits.
    pub fn warm(&mut self, warm: Warm) {
        (self.defers, self.warm) = (Defers::Warm, Some(warm));
    }

    /// Notes what the sandbox is made from.
    pub fn made_from(&mut self, fresh: Fresh) {
        self.fresh = fresh;
    }

    /// Notes how it ended.
    pub fn ended(&mut self, ending: Ending) {
        self.how = Some(match ending {
            Ending::Code(_) => "exited".to_owned(),
            Ending::Signal(number) | Ending::Vanished(number) => format!("signal {number}"),
            Ending::TimedOut => "time".to_owned(),
            Ending::OutOfMemory => "memory".to_owned(),
            Ending::Caught => "finding".to_owned(),
        });
    }

    fn last_word(&mut self, ended: Ended) {
        let text = serde_json::to_vec(&ended).expect("plain values are representable");
        self.connect();
        self.say(&FromKeeper::Ended(ended), &[]);
        // A full disk leaves the words to the socket and to the exit code; there is nobody else to tell.
        let _ = fs::write(self.result, &text);
    }

    /// Says the last word, unless it is said. `words` are those of a failure.
    pub fn finish(mut self, code: u8, words: Option<String>) {
        if self.has_exited {
            return;
        }
        let how = self.how.take().filter(|_| words.is_none()).unwrap_or_else(|| "failed".to_owned());
        self.last_word(Ended { code, how, words, time_ns: clock::wall_ns() });
    }

    /// A new connection takes the place of the old: the daemon has one, and a second comes from its successor.
    fn connect(&mut self) {
        while let Ok(connection) = net::accept(self.listener) {
            self.connections += 1;
            if self.connection.replace(connection).is_some() && self.waits {
                // Somebody else than who had it made.
                self.end();
            }
            if let Some(standing) = self.standing.clone() {
                self.say(&FromKeeper::Standing(standing), &[]);
            }
        }
    }

    fn say(&mut self, said: &FromKeeper, fds: &[BorrowedFd<'_>]) {
        let Some(connection) = &self.connection else { return };
        let bytes = serde_json::to_vec(said).expect("plain values are representable");
        if net::try_send(connection.as_fd(), &bytes, fds).is_err() {
            self.connection = None;
        }
    }

    /// Answers what was asked first of all that is not answered. Whoever did may be gone, and its successor has asked something else.
    fn answer(&mut self, said: &FromKeeper, fds: &[BorrowedFd<'_>]) {
        if self.owed.pop_front() == Some(self.connections) {
            self.say(said, fds);
        }
    }

    fn order(&mut self, order: Order) {
        self.owed.push_back(self.connections);
        self.orders.push_back(order);
    }

    fn order_own(&mut self, own: Own) {
        self.own.push_back(own);
        self.order(Order::Own);
    }

    /// Ends the sandbox of its own accord.
    fn end(&mut self) {
        self.owed.push_back(NOBODY);
        self.orders.push_back(Order::Kill);
    }

    fn refuse_and_end(&mut self, words: String) {
        self.order_own(Own::Refuse(words));
        self.end();
    }

    /// A sandbox that was made under other circumstances than there are now starts nothing.
    fn start(&mut self, arguments: Vec<String>, size: Option<(u16, u16)>, let_go: &[usize]) {
        if !self.waits || self.standing.is_none() {
            return self.order_own(Own::Refuse("its command was started before, or it does not stand yet".to_owned()));
        }
        if let Some(path) = self.fresh.changed() {
            return self
                .refuse_and_end(format!("{} has changed since the sandbox was made; run it anew", path.display()));
        }
        if let (Some(number), Some((rows, columns))) = (self.terminal, size) {
            let _ = terminal::set_size(fs::borrow_known(number), rows, columns);
        }
        self.waits = false;
        let arguments: Vec<Vec<u8>> = arguments.into_iter().map(String::into_bytes).collect();
        if let Some(Err(words)) = self.warm.take().map(|warm| warm.run(&arguments)) {
            return self.refuse_and_end(format!("telling the interpreter: {words}"));
        }
        for index in let_go {
            // What is let go already is what was asked for.
            let _ = self.let_go(*index);
        }
        self.order(Order::Start(arguments));
    }

    /// Whoever is connected already hears it now, whoever comes later when it does.
    fn tell_standing(&mut self, standing: Standing) {
        self.connect();
        self.say(&FromKeeper::Standing(standing.clone()), &[]);
        self.standing = Some(standing);
    }

    /// An interpreter that was started says that it is ready, or is gone.
    fn hear_warm(&mut self) {
        let Some(warm) = &mut self.warm else { return };
        warm.passed_on();
        let Some(standing) = &self.unready else { return };
        match warm.readiness() {
            None => {}
            Some(true) => {
                let standing = standing.clone();
                self.unready = None;
                self.tell_standing(standing);
            }
            Some(false) => {
                (self.unready, self.warm) = (None, None);
                self.end();
            }
        }
    }

    fn let_go(&mut self, index: usize) -> Result<(), Errno> {
        let number = self.held.get_mut(index).and_then(Option::take).ok_or(Errno::EBADF)?;
        let number = u32::try_from(number).map_err(|_| Errno::EBADF)?;
        process::close_from(number, number, false)
    }

    fn hear(&mut self) {
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        while let Some(connection) = &self.connection {
            let (count, fds) = match net::receive(connection.as_fd(), &mut bytes) {
                Ok((count @ 1.., fds)) => (count, fds),
                Err(Errno::EAGAIN) => return,
                Ok(_) | Err(_) => {
                    self.connection = None;
                    if self.waits {
                        // Nobody knows of it but who had it made.
                        self.end();
                    }
                    return;
                }
            };
            match serde_json::from_slice(&bytes[..count]) {
                Ok(ToKeeper::Streams) => self.order_own(Own::Streams),
                Ok(ToKeeper::LetGo { index }) => self.order_own(Own::LetGo(index)),
                Ok(ToKeeper::Start { arguments, size, let_go }) => self.start(arguments, size, &let_go),
                Ok(ToKeeper::Spawn { number, arguments, environment, workdir, terminal, size }) => {
                    let words = |words: Vec<String>| words.into_iter().map(OsString::from).collect();
                    self.order(Order::Spawn(Spawn {
                        number,
                        arguments: words(arguments),
                        environment: words(environment),
                        workdir: workdir.map(PathBuf::from),
                        streams: fds,
                        terminal: terminal.then(|| size.unwrap_or_default()),
                    }));
                }
                Ok(said) => {
                    if let Some(order) = order_of(&said) {
                        self.order(order);
                    }
                }
                Err(error) => {
                    let words = format!("not understood ({error}); are apexd and apex-run of one version?");
                    self.order_own(Own::Refuse(words));
                }
            }
        }
    }
}

const fn order_of(said: &ToKeeper) -> Option<Order> {
    Some(match said {
        ToKeeper::Streams | ToKeeper::LetGo { .. } | ToKeeper::Start { .. } | ToKeeper::Spawn { .. } => return None,
        ToKeeper::SignalSpawned { number, signal } => Order::SignalSpawned { number: *number, signal: *signal },
        ToKeeper::Signal { number } => Order::Signal(*number),
        ToKeeper::Freeze { frozen } => Order::Freeze(*frozen),
        ToKeeper::Limit { limits } => Order::Limit(*limits),
        ToKeeper::Cut { cut } => Order::Cut(*cut),
        ToKeeper::Shut { shut } => Order::Shut(*shut),
        ToKeeper::Kill => Order::Kill,
        ToKeeper::Use => Order::Use,
        ToKeeper::Costs => Order::Costs,
    })
}

impl Control for Keeper {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let connection = self.connection.as_ref().map(AsFd::as_fd);
        let warm = self.unready.as_ref().and(self.warm.as_ref()).map(Warm::fd);
        [Some(self.listener), connection, warm].into_iter().flatten().collect()
    }

    fn defers(&self) -> Defers {
        self.defers
    }

    fn standing(&mut self, standing: &Standing) {
        if self.warm.is_some() {
            // Told when the interpreter is ready.
            self.unready = Some(standing.clone());
            return;
        }
        self.tell_standing(standing.clone());
    }

    fn next(&mut self) -> Option<Order> {
        if self.orders.is_empty() {
            self.connect();
            self.hear_warm();
            self.hear();
        }
        self.orders.pop_front()
    }

    fn exited(&mut self, code: i32) {
        self.has_exited = true;
        let code = u8::try_from(code & 0xff).unwrap_or(u8::MAX);
        self.last_word(Ended { code, how: "exited".to_owned(), words: None, time_ns: clock::wall_ns() });
        // The pipes end here: nobody else writes to them any more.
        let _ = streams::let_go();
    }

    fn terminal(&mut self, spawned: Option<i32>, master: OwnedFd) {
        self.connect();
        if let Some((rows, columns)) = self.size.filter(|_| spawned.is_none()) {
            // A terminal without a size is one all the same.
            let _ = terminal::set_size(master.as_fd(), rows, columns);
        }
        self.say(&FromKeeper::Terminal { spawned }, &[master.as_fd()]);
        // The daemon's successor gets the sandbox's own; with the other of a later command its session gets a hang-up.
        if spawned.is_none() {
            self.terminal = Some(master.into_raw_fd());
        }
    }

    fn spawned_ended(&mut self, number: i32, ended: process::Ended, words: Option<String>) {
        let (code, how) = match ended {
            process::Ended::Code(code) if words.is_some() => (code, "failed".to_owned()),
            process::Ended::Code(code) => (code & 0xff, "exited".to_owned()),
            process::Ended::Signal(signal) => (128 + signal, format!("signal {signal}")),
        };
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        self.say(&FromKeeper::SpawnedEnded { number, code, how, words }, &[]);
    }

    fn own(&mut self) {
        match self.own.pop_front() {
            Some(Own::Streams) => {
                let held: Vec<_> = self.held.iter().flatten().copied().map(fs::borrow_known).collect();
                let terminal = self.terminal.map(fs::borrow_known);
                let open = self.held.iter().map(Option::is_some).chain([terminal.is_some()]).collect();
                let all: Vec<_> = held.into_iter().chain(terminal).collect();
                self.answer(&FromKeeper::Streams { open }, &all);
            }
            Some(Own::LetGo(index)) => {
                let said = match self.let_go(index) {
                    Ok(()) => FromKeeper::Done { words: "closed".to_owned() },
                    Err(errno) => FromKeeper::Refused { words: errno.desc().to_owned() },
                };
                self.answer(&said, &[]);
            }
            Some(Own::Refuse(words)) => self.answer(&FromKeeper::Refused { words }, &[]),
            None => {}
        }
    }

    fn done(&mut self, outcome: Result<Answer, String>) {
        let said = match outcome {
            Ok(Answer::Done(words)) => FromKeeper::Done { words },
            Ok(Answer::Used(usage)) => FromKeeper::Used(usage),
            Ok(Answer::Costs(probes)) => FromKeeper::Costs { probes },
            Err(words) => FromKeeper::Refused { words },
        };
        self.answer(&said, &[]);
    }
}
