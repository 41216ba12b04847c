//! An instance's specification: fixed at creation, stored by the host, sent to the runner.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::account::UserId;
use crate::id::InstanceId;
use crate::image::{ImageReference, ReferenceError};
use crate::mount::MountWish;
use crate::name::{InstanceName, VmImageName};

/// The default process limit of a container: enough for any workload seen, and it confines a fork
/// bomb.
pub const DEFAULT_PIDS_LIMIT: u32 = 32_768;
/// The default memory, disk and image of a virtual machine.
pub const DEFAULT_VM_MEMORY_BYTES: u64 = 4 << 30;
pub const DEFAULT_VM_DISK_BYTES: u64 = 20 << 30;
pub const DEFAULT_VM_IMAGE: &str = "debian-12";
/// The least memory in which an ordinary system boots.
pub const SMALLEST_VM_MEMORY_BYTES: u64 = 128 << 20;
/// The least disk; and the largest, since more is a typing error.
pub const SMALLEST_VM_DISK_BYTES: u64 = 1 << 30;
pub const LARGEST_VM_DISK_BYTES: u64 = 64 << 40;

/// The specification of a VPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub name: Option<InstanceName>,
    pub image: ImageSource,
    /// 0 means no limit.
    pub cores: u32,
    /// Bytes; `None` means no limit.
    pub memory_bytes: Option<u64>,
    pub pids_limit: u32,
    /// `None`: created without `--ssh`.
    pub ssh: Option<SshAccess>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The GPUs it has, chosen by placement; they stay the same over restarts.
    #[serde(default)]
    pub gpus: Vec<GpuRef>,
    #[serde(default)]
    pub numa: Option<NumaPin>,
    /// The snapshot its disk comes from instead of `image`.
    #[serde(default)]
    pub snapshot: Option<SnapshotRef>,
    #[serde(default)]
    pub snapshots: SnapshotPolicy,
    #[serde(default)]
    pub on_oom: OnOom,
    /// Size of a virtual machine's disk in bytes; `None`: as large as its image.
    #[serde(default)]
    pub vm_disk_bytes: Option<u64>,
    /// Whether root inside is root of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Paths of its node that a container mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountWish>,
}

impl InstanceSpec {
    /// Returns a specification with no limits, no SSH and no name.
    pub fn new(image: ImageSource) -> Self {
        Self {
            name: None,
            image,
            cores: 0,
            memory_bytes: None,
            pids_limit: DEFAULT_PIDS_LIMIT,
            ssh: None,
            env: BTreeMap::new(),
            gpus: Vec::new(),
            numa: None,
            snapshot: None,
            snapshots: SnapshotPolicy::default(),
            on_oom: OnOom::default(),
            vm_disk_bytes: None,
            privileged: false,
            mounts: Vec::new(),
        }
    }

    /// Checks whether it has more access to its node than ordinary containers, which the node's
    /// owner must have allowed.
    pub fn is_unconfined(&self) -> bool {
        self.privileged || !self.mounts.is_empty()
    }

    /// Returns its backend.
    pub fn backend(&self) -> BackendKind {
        match self.image {
            ImageSource::VmImage { .. } => BackendKind::Qemu,
            ImageSource::Registry { .. }
            | ImageSource::Environment { .. }
            | ImageSource::Default => BackendKind::Docker,
        }
    }
}

/// The backend of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// A container: shares the node's kernel.
    #[default]
    Docker,
    /// A virtual machine.
    Qemu,
}

impl BackendKind {
    /// Returns the name in the API and in `--backend`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Qemu => "qemu",
        }
    }
}

/// A GPU of an instance. The UUID is its identity; the index is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRef {
    pub index: u32,
    pub uuid: String,
}

/// The NUMA node of all processes and memory of the instance, with its processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaPin {
    pub node: u32,
    pub cpus: Vec<u32>,
}

/// A snapshot of an instance. The tag is the second since 1970 it was created in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    pub task_id: InstanceId,
    pub tag: u64,
}

