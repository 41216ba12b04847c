//! `kohakuriver vps create`

mod machine;

use std::collections::BTreeMap;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap_complete::ArgValueCandidates;
use kohakuriver_api::{CreateVps, Task};
use kohakuriver_model::{BackendKind, InstanceName, Memory, MountWish, Target};

use super::created;
use super::parse::{ON_OOM, environment, image, memory, target, variable};
use super::snapshot::Which;
use super::ssh_key::KeyArgs;
use super::vocabulary::{called, label, reported_failure};
use crate::complete;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::files;
use crate::reference::VpsRef;
use crate::wait::{self, End};

use machine::MachineArgs;

/// Time limit for removing a VPS that never ran, which normally takes well below a second.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(10);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps create --ssh                                 any node, all its cores
  kohakuriver vps create --name web --ssh -c 4 -m 8G --image debian:12
  kohakuriver vps create -t gpu-01::0,1 --ssh --env MODE=train  two GPUs of one node
  kohakuriver vps create --gpus 2 --node-label disk=ssd --ssh   any two free GPUs
  kohakuriver vps create --name copy --from-snapshot web@clean --ssh

A virtual machine has its own kernel, a disk that grows to --vm-disk, and 4G of memory unless
-m or --vm-memory says otherwise; -c 0 gives it as many processors as its node has:
  kohakuriver vps create --backend qemu --ssh                   debian-12, 20G of disk
  kohakuriver vps create --backend qemu -t gpu-01::0 --vm-memory 16384 -c 8 --ssh
  kohakuriver vps create -b qemu --vm-image noble --vm-disk 100 --name lab --ssh")]
pub struct CreateArgs {
    /// Target as node, node:numa, node::gpu,gpu or node:numa::gpu [default: the host chooses].
    #[arg(short, long, value_parser = target, add = ArgValueCandidates::new(complete::nodes))]
    target: Option<Target>,
    /// Name of the VPS: lower-case letters, digits and hyphens [default: none].
    #[arg(long)]
    name: Option<InstanceName>,
    /// Number of CPU cores; 0 means no limit.
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    cores: u32,
    /// Memory limit, for example 8G or 512M [default: no limit; 4G for a virtual machine].
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    memory: Option<Memory>,
    /// Image from a registry, for example debian:12.
    #[arg(long, value_name = "REF", value_parser = image, conflicts_with = "container")]
    image: Option<String>,
    /// Environment from the shared storage.
    #[arg(long, value_name = "ENV", value_parser = environment)]
    container: Option<String>,
    /// Start from a copy of a snapshot's disk [default of WHICH: the newest].
    #[arg(long, value_name = "VPS[@WHICH]", value_parser = source, conflicts_with_all = ["image", "container"], add = ArgValueCandidates::new(complete::vps_all))]
    from_snapshot: Option<Source>,
    /// Number of GPUs; the host picks free ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    gpus: Option<u32>,
    /// Use only nodes with this label; repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    node_label: Vec<(String, String)>,
    /// Environment variable; repeatable.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Limit of concurrent processes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    pids_limit: Option<u32>,
    /// Create a snapshot at each stop.
    #[arg(long)]
    snapshot_on_stop: bool,
    /// Number of snapshots to keep, up to 1000; older ones are deleted. 0 keeps all [default: 5].
    #[arg(long, value_name = "N")]
    keep_snapshots: Option<u32>,
    /// Policy when the kernel kills a process for lack of memory: end the VPS, or keep the rest running
    /// [default: end].
    #[arg(long, value_name = "WHAT", value_parser = PossibleValuesParser::new(ON_OOM))]
    on_oom: Option<String>,
    /// Backend: docker for a container, qemu for a virtual machine [default: docker, or the
    /// snapshot's backend].
    #[arg(short, long, value_parser = PossibleValuesParser::new(BACKENDS))]
    backend: Option<String>,
    /// Give the container's root all rights of the node's root. For operators, if the node allows it.
    #[arg(long)]
    privileged: bool,
    /// Mount a path of the node; repeatable. For operators, if the node allows it.
    #[arg(long, value_name = "SOURCE:TARGET[:ro]")]
    mount: Vec<MountWish>,
    /// Return once the host has accepted the request, without waiting until the VPS runs.
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    keys: KeyArgs,
}

/// The status of a request that waits for approval.
pub const PENDING: &str = "pending_approval";

const BACKENDS: [&str; 2] = [BackendKind::Docker.word(), BackendKind::Qemu.word()];

/// A VPS and one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    vps: VpsRef,
    which: Option<Which>,
}

