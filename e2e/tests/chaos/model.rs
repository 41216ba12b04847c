//! What people asked for, as far as they were told that it was taken; and whether the cluster is
//! so. An act whose answer was lost may have been taken or not: then either is right.

use std::collections::{BTreeMap, BTreeSet};

use kohakuriver_e2e::{BUSYBOX, Cluster, NODES};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

const MOST: usize = 8;

/// What a VPS should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Up,
    Paused,
    Stopped,
    Killed,
    Gone,
    /// An answer was lost.
    Either,
}

#[derive(Debug, Default)]
pub struct Model {
    /// By name.
    wishes: BTreeMap<String, Wish>,
    made: u32,
}

impl Model {
    pub fn len(&self) -> usize {
        self.wishes.len()
    }

    /// One random act; answers what it was and how it went.
    pub fn act(&mut self, cluster: &Cluster, random: &mut StdRng) -> String {
        let names: Vec<String> = self.wishes.keys().cloned().collect();
        if names.is_empty() || (names.len() < MOST && random.random_range(0..4) == 0) {
            return self.create(cluster, random);
        }
        let name = &names[random.random_range(0..names.len())];
        let cores = random.random_range(0..2).to_string();
        let (arguments, wish): (Vec<&str>, Option<Wish>) = match random.random_range(0..9) {
            0 => (vec!["stop", name, "--no-wait"], Some(Wish::Stopped)),
            1 => (vec!["kill", name, "--no-wait"], Some(Wish::Killed)),
            2 | 3 => (vec!["restart", name, "--no-wait"], Some(Wish::Up)),
            4 => (vec!["pause", name, "--no-wait"], Some(Wish::Paused)),
            5 => (vec!["resume", name, "--no-wait"], Some(Wish::Up)),
            6 => (vec!["update", name, "--cores", &cores, "--no-wait"], None),
            7 => (vec!["snapshot", "create", name], None),
            _ => (vec!["delete", name, "--yes", "--force", "--no-wait"], Some(Wish::Gone)),
        };
        let output = cluster.kr(&[&["vps"], &arguments[..]].concat());
        let told = match output.code {
            0 => "taken",
            3 => "no answer",
            _ => "refused",
        };
        if let Some(wish) = wish {
            match told {
                "taken" => self.taken(name, wish),
                // Refused by a host that answered changes nothing.
                "refused" => {}
                _ => drop(self.wishes.insert(name.clone(), Wish::Either)),
            }
        }
        format!("{}: {told} {}", arguments.join(" "), output.stderr.replace('\n', " "))
    }

    fn taken(&mut self, name: &str, wish: Wish) {
        // Stopping what is being killed, and the like, is taken and changes nothing.
        let old = self.wishes[name];
        let new = match (old, wish) {
            (Wish::Either | Wish::Gone, _) if wish != Wish::Gone => old,
            (Wish::Killed, Wish::Stopped) => Wish::Killed,
            _ => wish,
        };
        self.wishes.insert(name.to_owned(), new);
    }

    fn create(&mut self, cluster: &Cluster, random: &mut StdRng) -> String {
        self.made += 1;
        let name = format!("v{}", self.made);
        let mut arguments = vec!["vps", "create", "--name", &name, "--image", BUSYBOX, "--detach"];
        if random.random_range(0..2) == 0 {
            arguments.extend(["--cores", "1"]);
        }
        if random.random_range(0..2) == 0 {
            arguments.push("--ssh");
        }
        let output = cluster.kr(&arguments);
        let told = match output.code {
            0 => {
                self.wishes.insert(name.clone(), Wish::Up);
                "taken"
            }
            3 => {
                self.wishes.insert(name.clone(), Wish::Either);
                "no answer"
            }
            _ => "refused",
        };
        format!("create {name}: {told} {}", output.stderr.replace('\n', " "))
    }

