//! Tar archives: telling one of an image (`docker save`) from a plain root filesystem by the names
//! in it, and packing and
//! unpacking a few small files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

const BLOCK: usize = 512;
/// Archives of images have few entries; a root filesystem gives itself away long before.
const MOST_ENTRIES: usize = 10_000;
const OF_ROOTS: [&str; 6] = ["etc", "usr", "bin", "var", "dev", "root"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TarKind {
    /// `docker save` or an OCI layout: loaded as it is.
    Image,
    /// A root filesystem: imported.
    RootFs,
}

/// Looks at names only, seeking over contents.
pub fn kind(path: &Path) -> io::Result<TarKind> {
    let mut file = File::open(path)?;
    let mut block = [0u8; BLOCK];
    for _ in 0..MOST_ENTRIES {
        match file.read_exact(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        // A block of zeros ends the archive.
        if block[0] == 0 {
            break;
        }
        if &block[257..262] != b"ustar" {
            // Compressed, which only Docker looks into: archives of images are what people pack.
            return Ok(TarKind::Image);
        }
        let name = text(&block[..100]);
        let name = name.trim_start_matches("./").trim_end_matches('/');
        if ["manifest.json", "oci-layout", "index.json", "repositories"].contains(&name) {
            return Ok(TarKind::Image);
        }
        if OF_ROOTS.contains(&name.split('/').next().unwrap_or_default()) {
            return Ok(TarKind::RootFs);
        }
        let skip = size(&block[124..136])
            .and_then(|size| size.checked_next_multiple_of(BLOCK as u64))
            .and_then(|size| i64::try_from(size).ok());
        // Docker says better than we could what is wrong with such an archive.
        let Some(skip) = skip else { break };
        if file.seek(SeekFrom::Current(skip)).is_err() {
            break;
        }
    }
    Ok(TarKind::RootFs)
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Octal text, or big-endian binary where the first bit is set (files of 8 GiB and more).
fn size(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let bytes: [u8; 8] = field.get(4..12)?.try_into().ok()?;
        return Some(u64::from_be_bytes(bytes));
    }
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

/// A tar of plain files. Names have at most 100 bytes.
pub fn pack(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, content) in entries {
        let mut block = [0u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        // Owner and group: root.
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[136..147].copy_from_slice(b"00000000000");
        block[156] = b'0';
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// The plain files of a small tar; what is damaged ends it.
pub fn unpack(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut rest = tar;
    while let Some((block, after)) = rest.split_at_checked(BLOCK) {
        if block[0] == 0 {
            break;
        }
        let content = size(&block[124..136]).and_then(|size| usize::try_from(size).ok());
        let Some(content) = content.and_then(|size| after.get(..size)) else { break };
        if matches!(block[156], b'0' | 0) {
            files.push((text(&block[..100]), content.to_vec()));
        }
        rest = after.get(content.len().next_multiple_of(BLOCK)..).unwrap_or_default();
    }
    files
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind_of(content: &[u8]) -> TarKind {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        kind(file.path()).unwrap()
    }

    #[test]
    fn images_and_root_filesystems_are_told_apart() {
        let layer = vec![7u8; 5000];
        let image =
            pack(&[("abc/layer.tar", &layer), ("abc/json", b"{}"), ("manifest.json", b"[]")]);
        assert_eq!(kind_of(&image), TarKind::Image);
        let oci = pack(&[("blobs/sha256/x", &layer), ("oci-layout", b"{}")]);
        assert_eq!(kind_of(&oci), TarKind::Image);
        let root = pack(&[("./", b""), ("./lib", b""), ("./etc/", b""), ("./manifest.json", b"")]);
        assert_eq!(kind_of(&root), TarKind::RootFs);
    }

    proptest! {
        #[test]
        fn packed_files_are_unpacked(content in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let tar = pack(&[("a/b", &content), ("c", b"")]);
            let files = [("a/b".to_owned(), content), ("c".to_owned(), Vec::new())];
            prop_assert_eq!(unpack(&tar), files);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            unpack(&bytes);
            kind_of(&bytes);
        }
    }
}
