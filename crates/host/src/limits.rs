//! Limits how much of the host one caller may hold at once: requests, streams, SSH connections,
//! bytes.
//!
//! With a bound on the sum alone, one account could take all of it from the others, so each
//! long-lived resource is counted twice: over all callers, and for the caller that holds it. Where
//! authentication is off, and before a caller has logged in, the caller is a network address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kohakuriver_model::UserId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::{Caller, Principal};

/// The caller whose share of a limit is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    Account(UserId),
    /// An IPv4 address, or a /64 of IPv6, all of which a single computer may use.
    Network(IpAddr),
    /// Programs on this computer, where authentication is off.
    Here,
}

impl Holder {
    pub fn of(caller: &Caller) -> Self {
        match (&caller.principal, caller.address) {
            (Principal::Account(account), _) => Self::Account(account.id),
            (Principal::AuthDisabled { .. }, None) => Self::Here,
            (Principal::AuthDisabled { .. }, Some(address)) if address.is_loopback() => Self::Here,
            (_, address) => Self::Network(network(address.unwrap_or(IpAddr::from([0, 0, 0, 0])))),
        }
    }
}

/// Returns the address under which a client is counted.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
    }
}

/// The bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The caller's own.
    Holder,
    /// The bound of all callers together.
    All,
}

/// A resource counted over all callers and for each.
#[derive(Clone, Debug)]
pub struct Limit {
    all: usize,
    each: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    /// How many were ever taken or released.
    turns: u64,
    of: HashMap<Holder, usize>,
}

/// A unit of a limit. Dropping it releases the unit.
#[derive(Debug)]
pub struct Permit {
    holder: Holder,
    counts: Arc<Mutex<Counts>>,
}

impl Limit {
    /// Makes a limit. `each` is a caller's share of `all`; programs on this computer may take all
    /// if authentication is off.
    pub fn new(all: usize, each: usize) -> Self {
        Self { all, each, counts: Arc::default() }
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// A bound is reached.
    pub fn take(&self, holder: Holder) -> Result<Permit, Full> {
        let each = if holder == Holder::Here { self.all } else { self.each };
        let mut counts = lock(&self.counts);
        if counts.of.get(&holder).is_some_and(|count| *count >= each) {
            return Err(Full::Holder);
        }
        if counts.all >= self.all {
            return Err(Full::All);
        }
        counts.all += 1;
        counts.turns += 1;
        *counts.of.entry(holder).or_default() += 1;
        Ok(Permit { holder, counts: self.counts.clone() })
    }

    /// Returns a counter that changes with every unit taken or released.
    pub fn turns(&self) -> u64 {
        lock(&self.counts).turns
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts);
        counts.all -= 1;
        counts.turns += 1;
        if let Some(count) = counts.of.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                counts.of.remove(&self.holder);
            }
        }
    }
}

/// Bytes that wait in the host's memory for a peer to receive them, bounded for all callers and for
/// each.
#[derive(Clone, Debug)]
pub struct ByteLimit {
    all: Arc<Semaphore>,
    each: usize,
    of: Arc<Mutex<HashMap<Holder, Arc<Semaphore>>>>,
}

/// The share of one caller in a [`ByteLimit`].
#[derive(Clone, Debug)]
pub struct Bytes {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    each: usize,
}

/// Held bytes. Dropping the value releases them.
#[derive(Debug)]
pub struct HeldBytes {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl ByteLimit {
    pub fn new(all: usize, each: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), each, of: Arc::default() }
    }

    pub fn of(&self, holder: Holder) -> Bytes {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        // Drops shares that no stream holds any more.
        of.retain(|_, own| Arc::strong_count(own) > 1);
        let own = of.entry(holder).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone();
        Bytes { all: self.all.clone(), own, each: self.each }
    }
}

impl Bytes {
    /// Waits until this many bytes may be held; a request above the whole share takes all of it.
    pub async fn hold(&self, bytes: usize) -> HeldBytes {
        let count = self.count(bytes);
        // The caller's own share first, so that waiting for it takes nothing from others. Neither
        // semaphore is ever closed, which would be the only error.
        let own = self.own.clone().acquire_many_owned(count).await.ok();
        let all = self.all.clone().acquire_many_owned(count).await.ok();
        HeldBytes { _own: own, _all: all }
    }

    /// Does the same without waiting.
    pub fn try_hold(&self, bytes: usize) -> Option<HeldBytes> {
        let count = self.count(bytes);
        let own = self.own.clone().try_acquire_many_owned(count).ok()?;
        let all = self.all.clone().try_acquire_many_owned(count).ok()?;
        Some(HeldBytes { _own: Some(own), _all: Some(all) })
    }

    /// Returns whether most of the share, or of the sum, is taken.
    pub fn is_scarce(&self) -> bool {
        let little = self.each / 2;
        self.own.available_permits() < little || self.all.available_permits() < little
    }

    fn count(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.each)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: i64) -> Holder {
        Holder::Account(UserId(id))
    }

    #[test]
    fn caller_at_its_bound_leaves_the_rest_to_others() {
        let limit = Limit::new(5, 2);
        let mut held = vec![limit.take(account(1)).unwrap(), limit.take(account(1)).unwrap()];
        assert_eq!(limit.take(account(1)).unwrap_err(), Full::Holder);
        held.push(limit.take(account(2)).unwrap());
        held.push(limit.take(Holder::Here).unwrap());
        held.push(limit.take(Holder::Here).unwrap());
        assert_eq!(limit.take(account(3)).unwrap_err(), Full::All);
        held.swap_remove(0);
        held.push(limit.take(account(1)).unwrap());
        held.clear();
        assert!(lock(&limit.counts).of.is_empty());
        assert_eq!(lock(&limit.counts).all, 0);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_holder() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[tokio::test]
    async fn bytes_of_one_caller_leave_room_for_others() {
        let limit = ByteLimit::new(30, 10);
        let (one, other) = (limit.of(account(1)), limit.of(account(2)));
        let held = one.hold(1000).await;
        assert!(
            limit.of(account(1)).try_hold(1).is_none(),
            "the share is one, however it is asked for"
        );
        assert!(one.is_scarce() && !other.is_scarce());
        drop(other.hold(10).await);
        drop(held);
        assert!(one.try_hold(10).is_some());
        drop((one, other));
        let _last = limit.of(account(3));
        assert_eq!(limit.of.lock().unwrap().len(), 1, "shares that nothing holds are forgotten");
    }
}
