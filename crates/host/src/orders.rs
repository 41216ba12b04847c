//! Builds the command for a node from an instance's row.
//!
//! ```text
//!  row --> keys without long comments --> fits a message?  yes --> whole
//!                                          no, should be down  --> reduced: no keys, no environment
//!                                          no, should be up    --> too large: an error on the VPS
//! ```
//!
//! The store refuses a specification that is too large ([`MAX_SPEC_BYTES`]), so only rows from
//! before that bound fail the first check. Such a row affects its own VPS, never the node: it can
//! be stopped and deleted, and starts again once it has fewer keys.

use kohakuriver_model::InstanceSpec;
use kohakuriver_model::bounds::MAX_SPEC_BYTES;
use kohakuriver_runner_link::frame::{MAX_FRAME_BYTES, encoded_len};
use kohakuriver_runner_link::protocol::{Order, ToRunner};
use kohakuriver_store::InstanceRow;

use crate::instances::keys;

/// A command, as far as it can be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    Whole(ToRunner),
    /// Without keys and environment, which a command to end an instance does not need.
    Reduced(ToRunner),
    /// Its encoded length in bytes.
    TooLarge(usize),
}

/// Builds the command of a row.
pub fn prepare(row: &InstanceRow) -> Prepared {
    let whole = message(row, leaned(&row.spec));
    if estimate_bytes(&row.spec) <= MAX_SPEC_BYTES {
        return Prepared::Whole(whole);
    }
    match encoded_len(&whole) {
        bytes if bytes <= MAX_FRAME_BYTES => Prepared::Whole(whole),
        bytes if row.intent.desired.is_up() => Prepared::TooLarge(bytes),
        _ => Prepared::Reduced(message(row, reduced(&row.spec))),
    }
}

/// Returns the length of a command that should be sent and cannot.
pub fn excess(row: &InstanceRow) -> Option<usize> {
    if estimate_bytes(&row.spec) <= MAX_SPEC_BYTES {
        return None;
    }
    match prepare(row) {
        Prepared::TooLarge(bytes) => Some(bytes),
        Prepared::Whole(_) | Prepared::Reduced(_) => None,
    }
}

fn message(row: &InstanceRow, spec: InstanceSpec) -> ToRunner {
    ToRunner::Order(Box::new(Order { task_id: row.id, intent: row.intent, spec }))
}

fn leaned(spec: &InstanceSpec) -> InstanceSpec {
    let mut spec = spec.clone();
    if let Some(access) = &mut spec.ssh {
        for line in access.authorized_keys.iter_mut().chain(&mut access.people_keys) {
            *line = keys::leaned(line);
        }
    }
    spec
}

fn reduced(spec: &InstanceSpec) -> InstanceSpec {
    let mut spec = InstanceSpec { env: Default::default(), ..spec.clone() };
    if let Some(access) = &mut spec.ssh {
        access.authorized_keys.clear();
        access.people_keys.clear();
        access.people = None;
    }
    spec
}

/// Returns an upper bound of the encoded length, quickly: most rows have a few hundred bytes.
fn estimate_bytes(spec: &InstanceSpec) -> usize {
    // A control character takes six bytes in JSON; quotes, separators and numbers the rest.
    let text = |text: &String| 6 * text.len() + 32;
    let env: usize = spec.env.iter().map(|(name, value)| text(name) + text(value)).sum();
    let access = spec.ssh.as_ref().map_or(0, |access| {
        let keys = access.authorized_keys.iter().chain(&access.people_keys);
        keys.map(text).sum::<usize>() + access.people.as_ref().map_or(0, |p| p.0.len() * 24)
    });
    let mounts = spec.mounts.len() * 16 * 1024;
    let cards = spec.gpus.iter().map(|gpu| text(&gpu.uuid)).sum::<usize>();
    let cpus = spec.numa.as_ref().map_or(0, |pin| pin.cpus.len() * 12);
    16 * 1024 + env + access + mounts + cards + cpus
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::{
        ImageSource, InstanceId, Intent, NodeId, People, SshAccess, TrustedCa, UserId,
    };
    use proptest::prelude::*;

    use super::*;

    fn row(spec: InstanceSpec, intent: Intent) -> InstanceRow {
        InstanceRow {
            id: InstanceId::from_u64(7),
            node_id: NodeId::new("n-1".to_owned()),
            node_name: "node1".parse().unwrap(),
            spec,
            intent,
            intent_ms: 0,
            observation: None,
            revision: 0,
            created_ms: 0,
            ssh_port: None,
            holds_compute: true,
            owner: None,
            approval: None,
        }
    }

    fn with_keys(keys: Vec<String>) -> InstanceSpec {
        let ssh = Some(SshAccess::with_keys(keys));
        InstanceSpec { ssh, ..InstanceSpec::new(ImageSource::Default) }
    }

    #[test]
    fn long_comments_of_old_rows_are_dropped() {
        let keys = (0..100).map(|n| format!("ssh-ed25519 AAAA{n} {}", "x".repeat(60_000)));
        let Prepared::Whole(order) = prepare(&row(with_keys(keys.collect()), Intent::created()))
        else {
            panic!("it is not whole");
        };
        assert!(encoded_len(&order) < 20_000);
    }

    #[test]
    fn oversized_row_can_be_ended_but_not_started() {
        let keys = (0..1000).map(|n| format!("ssh-rsa {}{n}", "A".repeat(2700))).collect();
        let up = row(with_keys(keys), Intent::created());
        let Prepared::TooLarge(bytes) = prepare(&up) else { panic!("it fits") };
        assert_eq!(excess(&up), Some(bytes));
        for intent in [up.intent.stop(), up.intent.kill(), up.intent.delete()] {
            let down = InstanceRow { intent, ..up.clone() };
            let Prepared::Reduced(order) = prepare(&down) else { panic!("{intent:?}") };
            assert!(encoded_len(&order) <= MAX_FRAME_BYTES);
            assert_eq!(excess(&down), None);
        }
    }

    proptest! {
        #[test]
        fn estimated_length_is_never_below_encoded_length(
            env in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..20),
            keys in proptest::collection::vec(any::<String>(), 0..20),
            people in proptest::collection::btree_set(any::<i64>(), 0..50),
        ) {
            let access = SshAccess {
                people: Some(People(people.into_iter().map(UserId).collect())),
                trusted_ca: Some(TrustedCa { key: "k".repeat(100), principal: "vps-7".to_owned() }),
                ..SshAccess::with_keys(keys)
            };
            let spec = InstanceSpec {
                env,
                ssh: Some(access),
                ..InstanceSpec::new(ImageSource::Registry { reference: "r".repeat(255) })
            };
            prop_assert!(estimate_bytes(&spec) >= encoded_len(&spec));
        }
    }
}