/// The retention and automation of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPolicy {
    /// The oldest beyond this number are removed, except the origin of the disk. 0 keeps all.
    pub keep: u32,
    /// Whether each stop creates one.
    pub on_stop: bool,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { keep: 5, on_stop: false }
    }
}

/// The policy when the kernel kills a process of the instance for lack of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOom {
    /// The instance ends as `killed_oom`: its other processes can rarely continue.
    #[default]
    End,
    /// Only that process ends.
    KeepRunning,
}

/// The source of the root filesystem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ImageSource {
    /// An image of the runner's Docker engine, pulled from its registry if it is absent.
    Registry { reference: String },
    /// An environment tarball in shared storage, `<name>-<unix seconds>.tar`.
    Environment { name: String },
    /// The base environment, which the runner creates if it is missing.
    Default,
    /// A base image of virtual machines, in shared storage. Also set for a disk from a snapshot: it
    /// determines how the machine boots.
    VmImage { name: VmImageName },
}

/// SSH access to an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// Lines of `authorized_keys` added to it.
    pub authorized_keys: Vec<String>,
    /// The CA whose certificates it accepts too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_ca: Option<TrustedCa>,
    /// Registered keys of its owner and share receivers, as lines. Only the host updates them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub people_keys: Vec<String>,
    /// The accounts that may enter, whatever a certificate states; `None` without accounts. The
    /// host updates them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub people: Option<People>,
}

/// The accounts that may enter an instance, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct People(pub BTreeSet<UserId>);

impl People {
    const MARK: &str = "# kohakuriver-people";

    /// Returns a line that is a comment to every reader of `authorized_keys` but an agent that
    /// parses it.
    pub fn line(&self) -> String {
        let numbers = self.0.iter().map(|user| format!(" {}", user.0));
        format!("{}{}", Self::MARK, numbers.collect::<String>())
    }

    /// Parses a [`Self::line`]. Words that are not numbers are skipped.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix(Self::MARK)?;
        let numbers = rest.split_ascii_whitespace().filter_map(|word| word.parse().ok());
        (rest.is_empty() || rest.starts_with(' ')).then(|| Self(numbers.map(UserId).collect()))
    }
}

impl SshAccess {
    /// Returns an access with these keys only.
    pub fn with_keys(authorized_keys: Vec<String>) -> Self {
        Self { authorized_keys, ..Self::default() }
    }

    /// Returns the input of its SSH server, in the syntax of sshd's `authorized_keys`. An agent
    /// from before certificates reads the CA's line as a key with options, which admits no client,
    /// and continues with the others.
    pub fn lines(&self) -> Vec<String> {
        let ca = self.trusted_ca.as_ref().map(TrustedCa::line);
        let people = self.people.as_ref().map(People::line);
        let keys = self.authorized_keys.iter().chain(&self.people_keys).cloned();
        keys.chain(ca).chain(people).collect()
    }
}

/// A signer of user certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustedCa {
    /// Algorithm and base64 of its public key, in OpenSSH's format.
    pub key: String,
    /// The principal that a certificate must have: the instance, not a user in it.
    pub principal: String,
}

impl TrustedCa {
    /// Returns the principal of an instance.
    pub fn principal_of(id: InstanceId) -> String {
        format!("vps-{id}")
    }

    /// Returns the instance of a principal.
    pub fn instance(principal: &str) -> Option<InstanceId> {
        principal.strip_prefix("vps-")?.parse().ok()
    }

    pub fn line(&self) -> String {
        format!("cert-authority,principals=\"{}\" {}", self.principal, self.key)
    }

    /// Parses a [`Self::line`]. A line with anything more, or less, is rejected.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix("cert-authority,principals=\"")?;
        let (principal, key) = rest.split_once("\" ")?;
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if principal.is_empty() || !principal.bytes().all(word) {
            return None;
        }
        Some(Self { key: key.trim().to_owned(), principal: principal.to_owned() })
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("'{0}' is not an environment name: use letters, digits, dots, hyphens and underscores")]
    Environment(String),
}

