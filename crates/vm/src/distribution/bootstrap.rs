//! A small system made of the distribution's own packages by `mmdebstrap`.
//!
//! ```text
//!  working --done--> the target is whole
//!     |--dropped--> killed, with everything it started; its scratch directory is removed
//!     |--we die--> ends at its next word
//! ```
//!
//! It mounts things while it works, so it runs in mount and process namespaces of its own: when
//! it is killed, its mounts and children are gone with it, and nothing of the machine's can be
//! reached through what it leaves.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::own_sources;

/// The program this needs.
pub const PROGRAM: &str = "mmdebstrap";
/// Small, and the same on every machine: no documentation, no identity of the builder.
const OPTIONS: &[&str] = &[
    "--variant=minbase",
    "--aptopt=APT::Install-Recommends \"false\"",
    "--aptopt=Acquire::Languages \"none\"",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    // A package may have made a link of it that leads nowhere in the tree.
    "--customize-hook=: >\"$1/etc/machine-id\"; rm -f \"$1/etc/resolv.conf\"; : >\"$1/etc/resolv.conf\"",
];
/// Mirrors are slow sometimes; hours are not slow but broken.
const LIMIT: Duration = Duration::from_secs(1800);
/// The last lines of the builder explain its failure.
const KEPT_LINES: usize = 8;

/// What is built, and how.
#[derive(Debug)]
pub struct Bootstrap<'a> {
    pub suite: &'a str,
    pub packages: &'a str,
    /// More options of the builder.
    pub options: &'a [&'a str],
    pub target: Target<'a>,
    /// Where temporary files go; removed when the build is given up.
    pub scratch: &'a Path,
}

/// What the system becomes.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    Tar(&'a Path),
    /// Needs root, and a file system that keeps owners and devices.
    Tree(&'a Path),
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("mmdebstrap cannot be started: {0}")]
    Start(io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("it did not end within half an hour")]
    TooLong,
}

impl Bootstrap<'_> {
    /// Builds; `step` hears what is being done and how much of the whole is behind. Dropping the
    /// future ends the build.
    ///
    /// # Errors
    /// With the builder's last words.
    pub async fn run(
        &self,
        step: &(dyn Fn(&'static str, u8) + Send + Sync),
    ) -> Result<(), BootstrapError> {
        let (mode, format, target) = match self.target {
            Target::Tar(path) => ("--mode=auto", "--format=tar", path),
            Target::Tree(path) => ("--mode=root", "--format=directory", path),
        };
        // With --kill-child what runs inside ends when `unshare` does.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
            .args([PROGRAM, mode, format])
            .arg(format!("--include={}", self.packages))
            .args(OPTIONS)
            .args(self.options)
            .arg(self.suite)
            .arg(target)
            // With none of its own it takes the release's public mirror.
            .args(own_sources(Path::new("/etc/apt"), self.suite))
            .env("TMPDIR", self.scratch)
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command.spawn().map_err(BootstrapError::Start)?;
        let group = Group { child: Some(child), scratch: self.scratch.to_owned() };
        match tokio::time::timeout(LIMIT, watch(group, step)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(BootstrapError::TooLong),
        }
    }
}

async fn watch(
    mut group: Group,
    step: &(dyn Fn(&'static str, u8) + Send + Sync),
) -> Result<(), BootstrapError> {
    let Some(child) = &mut group.child else {
        return Ok(());
    };
    let mut last = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((doing, percent)) = step_of(&line) {
                step(doing, percent);
            }
            if last.len() == KEPT_LINES {
                last.remove(0);
            }
            last.push(line);
        }
    }
    let status = child.wait().await.map_err(BootstrapError::Start)?;
    group.child = None;
    if status.success() { Ok(()) } else { Err(BootstrapError::Failed(last.join("; "))) }
}

/// What of the builder's words people care for, and how much of the time is usually behind then.
fn step_of(line: &str) -> Option<(&'static str, u8)> {
    const STEPS: [(&str, &str, u8); 7] = [
        ("running apt-get update", "reading package lists", 0),
        ("downloading packages", "downloading packages", 5),
        ("extracting archives", "unpacking", 15),
        ("installing essential packages", "installing essential packages", 20),
        ("installing remaining packages", "installing packages", 30),
        ("cleaning package lists", "cleaning up", 95),
        ("creating tarball", "packing", 97),
    ];
    let words = line.strip_prefix("I: ")?;
    let (_, step, percent) = STEPS.iter().find(|(said, ..)| words.starts_with(said))?;
    Some((step, *percent))
}

/// The build and its children, ended together.
struct Group {
    child: Option<Child>,
    scratch: PathBuf,
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        let scratch = std::mem::take(&mut self.scratch);
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        tokio::spawn(async move {
            let _ = child.wait().await;
            clear(&scratch);
        });
    }
}

/// Removes a build's directory.
pub fn clear(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot clear a build directory");
        }
        Ok(()) | Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_steps_and_not_the_builders_chatter() {
        let line = "I: installing remaining packages inside the chroot...";
        assert_eq!(step_of(line), Some(("installing packages", 30)));
        assert_eq!(step_of("I: automatically chosen mode: root"), None);
        assert_eq!(step_of("W: installing remaining packages"), None);
    }
}
