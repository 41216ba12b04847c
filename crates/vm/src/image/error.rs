use std::io;
use std::path::{Path, PathBuf};

use kohakuriver_model::VmImageName;

use super::program::Missing;

/// Why an image cannot be had, made or removed. [`ImageError::hint`] says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no VM image '{name}'; {}", known_words(known))]
    Unknown { name: VmImageName, known: Vec<VmImageName> },
    #[error("the VM image '{name}' is damaged: {reason}")]
    Broken { name: VmImageName, dir: PathBuf, reason: String },
    #[error("there is a VM image '{name}' already")]
    Exists { name: VmImageName },
    #[error("{what} is not accepted: {reason}")]
    Refused { what: String, reason: String },
    #[error("{what} is not what was expected: its SHA-256 is {found}, not {expected}")]
    Checksum { what: String, expected: String, found: String },
    #[error("{url} comes over plain HTTP, where anybody on the way can change it")]
    NoChecksum { url: String },
    #[error("cannot download {url}: {reason}")]
    Download { url: String, reason: String },
    #[error("{} has {} free, and {} are needed", dir.display(), mib(*free), mib(*needed))]
    NoSpace { dir: PathBuf, free: u64, needed: u64 },
    #[error("{}", Missing::words(.0))]
    MissingPrograms(Vec<Missing>),
    #[error("building an image needs root: the files inside belong to its users")]
    NeedsRoot,
    #[error("{program} failed: {said}")]
    Program { program: &'static str, said: String },
    #[error("the system cannot be built: {reason}")]
    Build { reason: String },
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

impl ImageError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    pub(super) fn refused(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), reason: reason.into() }
    }

    /// What to do next, where that is not in the error itself.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unknown { name, .. } => {
                format!("make it: kohakuriver qemu image create --name {name}")
            }
            Self::Broken { name, dir, .. } => format!(
                "look at {}; make it anew with 'kohakuriver qemu image create --name {name} \
                 --replace', or remove it with 'kohakuriver qemu image delete {name}'",
                dir.display()
            ),
            Self::Exists { .. } => "--replace puts the new one in its place; machines that were \
                 made from the old one keep it"
                .to_owned(),
            Self::Checksum { .. } => "compare with the checksum that its publisher shows; the \
                 download may be another version, or damaged"
                .to_owned(),
            Self::NoChecksum { .. } => {
                "give its checksum with --sha256, or an https:// address".to_owned()
            }
            Self::Download { .. } => "check the address, and that this machine reaches it; or \
                 fetch the file yourself and import it from disk"
                .to_owned(),
            Self::NoSpace { dir, .. } => format!("make room in {}", dir.display()),
            Self::MissingPrograms(missing) => Missing::install_command(missing),
            Self::NeedsRoot => "say it again with sudo, or import a cloud image, which needs no \
                 root: kohakuriver qemu image import --help"
                .to_owned(),
            Self::Build { .. } => {
                "check that this machine reaches its package mirror: apt-get update".to_owned()
            }
            Self::Io { source, path, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("say it again as a user who may do that to {}", path.display())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room there".to_owned()
            }
            Self::Io { .. } => return None,
            Self::Refused { .. } | Self::Program { .. } => return None,
        })
    }
}

fn known_words(known: &[VmImageName]) -> String {
    if known.is_empty() {
        return "there is none at all yet".to_owned();
    }
    let names: Vec<&str> = known.iter().map(VmImageName::as_str).collect();
    format!("known are: {}", names.join(", "))
}

/// Sizes in sentences.
pub(super) fn mib(bytes: u64) -> String {
    let mib = bytes.div_ceil(1 << 20);
    if mib < 10 << 10 { format!("{mib} MiB") } else { format!("{} GiB", mib.div_ceil(1 << 10)) }
}