pub async fn run(context: &Context, args: CreateArgs) -> Result<(), CommandError> {
    machine::check(&args)?;
    if args.gpus.is_some() && args.target.as_ref().is_some_and(|target| !target.gpus.is_empty()) {
        return Err(CommandError::usage("--gpus and the GPUs of --target exclude each other")
            .hint("name the node alone, for example `-t gpu-01 --gpus 2`, or leave --gpus out"));
    }
    let ssh_folder = files::home()?.join(".ssh");
    let mut body = body(&args);
    let mut made = args.keys.apply(&ssh_folder, &mut body)?;
    // From here on, returning an error also removes the key pair.
    let created = match context.api.create_vps(&body).await {
        Ok(created) => created,
        Err(failure) => return Err(created::refused(context, failure, made)),
    };
    let id = created.task_id.as_str();
    if let Some(key) = &mut made
        && let Err(failure) = key.name_after(&ssh_folder, id)
    {
        // The VPS exists: a key under an unexpected name is better than none.
        context.out.note(format!("note: {}", failure.message));
    }
    let mut task = created.task;
    if task.status == PENDING {
        // Approval may take days, and this key gives access afterwards.
        let key = created::say_key(context, made);
        if context.out.json {
            context.out.json(&task);
        } else {
            created::summary(context, &task, key.as_deref());
        }
        return Ok(());
    }
    if !args.detach && task.status != "running" {
        let step = format!("creating {}", body.name.as_deref().unwrap_or(id));
        let over = |task: &Task| wait::is_blocked(task) || has_settled(task);
        let end = wait::unless_interrupted(wait::until(context, id, &step, over), || {
            CommandError::interrupted(format!("stopped waiting; VPS {id} is still being created"))
                .hint(format!("`kohakuriver vps status {id}` shows its progress"))
        });
        task = match end.await {
            Ok(End::Met(task)) => *task,
            Ok(End::Gone) => {
                return Err(CommandError::request(format!("VPS {id} was deleted before it ran")));
            }
            Err(failure) => {
                // The VPS may still start, and this key gives access then.
                created::say_key(context, made);
                return Err(
                    failure.or_hint(|| format!("`kohakuriver vps status {id}` shows details"))
                );
            }
        };
    }
    if task.status == "failed" || !args.detach && wait::is_blocked(&task) {
        return Err(clean_up(context, &task).await);
    }
    let key = created::say_key(context, made);
    if context.out.json {
        context.out.json(&task);
    } else {
        created::summary(context, &task, key.as_deref());
    }
    if !args.detach && task.status != "running" {
        return Err(CommandError::request(format!("VPS {} is {}", called(&task), task.status))
            .hint(format!("`kohakuriver vps restart {}` starts it again", called(&task))));
    }
    Ok(())
}

fn has_settled(task: &Task) -> bool {
    let words = ["running", "paused", "failed", "stopped", "killed", "killed_oom"];
    words.contains(&task.status.as_str())
}

fn body(args: &CreateArgs) -> CreateVps {
    let target = args.target.as_ref();
    let gpus = target.map(|target| target.gpus.clone()).filter(|gpus| !gpus.is_empty());
    CreateVps {
        name: args.name.as_ref().map(ToString::to_string),
        required_cores: i64::from(args.cores),
        required_gpus: gpus,
        // The parser keeps it within the signed range.
        required_memory_bytes: args.memory.and_then(|memory| i64::try_from(memory.bytes()).ok()),
        target_hostname: target.map(|target| target.node.to_string()),
        target_numa_node_id: target.and_then(|target| target.numa),
        container_name: args.container.clone(),
        registry_image: args.image.clone(),
        vps_backend: args.backend.clone(),
        vm_image: args.machine.vm_image.as_ref().map(ToString::to_string),
        vm_disk_size: args.machine.vm_disk.clone(),
        memory_mb: args.machine.megabytes(),
        env_vars: args.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        pids_limit: args.pids_limit,
        gpu_count: args.gpus,
        node_labels: args.node_label.iter().cloned().collect(),
        from_vps: args.from_snapshot.as_ref().map(|source| source.vps.to_string()),
        from_snapshot: args
            .from_snapshot
            .as_ref()
            .and_then(|source| Some(source.which.as_ref()?.to_string())),
        // The host decides unless the option is given.
        snapshot_on_stop: args.snapshot_on_stop.then_some(true),
        keep_snapshots: args.keep_snapshots,
        on_oom: args.on_oom.clone(),
        privileged: args.privileged.then_some(true),
        additional_mounts: (!args.mount.is_empty())
            .then(|| args.mount.iter().map(ToString::to_string).collect()),
        ..CreateVps::default()
    }
}

fn source(text: &str) -> Result<Source, String> {
    let (vps, which) = match text.split_once('@') {
        Some((vps, which)) => {
            (vps, Some(which.parse::<Which>().map_err(|error| error.to_string())?))
        }
        None => (text, None),
    };
    Ok(Source { vps: vps.parse::<VpsRef>().map_err(|error| error.to_string())?, which })
}

/// Removes a VPS that failed before it ever ran, and returns its error. The VPS is gone when the
/// error is printed, so that the caller can reuse the name at once.
async fn clean_up(context: &Context, task: &Task) -> CommandError {
    let failure = reported_failure(task);
    let id = task.task_id.as_str();
    let removal = async {
        context.api.delete_vps(id, true).await?;
        let stuck = |task: &Task| task.status == "lost" || wait::is_blocked(task);
        wait::until(context, id, "removing the failed VPS", stuck).await
    };
    let why = match tokio::time::timeout(CLEAN_UP_LIMIT, removal).await {
        Ok(Ok(End::Gone)) => return failure,
        Ok(Err(error)) if error.kind == Kind::NotFound => return failure,
        Ok(Err(error)) => error.message,
        Ok(Ok(End::Met(_))) | Err(_) => "its node will remove it later".to_owned(),
    };
    context.out.note(format!("note: the failed VPS is not removed yet: {why}"));
    context.out.hint(format!("`kohakuriver vps status {id}` shows whether it was removed"));
    failure
}
