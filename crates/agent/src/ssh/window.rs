//! How much a client may send ahead of the program its bytes are for.
//!
//! Window is granted as bytes are consumed, so a channel whose program reads nothing fills its own window and no other
//! channel notices. Every channel starts with [`INITIAL`], which bounds what many idle ones can hold; one that keeps
//! consuming is granted more than it consumed until it has [`LARGEST`], as long as the connection's [`Budget`] lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use russh::ChannelId;
use russh::server::Handle;

/// Bytes that a channel may send before any are consumed: more than a person or an editor has in flight.
pub(super) const INITIAL: u32 = 256 * 1024;
/// 80 MB/s at 50 ms.
const LARGEST: u32 = 4 * 1024 * 1024;
/// Eight channels at full size, which is more than a line is shared by at once.
const BUDGET: u32 = 32 * 1024 * 1024;
/// Granted in steps of this part of the window: less often would stall the client, more often would only cost packets.
const STEPS: u32 = 4;

/// Window beyond [`INITIAL`] that the connection's channels have not taken.
#[derive(Debug)]
pub(super) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(BUDGET))
    }
}

impl Budget {
    /// Takes up to `wanted` of what is left.
    fn take(&self, wanted: u32) -> u32 {
        let mut left = self.0.load(Ordering::Relaxed);
        loop {
            let taken = wanted.min(left);
            let swapped =
                self.0.compare_exchange(left, left - taken, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return taken,
                Err(now) => left = now,
            }
        }
    }

    fn give_back(&self, amount: u32) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

/// The account of one channel's incoming bytes; dropping it returns what it took from the budget.
#[derive(Debug)]
struct Account {
    size: u32,
    owed: u32,
    budget: Arc<Budget>,
}

impl Account {
    /// Counts consumed bytes, and tells how much to grant for them now.
    fn consume(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.owed < self.size / STEPS {
            return None;
        }
        let growth = self.budget.take(self.owed.min(LARGEST - self.size));
        self.size += growth;
        Some(std::mem::take(&mut self.owed).saturating_add(growth))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.give_back(self.size - INITIAL);
    }
}

/// The receive window of a channel.
#[derive(Debug)]
pub(super) struct Window {
    channel: ChannelId,
    handle: Handle,
    account: Account,
}

impl Window {
    pub fn new(channel: ChannelId, handle: Handle, budget: Arc<Budget>) -> Self {
        Self { channel, handle, account: Account { size: INITIAL, owed: 0, budget } }
    }

    /// Tells that bytes of the client have left our memory, and grants window for them.
    pub fn consume(&mut self, bytes: usize) {
        if let Some(amount) = self.account.consume(bytes) {
            self.handle.grant_window(self.channel, amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(budget: &Arc<Budget>) -> Account {
        Account { size: INITIAL, owed: 0, budget: Arc::clone(budget) }
    }

    /// Consumes as a client does that always uses its whole window.
    fn consume_all(account: &mut Account, rounds: usize) {
        for _ in 0..rounds {
            account.consume(account.size as usize);
        }
    }

    #[test]
    fn what_is_granted_is_what_was_consumed_and_what_the_window_grew_by() {
        let budget = Arc::default();
        let mut account = account(&budget);
        let (mut consumed, mut granted) = (0u64, 0u64);
        for round in 0..10_000usize {
            let bytes = round * 7 % 5_000;
            consumed += bytes as u64;
            granted += u64::from(account.consume(bytes).unwrap_or(0));
        }
        let grown = u64::from(account.size - INITIAL);
        assert_eq!(granted + u64::from(account.owed), consumed + grown);
        assert_eq!(account.size, LARGEST);
    }

    #[test]
    fn few_bytes_are_granted_together() {
        let budget = Arc::default();
        let mut account = account(&budget);
        assert_eq!(account.consume(1), None);
        assert_eq!(account.consume((INITIAL / STEPS) as usize - 1), Some(INITIAL / STEPS * 2));
    }

    #[test]
    fn channels_grow_as_long_as_the_budget_lasts_and_give_it_back() {
        let budget = Arc::default();
        let mut accounts: Vec<Account> = (0..16).map(|_| account(&budget)).collect();
        for account in &mut accounts {
            consume_all(account, 10);
        }
        let extra: u32 = accounts.iter().map(|account| account.size - INITIAL).sum();
        assert_eq!(extra, BUDGET);
        assert_eq!(accounts.last().unwrap().size, INITIAL);
        drop(accounts);
        assert_eq!(budget.0.load(Ordering::Relaxed), BUDGET);
    }
}
