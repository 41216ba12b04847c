//! Converts rows and runner state to the API's objects.

use std::collections::BTreeMap;

use kohakuriver_api::{CreateVps, GpuInfo, Node, Task, VfioGpu};
use kohakuriver_model::node::Gpu;
use kohakuriver_model::{
    BackendKind, DockerState, FailureCode, GpuRuntime, ImageSource, InstanceSpec, Memory, NodeId,
    Observed, OnOom, Registry, Status, VmState, public_status, status,
};
use kohakuriver_runner_link::frame::MAX_FRAME_BYTES;
use kohakuriver_store::{InstanceRow, NodeRow, RequestRow, RequestState};

use crate::clock::iso;
use crate::host::App;
use crate::orders;

/// The NUMA nodes' facts as a list, beside the entries by number.
const NUMA_NODES: &str = "numa_nodes";

/// Checks whether the node was heard recently enough that its instances keep their status.
pub fn is_node_seen(app: &App, node: &NodeId) -> bool {
    if app.runners.is_online(node) {
        return true;
    }
    // A host that just started gives every runner time to reconnect.
    let seen_ms =
        app.runners.seen(node).map_or(0, |seen| seen.steady_ms).max(app.started.steady_ms);
    let patience_ms = i64::try_from(app.config.lost_after.as_millis()).unwrap_or(i64::MAX);
    app.clock.steady_ms() - seen_ms < patience_ms
}

pub fn status_of(app: &App, row: &InstanceRow) -> Status {
    public_status(&row.intent, row.observation.as_ref(), is_node_seen(app, &row.node_id))
}

/// Returns a revision that grows with every change of the task, also those in memory only.
pub fn revision(app: &App, row: &InstanceRow) -> u64 {
    const IN_MEMORY: u64 = 1 << 32;
    row.revision
        .saturating_mul(IN_MEMORY)
        .saturating_add(app.runners.mark(row.id, &row.node_id) % IN_MEMORY)
}

/// Returns the task object of an instance.
pub fn task(app: &App, row: &InstanceRow) -> Task {
    let status = status_of(app, row);
    let mut task = Task {
        task_id: row.id.to_string(),
        status: status.to_string(),
        desired: json_text(row.intent.desired).unwrap_or_default(),
        assigned_node: Some(row.node_name.to_string()),
        ssh_port: Some(row.ssh_port.map_or(0, u32::from)),
        submitted_at: Some(iso(row.created_ms)),
        revision: revision(app, row),
        ..of_spec(&row.spec)
    };
    if let Some(owner) = &row.owner {
        task.owner_id = Some(owner.id.0);
        task.owner_username = Some(owner.username.clone());
    }
    if let Some(approval) = &row.approval {
        task.approval_status = Some("approved".to_owned());
        task.approved_by_id = approval.by_id;
        task.approved_by_username = Some(approval.by.clone());
        task.approved_at = Some(iso(approval.at_ms));
    }
    if let Some(word) = status::transition(&row.intent, row.observation.as_ref()) {
        task.transition = Some(word.to_owned());
        task.transition_since = Some(iso(row.intent_ms));
    }
    set_observation(&mut task, row, status);
    if task.transition.is_some() {
        // An earlier failure says nothing about the work under way.
        (task.error_message, task.error_code, task.error_hint) = (None, None, None);
    }
    if let Some(progress) =
        app.runners.progress(row.id).filter(|p| p.generation >= row.intent.generation)
        && task.transition.is_some()
    {
        task.progress = Some(progress.step);
        task.progress_percent = progress.percent;
        if let Some(trouble) = progress.trouble {
            task.error_message = Some(trouble.message);
            task.error_hint = trouble.hint;
            task.error_code = code_text(trouble.code);
        }
    }
    if let Some(bytes) = orders::excess(row) {
        task.error_message = Some(format!(
            "its specification is too large for its node: {bytes} bytes, at most {MAX_FRAME_BYTES} fit"
        ));
        task.error_code = Some("too_large".to_owned());
        task.error_hint = Some(format!(
            "kohakuriver vps keys list {0}; kohakuriver vps keys remove {0} KEY",
            row.id
        ));
    }
    task
}

