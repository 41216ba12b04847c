//! The runner's persistent record: per instance the newest order and how far it was carried out.
//!
//! ```text
//!  order arrives --accept--> attempted (before the backend is asked to create)
//!     --> start intended --> start done --> ready          failed (for one start)
//! ```
//!
//! One file per instance, replaced as a whole. It is written before an act whose repetition
//! would do harm, and after an act that can be seen in the backend.
//!
//! A damaged file affects its own instance, not the node: it is set aside, and rebuilt
//! from the host's next order and what the backend has ([`Record::rebuilt`]).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use kohakuriver_model::InstanceId;
use kohakuriver_runner_link::protocol::Order;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::plan::{Failure, Limits, PlanInput, StartRecord};
use kohakuriver_durable as durable;

/// The record of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub order: Order,
    pub ordered_at_ms: i64,
    /// A create was asked of the backend at least once, so something may be there.
    pub attempted: bool,
    #[serde(default)]
    pub mark: StartRecord,
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The `disk_generation` that was made last.
    #[serde(default)]
    pub disk: Option<u64>,
    /// The start that ran out of memory.
    #[serde(default)]
    pub oom: Option<u64>,
    /// The backend's mark of the start whose end is for good.
    #[serde(default, rename = "settled")]
    pub exit_is_final: Option<String>,
    /// The generation whose limits the backend would not apply while it ran.
    #[serde(default)]
    pub resize_refused: Option<u64>,
    /// The backend's mark of the start whose stop was snapshotted, or could not be.
    #[serde(default)]
    pub snapshotted: Option<String>,
    /// The warning for users, and the generation in which it came up.
    #[serde(default)]
    pub warning: Option<(u64, String)>,
    /// It was made anew in place of a damaged one: how far the newest start came is to be seen in
    /// the backend.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproven: bool,
}

impl Record {
    pub fn new(order: Order, now_ms: i64) -> Self {
        Self {
            order,
            ordered_at_ms: now_ms,
            attempted: false,
            mark: StartRecord::Never,
            failure: None,
            disk: None,
            oom: None,
            exit_is_final: None,
            resize_refused: None,
            snapshotted: None,
            warning: None,
            unproven: false,
        }
    }

    /// In place of one that cannot be read. It takes for granted that the disk was made, so that no
    /// empty one takes its place; only a restore is done again where nothing is there.
    pub fn rebuilt(order: Order, now_ms: i64) -> Self {
        let intent = order.intent;
        let restores =
            intent.disk_generation > 0 && intent.disk_generation == intent.start_generation;
        let mut record = Self {
            attempted: true,
            disk: (!restores).then_some(intent.disk_generation),
            unproven: true,
            ..Self::new(order, now_ms)
        };
        record.warn("its record on the node was damaged and has been rebuilt".to_owned());
        record
    }

    /// Rebuilds the start record from the backend: a start that can be seen was done.
    pub fn prove(&mut self, epoch: Option<String>) {
        self.unproven = false;
        if let Some(epoch) = epoch {
            let generation = self.order.intent.start_generation;
            self.mark = StartRecord::Done { generation, epoch, ready: true };
        }
    }

    /// Takes a newer order. An older one, or the same again, changes nothing.
    pub fn accept(&mut self, order: &Order, now_ms: i64) -> bool {
        if order.intent.generation <= self.order.intent.generation {
            return false;
        }
        self.order = order.clone();
        self.ordered_at_ms = now_ms;
        true
    }

    /// Records an intended start. A started instance exists, so its disk was made.
    pub fn intend_start(&mut self, epoch: String, before: Option<String>) {
        let intent = self.order.intent;
        self.disk = Some(intent.disk_generation);
        self.mark = StartRecord::Intended { generation: intent.start_generation, epoch, before };
    }

    pub fn confirm_start(&mut self) {
        if let StartRecord::Intended { generation, epoch, .. } = &self.mark {
            self.mark =
                StartRecord::Done { generation: *generation, epoch: epoch.clone(), ready: false };
        }
    }

