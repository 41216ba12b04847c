//! Users of the image, from its passwd and group files: a static executable cannot load NSS modules.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use kohakuriver_net::passwd::{self, Account};
pub(crate) use kohakuriver_net::passwd::{group_names, user_names};

use crate::process::Identity;

/// Shells for a user without a working one of its own, in order of preference.
const SHELLS: [&str; 3] = ["/bin/bash", "/bin/sh", "/usr/bin/sh"];
const BUSYBOX: &str = "/bin/busybox";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    /// As written in the passwd file, perhaps empty.
    pub shell: String,
    pub groups: Vec<u32>,
}

impl User {
    /// Whose rights a process of this user has.
    pub fn identity(&self) -> Identity {
        Identity { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

/// A program that runs `-c COMMAND`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shell {
    pub program: PathBuf,
    /// The name it is called by, which tells BusyBox what to be.
    pub name: OsString,
}

/// Finds a user of this image. `root` exists even where no passwd file does.
pub(crate) fn lookup(name: &str) -> Option<User> {
    let root = || Account {
        name: "root".to_owned(),
        uid: 0,
        gid: 0,
        home: PathBuf::from("/root"),
        shell: String::new(),
    };
    let found = passwd::account(name).or_else(|| (name == "root").then(root));
    let Account { name, uid, gid, home, shell } = found?;
    let groups = passwd::groups_of(&name);
    Some(User { name, uid, gid, home, shell, groups })
}

/// The name of a user, where it has one.
pub(crate) fn name_of(uid: u32) -> Option<String> {
    passwd::account_of(uid).map(|account| account.name)
}

/// The shell that commands of this user run in, or none where the image has none.
pub(crate) fn shell_of(user: &User) -> Option<Shell> {
    let own = Some(user.shell.as_str()).filter(|shell| !shell.is_empty());
    own.into_iter()
        .chain(SHELLS)
        .find(|path| is_executable(path))
        .map(|path| Shell {
            program: PathBuf::from(path),
            name: Path::new(path).file_name().unwrap_or("sh".as_ref()).to_owned(),
        })
        .or_else(|| {
            is_executable(BUSYBOX)
                .then(|| Shell { program: PathBuf::from(BUSYBOX), name: "sh".into() })
        })
}

fn is_executable(path: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