/// Returns the fields that follow from the specification alone.
fn of_spec(spec: &InstanceSpec) -> Task {
    let mut task = Task {
        task_type: "vps".to_owned(),
        name: spec.name.as_ref().map(ToString::to_string),
        command: "vps".to_owned(),
        env_vars: spec.env.clone(),
        required_cores: spec.cores,
        required_memory_bytes: spec.memory_bytes,
        required_gpus: spec.gpus.iter().map(|gpu| gpu.index).collect(),
        gpu_uuids: spec.gpus.iter().map(|gpu| gpu.uuid.clone()).collect(),
        target_numa_node_id: spec.numa.as_ref().map(|pin| pin.node),
        from_snapshot: spec.snapshot.map(|from| format!("{}:{}", from.task_id, from.tag)),
        snapshot_on_stop: spec.snapshots.on_stop,
        keep_snapshots: spec.snapshots.keep,
        vps_backend: spec.backend().word().to_owned(),
        docker_privileged: spec.privileged,
        docker_mount_dirs: spec.mounts.iter().map(ToString::to_string).collect(),
        ..Task::default()
    };
    set_backend(&mut task, spec);
    task
}

/// Returns the task object of a request that is not, or never will be, an instance. `spec`: the
/// requested one, where that is still valid.
pub fn request_task(row: &RequestRow, request: Option<(InstanceSpec, CreateVps)>) -> Task {
    let mut task = match request {
        Some((spec, request)) => Task {
            required_gpus: request.required_gpus.clone().unwrap_or_default(),
            // An instance that will have SSH has no port yet.
            ssh_port: if spec.ssh.is_some() { None } else { Some(0) },
            gpu_count: request.gpu_count,
            target_numa_node_id: request.target_numa_node_id,
            requested_node: request.target_hostname.filter(|name| !name.is_empty()),
            from_snapshot: request.from_vps.map(|vps| {
                format!("{vps}:{}", request.from_snapshot.as_deref().unwrap_or("latest"))
            }),
            ..of_spec(&spec)
        },
        None => Task::default(),
    };
    let rejected = row.state == RequestState::Rejected;
    task.task_id = row.id.to_string();
    task.task_type = "vps".to_owned();
    task.owner_id = Some(row.owner.0);
    task.owner_username = Some(row.owner_name.clone());
    task.status = if rejected { Status::Rejected } else { Status::PendingApproval }.to_string();
    task.desired = "running".to_owned();
    task.approval_status = Some(if rejected { "rejected" } else { "pending" }.to_owned());
    task.approved_by_id = row.decided_by_id;
    task.approved_by_username.clone_from(&row.decided_by);
    task.approved_at = row.decided_ms.map(iso);
    task.rejection_reason.clone_from(&row.reason);
    task.submitted_at = Some(iso(row.created_ms));
    task.revision = request_revision(row);
    task
}

/// Returns a revision that the instance made from the request never has.
pub fn request_revision(row: &RequestRow) -> u64 {
    row.revision
}

/// Sets the fields that only containers or only virtual machines have.
fn set_backend(task: &mut Task, spec: &InstanceSpec) {
    (task.container_name, task.docker_image_name) = match &spec.image {
        ImageSource::Registry { reference } => (None, Some(reference.clone())),
        ImageSource::Environment { name } => {
            (Some(name.clone()), Some(format!("kohakuriver/{name}:base")))
        }
        ImageSource::Default => (Some("base".to_owned()), Some("kohakuriver/base:base".to_owned())),
        ImageSource::VmImage { name } => {
            task.vm_image = Some(name.to_string());
            task.vm_disk_size =
                spec.vm_disk_bytes.map(|bytes| Memory::from_bytes(bytes).to_string());
            return;
        }
    };
    task.pids_limit = Some(spec.pids_limit);
    task.on_oom = match spec.on_oom {
        OnOom::End => "end",
        OnOom::KeepRunning => "keep",
    }
    .to_owned();
}

