//! The base environment, built from the distribution's own packages by `mmdebstrap`.
//!
//! ```text
//!  building --done--> tar in <images>/build --imported--> removed
//!     |--given up--> SIGTERM to the whole group (it unmounts) --5 s--> SIGKILL
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::apt_sources::own_sources;
use super::client::is_disk_full;
use super::shared_job::Reporter;
use crate::backend::BackendError;
use crate::durable;

/// What people miss first in a minimal system.
const PACKAGES: &str = "bash,ca-certificates,procps,iproute2,iputils-ping,less,nano,sudo,curl,\
                        rsync,openssh-client";
/// Small, and the same on every machine: no documentation, no keys, no identity of the builder.
const OPTIONS: &[&str] = &[
    "--aptopt=APT::Install-Recommends \"false\"",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--customize-hook=: >\"$1/etc/machine-id\"; : >\"$1/etc/resolv.conf\"",
];
const STEP: &str = "building the base environment";
const WHAT: &str = "the base environment cannot be built";
/// Mirrors are slow sometimes; hours are not slow but broken.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// A finished build; its files go when it is dropped.
#[derive(Debug)]
pub struct Build {
    dir: PathBuf,
    tar: PathBuf,
}

impl Build {
    pub fn tar(&self) -> &Path {
        &self.tar
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        clear(&self.dir);
    }
}

/// Builds into `images`. Dropping the future ends the build.
pub async fn build(images: &Path, reporter: &Reporter) -> Result<Build, BackendError> {
    let Some(suite) = suite() else {
        return Err(unavailable(
            "this machine's distribution is not one mmdebstrap can build",
            "put an environment tarball 'base-UNIXTIME.tar' into shared storage",
        ));
    };
    let dir = images.join("build");
    clear(&dir);
    durable::private_dir(&dir).map_err(|error| failed(&error.to_string()))?;
    let build = Build {
        tar: dir.join("base.tar"),
        dir,
    };
    reporter.step(STEP, None);
    let sources = own_sources(Path::new("/etc/apt"), &suite);
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=auto", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={PACKAGES}"))
        .args(OPTIONS)
        .arg(&suite)
        .arg(&build.tar)
        // With none of its own it takes the release's public mirror.
        .args(&sources)
        .env("TMPDIR", &build.dir)
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command.spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(unavailable(
                "mmdebstrap is not installed on this node",
                "install it with 'apt-get install mmdebstrap', or put an environment tarball \
                 'base-UNIXTIME.tar' into shared storage",
            ));
        }
        Err(error) => return Err(failed(&error.to_string())),
    };
    match tokio::time::timeout(BUILD_LIMIT, watch(Group(Some(child)), reporter)).await {
        Ok(outcome) => outcome.map(|()| build),
        Err(_) => Err(failed("it did not end within half an hour")),
    }
}

async fn watch(mut group: Group, reporter: &Reporter) -> Result<(), BackendError> {
    let Some(child) = &mut group.0 else {
        return Ok(());
    };
    let mut last = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(doing) = line.strip_prefix("I: ") {
                let doing = doing.trim_end_matches(['.', ' ']);
                reporter.step(format!("{STEP}: {doing}"), None);
            }
            if last.len() == 8 {
                last.remove(0);
            }
            last.push(line);
        }
    }
    let status = child
        .wait()
        .await
        .map_err(|error| failed(&error.to_string()))?;
    group.0 = None;
    if status.success() {
        Ok(())
    } else {
        Err(failed(&last.join("; ")))
    }
}

/// The build and its children, ended together.
struct Group(Option<Child>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        let pid = Pid::from_raw(pid);
        let _ = killpg(pid, Signal::SIGTERM);
        tokio::spawn(async move {
            let ended = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
            if ended.is_err() {
                let _ = killpg(pid, Signal::SIGKILL);
                let _ = child.wait().await;
            }
        });
    }
}

/// Removes what a build left, unless something is still mounted in it: what is mounted there
/// belongs to the machine.
fn clear(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let place = dir.to_string_lossy();
    let mounted = mounts.lines().any(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|point| Path::new(point).starts_with(&*place))
    });
    if mounted {
        tracing::warn!(dir = %dir.display(), "something is mounted in the build directory; it stays");
        return;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot clear the build directory");
        }
        Ok(()) | Err(_) => {}
    }
}

/// The machine's own release, so that its own package sources serve.
fn suite() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    suite_of(&text)
}

fn suite_of(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches('"').to_owned())
    };
    let debian = [value("ID"), value("ID_LIKE")]
        .into_iter()
        .flatten()
        .any(|ids| ids.split(' ').any(|id| id == "debian" || id == "ubuntu"));
    value("VERSION_CODENAME").filter(|name| debian && !name.is_empty())
}

fn failed(reason: &str) -> BackendError {
    if is_disk_full(reason) {
        return BackendError::DiskFull {
            reason: reason.to_owned(),
        };
    }
    unavailable(
        reason,
        "check that the node reaches its package mirror ('apt-get update'), or put an environment \
         tarball 'base-UNIXTIME.tar' into shared storage",
    )
}

fn unavailable(reason: &str, hint: &str) -> BackendError {
    BackendError::ImageUnavailable {
        what: WHAT.to_owned(),
        reason: reason.to_owned(),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_the_machines_own_where_it_is_a_debian() {
        let debian = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(suite_of(debian).as_deref(), Some("bookworm"));
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=wilma\n";
        assert_eq!(suite_of(mint).as_deref(), Some("wilma"));
        assert_eq!(suite_of("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
    }
}
