//! Whether the cluster is as the model says: the host's words, the engines' containers, the nodes'
//! machines, the accounts, and what is on the disks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kohakuriver_e2e::{Cluster, NODES};
use serde_json::Value;

use crate::disk::Disk;
use crate::guest::{self, Guest};
use crate::model::{Model, Vps, Wish};

/// Everything is as wished within seconds after the last fault is over; the run prints its slowest
/// round. Far more than that, since the computer may be busy with other work.
const LIMIT: Duration = Duration::from_secs(60);
/// Where machines have to boot first, and nothing but the processor executes them.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What is not as it should be, and how long that may last.
#[derive(Debug)]
pub struct Trouble {
    pub what: String,
    pub limit: Duration,
}

/// Compares all of it.
pub fn check(model: &Model, cluster: &Cluster) -> Result<(), Trouble> {
    let brief = |what| Trouble { what, limit: LIMIT };
    if let Some(outrage) = &model.outrage {
        return Err(Trouble { what: outrage.clone(), limit: Duration::ZERO });
    }
    let listed = cluster.kr(&["vps", "list", "--all", "--json"]);
    if listed.code != 0 {
        return Err(brief(format!("no list: {}", listed.stderr)));
    }
    let tasks: Vec<Value> =
        serde_json::from_str(&listed.stdout).map_err(|error| brief(error.to_string()))?;
    let is_machine = |task: &Value| text(task, "vps_backend") == "qemu";
    let (machines, containers): (Vec<Value>, Vec<Value>) =
        tasks.iter().cloned().partition(is_machine);
    let of_kind = |machine: bool| {
        let wished = model.vpses.iter().filter(move |(_, vps)| vps.machine.is_some() == machine);
        wished.map(|(name, vps)| (name.as_str(), vps)).collect()
    };
    wishes(&of_kind(false), &containers).map_err(brief)?;
    self::containers(cluster, &containers).map_err(brief)?;
    snapshot_images(cluster, &containers).map_err(brief)?;
    let limit = if machines.is_empty() { LIMIT } else { BOOT_LIMIT };
    let trouble = |what| Trouble { what, limit };
    wishes(&of_kind(true), &machines).map_err(trouble)?;
    let guests = Guest::among(&machines);
    guest::check(cluster, &guests).map_err(trouble)?;
    instance_files(cluster, &tasks).map_err(trouble)?;
    allocations(cluster, &tasks).map_err(trouble)?;
    disks(model, cluster, &guests).map_err(trouble)
}

/// Each VPS is what was asked for, and there are no others.
fn wishes(wished: &BTreeMap<&str, &Vps>, tasks: &[Value]) -> Result<(), String> {
    let by_name: BTreeMap<&str, &Value> =
        tasks.iter().filter_map(|task| Some((task["name"].as_str()?, task))).collect();
    if by_name.len() != tasks.len() {
        return Err("a VPS without a name, or two of one".to_owned());
    }
    for (name, vps) in wished {
        let task = by_name.get(name);
        let status = task.map(|task| text(task, "status"));
        let right = match vps.wish {
            Wish::Either => true,
            Wish::Up => {
                status == Some("running")
                    || status == Some("failed") && task.is_some_and(|task| never_created(task))
            }
            Wish::Paused => status == Some("paused"),
            Wish::Stopped => status == Some("stopped"),
            Wish::Killed => status == Some("killed"),
            Wish::Gone => status.is_none(),
            Wish::Down => matches!(status, Some("failed" | "stopped")),
            Wish::Struck => matches!(status, Some("running" | "failed" | "stopped")),
        };
        if !right {
            return Err(format!("{name} should be {:?} and is {status:?}: {task:?}", vps.wish));
        }
    }
    for (name, task) in &by_name {
        if !wished.contains_key(name) {
            return Err(format!("nobody asked for {name}"));
        }
        if !task["transition"].is_null() {
            return Err(format!("{name} is still {}", task["transition"]));
        }
    }
    Ok(())
}

/// Each VPS has its one container, on its node, in its state; and there are no others.
fn containers(cluster: &Cluster, tasks: &[Value]) -> Result<(), String> {
    let mut found = BTreeMap::new();
    for (index, engine) in cluster.engines.iter().enumerate() {
        for (container, state) in engine.containers() {
            if found.insert(container.clone(), (NODES[index], state)).is_some() {
                return Err(format!("{container} is there twice"));
            }
        }
    }
    for task in tasks {
        let name = text(task, "name");
        let container = format!("kohakuriver-vps-{}", text(task, "task_id"));
        if never_created(task) && !found.contains_key(&container) {
            continue;
        }
        let Some((node, state)) = found.remove(&container) else {
            return Err(format!("{name} is {} and has no container", task["status"]));
        };
        if node != text(task, "assigned_node") {
            return Err(format!("{name} is on {node}, not on {}", task["assigned_node"]));
        }
        let right = match text(task, "status") {
            "running" => state == "running",
            "paused" => state == "paused",
            _ => state == "exited" || state == "created",
        };
        if !right {
            return Err(format!(
                "{name} is said to be {} and its container {state}",
                task["status"]
            ));
        }
    }
    match found.keys().next() {
        Some(container) => Err(format!("{container} belongs to nothing")),
        None => Ok(()),
    }
}

