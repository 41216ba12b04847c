//! Every message with all its parts at their documented bounds at once fits a frame.

#![allow(clippy::unwrap_used, reason = "a test that is surprised should end there")]

use std::collections::BTreeMap;

use kohakuriver_model::bounds::{
    MAX_ENV_BYTES, MAX_KEY_BYTES, MAX_KEYS, MAX_KEYS_BYTES, MAX_PEOPLE, MAX_PEOPLE_KEYS,
    MAX_PEOPLE_KEYS_BYTES, MAX_SPEC_BYTES,
};
use kohakuriver_model::mount::MOST_MOUNTS;
use kohakuriver_model::node::{Gpu, GpuVfio, NumaNode};
use kohakuriver_model::{
    DockerState, FailureCode, GpuRef, ImageSource, InstanceId, InstanceSpec, Intent, Inventory,
    MountWish, NumaPin, Observation, Observed, People, Registry, RepositoryPattern, SshAccess,
    TrustedCa, UserId, VmState,
};
use kohakuriver_runner_link::frame::{MAX_FRAME_BYTES, MAX_SMALL_FRAME_BYTES, encoded_len};
use kohakuriver_runner_link::protocol::{
    Hello, InstanceCommand, InstanceReply, NodeReply, Order, SNAPSHOT_PAGE, Snapshot, StreamOpen,
    StreamOpened, StreamTarget, ToHost, ToRunner,
};
use proptest::prelude::*;

/// A character with the longest JSON: six bytes for one.
const WORST: &str = "\u{1}";
/// The bytes of a frame that a message at its bounds must leave free.
const RESERVE: usize = 64 * 1024;

fn id() -> InstanceId {
    InstanceId::from_u64(u64::MAX >> 1)
}

fn keys(count: usize, bytes: usize) -> Vec<String> {
    vec!["k".repeat(bytes / count); count]
}

/// The shortest names make the most of what JSON adds to each.
fn many_variables() -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut bytes = 0;
    for number in 0.. {
        let (name, value) = (format!("{number:x}"), WORST.to_owned());
        bytes += name.len() + value.len();
        if bytes > MAX_ENV_BYTES {
            break;
        }
        env.insert(name, value);
    }
    env
}

fn largest_spec(env: BTreeMap<String, String>) -> InstanceSpec {
    let ssh = SshAccess {
        authorized_keys: keys(MAX_KEYS, MAX_KEYS_BYTES),
        trusted_ca: Some(TrustedCa {
            key: "k".repeat(MAX_KEY_BYTES),
            principal: TrustedCa::principal_of(id()),
        }),
        people_keys: keys(MAX_PEOPLE_KEYS, MAX_PEOPLE_KEYS_BYTES),
        people: Some(People((0..MAX_PEOPLE as i64).map(|n| UserId(i64::MAX - n)).collect())),
    };
    let mount = |n: usize| -> MountWish {
        let (source, target) = ("\"".repeat(1000), "\\".repeat(1000));
        format!("/{source}:/{n:02}{target}").parse().unwrap()
    };
    InstanceSpec {
        name: Some("n".repeat(63).parse().unwrap()),
        cores: u32::MAX,
        memory_bytes: Some(u64::MAX),
        ssh: Some(ssh),
        env,
        gpus: (0..64).map(|index| GpuRef { index, uuid: "u".repeat(64) }).collect(),
        numa: Some(NumaPin { node: u32::MAX, cpus: (0..8192).collect() }),
        vm_disk_bytes: Some(u64::MAX),
        mounts: (0..MOST_MOUNTS).map(mount).collect(),
        ..InstanceSpec::new(ImageSource::Registry { reference: "r".repeat(255) })
    }
}

