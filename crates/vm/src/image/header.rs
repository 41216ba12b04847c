//! What a file is by its own first bytes, before any program is let near it.
//!
//! A qcow2 file may name a backing file or a data file, and whoever opens it reads that too: any
//! file of this machine could become part of an image. So may the text form of a VMDK. These are
//! told apart here, in our own code, which opens nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Formats that are accepted, by the names that QEMU has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Vmdk,
    Vhdx,
    Raw,
}

impl Format {
    pub fn driver(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Raw => "raw",
        }
    }
}

/// Where an ISO 9660 volume says that it is one.
const ISO_AT: u64 = 32769;
/// Where a tar says so, and where the boot sector's mark is.
const TAR_AT: usize = 257;
const BOOT_MARK_AT: usize = 510;

/// Incompatible features of qcow2 (docs/interop/qcow2 of QEMU).
const EXTERNAL_DATA: u64 = 1 << 2;

/// The format, or why it is none that is accepted.
///
/// # Errors
/// Reading fails.
pub fn look(file: &File, bare: bool) -> io::Result<Result<Format, String>> {
    let mut start = [0; 512];
    let length = read_up_to(file, &mut start, 0)?;
    let mut iso = [0; 5];
    let iso = read_up_to(file, &mut iso, ISO_AT)? == iso.len() && iso == *b"CD001";
    Ok(format_of(&start[..length], iso, bare))
}

/// `bare`: the disk needs no boot sector, because its kernel is beside it.
fn format_of(start: &[u8], iso: bool, bare: bool) -> Result<Format, String> {
    const PACKED: [(&[u8], &str); 5] = [
        (&[0x1f, 0x8b], "gunzip"),
        (b"\xfd7zXZ\0", "unxz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
        (b"BZh", "bunzip2"),
        (b"PK\x03\x04", "unzip"),
    ];
    let is = |magic: &[u8]| start.starts_with(magic);
    if is(b"QFI\xfb") {
        return qcow2(start).map(|()| Format::Qcow2);
    }
    // With no capacity of its own it is such a text form in disguise.
    let vmdk_of_parts = is(b"KDMV") && start.get(12..20).is_none_or(|size| size == [0; 8]);
    if is(b"KDMV") && !vmdk_of_parts {
        return Ok(Format::Vmdk);
    }
    if is(b"vhdxfile") {
        return Ok(Format::Vhdx);
    }
    if vmdk_of_parts || is(b"# Disk DescriptorFile") || is(b"COWD") {
        return Err("it is only a part of a VMDK disk; export the disk as one file".to_owned());
    }
    if is(b"LUKS\xba\xbe") {
        return Err("it is encrypted".to_owned());
    }
    if let Some((_, program)) = PACKED.iter().find(|(magic, _)| is(magic)) {
        return Err(format!("it is compressed: unpack it with {program} first"));
    }
    if start.get(TAR_AT..TAR_AT + 5) == Some(b"ustar") {
        return Err("it is an archive: import the disk inside".to_owned());
    }
    if iso {
        return Err("it is a CD image, made to install from; take a cloud image".to_owned());
    }
    let shown = String::from_utf8_lossy(start);
    if shown.trim_start().starts_with('<') {
        return Err("it is a web page; check the address".to_owned());
    }
    if !bare && start.get(BOOT_MARK_AT..BOOT_MARK_AT + 2) != Some(&[0x55, 0xaa]) {
        return Err("it is no disk that a machine could boot; one without a boot sector needs \
                    --kernel and --initrd"
            .to_owned());
    }
    Ok(Format::Raw)
}

fn qcow2(start: &[u8]) -> Result<(), String> {
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = start.get(at..at + length)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let cut = || "its qcow2 header is cut off".to_owned();
    let version = number(4, 4).ok_or_else(cut)?;
    let backing_at = number(8, 8).ok_or_else(cut)?;
    let encryption = number(32, 4).ok_or_else(cut)?;
    let features = match version {
        2 => 0,
        3 => number(72, 8).ok_or_else(cut)?,
        _ => return Err(format!("version {version} of qcow2 is not known")),
    };
    if backing_at != 0 {
        return Err(
            "it is only the difference to another file (its backing file), which would be \
                    read too; merge the two with 'qemu-img convert' where you made it"
                .to_owned(),
        );
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(
            "its data are in another file, which would be read too; make it one file with \
                    'qemu-img convert' where you made it"
                .to_owned(),
        );
    }
    if encryption != 0 {
        return Err("it is encrypted".to_owned());
    }
    Ok(())
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(version: u8, backing: u8, encryption: u8, features: u8) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        (bytes[7], bytes[15], bytes[35], bytes[79]) = (version, backing, encryption, features);
        bytes
    }

    #[test]
    fn a_qcow2_that_leads_elsewhere_is_refused() {
        assert_eq!(format_of(&header(3, 0, 0, 1), false, false), Ok(Format::Qcow2));
        assert_eq!(format_of(&header(2, 0, 0, 4), false, false), Ok(Format::Qcow2));
        for (bad, word) in [
            (header(3, 9, 0, 0), "backing file"),
            (header(2, 9, 0, 0), "backing file"),
            (header(3, 0, 0, 4), "another file"),
            (header(3, 0, 2, 0), "encrypted"),
            (header(4, 0, 0, 0), "version 4"),
            (header(3, 0, 0, 0)[..40].to_vec(), "cut off"),
        ] {
            let reason = format_of(&bad, false, false).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn what_people_take_for_a_disk_is_named() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, word) in [
            (b"<!DOCTYPE html>".to_vec(), "web page"),
            (b"\xfd7zXZ\0\0".to_vec(), "unxz"),
            (b"# Disk DescriptorFile\nversion=1".to_vec(), "part of a VMDK"),
            (b"KDMV\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\x80".to_vec(), "part of a VMDK"),
            (tar, "archive"),
            (Vec::new(), "no disk"),
        ] {
            let reason = format_of(&bytes, false, false).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
        let mut disk = vec![0; 512];
        assert_eq!(format_of(&disk, false, true), Ok(Format::Raw));
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(format_of(&disk, false, false), Ok(Format::Raw));
        assert!(format_of(&disk, true, false).unwrap_err().contains("CD image"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), head in 0..4_usize) {
            let magic: &[u8] = [b"QFI\xfb", b"KDMV", b"vhdx", b"    "][head];
            let length = magic.len().min(bytes.len());
            bytes[..length].copy_from_slice(&magic[..length]);
            let _ = format_of(&bytes, false, false);
        }

        #[test]
        fn a_backing_file_never_passes(at in 1_u64.., rest in proptest::collection::vec(any::<u8>(), 488)) {
            let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
            bytes.extend(at.to_be_bytes());
            bytes.extend(rest);
            prop_assert!(format_of(&bytes, false, false).is_err());
        }
    }
}
