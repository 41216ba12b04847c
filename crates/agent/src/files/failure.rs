//! Translates the kernel's errors to failures of the files protocol.

use std::io;
use std::path::Path;

use kohakuriver_agent_protocol::files::{Code, Failed};
use nix::errno::Errno;

pub(crate) type Outcome<T> = Result<T, Failed>;

/// Returns the failure of an operation on `path`.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel knows more than people need told apart"
)]
pub(crate) fn failed(error: Errno, path: &Path) -> Failed {
    let shown = path.display();
    let (code, message) = match error {
        Errno::ENOENT => (Code::NotFound, missing(path)),
        Errno::EACCES | Errno::EPERM => {
            (Code::Denied, format!("{shown}: the instance does not allow it"))
        }
        Errno::EROFS => (Code::Denied, format!("{shown} is on a read-only disk")),
        Errno::EEXIST => (Code::Exists, format!("{shown} is there already")),
        Errno::ENOTEMPTY => (Code::Exists, format!("{shown} is a directory with files in it")),
        Errno::EISDIR => (Code::IsDirectory, format!("{shown} is a directory")),
        Errno::ENOTDIR => (Code::NotDirectory, not_directory(path)),
        Errno::ELOOP => {
            (Code::Forbidden, format!("{shown} leads through a symlink of /proc, or in a circle"))
        }
        Errno::ENOSPC | Errno::EDQUOT => {
            (Code::DiskFull, format!("the instance's disk is full: {shown} was not written"))
        }
        Errno::EFBIG => (Code::TooLarge, format!("{shown} would be too large for its disk")),
        Errno::ENAMETOOLONG => (Code::Invalid, format!("{shown} is too long a name")),
        Errno::EXDEV => (
            Code::Invalid,
            format!("{shown} is on another disk than where it should go: copy it instead"),
        ),
        Errno::EBUSY => (
            Code::Invalid,
            format!("{shown} is a mount point: its content can be written, its name stays"),
        ),
        Errno::EINVAL => (Code::Invalid, format!("{shown}: the disk does not take that")),
        other => (Code::Other, format!("{shown}: {}", other.desc().to_lowercase())),
    };
    Failed { code, message }
}

pub(crate) fn failed_io(error: &io::Error, path: &Path) -> Failed {
    failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw), path)
}

pub(crate) fn is_gone(failed: &Failed) -> bool {
    failed.code == Code::NotFound
}

/// Names what is there, because a mistyped path is the usual reason.
fn missing(path: &Path) -> String {
    let there = path.ancestors().skip(1).find(|parent| parent.exists());
    match there {
        Some(parent) if Some(parent) != path.parent() => {
            format!("{} does not exist; only {} does", path.display(), parent.display())
        }
        Some(_) | None => format!("{} does not exist", path.display()),
    }
}

fn not_directory(path: &Path) -> String {
    let file = path.ancestors().find(|part| part.exists() && !part.is_dir());
    format!("{} is not a directory", file.unwrap_or(path).display())
}
