//! The accepted connections of a port, and the choice of which to close when there are too many.
//!
//! ```text
//!  accepted -> unauthenticated --logged in--> known
//!       \ bound reached: the oldest of the network that has most is closed
//! ```
//!
//! A new connection is always accepted. A peer that opens many without logging in loses its own
//! oldest ones, and neither waits in the accept loop nor takes slots from others: a login takes
//! less time than pushing out its connection would.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::client_address::is_trusted;
use crate::limits::{Full, Holder, network};

/// The number of connections of each kind that a port holds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub strangers: usize,
    /// Unauthenticated ones of one network. Trusted proxies and this computer act for many clients,
    /// so only the sum counts for them.
    pub strangers_of_one: usize,
    pub known: usize,
    /// Of one account, or of one network where authentication is off.
    pub known_of_one: usize,
}

/// The interval at which closed connections are logged at most.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The connections of a port.
#[derive(Clone, Debug)]
pub struct Slots {
    /// The port's name, for the log.
    what: &'static str,
    bounds: Bounds,
    proxies: Arc<Vec<IpNet>>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// The connections closed since the last log line, and when that was.
    closed: u64,
    logged: Option<Instant>,
    /// Unauthenticated connections, the oldest first.
    strangers: BTreeMap<u64, Stranger>,
    known: HashMap<u64, Holder>,
    known_of: HashMap<Holder, usize>,
}

#[derive(Debug)]
struct Stranger {
    network: IpAddr,
    closed: CancellationToken,
}

/// The slot of one connection. Dropping it releases the slot.
#[derive(Debug)]
pub struct Slot {
    number: u64,
    table: Arc<Mutex<Table>>,
    bounds: Bounds,
    closed: CancellationToken,
}

impl Slots {
    pub fn new(what: &'static str, bounds: Bounds, proxies: Vec<IpNet>) -> Self {
        Self { what, bounds, proxies: Arc::new(proxies), table: Arc::default() }
    }

    /// Adds a connection. If that is one too many, an older unauthenticated one is closed.
    pub fn enter(&self, peer: IpAddr) -> Slot {
        let counted = !peer.is_loopback() && !is_trusted(peer, &self.proxies);
        let closed = CancellationToken::new();
        let stranger = Stranger { network: network(peer), closed: closed.clone() };
        let mut table = lock(&self.table);
        table.last += 1;
        let number = table.last;
        let of_one = table.strangers_of(stranger.network);
        if counted && of_one >= self.bounds.strangers_of_one {
            let peer = stranger.network;
            table.close_oldest(peer);
            table.log(self.what, peer);
        } else if table.strangers.len() >= self.bounds.strangers
            && let Some(peer) = table.close_one()
        {
            table.log(self.what, peer);
        }
        table.strangers.insert(number, stranger);
        Slot { number, table: self.table.clone(), bounds: self.bounds, closed }
    }

    /// Closes an unauthenticated connection, so that descriptors become free. Returns whether there
    /// was one.
    pub fn shed(&self) -> bool {
        lock(&self.table).close_one().is_some()
    }
}

impl Table {
    fn strangers_of(&self, network: IpAddr) -> usize {
        self.strangers.values().filter(|stranger| stranger.network == network).count()
    }

    fn close_oldest(&mut self, network: IpAddr) {
        let oldest = self.strangers.iter().find(|(_, stranger)| stranger.network == network);
        let number = oldest.map(|(number, _)| *number);
        if let Some(stranger) = number.and_then(|number| self.strangers.remove(&number)) {
            stranger.closed.cancel();
            self.closed += 1;
        }
    }

    /// Closes the oldest connection of the network that has most of them. Returns that network.
    fn close_one(&mut self) -> Option<IpAddr> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for stranger in self.strangers.values() {
            *counts.entry(stranger.network).or_default() += 1;
        }
        let (network, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        self.close_oldest(network);
        Some(network)
    }

