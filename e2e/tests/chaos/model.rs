//! What people asked for, as far as they were told that it was taken. An act whose answer was lost
//! may have been taken or not: then either is right.

use std::collections::BTreeMap;

use kohakuriver_e2e::{BUSYBOX, Cluster};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::disk::Disk;
use crate::guest::Guest;

const MOST: usize = 8;
/// They boot for seconds each where nothing but the processor executes them.
const MOST_MACHINES: usize = 3;

/// What a VPS should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Up,
    Paused,
    Stopped,
    Killed,
    Gone,
    /// It ended by itself and nobody has asked for it since.
    Down,
    /// It ended by itself while something was being done to it: up or down.
    Struck,
    /// An answer was lost.
    Either,
}

#[derive(Debug)]
pub struct Vps {
    pub wish: Wish,
    pub machine: Option<Machine>,
    /// Something was asked of it in this round.
    touched: bool,
}

/// What a virtual machine has besides.
#[derive(Debug, Default)]
pub struct Machine {
    /// Empty where the answer to its create was lost.
    task_id: String,
    pub disk: Disk,
}

/// How a command went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Taken,
    Refused,
    NoAnswer,
}

#[derive(Debug, Default)]
pub struct Model {
    /// By name.
    pub vpses: BTreeMap<String, Vps>,
    /// Names and numbers given out.
    made: u32,
    /// What must never happen and did.
    pub outrage: Option<String>,
}

impl Model {
    pub fn len(&self) -> usize {
        self.vpses.len()
    }

