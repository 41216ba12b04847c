//! An image made from the distribution's own packages: no image is downloaded.
//!
//! ```text
//!  scratch: packages --> tree --> changed for a VPS --> disk.raw
//!  store:                           kernel, initrd --> .pending-N <-- disk.qcow2 --> NAME
//! ```
//!
//! The scratch directory is on the machine's own disk: owners and devices, which a shared file
//! system may not keep, are kept there. It is cleaned as the store's hidden directories are.

mod disk;
mod initrd;
mod modules;
mod tree;

use std::fs;
use std::path::PathBuf;

use kohakuriver_model::VmImageName;
use nix::unistd::Uid;

use self::tree::Tree;
use super::header::Format;
use super::import::{Described, finish};
use super::meta::{DISK_FILE, Firmware, INITRD_FILE, KERNEL_FILE, Kernel, KernelWhen};
use super::pending::Pending;
use super::program::{Missing, QEMU_IMG, require};
use super::space::Room;
use super::{ImageError, ImageStore, Report, qemu_img};
use crate::distribution::bootstrap::{self, Bootstrap, Target};
use crate::distribution::{Release, this_machine};

/// What a person expects on a server, and what a virtual machine needs.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,udev,kmod,initramfs-tools,\
    busybox-static,zstd,openssh-server,cloud-init,qemu-guest-agent,cloud-guest-utils,iproute2,\
    iputils-ping,netbase,e2fsprogs,fdisk,sudo,ca-certificates,procps,less,nano,vim-tiny,curl,\
    wget,rsync,bash-completion,tzdata,xz-utils,systemd-resolved,systemd-timesyncd";
/// The distribution's own initrd, for the boots after the first, with the modules that our
/// machines need and no others; written before the kernel's package makes it.
const OPTIONS: &[&str] = &["--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\" \
    \"$1/usr/share/initramfs-tools/modules.d\"; \
    printf 'MODULES=list\\nCOMPRESS=zstd\\n' >\"$1/etc/initramfs-tools/conf.d/kohakuriver\"; \
    printf 'virtio_pci\\nvirtio_blk\\nvirtio_scsi\\n' >\"$1/usr/share/initramfs-tools/modules.d/kohakuriver\""];
/// Names of images that say which release they are, its codename, and whether it is Ubuntu's.
const RELEASES: [(&str, &str, bool); 5] = [
    ("debian-12", "bookworm", false),
    ("debian-13", "trixie", false),
    ("debian-14", "forky", false),
    ("ubuntu-24.04", "noble", true),
    ("ubuntu-26.04", "resolute", true),
];
/// Quiet, on the serial console, without waiting for what virtual hardware has right.
const ARGUMENTS: &str = "ro console=ttyS0,115200 quiet no_timer_check cryptomgr.notests \
    rcupdate.rcu_expedited=1 rcupdate.rcu_normal_after_boot=1";
/// Only where the disk is as it was built, so that there is nothing to check.
const FIRST_ARGUMENTS: &str = "fsck.mode=skip";
/// Tree, raw disk and image together stay below.
const ROOM: u64 = 3 << 30;

/// An image to build.
#[derive(Clone, Debug)]
pub struct Create {
    pub name: VmImageName,
    /// A release by its codename; the machine's own where there is none.
    pub suite: Option<String>,
    pub replace: bool,
    /// A directory on the machine's own disk.
    pub scratch: PathBuf,
}

impl Create {
    /// Builds into `store`. Dropping the future, or killing the process, leaves nothing that is
    /// taken for an image.
    pub async fn run(&self, store: &ImageStore, report: Report<'_>) -> Result<(), ImageError> {
        let release = self.release()?;
        if !Uid::effective().is_root() {
            return Err(ImageError::NeedsRoot);
        }
        require(&needed())?;
        if store.has(&self.name) && !self.replace {
            return Err(ImageError::Exists { name: self.name.clone() });
        }
        let scratch = Pending::begin(&self.scratch)?;
        let pending = Pending::begin(store.dir())?;
        Room::of(&scratch.path("tree")).require(ROOM)?;

        let tree = self.bootstrap(&release, &scratch, report).await?;
        report("preparing the system", Some(65));
        let uuid = random_uuid();
        let arguments = format!("root=UUID={uuid} {ARGUMENTS}");
        tree.prepare(&uuid, &arguments).await?;
        let kernel = tree.kernel_release()?;
        let vmlinuz = tree.path(&format!("boot/vmlinuz-{kernel}"));
        fs::copy(&vmlinuz, pending.path(KERNEL_FILE)).map_err(ImageError::io("copy", &vmlinuz))?;
        initrd::write(&tree, &kernel, &pending.path(INITRD_FILE)).await?;

        report("making the disk", Some(70));
        let raw = scratch.path("disk.raw");
        let virtual_bytes = disk::write(&tree, &uuid, scratch.dir(), &raw).await?;
        let disk = pending.path(DISK_FILE);
        Room::of(&disk).require(qemu_img::measure(&raw, Format::Raw).await?)?;
        let converting = |percent: u8| report("packing the disk", Some(80 + percent / 7));
        qemu_img::convert(&raw, Format::Raw, &disk, false, &converting).await?;
        let described = Described {
            virtual_bytes,
            firmware: Firmware::Bios,
            kernel: Some(Kernel {
                cmdline: format!("{arguments} {FIRST_ARGUMENTS}"),
                when: KernelWhen::FirstBoot,
            }),
            agent: true,
            source: format!("packages of {}", release.codename),
        };
        let checking =
            |step: &str, percent: Option<u8>| report(step, percent.map(|done| 95 + done / 20));
        finish(pending, &self.name, self.replace, described, &checking).await
    }

