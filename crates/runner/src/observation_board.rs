//! The newest observation of every instance, for the session with the host.
//!
//! Drivers publish; the session takes what changed since it last looked. A newer observation
//! replaces an untaken one, so a slow link delays reports but never queues them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kohakuriver_model::{InstanceId, Observation, Observed};
use tokio::sync::watch;

#[derive(Debug)]
pub struct ObservationBoard {
    entries: Mutex<Entries>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Entries {
    last: u64,
    by_task: BTreeMap<InstanceId, (u64, Observation)>,
}

impl Default for ObservationBoard {
    fn default() -> Self {
        Self { entries: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl ObservationBoard {
    /// Takes a report, its texts held to their bounds.
    pub fn publish(&self, task: InstanceId, observation: Observation) {
        let observation = observation.bounded();
        let mut entries = self.lock();
        let same = entries.by_task.get(&task).is_some_and(|(_, known)| *known == observation);
        if same {
            return;
        }
        entries.last += 1;
        let sequence = entries.last;
        entries.by_task.insert(task, (sequence, observation));
        self.changed.send_replace(sequence);
    }

    pub fn get(&self, task: InstanceId) -> Option<Observation> {
        self.lock().by_task.get(&task).map(|(_, observation)| observation.clone())
    }

    /// Returns the observations published after `since`, in order, and the mark to pass next time.
    pub fn after(&self, since: u64) -> (u64, Vec<(InstanceId, Observation)>) {
        let entries = self.lock();
        let mut fresh: Vec<_> =
            entries.by_task.iter().filter(|(_, (sequence, _))| *sequence > since).collect();
        fresh.sort_by_key(|(_, (sequence, _))| *sequence);
        let fresh = fresh.into_iter().map(|(id, (_, seen))| (*id, seen.clone())).collect();
        (entries.last, fresh)
    }

    /// An absence that was sent needs no keeping: the host asks again for what it still has.
    pub fn forget_absent(&self, task: InstanceId) {
        let mut entries = self.lock();
        let absent = |(_, seen): &(u64, Observation)| seen.state == Observed::Absent;
        if entries.by_task.get(&task).is_some_and(absent) {
            entries.by_task.remove(&task);
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(generation: u64) -> Observation {
        Observation {
            generation,
            state: Observed::Absent,
            ssh_host_key: None,
            warning: None,
            address: None,
        }
    }

    #[test]
    fn only_what_changed_is_taken_and_only_the_newest() {
        let board = ObservationBoard::default();
        let [a, b] = [1, 2].map(InstanceId::from_u64);
        board.publish(a, seen(1));
        board.publish(b, seen(1));
        board.publish(a, seen(2));
        board.publish(a, seen(2));
        let (mark, fresh) = board.after(0);
        assert_eq!(fresh, vec![(b, seen(1)), (a, seen(2))]);
        assert_eq!(board.after(mark), (mark, vec![]));
        board.forget_absent(a);
        assert_eq!(board.after(0).1.len(), 1);
    }
}
