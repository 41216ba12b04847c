//! A disk from elsewhere becomes an image: a file of this machine, or what an address gives.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use kohakuriver_model::VmImageName;

use super::download::download;
use super::header::{self, Format};
use super::meta::{
    DISK_FILE, Firmware, INITRD_FILE, ImageMeta, KERNEL_FILE, Kernel, KernelWhen, META_FILE,
};
use super::pending::Pending;
use super::program::{QEMU_IMG, require};
use super::qemu_img;
use super::space::{Room, checksum};
use super::{ImageError, ImageStore, Report};

/// More than any disk: a header that says so is a trap, or broken.
const MAX_VIRTUAL_BYTES: u64 = 16 << 40;

/// What to import, and how its machines start.
#[derive(Clone, Debug)]
pub struct Import {
    pub name: VmImageName,
    pub source: Source,
    /// The SHA-256 of what the source gives, in hexadecimal digits.
    pub sha256: Option<String>,
    pub firmware: Firmware,
    /// A kernel that is started instead of the disk's own boot loader, always.
    pub kernel: Option<DirectBoot>,
    /// Whether our agent can be brought to run inside, by cloud-init or because it is there.
    pub agent: bool,
    pub replace: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    /// `http://` or `https://`
    Url(String),
}

/// Files of this machine, and the kernel's arguments.
#[derive(Clone, Debug)]
pub struct DirectBoot {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub cmdline: String,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("http" | "https") => Ok(Self::Url(text.to_owned())),
            Some("file") => Err("write the path itself, without file://".to_owned()),
            Some(other) if other.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Err(format!("{other}:// is not supported: give a file, or an http(s) address"))
            }
            Some(_) | None => Ok(Self::File(PathBuf::from(text))),
        }
    }
}

impl Import {
    /// Imports into `store`. Dropping the future, or killing the process, leaves nothing that is
    /// taken for an image.
    pub async fn run(&self, store: &ImageStore, report: Report<'_>) -> Result<(), ImageError> {
        require(&[QEMU_IMG])?;
        self.expect_possible(store)?;
        let pending = Pending::begin(store.dir())?;
        let downloaded = pending.path("source");
        let (file, shown) = match &self.source {
            Source::File(path) => (absolute(path)?, path.display().to_string()),
            Source::Url(url) => {
                let found = download(url, &downloaded, report).await?;
                self.expect_checksum(url, &found)?;
                (downloaded.clone(), url.clone())
            }
        };
        let format = self.look(&file, &shown)?;
        if let (Source::File(_), Some(_)) = (&self.source, &self.sha256) {
            let found = checksum(&file, "checking", report).await?;
            self.expect_checksum(&shown, &found)?;
        }
        let info = qemu_img::info(&file, format).await?;
        if let Some(reason) = info.leads_elsewhere() {
            return Err(ImageError::refused(shown, reason));
        }
        if info.virtual_size > MAX_VIRTUAL_BYTES {
            return Err(ImageError::refused(shown, "it says that it is larger than 16 TiB"));
        }
        let disk = pending.path(DISK_FILE);
        Room::of(&disk).require(qemu_img::measure(&file, format).await?)?;
        let converting = |percent| report("converting", Some(percent));
        qemu_img::convert(&file, format, &disk, false, &converting).await?;
        let kernel = self.take_kernel(&pending)?;
        if let Source::Url(_) = self.source {
            fs::remove_file(&downloaded).map_err(ImageError::io("remove", &downloaded))?;
        }
        let described = Described {
            virtual_bytes: info.virtual_size,
            firmware: self.firmware,
            kernel,
            agent: self.agent,
            source: shown,
        };
        finish(pending, &self.name, self.replace, described, report).await
    }

    /// What can be known before anything is moved.
    fn expect_possible(&self, store: &ImageStore) -> Result<(), ImageError> {
        if let Some(sum) = &self.sha256
            && !(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(ImageError::refused(
                format!("the checksum '{sum}'"),
                "a SHA-256 has 64 hexadecimal digits",
            ));
        }
        if let Source::Url(url) = &self.source
            && self.sha256.is_none()
            && !url.to_ascii_lowercase().starts_with("https://")
        {
            return Err(ImageError::NoChecksum { url: url.clone() });
        }
        if store.has(&self.name) && !self.replace {
            return Err(ImageError::Exists { name: self.name.clone() });
        }
        Ok(())
    }

    fn expect_checksum(&self, what: &str, found: &str) -> Result<(), ImageError> {
        match &self.sha256 {
            Some(expected) if !expected.eq_ignore_ascii_case(found) => Err(ImageError::Checksum {
                what: what.to_owned(),
                expected: expected.to_ascii_lowercase(),
                found: found.to_owned(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn look(&self, path: &Path, shown: &str) -> Result<Format, ImageError> {
        let failed = ImageError::io("read", path);
        // A pipe without a writer would never open.
        let meta = fs::metadata(path).map_err(ImageError::io("read", path))?;
        if !meta.is_file() {
            return Err(ImageError::refused(shown, "it is not a file"));
        }
        let file = File::open(path).map_err(ImageError::io("read", path))?;
        let format = header::look(&file, self.kernel.is_some()).map_err(failed)?;
        format.map_err(|reason| ImageError::refused(shown, reason))
    }

    fn take_kernel(&self, pending: &Pending) -> Result<Option<Kernel>, ImageError> {
        let Some(given) = &self.kernel else {
            return Ok(None);
        };
        for (from, to) in [(&given.kernel, KERNEL_FILE), (&given.initrd, INITRD_FILE)] {
            fs::copy(from, pending.path(to)).map_err(ImageError::io("copy", from))?;
        }
        Ok(Some(Kernel { cmdline: given.cmdline.clone(), when: KernelWhen::Always }))
    }
}

/// What is written down of an image, besides what its disk tells itself.
pub(super) struct Described {
    pub virtual_bytes: u64,
    pub firmware: Firmware,
    pub kernel: Option<Kernel>,
    pub agent: bool,
    pub source: String,
}

/// The files are all there: describes them, brings them to the disk, and gives them their name.
pub(super) async fn finish(
    pending: Pending,
    name: &VmImageName,
    replace: bool,
    described: Described,
    report: Report<'_>,
) -> Result<(), ImageError> {
    let disk = pending.path(DISK_FILE);
    let disk_bytes = fs::metadata(&disk).map_err(ImageError::io("read", &disk))?.len();
    let sha256 = checksum(&disk, "computing the checksum", report).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let meta = ImageMeta {
        sha256,
        disk_bytes,
        virtual_bytes: described.virtual_bytes,
        firmware: described.firmware,
        kernel: described.kernel,
        agent: described.agent,
        source: described.source,
        made_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    };
    report("writing to disk", None);
    let path = pending.path(META_FILE);
    let text = serde_json::to_vec_pretty(&meta)
        .map_err(|error| ImageError::io("write", &path)(error.into()))?;
    fs::write(&path, text).map_err(ImageError::io("write", &path))?;
    for file in [DISK_FILE, META_FILE, KERNEL_FILE, INITRD_FILE] {
        let path = pending.path(file);
        if path.exists() {
            settle(&path).map_err(ImageError::io("write", &path))?;
        }
    }
    let dir = pending.dir();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
        .map_err(ImageError::io("open", dir))?;
    pending.commit(name, replace)
}

/// On the disk, and never to be written again: nodes link to it.
fn settle(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o444))?;
    file.sync_all()
}

fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    fs::canonicalize(path).map_err(ImageError::io("read", path))
}