    fn log(&mut self, what: &str, peer: IpAddr) {
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
            let closed = std::mem::take(&mut self.closed);
            tracing::warn!(peer.addr = %peer, closed, "closed unauthenticated {what} connections in favor of new ones");
            self.logged = Some(Instant::now());
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Waits until the connection must be closed.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Counts the connection for `holder` from now on; it is no longer closed in favor of others.
    ///
    /// # Errors
    /// There are too many such connections.
    pub fn know(&self, holder: Holder) -> Result<(), Full> {
        let mut table = lock(&self.table);
        if table.known.get(&self.number) == Some(&holder) {
            return Ok(());
        }
        // The connection is being closed already.
        if self.closed.is_cancelled() {
            return Err(Full::All);
        }
        let each =
            if holder == Holder::Here { self.bounds.known } else { self.bounds.known_of_one };
        if table.known_of.get(&holder).is_some_and(|count| *count >= each) {
            return Err(Full::Holder);
        }
        let was = table.known.get(&self.number).copied();
        if was.is_none() && table.known.len() >= self.bounds.known {
            return Err(Full::All);
        }
        table.strangers.remove(&self.number);
        table.release(self.number);
        table.known.insert(self.number, holder);
        *table.known_of.entry(holder).or_default() += 1;
        Ok(())
    }
}

impl Table {
    fn release(&mut self, number: u64) {
        if let Some(holder) = self.known.remove(&number)
            && let Some(count) = self.known_of.get_mut(&holder)
        {
            *count -= 1;
            if *count == 0 {
                self.known_of.remove(&holder);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        table.strangers.remove(&self.number);
        table.release(self.number);
    }
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::UserId;
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { strangers: 8, strangers_of_one: 3, known: 4, known_of_one: 2 };

    fn slots() -> Slots {
        Slots::new("test", BOUNDS, vec!["10.0.0.0/8".parse().unwrap()])
    }

    fn from(slots: &Slots, peer: &str) -> Slot {
        slots.enter(peer.parse().unwrap())
    }

    fn closed(slot: &Slot) -> bool {
        slot.closed.is_cancelled()
    }

    #[test]
    fn network_that_fills_its_bound_loses_its_own_oldest() {
        let slots = slots();
        let other = from(&slots, "192.0.2.1");
        let flood: Vec<_> = (0..5).map(|last| from(&slots, &format!("2001:db8::{last}"))).collect();
        let gone: Vec<_> = flood.iter().map(closed).collect();
        assert_eq!(gone, [true, true, false, false, false]);
        assert!(!closed(&other));
    }

    #[test]
    fn full_port_closes_the_oldest_of_the_largest_network() {
        let slots = slots();
        let one = from(&slots, "192.0.2.1");
        // A proxy has no bound of its own, only the sum.
        let flood: Vec<_> = (0..7).map(|_| from(&slots, "10.0.0.1")).collect();
        assert!(!flood.iter().any(closed));
        let health = from(&slots, "127.0.0.1");
        assert!(closed(&flood[0]) && !closed(&flood[1]) && !closed(&one) && !closed(&health));
        assert!(slots.shed() && closed(&flood[1]));
    }

    #[test]
    fn known_connections_are_closed_for_no_stranger() {
        let slots = slots();
        let account = Holder::Account(UserId(1));
        let known: Vec<_> = (0..3).map(|_| from(&slots, "192.0.2.1")).collect();
        assert_eq!(known[0].know(account), Ok(()));
        assert_eq!(known[0].know(account), Ok(()), "each of its requests says so again");
        assert_eq!(known[1].know(account), Ok(()));
        assert_eq!(known[2].know(account), Err(Full::Holder));
        let _flood: Vec<_> = (0..20).map(|_| from(&slots, "192.0.2.1")).collect();
        assert!(!closed(&known[0]) && !closed(&known[1]) && closed(&known[2]));
        drop(known);
        assert_eq!(lock(&slots.table).known_of.len(), 0);
    }

    proptest! {
        #[test]
        fn counts_hold_whatever_comes_and_goes(acts in proptest::collection::vec((0u8..4, 0u8..4), 0..200)) {
            let slots = slots();
            let mut held: Vec<Slot> = Vec::new();
            for (act, which) in acts {
                match act {
                    0 | 1 => held.push(from(&slots, &format!("192.0.2.{which}"))),
                    2 => if let Some(slot) = held.last() {
                        let _ = slot.know(Holder::Account(UserId(which.into())));
                    },
                    _ => drop(held.pop()),
                }
                let table = lock(&slots.table);
                prop_assert!(table.strangers.len() <= BOUNDS.strangers);
                prop_assert!(table.known.len() <= BOUNDS.known);
                prop_assert!(table.known_of.values().all(|count| *count <= BOUNDS.known_of_one));
                prop_assert_eq!(table.known_of.values().sum::<usize>(), table.known.len());
                let open = held.iter().filter(|slot| !closed(slot)).count();
                prop_assert_eq!(open, table.strangers.len() + table.known.len());
            }
        }
    }
}
