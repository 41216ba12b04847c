//! What is written down beside an image's disk: `image.json`.

use serde::{Deserialize, Serialize};

/// The file, in an image's directory, that holds an [`ImageMeta`] as JSON.
pub const META_FILE: &str = "image.json";
pub const DISK_FILE: &str = "disk.qcow2";
pub const KERNEL_FILE: &str = "vmlinuz";
pub const INITRD_FILE: &str = "initrd";

/// Fields that this version does not know are another version's, and no mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMeta {
    /// Of `disk.qcow2`, in hexadecimal digits.
    pub sha256: String,
    /// The length of `disk.qcow2`: an image that was copied halfway is found out by it.
    pub disk_bytes: u64,
    /// What a machine sees as its disk's size, unless it is made larger.
    pub virtual_bytes: u64,
    #[serde(default)]
    pub firmware: Firmware,
    /// A kernel beside the disk, which QEMU starts without firmware and boot loader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// False: nothing of ours will ever answer inside, there is only the serial console.
    #[serde(default = "yes")]
    pub agent: bool,
    /// Where it came from, for people.
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub made_ms: u64,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    #[default]
    Bios,
    Uefi,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    pub cmdline: String,
    pub when: KernelWhen,
}

/// When the kernel beside the disk is started instead of what the disk itself would boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelWhen {
    /// Saves the boot loader's seconds while the disk still is what was built; afterwards the disk
    /// boots itself, because a kernel may have been installed on it.
    FirstBoot,
    /// The disk has no boot loader.
    Always,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_usual_meaning_and_what_is_new_does_no_harm() {
        let text = r#"{"sha256":"ab","disk_bytes":1,"virtual_bytes":2,"later":{"x":1}}"#;
        let meta: ImageMeta = serde_json::from_str(text).unwrap();
        assert_eq!(meta.firmware, Firmware::Bios);
        assert!(meta.agent && meta.kernel.is_none());
        let text = r#"{"sha256":"ab","disk_bytes":1,"virtual_bytes":2,"firmware":"uefi",
            "kernel":{"cmdline":"quiet","when":"first_boot"},"agent":false}"#;
        let meta: ImageMeta = serde_json::from_str(text).unwrap();
        assert_eq!(meta.kernel.unwrap().when, KernelWhen::FirstBoot);
    }
}