#[test]
fn largest_order_fits_a_frame() {
    let one_value = BTreeMap::from([("A".to_owned(), WORST.repeat(MAX_ENV_BYTES - 1))]);
    for env in [many_variables(), one_value] {
        let spec = largest_spec(env);
        let bytes = encoded_len(&spec);
        assert!(bytes <= MAX_SPEC_BYTES, "{bytes}");
        let intent = Intent { generation: u64::MAX, ..Intent::created() };
        let order = ToRunner::Order(Box::new(Order { task_id: id(), intent, spec }));
        assert!(encoded_len(&order) + RESERVE <= MAX_FRAME_BYTES, "{}", encoded_len(&order));
    }
}

#[test]
fn specification_at_its_bound_fits_with_its_envelope() {
    let intent = Intent { generation: u64::MAX, ..Intent::created() };
    let spec = InstanceSpec::new(ImageSource::Default);
    let order = ToRunner::Order(Box::new(Order { task_id: id(), intent, spec }));
    assert!(encoded_len(&order) + MAX_SPEC_BYTES + RESERVE <= MAX_FRAME_BYTES);
}

fn texts() -> impl Strategy<Value = String> {
    let long = (any::<char>(), 1usize..20_000).prop_map(|(c, n)| c.to_string().repeat(n));
    prop_oneof![any::<String>(), long, Just(WORST.repeat(20_000)), Just("\"".repeat(20_000))]
}

fn registry(at: usize) -> Registry {
    format!("{at}.{}:65535", "a".repeat(240)).parse().unwrap()
}

/// As a hostile node sends it.
fn repository(at: usize, text: &str) -> RepositoryPattern {
    let good = format!("{}/{at}", "a".repeat(240));
    let text = if at.is_multiple_of(2) { good } else { text.to_owned() };
    serde_json::from_value(serde_json::Value::String(format!("docker.io/{text}"))).unwrap()
}

