//! `kohakuriver vps create`

use std::collections::BTreeMap;
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use kohakuriver_api::{CreateVps, Task};
use kohakuriver_model::memory::SMALLEST_LIMIT;
use kohakuriver_model::{ImageSource, InstanceName, Memory, Target};

use super::list::has_ssh;
use super::ssh_key::KeyArgs;
use super::{called, reported_failure};
use crate::complete;
use crate::context::Context;
use crate::failure::{Failure, Kind};
use crate::files;
use crate::keys::MadeKey;
use crate::wait::{self, End};

/// Removing something that never ran takes well below a second where nothing is in the way.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(10);

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver vps create --ssh                                 any node, all its cores
  kohakuriver vps create --name web --ssh -c 4 -m 8G --image debian:12
  kohakuriver vps create -t gpu-01::0,1 --ssh --env MODE=train  two GPUs of one node")]
pub struct CreateArgs {
    /// Where it runs: node, node:numa, node::gpu,gpu [default: the host chooses]
    #[arg(short, long, value_parser = target, add = ArgValueCandidates::new(complete::nodes))]
    target: Option<Target>,
    /// Its name: lower-case letters, digits and hyphens
    #[arg(long)]
    name: Option<InstanceName>,
    /// CPU cores; 0 means no limit
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    cores: u32,
    /// Memory limit, for example 8G or 512M [default: no limit]
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    memory: Option<Memory>,
    /// Image of a registry, for example debian:12
    #[arg(long, value_name = "REF", value_parser = image, conflicts_with = "container")]
    image: Option<String>,
    /// Environment of the shared storage
    #[arg(long, value_name = "ENV", value_parser = environment)]
    container: Option<String>,
    /// Environment variable; may be given several times
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Most processes at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pids_limit: Option<u32>,
    /// What runs it
    #[arg(short, long, default_value = "docker", value_parser = ["docker", "qemu"])]
    backend: String,
    /// Do not wait until it runs
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    keys: KeyArgs,
}

pub async fn run(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    if args.backend == "qemu" {
        return Err(Failure::usage("the QEMU backend is not in this build yet")
            .hint("leave --backend out for a Docker VPS"));
    }
    let ssh_folder = files::home()?.join(".ssh");
    let mut body = body(&args);
    let mut made = args.keys.apply(&ssh_folder, &mut body)?;
    // From here on, leaving with an error also removes the pair.
    let created = context.api.create_vps(&body).await?;
    let id = created.task_id.as_str();
    if let Some(key) = &mut made
        && let Err(failure) = key.name_after(&ssh_folder, id)
    {
        // The VPS exists: better a key under an odd name than none.
        context.out.note(format!("note: {}", failure.message));
    }
    let mut task = created.task;
    if !args.detach && task.status != "running" {
        let step = format!("creating {}", body.name.as_deref().unwrap_or(id));
        let over = |task: &Task| wait::is_blocked(task) || has_settled(task);
        let end = wait::unless_interrupted(wait::until(context, id, &step, over), || {
            Failure::interrupted(format!("not waiting any longer; VPS {id} is still being created"))
                .hint(format!("`kohakuriver vps status {id}` shows how far it is"))
        });
        task = match end.await {
            Ok(End::Met(task)) => *task,
            Ok(End::Gone) => {
                return Err(Failure::request(format!("VPS {id} was deleted before it ran")));
            }
            Err(failure) => {
                // It may still come to run, and then this key opens it.
                say_key(context, made);
                return Err(failure.or_hint(|| format!("`kohakuriver vps status {id}` shows more")));
            }
        };
    }
    if task.status == "failed" || !args.detach && wait::is_blocked(&task) {
        return Err(clean_up(context, &task).await);
    }
    say_key(context, made);
    if context.out.json {
        context.out.json(&task);
    } else {
        summary(context, &task);
    }
    if !args.detach && task.status != "running" {
        return Err(Failure::request(format!("VPS {} is {}", called(&task), task.status))
            .hint(format!("`kohakuriver vps restart {}` starts it again", called(&task))));
    }
    Ok(())
}

fn has_settled(task: &Task) -> bool {
    matches!(task.status.as_str(), "running" | "failed" | "stopped" | "killed" | "killed_oom")
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
        env_vars: args.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        pids_limit: args.pids_limit,
        ..CreateVps::default()
    }
}

/// A VPS that never ran is of no use to anybody: nothing half-made stays. It is gone when the
/// error is told, so that whoever reads it can go on at once, under the same name too.
async fn clean_up(context: &Context, task: &Task) -> Failure {
    let failure = reported_failure(task);
    let id = task.task_id.as_str();
    let removal = async {
        context.api.delete_vps(id, true).await?;
        let stuck = |task: &Task| task.status == "lost" || wait::is_blocked(task);
        wait::until(context, id, "removing what was made of it", stuck).await
    };
    let why = match tokio::time::timeout(CLEAN_UP_LIMIT, removal).await {
        Ok(Ok(End::Gone)) => return failure,
        Ok(Err(error)) if error.kind == Kind::NotFound => return failure,
        Ok(Err(error)) => error.message,
        Ok(Ok(End::Met(_))) | Err(_) => "its node does so as soon as it can".to_owned(),
    };
    context.out.note(format!("note: what was made of it is not removed yet: {why}"));
    context.out.hint(format!("`kohakuriver vps status {id}` shows whether it is gone"));
    failure
}

fn say_key(context: &Context, made: Option<MadeKey>) {
    if let Some(key) = made {
        context.out.note(format!("new private key: {}", key.keep().display()));
    }
}

fn summary(context: &Context, task: &Task) {
    let out = context.out;
    let name = called(task);
    let node = task.assigned_node.as_deref().unwrap_or("a node to be chosen");
    let running = task.status == "running";
    let state = if running { "is running on" } else { "is being created on" };
    out.line(format!("VPS {name} {state} {node}"));
    out.line(format!("  id    {}", task.task_id));
    if has_ssh(task) {
        let host = &context.settings.host.value;
        let port = context.settings.ssh_proxy_port.value;
        out.line(format!("  ssh   kohakuriver ssh {name}"));
        out.line(format!("  or    ssh -J {}@{}:{port} root@{name}", user(), host.bracketed()));
    }
    if !running {
        out.hint(format!("`kohakuriver vps status {name} --watch` shows how far it is"));
    }
}

/// Who to be at the gateway, in the line people copy.
pub fn user() -> String {
    std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "you".to_owned())
}

fn target(text: &str) -> Result<Target, String> {
    text.parse::<Target>().map_err(|error| with_source(&error))
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn memory(text: &str) -> Result<Memory, String> {
    let memory = text.parse::<Memory>().map_err(|error| error.to_string())?;
    if memory < SMALLEST_LIMIT {
        return Err(format!(
            "{memory} is less than a container can run in; the least is {SMALLEST_LIMIT}"
        ));
    }
    Ok(memory)
}

fn image(text: &str) -> Result<String, String> {
    ImageSource::registry(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn environment(text: &str) -> Result<String, String> {
    ImageSource::environment(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let starts_well = key.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if !starts_well || !key.bytes().all(plain) || value.contains('\0') {
        return Err(format!("'{key}' is not the name of an environment variable"));
    }
    Ok((key.to_owned(), value.to_owned()))
}
