//! Users of the image, from its passwd and group files: a static executable cannot load NSS modules.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::process::Identity;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Far above any real file; a larger one is read in part.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// What a user without a working shell of its own gets, in this order.
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
    let passwd = read_bounded(PASSWD);
    let found = passwd.as_deref().and_then(|text| find_user(text, name));
    let mut user = match found {
        Some(user) => user,
        None if name == "root" => User {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
            home: PathBuf::from("/root"),
            shell: String::new(),
            groups: Vec::new(),
        },
        None => return None,
    };
    user.groups = read_bounded(GROUP).map_or_else(Vec::new, |text| find_groups(&text, name));
    Some(user)
}

/// The name of a user, where it has one.
pub(crate) fn name_of(uid: u32) -> Option<String> {
    find_name(&read_bounded(PASSWD)?, uid)
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

/// The users' names by id, the first for each.
pub(crate) fn user_names() -> HashMap<u32, String> {
    read_bounded(PASSWD).map_or_else(HashMap::new, |text| names_by_id(&text))
}

/// The groups' names by id, the first for each.
pub(crate) fn group_names() -> HashMap<u32, String> {
    read_bounded(GROUP).map_or_else(HashMap::new, |text| names_by_id(&text))
}

/// Both files have the name first and the id third.
fn names_by_id(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(Ok(id))) = (fields.next(), fields.nth(1).map(str::parse)) {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

fn is_executable(path: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn read_bounded(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn find_user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name || name.is_empty() {
            return None;
        }
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _comment = fields.next()?;
        let home = match fields.next()? {
            "" => "/",
            home => home,
        };
        let shell = fields.next().unwrap_or_default().trim().to_owned();
        Some(User {
            name: name.to_owned(),
            uid,
            gid,
            home: PathBuf::from(home),
            shell,
            groups: Vec::new(),
        })
    })
}

fn find_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn find_groups(group: &str, name: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let gid = fields.nth(2)?.parse().ok()?;
            let mut members = fields.next()?.split(',');
            members.any(|member| member.trim() == name).then_some(gid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken:x:abc:1::/:\n\
                        ann:x:1000:1001:Ann,,,:/home/ann:/bin/zsh\nbare:x:7:8::/bare\n+::::::\n";

    #[test]
    fn a_user_is_found_with_all_fields() {
        let ann = find_user(TEXT, "ann").unwrap();
        assert_eq!((ann.uid, ann.gid), (1000, 1001));
        assert_eq!(ann.home, Path::new("/home/ann"));
        assert_eq!(ann.shell, "/bin/zsh");
    }

    #[test]
    fn a_user_is_also_found_by_number() {
        assert_eq!(find_name(TEXT, 1000).as_deref(), Some("ann"));
        assert_eq!(find_name(TEXT, 1001), None);
    }

    #[test]
    fn a_line_without_a_shell_field_is_still_a_user() {
        assert_eq!(find_user(TEXT, "bare").unwrap().shell, "");
    }

    #[test]
    fn broken_lines_and_unknown_names_are_nobody() {
        for name in ["broken", "nobody", "", "+", "# a comment"] {
            assert_eq!(find_user(TEXT, name), None, "{name}");
        }
    }

    #[test]
    fn supplementary_groups_are_those_that_list_the_user() {
        let text = "root:x:0:\nvideo:x:44:ann,bob\naudio:x:29:bob\nbad\ndocker:x:999:ann";
        assert_eq!(find_groups(text, "ann"), [44, 999]);
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(text in "\\PC{0,300}", name in "[a-z:]{0,8}") {
            let _ = find_user(&text, &name);
            let _ = find_groups(&text, &name);
        }
    }
}
