//! A disk that starts under a BIOS and under UEFI, made without mounting anything.
//!
//! ```text
//!  sector 0     boot.img (its first 440 bytes), then the table for those that know no GPT
//!       2048    core.img: GRUB for BIOSes, 1 MiB
//!       4096    EFI system partition: GRUB for UEFI, 30 MiB
//!      65536    root, ext4, last: it grows with the disk
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use super::tree::Tree;
use crate::image::ImageError;
use crate::image::program::{Missing, Program};

pub const NEEDED: &[Missing] = &[
    Missing { what: "mke2fs", package: "e2fsprogs" },
    Missing { what: "sfdisk", package: "fdisk" },
    Missing { what: "grub-mkimage", package: "grub-common" },
    Missing { what: BOOT_IMG, package: "grub-pc-bin" },
    Missing { what: "/usr/lib/grub/x86_64-efi/kernel.img", package: "grub-efi-amd64-bin" },
];

const BOOT_IMG: &str = "/usr/lib/grub/i386-pc/boot.img";
const GRUB_EARLY: &str = include_str!("files/grub-early.cfg");

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;
const CORE_AT: u64 = 2048;
const ESP_AT: u64 = 4096;
const ROOT_AT: u64 = 65536;
/// The rest of sector 0 is the partition table's.
const BOOT_CODE: usize = 440;
/// Where boot.img keeps the sector of core.img, and core.img that of its own second one.
const BOOT_SECTOR_FIELD: usize = 0x5c;
const CORE_SECTOR_FIELD: usize = 0x1f4;

/// Makes `disk` of `tree`; its root file system has this UUID. Gives the disk's size.
pub async fn write(
    tree: &Tree,
    uuid: &str,
    scratch: &Path,
    disk: &Path,
) -> Result<u64, ImageError> {
    let failed = ImageError::io("write", disk);
    let total = total_bytes(used_bytes(tree.root()).map_err(ImageError::io("read", tree.root()))?);
    File::create_new(disk).and_then(|file| file.set_len(total)).map_err(failed)?;
    let root_sectors = (total - MIB) / SECTOR - ROOT_AT;
    let table = format!(
        "label: gpt\n\
         start={CORE_AT}, size={}, type=21686148-6449-6E6F-744E-656564454649, name=bios\n\
         start={ESP_AT}, size={}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp\n\
         start={ROOT_AT}, size={root_sectors}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n",
        ESP_AT - CORE_AT,
        ROOT_AT - ESP_AT,
    );
    Program::new("sfdisk").arg("--quiet").arg(disk).with_input(table.as_bytes()).await?;
    let early = scratch.join("grub-early.cfg");
    fs::write(&early, GRUB_EARLY.replace("@UUID@", uuid))
        .map_err(ImageError::io("write", &early))?;
    let core = grub(&early, scratch, "i386-pc", &["biosdisk"]).await?;
    let efi = grub(&early, scratch, "x86_64-efi", &["fat"]).await?;
    let boot = fs::read(BOOT_IMG).map_err(ImageError::io("read", Path::new(BOOT_IMG)))?;
    let file = OpenOptions::new().read(true).write(true).open(disk);
    file.and_then(|file| {
        write_bios(&file, boot, core)?;
        write_esp(&file, &efi)
    })
    .map_err(ImageError::io("write", disk))?;
    let mut offset = format!("offset={}", ROOT_AT * SECTOR);
    // Written now (as zeros, which take no room), not by every machine in its first minutes.
    offset.push_str(",lazy_itable_init=0,lazy_journal_init=0");
    Program::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-U", uuid, "-E", &offset, "-d"])
        .args([tree.root(), disk])
        .arg(format!("{}k", root_sectors * SECTOR / 1024))
        .output()
        .await?;
    Ok(total)
}

/// Room for what is there and for a first package or two; machines make their disks larger.
fn total_bytes(used: u64) -> u64 {
    let root = (used + used / 4 + 256 * MIB).max(1536 * MIB);
    (ROOT_AT * SECTOR + root + MIB).next_multiple_of(256 * MIB)
}

fn used_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = fs::symlink_metadata(entry.path())?;
        bytes += if meta.is_dir() { used_bytes(&entry.path())? } else { meta.blocks() * SECTOR };
    }
    Ok(bytes)
}