/// Sets the fields of the observation, if it is of the current start.
fn set_observation(task: &mut Task, row: &InstanceRow, status: Status) {
    let Some(seen) = &row.observation else { return };
    task.ssh_host_key.clone_from(&seen.ssh_host_key);
    if seen.generation < row.intent.start_generation {
        return;
    }
    task.warning.clone_from(&seen.warning);
    task.vm_ip = seen.address.map(|address| address.to_string());
    match &seen.state {
        Observed::Running { started_at_ms } | Observed::Paused { started_at_ms } => {
            task.started_at = Some(iso(*started_at_ms));
        }
        Observed::Stopped { exit_code, finished_at_ms, .. } => {
            task.exit_code = *exit_code;
            task.completed_at = Some(iso(*finished_at_ms));
            if status == Status::KilledOom {
                let limit = row.spec.memory_bytes.map_or_else(
                    || "its node's memory".to_owned(),
                    |bytes| format!("its limit of {}", Memory::from_bytes(bytes)),
                );
                task.error_message = Some(format!(
                    "out of memory: it reached {limit}, and the kernel killed one of its processes"
                ));
                task.error_code = Some("out_of_memory".to_owned());
                task.error_hint = Some(format!(
                    "kohakuriver vps update {0} -m MORE, then kohakuriver vps restart {0}",
                    row.id
                ));
            }
            if status == Status::Failed {
                let code = exit_code.map_or("unknown".to_owned(), |code| code.to_string());
                task.error_message = Some(match row.spec.backend() {
                    BackendKind::Docker => {
                        format!("its main process ended with exit code {code}")
                    }
                    BackendKind::Qemu => {
                        "it was shut down from inside, or its QEMU ended".to_owned()
                    }
                });
                task.error_code = Some("ended".to_owned());
                task.error_hint = Some(format!("kohakuriver vps restart {}", row.id));
            }
        }
        Observed::Failed { code, message, hint } => {
            task.error_message = Some(message.clone());
            task.error_hint.clone_from(hint);
            task.error_code = code_text(*code);
        }
        Observed::Absent if status == Status::Failed => {
            let what = match row.spec.backend() {
                BackendKind::Docker => "container",
                BackendKind::Qemu => "disk",
            };
            task.error_message = Some(format!("its {what} was removed on the node"));
            task.error_code = Some("disappeared".to_owned());
            task.error_hint = Some(format!("kohakuriver vps delete {}", row.id));
        }
        Observed::Absent | Observed::Provisioning { .. } | Observed::Blocked { .. } => {}
    }
}

fn code_text(code: FailureCode) -> Option<String> {
    json_text(code)
}

/// Returns the JSON text of a unit enum variant.
fn json_text(value: impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value).ok()?.as_str().map(ToOwned::to_owned)
}