    pub fn machines(&self) -> usize {
        self.vpses.values().filter(|vps| vps.machine.is_some()).count()
    }

    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.vpses.get(name)?.machine.as_ref()
    }

    /// One random act; answers what it was and how it went.
    pub fn act(&mut self, cluster: &Cluster, random: &mut StdRng) -> String {
        let names: Vec<String> = self.vpses.keys().cloned().collect();
        if names.is_empty() || (names.len() < MOST && random.random_range(0..4) == 0) {
            return self.create(cluster, random);
        }
        let name = &names[random.random_range(0..names.len())];
        let is_machine = self.vpses[name].machine.is_some();
        let cores = random.random_range(0..2).to_string();
        let choices = if is_machine { 13 } else { 9 };
        let (arguments, wish): (Vec<&str>, Option<Wish>) = match random.random_range(0..choices) {
            0 => (vec!["stop", name, "--no-wait"], Some(Wish::Stopped)),
            1 => (vec!["kill", name, "--no-wait"], Some(Wish::Killed)),
            2 | 3 => (vec!["restart", name, "--no-wait"], Some(Wish::Up)),
            4 => (vec!["pause", name, "--no-wait"], Some(Wish::Paused)),
            5 => (vec!["resume", name, "--no-wait"], Some(Wish::Up)),
            6 => (vec!["update", name, "--cores", &cores, "--no-wait"], None),
            7 if is_machine => return self.snapshot(cluster, name),
            7 => (vec!["snapshot", "create", name], None),
            8 => (vec!["delete", name, "--yes", "--force", "--no-wait"], Some(Wish::Gone)),
            9 | 10 => return self.restore(cluster, random, name),
            _ => return self.write(cluster, name),
        };
        let (told, line) = ask(cluster, &arguments);
        let freezes = matches!(arguments[0], "pause" | "resume");
        if is_machine && freezes && told == Told::Taken {
            self.outrage = Some(format!("{name} is a machine, and {} was taken", arguments[0]));
        }
        if let Some(wish) = wish {
            match told {
                Told::Taken => self.taken(name, wish),
                // Refused by a host that answered changes nothing.
                Told::Refused => {}
                Told::NoAnswer if is_machine && freezes => {}
                Told::NoAnswer => self.vps(name).wish = Wish::Either,
            }
        }
        line
    }

    fn vps(&mut self, name: &str) -> &mut Vps {
        let vps = self.vpses.get_mut(name).unwrap();
        vps.touched = true;
        vps
    }

    fn taken(&mut self, name: &str, wish: Wish) {
        let vps = self.vps(name);
        // Stopping what is being killed, and the like, is taken and changes nothing.
        let old = vps.wish;
        vps.wish = match (old, wish) {
            (Wish::Either | Wish::Gone, _) if wish != Wish::Gone => old,
            (Wish::Killed, Wish::Stopped) => old,
            // While it is not known to be down, a start is under way already.
            (Wish::Struck, Wish::Up) => old,
            _ => wish,
        };
    }

    fn create(&mut self, cluster: &Cluster, random: &mut StdRng) -> String {
        self.made += 1;
        let name = format!("v{}", self.made);
        let mut arguments = vec!["create", "--name", &name, "--detach", "--json"];
        let is_machine = self.machines() < MOST_MACHINES && random.random_range(0..2) == 0;
        if is_machine {
            arguments.extend(["--backend", "qemu", "--vm-image", "micro", "--cores", "1"]);
            arguments.extend(["--vm-memory", "160", "--vm-disk", "1"]);
        } else {
            arguments.extend(["--image", BUSYBOX]);
            if random.random_range(0..2) == 0 {
                arguments.extend(["--cores", "1"]);
            }
        }
        if random.random_range(0..2) == 0 {
            arguments.push("--ssh");
        }
        let output = cluster.kr(&[&["vps"], &arguments[..]].concat());
        let (told, line) = heard(&arguments, output.code, &output.stderr);
        let wish = match told {
            Told::Taken => Wish::Up,
            Told::NoAnswer => Wish::Either,
            Told::Refused => return line,
        };
        let task: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let task_id = task["task_id"].as_str().unwrap_or_default().to_owned();
        let machine = is_machine.then(|| Machine { task_id, ..Machine::default() });
        self.vpses.insert(name, Vps { wish, machine, touched: true });
        line
    }

    fn snapshot(&mut self, cluster: &Cluster, name: &str) -> String {
        self.made += 1;
        let snapshot = format!("s{}", self.made);
        let (told, line) = ask(cluster, &["snapshot", "create", name, "--name", &snapshot]);
        if let Some(machine) = &mut self.vps(name).machine {
            machine.disk.saved(&snapshot, told == Told::Taken);
        }
        line
    }

    fn restore(&mut self, cluster: &Cluster, random: &mut StdRng, name: &str) -> String {
        let disk = &self.vpses[name].machine.as_ref().unwrap().disk;
        let snapshots: Vec<String> = disk.snapshots().map(ToOwned::to_owned).collect();
        let Some(last) = snapshots.len().checked_sub(1) else {
            return self.snapshot(cluster, name);
        };
        let snapshot = &snapshots[random.random_range(0..=last)];
        let arguments = ["snapshot", "restore", name, snapshot, "--yes", "--no-wait"];
        let (told, line) = ask(cluster, &arguments);
        if told == Told::Refused {
            return line;
        }
        if told == Told::Taken {
            self.taken(name, Wish::Up);
        }
        let vps = self.vps(name);
        if told == Told::NoAnswer && vps.wish != Wish::Gone {
            vps.wish = Wish::Either;
        } else if vps.wish == Wish::Struck {
            // Another disk is another start.
            vps.wish = Wish::Up;
        }
        if let Some(machine) = &mut vps.machine {
            machine.disk.restored(snapshot, told == Told::Taken);
        }
        line
    }

    fn write(&mut self, cluster: &Cluster, name: &str) -> String {
        self.made += 1;
        let number = self.made;
        let output = cluster.inside(name, &Disk::write(number));
        if let Some(machine) = &mut self.vpses.get_mut(name).unwrap().machine {
            machine.disk.written(number, output.code == 0);
        }
        format!("write {number} in {name}: {} {}", output.code, output.stderr.replace('\n', " "))
    }

    /// A machine that nobody asked to end did, or may have.
    pub fn is_struck(&mut self, task_id: &str, surely: bool) {
        for vps in self.vpses.values_mut() {
            let Some(machine) = &vps.machine else { continue };
            if (machine.task_id == task_id || machine.task_id.is_empty()) && vps.wish == Wish::Up {
                vps.wish = if surely && !vps.touched { Wish::Down } else { Wish::Struck };
            }
        }
    }

    /// One of the machines that run and that nobody has asked anything of since the last round.
    pub fn one_that_runs(&self, cluster: &Cluster, pick: usize) -> Option<Guest> {
        let guests = Guest::all(cluster).ok()?;
        let calm = |guest: &Guest| {
            guest.is_up()
                && self
                    .vpses
                    .get(&guest.name)
                    .is_some_and(|vps| vps.wish == Wish::Up && !vps.touched)
        };
        let calm: Vec<Guest> = guests.into_iter().filter(calm).collect();
        calm.get(pick % calm.len().max(1)).cloned()
    }

    /// After a round that was right: what is there is what it is, what is not there is gone.
    pub fn forget_uncertain(&mut self, cluster: &Cluster) {
        let tasks = cluster.json(&["vps", "list", "--all"]);
        let find = |name: &str| tasks.as_array().unwrap().iter().find(|task| task["name"] == name);
        self.vpses.retain(|name, vps| {
            let Some(task) = find(name) else { return false };
            vps.touched = false;
            vps.wish = match task["status"].as_str() {
                Some("running") => Wish::Up,
                Some("paused") => Wish::Paused,
                Some("stopped") => Wish::Stopped,
                Some("killed") => Wish::Killed,
                Some("failed") if vps.machine.is_some() => Wish::Down,
                _ => Wish::Either,
            };
            if let Some(machine) = &mut vps.machine {
                machine.task_id = task["task_id"].as_str().unwrap_or_default().to_owned();
                if vps.wish == Wish::Up && !machine.disk.is_certain() {
                    let read = cluster.inside(name, &Disk::read());
                    if let Ok(number) = read.stdout.trim().parse() {
                        machine.disk.written(number, true);
                    }
                }
            }
            true
        });
    }
}

fn ask(cluster: &Cluster, arguments: &[&str]) -> (Told, String) {
    let output = cluster.kr(&[&["vps"], arguments].concat());
    heard(arguments, output.code, &output.stderr)
}

fn heard(arguments: &[&str], code: i32, said: &str) -> (Told, String) {
    let told = match code {
        0 => Told::Taken,
        3 => Told::NoAnswer,
        _ => Told::Refused,
    };
    (told, format!("{}: {told:?} {}", arguments.join(" "), said.replace('\n', " ")))
}
