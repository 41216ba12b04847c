//! Size limits of an instance, a report and a node's messages.
//!
//! Every message of the link is one frame of limited size. Each part has a bound here, and the
//! parts of a message at their bounds fit a frame together (tested in `kohakuriver-runner-link`).
//! Texts of a node are bounded twice: where they are created, and where they arrive.

use std::collections::BTreeSet;

use crate::image::{Registry, RepositoryPattern};
use crate::node::{DockerState, Gpu, Inventory, VmState};
use crate::observe::{Observation, Observed};

/// An instance's specification as JSON.
pub const MAX_SPEC_BYTES: usize = 896 * 1024;
/// Names and values of environment variables together.
pub const MAX_ENV_BYTES: usize = 64 * 1024;
/// Keys added to one VPS.
pub const MAX_KEYS: usize = 100;
pub const MAX_KEYS_BYTES: usize = 64 * 1024;
/// A public key's line. RSA of 16384 bits, OpenSSH's largest, has 2.8 KiB.
pub const MAX_KEY_BYTES: usize = 4096;
pub const MAX_KEY_COMMENT_CHARS: usize = 64;
/// Registered keys of one account.
pub const MAX_ACCOUNT_KEYS_BYTES: usize = 32 * 1024;
/// Registered keys in one VPS, of all accounts that may enter it.
pub const MAX_PEOPLE_KEYS: usize = 500;
pub const MAX_PEOPLE_KEYS_BYTES: usize = 128 * 1024;
/// Accounts that may enter one VPS.
pub const MAX_PEOPLE: usize = 4096;
/// Snapshots of one VPS. Docker supports fewer layers than this, and a longer list is of no use.
pub const MAX_SNAPSHOTS: usize = 1000;
/// A snapshot's name and message.
pub const MAX_SNAPSHOT_NAME_BYTES: usize = 63;
pub const MAX_SNAPSHOT_MESSAGE_BYTES: usize = 2000;
/// An explanation, including the last lines of a console.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024;
/// A hint, a warning or a reason.
pub const MAX_REMARK_BYTES: usize = 2 * 1024;
/// A step, a version or a name.
pub const MAX_WORD_BYTES: usize = 256;

const MAX_GPUS: usize = 64;
const MAX_GPU_REMARK_BYTES: usize = 512;
const MAX_GPU_PEERS: usize = 32;
const MAX_IDENTITY_BYTES: usize = 64;
const MAX_NUMA_NODES: usize = 128;
const MAX_NUMA_CPUS: usize = 8192;
const MAX_ALLOWED_MOUNTS: usize = 64;
const MAX_ALLOWED_IMAGES: usize = 64;
const MAX_MOUNT_BYTES: usize = 1024;

/// Truncates a text at a character boundary, and replaces characters that would control a terminal
/// or forge a log line. Line breaks stay if `lines` is set.
pub fn bound_text(text: &mut String, bytes: usize, lines: bool) {
    let is_bad = |c: char| c.is_control() && !(lines && c == '\n');
    if text.chars().any(is_bad) {
        *text = text.chars().map(|c| if is_bad(c) { ' ' } else { c }).collect();
    }
    if text.len() > bytes {
        const MORE: &str = "…";
        let mut end = bytes.saturating_sub(MORE.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MORE);
    }
}

/// Does the same as [`bound_text`] for a text of one line.
pub fn bound_line(text: &mut String, bytes: usize) {
    bound_text(text, bytes, false);
}

fn bound_remark(text: &mut Option<String>) {
    if let Some(text) = text {
        bound_line(text, MAX_REMARK_BYTES);
    }
}

impl Observation {
    /// Bounds every text. An overlong host key is dropped.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let is_key = |key: &String| key.len() <= MAX_KEY_BYTES && !key.contains(char::is_control);
        self.ssh_host_key = self.ssh_host_key.filter(is_key);
        bound_remark(&mut self.warning);
        self.state.bound();
        self
    }
}

impl Observed {
    fn bound(&mut self) {
        match self {
            Self::Provisioning { step, .. } => bound_line(step, MAX_WORD_BYTES),
            Self::Blocked { message, hint, .. } | Self::Failed { message, hint, .. } => {
                bound_text(message, MAX_MESSAGE_BYTES, true);
                bound_remark(hint);
            }
            Self::Absent | Self::Running { .. } | Self::Paused { .. } | Self::Stopped { .. } => {}
        }
    }
}

