//! What an instance is made of: fixed at creation, stored by the host, sent to the runner.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::account::UserId;
use crate::id::InstanceId;
use crate::image::{ImageReference, ReferenceError};
use crate::mount::MountWish;
use crate::name::{InstanceName, VmImageName};

/// The most processes a container may have at once unless its creator says otherwise; enough for
/// any workload seen, and a fork bomb stays inside.
pub const DEFAULT_PIDS_LIMIT: u32 = 32_768;
/// A virtual machine's memory, disk and image unless its creator says otherwise.
pub const DEFAULT_VM_MEMORY_BYTES: u64 = 4 << 30;
pub const DEFAULT_VM_DISK_BYTES: u64 = 20 << 30;
pub const DEFAULT_VM_IMAGE: &str = "debian-12";
/// No system worth the name boots in less.
pub const SMALLEST_VM_MEMORY_BYTES: u64 = 128 << 20;
/// Nor on a smaller disk; and one larger than any file system holds is a typing error.
pub const SMALLEST_VM_DISK_BYTES: u64 = 1 << 30;
pub const LARGEST_VM_DISK_BYTES: u64 = 64 << 40;

/// The specification of one VPS.
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
    /// The cards it has, chosen by placement; they stay the same over restarts.
    #[serde(default)]
    pub gpus: Vec<GpuRef>,
    #[serde(default)]
    pub numa: Option<NumaPin>,
    /// Where its disk comes from instead of `image`.
    #[serde(default)]
    pub snapshot: Option<SnapshotRef>,
    #[serde(default)]
    pub snapshots: SnapshotPolicy,
    #[serde(default)]
    pub on_oom: OnOom,
    /// Size of a virtual machine's disk in bytes; `None`: as large as its image.
    #[serde(default)]
    pub vm_disk_bytes: Option<u64>,
    /// Root inside is root of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// What of its node a container sees besides its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountWish>,
}

impl InstanceSpec {
    /// One with no limits, no SSH and no name.
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

    /// Whether it reaches further into its node than containers do: its node's owner must have
    /// allowed that.
    pub fn is_unconfined(&self) -> bool {
        self.privileged || !self.mounts.is_empty()
    }

    /// What runs it.
    pub fn backend(&self) -> BackendKind {
        match self.image {
            ImageSource::VmImage { .. } => BackendKind::Qemu,
            ImageSource::Registry { .. }
            | ImageSource::Environment { .. }
            | ImageSource::Default => BackendKind::Docker,
        }
    }
}

/// What an instance runs on.
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
    /// The word of the API and of `--backend`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Qemu => "qemu",
        }
    }
}

/// A GPU of an instance. The UUID is what counts; the index is what people wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRef {
    pub index: u32,
    pub uuid: String,
}

/// All processes of the instance run on these processors and use this NUMA node's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaPin {
    pub node: u32,
    pub cpus: Vec<u32>,
}

/// A snapshot in the cluster: whose, and which. The tag is the second since 1970 it was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    pub task_id: InstanceId,
    pub tag: u64,
}

/// Snapshots that are kept of an instance, and made by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPolicy {
    /// The oldest beyond this many go, but never the one the disk comes from. 0 keeps all.
    pub keep: u32,
    /// Whether each stop makes one.
    pub on_stop: bool,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        Self { keep: 5, on_stop: false }
    }
}

/// What happens when the kernel kills a process of the instance for lack of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOom {
    /// The instance ends as `killed_oom`: what is left of it can rarely go on.
    #[default]
    End,
    /// Only that process is gone.
    KeepRunning,
}

/// Where the root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ImageSource {
    /// An image of the runner's Docker engine, pulled from its registry where it is absent.
    Registry { reference: String },
    /// An environment tarball in shared storage, `<name>-<unix seconds>.tar`.
    Environment { name: String },
    /// The base environment, which the runner makes where nobody else did.
    Default,
    /// A base image of virtual machines, in shared storage. Also kept by one whose disk comes from
    /// a snapshot: it says how such a machine boots.
    VmImage { name: VmImageName },
}

/// How people get in by SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// Lines of `authorized_keys` that its people have given it.
    pub authorized_keys: Vec<String>,
    /// Whose certificates open it besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_ca: Option<TrustedCa>,
    /// Lines with the keys that its owner, and those it is shared with, have registered with the
    /// host. The host keeps them up to date; nobody else changes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub people_keys: Vec<String>,
    /// The accounts that may enter, whatever a certificate says; `None` where nobody has one. The
    /// host keeps them up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub people: Option<People>,
}

/// The accounts that may enter an instance, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct People(pub BTreeSet<UserId>);

impl People {
    const MARK: &str = "# kohakuriver-people";

    /// A comment to every reader of `authorized_keys` but an agent that knows it.
    pub fn line(&self) -> String {
        let numbers = self.0.iter().map(|user| format!(" {}", user.0));
        format!("{}{}", Self::MARK, numbers.collect::<String>())
    }

    /// The reverse of [`Self::line`]. Words that are no numbers are nobody.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix(Self::MARK)?;
        let numbers = rest.split_ascii_whitespace().filter_map(|word| word.parse().ok());
        (rest.is_empty() || rest.starts_with(' ')).then(|| Self(numbers.map(UserId).collect()))
    }
}

impl SshAccess {
    /// These keys and nothing else.
    pub fn with_keys(authorized_keys: Vec<String>) -> Self {
        Self { authorized_keys, ..Self::default() }
    }

    /// All that its SSH server is told, in the words of sshd's `authorized_keys`. An agent from
    /// before there were certificates takes the CA's line for a key with options, which admits
    /// nobody, and goes on with the others.
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
    /// Algorithm and base64 of its public key, as OpenSSH writes them.
    pub key: String,
    /// Whom a certificate must name: the instance, not a user in it.
    pub principal: String,
}

impl TrustedCa {
    /// The principal of an instance.
    pub fn principal_of(id: InstanceId) -> String {
        format!("vps-{id}")
    }

    /// The instance that a principal names.
    pub fn instance(principal: &str) -> Option<InstanceId> {
        principal.strip_prefix("vps-")?.parse().ok()
    }

    pub fn line(&self) -> String {
        format!("cert-authority,principals=\"{}\" {}", self.principal, self.key)
    }

    /// The reverse of [`Self::line`]. A line that says more, or less, is none.
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
    /// Checks a reference and keeps it as it was written, with the tag that a missing one means.
    pub fn registry(text: &str) -> Result<Self, ImageError> {
        ImageReference::parse(text)?;
        let last = text.rsplit('/').next().unwrap_or(text);
        let reference =
            if last.contains([':', '@']) { text.to_owned() } else { format!("{text}:latest") };
        Ok(Self::Registry { reference })
    }

    /// The name becomes part of a file name, so it may hold no path.
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
    fn a_trusted_signer_is_read_as_it_was_written_and_nothing_else_is_one() {
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
    fn an_instance_from_before_there_were_certificates_trusts_no_signer() {
        let old: SshAccess = serde_json::from_str(r#"{"authorized_keys":["a"]}"#).unwrap();
        assert_eq!(old, SshAccess::with_keys(vec!["a".to_owned()]));
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"authorized_keys":["a"]}"#);
    }

    #[test]
    fn names_cannot_walk_out_of_their_folder() {
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
