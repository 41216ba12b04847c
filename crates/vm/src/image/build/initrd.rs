//! The small initrd of the first boot: BusyBox, the disk's modules, one script.

use std::fs;
use std::path::Path;

use super::modules::load_order;
use super::tree::Tree;
use crate::image::ImageError;
use crate::image::program::Program;

const INIT: &str = include_str!("files/init.sh");
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// Makes it from a system's own kernel modules and BusyBox.
pub async fn write(tree: &Tree, release: &str, to: &Path) -> Result<(), ImageError> {
    let base = tree.path(&format!("usr/lib/modules/{release}"));
    let read = |file: &str| {
        let path = base.join(file);
        fs::read_to_string(&path).map_err(ImageError::io("read", &path))
    };
    let order = load_order(&read("modules.dep")?, &read("modules.builtin")?, MODULES)
        .map_err(|module| ImageError::Build { reason: format!("its kernel has no {module}") })?;
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.dir(dir);
    }
    let busybox = tree.path("usr/bin/busybox");
    let busybox = fs::read(&busybox).map_err(ImageError::io("read", &busybox))?;
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    let mut names = String::new();
    for module in order {
        let path = base.join(&module);
        let content = unpacked(&path).await?;
        let file = module.rsplit('/').next().unwrap_or(&module);
        let file = file.trim_end_matches(".xz").trim_end_matches(".zst");
        archive.file(&format!("modules/{file}"), 0o644, &content);
        names.push_str(file);
        names.push('\n');
    }
    archive.file("modules/order", 0o644, names.as_bytes());
    fs::write(to, archive.finish()).map_err(ImageError::io("write", to))
}

/// Some kernels' modules are compressed.
async fn unpacked(path: &Path) -> Result<Vec<u8>, ImageError> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some(_) | None => return fs::read(path).map_err(ImageError::io("read", path)),
    };
    Program::new(program).args(["-d", "-c"]).arg(path).output().await
}

/// A cpio archive in the format the kernel reads ("newc"), everything root's.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn dir(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // inode, mode, uid, gid, links, time, size, two devices, name's length, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size_field(content.len()),
            0,
            0,
            0,
            0,
            size_field(name.len() + 1),
            0,
        ];
        let header =
            fields.iter().fold("070701".to_owned(), |text, field| format!("{text}{field:08x}"));
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Nothing that goes into a small initrd has four gigabytes.
fn size_field(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_headers_of_110_bytes_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.dir("bin");
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"bin\0");
        // The second header follows at once: 110 and 4 bytes, padded to 116.
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[116 + 14..116 + 22], b"000081ed");
        assert_eq!(&bytes[116 + 54..116 + 62], b"00000005");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("hello") && text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
