//! The table of permissions. Pure, and the only place where they are decided.
//!
//! Acts on the cluster need a role ([`super::routes`]). So does creating an instance: a user, or an
//! operator for an instance with access to its node ([`to_create`]). Acts on an instance also
//! depend on the account's relation to it:
//!
//! ```text
//!  permission owner   manage   use   view   operator   admin
//!  See          x        x      x     x        x         x
//!  Enter        x        x      x     -        -         x     SSH, terminals, forwards, files
//!  Secrets      x        x      -     -        -         x     environment, snapshots' content
//!  Change       x        x      -     -        x         x     start, stop, limits, snapshots
//!  Delete       x        -      -     -        x         x
//!  Share        x        -      -     -        -         x     shares, offers to another owner
//! ```
//!
//! A viewer sees and no more, even an instance that it owns. An operator runs the cluster but has
//! no access to the inside of other accounts' instances; to get in, it needs a share from the owner
//! or an admin. So sharing, giving away and adding an SSH key are not an operator's acts either:
//! the right to grant access would be access. An instance that an account may not see does not
//! exist for it.

use kohakuriver_model::{InstanceSpec, Role, ShareLevel};
use kohakuriver_store::Relation;

/// An act on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    See,
    /// Open a session inside: SSH, terminals, forwards, files.
    Enter,
    /// Read data that may hold passwords: the environment, the contents of snapshots.
    Secrets,
    Change,
    Delete,
    /// Grant or hand over access.
    Share,
}

impl Permission {
    #[cfg(test)]
    pub const ALL: [Self; 6] =
        [Self::See, Self::Enter, Self::Secrets, Self::Change, Self::Delete, Self::Share];
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// The account knows that the instance exists, and may not do this.
    Forbid,
    /// The account must not learn that the instance exists.
    Hide,
}

/// The requirements of one act.
struct Need {
    role: Role,
    /// The lowest share that is enough; `None`: the owner only.
    level: Option<ShareLevel>,
    /// Whether operators may do it to every instance.
    operator: bool,
}

const fn need(permission: Permission) -> Need {
    use ShareLevel::{Manage, Use, View};
    match permission {
        Permission::See => Need { role: Role::Viewer, level: Some(View), operator: true },
        Permission::Enter => Need { role: Role::User, level: Some(Use), operator: false },
        Permission::Secrets => Need { role: Role::User, level: Some(Manage), operator: false },
        Permission::Change => Need { role: Role::User, level: Some(Manage), operator: true },
        Permission::Delete => Need { role: Role::User, level: None, operator: true },
        Permission::Share => Need { role: Role::User, level: None, operator: false },
    }
}

/// Returns the role that may have such an instance created. A privileged one, or one that mounts
/// directories of its node, cannot be permitted by an approval or a group's rule, and the node's
/// owner must allow it as well.
pub fn to_create(spec: &InstanceSpec) -> Role {
    if spec.is_unconfined() { Role::Operator } else { Role::User }
}

/// Decides on one act on one instance.
pub fn on_instance(role: Role, relation: Relation, permission: Permission) -> Verdict {
    let visible = role >= Role::Operator
        || (role >= Role::Viewer && (relation.owner || relation.level.is_some()));
    if !visible {
        return Verdict::Hide;
    }
    let need = need(permission);
    let shared = need.level.is_some_and(|least| relation.level >= Some(least));
    let allowed = role == Role::Admin
        || (role >= need.role
            && (relation.owner || shared || (role == Role::Operator && need.operator)));
    if allowed { Verdict::Allow } else { Verdict::Forbid }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of this module's documentation.
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
    fn code_matches_the_table() {
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
        for (row, permission) in rows.iter().zip(Permission::ALL) {
            assert_eq!(row[0], format!("{permission:?}"));
            for ((role, relation), cell) in columns.iter().zip(&row[1..]) {
                let allowed = on_instance(*role, *relation, permission) == Verdict::Allow;
                assert_eq!(allowed, *cell == "x", "{permission:?} {role} {relation:?}");
            }
        }
    }

    #[test]
    fn access_to_a_node_needs_an_operator() {
        let plain = InstanceSpec::new(kohakuriver_model::ImageSource::Default);
        let mounts = vec!["/data:/data:ro".parse().unwrap()];
        assert_eq!(to_create(&plain), Role::User);
        assert_eq!(to_create(&InstanceSpec { privileged: true, ..plain.clone() }), Role::Operator);
        assert_eq!(to_create(&InstanceSpec { mounts, ..plain }), Role::Operator);
    }

    #[test]
    fn strangers_learn_nothing_and_viewers_only_look() {
        for permission in Permission::ALL {
            for role in [Role::Anony, Role::Viewer, Role::User] {
                assert_eq!(on_instance(role, Relation::default(), permission), Verdict::Hide);
            }
            let everything = relation(true, Some(ShareLevel::Manage));
            assert_eq!(on_instance(Role::Anony, everything, permission), Verdict::Hide);
            let viewer = on_instance(Role::Viewer, everything, permission);
            assert_eq!(viewer == Verdict::Allow, permission == Permission::See);
        }
    }

    #[test]
    fn higher_role_or_share_never_permits_less() {
        let levels =
            [None, Some(ShareLevel::View), Some(ShareLevel::Use), Some(ShareLevel::Manage)];
        let rank = |verdict| match verdict {
            Verdict::Hide => 0,
            Verdict::Forbid => 1,
            Verdict::Allow => 2,
        };
        for permission in Permission::ALL {
            for owner in [false, true] {
                for roles in Role::ALL.windows(2) {
                    for level in levels {
                        let (less, more) = (roles[0], roles[1]);
                        let at = |role| rank(on_instance(role, relation(owner, level), permission));
                        assert!(at(less) <= at(more), "{permission:?} {less} {more} {level:?}");
                    }
                }
                for role in Role::ALL {
                    for pair in levels.windows(2) {
                        let at =
                            |level| rank(on_instance(role, relation(owner, level), permission));
                        assert!(at(pair[0]) <= at(pair[1]), "{permission:?} {role} {pair:?}");
                    }
                }
            }
        }
    }
}
