//! The system that becomes the disk, while it is a directory, and what is changed in it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::image::ImageError;
use crate::image::program::Program;
use crate::seed::{UNIT, UNIT_NAME};

const CLOUD_CFG: &str = include_str!("files/cloud.cfg");
const AUTOLOGIN: &str = include_str!("files/autologin.conf");
const GRUB_CFG: &str = include_str!("files/grub.cfg");

/// What a VPS has no use for and what costs time at each boot: waiting for networks, scrubbing
/// LVM snapshots, firmware's crash records, screens, package lists by night, and modules that are
/// loaded when they are used in any case.
const MASKED: &[&str] = &[
    "systemd-networkd-wait-online.service",
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "systemd-pstore.service",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
];
const ENABLED: &[&str] = &["systemd-networkd.service", "serial-getty@ttyS0.service", UNIT_NAME];

#[derive(Debug)]
pub struct Tree(PathBuf);

impl Tree {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn root(&self) -> &Path {
        &self.0
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// The one kernel inside.
    pub fn kernel_release(&self) -> Result<String, ImageError> {
        let dir = self.path("usr/lib/modules");
        let entries = fs::read_dir(&dir).map_err(ImageError::io("list", &dir))?;
        let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            _ => Err(ImageError::Build { reason: "it has not exactly one kernel".to_owned() }),
        }
    }

    /// Makes a virtual machine's system of what the packages left. `arguments` are the kernel's.
    pub async fn prepare(&self, uuid: &str, arguments: &str) -> Result<(), ImageError> {
        self.write("etc/fstab", &format!("UUID={uuid} / ext4 rw,discard,errors=remount-ro 0 1\n"))?;
        self.write("boot/grub/grub.cfg", &GRUB_CFG.replace("@ARGUMENTS@", arguments))?;
        self.write("etc/cloud/cloud.cfg.d/90_kohakuriver.cfg", CLOUD_CFG)?;
        // No probing of hypervisors: a seed disk is there, or nothing is.
        self.write("etc/cloud/ds-identify.cfg", "policy: enabled\n")?;
        self.write(&format!("etc/systemd/system/{UNIT_NAME}"), UNIT)?;
        self.write("etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf", AUTOLOGIN)?;
        self.write("etc/hostname", "debian\n")?;
        self.write("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost\n")?;
        // Who packages are installed by from now on is a person, not the builder.
        for left in ["etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap"] {
            self.remove(left)?;
        }
        self.remove("etc/resolv.conf")?;
        let resolver = self.path("etc/resolv.conf");
        symlink("../run/systemd/resolve/stub-resolv.conf", &resolver)
            .map_err(ImageError::io("write", &resolver))?;
        // Each machine makes its own identity.
        self.remove_keys()?;
        self.write("etc/machine-id", "")?;
        self.systemctl("enable", ENABLED).await?;
        self.systemctl("mask", MASKED).await?;
        // What systemd does once after an update of /usr was done by the packages' own scripts.
        for stamp in ["etc/.updated", "var/.updated"] {
            self.write(stamp, "")?;
        }
        Ok(())
    }

    async fn systemctl(&self, verb: &str, units: &[&str]) -> Result<(), ImageError> {
        let chroot = Program::new("chroot").arg(&self.0).args(["systemctl", "--quiet", verb]);
        chroot.args(units).output().await.map(drop)
    }

    fn remove_keys(&self) -> Result<(), ImageError> {
        let dir = self.path("etc/ssh");
        for entry in fs::read_dir(&dir).map_err(ImageError::io("list", &dir))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
                fs::remove_file(entry.path()).map_err(ImageError::io("remove", &dir))?;
            }
        }
        Ok(())
    }

    /// A new file: a link of that name is not followed, which could lead out of the tree.
    fn write(&self, file: &str, content: &str) -> Result<(), ImageError> {
        self.remove(file)?;
        let path = self.path(file);
        let dir = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&path, content))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
            .map_err(ImageError::io("write", &path))
    }

    fn remove(&self, file: &str) -> Result<(), ImageError> {
        let path = self.path(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