/// Returns the node object.
pub fn node(app: &App, row: &NodeRow) -> Node {
    let online = app.runners.is_online(&row.id);
    let metrics = app.runners.metrics(&row.id).unwrap_or_default();
    let seen_ms = app.runners.seen(&row.id).map(|seen| seen.wall_ms).or(row.seen_ms);
    let mut node = Node {
        hostname: row.name.to_string(),
        node_id: row.id.to_string(),
        status: if online { "online" } else { "offline" }.to_owned(),
        last_heartbeat: seen_ms.map(iso),
        runner_version: row.runner_version.clone(),
        cores_in_use: row.cores_taken,
        memory_allocated_bytes: row.memory_taken,
        vps_count: row.instances,
        clock_skew_ms: row.clock_skew_ms,
        joined_at: Some(iso(row.joined_ms)),
        cpu_percent: metrics.cpu_percent,
        memory_used_bytes: metrics.memory_used_bytes,
        load_1m: metrics.load_1m,
        drained: row.drained,
        labels: row.labels.clone(),
        vps_without_core_limit: row.without_limit,
        ..Node::default()
    };
    let Some(inventory) = &row.inventory else {
        return node;
    };
    node.total_cores = inventory.cores;
    node.available_cores = if online { inventory.cores.saturating_sub(row.cores_taken) } else { 0 };
    node.memory_total_bytes = inventory.memory_bytes;
    if inventory.memory_bytes > 0 {
        let share = metrics.memory_used_bytes as f64 / inventory.memory_bytes as f64;
        node.memory_percent = (share * 100.0) as f32;
    }
    node.gpu_runtime = inventory.gpu_runtime == GpuRuntime::Ready;
    node.os.clone_from(&inventory.os);
    node.kernel.clone_from(&inventory.kernel);
    match &inventory.docker {
        DockerState::Ready { version } => node.docker_version = Some(version.clone()),
        DockerState::Unavailable { reason } => node.docker_error = Some(reason.clone()),
    }
    node.docker_warning.clone_from(&inventory.docker_warning);
    node.allows_privileged = inventory.allows_privileged;
    node.allowed_mounts.clone_from(&inventory.allowed_mounts);
    let texts = |registries: &Vec<Registry>| registries.iter().map(Registry::to_string).collect();
    node.allowed_registries = inventory.allowed_registries.as_ref().map(texts);
    node.local_images = inventory.local_images.iter().map(ToString::to_string).collect();
    match &inventory.vm {
        VmState::Ready { version, accel, warning } => {
            node.vm_capable = true;
            node.vm_version = Some(version.clone());
            node.vm_accel = Some(accel.word().to_owned());
            node.vm_warning.clone_from(warning);
        }
        VmState::Unavailable { reason } => node.vm_error = Some(reason.clone()),
    }
    node.numa_topology = inventory
        .numa
        .iter()
        .map(|numa| {
            let facts = serde_json::json!({"cores": numa.cpus, "memory_bytes": numa.memory_bytes});
            (numa.id.to_string(), facts)
        })
        .collect::<BTreeMap<_, _>>();
    if !inventory.numa.is_empty() {
        // Existing dashboards read this list, existing command lines the entries beside it.
        let nodes: Vec<_> = inventory
            .numa
            .iter()
            .map(|numa| {
                serde_json::json!({"id": numa.id, "cpu_count": numa.cpus.len(),
                    "memory_total_mb": numa.memory_bytes >> 20})
            })
            .collect();
        node.numa_topology.insert(NUMA_NODES.to_owned(), nodes.into());
    }
    let taken = |gpu: &Gpu| row.gpus_taken.contains(&gpu.uuid);
    node.gpu_info = inventory
        .gpus
        .iter()
        .filter(|gpu| gpu.is_for_containers())
        .map(|gpu| GpuInfo {
            gpu_id: gpu.index,
            name: gpu.name.clone(),
            uuid: gpu.uuid.clone(),
            pci_address: gpu.pci_address.clone(),
            memory_total_bytes: gpu.memory_bytes,
            taken: taken(gpu),
            pci_bus_id: gpu.pci_address.clone(),
            memory_total_mib: (gpu.memory_bytes >> 20) as f64,
            vfio_bound: gpu.vfio.bound,
            unusable: gpu.no_container.clone(),
        })
        .collect();
    if matches!(inventory.vm, VmState::Ready { .. }) {
        let behind_iommu = inventory.gpus.iter().filter(|gpu| gpu.vfio.group.is_some());
        node.vfio_gpus = behind_iommu
            .map(|gpu| VfioGpu { taken: taken(gpu), ..vfio_gpu(gpu, &inventory.gpus) })
            .collect();
    }
    node
}

fn vfio_gpu(gpu: &Gpu, all: &[Gpu]) -> VfioGpu {
    let peers = all.iter().filter(|other| gpu.vfio.peers.contains(&other.uuid));
    VfioGpu {
        gpu_id: gpu.index,
        pci_address: gpu.pci_address.clone(),
        name: gpu.name.clone(),
        vendor_id: gpu.vfio.vendor_id.clone(),
        device_id: gpu.vfio.device_id.clone(),
        iommu_group: gpu.vfio.group,
        audio_pci: gpu.vfio.audio.clone(),
        iommu_group_peers: peers.map(|peer| peer.pci_address.clone()).collect(),
        uuid: gpu.uuid.clone(),
        taken: false,
        refusal: gpu.vfio.refusal.clone(),
    }
}
