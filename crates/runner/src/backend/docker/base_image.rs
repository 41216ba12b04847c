//! The base environment, built from the distribution's own packages by `mmdebstrap`.
//!
//! ```text
//!  building --done--> tar in <images>/build-N --imported--> removed
//!     |--given up--> killed, with everything it started --> removed
//!     |--the runner dies--> ends at its next word; removed before the next build
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use kohakuriver_vm::distribution::bootstrap::{self, Bootstrap, Target, clear};
use kohakuriver_vm::distribution::{find_program, this_machine};

use super::client::is_disk_full;
use super::shared_job::Reporter;
use crate::backend::BackendError;
use kohakuriver_durable as durable;

/// Packages that users miss first in a minimal system.
const PACKAGES: &str = "bash,ca-certificates,procps,iproute2,iputils-ping,less,nano,sudo,curl,\
                        rsync,openssh-client";
const DIR_PREFIX: &str = "build-";
const STEP: &str = "building the base environment";
const WHAT: &str = "the base environment cannot be built";

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
    let Some(release) = this_machine() else {
        return Err(unavailable(
            "this machine's distribution is not one mmdebstrap can build",
            "put an environment tarball 'base-UNIXTIME.tar' into shared storage",
        ));
    };
    if find_program(bootstrap::PROGRAM).is_none() {
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
    let bootstrap = Bootstrap {
        suite: &release.codename,
        packages: PACKAGES,
        options: &[],
        target: Target::Tar(&build.tar),
        scratch: &build.dir,
    };
    let step = |doing, percent| reporter.step(format!("{STEP}: {doing}"), Some(percent));
    bootstrap.run(&step).await.map(|()| build).map_err(|error| failed(&error.to_string()))
}

/// Removes files left by builds of earlier runners.
fn clear_old(images: &Path) {
    for entry in fs::read_dir(images).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(DIR_PREFIX) {
            clear(&entry.path());
        }
    }
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
    use std::time::Duration;

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
}
