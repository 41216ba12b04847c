//! The base environment, built from the distribution's own packages by `mmdebstrap`.
//!
//! ```text
//!  building --done--> tar in <images>/build-N --imported--> removed
//!     |--given up--> killed, with everything it started --> removed
//!     |--the runner dies--> ends at its next word; removed before the next build
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
const DIR_PREFIX: &str = "build-";
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
    if !is_installed("mmdebstrap") {
        return Err(unavailable(
            "mmdebstrap is not installed on this node",
            "install it with 'apt-get install mmdebstrap', or put an environment tarball \
             'base-UNIXTIME.tar' into shared storage",
        ));
    }
    clear_old(images);
    let dir = images.join(format!("{DIR_PREFIX}{}", rand::random::<u32>()));
    durable::private_dir(&dir).map_err(|error| failed(&error.to_string()))?;
    let build = Build { tar: dir.join("base.tar"), dir };
    reporter.step(STEP, None);
    let sources = own_sources(Path::new("/etc/apt"), &suite);
    // With --kill-child what runs inside ends when `unshare` does.
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .args(["mmdebstrap", "--mode=auto", "--variant=minbase", "--format=tar"])
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
    let child = command.spawn().map_err(|error| failed(&error.to_string()))?;
    let group = Group { child: Some(child), dir: build.dir.clone() };
    match tokio::time::timeout(BUILD_LIMIT, watch(group, reporter)).await {
        Ok(outcome) => outcome.map(|()| build),
        Err(_) => Err(failed("it did not end within half an hour")),
    }
}

async fn watch(mut group: Group, reporter: &Reporter) -> Result<(), BackendError> {
    let Some(child) = &mut group.child else {
        return Ok(());
    };
    let mut last = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(doing) = step_of(&line) {
                reporter.step(format!("{STEP}: {doing}"), None);
            }
            if last.len() == 8 {
                last.remove(0);
            }
            last.push(line);
        }
    }
    let status = child.wait().await.map_err(|error| failed(&error.to_string()))?;
    group.child = None;
    if status.success() { Ok(()) } else { Err(failed(&last.join("; "))) }
}

/// What of the builder's words people care for.
fn step_of(line: &str) -> Option<&'static str> {
    const STEPS: [(&str, &str); 7] = [
        ("running apt-get update", "reading package lists"),
        ("downloading packages", "downloading packages"),
        ("extracting archives", "unpacking"),
        ("installing essential packages", "installing essential packages"),
        ("installing remaining packages", "installing packages"),
        ("cleaning package lists", "cleaning up"),
        ("creating tarball", "packing"),
    ];
    let words = line.strip_prefix("I: ")?;
    STEPS.iter().find(|(said, _)| words.starts_with(said)).map(|(_, step)| *step)
}

/// The build and its children, ended together.
struct Group {
    child: Option<Child>,
    dir: PathBuf,
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        let dir = std::mem::take(&mut self.dir);
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        tokio::spawn(async move {
            let _ = child.wait().await;
            clear(&dir);
        });
    }
}

/// What builds of earlier runners left.
fn clear_old(images: &Path) {
    for entry in fs::read_dir(images).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(DIR_PREFIX) {
            clear(&entry.path());
        }
    }
}

fn clear(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot clear a build directory");
        }
        Ok(()) | Err(_) => {}
    }
}

fn is_installed(command: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join(command).is_file())
}

/// The machine's own release, so that its own package sources serve.
fn suite() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    suite_of(&text)
}

fn suite_of(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
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
        return BackendError::DiskFull { reason: reason.to_owned() };
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

    #[tokio::test]
    async fn a_build_that_is_given_up_leaves_nothing() {
        let images = tempfile::tempdir().unwrap();
        let (reporter, mut step) = Reporter::observed();
        let mut building = Box::pin(build(images.path(), &reporter));
        let begun = async {
            while !step().contains("reading package lists") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            outcome = &mut building => panic!("{outcome:?}"),
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("it does not begin"),
            () = begun => {}
        }
        drop(building);
        for _ in 0..200 {
            if fs::read_dir(images.path()).unwrap().next().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{:?} is left", fs::read_dir(images.path()).unwrap().next());
    }

    #[test]
    fn people_see_steps_and_not_the_builders_chatter() {
        let line = "I: installing remaining packages inside the chroot...";
        assert_eq!(step_of(line), Some("installing packages"));
        assert_eq!(step_of("I: automatically chosen mode: root"), None);
        assert_eq!(step_of("W: installing remaining packages"), None);
    }

    #[test]
    fn the_suite_is_the_machines_own_where_it_is_a_debian() {
        let debian = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(suite_of(debian).as_deref(), Some("bookworm"));
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=wilma\n";
        assert_eq!(suite_of(mint).as_deref(), Some("wilma"));
        assert_eq!(suite_of("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
    }
}