    /// What was said, what the name says, or what this machine runs.
    fn release(&self) -> Result<Release, ImageError> {
        let known = |is: &dyn Fn(&str, &str) -> bool| {
            let (_, codename, ubuntu) = RELEASES.iter().find(|(name, suite, _)| is(name, suite))?;
            Some(Release { codename: (*codename).to_owned(), ubuntu: *ubuntu })
        };
        if let Some(suite) = &self.suite {
            let plain = suite.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            if suite.is_empty() || suite.len() > 32 || !plain {
                return Err(ImageError::refused(
                    format!("the suite '{suite}'"),
                    "it is a codename such as bookworm",
                ));
            }
            let ubuntu = this_machine().is_some_and(|own| own.ubuntu);
            let other = Release { codename: suite.clone(), ubuntu };
            return Ok(known(&|_, codename| codename == suite).unwrap_or(other));
        }
        known(&|name, _| name == self.name.as_str()).or_else(this_machine).ok_or_else(|| {
            ImageError::refused(
                "this machine's distribution",
                "it is neither Debian nor Ubuntu; say which release to build with --suite, or \
                 import a cloud image",
            )
        })
    }

    async fn bootstrap(
        &self,
        release: &Release,
        scratch: &Pending,
        report: Report<'_>,
    ) -> Result<Tree, ImageError> {
        let tree = scratch.path("tree");
        let kernel = if release.ubuntu { "linux-image-virtual" } else { "linux-image-cloud-amd64" };
        let packages = format!("{PACKAGES},{kernel}");
        let bootstrap = Bootstrap {
            suite: &release.codename,
            packages: &packages,
            options: OPTIONS,
            target: Target::Tree(&tree),
            scratch: scratch.dir(),
        };
        // Up to here it is about two thirds of the time.
        let step = |doing: &'static str, percent: u8| {
            report(doing, Some(u8::try_from(u16::from(percent) * 65 / 100).unwrap_or(65)));
        };
        let outcome = bootstrap.run(&step).await;
        outcome.map_err(|error| ImageError::Build { reason: error.to_string() })?;
        Ok(Tree::new(tree))
    }
}

/// The programs that building takes, and the packages they are in.
fn needed() -> Vec<Missing> {
    let mut needed = vec![
        Missing { what: bootstrap::PROGRAM, package: "mmdebstrap" },
        Missing { what: "unshare", package: "util-linux" },
        Missing { what: "chroot", package: "coreutils" },
        QEMU_IMG,
    ];
    needed.extend(disk::NEEDED);
    needed
}

/// A random UUID (version 4), as text.
fn random_uuid() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_that_it_is_random() {
        let uuid = random_uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]), "{uuid}");
    }

    #[test]
    fn a_release_is_what_was_said_or_what_the_name_says_or_this_machines_own() {
        let create = |name: &str, suite: Option<&str>| Create {
            name: name.parse().unwrap(),
            suite: suite.map(str::to_owned),
            replace: false,
            scratch: PathBuf::new(),
        };
        for (name, suite, codename, ubuntu) in [
            ("debian-13", None, "trixie", false),
            ("debian-13", Some("bookworm"), "bookworm", false),
            ("lab", Some("noble"), "noble", true),
        ] {
            let release = create(name, suite).release().unwrap();
            assert_eq!((release.codename.as_str(), release.ubuntu), (codename, ubuntu));
        }
        assert_eq!(create("lab", None).release().ok(), this_machine());
    }

    #[tokio::test]
    async fn a_suite_is_a_word() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(dir.path());
        for bad in ["", "--help", "book worm", "../x", "http://x"] {
            let create = Create {
                name: "a".parse().unwrap(),
                suite: Some(bad.to_owned()),
                replace: false,
                scratch: dir.path().join("scratch"),
            };
            let error = create.run(&store, &|_, _| {}).await.unwrap_err();
            assert!(matches!(error, ImageError::Refused { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
