//! The files of a VM's directory.
//!
//! ```text
//!  machine.json   how it was made: written before its disk, so a disk without one belongs to no VM
//!  started        the process that became its QEMU (kohakuriver_vm::launch)
//!  ended.json     how that process ended
//! ```

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kohakuriver_model::{GpuRef, NumaPin, SnapshotRef};
use kohakuriver_vm::launch::Process;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::oom::{self, OUT_OF_MEMORY};
use crate::clock;
use crate::plan::{Lifecycle, Limits};
use kohakuriver_durable as durable;

const MACHINE: &str = "machine.json";
pub const STARTED: &str = "started";
const ENDED: &str = "ended.json";

/// How a machine was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub disk_generation: u64,
    /// The file of its disk, and the layer that it lies over.
    pub disk: String,
    pub layer: String,
    /// A freeze that was begun: the layer's name and the next disk's.
    #[serde(default)]
    pub freezing: Option<(String, String)>,
    /// The layer of its image, at the bottom of the chain.
    pub base: String,
    /// The snapshot that its disk was made from.
    pub origin: Option<SnapshotRef>,
    pub limits: MachineLimits,
    pub numa: Option<NumaPin>,
    pub gpus: Vec<GpuRef>,
    /// Its address for as long as it exists.
    pub address: Ipv4Addr,
    /// The port of this machine's loopback that leads to its agent, where there is no bridge.
    #[serde(default)]
    pub agent_port: Option<u16>,
    /// Something of ours answers inside.
    pub agent: bool,
    /// It has been started from its own disk's boot loader, or will be the next time.
    pub boots_itself: bool,
}

/// [`Limits`], as they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineLimits {
    pub cores: u32,
    pub memory_bytes: u64,
}

impl From<MachineLimits> for Limits {
    fn from(limits: MachineLimits) -> Self {
        Self { cores: limits.cores, memory_bytes: limits.memory_bytes, pids: 0 }
    }
}

/// How a machine's process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which start it belongs to.
    pub started: String,
    pub exit_code: Option<i64>,
    pub at_ms: i64,
    /// For people; empty where there is nothing to say.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub oom: bool,
}

/// A VM's directory.
#[derive(Clone, Debug)]
pub struct MachineDir(pub PathBuf);

impl MachineDir {
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn machine(&self) -> io::Result<Option<Machine>> {
        read(&self.0.join(MACHINE))
    }

    /// As [`Self::machine`], for those that look at all machines: one whose record is damaged must not
    /// keep the others from what they want. `None`: it is damaged, or there is none.
    pub fn readable_machine(&self) -> io::Result<Option<Machine>> {
        match self.machine() {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%error, "a VM's record is damaged; the VM is left unchanged");
                Ok(None)
            }
            other => other,
        }
    }

    pub fn write_machine(&self, machine: &Machine) -> io::Result<()> {
        durable::write(&self.0.join(MACHINE), &serde_json::to_vec(machine)?, 0o600)
    }

    /// The process of the latest start, and the mark of that start.
    pub fn started(&self) -> Option<(Process, String)> {
        let path = self.0.join(STARTED);
        let process = Process::recorded(&path)?;
        let about = fs::metadata(&path).ok()?;
        // Pids come again, and after a reboot so do the kernel's ticks.
        let mark = format!("{}-{}-{}", process.pid, process.start_time, about.mtime());
        Some((process, mark))
    }

    fn started_at_ms(&self) -> i64 {
        fs::metadata(self.0.join(STARTED))
            .map_or(0, |about| about.mtime() * 1000 + about.mtime_nsec() / 1_000_000)
    }

    /// Writes down how the latest start ended, unless that is known.
    pub fn write_ended(
        &self,
        exit_code: Option<i64>,
        reason: &str,
        oom: bool,
    ) -> io::Result<Ended> {
        if let Some(known) = self.known_end() {
            return Ok(known);
        }
        let started = self.started().map(|(_, mark)| mark).unwrap_or_default();
        let reason = reason.to_owned();
        let ended = Ended { started, exit_code, at_ms: clock::now_ms(), reason, oom };
        durable::write(&self.0.join(ENDED), &serde_json::to_vec(&ended)?, 0o600)?;
        Ok(ended)
    }

    /// Returns how the latest start ended, if that was recorded.
    pub fn known_end(&self) -> Option<Ended> {
        let started = self.started().map(|(_, mark)| mark).unwrap_or_default();
        self.ended().filter(|ended| ended.started == started)
    }

    pub fn ended(&self) -> Option<Ended> {
        read(&self.0.join(ENDED)).ok().flatten()
    }

    /// Returns its lifecycle state, its start's mark, and how it ended.
    pub fn life(&self) -> io::Result<(Lifecycle, Option<String>, Option<Ended>)> {
        let Some((process, mark)) = self.started() else {
            return Ok((Lifecycle::Created, None, None));
        };
        if process.is_alive() {
            let life = Lifecycle::Running { started_at_ms: self.started_at_ms() };
            return Ok((life, Some(mark), None));
        }
        // Where nobody saw it end, it ended when that was found out.
        let ended = match self.known_end() {
            Some(known) => known,
            None if oom::was_killed(process) => self.write_ended(Some(137), OUT_OF_MEMORY, true)?,
            None => self.write_ended(None, "nobody saw its QEMU end", false)?,
        };
        let life = Lifecycle::Ended { exit_code: ended.exit_code, finished_at_ms: ended.at_ms };
        Ok((life, Some(mark), Some(ended)))
    }
}

/// A snapshot of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    pub name: Option<String>,
    pub message: String,
    pub layer: String,
}

pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
