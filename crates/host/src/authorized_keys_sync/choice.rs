//! Chooses the registered keys of one VPS: all of them, up to a bound on their number and bytes.
//!
//! If there are too many, each account's first key comes before any account's second, so that an
//! account with many keys displaces its own, not the owner's.

use std::collections::{BTreeSet, HashMap};

use kohakuriver_model::bounds::{
    MAX_ACCOUNT_KEYS_BYTES, MAX_PEOPLE, MAX_PEOPLE_KEYS, MAX_PEOPLE_KEYS_BYTES,
};
use kohakuriver_model::{People, UserId};

use crate::instances::keys;

/// The registered keys of all accounts, with short comments; each account's within its bound.
#[derive(Debug)]
pub struct Keys {
    /// Each key's id, which grows with age, and its line.
    by_account: HashMap<UserId, Vec<(i64, String)>>,
    /// The number of keys beyond an account's bound, from before there was one.
    beyond: HashMap<UserId, usize>,
}

/// The keys of one VPS.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// By age, the oldest first.
    pub lines: Vec<String>,
    pub left_out: usize,
}

impl Keys {
    pub fn new(stored: HashMap<UserId, Vec<(i64, String)>>) -> Self {
        let (mut by_account, mut beyond) = (HashMap::new(), HashMap::new());
        for (user, keys) in stored {
            let all = keys.len();
            let mut bytes = 0;
            let leaned = keys.into_iter().map(|(number, line)| (number, keys::leaned(&line)));
            let within = |(_, line): &(i64, String)| {
                bytes += line.len();
                bytes <= MAX_ACCOUNT_KEYS_BYTES
            };
            let kept: Vec<_> = leaned.take_while(within).collect();
            beyond.insert(user, all - kept.len());
            by_account.insert(user, kept);
        }
        Self { by_account, beyond }
    }

    /// Chooses the keys of these accounts.
    pub fn of(&self, people: &BTreeSet<UserId>) -> Chosen {
        let accounts: Vec<_> = people.iter().filter_map(|user| self.by_account.get(user)).collect();
        let all: usize = accounts.iter().map(|keys| keys.len()).sum();
        let beyond: usize = people.iter().filter_map(|user| self.beyond.get(user)).sum();
        let longest = accounts.iter().map(|keys| keys.len()).max().unwrap_or(0);
        let in_turn =
            (0..longest).flat_map(|turn| accounts.iter().filter_map(move |keys| keys.get(turn)));
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        for key in in_turn {
            bytes += key.1.len();
            if chosen.len() == MAX_PEOPLE_KEYS || bytes > MAX_PEOPLE_KEYS_BYTES {
                break;
            }
            chosen.push(key);
        }
        chosen.sort_unstable();
        let left_out = all - chosen.len() + beyond;
        Chosen { lines: chosen.into_iter().map(|(_, line)| line.clone()).collect(), left_out }
    }
}

/// Bounds the accounts of one VPS. Those beyond the bound cannot log in, which is logged: no known
/// cluster has as many.
pub fn people(mut people: BTreeSet<UserId>) -> People {
    if people.len() > MAX_PEOPLE {
        tracing::warn!(accounts = people.len(), limit = MAX_PEOPLE, "a VPS has too many accounts");
        people = people.into_iter().take(MAX_PEOPLE).collect();
    }
    People(people)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(bytes: usize, number: i64) -> (i64, String) {
        (number, format!("ssh-rsa {number:0>width$}", width = bytes.saturating_sub(8)))
    }

    #[test]
    fn few_keys_are_all_there_by_age() {
        let (ann, bob) = (UserId(1), UserId(2));
        let stored =
            [(ann, vec![key(80, 1), key(80, 4)]), (bob, vec![key(80, 2), key(80, 3)])].into();
        let chosen = Keys::new(stored).of(&[ann, bob].into());
        let ages = (1..=4).map(|number| key(80, number).1);
        assert_eq!(chosen, Chosen { lines: ages.collect(), left_out: 0 });
    }

    proptest! {
        #[test]
        fn chosen_keys_are_bounded_and_fair(
            accounts in proptest::collection::vec(proptest::collection::vec(40usize..4000, 0..40), 1..40),
        ) {
            let mut number = 0;
            let mut stored = HashMap::new();
            for (user, lengths) in accounts.iter().enumerate() {
                let keys = lengths.iter().map(|bytes| { number += 1; key(*bytes, number) });
                stored.insert(UserId(user as i64), keys.collect::<Vec<_>>());
            }
            let everybody: BTreeSet<UserId> = stored.keys().copied().collect();
            let all: usize = stored.values().map(Vec::len).sum();
            let firsts: Vec<String> =
                stored.values().filter_map(|keys| keys.first()).map(|(_, line)| line.clone()).collect();
            let chosen = Keys::new(stored).of(&everybody);
            prop_assert!(chosen.lines.len() <= MAX_PEOPLE_KEYS);
            prop_assert!(chosen.lines.iter().map(String::len).sum::<usize>() <= MAX_PEOPLE_KEYS_BYTES);
            prop_assert_eq!(chosen.lines.len() + chosen.left_out, all);
            if firsts.iter().map(String::len).sum::<usize>() <= MAX_PEOPLE_KEYS_BYTES {
                prop_assert!(firsts.iter().all(|line| chosen.lines.contains(line)));
            }
        }
    }
}