/// An inventory with every text at its longest.
fn largest_inventory(text: &str) -> Inventory {
    let identity = |n: u32| format!("{n:0>60}");
    let gpu = |index: u32| Gpu {
        index,
        uuid: identity(index),
        name: text.to_owned(),
        pci_address: text.to_owned(),
        memory_bytes: u64::MAX,
        numa: Some(u32::MAX),
        no_container: Some(text.to_owned()),
        vfio: GpuVfio {
            group: Some(u32::MAX),
            peers: (0..500).map(identity).collect(),
            refusal: Some(text.to_owned()),
            vendor_id: text.to_owned(),
            device_id: text.to_owned(),
            audio: Some(text.to_owned()),
            bound: false,
        },
    };
    let numa = |id| NumaNode { id, cpus: (0..1000).collect(), memory_bytes: u64::MAX };
    let path = |n: u32| format!("/{n}{}", text.chars().take(300).collect::<String>());
    Inventory {
        numa: (0..500).map(numa).collect(),
        gpus: (0..100).map(gpu).collect(),
        docker_warning: Some(text.to_owned()),
        allowed_mounts: (0..500).map(path).collect(),
        allowed_registries: Some((0..500).map(registry).collect()),
        local_images: (0..500).map(|at| repository(at, text)).collect(),
        vm: VmState::Unavailable { reason: text.to_owned() },
        kernel: text.to_owned(),
        os: text.to_owned(),
        ..Inventory::of(u32::MAX, u64::MAX, DockerState::Unavailable { reason: text.to_owned() })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn bounded_reports_fit_a_small_frame(text in texts()) {
        let code = FailureCode::Internal;
        let states = [
            Observed::Provisioning { step: text.clone(), percent: Some(u8::MAX) },
            Observed::Failed { code, message: text.clone(), hint: Some(text.clone()) },
            Observed::Blocked { code, message: text.clone(), hint: Some(text.clone()) },
        ];
        for state in states {
            let observation = Observation {
                generation: u64::MAX,
                state,
                ssh_host_key: Some(text.clone()),
                warning: Some(text.clone()),
                address: None,
            };
            let report = ToHost::Observation { task_id: id(), observation: observation.bounded() };
            prop_assert!(encoded_len(&report) <= MAX_SMALL_FRAME_BYTES);
        }
        prop_assert!(encoded_len(&StreamOpened::refused(text)) <= MAX_SMALL_FRAME_BYTES);
    }

    #[test]
    fn bounded_inventory_fits_a_frame(text in texts()) {
        let inventory = largest_inventory(&text).bounded();
        prop_assert_eq!(&inventory.clone().bounded(), &inventory);
        let hello = ToHost::Hello(Hello {
            oldest_version: 1,
            newest_version: 1,
            runner_version: "1".repeat(256),
            now_ms: i64::MAX,
            inventory,
        });
        let bytes = encoded_len(&hello);
        prop_assert!(bytes + RESERVE <= MAX_FRAME_BYTES, "{bytes}");
    }

    #[test]
    fn pages_of_the_longest_snapshots_fit_a_frame(text in texts(), count in 0usize..400) {
        let snapshot = |tag: usize| Snapshot {
            tag: tag as u64,
            name: Some(text.chars().take(70).collect()),
            message: text.chars().take(3000).collect(),
            size_bytes: u64::MAX,
            own_bytes: u64::MAX,
            in_use: false,
        };
        let all: Vec<_> = (0..count).map(snapshot).collect();
        let (mut seen, mut before, mut more) = (Vec::new(), None, true);
        while more {
            let outside = vec![text.clone(); 100];
            let page = InstanceReply::page(all.clone(), before).with_outside(outside);
            let bytes = encoded_len(&ToHost::InstanceReply { request: u64::MAX, answer: page.clone() });
            prop_assert!(bytes + RESERVE <= MAX_FRAME_BYTES, "{bytes}");
            let InstanceReply::Snapshots { snapshots, more: others, .. } = page else { unreachable!() };
            prop_assert!(snapshots.len() <= SNAPSHOT_PAGE);
            seen.extend(snapshots.iter().map(|one| one.tag));
            (before, more) = (seen.last().copied(), others);
        }
        let newest_first: Vec<u64> = (0..count as u64).rev().collect();
        prop_assert_eq!(seen, newest_first);
    }

    #[test]
    fn failures_in_place_of_replies_fit_a_small_frame(text in texts(), bytes: usize) {
        let code = FailureCode::Internal;
        let failed = InstanceReply::Failed { code, message: text.clone(), hint: Some(text.clone()) };
        let of_node = NodeReply::Failed { code, message: text.clone(), hint: Some(text) };
        for length in [
            encoded_len(&failed.bounded()),
            encoded_len(&of_node.bounded()),
            encoded_len(&InstanceReply::too_large(bytes)),
            encoded_len(&NodeReply::too_large(bytes)),
        ] {
            prop_assert!(length <= MAX_SMALL_FRAME_BYTES);
        }
    }
}

#[test]
fn commands_and_stream_opens_fit_a_small_frame() {
    let command = InstanceCommand::CreateSnapshot {
        name: Some("n".repeat(63)),
        message: Some("\u{10ffff}".repeat(500)),
    };
    let ask = ToRunner::InstanceCommand { request: u64::MAX, task_id: id(), command };
    assert!(encoded_len(&ask) <= MAX_SMALL_FRAME_BYTES);
    let open = StreamOpen { task_id: id(), target: StreamTarget::Tcp { port: u16::MAX } };
    assert!(encoded_len(&open) <= MAX_SMALL_FRAME_BYTES);
}

#[test]
fn snapshot_lists_of_the_first_build_are_read() {
    let all = InstanceCommand::ListSnapshots { before: None };
    let text = r#"{"question":"list_snapshots"}"#;
    assert_eq!(serde_json::from_str::<InstanceCommand>(text).unwrap(), all);
    assert_eq!(serde_json::to_string(&all).unwrap(), text);
    let answer: InstanceReply =
        serde_json::from_str(r#"{"answer":"snapshots","snapshots":[]}"#).unwrap();
    assert_eq!(
        answer,
        InstanceReply::Snapshots { snapshots: Vec::new(), more: false, outside: Vec::new() }
    );
}
