//! Builds the request that creates a container. Pure.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, RestartPolicy,
    RestartPolicyNameEnum,
};
use kohakuriver_model::{GpuRef, MountWish};
use kohakuriver_runner_link::protocol::Order;

use super::DockerConfig;
use super::own_files::{FILES, OwnFiles};
use crate::agent_files::hostname;
use crate::layout::{AGENT_NAME, IN_BIN, IN_ETC, IN_RUN, IN_SHARED};

pub const LABEL_MANAGED: &str = "kohakuriver.managed";
pub const LABEL_TASK: &str = "kohakuriver.task_id";
pub const LABEL_NODE: &str = "kohakuriver.node";
/// The `disk_generation` the container was made for.
pub const LABEL_DISK: &str = "kohakuriver.disk_generation";
const LABEL_TYPE: &str = "kohakuriver.task_type";
const LABEL_NAME: &str = "kohakuriver.name";
/// Docker's 64 MiB make PyTorch's data loaders fail; memory used there counts to the limit anyway.
const SHM_BYTES: u64 = 1 << 30;
const PROPAGATION: MountBindOptionsPropagationEnum = MountBindOptionsPropagationEnum::RPRIVATE;
/// The capabilities of root in a VPS, independent of the engine's defaults. docs/concepts/containment.md has
/// the reason for each. Docker's default `MKNOD` is not among them.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

