//! What is on the disk of a virtual machine: one file with a number, written and synced by us.
//! Numbers only grow. Whoever did not hear whether one was written knows two that may be there.

use std::collections::{BTreeMap, BTreeSet};

const FILE: &str = "/root/number";

/// The numbers that may be on a disk; `None`: nobody knows.
type Numbers = Option<BTreeSet<u32>>;

#[derive(Clone, Debug)]
pub struct Disk {
    now: Numbers,
    /// By the names that we gave them.
    snapshots: BTreeMap<String, Numbers>,
}

impl Default for Disk {
    fn default() -> Self {
        Self { now: Some(BTreeSet::from([0])), snapshots: BTreeMap::new() }
    }
}

impl Disk {
    /// Shell that writes it, unless a newer one is there: an older write may come late.
    pub fn write(number: u32) -> String {
        format!(
            "[ $(cat {FILE} 2>/dev/null || echo 0) -lt {number} ] || exit 0; \
             echo {number} >{FILE}.new && sync && mv {FILE}.new {FILE} && sync"
        )
    }

    /// Shell that reads it.
    pub fn read() -> String {
        format!("cat {FILE} 2>/dev/null || echo 0")
    }

    pub fn written(&mut self, number: u32, surely: bool) {
        if surely {
            self.now = Some(BTreeSet::from([number]));
        } else if let Some(now) = &mut self.now {
            now.insert(number);
        }
    }

    pub fn saved(&mut self, snapshot: &str, surely: bool) {
        let numbers = self.now.clone().filter(|_| surely);
        self.snapshots.insert(snapshot.to_owned(), numbers);
    }

    /// The names of its snapshots, as far as they came to be and are still there.
    pub fn snapshots(&self) -> impl Iterator<Item = &str> {
        self.snapshots.keys().map(String::as_str)
    }

    pub fn restored(&mut self, snapshot: &str, surely: bool) {
        self.now = self.snapshots.get(snapshot).cloned().flatten().filter(|_| surely);
    }

    pub fn check(&self, found: u32) -> Result<(), String> {
        match &self.now {
            Some(now) if !now.contains(&found) => {
                Err(format!("{found} is on its disk, not one of {now:?}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub fn is_certain(&self) -> bool {
        self.now.as_ref().is_some_and(|now| now.len() == 1)
    }
}
