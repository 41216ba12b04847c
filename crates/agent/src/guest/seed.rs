//! Finding the seed disk and reading our part of it.
//!
//! The disk is a FAT file system labelled CIDATA, which cloud-init reads too. It is read here
//! without being mounted: no udev, no module and no mount point has to be there yet, and nothing
//! stays behind when this process is killed.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fatfs::{FileSystem, FsOptions};

use super::SEED_DIR;
use crate::config::CONFIG_FILE;

const LABEL: &[u8; 11] = b"CIDATA     ";
const SECTOR: usize = 512;
/// Our seed is a megabyte or two; a larger disk of that label is not ours.
const MOST_DISK: u64 = 16 * 1024 * 1024;
const MOST_FILES: usize = 16;
const MOST_FILE: u64 = 4 * 1024 * 1024;
/// Block devices that hold no disk the machine was started with.
const NO_DISKS: [&str; 6] = ["loop", "ram", "zram", "dm-", "md", "nbd"];

/// A file of the seed.
pub(super) struct SeedFile {
    pub name: String,
    pub content: Vec<u8>,
}

/// Our files on whichever disk has them, if one is there yet.
pub(super) fn find() -> Option<Vec<SeedFile>> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/block")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !NO_DISKS.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    names.sort();
    names.iter().find_map(|name| read_disk(&Path::new("/dev").join(name)))
}

fn read_disk(path: &Path) -> Option<Vec<SeedFile>> {
    let mut disk = File::open(path).ok()?;
    let mut sector = [0; SECTOR];
    disk.read_exact(&mut sector).ok()?;
    if !has_label(&sector) || disk.seek(SeekFrom::End(0)).ok()? > MOST_DISK {
        return None;
    }
    disk.rewind().ok()?;
    let mut image = Vec::new();
    disk.take(MOST_DISK).read_to_end(&mut image).ok()?;
    // The library was not written for images that are meant to hurt; root of the guest could make
    // one, and shall find an agent that does not start rather than one that falls.
    catch_unwind(AssertUnwindSafe(|| read_image(image))).ok().flatten()
}

/// FAT12 and FAT16 have the label in one place, FAT32 in another.
fn has_label(sector: &[u8; SECTOR]) -> bool {
    let labelled = [43, 71].iter().any(|at| {
        sector.get(*at..at + LABEL.len()).is_some_and(|label| label.eq_ignore_ascii_case(LABEL))
    });
    labelled && sector.ends_with(&[0x55, 0xaa])
}

fn read_image(image: Vec<u8>) -> Option<Vec<SeedFile>> {
    let files = FileSystem::new(Cursor::new(image), FsOptions::new()).ok()?;
    let dir = files.root_dir().open_dir(SEED_DIR).ok()?;
    let mut found = Vec::new();
    for entry in dir.iter().take(MOST_FILES) {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if !entry.is_file() || !is_plain(&name) || entry.len() > MOST_FILE {
            continue;
        }
        let mut content = Vec::new();
        entry.to_file().take(MOST_FILE).read_to_end(&mut content).ok()?;
        found.push(SeedFile { name, content });
    }
    // Without it this is a seed of somebody else's.
    found.iter().any(|file| file.name == CONFIG_FILE).then_some(found)
}

fn is_plain(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.starts_with('.') && name.len() <= 64 && name.chars().all(known)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use fatfs::{FormatVolumeOptions, format_volume};

    use super::*;

    fn image(label: [u8; 11], files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; 1024 * 1024]);
        format_volume(&mut disk, FormatVolumeOptions::new().volume_label(label)).unwrap();
        let system = FileSystem::new(&mut disk, FsOptions::new()).unwrap();
        for (path, content) in files {
            if let Some((dir, _)) = path.rsplit_once('/') {
                system.root_dir().create_dir(dir).unwrap();
            }
            system.root_dir().create_file(path).unwrap().write_all(content).unwrap();
        }
        drop(system);
        disk.into_inner()
    }

    fn read(image: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        let files = read_disk(file.path())?;
        Some(files.into_iter().map(|file| (file.name, file.content)).collect())
    }

    #[test]
    fn the_files_in_our_directory_are_read_and_no_others() {
        let key = vec![b'k'; 5000];
        let seed = image(
            *b"CIDATA     ",
            &[
                ("meta-data", b"instance-id: 7"),
                ("kohakuriver/agent.json", b"{}"),
                ("kohakuriver/ssh_host_ed25519_key", &key),
                ("kohakuriver/with space", b"x"),
                ("kohakuriver/sub/deep", b"x"),
            ],
        );
        let files = read(&seed).unwrap();
        let expected =
            [("agent.json".into(), b"{}".to_vec()), ("ssh_host_ed25519_key".into(), key)];
        assert_eq!(files, expected);
        // What other writers of such disks do.
        let mut lower = seed;
        lower[43..49].copy_from_slice(b"cidata");
        assert!(read(&lower).is_some());
    }

    #[test]
    fn another_disk_is_not_taken_for_the_seed() {
        let ours: &[(&str, &[u8])] = &[("kohakuriver/agent.json", b"{}")];
        assert!(read(&image(*b"KRAGENT    ", ours)).is_none());
        assert!(read(&image(*b"CIDATA     ", &[("user-data", b"#cloud-config")])).is_none());
        assert!(read(&[0; SECTOR]).is_none());
        assert!(read(b"short").is_none());
        let mut large = image(*b"CIDATA     ", ours);
        large.resize(usize::try_from(MOST_DISK).unwrap() + SECTOR, 0);
        assert!(read(&large).is_none());
    }

    #[test]
    fn a_damaged_disk_is_no_end_of_the_agent() {
        let seed = image(*b"CIDATA     ", &[("kohakuriver/agent.json", b"{\"task_id\":1}")]);
        for at in (0..SECTOR).chain(SECTOR..4096) {
            for value in [0, 0xff] {
                let mut damaged = seed.clone();
                damaged[at] = value;
                let _ = read(&damaged);
            }
        }
    }
}
