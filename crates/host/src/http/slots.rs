//! How many connections there may be, and from whom: one address must not take them all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client_address::is_trusted;

/// Connections at once; long-polling clients hold one each.
const MAX_CONNECTIONS: usize = 1024;
/// Of one address, or one network of IPv6: enough for a lab behind one router, and a quarter of
/// what there is.
const MAX_OF_ONE: u32 = 256;

/// All slots.
#[derive(Debug)]
pub struct Slots {
    all: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<IpAddr, u32>>>,
    proxies: Vec<IpNet>,
}

/// One connection's; dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    _counted: Option<Counted>,
}

impl Slots {
    /// Proxies speak for many, and so does this machine itself: these are not counted.
    pub fn new(proxies: Vec<IpNet>) -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_CONNECTIONS)), taken: Arc::default(), proxies }
    }

    /// Waits while there are none left; `None` where this address has too many already.
    pub async fn take(&self, address: IpAddr) -> Option<Slot> {
        let counted = if address.is_loopback() || is_trusted(address, &self.proxies) {
            None
        } else {
            Some(Counted::new(&self.taken, who(address))?)
        };
        let permit = self.all.clone().acquire_owned().await.ok()?;
        Some(Slot { _permit: permit, _counted: counted })
    }
}

/// A machine has as many IPv6 addresses as it likes within its /64.
fn who(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
    }
}

#[derive(Debug)]
struct Counted {
    taken: Arc<Mutex<HashMap<IpAddr, u32>>>,
    who: IpAddr,
}

impl Counted {
    fn new(taken: &Arc<Mutex<HashMap<IpAddr, u32>>>, who: IpAddr) -> Option<Self> {
        let mut counts = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(who).or_default();
        if *count >= MAX_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Self { taken: taken.clone(), who })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_cannot_take_all_and_gets_back_what_it_gives() {
        let slots = Slots::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let one = |last: u64| format!("2001:db8::{last:x}").parse::<IpAddr>().unwrap();
        let mut held = Vec::new();
        for last in 0..u64::from(MAX_OF_ONE) {
            held.push(slots.take(one(last)).await.unwrap());
        }
        assert!(slots.take(one(9999)).await.is_none());
        for other in ["2001:db8:0:1::1", "192.0.2.1", "10.0.0.1", "127.0.0.1"] {
            held.push(slots.take(other.parse().unwrap()).await.unwrap());
        }
        held.swap_remove(0);
        assert!(slots.take(one(9999)).await.is_some());
        held.clear();
        assert!(slots.taken.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn proxies_and_this_machine_are_bounded_only_by_what_there_is() {
        let slots = Slots::new(vec!["10.0.0.0/8".parse().unwrap()]);
        let mut held = Vec::new();
        for _ in 0..=MAX_OF_ONE {
            held.push(slots.take("10.0.0.1".parse().unwrap()).await.unwrap());
            held.push(slots.take("127.0.0.1".parse().unwrap()).await.unwrap());
        }
    }
}