impl Inventory {
    /// Bounds every text and list. Excess entries are dropped: a truncated path would allow more
    /// than its owner did.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.numa.truncate(MAX_NUMA_NODES);
        let mut cpus = MAX_NUMA_CPUS;
        for node in &mut self.numa {
            node.cpus.truncate(cpus);
            cpus -= node.cpus.len();
        }
        let is_identity = |text: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b);
            text.len() <= MAX_IDENTITY_BYTES && text.bytes().all(plain)
        };
        let mut known = BTreeSet::new();
        // An identity is a key of the allocations: a truncated one would be another card's.
        self.gpus.retain(|gpu| is_identity(&gpu.uuid) && known.insert(gpu.uuid.clone()));
        self.gpus.truncate(MAX_GPUS);
        for gpu in &mut self.gpus {
            gpu.vfio.peers.retain(|peer| is_identity(peer));
            gpu.vfio.peers.truncate(MAX_GPU_PEERS);
            gpu.bound();
        }
        self.allowed_mounts
            .retain(|path| path.len() <= MAX_MOUNT_BYTES && !path.contains(char::is_control));
        self.allowed_mounts.truncate(MAX_ALLOWED_MOUNTS);
        if let Some(registries) = &mut self.allowed_registries {
            registries.retain(Registry::is_valid);
            registries.truncate(MAX_ALLOWED_IMAGES);
        }
        self.local_images.retain(RepositoryPattern::is_valid);
        self.local_images.truncate(MAX_ALLOWED_IMAGES);
        match &mut self.docker {
            DockerState::Ready { version } => bound_line(version, MAX_WORD_BYTES),
            DockerState::Unavailable { reason } => bound_line(reason, MAX_REMARK_BYTES),
        }
        bound_remark(&mut self.docker_warning);
        match &mut self.vm {
            VmState::Ready { version, warning, .. } => {
                bound_line(version, MAX_WORD_BYTES);
                bound_remark(warning);
            }
            VmState::Unavailable { reason } => bound_line(reason, MAX_REMARK_BYTES),
        }
        bound_line(&mut self.kernel, MAX_WORD_BYTES);
        bound_line(&mut self.os, MAX_WORD_BYTES);
        self
    }
}

impl Gpu {
    fn bound(&mut self) {
        for word in [
            &mut self.name,
            &mut self.pci_address,
            &mut self.vfio.vendor_id,
            &mut self.vfio.device_id,
        ] {
            bound_line(word, MAX_WORD_BYTES);
        }
        let remarks = [&mut self.no_container, &mut self.vfio.refusal, &mut self.vfio.audio];
        for remark in remarks.into_iter().flatten() {
            bound_line(remark, MAX_GPU_REMARK_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bounded_text_is_short_and_has_no_control_characters(text in any::<String>(), bytes in 3usize..40, lines: bool) {
            let mut cut = text.clone();
            bound_text(&mut cut, bytes, lines);
            prop_assert!(cut.len() <= bytes);
            prop_assert!(cut.chars().all(|c| !c.is_control() || (lines && c == '\n')));
            let harmless = text.len() <= bytes && !text.contains(char::is_control);
            prop_assert!(!harmless || cut == text);
            let once = cut.clone();
            bound_text(&mut cut, bytes, lines);
            prop_assert_eq!(cut, once);
        }
    }

    #[test]
    fn overlong_mounts_and_gpus_are_dropped_whole() {
        let long = "/".to_owned() + &"a".repeat(2000);
        let card = |uuid: &str| Gpu {
            index: 0,
            uuid: uuid.to_owned(),
            name: "x\u{1b}[2J".repeat(1000),
            pci_address: String::new(),
            memory_bytes: 0,
            numa: None,
            no_container: None,
            vfio: crate::node::GpuVfio::default(),
        };
        let docker = DockerState::Ready { version: "1".to_owned() };
        let inventory = Inventory {
            allowed_mounts: vec![long, "/data".to_owned()],
            gpus: vec![card(&"u".repeat(65)), card("GPU-0"), card("GPU-0")],
            ..Inventory::of(1, 1, docker)
        };
        let bounded = inventory.bounded();
        assert_eq!(bounded.allowed_mounts, ["/data"]);
        assert_eq!(bounded.gpus.len(), 1);
        assert!(bounded.gpus[0].name.len() <= MAX_WORD_BYTES);
        assert!(!bounded.gpus[0].name.contains('\u{1b}'));
    }
}
