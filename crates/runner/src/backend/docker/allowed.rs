//! The permissions that the node's owner grants containers: to be privileged, and mounts. None,
//! unless the runner was started with `--allow-privileged` or `--allow-mount`.
//!
//! ```text
//!  create, start: permits -- the source is inside an allowed path, and no part of it is a link
//!  running:       verify  -- what the engine has mounted is what is there
//! ```
//!
//! The engine follows links when it mounts, a moment after this check. A user who may write in
//! an allowed path, such as another VPS with a mount of it, could put one there in between. So it is
//! looked at again before the container counts as running, and one that got something else is ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bollard::models::ContainerInspectResponse;
use kohakuriver_model::{InstanceSpec, MountWish};
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc::{S_IFDIR, S_IFMT, S_IFREG};
use nix::sys::stat::{FileStat, fstat};

use super::own_files::FILES;
use super::settings::ContainerSettings;
use crate::backend::BackendError;
use crate::layout::{IN_BIN, IN_ETC, IN_RUN, IN_SHARED};

#[derive(Debug)]
pub struct Allowed {
    privileged: bool,
    /// Without links.
    mounts: Vec<PathBuf>,
    /// The runner's own state and, where `up` keeps it, the host's: in no container, whatever is
    /// allowed.
    own: [PathBuf; 2],
    is_root: bool,
}

