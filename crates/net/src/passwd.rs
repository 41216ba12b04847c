//! Users and groups by `/etc/passwd` and `/etc/group`. A static executable must not ask the C
//! library: its `getpwuid` loads modules of the machine's own one and crashes there.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::files::read_bounded;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    /// As written, perhaps empty.
    pub shell: String,
}

/// The account of this name.
pub fn account(name: &str) -> Option<Account> {
    find(&read_bounded(PASSWD)?, |account| account.name == name)
}

/// The first account with this id. An account that only a directory service knows has none.
pub fn account_of(uid: u32) -> Option<Account> {
    find(&read_bounded(PASSWD)?, |account| account.uid == uid)
}

/// The groups that list the account.
pub fn groups_of(name: &str) -> Vec<u32> {
    read_bounded(GROUP).map_or_else(Vec::new, |text| find_groups(&text, name))
}

/// The accounts' names by id, the first for each.
pub fn user_names() -> HashMap<u32, String> {
    read_bounded(PASSWD).map_or_else(HashMap::new, |text| names_by_id(&text))
}

/// The groups' names by id, the first for each.
pub fn group_names() -> HashMap<u32, String> {
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

fn find(passwd: &str, is_wanted: impl Fn(&Account) -> bool) -> Option<Account> {
    passwd.lines().filter_map(parse).find(is_wanted)
}

fn parse(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let _password = fields.next()?;
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let _comment = fields.next()?;
    let home = match fields.next()? {
        "" => "/",
        home => home,
    };
    let shell = fields.next().unwrap_or_default().trim().to_owned();
    Some(Account { name, uid, gid, home: PathBuf::from(home), shell })
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
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken:x:abc:1::/:\n\
                        ann:x:1000:1001:Ann,,,:/home/ann:/bin/zsh\nbare:x:7:8::/bare\n+::::::\n";

    fn named(name: &str) -> Option<Account> {
        find(TEXT, |account| account.name == name)
    }

    #[test]
    fn account_is_found_with_all_fields_by_name_and_id() {
        let ann = named("ann").unwrap();
        assert_eq!((ann.uid, ann.gid), (1000, 1001));
        assert_eq!(ann.home, Path::new("/home/ann"));
        assert_eq!(ann.shell, "/bin/zsh");
        assert_eq!(find(TEXT, |account| account.uid == 1000), Some(ann));
        assert_eq!(find(TEXT, |account| account.uid == 1001), None);
    }

    #[test]
    fn account_without_a_shell_field_is_found() {
        assert_eq!(named("bare").unwrap().shell, "");
    }

    #[test]
    fn broken_lines_and_unknown_names_are_no_account() {
        for name in ["broken", "nobody", "", "+", "# a comment"] {
            assert_eq!(named(name), None, "{name}");
        }
    }

    #[test]
    fn supplementary_groups_are_those_that_list_the_account() {
        let text = "root:x:0:\nvideo:x:44:ann,bob\naudio:x:29:bob\nbad\ndocker:x:999:ann";
        assert_eq!(find_groups(text, "ann"), [44, 999]);
    }

    proptest! {
        #[test]
        fn passwd_of_any_text_is_read(text in "\\PC{0,300}", name in "[a-z:]{0,8}") {
            let _ = find(&text, |account| account.name == name);
            let _ = find_groups(&text, &name);
            let _ = names_by_id(&text);
        }
    }
}
