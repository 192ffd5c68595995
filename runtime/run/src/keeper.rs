//! A sandbox that is kept for the daemon (`--keep`): orders over a socket, which outlives the daemon.
//!
//! Input: descriptors that the daemon handed over, and packets of [`apex_core::keep`]. Output: [`Order`]s for the jail, answers, and how it ended, which
//! is written to a file as well: nobody need be there to hear it. Never waits for the daemon; one that does not read loses its connection and
//! may make another. Whoever reaches the socket may order, so it lies where only the daemon can.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use apex_core::keep::{Ended, FromKeeper, PACKET_BYTES_MAX, Standing, ToKeeper};
use apex_jail::control::{Answer, Control, Order};
use apex_jail::launch::Ending;
use apex_sys::{Errno, clock, fs, net};

/// The keeper's side.
pub struct Keeper {
    listener: BorrowedFd<'static>,
    result: BorrowedFd<'static>,
    held: Vec<BorrowedFd<'static>>,
    connection: Option<OwnedFd>,
    standing: Option<Standing>,
    /// Orders that arrived and are not yet given: connections that broke may have left some.
    orders: VecDeque<Order>,
    /// How the sandbox ended, in a word.
    how: Option<String>,
}

impl Keeper {
    /// Takes the descriptors of `--keep`.
    pub fn take(fds: &[i32]) -> Result<Keeper, Errno> {
        let mut taken = Vec::with_capacity(fds.len());
        for number in fds {
            taken.push(fs::borrow(*number)?);
            fs::set_inherited(*number, false)?;
        }
        let mut taken = taken.into_iter();
        let (Some(listener), Some(result)) = (taken.next(), taken.next()) else { return Err(Errno::EBADF) };
        Ok(Keeper {
            listener,
            result,
            held: taken.collect(),
            connection: None,
            standing: None,
            orders: VecDeque::new(),
            how: None,
        })
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

    /// Says the last word. `words` are those of a failure.
    pub fn finish(mut self, code: u8, words: Option<String>) {
        let how = self.how.take().filter(|_| words.is_none()).unwrap_or_else(|| "failed".to_owned());
        let ended = Ended { code, how, words, time_ns: clock::wall_ns() };
        let text = serde_json::to_vec(&ended).expect("plain values are representable");
        // A full disk leaves the words to the socket and to the exit code; there is nobody else to tell.
        let _ = fs::write(self.result, &text);
        self.connect();
        self.say(&FromKeeper::Ended(ended), &[]);
    }

    /// A new connection takes the place of the old: the daemon has one, and a second comes from its successor.
    fn connect(&mut self) {
        while let Ok(connection) = net::accept(self.listener) {
            self.connection = Some(connection);
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

    fn hear(&mut self) {
        let mut bytes = [0; PACKET_BYTES_MAX];
        while let Some(connection) = &self.connection {
            let count = match net::receive(connection.as_fd(), &mut bytes) {
                Ok((count @ 1.., _)) => count,
                Err(Errno::EAGAIN) => return,
                Ok(_) | Err(_) => {
                    self.connection = None;
                    return;
                }
            };
            match serde_json::from_slice(&bytes[..count]) {
                Ok(ToKeeper::Streams) => {
                    let held = self.held.clone();
                    self.say(&FromKeeper::Streams, &held);
                }
                Ok(said) => self.orders.extend(order_of(&said)),
                Err(error) => {
                    let words = format!("not understood ({error}); are apexd and apex-run of one version?");
                    self.say(&FromKeeper::Refused { words }, &[]);
                }
            }
        }
    }
}

const fn order_of(said: &ToKeeper) -> Option<Order> {
    Some(match said {
        ToKeeper::Streams => return None,
        ToKeeper::Signal { number } => Order::Signal(*number),
        ToKeeper::Freeze { frozen } => Order::Freeze(*frozen),
        ToKeeper::Limit { limits } => Order::Limit(*limits),
        ToKeeper::Cut { cut } => Order::Cut(*cut),
        ToKeeper::Kill => Order::Kill,
        ToKeeper::Use => Order::Use,
    })
}

impl Control for Keeper {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let connection = self.connection.as_ref().map(AsFd::as_fd);
        [Some(self.listener), connection].into_iter().flatten().collect()
    }

    fn standing(&mut self, standing: &Standing) {
        // Whoever is connected already hears it now, whoever comes later when it does.
        self.connect();
        self.say(&FromKeeper::Standing(standing.clone()), &[]);
        self.standing = Some(standing.clone());
    }

    fn next(&mut self) -> Option<Order> {
        if self.orders.is_empty() {
            self.connect();
            self.hear();
        }
        self.orders.pop_front()
    }

    fn done(&mut self, outcome: Result<Answer, String>) {
        let said = match outcome {
            Ok(Answer::Done(words)) => FromKeeper::Done { words },
            Ok(Answer::Used(usage)) => FromKeeper::Used(usage),
            Err(words) => FromKeeper::Refused { words },
        };
        self.say(&said, &[]);
    }
}