async fn grub(
    early: &Path,
    scratch: &Path,
    format: &str,
    modules: &[&str],
) -> Result<Vec<u8>, ImageError> {
    const MODULES: [&str; 12] = [
        "part_gpt",
        "ext2",
        "search",
        "search_fs_uuid",
        "normal",
        "configfile",
        "linux",
        "serial",
        "terminal",
        "test",
        "echo",
        "minicmd",
    ];
    let image = scratch.join(format);
    Program::new("grub-mkimage")
        .args(["-O", format, "-p", "/boot/grub", "-c"])
        .args([early, Path::new("-o"), &image])
        .args(MODULES)
        .args(modules)
        .output()
        .await?;
    fs::read(&image).map_err(ImageError::io("read", &image))
}

/// What `grub-bios-setup` does where core.img has a partition of its own.
fn write_bios(file: &File, mut boot: Vec<u8>, mut core: Vec<u8>) -> io::Result<()> {
    let fits = core.len() as u64 <= (ESP_AT - CORE_AT) * SECTOR && core.len() > SECTOR as usize;
    if !fits || boot.len() < BOOT_CODE {
        return Err(io::Error::other("GRUB's own files are not what they should be"));
    }
    boot[BOOT_SECTOR_FIELD..BOOT_SECTOR_FIELD + 8].copy_from_slice(&CORE_AT.to_le_bytes());
    core[CORE_SECTOR_FIELD..CORE_SECTOR_FIELD + 8].copy_from_slice(&(CORE_AT + 1).to_le_bytes());
    file.write_all_at(&boot[..BOOT_CODE], 0)?;
    file.write_all_at(&core, CORE_AT * SECTOR)
}

fn write_esp(file: &File, efi: &[u8]) -> io::Result<()> {
    let mut label = [b' '; 11];
    label[..3].copy_from_slice(b"ESP");
    let options = FormatVolumeOptions::new().volume_label(label).volume_id(rand::random());
    fatfs::format_volume(Window::new(file), options)?;
    let esp = FileSystem::new(Window::new(file), FsOptions::new())?;
    let dir = esp.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
    // The name that firmware looks for on a disk it knows nothing of.
    dir.create_file("BOOTX64.EFI")?.write_all(efi)
}

/// The EFI system partition, as if it were a file.
struct Window<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> Window<'a> {
    const START: u64 = ESP_AT * SECTOR;
    const LENGTH: u64 = (ROOT_AT - ESP_AT) * SECTOR;

    fn new(file: &'a File) -> Self {
        Self { file, at: 0 }
    }

    fn left(&self, wanted: usize) -> usize {
        usize::try_from(Self::LENGTH.saturating_sub(self.at)).map_or(wanted, |l| l.min(wanted))
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left(buffer.len());
        let read = self.file.read_at(&mut buffer[..left], Self::START + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left(bytes.len());
        let written = self.file.write_at(&bytes[..left], Self::START + self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => Self::LENGTH.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_room_for_more_than_what_is_on_it() {
        assert_eq!(total_bytes(0), 1792 * MIB);
        let large = total_bytes(4096 * MIB);
        assert!(large > 5120 * MIB && large.is_multiple_of(256 * MIB));
    }

    #[test]
    fn the_efi_partition_is_written_inside_its_bounds() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        write_esp(&file, &[7; 100_000]).unwrap();
        let esp = FileSystem::new(Window::new(&file), FsOptions::new()).unwrap();
        let mut content = Vec::new();
        let mut boot = esp.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").unwrap();
        boot.read_to_end(&mut content).unwrap();
        assert_eq!(content, [7; 100_000]);
        let mut outside = vec![0; (ESP_AT * SECTOR) as usize];
        file.read_exact_at(&mut outside, 0).unwrap();
        assert!(outside.iter().all(|byte| *byte == 0));
        file.read_exact_at(&mut outside[..512], ROOT_AT * SECTOR).unwrap();
        assert!(outside.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn boot_code_knows_where_the_rest_of_it_is_and_leaves_the_table_alone() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(&[9; 72], BOOT_CODE as u64).unwrap();
        write_bios(&file, vec![1; 512], vec![2; 40_000]).unwrap();
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, 0).unwrap();
        assert_eq!(sector[0x5c..0x64], 2048_u64.to_le_bytes());
        assert!(sector[BOOT_CODE..].iter().all(|byte| *byte == 9));
        file.read_exact_at(&mut sector, CORE_AT * SECTOR).unwrap();
        assert_eq!(sector[0x1f4..0x1fc], 2049_u64.to_le_bytes());
        assert!(write_bios(&file, vec![1; 512], vec![2; 2 << 20]).is_err());
    }
}
