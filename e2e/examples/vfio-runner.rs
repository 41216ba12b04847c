//! Uses the product in the guest of `scripts/test-vfio.sh`, as a node's owner would: gives a VPS a
//! card of the (emulated) machine, looks whether the VPS has it, kills the runner at bad moments,
//! and has the card back with its drivers.
//!
//! Each fact that holds is a line; the first that does not ends it. What it says is compared with
//! `scripts/vfio/expected.txt`. An emulated machine in an emulated machine boots no Linux in
//! reasonable time: the VPS's system is `scripts/vfio/probe.S`, which says what devices it finds.

#![allow(clippy::print_stdout, reason = "what it says is its result")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const DATA: &str = "/data";
const DISPLAY: &str = "0000:00:18.0";
const SOUND: &str = "0000:00:18.1";
const SEEN: [&str; 3] = ["1002:5046 class 03", "8086:2668 class 04", "that is all"];
const PATIENCE: Duration = Duration::from_secs(240);

fn main() {
    let outcome = scenario();
    if let Err(error) = outcome {
        println!("FAILED: {error}");
        let log = fs::read_to_string("/up.log").unwrap_or_default();
        println!("{log}");
        std::process::exit(1);
    }
}

fn scenario() -> Outcome {
    let before = drivers()?;
    same("drivers", &before[1].as_deref(), &Some("snd_hda_intel"))?;
    kr(&[
        "qemu",
        "image",
        "import",
        "/probe.img",
        "--name",
        "probe",
        "--no-agent",
        "--data-dir",
        DATA,
    ])?;
    let mut server = up()?;
    let node = json(&["node", "status", "node"])?;
    let gpus = node["vfio_gpus"].as_array().ok_or_else(|| format!("no GPUs in {node}"))?;
    let card =
        gpus.iter().find(|gpu| gpu["pci_address"] == DISPLAY).ok_or("the card is not listed")?;
    same("its sound", &card["audio_pci"], &Value::from(SOUND))?;
    same("refusal", &card["refusal"], &Value::Null)?;
    same("cards", &gpus.len(), &1)?;
    ok("the node lists the card with its sound");

    create("card", true)?;
    wait_for("the VPS's own word", || Ok(SEEN.iter().all(|line| console().contains(line))))?;
    same("drivers", &drivers()?, &[vfio(), vfio()])?;
    ok("a VPS that was created with --gpus 1 has the card and its sound");
    let refused = create("second", false)?;
    println!("   {}", refused.lines().next().unwrap_or_default());
    ok("nobody else gets it");

    let qemu = machines()?;
    kill(&mut server)?;
    same("drivers", &drivers()?, &[vfio(), vfio()])?;
    server = up()?;
    wait_for("the machine", || Ok(status("card")? == "running"))?;
    same("machines", &machines()?, &qemu)?;
    same("drivers", &drivers()?, &[vfio(), vfio()])?;
    ok("kill -9 of the runner leaves the machine its card, and the next one takes both up");

    kr(&["vps", "stop", "card"])?;
    same("drivers", &drivers()?, &before)?;
    ok("a stopped VPS's card is with its drivers again");

    // In the middle of a start: the card is taken, and QEMU may be there or not.
    let mut restart = client(&["vps", "restart", "card"]).spawn()?;
    wait_for("the journal", || Ok(journals()? == 1))?;
    kill(&mut server)?;
    restart.kill()?;
    restart.wait()?;
    server = up()?;
    wait_for("the machine", || Ok(status("card")? == "running"))?;
    same("machines", &machines()?.len(), &1)?;
    same("drivers", &drivers()?, &[vfio(), vfio()])?;
    ok("kill -9 of the runner in the middle of a start is made good");

    kr(&["vps", "kill", "card"])?;
    same("drivers", &drivers()?, &before)?;
    kr(&["vps", "restart", "card"])?;
    // With the machine, and nobody there to see it go.
    kill(&mut server)?;
    for pid in machines()? {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    }
    wait_for("QEMU's end", || Ok(machines()?.is_empty()))?;
    server = up()?;
    wait_for("the end to be told", || Ok(status("card")? == "failed"))?;
    same("drivers", &drivers()?, &before)?;
    ok("what a machine had that died with its runner is given back by the next one");

    kr(&["vps", "restart", "card"])?;
    kr(&["vps", "delete", "card", "--yes", "--force"])?;
    same("drivers", &drivers()?, &before)?;
    same("journals", &journals()?, &0)?;
    same("machines", &machines()?.len(), &0)?;
    ok("delete gives the card back and leaves nothing");

    numa_target()?;
    kill(&mut server)
}

