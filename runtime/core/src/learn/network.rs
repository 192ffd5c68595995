//! From addresses to the network of the host. Input: ends of sockets. Output: whether the run used a network that is not its own.
//!
//! A server and a client of one run that meet on its loopback need no network of the host: every sandbox has a loopback of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::{Need, Previous, Setting, Use};
use crate::event::Address;
use crate::policy::Network;

/// Ends of one kind that are kept.
const ENDS_MAX: usize = 1000;
/// Ports from here on are given out by the kernel to whoever names none (ip_local_port_range): their number tells nobody anything.
const EPHEMERAL_MIN: u16 = 32768;

/// Ends of the run's sockets.
#[derive(Debug, Default)]
pub(super) struct Ends {
    peers: BTreeMap<SocketAddr, Use>,
    bound: BTreeMap<SocketAddr, Use>,
}

impl Ends {
    /// Takes one in.
    pub fn used(&mut self, address: SocketAddr, is_own: bool, by: &str) {
        let ends = if is_own { &mut self.bound } else { &mut self.peers };
        if ends.len() < ENDS_MAX || ends.contains_key(&address) {
            ends.entry(address).or_default().add(1, by);
        }
    }

    /// The network of the host, where the run had it and used it, or runs before did.
    pub fn need(&self, setting: &Setting, previous: Option<&Previous>) -> Option<Need> {
        let may = setting.run.has_network && setting.bounds.network == Network::Host;
        let mut need = previous.and_then(|previous| previous.network.clone());
        let outer = if may { self.outer() } else { Vec::new() };
        if outer.is_empty() {
            return need;
        }
        let own = need.get_or_insert_default();
        own.runs = own.runs.saturating_add(1);
        for (address, seen) in outer {
            own.seen.times = own.seen.times.saturating_add(seen.times);
            own.seen.by.extend(seen.by.iter().cloned());
            own.notes.insert(noted(*address));
        }
        own.trim();
        need
    }

    /// What leads out of the sandbox, or may be reached from there.
    fn outer(&self) -> Vec<(&SocketAddr, &Use)> {
        let ports: BTreeSet<u16> = self.bound.keys().map(SocketAddr::port).collect();
        let is_local = |ip: std::net::IpAddr| ip.is_loopback() || ip.is_unspecified();
        // A server that answers a client sends to a port that the kernel gave.
        let is_client = |port: u16| port >= EPHEMERAL_MIN && !ports.is_empty();
        let is_inner = |peer: &SocketAddr| {
            is_local(peer.ip()) && (ports.contains(&peer.port()) || ports.contains(&0) || is_client(peer.port()))
        };
        let met: BTreeSet<u16> = self.peers.keys().filter(|peer| is_inner(peer)).map(SocketAddr::port).collect();
        let peers = self.peers.iter().filter(|(peer, _)| !is_inner(peer));
        // A socket without a port of its own waits for nobody that has not been asked; one on the loopback that a client of the run
        // found is for that client.
        let is_served = |own: &SocketAddr| own.port() != 0 && !(own.ip().is_loopback() && met.contains(&own.port()));
        peers.chain(self.bound.iter().filter(|(own, _)| is_served(own))).collect()
    }
}

/// For people: without a port that is another one each time.
fn noted(address: SocketAddr) -> String {
    let text = Address::Inet(address).to_string();
    match text.rsplit_once(':') {
        Some((host, _)) if address.port() >= EPHEMERAL_MIN => host.to_owned(),
        _ => text,
    }
}
