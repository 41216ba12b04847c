//! Where a session's paths begin.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The base of relative paths and `~`.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Empty: the process's own working directory.
    directory: PathBuf,
    pub(super) home: PathBuf,
}

impl Origin {
    /// Of a process that serves one user and was started where it shall be.
    pub fn of_process() -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
        Self { directory: PathBuf::new(), home }
    }

    /// Of one user among others in a process: at home, or at `/` where there is no such directory.
    pub fn of_user(home: &Path) -> Self {
        let directory = if home.is_dir() { home } else { Path::new("/") };
        Self { directory: directory.to_owned(), home: home.to_owned() }
    }

    /// A path of the client; an empty one means the directory the session starts in.
    pub fn at<'a>(&self, path: &'a [u8]) -> Cow<'a, Path> {
        let path = Path::new(OsStr::from_bytes(if path.is_empty() { b"." } else { path }));
        if path.is_absolute() || self.directory.as_os_str().is_empty() {
            return Cow::Borrowed(path);
        }
        Cow::Owned(self.directory.join(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_begin_at_home_and_absolute_ones_do_not() {
        let home = tempfile::tempdir().unwrap();
        let origin = Origin::of_user(home.path());
        assert_eq!(&*origin.at(b"a/b"), home.path().join("a/b"));
        assert_eq!(&*origin.at(b""), home.path());
        assert_eq!(&*origin.at(b"/etc"), Path::new("/etc"));
        assert_eq!(&*Origin::of_user(Path::new("/no/such/home")).at(b"x"), Path::new("/x"));
        assert_eq!(&*Origin::of_process().at(b"x"), Path::new("x"));
    }
}
