//! What must be known to give functions back: written before anything is touched.
//!
//! One file per machine, `<task id>.json`, replaced as a whole and removed last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kohakuriver_model::InstanceId;
use serde::{Deserialize, Serialize};

use super::address::PciAddress;

/// What one machine holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Drivers are as the kernel chose them after the next boot: then this says nothing.
    pub boot_id: String,
    pub functions: Vec<Held>,
}

/// How a function was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub address: PciAddress,
    pub group: u32,
    pub driver: Option<String>,
    pub driver_override: Option<String>,
}

/// What was found in the directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    pub entries: Vec<(InstanceId, Entry)>,
    /// Files that cannot be read as entries.
    pub damaged: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
pub(super) struct Journal {
    dir: PathBuf,
}

impl Journal {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, task: InstanceId) -> PathBuf {
        self.dir.join(format!("{task}.json"))
    }

    pub fn load_all(&self) -> io::Result<Loaded> {
        let mut loaded = Loaded::default();
        let files = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(loaded),
            files => files?,
        };
        for file in files {
            let path = file?.path();
            // What a crash left half written has another ending, and nothing was touched then.
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let task = path.file_stem().and_then(|stem| stem.to_str()?.parse::<InstanceId>().ok());
            match (task, serde_json::from_slice(&fs::read(&path)?)) {
                (Some(task), Ok(entry)) => loaded.entries.push((task, entry)),
                (None, _) | (_, Err(_)) => loaded.damaged.push(path),
            }
        }
        loaded.entries.sort_by_key(|(task, _)| *task);
        Ok(loaded)
    }

    /// On the disk when this returns.
    pub fn write(&self, task: InstanceId, entry: &Entry) -> io::Result<()> {
        kohakuriver_durable::private_dir(&self.dir)?;
        kohakuriver_durable::write(&self.path(task), &serde_json::to_vec_pretty(entry)?, 0o600)
    }

    pub fn remove(&self, task: InstanceId) -> io::Result<()> {
        match fs::remove_file(self.path(task)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => kohakuriver_durable::sync_dir(&self.dir),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_entry_is_private_whole_and_survives_a_half_written_one() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path().join("vfio"));
        let task = InstanceId::from_u64(7);
        let held = Held {
            address: "0000:01:00.0".parse().unwrap(),
            group: 12,
            driver: Some("nvidia".to_owned()),
            driver_override: None,
        };
        let entry = Entry { boot_id: "b".to_owned(), functions: vec![held] };
        assert_eq!(journal.load_all().unwrap(), Loaded::default());
        journal.remove(task).unwrap();
        journal.write(task, &entry).unwrap();
        fs::write(journal.path(task).with_extension("new"), "{\"boot").unwrap();
        journal.write(task, &entry).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&journal.path(task)), 0o600);
        assert_eq!(mode(&dir.path().join("vfio")), 0o700);
        let damaged = dir.path().join("vfio/x.json");
        fs::write(&damaged, "").unwrap();
        let loaded = Loaded { entries: vec![(task, entry)], damaged: vec![damaged] };
        assert_eq!(journal.load_all().unwrap(), loaded);
        journal.remove(task).unwrap();
        assert!(journal.load_all().unwrap().entries.is_empty());
    }
}