/// Each image of a snapshot is of a VPS that is there and has a name, and none is being made.
fn snapshot_images(cluster: &Cluster, tasks: &[Value]) -> Result<(), String> {
    let known: BTreeSet<String> = tasks
        .iter()
        .map(|task| format!("kohakuriver-snapshot/vps-{}", text(task, "task_id")))
        .collect();
    for (index, engine) in cluster.engines.iter().enumerate() {
        let node = NODES[index];
        let list = |arguments: &[&str]| -> Vec<String> {
            engine.docker(arguments).ok().lines().map(ToOwned::to_owned).collect()
        };
        let images = ["images", "--format", "{{.Repository}}", "--filter"];
        let named = list(&[&images[..], &["reference=kohakuriver-snapshot/*"]].concat());
        if let Some(image) = named.iter().find(|image| !known.contains(*image)) {
            return Err(format!("{node} still has {image}, a snapshot of nothing"));
        }
        let unnamed = ["dangling=true", "--filter", "label=kohakuriver.snapshot_depth"];
        let unnamed = list(&[&images[..], &unnamed[..]].concat());
        if !unnamed.is_empty() {
            return Err(format!("{node} has {} snapshots without a name", unnamed.len()));
        }
        let helpers = ["ps", "--all", "--quiet", "--filter", "name=kohakuriver-flatten-"];
        if !list(&helpers).is_empty() {
            return Err(format!("{node} has a container of a snapshot that is not being made"));
        }
    }
    Ok(())
}

/// A node's records are those of the VPSes that are there.
fn instance_files(cluster: &Cluster, tasks: &[Value]) -> Result<(), String> {
    let known: BTreeSet<&str> = tasks.iter().map(|task| text(task, "task_id")).collect();
    for (index, node) in NODES.into_iter().enumerate() {
        let records = cluster.runner_dir(index).join("runner/instances");
        for entry in std::fs::read_dir(records).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(name.as_str()) {
                return Err(format!("{node} still has the records of {name}"));
            }
        }
    }
    Ok(())
}

/// The nodes' accounts are the sums of what is up, and no port is given twice.
fn allocations(cluster: &Cluster, tasks: &[Value]) -> Result<(), String> {
    let nodes = cluster.json(&["node", "list"]);
    for node in nodes.as_array().unwrap() {
        let up = tasks.iter().filter(|task| {
            task["assigned_node"] == node["hostname"]
                && matches!(text(task, "status"), "running" | "paused")
        });
        for (account, part) in [
            ("cores_in_use", "required_cores"),
            ("memory_allocated_bytes", "required_memory_bytes"),
        ] {
            let sum: u64 = up.clone().map(|task| task[part].as_u64().unwrap_or(0)).sum();
            if node[account] != sum {
                return Err(format!("{account} is {}, and the sum {sum}", node[account]));
            }
        }
    }
    let ports: Vec<u64> = tasks
        .iter()
        .filter_map(|task| task["ssh_port"].as_u64())
        .filter(|port| *port > 0)
        .collect();
    let unique: BTreeSet<_> = ports.iter().collect();
    if unique.len() == ports.len() { Ok(()) } else { Err(format!("ports given twice: {ports:?}")) }
}

/// Whoever enters a machine finds there what was written last.
fn disks(model: &Model, cluster: &Cluster, guests: &[Guest]) -> Result<(), String> {
    for guest in guests.iter().filter(|guest| guest.is_up()) {
        let Some(machine) = model.machine(&guest.name) else {
            continue;
        };
        let read = cluster.inside(&guest.name, &Disk::read());
        let found = read.stdout.trim().parse();
        let found = found.map_err(|_| format!("nobody gets into {}: {read:?}", guest.name))?;
        machine.disk.check(found).map_err(|what| format!("{}: {what}", guest.name))?;
    }
    Ok(())
}

/// A create that came while its node's engine was away fails cleanly, and one that was stopped
/// before it began stays unmade: it is said, and nothing of it is there.
fn never_created(task: &Value) -> bool {
    match text(task, "status") {
        "failed" => text(task, "error_code") == "engine_unavailable",
        "stopped" | "killed" => task["exit_code"].is_null(),
        _ => false,
    }
}

pub fn text<'a>(task: &'a Value, key: &str) -> &'a str {
    task[key].as_str().unwrap_or_default()
}
