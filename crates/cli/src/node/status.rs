//! `kohakuriver node status`

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use kohakuriver_api::{GpuInfo, Node, VfioGpu};
use kohakuriver_model::{Memory, NodeName};

use super::list::{memory, status};
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::ui::{Panel, Tone, ago};

/// Clock difference in seconds below which no warning is given.
const SKEW_WORTH_SAYING_MS: u64 = 1000;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver node status gpu-01
  kohakuriver node status gpu-01 --json")]
pub struct StatusArgs {
    /// The node's name.
    #[arg(add = ArgValueCandidates::new(complete::nodes))]
    node: NodeName,
}

pub async fn run(context: &Context, args: &StatusArgs) -> Result<(), CommandError> {
    let node = context.api.node(args.node.as_str()).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&node);
    } else {
        panel(&node, Timestamp::now()).print(context.out);
    }
    Ok(())
}

/// Adds a hint that names `node list` to a not-found error.
pub fn with_list_hint(failure: CommandError) -> CommandError {
    if failure.kind != Kind::NotFound {
        return failure;
    }
    failure.or_hint(|| "`kohakuriver node list` shows all nodes".to_owned())
}

fn panel(node: &Node, now: Timestamp) -> Panel {
    let mut panel = Panel::default();
    let (tone, words) = status(node);
    panel.add("node", &node.hostname).tinted("status", tone, words);
    panel.maybe("labels", Some(labels(node)).filter(|text| !text.is_empty()));
    panel.maybe("last seen", node.last_heartbeat.as_deref().map(|time| ago(time, now)));
    panel.add("vps", node.vps_count.to_string());
    panel.add(
        "cores",
        format!(
            "{} of {} allocated, {:.0} % busy, load {:.2}",
            node.cores_in_use, node.total_cores, node.cpu_percent, node.load_1m
        ),
    );
    if node.vps_without_core_limit > 0 {
        let text = match node.vps_without_core_limit {
            1 => "1 VPS without a limit shares all cores".to_owned(),
            count => format!("{count} VPSes without a limit share all cores"),
        };
        panel.tinted("unlimited", Tone::Busy, text);
    }
    panel.add(
        "memory",
        format!(
            "{} used, {} allocated",
            memory(node.memory_used_bytes, node.memory_total_bytes),
            Memory::from_bytes(node.memory_allocated_bytes)
        ),
    );
    for gpu in &node.gpu_info {
        panel.add("gpu", gpu_line(gpu));
    }
    for gpu in &node.vfio_gpus {
        let tone = if gpu.refusal.is_some() { Tone::Quiet } else { Tone::Plain };
        panel.tinted("vm gpu", tone, vfio_line(gpu));
    }
    if !node.gpu_info.is_empty() && !node.gpu_runtime {
        let text = "unavailable to containers: NVIDIA's container toolkit is missing";
        panel.tinted("gpu runtime", Tone::Bad, text);
    }
    let numa_nodes = node.numa_topology.keys().filter(|key| key.parse::<u32>().is_ok()).count();
    if numa_nodes > 1 {
        panel.add("numa nodes", numa_nodes.to_string());
    }
    match (&node.docker_error, &node.docker_version) {
        (Some(error), _) => panel.tinted("docker", Tone::Bad, error),
        (None, version) => panel.maybe("docker", version.as_deref()),
    };
    if let Some(warning) = &node.docker_warning {
        panel.tinted("warning", Tone::Busy, warning);
    }
    if node.allows_privileged {
        panel.tinted(
            "privileged",
            Tone::Busy,
            "operators can create VPSes that are root of this node",
        );
    }
    if !node.allowed_mounts.is_empty() {
        panel.add("mounts", format!("allowed from {}", node.allowed_mounts.join(", ")));
    }
    if let Some(registries) = &node.allowed_registries {
        let text = if registries.is_empty() { "none".to_owned() } else { registries.join(", ") };
        panel.add("registries", text);
    }
    if !node.local_images.is_empty() {
        panel.add("local images", node.local_images.join(", "));
    }
    if let Some(error) = &node.vm_error {
        panel.tinted("vms", Tone::Quiet, format!("none: {error}"));
    }
    if let (Some(accel), Some(version)) = (&node.vm_accel, &node.vm_version) {
        panel.add("vms", format!("QEMU {version}, {accel}"));
    }
    if let Some(warning) = &node.vm_warning {
        panel.tinted("warning", Tone::Busy, warning);
    }
    let system = [&node.os, &node.kernel].map(String::as_str).join(" ");
    panel.maybe("system", Some(system.trim()).filter(|text| !text.is_empty()));
    panel.maybe("runner", node.runner_version.as_deref());
    if node.clock_skew_ms.unsigned_abs() > SKEW_WORTH_SAYING_MS {
        let skew = node.clock_skew_ms as f64 / 1000.0;
        panel.tinted("clock", Tone::Busy, format!("{skew:+.1} s against the host"));
    }
    panel.maybe("joined", node.joined_at.as_deref().map(|time| ago(time, now)));
    panel
}

fn gpu_line(gpu: &GpuInfo) -> String {
    let size = Memory::from_bytes(gpu.memory_total_bytes);
    let state = match &gpu.unusable {
        _ if gpu.taken => "taken".to_owned(),
        None => "free".to_owned(),
        Some(why) => format!("not for containers ({why})"),
    };
    format!("{}: {state}, {} {size} {} {}", gpu.gpu_id, gpu.name, gpu.pci_address, gpu.uuid)
}

/// Formats a GPU for virtual machines: its IOMMU group, and why it cannot be used.
fn vfio_line(gpu: &VfioGpu) -> String {
    let group = gpu.iommu_group.map_or("none".to_owned(), |group| group.to_string());
    let mut text = format!("{}: {} {}, IOMMU group {group}", gpu.gpu_id, gpu.name, gpu.pci_address);
    if !gpu.iommu_group_peers.is_empty() {
        text.push_str(&format!(", goes with {}", gpu.iommu_group_peers.join(", ")));
    }
    if let Some(refusal) = &gpu.refusal {
        text.push_str(&format!("; not usable: {refusal}"));
    }
    text
}

/// Formats labels as `disk=ssd room=b2`.
pub fn labels(node: &Node) -> String {
    let pairs: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ")
}