impl Allowed {
    pub fn new(settings: &ContainerSettings, own: &Path) -> Self {
        let mounts = settings.allow_mounts.iter().filter_map(|path| match path.canonicalize() {
            Ok(path) => Some(path),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, "--allow-mount {path} allows nothing: it is not there");
                None
            }
        });
        Self {
            privileged: settings.allow_privileged,
            mounts: mounts.collect(),
            own: [own.to_owned(), own.with_file_name("host")]
                .map(|path| path.canonicalize().unwrap_or(path)),
            is_root: nix::unistd::geteuid().is_root(),
        }
    }

    pub fn privileged(&self) -> bool {
        self.privileged
    }

    pub fn mounts(&self) -> Vec<String> {
        self.mounts.iter().map(|path| path.to_string_lossy().into_owned()).collect()
    }

    /// Whether an instance may have what it asks for.
    pub fn permits(&self, spec: &InstanceSpec) -> Result<(), BackendError> {
        if spec.privileged && !self.privileged {
            let reason = "this node lets no VPS be privileged".to_owned();
            let hint = "the node's owner can start the runner with --allow-privileged".to_owned();
            return Err(BackendError::NotAllowed { reason, hint });
        }
        spec.mounts.iter().try_for_each(|mount| self.permits_mount(mount))
    }

    fn permits_mount(&self, mount: &MountWish) -> Result<(), BackendError> {
        let text = mount.source();
        let refused = |reason: String, hint: &str| {
            Err(BackendError::NotAllowed { reason, hint: hint.to_owned() })
        };
        let source = Path::new(text);
        if !self.mounts.iter().any(|place| source.starts_with(place)) {
            let hint = "the node's owner can start the runner with --allow-mount PATH; `kohakuriver node status` lists allowed mounts";
            return refused(format!("this node lets no VPS mount {text}"), hint);
        }
        if !self.is_root {
            // It could not check that the engine has mounted the intended source.
            let reason = "the runner of this node is not root and cannot verify mounts";
            return refused(reason.to_owned(), "run the runner as root");
        }
        if self.own.iter().any(|own| source.starts_with(own) || own.starts_with(source)) {
            let reason = format!("{text} contains KohakuRiver's own state, or is part of it");
            return refused(reason, "mount a directory without it instead");
        }
        match open_plainly(source).and_then(|fd| stat(&fd)) {
            Ok(stat) if matches!(stat.st_mode & S_IFMT, S_IFDIR | S_IFREG) => Ok(()),
            Ok(_) => {
                let reason = format!("{text} is neither a directory nor a plain file");
                refused(reason, "mount the directory it is in")
            }
            Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
                let hint = match source.canonicalize() {
                    Ok(real) => format!("mount its target instead: {}", real.display()),
                    Err(_) => "its target does not exist".to_owned(),
                };
                refused(format!("{text} is a link, or is behind one"), &hint)
            }
            Err(error) => {
                refused(format!("{text} cannot be mounted: {error}"), "create it on the node first")
            }
        }
    }

    /// Whether a container that runs has what its mounts say. `Ok` where it has ended meanwhile.
    ///
    /// # Errors
    /// It has something else.
    pub fn verify(&self, answer: &ContainerInspectResponse) -> Result<(), BackendError> {
        let Some(pid) = answer.state.as_ref().and_then(|state| state.pid).filter(|pid| *pid > 0)
        else {
            return Ok(());
        };
        for mount in answer.mounts.iter().flatten() {
            let (Some(source), Some(target)) = (&mount.source, &mount.destination) else {
                continue;
            };
            let is_own = FILES.iter().any(|(_, path)| path == target);
            if is_own || [IN_BIN, IN_ETC, IN_RUN, IN_SHARED].contains(&target.as_str()) {
                continue;
            }
            let is_same = same(Path::new(source), pid, Path::new(target));
            if !matches!(is_same, Ok(true)) {
                tracing::warn!(source, target, ?is_same, "a container has mounted something else");
                return Err(BackendError::NotAllowed {
                    reason: format!("the mount at {target} is not the node's {source}"),
                    hint:
                        "check its path on the node for a new symbolic link, then restart the VPS"
                            .to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn same(source: &Path, pid: i64, target: &Path) -> io::Result<bool> {
    let there = stat(&open_plainly(source)?)?;
    let root = File::open(format!("/proc/{pid}/root"))?;
    // Paths and links mean there what they mean inside.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let inside = stat(&openat2(&root, target, how)?)?;
    Ok((there.st_dev, there.st_ino) == (inside.st_dev, inside.st_ino))
}

/// Opens a path no part of which is a link.
fn open_plainly(path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(AT_FDCWD, path, how)?)
}

fn stat(fd: &impl AsFd) -> io::Result<FileStat> {
    Ok(fstat(fd)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use kohakuriver_model::ImageSource;

    use super::*;

    struct Node {
        dir: tempfile::TempDir,
        allowed: Allowed,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap();
            for part in ["data/sets/a", "secret", "data/runner/instances", "data/host"] {
                fs::create_dir_all(root.join(part)).unwrap();
            }
            let settings = ContainerSettings {
                allow_mounts: vec![root.join("data"), root.join("none")],
                ..ContainerSettings::default()
            };
            let allowed =
                Allowed { is_root: true, ..Allowed::new(&settings, &root.join("data/runner")) };
            Self { dir, allowed }
        }

        fn path(&self, part: &str) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join(part)
        }

        fn mount(&self, part: &str) -> Result<(), String> {
            let text = format!("{}:/mnt", self.path(part).display());
            let spec = InstanceSpec {
                mounts: vec![text.parse().unwrap()],
                ..InstanceSpec::new(ImageSource::Default)
            };
            self.allowed.permits(&spec).map_err(|error| format!("{error}; {:?}", error.hint()))
        }
    }

    #[test]
    fn only_what_is_inside_an_allowed_path_can_be_mounted() {
        let node = Node::new();
        assert_eq!(node.mount("data/sets"), Ok(()));
        assert_eq!(node.mount("data/sets/a"), Ok(()));
        for outside in ["secret", "", "database", "none"] {
            assert!(node.mount(outside).unwrap_err().contains("lets no VPS mount"), "{outside}");
        }
        assert!(node.mount("data/absent").unwrap_err().contains("create it on the node"));
    }

    #[test]
    fn no_link_leads_out_of_an_allowed_path() {
        let node = Node::new();
        symlink(node.path("secret"), node.path("data/out")).unwrap();
        symlink(node.path("data/sets"), node.path("data/in")).unwrap();
        for link in ["data/out", "data/in", "data/in/a"] {
            assert!(node.mount(link).unwrap_err().contains("is a link"), "{link}");
        }
        let told = node.mount("data/in/a").unwrap_err();
        assert!(told.contains(&node.path("data/sets/a").display().to_string()), "{told}");
    }

    #[test]
    fn runner_state_and_special_files_cannot_be_mounted() {
        let node = Node::new();
        for own in ["data", "data/runner", "data/runner/instances", "data/host"] {
            assert!(node.mount(own).unwrap_err().contains("KohakuRiver's own state"), "{own}");
        }
        let _socket = std::os::unix::net::UnixListener::bind(node.path("data/docker.sock"));
        assert!(node.mount("data/docker.sock").unwrap_err().contains("neither a directory"));
        let spec = InstanceSpec { privileged: true, ..InstanceSpec::new(ImageSource::Default) };
        assert!(node.allowed.permits(&spec).is_err());
    }

    #[test]
    fn what_is_mounted_is_compared_with_what_is_there() {
        let node = Node::new();
        let pid = i64::from(std::process::id());
        let (a, b) = (node.path("data/sets"), node.path("secret"));
        assert!(same(&a, pid, &a).unwrap());
        assert!(!same(&a, pid, &b).unwrap());
        fs::remove_dir_all(&a).unwrap();
        symlink(&b, &a).unwrap();
        assert!(same(&a, pid, &b).is_err(), "a link is nothing to compare with");
    }
}