impl ImageSource {
    /// Validates a reference and keeps it as written, with the tag that a missing one means.
    pub fn registry(text: &str) -> Result<Self, ImageError> {
        ImageReference::parse(text)?;
        let last = text.rsplit('/').next().unwrap_or(text);
        let reference =
            if last.contains([':', '@']) { text.to_owned() } else { format!("{text}:latest") };
        Ok(Self::Registry { reference })
    }

    /// The name becomes part of a file name, so it contains no path.
    pub fn environment(name: &str) -> Result<Self, ImageError> {
        let plain =
            name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if !plain || !starts_well || name.len() > 64 || name.contains("..") {
            return Err(ImageError::Environment(name.to_owned()));
        }
        Ok(Self::Environment { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_means_latest() {
        let reference = |text| match ImageSource::registry(text) {
            Ok(ImageSource::Registry { reference }) => reference,
            other => panic!("{other:?}"),
        };
        assert_eq!(reference("debian"), "debian:latest");
        assert_eq!(reference("debian:12"), "debian:12");
        assert_eq!(reference("reg.lab:5000/a/b"), "reg.lab:5000/a/b:latest");
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(reference(&format!("a@{digest}")), format!("a@{digest}"));
    }

    #[test]
    fn trusted_signer_round_trips_and_other_lines_are_rejected() {
        let id = InstanceId::from_u64(7_398_213_345_412_345_856);
        let principal = TrustedCa::principal_of(id);
        assert_eq!(TrustedCa::instance(&principal), Some(id));
        let ca = TrustedCa { key: "ssh-ed25519 AAAA".to_owned(), principal };
        assert_eq!(TrustedCa::parse(&ca.line()), Some(ca.clone()));
        let access = SshAccess {
            authorized_keys: vec!["one".to_owned()],
            trusted_ca: Some(ca.clone()),
            people_keys: vec!["two".to_owned()],
            people: Some(People([7, 3].map(UserId).into())),
        };
        assert_eq!(access.lines(), ["one", "two", &ca.line(), "# kohakuriver-people 3 7"]);
        for people in [People::default(), access.people.unwrap()] {
            assert_eq!(People::parse(&people.line()), Some(people));
        }
        for other in ["# a comment", "# kohakuriver-peoples 3", "ssh-ed25519 AAAA 3"] {
            assert_eq!(People::parse(other), None, "{other}");
        }
        for bad in [
            "ssh-ed25519 AAAA",
            "cert-authority ssh-ed25519 AAAA",
            "cert-authority,principals=\"\" ssh-ed25519 AAAA",
            "cert-authority,principals=\"a,b\" ssh-ed25519 AAAA",
            "cert-authority,principals=\"a\",command=\"x\" ssh-ed25519 AAAA",
            "no-pty,cert-authority,principals=\"a\" ssh-ed25519 AAAA",
        ] {
            assert_eq!(TrustedCa::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn instance_of_old_version_trusts_no_signer() {
        let old: SshAccess = serde_json::from_str(r#"{"authorized_keys":["a"]}"#).unwrap();
        assert_eq!(old, SshAccess::with_keys(vec!["a".to_owned()]));
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"authorized_keys":["a"]}"#);
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "-x", "a\0"] {
            assert!(ImageSource::environment(bad).is_err(), "{bad:?}");
        }
        for good in ["R.lab:5000/a", "a/b_c.d-e:Tag-1", "localhost:5000/a:1", "a:b", "a/b/c/d"] {
            assert!(ImageSource::registry(good).is_ok(), "{good:?}");
        }
        for bad in ["", "-v", "../x", "a b", "a\n", "x/", "http://x/y", "UPPER", "a:b:c", "a//b"] {
            assert!(ImageSource::registry(bad).is_err(), "{bad:?}");
        }
    }
}
