//! Throttles log-ins: each account and each address has a bucket of tries that refills with time.
//! It uses the host's clock, so that tests need not wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// The size of a bucket, and the time in which it regains one try.
const PER_ACCOUNT: (i64, i64) = (10, 6_000);
/// A whole lab may be behind one address.
const PER_ADDRESS: (i64, i64) = (30, 2_000);
/// More accounts than a lab has; where clients try more names, the fullest buckets are dropped.
const MOST_BUCKETS: usize = 10_000;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too many tries: wait {seconds} s")]
pub struct Slow {
    pub seconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Account(String),
    /// An IPv6 address counts by its /64, which a single computer may own entirely.
    Address(u128),
}

/// When the bucket will be full again; earlier is fuller.
#[derive(Debug, Default)]
pub struct Throttle {
    full_at: Mutex<HashMap<Key, i64>>,
}

impl Throttle {
    /// Takes one try from both buckets.
    ///
    /// # Errors
    /// One of them is empty.
    pub fn admit(&self, account: &str, address: Option<IpAddr>, now_ms: i64) -> Result<(), Slow> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST_BUCKETS {
            buckets.retain(|_, full_at| *full_at > now_ms);
            if buckets.len() >= MOST_BUCKETS {
                buckets.clear();
            }
        }
        let keys = keys(account, address);
        for (key, (burst, refill_ms)) in &keys {
            let full_at = buckets.get(key).copied().unwrap_or(now_ms).max(now_ms);
            let over_ms = full_at + refill_ms - (now_ms + burst * refill_ms);
            if over_ms > 0 {
                return Err(Slow { seconds: (over_ms + 999) / 1000 });
            }
        }
        for (key, (_, refill_ms)) in keys {
            let full_at = buckets.entry(key).or_insert(now_ms);
            *full_at = (*full_at).max(now_ms) + refill_ms;
        }
        Ok(())
    }

    /// Resets the account's bucket after a successful log-in. The address regains only this one
    /// try, so that an account of one's own does not allow endless guesses at others.
    pub fn forgive(&self, account: &str, address: Option<IpAddr>) {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, (_, refill_ms)) in keys(account, address) {
            match &key {
                Key::Account(_) => drop(buckets.remove(&key)),
                Key::Address(_) => {
                    buckets.entry(key).and_modify(|full_at| *full_at -= refill_ms);
                }
            }
        }
    }
}

fn keys(account: &str, address: Option<IpAddr>) -> Vec<(Key, (i64, i64))> {
    let mut keys = Vec::with_capacity(2);
    if !account.is_empty() {
        // Longer names are no accounts, and would fill memory.
        let name = account.chars().take(50).collect::<String>().to_lowercase();
        keys.push((Key::Account(name), PER_ACCOUNT));
    }
    if let Some(address) = address {
        let network = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address) >> 64 << 64,
        };
        keys.push((Key::Address(network), PER_ADDRESS));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn account_has_ten_tries_then_one_every_six_seconds() {
        let throttle = Throttle::default();
        for last in 0..10 {
            assert_eq!(throttle.admit("Alice", v4(last), 1000), Ok(()));
        }
        assert_eq!(throttle.admit("alice", v4(99), 1000), Err(Slow { seconds: 6 }));
        assert_eq!(throttle.admit("bob", v4(99), 1000), Ok(()));
        assert_eq!(throttle.admit("alice", v4(99), 7000), Ok(()));
        assert!(throttle.admit("alice", v4(99), 7000).is_err());
    }

    #[test]
    fn address_cannot_try_many_accounts() {
        let throttle = Throttle::default();
        let mut tries = 0;
        while throttle.admit(&format!("user{tries}"), v4(1), 5).is_ok() {
            tries += 1;
        }
        assert_eq!(tries, 30);
        assert_eq!(throttle.admit("fresh", v4(2), 5), Ok(()));
    }

    #[test]
    fn successful_login_resets_the_account() {
        let throttle = Throttle::default();
        for _ in 0..9 {
            throttle.admit("alice", v4(1), 0).unwrap();
        }
        throttle.forgive("alice", v4(1));
        for _ in 0..10 {
            throttle.admit("alice", v4(1), 0).unwrap();
        }
    }

    #[test]
    fn own_login_does_not_extend_guesses_at_others() {
        let throttle = Throttle::default();
        let mut guesses = 0;
        while throttle.admit(&format!("user{guesses}"), v4(1), 0).is_ok() {
            guesses += 1;
            if throttle.admit("mallory", v4(1), 0).is_ok() {
                throttle.forgive("mallory", v4(1));
            }
        }
        assert_eq!(guesses, 30);
    }

    #[test]
    fn strangers_cannot_fill_memory() {
        let throttle = Throttle::default();
        for number in 0..3 * MOST_BUCKETS {
            let _ = throttle.admit(&format!("user{number}"), None, 0);
        }
        assert!(throttle.full_at.lock().unwrap().len() <= MOST_BUCKETS);
    }
}
