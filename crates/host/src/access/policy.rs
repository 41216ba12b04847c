//! The table: who may do what. Pure, and the only place where it is decided.
//!
//! Acts on the cluster ask for a role ([`super::routes`]), and so does making an instance: a user,
//! for one that reaches into its node ([`to_create`]) an operator. Acts on an instance ask what somebody is to it as well:
//!
//! ```text
//!  wish       owner   manage   use   view   operator   admin
//!  See          x        x      x     x        x         x
//!  Enter        x        x      x     -        -         x     SSH, terminals, forwards, files
//!  Secrets      x        x      -     -        -         x     environment, snapshots' content
//!  Change       x        x      -     -        x         x     start, stop, limits, snapshots
//!  Delete       x        -      -     -        x         x
//!  Share        x        -      -     -        -         x     shares, offers to another owner
//! ```
//!
//! A viewer sees, and no more, whatever is shared with or owned by them. An operator runs the
//! cluster but has no business inside other people's instances; one who must get in is given a
//! share by its owner or an admin. So sharing and giving are not an operator's to do, and neither
//! is adding an SSH key: the right to grant access would be access. What somebody may not see does
//! not exist for them.

use kohakuriver_model::{InstanceSpec, Role, ShareLevel};
use kohakuriver_store::Relation;

/// What somebody wants with an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    See,
    /// Get inside: SSH, terminals, forwards, files.
    Enter,
    /// Read what may hold passwords: its environment, the contents of its snapshots.
    Secrets,
    Change,
    Delete,
    /// Let others have it.
    Share,
}

impl Permission {
    #[cfg(test)]
    pub const ALL: [Self; 6] =
        [Self::See, Self::Enter, Self::Secrets, Self::Change, Self::Delete, Self::Share];
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// They know that it is there, and may not do this.
    Forbid,
    /// For them there is no such thing.
    Hide,
}

/// What an act on an instance asks for.
struct Need {
    role: Role,
    /// The least share that is enough; `None`: only the owner's.
    level: Option<ShareLevel>,
    /// Whether operators may do it to anybody's.
    operator: bool,
}

const fn need(wish: Permission) -> Need {
    use ShareLevel::{Manage, Use, View};
    match wish {
        Permission::See => Need { role: Role::Viewer, level: Some(View), operator: true },
        Permission::Enter => Need { role: Role::User, level: Some(Use), operator: false },
        Permission::Secrets => Need { role: Role::User, level: Some(Manage), operator: false },
        Permission::Change => Need { role: Role::User, level: Some(Manage), operator: true },
        Permission::Delete => Need { role: Role::User, level: None, operator: true },
        Permission::Share => Need { role: Role::User, level: None, operator: false },
    }
}

/// Who may have such an instance made. One that is privileged, or sees directories of its node, is
/// nothing that an approval or a group's rule lets others have; the node's owner has a say besides.
pub fn to_create(spec: &InstanceSpec) -> Role {
    if spec.is_unconfined() { Role::Operator } else { Role::User }
}

/// Decides on an act on one instance.
pub fn on_instance(role: Role, relation: Relation, wish: Permission) -> Verdict {
    let visible = role >= Role::Operator
        || (role >= Role::Viewer && (relation.owner || relation.level.is_some()));
    if !visible {
        return Verdict::Hide;
    }
    let need = need(wish);
    let shared = need.level.is_some_and(|least| relation.level >= Some(least));
    let allowed = role == Role::Admin
        || (role >= need.role
            && (relation.owner || shared || (role == Role::Operator && need.operator)));
    if allowed { Verdict::Allow } else { Verdict::Forbid }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of this module's text, as people read it.
    const TABLE: &str = "
        See          x        x      x     x        x         x
        Enter        x        x      x     -        -         x
        Secrets      x        x      -     -        -         x
        Change       x        x      -     -        x         x
        Delete       x        -      -     -        x         x
        Share        x        -      -     -        -         x";

    fn relation(owner: bool, level: Option<ShareLevel>) -> Relation {
        Relation { owner, level }
    }

    #[test]
    fn the_code_says_what_the_table_says() {
        let columns = [
            (Role::User, relation(true, None)),
            (Role::User, relation(false, Some(ShareLevel::Manage))),
            (Role::User, relation(false, Some(ShareLevel::Use))),
            (Role::User, relation(false, Some(ShareLevel::View))),
            (Role::Operator, relation(false, None)),
            (Role::Admin, relation(false, None)),
        ];
        let rows: Vec<Vec<&str>> = TABLE
            .lines()
            .map(|line| line.split_whitespace().collect())
            .filter(|row: &Vec<&str>| !row.is_empty())
            .collect();
        assert_eq!(rows.len(), Permission::ALL.len());
        for (row, wish) in rows.iter().zip(Permission::ALL) {
            assert_eq!(row[0], format!("{wish:?}"));
            for ((role, relation), cell) in columns.iter().zip(&row[1..]) {
                let allowed = on_instance(*role, *relation, wish) == Verdict::Allow;
                assert_eq!(allowed, *cell == "x", "{wish:?} {role} {relation:?}");
            }
        }
    }

    #[test]
    fn what_reaches_into_a_node_is_for_operators() {
        let plain = InstanceSpec::new(kohakuriver_model::ImageSource::Default);
        let mounts = vec!["/data:/data:ro".parse().unwrap()];
        assert_eq!(to_create(&plain), Role::User);
        assert_eq!(to_create(&InstanceSpec { privileged: true, ..plain.clone() }), Role::Operator);
        assert_eq!(to_create(&InstanceSpec { mounts, ..plain }), Role::Operator);
    }

    #[test]
    fn strangers_learn_nothing_and_viewers_only_look() {
        for wish in Permission::ALL {
            for role in [Role::Anony, Role::Viewer, Role::User] {
                assert_eq!(on_instance(role, Relation::default(), wish), Verdict::Hide);
            }
            let everything = relation(true, Some(ShareLevel::Manage));
            assert_eq!(on_instance(Role::Anony, everything, wish), Verdict::Hide);
            let viewer = on_instance(Role::Viewer, everything, wish);
            assert_eq!(viewer == Verdict::Allow, wish == Permission::See);
        }
    }

    #[test]
    fn more_role_and_more_share_never_mean_less() {
        let levels =
            [None, Some(ShareLevel::View), Some(ShareLevel::Use), Some(ShareLevel::Manage)];
        let rank = |verdict| match verdict {
            Verdict::Hide => 0,
            Verdict::Forbid => 1,
            Verdict::Allow => 2,
        };
        for wish in Permission::ALL {
            for owner in [false, true] {
                for roles in Role::ALL.windows(2) {
                    for level in levels {
                        let (less, more) = (roles[0], roles[1]);
                        let at = |role| rank(on_instance(role, relation(owner, level), wish));
                        assert!(at(less) <= at(more), "{wish:?} {less} {more} {level:?}");
                    }
                }
                for role in Role::ALL {
                    for pair in levels.windows(2) {
                        let at = |level| rank(on_instance(role, relation(owner, level), wish));
                        assert!(at(pair[0]) <= at(pair[1]), "{wish:?} {role} {pair:?}");
                    }
                }
            }
        }
    }
}
