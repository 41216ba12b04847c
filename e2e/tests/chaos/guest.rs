//! Virtual machines as the host tells of them, and what their nodes have of them: processes,
//! network devices, files. All of it belongs to a machine that is there, and once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use kohakuriver_e2e::{Cluster, NODES, run};
use serde_json::Value;

use crate::check::text;

/// What the host says of one.
#[derive(Clone, Debug)]
pub struct Guest {
    pub name: String,
    pub task_id: String,
    pub node: String,
    status: String,
    /// Nothing is under way.
    settled: bool,
    address: String,
    /// It ended before there was anything of it.
    never_made: bool,
}

impl Guest {
    pub fn all(cluster: &Cluster) -> Result<Vec<Self>, String> {
        let listed = cluster.kr(&["vps", "list", "--all", "--json"]);
        let tasks: Vec<Value> = serde_json::from_str(&listed.stdout).map_err(|e| e.to_string())?;
        Ok(Self::among(&tasks))
    }

    pub fn among(tasks: &[Value]) -> Vec<Self> {
        let machines = tasks.iter().filter(|task| text(task, "vps_backend") == "qemu");
        let guest = |task: &Value| Self {
            name: text(task, "name").to_owned(),
            task_id: text(task, "task_id").to_owned(),
            node: text(task, "assigned_node").to_owned(),
            status: text(task, "status").to_owned(),
            settled: task["transition"].is_null(),
            address: text(task, "vm_ip").to_owned(),
            never_made: task["exit_code"].is_null(),
        };
        machines.map(guest).collect()
    }

    pub fn is_up(&self) -> bool {
        self.status == "running" && self.settled
    }

    /// The name of its network device: its id with 36 digits.
    pub fn tap(&self) -> String {
        let mut rest: u64 = self.task_id.parse().unwrap_or_default();
        let mut digits = Vec::new();
        for _ in 0..13 {
            let digit = u32::try_from(rest % 36).ok().and_then(|digit| char::from_digit(digit, 36));
            digits.extend(digit);
            rest /= 36;
        }
        format!("kr{}", digits.iter().rev().collect::<String>())
    }
}

/// Each machine that is up has one QEMU and one network device; there is no file, process or device
/// of any other, and no address is given twice.
pub fn check(cluster: &Cluster, guests: &[Guest]) -> Result<(), String> {
    for (index, node) in NODES.into_iter().enumerate() {
        let here: Vec<&Guest> = guests.iter().filter(|guest| guest.node == node).collect();
        let up: Vec<&Guest> = here.iter().copied().filter(|guest| guest.is_up()).collect();
        let mut should_run: Vec<&str> = up.iter().map(|guest| guest.task_id.as_str()).collect();
        should_run.sort_unstable();
        let qemus = cluster.qemus(index);
        let run: Vec<&str> = qemus.iter().map(|qemu| qemu.task_id.as_str()).collect();
        if run != should_run {
            return Err(format!("QEMU runs for {run:?} on {node}, and {should_run:?} are up"));
        }
        devices(&cluster.network.devices(node), &up)?;
        let mut addresses = BTreeSet::new();
        if let Some(guest) = up.iter().find(|guest| !addresses.insert(&guest.address)) {
            return Err(format!("{} has the address {:?} of another", guest.name, guest.address));
        }
        files(&cluster.runner_dir(index).join("runner"), &here)
            .map_err(|what| format!("on {node}, {what}"))?;
    }
    Ok(())
}

fn devices(found: &[String], up: &[&Guest]) -> Result<(), String> {
    let taps = found.iter().filter(|device| device.starts_with("kr") && device.len() == 15);
    let known: BTreeSet<String> = up.iter().map(|guest| guest.tap()).collect();
    if let Some(tap) = taps.clone().find(|tap| !known.contains(*tap)) {
        return Err(format!("the network device {tap} belongs to nothing that is up"));
    }
    let missing = up.iter().find(|guest| !found.contains(&guest.tap()));
    match missing {
        Some(guest) => Err(format!("{} is up without its network device", guest.name)),
        None if up.is_empty() && found.iter().any(|device| device == "kohaku-br0") => {
            Err("the bridge is there without any machine".to_owned())
        }
        None => Ok(()),
    }
}

