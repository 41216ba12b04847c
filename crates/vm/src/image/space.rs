//! Room on a disk, and checksums of what is on it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

use super::download::percent;
use super::{ImageError, Report};

/// Shared storage is never filled to the brim: others write there too.
const RESERVE: u64 = 512 << 20;
/// Large enough that reading, not calling, takes the time.
const PIECE: usize = 1 << 20;

/// The file system that a file is, or will be, on.
#[derive(Debug)]
pub struct Room(PathBuf);

impl Room {
    pub fn of(file: &Path) -> Self {
        Self(file.parent().unwrap_or(Path::new("/")).to_owned())
    }

    /// # Errors
    /// There is no room for so many bytes more.
    pub fn require(&self, bytes: u64) -> Result<(), ImageError> {
        let stat = statvfs(&self.0)
            .map_err(|errno| ImageError::io("look at the room in", &self.0)(errno.into()))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let needed = bytes.saturating_add(RESERVE);
        if free < needed {
            return Err(ImageError::NoSpace { dir: self.0.clone(), free, needed });
        }
        Ok(())
    }
}

/// The SHA-256 of a file, in hexadecimal digits.
pub async fn checksum(path: &Path, step: &str, report: Report<'_>) -> Result<String, ImageError> {
    let failed = |source| ImageError::io("read", path)(source);
    let mut file = File::open(path).map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut done: u64 = 0;
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&piece[..read]);
        done += read as u64;
        report(step, Some(percent(done, total)));
        // A place to be interrupted at.
        tokio::task::yield_now().await;
    }
}

pub fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