    /// Compares wishes, the host's words and the engines' containers.
    pub fn check(&self, cluster: &Cluster) -> Result<(), String> {
        let listed = cluster.kr(&["vps", "list", "--all", "--json"]);
        if listed.code != 0 {
            return Err(format!("no list: {}", listed.stderr));
        }
        let tasks: Vec<Value> = serde_json::from_str(&listed.stdout).map_err(|e| e.to_string())?;
        let by_name: BTreeMap<&str, &Value> =
            tasks.iter().filter_map(|task| Some((task["name"].as_str()?, task))).collect();
        if by_name.len() != tasks.len() {
            return Err("a VPS without a name, or two of one".to_owned());
        }
        for (name, wish) in &self.wishes {
            let status = by_name.get(name.as_str()).map(|task| text(task, "status"));
            let right = match wish {
                Wish::Either => true,
                Wish::Up => {
                    status == Some("running")
                        || status == Some("failed")
                            && by_name.get(name.as_str()).is_some_and(|task| never_created(task))
                }
                Wish::Paused => status == Some("paused"),
                Wish::Stopped => matches!(status, Some("stopped")),
                Wish::Killed => status == Some("killed"),
                Wish::Gone => status.is_none(),
            };
            if !right {
                let task = by_name.get(name.as_str());
                return Err(format!("{name} should be {wish:?} and is {status:?}: {task:?}"));
            }
        }
        for (name, task) in &by_name {
            if !self.wishes.contains_key(*name) {
                return Err(format!("nobody asked for {name}"));
            }
            if !task["transition"].is_null() {
                return Err(format!("{name} is still {}", task["transition"]));
            }
        }
        containers(cluster, &by_name)?;
        allocations(cluster, &tasks)
    }

    /// After a round that was right: what is there is what it is, what is not there is gone.
    pub fn forget_uncertain(&mut self, cluster: &Cluster) {
        let tasks = cluster.json(&["vps", "list", "--all"]);
        let status = |name: &str| {
            let task = tasks.as_array().unwrap().iter().find(|task| task["name"] == name)?;
            task["status"].as_str()
        };
        self.wishes.retain(|name, wish| {
            let now = match status(name) {
                Some("running") => Wish::Up,
                Some("paused") => Wish::Paused,
                Some("stopped") => Wish::Stopped,
                Some("killed") => Wish::Killed,
                Some(_) => Wish::Either,
                None => return false,
            };
            *wish = now;
            true
        });
    }
}

/// Each VPS has its one container, on its node, in its state; and there are no others.
fn containers(cluster: &Cluster, by_name: &BTreeMap<&str, &Value>) -> Result<(), String> {
    let mut found = BTreeMap::new();
    for (index, engine) in cluster.engines.iter().enumerate() {
        for (container, state) in engine.containers() {
            if found.insert(container.clone(), (NODES[index], state)).is_some() {
                return Err(format!("{container} is there twice"));
            }
        }
    }
    for (name, task) in by_name {
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

/// The nodes' accounts are the sums of what is up, and no port is given twice.
fn allocations(cluster: &Cluster, tasks: &[Value]) -> Result<(), String> {
    let nodes = cluster.json(&["node", "list"]);
    for node in nodes.as_array().unwrap() {
        let up = tasks.iter().filter(|task| {
            task["assigned_node"] == node["hostname"]
                && matches!(text(task, "status"), "running" | "paused")
        });
        let cores: u64 = up.map(|task| task["required_cores"].as_u64().unwrap()).sum();
        if node["cores_in_use"] != cores {
            return Err(format!(
                "{cores} cores are in use, and the account says {}",
                node["cores_in_use"]
            ));
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

/// A create that came while its node's engine was away fails cleanly, and one that was stopped
/// before it began stays unmade: it is said, and nothing of it is there.
fn never_created(task: &Value) -> bool {
    match text(task, "status") {
        "failed" => text(task, "error_code") == "engine_unavailable",
        "stopped" | "killed" => task["exit_code"].is_null(),
        _ => false,
    }
}

fn text<'a>(task: &'a Value, key: &str) -> &'a str {
    task[key].as_str().unwrap_or_default()
}