pub fn body(config: &DockerConfig, order: &Order, image: &str) -> ContainerCreateBody {
    let spec = &order.spec;
    let id = order.task_id;
    let labels = HashMap::from([
        (LABEL_MANAGED.to_owned(), "true".to_owned()),
        (LABEL_TASK.to_owned(), id.to_string()),
        (LABEL_TYPE.to_owned(), "vps".to_owned()),
        (LABEL_NODE.to_owned(), config.node.to_string()),
        (LABEL_DISK.to_owned(), order.intent.disk_generation.to_string()),
        // Also where it has none: an image made of another instance may bring that one's.
        (LABEL_NAME.to_owned(), spec.name.as_ref().map(ToString::to_string).unwrap_or_default()),
    ]);
    let env = spec
        .env
        .iter()
        .filter(|(key, value)| is_variable(key) && !value.contains('\0'))
        .map(|(key, value)| format!("{key}={value}"))
        .chain([format!("KOHAKURIVER_TASK_ID={id}")])
        .collect();
    ContainerCreateBody {
        image: Some(image.to_owned()),
        hostname: Some(hostname(spec, id)),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(vec![format!("{IN_BIN}/{AGENT_NAME}"), "agent".to_owned()]),
        // An image's own command would become the agent's arguments.
        cmd: Some(Vec::new()),
        env: Some(env),
        labels: Some(labels),
        stop_signal: Some("SIGTERM".to_owned()),
        // The image's would be run for ever, for a service that nobody has started.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        host_config: Some(host_config(config, order)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(config: &DockerConfig, order: &Order) -> HostConfig {
    let (spec, layout, id) = (&order.spec, &config.layout, order.task_id);
    let memory = spec.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let shm = spec.memory_bytes.map_or(SHM_BYTES, |bytes| (bytes / 2).min(SHM_BYTES));
    HostConfig {
        nano_cpus: (spec.cores > 0).then(|| i64::from(spec.cores) * 1_000_000_000),
        memory,
        memory_swap: memory,
        pids_limit: Some(i64::from(spec.pids_limit)),
        network_mode: Some(config.containers.network.to_string()),
        ipc_mode: Some("private".to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(ToOwned::to_owned).to_vec()),
        // Said or not, the engine's seccomp and AppArmor profiles and masks on /proc hold.
        security_opt: config
            .containers
            .no_new_privileges
            .then(|| vec!["no-new-privileges:true".to_owned()]),
        cpuset_cpus: spec.numa.as_ref().map(|pin| cpu_list(&pin.cpus)),
        cpuset_mems: spec.numa.as_ref().map(|pin| pin.node.to_string()),
        device_requests: (!spec.gpus.is_empty()).then(|| vec![gpus(&spec.gpus)]),
        shm_size: i64::try_from(shm).ok(),
        privileged: spec.privileged.then_some(true),
        mounts: Some(
            [
                bind(&layout.agent_dir(), IN_BIN, true),
                bind(&layout.etc(id), IN_ETC, true),
                bind(&layout.run(id), IN_RUN, false),
                bind(&layout.shared_data(), IN_SHARED, false),
            ]
            .into_iter()
            .chain(own_files(config, order))
            .chain(spec.mounts.iter().map(extra))
            .collect(),
        ),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        // The agent's own log; bounded, because nobody rotates it.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "5m".to_owned()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        ..HostConfig::default()
    }
}

/// Cards by their own identity: numbers change when one is added or fails.
fn gpus(gpus: &[GpuRef]) -> DeviceRequest {
    DeviceRequest {
        device_ids: Some(gpus.iter().map(|gpu| gpu.uuid.clone()).collect()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    }
}

/// The kernel's list format: `0-3,8`.
fn cpu_list(cpus: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = |(first, last)| {
        if first == last { format!("{first}") } else { format!("{first}-{last}") }
    };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn bind(source: &std::path::Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

/// In place of the engine's, unless an operator has put something else there.
fn own_files(config: &DockerConfig, order: &Order) -> impl Iterator<Item = Mount> {
    let own = OwnFiles::new(config.layout.own(order.task_id));
    let is_free = |target: &str| order.spec.mounts.iter().all(|mount| mount.target() != target);
    FILES
        .into_iter()
        .filter(move |(_, target)| is_free(target))
        .map(move |(file, target)| bind(&own.path(file), target, false))
}

/// Builds a requested mount. Mounts inside its source on the node are not part of it, now or later:
/// the node's owner has allowed a directory, not other filesystems mounted there.
fn extra(mount: &MountWish) -> Mount {
    let alone = MountBindOptions { propagation: Some(PROPAGATION), ..MountBindOptions::default() };
    Mount {
        bind_options: Some(MountBindOptions { non_recursive: Some(true), ..alone }),
        ..bind(Path::new(mount.source()), mount.target(), mount.read_only())
    }
}

fn is_variable(key: &str) -> bool {
    let mut bytes = key.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::{Intent, NumaPin};

    use super::*;
    use crate::backend::docker::ContainerSettings;
    use crate::layout::Layout;
    use crate::plan::tests::order;

    fn sent(order: &Order) -> serde_json::Value {
        sent_with(order, false)
    }

    fn sent_with(order: &Order, no_new_privileges: bool) -> serde_json::Value {
        let config = DockerConfig {
            layout: Layout::new("/data", "/mnt"),
            node: "n1".parse().unwrap(),
            socket: None,
            stop_grace: std::time::Duration::from_secs(1),
            containers: ContainerSettings { no_new_privileges, ..ContainerSettings::default() },
        };
        serde_json::to_value(body(&config, order, "image")).unwrap()
    }

    #[test]
    fn gpus_are_asked_for_by_their_own_identity() {
        let mut order = order(Intent::created());
        assert!(sent(&order)["HostConfig"]["DeviceRequests"].is_null());
        order.spec.gpus = vec![GpuRef { index: 1, uuid: "GPU-5c1b".to_owned() }];
        let expected = serde_json::json!(
            [{"DeviceIDs": ["GPU-5c1b"], "Capabilities": [["gpu"]]}]
        );
        assert_eq!(sent(&order)["HostConfig"]["DeviceRequests"], expected);
    }

    #[test]
    fn container_has_nothing_of_the_node_and_only_reviewed_rights() {
        let order = order(Intent::created());
        let host = sent(&order)["HostConfig"].clone();
        assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
        let added = host["CapAdd"].as_array().unwrap();
        for never in ["MKNOD", "SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO"] {
            assert!(!added.contains(&never.into()), "{never}");
        }
        assert_eq!(
            (&host["NetworkMode"], &host["IpcMode"]),
            (&"kohakuriver".into(), &"private".into())
        );
        for absent in
            ["Privileged", "PidMode", "UTSMode", "UsernsMode", "Devices", "Binds", "SecurityOpt"]
        {
            assert!(host[absent].is_null(), "{absent}: {}", host[absent]);
        }
        let mounts = host["Mounts"].as_array().unwrap();
        let sources: Vec<_> =
            mounts.iter().map(|mount| mount["Source"].as_str().unwrap()).collect();
        let own = format!("/data/instances/{}", order.task_id);
        assert_eq!(
            sources,
            [
                "/data/agent".to_owned(),
                format!("{own}/etc"),
                format!("{own}/run"),
                "/mnt/shared_data".to_owned(),
                format!("{own}/own/hosts"),
                format!("{own}/own/resolv.conf"),
                format!("{own}/own/hostname"),
            ]
        );
        let strict = sent_with(&order, true);
        assert_eq!(
            strict["HostConfig"]["SecurityOpt"],
            serde_json::json!(["no-new-privileges:true"])
        );
    }

    #[test]
    fn extra_permissions_are_added_only_if_requested() {
        let mut order = order(Intent::created());
        order.spec.privileged = true;
        order.spec.mounts = ["/data/sets:/sets:ro", "/data/hosts:/etc/hosts"]
            .map(|text| text.parse().unwrap())
            .into();
        let host = sent(&order)["HostConfig"].clone();
        assert_eq!(host["Privileged"], true);
        let mounts = host["Mounts"].as_array().unwrap();
        // The second takes the place of our own file.
        assert_eq!(mounts.len(), 8);
        let extra = &mounts[6];
        assert_eq!(
            (&extra["Source"], &extra["Target"], &extra["ReadOnly"]),
            (&"/data/sets".into(), &"/sets".into(), &true.into())
        );
        assert_eq!(extra["BindOptions"]["NonRecursive"], true);
    }

    #[test]
    fn a_numa_node_pins_processors_and_memory() {
        let mut order = order(Intent::created());
        order.spec.cores = 2;
        order.spec.numa = Some(NumaPin { node: 1, cpus: vec![4, 5, 6, 12] });
        let host = &sent(&order)["HostConfig"];
        assert_eq!((&host["CpusetCpus"], &host["CpusetMems"]), (&"4-6,12".into(), &"1".into()));
        assert_eq!(host["NanoCpus"], 2_000_000_000i64);
    }

    #[test]
    fn only_names_of_variables_become_variables() {
        for good in ["A", "_x1", "PATH"] {
            assert!(is_variable(good));
        }
        for bad in ["", "1A", "A B", "A=B", "A-B", "A\0"] {
            assert!(!is_variable(bad), "{bad:?}");
        }
    }
}