/// The (emulated) machine has two NUMA nodes of one processor each.
fn numa_target() -> Outcome {
    let nodes = json(&["node", "status", "node"])?["numa_topology"]["numa_nodes"].clone();
    same("NUMA nodes", &nodes.as_array().map_or(0, Vec::len), &2)?;
    let make = |name: &str, target: &str| {
        let words = ["vps", "create", "--backend", "qemu", "--vm-image", "probe", "--name", name];
        let size = ["--vm-memory", "128", "--vm-disk", "1", "-c", "1", "-t", target];
        client(&[&words[..], &size].concat()).stderr(Stdio::piped()).output()
    };
    let refused = make("nowhere", "node:2")?;
    same("refused", &refused.status.success(), &false)?;
    println!("   {}", String::from_utf8_lossy(&refused.stderr).lines().next().unwrap_or_default());
    for node in ["0", "1"] {
        let made = make("bound", &format!("node:{node}"))?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into());
        }
        let [qemu] = machines()?[..] else { return Err("there is not one machine".into()) };
        for thread in fs::read_dir(format!("/proc/{qemu}/task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            same("processors", &allowed.map(str::trim), &Some(node))?;
        }
        // The guest's memory, and nothing else, has a policy. What of it is there is on that node.
        let maps = fs::read_to_string(format!("/proc/{qemu}/numa_maps"))?;
        let bound: Vec<&str> = maps.lines().filter(|line| line.contains(" bind:")).collect();
        let elsewhere = format!(" N{}=", if node == "0" { 1 } else { 0 });
        let here = |line: &&str| {
            line.contains(&format!(" bind:{node} "))
                && line.contains(&format!(" N{node}="))
                && !line.contains(&elsewhere)
        };
        same("mappings", &(bound.len(), bound.iter().all(here)), &(1, true))?;
        kr(&["vps", "delete", "bound", "--yes", "--force"])?;
    }
    ok("a machine made for a NUMA node has its processors and its memory there");
    Ok(())
}

/// What this machine's drivers have of the card.
fn drivers() -> Outcome<[Option<String>; 2]> {
    let driver = |address: &str| {
        let link = fs::read_link(format!("/sys/bus/pci/devices/{address}/driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    };
    Ok([DISPLAY, SOUND].map(driver))
}

fn vfio() -> Option<String> {
    Some("vfio-pci".to_owned())
}

fn client(arguments: &[&str]) -> Command {
    let mut command = Command::new("kohakuriver");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A client command that must go well.
fn kr(arguments: &[&str]) -> Outcome<String> {
    let output = client(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?);
    }
    Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

fn json(arguments: &[&str]) -> Outcome<Value> {
    Ok(serde_json::from_str(&kr(&[arguments, &["--json"]].concat())?)?)
}

/// A VPS with a card. What it says where it must not go well.
fn create(name: &str, well: bool) -> Outcome<String> {
    let words = ["vps", "create", "--backend", "qemu", "--vm-image", "probe", "--gpus", "1"];
    let size = ["--vm-memory", "128", "--vm-disk", "1", "-c", "1", "--name", name];
    let output = client(&[&words[..], &size].concat()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() == well { Ok(said) } else { Err(said.into()) }
}

fn status(name: &str) -> Outcome<String> {
    let task = json(&["vps", "status", name])?;
    Ok(task["status"].as_str().unwrap_or_default().to_owned())
}

fn up() -> Outcome<Child> {
    let log = fs::File::options().append(true).create(true).open("/up.log")?;
    let mut command = client(&["up", "--data-dir", DATA]);
    let server = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    wait_for("the node", || {
        let nodes = json(&["node", "list"]).unwrap_or_default();
        Ok(nodes[0]["status"] == "online" && nodes[0]["vm_capable"] == true)
    })?;
    Ok(server)
}

fn kill(server: &mut Child) -> Outcome {
    server.kill()?;
    server.wait()?;
    Ok(())
}

fn machine_dirs() -> Vec<PathBuf> {
    let dirs = fs::read_dir(Path::new(DATA).join("runner/vm/disks"));
    dirs.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What the VPS wrote to its console.
fn console() -> String {
    let logs = machine_dirs().into_iter().map(|dir| dir.join("run/console.log"));
    logs.filter_map(|log| fs::read_to_string(log).ok()).collect()
}

/// The QEMUs that run.
fn machines() -> Outcome<Vec<i32>> {
    let processes = fs::read_dir("/proc")?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let runs = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(qemu-system") && !stat.contains(") Z ")
    };
    Ok(pids.filter(runs).collect())
}

fn journals() -> Outcome<usize> {
    match fs::read_dir(Path::new(DATA).join("runner/vfio")) {
        Ok(entries) => Ok(entries.count()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> Outcome<bool>) -> Outcome {
    let end = Instant::now() + PATIENCE;
    while !is_there()? {
        if Instant::now() > end {
            return Err(format!("waited too long for {what}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn same<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &U,
) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?}, expected {expected:?}").into())
}

fn ok(fact: &str) {
    println!("ok {fact}");
}
