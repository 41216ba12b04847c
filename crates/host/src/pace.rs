//! The rate limit of shares and offers: a bucket for each account, which refills with time.
//!
//! Each act affects another account, and an error for a wrong name reveals that there is no such
//! account. Neither can be done in bulk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kohakuriver_model::UserId;

/// The capacity of a bucket.
const BURST: i64 = 120;
/// The time in which a bucket regains one unit.
const REFILL_MS: i64 = 5_000;
/// The cost of a share or an offer, for each receiver.
pub const ACT: i64 = 1;
/// The cost of a name or id without an account.
pub const WRONG_NAME: i64 = 10;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too many shares, offers or wrong names at once: wait {seconds} s")]
pub struct Slow {
    pub seconds: i64,
}

/// The time at which each bucket will be full again. Accounts are few, and full buckets are
/// dropped.
#[derive(Debug, Default)]
pub struct Pace {
    full_at: Mutex<HashMap<UserId, i64>>,
}

impl Pace {
    /// Takes `cost` from the account's bucket.
    ///
    /// # Errors
    /// It holds less.
    pub fn admit(&self, user: UserId, cost: i64, now_ms: i64) -> Result<(), Slow> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.retain(|_, full_at| *full_at > now_ms);
        // A clock that was set back must not keep an account waiting for the length of the step.
        let full_at = buckets.get(&user).copied().unwrap_or(now_ms).min(now_ms + BURST * REFILL_MS);
        buckets.insert(user, full_at);
        let after = full_at + cost * REFILL_MS;
        let over_ms = after - (now_ms + BURST * REFILL_MS);
        if over_ms > 0 {
            return Err(Slow { seconds: (over_ms + 999) / 1000 });
        }
        buckets.insert(user, after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_names_are_tried_a_dozen_times_and_then_slowly() {
        let pace = Pace::default();
        for _ in 0..12 {
            pace.admit(UserId(1), WRONG_NAME, 0).unwrap();
        }
        assert_eq!(pace.admit(UserId(1), ACT, 0), Err(Slow { seconds: 5 }));
        assert_eq!(pace.admit(UserId(2), ACT, 0), Ok(()), "another account's is its own");
        assert_eq!(pace.admit(UserId(1), WRONG_NAME, 50_000), Ok(()));
        assert!(pace.admit(UserId(1), WRONG_NAME, 50_000).is_err());
    }

    #[test]
    fn clock_set_back_does_not_delay_longer() {
        let pace = Pace::default();
        pace.admit(UserId(1), BURST, 1_000_000_000).unwrap();
        assert_eq!(pace.admit(UserId(1), ACT, 0), Err(Slow { seconds: 5 }));
        assert_eq!(pace.admit(UserId(1), ACT, 5_000), Ok(()));
    }
}