/// What a node keeps is that of the machines that are there.
fn files(runner: &Path, here: &[&Guest]) -> Result<(), String> {
    let known: BTreeSet<&str> = here.iter().map(|guest| guest.task_id.as_str()).collect();
    let vm = runner.join("vm");
    for kept in ["vm/disks", "vm/snapshots"] {
        for name in names(&runner.join(kept)) {
            if !known.contains(name.as_str()) {
                return Err(format!("{kept}/{name} belongs to nothing"));
            }
        }
    }
    let mut tops = Vec::new();
    for guest in here {
        // Also of one that has no disk now: a restore that was given up leaves just these.
        let snapshots = vm.join("snapshots").join(&guest.task_id);
        let saved = names(&snapshots).into_iter().filter_map(|file| json(&snapshots.join(file)));
        tops.extend(saved.map(|snapshot| text(&snapshot, "layer").to_owned()));
        let dir = vm.join("disks").join(&guest.task_id);
        let Some(machine) = json(&dir.join("machine.json")) else {
            if guest.never_made {
                continue;
            }
            return Err(format!("{} is {} and has no disk", guest.name, guest.status));
        };
        tops.push(text(&machine, "layer").to_owned());
        if !machine["freezing"].is_null() {
            return Err(format!("a snapshot of {} was begun and is not at its end", guest.name));
        }
        if !guest.is_up() {
            traces(&dir, text(&machine, "disk"))
                .map_err(|what| format!("{}: {what}", guest.name))?;
            is_whole(&dir.join(text(&machine, "disk")))?;
        }
    }
    layers(&vm.join("layers"), tops)
}

/// One that is down has its disk, and nothing that only a QEMU that runs has.
fn traces(dir: &Path, disk: &str) -> Result<(), String> {
    let is_left =
        |name: &&String| (name.ends_with(".qcow2") && *name != disk) || *name == "seed.img";
    let mut sockets = names(&dir.join("run")).into_iter().filter(|name| name.ends_with(".sock"));
    match names(dir).iter().find(is_left).cloned().or_else(|| sockets.next_back()) {
        Some(name) => Err(format!("it is down and still has {name}")),
        None => Ok(()),
    }
}

/// The layers are those that disks and snapshots are built on, and the image's.
fn layers(dir: &Path, mut tops: Vec<String>) -> Result<(), String> {
    let mut used = BTreeSet::new();
    while let Some(name) = tops.pop() {
        let Some(layer) = json(&dir.join(&name).join("layer.json")) else {
            return Err(format!("layer {name} is missing"));
        };
        tops.extend(layer["below"].as_str().map(ToOwned::to_owned));
        used.insert(name);
    }
    let unused = |name: &String| !used.contains(name) && !name.starts_with("image-");
    match names(dir).into_iter().find(unused) {
        Some(name) => Err(format!("nothing is built on layer {name}")),
        None => Ok(()),
    }
}

/// Whatever killed its QEMU, the disk has no errors; clusters that nobody uses are none.
fn is_whole(disk: &Path) -> Result<(), String> {
    let output = run(Command::new("qemu-img").args(["check", "-q"]).arg(disk));
    match output.code {
        0 | 3 => Ok(()),
        code => Err(format!("{} is damaged ({code}): {}", disk.display(), output.stderr)),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[test]
fn snapshots_of_a_vm_without_a_disk_hold_their_layers() {
    let runner = tempfile::tempdir().unwrap();
    let vm = runner.path().join("vm");
    let put = |path: &str, content: &str| {
        let path = vm.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    put("layers/image-1/layer.json", r#"{"below":null}"#);
    put("layers/7-1/layer.json", r#"{"below":"image-1"}"#);
    put("snapshots/7/1.json", r#"{"layer":"7-1"}"#);
    let killed = serde_json::json!({"vps_backend": "qemu", "task_id": "7", "status": "killed"});
    let guests = Guest::among(&[killed]);
    files(runner.path(), &guests.iter().collect::<Vec<_>>()).unwrap();
    fs::remove_file(vm.join("snapshots/7/1.json")).unwrap();
    let left = files(runner.path(), &guests.iter().collect::<Vec<_>>());
    assert_eq!(left, Err("nothing is built on layer 7-1".to_owned()));
}