    pub fn ran_out_of_memory(&mut self) {
        self.oom = Some(self.order.intent.start_generation);
    }

    pub fn refuse_resize(&mut self, why: String) {
        self.resize_refused = Some(self.order.intent.generation);
        self.warn(why);
    }

    pub fn stop_snapshotted(&mut self, started: Option<String>, trouble: Option<String>) {
        self.snapshotted = started;
        if let Some(trouble) = trouble {
            self.warn(trouble);
        }
    }

    fn warn(&mut self, text: String) {
        self.warning = Some((self.order.intent.generation, text));
    }

    /// The warning that belongs to the newest order.
    pub fn current_warning(&self) -> Option<&str> {
        let newest = self.order.intent.generation;
        self.warning.as_ref().filter(|(at, _)| *at == newest).map(|(_, text)| text.as_str())
    }

    pub fn agent_answered(&mut self) {
        if let StartRecord::Done { ready, .. } = &mut self.mark {
            *ready = true;
        }
    }

    /// The last proof is here: nothing of a failed create is left in the backend.
    pub fn nothing_created(&mut self) {
        self.attempted = false;
    }

    pub fn view(&self, wanted: Limits, now_ms: i64) -> PlanInput<'_> {
        let Order { intent, spec, .. } = &self.order;
        PlanInput {
            intent: *intent,
            mark: &self.mark,
            failure: self.failure.as_ref(),
            disk: self.disk,
            oom: self.oom,
            on_oom: spec.on_oom,
            exit_is_final: self.exit_is_final.as_deref(),
            wanted,
            resize_refused: self.resize_refused == Some(intent.generation),
            snapshot_on_stop: spec.snapshots.on_stop,
            snapshotted: self.snapshotted.as_deref(),
            ordered_at_ms: self.ordered_at_ms,
            now_ms,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

impl LedgerError {
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Write { source, .. } | Self::Read { source, .. } => {
                source.kind() == io::ErrorKind::StorageFull
            }
            Self::Damaged { .. } => false,
        }
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Ledger {
    layout: Layout,
}

impl Ledger {
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Reads every record, and why those that cannot be read cannot. Directories without one are
    /// left-overs of a deletion and go.
    ///
    /// # Errors
    /// The directory of all records cannot be read.
    pub fn load_all(&self) -> Result<(Vec<Record>, HashMap<InstanceId, LedgerError>), LedgerError> {
        let dir = self.layout.instances_dir();
        let read_error = |source| LedgerError::Read { path: dir.clone(), source };
        durable::private_dir(&dir).map_err(read_error)?;
        let (mut records, mut damaged) = (Vec::new(), HashMap::new());
        for entry in fs::read_dir(&dir).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let name = entry.file_name();
            let Some(Ok(id)) = name.to_str().map(str::parse::<InstanceId>) else {
                continue;
            };
            match self.load(id) {
                Ok(Some(record)) if record.order.task_id == id => records.push(record),
                Ok(Some(_)) => {
                    damaged.insert(id, self.damage(id, "it is of another instance"));
                }
                Ok(None) if self.aside(id).exists() => {
                    damaged.insert(id, self.damage(id, "it was set aside"));
                }
                Ok(None) => self.forget(id)?,
                Err(error) => {
                    damaged.insert(id, error);
                }
            }
        }
        Ok((records, damaged))
    }

    fn damage(&self, id: InstanceId, why: &str) -> LedgerError {
        LedgerError::Damaged { path: self.file(id), source: serde::de::Error::custom(why) }
    }

    /// Moves a damaged record, for inspection, where the next one does not overwrite it.
    pub fn set_aside(&self, id: InstanceId) -> Result<(), LedgerError> {
        let path = self.file(id);
        match fs::rename(&path, self.aside(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError::Write { path, source: error })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub fn load(&self, id: InstanceId) -> Result<Option<Record>, LedgerError> {
        let path = self.file(id);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| LedgerError::Damaged { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LedgerError::Read { path, source }),
        }
    }

    pub fn save(&self, record: &Record) -> Result<(), LedgerError> {
        let id = record.order.task_id;
        let path = self.file(id);
        let text = serde_json::to_vec_pretty(record)
            .map_err(|source| LedgerError::Damaged { path: path.clone(), source })?;
        durable::private_dir(&self.layout.instance(id))
            .and_then(|()| durable::sync_dir(&self.layout.instances_dir()))
            .and_then(|()| durable::write(&path, &text, 0o600))
            .map_err(|source| LedgerError::Write { path, source })
    }

    /// Removes the record first, so that a crash in between leaves a directory that
    /// [`Self::load_all`] clears away.
    pub fn forget(&self, id: InstanceId) -> Result<(), LedgerError> {
        let dir = self.layout.instance(id);
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LedgerError::Write { path: dir.clone(), source: error })
            }
            Ok(()) | Err(_) => Ok(()),
        };
        gone(fs::remove_file(self.file(id)))?;
        gone(fs::remove_dir_all(&dir))?;
        gone(durable::sync_dir(&self.layout.instances_dir()))
    }

    fn file(&self, id: InstanceId) -> PathBuf {
        self.layout.instance(id).join("order.json")
    }

    fn aside(&self, id: InstanceId) -> PathBuf {
        self.layout.instance(id).join("order.json.damaged")
    }
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::Intent;

    use super::*;
    use crate::plan::tests::order;

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(Layout::new(dir.path(), dir.path()));
        (dir, ledger)
    }

    #[test]
    fn record_survives_and_ignores_older_orders() {
        let (_dir, ledger) = ledger();
        assert!(ledger.load_all().unwrap().0.is_empty());
        let stop = Intent::created().stop();
        let mut record = Record::new(order(Intent::created()), 1);
        assert!(record.accept(&order(stop), 2));
        assert!(!record.accept(&order(Intent::created()), 3));
        assert!(!record.accept(&order(stop), 3));
        record.intend_start("boot".to_owned(), None);
        ledger.save(&record).unwrap();
        assert_eq!(ledger.load_all().unwrap().0, vec![record]);
    }

    #[test]
    fn what_a_crash_left_of_a_deletion_is_cleared() {
        let (_dir, ledger) = ledger();
        ledger.load_all().unwrap();
        let record = Record::new(order(Intent::created()), 1);
        let id = record.order.task_id;
        ledger.save(&record).unwrap();
        fs::write(ledger.layout.instance(id).join("x"), b"").unwrap();
        fs::remove_file(ledger.file(id)).unwrap();
        assert!(ledger.load_all().unwrap().0.is_empty());
        assert!(!ledger.layout.instance(id).exists());
    }

    #[test]
    fn damaged_record_costs_its_own_instance_alone() {
        let (_dir, ledger) = ledger();
        ledger.load_all().unwrap();
        let good = Record::new(order(Intent::created()), 1);
        let id = InstanceId::from_u64(8);
        let other = Order { task_id: id, ..order(Intent::created()) };
        ledger.save(&good).unwrap();
        ledger.save(&Record::new(other.clone(), 1)).unwrap();
        fs::write(ledger.file(id), b"{").unwrap();
        // Also where the runner ended between setting it aside and writing the next one.
        for _ in 0..2 {
            let (records, damaged) = ledger.load_all().unwrap();
            assert_eq!(records, std::slice::from_ref(&good));
            assert!(matches!(damaged[&id], LedgerError::Damaged { .. }));
            ledger.set_aside(id).unwrap();
        }
        let rebuilt = Record::rebuilt(other, 2);
        ledger.save(&rebuilt).unwrap();
        assert_eq!(ledger.load(id).unwrap(), Some(rebuilt));
        assert_eq!(fs::read(ledger.aside(id)).unwrap(), b"{");
        let (records, damaged) = ledger.load_all().unwrap();
        assert_eq!((records.len(), damaged.len()), (2, 0));
        ledger.forget(id).unwrap();
        assert!(!ledger.layout.instance(id).exists());
    }
}
